//! What is done to a replica's store while nobody has it open: cutting the tail that its primary does not have, and putting in
//! the data files that it lacks.

use std::collections::BTreeSet;
use std::sync::Arc;

use kahawai_env::Files;
use kahawai_journal::{Chain, InstallError, Installed, SealedFile, TruncateError, Truncated, data_file_id};
use kahawai_types::{Location, Lsn};

use crate::checkpoint::{IndexError, IndexStore};
use crate::open::known_positions;

/// Why a closed store was left as it is, or half done; then the same call finishes it.
#[derive(Debug, thiserror::Error)]
pub enum ClosedError {
    /// What should go was committed. Nothing was changed.
    #[error("the journal cannot be cut at {to}: this store knows that it is committed up to {applied}")]
    Committed {
        /// Where it should be cut.
        to: Lsn,
        /// How far the index is.
        applied: Lsn,
    },
    /// The journal's part of cutting.
    #[error(transparent)]
    Truncate(#[from] TruncateError),
    /// The journal's part of putting in.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The index, which had to go.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// Cuts a closed store's journal back to `to`, as [`kahawai_journal::truncate`]. `unclean`: an operator accepted that committed
/// data is lost. If this store knows any of it, everything else goes as well: data files may have been deleted by decisions that
/// are lost now, and what was in them lives again elsewhere. It synchronises like an empty one.
pub fn truncate(
    files: &Arc<dyn Files>,
    to: Lsn,
    expected_chain: Option<Chain>,
    unclean: bool,
) -> Result<Truncated, ClosedError> {
    let applied = known_positions(files).commit;
    // The end of a file and the start of the next are one place.
    let committed = applied > to;
    if committed && !unclean {
        return Err(ClosedError::Committed { to, applied });
    }
    if committed {
        IndexStore::discard(files)?;
    }
    let io = |source| IndexError::Io { path: files.describe(""), source };
    let ids: BTreeSet<u32> =
        files.list("").map_err(io)?.into_iter().filter_map(|name| data_file_id(&name)).collect();
    // The file with that place may be one of those that were deleted by what is lost: then what is behind it goes.
    let behind = ids.range(to.file()..).next().filter(|&&behind| committed && behind > to.file());
    let truncated = match behind {
        Some(&behind) => kahawai_journal::truncate(files, Location::new(behind, 0).lsn(), None)?,
        None => kahawai_journal::truncate(files, to, expected_chain)?,
    };
    if committed {
        // After a crash in here it is like one that never knew more.
        kahawai_journal::install(files, &[])?;
    }
    Ok(truncated)
}

/// Makes the data files of a closed store those of `manifest`, as [`kahawai_journal::install`]. The index becomes the one that
/// [`crate::IndexBuilder`] has made of them. Without that it goes, and is made again from the files: what was collected meanwhile
/// promises a journal that gives the same state from its beginning, not from some place in it.
pub fn install(files: &Arc<dyn Files>, manifest: &[SealedFile]) -> Result<Installed, ClosedError> {
    IndexStore::discard(files)?;
    let installed = kahawai_journal::install(files, manifest)?;
    crate::build::install_staged(files)?;
    Ok(installed)
}
