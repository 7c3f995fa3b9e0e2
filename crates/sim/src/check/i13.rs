//! I13: while a change of the set has no answer, commits satisfy the old set and the new one.

use kahawai_types::Lsn;

use super::{Oracle, last_before};
use crate::node::leading::Leading;

/// A primary has committed.
pub(crate) fn both(oracle: &Oracle, leading: &Leading, at: Lsn) -> Result<(), String> {
    let Some(last) = last_before(&oracle.committed, at) else { return Ok(()) };
    for proposed in leading.proposals.values() {
        for replica in proposed {
            let key = Oracle::key_of(replica);
            if !oracle.gone.contains(&key) && !oracle.held(key).is_some_and(|held| held.has(&last)) {
                return Err(format!(
                    "I13: {} is committed, and {replica} of the proposed set lacks it",
                    last.end
                ));
            }
        }
    }
    Ok(())
}
