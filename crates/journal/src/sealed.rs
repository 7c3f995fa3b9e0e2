//! Data files that are written to no more, as they are copied to a replica that lacks them.
//!
//! ```text
//! replication/sums/db-N.sum   what db-N.log is: kept when the next file is begun, or found by reading it; not believed where
//!                             the file does not begin and end like that
//! KW1F | length u64 | first epoch u64 | last epoch u64 | start chain u64 | end chain u64 | flags u8 | XXH3-64 of all that
//! flags: 1 = the chains rest on a stamp, 2 = ActiveMQ wrote the last batch
//!
//! replication/incoming/db-N.log   being received; verified, then moved into place
//! ```

use std::io;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use kahawai_env::{File, Files, OpenMode, PAGE_BYTES, ReadOnce, read_full_at, read_pages_full_at};
use kahawai_types::{Epoch, Location, Lsn};
use tracing::warn;
use xxhash_rust::xxh3::xxh3_64;

use crate::aside::read_small_file;
use crate::format::{Chain, END_MARK, FILE_BYTES_LIMIT, Problem, Stamp, data_file_id, data_file_name};
use crate::history::{EPOCHS_FILE, Head, failed, head};
use crate::retire::RETIRING_FILE;
use crate::scan::{Catalog, Directory, EndKind, FileScan, Links, Step};
use crate::stats::count;
use crate::truncate::{CUT_FILE, clear_intent};
use crate::{BatchView, JournalReader, ReadError};

/// Where what is known of sealed files is kept.
pub const SUMS_DIRECTORY: &str = "replication/sums";
/// Where files lie while they are received.
pub const INCOMING_DIRECTORY: &str = "replication/incoming";

const SUM_MAGIC: &[u8; 4] = b"KW1F";
const SUM_BYTES: usize = 4 + 5 * 8 + 1 + 8;
const SURE: u8 = 1;
const FOREIGN: u8 = 2;

/// Identity of a data file that is written to no more: equal values mean equal bytes up to `length`, and an equal journal
/// before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealedFile {
    /// N of `db-N.log`.
    pub id: u32,
    /// End of its last batch, bytes. What follows is filler, which may differ.
    pub length: u64,
    /// Epoch of its first batch.
    pub first_epoch: Epoch,
    /// The chain before its first batch.
    pub start_chain: Chain,
    /// The chain after its last batch.
    pub end_chain: Chain,
}

/// Why a received file is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The bytes are not those that were written.
    #[error("{file}: wrong at offset {offset}: {problem}")]
    Damaged {
        /// Full name.
        file: String,
        /// Place of the batch.
        offset: u64,
        /// What is wrong.
        problem: Problem,
    },
    /// It ends elsewhere.
    #[error("{file}: its batches end at {found}, they should end at {expected}")]
    Length {
        /// Full name.
        file: String,
        /// Where they do.
        found: u64,
        /// Where they should.
        expected: u64,
    },
    /// Sound, but another file.
    #[error("{file}: sound, but not the file that was announced: chain {found}, announced {expected}")]
    Another {
        /// Full name.
        file: String,
        /// Its end chain.
        found: Chain,
        /// The one it should have.
        expected: Chain,
    },
    /// The operating system says no.
    #[error("{file}: {action}")]
    Io {
        /// Full name.
        file: String,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Why files were not installed, or not all.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Neither received nor there before. Nothing was changed.
    #[error("{file} is neither received nor there already")]
    Missing {
        /// Full name.
        file: String,
    },
    /// The operating system says no. Calling again goes on where this stopped.
    #[error("{file}: {action}")]
    Io {
        /// Full name.
        file: String,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// What [`install`] did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Installed {
    /// Moved into place by this call.
    pub installed: Vec<u32>,
    /// Removed by this call.
    pub removed: Vec<u32>,
}

/// What a walk over a file found, and what the next file's walk begins with.
#[derive(Clone, Debug)]
pub(crate) struct Sum {
    file: SealedFile,
    last_epoch: Epoch,
    sure: bool,
    foreign: bool,
}

impl Sum {
    /// Found without the files before it, and right all the same: it begins with a stamp.
    fn stands_alone(&self) -> bool {
        self.sure && self.file.first_epoch > Epoch(0)
    }

    fn links(&self) -> Links {
        let links = Links::known(Some(self.file.end_chain), self.last_epoch, Some(self.foreign));
        if self.sure { links } else { links.unsure() }
    }

    fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(SUM_BYTES);
        out.put_slice(SUM_MAGIC);
        out.put_u64(self.file.length);
        out.put_u64(self.file.first_epoch.0);
        out.put_u64(self.last_epoch.0);
        out.put_u64(self.file.start_chain.0);
        out.put_u64(self.file.end_chain.0);
        out.put_u8(if self.sure { SURE } else { 0 } | if self.foreign { FOREIGN } else { 0 });
        let sum = xxh3_64(&out);
        out.put_u64(sum);
        out
    }

    fn decode(id: u32, content: &[u8]) -> Option<Self> {
        let (body, sum) = content.split_last_chunk::<8>()?;
        if content.len() != SUM_BYTES || xxh3_64(body) != u64::from_be_bytes(*sum) {
            return None;
        }
        let (words, flags) = body.strip_prefix(SUM_MAGIC)?.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_be_bytes(*word));
        let (length, first_epoch, last_epoch) = (words.next()?, Epoch(words.next()?), Epoch(words.next()?));
        let (start_chain, end_chain) = (Chain(words.next()?), Chain(words.next()?));
        let flags = *flags.first()?;
        Some(Self {
            file: SealedFile { id, length, first_epoch, start_chain, end_chain },
            last_epoch,
            sure: flags & SURE != 0,
            foreign: flags & FOREIGN != 0,
        })
    }
}

/// The file that is written to, followed from its first batch on, so that nobody has to read it again to know what it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Growing {
    start: Lsn,
    end: Lsn,
    first_epoch: Epoch,
    start_chain: Chain,
    last_epoch: Epoch,
    end_chain: Chain,
}

impl Growing {
    /// Counts a batch of ours in that is written and flushed, or will be before anybody asks. The file before comes back once
    /// another one is begun.
    pub(crate) fn note(known: &mut Option<Self>, stamp: &Stamp, end: Lsn, chain: Chain) -> Option<Sum> {
        let Stamp { epoch, lsn: start, prev_chain, .. } = *stamp;
        let begins = start.offset() == 0;
        match known {
            Some(file) if !begins && file.end == start => {
                (file.end, file.last_epoch, file.end_chain) = (end, epoch, chain);
                None
            }
            _ => {
                let begun = Self {
                    start,
                    end,
                    first_epoch: epoch,
                    start_chain: prev_chain,
                    last_epoch: epoch,
                    end_chain: chain,
                };
                let before = std::mem::replace(known, begins.then_some(begun));
                before.filter(|file| begins && file.end_chain == prev_chain).map(|file| file.sum())
            }
        }
    }

    fn sum(&self) -> Sum {
        let file = SealedFile {
            id: self.start.file(),
            length: self.end.offset().into(),
            first_epoch: self.first_epoch,
            start_chain: self.start_chain,
            end_chain: self.end_chain,
        };
        Sum { file, last_epoch: self.last_epoch, sure: true, foreign: false }
    }
}

fn sum_name(id: u32) -> String {
    format!("{SUMS_DIRECTORY}/db-{id}.sum")
}

/// Where a data file lies while it is being received.
pub fn incoming_name(id: u32) -> String {
    format!("{INCOMING_DIRECTORY}/{}", data_file_name(id))
}

/// Forgets, durably, what was found out about files that are about to change.
pub(crate) fn forget_sums(files: &Arc<dyn Files>, changing: impl Fn(u32) -> bool) -> io::Result<()> {
    if !files.exists(SUMS_DIRECTORY)? {
        return Ok(());
    }
    for name in files.list(SUMS_DIRECTORY)? {
        let id = name.strip_suffix(".sum").and_then(|stem| data_file_id(&format!("{stem}.log")));
        if id.is_some_and(&changing) {
            files.remove(&format!("{SUMS_DIRECTORY}/{name}"))?;
        }
    }
    files.sync_directory(SUMS_DIRECTORY)
}

/// Forgets what was found out about a file that is deleted. A crash that brings it back does no harm: file ids are not used
/// again.
pub(crate) fn forget_sum(files: &Arc<dyn Files>, id: u32) -> io::Result<()> {
    let name = sum_name(id);
    if files.exists(&name)? { files.remove(&name) } else { Ok(()) }
}

/// A sum of an earlier walk, if it still fits: it continues `before`, the file begins as it did, and ends where it did.
fn remembered(
    files: &Arc<dyn Files>,
    catalog: &dyn Catalog,
    id: u32,
    before: &Links,
) -> Result<Option<Sum>, ReadError> {
    let at = Location::new(id, 0).lsn();
    let content = read_small_file(files, &sum_name(id), SUM_BYTES).unwrap_or_default();
    let Some(sum) = content.and_then(|content| Sum::decode(id, &content)) else { return Ok(None) };
    let continues = !before.is_sure() || before.chain == Some(sum.file.start_chain);
    let begins = match head(catalog, id)? {
        Head::Stamped(stamp) => {
            stamp.epoch == sum.file.first_epoch && stamp.prev_chain == sum.file.start_chain
        }
        Head::Foreign => sum.file.first_epoch == Epoch(0) && before.chain == Some(sum.file.start_chain),
        Head::Empty => false,
    };
    if !continues || !begins {
        return Ok(None);
    }
    let file = catalog.open(id).map_err(failed(catalog, at))?;
    let mut mark = [0; END_MARK.len()];
    let count = read_full_at(&*file, &mut mark, sum.file.length).map_err(failed(catalog, at))?;
    let ends = mark == END_MARK || (sum.foreign && mark.iter().take(count).all(|&b| b == 0));
    Ok(Some(sum).filter(|_| ends))
}

/// What was kept of a file, whatever is in it now; not if the next file does not continue that.
pub(crate) fn kept(files: &Arc<dyn Files>, catalog: &dyn Catalog, id: u32) -> Option<SealedFile> {
    let content = read_small_file(files, &sum_name(id), SUM_BYTES).unwrap_or_default()?;
    let sum = Sum::decode(id, &content)?;
    let next = id.checked_add(1)?;
    let is_continued = catalog.first_from(next) != Some(next)
        || match head(catalog, next) {
            Ok(Head::Stamped(stamp)) => stamp.prev_chain == sum.file.end_chain,
            _ => true,
        };
    is_continued.then_some(sum.file)
}

/// Walks a whole file without looking at those before it, and keeps what it found if that can be told. It is read through `paced`.
pub(crate) fn find_alone(
    files: &Arc<dyn Files>,
    catalog: &dyn Catalog,
    id: u32,
    paced: impl FnOnce(Arc<dyn File>) -> Arc<dyn File>,
) -> Result<Option<Sum>, ReadError> {
    let found = walk(catalog, id, Links::default(), paced)?;
    found.iter().filter(|sum| sum.stands_alone()).for_each(|sum| remember(files, sum));
    Ok(found)
}

/// Walks a whole file that continues `before`. `None` if it has no batch.
fn walk(
    catalog: &dyn Catalog,
    id: u32,
    before: Links,
    read: impl FnOnce(Arc<dyn File>) -> Arc<dyn File>,
) -> Result<Option<Sum>, ReadError> {
    let start = Location::new(id, 0).lsn();
    let file = catalog.open(id).map_err(failed(catalog, start))?;
    let bytes = file.len().map_err(failed(catalog, start))?;
    let mut scan = FileScan::new(read(ReadOnce::over(file)), id, 0, bytes);
    let mut links = before;
    let mut first = None;
    let damaged =
        |at: Lsn, problem| ReadError::Damaged { file: catalog.describe(id), at: at.location(), problem };
    loop {
        let at = scan.lsn();
        match scan.step().map_err(failed(catalog, at))? {
            Step::Batch(batch, _) => {
                let chain = batch.stamp.map_or(links.chain, |stamp| Some(stamp.prev_chain));
                links.follow(&batch, at).map_err(|problem| damaged(at, problem))?;
                first.get_or_insert((batch.epoch(), chain.unwrap_or_default()));
            }
            Step::Bad(problem) => return Err(damaged(at, problem)),
            Step::End(kind) => {
                let Some((first_epoch, start_chain)) = first else { return Ok(None) };
                let foreign = links.newest_is_foreign == Some(true);
                if kind != EndKind::Mark && !foreign {
                    return Err(damaged(at, Problem::NoEndMark));
                }
                let end_chain = links.chain.unwrap_or_default();
                let file = SealedFile { id, length: scan.at, first_epoch, start_chain, end_chain };
                let (last_epoch, sure) = (links.epoch, links.is_sure());
                return Ok(Some(Sum { file, last_epoch, sure, foreign }));
            }
        }
    }
}

/// Walks the file that is written to, up to there.
pub(crate) fn check_newest(catalog: &dyn Catalog, end: Lsn) -> Result<(), ReadError> {
    let id = end.file();
    let file = catalog.open(id).map_err(failed(catalog, Location::new(id, 0).lsn()))?;
    let mut scan = FileScan::new(file, id, 0, end.offset().into());
    loop {
        let at = scan.lsn();
        let problem = match scan.step().map_err(failed(catalog, at))? {
            Step::Batch(..) => continue,
            Step::End(_) if at == end => return Ok(()),
            Step::End(_) => Problem::NotABatch,
            Step::Bad(problem) => problem,
        };
        return Err(ReadError::Damaged { file: catalog.describe(id), at: at.location(), problem });
    }
}

fn sealed(files: &Arc<dyn Files>, catalog: &dyn Catalog, up_to: Lsn) -> Result<Vec<SealedFile>, ReadError> {
    let mut found = Vec::new();
    let mut links = Links::at_the_beginning();
    let mut from = 0;
    while let Some(id) = catalog.first_from(from).filter(|&id| id < up_to.file()) {
        if id != from {
            links.gap();
        }
        from = id.saturating_add(1);
        let sum = match remembered(files, catalog, id, &links)? {
            Some(sum) => sum,
            None => {
                let Some(sum) = walk(catalog, id, links.clone(), |file| file)? else { continue };
                remember(files, &sum);
                sum
            }
        };
        links = sum.links();
        found.push(sum.file);
    }
    Ok(found)
}

/// Keeps what was found out about a file. If that fails, it only costs the next walk.
pub(crate) fn remember(files: &Arc<dyn Files>, sum: &Sum) {
    // Not flushed: a torn one is not believed.
    let write = || {
        files.create_directory(SUMS_DIRECTORY)?;
        files.open(&sum_name(sum.file.id), OpenMode::Write)?.write_at(&sum.encode(), 0)
    };
    if let Err(error) = write() {
        warn!(%error, file = sum.file.id, "what is known of a data file could not be kept");
    }
}

impl JournalReader {
    /// All data files before that of `up_to`, which must not lie beyond the durable end. Reads each file once; what it found
    /// is kept beside the journal, so that the next call is quick.
    pub fn sealed_files(&self, up_to: Lsn) -> Result<Vec<SealedFile>, ReadError> {
        sealed(&self.shared.files, &*self.shared, up_to.min(self.durable_end()))
    }

    /// One of them; `None` if it is not there, or still written to.
    pub fn sealed_file(&self, id: u32) -> Result<Option<SealedFile>, ReadError> {
        let shared = &self.shared;
        if !shared.has_sealed(id) {
            return Ok(None);
        }
        let sum = match remembered(&shared.files, &**shared, id, &Links::default())? {
            Some(sum) => Some(sum),
            None => find_alone(&shared.files, &**shared, id, |file| file)?,
        };
        Ok(sum.map(|sum| sum.file))
    }

    /// Does the last of these files end where the file of `at` begins? If files between were deleted, nobody who has these can go on
    /// with that one.
    pub fn is_joined(&self, sealed: &[SealedFile], at: Lsn) -> Result<bool, ReadError> {
        let start = Location::new(at.file(), 0).lsn();
        let Some(last) = sealed.last() else { return Ok(false) };
        Ok(self.chain_at(start)? == Some(last.end_chain))
    }

    /// Bytes of a data file as they are, for copying it: as many as `buf` holds, fewer at the end of the file. Of the file
    /// that is written to, only what is durable. Whole pages are best ([`kahawai_env::File::read_pages_at`]).
    pub fn read_raw(&self, file: u32, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError> {
        let offset = u32::try_from(offset).unwrap_or(u32::MAX);
        let at = Location::new(file, offset);
        let end = self.durable_end();
        if at.lsn() > end {
            return Err(ReadError::BeyondEnd { at, size: buf.len() as u32, end });
        }
        let left = if end.file() == file { (end.0 - at.lsn().0) as usize } else { usize::MAX };
        let length = buf.len().min(left);
        // Not noted as read: nobody goes on from here to what is written now.
        count(&self.shared.counters.reads_file, 1);
        let failed = |source| ReadError::Io { file: self.shared.describe(file), at, source };
        let handle = self.shared.handle(file).map_err(failed)?;
        read_pages_full_at(&*handle, buf.get_mut(..length).unwrap_or_default(), offset.into()).map_err(failed)
    }
}

/// The same as [`JournalReader::sealed_files`] for a journal that is closed. `up_to` must lie in the file that is written to,
/// or before it.
pub fn sealed_files(files: &Arc<dyn Files>, up_to: Lsn) -> Result<Vec<SealedFile>, ReadError> {
    let directory = Directory::list(files.clone()).map_err(|source| ReadError::Io {
        file: files.describe(""),
        at: Location::default(),
        source,
    })?;
    sealed(files, &directory, up_to)
}

/// Walks a file that should be what was announced: every digest, and the chain from its announced start to its announced end.
/// `visit` is given each batch once it was checked. `name` is for messages.
pub fn check_file(
    file: Arc<dyn File>,
    name: &str,
    announced: &SealedFile,
    mut visit: impl FnMut(&BatchView),
) -> Result<(), VerifyError> {
    let io = |source| VerifyError::Io { file: name.to_owned(), action: "read", source };
    let SealedFile { id, length: expected, first_epoch, start_chain, end_chain } = *announced;
    let wrong_length = |found| VerifyError::Length { file: name.to_owned(), found, expected };
    let bytes = file.len().map_err(io)?;
    if expected == 0 || expected > FILE_BYTES_LIMIT - END_MARK.len() as u64 || bytes < expected {
        return Err(wrong_length(bytes));
    }
    let mut scan = FileScan::new(file, id, 0, expected);
    let links = Links::known(Some(start_chain), Epoch(0), None);
    // What ActiveMQ wrote does not say what came before; that may be given up.
    let mut links = if first_epoch == Epoch(0) { links.unsure() } else { links };
    loop {
        let (lsn, offset) = (scan.lsn(), scan.at);
        let damaged = |problem| VerifyError::Damaged { file: name.to_owned(), offset, problem };
        match scan.step().map_err(io)? {
            Step::Batch(batch, bytes) => {
                if offset == 0 && batch.epoch() != first_epoch {
                    let (before, found) = (first_epoch, batch.epoch());
                    return Err(damaged(Problem::Epoch { before, found }));
                }
                links.follow(&batch, lsn).map_err(damaged)?;
                visit(&BatchView { lsn, stamp: batch.stamp, chain: links.chain, bytes });
            }
            Step::Bad(problem) => return Err(damaged(problem)),
            Step::End(EndKind::File) => break,
            Step::End(_) => return Err(wrong_length(offset)),
        }
    }
    match links.chain.unwrap_or_default() {
        found if found == end_chain => Ok(()),
        found => Err(VerifyError::Another { file: name.to_owned(), found, expected: end_chain }),
    }
}

/// Sees to it that a received file ends as it should: an end mark behind its last batch, and nothing behind that but zeros to the
/// end of the page. What it changes is flushed when this returns: after that it may be installed.
pub fn finish_file(files: &Arc<dyn Files>, path: &str, length: u64) -> Result<(), VerifyError> {
    let io = |action| move |source| VerifyError::Io { file: files.describe(path), action, source };
    let file = files.open(path, OpenMode::Write).map_err(io("open"))?;
    let end = length + END_MARK.len() as u64;
    let mut tail = [0; PAGE_BYTES + END_MARK.len()];
    let read = read_full_at(&*file, &mut tail, length).map_err(io("read"))?;
    let mark = tail.get(..read).unwrap_or_default().strip_prefix(&END_MARK);
    if mark.is_some_and(|rest| rest.iter().all(|byte| *byte == 0))
        && file.len().map_err(io("measure"))? <= end.next_multiple_of(PAGE_BYTES as u64)
    {
        return Ok(());
    }
    file.write_at(&END_MARK, length).map_err(io("write the end mark"))?;
    file.set_len(end).map_err(io("set the length"))?;
    file.sync_all().map_err(io("flush"))
}

/// [`check_file`] and [`finish_file`] of a file that was received.
pub fn verify_file(files: &Arc<dyn Files>, path: &str, announced: &SealedFile) -> Result<(), VerifyError> {
    let name = files.describe(path);
    let file = files.open(path, OpenMode::Read).map_err(|source| VerifyError::Io {
        file: name.clone(),
        action: "open",
        source,
    })?;
    check_file(ReadOnce::over(file), &name, announced, |_| {})?;
    finish_file(files, path, announced.length)
}

/// Makes the data files of a closed journal those of `manifest`: moves what [`verify_file`] passed from
/// [`INCOMING_DIRECTORY`] into place, and removes every data file that the manifest does not name. The recorded epochs go as
/// well: [`crate::record_epochs`] the primary's.
///
/// A crash half way leaves a mixture that no one may open; calling again with the same manifest finishes it.
pub fn install(files: &Arc<dyn Files>, manifest: &[SealedFile]) -> Result<Installed, InstallError> {
    let io = |name: &str, action| {
        let file = files.describe(name);
        move |source| InstallError::Io { file, action, source }
    };
    let directory = Directory::list(files.clone()).map_err(io("", "list"))?;
    let mut incoming = Vec::new();
    for sealed in manifest {
        let name = incoming_name(sealed.id);
        if files.exists(&name).map_err(io(&name, "look for"))? {
            incoming.push(sealed.id);
        } else if !directory.ids.contains(&sealed.id) {
            return Err(InstallError::Missing { file: files.describe(&name) });
        }
    }
    let surplus: Vec<u32> =
        directory.ids.iter().copied().filter(|&id| !manifest.iter().any(|sealed| sealed.id == id)).collect();
    // The manifest says what stays.
    crate::retire::forget(files).map_err(io(RETIRING_FILE, "remove"))?;
    if incoming.is_empty() && surplus.is_empty() {
        return Ok(Installed::default());
    }
    forget_sums(files, |id| incoming.contains(&id) || surplus.contains(&id))
        .map_err(io(SUMS_DIRECTORY, "clear"))?;
    if files.exists(EPOCHS_FILE).map_err(io(EPOCHS_FILE, "look for"))? {
        files.remove(EPOCHS_FILE).map_err(io(EPOCHS_FILE, "remove"))?;
        files.sync_directory("replication").map_err(io("replication", "flush"))?;
    }
    clear_intent(files).map_err(io(CUT_FILE, "remove"))?;
    // First in, then out, so that what both journals have is never missing.
    for &id in &incoming {
        let (from, to) = (incoming_name(id), data_file_name(id));
        files.rename(&from, &to).map_err(io(&to, "move into place"))?;
    }
    if !incoming.is_empty() {
        files.sync_directory("").map_err(io("", "flush"))?;
        files.sync_directory(INCOMING_DIRECTORY).map_err(io(INCOMING_DIRECTORY, "flush"))?;
    }
    for &id in surplus.iter().rev() {
        let name = data_file_name(id);
        files.remove(&name).map_err(io(&name, "remove"))?;
    }
    files.sync_directory("").map_err(io("", "flush"))?;
    Ok(Installed { installed: incoming, removed: surplus })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_sum_reads_back(words: [u64; 5], sure: bool, foreign: bool, flip in 1u8.., at: prop::sample::Index) {
            let [length, first, last, start, end] = words;
            let (start_chain, end_chain) = (Chain(start), Chain(end));
            let file = SealedFile { id: 7, length, first_epoch: Epoch(first), start_chain, end_chain };
            let sum = Sum { file, last_epoch: Epoch(last), sure, foreign };
            let mut content = sum.encode();
            let read = Sum::decode(7, &content).map(|sum| (sum.file, sum.last_epoch, sum.sure, sum.foreign));
            prop_assert_eq!(read, Some((file, Epoch(last), sure, foreign)));
            let at = at.index(content.len());
            content[at] ^= flip;
            prop_assert!(Sum::decode(7, &content).is_none());
        }

        #[test]
        fn any_bytes_are_read_or_refused(content: Vec<u8>) {
            let _ = Sum::decode(1, &content);
        }
    }
}
