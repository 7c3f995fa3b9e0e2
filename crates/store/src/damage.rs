//! What a process that found its journal damaged leaves to the next one: how far it had been flushed. Damage in the last flush looks
//! like what a crash leaves of it, and would be cut off; who ran without a crash knows better.
//!
//! ```text
//! replication/flushed   KW1D | end u64 | XXH3-64 of that u64
//! ```

use std::io;
use std::sync::Arc;

use kahawai_env::Files;
use kahawai_journal::{POSITION_FILE_BYTES, decode_position, encode_position, read_small_file, replace_file};
use kahawai_types::Lsn;
use tracing::error;

/// Where it lies in the data directory.
pub(crate) const FILE: &str = "replication/flushed";
const MAGIC: &[u8; 4] = b"KW1D";

/// Damage was found, and the journal had been flushed up to `end`. The process is about to stop because of it: that this cannot be
/// written either changes nothing.
pub(crate) fn note(files: &Arc<dyn Files>, end: Lsn) {
    if let Err(error) = replace_file(files, FILE, &encode_position(MAGIC, end)) {
        error!(%error, file = FILE, "the next start will not know how far the damaged journal had been flushed");
    }
}

/// As far as an earlier process says, if one has left word. A damaged note is none: it says more than the journal, never less.
pub(crate) fn flushed(files: &Arc<dyn Files>) -> io::Result<Lsn> {
    let content = read_small_file(files, FILE, POSITION_FILE_BYTES)?;
    Ok(content.and_then(|content| decode_position(MAGIC, &content)).unwrap_or_default())
}

/// The journal is whole up to there, or an operator has decided.
pub(crate) fn forget(files: &Arc<dyn Files>) -> io::Result<()> {
    if files.exists(FILE)? {
        files.remove(FILE)?;
        files.sync_directory("replication")?;
    }
    Ok(())
}
