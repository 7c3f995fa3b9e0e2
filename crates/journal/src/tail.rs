//! How a data file ends: cleanly, torn by a crash, or damaged. Only looks; [`crate::open`] acts on it.
//!
//! A crash may leave anything in what was not flushed, so everything from the first bad place on is *cut*, valid batches
//! included: a valid one alone proves nothing. It is *damage*, and never cut, if something proves that the place had been
//! confirmed:
//!
//! * it lies before a position that is known to be confirmed or durable;
//! * a batch behind it, right in itself and standing where its stamp says, carries a commit hint beyond it;
//! * a later file was begun, which happens only after everything before was flushed;
//! * where ActiveMQ wrote, or may have written, a whole batch of its follows. A torn tail has nothing valid behind it;
//!   upstream's default would silently drop that batch. (A batch of ours that was cut short so early that not even its stamp's
//!   header is left, and that carries a whole batch of ActiveMQ's in a message, is refused too: nothing tells the two apart.)
//!
//! The search for such batches begins right behind the bad place, not behind what a damaged length field claims.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use kahawai_env::{File, read_full_at};
use kahawai_types::Lsn;
use memchr::memmem;

use crate::KnownPositions;
use crate::format::{
    BATCH_OVERHEAD_BYTES, CONTROL_BYTES, CheckedBatch, Control, END_MARK, FILE_BYTES_LIMIT, MAGIC, Problem,
    STAMP_RECORD_BYTES, Stamp, record_header,
};
use crate::scan::{EndKind, FileScan, Links, Step};

/// Bytes that a search may checksum before it gives up: a crafted file could make it quadratic.
const SEARCH_BYTES_MAX: u64 = 4 << 30;
/// ActiveMQ's chunked preallocation puts an end mark at each multiple of this.
const STRAY_MARK_STEP: u64 = 1 << 20;
const CHUNK_BYTES: usize = 1 << 20;

/// Why a bad place is no torn tail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Evidence {
    /// The journal is known to have been confirmed or durable up to here.
    KnownEnd(Lsn),
    /// The batch at `batch` says that everything before `commit` was confirmed.
    CommitHint {
        /// Where it stands.
        batch: Lsn,
        /// What it says.
        commit: Lsn,
    },
    /// A whole batch follows here, in a file that ActiveMQ wrote.
    BatchBehind(Lsn),
    /// This later file was begun.
    LaterFile(u32),
    /// The search for evidence was given up; the file holds too much that looks like batches.
    Undecided,
}

impl std::fmt::Display for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::KnownEnd(end) => write!(f, "the journal is known to be confirmed or durable up to {end}"),
            Self::CommitHint { batch, commit } => {
                write!(f, "the good batch at {batch} says that everything before {commit} was confirmed")
            }
            Self::BatchBehind(at) => write!(f, "a good batch follows at {at}"),
            Self::LaterFile(id) => write!(f, "db-{id}.log was begun after everything before it was flushed"),
            Self::Undecided => write!(f, "too much behind it looks like batches to decide what it is"),
        }
    }
}

/// One file's batches, and what comes behind them.
#[derive(Debug)]
pub(crate) struct Tail {
    /// End of the last good batch.
    pub(crate) end: Lsn,
    pub(crate) links: Links,
    /// Highest commit hint among the good batches.
    pub(crate) commit_hint: Lsn,
    pub(crate) batches: u64,
    pub(crate) file_bytes: u64,
    pub(crate) kind: TailKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TailKind {
    /// Nothing but filler follows.
    Clean,
    /// To be cut: bytes in `end..dropped_end` are not all zero; an empty range if only the end mark is missing.
    Torn { problem: Problem, dropped_end: u64 },
    /// Not to be touched.
    Damaged { problem: Problem, evidence: Evidence, dropped_end: u64 },
}

/// What a tail is judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judgement {
    pub(crate) known: KnownPositions,
    /// See [`crate::JournalOptions::batches_behind_prove`].
    pub(crate) batches_behind_prove: bool,
    /// A file behind it that was begun.
    pub(crate) later: Option<u32>,
}

/// Walks a file and judges its tail.
pub(crate) fn examine(file: &Arc<dyn File>, id: u32, by: Judgement) -> io::Result<Tail> {
    let file_bytes = file.len()?;
    let mut scan = FileScan::new(file.clone(), id, 0, file_bytes);
    let mut tail = Tail {
        end: scan.lsn(),
        links: Links::default(),
        commit_hint: Lsn::ZERO,
        batches: 0,
        file_bytes,
        kind: TailKind::Clean,
    };
    let stop = loop {
        let at = scan.lsn();
        match scan.step()? {
            Step::Batch(batch, _) => {
                if let Err(problem) = tail.links.follow(&batch, at) {
                    break Err(problem);
                }
                tail.batches += 1;
                tail.end = scan.lsn();
                tail.commit_hint =
                    tail.commit_hint.max(batch.stamp.map_or(Lsn::ZERO, |stamp| stamp.commit_hint));
            }
            Step::End(kind) => break Ok(kind),
            Step::Bad(problem) => break Err(problem),
        }
    };
    let end = tail.end.offset().into();
    let foreign = tail.links.newest_is_foreign != Some(false);
    let mark = stop == Ok(EndKind::Mark);
    let dropped_end = end_of_content(&**file, end, mark, foreign, file_bytes.min(FILE_BYTES_LIMIT - 1))?;
    let (clean, problem) = match stop {
        // What follows ActiveMQ's end mark are stale bytes of an earlier, longer write.
        Ok(EndKind::Mark) => ((foreign && tail.batches > 0) || dropped_end == end, Problem::NotABatch),
        Ok(EndKind::Zeros | EndKind::File) => (foreign && dropped_end == end, Problem::NoEndMark),
        Err(problem) => (false, problem),
    };
    let bound = by.known.commit.max(by.known.durable);
    let evidence = if bound > tail.end {
        Some(Evidence::KnownEnd(bound))
    } else if clean {
        None
    } else if let Some(evidence) = search(file, &tail, dropped_end, mark, by.batches_behind_prove)? {
        Some(evidence)
    } else {
        by.later.map(Evidence::LaterFile)
    };
    tail.kind = match evidence {
        Some(evidence) => TailKind::Damaged { problem, evidence, dropped_end },
        None if clean => TailKind::Clean,
        None => TailKind::Torn { problem, dropped_end },
    };
    Ok(tail)
}

/// Where the last byte behind `from` ends that is neither zero nor part of the end mark there, nor, with `stray`, part of
/// one where ActiveMQ's preallocation puts it; `from` if there is none.
fn end_of_content(
    file: &dyn File,
    from: u64,
    mark_at_from: bool,
    stray: bool,
    file_bytes: u64,
) -> io::Result<u64> {
    let mark = END_MARK.len() as u64;
    let mut buf = vec![0; CHUNK_BYTES];
    let mut content_end = from;
    let mut at = if mark_at_from { from + mark } else { from };
    let mut end = file_bytes;
    if stray && at + mark <= end {
        let last = &mut [0; END_MARK.len()];
        if read_full_at(file, last, end - mark)? == END_MARK.len() && *last == END_MARK {
            end -= mark;
        }
    }
    while at < end {
        // Chunks begin at the stray marks' places, so that a mark is never cut in two.
        let next = (at / STRAY_MARK_STEP + 1) * STRAY_MARK_STEP;
        let want = (next.min(end) - at) as usize;
        let count = read_full_at(file, &mut buf[..want], at)?;
        if count == 0 {
            break;
        }
        let chunk = &mut buf[..count];
        if stray && at.is_multiple_of(STRAY_MARK_STEP) && chunk.starts_with(&END_MARK) {
            chunk[..END_MARK.len()].fill(0);
        }
        if let Some(last) = last_nonzero(chunk) {
            content_end = at + last as u64 + 1;
        }
        at += count as u64;
    }
    Ok(content_end)
}

/// Where a file's content ends that begins at `from`; `from` if there is nothing but filler.
pub(crate) fn content_end(file: &dyn File, from: u64) -> io::Result<u64> {
    let mut mark = [0; END_MARK.len()];
    let marked = read_full_at(file, &mut mark, from)? == mark.len() && mark == END_MARK;
    end_of_content(file, from, marked, false, file.len()?.min(FILE_BYTES_LIMIT - 1))
}

/// Most of what it is asked about is zeros, so it looks at whole blocks, which the compiler makes wide steps of.
fn last_nonzero(bytes: &[u8]) -> Option<usize> {
    const BLOCK_BYTES: usize = 4096;
    let mut end = bytes.len();
    for block in bytes.rchunks(BLOCK_BYTES) {
        if block.iter().fold(0, |any, &b| any | b) != 0 {
            let from = end - block.len();
            return block.iter().rposition(|&b| b != 0).map(|at| from + at);
        }
        end -= block.len();
    }
    None
}

/// Looks for a batch behind the tail's end that proves that the end is no torn tail.
fn search(
    file: &Arc<dyn File>,
    tail: &Tail,
    content_end: u64,
    stopped_at_mark: bool,
    batches_behind_prove: bool,
) -> io::Result<Option<Evidence>> {
    let foreign = tail.links.newest_is_foreign == Some(true);
    if !foreign && !batches_behind_prove {
        return Ok(None);
    }
    // Where a file of ours, or one without batches, ends cleanly, only what is ours can have been written behind that end.
    let believe_foreign = foreign || !stopped_at_mark;
    let mut foreign_found = None;
    let mut search = Search::new(file, tail.end, content_end, tail.file_bytes)?;
    if !foreign {
        search.own_end = own_end(&search.bytes, tail.end);
    }
    while let Some((lsn, batch)) = search.next()? {
        match batch.stamp {
            Some(stamp) if stamp.commit_hint > tail.end => {
                return Ok(Some(Evidence::CommitHint { batch: lsn, commit: stamp.commit_hint }));
            }
            // A batch of ours that was cut short may carry a whole data file in a message, which proves nothing.
            None if believe_foreign && lsn >= search.own_end => {
                foreign_found.get_or_insert(Evidence::BatchBehind(lsn));
            }
            _ => {}
        }
    }
    Ok(foreign_found.or(search.gave_up.then_some(Evidence::Undecided)))
}

/// The next batch behind a bad place that can be believed, for tools that go on after damage.
pub(crate) fn next_believable(file: &Arc<dyn File>, bad: Lsn, file_bytes: u64) -> io::Result<Option<Lsn>> {
    let content_end = end_of_content(&**file, bad.offset().into(), false, true, file_bytes)?;
    Ok(Search::new(file, bad, content_end, file_bytes)?.next()?.map(|(lsn, _)| lsn))
}

/// Batches anywhere behind a place, found by their magic and proven by checksum or digest (D11: one that is found by
/// searching and checked by nothing is not believed).
struct Search<'a> {
    file: &'a Arc<dyn File>,
    base: Lsn,
    file_bytes: u64,
    /// From `base` to the last byte that is not zero.
    bytes: BytesMut,
    at: usize,
    budget: u64,
    gave_up: bool,
    /// What begins before this is the content of a batch of ours, right or torn.
    own_end: Lsn,
}

impl<'a> Search<'a> {
    fn new(file: &'a Arc<dyn File>, base: Lsn, content_end: u64, file_bytes: u64) -> io::Result<Self> {
        let length = content_end.saturating_sub(base.offset().into());
        let mut bytes = BytesMut::zeroed(usize::try_from(length).unwrap_or(0));
        let count = read_full_at(&**file, &mut bytes, base.offset().into())?;
        bytes.truncate(count);
        let file_bytes = file_bytes.min(FILE_BYTES_LIMIT - 1);
        let own_end = Lsn::ZERO;
        Ok(Self { file, base, file_bytes, bytes, at: 1, budget: SEARCH_BYTES_MAX, gave_up: false, own_end })
    }

    fn next(&mut self) -> io::Result<Option<(Lsn, CheckedBatch)>> {
        while let Some(found) = memmem::find(self.bytes.get(self.at..).unwrap_or_default(), &MAGIC) {
            let at = self.at + found;
            self.at = at + 1;
            let lsn = Lsn(self.base.0 + at as u64);
            let candidate = self.bytes.get(at..).unwrap_or_default();
            let Some(control) = Control::decode(candidate) else { continue };
            self.own_end = self.own_end.max(own_end(candidate, lsn));
            let bytes = CONTROL_BYTES as u64 + u64::from(control.payload_bytes);
            if u64::from(lsn.offset()) + bytes > self.file_bytes {
                continue;
            }
            let Some(left) = self.budget.checked_sub(bytes) else {
                self.gave_up = true;
                return Ok(None);
            };
            self.budget = left;
            let checked = if bytes <= candidate.len() as u64 {
                CheckedBatch::check(candidate, lsn).ok()
            } else {
                // It ends in zeros, which were not counted as content.
                match FileScan::new(self.file.clone(), lsn.file(), lsn.offset().into(), self.file_bytes)
                    .step()?
                {
                    Step::Batch(batch, _) => Some(batch),
                    _ => None,
                }
            };
            if let Some(batch) = checked.filter(|batch| batch.proven) {
                return Ok(Some((lsn, batch)));
            }
        }
        Ok(None)
    }
}

/// How far the batch at the front reaches by what it declares, if it begins as ours do: with a stamp for this place, or with
/// what is left of one. `Lsn::ZERO` if it does not.
fn own_end(bytes: &[u8], at: Lsn) -> Lsn {
    let end = || {
        let control = Control::decode(bytes)?;
        let record = bytes.get(CONTROL_BYTES..BATCH_OVERHEAD_BYTES)?;
        let stamp = Stamp::decode(record.strip_prefix(&record_header(STAMP_RECORD_BYTES as u32))?);
        let elsewhere = stamp.is_some_and(|stamp| stamp.lsn != at);
        (!elsewhere).then_some(Lsn(at.0 + CONTROL_BYTES as u64 + u64::from(control.payload_bytes)))
    };
    end().unwrap_or(Lsn::ZERO)
}
