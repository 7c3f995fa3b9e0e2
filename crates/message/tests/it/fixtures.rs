//! Every record of the KahaDB directories that ActiveMQ 5.17.2 made.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use kahawai_message::properties::{self, PropertiesBuilder, PropertyValue};
use kahawai_message::stored::{
    ack_broker_sequence, decode_ack, decode_message, decode_subscription_info, encode_ack, encode_message,
    encode_subscription_info, encoded_len_estimate, read_head,
};
use kahawai_message::{Message, TransactionId, body};
use kahawai_wire::Reader;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::written;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../testkit/fixtures/kahadb-5.17.2");

/// A payload inside a store command.
enum Payload {
    Message(Bytes),
    /// A message as a producer sent it, kept by the scheduler until its time comes.
    Scheduled(Bytes),
    Ack(Bytes),
    Subscription(Bytes),
}

/// The length-delimited fields `number` of a protobuf message. KahaDB has varints and these only.
fn field(message: &Bytes, number: u64) -> Option<Bytes> {
    let mut reader = Reader::new(message.clone());
    while !reader.is_empty() {
        let tag = reader.varint64().unwrap();
        if tag & 7 == 0 {
            reader.varint64().unwrap();
            continue;
        }
        assert_eq!(tag & 7, 2);
        let length = reader.varint_len().unwrap();
        let value = reader.bytes(length).unwrap();
        if tag >> 3 == number {
            return Some(value);
        }
    }
    None
}

/// What a user record holds that this crate reads.
fn payload(record: Bytes) -> Option<Payload> {
    let mut reader = Reader::new(record);
    let command = reader.u8().unwrap();
    let length = reader.varint_len().unwrap();
    let fields = reader.bytes(length).unwrap();
    match command {
        1 => field(&fields, 4).map(Payload::Message),
        2 => field(&fields, 4).map(Payload::Ack),
        7 => field(&fields, 4).map(Payload::Subscription),
        10 => field(&field(&fields, 1)?, 4).map(Payload::Message),
        11 => field(&fields, 8).map(Payload::Scheduled),
        _ => None,
    }
}

/// The payloads of one data file, up to the first thing that is no batch.
fn payloads(file: &Path) -> Vec<Payload> {
    const MAGIC: &[u8] = b"\0\0\0\x1c\x02WRITE BATCH";
    let mut reader = Reader::new(std::fs::read(file).unwrap().into());
    let mut found = Vec::new();
    while reader.peek().starts_with(MAGIC) {
        reader.skip(MAGIC.len()).unwrap();
        let length = reader.i32().unwrap() as usize;
        reader.skip(8).unwrap();
        let Ok(batch) = reader.bytes(length) else {
            break; // a torn tail
        };
        let mut records = Reader::new(batch);
        while !records.is_empty() {
            let size = records.i32().unwrap() as usize;
            assert_eq!(records.u8(), Ok(1));
            found.extend(payload(records.bytes(size - 5).unwrap()));
        }
    }
    found
}

/// The data files under `dir`, by directory and number.
fn data_files(dir: &Path, found: &mut Vec<(PathBuf, u32, PathBuf)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            data_files(&path, found);
        } else if let Some(number) =
            name.strip_prefix("db-").and_then(|rest| rest.strip_suffix(".log")?.parse().ok())
        {
            found.push((dir.to_owned(), number, path));
        }
    }
    found.sort();
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

fn check_message(bytes: &Bytes) -> Message {
    let message = decode_message(bytes.clone()).unwrap();
    assert_eq!(&written(|out| encode_message(&message, message.id.broker_sequence, out)), bytes);
    assert!(bytes.len() <= encoded_len_estimate(&message));

    let head = read_head(bytes).unwrap();
    assert_eq!(head.broker_sequence, message.id.broker_sequence);
    assert_eq!(bytes[head.broker_sequence_offset..][..8], head.broker_sequence.to_be_bytes());
    assert_eq!(head.expiration_ms, message.expiration_ms);
    assert_eq!(head.timestamp_ms, message.timestamp_ms);
    assert_eq!(head.redelivery_counter, message.redelivery_counter);
    assert_eq!(bytes[head.redelivery_counter_offset..][..4], head.redelivery_counter.to_be_bytes());
    assert_eq!(
        (head.priority, head.persistent, head.kind),
        (message.priority, message.persistent, message.kind)
    );

    let mut patched = bytes.to_vec();
    patched[head.broker_sequence_offset..][..8].copy_from_slice(&77i64.to_be_bytes());
    assert_eq!(written(|out| encode_message(&message, 77, out)), patched);

    if let Some(marshalled) = &message.properties {
        let mut again = PropertiesBuilder::new();
        for property in properties::iter(marshalled) {
            let (name, value) = property.unwrap();
            again.push(&name, &value).unwrap();
        }
        assert_eq!(again.finish().as_ref(), Some(marshalled));
    }
    message
}

fn check_ack(bytes: &Bytes) {
    let ack = decode_ack(bytes.clone()).unwrap();
    let last_id = ack.as_ref().and_then(|ack| ack.last_message_id.as_ref());
    assert_eq!(ack_broker_sequence(bytes), Ok(last_id.map(|id| id.broker_sequence)));
    if let Some(ack) = &ack {
        assert_eq!(&written(|out| encode_ack(ack, out)), bytes);
    }
}

fn check_subscription(bytes: &Bytes) {
    let info = decode_subscription_info(bytes.clone()).unwrap();
    assert_eq!(&written(|out| encode_subscription_info(&info, out)), bytes);
    assert!(!info.subscription_name.is_empty());
}

/// A property as expected.json has it: Java's class name, and its value as JSON.
fn described(value: &PropertyValue) -> Value {
    use PropertyValue as V;
    let (class, value) = match value {
        V::Bool(v) => ("Boolean", Value::from(*v)),
        V::Byte(v) => ("Byte", Value::from(*v)),
        V::Short(v) => ("Short", Value::from(*v)),
        V::Int(v) => ("Integer", Value::from(*v)),
        V::Long(v) => ("Long", Value::from(*v)),
        V::Float(v) => ("Float", Value::from(f64::from(*v))),
        V::Double(v) => ("Double", Value::from(*v)),
        // The tool that wrote them decodes the two halves of an emoji one by one.
        V::String(v) => ("UTF8Buffer", v.replace(|c| c > '\u{ffff}', "\u{fffd}\u{fffd}").into()),
        other => panic!("no JMS client can set {other:?}"),
    };
    serde_json::json!({ "type": class, "value": value })
}

/// As Java prints it: with the bytes of an XA id sign-extended.
fn java_text(id: &TransactionId) -> String {
    let hex =
        |bytes: &[u8]| bytes.iter().map(|&b| format!("{:x}", i32::from(b.cast_signed()))).collect::<String>();
    match id {
        TransactionId::Local { .. } => id.to_string(),
        TransactionId::Xa(xid) => {
            format!("XID:[{},globalId={},branchId={}]", xid.format_id, hex(&xid.global), hex(&xid.branch))
        }
    }
}

/// Compares a message with what the real broker recovered, field by field.
fn check_expected(message: &Message, expected: &Value) {
    let content = body::content_bytes(message).unwrap_or_default();
    let text =
        |text: Option<&dyn std::fmt::Display>| text.map_or(Value::Null, |text| text.to_string().into());
    for (field, wanted) in expected.as_object().unwrap() {
        let found: Value = match field.as_str() {
            "messageId" => {
                message.id.text_view.as_deref().map_or_else(|| message.id.to_string(), str::to_owned).into()
            }
            "class" => message.kind.class_name().into(),
            "openwireType" => (message.kind as u8).into(),
            "priority" => message.priority.into(),
            "persistent" => message.persistent.into(),
            "timestamp" => message.timestamp_ms.into(),
            "expiration" => message.expiration_ms.into(),
            "redeliveryCounter" => message.redelivery_counter.into(),
            "compressed" => message.compressed.into(),
            "destination" => message.destination.to_string().into(),
            "brokerInTime" => message.broker_in_time_ms.into(),
            "contentLength" => content.len().into(),
            "contentSha256" => sha256(&content).into(),
            "textUtf8Sha256" => {
                body::text(message).unwrap().map_or(Value::Null, |text| sha256(text.as_bytes()).into())
            }
            "type" => text(message.jms_type.as_ref().map(|t| t as _)),
            "correlationId" => text(message.correlation_id.as_ref().map(|t| t as _)),
            "groupId" => text(message.group_id.as_ref().map(|t| t as _)),
            "groupSequence" => message.group_sequence.into(),
            "replyTo" => text(message.reply_to.as_ref().map(|t| t as _)),
            "transactionId" => message.transaction_id.as_ref().map_or(Value::Null, |id| java_text(id).into()),
            "properties" => properties::iter(message.properties.as_ref().unwrap())
                .map(|property| property.map(|(name, value)| (name.to_string(), described(&value))).unwrap())
                .collect::<serde_json::Map<_, _>>()
                .into(),
            unknown => panic!("{unknown} is not compared"),
        };
        assert_eq!(&found, wanted, "{field} of {}", message.id);
        if field == "properties" {
            for (name, wanted) in wanted.as_object().unwrap() {
                assert_eq!(&described(&message.property(name).unwrap()), wanted);
            }
        }
    }
}

/// Unpacks a fixture and checks all of its records; returns how many messages were compared with the real broker's.
fn check_fixture(name: &str) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let archive = format!("{FIXTURES}/{name}.tar.gz");
    assert!(
        Command::new("tar").arg("xzf").arg(archive).arg("-C").arg(dir.path()).status().unwrap().success()
    );
    let mut files = Vec::new();
    data_files(dir.path(), &mut files);

    // By destination and id; an update replaces what it updates.
    let (mut messages, mut scheduled) = (BTreeMap::new(), BTreeMap::new());
    let key = |message: &Message| (message.destination.to_string(), message.id.to_string());
    for (_, _, file) in &files {
        for payload in payloads(file) {
            match payload {
                Payload::Message(bytes) => {
                    let message = check_message(&bytes);
                    messages.insert(key(&message), message);
                }
                Payload::Scheduled(bytes) => {
                    let message = check_message(&bytes);
                    scheduled.insert(key(&message), message);
                }
                Payload::Ack(bytes) => check_ack(&bytes),
                Payload::Subscription(bytes) => check_subscription(&bytes),
            }
        }
    }
    assert!(!messages.is_empty(), "{name} has messages");

    let expected = std::fs::read(format!("{FIXTURES}/{name}.expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let mut compared = 0;
    for (part, expected) in expected["recovered"].as_object().unwrap() {
        let stored = if part == "scheduledJobs" { &scheduled } else { &messages };
        for_each_message(expected, &mut |wanted| {
            let key = |field: &str| wanted[field].as_str().unwrap().to_owned();
            check_expected(&stored[&(key("destination"), key("messageId"))], wanted);
            compared += 1;
        });
    }
    compared
}

/// Calls `each` with all descriptions of messages in a part of expected.json.
fn for_each_message<'a>(part: &'a Value, each: &mut impl FnMut(&'a Value)) {
    match part {
        Value::Object(fields) if fields.contains_key("contentSha256") => each(part),
        Value::Object(fields) => fields.values().for_each(|part| for_each_message(part, each)),
        Value::Array(parts) => parts.iter().for_each(|part| for_each_message(part, each)),
        _ => {}
    }
}

/// All undamaged directories, so that a new one is checked too.
#[test]
fn every_record_is_read_and_written_as_java_wrote_it() {
    let mut compared = BTreeMap::new();
    for entry in std::fs::read_dir(FIXTURES).unwrap() {
        let file_name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(name) = file_name.strip_suffix(".tar.gz").filter(|name| !name.starts_with("damaged-")) {
            compared.insert(name.to_owned(), check_fixture(name));
        }
    }
    for (name, least) in
        [("queue-backlog", 87), ("durable-topics", 67), ("scheduler", 11), ("xa-prepared-clean", 30)]
    {
        assert!(compared.get(name).is_some_and(|&count| count >= least), "{name} in {compared:?}");
    }
}
