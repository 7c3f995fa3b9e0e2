//! I7: who leads has everything that was committed before.

use super::{Oracle, StoreKey};

/// A node is about to lead.
pub(crate) fn leads(oracle: &Oracle, key: StoreKey) -> Result<(), String> {
    let Some(last) = oracle.committed.last() else { return Ok(()) };
    if oracle.held(key).is_some_and(|held| held.has(last)) {
        return Ok(());
    }
    let end = oracle.held(key).map(super::Held::end).unwrap_or_default();
    Err(format!(
        "I7: n{} leads with a journal that ends at {end} and lacks what was committed up to {}",
        key.0, last.end
    ))
}
