//! I3: the same place and epoch on two nodes means the same bytes, and the same everything before.

use std::collections::BTreeMap;

use kahawai_types::{Epoch, Lsn};

use super::Batch;

/// Compares a batch with what else was ever seen at its place in its epoch.
pub(crate) fn same(seals: &mut BTreeMap<(Lsn, Epoch), u64>, batch: &Batch) -> Result<(), String> {
    match seals.insert((batch.start, batch.epoch), batch.chain) {
        Some(before) if before != batch.chain => {
            Err(format!("I3: two batches at {} in epoch {}", batch.start, batch.epoch))
        }
        _ => Ok(()),
    }
}
