//! Broker and store behind one lock, and the way their effects take.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};

use kahawai_broker::{Broker, ConnectionKey, Effect, LoadRequest, ScanRequest};
use kahawai_env::{Clock, Files};
use kahawai_journal::JournalReader;
use kahawai_message::storage::{Applied, StorageError};
use kahawai_store::Store;
use kahawai_types::{Lsn, Millis};

use crate::confirm::Commit;
use crate::gate::Gate;
use crate::outbox::{Item, Outbox};

/// Work that reads message bodies, outside of the core's lock.
#[derive(Debug)]
pub enum Errand {
    /// Compare with a selector.
    Scan(ScanRequest),
    /// Read one.
    Load(LoadRequest),
}

/// Nobody waits for less than this to be applied, unless the broker says so.
pub(crate) const APPLY_BYTES_MIN: u64 = 64 << 10;

/// What the lock protects.
pub struct Core {
    /// Decides.
    pub broker: Broker,
    /// Remembers.
    pub store: Store,
    /// Where effects of the call under way go.
    pub effects: Vec<Effect>,
    /// What the store reports, reused.
    pub applied: Vec<Applied>,
    outboxes: HashMap<ConnectionKey, Arc<Outbox>>,
    wake: Vec<Arc<Outbox>>,
    errands: Vec<Errand>,
    again: bool,
    awaited: bool,
    /// The broker has left something for its next tick, and wants it soon.
    pub tick_asked: bool,
    failed: Option<String>,
}

impl Core {
    /// A storage error ends the node, whoever meets it.
    pub fn check<T>(&mut self, result: Result<T, StorageError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.fail(match error {
                    StorageError::Failed(reason) => reason,
                    other => other.to_string(),
                });
                None
            }
        }
    }

    /// Ends the node. A connection may meet a journal that failed before the journal's thread has said so: the reason is the
    /// journal's own, with file and cause.
    pub fn fail(&mut self, reason: String) {
        let journal = self.store.journal().failure();
        self.failed.get_or_insert(journal.map_or(reason, |failed| crate::chain(&failed)));
    }

    /// Brings the index towards the commit position and lets the broker dispatch; `true` = there is more.
    pub fn apply(&mut self, now: Millis, commit: Lsn, operations_max: usize) -> Result<bool, StorageError> {
        let mut applied = std::mem::take(&mut self.applied);
        let more = self.store.apply(commit, operations_max, &mut applied);
        for one in applied.drain(..) {
            let result = self.broker.applied(now, one, &mut self.store, &mut self.effects);
            self.check(result);
        }
        self.applied = applied;
        more
    }

    /// Applies all that is committed, for somebody who is about to look. The applier meets the same errors, and ends the node.
    pub fn catch_up(&mut self, now: Millis, commit: Lsn) {
        while self.apply(now, commit, usize::MAX).unwrap_or(false) {}
    }

    /// A connection's mailbox, from its CONNECT to its end.
    pub fn register(&mut self, connection: ConnectionKey, outbox: Arc<Outbox>) {
        self.outboxes.insert(connection, outbox);
    }

    /// The end of a mailbox.
    pub fn unregister(&mut self, connection: ConnectionKey) {
        self.outboxes.remove(&connection);
    }

    /// Where to answer what needs nothing durable: at once.
    pub fn answer_at(&self) -> kahawai_types::Lsn {
        kahawai_types::Lsn::ZERO
    }

    /// Sorts effects into mailboxes, still under the lock so that their order holds; waking comes after it.
    fn distribute(&mut self) {
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Deliver { connection, delivery } => {
                    if let Some(outbox) = self.outboxes.get(&connection)
                        && outbox.push(Item::Deliver(delivery))
                    {
                        self.wake.push(Arc::clone(outbox));
                    }
                }
                Effect::Event { connection, event } => {
                    if let Some(outbox) = self.outboxes.get(&connection)
                        && outbox.push(Item::Event(event))
                    {
                        self.wake.push(Arc::clone(outbox));
                    }
                }
                Effect::Unblocked { connection } => {
                    if let Some(outbox) = self.outboxes.get(&connection) {
                        outbox.unblock();
                        self.wake.push(Arc::clone(outbox));
                    }
                }
                Effect::Scan(request) => self.errands.push(Errand::Scan(request)),
                Effect::Load(request) => self.errands.push(Errand::Load(request)),
                Effect::Continue => (self.again, self.tick_asked) = (true, true),
            }
        }
    }
}

/// Deliveries that wait where they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// None.
    Nothing,
    /// Stored messages, but to browsers: an acknowledgement could not be recorded, and they would come again.
    Consumed,
    /// All that are stored: they may turn out not to exist.
    Stored,
}

/// Everything that tasks and threads of one node share.
pub struct Shared {
    core: Mutex<Core>,
    /// The commit position.
    pub commit: Commit,
    /// Reads message bodies.
    pub reader: JournalReader,
    /// The data directory.
    pub files: Arc<dyn Files>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    errands: mpsc::Sender<Errand>,
    /// The applier's bell.
    pub bell: Bell,
    /// Housekeeping's; rung at the end.
    pub upkeep: Bell,
    /// May anything leave for clients?
    pub gate: Gate,
    /// Below it lies what another primary wrote and nobody may have confirmed: no checkpoint before it is committed.
    settled_from: Lsn,
    /// Persistent work waits for replicas.
    suspended: AtomicBool,
    /// No request is taken any more: another node takes over.
    paused: AtomicBool,
    /// Somebody waits for what is applied.
    awaited: AtomicBool,
    /// The applier knows of everything below.
    rung_at: AtomicU64,
    failure: Failure,
    stopping: AtomicBool,
}

/// Why storage failed, once it has.
#[derive(Debug, Default)]
pub struct Failure {
    reason: OnceLock<String>,
    told: tokio::sync::Notify,
}

impl Failure {
    /// It has. The first reason counts.
    pub fn tell(&self, reason: String) {
        let _ = self.reason.set(reason);
        self.told.notify_waiters();
        self.told.notify_one();
    }

    /// Why, if it has.
    pub fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Ends when it has.
    pub async fn wait(&self) {
        let told = self.told.notified();
        if self.reason().is_none() {
            told.await;
        }
    }
}

/// Locks. A thread that panicked ends the node; others must not be kept from ending.
pub fn unpoisoned<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes a thread.
#[derive(Debug, Default)]
pub struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    /// Wakes it.
    pub fn ring(&self) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        if !*rung {
            *rung = true;
            self.changed.notify_one();
        }
    }

    /// Waits for it, at most so long.
    pub fn wait(&self, at_most: std::time::Duration) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        if !*rung {
            rung = self.changed.wait_timeout(rung, at_most).unwrap_or_else(PoisonError::into_inner).0;
        }
        *rung = false;
    }
}

impl Shared {
    /// Puts the parts together.
    pub fn new(
        broker: Broker,
        store: Store,
        files: Arc<dyn Files>,
        clock: Arc<dyn Clock>,
    ) -> (Arc<Self>, mpsc::Receiver<Errand>) {
        let (errands, receiver) = mpsc::channel();
        let commit = Commit::new(kahawai_message::storage::Storage::committed(&store));
        let settled_from = store.settled_from();
        let reader = store.reader();
        let core = Core {
            broker,
            store,
            effects: Vec::new(),
            applied: Vec::new(),
            outboxes: HashMap::new(),
            wake: Vec::new(),
            errands: Vec::new(),
            again: false,
            awaited: false,
            tick_asked: false,
            failed: None,
        };
        let shared = Self {
            core: Mutex::new(core),
            commit,
            reader,
            files,
            clock,
            errands,
            bell: Bell::default(),
            upkeep: Bell::default(),
            gate: Gate::default(),
            settled_from,
            suspended: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            awaited: AtomicBool::new(false),
            rung_at: AtomicU64::new(0),
            failure: Failure::default(),
            stopping: AtomicBool::new(false),
        };
        (Arc::new(shared), receiver)
    }

    /// Everything below is on all replicas that have to have it. Under any lock: tasks give the answers.
    pub fn confirm(&self, to: Lsn) {
        self.raise(to, |_| false);
    }

    /// The same, for a thread that holds no lock and has time for a few answers.
    pub fn confirm_and_answer(&self, to: Lsn) {
        self.raise(to, |outbox| self.gate.is_open(&*self.clock) && outbox.ahead.send(to));
    }

    fn raise(&self, to: Lsn, answers: impl Fn(&Outbox) -> bool) {
        if to <= self.commit.position() || !self.gate.is_open(&*self.clock) {
            return;
        }
        let was_settled = self.is_settled();
        self.commit.raise(to, answers);
        // Either we see that somebody waits, or who makes it so sees the new position.
        fence(Ordering::SeqCst);
        let behind = to.0.saturating_sub(self.rung_at.load(Ordering::Relaxed));
        if self.awaited.load(Ordering::Relaxed) || behind >= APPLY_BYTES_MIN || !was_settled {
            self.rung_at.store(to.0, Ordering::Relaxed);
            self.bell.ring();
        }
        if !was_settled && self.is_settled() {
            self.wake_all();
        }
    }

    /// May the index be written?
    pub fn is_settled(&self) -> bool {
        self.commit.position() >= self.settled_from
    }

    /// Which deliveries have to wait.
    pub fn hold(&self) -> Hold {
        match (self.is_settled(), self.suspended.load(Ordering::Acquire)) {
            (false, _) => Hold::Stored,
            (true, true) => Hold::Consumed,
            (true, false) => Hold::Nothing,
        }
    }

    /// Persistent work waits for replicas, or goes on.
    pub fn suspend(&self, suspended: bool) {
        self.suspended.store(suspended, Ordering::Release);
        self.wake_all();
    }

    /// Takes no more requests, or takes them again.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
        self.wake_all();
    }

    fn wake_all(&self) {
        let outboxes: Vec<_> = self.lock().outboxes.values().cloned().collect();
        for outbox in outboxes {
            outbox.signal.set();
        }
    }

    /// Are requests left where they are?
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// What time it is.
    pub fn now(&self) -> Millis {
        self.clock.now_ms()
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic under the lock leaves the broker in an unknown state: the panic ends that thread, and the process with it
        // (see `threads`); others must not be kept from ending.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` under the lock, then carries out what it caused.
    pub fn with<R>(&self, work: impl FnOnce(&mut Core) -> R) -> R {
        let (result, wake, errands, again, failed) = {
            let mut core = self.lock();
            let result = work(&mut core);
            core.distribute();
            let mut again = std::mem::take(&mut core.again);
            let awaited = core.broker.is_awaited();
            if awaited != core.awaited {
                core.awaited = awaited;
                self.awaited.store(awaited, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                again |= awaited;
            }
            let failed = core.failed.clone();
            (result, std::mem::take(&mut core.wake), std::mem::take(&mut core.errands), again, failed)
        };
        if let Some(reason) = failed {
            self.fail(reason);
        }
        for outbox in wake {
            outbox.signal.set();
        }
        for errand in errands {
            // The receiver ends with the node only.
            let _ = self.errands.send(errand);
        }
        if again {
            self.bell.ring();
        }
        result
    }

    /// Storage failed: nothing is confirmed any more, the process ends.
    pub fn fail(&self, reason: String) {
        self.failure.tell(reason);
        self.stopping.store(true, Ordering::Release);
        self.bell.ring();
        self.upkeep.ring();
    }

    /// Why storage failed.
    pub fn failure(&self) -> Option<&str> {
        self.failure.reason()
    }

    /// Ends when storage fails.
    pub async fn failed(&self) {
        self.failure.wait().await;
    }

    /// The node is stopping.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Tells everybody to stop.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.bell.ring();
        self.upkeep.ring();
        let outboxes: Vec<_> = self.lock().outboxes.values().cloned().collect();
        for outbox in outboxes {
            outbox.close();
        }
    }
}
