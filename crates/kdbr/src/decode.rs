//! Cuts frames off a receive buffer. The layout is in `frame`.

use std::mem;

use bytes::{Buf, BytesMut};

use crate::Frame;
use crate::frame::{CHECKED_HEAD_BYTES, COUNTED_HEAD_BYTES, OPTIONAL, header_crc};
use crate::limits::{
    BODY_BYTES_MAX, CHUNK_BYTES_MAX, FRAME_HEAD_BYTES, HANDSHAKE_FRAME_BYTES_MAX, HEADER_BYTES_MAX,
};

/// Why bytes are not a frame. After this the stream cannot be read on.
///
/// `ErrorFrame::from` makes what the peer is told.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// A frame that is too long for a peer that is not authenticated.
    #[error("frame of {declared} bytes before authentication, the limit is {limit}")]
    FrameTooLarge {
        /// What it declares.
        declared: usize,
        /// The limit.
        limit: usize,
    },
    /// The header is too long.
    #[error("header of {declared} bytes, the limit is {limit}")]
    HeaderTooLarge {
        /// What the frame declares.
        declared: usize,
        /// The limit.
        limit: usize,
    },
    /// The body is too long, or there should be none.
    #[error("{frame} with a body of {declared} bytes, the limit is {limit}")]
    BodyTooLarge {
        /// The frame's name.
        frame: &'static str,
        /// What it declares.
        declared: usize,
        /// The limit.
        limit: usize,
    },
    /// The lengths contradict each other.
    #[error("frame declares {counted} bytes with a header of {header_bytes}")]
    Lengths {
        /// Everything behind the first field.
        counted: usize,
        /// The header in it.
        header_bytes: usize,
    },
    /// Head or header are damaged.
    #[error("header of frame {number} has checksum {found:#010x}, its head says {expected:#010x}")]
    HeaderChecksum {
        /// The frame's number.
        number: u16,
        /// What the bytes have.
        found: u32,
        /// What they should have.
        expected: u32,
    },
    /// Damaged bytes of a file.
    #[error("chunk of {bytes} bytes has checksum {found:#010x}, its header says {expected:#010x}")]
    ChunkChecksum {
        /// How many.
        bytes: usize,
        /// What they have.
        found: u32,
        /// What they should have.
        expected: u32,
    },
    /// A number that we do not have, in a frame that must not be skipped.
    #[error("unknown frame {number}")]
    UnknownNumber {
        /// It.
        number: u16,
    },
    /// A frame that only an authenticated peer may send.
    #[error("frame {number} before authentication")]
    NotAuthenticated {
        /// Its number.
        number: u16,
    },
    /// The header is not protobuf, or not of that frame.
    #[error("header of {frame}: {problem}")]
    Header {
        /// The frame's name.
        frame: &'static str,
        /// What the protobuf decoder says.
        problem: String,
    },
    /// A field is missing, too long, or holds what it cannot.
    #[error("{frame} has no usable {field}")]
    Field {
        /// The frame's name.
        frame: &'static str,
        /// The field's.
        field: &'static str,
    },
    /// A frame that makes no sense without a body has none.
    #[error("{frame} without a body")]
    NoBody {
        /// The frame's name.
        frame: &'static str,
    },
}

#[derive(Debug)]
enum Stage {
    /// Head and header are not taken yet.
    Head,
    /// Of this frame the body is missing.
    Body { frame: Frame, body_bytes: usize },
    /// So many bytes belong to a frame that we do not know.
    Skip { bytes: usize },
}

/// Finds one frame after the other. The input between calls may only grow at its end.
#[derive(Debug)]
pub struct Decoder {
    body_bytes_max: usize,
    is_authenticated: bool,
    stage: Stage,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(BODY_BYTES_MAX)
    }
}

impl Decoder {
    /// For a connection whose peer is not known yet; `body_bytes_max` is for JOURNAL_UPDATE, once it is.
    pub const fn new(body_bytes_max: usize) -> Self {
        Self { body_bytes_max, is_authenticated: false, stage: Stage::Head }
    }

    /// The handshake is done: from the next frame on anything may come.
    ///
    /// To be called before the input is decoded on: the peer's next frame may be in it already.
    pub const fn authenticated(&mut self) {
        self.is_authenticated = true;
    }

    /// Cuts one frame off the front of `input`; `Ok(None)` asks for more bytes. Bodies are views into `input`.
    ///
    /// Lengths are checked as soon as they are there, and the header before the body is waited for. From then on the input
    /// begins with the body.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, DecodeError> {
        loop {
            match mem::replace(&mut self.stage, Stage::Head) {
                Stage::Head => match self.take_header(input)? {
                    Some(next) => self.stage = next,
                    None => return Ok(None),
                },
                Stage::Skip { bytes } => {
                    let there = bytes.min(input.len());
                    input.advance(there);
                    if there < bytes {
                        self.stage = Stage::Skip { bytes: bytes - there };
                        return Ok(None);
                    }
                }
                waiting @ Stage::Body { body_bytes, .. } if input.len() < body_bytes => {
                    self.stage = waiting;
                    return Ok(None);
                }
                Stage::Body { mut frame, body_bytes } => {
                    frame.set_body(input.split_to(body_bytes).freeze());
                    check_body(&frame)?;
                    return Ok(Some(frame));
                }
            }
        }
    }

    /// How many bytes the frame at the front of the input lacks, as far as it says: worth reserving before the next read, up
    /// to what the driver thinks fit. 0 where nothing is known.
    pub fn bytes_missing(&self, input: &BytesMut) -> usize {
        match &self.stage {
            Stage::Head => match Head::read(input) {
                Some(head) if self.check(&head).is_ok() => {
                    (FRAME_HEAD_BYTES + head.header_bytes).saturating_sub(input.len())
                }
                _ => 0,
            },
            Stage::Body { body_bytes, .. } => body_bytes.saturating_sub(input.len()),
            // Thrown away as it comes.
            Stage::Skip { .. } => 0,
        }
    }

    fn take_header(&self, input: &mut BytesMut) -> Result<Option<Stage>, DecodeError> {
        let Some(head) = Head::read(input) else {
            return Ok(None);
        };
        let body_bytes = self.check(&head)?;
        let Some(header) = input.get(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + head.header_bytes) else {
            return Ok(None);
        };
        let checked = input.get(..CHECKED_HEAD_BYTES).unwrap_or_default();
        let (number, found) = (head.number, header_crc(checked, header));
        if found != head.crc {
            return Err(DecodeError::HeaderChecksum { number, found, expected: head.crc });
        }
        let next = match Frame::from_header(number, header) {
            Some(frame) => {
                let frame = frame?;
                self.check_body_bytes(&frame, body_bytes)?;
                Stage::Body { frame, body_bytes }
            }
            None if head.flags & OPTIONAL != 0 => Stage::Skip { bytes: body_bytes },
            None => return Err(DecodeError::UnknownNumber { number }),
        };
        input.advance(FRAME_HEAD_BYTES + head.header_bytes);
        Ok(Some(next))
    }

    /// Before anything behind the head is waited for. Returns the length of the body.
    fn check(&self, head: &Head) -> Result<usize, DecodeError> {
        let Head { number, counted, header_bytes, .. } = *head;
        if !self.is_authenticated {
            let (declared, limit) = (counted.saturating_add(4), HANDSHAKE_FRAME_BYTES_MAX);
            if declared > limit {
                return Err(DecodeError::FrameTooLarge { declared, limit });
            }
            if !is_of_handshake(number) {
                return Err(DecodeError::NotAuthenticated { number });
            }
        }
        if header_bytes > HEADER_BYTES_MAX {
            return Err(DecodeError::HeaderTooLarge { declared: header_bytes, limit: HEADER_BYTES_MAX });
        }
        let body_bytes = counted.checked_sub(COUNTED_HEAD_BYTES + header_bytes);
        body_bytes.ok_or(DecodeError::Lengths { counted, header_bytes })
    }

    /// Before the body is waited for.
    fn check_body_bytes(&self, frame: &Frame, declared: usize) -> Result<(), DecodeError> {
        let limit = match frame {
            // Nothing to append would be nothing to acknowledge.
            Frame::JournalUpdate(_) if declared == 0 => {
                return Err(DecodeError::NoBody { frame: frame.name() });
            }
            Frame::JournalUpdate(_) => self.body_bytes_max,
            Frame::FileChunk(_) => CHUNK_BYTES_MAX,
            _ => 0,
        };
        match declared > limit {
            true => Err(DecodeError::BodyTooLarge { frame: frame.name(), declared, limit }),
            false => Ok(()),
        }
    }
}

/// HELLO to ERROR.
const fn is_of_handshake(number: u16) -> bool {
    matches!(number, 16..=21)
}

/// A damaged batch is noticed by the journal, a damaged chunk here.
fn check_body(frame: &Frame) -> Result<(), DecodeError> {
    if let Frame::FileChunk(chunk) = frame {
        let (found, expected) = (crc32c::crc32c(&chunk.bytes), chunk.crc32c);
        if found != expected {
            return Err(DecodeError::ChunkChecksum { bytes: chunk.bytes.len(), found, expected });
        }
    }
    Ok(())
}

/// The first bytes of a frame.
struct Head {
    counted: usize,
    number: u16,
    flags: u16,
    header_bytes: usize,
    crc: u32,
}

impl Head {
    fn read(input: &[u8]) -> Option<Self> {
        let mut bytes = &input.first_chunk::<FRAME_HEAD_BYTES>()?[..];
        Some(Self {
            counted: bytes.get_u32() as usize,
            number: bytes.get_u16(),
            flags: bytes.get_u16(),
            header_bytes: bytes.get_u32() as usize,
            crc: bytes.get_u32(),
        })
    }
}
