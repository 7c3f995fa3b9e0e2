//! L3: no replica stops the commits of the others for longer than it takes to find that out, as long as enough of them are left.

use kahawai_types::{Epoch, Lsn};

use super::Oracle;
use crate::Micros;
use crate::ctx::Ctx;
use crate::node::{Node, Role};

const MS: Micros = 1_000;
/// How often it is looked, and some patience for what is on its way.
const SLACK_MS: i64 = 1_500;

/// A primary whose first batch without a commit everybody has who is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stall {
    epoch: Epoch,
    until: Lsn,
    since: Micros,
}

/// Looks at every primary. A proposal that has no answer is the election service's affair.
pub(crate) fn look(ctx: &mut Ctx, nodes: &[Node]) {
    for node in nodes {
        let before = ctx.oracle.stalls.remove(&node.index);
        let Some((epoch, until)) = stalled(ctx, node) else { continue };
        let same = before.filter(|before| (before.epoch, before.until) == (epoch, until));
        let now = Stall { epoch, until, since: same.map_or(ctx.now, |before| before.since) };
        ctx.oracle.stalls.insert(node.index, now);
        let timing = ctx.shape.replication;
        let most =
            timing.evict_ms + timing.dead_ms + timing.reconnect_ms + timing.takeover_grace_ms + SLACK_MS;
        let lasts = ctx.now - now.since.max(node.paused_until);
        if lasts > most as u64 * MS {
            ctx.violate(format!(
                "L3: n{} has not committed {until} for {} ms, and enough replicas have it",
                node.index,
                lasts / MS
            ));
        }
    }
}

fn stalled(ctx: &Ctx, node: &Node) -> Option<(Epoch, Lsn)> {
    let Role::Leading(leading) = &node.process.as_ref()?.role else { return None };
    if !leading.proposals.is_empty() || node.paused_until > ctx.now {
        return None;
    }
    let status = leading.primary.status();
    let held = ctx.oracle.held(Oracle::key_of(&leading.me))?;
    let first = held.batches.partition_point(|batch| batch.end <= status.commit);
    // Nothing is committed before the marker is.
    let (_, marker_end, _) = ctx.oracle.markers.get(&leading.epoch)?;
    let until = held.batches.get(first)?.end.max(*marker_end);
    let have = status
        .replicas
        .iter()
        .filter(|replica| replica.in_sync && replica.connected.is_some() && replica.durable >= until);
    let is_enough = have.count() >= status.minimum_replicas as usize && held.end() >= until;
    is_enough.then_some((leading.epoch, until))
}
