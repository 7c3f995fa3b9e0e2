//! Compressed bodies, with limits.

use std::io::Write;

use bytes::Bytes;
use kahawai_message::properties::PropertyValue;
use kahawai_message::{BodyKind, Content, Message, StoredError, body};

use crate::any::marshalled;

fn zlib(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn message(kind: BodyKind, compressed: bool, content: impl Into<Bytes>) -> Message {
    Message { kind, compressed, content: Content::Marshalled(content.into()), ..Message::default() }
}

fn compressed_bytes(declared: i32, plain: &[u8]) -> Message {
    message(BodyKind::Bytes, true, [declared.to_be_bytes().to_vec(), zlib(plain)].concat())
}

#[test]
fn compressed_texts_and_maps_are_inflated_whole() {
    let text = "naïve 日本 \0 😀 ".repeat(2_000);
    let inflated = body::text(&message(BodyKind::Text, true, zlib(&body::marshal_text(&text))));
    assert_eq!(inflated.unwrap().as_deref(), Some(text.as_str()));

    let entries =
        vec![("a".into(), PropertyValue::Int(1)), ("é\0".into(), PropertyValue::String(text.into()))];
    let content = marshalled(&entries).unwrap();
    assert_eq!(body::map(&message(BodyKind::Map, false, content.clone())), Ok(entries.clone()));
    assert_eq!(body::map(&message(BodyKind::Map, true, zlib(&content))), Ok(entries));
}

#[test]
fn compressed_bytes_end_where_they_declare() {
    // Java deflates its whole backing array, so more may follow.
    assert_eq!(body::bytes(&compressed_bytes(3, b"abc\0\0\0")), Ok(Bytes::from_static(b"abc")));
    assert_eq!(body::bytes(&compressed_bytes(3, b"abc")), Ok(Bytes::from_static(b"abc")));
    assert_eq!(body::bytes(&compressed_bytes(0, b"")), Ok(Bytes::new()));
    assert_eq!(
        body::bytes(&compressed_bytes(4, b"abc")),
        Err(StoredError::Inflated { declared: 4, inflated: 3 })
    );
    assert!(body::bytes(&compressed_bytes(-1, b"abc")).is_err());
    let large = vec![7; 1 << 20];
    assert_eq!(body::bytes(&compressed_bytes(1 << 20, &large)), Ok(large.into()));
}

#[test]
fn a_body_is_inflated_up_to_the_limit_and_no_further() {
    let zeros = message(BodyKind::Object, true, zlib(&[0; 100_000]));
    assert_eq!(body::plain_content(&zeros, 100_000).unwrap().map(|b| b.len()), Some(100_000));
    let too_long = Err(StoredError::Limit { what: "inflated size", found: 100_000, limit: 99_999 });
    assert_eq!(body::plain_content(&zeros, 99_999), too_long);
    assert_eq!(body::plain_content(&compressed_bytes(100_000, &[0; 100_000]), 99_999), too_long);
    assert!(body::plain_content(&compressed_bytes(i32::MAX, b""), body::INFLATED_BYTES_MAX).is_err());
}

#[test]
fn damaged_zlib_streams_are_refused() {
    let mut cut = zlib(b"some text that is long enough");
    cut.truncate(cut.len() / 2);
    assert_eq!(body::plain_content(&message(BodyKind::Object, true, cut), 1 << 20), Err(StoredError::Zlib));
    assert_eq!(body::text(&message(BodyKind::Text, true, &b"not zlib"[..])), Err(StoredError::Zlib));
}

#[test]
fn no_text_is_not_an_empty_text() {
    let absent = Message { kind: BodyKind::Text, ..Message::default() };
    assert_eq!(body::text(&absent), Ok(None));
    assert_eq!(body::text(&message(BodyKind::Text, false, &b"\xff\xff\xff\xff"[..])), Ok(None));
    assert_eq!(body::text(&message(BodyKind::Text, false, &b"\0\0\0\0"[..])), Ok(Some("".into())));
    assert!(body::text(&message(BodyKind::Text, false, &b"\0\0\0\x05abc"[..])).is_err());
}

#[test]
fn absent_bodies_of_the_other_kinds_are_empty() {
    let absent = |kind| Message { kind, ..Message::default() };
    assert_eq!(body::bytes(&absent(BodyKind::Bytes)), Ok(Bytes::new()));
    assert_eq!(body::map(&absent(BodyKind::Map)), Ok(vec![]));
    assert_eq!(body::stream(&absent(BodyKind::Stream)), Ok(vec![]));
    assert_eq!(body::content_bytes(&absent(BodyKind::Bytes)), None);
}

#[test]
fn a_body_is_read_only_as_what_it_is() {
    let text = message(BodyKind::Text, false, body::marshal_text("x"));
    let wrong = |wanted| StoredError::BodyKind { wanted, found: BodyKind::Text };
    assert_eq!(body::bytes(&text), Err(wrong(BodyKind::Bytes)));
    assert_eq!(body::map(&text), Err(wrong(BodyKind::Map)));
    assert_eq!(body::stream(&text), Err(wrong(BodyKind::Stream)));
}

#[test]
fn type_numbers_and_class_names_are_activemqs() {
    for number in 0..=u8::MAX {
        let kind = BodyKind::from_number(number);
        assert_eq!(kind.map(|kind| kind as u8), (23..=29).contains(&number).then_some(number));
    }
    let names: Vec<_> = BodyKind::ALL.iter().map(|kind| kind.class_name()).collect();
    assert_eq!(names[0], "ActiveMQMessage");
    assert_eq!(names[5], "ActiveMQTextMessage");
}
