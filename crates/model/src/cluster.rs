//! Three nodes with their electors and their primaries' machines, and one election service.
//!
//! What is production code: `Elector`, `Primary`, `decide`. What stands in for the rest, and what it leaves out:
//!
//! - Streams are abstract: the handshake is one step, a batch that is sent has arrived, acknowledgements are under way until they
//!   are delivered or lost. [`crate::stream`] has the sessions.
//! - The service answers reads at once. Writes are under way until it handles them; their answers may be lost, and a write whose
//!   writer was told so may still arrive any time later, even after its writer has died.
//! - Who hears of changes when is left open, and so is when a session ends. Ranks do not count: whoever may lead may be first.
//! - Time is one moment, at which everything happens, and a later one for ticks: then all that can be overdue is. So a time-out
//!   passes at any moment or not at all.

mod node;
mod service;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use stateright::{Model, Property};

use crate::Mutation;
use crate::invariant::{Invariant, invariants};
pub use world::World;

const NODES: usize = 3;

/// How much may happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Bounds {
    /// Reigns, with the first one.
    pub epochs: u8,
    /// Writes of clients.
    pub writes: u8,
    /// Crashes of nodes.
    pub crashes: u8,
    /// Changes of the in-sync set that primaries propose.
    pub changes: u8,
    /// Streams that break while both ends are there.
    pub cuts: u8,
    /// Sessions with the election service that end while their process lives.
    pub expiries: u8,
    /// Answers of the election service that are lost.
    pub unknowns: u8,
    /// Primaries that are asked to step down.
    pub hand_overs: u8,
    /// Replicas that an operator takes out of the set.
    pub removals: u8,
    /// Whether new primaries note in the record that their marker is committed.
    pub activations: bool,
}

/// What a cluster begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// So many nodes are in sync; the others are empty.
    pub in_sync: usize,
    /// Copies that are needed besides the primary's.
    pub minimum: u32,
}

/// The model.
#[derive(Clone, Debug)]
pub struct ClusterModel {
    /// How much may happen.
    pub bounds: Bounds,
    /// What clusters begin with.
    pub starts: Vec<Start>,
    /// What is broken.
    pub mutation: Option<Mutation>,
    replication: kahawai_replication::Timing,
    election: kahawai_election::Timing,
}

/// Something that happens.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Action {
    /// A client writes.
    Write { primary: usize },
    /// The next batch reaches a replica.
    Send { primary: usize, replica: usize },
    /// What was written is flushed.
    Flush { node: usize },
    /// An acknowledgement reaches the primary.
    Acknowledge { primary: usize, replica: usize },
    /// A replica attaches.
    Connect { primary: usize, replica: usize },
    /// The replica's end of a stream closes.
    Drop { replica: usize },
    /// The primary's end of a stream closes.
    Lose { primary: usize, replica: usize },
    /// Everything is overdue for the primary.
    Tick { primary: usize },
    /// A primary hears what is new at the service.
    Hear { node: usize },
    /// Everything is overdue for the elector.
    Retry { node: usize },
    /// A write reaches the service.
    Serve { write: usize },
    /// The answer to a write is lost.
    LoseAnswer { write: usize },
    /// Somebody gets the grant.
    Grant { waiting: usize },
    /// The session of who has the grant ends.
    Expire,
    /// A process dies, so much of what it had not flushed remains, and another process starts. One that stays down is like one
    /// that does nothing.
    Crash { node: usize, kept: usize },
    /// The primary is asked to step down.
    HandOver { primary: usize },
    /// An operator takes a replica out.
    Remove { primary: usize, replica: usize },
}

impl ClusterModel {
    /// What a test has time for: a change of the set, and epochs that end with a crash or without one.
    pub fn small() -> Self {
        let bounds = Bounds {
            epochs: 2,
            writes: 1,
            crashes: 1,
            changes: 1,
            cuts: 0,
            expiries: 1,
            unknowns: 0,
            hand_overs: 0,
            removals: 0,
            activations: false,
        };
        let (two, three) = (Start { in_sync: 2, minimum: 0 }, Start { in_sync: 3, minimum: 1 });
        Self::new(bounds, vec![two, three], None)
    }

    /// 3 epochs, 3 writes, 2 crashes, 1 change of the set.
    pub fn full() -> Self {
        let small = Self::small();
        let bounds = Bounds { epochs: 3, writes: 3, crashes: 2, expiries: 0, ..small.bounds };
        Self { bounds, ..small }
    }

    /// A model of these bounds.
    pub fn new(bounds: Bounds, starts: Vec<Start>, mutation: Option<Mutation>) -> Self {
        let replication = kahawai_replication::Timing {
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
        let election = kahawai_election::Timing {
            rank_step_ms: 0,
            empty_store_delay_ms: 0,
            switch_ms: 0,
            retry_ms: 1,
            publish_ms: 1,
            recover_ms: 1,
            hold_back_ms: 0,
        };
        Self { bounds, starts, mutation, replication, election }
    }
}

impl Model for ClusterModel {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        self.starts.iter().map(|start| World::new(self, *start)).collect()
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_none() {
            world.actions(self, actions);
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        let step = AssertUnwindSafe(|| {
            world.act(self, &action)?;
            world.wake_the_deposed(self)
        });
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
            I14 "I14 who is not in the set does not lead",
            Panic "no machine meets the impossible",
        );
        properties.extend([
            Property::sometimes("a second epoch confirms something", |_, world: &World| {
                world.ghost.confirmed.iter().any(|batch| batch.epoch > 1 && !batch.is_marker())
            }),
            Property::sometimes("the last epoch confirms something", |model: &Self, world: &World| {
                let last = model.bounds.epochs;
                world.ghost.confirmed.iter().any(|batch| batch.epoch == last)
            }),
            Property::sometimes("a set shrinks", |_, world: &World| {
                world.service.record.in_sync.len() < world.ghost.in_sync
            }),
            Property::sometimes("a set grows", |_, world: &World| {
                world.service.record.in_sync.len() > world.ghost.in_sync
            }),
            Property::sometimes("a tail is cut", |_, world: &World| world.ghost.has_cut),
            Property::sometimes("two believe that they lead", |_, world: &World| {
                world.nodes.iter().filter(|node| node.leader().is_some()).count() > 1
            }),
        ]);
        properties
    }
}

impl World {
    fn actions(&self, model: &ClusterModel, actions: &mut Vec<Action>) {
        let left = &self.left;
        for (write, flying) in self.service.writes.iter().enumerate() {
            if flying.epoch <= left.epochs.into() {
                actions.push(Action::Serve { write });
            }
            if flying.is_awaited && left.unknowns > 0 {
                actions.push(Action::LoseAnswer { write });
            }
        }
        if let Some(held) = self.service.holder
            && (!self.is_alive(held.client) || left.expiries > 0)
        {
            actions.push(Action::Expire);
        }
        if self.service.holder.is_none() && self.service.record.epoch.0 < left.epochs.into() {
            actions.extend((0..self.service.waiting.len()).map(|waiting| Action::Grant { waiting }));
        }
        for (node, this) in self.nodes.iter().enumerate() {
            let Some(process) = &this.process else { continue };
            if process.has_news {
                actions.push(Action::Hear { node });
            }
            if process.elector.wake_at().is_some_and(|at| at <= 1) {
                actions.push(Action::Retry { node });
            }
            if this.unflushed() > 0 && !this.is_idle() {
                actions.push(Action::Flush { node });
            }
            // Nothing is lost with a process that does nothing.
            let is_holder = self.service.holder.is_some_and(|place| place.client == self.client(node));
            if left.crashes > 0 && (!this.is_idle() || is_holder) {
                actions.extend((0..=this.unflushed()).map(|kept| Action::Crash { node, kept }));
            }
            if left.cuts > 0 && this.following().is_some() {
                actions.push(Action::Drop { replica: node });
            }
            if this.leader().is_some() {
                self.actions_of_leader(model, node, actions);
            }
        }
    }

    fn actions_of_leader(&self, model: &ClusterModel, primary: usize, actions: &mut Vec<Action>) {
        let left = &self.left;
        let Some(leader) = self.nodes[primary].leader() else { return };
        let is_rightful = leader.epoch == self.service.record.epoch;
        for replica in (0..NODES).filter(|replica| *replica != primary) {
            if leader.feeding[replica].is_some_and(|feeding| feeding.ack.is_some()) {
                actions.push(Action::Acknowledge { primary, replica });
            }
            if is_rightful || model.mutation == Some(Mutation::NoPromise) {
                self.actions_of_stream(primary, replica, actions);
            }
        }
        // What a deposed primary does besides confirming it might have done before: its proposals come to nothing, and nobody
        // but it and its replicas takes part in the rest.
        if !is_rightful {
            return;
        }
        if left.changes > 0 {
            actions.push(Action::Tick { primary });
        }
        if left.writes > 0 {
            actions.push(Action::Write { primary });
        }
        if left.hand_overs > 0 {
            actions.push(Action::HandOver { primary });
        }
        if left.removals > 0 {
            let replicas = (0..NODES).filter(|replica| *replica != primary);
            actions.extend(replicas.map(|replica| Action::Remove { primary, replica }));
        }
    }

    fn actions_of_stream(&self, primary: usize, replica: usize, actions: &mut Vec<Action>) {
        let Some(leader) = self.nodes[primary].leader() else { return };
        if leader.feeding[replica].is_some() && (self.left.cuts > 0 || !self.is_intact(primary, replica)) {
            actions.push(Action::Lose { primary, replica });
        }
        if self.can_send(primary, replica) {
            actions.push(Action::Send { primary, replica });
        }
        let is_free = match self.nodes[replica].following() {
            Some(following) => following.epoch < leader.epoch,
            None => self.nodes[replica].is_idle(),
        };
        if is_free && leader.feeding[replica].is_none() {
            actions.push(Action::Connect { primary, replica });
        }
    }

    fn act(&mut self, model: &ClusterModel, action: &Action) -> crate::invariant::Outcome {
        match *action {
            Action::Write { primary } => {
                self.left.writes -= 1;
                self.write(model, primary)
            }
            Action::Send { primary, replica } => self.send(model, primary, replica),
            Action::Flush { node } => self.flush(model, node),
            Action::Acknowledge { primary, replica } => self.acknowledge(model, primary, replica),
            Action::Connect { primary, replica } => self.connect(model, primary, replica),
            Action::Drop { replica } => {
                self.left.cuts -= 1;
                self.drop_stream(replica);
                Ok(())
            }
            Action::Lose { primary, replica } => {
                if self.is_intact(primary, replica) {
                    self.left.cuts -= 1;
                }
                self.lose_stream(model, primary, replica)
            }
            Action::Tick { primary } => self.tick(model, primary),
            Action::Hear { node } => self.hear(model, node),
            Action::Retry { node } => self.retry(model, node),
            Action::Serve { write } => self.serve(model, write),
            Action::LoseAnswer { write } => {
                self.left.unknowns -= 1;
                self.lose_answer(model, write)
            }
            Action::Grant { waiting } => self.grant(model, waiting),
            Action::Expire => {
                if self.service.holder.is_some_and(|place| self.is_alive(place.client)) {
                    self.left.expiries -= 1;
                }
                self.expire(model)
            }
            Action::Crash { node, kept } => {
                self.left.crashes -= 1;
                self.crash(node, kept);
                self.restart(model, node)
            }
            Action::HandOver { primary } => {
                self.left.hand_overs -= 1;
                self.hand_over(model, primary)
            }
            Action::Remove { primary, replica } => {
                self.left.removals -= 1;
                self.remove(model, primary, replica)
            }
        }
    }
}
