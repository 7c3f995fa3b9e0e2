use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use kahawai_types::Millis;
use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise, fallocate};
use rustix::io::Errno;

use crate::lock::{FileLock, refuse_if_locked_here};
use crate::{File, Files, Lock, OpenMode, PAGE_BYTES, check_name};

/// A data directory on disk.
#[derive(Clone, Debug)]
pub struct DiskFiles {
    root: PathBuf,
}

impl DiskFiles {
    /// Uses `path` as the data directory; makes it, durably, if it is not there.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let root = path.into();
        create_directory_durably(&root)?;
        Ok(Self { root })
    }

    /// Uses an existing directory; creates nothing. For tools that only look.
    pub fn existing(path: impl Into<PathBuf>) -> io::Result<Self> {
        let root = path.into();
        if !fs::metadata(&root)?.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::NotADirectory,
                format!("{} is no directory", root.display()),
            ));
        }
        Ok(Self { root })
    }

    /// The data directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    fn full(&self, name: &str) -> io::Result<PathBuf> {
        check_name(name)?;
        Ok(if name.is_empty() { self.root.clone() } else { self.root.join(name) })
    }
}

/// `create_dir_all`, and every directory that got a new name in it is flushed.
fn create_directory_durably(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_directory_durably(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        made => made?,
    }
    sync_directory(parent.unwrap_or(Path::new(".")))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

impl Files for DiskFiles {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let path = self.full(name)?;
        refuse_if_locked_here(&path)?;
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => &mut options,
            OpenMode::Write => options.write(true).create(true).truncate(false),
            OpenMode::CreateNew => options.write(true).create_new(true),
        };
        let is_written = !matches!(mode, OpenMode::Read);
        let file = options.open(&path)?;
        if file.metadata()?.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::IsADirectory,
                format!("{} is a directory", path.display()),
            ));
        }
        Ok(Arc::new(DiskFile { file, is_written, direct: OnceLock::new(), probe: OnceLock::new() }))
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.full(directory)?)? {
            // A name that is no text is not one of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_directory(&self, name: &str) -> io::Result<()> {
        create_directory_durably(&self.full(name)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.full(from)?, self.full(to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.full(name)?)
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.full(name)?.try_exists()
    }

    fn sync_directory(&self, name: &str) -> io::Result<()> {
        sync_directory(&self.full(name)?)
    }

    fn describe(&self, name: &str) -> String {
        if name.is_empty() {
            self.root.display().to_string()
        } else {
            self.root.join(name).display().to_string()
        }
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        let found = rustix::fs::statvfs(&self.root)?;
        // What root alone may use does not count.
        Ok(Some(found.f_bavail.saturating_mul(found.f_frsize)))
    }

    fn lock(&self, name: &str, now: Millis) -> io::Result<Option<Box<dyn Lock>>> {
        let lock = FileLock::take(self.full(name)?, now)?;
        Ok(lock.map(|lock| Box::new(lock) as Box<dyn Lock>))
    }
}

/// How much one such write carries.
const DIRECT_STEP: usize = 1 << 20;

/// Aligned as such writes ask for.
#[repr(align(4096))]
struct Zeros([u8; DIRECT_STEP]);

static ZEROS: Zeros = Zeros([0; DIRECT_STEP]);

#[derive(Debug)]
struct DiskFile {
    file: fs::File,
    is_written: bool,
    /// Another handle of the same file: whether a handle goes past the cache is its own property. `None` = that is refused.
    direct: OnceLock<Option<fs::File>>,
    /// One more, which reads nothing ahead: to see what is in the cache.
    probe: OnceLock<Option<fs::File>>,
}

impl DiskFile {
    fn direct(&self) -> Option<&fs::File> {
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).write(self.is_written).custom_flags(OFlags::DIRECT.bits().cast_signed());
            options.open(self.again()).ok()
        };
        self.direct.get_or_init(open).as_ref()
    }

    /// A name for further handles; the file may have another one by now, or none.
    fn again(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    /// Is this in the cache? Looks at one page of it, which comes into the cache if it is not there: another one each time, so
    /// that it does not find itself. Uses nothing of what it reads.
    fn is_cached(&self, offset: u64, bytes: usize) -> bool {
        static PROBES: AtomicU64 = AtomicU64::new(0);
        let open = || {
            let probe = fs::File::open(self.again()).ok()?;
            fadvise(&probe, 0, None, Advice::Random).ok()?;
            Some(probe)
        };
        let Some(probe) = self.probe.get_or_init(open) else { return true };
        // Multiples of the golden ratio spread evenly.
        let number = PROBES.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let pages = (bytes / PAGE_BYTES).max(1) as u64;
        let page = (u128::from(number) * u128::from(pages)) >> 64;
        let mut byte = [0];
        let mut look = |at| {
            let mut buffers = [io::IoSliceMut::new(&mut byte)];
            rustix::io::preadv2(probe, &mut buffers, at, rustix::io::ReadWriteFlags::NOWAIT)
        };
        let found = match look(offset + page as u64 * PAGE_BYTES as u64) {
            // Behind the end.
            Ok(0) => look(offset),
            found => found,
        };
        // Where nobody can say, things are as they always were.
        !matches!(found, Err(Errno::AGAIN))
    }

    fn write_zeros_through_the_cache(&self, offset: u64, len: u64) -> io::Result<bool> {
        let mut at = offset;
        let end = offset.saturating_add(len);
        while at < end {
            let step = (end - at).min(DIRECT_STEP as u64) as usize;
            self.write_at(ZEROS.0.get(..step).unwrap_or_default(), at)?;
            at += step as u64;
        }
        Ok(false)
    }
}

impl File for DiskFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn write_zeros_at(&self, offset: u64, len: u64) -> io::Result<bool> {
        if !offset.is_multiple_of(PAGE_BYTES as u64) || !len.is_multiple_of(PAGE_BYTES as u64) {
            return self.write_zeros_through_the_cache(offset, len);
        }
        let Some(direct) = self.direct() else {
            return self.write_zeros_through_the_cache(offset, len);
        };
        let mut at = offset;
        let end = offset.saturating_add(len);
        while at < end {
            let step = (end - at).min(DIRECT_STEP as u64) as usize;
            match direct.write_all_at(ZEROS.0.get(..step).unwrap_or_default(), at) {
                Ok(()) => at += step as u64,
                // The file system has its own mind about what may go past the cache.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    return self.write_zeros_through_the_cache(at, end - at);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn write_pages_at(&self, pages: &[u8], offset: u64) -> io::Result<bool> {
        let Some(direct) = self.direct() else { return Ok(false) };
        match direct.write_all_at(pages, offset) {
            Ok(()) => Ok(true),
            // The file system has its own mind about what may go past the cache.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read_pages_at(&self, pages: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.is_cached(offset, pages.len()) {
            return self.read_at(pages, offset);
        }
        let Some(direct) = self.direct() else { return self.read_at(pages, offset) };
        match direct.read_at(pages, offset) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.read_at(pages, offset),
            read => read,
        }
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ReadOnce, read_full_at};

    fn directory() -> (tempfile::TempDir, DiskFiles) {
        let directory = tempfile::tempdir().unwrap();
        let files = DiskFiles::open(directory.path().join("a/b")).unwrap();
        (directory, files)
    }

    #[test]
    fn there_is_room_and_a_directory_that_is_gone_has_none() {
        let (directory, files) = directory();
        assert!(files.free_bytes().unwrap().unwrap() > 0);
        drop(directory);
        files.free_bytes().unwrap_err();
    }

    #[test]
    fn what_is_written_is_read_back_and_listed() {
        let (_keep, files) = directory();
        let file = files.open("x", OpenMode::CreateNew).unwrap();
        file.write_at(b"hello", 3).unwrap();
        file.sync_data().unwrap();
        let mut buf = [1; 16];
        assert_eq!(read_full_at(&*file, &mut buf, 0).unwrap(), 8);
        assert_eq!(&buf[..8], b"\0\0\0hello");
        files.create_directory("d/e").unwrap();
        files.rename("x", "d/y").unwrap();
        files.sync_directory("d").unwrap();
        assert_eq!(files.list("").unwrap(), ["d"]);
        assert_eq!(files.list("d").unwrap(), ["e", "y"]);
        assert!(files.open("d/y", OpenMode::CreateNew).is_err());
        assert_eq!(files.open("d/y", OpenMode::Write).unwrap().len().unwrap(), 8);
        files.remove("d/y").unwrap();
        assert!(!files.exists("d/y").unwrap());
        assert_eq!(read_full_at(&*file, &mut buf, 0).unwrap(), 8, "an open file outlives its name");
    }

    #[test]
    fn pages_go_past_the_cache_or_not_at_all() {
        let (_keep, files) = directory();
        let file = files.open("x", OpenMode::CreateNew).unwrap();
        let mut memory = crate::PageBuffer::default();
        let pages = memory.front(3 * PAGE_BYTES);
        pages.fill(7);
        assert_eq!(pages.as_ptr().align_offset(PAGE_BYTES), 0);
        let can = file.write_pages_at(pages, PAGE_BYTES as u64).unwrap();
        file.sync_data().unwrap();
        let mut found = vec![1; 5 * PAGE_BYTES];
        let read = read_full_at(&*file, &mut found, 0).unwrap();
        assert_eq!(read, if can { 4 * PAGE_BYTES } else { 0 });
        assert!(
            !can || (found[..PAGE_BYTES].iter().all(|b| *b == 0)
                && found[PAGE_BYTES..read].iter().all(|b| *b == 7))
        );
        file.write_pages_at(&memory.front(3 * PAGE_BYTES)[1..PAGE_BYTES], 0).expect("refused, not failed");
        memory.shrink(PAGE_BYTES);
        assert!(memory.front(PAGE_BYTES).iter().all(|b| *b == 0), "it was given back");
    }

    #[test]
    fn what_is_read_once_is_what_is_there_wherever_it_lies() {
        let (_keep, files) = directory();
        let content: Vec<u8> = (0..3 * ReadOnce::STEP_BYTES + 777).map(|n| ((n * 31) >> 3) as u8).collect();
        let file = files.open("x", OpenMode::CreateNew).unwrap();
        file.write_at(&content, 0).unwrap();
        for is_flushed in [false, true] {
            if is_flushed {
                file.sync_data().unwrap();
                file.drop_cache().unwrap();
            }
            for mode in [OpenMode::Read, OpenMode::Write] {
                let once = ReadOnce::over(files.open("x", mode).unwrap());
                let mut found = vec![0; content.len() + 9];
                // In pieces that end inside of pages.
                let mut at = 0;
                while at < found.len() {
                    let piece = found[at..].len().min(700_001);
                    let read = read_full_at(&*once, &mut found[at..at + piece], at as u64).unwrap();
                    at += piece;
                    assert!(read == piece || at == content.len() + 9 && read == piece - 9);
                }
                assert!(found[..content.len()] == content);
                // And again from the middle.
                assert_eq!(read_full_at(&*once, &mut found[..5000], 12_345).unwrap(), 5000);
                assert!(found[..5000] == content[12_345..17_345]);
            }
        }
        let mut memory = crate::PageBuffer::default();
        let page = memory.front(PAGE_BYTES);
        assert_eq!(file.read_pages_at(&mut page[1..], 0).unwrap(), PAGE_BYTES - 1, "read, not refused");
    }

    #[test]
    fn a_name_never_leads_out_of_the_directory() {
        let (_keep, files) = directory();
        for name in ["..", "../x", "/etc/passwd", "a//b", "a/../b", "./a", "a/"] {
            assert_eq!(
                files.open(name, OpenMode::Read).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{name}"
            );
        }
    }
}
