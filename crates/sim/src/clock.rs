//! The clocks of nodes, which run at their own pace.

use kahawai_env::Entropy;
use kahawai_testkit::Random;
use kahawai_types::Millis;

use crate::Micros;

/// How far a clock may run wrong, in millionths: what the election's deadline allows for is ten thousand.
pub(crate) const DRIFT_PPM_MAX: i64 = 4_000;

/// The clock of one machine: it never stops and never goes back, but it is fast or slow. The wall clock beside it jumps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeClock {
    /// Of the world, and what this clock said then.
    base: (Micros, Micros),
    ppm: i64,
    /// Added to it to have the wall clock.
    wall_ms: Millis,
}

impl NodeClock {
    pub(crate) fn new(random: &mut Random) -> Self {
        let ahead = 1_000_000 + random.below(3_600_000_000);
        Self { base: (0, ahead), ppm: 0, wall_ms: 1_767_225_600_000 }
    }

    /// Microseconds of this clock at a time of the world.
    pub(crate) fn boot_us(&self, now: Micros) -> Micros {
        let (base, ahead) = self.base;
        let passed = now as i64 - base as i64;
        (ahead as i64 + passed + passed * self.ppm / 1_000_000) as Micros
    }

    /// What machines are given.
    pub(crate) fn boot_ms(&self, now: Micros) -> Millis {
        (self.boot_us(now) / 1000) as Millis
    }

    /// Milliseconds since the epoch, as far as this machine knows.
    pub(crate) fn wall_ms(&self, now: Micros) -> Millis {
        self.wall_ms + self.boot_ms(now)
    }

    /// From now on it runs at another pace.
    pub(crate) fn drift(&mut self, now: Micros, ppm: i64) {
        self.base = (now, self.boot_us(now));
        self.ppm = ppm.clamp(-DRIFT_PPM_MAX, DRIFT_PPM_MAX);
    }

    /// The wall clock is set.
    pub(crate) fn jump(&mut self, ms: Millis) {
        self.wall_ms += ms;
    }
}

/// Randomness for identities, from the seed.
#[derive(Debug)]
pub(crate) struct SimEntropy(std::sync::Mutex<Random>);

impl SimEntropy {
    pub(crate) fn new(seed: u64) -> Self {
        Self(std::sync::Mutex::new(Random::new(seed)))
    }
}

impl Entropy for SimEntropy {
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        let mut random = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for chunk in bytes.chunks_mut(8) {
            let number = random.next_u64().to_be_bytes();
            chunk.copy_from_slice(number.get(..chunk.len()).unwrap_or_default());
        }
        Ok(())
    }
}
