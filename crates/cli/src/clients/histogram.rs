//! Latencies in buckets that grow with the value.
//!
//! ```text
//! value     0 .. 64     64 .. 128    128 .. 256    …
//! bucket    1 wide      1 wide       2 wide        …    64 buckets for each power of two: 1.6 % at most
//! ```

const BITS: u32 = 6;
const STEPS: usize = 1 << BITS;
const BUCKETS: usize = (65 - BITS as usize) * STEPS;

/// A count for each bucket.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    counts: Box<[u64]>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), count: 0, max: 0 }
    }
}

impl Histogram {
    /// One more `value`.
    pub(super) fn record(&mut self, value: u64) {
        if let Some(count) = self.counts.get_mut(bucket(value)) {
            *count += 1;
        }
        self.count += 1;
        self.max = self.max.max(value);
    }

    /// Everything that `other` has.
    pub(super) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// How many values.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The greatest value, exactly.
    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// The value that so many of 1000 do not exceed, up to the width of a bucket. 0 without values.
    pub(super) fn permille(&self, permille: u64) -> u64 {
        let rank = (u128::from(self.count) * u128::from(permille)).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, &count) in self.counts.iter().enumerate() {
            seen += u128::from(count);
            if seen >= rank {
                return last_of(index).min(self.max);
            }
        }
        self.max
    }
}

fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(BITS + 1);
    // At most twice STEPS.
    let step = usize::try_from(value >> shift).unwrap_or(0);
    shift as usize * STEPS + step
}

/// The greatest value of a bucket.
fn last_of(index: usize) -> u64 {
    let shift = (index / STEPS).saturating_sub(1);
    let step = (index - shift * STEPS) as u64;
    (step << shift) + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_bucket_that_is_close() {
        let mut values: Vec<u64> = (0..5000).collect();
        for shift in 0..64 {
            values.extend([1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift]);
        }
        for value in values {
            let index = bucket(value);
            assert!(index < BUCKETS, "{value}");
            let last = last_of(index);
            assert!(
                last >= value && last - value <= value / STEPS as u64,
                "{value} in the bucket up to {last}"
            );
            assert_eq!(bucket(last), index);
            assert!(last == u64::MAX || bucket(last + 1) == index + 1);
        }
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let (mut low, mut high) = (Histogram::default(), Histogram::default());
        assert_eq!((low.permille(500), low.max()), (0, 0));
        (1..=50).for_each(|value| low.record(value));
        (51..=100).for_each(|value| high.record(value));
        low.add(&high);
        let found = [1, 500, 900, 990, 999, 1000].map(|permille| low.permille(permille));
        assert_eq!(found, [1, 50, 90, 99, 100, 100]);
        assert_eq!((low.count(), low.max()), (100, 100));
        low.record(1_000_003);
        assert_eq!(low.permille(1000), 1_000_003);
    }
}
