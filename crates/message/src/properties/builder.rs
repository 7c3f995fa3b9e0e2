use bytes::{BufMut, Bytes, BytesMut};
use kahawai_wire::{WireError, is_plain_utf8, mutf8_to_string};

use super::value::{put_name, put_text, scan_count, skip_value};
use super::{PROPERTY_BYTES_MIN, PropertyValue, is_name, put_value};
use crate::StoredError;
use crate::scan::Scan;

/// Bytes of the count in front.
const COUNT_BYTES: usize = 4;

/// Marshals properties one by one. Does not look for a name that it has already.
#[derive(Default, Debug)]
pub struct PropertiesBuilder {
    /// Room for the count, then the properties; empty as long as there are none.
    out: BytesMut,
    count: usize,
}

impl PropertiesBuilder {
    /// No properties yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// No properties yet, room for `bytes` marshalled bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { out: BytesMut::with_capacity(COUNT_BYTES + bytes), count: 0 }
    }

    /// Appends a property. After an error it is as before.
    pub fn push(&mut self, name: &str, value: &PropertyValue) -> Result<(), StoredError> {
        self.push_with(name, |out| put_value(value, out))
    }

    /// Appends a property that is a text, without the detour over a [`PropertyValue`].
    pub fn push_text(&mut self, name: &str, value: &str) -> Result<(), StoredError> {
        self.push_with(name, |out| put_text(value, out))
    }

    fn push_with(
        &mut self,
        name: &str,
        put: impl FnOnce(&mut BytesMut) -> Result<(), StoredError>,
    ) -> Result<(), StoredError> {
        let before = self.out.len();
        self.make_room_for_count();
        let done = put_name(name, &mut self.out).and_then(|()| put(&mut self.out));
        match done {
            Ok(()) => self.count += 1,
            Err(_) => self.out.truncate(before),
        }
        done
    }

    /// Appends a property as it is marshalled.
    fn push_marshalled(&mut self, property: &[u8]) {
        self.make_room_for_count();
        self.out.extend_from_slice(property);
        self.count += 1;
    }

    fn make_room_for_count(&mut self) {
        if self.out.is_empty() {
            self.out.put_bytes(0, COUNT_BYTES);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// None yet?
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The marshalled properties; `None` if there are none.
    pub fn finish(mut self) -> Option<Bytes> {
        // A property takes three bytes or more, so memory ends before the numbers do.
        let count = i32::try_from(self.count).unwrap_or(i32::MAX);
        self.out.get_mut(..COUNT_BYTES)?.copy_from_slice(&count.to_be_bytes());
        (self.count > 0).then(|| self.out.freeze())
    }
}

/// Calls `each` with all properties: where it begins, the marshalled name, and the whole with its name.
fn for_each(
    properties: &[u8],
    mut each: impl FnMut(usize, &[u8], &[u8]) -> Result<(), StoredError>,
) -> Result<(), StoredError> {
    let mut scan = Scan::new(properties);
    for _ in 0..scan_count(&mut scan, PROPERTY_BYTES_MIN)?.unwrap_or(0) {
        let start = scan.position();
        let length = scan.u16()?;
        let name = scan.take(length.into())?;
        skip_value(&mut scan)?;
        each(start, name, properties.get(start..scan.position()).unwrap_or_default())?;
    }
    Ok(())
}

/// `properties` with `name` set to `value`, at the end. The others stay as they are marshalled.
pub fn with(properties: Option<&Bytes>, name: &str, value: &PropertyValue) -> Result<Bytes, StoredError> {
    let mut builder = PropertiesBuilder::with_capacity(properties.map_or(0, Bytes::len) + name.len() + 64);
    if let Some(properties) = properties {
        for_each(properties, |_, found, property| {
            if !is_name(found, name) {
                builder.push_marshalled(property);
            }
            Ok(())
        })?;
    }
    builder.push(name, value)?;
    Ok(builder.finish().unwrap_or_default())
}

/// The properties whose name `keep` likes, as they are marshalled; `None` if none is left.
pub fn retain(properties: &Bytes, mut keep: impl FnMut(&str) -> bool) -> Result<Option<Bytes>, StoredError> {
    let mut builder = PropertiesBuilder::with_capacity(properties.len());
    for_each(properties, |at, name, property| {
        let kept = match std::str::from_utf8(name) {
            Ok(plain) if is_plain_utf8(name) => keep(plain),
            _ => keep(&mutf8_to_string(name).ok_or(WireError::Utf8 { at })?),
        };
        if kept {
            builder.push_marshalled(property);
        }
        Ok(())
    })?;
    Ok(builder.finish())
}
