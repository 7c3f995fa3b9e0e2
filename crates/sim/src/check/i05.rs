//! I5: clients are told only of what the epoch's marker is behind, what enough members have flushed, and while the gate is open.

use kahawai_types::{Epoch, Lsn};

use super::{Oracle, i04, i17, last_before};
use crate::ctx::Ctx;
use crate::node::{Process, Role};

/// Nothing is committed before the marker is.
pub(crate) fn marker_first(oracle: &Oracle, epoch: Epoch, at: Lsn) -> Result<(), String> {
    match oracle.markers.get(&epoch) {
        Some((_, end, _)) if at >= *end => Ok(()),
        Some((_, end, _)) => Err(format!("I5: epoch {epoch} commits {at}, its marker ends at {end}")),
        None => Err(format!("I5: epoch {epoch} commits {at}, and has no marker")),
    }
}

/// Clients may learn of everything up to there.
pub(crate) fn confirmed(ctx: &mut Ctx, process: &Process, at: Lsn) {
    let Role::Leading(leading) = &process.role else { return };
    ctx.note(process.index, "confirms", at.0, 0);
    ctx.oracle.confirmed = ctx.oracle.confirmed.max(at);
    // What the primary has not heard of yet does not bind it: until then nobody has been told that it does.
    let me = Oracle::key_of(&leading.me);
    let outcome = enough(&ctx.oracle, me, u32::MAX, at)
        .or_else(|_| enough(&ctx.oracle, me, leading.primary.status().minimum_replicas, at));
    ctx.require(outcome);
    let outcome = i04::leads(&ctx.oracle, process);
    ctx.require(outcome);
    let outcome = i17::answers(ctx, process);
    ctx.require(outcome);
}

/// `minimumReplicas` others of the recorded set have it. One whose disk was taken away had flushed what it acknowledged; that a disk
/// forgets is what the other copies are for (I6).
fn enough(oracle: &Oracle, me: super::StoreKey, minimum: u32, at: Lsn) -> Result<(), String> {
    let (Some(record), Some(last)) = (&oracle.record, last_before(&oracle.committed, at)) else {
        return Ok(());
    };
    let others = record.in_sync.iter().map(Oracle::key_of).filter(|key| *key != me);
    let has = |key: &super::StoreKey| {
        oracle.gone.contains(key) || oracle.held(*key).is_some_and(|held| held.has(&last))
    };
    let have = others.filter(has).count();
    let needed = record.minimum_replicas.min(minimum);
    if have >= needed as usize {
        return Ok(());
    }
    Err(format!("I5: {at} is confirmed, {have} other members of the set have it, {needed} are needed"))
}
