//! Bytes of a data file, and of what we hide in trace records. No I/O.
//!
//! ```text
//! file      batch | batch | … | end mark | filler (zeros; in files of ActiveMQ also stale bytes and stray end marks)
//! batch     control record | user record | user record …
//! end mark  2D 71 4D 61 34 ("-qMa4"): overwritten by the next batch; older stores have five zero bytes instead
//!
//! record    0        4      5
//!           | size   | type | payload …           size counts these 5 bytes; type 1 = user record, 2 = control
//!
//! control   0           4    5             16        20              28
//!           | 0000001C  | 02 | WRITE BATCH | length  | checksum u64  |
//!                                            length   = bytes of the user records, headers included
//!                                            checksum = Adler-32 of those bytes; 0 = not checked
//! ```
//!
//! All integers are big-endian, nothing is aligned. What replication needs is the printable text of trace commands (type 0,
//! field 1), which upstream's replay ignores:
//!
//! ```text
//! trace record   size u32 | 01 | 00 | varint length | 0A | varint length | text
//! text           KW1S, KW1E or KW1G, then base64url without padding of the fields below
//!
//! KW1S  stamp, the first user record of every batch that we write; always 67 bytes
//!       epoch u64 | lsn u64 | commit hint u64 | chain before u64 | digest u64
//! KW1E  epoch marker, the second record of the first batch of an epoch
//!       cluster id u128 | epoch u64 | previous epoch u64 | start lsn u64 | chain before u64 | node id: length u8, UTF-8
//!       | store id u128 | boot id u128 | revision u64 | flags u8, bit 0 = unclean
//! KW1G  collection record: ascending file ids as differences to the one before, and what the files that go knew alone
//!       count varint | first varint | difference varint | … | knowledge: the store's bytes, to the end; may be missing
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use kahawai_types::{BootId, ClusterId, Epoch, Lsn, NodeId, StoreId};
use kahawai_wire::{Reader, put_varint64, varint64_len};
use simd_adler32::adler32;
use xxhash_rust::xxh3::xxh3_64;

/// Size and type.
pub const RECORD_HEADER_BYTES: usize = 5;
/// Type of a record that carries a command.
pub const USER_RECORD: u8 = 1;
/// The control record that begins a batch.
pub const CONTROL_BYTES: usize = 28;
/// First bytes of a control record.
pub const MAGIC: [u8; 16] = *b"\x00\x00\x00\x1c\x02WRITE BATCH";
/// Stands where the next batch will be.
pub const END_MARK: [u8; 5] = *b"-qMa4";
/// A stamp, with its record header.
pub const STAMP_RECORD_BYTES: usize = 67;
/// What a batch of ours has before its first user record.
pub const BATCH_OVERHEAD_BYTES: usize = CONTROL_BYTES + STAMP_RECORD_BYTES;
/// No offset of upstream reaches this: its offsets are signed.
pub const FILE_BYTES_LIMIT: u64 = 1 << 31;
/// Longest name of a node that a marker holds.
pub const NODE_ID_BYTES_MAX: usize = 255;
/// Longest list of files in one collection record.
pub const COLLECTION_FILES_MAX: usize = 1 << 16;
/// What the store may say again in one.
pub const KNOWLEDGE_BYTES_MAX: usize = 256 << 10;

const TRACE: u8 = 0;
const STAMP_TEXT_BYTES: usize = 58;
const STAMP_FIELDS_BYTES: usize = 40;
/// Type, length, tag and length before a stamp's text.
const STAMP_PREFIX: [u8; 8] = *b"\x00\x3c\x0a\x3aKW1S";
const MARKER_FIXED_BYTES: usize = 16 + 4 * 8 + 1 + 16 + 16 + 8 + 1;
const TEXT_FIELD_TAG: u8 = 0x0a;
const TRACE_TEXT_BYTES_MAX: usize = 1 << 20;

/// Running checksum over everything before a position: equal `(lsn, chain)` means equal journals up to there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Chain(pub u64);

impl Chain {
    /// The chain after one more batch.
    #[must_use]
    pub fn after(self, epoch: Epoch, lsn: Lsn, payload_bytes: u32, digest: u64) -> Self {
        let mut bytes = [0; 36];
        let mut out = &mut bytes[..];
        out.put_u64(self.0);
        out.put_u64(epoch.0);
        out.put_u64(lsn.0);
        out.put_u32(payload_bytes);
        out.put_u64(digest);
        Self(xxh3_64(&bytes))
    }
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a control record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Control {
    /// Bytes of user records that follow.
    pub payload_bytes: u32,
    /// As stored; 0 = not checked.
    pub checksum: u64,
}

impl Control {
    /// The control record of a batch of `payload`.
    pub fn of(payload: &[u8]) -> Option<Self> {
        let payload_bytes = i32::try_from(payload.len()).ok()?.cast_unsigned();
        Some(Self { payload_bytes, checksum: adler32(&payload).into() })
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; CONTROL_BYTES] {
        let mut bytes = [0; CONTROL_BYTES];
        let mut out = &mut bytes[..];
        out.put_slice(&MAGIC);
        out.put_u32(self.payload_bytes);
        out.put_u64(self.checksum);
        bytes
    }

    /// `None` where no batch begins: other bytes, or a length that is not positive. Nobody writes a batch of nothing, but a
    /// write that was torn right behind the magic leaves one: length and checksum are then the zeros of the next sector, and
    /// a checksum of zero is not checked.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (checksum, _) = rest.split_first_chunk::<8>()?;
        let payload_bytes = u32::try_from(i32::from_be_bytes(*length)).ok().filter(|&bytes| bytes > 0)?;
        Some(Self { payload_bytes, checksum: u64::from_be_bytes(*checksum) })
    }
}

/// The header of a user record of `size` bytes, itself included.
pub fn record_header(size: u32) -> [u8; RECORD_HEADER_BYTES] {
    let [a, b, c, d] = size.to_be_bytes();
    [a, b, c, d, USER_RECORD]
}

/// What is said in every batch that we write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// The reign it was written in.
    pub epoch: Epoch,
    /// Where the batch's control record stands; a batch elsewhere is misplaced, hence damage.
    pub lsn: Lsn,
    /// The commit position when the batch was formed: proof that everything before it had been confirmed.
    pub commit_hint: Lsn,
    /// The chain before this batch.
    pub prev_chain: Chain,
    /// XXH3-64 of the batch payload behind the stamp record.
    pub digest: u64,
}

impl Stamp {
    /// The whole record, header included.
    pub fn encode(&self) -> [u8; STAMP_RECORD_BYTES] {
        let mut fields = [0; STAMP_FIELDS_BYTES];
        let mut out = &mut fields[..];
        out.put_u64(self.epoch.0);
        out.put_u64(self.lsn.0);
        out.put_u64(self.commit_hint.0);
        out.put_u64(self.prev_chain.0);
        out.put_u64(self.digest);
        let mut bytes = [0; STAMP_RECORD_BYTES];
        let mut out = &mut bytes[..];
        out.put_slice(&record_header(STAMP_RECORD_BYTES as u32));
        out.put_slice(&STAMP_PREFIX);
        let written = URL_SAFE_NO_PAD.encode_slice(fields, out);
        assert_eq!(written.ok(), Some(STAMP_TEXT_BYTES - 4), "a stamp has one size");
        bytes
    }

    /// The stamp of a batch, control record first. `None` if it has none.
    pub fn of_batch(batch: &[u8]) -> Option<Self> {
        Self::decode(batch.get(CONTROL_BYTES + RECORD_HEADER_BYTES..CONTROL_BYTES + STAMP_RECORD_BYTES)?)
    }

    /// Reads a record's payload, type byte first. `None` if it is no stamp.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let text = payload.strip_prefix(&STAMP_PREFIX)?;
        let mut fields = [0; STAMP_FIELDS_BYTES];
        // decode_slice wants room for its estimate, so the length is checked first.
        if text.len() != STAMP_TEXT_BYTES - 4 {
            return None;
        }
        let mut decoded = [0; STAMP_TEXT_BYTES];
        let count = URL_SAFE_NO_PAD.decode_slice(text, &mut decoded).ok()?;
        fields.copy_from_slice(decoded.get(..count)?.first_chunk::<STAMP_FIELDS_BYTES>()?);
        let mut words =
            fields.chunks_exact(8).map(|word| word.iter().fold(0u64, |sum, &b| sum << 8 | u64::from(b)));
        Some(Self {
            epoch: Epoch(words.next()?),
            lsn: Lsn(words.next()?),
            commit_hint: Lsn(words.next()?),
            prev_chain: Chain(words.next()?),
            digest: words.next()?,
        })
    }
}

/// Begins an epoch: who reigns from here on, on top of what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EpochMarker {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The new epoch.
    pub epoch: Epoch,
    /// The newest epoch before it in this journal.
    pub previous: Epoch,
    /// Where the marker's batch begins.
    pub start: Lsn,
    /// The chain before that batch.
    pub chain_before: Chain,
    /// Who writes.
    pub node_id: NodeId,
    /// Into which data directory.
    pub store_id: StoreId,
    /// In which life.
    pub boot_id: BootId,
    /// Revision of the election record that granted the epoch.
    pub revision: u64,
    /// An operator accepted that confirmed data may be missing.
    pub unclean: bool,
}

impl EpochMarker {
    /// Appends the payload of its trace record, type byte first. The length depends on the node's name alone.
    ///
    /// # Panics
    /// If the node's name is longer than [`NODE_ID_BYTES_MAX`], which who makes a marker checks.
    pub fn encode(&self, out: &mut BytesMut) {
        let name = self.node_id.0.as_bytes();
        let mut fields = BytesMut::with_capacity(MARKER_FIXED_BYTES + name.len());
        fields.put_u128(self.cluster_id.0);
        fields.put_u64(self.epoch.0);
        fields.put_u64(self.previous.0);
        fields.put_u64(self.start.0);
        fields.put_u64(self.chain_before.0);
        fields.put_u8(u8::try_from(name.len()).expect("checked by who made the marker"));
        fields.put_slice(name);
        fields.put_u128(self.store_id.0);
        fields.put_u128(self.boot_id.0);
        fields.put_u64(self.revision);
        fields.put_u8(u8::from(self.unclean));
        put_trace(b"KW1E", &fields, out);
    }

    fn decode_fields(fields: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(Bytes::copy_from_slice(fields));
        let marker = Self {
            cluster_id: ClusterId(u128(&mut reader)?),
            epoch: Epoch(reader.u64().ok()?),
            previous: Epoch(reader.u64().ok()?),
            start: Lsn(reader.u64().ok()?),
            chain_before: Chain(reader.u64().ok()?),
            node_id: {
                let length = reader.u8().ok()?;
                NodeId(reader.utf8(length.into()).ok()?.to_string())
            },
            store_id: StoreId(u128(&mut reader)?),
            boot_id: BootId(u128(&mut reader)?),
            revision: reader.u64().ok()?,
            unclean: reader.u8().ok()? & 1 != 0,
        };
        reader.is_empty().then_some(marker)
    }
}

fn u128(reader: &mut Reader) -> Option<u128> {
    Some(u128::from(reader.u64().ok()?) << 64 | u128::from(reader.u64().ok()?))
}

/// The journalled decision to delete data files, so that every node deletes the same ones.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CollectionRecord {
    files: Vec<u32>,
    knowledge: Bytes,
}

impl CollectionRecord {
    /// A decision about these files, in any order; at most [`COLLECTION_FILES_MAX`], the lowest ones. With it, the store says
    /// again what no file that stays would tell, in at most [`KNOWLEDGE_BYTES_MAX`] bytes of its own.
    ///
    /// # Panics
    /// If that is more, which the store sees to.
    pub fn new(mut files: Vec<u32>, knowledge: Bytes) -> Self {
        assert!(knowledge.len() <= KNOWLEDGE_BYTES_MAX, "the store keeps to the limit");
        files.sort_unstable();
        files.dedup();
        files.truncate(COLLECTION_FILES_MAX);
        Self { files, knowledge }
    }

    /// The files to delete, ascending.
    pub fn files(&self) -> &[u32] {
        &self.files
    }

    /// What the files that go knew alone; empty in the records of older versions.
    pub fn knowledge(&self) -> &Bytes {
        &self.knowledge
    }

    /// Appends the payload of its trace record, type byte first.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut fields = BytesMut::new();
        put_varint64(self.files.len() as u64, &mut fields);
        let mut before = 0;
        for &file in &self.files {
            put_varint64(u64::from(file - before), &mut fields);
            before = file;
        }
        fields.put_slice(&self.knowledge);
        put_trace(b"KW1G", &fields, out);
    }

    fn decode_fields(fields: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(Bytes::copy_from_slice(fields));
        let count = usize::try_from(reader.varint64().ok()?).ok()?;
        // Every id takes at least one byte.
        if count > COLLECTION_FILES_MAX || count > reader.remaining() {
            return None;
        }
        let mut files = Vec::with_capacity(count);
        let mut last = 0u32;
        for index in 0..count {
            let difference = u32::try_from(reader.varint64().ok()?).ok()?;
            if index > 0 && difference == 0 {
                return None;
            }
            last = last.checked_add(difference)?;
            files.push(last);
        }
        let knowledge = reader.bytes(reader.remaining()).ok()?;
        Some(Self { files, knowledge })
    }
}

fn put_trace(tag: &[u8; 4], fields: &[u8], out: &mut BytesMut) {
    let text_bytes = tag.len() + base64::encoded_len(fields.len(), false).unwrap_or(0);
    let message_bytes = 1 + varint64_len(text_bytes as u64) + text_bytes;
    out.put_u8(TRACE);
    put_varint64(message_bytes as u64, out);
    out.put_u8(TEXT_FIELD_TAG);
    put_varint64(text_bytes as u64, out);
    out.put_slice(tag);
    out.put_slice(URL_SAFE_NO_PAD.encode(fields).as_bytes());
}

/// What the trace record in a user record's payload says to us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trace {
    /// The stamp of its batch.
    Stamp(Stamp),
    /// An epoch begins.
    EpochMarker(EpochMarker),
    /// Files may be deleted.
    Collection(CollectionRecord),
    /// A trace of ActiveMQ's, or of a later version of ours.
    Other,
}

impl Trace {
    /// Classifies a record's payload, type byte first. `None` if it is no trace command.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        if payload.first() != Some(&TRACE) {
            return None;
        }
        if let Some(stamp) = Stamp::decode(payload) {
            return Some(Self::Stamp(stamp));
        }
        let known = || {
            let (tag, text) = trace_text(payload)?.split_first_chunk::<4>()?;
            let fields = URL_SAFE_NO_PAD.decode(text).ok()?;
            match tag {
                b"KW1E" => EpochMarker::decode_fields(&fields).map(Self::EpochMarker),
                b"KW1G" => CollectionRecord::decode_fields(&fields).map(Self::Collection),
                _ => None,
            }
        };
        Some(known().unwrap_or(Self::Other))
    }
}

/// The text of a trace command, if it is as short and as plain as ours are.
fn trace_text(payload: &[u8]) -> Option<&[u8]> {
    let (message_bytes, message) = varint(payload.get(1..)?)?;
    let (text_bytes, text) = varint(message.strip_prefix(&[TEXT_FIELD_TAG])?)?;
    (message_bytes == message.len() && text_bytes == text.len() && text_bytes <= TRACE_TEXT_BYTES_MAX)
        .then_some(text)
}

fn varint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().enumerate().take(4) {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(index + 1..)?));
        }
    }
    None
}

/// What is wrong at a place in a data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Neither a batch nor an end mark.
    #[error("no batch begins here, and the data does not end here")]
    NotABatch,
    /// The file ends inside the batch.
    #[error("the batch declares {declared} bytes of records, the file has {available} more")]
    Torn {
        /// What the control record says.
        declared: u64,
        /// What is there.
        available: u64,
    },
    /// Not the bytes that were written.
    #[error("the batch has checksum {found:#010x}, its header says {expected:#010x}")]
    Checksum {
        /// Computed.
        found: u32,
        /// Stored.
        expected: u64,
    },
    /// Not the bytes that were stamped.
    #[error("the batch has digest {found:016x}, its stamp says {expected:016x}")]
    Digest {
        /// Computed.
        found: u64,
        /// Stored.
        expected: u64,
    },
    /// A batch of another place.
    #[error("the batch was written for position {stamped}")]
    Misplaced {
        /// Where it belongs.
        stamped: Lsn,
    },
    /// Something before this batch is missing or exchanged.
    #[error("the batch follows chain {expected}, the journal before it has {found}")]
    Chain {
        /// Computed over what comes before.
        found: Chain,
        /// Stored.
        expected: Chain,
    },
    /// A deposed primary wrote it.
    #[error("the batch belongs to epoch {found}, earlier ones to epoch {before}")]
    Epoch {
        /// The newest epoch before it.
        before: Epoch,
        /// Its own.
        found: Epoch,
    },
    /// The records do not fill the batch.
    #[error("the batch has a record of type {kind} and size {size} at byte {at} of its records")]
    Record {
        /// Offset in the batch payload.
        at: u32,
        /// As stored.
        size: i32,
        /// As stored.
        kind: u8,
    },
    /// Every batch of ours is followed by one.
    #[error("the end mark is missing")]
    NoEndMark,
}

/// A batch that was checked on its own: sizes, checksum, stamp. Not yet: does it continue what comes before?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckedBatch {
    /// Bytes of its records.
    pub payload_bytes: u32,
    /// `None` if ActiveMQ wrote it.
    pub stamp: Option<Stamp>,
    /// What goes into the chain.
    pub digest: u64,
    /// How many records, the stamp included.
    pub records: u32,
    /// A checksum or a digest was there, and is right.
    pub proven: bool,
}

impl CheckedBatch {
    /// Control record and records.
    pub fn bytes(&self) -> usize {
        CONTROL_BYTES + self.payload_bytes as usize
    }

    /// 0 for what ActiveMQ wrote.
    pub fn epoch(&self) -> Epoch {
        self.stamp.map_or(Epoch(0), |stamp| stamp.epoch)
    }

    /// Checks the batch at the front of `bytes`, which stands at `at`.
    pub fn check(bytes: &[u8], at: Lsn) -> Result<Self, Problem> {
        let Control { payload_bytes, checksum } = Control::decode(bytes).ok_or(Problem::NotABatch)?;
        let behind = bytes.get(CONTROL_BYTES..).unwrap_or_default();
        let Some(payload) = behind.get(..payload_bytes as usize) else {
            return Err(Problem::Torn { declared: payload_bytes.into(), available: behind.len() as u64 });
        };
        if checksum != 0 {
            let found = adler32(&payload);
            if u64::from(found) != checksum {
                return Err(Problem::Checksum { found, expected: checksum });
            }
        }
        let mut rest = payload;
        let mut records = 0;
        let mut stamp = None;
        while !rest.is_empty() {
            let record = first_record(rest).map_err(|(size, kind)| Problem::Record {
                at: (payload.len() - rest.len()) as u32,
                size,
                kind,
            })?;
            if records == 0 {
                stamp = record.get(RECORD_HEADER_BYTES..).and_then(Stamp::decode);
            }
            records += 1;
            rest = rest.get(record.len()..).unwrap_or_default();
        }
        let digest = match stamp {
            None => xxh3_64(payload),
            Some(stamp) if stamp.lsn != at => return Err(Problem::Misplaced { stamped: stamp.lsn }),
            Some(stamp) => {
                let found = xxh3_64(payload.get(STAMP_RECORD_BYTES..).unwrap_or_default());
                if found != stamp.digest {
                    return Err(Problem::Digest { found, expected: stamp.digest });
                }
                found
            }
        };
        Ok(Self { payload_bytes, stamp, digest, records, proven: checksum != 0 || stamp.is_some() })
    }
}

/// The record at the front of `bytes`, header included; or its size and type if it cannot be a user record.
pub(crate) fn first_record(bytes: &[u8]) -> Result<&[u8], (i32, u8)> {
    let Some(&[a, b, c, d, kind]) = bytes.first_chunk::<RECORD_HEADER_BYTES>() else {
        return Err((0, 0));
    };
    let size = i32::from_be_bytes([a, b, c, d]);
    match usize::try_from(size) {
        Ok(length) if kind == USER_RECORD && length >= RECORD_HEADER_BYTES => {
            bytes.get(..length).ok_or((size, kind))
        }
        _ => Err((size, kind)),
    }
}

/// `db-<id>.log`.
pub fn data_file_name(id: u32) -> String {
    format!("db-{id}.log")
}

/// The id in `db-<id>.log`, if the name is exactly as upstream writes it.
pub fn data_file_id(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("db-")?.strip_suffix(".log")?;
    let id: i32 = digits.parse().ok()?;
    (id > 0 && id.to_string() == digits).then_some(id.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    const AT: Lsn = Lsn(7 << 32 | 4096);

    fn stamp() -> Stamp {
        Stamp { epoch: Epoch(3), lsn: AT, commit_hint: Lsn(99), prev_chain: Chain(17), digest: xxh3_64(b"") }
    }

    /// A batch with these payloads as user records, stamped if a stamp is given.
    fn batch(stamp: Option<Stamp>, payloads: &[&[u8]]) -> Vec<u8> {
        let mut records = Vec::new();
        for payload in payloads {
            records.extend_from_slice(&record_header((payload.len() + RECORD_HEADER_BYTES) as u32));
            records.extend_from_slice(payload);
        }
        let mut payload = Vec::new();
        if let Some(stamp) = stamp {
            payload.extend_from_slice(&Stamp { digest: xxh3_64(&records), ..stamp }.encode());
        }
        payload.extend_from_slice(&records);
        let mut bytes = Control::of(&payload).unwrap().encode().to_vec();
        bytes.extend_from_slice(&payload);
        bytes
    }

    #[test]
    fn the_batch_of_the_specification_is_read() {
        let mut bytes =
            hex("0000001c 02 5752495445204241544348 0000002c 00000000b9150912 0000002c 01 00 25 0a 23");
        bytes.extend_from_slice(b"LOADED Sun Nov 22 18:22:23 UTC 2026");
        let batch = CheckedBatch::check(&bytes, AT).unwrap();
        assert_eq!((batch.payload_bytes, batch.records, batch.stamp, batch.proven), (44, 1, None, true));
        assert_eq!(Control::of(&bytes[28..]).unwrap().encode(), bytes[..28]);
        assert_eq!(Trace::decode(&bytes[33..]), Some(Trace::Other));
    }

    #[test]
    fn the_bytes_of_a_stamp_do_not_change() {
        let stamp = Stamp {
            epoch: Epoch(3),
            lsn: Lsn(7 << 32 | 4096),
            commit_hint: Lsn(7 << 32 | 1024),
            prev_chain: Chain(0x0123_4567_89ab_cdef),
            digest: 0xfedc_ba98_7654_3210,
        };
        let mut golden = hex("00000043 01 00 3c 0a 3a");
        golden.extend_from_slice(b"KW1SAAAAAAAAAAMAAAAHAAAQAAAAAAcAAAQAASNFZ4mrze_-3LqYdlQyEA");
        assert_eq!(stamp.encode().to_vec(), golden);
        assert_eq!(Stamp::decode(&golden[5..]), Some(stamp));
        let after = Chain(1).after(Epoch(2), Lsn(3), 4, 5);
        assert_eq!(
            after,
            Chain(xxh3_64(&hex(
                "0000000000000001 0000000000000002 0000000000000003 00000004 0000000000000005"
            )))
        );
    }

    #[test]
    fn what_is_wrong_with_a_batch_is_named() {
        let good = batch(Some(stamp()), &[b"one", b"two"]);
        let check = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            CheckedBatch::check(&bytes, AT).map(|batch| batch.records)
        };
        assert_eq!(check(&|_| ()), Ok(3));
        assert_eq!(check(&|bytes| bytes.extend_from_slice(&END_MARK)), Ok(3));
        assert_eq!(check(&|bytes| bytes[0] = 1), Err(Problem::NotABatch));
        assert_eq!(check(&|bytes| bytes[16] = 0x80), Err(Problem::NotABatch), "a negative length");
        assert_eq!(check(&|bytes| bytes.truncate(100)), Err(Problem::Torn { declared: 83, available: 72 }));
        assert!(matches!(check(&|bytes| bytes[101] ^= 1), Err(Problem::Checksum { .. })));
        let rewrite = |bytes: &mut Vec<u8>| {
            let control = Control::of(&bytes[28..]).unwrap().encode();
            bytes[..28].copy_from_slice(&control);
        };
        assert!(matches!(
            check(&|bytes| {
                bytes[101] ^= 1;
                rewrite(bytes);
            }),
            Err(Problem::Digest { .. })
        ));
        assert!(matches!(check(&|bytes| bytes[20..28].fill(0)), Ok(3)), "0 = not checked");
        for (header, problem) in [
            ("00000000 00", Problem::Record { at: 67, size: 0, kind: 0 }),
            ("00000004 01", Problem::Record { at: 67, size: 4, kind: 1 }),
            ("ffffffff 01", Problem::Record { at: 67, size: -1, kind: 1 }),
            ("7fffffff 01", Problem::Record { at: 67, size: i32::MAX, kind: 1 }),
            ("00000008 02", Problem::Record { at: 67, size: 8, kind: 2 }),
        ] {
            let change = |bytes: &mut Vec<u8>| {
                bytes[95..100].copy_from_slice(&hex(header));
                rewrite(bytes);
            };
            assert_eq!(check(&change), Err(problem));
        }
        assert_eq!(CheckedBatch::check(&good, Lsn(1)), Err(Problem::Misplaced { stamped: AT }));
    }

    #[test]
    fn only_the_names_that_upstream_writes_are_data_files() {
        for (name, id) in [("db-1.log", 1), ("db-2147483647.log", i32::MAX as u32)] {
            assert_eq!(data_file_id(name), Some(id));
            assert_eq!(data_file_name(id), name);
        }
        for name in [
            "db-0.log",
            "db-01.log",
            "db--1.log",
            "db-+1.log",
            "db-x.log",
            "db-.log",
            "db-2147483648.log",
            "db-1.log2",
        ] {
            assert_eq!(data_file_id(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn what_we_hide_in_traces_comes_back(
            words: [u64; 6], id: u128, name in "\\PC{0,60}", unclean: bool, files: Vec<u32>, knowledge: Vec<u8>,
        ) {
            let [epoch, lsn, commit_hint, chain, digest, revision] = words;
            let stamp = Stamp { epoch: Epoch(epoch), lsn: Lsn(lsn), commit_hint: Lsn(commit_hint), prev_chain: Chain(chain), digest };
            prop_assert_eq!(Trace::decode(&stamp.encode()[5..]), Some(Trace::Stamp(stamp)));
            let marker = EpochMarker {
                cluster_id: ClusterId(id), epoch: Epoch(epoch), previous: Epoch(lsn), start: Lsn(digest), chain_before: Chain(chain),
                node_id: NodeId(name), store_id: StoreId(!id), boot_id: BootId(id >> 1), revision, unclean,
            };
            let mut payload = BytesMut::new();
            marker.encode(&mut payload);
            prop_assert!(payload.iter().skip(6).all(|b| b.is_ascii_graphic()));
            prop_assert_eq!(Trace::decode(&payload), Some(Trace::EpochMarker(marker)));
            let collection = CollectionRecord::new(files, knowledge.into());
            payload.clear();
            collection.encode(&mut payload);
            prop_assert_eq!(Trace::decode(&payload), Some(Trace::Collection(collection)));
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(bytes: Vec<u8>, tag in "KW1[SEG]", text: Vec<u8>) {
            let _ = CheckedBatch::check(&bytes, AT);
            let _ = Trace::decode(&bytes);
            let mut payload = BytesMut::new();
            put_trace(tag.as_bytes().first_chunk().unwrap(), &text, &mut payload);
            let _ = Trace::decode(&payload);
            let mut batch = MAGIC.to_vec();
            batch.extend_from_slice(&bytes);
            let _ = CheckedBatch::check(&batch, AT);
        }

        #[test]
        fn a_changed_byte_in_a_batch_is_noticed(body: Vec<u8>, at: prop::sample::Index, flip in 1u8..) {
            let good = batch(Some(stamp()), &[&body]);
            prop_assert!(CheckedBatch::check(&good, AT).is_ok());
            let mut bytes = good.clone();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            // A checksum that became 0 is "not checked", but then the digest still is.
            prop_assert!(CheckedBatch::check(&bytes, AT).is_err() || bytes[20..28] == [0; 8]);
        }
    }
}
