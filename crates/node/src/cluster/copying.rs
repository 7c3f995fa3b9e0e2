//! The replica's end of a stream connection.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kahawai_env::{Clock, Files};
use kahawai_journal::Chain;
use kahawai_kdbr::{ErrorCode, ErrorFrame, Frame, NodeState, Role, SyncId, SyncManifest};
use kahawai_replication::{LocalLog, SinkEffect, SinkEvent, SinkOptions, SinkSession, Timing};
use kahawai_shipping::{Held, history_of_peer, local_log};
use kahawai_store::{Identity, generation};
use kahawai_types::{ClusterId, Epoch, Lsn, Millis, ReplicaId};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::bulk::BulkSink;
use super::following::{AckAhead, FollowingThreads, Said, SharedSink, Work};
use super::net::{Connected, Credentials, FrameWriter, dial};
use super::peer_tls::Protection;
use super::reign::boot_ms;
use super::vitals::Pulse;

use crate::core::unpoisoned;

/// Bytes that a replica takes without having flushed them.
const RECEIVE_WINDOW: u64 = 32 << 20;
/// Before the next attempt to fetch the primary's files, doubled with each failure.
const REFETCH: Duration = Duration::from_millis(100);
/// …so often at most: 6.4 s.
const REFETCH_DOUBLINGS_MAX: u32 = 6;
/// A primary that asks for more patience than that does not get it.
const PATIENCE_MAX: Duration = Duration::from_secs(10);
/// How often a session looks at the time.
const TICK: Duration = Duration::from_millis(100);

/// How a session ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Try again.
    Lost,
    /// Try again, after that time.
    Later(Duration),
    /// The journal has to be cut, on a closed store.
    Truncate {
        to: Lsn,
        chain: Chain,
        /// An operator has accepted that what was confirmed is lost.
        unclean: bool,
    },
    /// Files were fetched, and have to be installed on a closed store.
    Install(SyncManifest, Vec<kahawai_journal::EpochStart>),
    /// This node or its store does not belong to the cluster, or has what it must not have: no use in trying again soon.
    Refused(String),
}

/// What sessions of a replica need.
pub(crate) struct Copying {
    pub(crate) files: Arc<dyn Files>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) identity: Arc<Mutex<Identity>>,
    pub(crate) protection: Protection,
    pub(crate) address: String,
    pub(crate) clients: Vec<String>,
    pub(crate) timing: Timing,
    pub(crate) bulk: Arc<BulkSink>,
    /// What the session does, for the status.
    pub(crate) state: Arc<Mutex<String>>,
    /// Why the last attempts failed: said once, not ten times a second.
    pub(crate) trouble: Mutex<Option<String>>,
    /// Synchronisations that failed, one after the other.
    pub(crate) unfetched: AtomicU32,
}

impl Copying {
    /// Says why there is no session, if that is news.
    fn trouble(&self, address: &str, problem: &str) {
        let mut trouble = unpoisoned(&self.trouble);
        if trouble.as_deref() != Some(problem) {
            info!(primary = address, problem, "no session with the primary; trying again");
            *trouble = Some(problem.to_owned());
        }
        self.state(&format!("no session with the primary: {problem}"));
    }

    /// How long to wait after a synchronisation that failed: on a full disk, or with a file that the primary has damaged, the
    /// next one fails as well, after the same work at both ends.
    fn patience(&self) -> Duration {
        let failures = self.unfetched.fetch_add(1, Ordering::Relaxed);
        REFETCH.saturating_mul(1 << failures.min(REFETCH_DOUBLINGS_MAX))
    }

    fn state(&self, text: &str) {
        text.clone_into(&mut unpoisoned(&self.state));
    }

    /// Follows the primary at `address` for as long as it goes.
    pub(crate) async fn session(&self, address: &str, threads: &mut FollowingThreads) -> Ended {
        self.state("connecting");
        let generation = generation::read(&self.files).unwrap_or_default();
        let log = match self.log(threads, generation).await {
            Ok(log) => log,
            Err(problem) => {
                warn!(%problem, "our own journal cannot be matched");
                return Ended::Lost;
            }
        };
        let credentials = self.credentials(log.end == Lsn::ZERO);
        let connected = match dial(address, Role::Stream, &credentials).await {
            Ok(connected) => connected,
            Err(problem) => {
                self.trouble(address, &problem.to_string());
                let is_lasting = problem.is_lasting();
                return if is_lasting { Ended::Refused(problem.to_string()) } else { Ended::Lost };
            }
        };
        if let Err(problem) = self.join(connected.peer.cluster_id).await {
            warn!(%problem, "this store cannot join the cluster");
            return Ended::Refused(problem);
        }
        let promised = self.promised();
        let epoch = connected.peer.epoch.unwrap_or(Epoch(0));
        let now = boot_ms(&*self.clock);
        let options = SinkOptions {
            log,
            promised,
            epoch,
            receive_window: RECEIVE_WINDOW,
            address: self.address.clone(),
            clients: self.clients.clone(),
            timing: self.timing,
        };
        let machine = SharedSink::new(SinkSession::new(options, now));
        let session = Session {
            copying: self,
            machine,
            effects: Vec::new(),
            sync: None,
            state: NodeState::CatchingUp,
            epochs: Vec::new(),
            generations: (generation.unwrap_or(u64::MAX), 0),
        };
        let ended = session.run(connected, address, threads).await;
        if !matches!(ended, Ended::Lost | Ended::Later(_)) {
            self.state("reopening");
        }
        ended
    }

    fn credentials(&self, is_empty: bool) -> Credentials {
        let identity = unpoisoned(&self.identity);
        Credentials {
            // Who has nothing yet takes the cluster that it finds.
            cluster_id: (identity.has_joined() || !is_empty).then_some(identity.cluster_id),
            replica: ReplicaId { node: identity.node_id.clone(), store: identity.store_id },
            boot: identity.boot_id,
            protection: self.protection.clone(),
        }
    }

    async fn join(&self, cluster_id: ClusterId) -> Result<(), String> {
        let (identity, files) = (Arc::clone(&self.identity), Arc::clone(&self.files));
        let adopted = spawn_blocking(move || unpoisoned(&identity).adopt_cluster(&files, cluster_id));
        adopted.await.map_err(|e| e.to_string())?.map_err(|e| crate::chain(&e))
    }

    fn promised(&self) -> Epoch {
        unpoisoned(&self.identity).promised_epoch
    }

    /// Our journal, once everything that earlier sessions sent is written.
    async fn log(&self, threads: &mut FollowingThreads, generation: Option<u64>) -> Result<LocalLog, String> {
        let (answer, answered) = oneshot::channel();
        let gone = || "the copying thread has ended".to_owned();
        threads.work.send(Work::Barrier(answer)).await.map_err(|_| gone())?;
        let (end, chain) = answered.await.map_err(|_| gone())?;
        while threads.said.try_recv().is_ok() {}
        let following = &threads.following;
        let (known_commit, applied) = (following.committed(), following.applied());
        let (reader, files) =
            following.with(|follower| (follower.reader(), follower.journal().files())).ok_or_else(gone)?;
        let held = Held { first_file: files.first().map(|file| file.id), end, chain, known_commit, applied };
        let read = spawn_blocking(move || local_log(&reader, held, generation));
        read.await.map_err(|e| e.to_string())?
    }
}

struct Session<'a> {
    copying: &'a Copying,
    /// The copying thread acknowledges with it as well.
    machine: Arc<Mutex<SharedSink>>,
    effects: Vec<SinkEffect>,
    /// Files that are being fetched.
    sync: Option<(SyncId, tokio::task::JoinHandle<Result<SyncManifest, String>>)>,
    state: NodeState,
    /// The primary's reigns: those whose beginnings are in files that nobody has any more.
    epochs: Vec<kahawai_journal::EpochStart>,
    /// Ours when the session began, and the primary's.
    generations: (u64, u64),
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.sync {
            task.abort();
        }
    }
}

/// What a session does next.
enum Next {
    Event(SinkEvent),
    /// The copying thread has left it to us, and waits.
    Handed(SinkEvent),
    /// The copying thread has made the step, and these are left of it.
    Effects(Vec<SinkEffect>),
    /// Others have left something in the queue.
    Flush,
}

impl Session<'_> {
    async fn run(mut self, connected: Connected, address: &str, threads: &mut FollowingThreads) -> Ended {
        let Connected { mut reader, mut writer, peer, .. } = connected;
        let mut tick = tokio::time::interval(TICK);
        let _ahead = writer.line().map(|line| {
            let clock = Arc::clone(&self.copying.clock);
            threads.following.acknowledge_ahead(AckAhead::new(Arc::clone(&self.machine), line, clock))
        });
        let Some(mut pulse) = threads.following.with(|follower| Pulse::new(follower.journal().clone()))
        else {
            return Ended::Lost;
        };
        let mut next = Next::Event(SinkEvent::Start);
        loop {
            let name = &peer.replica.node.0;
            let stepped = match next {
                Next::Event(event) => self.step(event, address, name, threads, &mut writer).await,
                Next::Handed(event) => {
                    let done = self.step(event, address, name, threads, &mut writer).await;
                    unpoisoned(&self.machine).sent();
                    done
                }
                Next::Effects(effects) => {
                    let now = boot_ms(&*self.copying.clock);
                    let done = self.carry_out(now, effects, address, name, threads, &mut writer).await;
                    unpoisoned(&self.machine).sent();
                    done
                }
                Next::Flush => writer.flush().await.map(|()| None),
            };
            match stepped {
                Ok(None) => {}
                Ok(Some(ended)) => {
                    let _ = writer.flush().await;
                    return ended;
                }
                Err(problem) => {
                    self.copying.trouble(address, &problem.to_string());
                    return Ended::Lost;
                }
            }
            let event = tokio::select! {
                biased;
                () = writer.left() => {
                    // What the copying thread could not send all of.
                    next = Next::Flush;
                    continue;
                }
                said = threads.said.recv() => match said {
                    Some(Said::Written { durable, chain, is_counted }) => {
                        let written = SinkEvent::Written { durable, chain: chain.0 };
                        if is_counted {
                            next = Next::Handed(written);
                            continue;
                        }
                        written
                    }
                    Some(Said::Acknowledged(effects)) => {
                        next = Next::Effects(effects);
                        continue;
                    }
                    Some(Said::Refused(problem)) => {
                        warn!(%problem, "what the primary sent does not continue this journal");
                        SinkEvent::Refuse(ErrorFrame::new(ErrorCode::Corrupt, problem))
                    }
                    None => return Ended::Lost,
                },
                frame = reader.next() => match frame {
                    Ok(frame) => {
                        self.look(&frame);
                        SinkEvent::Frame(frame)
                    }
                    Err(problem) => {
                        self.copying.trouble(address, &problem.to_string());
                        return Ended::Lost;
                    }
                },
                fetched = fetched(&mut self.sync) => match fetched {
                    Ok(manifest) => {
                        self.copying.state("installing");
                        let reason = "the files are complete".into();
                        let leave = SinkEvent::Leave { reason, reconnect_after_ms: Some(1_000) };
                        // Nothing to add to what it leaves with.
                        let _ = self.step(leave, address, "", threads, &mut writer).await;
                        let _ = writer.flush().await;
                        return Ended::Install(manifest, std::mem::take(&mut self.epochs));
                    }
                    Err((sync_id, reason)) => {
                        warn!(%reason, "synchronisation interrupted");
                        self.copying.state(&format!("synchronisation interrupted: {reason}"));
                        let failed = SinkEvent::SyncFailed { sync_id, reason };
                        let _ = self.step(failed, address, "", threads, &mut writer).await;
                        let _ = writer.flush().await;
                        return Ended::Later(self.copying.patience());
                    }
                },
                _ = tick.tick() => {
                    if let Some((sync_id, _)) = &self.sync {
                        let progress = self.copying.bulk.progress();
                        let event = SinkEvent::SyncProgress {
                            sync_id: *sync_id,
                            files_done: progress.files_done,
                            bytes_done: progress.bytes_done,
                        };
                        if self.step(event, address, "", threads, &mut writer).await.is_err() {
                            return Ended::Lost;
                        }
                    }
                    let applied = SinkEvent::Applied(threads.following.applied());
                    if self.step(applied, address, "", threads, &mut writer).await.is_err() {
                        return Ended::Lost;
                    }
                    let durable = threads.following.durable();
                    SinkEvent::Tick(pulse.vitals(boot_ms(&*self.copying.clock), self.state, durable))
                }
            };
            next = Next::Event(event);
        }
    }

    async fn step(
        &mut self,
        event: SinkEvent,
        address: &str,
        primary: &str,
        threads: &mut FollowingThreads,
        writer: &mut FrameWriter,
    ) -> std::io::Result<Option<Ended>> {
        let now = boot_ms(&*self.copying.clock);
        let mut effects = std::mem::take(&mut self.effects);
        let is_counted = unpoisoned(&self.machine).step(now, event, &mut effects);
        let done = self.carry_out(now, effects, address, primary, threads, writer).await?;
        if is_counted {
            unpoisoned(&self.machine).sent();
        }
        Ok(done)
    }

    async fn carry_out(
        &mut self,
        now: Millis,
        mut effects: Vec<SinkEffect>,
        address: &str,
        primary: &str,
        threads: &mut FollowingThreads,
        writer: &mut FrameWriter,
    ) -> std::io::Result<Option<Ended>> {
        let mut ended = None;
        let mut pending: std::collections::VecDeque<SinkEffect> = effects.drain(..).collect();
        self.effects = effects;
        while let Some(effect) = pending.pop_front() {
            match effect {
                SinkEffect::Send(frame) => writer.send(&frame).await?,
                SinkEffect::Promise(epoch) => {
                    let promised = self.promise(epoch).await?;
                    let mut more = Vec::new();
                    // Part of the step that asked for it.
                    unpoisoned(&self.machine).session.step(now, SinkEvent::Promised(promised), &mut more);
                    pending.extend(more);
                }
                SinkEffect::Attached { at } => {
                    info!(%at, primary, "following the primary");
                    *unpoisoned(&self.copying.trouble) = None;
                    self.copying.unfetched.store(0, Ordering::Relaxed);
                    // From here on this journal is what the primary of that generation has.
                    generation::write(&self.copying.files, self.generations.1)?;
                    self.state = NodeState::Online;
                    self.copying.state("streaming");
                }
                SinkEffect::Append { lsn, batches, .. } => append(threads, lsn, batches).await?,
                SinkEffect::Commit(commit) => threads.following.commit(commit),
                SinkEffect::Truncate { to, chain } => {
                    let unclean = self.generations.1 > self.generations.0;
                    ended = Some(Ended::Truncate { to, chain: Chain(chain), unclean });
                }
                SinkEffect::Bulk(manifest) => {
                    self.copying.state("synchronising");
                    self.state = NodeState::Synchronizing;
                    let sync_id = manifest.sync_id;
                    let fetch = Arc::clone(&self.copying.bulk).fetch(
                        manifest,
                        address.to_owned(),
                        self.copying.credentials(false),
                    );
                    self.sync = Some((sync_id, tokio::spawn(fetch)));
                }
                SinkEffect::SyncAborted { reason, .. } => {
                    warn!(%reason, "the primary has given up the synchronisation");
                    ended = Some(Ended::Lost);
                }
                SinkEffect::Vitals(_) | SinkEffect::Switchover(_) => {}
                SinkEffect::Close(end) => {
                    self.copying.trouble(address, &end.to_string());
                    let refused = matches!(
                        &end,
                        kahawai_replication::SessionEnd::Refused(error)
                        | kahawai_replication::SessionEnd::Told(error)
                            if matches!(
                                error.code,
                                ErrorCode::Diverged | ErrorCode::Corrupt | ErrorCode::NotMember | ErrorCode::Auth
                            )
                    );
                    let retry_after_ms = match &end {
                        kahawai_replication::SessionEnd::Told(error) => error.retry_after_ms,
                        _ => None,
                    };
                    ended.get_or_insert(if refused {
                        Ended::Refused(end.to_string())
                    } else {
                        asked_to_wait(retry_after_ms)
                    });
                }
            }
        }
        writer.flush().await?;
        Ok(ended)
    }

    fn look(&mut self, frame: &Frame) {
        let Frame::SlaveInitResponse(response) = frame else { return };
        self.epochs = history_of_peer(&response.epoch_history);
        self.generations.1 = response.unclean_generation;
    }

    async fn promise(&self, epoch: Epoch) -> std::io::Result<Epoch> {
        let (identity, files) = (Arc::clone(&self.copying.identity), Arc::clone(&self.copying.files));
        let promised = spawn_blocking(move || {
            let mut identity = unpoisoned(&identity);
            identity.promise(&files, epoch).map(|()| identity.promised_epoch)
        });
        promised.await.map_err(std::io::Error::other)?.map_err(|e| std::io::Error::other(crate::chain(&e)))
    }
}

async fn append(threads: &FollowingThreads, lsn: Lsn, batches: Bytes) -> std::io::Result<()> {
    threads.work.send(Work::Body(lsn, batches)).await.map_err(|_| std::io::ErrorKind::BrokenPipe.into())
}

/// A primary that cannot serve us now says when it may be worth another attempt.
fn asked_to_wait(retry_after_ms: Option<u32>) -> Ended {
    let wait = retry_after_ms.map(|ms| Duration::from_millis(ms.into()).min(PATIENCE_MAX));
    wait.map_or(Ended::Lost, Ended::Later)
}

/// The end of a fetch; never, if there is none.
async fn fetched(
    sync: &mut Option<(SyncId, tokio::task::JoinHandle<Result<SyncManifest, String>>)>,
) -> Result<SyncManifest, (SyncId, String)> {
    let Some((sync_id, task)) = sync else { return std::future::pending().await };
    let (sync_id, result) = (*sync_id, task.await);
    *sync = None;
    match result {
        Ok(Ok(manifest)) => Ok(manifest),
        Ok(Err(reason)) => Err((sync_id, reason)),
        Err(failed) => Err((sync_id, failed.to_string())),
    }
}
