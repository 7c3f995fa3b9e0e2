//! Our own client against our own server.

use bytes::BytesMut;
use kahawai_message::front::{ConsumerNumber, Delivery, Request, Source};
use kahawai_stomp::client::{Client, Connect, Send, ServerFrame, Subscribe};
use kahawai_stomp::{Connection, ConnectionOptions, Version};

/// Both ends; every request is confirmed, every message comes back to consumer 1.
struct Loop {
    client: Client,
    server: Connection,
    to_server: BytesMut,
    tag: u64,
}

impl Loop {
    /// The server reads and answers; the client's next frames, shown briefly.
    fn turn(&mut self) -> Vec<String> {
        let mut requests = Vec::new();
        self.server.receive(1, &mut self.to_server, &mut requests, 100, self.client.input()).unwrap();
        for (request, token) in requests {
            if let Request::Send { message, .. } = &request {
                self.tag += 1;
                let source = Source::Memory(message.clone().into());
                let delivery =
                    Delivery { consumer: ConsumerNumber(1), tag: self.tag, source, redelivery_counter: 0 };
                self.server.deliver(&delivery, message, self.client.input());
            }
            if let Some(token) = token {
                let _ = self.server.confirmed(token, self.client.input());
            }
        }
        let mut heard = Vec::new();
        while let Some(frame) = self.client.next().unwrap() {
            heard.push(match frame {
                ServerFrame::Connected(connected) => format!("connected {}", connected.version),
                ServerFrame::Receipt(id) => format!("receipt {}", id.unwrap()),
                ServerFrame::Error { message, .. } => format!("error {message}"),
                ServerFrame::Unknown(command) => format!("unknown {command}"),
                ServerFrame::Message(message) => {
                    message.put_ack(None, Some(1000), &mut self.to_server);
                    format!("message {:?} {:?}", message.header("k:1").unwrap(), message.body())
                }
            });
        }
        heard
    }
}

#[test]
fn our_client_and_our_server_understand_each_other() {
    for version in [Version::V1_1, Version::V1_2] {
        let server = Connection::new(ConnectionOptions::new("ID:c:1"), 0);
        let mut ends = Loop { client: Client::default(), server, to_server: BytesMut::new(), tag: 0 };
        let connect =
            Connect { host: "h", version: Some(version), heart_beat_ms: (0, 9), ..Connect::default() };
        ends.client.connect(&connect, &mut ends.to_server);
        assert_eq!(ends.turn(), [format!("connected {version}")]);
        assert_eq!(ends.client.version(), version);
        let subscribe =
            Subscribe { id: "s:1", destination: "/queue/a", ack: "client-individual", headers: &[] };
        ends.client.subscribe(&subscribe, Some(1), &mut ends.to_server);
        assert_eq!(ends.turn(), ["receipt 1"]);
        let send =
            Send { destination: "/queue/a", body: b"\0", headers: &[("k:1", "v\n")], ..Send::default() };
        ends.client.send(&send, Some(2), &mut ends.to_server);
        ends.client.prepare(&send).put(Some(3), &mut ends.to_server);
        ends.client.prepare(&Send { text: true, body: b"hi", ..send }).put(None, &mut ends.to_server);
        let message = "message \"v\\n\" [0]";
        assert_eq!(ends.turn(), [message, "receipt 2", message, "receipt 3", "message \"v\\n\" [104, 105]"]);
        assert_eq!(ends.turn(), ["receipt 1000"; 3]);
        ends.client.begin("t", None, &mut ends.to_server);
        ends.client.send(&Send { transaction: Some("t"), ..send }, None, &mut ends.to_server);
        ends.client.abort("t", Some(4), &mut ends.to_server);
        ends.client.begin("t", None, &mut ends.to_server);
        ends.client.commit("t", Some(5), &mut ends.to_server);
        assert_eq!(ends.turn(), [message, "receipt 4", "receipt 5"]);
        ends.client.commit("t", Some(6), &mut ends.to_server);
        ends.client.unsubscribe("s:1", None, Some(7), &mut ends.to_server);
        ends.client.disconnect(Some(8), &mut ends.to_server);
        let error = "error no transaction 't' is open";
        assert_eq!(ends.turn(), [error, "receipt 1000", "receipt 7", "receipt 8"]);
    }
}
