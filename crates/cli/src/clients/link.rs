//! One STOMP connection of a client: where to, CONNECT, and the exchange of bytes.

use std::io::ErrorKind;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Buf, BytesMut};
use kahawai_stomp::Limits;
use kahawai_stomp::client::{Client, Connect, ServerFrame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PORT_DEFAULT: u16 = 61613;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(10);
/// Room for one read. Much more than one wake-up brings, so that a read is short and tokio need not try again.
const READ_BYTES: usize = 64 * 1024;
/// Where writers of many frames pause until the socket has taken what is there.
pub(super) const OUT_BYTES_MAX: usize = 256 * 1024;
/// More than any broker takes by default.
const BODY_BYTES_MAX: usize = 1 << 30;
/// No receipt that anybody asks for in the course of work has this number.
const GOODBYE: u64 = u64::MAX;

/// Which broker, and who we are.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct LinkArgs {
    /// The broker's STOMP connector.
    #[arg(long, value_name = "URL", default_value = "stomp://127.0.0.1:61613")]
    url: Address,
    /// User name.
    #[arg(long)]
    login: Option<String>,
    /// Password.
    #[arg(long, requires = "login")]
    passcode: Option<String>,
}

/// Host and port out of `stomp://host:port`.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Address {
    host: String,
    port: u16,
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("stomp", text));
        match scheme {
            "stomp" => {}
            "stomp+ssl" => bail!("stomp+ssl is not supported by this client yet, use a stomp:// connector"),
            _ => bail!("scheme '{scheme}' where stomp://host:port is expected"),
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            bail!("user and password go into --login and --passcode");
        }
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').context("'[' without ']'")?;
                (host, (!port.is_empty()).then(|| port.strip_prefix(':').unwrap_or("")))
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        if host.is_empty() || host.contains(['/', '?', '#']) {
            bail!("no host name where stomp://host:port is expected");
        }
        let port = match port {
            Some(port) => {
                port.parse().ok().filter(|&port| port != 0).with_context(|| format!("bad port '{port}'"))?
            }
            None => PORT_DEFAULT,
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "stomp://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "stomp://{}:{}", self.host, self.port)
        }
    }
}

/// An open connection. Frames for the broker are appended to [`Self::frame`]'s buffer and leave with
/// [`Self::exchange`].
#[derive(Debug)]
pub(super) struct Link {
    address: Address,
    stream: TcpStream,
    client: Client,
    out: BytesMut,
    /// The broker takes no more; what it has to say about that may still be on its way.
    write_error: Option<std::io::Error>,
}

impl Link {
    /// Connects and waits for CONNECTED.
    pub(super) async fn open(args: &LinkArgs, client_id: Option<&str>) -> anyhow::Result<Self> {
        let address = args.url.clone();
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect((&*address.host, address.port))).await;
        let stream = match stream {
            Ok(stream) => stream.with_context(|| format!("connect to {address}"))?,
            Err(_) => bail!("connect to {address}: no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        };
        stream.set_nodelay(true).with_context(|| format!("set options of the connection to {address}"))?;
        let limits = Limits { body_bytes_max: BODY_BYTES_MAX, ..Limits::default() };
        let (client, out) = (Client::new(limits), BytesMut::new());
        let mut link = Self { address, stream, client, out, write_error: None };
        let host = &*args.url.host;
        let (login, passcode) = (args.login.as_deref(), args.passcode.as_deref());
        link.client
            .connect(&Connect { host, login, passcode, client_id, ..Connect::default() }, &mut link.out);
        match timeout(CONNECT_TIMEOUT, link.connected()).await {
            Ok(connected) => connected?,
            Err(_) => bail!("no CONNECTED from {} within {} s", link.address, CONNECT_TIMEOUT.as_secs()),
        }
        Ok(link)
    }

    async fn connected(&mut self) -> anyhow::Result<()> {
        loop {
            self.exchange(false).await?;
            match self.next()? {
                Some((ServerFrame::Connected(_), _)) => return Ok(()),
                Some((other, _)) => bail!("{other:?} where CONNECTED is expected"),
                None => {}
            }
        }
    }

    /// The codec, and where its frames go.
    pub(super) fn frame(&mut self) -> (&Client, &mut BytesMut) {
        (&self.client, &mut self.out)
    }

    /// Writes what is in the buffer and waits for bytes from the broker; with `more` to say only until the buffer is
    /// empty. Cancelling it loses nothing.
    pub(super) async fn exchange(&mut self, more: bool) -> anyhow::Result<()> {
        let input = self.client.input();
        input.reserve(READ_BYTES);
        if !self.out.is_empty() {
            // Nearly always the socket takes all of it, and then waiting for the answer is the only thing to await.
            match self.stream.try_write(&self.out) {
                Ok(count) => self.out.advance(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => self.write_error = Some(error),
            }
        }
        let (mut reader, mut writer) = self.stream.split();
        let read = loop {
            if self.write_error.is_some() {
                self.out.clear();
            }
            if self.out.is_empty() {
                if more && self.write_error.is_none() {
                    return Ok(());
                }
                break reader.read_buf(input).await;
            }
            // Both at once: a broker that waits for us to read does not read.
            tokio::select! {
                biased;
                read = reader.read_buf(input) => break read,
                written = writer.write(&self.out) => match written {
                    Ok(count) => self.out.advance(count),
                    Err(error) => self.write_error = Some(error),
                },
            }
        };
        match (read, self.write_error.take()) {
            (Ok(1..), error) => {
                self.write_error = error;
                Ok(())
            }
            (Err(error), _) | (Ok(0), Some(error)) => {
                Err(error).with_context(|| format!("connection to {}", self.address))
            }
            (Ok(0), None) => bail!("{} closed the connection", self.address),
        }
    }

    /// The next frame that has come, and the buffer for the answer. ERROR is an error.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<(ServerFrame<'_>, &mut BytesMut)>> {
        match self.client.next() {
            Ok(Some(ServerFrame::Error { message, body, .. })) => {
                let detail = body.lines().next().map(str::trim).unwrap_or_default();
                if detail.is_empty() || message.contains(detail) {
                    bail!("{} answered ERROR: {message}", self.address)
                }
                bail!("{} answered ERROR: {message} ({detail})", self.address)
            }
            Ok(frame) => Ok(frame.map(|frame| (frame, &mut self.out))),
            Err(error) => Err(error).with_context(|| format!("bytes from {}", self.address)),
        }
    }

    /// DISCONNECT, and the proof that everything before it was taken. Messages that still come are dropped.
    pub(super) async fn close(mut self) -> anyhow::Result<()> {
        self.client.disconnect(Some(GOODBYE), &mut self.out);
        let goodbye = async {
            loop {
                while let Some((frame, _)) = self.next()? {
                    if matches!(frame, ServerFrame::Receipt(Some(GOODBYE))) {
                        return Ok(());
                    }
                }
                self.exchange(false).await?;
            }
        };
        match timeout(GOODBYE_TIMEOUT, goodbye).await {
            Ok(result) => result,
            Err(_) => bail!("no receipt for DISCONNECT within {} s", GOODBYE_TIMEOUT.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let found = text.parse::<Address>().map_or_else(|error| error.to_string(), |found| found.to_string());
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn addresses_have_a_host_and_perhaps_a_port() {
        check("stomp://127.0.0.1:61613", "stomp://127.0.0.1:61613");
        check("stomp://broker", "stomp://broker:61613");
        check("stomp://broker:1/", "stomp://broker:1");
        check("broker:1", "stomp://broker:1");
        check("stomp://[::1]:2", "stomp://[::1]:2");
        check("stomp://[::1]", "stomp://[::1]:61613");
    }

    #[test]
    fn what_is_no_address_says_why() {
        check(
            "stomp+ssl://broker:61614",
            "stomp+ssl is not supported by this client yet, use a stomp:// connector",
        );
        check("amqp://broker", "scheme 'amqp' where stomp://host:port is expected");
        check("stomp://me:secret@broker", "user and password go into --login and --passcode");
        for none in ["stomp://", "stomp://:1", "stomp://broker?x=y", "stomp:///queue"] {
            check(none, "no host name where stomp://host:port is expected");
        }
        check("stomp://broker:", "bad port ''");
        check("stomp://broker:0", "bad port '0'");
        check("stomp://broker:70000", "bad port '70000'");
        check("stomp://[::1", "'[' without ']'");
        check("stomp://[::1]2", "bad port ''");
    }
}
