//! I1: at most one node is ever primary in an epoch; at most one marker per epoch exists.

use kahawai_journal::SealedBatch;
use kahawai_types::{BootId, Epoch};

use super::{Oracle, StoreKey};

/// A node begins a reign.
pub(crate) fn reigns(oracle: &mut Oracle, epoch: Epoch, key: StoreKey, boot: BootId) -> Result<(), String> {
    match oracle.reigns.insert(epoch, (key, boot)) {
        Some(before) if before != (key, boot) => {
            Err(format!("I1: epoch {epoch} is led by n{} and by n{}", before.0.0, key.0))
        }
        _ => Ok(()),
    }
}

/// The batch with the marker.
pub(crate) fn sealed(oracle: &mut Oracle, key: StoreKey, batch: &SealedBatch) -> Result<(), String> {
    if batch.marker.is_none() {
        return Ok(());
    }
    let here = (batch.start, batch.end, batch.chain.0);
    match oracle.markers.insert(batch.epoch, here) {
        Some(before) if before != here => Err(format!(
            "I1: n{} writes a marker of epoch {} at {}, there is one at {}",
            key.0, batch.epoch, batch.start, before.0
        )),
        _ => Ok(()),
    }
}
