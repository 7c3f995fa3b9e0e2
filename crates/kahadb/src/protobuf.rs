//! The little of protocol buffers that KahaDB needs: walking fields, and lengths before bytes.

use bytes::{BufMut, Bytes, BytesMut};
use kahawai_message::Text;
use kahawai_wire::{WireError, put_varint64, varint64_len};

/// One field's value. Nested messages, texts and byte strings look alike on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Four or eight bytes of a kind that KahaDB never writes.
    Fixed,
}

/// Walks the fields of one message. Positions in errors count from the message's first byte.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { input, at: 0 }
    }

    /// The next field's number and value; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, WireError> {
        if self.at >= self.input.len() {
            return Ok(None);
        }
        let at = self.at;
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length_at = self.at;
                let length = self.varint()?;
                let length = usize::try_from(length)
                    .map_err(|_| WireError::Length { at: length_at, length: length.cast_signed() })?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            // Groups: given up by protobuf before KahaDB was written.
            other => return Err(WireError::Unexpected { what: "wire type", value: other.cast_signed(), at }),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let taken = rest.get(..count).ok_or(WireError::Short {
            at: self.at,
            wanted: count,
            available: rest.len(),
        })?;
        self.at += count;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let (value, length) =
            varint(self.input.get(self.at..).unwrap_or_default()).ok_or(WireError::Varint { at: self.at })?;
        self.at += length;
        Ok(value)
    }
}

/// The varint at the front of `input` and its length. `None` if it does not end, or is wider than 64 bits.
pub(crate) fn varint(input: &[u8]) -> Option<(u64, usize)> {
    // Tags, and most lengths and numbers, fit one byte.
    if let Some(&byte) = input.first()
        && byte < 0x80
    {
        return Some((byte.into(), 1));
    }
    let mut value = 0u64;
    for (index, &byte) in input.iter().take(10).enumerate() {
        if index == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            return Some((value, index + 1));
        }
    }
    None
}

/// An `int32` as protobuf reads it: the low half of the varint.
pub(crate) const fn int32(value: u64) -> i32 {
    (value & 0xffff_ffff) as u32 as i32
}

/// An `int64`.
pub(crate) const fn int64(value: u64) -> i64 {
    value.cast_signed()
}

/// `part`, which lies in `whole`, as a text view.
pub(crate) fn text(whole: &Bytes, part: &[u8]) -> Result<Text, WireError> {
    Text::try_from(whole.slice_ref(part)).map_err(|_| WireError::Utf8 { at: offset(whole, part) })
}

/// Where `part` begins in `whole`.
pub(crate) fn offset(whole: &Bytes, part: &[u8]) -> usize {
    (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize)
}

/// Tag of a length-delimited field.
pub(crate) const fn bytes_tag(field: u8) -> u8 {
    field << 3 | 2
}

/// Tag of a varint field.
pub(crate) const fn varint_tag(field: u8) -> u8 {
    field << 3
}

/// Bytes that a length-delimited field of `length` bytes takes, tag included.
pub(crate) const fn bytes_field_len(length: usize) -> usize {
    1 + varint64_len(length as u64) + length
}

/// Appends a length-delimited field.
pub(crate) fn put_bytes_field(field: u8, value: &[u8], out: &mut BytesMut) {
    put_bytes_header(field, value.len(), out);
    out.extend_from_slice(value);
}

/// Appends tag and length of a length-delimited field whose bytes follow.
pub(crate) fn put_bytes_header(field: u8, length: usize, out: &mut BytesMut) {
    out.put_u8(bytes_tag(field));
    put_varint64(length as u64, out);
}

/// Bytes that [`put_int64_field`] appends.
pub(crate) const fn int64_field_len(value: i64) -> usize {
    1 + varint64_len(value.cast_unsigned())
}

/// Appends an `int64` or `int32` field.
pub(crate) fn put_int64_field(field: u8, value: i64, out: &mut BytesMut) {
    out.put_u8(varint_tag(field));
    put_varint64(value.cast_unsigned(), out);
}

/// Appends a `bool` field of two bytes.
pub(crate) fn put_bool_field(field: u8, value: bool, out: &mut BytesMut) {
    out.put_u8(varint_tag(field));
    out.put_u8(value.into());
}

/// Replaces the varint `old` at `at` by `new`, moving what follows if it has another width.
pub(crate) fn replace_varint(out: &mut BytesMut, at: usize, old: usize, new: usize) {
    let (old_width, new_width) = (varint64_len(old as u64), varint64_len(new as u64));
    if new_width != old_width {
        let end = out.len();
        if new_width > old_width {
            out.resize(end + new_width - old_width, 0);
        }
        out.copy_within(at + old_width..end, at + new_width);
        if new_width < old_width {
            out.truncate(end - (old_width - new_width));
        }
    }
    let mut rest = new as u64;
    for byte in out.iter_mut().skip(at).take(new_width) {
        *byte = (rest & 0x7f) as u8 | if rest > 0x7f { 0x80 } else { 0 };
        rest >>= 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_varint_moves_what_follows_only_if_its_width_changes() {
        for old in [0, 127, 128, 16_383, 16_384] {
            for new in [0, 127, 128, 16_383, 16_384, usize::MAX] {
                let mut out = BytesMut::from(&b"head"[..]);
                put_varint64(old as u64, &mut out);
                out.extend_from_slice(b"tail");
                replace_varint(&mut out, 4, old, new);
                let mut expected = BytesMut::from(&b"head"[..]);
                put_varint64(new as u64, &mut expected);
                expected.extend_from_slice(b"tail");
                assert_eq!(out, expected, "{old} to {new}");
            }
        }
    }

    #[test]
    fn unknown_fields_of_every_wire_type_but_groups_are_stepped_over() {
        let mut fields =
            Fields::new(&[0x08, 0x96, 0x01, 0x11, 1, 2, 3, 4, 5, 6, 7, 8, 0x1d, 1, 2, 3, 4, 0x22, 1, 9]);
        assert_eq!(fields.next(), Ok(Some((1, Value::Varint(150)))));
        assert_eq!(fields.next(), Ok(Some((2, Value::Fixed))));
        assert_eq!(fields.next(), Ok(Some((3, Value::Fixed))));
        assert_eq!(fields.next(), Ok(Some((4, Value::Bytes(&[9])))));
        assert_eq!(fields.next(), Ok(None));
        let group = Fields::new(&[0x0b]).next();
        assert_eq!(group, Err(WireError::Unexpected { what: "wire type", value: 3, at: 0 }));
    }
}
