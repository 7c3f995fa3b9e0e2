//! Deleting data files, many with few flushes.
//!
//! ```text
//! replication/retiring   there while several files are being deleted: whoever opens the journal finishes it first
//! KW1R | count u32 | id u32 ... | XXH3-64 of all that u64
//! ```
//!
//! What is removed from a directory that was not flushed may come back after a power loss, any part of it. A message may be in one
//! file, its acknowledgement in another, and the record that gives up the first in a third: of files that are deleted together
//! none may come back alone. Flushing the directory after each one keeps them in order, but takes seconds for hundreds.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use kahawai_env::Files;
use tracing::{info, warn};
use xxhash_rust::xxh3::xxh3_64;

use crate::aside::{read_small_file, replace_file};
use crate::format::data_file_name;
use crate::scan::Directory;
use crate::sealed::forget_sum;

pub(crate) const RETIRING_FILE: &str = "replication/retiring";
/// Files that are deleted together; of more, these many at a time.
pub(crate) const TOGETHER_MAX: usize = 4096;
const MAGIC: &[u8; 4] = b"KW1R";
const FRAME_BYTES: usize = 4 + 4 + 8;

/// Deletes data files, ascending and without any that is not there. After a crash they are all there, or all deleted once
/// [`finish`] has been called. The name in an error is the one it is about.
pub(crate) fn remove(files: &Arc<dyn Files>, ids: &[u32]) -> Result<(), (String, io::Error)> {
    match ids {
        [] => Ok(()),
        // The order of one is no question.
        [only] => remove_noted(files, &[*only]),
        _ => {
            replace_file(files, RETIRING_FILE, &encode(ids)).map_err(about(RETIRING_FILE))?;
            remove_noted(files, ids)?;
            forget(files).map_err(about(RETIRING_FILE))
        }
    }
}

fn about(name: &str) -> impl FnOnce(io::Error) -> (String, io::Error) {
    let name = name.to_owned();
    move |source| (name, source)
}

fn remove_noted(files: &Arc<dyn Files>, ids: &[u32]) -> Result<(), (String, io::Error)> {
    for &id in ids {
        let name = data_file_name(id);
        forget_sum(files, id).map_err(about(&name))?;
        match files.remove(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(about(&name))?,
        }
    }
    files.sync_directory("").map_err(about(""))
}

/// Goes on where a crash stopped. Only before the journal is looked at: a file of the same name that comes later is another one.
pub(crate) fn finish(files: &Arc<dyn Files>) -> Result<(), (String, io::Error)> {
    let bytes_max = FRAME_BYTES + 4 * TOGETHER_MAX;
    let content = match read_small_file(files, RETIRING_FILE, bytes_max) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Some(Vec::new()),
        content => content.map_err(about(RETIRING_FILE))?,
    };
    let Some(content) = content else { return Ok(()) };
    match decode(&content) {
        Some(mut ids) => {
            // The newest is never deleted.
            let directory = Directory::list(files.clone()).map_err(about(""))?;
            let newest = directory.ids.last().copied().unwrap_or_default();
            ids.retain(|&id| id < newest);
            remove_noted(files, &ids)?;
            info!(files = ids.len(), "the deletion of data files that a crash interrupted is finished");
        }
        // The index asks for them again, one after the other.
        None => {
            warn!(file = files.describe(RETIRING_FILE), "which data files were being deleted is unreadable")
        }
    }
    forget(files).map_err(about(RETIRING_FILE))
}

/// Nothing is being deleted any more: whatever has such a name from here on stays.
pub(crate) fn forget(files: &Arc<dyn Files>) -> io::Result<()> {
    if files.exists(RETIRING_FILE)? {
        files.remove(RETIRING_FILE)?;
        files.sync_directory("replication")?;
    }
    Ok(())
}

fn encode(ids: &[u32]) -> BytesMut {
    let mut out = BytesMut::with_capacity(FRAME_BYTES + 4 * ids.len());
    out.put_slice(MAGIC);
    // At most TOGETHER_MAX.
    out.put_u32(ids.len() as u32);
    ids.iter().for_each(|&id| out.put_u32(id));
    let sum = xxh3_64(&out);
    out.put_u64(sum);
    out
}

fn decode(content: &[u8]) -> Option<Vec<u32>> {
    let (body, sum) = content.split_last_chunk::<8>()?;
    let (count, ids) = body.strip_prefix(MAGIC)?.split_first_chunk::<4>()?;
    let (ids, rest) = ids.as_chunks::<4>();
    let is_whole = rest.is_empty() && ids.len() as u64 == u64::from(u32::from_be_bytes(*count));
    (is_whole && xxh3_64(body) == u64::from_be_bytes(*sum))
        .then(|| ids.iter().map(|&id| u32::from_be_bytes(id)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_being_deleted_reads_back(
            ids: Vec<u32>,
            flip in 1u8..,
            at: prop::sample::Index,
            any: Vec<u8>,
        ) {
            let mut content = encode(&ids);
            prop_assert_eq!(decode(&content), Some(ids));
            let at = at.index(content.len());
            content[at] ^= flip;
            prop_assert_eq!(decode(&content), None);
            let _ = decode(&any);
        }
    }
}
