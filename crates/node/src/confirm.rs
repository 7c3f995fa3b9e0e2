//! The commit position, and who waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kahawai_types::Lsn;

use crate::outbox::Outbox;

/// One number that only grows, and the connections that wait for it to pass theirs.
#[derive(Debug, Default)]
pub struct Commit {
    position: AtomicU64,
    waiting: Mutex<Vec<(Lsn, Arc<Outbox>)>>,
}

impl Commit {
    /// At the position that recovery found.
    pub fn new(position: Lsn) -> Self {
        Self { position: AtomicU64::new(position.0), waiting: Mutex::default() }
    }

    /// Everything below is confirmed.
    pub fn position(&self) -> Lsn {
        Lsn(self.position.load(Ordering::Acquire))
    }

    /// Raises the position and wakes those who wait for it.
    pub fn raise(&self, to: Lsn) {
        self.position.fetch_max(to.0, Ordering::AcqRel);
        let mut ready = Vec::new();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.retain_mut(|(lsn, outbox)| {
                let keep = *lsn > to;
                if !keep {
                    ready.push(Arc::clone(outbox));
                }
                keep
            });
        }
        for outbox in ready {
            outbox.signal.set();
        }
    }

    /// How many connections wait for an answer.
    pub fn crowd(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Wakes `outbox` once the position reaches `lsn`; `false` = it has already.
    pub fn wait(&self, lsn: Lsn, outbox: &Arc<Outbox>) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: `raise` stores before it takes it, so either we see the new position or it sees us.
        if self.position() >= lsn {
            return false;
        }
        waiting.push((lsn, Arc::clone(outbox)));
        true
    }

    /// A connection has ended.
    pub fn forget(&self, outbox: &Arc<Outbox>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|(_, other)| !Arc::ptr_eq(other, outbox));
    }
}
