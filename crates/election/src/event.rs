use std::collections::BTreeSet;

use kahawai_types::{ClusterId, Epoch, Lsn, Millis, NodeId, ReplicaId};

use crate::provider::{CasResult, Fence, ProviderError, ProviderEvent, ReadResult};
use crate::record::{ClusterRecord, Member};

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The provider reports; handed on as it came.
    Provider(ProviderEvent),
    /// The answer to [`Effect::Read`](crate::Effect::Read): exactly one for each.
    Record(ReadResult),
    /// The answer to [`Effect::ReadPresence`](crate::Effect::ReadPresence): exactly one for each.
    Presence(Result<Vec<Vec<u8>>, ProviderError>),
    /// How a campaign ended.
    Campaign {
        /// Which.
        id: u64,
        /// The grant, or why there is none.
        result: Result<Fence, ProviderError>,
    },
    /// What became of a write.
    Written {
        /// Which.
        op: u128,
        /// What.
        result: CasResult,
    },
    /// The store has changed. Told as often as the node likes; the elector publishes with moderation.
    Local(Local),
    /// All that was led is closed, and the store is a replica's again. Answers `StepDown`.
    SteppedDown(Local),
    /// A write or flush did not succeed. This process never leads again.
    StorageFailed,
    /// A flush does not come back while a replica's do. Somebody else is to lead, at once: without a word in the record, whose
    /// copy this node could not keep.
    DiskStalled,
    /// A peer has promised this epoch.
    PeerEpoch(Epoch),
    /// Somebody wants something of the record.
    Request {
        /// Comes back with the answer.
        id: u64,
        /// What.
        request: Request,
    },
    /// Time has passed.
    Tick {
        /// What the provider's `deadline` says of [`Elector::grant`](crate::Elector::grant); any, without one.
        deadline: Millis,
    },
}

/// What the elector has to know about this node's store.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Local {
    /// The cluster that the store belongs to. Until it has data, any will do.
    pub cluster_id: ClusterId,
    /// No lower epoch is served here any more.
    pub promised: Epoch,
    /// The newest epoch in the journal.
    pub last_epoch: Epoch,
    /// Where the journal ends.
    pub end: Lsn,
    /// Whether it never held anything.
    pub journal_is_empty: bool,
    /// Whether it can be led with.
    pub condition: Condition,
}

/// Whether a store can be led with.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Condition {
    /// Yes.
    Usable,
    /// Its files are being replaced.
    Syncing,
    /// It is damaged.
    Faulted(String),
    /// ActiveMQ wrote to it after it had become a member of the cluster.
    ForeignTail,
}

/// A change of the record. Only the primary's elector carries them out, except where noted.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Request {
    /// Another in-sync set: with us, and not below the minimum unless it only grows. The answer is also
    /// [`Effect::Changed`](crate::Effect::Changed), whether applied or not.
    ///
    /// For the machine that decides about commits, and for nobody else: it waits for the set that it proposes and for the one
    /// that is recorded, and would not know of a third.
    InSync(BTreeSet<ReplicaId>),
    /// The in-sync set without these, whatever else it is by then: not below the minimum, and with us. What an operator may ask,
    /// who does not know which proposal of the primary's is under way. A member that is one of them is none any more.
    Without(BTreeSet<ReplicaId>),
    /// The epoch's marker is committed.
    Activate {
        /// Where it begins.
        start: Lsn,
        /// The chain before it.
        chain: u64,
    },
    /// Another `minimumReplicas`.
    SetMinimum(u32),
    /// A node has joined, or moved.
    PutMember {
        /// Its name.
        node: NodeId,
        /// What there is to know.
        member: Member,
    },
    /// A node is gone for good, with all its stores: out of the in-sync set, as by [`Request::Without`], out of the members, and
    /// nobody lets it in again before [`Request::AllowMember`].
    RemoveMember(NodeId),
    /// A node that was removed may come back.
    AllowMember(NodeId),
    /// Lead no longer.
    StepDown {
        /// Who shall lead next; somebody in the in-sync set.
        successor: Option<NodeId>,
    },
    /// Lead although others may have acknowledged writes that this node lacks: the only way to lose any. For a node that
    /// does not lead. Waits until no one else can hold the grant.
    ForcePrimary {
        /// What the operator typed.
        cluster_id: ClusterId,
    },
    /// Put back a record that the service has lost. For a node in `ELECTION_STATE_LOST` that is in the record's in-sync
    /// set.
    RestoreRecord {
        /// The newest copy that any member has.
        record: Box<ClusterRecord>,
        /// The highest epoch that any member has promised.
        promised: Epoch,
    },
}
