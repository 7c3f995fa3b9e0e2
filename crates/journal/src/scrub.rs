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
use crate::sealed::{SealedFile, check_file, check_newest, find_alone, kept};
use crate::shared::{Shared, unpoison};

/// All files are read once in this time, or as fast as the limit allows.
const PASS_US: u64 = 24 * 60 * 60 * 1_000_000;
/// A file that readers could not read is looked at again no earlier than this, and twice as late each further time, if there is
/// trouble again at once.
const AGAIN_US: u64 = 10_000_000;
/// Damage in the file that is written to is looked at again this often: more can be done once it is sealed.
const UNSEALED_US: u64 = 60_000_000;

/// Whom to wake, and for what.
#[derive(Debug, Default)]
pub(crate) struct Suspicion {
    state: Mutex<Suspects>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Suspects {
    files: BTreeSet<u32>,
    /// Files that were read because of a suspicion.
    looks: BTreeMap<u32, Look>,
    /// Those in which damage was found, with where and what.
    damaged: BTreeMap<u32, String>,
    /// Since the journal was opened.
    replaced: u64,
    /// How often files became readable again, since the journal was opened.
    mended: u64,
    closed: bool,
}

impl Suspects {
    /// Who is looked at next, and how long that has to wait.
    fn next(&self, now_us: u64) -> Option<(u64, u32)> {
        let wait_us =
            |file| self.looks.get(file).map_or(0, |look: &Look| look.next_us.saturating_sub(now_us));
        self.files.iter().map(|file| (wait_us(file), *file)).min()
    }

    /// It is looked at now.
    fn look(&mut self, file: u32, now_us: u64) {
        self.files.remove(&file);
        let again = |look: &&Look| now_us <= look.next_us.saturating_add(2 * look.pause_us);
        let pause_us =
            self.looks.get(&file).filter(again).map_or(AGAIN_US, |look| 2 * look.pause_us).min(PASS_US);
        self.looks.insert(file, Look { next_us: now_us + pause_us, pause_us });
    }
}

impl Suspicion {
    fn lock(&self) -> MutexGuard<'_, Suspects> {
        unpoison(self.state.lock())
    }

    /// A reader could not read it.
    pub(crate) fn note(&self, file: u32) {
        self.lock().files.insert(file);
        self.changed.notify_all();
    }

    /// Files in which damage was found and that were not replaced, and how many were.
    pub(crate) fn found(&self) -> (Vec<(u32, String)>, u64) {
        let state = self.lock();
        (state.damaged.iter().map(|(file, problem)| (*file, problem.clone())).collect(), state.replaced)
    }

    /// Grows when a file is readable again: what was found in it before does not count any more.
    pub(crate) fn mended(&self) -> u64 {
        self.lock().mended
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits, unless something more urgent is to be read; `false` = the journal is closed.
    fn wait(&self, at_most: Duration, now_us: u64) -> bool {
        let is_idle =
            |state: &mut Suspects| !state.closed && state.next(now_us).is_none_or(|(wait_us, _)| wait_us > 0);
        !unpoison(self.changed.wait_timeout_while(self.lock(), at_most, is_idle)).0.closed
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
    /// It is written to no more.
    pub is_sealed: bool,
}

/// What looking for damage has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Scrubbed {
    /// Two readings say so, one after the other.
    Damage(Damage),
    /// N of `db-N.log`, in which somebody had met damage: there is none any more. What could not be read of it can be.
    Sound(u32),
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
}

#[derive(Clone, Copy, Debug)]
struct Look {
    /// Not earlier.
    next_us: u64,
    pause_us: u64,
}

/// What is read next.
struct Task {
    file: u32,
    /// 0 = without a limit.
    bytes_per_s: u64,
    is_suspected: bool,
}

/// Waits for what is found; `None` once the journal is closed. What was found before may be found again.
impl Iterator for Scrubber {
    type Item = Scrubbed;

    fn next(&mut self) -> Option<Scrubbed> {
        loop {
            let task = self.next_task()?;
            if let Some(scrubbed) = self.check(&task) {
                return Some(scrubbed);
            }
        }
    }
}

impl Scrubber {
    pub(crate) fn new(shared: Arc<Shared>, bytes_per_s: u64) -> Self {
        Self { shared, bytes_per_s, pass: Vec::new(), next_pass_us: 0 }
    }

    fn next_task(&mut self) -> Option<Task> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.suspicion.lock();
        loop {
            if state.closed {
                return None;
            }
            let now_us = shared.options.clock.boot_us();
            let suspect = state.next(now_us);
            if let Some((0, file)) = suspect {
                state.look(file, now_us);
                return Some(Task { file, bytes_per_s: 0, is_suspected: true });
            }
            let mut wait_us = suspect.map(|(wait_us, _)| wait_us);
            if self.bytes_per_s > 0 {
                if let Some(file) = self.pass.pop() {
                    return Some(Task { file, bytes_per_s: self.bytes_per_s, is_suspected: false });
                }
                let left_us = self.next_pass_us.saturating_sub(now_us);
                if left_us == 0 {
                    self.begin_pass(&mut state, now_us);
                    continue;
                }
                wait_us = Some(wait_us.unwrap_or(left_us).min(left_us));
            }
            let changed = &shared.suspicion.changed;
            state = match wait_us {
                Some(wait_us) => unpoison(changed.wait_timeout(state, Duration::from_micros(wait_us))).0,
                None => unpoison(changed.wait(state)),
            };
        }
    }

    fn begin_pass(&mut self, state: &mut Suspects, now_us: u64) {
        let shared = &self.shared;
        self.next_pass_us = now_us + PASS_US;
        let end = shared.durable().file();
        let used = unpoison(shared.used.read());
        self.pass = used.range(..end).rev().copied().collect();
        state.looks.retain(|file, _| used.contains(file));
        drop(used);
        // Not always the same ones first: a process that is restarted often shall come to all of them.
        let middle = now_us as usize % self.pass.len().max(1);
        self.pass.rotate_left(middle);
    }

    fn check(&self, task: &Task) -> Option<Scrubbed> {
        let shared = &self.shared;
        let id = task.file;
        // What fails once only is not damage: a cable, a controller.
        let checked = self.read(id, task.bytes_per_s).or_else(|_| self.read(id, task.bytes_per_s));
        let place = checked.as_ref().err().and_then(|_| place(shared, id));
        let mut state = shared.suspicion.lock();
        if state.closed || !shared.has(id) {
            // The journal is closed, or the file was deleted meanwhile.
            state.damaged.remove(&id);
            return None;
        }
        let Err(problem) = checked else {
            let was_damaged = state.damaged.remove(&id).is_some();
            if !was_damaged && !task.is_suspected {
                return None;
            }
            state.mended += 1;
            return Some(Scrubbed::Sound(id));
        };
        state.damaged.insert(id, problem.clone());
        let is_sealed = shared.has_sealed(id);
        if !is_sealed {
            state.files.insert(id);
            let next_us = shared.options.clock.boot_us() + UNSEALED_US;
            state.looks.insert(id, Look { next_us, pause_us: AGAIN_US });
        }
        Some(Scrubbed::Damage(Damage { file: id, problem, place, is_sealed }))
    }

    fn read(&self, id: u32, bytes_per_s: u64) -> Result<(), String> {
        let shared = &self.shared;
        let end = shared.durable();
        let read = if id == end.file() {
            check_newest(&**shared, end)
        } else if let Some(file) = kept(&shared.files, &**shared, id) {
            return self.check_known(&file, bytes_per_s);
        } else {
            // Nobody knows yet what it should be: what it is, it is from now on.
            find_alone(&shared.files, &**shared, id, |file| self.paced(file, bytes_per_s)).map(|_| ())
        };
        read.map_err(|problem| chain_of(&problem))
    }

    fn check_known(&self, file: &SealedFile, bytes_per_s: u64) -> Result<(), String> {
        let shared = &self.shared;
        let name = data_file_name(file.id);
        let opened = Catalog::open(&**shared, file.id).map_err(|problem| problem.to_string())?;
        let paced = self.paced(ReadOnce::over(opened), bytes_per_s);
        check_file(paced, &shared.files.describe(&name), file, |_| {}).map_err(|problem| chain_of(&problem))
    }

    fn paced(&self, file: Arc<dyn File>, bytes_per_s: u64) -> Arc<dyn File> {
        Arc::new(ReadOnly(Paced { file, shared: Arc::clone(&self.shared), bytes_per_s }))
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
        let now_us = self.shared.options.clock.boot_us();
        if !self.shared.suspicion.wait(Duration::from_micros(pause_us), now_us) {
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
    state.mended += 1;
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
