//! I10: what is applied is committed, and what is committed here is flushed here.

use kahawai_store::OpenedFollower;
use kahawai_types::Lsn;

use crate::ctx::Ctx;
use crate::node::following::Following;

/// A replica at work.
pub(crate) fn follower(index: usize, following: &Following) -> Result<(), String> {
    let (applied, commit) = (following.follower.applied(), following.follower.committed());
    let (known, durable) = (following.commit, following.durable);
    if applied > commit.max(known) || applied > durable {
        return Err(format!("I10: n{index} has applied {applied}, committed {commit}, flushed {durable}"));
    }
    Ok(())
}

/// A store that was opened holds nothing in its index that was never committed.
pub(crate) fn opened(ctx: &Ctx, index: usize, opened: &OpenedFollower) -> Result<(), String> {
    // What an operator gave up is still there until this node hears of it.
    if ctx.oracle.has_lost {
        return Ok(());
    }
    let (applied, commit) = (opened.follower.applied(), ctx.oracle.committed_end());
    let damaged = ctx.oracle.damaged.get(index).copied().unwrap_or(false);
    if applied > commit && applied > Lsn::ZERO && !damaged {
        return Err(format!(
            "I10: the index of n{index} has {applied} after its start, {commit} is committed"
        ));
    }
    Ok(())
}
