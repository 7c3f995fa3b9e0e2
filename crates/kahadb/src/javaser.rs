//! Java serialization, as far as KahaDB's hints need it: sets and maps of integers and texts.
//!
//! Two kinds of bytes in a store are Java object streams: the ack map (command type 9: `HashMap<Integer,
//! HashSet<Integer>>`, the file with acknowledgements to the files of what they acknowledge), which
//! [`ack_message_file_map`] reads, and the producer audit (type 8: `ActiveMQMessageAuditNoSync`, a dozen classes deep in
//! bit arrays and LRU caches), which nobody needs to read: replay recomputes what counts of it, and we write neither.
//!
//! Only the classes named here are read; no class is looked up, nothing is executed. Work is bounded by the input's size.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kahawai_message::Text;
use kahawai_wire::{Reader, WireError};

const STREAM_MAGIC: u32 = 0xaced_0005;
const NULL: u8 = 0x70;
const REFERENCE: u8 = 0x71;
const CLASS_DESCRIPTION: u8 = 0x72;
const OBJECT: u8 = 0x73;
const STRING: u8 = 0x74;
const BLOCK_DATA: u8 = 0x77;
const END_BLOCK_DATA: u8 = 0x78;
const FIRST_HANDLE: u32 = 0x007e_0000;
/// A map of sets of numbers; nothing in KahaDB goes deeper.
const DEPTH_MAX: usize = 4;
/// A class and its superclasses: an Integer is a Number.
const CLASSES_MAX: usize = 4;
/// HashMap has the most, two.
const FIELDS_MAX: u16 = 8;

/// Which data files hold acknowledgements for messages in which others: file to files.
pub type AckMessageFileMap = BTreeMap<u32, BTreeSet<u32>>;

/// Reads the content of an ack map record (command type 9).
pub fn ack_message_file_map(bytes: Bytes) -> Result<AckMessageFileMap, WireError> {
    let mut stream = Stream::open(bytes)?;
    let at = stream.reader.position();
    let Value::Map(entries) = stream.value(0)? else { return Err(unexpected("class", 0, at)) };
    let mut map = AckMessageFileMap::new();
    for (file, files) in entries {
        let (Value::Number(file), Value::Set(files)) = (file, files) else {
            return Err(unexpected("class", 0, at));
        };
        let set = map.entry(file_id(file, at)?).or_default();
        for file in files {
            let Value::Number(file) = file else { return Err(unexpected("class", 0, at)) };
            set.insert(file_id(file, at)?);
        }
    }
    Ok(map)
}

/// Reads a `HashSet<String>`, as index version 3 has it.
pub(crate) fn string_set(bytes: Bytes) -> Result<Vec<Text>, WireError> {
    let mut stream = Stream::open(bytes)?;
    let at = stream.reader.position();
    let Value::Set(members) = stream.value(0)? else { return Err(unexpected("class", 0, at)) };
    members
        .into_iter()
        .map(|member| match member {
            Value::Text(text) => Ok(text),
            _ => Err(unexpected("class", 0, at)),
        })
        .collect()
}

fn file_id(number: i32, at: usize) -> Result<u32, WireError> {
    u32::try_from(number).map_err(|_| unexpected("file id", number.into(), at))
}

fn unexpected(what: &'static str, value: i64, at: usize) -> WireError {
    WireError::Unexpected { what, value, at }
}

enum Value {
    Number(i32),
    Text(Text),
    Set(Vec<Value>),
    Map(Vec<(Value, Value)>),
}

/// What a back reference may mean.
#[derive(Clone)]
enum Handle {
    Class(Class),
    Number(i32),
    Text(Text),
    /// A set or map, which is never referred to, or an object that is not read yet.
    Other,
}

/// A class with its superclasses, which come first in the object's data.
#[derive(Clone, Default)]
struct Class {
    name: Text,
    /// Bytes of primitive fields of each class, lowest first.
    field_bytes: usize,
}

struct Stream {
    reader: Reader,
    handles: Vec<Handle>,
}

impl Stream {
    fn open(bytes: Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        match reader.u32()? {
            STREAM_MAGIC => Ok(Self { reader, handles: Vec::new() }),
            other => Err(unexpected("stream magic", other.into(), 0)),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, WireError> {
        let at = self.reader.position();
        match self.reader.u8()? {
            OBJECT if depth < DEPTH_MAX => self.object(depth),
            STRING => {
                let text = self.reader.java_utf()?;
                self.handles.push(Handle::Text(text.clone()));
                Ok(Value::Text(text))
            }
            REFERENCE => match self.reference()? {
                Handle::Number(number) => Ok(Value::Number(number)),
                Handle::Text(text) => Ok(Value::Text(text)),
                Handle::Class(_) | Handle::Other => Err(unexpected("back reference", 0, at)),
            },
            other => Err(unexpected("object tag", other.into(), at)),
        }
    }

    fn reference(&mut self) -> Result<Handle, WireError> {
        let at = self.reader.position();
        let handle = self.reader.u32()?;
        let index = handle.checked_sub(FIRST_HANDLE).and_then(|index| usize::try_from(index).ok());
        index
            .and_then(|index| self.handles.get(index))
            .cloned()
            .ok_or_else(|| unexpected("back reference", handle.into(), at))
    }

    fn object(&mut self, depth: usize) -> Result<Value, WireError> {
        let at = self.reader.position();
        let class = self.class(0)?.unwrap_or_default();
        let handle = self.handles.len();
        self.handles.push(Handle::Other);
        match (&*class.name, class.field_bytes) {
            ("java.lang.Integer", 4) => {
                let number = self.reader.i32()?;
                if let Some(handle) = self.handles.get_mut(handle) {
                    *handle = Handle::Number(number);
                }
                Ok(Value::Number(number))
            }
            // int capacity, float load factor, int size; the members
            ("java.util.HashSet", 0) => {
                let size = self.size(12)?;
                let mut members = Vec::with_capacity(size);
                for _ in 0..size {
                    members.push(self.value(depth + 1)?);
                }
                self.end()?;
                Ok(Value::Set(members))
            }
            // float load factor, int threshold; int capacity, int size; keys and values
            ("java.util.HashMap", fields @ 8) => {
                self.reader.skip(fields)?;
                let size = self.size(8)?;
                let mut entries = Vec::with_capacity(size);
                for _ in 0..size {
                    entries.push((self.value(depth + 1)?, self.value(depth + 1)?));
                }
                self.end()?;
                Ok(Value::Map(entries))
            }
            _ => Err(unexpected("class", 0, at)),
        }
    }

    /// The block in front of a collection's members, whose last int is their number.
    fn size(&mut self, block_bytes: u8) -> Result<usize, WireError> {
        let at = self.reader.position();
        if self.reader.u8()? != BLOCK_DATA || self.reader.u8()? != block_bytes {
            return Err(unexpected("block data", 0, at));
        }
        self.reader.skip(usize::from(block_bytes) - 4)?;
        let at = self.reader.position();
        let size = self.reader.i32()?;
        // A member is a back reference of five bytes, or longer.
        let members_max = self.reader.remaining() / 5;
        usize::try_from(size)
            .ok()
            .filter(|&size| size <= members_max)
            .ok_or(WireError::Length { at, length: size.into() })
    }

    fn end(&mut self) -> Result<(), WireError> {
        let at = self.reader.position();
        match self.reader.u8()? {
            END_BLOCK_DATA => Ok(()),
            other => Err(unexpected("end of block data", other.into(), at)),
        }
    }

    fn class(&mut self, depth: usize) -> Result<Option<Class>, WireError> {
        let at = self.reader.position();
        match self.reader.u8()? {
            NULL => Ok(None),
            REFERENCE => match self.reference()? {
                Handle::Class(class) => Ok(Some(class)),
                _ => Err(unexpected("back reference", 0, at)),
            },
            CLASS_DESCRIPTION if depth < CLASSES_MAX => {
                let name = self.reader.java_utf()?;
                let _serial_version = self.reader.i64()?;
                let handle = self.handles.len();
                self.handles.push(Handle::Other);
                let _flags = self.reader.u8()?;
                let field_bytes = self.fields()?;
                self.end()?;
                let parent = self.class(depth + 1)?.unwrap_or_default();
                let class = Class { name, field_bytes: parent.field_bytes + field_bytes };
                if let Some(handle) = self.handles.get_mut(handle) {
                    *handle = Handle::Class(class.clone());
                }
                Ok(Some(class))
            }
            other => Err(unexpected("class tag", other.into(), at)),
        }
    }

    /// Bytes that the fields of one class take in an object. None of our classes has other than primitive ones.
    fn fields(&mut self) -> Result<usize, WireError> {
        let at = self.reader.position();
        let count = self.reader.u16()?;
        if count > FIELDS_MAX {
            return Err(unexpected("field count", count.into(), at));
        }
        let mut bytes = 0;
        for _ in 0..count {
            let at = self.reader.position();
            let kind = self.reader.u8()?;
            self.reader.java_utf()?;
            bytes += match kind {
                b'B' | b'Z' => 1,
                b'C' | b'S' => 2,
                b'F' | b'I' => 4,
                b'D' | b'J' => 8,
                other => return Err(unexpected("field type", other.into(), at)),
            };
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `java.util.HashMap` of 3 to {1, 2}, 4 to {3}, as Java 17 writes it; the 3 is written once.
    fn stream() -> Vec<u8> {
        let class = |name: &str, fields: &[(u8, &str)]| {
            let mut bytes = vec![CLASS_DESCRIPTION, 0, name.len() as u8];
            bytes.extend(name.bytes());
            bytes.extend([7; 8]);
            bytes.extend([3, 0, fields.len() as u8]);
            for (kind, name) in fields {
                bytes.extend([*kind, 0, name.len() as u8]);
                bytes.extend(name.bytes());
            }
            bytes.push(END_BLOCK_DATA);
            bytes
        };
        let mut bytes = vec![0xac, 0xed, 0, 5, OBJECT];
        bytes.extend(class("java.util.HashMap", &[(b'F', "loadFactor"), (b'I', "threshold")])); // 0
        bytes.push(NULL);
        bytes.extend([0; 8]); // 1
        bytes.extend([BLOCK_DATA, 8, 0, 0, 0, 16, 0, 0, 0, 2, OBJECT]);
        bytes.extend(class("java.lang.Integer", &[(b'I', "value")])); // 2
        bytes.extend(class("java.lang.Number", &[])); // 3
        bytes.extend([NULL, 0, 0, 0, 3, OBJECT]); // 4
        bytes.extend(class("java.util.HashSet", &[])); // 5
        bytes.push(NULL); // 6
        let set = |size: u8| [BLOCK_DATA, 12, 0, 0, 0, 16, 0x3f, 0x40, 0, 0, 0, 0, 0, size];
        bytes.extend(set(2));
        bytes.extend([OBJECT, REFERENCE, 0, 0x7e, 0, 2, 0, 0, 0, 1]); // 7
        bytes.extend([OBJECT, REFERENCE, 0, 0x7e, 0, 2, 0, 0, 0, 2, END_BLOCK_DATA]); // 8
        bytes.extend([OBJECT, REFERENCE, 0, 0x7e, 0, 2, 0, 0, 0, 4]); // 9
        bytes.extend([OBJECT, REFERENCE, 0, 0x7e, 0, 5]); // 10
        bytes.extend(set(1));
        bytes.extend([REFERENCE, 0, 0x7e, 0, 4, END_BLOCK_DATA, END_BLOCK_DATA]);
        bytes
    }

    #[test]
    fn a_map_of_sets_reads_with_its_back_references() {
        let map = ack_message_file_map(stream().into());
        let expected = [(3, [1, 2].into()), (4, [3].into())].into();
        assert_eq!(map, Ok(expected));
    }

    proptest! {
        #[test]
        fn damaged_streams_never_make_reading_panic(
            place in any::<prop::sample::Index>(), with in any::<u8>(), length in any::<prop::sample::Index>(),
        ) {
            let mut bytes = stream();
            let at = place.index(bytes.len());
            bytes[at] = with;
            let _ = ack_message_file_map(bytes.clone().into());
            bytes.truncate(length.index(bytes.len()));
            prop_assert!(ack_message_file_map(bytes.into()).is_err());
        }
    }
}
