//! The next data file is written with zeros before it is needed, so that flushes into it commit no metadata: worth a third of
//! the rate.
//!
//! ```text
//! db-next.tmp: end mark, zeros in steps, flush -> rename to db-<N>.log -> flush the directory -> ready
//! ```
//!
//! A crash leaves `db-next.tmp`, which the next start deletes, or an untouched last file, which it uses. A file is handed out
//! only when it and its name are durable.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex};

use kahawai_env::{File, Files, OpenMode, PAGE_BYTES};
use kahawai_types::Location;
use tracing::warn;

use crate::FailedStep;
use crate::format::{END_MARK, data_file_name};
use crate::sealed::{Sum, remember};
use crate::shared::{Shared, unpoison};
use crate::stats::count;

/// The file being made.
pub(crate) const NEXT_FILE_NAME: &str = "db-next.tmp";
/// Zeros are written and flushed in steps, so that no flush of the journal waits behind a whole file.
pub(crate) const ZERO_STEP_BYTES: usize = 1 << 20;

/// More than that is not kept in mind for a preparer that is slow.
const SEALED_MAX: usize = 64;

pub(crate) static ZEROS: [u8; ZERO_STEP_BYTES] = [0; ZERO_STEP_BYTES];

/// Between writer and preparer.
#[derive(Debug)]
pub(crate) struct NextFile {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// The file that the writer will need next.
    wanted: u32,
    progress: Progress,
    /// Files that exist and hold nothing, left by an earlier life.
    untouched: BTreeSet<u32>,
    /// What is known of files that are written to no more, to be kept; the oldest go if nobody does that.
    sealed: VecDeque<Sum>,
    closed: bool,
}

#[derive(Debug)]
enum Progress {
    Missing,
    UnderWay,
    Ready(Arc<dyn File>),
    /// Making it failed. The writer will try itself when it needs it, and fail the journal if it cannot.
    GaveUp,
}

impl NextFile {
    pub(crate) fn new(wanted: u32, untouched: BTreeSet<u32>) -> Self {
        let progress = Progress::Missing;
        let state = State { wanted, progress, untouched, sealed: VecDeque::new(), closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(crate) fn close(&self) {
        unpoison(self.state.lock()).closed = true;
        self.changed.notify_all();
    }

    /// Whoever prepares files keeps that as well: the writer does not wait for it.
    pub(crate) fn sealed(&self, sum: Sum) {
        let mut state = unpoison(self.state.lock());
        state.sealed.push_back(sum);
        if state.sealed.len() > SEALED_MAX {
            state.sealed.pop_front();
        }
        drop(state);
        self.changed.notify_all();
    }

    fn take_sealed(&self) -> VecDeque<Sum> {
        std::mem::take(&mut unpoison(self.state.lock()).sealed)
    }

    /// The file `id`, opened to be written, durable with its name. `true` if it had to be made now.
    pub(crate) fn take(&self, files: &dyn Files, id: u32) -> io::Result<(Arc<dyn File>, bool)> {
        let mut state = unpoison(self.state.lock());
        while matches!(state.progress, Progress::UnderWay) {
            state = unpoison(self.changed.wait(state));
        }
        let progress = std::mem::replace(&mut state.progress, Progress::Missing);
        let prepared = std::mem::replace(&mut state.wanted, id.saturating_add(1));
        let untouched = state.untouched.remove(&id);
        drop(state);
        self.changed.notify_all();
        match progress {
            Progress::Ready(file) if prepared == id => return Ok((file, false)),
            // A replica whose primary skipped file ids. An empty file in the middle would do no harm.
            Progress::Ready(_) => files.remove(&data_file_name(prepared))?,
            Progress::Missing | Progress::UnderWay | Progress::GaveUp => {}
        }
        Ok((make_now(files, id, untouched)?, true))
    }
}

/// An empty file, as small as can be. Untouched ones were found to hold nothing.
fn make_now(files: &dyn Files, id: u32, untouched: bool) -> io::Result<Arc<dyn File>> {
    let mode = if untouched { OpenMode::Write } else { OpenMode::CreateNew };
    let file = files.open(&data_file_name(id), mode)?;
    // ActiveMQ's may have stray end marks.
    file.set_len(0)?;
    file.write_at(&END_MARK, 0)?;
    file.sync_all()?;
    files.sync_directory("")?;
    Ok(file)
}

/// Why a file could not be prepared.
enum PrepareError {
    /// Nothing was left behind that anybody would use.
    Discarded(io::Error),
    /// A flush failed: nobody knows what the disk holds.
    Flush(io::Error),
}

/// Writes the end mark and zeros up to `bytes`. Past the cache, so that the zeros cost neither memory nor processor time, nor
/// pile up in front of the next flush of the file that is written to; where that cannot be, each step is flushed.
fn fill(file: &dyn File, bytes: u64) -> Result<(), PrepareError> {
    let mut first = [0; PAGE_BYTES];
    let first = first.get_mut(..(bytes as usize).min(PAGE_BYTES)).unwrap_or_default();
    if let Some(mark) = first.get_mut(..END_MARK.len()) {
        mark.copy_from_slice(&END_MARK);
    }
    file.write_at(first, 0).map_err(PrepareError::Discarded)?;
    let mut at = first.len() as u64;
    while at < bytes {
        // Steps end at multiples of their size.
        let step = (ZERO_STEP_BYTES as u64 - at % ZERO_STEP_BYTES as u64).min(bytes - at);
        if !file.write_zeros_at(at, step).map_err(PrepareError::Discarded)? {
            file.sync_data().map_err(PrepareError::Flush)?;
        }
        at += step;
    }
    file.sync_all().map_err(PrepareError::Flush)
}

fn make_ahead(
    files: &dyn Files,
    id: u32,
    untouched: bool,
    bytes: u64,
) -> Result<Arc<dyn File>, PrepareError> {
    let name = data_file_name(id);
    if untouched {
        // It holds nothing, but perhaps it is sparse or has stray end marks. Half done it does no harm.
        let file = files.open(&name, OpenMode::Write).map_err(PrepareError::Discarded)?;
        if file.len().map_err(PrepareError::Discarded)? > bytes {
            file.set_len(bytes).map_err(PrepareError::Discarded)?;
        }
        fill(&*file, bytes)?;
        files.sync_directory("").map_err(PrepareError::Flush)?;
        return Ok(file);
    }
    let made = make_temporary(files, bytes).and_then(|file| {
        let taken = || io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} is there already"));
        let exists = files.exists(&name).map_err(PrepareError::Discarded)?;
        let rename = if exists { Err(taken()) } else { files.rename(NEXT_FILE_NAME, &name) };
        rename.map_err(PrepareError::Discarded)?;
        Ok(file)
    });
    let Ok(file) = made else {
        // On a full disk the writer needs the room; if this fails as well, the next start does it.
        let _ = files.remove(NEXT_FILE_NAME);
        return made;
    };
    files.sync_directory("").map_err(PrepareError::Flush)?;
    Ok(file)
}

fn make_temporary(files: &dyn Files, bytes: u64) -> Result<Arc<dyn File>, PrepareError> {
    if files.exists(NEXT_FILE_NAME).map_err(PrepareError::Discarded)? {
        files.remove(NEXT_FILE_NAME).map_err(PrepareError::Discarded)?;
    }
    let file = files.open(NEXT_FILE_NAME, OpenMode::CreateNew).map_err(PrepareError::Discarded)?;
    fill(&*file, bytes)?;
    Ok(file)
}

/// Makes the next file ahead of time. Owned by a thread of its own, since it waits for the disk.
#[derive(Debug)]
pub struct Preparer {
    pub(crate) shared: Arc<Shared>,
}

impl Preparer {
    /// Makes the next file if that is wanted and not done. `true` if it made one. An error is no disaster, the writer makes
    /// the file itself when it needs it; except that a failed flush fails the journal, as everywhere.
    pub fn run_once(&mut self) -> io::Result<bool> {
        for sum in self.shared.next.take_sealed() {
            remember(&self.shared.files, &sum);
        }
        if !self.shared.options.preallocate {
            return Ok(false);
        }
        let next = &self.shared.next;
        let (id, untouched) = {
            let mut state = unpoison(next.state.lock());
            if state.closed || !matches!(state.progress, Progress::Missing) {
                return Ok(false);
            }
            state.progress = Progress::UnderWay;
            (state.wanted, state.untouched.contains(&state.wanted))
        };
        let made = make_ahead(&*self.shared.files, id, untouched, self.shared.options.file_bytes_max.into());
        let (progress, result) = match made {
            Ok(file) => {
                count(&self.shared.counters.files_prepared, 1);
                (Progress::Ready(file), Ok(true))
            }
            Err(PrepareError::Discarded(error)) => (Progress::GaveUp, Err(error)),
            Err(PrepareError::Flush(error)) => {
                let error = Arc::new(error);
                let at = Location::new(id, 0).lsn();
                self.shared.failed(at, FailedStep::NewFile, error.clone());
                (Progress::GaveUp, Err(io::Error::new(error.kind(), error)))
            }
        };
        unpoison(next.state.lock()).progress = progress;
        next.changed.notify_all();
        result
    }

    /// Prepares file after file until the journal is closed.
    pub fn run(&mut self) {
        loop {
            if let Err(error) = self.run_once() {
                warn!(%error, "next data file could not be prepared ahead");
            }
            let next = &self.shared.next;
            let mut state = unpoison(next.state.lock());
            while !state.closed
                && state.sealed.is_empty()
                && (!self.shared.options.preallocate || !matches!(state.progress, Progress::Missing))
            {
                state = unpoison(next.changed.wait(state));
            }
            if state.closed {
                return;
            }
        }
    }
}
