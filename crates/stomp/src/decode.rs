//! Finds frames in a receive buffer.
//!
//! ```text
//! frame   command EOL  { name ":" value EOL }  EOL  body NUL  { EOL }
//! EOL     LF or CR LF; EOLs between frames are heart-beats
//! body    content-length bytes if that header is there, else up to the first NUL
//! ```
//!
//! Nothing is copied: a [`Layout`] says where the parts are. Bytes that were searched once are not searched again when
//! the rest of a frame comes in later packets.

use std::borrow::Cow;

use bytes::{Buf, Bytes, BytesMut};
use kahawai_message::Text;
use memchr::{memchr, memchr2};

use crate::escape::{check_escapes, unescape};
use crate::{Limits, Version};

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Command {
    Connect,
    Send,
    Subscribe,
    Unsubscribe,
    Ack,
    Nack,
    Begin,
    Commit,
    Abort,
    Disconnect,
    Connected,
    Message,
    Receipt,
    #[default]
    Error,
}

impl Command {
    fn of(line: &[u8]) -> Option<Self> {
        Some(match line {
            b"SEND" => Self::Send,
            b"ACK" => Self::Ack,
            b"MESSAGE" => Self::Message,
            b"RECEIPT" => Self::Receipt,
            b"NACK" => Self::Nack,
            b"BEGIN" => Self::Begin,
            b"COMMIT" => Self::Commit,
            b"ABORT" => Self::Abort,
            // The short forms are a habit of old clients that ActiveMQ keeps up.
            b"SUBSCRIBE" | b"SUB" => Self::Subscribe,
            b"UNSUBSCRIBE" | b"UNSUB" => Self::Unsubscribe,
            b"CONNECT" | b"STOMP" => Self::Connect,
            b"DISCONNECT" => Self::Disconnect,
            b"CONNECTED" => Self::Connected,
            b"ERROR" => Self::Error,
            _ => return None,
        })
    }

    /// For messages to the client.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Connect => "CONNECT",
            Self::Send => "SEND",
            Self::Subscribe => "SUBSCRIBE",
            Self::Unsubscribe => "UNSUBSCRIBE",
            Self::Ack => "ACK",
            Self::Nack => "NACK",
            Self::Begin => "BEGIN",
            Self::Commit => "COMMIT",
            Self::Abort => "ABORT",
            Self::Disconnect => "DISCONNECT",
            Self::Connected => "CONNECTED",
            Self::Message => "MESSAGE",
            Self::Receipt => "RECEIPT",
            Self::Error => "ERROR",
        }
    }
}

/// Why bytes are not a frame. After this the stream cannot be read on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not even the first byte of a command.
    #[error("byte {0:#04x} where a command should begin: not STOMP")]
    NotStomp(u8),
    /// A command that STOMP does not have; its first bytes.
    #[error("unknown command '{0}'")]
    UnknownCommand(String),
    /// The command line is too long.
    #[error("command line of more than {limit} bytes")]
    CommandTooLong {
        /// The limit.
        limit: usize,
    },
    /// A header line is too long.
    #[error("header line of more than {limit} bytes")]
    HeaderTooLong {
        /// The limit.
        limit: usize,
    },
    /// Too many headers.
    #[error("more than {limit} headers")]
    TooManyHeaders {
        /// The limit.
        limit: usize,
    },
    /// Command and headers are too long together.
    #[error("command and headers of more than {limit} bytes")]
    HeadTooLarge {
        /// The limit.
        limit: usize,
    },
    /// The body is too long.
    #[error("body of {found} bytes or more, the limit is {limit}")]
    BodyTooLarge {
        /// What was declared, or found before we stopped looking.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The frame is too long.
    #[error("frame of more than {limit} bytes")]
    FrameTooLarge {
        /// The limit.
        limit: usize,
    },
    /// A header line without a colon.
    #[error("header line {line} has no colon")]
    NoColon {
        /// Which, from 1.
        line: usize,
    },
    /// A NUL among the headers: the empty line after them is missing.
    #[error("the frame ends within its headers: the empty line after them is missing")]
    NulInHead,
    /// An escape that the version does not define.
    #[error("undefined escape in header line {line}")]
    Escape {
        /// Which, from 1.
        line: usize,
    },
    /// `content-length` is not a length.
    #[error("content-length is not a number of bytes")]
    ContentLength,
    /// The body is longer than `content-length` says.
    #[error("no NUL after the {length} bytes that content-length says")]
    NoNul {
        /// What it says.
        length: usize,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct HeaderSpan {
    name: usize,
    colon: usize,
    end: usize,
}

/// Where the parts of a frame are, counted from its first byte.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    command: Command,
    headers: Vec<HeaderSpan>,
    /// The headers have escapes that count.
    escaped: bool,
    trimmed: bool,
    content_length: Option<usize>,
    body_start: usize,
    body_end: usize,
    /// One past the NUL.
    end: usize,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// The line at `line` is not whole; no line end before `searched`.
    Head { line: usize, searched: usize },
    /// The body is not whole; without a content-length no NUL before `searched`.
    Body { searched: usize },
    /// `layout` is that of a frame at the front of the input.
    Whole,
}

const START: Stage = Stage::Head { line: 0, searched: 0 };

/// Finds one frame after the other. The input between calls may only grow at its end.
#[derive(Debug)]
pub(crate) struct Decoder {
    version: Version,
    limits: Limits,
    pub(crate) layout: Layout,
    stage: Stage,
}

impl Decoder {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { version: Version::V1_0, limits, layout: Layout::default(), stage: START }
    }

    /// From the next frame on.
    pub(crate) fn set_version(&mut self, version: Version) {
        self.version = version;
    }

    /// Throws heart-beats at the front of `input` away; then, is there a whole frame?
    pub(crate) fn decode(&mut self, input: &mut BytesMut) -> Result<bool, DecodeError> {
        if let Stage::Head { line: 0, searched: 0 } = self.stage {
            // ActiveMQ tolerates NULs there as well.
            let idle = input.iter().take_while(|&&byte| matches!(byte, b'\n' | b'\r' | 0)).count();
            input.advance(idle);
            match input.first() {
                None => return Ok(false),
                Some(&byte) if !byte.is_ascii_graphic() && byte != b' ' => {
                    return Err(DecodeError::NotStomp(byte));
                }
                Some(_) => self.layout.headers.clear(),
            }
        }
        if let Stage::Head { line, searched } = self.stage
            && !self.head(input, line, searched)?
        {
            return Ok(false);
        }
        if let Stage::Body { searched } = self.stage {
            return self.body(input, searched);
        }
        Ok(matches!(self.stage, Stage::Whole))
    }

    /// Reads lines from `line` on. `true`: the head is whole.
    fn head(&mut self, input: &[u8], mut line: usize, mut searched: usize) -> Result<bool, DecodeError> {
        let limits = self.limits;
        loop {
            // Also where the line is not whole yet: what is too long already will not get shorter.
            let line_bytes_max = if line == 0 { limits.command_bytes_max } else { limits.header_bytes_max };
            let found = memchr(b'\n', input.get(searched..).unwrap_or_default());
            let line_end = found.map_or(input.len(), |at| searched + at);
            if line_end - line > line_bytes_max.saturating_add(1) {
                return Err(if line == 0 {
                    DecodeError::CommandTooLong { limit: line_bytes_max }
                } else {
                    DecodeError::HeaderTooLong { limit: line_bytes_max }
                });
            }
            if line_end > limits.head_bytes_max {
                return Err(DecodeError::HeadTooLarge { limit: limits.head_bytes_max });
            }
            if found.is_none() {
                self.stage = Stage::Head { line, searched: line_end };
                return Ok(false);
            }
            let text = input.get(line..line_end).unwrap_or_default();
            let next = line_end + 1;
            if line == 0 {
                // At once: a client of another protocol will not send the NUL that ends the frame.
                let unknown = || DecodeError::UnknownCommand(readable(text));
                self.layout.command = Command::of(text.trim_ascii()).ok_or_else(unknown)?;
            } else {
                // 1.1 knows no CR, but a line that is nothing else is nobody's header.
                let text = match text {
                    [rest @ .., b'\r'] if self.version != Version::V1_1 || rest.is_empty() => rest,
                    whole => whole,
                };
                if text.is_empty() {
                    self.layout.body_start = next;
                    self.end_of_head(input.get(..line_end).unwrap_or_default())?;
                    return Ok(true);
                }
                if self.layout.headers.len() >= limits.headers_max {
                    return Err(DecodeError::TooManyHeaders { limit: limits.headers_max });
                }
                let Some(colon) = memchr(b':', text) else {
                    return Err(if memchr(0, text).is_some() {
                        DecodeError::NulInHead
                    } else {
                        DecodeError::NoColon { line: self.layout.headers.len() + 1 }
                    });
                };
                self.layout.headers.push(HeaderSpan {
                    name: line,
                    colon: line + colon,
                    end: line + text.len(),
                });
            }
            line = next;
            searched = next;
        }
    }

    fn end_of_head(&mut self, head: &[u8]) -> Result<(), DecodeError> {
        let layout = &mut self.layout;
        let connecting = matches!(layout.command, Command::Connect | Command::Connected);
        layout.escaped = false;
        layout.trimmed = self.version == Version::V1_0;
        if memchr2(b'\\', 0, head).is_some() {
            if memchr(0, head).is_some() {
                return Err(DecodeError::NulInHead);
            }
            if self.version != Version::V1_0 && !connecting {
                layout.escaped = true;
                for (index, span) in layout.headers.iter().enumerate() {
                    if !check_escapes(head.get(span.name..span.end).unwrap_or_default(), self.version) {
                        return Err(DecodeError::Escape { line: index + 1 });
                    }
                }
            }
        }
        layout.content_length = None;
        let mut headers = layout.headers.iter();
        if let Some(span) = headers.find(|span| head.get(span.name..span.colon) == Some(b"content-length")) {
            let value = head.get(span.colon + 1..span.end).unwrap_or_default();
            let length = decimal(value.trim_ascii()).ok_or(DecodeError::ContentLength)?;
            let limit = self.limits.body_bytes_max;
            if length > limit {
                return Err(DecodeError::BodyTooLarge { found: length, limit });
            }
            layout.content_length = Some(length);
            layout.body_end = layout.body_start.saturating_add(length);
            self.check_frame_size(self.layout.body_end)?;
        }
        self.stage = Stage::Body { searched: self.layout.body_start };
        Ok(())
    }

    fn check_frame_size(&self, body_end: usize) -> Result<(), DecodeError> {
        match self.limits.frame_bytes_max {
            limit if body_end >= limit => Err(DecodeError::FrameTooLarge { limit }),
            _ => Ok(()),
        }
    }

    fn body(&mut self, input: &[u8], searched: usize) -> Result<bool, DecodeError> {
        let body_start = self.layout.body_start;
        if let Some(length) = self.layout.content_length {
            match input.get(self.layout.body_end) {
                None => return Ok(false),
                Some(0) => {}
                Some(_) => return Err(DecodeError::NoNul { length }),
            }
        } else {
            let found = memchr(0, input.get(searched..).unwrap_or_default()).map(|at| searched + at);
            let end = found.unwrap_or(input.len());
            let (bytes, limit) = (end - body_start, self.limits.body_bytes_max);
            if bytes > limit {
                return Err(DecodeError::BodyTooLarge { found: bytes, limit });
            }
            self.check_frame_size(end)?;
            if found.is_none() {
                self.stage = Stage::Body { searched: end };
                return Ok(false);
            }
            self.layout.body_end = end;
        }
        self.layout.end = self.layout.body_end + 1;
        self.stage = Stage::Whole;
        Ok(true)
    }

    /// Bytes that the frame at the front lacks, as far as its head tells.
    pub(crate) fn bytes_missing(&self, input_len: usize) -> usize {
        match (self.stage, self.layout.content_length) {
            (Stage::Body { .. }, Some(_)) => (self.layout.body_end + 1).saturating_sub(input_len),
            _ => 0,
        }
    }

    /// Cuts off the frame that [`Self::decode`] found, `layout` being its layout.
    pub(crate) fn take(&mut self, input: &mut BytesMut, layout: &Layout) -> Bytes {
        self.stage = START;
        input.split_to(layout.end.min(input.len())).freeze()
    }

    /// Throws the frame that [`Self::decode`] found away.
    pub(crate) fn skip(&mut self, input: &mut BytesMut, layout: &Layout) {
        self.stage = START;
        input.advance(layout.end.min(input.len()));
    }
}

/// A frame: its layout and its bytes.
#[derive(Clone, Copy)]
pub(crate) struct Frame<'a> {
    layout: &'a Layout,
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// `bytes` begins with the frame that `layout` describes.
    pub(crate) fn new(layout: &'a Layout, bytes: &'a [u8]) -> Self {
        Self { layout, bytes }
    }

    pub(crate) fn command(self) -> Command {
        self.layout.command
    }

    pub(crate) fn content_length(self) -> Option<usize> {
        self.layout.content_length
    }

    pub(crate) fn body(self) -> &'a [u8] {
        self.bytes.get(self.layout.body_start..self.layout.body_end).unwrap_or_default()
    }

    pub(crate) fn header_count(self) -> usize {
        self.layout.headers.len()
    }

    /// Names and values as they came, in order, 1.0's values trimmed.
    #[inline]
    pub(crate) fn headers(self) -> impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> {
        self.layout.headers.iter().map(move |span| {
            let name = self.bytes.get(span.name..span.colon).unwrap_or_default();
            let value = self.bytes.get(span.colon + 1..span.end).unwrap_or_default();
            (name, if self.layout.trimmed { value.trim_ascii() } else { value })
        })
    }

    /// The first header called `name`, as it came.
    pub(crate) fn raw(self, name: &str) -> Option<&'a [u8]> {
        self.headers().find(|(found, _)| *found == name.as_bytes()).map(|(_, value)| value)
    }

    /// The first header called `name`.
    pub(crate) fn get(self, name: &str) -> Option<Cow<'a, str>> {
        self.raw(name).map(|value| self.text(value))
    }

    /// What a name or value that came as `raw` says. Where it is not UTF-8 it gets replacement characters, as in ActiveMQ.
    pub(crate) fn text(self, raw: &'a [u8]) -> Cow<'a, str> {
        if self.layout.escaped && memchr(b'\\', raw).is_some() {
            Cow::Owned(lossy(unescape(raw)))
        } else {
            String::from_utf8_lossy(raw)
        }
    }

    /// Like [`Self::text`], as a view into `bytes` where possible. `bytes` is what this frame was made of.
    pub(crate) fn view(self, bytes: &Bytes, raw: &[u8]) -> Text {
        if self.layout.escaped && memchr(b'\\', raw).is_some() {
            return Text::from(lossy(unescape(raw)));
        }
        match Text::try_from(bytes.slice_ref(raw)) {
            Ok(text) => text,
            Err(_) => Text::from(String::from_utf8_lossy(raw).into_owned()),
        }
    }
}

/// The first bytes of a line, for an error.
fn readable(line: &[u8]) -> String {
    line.get(..64).unwrap_or(line).trim_ascii().escape_ascii().to_string()
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Digits only, at least one.
pub(crate) fn decimal(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0usize, |number, &digit| {
        let digit = digit.is_ascii_digit().then(|| usize::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One decoded frame: command line or error, headers, body.
    fn check(version: Version, input: &[u8], expected: &[&str]) {
        for chunk in [1, 3, usize::MAX] {
            assert_eq!(decode_all(version, Limits::default(), input, chunk), expected, "chunks of {chunk}");
        }
    }

    fn decode_all(version: Version, limits: Limits, input: &[u8], chunk: usize) -> Vec<String> {
        let (mut decoder, mut buffer, mut found) = (Decoder::new(limits), BytesMut::new(), Vec::new());
        decoder.set_version(version);
        for piece in input.chunks(chunk.min(input.len()).max(1)) {
            buffer.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut buffer) {
                    Ok(false) => break,
                    Ok(true) => {
                        let layout = std::mem::take(&mut decoder.layout);
                        let frame = Frame::new(&layout, &buffer);
                        let mut text = frame.command().name().to_owned();
                        for (name, value) in frame.headers() {
                            text += &format!("|{}={}", frame.text(name), frame.text(value));
                        }
                        text += &format!("|{}", frame.body().escape_ascii());
                        found.push(text);
                        decoder.skip(&mut buffer, &layout);
                        decoder.layout = layout;
                    }
                    Err(error) => {
                        found.push(error.to_string());
                        return found;
                    }
                }
            }
        }
        found
    }

    #[test]
    fn a_body_ends_at_content_length_or_at_the_first_nul() {
        check(Version::V1_2, b"SEND\ncontent-length:3\n\na\0b\0", &["SEND|content-length=3|a\\x00b"]);
        check(Version::V1_2, b"SEND\na:b\n\nbody\0\n\nACK\n\n\0", &["SEND|a=b|body", "ACK|"]);
        check(Version::V1_2, b"SEND\ncontent-length:0\n\n\0", &["SEND|content-length=0|"]);
        let late = "no NUL after the 1 bytes that content-length says";
        check(Version::V1_2, b"SEND\ncontent-length:1\n\nab\0", &[late]);
        for wrong in ["-1", "", "1x", "99999999999999999999"] {
            let input = format!("SEND\ncontent-length:{wrong}\n\n\0");
            check(Version::V1_2, input.as_bytes(), &["content-length is not a number of bytes"]);
        }
    }

    #[test]
    fn line_ends_between_frames_are_heart_beats() {
        check(Version::V1_2, b"\n\r\n\n\0\nABORT\n\n\0\r\n\r\n", &["ABORT|"]);
    }

    #[test]
    fn carriage_returns_are_line_ends_except_in_1_1() {
        let input = b"SEND\r\na:b\r\n\r\nx\0";
        check(Version::V1_0, input, &["SEND|a=b|x"]);
        check(Version::V1_1, input, &["SEND|a=b\r|x"]);
        check(Version::V1_2, input, &["SEND|a=b|x"]);
    }

    #[test]
    fn values_are_trimmed_in_1_0_only() {
        check(Version::V1_0, b"SEND\na: b \n\n\0", &["SEND|a=b|"]);
        check(Version::V1_1, b"SEND\na: b \n\n\0", &["SEND|a= b |"]);
    }

    #[test]
    fn escapes_count_where_the_version_has_them_and_not_in_connect() {
        let input = br"SEND|k\c:a\nb\\n\c|| ".map(|byte| if byte == b'|' { b'\n' } else { byte });
        let mut frame = input.to_vec();
        frame.push(0);
        check(Version::V1_0, &frame, &[r"SEND|k\c=a\nb\\n\c| "]);
        check(Version::V1_1, &frame, &["SEND|k:=a\nb\\n:| "]);
        check(Version::V1_2, &frame, &["SEND|k:=a\nb\\n:| "]);
        check(Version::V1_2, b"CONNECT\npasscode:\\x\\\n\n\0", &["CONNECT|passcode=\\x\\|"]);
        check(Version::V1_2, b"SEND\na:\\r\n\n\0", &["SEND|a=\r|"]);
        for wrong in [r"a:\t", r"a:\", r"\x:"] {
            let input = format!("SEND\n{wrong}\n\n\0");
            check(Version::V1_2, input.as_bytes(), &["undefined escape in header line 1"]);
        }
        check(Version::V1_1, b"SEND\na:\\r\n\n\0", &["undefined escape in header line 1"]);
    }

    #[test]
    fn what_is_no_frame_is_an_error_at_once() {
        check(Version::V1_0, b"\x16\x03\x01", &["byte 0x16 where a command should begin: not STOMP"]);
        check(Version::V1_0, b"GET / HTTP/1.1\r\n", &["unknown command 'GET / HTTP/1.1'"]);
        let nul = "the frame ends within its headers: the empty line after them is missing";
        check(Version::V1_0, b"SEND\na\0\n", &[nul]);
        check(Version::V1_0, b"SEND\na:\0\n\n\0", &[nul]);
        check(Version::V1_0, b"SEND\nab\n", &["header line 1 has no colon"]);
    }

    #[test]
    fn limits_hold_before_the_rest_has_come() {
        let limits = Limits {
            command_bytes_max: 4,
            header_bytes_max: 20,
            headers_max: 2,
            head_bytes_max: 40,
            body_bytes_max: 5,
            frame_bytes_max: 43,
        };
        let cases: [(&[u8], &str); 9] = [
            (b"SENDSEND", "command line of more than 4 bytes"),
            (b"SEND\naaaaaaaaaaaaaaaaaaaaaaaa", "header line of more than 20 bytes"),
            (b"SEND\na:1\nb:2\nc:3\n", "more than 2 headers"),
            (
                b"SEND\na:89012345678901234\nb:78901234567890123\n",
                "command and headers of more than 40 bytes",
            ),
            (b"SEND\ncontent-length:6\n\n", "body of 6 bytes or more, the limit is 5"),
            (b"SEND\n\n123456", "body of 6 bytes or more, the limit is 5"),
            (b"SEND\na:890123456789\nb:6789012345678901\n\n1234", "frame of more than 43 bytes"),
            (b"SEND\ncontent-length:5\na:0123456789012\n\n", "frame of more than 43 bytes"),
            (b"SEND\na:b\n\n12345\0", "SEND|a=b|12345"),
        ];
        for (input, expected) in cases {
            for chunk in [1, 1000] {
                assert_eq!(decode_all(Version::V1_2, limits, input, chunk), [expected]);
            }
        }
    }
}
