//! The journal thread's side: stamps batches, writes and flushes them, one at a time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kahawai_env::{File, OpenMode, PAGE_BYTES, PageBuffer, read_full_at};
use kahawai_types::{Epoch, Lsn};
use tracing::debug;
use xxhash_rust::xxh3::xxh3_64;

use crate::append::{ClosedBatch, State};
use crate::format::{
    BATCH_OVERHEAD_BYTES, CONTROL_BYTES, Chain, CheckedBatch, Control, END_MARK, EpochMarker,
    FILE_BYTES_LIMIT, Problem, RECORD_HEADER_BYTES, Stamp, data_file_name,
};
use crate::scan::Links;
use crate::sealed::Growing;
use crate::shared::{Shared, unpoison};
use crate::stats::count;

/// Of a copied journal so much stays in the page cache.
const COPIED_CACHE_BYTES: u32 = 256 << 20;

/// Kept of the memory for writes past the cache.
const PAGES_BYTES_MAX: usize = 8 << 20;

/// What the journal was doing when it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailedStep {
    /// A record was encoded.
    Encode,
    /// A data file was made or opened.
    NewFile,
    /// A batch was written.
    Write,
    /// A data file was flushed.
    Flush,
    /// A copied journal was cut back.
    Truncate,
    /// The writer was dropped before the journal was closed.
    Abandoned,
}

impl std::fmt::Display for FailedStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Encode => "encoding a record",
            Self::NewFile => "making a data file",
            Self::Write => "writing",
            Self::Flush => "flushing",
            Self::Truncate => "cutting back",
            Self::Abandoned => "stopping",
        })
    }
}

/// The journal failed, for good: what became of the bytes is unknown, so this process confirms nothing any more.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the journal failed at {at}, {step}: {file}")]
pub struct JournalFailed {
    /// Full name of the data file.
    pub file: String,
    /// Where.
    pub at: Lsn,
    /// Doing what.
    pub step: FailedStep,
    /// Why.
    pub source: Arc<io::Error>,
}

/// Why batches of a primary were not taken. Except after [`CopyError::Failed`], nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CopyError {
    /// This journal has begun an epoch of its own.
    #[error("a journal that writes itself copies from nobody")]
    Writing,
    /// Something lies between our end and the batch.
    #[error("the batch at {at} does not follow our end {end}")]
    Gap {
        /// Where the batch belongs.
        at: Lsn,
        /// Where we are.
        end: Lsn,
    },
    /// Not a batch that continues this journal.
    #[error("the batch at {at} cannot be taken: {problem}")]
    Batch {
        /// Where the batch belongs.
        at: Lsn,
        /// What is wrong.
        problem: Problem,
    },
    /// The journal failed, now or earlier.
    #[error(transparent)]
    Failed(#[from] JournalFailed),
}

/// A batch with its stamp, ready to be written and to be sent to replicas.
#[derive(Clone, Debug)]
pub struct SealedBatch {
    /// Where its control record will stand.
    pub start: Lsn,
    /// Durable position once it is written.
    pub end: Lsn,
    /// The reign it belongs to.
    pub epoch: Epoch,
    /// The chain before it.
    pub prev_chain: Chain,
    /// The chain after it.
    pub chain: Chain,
    /// User records without the stamp.
    pub records: u64,
    /// The epoch marker that it begins with.
    pub marker: Option<EpochMarker>,
    /// Batch, end mark, and zeros to the end of the page.
    image: Bytes,
}

impl SealedBatch {
    /// Control record and records, as they go to replicas.
    pub fn bytes(&self) -> Bytes {
        self.image.slice(..(self.end.0 - self.start.0) as usize)
    }
}

/// Writes batches. There is one per journal; dropping it before the journal is closed and everything is taken fails the
/// journal, so that nobody waits for ever.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    /// After the last sealed batch.
    links: Links,
    /// End of the last batch written.
    written: Lsn,
    growing: Option<Growing>,
    file: Option<(u32, Arc<dyn File>)>,
    pages: Pages,
}

/// Past the cache, whole pages are written. The one that the last batch ended in is written again with the next.
#[derive(Debug, Default)]
struct Pages {
    buffer: PageBuffer,
    /// That page, and where it begins.
    last: Vec<u8>,
    last_at: Option<Lsn>,
}

impl Pages {
    /// Writes batches that follow each other from `start` on, an end mark, and zeros to the end of the page; `false` if that cannot
    /// be done.
    fn write<'a>(
        &mut self,
        file: &dyn File,
        start: Lsn,
        batches: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> io::Result<bool> {
        let page_of = |lsn: Lsn| Lsn(lsn.0 - u64::from(lsn.offset()) % PAGE_BYTES as u64);
        let first = page_of(start);
        let before = (start.0 - first.0) as usize;
        let end = before + batches.clone().map(<[u8]>::len).sum::<usize>();
        let pages = self.buffer.front((end + END_MARK.len()).next_multiple_of(PAGE_BYTES));
        let (begun, mut rest) = pages.split_at_mut(before);
        if self.last_at.take_if(|at| *at == first).is_some() {
            begun.copy_from_slice(self.last.get(..before).unwrap_or_default());
        } else if read_full_at(file, begun, first.offset().into())? < before {
            return Ok(false);
        }
        for part in batches.chain([&END_MARK[..]]) {
            let (to, behind) = rest.split_at_mut(part.len());
            to.copy_from_slice(part);
            rest = behind;
        }
        rest.fill(0);
        if !file.write_pages_at(pages, first.offset().into())? {
            return Ok(false);
        }
        let last = end - end % PAGE_BYTES;
        if let Some(page) = pages.get(last..).and_then(|pages| pages.first_chunk::<PAGE_BYTES>()) {
            self.last.clear();
            self.last.extend_from_slice(page);
            self.last_at = Some(Lsn(first.0 + last as u64));
        }
        self.buffer.shrink(PAGES_BYTES_MAX);
        Ok(true)
    }
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        links: Links,
        written: Lsn,
        file: Option<(u32, Arc<dyn File>)>,
    ) -> Self {
        Self { shared, links, written, growing: None, file, pages: Pages::default() }
    }

    /// Waits until something is appended, and seals it. `None` once the journal is closed and everything is taken.
    ///
    /// `commit` goes into the stamp, or [`crate::Journal::note_commit`]'s if that is higher.
    pub fn next_batch(&mut self, commit: Lsn) -> Result<Option<SealedBatch>, JournalFailed> {
        Ok(self.shared.take_closed(true)?.map(|batch| self.seal(batch, commit)))
    }

    /// Leaves the open batch open until it has `records` records, but no longer than `at_most`: worth it where so many senders
    /// are known to be about to send that a flush for few of them would hold the others back.
    pub fn gather(&self, records: u64, at_most: Duration) {
        self.shared.gather(records, at_most);
    }

    /// [`Writer::next_batch`] without waiting.
    pub fn try_next(&mut self, commit: Lsn) -> Result<Option<SealedBatch>, JournalFailed> {
        Ok(self.shared.take_closed(false)?.map(|batch| self.seal(batch, commit)))
    }

    fn seal(&mut self, batch: ClosedBatch, commit: Lsn) -> SealedBatch {
        let ClosedBatch { start, mut buffer, epoch, marker, records } = batch;
        let start = start.lsn();
        // Begin_epoch sees to it that the chain is known.
        let prev_chain = self.links.chain.expect("nothing is appended on top of an unknown chain");
        let marker = marker.map(|marker| EpochMarker { start, chain_before: prev_chain, ..marker });
        if let Some(marker) = &marker {
            let mut payload = BytesMut::new();
            marker.encode(&mut payload);
            let at = BATCH_OVERHEAD_BYTES + RECORD_HEADER_BYTES;
            buffer[at..at + payload.len()].copy_from_slice(&payload);
        }
        let digest = xxh3_64(&buffer[BATCH_OVERHEAD_BYTES..]);
        // Beyond our own end nothing can have been confirmed.
        let commit_hint = commit.max(self.shared.commit()).min(start);
        let stamp = Stamp { epoch, lsn: start, commit_hint, prev_chain, digest };
        buffer[CONTROL_BYTES..BATCH_OVERHEAD_BYTES].copy_from_slice(&stamp.encode());
        let control = Control::of(&buffer[CONTROL_BYTES..]).expect("a batch is far below 2 GiB");
        buffer[..CONTROL_BYTES].copy_from_slice(&control.encode());
        let chain = prev_chain.after(epoch, start, control.payload_bytes, digest);
        self.links = Links::known(Some(chain), epoch, Some(false));
        let end = Lsn(start.0 + buffer.len() as u64);
        buffer.extend_from_slice(&END_MARK);
        // Whole pages: a page that is only partly written has to be read first, unless the cache has it, and the next file
        // is made past the cache.
        let last = start.offset() as usize + buffer.len();
        let padded = buffer.len() + last.next_multiple_of(PAGE_BYTES) - last;
        buffer.resize(padded, 0);
        // What readers keep must not pin much more than it holds.
        let image = if buffer.len() < buffer.capacity() / 4 {
            let image = Bytes::copy_from_slice(&buffer);
            self.shared.core().flushed(0, [buffer]);
            image
        } else {
            buffer.freeze()
        };
        SealedBatch { start, end, epoch, prev_chain, chain, records, marker, image }
    }

    /// Writes a batch, flushes it and returns the new durable position. Batches are written in the order they were sealed.
    ///
    /// After an error nothing more is taken, written or confirmed; the batch may or may not be there after a restart.
    pub fn write(&mut self, batch: SealedBatch) -> Result<Lsn, JournalFailed> {
        self.check_running()?;
        assert!(
            batch.start == self.written
                || (batch.start.offset() == 0 && batch.start.file() > self.written.file()),
            "batches are written in the order they were sealed"
        );
        self.open_file(batch.start)?;
        let bytes = (batch.end.0 - batch.start.0) as usize;
        let written = batch.image.get(..bytes).unwrap_or_default();
        if !self.write_pages(batch.start, std::iter::once(written))? {
            self.write_part(batch.start, &batch.image)?;
        }
        self.flush(batch.start)?;
        let stamp = Stamp::of_batch(&batch.image);
        let sealed = stamp.and_then(|stamp| Growing::note(&mut self.growing, &stamp, batch.end, batch.chain));
        self.publish([(batch.start, batch.image, bytes)], batch.records);
        if let Some(sum) = sealed {
            self.shared.next.sealed(sum);
        }
        Ok(batch.end)
    }

    /// Appends batches that the primary sent, byte for byte, with one flush. Each comes with its position and without an end
    /// mark. Returns the new durable position.
    pub fn copy(&mut self, batches: &[(Lsn, Bytes)]) -> Result<Lsn, CopyError> {
        self.check_running()?;
        if self.shared.core().epoch.is_some() {
            return Err(CopyError::Writing);
        }
        // All are checked before the first is written.
        let mut links = self.links.clone();
        let mut end = self.written;
        let mut records = 0;
        let mut growing = self.growing;
        let mut sealed = Vec::new();
        for (at, bytes) in batches {
            let at = *at;
            if at != end && !(at.offset() == 0 && at.file() > end.file() && i32::try_from(at.file()).is_ok())
            {
                return Err(CopyError::Gap { at, end });
            }
            let batch =
                check_copied(&mut links, at, bytes).map_err(|problem| CopyError::Batch { at, problem })?;
            records += u64::from(batch.records) - u64::from(batch.stamp.is_some());
            end = Lsn(at.0 + bytes.len() as u64);
            match (batch.stamp, links.chain) {
                (Some(stamp), Some(chain)) => {
                    sealed.extend(Growing::note(&mut growing, &stamp, end, chain));
                }
                _ => growing = None,
            }
        }
        // A file is begun only after the one before is flushed.
        for run in batches.chunk_by(|(at, bytes), (next, _)| at.0 + bytes.len() as u64 == next.0) {
            let Some((start, _)) = run.first() else { continue };
            if self.open_file(*start)? {
                self.let_go_before(start.file());
            }
            if !self.write_pages(*start, run.iter().map(|(_, bytes)| &bytes[..]))? {
                for (at, bytes) in run {
                    self.write_part(*at, bytes)?;
                }
                let run_end = run.last().map_or(*start, |(at, bytes)| Lsn(at.0 + bytes.len() as u64));
                self.write_part(run_end, &END_MARK)?;
            }
            self.flush(*start)?;
        }
        self.links = links;
        self.growing = growing;
        for sum in sealed {
            self.shared.next.sealed(sum);
        }
        let bytes = batches.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        self.shared.core().followed(end.location(), self.links.epoch, bytes);
        self.publish(batches.iter().map(|(at, bytes)| (*at, bytes.clone(), bytes.len())), records);
        Ok(end)
    }

    /// Nobody reads a copied journal but its newest part. What is older gives the cache its pages back, for what comes: pages that
    /// were in use a moment ago are written to several times faster than others on some machines, and others want the memory.
    fn let_go_before(&self, newest: u32) {
        let cached = (COPIED_CACHE_BYTES / self.shared.options.file_bytes_max.max(1)).max(1) as usize;
        let old = unpoison(self.shared.used.read()).range(..newest).rev().nth(cached - 1).copied();
        let Some(old) = old else { return };
        let dropped =
            self.shared.files.open(&data_file_name(old), OpenMode::Read).and_then(|file| file.drop_cache());
        if let Err(error) = dropped {
            // It may have been deleted, or the file system has no such thing.
            debug!(%error, file = old, "a data file stays in the cache");
        }
    }

    /// Goes on from `chain` although it could not be computed, on an operator's word that what is here is the truth.
    pub fn adopt_chain(&mut self, chain: Chain) {
        self.links = Links::known(Some(chain), self.links.epoch, self.links.newest_is_foreign);
        self.shared.core().chain_known = true;
    }

    fn check_running(&self) -> Result<(), JournalFailed> {
        match &self.shared.core().state {
            State::Failed(failed) => Err(failed.clone()),
            State::Running | State::Closed => Ok(()),
        }
    }

    fn fail(&self, at: Lsn, step: FailedStep, error: io::Error) -> JournalFailed {
        self.shared.failed(at, step, Arc::new(error))
    }

    /// Writes batches past the cache, unless somebody reads the files: who keeps up reads from memory. `false` = they have to go
    /// through it.
    fn write_pages<'a>(
        &mut self,
        start: Lsn,
        batches: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Result<bool, JournalFailed> {
        let Some((_, file)) = &self.file else { return Ok(false) };
        let written =
            if self.shared.is_read() { Ok(false) } else { self.pages.write(&**file, start, batches) };
        let written =
            written.map_err(|error| self.shared.failed(start, FailedStep::Write, Arc::new(error)))?;
        if !written {
            self.pages.last_at = None;
        }
        Ok(written)
    }

    /// Makes the file where a batch belongs the one that is written to; `true` if it was not.
    fn open_file(&mut self, at: Lsn) -> Result<bool, JournalFailed> {
        let id = at.file();
        if self.file.as_ref().is_some_and(|(open, _)| *open == id) {
            return Ok(false);
        }
        match self.shared.next.take(&*self.shared.files, id) {
            Ok((file, in_a_hurry)) => {
                count(&self.shared.counters.files_made_in_a_hurry, in_a_hurry.into());
                self.file = Some((id, file));
                unpoison(self.shared.used.write()).insert(id);
                Ok(true)
            }
            Err(error) => Err(self.fail(at, FailedStep::NewFile, error)),
        }
    }

    fn write_part(&self, at: Lsn, bytes: &[u8]) -> Result<(), JournalFailed> {
        let Some((_, file)) = &self.file else { return Ok(()) };
        file.write_at(bytes, at.offset().into()).map_err(|error| self.fail(at, FailedStep::Write, error))
    }

    fn flush(&self, at: Lsn) -> Result<(), JournalFailed> {
        let Some((_, file)) = &self.file else { return Ok(()) };
        let clock = &self.shared.options.clock;
        let begun = clock.boot_us();
        file.sync_data().map_err(|error| self.fail(at, FailedStep::Flush, error))?;
        self.shared.counters.flushed(clock.boot_us().saturating_sub(begun));
        Ok(())
    }

    /// Makes flushed batches visible to readers, and their buffers usable again. With each batch comes its length, without
    /// the end mark that its image may have.
    fn publish(&mut self, images: impl IntoIterator<Item = (Lsn, Bytes, usize)>, records: u64) {
        let counters = &self.shared.counters;
        let mut evicted = Vec::new();
        let mut bytes = 0;
        {
            let mut recent = unpoison(self.shared.recent.write());
            for (start, image, length) in images {
                self.written = Lsn(start.0 + length as u64);
                bytes += length as u64;
                count(&counters.batches, 1);
                recent.push(start, image, &mut evicted);
            }
        }
        count(&counters.bytes, bytes);
        count(&counters.records, records);
        self.shared.set_durable(self.written);
        let buffers = evicted.into_iter().filter_map(|image| image.try_into_mut().ok());
        self.shared.core().flushed(bytes, buffers);
    }

    /// The end of what this writer has written and flushed.
    pub fn written(&self) -> Lsn {
        self.written
    }

    /// The chain after the last sealed or copied batch.
    pub fn chain(&self) -> Option<Chain> {
        self.links.chain
    }
}

fn check_copied(links: &mut Links, at: Lsn, bytes: &[u8]) -> Result<CheckedBatch, Problem> {
    let batch = CheckedBatch::check(bytes, at)?;
    if batch.bytes() != bytes.len() || u64::from(at.offset()) + bytes.len() as u64 >= FILE_BYTES_LIMIT {
        let (declared, available) = (batch.payload_bytes.into(), (bytes.len() - CONTROL_BYTES) as u64);
        return Err(Problem::Torn { declared, available });
    }
    links.follow(&batch, at)?;
    Ok(batch)
}

impl Drop for Writer {
    fn drop(&mut self) {
        let abandoned = {
            let core = self.shared.core();
            match core.state {
                State::Running => true,
                State::Closed => core.has_unwritten(),
                State::Failed(_) => false,
            }
        };
        if abandoned {
            self.fail(self.written, FailedStep::Abandoned, io::Error::other("the writer was dropped"));
        }
    }
}
