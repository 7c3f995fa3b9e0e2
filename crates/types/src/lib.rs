//! The words that storage and cluster share: positions in the journal, epochs, identities.
//!
//! Plain values without behaviour beyond their own arithmetic. Rarely changed, so that a change elsewhere rebuilds little.

mod identity;
mod position;

pub use identity::{BootId, ClusterId, Epoch, NodeId, ReplicaId, StoreId};
pub use position::{Location, Lsn, ParseLocationError};

/// Milliseconds since the Unix epoch, as the JMS headers use them. A value, never read from a clock here.
pub type Millis = i64;
