//! What was made of a store of ActiveMQ's: the index as it was when the last batch of ActiveMQ's had been read, before the first
//! one of ours behind it. Which number a message has there is in nobody's journal, and later acknowledgements name it by that.
//!
//! ```text
//! imported/snapshot
//! KW1I | applied lsn u64 | chain there u64 | known u8 | { kind u8 | length u32 | value } ... | 0 u8 | XXH3-64 of all that u64
//! ```
//!
//! Written once, by whoever opens the store alone; copied as it is to replicas. With it, and the journal behind it, an index is
//! the same wherever it is made again, however much of the journal was given up since.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kahawai_env::{File, Files, OpenMode, read_full_at};
use kahawai_message::ProducerId;
use kahawai_message::storage::DestinationKey;
use kahawai_types::Lsn;
use kahawai_wire::{Reader, WireError};
use tracing::warn;
use xxhash_rust::xxh3::Xxh3;

use crate::audit;
use crate::checkpoint::{
    Checkpoint, decode_destination, decode_files, decode_prepared, encode_destination, encode_files,
    encode_prepared,
};
use crate::chunk::{CHUNK, Slots};
use crate::import::IMPORTED;
use crate::state::{ChunkError, Prepared, PreparedOp, State};

/// Where it lies.
pub const SNAPSHOT_FILE: &str = "imported/snapshot";

const MAGIC: &[u8; 4] = b"KW1I";
const HEAD_BYTES: usize = 4 + 8 + 8 + 1;
const SUM_BYTES: usize = 8;
/// No value is longer; what is longer is damaged.
const VALUE_BYTES_MAX: usize = 256 << 20;
/// Numbers of destinations that nothing was ever in, at most; bounds what is allocated.
const UNUSED_KEYS_MAX: usize = 1 << 16;
/// Written and read in parts of this size, or a value's.
const PART_BYTES: usize = 1 << 20;

const END: u8 = 0;
const FILES: u8 = 1;
const PREPARED: u8 = 2;
const AUDIT: u8 = 3;
const DESTINATION: u8 = 4;
const CHUNK_OF: u8 = 5;

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Its content is not what was written.
    #[error("{path}: damaged")]
    Damaged {
        /// Which file.
        path: String,
    },
    /// A value in it.
    #[error("{path}: {source}")]
    Value {
        /// Which file.
        path: String,
        /// What is wrong with it.
        source: WireError,
    },
    /// The index that it is read into.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
}

/// A snapshot, by a look at its beginning and end alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// The index reflects the journal up to here. Nothing of ActiveMQ's lies behind.
    pub applied: Lsn,
    /// The chain there, if it was known.
    pub chain: Option<u64>,
    /// Bytes.
    pub length: u64,
    /// XXH3-64 of everything but itself.
    pub sum: u64,
}

impl Snapshot {
    /// That of a data directory; one that is damaged at its beginning or end is none.
    pub fn find(files: &Arc<dyn Files>) -> io::Result<Option<Self>> {
        Self::find_at(files, SNAPSHOT_FILE)
    }

    fn find_at(files: &Arc<dyn Files>, name: &str) -> io::Result<Option<Self>> {
        if !files.exists(name)? {
            return Ok(None);
        }
        let file = files.open(name, OpenMode::Read)?;
        let length = file.len()?;
        let (mut head, mut sum) = ([0; HEAD_BYTES], [0; SUM_BYTES]);
        let whole = read_full_at(&*file, &mut head, 0)? == HEAD_BYTES
            && length >= (HEAD_BYTES + 1 + SUM_BYTES) as u64
            && read_full_at(&*file, &mut sum, length - SUM_BYTES as u64)? == SUM_BYTES;
        let decoded = whole.then(|| decode_head(&head)).flatten();
        if decoded.is_none() {
            warn!(file = files.describe(name), "what was kept of ActiveMQ's index is damaged");
        }
        let sum = u64::from_be_bytes(sum);
        Ok(decoded.map(|(applied, chain)| Self { applied, chain, length, sum }))
    }
}

/// Is what lies at `path` a whole snapshot with this length and sum?
pub fn is_whole(files: &Arc<dyn Files>, path: &str, length: u64, sum: u64) -> io::Result<bool> {
    let found = Snapshot::find_at(files, path)?;
    if found.is_none_or(|found| (found.length, found.sum) != (length, sum)) {
        return Ok(false);
    }
    let file = files.open(path, OpenMode::Read)?;
    let (mut hash, mut at, end) = (Xxh3::new(), 0, length - SUM_BYTES as u64);
    let mut part = vec![0; PART_BYTES];
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(PART_BYTES);
        let part = part.get_mut(..wanted).unwrap_or_default();
        if read_full_at(&*file, part, at)? < wanted {
            return Ok(false);
        }
        hash.update(part);
        at += wanted as u64;
    }
    Ok(hash.digest() == sum)
}

/// Removes it, durably.
pub fn discard(files: &Arc<dyn Files>) -> io::Result<()> {
    if files.exists(SNAPSHOT_FILE)? {
        files.remove(SNAPSHOT_FILE)?;
        files.sync_directory(IMPORTED)?;
    }
    Ok(())
}

fn decode_head(head: &[u8; HEAD_BYTES]) -> Option<(Lsn, Option<u64>)> {
    let (applied, rest) = head.strip_prefix(MAGIC)?.split_first_chunk()?;
    let (chain, rest) = rest.split_first_chunk()?;
    let known = match rest {
        [0] => false,
        [1] => true,
        _ => return None,
    };
    Some((Lsn(u64::from_be_bytes(*applied)), known.then_some(u64::from_be_bytes(*chain))))
}

/// Writes the end of a file, part by part.
struct Out {
    file: Arc<dyn File>,
    at: u64,
    part: BytesMut,
    hash: Xxh3,
}

impl Out {
    fn put(&mut self, kind: u8, value: &mut BytesMut) -> io::Result<()> {
        if value.len() > VALUE_BYTES_MAX {
            return Err(io::Error::other("a value is too long for a snapshot"));
        }
        self.part.extend_from_slice(&[kind]);
        self.part.extend_from_slice(&(value.len() as u32).to_be_bytes());
        self.part.extend_from_slice(value);
        value.clear();
        if self.part.len() >= PART_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_at(&self.part, self.at)?;
        self.hash.update(&self.part);
        self.at += self.part.len() as u64;
        self.part.clear();
        Ok(())
    }
}

/// Keeps the first checkpoint of an index, which has all of it, durably, in the place of an earlier one.
pub(crate) fn keep(files: &Arc<dyn Files>, checkpoint: &Checkpoint) -> io::Result<()> {
    files.create_directory(IMPORTED)?;
    let aside = format!("{SNAPSHOT_FILE}.tmp");
    let file = files.open(&aside, OpenMode::Write)?;
    file.set_len(0)?;
    let mut out = Out { file, at: 0, part: BytesMut::new(), hash: Xxh3::new() };
    let header = checkpoint.header;
    out.part.extend_from_slice(MAGIC);
    out.part.extend_from_slice(&header.applied.0.to_be_bytes());
    out.part.extend_from_slice(&header.chain.unwrap_or_default().to_be_bytes());
    out.part.extend_from_slice(&[u8::from(header.chain.is_some())]);
    let mut value = BytesMut::new();
    encode_files(&checkpoint.files, &mut value);
    out.put(FILES, &mut value)?;
    encode_prepared(&checkpoint.prepared, &mut value);
    out.put(PREPARED, &mut value)?;
    audit::encode(&checkpoint.audit, &mut value);
    out.put(AUDIT, &mut value)?;
    for destination in &checkpoint.destinations {
        value.extend_from_slice(&destination.key.0.to_be_bytes());
        encode_destination(destination, &mut value);
        out.put(DESTINATION, &mut value)?;
        for (number, slots) in &destination.changed {
            value.extend_from_slice(&destination.key.0.to_be_bytes());
            value.extend_from_slice(&number.to_be_bytes());
            slots.encode(&mut value);
            out.put(CHUNK_OF, &mut value)?;
        }
    }
    out.part.extend_from_slice(&[END]);
    out.write()?;
    let sum = out.hash.digest();
    out.file.write_at(&sum.to_be_bytes(), out.at)?;
    out.file.sync_all()?;
    files.rename(&aside, SNAPSHOT_FILE)?;
    files.sync_directory(IMPORTED)?;
    files.sync_directory("")
}

/// Reads a file part by part.
struct In {
    file: Arc<dyn File>,
    at: u64,
    end: u64,
    part: Bytes,
}

impl In {
    /// The next bytes; `None` if there are not so many.
    fn take(&mut self, length: usize) -> io::Result<Option<Bytes>> {
        if self.part.len() < length {
            let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
            let lacks = length - self.part.len();
            if lacks > left {
                return Ok(None);
            }
            let more = lacks.max(PART_BYTES).min(left);
            let mut part = BytesMut::with_capacity(self.part.len() + more);
            part.extend_from_slice(&self.part);
            let held = part.len();
            part.resize(held + more, 0);
            let fresh = part.get_mut(held..).unwrap_or_default();
            if read_full_at(&*self.file, fresh, self.at)? < more {
                return Ok(None);
            }
            self.at += more as u64;
            self.part = part.freeze();
        }
        Ok(Some(self.part.split_to(length)))
    }
}

/// What [`load`] has read besides the index.
pub(crate) struct Loaded {
    pub(crate) snapshot: Snapshot,
    /// What producers had stored.
    pub(crate) known: Vec<(ProducerId, i64)>,
}

/// Reads it into an empty index, without what was in data files that are not there any more: that was given up since. `None` if there
/// is none.
pub(crate) fn load(
    files: &Arc<dyn Files>,
    there: &BTreeSet<u32>,
    state: &mut State,
) -> Result<Option<Loaded>, SnapshotError> {
    let path = files.describe(SNAPSHOT_FILE);
    let io = |source| SnapshotError::Io { path: path.clone(), source };
    let damaged = || SnapshotError::Damaged { path: path.clone() };
    if !files.exists(SNAPSHOT_FILE).map_err(io)? {
        return Ok(None);
    }
    let snapshot = Snapshot::find(files).map_err(io)?.ok_or_else(damaged)?;
    if !is_whole(files, SNAPSHOT_FILE, snapshot.length, snapshot.sum).map_err(io)? {
        return Err(damaged());
    }
    let file = files.open(SNAPSHOT_FILE, OpenMode::Read).map_err(io)?;
    let end = snapshot.length - SUM_BYTES as u64;
    let mut from = In { file, at: 0, end, part: Bytes::new() };
    let wrong = |source| SnapshotError::Value { path: path.clone(), source };
    let mut take = |length| from.take(length).map_err(io)?.ok_or_else(damaged);
    take(HEAD_BYTES)?;
    // Topics that lost a subscription.
    let mut left = Vec::new();
    let mut ended: Vec<Prepared> = Vec::new();
    let (mut destinations, mut known) = (0, Vec::new());
    loop {
        let kind = take(1)?;
        if *kind == [END] {
            break;
        }
        let length = take(4)?;
        let length = length.first_chunk().map_or(0, |length| u32::from_be_bytes(*length)) as usize;
        if length > VALUE_BYTES_MAX {
            return Err(damaged());
        }
        let value = take(length)?;
        match kind.first() {
            Some(&FILES) => {
                let table = decode_files(value).map_err(wrong)?;
                for (file, use_) in table.iter().filter(|(file, _)| there.contains(file)) {
                    let older = use_.outlives.iter().filter(|older| there.contains(older));
                    older.for_each(|&older| state.files.outlives(file, older));
                }
            }
            Some(&PREPARED) => {
                state.prepared = decode_prepared(value).map_err(wrong)?;
                // Their outcome was in our journal.
                let gone = state.prepared.extract_if(.., |_, prepared| !there.contains(&prepared.at.file));
                ended = gone.map(|(_, prepared)| prepared).collect();
            }
            Some(&AUDIT) => known = audit::decode(value).map_err(wrong)?,
            Some(&DESTINATION) => {
                let mut reader = Reader::new(value);
                let key = DestinationKey(reader.u32().map_err(wrong)?);
                destinations += 1;
                if key.0 as usize >= destinations + UNUSED_KEYS_MAX {
                    return Err(damaged());
                }
                let rest = reader.remaining();
                let value = reader.bytes(rest).map_err(wrong)?;
                let mut destination = decode_destination(key, value).map_err(wrong)?;
                destination.directory.clear();
                let count = destination.subscriptions.len();
                destination.subscriptions.retain_mut(|sub| {
                    let newer = sub.renewed.filter(|at| there.contains(&at.file));
                    match newer.filter(|_| !there.contains(&sub.at.file)) {
                        Some(newer) => (sub.at, sub.renewed) = (newer, None),
                        None => sub.renewed = newer,
                    }
                    there.contains(&sub.at.file)
                });
                if destination.subscriptions.len() < count {
                    left.push(key);
                }
                for file in destination.subscriptions.iter().flat_map(|sub| sub.files()) {
                    state.files.touch(file).subscriptions += 1;
                }
                state.restore(key, destination);
                state.mark(key);
            }
            Some(&CHUNK_OF) => {
                let mut reader = Reader::new(value);
                let key = DestinationKey(reader.u32().map_err(wrong)?);
                let number = reader.u64().map_err(wrong)?;
                let rest = reader.remaining();
                let slots = Slots::decode(reader.bytes(rest).map_err(wrong)?).map_err(wrong)?;
                let first = number.checked_mul(CHUNK).ok_or_else(damaged)?;
                if state.get(key).is_none() {
                    return Err(damaged());
                }
                for (offset, slot) in slots.iter().filter(|(_, slot)| there.contains(&slot.location().file)) {
                    state.insert(key, first + u64::from(offset), *slot)?;
                }
            }
            _ => return Err(damaged()),
        }
    }
    for op in ended.into_iter().flat_map(|prepared| prepared.operations) {
        if let PreparedOp::Remove { destination, subscription, sequence: Some(sequence), .. } = op {
            state.hold(destination, subscription.as_ref(), sequence, false)?;
        }
    }
    for key in left {
        state.forget_unwanted(key)?;
    }
    state.count_pending()?;
    Ok(Some(Loaded { snapshot, known }))
}
