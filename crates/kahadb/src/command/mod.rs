//! Store commands: what the user records of a journal say (`kahadb-format.md` §4).
//!
//! ```text
//! payload of a user record:  | type: u8 | length: varint | protobuf message, `length` bytes |   nothing follows
//! ```
//!
//! [`decode`] gives views into the payload. The `encode_*` functions append a payload in exactly upstream's form (field
//! order, minimal varints, which fields are always written), so a record that is read and written again stays the same
//! bytes. We add no field and no type: upstream's reader does not skip what it does not know.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use bytes::Bytes;
pub(crate) use decode::subscription as decode_subscription;
pub use decode::{CommandError, command_type, decode};
pub use encode::{
    AddHeader, MessageKey, RemoveHeader, encode, encode_add, encode_commit, encode_prepare, encode_remove,
    encode_remove_destination, encode_rollback, encode_subscription, encode_trace, encode_update,
};
use kahawai_message::{Destination, Millis, Text, TransactionId};

/// What one user record does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Type 0. No effect; `LOADED <date>` at each start, without text by the periodic sync, and our own stamps.
    Trace {
        /// The text, if the field is there.
        text: Option<Text>,
    },
    /// Type 1. A message is stored.
    AddMessage(AddMessage),
    /// Type 2. A message is acknowledged, by its queue's consumer or by one durable subscription.
    RemoveMessage(RemoveMessage),
    /// Type 3. The transaction's outcome is up to its coordinator from here on.
    Prepare(TransactionId),
    /// Type 4. The transaction's operations take effect, here.
    Commit(TransactionId),
    /// Type 5. The transaction's operations are void.
    Rollback(TransactionId),
    /// Type 6. All state of a destination is dropped.
    RemoveDestination(Destination),
    /// Type 7. A durable subscription is made, changed or removed.
    Subscription(Subscription),
    /// Type 8. Java serialization of the producer audit; a hint that replay recomputes.
    ProducerAudit(Bytes),
    /// Type 9. Java serialization of the ack map (see [`crate::javaser`]); a hint that replay recomputes.
    AckMessageFileMap(Bytes),
    /// Type 10. A stored message is replaced, keeping its sequence.
    UpdateMessage(AddMessage),
    /// Type 11. Scheduler store.
    AddScheduledJob(AddScheduledJob),
    /// Type 12. Scheduler store.
    RescheduleJob(RescheduleJob),
    /// Type 13. Scheduler store.
    RemoveScheduledJob(RemoveScheduledJob),
    /// Type 14. Scheduler store.
    RemoveScheduledJobs(RemoveScheduledJobs),
    /// Type 15. Scheduler store.
    DestroyScheduler {
        /// Whose jobs go.
        scheduler: Text,
    },
    /// Type 16. First record of a file made by ack compaction.
    RewrittenDataFile(RewrittenDataFile),
}

impl Command {
    /// The number that the record begins with.
    pub const fn type_byte(&self) -> u8 {
        match self {
            Self::Trace { .. } => 0,
            Self::AddMessage(_) => 1,
            Self::RemoveMessage(_) => 2,
            Self::Prepare(_) => 3,
            Self::Commit(_) => 4,
            Self::Rollback(_) => 5,
            Self::RemoveDestination(_) => 6,
            Self::Subscription(_) => 7,
            Self::ProducerAudit(_) => 8,
            Self::AckMessageFileMap(_) => 9,
            Self::UpdateMessage(_) => 10,
            Self::AddScheduledJob(_) => 11,
            Self::RescheduleJob(_) => 12,
            Self::RemoveScheduledJob(_) => 13,
            Self::RemoveScheduledJobs(_) => 14,
            Self::DestroyScheduler { .. } => 15,
            Self::RewrittenDataFile(_) => 16,
        }
    }

    /// A word for listings.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Trace { .. } => "trace",
            Self::AddMessage(_) => "add",
            Self::RemoveMessage(_) => "remove",
            Self::Prepare(_) => "prepare",
            Self::Commit(_) => "commit",
            Self::Rollback(_) => "rollback",
            Self::RemoveDestination(_) => "remove-destination",
            Self::Subscription(_) => "subscription",
            Self::ProducerAudit(_) => "producer-audit",
            Self::AckMessageFileMap(_) => "ack-file-map",
            Self::UpdateMessage(_) => "update",
            Self::AddScheduledJob(_) => "add-job",
            Self::RescheduleJob(_) => "reschedule-job",
            Self::RemoveScheduledJob(_) => "remove-job",
            Self::RemoveScheduledJobs(_) => "remove-jobs",
            Self::DestroyScheduler { .. } => "destroy-scheduler",
            Self::RewrittenDataFile(_) => "rewritten-data-file",
        }
    }
}

/// A message and where it belongs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddMessage {
    /// Present = takes effect with that transaction's commit.
    pub transaction: Option<TransactionId>,
    /// Its destination.
    pub destination: Destination,
    /// Producer key, `connection:session:value:sequence`; compared as an opaque text.
    pub message_key: Text,
    /// The stored OpenWire message, size prefix included.
    pub message: Bytes,
    /// Priority, 0 to 9 from sane writers.
    pub priority: i32,
    /// Whether the priority counts: the destination's policy at the time of the write.
    pub priority_supported: bool,
}

/// An acknowledgement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoveMessage {
    /// Present = takes effect with that transaction's commit.
    pub transaction: Option<TransactionId>,
    /// The message's destination.
    pub destination: Destination,
    /// Producer key of the acknowledged message.
    pub message_key: Text,
    /// The OpenWire MessageAck, size prefix included. Empty = "unmatched": dropped for this subscription by its selector
    /// or by noLocal. `None` = the field is missing, which no writer does.
    pub ack: Option<Bytes>,
    /// Topic only: whose acknowledgement, `clientId:subscriptionName`; cannot be split.
    pub subscription_key: Option<Text>,
}

/// A durable subscription's creation, or its removal if there is no `info`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subscription {
    /// The concrete topic.
    pub destination: Destination,
    /// `clientId:subscriptionName`; cannot be split, take the parts from `info`.
    pub subscription_key: Text,
    /// Begins with what others have pending. Written with `info` only.
    pub retroactive: bool,
    /// The OpenWire SubscriptionInfo, size prefix included. `None` = the subscription is removed.
    pub info: Option<Bytes>,
}

/// A scheduled message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddScheduledJob {
    /// Name of the scheduler, in practice `JMS`.
    pub scheduler: Text,
    /// Identity of the job in its scheduler.
    pub job_id: Text,
    /// When it was scheduled, rounded to half seconds.
    pub start_ms: Millis,
    /// Cron entry; empty = none.
    pub cron_entry: Text,
    /// Wait before the first time.
    pub delay_ms: Millis,
    /// Wait between repetitions.
    pub period_ms: Millis,
    /// Repetitions left; -1 = for ever.
    pub repeat: i32,
    /// The stored OpenWire message.
    pub payload: Bytes,
    /// The time that the job is filed under.
    pub next_execution_ms: Millis,
}

/// A job moves to its next time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RescheduleJob {
    /// Name of the scheduler.
    pub scheduler: Text,
    /// Which job.
    pub job_id: Text,
    /// The time it was filed under.
    pub execution_ms: Millis,
    /// The time it is filed under from now on.
    pub next_execution_ms: Millis,
    /// How often this happened.
    pub rescheduled_count: i32,
}

/// A job is done or cancelled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoveScheduledJob {
    /// Name of the scheduler.
    pub scheduler: Text,
    /// Which job.
    pub job_id: Text,
    /// The time it is filed under; `None` (-1 on disk) = wherever it is.
    pub next_execution_ms: Option<Millis>,
}

/// All jobs of a time window are cancelled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoveScheduledJobs {
    /// Name of the scheduler.
    pub scheduler: Text,
    /// First next execution time that is meant.
    pub start_ms: Millis,
    /// Last next execution time that is meant.
    pub last_ms: Millis,
}

/// Marks a file that ack compaction made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RewrittenDataFile {
    /// The file whose acknowledgements and commits were copied.
    pub source_file: u32,
    /// 1 = ack compaction.
    pub rewrite_type: i32,
    /// Upstream's replay skips the rest of the file if the source still exists and this is not `Some(false)`, and so
    /// loses what was appended (defect D1). Not skipping is safe.
    pub skip_if_source_exists: Option<bool>,
}
