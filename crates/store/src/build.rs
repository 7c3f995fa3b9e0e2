//! The index of data files that a replica is given: made while they come, so that nobody has to read them again.
//!
//! ```text
//! replication/incoming/index.redb, index.sums   made by IndexBuilder; moved to index/ when the files are put in place
//! ```
//!
//! Where this cannot be done (ActiveMQ wrote some of it, a file is given up by a record in a later one), nothing is left there,
//! and the index is made from the files at the next start, as always.

use std::collections::BTreeSet;
use std::sync::Arc;

use kahawai_env::Files;
use kahawai_journal::{BatchView, INCOMING_DIRECTORY};
use kahawai_types::Lsn;
use tracing::info;

use crate::checked::{CheckedFile, Names};
use crate::checkpoint::{Checkpoint, INDEX_DIRECTORY, INDEX_FILE, IndexError, IndexStore, SUMS_FILE};
use crate::replay::Replayer;
use crate::state::State;

const STAGED: Names = Names {
    directory: INCOMING_DIRECTORY,
    pages: "replication/incoming/index.redb",
    sums: "replication/incoming/index.sums",
    damaged: "replication/incoming/index.damaged",
};

/// Makes an index of batches, from the first one of the first file on.
#[derive(Debug)]
pub struct IndexBuilder {
    state: State,
    replayer: Replayer,
    commit: Lsn,
    applied: Lsn,
    /// Files that had a batch.
    files: BTreeSet<u32>,
    useless: Option<String>,
}

impl IndexBuilder {
    /// Of what is committed: below `commit`.
    pub fn new(commit: Lsn) -> Self {
        let replayer = Replayer::default();
        let (state, files) = (State::new(None), BTreeSet::new());
        Self { state, replayer, commit, applied: Lsn::ZERO, files, useless: None }
    }

    /// The next batch, known to be sound.
    pub fn batch(&mut self, batch: &BatchView) {
        if self.useless.is_some() {
            return;
        }
        self.files.insert(batch.lsn.file());
        if batch.stamp.is_some_and(|stamp| stamp.commit_hint > self.commit) {
            // What records gave up was not needed at that position; before it, it may be.
            return self.give_up("more is committed than was known".to_owned());
        }
        if batch.end() > self.commit {
            return;
        }
        match self.replayer.batch(&mut self.state, batch) {
            Ok(()) => self.applied = batch.end(),
            Err(problem) => self.give_up(problem.to_string()),
        }
    }

    /// Not everything comes.
    pub fn give_up(&mut self, why: String) {
        if self.useless.is_none() {
            info!(why, "the index is made once the files are in place");
            self.useless = Some(why);
            (self.state, self.replayer) = (State::new(None), Replayer::default());
        }
    }

    /// Keeps it, durably, for [`crate::install`]; `false` if there is none to keep.
    pub fn stage(mut self, files: &Arc<dyn Files>) -> Result<bool, IndexError> {
        let is_left_out = self.replayer.collected.iter().any(|(_, file)| self.files.contains(file));
        if is_left_out {
            self.give_up("a data file is not needed any more".to_owned());
        }
        if self.useless.is_some() || self.applied == Lsn::ZERO {
            return Ok(false);
        }
        let replay_from = self.replayer.open_from().map_or(self.applied, |from| from.min(self.applied));
        let checkpoint = Checkpoint::of(&mut self.state, self.applied, replay_from, false);
        IndexStore::open_as(files, STAGED)?.write(checkpoint)?;
        Ok(true)
    }
}

/// Forgets an index that was made for files which are not installed, durably.
pub fn discard_staged(files: &Arc<dyn Files>) -> Result<(), IndexError> {
    CheckedFile::discard(files, STAGED)
        .map_err(|source| IndexError::Io { path: files.describe(STAGED.pages), source })
}

/// The files are in place: moves their index where it belongs, if there is one; the one before was discarded.
pub(crate) fn install_staged(files: &Arc<dyn Files>) -> Result<(), IndexError> {
    let io = |source| IndexError::Io { path: files.describe(STAGED.pages), source };
    let is_whole = files.exists(STAGED.pages).map_err(io)? && files.exists(STAGED.sums).map_err(io)?;
    if !is_whole || files.exists(STAGED.damaged).map_err(io)? {
        return discard_staged(files);
    }
    let rename = || {
        files.create_directory(INDEX_DIRECTORY)?;
        // Without its sums it would be thrown away; a crash in between leads there.
        files.rename(STAGED.sums, SUMS_FILE)?;
        files.rename(STAGED.pages, INDEX_FILE)?;
        files.sync_directory(INDEX_DIRECTORY)?;
        files.sync_directory("")?;
        files.sync_directory(INCOMING_DIRECTORY)
    };
    rename().map_err(io)
}
