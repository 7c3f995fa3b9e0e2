//! I4: what a store has promised never decreases, also over restarts, and nothing of another reign has an effect.

use kahawai_kdbr::Frame;
use kahawai_store::Identity;
use kahawai_types::Epoch;

use super::{Oracle, key};
use crate::ctx::Ctx;
use crate::node::{Process, Role};

/// A process starts with what its store has promised.
pub(crate) fn started(ctx: &mut Ctx, index: usize, identity: &Identity) {
    let key = key(index, identity);
    let before = ctx.oracle.promises.get(&key).copied().unwrap_or(Epoch(0));
    let is_damaged = ctx.oracle.damaged.get(index).copied().unwrap_or(false);
    if identity.promised_epoch < before && !is_damaged {
        ctx.violate(format!("I4: n{index} had promised epoch {before} and now {}", identity.promised_epoch));
    }
    promised(ctx, index, identity);
}

/// It promises.
pub(crate) fn promised(ctx: &mut Ctx, index: usize, identity: &Identity) {
    let promise = ctx.oracle.promises.entry(key(index, identity)).or_default();
    let before = *promise;
    *promise = before.max(identity.promised_epoch);
    if before > identity.promised_epoch && !ctx.oracle.damaged.get(index).copied().unwrap_or(false) {
        ctx.violate(format!("I4: n{index} goes back from epoch {before} to {}", identity.promised_epoch));
    }
}

/// An acknowledgement leaves only for the reign that is promised.
pub(crate) fn frame_leaves(process: &Process, frame: &Frame) -> Result<(), String> {
    let Frame::JournalUpdateAck(ack) = frame else { return Ok(()) };
    let promised = process.identity.promised_epoch;
    if ack.epoch == promised {
        return Ok(());
    }
    Err(format!("I4: n{} has promised epoch {promised} and acknowledges in {}", process.index, ack.epoch))
}

/// Batches are taken only from the reign that is promised.
pub(crate) fn appends(ctx: &mut Ctx, process: &mut Process) {
    let (index, promised) = (process.index, process.identity.promised_epoch);
    let Some(epoch) = process.sink_epoch() else { return };
    if epoch != promised {
        ctx.violate(format!("I4: n{index} has promised epoch {promised} and takes batches of {epoch}"));
    }
}

/// A node leads only in an epoch that it has promised.
pub(crate) fn leads(oracle: &Oracle, process: &Process) -> Result<(), String> {
    let Role::Leading(leading) = &process.role else { return Ok(()) };
    let promised = oracle.promises.get(&Oracle::key_of(&leading.me)).copied().unwrap_or_default();
    if promised >= leading.epoch {
        return Ok(());
    }
    Err(format!("I4: n{} leads in epoch {} and has promised {promised}", process.index, leading.epoch))
}
