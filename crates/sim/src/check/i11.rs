//! I11: no member of the in-sync set cuts what is committed, unless an operator forced it; what is cut is kept aside first. Others count
//! for nothing: one of them may cut, late, what the primary of an earlier epoch did not have, and a later one has committed.

use kahawai_journal::Truncated;
use kahawai_store::Identity;
use kahawai_types::Lsn;

use super::{Oracle, key};
use crate::ctx::Ctx;

/// A journal is about to be cut.
pub(crate) fn truncating(ctx: &mut Ctx, index: usize, identity: &Identity, to: Lsn, unclean: bool) {
    if let Some(held) = ctx.oracle.held.get_mut(&key(index, identity)) {
        held.cut_to = Some(to);
    }
    if unclean {
        return;
    }
    let oracle = &ctx.oracle;
    let Some(held) = oracle.held(key(index, identity)) else { return };
    let is_member = oracle.record.as_ref().is_none_or(|record| {
        record.in_sync.iter().any(|replica| Oracle::key_of(replica) == key(index, identity))
    });
    let first = held.batches.partition_point(|batch| batch.start < to);
    let Some(first) = held.batches.get(first) else { return };
    let place = oracle.committed.partition_point(|batch| batch.start < first.start);
    let is_committed = oracle
        .committed
        .get(place)
        .is_some_and(|batch| batch.start == first.start && batch.chain == first.chain);
    if is_committed && is_member {
        ctx.violate(format!("I11: n{index} cuts its journal at {to}, what it drops was committed"));
    }
}

/// It was cut.
pub(crate) fn truncated(
    ctx: &mut Ctx,
    index: usize,
    identity: &Identity,
    to: Lsn,
    cut: &Truncated,
    is_empty: bool,
) {
    ctx.oracle.counts.cuts += 1;
    if cut.dropped_bytes > 0 && cut.saved_as.is_empty() {
        ctx.violate(format!("I11: n{index} cut {} bytes at {to} and kept none of them", cut.dropped_bytes));
    }
    if let Some(held) = ctx.oracle.held.get_mut(&key(index, identity)) {
        held.batches.retain(|batch| batch.start < to && !is_empty);
    }
}
