//! How this node is, for its peers: measured beside the session, so that a disk that hangs does not hold a heartbeat.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kahawai_journal::Journal;
use kahawai_kdbr::NodeState;
use kahawai_replication::Vitals;
use kahawai_types::{Lsn, Millis};
use tokio::task::{JoinHandle, spawn_blocking};

/// How often the file system is asked for room.
const SPACE_MS: Millis = 5_000;

/// Takes this node's pulse.
pub(super) struct Pulse {
    journal: Journal,
    /// 0 = not known.
    free_bytes: Arc<AtomicU64>,
    asked: Option<(Millis, JoinHandle<()>)>,
}

impl Pulse {
    pub(super) fn new(journal: Journal) -> Self {
        Self { journal, free_bytes: Arc::default(), asked: None }
    }

    /// What goes into the next heartbeat.
    pub(super) fn vitals(&mut self, now: Millis, state: NodeState, durable: Lsn) -> Vitals {
        let is_due = self.asked.as_ref().is_none_or(|(at, task)| now - at >= SPACE_MS && task.is_finished());
        if is_due {
            let (journal, free_bytes) = (self.journal.clone(), Arc::clone(&self.free_bytes));
            let task = spawn_blocking(move || {
                // A disk without any room is known, all the same.
                let found = journal.free_bytes().map_or(0, |bytes| bytes.max(1));
                free_bytes.store(found, Ordering::Relaxed);
            });
            self.asked = Some((now, task));
        }
        let last_flush_us = self.journal.stats().flush_us_last;
        Vitals { state, durable, disk_free_bytes: self.free_bytes.load(Ordering::Relaxed), last_flush_us }
    }
}
