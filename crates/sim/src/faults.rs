//! What breaks, and how it is mended.

use kahawai_election::memory::WriteFault;

use crate::Micros;
use crate::check::Oracle;
use crate::ctx::name;
use crate::event::{Event, Healing};
use crate::node::Role;
use crate::options::Mutation;
use crate::trace::WORLD;
use crate::world::World;

const MS: Micros = 1_000;

/// One thing breaks.
pub(crate) fn strike(world: &mut World) {
    let nodes = world.nodes.len();
    let node = world.ctx.random.below(nodes as u64) as usize;
    // More often than not it hits who leads: there it hurts.
    let node = if world.ctx.random.chance(3) { leader(world).unwrap_or(node) } else { node };
    let faults = world.faults();
    for _ in 0..8 {
        let kind = world.ctx.random.below(20);
        let struck = match kind {
            0..=2 if faults.crash => crash(world, node, kind),
            3 if faults.crash => crash_many(world),
            4..=5 if faults.network => cut_link(world, node),
            6 if faults.network => isolate(world, node),
            7..=8 if faults.network => reset(world),
            9 if faults.network => break_client(world),
            10 if faults.service => cut_service(world, node),
            11..=12 if faults.service => fault_write(world, node),
            13..=14 if faults.pause => pause(world, node),
            15 if faults.clock || faults.wall => clock(world, node),
            16..=17 if faults.disk => slow_disk(world, node),
            18 if faults.disk => bad_disk(world, node),
            19 if faults.replace => replace(world, node),
            _ => false,
        };
        if struck {
            world.ctx.oracle.counts.faults += 1;
            return;
        }
    }
}

pub(crate) fn leader(world: &World) -> Option<usize> {
    let leads = |node: &&crate::node::Node| {
        node.process.as_ref().is_some_and(|process| matches!(process.role, Role::Leading(_)))
    };
    world.nodes.iter().find(leads).map(|node| node.index)
}

/// How long something stays broken: mostly short, sometimes longer than every time-out.
fn while_(world: &mut World) -> Micros {
    let random = &mut world.ctx.random;
    match random.below(4) {
        0 => 10 * MS + random.below(100 * MS),
        1 | 2 => 100 * MS + random.below(1_500 * MS),
        _ => 1_000 * MS + random.below(8_000 * MS),
    }
}

fn heal_later(world: &mut World, healing: Healing) {
    let wait = while_(world);
    world.ctx.at(wait, Event::Heal(healing));
}

fn crash(world: &mut World, node: usize, kind: u64) -> bool {
    if world.nodes.get(node).is_none_or(|node| node.process.is_none()) {
        return false;
    }
    world.kill(node, kind == 2);
    true
}

fn crash_many(world: &mut World) -> bool {
    let power = world.ctx.random.chance(2);
    let all = world.ctx.random.chance(2);
    for node in 0..world.nodes.len() {
        if all || world.ctx.random.chance(2) {
            world.kill(node, power);
        }
    }
    true
}

fn other(world: &mut World, node: usize) -> usize {
    let nodes = world.nodes.len() as u64;
    (node + 1 + world.ctx.random.below(nodes.saturating_sub(1).max(1)) as usize) % nodes.max(1) as usize
}

fn cut(world: &mut World, from: usize, to: usize) {
    world.ctx.note(WORLD, "link cut", from as u64, to as u64);
    world.ctx.net.cut(from, to);
    heal_later(world, Healing::Link(from, to));
}

fn cut_link(world: &mut World, node: usize) -> bool {
    let other = other(world, node);
    if other == node {
        return false;
    }
    cut(world, node, other);
    if world.ctx.random.chance(2) {
        cut(world, other, node);
    }
    true
}

/// From the other nodes, both ways.
pub(crate) fn cut_off(world: &mut World, node: usize) {
    for other in (0..world.nodes.len()).filter(|other| *other != node) {
        cut(world, node, other);
        cut(world, other, node);
    }
}

pub(crate) fn isolate(world: &mut World, node: usize) -> bool {
    cut_off(world, node);
    if world.ctx.random.chance(2) {
        cut_service(world, node);
    }
    true
}

fn reset(world: &mut World) -> bool {
    let ctx = &mut world.ctx;
    let Some(conn) = ctx.net.any(&mut ctx.random) else { return false };
    let half_open = ctx.random.chance(3);
    ctx.note(WORLD, if half_open { "connection half open" } else { "connection reset" }, conn.0.into(), 0);
    ctx.net.reset(ctx.now, &mut ctx.queue, &mut ctx.random, conn, half_open);
    true
}

fn break_client(world: &mut World) -> bool {
    world.ctx.note(WORLD, "a client's connection breaks", 0, 0);
    world.visitors.break_one(&mut world.ctx)
}

fn cut_service(world: &mut World, node: usize) -> bool {
    world.ctx.note(node, "loses the election service", 0, 0);
    world.ctx.hub.cut(&name(node));
    heal_later(world, Healing::Service(node));
    true
}

fn fault_write(world: &mut World, node: usize) -> bool {
    let fault = match world.ctx.random.below(3) {
        0 => WriteFault::AppliedUnanswered,
        1 => WriteFault::Lost,
        _ => WriteFault::Delayed,
    };
    world.ctx.note(node, "next write of the record has no answer", fault as u64, 0);
    world.ctx.hub.fail_next_write(&name(node), fault);
    if fault == WriteFault::Delayed {
        heal_later(world, Healing::DelayedWrite);
    }
    true
}

pub(crate) fn pause(world: &mut World, index: usize) -> bool {
    let takes = while_(world);
    pause_for(world, index, takes)
}

/// A process stands still for so long.
pub(crate) fn pause_for(world: &mut World, index: usize, takes: Micros) -> bool {
    let until = world.ctx.now + takes;
    let Some(node) = world.nodes.get_mut(index) else { return false };
    if node.process.is_none() || node.paused_until > world.ctx.now {
        return false;
    }
    node.paused_until = until;
    world.ctx.note(index, "stands still, milliseconds", takes / MS, 0);
    world.ctx.hub.cut(&name(index));
    world.ctx.at(takes, Event::Heal(Healing::Resume(index)));
    true
}

fn clock(world: &mut World, node: usize) -> bool {
    let faults = world.faults();
    let ctx = &mut world.ctx;
    let ppm = ctx.random.below(8_001) as i64 - 4_000;
    // Redeliveries are timed by the wall clock: set back, it makes them wait that much longer.
    let jump = ctx.random.below(120_000) as i64 - 60_000;
    let (now, jumps) = (ctx.now, ctx.random.chance(2) && faults.wall);
    let Some(clock) = ctx.clocks.get_mut(node) else { return false };
    if jumps {
        clock.jump(jump);
    } else {
        clock.drift(now, ppm);
    }
    ctx.note(node, "its clock goes wrong", jumps.into(), 0);
    true
}

fn slow_disk(world: &mut World, node: usize) -> bool {
    let hangs = world.ctx.random.chance(4);
    let takes = while_(world);
    let now = world.ctx.now;
    let Some(disk) = world.ctx.disks.get_mut(node) else { return false };
    if hangs {
        disk.hangs_until = now + takes;
    } else {
        disk.flush = (5 * MS, 100 * MS);
    }
    world.ctx.note(node, "its disk is slow", hangs.into(), takes / MS);
    world.ctx.at(takes, Event::Heal(Healing::Disk(node)));
    true
}

fn bad_disk(world: &mut World, index: usize) -> bool {
    let random = &mut world.ctx.random;
    let (what, after) = (random.below(3), random.below(20));
    let Some(node) = world.nodes.get(index) else { return false };
    if node.process.is_none() {
        return false;
    }
    match what {
        0 => node.disk.fail_flush_after(after),
        1 => node.disk.fail_write_after(after),
        _ => {
            node.disk.limit_bytes(Some(node.disk.bytes() + after * 400));
            heal_later(world, Healing::Room(index));
        }
    }
    world.ctx.note(index, "its disk goes bad", what, after);
    true
}

/// The disk is gone, an empty one is put in. Only where everything that was confirmed is on the others, and stays there: all
/// nodes are in sync, and no change of that is on its way.
pub(crate) fn replace(world: &mut World, index: usize) -> bool {
    // One copy fewer is what a minimum of one bears.
    if world.ctx.plan.harm.is_some() {
        return false;
    }
    let Some(record) = &world.ctx.oracle.record else { return false };
    let members: Vec<_> = record.in_sync.iter().map(Oracle::key_of).collect();
    if members.len() < world.nodes.len() || members.iter().any(|key| world.ctx.oracle.gone.contains(key)) {
        return false;
    }
    if world.ctx.hub.has_delayed() || world.nodes.iter().any(|node| node.process.is_none()) {
        return false;
    }
    let proposes = world.nodes.iter().any(|node| match node.process.as_ref().map(|process| &process.role) {
        Some(Role::Leading(leading)) => !leading.proposals.is_empty(),
        _ => false,
    });
    if proposes || record.minimum_replicas == 0 {
        return false;
    }
    let Some(key) = members.iter().copied().find(|(node, _)| *node == index) else { return false };
    world.ctx.note(index, "its disk is replaced", 0, 0);
    world.kill(index, true);
    let keeps_identity = world.ctx.mutated(Mutation::StoreIdIgnored);
    let Some(node) = world.nodes.get_mut(index) else { return false };
    let empty = kahawai_testkit::MemoryFiles::new();
    if keeps_identity {
        if let Some(identity) = node.disk.content(kahawai_store::NODE_FILE) {
            empty.put(kahawai_store::NODE_FILE, &identity);
        }
    } else {
        world.ctx.oracle.gone.insert(key);
    }
    node.disk = empty;
    if keeps_identity && let Some(held) = world.ctx.oracle.held.get_mut(&key) {
        held.batches.clear();
    }
    true
}

/// Something is mended.
pub(crate) fn heal(world: &mut World, healing: Healing) {
    let ctx = &mut world.ctx;
    match healing {
        Healing::Link(from, to) => ctx.net.heal(from, to),
        Healing::Service(node) => {
            // Who stands still hears nothing from it.
            if world.nodes.get(node).is_some_and(|node| node.paused_until <= ctx.now) {
                ctx.hub.heal(&name(node));
            }
        }
        Healing::Resume(node) => {
            if world.nodes.get(node).is_some_and(|node| node.paused_until <= ctx.now) {
                ctx.hub.heal(&name(node));
                ctx.note(node, "goes on", 0, 0);
            }
        }
        Healing::Disk(node) => {
            if let Some(disk) = ctx.disks.get_mut(node) {
                disk.flush = (100, 1_500);
                disk.hangs_until = disk.hangs_until.min(ctx.now);
            }
        }
        Healing::Room(node) => {
            if let Some(node) = world.nodes.get(node) {
                node.disk.limit_bytes(None);
            }
        }
        Healing::DelayedWrite => {
            ctx.hub.deliver();
        }
    }
}

/// Everything is mended, and every process runs.
pub(crate) fn mend_all(world: &mut World) {
    let now = world.ctx.now;
    world.ctx.net.heal_all();
    while world.ctx.hub.deliver() {}
    for index in 0..world.nodes.len() {
        // Who stands still goes on when its time has come.
        if world.nodes.get(index).is_none_or(|node| node.paused_until <= now) {
            world.ctx.hub.heal(&name(index));
        }
        if let Some(disk) = world.ctx.disks.get_mut(index) {
            disk.flush = (100, 1_500);
            disk.hangs_until = now;
        }
        if let Some(node) = world.nodes.get_mut(index) {
            node.disk.mend();
            node.stays_away = false;
        }
        world.start_later(index);
    }
}
