//! Message selectors: the conditional expressions of JMS 1.1, section 3.8.1, parsed once and evaluated for each
//! message.
//!
//! ```
//! use kahawai_selector::{Fields, Selector, Value};
//!
//! struct Order;
//! impl Fields for Order {
//!     fn field(&self, name: &str) -> Value<'_> {
//!         match name {
//!             "colour" => Value::from("red"),
//!             "weight" => Value::Int(2500),
//!             _ => Value::Null,
//!         }
//!     }
//! }
//!
//! let heavy = Selector::parse("weight BETWEEN 1000 AND 5000 AND colour IN ('red', 'blue')")?;
//! assert!(heavy.matches(&Order));
//! assert_eq!(Selector::parse("colour = missing")?.evaluate(&Order), None);
//! # Ok::<(), kahawai_selector::SelectorError>(())
//! ```
//!
//! What holds:
//! - Neither a selector nor a message makes this crate panic, recurse past [`DEPTH_MAX`] or work without bound:
//!   text ([`TEXT_BYTES_MAX`]), `LIKE` patterns ([`PATTERN_BYTES_MAX`]) and concatenations
//!   ([`CONCATENATION_BYTES_MAX`]) have limits, and matching a pattern costs at most its length times that of
//!   the value.
//! - Logic is three-valued: `None` is UNKNOWN, and only TRUE selects a message.
//! - Evaluation allocates only where a selector concatenates strings.
//!
//! Where JMS says what happens, JMS holds; where it is silent, `ActiveMQ` 5.17 does:
//! - *Grammar.* `NOT` binds looser than comparisons and tighter than `AND` (JMS; `ActiveMQ` applies it to the
//!   next operand alone, so that its `NOT a = 1` is never true). As right operand of another operator, as in `a
//!   = NOT b`, it takes one operand. `=`, `<>` and `IS` bind looser than `<`, `LIKE`, `BETWEEN` and `IN`. There
//!   is no `!=`.
//! - *Comments.* `/* … */`, and `--` up to the end of its line, if a line break ends it: without one, `--` is
//!   two minus signs, as in `5--3`.
//! - *Names* are letters, digits, `_` and `$`, case-sensitive. Reserved words are not, and are no names.
//! - *Literals.* A whole number is an int if it fits, else a long, whatever its suffix (`L` also after
//!   hexadecimal and octal numbers, as in Java); outside of long it is an error. `0x…` has no negative values.
//!   A number with point, exponent or suffix `d` is a double, with suffix `f` a float.
//! - *Comparisons* promote byte, short, int, long, float, double in this order, whichever side they are on.
//!   `NULL` on either side is UNKNOWN, unlike types are FALSE for every operator, `<>` included. Literals
//!   compared by `<`, `>`, `BETWEEN` must be numbers; fields that hold two strings are ordered by UTF-16 code
//!   unit, two booleans with FALSE first. Floating point is ordered as Java's `Double.compareTo` does: NaN
//!   equals itself and is the greatest, -0.0 is less than 0.0.
//! - *Arithmetic* on ints and longs wraps. `/` and `%` are always done in double, so `5 / 2` is 2.5, division
//!   by zero an infinity or NaN. `+` after a string concatenates. What has no meaning, as `'a' - 1`, is `NULL`.
//! - *Conditions.* A field alone is a condition: FALSE if it holds no boolean. `LIKE` on anything but a string
//!   is FALSE (so `NOT LIKE` is TRUE), `IN` and `NOT IN` are UNKNOWN. An `ESCAPE` character escapes `%`, `_`
//!   and itself, and is an ordinary character before any other.
//!
//! Two prefixes, in any order, change the rest. `convert_string_expressions:` lets a string be compared with a
//! number or boolean if it reads as a value of exactly that type (`ActiveMQ` puts it before every selector that
//! comes by STOMP). `hyphenated_props:` lets names contain `-`, so that subtraction needs spaces (known from
//! Artemis, not from Classic).
//!
//! `XPATH`, `XQUERY`, names in double quotes and function calls (`REGEX`, `INLIST`, …) are refused.
//!
//! Modules, in reading order: `value` (what a selector reads), `token`, `parser`, `expression` (what is
//! evaluated), `pattern` (`LIKE`), `error`.

mod error;
mod expression;
mod parser;
mod pattern;
mod token;
mod value;

pub use error::SelectorError;
pub use expression::CONCATENATION_BYTES_MAX;
pub use parser::{DEPTH_MAX, TEXT_BYTES_MAX};
pub use pattern::PATTERN_BYTES_MAX;
pub use value::{Fields, Value};

use expression::{Condition, Scope};

/// A parsed selector. It is immutable and may be shared between threads; a clone copies it, so share it in an
/// `Arc`.
#[derive(Clone, Debug)]
pub struct Selector {
    text: Box<str>,
    condition: Condition,
    convert_strings: bool,
    identifiers: Box<[Box<str>]>,
}

impl Selector {
    /// Parses `text`, prefixes included.
    ///
    /// # Errors
    ///
    /// [`SelectorError`] says where `text` is no selector and why. Blank text is [`SelectorError::Empty`]:
    /// "select everything" is to have no selector.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let parsed = parser::parse(text)?;
        Ok(Self {
            text: text.into(),
            condition: parsed.condition,
            convert_strings: parsed.convert_strings,
            identifiers: parsed.identifiers,
        })
    }

    /// Whether the selector selects a message with these fields: it is TRUE, not UNKNOWN.
    #[must_use]
    pub fn matches(&self, fields: &dyn Fields) -> bool {
        self.evaluate(fields) == Some(true)
    }

    /// The value of the selector for these fields; `None` is UNKNOWN.
    #[must_use]
    pub fn evaluate(&self, fields: &dyn Fields) -> Option<bool> {
        self.condition.evaluate(Scope { fields, convert_strings: self.convert_strings })
    }

    /// The text that was parsed, as it was given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The names of the fields that the selector reads, each once, in order of their bytes.
    pub fn identifiers(&self) -> impl ExactSizeIterator<Item = &str> {
        self.identifiers.iter().map(AsRef::as_ref)
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}
