//! The newest batches in memory, from which every replica's session reads at its own pace.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use kahawai_types::{Epoch, Lsn};

/// A sealed batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingBatch {
    /// Where it begins.
    pub start: Lsn,
    /// Where it ends.
    pub end: Lsn,
    /// The chain before it.
    pub prev_chain: u64,
    /// The reign that it belongs to.
    pub epoch: Epoch,
    /// Its bytes, as they stand in the file.
    pub bytes: Bytes,
}

/// What comes after a cursor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next<'a> {
    /// These.
    Batches(Run<'a>),
    /// Nothing yet.
    CaughtUp,
    /// The ring no longer has it, or never had: read it from the files.
    FallenOut,
}

/// Batches that follow each other in one file; at least one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run<'a> {
    first: &'a RingBatch,
    batches: &'a VecDeque<RingBatch>,
    from: usize,
    count: usize,
}

impl<'a> Run<'a> {
    /// Where it begins.
    pub fn start(&self) -> Lsn {
        self.first.start
    }

    /// Where it ends: the next cursor.
    pub fn end(&self) -> Lsn {
        self.batches().last().map_or(self.first.end, |batch| batch.end)
    }

    /// The chain before it.
    pub fn prev_chain(&self) -> u64 {
        self.first.prev_chain
    }

    /// The batches.
    pub fn batches(&self) -> impl ExactSizeIterator<Item = &'a RingBatch> + use<'a> {
        self.batches.range(self.from..self.from + self.count)
    }

    /// All bytes. Those of a single batch are not copied.
    pub fn body(&self) -> Bytes {
        if self.count == 1 {
            return self.first.bytes.clone();
        }
        let mut body = BytesMut::with_capacity(self.batches().map(|batch| batch.bytes.len()).sum());
        self.batches().for_each(|batch| body.extend_from_slice(&batch.bytes));
        body.freeze()
    }
}

/// A bounded queue of sealed batches. Readers keep cursors of their own, and who is too slow falls out.
#[derive(Debug)]
pub struct Ring {
    batches: VecDeque<RingBatch>,
    bytes: usize,
    bytes_max: usize,
    /// Where the oldest batch follows.
    base: Lsn,
}

impl Ring {
    /// Holds `bytes_max` bytes and goes on from `start`. The newest batch is kept whatever its size.
    pub fn new(bytes_max: usize, start: Lsn) -> Self {
        Self { batches: VecDeque::new(), bytes: 0, bytes_max, base: start }
    }

    /// Where the next batch follows.
    pub fn end(&self) -> Lsn {
        self.batches.back().map_or(self.base, |batch| batch.end)
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the batch that follows.
    ///
    /// # Panics
    /// If it does not follow: batches come in the order in which the journal seals them.
    pub fn push(&mut self, batch: RingBatch) {
        let end = self.end();
        assert!(
            batch.start == end || (batch.start.offset() == 0 && batch.start.file() > end.file()),
            "the batch at {} does not follow {end}",
            batch.start
        );
        self.bytes += batch.bytes.len();
        self.batches.push_back(batch);
        while self.bytes > self.bytes_max
            && self.batches.len() > 1
            && let Some(oldest) = self.batches.pop_front()
        {
            self.bytes -= oldest.bytes.len();
            self.base = oldest.end;
        }
    }

    /// What comes after `cursor`, up to `bytes_max` bytes, but at least one batch. The end of a file and the start of the next
    /// one are the same cursor.
    pub fn from(&self, cursor: Lsn, bytes_max: usize) -> Next<'_> {
        if cursor == self.end() {
            return Next::CaughtUp;
        }
        let from = self.batches.partition_point(|batch| batch.start < cursor);
        let before = match from.checked_sub(1) {
            Some(before) => self.batches.get(before).map(|batch| batch.end),
            None => Some(self.base),
        };
        let Some(first) = self.batches.get(from) else {
            return Next::FallenOut;
        };
        if first.start != cursor && before != Some(cursor) {
            return Next::FallenOut;
        }
        let mut bytes = 0;
        let fitting = self.batches.range(from..).take_while(|batch| {
            bytes += batch.bytes.len();
            bytes <= bytes_max && batch.start.file() == first.start.file()
        });
        Next::Batches(Run { first, batches: &self.batches, from, count: fitting.count().max(1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kahawai_types::Location;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Sizes and whether a new file begins before it.
    fn log(shape: &[(u16, bool)]) -> Vec<RingBatch> {
        let mut at = Location::new(1, 0);
        shape
            .iter()
            .enumerate()
            .map(|(index, &(size, roll))| {
                if roll {
                    at = Location::new(at.file + 1, 0);
                }
                let start = at.lsn();
                at.offset += u32::from(size);
                let bytes = Bytes::from(vec![index as u8; size.into()]);
                RingBatch { start, end: at.lsn(), prev_chain: index as u64, epoch: Epoch(1), bytes }
            })
            .collect()
    }

    proptest! {
        /// A reader that is fed from the ring where it can be, and from the log where it cannot, sees the whole log.
        #[test]
        fn a_reader_misses_nothing(
            shape in vec((1..500u16, any::<bool>()), 1..60),
            bytes_max in 1..4000usize,
            asked in 1..2000usize,
            reads in vec(any::<bool>(), 60),
        ) {
            let log = log(&shape);
            let mut ring = Ring::new(bytes_max, Location::new(1, 0).lsn());
            let (mut seen, mut cursor) = (0, Location::new(1, 0).lsn());
            for (pushed, batch) in log.iter().enumerate() {
                ring.push(batch.clone());
                prop_assert!(ring.bytes() <= bytes_max || ring.batches.len() == 1);
                let until = if pushed + 1 == log.len() { log.len() } else { usize::from(reads[pushed]) };
                for _ in 0..until {
                    match ring.from(cursor, asked) {
                        Next::CaughtUp => prop_assert_eq!(seen, pushed + 1),
                        Next::FallenOut => {
                            prop_assert!(cursor < ring.base);
                            (seen, cursor) = (seen + 1, log[seen].end);
                        }
                        Next::Batches(run) => {
                            let expected = &log[seen..seen + run.batches().len()];
                            prop_assert!(run.batches().eq(expected));
                            prop_assert!(expected.iter().all(|batch| batch.start.file() == run.start().file()));
                            prop_assert!(expected.len() == 1 || run.body().len() <= asked);
                            let whole: Vec<u8> = expected.iter().flat_map(|batch| batch.bytes.to_vec()).collect();
                            prop_assert_eq!(run.body(), whole);
                            prop_assert_eq!((run.start(), run.prev_chain()), (log[seen].start, log[seen].prev_chain));
                            (seen, cursor) = (seen + expected.len(), run.end());
                        }
                    }
                }
            }
            prop_assert_eq!(seen, log.len());
        }
    }

    #[test]
    fn the_end_of_a_file_and_the_start_of_the_next_are_one_cursor() {
        let log = log(&[(100, false), (100, true), (100, false)]);
        let mut ring = Ring::new(1 << 20, log[0].end);
        ring.push(log[1].clone());
        ring.push(log[2].clone());
        for cursor in [log[0].end, log[1].start] {
            let Next::Batches(run) = ring.from(cursor, 1000) else { panic!("{cursor}") };
            assert_eq!((run.start(), run.end()), (log[1].start, log[2].end));
        }
        assert_eq!(ring.from(log[0].start, 1000), Next::FallenOut);
        assert_eq!(ring.from(Lsn(log[1].start.0 + 1), 1000), Next::FallenOut, "inside a batch");
        assert_eq!(ring.from(Lsn(log[2].end.0 + 1), 1000), Next::FallenOut, "behind the end");
        assert_eq!(ring.from(log[2].end, 1000), Next::CaughtUp);
    }

    #[test]
    #[should_panic(expected = "does not follow")]
    fn a_gap_is_not_taken() {
        let log = log(&[(100, false), (100, false)]);
        Ring::new(1000, Location::new(1, 0).lsn()).push(log[1].clone());
    }
}
