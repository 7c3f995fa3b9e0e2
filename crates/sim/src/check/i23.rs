//! I23: an epoch that the election service issues is above every promise.

use kahawai_election::ClusterRecord;
use kahawai_store::Identity;

use super::key;
use crate::ctx::Ctx;

/// A node was elected.
pub(crate) fn elected(ctx: &mut Ctx, index: usize, identity: &Identity, record: &ClusterRecord) {
    let ours = key(index, identity);
    let highest = ctx.oracle.promises.iter().max_by_key(|(_, epoch)| **epoch);
    if let Some((key, epoch)) = highest
        && *epoch >= record.epoch
        && *key == ours
    {
        let epoch = *epoch;
        ctx.violate(format!("I23: n{index} is elected in epoch {}, it has promised {epoch}", record.epoch));
    }
}
