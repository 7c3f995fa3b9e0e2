//! What a selector reads: the fields of a message and their values.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write as _;

/// What a selector asks of a message.
pub trait Fields {
    /// The value of the header field or property with this name, exactly as written; [`Value::Null`] if there
    /// is none.
    ///
    /// It is asked once for each time the selector mentions the name, until the result is known, so it should
    /// be cheap. Header fields (`JMSPriority`, …) are names like any other: `JMSDeliveryMode` is the string
    /// `PERSISTENT` or `NON_PERSISTENT`, a destination its qualified name (`queue://A`).
    fn field(&self, name: &str) -> Value<'_>;
}

/// The value of a field of a message: one of JMS's property types, or nothing.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Value<'a> {
    /// No such field, or a field without a value.
    #[default]
    Null,
    /// `boolean`.
    Bool(bool),
    /// `byte`.
    Byte(i8),
    /// `short`.
    Short(i16),
    /// `int`.
    Int(i32),
    /// `long`.
    Long(i64),
    /// `float`.
    Float(f32),
    /// `double`.
    Double(f64),
    /// `String`.
    String(Cow<'a, str>),
}

macro_rules! value_from {
    ($($from:ty => $variant:ident),*) => {$(
        impl From<$from> for Value<'_> {
            fn from(value: $from) -> Self {
                Self::$variant(value)
            }
        }
    )*};
}
value_from!(bool => Bool, i8 => Byte, i16 => Short, i32 => Int, i64 => Long, f32 => Float, f64 => Double);

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::String(Cow::Borrowed(text))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::String(Cow::Owned(text))
    }
}

/// `None` is [`Value::Null`].
impl<'a, T: Into<Value<'a>>> From<Option<T>> for Value<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A number, reduced to the types that comparisons and arithmetic distinguish.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Number {
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
}

impl Number {
    pub(crate) fn as_long(self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(value.into()),
            Self::Long(value) => Some(value),
            Self::Float(_) | Self::Double(_) => None,
        }
    }

    fn as_float(self) -> f32 {
        match self {
            Self::Int(value) => value as f32,
            Self::Long(value) => value as f32,
            Self::Float(value) => value,
            Self::Double(value) => value as f32,
        }
    }

    pub(crate) fn as_double(self) -> f64 {
        match self {
            Self::Int(value) => value.into(),
            Self::Long(value) => value as f64,
            Self::Float(value) => value.into(),
            Self::Double(value) => value,
        }
    }

    fn order(self, other: Self) -> Ordering {
        match (self.as_long(), other.as_long()) {
            (Some(left), Some(right)) => left.cmp(&right),
            _ if matches!(self, Self::Double(_)) || matches!(other, Self::Double(_)) => {
                java_order(self.as_double(), other.as_double())
            }
            _ => java_order(self.as_float().into(), other.as_float().into()),
        }
    }
}

impl Value<'_> {
    /// The same value, borrowed.
    pub(crate) fn by_ref(&self) -> Value<'_> {
        match self {
            Value::Null => Value::Null,
            Value::Bool(value) => Value::Bool(*value),
            Value::Byte(value) => Value::Byte(*value),
            Value::Short(value) => Value::Short(*value),
            Value::Int(value) => Value::Int(*value),
            Value::Long(value) => Value::Long(*value),
            Value::Float(value) => Value::Float(*value),
            Value::Double(value) => Value::Double(*value),
            Value::String(text) => Value::String(Cow::Borrowed(text)),
        }
    }

    pub(crate) fn number(&self) -> Option<Number> {
        match *self {
            Value::Byte(value) => Some(Number::Int(value.into())),
            Value::Short(value) => Some(Number::Int(value.into())),
            Value::Int(value) => Some(Number::Int(value)),
            Value::Long(value) => Some(Number::Long(value)),
            Value::Float(value) => Some(Number::Float(value)),
            Value::Double(value) => Some(Number::Double(value)),
            Value::Null | Value::Bool(_) | Value::String(_) => None,
        }
    }

    /// The order of two values of like types, `None` if their types are unlike or one is `NULL`.
    pub(crate) fn order(&self, other: &Self, convert_strings: bool) -> Option<Ordering> {
        match (self, other) {
            (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
            (Value::String(left), Value::String(right)) if left == right => Some(Ordering::Equal),
            (Value::String(left), Value::String(right)) => {
                Some(left.encode_utf16().cmp(right.encode_utf16()))
            }
            (Value::String(left), right) if convert_strings => right.parse_like(left)?.order(right, false),
            (left, Value::String(right)) if convert_strings => left.order(&left.parse_like(right)?, false),
            _ => Some(self.number()?.order(other.number()?)),
        }
    }

    /// `text` as a value of the type of `self`, the way Java's `valueOf` reads it.
    fn parse_like(&self, text: &str) -> Option<Value<'static>> {
        match self {
            Value::Bool(_) => Some(Value::Bool(text.eq_ignore_ascii_case("true"))),
            Value::Byte(_) => text.parse().ok().map(Value::Byte),
            Value::Short(_) => text.parse().ok().map(Value::Short),
            Value::Int(_) => text.parse().ok().map(Value::Int),
            Value::Long(_) => text.parse().ok().map(Value::Long),
            Value::Float(_) => decimal_text(text)?.parse().ok().map(Value::Float),
            Value::Double(_) => decimal_text(text)?.parse().ok().map(Value::Double),
            Value::Null | Value::String(_) => None,
        }
    }

    /// Appends the value as Java's concatenation writes it.
    pub(crate) fn append_to(&self, out: &mut String) {
        // Writing to a string does not fail.
        let _ = match self {
            Value::Null => write!(out, "null"),
            Value::Bool(value) => write!(out, "{value}"),
            Value::Byte(value) => write!(out, "{value}"),
            Value::Short(value) => write!(out, "{value}"),
            Value::Int(value) => write!(out, "{value}"),
            Value::Long(value) => write!(out, "{value}"),
            Value::Float(value) if in_plain_range(f64::from(*value)) => write!(out, "{value:?}"),
            Value::Float(value) => append_scientific(out, f64::from(*value), &format!("{value:E}")),
            Value::Double(value) if in_plain_range(*value) => write!(out, "{value:?}"),
            Value::Double(value) => append_scientific(out, *value, &format!("{value:E}")),
            Value::String(text) => out.write_str(text),
        };
    }
}

/// `Double.compareTo`; also `Float.compareTo`, because widening keeps the order.
fn java_order(left: f64, right: f64) -> Ordering {
    match (left.is_nan(), right.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => left.total_cmp(&right),
    }
}

/// What Rust has to parse where Java's `Double.valueOf` is given `text`: blanks and type suffix removed. `None`
/// where Rust would read what Java does not (`inf`, `nan`). Hexadecimal floating point is left out.
fn decimal_text(text: &str) -> Option<&str> {
    let text = text.trim_matches(|c| c <= ' ');
    if matches!(text.trim_start_matches(['+', '-']), "NaN" | "Infinity") {
        return Some(text);
    }
    let text = text.strip_suffix(['f', 'F', 'd', 'D']).unwrap_or(text);
    text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-')).then_some(text)
}

/// Where `Double.toString` writes no exponent, and Rust's debug format writes the same.
fn in_plain_range(value: f64) -> bool {
    value == 0.0 || (1e-3..1e7).contains(&value.abs())
}

/// `scientific` is `value` as Rust writes it; Java has a fraction in any case and names of its own for what is
/// not finite.
fn append_scientific(out: &mut String, value: f64, scientific: &str) -> std::fmt::Result {
    match scientific.split_once('E') {
        _ if value.is_nan() => out.write_str("NaN"),
        Some((digits, exponent)) if !digits.contains('.') => write!(out, "{digits}.0E{exponent}"),
        Some(_) => out.write_str(scientific),
        None => out.write_str(if value > 0.0 { "Infinity" } else { "-Infinity" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(left: impl Into<Value<'static>>, right: impl Into<Value<'static>>, expected: Option<Ordering>) {
        let (left, right) = (left.into(), right.into());
        assert_eq!(left.order(&right, false), expected, "{left:?} {right:?}");
        assert_eq!(right.order(&left, false), expected.map(Ordering::reverse), "{right:?} {left:?}");
    }

    fn check_converted(text: &'static str, other: impl Into<Value<'static>>, expected: Option<Ordering>) {
        let (text, other) = (Value::from(text), other.into());
        assert_eq!(text.order(&other, false), None);
        assert_eq!(text.order(&other, true), expected, "{text:?} {other:?}");
        assert_eq!(other.order(&text, true), expected.map(Ordering::reverse), "{other:?} {text:?}");
    }

    #[test]
    fn numbers_are_promoted_whichever_side_they_are_on() {
        check(1i8, 1i16, Some(Ordering::Equal));
        check(1i8, 2i32, Some(Ordering::Less));
        check(i64::MAX, i32::MAX, Some(Ordering::Greater));
        check(1.5f32, 1i32, Some(Ordering::Greater));
        check(1.1f32, 1.1f64, Some(Ordering::Greater));
        // Both become the same float.
        check(16_777_217i32, 16_777_216f32, Some(Ordering::Equal));
        check(i64::MAX, 9_223_372_036_854_775_807f32, Some(Ordering::Equal));
        check(i64::MAX, i64::MAX - 1, Some(Ordering::Greater));
    }

    #[test]
    fn floating_point_is_ordered_as_java_does() {
        check(f64::NAN, -f64::NAN, Some(Ordering::Equal));
        check(f64::NAN, f64::INFINITY, Some(Ordering::Greater));
        check(-0.0f64, 0i32, Some(Ordering::Less));
    }

    #[test]
    fn unlike_types_have_no_order() {
        check("1", 1i32, None);
        check(true, 1i32, None);
        check("true", true, None);
        check(Value::Null, 1i32, None);
        check(Value::Null, Value::Null, None);
    }

    #[test]
    fn strings_are_ordered_by_utf16_code_unit() {
        check("a", "b", Some(Ordering::Less));
        check("a", "aa", Some(Ordering::Less));
        check("\u{ff5e}", "\u{10000}", Some(Ordering::Greater));
    }

    #[test]
    fn strings_are_converted_to_exactly_the_other_type() {
        check_converted("5", 5i32, Some(Ordering::Equal));
        check_converted("+5", 4i8, Some(Ordering::Greater));
        check_converted("300", 5i8, None);
        check_converted("3000000000", 5i32, None);
        check_converted("3000000000", 5i64, Some(Ordering::Greater));
        check_converted("1.5", 1i32, None);
        check_converted(" 5", 5i32, None);
        check_converted("", 5i32, None);
        check_converted(" 1.5d ", 1.5f64, Some(Ordering::Equal));
        check_converted("1e1", 10f32, Some(Ordering::Equal));
        check_converted("-Infinity", 0f64, Some(Ordering::Less));
        check_converted("inf", 0f64, None);
        check_converted("nan", 0f64, None);
        check_converted("TRUE", true, Some(Ordering::Equal));
        check_converted("yes", false, Some(Ordering::Equal));
        check_converted("null", Value::Null, None);
    }

    #[test]
    fn numbers_are_written_as_java_does() {
        for (value, expected) in [
            (Value::Double(1.0), "1.0"),
            (Value::Double(-0.0), "-0.0"),
            (Value::Double(0.001), "0.001"),
            (Value::Double(0.0001), "1.0E-4"),
            (Value::Double(9_999_999.5), "9999999.5"),
            (Value::Double(1e7), "1.0E7"),
            (Value::Double(-1.25e10), "-1.25E10"),
            (Value::Double(f64::NAN), "NaN"),
            (Value::Double(f64::NEG_INFINITY), "-Infinity"),
            (Value::Float(1.1), "1.1"),
            (Value::Float(1.1e30), "1.1E30"),
            (Value::Long(-7), "-7"),
            (Value::Bool(true), "true"),
        ] {
            let mut out = String::new();
            value.append_to(&mut out);
            assert_eq!(out, expected);
        }
    }
}
