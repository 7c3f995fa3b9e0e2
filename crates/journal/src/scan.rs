//! Walking batches, in one file or from file to file.
//!
//! Reads in windows of [`WINDOW_BYTES`], or of one batch where that is larger; a batch is bounded by the length of its file.
//! Batches are views into the window: a consumer that keeps one keeps its whole window.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kahawai_env::{File, Files, OpenMode, read_full_at};
use kahawai_types::{Epoch, Location, Lsn};

use crate::ReadError;
use crate::format::{
    CONTROL_BYTES, Chain, CheckedBatch, Control, END_MARK, FILE_BYTES_LIMIT, Problem, RECORD_HEADER_BYTES,
    Stamp, Trace, data_file_id, data_file_name, first_record,
};

/// What is read at once. Large enough for sequential reading, small enough to stay in the processor's cache for the checks.
const WINDOW_BYTES: usize = 1 << 20;

/// A stretch of a file in memory, moving forward.
#[derive(Debug, Default)]
struct Window {
    base: u64,
    /// May be longer than what was read, so that the buffer can be used again without zeroing it.
    buffer: Bytes,
    valid: usize,
}

impl Window {
    /// Makes `want` bytes from `at` available, fewer where the file ends.
    fn cover(&mut self, file: &dyn File, at: u64, want: usize, file_end: u64) -> io::Result<()> {
        let have_end = self.base + self.valid as u64;
        if at >= self.base && at + want as u64 <= have_end {
            return Ok(());
        }
        let left = usize::try_from(file_end.saturating_sub(at)).unwrap_or(usize::MAX);
        let size = want.max(WINDOW_BYTES).min(left);
        // The part of the old window that begins the new one.
        let keep =
            if (self.base..have_end).contains(&at) { (at - self.base) as usize..self.valid } else { 0..0 };
        let kept = keep.len().min(size);
        let mut buffer = match std::mem::take(&mut self.buffer).try_into_mut() {
            Ok(mut buffer) => {
                buffer.copy_within(keep.start..keep.start + kept, 0);
                if buffer.len() < size {
                    buffer.resize(size, 0);
                }
                buffer
            }
            Err(shared) => {
                let mut buffer = BytesMut::zeroed(size);
                buffer[..kept].copy_from_slice(&shared[keep.start..keep.start + kept]);
                buffer
            }
        };
        self.valid = 0;
        let read = read_full_at(file, &mut buffer[kept..size], at + kept as u64)?;
        self.buffer = buffer.freeze();
        self.base = at;
        self.valid = kept + read;
        Ok(())
    }

    fn from(&self, at: u64) -> &[u8] {
        let start = at.checked_sub(self.base).and_then(|start| usize::try_from(start).ok());
        start.and_then(|start| self.buffer.get(start..self.valid)).unwrap_or_default()
    }

    fn view(&self, at: u64, bytes: usize) -> Bytes {
        let start = (at - self.base) as usize;
        self.buffer.slice(start..start + bytes)
    }
}

/// How the data of a file ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EndKind {
    /// With an end mark.
    Mark,
    /// With zeros: the end mark of old stores, or a tail that was never written.
    Zeros,
    /// With the last byte of the file, or of the part that may be read.
    File,
}

/// What stands at a place where a batch may begin.
#[derive(Debug)]
pub(crate) enum Step {
    /// A batch that is right in itself; the scan has moved behind it.
    Batch(CheckedBatch, Bytes),
    /// The end of the file's data.
    End(EndKind),
    /// Neither.
    Bad(Problem),
}

/// One file, batch by batch.
#[derive(Debug)]
pub(crate) struct FileScan {
    pub(crate) id: u32,
    pub(crate) at: u64,
    /// Nothing is read from here on.
    pub(crate) end: u64,
    file: Arc<dyn File>,
    window: Window,
}

impl FileScan {
    pub(crate) fn new(file: Arc<dyn File>, id: u32, at: u64, end: u64) -> Self {
        Self { id, at, end: end.min(FILE_BYTES_LIMIT - 1), file, window: Window::default() }
    }

    pub(crate) fn lsn(&self) -> Lsn {
        Location::new(self.id, self.at as u32).lsn()
    }

    pub(crate) fn step(&mut self) -> io::Result<Step> {
        if self.at >= self.end {
            return Ok(Step::End(EndKind::File));
        }
        let left = self.end - self.at;
        let window_bytes = |bytes: u64| usize::try_from(bytes.min(left)).unwrap_or(usize::MAX);
        self.window.cover(&*self.file, self.at, window_bytes(CONTROL_BYTES as u64), self.end)?;
        let front = self.window.from(self.at);
        let Some(control) = Control::decode(front) else {
            return Ok(match front.get(..END_MARK.len()).unwrap_or(front) {
                [] => Step::End(EndKind::File),
                mark if mark == END_MARK => Step::End(EndKind::Mark),
                zeros if zeros.iter().all(|&b| b == 0) => Step::End(EndKind::Zeros),
                _ => Step::Bad(Problem::NotABatch),
            });
        };
        let bytes = CONTROL_BYTES as u64 + u64::from(control.payload_bytes);
        if bytes > left {
            // Before anything is allocated for it.
            let available = left.saturating_sub(CONTROL_BYTES as u64);
            return Ok(Step::Bad(Problem::Torn { declared: control.payload_bytes.into(), available }));
        }
        self.window.cover(&*self.file, self.at, window_bytes(bytes), self.end)?;
        match CheckedBatch::check(self.window.from(self.at), self.lsn()) {
            Ok(batch) => {
                let view = self.window.view(self.at, batch.bytes());
                self.at += bytes;
                Ok(Step::Batch(batch, view))
            }
            Err(problem) => Ok(Step::Bad(problem)),
        }
    }
}

/// What connects a batch with those before it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Links {
    /// After the newest batch; `None` while unknown.
    pub(crate) chain: Option<Chain>,
    /// The chain comes from a stamp, not from an assumption about what was collected before.
    sure: bool,
    pub(crate) epoch: Epoch,
    /// Who wrote the newest batch; `None` before the first.
    pub(crate) newest_is_foreign: Option<bool>,
}

impl Links {
    /// Before the first batch of the first file that is left.
    pub(crate) fn at_the_beginning() -> Self {
        Self { chain: Some(Chain::default()), ..Self::default() }
    }

    /// At the end of a known journal.
    pub(crate) fn known(chain: Option<Chain>, epoch: Epoch, newest_is_foreign: Option<bool>) -> Self {
        Self { chain, sure: true, epoch, newest_is_foreign }
    }

    /// The same, where it comes from an assumption.
    pub(crate) fn unsure(self) -> Self {
        Self { sure: false, ..self }
    }

    /// Does the chain rest on a stamp, and so bind the next one?
    pub(crate) fn is_sure(&self) -> bool {
        self.sure
    }

    /// Files are missing here, as they do after collection: the next stamp says what they added up to.
    pub(crate) fn gap(&mut self) {
        self.sure = false;
    }

    /// Counts a batch in that was checked before it was written.
    fn follow_stamp(&mut self, stamp: &Stamp, payload_bytes: u32) {
        let chain = stamp.prev_chain.after(stamp.epoch, stamp.lsn, payload_bytes, stamp.digest);
        *self = Self::known(Some(chain), stamp.epoch, Some(false));
    }

    /// Checks that `batch` continues what came before, and counts it in.
    pub(crate) fn follow(&mut self, batch: &CheckedBatch, at: Lsn) -> Result<(), Problem> {
        let mut before = self.chain;
        if let Some(stamp) = batch.stamp {
            if let Some(found) = before
                && self.sure
                && found != stamp.prev_chain
            {
                return Err(Problem::Chain { found, expected: stamp.prev_chain });
            }
            if stamp.epoch < self.epoch {
                return Err(Problem::Epoch { before: self.epoch, found: stamp.epoch });
            }
            before = Some(stamp.prev_chain);
            self.sure = true;
            self.epoch = stamp.epoch;
        }
        self.chain = before.map(|chain| chain.after(batch.epoch(), at, batch.payload_bytes, batch.digest));
        self.newest_is_foreign = Some(batch.stamp.is_none());
        Ok(())
    }
}

/// Where the files of a journal are, while it grows or lies still.
pub(crate) trait Catalog: Send + Sync + std::fmt::Debug {
    /// The first file with this id or a higher one.
    fn first_from(&self, id: u32) -> Option<u32>;
    fn open(&self, id: u32) -> io::Result<Arc<dyn File>>;
    fn describe(&self, id: u32) -> String;
    /// Nothing behind this may be read now.
    fn end(&self) -> Lsn;
    /// The batch at `at`, or at the beginning of the next file if `at` is the end of one, if it is in memory. It was right when it
    /// was written.
    fn recent(&self, _at: Lsn) -> Option<(Lsn, Bytes)> {
        None
    }
    /// Batches are read from a file.
    fn note_read(&self) {}
}

/// The data files of a directory that nobody writes to.
#[derive(Debug)]
pub(crate) struct Directory {
    files: Arc<dyn Files>,
    pub(crate) ids: BTreeSet<u32>,
    end: Lsn,
}

impl Directory {
    pub(crate) fn list(files: Arc<dyn Files>) -> io::Result<Self> {
        let ids = files.list("")?.iter().filter_map(|name| data_file_id(name)).collect();
        Ok(Self { files, ids, end: Lsn(u64::MAX) })
    }

    /// Some of its files, up to a position in the last of them.
    pub(crate) fn until(files: Arc<dyn Files>, ids: BTreeSet<u32>, end: Lsn) -> Self {
        Self { files, ids, end }
    }
}

impl Catalog for Directory {
    fn first_from(&self, id: u32) -> Option<u32> {
        self.ids.range(id..).next().copied()
    }

    fn open(&self, id: u32) -> io::Result<Arc<dyn File>> {
        self.files.open(&data_file_name(id), OpenMode::Read)
    }

    fn describe(&self, id: u32) -> String {
        self.files.describe(&data_file_name(id))
    }

    fn end(&self) -> Lsn {
        self.end
    }
}

/// Batches in order, each checked in itself and against the one before. See [`crate::JournalReader::batches`].
///
/// Not fused while all is well: after `None`, more may come once more is durable. After an error nothing comes any more.
#[derive(Debug)]
pub struct Batches {
    catalog: Arc<dyn Catalog>,
    scan: Option<FileScan>,
    /// Where to open the next file, if none is open.
    next: Lsn,
    links: Links,
    failed: bool,
}

impl Batches {
    pub(crate) fn new(catalog: Arc<dyn Catalog>, from: Lsn) -> Self {
        let begins = catalog.first_from(0).is_none_or(|first| from <= Location::new(first, 0).lsn());
        let links = if begins { Links::at_the_beginning() } else { Links::default() };
        Self { catalog, scan: None, next: from, links, failed: false }
    }

    /// Reads a directory that no journal has open, up to the first end of data in its newest file.
    pub fn of_directory(files: Arc<dyn Files>, from: Lsn) -> io::Result<Self> {
        Ok(Self::new(Arc::new(Directory::list(files)?), from))
    }

    /// Where the next batch will begin, if it is in the same file.
    pub fn position(&self) -> Lsn {
        self.scan.as_ref().map_or(self.next, FileScan::lsn)
    }

    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    fn error(&mut self, at: Lsn, problem: Problem) -> ReadError {
        self.failed = true;
        ReadError::Damaged { file: self.catalog.describe(at.file()), at: at.location(), problem }
    }

    fn io_error(&mut self, at: Lsn, source: io::Error) -> ReadError {
        self.failed = true;
        ReadError::Io { file: self.catalog.describe(at.file()), at: at.location(), source }
    }

    /// The next batch, if it is one of ours and in memory still.
    fn remembered(&mut self, end: Lsn) -> Option<BatchView> {
        let (lsn, bytes) = self.catalog.recent(Self::position(self))?;
        let stamp = Stamp::of_batch(&bytes)?;
        let batch_end = Lsn(lsn.0 + bytes.len() as u64);
        if batch_end > end {
            return None;
        }
        self.links.follow_stamp(&stamp, (bytes.len() - CONTROL_BYTES) as u32);
        self.scan = None;
        self.next = batch_end;
        Some(BatchView { lsn, stamp: Some(stamp), chain: self.links.chain, bytes })
    }

    fn advance(&mut self) -> Result<Option<BatchView>, ReadError> {
        loop {
            let end = self.catalog.end();
            if let Some(batch) = self.remembered(end) {
                return Ok(Some(batch));
            }
            let Some(mut scan) = self.scan.take() else {
                if self.next >= end {
                    return Ok(None);
                }
                let Some(id) = self.catalog.first_from(self.next.file()).filter(|&id| id <= end.file())
                else {
                    return Ok(None);
                };
                if id != self.next.file() {
                    self.links.gap();
                    self.next = Location::new(id, 0).lsn();
                }
                let file = self.catalog.open(id).map_err(|error| self.io_error(self.next, error))?;
                self.scan = Some(FileScan::new(file, id, self.next.offset().into(), 0));
                continue;
            };
            let lsn = scan.lsn();
            self.next = lsn;
            // The file may have grown since; a sealed one may be read to its end.
            let sealed = scan.id < end.file();
            let file_end = if sealed { scan.file.len() } else { Ok(end.offset().into()) };
            scan.end = file_end.map_err(|error| self.io_error(lsn, error))?.min(FILE_BYTES_LIMIT - 1);
            if lsn < end {
                self.catalog.note_read();
            }
            match scan.step().map_err(|error| self.io_error(lsn, error))? {
                Step::Bad(problem) => return Err(self.error(lsn, problem)),
                Step::End(_) if !sealed => {
                    self.scan = Some(scan);
                    return Ok(None);
                }
                Step::End(kind) => {
                    let newest_file = self.catalog.first_from(lsn.file() + 1).is_none();
                    if kind != EndKind::Mark && !newest_file && self.links.newest_is_foreign == Some(false) {
                        return Err(self.error(lsn, Problem::NoEndMark));
                    }
                    self.next = Location::new(lsn.file() + 1, 0).lsn();
                }
                Step::Batch(batch, bytes) => {
                    self.links.follow(&batch, lsn).map_err(|problem| self.error(lsn, problem))?;
                    self.scan = Some(scan);
                    return Ok(Some(BatchView { lsn, stamp: batch.stamp, chain: self.links.chain, bytes }));
                }
            }
        }
    }
}

impl Iterator for Batches {
    type Item = Result<BatchView, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        self.advance().transpose()
    }
}

/// A batch as it stands in the journal.
#[derive(Clone, Debug)]
pub struct BatchView {
    /// Where its control record stands.
    pub lsn: Lsn,
    /// `None` if ActiveMQ wrote it.
    pub stamp: Option<Stamp>,
    /// The chain after it. `None` until the first stamp, unless the walk began at the first file; then, until the first
    /// stamp, it counts from the files that are left.
    pub chain: Option<Chain>,
    /// Control record and records; a view into what was read together with it.
    pub bytes: Bytes,
}

impl BatchView {
    /// Where the next batch begins, if it is in the same file.
    pub fn end(&self) -> Lsn {
        Lsn(self.lsn.0 + self.bytes.len() as u64)
    }

    /// All user records, our own traces included.
    pub fn records(&self) -> Records {
        Records { bytes: self.bytes.clone(), at: CONTROL_BYTES, batch: self.lsn }
    }
}

/// A user record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where its header stands.
    pub at: Location,
    /// With the header.
    pub size: u32,
    /// Type byte, varint length, message.
    pub payload: Bytes,
}

impl Record {
    /// The end of the record.
    pub fn end(&self) -> Lsn {
        Lsn(self.at.lsn().0 + u64::from(self.size))
    }

    /// What it says if it is a trace command, ours or ActiveMQ's; replay steps over those it has no use for.
    pub fn trace(&self) -> Option<Trace> {
        Trace::decode(&self.payload)
    }
}

/// The records of one batch.
#[derive(Clone, Debug)]
pub struct Records {
    bytes: Bytes,
    at: usize,
    batch: Lsn,
}

impl Iterator for Records {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        // The batch was checked as a whole, so this ends exactly at its end.
        let record = first_record(self.bytes.get(self.at..)?).ok()?;
        let (from, end) = (self.at + RECORD_HEADER_BYTES, self.at + record.len());
        let at = Lsn(self.batch.0 + self.at as u64).location();
        self.at = end;
        Some(Record {
            at,
            size: (end - from + RECORD_HEADER_BYTES) as u32,
            payload: self.bytes.slice(from..end),
        })
    }
}
