use std::fmt;

use kahawai_types::{Epoch, NodeId, ReplicaId};

use crate::record::Phase;

/// What the elector does or waits for, for the log and the status page.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// The service has not answered yet.
    Connecting,
    /// The service does not answer any more.
    Unreachable(String),
    /// There is no record, and a node with data should make it.
    AwaitingCreation,
    /// The record is being made.
    Creating,
    /// The record is gone, or older than one that was seen: no election until an operator restores it.
    StateLost(String),
    /// The record is not for us.
    Refused(String),
    /// Somebody leads.
    Following {
        /// Who.
        primary: NodeId,
        /// Under which epoch.
        epoch: Epoch,
    },
    /// Nobody leads, and only these may.
    AwaitingInSync(Vec<ReplicaId>),
    /// Nobody leads, and our store cannot.
    Unusable(String),
    /// Nobody leads; others may try before us, or the service has not said yet that the grant is vacant.
    AwaitingTurn,
    /// The grant is asked for.
    Queued,
    /// The grant is ours, the new epoch is being written.
    Elected,
    /// We lead.
    Leading {
        /// Under which epoch.
        epoch: Epoch,
        /// How far we are.
        phase: Phase,
    },
    /// We stop leading.
    SteppingDown,
    /// The disk failed: this process does not lead again.
    StorageFailed,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("waiting for the election service"),
            Self::Unreachable(why) => f.write_str(why),
            Self::AwaitingCreation => {
                f.write_str("no cluster record yet; waiting for a node with data to make it")
            }
            Self::Creating => f.write_str("making the cluster record"),
            Self::StateLost(why) => {
                write!(f, "ELECTION_STATE_LOST: {why}; to put it back: kahawai cluster restore-record")
            }
            Self::Refused(why) => write!(f, "the cluster record is not for this node: {why}"),
            Self::Following { primary, epoch } => write!(f, "{primary} leads in epoch {epoch}"),
            Self::AwaitingInSync(replicas) => {
                f.write_str("nobody leads; this node is not in sync and waits for one of ")?;
                for (i, replica) in replicas.iter().enumerate() {
                    write!(f, "{}{replica}", if i == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::Unusable(why) => write!(f, "nobody leads; this node cannot: {why}"),
            Self::AwaitingTurn => f.write_str("nobody leads; waiting for our turn"),
            Self::Queued => f.write_str("asking for the grant"),
            Self::Elected => f.write_str("granted; writing the new epoch"),
            Self::Leading { epoch, phase } => write!(f, "leading in epoch {epoch}, {phase}"),
            Self::SteppingDown => f.write_str("stepping down"),
            Self::StorageFailed => {
                f.write_str("the journal could not be written; this process does not lead again")
            }
        }
    }
}
