//! Stores as JSON, in the shape of the fixtures' `expected.json`.

use kahawai_message::properties::{self, PropertyValue};
use kahawai_message::{BodyKind, Message, TransactionId, body};
use kahawai_store::inspect::{InDoubt, Inspection};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Lower-case hex of the SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Hex as Java's `Integer.toHexString` of each signed byte, which is how ActiveMQ prints XA ids.
fn java_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| format!("{:x}", i32::from(b.cast_signed()))).collect()
}

fn transaction(id: &TransactionId) -> String {
    match id {
        TransactionId::Local { .. } => id.to_string(),
        TransactionId::Xa(xid) => {
            format!(
                "XID:[{},globalId={},branchId={}]",
                xid.format_id,
                java_hex(&xid.global),
                java_hex(&xid.branch)
            )
        }
    }
}

/// A text as ActiveMQ's own `UTF8Buffer` shows it: what takes two surrogates in Java's modified UTF-8 is two replacement
/// characters there. Consumers get the true text.
fn utf8_buffer(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if u32::from(c) > 0xffff {
                ['\u{fffd}', '\u{fffd}'].into_iter().take(2)
            } else {
                [c, c].into_iter().take(1)
            }
        })
        .collect()
}

fn property(value: &PropertyValue) -> Value {
    let (kind, value) = match value {
        PropertyValue::Null => ("null", Value::Null),
        PropertyValue::Bool(v) => ("Boolean", json!(v)),
        PropertyValue::Byte(v) => ("Byte", json!(v)),
        PropertyValue::Char(v) => ("Character", json!(String::from_utf16_lossy(&[*v]))),
        PropertyValue::Short(v) => ("Short", json!(v)),
        PropertyValue::Int(v) => ("Integer", json!(v)),
        PropertyValue::Long(v) => ("Long", json!(v)),
        PropertyValue::Double(v) => ("Double", json!(v)),
        PropertyValue::Float(v) => ("Float", json!(v)),
        PropertyValue::String(v) => ("UTF8Buffer", json!(utf8_buffer(v))),
        PropertyValue::Bytes(v) => ("byte[]", json!(hex(v))),
        PropertyValue::Map(entries) => {
            let entries: Map<String, Value> =
                entries.iter().map(|(k, v)| (k.to_string(), property(v))).collect();
            ("HashMap", Value::Object(entries))
        }
        PropertyValue::List(values) => ("ArrayList", Value::Array(values.iter().map(property).collect())),
    };
    json!({ "type": kind, "value": value })
}

/// One message.
pub fn message(m: &Message) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("messageId", json!(m.id.to_string()));
    put("class", json!(m.kind.class_name()));
    put("openwireType", json!(m.kind as u8));
    put("priority", json!(m.priority));
    put("persistent", json!(m.persistent));
    put("timestamp", json!(m.timestamp_ms));
    put("expiration", json!(m.expiration_ms));
    put("redeliveryCounter", json!(m.redelivery_counter));
    if let Some(v) = &m.jms_type {
        put("type", json!(&**v));
    }
    if let Some(v) = &m.correlation_id {
        put("correlationId", json!(&**v));
    }
    if let Some(v) = &m.reply_to {
        put("replyTo", json!(v.to_string()));
    }
    if let Some(v) = &m.group_id {
        put("groupId", json!(&**v));
        put("groupSequence", json!(m.group_sequence));
    }
    if let Some(v) = &m.original_destination {
        put("originalDestination", json!(v.to_string()));
    }
    if let Some(v) = &m.transaction_id {
        put("transactionId", json!(transaction(v)));
    }
    put("compressed", json!(m.compressed));
    put("destination", json!(m.destination.to_string()));
    put("brokerInTime", json!(m.broker_in_time_ms));
    let content = body::content_bytes(m).unwrap_or_default();
    put("contentLength", json!(content.len()));
    put("contentSha256", json!(sha256(&content)));
    if m.kind == BodyKind::Text {
        put(
            "textUtf8Sha256",
            match body::text(m) {
                Ok(Some(text)) => json!(sha256(text.as_bytes())),
                Ok(None) => Value::Null,
                Err(error) => json!(format!("unreadable: {error}")),
            },
        );
    }
    if let Some(marshalled) = &m.properties {
        let mut all = std::collections::BTreeMap::new();
        for entry in properties::iter(marshalled) {
            match entry {
                Ok((name, value)) => all.insert(name.to_string(), property(&value)),
                Err(error) => all.insert("unreadable".to_owned(), json!(error.to_string())),
            };
        }
        if !all.is_empty() {
            put("properties", json!(all));
        }
    }
    Value::Object(out)
}

/// The destinations of one store.
pub fn destinations(store: &mut Inspection) -> anyhow::Result<Vec<Value>> {
    let mut keys: Vec<_> = store
        .state
        .destinations()
        .filter(|(_, d)| d.named || d.count > 0 || !d.subscriptions.is_empty())
        .map(|(key, d)| (d.name.to_string(), key, d.name.kind.is_queue(), d.subscriptions.clone()))
        .collect();
    keys.sort_by(|a, b| a.0.cmp(&b.0));
    let mut out = Vec::new();
    for (name, key, is_queue, subscriptions) in keys {
        let messages = store.messages(key)?;
        let mut one = Map::new();
        one.insert("destination".into(), json!(name));
        if !is_queue {
            let mut subs = Vec::new();
            for (sub_key, sub) in &subscriptions {
                let unacked = store.pending(key, sub_key)?;
                let ids = |all: bool| -> Vec<&str> {
                    unacked
                        .iter()
                        .filter(|(_, delivered)| all || *delivered)
                        .map(|(id, _)| id.as_str())
                        .collect()
                };
                subs.push(json!({
                    "clientId": &*sub.info.client_id,
                    "subscriptionName": &*sub.info.subscription_name,
                    "selector": sub.info.selector.as_deref(),
                    "noLocal": sub.info.no_local,
                    "subscribedDestination": sub.info.subscribed_destination.as_ref().map(ToString::to_string),
                    "pendingCount": sub.pending,
                    "pendingMessageIds": ids(false),
                    "unackedMessageIds": ids(true),
                }));
            }
            one.insert("subscriptions".into(), Value::Array(subs));
        }
        one.insert("count".into(), json!(messages.len()));
        one.insert("messages".into(), messages.iter().map(|(_, m)| message(m)).collect());
        out.push(Value::Object(one));
    }
    Ok(out)
}

/// A transaction in doubt.
pub fn in_doubt(t: &InDoubt) -> Value {
    let (format, global, branch) = match &t.id {
        TransactionId::Xa(xid) => (json!(xid.format_id), hex(&xid.global), hex(&xid.branch)),
        TransactionId::Local { connection, value } => {
            (Value::Null, connection.to_string(), value.to_string())
        }
    };
    let acks: Vec<Value> = t
        .acks
        .iter()
        .map(|ack| {
            json!({
                "destination": ack.destination.to_string(),
                "messageId": ack.message_key,
                "ackType": ack.ack_type,
                "subscriptionKey": ack.subscription_key,
            })
        })
        .collect();
    json!({
        "formatId": format,
        "globalTransactionIdHex": global,
        "branchQualifierHex": branch,
        "adds": t.adds.iter().map(message).collect::<Vec<_>>(),
        "acks": acks,
    })
}

/// `2046-11-17 18:23:38`, UTC, from milliseconds since 1970.
pub fn date(ms: i64) -> String {
    let seconds = ms.div_euclid(1000);
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Civil date from days, after Howard Hinnant's public description: years begin in March.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_civil() {
        for (ms, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400_000, "2000-02-29 00:00:00"),
            (2_426_091_818_000, "2046-11-17 18:23:38"),
            (-1, "1969-12-31 23:59:59"),
        ] {
            assert_eq!(date(ms), text);
        }
    }
}
