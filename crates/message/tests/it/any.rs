//! Strategies: any value that a client can make.

use bytes::Bytes;
use kahawai_message::properties::{PropertiesBuilder, PropertyValue};
use kahawai_message::stored::{MessageAck, OpaqueFields, SubscriptionInfo};
use kahawai_message::{
    BodyKind, ConsumerId, Content, Destination, DestinationKind, Message, MessageId, ProducerId, Text,
    TransactionId, Xid, body,
};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

/// Plain, accented, with NUL, with emoji, around Java's surrogates.
pub fn any_text() -> impl Strategy<Value = Text> {
    prop_oneof!["[a-zA-Z0-9:./-]{0,40}", r"(?s)(\PC|[\x00é中\u{d7ff}\u{e000}\u{ffff}😀]){0,30}",]
        .prop_map(Text::from)
}

pub fn any_bytes(length_max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..=length_max).prop_map(Bytes::from)
}

pub fn any_destination() -> impl Strategy<Value = Destination> {
    (select(&DestinationKind::ALL[..]), any_text()).prop_map(|(kind, name)| Destination { kind, name })
}

fn any_producer_id() -> impl Strategy<Value = ProducerId> {
    (any_text(), any::<i64>(), any::<i64>()).prop_map(|(connection, session, value)| ProducerId {
        connection,
        session,
        value,
    })
}

pub fn any_message_id() -> impl Strategy<Value = MessageId> {
    (any_producer_id(), any::<i64>(), any::<i64>(), of(any_text())).prop_map(
        |(producer, sequence, broker_sequence, text_view)| MessageId {
            producer,
            sequence,
            broker_sequence,
            text_view,
        },
    )
}

fn any_transaction_id() -> impl Strategy<Value = TransactionId> {
    prop_oneof![
        (any_text(), any::<i64>()).prop_map(|(connection, value)| TransactionId::Local { connection, value }),
        (any::<i32>(), any_bytes(64), any_bytes(64))
            .prop_map(|(format_id, global, branch)| TransactionId::Xa(Xid { format_id, global, branch })),
    ]
}

pub fn any_value() -> impl Strategy<Value = PropertyValue> {
    use PropertyValue as V;
    let leaf = prop_oneof![
        Just(V::Null),
        any::<bool>().prop_map(V::Bool),
        any::<i8>().prop_map(V::Byte),
        any::<u16>().prop_map(V::Char),
        any::<i16>().prop_map(V::Short),
        any::<i32>().prop_map(V::Int),
        any::<i64>().prop_map(V::Long),
        any::<f64>().prop_map(V::Double),
        any::<f32>().prop_map(V::Float),
        any_text().prop_map(V::String),
        (8_188..8_194usize, select(&["x", "é", "\0", "😀"][..]))
            .prop_map(|(n, c)| V::String(c.repeat(n).into())),
        any_bytes(40).prop_map(V::Bytes),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec((any_text(), inner.clone()), 0..4).prop_map(V::Map),
            vec(inner, 0..4).prop_map(V::List),
        ]
    })
}

pub fn any_properties() -> impl Strategy<Value = Vec<(Text, PropertyValue)>> {
    vec((any_text(), any_value()), 0..6)
}

pub fn marshalled(properties: &[(Text, PropertyValue)]) -> Option<Bytes> {
    let mut builder = PropertiesBuilder::new();
    for (name, value) in properties {
        builder.push(name, value).unwrap();
    }
    builder.finish()
}

fn any_opaque() -> impl Strategy<Value = Option<Box<OpaqueFields>>> {
    let object = |bytes: &'static [u8]| select(vec![Bytes::new(), Bytes::from_static(bytes)]);
    (
        select(vec![
            Bytes::new(),
            Bytes::from_static(b"\0"),
            Bytes::from_static(b"\x01\x7b\x01\0\0\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x09"),
        ]),
        object(b"\x01\x0a\0\0\0\x07\x01"),
        object(b"\x01\x7a\x01\0\x01c\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02"),
        object(b"\x01\0\x02\x01\x7c\x01\0\x01b\0"),
        object(b"\x01\0\0"),
    )
        .prop_map(|(producer_id, data_structure, target_consumer_id, broker_path, cluster)| {
            let fields = OpaqueFields {
                producer_id,
                data_structure,
                target_consumer_id,
                broker_path,
                cluster,
                ..OpaqueFields::default()
            };
            (fields != OpaqueFields::default()).then(|| Box::new(fields))
        })
}

/// Content of every kind, marshalled or not; not always what its kind says.
fn any_content() -> impl Strategy<Value = Content> {
    prop_oneof![
        Just(Content::Absent),
        any_text().prop_map(Content::Utf8),
        any_text().prop_map(|text| Content::Marshalled(body::marshal_text(&text))),
        any_bytes(300).prop_map(Content::Marshalled),
    ]
}

pub fn any_message() -> impl Strategy<Value = Message> {
    let identity = (any_message_id(), any_destination(), of(any_destination()), of(any_destination()));
    let transactions = (of(any_transaction_id()), of(any_transaction_id()));
    let texts = (of(any_text()), of(any_text()), of(any_text()), of(any_text()));
    let content = (select(&BodyKind::ALL[..]), any_content(), any::<bool>(), any_properties(), any_opaque());
    let numbers = (any::<[i64; 5]>(), any::<[i32; 3]>(), any::<u8>());
    let flags = any::<[bool; 5]>();
    (identity, transactions, texts, content, numbers, flags).prop_map(
        |(
            (id, destination, original_destination, reply_to),
            (transaction_id, original_transaction_id),
            (group_id, correlation_id, jms_type, user_id),
            (kind, content, compressed, properties, opaque),
            (
                [expiration_ms, timestamp_ms, broker_in_time_ms, broker_out_time_ms, arrival_ms],
                [group_sequence, redelivery_counter, command_id],
                priority,
            ),
            [persistent, received_by_df_bridge, droppable, group_first_for_consumer, response_required],
        )| Message {
            id,
            destination,
            original_destination,
            transaction_id,
            original_transaction_id,
            group_id,
            group_sequence,
            correlation_id,
            persistent,
            expiration_ms,
            priority,
            reply_to,
            timestamp_ms,
            jms_type,
            kind,
            compressed: compressed && !matches!(content, Content::Utf8(_)),
            content,
            properties: marshalled(&properties),
            redelivery_counter,
            user_id,
            broker_in_time_ms,
            broker_out_time_ms,
            arrival_ms,
            received_by_df_bridge,
            droppable,
            group_first_for_consumer,
            command_id,
            response_required,
            opaque,
        },
    )
}

pub fn any_ack() -> impl Strategy<Value = MessageAck> {
    let consumer = (any_text(), any::<i64>(), any::<i64>())
        .prop_map(|(connection, session, value)| ConsumerId { connection, session, value });
    (
        (any::<i32>(), any::<bool>(), any_destination(), of(any_transaction_id()), of(consumer)),
        (any::<u8>(), of(any_message_id()), of(any_message_id()), any::<i32>()),
        select(vec![Bytes::new(), Bytes::from_static(b"\x01\x01\0\x01C\0")]),
    )
        .prop_map(
            |(
                (command_id, response_required, destination, transaction_id, consumer_id),
                (ack_type, first_message_id, last_message_id, message_count),
                poison_cause,
            )| MessageAck {
                command_id,
                response_required,
                destination,
                transaction_id,
                consumer_id,
                ack_type,
                first_message_id,
                last_message_id,
                message_count,
                poison_cause,
            },
        )
}

pub fn any_subscription_info() -> impl Strategy<Value = SubscriptionInfo> {
    (any_text(), any_destination(), of(any_text()), any_text(), of(any_destination()), any::<bool>())
        .prop_map(
            |(client_id, destination, selector, subscription_name, subscribed_destination, no_local)| {
                SubscriptionInfo {
                    client_id,
                    destination,
                    selector,
                    subscription_name,
                    subscribed_destination,
                    no_local,
                }
            },
        )
}
