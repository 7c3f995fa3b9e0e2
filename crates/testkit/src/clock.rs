use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use kahawai_env::Clock;
use kahawai_types::Millis;

/// A clock that stands still until it is moved. Clones show the same time.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<(AtomicI64, AtomicU64)>);

impl ManualClock {
    /// Both clocks move on.
    pub fn advance_ms(&self, ms: u32) {
        self.0.0.fetch_add(ms.into(), Ordering::SeqCst);
        self.0.1.fetch_add(u64::from(ms) * 1000, Ordering::SeqCst);
    }

    /// Somebody sets the wall clock.
    pub fn set_wall_ms(&self, now: Millis) {
        self.0.0.store(now, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> Millis {
        self.0.0.load(Ordering::SeqCst)
    }

    fn boot_us(&self) -> u64 {
        self.0.1.load(Ordering::SeqCst)
    }
}
