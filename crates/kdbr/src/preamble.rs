//! The first bytes of a connection: `"KDBR" 0x02 role`. A peer of the original protocol, or of none, fails at the first.

use bytes::{Buf, BufMut, BytesMut};

use crate::Role;
use crate::field::Field;

const MAGIC: [u8; 5] = *b"KDBR\x02";

/// Length of the preamble.
pub const PREAMBLE_BYTES: usize = MAGIC.len() + 1;

/// Why a connection does not begin as ours do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PreambleError {
    /// It is of something else.
    #[error("byte {found:#04x} at {at} of the preamble: not kdbr version 2")]
    NotKdbr {
        /// Which byte, from 0.
        at: usize,
        /// What it is.
        found: u8,
    },
    /// A role that we do not have.
    #[error("unknown role {0}")]
    UnknownRole(u8),
}

/// Appends what the dialler sends before its first frame.
pub fn put_preamble(role: Role, out: &mut BytesMut) {
    out.put_slice(&MAGIC);
    // A role's number is 1 or 2.
    out.put_u8(role as u8);
}

/// Cuts the preamble off the front of `input`; `Ok(None)` asks for more bytes and consumes nothing.
///
/// A wrong byte is refused as soon as it is there: a client of another protocol may wait for us before it sends six.
pub fn take_preamble(input: &mut BytesMut) -> Result<Option<Role>, PreambleError> {
    for (at, (&found, expected)) in input.iter().zip(MAGIC).enumerate() {
        if found != expected {
            return Err(PreambleError::NotKdbr { at, found });
        }
    }
    let Some(&number) = input.get(MAGIC.len()) else {
        return Ok(None);
    };
    let role = Role::from_wire(number.into()).ok_or(PreambleError::UnknownRole(number))?;
    input.advance(PREAMBLE_BYTES);
    Ok(Some(role))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: Result<Option<Role>, PreambleError>, left: usize) {
        let mut input = BytesMut::from(bytes);
        assert_eq!(take_preamble(&mut input), expected, "{bytes:?}");
        assert_eq!(input.len(), left, "{bytes:?}");
    }

    #[test]
    fn what_the_dialler_puts_the_acceptor_takes() {
        for (role, bytes) in [(Role::Stream, b"KDBR\x02\x01"), (Role::Transfer, b"KDBR\x02\x02")] {
            let mut out = BytesMut::new();
            put_preamble(role, &mut out);
            assert_eq!(&out[..], bytes);
            check(&[&out[..], b"rest"].concat(), Ok(Some(role)), 4);
            for end in 0..PREAMBLE_BYTES {
                check(&out[..end], Ok(None), end);
            }
        }
    }

    #[test]
    fn the_first_wrong_byte_is_enough() {
        check(b"C", Err(PreambleError::NotKdbr { at: 0, found: b'C' }), 1);
        check(b"KDBR\x01", Err(PreambleError::NotKdbr { at: 4, found: 1 }), 5);
        for role in [0, 3, 4, 0xff] {
            check(&[b"KDBR\x02", &[role][..]].concat(), Err(PreambleError::UnknownRole(role)), 6);
        }
    }
}
