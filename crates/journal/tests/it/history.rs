//! What a journal knows of its past, and how whole files of it travel.

use std::sync::Arc;

use kahawai_env::{Files, OpenMode};
use kahawai_journal::{
    BatchView, Chain, EPOCHS_FILE, EpochStart, INCOMING_DIRECTORY, Journal, JournalOptions, KnownPositions,
    ReadError, SUMS_DIRECTORY, SealedFile, Trace, VerifyError, data_file_name, install, record_epochs,
    sealed_files, verify_file,
};
use kahawai_testkit::{MemoryFiles, Random};
use kahawai_types::{Location, Lsn};

use crate::model::{Life, Memory, payload, small_files, walk};

pub fn options() -> JournalOptions {
    JournalOptions { preallocate: false, ..small_files(4096) }
}

pub fn directory(files: &MemoryFiles) -> Arc<dyn Files> {
    Arc::new(files.clone())
}

/// Several epochs over many small files.
pub fn written(seed: u64, epochs: usize) -> (Life, Memory) {
    let mut random = Random::new(seed);
    let mut memory = Memory::default();
    let mut life = Life::begin(&MemoryFiles::new(), options(), KnownPositions::default()).unwrap();
    for epoch in 0..epochs {
        if epoch > 0 {
            life = Life::begin(&life.files.kill(), options(), KnownPositions::default()).unwrap();
        }
        life.reign();
        for _ in 0..3 + random.below(15) {
            for _ in 0..=random.below(3) {
                life.append(&mut memory, payload(&mut random, 600)).unwrap();
            }
            life.write(&mut memory).unwrap();
        }
        life.write_all(&mut memory);
    }
    (life, memory)
}

/// A place, and the chain before it.
fn boundaries(batches: &[BatchView]) -> Vec<(Lsn, Chain)> {
    let mut all = Vec::new();
    for batch in batches {
        all.push((batch.lsn, batch.stamp.unwrap().prev_chain));
        all.push((batch.end(), batch.chain.unwrap()));
    }
    all
}

fn markers(batches: &[BatchView]) -> Vec<EpochStart> {
    let markers = batches.iter().flat_map(BatchView::records).filter_map(|record| match record.trace() {
        Some(Trace::EpochMarker(marker)) => {
            Some(EpochStart { epoch: marker.epoch, start: marker.start, chain_before: marker.chain_before })
        }
        _ => None,
    });
    markers.collect()
}

#[test]
fn the_chain_is_known_between_two_batches_and_nowhere_else() {
    for seed in 0..10 {
        let (life, _) = written(seed, 3);
        let batches = walk(&life.journal).unwrap();
        let reader = life.journal.reader();
        for (at, chain) in boundaries(&batches) {
            assert_eq!(reader.chain_at(at).unwrap(), Some(chain), "{at}");
        }
        for batch in &batches {
            for inside in [1, 27, batch.bytes.len() as u64 - 1] {
                assert_eq!(reader.chain_at(Lsn(batch.lsn.0 + inside)).unwrap(), None);
            }
        }
        let end = reader.durable_end();
        assert_eq!(reader.chain_at(Lsn::ZERO).unwrap(), Some(Chain::default()));
        assert_eq!(reader.chain_at(Lsn(end.0 + 1)).unwrap(), None);
        // The file is still written to: its end is not yet where the next one begins.
        assert_eq!(reader.chain_at(Location::new(end.file() + 1, 0).lsn()).unwrap(), None);
        assert!(end.file() > 3, "only {} files", end.file());
        life.journal.retire([1]).unwrap();
        life.journal.retire([2]).unwrap();
        for (at, chain) in boundaries(&batches).into_iter().filter(|(at, _)| at.file() < 4) {
            let known = if at.file() == 3 { Some(chain) } else { None };
            let known = if at <= Location::new(1, 0).lsn() { Some(Chain::default()) } else { known };
            assert_eq!(reader.chain_at(at).unwrap(), known, "{at}");
        }
    }
}

#[test]
fn the_epochs_are_those_of_the_markers_even_when_their_files_are_gone() {
    for seed in 0..20 {
        let (life, _) = written(seed, 4);
        let batches = walk(&life.journal).unwrap();
        let expected = markers(&batches);
        assert_eq!(expected.len(), 4);
        let reader = life.journal.reader();
        assert_eq!(reader.epochs().unwrap(), expected);
        // In any order; what an epoch began in may go while older files stay.
        let last = reader.durable_end().file();
        let mut random = Random::new(seed);
        let mut left: Vec<u32> = (1..last).collect();
        while !left.is_empty() {
            let file = left.remove(random.below(left.len() as u64) as usize);
            life.journal.retire([file]).unwrap();
            assert_eq!(reader.epochs().unwrap(), expected, "without {file}");
        }
        let again = Life::begin(&life.files.kill().fork(), options(), KnownPositions::default()).unwrap();
        assert_eq!(again.journal.reader().epochs().unwrap(), expected);
        // A list of another journal is not believed.
        let reader = again.journal.reader();
        let files_again = directory(&again.files);
        let mut wrong = expected.clone();
        wrong.push(EpochStart { epoch: kahawai_types::Epoch(99), ..expected[0] });
        record_epochs(&files_again, &wrong).unwrap();
        // Without one the oldest epoch begins where the journal does.
        let start = Location::new(last, 0).lsn();
        let first = batches.iter().find(|batch| batch.lsn == start).unwrap().stamp.unwrap();
        let weaker = EpochStart { epoch: first.epoch, start, chain_before: first.prev_chain };
        let mut without: Vec<_> = expected.iter().copied().filter(|epoch| epoch.start > start).collect();
        without.insert(0, weaker);
        assert_eq!(reader.epochs().unwrap(), without);
        again.files.flip(EPOCHS_FILE, 9, 1);
        assert_eq!(reader.epochs().unwrap(), without);
    }
}

fn raw(reader: &kahawai_journal::JournalReader, sealed: &SealedFile) -> Vec<u8> {
    let mut content = vec![0; sealed.length as usize];
    let mut at = 0;
    while at < content.len() {
        let step = (content.len() - at).min(700);
        let count = reader.read_raw(sealed.id, at as u64, &mut content[at..at + step]).unwrap();
        assert!(count > 0);
        at += count;
    }
    content
}

#[test]
fn sealed_files_are_known_by_what_they_hold_and_read_once() {
    let (life, memory) = written(7, 3);
    let reader = life.journal.reader();
    let end = reader.durable_end();
    let sealed = reader.sealed_files(end).unwrap();
    assert_eq!(sealed.iter().map(|file| file.id).collect::<Vec<_>>(), (1..end.file()).collect::<Vec<_>>());
    let batches = walk(&life.journal).unwrap();
    for file in &sealed {
        let first = batches.iter().find(|batch| batch.lsn.file() == file.id).unwrap();
        let last = batches.iter().rfind(|batch| batch.lsn.file() == file.id).unwrap();
        let stamp = first.stamp.unwrap();
        assert_eq!((file.first_epoch, file.start_chain), (stamp.epoch, stamp.prev_chain));
        assert_eq!((file.length, Some(file.end_chain)), (last.end().offset().into(), last.chain));
    }
    assert_eq!(reader.sealed_files(Location::new(3, 5).lsn()).unwrap(), sealed[..2]);
    assert_eq!(sealed_files(&directory(&life.files), end).unwrap(), sealed);
    // Only what is kept beside the journal is asked the second time, and only if it fits.
    let middle = sealed[1].length as usize / 2;
    life.files.flip("db-2.log", middle, 1);
    assert_eq!(reader.sealed_files(end).unwrap(), sealed);
    life.files.flip(&format!("{SUMS_DIRECTORY}/db-2.sum"), 5, 1);
    assert!(matches!(reader.sealed_files(end), Err(ReadError::Damaged { .. })));
    life.files.flip("db-2.log", middle, 1);
    assert_eq!(reader.sealed_files(end).unwrap(), sealed);
    let other = written(8, 3).0;
    other.journal.reader().sealed_files(other.journal.reader().durable_end()).unwrap();
    let wrong = other.files.content(&format!("{SUMS_DIRECTORY}/db-3.sum")).unwrap();
    life.files.put(&format!("{SUMS_DIRECTORY}/db-3.sum"), &wrong);
    assert_eq!(reader.sealed_files(end).unwrap(), sealed);
    // What is not durable is nobody's business.
    let mut bytes = [0; 64];
    assert_eq!(reader.read_raw(end.file(), end.offset().into(), &mut bytes).unwrap(), 0);
    assert!(matches!(reader.read_raw(end.file() + 1, 0, &mut bytes), Err(ReadError::BeyondEnd { .. })));
    drop(memory);
}

fn receive(files: &MemoryFiles, sealed: &SealedFile, content: &[u8]) -> String {
    let directory = directory(files);
    directory.create_directory(INCOMING_DIRECTORY).unwrap();
    let name = format!("{INCOMING_DIRECTORY}/{}", data_file_name(sealed.id));
    let file = directory.open(&name, OpenMode::Write).unwrap();
    file.set_len(0).unwrap();
    file.write_at(content, 0).unwrap();
    name
}

#[test]
fn a_received_file_is_what_was_announced_or_refused() {
    let (life, _) = written(9, 2);
    let reader = life.journal.reader();
    let sealed = reader.sealed_files(reader.durable_end()).unwrap();
    let content = raw(&reader, &sealed[1]);
    let files = MemoryFiles::new();
    let target = directory(&files);
    for at in (0..content.len()).step_by(7) {
        let mut changed = content.clone();
        changed[at] ^= 0x40;
        let name = receive(&files, &sealed[1], &changed);
        assert!(verify_file(&target, &name, &sealed[1]).is_err(), "a flip at {at}");
    }
    for length in [0, 30, content.len() - 1] {
        let name = receive(&files, &sealed[1], &content[..length]);
        assert!(matches!(verify_file(&target, &name, &sealed[1]), Err(VerifyError::Length { .. })));
    }
    let another = SealedFile { id: sealed[1].id, ..sealed[0] };
    let name = receive(&files, &another, &raw(&reader, &sealed[0]));
    assert!(verify_file(&target, &name, &another).is_err(), "a file under another name");
    let name = receive(&files, &sealed[1], &content);
    let forked = SealedFile { start_chain: Chain(1), ..sealed[1] };
    assert!(matches!(verify_file(&target, &name, &forked), Err(VerifyError::Damaged { .. })));
    let forked = SealedFile { end_chain: Chain(1), ..sealed[1] };
    assert!(matches!(verify_file(&target, &name, &forked), Err(VerifyError::Another { .. })));
    let mut filled = content.clone();
    filled.extend_from_slice(&[3; 1000]);
    let name = receive(&files, &sealed[1], &filled);
    verify_file(&target, &name, &sealed[1]).unwrap();
    assert_eq!(files.content(&name).unwrap(), [&content[..], b"-qMa4"].concat());
}

/// A replica with an older journal, of which some files are still right, gets the others. The machine stops at every
/// operation in turn; the next call finishes.
#[test]
fn installing_survives_a_crash_at_any_operation() {
    let (life, memory) = written(10, 3);
    let reader = life.journal.reader();
    life.journal.retire([2]).unwrap();
    let manifest = reader.sealed_files(reader.durable_end()).unwrap();
    let active = walk(&life.journal).unwrap();
    let chain = active.iter().rfind(|batch| batch.lsn.file() == manifest.last().unwrap().id).unwrap().chain;
    let mut finished = false;
    for stop in 0.. {
        let files = MemoryFiles::new();
        for name in ["db-1.log", "db-2.log", "db-4.log", "db-90.log"] {
            let from = if name == "db-90.log" { "db-3.log" } else { name };
            files.put(name, &life.files.content(from).unwrap_or_else(|| vec![1; 300]));
        }
        files.put("db-3.log", b"old");
        let target = directory(&files);
        record_epochs(&target, &[]).unwrap();
        for sealed in manifest.iter().filter(|sealed| ![1, 4].contains(&sealed.id)) {
            let name = receive(&files, sealed, &raw(&reader, sealed));
            verify_file(&target, &name, sealed).unwrap();
            target.sync_directory(INCOMING_DIRECTORY).unwrap();
        }
        files.die_after(stop);
        let first = install(&target, &manifest);
        let files = files.crash(stop);
        let target = directory(&files);
        let second = install(&target, &manifest).unwrap();
        if let Ok(first) = first {
            assert_eq!(first.removed, [2, 90]);
            assert!(first.installed.contains(&3) && !first.installed.contains(&1));
            assert!(second.installed.is_empty() && second.removed.is_empty(), "durable when it returned");
            finished = true;
        }
        let files = files.crash(!stop);
        let (journal, recovery) =
            Journal::open(directory(&files), options(), KnownPositions::default()).unwrap();
        assert_eq!(recovery.files.iter().map(|file| file.id).collect::<Vec<_>>(), {
            manifest.iter().map(|sealed| sealed.id).collect::<Vec<_>>()
        });
        assert_eq!(recovery.chain, chain);
        assert_eq!(journal.reader().sealed_files(recovery.end).unwrap(), manifest[..manifest.len() - 1]);
        if finished {
            break;
        }
    }
    assert!(finished);
    let missing = install(&directory(&MemoryFiles::new()), &manifest).unwrap_err();
    assert!(missing.to_string().contains("neither received"), "{missing}");
    drop(memory);
}

/// What is known of each file that was sealed, as it is kept.
fn sums(files: &MemoryFiles) -> Vec<(String, Vec<u8>)> {
    let directory = directory(files);
    let names = if directory.exists(SUMS_DIRECTORY).unwrap() {
        directory.list(SUMS_DIRECTORY).unwrap()
    } else {
        Vec::new()
    };
    let content = |name: String| {
        let sum = files.content(&format!("{SUMS_DIRECTORY}/{name}")).unwrap();
        (name, sum)
    };
    names.into_iter().map(content).collect()
}

#[test]
fn a_file_is_known_once_the_next_one_is_begun() {
    let mut files = 0;
    for seed in 0..10 {
        let (mut life, _) = written(seed, 3);
        life.preparer.run_once().unwrap();
        let kept = sums(&life.files);
        // Of this life; a file that it found begun has to be read.
        files += kept.len();
        let batches = walk(&life.journal).unwrap();
        let batches: Vec<_> = batches.iter().map(|batch| (batch.lsn, batch.bytes.clone())).collect();
        let mut replica = Life::begin(&MemoryFiles::new(), options(), KnownPositions::default()).unwrap();
        let mut random = Random::new(seed);
        let mut rest = &batches[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(1 + random.below(rest.len().min(9) as u64) as usize);
            replica.writer.copy(now).unwrap();
            rest = later;
        }
        replica.preparer.run_once().unwrap();
        let copied = sums(&replica.files);
        for life in [&mut life, &mut replica] {
            let target = directory(&life.files);
            for (name, _) in sums(&life.files) {
                target.remove(&format!("{SUMS_DIRECTORY}/{name}")).unwrap();
            }
            let reader = life.journal.reader();
            reader.sealed_files(reader.durable_end()).unwrap();
        }
        let found = sums(&life.files);
        assert!(kept.iter().all(|sum| found.contains(sum)), "seed {seed}: {kept:?}, found {found:?}");
        assert_eq!(copied, found, "seed {seed}");
        assert_eq!(copied, sums(&replica.files), "seed {seed}");
    }
    assert!(files > 10, "{files} files");
}
