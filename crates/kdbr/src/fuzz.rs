//! Entry points for fuzz targets, and for tests that replay what they found. They panic where a promise is broken.

use bytes::{Buf, BufMut, BytesMut};
use kahawai_types::{BootId, ClusterId, Epoch, NodeId, ReplicaId, StoreId};

use crate::frame::{COUNTED_HEAD_BYTES, header_crc};
use crate::limits::{CHUNK_BYTES_MAX, FRAME_HEAD_BYTES, HANDSHAKE_FRAME_BYTES_MAX, HEADER_BYTES_MAX};
use crate::{Decoder, Frame, Handshake, Local, Progress, Role, Secret, Secrets, VERSIONS};

const BODY_BYTES_MAX: usize = 300;

/// Appends a frame of any parts, with the checksum that they should have.
pub fn put_raw(number: u16, flags: u16, header: &[u8], body: &[u8], out: &mut BytesMut) {
    let start = out.len();
    out.put_u32((COUNTED_HEAD_BYTES + header.len() + body.len()) as u32);
    out.put_u16(number);
    out.put_u16(flags);
    out.put_u32(header.len() as u32);
    let crc = header_crc(&out[start..], header);
    out.put_u32(crc);
    out.put_slice(header);
    out.put_slice(body);
}

/// Frames of any parts: number, flags, length of the header and of the body, a byte each, then header and body. Without this
/// the checksum would keep everything else from being tried.
fn with_checksums(mut data: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    while let Some((&[number, flags, header_bytes, body_bytes], rest)) = data.split_first_chunk() {
        let (header, rest) = rest.split_at(rest.len().min(header_bytes.into()));
        let (body, rest) = rest.split_at(rest.len().min(body_bytes.into()));
        put_raw(number.into(), flags.into(), header, body, &mut out);
        data = rest;
    }
    out
}

/// A decoder reads `data`, in pieces and before or after authentication as the first byte says. What it finds is written again
/// and has to be the same frame.
pub fn fuzz_decode(data: &[u8]) {
    let Some((&first, data)) = data.split_first() else {
        return;
    };
    let bytes = if first & 0x40 != 0 { with_checksums(data) } else { BytesMut::from(data) };
    let is_authenticated = first & 0x80 != 0;
    let mut decoder = Decoder::new(BODY_BYTES_MAX);
    if is_authenticated {
        decoder.authenticated();
    }
    // At most one frame's limit is ever waited for.
    let waited_for_max = match is_authenticated {
        true => (FRAME_HEAD_BYTES + HEADER_BYTES_MAX).max(CHUNK_BYTES_MAX),
        false => HANDSHAKE_FRAME_BYTES_MAX,
    };
    let mut input = BytesMut::new();
    for piece in bytes.chunks(usize::from(first & 0x3f) + 1) {
        input.put_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Err(_) => return,
                Ok(None) => break,
                Ok(Some(frame)) => {
                    assert!(
                        is_authenticated || frame.epoch().is_none(),
                        "{} is not of the handshake",
                        frame.name()
                    );
                    assert_same_again(&frame);
                }
            }
        }
        let missing = decoder.bytes_missing(&input);
        assert!(missing == 0 || input.len() + missing <= waited_for_max, "{missing} bytes are waited for");
    }
}

fn assert_same_again(frame: &Frame) {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    let mut decoder = Decoder::new(BODY_BYTES_MAX);
    decoder.authenticated();
    let again = decoder.decode(&mut out).expect("we read what we write");
    assert_eq!(again.as_ref(), Some(frame));
    assert!(out.is_empty());
}

/// Both ends of a handshake take whatever frames `data` holds. A peer without the secret is never let in.
pub fn fuzz_handshake(data: &[u8]) {
    let secret = Secret::new(*b"a secret of some length").expect("long enough");
    for secrets in [Secrets::one(secret), Secrets::NONE] {
        let has_secret = secrets != Secrets::NONE;
        let mut out = Vec::new();
        let ends =
            [Handshake::acceptor(local(1), secrets.clone()), Handshake::dialler(local(2), secrets, &mut out)];
        for mut end in ends {
            let (mut decoder, mut input) = (Decoder::default(), with_checksums(data));
            while let Ok(Some(frame)) = decoder.decode(&mut input) {
                out.clear();
                match end.step(frame, &mut out) {
                    Progress::Continue => {}
                    Progress::Done(peer) => {
                        assert!(!has_secret, "let in without a secret: {peer:?}");
                        break;
                    }
                    Progress::Failed(error) => {
                        assert_eq!(out.last(), Some(&Frame::Error(error)));
                        break;
                    }
                    Progress::Refused(_) => break,
                }
            }
            for frame in &out {
                assert_same_again(frame);
                let mut bytes = BytesMut::new();
                frame.encode(&mut bytes);
                assert!(bytes.remaining() <= HANDSHAKE_FRAME_BYTES_MAX, "{} is too long", frame.name());
            }
        }
    }
}

fn local(number: u8) -> Local {
    Local {
        role: Role::Stream,
        versions: VERSIONS,
        features: 3,
        cluster_id: Some(ClusterId(7)),
        replica: ReplicaId { node: NodeId(format!("node-{number}")), store: StoreId(number.into()) },
        boot: BootId(number.into()),
        epoch: Epoch(5),
        software: "fuzz".to_owned(),
        nonce: [number; 32],
        exporter: None,
    }
}
