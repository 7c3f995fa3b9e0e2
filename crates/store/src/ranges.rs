//! A set of sequences as ranges: what a durable subscription has acknowledged beyond its floor.

use std::collections::BTreeMap;

/// Disjoint, non-adjacent half-open ranges.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Is `n` in the set?
    pub fn contains(&self, n: u64) -> bool {
        self.0.range(..=n).next_back().is_some_and(|(_, &end)| n < end)
    }

    /// Adds `n`; `false` if it was there.
    pub fn insert(&mut self, n: u64) -> bool {
        if self.contains(n) {
            return false;
        }
        let mut start = n;
        let mut end = n + 1;
        if let Some((&before, &before_end)) = self.0.range(..n).next_back()
            && before_end == n
        {
            start = before;
        }
        if let Some(after_end) = self.0.remove(&end) {
            end = after_end;
        }
        self.0.insert(start, end);
        true
    }

    /// Adds all from `start` to `end`, exclusive. For sets read back: the ranges must not overlap what is there.
    pub fn insert_range(&mut self, start: u64, end: u64) {
        if start < end {
            self.0.insert(start, end);
        }
    }

    /// Drops everything below `floor` and returns the end of the range that holds it, or `floor`.
    pub fn raise(&mut self, floor: u64) -> u64 {
        let mut reached = floor;
        while let Some((&start, &end)) = self.0.first_key_value()
            && start <= reached
        {
            self.0.pop_first();
            reached = reached.max(end);
        }
        reached
    }

    /// The first number at or above `n` that is not in the set.
    pub fn next_absent(&self, n: u64) -> u64 {
        match self.0.range(..=n).next_back() {
            Some((_, &end)) if n < end => end,
            _ => n,
        }
    }

    /// In ascending order, half-open.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u64, u64)> {
        self.0.iter().map(|(&start, &end)| (start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(numbers in proptest::collection::vec(0u64..40, 0..60), floor in 0u64..40) {
            let mut ranges = Ranges::default();
            let mut model = BTreeSet::new();
            for n in numbers {
                prop_assert_eq!(ranges.insert(n), model.insert(n));
            }
            for n in 0..45 {
                prop_assert_eq!(ranges.contains(n), model.contains(&n));
                prop_assert_eq!(ranges.next_absent(n), (n..).find(|n| !model.contains(n)).unwrap());
            }
            for ((_, end), (start, _)) in ranges.iter().zip(ranges.iter().skip(1)) {
                prop_assert!(end < start);
            }
            let reached = ranges.raise(floor);
            prop_assert_eq!(reached, (floor..).find(|n| !model.contains(n)).unwrap());
            prop_assert!(ranges.iter().all(|(start, _)| start > reached));
        }
    }
}
