//! I16: no process writes in an epoch of an earlier life.

use kahawai_types::Epoch;

use super::{Oracle, StoreKey};

/// A primary has formed a batch.
pub(crate) fn sealed(oracle: &Oracle, key: StoreKey, epoch: Epoch) -> Result<(), String> {
    match oracle.reigns.get(&epoch) {
        Some((led, _)) if *led == key => Ok(()),
        Some((led, _)) => Err(format!("I16: n{} writes in epoch {epoch}, which is n{}'s", key.0, led.0)),
        None => Err(format!("I16: n{} writes in epoch {epoch}, which nobody began", key.0)),
    }
}
