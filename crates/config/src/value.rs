//! Attribute values. Each function returns what is wrong as text for a verdict.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// `true` or `false`, in any case.
pub fn boolean(text: &str) -> Result<bool, String> {
    if text.eq_ignore_ascii_case("true") {
        Ok(true)
    } else if text.eq_ignore_ascii_case("false") {
        Ok(false)
    } else {
        Err(format!("'{text}' is neither true nor false"))
    }
}

/// A whole number within `range`.
pub fn number<T: FromStr + PartialOrd + Display>(text: &str, range: RangeInclusive<T>) -> Result<T, String> {
    let wrong = || format!("'{text}' is not a number from {} to {}", range.start(), range.end());
    // A sign is no digit, whatever Rust takes.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && range.contains(number)).ok_or_else(wrong)
}

/// Bytes: `32mb`, `1 gb`, `64k`, `100`. As ActiveMQ reads them, in powers of 1024.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size; write a number with b, kb, mb or gb");
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at_checked(digits).ok_or_else(wrong)?;
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)).ok_or_else(wrong)
}

/// Bytes within `range`.
pub fn bytes_within(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let bytes = bytes(text)?;
    if range.contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("'{text}' is not between {} and {} bytes", range.start(), range.end()))
    }
}

/// Something that is not empty and has no control characters: names, paths.
pub fn text(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        Err("it is empty".into())
    } else if text.contains(char::is_control) {
        Err(format!("'{}' has a control character", text.escape_default()))
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_activemqs() {
        for (text, expected) in [
            ("20 mb", 20 << 20),
            ("1 gb", 1 << 30),
            (" 32MB ", 32 << 20),
            ("62k", 62 << 10),
            ("100", 100),
            ("7b", 7),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "mb", "-1", "1.5gb", "1 tb", "99999999999999999999", "99999999999gb", "1 m b", "é"]
        {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_have_no_sign_and_stay_in_their_range() {
        assert_eq!(number("7", 0..=9u32), Ok(7));
        for text in ["", "+7", "-1", "10", "0x1", " 7", "7.0", "99999999999"] {
            assert!(number(text, 0..=9u32).is_err(), "{text}");
        }
    }
}
