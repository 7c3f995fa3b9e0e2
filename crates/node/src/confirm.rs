//! The commit position, and who waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kahawai_types::Lsn;

use crate::outbox::Outbox;

/// One number that only grows, and the connections that wait for it to pass theirs.
#[derive(Debug, Default)]
pub struct Commit {
    position: AtomicU64,
    waiting: Mutex<Waiting>,
}

/// Who waits, and how many have done so lately.
#[derive(Debug)]
struct Waiting {
    list: Vec<(Lsn, Arc<Outbox>)>,
    /// From 1 on: of so many rises.
    round: u32,
    rises: u32,
    /// Connections that have waited in this round, and in the one before.
    crowd: usize,
    crowd_before: usize,
}

impl Waiting {
    fn lately(&self) -> usize {
        self.crowd.max(self.crowd_before)
    }
}

impl Default for Waiting {
    fn default() -> Self {
        Self { list: Vec::new(), round: 1, rises: 0, crowd: 0, crowd_before: 0 }
    }
}

/// Rises of the position in a round: enough for everybody who sends all the time to be seen.
const ROUND: u32 = 8;

impl Commit {
    /// At the position that recovery found.
    pub fn new(position: Lsn) -> Self {
        Self { position: AtomicU64::new(position.0), waiting: Mutex::default() }
    }

    /// Everything below is confirmed.
    pub fn position(&self) -> Lsn {
        Lsn(self.position.load(Ordering::Acquire))
    }

    /// Raises the position and wakes those who wait for it, except those for whom `answers` does what they waited for.
    pub fn raise(&self, to: Lsn, answers: impl Fn(&Outbox) -> bool) {
        self.position.fetch_max(to.0, Ordering::AcqRel);
        let mut ready = Vec::new();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.rises += 1;
            if waiting.rises >= ROUND {
                waiting.rises = 0;
                waiting.round = waiting.round.wrapping_add(1).max(1);
                waiting.crowd_before = std::mem::take(&mut waiting.crowd);
            }
            waiting.list.retain_mut(|(lsn, outbox)| {
                let keep = *lsn > to;
                if !keep {
                    ready.push(Arc::clone(outbox));
                }
                keep
            });
        }
        for outbox in ready {
            if !answers(&outbox) {
                outbox.signal.set();
            }
        }
    }

    /// How many connections have lately waited for an answer.
    pub fn crowd(&self) -> usize {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.lately()
    }

    /// Wakes `outbox` once the position reaches `lsn`, and says how many have lately waited; `None` = it has already.
    pub fn wait(&self, lsn: Lsn, outbox: &Arc<Outbox>) -> Option<usize> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: `raise` stores before it takes it, so either we see the new position or it sees us.
        if self.position() >= lsn {
            return None;
        }
        waiting.crowd += usize::from(outbox.waits_in(waiting.round));
        waiting.list.push((lsn, Arc::clone(outbox)));
        Some(waiting.lately())
    }

    /// A connection has ended.
    pub fn forget(&self, outbox: &Arc<Outbox>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.list.retain(|(_, other)| !Arc::ptr_eq(other, outbox));
    }
}
