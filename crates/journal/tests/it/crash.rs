use std::sync::Arc;

use kahawai_env::Files;
use kahawai_journal::{AppendError, Evidence, JournalOptions, KnownPositions, OpenError, verify};
use kahawai_testkit::{MemoryFiles, Random};
use kahawai_types::Lsn;
use proptest::prelude::*;

use crate::model::{Life, Memory, payload, small_files};

/// Several lives with random work, each ended by a crash at a random operation, or by an error of the disk. After each start
/// everything that was confirmed is there, and nothing is there that was never appended.
///
/// Returns how often a tail was refused because a message in it carried a batch of ActiveMQ's, and nothing was left to tell
/// that it was a message.
fn lives(seed: u64) -> usize {
    let mut undecidable = 0;
    let mut random = Random::new(seed);
    let mut files = MemoryFiles::new();
    let mut memory = Memory::default();
    let file_bytes = [1024, 3000, 8192, 70_000][random.below(4) as usize];
    for _ in 0..4 {
        let options = JournalOptions {
            batch_bytes_max: 200 + random.below(4000) as u32,
            recent_bytes_max: random.below(8000) as usize,
            preallocate: random.chance(2),
            ..small_files(file_bytes)
        };
        let known = match random.below(3) {
            0 => KnownPositions::default(),
            1 => KnownPositions { durable: memory.confirmed_end, commit: Lsn::ZERO },
            _ => KnownPositions { durable: Lsn::ZERO, commit: memory.confirmed_end },
        };
        // Opening may be interrupted as well.
        while random.chance(3) {
            files.die_after(random.below(12));
            let life = Life::begin(&files, options.clone(), known);
            if let Ok(life) = life {
                memory.check(&life);
            }
            files = files.crash(random.next_u64());
        }
        if random.chance(8) {
            files.read_short(random.next_u64());
        }
        let mut life = match Life::begin(&files, options.clone(), known) {
            Ok(life) => life,
            Err(OpenError::Damaged { at, evidence: Evidence::BatchBehind(_), .. })
                if at.lsn() >= memory.confirmed_end =>
            {
                undecidable += 1;
                let options = JournalOptions { cut_allowed_at: Some(at.lsn()), ..options.clone() };
                Life::begin(&files, options, known).unwrap()
            }
            Err(error) => panic!("seed {seed}: {error}"),
        };
        memory.check(&life);
        let report = verify(&(Arc::new(files.clone()) as Arc<dyn Files>), 0, known).unwrap();
        assert!(report.findings.is_empty(), "seed {seed}: {:?}", report.findings);
        assert_eq!(report.end, life.recovery.end);
        if random.chance(6) {
            files = end_of_life(&files, &mut random);
            continue;
        }
        life.reign();
        match random.below(4) {
            0 => files.fail_flush_after(random.below(20)),
            1 => files.fail_write_after(random.below(20)),
            _ => files.die_after(random.below(60)),
        }
        let mut failed = false;
        for _ in 0..random.below(60) {
            let appended = match random.below(8) {
                0 => {
                    let group = (0..random.below(6)).map(|_| payload(&mut random, 400)).collect();
                    life.append_together(&mut memory, group)
                }
                1..=3 => life.append(&mut memory, {
                    let bytes = 1 << random.below(13);
                    payload(&mut random, bytes)
                }),
                4 => {
                    let _ = life.preparer.run_once();
                    Ok(())
                }
                _ => {
                    failed |= life.write(&mut memory).is_err();
                    Ok(())
                }
            };
            match appended {
                Ok(()) => assert!(
                    !failed || !matches!(life.write(&mut memory), Ok(true)),
                    "confirmed after an error"
                ),
                Err(AppendError::Failed(_)) => break,
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
        if !failed && random.chance(3) {
            while let Ok(true) = life.write(&mut memory) {}
        }
        files = end_of_life(&files, &mut random);
    }
    undecidable
}

fn end_of_life(files: &MemoryFiles, random: &mut Random) -> MemoryFiles {
    if random.chance(4) { files.kill() } else { files.crash(random.next_u64()) }
}

#[test]
fn whatever_happens_what_was_confirmed_is_there() {
    let lives_per_run = std::env::var("KAHAWAI_SEEDS").map_or(600, |text| text.parse().unwrap());
    let first = std::env::var("KAHAWAI_SEED").map_or(0, |text| text.parse().unwrap());
    let undecidable: usize = (first..first + lives_per_run).map(lives).sum();
    assert!(undecidable as u64 <= 5 + lives_per_run / 100, "{undecidable} torn tails refused");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_at_random_what_was_confirmed_is_there(seed: u64) {
        lives(seed);
    }
}

#[test]
fn after_a_failed_flush_nothing_is_confirmed_and_what_was_believed_is_not() {
    let files = MemoryFiles::new();
    let options = small_files(64 << 10);
    let mut life = Life::begin(&files, options.clone(), KnownPositions::default()).unwrap();
    let mut memory = Memory::default();
    life.reign();
    life.append(&mut memory, vec![1; 100].into()).unwrap();
    life.write_all(&mut memory);
    life.append(&mut memory, vec![1; 3000].into()).unwrap();
    files.fail_flush_after(0);
    let failed = life.write(&mut memory).unwrap_err();
    assert_eq!(failed.at, memory.confirmed_end);
    assert!(matches!(life.append(&mut memory, vec![1; 1].into()), Err(AppendError::Failed(_))));
    assert!(life.writer.try_next(Lsn::ZERO).is_err());
    assert!(life.writer.next_batch(Lsn::ZERO).is_err());
    assert_eq!(life.journal.reader().durable_end(), memory.confirmed_end);
    // Started again without a power loss, the cache still shows the batch that the disk does not have.
    let files = files.kill();
    let life = Life::begin(&files, options.clone(), KnownPositions::default()).unwrap();
    assert_eq!(life.recovery.end, memory.confirmed_end, "the cache was believed");
    memory.check(&life);
    let life = Life::begin(&files.crash(0), options, KnownPositions::default()).unwrap();
    memory.check(&life);
}

#[test]
fn a_torn_tail_is_cut_and_kept_aside() {
    let options = small_files(64 << 10);
    let mut cuts = 0;
    for seed in 0..60 {
        let files = MemoryFiles::new();
        let mut life = Life::begin(&files, options.clone(), KnownPositions::default()).unwrap();
        let mut memory = Memory::default();
        life.reign();
        life.write_all(&mut memory);
        life.append(&mut memory, Random::new(seed).bytes(3000).into()).unwrap();
        files.die_after(1);
        assert!(life.write(&mut memory).is_err());
        let files = files.crash(seed);
        let torn = files.content("db-1.log").unwrap();
        let life = Life::begin(&files, options.clone(), KnownPositions::default()).unwrap();
        memory.check(&life);
        let end = life.recovery.end.offset() as usize;
        let now = files.content("db-1.log").unwrap();
        assert!(now[end..].starts_with(b"-qMa4") && now[end + 5..].iter().all(|&b| b == 0));
        assert_eq!(now[..end], torn[..end]);
        if let [cut] = &life.recovery.cuts[..]
            && let Some(name) = &cut.saved_as
        {
            cuts += 1;
            assert_eq!(files.content(name).unwrap(), torn[end..end + cut.bytes as usize]);
            assert!(torn[end + cut.bytes as usize..].iter().all(|&b| b == 0));
        }
        let again = Life::begin(&files.kill(), options.clone(), KnownPositions::default()).unwrap();
        assert!(again.recovery.cuts.is_empty());
    }
    assert!(cuts > 10, "only {cuts} torn tails");
}
