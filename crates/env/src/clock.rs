use kahawai_types::Millis;
use rustix::time::{ClockId, clock_gettime};

/// What time it is. Handed to the few who may know; machines get time as an argument instead.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Wall clock, milliseconds since the Unix epoch. May jump in either direction.
    fn now_ms(&self) -> Millis;
    /// Microseconds since the machine started, sleep included. Never goes back while the machine is up.
    fn boot_us(&self) -> u64;
    /// The same in milliseconds.
    fn boot_ms(&self) -> u64 {
        self.boot_us() / 1000
    }
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> Millis {
        let now = clock_gettime(ClockId::Realtime);
        now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000)
    }

    fn boot_us(&self) -> u64 {
        // CLOCK_BOOTTIME: a lease must not outlive the suspension of a laptop or of a virtual machine.
        let now = clock_gettime(ClockId::Boottime);
        u64::try_from(now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_been_up_and_lives_after_2026() {
        let first = SystemClock.boot_us();
        assert!(first > 0 && SystemClock.boot_us() >= first);
        assert!(SystemClock.now_ms() > 1_767_225_600_000);
    }
}
