//! Who may be primary and under which epoch, decided over one versioned cluster record.
//!
//! Nothing here does I/O, reads a clock or knows a runtime. Reading order: [`ClusterRecord`] (what the cluster agrees on) and
//! its JSON; [`Presence`] (what processes say about themselves); [`Provider`] (what an election service must offer);
//! [`Elector`], the machine that decides for one process, with its [`Event`]s and [`Effect`]s. [`single`] is the service of a node alone, [`memory`] one in this
//! process, for tests; [`conformance`] is what every provider must pass.
//!
//! What holds, whatever the service, the network and the other processes do:
//!
//! - An epoch has one primary: a new one is only written by compare-and-set, under a grant that the service checks in the
//!   same step, and raises the epoch.
//! - Who leads is in the recorded in-sync set, with the very store that it leads with. Only an operator's explicit command
//!   makes an exception, and the record counts those.
//! - An outcome that is not known is neither success nor failure: the same write is repeated until it is one of them.
//! - A record that is missing, or older than one that this node has seen, ends all elections here until an operator has
//!   restored it (`ELECTION_STATE_LOST`).
//! - Presence, ranks and delays only say who tries first. Nothing that matters rests on them, nor on any clock.

pub mod conformance;
mod effect;
mod elector;
mod event;
mod format;
pub mod memory;
mod presence;
mod provider;
mod record;
mod settings;
pub mod single;
mod status;

pub use effect::{Effect, Refusal, StepDownReason};
pub use elector::Elector;
pub use event::{Condition, Event, Local, Request};
pub use format::{FormatError, PRESENCE_BYTES_MAX, RECORD_BYTES_MAX};
pub use presence::{Presence, PresenceState};
pub use provider::{
    BoxFuture, Capabilities, CasResult, Fence, Provider, ProviderError, ProviderEvent, ReadResult, Revision,
};
pub use record::{Age, ClusterRecord, Member, Phase, PrimaryRef, REMOVED_MAX};
pub use settings::{Settings, Timing};
pub use status::Status;
