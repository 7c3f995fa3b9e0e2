//! What some worlds have on top: faults that wait for the moment in which they hurt most.
//!
//! Chance alone hardly ever meets the short times in which a rule matters. What is drawn here comes from a stream of its own, so
//! a world that has nothing of this runs as if there were no such thing.

use std::collections::BTreeSet;

use kahawai_election::ClusterRecord;
use kahawai_election::memory::WriteFault;
use kahawai_testkit::Random;

use crate::Micros;
use crate::check::Oracle;
use crate::ctx::{Ctx, Shape, name};
use crate::event::{Event, Healing};
use crate::faults;
use crate::harm::{Harm, Stage};
use crate::options::Faults;
use crate::world::World;

const MS: Micros = 1_000;

/// What this seed's world has.
pub(crate) struct Plan {
    pub(crate) random: Random,
    /// Writes that change the set lose their answers, and what was to join dies.
    changes: bool,
    /// Nodes die when they have deleted a data file.
    pub(crate) collection: bool,
    /// Somebody changes what the cluster is.
    pub(crate) operator: bool,
    /// The last node starts then for the first time.
    late_us: Micros,
    /// What happens once.
    pub(crate) harm: Option<Harm>,
    pub(crate) stage: Stage,
    /// A node whose disk is a copy of another's and says so.
    pub(crate) cloned: Option<usize>,
    /// The faults have stopped.
    pub(crate) is_over: bool,
}

impl Plan {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        let mut random = Random::new(seed ^ 0x00a3_b054);
        let harm = Harm::draw(&mut random, faults);
        let mut draw = |one_in: u64, enabled: bool| random.chance(one_in) && enabled;
        let changes = draw(4, faults.ambush);
        let collection = draw(6, faults.ambush);
        let operator = draw(3, faults.operator && harm.is_none());
        let is_late = draw(3, operator);
        let late_us = if is_late { random.below(20_000 * MS) } else { 0 };
        Self {
            random,
            changes,
            collection,
            operator,
            late_us,
            harm,
            stage: Stage::Before,
            cloned: None,
            is_over: false,
        }
    }

    /// How much later than the others a node starts for the first time.
    pub(crate) fn late_us(&self, node: usize, nodes: usize) -> Micros {
        if node > 0 && node + 1 == nodes { self.late_us } else { 0 }
    }

    /// Makes the world such that there are such moments.
    pub(crate) fn bend(&mut self, shape: &mut Shape) {
        shape.replica_checkpoint_ms = shape.checkpoint_ms;
        if self.collection {
            shape.upkeep_us = 2 * MS + self.random.below(60 * MS);
            shape.collect_ms = 50 + self.random.below(1_000);
            shape.checkpoint_ms = 200 + self.random.below(2_000);
            // What a primary gives up, its replicas still replay.
            shape.replica_checkpoint_ms = shape.checkpoint_ms * (1 + self.random.below(8));
            shape.file_bytes_max = 2 * 1024;
            shape.replication.file_bytes_max = shape.file_bytes_max;
        }
    }
}

fn members(record: &ClusterRecord) -> BTreeSet<usize> {
    record.in_sync.iter().map(|replica| Oracle::key_of(replica).0).collect()
}

/// A write of the record is about to reach the service; `true` = the writer hears nothing of it, [`change_arrived`] is to follow.
pub(crate) fn change_arrives(ctx: &mut Ctx, index: usize, written: &[u8]) -> bool {
    if !ctx.plan.changes || ctx.plan.is_over {
        return false;
    }
    let (Some(before), Ok(record)) = (&ctx.oracle.record, ClusterRecord::decode(written)) else {
        return false;
    };
    if before.epoch != record.epoch || before.in_sync == record.in_sync || !ctx.plan.random.chance(2) {
        return false;
    }
    let joining: Vec<usize> = members(&record).difference(&members(before)).copied().collect();
    let fault = match ctx.plan.random.below(4) {
        0 | 1 => WriteFault::AppliedUnanswered,
        2 => WriteFault::Delayed,
        _ => WriteFault::Lost,
    };
    ctx.hub.fail_next_write(&name(index), fault);
    if fault == WriteFault::Delayed {
        let wait = ctx.plan.random.below(3_000 * MS);
        ctx.at(wait, Event::Heal(Healing::DelayedWrite));
    }
    ctx.note(index, "its change of the set has no answer", fault as u64, joining.len() as u64);
    for node in joining {
        let wait = ctx.plan.random.below(5 * MS);
        ctx.at(wait, Event::Ambush(node));
    }
    true
}

/// That write has reached the service: whoever wrote it does not reach the service any more, sometimes until its session ends.
pub(crate) fn change_arrived(ctx: &mut Ctx, index: usize) {
    ctx.hub.cut(&name(index));
    let most = ctx.shape.session_ms as u64 * MS * 3 / 2;
    let wait = ctx.plan.random.below(most);
    ctx.at(wait, Event::Heal(Healing::Service(index)));
    ctx.oracle.counts.faults += 1;
}

/// A node has deleted a data file.
pub(crate) fn file_deleted(ctx: &mut Ctx, index: usize) {
    if ctx.plan.collection && !ctx.plan.is_over && !ctx.oracle.is_dying && ctx.plan.random.chance(4) {
        let wait = ctx.plan.random.below(500);
        ctx.at(wait, Event::Ambush(index));
    }
}

/// A node is hit.
pub(crate) fn ambush(world: &mut World, node: usize) {
    if world.is_calm || world.nodes.get(node).is_none_or(|node| node.process.is_none()) {
        return;
    }
    world.ctx.oracle.counts.faults += 1;
    match world.ctx.plan.random.below(6) {
        0 | 1 => world.kill(node, false),
        2 | 3 => world.kill(node, true),
        4 => _ = faults::isolate(world, node),
        _ => _ = faults::pause(world, node),
    }
}
