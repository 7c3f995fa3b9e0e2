//! Data types of the HTTP API, shared by server and command line.
//!
//! What a node says of itself ([`Status`]), what it has stored of its cluster's record ([`StoredRecord`]), what it can be told
//! ([`ClusterCommand`]), and how it answers ([`CommandResult`], [`ApiError`]). Field names are the JSON's; positions are texts like `12:3456`, times are milliseconds since the Unix epoch
//! by the node's clock. A reader ignores what it does not know and puts a default for what is missing, so that an older
//! command line reads a newer node and the other way round; a command with an unknown field is refused instead.

mod command;
mod position;
mod status;
mod stored;

pub use command::{ApiError, ClusterCommand, CommandResult, ParseCommandError, RecordText};
pub use status::{
    BrokerStatus, Connector, DamagedFile, DestinationKind, DestinationStatus, ElectionStatus, Histogram,
    JournalStatus, Member, Presence, PrimaryStatus, ReplicaStatus, Role, RoleChange, Status, Suspension,
    SyncProgress,
};
pub use stored::StoredRecord;
