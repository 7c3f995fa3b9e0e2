//! One reign of this node as primary: what is committed, who is in sync, what goes to replicas.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use kahawai_env::Clock;
use kahawai_journal::{JournalReader, SealedBatch};
use kahawai_replication::{
    Primary, PrimaryEffect, PrimaryEvent, PrimaryStatus, Refusal, Ring, RingBatch, SessionId, SourceSession,
    Timing,
};
use kahawai_types::{BootId, Epoch, Lsn, Millis, ReplicaId};
use tokio::sync::{mpsc, watch};
use tracing::info;

use super::net::Line;
use crate::core::{Shared, unpoisoned};
use crate::threads::Copies;
use kahawai_shipping::Sealed;

/// Recent batches that replicas are fed from; who is further behind reads the files.
const RING_BYTES_MAX: usize = 64 << 20;
/// The journal thread sends no batch itself that is larger: its own write waits for that.
const EXPRESS_BYTES_MAX: usize = 16 << 10;

/// What the machine wants from the task that leads.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// The record is to name this set.
    Propose { in_sync: BTreeSet<ReplicaId>, reason: String },
    /// The marker is committed: serve.
    Activate,
    /// Persistent work waits.
    Suspended(String),
    /// It goes on.
    Resumed,
    /// Our own disk has flushed nothing for so many milliseconds, and a replica's has: somebody else should lead.
    Stalled(Millis),
}

struct Machine {
    primary: Primary,
    effects: Vec<PrimaryEffect>,
    /// How to end each session.
    sessions: HashMap<SessionId, mpsc::UnboundedSender<Refusal>>,
}

/// What a reign begins with.
pub(crate) struct Beginning {
    pub(crate) me: ReplicaId,
    pub(crate) epoch: Epoch,
    pub(crate) marker_end: Lsn,
    /// Where our own journal's batches go on: the marker's.
    pub(crate) ring_start: Lsn,
    pub(crate) in_sync: BTreeSet<ReplicaId>,
    pub(crate) minimum_replicas: u32,
    pub(crate) unclean_generation: u64,
    pub(crate) timing: Timing,
}

/// Shared by the journal thread, the sessions and the task that leads.
pub(crate) struct Reign {
    pub(crate) epoch: Epoch,
    pub(crate) unclean_generation: u64,
    pub(crate) timing: Timing,
    pub(crate) shared: Arc<Shared>,
    machine: Mutex<Machine>,
    ring: Mutex<Ring>,
    /// What was sealed: senders wait for it to move.
    sealed: watch::Sender<Sealed>,
    committed: watch::Sender<Lsn>,
    wanted: mpsc::UnboundedSender<Wanted>,
    express: Mutex<Vec<Arc<Express>>>,
    session_last: AtomicU64,
    /// The last flush here.
    durable: AtomicU64,
    over: watch::Sender<bool>,
}

impl Reign {
    pub(crate) fn begin(
        beginning: Beginning,
        shared: Arc<Shared>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Wanted>) {
        let Beginning { me, epoch, marker_end, ring_start, in_sync, minimum_replicas, .. } = beginning;
        let Beginning { unclean_generation, timing, .. } = beginning;
        let now = boot_ms(&*shared.clock);
        let primary = Primary::new(me, epoch, marker_end, in_sync, minimum_replicas, timing, now);
        let (wanted, wants) = mpsc::unbounded_channel();
        let reign = Self {
            epoch,
            unclean_generation,
            timing,
            machine: Mutex::new(Machine { primary, effects: Vec::new(), sessions: HashMap::new() }),
            ring: Mutex::new(Ring::new(RING_BYTES_MAX, ring_start)),
            sealed: watch::Sender::new(Sealed { end: ring_start, chain: 0, marker: None }),
            committed: watch::Sender::new(shared.commit.position()),
            wanted,
            express: Mutex::default(),
            session_last: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            over: watch::Sender::new(false),
            shared,
        };
        (Arc::new(reign), wants)
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        unpoisoned(&self.machine)
    }

    /// Offers an event to the machine and carries out what it says.
    pub(crate) fn step(&self, event: PrimaryEvent<'_>) {
        if let Some(commit) = self.stepped(event) {
            // Without the lock, and with answers: whoever comes here has time for a few. Positions only rise.
            self.shared.confirm_and_answer(commit);
        }
    }

    /// Returns what is to be confirmed.
    fn stepped(&self, event: PrimaryEvent<'_>) -> Option<Lsn> {
        let now = boot_ms(&*self.shared.clock);
        let mut guard = self.lock();
        let machine = &mut *guard;
        machine.primary.step(now, event, &mut machine.effects);
        // What was committed while the gate was shut, and the grant was renewed after all.
        let mut commit = matches!(event, PrimaryEvent::Tick).then(|| machine.primary.commit());
        for effect in machine.effects.drain(..) {
            match effect {
                PrimaryEffect::Commit(at) => {
                    commit = Some(at);
                    // Under the lock, so that no smaller one comes later.
                    self.committed.send_replace(at);
                }
                PrimaryEffect::Activate => self.want(Wanted::Activate),
                PrimaryEffect::Propose { in_sync, reason } => self.want(Wanted::Propose { in_sync, reason }),
                PrimaryEffect::Suspended { reason } => self.want(Wanted::Suspended(reason)),
                PrimaryEffect::Resumed => self.want(Wanted::Resumed),
                PrimaryEffect::Stalled { for_ms } => self.want(Wanted::Stalled(for_ms)),
                PrimaryEffect::Left { replica, reason } => {
                    info!(%replica, %reason, epoch = self.epoch.0, "replica left the in-sync set");
                }
                PrimaryEffect::Joined { replica } => {
                    info!(%replica, epoch = self.epoch.0, "replica joined the in-sync set");
                }
                PrimaryEffect::Refuse { session, refusal } => {
                    if let Some(end) = machine.sessions.get(&session) {
                        let _ = end.send(refusal);
                    }
                }
            }
        }
        commit
    }

    /// A replica that is fed by the journal thread itself, as long as it keeps up.
    pub(crate) fn add_express(&self, express: Arc<Express>) {
        unpoisoned(&self.express).push(express);
    }

    /// Its session is over.
    pub(crate) fn remove_express(&self, express: &Arc<Express>) {
        unpoisoned(&self.express).retain(|other| !Arc::ptr_eq(other, express));
    }

    /// Sends a batch that goes on at `from` to the replicas that wait for it. `true` = all of them have it on their way.
    fn send_ahead(&self, from: Lsn, batch: &SealedBatch, bytes: &Bytes) -> bool {
        if bytes.len() > EXPRESS_BYTES_MAX {
            return false;
        }
        let commit = self.commit();
        // All are tried, also behind one that has to wait.
        let express = unpoisoned(&self.express);
        express.iter().filter(|express| !express.send(from, batch, bytes, commit)).count() == 0
    }

    fn want(&self, wanted: Wanted) {
        // The task that leads ends with the reign.
        let _ = self.wanted.send(wanted);
    }

    /// May a session of this process begin?
    pub(crate) fn may_connect(&self, replica: &ReplicaId, boot: BootId) -> Result<(), Refusal> {
        self.lock().primary.may_connect(replica, boot)
    }

    /// A number for a session, and what ends it.
    pub(crate) fn open_session(&self) -> (SessionId, mpsc::UnboundedReceiver<Refusal>) {
        let session = SessionId(self.session_last.fetch_add(1, Ordering::Relaxed) + 1);
        let (end, ended) = mpsc::unbounded_channel();
        self.lock().sessions.insert(session, end);
        (session, ended)
    }

    /// The session is over.
    pub(crate) fn close_session(&self, session: SessionId, orderly: bool) {
        self.lock().sessions.remove(&session);
        self.step(PrimaryEvent::Disconnected { session, orderly });
    }

    /// Looks into the ring.
    pub(crate) fn ring<R>(&self, look: impl FnOnce(&Ring) -> R) -> R {
        look(&unpoisoned(&self.ring))
    }

    /// Moves when a batch is sealed.
    pub(crate) fn sealed(&self) -> watch::Receiver<Sealed> {
        self.sealed.subscribe()
    }

    /// Moves with the commit position.
    pub(crate) fn committed(&self) -> watch::Receiver<Lsn> {
        self.committed.subscribe()
    }

    /// The commit position that replicas are told.
    pub(crate) fn commit(&self) -> Lsn {
        *self.committed.borrow()
    }

    /// What is flushed here.
    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    pub(crate) fn reader(&self) -> JournalReader {
        self.shared.reader.clone()
    }

    /// How the cluster is doing.
    pub(crate) fn status(&self) -> PrimaryStatus {
        self.lock().primary.status()
    }

    /// The reign ends: sessions close.
    pub(crate) fn end(&self) {
        self.over.send_replace(true);
    }

    /// Ends when the reign does.
    pub(crate) async fn ended(&self) {
        let mut over = self.over.subscribe();
        // An error means that the reign is gone altogether.
        let _ = over.wait_for(|over| *over).await;
    }
}

/// The way to a replica that has everything: small batches leave with the journal thread, before it writes them itself, and two
/// hand-overs less stand between a message and its receipt.
pub(crate) struct Express {
    machine: Arc<Mutex<SourceSession>>,
    line: Arc<Line>,
    /// Where the stream goes on while the feeding task has nothing to send; `None`: it is its turn.
    at: Mutex<Option<Lsn>>,
}

impl Express {
    pub(crate) fn new(machine: Arc<Mutex<SourceSession>>, line: Arc<Line>) -> Self {
        Self { machine, line, at: Mutex::new(None) }
    }

    /// The feeding task has sent everything up to there and waits.
    pub(crate) fn leave(&self, at: Lsn) {
        *unpoisoned(&self.at) = Some(at);
    }

    /// The feeding task goes on. Returns where, if it had left its place.
    pub(crate) fn take_back(&self) -> Option<Lsn> {
        unpoisoned(&self.at).take()
    }

    /// Does the feeding task wait for nothing but the next batch?
    pub(crate) fn is_left(&self) -> bool {
        unpoisoned(&self.at).is_some()
    }

    fn send(&self, from: Lsn, batch: &SealedBatch, bytes: &Bytes, commit: Lsn) -> bool {
        let mut at = unpoisoned(&self.at);
        if *at != Some(from) {
            return false;
        }
        let is_sent = self.line.try_send(|| {
            let mut machine = unpoisoned(&self.machine);
            let has_room = machine.window() >= bytes.len() as u64;
            has_room.then(|| machine.update(batch.start, batch.prev_chain.0, bytes.clone(), commit))
        });
        if is_sent {
            *at = Some(batch.end);
        }
        is_sent
    }
}

/// The boot clock as the machines take it.
pub(crate) fn boot_ms(clock: &dyn Clock) -> Millis {
    Millis::try_from(clock.boot_ms()).unwrap_or(Millis::MAX)
}

/// The journal thread's side of a reign.
pub(crate) struct ReignCopies(pub(crate) Arc<Reign>);

impl Copies for ReignCopies {
    fn sealed(&mut self, batch: &SealedBatch) {
        let entry = RingBatch {
            start: batch.start,
            end: batch.end,
            prev_chain: batch.prev_chain.0,
            epoch: batch.epoch,
            bytes: batch.bytes(),
        };
        let bytes = entry.bytes.clone();
        unpoisoned(&self.0.ring).push(entry);
        self.0.step(PrimaryEvent::Appended(batch.end));
        let from = self.0.sealed.borrow().end;
        let all_have_it = self.0.send_ahead(from, batch, &bytes);
        self.0.sealed.send_if_modified(|sealed| {
            sealed.end = batch.end;
            sealed.chain = batch.chain.0;
            // The first batch of a reign is its marker's, and awaited.
            let is_first = sealed.marker.is_none();
            sealed.marker.get_or_insert((batch.start, batch.prev_chain.0));
            is_first || !all_have_it
        });
    }

    fn durable(&mut self, end: Lsn) {
        self.0.durable.store(end.0, Ordering::Release);
        self.0.step(PrimaryEvent::LocalDurable(end));
    }
}
