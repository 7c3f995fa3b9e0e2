//! Frames that ActiveMQ's own marshallers made: OpenWire version 11, loose, no cache. From `openwire-vectors.jsonl`.

use bytes::Bytes;
use kahawai_message::properties::{self, PropertyValue};
use kahawai_message::stored::{
    decode_ack, decode_message, decode_subscription_info, encode_ack, encode_message,
    encode_subscription_info, read_head,
};
use kahawai_message::{BodyKind, Message, MessageId, StoredError, body};
use serde_json::Value;

use crate::written;

fn bytes_of(hex: &str) -> Bytes {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect::<Vec<_>>()
        .into()
}

/// Name, description and frame of those whose name begins so.
fn vectors(prefix: &str) -> Vec<(String, Value, Bytes)> {
    let found: Vec<_> = include_str!("../data/openwire-11-loose.jsonl")
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|vector| vector["name"].as_str().unwrap().starts_with(prefix))
        .map(|vector| {
            (
                vector["name"].as_str().unwrap().to_owned(),
                vector.clone(),
                bytes_of(vector["hex"].as_str().unwrap()),
            )
        })
        .collect();
    assert!(!found.is_empty(), "{prefix}");
    found
}

/// `["int", 5]` as a value.
fn typed(described: &Value) -> PropertyValue {
    use PropertyValue as V;
    let value = &described[1];
    let integer = || value.as_i64().unwrap();
    match described[0].as_str().unwrap() {
        "null" => V::Null,
        "boolean" => V::Bool(value.as_bool().unwrap()),
        "byte" => V::Byte(integer().try_into().unwrap()),
        "char" => V::Char(integer().try_into().unwrap()),
        "short" => V::Short(integer().try_into().unwrap()),
        "int" => V::Int(integer().try_into().unwrap()),
        "long" => V::Long(integer()),
        "float" => V::Float(value.as_f64().unwrap() as f32),
        "double" => V::Double(value.as_f64().unwrap()),
        "string" => V::String(value.as_str().unwrap().into()),
        "bytes" => V::Bytes(bytes_of(value.as_str().unwrap())),
        unknown => panic!("{unknown}"),
    }
}

fn check_body(message: &Message, described: &Value) {
    match message.kind {
        BodyKind::Text => assert_eq!(body::text(message).unwrap().as_deref(), described[1].as_str()),
        BodyKind::Bytes => assert_eq!(PropertyValue::Bytes(body::bytes(message).unwrap()), typed(described)),
        BodyKind::Object => {
            let plain = body::plain_content(message, body::INFLATED_BYTES_MAX).unwrap().unwrap();
            assert_eq!(PropertyValue::Bytes(plain), typed(described));
        }
        BodyKind::Map => {
            let entries = body::map(message).unwrap();
            assert_eq!(entries.len(), described[1].as_object().unwrap().len());
            for (name, value) in entries {
                assert_eq!(value, typed(&described[1][&*name]), "{name}");
            }
        }
        BodyKind::Stream => {
            let wanted: Vec<_> = described[1].as_array().unwrap().iter().map(typed).collect();
            assert_eq!(body::stream(message).unwrap(), wanted);
        }
        kind => panic!("{kind:?} has no body"),
    }
}

fn is_message(name: &str) -> bool {
    name.split('/').next().is_some_and(|class| class.ends_with("Message")) && !name.ends_with("/min")
}

#[test]
fn messages_of_every_kind_are_written_as_java_writes_them() {
    let mut kinds = std::collections::BTreeSet::new();
    for (name, described, frame) in vectors("ActiveMQ").into_iter().filter(|(name, ..)| is_message(name)) {
        let message = decode_message(frame.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        kinds.insert(message.kind as u8);
        assert!(name.starts_with(message.kind.class_name()), "{name}");
        assert_eq!(written(|out| encode_message(&message, message.id.broker_sequence, out)), frame, "{name}");
        assert_eq!(read_head(&frame).map(|head| head.broker_sequence), Ok(message.id.broker_sequence));
        if described["body"].is_array() {
            check_body(&message, &described["body"]);
        }
        for (property, value) in described["properties"].as_object().into_iter().flatten() {
            assert_eq!(message.property(property), Some(typed(value)), "{name}");
        }
        for property in message.properties.iter().flat_map(properties::iter) {
            assert!(property.is_ok(), "{name}");
        }
    }
    assert_eq!(kinds.len(), BodyKind::ALL.len());
}

#[test]
fn a_message_without_anything_is_no_message_to_store() {
    let [(_, _, frame)] = &vectors("ActiveMQMessage/min")[..] else { panic!("one") };
    assert!(matches!(decode_message(frame.clone()), Err(StoredError::Absent { field: "destination", .. })));
}

#[test]
fn acks_are_written_as_java_writes_them() {
    for (name, _, frame) in vectors("MessageAck/") {
        let ack = decode_ack(frame.clone()).unwrap().unwrap();
        assert_eq!(written(|out| encode_ack(&ack, out)), frame, "{name}");
        assert_eq!(ack.last_message_id.map(|id: MessageId| id.broker_sequence), Some(1005), "{name}");
        assert_eq!(ack.poison_cause.is_empty(), name != "MessageAck/poison-cause");
    }
}

#[test]
fn subscriptions_are_written_as_java_writes_them() {
    for (name, _, frame) in vectors("SubscriptionInfo") {
        let info = decode_subscription_info(frame.clone()).unwrap();
        assert_eq!(written(|out| encode_subscription_info(&info, out)), frame, "{name}");
        assert!(info.no_local);
    }
}

/// Any object may stand in a message's `dataStructure`: our table of shapes must know them all.
#[test]
fn every_object_can_be_kept_inside_a_message() {
    let mut message = Message::default();
    for (name, _, frame) in vectors("") {
        if name == "null" {
            continue;
        }
        let data_structure = Bytes::from([&[1], &frame[4..]].concat());
        message.opaque =
            Some(Box::new(kahawai_message::stored::OpaqueFields { data_structure, ..Default::default() }));
        let bytes = written(|out| encode_message(&message, 0, out));
        let kept = decode_message(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(kept.opaque, message.opaque, "{name}");
    }
}
