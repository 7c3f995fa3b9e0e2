//! A journal without contents: positions, reigns and chains.

use bytes::{BufMut, Bytes, BytesMut};
use kahawai_replication::{ChainAt, EpochHistory};
use kahawai_testkit::Random;
use kahawai_types::{Epoch, Location, Lsn};

/// Every batch has this size, and a file holds [`FILE_BATCHES`] of them.
pub const BATCH_BYTES: u32 = 40;
pub const FILE_BATCHES: u32 = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Batch {
    pub start: Lsn,
    pub epoch: Epoch,
    pub prev_chain: u64,
    pub chain: u64,
    pub content: u64,
}

impl Batch {
    pub fn end(&self) -> Lsn {
        Lsn(self.start.0 + u64::from(BATCH_BYTES))
    }

    pub fn encode(&self, out: &mut BytesMut) {
        for field in [self.start.0, self.epoch.0, self.prev_chain, self.chain, self.content] {
            out.put_u64(field);
        }
    }

    pub fn decode(bytes: &[u8]) -> Self {
        let field = |index: usize| u64::from_be_bytes(bytes[index * 8..][..8].try_into().unwrap());
        let (start, epoch) = (Lsn(field(0)), Epoch(field(1)));
        Self { start, epoch, prev_chain: field(2), chain: field(3), content: field(4) }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Log {
    pub batches: Vec<Batch>,
}

impl Log {
    pub fn end(&self) -> Lsn {
        self.batches.last().map_or(Lsn::ZERO, Batch::end)
    }

    pub fn chain(&self) -> u64 {
        self.batches.last().map_or(0, |batch| batch.chain)
    }

    /// The end of the first `count` batches.
    pub fn end_of(&self, count: usize) -> Lsn {
        count.checked_sub(1).map_or(Lsn::ZERO, |last| self.batches[last].end())
    }

    pub fn append(&mut self, epoch: Epoch, content: u64) -> Batch {
        let end = self.end();
        let start = match end.offset() {
            _ if end == Lsn::ZERO => Location::new(1, 0).lsn(),
            // What does not fit begins the next file: a new reign's first batch may be as large as any.
            offset
                if offset >= BATCH_BYTES * FILE_BATCHES
                    || (epoch.0.is_multiple_of(2)
                        && self.batches.last().is_some_and(|last| last.epoch < epoch)) =>
            {
                Location::new(end.file() + 1, 0).lsn()
            }
            _ => end,
        };
        let prev_chain = self.chain();
        let chain =
            Random::new(prev_chain ^ start.0.rotate_left(17) ^ epoch.0.rotate_left(43) ^ content).next_u64();
        let batch = Batch { start, epoch, prev_chain, chain, content };
        self.batches.push(batch);
        batch
    }

    /// How many batches lie before a position; `None`: it is not between two.
    pub fn index_of(&self, at: Lsn) -> Option<usize> {
        if at.offset() == 0 {
            // The start of a file is also the end of the one before.
            return Some(self.batches.partition_point(|batch| batch.start < at));
        }
        self.batches.iter().position(|batch| batch.end() == at).map(|index| index + 1)
    }

    pub fn chain_at(&self, at: Lsn) -> Option<u64> {
        Some(self.index_of(at)?.checked_sub(1).map_or(0, |last| self.batches[last].chain))
    }

    /// What a primary finds when it looks for a chain.
    pub fn find(&self, at: Lsn, chain: u64) -> ChainAt {
        let before = self.batches.iter().filter(|batch| batch.start < at).map(|batch| batch.start.file());
        let file = if at.offset() == 0 { before.max().unwrap_or(0) } else { at.file() };
        let inside = || self.batches.iter().filter(|batch| batch.start.file() == file);
        ChainAt {
            at,
            place: inside().find(|batch| batch.chain == chain).map(Batch::end),
            file_end: inside().next_back().map(|batch| (batch.end(), batch.chain)),
        }
    }

    pub fn history(&self) -> EpochHistory {
        let mut starts: Vec<kahawai_kdbr::EpochStart> = Vec::new();
        for batch in &self.batches {
            if batch.epoch > starts.last().map_or(Epoch(0), |start| start.epoch) {
                let Batch { epoch, start, prev_chain: chain_before, .. } = *batch;
                starts.push(kahawai_kdbr::EpochStart { epoch, start, chain_before });
            }
        }
        EpochHistory::new(starts).unwrap()
    }

    /// Up to `count` batches from a position on, in one file, as they are sent.
    pub fn piece(&self, from: Lsn, count: usize) -> Option<(Lsn, u64, Bytes)> {
        let index = self.index_of(from)?;
        let first = self.batches.get(index)?;
        let mut body = BytesMut::new();
        for batch in self.batches[index..].iter().take(count) {
            if batch.start.file() == first.start.file() {
                batch.encode(&mut body);
            }
        }
        Some((first.start, first.prev_chain, body.freeze()))
    }
}
