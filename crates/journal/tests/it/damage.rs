use std::sync::Arc;

use kahawai_env::Files;
use kahawai_journal::{
    Evidence, Finding, Journal, JournalOptions, KnownPositions, MAGIC, OpenError, ReadError, verify,
};
use kahawai_testkit::{MemoryFiles, Random};
use kahawai_types::{Location, Lsn};

use crate::model::{Life, Memory, small_files, walk};

fn options() -> JournalOptions {
    small_files(8192)
}

/// A journal with a few confirmed batches in each of a few files, closed.
fn confirmed() -> (MemoryFiles, Memory, Vec<Lsn>) {
    let files = MemoryFiles::new();
    let mut life = Life::begin(&files, options(), KnownPositions::default()).unwrap();
    let mut memory = Memory::default();
    life.reign();
    let mut random = Random::new(5);
    while memory.confirmed_end < Location::new(3, 3000).lsn() {
        life.append(&mut memory, random.bytes(400).into()).unwrap();
        life.write_all(&mut memory);
    }
    let starts = walk(&life.journal).unwrap().iter().map(|batch| batch.lsn).collect();
    life.close(&mut memory);
    (files.crash(1), memory, starts)
}

fn images(files: &MemoryFiles) -> Vec<(String, Vec<u8>)> {
    files
        .list("")
        .unwrap()
        .into_iter()
        .filter_map(|name| Some((name.clone(), files.content(&name)?)))
        .collect()
}

#[test]
fn a_flipped_bit_in_confirmed_data_is_refused_and_nothing_is_touched() {
    let (files, memory, starts) = confirmed();
    let last_batch = *starts.last().unwrap();
    let file = memory.confirmed_end.file();
    let known = KnownPositions { durable: memory.confirmed_end, commit: Lsn::ZERO };
    let mut random = Random::new(9);
    for offset in 0..memory.confirmed_end.offset() {
        let files = files.fork();
        files.flip(&format!("db-{file}.log"), offset as usize, 1 << random.below(8));
        let before = images(&files);
        // The last batch itself is proven by nothing in the file: there, only knowledge from elsewhere helps.
        let known =
            if offset < last_batch.offset() && random.chance(2) { KnownPositions::default() } else { known };
        match Life::begin(&files, options(), known).map(|life| life.recovery) {
            Err(OpenError::Damaged { at, .. }) => {
                let batch =
                    starts.iter().rfind(|start| **start <= Location::new(file, offset).lsn()).unwrap();
                assert_eq!(at, batch.location());
            }
            other => panic!("offset {offset}: {other:?}"),
        }
        assert_eq!(images(&files), before);
    }
}

#[test]
fn an_operator_can_allow_the_cut_at_exactly_the_damage() {
    let (files, _, starts) = confirmed();
    let at = starts[starts.len() - 3];
    files.flip(&format!("db-{}.log", at.file()), at.offset() as usize + 120, 4);
    let open = |cut_allowed_at| {
        Life::begin(&files.fork(), JournalOptions { cut_allowed_at, ..options() }, KnownPositions::default())
    };
    let error = open(None).err().unwrap().to_string();
    assert!(
        error.contains("memory:/db-3.log") && error.contains(&format!("offset {}", at.offset())),
        "{error}"
    );
    assert!(error.contains("replica") && error.contains(&at.to_string()), "{error}");
    assert!(open(Some(starts[starts.len() - 2])).is_err());
    let life = open(Some(at)).unwrap();
    assert_eq!(life.recovery.end, at);
    assert!(matches!(life.recovery.cuts[0].overruled, Some(Evidence::CommitHint { .. })));
    assert!(life.recovery.cuts[0].saved_as.is_some());
    assert_eq!(walk(&life.journal).unwrap().last().unwrap().end(), at);
}

#[test]
fn a_journal_that_ends_before_what_is_known_is_refused() {
    let (files, memory, starts) = confirmed();
    let beyond = KnownPositions { durable: Lsn(memory.confirmed_end.0 + 1), commit: Lsn::ZERO };
    assert!(matches!(Life::begin(&files.fork(), options(), beyond), Err(OpenError::Damaged { .. })));
    let next_file = KnownPositions { durable: Lsn::ZERO, commit: Location::new(4, 100).lsn() };
    assert!(matches!(Life::begin(&files.fork(), options(), next_file), Err(OpenError::Damaged { .. })));
    assert!(matches!(Life::begin(&MemoryFiles::new(), options(), beyond), Err(OpenError::Missing { .. })));
    // A lost write: the old end mark and zeros again, in the middle.
    let at = starts[starts.len() - 3];
    let name = format!("db-{}.log", at.file());
    let mut image = files.content(&name).unwrap();
    image[at.offset() as usize..][..512].fill(0);
    image[at.offset() as usize..][..5].copy_from_slice(b"-qMa4");
    let lost = files.fork();
    lost.put(&name, &image);
    let error = Life::begin(&lost, options(), KnownPositions::default()).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { evidence: Evidence::CommitHint { .. }, .. }), "{error}");
}

#[test]
fn a_file_is_begun_only_after_the_one_before_was_flushed() {
    let (files, _, starts) = confirmed();
    let at = *starts.last().unwrap();
    files.flip(&format!("db-{}.log", at.file()), at.offset() as usize + 130, 1);
    let torn = Life::begin(&files.fork(), options(), KnownPositions::default()).unwrap();
    assert_eq!(torn.recovery.end, at, "nothing tells it from a torn tail");
    files.put(&format!("db-{}.log", at.file() + 1), b"not a batch and not untouched");
    let error = Life::begin(&files.fork(), options(), KnownPositions::default()).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { evidence: Evidence::LaterFile(4), .. }), "{error}");
}

#[test]
fn a_damaged_length_hides_nothing() {
    let (files, _, starts) = confirmed();
    let at = starts[starts.len() - 4];
    for length in [0u32, 1, 399, 2000, 5000, 7000, i32::MAX as u32, u32::MAX] {
        let files = files.fork();
        let name = format!("db-{}.log", at.file());
        let mut image = files.content(&name).unwrap();
        image[at.offset() as usize + 16..][..4].copy_from_slice(&length.to_be_bytes());
        files.put(&name, &image);
        let error = Life::begin(&files, options(), KnownPositions::default()).err().unwrap();
        assert!(matches!(error, OpenError::Damaged { at: found, .. } if found == at.location()), "{error}");
    }
}

#[test]
fn damage_in_older_files_is_found_when_they_are_read_and_all_at_once_by_verify() {
    let (files, memory, starts) = confirmed();
    let damaged = [starts[2], *starts.iter().find(|start| start.file() == 2).unwrap()];
    for at in damaged {
        files.flip(&format!("db-{}.log", at.file()), at.offset() as usize + 130, 1);
    }
    let life = Life::begin(&files, options(), KnownPositions::default()).unwrap();
    assert!(walk(&life.journal).unwrap_err().contains(&format!("damaged at {}", damaged[0])));
    let lost = memory.records.iter().find(|record| record.appended.at.lsn() > damaged[0]).unwrap();
    let read = life.journal.reader().read(lost.appended.at, lost.appended.size);
    let at_the_batch =
        |error: &ReadError| matches!(error, ReadError::Damaged { at, .. } if *at == damaged[0].location());
    assert!(read.as_ref().is_err_and(at_the_batch), "{read:?}");
    // In whatever order they are read: the batches around it are served, and its records are not.
    let batch_end = starts.iter().find(|start| **start > damaged[0]).unwrap();
    let damaged_batch = damaged[0]..*batch_end;
    let mut window = life.journal.reader().window();
    for record in memory.records.iter().chain(memory.records.iter().rev()) {
        let (at, size) = (record.appended.at, record.appended.size);
        if at.file == damaged[0].file() {
            let read = window.read(at, size);
            assert_eq!(read.is_err(), damaged_batch.contains(&at.lsn()), "{at}: {read:?}");
            assert!(read.is_err() || read.unwrap() == record.payload);
        }
    }
    let report = verify(&(Arc::new(files) as Arc<dyn Files>), 0, KnownPositions::default()).unwrap();
    let found: Vec<_> = report
        .findings
        .iter()
        .map(|finding| match finding {
            Finding::Damage { at, until, .. } => (at.lsn(), until.unwrap().lsn()),
            other => panic!("{other:?}"),
        })
        .collect();
    let behind = |at: &Lsn| starts[starts.iter().position(|start| start == at).unwrap() + 1];
    assert_eq!(found, damaged.iter().map(|at| (*at, behind(at))).collect::<Vec<_>>());
    assert!(!report.is_sound());
    assert_eq!(report.files.iter().map(|file| file.batches).sum::<u64>() as usize, starts.len() - 2);
    assert_eq!(report.end, memory.confirmed_end);
}

#[test]
fn what_is_lost_at_the_end_of_an_older_file_is_noticed() {
    let (files, _, starts) = confirmed();
    let last_of_first = *starts.iter().rfind(|start| start.file() == 1).unwrap();
    let mut image = files.content("db-1.log").unwrap();
    image[last_of_first.offset() as usize..].fill(0);
    let zeroed = files.fork();
    zeroed.put("db-1.log", &image);
    let life = Life::begin(&zeroed, options(), KnownPositions::default()).unwrap();
    assert!(walk(&life.journal).unwrap_err().contains("end mark"));
    image[last_of_first.offset() as usize..][..5].copy_from_slice(b"-qMa4");
    let marked = files.fork();
    marked.put("db-1.log", &image);
    let life = Life::begin(&marked, options(), KnownPositions::default()).unwrap();
    assert!(walk(&life.journal).unwrap_err().contains("chain"));
    for files in [zeroed, marked] {
        let report = verify(&(Arc::new(files) as Arc<dyn Files>), 0, KnownPositions::default()).unwrap();
        assert!(!report.is_sound());
    }
}

#[test]
fn garbage_never_panics_or_loops() {
    let (good, memory, _) = confirmed();
    let mut random = Random::new(77);
    let mut opened = 0;
    for _ in 0..400 {
        let files = good.fork();
        for name in ["db-1.log", "db-2.log", "db-3.log", "db-4.log"] {
            let Some(mut image) = files.content(name).filter(|_| !random.chance(8)) else { continue };
            for _ in 0..random.below(4) {
                let at = random.below(image.len() as u64 + 1) as usize;
                let length = (random.below(600) as usize).min(image.len() - at);
                match random.below(6) {
                    0 => image[at..at + length].fill(0),
                    1 => image.truncate(at),
                    2 => image[at..at + length].copy_from_slice(&random.bytes(length)),
                    3 => image.extend(random.bytes(length)),
                    4 => {
                        let source = random.below((image.len() - length) as u64 + 1) as usize;
                        image.copy_within(source..source + length, at);
                    }
                    _ => {
                        let mut fake = MAGIC.to_vec();
                        fake.extend_from_slice(
                            &(random.below(1 << 33) as u32 >> random.below(32)).to_be_bytes(),
                        );
                        fake.extend_from_slice(&[0; 8]);
                        fake.extend_from_slice(&[(random.next_u64() & 0xff) as u8; 5]);
                        let length = fake.len().min(image.len() - at);
                        image[at..at + length].copy_from_slice(&fake[..length]);
                    }
                }
            }
            files.put(name, &image);
        }
        let shared: Arc<dyn Files> = Arc::new(files.clone());
        let _ = verify(&shared, 0, KnownPositions::default()).unwrap();
        let Ok((journal, recovery)) = Journal::open(shared.clone(), options(), KnownPositions::default())
        else {
            continue;
        };
        opened += 1;
        let _ = walk(&journal);
        for record in &memory.records {
            let _ = journal.reader().read(record.appended.at, record.appended.size);
        }
        let report = verify(&shared, 0, KnownPositions::default()).unwrap();
        assert!(!report.findings.iter().any(|finding| matches!(finding, Finding::TornTail { .. })));
        drop(journal);
        let again = Life::begin(&files, options(), KnownPositions::default()).unwrap();
        assert_eq!(again.recovery.end, recovery.end, "what was opened once opens the same again");
    }
    assert!(opened > 50, "only {opened} could be opened");
}
