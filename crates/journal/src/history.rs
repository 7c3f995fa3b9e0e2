//! What the journal says about its past: the chain at a place, and which epoch began where.
//!
//! ```text
//! replication/epochs   the starts that lie in data files that were deleted since, and perhaps later ones
//! KW1H | count u32 | count times: epoch u64, start lsn u64, chain before u64 | XXH3-64 of all that u64
//! ```

use std::io;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use kahawai_env::{File, Files, read_full_at};
use kahawai_types::{Epoch, Location, Lsn};
use tracing::warn;
use xxhash_rust::xxh3::xxh3_64;

use crate::aside::{read_small_file, replace_file};
use crate::format::{
    BATCH_OVERHEAD_BYTES, CONTROL_BYTES, Chain, Control, Problem, RECORD_HEADER_BYTES, Stamp,
};
use crate::scan::{Batches, Catalog, FileScan, Step};
use crate::shared::unpoison;
use crate::{JournalReader, ReadError};

/// The list of epochs whose beginnings may lie in deleted files.
pub const EPOCHS_FILE: &str = "replication/epochs";

const EPOCHS_MAGIC: &[u8; 4] = b"KW1H";
const EPOCH_BYTES: usize = 24;
/// More epochs than a cluster will ever have; bounds what is read.
const EPOCHS_FILE_BYTES_MAX: usize = 64 << 20;

/// From `start` on, `epoch` wrote, on top of `chain_before`.
///
/// Equal values in two journals mean equal journals up to `start`. Where the beginning of the oldest epoch is deleted and
/// unrecorded, `start` is the first batch that is left: a fact as well, though a weaker one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochStart {
    /// Who wrote; 0 = ActiveMQ.
    pub epoch: Epoch,
    /// Its first batch.
    pub start: Lsn,
    /// The chain of everything before.
    pub chain_before: Chain,
}

/// What [`JournalReader::find_chain`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChainPlace {
    /// The end of the batch with that chain.
    pub place: Option<Lsn>,
    /// Where the file's batches end, with the chain there.
    pub file_end: Option<(Lsn, Chain)>,
}

/// A catalog up to a place: what lies behind does not exist.
#[derive(Debug)]
pub(crate) struct Until {
    inner: Arc<dyn Catalog>,
    end: Lsn,
}

impl Until {
    pub(crate) fn new(inner: Arc<dyn Catalog>, end: Lsn) -> Self {
        let end = inner.end().min(end);
        Self { inner, end }
    }
}

impl Catalog for Until {
    fn first_from(&self, id: u32) -> Option<u32> {
        self.inner.first_from(id).filter(|&id| Location::new(id, 0).lsn() < self.end)
    }

    fn open(&self, id: u32) -> io::Result<Arc<dyn File>> {
        self.inner.open(id)
    }

    fn describe(&self, id: u32) -> String {
        self.inner.describe(id)
    }

    fn end(&self) -> Lsn {
        self.end
    }
}

pub(crate) fn failed(catalog: &dyn Catalog, at: Lsn) -> impl FnOnce(io::Error) -> ReadError {
    let (file, at) = (catalog.describe(at.file()), at.location());
    move |source| ReadError::Io { file, at, source }
}

/// How a data file begins, by a look at its first bytes alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Head {
    Stamped(Stamp),
    Foreign,
    /// No batch.
    Empty,
}

pub(crate) fn head(catalog: &dyn Catalog, id: u32) -> Result<Head, ReadError> {
    let at = Location::new(id, 0).lsn();
    if at >= catalog.end() {
        return Ok(Head::Empty);
    }
    let file = catalog.open(id).map_err(failed(catalog, at))?;
    let mut bytes = [0; BATCH_OVERHEAD_BYTES];
    let count = read_full_at(&*file, &mut bytes, 0).map_err(failed(catalog, at))?;
    let bytes = bytes.get(..count).unwrap_or_default();
    if Control::decode(bytes).is_none() {
        return Ok(Head::Empty);
    }
    let stamp = bytes.get(CONTROL_BYTES + RECORD_HEADER_BYTES..).and_then(Stamp::decode);
    Ok(stamp.filter(|stamp| stamp.lsn == at).map_or(Head::Foreign, Head::Stamped))
}

/// The last file at or before `id` that begins with a stamp, else the first of all: where to begin to know a chain.
fn known_base(catalog: &dyn Catalog, id: u32) -> Result<u32, ReadError> {
    let mut ids = Vec::new();
    let mut from = 0;
    while let Some(found) = catalog.first_from(from).filter(|&found| found <= id) {
        ids.push(found);
        from = found.saturating_add(1);
    }
    for &found in ids.iter().rev() {
        if matches!(head(catalog, found)?, Head::Stamped(_)) {
            return Ok(found);
        }
    }
    Ok(ids.first().copied().unwrap_or(id))
}

/// The chain of everything before `at`; `None` if no batch begins or ends there, or what is before it is deleted.
pub(crate) fn chain_before(catalog: &Arc<dyn Catalog>, at: Lsn) -> Result<Option<Chain>, ReadError> {
    if at <= Location::new(1, 0).lsn() {
        return Ok(Some(Chain::default()));
    }
    if at > catalog.end() {
        return Ok(None);
    }
    let Location { file, offset } = at.location();
    if offset == 0 && catalog.first_from(file) == Some(file) {
        // The first batch of a file says it itself, if it is a sound one of ours.
        let opened = catalog.open(file).map_err(failed(&**catalog, at))?;
        let bytes = opened.len().map_err(failed(&**catalog, at))?;
        let end = if catalog.end().file() == file { catalog.end().offset().into() } else { bytes };
        let step = FileScan::new(opened, file, 0, end).step().map_err(failed(&**catalog, at))?;
        if let Step::Batch(batch, _) = step
            && let Some(stamp) = batch.stamp
        {
            return Ok(Some(stamp.prev_chain));
        }
    }
    // The end of a file and the start of the next are one place.
    let last = if offset == 0 { file - 1 } else { file };
    if catalog.first_from(last) != Some(last) {
        return Ok(None);
    }
    let until: Arc<dyn Catalog> = Arc::new(Until::new(catalog.clone(), at));
    let base = known_base(&*until, last)?;
    let (mut end, mut chain) = (Lsn::ZERO, None);
    for batch in Batches::new(until, Location::new(base, 0).lsn()) {
        match batch {
            Ok(batch) => (end, chain) = (batch.end(), batch.chain),
            // A batch that reaches over the place.
            Err(ReadError::Damaged { at: bad, problem, .. })
                if bad.file == file
                    && (matches!(problem, Problem::Torn { .. })
                        || offset.saturating_sub(bad.offset) < CONTROL_BYTES as u32) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    }
    let reached = if offset == 0 { end.file() == last } else { end == at };
    Ok(chain.filter(|_| reached))
}

/// Which epochs began where, ascending, in the files that are left; `newest` is the last of all.
fn epochs_in_files(catalog: &Arc<dyn Catalog>, newest: Epoch) -> Result<Vec<EpochStart>, ReadError> {
    let mut heads = Vec::new();
    let mut from = 0;
    while let Some(id) = catalog.first_from(from).filter(|&id| id <= catalog.end().file()) {
        match head(&**catalog, id)? {
            Head::Stamped(stamp) => heads.push((id, stamp.epoch, Some(stamp.prev_chain))),
            Head::Foreign => heads.push((id, Epoch(0), None)),
            Head::Empty => {}
        }
        from = id.saturating_add(1);
    }
    let mut found: Vec<EpochStart> = Vec::new();
    for (index, &(id, epoch, chain)) in heads.iter().enumerate() {
        let start = Location::new(id, 0).lsn();
        if found.last().is_none_or(|last| last.epoch != epoch) {
            let chain = match chain {
                Some(chain) => chain,
                None => chain_before(catalog, start)?.unwrap_or_default(),
            };
            found.push(EpochStart { epoch, start, chain_before: chain });
        }
        let next = heads.get(index + 1).map_or(newest, |&(_, epoch, _)| epoch);
        if next == epoch {
            continue;
        }
        let behind = Location::new(id.saturating_add(1), 0).lsn();
        for batch in Batches::new(Arc::new(Until::new(catalog.clone(), behind)), start) {
            let batch = batch?;
            if let Some(stamp) = batch.stamp
                && found.last().is_none_or(|last| last.epoch != stamp.epoch)
            {
                let chain_before = stamp.prev_chain;
                found.push(EpochStart { epoch: stamp.epoch, start: batch.lsn, chain_before });
            }
        }
    }
    Ok(found)
}

fn encode(epochs: &[EpochStart]) -> BytesMut {
    let mut out = BytesMut::with_capacity(16 + epochs.len() * EPOCH_BYTES);
    out.put_slice(EPOCHS_MAGIC);
    out.put_u32(epochs.len() as u32);
    for start in epochs {
        out.put_u64(start.epoch.0);
        out.put_u64(start.start.0);
        out.put_u64(start.chain_before.0);
    }
    let sum = xxh3_64(&out);
    out.put_u64(sum);
    out
}

fn decode(content: &[u8]) -> Option<Vec<EpochStart>> {
    let (body, sum) = content.split_last_chunk::<8>()?;
    if xxh3_64(body) != u64::from_be_bytes(*sum) {
        return None;
    }
    let (count, entries) = body.strip_prefix(EPOCHS_MAGIC)?.split_first_chunk::<4>()?;
    let (entries, rest) = entries.as_chunks::<EPOCH_BYTES>();
    if !rest.is_empty() || entries.len() as u64 != u64::from(u32::from_be_bytes(*count)) {
        return None;
    }
    let decoded = entries.iter().map(|entry| {
        let (words, _) = entry.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_be_bytes(*word));
        Some(EpochStart {
            epoch: Epoch(words.next()?),
            start: Lsn(words.next()?),
            chain_before: Chain(words.next()?),
        })
    });
    decoded.collect()
}

/// The recorded list; empty if there is none, or none that can be believed: its loss costs a replica a full copy, not data.
pub(crate) fn recorded_epochs(files: &Arc<dyn Files>) -> io::Result<Vec<EpochStart>> {
    let Some(content) = read_small_file(files, EPOCHS_FILE, EPOCHS_FILE_BYTES_MAX)? else {
        return Ok(Vec::new());
    };
    Ok(decode(&content).unwrap_or_else(|| {
        warn!(file = files.describe(EPOCHS_FILE), "the list of epochs is damaged and is not used");
        Vec::new()
    }))
}

/// Keeps [`JournalReader::epochs`] beyond the data files that it was read from. [`crate::Journal::retire`] does so; after files
/// were installed it is to be called with the primary's list. Durable when it returns; a crash leaves the old list or the new
/// one.
pub fn record_epochs(files: &Arc<dyn Files>, epochs: &[EpochStart]) -> io::Result<()> {
    replace_file(files, EPOCHS_FILE, &encode(epochs))
}

impl JournalReader {
    fn catalog(&self) -> Arc<dyn Catalog> {
        self.shared.clone()
    }

    /// The chain of everything before `at`, the start or the end of a batch; `None` if it is neither, or if its file is
    /// deleted. The end of a file that is not written to any more and the start of the next are one place.
    ///
    /// Reads at most the file in question, as long as that is one of ours.
    pub fn chain_at(&self, at: Lsn) -> Result<Option<Chain>, ReadError> {
        chain_before(&self.catalog(), at)
    }

    /// Looks for a chain in the data file of `at`; where `at` begins a file, in the one before, whose end is the same place. Reads
    /// that file.
    pub fn find_chain(&self, at: Lsn, chain: Chain) -> Result<ChainPlace, ReadError> {
        let mut found = ChainPlace::default();
        let file = match at.offset() {
            0 => unpoison(self.shared.used.read()).range(..at.file()).next_back().copied(),
            _ => Some(at.file()),
        };
        let Some(file) = file.filter(|&file| self.has_file(file)) else { return Ok(found) };
        for batch in self.batches(Location::new(file, 0).lsn()) {
            let batch = batch?;
            if batch.lsn.file() != file {
                break;
            }
            let Some(after) = batch.chain else { continue };
            found.file_end = Some((batch.end(), after));
            if after == chain {
                found.place = Some(batch.end());
            }
        }
        Ok(found)
    }

    /// Which epochs wrote this journal, ascending, as far as it is durable. Looks at the first bytes of every file, and
    /// reads those in which an epoch begins.
    pub fn epochs(&self) -> Result<Vec<EpochStart>, ReadError> {
        let catalog = self.catalog();
        // Read before the end: an epoch that begins meanwhile is looked for in vain.
        let newest = self.shared.core().last_epoch;
        let until: Arc<dyn Catalog> = Arc::new(Until::new(catalog, self.durable_end()));
        let mut found = epochs_in_files(&until, newest)?;
        let file = self.shared.files.describe(EPOCHS_FILE);
        let at = Location::default();
        let mut all =
            recorded_epochs(&self.shared.files).map_err(|source| ReadError::Io { file, at, source })?;
        // What files say counts, and the list where files are gone.
        all.retain(|old| old.start < self.durable_end() && !self.has_file(old.start.file()));
        found.retain(|new| !all.iter().any(|old| old.epoch == new.epoch && old.start < new.start));
        all.extend(found.iter().copied());
        all.sort_by_key(|start| start.start);
        // Otherwise the list is of another journal.
        let fits = all.is_sorted_by(|before, after| before.epoch < after.epoch);
        if fits { Ok(all) } else { epochs_in_files(&until, newest) }
    }

    /// Does this data file begin with a batch of ActiveMQ's? Looks at its first bytes.
    pub fn begins_foreign(&self, file: u32) -> Result<bool, ReadError> {
        Ok(head(&*self.shared, file)? == Head::Foreign)
    }

    fn has_file(&self, id: u32) -> bool {
        self.shared.first_from(id) == Some(id)
    }

    /// Did the only epoch of this file begin in an earlier one, by a look at its neighbours? Most files are like that.
    fn is_within_epoch(&self, file: u32, recorded: &[EpochStart]) -> Result<bool, ReadError> {
        let shared = &*self.shared;
        let epoch = |id| {
            Ok(match head(shared, id)? {
                Head::Stamped(stamp) => Some(stamp.epoch),
                Head::Foreign => Some(Epoch(0)),
                Head::Empty => None,
            })
        };
        let here = epoch(file)?;
        let (before, behind) = {
            let used = unpoison(shared.used.read());
            (used.range(..file).next_back().copied(), used.range(file.saturating_add(1)..).next().copied())
        };
        let ends_here = behind.map_or(Ok(None), epoch)? != here;
        let begins_here = before.map_or(Ok(None), epoch)? != here
            && !recorded.iter().any(|old| Some(old.epoch) == here && old.start.file() < file);
        Ok(!ends_here && !begins_here)
    }

    /// Records where epochs began, if one did in data files that are about to be deleted.
    pub(crate) fn keep_epochs_of(&self, ids: &[u32]) -> io::Result<()> {
        let mut there = ids.iter().copied().filter(|&id| self.has_file(id)).peekable();
        if there.peek().is_none() {
            return Ok(());
        }
        let recorded = recorded_epochs(&self.shared.files)?;
        let outside = there.find_map(|id| match self.is_within_epoch(id, &recorded) {
            Ok(true) => None,
            Ok(false) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        });
        let Some(outside) = outside else { return Ok(()) };
        let epochs = match outside.and_then(|()| self.epochs()) {
            Ok(epochs) => epochs,
            Err(error) => {
                // A replica may have to copy more for it; the space is wanted all the same.
                warn!(%error, "where epochs began could not be recorded");
                return Ok(());
            }
        };
        let mut here = epochs.iter().filter(|start| ids.contains(&start.start.file()));
        if here.all(|start| recorded.contains(start)) {
            return Ok(());
        }
        record_epochs(&self.shared.files, &epochs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_list_of_epochs_reads_back(words in vec(any::<[u64; 3]>(), 0..20), flip in 1u8.., at: prop::sample::Index) {
            let epochs: Vec<_> = words
                .into_iter()
                .map(|[epoch, start, chain]| EpochStart {
                    epoch: Epoch(epoch),
                    start: Lsn(start),
                    chain_before: Chain(chain),
                })
                .collect();
            let mut content = encode(&epochs);
            prop_assert_eq!(decode(&content), Some(epochs));
            let at = at.index(content.len());
            content[at] ^= flip;
            prop_assert_eq!(decode(&content), None);
        }

        #[test]
        fn any_bytes_are_read_or_refused(content: Vec<u8>) {
            let _ = decode(&content);
        }
    }
}
