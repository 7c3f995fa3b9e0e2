//! Whoever looks after the cluster: another primary, another minimum, a node that goes and comes back.

use kahawai_election::Request;
use kahawai_types::NodeId;

use crate::Micros;
use crate::ctx::name;
use crate::event::Event;
use crate::faults::leader;
use crate::trace::WORLD;
use crate::world::World;

const MS: Micros = 1_000;

/// Does one thing, and comes back later.
pub(crate) fn act(world: &mut World) {
    let wait = if world.is_calm { 500 * MS } else { 50 * MS + world.ctx.plan.random.below(1_500 * MS) };
    world.ctx.at(wait, Event::Operator);
    let Some(index) = leader(world) else { return };
    let removed: Vec<NodeId> =
        world.ctx.oracle.record.iter().flat_map(|record| record.removed.iter().cloned()).collect();
    if let Some(node) = removed.first()
        && (world.is_calm || world.ctx.plan.random.chance(3))
    {
        world.ctx.note(WORLD, "an operator lets a node in again", 0, 0);
        return ask(world, index, Request::AllowMember(node.clone()));
    }
    if world.is_calm {
        return;
    }
    let nodes = world.nodes.len() as u64;
    let other = name(world.ctx.plan.random.below(nodes) as usize);
    match world.ctx.plan.random.below(8) {
        kind @ 0..=3 => {
            let successor = (kind > 1).then_some(other).filter(|node| *node != name(index));
            let node = world.nodes.get_mut(index).filter(|node| node.paused_until <= world.ctx.now);
            if let Some(process) = node.and_then(|node| node.process.as_mut()) {
                process.hand_over(&mut world.ctx, successor);
            }
        }
        4 | 5 => {
            let minimum = world.ctx.plan.random.below(nodes) as u32;
            world.ctx.note(WORLD, "an operator sets the minimum", minimum.into(), 0);
            ask(world, index, Request::SetMinimum(minimum));
        }
        _ if other != name(index) => {
            world.ctx.note(WORLD, "an operator removes a node", index as u64, 0);
            ask(world, index, Request::RemoveMember(other));
        }
        _ => {}
    }
}

fn ask(world: &mut World, index: usize, request: Request) {
    if let Some(process) = world.nodes.get_mut(index).and_then(|node| node.process.as_mut()) {
        process.request(&mut world.ctx, request);
    }
}
