//! I9: what is committed on one node is a beginning of what is committed on another, and never less than it was.

use kahawai_store::Identity;
use kahawai_types::{Epoch, Lsn};

use super::{Oracle, StoreKey, key, last_before};
use crate::ctx::Ctx;

/// A primary commits up to there: the one history of the cluster grows.
pub(crate) fn committed(oracle: &mut Oracle, me: StoreKey, epoch: Epoch, at: Lsn) -> Result<(), String> {
    // It was deposed by an operator: its gate is shut, and whatever it commits is nobody's.
    if epoch < oracle.unclean {
        return Ok(());
    }
    let Some(held) = oracle.held.get(&me) else {
        return Err(format!("I9: n{} commits {at} and has nothing", me.0));
    };
    let last = oracle.committed.last().copied();
    if at <= oracle.committed_end() {
        // A primary that was deposed meanwhile commits what its successor has committed as well.
        let (ours, all) = (last_before(&held.batches, at), last_before(&oracle.committed, at));
        return match (ours, all) {
            (Some(ours), Some(all)) if ours != all => {
                Err(format!("I9: n{} commits {at}, and the cluster has another history there", me.0))
            }
            _ => Ok(()),
        };
    }
    if let Some(last) = last
        && !held.has(&last)
    {
        return Err(format!(
            "I9: n{} commits {at} in a history without what was committed at {}",
            me.0, last.end
        ));
    }
    let from = held.batches.partition_point(|batch| last.is_some_and(|last| batch.end <= last.end));
    let to = held.batches.partition_point(|batch| batch.end <= at);
    let new = held.batches.get(from..to).unwrap_or_default();
    let end = new.last().or(last.as_ref()).map_or(Lsn::ZERO, |batch| batch.end);
    let renumbered = at.offset() == 0 && at.file() > end.file();
    if end < at && !renumbered {
        return Err(format!("I9: n{} commits {at}, and has flushed up to {end}", me.0));
    }
    let reigns = oracle.counts.reigns;
    let known = last.map(|last| last.epoch);
    oracle.counts.reigns = reigns + u64::from(new.last().map(|batch| batch.epoch) > known);
    oracle.counts.committed += new.len() as u64;
    oracle.committed_in.resize(oracle.committed.len() + new.len(), epoch);
    oracle.committed.extend_from_slice(new);
    Ok(())
}

/// A replica is told that everything up to there is committed.
pub(crate) fn told(ctx: &mut Ctx, index: usize, identity: &Identity, at: Lsn) {
    let oracle = &ctx.oracle;
    // Who has not heard of the new reign may still hold what is lost.
    if oracle.has_lost {
        return;
    }
    let Some(last) = last_before(&oracle.committed, at) else { return };
    if at > oracle.committed_end() && !(at.offset() == 0 && at.file() > oracle.committed_end().file()) {
        let end = oracle.committed_end();
        return ctx.violate(format!("I9: n{index} believes that {at} is committed, it is {end}"));
    }
    if !oracle.held(key(index, identity)).is_some_and(|held| held.has(&last)) {
        ctx.violate(format!("I9: n{index} is told that {at} is committed, and has another history"));
    }
}
