//! A journal without bytes: which reign wrote what. Positions and chains are as the machines want them.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use kahawai_kdbr::EpochStart;
use kahawai_replication::{ChainAt, EpochHistory, PrimaryLog};
use kahawai_types::{Epoch, Lsn};

use crate::invariant::{Invariant, Outcome, ensure};

/// What a batch takes in the one data file that there is.
pub(crate) const BATCH_BYTES: u64 = 2;

/// Where the data file begins.
const FILE_START: u64 = 1 << 32;

/// What stands in a batch: which write, or, in a marker, whose.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Batch {
    pub(crate) epoch: u8,
    pub(crate) content: u8,
}

/// Set in the content of a marker.
const MARKER: u8 = 0x80;

impl Batch {
    /// The first batch of a reign, with the process that leads.
    pub(crate) fn marker(epoch: u8, node: usize, boot: u8) -> Self {
        Self { epoch, content: MARKER | (node as u8) << 4 | boot }
    }

    pub(crate) fn is_marker(self) -> bool {
        self.content & MARKER != 0
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { epoch, content } = self;
        match self.is_marker() {
            true => write!(f, "{epoch}:marker of n{}", content >> 4 & 7),
            false => write!(f, "{epoch}:{content}"),
        }
    }
}

/// The batches, oldest first. A position is a number of them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Journal(pub(crate) Vec<Batch>);

/// The position behind so many batches.
pub(crate) fn lsn(count: usize) -> Lsn {
    if count == 0 { Lsn::ZERO } else { Lsn(FILE_START + BATCH_BYTES * count as u64) }
}

/// How many batches lie before a position.
pub(crate) fn count(at: Lsn) -> usize {
    (at.0.saturating_sub(FILE_START) / BATCH_BYTES) as usize
}

impl Journal {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn end(&self) -> Lsn {
        lsn(self.len())
    }

    /// Equal chains mean equal journals up to there.
    pub(crate) fn chain_at(&self, count: usize) -> Option<u64> {
        let before = self.0.get(..count)?;
        if before.is_empty() {
            return Some(0);
        }
        let mut hasher = DefaultHasher::new();
        before.hash(&mut hasher);
        Some(hasher.finish())
    }

    pub(crate) fn chain(&self) -> u64 {
        self.chain_at(self.len()).unwrap_or_default()
    }

    /// What a primary finds when it looks for a chain: there is one file.
    pub(crate) fn find(&self, at: Lsn, chain: u64) -> ChainAt {
        let place = (1..=self.len()).find(|&count| self.chain_at(count) == Some(chain)).map(lsn);
        ChainAt { at, place, file_end: (self.len() > 0).then(|| (self.end(), self.chain())) }
    }

    pub(crate) fn history(&self) -> EpochHistory {
        let mut starts: Vec<EpochStart> = Vec::new();
        for (index, batch) in self.0.iter().enumerate() {
            let epoch = Epoch(batch.epoch.into());
            if starts.last().is_none_or(|last| last.epoch < epoch) {
                let start = Lsn(FILE_START + BATCH_BYTES * index as u64);
                let chain_before = self.chain_at(index).unwrap_or_default();
                starts.push(EpochStart { epoch, start, chain_before });
            }
        }
        EpochHistory::new(starts).expect("reigns follow each other in every journal")
    }

    /// For a session of the primary.
    pub(crate) fn for_primary(&self) -> PrimaryLog {
        PrimaryLog {
            history: self.history(),
            contiguous_from: 1,
            chain_before: 0,
            end: self.end(),
            chain_at_end: self.chain(),
            commit: self.end(),
            has_imported_files: false,
        }
    }

    /// Whether the first `count` batches are the same.
    pub(crate) fn agrees(&self, other: &[Batch], count: usize) -> bool {
        self.0.len() >= count && other.len() >= count && self.0[..count] == other[..count]
    }

    /// Up to `count` batches from a position on, as they are sent: where, the chain before, the bytes.
    pub(crate) fn piece(&self, from: usize, count: usize) -> Option<(Lsn, u64, Bytes)> {
        let batches = self.0.get(from..)?;
        let batches = &batches[..count.min(batches.len())];
        let first = Lsn(FILE_START + BATCH_BYTES * from as u64);
        let body: Vec<u8> = batches.iter().flat_map(|batch| [batch.epoch, batch.content]).collect();
        (!body.is_empty()).then(|| (first, self.chain_at(from).unwrap_or_default(), body.into()))
    }

    /// Appends what [`Self::piece`] gave.
    pub(crate) fn append(&mut self, body: &[u8]) {
        self.0.extend(body.chunks_exact(2).map(|pair| Batch { epoch: pair[0], content: pair[1] }));
    }
}

/// Equal position and epoch mean equal journals up to there, and an epoch has one marker.
pub(crate) fn check_journals(one: &Journal, other: &Journal) -> Outcome {
    let pairs = one.0.iter().zip(&other.0);
    let same_epoch = pairs.enumerate().filter(|(_, (ours, theirs))| ours.epoch == theirs.epoch);
    if let Some((last, _)) = same_epoch.max_by_key(|(index, _)| *index) {
        ensure(one.agrees(&other.0, last + 1), Invariant::I3, || {
            format!("journals differ up to {last}, of one epoch in both: {one:?}, {other:?}")
        })?;
    }
    let markers =
        |journal: &Journal| journal.0.iter().copied().filter(|batch| batch.is_marker()).collect::<Vec<_>>();
    let (ours, theirs) = (markers(one), markers(other));
    let is_second =
        |marker: &&Batch| theirs.iter().any(|other| other.epoch == marker.epoch && other != *marker);
    ensure(!ours.iter().any(|marker| is_second(&marker)), Invariant::I1, || {
        format!("an epoch has two markers: {one:?}, {other:?}")
    })
}
