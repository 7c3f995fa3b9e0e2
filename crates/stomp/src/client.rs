//! The client's end, for the command line and the load tool: frames are written with small functions over an `out`
//! buffer, and read from the [`Client`]'s own input buffer.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};

use crate::decode::{Command, Decoder, Frame, Layout, decimal};
use crate::escape::{put_any_header, put_header, put_unsigned};
use crate::{DecodeError, Limits, Version};

/// What ends a frame. Unlike servers we spare the line end.
const END: u8 = 0;

/// What CONNECT says.
#[derive(Clone, Debug, Default)]
pub struct Connect<'a> {
    /// Virtual host.
    pub host: &'a str,
    /// User name.
    pub login: Option<&'a str>,
    /// Password.
    pub passcode: Option<&'a str>,
    /// JMS client id.
    pub client_id: Option<&'a str>,
    /// How often we can send something, how often we want to hear something; 0 = never.
    pub heart_beat_ms: (u32, u32),
    /// The version to speak; `None` = the highest that both sides know.
    pub version: Option<Version>,
}

/// What SEND says.
#[derive(Clone, Debug, Default)]
pub struct Send<'a> {
    /// `/queue/NAME` …
    pub destination: &'a str,
    /// The body.
    pub body: &'a [u8],
    /// Send it without content-length: as a text, which must not have a NUL.
    pub text: bool,
    /// Must survive.
    pub persistent: bool,
    /// In which transaction.
    pub transaction: Option<&'a str>,
    /// Further headers.
    pub headers: &'a [(&'a str, &'a str)],
}

/// What SUBSCRIBE says.
#[derive(Clone, Debug, Default)]
pub struct Subscribe<'a> {
    /// Its id, unique in the connection.
    pub id: &'a str,
    /// `/queue/NAME` …
    pub destination: &'a str,
    /// `auto`, `client` or `client-individual`; empty = `auto`.
    pub ack: &'a str,
    /// Further headers: `selector`, `browser`, `activemq.prefetchSize` …
    pub headers: &'a [(&'a str, &'a str)],
}

/// Which message ACK and NACK mean: their header lines, ready to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AckKey(Bytes);

/// A SEND that is written again and again with another receipt.
#[derive(Clone, Debug)]
pub struct PreparedSend {
    head: Bytes,
    body: Bytes,
}

impl PreparedSend {
    /// Appends the frame.
    pub fn put(&self, receipt: Option<u64>, out: &mut BytesMut) {
        out.reserve(self.head.len() + self.body.len() + 40);
        out.put_slice(&self.head);
        put_receipt(receipt, out);
        out.put_u8(b'\n');
        out.put_slice(&self.body);
        out.put_u8(END);
    }
}

/// The client's end of a connection.
#[derive(Debug)]
pub struct Client {
    version: Version,
    decoder: Decoder,
    input: BytesMut,
    /// The frame that [`Self::next`] returned last, still at the front of `input`.
    returned: Option<Layout>,
}

impl Default for Client {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Client {
    /// A client that refuses frames beyond `limits`.
    pub fn new(limits: Limits) -> Self {
        Self { version: Version::V1_0, decoder: Decoder::new(limits), input: BytesMut::new(), returned: None }
    }

    /// The version that CONNECTED said.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where to append what was read from the server. Nothing else may be done with it.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// The next whole frame in the input.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot lend its items")]
    pub fn next(&mut self) -> Result<Option<ServerFrame<'_>>, DecodeError> {
        if let Some(layout) = self.returned.take() {
            self.decoder.skip(&mut self.input, &layout);
            self.decoder.layout = layout;
        }
        if !self.decoder.decode(&mut self.input)? {
            return Ok(None);
        }
        let layout = self.returned.insert(std::mem::take(&mut self.decoder.layout));
        let frame = Frame::new(layout, &self.input);
        if frame.command() == Command::Connected {
            self.version =
                frame.get("version").and_then(|text| Version::negotiate(&text)).unwrap_or_default();
            self.decoder.set_version(self.version);
        }
        let number = |name| frame.raw(name).and_then(decimal).and_then(|id| u64::try_from(id).ok());
        Ok(Some(match frame.command() {
            Command::Receipt => ServerFrame::Receipt(number("receipt-id")),
            Command::Message => ServerFrame::Message(Received { frame, version: self.version }),
            Command::Connected => ServerFrame::Connected(Connected {
                version: self.version,
                session: frame.get("session"),
                server: frame.get("server"),
                heart_beat_ms: frame.get("heart-beat").and_then(|text| heart_beat(&text)).unwrap_or_default(),
            }),
            Command::Error => ServerFrame::Error {
                message: frame.get("message").unwrap_or_default(),
                receipt: number("receipt-id"),
                body: String::from_utf8_lossy(frame.body()),
            },
            command => ServerFrame::Unknown(command.name()),
        }))
    }

    /// Appends CONNECT.
    pub fn connect(&self, connect: &Connect<'_>, out: &mut BytesMut) {
        out.put_slice(b"CONNECT\n");
        let versions = connect.version.map_or("1.0,1.1,1.2", Version::as_str);
        let (sends_ms, wants_ms) = connect.heart_beat_ms;
        let heart_beat = format!("{sends_ms},{wants_ms}");
        let optional = [
            ("login", connect.login),
            ("passcode", connect.passcode),
            ("client-id", connect.client_id),
            ("heart-beat", (connect.heart_beat_ms != (0, 0)).then_some(&*heart_beat)),
        ];
        put_header(out, "accept-version", versions.as_bytes(), Version::V1_0);
        put_header(out, "host", connect.host.as_bytes(), Version::V1_0);
        for (name, value) in optional {
            if let Some(value) = value {
                put_header(out, name, value.as_bytes(), Version::V1_0);
            }
        }
        out.put_slice(&[b'\n', END]);
    }

    /// Appends SEND.
    pub fn send(&self, send: &Send<'_>, receipt: Option<u64>, out: &mut BytesMut) {
        out.reserve(send.body.len() + 256);
        self.put_send_head(send, out);
        put_receipt(receipt, out);
        out.put_u8(b'\n');
        out.put_slice(send.body);
        out.put_u8(END);
    }

    /// SEND for many times.
    pub fn prepare(&self, send: &Send<'_>) -> PreparedSend {
        let mut head = BytesMut::new();
        self.put_send_head(send, &mut head);
        PreparedSend { head: head.freeze(), body: Bytes::copy_from_slice(send.body) }
    }

    fn put_send_head(&self, send: &Send<'_>, out: &mut BytesMut) {
        out.put_slice(b"SEND\n");
        put_header(out, "destination", send.destination.as_bytes(), self.version);
        if send.persistent {
            out.put_slice(b"persistent:true\n");
        }
        if !send.text {
            out.put_slice(b"content-length:");
            put_unsigned(out, send.body.len() as u64);
            out.put_u8(b'\n');
        }
        self.put_optional("transaction", send.transaction, out);
        self.put_headers(send.headers, out);
    }

    /// Appends SUBSCRIBE.
    pub fn subscribe(&self, subscribe: &Subscribe<'_>, receipt: Option<u64>, out: &mut BytesMut) {
        let ack = if subscribe.ack.is_empty() { "auto" } else { subscribe.ack };
        out.put_slice(b"SUBSCRIBE\n");
        self.put_headers(&[("id", subscribe.id), ("destination", subscribe.destination), ("ack", ack)], out);
        self.put_headers(subscribe.headers, out);
        put_end(receipt, out);
    }

    /// Appends UNSUBSCRIBE; with `durable_name` the durable subscription is removed.
    pub fn unsubscribe(
        &self,
        id: &str,
        durable_name: Option<&str>,
        receipt: Option<u64>,
        out: &mut BytesMut,
    ) {
        out.put_slice(b"UNSUBSCRIBE\n");
        put_header(out, "id", id.as_bytes(), self.version);
        self.put_optional("activemq.subscriptionName", durable_name, out);
        put_end(receipt, out);
    }

    /// Appends ACK.
    pub fn ack(&self, key: &AckKey, transaction: Option<&str>, receipt: Option<u64>, out: &mut BytesMut) {
        self.put_acknowledgement("ACK", key, transaction, receipt, out);
    }

    /// Appends NACK.
    pub fn nack(&self, key: &AckKey, transaction: Option<&str>, receipt: Option<u64>, out: &mut BytesMut) {
        self.put_acknowledgement("NACK", key, transaction, receipt, out);
    }

    fn put_acknowledgement(
        &self,
        command: &str,
        AckKey(lines): &AckKey,
        transaction: Option<&str>,
        receipt: Option<u64>,
        out: &mut BytesMut,
    ) {
        out.put_slice(command.as_bytes());
        out.put_u8(b'\n');
        out.put_slice(lines);
        self.put_optional("transaction", transaction, out);
        put_end(receipt, out);
    }

    /// Appends BEGIN.
    pub fn begin(&self, transaction: &str, receipt: Option<u64>, out: &mut BytesMut) {
        self.put_transaction("BEGIN", transaction, receipt, out);
    }

    /// Appends COMMIT.
    pub fn commit(&self, transaction: &str, receipt: Option<u64>, out: &mut BytesMut) {
        self.put_transaction("COMMIT", transaction, receipt, out);
    }

    /// Appends ABORT.
    pub fn abort(&self, transaction: &str, receipt: Option<u64>, out: &mut BytesMut) {
        self.put_transaction("ABORT", transaction, receipt, out);
    }

    fn put_transaction(&self, command: &str, transaction: &str, receipt: Option<u64>, out: &mut BytesMut) {
        out.put_slice(command.as_bytes());
        out.put_u8(b'\n');
        put_header(out, "transaction", transaction.as_bytes(), self.version);
        put_end(receipt, out);
    }

    /// Appends DISCONNECT.
    pub fn disconnect(&self, receipt: Option<u64>, out: &mut BytesMut) {
        out.put_slice(b"DISCONNECT\n");
        put_end(receipt, out);
    }

    /// Appends a heart-beat.
    pub fn heart_beat(&self, out: &mut BytesMut) {
        out.put_u8(b'\n');
    }

    fn put_headers(&self, headers: &[(&str, &str)], out: &mut BytesMut) {
        for (name, value) in headers {
            put_any_header(out, name.as_bytes(), value.as_bytes(), self.version);
        }
    }

    fn put_optional(&self, name: &str, value: Option<&str>, out: &mut BytesMut) {
        if let Some(value) = value {
            put_header(out, name, value.as_bytes(), self.version);
        }
    }
}

fn put_receipt(receipt: Option<u64>, out: &mut BytesMut) {
    if let Some(receipt) = receipt {
        out.put_slice(b"receipt:");
        put_unsigned(out, receipt);
        out.put_u8(b'\n');
    }
}

/// The end of a frame without body.
fn put_end(receipt: Option<u64>, out: &mut BytesMut) {
    put_receipt(receipt, out);
    out.put_slice(&[b'\n', END]);
}

fn heart_beat(text: &str) -> Option<(u64, u64)> {
    let (sends, wants) = text.split_once(',')?;
    Some((sends.trim().parse().ok()?, wants.trim().parse().ok()?))
}

/// What a server says.
#[derive(Debug)]
pub enum ServerFrame<'a> {
    /// The answer to CONNECT.
    Connected(Connected<'a>),
    /// A message.
    Message(Received<'a>),
    /// A confirmation; `None` if its receipt-id is no number, so not one of ours.
    Receipt(Option<u64>),
    /// Something went wrong.
    Error {
        /// What, in short.
        message: Cow<'a, str>,
        /// Of which request.
        receipt: Option<u64>,
        /// What, at length.
        body: Cow<'a, str>,
    },
    /// A command that is for clients to send.
    Unknown(&'static str),
}

/// What CONNECTED says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connected<'a> {
    /// The version spoken from now on.
    pub version: Version,
    /// The server's name for the connection.
    pub session: Option<Cow<'a, str>>,
    /// Who the server is.
    pub server: Option<Cow<'a, str>>,
    /// How often the server sends something, how often it wants to hear something; 0 = never.
    pub heart_beat_ms: (u64, u64),
}

/// A MESSAGE frame.
#[derive(Clone, Copy)]
pub struct Received<'a> {
    frame: Frame<'a>,
    version: Version,
}

impl<'a> Received<'a> {
    /// The body.
    pub fn body(&self) -> &'a [u8] {
        self.frame.body()
    }

    /// The first header with this name.
    pub fn header(&self, name: &str) -> Option<Cow<'a, str>> {
        self.headers().find(|(found, _)| found == name).map(|(_, value)| value)
    }

    /// All headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> {
        let frame = self.frame;
        frame.headers().map(move |(name, value)| (frame.text(name), frame.text(value)))
    }

    /// Not a message, but the end of a queue that was browsed.
    pub fn is_browse_end(&self) -> bool {
        self.frame.raw("browser") == Some(b"end")
    }

    /// Appends ACK for this message.
    pub fn put_ack(&self, transaction: Option<&str>, receipt: Option<u64>, out: &mut BytesMut) {
        out.put_slice(b"ACK\n");
        self.put_key(out);
        if let Some(transaction) = transaction {
            put_header(out, "transaction", transaction.as_bytes(), self.version);
        }
        put_end(receipt, out);
    }

    /// What ACK and NACK will need, for later.
    pub fn ack_key(&self) -> AckKey {
        let mut lines = BytesMut::new();
        self.put_key(&mut lines);
        AckKey(lines.freeze())
    }

    /// Values go back as they came, escapes and all.
    fn put_key(&self, out: &mut BytesMut) {
        let names: &[(&str, &str)] = match self.version {
            Version::V1_2 => &[("id", "ack")],
            _ => &[("message-id", "message-id"), ("subscription", "subscription")],
        };
        for (name, from) in names {
            if let Some(value) = self.frame.raw(from) {
                out.put_slice(name.as_bytes());
                out.put_u8(b':');
                out.put_slice(value);
                out.put_u8(b'\n');
            }
        }
    }
}

impl std::fmt::Debug for Received<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.headers()).finish()
    }
}
