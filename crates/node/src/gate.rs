//! The last thing before bytes leave for a client.

use std::sync::atomic::{AtomicU64, Ordering};

use kahawai_env::Clock;

/// Open until a deadline of the boot clock. A primary that was stopped for longer than its grant finds it shut when it wakes up,
/// before anything else can tell it that another node leads now.
#[derive(Debug)]
pub struct Gate(AtomicU64);

impl Default for Gate {
    /// Open for ever: nobody else can lead.
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Gate {
    /// Open until then, milliseconds of the boot clock.
    pub fn open_until(&self, deadline_ms: u64) {
        // A gate that was shut stays shut: the reign is over.
        let _ =
            self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| (old != 0).then_some(deadline_ms));
    }

    /// Shut, for good.
    pub fn shut(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// May anything leave?
    pub fn is_open(&self, clock: &dyn Clock) -> bool {
        match self.0.load(Ordering::Acquire) {
            u64::MAX => true,
            0 => false,
            deadline => clock.boot_ms() < deadline,
        }
    }
}

#[cfg(test)]
mod tests {
    use kahawai_testkit::ManualClock;

    use super::*;

    #[test]
    fn it_shuts_at_its_deadline_and_for_good_when_told() {
        let clock = ManualClock::default();
        let gate = Gate::default();
        assert!(gate.is_open(&clock));
        gate.open_until(clock.boot_ms() + 100);
        assert!(gate.is_open(&clock));
        clock.advance_ms(100);
        assert!(!gate.is_open(&clock));
        gate.open_until(clock.boot_ms() + 100);
        assert!(gate.is_open(&clock), "the grant was renewed in time, the clock of the renewal counts");
        gate.shut();
        gate.open_until(u64::MAX);
        assert!(!gate.is_open(&clock), "a reign that ended does not go on");
    }
}
