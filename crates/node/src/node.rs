//! Starting and stopping a broker that runs alone.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kahawai_admin::{CommandError, CommandErrorKind, CommandFuture, Control};
use kahawai_admin_api::{BrokerStatus, ClusterCommand, Connector, Member, Role, Status, StoredRecord};
use kahawai_broker::Broker;
use kahawai_env::{Clock, DiskFiles, Entropy, Files, Lock, OsEntropy, SystemClock};
use kahawai_store::{OpenOptions, Report};
use tracing::{info, warn};

use crate::cluster::status::{journal, work};
use crate::core::Shared;
use crate::serving::{Bound, ClientLimits, Listening, Parts, Serving, StompListener, bind};
use crate::threads::NoCopies;
use crate::tls::TlsError;

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
    /// Older data files are read at this rate, once a day, to find damage; 0 = never.
    pub scrub_bytes_per_s: u64,
}

/// See [`NodeOptions::scrub_bytes_per_s`].
const SCRUB_BYTES_PER_S: u64 = 4 << 20;

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
            scrub_bytes_per_s: SCRUB_BYTES_PER_S,
        }
    }

    pub(crate) fn client_limits(&self) -> ClientLimits {
        ClientLimits { connections_max: self.connections_max, stomp: self.stomp_limits }
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
    /// The election service cannot be used.
    #[error("the election service: {0}")]
    Election(String),
    /// Anybody could read the journal.
    #[error(
        "{address} is not on the loopback interface and nothing protects it: give --kdbr-tls-cert, --kdbr-tls-key and \
         --kdbr-tls-ca, or at least --kdbr-secret-file, or say --kdbr-insecure if the network may be trusted"
    )]
    Insecure {
        /// The replication listener's address.
        address: String,
    },
    /// Storage failed while the node ran: nothing was confirmed after that.
    #[error("storage failed, nothing was confirmed any more: {0}")]
    Storage(String),
}

/// The data directory, locked: nobody else may touch it while this lives.
pub(crate) struct Directory {
    pub(crate) files: Arc<dyn Files>,
    _lock: Box<dyn Lock>,
}

impl Directory {
    pub(crate) fn lock(path: &std::path::Path, now_ms: i64) -> Result<Self, NodeError> {
        let name = path.display().to_string();
        let directory = |source| NodeError::Directory { path: name.clone(), source };
        let files: Arc<dyn Files> = Arc::new(DiskFiles::open(path).map_err(directory)?);
        let lock =
            files.lock("lock", now_ms).map_err(directory)?.ok_or(NodeError::Locked { path: name.clone() })?;
        Ok(Self { files, _lock: lock })
    }
}

/// A broker that runs alone.
pub struct Node {
    serving: Serving,
    bound: Vec<Bound>,
    /// What is open, for whoever started the node.
    pub listening: Vec<Listening>,
    /// What was found in the data directory.
    pub report: Report,
    options: NodeOptions,
    directory: Directory,
    member: Member,
    started_ms: i64,
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
        let start_ms = clock.now_ms();
        let directory = Directory::lock(&options.data, start_ms)?;
        // Addresses before recovery: a mistake in them should not cost a replay.
        let bound = bind(&options.stomp).await?;
        let opened = kahawai_store::open(&directory.files, entropy, &options.store)?;
        let mut store = opened.store;
        let mut broker = Broker::new(options.broker.clone());
        broker.recover(start_ms, &mut store).map_err(|e| NodeError::Recover(e.to_string()))?;
        let parts = Parts::new(broker, store, Arc::clone(&directory.files), clock);
        let copies = NoCopies::new(Arc::clone(&parts.shared));
        let serving = Serving::start(
            parts,
            opened.writer,
            Some((opened.preparer, options.scrub_bytes_per_s)),
            copies,
            || true,
        )
        .map_err(NodeError::Thread)?;
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
        let listening = bound.iter().map(|one| one.listening.clone()).collect();
        let member =
            Member { node: opened.identity.node_id.to_string(), store: opened.identity.store_id.to_string() };
        Ok(Self { serving, bound, listening, report, options, directory, member, started_ms: start_ms })
    }

    /// For the admin API.
    pub fn control(&self) -> Arc<dyn Control> {
        Arc::new(SingleControl {
            shared: Arc::clone(&self.serving.shared),
            connections: Arc::clone(&self.serving.connections),
            listening: self.listening.clone(),
            member: self.member.clone(),
            epoch: self.report.epoch.0,
            started_ms: self.started_ms,
        })
    }

    /// Serves clients until `stop` ends, then stops in good order: what was confirmed is durable, the index is written, the
    /// next start replays nothing.
    ///
    /// # Errors
    /// Storage failed; the process should end with a failure.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        self.serving.accept(self.bound, &self.options.client_limits());
        let shared = Arc::clone(&self.serving.shared);
        tokio::select! {
            () = stop => info!("stopping"),
            () = shared.failed() => {}
        }
        let ended = self.serving.stop().await;
        drop(self.directory);
        ended
    }
}

/// A node that runs alone, as its admin API sees it.
struct SingleControl {
    shared: Arc<Shared>,
    connections: Arc<AtomicUsize>,
    listening: Vec<Listening>,
    member: Member,
    epoch: u64,
    started_ms: i64,
}

fn runs_alone() -> CommandError {
    CommandError::new(CommandErrorKind::Refused, "this node runs alone")
        .advise("start it with --cluster, or with an ha.xml")
}

impl Control for SingleControl {
    fn status(&self) -> Status {
        let commit = self.shared.commit.position();
        let mut status = Status {
            node_id: self.member.node.clone(),
            store_id: self.member.store.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: self.started_ms,
            now_ms: self.shared.now(),
            role: Role::Single,
            state: self
                .shared
                .failure()
                .map_or_else(|| "serving".into(), |reason| format!("storage failed: {reason}")),
            epoch: self.epoch,
            durable: commit,
            commit,
            in_sync: vec![self.member.clone()],
            accepting: !self.listening.is_empty(),
            broker: BrokerStatus {
                connections: self.connections.load(Ordering::Relaxed) as u64,
                ..BrokerStatus::default()
            },
            ..Status::default()
        };
        let connectors = self.listening.iter();
        status.connectors = connectors
            .map(|one| Connector { name: one.name.to_owned(), address: one.address.to_string() })
            .collect();
        let (now, commit) = (self.shared.now(), self.shared.commit.position());
        let written = self.shared.with(|core| {
            core.catch_up(now, commit);
            status.end = kahawai_message::storage::Storage::appended_end(&core.store);
            status.applied = core.store.applied();
            work(core, &mut status);
            core.store.journal().clone()
        });
        status.journal = journal(&written);
        status
    }

    fn stored_record(&self) -> Result<StoredRecord, CommandError> {
        Err(runs_alone())
    }

    fn command(&self, _command: ClusterCommand) -> CommandFuture {
        Box::pin(std::future::ready(Err(runs_alone())))
    }
}
