//! `kdbr` connections: dialling, the handshake at both ends, frames in and out.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use kahawai_env::{Entropy, OsEntropy};
use kahawai_kdbr::{
    BODY_BYTES_MAX, Decoder, ErrorFrame, Frame, HANDSHAKE_TIMEOUT_MS, Handshake, Local, Peer, PreambleError,
    Progress, Role, Secrets, VERSIONS, put_preamble, take_preamble,
};
use kahawai_types::{BootId, ClusterId, Epoch, ReplicaId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a connection may take to be made.
const DIAL: Duration = Duration::from_secs(3);
/// Offered to each read.
const READ_BYTES: usize = 64 << 10;
/// Offered at most for a frame that says that it is large: what a peer only announces takes no memory.
const READ_BYTES_MAX: usize = 4 << 20;

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    /// The socket.
    #[error(transparent)]
    Io(#[from] io::Error),
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

/// Who this node says it is to its peers.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    pub(crate) cluster_id: Option<ClusterId>,
    pub(crate) replica: ReplicaId,
    pub(crate) boot: BootId,
    pub(crate) secrets: Secrets,
}

impl Credentials {
    fn local(&self, role: Role, epoch: Epoch) -> io::Result<Local> {
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
            exporter: None,
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
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(NetError::Closed),
            _ => Ok(()),
        }
    }
}

/// The end that frames go to.
pub(crate) struct FrameWriter {
    stream: Box<dyn AsyncWrite + Send + Unpin>,
    head: BytesMut,
}

impl FrameWriter {
    /// Adds a frame to what [`FrameWriter::flush`] sends; one with a body is sent at once, and not copied.
    pub(crate) async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        frame.encode_head(&mut self.head);
        if let Some(body) = frame.body() {
            if body.len() < READ_BYTES {
                // One packet rather than two.
                self.head.extend_from_slice(body);
                return self.flush().await;
            }
            self.flush().await?;
            self.stream.write_all(body).await?;
        }
        Ok(())
    }

    /// Sends what was added.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        if !self.head.is_empty() {
            self.stream.write_all(&self.head).await?;
            self.head.clear();
        }
        self.stream.flush().await
    }

    /// The last word.
    pub(crate) async fn refuse(&mut self, error: ErrorFrame) {
        let last = async {
            self.send(&Frame::Error(error)).await?;
            self.flush().await?;
            self.stream.shutdown().await
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), last).await;
    }
}

/// A connection whose ends know each other.
pub(crate) struct Connected {
    pub(crate) reader: FrameReader,
    pub(crate) writer: FrameWriter,
    pub(crate) peer: Peer,
    pub(crate) role: Role,
}

fn halves(stream: TcpStream) -> io::Result<(FrameReader, FrameWriter)> {
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    let reader =
        FrameReader { stream: Box::new(read), decoder: Decoder::new(BODY_BYTES_MAX), input: BytesMut::new() };
    Ok((reader, FrameWriter { stream: Box::new(write), head: BytesMut::new() }))
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
    let connect = TcpStream::connect(host_and_port(address));
    let stream = tokio::time::timeout(DIAL, connect).await.map_err(|_| NetError::Timeout)??;
    let (mut reader, mut writer) = halves(stream)?;
    put_preamble(role, &mut writer.head);
    let mut first = Vec::new();
    let local = credentials.local(role, Epoch(0))?;
    let handshake = Handshake::dialler(local, credentials.secrets.clone(), &mut first);
    let within = Duration::from_millis(HANDSHAKE_TIMEOUT_MS as u64);
    let shaken = tokio::time::timeout(within, shake(handshake, first, &mut reader, &mut writer));
    let peer = shaken.await.map_err(|_| NetError::Timeout)??;
    Ok(Connected { reader, writer, peer, role })
}

/// Takes a connection that a peer made. A refusal is told to the peer.
pub(crate) async fn accept(
    stream: TcpStream,
    credentials: &Credentials,
    epoch: Epoch,
) -> Result<Connected, NetError> {
    let (mut reader, mut writer) = halves(stream)?;
    let shaken = async {
        let role = loop {
            if let Some(role) = take_preamble(&mut reader.input)? {
                break role;
            }
            reader.more().await?;
        };
        let handshake = Handshake::acceptor(credentials.local(role, epoch)?, credentials.secrets.clone());
        let peer = shake(handshake, Vec::new(), &mut reader, &mut writer).await?;
        Ok::<_, NetError>((role, peer))
    };
    let within = Duration::from_millis(HANDSHAKE_TIMEOUT_MS as u64);
    let (role, peer) = tokio::time::timeout(within, shaken).await.map_err(|_| NetError::Timeout)??;
    Ok(Connected { reader, writer, peer, role })
}
