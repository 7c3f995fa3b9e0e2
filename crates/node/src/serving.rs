//! A broker at work on an open store: threads, client listeners, and the order in which they end.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use kahawai_broker::Broker;
use kahawai_env::{Clock, Files};
use kahawai_journal::{Preparer, Writer};
use kahawai_message::storage::{Storage, StorageError};
use kahawai_stomp::ConnectionOptions;
use kahawai_store::Store;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::ahead::plain;
use crate::connection::serve;
use crate::core::{Errand, Shared};
use crate::node::NodeError;
use crate::threads::{self, Copies};
use crate::tls::acceptor;

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

impl StompListener {
    /// Where clients find it, as far as that can be said before it is bound.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "stomp+ssl" } else { "stomp" }, self.address)
    }
}

/// A connector that is open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listening {
    /// `stomp`, `stomp+ssl`, ….
    pub name: &'static str,
    /// Where.
    pub address: SocketAddr,
}

/// A bound socket, before anybody is served.
pub(crate) struct Bound {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
    pub(crate) listening: Listening,
}

/// Binds the client listeners.
pub(crate) async fn bind(listeners: &[StompListener]) -> Result<Vec<Bound>, NodeError> {
    let mut bound = Vec::with_capacity(listeners.len());
    for listener in listeners {
        let tls = listener.tls.as_ref().map(|(certificates, key)| acceptor(certificates, key)).transpose()?;
        let listen = |source| NodeError::Listen { address: listener.address.clone(), source };
        let socket = TcpListener::bind(&listener.address).await.map_err(listen)?;
        let name = if tls.is_some() { "stomp+ssl" } else { "stomp" };
        let listening = Listening { name, address: socket.local_addr().map_err(listen)? };
        bound.push(Bound { socket, tls, listening });
    }
    Ok(bound)
}

/// What client connections get.
#[derive(Clone)]
pub(crate) struct ClientLimits {
    /// At most so many connections.
    pub(crate) connections_max: usize,
    /// What one STOMP frame may be.
    pub(crate) stomp: kahawai_stomp::Limits,
}

/// The parts of a broker before its threads run.
pub(crate) struct Parts {
    pub(crate) shared: Arc<Shared>,
    errands: mpsc::Receiver<Errand>,
}

impl Parts {
    /// Puts broker and store together.
    pub(crate) fn new(broker: Broker, store: Store, files: Arc<dyn Files>, clock: Arc<dyn Clock>) -> Self {
        let (shared, errands) = Shared::new(broker, store, files, clock);
        Self { shared, errands }
    }
}

/// A broker at work.
pub(crate) struct Serving {
    pub(crate) shared: Arc<Shared>,
    pub(crate) connections: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
    upkeep: JoinHandle<()>,
    accepting: Vec<tokio::task::JoinHandle<()>>,
}

impl Serving {
    /// Starts the threads. Nobody is served yet.
    pub(crate) fn start(
        parts: Parts,
        writer: Writer,
        alone: Option<(Preparer, u64)>,
        copies: impl Copies + 'static,
        may_collect: impl Fn() -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let Parts { shared, errands } = parts;
        let mut running = vec![
            threads::journal(&shared, writer, copies)?,
            threads::applier(&shared)?,
            threads::errands(&shared, errands)?,
        ];
        if let Some((preparer, scrub_bytes_per_s)) = alone {
            running.push(threads::preparer(&shared, preparer)?);
            running.push(threads::scrubber(&shared, scrub_bytes_per_s)?);
        }
        let upkeep = threads::upkeep(&shared, may_collect)?;
        Ok(Self { shared, connections: Arc::default(), threads: running, upkeep, accepting: Vec::new() })
    }

    /// Serves clients from now on.
    pub(crate) fn accept(&mut self, bound: Vec<Bound>, limits: &ClientLimits) {
        let numbers = Arc::new(AtomicU64::new(0));
        let start_ms = self.shared.now();
        for one in bound {
            self.accepting.push(tokio::spawn(accept(Acceptor {
                listener: one.socket,
                tls: one.tls,
                shared: Arc::clone(&self.shared),
                connections: Arc::clone(&self.connections),
                limits: limits.clone(),
                numbers: Arc::clone(&numbers),
                start_ms,
            })));
        }
    }

    /// Closes the listeners and drops the clients: who waits for an answer gets none.
    pub(crate) async fn dismiss(&mut self) {
        for task in self.accepting.drain(..) {
            task.abort();
            // Its port is free when it has ended.
            let _ = task.await;
        }
        self.shared.stop();
        let patience = tokio::time::Instant::now() + STOP;
        while self.connections.load(Ordering::Acquire) > 0 && tokio::time::Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends in good order: what was confirmed is durable, the index is written as far as it may be.
    pub(crate) async fn stop(mut self) -> Result<(), NodeError> {
        self.dismiss().await;
        // Joining threads blocks, and so does the last checkpoint.
        let ended =
            tokio::task::spawn_blocking(move || finish(&self.shared, self.threads, self.upkeep)).await;
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
        Ok::<_, StorageError>(core.store.applied() == core.store.appended_end())
    });
    let clean = applied.map_err(|e| NodeError::Storage(e.to_string()))?;
    if shared.is_settled() {
        threads::checkpoint(shared, clean).map_err(|e| NodeError::Storage(e.to_string()))?;
    }
    info!(commit = %commit, "stopped");
    Ok(())
}

struct Acceptor {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    connections: Arc<AtomicUsize>,
    limits: ClientLimits,
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
        if before >= acceptor.limits.connections_max {
            warn!(%peer, limit = acceptor.limits.connections_max, "connection refused: too many");
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
        options.limits = acceptor.limits.stomp;
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
        let (stream, socket) = plain(stream);
        return serve(stream, Some(socket), peer, options, shared).await;
    };
    match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => serve(stream, None, peer, options, shared).await,
        Ok(Err(error)) => warn!(%peer, %error, "TLS handshake refused"),
        Err(_) => warn!(%peer, "TLS handshake took too long"),
    }
}
