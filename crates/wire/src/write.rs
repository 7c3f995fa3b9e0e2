use bytes::{BufMut, BytesMut};

/// Appends a protobuf varint.
pub fn put_varint64(mut value: u64, out: &mut BytesMut) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Appends a protobuf `int32`: negatives sign-extended to ten bytes, as upstream writes them.
pub fn put_varint32(value: i32, out: &mut BytesMut) {
    put_varint64(i64::from(value).cast_unsigned(), out);
}

/// Bytes that [`put_varint64`] appends.
pub const fn varint64_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Bytes that [`put_varint32`] appends.
pub const fn varint32_len(value: i32) -> usize {
    varint64_len((value as i64).cast_unsigned())
}

/// Appends Java's `writeUTF`: a 2-byte length and modified UTF-8. `false`, and nothing appended, beyond 65 535 bytes.
#[must_use]
pub fn put_mutf8_u16(text: &str, out: &mut BytesMut) -> bool {
    let length = crate::mutf8_len(text);
    let Ok(length) = u16::try_from(length) else {
        return false;
    };
    out.put_u16(length);
    crate::encode_mutf8(text, out);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reader;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_come_back_and_have_the_length_foretold(value: u64, small: i32) {
            let mut out = BytesMut::new();
            put_varint64(value, &mut out);
            prop_assert_eq!(out.len(), varint64_len(value));
            put_varint32(small, &mut out);
            prop_assert_eq!(out.len(), varint64_len(value) + varint32_len(small));
            let mut reader = Reader::new(out.freeze());
            prop_assert_eq!(reader.varint64(), Ok(value));
            prop_assert_eq!(reader.varint32(), Ok(small));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn java_texts_come_back(text: String) {
            let mut out = BytesMut::new();
            prop_assume!(put_mutf8_u16(&text, &mut out));
            prop_assert_eq!(out.len(), 2 + crate::mutf8_len(&text));
            let got = Reader::new(out.freeze()).java_utf();
            prop_assert_eq!(got.as_deref(), Ok(text.as_str()));
        }

        #[test]
        fn reading_any_bytes_never_panics(bytes: Vec<u8>) {
            let mut reader = Reader::new(bytes.into());
            let _ = reader.clone().varint64();
            let _ = reader.clone().varint_len();
            let _ = reader.clone().i32_len();
            let _ = reader.java_utf();
        }
    }

    #[test]
    fn negative_int32_takes_ten_bytes_like_upstream() {
        let mut out = BytesMut::new();
        put_varint32(-5, &mut out);
        assert_eq!(&out[..], [0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
    }
}
