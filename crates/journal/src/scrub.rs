//! Reading data files that are written to no more, slowly and again and again: damage is found while there are sound copies
//! elsewhere. What a reader has met is looked at first.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use kahawai_env::{File, ReadOnce, ReadOnly, Source};
use kahawai_types::{Epoch, Location};

use crate::format::{Chain, data_file_name};
use crate::history::{Head, head};
use crate::scan::Catalog;
use crate::sealed::{SealedFile, check_file, find_alone, kept};
use crate::shared::{Shared, unpoison};

/// All files are read once in this time, or as fast as the limit allows.
const PASS: Duration = Duration::from_secs(24 * 60 * 60);
/// A file that readers meet damage in again and again is read once in this time.
const AGAIN_US: u64 = 10_000_000;

/// Whom to wake, and for what.
#[derive(Debug, Default)]
pub(crate) struct Suspicion {
    state: Mutex<Suspects>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Suspects {
    files: BTreeSet<u32>,
    /// Those in which damage was found, with where and what.
    damaged: BTreeMap<u32, String>,
    /// Since the journal was opened.
    replaced: u64,
    closed: bool,
}

impl Suspicion {
    fn lock(&self) -> MutexGuard<'_, Suspects> {
        unpoison(self.state.lock())
    }

    /// A reader has met damage in it.
    pub(crate) fn note(&self, file: u32) {
        self.lock().files.insert(file);
        self.changed.notify_all();
    }

    /// Files in which damage was found and that were not replaced, and how many were.
    pub(crate) fn found(&self) -> (Vec<(u32, String)>, u64) {
        let state = self.lock();
        (state.damaged.iter().map(|(file, problem)| (*file, problem.clone())).collect(), state.replaced)
    }

    /// How many files were replaced.
    pub(crate) fn replaced(&self) -> u64 {
        self.lock().replaced
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits; `false` = the journal is closed.
    fn wait(&self, at_most: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), at_most, |state| !state.closed);
        !unpoison(waited).0.closed
    }
}

/// A data file whose bytes are not those that were written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// N of `db-N.log`.
    pub file: u32,
    /// Where and what.
    pub problem: String,
    /// What a sound copy has around it, if that is known.
    pub place: Option<Place>,
}

/// Where a data file belongs: only one content has both chains.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// N of `db-N.log`.
    pub file: u32,
    /// Before its first batch.
    pub chain_before: Chain,
    /// After its last batch.
    pub chain_after: Chain,
}

/// Finds damage. Owned by a thread of its own, since it waits.
#[derive(Debug)]
pub struct Scrubber {
    shared: Arc<Shared>,
    bytes_per_s: u64,
    /// Files of this pass that are still to be read, the next one last.
    pass: Vec<u32>,
    next_pass_us: u64,
    /// When files were read because of a suspicion.
    suspected_us: BTreeMap<u32, u64>,
}

impl Scrubber {
    pub(crate) fn new(shared: Arc<Shared>, bytes_per_s: u64) -> Self {
        Self { shared, bytes_per_s, pass: Vec::new(), next_pass_us: 0, suspected_us: BTreeMap::new() }
    }

    /// Waits for the next damage; `None` once the journal is closed. What was found before may be found again.
    pub fn next_damage(&mut self) -> Option<Damage> {
        loop {
            let (file, limit) = self.next_file()?;
            if let Some(damage) = self.check(file, limit) {
                return Some(damage);
            }
        }
    }

    /// The file to be read next, and how fast; 0 = without a limit.
    fn next_file(&mut self) -> Option<(u32, u64)> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.suspicion.lock();
        loop {
            if state.closed {
                return None;
            }
            let now_us = shared.options.clock.boot_us();
            if let Some(file) = state.files.pop_first() {
                self.suspected_us.retain(|_, at_us| now_us.saturating_sub(*at_us) < AGAIN_US);
                if self.suspected_us.insert(file, now_us).is_none() {
                    return Some((file, 0));
                }
                continue;
            }
            if self.bytes_per_s == 0 {
                state = unpoison(shared.suspicion.changed.wait(state));
                continue;
            }
            if let Some(file) = self.pass.pop() {
                return Some((file, self.bytes_per_s));
            }
            let left_us = self.next_pass_us.saturating_sub(now_us);
            if left_us > 0 {
                let left = Duration::from_micros(left_us);
                state = unpoison(shared.suspicion.changed.wait_timeout(state, left)).0;
                continue;
            }
            self.next_pass_us = now_us + PASS.as_micros() as u64;
            let end = shared.durable().file();
            self.pass = unpoison(shared.used.read()).range(..end).rev().copied().collect();
            // Not always the same ones first: a process that is restarted often shall come to all of them.
            let middle = now_us as usize % self.pass.len().max(1);
            self.pass.rotate_left(middle);
        }
    }

    fn check(&self, id: u32, limit: u64) -> Option<Damage> {
        let shared = &self.shared;
        if !shared.has_sealed(id) {
            return None;
        }
        let checked = match kept(&shared.files, &**shared, id) {
            Some(file) => self.check_known(&file, limit),
            // Nobody knows yet what it should be: what it is, it is from now on.
            None => match find_alone(&shared.files, &**shared, id) {
                Ok(_) => Ok(()),
                Err(problem) => Err(chain_of(&problem)),
            },
        };
        let mut state = shared.suspicion.lock();
        // Deleted meanwhile, or the journal is closed.
        let problem = checked.err().filter(|_| shared.has_sealed(id) && !state.closed);
        let Some(problem) = problem else {
            state.damaged.remove(&id);
            return None;
        };
        state.damaged.insert(id, problem.clone());
        drop(state);
        Some(Damage { file: id, problem, place: place(shared, id) })
    }

    fn check_known(&self, file: &SealedFile, limit: u64) -> Result<(), String> {
        let shared = &self.shared;
        let name = data_file_name(file.id);
        let opened = Catalog::open(&**shared, file.id).map_err(|problem| problem.to_string())?;
        let paced = Paced { file: ReadOnce::over(opened), shared: Arc::clone(shared), bytes_per_s: limit };
        check_file(Arc::new(ReadOnly(paced)), &shared.files.describe(&name), file, |_| {})
            .map_err(|problem| chain_of(&problem))
    }
}

fn chain_of(problem: &dyn std::error::Error) -> String {
    match problem.source() {
        Some(source) => format!("{problem}: {source}"),
        None => problem.to_string(),
    }
}

/// What is known of where a damaged file belongs: from what was kept of it, or from its neighbours.
fn place(shared: &Shared, id: u32) -> Option<Place> {
    if let Some(file) = kept(&shared.files, shared, id) {
        return Some(Place { file: id, chain_before: file.start_chain, chain_after: file.end_chain });
    }
    let stamp = |id| match head(shared, id) {
        Ok(Head::Stamped(stamp)) => Some(stamp),
        _ => None,
    };
    let is_next = shared.first_from(id + 1) == Some(id + 1);
    let chain_after = stamp(id + 1).filter(|_| is_next)?.prev_chain;
    let before = || kept(&shared.files, shared, id.checked_sub(1)?).map(|file| file.end_chain);
    let chain_before = stamp(id).map(|stamp| stamp.prev_chain).or_else(before)?;
    Some(Place { file: id, chain_before, chain_after })
}

/// A file that is read no faster than this, and not at all once the journal is closed.
#[derive(Debug)]
struct Paced {
    file: Arc<dyn File>,
    shared: Arc<Shared>,
    bytes_per_s: u64,
}

impl Source for Paced {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.file.read_at(buf, offset)?;
        let pause_us = (read as u64).saturating_mul(1_000_000).checked_div(self.bytes_per_s).unwrap_or(0);
        if !self.shared.suspicion.wait(Duration::from_micros(pause_us)) {
            return Err(io::Error::other("the journal is closed"));
        }
        Ok(read)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}

/// Puts a sound copy, which lies at `path` and is durable there, in the place of a data file; `false` if that is gone. Readers that are
/// in the old one finish it; all others have the copy once this returns, also after a crash.
pub(crate) fn replace(shared: &Shared, id: u32, path: &str) -> io::Result<bool> {
    let files = &shared.files;
    if !shared.has_sealed(id) {
        files.remove(path)?;
        return Ok(false);
    }
    let name = data_file_name(id);
    files.rename(path, &name)?;
    files.sync_directory("")?;
    shared.forget_handle(id);
    if !shared.has_sealed(id) {
        // Deleted at the same time: it must not be there again.
        files.remove(&name)?;
        files.sync_directory("")?;
        return Ok(false);
    }
    let mut state = shared.suspicion.lock();
    state.damaged.remove(&id);
    state.replaced += 1;
    Ok(true)
}

impl Place {
    /// The same as a whole, with what the sender says of it.
    pub fn sealed(&self, length: u64, first_epoch: Epoch) -> SealedFile {
        let (start_chain, end_chain) = (self.chain_before, self.chain_after);
        SealedFile { id: self.file, length, first_epoch, start_chain, end_chain }
    }

    /// The start of the file.
    pub fn start(&self) -> kahawai_types::Lsn {
        Location::new(self.file, 0).lsn()
    }
}
