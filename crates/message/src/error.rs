use kahawai_wire::WireError;

/// Why stored bytes could not be read, or a value cannot be stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    /// The bytes are not what they should be.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The 4-byte size prefix and the bytes disagree.
    #[error("size prefix says {declared}, {available} bytes follow")]
    Size {
        /// As read.
        declared: i64,
        /// What follows.
        available: usize,
    },
    /// Bytes after the last field.
    #[error("{count} bytes after the last field, which ends at byte {at}")]
    Trailing {
        /// Where the last field ends.
        at: usize,
        /// How many follow.
        count: usize,
    },
    /// A field that everything stored has is absent.
    #[error("{field} is absent at byte {at}")]
    Absent {
        /// Which field.
        field: &'static str,
        /// Where it should be.
        at: usize,
    },
    /// More than its limit.
    #[error("{what} {found} exceeds the limit of {limit}")]
    Limit {
        /// What is too long, too many or too deep.
        what: &'static str,
        /// How much it is, or the first value known to be too much.
        found: usize,
        /// How much it may be.
        limit: usize,
    },
    /// Compressed content that does not inflate.
    #[error("malformed zlib stream")]
    Zlib,
    /// Compressed content that inflates to less than it declares.
    #[error("content declares {declared} bytes and inflates to {inflated}")]
    Inflated {
        /// As declared.
        declared: usize,
        /// As found.
        inflated: usize,
    },
    /// A body was asked for as what it is not.
    #[error("the body is {found:?}, not {wanted:?}")]
    BodyKind {
        /// What it was asked for as.
        wanted: crate::BodyKind,
        /// What it is.
        found: crate::BodyKind,
    },
}
