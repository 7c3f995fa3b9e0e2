//! I18: nothing is visible to anybody before it is committed.

use kahawai_types::Lsn;

use super::Oracle;

/// An index has moved.
pub(crate) fn applied(oracle: &Oracle, index: usize, applied: Lsn) -> Result<(), String> {
    if oracle.has_lost {
        return Ok(());
    }
    let commit = oracle.committed_end();
    if applied <= commit || (applied.offset() == 0 && applied.file() > commit.file()) {
        return Ok(());
    }
    Err(format!("I18: the index of n{index} has {applied}, {commit} is committed"))
}
