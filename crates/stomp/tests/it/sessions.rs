use bytes::Bytes;
use kahawai_message::front::{ConsumerNumber, Event, Refusal};
use kahawai_message::properties::{PropertiesBuilder, PropertyValue, with};
use kahawai_message::{BodyKind, Content, Destination, Message};
use kahawai_stomp::{After, Closed, ConnectionOptions, HeartBeatOptions, Progress, Version};

use crate::server::{Server, options, text_message};

#[test]
fn connect_negotiates_the_highest_common_version() {
    for (accept, version) in [
        ("", "1.0"),
        ("accept-version:1.0|", "1.0"),
        ("accept-version:1.1|", "1.1"),
        ("accept-version:1.0,1.2,1.1|", "1.2"),
        ("accept-version: 1.1 , 9.9|", "1.1"),
    ] {
        let mut server = Server::new();
        server.says(&format!("CONNECT|{accept}||^@"), &["connect"]);
        server.confirm_all();
        server.hears(&format!(
            "CONNECTED|version:{version}|server:kahawai/test|session:ID:c-1|heart-beat:0,0||^@|"
        ));
    }
    let mut server = Server::new();
    server.fails("CONNECT|accept-version:2.0,3||^@");
    let message = "none of the versions '2.0,3' is spoken here";
    server
        .hears(&format!("ERROR|message:{message}|content-type:text/plain|version:1.0,1.1,1.2||{message}^@|"));
}

#[test]
fn connect_hands_on_who_it_is_and_answers_requests() {
    let mut server = Server::new();
    let frame =
        "STOMP|accept-version:1.2|login:me|passcode:a\\b:c|client-id:cid|heart-beat:500,70|request-id:9||^@";
    server.says(frame, &["connect Some(\"me\") Some(\"cid\") STOMP 1.2"]);
    server.confirm_all();
    server.hears(
        "CONNECTED|version:1.2|server:kahawai/test|session:cid|heart-beat:100,500|response-id:9|receipt-id:9||^@|",
    );
    assert_eq!(server.connection.version(), Version::V1_2);
    server.says("CONNECT||^@", &[]);
    server.hears("ERROR|message:already connected|content-type:text/plain||already connected^@|");
}

#[test]
fn nothing_is_taken_before_connect_is_confirmed() {
    let mut server = Server::new();
    server.fails("SEND|destination:/queue/a|receipt:1||^@");
    server.hears(
        "ERROR|message:SEND before CONNECT|content-type:text/plain|receipt-id:1||SEND before CONNECT^@|",
    );

    let mut server = Server::new();
    let (requests, progress) = server.write("CONNECT||^@SEND|destination:/queue/a||x^@", 100);
    assert_eq!((requests, progress), (vec!["connect".into()], Ok(Progress::AwaitConnected)));
    assert_eq!(server.write("", 100), (vec![], Ok(Progress::AwaitConnected)));
    server.confirm_all();
    server.says("", &["send 1 queue://a 'x'"]);

    let mut server = Server::new();
    server.says("CONNECT|receipt:7||^@", &["connect"]);
    assert_eq!(server.refuse("who are you"), After::Close);
    server.hears("ERROR|message:who are you|content-type:text/plain|receipt-id:7||who are you^@|");
    assert_eq!(server.write("SEND|destination:/queue/a||x^@", 100), (vec![], Ok(Progress::Ended)));
}

#[test]
fn garbage_gets_an_error_and_the_end() {
    let mut server = Server::new();
    let reason = "malformed frame: unknown command 'GET / HTTP/1.1'";
    assert_eq!(server.fails("GET / HTTP/1.1|"), Closed::Protocol(reason.into()));
    server.hears(&format!("ERROR|message:{reason}|content-type:text/plain||{reason}^@|"));
    let mut server = Server::connected("1.2");
    server.fails("SEND|destination:/queue/a|x:\\t||^@");
    let message = "malformed frame\\c undefined escape in header line 2";
    server.hears(&format!(
        "ERROR|message:{message}|content-type:text/plain||malformed frame: undefined escape in header line 2^@|"
    ));
    let mut server = Server::connected("1.0");
    server.fails("MESSAGE|receipt:5||^@");
    let reason = "MESSAGE is for servers to send";
    server.hears(&format!("ERROR|message:{reason}|content-type:text/plain|receipt-id:5||{reason}^@|"));
}

#[test]
fn a_body_with_content_length_is_bytes_one_without_is_a_text() {
    let mut server = Server::connected("1.2");
    server.says("SEND|destination:/queue/a||hi^@", &["send 1 queue://a 'hi'"]);
    server.says("SEND|destination:/queue/a|content-length:3||h^@i^@", &["send 2 queue://a Bytes b\"h\\0i\""]);
    server.says("SEND|destination:/queue/a||^@", &["send 3 queue://a ''"]);
    server.says(
        "SEND|destination:/topic/t|amq-msg-type:text|content-length:2||hi^@",
        &["send 4 topic://t 'hi' amq-msg-type=String(\"text\")"],
    );
    server.says(
        "SEND|destination:/topic/t|amq-msg-type:Bytes||hi^@",
        &["send 5 topic://t Bytes b\"hi\" amq-msg-type=String(\"Bytes\")"],
    );
    server.says("SEND|destination:/topic/t|amq-msg-type:map||hi^@", &[]);
    let message = "header amq-msg-type is 'map', neither text nor bytes";
    server.hears(&format!("ERROR|message:{message}|content-type:text/plain||{message}^@|"));
}

#[test]
fn headers_of_send_become_fields_and_properties() {
    let mut server = Server::connected("1.1");
    server.says(
        "SEND|destination:/queue/a|persistent:true|expires:99|priority:12|timestamp:5|correlation-id:c\\c1|type:t|\
         reply-to:/temp-queue/r|JMSXGroupID:g|JMSXGroupSeq:3|receipt:r-1||x^@",
        &["send 1 queue://a 'x' expires 99 at 5 persistent priority 9 corr c:1 type t group g seq 3 \
           reply temp-queue://ID:c-1:1 *"],
    );
    server.confirm_all();
    server.hears("RECEIPT|receipt-id:r-1||^@|");
    server.says(
        "SEND|destination:/queue/a|k:v|content-type:x|k:second|message-id:m|ack:1|reply-to:elsewhere|\
         AMQ_SCHEDULED_DELAY:100|AMQ_SCHEDULED_REPEAT:2||x^@",
        &["send 2 queue://a 'x' k=String(\"v\") content-type=String(\"x\") AMQ_SCHEDULED_DELAY=Long(100) \
           AMQ_SCHEDULED_REPEAT=Int(2) reply-to=String(\"elsewhere\")"],
    );
    let transformed = "SEND|destination:/queue/a|transformation:jms-map-json||{}^@";
    server.says(
        transformed,
        &["send 3 queue://a '{}' transformation=String(\"jms-map-json\") \
           transformation-error=String(\"transformations are not supported here\")"],
    );
    server.says(
        transformed,
        &["send 4 queue://a '{}' transformation=String(\"jms-map-json\") \
         transformation-error=String(\"transformations are not supported here\")"],
    );
    server.says("SEND|destination:/queue/a||x^@", &["send 5 queue://a 'x'"]);
    server.says("SEND|destination:a,/topic/b||x^@", &["send 6 queue://a,topic://b 'x'"]);
}

#[test]
fn the_first_of_many_repeated_properties_counts() {
    let mut server = Server::connected("1.2");
    let many: String = (0..30).map(|n| format!("k{}:{n}|", n % 15)).collect();
    let expected: String = (0..15).map(|n| format!(" k{n}=String(\"{n}\")")).collect();
    server.says(
        &format!("SEND|destination:/queue/a|{many}|x^@"),
        &[&format!("send 1 queue://a 'x'{expected}")],
    );
}

#[test]
fn a_send_that_makes_no_sense_is_answered_and_the_session_goes_on() {
    let mut server = Server::connected("1.2");
    for (headers, message) in [
        ("receipt:1", "SEND without a header destination"),
        ("destination:/queue/|receipt:1", "destination '/queue/' has no name"),
        ("destination:/queue/a|expires:soon|receipt:1", "header expires is not a number\\c 'soon'"),
        (
            "destination:/queue/a|AMQ_SCHEDULED_REPEAT:x|receipt:1",
            "header AMQ_SCHEDULED_REPEAT is not a number\\c 'x'",
        ),
        ("destination:/queue/a|transaction:t|receipt:1", "no transaction 't' is open"),
    ] {
        server.says(&format!("SEND|{headers}||x^@"), &[]);
        let plain = message.replace("\\c", ":");
        server.hears(&format!("ERROR|message:{message}|content-type:text/plain|receipt-id:1||{plain}^@|"));
    }
    server.says("SEND|destination:/queue/a|receipt:2||x^@", &["send 1 queue://a 'x' *"]);
    assert_eq!(server.refuse("full"), After::Continue);
    server.hears("ERROR|message:full|content-type:text/plain|receipt-id:2||full^@|");
}

#[test]
fn a_text_that_is_not_utf_8_keeps_its_bytes() {
    let mut server = Server::connected("1.2");
    let mut input = bytes::BytesMut::from(&b"SEND\ndestination:/queue/a\nk:\xff\n\n\xfe!\0"[..]);
    let (mut requests, mut out) = (Vec::new(), bytes::BytesMut::new());
    server.connection.receive(1, &mut input, &mut requests, 9, &mut out).unwrap();
    let Some((kahawai_message::front::Request::Send { message, .. }, None)) = requests.pop() else {
        panic!("no send");
    };
    assert_eq!(message.content, Content::Marshalled(Bytes::from_static(b"\0\0\0\x02\xfe!")));
    assert_eq!(message.property("k"), Some(PropertyValue::String("\u{fffd}".into())));
    server.says("SUBSCRIBE|id:s|destination:/queue/a||^@", &["subscribe 1 queue://a prefetch 1000 auto"]);
    server.delivers(1, &message);
    server.hears(
        "MESSAGE|subscription:s|destination:/queue/a|message-id:ID\\cc-1\\c-1\\c1\\c1|expires:0|priority:4|\
         timestamp:1|k:\u{fffd}||\u{fffd}!^@|",
    );
}

#[test]
fn receipts_leave_in_order_and_as_they_came() {
    let mut server = Server::connected("1.2");
    for receipt in ["a\\cb", "", "c"] {
        server.says(
            &format!("SEND|destination:/queue/a|receipt:{receipt}||x^@"),
            &[&*format!("send {} queue://a 'x' *", server.connection.unanswered() + 1)],
        );
    }
    server.confirm_all();
    server.hears("RECEIPT|receipt-id:a\\cb||^@|RECEIPT|receipt-id:||^@|RECEIPT|receipt-id:c||^@|");
}

#[test]
fn subscriptions_carry_what_activemq_clients_say() {
    let mut server = Server::connected("1.1");
    server.says(
        "SUBSCRIBE|id:1|destination:/queue/a|ack:client|selector:cost > 5|activemq.prefetchSize:7|\
         activemq.priority:200|activemq.exclusive:true|activemq.dispatchAsync:true||^@",
        &["subscribe 1 queue://a prefetch 7 exclusive selector convert_string_expressions:cost > 5 priority 127"],
    );
    server.says(
        "SUBSCRIBE|id:2|destination:/topic/t|activemq.subscriptionName:d|activemq.noLocal:true|\
         activemq.retroactive:true||^@",
        &["subscribe 2 topic://t prefetch 100 auto no-local retroactive durable d"],
    );
    server.says("SUBSCRIBE|id:3|destination:/topic/t||^@", &["subscribe 3 topic://t prefetch 32766 auto"]);
    server.says(
        "SUBSCRIBE|id:4|destination:/queue/a|browser:true|ack:client||^@",
        &["subscribe 4 queue://a prefetch 500 browser"],
    );
    server.says("UNSUBSCRIBE|id:2|receipt:u||^@", &["unsubscribe 2 *"]);
    server.says("UNSUBSCRIBE|id:2|activemq.subscriptionName:d||^@", &["remove d"]);
    server.confirm_all();
    server.hears("RECEIPT|receipt-id:u||^@|");
    assert!(!server.delivers(2, &text_message("x", 1)));
    server.says(
        "SUBSCRIBE|id:5|destination:/topic/t|activemq.subscriptionName:e||^@UNSUBSCRIBE|id:5|activemq.subscriptionName:e||^@",
        &["subscribe 5 topic://t prefetch 100 auto durable e", "unsubscribe 5", "remove e"],
    );
    for (frame, message) in [
        ("SUBSCRIBE|destination:/queue/a", "SUBSCRIBE without a header id"),
        ("SUBSCRIBE|id:9", "SUBSCRIBE without a header destination"),
        (
            "SUBSCRIBE|id:9|destination:/queue/a|activemq.subscriptionName:x",
            "a durable subscription is to topics, not to queues",
        ),
        ("UNSUBSCRIBE|id:9", "no such subscription"),
        ("UNSUBSCRIBE|destination:/queue/a", "UNSUBSCRIBE without a header id"),
    ] {
        server.says(&format!("{frame}||^@"), &[]);
        server.hears(&format!("ERROR|message:{message}|content-type:text/plain||{message}^@|"));
    }
}

#[test]
fn a_refused_subscription_is_gone() {
    let mut server = Server::connected("1.2");
    server.says(
        "SUBSCRIBE|id:1|destination:/queue/a|receipt:7||^@",
        &["subscribe 1 queue://a prefetch 1000 auto"],
    );
    assert_eq!(server.refuse("no"), After::Continue);
    server.hears("ERROR|message:no|content-type:text/plain|receipt-id:7||no^@|");
    assert!(!server.delivers(1, &text_message("x", 1)));
    server.hears("");
}

#[test]
fn one_id_for_several_subscriptions_is_borne_with() {
    let mut server = Server::connected("1.1");
    for (number, name) in [(1, "a"), (2, "b")] {
        server.says(
            &format!("SUBSCRIBE|id:s|destination:/queue/{name}|ack:client-individual||^@"),
            &[&*format!("subscribe {number} queue://{name} prefetch 1000")],
        );
    }
    server.delivers(2, &text_message("x", 5));
    server.delivers(1, &text_message("x", 6));
    server.says("ACK|subscription:s|message-id:ID\\cp-1\\c-1\\c1\\c5||^@", &["ack 2-1=5"]);
    server.says("ACK|subscription:s|message-id:ID\\cp-1\\c-1\\c1\\c6||^@", &["ack 1-2=6"]);
    server.says("UNSUBSCRIBE|id:s|receipt:1||^@", &["unsubscribe 1", "unsubscribe 2 *"]);
}

#[test]
fn version_1_0_subscribes_and_unsubscribes_by_destination() {
    let mut server = Server::connected("1.0");
    server.says("SUB|destination: /queue/a ||^@", &["subscribe 1 queue://a prefetch 1000 auto"]);
    server.delivers(1, &text_message("hi: there", 9));
    server.hears(
        "MESSAGE|destination:/queue/a|message-id:ID:p-1:-1:1:9|expires:0|priority:4|timestamp:77||hi: there^@|",
    );
    assert_eq!(server.auto_acks(), ["1-1=9"]);
    assert_eq!(server.auto_acks(), [""; 0]);
    server.says("UNSUBSCRIBE|destination:/queue/a||^@", &["unsubscribe 1"]);
    server.says("SUBSCRIBE|destination:/queue/a|ack:client||^@", &["subscribe 2 queue://a prefetch 1000"]);
    server.delivers(2, &text_message("x", 10));
    server.delivers(2, &text_message("x", 11));
    server.says("ACK|message-id:ID:p-1:-1:1:11||^@", &["ack 2-2=10 2-3=11"]);
    server.says("SUBSCRIBE|destination:/queue/a|browser:true||^@NACK|message-id:1||^@", &[]);
}

fn full_message() -> Message {
    let mut properties = PropertiesBuilder::new();
    properties.push_text("a:b", "c\nd").unwrap();
    properties.push("n", &PropertyValue::Double(1.5)).unwrap();
    properties.push_text("destination", "misleading").unwrap();
    Message {
        persistent: true,
        expiration_ms: 12,
        correlation_id: Some("c:1".into()),
        jms_type: Some("t".into()),
        user_id: Some("u".into()),
        group_id: Some("g".into()),
        group_sequence: 2,
        reply_to: Some(Destination::topic("r")),
        original_destination: Some(Destination::queue("o")),
        properties: properties.finish(),
        kind: BodyKind::Bytes,
        content: Content::Marshalled(Bytes::from_static(b"\0b")),
        ..text_message("", 3)
    }
}

#[test]
fn a_message_shows_every_field_as_each_version_writes_it() {
    for (version, colon, newline, name) in
        [("1.0", ":", " ", "a_b"), ("1.1", "\\c", "\\n", "a\\cb"), ("1.2", "\\c", "\\n", "a\\cb")]
    {
        let mut server = Server::connected(version);
        server.says(
            "SUBSCRIBE|id:s|destination:/queue/a|ack:client-individual||^@",
            &["subscribe 1 queue://a prefetch 1000"],
        );
        assert!(server.redelivers(1, &full_message(), 2));
        let ack = if version == "1.2" { "ack:1-1|" } else { "" };
        server.hears(&format!(
            "MESSAGE|subscription:s|{ack}destination:/queue/a|message-id:ID{colon}p-1{colon}-1{colon}1{colon}3|expires:12|\
             priority:4|timestamp:77|persistent:true|redelivered:true|correlation-id:c{colon}1|type:t|JMSXUserID:u|\
             JMSXGroupID:g|JMSXGroupSeq:2|reply-to:/topic/r|original-destination:/queue/o|{name}:c{newline}d|n:1.5|\
             content-length:2||^@b^@|"
        ));
    }
}

#[test]
fn bodies_of_all_kinds_can_be_read() {
    let map = with(None, "k", &PropertyValue::Int(5)).unwrap();
    for (kind, content, expected) in [
        (BodyKind::Text, Content::Utf8("a\0b".into()), "content-length:3||a^@b"),
        (BodyKind::Text, Content::Marshalled(Bytes::from_static(b"\0\0\0\x02hi")), "|hi"),
        (BodyKind::Text, Content::Absent, "|"),
        (BodyKind::Map, Content::Marshalled(map), "content-type:application/json||{\"k\":5}"),
        (
            BodyKind::Map,
            Content::Marshalled(Bytes::from_static(b"\0\0\0\x02x")),
            "content-length:5||^@^@^@\u{2}x",
        ),
        (
            BodyKind::Stream,
            Content::Marshalled(Bytes::from_static(b"\x01\x01")),
            "content-type:application/json||[true]",
        ),
        (BodyKind::Object, Content::Marshalled(Bytes::from_static(b"java")), "|"),
        (BodyKind::Plain, Content::Absent, "|"),
    ] {
        let mut server = Server::connected("1.2");
        server.says("SUBSCRIBE|id:s|destination:/queue/a||^@", &["subscribe 1 queue://a prefetch 1000 auto"]);
        server.delivers(1, &Message { kind, content, ..text_message("", 3) });
        server.hears(&format!(
            "MESSAGE|subscription:s|destination:/queue/a|message-id:ID\\cp-1\\c-1\\c1\\c3|expires:0|priority:4|timestamp:77|\
             {expected}^@|"
        ));
    }
}

/// A 1.2 session with `count` deliveries to one consumer.
fn deliveries(ack: &str, count: i64) -> Server {
    let mut server = Server::connected("1.2");
    server.says(
        &format!("SUBSCRIBE|id:s|destination:/queue/a|ack:{ack}||^@"),
        &["subscribe 1 queue://a prefetch 1000"],
    );
    for sequence in 1..=count {
        server.delivers(1, &text_message("x", sequence * 10));
    }
    server.confirm_all();
    let _ = server.write("", 0);
    server
}

#[test]
fn individual_acks_are_for_one_message_and_merge_into_one_request() {
    let mut server = deliveries("client-individual", 5);
    server.says("ACK|id:1-2||^@ACK|id:1-1||^@NACK|id:1-4||^@", &["ack 1-2=20 1-1=10 1-4=40 poison"]);
    server.says("ACK|id:1-3|receipt:a||^@ACK|id:1-5||^@", &["ack 1-3=30 *", "ack 1-5=50"]);
}

#[test]
fn client_acks_are_cumulative_but_a_nack_is_not() {
    let mut server = deliveries("client", 5);
    server.says("NACK|id:1-3||^@", &["ack 1-3=30 poison"]);
    server.says("ACK|id:1-4||^@", &["ack 1-1=10 1-2=20 1-4=40"]);
}

#[test]
fn what_is_not_in_flight_cannot_be_acknowledged() {
    let mut server = deliveries("client-individual", 1);
    server.says("ACK|id:1-1||^@", &["ack 1-1=10"]);
    let mut server = Server::connected("1.2");
    for id in ["1-1", "x", "", "1-", "99999999999-1"] {
        server.says(&format!("ACK|id:{id}|receipt:3||^@"), &[]);
        let message = format!("Unexpected ACK received for message-id [{id}]");
        server.hears(&format!("ERROR|message:{message}|content-type:text/plain|receipt-id:3||{message}^@|"));
    }
    server.says("ACK|message-id:1||^@", &[]);
    server.hears("ERROR|message:ACK without a header id|content-type:text/plain||ACK without a header id^@|");
    let mut server = Server::connected("1.1");
    server.says("ACK|message-id:1||^@", &[]);
    let message = "ACK without a header subscription";
    server.hears(&format!("ERROR|message:{message}|content-type:text/plain||{message}^@|"));
}

#[test]
fn transactions_carry_sends_and_acks() {
    let mut server = deliveries("client-individual", 3);
    server.says(
        "BEGIN|transaction:t|receipt:b||^@SEND|destination:/queue/b|transaction:t||x^@ACK|id:1-1|transaction:t||^@\
         ACK|id:1-2||^@COMMIT|transaction:t|receipt:c||^@",
        &["begin 1 *", "send 1 queue://b 'x' in 1", "ack 1-1=10 in 1", "ack 1-2=20", "commit 1"],
    );
    server.says("ACK|id:1-1||^@COMMIT|transaction:t||^@BEGIN||^@", &[]);
    server.says("BEGIN|transaction:u||^@BEGIN|transaction:u||^@", &["begin 2"]);
}

#[test]
fn an_abort_or_a_refused_commit_gives_the_acks_back() {
    let mut server = deliveries("client", 3);
    server.says(
        "BEGIN|transaction:t||^@ACK|id:1-2|transaction:t||^@ABORT|transaction:t||^@",
        &["begin 1", "ack 1-1=10 1-2=20 in 1", "rollback 1"],
    );
    server.says(
        "BEGIN|transaction:t||^@ACK|id:1-3|transaction:t||^@COMMIT|transaction:t||^@",
        &["begin 2", "ack 1-1=10 1-2=20 1-3=30 in 2", "commit 2"],
    );
    server.says("ACK|id:1-3||^@", &[]);
    assert_eq!(server.refuse("no room"), After::Continue);
    server.says("ACK|id:1-3||^@", &["ack 1-1=10 1-2=20 1-3=30"]);
}

#[test]
fn disconnect_is_answered_after_everything_before() {
    let mut server = Server::connected("1.2");
    let (requests, progress) =
        server.write("SEND|destination:/queue/a|receipt:1||x^@DISCONNECT|receipt:2||^@SEND|garbage", 100);
    assert_eq!(
        (requests, progress),
        (vec!["send 1 queue://a 'x' *".into(), "disconnect".into()], Ok(Progress::Ended))
    );
    server.hears("");
    server.confirm_all_and_close();
    server.hears("RECEIPT|receipt-id:1||^@|RECEIPT|receipt-id:2||^@|");
}

#[test]
fn a_browser_sees_its_end() {
    let mut server = Server::connected("1.1");
    server.says(
        "SUBSCRIBE|id:b|destination:/queue/a|browser:true||^@",
        &["subscribe 1 queue://a prefetch 500 auto browser"],
    );
    assert_eq!(server.event(&Event::BrowseEnd(ConsumerNumber(1))), After::Continue);
    server.hears("MESSAGE|browser:end|message-id:0|subscription:b|destination:/queue/a||^@|");
}

#[test]
fn the_broker_may_end_a_consumer_or_all() {
    let mut server = Server::connected("1.1");
    server.says("SUBSCRIBE|id:b|destination:/queue/a||^@", &["subscribe 1 queue://a prefetch 1000 auto"]);
    let why = Refusal::NotFound("queue removed".into());
    assert_eq!(server.event(&Event::ConsumerClosed(ConsumerNumber(1), why.clone())), After::Continue);
    server.hears("ERROR|message:queue removed|content-type:text/plain||queue removed^@|");
    assert!(!server.delivers(1, &text_message("x", 1)));
    assert_eq!(server.event(&Event::Close(why)), After::Close);
}

#[test]
fn receive_stops_when_the_driver_has_enough() {
    let mut server = Server::connected("1.2");
    let frames = "SEND|destination:/queue/a|receipt:1||x^@".repeat(3);
    assert_eq!(
        server.write(&frames, 2),
        (vec!["send 1 queue://a 'x' *".into(), "send 2 queue://a 'x' *".into()], Ok(Progress::Full))
    );
    assert_eq!(server.write("", 2).0, ["send 3 queue://a 'x' *"]);

    let mut server = Server::with(ConnectionOptions { unanswered_max: 2, ..options() });
    server.says("CONNECT||^@", &["connect"]);
    server.confirm_all();
    assert_eq!(server.write(&frames, 100).1, Ok(Progress::Full));
    assert_eq!(server.write("", 100), (vec![], Ok(Progress::Full)));
    server.confirm_all();
    server.says("", &["send 3 queue://a 'x' *"]);
}

#[test]
fn limits_on_subscriptions_transactions_and_temporary_destinations_hold() {
    let mut server = Server::with(ConnectionOptions {
        consumers_max: 1,
        transactions_max: 1,
        temporary_destinations_max: 1,
        ..options()
    });
    server.says("CONNECT||^@", &["connect"]);
    server.confirm_all();
    server.hears("CONNECTED|version:1.0|server:kahawai/test|session:ID:c-1|heart-beat:0,0||^@|");
    server.says(
        "SUBSCRIBE|destination:/temp-queue/a||^@BEGIN|transaction:1||^@",
        &["subscribe 1 temp-queue://ID:c-1:1 prefetch 1000 auto", "begin 1"],
    );
    for (frame, message) in [
        ("SUBSCRIBE|destination:/queue/a", "more than 1 subscriptions on one connection"),
        ("BEGIN|transaction:2", "more than 1 transactions on one connection"),
        ("SEND|destination:/temp-queue/b", "more than 1 temporary destinations on one connection"),
    ] {
        server.says(&format!("{frame}||^@"), &[]);
        server.hears(&format!("ERROR|message:{message}|content-type:text/plain||{message}^@|"));
    }
}

#[test]
fn heart_beats_are_written_in_time_and_expected_with_some_grace() {
    let heart_beat = HeartBeatOptions { interval_ms_min: 10, ..HeartBeatOptions::default() };
    let mut server = Server::with(ConnectionOptions { heart_beat, ..options() });
    assert_eq!(server.tick(), Ok(Some(31_000)));
    server.says("CONNECT|accept-version:1.2|heart-beat:100,1000||^@", &["connect"]);
    server.confirm_all();
    server.hears("CONNECTED|version:1.2|server:kahawai/test|session:ID:c-1|heart-beat:1000,100||^@|");
    assert_eq!(server.tick(), Ok(Some(1150)));
    server.now = 1149;
    server.says("|", &[]);
    server.now = 1200;
    assert_eq!(server.tick(), Ok(Some(1299)));
    server.now = 1298;
    assert_eq!(server.tick(), Ok(Some(1299)));
    server.now = 1299;
    assert_eq!(server.tick(), Err(Closed::Silent { silent_ms: 150, agreed_ms: 100 }));

    let mut server = Server::with(ConnectionOptions { heart_beat, ..options() });
    server.says("CONNECT|accept-version:1.2|heart-beat:0,1000||^@", &["connect"]);
    server.confirm_all();
    server.hears("CONNECTED|version:1.2|server:kahawai/test|session:ID:c-1|heart-beat:1000,0||^@|");
    for (now, next, written) in
        [(1399, 1400, ""), (1400, 1800, ""), (1800, 2200, "|"), (1900, 2200, ""), (2200, 2600, "|")]
    {
        server.now = now;
        assert_eq!(server.tick(), Ok(Some(next)));
        server.hears(written);
    }
    for wrong in ["x", "1", "1,", "-1,0", "1,2,3"] {
        let mut server = Server::new();
        server.fails(&format!("CONNECT|heart-beat:{wrong}||^@"));
    }
    let mut server = Server::new();
    server.says("CONNECT|heart-beat: 99999999999999 , 0||^@", &["connect"]);
}

#[test]
fn a_paused_client_is_not_blamed_for_its_silence() {
    let mut server = Server::with(ConnectionOptions { unanswered_max: 1, ..options() });
    server.says("CONNECT|heart-beat:100,0||^@", &["connect"]);
    server.confirm_all();
    assert_eq!(server.write("SEND|destination:a|receipt:1||^@|", 9).1, Ok(Progress::Full));
    server.now = 99_000;
    assert_eq!(server.tick(), Ok(Some(99_150)));
}

#[test]
fn who_never_connects_is_closed() {
    let mut server = Server::new();
    server.now = 31_000;
    assert_eq!(server.tick(), Err(Closed::NoConnect { timeout_ms: 30_000 }));
}
