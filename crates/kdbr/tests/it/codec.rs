use bytes::{Bytes, BytesMut};
use kahawai_kdbr::fuzz::{fuzz_decode, fuzz_handshake, put_raw};
use kahawai_kdbr::{
    ADDRESSES_MAX, BODY_BYTES_MAX, CHUNK_BYTES_MAX, DecodeError, Decoder, EPOCHS_MAX, EpochStart, ErrorCode,
    ErrorFrame, FRAME_HEAD_BYTES, FileChunk, FileKind, Frame, HANDSHAKE_FRAME_BYTES_MAX, HEADER_BYTES_MAX,
    JournalUpdate, MANIFEST_FILES_MAX, ManifestFile, SlaveInit, SyncId, SyncManifest,
};
use kahawai_types::{Epoch, Lsn};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::frames::{any_frame, handshake_kinds, kinds};

const OPTIONAL: u16 = 1;
const COMMIT: u16 = 33;
const JOURNAL_UPDATE: u16 = 3;
const FILE_CHUNK: u16 = 49;
const UNKNOWN: u16 = 99;

fn authenticated(body_bytes_max: usize) -> Decoder {
    let mut decoder = Decoder::new(body_bytes_max);
    decoder.authenticated();
    decoder
}

fn encoded(frames: &[Frame]) -> BytesMut {
    let mut out = BytesMut::new();
    frames.iter().for_each(|frame| frame.encode(&mut out));
    out
}

/// What comes out of `input` in pieces of `chunk` bytes, and what is wrong behind it.
fn in_pieces(mut decoder: Decoder, input: &[u8], chunk: usize) -> (Vec<Frame>, Option<DecodeError>) {
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
    for piece in input.chunks(chunk) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// The first error in `input`.
fn check_refused(decoder: Decoder, input: &[u8], expected: DecodeError) {
    assert_eq!(in_pieces(decoder, input, usize::MAX), (Vec::new(), Some(expected)));
}

fn raw(number: u16, flags: u16, header: &[u8], body: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    put_raw(number, flags, header, body, &mut out);
    out
}

/// Head of a frame with these lengths; the rest has not come.
fn head(number: u16, counted: u32, header_bytes: u32) -> Vec<u8> {
    [&counted.to_be_bytes()[..], &number.to_be_bytes(), &[0, 0], &header_bytes.to_be_bytes(), &[0; 4]]
        .concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_frame_is_read_as_it_was_written(frame in any_frame()) {
        let mut input = encoded(std::slice::from_ref(&frame));
        let mut decoder = authenticated(BODY_BYTES_MAX);
        prop_assert_eq!(decoder.decode(&mut input), Ok(Some(frame)));
        prop_assert!(input.is_empty());
    }

    /// A batch is written to the socket behind the head, without being copied.
    #[test]
    fn head_and_body_are_the_whole_frame(frame in any_frame()) {
        let mut head = BytesMut::new();
        frame.encode_head(&mut head);
        head.extend_from_slice(frame.body().unwrap_or(&Bytes::new()));
        prop_assert_eq!(head, encoded(&[frame]));
    }

    /// However the network cuts the bytes, the same frames come out.
    #[test]
    fn packet_boundaries_do_not_matter(frames in vec(any_frame(), 0..6), chunk in 1..100usize) {
        let input = encoded(&frames);
        prop_assert_eq!(in_pieces(authenticated(BODY_BYTES_MAX), &input, chunk), (frames, None));
    }

    #[test]
    fn a_frame_without_its_end_is_waited_for(frame in any_frame(), end in any::<prop::sample::Index>()) {
        let whole = encoded(std::slice::from_ref(&frame));
        let end = end.index(whole.len());
        let mut input = BytesMut::from(&whole[..end]);
        let mut decoder = authenticated(BODY_BYTES_MAX);
        prop_assert_eq!(decoder.decode(&mut input), Ok(None));
        // What the decoder asks for never goes beyond the frame.
        let missing = decoder.bytes_missing(&input);
        prop_assert!(end + missing <= whole.len(), "{} of {}, wants {}", end, whole.len(), missing);
        prop_assert!(missing > 0 || end < FRAME_HEAD_BYTES);
    }

    /// Nothing that the network does to a frame is taken for another frame, but within a batch, which the journal checks.
    #[test]
    fn a_flipped_bit_is_noticed(frame in any_frame(), bit in any::<prop::sample::Index>(), chunk in 1..100usize) {
        let mut input = encoded(std::slice::from_ref(&frame));
        let body_bytes = frame.body().map_or(0, Bytes::len);
        let bit = bit.index(input.len() * 8);
        input[bit / 8] ^= 1 << (bit % 8);
        let in_batch = frame.number() == JOURNAL_UPDATE && bit / 8 >= input.len() - body_bytes;
        let (read, error) = in_pieces(authenticated(BODY_BYTES_MAX), &input, chunk);
        if in_batch {
            prop_assert_eq!(read.len(), 1);
        } else {
            prop_assert_eq!(read, vec![]);
            prop_assert!(error.is_some(), "bit {} is waited for", bit);
        }
    }

    /// Frames with right checksums and anything in them: no panic, nothing held beyond the limits, one reading.
    #[test]
    fn nothing_breaks_the_decoder(first in any::<u8>(), input in vec(any::<u8>(), 0..400)) {
        fuzz_decode(&[&[first][..], &input].concat());
        fuzz_handshake(&input);
    }

    #[test]
    fn damaged_headers_do_not_either(frame in any_frame(), damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let whole = encoded(std::slice::from_ref(&frame));
        let body_bytes = frame.body().map_or(0, Bytes::len);
        let mut header = whole[FRAME_HEAD_BYTES..whole.len() - body_bytes].to_vec();
        for (at, byte) in damage {
            if let Some(at) = header.len().checked_sub(1).map(|_| at.index(header.len())) {
                header[at] = byte;
            }
        }
        let input = raw(frame.number(), 0, &header, frame.body().unwrap_or(&Bytes::new()));
        for (read, _) in [
            in_pieces(authenticated(BODY_BYTES_MAX), &input, 7),
            in_pieces(Decoder::default(), &input, usize::MAX),
        ] {
            // What is read can be written and is then read the same way.
            prop_assert_eq!(in_pieces(authenticated(BODY_BYTES_MAX), &encoded(&read), usize::MAX), (read, None));
        }
    }

    #[test]
    fn the_handshake_has_its_frames_before_authentication(frame in prop::strategy::Union::new(handshake_kinds().into_iter().map(|kind| kind.1))) {
        let input = encoded(std::slice::from_ref(&frame));
        prop_assert!(input.len() <= HANDSHAKE_FRAME_BYTES_MAX);
        prop_assert_eq!(in_pieces(Decoder::default(), &input, usize::MAX), (vec![frame], None));
    }
}

/// The strategies, and with them every test above, know each number that the decoder knows.
#[test]
fn every_number_is_tested_and_no_other_is_known() {
    let tested: Vec<u16> = kinds().into_iter().map(|kind| kind.0).collect();
    for number in 0..=u16::MAX {
        let (_, error) = in_pieces(authenticated(0), &raw(number, 0, &[], &[]), usize::MAX);
        assert_eq!(
            error != Some(DecodeError::UnknownNumber { number }),
            tested.contains(&number),
            "{number}"
        );
    }
}

#[test]
fn names_and_numbers_belong_together() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for (number, frames) in kinds() {
        let frame = frames.new_tree(&mut runner).unwrap().current();
        assert_eq!(frame.number(), number, "{}", frame.name());
        assert_eq!(frame.epoch().is_none(), (16..=21).contains(&number), "{}", frame.name());
        assert_eq!(
            frame.body().is_some(),
            [JOURNAL_UPDATE, FILE_CHUNK].contains(&number),
            "{}",
            frame.name()
        );
    }
}

#[test]
fn only_the_handshake_is_read_before_authentication() {
    for (number, _) in kinds().into_iter().filter(|kind| !(16..=21).contains(&kind.0)) {
        for flags in [0, OPTIONAL] {
            let expected = DecodeError::NotAuthenticated { number };
            check_refused(Decoder::default(), &raw(number, flags, &[], &[]), expected);
        }
    }
    check_refused(
        Decoder::default(),
        &raw(UNKNOWN, OPTIONAL, &[], &[]),
        DecodeError::NotAuthenticated { number: UNKNOWN },
    );
}

#[test]
fn lengths_are_refused_before_anything_is_waited_for() {
    let limit = HANDSHAKE_FRAME_BYTES_MAX;
    let most = u32::try_from(limit - 4).unwrap();
    check_refused(
        Decoder::default(),
        &head(16, most + 1, 10),
        DecodeError::FrameTooLarge { declared: limit + 1, limit },
    );
    assert_eq!(in_pieces(Decoder::default(), &head(16, most, most - 12), usize::MAX), (vec![], None));

    let limit = HEADER_BYTES_MAX;
    let most = u32::try_from(limit).unwrap();
    check_refused(
        authenticated(0),
        &head(COMMIT, u32::MAX, most + 1),
        DecodeError::HeaderTooLarge { declared: limit + 1, limit },
    );
    assert_eq!(in_pieces(authenticated(0), &head(COMMIT, most + 12, most), usize::MAX), (vec![], None));

    for (counted, header_bytes) in [(0, 0), (11, 0), (12, 1), (20, u32::from(u8::MAX))] {
        check_refused(
            authenticated(0),
            &head(COMMIT, counted, header_bytes),
            DecodeError::Lengths { counted: counted as usize, header_bytes: header_bytes as usize },
        );
    }
}

/// The head of a frame whose body would be this long, with its header.
fn with_body_of(body_bytes: usize, number: u16) -> BytesMut {
    let mut out = raw(number, 0, &[], &[]);
    out.truncate(12);
    out[..4].copy_from_slice(&u32::try_from(12 + body_bytes).unwrap().to_be_bytes());
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    out
}

#[test]
fn bodies_have_the_limit_of_their_kind() {
    for (number, frame, limit) in [
        (JOURNAL_UPDATE, "JOURNAL_UPDATE", 5000),
        (FILE_CHUNK, "FILE_CHUNK", CHUNK_BYTES_MAX),
        (COMMIT, "COMMIT", 0),
    ] {
        let declared = limit + 1;
        check_refused(
            authenticated(5000),
            &with_body_of(declared, number),
            DecodeError::BodyTooLarge { frame, declared, limit },
        );
        let mut input = with_body_of(limit, number);
        let mut decoder = authenticated(5000);
        assert_eq!(decoder.decode(&mut input).unwrap().is_some(), limit == 0, "{frame}");
        assert_eq!(decoder.bytes_missing(&input), limit, "{frame}");
    }
    check_refused(
        authenticated(5000),
        &with_body_of(0, JOURNAL_UPDATE),
        DecodeError::NoBody { frame: "JOURNAL_UPDATE" },
    );
    // The largest batch of the journal.
    let mut input = with_body_of(BODY_BYTES_MAX, JOURNAL_UPDATE);
    let mut decoder = authenticated(BODY_BYTES_MAX);
    assert_eq!(decoder.decode(&mut input), Ok(None));
    assert_eq!(decoder.bytes_missing(&input), BODY_BYTES_MAX);
}

#[test]
fn an_unknown_frame_is_skipped_if_it_says_so() {
    let known = Frame::from(kahawai_kdbr::Commit { epoch: Epoch(1), commit: Lsn(2) });
    let input = [
        &raw(UNKNOWN, OPTIONAL, &[0xff; 9], &[7; 5000])[..],
        &encoded(std::slice::from_ref(&known)),
        &raw(UNKNOWN, OPTIONAL, &[], &[]),
        &raw(UNKNOWN, 0, &[], &[]),
    ]
    .concat();
    for chunk in [1, 30, usize::MAX] {
        let (read, error) = in_pieces(authenticated(100), &input, chunk);
        assert_eq!(
            (read, error),
            (vec![known.clone()], Some(DecodeError::UnknownNumber { number: UNKNOWN }))
        );
    }
    // The bytes of the first are not kept until it is whole.
    let (mut decoder, mut buffer) = (authenticated(100), BytesMut::from(&input[..2000]));
    assert_eq!(decoder.decode(&mut buffer), Ok(None));
    assert!(buffer.is_empty());
}

#[test]
fn optional_fields_of_a_newer_peer_are_ignored() {
    let header = [0x08, 5, 0x10, 6, 0xf8, 0x07, 1];
    let (read, error) = in_pieces(authenticated(0), &raw(COMMIT, 0x8000, &header, &[]), usize::MAX);
    assert_eq!(error, None);
    assert_eq!(read, [Frame::from(kahawai_kdbr::Commit { epoch: Epoch(5), commit: Lsn(6) })]);
}

#[test]
fn a_damaged_chunk_is_noticed() {
    let chunk = FileChunk::new(Epoch(1), 2, 3, Bytes::from_static(b"bytes of a file"), true);
    let mut input = encoded(&[chunk.into()]);
    let last = input.len() - 1;
    input[last] ^= 1;
    let (_, error) = in_pieces(authenticated(0), &input, usize::MAX);
    assert!(matches!(error, Some(DecodeError::ChunkChecksum { bytes: 15, .. })), "{error:?}");
    assert_eq!(ErrorFrame::from(&error.unwrap()).code, ErrorCode::Corrupt);
}

/// A batch is not copied out of the receive buffer.
#[test]
fn a_body_is_a_view_into_the_input() {
    let batches = Bytes::from(vec![9; 3000]);
    let update = JournalUpdate {
        epoch: Epoch(1),
        first_lsn: Lsn(2),
        prev_chain: 3,
        commit: Lsn(4),
        batches: batches.clone(),
    };
    let mut input = encoded(&[update.into()]);
    let place = input[input.len() - batches.len()..].as_ptr();
    let read = authenticated(BODY_BYTES_MAX).decode(&mut input).unwrap().unwrap();
    assert_eq!(read.body().unwrap().as_ptr(), place);
    assert_eq!(read.body(), Some(&batches));
}

#[test]
fn lists_of_the_largest_size_fit_a_header() {
    let start = EpochStart { epoch: Epoch(u64::MAX), start: Lsn(u64::MAX), chain_before: u64::MAX };
    let init = SlaveInit {
        epoch: Epoch(u64::MAX),
        epoch_history: vec![start; EPOCHS_MAX],
        first_lsn: Lsn(u64::MAX),
        end: Lsn(u64::MAX),
        durable: Lsn(u64::MAX),
        chain_at_end: u64::MAX,
        known_commit: Lsn(u64::MAX),
        is_foreign_tail: true,
        receive_window: u64::MAX,
        address: "a".repeat(1024),
        clients: vec!["c".repeat(1024); ADDRESSES_MAX],
    };
    let file = ManifestFile {
        kind: FileKind::Snapshot,
        id: u32::MAX,
        length: u64::MAX,
        first_epoch: Epoch(u64::MAX),
        start_chain: u64::MAX,
        end_chain: u64::MAX,
    };
    let manifest = SyncManifest {
        epoch: Epoch(u64::MAX),
        sync_id: SyncId(u128::MAX),
        files: vec![file; MANIFEST_FILES_MAX],
        stream_start: Lsn(u64::MAX),
        commit: Lsn(u64::MAX),
        total_bytes: u64::MAX,
        lease_ms: u32::MAX,
        sessions_max: u32::MAX,
    };
    for frame in [Frame::from(init), Frame::from(manifest)] {
        let input = encoded(std::slice::from_ref(&frame));
        assert_eq!(in_pieces(authenticated(0), &input, usize::MAX), (vec![frame], None));
    }
}

#[test]
fn longer_lists_are_refused() {
    // An empty entry of list 2 is two bytes; so many of them would become many times as much memory.
    let header = [0x12, 0].repeat(EPOCHS_MAX + 1);
    check_refused(
        authenticated(0),
        &raw(0, 0, &header, &[]),
        DecodeError::Field { frame: "SLAVE_INIT", field: "epoch_history" },
    );
}

#[test]
fn a_text_that_is_too_long_is_cut_off_where_a_character_ends() {
    let error = ErrorFrame::new(ErrorCode::Busy, format!("{}ä", "t".repeat(1023)));
    let (read, _) = in_pieces(Decoder::default(), &encoded(&[error.into()]), usize::MAX);
    assert_eq!(read, [Frame::from(ErrorFrame::new(ErrorCode::Busy, "t".repeat(1023)))]);
}

#[test]
fn values_that_cannot_be_are_refused() {
    // (number, header, name, field)
    let nodes = [&[0x0a, 0][..], b"\x0a\x02a\n"].map(|node| [node, &[0x12, 16], &[1; 16]].concat());
    for (number, header, frame, field) in [
        (32, vec![0x38, 2], "HEARTBEAT", "state"),
        (1, vec![0x10, 3], "SLAVE_INIT_RESPONSE", "mode"),
        (20, vec![0x0a, 3, 1, 2, 3], "AUTH_OK", "proof"),
        (19, [&[0x0a, 32][..], &[1; 32]].concat().repeat(3), "AUTH_PROOF", "proofs"),
        (67, [&[0x12, 0x81, 8][..], &[b't'; 1025]].concat(), "SWITCHOVER_ABORT", "reason"),
        (50, vec![0x12, 1, 1], "SYNC_LEASE", "sync_id"),
        (64, vec![], "SWITCHOVER_PREPARE", "target"),
        (
            64,
            [&[0x12, u8::try_from(nodes[0].len()).unwrap()], &nodes[0][..]].concat(),
            "SWITCHOVER_PREPARE",
            "target",
        ),
        (
            64,
            [&[0x12, u8::try_from(nodes[1].len()).unwrap()], &nodes[1][..]].concat(),
            "SWITCHOVER_PREPARE",
            "target",
        ),
    ] {
        check_refused(authenticated(0), &raw(number, 0, &header, &[]), DecodeError::Field { frame, field });
    }
    let (_, error) = in_pieces(authenticated(0), &raw(COMMIT, 0, &[0x08], &[]), usize::MAX);
    assert!(matches!(error, Some(DecodeError::Header { frame: "COMMIT", .. })), "{error:?}");
}
