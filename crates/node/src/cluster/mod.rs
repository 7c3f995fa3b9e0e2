//! A node of a cluster: follows, leads, and changes between the two.
//!
//! ```text
//!           open the store as a Follower <------------------------------+
//!                     |                                                 |
//!   Follow --> session with the primary --(cut / install)--> closed store
//!                     |                                                 |
//!   Lead ----> promote in place --> reign --> StepDown ------- close ---+
//! ```
//!
//! One task does all of this in order, so there is no moment at which the node is two things. The election task, the `kdbr`
//! listener and the status page live as long as the process; they see the present role through [`Stage`].

mod bulk;
mod copying;
mod electing;
mod feeding;
mod following;
mod mending;
mod net;
mod peer_tls;
mod reign;
pub(crate) mod status;
mod vitals;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kahawai_broker::Broker;
use kahawai_election::{
    ClusterRecord, Condition, Elector, Event, Local, PrimaryRef, Provider, Refusal, Request, Settings,
    StepDownReason,
};
use kahawai_env::{Clock, Files, OsEntropy, SystemClock};
use kahawai_journal::NewEpoch;
use kahawai_kdbr::{ErrorCode, ErrorFrame, Role};
use kahawai_replication::{PrimaryEvent, Timing};
use kahawai_store::{Follower, Identity, OpenOptions, StoreState};
use kahawai_types::{Epoch, Lsn, NodeId, ReplicaId};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use self::bulk::{BulkOptions, BulkSink, BulkSource};
use self::copying::{Copying, Ended};
use self::electing::{Decision, Election};
use self::feeding::Feeding;
use self::following::{Following, FollowingRest, FollowingThreads};
use self::mending::Mending;
use self::net::Credentials;
pub use self::peer_tls::{PeerTls, PeerTlsFiles, Protection};
use self::reign::{Beginning, Reign, ReignCopies, Wanted};
use crate::core::unpoisoned;
use crate::node::{Directory, NodeError, NodeOptions};
use crate::serving::{Bound, Listening, Parts, Serving, bind};

/// How often the gate learns of a renewed grant.
const TICK: Duration = Duration::from_millis(20);
/// Before the next attempt to reach a primary.
const REDIAL: Duration = Duration::from_millis(100);
/// Before the next attempt at a primary that refuses this store.
const REDIAL_REFUSED: Duration = Duration::from_secs(5);
/// How long a planned stop or switchover waits until everything is confirmed.
const SETTLE: Duration = Duration::from_secs(5);
/// Connections to the `kdbr` port that have not said who they are.
const STRANGERS_MAX: usize = 64;
/// Milliseconds in which the record is told of a changed store.
const LOCAL: Duration = Duration::from_millis(250);

/// Opens the connection to the election service for a process.
pub type OpenProvider = Box<dyn FnOnce(kahawai_types::BootId) -> Result<Arc<dyn Provider>, String> + Send>;

/// How a node takes part in a cluster.
pub struct ClusterOptions {
    /// Its name; stable.
    pub node_id: NodeId,
    /// Makes the connection to the election service, once the store's identity is known.
    pub provider: OpenProvider,
    /// What the provider is called in status and logs.
    pub provider_name: String,
    /// Where replicas connect, `host:port`.
    pub listen: String,
    /// What other nodes dial, `kdbr://host:port`; `None` = where it listens.
    pub address: Option<String>,
    /// Copies besides the primary's own without which nothing persistent is confirmed. Seeds a new cluster's record.
    pub minimum_replicas: u32,
    /// Among equal logs the higher one leads.
    pub priority: i32,
    /// What keeps strangers out.
    pub protection: Protection,
    /// Plaintext beyond the loopback interface is meant.
    pub insecure: bool,
    /// Transfer connections of a synchronisation.
    pub transfer_sessions: u32,
    /// Bytes per second that synchronisations may take; 0 = no limit.
    pub sync_bytes_per_s: u64,
}

/// What the node is at the moment.
enum Present {
    /// The store is closed, or about to be.
    Between(String),
    /// It follows.
    Following {
        following: Arc<Following>,
        bulk: Arc<BulkSink>,
        session: Arc<Mutex<String>>,
        primary: Option<PrimaryRef>,
    },
    /// It leads.
    Leading { reign: Arc<Reign>, feeding: Arc<Feeding>, connections: Arc<AtomicUsize> },
}

/// What everything that outlives a role shares.
struct Stage {
    present: Mutex<Present>,
    identity: Arc<Mutex<Identity>>,
    election: Election,
    clock: Arc<dyn Clock>,
    bulk: Arc<BulkSource>,
    /// Held by who works with what a synchronisation has received.
    receiving: Arc<Mutex<()>>,
    kdbr: String,
    node: NodeOptions,
    provider_name: String,
    started_ms: i64,
    listening: Mutex<Vec<Listening>>,
    suspended: Mutex<Option<(i64, String)>>,
    changes: Mutex<Vec<(i64, Epoch, &'static str, String)>>,
    commands: mpsc::UnboundedSender<Command>,
}

/// What operators ask of the task that runs the node.
enum Command {
    /// Let somebody else lead.
    StepDown { successor: Option<NodeId>, done: Done },
}

impl Stage {
    fn identity(&self) -> MutexGuard<'_, Identity> {
        unpoisoned(&self.identity)
    }

    fn me(&self) -> ReplicaId {
        let identity = self.identity();
        ReplicaId { node: identity.node_id.clone(), store: identity.store_id }
    }

    fn is(&self, present: Present) {
        *unpoisoned(&self.present) = present;
    }

    fn changed(&self, epoch: Epoch, role: &'static str, reason: &str) {
        info!(role, epoch = epoch.0, reason, "role");
        let mut changes = unpoisoned(&self.changes);
        changes.push((self.clock.now_ms(), epoch, role, reason.to_owned()));
        let surplus = changes.len().saturating_sub(CHANGES_MAX);
        changes.drain(..surplus);
    }
}

/// Changes of role that are remembered.
const CHANGES_MAX: usize = 32;

/// Why following ended.
enum FollowEnd {
    Lead { epoch: Epoch, record: Box<ClusterRecord>, unclean: bool },
    Reopen(Ended),
    Stop,
}

/// Why leading ended.
enum LeadEnd {
    Deposed(String),
    Stop,
}

/// A node of a cluster.
pub struct ClusterNode {
    stage: Arc<Stage>,
    directory: Directory,
    decisions: mpsc::UnboundedReceiver<Decision>,
    commands: mpsc::UnboundedReceiver<Command>,
    kdbr: TcpListener,
    options: Running,
    runtime: ElectionRuntime,
    /// The `kdbr` address that it listens on.
    pub listening: SocketAddr,
}

/// A thread of its own for the election service: connection tasks that wait for the core's lock, all of them at once, must not
/// keep the grant from being renewed.
struct ElectionRuntime(Option<tokio::runtime::Runtime>);

impl ElectionRuntime {
    fn start() -> std::io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("kahawai-election").enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    fn handle(&self) -> tokio::runtime::Handle {
        // Taken by the drop alone.
        self.0.as_ref().map_or_else(tokio::runtime::Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for ElectionRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting for its tasks is not allowed here, and nothing is left for them to do.
            runtime.shutdown_background();
        }
    }
}

/// What is left of the options when it runs.
struct Running {
    node_id: NodeId,
    protection: Protection,
    transfer_sessions: u32,
    timing: Timing,
    said: Box<dyn FnMut(&Said) + Send + Sync>,
}

/// For whoever started the node.
pub enum Said<'a> {
    /// It follows, or waits for somebody to follow.
    Replica,
    /// It leads, and these connectors are open.
    Ready(&'a [Listening]),
}

impl ClusterNode {
    /// Locks the data directory, opens the `kdbr` listener and the connection to the election service.
    ///
    /// # Errors
    /// See [`NodeError`]; nothing keeps running after one.
    pub async fn start(
        options: ClusterOptions,
        mut node: NodeOptions,
        said: impl FnMut(&Said) + Send + Sync + 'static,
    ) -> Result<Self, NodeError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let started_ms = clock.now_ms();
        let directory = Directory::lock(&node.data, started_ms)?;
        let listen = |source| NodeError::Listen { address: options.listen.clone(), source };
        let kdbr = TcpListener::bind(&options.listen).await.map_err(listen)?;
        let listening = kdbr.local_addr().map_err(listen)?;
        if !listening.ip().is_loopback() && options.protection.is_none() && !options.insecure {
            return Err(NodeError::Insecure { address: listening.to_string() });
        }
        let address = options.address.clone().unwrap_or_else(|| format!("kdbr://{listening}"));
        node.store.node_id = options.node_id.clone();
        let identity = Identity::open_as(&directory.files, &OsEntropy, &options.node_id)
            .map_err(kahawai_store::OpenError::from)?;
        let runtime = ElectionRuntime::start().map_err(NodeError::Thread)?;
        let handle = runtime.handle();
        let inside = handle.enter();
        let provider = (options.provider)(identity.boot_id).map_err(NodeError::Election)?;
        let timing = Timing { file_bytes_max: node.store.journal.file_bytes_max, ..Timing::default() };
        let saved = kahawai_store::load_record(&directory.files).map_err(kahawai_store::OpenError::from)?;
        let saved = saved.and_then(|bytes| ClusterRecord::decode(&bytes).ok());
        let me = ReplicaId { node: identity.node_id.clone(), store: identity.store_id };
        let clients = node.stomp.iter().map(|listener| listener.url()).collect();
        let settings = Settings {
            me,
            boot: identity.boot_id,
            address: address.clone(),
            clients,
            priority: options.priority,
            minimum_replicas: options.minimum_replicas,
            timing: kahawai_election::Timing::default(),
        };
        let names = directory.files.list("");
        let names =
            names.map_err(|source| NodeError::Directory { path: node.data.display().to_string(), source })?;
        let local = Local {
            cluster_id: identity.cluster_id,
            promised: identity.promised_epoch,
            last_epoch: Epoch(0),
            end: Lsn::ZERO,
            // Who has nothing takes whatever cluster it finds.
            journal_is_empty: !names.iter().any(|name| kahawai_journal::data_file_id(name).is_some()),
            // Until the store is open.
            condition: Condition::Syncing,
        };
        let elector = Elector::new(settings, local, saved.as_ref());
        let files = Arc::clone(&directory.files);
        let save = Box::new(move |bytes: Vec<u8>| {
            kahawai_store::save_record(&files, &bytes).map_err(|e| crate::chain(&e))
        });
        let (election, decisions) = electing::start(provider, elector, save, Arc::clone(&clock));
        drop(inside);
        let bulk = BulkSource::new(
            Arc::clone(&directory.files),
            BulkOptions { sessions: options.transfer_sessions, bytes_per_s: options.sync_bytes_per_s },
            Arc::clone(&clock),
        );
        let (command, commands) = mpsc::unbounded_channel();
        let stage = Arc::new(Stage {
            present: Mutex::new(Present::Between("opening the store".into())),
            identity: Arc::new(Mutex::new(identity)),
            election,
            clock,
            bulk,
            receiving: Arc::default(),
            kdbr: address,
            node,
            provider_name: options.provider_name,
            started_ms,
            listening: Mutex::default(),
            suspended: Mutex::default(),
            changes: Mutex::default(),
            commands: command,
        });
        let running = Running {
            node_id: options.node_id,
            protection: options.protection,
            transfer_sessions: options.transfer_sessions,
            timing,
            said: Box::new(said),
        };
        Ok(Self { stage, directory, decisions, commands, kdbr, options: running, runtime, listening })
    }

    /// For the admin API.
    pub fn control(&self) -> Arc<dyn kahawai_admin::Control> {
        Arc::new(status::NodeControl::new(Arc::clone(&self.stage), Arc::clone(&self.directory.files)))
    }

    /// Takes part until `stop` ends, then leaves in good order: a primary lets another node take over first.
    ///
    /// # Errors
    /// Storage failed, or the store cannot be opened; the process should end with a failure.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        let Self { stage, directory, decisions, commands, kdbr, options, runtime, .. } = self;
        let acceptor = tokio::spawn(accept(kdbr, Arc::clone(&stage), options.protection.clone()));
        let mut run = Run {
            files: Arc::clone(&directory.files),
            stage,
            decisions,
            commands,
            options,
            pending: None,
            primary: None,
            led_before: None,
            is_stopping: false,
        };
        let ended = run.run(stop).await;
        acceptor.abort();
        // Whatever the reason: nobody has to wait until the session expires.
        run.stage.election.leave().await;
        drop(run);
        drop(runtime);
        drop(directory);
        ended
    }
}

/// Takes `kdbr` connections, whatever the role.
async fn accept(listener: TcpListener, stage: Arc<Stage>, protection: Protection) {
    let strangers = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept a kdbr connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if strangers.fetch_add(1, Ordering::AcqRel) >= STRANGERS_MAX {
            strangers.fetch_sub(1, Ordering::AcqRel);
            warn!(%peer, limit = STRANGERS_MAX, "kdbr connection refused: too many are in their handshake");
            continue;
        }
        let (stage, protection, strangers) = (Arc::clone(&stage), protection.clone(), Arc::clone(&strangers));
        tokio::spawn(async move {
            let credentials = credentials(&stage, protection, true);
            let promised = stage.identity().promised_epoch;
            let leading = match &*unpoisoned(&stage.present) {
                Present::Leading { reign, feeding, .. } => Some((Arc::clone(reign), Arc::clone(feeding))),
                _ => None,
            };
            let epoch = leading.as_ref().map_or(promised, |(reign, _)| reign.epoch);
            let shaken = net::accept(stream, &credentials, epoch).await;
            strangers.fetch_sub(1, Ordering::AcqRel);
            let mut connected = match shaken {
                Ok(connected) => connected,
                Err(problem) => return warn!(%peer, %problem, "kdbr connection refused"),
            };
            let Some((reign, feeding)) = leading else {
                let journal = match &*unpoisoned(&stage.present) {
                    Present::Following { following, .. } => following.with(|follower| follower.reader()),
                    _ => None,
                };
                if let (Role::Transfer, Some(journal)) = (connected.role, journal) {
                    return stage.bulk.serve_repairs(connected, journal).await;
                }
                let primary = stage.election.view().record.and_then(|record| record.primary);
                let mut refusal = ErrorFrame::new(ErrorCode::NotMaster, "this node does not lead");
                refusal.primary = primary.map(|primary| primary.address);
                return connected.writer.refuse(refusal).await;
            };
            match connected.role {
                Role::Stream => feeding::serve(connected, feeding).await,
                Role::Transfer => feeding.bulk.serve(connected, reign).await,
            }
        });
    }
}

fn credentials(stage: &Stage, protection: Protection, accepts: bool) -> Credentials {
    let identity = stage.identity();
    let known = identity.has_joined() || accepts;
    Credentials {
        cluster_id: known.then_some(identity.cluster_id),
        replica: ReplicaId { node: identity.node_id.clone(), store: identity.store_id },
        boot: identity.boot_id,
        protection,
    }
}

struct Run {
    files: Arc<dyn Files>,
    stage: Arc<Stage>,
    decisions: mpsc::UnboundedReceiver<Decision>,
    commands: mpsc::UnboundedReceiver<Command>,
    options: Running,
    /// A decision that came while the store was closed.
    pending: Option<Decision>,
    primary: Option<PrimaryRef>,
    /// Who led last, as far as we know.
    led_before: Option<PrimaryRef>,
    is_stopping: bool,
}

/// An open store that follows.
struct Opened {
    threads: FollowingThreads,
    copying: Copying,
}

impl Run {
    async fn run(&mut self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        tokio::pin!(stop);
        let mut known_commit = Lsn::ZERO;
        loop {
            self.finish_installation().await?;
            let opened = self.open(known_commit).await?;
            (self.options.said)(&Said::Replica);
            let mut opened = Some(opened);
            let end = self.follow(&mut opened, stop.as_mut()).await?;
            let Some(Opened { threads, copying }) = opened else { return Ok(()) };
            known_commit = threads.following.committed().min(threads.following.durable());
            self.stage.is(Present::Between("changing its role".into()));
            let closing = spawn_blocking(move || threads.end()).await.map_err(joined)?;
            let (follower, writer, rest) = closing.map_err(NodeError::Storage)?;
            match end {
                FollowEnd::Lead { epoch, record, unclean } => {
                    drop(copying);
                    let led = self.lead(follower, writer, rest, epoch, *record, unclean, stop.as_mut()).await;
                    self.stage.is(Present::Between("closing the store".into()));
                    unpoisoned(&self.stage.suspended).take();
                    match led? {
                        (LeadEnd::Stop, _) => return Ok(()),
                        (LeadEnd::Deposed(reason), commit) => {
                            self.stage.changed(epoch, "replica", &reason);
                            known_commit = commit;
                        }
                    }
                }
                FollowEnd::Stop => {
                    close(follower, rest).await?;
                    return Ok(());
                }
                FollowEnd::Reopen(ended) => {
                    close(follower, rest).await?;
                    drop(writer);
                    if let Ended::Truncate { to, .. } = &ended {
                        known_commit = known_commit.min(*to);
                    }
                    self.change(ended).await?;
                }
            }
        }
    }

    /// What a closed store was closed for.
    async fn change(&mut self, ended: Ended) -> Result<(), NodeError> {
        let files = Arc::clone(&self.files);
        match ended {
            Ended::Truncate { to, chain, unclean } => {
                let cut = spawn_blocking(move || kahawai_store::truncate(&files, to, Some(chain), unclean));
                match cut.await.map_err(joined)? {
                    Ok(cut) => {
                        let saved = cut.saved_as.join(", ");
                        info!(%to, bytes = cut.dropped_bytes, saved, unclean, "what the primary does not have was cut off");
                    }
                    Err(problem) => {
                        let problem = crate::chain(&problem);
                        error!(%problem, "this journal cannot be brought together with the primary's");
                        tokio::time::sleep(REDIAL_REFUSED).await;
                    }
                }
            }
            Ended::Install(manifest, epochs) => {
                self.set_state(StoreState::Syncing).await?;
                let keep = Arc::clone(&files);
                spawn_blocking(move || kahawai_shipping::keep_manifest(&keep, &manifest))
                    .await
                    .map_err(joined)?
                    .map_err(|e| NodeError::Storage(e.to_string()))?;
                self.install(epochs).await?;
            }
            Ended::Lost | Ended::Later(_) | Ended::Refused(_) => {}
        }
        Ok(())
    }

    async fn set_state(&self, state: StoreState) -> Result<(), NodeError> {
        let (identity, files) = (Arc::clone(&self.stage.identity), Arc::clone(&self.files));
        let set = spawn_blocking(move || unpoisoned(&identity).set_state(&files, state));
        set.await.map_err(joined)?.map_err(|e| NodeError::Open(e.into()))
    }

    /// A process that ended while it installed files goes on with that before anything else.
    async fn finish_installation(&mut self) -> Result<(), NodeError> {
        if self.stage.identity().state == StoreState::Syncing {
            self.install(Vec::new()).await?;
        }
        Ok(())
    }

    async fn install(&self, epochs: Vec<kahawai_journal::EpochStart>) -> Result<(), NodeError> {
        let files = Arc::clone(&self.files);
        let installing = spawn_blocking(move || kahawai_shipping::install(&files, &epochs));
        if let Some((_, installed)) = installing.await.map_err(joined)?.map_err(NodeError::Storage)? {
            info!(
                installed = installed.installed.len(),
                removed = installed.removed.len(),
                "the primary's files are in place"
            );
        }
        self.set_state(StoreState::Clean).await
    }

    async fn open(&mut self, known_commit: Lsn) -> Result<Opened, NodeError> {
        self.stage.is(Present::Between("opening the store".into()));
        let (files, options) = (Arc::clone(&self.files), self.stage.node.store.clone());
        let options = OpenOptions { node_id: self.options.node_id.clone(), ..options };
        let opening = spawn_blocking(move || Follower::open(&files, &OsEntropy, &options, known_commit));
        let opened = opening.await.map_err(joined)?.map_err(NodeError::Open)?;
        let report = &opened.report;
        info!(
            epoch = report.epoch.0,
            end = %report.recovery.end,
            applied = %opened.follower.applied(),
            index = ?report.index,
            records = report.records,
            "store opened"
        );
        let commit = opened.follower.committed();
        let reader = opened.follower.reader();
        let bulk = Arc::clone(&self.stage.bulk);
        let (found, findings) = mpsc::unbounded_channel();
        let mending = Mending {
            stage: Arc::clone(&self.stage),
            files: Arc::clone(&self.files),
            journal: opened.follower.journal().clone(),
            protection: self.options.protection.clone(),
        };
        let threads = FollowingThreads::start(
            opened.follower,
            opened.writer,
            opened.preparer,
            commit,
            Arc::clone(&self.stage.clock),
            move || bulk.may_collect(),
            (self.stage.node.scrub_bytes_per_s, found),
        )
        .map_err(NodeError::Thread)?;
        tokio::spawn(mending.run(findings));
        let sink = BulkSink::new(
            Arc::clone(&self.files),
            Arc::clone(&self.stage.clock),
            reader,
            self.options.transfer_sessions,
            Arc::clone(&self.stage.receiving),
        );
        let copying = Copying {
            files: Arc::clone(&self.files),
            clock: Arc::clone(&self.stage.clock),
            identity: Arc::clone(&self.stage.identity),
            protection: self.options.protection.clone(),
            address: self.stage.kdbr.clone(),
            clients: self.stage.node.stomp.iter().map(|listener| listener.url()).collect(),
            timing: self.options.timing,
            bulk: sink,
            state: Arc::default(),
            trouble: Mutex::default(),
            unfetched: Default::default(),
        };
        Ok(Opened { threads, copying })
    }

    fn local(&self, following: &Following, epoch: Epoch) -> Local {
        let identity = self.stage.identity();
        let end = following.durable();
        Local {
            cluster_id: identity.cluster_id,
            promised: identity.promised_epoch,
            last_epoch: epoch,
            end,
            journal_is_empty: epoch.0 == 0 && end.offset() == 0 && end.file() <= 1,
            condition: Condition::Usable,
        }
    }

    fn last_epoch(following: &Following) -> Epoch {
        // Of the newest batch; kept by the journal.
        following.with(|follower| follower.journal().last_epoch()).unwrap_or_default()
    }

    async fn follow(
        &mut self,
        opened: &mut Option<Opened>,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<FollowEnd, NodeError> {
        let Some(Opened { threads, copying }) = opened else { return Ok(FollowEnd::Stop) };
        let following = Arc::clone(&threads.following);
        let local = self.local(&following, Self::last_epoch(&following));
        self.stage.election.tell(Event::SteppedDown(local.clone()));
        self.stage.election.tell(Event::Local(local));
        let mut tell = tokio::time::interval(LOCAL);
        loop {
            self.stage.is(Present::Following {
                following: Arc::clone(&following),
                bulk: Arc::clone(&copying.bulk),
                session: Arc::clone(&copying.state),
                primary: self.primary.clone(),
            });
            let primary = self.primary.clone().filter(|primary| primary.node != self.options.node_id);
            let session = async {
                match &primary {
                    None => std::future::pending().await,
                    Some(primary) => {
                        let ended = copying.session(&primary.address, threads).await;
                        let wait = match &ended {
                            Ended::Refused(reason) => {
                                error!(%reason, "this store is not taken as a replica");
                                REDIAL_REFUSED
                            }
                            Ended::Later(wait) => *wait,
                            _ => REDIAL,
                        };
                        if matches!(ended, Ended::Lost | Ended::Later(_) | Ended::Refused(_)) {
                            tokio::time::sleep(wait).await;
                        }
                        ended
                    }
                }
            };
            tokio::pin!(session);
            loop {
                if let Some(decision) = self.pending.take() {
                    match decision {
                        Decision::Lead { epoch, record, unclean } => {
                            return Ok(FollowEnd::Lead { epoch, record, unclean });
                        }
                        Decision::Follow { primary } => {
                            if primary != self.primary {
                                self.follows(primary);
                                break;
                            }
                        }
                        Decision::StepDown(_) => {
                            let local = self.local(&following, Self::last_epoch(&following));
                            self.stage.election.tell(Event::SteppedDown(local));
                        }
                        Decision::Changed(_) => {}
                        Decision::StorageFailed(reason) => return Err(NodeError::Storage(reason)),
                    }
                }
                tokio::select! {
                    biased;
                    () = following.failed() => {
                        self.stage.election.tell(Event::StorageFailed);
                        let reason = following.failure().unwrap_or_default();
                        return Err(NodeError::Storage(reason));
                    }
                    () = stop.as_mut() => return Ok(FollowEnd::Stop),
                    decision = self.decisions.recv() => match decision {
                        Some(decision) => self.pending = Some(decision),
                        None => return Err(NodeError::Election("the election task has ended".into())),
                    },
                    Some(command) = self.commands.recv() => match command {
                        Command::StepDown { done, .. } => {
                            let _ = done.send(Err("this node does not lead".into()));
                        }
                    },
                    _ = tell.tick() => {
                        let local = self.local(&following, Self::last_epoch(&following));
                        self.stage.election.tell(Event::Local(local));
                    }
                    ended = &mut session => match ended {
                        Ended::Lost | Ended::Later(_) | Ended::Refused(_) => break,
                        ended => return Ok(FollowEnd::Reopen(ended)),
                    },
                }
            }
        }
    }

    fn follows(&mut self, primary: Option<PrimaryRef>) {
        if primary.is_some() {
            self.led_before.clone_from(&primary);
        }
        self.primary = primary;
    }

    /// Leads until somebody says otherwise. With the end comes what was confirmed.
    #[expect(clippy::too_many_arguments, reason = "all of it is handed over, once")]
    async fn lead(
        &mut self,
        follower: Follower,
        writer: kahawai_journal::Writer,
        rest: FollowingRest,
        epoch: Epoch,
        record: ClusterRecord,
        unclean: bool,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(LeadEnd, Lsn), NodeError> {
        let stage = Arc::clone(&self.stage);
        self.primary = None;
        let predecessor = self.led_before.take();
        let committed = follower.committed();
        let ring_start = writer.written();
        let (store_id, boot_id) = {
            let identity = stage.identity();
            (identity.store_id, identity.boot_id)
        };
        let new = NewEpoch {
            cluster_id: record.cluster_id,
            epoch,
            node_id: self.options.node_id.clone(),
            store_id,
            boot_id,
            revision: record.version,
            unclean,
        };
        let (identity, files) = (Arc::clone(&stage.identity), Arc::clone(&self.files));
        let (options, now) = (stage.node.broker.clone(), stage.clock.now_ms());
        let (cluster_id, unclean_generation) = (record.cluster_id, record.unclean_generation);
        let promoting = spawn_blocking(move || -> Result<_, NodeError> {
            {
                let mut identity = unpoisoned(&identity);
                identity.adopt_cluster(&files, cluster_id).map_err(kahawai_store::OpenError::from)?;
                kahawai_store::generation::write(&files, unclean_generation)
                    .map_err(|e| NodeError::Storage(e.to_string()))?;
                // Before the marker: nobody older is followed from here on.
                identity.promise(&files, epoch).map_err(kahawai_store::OpenError::from)?;
            }
            let promoted = follower.promote(new).map_err(|e| NodeError::Recover(crate::chain(&e)))?;
            let mut store = promoted.store;
            let mut broker = Broker::new(options);
            broker.recover(now, &mut store).map_err(|e| NodeError::Recover(e.to_string()))?;
            Ok((store, broker, promoted.marker_end, promoted.rolled_back.len()))
        });
        let (store, broker, marker_end, rolled_back) = promoting.await.map_err(joined)??;
        let parts = Parts::new(broker, store, Arc::clone(&self.files), Arc::clone(&stage.clock));
        let shared = Arc::clone(&parts.shared);
        shared.gate.open_until(stage.election.deadline_ms());
        let beginning = Beginning {
            me: stage.me(),
            epoch,
            marker_end,
            ring_start,
            in_sync: record.in_sync.clone(),
            minimum_replicas: record.minimum_replicas,
            unclean_generation: record.unclean_generation,
            timing: self.options.timing,
        };
        let (reign, wanted) = Reign::begin(beginning, Arc::clone(&shared));
        let bulk = Arc::clone(&stage.bulk);
        let copies = ReignCopies(Arc::clone(&reign));
        let serving = Serving::start(parts, writer, None, copies, move || bulk.may_collect())
            .map_err(NodeError::Thread)?;
        let feeding = Arc::new(Feeding {
            reign: Arc::clone(&reign),
            election: stage.election.clone(),
            bulk: Arc::clone(&stage.bulk),
            heard: Mutex::default(),
        });
        stage.is(Present::Leading {
            reign: Arc::clone(&reign),
            feeding,
            connections: Arc::clone(&serving.connections),
        });
        stage.changed(epoch, "primary", "elected");
        info!(epoch = epoch.0, %marker_end, %committed, rolled_back, "leading");
        let mut lead = Lead {
            run: self,
            reign: Arc::clone(&reign),
            serving,
            wanted,
            recorded: record.in_sync,
            proposals: mpsc::unbounded_channel(),
            predecessor,
            is_open: false,
        };
        let end = lead.run(stop).await;
        let Lead { mut serving, .. } = lead;
        // The gate first, then everything else.
        shared.gate.shut();
        reign.end();
        stage.is(Present::Between("stepping down".into()));
        unpoisoned(&stage.listening).clear();
        serving.dismiss().await;
        let commit = shared.commit.position();
        let stopped = serving.stop().await;
        let joining = spawn_blocking(move || rest.join()).await;
        joining.map_err(joined)?;
        if let Err(problem) = stopped {
            stage.election.tell(Event::StorageFailed);
            return Err(problem);
        }
        Ok((end?, commit))
    }
}

struct Lead<'a> {
    run: &'a mut Run,
    reign: Arc<Reign>,
    serving: Serving,
    wanted: mpsc::UnboundedReceiver<Wanted>,
    recorded: BTreeSet<ReplicaId>,
    proposals: (mpsc::UnboundedSender<Answered>, mpsc::UnboundedReceiver<Answered>),
    predecessor: Option<PrimaryRef>,
    is_open: bool,
}

/// The record's answer to a proposal.
struct Answered {
    proposed: BTreeSet<ReplicaId>,
    outcome: Result<(), Refusal>,
}

impl Lead<'_> {
    async fn run(&mut self, mut stop: Pin<&mut impl Future<Output = ()>>) -> Result<LeadEnd, NodeError> {
        let stage = Arc::clone(&self.run.stage);
        let shared = Arc::clone(&self.reign.shared);
        let mut leaving: Option<Leaving> = None;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shared.failed() => {
                    stage.election.tell(Event::StorageFailed);
                    return Err(NodeError::Storage(shared.failure().unwrap_or_default().to_owned()));
                }
                decision = self.run.decisions.recv() => match decision {
                    None => return Err(NodeError::Election("the election task has ended".into())),
                    Some(Decision::StepDown(reason)) => {
                        shared.gate.shut();
                        if let Some(leaving) = leaving {
                            let is_asked = reason == StepDownReason::Asked;
                            leaving.answer(is_asked.then_some(()).ok_or_else(|| reason.to_string()));
                        }
                        if self.run.is_stopping {
                            return Ok(LeadEnd::Stop);
                        }
                        return Ok(LeadEnd::Deposed(reason.to_string()));
                    }
                    Some(Decision::Changed(record)) => self.changed(*record),
                    Some(Decision::Follow { primary }) => self.run.follows(primary),
                    Some(Decision::Lead { .. }) => {}
                    Some(Decision::StorageFailed(reason)) => {
                        shared.gate.shut();
                        return Err(NodeError::Storage(reason));
                    }
                },
                Some(wanted) = self.wanted.recv() => self.wants(wanted).await?,
                Some(answered) = self.proposals.1.recv() => self.answered(answered),
                Some(command) = self.run.commands.recv() => match command {
                    Command::StepDown { done, .. } if leaving.is_some() => {
                        let _ = done.send(Err("this node is stepping down already".to_owned()));
                    }
                    Command::StepDown { successor, done } => {
                        leaving = self.hand_over(successor, Some(done));
                    }
                },
                () = stop.as_mut(), if !self.run.is_stopping => {
                    self.run.is_stopping = true;
                    if leaving.is_none() {
                        leaving = self.hand_over(None, None);
                    }
                }
                outcome = Leaving::outcome(&mut leaving) => {
                    if let Some(leaving) = leaving.take() {
                        leaving.answer(outcome.map_err(|refusal| refusal.to_string()));
                    }
                    if self.run.is_stopping {
                        return Ok(LeadEnd::Stop);
                    }
                }
                _ = tick.tick() => {
                    shared.gate.open_until(stage.election.deadline_ms());
                    self.bury();
                    self.reign.step(PrimaryEvent::Tick);
                }
            }
        }
    }

    fn changed(&mut self, record: ClusterRecord) {
        if record.in_sync != self.recorded {
            self.reign.step(PrimaryEvent::Changed { in_sync: &record.in_sync });
            self.recorded = record.in_sync;
        }
        self.reign.step(PrimaryEvent::Minimum(record.minimum_replicas));
    }

    /// The predecessor is dead, or closes its store now: the beginning of the epoch does not wait for it. If it lives it is back in
    /// a moment, and joins again.
    fn bury(&mut self) {
        if let Some(predecessor) = self.predecessor.take() {
            self.reign.step(PrimaryEvent::Gone { replica: &predecessor.replica() });
        }
    }

    async fn wants(&mut self, wanted: Wanted) -> Result<(), NodeError> {
        let stage = &self.run.stage;
        match wanted {
            Wanted::Propose { in_sync, reason } => {
                let names: Vec<String> = in_sync.iter().map(ToString::to_string).collect();
                info!(in_sync = names.join(" "), %reason, "in-sync set proposed");
                let (election, answers) = (stage.election.clone(), self.proposals.0.clone());
                tokio::spawn(async move {
                    let outcome = election.request(Request::InSync(in_sync.clone())).await;
                    let _ = answers.send(Answered { proposed: in_sync, outcome });
                });
            }
            Wanted::Activate => {
                let sealed = *self.reign.sealed().borrow();
                if let Some((start, chain)) = sealed.marker {
                    stage.election.ask(Request::Activate { start, chain });
                }
                self.open().await?;
            }
            Wanted::Suspended(reason) => {
                warn!(%reason, "persistent work is suspended");
                *unpoisoned(&stage.suspended) = Some((stage.clock.now_ms(), reason));
                self.reign.shared.suspend(true);
                // What needs no copies goes on.
                self.open().await?;
            }
            Wanted::Resumed => {
                info!("persistent work goes on");
                unpoisoned(&stage.suspended).take();
                self.reign.shared.suspend(false);
            }
            Wanted::Stalled(for_ms) => {
                warn!(for_ms, "our disk flushes nothing, and a replica's does: it shall lead");
                stage.election.tell(Event::DiskStalled);
            }
        }
        Ok(())
    }

    fn answered(&mut self, answered: Answered) {
        match answered.outcome {
            Ok(()) => self.recorded = answered.proposed,
            Err(Refusal::SteppedDown) => return,
            Err(refusal) => warn!(%refusal, "the in-sync set was not changed"),
        }
        self.reign.step(PrimaryEvent::Decided { in_sync: &self.recorded });
    }

    /// Lets clients in.
    async fn open(&mut self) -> Result<(), NodeError> {
        if self.is_open {
            return Ok(());
        }
        self.is_open = true;
        let stage = &self.run.stage;
        let bound: Vec<Bound> = bind(&stage.node.stomp).await?;
        let listening: Vec<Listening> = bound.iter().map(|one| one.listening.clone()).collect();
        self.serving.accept(bound, &stage.node.client_limits());
        unpoisoned(&stage.listening).clone_from(&listening);
        (self.run.options.said)(&Said::Ready(&listening));
        Ok(())
    }

    /// A planned change, if somebody could take over: takes nothing more, waits until all is confirmed, gives the grant back.
    /// All of that happens beside the loop: what is to be confirmed needs it.
    fn hand_over(&mut self, successor: Option<NodeId>, done: Option<Done>) -> Option<Leaving> {
        let is_member = |node: &NodeId| self.recorded.iter().any(|replica| replica.node == *node);
        let others = self.reign.status().replicas;
        let is_able = |replica: &kahawai_replication::ReplicaStatus| {
            let is_wanted = successor.as_ref().is_none_or(|node| replica.replica.node == *node);
            is_wanted && replica.in_sync && replica.connected.is_some()
        };
        let is_anybody_able = others.iter().any(is_able);
        if !is_anybody_able && let Some(done) = done {
            let why = match successor {
                Some(node) if !is_member(&node) => format!("{node} is not in the in-sync set"),
                Some(node) => format!("{node} is not connected now and cannot take over"),
                None => "no other in-sync node is connected now that could take over".to_owned(),
            };
            // Here and below: whoever asked may have stopped waiting.
            let _ = done.send(Err(why));
            return None;
        }
        let (reign, election) = (Arc::clone(&self.reign), self.run.stage.election.clone());
        let work = Box::pin(async move {
            if is_anybody_able {
                reign.shared.pause(true);
                settle(&reign).await;
            }
            let outcome = election.request(Request::StepDown { successor }).await;
            if outcome.is_err() {
                reign.shared.pause(false);
            }
            outcome
        });
        Some(Leaving { work, done })
    }
}

/// Where the answer to an operator's command goes.
type Done = oneshot::Sender<Result<String, String>>;

/// A planned change under way.
struct Leaving {
    work: Pin<Box<dyn Future<Output = Result<(), Refusal>> + Send>>,
    done: Option<Done>,
}

impl Leaving {
    /// Ends with the answer to the wish to step down; never, if there is no such wish.
    async fn outcome(leaving: &mut Option<Self>) -> Result<(), Refusal> {
        match leaving {
            Some(leaving) => leaving.work.as_mut().await,
            None => std::future::pending().await,
        }
    }

    fn answer(self, outcome: Result<(), String>) {
        match (self.done, outcome) {
            (Some(done), outcome) => {
                let text = "stepping down; another in-sync node takes over";
                let _ = done.send(outcome.map(|()| text.to_owned()));
            }
            (None, Err(refusal)) => info!(%refusal, "the grant was not given back"),
            (None, Ok(())) => {}
        }
    }
}

/// Waits until everything that was appended is confirmed, or for a while.
async fn settle(reign: &Reign) {
    let mut committed = reign.committed();
    let settled = async {
        loop {
            let end = reign.shared.with(|core| kahawai_message::storage::Storage::appended_end(&core.store));
            if committed.wait_for(|commit| *commit >= end).await.is_err() {
                return;
            }
            let now = reign.shared.with(|core| kahawai_message::storage::Storage::appended_end(&core.store));
            if now == end {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(SETTLE, settled).await;
}

/// Ends a store that only followed.
async fn close(follower: Follower, rest: FollowingRest) -> Result<(), NodeError> {
    let closing = spawn_blocking(move || -> Result<(), NodeError> {
        let mut follower = follower;
        follower.journal().close();
        rest.join();
        let checkpoint = follower.begin_checkpoint(false);
        let header = checkpoint.header;
        follower.index().write(checkpoint).map_err(|e| NodeError::Storage(crate::chain(&e)))?;
        follower.finish_checkpoint(header);
        Ok(())
    });
    closing.await.map_err(joined)?
}

fn joined(error: tokio::task::JoinError) -> NodeError {
    NodeError::Storage(error.to_string())
}
