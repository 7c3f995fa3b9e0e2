//! Damage in older files is found, and a sound copy takes the place of one.

use std::sync::Arc;

use kahawai_env::OpenMode;
use kahawai_journal::{
    Damage, JournalOptions, KnownPositions, ReadError, SUMS_DIRECTORY, Scrubbed, Scrubber, SealedFile,
};
use kahawai_testkit::ManualClock;
use kahawai_types::Lsn;

use crate::history::{directory, options, written};
use crate::model::{Life, walk};

/// Whole content of a sealed file, and what it is.
fn sound(life: &Life, id: u32) -> (Vec<u8>, SealedFile) {
    let sealed = life.journal.reader().sealed_file(id).unwrap().unwrap();
    let mut content = life.files.content(&format!("db-{id}.log")).unwrap();
    content.truncate(sealed.length as usize);
    (content, sealed)
}

fn damage(scrubber: &mut Scrubber) -> Damage {
    match scrubber.next() {
        Some(Scrubbed::Damage(damage)) => damage,
        other => panic!("{other:?}"),
    }
}

fn repair(life: &Life, damage: &Damage, content: &[u8], sealed: &SealedFile) {
    let place = damage.place.unwrap();
    assert_eq!(place.sealed(sealed.length, sealed.first_epoch), *sealed, "nothing else is taken for it");
    let files = directory(&life.files);
    files.create_directory("replication/repair").unwrap();
    let path = format!("replication/repair/db-{}.log", damage.file);
    files.open(&path, OpenMode::CreateNew).unwrap().write_at(content, 0).unwrap();
    kahawai_journal::verify_file(&files, &path, sealed).unwrap();
    assert!(life.journal.replace_file(damage.file, &path).unwrap());
}

#[test]
fn damage_is_found_and_a_sound_copy_takes_its_place() {
    for seed in 0..10 {
        let (life, _) = written(seed, 4);
        let batches = walk(&life.journal).unwrap();
        let mut scrubber = life.journal.scrubber(1 << 30);
        // With what was kept of the files, and with what their neighbours say.
        let reader = life.journal.reader();
        reader.sealed_files(reader.durable_end()).unwrap();
        let wanted = [2, 4].map(|id| sound(&life, id));
        for (content, sealed) in &wanted {
            life.files.flip(&format!("db-{}.log", sealed.id), content.len() / 2, 1);
        }
        directory(&life.files).remove(&format!("{SUMS_DIRECTORY}/db-4.sum")).unwrap();
        let mut found = [damage(&mut scrubber), damage(&mut scrubber)];
        found.sort_by_key(|damage| damage.file);
        assert_eq!(found.each_ref().map(|damage| damage.file), [2, 4], "seed {seed}");
        let (damaged, replaced) = life.journal.damaged();
        assert_eq!((damaged.len(), replaced), (2, 0));
        assert!(walk(&life.journal).is_err());
        for (damage, (content, sealed)) in found.iter().zip(&wanted) {
            repair(&life, damage, content, sealed);
        }
        assert_eq!(life.journal.damaged(), (Vec::new(), 2));
        let again = walk(&life.journal).unwrap();
        assert!(again.iter().map(|batch| &batch.bytes).eq(batches.iter().map(|batch| &batch.bytes)));
        // Also after a power loss.
        let later = Life::begin(&life.files.crash(seed), options(), KnownPositions::default()).unwrap();
        assert_eq!(walk(&later.journal).unwrap().len(), batches.len());
        life.journal.close();
        assert_eq!(scrubber.next(), None, "the journal is closed");
    }
}

#[test]
fn what_a_reader_meets_is_looked_at_at_once() {
    let (life, memory) = written(3, 3);
    let record = memory.records.iter().find(|record| record.appended.at.file == 2).unwrap();
    let (content, sealed) = sound(&life, 2);
    life.files.flip("db-2.log", record.appended.at.offset as usize + 20, 4);
    // What was written lately is read from memory.
    let life = Life::begin(&life.files.kill(), options(), KnownPositions::default()).unwrap();
    // It looks nowhere by itself.
    let mut scrubber = life.journal.scrubber(0);
    let mut window = life.journal.reader().window();
    for _ in 0..3 {
        let read = window.read(record.appended.at, record.appended.size);
        assert!(matches!(read, Err(ReadError::Damaged { .. })), "{read:?}");
    }
    let damage = damage(&mut scrubber);
    assert_eq!(damage.file, 2);
    repair(&life, &damage, &content, &sealed);
    let mut window = life.journal.reader().window();
    assert_eq!(window.read(record.appended.at, record.appended.size).unwrap(), record.payload);
}

#[test]
fn a_read_that_fails_once_is_no_damage() {
    let (life, memory) = written(3, 3);
    let record = memory.records.iter().find(|record| record.appended.at.file == 2).unwrap().clone();
    let life = Life::begin(&life.files.kill(), options(), KnownPositions::default()).unwrap();
    let read = |life: &Life| life.journal.reader().window().read(record.appended.at, record.appended.size);
    // It looks nowhere by itself.
    let mut scrubber = life.journal.scrubber(0);
    life.files.fail_read_after(0);
    assert!(matches!(read(&life), Err(ReadError::Io { .. })));
    // Fails for it, too, when it looks the first time.
    life.files.fail_read_after(1);
    assert_eq!(scrubber.next(), Some(Scrubbed::Sound(2)));
    assert_eq!(life.journal.damaged(), (Vec::new(), 0));
    assert_eq!(read(&life).unwrap(), record.payload);
    // When it looks by itself, there is nothing to be said at all.
    life.files.fail_read_after(1);
    let mut scrubber = life.journal.scrubber(1 << 30);
    life.files.flip("db-3.log", 100, 1);
    assert_eq!(damage(&mut scrubber).file, 3);
    life.journal.close();
    assert_eq!(scrubber.next(), None);
}

#[test]
fn who_could_not_read_is_told_once_it_can_be_read() {
    let (life, memory) = written(3, 3);
    let newest = life.journal.reader().durable_end().file();
    for file in [2, newest] {
        let record = memory.records.iter().find(|record| record.appended.at.file == file).unwrap();
        let at = record.appended.at.offset as usize + 20;
        let clock = Arc::new(ManualClock::default());
        let options = JournalOptions { clock: clock.clone(), ..options() };
        let life = Life::begin(&life.files.kill().fork(), options, KnownPositions::default()).unwrap();
        let name = format!("db-{file}.log");
        life.files.flip(&name, at, 4);
        let mut window = life.journal.reader().window();
        let mut read = || window.read(record.appended.at, record.appended.size);
        let mut scrubber = life.journal.scrubber(0);
        assert!(read().is_err());
        assert_eq!(damage(&mut scrubber).file, file);
        assert_eq!(life.journal.damaged().0.len(), 1);
        // As when a page in memory was wrong, and not the disk.
        life.files.flip(&name, at, 4);
        life.journal.suspect(file);
        clock.advance_ms(60_000);
        assert_eq!(scrubber.next(), Some(Scrubbed::Sound(file)));
        assert_eq!(read().unwrap(), record.payload, "what was refused before is read again");
        assert_eq!(life.journal.damaged(), (Vec::new(), 0));
    }
}

#[test]
fn a_file_that_was_deleted_meanwhile_stays_deleted() {
    let (life, _) = written(5, 3);
    let (content, sealed) = sound(&life, 2);
    let files = directory(&life.files);
    files.open("copy", OpenMode::CreateNew).unwrap().write_at(&content, 0).unwrap();
    life.journal.retire([2]).unwrap();
    assert!(!life.journal.replace_file(sealed.id, "copy").unwrap());
    assert!(!files.exists("db-2.log").unwrap() && !files.exists("copy").unwrap());
    // Neither is the file that is written to.
    let newest = life.journal.reader().durable_end().file();
    files.open("copy", OpenMode::CreateNew).unwrap().write_at(&content, 0).unwrap();
    assert!(!life.journal.replace_file(newest, "copy").unwrap());
    assert_eq!(life.journal.reader().sealed_file(newest).unwrap(), None);
    assert!(walk(&life.journal).unwrap().iter().all(|batch| batch.lsn >= Lsn::ZERO));
}
