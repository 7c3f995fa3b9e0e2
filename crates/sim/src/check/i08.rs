//! I8: a marker is written only on top of everything that may have been confirmed, all of it durable here.

use kahawai_types::{Epoch, Lsn, ReplicaId};

use super::{Oracle, i01, i07, i14};
use crate::ctx::Ctx;

/// A node is about to write its marker.
pub(crate) fn promotes(
    ctx: &mut Ctx,
    index: usize,
    me: &ReplicaId,
    epoch: Epoch,
    unclean: bool,
    durable: Lsn,
) {
    let key = Oracle::key_of(me);
    if !unclean && !ctx.oracle.is_dying {
        let outcome = i07::leads(&ctx.oracle, key, epoch);
        ctx.require(outcome);
        let outcome = i14::leads(&ctx.oracle, me, epoch);
        ctx.require(outcome);
    }
    let held = ctx.oracle.held(key).map(super::Held::end).unwrap_or_default();
    if held != durable && held != Lsn::ZERO {
        ctx.violate(format!("I8: n{index} begins its marker at {durable}, and has flushed up to {held}"));
    }
    let boot = ctx.boot_of(index);
    let outcome = i01::reigns(&mut ctx.oracle, epoch, key, boot);
    ctx.require(outcome);
}
