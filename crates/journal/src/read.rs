//! Records by their location, from memory or from the files.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kahawai_env::read_full_at;
use kahawai_types::{Location, Lsn};

use crate::append::RECORD_BYTES_MAX;
use crate::format::{CheckedBatch, FILE_BYTES_LIMIT, Problem, RECORD_HEADER_BYTES, USER_RECORD};
use crate::scan::{Batches, Catalog};
use crate::shared::{Shared, unpoison};
use crate::stats::count;

/// Windows begin at this size and double while reads go forward.
const WINDOW_BYTES_MIN: usize = 16 << 10;
/// The largest, unless one record is larger.
const WINDOW_BYTES_MAX: usize = 1 << 20;

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not the bytes that were written.
    #[error("{file}: damaged at {at}: {problem}")]
    Damaged {
        /// Full name.
        file: String,
        /// Place of the batch.
        at: Location,
        /// What is wrong with it.
        problem: Problem,
    },
    /// There is no such record.
    #[error("{file}: no record of {expected} bytes at {at}, but size {found} and type {kind}")]
    NotARecord {
        /// Full name.
        file: String,
        /// Where it should be.
        at: Location,
        /// Size that was asked for.
        expected: u32,
        /// Size that is there.
        found: i32,
        /// Type that is there.
        kind: u8,
    },
    /// Not flushed yet, or never written.
    #[error("{size} bytes at {at} lie beyond the durable end {end}")]
    BeyondEnd {
        /// Where it should be.
        at: Location,
        /// Size that was asked for.
        size: u32,
        /// End of the journal.
        end: Lsn,
    },
    /// No record has this size.
    #[error("{size} bytes at {at} are no possible record")]
    ImpossibleSize {
        /// Where it should be.
        at: Location,
        /// Size that was asked for.
        size: u32,
    },
    /// The operating system says no; also if the file was collected.
    #[error("{file}: read at {at}")]
    Io {
        /// Full name.
        file: String,
        /// Where.
        at: Location,
        /// Why.
        source: io::Error,
    },
}

/// Reads what is durable, from any thread.
#[derive(Clone, Debug)]
pub struct JournalReader {
    pub(crate) shared: Arc<Shared>,
}

impl JournalReader {
    /// The payload (type byte, varint length, message) of the user record at `at`, whose size with header is `size`.
    ///
    /// It is a view into its whole batch, and keeps it in memory: copy what is kept for long. For one record; for more there is
    /// [`JournalReader::window`].
    pub fn read(&self, at: Location, size: u32) -> Result<Bytes, ReadError> {
        self.window().read(at, size)
    }

    /// For many records, ascending and close to each other, as when a backlog is drained.
    pub fn window(&self) -> WindowReader {
        WindowReader {
            reader: self.clone(),
            at: Lsn::ZERO,
            valid: 0,
            buffer: Bytes::new(),
            wanted: WINDOW_BYTES_MIN,
            refused: None,
        }
    }

    /// All batches from `from` on, which must be the start of a batch or of a file, or lie before everything that is left.
    /// Ends at the durable end, and can be asked again later.
    pub fn batches(&self, from: Lsn) -> Batches {
        Batches::new(self.shared.clone(), from)
    }

    /// The end of what is written and flushed here.
    pub fn durable_end(&self) -> Lsn {
        self.shared.durable()
    }

    fn checked_size(&self, at: Location, size: u32) -> Result<usize, ReadError> {
        let bytes = size as usize;
        if bytes <= RECORD_HEADER_BYTES
            || bytes > RECORD_BYTES_MAX
            || u64::from(at.offset) + u64::from(size) >= FILE_BYTES_LIMIT
        {
            return Err(ReadError::ImpossibleSize { at, size });
        }
        Ok(bytes)
    }

    fn recent(&self, at: Location, size: u32) -> Result<Option<Bytes>, ReadError> {
        let bytes = self.checked_size(at, size)?;
        let end = self.shared.durable();
        if Lsn(at.lsn().0 + u64::from(size)) > end {
            return Err(ReadError::BeyondEnd { at, size, end });
        }
        let found = unpoison(self.shared.recent.read()).view(at.lsn(), bytes);
        let Some(record) = found else { return Ok(None) };
        count(&self.shared.counters.reads_recent, 1);
        self.payload(at, size, record).map(Some)
    }

    pub(crate) fn read_file(&self, at: Location, buf: &mut [u8]) -> Result<usize, ReadError> {
        count(&self.shared.counters.reads_file, 1);
        self.shared.note_read();
        let failed = |source| ReadError::Io { file: self.shared.describe(at.file), at, source };
        let file = self.shared.handle(at.file).map_err(failed)?;
        read_full_at(&*file, buf, at.offset.into()).map_err(failed)
    }

    fn payload(&self, at: Location, size: u32, record: Bytes) -> Result<Bytes, ReadError> {
        let header = record.first_chunk::<RECORD_HEADER_BYTES>().copied().unwrap_or_default();
        let [a, b, c, d, kind] = header;
        let found = i32::from_be_bytes([a, b, c, d]);
        if kind != USER_RECORD || u32::try_from(found) != Ok(size) || record.len() != size as usize {
            let file = self.shared.describe(at.file);
            return Err(ReadError::NotARecord { file, at, expected: size, found, kind });
        }
        Ok(record.slice(RECORD_HEADER_BYTES..))
    }
}

/// Reads ahead: records that lie close behind one another come from one read. What it reads are whole batches, whose checksums
/// and digests are right: a record of a damaged batch is refused, not served.
#[derive(Debug)]
pub struct WindowReader {
    reader: JournalReader,
    /// Where a batch begins.
    at: Lsn,
    /// Bytes of `buffer` that were read and are good; a batch ends there.
    valid: usize,
    buffer: Bytes,
    wanted: usize,
    /// A damaged batch, from its beginning to its end: its records are not read and summed up again, one after the other; unless files
    /// became readable again since, as they had done so often.
    refused: Option<(Lsn, Lsn, Problem, u64)>,
}

impl WindowReader {
    /// As [`JournalReader::read`]. The payload is a view into the window, up to 1 MiB: copy what is kept for long.
    pub fn read(&mut self, at: Location, size: u32) -> Result<Bytes, ReadError> {
        if let Some(record) = self.reader.recent(at, size)? {
            return Ok(record);
        }
        let bytes = self.reader.checked_size(at, size)?;
        if self.inside(at, bytes).is_none() {
            self.fill(at).inspect_err(|_| self.reader.shared.suspicion.note(at.file))?;
        }
        let record = self.inside(at, bytes).unwrap_or_default();
        self.reader.payload(at, size, record)
    }

    fn inside(&self, at: Location, bytes: usize) -> Option<Bytes> {
        let from = usize::try_from(at.lsn().0.checked_sub(self.at.0)?).ok()?;
        let end = from.checked_add(bytes)?;
        (end <= self.valid).then(|| self.buffer.slice(from..end))
    }

    fn fill(&mut self, at: Location) -> Result<(), ReadError> {
        let shared = Arc::clone(&self.reader.shared);
        let damaged = |at: Lsn, problem| ReadError::Damaged {
            file: shared.describe(at.file()),
            at: at.location(),
            problem,
        };
        if let Some((begin, end, problem, mended)) = &self.refused
            && (*begin..*end).contains(&at.lsn())
            && *mended == shared.suspicion.mended()
        {
            return Err(damaged(*begin, *problem));
        }
        let window_end = self.at.0 + self.valid as u64;
        let forward =
            at.lsn().0.checked_sub(self.at.0).is_some_and(|by| by <= (self.valid + self.wanted) as u64);
        self.wanted = if forward { (self.wanted * 2).min(WINDOW_BYTES_MAX) } else { WINDOW_BYTES_MIN };
        // Where the last window ended, the next batch begins.
        let known = Some(Lsn(window_end)).filter(|end| end.file() == at.file && *end <= at.lsn());
        let failed = |source| ReadError::Io { file: shared.describe(at.file), at, source };
        let around = shared.batch_around(at, known.map_or(0, Lsn::offset)).map_err(failed)?;
        let (begin, batch_bytes) =
            around.map_err(|begin| damaged(Location::new(at.file, begin).lsn(), Problem::NotABatch))?;
        let begin = Location::new(at.file, begin);
        let end = shared.durable();
        // Not behind the durable end: what is there may still change.
        let left = if end.file() == at.file { (end.0 - begin.lsn().0) as usize } else { usize::MAX };
        let length = self.wanted.max(batch_bytes).min(left);
        self.valid = 0;
        let mended = shared.suspicion.mended();
        let mut buffer = match std::mem::take(&mut self.buffer).try_into_mut() {
            Ok(mut buffer) if buffer.capacity() >= length && buffer.len() <= WINDOW_BYTES_MAX => {
                if buffer.len() < length {
                    buffer.resize(length, 0);
                }
                buffer
            }
            _ => BytesMut::zeroed(length),
        };
        let read = self.reader.read_file(begin, buffer.get_mut(..length).unwrap_or_default())?;
        let whole = whole_batches(buffer.get(..read).unwrap_or_default(), begin.lsn());
        self.buffer = buffer.freeze();
        self.at = begin.lsn();
        self.valid = whole.map_err(|problem| {
            let end = Lsn(begin.lsn().0 + batch_bytes as u64);
            self.refused = Some((begin.lsn(), end, problem, mended));
            damaged(begin.lsn(), problem)
        })?;
        Ok(())
    }
}

/// Bytes of the good batches at the front; an error if the first one is not good.
fn whole_batches(bytes: &[u8], begin: Lsn) -> Result<usize, Problem> {
    let mut valid = 0;
    loop {
        let rest = bytes.get(valid..).unwrap_or_default();
        match CheckedBatch::check(rest, Lsn(begin.0 + valid as u64)) {
            Ok(batch) => valid += batch.bytes(),
            Err(problem) if valid == 0 => return Err(problem),
            Err(_) => return Ok(valid),
        }
    }
}
