//! Data directories made by ActiveMQ 5.17.2; `NAME.expected.json` tells what the real broker recovers from each.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

fn directory() -> PathBuf {
    std::env::var_os("KAHAWAI_FIXTURES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/kahadb-5.17.2")),
        PathBuf::from,
    )
}

/// All fixtures, sorted.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory())
        .expect("the fixtures are there")
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.strip_suffix(".tar.gz")?.to_owned()))
        .collect();
    names.sort_unstable();
    names
}

/// Unpacks a fixture into a temporary directory. The store is in its folder `kahadb`, the scheduler's in `scheduler`.
///
/// # Panics
/// If there is no such fixture, or no `tar` command.
pub fn unpack(name: &str) -> TempDir {
    let target = tempfile::tempdir().expect("a temporary directory");
    let archive = directory().join(format!("{name}.tar.gz"));
    let status = Command::new("tar")
        .args(["--no-same-owner", "-xzf"])
        .arg(&archive)
        .arg("-C")
        .arg(target.path())
        .status()
        .expect("the tar command runs");
    assert!(status.success(), "{} could not be unpacked", archive.display());
    target
}

/// What the real broker recovers.
///
/// # Panics
/// If there is no such fixture.
pub fn expected(name: &str) -> Value {
    let path = directory().join(format!("{name}.expected.json"));
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}
