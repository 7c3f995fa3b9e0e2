//! A directory of ActiveMQ's that was gone on with: its index is the same wherever it is made again, also on a replica that is
//! given the files, whatever was consumed and given up since.

use std::sync::Arc;

use kahawai_env::{Files, OpenMode, OsEntropy};
use kahawai_message::storage::{Storage, SubscriptionKey};
use kahawai_message::stored::SubscriptionInfo;
use kahawai_message::{Destination, Text};
use kahawai_store::snapshot::{SNAPSHOT_FILE, Snapshot, is_whole};
use kahawai_store::{Follower, Identity, OpenError, Rebuilt};
use kahawai_testkit::MemoryFiles;
use kahawai_testkit::fixtures::{expected, names, unpack};
use kahawai_types::{ClusterId, Lsn};

use crate::world::{World, options};

/// One of ActiveMQ's directories, in memory.
pub fn directory_of(name: &str) -> MemoryFiles {
    let fixture = unpack(name);
    let files = MemoryFiles::new();
    for entry in std::fs::read_dir(fixture.path().join("kahadb")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            files.put(entry.file_name().to_str().unwrap(), &std::fs::read(entry.path()).unwrap());
        }
    }
    files
}

/// What a replica is given: the data files and what was kept of ActiveMQ's index.
fn given(primary: &MemoryFiles) -> MemoryFiles {
    let (from, copy) = (primary as &dyn Files, MemoryFiles::new());
    let to: Arc<dyn Files> = Arc::new(copy.clone());
    for name in from.list("").unwrap().into_iter().filter(|name| name.ends_with(".log")) {
        copy.put(&name, &primary.content(&name).unwrap());
    }
    if let Some(snapshot) = primary.content(SNAPSHOT_FILE) {
        to.create_directory("imported").unwrap();
        copy.put(SNAPSHOT_FILE, &snapshot);
    }
    let mut identity = Identity::open_as(&to, &OsEntropy, &options().node_id).unwrap();
    identity.adopt_cluster(&to, ClusterId(1)).unwrap();
    copy
}

fn follow(files: &MemoryFiles, confirmed: Lsn) -> Result<kahawai_store::OpenedFollower, OpenError> {
    let files: Arc<dyn Files> = Arc::new(files.clone());
    let mut opened = Follower::open(&files, &OsEntropy, &options(), confirmed)?;
    while opened.follower.apply(confirmed, 5).unwrap_or_else(|e| panic!("{e}")) {}
    Ok(opened)
}

/// A replica's index is the primary's, made from what it is given, and again after it was lost.
fn check_replica(world: &mut World, name: &str) {
    assert!(world.settle());
    let wanted = world.store.digest().unwrap();
    let files = given(&world.files);
    let opened = follow(&files, world.confirmed).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(opened.follower.digest().unwrap(), wanted, "{name}: {:?}", opened.report.index);
    drop(opened);
    let again = follow(&files.kill(), world.confirmed).unwrap();
    assert_eq!(again.report.index, Rebuilt::Checkpoint, "{name}");
    assert_eq!(again.follower.digest().unwrap(), wanted, "{name}, restarted");
}

#[test]
fn what_was_imported_is_the_same_wherever_it_is_made_again() {
    let (mut snapshots, mut given_up) = (0, 0);
    let readable = |name: &String| name != "multi-kahadb" && expected(name).get("recovered").is_some();
    for name in names().into_iter().filter(readable) {
        for seed in 0..3 {
            let files = directory_of(&name);
            let mut world = World::over(&files, seed);
            let from: Arc<dyn Files> = Arc::new(files.clone());
            let kept = Snapshot::find(&from).unwrap().unwrap_or_else(|| panic!("{name}"));
            let there = |files: &MemoryFiles| {
                let names = files.list("").unwrap();
                let ids = names.iter().filter_map(|name| kahawai_journal::data_file_id(name));
                ids.filter(|id| *id <= kept.applied.file()).count()
            };
            let before = there(&files);
            check_replica(&mut world, &name);
            for round in 0..8 {
                for _ in 0..60 {
                    assert!(world.step());
                }
                check_replica(&mut world, &name);
                let files = world.files.crash(seed * 100 + round);
                world.reopen(files);
            }
            let left = there(&world.files);
            given_up += usize::from(left < before);
            let from: Arc<dyn Files> = Arc::new(world.files.clone());
            assert_eq!(Snapshot::find(&from).unwrap().is_some(), left > 0, "{name}");
            snapshots += usize::from(left > 0);
        }
    }
    assert!(snapshots > 5 && given_up > 5, "{snapshots} with files of ActiveMQ's, {given_up} gave some up");
}

#[test]
fn a_damaged_snapshot_is_refused_by_members_and_made_again_alone() {
    let files = directory_of("durable-topics");
    let mut world = World::over(&files, 1);
    let digest = world.store.digest().unwrap();
    assert!(world.settle());
    let whole = files.content(SNAPSHOT_FILE).unwrap();
    for at in [0, 5, 20, 21, whole.len() / 2, whole.len() - 9, whole.len() - 1] {
        let damaged = given(&files);
        damaged.flip(SNAPSHOT_FILE, at, 0x40);
        let refused = follow(&damaged, world.confirmed).map(|opened| opened.report);
        assert!(matches!(refused, Err(OpenError::Unnumbered { .. })), "{at}: {refused:?}");
    }
    let without = given(&files);
    let to: Arc<dyn Files> = Arc::new(without.clone());
    to.remove(SNAPSHOT_FILE).unwrap();
    assert!(matches!(follow(&without, world.confirmed), Err(OpenError::Unnumbered { .. })));
    // Alone there is ActiveMQ's own index.
    let alone_files = files.kill();
    let alone: Arc<dyn Files> = Arc::new(alone_files.clone());
    alone.open(SNAPSHOT_FILE, OpenMode::Write).unwrap().write_at(b"not it", 100).unwrap();
    let rebuilding = kahawai_store::OpenOptions { rebuild: true, ..options() };
    let opened = kahawai_store::open(&alone, &OsEntropy, &rebuilding).unwrap();
    assert!(matches!(opened.report.index, Rebuilt::Imported { .. }), "{:?}", opened.report.index);
    assert_eq!(opened.store.digest().unwrap(), digest);
    drop(opened);
    // The new one stands behind batches of ours, and serves as well.
    let kept = Snapshot::find(&alone).unwrap().unwrap();
    assert!(is_whole(&alone, SNAPSHOT_FILE, kept.length, kept.sum).unwrap());
    let mut world = World::over(&alone_files.kill(), 2);
    for round in 0..6 {
        check_replica(&mut world, "made again");
        for _ in 0..40 {
            assert!(world.step());
        }
        let files = world.files.crash(round);
        world.reopen(files);
    }
    assert!(world.store.journal().files().iter().any(|file| file.id > kept.applied.file() + 1));
}

/// ActiveMQ goes on in the middle of a file of ours, and dies; then we go on again.
#[test]
fn what_activemq_appends_to_a_file_of_ours_is_numbered_once() {
    let foreign = directory_of("queue-backlog").content("db-1.log").unwrap();
    for seed in 0..4 {
        let mut world = World::new(seed);
        for _ in 0..40 {
            assert!(world.step());
        }
        assert!(world.settle() && world.checkpoint());
        let end = world.confirmed.location();
        let files = world.files.kill();
        drop(world);
        let name = kahawai_journal::data_file_name(end.file);
        let mut content = files.content(&name).unwrap();
        content.truncate(end.offset as usize);
        content.extend_from_slice(&foreign);
        files.put(&name, &content);
        let mut world = World::over(&files, seed);
        let from: Arc<dyn Files> = Arc::new(files.clone());
        let kept = Snapshot::find(&from).unwrap().unwrap();
        assert_eq!(kept.applied.file(), end.file);
        check_replica(&mut world, "appended");
        for round in 0..4 {
            for _ in 0..40 {
                assert!(world.step());
            }
            check_replica(&mut world, "appended");
            let files = world.files.crash(seed * 10 + round);
            world.reopen(files);
        }
    }
}

/// What a subscription was given when it came, another one had: that one must be found by whoever replays the journal.
#[test]
fn what_a_retroactive_subscription_was_given_stays_its_own() {
    let mut world = World::new(5);
    let topic = Destination::topic("T");
    let key = world.store.destination(&topic);
    let subscribe = |world: &mut World, name: &'static str, retroactive| {
        let info = SubscriptionInfo {
            client_id: Text::from_static("client"),
            destination: topic.clone(),
            subscription_name: Text::from_static(name),
            subscribed_destination: Some(topic.clone()),
            ..SubscriptionInfo::default()
        };
        world.store.subscribe(key, &info, retroactive).unwrap();
        assert!(world.settle());
    };
    // Each in a data file of its own.
    let fill = |world: &mut World| {
        let file = world.confirmed.file();
        while world.confirmed.file() == file {
            world.add_one();
            assert!(world.settle());
        }
    };
    subscribe(&mut world, "first", false);
    fill(&mut world);
    let message = world.message(&topic);
    world.store.add(key, &message, false).unwrap();
    fill(&mut world);
    subscribe(&mut world, "second", true);
    fill(&mut world);
    let first = SubscriptionKey { client_id: Text::from_static("client"), name: Text::from_static("first") };
    world.store.unsubscribe(key, &first).unwrap();
    assert!(world.settle());
    let queue = world.store.destination(&Destination::queue("A"));
    world.store.remove_destination(queue).unwrap();
    fill(&mut world);
    for _ in 0..4 {
        assert!(world.settle() && world.checkpoint());
        world.store.collect().unwrap();
        assert!(world.settle());
        let files = world.store.to_retire();
        world.store.journal().retire(files.iter().copied()).unwrap();
        files.into_iter().for_each(|file| world.store.retired(file));
    }
    assert_eq!(world.store.state().get(key).unwrap().count, 1);
    world.check_rebuild();
}
