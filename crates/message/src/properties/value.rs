use bytes::{BufMut, Bytes, BytesMut};
use kahawai_wire::{Reader, WireError, encode_mutf8, mutf8_len, put_mutf8_u16};

use crate::scan::Scan;
use crate::{StoredError, Text, loose::STRING_BYTES_MAX};

/// How deep maps and lists may nest, as in ActiveMQ.
pub const DEPTH_MAX: usize = 127;

/// How many values one map or stream may hold, nested ones included.
pub const VALUES_MAX: usize = 1 << 20;

/// Java writes texts of fewer UTF-16 units with a 2-byte length, others with a 4-byte length.
const LONG_TEXT_UNITS_MIN: usize = 8191;

const NULL: u8 = 0;
const BOOL: u8 = 1;
const BYTE: u8 = 2;
const CHAR: u8 = 3;
const SHORT: u8 = 4;
const INT: u8 = 5;
const LONG: u8 = 6;
const DOUBLE: u8 = 7;
const FLOAT: u8 = 8;
const TEXT: u8 = 9;
const BYTES: u8 = 10;
const MAP: u8 = 11;
const LIST: u8 = 12;
const LONG_TEXT: u8 = 13;

/// A typed value.
#[derive(Clone, PartialEq, Debug)]
pub enum PropertyValue {
    /// Java's `null`.
    Null,
    /// A boolean.
    Bool(bool),
    /// A signed byte.
    Byte(i8),
    /// A UTF-16 unit.
    Char(u16),
    /// 16 bits.
    Short(i16),
    /// 32 bits.
    Int(i32),
    /// 64 bits.
    Long(i64),
    /// 64-bit floating point.
    Double(f64),
    /// 32-bit floating point.
    Float(f32),
    /// A text of any length.
    String(Text),
    /// Raw bytes.
    Bytes(Bytes),
    /// A nested map, in stored order.
    Map(Vec<(Text, PropertyValue)>),
    /// A nested list.
    List(Vec<PropertyValue>),
}

/// Appends a name. An error, and nothing appended, beyond what its 2-byte length can say.
pub(super) fn put_name(name: &str, out: &mut BytesMut) -> Result<(), StoredError> {
    if put_mutf8_u16(name, out) {
        return Ok(());
    }
    Err(StoredError::Limit { what: "property name", found: mutf8_len(name), limit: STRING_BYTES_MAX })
}

/// Appends `length` as an `int`.
pub(super) fn put_length(length: usize, out: &mut BytesMut) -> Result<(), StoredError> {
    let limit = i32::MAX as usize;
    let what = "property size";
    out.put_i32(i32::try_from(length).map_err(|_| StoredError::Limit { what, found: length, limit })?);
    Ok(())
}

/// Appends a text value, with a 2- or a 4-byte length by Java's rule.
pub(super) fn put_text(text: &str, out: &mut BytesMut) -> Result<(), StoredError> {
    // Fewer bytes than that are fewer units, and so are the bytes of most texts that are counted.
    if text.len() < LONG_TEXT_UNITS_MIN
        || text.encode_utf16().take(LONG_TEXT_UNITS_MIN).count() < LONG_TEXT_UNITS_MIN
    {
        out.put_u8(TEXT);
        return put_name(text, out);
    }
    out.put_u8(LONG_TEXT);
    put_length(mutf8_len(text), out)?;
    encode_mutf8(text, out);
    Ok(())
}

/// Appends a typed value. After an error `out` may hold part of it.
pub fn put_value(value: &PropertyValue, out: &mut BytesMut) -> Result<(), StoredError> {
    put_value_at(value, 0, out)
}

fn put_value_at(value: &PropertyValue, depth: usize, out: &mut BytesMut) -> Result<(), StoredError> {
    match value {
        PropertyValue::Null => out.put_u8(NULL),
        PropertyValue::Bool(v) => out.extend_from_slice(&[BOOL, u8::from(*v)]),
        PropertyValue::Byte(v) => out.extend_from_slice(&[BYTE, v.cast_unsigned()]),
        PropertyValue::Char(v) => {
            out.put_u8(CHAR);
            out.put_u16(*v);
        }
        PropertyValue::Short(v) => {
            out.put_u8(SHORT);
            out.put_i16(*v);
        }
        PropertyValue::Int(v) => {
            out.put_u8(INT);
            out.put_i32(*v);
        }
        PropertyValue::Long(v) => {
            out.put_u8(LONG);
            out.put_i64(*v);
        }
        PropertyValue::Double(v) => {
            out.put_u8(DOUBLE);
            out.put_f64(*v);
        }
        PropertyValue::Float(v) => {
            out.put_u8(FLOAT);
            out.put_f32(*v);
        }
        PropertyValue::String(v) => put_text(v, out)?,
        PropertyValue::Bytes(v) => {
            out.put_u8(BYTES);
            put_length(v.len(), out)?;
            out.extend_from_slice(v);
        }
        PropertyValue::Map(entries) => {
            let depth = deeper(depth)?;
            out.put_u8(MAP);
            put_length(entries.len(), out)?;
            for (name, value) in entries {
                put_name(name, out)?;
                put_value_at(value, depth, out)?;
            }
        }
        PropertyValue::List(values) => {
            let depth = deeper(depth)?;
            out.put_u8(LIST);
            put_length(values.len(), out)?;
            for value in values {
                put_value_at(value, depth, out)?;
            }
        }
    }
    Ok(())
}

fn deeper(depth: usize) -> Result<usize, StoredError> {
    if depth < DEPTH_MAX {
        return Ok(depth + 1);
    }
    Err(StoredError::Limit { what: "property depth", found: depth + 1, limit: DEPTH_MAX })
}

/// Checks a count against the bytes that are left for so many items. `None` = -1, Java's null.
fn checked_count(
    count: i32,
    at: usize,
    available: usize,
    item_bytes_min: usize,
) -> Result<Option<usize>, StoredError> {
    if count == -1 {
        return Ok(None);
    }
    let found = usize::try_from(count).map_err(|_| WireError::Length { at, length: count.into() })?;
    let limit = available / item_bytes_min;
    if found > limit {
        return Err(StoredError::Limit { what: "property count", found, limit });
    }
    Ok(Some(found))
}

/// Reads a count of items that have at least `item_bytes_min` bytes each.
pub(super) fn read_count(reader: &mut Reader, item_bytes_min: usize) -> Result<Option<usize>, StoredError> {
    let at = reader.position();
    checked_count(reader.i32()?, at, reader.remaining(), item_bytes_min)
}

/// [`read_count`] for a scan.
pub(super) fn scan_count(scan: &mut Scan<'_>, item_bytes_min: usize) -> Result<Option<usize>, StoredError> {
    let at = scan.position();
    checked_count(scan.i32()?, at, scan.remaining(), item_bytes_min)
}

/// Reads a typed value; it and those inside it are taken off `values_left`.
pub(super) fn read_value(reader: &mut Reader, values_left: &mut usize) -> Result<PropertyValue, StoredError> {
    read_value_at(reader, 0, values_left)
}

fn read_value_at(
    reader: &mut Reader,
    depth: usize,
    values_left: &mut usize,
) -> Result<PropertyValue, StoredError> {
    let Some(left) = values_left.checked_sub(1) else {
        return Err(StoredError::Limit { what: "property values", found: VALUES_MAX + 1, limit: VALUES_MAX });
    };
    *values_left = left;
    let at = reader.position();
    Ok(match reader.u8()? {
        NULL => PropertyValue::Null,
        BOOL => PropertyValue::Bool(reader.bool()?),
        BYTE => PropertyValue::Byte(reader.i8()?),
        CHAR => PropertyValue::Char(reader.u16()?),
        SHORT => PropertyValue::Short(reader.i16()?),
        INT => PropertyValue::Int(reader.i32()?),
        LONG => PropertyValue::Long(reader.i64()?),
        DOUBLE => PropertyValue::Double(f64::from_bits(reader.u64()?)),
        FLOAT => PropertyValue::Float(f32::from_bits(reader.u32()?)),
        TEXT => PropertyValue::String(reader.java_utf()?),
        BYTES => {
            let length = reader.i32_len()?;
            PropertyValue::Bytes(reader.bytes(length)?)
        }
        MAP => {
            let depth = deeper(depth)?;
            let Some(count) = read_count(reader, super::PROPERTY_BYTES_MIN)? else {
                return Ok(PropertyValue::Null);
            };
            // Not with this capacity: a value has one byte there, and forty here.
            let mut entries = Vec::new();
            for _ in 0..count {
                entries.push((reader.java_utf()?, read_value_at(reader, depth, values_left)?));
            }
            PropertyValue::Map(entries)
        }
        LIST => {
            let depth = deeper(depth)?;
            let Some(count) = read_count(reader, 1)? else {
                return Ok(PropertyValue::List(Vec::new()));
            };
            let mut values = Vec::new();
            for _ in 0..count {
                values.push(read_value_at(reader, depth, values_left)?);
            }
            PropertyValue::List(values)
        }
        LONG_TEXT => match reader.peek() {
            [0xff, 0xff, 0xff, 0xff, ..] => {
                reader.skip(4)?;
                PropertyValue::Null
            }
            _ => {
                let length = reader.i32_len()?;
                PropertyValue::String(reader.mutf8(length)?)
            }
        },
        unknown => return Err(unknown_type(unknown, at)),
    })
}

#[cold]
fn unknown_type(found: u8, at: usize) -> StoredError {
    WireError::Unexpected { what: "property type", value: found.into(), at }.into()
}

/// Steps over a typed value.
pub(super) fn skip_value(scan: &mut Scan<'_>) -> Result<(), StoredError> {
    skip_value_at(scan, 0)
}

fn skip_value_at(scan: &mut Scan<'_>, depth: usize) -> Result<(), StoredError> {
    let at = scan.position();
    match scan.u8()? {
        NULL => Ok(()),
        BOOL | BYTE => scan.skip(1),
        CHAR | SHORT => scan.skip(2),
        INT | FLOAT => scan.skip(4),
        LONG | DOUBLE => scan.skip(8),
        TEXT => {
            let length = scan.u16()?;
            scan.skip(length.into())
        }
        BYTES => {
            let length = scan.length()?;
            scan.skip(length)
        }
        LONG_TEXT => match scan_count(scan, 1)? {
            None => Ok(()),
            Some(length) => scan.skip(length),
        },
        MAP => {
            let depth = deeper(depth)?;
            for _ in 0..scan_count(scan, super::PROPERTY_BYTES_MIN)?.unwrap_or(0) {
                let length = scan.u16()?;
                scan.skip(length.into())?;
                skip_value_at(scan, depth)?;
            }
            Ok(())
        }
        LIST => {
            let depth = deeper(depth)?;
            for _ in 0..scan_count(scan, 1)?.unwrap_or(0) {
                skip_value_at(scan, depth)?;
            }
            Ok(())
        }
        unknown => Err(unknown_type(unknown, at)),
    }
}
