//! What one frame may be. Checked before we wait for more of it, so a peer cannot make us buffer what we would refuse.

use kahawai_types::Millis;

/// Bytes in front of a frame's header: lengths, number, flags, checksum.
pub const FRAME_HEAD_BYTES: usize = 16;

/// A whole frame, as long as we do not know whom we talk to.
pub const HANDSHAKE_FRAME_BYTES_MAX: usize = 4 << 10;

/// How long the handshake may take; the driver closes the connection then.
pub const HANDSHAKE_TIMEOUT_MS: Millis = 5000;

/// The header of a frame.
pub const HEADER_BYTES_MAX: usize = 1 << 20;

/// The body of JOURNAL_UPDATE unless the decoder is told otherwise: a batch that holds one giant record, and what a batch
/// has besides. Most are a few MiB, so the driver lets its buffer grow with the bytes that arrive.
pub const BODY_BYTES_MAX: usize = (1 << 30) + (64 << 10);

/// The body of one FILE_CHUNK.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// A node's name, as in the journal's epoch markers.
pub const NODE_ID_BYTES_MAX: usize = 255;

/// A text or an address. Longer ones are cut off when they are sent: an ERROR has to fit the handshake's frames.
pub const TEXT_BYTES_MAX: usize = 1 << 10;

/// Addresses for clients in one SLAVE_INIT.
pub const ADDRESSES_MAX: usize = 64;

/// Reigns in one epoch history. So many fit a header.
pub const EPOCHS_MAX: usize = 20_000;

/// Files in one SYNC_MANIFEST. So many fit a header.
pub const MANIFEST_FILES_MAX: usize = 20_000;

/// Proofs in one AUTH_PROOF: one for each secret, of which there are two while they are rotated.
pub const PROOFS_MAX: usize = 2;
