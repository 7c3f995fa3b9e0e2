//! The primary's end of a stream connection: one task hears the replica, one feeds it.
//!
//! The hearing task never waits for the socket to take anything, so acknowledgements are counted however slowly the replica
//! reads.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kahawai_election::{Event, Member, Request};
use kahawai_kdbr::{ErrorCode, ErrorFrame, Frame, NodeState, Peer};
use kahawai_replication::{
    Next, PrimaryEvent, PrimaryLog, SourceEffect, SourceEvent, SourceOptions, SourceSession, Vitals,
};
use kahawai_shipping::{FromFiles, find_chain, primary_log};
use kahawai_types::{Lsn, Millis, NodeId, ReplicaId};
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;
use tracing::{debug, info, warn};

use super::bulk::BulkSource;
use super::electing::Election;
use super::net::{Connected, FrameReader, FrameWriter, NetError};
use super::reign::{Express, Reign, boot_ms};
use super::vitals::Pulse;

use crate::core::unpoisoned;

/// Before the next attempt of a replica whose synchronisation cannot begin: a file of ours is damaged, or cannot be read, and
/// finding that out again costs as much as the first time.
const UNREADABLE_MS: u32 = 5_000;
/// Bytes under way to one replica without an acknowledgement.
const SEND_WINDOW: u64 = 16 << 20;
/// Bytes in one JOURNAL_UPDATE, as long as batches are smaller.
const UPDATE_BYTES_MAX: u64 = 1 << 20;
/// How often a session looks at the time.
const TICK: Duration = Duration::from_millis(100);
/// How long a commit position may wait for a batch that carries it.
const ANNOUNCE: Duration = Duration::from_millis(5);
/// Where our journal ended is remembered so often for a replica that lags, and so many times.
const TRAIL_MS: Millis = 250;
const TRAIL_MAX: usize = 4096;
/// How long a replica that was told to go may take to hear it.
const GOODBYE: Duration = Duration::from_secs(1);

/// What a replica says of itself, for the status.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    pub(crate) vitals: Option<Vitals>,
    /// Age of the oldest bytes that it has not flushed.
    pub(crate) behind_ms: u64,
    pub(crate) state: String,
}

/// What all stream sessions of a reign share.
pub(crate) struct Feeding {
    pub(crate) reign: Arc<Reign>,
    pub(crate) election: Election,
    pub(crate) bulk: Arc<BulkSource>,
    pub(crate) heard: Mutex<std::collections::BTreeMap<ReplicaId, Heard>>,
}

fn removed(node: &NodeId) -> ErrorFrame {
    let text = format!("{node} was removed from the cluster; `kahawai cluster add {node}` lets it in again");
    ErrorFrame::new(ErrorCode::NotMember, text)
}

impl Feeding {
    /// What replicas said last.
    pub(crate) fn heard(&self) -> MutexGuard<'_, std::collections::BTreeMap<ReplicaId, Heard>> {
        unpoisoned(&self.heard)
    }
}

/// For the feeding task.
enum Out {
    Frame(Frame),
    StreamFrom(Lsn),
    Close,
}

/// Serves a replica until either side ends it.
pub(crate) async fn serve(connected: Connected, feeding: Arc<Feeding>) {
    let Connected { reader, mut writer, peer, .. } = connected;
    let reign = Arc::clone(&feeding.reign);
    if let Err(refusal) = reign.may_connect(&peer.replica, peer.boot) {
        warn!(replica = %peer.replica, %refusal, "replica refused");
        return writer.refuse(ErrorFrame::from(&refusal)).await;
    }
    if feeding.election.is_removed(&peer.replica.node) {
        warn!(replica = %peer.replica, "replica refused: it was removed from the cluster");
        return writer.refuse(removed(&peer.replica.node)).await;
    }
    let log = match log(&feeding).await {
        Ok(log) => log,
        Err((code, problem)) => {
            warn!(replica = %peer.replica, %problem, "replica refused: our own journal cannot be matched");
            return writer.refuse(ErrorFrame::new(code, problem)).await;
        }
    };
    let options = SourceOptions {
        epoch: reign.epoch,
        commit: reign.commit(),
        unclean_generation: reign.unclean_generation,
        send_window: SEND_WINDOW,
        timing: reign.timing,
        log,
    };
    let now = boot_ms(&*reign.shared.clock);
    let machine = Arc::new(Mutex::new(SourceSession::new(options, now)));
    let (out, outgoing) = mpsc::unbounded_channel();
    let room = Arc::new(Notify::new());
    let express = writer.line().map(|line| Arc::new(Express::new(Arc::clone(&machine), line)));
    if let Some(express) = &express {
        reign.add_express(Arc::clone(express));
    }
    let feeder = tokio::spawn(feed(
        Arc::clone(&machine),
        Arc::clone(&reign),
        outgoing,
        (Arc::clone(&room), express.clone()),
        writer,
    ));
    let journal = reign.shared.with(|core| core.store.journal().clone());
    let hearing = Hearing {
        feeding,
        reign,
        machine,
        out,
        room,
        express: express.clone(),
        peer,
        effects: Vec::new(),
        pulse: Pulse::new(journal),
        trail: Trail::default(),
    };
    let over = Arc::clone(&hearing.reign);
    hearing.run(reader).await;
    if let Some(express) = &express {
        over.remove_express(express);
    }
    if tokio::time::timeout(GOODBYE, feeder).await.is_err() {
        debug!("a replica did not take the last frames in time");
    }
}

/// Our journal as a replica's is compared with it.
async fn log(feeding: &Feeding) -> Result<PrimaryLog, (ErrorCode, String)> {
    let busy = |problem: String| (ErrorCode::Busy, problem);
    let reign = &feeding.reign;
    let mut sealed = reign.sealed();
    // Nothing to match before there is a marker.
    let sealed = *sealed
        .wait_for(|sealed| sealed.marker.is_some())
        .await
        .map_err(|_| busy("this node no longer leads".into()))?;
    let reader = reign.reader();
    let files: Vec<u32> =
        reign.shared.with(|core| core.store.journal().files()).into_iter().map(|file| file.id).collect();
    let (epoch, commit) = (reign.epoch, reign.commit());
    let directory = Arc::clone(&feeding.bulk.files);
    let read = spawn_blocking(move || primary_log(&directory, &reader, &files, sealed, epoch, commit));
    read.await.map_err(|e| busy(e.to_string()))?
}

struct Hearing {
    feeding: Arc<Feeding>,
    reign: Arc<Reign>,
    machine: Arc<Mutex<SourceSession>>,
    out: mpsc::UnboundedSender<Out>,
    room: Arc<Notify>,
    express: Option<Arc<Express>>,
    peer: Peer,
    effects: Vec<SourceEffect>,
    pulse: Pulse,
    trail: Trail,
}

/// Where our journal ended when, as far back as a replica has not come.
#[derive(Debug, Default)]
struct Trail {
    /// Ascending in both.
    ends: VecDeque<(Millis, Lsn)>,
    acked: Lsn,
}

impl Trail {
    /// Our journal is flushed to here. A replica that is far behind keeps the oldest.
    fn reached(&mut self, now: Millis, end: Lsn) {
        let is_new =
            end > self.acked && self.ends.back().is_none_or(|&(at, last)| end > last && now - at >= TRAIL_MS);
        if is_new && self.ends.len() < TRAIL_MAX {
            self.ends.push_back((now, end));
        }
    }

    /// The replica has flushed to here.
    fn acked(&mut self, durable: Lsn) {
        self.acked = durable;
        while self.ends.pop_front_if(|(_, end)| *end <= durable).is_some() {}
    }

    fn behind_ms(&self, now: Millis) -> u64 {
        self.ends.front().map_or(0, |(at, _)| (now - at).unsigned_abs())
    }
}

impl Hearing {
    async fn run(mut self, mut reader: FrameReader) {
        let (session, mut refused) = self.reign.open_session();
        let (answer, mut answers) = mpsc::unbounded_channel();
        let mut tick = tokio::time::interval(TICK);
        let mut orderly = false;
        let reign = Arc::clone(&self.reign);
        let ended = reign.ended();
        tokio::pin!(ended);
        loop {
            let event = tokio::select! {
                frame = reader.next() => match frame {
                    Ok(frame) => {
                        orderly = matches!(frame, Frame::Goodbye(_));
                        SourceEvent::Frame(frame)
                    }
                    Err(error) => {
                        let replica = &self.peer.replica;
                        match error {
                            NetError::Closed => info!(%replica, "replica disconnected"),
                            error => info!(%replica, %error, "connection to the replica lost"),
                        }
                        break;
                    }
                },
                Some(refusal) = refused.recv() => SourceEvent::Refuse(ErrorFrame::from(&refusal)),
                Some(answer) = answers.recv() => answer,
                () = &mut ended => SourceEvent::Leave {
                    reason: "this node no longer leads".into(),
                    reconnect_after_ms: Some(100),
                },
                _ = tick.tick() => match self.feeding.election.is_removed(&self.peer.replica.node) {
                    false => SourceEvent::Tick(self.tick()),
                    true => SourceEvent::Refuse(removed(&self.peer.replica.node)),
                },
            };
            if self.step(event, session, &answer) {
                break;
            }
        }
        self.reign.close_session(session, orderly);
        let _ = self.out.send(Out::Close);
    }

    /// Looks at the time.
    fn tick(&mut self) -> Vitals {
        let (now, durable) = (boot_ms(&*self.reign.shared.clock), self.reign.durable());
        self.trail.reached(now, durable);
        let behind_ms = self.trail.behind_ms(now);
        self.note(|heard| heard.behind_ms = behind_ms);
        self.pulse.vitals(now, NodeState::Master, durable)
    }

    fn machine(&self) -> MutexGuard<'_, SourceSession> {
        unpoisoned(&self.machine)
    }

    /// `true` = the session is over.
    fn step(
        &mut self,
        event: SourceEvent,
        session: kahawai_replication::SessionId,
        answer: &mpsc::UnboundedSender<SourceEvent>,
    ) -> bool {
        let now = boot_ms(&*self.reign.shared.clock);
        let mut effects = std::mem::take(&mut self.effects);
        self.machine().step(now, event, &mut effects);
        let mut over = false;
        for effect in effects.drain(..) {
            over |= self.carry_out(effect, session, answer);
        }
        self.effects = effects;
        over
    }

    fn send(&self, out: Out) {
        // The feeder ends with the session.
        let _ = self.out.send(out);
    }

    fn note(&self, note: impl FnOnce(&mut Heard)) {
        note(self.feeding.heard().entry(self.peer.replica.clone()).or_default());
    }

    fn carry_out(
        &mut self,
        effect: SourceEffect,
        session: kahawai_replication::SessionId,
        answer: &mpsc::UnboundedSender<SourceEvent>,
    ) -> bool {
        let replica = self.peer.replica.clone();
        match effect {
            SourceEffect::Send(frame) => self.send(Out::Frame(frame)),
            SourceEffect::Serves { address, clients } => {
                let member = Member { store: replica.store, address, clients, priority: 0 };
                let known = self.feeding.election.view().record;
                if known.is_none_or(|record| record.members.get(&replica.node) != Some(&member)) {
                    self.feeding.election.ask(Request::PutMember { node: replica.node, member });
                }
            }
            SourceEffect::NeedChain { at, chain } => {
                let (reader, answer) = (self.reign.reader(), answer.clone());
                tokio::spawn(async move {
                    let _ = answer.send(match spawn_blocking(move || find_chain(&reader, at, chain)).await {
                        Ok(Ok(found)) => SourceEvent::Chain(found),
                        Ok(Err(problem)) => SourceEvent::Refuse(ErrorFrame::new(ErrorCode::Busy, problem)),
                        Err(failed) => {
                            SourceEvent::Refuse(ErrorFrame::new(ErrorCode::Busy, failed.to_string()))
                        }
                    });
                });
            }
            SourceEffect::NeedManifest => {
                let (feeding, answer) = (Arc::clone(&self.feeding), answer.clone());
                self.note(|heard| heard.state = "synchronising".into());
                tokio::spawn(async move {
                    let event = match feeding.bulk.manifest(&feeding.reign, &replica).await {
                        Ok(manifest) => SourceEvent::Manifest(manifest),
                        Err(problem) => {
                            warn!(%replica, %problem, "no synchronisation now");
                            let mut refusal = ErrorFrame::new(ErrorCode::Busy, problem);
                            refusal.retry_after_ms = Some(UNREADABLE_MS);
                            SourceEvent::Refuse(refusal)
                        }
                    };
                    let _ = answer.send(event);
                });
            }
            SourceEffect::Attached { durable } => {
                self.trail.acked(durable);
                info!(%replica, %durable, epoch = self.reign.epoch.0, "replica attached");
                self.note(|heard| heard.state = "streaming".into());
                self.feeding.bulk.attached(&replica);
                let boot = self.peer.boot;
                self.reign.step(PrimaryEvent::Connected { replica: &replica, boot, session, durable });
            }
            SourceEffect::StreamFrom(at) => self.send(Out::StreamFrom(at)),
            SourceEffect::Acked { durable, applied } => {
                self.trail.acked(durable);
                self.reign.step(PrimaryEvent::Acked { session, durable, applied });
                if self.express.as_ref().is_none_or(|express| !express.is_left()) {
                    self.room.notify_one();
                }
            }
            SourceEffect::Online => debug!(%replica, "replica has caught up"),
            SourceEffect::Lease { sync_id, bytes_done, .. } => {
                self.feeding.bulk.renew(sync_id, bytes_done);
            }
            SourceEffect::SyncAborted { sync_id, reason } => {
                warn!(%replica, %reason, "synchronisation given up by the replica");
                self.feeding.bulk.release(sync_id);
            }
            SourceEffect::Lag(_) => {}
            SourceEffect::Vitals(vitals) => self.note(|heard| heard.vitals = Some(vitals)),
            SourceEffect::Switchover(frame) => debug!(%replica, frame = frame.name(), "not used"),
            SourceEffect::Fenced(epoch) => {
                warn!(%replica, epoch = epoch.0, "a replica has promised a newer epoch");
                self.feeding.election.tell(Event::PeerEpoch(epoch));
            }
            SourceEffect::Close(end) => {
                info!(%replica, reason = %end, "session with the replica ended");
                return true;
            }
        }
        false
    }
}

/// Sends what the machine says, and the journal as far as the window allows.
async fn feed(
    machine: Arc<Mutex<SourceSession>>,
    reign: Arc<Reign>,
    mut outgoing: mpsc::UnboundedReceiver<Out>,
    (room, express): (Arc<Notify>, Option<Arc<Express>>),
    mut writer: FrameWriter,
) -> std::io::Result<()> {
    let lock = || unpoisoned(&machine);
    let mut sealed = reign.sealed();
    let mut committed = reign.committed();
    let mut cursor = None;
    let mut files = None;
    loop {
        if let Some(at) = express.as_ref().and_then(|express| express.take_back()) {
            cursor = Some(at);
        }
        while let Ok(out) = outgoing.try_recv() {
            match out {
                Out::Frame(frame) => writer.send(&frame).await?,
                Out::StreamFrom(at) => cursor = Some(at),
                Out::Close => return writer.flush().await,
            }
        }
        let window = lock().window();
        let mut caught_up = false;
        if let Some(at) = cursor.filter(|_| window > 0) {
            sealed.borrow_and_update();
            let limit = window.min(UPDATE_BYTES_MAX) as usize;
            let piece = reign.ring(|ring| match ring.from(at, limit) {
                Next::Batches(run) => Some(Ok((run.start(), run.prev_chain(), run.end(), run.body()))),
                Next::CaughtUp => None,
                Next::FallenOut => Some(Err(())),
            });
            let piece = match piece {
                None => {
                    caught_up = true;
                    None
                }
                Some(Ok(piece)) => {
                    files = None;
                    Some(piece)
                }
                Some(Err(())) => {
                    let mut from = files.take().unwrap_or_else(|| FromFiles::new(&reign.reader(), at));
                    let reading = spawn_blocking(move || (from.piece(UPDATE_BYTES_MAX), from));
                    let (read, rest) = reading.await.map_err(std::io::Error::other)?;
                    files = Some(rest);
                    match read {
                        Ok(Some(piece)) => Some(piece),
                        Ok(None) => {
                            // Sealed, not flushed here yet, and out of the ring: it will be in the files soon.
                            files = None;
                            caught_up = true;
                            None
                        }
                        Err(problem) => {
                            warn!(%problem, "the journal cannot be read for a replica");
                            return Err(std::io::Error::other(problem));
                        }
                    }
                }
            };
            if let Some((start, prev_chain, end, body)) = piece {
                let frame = lock().update(start, prev_chain, body, reign.commit());
                writer.send(&frame).await?;
                cursor = Some(end);
                continue;
            }
        }
        writer.flush().await?;
        let commit_moved = committed.has_changed().unwrap_or(false);
        if let Some(express) = &express
            && let Some(at) = cursor.filter(|_| caught_up)
        {
            express.leave(at);
        }
        tokio::select! {
            biased;
            () = writer.left() => {}
            changed = sealed.changed(), if caught_up => if changed.is_err() { return Ok(()) },
            out = outgoing.recv() => match out {
                Some(Out::Frame(frame)) => writer.send(&frame).await?,
                Some(Out::StreamFrom(at)) => {
                    express.as_ref().and_then(|express| express.take_back());
                    cursor = Some(at);
                }
                Some(Out::Close) | None => return writer.flush().await,
            },
            () = room.notified() => {}
            () = tokio::time::sleep(ANNOUNCE), if cursor.is_some() && commit_moved => {
                let commit = *committed.borrow_and_update();
                let mut effects = Vec::new();
                let now = boot_ms(&*reign.shared.clock);
                lock().step(now, SourceEvent::Committed(commit), &mut effects);
                for effect in effects {
                    if let SourceEffect::Send(frame) = effect {
                        writer.send(&frame).await?;
                    }
                }
            }
            changed = committed.changed(), if !commit_moved => {
                if changed.is_err() {
                    return Ok(());
                }
                // Seen, not announced: the next look at it starts the wait.
                committed.mark_changed();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_as_far_behind_as_its_oldest_missing_byte_is_old() {
        let mut trail = Trail::default();
        for (now, end) in [(0, 10), (100, 12), (1000, 20), (2000, 20), (3000, 30)] {
            trail.reached(now, Lsn(end));
        }
        let mut check = |acked, now, expected| {
            trail.acked(Lsn(acked));
            assert_eq!(trail.behind_ms(now), expected, "{acked} at {now}");
        };
        check(0, 3500, 3500);
        // Between two moments that are remembered: as old as the later one at most.
        check(11, 3500, 2500);
        check(20, 3500, 500);
        check(30, 9000, 0);
        // Under steady load it is never at the end, and not far behind either.
        for now in 0..100_i64 {
            trail.reached(now * 100, Lsn(1000 + now as u64));
            trail.acked(Lsn(998 + now as u64));
            assert!(trail.behind_ms(now * 100) <= 300, "{} ms", trail.behind_ms(now * 100));
        }
        // One that hangs: the oldest moment stays, however many follow.
        for now in 0..10 * TRAIL_MAX as i64 {
            trail.reached(20_000 + now * TRAIL_MS, Lsn(2000 + now as u64));
        }
        assert!(trail.ends.len() <= TRAIL_MAX);
        assert!(trail.behind_ms(20_000 + 9_000_000) >= 9_000_000);
    }
}
