use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kahawai_types::Millis;
use rustix::fs::{FlockOperation, fcntl_lock};

use crate::Lock;

/// Device and inode: the identity of a file whatever its name.
type Identity = (u64, u64);

/// Lock files that this process holds.
///
/// POSIX record locks, which Java takes and which we must therefore take, belong to the process: a second lock of the same
/// file succeeds, and closing *any* descriptor of it drops the lock. So nothing here may open such a file again, and the
/// check has to come before the open. The mutex is held from the check until the set is up to date.
static HELD: Mutex<BTreeSet<Identity>> = Mutex::new(BTreeSet::new());

fn held() -> MutexGuard<'static, BTreeSet<Identity>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn identity(path: &Path) -> io::Result<Option<Identity>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Refuses to open a lock file that this process holds, since closing it again would give up the lock.
pub(crate) fn refuse_if_locked_here(path: &Path) -> io::Result<()> {
    let held = held();
    if !held.is_empty() && identity(path)?.is_some_and(|identity| held.contains(&identity)) {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("{} is the lock file that this process holds", path.display()),
        ));
    }
    Ok(())
}

/// An exclusive lock on KahaDB's `lock` file: 8 bytes, the time of the lock, big-endian.
#[derive(Debug)]
pub(crate) struct FileLock {
    path: PathBuf,
    identity: Identity,
    /// `None` only while it is dropped.
    file: Option<fs::File>,
}

impl FileLock {
    pub(crate) fn take(path: PathBuf, now: Millis) -> io::Result<Option<Self>> {
        let mut held = held();
        if identity(&path)?.is_some_and(|identity| held.contains(&identity)) {
            return Ok(None);
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let metadata = file.metadata()?;
        let own = (metadata.dev(), metadata.ino());
        // Somebody may have replaced the file between open and lock; then we hold the lock of a file without a name.
        if identity(&path)? != Some(own) {
            return Ok(None);
        }
        file.write_all_at(&now.to_be_bytes(), 0)?;
        file.sync_all()?;
        held.insert(own);
        Ok(Some(Self { path, identity: own, file: Some(file) }))
    }
}

impl Lock for FileLock {
    fn is_in_place(&self) -> io::Result<bool> {
        Ok(identity(&self.path)? == Some(self.identity))
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        let mut held = held();
        // Closing gives the lock up. The file stays, as upstream leaves it.
        drop(self.file.take());
        held.remove(&self.identity);
    }
}

#[cfg(test)]
mod tests {
    use crate::{DiskFiles, Files, OpenMode};

    const OTHER_PROCESS: &str = "KAHAWAI_TEST_LOCK_DIRECTORY";

    #[test]
    fn one_process_gets_the_lock_once_and_nobody_opens_the_file_meanwhile() {
        let directory = tempfile::tempdir().unwrap();
        let files = DiskFiles::open(directory.path()).unwrap();
        let lock = files.lock("lock", 0x0102_0304_0506_0708).unwrap().expect("free");
        assert!(files.lock("lock", 1).unwrap().is_none());
        let again = DiskFiles::open(directory.path().join(".")).unwrap();
        assert!(again.lock("lock", 1).unwrap().is_none(), "another path to the same file");
        assert!(files.open("lock", OpenMode::Read).is_err());
        assert!(lock.is_in_place().unwrap());
        drop(lock);
        let lock = again.lock("lock", 0x0102_0304_0506_0708).unwrap();
        assert!(lock.is_some());
        std::fs::rename(directory.path().join("lock"), directory.path().join("gone")).unwrap();
        assert!(!lock.unwrap().is_in_place().unwrap());
        assert_eq!(std::fs::read(directory.path().join("gone")).unwrap(), [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    /// Runs this test binary again as the other process.
    #[test]
    fn another_process_does_not_get_the_lock() {
        if let Some(path) = std::env::var_os(OTHER_PROCESS) {
            let files = DiskFiles::open(std::path::PathBuf::from(path)).unwrap();
            assert!(files.lock("lock", 2).unwrap().is_none(), "the lock of another process was given to us");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let files = DiskFiles::open(directory.path()).unwrap();
        let _lock = files.lock("lock", 1).unwrap().expect("free");
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lock::tests::another_process_does_not_get_the_lock"])
            .env(OTHER_PROCESS, directory.path())
            .status()
            .unwrap();
        assert!(status.success());
    }
}
