//! Opening a directory: what is there, how it ends, what has to be cut. Nothing is changed before everything is decided.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use kahawai_env::{File, Files, OpenMode, read_full_at};
use kahawai_types::{Epoch, Location, Lsn};
use tracing::{info, warn};

use crate::format::{Chain, END_MARK, FILE_BYTES_LIMIT, Problem, data_file_id, data_file_name};
use crate::options::{FILE_BYTES_MAX, FILE_BYTES_MIN};
use crate::prepare::{NEXT_FILE_NAME, ZEROS};
use crate::scan::{Batches, Catalog, Directory, FileScan, Links, Step};
use crate::tail::{Evidence, Judgement, Tail, TailKind, examine};
use crate::{JournalOptions, KnownPositions, ReadError};

/// Where dropped bytes are kept for people; never read by the broker.
pub const DIVERGENT_DIRECTORY: &str = "replication/divergent";
/// So much of one cut tail is kept.
pub const DIVERGENT_BYTES_MAX: u64 = 64 << 20;
const DIVERGENT_NAMES_MAX: u32 = 1000;

/// Why a journal was not opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Confirmed data is damaged.
    #[error(
        "{file}: damaged at offset {}: {problem}. This is no torn tail, because {evidence}. Restore the file from a replica \
         or a backup; or, to lose everything from {at} on, allow the journal to be cut at {at}",
        at.offset
    )]
    Damaged {
        /// Full name.
        file: String,
        /// End of the last good batch.
        at: Location,
        /// What stands there.
        problem: Problem,
        /// Why it is not cut.
        evidence: Evidence,
    },
    /// Confirmed data is not there at all.
    #[error(
        "{directory}: the journal is known to be confirmed or durable up to {known}, but it is empty. Restore it from a \
         replica or a backup; or, to begin with nothing, allow the journal to be cut at 0:0"
    )]
    Missing {
        /// Full name.
        directory: String,
        /// How far it should go.
        known: Lsn,
    },
    /// A replica's journal was being cut when it stopped, and that could not be finished.
    #[error("the journal was being cut")]
    Cut(#[from] crate::TruncateError),
    /// A setting that cannot work.
    #[error("journal files of {bytes} bytes: choose between {FILE_BYTES_MIN} and {FILE_BYTES_MAX}")]
    FileBytes {
        /// As configured.
        bytes: u32,
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

/// A data file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DataFile {
    /// N of `db-N.log`.
    pub id: u32,
    /// Length on disk, preallocated space included.
    pub bytes: u64,
}

/// The end of a journal that a crash left unfinished.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CutTail {
    /// What follows is gone.
    pub from: Lsn,
    /// How much was dropped, up to the last byte that was not zero. 0: only the end mark was missing.
    pub bytes: u64,
    /// What stood there.
    pub problem: Problem,
    /// File with the dropped bytes, or the first [`DIVERGENT_BYTES_MAX`] of them.
    pub saved_as: Option<String>,
    /// Set if it was damage and cut on an operator's word.
    pub overruled: Option<Evidence>,
}

/// What was found when the journal was opened.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Files with batches, ascending. Only the tail of the newest was checked; readers check what they read.
    pub files: Vec<DataFile>,
    /// File ids missing in between, first and last: collected, or lost.
    pub gaps: Vec<(u32, u32)>,
    /// End of the last good batch; everything before it is durable. `Lsn::ZERO` if there is none.
    pub end: Lsn,
    /// Newest epoch in the journal; 0 if ActiveMQ wrote all of it.
    pub last_epoch: Epoch,
    /// Chain at the end. `None` if damage in an older file keeps it from being computed.
    pub chain: Option<Chain>,
    /// ActiveMQ wrote the newest batch.
    pub newest_is_foreign: bool,
    /// Highest commit position that a stamp in the newest file tells of.
    pub commit_hint: Lsn,
    /// Tails that were cut: the newest file's, perhaps also that of a file just begun. If one had bytes, the end is
    /// *uncertain*: the crash and damage inside the last flush look the same.
    pub cuts: Vec<CutTail>,
}

pub(crate) struct Opened {
    pub(crate) recovery: Recovery,
    pub(crate) links: Links,
    pub(crate) append_at: Location,
    pub(crate) used: BTreeSet<u32>,
    pub(crate) untouched: BTreeSet<u32>,
    /// The file to go on with, if the next batch belongs into one that has batches.
    pub(crate) current: Option<Arc<dyn File>>,
}

struct Opening<'a> {
    files: &'a Arc<dyn Files>,
    handles: BTreeMap<u32, Arc<dyn File>>,
}

impl Opening<'_> {
    fn failed(&self, name: &str, action: &'static str) -> impl FnOnce(io::Error) -> OpenError {
        let file = self.files.describe(name);
        move |source| OpenError::Io { file, action, source }
    }

    fn open(&mut self, id: u32) -> Result<Arc<dyn File>, OpenError> {
        let name = data_file_name(id);
        let file = self.files.open(&name, OpenMode::Write).map_err(self.failed(&name, "open"))?;
        // What an earlier process wrote may be in the cache alone, dirty or, after a failed flush, believed to be clean.
        file.sync_data().map_err(self.failed(&name, "flush"))?;
        file.drop_cache().map_err(self.failed(&name, "drop from the cache"))?;
        self.handles.insert(id, file.clone());
        Ok(file)
    }
}

pub(crate) fn open(
    files: &Arc<dyn Files>,
    options: &JournalOptions,
    known: KnownPositions,
) -> Result<Opened, OpenError> {
    if !(FILE_BYTES_MIN..=FILE_BYTES_MAX).contains(&options.file_bytes_max) {
        return Err(OpenError::FileBytes { bytes: options.file_bytes_max });
    }
    crate::retire::finish(files).map_err(|(name, source)| OpenError::Io {
        file: files.describe(&name),
        action: "finish a deletion",
        source,
    })?;
    crate::truncate::finish(files)?;
    let mut opening = Opening { files, handles: BTreeMap::new() };
    let names = files.list("").map_err(opening.failed("", "list"))?;
    let ids: BTreeSet<u32> = names.iter().filter_map(|name| data_file_id(name)).collect();
    let mut used = ids.clone();
    let mut untouched = BTreeSet::new();
    let mut torn = Vec::new();
    let mut newest = None;
    let mut begun = None;
    for &id in ids.iter().rev() {
        let file = opening.open(id)?;
        let by = Judgement { known, batches_behind_prove: options.batches_behind_prove, later: begun };
        let tail = examine(&file, id, by).map_err(opening.failed(&data_file_name(id), "read"))?;
        match tail.kind {
            TailKind::Clean => {}
            TailKind::Torn { problem, dropped_end } => torn.push((tail.end, problem, dropped_end, None)),
            TailKind::Damaged { problem, evidence, dropped_end } => {
                if options.cut_allowed_at != Some(tail.end) {
                    let file = files.describe(&data_file_name(id));
                    return Err(OpenError::Damaged { file, at: tail.end.location(), problem, evidence });
                }
                torn.push((tail.end, problem, dropped_end, Some(evidence)));
            }
        }
        if tail.batches > 0 {
            newest = Some(tail);
            break;
        }
        used.remove(&id);
        untouched.insert(id);
        begun = matches!(tail.kind, TailKind::Torn { .. }).then_some(id).or(begun);
    }
    let bound = known.commit.max(known.durable);
    if ids.is_empty() && bound > Lsn::ZERO && options.cut_allowed_at != Some(Lsn::ZERO) {
        return Err(OpenError::Missing { directory: files.describe(""), known: bound });
    }
    let links = match &newest {
        None => Links::at_the_beginning(),
        Some(tail) if tail.links.chain.is_some() => tail.links.clone(),
        // The newest file is ActiveMQ's alone.
        Some(tail) => resolve(files, &used, tail)?,
    };
    let (mut recovery, append_at) = match &newest {
        None => {
            // File ids are never used again, so an empty file may be the only witness of those before it.
            let first = untouched.first().copied().unwrap_or(1);
            (Recovery { chain: links.chain, ..Recovery::default() }, Location::new(first, 0))
        }
        Some(tail) => {
            let end = tail.end.location();
            let foreign = links.newest_is_foreign == Some(true);
            // We never write into a file of ActiveMQ's: it may be sparse, hold stray marks, or be one that ack compaction
            // made, which upstream may skip as a whole.
            let next_file = untouched.range(end.file..).next().copied().unwrap_or(end.file.saturating_add(1));
            let append_at = if foreign { Location::new(next_file, 0) } else { end };
            let recovery = Recovery {
                end: tail.end,
                last_epoch: links.epoch,
                chain: links.chain,
                newest_is_foreign: foreign,
                commit_hint: tail.commit_hint,
                ..Recovery::default()
            };
            (recovery, append_at)
        }
    };
    // Everything is decided; from here on the directory is changed.
    if names.iter().any(|name| name == NEXT_FILE_NAME) {
        files.remove(NEXT_FILE_NAME).map_err(opening.failed(NEXT_FILE_NAME, "remove"))?;
    }
    for (from, problem, dropped_end, overruled) in torn.into_iter().rev() {
        let name = data_file_name(from.file());
        let file = opening.handles.get(&from.file()).cloned();
        let Some(file) = file else { continue };
        let cut = cut(files, &*file, from, problem, dropped_end)
            .map_err(opening.failed(&name, "cut the torn tail"))?;
        let cut = CutTail { overruled, ..cut };
        match overruled {
            None => info!(location = %from, bytes = cut.bytes, "cut a torn journal tail"),
            Some(_) => warn!(location = %from, bytes = cut.bytes, "cut a damaged journal as allowed"),
        }
        recovery.cuts.push(cut);
    }
    for &id in &used {
        let name = data_file_name(id);
        // ActiveMQ does not always flush what it wrote, nor ever the directory.
        let file = match opening.handles.get(&id) {
            Some(file) => file.clone(),
            None => files.open(&name, OpenMode::Read).map_err(opening.failed(&name, "open"))?,
        };
        if recovery.newest_is_foreign {
            file.sync_data().map_err(opening.failed(&name, "flush"))?;
        }
        let bytes = file.len().map_err(opening.failed(&name, "measure"))?;
        if let Some(before) = recovery.files.last().map(|file| file.id).filter(|&before| before + 1 < id) {
            recovery.gaps.push((before + 1, id - 1));
        }
        recovery.files.push(DataFile { id, bytes });
    }
    files.sync_directory("").map_err(opening.failed("", "flush"))?;
    let current = used.contains(&append_at.file).then(|| opening.handles.remove(&append_at.file)).flatten();
    Ok(Opened { recovery, links, append_at, used, untouched, current })
}

/// Chain and epoch where the newest file has no stamp: from the newest file that begins with one, or from the beginning.
fn resolve(files: &Arc<dyn Files>, used: &BTreeSet<u32>, newest: &Tail) -> Result<Links, OpenError> {
    let catalog = Directory::until(files.clone(), used.clone(), newest.end);
    let opened = |id: u32| {
        let source = |source| OpenError::Io { file: catalog.describe(id), action: "read", source };
        let file = catalog.open(id).map_err(source)?;
        let length = file.len().map_err(source)?;
        FileScan::new(file, id, 0, length).step().map_err(source)
    };
    // Only into files that it begins we write, so one that does not begin with a stamp has none.
    let mut base = used.first().copied().unwrap_or_default();
    for &id in used.iter().rev() {
        if let Step::Batch(batch, _) = opened(id)?
            && batch.stamp.is_some()
        {
            base = id;
            break;
        }
    }
    let mut batches = Batches::new(Arc::new(catalog), Location::new(base, 0).lsn());
    for batch in &mut batches {
        match batch {
            Ok(_) => {}
            Err(ReadError::Io { file, source, .. }) => {
                return Err(OpenError::Io { file, action: "read", source });
            }
            Err(error) => {
                warn!(%error, "the chain over files of ActiveMQ is unknown");
                let epoch = batches.links().epoch;
                return Ok(Links::known(None, epoch, Some(true)));
            }
        }
    }
    Ok(batches.links().clone())
}

/// Drops everything behind `from`: keeps a copy of what is not zero, then writes the end mark and zeros, so that nothing
/// of it can ever be taken for live.
pub(crate) fn cut(
    files: &Arc<dyn Files>,
    file: &dyn File,
    from: Lsn,
    problem: Problem,
    dropped_end: u64,
) -> io::Result<CutTail> {
    let start = u64::from(from.offset());
    let bytes = dropped_end.saturating_sub(start);
    let saved_as =
        if bytes > 0 { Some(save(files, file, from, bytes.min(DIVERGENT_BYTES_MAX))?) } else { None };
    clear_from(file, start, dropped_end)?;
    Ok(CutTail { from, bytes, problem, saved_as, overruled: None })
}

/// The end mark at `start`, durable, and then zeros to `dropped_end`.
pub(crate) fn clear_from(file: &dyn File, start: u64, dropped_end: u64) -> io::Result<()> {
    file.write_at(&END_MARK, start)?;
    file.sync_data()?;
    let mut at = start + END_MARK.len() as u64;
    let end = dropped_end.min(FILE_BYTES_LIMIT);
    while at < end {
        let step = (end - at).min(ZEROS.len() as u64);
        file.write_at(ZEROS.get(..step as usize).unwrap_or(&ZEROS), at)?;
        at += step;
    }
    file.sync_all()
}

/// Copies bytes that are about to be dropped, durably. Returns the copy's name.
pub(crate) fn save(files: &Arc<dyn Files>, file: &dyn File, from: Lsn, bytes: u64) -> io::Result<String> {
    files.create_directory(DIVERGENT_DIRECTORY)?;
    let Location { file: id, offset } = from.location();
    let name = |index: u32| match index {
        1 => format!("{DIVERGENT_DIRECTORY}/db-{id}-{offset}.bin"),
        _ => format!("{DIVERGENT_DIRECTORY}/db-{id}-{offset}-{index}.bin"),
    };
    let mut index = 1;
    while files.exists(&name(index))? && index < DIVERGENT_NAMES_MAX {
        index += 1;
    }
    let name = name(index);
    let copy = files.open(&name, OpenMode::Write)?;
    copy.set_len(0)?;
    let mut buf = vec![0; ZEROS.len()];
    let mut done = 0;
    while done < bytes {
        let want = (bytes - done).min(buf.len() as u64) as usize;
        let count = read_full_at(file, buf.get_mut(..want).unwrap_or_default(), u64::from(offset) + done)?;
        if count == 0 {
            break;
        }
        copy.write_at(buf.get(..count).unwrap_or_default(), done)?;
        done += count as u64;
    }
    copy.sync_all()?;
    files.sync_directory(DIVERGENT_DIRECTORY)?;
    Ok(name)
}
