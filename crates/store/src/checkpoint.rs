//! The index on disk: a disposable cache in one `redb` file, written by checkpoints (design D2).
//!
//! A checkpoint is one transaction: the chunks that changed, the destinations that changed, and the journal position that
//! all of it reflects. A crash in the middle leaves the checkpoint before. Damage leads to a rebuild from the journal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kahawai_env::Files;
use kahawai_message::storage::{DestinationKey, SubscriptionKey};
use kahawai_message::stored::{decode_subscription_info, encode_subscription_info};
use kahawai_message::{Destination, DestinationKind, ProducerId, Text, TransactionId, Xid};
use kahawai_types::{Location, Lsn};
use kahawai_wire::{Reader, WireError, put_varint64};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::audit::{self, Audit};
use crate::checked::{CheckedFile, Names};
use crate::chunk::Slots;
use crate::files::{FileTable, FileUse};
use crate::ranges::Ranges;
use crate::state::{ChunkSource, DestinationSnapshot, Prepared, PreparedOp, State, Subscription};

/// Folder of the index, in the data directory.
pub const INDEX_DIRECTORY: &str = "index";
/// The index file.
pub const INDEX_FILE: &str = "index/index.redb";

/// The sums of its pages.
pub const SUMS_FILE: &str = "index/index.sums";

const NAMES: Names =
    Names { directory: INDEX_DIRECTORY, pages: INDEX_FILE, sums: SUMS_FILE, damaged: "index/damaged" };
const FORMAT: u64 = 1;
const CACHE_BYTES: usize = 8 << 20;
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const DESTINATIONS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("destinations");
const CHUNKS: TableDefinition<'_, (u32, u64), &[u8]> = TableDefinition::new("chunks");

/// Why the index store cannot be used. Always survivable by rebuilding, except for a full or failing disk.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The index store itself.
    #[error("{path}: {source}")]
    Store {
        /// Which file.
        path: String,
        /// What it said.
        source: Box<redb::Error>,
    },
    /// A value in it.
    #[error("{path}: {what}: {source}")]
    Value {
        /// Which file.
        path: String,
        /// Which value.
        what: &'static str,
        /// What is wrong with it.
        source: WireError,
    },
    /// Written by another version of this program.
    #[error("{path} has format {found}, this version reads {FORMAT}")]
    Format {
        /// Which file.
        path: String,
        /// Its format.
        found: u64,
    },
    /// Opening or removing it.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// What a checkpoint says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// The index reflects the journal up to here.
    pub applied: Lsn,
    /// Replay begins here: at `applied`, or at the first record of a transaction that was on its way.
    pub replay_from: Lsn,
    /// Chain of the journal at `applied`, if it was known.
    pub chain: Option<u64>,
    /// The process stopped in good order after this checkpoint.
    pub clean: bool,
}

/// Everything that one checkpoint writes.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where it stands.
    pub header: Header,
    /// What changed.
    pub destinations: Vec<DestinationSnapshot>,
    /// All of it.
    pub files: FileTable,
    /// All of them.
    pub prepared: BTreeMap<TransactionId, Prepared>,
    /// All of them.
    pub audit: Vec<(ProducerId, i64)>,
    /// Data files that are to be deleted, or were lately.
    pub collected: BTreeSet<u32>,
}

impl Checkpoint {
    /// What changed in `state` since the last one.
    pub(crate) fn of(state: &mut State, applied: Lsn, replay_from: Lsn, clean: bool) -> Self {
        Self {
            header: Header { applied, replay_from, chain: None, clean },
            destinations: state.snapshot(),
            files: state.files.clone(),
            prepared: state.prepared.clone(),
            audit: state.audit.entries(),
            collected: state.collected.clone(),
        }
    }
}

/// The open index store.
pub struct IndexStore {
    database: Database,
    path: String,
}

impl std::fmt::Debug for IndexStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IndexStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl IndexStore {
    /// Opens the index store of a data directory, made empty if there is none.
    pub fn open(files: &Arc<dyn Files>) -> Result<Self, IndexError> {
        Self::open_as(files, NAMES)
    }

    /// The same in another place.
    pub(crate) fn open_as(files: &Arc<dyn Files>, names: Names) -> Result<Self, IndexError> {
        let path = files.describe(names.pages);
        let io = |source| IndexError::Io { path: path.clone(), source };
        files.create_directory(names.directory).map_err(io)?;
        let file = CheckedFile::open(files, names).map_err(io)?;
        files.sync_directory(names.directory).map_err(io)?;
        files.sync_directory("").map_err(io)?;
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(file)
            .map_err(|e| IndexError::Store { path: path.clone(), source: Box::new(e.into()) })?;
        Ok(Self { database, path })
    }

    /// Deletes the index store of a data directory; the next start rebuilds it.
    pub fn discard(files: &Arc<dyn Files>) -> Result<(), IndexError> {
        CheckedFile::discard(files, NAMES)
            .map_err(|source| IndexError::Io { path: files.describe(INDEX_FILE), source })
    }

    fn broken(&self, error: impl Into<redb::Error>) -> IndexError {
        IndexError::Store { path: self.path.clone(), source: Box::new(error.into()) }
    }

    fn wrong(&self, what: &'static str) -> impl Fn(WireError) -> IndexError {
        let path = self.path.clone();
        move |source| IndexError::Value { path: path.clone(), what, source }
    }

    /// Reads the last checkpoint into `state`; `None` if there is none yet.
    pub fn load(&self, state: &mut State) -> Result<Option<Header>, IndexError> {
        let read = self.database.begin_read().map_err(|e| self.broken(e))?;
        let meta = match read.open_table(META) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            other => other.map_err(|e| self.broken(e))?,
        };
        let value = |key: &str| -> Result<Option<Bytes>, IndexError> {
            let found = meta.get(key).map_err(|e| self.broken(e))?;
            Ok(found.map(|guard| Bytes::copy_from_slice(guard.value())))
        };
        let Some(header) = value("header")? else { return Ok(None) };
        let header = self.decode_header(header)?;
        state.files = decode_files(value("files")?.unwrap_or_default()).map_err(self.wrong("file table"))?;
        state.prepared =
            decode_prepared(value("prepared")?.unwrap_or_default()).map_err(self.wrong("transactions"))?;
        state.audit = Audit::default();
        let known = audit::decode(value("audit")?.unwrap_or_default());
        state.audit.learn(known.map_err(self.wrong("audit"))?);
        let collected = value("collected")?.unwrap_or_default();
        state.collected = decode_numbers(collected).map_err(self.wrong("collected files"))?;
        let destinations = read.open_table(DESTINATIONS).map_err(|e| self.broken(e))?;
        for row in destinations.iter().map_err(|e| self.broken(e))? {
            let (key, value) = row.map_err(|e| self.broken(e))?;
            let key = DestinationKey(key.value());
            let snapshot = decode_destination(key, Bytes::copy_from_slice(value.value()))
                .map_err(self.wrong("destination"))?;
            state.restore(key, snapshot);
        }
        Ok(Some(header))
    }

    fn decode_header(&self, bytes: Bytes) -> Result<Header, IndexError> {
        let wrong = self.wrong("header");
        let mut reader = Reader::new(bytes);
        let format = reader.varint64().map_err(&wrong)?;
        if format != FORMAT {
            return Err(IndexError::Format { path: self.path.clone(), found: format });
        }
        let applied = Lsn(reader.u64().map_err(&wrong)?);
        let replay_from = Lsn(reader.u64().map_err(&wrong)?);
        let known = reader.bool().map_err(&wrong)?;
        let chain = reader.u64().map_err(&wrong)?;
        let clean = reader.bool().map_err(&wrong)?;
        Ok(Header { applied, replay_from, chain: known.then_some(chain), clean })
    }

    /// Writes a checkpoint and makes it durable.
    pub fn write(&self, checkpoint: Checkpoint) -> Result<(), IndexError> {
        let mut write = self.database.begin_write().map_err(|e| self.broken(e))?;
        write.set_quick_repair(true);
        {
            let mut meta = write.open_table(META).map_err(|e| self.broken(e))?;
            let mut buffer = BytesMut::new();
            let header = checkpoint.header;
            put_varint64(FORMAT, &mut buffer);
            buffer.extend_from_slice(&header.applied.0.to_be_bytes());
            buffer.extend_from_slice(&header.replay_from.0.to_be_bytes());
            buffer.extend_from_slice(&[u8::from(header.chain.is_some())]);
            buffer.extend_from_slice(&header.chain.unwrap_or_default().to_be_bytes());
            buffer.extend_from_slice(&[u8::from(header.clean)]);
            let mut put = |key: &str, buffer: &mut BytesMut| -> Result<(), IndexError> {
                meta.insert(key, &buffer[..]).map_err(|e| self.broken(e))?;
                buffer.clear();
                Ok(())
            };
            put("header", &mut buffer)?;
            encode_files(&checkpoint.files, &mut buffer);
            put("files", &mut buffer)?;
            encode_prepared(&checkpoint.prepared, &mut buffer);
            put("prepared", &mut buffer)?;
            audit::encode(&checkpoint.audit, &mut buffer);
            put("audit", &mut buffer)?;
            put_varint64(checkpoint.collected.len() as u64, &mut buffer);
            for &file in &checkpoint.collected {
                put_varint64(file.into(), &mut buffer);
            }
            put("collected", &mut buffer)?;
            let mut destinations = write.open_table(DESTINATIONS).map_err(|e| self.broken(e))?;
            let mut chunks = write.open_table(CHUNKS).map_err(|e| self.broken(e))?;
            for snapshot in &checkpoint.destinations {
                for &number in &snapshot.gone {
                    chunks.remove((snapshot.key.0, number)).map_err(|e| self.broken(e))?;
                }
                for (number, slots) in &snapshot.changed {
                    slots.encode(&mut buffer);
                    chunks.insert((snapshot.key.0, *number), &buffer[..]).map_err(|e| self.broken(e))?;
                    buffer.clear();
                }
                encode_destination(snapshot, &mut buffer);
                destinations.insert(snapshot.key.0, &buffer[..]).map_err(|e| self.broken(e))?;
                buffer.clear();
            }
        }
        write.commit().map_err(|e| self.broken(e))
    }
}

impl ChunkSource for IndexStore {
    fn load(&self, destination: DestinationKey, chunk: u64) -> Result<Slots, String> {
        let read = || -> Result<Option<Bytes>, redb::Error> {
            let read = self.database.begin_read()?;
            let chunks = read.open_table(CHUNKS)?;
            Ok(chunks.get((destination.0, chunk))?.map(|guard| Bytes::copy_from_slice(guard.value())))
        };
        let bytes = read().map_err(|e| e.to_string())?.ok_or("not in the index store")?;
        Slots::decode(bytes).map_err(|e| e.to_string())
    }
}

pub(crate) fn put_text(text: &str, out: &mut BytesMut) {
    put_varint64(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn text(reader: &mut Reader) -> Result<Text, WireError> {
    let length = reader.varint_len()?;
    // A copy: what we keep must not hold on to the whole value.
    Ok(Text::from(&*reader.utf8(length)?))
}

fn put_bytes(bytes: &[u8], out: &mut BytesMut) {
    put_varint64(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn bytes(reader: &mut Reader) -> Result<Bytes, WireError> {
    let length = reader.varint_len()?;
    reader.bytes(length)
}

/// A count of things that take at least one byte each, so that a damaged count cannot make us allocate.
pub(crate) fn count(reader: &mut Reader) -> Result<usize, WireError> {
    let at = reader.position();
    let value = reader.varint64()?;
    usize::try_from(value)
        .ok()
        .filter(|&n| n <= reader.remaining())
        .ok_or(WireError::Length { at, length: value.cast_signed() })
}

fn small(reader: &mut Reader) -> Result<u32, WireError> {
    let at = reader.position();
    let value = reader.varint64()?;
    u32::try_from(value).map_err(|_| WireError::Length { at, length: value.cast_signed() })
}

fn location(reader: &mut Reader) -> Result<Location, WireError> {
    Ok(Lsn(reader.varint64()?).location())
}

pub(crate) fn encode_destination(d: &DestinationSnapshot, out: &mut BytesMut) {
    out.extend_from_slice(&[d.name.kind as u8, u8::from(d.named)]);
    put_text(&d.name.name, out);
    put_varint64(d.next_sequence, out);
    put_varint64(d.directory.len() as u64, out);
    let mut last = 0;
    for &(number, live) in &d.directory {
        put_varint64(number - last, out);
        last = number;
        for n in live {
            put_varint64(n.into(), out);
        }
    }
    put_varint64(d.subscriptions.len() as u64, out);
    for sub in &d.subscriptions {
        let mut info = BytesMut::new();
        encode_subscription_info(&sub.info, &mut info);
        put_bytes(&info, out);
        put_varint64(sub.at.lsn().0, out);
        put_varint64(sub.renewed.map_or(0, |at| at.lsn().0), out);
        put_varint64(sub.floor, out);
        put_varint64(sub.pending, out);
        put_varint64(sub.acknowledged.iter().len() as u64, out);
        for (start, end) in sub.acknowledged.iter() {
            put_varint64(start, out);
            put_varint64(end - start, out);
        }
        put_varint64(sub.held.len() as u64, out);
        for &n in &sub.held {
            put_varint64(n, out);
        }
    }
}

pub(crate) fn decode_destination(
    key: DestinationKey,
    value: Bytes,
) -> Result<DestinationSnapshot, WireError> {
    let mut reader = Reader::new(value);
    let kind = reader.u8()?;
    let kind = DestinationKind::from_number(kind.into()).ok_or(WireError::Unexpected {
        what: "destination kind",
        value: kind.into(),
        at: 0,
    })?;
    let named = reader.bool()?;
    let name = Destination::new(kind, text(&mut reader)?);
    let next_sequence = reader.varint64()?;
    let mut directory = Vec::new();
    let mut number = 0u64;
    for _ in 0..count(&mut reader)? {
        number = number.wrapping_add(reader.varint64()?);
        let mut live = [0; 3];
        for n in &mut live {
            let at = reader.position();
            let value = reader.varint64()?;
            *n = u16::try_from(value).map_err(|_| WireError::Length { at, length: value.cast_signed() })?;
        }
        directory.push((number, live));
    }
    let mut subscriptions = Vec::new();
    for _ in 0..count(&mut reader)? {
        let at = reader.position();
        let info = decode_subscription_info(Bytes::copy_from_slice(&bytes(&mut reader)?))
            .map_err(|_| WireError::Unexpected { what: "subscription", value: 0, at })?;
        let at = location(&mut reader)?;
        let renewed = Some(location(&mut reader)?).filter(|at| at.lsn() > Lsn::ZERO);
        let floor = reader.varint64()?;
        let pending = reader.varint64()?;
        let mut acknowledged = Ranges::default();
        for _ in 0..count(&mut reader)? {
            let start = reader.varint64()?;
            acknowledged.insert_range(start, start.saturating_add(reader.varint64()?));
        }
        let mut held = std::collections::BTreeSet::new();
        for _ in 0..count(&mut reader)? {
            held.insert(reader.varint64()?);
        }
        subscriptions.push(Subscription { info, at, renewed, floor, acknowledged, held, pending });
    }
    Ok(DestinationSnapshot {
        key,
        name,
        next_sequence,
        named,
        directory,
        subscriptions,
        changed: vec![],
        gone: vec![],
    })
}

pub(crate) fn encode_files(files: &FileTable, out: &mut BytesMut) {
    put_varint64(files.iter().count() as u64, out);
    for (file, use_) in files.iter() {
        put_varint64(file.into(), out);
        put_varint64(use_.live, out);
        put_varint64(use_.live_bytes, out);
        put_varint64(use_.subscriptions, out);
        put_varint64(use_.outlives.len() as u64, out);
        for &other in &use_.outlives {
            put_varint64(other.into(), out);
        }
    }
}

pub(crate) fn decode_files(value: Bytes) -> Result<FileTable, WireError> {
    let mut files = FileTable::default();
    if value.is_empty() {
        return Ok(files);
    }
    let mut reader = Reader::new(value);
    for _ in 0..count(&mut reader)? {
        let file = small(&mut reader)?;
        let mut use_ = FileUse {
            live: reader.varint64()?,
            live_bytes: reader.varint64()?,
            subscriptions: reader.varint64()?,
            outlives: Default::default(),
        };
        for _ in 0..count(&mut reader)? {
            use_.outlives.insert(small(&mut reader)?);
        }
        *files.touch(file) = use_;
    }
    Ok(files)
}

fn encode_transaction(id: &TransactionId, out: &mut BytesMut) {
    match id {
        TransactionId::Local { connection, value } => {
            out.extend_from_slice(&[0]);
            put_text(connection, out);
            put_varint64(value.cast_unsigned(), out);
        }
        TransactionId::Xa(xid) => {
            out.extend_from_slice(&[1]);
            out.extend_from_slice(&xid.format_id.to_be_bytes());
            put_bytes(&xid.global, out);
            put_bytes(&xid.branch, out);
        }
    }
}

fn decode_transaction(reader: &mut Reader) -> Result<TransactionId, WireError> {
    Ok(match reader.bool()? {
        false => TransactionId::Local { connection: text(reader)?, value: reader.varint64()?.cast_signed() },
        true => TransactionId::Xa(Xid {
            format_id: reader.i32()?,
            global: Bytes::copy_from_slice(&bytes(reader)?),
            branch: Bytes::copy_from_slice(&bytes(reader)?),
        }),
    })
}

pub(crate) fn encode_prepared(prepared: &BTreeMap<TransactionId, Prepared>, out: &mut BytesMut) {
    put_varint64(prepared.len() as u64, out);
    for (id, transaction) in prepared {
        encode_transaction(id, out);
        put_varint64(transaction.first.lsn().0, out);
        put_varint64(transaction.at.lsn().0, out);
        put_varint64(transaction.operations.len() as u64, out);
        for op in &transaction.operations {
            match op {
                PreparedOp::Add { destination, at, size } => {
                    out.extend_from_slice(&[0]);
                    put_varint64(destination.0.into(), out);
                    put_varint64(at.lsn().0, out);
                    put_varint64((*size).into(), out);
                }
                PreparedOp::Remove { destination, subscription, sequence, at, size } => {
                    out.extend_from_slice(&[
                        1,
                        u8::from(subscription.is_some()),
                        u8::from(sequence.is_some()),
                    ]);
                    put_varint64(destination.0.into(), out);
                    put_varint64(at.lsn().0, out);
                    put_varint64((*size).into(), out);
                    if let Some(sub) = subscription {
                        put_text(&sub.client_id, out);
                        put_text(&sub.name, out);
                    }
                    put_varint64(sequence.unwrap_or_default(), out);
                }
            }
        }
    }
}

pub(crate) fn decode_prepared(value: Bytes) -> Result<BTreeMap<TransactionId, Prepared>, WireError> {
    let mut prepared = BTreeMap::new();
    if value.is_empty() {
        return Ok(prepared);
    }
    let mut reader = Reader::new(value);
    for _ in 0..count(&mut reader)? {
        let id = decode_transaction(&mut reader)?;
        let first = location(&mut reader)?;
        let at = location(&mut reader)?;
        let mut operations = Vec::new();
        for _ in 0..count(&mut reader)? {
            operations.push(match reader.u8()? {
                0 => PreparedOp::Add {
                    destination: DestinationKey(small(&mut reader)?),
                    at: location(&mut reader)?,
                    size: small(&mut reader)?,
                },
                _ => {
                    let (for_subscription, known) = (reader.bool()?, reader.bool()?);
                    let destination = DestinationKey(small(&mut reader)?);
                    let at = location(&mut reader)?;
                    let size = small(&mut reader)?;
                    let subscription = if for_subscription {
                        Some(SubscriptionKey { client_id: text(&mut reader)?, name: text(&mut reader)? })
                    } else {
                        None
                    };
                    let sequence = reader.varint64()?;
                    PreparedOp::Remove {
                        destination,
                        subscription,
                        sequence: known.then_some(sequence),
                        at,
                        size,
                    }
                }
            });
        }
        prepared.insert(id, Prepared { operations, first, at });
    }
    Ok(prepared)
}

fn decode_numbers(value: Bytes) -> Result<BTreeSet<u32>, WireError> {
    let mut numbers = BTreeSet::new();
    if value.is_empty() {
        return Ok(numbers);
    }
    let mut reader = Reader::new(value);
    for _ in 0..count(&mut reader)? {
        numbers.insert(small(&mut reader)?);
    }
    Ok(numbers)
}
