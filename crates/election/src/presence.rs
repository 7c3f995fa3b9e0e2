use kahawai_types::{BootId, Epoch, Lsn, NodeId, ReplicaId, StoreId};

/// What a running process says about itself. It goes when the process's session with the service ends.
///
/// A hint for who tries first, and for the status page: no decision about safety reads it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Presence {
    /// The node's name.
    pub node: NodeId,
    /// Its data directory.
    pub store: StoreId,
    /// Its process.
    pub boot: BootId,
    /// Where peers dial it, `kdbr://host:port`.
    pub address: String,
    /// Where clients connect while it leads.
    pub clients: Vec<String>,
    /// The newest epoch in its journal.
    pub last_epoch: Epoch,
    /// Where its journal ended a short while ago.
    pub end: Lsn,
    /// What it does.
    pub state: PresenceState,
    /// Among equal logs the higher one leads.
    pub priority: i32,
}

impl Presence {
    /// The copy of the journal that it holds.
    pub fn replica(&self) -> ReplicaId {
        ReplicaId { node: self.node.clone(), store: self.store }
    }
}

/// What a process does, as far as others care.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PresenceState {
    /// It leads.
    Leading,
    /// It could lead if it is in the in-sync set.
    Following,
    /// Its journal is being replaced.
    Syncing,
    /// Its journal is damaged, or was written by ActiveMQ: it cannot lead.
    Unusable,
}
