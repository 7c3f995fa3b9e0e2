//! I6: everything committed is on every member of the recorded set whose disk is not gone for good.

use super::Oracle;

/// Looks at every member.
pub(crate) fn covered(oracle: &Oracle) -> Result<(), String> {
    let (Some(record), Some(last)) = (&oracle.record, oracle.committed.last()) else { return Ok(()) };
    for replica in &record.in_sync {
        let key = Oracle::key_of(replica);
        if oracle.gone.contains(&key) {
            continue;
        }
        if !oracle.held(key).is_some_and(|held| held.has(last)) {
            let end = oracle.held(key).map(super::Held::end).unwrap_or_default();
            return Err(format!(
                "I6: {} is committed, and {replica} of the in-sync set has {end} and not that (epoch {}, version {})",
                last.end, record.epoch, record.version
            ));
        }
    }
    Ok(())
}
