//! Java's modified UTF-8: U+0000 is `C0 80`, and code points above U+FFFF are two three-byte surrogates.

use bytes::BytesMut;

/// What one step of the scans below looks at: no branch inside, so that it becomes a few vector instructions.
const CHUNK: usize = 64;

/// Whether standard and modified UTF-8 agree on these bytes: no NUL, and nothing that only one of them has.
pub fn is_plain_utf8(bytes: &[u8]) -> bool {
    // C0 = the modified NUL, ED = perhaps a surrogate, F0.. = four-byte forms.
    let special = |b: u8| b == 0 || b == 0xc0 || b == 0xed || b >= 0xf0;
    let any_special = |bytes: &[u8]| bytes.iter().fold(false, |found, &b| found | special(b));
    let (chunks, rest) = bytes.as_chunks::<CHUNK>();
    !any_special(rest) && !chunks.iter().any(|chunk| any_special(chunk))
}

/// Length of `text` in modified UTF-8. Equals `text.len()` exactly if both encodings of it are the same.
pub fn mutf8_len(text: &str) -> usize {
    // NUL grows from one byte to two, a four-byte form to six. A chunk's sum stays below 256.
    let growth =
        |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &b| sum + u8::from(b == 0) + 2 * u8::from(b >= 0xf0));
    let (chunks, rest) = text.as_bytes().as_chunks::<CHUNK>();
    text.len()
        + usize::from(growth(rest))
        + chunks.iter().map(|chunk| usize::from(growth(chunk))).sum::<usize>()
}

/// Where the first byte stands of the first character that modified UTF-8 makes longer.
fn first_grown(bytes: &[u8]) -> Option<usize> {
    let grown = |b: u8| b == 0 || b >= 0xf0;
    let (chunks, _) = bytes.as_chunks::<CHUNK>();
    let plain =
        chunks.iter().take_while(|chunk| !chunk.iter().fold(false, |found, &b| found | grown(b))).count();
    let from = plain * CHUNK;
    bytes.get(from..)?.iter().position(|&b| grown(b)).map(|at| from + at)
}

/// Appends `text` in modified UTF-8.
pub fn encode_mutf8(text: &str, out: &mut BytesMut) {
    // In valid UTF-8 these bytes only begin characters, so what lies between them is whole characters.
    let mut rest = text;
    while let Some(at) = first_grown(rest.as_bytes()) {
        let (plain, tail) = rest.split_at(at);
        out.extend_from_slice(plain.as_bytes());
        let mut chars = tail.chars();
        match chars.next() {
            None => {}
            Some('\0') => out.extend_from_slice(&[0xc0, 0x80]),
            Some(c) => {
                for &mut unit in c.encode_utf16(&mut [0; 2]) {
                    let [high, low] = unit.to_be_bytes();
                    let second = 0x80 | ((high & 0x0f) << 2) | (low >> 6);
                    out.extend_from_slice(&[0xe0 | (high >> 4), second, 0x80 | (low & 0x3f)]);
                }
            }
        }
        rest = chars.as_str();
    }
    out.extend_from_slice(rest.as_bytes());
}

/// Decodes modified UTF-8 as Java's `readUTF` does; `None` where it is malformed. Never longer than `bytes`.
///
/// A lone surrogate, which a Java string may hold, becomes U+FFFD.
pub fn mutf8_to_string(bytes: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    // A high surrogate that waits for its low one.
    let mut high = None;
    while let Some((unit, tail)) = split_first_unit(rest) {
        rest = tail;
        match (high.take(), unit) {
            (Some(first), 0xdc00..=0xdfff) => {
                text.extend(char::decode_utf16([first, unit]).flatten());
                continue;
            }
            (Some(_), _) => text.push(char::REPLACEMENT_CHARACTER),
            (None, _) => {}
        }
        match unit {
            0xd800..=0xdbff => high = Some(unit),
            _ => text.push(char::from_u32(unit.into()).unwrap_or(char::REPLACEMENT_CHARACTER)),
        }
    }
    if high.is_some() {
        text.push(char::REPLACEMENT_CHARACTER);
    }
    rest.is_empty().then_some(text)
}

/// The first UTF-16 unit and what follows; `None` at the end and where the bytes are malformed.
fn split_first_unit(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let continuation = |b: u8| (b & 0xc0 == 0x80).then_some(u16::from(b & 0x3f));
    let (&first, tail) = bytes.split_first()?;
    match first >> 4 {
        0..=7 => Some((first.into(), tail)),
        12 | 13 => {
            let (&second, tail) = tail.split_first()?;
            Some(((u16::from(first & 0x1f) << 6) | continuation(second)?, tail))
        }
        14 => {
            let (&[second, third], tail) = tail.split_first_chunk()?;
            Some((
                (u16::from(first & 0x0f) << 12) | (continuation(second)? << 6) | continuation(third)?,
                tail,
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(text: &str) -> Vec<u8> {
        let mut out = BytesMut::new();
        encode_mutf8(text, &mut out);
        out.to_vec()
    }

    #[test]
    fn nul_and_emoji_are_written_as_java_does() {
        assert_eq!(encoded("a\0é中😀z"), b"a\xc0\x80\xc3\xa9\xe4\xb8\xad\xed\xa0\xbd\xed\xb8\x80z");
        assert_eq!(mutf8_to_string(&encoded("a\0é中😀z")).as_deref(), Some("a\0é中😀z"));
    }

    #[test]
    fn lone_surrogates_are_replaced_one_by_one() {
        assert_eq!(mutf8_to_string(b"\xed\xa0\xbd").as_deref(), Some("\u{fffd}"));
        assert_eq!(mutf8_to_string(b"\xed\xb8\x80\xed\xa0\xbdx").as_deref(), Some("\u{fffd}\u{fffd}x"));
        assert_eq!(mutf8_to_string(b"\xed\xa0\xbd\xed\xa0\xbd\xed\xb8\x80").as_deref(), Some("\u{fffd}😀"));
    }

    #[test]
    fn four_byte_forms_and_cut_characters_are_refused() {
        for bytes in ["😀".as_bytes(), b"\x80", b"\xc3", b"\xe4\xb8", b"\xe4\xb8x", b"x\xff"] {
            assert_eq!(mutf8_to_string(bytes), None, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn texts_come_back_and_have_the_length_foretold(text in r"(?s)(\PC|[\x00a-zé\u{d7ff}\u{ffff}😀]){0,200}") {
            let bytes = encoded(&text);
            prop_assert_eq!(bytes.len(), mutf8_len(&text));
            prop_assert_eq!(bytes.len() == text.len(), bytes == text.as_bytes());
            prop_assert_eq!(mutf8_to_string(&bytes), Some(text));
        }

        #[test]
        fn decoding_never_grows(bytes: Vec<u8>) {
            if let Some(text) = mutf8_to_string(&bytes) {
                prop_assert!(text.len() <= bytes.len());
            }
        }

        /// Whatever length, and wherever in its chunk the special byte lies.
        #[test]
        fn plain_means_that_both_encodings_agree(mut bytes in prop::collection::vec(1..0x80u8, 1..200), at: prop::sample::Index) {
            prop_assert!(is_plain_utf8(&bytes));
            *at.get_mut(&mut bytes) = 0;
            prop_assert!(!is_plain_utf8(&bytes));
        }
    }
}
