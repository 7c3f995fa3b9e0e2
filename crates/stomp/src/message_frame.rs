//! Message to MESSAGE.

use bytes::{BufMut, Bytes, BytesMut};
use kahawai_message::front::Delivery;
use kahawai_message::{BodyKind, Content, Message, MessageId, ProducerId, Text, body, properties};
use memchr::memchr;

use crate::Version;
use crate::consumer::Consumer;
use crate::destination::{Temporaries, put_destination};
use crate::escape::{put_any_header, put_decimal, put_header, put_number, put_unsigned, put_value};
use crate::json;

/// What ends every frame. The line end is not asked for; ActiveMQ writes it, and it makes sessions readable.
pub(crate) const END: &[u8] = b"\0\n";

/// Room for the headers that every MESSAGE has, generously.
const HEAD_BYTES: usize = 512;

/// A body and how to announce it.
struct Body {
    bytes: Bytes,
    content_length: bool,
    content_type: Option<&'static str>,
}

impl Body {
    /// Clients tell texts from bytes by the absence of content-length, so a text has it only where it must.
    fn text(bytes: Bytes) -> Self {
        Self { content_length: memchr(0, &bytes).is_some(), bytes, content_type: None }
    }

    fn bytes(bytes: Bytes) -> Self {
        Self { bytes, content_length: true, content_type: None }
    }

    fn json(text: String) -> Self {
        Self { content_type: Some("application/json"), ..Self::text(text.into()) }
    }

    /// A body that cannot be read goes as it is.
    fn of(message: &Message) -> Self {
        let raw = || match &message.content {
            Content::Marshalled(bytes) => bytes.clone(),
            Content::Utf8(text) => text.as_bytes().clone(),
            Content::Absent => Bytes::new(),
        };
        match (message.kind, &message.content) {
            (BodyKind::Text, Content::Utf8(text)) => Self::text(text.as_bytes().clone()),
            (BodyKind::Text, _) => match body::text(message) {
                Ok(text) => Self::text(text.map(Text::into_bytes).unwrap_or_default()),
                // Perhaps only its characters are wrong: then what follows the length is what was sent.
                Err(_) if !message.compressed && raw().len() >= 4 => Self::text(raw().slice(4..)),
                Err(_) => Self::bytes(raw()),
            },
            (BodyKind::Bytes, Content::Marshalled(bytes)) if !message.compressed => {
                Self::bytes(bytes.clone())
            }
            (BodyKind::Bytes, _) => Self::bytes(body::bytes(message).unwrap_or_else(|_| raw())),
            (BodyKind::Map, _) => match body::map(message) {
                Ok(entries) => Self::json(json::object(&entries)),
                Err(_) => Self::bytes(raw()),
            },
            (BodyKind::Stream, _) => match body::stream(message) {
                Ok(values) => Self::json(json::array(&values)),
                Err(_) => Self::bytes(raw()),
            },
            // A Java object or a reference means nothing here; ActiveMQ sends no body either.
            (BodyKind::Plain | BodyKind::Object | BodyKind::Blob, _) => Self::text(Bytes::new()),
        }
    }
}

/// Writes the MESSAGE frames of one connection, and remembers what the next one will need again.
#[derive(Debug, Default)]
pub(crate) struct MessageWriter {
    last_producer: ProducerId,
    /// `message-id:` and `last_producer`, escaped, with the colon after it; empty = there is none yet.
    id_line: BytesMut,
}

impl MessageWriter {
    pub(crate) fn put(
        &mut self,
        out: &mut BytesMut,
        (delivery, message): (&Delivery, &Message),
        consumer: &Consumer,
        temporaries: &Temporaries,
        version: Version,
    ) {
        let body = Body::of(message);
        out.reserve(HEAD_BYTES + body.bytes.len() + message.properties.as_ref().map_or(0, Bytes::len));
        out.put_slice(b"MESSAGE\n");
        out.put_slice(consumer.subscription_line());
        if version == Version::V1_2 && consumer.is_acked_by_client() {
            out.put_slice(b"ack:");
            put_unsigned(out, delivery.consumer.0.into());
            out.put_u8(b'-');
            put_unsigned(out, delivery.tag);
            out.put_u8(b'\n');
        }
        out.put_slice(b"destination:");
        put_destination(out, &message.destination, temporaries, version);
        out.put_u8(b'\n');
        self.put_id(out, &message.id, version);
        put_number(out, "expires", message.expiration_ms);
        put_number(out, "priority", message.priority.into());
        put_number(out, "timestamp", message.timestamp_ms);
        if message.persistent {
            out.put_slice(b"persistent:true\n");
        }
        if delivery.redelivery_counter > 0 {
            out.put_slice(b"redelivered:true\n");
        }
        put_optional(out, "correlation-id", &message.correlation_id, version);
        put_optional(out, "type", &message.jms_type, version);
        put_optional(out, "JMSXUserID", &message.user_id, version);
        put_optional(out, "JMSXGroupID", &message.group_id, version);
        if message.group_id.is_some() || message.group_sequence != 0 {
            put_number(out, "JMSXGroupSeq", message.group_sequence.into());
        }
        for (name, destination) in
            [("reply-to", &message.reply_to), ("original-destination", &message.original_destination)]
        {
            if let Some(destination) = destination {
                out.put_slice(name.as_bytes());
                out.put_u8(b':');
                put_destination(out, destination, temporaries, version);
                out.put_u8(b'\n');
            }
        }
        if let Some(properties) = &message.properties {
            put_properties(out, properties, version);
        }
        if let Some(content_type) = body.content_type {
            put_header(out, "content-type", content_type.as_bytes(), version);
        }
        if body.content_length {
            out.put_slice(b"content-length:");
            put_unsigned(out, body.bytes.len() as u64);
            out.put_u8(b'\n');
        }
        out.put_u8(b'\n');
        out.put_slice(&body.bytes);
        out.put_slice(END);
    }

    fn put_id(&mut self, out: &mut BytesMut, id: &MessageId, version: Version) {
        if let Some(text) = &id.text_view {
            out.put_slice(b"message-id:");
            if !text.starts_with("ID:") {
                put_value(out, b"ID:", version);
            }
            put_value(out, text.as_bytes(), version);
        } else {
            if id.producer != self.last_producer || self.id_line.is_empty() {
                self.last_producer = id.producer.clone();
                self.id_line.clear();
                self.id_line.put_slice(b"message-id:");
                put_value(&mut self.id_line, format!("{}:", id.producer).as_bytes(), version);
            }
            out.put_slice(&self.id_line);
            put_decimal(out, id.sequence);
        }
        out.put_u8(b'\n');
    }
}

fn put_optional(out: &mut BytesMut, name: &str, value: &Option<Text>, version: Version) {
    if let Some(value) = value {
        put_header(out, name, value.as_bytes(), version);
    }
}

/// What other protocols let a property be called, but STOMP clients take for ours.
fn is_reserved(name: &str) -> bool {
    matches!(
        name,
        "destination"
            | "message-id"
            | "subscription"
            | "ack"
            | "expires"
            | "priority"
            | "timestamp"
            | "persistent"
            | "redelivered"
            | "content-length"
    )
}

/// Every property as a header, up to the first that cannot be read.
fn put_properties(out: &mut BytesMut, properties: &Bytes, version: Version) {
    for (name, value) in properties::iter(properties).map_while(Result::ok) {
        if is_reserved(&name) {
            continue;
        }
        match &value {
            properties::PropertyValue::String(text) => {
                put_any_header(out, name.as_bytes(), text.as_bytes(), version);
            }
            other => put_any_header(out, name.as_bytes(), json::header_text(other).as_bytes(), version),
        }
    }
}
