//! Records go straight into the buffer of the open batch, under one mutex that is never held across I/O.
//!
//! ```text
//! open batch   28 bytes for the control record | 67 for the stamp | record | record | … the next record is encoded here
//! ```
//!
//! The place of a batch is decided when its first record is there, since a record that does not fit into the file begins the
//! next one. The writer closes the open batch whenever it is free, so batches are as large as one flush lasts long.

use std::collections::VecDeque;
use std::sync::{Arc, MutexGuard};

use bytes::{BufMut, BytesMut};
use kahawai_types::{Epoch, Location, Lsn};

use crate::format::{BATCH_OVERHEAD_BYTES, END_MARK, EpochMarker, RECORD_HEADER_BYTES, record_header};
use crate::shared::Shared;
use crate::{JournalFailed, JournalOptions};

/// Largest record, header included, and largest group of records that stay together.
pub const RECORD_BYTES_MAX: usize = 1 << 30;
/// Buffers are not made smaller than this.
const BUFFER_BYTES_MIN: usize = 64 << 10;
/// Room for the record that turns out not to fit.
const BUFFER_SLACK_BYTES: usize = 64 << 10;
/// Written buffers that wait to be used again.
const SPARE_BUFFERS_MAX: usize = 4;

/// Why a record was not taken. Nothing of it is in the journal.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// No epoch was begun by this process; it never continues one of an earlier life.
    #[error("no epoch was begun")]
    NoEpoch,
    /// The journal is closed.
    #[error("the journal is closed")]
    Closed,
    /// Too large for any data file.
    #[error("{bytes} bytes in one record or group, the limit is {limit}")]
    TooLarge {
        /// What was encoded.
        bytes: usize,
        /// [`RECORD_BYTES_MAX`].
        limit: usize,
    },
    /// The encoder appended nothing.
    #[error("a record without content")]
    Empty,
    /// File ids are used up.
    #[error("no file ids are left")]
    NoFileIds,
    /// The journal failed earlier.
    #[error(transparent)]
    Failed(#[from] JournalFailed),
}

/// Where a record went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Its header's place.
    pub at: Location,
    /// Its size, header included.
    pub size: u32,
    /// Its end: the record is durable as soon as the durable position is at or beyond this, confirmed as soon as the commit
    /// position is.
    pub end: Lsn,
}

#[derive(Debug)]
pub(crate) enum State {
    Running,
    /// What is there will be written, nothing more is taken.
    Closed,
    Failed(JournalFailed),
}

/// A batch that takes no more records and waits for its stamp.
#[derive(Debug)]
pub(crate) struct ClosedBatch {
    pub(crate) start: Location,
    /// Room for control record and stamp, then the records.
    pub(crate) buffer: BytesMut,
    pub(crate) epoch: Epoch,
    /// To be filled in and written into the first record.
    pub(crate) marker: Option<EpochMarker>,
    pub(crate) records: u64,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) state: State,
    /// The reign we write in; `None` before [`crate::Journal::begin_epoch`].
    pub(crate) epoch: Option<Epoch>,
    /// Of the newest batch of ours, now or in an earlier life.
    pub(crate) last_epoch: Epoch,
    /// Only on top of a known chain anything can be appended.
    pub(crate) chain_known: bool,
    /// Where the next batch begins unless it begins a file.
    next: Location,
    /// It does, whether it would fit or not.
    begins_file: bool,
    /// End of the newest batch that is closed or was there before.
    closed_end: Lsn,
    /// Where the open batch begins, if it has records.
    start: Location,
    /// Empty, or at least [`BATCH_OVERHEAD_BYTES`] long.
    buffer: BytesMut,
    records: u64,
    marker: Option<EpochMarker>,
    pub(crate) closed: VecDeque<ClosedBatch>,
    pub(crate) writer_idle: bool,
    /// How many records the idle writer waits for; 0 and 1 are the same.
    pub(crate) writer_wants: u64,
    spare: Vec<BytesMut>,
    /// Size of recent batches, to choose buffers by.
    usual_bytes: usize,
    /// Bytes of batches ever appended, and of those flushed.
    appended_bytes: u64,
    flushed_bytes: u64,
    file_bytes_max: u64,
    batch_bytes_max: usize,
}

impl Core {
    pub(crate) fn new(
        options: &JournalOptions,
        end: Lsn,
        next: Location,
        last_epoch: Epoch,
        chain_known: bool,
    ) -> Self {
        Self {
            state: State::Running,
            epoch: None,
            last_epoch,
            chain_known,
            next,
            closed_end: end,
            start: next,
            buffer: BytesMut::new(),
            records: 0,
            marker: None,
            closed: VecDeque::new(),
            writer_idle: false,
            writer_wants: 0,
            spare: Vec::new(),
            usual_bytes: 0,
            appended_bytes: 0,
            flushed_bytes: 0,
            begins_file: false,
            file_bytes_max: options.file_bytes_max.into(),
            batch_bytes_max: options.batch_bytes_max as usize,
        }
    }

    pub(crate) fn end(&self) -> Lsn {
        if self.records == 0 { self.closed_end } else { Lsn(self.start.lsn().0 + self.buffer.len() as u64) }
    }

    /// What the idle writer waits for is there.
    pub(crate) fn has_enough(&self) -> bool {
        self.records >= self.writer_wants.max(1)
            || !self.closed.is_empty()
            || !matches!(self.state, State::Running)
    }

    /// Something that nobody has taken to write it.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.records > 0 || !self.closed.is_empty()
    }

    pub(crate) fn unflushed_bytes(&self) -> u64 {
        self.appended_bytes.saturating_sub(self.flushed_bytes)
    }

    pub(crate) fn fail(&mut self, failed: &JournalFailed) {
        if !matches!(self.state, State::Failed(_)) {
            self.state = State::Failed(failed.clone());
        }
        self.closed.clear();
        self.buffer.clear();
        self.records = 0;
    }

    /// A batch is flushed; its buffer may be used again.
    pub(crate) fn flushed(&mut self, bytes: u64, buffers: impl IntoIterator<Item = BytesMut>) {
        self.flushed_bytes += bytes;
        for mut buffer in buffers {
            buffer.clear();
            // A small one is not worth keeping, one that held a giant record would pin its memory.
            let useful =
                BUFFER_BYTES_MIN..=2 * (self.batch_bytes_max + BUFFER_SLACK_BYTES).max(BUFFER_BYTES_MIN);
            if useful.contains(&buffer.capacity()) && self.spare.len() < SPARE_BUFFERS_MAX {
                self.spare.push(buffer);
            }
        }
    }

    /// A replica's journal grew by what its primary sent.
    pub(crate) fn followed(&mut self, next: Location, last_epoch: Epoch, bytes: u64) {
        assert!(self.epoch.is_none() && self.records == 0, "a primary copies from nobody");
        self.chain_known = true;
        self.appended_bytes += bytes;
        self.next = next;
        self.closed_end = next.lsn();
        self.last_epoch = last_epoch;
    }

    /// Begins an epoch with `marker` as its first record, in a batch of its own epoch.
    pub(crate) fn begin_epoch(&mut self, marker: EpochMarker) -> Result<Appended, AppendError> {
        self.close_open();
        let before = self.epoch.replace(marker.epoch);
        let appended = self.append(|out| marker.encode(out));
        match &appended {
            Ok(_) => {
                self.last_epoch = marker.epoch;
                self.marker = Some(marker);
            }
            Err(_) => self.epoch = before,
        }
        appended
    }

    pub(crate) fn append(&mut self, encode: impl FnOnce(&mut BytesMut)) -> Result<Appended, AppendError> {
        let from = self.begin()?;
        let size = self.encode_one(encode);
        let size = self.accept(from, size)?;
        let to = self.place(from)?;
        self.records += 1;
        Ok(self.appended(to, size))
    }

    fn append_together(
        &mut self,
        records: usize,
        mut encode: impl FnMut(usize, &mut BytesMut),
    ) -> Result<Vec<Appended>, AppendError> {
        if records == 0 {
            return Ok(Vec::new());
        }
        let from = self.begin()?;
        let mut sizes = Vec::with_capacity(records);
        for index in 0..records {
            let size = self.encode_one(|out| encode(index, out));
            sizes.push(self.accept(from, size)?);
        }
        let mut to = self.place(from)?;
        self.records += records as u64;
        let mut all = Vec::with_capacity(records);
        for size in sizes {
            all.push(self.appended(to, size));
            to += size as usize;
        }
        Ok(all)
    }

    fn appended(&self, at: usize, size: u32) -> Appended {
        let at = Lsn(self.start.lsn().0 + at as u64);
        Appended { at: at.location(), size, end: Lsn(at.0 + u64::from(size)) }
    }

    /// Where in the buffer the next record begins.
    fn begin(&mut self) -> Result<usize, AppendError> {
        match &self.state {
            State::Running => {}
            State::Closed => return Err(AppendError::Closed),
            State::Failed(failed) => return Err(failed.clone().into()),
        }
        if self.epoch.is_none() {
            return Err(AppendError::NoEpoch);
        }
        if self.records == 0 {
            self.open_buffer();
        }
        Ok(self.buffer.len())
    }

    fn open_buffer(&mut self) {
        self.buffer.clear();
        if self.buffer.capacity() == 0 {
            self.buffer = self.take_buffer();
        }
        self.buffer.put_bytes(0, BATCH_OVERHEAD_BYTES);
    }

    fn take_buffer(&mut self) -> BytesMut {
        let wanted = self.usual_bytes.next_power_of_two().min(self.batch_bytes_max).max(BUFFER_BYTES_MIN);
        let found = self.spare.iter().position(|buffer| buffer.capacity() >= wanted);
        found.map_or_else(
            || BytesMut::with_capacity(wanted + BUFFER_SLACK_BYTES),
            |index| self.spare.swap_remove(index),
        )
    }

    fn encode_one(&mut self, encode: impl FnOnce(&mut BytesMut)) -> usize {
        let from = self.buffer.len();
        self.buffer.put_bytes(0, RECORD_HEADER_BYTES);
        encode(&mut self.buffer);
        let size = self.buffer.len().checked_sub(from).expect("an encoder only appends");
        if let Ok(size) = u32::try_from(size)
            && let Some(header) = self.buffer.get_mut(from..from + RECORD_HEADER_BYTES)
        {
            header.copy_from_slice(&record_header(size));
        }
        size
    }

    /// Takes back everything from `from` if the record just encoded, or all since then, cannot be taken.
    fn accept(&mut self, from: usize, size: usize) -> Result<u32, AppendError> {
        let bytes = self.buffer.len() - from;
        if bytes <= RECORD_BYTES_MAX && size > RECORD_HEADER_BYTES {
            return Ok(size as u32);
        }
        self.buffer.truncate(from);
        if size <= RECORD_HEADER_BYTES {
            return Err(AppendError::Empty);
        }
        if self.records == 0 {
            // Grown beyond use.
            self.buffer = BytesMut::new();
        }
        Err(AppendError::TooLarge { bytes, limit: RECORD_BYTES_MAX })
    }

    /// Decides where what was encoded from `from` on goes: into the open batch, or into one of its own. Returns where in
    /// the buffer it begins then.
    fn place(&mut self, from: usize) -> Result<usize, AppendError> {
        let bytes = self.buffer.len() - from;
        let mut from = from;
        if self.records > 0 {
            let end = u64::from(self.start.offset) + (self.buffer.len() + END_MARK.len()) as u64;
            if self.buffer.len() <= self.batch_bytes_max && end <= self.file_bytes_max {
                self.appended_bytes += bytes as u64;
                return Ok(from);
            }
            // Does not fit any more: the batch is closed without it.
            let moved = self.buffer.split_off(from);
            self.close_open();
            self.open_buffer();
            self.buffer.extend_from_slice(&moved);
            from = BATCH_OVERHEAD_BYTES;
        }
        let end = u64::from(self.next.offset) + (self.buffer.len() + END_MARK.len()) as u64;
        let begins_file = std::mem::take(&mut self.begins_file) || end > self.file_bytes_max;
        self.start = if self.next.offset > 0 && begins_file {
            let file = self.next.file.checked_add(1).filter(|&file| i32::try_from(file).is_ok());
            let Some(file) = file else {
                self.buffer.clear();
                return Err(AppendError::NoFileIds);
            };
            Location::new(file, 0)
        } else {
            self.next
        };
        self.appended_bytes += (BATCH_OVERHEAD_BYTES + bytes) as u64;
        Ok(from)
    }

    /// Closes the open batch, if it has a record.
    pub(crate) fn close_open(&mut self) {
        if self.records == 0 {
            return;
        }
        let Some(epoch) = self.epoch else { return };
        let bytes = self.buffer.len();
        self.usual_bytes = bytes.max(self.usual_bytes - self.usual_bytes / 8);
        self.next = Location::new(self.start.file, self.start.offset + bytes as u32);
        self.closed_end = self.next.lsn();
        let buffer = std::mem::take(&mut self.buffer);
        let records = std::mem::take(&mut self.records);
        self.closed.push_back(ClosedBatch {
            start: self.start,
            buffer,
            epoch,
            marker: self.marker.take(),
            records,
        });
    }
}

/// Takes records from any thread.
#[derive(Clone, Debug)]
pub struct Appender {
    pub(crate) shared: Arc<Shared>,
}

impl Appender {
    /// Locks the open batch. Keep the guard for the records at hand and no longer: never across I/O or a wait.
    pub fn lock(&self) -> AppendGuard<'_> {
        AppendGuard { shared: &self.shared, core: Some(self.shared.core()) }
    }

    /// What is appended from here on goes into the next data file, so that the one before can be copied or deleted.
    pub fn begin_file(&self) {
        let mut core = self.shared.core();
        core.close_open();
        core.begins_file = true;
        self.shared.release(core);
    }

    /// So many batches wait to be written that producers should be held back. Appending still works.
    pub fn is_congested(&self) -> bool {
        self.shared.is_congested()
    }
}

/// The open batch, locked. Dropping it wakes the writer if that is waiting.
#[derive(Debug)]
pub struct AppendGuard<'a> {
    shared: &'a Shared,
    /// `None` only while it is dropped.
    core: Option<MutexGuard<'a, Core>>,
}

impl AppendGuard<'_> {
    fn core(&mut self) -> &mut Core {
        self.core.as_mut().expect("there until the drop")
    }

    /// Appends one user record. `encode` appends its payload: type byte, varint length, message.
    ///
    /// A panic in `encode` fails the journal: what is in the open batch would be unknown.
    pub fn append(&mut self, encode: impl FnOnce(&mut BytesMut)) -> Result<Appended, AppendError> {
        self.core().append(encode)
    }

    /// Appends `records` user records that are durable together or not at all, as they lie in one batch. `encode` is called
    /// with 0, 1, … for each. The batch may become larger than configured for them, up to [`RECORD_BYTES_MAX`].
    pub fn append_together(
        &mut self,
        records: usize,
        encode: impl FnMut(usize, &mut BytesMut),
    ) -> Result<Vec<Appended>, AppendError> {
        self.core().append_together(records, encode)
    }

    /// The end of everything appended so far: what was appended is durable once the durable position is at or beyond it.
    pub fn end(&self) -> Lsn {
        self.core.as_ref().map_or(Lsn::ZERO, |core| core.end())
    }

    /// Bytes of batches that are appended and not yet flushed here.
    pub fn unflushed_bytes(&self) -> u64 {
        self.core.as_ref().map_or(0, |core| core.unflushed_bytes())
    }
}

impl Drop for AppendGuard<'_> {
    fn drop(&mut self) {
        if let Some(core) = self.core.take() {
            if std::thread::panicking() {
                // Poisons the lock; whoever comes next fails the journal.
                return drop(core);
            }
            self.shared.release(core);
        }
    }
}
