//! A file of pages, with a sum for each page in another file: what is read is what was written, or an error.
//!
//! ```text
//! index/index.redb   pages of 4096 bytes; the first one has sums of its own
//! index/index.sums   XXH3-64 of each page with the page's number as seed, u64 each; 0 = not written yet
//! index/damaged      there once a page was found damaged: the index is thrown away at the next start
//! ```
//!
//! The database never writes to a page that its last commit refers to, and flushes what a commit refers to before the commit. So a
//! crash leaves sums that differ from their pages only where nobody looks; and a torn write of sums changes those alone.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kahawai_env::{File, Files, OpenMode, read_full_at};
use redb::StorageBackend;
use tracing::error;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const PAGE: usize = 4096;
const SUM_BYTES: usize = 8;
const SUMS_IN_PAGE: usize = PAGE / SUM_BYTES;

/// The names of one such file, its sums, and the note that it is damaged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    /// Where all of them are.
    pub(crate) directory: &'static str,
    pub(crate) pages: &'static str,
    pub(crate) sums: &'static str,
    pub(crate) damaged: &'static str,
}

#[derive(Debug)]
pub(crate) struct CheckedFile {
    files: Arc<dyn Files>,
    names: Names,
    pages: Arc<dyn File>,
    sums: Arc<dyn File>,
    known: Mutex<Sums>,
}

#[derive(Debug, Default)]
struct Sums {
    /// By page; shorter than the file is: not written.
    all: Vec<u64>,
    /// Pages of sums that are not on the disk.
    dirty: BTreeSet<usize>,
}

impl Sums {
    fn set(&mut self, page: usize, sum: u64) {
        if page >= self.all.len() {
            self.all.resize(page + 1, 0);
        }
        if let Some(known) = self.all.get_mut(page) {
            *known = sum;
        }
        self.dirty.insert(page / SUMS_IN_PAGE);
    }
}

/// Never 0.
fn sum(page: usize, bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, page as u64).max(1)
}

impl CheckedFile {
    /// Opens both files, made empty if there are none.
    pub(crate) fn open(files: &Arc<dyn Files>, names: Names) -> io::Result<Self> {
        if files.exists(names.damaged)? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it was found damaged before the last stop",
            ));
        }
        let had_sums = files.exists(names.sums)?;
        let pages = files.open(names.pages, OpenMode::Write)?;
        let sums = files.open(names.sums, OpenMode::Write)?;
        let length = usize::try_from(pages.len()?).unwrap_or(usize::MAX);
        if length > 0 && !had_sums {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has no sums"));
        }
        // What another life has left behind there counts for nothing, nor do more sums than there are pages.
        let wanted = length.div_ceil(PAGE).saturating_mul(SUM_BYTES);
        let there = usize::try_from(sums.len()?).unwrap_or(usize::MAX);
        if wanted == 0 && there > 0 {
            sums.set_len(0)?;
        }
        let mut bytes = vec![0; wanted.min(there)];
        let read = read_full_at(&*sums, &mut bytes, 0)?;
        let (all, _) = bytes.get(..read).unwrap_or_default().as_chunks::<SUM_BYTES>();
        let all = all.iter().map(|sum| u64::from_le_bytes(*sum)).collect();
        let known = Mutex::new(Sums { all, dirty: BTreeSet::new() });
        Ok(Self { files: Arc::clone(files), names, pages, sums, known })
    }

    /// Removes all of it; the note goes last, so that a crash in here leaves nothing to be believed.
    pub(crate) fn discard(files: &Arc<dyn Files>, names: Names) -> io::Result<()> {
        for name in [names.pages, names.sums, names.damaged] {
            if files.exists(name)? {
                files.remove(name)?;
                files.sync_directory(names.directory)?;
            }
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Sums> {
        // Each change is a single call.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whole pages from a page on; zeros where the file ends.
    fn read_pages(&self, first: usize, pages: &mut [u8]) -> io::Result<()> {
        let read = read_full_at(&*self.pages, pages, (first * PAGE) as u64)?;
        pages.get_mut(read..).unwrap_or_default().fill(0);
        let known = self.known();
        for (page, bytes) in (first..).zip(pages.chunks(PAGE)) {
            let expected = known.all.get(page).copied().unwrap_or(0);
            if page > 0 && expected != 0 && expected != sum(page, bytes) {
                drop(known);
                return Err(self.damaged(page));
            }
        }
        Ok(())
    }

    /// The next start does not use it: its checkpoint may be right, and this page be met again and again.
    fn damaged(&self, page: usize) -> io::Error {
        let name = self.files.describe(self.names.pages);
        error!(file = name, page, "the index is damaged; the next start makes it again from the journal");
        let noted = self
            .files
            .open(self.names.damaged, OpenMode::Write)
            .and_then(|_| self.files.sync_directory(self.names.directory));
        if let Err(error) = noted {
            error!(%error, "this could not be noted");
        }
        let text = format!("page {page} is not what was written there");
        io::Error::new(io::ErrorKind::InvalidData, text)
    }
}

/// The pages that bytes lie in: the first, and how many.
fn span(offset: u64, length: usize) -> io::Result<(usize, usize, usize)> {
    let offset = usize::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let end = offset.checked_add(length).ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let first = offset / PAGE;
    Ok((first, end.div_ceil(PAGE) - first, offset - first * PAGE))
}

impl StorageBackend for CheckedFile {
    fn len(&self) -> io::Result<u64> {
        self.pages.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.saturating_add(out.len() as u64) > self.pages.len()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (first, count, before) = span(offset, out.len())?;
        if out.len() == count * PAGE {
            return self.read_pages(first, out);
        }
        let mut pages = vec![0; count * PAGE];
        self.read_pages(first, &mut pages)?;
        out.copy_from_slice(pages.get(before..before + out.len()).unwrap_or_default());
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.pages.set_len(length)?;
        let mut known = self.known();
        let left = usize::try_from(length.div_ceil(PAGE as u64)).unwrap_or(usize::MAX);
        for page in left..known.all.len() {
            known.set(page, 0);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut known = self.known();
        let dirty = std::mem::take(&mut known.dirty);
        let written = dirty.iter().try_for_each(|&at| {
            let sums = known.all.get(at * SUMS_IN_PAGE..).unwrap_or_default();
            let bytes: Vec<u8> = sums.iter().take(SUMS_IN_PAGE).flat_map(|sum| sum.to_le_bytes()).collect();
            self.sums.write_at(&bytes, (at * PAGE) as u64)
        });
        drop(known);
        written?;
        if !dirty.is_empty() {
            self.sums.sync_data()?;
        }
        self.pages.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (first, count, before) = span(offset, data.len())?;
        let mut rest;
        let pages = if data.len() == count * PAGE {
            data
        } else {
            rest = vec![0; count * PAGE];
            self.read_pages(first, &mut rest)?;
            rest.get_mut(before..before + data.len()).unwrap_or_default().copy_from_slice(data);
            &rest
        };
        self.pages.write_at(data, offset)?;
        let mut known = self.known();
        for (page, bytes) in (first..).zip(pages.chunks(PAGE)) {
            known.set(page, sum(page, bytes));
        }
        Ok(())
    }
}
