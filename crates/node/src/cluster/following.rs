//! The threads of a replica: one copies what the primary sends, one brings the index to the commit position, one keeps house.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use kahawai_env::Clock;
use kahawai_journal::{Chain, CopyError, Preparer, Writer};
use kahawai_replication::{SinkEffect, SinkEvent, SinkSession};
use kahawai_shipping::split;
use kahawai_store::Follower;
use kahawai_types::{Lsn, Millis};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use super::net::Line;
use super::reign::boot_ms;
use crate::core::{APPLY_BYTES_MIN, Bell, Failure, unpoisoned};
use crate::threads::{Owner, Written, retire, spawn};

/// Records applied under one lock.
const APPLY_MAX: usize = 4096;
/// What is less than [`APPLY_BYTES_MIN`] waits for the index so long at most.
const APPLY_PAUSE: Duration = Duration::from_millis(10);
/// Bodies that may wait for the copying thread; what they may hold is bounded by the window that the primary was given.
const WORK_MAX: usize = 1024;
/// One flush for at most so many bytes.
const COPY_BYTES_MAX: usize = 16 << 20;
/// How often housekeeping looks.
const UPKEEP: Duration = Duration::from_millis(500);

/// For the copying thread.
#[derive(Debug)]
pub(crate) enum Work {
    /// The body of a JOURNAL_UPDATE, with its first position.
    Body(Lsn, Bytes),
    /// Say where the journal ends when everything before this is done.
    Barrier(oneshot::Sender<(Lsn, Option<Chain>)>),
}

/// What the threads say to the session.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Said {
    /// So much is flushed here.
    Written {
        /// The end of it.
        durable: Lsn,
        /// The chain there.
        chain: Chain,
        /// Counts as a step that is not sent: see [`SharedSink`].
        is_counted: bool,
    },
    /// The session's machine knows of it, and wants this.
    Acknowledged(Vec<SinkEffect>),
    /// The primary sent what does not continue this journal.
    Refused(String),
}

/// The machine of a session, which its task and the copying thread step.
pub(crate) struct SharedSink {
    pub(crate) session: SinkSession,
    /// Steps whose frames are not all in the queue of the connection yet. Nothing may overtake them: an acknowledgement that comes
    /// behind a higher one says that the replica has lost what it had.
    unsent: u32,
}

impl SharedSink {
    pub(crate) fn new(session: SinkSession) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { session, unsent: 0 }))
    }

    /// Makes a step. `true` = it has frames, or will have some: [`SharedSink::sent`] has to follow.
    #[must_use]
    pub(crate) fn step(&mut self, now: Millis, event: SinkEvent, effects: &mut Vec<SinkEffect>) -> bool {
        self.session.step(now, event, effects);
        let sends = |effect: &SinkEffect| matches!(effect, SinkEffect::Send(_) | SinkEffect::Promise(_));
        let is_counted = effects.iter().any(sends);
        self.unsent += u32::from(is_counted);
        is_counted
    }

    /// The frames of a step are in the queue.
    pub(crate) fn sent(&mut self) {
        self.unsent = self.unsent.saturating_sub(1);
    }
}

/// The copying thread acknowledges without the session's task: a hand-over less stands between a message and its receipt.
pub(crate) struct AckAhead {
    machine: Arc<Mutex<SharedSink>>,
    line: Arc<Line>,
    clock: Arc<dyn Clock>,
}

impl AckAhead {
    pub(crate) fn new(machine: Arc<Mutex<SharedSink>>, line: Arc<Line>, clock: Arc<dyn Clock>) -> Self {
        Self { machine, line, clock }
    }

    /// So much is flushed: acknowledges it, unless the session's task has something to send first. What that has to do is returned.
    pub(crate) fn written(&self, durable: Lsn, chain: Chain, mut commit: impl FnMut(Lsn)) -> Option<Said> {
        let mut machine = unpoisoned(&self.machine);
        if machine.unsent > 0 {
            machine.unsent += 1;
            return Some(Said::Written { durable, chain, is_counted: true });
        }
        let mut effects = Vec::new();
        let written = SinkEvent::Written { durable, chain: chain.0 };
        let is_counted = machine.step(boot_ms(&*self.clock), written, &mut effects);
        let done = effects.iter().take_while(|effect| match effect {
            SinkEffect::Send(frame) => self.line.try_send(|| Some((*frame).clone())),
            SinkEffect::Commit(to) => {
                commit(*to);
                true
            }
            _ => false,
        });
        let done = done.count();
        effects.drain(..done);
        if effects.is_empty() {
            if is_counted {
                machine.sent();
            }
            return None;
        }
        // The machine is held still: the next does not overtake what is left, whatever that is.
        machine.unsent += u32::from(!is_counted);
        Some(Said::Acknowledged(effects))
    }
}

/// As long as it lives, acknowledgements go the short way.
pub(crate) struct AckingAhead(Arc<Following>);

impl Drop for AckingAhead {
    fn drop(&mut self) {
        *unpoisoned(&self.0.ahead) = None;
    }
}

/// A replica's store, shared by its threads and the session.
pub(crate) struct Following {
    follower: Mutex<Option<Follower>>,
    commit: AtomicU64,
    applied: AtomicU64,
    durable: AtomicU64,
    bell: Bell,
    /// The index's thread waits for the bell, and for nothing else.
    is_idle: AtomicBool,
    /// Housekeeping's.
    upkeep: Bell,
    stopping: AtomicBool,
    failure: Failure,
    ahead: Mutex<Option<AckAhead>>,
}

impl Following {
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Follower) -> R) -> Option<R> {
        self.lock().as_mut().map(work)
    }

    /// A session has begun.
    pub(crate) fn acknowledge_ahead(self: &Arc<Self>, ahead: AckAhead) -> AckingAhead {
        *unpoisoned(&self.ahead) = Some(ahead);
        AckingAhead(Arc::clone(self))
    }

    /// So much is flushed: acknowledges it. What the session's task has to do is returned.
    fn written(&self, durable: Lsn, chain: Chain) -> Option<Said> {
        match &*unpoisoned(&self.ahead) {
            Some(ahead) => ahead.written(durable, chain, |commit| self.commit(commit)),
            None => Some(Said::Written { durable, chain, is_counted: false }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Follower>> {
        unpoisoned(&self.follower)
    }

    /// The primary has confirmed everything below.
    pub(crate) fn commit(&self, to: Lsn) {
        if self.commit.fetch_max(to.0, Ordering::AcqRel) < to.0 {
            self.look();
        }
    }

    /// There may be something for the index: not worth waking its thread for each batch.
    fn look(&self) {
        let to = self.committed().min(self.durable());
        let behind = to.0.saturating_sub(self.applied().0);
        if behind >= APPLY_BYTES_MIN || self.is_idle.swap(false, Ordering::AcqRel) {
            self.bell.ring();
        }
    }

    /// The commit position as far as it is known here.
    pub(crate) fn committed(&self) -> Lsn {
        Lsn(self.commit.load(Ordering::Acquire))
    }

    /// How far the index is.
    pub(crate) fn applied(&self) -> Lsn {
        Lsn(self.applied.load(Ordering::Acquire))
    }

    /// How much is flushed here.
    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    /// Why storage failed.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.reason().map(str::to_owned)
    }

    /// Ends when storage fails.
    pub(crate) async fn failed(&self) {
        self.failure.wait().await;
    }
}

impl Owner for Following {
    fn fail(&self, reason: String) {
        error!(%reason, "this replica's storage failed; it acknowledges nothing any more");
        self.failure.tell(reason);
        self.stopping.store(true, Ordering::Release);
        self.bell.ring();
        self.upkeep.ring();
    }
}

/// The running threads.
pub(crate) struct FollowingThreads {
    pub(crate) following: Arc<Following>,
    pub(crate) work: mpsc::Sender<Work>,
    pub(crate) said: mpsc::UnboundedReceiver<Said>,
    copier: JoinHandle<Option<Writer>>,
    applier: JoinHandle<()>,
    upkeep: JoinHandle<()>,
    rest: FollowingRest,
}

impl FollowingThreads {
    /// Starts them. `commit` is what is known to be confirmed.
    pub(crate) fn start(
        follower: Follower,
        writer: Writer,
        mut preparer: Preparer,
        commit: Lsn,
        clock: Arc<dyn Clock>,
        may_retire: impl Fn() -> bool + Send + 'static,
        scrub: (u64, mpsc::UnboundedSender<kahawai_journal::Scrubbed>),
    ) -> std::io::Result<Self> {
        let scrubber = follower.journal().scrubber(scrub.0);
        let following = Arc::new(Following {
            commit: AtomicU64::new(commit.0),
            applied: AtomicU64::new(follower.applied().0),
            durable: AtomicU64::new(writer.written().0),
            follower: Mutex::new(Some(follower)),
            bell: Bell::default(),
            upkeep: Bell::default(),
            stopping: AtomicBool::new(false),
            failure: Failure::default(),
            is_idle: AtomicBool::new(false),
            ahead: Mutex::default(),
        });
        let (work, receiver) = mpsc::channel(WORK_MAX);
        let (say, said) = mpsc::unbounded_channel();
        let copier = spawn("copy", &following, move |following| copy(following, writer, receiver, &say))?;
        let applier = spawn("follow", &following, apply)?;
        let prepare = spawn("prepare", &following, move |_| preparer.run())?;
        let upkeep = spawn("upkeep", &following, move |following| upkeep(following, &*clock, may_retire))?;
        let scrub = spawn("scrub", &following, move |_| {
            for scrubbed in scrubber {
                if scrub.1.send(scrubbed).is_err() {
                    return;
                }
            }
        })?;
        let rest = FollowingRest([prepare, scrub]);
        Ok(Self { following, work, said, copier, applier, upkeep, rest })
    }

    /// Ends the threads that follow; what was sent is written first. The store comes back with its writer, for a promotion or
    /// to be closed. Blocks.
    pub(crate) fn end(self) -> Result<(Follower, Writer, FollowingRest), String> {
        drop(self.work);
        let writer = self.copier.join().ok().flatten();
        self.following.stopping.store(true, Ordering::Release);
        self.following.bell.ring();
        self.following.upkeep.ring();
        let _ = self.applier.join();
        let _ = self.upkeep.join();
        if let Some(reason) = self.following.failure() {
            return Err(reason);
        }
        let follower = self.following.lock().take();
        match (follower, writer) {
            (Some(follower), Some(writer)) => Ok((follower, writer, self.rest)),
            _ => Err("a thread of this replica ended early".into()),
        }
    }
}

/// The threads that make the next data file and look for damage go on over a promotion.
pub(crate) struct FollowingRest([JoinHandle<()>; 2]);

impl FollowingRest {
    /// Waits for them; the journal must be closed.
    pub(crate) fn join(self) {
        for thread in self.0 {
            let _ = thread.join();
        }
    }
}

fn copy(
    following: &Following,
    mut writer: Writer,
    mut work: mpsc::Receiver<Work>,
    say: &mpsc::UnboundedSender<Said>,
) -> Option<Writer> {
    let mut batches = Vec::new();
    let mut ahead = None;
    while let Some(next) = ahead.take().or_else(|| work.blocking_recv()) {
        let (at, body) = match next {
            Work::Body(at, body) => (at, body),
            Work::Barrier(answer) => {
                let _ = answer.send((writer.written(), writer.chain()));
                continue;
            }
        };
        // Whatever gathered during the last flush goes into one.
        let mut bytes = body.len();
        let mut cut = split(at, body, &mut batches);
        while cut.is_ok()
            && bytes < COPY_BYTES_MAX
            && let Ok(next) = work.try_recv()
        {
            match next {
                Work::Body(at, body) => {
                    bytes += body.len();
                    cut = split(at, body, &mut batches);
                }
                barrier @ Work::Barrier(_) => {
                    ahead = Some(barrier);
                    break;
                }
            }
        }
        let copied = writer.copy(&batches);
        batches.clear();
        match copied {
            Ok(durable) => {
                following.durable.store(durable.0, Ordering::Release);
                let said = following.written(durable, writer.chain().unwrap_or_default());
                following.look();
                if let Some(said) = said {
                    let _ = say.send(said);
                }
            }
            Err(CopyError::Failed(failed)) => {
                following.fail(crate::chain(&failed));
                return None;
            }
            Err(refused) => {
                let _ = say.send(Said::Refused(crate::chain(&refused)));
            }
        }
        if let Err(problem) = cut {
            let _ = say.send(Said::Refused(problem));
        }
    }
    Some(writer)
}

fn apply(following: &Arc<Following>) {
    while !following.stopping.load(Ordering::Acquire) {
        let to = following.committed().min(following.durable());
        let before = following.applied();
        let applied = following.with(|follower| {
            let more = follower.apply(to, APPLY_MAX);
            following.applied.store(follower.applied().0, Ordering::Release);
            more
        });
        match applied {
            None => return,
            Some(Ok(true)) => {}
            // Whatever comes soon is applied together; after nothing came, the next one rings.
            Some(Ok(false)) if following.applied() > before => following.bell.wait(APPLY_PAUSE),
            Some(Ok(false)) => {
                following.is_idle.store(true, Ordering::Release);
                // Either we see what came, or who brought it sees that we are idle.
                fence(Ordering::SeqCst);
                if following.committed().min(following.durable()) == to {
                    following.bell.wait(UPKEEP);
                }
                following.is_idle.store(false, Ordering::Release);
            }
            Some(Err(problem)) => return following.fail(crate::chain(&problem)),
        }
    }
}

fn upkeep(following: &Arc<Following>, clock: &dyn Clock, may_retire: impl Fn() -> bool) {
    let mut written = Written::new(clock.boot_ms(), following.applied());
    while !following.stopping.load(Ordering::Acquire) {
        following.upkeep.wait(UPKEEP);
        let now = clock.boot_ms();
        let applied = following.applied();
        let behind = following.with(|follower| follower.behind_checkpoint_bytes()).unwrap_or(0);
        if written.is_due(now, applied, behind) {
            if let Err(reason) = checkpoint(following) {
                return following.fail(reason);
            }
            written = Written::new(now, applied);
        }
        if !may_retire() {
            continue;
        }
        let Some((retired, journal)) =
            following.with(|follower| (follower.to_retire(), follower.journal().clone()))
        else {
            return;
        };
        retire(&journal, retired, |file| {
            following.with(|follower| follower.retired(file));
        });
    }
}

fn checkpoint(following: &Following) -> Result<(), String> {
    let Some((checkpoint, index)) =
        following.with(|follower| (follower.begin_checkpoint(false), follower.index()))
    else {
        return Ok(());
    };
    let header = checkpoint.header;
    index.write(checkpoint).map_err(|problem| crate::chain(&problem))?;
    following.with(|follower| follower.finish_checkpoint(header));
    Ok(())
}
