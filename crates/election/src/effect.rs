use kahawai_types::{Epoch, NodeId};

use crate::provider::{Fence, Revision};
use crate::record::{ClusterRecord, PrimaryRef, REMOVED_MAX};
use crate::status::Status;

/// What to do, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Read the record.
    Read,
    /// Read who is present.
    ReadPresence,
    /// Make the record.
    Create {
        /// Comes back with the outcome.
        op: u128,
        /// The record's bytes.
        record: Vec<u8>,
    },
    /// Replace the record.
    Cas {
        /// Comes back with the outcome.
        op: u128,
        /// At which revision.
        expected: Revision,
        /// The record's bytes.
        record: Vec<u8>,
        /// Under which grant.
        fence: Option<Fence>,
    },
    /// Ask for the grant.
    Campaign {
        /// Comes back with the outcome.
        id: u64,
    },
    /// Give the grant back, or leave the queue.
    Resign,
    /// Say this about us.
    Publish(Vec<u8>),
    /// Keep these bytes as the newest record seen, for [`Elector::new`](crate::Elector::new) after a restart.
    Save(Vec<u8>),
    /// Lead: promise the epoch durably, write its marker, serve.
    Lead {
        /// Under which epoch.
        epoch: Epoch,
        /// As it was written.
        record: Box<ClusterRecord>,
        /// An operator accepted that acknowledged writes may be lost; the marker says so.
        unclean: bool,
    },
    /// Do not lead. If there is a primary, replicate from it.
    Follow {
        /// The record's epoch.
        epoch: Epoch,
        /// Who leads, unless nobody does.
        primary: Option<PrimaryRef>,
    },
    /// Close the gate now, then everything else that was led; then tell the elector `SteppedDown`.
    StepDown(StepDownReason),
    /// What the record says now, after a write of ours was resolved or somebody else's was seen. Until this comes, commits
    /// must satisfy both the old and the proposed set.
    Changed(Box<ClusterRecord>),
    /// What became of a request.
    Answer {
        /// Which.
        id: u64,
        /// Applied, or why not.
        outcome: Result<(), Refusal>,
    },
    /// What the elector does or waits for, if that is something new.
    Status(Status),
}

/// Why a primary stops.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StepDownReason {
    /// The session could have ended.
    #[error("the lease ran out before the election service renewed it")]
    Deadline,
    /// The session ended.
    #[error("the session with the election service ended")]
    SessionLost,
    /// The grant is gone.
    #[error("the grant was lost")]
    GrantLost,
    /// The record does not say any more that this process leads.
    #[error("the cluster record names another primary, epoch or in-sync set (epoch {0})")]
    Superseded(Epoch),
    /// The record is gone or older than before.
    #[error("{0}")]
    StateLost(String),
    /// A peer has promised a higher epoch.
    #[error("a peer has promised epoch {0}")]
    Fenced(Epoch),
    /// The marker was not committed in time, and another node could try.
    #[error("the new epoch could not be committed in time")]
    NotRecovered,
    /// The disk.
    #[error("the journal could not be written")]
    StorageFailed,
    /// The disk, which may come back.
    #[error("this node's disk flushes nothing, and a replica's does")]
    DiskStalled,
    /// Somebody asked for it.
    #[error("asked to step down")]
    Asked,
}

/// Why a request was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Only the primary does that.
    #[error("this node does not lead")]
    NotLeading,
    /// The primary does not do that.
    #[error("this node leads")]
    Leading,
    /// Somebody else wrote first. May be asked again.
    #[error("the record was changed by somebody else first")]
    Conflict,
    /// This node stopped leading before the outcome was known.
    #[error("this node stopped leading before the outcome was known")]
    SteppedDown,
    /// Too many are waiting.
    #[error("too many changes are waiting")]
    Busy,
    /// The service did not grant it.
    #[error("the election service did not grant it: {0}")]
    NotGranted(String),
    /// The set lacks this node.
    #[error("the in-sync set must hold the primary")]
    WithoutPrimary,
    /// The set is too small.
    #[error("an in-sync set of {size} is below minimumReplicas + 1 = {required}")]
    TooSmall {
        /// Members.
        size: usize,
        /// At least.
        required: u64,
    },
    /// An operator has taken it out.
    #[error("{0} was removed from the cluster")]
    Removed(NodeId),
    /// As many as are remembered.
    #[error(
        "{REMOVED_MAX} removed nodes are remembered, and no more; let those in again that cannot come back anyway"
    )]
    TooManyRemoved,
    /// The node is not in the in-sync set.
    #[error("{0} is not in the in-sync set")]
    NotInSync(NodeId),
    /// The typed identity is another cluster's.
    #[error("that is not the id of this cluster")]
    WrongCluster,
    /// This node's store cannot be led with.
    #[error("{0}")]
    Unusable(String),
    /// The record is there, and not older than what was seen.
    #[error("the election state is not lost")]
    NotLost,
    /// The offered record is older than one that this node has seen.
    #[error("this node has seen a newer record")]
    OldRecord,
    /// The next epoch could not be written in a record.
    #[error("{0} is too high for an epoch")]
    TooHigh(Epoch),
    /// There is no record to change.
    #[error("there is no cluster record to start from")]
    NoRecord,
}
