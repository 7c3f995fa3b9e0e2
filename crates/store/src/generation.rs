//! How often an operator had accepted a loss when this journal was last brought together with a primary's.
//!
//! `replication/generation`, a decimal number. Only a primary of a *higher* generation may have a replica drop what was confirmed. The
//! newest record that was seen does not answer that: it is seen before the journal is cut.

use std::io;
use std::sync::Arc;

use kahawai_env::Files;
use kahawai_journal::{read_small_file, replace_file};

pub(crate) const FILE: &str = "replication/generation";
/// More digits than any number that we wrote.
const BYTES_MAX: usize = 32;

/// The number; `None` if it was never written or cannot be read: then nothing confirmed is dropped.
pub fn read(files: &Arc<dyn Files>) -> io::Result<Option<u64>> {
    let text = match read_small_file(files, FILE, BYTES_MAX) {
        // Longer than a number.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
        text => text?,
    };
    Ok(text.and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse().ok()))
}

/// Writes it, durably, if it is another one. A crash half way leaves the old one.
pub fn write(files: &Arc<dyn Files>, generation: u64) -> io::Result<()> {
    if read(files)? == Some(generation) {
        return Ok(());
    }
    replace_file(files, FILE, format!("{generation}\n").as_bytes())
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
