use bytes::Bytes;
use bytestring::ByteString;

/// Why bytes could not be read as what they should be. `at` counts from the start of the reader's input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The input ends inside a field.
    #[error("{wanted} bytes wanted at byte {at}, {available} are left")]
    Short {
        /// Where the field begins.
        at: usize,
        /// Its size.
        wanted: usize,
        /// What is left.
        available: usize,
    },
    /// A length that cannot be: negative.
    #[error("impossible length {length} at byte {at}")]
    Length {
        /// Where it stands.
        at: usize,
        /// As read.
        length: i64,
    },
    /// A varint that does not end, or overflows its type.
    #[error("malformed varint at byte {at}")]
    Varint {
        /// Where it begins.
        at: usize,
    },
    /// Not (modified) UTF-8.
    #[error("malformed UTF-8 at byte {at}")]
    Utf8 {
        /// Where the text begins.
        at: usize,
    },
    /// A value that the format does not have there.
    #[error("unexpected {what} {value} at byte {at}")]
    Unexpected {
        /// What kind of value.
        what: &'static str,
        /// As read.
        value: i64,
        /// Where it stands.
        at: usize,
    },
}

/// Cuts fields off the front of some bytes; texts and byte fields are views, not copies.
#[derive(Clone, Debug)]
pub struct Reader {
    input: Bytes,
    at: usize,
}

impl Reader {
    /// Reads `input` from its first byte.
    pub fn new(input: Bytes) -> Self {
        Self { input, at: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.input.len() - self.at
    }

    /// Nothing left?
    pub fn is_empty(&self) -> bool {
        self.remaining() == 0
    }

    /// What is left, without consuming it.
    pub fn peek(&self) -> &[u8] {
        self.input.get(self.at..).unwrap_or_default()
    }

    fn need(&self, wanted: usize) -> Result<(), WireError> {
        let available = self.remaining();
        if available < wanted {
            return Err(WireError::Short { at: self.at, wanted, available });
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        match self.peek().first_chunk::<N>() {
            Some(&bytes) => {
                self.at += N;
                Ok(bytes)
            }
            None => Err(WireError::Short { at: self.at, wanted: N, available: self.remaining() }),
        }
    }

    /// Steps over `count` bytes.
    pub fn skip(&mut self, count: usize) -> Result<(), WireError> {
        self.need(count)?;
        self.at += count;
        Ok(())
    }

    /// The next `count` bytes as a view.
    pub fn bytes(&mut self, count: usize) -> Result<Bytes, WireError> {
        self.need(count)?;
        let view = self.input.slice(self.at..self.at + count);
        self.at += count;
        Ok(view)
    }

    /// The next `count` bytes, borrowed.
    pub fn slice(&mut self, count: usize) -> Result<&[u8], WireError> {
        self.need(count)?;
        let from = self.at;
        self.at += count;
        Ok(self.input.get(from..self.at).unwrap_or_default())
    }

    /// All that is left as a view.
    pub fn rest(&mut self) -> Bytes {
        let view = self.input.slice(self.at..);
        self.at = self.input.len();
        view
    }

    /// One unsigned byte.
    pub fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    /// One signed byte.
    pub fn i8(&mut self) -> Result<i8, WireError> {
        Ok(i8::from_be_bytes(self.array()?))
    }

    /// A boolean byte: anything but 0 is true, as Java's `readBoolean`.
    pub fn bool(&mut self) -> Result<bool, WireError> {
        Ok(self.u8()? != 0)
    }

    /// Big-endian.
    pub fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// Big-endian.
    pub fn i16(&mut self) -> Result<i16, WireError> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    /// Big-endian.
    pub fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Big-endian.
    pub fn i32(&mut self) -> Result<i32, WireError> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    /// Big-endian.
    pub fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Big-endian.
    pub fn i64(&mut self) -> Result<i64, WireError> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// A protobuf varint of at most 64 bits.
    pub fn varint64(&mut self) -> Result<u64, WireError> {
        let at = self.at;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            if shift == 63 && byte > 1 {
                return Err(WireError::Varint { at });
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::Varint { at })
    }

    /// A protobuf varint that holds an `int32` (negatives are ten bytes long) or an unsigned length.
    pub fn varint32(&mut self) -> Result<i32, WireError> {
        let at = self.at;
        let value = self.varint64()?.cast_signed();
        // Java writes negative int32 values sign-extended; five-byte forms of other writers are accepted too.
        i32::try_from(value)
            .or_else(|_| u32::try_from(value).map(u32::cast_signed))
            .map_err(|_| WireError::Varint { at })
    }

    /// A varint length, checked against what is left.
    pub fn varint_len(&mut self) -> Result<usize, WireError> {
        let at = self.at;
        let length = self.varint64()?;
        let length =
            usize::try_from(length).map_err(|_| WireError::Length { at, length: length.cast_signed() })?;
        self.need(length)?;
        Ok(length)
    }

    /// An `int` length, checked for sign and against what is left.
    pub fn i32_len(&mut self) -> Result<usize, WireError> {
        let at = self.at;
        let length = self.i32()?;
        let length = usize::try_from(length).map_err(|_| WireError::Length { at, length: length.into() })?;
        self.need(length)?;
        Ok(length)
    }

    /// `count` bytes as standard UTF-8.
    pub fn utf8(&mut self, count: usize) -> Result<ByteString, WireError> {
        let at = self.at;
        ByteString::try_from(self.bytes(count)?).map_err(|_| WireError::Utf8 { at })
    }

    /// `count` bytes of Java's modified UTF-8. A view where it is plain UTF-8 as well.
    pub fn mutf8(&mut self, count: usize) -> Result<ByteString, WireError> {
        let at = self.at;
        let bytes = self.bytes(count)?;
        if crate::is_plain_utf8(&bytes)
            && let Ok(text) = ByteString::try_from(bytes.clone())
        {
            return Ok(text);
        }
        crate::mutf8_to_string(&bytes).map(ByteString::from).ok_or(WireError::Utf8 { at })
    }

    /// Java's `readUTF`: a 2-byte length, then modified UTF-8.
    pub fn java_utf(&mut self) -> Result<ByteString, WireError> {
        let length = self.u16()?;
        self.mutf8(usize::from(length))
    }
}
