//! Cutting a journal back to where it parted from another.

use kahawai_env::Files;
use kahawai_journal::{
    BatchView, Chain, KnownPositions, SUMS_DIRECTORY, TruncateError, record_epochs, truncate,
};
use kahawai_testkit::{MemoryFiles, Random};
use kahawai_types::{Location, Lsn};

use crate::history::{directory, options, written};
use crate::model::{Life, payload, walk};

fn batches(files: &MemoryFiles) -> (Life, Vec<BatchView>) {
    let life = Life::begin(files, options(), KnownPositions::default()).unwrap();
    let batches = walk(&life.journal).unwrap();
    (life, batches)
}

/// All data files, byte for byte up to the end of their last batch.
fn contents(life: &Life) -> Vec<(u32, Vec<u8>)> {
    let end = life.journal.reader().durable_end();
    let ends = walk(&life.journal).unwrap().into_iter().map(|batch| batch.end()).collect::<Vec<_>>();
    let mut all = Vec::new();
    for file in life.journal.files() {
        let end = ends.iter().rfind(|end| end.file() == file.id).unwrap_or(&end);
        let content = life.files.content(&format!("db-{}.log", file.id)).unwrap();
        all.push((file.id, content[..end.offset() as usize].to_vec()));
    }
    all
}

/// At every place between two batches, with a stop at any operation: what is left opens as the old journal or as exactly what
/// lies before the place.
#[test]
fn a_cut_journal_is_the_beginning_of_the_old_one() {
    let (life, _) = written(21, 3);
    let old = life.files.kill();
    let (_, all) = batches(&old.fork());
    let mut cuts = 0;
    for (index, batch) in all.iter().enumerate() {
        let mut places = vec![(batch.end(), index + 1)];
        if index == 0 || index % 5 == 0 {
            places.push((batch.lsn, index));
        }
        if all.get(index + 1).is_some_and(|next| next.lsn.file() > batch.lsn.file()) {
            places.push((Location::new(batch.lsn.file() + 1, 0).lsn(), index + 1));
        }
        for (to, left) in places {
            let chain = left.checked_sub(1).map_or_else(Chain::default, |last| all[last].chain.unwrap());
            let mut random = Random::new(to.0);
            let mut stop = random.below(3);
            loop {
                let files = old.fork();
                files.die_after(stop);
                let first = truncate(&directory(&files), to, Some(chain));
                let files = files.crash(random.next_u64());
                let (_, found) = batches(&files.fork());
                assert!(found.len() == left || found.len() == all.len(), "neither the old nor the new");
                assert!(found.iter().zip(&all).all(|(found, old)| found.bytes == old.bytes));
                let second = truncate(&directory(&files), to, Some(chain)).unwrap();
                let (life, found) = batches(&files.crash(random.next_u64()));
                assert_eq!(found.len(), left, "cut at {to}");
                assert_eq!(life.recovery.chain, Some(chain));
                assert!(life.recovery.cuts.is_empty(), "{:?}", life.recovery.cuts);
                cuts += 1;
                if let Ok(first) = first {
                    assert_eq!(second.dropped_bytes, 0, "durable when it returned");
                    let kept: usize =
                        first.saved_as.iter().map(|name| files.content(name).unwrap().len()).sum();
                    assert_eq!(kept as u64, first.dropped_bytes);
                    assert!(kept >= all[left..].iter().map(|batch| batch.bytes.len() - 16).sum());
                    break;
                }
                stop += 1 + random.below(4);
            }
        }
    }
    assert!(cuts > 200, "only {cuts} cuts");
}

#[test]
fn what_is_no_boundary_or_has_another_chain_is_left_alone() {
    let (life, _) = written(22, 2);
    let files = life.files.kill();
    let (_, all) = batches(&files.fork());
    let target = directory(&files);
    let before: Vec<_> = target.list("").unwrap().iter().map(|name| files.content(name)).collect();
    let middle = &all[all.len() / 2];
    let end = all.last().unwrap().end();
    for at in [Lsn(middle.lsn.0 + 1), Lsn(middle.end().0 - 1), Lsn(end.0 + 5), Location::new(77, 0).lsn()] {
        let refused = truncate(&target, at, None).unwrap_err();
        assert!(matches!(refused, TruncateError::NoBoundary { .. }), "{at}: {refused}");
    }
    let refused = truncate(&target, middle.lsn, Some(Chain(1))).unwrap_err();
    assert!(matches!(refused, TruncateError::Chain { .. }), "{refused}");
    // Damage before the place.
    files.flip(&format!("db-{}.log", middle.lsn.file()), 40, 1);
    assert!(matches!(truncate(&target, middle.end(), None), Err(TruncateError::Read(_))));
    files.flip(&format!("db-{}.log", middle.lsn.file()), 40, 1);
    let after: Vec<_> = target.list("").unwrap().iter().map(|name| files.content(name)).collect();
    assert_eq!(before, after);
}

/// Two nodes share a beginning; each went on alone. The one that is not believed is cut, and copies the other's journal.
#[test]
fn after_a_cut_a_replica_catches_up_and_is_byte_identical() {
    for seed in 0..12 {
        let mut random = Random::new(seed);
        let (life, mut memory) = written(seed, 2);
        let common = life.journal.reader().durable_end();
        let shared = life.files.kill();
        let mut grow = |files: MemoryFiles, skip: bool, rounds: u64| {
            let mut life = Life::begin(&files, options(), KnownPositions::default()).unwrap();
            if skip {
                // Another epoch than the other's.
                let epoch = life.recovery.last_epoch.next().next();
                life.journal.begin_epoch(crate::model::new_epoch(epoch)).unwrap();
            } else {
                life.reign();
            }
            for _ in 0..rounds {
                life.append(&mut memory, payload(&mut random, 900)).unwrap();
                life.write(&mut memory).unwrap();
            }
            life.write_all(&mut memory);
            life
        };
        let deposed = grow(shared.fork(), false, 8);
        let primary = grow(shared.fork(), true, 14);
        // What was found out about the divergent files must not be believed of their successors.
        let deposed_end = deposed.journal.reader().durable_end();
        deposed.journal.reader().sealed_files(deposed_end).unwrap();
        record_epochs(&directory(&deposed.files), &deposed.journal.reader().epochs().unwrap()).unwrap();
        let reader = primary.journal.reader();
        let chain = reader.chain_at(common).unwrap().unwrap();
        let files = deposed.files.kill();
        let cut = truncate(&directory(&files), common, Some(chain)).unwrap();
        assert!(cut.dropped_bytes > 0);
        for id in common.file()..=deposed_end.file() {
            assert!(!files.exists(&format!("{SUMS_DIRECTORY}/db-{id}.sum")).unwrap());
        }
        let mut replica = Life::begin(&files, options(), KnownPositions::default()).unwrap();
        assert_eq!(replica.recovery.end, common);
        let rest: Vec<_> = reader.batches(common).map(|batch| batch.unwrap()).collect();
        let rest: Vec<_> = rest.into_iter().map(|batch| (batch.lsn, batch.bytes)).collect();
        for part in rest.chunks(3) {
            replica.writer.copy(part).unwrap();
        }
        assert_eq!(contents(&replica), contents(&primary));
        let end = reader.durable_end();
        assert_eq!(
            replica.journal.reader().sealed_files(end).unwrap(),
            reader.sealed_files(end).unwrap(),
            "seed {seed}"
        );
        assert_eq!(replica.journal.reader().epochs().unwrap(), reader.epochs().unwrap());
    }
}
