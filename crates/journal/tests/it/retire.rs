//! Deleting many data files with few flushes.

use std::collections::BTreeSet;

use kahawai_env::Files;
use kahawai_journal::{
    Journal, KnownPositions, SUMS_DIRECTORY, data_file_id, data_file_name, install, truncate,
};
use kahawai_testkit::MemoryFiles;
use kahawai_types::Location;

use crate::history::{directory, options, written};
use crate::model::Life;

/// Names what is being deleted.
const RETIRING: &str = "replication/retiring";

fn data_files(files: &MemoryFiles) -> BTreeSet<u32> {
    files.list("").unwrap().iter().filter_map(|name| data_file_id(name)).collect()
}

/// A closed journal of many files, and the ids of those that can be deleted.
fn many() -> (MemoryFiles, Vec<u32>) {
    let (life, _) = written(10, 6);
    let last = life.journal.reader().durable_end().file();
    assert!(last > 8, "only {last} files");
    (life.files.kill().fork(), (1..last).collect())
}

fn open(files: &MemoryFiles) -> Journal {
    Journal::open(directory(files), options(), KnownPositions::default()).unwrap().0
}

/// What is written down by a machine that stops before the first file is deleted.
fn left_behind(before: &MemoryFiles, ids: [u32; 3]) -> Vec<u8> {
    let stopped = (0..).find_map(|stop| {
        let files = before.fork();
        let journal = open(&files);
        files.die_after(stop);
        journal.retire(ids).unwrap_err();
        let after = files.kill();
        assert_eq!(data_files(&after), data_files(before), "the list comes first");
        after.content(RETIRING)
    });
    stopped.unwrap()
}

#[test]
fn many_files_cost_no_more_flushes_than_a_few() {
    let (files, ids) = many();
    let flushes = |count: usize| {
        let files = files.fork();
        let journal = open(&files);
        // Which epochs began in them is written down once.
        let (_, before) = files.operations();
        journal.retire(ids[..count].iter().copied()).unwrap();
        assert!(data_files(&files).is_disjoint(&ids[..count].iter().copied().collect()));
        assert!(files.content(RETIRING).is_none());
        files.operations().1 - before
    };
    let (few, all) = (flushes(3), flushes(ids.len()));
    assert!(all <= few + 2, "{few} flushes for 3 files, {all} for {}", ids.len());
    assert!(all <= 8, "{all} flushes");
}

/// The machine stops at every operation in turn, and loses any part of what was not flushed.
#[test]
fn what_is_deleted_together_comes_back_together_or_not_at_all() {
    let (before, ids) = many();
    let batch: BTreeSet<u32> = ids.iter().copied().collect();
    let all = data_files(&before);
    let epochs = open(&before.fork()).reader().epochs().unwrap();
    let (mut kept, mut gone) = (0, 0);
    let mut torn = 0;
    for seed in 0..12 {
        let mut finished = false;
        for stop in 0.. {
            let files = before.fork();
            // What is known of a file goes with it.
            open(&files).reader().sealed_files(open(&files).reader().durable_end()).unwrap();
            let journal = open(&files);
            files.die_after(stop);
            finished = journal.retire(ids.iter().copied()).is_ok();
            let mut after = files.crash(seed * 1000 + stop);
            let left = data_files(&after).intersection(&batch).count();
            torn += usize::from(left > 0 && left < batch.len());
            // The start that finishes it may be interrupted as well.
            for again in 0..stop % 4 {
                after.die_after(again);
                let _ = Journal::open(directory(&after), options(), KnownPositions::default());
                after = after.crash(seed + again);
            }
            let journal = open(&after);
            let left = data_files(&after);
            let whole = left.is_superset(&batch);
            assert!(whole || left.is_disjoint(&batch), "seed {seed}, stop {stop}: {left:?}");
            assert_eq!(left.difference(&batch).count(), all.difference(&batch).count());
            assert!(after.content(RETIRING).is_none());
            assert_eq!(journal.reader().epochs().unwrap(), epochs, "seed {seed}, stop {stop}");
            assert!(!finished || !whole, "seed {seed}: reported as done, and not done");
            kept += usize::from(whole);
            gone += usize::from(!whole);
            if finished {
                break;
            }
        }
        assert!(finished);
    }
    assert!(kept > 0 && gone > 0 && torn > 0, "{kept} kept, {gone} gone, {torn} half deleted");
}

#[test]
fn after_a_failed_flush_it_is_asked_for_again() {
    let (before, ids) = many();
    let mut failed = 0;
    for flush in 0.. {
        let files = before.fork();
        let journal = open(&files);
        files.fail_flush_after(flush);
        match journal.retire(ids.iter().copied()) {
            Ok(()) => break,
            Err(_) => failed += 1,
        }
        journal.retire(ids.iter().copied()).unwrap();
        assert!(data_files(&files.crash(flush)).is_disjoint(&ids.iter().copied().collect()));
    }
    assert!(failed >= 4, "only {failed} flushes were made to fail");
}

#[test]
fn a_list_that_cannot_be_read_deletes_nothing_and_the_newest_file_is_never_deleted() {
    let (before, ids) = many();
    let list = left_behind(&before, [1, 2, 3]);
    let damaged = before.fork();
    damaged.put(RETIRING, &list);
    damaged.flip(RETIRING, 9, 1);
    open(&damaged);
    assert_eq!(data_files(&damaged), data_files(&before));
    assert!(damaged.content(RETIRING).is_none());
    damaged.put(RETIRING, &vec![0; 1 << 20]);
    open(&damaged);
    assert_eq!(data_files(&damaged), data_files(&before));
    // Of another journal, say: one whose newest file it names.
    let short = MemoryFiles::new();
    for id in [1, 2] {
        short.put(&data_file_name(id), &before.content(&data_file_name(id)).unwrap());
    }
    short.put(RETIRING, &list);
    open(&short);
    assert_eq!(data_files(&short), BTreeSet::from([2]));
    assert!(ids.len() > 3);
}

/// A list that was left behind says nothing about files that come later.
#[test]
fn who_brings_other_files_ends_the_list() {
    let (before, _) = many();
    let reader = open(&before.fork()).reader();
    let manifest = reader.sealed_files(reader.durable_end()).unwrap();
    let list = left_behind(&before, [1, 2, 3]);
    // Everything is there already, and stays.
    let installed = before.fork();
    installed.remove(&data_file_name(manifest.last().unwrap().id + 1)).unwrap();
    installed.put(RETIRING, &list);
    install(&directory(&installed), &manifest).unwrap();
    assert!(installed.content(RETIRING).is_none());
    assert!(data_files(&installed).is_superset(&BTreeSet::from([1, 2, 3])));
    // A cut finishes it first.
    let cut = before.fork();
    cut.put(RETIRING, &list);
    truncate(&directory(&cut), Location::new(5, 0).lsn(), None).unwrap();
    assert!(cut.content(RETIRING).is_none());
    assert!(data_files(&cut).is_disjoint(&BTreeSet::from([1, 2, 3])));
    let again = Life::begin(&cut, options(), KnownPositions::default()).unwrap();
    assert_eq!(again.recovery.files[0].id, 4);
}

#[test]
fn what_was_found_out_about_a_file_goes_with_it() {
    let (files, ids) = many();
    let journal = open(&files);
    journal.reader().sealed_files(journal.reader().durable_end()).unwrap();
    assert!(files.list(SUMS_DIRECTORY).unwrap().len() >= ids.len());
    journal.retire(ids.iter().copied()).unwrap();
    assert_eq!(files.list(SUMS_DIRECTORY).unwrap(), Vec::<String>::new());
}
