//! Frames of every kind.

use bytes::Bytes;
use kahawai_kdbr::{
    AttachMode, AuthChallenge, AuthOk, AuthProof, Commit, EpochStart, ErrorCode, ErrorFrame, FileChunk,
    FileKind, FileTransfer, FileTransferResponse, Frame, Goodbye, Heartbeat, Hello, HelloAck, JournalUpdate,
    JournalUpdateAck, LagReport, ManifestFile, Mechanism, NodeState, RepairRequest, RepairResponse, Role,
    SlaveInit, SlaveInitResponse, SlaveOnline, SwitchoverAbort, SwitchoverGo, SwitchoverPrepare,
    SwitchoverReady, SyncAbort, SyncId, SyncLease, SyncManifest, TransferStatus, Truncate, TruncateDone,
};
use kahawai_types::{BootId, ClusterId, Epoch, Lsn, NodeId, ReplicaId, StoreId};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<u64>().prop_map(Epoch)
}

fn lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn)
}

fn replica() -> impl Strategy<Value = ReplicaId> {
    let node = prop_oneof!["[a-zA-Z0-9 ä_-]{1,40}", Just("n".repeat(255))];
    (node, any::<u128>()).prop_map(|(node, store)| ReplicaId { node: NodeId(node), store: StoreId(store) })
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,60}", Just("t".repeat(1024))]
}

fn history() -> impl Strategy<Value = Vec<EpochStart>> {
    let start = (epoch(), lsn(), any::<u64>()).prop_map(|(epoch, start, chain_before)| EpochStart {
        epoch,
        start,
        chain_before,
    });
    vec(start, 0..5)
}

fn kind() -> impl Strategy<Value = FileKind> {
    select(vec![FileKind::Journal, FileKind::Snapshot])
}

fn manifest_file() -> impl Strategy<Value = ManifestFile> {
    (kind(), any::<u32>(), any::<u64>(), epoch(), any::<u64>(), any::<u64>()).prop_map(
        |(kind, id, length, first_epoch, start_chain, end_chain)| ManifestFile {
            kind,
            id,
            length,
            first_epoch,
            start_chain,
            end_chain,
        },
    )
}

fn bytes(lengths: std::ops::Range<usize>) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), lengths).prop_map(Bytes::from)
}

fn sync_id() -> impl Strategy<Value = SyncId> {
    any::<u128>().prop_map(SyncId)
}

fn role() -> impl Strategy<Value = Role> {
    select(vec![Role::Stream, Role::Transfer])
}

fn mechanism() -> impl Strategy<Value = Mechanism> {
    select(vec![Mechanism::None, Mechanism::SharedSecret])
}

fn code() -> impl Strategy<Value = ErrorCode> {
    select(vec![
        ErrorCode::StaleEpoch,
        ErrorCode::NotMaster,
        ErrorCode::NotMember,
        ErrorCode::Version,
        ErrorCode::Busy,
        ErrorCode::Diverged,
        ErrorCode::DiskFull,
        ErrorCode::Corrupt,
        ErrorCode::Limit,
        ErrorCode::Auth,
        ErrorCode::Protocol,
        ErrorCode::Other(0),
        ErrorCode::Other(77),
    ])
}

/// What opens a connection, and ERROR: numbers 16 to 21.
pub(crate) fn handshake_kinds() -> Vec<(u16, BoxedStrategy<Frame>)> {
    let hello = (
        (any::<u32>(), any::<u32>(), any::<u64>()),
        option::of(any::<u128>()),
        replica(),
        any::<u128>(),
        role(),
        mechanism(),
        text(),
        any::<[u8; 32]>(),
    )
        .prop_map(|(numbers, cluster_id, replica, boot, role, mechanism, software, nonce)| {
            let (version_min, version_max, features) = numbers;
            let (cluster_id, boot) = (cluster_id.map(ClusterId), BootId(boot));
            Hello {
                version_min,
                version_max,
                features,
                cluster_id,
                replica,
                boot,
                role,
                mechanism,
                software,
                nonce,
            }
        });
    let hello_ack = (
        any::<u32>(),
        any::<u64>(),
        any::<u128>(),
        replica(),
        any::<u128>(),
        epoch(),
        text(),
        any::<[u8; 32]>(),
    )
        .prop_map(|(version, features, cluster_id, replica, boot, epoch, software, nonce)| HelloAck {
            version,
            features,
            cluster_id: ClusterId(cluster_id),
            replica,
            boot: BootId(boot),
            epoch,
            software,
            nonce,
        });
    let error = (code(), text(), option::of(epoch()), option::of(text()), option::of(any::<u32>())).prop_map(
        |(code, text, promised_epoch, primary, retry_after_ms)| ErrorFrame {
            code,
            text,
            promised_epoch,
            primary,
            retry_after_ms,
        },
    );
    vec![
        (16, hello.prop_map(Frame::from).boxed()),
        (17, hello_ack.prop_map(Frame::from).boxed()),
        (18, mechanism().prop_map(|mechanism| AuthChallenge { mechanism }.into()).boxed()),
        (19, vec(any::<[u8; 32]>(), 0..3).prop_map(|proofs| AuthProof { proofs }.into()).boxed()),
        (20, any::<[u8; 32]>().prop_map(|proof| AuthOk { proof }.into()).boxed()),
        (21, error.prop_map(Frame::from).boxed()),
    ]
}

/// The frames of a session about the journal.
fn journal_kinds() -> Vec<(u16, BoxedStrategy<Frame>)> {
    let goodbye = (epoch(), text(), option::of(any::<u32>()))
        .prop_map(|(epoch, reason, reconnect_after_ms)| Goodbye { epoch, reason, reconnect_after_ms });
    let slave_init = (
        (epoch(), history(), lsn(), lsn(), lsn(), any::<u64>(), lsn()),
        (any::<bool>(), any::<u64>(), text(), vec(text(), 0..4)),
    )
        .prop_map(|(log, other)| {
            let (epoch, epoch_history, first_lsn, end, durable, chain_at_end, known_commit) = log;
            let (is_foreign_tail, receive_window, address, clients) = other;
            SlaveInit {
                epoch,
                epoch_history,
                first_lsn,
                end,
                durable,
                chain_at_end,
                known_commit,
                is_foreign_tail,
                receive_window,
                address,
                clients,
            }
        });
    let mode = select(vec![AttachMode::StreamFrom, AttachMode::TruncateThenStream, AttachMode::Bulk]);
    let slave_init_response = (
        epoch(),
        mode,
        (lsn(), epoch(), any::<u64>()),
        lsn(),
        any::<u64>(),
        history(),
        any::<u64>(),
        any::<u32>(),
    )
        .prop_map(
            |(epoch, mode, common, commit, unclean_generation, epoch_history, send_window, interval)| {
                let (common_lsn, common_epoch, common_chain) = common;
                SlaveInitResponse {
                    epoch,
                    mode,
                    common_lsn,
                    common_epoch,
                    common_chain,
                    commit,
                    unclean_generation,
                    epoch_history,
                    send_window,
                    heartbeat_interval_ms: interval,
                }
            },
        );
    let slave_online = (epoch(), lsn(), any::<u64>(), lsn())
        .prop_map(|(epoch, durable, chain, applied)| SlaveOnline { epoch, durable, chain, applied });
    let journal_update = (epoch(), lsn(), any::<u64>(), lsn(), bytes(1..200)).prop_map(
        |(epoch, first_lsn, prev_chain, commit, batches)| JournalUpdate {
            epoch,
            first_lsn,
            prev_chain,
            commit,
            batches,
        },
    );
    let journal_update_ack = (epoch(), lsn(), lsn(), lsn(), any::<u64>(), any::<u64>()).prop_map(
        |(epoch, received, durable, applied, chain_at_durable, credit)| JournalUpdateAck {
            epoch,
            received,
            durable,
            applied,
            chain_at_durable,
            credit,
        },
    );
    let state = select(vec![
        NodeState::Unconnected,
        NodeState::Synchronizing,
        NodeState::Online,
        NodeState::Master,
        NodeState::CatchingUp,
        NodeState::Suspended,
        NodeState::SteppingDown,
        NodeState::Faulted,
    ]);
    let heartbeat =
        (epoch(), any::<u64>(), any::<u64>(), any::<i64>(), lsn(), lsn(), state, any::<u64>(), any::<u64>())
            .prop_map(
                |(
                    epoch,
                    seq,
                    echo_seq,
                    sender_time_ms,
                    commit,
                    durable,
                    state,
                    disk_free_bytes,
                    last_flush_us,
                )| {
                    Heartbeat {
                        epoch,
                        seq,
                        echo_seq,
                        sender_time_ms,
                        commit,
                        durable,
                        state,
                        disk_free_bytes,
                        last_flush_us,
                    }
                },
            );
    let lag_report = (epoch(), any::<[u64; 7]>()).prop_map(
        |(epoch, [received, durable, applied, behind_ms, apply_bytes_per_s, done, total])| LagReport {
            epoch,
            received_behind_bytes: received,
            durable_behind_bytes: durable,
            applied_behind_bytes: applied,
            behind_ms,
            apply_bytes_per_s,
            sync_done_bytes: done,
            sync_total_bytes: total,
        },
    );
    let truncate = (epoch(), lsn(), any::<u64>(), any::<u64>())
        .prop_map(|(epoch, to, chain, unclean_generation)| Truncate { epoch, to, chain, unclean_generation });
    let truncate_done = (epoch(), lsn(), any::<u64>(), any::<u64>(), option::of(text())).prop_map(
        |(epoch, end, chain, dropped_bytes, saved_as)| TruncateDone {
            epoch,
            end,
            chain,
            dropped_bytes,
            saved_as,
        },
    );
    vec![
        (0, slave_init.prop_map(Frame::from).boxed()),
        (1, slave_init_response.prop_map(Frame::from).boxed()),
        (2, slave_online.prop_map(Frame::from).boxed()),
        (3, journal_update.prop_map(Frame::from).boxed()),
        (4, journal_update_ack.prop_map(Frame::from).boxed()),
        (22, goodbye.prop_map(Frame::from).boxed()),
        (32, heartbeat.prop_map(Frame::from).boxed()),
        (33, (epoch(), lsn()).prop_map(|(epoch, commit)| Commit { epoch, commit }.into()).boxed()),
        (34, lag_report.prop_map(Frame::from).boxed()),
        (38, truncate.prop_map(Frame::from).boxed()),
        (39, truncate_done.prop_map(Frame::from).boxed()),
    ]
}

/// The frames of a bulk synchronisation, and of a switchover.
fn other_kinds() -> Vec<(u16, BoxedStrategy<Frame>)> {
    let manifest = (
        epoch(),
        sync_id(),
        vec(manifest_file(), 0..5),
        lsn(),
        lsn(),
        any::<u64>(),
        any::<u32>(),
        any::<u32>(),
    )
        .prop_map(
            |(epoch, sync_id, files, stream_start, commit, total_bytes, lease_ms, sessions_max)| {
                SyncManifest {
                    epoch,
                    sync_id,
                    files,
                    stream_start,
                    commit,
                    total_bytes,
                    lease_ms,
                    sessions_max,
                }
            },
        );
    let file_transfer = (epoch(), sync_id(), any::<u64>(), kind(), any::<u32>(), any::<u64>(), any::<u64>())
        .prop_map(|(epoch, sync_id, request_id, kind, id, offset, length)| FileTransfer {
            epoch,
            sync_id,
            request_id,
            kind,
            id,
            offset,
            length,
        });
    let status = select(vec![
        TransferStatus::Ok,
        TransferStatus::UnknownFile,
        TransferStatus::LeaseExpired,
        TransferStatus::OutOfRange,
        TransferStatus::Busy,
        TransferStatus::Failed,
    ]);
    let file_transfer_response = (epoch(), any::<u64>(), status, any::<u64>(), any::<u64>()).prop_map(
        |(epoch, request_id, status, file_length, end_chain)| FileTransferResponse {
            epoch,
            request_id,
            status,
            file_length,
            end_chain,
        },
    );
    let chunk = (epoch(), any::<u64>(), any::<u64>(), bytes(0..200), any::<bool>()).prop_map(
        |(epoch, request_id, offset, bytes, is_last)| {
            FileChunk::new(epoch, request_id, offset, bytes, is_last)
        },
    );
    let lease = (epoch(), sync_id(), any::<u32>(), any::<u64>()).prop_map(
        |(epoch, sync_id, files_done, bytes_done)| SyncLease { epoch, sync_id, files_done, bytes_done },
    );
    let sync_abort = (epoch(), sync_id(), text(), option::of(any::<u32>())).prop_map(
        |(epoch, sync_id, reason, retry_after_ms)| SyncAbort { epoch, sync_id, reason, retry_after_ms },
    );
    let repair_request = (epoch(), any::<u64>(), lsn(), lsn(), any::<u64>(), any::<u64>()).prop_map(
        |(epoch, request_id, from, to, chain_before, chain_after)| RepairRequest {
            epoch,
            request_id,
            from,
            to,
            chain_before,
            chain_after,
        },
    );
    let repair_response = (epoch(), any::<u64>(), any::<u64>(), epoch()).prop_map(
        |(epoch, request_id, length, first_epoch)| RepairResponse {
            epoch,
            request_id,
            status: TransferStatus::UnknownFile,
            length,
            first_epoch,
        },
    );
    let prepare = (epoch(), replica(), any::<u32>())
        .prop_map(|(epoch, target, timeout_ms)| SwitchoverPrepare { epoch, target, timeout_ms });
    let ready = (epoch(), lsn(), lsn()).prop_map(|(epoch, durable, applied)| SwitchoverReady {
        epoch,
        durable,
        applied,
    });
    let go = (epoch(), epoch(), lsn(), any::<u64>())
        .prop_map(|(epoch, next_epoch, end, chain)| SwitchoverGo { epoch, next_epoch, end, chain });
    let abort = (epoch(), text()).prop_map(|(epoch, reason)| SwitchoverAbort { epoch, reason });
    vec![
        (5, file_transfer.prop_map(Frame::from).boxed()),
        (6, file_transfer_response.prop_map(Frame::from).boxed()),
        (48, manifest.prop_map(Frame::from).boxed()),
        (49, chunk.prop_map(Frame::from).boxed()),
        (50, lease.prop_map(Frame::from).boxed()),
        (51, sync_abort.prop_map(Frame::from).boxed()),
        (56, repair_request.prop_map(Frame::from).boxed()),
        (57, repair_response.prop_map(Frame::from).boxed()),
        (64, prepare.prop_map(Frame::from).boxed()),
        (65, ready.prop_map(Frame::from).boxed()),
        (66, go.prop_map(Frame::from).boxed()),
        (67, abort.prop_map(Frame::from).boxed()),
    ]
}

/// Every kind with its number.
pub(crate) fn kinds() -> Vec<(u16, BoxedStrategy<Frame>)> {
    [handshake_kinds(), journal_kinds(), other_kinds()].concat()
}

pub(crate) fn any_frame() -> impl Strategy<Value = Frame> {
    Union::new(kinds().into_iter().map(|(_, frames)| frames))
}
