//! What appenders, writer, readers and the preparer of one journal share.
//!
//! Locks, each held briefly and never across I/O or together with another: `core` (the open batch), `recent` (batches in
//! memory), `used` and `handles` (files), `next` (the next file).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LockResult, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use kahawai_env::{File, Files, OpenMode, read_full_at};
use kahawai_types::{Location, Lsn};

use crate::append::{ClosedBatch, Core, State};
use crate::format::{CONTROL_BYTES, Control, data_file_name};
use crate::prepare::NextFile;
use crate::scan::Catalog;
use crate::scrub::Suspicion;
use crate::stats::Counters;
use crate::{FailedStep, JournalFailed, JournalOptions};

/// Who has read a file within this time is taken to go on.
const READ_LATELY_US: u64 = 10_000_000;
/// Data files that readers keep open.
const HANDLES_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) files: Arc<dyn Files>,
    pub(crate) options: JournalOptions,
    core: Mutex<Core>,
    /// Wakes the writer, which waits for `core` to have something.
    work: Condvar,
    pub(crate) next: NextFile,
    pub(crate) used: RwLock<BTreeSet<u32>>,
    handles: Mutex<Handles>,
    pub(crate) recent: RwLock<Recent>,
    /// End of what is flushed here.
    durable: AtomicU64,
    commit: AtomicU64,
    congested: AtomicBool,
    /// When a file was read last, microseconds; 0 = never.
    read_at_us: AtomicU64,
    pub(crate) counters: Counters,
    /// For who looks for damage.
    pub(crate) suspicion: Suspicion,
}

/// A panic elsewhere does not make these structures inconsistent: each change is a single call.
pub(crate) fn unpoison<T>(result: Result<T, PoisonError<T>>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        files: Arc<dyn Files>,
        options: JournalOptions,
        core: Core,
        next: NextFile,
        used: BTreeSet<u32>,
        durable: Lsn,
    ) -> Self {
        Self {
            files,
            core: Mutex::new(core),
            work: Condvar::new(),
            next,
            used: RwLock::new(used),
            handles: Mutex::default(),
            recent: RwLock::new(Recent { bytes_max: options.recent_bytes_max, ..Recent::default() }),
            durable: AtomicU64::new(durable.0),
            commit: AtomicU64::new(0),
            congested: AtomicBool::new(false),
            read_at_us: AtomicU64::new(0),
            counters: Counters::default(),
            suspicion: Suspicion::default(),
            options,
        }
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        self.after_panic(self.core.lock())
    }

    /// An encoder that panicked half way leaves the open batch in an unknown state, so the journal fails.
    fn after_panic<'a>(&self, locked: LockResult<MutexGuard<'a, Core>>) -> MutexGuard<'a, Core> {
        locked.unwrap_or_else(|poisoned| {
            let mut core = poisoned.into_inner();
            self.core.clear_poison();
            let source = Arc::new(io::Error::other("an encoder panicked"));
            let at = core.end();
            let file = self.describe(at.file());
            core.fail(&JournalFailed { file, at, step: FailedStep::Encode, source });
            core
        })
    }

    /// Wakes the writer if it waits and there is something for it. Takes the guard, so that it wakes to a free lock.
    pub(crate) fn release(&self, mut core: MutexGuard<'_, Core>) {
        self.congested.store(core.closed.len() >= self.options.sealed_batches_max, Ordering::Relaxed);
        let wake = core.writer_idle && core.has_enough();
        core.writer_idle &= !wake;
        drop(core);
        if wake {
            self.work.notify_one();
        }
    }

    /// The oldest batch that nobody has taken; closes the open one if need be. `None` if there is none and the journal is
    /// closed, or `wait` is false.
    pub(crate) fn take_closed(&self, wait: bool) -> Result<Option<ClosedBatch>, JournalFailed> {
        let mut core = self.core();
        loop {
            if let State::Failed(failed) = &core.state {
                return Err(failed.clone());
            }
            if core.closed.is_empty() {
                core.close_open();
            }
            if let Some(batch) = core.closed.pop_front() {
                self.congested.store(core.closed.len() >= self.options.sealed_batches_max, Ordering::Relaxed);
                return Ok(Some(batch));
            }
            if !wait || matches!(core.state, State::Closed) {
                return Ok(None);
            }
            core.writer_idle = true;
            core = self.after_panic(self.work.wait(core));
            core.writer_idle = false;
        }
    }

    /// Waits until the open batch has so many records, or is closed, or for so long.
    pub(crate) fn gather(&self, records: u64, at_most: Duration) {
        let mut core = self.core();
        core.writer_wants = records;
        if !core.has_enough() {
            core.writer_idle = true;
            let waited = self.work.wait_timeout_while(core, at_most, |core| !core.has_enough());
            core = match waited {
                Ok((core, _)) => core,
                Err(poisoned) => self.after_panic(Err(std::sync::PoisonError::new(poisoned.into_inner().0))),
            };
            core.writer_idle = false;
        }
        core.writer_wants = 0;
    }

    /// Nothing is confirmed any more, because of this.
    pub(crate) fn failed(&self, at: Lsn, step: FailedStep, source: Arc<io::Error>) -> JournalFailed {
        let failed = JournalFailed { file: self.describe(at.file()), at, step, source };
        self.fail(&failed);
        failed
    }

    /// Nothing is confirmed any more.
    pub(crate) fn fail(&self, failed: &JournalFailed) {
        let mut core = self.core();
        core.fail(failed);
        self.release(core);
        self.next.close();
        self.suspicion.close();
    }

    pub(crate) fn is_congested(&self) -> bool {
        self.congested.load(Ordering::Relaxed)
    }

    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    pub(crate) fn set_durable(&self, durable: Lsn) {
        self.durable.store(durable.0, Ordering::Release);
    }

    pub(crate) fn commit(&self) -> Lsn {
        Lsn(self.commit.load(Ordering::Relaxed))
    }

    pub(crate) fn note_commit(&self, commit: Lsn) {
        self.commit.fetch_max(commit.0, Ordering::Relaxed);
    }

    /// Is there such a data file?
    pub(crate) fn has(&self, id: u32) -> bool {
        unpoison(self.used.read()).contains(&id)
    }

    /// Is there such a data file, which is written to no more?
    pub(crate) fn has_sealed(&self, id: u32) -> bool {
        id < self.durable().file() && self.has(id)
    }

    /// A handle for reading.
    pub(crate) fn handle(&self, id: u32) -> io::Result<Arc<dyn File>> {
        self.opened(id).map(|(file, _)| file)
    }

    /// Has a file been read lately? Then what is written now may well be read from the cache.
    pub(crate) fn is_read(&self) -> bool {
        let at = self.read_at_us.load(Ordering::Relaxed);
        at > 0 && self.options.clock.boot_us().saturating_sub(at) < READ_LATELY_US
    }

    /// Records are read from a file.
    pub(crate) fn note_read(&self) {
        self.read_at_us.store(self.options.clock.boot_us().max(1), Ordering::Relaxed);
    }

    /// What was read to open the store does not count.
    pub(crate) fn forget_reads(&self) {
        self.read_at_us.store(0, Ordering::Relaxed);
    }

    fn opened(&self, id: u32) -> io::Result<Opened> {
        if let Some(opened) = unpoison(self.handles.lock()).get(id) {
            return Ok(opened);
        }
        let opened = (self.files.open(&data_file_name(id), OpenMode::Read)?, Arc::default());
        unpoison(self.handles.lock()).insert(id, opened.clone());
        Ok(opened)
    }

    /// Offset and length of the batch that has the byte at `at`, by the control records before it; `Err` where there is none.
    /// `from` is the beginning of a batch at or before it.
    pub(crate) fn batch_around(&self, at: Location, from: u32) -> io::Result<Result<(u32, usize), u32>> {
        self.note_read();
        let (file, marks) = self.opened(at.file)?;
        let mut begin = unpoison(marks.lock()).before(at.offset).max(from);
        loop {
            let mut front = [0; CONTROL_BYTES];
            let read = read_full_at(&*file, &mut front, begin.into())?;
            let Some(control) = front.get(..read).and_then(Control::decode) else { return Ok(Err(begin)) };
            let bytes = CONTROL_BYTES + control.payload_bytes as usize;
            let Some(end) = u32::try_from(bytes).ok().and_then(|bytes| begin.checked_add(bytes)) else {
                return Ok(Err(begin));
            };
            if end > at.offset {
                return Ok(Ok((begin, bytes)));
            }
            begin = end;
            unpoison(marks.lock()).note(begin);
        }
    }

    pub(crate) fn forget_handle(&self, id: u32) {
        unpoison(self.handles.lock()).by_id.remove(&id);
    }
}

impl Catalog for Shared {
    fn first_from(&self, id: u32) -> Option<u32> {
        unpoison(self.used.read()).range(id..).next().copied()
    }

    fn open(&self, id: u32) -> io::Result<Arc<dyn File>> {
        self.handle(id)
    }

    fn describe(&self, id: u32) -> String {
        self.files.describe(&data_file_name(id))
    }

    fn end(&self) -> Lsn {
        self.durable()
    }

    fn recent(&self, at: Lsn) -> Option<(Lsn, Bytes)> {
        let (start, bytes) = unpoison(self.recent.read()).next(at)?;
        // Who is within a file that is deleted finishes it.
        let is_there = start.file() == at.file() || unpoison(self.used.read()).contains(&start.file());
        is_there.then_some((start, bytes))
    }

    fn note_read(&self) {
        Self::note_read(self);
    }
}

/// Where some of the batches of a file begin, so that the one around a record is found without walking the whole file.
#[derive(Debug, Default)]
struct Marks(Vec<u32>);

impl Marks {
    /// About one in so many bytes is kept.
    const DISTANCE_BYTES: u32 = 64 << 10;

    /// The last that is known at or before `offset`.
    fn before(&self, offset: u32) -> u32 {
        let behind = self.0.partition_point(|&begin| begin <= offset);
        behind.checked_sub(1).and_then(|last| self.0.get(last)).copied().unwrap_or(0)
    }

    fn note(&mut self, begin: u32) {
        if begin >= self.0.last().copied().unwrap_or(0).saturating_add(Self::DISTANCE_BYTES) {
            self.0.push(begin);
        }
    }
}

/// Open files with their marks, the least recently used goes first.
#[derive(Debug, Default)]
struct Handles {
    by_id: BTreeMap<u32, (u64, Opened)>,
    uses: u64,
}

type Opened = (Arc<dyn File>, Arc<Mutex<Marks>>);

impl Handles {
    fn get(&mut self, id: u32) -> Option<Opened> {
        self.uses += 1;
        let (used, file) = self.by_id.get_mut(&id)?;
        *used = self.uses;
        Some(file.clone())
    }

    fn insert(&mut self, id: u32, file: Opened) {
        if self.by_id.len() >= HANDLES_MAX
            && let Some(&oldest) = self.by_id.iter().min_by_key(|(_, (used, _))| used).map(|(id, _)| id)
        {
            self.by_id.remove(&oldest);
        }
        self.by_id.insert(id, (self.uses, file));
    }
}

/// The batches written last, in order.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    batches: VecDeque<(Lsn, Bytes)>,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    /// Adds a batch; `bytes` may have an end mark. What falls out goes to `evicted`.
    pub(crate) fn push(&mut self, start: Lsn, bytes: Bytes, evicted: &mut Vec<Bytes>) {
        self.bytes += bytes.len();
        self.batches.push_back((start, bytes));
        while self.bytes > self.bytes_max
            && let Some((_, old)) = self.batches.pop_front()
        {
            self.bytes -= old.len();
            evicted.push(old);
        }
    }

    /// The batch at `at`, or where the one that ends there was the last of its file, the first of the next.
    fn next(&self, at: Lsn) -> Option<(Lsn, Bytes)> {
        let batch = |index: usize| {
            let (start, image) = self.batches.get(index)?;
            let bytes = CONTROL_BYTES + Control::decode(image)?.payload_bytes as usize;
            Some((*start, image.get(..bytes).map(|batch| image.slice_ref(batch))?))
        };
        let behind = self.batches.partition_point(|(start, _)| *start < at);
        let (start, bytes) = batch(behind)?;
        let follows = || {
            let (before, bytes) = batch(behind.checked_sub(1)?)?;
            Some(start.offset() == 0 && before.0 + bytes.len() as u64 == at.0)
        };
        (start == at || follows() == Some(true)).then_some((start, bytes))
    }

    /// `size` bytes from `at`, if they lie in one of the batches.
    pub(crate) fn view(&self, at: Lsn, size: usize) -> Option<Bytes> {
        let behind = self.batches.partition_point(|(start, _)| *start <= at);
        let (start, bytes) = self.batches.get(behind.checked_sub(1)?)?;
        let from = usize::try_from(at.0 - start.0).ok()?;
        let end = from.checked_add(size)?;
        (end <= bytes.len()).then(|| bytes.slice(from..end))
    }
}
