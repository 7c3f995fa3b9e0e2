//! What the codec costs: `cargo run --release -p kahawai-stomp --example send_rate`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kahawai_message::front::{ConsumerNumber, Delivery, Request, Source, Token};
use kahawai_message::{BodyKind, Content, Destination, Message, MessageId, ProducerId};
use kahawai_stomp::client::{Client, Send, ServerFrame};
use kahawai_stomp::{Connection, ConnectionOptions};

/// Frames that one simulated read brings.
const FRAMES: u32 = 64;
const ROUNDS: u32 = 20_000;

#[expect(clippy::disallowed_methods, reason = "a stopwatch")]
fn measure(what: &str, per_round: u32, mut round: impl FnMut(u32)) {
    for number in 0..ROUNDS / 10 {
        round(number);
    }
    let start = std::time::Instant::now();
    for number in 0..ROUNDS {
        round(number);
    }
    let each: Duration = start.elapsed() / (ROUNDS * per_round);
    println!("{what:<50} {:>6} ns", each.as_nanos());
}

/// A 1.2 connection with one consumer.
fn connected(ack: &str) -> Connection {
    let mut connection = Connection::new(ConnectionOptions::new("ID:localhost-33775-1795371744144-2:1"), 0);
    let (mut requests, mut out) = (Vec::new(), BytesMut::new());
    let subscribe = format!("SUBSCRIBE\nid:1\ndestination:/queue/x\nack:{ack}\n\n\0");
    let frames = ["CONNECT\naccept-version:1.2\n\n\0".to_owned(), subscribe];
    for frame in frames {
        let mut input = BytesMut::from(frame.as_bytes());
        let _ = connection.receive(0, &mut input, &mut requests, 9, &mut out);
        for (_, token) in requests.drain(..) {
            let _ = token.map(|token| connection.confirmed(token, &mut out));
        }
    }
    connection
}

fn send(what: &str, headers: &[(&str, &str)], body: &[u8]) {
    let mut connection = connected("auto");
    let mut frames = BytesMut::new();
    let send = Send { destination: "/queue/x", body, persistent: true, headers, ..Send::default() };
    let prepared = Client::default().prepare(&send);
    (0..FRAMES).for_each(|receipt| prepared.put(Some(1_000_000 + u64::from(receipt)), &mut frames));
    let mut requests: Vec<(Request, Option<Token>)> = Vec::with_capacity(FRAMES as usize);
    let (mut input, mut out) = (BytesMut::new(), BytesMut::with_capacity(1 << 16));
    measure(&format!("{what}: copy into the receive buffer"), FRAMES, |_| {
        input.clear();
        input.reserve(1 << 18);
        input.extend_from_slice(&frames);
    });
    input.clear();
    measure(&format!("{what}: the same, decode, receipt"), FRAMES, |round| {
        input.reserve(1 << 18);
        input.extend_from_slice(&frames);
        let _ = connection.receive(round.into(), &mut input, &mut requests, FRAMES as usize, &mut out);
        assert_eq!(requests.len(), FRAMES as usize);
        let last = requests.iter().rev().find_map(|(_, token)| *token);
        let _ = last.map(|token| connection.confirmed_through(token, &mut out));
        black_box(&requests);
        requests.clear();
        out.clear();
    });
}

fn deliver() {
    let producer =
        ProducerId { connection: "ID:localhost-33775-1795371744144-2:9".into(), session: -1, value: 1 };
    let message = Arc::new(Message {
        id: MessageId { producer, sequence: 123_456, ..MessageId::default() },
        destination: Destination::queue("x"),
        persistent: true,
        priority: 4,
        timestamp_ms: 1_795_371_744_144,
        kind: BodyKind::Bytes,
        content: Content::Marshalled(Bytes::from(vec![b'x'; 1024])),
        ..Message::default()
    });
    let (mut out, mut acks, mut tag) = (BytesMut::with_capacity(1 << 18), Vec::new(), 0);
    let (mut requests, mut input) = (Vec::new(), BytesMut::new());
    for mode in ["auto", "client-individual"] {
        let mut connection = connected(mode);
        tag = 0;
        measure(&format!("deliver 1 KiB, {mode}"), FRAMES, |_| {
            for _ in 0..FRAMES {
                tag += 1;
                let source = Source::Memory(message.clone());
                let delivery = Delivery { consumer: ConsumerNumber(1), tag, source, redelivery_counter: 0 };
                connection.deliver(&delivery, &message, &mut out);
            }
            black_box(&out);
            out.clear();
            connection.take_auto_acks(&mut acks);
            acks.clear();
        });
        let mut acked = 0;
        if mode != "auto" {
            measure("ACK by id, without receipt", FRAMES, |_| {
                for _ in 0..FRAMES {
                    acked += 1;
                    input.extend_from_slice(format!("ACK\nid:1-{acked}\n\n\0").as_bytes());
                }
                let _ = connection.receive(0, &mut input, &mut requests, 100, &mut out);
                requests.clear();
            });
        }
    }
    let _ = tag;
}

fn receipts() {
    let mut client = Client::default();
    let mut frames = BytesMut::new();
    for receipt in 0..FRAMES {
        frames.extend_from_slice(format!("RECEIPT\nreceipt-id:{}\n\n\0\n", 1_000_000 + receipt).as_bytes());
    }
    measure("client reads RECEIPT", FRAMES, |_| {
        client.input().extend_from_slice(&frames);
        while let Ok(Some(frame)) = client.next() {
            assert!(matches!(frame, ServerFrame::Receipt(Some(_))));
        }
    });
}

fn main() {
    send("SEND 1 KiB", &[], &[b'x'; 1024]);
    send("SEND 100 B", &[], &[b'x'; 100]);
    send("SEND 100 B, 3 properties", &[("content-type", "text/plain"), ("a", "b"), ("c", "d")], &[b'x'; 100]);
    deliver();
    receipts();
}
