use std::collections::{BTreeMap, BTreeSet};

use kahawai_kdbr::SyncId;
use kahawai_types::{Millis, ReplicaId};

/// Bulk synchronisations at one time.
pub const LEASES_MAX: usize = 16;

/// [`LEASES_MAX`] replicas are fetching already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{LEASES_MAX} replicas are fetching files already")]
pub struct TooManyLeases;

#[derive(Debug)]
struct Lease {
    replica: ReplicaId,
    files: BTreeSet<u32>,
    /// The replica streams from this file on, once it has the others.
    stream_file: u32,
    length_ms: Millis,
    until: Millis,
}

/// Which data files the primary must not collect, because a replica is fetching them.
#[derive(Debug, Default)]
pub struct Leases {
    by_id: BTreeMap<SyncId, Lease>,
}

impl Leases {
    /// Nobody fetches.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps `files`, and everything from `stream_file` on, for `length_ms` from now. A replica has one lease: an older one ends.
    pub fn grant(
        &mut self,
        sync_id: SyncId,
        replica: ReplicaId,
        files: BTreeSet<u32>,
        stream_file: u32,
        now: Millis,
        length_ms: Millis,
    ) -> Result<(), TooManyLeases> {
        self.by_id.retain(|_, lease| lease.replica != replica);
        if self.by_id.len() >= LEASES_MAX {
            return Err(TooManyLeases);
        }
        let until = now.saturating_add(length_ms);
        self.by_id.insert(sync_id, Lease { replica, files, stream_file, length_ms, until });
        Ok(())
    }

    /// The replica goes on. False if there is no such lease (any more): it has to begin again.
    pub fn renew(&mut self, sync_id: SyncId, now: Millis) -> bool {
        let Some(lease) = self.by_id.get_mut(&sync_id).filter(|lease| now < lease.until) else {
            return false;
        };
        lease.until = now.saturating_add(lease.length_ms);
        true
    }

    /// Ends a lease: the replica streams, or has given up.
    pub fn release(&mut self, sync_id: SyncId) {
        self.by_id.remove(&sync_id);
    }

    /// Ends all leases of a replica: it streams.
    pub fn release_all_of(&mut self, replica: &ReplicaId) {
        self.by_id.retain(|_, lease| lease.replica != *replica);
    }

    /// Ends the leases that were not renewed, and says whose.
    pub fn expire(&mut self, now: Millis) -> Vec<(SyncId, ReplicaId)> {
        let over: Vec<SyncId> =
            self.by_id.iter().filter(|(_, lease)| now >= lease.until).map(|(id, _)| *id).collect();
        over.into_iter().filter_map(|id| Some((id, self.by_id.remove(&id)?.replica))).collect()
    }

    /// Whether this data file has to stay.
    pub fn is_pinned(&self, file: u32) -> bool {
        self.by_id.values().any(|lease| file >= lease.stream_file || lease.files.contains(&file))
    }

    /// Whether there is a lease with this file in it.
    pub fn covers(&self, sync_id: SyncId, file: u32) -> bool {
        self.by_id.get(&sync_id).is_some_and(|lease| lease.files.contains(&file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kahawai_types::{NodeId, StoreId};

    fn replica(number: u128) -> ReplicaId {
        ReplicaId { node: NodeId(format!("n{number}")), store: StoreId(number) }
    }

    #[test]
    fn files_are_kept_while_the_lease_is_renewed() {
        let mut leases = Leases::new();
        leases.grant(SyncId(1), replica(1), [2, 5].into(), 9, 0, 100).unwrap();
        let pinned = |leases: &Leases| (1..12).filter(|file| leases.is_pinned(*file)).collect::<Vec<_>>();
        assert_eq!(pinned(&leases), [2, 5, 9, 10, 11]);
        assert!(leases.covers(SyncId(1), 5) && !leases.covers(SyncId(1), 9) && !leases.covers(SyncId(2), 5));
        assert!(leases.renew(SyncId(1), 99));
        assert_eq!(leases.expire(198), []);
        assert_eq!(leases.expire(199), [(SyncId(1), replica(1))]);
        assert_eq!(pinned(&leases), []);
        assert!(!leases.renew(SyncId(1), 199));
    }

    #[test]
    fn a_lease_that_is_over_is_not_revived_and_a_replica_has_one() {
        let mut leases = Leases::new();
        leases.grant(SyncId(1), replica(1), [2].into(), 9, 0, 100).unwrap();
        assert!(!leases.renew(SyncId(1), 100));
        leases.grant(SyncId(2), replica(1), [3].into(), 9, 0, 100).unwrap();
        assert!(!leases.is_pinned(2) && leases.is_pinned(3));
        for other in 2..=LEASES_MAX as u128 {
            leases.grant(SyncId(other + 1), replica(other), [4].into(), 9, 0, 100).unwrap();
        }
        assert_eq!(leases.grant(SyncId(99), replica(99), [5].into(), 9, 0, 100), Err(TooManyLeases));
        leases.release(SyncId(2));
        leases.grant(SyncId(99), replica(99), [5].into(), 9, 0, 100).unwrap();
        leases.release_all_of(&replica(99));
        assert!(!leases.is_pinned(5) && !leases.is_pinned(3));
    }
}
