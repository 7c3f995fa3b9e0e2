//! Cutting a closed journal back to where it parted from its primary's.
//!
//! ```text
//! replication/cut   there while a cut is under way: whoever opens the journal finishes it first
//! KW1C | lsn u64 | XXH3-64 of all that u64
//! ```
//!
//! Without it, a crash half way could leave what looks like damage: the rest of a batch whose beginning is gone.

use std::io;
use std::sync::Arc;

use kahawai_env::{Files, OpenMode};
use kahawai_types::{Location, Lsn};
use tracing::warn;

use crate::aside::{POSITION_FILE_BYTES, decode_position, encode_position, read_small_file, replace_file};
use crate::format::{Chain, FILE_BYTES_LIMIT, data_file_name};
use crate::history::{EPOCHS_FILE, chain_before, recorded_epochs};
use crate::open::{clear_from, save};
use crate::scan::{Catalog, Directory};
use crate::sealed::{SUMS_DIRECTORY, forget_sums};
use crate::tail::content_end;
use crate::{DIVERGENT_BYTES_MAX, DIVERGENT_DIRECTORY, ReadError, record_epochs};

pub(crate) const CUT_FILE: &str = "replication/cut";
const CUT_MAGIC: &[u8; 4] = b"KW1C";

/// Why a journal was not cut.
#[derive(Debug, thiserror::Error)]
pub enum TruncateError {
    /// Nothing was changed.
    #[error("{at} is not a place between two batches of this journal")]
    NoBoundary {
        /// Where it should be cut.
        at: Lsn,
    },
    /// The journals differ before the place where they should part: one of them is damaged. Nothing was changed.
    #[error("the journal before {at} has chain {found}, the primary's has {expected}")]
    Chain {
        /// Where it should be cut.
        at: Lsn,
        /// Ours.
        found: Chain,
        /// The primary's.
        expected: Chain,
    },
    /// What is before that place cannot be read. Nothing was changed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The operating system says no. Calling again goes on where this stopped.
    #[error("{file}: {action}")]
    Io {
        /// Full name.
        file: String,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// What [`truncate`] did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Truncated {
    /// Bytes dropped, filler not counted.
    pub dropped_bytes: u64,
    /// Copies of what was dropped, oldest first; at most [`DIVERGENT_BYTES_MAX`] in all.
    pub saved_as: Vec<String>,
}

/// Drops everything from `to` on from the journal in a directory that nobody has open. `to` lies between two batches; the end
/// of a file and the start of the next are one place there. With `expected_chain` nothing is dropped unless the journal has
/// this chain before `to`.
///
/// What is dropped is copied to [`DIVERGENT_DIRECTORY`] first. A crash leaves the old journal, or one whose cutting
/// [`crate::Journal::open`] or the next call finishes.
pub fn truncate(
    files: &Arc<dyn Files>,
    to: Lsn,
    expected_chain: Option<Chain>,
) -> Result<Truncated, TruncateError> {
    let io = |name: &str, action| {
        let file = files.describe(name);
        move |source| TruncateError::Io { file, action, source }
    };
    crate::retire::finish(files).map_err(|(name, source)| io(&name, "finish a deletion")(source))?;
    let directory = Directory::list(files.clone()).map_err(io("", "list"))?;
    if directory.ids.contains(&to.file()) {
        // As at opening: believed is what the disk has, not what the cache shows.
        let name = data_file_name(to.file());
        let file = files.open(&name, OpenMode::Write).map_err(io(&name, "open"))?;
        file.sync_data().map_err(io(&name, "flush"))?;
        file.drop_cache().map_err(io(&name, "drop from the cache"))?;
    }
    let catalog: Arc<dyn Catalog> = Arc::new(directory);
    let found = chain_before(&catalog, to)?.ok_or(TruncateError::NoBoundary { at: to })?;
    if let Some(expected) = expected_chain.filter(|&expected| expected != found) {
        return Err(TruncateError::Chain { at: to, found, expected });
    }
    cut_at(files, to)
}

/// Cuts where a cut was found to be right.
fn cut_at(files: &Arc<dyn Files>, to: Lsn) -> Result<Truncated, TruncateError> {
    let io = |name: &str, action| {
        let file = files.describe(name);
        move |source| TruncateError::Io { file, action, source }
    };
    let directory = Directory::list(files.clone()).map_err(io("", "list"))?;
    // The file that stays the last one, and where it ends. Without one before, the first stays as an empty one: it is what
    // knows that ids below are used up.
    let last = match to.offset() {
        0 => directory.ids.range(..to.file()).next_back().or(directory.ids.first()).copied(),
        _ => Some(to.file()),
    };
    let Some(last) = last else {
        clear_intent(files).map_err(io(CUT_FILE, "remove"))?;
        return Ok(Truncated::default());
    };
    let end = if last < to.file() { None } else { Some(Location::new(last, to.offset()).lsn()) };
    let mut truncated = Truncated::default();
    let mut room = DIVERGENT_BYTES_MAX;
    let tail = end.into_iter();
    let later: Vec<u32> = directory.ids.range(last.saturating_add(1)..).copied().collect();
    let mut dropped_end = 0;
    for from in tail.chain(later.iter().map(|&id| Location::new(id, 0).lsn())) {
        let name = data_file_name(from.file());
        let file = files.open(&name, OpenMode::Read).map_err(io(&name, "open"))?;
        let content = content_end(&*file, from.offset().into()).map_err(io(&name, "read"))?;
        let bytes = content.saturating_sub(from.offset().into());
        if from.file() == last {
            dropped_end = content.min(FILE_BYTES_LIMIT);
        }
        truncated.dropped_bytes += bytes;
        let kept = bytes.min(room);
        if kept > 0 {
            room -= kept;
            let copy = save(files, &*file, from, kept).map_err(io(DIVERGENT_DIRECTORY, "keep a copy"))?;
            truncated.saved_as.push(copy);
        }
    }
    if truncated.dropped_bytes == 0 && later.is_empty() {
        clear_intent(files).map_err(io(CUT_FILE, "remove"))?;
        return Ok(truncated);
    }
    replace_file(files, CUT_FILE, &encode_position(CUT_MAGIC, to)).map_err(io(CUT_FILE, "write"))?;
    forget_sums(files, |id| id >= last).map_err(io(SUMS_DIRECTORY, "clear"))?;
    let mut epochs = recorded_epochs(files).map_err(io(EPOCHS_FILE, "read"))?;
    let all = epochs.len();
    epochs.retain(|epoch| epoch.start < to);
    if epochs.len() < all {
        record_epochs(files, &epochs).map_err(io(EPOCHS_FILE, "write"))?;
    }
    for &id in later.iter().rev() {
        let name = data_file_name(id);
        files.remove(&name).map_err(io(&name, "remove"))?;
    }
    files.sync_directory("").map_err(io("", "flush"))?;
    if let Some(end) = end.filter(|end| dropped_end > end.offset().into()) {
        let name = data_file_name(last);
        let file = files.open(&name, OpenMode::Write).map_err(io(&name, "open"))?;
        clear_from(&*file, end.offset().into(), dropped_end).map_err(io(&name, "cut"))?;
    }
    clear_intent(files).map_err(io(CUT_FILE, "remove"))?;
    warn!(location = %to, bytes = truncated.dropped_bytes, "cut the journal back to where it parts from the primary's");
    Ok(truncated)
}

/// Finishes a cut that a crash interrupted.
pub(crate) fn finish(files: &Arc<dyn Files>) -> Result<(), TruncateError> {
    let name = || files.describe(CUT_FILE);
    let content = read_small_file(files, CUT_FILE, POSITION_FILE_BYTES)
        .map_err(|source| TruncateError::Io { file: name(), action: "read", source })?;
    let Some(content) = content else { return Ok(()) };
    let to = decode_position(CUT_MAGIC, &content).ok_or_else(|| {
        let source = io::Error::new(io::ErrorKind::InvalidData, "the place of a cut under way is unreadable");
        TruncateError::Io { file: name(), action: "read", source }
    })?;
    cut_at(files, to).map(drop)
}

/// No cut is under way any more: whatever is written from here on stays.
pub(crate) fn clear_intent(files: &Arc<dyn Files>) -> io::Result<()> {
    if files.exists(CUT_FILE)? {
        files.remove(CUT_FILE)?;
        files.sync_directory("replication")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_place_of_a_cut_reads_back(to: u64, flip in 1u8.., at in 0..POSITION_FILE_BYTES, any: Vec<u8>) {
            let mut content = encode_position(CUT_MAGIC, Lsn(to));
            prop_assert_eq!(decode_position(CUT_MAGIC, &content), Some(Lsn(to)));
            content[at] ^= flip;
            prop_assert_eq!(decode_position(CUT_MAGIC, &content), None);
            let _ = decode_position(CUT_MAGIC, &any);
        }
    }
}
