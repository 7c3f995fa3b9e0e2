use std::fmt;

/// Place of a record: data file id and byte offset of the record header inside `db-<file>.log`.
///
/// Orders by file, then offset, as `kahadb-format.md` does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Location {
    /// Number N of `db-N.log`.
    pub file: u32,
    /// Byte offset inside the file; below 2 GiB because upstream's offsets are signed.
    pub offset: u32,
}

impl Location {
    /// The place `offset` bytes into file `file`.
    pub const fn new(file: u32, offset: u32) -> Self {
        Self { file, offset }
    }

    /// The same place as one number.
    pub const fn lsn(self) -> Lsn {
        Lsn(((self.file as u64) << 32) | self.offset as u64)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.offset)
    }
}

/// A text that is not `file:offset`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a location; write file:offset")]
pub struct ParseLocationError(pub String);

impl std::str::FromStr for Location {
    type Err = ParseLocationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseLocationError(text.to_owned());
        let (file, offset) = text.split_once(':').ok_or_else(wrong)?;
        Ok(Self::new(file.parse().map_err(|_| wrong())?, offset.parse().map_err(|_| wrong())?))
    }
}

/// Journal position: `file << 32 | offset`. The same on all nodes, because journals are byte-identical.
///
/// `Lsn(0)` lies before everything: file ids start at 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before everything.
    pub const ZERO: Self = Self(0);

    /// The file and offset that this number stands for.
    pub const fn location(self) -> Location {
        Location { file: (self.0 >> 32) as u32, offset: (self.0 & 0xffff_ffff) as u32 }
    }

    /// The data file's id.
    pub const fn file(self) -> u32 {
        self.location().file
    }

    /// The byte offset in the data file.
    pub const fn offset(self) -> u32 {
        self.location().offset
    }
}

impl From<Location> for Lsn {
    fn from(location: Location) -> Self {
        location.lsn()
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.location().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_and_its_number_are_the_same_place() {
        for at in [Location::new(0, 0), Location::new(1, 33), Location::new(u32::MAX, u32::MAX)] {
            assert_eq!(at.lsn().location(), at);
            assert_eq!(at.to_string().parse(), Ok(at));
        }
        assert!(Location::new(1, u32::MAX).lsn() < Location::new(2, 0).lsn());
    }

    #[test]
    fn a_text_that_is_no_location_is_refused() {
        for text in ["", "1", "1:", ":2", "1:2:3", "-1:2", "4294967296:0"] {
            assert_eq!(text.parse::<Location>(), Err(ParseLocationError(text.to_owned())));
        }
    }
}
