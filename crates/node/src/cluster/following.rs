//! The threads of a replica: one copies what the primary sends, one brings the index to the commit position, one keeps house.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use kahawai_env::Clock;
use kahawai_journal::{CONTROL_BYTES, Chain, Control, CopyError, Preparer, Writer};
use kahawai_store::Follower;
use kahawai_types::Lsn;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use crate::core::Bell;

/// Records applied under one lock.
const APPLY_MAX: usize = 4096;
/// Bodies that may wait for the copying thread; what they may hold is bounded by the window that the primary was given.
const WORK_MAX: usize = 1024;
/// One flush for at most so many bytes.
const COPY_BYTES_MAX: usize = 16 << 20;
/// How often housekeeping looks.
const UPKEEP: Duration = Duration::from_millis(500);
/// Milliseconds between checkpoints.
const CHECKPOINT_MS: u64 = 5_000;
/// A checkpoint is due when a restart would replay this much.
const CHECKPOINT_BYTES: u64 = 256 << 20;

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
    /// The primary sent what does not continue this journal.
    Refused(String),
}

/// A replica's store, shared by its threads and the session.
pub(crate) struct Following {
    follower: Mutex<Option<Follower>>,
    commit: AtomicU64,
    applied: AtomicU64,
    durable: AtomicU64,
    bell: Bell,
    /// Housekeeping's.
    upkeep: Bell,
    stopping: AtomicBool,
    failure: OnceLock<String>,
    failed: tokio::sync::Notify,
}

impl Following {
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Follower) -> R) -> Option<R> {
        self.lock().as_mut().map(work)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Follower>> {
        self.follower.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The primary has confirmed everything below.
    pub(crate) fn commit(&self, to: Lsn) {
        if self.commit.fetch_max(to.0, Ordering::AcqRel) < to.0 {
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
        self.failure.get().cloned()
    }

    /// Ends when storage fails.
    pub(crate) async fn failed(&self) {
        let notified = self.failed.notified();
        if self.failure.get().is_none() {
            notified.await;
        }
    }

    fn fail(&self, reason: String) {
        error!(%reason, "this replica's storage failed; it acknowledges nothing any more");
        let _ = self.failure.set(reason);
        self.stopping.store(true, Ordering::Release);
        self.failed.notify_waiters();
        self.failed.notify_one();
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
    others: Vec<JoinHandle<()>>,
}

#[allow(clippy::disallowed_methods)] // threads belong to node
fn spawn<R: Send + 'static>(
    name: &str,
    following: &Arc<Following>,
    work: impl FnOnce(&Arc<Following>) -> R + Send + 'static,
) -> std::io::Result<JoinHandle<R>> {
    struct Guard<'a>(&'a Arc<Following>, &'a str);
    impl Drop for Guard<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.fail(format!("the {} thread panicked", self.1));
            }
        }
    }
    let following = Arc::clone(following);
    let label = name.to_owned();
    std::thread::Builder::new().name(format!("kahawai-{name}")).spawn(move || {
        let guard = Guard(&following, &label);
        let result = work(&following);
        drop(guard);
        result
    })
}

impl FollowingThreads {
    /// Starts them. `commit` is what is known to be confirmed.
    pub(crate) fn start(
        follower: Follower,
        writer: Writer,
        preparer: Preparer,
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
            failure: OnceLock::new(),
            failed: tokio::sync::Notify::new(),
        });
        let (work, receiver) = mpsc::channel(WORK_MAX);
        let (say, said) = mpsc::unbounded_channel();
        let copier = spawn("copy", &following, move |following| copy(following, writer, receiver, &say))?;
        let others = vec![
            spawn("follow", &following, apply)?,
            spawn("prepare", &following, move |_| preparer_run(preparer))?,
            spawn("upkeep", &following, move |following| upkeep(following, &*clock, may_retire))?,
        ];
        Ok(Self { following, work, said, copier, others })
    }

    /// Ends the threads that follow; what was sent is written first. The store comes back with its writer, for a promotion or
    /// to be closed. Blocks.
    pub(crate) fn end(self) -> Result<(Follower, Writer, FollowingRest), String> {
        drop(self.work);
        let writer = self.copier.join().ok().flatten();
        self.following.stopping.store(true, Ordering::Release);
        self.following.bell.ring();
        self.following.upkeep.ring();
        let mut others = self.others.into_iter();
        let applier = others.next();
        let prepare = others.next();
        for thread in applier.into_iter().chain(others) {
            let _ = thread.join();
        }
        if let Some(reason) = self.following.failure() {
            return Err(reason);
        }
        let follower = self.following.lock().take();
        match (follower, writer) {
            (Some(follower), Some(writer)) => Ok((follower, writer, FollowingRest { prepare })),
            _ => Err("a thread of this replica ended early".into()),
        }
    }
}

/// The thread that makes the next data file goes on over a promotion.
pub(crate) struct FollowingRest {
    prepare: Option<JoinHandle<()>>,
}

impl FollowingRest {
    /// Waits for it; the journal must be closed.
    pub(crate) fn join(self) {
        if let Some(thread) = self.prepare {
            let _ = thread.join();
        }
    }
}

fn preparer_run(mut preparer: Preparer) {
    preparer.run();
}

/// Cuts a body into its batches.
fn split(mut at: Lsn, mut body: Bytes, out: &mut Vec<(Lsn, Bytes)>) -> Result<(), String> {
    while !body.is_empty() {
        let control = Control::decode(&body).ok_or_else(|| format!("there is no batch at {at}"))?;
        let bytes = CONTROL_BYTES + control.payload_bytes as usize;
        if bytes > body.len() {
            return Err(format!("the batch at {at} has {bytes} bytes, {} came", body.len()));
        }
        out.push((at, body.split_to(bytes)));
        at = Lsn(at.0 + bytes as u64);
    }
    Ok(())
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
                following.bell.ring();
                let chain = writer.chain().unwrap_or_default();
                let _ = say.send(Said::Written { durable, chain });
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
        let applied = following.with(|follower| {
            let more = follower.apply(to, APPLY_MAX);
            following.applied.store(follower.applied().0, Ordering::Release);
            more
        });
        match applied {
            None => return,
            Some(Ok(true)) => {}
            Some(Ok(false)) => following.bell.wait(UPKEEP),
            Some(Err(problem)) => return following.fail(crate::chain(&problem)),
        }
    }
}

fn upkeep(following: &Arc<Following>, clock: &dyn Clock, may_retire: impl Fn() -> bool) {
    let mut checkpointed = (clock.boot_ms(), following.applied());
    while !following.stopping.load(Ordering::Acquire) {
        following.upkeep.wait(UPKEEP);
        let now = clock.boot_ms();
        let applied = following.applied();
        let behind = following.with(|follower| follower.behind_checkpoint_bytes()).unwrap_or(0);
        let due = now - checkpointed.0 >= CHECKPOINT_MS || behind >= CHECKPOINT_BYTES;
        if due && applied != checkpointed.1 {
            if let Err(reason) = checkpoint(following) {
                return following.fail(reason);
            }
            checkpointed = (now, applied);
        }
        if !may_retire() {
            continue;
        }
        let Some((retired, journal)) =
            following.with(|follower| (follower.to_retire(), follower.journal().clone()))
        else {
            return;
        };
        for file in retired {
            match journal.retire(file) {
                Ok(_) => {
                    info!(file, "data file deleted");
                    following.with(|follower| follower.retired(file));
                }
                Err(problem) => warn!(file, %problem, "data file could not be deleted"),
            }
        }
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
