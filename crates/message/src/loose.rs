//! OpenWire's loose primitives and the small objects inside commands, without a value cache.
//!
//! ```text
//! string  present:u8  length:u16  modified UTF-8
//! bytes   present:u8  length:i32  bytes
//! object  present:u8  type:u8     fields
//! ```
//!
//! `put_*` appends, the function without `put` reads; nothing else follows `present` = 0. Integers are big-endian.

use bytes::{BufMut, Bytes, BytesMut};
use kahawai_wire::{Reader, WireError, encode_mutf8, mutf8_len};

use crate::{
    ConsumerId, Destination, DestinationKind, MessageId, ProducerId, StoredError, Text, TransactionId, Xid,
};

/// What a string's 2-byte length can say, in bytes of modified UTF-8.
pub const STRING_BYTES_MAX: usize = u16::MAX as usize;

/// Type number of a queue; the other kinds follow in the order of [`DestinationKind::ALL`].
pub const QUEUE: u8 = 100;
/// Type number of a message id.
pub const MESSAGE_ID: u8 = 110;
/// Type number of a local transaction id.
pub const LOCAL_TRANSACTION_ID: u8 = 111;
/// Type number of an XA transaction id.
pub const XA_TRANSACTION_ID: u8 = 112;
/// Type number of a connection id.
pub const CONNECTION_ID: u8 = 120;
/// Type number of a consumer id.
pub const CONSUMER_ID: u8 = 122;
/// Type number of a producer id.
pub const PRODUCER_ID: u8 = 123;

/// `text`, or as much of its front as [`STRING_BYTES_MAX`] allows, with its encoded length.
fn fitting(text: &str) -> (&str, u16) {
    if let Ok(length) = u16::try_from(mutf8_len(text)) {
        return (text, length);
    }
    let mut length = 0;
    for (at, c) in text.char_indices() {
        let longer = length + mutf8_len(c.encode_utf8(&mut [0; 4]));
        if longer > STRING_BYTES_MAX {
            return (text.split_at(at).0, length as u16);
        }
        length = longer;
    }
    (text, length as u16)
}

/// Appends a string after the bytes of `before`. What does not fit [`STRING_BYTES_MAX`] is cut off: callers check.
#[inline]
fn put_string_after<const N: usize>(before: [u8; N], text: &str, out: &mut BytesMut) {
    let (text, length) = fitting(text);
    out.extend_from_slice(&before);
    out.put_u16(length);
    if usize::from(length) == text.len() {
        out.extend_from_slice(text.as_bytes());
    } else {
        encode_mutf8(text, out);
    }
}

/// Appends a string. What does not fit [`STRING_BYTES_MAX`] is cut off at a character: callers check before.
pub fn put_string(text: &str, out: &mut BytesMut) {
    put_string_after([1], text, out);
}

/// Appends a string that may be absent.
pub fn put_optional_string(text: Option<&Text>, out: &mut BytesMut) {
    match text {
        Some(text) => put_string(text, out),
        None => out.put_u8(0),
    }
}

/// Reads a string.
pub fn string(reader: &mut Reader) -> Result<Option<Text>, StoredError> {
    Ok(if reader.bool()? { Some(reader.java_utf()?) } else { None })
}

/// Reads a string that must be there.
pub fn required_string(reader: &mut Reader, field: &'static str) -> Result<Text, StoredError> {
    let at = reader.position();
    string(reader)?.ok_or(StoredError::Absent { field, at })
}

/// Appends bytes. What does not fit a positive `int` is cut off: callers check before.
pub fn put_bytes(bytes: &[u8], out: &mut BytesMut) {
    let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    let [a, b, c, d] = length.to_be_bytes();
    out.extend_from_slice(&[1, a, b, c, d]);
    out.extend_from_slice(bytes.get(..length as usize).unwrap_or(bytes));
}

/// Appends bytes that may be absent.
pub fn put_optional_bytes(bytes: Option<&Bytes>, out: &mut BytesMut) {
    match bytes {
        Some(bytes) => put_bytes(bytes, out),
        None => out.put_u8(0),
    }
}

/// Reads bytes, as a view.
pub fn bytes(reader: &mut Reader) -> Result<Option<Bytes>, StoredError> {
    if !reader.bool()? {
        return Ok(None);
    }
    let length = reader.i32_len()?;
    Ok(Some(reader.bytes(length)?))
}

/// Reads an object's presence and type number.
pub fn object(reader: &mut Reader) -> Result<Option<u8>, StoredError> {
    Ok(if reader.bool()? { Some(reader.u8()?) } else { None })
}

/// Reads the presence and type number of an object that can only be of type `wanted`.
fn object_of(reader: &mut Reader, wanted: u8, what: &'static str) -> Result<bool, StoredError> {
    match object(reader)? {
        None => Ok(false),
        Some(found) if found == wanted => Ok(true),
        Some(found) => Err(unexpected(reader, what, found)),
    }
}

/// The error for a type number just read.
fn unexpected(reader: &Reader, what: &'static str, found: u8) -> StoredError {
    WireError::Unexpected { what, value: found.into(), at: reader.position().saturating_sub(1) }.into()
}

/// `read`, and an error if there is nothing.
pub fn required<T>(
    reader: &mut Reader,
    field: &'static str,
    read: impl FnOnce(&mut Reader) -> Result<Option<T>, StoredError>,
) -> Result<T, StoredError> {
    let at = reader.position();
    read(reader)?.ok_or(StoredError::Absent { field, at })
}

/// Appends a destination.
pub fn put_destination(destination: &Destination, out: &mut BytesMut) {
    put_string_after([1, QUEUE + destination.kind as u8, 1], &destination.name, out);
}

/// Appends a destination that may be absent.
pub fn put_optional_destination(destination: Option<&Destination>, out: &mut BytesMut) {
    match destination {
        Some(destination) => put_destination(destination, out),
        None => out.put_u8(0),
    }
}

/// Reads a destination.
pub fn destination(reader: &mut Reader) -> Result<Option<Destination>, StoredError> {
    let Some(type_number) = object(reader)? else {
        return Ok(None);
    };
    let Some(kind) = DestinationKind::from_number(i32::from(type_number) - i32::from(QUEUE)) else {
        return Err(unexpected(reader, "destination type", type_number));
    };
    Ok(Some(Destination { kind, name: required_string(reader, "physicalName")? }))
}

/// Two longs, in this order.
fn put_longs(first: i64, second: i64, out: &mut BytesMut) {
    let longs = (u128::from(first.cast_unsigned()) << 64) | u128::from(second.cast_unsigned());
    out.extend_from_slice(&longs.to_be_bytes());
}

/// Appends a producer id. On the wire its value stands before its session.
pub fn put_producer_id(id: &ProducerId, out: &mut BytesMut) {
    put_string_after([1, PRODUCER_ID, 1], &id.connection, out);
    put_longs(id.value, id.session, out);
}

/// Reads a producer id.
pub fn producer_id(reader: &mut Reader) -> Result<Option<ProducerId>, StoredError> {
    if !object_of(reader, PRODUCER_ID, "producer id type")? {
        return Ok(None);
    }
    let connection = required_string(reader, "producerId.connectionId")?;
    let value = reader.i64()?;
    Ok(Some(ProducerId { connection, session: reader.i64()?, value }))
}

/// Appends a consumer id. On the wire its session stands before its value.
pub fn put_consumer_id(id: &ConsumerId, out: &mut BytesMut) {
    put_string_after([1, CONSUMER_ID, 1], &id.connection, out);
    put_longs(id.session, id.value, out);
}

/// Reads a consumer id.
pub fn consumer_id(reader: &mut Reader) -> Result<Option<ConsumerId>, StoredError> {
    if !object_of(reader, CONSUMER_ID, "consumer id type")? {
        return Ok(None);
    }
    let connection = required_string(reader, "consumerId.connectionId")?;
    let session = reader.i64()?;
    Ok(Some(ConsumerId { connection, session, value: reader.i64()? }))
}

/// Appends a message id, with `broker_sequence` in place of its own.
pub fn put_message_id(id: &MessageId, broker_sequence: i64, out: &mut BytesMut) {
    match &id.text_view {
        None => out.extend_from_slice(&[1, MESSAGE_ID, 0]),
        Some(text) => put_string_after([1, MESSAGE_ID, 1], text, out),
    }
    put_producer_id(&id.producer, out);
    put_longs(id.sequence, broker_sequence, out);
}

/// Reads a message id.
pub fn message_id(reader: &mut Reader) -> Result<Option<MessageId>, StoredError> {
    if !object_of(reader, MESSAGE_ID, "message id type")? {
        return Ok(None);
    }
    let text_view = string(reader)?;
    let producer = required(reader, "messageId.producerId", producer_id)?;
    let sequence = reader.i64()?;
    Ok(Some(MessageId { producer, sequence, broker_sequence: reader.i64()?, text_view }))
}

/// Appends a transaction id.
pub fn put_transaction_id(id: &TransactionId, out: &mut BytesMut) {
    match id {
        TransactionId::Local { connection, value } => {
            out.extend_from_slice(&[1, LOCAL_TRANSACTION_ID]);
            out.put_i64(*value);
            put_string_after([1, CONNECTION_ID, 1], connection, out);
        }
        TransactionId::Xa(xid) => {
            out.extend_from_slice(&[1, XA_TRANSACTION_ID]);
            out.put_i32(xid.format_id);
            put_bytes(&xid.global, out);
            put_bytes(&xid.branch, out);
        }
    }
}

/// Appends a transaction id that may be absent.
pub fn put_optional_transaction_id(id: Option<&TransactionId>, out: &mut BytesMut) {
    match id {
        Some(id) => put_transaction_id(id, out),
        None => out.put_u8(0),
    }
}

/// Reads a transaction id.
pub fn transaction_id(reader: &mut Reader) -> Result<Option<TransactionId>, StoredError> {
    match object(reader)? {
        None => Ok(None),
        Some(LOCAL_TRANSACTION_ID) => {
            let value = reader.i64()?;
            let at = reader.position();
            if !object_of(reader, CONNECTION_ID, "connection id type")? {
                return Err(StoredError::Absent { field: "transactionId.connectionId", at });
            }
            Ok(Some(TransactionId::Local {
                connection: required_string(reader, "connectionId.value")?,
                value,
            }))
        }
        Some(XA_TRANSACTION_ID) => {
            let format_id = reader.i32()?;
            let global = required(reader, "globalTransactionId", bytes)?;
            let branch = required(reader, "branchQualifier", bytes)?;
            Ok(Some(TransactionId::Xa(Xid { format_id, global, branch })))
        }
        Some(found) => Err(unexpected(reader, "transaction id type", found)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> Bytes {
        let mut out = BytesMut::new();
        write(&mut out);
        out.freeze()
    }

    fn check_back<T: PartialEq + std::fmt::Debug>(
        value: &T,
        bytes: Bytes,
        read: impl Fn(&mut Reader) -> Result<Option<T>, StoredError>,
    ) {
        let mut reader = Reader::new(bytes.clone());
        assert_eq!(read(&mut reader).expect("reads").as_ref(), Some(value));
        assert!(reader.is_empty());
        let mut scan = crate::scan::Scan::new(&bytes);
        scan.skip_object().expect("skips");
        assert_eq!(scan.remaining(), 0);
        for cut in 0..bytes.len() {
            assert!(read(&mut Reader::new(bytes.slice(..cut))).is_err(), "cut at {cut}");
        }
        assert!(matches!(read(&mut Reader::new(Bytes::from_static(&[0]))), Ok(None)));
        assert!(read(&mut Reader::new(Bytes::from_static(&[1, 99]))).is_err());
    }

    #[test]
    fn objects_come_back_and_can_be_stepped_over() {
        let connection = Text::from("ID:host-1:1");
        let producer = ProducerId { connection: connection.clone(), session: 2, value: 3 };
        check_back(&producer, written(|out| put_producer_id(&producer, out)), producer_id);
        let consumer = ConsumerId { connection: connection.clone(), session: -1, value: 7 };
        check_back(&consumer, written(|out| put_consumer_id(&consumer, out)), consumer_id);
        for text_view in [None, Some(Text::from("urn:7"))] {
            let id = MessageId { producer: producer.clone(), sequence: 5, broker_sequence: 1005, text_view };
            check_back(&id, written(|out| put_message_id(&id, 1005, out)), message_id);
        }
        let xid = Xid { format_id: -5, global: Bytes::from_static(b"g"), branch: Bytes::new() };
        for id in [TransactionId::Local { connection, value: 42 }, TransactionId::Xa(xid)] {
            check_back(&id, written(|out| put_transaction_id(&id, out)), transaction_id);
        }
        for kind in DestinationKind::ALL {
            let to = Destination::new(kind, "naïve.日本\0😀");
            check_back(&to, written(|out| put_destination(&to, out)), destination);
        }
    }

    #[test]
    fn too_long_a_string_is_cut_at_a_character() {
        let text = "x".repeat(STRING_BYTES_MAX - 1) + "é!";
        let bytes = written(|out| put_string(&text, out));
        assert_eq!(bytes.len(), 3 + STRING_BYTES_MAX - 1);
        let read = string(&mut Reader::new(bytes));
        assert_eq!(read.map(|t| t.map(|t| t.len())), Ok(Some(STRING_BYTES_MAX - 1)));
    }
}
