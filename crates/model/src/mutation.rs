//! Rules that are broken, to see that somebody notices.

use kahawai_replication::Rule;

/// A rule that is broken, to see that somebody notices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// One of the primary's.
    Primary(Rule),
    /// A replica acknowledges what it has only received.
    AckBeforeFlush,
    /// A replica follows any reign.
    NoPromise,
    /// A proposal without an answer is taken for one that was refused.
    UnknownIsRefused,
    /// An operator's removal writes the set that the operator saw, less one.
    OperatorsSet,
    /// The service does not look at the grant.
    NoFence,
}
