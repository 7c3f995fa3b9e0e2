//! Unpacked fixtures, what is expected of them, and a walker over sound journal files.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use kahawai_types::Location;
use serde_json::Value;
use tempfile::TempDir;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/fixtures/kahadb-5.17.2")
}

/// All fixtures by name.
pub fn all() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".tar.gz")?.to_owned()))
        .collect();
    names.sort();
    assert!(names.len() >= 26, "fixtures are missing: {names:?}");
    names
}

/// One fixture, unpacked; removed when dropped.
pub struct Fixture {
    pub name: String,
    root: TempDir,
}

impl Fixture {
    pub fn unpack(name: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let archive = folder().join(format!("{name}.tar.gz"));
        let status = std::process::Command::new("tar")
            .arg("-xzf")
            .arg(&archive)
            .arg("-C")
            .arg(root.path())
            .status()
            .unwrap();
        assert!(status.success(), "{}", archive.display());
        Self { name: name.to_owned(), root }
    }

    /// The directory `kahadb` or `scheduler`.
    pub fn directory(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Every directory that holds a journal.
    pub fn stores(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut left = vec![self.root.path().to_owned()];
        while let Some(directory) = left.pop() {
            let mut is_store = false;
            for entry in std::fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path);
                } else {
                    is_store |= file_id(&path).is_some();
                }
            }
            if is_store {
                found.push(directory);
            }
        }
        found.sort();
        found
    }

    /// `NAME.expected.json`.
    pub fn expected(&self) -> Value {
        let text = std::fs::read_to_string(folder().join(format!("{}.expected.json", self.name))).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

fn file_id(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix("db-")?.strip_suffix(".log")?.parse().ok()
}

/// Every user record of a store, in journal order, as `(place, payload)`. Steps over damaged batches.
pub fn records(store: &Path) -> Vec<(Location, Bytes)> {
    let mut files: Vec<(u32, PathBuf)> = std::fs::read_dir(store)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| Some((file_id(&path)?, path)))
        .collect();
    files.sort();
    let mut found = Vec::new();
    for (file, path) in files {
        walk(file, Bytes::from(std::fs::read(path).unwrap()), &mut found);
    }
    found
}

const BATCH: &[u8] = b"\0\0\0\x1c\x02WRITE BATCH";

fn walk(file: u32, data: Bytes, found: &mut Vec<(Location, Bytes)>) {
    let mut at = 0;
    while let Some(header) = data.get(at..at + 28) {
        if header.starts_with(b"-qMa4") || header.starts_with(&[0; 5]) {
            return;
        }
        let size = u32::from_be_bytes(header[16..20].try_into().unwrap()) as usize;
        let checksum = u64::from_be_bytes(header[20..28].try_into().unwrap());
        let sound = header.starts_with(BATCH)
            && data
                .get(at + 28..at + 28 + size)
                .is_some_and(|batch| checksum == 0 || checksum == u64::from(simd_adler32::adler32(&batch)));
        if !sound {
            match data[at + 1..].windows(BATCH.len()).position(|window| window == BATCH) {
                Some(further) => at += 1 + further,
                None => return,
            }
            continue;
        }
        let end = at + 28 + size;
        at += 28;
        while at < end {
            let size = u32::from_be_bytes(data[at..at + 4].try_into().unwrap()) as usize;
            assert!(data[at + 4] == 1 && size > 5 && at + size <= end, "{file}:{at}");
            found.push((Location::new(file, at as u32), data.slice(at + 5..at + size)));
            at += size;
        }
    }
}
