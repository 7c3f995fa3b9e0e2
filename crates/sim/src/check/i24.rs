//! I24: a replica counts for what it has itself flushed, and for nothing else.

use kahawai_types::{Epoch, Lsn, ReplicaId};

use super::Oracle;
use crate::ctx::Ctx;
use crate::node::{Node, Role};

/// A primary counts an acknowledgement.
pub(crate) fn acked(ctx: &mut Ctx, epoch: Epoch, replica: &ReplicaId, durable: Lsn) {
    let key = Oracle::key_of(replica);
    let promised = ctx.oracle.promises.get(&key).copied().unwrap_or_default();
    let is_damaged = ctx.oracle.damaged.get(key.0).copied().unwrap_or(false);
    let end = match ctx.oracle.held(key) {
        // What was under way when its disk was put back was true when it was sent; [`look`] looks at the process since.
        Some(held) if is_damaged => held.furthest,
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

/// Of a disk that was put back, its new process counts for no more than there is on it.
pub(crate) fn look(ctx: &mut Ctx, nodes: &[Node]) {
    for node in nodes {
        let Some(Role::Leading(leading)) = node.process.as_ref().map(|process| &process.role) else {
            continue;
        };
        for replica in leading.primary.status().replicas {
            let key = Oracle::key_of(&replica.replica);
            let is_damaged = ctx.oracle.damaged.get(key.0).copied().unwrap_or(false);
            let Some(held) = ctx.oracle.held(key) else { continue };
            let is_its = replica.connected == Some(ctx.boot_of(key.0));
            if is_damaged && is_its && replica.durable > held.end() && replica.durable.offset() > 0 {
                let (durable, end) = (replica.durable, held.end());
                let text = format!("I24: {} counts for {durable}, its disk has {end}", replica.replica);
                return ctx.violate(text);
            }
        }
    }
}
