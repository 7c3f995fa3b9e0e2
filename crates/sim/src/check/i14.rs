//! I14: only who is in the recorded set, with the very store, becomes the primary.

use kahawai_election::ClusterRecord;
use kahawai_types::{Epoch, ReplicaId};

use super::Oracle;

/// The record names a new primary.
pub(crate) fn recorded(before: &ClusterRecord, record: &ClusterRecord) -> Result<(), String> {
    let Some(primary) = record.primary.as_ref().filter(|_| record.epoch > before.epoch) else {
        return Ok(());
    };
    if before.in_sync.contains(&primary.replica()) || record.unclean_generation > before.unclean_generation {
        return Ok(());
    }
    Err(format!("I14: {} leads in epoch {} and was not in sync", primary.replica(), record.epoch))
}

/// A node begins to lead.
pub(crate) fn leads(oracle: &Oracle, me: &ReplicaId, epoch: Epoch) -> Result<(), String> {
    let Some(record) = &oracle.record else { return Ok(()) };
    if record.epoch > epoch || record.in_sync.contains(me) {
        return Ok(());
    }
    Err(format!("I14: {me} leads in epoch {epoch} and is not in sync"))
}
