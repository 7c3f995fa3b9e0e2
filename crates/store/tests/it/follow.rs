//! Replicas beside a primary: whatever happens to them, at the same position they hold the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kahawai_env::{Files, OpenMode, OsEntropy};
use kahawai_journal::{
    BatchView, CollectionRecord, INCOMING_DIRECTORY, JournalReader, NewEpoch, SealedFile, Writer, check_file,
    data_file_name, incoming_name, verify_file,
};
use kahawai_kahadb::command::{
    AddHeader, MessageKey, RemoveHeader, encode_add, encode_commit, encode_prepare, encode_remove,
};
use kahawai_message::storage::{AckBy, Entry, Storage, SubscriptionKey, Tier};
use kahawai_message::stored::{MessageAck, SubscriptionInfo, encode_ack, encode_message};
use kahawai_message::{
    BodyKind, Content, Destination, Message, MessageId, ProducerId, Text, TransactionId, Xid,
};
use kahawai_store::checkpoint::{INDEX_FILE, IndexStore, SUMS_FILE};
use kahawai_store::collect::candidates;
use kahawai_store::inspect::inspect;
use kahawai_store::replay::ReplayError;
use kahawai_store::{
    ClosedError, Follower, Identity, IndexBuilder, OpenError, OpenOptions, OpenedFollower, Promoted, Rebuilt,
    discard_staged, install, truncate,
};
use kahawai_testkit::{MemoryFiles, Random};
use kahawai_types::{Epoch, Lsn};
use proptest::prelude::*;

use crate::world::{World, content, options};

fn directory(files: &MemoryFiles) -> Arc<dyn Files> {
    Arc::new(files.clone())
}

/// A replica writes several batches to a flush, so a torn tail of its own may look like damage.
fn replica_options() -> OpenOptions {
    let mut options = options();
    options.journal.batches_behind_prove = false;
    options
}

struct Replica {
    files: MemoryFiles,
    follower: Follower,
    writer: Writer,
    identity: Identity,
    /// The highest commit position that it was told.
    commit: Lsn,
    /// What its journal told it when it was opened.
    hint: Lsn,
}

impl Replica {
    fn open(files: &MemoryFiles, known: Lsn) -> Result<Self, OpenError> {
        Self::open_with(files, known, &replica_options())
    }

    fn open_with(files: &MemoryFiles, known: Lsn, options: &OpenOptions) -> Result<Self, OpenError> {
        let OpenedFollower { follower, writer, identity, report, .. } =
            Follower::open(&directory(files), &OsEntropy, options, known)?;
        let hint = report.recovery.commit_hint;
        Ok(Self { files: files.clone(), follower, writer, identity, commit: known, hint })
    }

    fn new() -> Self {
        Self::open(&MemoryFiles::new(), Lsn::ZERO).unwrap()
    }

    fn durable(&self) -> Lsn {
        self.writer.written()
    }

    /// Copies some of what it lacks; `false` if its disk failed.
    fn copy(&mut self, sent: &[(Lsn, Bytes)], batches_max: usize) -> bool {
        let end = self.durable();
        let lacking: Vec<_> = sent.iter().filter(|(at, _)| *at >= end).take(batches_max).cloned().collect();
        lacking.is_empty() || self.writer.copy(&lacking).is_ok()
    }

    fn checkpoint(&mut self) -> bool {
        let checkpoint = self.follower.begin_checkpoint(false);
        let header = checkpoint.header;
        let written = self.follower.index().write(checkpoint).is_ok();
        if written {
            self.follower.finish_checkpoint(header);
        }
        written
    }

    fn retire(&mut self) -> bool {
        let files = self.follower.to_retire();
        if self.follower.journal().retire(files.iter().copied()).is_err() {
            return false;
        }
        files.into_iter().for_each(|file| self.follower.retired(file));
        true
    }

    /// Everything that the primary has.
    fn catch_up(&mut self, world: &World) {
        assert!(self.copy(&world.sent, usize::MAX));
        self.commit = world.confirmed;
        while self.follower.apply(world.confirmed, 7).unwrap_or_else(|error| panic!("{error}")) {}
    }

    /// One random piece of a replica's work; `false` = the disk has failed.
    fn step(&mut self, world: &World, random: &mut Random) -> bool {
        match random.below(10) {
            0..4 => self.copy(&world.sent, 1 + random.below(4) as usize),
            4..8 => {
                // What is committed here is committed on the primary, and durable on this replica.
                let all: Vec<Lsn> =
                    world.sent.iter().map(|(at, bytes)| Lsn(at.0 + bytes.len() as u64)).collect();
                let bound = world.confirmed.min(self.durable());
                let known: Vec<Lsn> =
                    all.into_iter().filter(|end| *end <= bound && *end >= self.commit).collect();
                if let Some(&commit) = known.get(random.below(known.len() as u64) as usize) {
                    self.commit = self.commit.max(commit);
                }
                let records = 1 + random.below(12) as usize;
                self.follower.apply(self.commit, records).unwrap_or_else(|error| panic!("{error}"));
                true
            }
            8 => self.checkpoint(),
            _ => self.retire(),
        }
    }

    fn check(&self, digests: &BTreeMap<Lsn, u64>) -> bool {
        let applied = self.follower.applied();
        assert!(applied <= self.commit, "applied {applied}, committed {}", self.commit);
        let Some(expected) = digests.get(&applied) else { return false };
        assert_eq!(self.follower.digest().unwrap(), *expected, "at {applied}");
        true
    }

    fn promote(self) -> (MemoryFiles, Promoted, Writer) {
        let Self { files, follower, writer, identity, .. } = self;
        let epoch = follower.reader().epochs().unwrap().last().map_or(Epoch(0), |last| last.epoch).next();
        let promoted = follower
            .promote(NewEpoch {
                cluster_id: identity.cluster_id,
                epoch,
                node_id: identity.node_id.clone(),
                store_id: identity.store_id,
                boot_id: identity.boot_id,
                revision: 0,
                unclean: false,
            })
            .unwrap();
        (files, promoted, writer)
    }
}

/// A primary and its replica, step by step in any order; the replica is restarted, loses power, loses its index. With a fault
/// its disk fails now and then.
fn beside(seed: u64, steps: u64, fault: impl Fn(&MemoryFiles, &mut Random)) -> (World, Replica) {
    let mut world = World::new(seed);
    let mut random = Random::new(!seed);
    let mut replica = Replica::new();
    let mut digests = BTreeMap::new();
    let mut compared = 0;
    fault(&replica.files, &mut random);
    for _ in 0..steps {
        assert!(world.step());
        digests.insert(world.store.applied(), world.store.digest().unwrap());
        let mut alive = true;
        for _ in 0..random.below(4) {
            alive = alive && replica.step(&world, &mut random);
            compared += u32::from(alive && replica.check(&digests));
        }
        if !alive || random.chance(40) {
            let files = match random.below(3) {
                0 => replica.files.kill(),
                _ => replica.files.crash(random.next_u64()),
            };
            if random.chance(5) {
                IndexStore::discard(&directory(&files)).unwrap();
            }
            // Opening may be interrupted as well.
            let files = if random.chance(3) {
                files.die_after(random.below(30));
                let _ = Replica::open(&files, Lsn::ZERO);
                files.crash(random.next_u64())
            } else {
                files
            };
            let told = replica.commit;
            let known = if random.chance(2) { told } else { Lsn::ZERO };
            drop(replica);
            replica = Replica::open(&files, known).unwrap_or_else(|error| panic!("{error}"));
            // What stamps say was committed may be more than it was told.
            assert!(replica.hint <= world.confirmed);
            replica.commit = told.max(replica.hint);
            assert!(replica.follower.applied() <= replica.commit, "the index is ahead");
            assert!(known == Lsn::ZERO || replica.follower.applied() >= told.min(replica.durable()));
            fault(&replica.files, &mut random);
        }
    }
    let files = replica.files.kill();
    drop(replica);
    let mut replica = Replica::open(&files, Lsn::ZERO).unwrap_or_else(|error| panic!("{error}"));
    assert!(world.settle());
    replica.catch_up(&world);
    assert_eq!(replica.follower.applied(), world.store.applied());
    assert_eq!(replica.follower.digest().unwrap(), world.store.digest().unwrap());
    assert!(compared > 0 || steps < 40, "never at the same position");
    (world, replica)
}

fn batches(reader: &JournalReader, from: Lsn) -> Vec<(Lsn, Bytes)> {
    let all: Vec<BatchView> = reader.batches(from).map(|batch| batch.unwrap()).collect();
    all.into_iter().map(|batch| (batch.lsn, batch.bytes)).collect()
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn a_replica_agrees_with_its_primary_wherever_it_is(seed: u64, steps in 40u64..250) {
        beside(seed, steps, |_, _| {});
    }

    #[test]
    fn a_replica_whose_disk_fails_catches_up(seed: u64, steps in 40u64..250) {
        beside(seed, steps, |files, random| match random.below(4) {
            0 => files.fail_write_after(random.below(200)),
            1 => files.fail_flush_after(random.below(60)),
            _ => files.die_after(random.below(300)),
        });
    }

    /// The primary dies; its replica, wherever it was, has all that both had, serves it, and lives on.
    #[test]
    fn a_promoted_replica_has_all_of_its_journal(seed: u64, steps in 20u64..150) {
        let mut world = World::new(seed);
        let mut random = Random::new(!seed);
        let mut replica = Replica::new();
        for _ in 0..steps {
            prop_assert!(world.step());
            for _ in 0..random.below(3) {
                replica.step(&world, &mut random);
            }
        }
        if random.chance(2) {
            let files = replica.files.kill();
            drop(replica);
            replica = Replica::open(&files, Lsn::ZERO).unwrap();
        }
        let end = replica.follower.reader().durable_end();
        let commit = replica.follower.committed();
        let (files, Promoted { mut store, marker_end, rolled_back }, mut writer) = replica.promote();
        prop_assert_eq!(store.applied(), end);
        prop_assert_eq!(store.settled_from(), marker_end);
        prop_assert!(store.committed() <= commit && !store.is_settled());
        // A transaction that was cut in two is rolled back.
        prop_assert!(rolled_back.len() <= 1);
        let reader = store.reader();
        let found = content(store.state_mut(), &reader).trimmed();
        let difference = found.difference(&world.expected(end));
        prop_assert!(difference.is_empty(), "{difference:#?}");
        // The commit position is not yet beyond the marker: the index keeps what it has.
        store.apply(commit, 10, &mut Vec::new()).unwrap();
        prop_assert_eq!(store.applied(), end);
        let marker = writer.try_next(commit).unwrap().unwrap();
        prop_assert!(marker.start < marker_end && marker_end <= marker.end);
        let mut durable = writer.write(marker).unwrap();
        // What rolls a transaction back follows the marker: in another batch, where the marker was the last of its file.
        while let Some(batch) = writer.try_next(commit).unwrap() {
            durable = writer.write(batch).unwrap();
        }
        prop_assert_eq!(durable, store.appended_end());
        store.apply(durable, 10, &mut Vec::new()).unwrap();
        prop_assert!(store.is_settled());
        let rebuilt = inspect(&directory(&files)).unwrap().state.digest().unwrap();
        prop_assert_eq!(rebuilt, store.digest().unwrap());
        world.confirmed = durable;
        world.take_over(files, store, writer, end);
        for _ in 0..60 {
            prop_assert!(world.step());
        }
        let files = world.files.crash(seed);
        world.reopen(files);
    }

    /// A deposed primary wrote what nobody else has. It is cut back to the common point, whatever interrupts that, and copies
    /// its successor's journal: then both are the same, byte for byte.
    #[test]
    fn a_deposed_primary_becomes_a_replica_of_its_successor(seed: u64, steps in 10u64..120, tail in 1usize..40) {
        let (mut world, replica) = beside(seed, steps, |_, _| {});
        let mut random = Random::new(seed);
        let common = world.confirmed;
        for _ in 0..tail {
            world.add_one();
            if random.chance(2) {
                world.write().unwrap();
            }
        }
        while world.write().unwrap().is_some() {}
        let deposed = if random.chance(2) { world.files.kill() } else { world.files.crash(seed) };
        prop_assert_eq!(replica.durable(), common);
        let (files, Promoted { store, .. }, writer) = replica.promote();
        world.log.retain(|(end, _)| *end <= common);
        world.take_over(files, store, writer, common);
        for _ in 0..60 {
            prop_assert!(world.step());
        }
        prop_assert!(world.settle());
        let reader = world.store.reader();
        let Some(chain) = reader.chain_at(common).unwrap() else { return Ok(()) };
        let ids: Vec<u32> = world.store.journal().files().iter().map(|file| file.id).collect();
        if !(common.file()..=world.confirmed.file()).all(|id| ids.contains(&id)) {
            // Collected in between: a matter of whole files.
            return Ok(());
        }
        // Before it is cut: its index holds nothing of what was not committed, not even a new one.
        if random.chance(2) {
            IndexStore::discard(&directory(&deposed)).unwrap();
        }
        let old = Replica::open(&deposed.fork(), common).unwrap();
        prop_assert!(old.durable() >= common && old.follower.applied() <= common);
        drop(old);
        let files = deposed;
        files.die_after(random.below(25));
        let _ = truncate(&directory(&files), common, Some(chain), false);
        let files = files.crash(random.next_u64());
        truncate(&directory(&files), common, Some(chain), false).unwrap();
        let mut old = Replica::open(&files, common).unwrap();
        prop_assert_eq!(old.durable(), common);
        prop_assert!(old.copy(&batches(&reader, common), 5));
        prop_assert!(old.copy(&batches(&reader, common), usize::MAX));
        while old.follower.apply(world.confirmed, 9).unwrap() {}
        prop_assert_eq!(old.follower.digest().unwrap(), world.store.digest().unwrap());
        let (ours, theirs) = (batches(&old.follower.reader(), common), batches(&reader, common));
        prop_assert_eq!(ours, theirs);
    }
}

#[test]
fn equal_digests_mean_equal_content() {
    let mut world = World::new(6);
    let mut seen = BTreeMap::new();
    for _ in 0..400 {
        assert!(world.step());
        assert!(world.settle());
        let reader = world.store.reader();
        let found = content(world.store.state_mut(), &reader).trimmed();
        let before = seen.entry(world.store.digest().unwrap()).or_insert_with(|| found.clone());
        assert!(*before == found, "two contents with one digest");
    }
    assert!(seen.len() > 150, "only {} digests", seen.len());
    // Moved messages are the same ones in another place; the second time even their records are equal.
    let file = world.store.state().files.iter().find(|(_, use_)| use_.live > 0).unwrap().0;
    let mut records = candidates(&world.store.reader(), file).unwrap();
    for _ in 0..2 {
        let (before, end) = (world.store.digest().unwrap(), world.confirmed);
        let moved = world.store.relocate(&records).unwrap();
        assert!(moved > 0 && world.settle());
        assert_ne!(world.store.digest().unwrap(), before);
        records = candidates(&world.store.reader(), world.confirmed.file()).unwrap();
        records.retain(|(candidate, _)| candidate.at.lsn() >= end);
    }
}

/// A long life in one go, in which files are collected and messages moved many times.
#[test]
fn a_replica_agrees_over_a_long_life() {
    let (world, replica) = beside(4711, 3000, |_, _| {});
    let first = |files: Vec<kahawai_journal::DataFile>| files.first().map(|file| file.id);
    assert!(first(world.store.journal().files()) > Some(3), "no file was ever collected");
    assert!(first(replica.follower.journal().files()) > Some(1), "the replica kept everything");
}

#[test]
fn what_is_committed_is_not_cut_unless_an_operator_says_so() {
    let (world, mut replica) = beside(5, 80, |_, _| {});
    assert!(replica.checkpoint());
    let applied = replica.follower.applied();
    let files = replica.files.kill();
    let at = world.sent.iter().rfind(|(at, _)| *at < applied).unwrap().0;
    let refused = truncate(&directory(&files), at, None, false).unwrap_err();
    assert!(matches!(refused, ClosedError::Committed { .. }), "{refused}");
    let cut = truncate(&directory(&files), at, None, true).unwrap();
    assert!(cut.dropped_bytes > 0);
    let mut replica = Replica::open(&files, Lsn::ZERO).unwrap();
    // Not even what both have: files of it may be gone by a decision that was cut off.
    assert_eq!(replica.follower.journal().files(), []);
    replica.catch_up(&world);
    assert_eq!(replica.follower.digest().unwrap(), world.store.digest().unwrap());
}

/// The place where a forced primary's journal parts from ours lies in a file that we have deleted, by what is lost now.
#[test]
fn who_has_deleted_the_place_of_a_cut_begins_again_as_well() {
    let (world, mut replica) = beside(4711, 3000, |_, _| {});
    replica.catch_up(&world);
    assert!(replica.checkpoint() && replica.retire());
    let left: Vec<u32> = replica.follower.journal().files().iter().map(|file| file.id).collect();
    let files = replica.files.kill();
    let (at, _) = world.sent.iter().find(|(at, _)| at.file() > 1 && !left.contains(&at.file())).unwrap();
    assert!(truncate(&directory(&files), *at, None, true).unwrap().dropped_bytes > 0);
    assert_eq!(Replica::open(&files, Lsn::ZERO).unwrap().follower.journal().files(), []);
}

fn receive(reader: &JournalReader, files: &MemoryFiles, sealed: &SealedFile) {
    let target = directory(files);
    target.create_directory(INCOMING_DIRECTORY).unwrap();
    let name = format!("{INCOMING_DIRECTORY}/db-{}.log", sealed.id);
    let file = target.open(&name, OpenMode::Write).unwrap();
    let mut content = vec![0; sealed.length as usize];
    assert_eq!(reader.read_raw(sealed.id, 0, &mut content).unwrap(), content.len());
    file.write_at(&content, 0).unwrap();
    verify_file(&target, &name, sealed).unwrap();
    target.sync_directory(INCOMING_DIRECTORY).unwrap();
}

/// Makes the index of files that were received, or were there, as who receives them does; `false` if that is left to the start.
fn build(files: &MemoryFiles, manifest: &[SealedFile], commit: Lsn) -> bool {
    let target = directory(files);
    discard_staged(&target).unwrap();
    let mut builder = IndexBuilder::new(commit);
    for sealed in manifest {
        let incoming = incoming_name(sealed.id);
        let name = if files.exists(&incoming).unwrap() { incoming } else { data_file_name(sealed.id) };
        let file = target.open(&name, OpenMode::Read).unwrap();
        check_file(file, &name, sealed, |batch| builder.batch(batch)).unwrap();
    }
    let staged = builder.stage(&target).unwrap();
    target.sync_directory(INCOMING_DIRECTORY).unwrap();
    staged
}

/// A replica was away for so long that files it lacks are collected: it is given what is left, and makes its index from that,
/// later or while they come. An interruption anywhere is made good by the next try.
#[test]
fn a_replica_that_was_away_too_long_is_given_files() {
    let mut with_index = 0;
    for (seed, builds) in [(31, false), (31, true), (32, true), (33, true), (34, true)] {
        with_index += given_files(seed, builds);
    }
    assert!(with_index > 30, "{with_index} times");
}

fn given_files(seed: u64, builds: bool) -> usize {
    let mut with_index = 0;
    let mut world = World::new(seed);
    let mut away = Replica::new();
    for _ in 0..150 {
        assert!(world.step());
        away.copy(&world.sent, 3);
    }
    assert!(world.settle());
    away.catch_up(&world);
    assert!(away.checkpoint());
    let lost = away.durable();
    while world.store.reader().chain_at(lost).unwrap().is_some() {
        assert!(world.step());
    }
    assert!(world.settle());
    let reader = world.store.reader();
    let end = reader.durable_end();
    let manifest = reader.sealed_files(end).unwrap();
    let old = away.files.kill();
    let have = kahawai_journal::sealed_files(&directory(&old), lost).unwrap();
    let mut finished = false;
    for stop in (0..).step_by(3) {
        let files = old.fork();
        for sealed in manifest.iter().filter(|sealed| !have.contains(sealed)) {
            receive(&reader, &files, sealed);
        }
        let built = builds && build(&files, &manifest, world.confirmed.min(end));
        files.die_after(stop);
        let installed = install(&directory(&files), &manifest).is_ok();
        finished |= installed;
        let files = files.crash(stop);
        if !installed {
            install(&directory(&files), &manifest).unwrap();
        }
        assert!(builds || !files.exists(INDEX_FILE).unwrap(), "an index of another journal");
        let OpenedFollower { follower, writer, identity, report, .. } =
            Follower::open(&directory(&files), &OsEntropy, &replica_options(), Lsn::ZERO).unwrap();
        let has_index = report.index == Rebuilt::Checkpoint;
        assert!(has_index || matches!(report.index, Rebuilt::Journal { .. }), "{:?}", report.index);
        assert!(built || !has_index, "an index of another journal");
        assert!(has_index || !built || !installed, "an index for nothing");
        with_index += usize::from(has_index);
        let hint = report.recovery.commit_hint;
        let mut replica = Replica { files, follower, writer, identity, commit: Lsn::ZERO, hint };
        assert!(replica.copy(&batches(&reader, replica.durable()), usize::MAX));
        while replica.follower.apply(world.confirmed, 50).unwrap() {}
        assert_eq!(replica.follower.applied(), world.store.applied());
        assert_eq!(replica.follower.digest().unwrap(), world.store.digest().unwrap(), "stopped at {stop}");
        if finished {
            break;
        }
    }
    // An index that was left in place by mistake is noticed.
    for sealed in manifest.iter().filter(|sealed| !have.contains(sealed)) {
        receive(&reader, &old, sealed);
    }
    kahawai_journal::install(&directory(&old), &manifest).unwrap();
    let mut replica = Replica::open(&old, Lsn::ZERO).unwrap();
    assert!(replica.copy(&batches(&reader, replica.durable()), usize::MAX));
    while replica.follower.apply(world.confirmed, 50).unwrap() {}
    assert_eq!(replica.follower.digest().unwrap(), world.store.digest().unwrap());
    with_index
}

#[test]
fn collected_files_stay_until_a_checkpoint_is_behind_the_decision() {
    let mut world = World::new(4711);
    let mut replica = Replica::new();
    let mut waited = 0;
    for _ in 0..3000 {
        assert!(world.step());
        assert!(world.settle());
        replica.catch_up(&world);
        let collected = replica.follower.state().collected.clone();
        if !collected.is_empty() {
            assert_eq!(replica.follower.to_retire(), [0u32; 0]);
            waited += collected.len();
            // Without the checkpoint the files are needed, and there.
            let files = replica.files.kill();
            replica = Replica::open(&files, world.confirmed).unwrap();
            assert_eq!(replica.follower.digest().unwrap(), world.store.digest().unwrap());
            assert!(replica.checkpoint());
            assert_eq!(replica.follower.to_retire(), collected.into_iter().collect::<Vec<_>>());
            assert!(replica.retire());
            for file in world.store.to_retire() {
                world.store.journal().retire([file]).unwrap();
                world.store.retired(file);
            }
            let ids = |journal: &kahawai_journal::Journal| {
                journal.files().iter().map(|file| file.id).collect::<Vec<_>>()
            };
            assert_eq!(ids(replica.follower.journal()), ids(world.store.journal()));
        }
    }
    assert!(waited > 0, "nothing was ever collected");
}

#[test]
fn a_file_that_the_index_needs_is_not_given_up() {
    let mut world = World::new(3);
    while world.store.reader().durable_end().file() < 3 {
        world.add_one();
        assert!(world.settle());
    }
    let record = CollectionRecord::new(vec![1], Bytes::new());
    let appender = world.store.journal().appender();
    appender.lock().append(|out| record.encode(out)).unwrap();
    while let Some(end) = world.write().unwrap() {
        world.confirmed = end;
    }
    let mut replica = Replica::new();
    assert!(replica.copy(&world.sent, usize::MAX));
    let error = loop {
        match replica.follower.apply(world.confirmed, 10) {
            Ok(more) => assert!(more, "it was given up"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ReplayError::Referenced { file: 1, .. }), "{error}");
    assert_eq!(replica.follower.to_retire(), [0u32; 0]);
}

#[test]
fn a_journal_that_activemq_wrote_last_is_not_followed() {
    let files = crate::imported::directory_of("queue-backlog");
    assert!(matches!(Replica::open(&files, Lsn::ZERO).err(), Some(OpenError::ForeignTail { .. })));
    // A single node makes it the truth.
    let opened = crate::world::open(&files).unwrap();
    let (mut writer, store) = (opened.writer, opened.store);
    let batch = writer.try_next(Lsn::ZERO).unwrap().unwrap();
    let end = writer.write(batch).unwrap();
    let digest = store.digest().unwrap();
    drop((store, writer));
    let replica = Replica::open(&files.kill(), end).unwrap();
    assert_eq!(replica.follower.applied(), end);
    assert_eq!(replica.follower.digest().unwrap(), digest);
}

fn message(number: i64, transaction: Option<&TransactionId>) -> Message {
    Message {
        id: MessageId {
            producer: ProducerId { connection: Text::from_static("ID:xa"), session: 1, value: 1 },
            sequence: number,
            ..MessageId::default()
        },
        destination: Destination::queue("A"),
        persistent: true,
        priority: 4,
        kind: BodyKind::Bytes,
        content: Content::Marshalled(vec![1; 50].into()),
        transaction_id: transaction.cloned(),
        ..Message::default()
    }
}

fn put_add(message: &Message, sequence: i64, out: &mut BytesMut) {
    let header = AddHeader {
        transaction: message.transaction_id.as_ref(),
        destination: &message.destination,
        message_key: MessageKey::Id(&message.id),
        priority: 4,
        priority_supported: false,
    };
    encode_add(&header, 100, |out| encode_message(message, sequence, out), out);
}

fn put_remove(message: &Message, sequence: i64, transaction: &TransactionId, out: &mut BytesMut) {
    let header = RemoveHeader {
        transaction: Some(transaction),
        destination: &message.destination,
        message_key: MessageKey::Id(&message.id),
        subscription_key: None,
    };
    let mut last = message.id.clone();
    last.broker_sequence = sequence;
    let ack = MessageAck {
        destination: message.destination.clone(),
        transaction_id: Some(transaction.clone()),
        ack_type: 2,
        last_message_id: Some(last),
        message_count: 1,
        ..MessageAck::default()
    };
    encode_remove(&header, |out| encode_ack(&ack, out), out);
}

/// A prepared transaction and an open one, over batches, checkpoints and restarts: prepared ones wait for their outcome, open
/// ones end with their primary.
#[test]
fn transactions_go_over_from_primary_to_primary() {
    let prepared = TransactionId::Xa(Xid {
        format_id: 7,
        global: Bytes::from_static(b"global"),
        branch: Bytes::from_static(b"branch"),
    });
    let open = TransactionId::Local { connection: Text::from_static("ID:open"), value: 1 };
    let plain: Vec<Message> = (0..3).map(|n| message(n, None)).collect();
    let (held, wanted) = (message(10, Some(&prepared)), message(11, Some(&open)));
    let mut records: Vec<BytesMut> = Vec::new();
    let mut put = |encode: &mut dyn FnMut(&mut BytesMut)| {
        let mut out = BytesMut::new();
        encode(&mut out);
        records.push(out);
    };
    for (n, message) in plain.iter().enumerate() {
        put(&mut |out| put_add(message, n as i64, out));
    }
    put(&mut |out| put_add(&held, -1, out));
    put(&mut |out| put_add(&wanted, 3, out));
    put(&mut |out| put_remove(&plain[1], 1, &prepared, out));
    put(&mut |out| encode_prepare(&prepared, out));
    put(&mut |out| put_remove(&plain[0], 0, &open, out));
    for restart in 0..9 {
        let mut world = World::new(1);
        assert!(world.settle());
        let mut replica = Replica::new();
        for (n, record) in records.iter().enumerate() {
            world.store.journal().appender().lock().append(|out| out.extend_from_slice(record)).unwrap();
            let end = world.write().unwrap().unwrap();
            world.confirmed = end;
            replica.catch_up(&world);
            if n == restart {
                assert!(replica.checkpoint());
                let files = replica.files.kill();
                replica = Replica::open(&files, Lsn::ZERO).unwrap();
            }
            let rebuilt = inspect(&directory(&world.files)).unwrap();
            assert_eq!(replica.follower.digest().unwrap(), rebuilt.state.digest().unwrap(), "after {n}");
            assert_eq!(replica.follower.state().prepared.contains_key(&prepared), n >= 6);
        }
        let (files, Promoted { mut store, rolled_back, .. }, mut writer) = replica.promote();
        assert_eq!(rolled_back.as_slice(), std::slice::from_ref(&open));
        let commit = |store: &mut kahawai_store::Store, writer: &mut Writer| {
            let batch = writer.try_next(Lsn::ZERO).unwrap().unwrap();
            let end = writer.write(batch).unwrap();
            while store.apply(end, 10, &mut Vec::new()).unwrap() {}
            end
        };
        let end = commit(&mut store, &mut writer);
        assert!(store.state().prepared.contains_key(&prepared));
        let queue = store.destination(&Destination::queue("A"));
        let sequences = |store: &mut kahawai_store::Store| {
            let (mut all, mut from) = (Vec::new(), 0);
            while let Some(Entry { sequence, .. }) = store.next(queue, Tier::Default, from).unwrap() {
                all.push(sequence);
                from = sequence + 1;
            }
            all
        };
        assert_eq!(sequences(&mut store), [0, 2], "held while it is prepared");
        // The coordinator decides after the next failure.
        let mut next = Replica::new();
        assert!(next.copy(&batches(&store.reader(), Lsn::ZERO), usize::MAX));
        while next.follower.apply(end, 3).unwrap() {}
        assert_eq!(next.follower.digest().unwrap(), store.digest().unwrap());
        assert!(next.checkpoint());
        let next = Replica::open(&next.files.kill(), Lsn::ZERO).unwrap();
        store.journal().appender().lock().append(|out| encode_commit(&prepared, out)).unwrap();
        let batch = writer.try_next(Lsn::ZERO).unwrap().unwrap();
        let end = writer.write(batch).unwrap();
        let mut next = next;
        assert!(next.copy(&batches(&store.reader(), next.durable()), usize::MAX));
        while next.follower.apply(end, 3).unwrap() {}
        assert_eq!(
            next.follower.digest().unwrap(),
            inspect(&directory(&files)).unwrap().state.digest().unwrap()
        );
        let (_, Promoted { mut store, rolled_back, .. }, _writer) = next.promote();
        assert!(rolled_back.is_empty() && store.state().prepared.is_empty());
        let queue = store.destination(&Destination::queue("A"));
        assert_eq!(store.count(queue), 3);
        assert_eq!(store.next(queue, Tier::Default, 1).unwrap().map(|entry| entry.sequence), Some(2));
        assert_eq!(store.next(queue, Tier::Default, 3).unwrap().map(|entry| entry.sequence), Some(3));
    }
}

/// Without the rollback, who replays the files that stay would take the transaction for one under way, and would not let its
/// files go.
#[test]
fn a_rollback_stays_while_operations_of_its_transaction_do() {
    let open = TransactionId::Local { connection: Text::from_static("ID:open"), value: 1 };
    let mut world = World::new(5);
    assert!(world.settle());
    let first = world.store.reader().durable_end().file();
    let wanted = message(11, Some(&open));
    world.store.journal().appender().lock().append(|out| put_add(&wanted, 3, out)).unwrap();
    while world.store.reader().durable_end().file() < first + 2 {
        world.add_one();
        assert!(world.settle());
    }
    let mut replica = Replica::new();
    replica.catch_up(&world);
    let (_, Promoted { mut store, rolled_back, .. }, mut writer) = replica.promote();
    assert_eq!(rolled_back, [open]);
    let mut end = Lsn::ZERO;
    while let Some(batch) = writer.try_next(end).unwrap() {
        end = writer.write(batch).unwrap();
    }
    while store.apply(end, 10, &mut Vec::new()).unwrap() {}
    let mut next = Replica::new();
    assert!(next.copy(&batches(&store.reader(), Lsn::ZERO), usize::MAX));
    while next.follower.apply(end, 10).unwrap() {}
    let by = end.file();
    assert!(by > first);
    for state in [store.state(), next.follower.state()] {
        assert!(state.files.get(by).unwrap().outlives.contains(&first));
    }
}

fn durable(name: &'static str) -> SubscriptionInfo {
    SubscriptionInfo {
        client_id: Text::from_static("client"),
        subscription_name: Text::from_static(name),
        ..SubscriptionInfo::default()
    }
}

/// A primary whose index was built from what stays does not know of messages that were pending when a subscription was written
/// again: for it, the newer record says it all.
#[test]
fn a_subscription_that_was_written_again_lets_its_first_record_go() {
    let mut world = World::new(5);
    assert!(world.settle());
    let topic = world.store.destination(&Destination::topic("T"));
    let info = durable("name");
    let first = world.store.reader().durable_end().file();
    world.store.subscribe(topic, &info, false).unwrap();
    assert!(world.settle());
    world.store.begin_file(None).unwrap();
    let pending = Message { destination: Destination::topic("T"), ..message(11, None) };
    world.store.add(topic, &pending, false).unwrap();
    assert!(world.settle());
    world.store.subscribe(topic, &info, false).unwrap();
    assert!(world.settle());
    let mut replica = Replica::new();
    replica.catch_up(&world);
    let sub = |follower: &Follower| {
        let d = follower.state().destinations().find(|(_, d)| !d.subscriptions.is_empty()).unwrap().1;
        d.subscriptions.values().next().unwrap().clone()
    };
    let before = sub(&replica.follower);
    assert_eq!((before.at.file, before.pending), (first, 1));
    let record = CollectionRecord::new(vec![first], Bytes::new());
    world.store.journal().appender().lock().append(|out| record.encode(out)).unwrap();
    world.confirmed = world.write().unwrap().unwrap();
    replica.catch_up(&world);
    let after = sub(&replica.follower);
    assert_eq!((Some(after.at), after.renewed, after.pending), (before.renewed, None, 1));
    // The newest one stays.
    assert_eq!(replica.follower.state().subscriptions_with_newest_in(after.at.file), 1);
}

/// The record that holds the oldest file is written again, but not behind the removal that waits to be committed.
#[test]
fn a_subscription_that_is_being_removed_does_not_come_back() {
    for is_removed in [false, true] {
        let mut world = World::new(5);
        assert!(world.settle());
        let topic = world.store.destination(&Destination::topic("T"));
        let info = durable("name");
        let key = SubscriptionKey { client_id: info.client_id.clone(), name: info.subscription_name.clone() };
        world.store.subscribe(topic, &info, false).unwrap();
        assert!(world.settle());
        world.store.begin_file(None).unwrap();
        assert!(world.settle());
        assert!(world.checkpoint());
        if is_removed {
            world.store.unsubscribe(topic, &key).unwrap();
        }
        let before = world.store.appended_end();
        world.store.collect().unwrap();
        assert_eq!(world.store.appended_end() > before, !is_removed, "it is written again if it stays");
        assert!(world.settle());
        let d = world.store.state().get(topic).unwrap();
        assert_eq!(d.subscriptions.contains_key(&key), !is_removed);
    }
}

#[test]
fn a_message_that_was_never_committed_is_no_duplicate() {
    let mut world = World::new(12);
    let producer = ProducerId { connection: Text::from_static("ID:test"), session: 1, value: 1 };
    world.add_one();
    assert!(world.settle());
    let known = world.store.last_sequence_of(&producer);
    world.add_one();
    assert!(world.store.last_sequence_of(&producer) > known, "this life knows it");
    assert!(world.checkpoint());
    let store = crate::world::open(&world.files.kill()).unwrap().store;
    assert_eq!(store.last_sequence_of(&producer), known, "the message is gone");
}

/// A primary dies within a transaction. What its successor ends it with is needed as long as its operations are there: a replica that is
/// given files without it would refuse to give up that of the operations.
#[test]
fn a_rollback_stays_as_long_as_what_it_ends() {
    let open = TransactionId::Local { connection: Text::from_static("ID:open"), value: 1 };
    let mut world = World::new(1);
    let mut replica = Replica::new();
    world.add_one();
    let wanted = message(11, Some(&open));
    world.store.journal().appender().lock().append(|out| put_add(&wanted, 3, out)).unwrap();
    while let Some(end) = world.write().unwrap() {
        world.confirmed = end;
    }
    replica.catch_up(&world);
    let end = replica.durable();
    replica.follower.journal().appender().begin_file();
    let (files, Promoted { store, rolled_back, .. }, writer) = replica.promote();
    assert_eq!(rolled_back.as_slice(), std::slice::from_ref(&open));
    let ended_in = store.appended_end().file();
    assert!(ended_in > end.file(), "the rollback is in a file of its own");
    world.take_over(files, store, writer, end);
    let stays = |state: &kahawai_store::state::State| {
        state.files.get(ended_in).is_some_and(|use_| use_.outlives.contains(&end.file()))
    };
    assert!(stays(world.store.state()));
    let mut next = Replica::new();
    next.catch_up(&world);
    assert!(stays(next.follower.state()), "the next primary knows it too");
}

/// What was acknowledged goes with its data files, and the numbers that were given with it. A replica that was there remembers them,
/// one that made its index from the files that are left does not, and may lead.
#[test]
fn a_new_primary_gives_no_number_that_a_replica_remembers() {
    let mut world = World::new(3);
    let mut old = Replica::new();
    let topic = Destination::topic("N");
    let info = SubscriptionInfo {
        destination: topic.clone(),
        subscribed_destination: Some(topic.clone()),
        ..durable("s")
    };
    let subscription = SubscriptionKey { client_id: info.client_id.clone(), name: Text::from_static("s") };
    let message = |sequence| Message {
        id: MessageId {
            producer: ProducerId { connection: Text::from_static("ID:n"), session: 1, value: 1 },
            sequence,
            ..MessageId::default()
        },
        destination: topic.clone(),
        persistent: true,
        kind: BodyKind::Bytes,
        content: Content::Marshalled(vec![7; 1000].into()),
        ..Message::default()
    };
    let key = world.store.destination(&topic);
    world.store.subscribe(key, &info, false).unwrap();
    for number in 0..6 {
        let sequence = world.store.add(key, &message(number), false).unwrap().sequence;
        assert!(world.settle());
        let by = AckBy::default();
        world.store.acknowledge(key, &subscription, sequence, &message(number).id, &by, false).unwrap();
    }
    assert!(world.settle());
    let last = world.store.appended_end().file();
    world.store.begin_file(None).unwrap();
    let first = |files: Vec<kahawai_journal::DataFile>| files.first().map(|file| file.id);
    for _ in 0..5 {
        for _ in 0..20 {
            world.add_one();
            assert!(world.settle());
        }
        assert!(world.checkpoint());
        world.store.collect().unwrap();
        assert!(world.settle());
        old.catch_up(&world);
        assert!(old.checkpoint() && old.retire());
    }
    assert!(first(old.follower.journal().files()) > Some(last), "what was acknowledged is still there");
    let files = old.files.fork();
    IndexStore::discard(&directory(&files)).unwrap();
    let young = Replica::open(&files, world.confirmed).unwrap();
    assert_eq!(young.follower.digest().unwrap(), old.follower.digest().unwrap());
    let end = young.durable();
    let (files, Promoted { store, .. }, writer) = young.promote();
    let stored_last = store.last_sequence_of(&message(0).id.producer);
    assert_eq!(stored_last, Some(5), "sent again, it would be stored twice");
    world.take_over(files, store, writer, end);
    let key = world.store.destination(&topic);
    world.store.add(key, &message(7), false).unwrap();
    let made = Destination::topic("made later");
    let new = world.store.destination(&made);
    world.store.subscribe(new, &SubscriptionInfo { destination: made.clone(), ..info }, false).unwrap();
    world.store.add(new, &Message { destination: made, ..message(8) }, false).unwrap();
    assert!(world.settle());
    assert_eq!(world.store.pending_count(key, &subscription), 1);
    old.catch_up(&world);
    let (ours, theirs) = (old.follower.reader(), world.store.reader());
    let found = content(old.follower.state_mut(), &ours).trimmed();
    let difference = found.difference(&content(world.store.state_mut(), &theirs).trimmed());
    assert!(difference.is_empty(), "a durable message is lost: {difference:#?}");
}

/// A bit flips in the batch that was flushed last. A start would take that for what a crash has left of an unfinished write, and cut
/// off what the primary counts on; who sees it while running leaves word.
#[test]
fn damage_that_was_seen_is_no_torn_tail_at_the_next_start() {
    let mut world = World::new(8);
    for _ in 0..3 {
        world.add_one();
        assert!(world.settle());
    }
    // Nothing is kept in memory, so that the files are read.
    let mut options = replica_options();
    options.journal.recent_bytes_max = 0;
    let open_again = |is_seen: bool| {
        let mut replica = Replica::open_with(&MemoryFiles::new(), Lsn::ZERO, &options).unwrap();
        assert!(replica.copy(&world.sent, usize::MAX));
        let (last, _) = world.sent.last().unwrap();
        let end = replica.durable();
        replica.files.flip(&kahawai_journal::data_file_name(last.file()), last.offset() as usize + 200, 4);
        if is_seen {
            let mut applied = Ok(true);
            while matches!(applied, Ok(true)) {
                applied = replica.follower.apply(world.confirmed, 1);
            }
            assert!(matches!(applied, Err(ReplayError::Read(_))), "{applied:?}");
        }
        let files = replica.files.kill();
        drop(replica);
        (Replica::open(&files, Lsn::ZERO), *last, end, files)
    };
    let (cut, last, ..) = open_again(false);
    assert_eq!(cut.unwrap().durable(), last, "nobody can know");
    let (refused, last, end, files) = open_again(true);
    let error = refused.err().expect("it is refused").to_string();
    assert!(error.contains(&last.to_string()) || error.contains(&last.offset().to_string()), "{error}");
    assert!(error.contains(&end.offset().to_string()), "{error}");
    // It was the memory, not the disk, or an operator has put the file back.
    files.flip(&kahawai_journal::data_file_name(last.file()), last.offset() as usize + 200, 4);
    let replica = Replica::open(&files, Lsn::ZERO).unwrap();
    assert_eq!(replica.durable(), end);
    assert!(!files.exists("replication/flushed").unwrap(), "the word is taken back");
}

/// Bits of the index change while nobody has it open: it says what it said, or is made again.
#[test]
fn a_damaged_index_is_never_believed() {
    let mut world = World::new(21);
    for _ in 0..400 {
        assert!(world.step());
        assert!(world.settle());
    }
    assert!(world.checkpoint());
    let expected = world.store.digest().unwrap();
    let files = world.files.kill();
    let mut random = Random::new(3);
    let (mut rebuilt, mut met) = (0, 0);
    for round in 0..600 {
        let files = files.fork();
        let name = if round % 5 == 0 { SUMS_FILE } else { INDEX_FILE };
        let length = files.content(name).unwrap().len() as u64;
        // The first page has no sum.
        let length = if round % 5 < 3 { length } else { 400 };
        for _ in 0..=random.below(30) {
            files.flip(name, random.below(length) as usize, 1 << random.below(8));
        }
        let opened = crate::world::open(&files).unwrap();
        rebuilt += u32::from(!matches!(opened.report.index, Rebuilt::Checkpoint));
        match opened.store.digest() {
            Ok(digest) => assert_eq!(digest, expected, "round {round}"),
            Err(_) => {
                // It was met later; the next start knows.
                met += 1;
                drop(opened);
                let again = crate::world::open(&files.kill()).unwrap();
                assert_eq!(again.store.digest().unwrap(), expected, "round {round}");
            }
        }
    }
    assert!(rebuilt > 50, "{rebuilt} rebuilt, {met} met later");
}
