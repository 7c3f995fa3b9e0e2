//! A data directory seen through changes that stay in memory: to try a recovery without touching what is there.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kahawai_types::Millis;

use crate::{File, Files, Lock, OpenMode, check_name};

const PAGE: usize = 4096;

#[derive(Debug)]
struct Inner {
    len: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

/// A file whose writes stay in memory.
#[derive(Debug)]
struct OverlayFile {
    base: Option<Arc<dyn File>>,
    inner: Mutex<Inner>,
}

impl OverlayFile {
    fn new(base: Option<Arc<dyn File>>) -> io::Result<Self> {
        let len = base.as_ref().map_or(Ok(0), |file| file.len())?;
        Ok(Self { base, inner: Mutex::new(Inner { len, pages: BTreeMap::new() }) })
    }

    fn base_page(&self, page: u64) -> io::Result<Box<[u8; PAGE]>> {
        let mut bytes = Box::new([0; PAGE]);
        if let Some(base) = &self.base {
            crate::read_full_at(&**base, &mut bytes[..], page * PAGE as u64)?;
        }
        Ok(bytes)
    }
}

impl File for OverlayFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = (buf.len() as u64).min(inner.len.saturating_sub(offset)) as usize;
        let Some(out) = buf.get_mut(..wanted) else { return Ok(0) };
        let first = offset / PAGE as u64;
        let last = (offset + wanted as u64).div_ceil(PAGE as u64);
        if inner.pages.range(first..last).next().is_none() {
            let read = self.base.as_ref().map_or(Ok(0), |base| crate::read_full_at(&**base, out, offset))?;
            out.get_mut(read..).unwrap_or_default().fill(0);
            return Ok(wanted);
        }
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            let (page, inside) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let count = (PAGE - inside).min(wanted - done);
            let from = match inner.pages.get(&page) {
                Some(bytes) => bytes.clone(),
                None => self.base_page(page)?,
            };
            if let (Some(to), Some(from)) =
                (out.get_mut(done..done + count), from.get(inside..inside + count))
            {
                to.copy_from_slice(from);
            }
            done += count;
        }
        Ok(wanted)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let (page, inside) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let count = (PAGE - inside).min(bytes.len() - done);
            if let Entry::Vacant(vacant) = inner.pages.entry(page) {
                vacant.insert(self.base_page(page)?);
            }
            if let (Some(to), Some(from)) = (
                inner.pages.get_mut(&page).and_then(|page| page.get_mut(inside..inside + count)),
                bytes.get(done..done + count),
            ) {
                to.copy_from_slice(from);
            }
            done += count;
        }
        inner.len = inner.len.max(offset + bytes.len() as u64);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.inner.lock().unwrap_or_else(PoisonError::into_inner).len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len < old {
            // What was cut must read as zeros if the file grows again.
            let zeros = [0; PAGE];
            let mut at = len;
            while at < old {
                let count = (PAGE as u64 - at % PAGE as u64).min(old - at);
                self.write_at(zeros.get(..count as usize).unwrap_or_default(), at)?;
                at += count;
            }
        }
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).len = len;
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Names {
    files: BTreeMap<String, Arc<OverlayFile>>,
    removed: BTreeSet<String>,
    directories: BTreeSet<String>,
}

/// Reads go to a directory below, changes stay in memory and end with this value.
#[derive(Debug)]
pub struct OverlayFiles {
    base: Arc<dyn Files>,
    names: Mutex<Names>,
}

impl OverlayFiles {
    /// Over this directory.
    pub fn new(base: Arc<dyn Files>) -> Self {
        Self { base, names: Mutex::default() }
    }

    fn names(&self) -> std::sync::MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files for OverlayFiles {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        check_name(name)?;
        let mut names = self.names();
        if let Some(file) = names.files.get(name) {
            return match mode {
                OpenMode::CreateNew => Err(io::ErrorKind::AlreadyExists.into()),
                OpenMode::Read | OpenMode::Write => Ok(Arc::clone(file) as Arc<dyn File>),
            };
        }
        let below = !names.removed.contains(name) && self.base.exists(name)?;
        let base = match (mode, below) {
            (OpenMode::CreateNew, true) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::Read, false) => return Err(io::ErrorKind::NotFound.into()),
            (_, true) => Some(self.base.open(name, OpenMode::Read)?),
            (_, false) => None,
        };
        let file = Arc::new(OverlayFile::new(base)?);
        names.files.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let names = self.names();
        let mut all: BTreeSet<String> = match self.base.list(directory) {
            Ok(below) => below.into_iter().collect(),
            Err(_) if names.directories.contains(directory) => BTreeSet::new(),
            Err(error) => return Err(error),
        };
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        all.retain(|name| !names.removed.contains(&format!("{prefix}{name}")));
        for name in names.files.keys().chain(&names.directories) {
            if let Some(rest) = name.strip_prefix(&prefix).filter(|rest| !rest.is_empty()) {
                all.insert(rest.split('/').next().unwrap_or(rest).to_owned());
            }
        }
        Ok(all.into_iter().collect())
    }

    fn create_directory(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        self.names().directories.insert(name.to_owned());
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.open(from, OpenMode::Read)?;
        let mut names = self.names();
        if let Some(file) = names.files.remove(from) {
            names.removed.insert(from.to_owned());
            names.removed.remove(to);
            names.files.insert(to.to_owned(), file);
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.open(name, OpenMode::Read)?;
        let mut names = self.names();
        names.files.remove(name);
        names.removed.insert(name.to_owned());
        Ok(())
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        check_name(name)?;
        let names = self.names();
        if names.files.contains_key(name) || names.directories.contains(name) {
            return Ok(true);
        }
        Ok(!names.removed.contains(name) && self.base.exists(name)?)
    }

    fn sync_directory(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn describe(&self, name: &str) -> String {
        self.base.describe(name)
    }

    fn lock(&self, _: &str, _: Millis) -> io::Result<Option<Box<dyn Lock>>> {
        // Nothing here reaches the directory, so there is nothing to be locked.
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DiskFiles;

    #[test]
    fn changes_are_seen_and_leave_the_directory_alone() {
        let place = std::env::temp_dir().join(format!("kahawai-overlay-{}", std::process::id()));
        let base: Arc<dyn Files> = Arc::new(DiskFiles::open(&place).expect("a directory"));
        let file = base.open("db-1.log", OpenMode::Write).expect("a file");
        file.write_at(&[7; 10_000], 0).expect("written");
        let over = OverlayFiles::new(Arc::clone(&base));
        let seen = over.open("db-1.log", OpenMode::Write).expect("opened");
        seen.write_at(&[9; 5], 4094).expect("written");
        seen.set_len(6000).expect("cut");
        over.create_directory("index").expect("made");
        over.open("index/x", OpenMode::Write).expect("made");
        let mut bytes = [0; 8];
        assert_eq!(seen.read_at(&mut bytes, 4092).expect("read"), 8);
        assert_eq!(bytes, [7, 7, 9, 9, 9, 9, 9, 7]);
        assert_eq!(over.list("").expect("listed"), ["db-1.log", "index"]);
        over.rename("db-1.log", "db-2.log").expect("renamed");
        assert!(!over.exists("db-1.log").expect("asked") && over.exists("db-2.log").expect("asked"));
        assert_eq!(base.list("").expect("listed"), ["db-1.log"]);
        assert_eq!(file.read_at(&mut bytes, 4092).expect("read"), 8);
        assert_eq!((bytes, file.len().expect("length")), ([7; 8], 10_000));
        std::fs::remove_dir_all(place).expect("removed");
    }
}
