//! Every frame with its fields.
//!
//! One line of the table is one field: its name and type here, then its tag, kind and type in the protobuf header. After a
//! colon comes the body: raw bytes behind the header.

use bytes::Bytes;
use kahawai_types::{BootId, ClusterId, Epoch, Lsn, Millis, ReplicaId};

use crate::field::{Field, Item, Nonce, Proof, SyncId, WireReplica};
use crate::limits::{EPOCHS_MAX, MANIFEST_FILES_MAX};
use crate::{AttachMode, ErrorCode, FileKind, Mechanism, NodeState, Role, TransferStatus};

/// A struct that is a protobuf message, field by field.
pub(crate) trait Fields: Sized {
    type Header: prost::Message + Default;

    fn to_header(&self) -> Self::Header;

    /// With an empty body. The error is the name of a field that does not hold what it should.
    fn from_header(header: Self::Header) -> Result<Self, &'static str>;
}

macro_rules! messages {
    ($(
        $(#[$doc:meta])*
        $name:ident {
            $( $(#[$field_doc:meta])* $field:ident: $type:ty = $tag:tt ($($kind:tt)*) $wire:ty, )*
            $( : $(#[$body_doc:meta])* $body:ident, )?
        }
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, PartialEq, Eq, Debug)]
            pub struct $name {
                $( $(#[$field_doc])* pub $field: $type, )*
                $( $(#[$body_doc])* pub $body: Bytes, )?
            }

            impl Fields for $name {
                type Header = wire::$name;

                fn to_header(&self) -> wire::$name {
                    wire::$name { $( $field: self.$field.to_wire(), )* }
                }

                fn from_header(header: wire::$name) -> Result<Self, &'static str> {
                    Ok(Self {
                        $( $field: Field::from_wire(header.$field).ok_or(stringify!($field))?, )*
                        $( $body: Bytes::new(), )?
                    })
                }
            }
        )*

        /// The protobuf messages.
        pub(crate) mod wire {
            use bytes::Bytes;

            use super::WireReplica;

            $(
                #[derive(Clone, PartialEq, prost::Message)]
                pub(crate) struct $name {
                    $( #[prost($($kind)*, tag($tag))] pub(crate) $field: $wire, )*
                }
            )*
        }
    };
}

messages! {
    /// HELLO: the dialler's first frame.
    Hello {
        /// The oldest version that it speaks.
        version_min: u32 = 1 (uint32) u32,
        /// The newest.
        version_max: u32 = 2 (uint32) u32,
        /// What it can do besides, one bit each; none is defined yet.
        features: u64 = 3 (uint64) u64,
        /// `None`: it has not joined a cluster yet, and learns the identity from the answer.
        cluster_id: Option<ClusterId> = 4 (bytes = "bytes", optional) Option<Bytes>,
        /// Who it says it is.
        replica: ReplicaId = 5 (message, optional) Option<WireReplica>,
        /// Its process.
        boot: BootId = 6 (bytes = "bytes") Bytes,
        /// As in the preamble.
        role: Role = 7 (uint32) u32,
        /// How it can prove who it is.
        mechanism: Mechanism = 8 (uint32) u32,
        /// Name and version of its program, for logs.
        software: String = 9 (string) String,
        /// Random, for this connection.
        nonce: Nonce = 10 (bytes = "bytes") Bytes,
    }

    /// HELLO_ACK: the acceptor's answer, or else ERROR.
    HelloAck {
        /// The version that both speak from here on.
        version: u32 = 1 (uint32) u32,
        /// What both can do.
        features: u64 = 2 (uint64) u64,
        /// Its cluster.
        cluster_id: ClusterId = 3 (bytes = "bytes") Bytes,
        /// Who it says it is.
        replica: ReplicaId = 4 (message, optional) Option<WireReplica>,
        /// Its process.
        boot: BootId = 5 (bytes = "bytes") Bytes,
        /// The newest reign that it has promised to follow.
        epoch: Epoch = 6 (uint64) u64,
        /// Name and version of its program, for logs.
        software: String = 7 (string) String,
        /// Random, for this connection.
        nonce: Nonce = 8 (bytes = "bytes") Bytes,
    }

    /// AUTH_CHALLENGE: the acceptor wants the dialler's proof. What to prove is in HELLO and HELLO_ACK.
    AuthChallenge {
        /// How.
        mechanism: Mechanism = 1 (uint32) u32,
    }

    /// AUTH_PROOF: the dialler knows a secret.
    AuthProof {
        /// One for each of its active secrets; the acceptor has to know one of them.
        proofs: Vec<Proof> = 1 (bytes = "bytes", repeated) Vec<Bytes>,
    }

    /// AUTH_OK: so does the acceptor.
    AuthOk {
        /// With the secret that the dialler was recognised by.
        proof: Proof = 1 (bytes = "bytes") Bytes,
    }

    /// ERROR: whoever sends it closes the connection.
    ErrorFrame {
        /// Why.
        code: ErrorCode = 1 (uint32) u32,
        /// The same for people.
        text: String = 2 (string) String,
        /// With [`ErrorCode::StaleEpoch`]: the reign that the sender has promised to follow.
        promised_epoch: Option<Epoch> = 3 (uint64, optional) Option<u64>,
        /// With [`ErrorCode::NotMaster`]: who leads, as far as the sender knows; a kdbr address.
        primary: Option<String> = 4 (string, optional) Option<String>,
        /// Not before.
        retry_after_ms: Option<u32> = 5 (uint32, optional) Option<u32>,
    }

    /// GOODBYE: an orderly end. The peer need not wait until it takes the sender for dead.
    Goodbye {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// Why, for people.
        reason: String = 2 (string) String,
        /// Not before; `None`: the sender does not expect to come back.
        reconnect_after_ms: Option<u32> = 3 (uint32, optional) Option<u32>,
    }

    /// One reign in a journal.
    EpochStart {
        /// Which.
        epoch: Epoch = 1 (uint64) u64,
        /// Position of its marker.
        start: Lsn = 2 (uint64) u64,
        /// The chain before the marker.
        chain_before: u64 = 3 (fixed64) u64,
    }

    /// SLAVE_INIT: what a replica has, and where it can be reached.
    ///
    /// No list of files: whether one has to be fetched, the replica sees from the manifest.
    SlaveInit {
        /// The session's epoch: the replica has promised to follow it.
        epoch: Epoch = 1 (uint64) u64,
        /// The reigns in its journal, oldest first, at most [`EPOCHS_MAX`].
        epoch_history: Vec<EpochStart> = 2 (message, repeated) Vec<EpochStart>,
        /// Where its journal begins: its oldest file.
        first_lsn: Lsn = 3 (uint64) u64,
        /// Where it ends; [`Lsn::ZERO`] if there is none.
        end: Lsn = 4 (uint64) u64,
        /// What of it is flushed.
        durable: Lsn = 5 (uint64) u64,
        /// The chain at `end`.
        chain_at_end: u64 = 6 (fixed64) u64,
        /// Everything before is confirmed, as far as the replica knows.
        known_commit: Lsn = 7 (uint64) u64,
        /// Its newest batches were written by ActiveMQ.
        is_foreign_tail: bool = 8 (bool) bool,
        /// Bytes that it takes without having acknowledged them.
        receive_window: u64 = 9 (uint64) u64,
        /// Its own kdbr address.
        address: String = 10 (string) String,
        /// Its addresses for clients, at most [`ADDRESSES_MAX`](crate::ADDRESSES_MAX).
        clients: Vec<String> = 11 (string, repeated) Vec<String>,
    }

    /// SLAVE_INIT_RESPONSE: how the replica gets to the live stream. A refusal is ERROR.
    SlaveInitResponse {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// How.
        mode: AttachMode = 2 (uint32) u32,
        /// Where the two journals part.
        common_lsn: Lsn = 3 (uint64) u64,
        /// The reign in which they do.
        common_epoch: Epoch = 4 (uint64) u64,
        /// The chain there.
        common_chain: u64 = 5 (fixed64) u64,
        /// Everything before is confirmed.
        commit: Lsn = 6 (uint64) u64,
        /// How often an operator made a node lead that may lack confirmed messages.
        unclean_generation: u64 = 7 (uint64) u64,
        /// The reigns in the primary's journal, oldest first, at most [`EPOCHS_MAX`].
        epoch_history: Vec<EpochStart> = 8 (message, repeated) Vec<EpochStart>,
        /// Bytes that the primary sends without an acknowledgement.
        send_window: u64 = 9 (uint64) u64,
        /// How often each end sends HEARTBEAT.
        heartbeat_interval_ms: u32 = 10 (uint32) u32,
    }

    /// TRUNCATE: the replica is to drop what comes after a position. It refuses with [`ErrorCode::Diverged`].
    Truncate {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// Drop everything from here on.
        to: Lsn = 2 (uint64) u64,
        /// The chain that the replica must have there.
        chain: u64 = 3 (fixed64) u64,
        /// Above the replica's: what it drops may have been confirmed.
        unclean_generation: u64 = 4 (uint64) u64,
    }

    /// TRUNCATE_DONE: it did, and flushed.
    TruncateDone {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// Where its journal ends now.
        end: Lsn = 2 (uint64) u64,
        /// The chain there.
        chain: u64 = 3 (fixed64) u64,
        /// How much was dropped.
        dropped_bytes: u64 = 4 (uint64) u64,
        /// Under which name the replica kept it, for logs.
        saved_as: Option<String> = 5 (string, optional) Option<String>,
    }

    /// JOURNAL_UPDATE: a piece of the journal.
    JournalUpdate {
        /// The session's epoch, not that of the batches.
        epoch: Epoch = 1 (uint64) u64,
        /// Where the first batch lies.
        first_lsn: Lsn = 2 (uint64) u64,
        /// The chain before it.
        prev_chain: u64 = 3 (fixed64) u64,
        /// Everything before is confirmed.
        commit: Lsn = 4 (uint64) u64,
        : /// One or more whole batches, one behind the other in one file. Never empty.
        batches,
    }

    /// JOURNAL_UPDATE_ACK: how far a replica is. Each replaces the one before.
    JournalUpdateAck {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// End of what it has in memory.
        received: Lsn = 2 (uint64) u64,
        /// End of what it has flushed; nothing else counts.
        durable: Lsn = 3 (uint64) u64,
        /// End of what is in its index.
        applied: Lsn = 4 (uint64) u64,
        /// The chain at `durable`.
        chain_at_durable: u64 = 5 (fixed64) u64,
        /// Bytes that it takes beyond `received`.
        credit: u64 = 6 (uint64) u64,
    }

    /// COMMIT: the commit position, where no JOURNAL_UPDATE carries it.
    Commit {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// Everything before is confirmed.
        commit: Lsn = 2 (uint64) u64,
    }

    /// HEARTBEAT: the sender's storage is alive, and what it knows.
    Heartbeat {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// One more each time.
        seq: u64 = 2 (uint64) u64,
        /// The newest `seq` that came from the peer; 0: none yet.
        echo_seq: u64 = 3 (uint64) u64,
        /// The sender's clock, for the sender.
        sender_time_ms: Millis = 4 (int64) i64,
        /// Everything before is confirmed, as far as the sender knows.
        commit: Lsn = 5 (uint64) u64,
        /// End of what the sender has flushed.
        durable: Lsn = 6 (uint64) u64,
        /// What it does.
        state: NodeState = 7 (uint32) u32,
        /// Space that is left for its store.
        disk_free_bytes: u64 = 8 (uint64) u64,
        /// How long its last flush took.
        last_flush_us: u64 = 9 (uint64) u64,
    }

    /// LAG_REPORT: how far behind a replica is. For people, never for decisions.
    LagReport {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// Bytes that have not arrived.
        received_behind_bytes: u64 = 2 (uint64) u64,
        /// Bytes that are not flushed.
        durable_behind_bytes: u64 = 3 (uint64) u64,
        /// Bytes that are not in the index.
        applied_behind_bytes: u64 = 4 (uint64) u64,
        /// Age of the oldest of them.
        behind_ms: u64 = 5 (uint64) u64,
        /// How fast the index follows.
        apply_bytes_per_s: u64 = 6 (uint64) u64,
        /// What the bulk synchronisation has fetched; 0 without one.
        sync_done_bytes: u64 = 7 (uint64) u64,
        /// What it has to fetch.
        sync_total_bytes: u64 = 8 (uint64) u64,
    }

    /// SLAVE_ONLINE: a replica has caught up and asks to join the in-sync set. The answer is the cluster record.
    SlaveOnline {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// End of what it has flushed.
        durable: Lsn = 2 (uint64) u64,
        /// The chain there.
        chain: u64 = 3 (fixed64) u64,
        /// End of what is in its index.
        applied: Lsn = 4 (uint64) u64,
    }

    /// A file to fetch. Kind, id, length and end chain identify its content, whoever has it.
    ManifestFile {
        /// What it is.
        kind: FileKind = 1 (uint32) u32,
        /// Which of its kind.
        id: u32 = 2 (uint32) u32,
        /// Bytes of it that count.
        length: u64 = 3 (uint64) u64,
        /// The reign of its first batch.
        first_epoch: Epoch = 4 (uint64) u64,
        /// The chain before its first batch.
        start_chain: u64 = 5 (fixed64) u64,
        /// The chain after its last.
        end_chain: u64 = 6 (fixed64) u64,
    }

    /// SYNC_MANIFEST: what a replica lacks before it can stream. The primary keeps these files while the lease is renewed.
    SyncManifest {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// Names this synchronisation.
        sync_id: SyncId = 2 (bytes = "bytes") Bytes,
        /// At most [`MANIFEST_FILES_MAX`].
        files: Vec<ManifestFile> = 3 (message, repeated) Vec<ManifestFile>,
        /// Where the stream will go on: behind the last of the files.
        stream_start: Lsn = 4 (uint64) u64,
        /// Everything before is confirmed.
        commit: Lsn = 5 (uint64) u64,
        /// Length of all files together.
        total_bytes: u64 = 6 (uint64) u64,
        /// SYNC_LEASE has to come more often than this.
        lease_ms: u32 = 7 (uint32) u32,
        /// Connections with [`Role::Transfer`] that the primary takes.
        sessions_max: u32 = 8 (uint32) u32,
    }

    /// FILE_TRANSFER: asks for a range of a file.
    FileTransfer {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// From the manifest.
        sync_id: SyncId = 2 (bytes = "bytes") Bytes,
        /// Comes back with what is sent.
        request_id: u64 = 3 (uint64) u64,
        /// What to send.
        kind: FileKind = 4 (uint32) u32,
        /// Which of its kind.
        id: u32 = 5 (uint32) u32,
        /// From here on.
        offset: u64 = 6 (uint64) u64,
        /// So many bytes.
        length: u64 = 7 (uint64) u64,
    }

    /// FILE_TRANSFER_RESPONSE: what becomes of the request.
    FileTransferResponse {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// Of the request.
        request_id: u64 = 2 (uint64) u64,
        /// With [`TransferStatus::Ok`], FILE_CHUNKs follow.
        status: TransferStatus = 3 (uint32) u32,
        /// Length of the whole file.
        file_length: u64 = 4 (uint64) u64,
        /// The chain after its last batch.
        end_chain: u64 = 5 (fixed64) u64,
    }

    /// FILE_CHUNK: a piece of a file, at most [`CHUNK_BYTES_MAX`](crate::CHUNK_BYTES_MAX). Its length is that of its body.
    FileChunk {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// Of the request.
        request_id: u64 = 2 (uint64) u64,
        /// Where in the file.
        offset: u64 = 3 (uint64) u64,
        /// CRC32C of the bytes. The decoder has checked it; [`FileChunk::new`] computes it.
        crc32c: u32 = 5 (fixed32) u32,
        /// No more for this request.
        is_last: bool = 6 (bool) bool,
        : /// The bytes.
        bytes,
    }

    /// SYNC_LEASE: the synchronisation goes on; keep the files.
    SyncLease {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// From the manifest.
        sync_id: SyncId = 2 (bytes = "bytes") Bytes,
        /// Files that are complete.
        files_done: u32 = 3 (uint32) u32,
        /// Bytes that the replica has.
        bytes_done: u64 = 4 (uint64) u64,
    }

    /// SYNC_ABORT: the synchronisation ends without success.
    SyncAbort {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// From the manifest.
        sync_id: SyncId = 2 (bytes = "bytes") Bytes,
        /// Why, for people.
        reason: String = 3 (string) String,
        /// Not before.
        retry_after_ms: Option<u32> = 4 (uint32, optional) Option<u32>,
    }

    /// REPAIR_REQUEST: the sender's copy of a data file is damaged.
    RepairRequest {
        /// The highest that the sender knows.
        epoch: Epoch = 1 (uint64) u64,
        /// Comes back with what is sent.
        request_id: u64 = 2 (uint64) u64,
        /// The beginning of the file.
        from: Lsn = 3 (uint64) u64,
        /// The beginning of the next.
        to: Lsn = 4 (uint64) u64,
        /// The chain there.
        chain_before: u64 = 5 (fixed64) u64,
        /// The chain there.
        chain_after: u64 = 6 (fixed64) u64,
    }

    /// REPAIR_RESPONSE: what becomes of the request.
    RepairResponse {
        /// Of the request.
        epoch: Epoch = 1 (uint64) u64,
        /// Of the request.
        request_id: u64 = 2 (uint64) u64,
        /// With [`TransferStatus::Ok`], FILE_CHUNKs follow.
        status: TransferStatus = 3 (uint32) u32,
        /// So many bytes in all.
        length: u64 = 4 (uint64) u64,
        /// Of the first batch.
        first_epoch: Epoch = 5 (uint64) u64,
    }

    /// SWITCHOVER_PREPARE: the receiver is to lead next.
    SwitchoverPrepare {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// The receiver, as the primary knows it.
        target: ReplicaId = 2 (message, optional) Option<WireReplica>,
        /// How long the primary holds work back for it.
        timeout_ms: u32 = 3 (uint32) u32,
    }

    /// SWITCHOVER_READY: the target has what it needs.
    SwitchoverReady {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// End of what it has flushed.
        durable: Lsn = 2 (uint64) u64,
        /// End of what is in its index.
        applied: Lsn = 3 (uint64) u64,
    }

    /// SWITCHOVER_GO: the primary has stopped; the target takes the grant.
    SwitchoverGo {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// The reign that the target is to begin.
        next_epoch: Epoch = 2 (uint64) u64,
        /// Where the journal ends.
        end: Lsn = 3 (uint64) u64,
        /// The chain there.
        chain: u64 = 4 (fixed64) u64,
    }

    /// SWITCHOVER_ABORT: everything stays as it is.
    SwitchoverAbort {
        /// The session's epoch.
        epoch: Epoch = 1 (uint64) u64,
        /// Why, for people.
        reason: String = 2 (string) String,
    }
}

impl FileChunk {
    /// A chunk of these bytes.
    pub fn new(epoch: Epoch, request_id: u64, offset: u64, bytes: Bytes, is_last: bool) -> Self {
        Self { epoch, request_id, offset, crc32c: crc32c::crc32c(&bytes), is_last, bytes }
    }
}

macro_rules! items {
    ($($name:ident: $max:expr;)*) => {$(
        impl Item for $name {
            const LIST_MAX: usize = $max;
        }

        impl Field<wire::$name> for $name {
            fn to_wire(&self) -> wire::$name {
                self.to_header()
            }

            fn from_wire(wire: wire::$name) -> Option<Self> {
                Self::from_header(wire).ok()
            }
        }
    )*};
}
items! {
    EpochStart: EPOCHS_MAX;
    ManifestFile: MANIFEST_FILES_MAX;
}
