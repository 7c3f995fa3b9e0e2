//! What is written reads back, and is written again the same.

use bytes::Bytes;
use kahawai_message::properties::{self, PropertiesBuilder, PropertyValue};
use kahawai_message::stored::{
    ack_broker_sequence, check_encodable, decode_ack, decode_message, decode_subscription_info, encode_ack,
    encode_message, encode_subscription_info, encoded_len_estimate, read_head,
};
use kahawai_message::{Content, Destination, Message, StoredError, Text, body};
use proptest::prelude::*;

use crate::any::{
    any_ack, any_message, any_properties, any_subscription_info, any_text, any_value, marshalled,
};
use crate::written;

/// As it comes back: content is always marshalled, the broker's number is the one that was stored.
fn stored_form(mut message: Message, broker_sequence: i64) -> Message {
    if let Some(content) = body::content_bytes(&message) {
        message.content = Content::Marshalled(content);
    }
    message.id.broker_sequence = broker_sequence;
    message
}

proptest! {
    #[test]
    fn messages_come_back_and_are_written_the_same(message in any_message(), broker_sequence: i64) {
        let bytes = written(|out| encode_message(&message, broker_sequence, out));
        prop_assert!(bytes.len() <= encoded_len_estimate(&message));
        let decoded = decode_message(bytes.clone())?;
        prop_assert_eq!(&written(|out| encode_message(&decoded, broker_sequence, out)), &bytes);
        prop_assert_eq!(decoded, stored_form(message, broker_sequence));
    }

    #[test]
    fn the_head_agrees_with_the_whole(message in any_message(), broker_sequence: i64, patched: i64) {
        let bytes = written(|out| encode_message(&message, broker_sequence, out));
        let head = read_head(&bytes)?;
        prop_assert_eq!(head.broker_sequence, broker_sequence);
        prop_assert_eq!(head.expiration_ms, message.expiration_ms);
        prop_assert_eq!(head.timestamp_ms, message.timestamp_ms);
        prop_assert_eq!(head.redelivery_counter, message.redelivery_counter);
        prop_assert_eq!(head.priority, message.priority);
        prop_assert_eq!(head.persistent, message.persistent);
        prop_assert_eq!(head.kind, message.kind);

        let mut other = bytes.to_vec();
        other[head.broker_sequence_offset..][..8].copy_from_slice(&patched.to_be_bytes());
        other[head.redelivery_counter_offset..][..4].copy_from_slice(&7i32.to_be_bytes());
        let redelivered = Message { redelivery_counter: 7, ..message };
        prop_assert_eq!(written(|out| encode_message(&redelivered, patched, out)), other);
    }

    #[test]
    fn acks_come_back_and_are_written_the_same(ack in any_ack()) {
        let bytes = written(|out| encode_ack(&ack, out));
        prop_assert_eq!(ack_broker_sequence(&bytes)?, ack.last_message_id.as_ref().map(|id| id.broker_sequence));
        prop_assert_eq!(decode_ack(bytes)?, Some(ack));
    }

    #[test]
    fn subscriptions_come_back(info in any_subscription_info()) {
        let bytes = written(|out| encode_subscription_info(&info, out));
        prop_assert_eq!(decode_subscription_info(bytes)?, info);
    }

    #[test]
    fn properties_come_back_all_together_and_by_name(entries in any_properties(), other in any_text()) {
        let Some(bytes) = marshalled(&entries) else {
            prop_assert!(entries.is_empty());
            return Ok(());
        };
        let read: Vec<_> = properties::iter(&bytes).collect::<Result<_, _>>()?;
        prop_assert_eq!(&read, &entries);
        for name in entries.iter().map(|(name, _)| name).chain([&other]) {
            let wanted = entries.iter().find(|(found, _)| found == name).map(|(_, value)| value);
            let found = properties::get(&bytes, name)?;
            prop_assert_eq!(found.as_ref(), wanted);
        }
    }

    #[test]
    fn setting_and_dropping_properties_keeps_the_others(
        entries in any_properties(),
        name in any_text(),
        value in any_value(),
    ) {
        let before = marshalled(&entries);
        let mut wanted: Vec<_> = entries.into_iter().filter(|(found, _)| *found != name).collect();
        if let Some(before) = &before {
            prop_assert_eq!(properties::retain(before, |found| found != &*name)?, marshalled(&wanted));
        }
        wanted.push((name.clone(), value.clone()));
        prop_assert_eq!(Some(properties::with(before.as_ref(), &name, &value)?), marshalled(&wanted));
    }

    #[test]
    fn texts_are_found_again_in_text_messages(text in any_text()) {
        for content in [Content::Utf8(text.clone()), Content::Marshalled(body::marshal_text(&text))] {
            let message = Message { kind: kahawai_message::BodyKind::Text, content, ..Message::default() };
            prop_assert_eq!(body::text(&message)?, Some(text.clone()));
        }
    }
}

#[test]
fn a_text_property_becomes_long_at_javas_limit() {
    for (text, type_number) in [
        ("x".repeat(8190), 9),
        ("x".repeat(8191), 13),
        ("中".repeat(8190), 9),
        ("中".repeat(8191), 13),
        ("😀".repeat(4095), 9),
        ("😀".repeat(4096), 13),
    ] {
        let mut builder = PropertiesBuilder::new();
        builder.push_text("n", &text).unwrap();
        let bytes = builder.finish().unwrap();
        assert_eq!(bytes[4 + 3], type_number, "{} bytes", text.len());
        assert_eq!(properties::get(&bytes, "n"), Ok(Some(PropertyValue::String(text.into()))));
    }
}

#[test]
fn a_refused_property_leaves_the_others() {
    let mut builder = PropertiesBuilder::new();
    let too_long = "n".repeat(65_536);
    assert!(matches!(builder.push_text(&too_long, "v"), Err(StoredError::Limit { found: 65_536, .. })));
    assert!(builder.is_empty());
    builder.push_text("a", "b").unwrap();
    let bad = PropertyValue::Map(vec![(too_long.into(), PropertyValue::Null)]);
    assert!(builder.push("c", &bad).is_err());
    let deep = (0..200).fold(PropertyValue::Null, |value, _| PropertyValue::List(vec![value]));
    assert!(matches!(builder.push("d", &deep), Err(StoredError::Limit { what: "property depth", .. })));
    assert_eq!(builder.len(), 1);
    assert_eq!(builder.finish().as_deref(), Some(&b"\0\0\0\x01\0\x01a\x09\0\x01b"[..]));
    assert_eq!(PropertiesBuilder::new().finish(), None);
}

#[test]
fn a_name_that_does_not_fit_is_refused_by_the_check_and_cut_by_the_writer() {
    let message = Message { destination: Destination::queue("é".repeat(40_000)), ..Message::default() };
    assert_eq!(
        check_encodable(&message),
        Err(StoredError::Limit { what: "destination name", found: 80_000, limit: 65_535 })
    );
    let bytes = written(|out| encode_message(&message, 1, out));
    assert_eq!(decode_message(bytes).map(|m| m.destination.name), Ok(Text::from("é".repeat(32_767))));
    assert_eq!(check_encodable(&Message::default()), Ok(()));
}

#[test]
fn texts_and_bodies_are_views() {
    let message = Message { content: Content::Marshalled(Bytes::from(vec![7; 100])), ..Message::default() };
    let bytes = written(|out| encode_message(&message, 1, out));
    let inside = bytes.as_ptr_range();
    let Ok(Message { content: Content::Marshalled(content), .. }) = decode_message(bytes) else {
        panic!("content is marshalled");
    };
    assert!(inside.contains(&content.as_ptr()));
}
