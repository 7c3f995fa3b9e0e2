//! Replication frames, and the handshake: what two nodes of a cluster say to each other.
//!
//! Nothing here does I/O, reads a clock or makes random numbers. Reading order: `limits`; `preamble` (the first six bytes);
//! `message` (every frame with its fields, in one table) with `field` and `number` (how a field lies in a header); `frame`
//! (layout and encoding); `decode` ([`Decoder`] cuts frames off a receive buffer); `auth` (proofs of the shared secret) and
//! `handshake` ([`Handshake`], both ends).
//!
//! ```text
//! dialler                                   acceptor
//! "KDBR" 2 role
//! HELLO ---------------------------------->
//!       <---------------------------------- HELLO_ACK
//!       <---------------------------------- AUTH_CHALLENGE    only where a secret is shared
//! AUTH_PROOF ----------------------------->                   the dialler proves first
//!       <---------------------------------- AUTH_OK           then the acceptor
//! SLAVE_INIT or FILE_TRANSFER ------------>                   `Decoder::authenticated` from here on
//! ```
//!
//! Invariants: no input panics, or makes us hold more than a named limit; until [`Decoder::authenticated`] is called that is
//! 4 KiB, and only frames of the handshake are taken. Every damaged bit of a frame is noticed here, but for journal batches,
//! whose own checksum and chain the journal checks. With a secret, [`Progress::Done`] means that the peer has one as well,
//! and saw the same HELLO and HELLO_ACK in the same TLS session. File names never come from a peer, only kinds and numbers.
//!
//! The numbers 0 to 6 and the words master and slave are those of the original. Numbers that are not built, with the reason
//! in `docs/adr/0006-cluster-machines.md`: 36 and 37 (MATCH_PROBE: the point where two logs part is computed), 40 to 42
//! (RECOVERY_*, and the role RECOVERY: every member of the in-sync set has all that was confirmed), 35 (FLOW_CREDIT: the
//! credit is in every acknowledgement). Nothing uses 56 to 59 (repair from a peer, comparing indexes) yet, nor 72 and above
//! with the role ADMIN: operators use the HTTP API.

mod auth;
mod decode;
mod error_frame;
mod field;
mod frame;
#[doc(hidden)]
pub mod fuzz;
mod handshake;
mod limits;
mod message;
mod number;
mod preamble;

pub use auth::{SECRET_BYTES_MIN, Secret, SecretError, Secrets};
pub use decode::{DecodeError, Decoder};
pub use field::{Nonce, Proof, SyncId};
pub use frame::Frame;
pub use handshake::{Handshake, Local, Peer, Progress, VERSIONS, VersionRange};
pub use limits::{
    ADDRESSES_MAX, BODY_BYTES_MAX, CHUNK_BYTES_MAX, EPOCHS_MAX, FRAME_HEAD_BYTES, HANDSHAKE_FRAME_BYTES_MAX,
    HANDSHAKE_TIMEOUT_MS, HEADER_BYTES_MAX, MANIFEST_FILES_MAX, NODE_ID_BYTES_MAX, PROOFS_MAX,
    TEXT_BYTES_MAX,
};
pub use message::{
    AuthChallenge, AuthOk, AuthProof, Commit, EpochStart, ErrorFrame, FileChunk, FileTransfer,
    FileTransferResponse, Goodbye, Heartbeat, Hello, HelloAck, JournalUpdate, JournalUpdateAck, LagReport,
    ManifestFile, RepairRequest, RepairResponse, SlaveInit, SlaveInitResponse, SlaveOnline, SwitchoverAbort,
    SwitchoverGo, SwitchoverPrepare, SwitchoverReady, SyncAbort, SyncLease, SyncManifest, Truncate,
    TruncateDone,
};
pub use number::{AttachMode, ErrorCode, FileKind, Mechanism, NodeState, Role, TransferStatus};
pub use preamble::{PREAMBLE_BYTES, PreambleError, put_preamble, take_preamble};
