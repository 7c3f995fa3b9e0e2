use bytes::{BufMut, Bytes, BytesMut};
use kahawai_wire::{WireError, encode_mutf8, mutf8_len};

use super::{check_end, opaque, put_opaque, put_sized, sized_reader, sized_scan};
use crate::loose::{
    STRING_BYTES_MAX, bytes as read_bytes, destination, message_id, producer_id, put_destination,
    put_message_id, put_optional_bytes, put_optional_destination, put_optional_string,
    put_optional_transaction_id, put_producer_id, required, string, transaction_id,
};
use crate::{BodyKind, Content, Message, Millis, StoredError, Text, TransactionId};

/// What the stored form of a message can be, by its 4-byte size. Settings and the journal have smaller limits.
pub const MESSAGE_BYTES_MAX: usize = i32::MAX as usize;

/// Parts of a message that we keep but do not read, each with its presence byte, as stored.
///
/// An empty field stands for an absent object, except where it says otherwise.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OpaqueFields {
    /// Field 3, `producerId`, where it is not that of the message id (bridges and schedulers do that). Empty = it is.
    pub producer_id: Bytes,
    /// Field 20, `dataStructure`.
    pub data_structure: Bytes,
    /// Field 21, `targetConsumerId`.
    pub target_consumer_id: Bytes,
    /// Field 24, `brokerPath`.
    pub broker_path: Bytes,
    /// Field 29, `cluster`.
    pub cluster: Bytes,
    /// What follows the fields that all messages have: a blob message's own. Without a presence byte.
    pub trailing: Bytes,
}

impl OpaqueFields {
    /// Nothing to keep?
    pub fn is_empty(&self) -> bool {
        // Not `== default()`: comparing slices without bytes can cost 100 ns each, where memcmp loads vectors with a
        // mask and the pointer dangles.
        let Self { producer_id, data_structure, target_consumer_id, broker_path, cluster, trailing } = self;
        [producer_id, data_structure, target_consumer_id, broker_path, cluster, trailing]
            .iter()
            .all(|f| f.is_empty())
    }
}

/// Bytes of all fixed fields and presence bytes, lengths and type numbers of a message whose every field is present.
const FIXED_BYTES_MAX: usize = 256;

/// An upper bound of what [`encode_message`] appends.
pub fn encoded_len_estimate(message: &Message) -> usize {
    encoded_len_with(message, content_len(message))
}

/// Bytes of the content as it is marshalled, without presence and length.
fn content_len(message: &Message) -> usize {
    match &message.content {
        Content::Absent => 0,
        Content::Marshalled(bytes) => bytes.len(),
        Content::Utf8(text) => 4 + mutf8_len(text),
    }
}

fn encoded_len_with(message: &Message, content_len: usize) -> usize {
    let text = |text: &Option<Text>| text.as_ref().map_or(0, |t| t.len());
    let transaction = |id: &Option<TransactionId>| match id {
        None => 0,
        Some(TransactionId::Local { connection, .. }) => 2 * connection.len(),
        Some(TransactionId::Xa(xid)) => xid.global.len() + xid.branch.len(),
    };
    // No text more than doubles in modified UTF-8: NUL takes two bytes instead of one, emoji six instead of four.
    let texts = 2 * message.id.producer.connection.len()
        + text(&message.id.text_view)
        + message.destination.name.len()
        + message.original_destination.as_ref().map_or(0, |d| d.name.len())
        + text(&message.group_id)
        + text(&message.correlation_id)
        + message.reply_to.as_ref().map_or(0, |d| d.name.len())
        + text(&message.jms_type)
        + text(&message.user_id);
    let opaque = message.opaque.as_ref().map_or(0, |o| {
        o.producer_id.len()
            + o.data_structure.len()
            + o.target_consumer_id.len()
            + o.broker_path.len()
            + o.cluster.len()
            + o.trailing.len()
    });
    FIXED_BYTES_MAX
        + 2 * texts
        + transaction(&message.transaction_id)
        + transaction(&message.original_transaction_id)
        + content_len
        + message.properties.as_ref().map_or(0, Bytes::len)
        + opaque
}

/// Checks what [`encode_message`] takes for granted: texts fit their 2-byte lengths and the whole its 4-byte length.
///
/// A front end calls it where a client's limits do not already see to that.
pub fn check_encodable(message: &Message) -> Result<(), StoredError> {
    let texts = [
        ("connection id", Some(&message.id.producer.connection)),
        ("message id", message.id.text_view.as_ref()),
        ("destination name", Some(&message.destination.name)),
        ("original destination name", message.original_destination.as_ref().map(|d| &d.name)),
        ("group id", message.group_id.as_ref()),
        ("correlation id", message.correlation_id.as_ref()),
        ("reply-to name", message.reply_to.as_ref().map(|d| &d.name)),
        ("type", message.jms_type.as_ref()),
        ("user id", message.user_id.as_ref()),
    ];
    for (what, text) in texts {
        let found = text.map_or(0, |text| mutf8_len(text));
        if found > STRING_BYTES_MAX {
            return Err(StoredError::Limit { what, found, limit: STRING_BYTES_MAX });
        }
    }
    let found = encoded_len_estimate(message);
    if found > MESSAGE_BYTES_MAX {
        return Err(StoredError::Limit { what: "message size", found, limit: MESSAGE_BYTES_MAX });
    }
    Ok(())
}

/// Appends `message` in its stored form, with `broker_sequence` in place of its own.
///
/// Reserves once. Texts beyond what [`check_encodable`] admits are cut.
pub fn encode_message(message: &Message, broker_sequence: i64, out: &mut BytesMut) {
    let content_len = content_len(message);
    out.reserve(encoded_len_with(message, content_len));
    put_sized(out, |out| put_message(message, broker_sequence, content_len, out));
}

fn put_message(message: &Message, broker_sequence: i64, content_len: usize, out: &mut BytesMut) {
    let opaque = message.opaque.as_deref();
    let opaque_field = |field: fn(&OpaqueFields) -> &Bytes| opaque.map_or(&[][..], |o| field(o));
    let [a, b, c, d] = message.command_id.to_be_bytes();
    out.extend_from_slice(&[message.kind as u8, a, b, c, d, message.response_required.into()]);
    match opaque_field(|o| &o.producer_id) {
        [] => put_producer_id(&message.id.producer, out),
        other => out.extend_from_slice(other),
    }
    put_destination(&message.destination, out);
    put_optional_transaction_id(message.transaction_id.as_ref(), out);
    put_optional_destination(message.original_destination.as_ref(), out);
    put_message_id(&message.id, broker_sequence, out);
    put_optional_transaction_id(message.original_transaction_id.as_ref(), out);
    put_optional_string(message.group_id.as_ref(), out);
    out.put_i32(message.group_sequence);
    put_optional_string(message.correlation_id.as_ref(), out);
    out.put_u8(message.persistent.into());
    out.put_i64(message.expiration_ms);
    out.put_u8(message.priority);
    put_optional_destination(message.reply_to.as_ref(), out);
    out.put_i64(message.timestamp_ms);
    put_optional_string(message.jms_type.as_ref(), out);
    put_content(&message.content, content_len, out);
    put_optional_bytes(message.properties.as_ref(), out);
    put_opaque(opaque_field(|o| &o.data_structure), out);
    put_opaque(opaque_field(|o| &o.target_consumer_id), out);
    let compressed = message.compressed && !matches!(message.content, Content::Utf8(_));
    let [a, b, c, d] = message.redelivery_counter.to_be_bytes();
    out.extend_from_slice(&[compressed.into(), a, b, c, d]);
    put_opaque(opaque_field(|o| &o.broker_path), out);
    out.put_i64(message.arrival_ms);
    put_optional_string(message.user_id.as_ref(), out);
    out.extend_from_slice(&[message.received_by_df_bridge.into(), message.droppable.into()]);
    put_opaque(opaque_field(|o| &o.cluster), out);
    out.put_i64(message.broker_in_time_ms);
    out.put_i64(message.broker_out_time_ms);
    out.put_u8(message.group_first_for_consumer.into());
    out.extend_from_slice(opaque_field(|o| &o.trailing));
}

/// Appends a text body's length and the text, `marshalled_len` bytes together.
pub(crate) fn put_text_body(text: &str, marshalled_len: usize, out: &mut BytesMut) {
    let text_len = marshalled_len.saturating_sub(4);
    out.put_i32(i32::try_from(text_len).unwrap_or(i32::MAX));
    if text_len == text.len() {
        out.extend_from_slice(text.as_bytes());
    } else {
        encode_mutf8(text, out);
    }
}

fn put_content(content: &Content, content_len: usize, out: &mut BytesMut) {
    match content {
        Content::Absent => out.put_u8(0),
        Content::Marshalled(bytes) => crate::loose::put_bytes(bytes, out),
        Content::Utf8(text) => {
            out.put_u8(1);
            out.put_i32(i32::try_from(content_len).unwrap_or(i32::MAX));
            put_text_body(text, content_len, out);
        }
    }
}

/// The kind of body of a message with this type number.
fn body_kind(type_number: u8, at: usize) -> Result<BodyKind, StoredError> {
    BodyKind::from_number(type_number)
        .ok_or_else(|| WireError::Unexpected { what: "message type", value: type_number.into(), at }.into())
}

/// Reads a stored message; texts and bodies are views into `bytes`, which they keep alive.
///
/// The content comes as [`Content::Marshalled`]. A message without an id or destination is an error.
pub fn decode_message(bytes: Bytes) -> Result<Message, StoredError> {
    let reader = &mut sized_reader(bytes)?;
    let at = reader.position();
    let kind = body_kind(reader.u8()?, at)?;
    let mut keep = OpaqueFields::default();
    // In the order of the fields: struct expressions are evaluated as they are written.
    let command_id = reader.i32()?;
    let response_required = reader.bool()?;
    let producer_start = reader.clone();
    let producer = producer_id(reader)?;
    let producer_len = reader.position() - producer_start.position();
    let destination_ = required(reader, "destination", destination)?;
    let transaction_id_ = transaction_id(reader)?;
    let original_destination = destination(reader)?;
    let id = required(reader, "messageId", message_id)?;
    if producer.as_ref() != Some(&id.producer) {
        keep.producer_id = { producer_start }.bytes(producer_len)?;
    }
    let mut message = Message {
        id,
        destination: destination_,
        original_destination,
        transaction_id: transaction_id_,
        original_transaction_id: transaction_id(reader)?,
        group_id: string(reader)?,
        group_sequence: reader.i32()?,
        correlation_id: string(reader)?,
        persistent: reader.bool()?,
        expiration_ms: reader.i64()?,
        priority: reader.u8()?,
        reply_to: destination(reader)?,
        timestamp_ms: reader.i64()?,
        jms_type: string(reader)?,
        kind,
        content: read_bytes(reader)?.map_or(Content::Absent, Content::Marshalled),
        properties: read_bytes(reader)?,
        command_id,
        response_required,
        ..Message::default()
    };
    keep.data_structure = opaque(reader, |scan| scan.skip_object())?;
    keep.target_consumer_id = opaque(reader, |scan| scan.skip_object())?;
    message.compressed = reader.bool()?;
    message.redelivery_counter = reader.i32()?;
    keep.broker_path = opaque(reader, |scan| scan.skip_array())?;
    message.arrival_ms = reader.i64()?;
    message.user_id = string(reader)?;
    message.received_by_df_bridge = reader.bool()?;
    message.droppable = reader.bool()?;
    keep.cluster = opaque(reader, |scan| scan.skip_array())?;
    message.broker_in_time_ms = reader.i64()?;
    message.broker_out_time_ms = reader.i64()?;
    message.group_first_for_consumer = reader.bool()?;
    if kind == BodyKind::Blob {
        keep.trailing = reader.rest();
    }
    check_end(reader)?;
    if !keep.is_empty() {
        message.opaque = Some(Box::new(keep));
    }
    Ok(message)
}

/// What an index keeps of a stored message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredHead {
    /// The message id's `brokerSequenceId`.
    pub broker_sequence: i64,
    /// Byte offset of its 8 bytes, for patching.
    pub broker_sequence_offset: usize,
    /// When it expires; 0 = never.
    pub expiration_ms: Millis,
    /// When it was sent.
    pub timestamp_ms: Millis,
    /// How many times it was delivered before without an acknowledgement.
    pub redelivery_counter: i32,
    /// Byte offset of its 4 bytes, for patching.
    pub redelivery_counter_offset: usize,
    /// 0 to 9.
    pub priority: u8,
    /// `JMSDeliveryMode`.
    pub persistent: bool,
    /// What the body is.
    pub kind: BodyKind,
}

/// Reads what an index needs, without allocating and without looking at texts and bodies.
pub fn read_head(bytes: &[u8]) -> Result<StoredHead, StoredError> {
    let mut scan = sized_scan(bytes)?;
    let at = scan.position();
    let kind = body_kind(scan.u8()?, at)?;
    scan.skip(5)?; // commandId, responseRequired
    for _producer_destination_transaction_original_destination in 0..4 {
        scan.skip_object()?;
    }
    let (broker_sequence, broker_sequence_offset) = scan
        .message_id_broker_sequence()?
        .ok_or(StoredError::Absent { field: "messageId", at: scan.position() })?;
    scan.skip_object()?; // originalTransactionId
    scan.skip_string()?; // groupID
    scan.skip(4)?; // groupSequence
    scan.skip_string()?; // correlationId
    let persistent = scan.bool()?;
    let expiration_ms = scan.i64()?;
    let priority = scan.u8()?;
    scan.skip_object()?; // replyTo
    let timestamp_ms = scan.i64()?;
    scan.skip_string()?; // type
    scan.skip_bytes()?; // content
    scan.skip_bytes()?; // marshalledProperties
    scan.skip_object()?; // dataStructure
    scan.skip_object()?; // targetConsumerId
    scan.skip(1)?; // compressed
    let redelivery_counter_offset = scan.position();
    Ok(StoredHead {
        broker_sequence,
        broker_sequence_offset,
        expiration_ms,
        timestamp_ms,
        redelivery_counter: scan.i32()?,
        redelivery_counter_offset,
        priority,
        persistent,
        kind,
    })
}
