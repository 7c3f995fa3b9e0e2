//! `kdbr` connections: dialling, the handshake at both ends, frames in and out.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use kahawai_env::{Entropy, OsEntropy};
use kahawai_kdbr::{
    BODY_BYTES_MAX, Decoder, ErrorCode, ErrorFrame, Frame, HANDSHAKE_TIMEOUT_MS, Handshake, Local, Peer,
    PreambleError, Progress, Role, VERSIONS, put_preamble, take_preamble,
};
use kahawai_types::{BootId, ClusterId, Epoch, ReplicaId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::{self, ConnectionCommon, SideData};

use crate::core::unpoisoned;

use super::peer_tls::{PeerTls, Protection, check_peer, explain, server_name};

/// How long a connection may take to be made.
const DIAL: Duration = Duration::from_secs(3);
/// Offered to each read.
const READ_BYTES: usize = 64 << 10;
/// Offered at most for a frame that says that it is large: what a peer only announces takes no memory.
const READ_BYTES_MAX: usize = 4 << 20;
/// What proofs of a shared secret are bound to in a TLS session.
const EXPORTER: &[u8] = b"EXPORTER-kdbr-2";
const EXPORTER_BYTES: usize = 32;
/// The first byte of a TLS session, and of a `kdbr` connection without one.
const TLS_HANDSHAKE: u8 = 0x16;
const KDBR: u8 = b'K';
/// How long, and over how many bytes, a refused peer may take to read why.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: usize = 64 << 10;

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    /// The socket.
    #[error(transparent)]
    Io(io::Error),
    /// The peer's certificate, or ours, or none where one is needed.
    #[error("{0}")]
    Tls(String),
    /// Not our protocol.
    #[error(transparent)]
    Preamble(#[from] PreambleError),
    /// Not our frames.
    #[error(transparent)]
    Decode(#[from] kahawai_kdbr::DecodeError),
    /// The peer, or we, refused.
    #[error("{}", .0.text)]
    Refused(ErrorFrame),
    /// The peer closed.
    #[error("the peer closed the connection")]
    Closed,
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
}

impl From<io::Error> for NetError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(inner) => Self::Tls(explain(inner)),
            None => Self::Io(error),
        }
    }
}

impl NetError {
    /// Trying again soon is of no use: somebody has to change a certificate, a secret or a program.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Tls(_) => true,
            Self::Refused(error) => matches!(error.code, ErrorCode::Auth | ErrorCode::Version),
            _ => false,
        }
    }
}

/// Who this node says it is to its peers.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    pub(crate) cluster_id: Option<ClusterId>,
    pub(crate) replica: ReplicaId,
    pub(crate) boot: BootId,
    pub(crate) protection: Protection,
}

impl Credentials {
    fn local(&self, role: Role, epoch: Epoch, shown: Option<&Shown>) -> io::Result<Local> {
        let mut nonce = [0; 32];
        OsEntropy.fill(&mut nonce)?;
        Ok(Local {
            role,
            versions: VERSIONS,
            features: 0,
            cluster_id: self.cluster_id,
            replica: self.replica.clone(),
            boot: self.boot,
            epoch,
            software: concat!("kahawai ", env!("CARGO_PKG_VERSION")).to_owned(),
            nonce,
            exporter: shown.map(|shown| shown.exporter.clone()),
        })
    }
}

/// The end of a connection that frames come from.
pub(crate) struct FrameReader {
    stream: Box<dyn AsyncRead + Send + Unpin>,
    decoder: Decoder,
    input: BytesMut,
}

impl FrameReader {
    /// The next frame. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Frame, NetError> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.input)? {
                return Ok(frame);
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Result<(), NetError> {
        let room = self.decoder.bytes_missing(&self.input).clamp(READ_BYTES, READ_BYTES_MAX);
        self.input.reserve(room);
        match self.stream.read_buf(&mut self.input).await {
            Ok(0) => Err(NetError::Closed),
            Ok(_) => Ok(()),
            // A TLS session that was not closed: the process died. Frames say themselves whether they are whole.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(NetError::Closed),
            Err(error) => Err(error.into()),
        }
    }
}

/// The sending end of a connection without TLS, for its task, and for threads that have one frame to send and no time to wait.
///
/// Frames go through one queue, so nothing overtakes. What the socket does not take at once is the task's to send.
pub(crate) struct Line {
    state: Mutex<LineState>,
    left: Notify,
}

struct LineState {
    queue: BytesMut,
    /// The task is sending something large past the queue.
    taken: bool,
    /// `None` once the connection's task is gone.
    socket: Option<Arc<OwnedWriteHalf>>,
}

impl LineState {
    /// Sends what the socket takes without waiting.
    fn drain(&mut self) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Err(io::ErrorKind::NotConnected.into()) };
        while !self.queue.is_empty() {
            match socket.try_write(&self.queue) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.queue.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Line {
    fn new(socket: Arc<OwnedWriteHalf>) -> Arc<Self> {
        let state = LineState { queue: BytesMut::new(), taken: false, socket: Some(socket) };
        Arc::new(Self { state: Mutex::new(state), left: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, LineState> {
        unpoisoned(&self.state)
    }

    /// Sends a frame if nothing is in front of it; it is made only then. `false` = the task has to send it.
    pub(crate) fn try_send(&self, frame: impl FnOnce() -> Option<Frame>) -> bool {
        let mut state = self.lock();
        if state.taken || !state.queue.is_empty() || state.socket.is_none() {
            return false;
        }
        let Some(frame) = frame() else { return false };
        frame.encode(&mut state.queue);
        // A broken socket is the task's business as well.
        let _ = state.drain();
        if !state.queue.is_empty() {
            self.left.notify_one();
        }
        true
    }
}

/// The end that frames go to.
pub(crate) struct FrameWriter(Outgoing);

enum Outgoing {
    Plain { line: Arc<Line>, socket: Arc<OwnedWriteHalf> },
    Tls { stream: Box<dyn AsyncWrite + Send + Unpin>, head: BytesMut },
}

impl Drop for FrameWriter {
    fn drop(&mut self) {
        if let Outgoing::Plain { line, .. } = &self.0 {
            // With the last handle the connection is shut.
            line.lock().socket = None;
        }
    }
}

impl FrameWriter {
    /// What other threads may send on.
    pub(crate) fn line(&self) -> Option<Arc<Line>> {
        match &self.0 {
            Outgoing::Plain { line, .. } => Some(Arc::clone(line)),
            Outgoing::Tls { .. } => None,
        }
    }

    /// Adds a frame to what [`FrameWriter::flush`] sends; one with a body is sent at once, and a large one not copied.
    pub(crate) async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        let body = frame.body().filter(|body| body.len() >= READ_BYTES);
        self.add(|out| match body {
            Some(_) => frame.encode_head(out),
            // One packet rather than two.
            None => frame.encode(out),
        });
        match body {
            Some(body) => self.large(body).await,
            None if frame.body().is_some() => self.flush().await,
            None => Ok(()),
        }
    }

    fn add(&mut self, add: impl FnOnce(&mut BytesMut)) {
        match &mut self.0 {
            Outgoing::Plain { line, .. } => add(&mut line.lock().queue),
            Outgoing::Tls { head, .. } => add(head),
        }
    }

    /// Sends what was added, and these bytes behind it.
    async fn large(&mut self, body: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Outgoing::Plain { line, socket } => {
                // Nobody gets between a head and its body.
                line.lock().taken = true;
                let sent = async {
                    drained(line, socket).await?;
                    let mut rest = body;
                    while !rest.is_empty() {
                        socket.writable().await?;
                        match socket.try_write(rest) {
                            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                            Err(error) => return Err(error),
                        }
                    }
                    Ok(())
                };
                let sent = sent.await;
                line.lock().taken = false;
                sent
            }
            Outgoing::Tls { stream, head } => {
                stream.write_all(head).await?;
                head.clear();
                stream.write_all(body).await
            }
        }
    }

    /// Sends what was added, and what others have left.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Outgoing::Plain { line, socket } => drained(line, socket).await,
            Outgoing::Tls { stream, head } => {
                if !head.is_empty() {
                    stream.write_all(head).await?;
                    head.clear();
                }
                stream.flush().await
            }
        }
    }

    /// Waits until another thread has left something that the socket did not take.
    pub(crate) fn left(&self) -> impl Future<Output = ()> + Send + use<> {
        let line = self.line();
        async move {
            match line {
                Some(line) => line.left.notified().await,
                None => std::future::pending().await,
            }
        }
    }

    /// The last word.
    pub(crate) async fn refuse(&mut self, error: ErrorFrame) {
        let last = async {
            self.send(&Frame::Error(error)).await?;
            self.flush().await?;
            match &mut self.0 {
                // It ends with us.
                Outgoing::Plain { .. } => Ok(()),
                Outgoing::Tls { stream, .. } => stream.shutdown().await,
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), last).await;
    }
}

/// Waits until all of the queue is sent.
async fn drained(line: &Line, socket: &OwnedWriteHalf) -> io::Result<()> {
    loop {
        {
            let mut state = line.lock();
            state.drain()?;
            if state.queue.is_empty() {
                return Ok(());
            }
        }
        socket.writable().await?;
    }
}

/// A connection whose ends know each other.
pub(crate) struct Connected {
    pub(crate) reader: FrameReader,
    pub(crate) writer: FrameWriter,
    pub(crate) peer: Peer,
    pub(crate) role: Role,
}

/// What a TLS session says of the other end.
struct Shown {
    /// Its certificate, and those that lead to the CA.
    chain: Vec<CertificateDer<'static>>,
    /// What both ends of this session know, and nobody else.
    exporter: Vec<u8>,
}

impl Shown {
    fn of<Side: SideData>(session: &ConnectionCommon<Side>) -> Result<Self, NetError> {
        let chain = session.peer_certificates().unwrap_or_default();
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let exporter = session.export_keying_material(vec![0; EXPORTER_BYTES], EXPORTER, None);
        Ok(Self { chain, exporter: exporter.map_err(|error| NetError::Tls(explain(&error)))? })
    }
}

/// The two ends of a connection, in a TLS session or not.
struct Ends {
    reader: FrameReader,
    writer: FrameWriter,
    shown: Option<Shown>,
}

impl Ends {
    fn new(read: impl AsyncRead + Send + Unpin + 'static, out: Outgoing, shown: Option<Shown>) -> Self {
        let decoder = Decoder::new(BODY_BYTES_MAX);
        let reader = FrameReader { stream: Box::new(read), decoder, input: BytesMut::new() };
        Self { reader, writer: FrameWriter(out), shown }
    }

    fn plain(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        let socket = Arc::new(write);
        Self::new(read, Outgoing::Plain { line: Line::new(Arc::clone(&socket)), socket }, None)
    }

    fn tls(stream: impl AsyncRead + AsyncWrite + Send + 'static, shown: Shown) -> Self {
        let (read, write) = tokio::io::split(stream);
        let out = Outgoing::Tls { stream: Box::new(write), head: BytesMut::new() };
        Self::new(read, out, Some(shown))
    }

    /// The dialler's end.
    async fn connected(stream: TcpStream, address: &str, tls: Option<&PeerTls>) -> Result<Self, NetError> {
        let Some(tls) = tls else { return Ok(Self::plain(stream)) };
        let name = server_name(address)
            .ok_or_else(|| NetError::Tls(format!("no certificate can be for the address {address}")))?;
        let stream = tls.connector.connect(name, stream).await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => NetError::Closed,
            _ => error.into(),
        })?;
        let shown = Shown::of(stream.get_ref().1)?;
        Ok(Self::tls(stream, shown))
    }

    /// The end that was connected to. Who is refused is told why, as well as can be.
    async fn accepted(stream: TcpStream, tls: Option<&PeerTls>) -> Result<Self, NetError> {
        let mut first = [0];
        // Nothing is taken: the byte is looked at before it is known who reads it.
        let is_there = stream.peek(&mut first).await? > 0;
        match (tls, first) {
            (Some(_), [KDBR]) if is_there => {
                let text = "replication is over TLS here: this node needs --kdbr-tls-cert as well";
                refuse_plainly(stream, text).await;
                Err(NetError::Tls("the peer speaks plaintext, and this node replicates over TLS only".into()))
            }
            (None, [TLS_HANDSHAKE]) if is_there => {
                refuse_plainly(stream, "there is no TLS here").await;
                Err(NetError::Tls("the peer speaks TLS, and this node has no --kdbr-tls-cert".into()))
            }
            (None, _) => Ok(Self::plain(stream)),
            (Some(tls), _) => match tls.acceptor.accept(stream).into_fallible().await {
                Ok(stream) => {
                    let shown = Shown::of(stream.get_ref().1)?;
                    Ok(Self::tls(stream, shown))
                }
                Err((error, stream)) => {
                    // The alert has been sent.
                    linger(stream).await;
                    Err(error.into())
                }
            },
        }
    }

    /// Compares the peer with its certificate, if it had to show one.
    async fn check(&mut self, peer: &Peer) -> Result<(), NetError> {
        let Some(shown) = &self.shown else { return Ok(()) };
        let Err(problem) = check_peer(&shown.chain, peer.cluster_id, &peer.replica) else { return Ok(()) };
        self.writer.refuse(ErrorFrame::new(ErrorCode::Auth, problem.clone())).await;
        Err(NetError::Tls(problem))
    }
}

/// Says why in plaintext, to a peer that will read it or take it for what is no TLS.
async fn refuse_plainly(stream: TcpStream, text: &str) {
    let mut out = BytesMut::new();
    Frame::Error(ErrorFrame::new(ErrorCode::Auth, text)).encode(&mut out);
    let mut stream = stream;
    if stream.write_all(&out).await.is_ok() {
        linger(stream).await;
    }
}

/// Waits until the peer has closed: what it has sent, and nobody reads, would take our last word with it.
async fn linger(mut stream: TcpStream) {
    let rest = async {
        stream.shutdown().await?;
        let mut buffer = [0; 4096];
        let mut read = 0;
        while read < LINGER_BYTES {
            match stream.read(&mut buffer).await? {
                0 => break,
                more => read += more,
            }
        }
        Ok::<_, io::Error>(())
    };
    // It is refused in any case.
    let _ = tokio::time::timeout(LINGER, rest).await;
}

async fn shake(
    mut handshake: Handshake,
    first: Vec<Frame>,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
) -> Result<Peer, NetError> {
    let mut out = first;
    loop {
        for frame in out.drain(..) {
            writer.send(&frame).await?;
        }
        writer.flush().await?;
        let frame = reader.next().await?;
        let progress = handshake.step(frame, &mut out);
        for frame in out.drain(..) {
            writer.send(&frame).await?;
        }
        writer.flush().await?;
        match progress {
            Progress::Continue => {}
            Progress::Done(peer) => {
                reader.decoder.authenticated();
                return Ok(peer);
            }
            Progress::Failed(error) | Progress::Refused(error) => return Err(NetError::Refused(error)),
        }
    }
}

/// `host:port` of a `kdbr://host:port`.
pub(crate) fn host_and_port(address: &str) -> &str {
    address.strip_prefix("kdbr://").unwrap_or(address).trim_end_matches('/')
}

/// Connects to a peer.
pub(crate) async fn dial(
    address: &str,
    role: Role,
    credentials: &Credentials,
) -> Result<Connected, NetError> {
    let address = host_and_port(address);
    let stream =
        tokio::time::timeout(DIAL, TcpStream::connect(address)).await.map_err(|_| NetError::Timeout)??;
    stream.set_nodelay(true)?;
    let shaken = async {
        let mut ends = Ends::connected(stream, address, credentials.protection.tls.as_ref()).await?;
        ends.writer.add(|out| put_preamble(role, out));
        let mut first = Vec::new();
        let local = credentials.local(role, Epoch(0), ends.shown.as_ref())?;
        let handshake = Handshake::dialler(local, credentials.protection.secrets.clone(), &mut first);
        let peer = shake(handshake, first, &mut ends.reader, &mut ends.writer).await?;
        ends.check(&peer).await?;
        Ok(Connected { reader: ends.reader, writer: ends.writer, peer, role })
    };
    within_handshake(shaken).await
}

/// Takes a connection that a peer made. A refusal is told to the peer.
pub(crate) async fn accept(
    stream: TcpStream,
    credentials: &Credentials,
    epoch: Epoch,
) -> Result<Connected, NetError> {
    stream.set_nodelay(true)?;
    let shaken = async {
        let mut ends = Ends::accepted(stream, credentials.protection.tls.as_ref()).await?;
        let role = loop {
            if let Some(role) = take_preamble(&mut ends.reader.input)? {
                break role;
            }
            ends.reader.more().await?;
        };
        let local = credentials.local(role, epoch, ends.shown.as_ref())?;
        let handshake = Handshake::acceptor(local, credentials.protection.secrets.clone());
        let peer = shake(handshake, Vec::new(), &mut ends.reader, &mut ends.writer).await?;
        ends.check(&peer).await?;
        Ok(Connected { reader: ends.reader, writer: ends.writer, peer, role })
    };
    within_handshake(shaken).await
}

/// TLS, preamble and handshake together take no longer than this.
async fn within_handshake(
    shaken: impl Future<Output = Result<Connected, NetError>>,
) -> Result<Connected, NetError> {
    let within = Duration::from_millis(HANDSHAKE_TIMEOUT_MS as u64);
    tokio::time::timeout(within, shaken).await.map_err(|_| NetError::Timeout)?
}

#[cfg(test)]
mod tests;
