//! One reign of this node as primary: what is committed, who is in sync, what goes to replicas.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use kahawai_env::Clock;
use kahawai_journal::{JournalReader, SealedBatch};
use kahawai_replication::{
    Primary, PrimaryEffect, PrimaryEvent, PrimaryStatus, Refusal, Ring, RingBatch, SessionId, Timing,
};
use kahawai_types::{BootId, Epoch, Lsn, Millis, ReplicaId};
use tokio::sync::{mpsc, watch};
use tracing::info;

use crate::core::{Shared, unpoisoned};
use crate::threads::Copies;
use kahawai_shipping::Sealed;

/// Recent batches that replicas are fed from; who is further behind reads the files.
const RING_BYTES_MAX: usize = 64 << 20;

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
        let now = boot_ms(&*self.shared.clock);
        let mut guard = self.lock();
        let machine = &mut *guard;
        machine.primary.step(now, event, &mut machine.effects);
        if matches!(event, PrimaryEvent::Tick) {
            // What was committed while the gate was shut, and the grant was renewed after all.
            self.shared.confirm(machine.primary.commit());
        }
        for effect in machine.effects.drain(..) {
            match effect {
                PrimaryEffect::Commit(at) => {
                    // Under the lock, so that no smaller one comes later.
                    self.shared.confirm(at);
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
        unpoisoned(&self.0.ring).push(entry);
        self.0.sealed.send_modify(|sealed| {
            sealed.end = batch.end;
            sealed.chain = batch.chain.0;
            // The first batch of a reign is its marker's.
            sealed.marker.get_or_insert((batch.start, batch.prev_chain.0));
        });
        self.0.step(PrimaryEvent::Appended(batch.end));
    }

    fn durable(&mut self, end: Lsn) {
        self.0.durable.store(end.0, Ordering::Release);
        self.0.step(PrimaryEvent::LocalDurable(end));
    }
}
