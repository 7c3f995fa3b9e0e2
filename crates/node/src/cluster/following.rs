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
use kahawai_types::Lsn;
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
    },
    /// The session's machine knows of it, and wants this.
    Acknowledged(Vec<SinkEffect>),
    /// The primary sent what does not continue this journal.
    Refused(String),
}

/// The copying thread acknowledges without the session's task: a hand-over less stands between a message and its receipt.
pub(crate) struct AckAhead {
    machine: Arc<Mutex<SinkSession>>,
    line: Arc<Line>,
    clock: Arc<dyn Clock>,
}

impl AckAhead {
    pub(crate) fn new(machine: Arc<Mutex<SinkSession>>, line: Arc<Line>, clock: Arc<dyn Clock>) -> Self {
        Self { machine, line, clock }
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
        let ahead = unpoisoned(&self.ahead);
        let Some(AckAhead { machine, line, clock }) = &*ahead else {
            return Some(Said::Written { durable, chain });
        };
        let mut effects = Vec::new();
        let written = SinkEvent::Written { durable, chain: chain.0 };
        unpoisoned(machine).step(boot_ms(&**clock), written, &mut effects);
        let done = effects.iter().take_while(|effect| match effect {
            SinkEffect::Send(frame) => line.try_send(|| Some((*frame).clone())),
            SinkEffect::Commit(to) => {
                self.commit(*to);
                true
            }
            _ => false,
        });
        let done = done.count();
        effects.drain(..done);
        (!effects.is_empty()).then_some(Said::Acknowledged(effects))
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
    prepare: JoinHandle<()>,
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
    ) -> std::io::Result<Self> {
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
        Ok(Self { following, work, said, copier, applier, upkeep, prepare })
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
            (Some(follower), Some(writer)) => Ok((follower, writer, FollowingRest(self.prepare))),
            _ => Err("a thread of this replica ended early".into()),
        }
    }
}

/// The thread that makes the next data file goes on over a promotion.
pub(crate) struct FollowingRest(JoinHandle<()>);

impl FollowingRest {
    /// Waits for it; the journal must be closed.
    pub(crate) fn join(self) {
        let _ = self.0.join();
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
