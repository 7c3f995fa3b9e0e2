//! Who a store is, over restarts, crashes and earlier versions.

use std::sync::Arc;

use kahawai_env::{Files, OsEntropy};
use kahawai_store::{
    DEFAULT_NODE_ID, Follower, Identity, IdentityError, NODE_FILE, OpenError, OpenOptions, RECORD_BYTES_MAX,
    RECORD_FILE, StoreState, load_record, save_record,
};
use kahawai_testkit::{MemoryFiles, Random};
use kahawai_types::{ClusterId, Epoch, Lsn, NodeId};

fn directory(files: &MemoryFiles) -> Arc<dyn Files> {
    Arc::new(files.clone())
}

fn open_as(files: &MemoryFiles, name: &str) -> Result<Identity, IdentityError> {
    Identity::open_as(&directory(files), &OsEntropy, &NodeId(name.to_owned()))
}

#[test]
fn a_single_nodes_directory_takes_a_name_once() {
    let files = MemoryFiles::new();
    let single = open_as(&files, DEFAULT_NODE_ID).unwrap();
    let named = open_as(&files.kill(), "a").unwrap();
    assert_eq!((named.store_id, named.node_id.0.as_str()), (single.store_id, "a"));
    assert_ne!(named.boot_id, single.boot_id);
    let files = files.crash(1);
    assert!(matches!(open_as(&files, "b"), Err(IdentityError::AnotherNode { .. })));
    assert_eq!(open_as(&files, "a").unwrap().store_id, single.store_id);
    // One that joined under the name that nobody gave it keeps that.
    let files = MemoryFiles::new();
    let mut identity = open_as(&files, DEFAULT_NODE_ID).unwrap();
    identity.adopt_cluster(&directory(&files), ClusterId(5)).unwrap();
    assert!(matches!(open_as(&files, "a"), Err(IdentityError::AnotherNode { .. })));
}

#[test]
fn a_member_of_a_cluster_is_no_single_node_any_more() {
    let files = MemoryFiles::new();
    let mut identity = open_as(&files, "a").unwrap();
    assert!(!identity.has_joined() && identity.cluster_id != ClusterId(7));
    identity.adopt_cluster(&directory(&files), ClusterId(7)).unwrap();
    identity.adopt_cluster(&directory(&files), ClusterId(7)).unwrap();
    let other = identity.adopt_cluster(&directory(&files), ClusterId(8)).unwrap_err();
    assert!(matches!(other, IdentityError::AnotherCluster { .. }), "{other}");
    let files = files.crash(3);
    let options = OpenOptions { node_id: NodeId("a".to_owned()), ..crate::world::options() };
    let before = files.list("").unwrap();
    let refused = kahawai_store::open(&directory(&files), &OsEntropy, &options).unwrap_err();
    assert!(matches!(refused, OpenError::Identity(IdentityError::Member { .. })), "{refused}");
    assert_eq!(files.list("").unwrap(), before, "nothing was touched");
    let opened = Follower::open(&directory(&files), &OsEntropy, &options, Lsn::ZERO).unwrap();
    assert!(opened.identity.has_joined());
    assert_eq!(opened.identity.cluster_id, ClusterId(7));
}

/// What an earlier version wrote: the same slot with zeros where state and flags are.
#[test]
fn slots_of_earlier_versions_are_read() {
    let files = MemoryFiles::new();
    let identity = open_as(&files, "a").unwrap();
    let content = files.content(NODE_FILE).unwrap();
    let behind_the_name = 4 + 8 + 16 + 16 + 8 + 2 + 1;
    assert!(content[behind_the_name..504].iter().all(|&b| b == 0));
    assert_eq!(identity.state, StoreState::Clean);
    assert!(!open_as(&files, "a").unwrap().has_joined());
}

/// Whatever interrupts a change, the next life has the identity of before or after it, and never a lower promise than one that
/// was confirmed.
#[test]
fn a_change_of_identity_is_there_or_not() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let files = MemoryFiles::new();
        let mut identity = open_as(&files, "a").unwrap();
        let mut confirmed = identity.clone();
        files.die_after(random.below(12));
        let mut under_way = None;
        for epoch in 1..8 {
            let target = directory(&files);
            let mut next = confirmed.clone();
            let done = match random.below(3) {
                0 => {
                    next.state = [StoreState::Clean, StoreState::Syncing, StoreState::Faulted]
                        [random.below(3) as usize];
                    identity.set_state(&target, next.state)
                }
                1 if !identity.has_joined() => {
                    next.cluster_id = ClusterId(9);
                    identity.adopt_cluster(&target, ClusterId(9))
                }
                _ => {
                    next.promised_epoch = Epoch(epoch);
                    identity.promise(&target, Epoch(epoch))
                }
            };
            if done.is_err() {
                under_way = Some(next);
                break;
            }
            confirmed = identity.clone();
        }
        let files = files.crash(random.next_u64());
        let now = open_as(&files, "a").unwrap();
        let same = |other: &Identity| {
            (now.promised_epoch, now.state, now.cluster_id)
                == (other.promised_epoch, other.state, other.cluster_id)
        };
        assert!(same(&confirmed) || under_way.as_ref().is_some_and(same), "seed {seed}: {now:?}");
        assert_eq!(now.store_id, confirmed.store_id);
    }
}

#[test]
fn a_cluster_record_is_the_one_before_or_the_one_saved() {
    let files = MemoryFiles::new();
    assert_eq!(load_record(&directory(&files)).unwrap(), None);
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let files = MemoryFiles::new();
        let length = random.below(3000) as usize;
        let (first, second) = (random.bytes(length), random.bytes(2000));
        save_record(&directory(&files), &first).unwrap();
        files.die_after(random.below(8));
        let done = save_record(&directory(&files), &second).is_ok();
        let found = load_record(&directory(&files.crash(seed))).unwrap().unwrap();
        assert!(found == second || (!done && found == first), "seed {seed}");
    }
    let large = vec![1; RECORD_BYTES_MAX];
    save_record(&directory(&files), &large).unwrap();
    assert_eq!(load_record(&directory(&files)).unwrap().unwrap(), large);
    let refused = save_record(&directory(&files), &vec![1; RECORD_BYTES_MAX + 1]).unwrap_err();
    assert!(matches!(refused, IdentityError::RecordTooLarge { .. }), "{refused}");
    for at in [0, 5, 100, RECORD_BYTES_MAX + 12] {
        files.flip(RECORD_FILE, at, 1);
        assert!(matches!(load_record(&directory(&files)), Err(IdentityError::RecordDamaged { .. })));
        files.flip(RECORD_FILE, at, 1);
    }
}
