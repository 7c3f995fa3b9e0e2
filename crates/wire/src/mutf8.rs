//! Java's modified UTF-8: U+0000 is `C0 80`, and code points above U+FFFF are two three-byte surrogates.

/// Whether standard and modified UTF-8 agree on these bytes: no NUL, and nothing that only one of them has.
pub fn is_plain_utf8(bytes: &[u8]) -> bool {
    // C0 = the modified NUL, ED = perhaps a surrogate, F0.. = four-byte forms.
    !bytes.iter().any(|&b| b == 0 || b == 0xc0 || b == 0xed || b >= 0xf0)
}

/// Length of `text` in modified UTF-8.
pub fn mutf8_len(text: &str) -> usize {
    text.chars()
        .map(|c| match u32::from(c) {
            1..=0x7f => 1,
            0 | 0x80..=0x7ff => 2,
            0x800..=0xffff => 3,
            _ => 6,
        })
        .sum()
}

/// Appends `text` in modified UTF-8.
pub fn encode_mutf8(text: &str, out: &mut bytes::BytesMut) {
    if is_plain_utf8(text.as_bytes()) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    for c in text.chars() {
        let mut units = [0u16; 2];
        match c {
            '\0' => out.extend_from_slice(&[0xc0, 0x80]),
            c if u32::from(c) <= 0xffff => {
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            c => {
                for &mut unit in c.encode_utf16(&mut units) {
                    let [high, low] = unit.to_be_bytes();
                    out.extend_from_slice(&[
                        0xe0 | (high >> 4),
                        0x80 | ((high & 0x0f) << 2) | (low >> 6),
                        0x80 | (low & 0x3f),
                    ]);
                }
            }
        }
    }
}

/// Decodes modified UTF-8 as Java's `readUTF` does; `None` where it is malformed.
///
/// A lone surrogate, which a Java string may hold, becomes U+FFFD.
pub fn mutf8_to_string(bytes: &[u8]) -> Option<String> {
    let mut units = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        let continuation = |b: u8| (b & 0xc0 == 0x80).then_some(u16::from(b & 0x3f));
        rest = match first >> 4 {
            0..=7 => {
                units.push(u16::from(first));
                tail
            }
            12 | 13 => {
                let (&second, tail) = tail.split_first()?;
                units.push((u16::from(first & 0x1f) << 6) | continuation(second)?);
                tail
            }
            14 => {
                let (&[second, third], tail) = tail.split_first_chunk::<2>()?;
                units.push((u16::from(first & 0x0f) << 12) | (continuation(second)? << 6) | continuation(third)?);
                tail
            }
            _ => return None,
        };
    }
    Some(String::from_utf16_lossy(&units))
}
