//! SEND to message.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use kahawai_message::front::{Request, TransactionNumber};
use kahawai_message::properties::{PropertiesBuilder, PropertyValue};
use kahawai_message::{
    BodyKind, Content, DEFAULT_PRIORITY, Destination, Message, MessageId, Millis, ProducerId, Text,
};

use crate::decode::Frame;
use crate::destination::{DestinationError, Temporaries, Unprefixed, read_destination};
use crate::fault::Fault;

/// ActiveMQ gives its STOMP connections one session and one producer, with these numbers.
const SESSION: i64 = -1;
const PRODUCER: i64 = 1;

/// What a header of SEND is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Destination,
    Receipt,
    Transaction,
    Persistent,
    Expires,
    Priority,
    Timestamp,
    CorrelationId,
    ReplyTo,
    Type,
    MessageType,
    Transformation,
    /// JMS's own names, which ActiveMQ takes as the message's fields.
    Jms,
    /// Would mislead whoever receives the message.
    Dropped,
    Property,
}

fn slot(name: &[u8]) -> Slot {
    match name {
        b"destination" => Slot::Destination,
        b"receipt" => Slot::Receipt,
        b"persistent" => Slot::Persistent,
        b"content-length" | b"message-id" | b"redelivered" | b"subscription" | b"ack" | b"JMSXUserID" => {
            Slot::Dropped
        }
        b"transaction" => Slot::Transaction,
        b"expires" => Slot::Expires,
        b"priority" => Slot::Priority,
        b"timestamp" => Slot::Timestamp,
        b"correlation-id" => Slot::CorrelationId,
        b"reply-to" => Slot::ReplyTo,
        b"type" => Slot::Type,
        b"amq-msg-type" => Slot::MessageType,
        b"transformation" => Slot::Transformation,
        b"JMSXGroupID" | b"JMSXGroupSeq" | b"JMSXDeliveryCount" | b"JMSCorrelationID"
        | b"JMSDeliveryMode" | b"JMSExpiration" | b"JMSPriority" | b"JMSRedelivered" | b"JMSReplyTo"
        | b"JMSTimestamp" | b"JMSType" => Slot::Jms,
        _ => Slot::Property,
    }
}

/// The first of each known header, as it came.
#[derive(Default)]
pub(crate) struct Known<'a> {
    destination: Option<&'a [u8]>,
    pub(crate) receipt: Option<&'a [u8]>,
    pub(crate) transaction: Option<&'a [u8]>,
    persistent: Option<&'a [u8]>,
    expires: Option<&'a [u8]>,
    priority: Option<&'a [u8]>,
    timestamp: Option<&'a [u8]>,
    correlation_id: Option<&'a [u8]>,
    reply_to: Option<&'a [u8]>,
    jms_type: Option<&'a [u8]>,
    message_type: Option<&'a [u8]>,
    transformation: Option<&'a [u8]>,
    jms: bool,
    properties: bool,
}

impl<'a> Known<'a> {
    pub(crate) fn of(frame: Frame<'a>) -> Self {
        let mut known = Self::default();
        for (name, value) in frame.headers() {
            let place = match slot(name) {
                Slot::Destination => &mut known.destination,
                Slot::Receipt => &mut known.receipt,
                Slot::Transaction => &mut known.transaction,
                Slot::Persistent => &mut known.persistent,
                Slot::Expires => &mut known.expires,
                Slot::Priority => &mut known.priority,
                Slot::Timestamp => &mut known.timestamp,
                Slot::CorrelationId => &mut known.correlation_id,
                Slot::ReplyTo => &mut known.reply_to,
                Slot::Type => &mut known.jms_type,
                Slot::MessageType => &mut known.message_type,
                Slot::Transformation => &mut known.transformation,
                Slot::Jms => {
                    known.jms = true;
                    continue;
                }
                Slot::Dropped => continue,
                Slot::Property => {
                    known.properties = true;
                    continue;
                }
            };
            if place.is_none() {
                *place = Some(value);
            }
        }
        // ActiveMQ keeps these two as properties besides.
        known.properties |= known.message_type.is_some() || known.transformation.is_some();
        known
    }
}

/// Turns SENDs of one connection into messages, and remembers what the next one will need again.
#[derive(Debug)]
pub(crate) struct Sender {
    producer: ProducerId,
    sequence: i64,
    /// The last destination, as it came and as it was read.
    last_destination: (Vec<u8>, Destination),
    last_properties: PropertyCache,
}

impl Sender {
    pub(crate) fn new(connection_id: Text) -> Self {
        Self {
            producer: ProducerId { connection: connection_id, session: SESSION, value: PRODUCER },
            sequence: 0,
            last_destination: Default::default(),
            last_properties: PropertyCache::default(),
        }
    }

    /// The request that `frame` makes, without the answer that it may want. `frame` is made of `bytes`.
    pub(crate) fn read(
        &mut self,
        now: Millis,
        frame: Frame<'_>,
        bytes: &Bytes,
        known: &Known<'_>,
        transaction: Option<TransactionNumber>,
        temporaries: &mut Temporaries,
    ) -> Result<Request, Fault> {
        let destination =
            known.destination.ok_or(Fault::Missing { command: "SEND", header: "destination" })?;
        let destination = self.destination(frame, destination, temporaries)?;
        let (kind, content) = content(frame, bytes, known)?;
        let whole = |header, value: Option<&[u8]>, otherwise| {
            value.map_or(Ok(otherwise), |value| number(frame, header, value))
        };
        let expiration_ms = whole("expires", known.expires, 0)?;
        let timestamp_ms = whole("timestamp", known.timestamp, now)?;
        let priority = whole("priority", known.priority, DEFAULT_PRIORITY.into())?.clamp(0, 9) as u8;
        let (mut reply_to, mut foreign_reply_to) = (None, None);
        if let Some(value) = known.reply_to {
            let text = frame.text(value);
            match read_destination(&text, Unprefixed::Refused, temporaries) {
                Ok(destination) => reply_to = Some(destination),
                // Some other system's address: it travels as it is.
                Err(DestinationError::Prefix(_) | DestinationError::Empty(_)) => {
                    foreign_reply_to = Some(text)
                }
                Err(error) => return Err(error.into()),
            }
        }
        let mut properties = None;
        if known.properties || foreign_reply_to.is_some() {
            let untransformed = known.transformation.is_some_and(|value| value != b"jms-byte")
                && frame.content_length().is_none();
            let added = [
                foreign_reply_to.as_deref().map(|text| ("reply-to", text)),
                untransformed.then_some(("transformation-error", "transformations are not supported here")),
            ];
            properties = self.last_properties.read(frame, added)?;
        }
        let sequence = self.sequence + 1;
        // Everything that can fail comes before, so that the message, which is large, is made in place.
        let mut request = Request::Send {
            message: Message {
                id: MessageId {
                    producer: self.producer.clone(),
                    sequence,
                    broker_sequence: 0,
                    text_view: None,
                },
                destination,
                // More lenient than ActiveMQ, which takes `True` for false: to store it is the safe side.
                persistent: known.persistent.is_some_and(|value| value.eq_ignore_ascii_case(b"true")),
                priority,
                expiration_ms,
                timestamp_ms,
                reply_to,
                correlation_id: known.correlation_id.map(|value| frame.view(bytes, value)),
                jms_type: known.jms_type.map(|value| frame.view(bytes, value)),
                kind,
                content,
                properties,
                ..Message::default()
            },
            transaction,
        };
        if let (true, Request::Send { message, .. }) = (known.jms, &mut request) {
            set_jms_fields(message, frame, bytes)?;
        }
        self.sequence = sequence;
        Ok(request)
    }

    fn destination(
        &mut self,
        frame: Frame<'_>,
        raw: &[u8],
        temporaries: &mut Temporaries,
    ) -> Result<Destination, Fault> {
        if self.last_destination.0 != raw || raw.is_empty() {
            let destination = read_destination(&frame.text(raw), Unprefixed::Queue, temporaries)?;
            self.last_destination.0.clear();
            self.last_destination.0.extend_from_slice(raw);
            self.last_destination.1 = destination;
        }
        Ok(self.last_destination.1.clone())
    }
}

/// A body with content-length is bytes, one without is a text, unless `amq-msg-type` says otherwise.
fn content(frame: Frame<'_>, bytes: &Bytes, known: &Known<'_>) -> Result<(BodyKind, Content), Fault> {
    let is_bytes = match known.message_type.map(|value| frame.text(value)) {
        None => frame.content_length().is_some(),
        Some(kind) if kind.eq_ignore_ascii_case("bytes") => true,
        Some(kind) if kind.eq_ignore_ascii_case("text") => false,
        Some(other) => return Err(Fault::MessageType(other.into_owned())),
    };
    let body = bytes.slice_ref(frame.body());
    if is_bytes {
        return Ok((BodyKind::Bytes, Content::Marshalled(body)));
    }
    let content = Text::try_from(body.clone()).map_or_else(|_| as_it_came(&body), Content::Utf8);
    Ok((BodyKind::Text, content))
}

/// Stored form of a text that is not UTF-8: what ActiveMQ stores, the length and the bytes unread.
fn as_it_came(body: &[u8]) -> Content {
    let mut stored = BytesMut::with_capacity(4 + body.len());
    stored.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    stored.put_slice(body);
    Content::Marshalled(stored.freeze())
}

fn set_jms_fields(message: &mut Message, frame: Frame<'_>, bytes: &Bytes) -> Result<(), Fault> {
    for (index, (name, value)) in frame.headers().enumerate() {
        if slot(name) != Slot::Jms || frame.headers().take(index).any(|(earlier, _)| earlier == name) {
            continue;
        }
        let view = || frame.view(bytes, value);
        match name {
            b"JMSXGroupID" => message.group_id = Some(view()),
            b"JMSXGroupSeq" => {
                let sequence = number(frame, "JMSXGroupSeq", value)?;
                message.group_sequence =
                    i32::try_from(sequence).map_err(|_| not_a_number(frame, name, value))?;
            }
            b"JMSCorrelationID" => message.correlation_id = Some(view()),
            b"JMSExpiration" => message.expiration_ms = number(frame, "JMSExpiration", value)?,
            b"JMSPriority" => message.priority = number(frame, "JMSPriority", value)?.clamp(0, 9) as u8,
            b"JMSTimestamp" => message.timestamp_ms = number(frame, "JMSTimestamp", value)?,
            b"JMSType" => message.jms_type = Some(view()),
            b"JMSReplyTo" => message.reply_to = Some(Destination::from_qualified(&frame.text(value))),
            b"JMSDeliveryMode" => {
                message.persistent =
                    [&b"2"[..], b"PERSISTENT", b"true"].iter().any(|yes| value.eq_ignore_ascii_case(yes));
            }
            // How often it was delivered is ours to know.
            _ => {}
        }
    }
    Ok(())
}

fn not_a_number(frame: Frame<'_>, header: &[u8], value: &[u8]) -> Fault {
    Fault::Number { header: frame.text(header).into_owned(), value: frame.text(value).into_owned() }
}

fn number(frame: Frame<'_>, header: &str, value: &[u8]) -> Result<i64, Fault> {
    let digits = std::str::from_utf8(value.trim_ascii()).ok();
    digits.and_then(|text| text.parse().ok()).ok_or_else(|| not_a_number(frame, header.as_bytes(), value))
}

/// The properties of the last SEND that had any: a producer mostly sends the same ones again.
#[derive(Debug, Default)]
struct PropertyCache {
    /// The raw headers that `properties` were made of.
    key: Vec<u8>,
    next_key: Vec<u8>,
    properties: Option<Bytes>,
}

/// From so many headers on repeated names are found by sorting.
const SORTED_FROM: usize = 24;

impl PropertyCache {
    fn read(&mut self, frame: Frame<'_>, added: [Option<(&str, &str)>; 2]) -> Result<Option<Bytes>, Fault> {
        self.next_key.clear();
        for (name, value) in property_headers(frame) {
            // Neither name nor value holds a line end as it came, nor a name a colon: the key is unambiguous.
            for part in [name, b":", value, b"\n"] {
                self.next_key.extend_from_slice(part);
            }
        }
        for (name, value) in added.into_iter().flatten() {
            for part in [name, ":", value, "\n\n"] {
                self.next_key.extend_from_slice(part.as_bytes());
            }
        }
        if self.next_key != self.key || self.key.is_empty() {
            self.properties = marshal(frame, added, self.next_key.len())?;
            std::mem::swap(&mut self.key, &mut self.next_key);
        }
        Ok(self.properties.clone())
    }
}

fn property_headers<'a>(frame: Frame<'a>) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    frame.headers().filter(|(name, _)| {
        matches!(slot(name), Slot::Property | Slot::MessageType | Slot::Transformation) && !name.is_empty()
    })
}

fn marshal(frame: Frame<'_>, added: [Option<(&str, &str)>; 2], bytes: usize) -> Result<Option<Bytes>, Fault> {
    // Of headers with one name the first counts (STOMP 1.2, "Repeated Header Entries").
    let repeated = repeated_headers(frame);
    let mut builder = PropertiesBuilder::with_capacity(bytes + 3 * frame.header_count());
    for (index, (name, value)) in property_headers(frame).enumerate() {
        if repeated.contains(&index) {
            continue;
        }
        let (name, value) = (frame.text(name), frame.text(value));
        put_property(&mut builder, &name, value)?;
    }
    for (name, value) in added.into_iter().flatten() {
        put_property(&mut builder, name, Cow::Borrowed(value))?;
    }
    Ok(builder.finish())
}

fn put_property(builder: &mut PropertiesBuilder, name: &str, value: Cow<'_, str>) -> Result<(), Fault> {
    let whole = || {
        value
            .trim()
            .parse::<i64>()
            .map_err(|_| Fault::Number { header: name.to_owned(), value: value.clone().into_owned() })
    };
    // ActiveMQ's scheduler wants these as numbers.
    let pushed = match name {
        "AMQ_SCHEDULED_DELAY" | "AMQ_SCHEDULED_PERIOD" => builder.push(name, &PropertyValue::Long(whole()?)),
        "AMQ_SCHEDULED_REPEAT" => {
            let times = i32::try_from(whole()?)
                .map_err(|_| Fault::Number { header: name.to_owned(), value: value.clone().into_owned() })?;
            builder.push(name, &PropertyValue::Int(times))
        }
        _ => builder.push_text(name, &value),
    };
    pushed.map_err(|error| Fault::Property { name: name.to_owned(), cause: error.to_string() })
}

/// Which of the property headers repeat the name of an earlier one.
fn repeated_headers(frame: Frame<'_>) -> Vec<usize> {
    let mut repeated = Vec::new();
    if frame.header_count() < SORTED_FROM {
        for (index, (name, _)) in property_headers(frame).enumerate() {
            if property_headers(frame).take(index).any(|(earlier, _)| earlier == name) {
                repeated.push(index);
            }
        }
    } else {
        let mut names: Vec<_> =
            property_headers(frame).enumerate().map(|(index, (name, _))| (name, index)).collect();
        names.sort_unstable();
        for pair in names.windows(2) {
            if let [(earlier, _), (name, index)] = pair
                && earlier == name
            {
                repeated.push(*index);
            }
        }
        repeated.sort_unstable();
    }
    repeated
}
