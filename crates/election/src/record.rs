use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use kahawai_types::{BootId, ClusterId, Epoch, Lsn, NodeId, ReplicaId, StoreId};

/// A process that leads, or led.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PrimaryRef {
    /// The node's name.
    pub node: NodeId,
    /// Its data directory.
    pub store: StoreId,
    /// Its process. A restarted process never continues an epoch.
    pub boot: BootId,
    /// Where replicas dial, `kdbr://host:port`.
    pub address: String,
    /// Where clients connect.
    pub clients: Vec<String>,
}

impl PrimaryRef {
    /// The copy of the journal that it leads with.
    pub fn replica(&self) -> ReplicaId {
        ReplicaId { node: self.node.clone(), store: self.store }
    }
}

/// How far the primary of the epoch has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    /// Its marker is not committed yet.
    Recovering,
    /// It serves.
    Active,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Recovering => "recovering",
            Self::Active => "active",
        })
    }
}

/// A node that has joined, whether it is there or not.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    /// Its newest data directory.
    pub store: StoreId,
    /// Where peers dial it, `kdbr://host:port`.
    pub address: String,
    /// Where clients connect while it leads.
    pub clients: Vec<String>,
    /// Among equal logs the higher one leads.
    pub priority: i32,
}

/// So many nodes that were taken out are remembered.
pub const REMOVED_MAX: usize = 256;

/// What the cluster agrees on, kept by the election service and changed by compare-and-set only.
///
/// Every write raises `version`, whoever makes it; `epoch` and `unclean_generation` never go back. `in_sync` is never
/// empty and holds the primary. Of an acknowledged write every member of `in_sync` has a copy, so that any of them may
/// lead.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClusterRecord {
    /// Made with the record.
    pub cluster_id: ClusterId,
    /// What all members may write.
    pub feature_level: u32,
    /// The last one issued.
    pub epoch: Epoch,
    /// Writes of this record so far, independent of how the service counts them.
    pub version: u64,
    /// Who leads in `epoch`; none if it has stepped down or was never chosen.
    pub primary: Option<PrimaryRef>,
    /// How far the primary has come.
    pub phase: Phase,
    /// Who takes part in commits and may lead.
    pub in_sync: BTreeSet<ReplicaId>,
    /// Copies besides the primary's own without which nothing is confirmed. The authority; settings only seed it.
    pub minimum_replicas: u32,
    /// Where the epoch's marker begins, and the chain before it; known once the phase is active.
    pub epoch_start: Option<(Lsn, u64)>,
    /// Who has joined.
    pub members: BTreeMap<NodeId, Member>,
    /// Whom an operator has taken out: never in the set nor a member again, before the operator lets it in. At most
    /// [`REMOVED_MAX`].
    pub removed: BTreeSet<NodeId>,
    /// How often an operator made a node lead that may lack acknowledged writes.
    pub unclean_generation: u64,
    /// Whom a planned switchover chose; the others hold back for a while.
    pub successor: Option<NodeId>,
    /// Which write made this version: by it a writer recognises its own after a lost reply.
    pub last_op: u128,
}

impl ClusterRecord {
    /// What a newer record has more of. A service that shows less than somebody saved was lost or rolled back.
    pub fn age(&self) -> Age {
        Age { unclean_generation: self.unclean_generation, epoch: self.epoch, version: self.version }
    }

    /// Whether `self` says that this process leads in this epoch.
    pub fn is_led_by(&self, replica: &ReplicaId, boot: BootId, epoch: Epoch) -> bool {
        self.epoch == epoch
            && self
                .primary
                .as_ref()
                .is_some_and(|p| p.boot == boot && p.node == replica.node && p.store == replica.store)
    }
}

/// Orders the records of one cluster by when they were written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Age {
    /// See [`ClusterRecord::unclean_generation`].
    pub unclean_generation: u64,
    /// See [`ClusterRecord::epoch`].
    pub epoch: Epoch,
    /// See [`ClusterRecord::version`].
    pub version: u64,
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}, epoch {}, version {}", self.unclean_generation, self.epoch, self.version)
    }
}
