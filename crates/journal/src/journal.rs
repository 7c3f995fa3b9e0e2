//! One journal, opened.

use std::io;
use std::sync::{Arc, Mutex};

use kahawai_env::Files;
use kahawai_types::{BootId, ClusterId, Epoch, Lsn, NodeId, StoreId};

use crate::append::{Core, State};
use crate::format::{Chain, EpochMarker, NODE_ID_BYTES_MAX};
use crate::history::EPOCHS_FILE;
use crate::prepare::NextFile;
use crate::retire::{self, TOGETHER_MAX};
use crate::scrub::{self, Scrubber};
use crate::shared::{Shared, unpoison};
use crate::{
    AppendError, Appended, Appender, DataFile, JournalFailed, JournalOptions, JournalReader, JournalStats,
    KnownPositions, OpenError, Preparer, Recovery, Writer,
};

/// A new reign: what its marker says, without what the journal knows itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewEpoch {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The epoch that was granted; higher than all in the journal.
    pub epoch: Epoch,
    /// Who writes.
    pub node_id: NodeId,
    /// Into which data directory.
    pub store_id: StoreId,
    /// In which life.
    pub boot_id: BootId,
    /// Revision of the election record.
    pub revision: u64,
    /// An operator accepted that confirmed data may be missing.
    pub unclean: bool,
}

/// Why an epoch was not begun.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EpochError {
    /// Epochs only grow.
    #[error("epoch {epoch} is not above {last}, which the journal has")]
    NotNewer {
        /// As asked for.
        epoch: Epoch,
        /// The newest in the journal.
        last: Epoch,
    },
    /// Damage in an older file of ActiveMQ's; an operator may adopt a chain.
    #[error("the chain at the end of the journal is unknown")]
    UnknownChain,
    /// The marker holds no longer one.
    #[error("a node's name of {bytes} bytes, the limit is {NODE_ID_BYTES_MAX}")]
    NodeName {
        /// Its length.
        bytes: usize,
    },
    /// The marker was not taken.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Why a data file was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    /// Only files before the one with the durable end are ever deleted.
    #[error("db-{file}.log is in use, the journal ends at {end}")]
    InUse {
        /// Its id.
        file: u32,
        /// The durable end.
        end: Lsn,
    },
    /// The operating system says no.
    #[error("{file}: delete")]
    Io {
        /// Full name.
        file: String,
        /// Why.
        source: io::Error,
    },
}

/// An open journal. All clones are the same one.
///
/// The node must hold the directory's [`kahawai_env::Lock`]: two open journals on one directory destroy each other.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    parts: Arc<Mutex<(Option<Writer>, Option<Preparer>)>>,
}

impl Journal {
    /// Opens a directory: checks the end of the newest file, cuts a torn tail, refuses damage. Older files are checked as
    /// they are read, or all at once by [`crate::verify`].
    ///
    /// Takes time for one file, not for all; except for a directory whose newest file ActiveMQ wrote, which is read once to
    /// know the chain over it.
    pub fn open(
        files: Arc<dyn Files>,
        options: JournalOptions,
        known: KnownPositions,
    ) -> Result<(Self, Recovery), OpenError> {
        let opened = crate::open::open(&files, &options, known)?;
        let append_at = opened.append_at;
        let end = opened.recovery.end;
        let core = Core::new(&options, end, append_at, opened.links.epoch, opened.links.chain.is_some());
        let wanted = append_at.file + u32::from(opened.current.is_some());
        let next = NextFile::new(wanted, opened.untouched);
        let shared = Arc::new(Shared::new(files, options, core, next, opened.used, end));
        let current = opened.current.map(|file| (append_at.file, file));
        let written = if current.is_some() { end } else { append_at.lsn() };
        let writer = Writer::new(shared.clone(), opened.links, written, current);
        let preparer = Preparer { shared: shared.clone() };
        let parts = Arc::new(Mutex::new((Some(writer), Some(preparer))));
        Ok((Self { shared, parts }, opened.recovery))
    }

    /// Begins the reign that this process writes in; before it, nothing can be appended. The marker becomes the first record,
    /// and the record returned.
    pub fn begin_epoch(&self, new: NewEpoch) -> Result<Appended, EpochError> {
        let NewEpoch { cluster_id, epoch, node_id, store_id, boot_id, revision, unclean } = new;
        if node_id.0.len() > NODE_ID_BYTES_MAX {
            return Err(EpochError::NodeName { bytes: node_id.0.len() });
        }
        self.shared.forget_reads();
        let mut core = self.shared.core();
        let last = core.last_epoch;
        if epoch <= last {
            return Err(EpochError::NotNewer { epoch, last });
        }
        if !core.chain_known {
            return Err(EpochError::UnknownChain);
        }
        // Where it begins and on top of what is known when the batch is sealed; the size is the same.
        let (start, chain_before) = (Lsn::ZERO, Chain::default());
        let marker = EpochMarker {
            cluster_id,
            epoch,
            previous: last,
            start,
            chain_before,
            node_id,
            store_id,
            boot_id,
            revision,
            unclean,
        };
        let appended = core.begin_epoch(marker);
        self.shared.release(core);
        Ok(appended?)
    }

    /// Why nothing is confirmed any more, once that is so.
    pub fn failure(&self) -> Option<JournalFailed> {
        match &self.shared.core().state {
            State::Failed(failed) => Some(failed.clone()),
            State::Running | State::Closed => None,
        }
    }

    /// The reign of the newest batch of ours; 0 if there is none.
    pub fn last_epoch(&self) -> Epoch {
        self.shared.core().last_epoch
    }

    /// For those who add records.
    pub fn appender(&self) -> Appender {
        Appender { shared: self.shared.clone() }
    }

    /// For the journal thread. `None` the second time.
    pub fn take_writer(&self) -> Option<Writer> {
        unpoison(self.parts.lock()).0.take()
    }

    /// For the thread that makes files ahead. `None` the second time. Without it the writer makes them itself.
    pub fn take_preparer(&self) -> Option<Preparer> {
        unpoison(self.parts.lock()).1.take()
    }

    /// For those who read.
    pub fn reader(&self) -> JournalReader {
        JournalReader { shared: self.shared.clone() }
    }

    /// Raises the commit position that goes into the stamps of coming batches.
    pub fn note_commit(&self, commit: Lsn) {
        self.shared.note_commit(commit);
    }

    /// Deletes data files, durably, with a few flushes however many they are. Those that are not there are no matter. Readers
    /// that are in one finish undisturbed. If an epoch began in one, that is recorded first.
    ///
    /// After a crash half way the next start has all of them, or none; of very many, ever more of the older ones are gone. After
    /// an error any may be gone, but no newer one before an older one: to be asked for again.
    pub fn retire(&self, files: impl IntoIterator<Item = u32>) -> Result<(), RetireError> {
        let mut ids: Vec<u32> = files.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        let end = self.shared.durable();
        if let Some(&file) = ids.iter().find(|&&file| file >= end.file()) {
            return Err(RetireError::InUse { file, end });
        }
        let failed = |(name, source): (String, io::Error)| RetireError::Io {
            file: self.shared.files.describe(&name),
            source,
        };
        for together in ids.chunks(TOGETHER_MAX) {
            let kept = self.reader().keep_epochs_of(together);
            kept.map_err(|source| failed((EPOCHS_FILE.to_owned(), source)))?;
            // All at once: who lists files to copy them does not name one that goes in a moment.
            unpoison(self.shared.used.write()).retain(|id| together.binary_search(id).is_err());
            together.iter().for_each(|&id| self.shared.forget_handle(id));
            retire::remove(&self.shared.files, together).map_err(failed)?;
        }
        Ok(())
    }

    /// For the thread that looks for damage, reading so many bytes a second; 0 = it looks only where readers have met some. It ends
    /// when the journal is closed.
    pub fn scrubber(&self, bytes_per_s: u64) -> Scrubber {
        Scrubber::new(self.shared.clone(), bytes_per_s)
    }

    /// Something of this data file cannot be read, and waits: it is looked at by [`Journal::scrubber`], which tells whether it is
    /// damaged or to be read again. Readers say so by themselves; this is for whoever has put something aside since.
    pub fn suspect(&self, file: u32) {
        self.shared.suspicion.note(file);
    }

    /// Puts a sound copy in the place of a damaged data file that is written to no more: see [`Damage`]. The copy lies at `path`,
    /// was checked, and is durable. `false` if that file is gone.
    pub fn replace_file(&self, file: u32, path: &str) -> io::Result<bool> {
        scrub::replace(&self.shared, file, path)
    }

    /// Data files in which damage was found and that were not replaced, with where and what; and how many were replaced.
    pub fn damaged(&self) -> (Vec<(u32, String)>, u64) {
        self.shared.suspicion.found()
    }

    /// The data files with batches, ascending. Files that vanish meanwhile are left out.
    pub fn files(&self) -> Vec<DataFile> {
        let ids: Vec<u32> = unpoison(self.shared.used.read()).iter().copied().collect();
        let with_length = |id| Some(DataFile { id, bytes: self.shared.handle(id).ok()?.len().ok()? });
        ids.into_iter().filter_map(with_length).collect()
    }

    /// Takes no more records. The writer gets what was appended so far and then `None`; the preparer ends.
    pub fn close(&self) {
        let mut core = self.shared.core();
        if matches!(core.state, State::Running) {
            core.state = State::Closed;
        }
        self.shared.release(core);
        self.shared.next.close();
        self.shared.suspicion.close();
    }

    /// Space that is left for more files; `None` = that is not known.
    pub fn free_bytes(&self) -> Option<u64> {
        self.shared.files.free_bytes().ok().flatten()
    }

    /// What was done so far.
    pub fn stats(&self) -> JournalStats {
        self.shared.counters.read()
    }
}
