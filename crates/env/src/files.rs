use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kahawai_types::Millis;

/// An open file. All positions are explicit, so that one handle serves many threads.
pub trait File: Send + Sync + Debug {
    /// Reads from `offset` into `buf`; may read less than asked for, and reads 0 bytes only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`, or fails; after a failure any part of them may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes written bytes, and the length needed to read them, durable. After an error nothing is known about them,
    /// and later success proves nothing: do not try again.
    fn sync_data(&self) -> io::Result<()>;
    /// The same, with all metadata.
    fn sync_all(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Cuts or extends with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes the file at least so long, with zeros, and takes the room for it now: a full disk says so here, and several threads can write
    /// to it at a time. Where that cannot be done, nothing happens.
    fn allocate(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }
    /// Forgets what the cache holds of it and is not dirty, as far as that can be done: the next read comes from the
    /// disk. After a failed flush the cache may hold what the disk does not, so whoever opens a journal asks for the disk.
    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
    /// Writes zeros, past the cache where that can be done: `true` = they went to the device (to be made durable with a
    /// flush like anything else), `false` = they lie in the cache like any write. Zeros that are only there to be overwritten
    /// are not worth the memory, nor the copying.
    fn write_zeros_at(&self, offset: u64, len: u64) -> io::Result<bool> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let mut at = offset;
        let end = offset.saturating_add(len);
        while at < end {
            let step = (end - at).min(ZEROS.len() as u64);
            self.write_at(ZEROS.get(..step as usize).unwrap_or(&ZEROS), at)?;
            at += step;
        }
        Ok(false)
    }
    /// Writes whole pages (`offset` and length are multiples of [`PAGE_BYTES`], the bytes come out of a [`PageBuffer`]) past
    /// the cache, which forgets what it has of them. To be made durable with a flush like any write, and it fails like any write.
    /// `false` = that cannot be done here; any part may have been written, and [`File::write_at`] has to write it all.
    fn write_pages_at(&self, pages: &[u8], offset: u64) -> io::Result<bool> {
        self.write_at(pages, offset).map(|()| true)
    }
    /// Reads whole pages (`offset` and length are multiples of [`PAGE_BYTES`], the memory comes out of a [`PageBuffer`]) that nobody
    /// is expected to read again soon: from the cache if it has them, else past it where that can be done, so that what others
    /// read again and again stays there. Otherwise as [`File::read_at`].
    fn read_pages_at(&self, pages: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(pages, offset)
    }
    /// No bytes at all?
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// What writes past the cache have to be aligned to, in memory and in the file; enough for all common devices.
pub const PAGE_BYTES: usize = 4096;

/// Memory for [`File::write_pages_at`] and [`File::read_pages_at`]: begins where a page begins, and is used again.
#[derive(Debug, Default)]
pub struct PageBuffer {
    memory: Vec<u8>,
    from: usize,
}

impl PageBuffer {
    /// The first `bytes` of it; what they hold is left over from before.
    pub fn front(&mut self, bytes: usize) -> &mut [u8] {
        if self.memory.len() < self.from + bytes {
            self.memory = vec![0; bytes + PAGE_BYTES];
            // Cannot be told only where nothing is ever executed; a wrong place is refused by the file, not dangerous.
            self.from = Some(self.memory.as_ptr().align_offset(PAGE_BYTES))
                .filter(|&at| at < PAGE_BYTES)
                .unwrap_or(0);
        }
        self.memory.get_mut(self.from..self.from + bytes).unwrap_or_default()
    }

    /// Gives memory back if it is more than this.
    pub fn shrink(&mut self, bytes_max: usize) {
        if self.memory.len() > bytes_max + PAGE_BYTES {
            *self = Self::default();
        }
    }
}

/// What can only be read; [`ReadOnly`] makes a file of it.
pub trait Source: Send + Sync + Debug {
    /// As [`File::read_at`].
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// No bytes at all?
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A file that nobody can write to, wherever its bytes come from.
#[derive(Debug)]
pub struct ReadOnly<S>(pub S);

impl<S: Source> File for ReadOnly<S> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A file that is read once, from front to back, in steps of [`ReadOnce::STEP_BYTES`] with [`File::read_pages_at`].
#[derive(Debug)]
pub struct ReadOnce {
    file: Arc<dyn File>,
    step: Mutex<Step>,
}

/// What was read last.
#[derive(Debug, Default)]
struct Step {
    memory: PageBuffer,
    at: u64,
    bytes: usize,
}

impl ReadOnce {
    /// Large enough for a disk's full speed.
    pub const STEP_BYTES: usize = 1 << 20;

    /// `file`, for one reader.
    pub fn over(file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(ReadOnly(Self { file, step: Mutex::default() }))
    }
}

impl Source for ReadOnce {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        // A panic of another reader leaves nothing half done that is not read again.
        let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        let Step { memory, at, bytes } = &mut *step;
        if !(*at..*at + *bytes as u64).contains(&offset) {
            *at = offset - offset % PAGE_BYTES as u64;
            *bytes = 0;
            *bytes = read_pages_full_at(&*self.file, memory.front(Self::STEP_BYTES), *at)?;
        }
        let skip = (offset - *at) as usize;
        let found = memory.front(Self::STEP_BYTES).get(skip..*bytes).unwrap_or_default();
        let count = found.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..count), found.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, to read.
    Read,
    /// An existing file, or a new empty one, to read and write. Never cut.
    Write,
    /// A new file to read and write; an error if the name is taken.
    CreateNew,
}

/// One data directory. Names are relative to it, `/` separated, without `.` and `..`; the empty name is the directory.
///
/// Creating, renaming and removing become durable with [`sync_directory`](Files::sync_directory) of the directory that
/// holds the name; before that, a power loss may undo them, in any order.
pub trait Files: Send + Sync + Debug {
    /// Opens a file.
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn File>>;
    /// Names of the files and directories directly in `directory` (`""` = the root), sorted.
    fn list(&self, directory: &str) -> io::Result<Vec<String>>;
    /// Makes a directory and those above it; fine if it is there already.
    fn create_directory(&self, name: &str) -> io::Result<()>;
    /// Moves a file, replacing what has the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Those who have it open go on reading it.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Is there a file or directory of this name?
    fn exists(&self, name: &str) -> io::Result<bool>;
    /// Makes the names in a directory durable (`""` = the root).
    fn sync_directory(&self, name: &str) -> io::Result<()>;
    /// The name as an operator would write it, for messages.
    fn describe(&self, name: &str) -> String;
    /// Space that is left for files in it; `None` = that is not known.
    fn free_bytes(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }
    /// Takes KahaDB's lock file: writes `now` into it and holds an exclusive lock until the value is dropped. `None` if
    /// somebody else holds it, in this process or another, Java or not.
    fn lock(&self, name: &str, now: Millis) -> io::Result<Option<Box<dyn Lock>>>;
}

/// A lock that is held until it is dropped.
pub trait Lock: Send + Sync + Debug {
    /// Whether the name still leads to the file that we locked. `false` if somebody moved or replaced the lock file,
    /// and hence another broker may believe that it holds the lock.
    fn is_in_place(&self) -> io::Result<bool>;
}

/// Refuses names that could lead out of the data directory, or that two implementations might understand differently.
pub fn check_name(name: &str) -> io::Result<()> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0']);
    if name.is_empty() || name.split('/').all(plain) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("'{name}' is not a name inside a data directory"),
    ))
}

/// Reads until `buf` is full or the file ends; returns how much was read.
pub fn read_full_at(file: &dyn File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    read_full(buf, |rest, done| file.read_at(rest, offset + done))
}

/// The same with [`File::read_pages_at`].
pub fn read_pages_full_at(file: &dyn File, pages: &mut [u8], offset: u64) -> io::Result<usize> {
    read_full(pages, |rest, done| match done.is_multiple_of(PAGE_BYTES as u64) {
        true => file.read_pages_at(rest, offset + done),
        false => file.read_at(rest, offset + done),
    })
}

fn read_full(buf: &mut [u8], mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match read(rest, done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Fills `buf`, or fails with `UnexpectedEof`.
pub fn read_exact_at(file: &dyn File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    if read_full_at(file, buf, offset)? == buf.len() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends early"))
}
