//! Small files that are replaced as a whole.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use kahawai_env::{Files, OpenMode, read_full_at};
use kahawai_types::Lsn;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of a file that holds a position.
pub const POSITION_FILE_BYTES: usize = 4 + 8 + 8;

/// The content of a file that holds a position: who wrote it for what, the position, XXH3-64 of both.
pub fn encode_position(magic: &[u8; 4], lsn: Lsn) -> BytesMut {
    let mut out = BytesMut::with_capacity(POSITION_FILE_BYTES);
    out.put_slice(magic);
    out.put_u64(lsn.0);
    let sum = xxh3_64(&out);
    out.put_u64(sum);
    out
}

/// Reads it; `None` if it is not what was written.
pub fn decode_position(magic: &[u8; 4], content: &[u8]) -> Option<Lsn> {
    let (body, sum) = content.split_last_chunk::<8>()?;
    let lsn = body.strip_prefix(magic)?.try_into().ok()?;
    (xxh3_64(body) == u64::from_be_bytes(*sum)).then(|| Lsn(u64::from_be_bytes(lsn)))
}

/// Replaces a small file: written aside, flushed, renamed, its directory flushed. A crash leaves the old content or the new.
pub fn replace_file(files: &Arc<dyn Files>, name: &str, content: &[u8]) -> io::Result<()> {
    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
    if !directory.is_empty() {
        files.create_directory(directory)?;
    }
    let aside = format!("{name}.tmp");
    let file = files.open(&aside, OpenMode::Write)?;
    file.set_len(0)?;
    file.write_at(content, 0)?;
    file.sync_all()?;
    files.rename(&aside, name)?;
    files.sync_directory(directory)
}

/// All of a small file; `None` if there is none, an error if it is longer than `bytes_max`.
pub fn read_small_file(files: &Arc<dyn Files>, name: &str, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match files.open(name, OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let Some(length) = usize::try_from(file.len()?).ok().filter(|&length| length <= bytes_max) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than such a file can be"));
    };
    let mut content = vec![0; length];
    let count = read_full_at(&*file, &mut content, 0)?;
    content.truncate(count);
    Ok(Some(content))
}
