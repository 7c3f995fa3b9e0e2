//! What was fetched and flushed, so that it is not fetched again. A log beside the incoming files:
//!
//! ```text
//! header   "KWRS" version:u16 0:u16
//! entry    type:u8 kind:u8 0:u16 id:u32 a:u64 b:u64 0:u32 crc32c:u32      all big-endian; the checksum covers what is before it
//!          1 file    a = length, b = end chain     begins the file anew if it was another one
//!          2 chunks  a = first, b = count          of the file with this kind and id
//! ```
//!
//! An entry is appended after the flush of the chunks that it names. What is torn or damaged at its end was never relied on; the
//! chunks are fetched again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use bytes::{BufMut, BytesMut};
use kahawai_kdbr::{FileKind, MANIFEST_FILES_MAX};

use super::{ChunkMap, FILE_BYTES_MAX, FileIdentity, FileKey};

const MAGIC: [u8; 4] = *b"KWRS";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 8;
const ENTRY_BYTES: usize = 32;
const CHECKED_BYTES: usize = ENTRY_BYTES - 4;
const FILE: u8 = 1;
const CHUNKS: u8 = 2;

/// The chunks that are there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Resume {
    files: BTreeMap<FileKey, (FileIdentity, ChunkMap)>,
}

impl Resume {
    /// Nothing was fetched.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a log as far as it is whole. The number of bytes that count comes with it: the next entry goes there. 0: write a new
    /// log, beginning with [`Self::header`].
    pub fn decode(bytes: &[u8]) -> (Self, usize) {
        let mut resume = Self::new();
        let Some((header, entries)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return (resume, 0);
        };
        if *header != Self::header() {
            return (resume, 0);
        }
        let mut valid = HEADER_BYTES;
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            if resume.take(entry).is_none() {
                break;
            }
            valid += ENTRY_BYTES;
        }
        (resume, valid)
    }

    /// What a log begins with.
    pub fn header() -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let mut out = &mut header[..];
        out.put_slice(&MAGIC);
        out.put_u16(VERSION);
        header
    }

    /// What is there of this very file.
    pub fn chunks_of(&self, file: &FileIdentity) -> Option<&ChunkMap> {
        self.files.get(&file.key).filter(|(known, _)| known == file).map(|(_, chunks)| chunks)
    }

    /// These chunks are flushed. Appends what has to be written to the log.
    pub fn add(&mut self, file: &FileIdentity, chunks: Range<u32>, out: &mut BytesMut) {
        if self.chunks_of(file).is_none() {
            self.begin(*file);
            put_entry(FILE, file.key, file.length, file.end_chain, out);
        }
        let count = u64::from(chunks.end.saturating_sub(chunks.start));
        put_entry(CHUNKS, file.key, chunks.start.into(), count, out);
        if let Some((_, known)) = self.files.get_mut(&file.key) {
            known.add(chunks);
        }
    }

    /// The file has to be fetched again. Appends what has to be written to the log.
    pub fn forget(&mut self, file: &FileIdentity, out: &mut BytesMut) {
        if self.files.contains_key(&file.key) {
            self.begin(*file);
            put_entry(FILE, file.key, file.length, file.end_chain, out);
        }
    }

    fn begin(&mut self, file: FileIdentity) {
        self.files.insert(file.key, (file, ChunkMap::new(file.length)));
    }

    fn take(&mut self, entry: &[u8]) -> Option<()> {
        let (checked, crc) = entry.split_first_chunk::<CHECKED_BYTES>()?;
        if crc != crc32c::crc32c(checked).to_be_bytes() {
            return None;
        }
        let (&[what, kind, _, _], rest) = checked.split_first_chunk()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (a, rest) = rest.split_first_chunk()?;
        let (b, _) = rest.split_first_chunk()?;
        let (id, a, b) = (u32::from_be_bytes(*id), u64::from_be_bytes(*a), u64::from_be_bytes(*b));
        let kind = [FileKind::Journal, FileKind::Snapshot].into_iter().find(|known| *known as u8 == kind)?;
        let key = FileKey { kind, id };
        match what {
            FILE if a <= FILE_BYTES_MAX => {
                let known = self.files.len();
                match self.files.entry(key) {
                    Entry::Vacant(_) if known >= MANIFEST_FILES_MAX => return None,
                    entry => {
                        let file = FileIdentity { key, length: a, end_chain: b };
                        entry.insert_entry((file, ChunkMap::new(a)));
                    }
                }
            }
            CHUNKS => {
                let (_, chunks) = self.files.get_mut(&key)?;
                let first = u32::try_from(a).ok()?;
                let end = first.checked_add(u32::try_from(b).ok()?)?;
                if end > chunks.chunks() {
                    return None;
                }
                chunks.add(first..end);
            }
            _ => return None,
        }
        Some(())
    }
}

fn put_entry(what: u8, key: FileKey, a: u64, b: u64, out: &mut BytesMut) {
    let start = out.len();
    out.put_u8(what);
    out.put_u8(key.kind as u8);
    out.put_u16(0);
    out.put_u32(key.id);
    out.put_u64(a);
    out.put_u64(b);
    out.put_u32(0);
    let crc = crc32c::crc32c(&out[start..]);
    out.put_u32(crc);
}
