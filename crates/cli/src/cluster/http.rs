//! Just enough of an HTTP/1.1 client for a node's admin API: one request on one connection, bounded in bytes and time.

use std::fmt;
use std::io::ErrorKind;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PORT_DEFAULT: u16 = 8161;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 16 << 10;
const BODY_BYTES_MAX: usize = 4 << 20;
/// A body in chunks is longer on its way, by a few bytes for each.
const INPUT_BYTES_MAX: usize = HEAD_BYTES_MAX + 2 * BODY_BYTES_MAX;
const READ_BYTES: u64 = 64 << 10;

/// Host and port out of `http://host:port`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    host: String,
    port: u16,
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        match scheme {
            "http" => {}
            "https" => bail!("https is not supported; ask on the node's own machine, or through a tunnel"),
            _ => bail!("scheme '{scheme}' where http://host:port is expected"),
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
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
        // It becomes part of a header.
        if host.is_empty()
            || !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:%".contains(&byte))
        {
            bail!("no host name where http://host:port is expected");
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

impl Address {
    /// As the Host header has it: without the zone of a link-local address, which means something on this machine only.
    fn authority(&self) -> String {
        let host = self.host.split('%').next().unwrap_or_default();
        let port = self.port;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') {
            write!(f, "http://[{host}]:{port}")
        } else {
            write!(f, "http://{host}:{port}")
        }
    }
}

/// What came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// 200 and so on.
    pub status: u16,
    /// Without chunk sizes.
    pub body: Vec<u8>,
}

/// Asks for what is under `path`.
pub async fn get(address: &Address, path: &str, patience: Duration) -> anyhow::Result<Response> {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", address.authority());
    exchange(address, &request, patience).await
}

/// Sends JSON to `path`.
pub async fn post(
    address: &Address,
    path: &str,
    token: Option<&str>,
    body: &str,
    patience: Duration,
) -> anyhow::Result<Response> {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n{authorization}\
         Content-Length: {}\r\n\r\n{body}",
        address.authority(),
        body.len()
    );
    exchange(address, &request, patience).await
}

async fn exchange(address: &Address, request: &str, patience: Duration) -> anyhow::Result<Response> {
    let Ok(connected) = timeout(CONNECT_TIMEOUT, TcpStream::connect((&*address.host, address.port))).await
    else {
        bail!("connect to {address}: no answer within {} s", CONNECT_TIMEOUT.as_secs());
    };
    let stream = connected.map_err(|error| match error.kind() {
        ErrorKind::ConnectionRefused => {
            anyhow!("nobody listens on {address}; is the node running, and is this its --admin address?")
        }
        _ => anyhow!(error).context(format!("connect to {address}")),
    })?;
    match timeout(patience, converse(stream, request)).await {
        Ok(response) => response.with_context(|| format!("the conversation with {address}")),
        Err(_) => bail!("{address} has not answered within {} s", patience.as_secs_f64()),
    }
}

async fn converse(mut stream: TcpStream, request: &str) -> anyhow::Result<Response> {
    // A server may answer, and close, before it has read everything: its answer counts.
    let written = stream.write_all(request.as_bytes()).await;
    let mut input = Vec::new();
    loop {
        let closed = match (&mut stream).take(READ_BYTES).read_buf(&mut input).await {
            Ok(count) => count == 0,
            Err(_) if !input.is_empty() => true,
            Err(error) => return Err(written.err().unwrap_or(error).into()),
        };
        if let Some(response) = decode(&input, closed)? {
            return Ok(response);
        }
    }
}

/// Why bytes are no response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DecodeError {
    NotHttp,
    Header,
    Chunk,
    TooLong,
    BrokenOff,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotHttp => "the answer is not HTTP/1.1",
            Self::Header => "the answer has a header that makes no sense",
            Self::Chunk => "the answer has a chunk that makes no sense",
            Self::TooLong => "the answer is too long",
            Self::BrokenOff => "the answer breaks off",
        })
    }
}

impl std::error::Error for DecodeError {}

/// The response, once all of it is there; `closed`: no more will come.
fn decode(input: &[u8], closed: bool) -> Result<Option<Response>, DecodeError> {
    if input.len() > INPUT_BYTES_MAX {
        return Err(DecodeError::TooLong);
    }
    let more = || if closed { Err(DecodeError::BrokenOff) } else { Ok(None) };
    let Some((head, rest)) = split(input, b"\r\n\r\n") else {
        return if input.len() > HEAD_BYTES_MAX { Err(DecodeError::TooLong) } else { more() };
    };
    if head.len() > HEAD_BYTES_MAX {
        return Err(DecodeError::TooLong);
    }
    let head = std::str::from_utf8(head).map_err(|_| DecodeError::NotHttp)?;
    let mut lines = head.split("\r\n");
    let status = status_of(lines.next().unwrap_or_default()).ok_or(DecodeError::NotHttp)?;
    let (mut length, mut chunked) = (None, false);
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(DecodeError::Header)?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let bytes = value.parse::<u64>().map_err(|_| DecodeError::Header)?;
            if length.replace(bytes).is_some_and(|before| before != bytes) {
                return Err(DecodeError::Header);
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Err(DecodeError::Header);
            }
            chunked = true;
        }
    }
    let body = if chunked {
        match dechunk(rest)? {
            Some(body) => body,
            None => return more(),
        }
    } else if let Some(length) = length {
        let length = usize::try_from(length).ok().filter(|length| *length <= BODY_BYTES_MAX);
        match rest.get(..length.ok_or(DecodeError::TooLong)?) {
            Some(body) => body.to_vec(),
            None => return more(),
        }
    } else if rest.len() > BODY_BYTES_MAX {
        return Err(DecodeError::TooLong);
    } else if closed {
        rest.to_vec()
    } else {
        return Ok(None);
    };
    Ok(Some(Response { status, body }))
}

/// `HTTP/1.1 200 OK`. An interim response, 1xx, is an answer to what we never say.
fn status_of(line: &str) -> Option<u16> {
    let rest = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "))?;
    let code = rest.split(' ').next().filter(|code| code.len() == 3)?;
    code.parse().ok().filter(|status| (200..600).contains(status))
}

/// What is before and behind the first `mark`.
fn split<'a>(input: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = input.windows(mark.len()).position(|window| window == mark)?;
    Some((input.get(..at)?, input.get(at + mark.len()..)?))
}

/// The body without chunk sizes; `None`: it goes on.
fn dechunk(mut rest: &[u8]) -> Result<Option<Vec<u8>>, DecodeError> {
    const SIZE_LINE_BYTES_MAX: usize = 256;
    let mut body = Vec::new();
    loop {
        let Some((line, behind)) = split(rest, b"\r\n") else {
            let endless = rest.len() > SIZE_LINE_BYTES_MAX;
            return if endless { Err(DecodeError::Chunk) } else { Ok(None) };
        };
        let size = line.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
        let digits =
            std::str::from_utf8(size).ok().filter(|size| size.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let size =
            usize::from_str_radix(digits.ok_or(DecodeError::Chunk)?, 16).map_err(|_| DecodeError::Chunk)?;
        if size > BODY_BYTES_MAX - body.len() {
            return Err(DecodeError::TooLong);
        }
        if size == 0 {
            // Trailers, if any, end with an empty line.
            let ends = behind.starts_with(b"\r\n") || split(behind, b"\r\n\r\n").is_some();
            return Ok(ends.then_some(body));
        }
        let (Some(data), Some(end)) = (behind.get(..size), behind.get(size..size + 2)) else {
            return Ok(None);
        };
        if end != b"\r\n" {
            return Err(DecodeError::Chunk);
        }
        body.extend_from_slice(data);
        rest = behind.get(size + 2..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, body: &str) -> Result<Option<Response>, DecodeError> {
        Ok(Some(Response { status, body: body.as_bytes().to_vec() }))
    }

    /// However the network cuts it: nothing before the end, the same at the end, broken off if it is closed before.
    fn check(input: &str, status: u16, body: &str) {
        for cut in 0..input.len() {
            assert_eq!(decode(&input.as_bytes()[..cut], false), Ok(None), "{input:?} cut at {cut}");
            assert_eq!(
                decode(&input.as_bytes()[..cut], true),
                Err(DecodeError::BrokenOff),
                "{input:?} cut at {cut}"
            );
        }
        assert_eq!(decode(input.as_bytes(), false), response(status, body), "{input:?}");
    }

    #[test]
    fn a_response_ends_where_it_says() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, "{}");
        check("HTTP/1.1 409 Conflict\r\ncontent-length:0\r\nX: y\r\n\r\n", 409, "");
        check(
            "HTTP/1.1 200\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\n{ \r\n0001;x=y\r\n}\r\n0\r\n\r\n",
            200,
            "{ }",
        );
        check("HTTP/1.1 503 x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x\r\n\r\n", 503, "");
    }

    #[test]
    fn a_response_without_a_length_ends_with_the_connection() {
        let input = b"HTTP/1.0 200 OK\r\n\r\nab";
        assert_eq!(decode(input, false), Ok(None));
        assert_eq!(decode(input, true), response(200, "ab"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused =
            |input: &str, expected| assert_eq!(decode(input.as_bytes(), true), Err(expected), "{input:?}");
        for line in
            ["", "HTTP/2 200", "HTTP/1.1 20", "HTTP/1.1 099 x", "HTTP/1.1 100 x", "CONNECTED\nversion:1.2"]
        {
            refused(&format!("{line}\r\n\r\n"), DecodeError::NotHttp);
        }
        for header in [
            "x",
            "Content-Length: -1",
            "Content-Length: 1, 1",
            "Content-Length: 1\r\nContent-Length: 2",
            "Transfer-Encoding: gzip",
        ] {
            refused(&format!("HTTP/1.1 200 OK\r\n{header}\r\n\r\n"), DecodeError::Header);
        }
        let chunked = |chunks: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        for chunks in ["x\r\n", "-1\r\n", "+1\r\n", "1\r\nab\r\n", "ffffffffffffffffff\r\n"] {
            refused(&chunked(chunks), DecodeError::Chunk);
        }
        refused(&chunked(&"0".repeat(300)), DecodeError::Chunk);
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_has_come() {
        let refused = |input: &str| assert_eq!(decode(input.as_bytes(), false), Err(DecodeError::TooLong));
        refused("HTTP/1.1 200 OK\r\nContent-Length: 4194305\r\n\r\n");
        refused("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n");
        refused("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400001\r\n");
        refused("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n400000\r\n");
        refused(&format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_BYTES_MAX)));
        refused(&format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(BODY_BYTES_MAX + 1)));
        refused(&"x".repeat(INPUT_BYTES_MAX + 1));
    }

    #[test]
    fn a_damaged_response_is_never_more_than_refused() {
        let inputs = [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\n{}\r\n0\r\nA: b\r\n\r\n",
        ];
        for input in inputs {
            for at in 0..input.len() {
                for byte in 0..=u8::MAX {
                    let mut damaged = input.to_vec();
                    damaged[at] = byte;
                    if let Ok(Some(response)) = decode(&damaged, true) {
                        assert!(response.body.len() < input.len(), "{at} {byte}");
                    }
                }
            }
        }
    }

    #[test]
    fn addresses_are_read_and_shown() {
        for (text, shown) in [
            ("http://127.0.0.1:8161", "http://127.0.0.1:8161"),
            ("http://node-a", "http://node-a:8161"),
            ("node-a:80/", "http://node-a:80"),
            ("http://[::1]:8162", "http://[::1]:8162"),
            ("http://[fe80::1%eth0]", "http://[fe80::1%eth0]:8161"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "http://",
            "https://a",
            "ftp://a",
            "http://a:0",
            "http://a:x",
            "http://a/b",
            "http://u@a",
            "http://[::1",
            "a\r\nb",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }
}
