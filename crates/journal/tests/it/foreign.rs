//! Directories that ActiveMQ made.

use std::path::PathBuf;
use std::sync::Arc;

use kahawai_env::{DiskFiles, Files, OpenMode};
use kahawai_journal::{
    BatchView, Batches, Control, END_MARK, Evidence, Finding, Journal, JournalOptions, KnownPositions,
    OpenError, SUMS_DIRECTORY, verify,
};
use kahawai_testkit::{MemoryFiles, fixtures};
use kahawai_types::{Epoch, Location, Lsn};

use crate::model::{commands, new_epoch, walk};

/// Directory, good batches, records, those without checksum, end; counted by a reader that shares nothing with this one.
const SOUND: &[(&str, u64, u64, u64, &str)] = &[
    ("ack-compaction-appended/kahadb", 184, 504, 0, "20:22707"),
    ("ack-compaction/kahadb", 174, 494, 0, "20:17575"),
    ("damaged-lost-redo-and-free/kahadb", 147, 160, 0, "3:33560"),
    ("damaged-missing-early-file/kahadb", 86, 99, 0, "3:33560"),
    ("damaged-missing-index/kahadb", 147, 160, 0, "3:33560"),
    ("damaged-zeroed-tail/kahadb", 146, 159, 0, "3:33298"),
    ("durable-topics/kahadb", 135, 160, 0, "1:46495"),
    ("killed-mid-write/kahadb", 16, 16, 0, "1:2105062"),
    ("multi-kahadb/kahadb/queue#3a#2f#2fEACH.ONE", 15, 15, 0, "1:4380"),
    ("multi-kahadb/kahadb/queue#3a#2f#2fEACH.TWO", 6, 6, 0, "1:2093"),
    ("multi-kahadb/kahadb/queue#3a#2f#2fFAST.#3e", 16, 16, 0, "1:4873"),
    ("multi-kahadb/kahadb/queue#3a#2f#2fOTHER", 17, 17, 0, "1:5200"),
    ("multi-kahadb/kahadb/txStore", 3, 3, 0, "1:228"),
    ("prealloc-async/kahadb", 12, 12, 0, "1:4631"),
    ("prealloc-chunked/kahadb", 12, 12, 0, "1:4631"),
    ("prealloc-kernelcopy/kahadb", 12, 12, 0, "1:4631"),
    ("prealloc-nochecksum/kahadb", 12, 12, 12, "1:4631"),
    ("prealloc-none/kahadb", 12, 12, 0, "1:4631"),
    ("prealloc-zeros/kahadb", 12, 12, 0, "1:4631"),
    ("queue-backlog/kahadb", 147, 160, 0, "3:33560"),
    ("rebuild-order/kahadb", 133, 266, 0, "14:9332"),
    ("removals-collected/kahadb", 172, 221, 0, "10:60716"),
    ("rolled-gc/kahadb", 258, 301, 0, "17:61506"),
    ("scheduler/kahadb", 5, 5, 0, "1:1837"),
    ("scheduler/scheduler", 17, 17, 0, "1:4970"),
    ("transactions-crash/kahadb", 75, 76, 0, "1:24060"),
    ("xa-prepared-clean/kahadb", 70, 70, 0, "1:21726"),
];

/// The same, where a torn tail is cut.
const TORN: &[(&str, u64, u64, u64, &str)] = &[
    ("damaged-truncated-mid-batch/kahadb", 146, 159, 0, "3:33298"),
    ("torn-tail/kahadb", 20, 20, 0, "1:2006396"),
];

fn unpack(path: &str) -> (tempfile::TempDir, Arc<dyn Files>) {
    let (name, folder) = path.split_once('/').unwrap();
    let directory = fixtures::unpack(name);
    let folder: PathBuf = directory.path().join(folder);
    (directory, Arc::new(DiskFiles::existing(folder).unwrap()))
}

fn open(files: &Arc<dyn Files>) -> Result<(Journal, kahawai_journal::Recovery), OpenError> {
    Journal::open(files.clone(), JournalOptions::default(), KnownPositions::default())
}

fn check(cases: &[(&str, u64, u64, u64, &str)], torn: bool) {
    for &(path, batches, records, unchecked, end) in cases {
        let (_keep, files) = unpack(path);
        let end: Location = end.parse().unwrap();
        let report = verify(&files, 0, KnownPositions::default()).unwrap();
        assert!(report.is_sound(), "{path}: {:?}", report.findings);
        let tails =
            report.findings.iter().filter(|finding| matches!(finding, Finding::TornTail { .. })).count();
        assert_eq!(tails, usize::from(torn), "{path}");
        let sum = |of: fn(&kahawai_journal::FileReport) -> u64| report.files.iter().map(of).sum::<u64>();
        assert_eq!(sum(|file| file.batches), batches, "{path}");
        assert_eq!(sum(|file| file.foreign), batches, "{path}");
        assert_eq!(sum(|file| file.records), records, "{path}");
        assert_eq!(sum(|file| file.unchecked), unchecked, "{path}");
        assert_eq!(report.end, end.lsn(), "{path}");

        let (journal, recovery) = open(&files).unwrap();
        assert_eq!(recovery.end, end.lsn(), "{path}");
        assert!(recovery.newest_is_foreign && recovery.last_epoch == Epoch(0));
        assert_eq!(recovery.cuts.len(), usize::from(torn), "{path}");
        assert_eq!(recovery.chain, report.chain, "{path}");
        assert!(recovery.chain.is_some());
        let before = walk(&journal).unwrap();
        assert_eq!(before.len() as u64, batches);
        assert_eq!(before.iter().map(|batch| batch.records().count()).sum::<usize>() as u64, records);

        // Ours go on in a file of their own.
        journal.begin_epoch(new_epoch(Epoch(1))).unwrap();
        let appended = journal.appender().lock().append(|out| out.extend_from_slice(b"\x01hello")).unwrap();
        assert!(appended.at.file > end.file, "{path}");
        let mut writer = journal.take_writer().unwrap();
        let batch = writer.try_next(recovery.end).unwrap().unwrap();
        assert_eq!(Some(batch.prev_chain), recovery.chain);
        writer.write(batch).unwrap();
        assert_eq!(journal.reader().read(appended.at, appended.size).unwrap(), "\x01hello");
        drop((journal, writer));
        let (journal, recovery) = open(&files).unwrap();
        assert!(!recovery.newest_is_foreign && recovery.cuts.is_empty());
        let after = walk(&journal).unwrap();
        assert!(
            after
                .iter()
                .map(|batch| &batch.bytes)
                .take(before.len())
                .eq(before.iter().map(|batch| &batch.bytes))
        );
        assert_eq!(after.len(), before.len() + 1);
        // What one file is alone, without those before it, is not taken for what it is in the journal.
        let reader = journal.reader();
        for file in journal.files() {
            reader.sealed_file(file.id).unwrap();
        }
        let together = reader.sealed_files(reader.durable_end()).unwrap();
        if files.exists(SUMS_DIRECTORY).unwrap() {
            for name in files.list(SUMS_DIRECTORY).unwrap() {
                files.remove(&format!("{SUMS_DIRECTORY}/{name}")).unwrap();
            }
        }
        assert_eq!(reader.sealed_files(reader.durable_end()).unwrap(), together, "{path}");
        let report = verify(&files, 0, KnownPositions::default()).unwrap();
        assert!(report.is_sound());
        assert_eq!((report.chain, report.end), (recovery.chain, recovery.end));
        assert_eq!(
            Batches::of_directory(files, Lsn::ZERO).unwrap().filter_map(Result::ok).count(),
            after.len()
        );
    }
}

#[test]
fn every_directory_of_activemq_is_walked_and_continued() {
    check(SOUND, false);
    let covered: Vec<&str> = SOUND.iter().chain(TORN).map(|case| case.0.split('/').next().unwrap()).collect();
    for name in fixtures::names() {
        assert!(
            covered.contains(&name.as_str()) || name.starts_with("damaged-flipped"),
            "{name} is not tested"
        );
    }
}

#[test]
fn a_torn_tail_of_activemq_is_cut() {
    check(TORN, true);
}

#[test]
fn a_damaged_batch_that_activemq_would_silently_drop_is_refused() {
    let (_keep, files) = unpack("damaged-flipped-byte-last-file/kahadb");
    let error = open(&files).unwrap_err();
    let OpenError::Damaged { at, evidence: Evidence::BatchBehind(_), .. } = &error else { panic!("{error}") };
    assert_eq!(*at, Location::new(3, 18170));
    let report = verify(&files, 0, KnownPositions::default()).unwrap();
    assert!(
        matches!(&report.findings[..], [Finding::Damage { at, evidence: Some(_), .. }] if *at == Location::new(3, 18170))
    );
}

#[test]
fn damage_in_an_early_file_of_activemq_leaves_the_chain_unknown_until_it_is_adopted() {
    let (_keep, files) = unpack("damaged-flipped-byte-early-file/kahadb");
    let report = verify(&files, 0, KnownPositions::default()).unwrap();
    assert!(
        matches!(&report.findings[..], [Finding::Damage { at, until: Some(_), .. }] if *at == Location::new(1, 6250))
    );
    assert_eq!(report.files.iter().map(|file| file.batches).sum::<u64>(), 146);
    let (journal, recovery) = open(&files).unwrap();
    assert_eq!((recovery.chain, recovery.end), (None, Location::new(3, 33560).lsn()));
    assert!(journal.begin_epoch(new_epoch(Epoch(1))).is_err());
    let mut writer = journal.take_writer().unwrap();
    writer.adopt_chain(kahawai_journal::Chain(0));
    journal.begin_epoch(new_epoch(Epoch(1))).unwrap();
    let batch = writer.try_next(Lsn::ZERO).unwrap().unwrap();
    writer.write(batch).unwrap();
    let from = Location::new(2, 0).lsn();
    let rest: Vec<BatchView> = journal.reader().batches(from).map(|batch| batch.unwrap()).collect();
    assert!(rest.last().unwrap().stamp.is_some());
    assert!(!commands(&rest).is_empty());
}

#[test]
fn what_activemq_left_in_the_cache_is_made_durable_with_its_name() {
    for seed in 0..20 {
        let memory = MemoryFiles::new();
        let records = b"\x00\x00\x00\x08\x01\x01ab";
        let mut batch = Control::of(records).unwrap().encode().to_vec();
        batch.extend_from_slice(records);
        batch.extend_from_slice(&END_MARK);
        for id in 1..=3 {
            // Neither flushed nor named durably.
            memory.open(&format!("db-{id}.log"), OpenMode::CreateNew).unwrap().write_at(&batch, 0).unwrap();
        }
        let memory = memory.kill();
        let (_, recovery) = open(&(Arc::new(memory.clone()) as Arc<dyn Files>)).unwrap();
        let memory = memory.crash(seed);
        let (journal, again) = open(&(Arc::new(memory) as Arc<dyn Files>)).unwrap();
        assert_eq!((again.end, again.chain), (recovery.end, recovery.chain));
        assert_eq!(walk(&journal).unwrap().len(), 3);
    }
}
