//! Bounded readers and writers over bytes: big-endian integers, varints, length-prefixed fields, UTF-8.
//!
//! Nothing here allocates from a length that it has not checked against the bytes that are there, and nothing panics on
//! any input. [`Reader`] cuts views off a [`bytes::Bytes`]; the `put_*` functions append to a buffer that the caller owns.

mod mutf8;
mod reader;
mod write;

pub use mutf8::{encode_mutf8, is_plain_utf8, mutf8_len, mutf8_to_string};
pub use reader::{Reader, WireError};
pub use write::{put_mutf8_u16, put_varint32, put_varint64, varint32_len, varint64_len};
