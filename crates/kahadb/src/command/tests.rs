use bytes::{Bytes, BytesMut};
use kahawai_message::{Destination, DestinationKind, MessageId, ProducerId, Text, TransactionId, Xid};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn hex(text: &str) -> Bytes {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn encoded(command: &Command) -> Bytes {
    let mut out = BytesMut::new();
    encode(command, &mut out);
    out.freeze()
}

/// `payload` means `command`, and `command` is written as `payload`.
#[track_caller]
fn check(payload: &str, command: &Command) {
    assert_eq!(decode(hex(payload)).as_ref(), Ok(command));
    assert_eq!(encoded(command), hex(payload));
}

#[track_caller]
fn check_tolerates(payload: &str, command: &Command) {
    assert_eq!(decode(hex(payload)).as_ref(), Ok(command));
}

#[track_caller]
fn check_refuses(payload: &str, error: CommandError) {
    assert_eq!(decode(hex(payload)), Err(error));
}

fn local(connection: &'static str, value: i64) -> TransactionId {
    TransactionId::Local { connection: Text::from_static(connection), value }
}

fn trace(text: Option<&'static str>) -> Command {
    Command::Trace { text: text.map(Text::from_static) }
}

fn an_add() -> AddMessage {
    AddMessage {
        transaction: None,
        destination: Destination::topic("t"),
        message_key: "k".into(),
        message: Bytes::from_static(b"mm"),
        priority: 4,
        priority_supported: false,
    }
}

#[test]
fn a_trace_may_have_no_text() {
    check("00 00", &trace(None));
    check("00 02 0a 00", &trace(Some("")));
    check("00 05 0a 03 61 62 63", &trace(Some("abc")));
}

#[test]
fn a_trace_with_a_broken_text_still_is_a_trace() {
    check_tolerates("00 03 0a 01 ff", &trace(Some("\u{fffd}")));
}

#[test]
fn a_local_transaction_has_both_its_fields_under_number_one() {
    check("04 09 0a 07 0a 05 0a 01 63 08 07", &Command::Commit(local("c", 7)));
    check_tolerates("04 09 0a 07 0a 05 08 07 0a 01 63", &Command::Commit(local("c", 7)));
}

#[test]
fn a_negative_format_id_takes_ten_bytes() {
    let xid = Xid { format_id: -5, global: Bytes::from_static(b"g"), branch: Bytes::from_static(b"b") };
    check(
        "03 15 0a 13 12 11 08 fb ff ff ff ff ff ff ff ff 01 12 01 62 1a 01 67",
        &Command::Prepare(TransactionId::Xa(xid)),
    );
}

#[test]
fn a_transaction_without_a_local_id_is_xa() {
    let xid = Xid { format_id: 0, global: Bytes::new(), branch: Bytes::new() };
    check_tolerates("05 02 0a 00", &Command::Rollback(TransactionId::Xa(xid)));
}

#[test]
fn an_add_always_says_its_priority() {
    check("01 12 12 05 08 01 12 01 74 1a 01 6b 22 02 6d 6d 28 04 30 00", &Command::AddMessage(an_add()));
    check_tolerates("01 0e 12 05 08 01 12 01 74 1a 01 6b 22 02 6d 6d", &Command::AddMessage(an_add()));
}

#[test]
fn an_update_wraps_an_add() {
    check(
        "0a 14 0a 12 12 05 08 01 12 01 74 1a 01 6b 22 02 6d 6d 28 04 30 00",
        &Command::UpdateMessage(an_add()),
    );
}

#[test]
fn fields_come_in_any_order_with_unknown_ones_between_and_the_last_counts() {
    check_tolerates(
        "01 27 30 00 22 02 78 78 28 04 79 1122334455667788 22 02 6d 6d 7d 11223344 1a 01 6b 12 05 12 01 74 08 01 82 01 00",
        &Command::AddMessage(an_add()),
    );
}

#[test]
fn an_empty_ack_is_not_a_missing_one() {
    let mut remove = RemoveMessage {
        transaction: None,
        destination: Destination::topic("t"),
        message_key: "k".into(),
        ack: Some(Bytes::new()),
        subscription_key: Some("c:s".into()),
    };
    check(
        "02 11 12 05 08 01 12 01 74 1a 01 6b 22 00 2a 03 63 3a 73",
        &Command::RemoveMessage(remove.clone()),
    );
    remove.ack = None;
    check("02 0f 12 05 08 01 12 01 74 1a 01 6b 2a 03 63 3a 73", &Command::RemoveMessage(remove));
}

#[test]
fn a_subscription_without_info_is_a_removal() {
    let mut subscription = Subscription {
        destination: Destination::topic("t"),
        subscription_key: "c:s".into(),
        retroactive: false,
        info: None,
    };
    check("07 0c 0a 05 08 01 12 01 74 12 03 63 3a 73", &Command::Subscription(subscription.clone()));
    subscription.info = Some(Bytes::from_static(b"i"));
    check("07 11 0a 05 08 01 12 01 74 12 03 63 3a 73 18 00 22 01 69", &Command::Subscription(subscription));
}

#[test]
fn what_is_no_command_is_refused_with_its_reason() {
    check_refuses("", CommandError::Empty);
    check_refuses("11 00", CommandError::UnknownType(17));
    check_refuses("00", CommandError::Length { command: 0, declared: None, available: 0 });
    check_refuses("00 05 00", CommandError::Length { command: 0, declared: Some(5), available: 1 });
    check_refuses("00 00 00", CommandError::Length { command: 0, declared: Some(0), available: 1 });
    check_refuses("01 00", CommandError::Missing { command: 1, field: "destination" });
    check_refuses("04 00", CommandError::Missing { command: 4, field: "transaction" });
    let source = kahawai_wire::WireError::Short { at: 2, wanted: 9, available: 1 };
    check_refuses("04 03 0a 09 00", CommandError::Malformed { command: 4, message_at: 2, source });
    let source = kahawai_wire::WireError::Unexpected { what: "destination type", value: 4, at: 0 };
    check_refuses("06 04 0a 02 08 04", CommandError::Malformed { command: 6, message_at: 4, source });
}

fn any_text() -> impl Strategy<Value = Text> {
    prop_oneof![4 => ".{0,12}", 1 => ".{100,200}"].prop_map(|text: String| Text::from(text))
}

/// Empty, small, and around the places where a varint grows.
fn any_bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        vec(any::<u8>(), 0..20),
        vec(any::<u8>(), 60..130),
        (16_200..16_500usize).prop_map(|length| vec![7; length]),
    ]
    .prop_map(Bytes::from)
}

fn any_destination() -> impl Strategy<Value = Destination> {
    (proptest::sample::select(DestinationKind::ALL.to_vec()), any_text())
        .prop_map(|(kind, name)| Destination { kind, name })
}

fn any_transaction() -> impl Strategy<Value = TransactionId> {
    prop_oneof![
        (any_text(), any::<i64>()).prop_map(|(connection, value)| TransactionId::Local { connection, value }),
        (any::<i32>(), vec(any::<u8>(), 0..64), vec(any::<u8>(), 0..64)).prop_map(
            |(format_id, global, branch)| {
                TransactionId::Xa(Xid { format_id, global: global.into(), branch: branch.into() })
            }
        ),
    ]
}

fn any_add() -> impl Strategy<Value = AddMessage> {
    (
        proptest::option::of(any_transaction()),
        any_destination(),
        any_text(),
        any_bytes(),
        any::<i32>(),
        any::<bool>(),
    )
        .prop_map(|(transaction, destination, message_key, message, priority, priority_supported)| {
            AddMessage { transaction, destination, message_key, message, priority, priority_supported }
        })
}

fn any_command() -> impl Strategy<Value = Command> {
    let remove = (
        proptest::option::of(any_transaction()),
        any_destination(),
        any_text(),
        proptest::option::of(any_bytes()),
        proptest::option::of(any_text()),
    )
        .prop_map(|(transaction, destination, message_key, ack, subscription_key)| {
            Command::RemoveMessage(RemoveMessage {
                transaction,
                destination,
                message_key,
                ack,
                subscription_key,
            })
        });
    let subscription = (any_destination(), any_text(), any::<bool>(), proptest::option::of(any_bytes()))
        .prop_map(|(destination, subscription_key, retroactive, info)| {
            // Not written without `info`.
            let retroactive = retroactive && info.is_some();
            Command::Subscription(Subscription { destination, subscription_key, retroactive, info })
        });
    let add_job = (any_text(), any_text(), any_text(), any::<[i64; 4]>(), any::<i32>(), any_bytes())
        .prop_map(
            |(
                scheduler,
                job_id,
                cron_entry,
                [start_ms, delay_ms, period_ms, next_execution_ms],
                repeat,
                payload,
            )| {
                Command::AddScheduledJob(AddScheduledJob {
                    scheduler,
                    job_id,
                    start_ms,
                    cron_entry,
                    delay_ms,
                    period_ms,
                    repeat,
                    payload,
                    next_execution_ms,
                })
            },
        );
    let other_job = (any_text(), any_text(), any::<[i64; 2]>(), any::<i32>(), 0..4).prop_map(
        |(scheduler, job_id, [first, second], rescheduled_count, which)| match which {
            0 => Command::RescheduleJob(RescheduleJob {
                scheduler,
                job_id,
                execution_ms: first,
                next_execution_ms: second,
                rescheduled_count,
            }),
            1 => Command::RemoveScheduledJob(RemoveScheduledJob {
                scheduler,
                job_id,
                next_execution_ms: Some(first).filter(|&time| time != -1),
            }),
            2 => Command::RemoveScheduledJobs(RemoveScheduledJobs {
                scheduler,
                start_ms: first,
                last_ms: second,
            }),
            _ => Command::DestroyScheduler { scheduler },
        },
    );
    prop_oneof![
        proptest::option::of(any_text()).prop_map(|text| Command::Trace { text }),
        any_add().prop_map(Command::AddMessage),
        any_add().prop_map(Command::UpdateMessage),
        remove,
        any_transaction().prop_map(Command::Prepare),
        any_transaction().prop_map(Command::Commit),
        any_transaction().prop_map(Command::Rollback),
        any_destination().prop_map(Command::RemoveDestination),
        subscription,
        any_bytes().prop_map(Command::ProducerAudit),
        any_bytes().prop_map(Command::AckMessageFileMap),
        add_job,
        other_job,
        (any::<u32>(), any::<i32>(), proptest::option::of(any::<bool>())).prop_map(
            |(source_file, rewrite_type, skip_if_source_exists)| {
                Command::RewrittenDataFile(RewrittenDataFile {
                    source_file,
                    rewrite_type,
                    skip_if_source_exists,
                })
            }
        ),
    ]
}

fn any_message_id() -> impl Strategy<Value = MessageId> {
    (any_text(), any::<[i64; 4]>(), proptest::option::of(any_text())).prop_map(
        |(connection, [session, value, sequence, broker_sequence], text_view)| MessageId {
            producer: ProducerId { connection, session, value },
            sequence,
            broker_sequence,
            text_view,
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_reads_back(command in any_command()) {
        prop_assert_eq!(decode(encoded(&command)), Ok(command));
    }

    /// Whatever the guess, the bytes are those of the right guess; and what was in the buffer before stays.
    #[test]
    fn a_wrong_size_hint_changes_nothing(
        add in any_add(),
        id in any_message_id(),
        update in any::<bool>(),
        hint in prop_oneof![0..200usize, 16_000..17_000usize],
    ) {
        let header = AddHeader {
            transaction: add.transaction.as_ref(),
            destination: &add.destination,
            message_key: MessageKey::from(&id),
            priority: add.priority,
            priority_supported: add.priority_supported,
        };
        let mut out = BytesMut::from(&b"before"[..]);
        let message = |out: &mut BytesMut| out.extend_from_slice(&add.message);
        if update {
            encode_update(&header, hint, message, &mut out);
        } else {
            encode_add(&header, hint, message, &mut out);
        }
        let expected = AddMessage { message_key: id.to_string().into(), ..add.clone() };
        let expected = if update { Command::UpdateMessage(expected) } else { Command::AddMessage(expected) };
        prop_assert_eq!(&out[..6], b"before");
        prop_assert_eq!(&out[6..], &encoded(&expected));
    }

    #[test]
    fn an_ack_of_any_size_is_written_with_the_shortest_lengths(
        destination in any_destination(),
        id in any_message_id(),
        ack in any_bytes(),
        key in proptest::option::of(any_text()),
    ) {
        let header = RemoveHeader {
            transaction: None,
            destination: &destination,
            message_key: MessageKey::from(&id),
            subscription_key: key.as_deref(),
        };
        let mut out = BytesMut::new();
        encode_remove(&header, |out| out.extend_from_slice(&ack), &mut out);
        let expected = RemoveMessage {
            transaction: None,
            destination: destination.clone(),
            message_key: id.to_string().into(),
            ack: Some(ack.clone()),
            subscription_key: key.clone(),
        };
        prop_assert_eq!(out.freeze(), encoded(&Command::RemoveMessage(expected)));
    }

    #[test]
    fn no_bytes_make_reading_panic(command in 0..20u8, body in vec(any::<u8>(), 0..300)) {
        let mut payload = BytesMut::from(&[command][..]);
        kahawai_wire::put_varint64(body.len() as u64, &mut payload);
        payload.extend_from_slice(&body);
        let _ = decode(payload.freeze());
        let _ = decode(Bytes::from(body));
    }

    #[test]
    fn a_flipped_bit_never_makes_reading_panic(command in any_command(), place in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut payload = BytesMut::from(&encoded(&command)[..]);
        let at = place.index(payload.len());
        payload[at] ^= 1 << bit;
        let _ = decode(payload.freeze());
    }
}
