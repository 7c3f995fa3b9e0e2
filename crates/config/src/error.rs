use std::fmt;
use std::io;

use crate::verdict::Verdict;

/// Why there are no settings. Each names the file, and the line where there is one.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The name of the file is not one.
    #[error("{0}")]
    Location(String),
    /// The file could not be read.
    #[error("{file}: {source}")]
    Read {
        /// Which.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// Larger than [`FILE_BYTES_MAX`](crate::FILE_BYTES_MAX).
    #[error("{file}: {bytes} bytes, more than the {} of a configuration file", crate::FILE_BYTES_MAX)]
    TooLarge {
        /// Which.
        file: String,
        /// Its size.
        bytes: usize,
    },
    /// Not XML, or with a DTD.
    #[error("{file}:{line}: {message}")]
    Syntax {
        /// Which.
        file: String,
        /// Counts from 1.
        line: u32,
        /// What the parser says.
        message: String,
    },
    /// Some of what the files say cannot be done.
    #[error("{0}")]
    Refused(Refusals),
}

/// All that was refused, a line each; at least one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusals(pub Vec<Verdict>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, refusal) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            refusal.fmt(f)?;
        }
        Ok(())
    }
}
