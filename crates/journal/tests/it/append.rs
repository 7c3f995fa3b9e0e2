use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{BufMut, Bytes};
use kahawai_env::{DiskFiles, Files, PAGE_BYTES};
use kahawai_journal::{
    AppendError, BATCH_OVERHEAD_BYTES, EpochError, Journal, JournalOptions, KnownPositions, ReadError,
    RetireError, Trace,
};
use kahawai_testkit::{ManualClock, MemoryFiles, Random};
use kahawai_types::{Epoch, Location, Lsn};

use crate::model::{Life, Memory, commands, new_epoch, payload, small_files, walk};

fn begin(options: JournalOptions) -> (Life, Memory) {
    let life = Life::begin(&MemoryFiles::new(), options, KnownPositions::default()).unwrap();
    (life, Memory::default())
}

#[test]
fn a_new_journal_is_empty_and_takes_nothing_before_an_epoch() {
    let (mut life, mut memory) = begin(small_files(4096));
    assert_eq!((life.recovery.end, life.recovery.files.len()), (Lsn::ZERO, 0));
    assert_eq!(life.appender.lock().end(), Lsn::ZERO);
    assert!(matches!(life.append(&mut memory, Bytes::from_static(b"\x01x")), Err(AppendError::NoEpoch)));
    assert!(life.writer.try_next(Lsn::ZERO).unwrap().is_none());
    assert!(matches!(life.journal.begin_epoch(new_epoch(Epoch(0))), Err(EpochError::NotNewer { .. })));
    let marker = life.reign();
    assert_eq!(marker.at, Location::new(1, BATCH_OVERHEAD_BYTES as u32));
    assert!(matches!(life.journal.begin_epoch(new_epoch(Epoch(1))), Err(EpochError::NotNewer { .. })));
    let batch = life.writer.try_next(Lsn::ZERO).unwrap().unwrap();
    assert_eq!(batch.bytes().len() as u64, batch.end.0 - batch.start.0);
    let in_batch = batch.marker.clone().unwrap();
    assert_eq!((in_batch.start, in_batch.previous), (Lsn(1 << 32), Epoch(0)));
    assert_eq!(life.writer.write(batch).unwrap(), marker.end);
    let batches = walk(&life.journal).unwrap();
    let traces: Vec<_> = batches[0].records().map(|record| record.trace().unwrap()).collect();
    assert!(matches!(&traces[..], [Trace::Stamp(_), Trace::EpochMarker(marker)] if *marker == in_batch));
}

#[test]
fn records_that_do_not_fit_begin_the_next_batch_or_file() {
    let options = JournalOptions { batch_bytes_max: 1000, ..small_files(4096) };
    let (mut life, mut memory) = begin(options);
    life.reign();
    for _ in 0..20 {
        life.append(&mut memory, vec![1; 300].into()).unwrap();
    }
    life.write_all(&mut memory);
    let batches = walk(&life.journal).unwrap();
    assert!(batches.iter().all(|batch| batch.bytes.len() <= 1000 && batch.end().offset() + 5 <= 4096));
    assert!(batches.last().unwrap().lsn.file() > 1);
    assert!(batches.windows(2).all(|pair| pair[1].lsn == pair[0].end() || pair[1].lsn.offset() == 0));
    assert_eq!(commands(&batches).len(), 20);
    // Larger than everything: stands alone in a file of its own.
    life.append(&mut memory, vec![1; 10_000].into()).unwrap();
    life.append(&mut memory, vec![1; 10].into()).unwrap();
    life.write_all(&mut memory);
    let end = memory.records.iter().rev().take(2).map(|record| record.appended.at).collect::<Vec<_>>();
    assert_eq!(end[1].offset as usize, BATCH_OVERHEAD_BYTES);
    assert_eq!((end[0].file, end[0].offset as usize), (end[1].file + 1, BATCH_OVERHEAD_BYTES));
}

#[test]
fn a_group_lies_in_one_batch_whatever_its_size() {
    let (mut life, mut memory) = begin(JournalOptions { batch_bytes_max: 512, ..small_files(2048) });
    life.reign();
    life.append(&mut memory, vec![1; 100].into()).unwrap();
    life.append_together(&mut memory, vec![Bytes::from(vec![1; 90]); 40]).unwrap();
    life.append_together(&mut memory, vec![]).unwrap();
    life.append(&mut memory, vec![1; 100].into()).unwrap();
    life.write_all(&mut memory);
    let batches = walk(&life.journal).unwrap();
    assert_eq!(batches.iter().map(|batch| batch.records().count()).max(), Some(41));
    assert_eq!(commands(&batches).len(), 42);
    for (record, remembered) in commands(&batches).iter().zip(&memory.records) {
        assert_eq!((record.at, record.size), (remembered.appended.at, remembered.appended.size));
    }
}

#[test]
fn what_cannot_be_taken_leaves_no_trace() {
    let (mut life, mut memory) = begin(small_files(4096));
    life.reign();
    life.append(&mut memory, Bytes::from_static(b"\x01one")).unwrap();
    let before = life.appender.lock().end();
    assert!(matches!(life.appender.lock().append(|_| {}), Err(AppendError::Empty)));
    let group =
        life.appender.lock().append_together(3, |index, out| out.put_bytes(1, usize::from(index < 2)));
    assert!(matches!(group, Err(AppendError::Empty)));
    assert_eq!(life.appender.lock().end(), before);
    life.append(&mut memory, Bytes::from_static(b"\x01two")).unwrap();
    life.write_all(&mut memory);
    assert_eq!(commands(&walk(&life.journal).unwrap()).len(), 2);
    life.journal.close();
    assert!(matches!(life.append(&mut memory, Bytes::from_static(b"\x01x")), Err(AppendError::Closed)));
    assert!(life.writer.next_batch(Lsn::ZERO).unwrap().is_none());
}

#[test]
fn a_panic_in_an_encoder_fails_the_journal() {
    let (mut life, mut memory) = begin(small_files(4096));
    life.reign();
    life.append(&mut memory, Bytes::from_static(b"\x01one")).unwrap();
    let appender = life.appender.clone();
    let panic = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                appender
                    .lock()
                    .append(|out| {
                        out.clear();
                        panic!("on purpose")
                    })
                    .map(drop)
            })
            .join()
    });
    assert!(panic.is_err());
    assert!(matches!(life.append(&mut memory, Bytes::from_static(b"\x01two")), Err(AppendError::Failed(_))));
    assert!(life.writer.try_next(Lsn::ZERO).is_err());
}

#[test]
fn readers_get_records_from_memory_and_from_files_and_nothing_else() {
    let (mut life, mut memory) = begin(JournalOptions { recent_bytes_max: 3000, ..small_files(4096) });
    life.reign();
    let mut random = Random::new(1);
    for _ in 0..50 {
        life.append(&mut memory, payload(&mut random, 700)).unwrap();
        let unflushed = memory.records.last().unwrap().appended;
        let error = life.journal.reader().read(unflushed.at, unflushed.size).unwrap_err();
        assert!(matches!(error, ReadError::BeyondEnd { .. }), "{error}");
        life.write_all(&mut memory);
    }
    let reader = life.journal.reader();
    let mut window = reader.window();
    for record in &memory.records {
        let at = record.appended.at;
        assert_eq!(reader.read(at, record.appended.size).unwrap(), record.payload);
        assert_eq!(window.read(at, record.appended.size).unwrap(), record.payload);
        for (offset, size) in [(1, 0), (0, 1), (0, -1)] {
            let wrong = Location::new(at.file, at.offset + offset);
            assert!(reader.read(wrong, record.appended.size.saturating_add_signed(size)).is_err());
            assert!(window.read(wrong, record.appended.size.saturating_add_signed(size)).is_err());
        }
    }
    for (at, size) in
        [(Location::new(0, 0), 10), (Location::new(1, 0), 0), (Location::new(1, u32::MAX), u32::MAX)]
    {
        assert!(reader.read(at, size).is_err());
        assert!(window.read(at, size).is_err());
    }
    let stats = life.journal.stats();
    assert!(stats.reads_recent > 0 && stats.reads_file > 0);
    assert_eq!((stats.records, stats.batches, stats.flushes), (51, stats.flushes, stats.batches));
    // Any batch is a place to begin at.
    let batches = walk(&life.journal).unwrap();
    for (index, batch) in batches.iter().enumerate() {
        let from: Vec<_> = reader.batches(batch.lsn).map(|batch| batch.unwrap().bytes).collect();
        assert!(from.iter().eq(batches[index..].iter().map(|batch| &batch.bytes)));
    }
}

#[test]
fn a_walk_goes_on_when_more_is_durable() {
    let (mut life, mut memory) = begin(small_files(1024));
    let mut batches = life.journal.reader().batches(Lsn::ZERO);
    assert!(batches.next().is_none());
    life.reign();
    let mut seen = 0;
    for _ in 0..30 {
        life.append(&mut memory, vec![1; 200].into()).unwrap();
        life.write_all(&mut memory);
        seen += batches
            .by_ref()
            .filter(|batch| batch.as_ref().unwrap().bytes.len() > BATCH_OVERHEAD_BYTES)
            .count();
        assert_eq!(batches.position(), memory.confirmed_end);
    }
    assert!(seen >= 30);
    assert_eq!(walk(&life.journal).unwrap().len(), seen);
}

#[test]
fn only_files_before_the_end_are_retired_and_readers_finish_undisturbed() {
    let (mut life, mut memory) = begin(small_files(1024));
    life.reign();
    for _ in 0..20 {
        life.append(&mut memory, vec![1; 200].into()).unwrap();
        life.write_all(&mut memory);
    }
    let newest = memory.confirmed_end.file();
    let mut inside = life.journal.reader().batches(Lsn::ZERO);
    inside.next().unwrap().unwrap();
    for file in [newest, newest + 1] {
        assert!(matches!(life.journal.retire([1, file]), Err(RetireError::InUse { .. })));
    }
    life.journal.retire([]).unwrap();
    life.journal.retire([1]).unwrap();
    // What is not there is no matter.
    life.journal.retire([2, 1]).unwrap();
    let rest = inside.map(|batch| batch.unwrap().lsn.file()).collect::<Vec<_>>();
    assert!(rest.contains(&1) && !rest.contains(&2) && rest.contains(&newest));
    assert!(walk(&life.journal).unwrap().iter().all(|batch| batch.lsn.file() > 2));
    assert!(life.journal.files().iter().all(|file| file.id > 2));
    let files = life.files.clone();
    life.close(&mut memory);
    let life = Life::begin(&files.crash(3), small_files(1024), KnownPositions::default()).unwrap();
    assert_eq!(life.recovery.files[0].id, 3);
    assert!(life.recovery.gaps.is_empty());
    assert_eq!(life.recovery.end, memory.confirmed_end);
}

#[test]
fn the_next_file_is_made_ahead_with_zeros() {
    let (mut life, mut memory) = begin(small_files(5 << 20));
    assert!(life.preparer.run_once().unwrap());
    assert!(!life.preparer.run_once().unwrap());
    let file = life.files.content("db-1.log").unwrap();
    assert!(file.len() == 5 << 20 && file.starts_with(b"-qMa4") && file[5..].iter().all(|&b| b == 0));
    life.reign();
    life.write_all(&mut memory);
    assert!(life.preparer.run_once().unwrap());
    assert!(life.files.content("db-2.log").is_some() && life.files.content("db-next.tmp").is_none());
    let stats = life.journal.stats();
    assert_eq!((stats.files_prepared, stats.files_made_in_a_hurry), (2, 0));
    let files = life.files.clone();
    life.close(&mut memory);
    let mut life = Life::begin(&files.crash(1), small_files(1 << 20), KnownPositions::default()).unwrap();
    assert!(life.recovery.cuts.is_empty());
    assert!(life.preparer.run_once().unwrap(), "an untouched file may be sparse");
    life.reign();
    for _ in 0..4 {
        life.append(&mut memory, vec![1; 600 << 10].into()).unwrap();
        life.write_all(&mut memory);
    }
    assert_eq!(memory.confirmed_end.file(), 4);
    assert_eq!(life.journal.stats().files_made_in_a_hurry, 2);
}

#[test]
fn a_full_disk_stops_the_preparer_but_fails_only_the_writer() {
    let (mut life, mut memory) = begin(small_files(1 << 20));
    life.files.limit_bytes(Some(200_000));
    assert!(life.preparer.run_once().is_err());
    assert_eq!(life.files.content("db-next.tmp"), None);
    assert!(!life.preparer.run_once().unwrap(), "not again and again");
    life.reign();
    life.write_all(&mut memory);
    life.append(&mut memory, vec![1; 300_000].into()).unwrap();
    assert!(life.write(&mut memory).is_err());
    assert!(life.write(&mut memory).is_err());
    let files = life.files.crash(4);
    let life = Life::begin(&files, small_files(1 << 20), KnownPositions::default()).unwrap();
    memory.check(&life);
}

#[test]
fn threads_append_write_prepare_and_read_at_once_on_a_real_disk() {
    const THREADS: usize = 4;
    const RECORDS: usize = 400;
    let directory = tempfile::tempdir().unwrap();
    let files = Arc::new(DiskFiles::open(directory.path()).unwrap());
    let options = JournalOptions { recent_bytes_max: 64 << 10, ..small_files(256 << 10) };
    let (journal, _) = Journal::open(files.clone(), options.clone(), KnownPositions::default()).unwrap();
    journal.begin_epoch(new_epoch(Epoch(1))).unwrap();
    let (mut writer, mut preparer) = (journal.take_writer().unwrap(), journal.take_preparer().unwrap());
    let done = AtomicBool::new(false);
    let all = std::thread::scope(|scope| {
        scope.spawn(|| preparer.run());
        scope.spawn(|| {
            while let Some(batch) = writer.next_batch(Lsn::ZERO).unwrap() {
                writer.write(batch).unwrap();
            }
        });
        let follower = scope.spawn(|| {
            let mut batches = journal.reader().batches(Lsn::ZERO);
            let mut seen = 0;
            loop {
                let finished = done.load(Ordering::SeqCst);
                seen += batches.by_ref().map(|batch| commands(&[batch.unwrap()]).len()).sum::<usize>();
                if finished {
                    return seen;
                }
                std::thread::yield_now();
            }
        });
        let appenders: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (appender, reader) = (journal.appender(), journal.reader());
                scope.spawn(move || {
                    let mut random = Random::new(thread as u64);
                    let mut mine = Vec::new();
                    for _ in 0..RECORDS {
                        let payload = payload(&mut random, 2000);
                        let appended = appender.lock().append(|out| out.put_slice(&payload)).unwrap();
                        if random.chance(4) {
                            while reader.durable_end() < appended.end {
                                std::thread::yield_now();
                            }
                            assert_eq!(reader.read(appended.at, appended.size).unwrap(), payload);
                        }
                        mine.push((appended, payload));
                    }
                    mine
                })
            })
            .collect();
        let all: Vec<_> = appenders.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        journal.close();
        while journal.reader().durable_end() < journal.appender().lock().end() {
            std::thread::yield_now();
        }
        done.store(true, Ordering::SeqCst);
        assert_eq!(follower.join().unwrap(), THREADS * RECORDS);
        all
    });
    let stats = journal.stats();
    assert_eq!(stats.records as usize, THREADS * RECORDS + 1);
    assert_eq!(stats.flush_us_buckets.iter().sum::<u64>(), stats.flushes);
    let reader = journal.reader();
    let mut window = reader.window();
    for (appended, payload) in &all {
        assert_eq!(window.read(appended.at, appended.size).unwrap(), payload);
    }
    drop((journal, writer));
    let (journal, recovery) = Journal::open(files, options, KnownPositions::default()).unwrap();
    assert!(recovery.cuts.is_empty());
    assert_eq!(commands(&walk(&journal).unwrap()).len(), all.len());
}

/// Past the cache or through it, in turns, from any place in a page to any other: the files hold the same.
#[test]
fn what_goes_past_the_cache_is_what_was_appended() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk: Arc<dyn Files> = Arc::new(DiskFiles::open(directory.path().join("db")).unwrap());
    let memory: Arc<dyn Files> = Arc::new(MemoryFiles::new());
    for files in [memory, disk] {
        let clock = Arc::new(ManualClock::default());
        let options = JournalOptions { recent_bytes_max: 0, clock: clock.clone(), ..small_files(64 << 10) };
        let mut written: Vec<(Location, Bytes)> = Vec::new();
        for life in 1..4 {
            let (journal, recovery) =
                Journal::open(Arc::clone(&files), options.clone(), KnownPositions::default()).unwrap();
            let mut writer = journal.take_writer().unwrap();
            let mut preparer = journal.take_preparer().unwrap();
            let mut random = Random::new(life);
            journal.begin_epoch(new_epoch(recovery.last_epoch.next())).unwrap();
            let batch = writer.try_next(Lsn::ZERO).unwrap().unwrap();
            writer.write(batch).unwrap();
            for _ in 0..300 {
                preparer.run_once().unwrap();
                let begin = writer.written().offset() as usize + BATCH_OVERHEAD_BYTES + 5;
                let place =
                    [0, 1, PAGE_BYTES - 1, PAGE_BYTES - 3, PAGE_BYTES - 5, random.below(4096) as usize]
                        [random.below(6) as usize];
                let pages = begin + PAGE_BYTES * random.below(3) as usize;
                let bytes = 1 + (pages + 1).next_multiple_of(PAGE_BYTES) + place - begin - 1;
                let payload: Bytes = vec![1 + (written.len() % 250) as u8; bytes].into();
                let at = journal.appender().lock().append(|out| out.put_slice(&payload)).unwrap().at;
                let batch = writer.try_next(Lsn::ZERO).unwrap().unwrap();
                writer.write(batch).unwrap();
                written.push((at, payload));
                if random.chance(12) {
                    let (at, payload) = &written[random.below(written.len() as u64) as usize];
                    let size = payload.len() as u32 + 5;
                    assert_eq!(journal.reader().read(*at, size).unwrap(), payload, "at {at}");
                }
                clock.advance_ms(random.below(4000) as u32);
            }
            let found = commands(&walk(&journal).unwrap());
            let found: Vec<_> = found.into_iter().map(|record| (record.at, record.payload)).collect();
            assert!(found == written, "life {life}");
            journal.close();
            assert!(writer.next_batch(Lsn::ZERO).unwrap().is_none());
        }
    }
}
