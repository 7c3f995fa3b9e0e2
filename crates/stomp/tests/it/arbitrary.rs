use bytes::BytesMut;
use kahawai_stomp::fuzz::{fuzz_client, fuzz_server};
use kahawai_stomp::{Connection, ConnectionOptions, Progress};
use proptest::collection::vec;
use proptest::prelude::*;

/// Frames that make sense, and pieces of frames that do not.
fn any_piece() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(vec![
        "SEND",
        "SUBSCRIBE",
        "UNSUBSCRIBE",
        "ACK",
        "NACK",
        "BEGIN",
        "COMMIT",
        "ABORT",
        "CONNECT",
        "DISCONNECT",
        "destination:/queue/a",
        "destination:/temp-queue/b",
        "id:1",
        "id:1-1",
        "id:1-2",
        "id:2-3",
        "receipt:7",
        "receipt:\\c",
        "transaction:t",
        "transaction:u",
        "ack:client",
        "ack:client-individual",
        "content-length:2",
        "content-length:2000",
        "message-id:ID\\cfuzz-1\\c-1\\c1\\c1",
        "subscription:1",
        "persistent:true",
        "JMSXGroupSeq:1",
        "browser:true",
        "k:v",
        "\\x:y",
        "",
        "",
        "",
        "\0",
        "\r",
        "x\0",
        "reply-to:/queue/r",
        "activemq.subscriptionName:d",
    ]);
    prop_oneof![
        6 => line.prop_map(|line| [line.as_bytes(), b"\n"].concat()),
        2 => Just(b"\n\0".to_vec()),
        1 => vec(any::<u8>(), 0..8),
    ]
}

fn any_input() -> impl Strategy<Value = Vec<u8>> {
    vec(any_piece(), 0..120).prop_map(|pieces| pieces.concat())
}

/// A whole SEND, SUBSCRIBE or the like, in any version's terms.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let headers = vec(("[a-z]{1,8}", "[a-z ]{0,12}"), 0..6);
    (
        prop::sample::select(vec!["SEND", "BEGIN", "SUBSCRIBE"]),
        headers,
        vec(any::<u8>(), 0..40),
        any::<bool>(),
    )
        .prop_map(|(command, headers, body, bytes)| {
            let mut frame = format!("{command}\ndestination:/queue/a\nid:x\ntransaction:\n").replace(
                "transaction:\n",
                match command {
                    "BEGIN" => "transaction:t\n",
                    _ => "",
                },
            );
            headers.iter().for_each(|(name, value)| frame += &format!("{name}:{value}\n"));
            let body: Vec<u8> =
                if bytes { body } else { body.into_iter().filter(|byte| *byte != 0).collect() };
            if bytes {
                frame += &format!("content-length:{}\n", body.len());
            }
            [frame.as_bytes(), b"\n", &body, b"\0"].concat()
        })
}

/// What the broker is asked and the client told when `input` comes in pieces of `chunk` bytes.
fn in_pieces(input: &[u8], chunk: usize) -> (String, BytesMut) {
    let (mut connection, mut buffer) =
        (Connection::new(ConnectionOptions::new("ID:c-1"), 0), BytesMut::new());
    let (mut asked, mut out) = (String::new(), BytesMut::new());
    for piece in input.chunks(chunk.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            let mut requests = Vec::new();
            let result = connection.receive(1, &mut buffer, &mut requests, 1, &mut out);
            for (request, token) in requests {
                asked += &format!("{request:?}\n");
                if let Some(token) = token {
                    let _ = connection.confirmed(token, &mut out);
                }
            }
            match result {
                Ok(Progress::Full | Progress::AwaitConnected) => {}
                Ok(Progress::NeedInput) => break,
                Ok(Progress::Ended) => return (asked, out),
                // Which limit or line is blamed may depend on how much is there.
                Err(_) => return (asked + "closed", BytesMut::new()),
            }
        }
    }
    (asked, out)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// However the network cuts the bytes, the same requests and answers come out.
    #[test]
    fn packet_boundaries_do_not_matter(
        frames in vec(any_frame(), 0..6),
        version in prop::sample::select(vec!["1.0", "1.1", "1.2"]),
        chunk in 1..80usize,
    ) {
        let input = [format!("CONNECT\naccept-version:{version}\n\n\0\n\n").into_bytes(), frames.concat()].concat();
        prop_assert_eq!(in_pieces(&input, chunk), in_pieces(&input, usize::MAX));
    }

    #[test]
    fn packet_boundaries_do_not_matter_for_garbage_either(input in any_input(), chunk in 1..40usize) {
        let input = [b"CONNECT\naccept-version:1.2\n\n\0", &input[..]].concat();
        prop_assert_eq!(in_pieces(&input, chunk), in_pieces(&input, usize::MAX));
    }

    /// Nor does anything make either end panic, or hold more than it should.
    #[test]
    fn neither_end_breaks_on_anything(start in any::<[u8; 2]>(), input in any_input()) {
        fuzz_server(&[&start[..], &input].concat());
        fuzz_client(&[&start[..], &input].concat());
    }

    #[test]
    fn neither_end_breaks_on_noise(input in vec(any::<u8>(), 0..300)) {
        fuzz_server(&input);
        fuzz_client(&input);
    }
}
