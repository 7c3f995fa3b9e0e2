//! The broker core.
mod broker;
mod connection;
mod consumer;
mod dead_letter;
mod effect;
mod fields;
mod hash;
mod limits;
mod line;
mod memory;
mod pattern;
mod place;
mod producers;
mod slab;
#[cfg(test)]
mod testing;

pub use broker::Broker;
pub use broker::{ConsumerStatus, DestinationStatus, LineStatus, Status};
pub use dead_letter::{DELIVERY_FAILURE_CAUSE, ORIGINAL_EXPIRATION};
pub use effect::{
    BlockReason, Effect, LoadRequest, LoadResult, Loaded, Outcome, ScanRequest, ScanResult, Verdict,
};
pub use fields::MessageFields;
pub use limits::{Limits, Options};
pub use place::Counts;
pub use slab::ConnectionKey;
