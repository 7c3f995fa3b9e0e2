//! I7: who leads in an epoch has everything that was committed in those before.

use kahawai_types::Epoch;

use super::{Oracle, StoreKey};

/// A node is about to lead.
pub(crate) fn leads(oracle: &Oracle, key: StoreKey, epoch: Epoch) -> Result<(), String> {
    let before = oracle.committed_in.partition_point(|reign| *reign < epoch);
    let Some(last) = before.checked_sub(1).and_then(|last| oracle.committed.get(last)) else { return Ok(()) };
    if oracle.held(key).is_some_and(|held| held.has(last)) {
        return Ok(());
    }
    let end = oracle.held(key).map(super::Held::end).unwrap_or_default();
    Err(format!(
        "I7: n{} leads with a journal that ends at {end} and lacks what was committed up to {}",
        key.0, last.end
    ))
}
