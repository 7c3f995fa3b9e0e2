//! What every implementation of the `env` traits has to do, whatever it runs on.

#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;

use kahawai_env::{Files, OpenMode, read_exact_at, read_full_at};

fn kind<T>(result: std::io::Result<T>) -> ErrorKind {
    result.map(drop).unwrap_err().kind()
}

/// Checks an empty data directory.
///
/// # Panics
/// If it does not conform.
pub fn check_files(files: &dyn Files) {
    assert_eq!(files.list("").unwrap(), [""; 0], "give me an empty directory");
    assert_eq!(kind(files.open("x", OpenMode::Read)), ErrorKind::NotFound);
    let file = files.open("x", OpenMode::CreateNew).unwrap();
    assert_eq!(kind(files.open("x", OpenMode::CreateNew)), ErrorKind::AlreadyExists);
    assert!(file.is_empty().unwrap());
    file.write_at(b"hello", 3).unwrap();
    file.write_at(b"p!", 6).unwrap();
    assert_eq!(file.len().unwrap(), 8);
    let mut buf = [9; 10];
    assert_eq!(read_full_at(&*file, &mut buf, 0).unwrap(), 8);
    assert_eq!(&buf, b"\0\0\0help!\x09\x09");
    assert_eq!(file.read_at(&mut buf, 100).unwrap(), 0);
    assert_eq!(read_exact_at(&*file, &mut buf, 0).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    file.sync_data().unwrap();
    file.drop_cache().unwrap();
    file.set_len(5).unwrap();
    file.set_len(7).unwrap();
    file.sync_all().unwrap();
    assert_eq!(read_full_at(&*file, &mut buf, 0).unwrap(), 7);
    assert_eq!(&buf[..7], b"\0\0\0he\0\0");

    assert_eq!(files.open("x", OpenMode::Write).unwrap().len().unwrap(), 7, "opening does not cut");
    assert!(files.open("new", OpenMode::Write).unwrap().is_empty().unwrap());
    files.create_directory("d/e").unwrap();
    files.create_directory("d/e").unwrap();
    files.rename("x", "d/y").unwrap();
    files.rename("new", "d/e/z").unwrap();
    for directory in ["", "d", "d/e"] {
        files.sync_directory(directory).unwrap();
    }
    assert_eq!(files.list("").unwrap(), ["d"]);
    assert_eq!(files.list("d").unwrap(), ["e", "y"]);
    assert_eq!(files.list("d/e").unwrap(), ["z"]);
    assert_eq!(kind(files.list("nowhere")), ErrorKind::NotFound);
    assert!(files.exists("d").unwrap() && files.exists("d/y").unwrap() && !files.exists("x").unwrap());
    assert!(files.open("d", OpenMode::Read).is_err(), "a directory is no file");
    files.rename("d/e/z", "d/y").unwrap();
    assert!(files.open("d/y", OpenMode::Read).unwrap().is_empty().unwrap(), "a rename replaces");
    assert_eq!(file.len().unwrap(), 7, "an open file outlives its name");
    files.remove("d/y").unwrap();
    assert_eq!(kind(files.remove("d/y")), ErrorKind::NotFound);
    assert_eq!(kind(files.rename("d/y", "w")), ErrorKind::NotFound);
    for name in ["..", "../x", "/x", "a//b", "a/.", "a/"] {
        assert_eq!(kind(files.open(name, OpenMode::Write)), ErrorKind::InvalidInput, "{name}");
    }
    assert!(files.describe("d/y").ends_with("d/y"));

    let lock = files.lock("lock", 7).unwrap().expect("free");
    assert!(files.lock("lock", 8).unwrap().is_none());
    assert!(lock.is_in_place().unwrap());
    drop(lock);
    let lock = files.lock("lock", 0x0102_0304_0506_0708).unwrap().expect("free again");
    drop(lock);
    let mut time = [0; 8];
    read_exact_at(&*files.open("lock", OpenMode::Read).unwrap(), &mut time, 0).unwrap();
    assert_eq!(time, [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use kahawai_env::DiskFiles;

    #[test]
    fn a_directory_on_disk_conforms() {
        let directory = tempfile::tempdir().unwrap();
        check_files(&DiskFiles::open(directory.path().join("data")).unwrap());
    }

    #[test]
    fn a_directory_in_memory_conforms() {
        check_files(&crate::MemoryFiles::new());
        let short = crate::MemoryFiles::new();
        short.read_short(3);
        check_files(&short);
    }
}
