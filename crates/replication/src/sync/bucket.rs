use kahawai_types::Millis;

/// A limit in bytes per second that is shared by everybody who asks here.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// 0 = no limit.
    bytes_per_s: u64,
    burst_bytes: u64,
    /// Thousandths of a byte; below zero is what was taken ahead.
    tokens: i128,
    at: Millis,
}

impl TokenBucket {
    /// A full bucket; `bytes_per_s` 0 means no limit.
    pub fn new(bytes_per_s: u64, burst_bytes: u64, now: Millis) -> Self {
        Self { bytes_per_s, burst_bytes, tokens: i128::from(burst_bytes) * 1000, at: now }
    }

    /// Takes `bytes`, whatever their number, if the bucket is not empty. Else the error is how many milliseconds to wait.
    pub fn take(&mut self, now: Millis, bytes: u64) -> Result<(), Millis> {
        if self.bytes_per_s == 0 {
            return Ok(());
        }
        let passed_ms = i128::from(now.saturating_sub(self.at).max(0));
        self.at = self.at.max(now);
        // A byte per second is a thousandth of a byte per millisecond.
        let filled = self.tokens + passed_ms * i128::from(self.bytes_per_s);
        self.tokens = filled.min(i128::from(self.burst_bytes) * 1000);
        if self.tokens > 0 {
            self.tokens -= i128::from(bytes) * 1000;
            return Ok(());
        }
        let wait_ms = -self.tokens / i128::from(self.bytes_per_s) + 1;
        Err(Millis::try_from(wait_ms).unwrap_or(Millis::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_whatever_the_size_of_the_pieces() {
        for piece in [1_000, 64_000, 1 << 20] {
            let mut bucket = TokenBucket::new(1 << 20, 64 << 10, 0);
            let (mut now, mut taken) = (0, 0u64);
            while now < 60_000 {
                match bucket.take(now, piece) {
                    Ok(()) => taken += piece,
                    Err(wait_ms) => {
                        assert!(wait_ms > 0);
                        now += wait_ms;
                    }
                }
            }
            let wanted = 60 << 20;
            assert!(taken.abs_diff(wanted) <= piece + (128 << 10), "{taken} in pieces of {piece}");
        }
    }

    #[test]
    fn without_a_limit_nobody_waits_and_a_clock_that_steps_back_does_no_harm() {
        let mut free = TokenBucket::new(0, 0, 0);
        assert_eq!(free.take(0, u64::MAX), Ok(()));
        let mut bucket = TokenBucket::new(1000, 1, 5_000);
        assert_eq!(bucket.take(5_000, 1001), Ok(()));
        assert_eq!(bucket.take(0, 1), Err(1001));
        assert_eq!(bucket.take(6_001, 1), Ok(()));
    }
}
