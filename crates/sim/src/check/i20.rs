//! I20: a data file goes only by a committed decision, and never one that holds what is not yet committed.

use kahawai_store::Identity;

use crate::ctx::Ctx;

/// A data file was deleted.
pub(crate) fn retired(ctx: &mut Ctx, index: usize, identity: &Identity, file: u32) {
    let _ = identity;
    ctx.oracle.counts.deleted += 1;
    crate::plan::file_deleted(ctx, index);
    let commit = ctx.oracle.committed_end();
    // Who stood still while a loss was declared goes on by what was committed before.
    if file >= commit.file() && !ctx.oracle.has_lost {
        ctx.violate(format!("I20: n{index} deletes data file {file}, {commit} is committed"));
    }
}
