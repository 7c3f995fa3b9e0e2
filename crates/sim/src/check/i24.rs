//! I24: a replica counts for what it has itself flushed, and for nothing else.

use kahawai_types::{Epoch, Lsn, ReplicaId};

use super::Oracle;
use crate::ctx::Ctx;

/// A primary counts an acknowledgement.
pub(crate) fn acked(ctx: &mut Ctx, epoch: Epoch, replica: &ReplicaId, durable: Lsn) {
    let key = Oracle::key_of(replica);
    let promised = ctx.oracle.promises.get(&key).copied().unwrap_or_default();
    let end = match ctx.oracle.held(key) {
        // A primary that stood still reads what was true before the replica followed another, and was cut. What it commits is
        // looked at on its own.
        Some(held) if promised > epoch => held.furthest,
        Some(held) => held.end(),
        None => Lsn::ZERO,
    };
    // The start of a file is also the end of the one before.
    if durable > end && durable.offset() > 0 {
        ctx.violate(format!("I24: {replica} counts for {durable}, it has flushed {end}"));
    }
}
