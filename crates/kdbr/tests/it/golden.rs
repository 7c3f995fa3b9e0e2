//! The original's numbers, byte by byte. The bytes were made from the diagram and the table by another program.

use bytes::{Bytes, BytesMut};
use kahawai_kdbr::{
    AttachMode, Decoder, EpochStart, FileKind, FileTransfer, FileTransferResponse, Frame, JournalUpdate,
    JournalUpdateAck, SlaveInit, SlaveInitResponse, SlaveOnline, SyncId, TransferStatus,
};
use kahawai_types::{Epoch, Location, Lsn};

const EPOCH: Epoch = Epoch(5);

fn at(file: u32, offset: u32) -> Lsn {
    Location::new(file, offset).lsn()
}

fn chain(digit: u64) -> u64 {
    0x1111_1111_1111_1111 * digit
}

/// `hex` is the frame, and the frame is `hex`; blanks do not count.
fn check(frame: impl Into<Frame>, hex: &str) {
    let frame = frame.into();
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let expected: Vec<u8> = digits.chunks(2).map(byte).collect();
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    assert_eq!(out, expected, "{}", frame.name());
    let mut decoder = Decoder::default();
    decoder.authenticated();
    assert_eq!(decoder.decode(&mut out), Ok(Some(frame)));
}

#[test]
fn slave_init() {
    let init = SlaveInit {
        epoch: EPOCH,
        epoch_history: vec![
            EpochStart { epoch: Epoch(3), start: at(1, 0), chain_before: chain(1) },
            EpochStart { epoch: Epoch(5), start: at(2, 512), chain_before: chain(2) },
        ],
        first_lsn: at(1, 0),
        end: at(2, 9000),
        durable: at(2, 8000),
        chain_at_end: chain(3),
        known_commit: at(2, 7000),
        is_foreign_tail: true,
        receive_window: 16 << 20,
        address: "b:61619".to_owned(),
        clients: vec!["tcp://b:1".to_owned(), "stomp://b:2".to_owned()],
    };
    check(
        init,
        "0000007d 0000 0000 00000071 f6f2a4a8 \
         0805121108031080808080101911111111111111111211080510808480802019222222222222222218808080 \
         801020a8c680802028c0be80802031333333333333333338d8b6808020400148808080085207623a36313631 \
         395a097463703a2f2f623a315a0b73746f6d703a2f2f623a32",
    );
}

#[test]
fn slave_init_response() {
    let response = SlaveInitResponse {
        epoch: EPOCH,
        mode: AttachMode::TruncateThenStream,
        common_lsn: at(2, 7000),
        common_epoch: Epoch(3),
        common_chain: chain(4),
        commit: at(2, 6000),
        unclean_generation: 1,
        epoch_history: vec![EpochStart { epoch: Epoch(3), start: at(1, 0), chain_before: chain(1) }],
        send_window: 16 << 20,
        heartbeat_interval_ms: 500,
    };
    check(
        response,
        "00000044 0001 0000 00000038 7ed4d05b \
         0805100118d8b6808020200329444444444444444430f0ae8080203801421108031080808080101911111111 \
         11111111488080800850f403",
    );
}

#[test]
fn slave_online() {
    let online = SlaveOnline { epoch: EPOCH, durable: at(2, 9000), chain: chain(5), applied: at(2, 8000) };
    check(
        online,
        "00000023 0002 0000 00000017 dd2cd6b5 \
         080510a8c680802019555555555555555520c0be808020",
    );
}

#[test]
fn journal_update() {
    let update = JournalUpdate {
        epoch: EPOCH,
        first_lsn: at(2, 9000),
        prev_chain: chain(6),
        commit: at(2, 8000),
        batches: Bytes::from_static(b"WRITE BATCH"),
    };
    check(
        update,
        "0000002e 0003 0000 00000017 91c87b45 \
         080510a8c680802019666666666666666620c0be808020 \
         5752495445204241544348",
    );
}

#[test]
fn journal_update_ack() {
    let ack = JournalUpdateAck {
        epoch: EPOCH,
        received: at(2, 9300),
        durable: at(2, 9200),
        applied: at(2, 9100),
        chain_at_durable: chain(7),
        credit: 1 << 20,
    };
    check(
        ack,
        "0000002d 0004 0000 00000021 a2ea729b \
         080510d4c880802018f0c7808020208cc780802029777777777777777730808040",
    );
}

#[test]
fn file_transfer() {
    let transfer = FileTransfer {
        epoch: EPOCH,
        sync_id: SyncId(u128::from_be_bytes([0xab; 16])),
        request_id: 77,
        kind: FileKind::Journal,
        id: 12,
        offset: 1 << 20,
        length: 16 << 20,
    };
    check(
        transfer,
        "0000002d 0005 0000 00000021 bf507d8f \
         08051210abababababababababababababababab184d280c308080403880808008",
    );
}

#[test]
fn file_transfer_response() {
    let response = FileTransferResponse {
        epoch: EPOCH,
        request_id: 77,
        status: TransferStatus::Ok,
        file_length: 32 << 20,
        end_chain: chain(8),
    };
    check(
        response,
        "0000001e 0006 0000 00000012 c8e94c3b \
         0805104d2080808010298888888888888888",
    );
}
