use std::ops::Range;

/// Files are fetched, checked and remembered in pieces of this size; the last one of a file may be shorter.
pub const CHUNK_BYTES: u64 = 1 << 20;

/// Which chunks of a file are there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkMap {
    file_bytes: u64,
    words: Vec<u64>,
    /// Bits that are set.
    set: u32,
}

impl ChunkMap {
    /// None of a file of this length, which the caller has found not to be above [`super::FILE_BYTES_MAX`].
    pub fn new(file_bytes: u64) -> Self {
        let chunks = file_bytes.div_ceil(CHUNK_BYTES);
        Self { file_bytes, words: vec![0; chunks.div_ceil(64) as usize], set: 0 }
    }

    /// How many chunks the file has.
    pub fn chunks(&self) -> u32 {
        self.file_bytes.div_ceil(CHUNK_BYTES) as u32
    }

    /// Whether this one is there; false behind the end.
    pub fn has(&self, chunk: u32) -> bool {
        self.words.get(chunk as usize / 64).is_some_and(|word| word & (1 << (chunk % 64)) != 0)
    }

    /// These are there. What is behind the end of the file is left out.
    pub fn add(&mut self, chunks: Range<u32>) {
        for chunk in chunks.start..chunks.end.min(self.chunks()) {
            if !self.has(chunk)
                && let Some(word) = self.words.get_mut(chunk as usize / 64)
            {
                *word |= 1 << (chunk % 64);
                self.set += 1;
            }
        }
    }

    /// Everything is there.
    pub fn is_complete(&self) -> bool {
        self.set == self.chunks()
    }

    /// Bytes that are there.
    pub fn bytes(&self) -> u64 {
        let whole = u64::from(self.set) * CHUNK_BYTES;
        let short = self.file_bytes.next_multiple_of(CHUNK_BYTES) - self.file_bytes;
        let has_last = self.chunks().checked_sub(1).is_some_and(|last| self.has(last));
        whole - if has_last { short } else { 0 }
    }

    /// What is missing, in order, in pieces of at most `chunks_max`.
    pub fn missing(&self, chunks_max: u32) -> Vec<Range<u32>> {
        self.runs(0..self.chunks(), chunks_max)
    }

    /// What is missing of these, in order.
    pub fn missing_in(&self, chunks: Range<u32>) -> Vec<Range<u32>> {
        self.runs(chunks.start..chunks.end.min(self.chunks()), u32::MAX)
    }

    fn runs(&self, chunks: Range<u32>, chunks_max: u32) -> Vec<Range<u32>> {
        let mut missing: Vec<Range<u32>> = Vec::new();
        for chunk in chunks.filter(|chunk| !self.has(*chunk)) {
            match missing.last_mut() {
                Some(run) if run.end == chunk && run.end - run.start < chunks_max => run.end += 1,
                _ => missing.push(chunk..chunk + 1),
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        /// The map is a set of numbers.
        #[test]
        fn a_map_is_a_set(bytes in 0..200 * CHUNK_BYTES, runs in vec((0..220u32, 0..20u32), 0..12), max in 1..9u32) {
            let mut map = ChunkMap::new(bytes);
            let mut model = std::collections::BTreeSet::new();
            for (start, count) in runs {
                map.add(start..start + count);
                model.extend((start..start + count).filter(|chunk| *chunk < map.chunks()));
            }
            let size = |chunk: u32| CHUNK_BYTES.min(bytes - u64::from(chunk) * CHUNK_BYTES);
            prop_assert_eq!(map.bytes(), model.iter().map(|chunk| size(*chunk)).sum::<u64>());
            prop_assert_eq!(map.is_complete(), map.bytes() == bytes);
            let missing = map.missing(max);
            prop_assert!(missing.iter().all(|run| !run.is_empty() && run.end - run.start <= max));
            let listed: Vec<u32> = missing.into_iter().flatten().collect();
            let some: Vec<u32> = map.missing_in(3..17).into_iter().flatten().collect();
            prop_assert!(some.iter().eq(listed.iter().filter(|chunk| (3..17).contains(*chunk))));
            prop_assert!(listed.iter().copied().eq((0..map.chunks()).filter(|chunk| !model.contains(chunk))));
        }
    }
}
