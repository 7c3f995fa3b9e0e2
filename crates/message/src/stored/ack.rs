use bytes::{BufMut, Bytes, BytesMut};
use kahawai_wire::WireError;

use super::{check_end, opaque, put_opaque, put_sized, sized_reader, sized_scan};
use crate::loose::{
    consumer_id, destination, message_id, put_consumer_id, put_destination, put_message_id,
    put_optional_transaction_id, required, transaction_id,
};
use crate::{ConsumerId, Destination, MessageId, StoredError, TransactionId};

/// OpenWire's type number of a MessageAck.
const MESSAGE_ACK: u8 = 22;
/// The type number of a marshalled null.
const NULL: u8 = 0;
/// Bytes of an acknowledgement without its texts.
const FIXED_BYTES_MAX: usize = 192;

/// A consumer's acknowledgement as the store keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MessageAck {
    /// OpenWire's command id.
    pub command_id: i32,
    /// Whether the client waits for a response.
    pub response_required: bool,
    /// Where the message was.
    pub destination: Destination,
    /// The transaction it is part of.
    pub transaction_id: Option<TransactionId>,
    /// Who acknowledges.
    pub consumer_id: Option<ConsumerId>,
    /// OpenWire's number: 0 delivered, 1 poison, 2 standard, 3 redelivered, 4 individual, 5 unmatched, 6 expired.
    pub ack_type: u8,
    /// First of the range, mostly absent.
    pub first_message_id: Option<MessageId>,
    /// Last of the range: the acknowledged message of the record.
    pub last_message_id: Option<MessageId>,
    /// Size of the range.
    pub message_count: i32,
    /// Why it went to the dead letters: a marshalled throwable with its presence byte; empty = absent.
    pub poison_cause: Bytes,
}

/// Appends `ack` in its stored form. Reserves once.
pub fn encode_ack(ack: &MessageAck, out: &mut BytesMut) {
    let id_len = |id: &Option<MessageId>| {
        id.as_ref()
            .map_or(0, |id| id.producer.connection.len() + id.text_view.as_ref().map_or(0, |t| t.len()))
    };
    let transaction_len = match &ack.transaction_id {
        None => 0,
        Some(TransactionId::Local { connection, .. }) => connection.len(),
        Some(TransactionId::Xa(xid)) => xid.global.len() + xid.branch.len(),
    };
    let texts = ack.destination.name.len()
        + transaction_len
        + ack.consumer_id.as_ref().map_or(0, |id| id.connection.len())
        + id_len(&ack.first_message_id)
        + id_len(&ack.last_message_id);
    // As for messages: no text more than doubles.
    out.reserve(FIXED_BYTES_MAX + 2 * texts + ack.poison_cause.len());
    put_sized(out, |out| put_ack(ack, out));
}

fn put_ack(ack: &MessageAck, out: &mut BytesMut) {
    let [a, b, c, d] = ack.command_id.to_be_bytes();
    out.extend_from_slice(&[MESSAGE_ACK, a, b, c, d, ack.response_required.into()]);
    put_destination(&ack.destination, out);
    put_optional_transaction_id(ack.transaction_id.as_ref(), out);
    match &ack.consumer_id {
        Some(id) => put_consumer_id(id, out),
        None => out.put_u8(0),
    }
    out.put_u8(ack.ack_type);
    for id in [&ack.first_message_id, &ack.last_message_id] {
        match id {
            Some(id) => put_message_id(id, id.broker_sequence, out),
            None => out.put_u8(0),
        }
    }
    out.put_i32(ack.message_count);
    put_opaque(&ack.poison_cause, out);
}

/// Reads a stored acknowledgement. `None` for no bytes and for the marshalled null, `00 00 00 01 00`.
pub fn decode_ack(bytes: Bytes) -> Result<Option<MessageAck>, StoredError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let reader = &mut sized_reader(bytes)?;
    let type_number = reader.u8()?;
    if is_null(type_number, reader.remaining())? {
        return Ok(None);
    }
    // Struct expressions are evaluated as they are written: in the order of the fields.
    let ack = MessageAck {
        command_id: reader.i32()?,
        response_required: reader.bool()?,
        destination: required(reader, "destination", destination)?,
        transaction_id: transaction_id(reader)?,
        consumer_id: consumer_id(reader)?,
        ack_type: reader.u8()?,
        first_message_id: message_id(reader)?,
        last_message_id: message_id(reader)?,
        message_count: reader.i32()?,
        poison_cause: opaque(reader, |scan| scan.skip_throwable())?,
    };
    check_end(reader)?;
    Ok(Some(ack))
}

/// Whether this type number, followed by so many bytes, is the null that stands for no acknowledgement.
fn is_null(type_number: u8, remaining: usize) -> Result<bool, StoredError> {
    match type_number {
        MESSAGE_ACK => Ok(false),
        NULL if remaining == 0 => Ok(true),
        _ => Err(WireError::Unexpected { what: "ack type", value: type_number.into(), at: 4 }.into()),
    }
}

/// `lastMessageId.brokerSequenceId` of a stored acknowledgement; `None` where [`decode_ack`] has none, or no last id.
pub fn ack_broker_sequence(bytes: &[u8]) -> Result<Option<i64>, StoredError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut scan = sized_scan(bytes)?;
    let type_number = scan.u8()?;
    if is_null(type_number, scan.remaining())? {
        return Ok(None);
    }
    scan.skip(5)?; // commandId, responseRequired
    scan.skip_object()?; // destination
    scan.skip_object()?; // transactionId
    scan.skip_object()?; // consumerId
    scan.skip(1)?; // ackType
    scan.skip_object()?; // firstMessageId
    Ok(scan.message_id_broker_sequence()?.map(|(broker_sequence, _)| broker_sequence))
}
