//! Frames and how they lie in the stream, all numbers big-endian.
//!
//! ```text
//!  0       4      6       8            12           16
//! +-------+------+-------+------------+------------+----------------+-----------+
//! | len   | type | flags | header_len | header_crc | header         | body      |
//! | u32   | u16  | u16   | u32        | u32        | protobuf       | raw       |
//! +-------+------+-------+------------+------------+----------------+-----------+
//! len         everything behind itself
//! flags       bit 0: a receiver that does not know the type skips the frame; the others are 0 and not looked at
//! header_crc  CRC32C of the first 12 bytes and the header, so that no damaged length makes anybody wait
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use kahawai_types::Epoch;
use prost::Message;

use crate::DecodeError;
use crate::limits::{FRAME_HEAD_BYTES, HEADER_BYTES_MAX};
use crate::message::{self, Fields};

/// `flags`: may be skipped.
pub(crate) const OPTIONAL: u16 = 1;

/// Bytes in front of the checksum, which it covers.
pub(crate) const CHECKED_HEAD_BYTES: usize = 12;

/// What `len` counts besides header and body.
pub(crate) const COUNTED_HEAD_BYTES: usize = FRAME_HEAD_BYTES - 4;

/// CRC32C of a frame's head, without the checksum, and its header.
pub(crate) fn header_crc(head: &[u8], header: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), header)
}

/// Appends head and header of a frame whose body has `body_bytes`.
fn put_head(number: u16, header: &impl Message, body_bytes: usize, out: &mut BytesMut) {
    let header_bytes = header.encoded_len();
    // The limits of names, texts and lists add up to less, so only a missing one would be noticed here.
    assert!(header_bytes <= HEADER_BYTES_MAX, "frame {number} has a header of {header_bytes} bytes");
    let counted = u32::try_from(COUNTED_HEAD_BYTES + header_bytes + body_bytes);
    let counted = counted.unwrap_or_else(|_| panic!("frame {number} has a body of {body_bytes} bytes"));

    let mut head = [0; CHECKED_HEAD_BYTES];
    let mut fields = &mut head[..];
    fields.put_u32(counted);
    fields.put_u16(number);
    fields.put_u16(0);
    // At most `HEADER_BYTES_MAX`.
    fields.put_u32(header_bytes as u32);
    out.reserve(FRAME_HEAD_BYTES + header_bytes);
    out.put_slice(&head);
    let crc_at = out.len();
    out.put_u32(0);
    header.encode(out).expect("a BytesMut grows");

    let (crc, header) = out[crc_at..].split_at_mut(4);
    crc.copy_from_slice(&header_crc(&head, header).to_be_bytes());
}

fn read_header<M: Fields>(name: &'static str, header: &[u8]) -> Result<M, DecodeError> {
    let header = M::Header::decode(header)
        .map_err(|error| DecodeError::Header { frame: name, problem: error.to_string() })?;
    M::from_header(header).map_err(|field| DecodeError::Field { frame: name, field })
}

macro_rules! frames {
    ($( $variant:ident($message:ident) = $number:literal, $name:literal $(, body $body:ident)?; )*) => {
        /// One frame.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub enum Frame {
            $(
                #[doc = concat!($name, ", ", $number, ".")]
                $variant(message::$message),
            )*
        }

        impl Frame {
            /// Its number on the wire.
            pub const fn number(&self) -> u16 {
                match self {
                    $( Self::$variant(_) => $number, )*
                }
            }

            /// Its name in the protocol, for logs.
            pub const fn name(&self) -> &'static str {
                match self {
                    $( Self::$variant(_) => $name, )*
                }
            }

            /// What is sent behind the head, as it is; `None`: a frame of this kind has no body.
            pub const fn body(&self) -> Option<&Bytes> {
                match self {
                    $( $( Self::$variant(message) => Some(&message.$body), )? )*
                    _ => None,
                }
            }

            /// Puts the body into its place.
            pub(crate) fn set_body(&mut self, bytes: Bytes) {
                match self {
                    $( $( Self::$variant(message) => message.$body = bytes, )? )*
                    _ => {}
                }
            }

            /// Appends everything in front of the body, which is to be written behind it without a copy.
            ///
            /// # Panics
            ///
            /// Where a name, a list or the body is longer than its limit, which who makes the frame has to check.
            pub fn encode_head(&self, out: &mut BytesMut) {
                let body_bytes = self.body().map_or(0, Bytes::len);
                match self {
                    $( Self::$variant(message) => put_head($number, &message.to_header(), body_bytes, out), )*
                }
            }

            /// The frame with this header, its body still empty; `None`: the number is not known.
            pub(crate) fn from_header(number: u16, header: &[u8]) -> Option<Result<Self, DecodeError>> {
                Some(match number {
                    $( $number => read_header($name, header).map(Self::$variant), )*
                    _ => return None,
                })
            }
        }

        $(
            impl From<message::$message> for Frame {
                fn from(message: message::$message) -> Self {
                    Self::$variant(message)
                }
            }
        )*
    };
}

frames! {
    SlaveInit(SlaveInit) = 0, "SLAVE_INIT";
    SlaveInitResponse(SlaveInitResponse) = 1, "SLAVE_INIT_RESPONSE";
    SlaveOnline(SlaveOnline) = 2, "SLAVE_ONLINE";
    JournalUpdate(JournalUpdate) = 3, "JOURNAL_UPDATE", body batches;
    JournalUpdateAck(JournalUpdateAck) = 4, "JOURNAL_UPDATE_ACK";
    FileTransfer(FileTransfer) = 5, "FILE_TRANSFER";
    FileTransferResponse(FileTransferResponse) = 6, "FILE_TRANSFER_RESPONSE";
    Hello(Hello) = 16, "HELLO";
    HelloAck(HelloAck) = 17, "HELLO_ACK";
    AuthChallenge(AuthChallenge) = 18, "AUTH_CHALLENGE";
    AuthProof(AuthProof) = 19, "AUTH_PROOF";
    AuthOk(AuthOk) = 20, "AUTH_OK";
    Error(ErrorFrame) = 21, "ERROR";
    Goodbye(Goodbye) = 22, "GOODBYE";
    Heartbeat(Heartbeat) = 32, "HEARTBEAT";
    Commit(Commit) = 33, "COMMIT";
    LagReport(LagReport) = 34, "LAG_REPORT";
    Truncate(Truncate) = 38, "TRUNCATE";
    TruncateDone(TruncateDone) = 39, "TRUNCATE_DONE";
    SyncManifest(SyncManifest) = 48, "SYNC_MANIFEST";
    FileChunk(FileChunk) = 49, "FILE_CHUNK", body bytes;
    SyncLease(SyncLease) = 50, "SYNC_LEASE";
    SyncAbort(SyncAbort) = 51, "SYNC_ABORT";
    RepairRequest(RepairRequest) = 56, "REPAIR_REQUEST";
    RepairResponse(RepairResponse) = 57, "REPAIR_RESPONSE";
    SwitchoverPrepare(SwitchoverPrepare) = 64, "SWITCHOVER_PREPARE";
    SwitchoverReady(SwitchoverReady) = 65, "SWITCHOVER_READY";
    SwitchoverGo(SwitchoverGo) = 66, "SWITCHOVER_GO";
    SwitchoverAbort(SwitchoverAbort) = 67, "SWITCHOVER_ABORT";
}

impl Frame {
    /// Appends the whole frame. See [`encode_head`](Self::encode_head) for large bodies, and for when it panics.
    pub fn encode(&self, out: &mut BytesMut) {
        self.encode_head(out);
        if let Some(body) = self.body() {
            out.put_slice(body);
        }
    }

    /// The session's epoch, which every frame after the handshake carries; ERROR and the handshake's frames do not.
    pub const fn epoch(&self) -> Option<Epoch> {
        Some(match self {
            Self::Hello(_)
            | Self::HelloAck(_)
            | Self::AuthChallenge(_)
            | Self::AuthProof(_)
            | Self::AuthOk(_)
            | Self::Error(_) => return None,
            Self::Goodbye(message) => message.epoch,
            Self::SlaveInit(message) => message.epoch,
            Self::SlaveInitResponse(message) => message.epoch,
            Self::SlaveOnline(message) => message.epoch,
            Self::JournalUpdate(message) => message.epoch,
            Self::JournalUpdateAck(message) => message.epoch,
            Self::FileTransfer(message) => message.epoch,
            Self::FileTransferResponse(message) => message.epoch,
            Self::Heartbeat(message) => message.epoch,
            Self::Commit(message) => message.epoch,
            Self::LagReport(message) => message.epoch,
            Self::Truncate(message) => message.epoch,
            Self::TruncateDone(message) => message.epoch,
            Self::SyncManifest(message) => message.epoch,
            Self::FileChunk(message) => message.epoch,
            Self::SyncLease(message) => message.epoch,
            Self::SyncAbort(message) => message.epoch,
            Self::RepairRequest(message) => message.epoch,
            Self::RepairResponse(message) => message.epoch,
            Self::SwitchoverPrepare(message) => message.epoch,
            Self::SwitchoverReady(message) => message.epoch,
            Self::SwitchoverGo(message) => message.epoch,
            Self::SwitchoverAbort(message) => message.epoch,
        })
    }
}
