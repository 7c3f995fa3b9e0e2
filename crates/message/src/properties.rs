//! Message properties and map bodies: names with typed values, marshalled as ActiveMQ's `MarshallingSupport` does.
//!
//! ```text
//! map    count:i32  count × ( name length:u16  name  value )        count -1 = null map
//! value  type:u8    0 null  1 boolean  2 byte  3 char  4 short  5 int  6 long  7 double  8 float
//!                   9 length:u16 text  10 length:i32 bytes  11 map  12 count:i32 values  13 length:i32 text
//! ```
//!
//! Texts and names are modified UTF-8. Properties travel marshalled; what reads one looks no further than it must.

mod builder;
mod value;

use bytes::Bytes;
use kahawai_wire::{Reader, mutf8_to_string};

pub use builder::{PropertiesBuilder, retain, with};
pub use value::{DEPTH_MAX, PropertyValue, VALUES_MAX, put_value};

use crate::scan::Scan;
use crate::{Message, StoredError, Text};
use value::{read_count, read_value, skip_value};

/// A property takes at least the length of its name and the type of its value.
const PROPERTY_BYTES_MIN: usize = 3;

/// The properties in stored order; names and texts are views where they are plain UTF-8. Ends after an error.
pub fn iter(properties: &Bytes) -> impl Iterator<Item = Result<(Text, PropertyValue), StoredError>> + use<> {
    let mut reader = Reader::new(properties.clone());
    let mut values_left = VALUES_MAX;
    let (mut left, mut failed) = match read_count(&mut reader, PROPERTY_BYTES_MIN) {
        Ok(count) => (count.unwrap_or(0), None),
        Err(error) => (0, Some(error)),
    };
    std::iter::from_fn(move || {
        if let Some(error) = failed.take() {
            return Some(Err(error));
        }
        left = left.checked_sub(1)?;
        let property = read_property(&mut reader, &mut values_left);
        if property.is_err() {
            left = 0;
        }
        Some(property)
    })
}

fn read_property(reader: &mut Reader, values_left: &mut usize) -> Result<(Text, PropertyValue), StoredError> {
    Ok((reader.java_utf()?, read_value(reader, values_left)?))
}

/// Typed values to the end of the bytes: the body of a stream message. Ends after an error.
pub fn values(bytes: Bytes) -> impl Iterator<Item = Result<PropertyValue, StoredError>> {
    let mut reader = Reader::new(bytes);
    let mut values_left = VALUES_MAX;
    std::iter::from_fn(move || {
        if reader.is_empty() {
            return None;
        }
        let value = read_value(&mut reader, &mut values_left);
        if value.is_err() {
            reader.rest();
        }
        Some(value)
    })
}

/// The first property with this name. Reads no other value, and nothing behind it.
pub fn get(properties: &Bytes, name: &str) -> Result<Option<PropertyValue>, StoredError> {
    let mut scan = Scan::new(properties);
    let count = value::scan_count(&mut scan, PROPERTY_BYTES_MIN)?.unwrap_or(0);
    for _ in 0..count {
        let length = scan.u16()?;
        if is_name(scan.take(length.into())?, name) {
            let mut reader = Reader::new(properties.clone());
            reader.skip(scan.position())?;
            return read_value(&mut reader, &mut { VALUES_MAX }).map(Some);
        }
        skip_value(&mut scan)?;
    }
    Ok(None)
}

/// Whether `marshalled` is `name` in modified UTF-8.
fn is_name(marshalled: &[u8], name: &str) -> bool {
    if marshalled == name.as_bytes() {
        return true;
    }
    // Only NUL and what lies beyond U+FFFF are encoded differently; names have neither, hardly ever.
    let special = |b: u8| b == 0 || b >= 0xf0;
    marshalled.len() > name.len()
        && name.bytes().any(special)
        && mutf8_to_string(marshalled).as_deref() == Some(name)
}

impl Message {
    /// The application property `name`. `None` also where the properties are malformed.
    pub fn property(&self, name: &str) -> Option<PropertyValue> {
        get(self.properties.as_ref()?, name).ok().flatten()
    }
}
