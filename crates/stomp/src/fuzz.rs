//! Entry points for fuzz targets, and for tests that replay what they found. They panic where a promise is broken.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use kahawai_message::front::{Delivery, Event, Refusal, Request, Source};
use kahawai_message::{BodyKind, Content, Destination, Message, MessageId};

use crate::client::{Client, ServerFrame};
use crate::{After, Connection, ConnectionOptions, Limits, Progress};

fn small_limits() -> Limits {
    Limits {
        command_bytes_max: 64,
        header_bytes_max: 128,
        headers_max: 40,
        head_bytes_max: 1024,
        body_bytes_max: 2048,
        frame_bytes_max: 3000,
    }
}

/// A server with small limits reads `data` after a CONNECT, in pieces whose size the first byte says; the second says
/// what the broker confirms and what it refuses.
pub fn fuzz_server(data: &[u8]) {
    let Some((&[first, second], data)) = data.split_first_chunk() else {
        return;
    };
    let options = ConnectionOptions {
        limits: small_limits(),
        consumers_max: 8,
        transactions_max: 4,
        temporary_destinations_max: 4,
        unanswered_max: 16,
        unanswered_bytes_max: 1024,
        ..ConnectionOptions::new("ID:fuzz-1")
    };
    let mut connection = Connection::new(options, 0);
    let mut input = BytesMut::new();
    if first & 0x80 != 0 {
        let version = ["1.0", "1.1", "1.2"][usize::from(second) % 3];
        input.put_slice(format!("CONNECT\naccept-version:{version}\nheart-beat:1,1\n\n\0").as_bytes());
    }
    let mut broker = Broker { bits: second, tag: 0, out: BytesMut::new() };
    for (now, piece) in (1..).zip(data.chunks(usize::from(first & 0x7f) + 1)) {
        input.put_slice(piece);
        let mut requests = Vec::new();
        loop {
            let input_before = input.len();
            let result = connection.receive(now, &mut input, &mut requests, 4, &mut broker.out);
            assert!(requests.len() <= 4 + 8 && input.len() <= input_before);
            assert!(connection.unanswered() <= 16);
            if broker.answer(&mut connection, &mut requests) == After::Close {
                return;
            }
            match result {
                Err(_) | Ok(Progress::Ended) => return,
                Ok(Progress::NeedInput) => break,
                Ok(Progress::Full | Progress::AwaitConnected) => {}
            }
        }
        // What is not taken is part of one frame.
        assert!(input.len() <= 3000 + 128);
        if connection.tick(now, &mut broker.out).is_err() {
            return;
        }
        broker.check_out();
    }
}

struct Broker {
    bits: u8,
    tag: u64,
    out: BytesMut,
}

impl Broker {
    fn answer(
        &mut self,
        connection: &mut Connection,
        requests: &mut Vec<(Request, Option<kahawai_message::front::Token>)>,
    ) -> After {
        for (request, token) in requests.drain(..) {
            self.bits = self.bits.rotate_left(1);
            let refuse = self.bits & 0b11 == 0b11;
            let after = match token {
                Some(token) if refuse => {
                    connection.refused(Some(token), &Refusal::Invalid("no\0 \n:".into()), &mut self.out)
                }
                Some(token) => connection.confirmed_through(token, &mut self.out),
                None => After::Continue,
            };
            if after == After::Close {
                return after;
            }
            match request {
                Request::Send { message, .. } => {
                    for consumer in 0..3 {
                        self.deliver(connection, consumer, message.clone());
                    }
                }
                Request::Subscribe(subscribe) => {
                    self.deliver(connection, subscribe.consumer.0, odd_message());
                    let end = Event::BrowseEnd(subscribe.consumer);
                    let _ = connection.event(&end, &mut self.out);
                }
                _ => {}
            }
        }
        let mut acks = Vec::new();
        connection.take_auto_acks(&mut acks);
        After::Continue
    }

    fn deliver(&mut self, connection: &mut Connection, consumer: u32, message: Message) {
        self.tag += 1;
        let message = Arc::new(message);
        let delivery = Delivery {
            consumer: kahawai_message::front::ConsumerNumber(consumer),
            tag: self.tag,
            source: Source::Memory(message.clone()),
            redelivery_counter: 1,
        };
        connection.deliver(&delivery, &message, &mut self.out);
    }

    /// Whatever was provoked, a client can read it.
    fn check_out(&mut self) {
        let mut client = Client::default();
        client.input().put_slice(&self.out.split());
        // The version is not known here, so escapes are not looked at; lines and lengths are.
        while let Some(frame) = client.next().expect("the server writes frames") {
            assert!(!matches!(frame, ServerFrame::Unknown(_)), "{frame:?}");
        }
        assert!(client.input().is_empty(), "{:?}", client.input());
    }
}

fn odd_message() -> Message {
    Message {
        id: MessageId { text_view: Some("a:b\n\0".into()), ..MessageId::default() },
        destination: Destination::topic("a\n:\\\0\r"),
        correlation_id: Some("\n\n\0".into()),
        kind: BodyKind::Map,
        content: Content::Marshalled(vec![0, 0, 0, 9, 1].into()),
        properties: Some(vec![0, 0, 0, 2, 0, 1, b'\n', 0, 0, 1, b':', 99].into()),
        ..Message::default()
    }
}

/// A client with small limits reads `data`.
pub fn fuzz_client(data: &[u8]) {
    let Some((&first, data)) = data.split_first() else {
        return;
    };
    let mut client = Client::new(small_limits());
    let mut out = BytesMut::new();
    for piece in data.chunks(usize::from(first) + 1) {
        client.input().put_slice(piece);
        loop {
            match client.next() {
                Err(_) => return,
                Ok(None) => break,
                Ok(Some(ServerFrame::Message(message))) => {
                    message.put_ack(Some("t"), None, &mut out);
                    let _ = (format!("{message:?}"), message.is_browse_end(), message.body().len());
                }
                Ok(Some(_)) => {}
            }
        }
    }
}
