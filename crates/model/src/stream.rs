//! Two nodes and the streams between them, frame by frame.
//!
//! What is production code: `Primary`, `SourceSession`, `SinkSession`. The election is a register: whoever is in the recorded set
//! may take over at any time, and the one that led need not hear of it; a proposal may be recorded and its answer be lost.
//!
//! A connection delivers in order until it breaks; then what was under way is lost, and each end notices when it likes. Heartbeats
//! and the ends that they bring are left out: a connection may break at any time instead. So are bulk synchronisation, data files
//! beyond the first, and windows that fill up.

mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use stateright::{Model, Property};

use crate::Mutation;
use crate::invariant::{Invariant, invariants};
pub use world::StreamWorld;

const NODES: usize = 2;

/// How much may happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StreamBounds {
    /// Reigns, with the first one.
    pub epochs: u8,
    /// Writes of clients.
    pub writes: u8,
    /// Crashes of nodes.
    pub crashes: u8,
    /// Connections that break while both ends are there.
    pub cuts: u8,
    /// Connections that are made.
    pub dials: u8,
    /// Answers to proposals that are lost.
    pub unknowns: u8,
    /// Changes of the in-sync set that primaries propose.
    pub changes: u8,
}

/// The model.
#[derive(Clone, Debug)]
pub struct StreamModel {
    /// How much may happen.
    pub bounds: StreamBounds,
    /// What is broken.
    pub mutation: Option<Mutation>,
    timing: kahawai_replication::Timing,
}

/// Something that happens.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum StreamAction {
    /// A client writes.
    Write { primary: usize },
    /// What was written is flushed.
    Flush { node: usize },
    /// A node connects to one that leads, or believes to.
    Dial { replica: usize },
    /// The next frame arrives.
    Deliver { connection: usize, to_primary: bool },
    /// The next batch is sent.
    Feed { connection: usize },
    /// A connection breaks.
    Cut { connection: usize },
    /// An end of a connection notices that it is broken.
    Notice { connection: usize, at_primary: bool },
    /// Everything is overdue for the primary.
    Tick { primary: usize },
    /// A node takes over.
    TakeOver { node: usize },
    /// A primary hears that it is none.
    Hear { node: usize },
    /// A proposal reaches the record, and the answer the primary.
    Decide { primary: usize },
    /// A proposal reaches the record, and the answer is lost.
    LoseAnswer { primary: usize },
    /// A process dies, so much of what it had not flushed remains, and another process starts.
    Crash { node: usize, kept: usize },
}

impl StreamModel {
    /// What a test has time for.
    pub fn small() -> Self {
        let bounds =
            StreamBounds { epochs: 2, writes: 1, crashes: 1, cuts: 1, dials: 2, unknowns: 0, changes: 1 };
        Self::new(bounds, None)
    }

    /// What takes a while.
    pub fn full() -> Self {
        let bounds =
            StreamBounds { epochs: 3, writes: 1, crashes: 1, cuts: 1, dials: 2, unknowns: 1, changes: 1 };
        Self::new(bounds, None)
    }

    /// A model of these bounds.
    pub fn new(bounds: StreamBounds, mutation: Option<Mutation>) -> Self {
        let timing = kahawai_replication::Timing {
            heartbeat_ms: 1,
            dead_ms: 1,
            reconnect_ms: 1,
            takeover_grace_ms: 1,
            evict_ms: 1,
            stable_ms: 0,
            backoff_ms_max: 0,
            in_sync_lag_bytes_max: u64::MAX,
            admission_lag_bytes_max: u64::MAX,
            stream_lag_bytes_max: u64::MAX,
            file_bytes_max: u32::MAX,
        };
        Self { bounds, mutation, timing }
    }
}

impl Model for StreamModel {
    type State = StreamWorld;
    type Action = StreamAction;

    fn init_states(&self) -> Vec<StreamWorld> {
        vec![StreamWorld::new(self)]
    }

    fn actions(&self, world: &StreamWorld, actions: &mut Vec<StreamAction>) {
        if world.broken.is_none() {
            world.actions(actions);
        }
    }

    fn next_state(&self, last: &StreamWorld, action: StreamAction) -> Option<StreamWorld> {
        let mut world = last.clone();
        let step = AssertUnwindSafe(|| world.act(self, &action));
        let outcome = catch_unwind(step).unwrap_or_else(|_| Err((Invariant::Panic, format!("{action:?}"))));
        world.broken = outcome.err();
        world.settle();
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = invariants!(Self:
            I1 "I1 an epoch has one primary and one marker",
            I3 "I3 equal position and epoch mean equal journals",
            I4 "I4 promises are kept",
            I5 "I5 a confirmation is flushed on the set, behind the own marker",
            I6 "I6 every member of the set has all that was confirmed",
            I9 "I9 confirmed histories are one, and grow",
            I10 "I10 committed, flushed, written",
            I11 "I11 nothing known to be confirmed is cut",
            I12 "I12 the set keeps the minimum and the primary",
            I13 "I13 both sets are waited for",
            Panic "no machine meets the impossible",
        );
        properties.extend([
            Property::sometimes("a second epoch confirms something", |_, world: &StreamWorld| {
                world.confirmed().iter().any(|batch| batch.epoch > 1 && !batch.is_marker())
            }),
            Property::sometimes("the last epoch confirms something", |model: &Self, world: &StreamWorld| {
                world.confirmed().iter().any(|batch| batch.epoch == model.bounds.epochs)
            }),
            Property::sometimes("a set shrinks", |_, world: &StreamWorld| world.set_size() < NODES),
            Property::sometimes("a tail is cut", |_, world: &StreamWorld| world.has_cut()),
            Property::sometimes("an old primary is fenced", |_, world: &StreamWorld| world.has_fenced()),
        ]);
        properties
    }
}
