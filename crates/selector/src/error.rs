//! Why a text is no selector.

/// Why a text is no selector. Positions are bytes from the start of the text, its prefixes included.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectorError {
    /// Nothing but blanks, comments and prefixes.
    #[error("selector is empty")]
    Empty,
    /// Longer than [`TEXT_BYTES_MAX`](crate::TEXT_BYTES_MAX).
    #[error("selector has {bytes} bytes, the limit is {limit}")]
    TooLong {
        /// Length of the text.
        bytes: usize,
        /// The limit that it exceeds.
        limit: usize,
    },
    /// Nested deeper than [`DEPTH_MAX`](crate::DEPTH_MAX).
    #[error("selector nests deeper than {limit} levels at byte {at}")]
    TooDeep {
        /// Where the first expression beyond the limit starts.
        at: usize,
        /// The limit that it exceeds.
        limit: usize,
    },
    /// Something else than the grammar has here.
    #[error("expected {expected} at byte {at}, found {found}")]
    Unexpected {
        /// Where it is.
        at: usize,
        /// What could have been here.
        expected: &'static str,
        /// What is here, shortened.
        found: String,
    },
    /// A character that no part of a selector starts with.
    #[error("character {found:?} at byte {at} has no meaning in a selector")]
    UnexpectedCharacter {
        /// Where it is.
        at: usize,
        /// The character.
        found: char,
    },
    /// A string without its closing quote.
    #[error("string at byte {at} has no closing quote")]
    UnterminatedString {
        /// Where the string starts.
        at: usize,
    },
    /// A `/*` without `*/`.
    #[error("comment at byte {at} has no end")]
    UnterminatedComment {
        /// Where the comment starts.
        at: usize,
    },
    /// A whole number that does not fit in a Java long.
    #[error("number at byte {at} does not fit in 64 bits")]
    NumberOutOfRange {
        /// Where the number starts.
        at: usize,
    },
    /// A number or a string where only TRUE or FALSE make sense.
    #[error("expression at byte {at} is no condition")]
    NotCondition {
        /// Where the expression starts.
        at: usize,
    },
    /// An operand that this operator cannot compare.
    #[error("operand at byte {at} cannot be compared by {operator}")]
    NotComparable {
        /// Where the operand starts.
        at: usize,
        /// The operator that was to compare it.
        operator: &'static str,
    },
    /// The left side of `IN` is no field.
    #[error("expression at byte {at} is no field name, which IN needs")]
    NotField {
        /// Where the left side starts.
        at: usize,
    },
    /// The text after `ESCAPE` is not exactly one character.
    #[error("escape at byte {at} has {chars} characters instead of one")]
    EscapeLength {
        /// Where the string starts.
        at: usize,
        /// How many characters it has.
        chars: usize,
    },
    /// A `LIKE` pattern longer than [`PATTERN_BYTES_MAX`](crate::PATTERN_BYTES_MAX).
    #[error("pattern at byte {at} has {bytes} bytes, the limit is {limit}")]
    PatternTooLong {
        /// Where the pattern starts.
        at: usize,
        /// Its length.
        bytes: usize,
        /// The limit that it exceeds.
        limit: usize,
    },
    /// Something that other selector languages have, and this one has not.
    #[error("{feature} at byte {at} is not supported")]
    Unsupported {
        /// Where it starts.
        at: usize,
        /// What it is.
        feature: &'static str,
    },
}
