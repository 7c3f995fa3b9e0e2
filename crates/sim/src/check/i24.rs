//! I24: a replica counts for what it has itself flushed, and for nothing else.

use kahawai_types::{Lsn, ReplicaId};

use super::Oracle;
use crate::ctx::Ctx;

/// A primary counts an acknowledgement.
pub(crate) fn acked(ctx: &mut Ctx, replica: &ReplicaId, durable: Lsn) {
    let end = ctx.oracle.held(Oracle::key_of(replica)).map(super::Held::end).unwrap_or_default();
    // The start of a file is also the end of the one before.
    if durable > end && durable.offset() > 0 {
        ctx.violate(format!("I24: {replica} counts for {durable}, it has flushed {end}"));
    }
}
