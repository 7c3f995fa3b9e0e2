//! How often an operator had accepted a loss when this journal was last brought together with a primary's.
//!
//! `replication/generation`, a decimal number. Only a primary of a *higher* generation may have a replica drop what was confirmed. The
//! newest record that was seen does not answer that: it is seen before the journal is cut.

use std::io;
use std::sync::Arc;

use kahawai_env::{Files, OpenMode, read_full_at};

pub(crate) const FILE: &str = "replication/generation";
const NEW: &str = "replication/generation.tmp";
/// More digits than any number that we wrote.
const BYTES_MAX: u64 = 32;

/// The number; `None` if it was never written or cannot be read: then nothing confirmed is dropped.
pub fn read(files: &Arc<dyn Files>) -> io::Result<Option<u64>> {
    if !files.exists(FILE)? {
        return Ok(None);
    }
    let file = files.open(FILE, OpenMode::Read)?;
    let mut text = vec![0; file.len()?.min(BYTES_MAX) as usize];
    read_full_at(&*file, &mut text, 0)?;
    Ok(std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok()))
}

/// Writes it, durably, if it is another one. A crash half way leaves the old one.
pub fn write(files: &Arc<dyn Files>, generation: u64) -> io::Result<()> {
    if read(files)? == Some(generation) {
        return Ok(());
    }
    files.create_directory("replication")?;
    let file = files.open(NEW, OpenMode::Write)?;
    file.set_len(0)?;
    file.write_at(format!("{generation}\n").as_bytes(), 0)?;
    file.sync_all()?;
    files.rename(NEW, FILE)?;
    files.sync_directory("replication")
}

#[cfg(test)]
mod tests {
    use kahawai_testkit::MemoryFiles;

    use super::*;

    #[test]
    fn a_number_comes_back_and_anything_else_is_none() {
        let memory = MemoryFiles::new();
        let files: Arc<dyn Files> = Arc::new(memory.clone());
        assert_eq!(read(&files).expect("readable"), None);
        for number in [0, 7, u64::MAX] {
            write(&files, number).expect("written");
            assert_eq!(read(&files).expect("readable"), Some(number));
        }
        for damaged in [&b""[..], b"-1", b"seven", b"\xff", b"99999999999999999999999999999999999"] {
            memory.put(FILE, damaged);
            assert_eq!(read(&files).expect("readable"), None);
        }
    }
}
