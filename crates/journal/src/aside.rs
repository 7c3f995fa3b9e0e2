//! Small files that are replaced as a whole.

use std::io;
use std::sync::Arc;

use kahawai_env::{Files, OpenMode, read_full_at};

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
