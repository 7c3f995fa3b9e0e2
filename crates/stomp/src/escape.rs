//! Header escapes (STOMP 1.1 "Value Encoding", 1.2 the same), and the small writers that frames are made of.

use bytes::{BufMut, BytesMut};

use crate::Version;

/// What a byte stands for after a backslash. Undefined escapes are `None`.
fn unescaped(byte: u8, version: Version) -> Option<u8> {
    match byte {
        b'n' => Some(b'\n'),
        b'c' => Some(b':'),
        b'\\' => Some(b'\\'),
        b'r' if version == Version::V1_2 => Some(b'\r'),
        _ => None,
    }
}

/// Are all escapes in `raw` defined?
pub(crate) fn check_escapes(raw: &[u8], version: Version) -> bool {
    let mut bytes = raw.iter();
    while bytes.by_ref().any(|&byte| byte == b'\\') {
        if bytes.next().and_then(|&byte| unescaped(byte, version)).is_none() {
            return false;
        }
    }
    true
}

/// Resolves escapes that [`check_escapes`] has accepted.
pub(crate) fn unescape(raw: &[u8]) -> Vec<u8> {
    let (mut text, mut bytes) = (Vec::with_capacity(raw.len()), raw.iter());
    while let Some(&byte) = bytes.next() {
        if byte != b'\\' {
            text.push(byte);
        } else if let Some(&escape) = bytes.next() {
            text.push(unescaped(escape, Version::V1_2).unwrap_or(escape));
        }
    }
    text
}

/// What the bytes of a header must be written as; 1.0 has no escapes, so there a blank takes the place of a line end.
/// A NUL would end the frame for most clients, whatever the version.
fn escaped(byte: u8, version: Version) -> Option<&'static [u8]> {
    match (byte, version) {
        (0, _) | (b'\n', Version::V1_0) => Some(b" "),
        (_, Version::V1_0) => None,
        (b'\n', _) => Some(br"\n"),
        (b':', _) => Some(br"\c"),
        (b'\\', _) => Some(br"\\"),
        (b'\r', Version::V1_2) => Some(br"\r"),
        _ => None,
    }
}

/// Appends a header's value.
#[inline]
pub(crate) fn put_value(out: &mut BytesMut, value: &[u8], version: Version) {
    if !value.iter().any(|byte| matches!(byte, 0 | b'\n' | b'\r' | b':' | b'\\')) {
        return out.extend_from_slice(value);
    }
    put_escaped(out, value, version);
}

#[cold]
fn put_escaped(out: &mut BytesMut, value: &[u8], version: Version) {
    for &byte in value {
        match escaped(byte, version) {
            Some(text) => out.extend_from_slice(text),
            None => out.put_u8(byte),
        }
    }
}

/// Appends a header line whose name needs no escapes.
pub(crate) fn put_header(out: &mut BytesMut, name: &str, value: &[u8], version: Version) {
    out.extend_from_slice(name.as_bytes());
    out.put_u8(b':');
    put_value(out, value, version);
    out.put_u8(b'\n');
}

/// Appends a header line with any name. In 1.0 a colon in a name cannot be told from the one after it: `_` stands there.
pub(crate) fn put_any_header(out: &mut BytesMut, name: &[u8], value: &[u8], version: Version) {
    let start = out.len();
    put_value(out, name, version);
    if version == Version::V1_0 {
        for byte in out.iter_mut().skip(start).filter(|byte| **byte == b':') {
            *byte = b'_';
        }
    }
    out.put_u8(b':');
    put_value(out, value, version);
    out.put_u8(b'\n');
}

/// Appends `number` in decimal.
pub(crate) fn put_decimal(out: &mut BytesMut, number: i64) {
    if number < 0 {
        out.put_u8(b'-');
    }
    put_unsigned(out, number.unsigned_abs());
}

/// Appends `number` in decimal.
pub(crate) fn put_unsigned(out: &mut BytesMut, mut number: u64) {
    // 2^64 has 20 digits.
    let mut digits = [0u8; 20];
    let mut used = 0;
    for place in digits.iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        number /= 10;
        used += 1;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.last_chunk::<20>().map_or(&[][..], |all| all.split_at(20 - used).1));
}

/// Appends a header line with a number.
pub(crate) fn put_number(out: &mut BytesMut, name: &str, number: i64) {
    out.extend_from_slice(name.as_bytes());
    out.put_u8(b':');
    put_decimal(out, number);
    out.put_u8(b'\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(value: &[u8], version: Version) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_value(&mut out, value, version);
        out.to_vec()
    }

    #[test]
    fn each_version_escapes_what_it_can() {
        let value = b"a:b\\c\nd\re\0";
        assert_eq!(written(value, Version::V1_0), b"a:b\\c d\re ");
        assert_eq!(written(value, Version::V1_1), b"a\\cb\\\\c\\nd\re ");
        assert_eq!(written(value, Version::V1_2), b"a\\cb\\\\c\\nd\\re ");
    }

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 7, 10, -1, i64::MIN, i64::MAX] {
            let mut out = BytesMut::new();
            put_decimal(&mut out, number);
            assert_eq!(out, number.to_string());
        }
    }

    proptest! {
        /// What 1.1 and 1.2 write, they read back.
        #[test]
        fn escaping_is_undone_by_unescaping(value in "[^\0\r]{0,40}", carriage_return in any::<bool>()) {
            for version in [Version::V1_1, Version::V1_2] {
                let value = if carriage_return && version == Version::V1_2 { format!("{value}\r") } else { value.clone() };
                let raw = written(value.as_bytes(), version);
                prop_assert!(check_escapes(&raw, version));
                prop_assert!(!raw.contains(&b'\n') && !raw.contains(&b':'));
                prop_assert_eq!(unescape(&raw), value.as_bytes());
            }
        }
    }
}
