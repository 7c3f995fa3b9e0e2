//! The stored form: OpenWire version 11, loose, no cache, with a 4-byte size prefix.
//!
//! ```text
//! size:i32  type:u8  commandId:i32  responseRequired:u8  fields…        message, acknowledgement
//! size:i32  type:u8  fields…                                            subscription
//! ```
//!
//! `size` counts everything after itself. Field order: `kahadb-format.md` §5. What Java wrote comes back byte for byte,
//! except for lone surrogates in header texts, which Rust's strings cannot hold.

mod ack;
mod message;
mod subscription;

use bytes::{BufMut, Bytes, BytesMut};
use kahawai_wire::Reader;

pub use crate::{error::StoredError, id::ConsumerId};
pub use ack::{MessageAck, ack_broker_sequence, decode_ack, encode_ack};
pub(crate) use message::put_text_body;
pub use message::{
    MESSAGE_BYTES_MAX, OpaqueFields, StoredHead, check_encodable, decode_message, encode_message,
    encoded_len_estimate, read_head,
};
pub use subscription::{SubscriptionInfo, decode_subscription_info, encode_subscription_info};

use crate::scan::Scan;

/// Bytes of the size prefix.
const PREFIX_BYTES: usize = 4;

/// Appends what `write` appends with its size in front.
fn put_sized(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_i32(0);
    write(out);
    let size = i32::try_from(out.len() - start - PREFIX_BYTES).unwrap_or(i32::MAX);
    if let Some(prefix) = out.get_mut(start..start + PREFIX_BYTES) {
        prefix.copy_from_slice(&size.to_be_bytes());
    }
}

fn check_size(declared: i32, available: usize) -> Result<(), StoredError> {
    if usize::try_from(declared) == Ok(available) {
        return Ok(());
    }
    Err(StoredError::Size { declared: declared.into(), available })
}

/// A reader behind the size prefix.
fn sized_reader(bytes: Bytes) -> Result<Reader, StoredError> {
    let mut reader = Reader::new(bytes);
    let declared = reader.i32()?;
    check_size(declared, reader.remaining())?;
    Ok(reader)
}

/// A scan behind the size prefix.
fn sized_scan(bytes: &[u8]) -> Result<Scan<'_>, StoredError> {
    let mut scan = Scan::new(bytes);
    let declared = scan.i32()?;
    check_size(declared, scan.remaining())?;
    Ok(scan)
}

/// The error for bytes after the last field.
fn check_end(reader: &Reader) -> Result<(), StoredError> {
    if reader.is_empty() {
        return Ok(());
    }
    Err(StoredError::Trailing { at: reader.position(), count: reader.remaining() })
}

/// Steps over what `skip` skips: as a view with its presence byte, or empty if that says absent.
fn opaque(
    reader: &mut Reader,
    skip: impl FnOnce(&mut Scan<'_>) -> Result<(), StoredError>,
) -> Result<Bytes, StoredError> {
    let mut scan = Scan::part(reader.peek(), reader.position());
    skip(&mut scan)?;
    match scan.position() {
        1 => Ok(reader.skip(1).map(|()| Bytes::new())?),
        length => Ok(reader.bytes(length)?),
    }
}

/// Appends what [`opaque`] read.
fn put_opaque(bytes: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(if bytes.is_empty() { &[0] } else { bytes });
}
