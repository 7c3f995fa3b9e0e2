//! I19: at the same position the indexes of all nodes are the same.

use kahawai_types::Lsn;

use crate::ctx::Ctx;

/// So many positions are remembered.
const DIGESTS_MAX: usize = 64;

/// Compares now and then: a digest costs as much as the index is large.
pub(crate) fn compare(ctx: &mut Ctx, index: usize, applied: Lsn, digest: impl FnOnce() -> Option<u64>) {
    let is_known = ctx.oracle.digests.contains_key(&applied);
    if ctx.random.chance(if is_known { 4 } else { 24 }) {
        look(ctx, index, applied, digest);
    }
}

/// Compares.
pub(crate) fn look(ctx: &mut Ctx, index: usize, applied: Lsn, digest: impl FnOnce() -> Option<u64>) {
    if ctx.oracle.installed.iter().any(|(key, until)| key.0 == index && applied < *until) {
        return;
    }
    // At the same place lies something else now.
    if ctx.oracle.has_lost {
        return;
    }
    // In a file of which nothing is applied: the place has two numbers.
    if applied.offset() == 0 {
        return;
    }
    let Some(digest) = digest() else { return };
    let known = ctx.oracle.digests.insert(applied, digest);
    if let Some(known) = known {
        ctx.oracle.counts.digests += 1;
        if known != digest {
            ctx.violate(format!(
                "I19: the index of n{index} at {applied} is another than that of a node before"
            ));
        }
    }
    while ctx.oracle.digests.len() > DIGESTS_MAX {
        ctx.oracle.digests.pop_first();
    }
}
