//! Primary and replica machines: in-sync set, commit position, log matching, catch-up, bulk synchronisation.
//!
//! Nothing here does I/O, reads a clock or makes random numbers: events go in with the time, effects come out and are carried
//! out in order. Why the parts are cut like this: `docs/adr/0006-cluster-machines.md`.
//!
//! ```text
//!          journal            Primary: commit position, in-sync set  --> proposals to the election
//!             |                  ^ flushed here, flushed there
//!             v                  |
//!   Ring --> SourceSession  <==stream==>  SinkSession --> journal of the replica
//!   files -----^    (decide: where the journals part)
//!             files of the primary  <==transfers==>  Transfers, Resume --> incoming files of the replica
//! ```
//!
//! Modules, in reading order: `timing` (when somebody is slow, dead or caught up); `primary` with `member` ([`Primary`]: what is
//! committed, who is in sync); `matching` ([`decide`]: how a replica attaches); `session`, `source` and `sink` (the two ends of a
//! stream); `ring` (recent batches); `sync` (what to fetch, from where to go on, for how long the primary keeps it).
//!
//! What holds:
//!
//! - The commit position moves over what we and every member of the recorded set have flushed, and of a proposed set while its
//!   proposal has no answer; not before our own marker is on all of them; not while the set is below the minimum.
//! - We never make the set smaller than the minimum and ourselves, and nobody joins it without everything that may have been
//!   confirmed.
//! - A replica counts once: one live session for each store, and no session outlives its epoch or its process.
//! - An acknowledgement leaves after the flush that it rests on, for a reign that is promised.
//! - Nothing below a known commit position is dropped, unless an operator made a node lead that lacks it.

mod matching;
mod member;
mod primary;
mod ring;
mod session;
mod sink;
mod source;
pub mod sync;
mod timing;

pub use matching::{ChainAt, Common, EpochHistory, HistoryError, Match, PrimaryLog, ReplicaLog, decide};
#[doc(hidden)]
pub use primary::Rule;
pub use primary::{
    Departure, Primary, PrimaryEffect, PrimaryEvent, PrimaryStatus, REPLICAS_MAX, Refusal, ReplicaStatus,
    SessionId,
};
pub use ring::{Next, Ring, RingBatch, Run};
pub use session::{SessionEnd, Vitals};
pub use sink::{LocalLog, SinkEffect, SinkEvent, SinkOptions, SinkSession};
pub use source::{SourceEffect, SourceEvent, SourceOptions, SourceSession};
pub use timing::Timing;
