//! Starting and stopping a broker.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kahawai_broker::Broker;
use kahawai_env::{Clock, DiskFiles, Entropy, Files, Lock, OsEntropy, SystemClock};
use kahawai_message::storage::Storage;
use kahawai_stomp::ConnectionOptions;
use kahawai_store::{OpenOptions, Report};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::connection::serve;
use crate::core::Shared;
use crate::threads;
use crate::tls::{TlsError, acceptor};

/// How long connections may take to end when the node stops.
const STOP: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// One STOMP listener.
#[derive(Clone, Debug)]
pub struct StompListener {
    /// `host:port`; port 0 picks one.
    pub address: String,
    /// Certificate chain and key, PEM files: then it speaks TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// How a node runs.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Data directory; made if it is not there.
    pub data: PathBuf,
    /// STOMP listeners.
    pub stomp: Vec<StompListener>,
    /// At most so many client connections.
    pub connections_max: usize,
    /// How the broker behaves.
    pub broker: kahawai_broker::Options,
    /// How the store is opened.
    pub store: OpenOptions,
    /// What one STOMP frame may be.
    pub stomp_limits: kahawai_stomp::Limits,
}

impl NodeOptions {
    /// The defaults, with this data directory and no listener.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            stomp: Vec::new(),
            connections_max: 10_000,
            broker: kahawai_broker::Options::default(),
            store: OpenOptions::default(),
            stomp_limits: kahawai_stomp::Limits::default(),
        }
    }
}

/// Why a node does not run (any more).
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory.
    #[error("{path}: {source}")]
    Directory {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Another broker has it.
    #[error(
        "{path} is in use: another broker (Kahawai or ActiveMQ) holds {path}/lock; stop that one, or give this one another \
         directory with --data"
    )]
    Locked {
        /// Which.
        path: String,
    },
    /// The store in it.
    #[error(transparent)]
    Open(#[from] kahawai_store::OpenError),
    /// A listener's address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// A listener's certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// What the broker could not learn from the store.
    #[error("{0}")]
    Recover(String),
    /// Storage failed while the node ran: nothing was confirmed after that.
    #[error("storage failed, nothing was confirmed any more: {0}")]
    Storage(String),
}

/// A connector that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// `stomp` or `stomp+ssl`.
    pub name: &'static str,
    /// With the port that was picked.
    pub address: SocketAddr,
}

/// What a node says of itself.
#[derive(Clone, Debug)]
pub struct Status {
    /// Client connections.
    pub connections: usize,
    /// The commit position.
    pub commit: kahawai_types::Lsn,
    /// The journal's counters.
    pub journal: kahawai_journal::JournalStats,
    /// Whether storage has failed.
    pub failure: Option<String>,
}

/// A running broker.
pub struct Node {
    shared: Arc<Shared>,
    listeners: Vec<(TcpListener, Option<TlsAcceptor>)>,
    /// What is open, for whoever started the node.
    pub listening: Vec<Listening>,
    /// What was found in the data directory.
    pub report: Report,
    options: NodeOptions,
    threads: Vec<JoinHandle<()>>,
    upkeep: JoinHandle<()>,
    lock: Box<dyn Lock>,
    connections: Arc<AtomicUsize>,
    start_ms: i64,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("listening", &self.listening).finish_non_exhaustive()
    }
}

impl Node {
    /// Opens the data directory and the listeners. Clients are served from [`Node::run`] on.
    ///
    /// # Errors
    /// See [`NodeError`]; nothing keeps running after one.
    pub async fn start(options: NodeOptions) -> Result<Self, NodeError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let entropy: &dyn Entropy = &OsEntropy;
        let path = options.data.display().to_string();
        let directory = |source| NodeError::Directory { path: path.clone(), source };
        let files: Arc<dyn Files> = Arc::new(DiskFiles::open(&options.data).map_err(directory)?);
        let start_ms = clock.now_ms();
        let lock = files
            .lock("lock", start_ms)
            .map_err(directory)?
            .ok_or(NodeError::Locked { path: path.clone() })?;
        // Addresses before recovery: a mistake in them should not cost a replay.
        let mut listeners = Vec::new();
        let mut listening = Vec::new();
        for listener in &options.stomp {
            let tls =
                listener.tls.as_ref().map(|(certificates, key)| acceptor(certificates, key)).transpose()?;
            let listen = |source| NodeError::Listen { address: listener.address.clone(), source };
            let socket = TcpListener::bind(&listener.address).await.map_err(listen)?;
            let name = if tls.is_some() { "stomp+ssl" } else { "stomp" };
            listening.push(Listening { name, address: socket.local_addr().map_err(listen)? });
            listeners.push((socket, tls));
        }
        let opened = kahawai_store::open(&files, entropy, &options.store)?;
        let mut store = opened.store;
        let mut broker = Broker::new(options.broker.clone());
        broker.recover(start_ms, &mut store).map_err(|e| NodeError::Recover(e.to_string()))?;
        let (shared, errands) = Shared::new(broker, store, Arc::clone(&files), clock);
        let threads = vec![
            threads::journal(&shared, opened.writer).map_err(NodeError::Thread)?,
            threads::preparer(&shared, opened.preparer).map_err(NodeError::Thread)?,
            threads::applier(&shared).map_err(NodeError::Thread)?,
            threads::errands(&shared, errands).map_err(NodeError::Thread)?,
        ];
        let upkeep = threads::upkeep(&shared).map_err(NodeError::Thread)?;
        let report = opened.report;
        info!(
            epoch = report.epoch.0,
            end = %report.recovery.end,
            index = ?report.index,
            records = report.records,
            rolled_back = report.rolled_back.len(),
            "store recovered"
        );
        for lost in &report.lost {
            warn!(message = %lost, "given up by the operator's leave");
        }
        Ok(Self {
            shared,
            listeners,
            listening,
            report,
            options,
            threads,
            upkeep,
            lock,
            connections: Arc::default(),
            start_ms,
        })
    }

    /// A handle for status.
    pub fn status(&self) -> impl Fn() -> Status + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        let connections = Arc::clone(&self.connections);
        move || Status {
            connections: connections.load(Ordering::Relaxed),
            commit: shared.commit.position(),
            journal: shared.with(|core| core.store.journal().stats()),
            failure: shared.failure().map(str::to_owned),
        }
    }

    /// Serves clients until `stop` ends, then stops in good order: what was confirmed is durable, the index is written, the
    /// next start replays nothing.
    ///
    /// # Errors
    /// Storage failed; the process should end with a failure.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        let numbers = Arc::new(AtomicU64::new(0));
        let mut accepting = Vec::new();
        for (listener, tls) in self.listeners {
            accepting.push(tokio::spawn(accept(Acceptor {
                listener,
                tls,
                shared: Arc::clone(&self.shared),
                connections: Arc::clone(&self.connections),
                connections_max: self.options.connections_max,
                limits: self.options.stomp_limits,
                numbers: Arc::clone(&numbers),
                start_ms: self.start_ms,
            })));
        }
        tokio::select! {
            () = stop => info!("stopping"),
            () = self.shared.failed() => {}
        }
        for task in accepting {
            task.abort();
        }
        self.shared.stop();
        let patience = tokio::time::Instant::now() + STOP;
        while self.connections.load(Ordering::Acquire) > 0 && tokio::time::Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let shared = Arc::clone(&self.shared);
        let threads = self.threads;
        let upkeep = self.upkeep;
        // Joining threads blocks, and so does the last checkpoint.
        let ended = tokio::task::spawn_blocking(move || finish(&shared, threads, upkeep)).await;
        drop(self.lock);
        match ended {
            Ok(result) => result,
            Err(error) => Err(NodeError::Storage(error.to_string())),
        }
    }
}

fn finish(
    shared: &Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    upkeep: JoinHandle<()>,
) -> Result<(), NodeError> {
    let _ = upkeep.join();
    shared.with(|core| core.store.journal().close());
    for thread in threads {
        let _ = thread.join();
    }
    if let Some(reason) = shared.failure() {
        return Err(NodeError::Storage(reason.to_owned()));
    }
    // The applier may have looked for the last time before the journal thread's last batch.
    let commit = shared.commit.position();
    let applied = shared.with(|core| {
        let mut out = Vec::new();
        while core.store.apply(commit, usize::MAX, &mut out)? {}
        Ok::<_, kahawai_message::storage::StorageError>(core.store.applied() == core.store.appended_end())
    });
    applied.map_err(|e| NodeError::Storage(e.to_string()))?;
    threads::checkpoint(shared, true).map_err(|e| NodeError::Storage(e.to_string()))?;
    info!(commit = %commit, "stopped");
    Ok(())
}

struct Acceptor {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    connections: Arc<AtomicUsize>,
    connections_max: usize,
    limits: kahawai_stomp::Limits,
    numbers: Arc<AtomicU64>,
    start_ms: i64,
}

/// Counts a connection for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn accept(acceptor: Acceptor) {
    loop {
        let (stream, peer) = match acceptor.listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: others have to end first.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let before = acceptor.connections.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(Arc::clone(&acceptor.connections));
        if before >= acceptor.connections_max {
            warn!(%peer, limit = acceptor.connections_max, "connection refused: too many");
            continue;
        }
        // A small receipt must not wait for a bigger packet: 40 ms at the tail otherwise.
        if let Err(error) = stream.set_nodelay(true) {
            warn!(%peer, %error, "TCP_NODELAY refused");
        }
        let number = acceptor.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let port = acceptor.listener.local_addr().map_or(0, |address| address.port());
        let id = format!("ID:kahawai-{port}-{}-2:{number}", acceptor.start_ms);
        let mut options = ConnectionOptions::new(id);
        options.limits = acceptor.limits;
        let shared = Arc::clone(&acceptor.shared);
        let tls = acceptor.tls.clone();
        tokio::spawn(async move {
            let _counted = counted;
            serve_stream(stream, tls, peer, options, shared).await;
        });
    }
}

async fn serve_stream(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    peer: SocketAddr,
    options: ConnectionOptions,
    shared: Arc<Shared>,
) {
    let peer = peer.to_string();
    let Some(tls) = tls else {
        return serve(stream, peer, options, shared).await;
    };
    match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => serve(stream, peer, options, shared).await,
        Ok(Err(error)) => warn!(%peer, %error, "TLS handshake refused"),
        Err(_) => warn!(%peer, "TLS handshake took too long"),
    }
}
