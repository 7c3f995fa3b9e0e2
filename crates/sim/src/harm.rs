//! What a cluster meets once in its life: a disk that changes what it holds, one that is put back or copied, an election service that
//! is restored from a backup, an operator who forces a node to lead. At most one of these in a run, and only where the protocol says
//! what must hold.

use std::sync::Arc;

use kahawai_election::memory::Snapshot;
use kahawai_election::{ClusterRecord, Request};
use kahawai_env::Files;
use kahawai_store::Identity;
use kahawai_store::checkpoint::{INDEX_FILE, SUMS_FILE};
use kahawai_testkit::{MemoryFiles, Random};
use kahawai_types::{Epoch, ReplicaId};

use crate::Micros;
use crate::check::Oracle;
use crate::clock::SimEntropy;
use crate::ctx::{Ctx, name};
use crate::event::Event;
use crate::faults::{self, leader};
use crate::node::Role;
use crate::options::Faults;
use crate::trace::WORLD;
use crate::world::World;

const MS: Micros = 1_000;
/// How often it is looked whether the moment has come.
const AGAIN: Micros = 10 * MS;

/// What it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Harm {
    /// Bits of a file that lies there change.
    Rot,
    /// Bits of the index change.
    RotIndex,
    /// A disk is put back as it was some time ago.
    OldDisk,
    /// A disk is replaced by a copy of another node's.
    Clone,
    /// The election service is restored from a backup.
    RollBack,
    /// A node is forced to lead.
    Force,
}

/// How far it is.
pub(crate) enum Stage {
    /// Nothing has happened.
    Before,
    /// A copy of the node's disk was made.
    Kept(usize, MemoryFiles),
    /// The record was backed up.
    BackedUp(Snapshot, Box<ClusterRecord>),
    /// The node's disk is not to be trusted; somebody will replace it.
    Harmed(usize),
    /// The node does not hear from the others.
    Behind(usize),
    /// The service has an older record than there was.
    RolledBack,
    Over,
}

impl Harm {
    /// One that is enabled.
    pub(crate) fn draw(random: &mut Random, faults: Faults) -> Option<Self> {
        let all = [
            (Self::Rot, faults.rot),
            (Self::OldDisk, faults.stale),
            (Self::Clone, faults.stale),
            (Self::RollBack, faults.rollback),
            (Self::Force, faults.force),
        ];
        let enabled: Vec<Self> =
            all.into_iter().filter(|(_, enabled)| *enabled).map(|(harm, _)| harm).collect();
        let wanted = random.chance(4);
        let number = random.below(enabled.len() as u64) as usize;
        match enabled.get(number).copied().filter(|_| wanted) {
            Some(Self::Rot) if random.chance(3) => Some(Self::RotIndex),
            harm => harm,
        }
    }
}

/// The next step.
pub(crate) fn act(world: &mut World) {
    let Some(harm) = world.ctx.plan.harm else { return };
    let stage = std::mem::replace(&mut world.ctx.plan.stage, Stage::Over);
    let (stage, wait) = match stage {
        Stage::Before if world.is_calm => (Stage::Over, None),
        Stage::Before => begin(world, harm),
        Stage::Kept(node, copy) => put_back(world, node, copy),
        Stage::BackedUp(snapshot, record) => roll_back(world, snapshot, record),
        Stage::Harmed(node) => {
            replace(world, node);
            (Stage::Over, None)
        }
        Stage::RolledBack => restore(world),
        Stage::Behind(node) => force(world, node),
        Stage::Over => (Stage::Over, None),
    };
    world.ctx.plan.stage = stage;
    if let Some(wait) = wait {
        world.ctx.at(wait, Event::Harm);
    }
}

/// Whatever is not mended yet is, when the faults stop.
pub(crate) fn mend(world: &mut World) {
    if matches!(world.ctx.plan.stage, Stage::Harmed(_) | Stage::RolledBack) {
        act(world);
    }
}

/// Everything that was confirmed is on all nodes, and no change of that is on its way.
fn is_everywhere(world: &World) -> bool {
    let Some(record) = &world.ctx.oracle.record else { return false };
    let proposes = world.nodes.iter().any(|node| match node.process.as_ref().map(|process| &process.role) {
        Some(Role::Leading(leading)) => !leading.proposals.is_empty(),
        _ => false,
    });
    let is_gone = |replica: &ReplicaId| world.ctx.oracle.gone.contains(&Oracle::key_of(replica));
    record.in_sync.len() == world.nodes.len()
        && !record.in_sync.iter().any(is_gone)
        && record.minimum_replicas > 0
        && !world.ctx.hub.has_delayed()
        && !proposes
        && world.nodes.iter().all(|node| node.process.is_some())
}

fn begin(world: &mut World, harm: Harm) -> (Stage, Option<Micros>) {
    let nodes = world.nodes.len() as u64;
    let node = world.ctx.plan.random.below(nodes) as usize;
    let wait = 200 * MS + world.ctx.plan.random.below(8_000 * MS);
    match harm {
        Harm::OldDisk => {
            let Some(disk) = world.nodes.get(node).map(|node| node.disk.fork()) else {
                return (Stage::Over, None);
            };
            (Stage::Kept(node, disk), Some(wait))
        }
        Harm::RollBack => {
            let Some(record) = world.ctx.oracle.record.clone() else { return (Stage::Before, Some(AGAIN)) };
            (Stage::BackedUp(world.ctx.hub.snapshot(), Box::new(record)), Some(wait))
        }
        Harm::Force => leave_behind(world, node),
        Harm::Rot | Harm::Clone if !is_everywhere(world) => (Stage::Before, Some(AGAIN)),
        Harm::RotIndex => rot_index(world, node),
        Harm::Rot if !rot(world, node) => (Stage::Before, Some(AGAIN)),
        Harm::Rot => (Stage::Harmed(node), Some(wait)),
        Harm::Clone => {
            clone(world, node);
            (Stage::Harmed(node), Some(wait))
        }
    }
}

/// From now on nothing is expected of this copy.
fn distrust(ctx: &mut Ctx, index: usize) {
    let replica = ctx.oracle.record.iter().flat_map(|record| &record.in_sync).map(Oracle::key_of);
    let key = replica.into_iter().find(|(node, _)| *node == index);
    if let Some(key) = key {
        ctx.oracle.gone.insert(key);
        ctx.oracle.promises.remove(&key);
        if let Some(held) = ctx.oracle.held.get_mut(&key) {
            held.is_new = true;
        }
    }
    if let Some(damaged) = ctx.oracle.damaged.get_mut(index) {
        *damaged = true;
    }
    ctx.oracle.counts.faults += 1;
}

fn flip_bits(disk: &MemoryFiles, name: &str, length: usize, flips: u64, random: &mut Random) {
    for _ in 0..flips {
        let (at, bit) = (random.below(length as u64), random.below(8));
        disk.flip(name, at as usize, 1 << bit);
    }
}

/// Bits change in a file that nobody writes to any more: there nothing but damage explains it. In the last one that holds anything, a
/// start may take them for what a crash has left, as the specification says.
fn rot(world: &mut World, index: usize) -> bool {
    let Some(node) = world.nodes.get(index) else { return false };
    let Ok(names) = node.disk.list("") else { return false };
    let mut ids: Vec<u32> = names.iter().filter_map(|name| kahawai_journal::data_file_id(name)).collect();
    ids.sort_unstable();
    let end = match node.process.as_ref().map(|process| &process.role) {
        Some(Role::Leading(leading)) => leading.store.reader().durable_end(),
        Some(Role::Following(following)) => following.follower.reader().durable_end(),
        _ => return false,
    };
    ids.retain(|id| *id < end.file());
    if ids.is_empty() {
        return false;
    }
    let random = &mut world.ctx.plan.random;
    let id = random.below(ids.len() as u64) as usize;
    let Some(name) = ids.get(id).map(|id| kahawai_journal::data_file_name(*id)) else { return false };
    let Some(length) = node.disk.content(&name).map(|content| content.len()).filter(|length| *length > 0)
    else {
        return false;
    };
    let flips = 1 + random.below(3);
    flip_bits(&node.disk, &name, length, flips, random);
    world.ctx.note(index, "bits of a data file change", ids.len() as u64, id as u64);
    let held = world.ctx.oracle.record.iter().flat_map(|record| &record.in_sync).map(Oracle::key_of);
    let key = held.into_iter().find(|(node, _)| *node == index);
    // It is a copy all the same: what it has flushed is known, and is not to be given up.
    world.ctx.oracle.gone.extend(key);
    if let Some(damaged) = world.ctx.oracle.damaged.get_mut(index) {
        *damaged = true;
    }
    world.ctx.oracle.counts.faults += 1;
    true
}

/// Bits of the index change, and the node starts again: it makes its index again from the journal, now or when it meets them.
fn rot_index(world: &mut World, index: usize) -> (Stage, Option<Micros>) {
    let Some(node) = world.nodes.get(index) else { return (Stage::Over, None) };
    let random = &mut world.ctx.plan.random;
    let name = if random.chance(4) { SUMS_FILE } else { INDEX_FILE };
    let Some(length) = node.disk.content(name).map(|content| content.len()).filter(|length| *length > 0)
    else {
        return (Stage::Before, Some(AGAIN));
    };
    let flips = 1 + random.below(40);
    flip_bits(&node.disk, name, length, flips, random);
    world.ctx.note(index, "bits of its index change", flips, 0);
    if let Some(rotten) = world.ctx.oracle.rotten_index.get_mut(index) {
        *rotten = true;
    }
    world.ctx.oracle.counts.faults += 1;
    world.kill(index, true);
    (Stage::Over, None)
}

fn put_back(world: &mut World, index: usize, copy: MemoryFiles) -> (Stage, Option<Micros>) {
    if world.is_calm {
        return (Stage::Over, None);
    }
    if !is_everywhere(world) {
        return (Stage::Kept(index, copy), Some(AGAIN));
    }
    world.ctx.note(index, "its disk is put back as it was", 0, 0);
    world.kill(index, true);
    distrust(&mut world.ctx, index);
    if let Some(node) = world.nodes.get_mut(index) {
        node.disk = copy;
    }
    (Stage::Harmed(index), Some(500 * MS + world.ctx.plan.random.below(8_000 * MS)))
}

/// Half of the clones go by the name of the machine that they were put into.
fn clone(world: &mut World, index: usize) {
    let nodes = world.nodes.len();
    let from = (index + 1 + world.ctx.plan.random.below(nodes as u64 - 1) as usize) % nodes;
    let is_named = world.ctx.plan.random.chance(2);
    let Some(copy) = world.nodes.get(from).map(|node| node.disk.fork()) else { return };
    world.ctx.note(index, "its disk is replaced by a copy of another's", from as u64, is_named.into());
    world.kill(index, true);
    distrust(&mut world.ctx, index);
    if is_named {
        let files: Arc<dyn Files> = Arc::new(copy.clone());
        let entropy = SimEntropy::new(world.ctx.plan.random.next_u64());
        if let Ok(mut identity) = Identity::open_as(&files, &entropy, &name(from)) {
            identity.node_id = name(index);
            // Written twice, as the same state is not written again.
            let state = identity.state;
            for state in [kahawai_store::StoreState::Faulted, state] {
                if let Err(problem) = identity.set_state(&files, state) {
                    world.ctx.violate(format!("CLONE: {problem}"));
                }
            }
        }
    }
    world.ctx.plan.cloned = (!is_named).then_some(index);
    if let Some(node) = world.nodes.get_mut(index) {
        node.disk = copy;
    }
}

/// A node is about to start. A clone that goes by another name than the machine's must not.
pub(crate) fn started(ctx: &mut Ctx, index: usize) {
    if ctx.plan.cloned == Some(index) {
        ctx.violate(format!("CLONE: n{index} starts with the disk of another node"));
    }
}

/// Whoever looks after the machine puts in an empty disk.
fn replace(world: &mut World, index: usize) {
    world.ctx.note(index, "its disk is replaced by an empty one", 0, 0);
    world.kill(index, true);
    world.ctx.plan.cloned = None;
    if let Some(damaged) = world.ctx.oracle.damaged.get_mut(index) {
        *damaged = false;
    }
    if let Some(node) = world.nodes.get_mut(index) {
        node.disk = MemoryFiles::new();
    }
}

/// A node is elected whose disk was put back, and nobody has noticed: the specification promises detection only within the epoch
/// in which more was acknowledged. It is taken away before it leads. `true` = it was.
pub(crate) fn is_unnoticed(ctx: &mut Ctx, index: usize) -> bool {
    let is_old = ctx.plan.harm == Some(Harm::OldDisk)
        && matches!(ctx.plan.stage, Stage::Harmed(node) if node == index);
    if is_old {
        ctx.note(index, "would lead with an old disk", 0, 0);
        ctx.at(0, Event::Harm);
    }
    is_old
}

/// The newest record that a node's disk knows.
fn saved(disk: &MemoryFiles) -> Option<ClusterRecord> {
    let files: Arc<dyn Files> = Arc::new(disk.clone());
    let bytes = kahawai_store::load_record(&files).ok()??;
    ClusterRecord::decode(&bytes).ok()
}

fn roll_back(world: &mut World, snapshot: Snapshot, record: Box<ClusterRecord>) -> (Stage, Option<Micros>) {
    if world.is_calm {
        return (Stage::Over, None);
    }
    // Who never saw a newer record cannot know: for that case the operator's procedure is mandatory, and comes first.
    let knows = |node: &crate::node::Node| {
        node.process.is_some() && saved(&node.disk).is_some_and(|saved| saved.age() > record.age())
    };
    if !world.nodes.iter().all(knows) || world.ctx.hub.has_delayed() {
        return (Stage::BackedUp(snapshot, record), Some(AGAIN));
    }
    world.ctx.note(WORLD, "the record is rolled back", record.epoch.0, record.version);
    world.ctx.hub.roll_back(snapshot);
    world.ctx.oracle.rolled_back_to = world.ctx.hub.revision();
    world.ctx.oracle.counts.faults += 1;
    (Stage::RolledBack, Some(500 * MS + world.ctx.plan.random.below(5_000 * MS)))
}

/// What the operator does: the newest record that any node has seen is put back, under an epoch above every promise.
fn restore(world: &mut World) -> (Stage, Option<Micros>) {
    let wait = (Stage::RolledBack, Some(AGAIN));
    if world.ctx.oracle.rolled_back_to.is_none() {
        return (Stage::Over, None);
    }
    let Some(newest) = world.nodes.iter().filter_map(|node| saved(&node.disk)).max_by_key(ClusterRecord::age)
    else {
        return wait;
    };
    let promised = world.ctx.oracle.promises.values().max().copied().unwrap_or(Epoch(0));
    let members: Vec<usize> = newest.in_sync.iter().map(|replica| Oracle::key_of(replica).0).collect();
    let at = world.ctx.plan.random.below(members.len() as u64) as usize;
    let Some(node) = members.get(at).and_then(|index| world.nodes.get_mut(*index)) else { return wait };
    if let Some(process) = &mut node.process {
        process.request(&mut world.ctx, Request::RestoreRecord { record: Box::new(newest), promised });
    }
    (Stage::RolledBack, Some(500 * MS))
}

/// A node is cut off from the others, which go on without it, or with it once more.
fn leave_behind(world: &mut World, index: usize) -> (Stage, Option<Micros>) {
    if world.ctx.oracle.committed.len() < 20 || leader(world) == Some(index) {
        return (Stage::Before, Some(AGAIN));
    }
    if world.ctx.plan.random.chance(2) {
        faults::cut_off(world, index);
    }
    (Stage::Behind(index), Some(10 * MS + world.ctx.plan.random.below(3_000 * MS)))
}

/// The others are gone, or seem to be, and an operator forces that node to lead. What is lost is seen when it is elected.
fn force(world: &mut World, index: usize) -> (Stage, Option<Micros>) {
    let again = (Stage::Behind(index), Some(AGAIN));
    let Some(cluster_id) = world.ctx.oracle.record.as_ref().map(|record| record.cluster_id) else {
        return again;
    };
    let is_running = world.nodes.get(index).is_some_and(|node| node.process.is_some());
    if world.is_calm || !is_running || leader(world) == Some(index) {
        return if world.is_calm { (Stage::Over, None) } else { again };
    }
    for node in (0..world.nodes.len()).filter(|node| *node != index) {
        let down = 2_000 * MS + world.ctx.plan.random.below(8_000 * MS);
        if world.ctx.plan.random.chance(3) {
            faults::pause_for(world, node, down);
        } else {
            world.kill(node, false);
            world.stay_down(node, down);
        }
    }
    let Some(process) = world.nodes.get_mut(index).and_then(|node| node.process.as_mut()) else {
        return again;
    };
    world.ctx.note(index, "is forced to lead", 0, 0);
    process.request(&mut world.ctx, Request::ForcePrimary { cluster_id });
    world.ctx.oracle.counts.faults += 1;
    (Stage::Over, None)
}
