use std::collections::{HashMap, HashSet};
use std::io;

use bytes::{Bytes, BytesMut};
use kahawai_wire::WireError;
use simd_adler32::Adler32;

use crate::command::CommandError;

/// Bytes of the file header, and of the redo file's.
const HEADER_BYTES: u64 = 4096;
/// Each of the header's two copies.
const HEADER_COPY_BYTES: usize = 2048;
/// Type, transaction, next page and checksum before a page's data.
const PAGE_HEADER_BYTES: usize = 21;
/// No page is larger. Upstream's default is 4096 bytes.
pub const PAGE_BYTES_MAX: u32 = 1 << 20;
/// No node is larger. Nodes are a page or little more, but the pending set of one durable subscription may have a range
/// for each few messages.
pub const CHAIN_BYTES_MAX: usize = 256 << 20;

/// Random access to a file that does not change while it is read.
pub trait ReadAt {
    /// Size in bytes.
    fn len(&self) -> u64;

    /// Nothing in it?
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buffer` with the bytes from `offset` on; an error if they are not all there.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn len(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok();
        match from.and_then(|from| self.get(from..from.checked_add(buffer.len())?)) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_exact_at(offset, buffer)
    }
}

/// Why a page file could not be read. Whatever it is: rebuild from the journal.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// Neither copy of the header is whole.
    #[error("no usable page file header")]
    Header,
    /// A page size that cannot be.
    #[error("impossible page size {bytes}")]
    PageSize {
        /// As the header says.
        bytes: i64,
    },
    /// The file could not be read.
    #[error("read {bytes} bytes at byte {at}")]
    Io {
        /// Where.
        at: u64,
        /// How many.
        bytes: usize,
        /// The system's answer.
        source: io::Error,
    },
    /// A reference to a page that is not there.
    #[error("page {page} lies outside the file")]
    Outside {
        /// As referred to.
        page: i64,
    },
    /// A reference to a page that is on the free list, or was never used.
    #[error("page {page} is free")]
    Free {
        /// The page.
        page: u64,
    },
    /// A page of unknown type.
    #[error("page {page} has type {found}")]
    Type {
        /// The page.
        page: u64,
        /// As read.
        found: u8,
    },
    /// A last page whose used length is impossible.
    #[error("page {page} says that {used} bytes of it are used")]
    Used {
        /// The page.
        page: u64,
        /// As read.
        used: i64,
    },
    /// A page that is reached a second time.
    #[error("page {page} is used twice")]
    Reused {
        /// The page.
        page: u64,
    },
    /// More pages than any node has.
    #[error("the node at page {page} is longer than {limit} bytes")]
    TooLong {
        /// Its first page.
        page: u64,
        /// [`CHAIN_BYTES_MAX`].
        limit: usize,
    },
    /// A tree deeper than any.
    #[error("the tree is deeper than {limit} levels at page {page}")]
    TooDeep {
        /// Where it became too deep.
        page: u64,
        /// [`super::TREE_DEPTH_MAX`].
        limit: usize,
    },
    /// Keys of a tree that do not ascend.
    #[error("the keys do not ascend at page {page}")]
    Order {
        /// The leaf.
        page: u64,
    },
    /// A node that does not read as what it should be.
    #[error("malformed node at page {page}")]
    Content {
        /// Its first page.
        page: u64,
        /// What is wrong; positions count from the node's first byte.
        source: WireError,
    },
    /// A stored command that does not read.
    #[error("malformed subscription at page {page}")]
    Subscription {
        /// First page of the node.
        page: u64,
        /// What is wrong.
        source: CommandError,
    },
    /// A destination key that is not `type:name`.
    #[error("malformed destination key '{key}'")]
    DestinationKey {
        /// As read.
        key: String,
    },
    /// Not the metadata we know.
    #[error("unknown index version {found}")]
    Version {
        /// As read.
        found: i32,
    },
    /// A scheduler index of ActiveMQ before 5.11, or none at all.
    #[error("not a scheduler index: token {found:#034x}")]
    SchedulerToken {
        /// What stands where the format's UUID should.
        found: u128,
    },
}

/// The file header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Size of a page.
    pub page_bytes: u32,
    /// How often the header was written.
    pub meta_data_tx_id: i64,
    /// Transaction of the last write.
    pub last_tx_id: i64,
    /// Length of the free list, on a clean stop.
    pub free_pages: i64,
    /// Whether the broker closed the file. If not, `db.redo` counts.
    pub clean_shutdown: bool,
}

impl Header {
    /// One copy: Java properties, padded with spaces.
    fn parse(copy: &[u8]) -> Option<Self> {
        let (mut page_bytes, mut meta_data_tx_id) = (None, None);
        let (mut last_tx_id, mut free_pages, mut clean_shutdown) = (0, 0, false);
        for line in copy.split(|&b| b == b'\n') {
            let Some((key, value)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once('='))
            else {
                continue;
            };
            let value = value.trim();
            match key.trim() {
                "pageSize" => page_bytes = value.parse().ok(),
                "metaDataTxId" => meta_data_tx_id = value.parse().ok().filter(|&id| id >= 0),
                "lastTxId" => last_tx_id = value.parse().unwrap_or_default(),
                "freePages" => free_pages = value.parse().unwrap_or_default(),
                "cleanShutdown" => clean_shutdown = value == "true",
                _ => {}
            }
        }
        Some(Self {
            page_bytes: page_bytes?,
            meta_data_tx_id: meta_data_tx_id?,
            last_tx_id,
            free_pages,
            clean_shutdown,
        })
    }

    /// Equal: the second may be half written. Different: the first is, or is newer than anything that was done under it.
    /// Upstream means the same, but looks at the first copy where it means the second (defect D14).
    fn choose(first: Option<Self>, second: Option<Self>) -> Option<Self> {
        match (first, second) {
            (Some(first), Some(second)) if first.meta_data_tx_id != second.meta_data_tx_id => Some(second),
            (first, second) => first.or(second),
        }
    }
}

/// What became of `db.redo`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Redo {
    /// Closed cleanly: the pages are whole.
    NotNeeded,
    /// Not closed cleanly, and there is no redo file. The pages may be half written: trust them only if no redo file was
    /// in use.
    Missing,
    /// Empty or not written to its end, so that none of its pages was written in place yet: the pages are whole.
    Unfinished,
    /// Its pages stand in for those of the data file.
    Applied {
        /// How many.
        pages: usize,
    },
}

/// A page file as it stands after its redo file has been applied.
pub struct PageFile<'a> {
    data: &'a dyn ReadAt,
    redo_data: Option<&'a dyn ReadAt>,
    header: Header,
    redo: Redo,
    /// Pages whose image is in the redo file, and where.
    redone: HashMap<u64, u64>,
}

impl std::fmt::Debug for PageFile<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageFile")
            .field("header", &self.header)
            .field("redo", &self.redo)
            .finish_non_exhaustive()
    }
}

impl<'a> PageFile<'a> {
    /// Reads the header of `data` and, unless it was closed cleanly, checks `redo` and puts its images over the pages.
    /// Writes nothing.
    pub fn open(data: &'a dyn ReadAt, redo: Option<&'a dyn ReadAt>) -> Result<Self, PageError> {
        let mut bytes = [0; 2 * HEADER_COPY_BYTES];
        read(data, 0, &mut bytes)?;
        let (first, second) = bytes.split_at(HEADER_COPY_BYTES);
        let header = Header::choose(Header::parse(first), Header::parse(second)).ok_or(PageError::Header)?;
        if header.page_bytes as usize <= PAGE_HEADER_BYTES || header.page_bytes > PAGE_BYTES_MAX {
            return Err(PageError::PageSize { bytes: header.page_bytes.into() });
        }
        let mut file = Self { data, redo_data: redo, header, redo: Redo::NotNeeded, redone: HashMap::new() };
        if !header.clean_shutdown {
            file.redo = match redo {
                None => Redo::Missing,
                Some(redo) => file.apply(redo)?,
            };
        }
        Ok(file)
    }

    /// ```text
    /// | next tx: i64 | Adler-32 of the images: i64 | count: i32 | padding to 4096 | count x (page: i64, image) |
    /// ```
    fn apply(&mut self, redo: &dyn ReadAt) -> Result<Redo, PageError> {
        if redo.len() < HEADER_BYTES {
            return Ok(Redo::Unfinished);
        }
        let mut head = [0; 20];
        read(redo, 0, &mut head)?;
        let mut head = kahawai_wire::Reader::new(Bytes::copy_from_slice(&head));
        let (Ok(_), Ok(expected), Ok(count)) = (head.i64(), head.i64(), head.i32()) else {
            return Ok(Redo::Unfinished);
        };
        let entry_bytes = u64::from(self.header.page_bytes) + 8;
        let count = u64::try_from(count).unwrap_or(0);
        if count == 0 || count > (redo.len() - HEADER_BYTES) / entry_bytes {
            return Ok(Redo::Unfinished);
        }
        let mut sum = Adler32::new();
        let mut redone = HashMap::new();
        let mut entry = vec![0; self.header.page_bytes as usize + 8];
        for index in 0..count {
            let at = HEADER_BYTES + index * entry_bytes;
            read(redo, at, &mut entry)?;
            let Some((page, image)) = entry.split_first_chunk::<8>() else { return Ok(Redo::Unfinished) };
            sum.write(image);
            if let Ok(page) = u64::try_from(i64::from_be_bytes(*page)) {
                redone.insert(page, at + 8);
            }
        }
        if i64::from(sum.finish()) != expected {
            return Ok(Redo::Unfinished);
        }
        self.redone = redone;
        Ok(Redo::Applied { pages: self.redone.len() })
    }

    /// The header that counts.
    pub fn header(&self) -> Header {
        self.header
    }

    /// What became of the redo file.
    pub fn redo(&self) -> Redo {
        self.redo
    }

    fn page(&self, page: u64, into: &mut [u8]) -> Result<(), PageError> {
        if let (Some(&at), Some(redo)) = (self.redone.get(&page), self.redo_data) {
            return read(redo, at, into);
        }
        let outside = || PageError::Outside { page: page.cast_signed() };
        let at = page
            .checked_mul(self.header.page_bytes.into())
            .and_then(|at| at.checked_add(HEADER_BYTES))
            .ok_or_else(outside)?;
        match at.checked_add(self.header.page_bytes.into()) {
            Some(end) if end <= self.data.len() => read(self.data, at, into),
            _ => Err(outside()),
        }
    }

    /// The joined data of the pages that begin at `first`, each of which is entered into `used` and may not be there yet.
    ///
    /// ```text
    /// | type: u8, 0 free, 1 part, 2 end | tx: i64 | part: next page, end: used bytes of this page: i64 | 0: i32 | data |
    /// ```
    pub(crate) fn chain(&self, first: i64, used: &mut HashSet<u64>) -> Result<(u64, Bytes), PageError> {
        let first = u64::try_from(first).map_err(|_| PageError::Outside { page: first })?;
        let mut image = vec![0; self.header.page_bytes as usize];
        let mut joined = BytesMut::new();
        let mut page = first;
        loop {
            if !used.insert(page) {
                return Err(PageError::Reused { page });
            }
            self.page(page, &mut image)?;
            let Some((&[kind, _, _, _, _, _, _, _, _, ref next @ .., _, _, _, _], data)) =
                image.split_first_chunk::<PAGE_HEADER_BYTES>()
            else {
                return Err(PageError::PageSize { bytes: self.header.page_bytes.into() });
            };
            let next = i64::from_be_bytes(*next);
            let (data, next) = match kind {
                0 => return Err(PageError::Free { page }),
                1 => {
                    let next = u64::try_from(next).map_err(|_| PageError::Outside { page: next })?;
                    (data, Some(next))
                }
                2 => {
                    let end = usize::try_from(next).ok().and_then(|end| end.checked_sub(PAGE_HEADER_BYTES));
                    let data = end.and_then(|end| data.get(..end));
                    (data.ok_or(PageError::Used { page, used: next })?, None)
                }
                found => return Err(PageError::Type { page, found }),
            };
            if joined.len() + data.len() > CHAIN_BYTES_MAX {
                return Err(PageError::TooLong { page: first, limit: CHAIN_BYTES_MAX });
            }
            joined.extend_from_slice(data);
            match next {
                Some(next) => page = next,
                None => return Ok((first, joined.freeze())),
            }
        }
    }
}

fn read(from: &dyn ReadAt, at: u64, into: &mut [u8]) -> Result<(), PageError> {
    from.read_exact_at(at, into).map_err(|source| PageError::Io { at, bytes: into.len(), source })
}
