//! Conversions between client bodies and stored content (`kahadb-format.md` §5, `openwire.md` §8.2).
//!
//! ```text
//! text    length:i32  modified UTF-8          length -1 = null
//! bytes   the bytes                           compressed: plain length:i32  zlib
//! map     as properties                       every other kind compressed: one zlib stream over all of it
//! stream  typed values to the end
//! ```

use bytes::{Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};
use kahawai_wire::{Reader, WireError, mutf8_len};

use crate::properties::PropertyValue;
use crate::stored::put_text_body;
use crate::{BodyKind, Content, Message, StoredError, Text, properties};

/// A compressed body that inflates to more is refused, as by ActiveMQ.
pub const INFLATED_BYTES_MAX: usize = 100 << 20;

/// What an inflation begins with; it doubles from here.
const INFLATE_FIRST_BYTES: usize = 4096;

impl BodyKind {
    /// All kinds, by number.
    pub const ALL: [Self; 7] =
        [Self::Plain, Self::Bytes, Self::Map, Self::Object, Self::Stream, Self::Text, Self::Blob];

    /// The kind with OpenWire's type number `number`.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(Self::Plain as usize)?).copied()
    }

    /// ActiveMQ's class, `ActiveMQTextMessage`.
    pub const fn class_name(self) -> &'static str {
        match self {
            Self::Plain => "ActiveMQMessage",
            Self::Bytes => "ActiveMQBytesMessage",
            Self::Map => "ActiveMQMapMessage",
            Self::Object => "ActiveMQObjectMessage",
            Self::Stream => "ActiveMQStreamMessage",
            Self::Text => "ActiveMQTextMessage",
            Self::Blob => "ActiveMQBlobMessage",
        }
    }
}

fn check_kind(message: &Message, wanted: BodyKind) -> Result<(), StoredError> {
    if message.kind == wanted {
        return Ok(());
    }
    Err(StoredError::BodyKind { wanted, found: message.kind })
}

/// The text of a text message; `None` = the null text. A view where it is not compressed and plain UTF-8.
pub fn text(message: &Message) -> Result<Option<Text>, StoredError> {
    check_kind(message, BodyKind::Text)?;
    if let Content::Utf8(text) = &message.content {
        return Ok(Some(text.clone()));
    }
    let Some(content) = plain_content(message, INFLATED_BYTES_MAX)? else {
        return Ok(None);
    };
    let mut reader = Reader::new(content);
    if reader.peek().starts_with(&NULL_TEXT) {
        return Ok(None);
    }
    let length = reader.i32_len()?;
    Ok(Some(reader.mutf8(length)?))
}

/// The length that stands for the null text.
const NULL_TEXT: [u8; 4] = (-1i32).to_be_bytes();

/// The bytes of a bytes message, a view where it is not compressed.
pub fn bytes(message: &Message) -> Result<Bytes, StoredError> {
    check_kind(message, BodyKind::Bytes)?;
    Ok(plain_content(message, INFLATED_BYTES_MAX)?.unwrap_or_default())
}

/// The entries of a map message, in stored order.
pub fn map(message: &Message) -> Result<Vec<(Text, PropertyValue)>, StoredError> {
    check_kind(message, BodyKind::Map)?;
    match plain_content(message, INFLATED_BYTES_MAX)? {
        Some(content) if !content.is_empty() => properties::iter(&content).collect(),
        _ => Ok(Vec::new()),
    }
}

/// The values of a stream message.
pub fn stream(message: &Message) -> Result<Vec<PropertyValue>, StoredError> {
    check_kind(message, BodyKind::Stream)?;
    let content = plain_content(message, INFLATED_BYTES_MAX)?.unwrap_or_default();
    properties::values(content).collect()
}

/// The content as it is marshalled, compressed or not; `None` = there is none.
pub fn content_bytes(message: &Message) -> Option<Bytes> {
    match &message.content {
        Content::Absent => None,
        Content::Marshalled(bytes) => Some(bytes.clone()),
        Content::Utf8(text) => Some(marshal_text(text)),
    }
}

/// A text body as it is stored.
pub fn marshal_text(text: &str) -> Bytes {
    let length = 4 + mutf8_len(text);
    let mut out = BytesMut::with_capacity(length);
    put_text_body(text, length, &mut out);
    out.freeze()
}

/// The content as it is marshalled, without compression; inflated to at most `inflated_bytes_max` bytes.
pub fn plain_content(message: &Message, inflated_bytes_max: usize) -> Result<Option<Bytes>, StoredError> {
    let Content::Marshalled(content) = &message.content else {
        return Ok(content_bytes(message));
    };
    if !message.compressed || content.is_empty() {
        return Ok(Some(content.clone()));
    }
    match message.kind {
        BodyKind::Bytes => inflate_declared(content, inflated_bytes_max),
        _ => inflate_all(content, inflated_bytes_max),
    }
    .map(|plain| Some(plain.into()))
}

fn check_inflated(found: usize, limit: usize) -> Result<(), StoredError> {
    if found <= limit {
        return Ok(());
    }
    Err(StoredError::Limit { what: "inflated size", found, limit })
}

/// A whole zlib stream.
fn inflate_all(content: &[u8], inflated_bytes_max: usize) -> Result<Vec<u8>, StoredError> {
    // One more than allowed tells "just fits" from "too long".
    let (plain, ended) = inflate(content, inflated_bytes_max.saturating_add(1))?;
    check_inflated(plain.len(), inflated_bytes_max)?;
    if ended { Ok(plain) } else { Err(StoredError::Zlib) }
}

/// The plain length, then a zlib stream that may go on: Java deflates its whole backing array.
fn inflate_declared(content: &[u8], inflated_bytes_max: usize) -> Result<Vec<u8>, StoredError> {
    let Some((&length, deflated)) = content.split_first_chunk() else {
        return Err(WireError::Short { at: 0, wanted: 4, available: content.len() }.into());
    };
    let length = i32::from_be_bytes(length);
    let declared = usize::try_from(length).map_err(|_| WireError::Length { at: 0, length: length.into() })?;
    check_inflated(declared, inflated_bytes_max)?;
    let (plain, _) = inflate(deflated, declared)?;
    if plain.len() == declared {
        return Ok(plain);
    }
    Err(StoredError::Inflated { declared, inflated: plain.len() })
}

/// At most `bytes_max` bytes of what `deflated` inflates to, and whether its end came. Never has more capacity than that.
fn inflate(deflated: &[u8], bytes_max: usize) -> Result<(Vec<u8>, bool), StoredError> {
    let mut zlib = Decompress::new(true);
    let mut plain = Vec::new();
    loop {
        if plain.len() == plain.capacity() {
            let more = plain.len().max(INFLATE_FIRST_BYTES).min(bytes_max - plain.len());
            if more == 0 {
                return Ok((plain, false));
            }
            plain.reserve_exact(more);
        }
        let (read_before, written_before) = (zlib.total_in(), plain.len());
        let rest =
            usize::try_from(read_before).ok().and_then(|read| deflated.get(read..)).unwrap_or_default();
        let status =
            zlib.decompress_vec(rest, &mut plain, FlushDecompress::None).map_err(|_| StoredError::Zlib)?;
        if status == Status::StreamEnd {
            return Ok((plain, true));
        }
        if zlib.total_in() == read_before && plain.len() == written_before {
            return Ok((plain, false));
        }
    }
}
