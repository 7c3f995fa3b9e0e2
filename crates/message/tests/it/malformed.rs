//! Bytes from a disk or a peer are an error value at worst.

use bytes::Bytes;
use kahawai_message::properties::{self, PropertyValue};
use kahawai_message::stored::{
    ack_broker_sequence, decode_ack, decode_message, decode_subscription_info, encode_ack, encode_message,
    encode_subscription_info, read_head,
};
use kahawai_message::{BodyKind, Message, StoredError, body};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::any::{any_ack, any_message, any_properties, any_subscription_info, marshalled};
use crate::written;

/// Everything that reads, over everything; what can be read can be written.
fn read_all(bytes: &Bytes) {
    let head = read_head(bytes);
    if let Ok(message) = decode_message(bytes.clone()) {
        assert_eq!(head.map(|head| head.broker_sequence), Ok(message.id.broker_sequence));
        let again = written(|out| encode_message(&message, 1, out));
        assert!(decode_message(again).is_ok());
        read_body(&message);
    }
    let sequence = ack_broker_sequence(bytes);
    if let Ok(ack) = decode_ack(bytes.clone()) {
        assert_eq!(sequence, Ok(ack.and_then(|ack| ack.last_message_id).map(|id| id.broker_sequence)));
    }
    let _ = decode_subscription_info(bytes.clone());
    read_properties(bytes);
}

fn read_properties(bytes: &Bytes) {
    let all: Result<Vec<_>, _> = properties::iter(bytes).collect();
    let _ = properties::get(bytes, "a");
    let _ = properties::values(bytes.clone()).count();
    // What reads whole can be stepped over whole.
    if all.is_ok() {
        assert!(properties::retain(bytes, |_| true).is_ok());
    }
}

fn read_body(message: &Message) {
    let _ = message.property("a");
    for kind in BodyKind::ALL {
        for compressed in [false, true] {
            let message =
                Message { kind, compressed, content: message.content.clone(), ..Message::default() };
            let _ =
                (body::text(&message), body::bytes(&message), body::map(&message), body::stream(&message));
        }
    }
}

fn any_stored() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        any_message().prop_map(|m| written(|out| encode_message(&m, 5, out))),
        any_ack().prop_map(|a| written(|out| encode_ack(&a, out))),
        any_subscription_info().prop_map(|s| written(|out| encode_subscription_info(&s, out))),
        any_properties().prop_map(|p| marshalled(&p).unwrap_or_default()),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
        read_all(&bytes.into());
    }

    /// With the right size and type, so that more than the prefix is looked at.
    #[test]
    fn any_bytes_of_the_right_size_are_read_without_panic(
        type_number in select(&[22u8, 23, 24, 28, 29, 55][..]),
        rest in vec(prop_oneof![0..2u8, any::<u8>()], 0..300),
    ) {
        let mut bytes = (rest.len() as u32 + 1).to_be_bytes().to_vec();
        bytes.push(type_number);
        bytes.extend(rest);
        read_all(&bytes.into());
    }

    #[test]
    fn flipped_bits_are_read_without_panic(bytes in any_stored(), flips in vec((any::<Index>(), 0..8u32), 1..4)) {
        let mut bytes = bytes.to_vec();
        for (at, bit) in flips {
            if !bytes.is_empty() {
                *at.get_mut(&mut bytes) ^= 1 << bit;
            }
        }
        read_all(&bytes.into());
    }

    #[test]
    fn a_cut_message_is_refused_even_with_the_right_size(message in any_message(), cut: Index) {
        let bytes = written(|out| encode_message(&message, 5, out));
        let cut = cut.index(bytes.len() - 4);
        prop_assert!(decode_message(bytes.slice(..4 + cut)).is_err());
        let mut sized = (cut as u32).to_be_bytes().to_vec();
        sized.extend_from_slice(&bytes[4..4 + cut]);
        read_all(&sized.clone().into());
        // A blob message's own fields begin where the others end.
        prop_assert!(decode_message(sized.into()).is_err());
    }
}

fn check_refused(properties: &[u8], wanted: &str) {
    let bytes = Bytes::copy_from_slice(properties);
    let error = properties::iter(&bytes).find_map(Result::err).expect("is refused");
    assert_eq!(error.to_string(), wanted);
    assert!(properties::get(&bytes, "?").is_err());
}

#[test]
fn properties_declare_no_more_than_is_there() {
    check_refused(b"\x7f\xff\xff\xff\0\x01a\0", "property count 2147483647 exceeds the limit of 1");
    check_refused(b"\xff\xff\xff\xfe", "impossible length -2 at byte 0");
    check_refused(b"\0\0\0\x01\0\x01a\x0a\x7f\xff\xff\xff", "2147483647 bytes wanted at byte 12, 0 are left");
    check_refused(b"\0\0\0\x01\0\x01a\x0c\0\0\0\x02\0", "property count 2 exceeds the limit of 1");
    check_refused(b"\0\0\0\x01\0\x01a\x0e", "unexpected property type 14 at byte 7");
    let deep = [b"\0\0\0\x01\0\x01a".to_vec(), b"\x0c\0\0\0\x01".repeat(128), vec![0]].concat();
    check_refused(&deep, "property depth 128 exceeds the limit of 127");
}

#[test]
fn null_properties_are_none() {
    let bytes = Bytes::from_static(b"\xff\xff\xff\xff");
    assert_eq!(properties::iter(&bytes).count(), 0);
    assert_eq!(properties::get(&bytes, "a"), Ok(None));
}

#[test]
fn values_in_one_list_are_counted() {
    let count = properties::VALUES_MAX as u32;
    let bytes =
        [b"\0\0\0\x01\0\x01a\x0c".to_vec(), count.to_be_bytes().to_vec(), vec![0; count as usize]].concat();
    check_first(&bytes, |value| matches!(value, Err(StoredError::Limit { what: "property values", .. })));
    let bytes =
        [b"\0\0\0\x01\0\x01a\x0c".to_vec(), (count - 1).to_be_bytes().to_vec(), vec![0; count as usize]]
            .concat();
    check_first(&bytes, |value| matches!(value, Ok(PropertyValue::List(_))));
}

fn check_first(properties: &[u8], right: impl Fn(Result<PropertyValue, StoredError>) -> bool) {
    let bytes = Bytes::copy_from_slice(properties);
    let first = properties::iter(&bytes).next().expect("is there");
    assert!(right(first.map(|(_, value)| value)));
}

#[test]
fn absent_and_null_acks_are_none() {
    for bytes in [&b""[..], b"\0\0\0\x01\0"] {
        assert_eq!(decode_ack(Bytes::copy_from_slice(bytes)), Ok(None));
        assert_eq!(ack_broker_sequence(bytes), Ok(None));
    }
    for bytes in [&b"\0\0\0\x02\0\0"[..], b"\0\0\0\0", b"\0", b"\0\0\0\x01\x17"] {
        assert!(decode_ack(Bytes::copy_from_slice(bytes)).is_err());
        assert!(ack_broker_sequence(bytes).is_err());
    }
}

#[test]
fn what_follows_the_last_field_is_refused() {
    let mut bytes = written(|out| encode_message(&Message::default(), 1, out)).to_vec();
    bytes.push(0);
    assert!(matches!(decode_message(bytes.clone().into()), Err(StoredError::Size { .. })));
    let size = bytes.len() as u32 - 4;
    bytes[..4].copy_from_slice(&size.to_be_bytes());
    assert!(matches!(decode_message(bytes.into()), Err(StoredError::Trailing { count: 1, .. })));
}

#[test]
fn a_message_without_id_or_destination_is_refused() {
    // Type, commandId, responseRequired, then absent: producer, destination.
    let no_destination = [b"\0\0\0\x40\x17\0\0\0\0\0\0\0".to_vec(), vec![0; 56]].concat();
    assert_eq!(
        decode_message(no_destination.into()),
        Err(StoredError::Absent { field: "destination", at: 11 })
    );
}
