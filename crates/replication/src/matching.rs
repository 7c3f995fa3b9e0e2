//! Where the journals of two nodes part, and how the replica gets from there to the primary's stream.
//!
//! An epoch has one writer, which never continues it after a restart, so within an epoch one journal is a prefix of the other.
//! The common point is therefore the smaller end of the newest epoch that both have with the same start and the same chain
//! before it; it is computed, not searched. Chains that differ there are damage, and damage is never cut.
//!
//! The end of a file and the start of the next are one place with two numbers. Equal chains tell: the chain covers the position
//! of every batch. Where a reign ended is known as the start of the next, which may be the start of a file although another
//! journal goes on in the file before: then the primary looks into that file for the replica's chain.

use kahawai_kdbr::{EPOCHS_MAX, EpochStart, ErrorCode, ErrorFrame};
use kahawai_types::{Epoch, Location, Lsn};

use crate::Timing;

/// The reigns in a journal, oldest first. What comes before the first one was written by ActiveMQ: epoch 0.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EpochHistory(Vec<EpochStart>);

/// A list that is no history: reigns and their positions have to grow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("epoch {epoch} at {start} does not follow the one before it in the history")]
pub struct HistoryError {
    /// The reign that is out of order.
    pub epoch: Epoch,
    /// Where it is said to begin.
    pub start: Lsn,
}

impl EpochHistory {
    /// A history of these. Of more than [`EPOCHS_MAX`] only the newest are kept, as many as a frame takes.
    pub fn new(mut starts: Vec<EpochStart>) -> Result<Self, HistoryError> {
        let mut newest = (Epoch(0), None);
        for start in &starts {
            if start.epoch <= newest.0 || newest.1.is_some_and(|before| start.start <= before) {
                return Err(HistoryError { epoch: start.epoch, start: start.start });
            }
            newest = (start.epoch, Some(start.start));
        }
        starts.drain(..starts.len().saturating_sub(EPOCHS_MAX));
        Ok(Self(starts))
    }

    /// The reigns, oldest first.
    pub fn starts(&self) -> &[EpochStart] {
        &self.0
    }

    /// The newest reign; 0 if there is none.
    pub fn newest(&self) -> Epoch {
        self.0.last().map_or(Epoch(0), |start| start.epoch)
    }

    /// Where the reign at `index` ends, with the chain there: the next one's start, or the journal's end.
    fn end_of(&self, index: Option<usize>, end: Lsn, chain_at_end: u64) -> Place {
        match self.0.get(index.map_or(0, |index| index + 1)) {
            Some(next) => Place { lsn: next.start, chain: next.chain_before, is_end: false },
            None => Place { lsn: end, chain: chain_at_end, is_end: true },
        }
    }
}

/// The primary's journal, up to the last batch that was sealed, flushed or not: replicas may have flushed it already.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrimaryLog {
    /// Its reigns, with ours.
    pub history: EpochHistory,
    /// From the start of this file on, no file is missing.
    pub contiguous_from: u32,
    /// The chain before that file.
    pub chain_before: u64,
    /// Where it ends.
    pub end: Lsn,
    /// The chain there.
    pub chain_at_end: u64,
    /// How much of it is committed, as far as the primary knows: files are sent of that alone.
    pub commit: Lsn,
    /// The store needs more than the journal: it was imported, and a replica without anything cannot begin by streaming.
    pub has_imported_files: bool,
}

/// A replica's journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaLog {
    /// Its reigns.
    pub history: EpochHistory,
    /// Where it ends; [`Lsn::ZERO`] if there is nothing.
    pub end: Lsn,
    /// The chain there.
    pub chain_at_end: u64,
    /// Its newest batches were written by ActiveMQ.
    pub is_foreign_tail: bool,
}

impl ReplicaLog {
    /// What the replica says, checked.
    pub fn of(init: &kahawai_kdbr::SlaveInit) -> Result<Self, HistoryError> {
        Ok(Self {
            history: EpochHistory::new(init.epoch_history.clone())?,
            end: init.end,
            chain_at_end: init.chain_at_end,
            is_foreign_tail: init.is_foreign_tail,
        })
    }
}

/// What the primary's own journal has in the data file of a position; where that begins a file, in the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChainAt {
    /// The position.
    pub at: Lsn,
    /// The end of the batch that has the chain which was asked for.
    pub place: Option<Lsn>,
    /// Where the file's batches end, with the chain there.
    pub file_end: Option<(Lsn, u64)>,
}

/// A point up to which both journals are the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Common {
    /// Where, as the primary numbers it.
    pub lsn: Lsn,
    /// The newest reign that both have.
    pub epoch: Epoch,
    /// The chain there.
    pub chain: u64,
}

/// What follows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Match {
    /// Ask again with what the primary's journal has there.
    NeedChain {
        /// In which data file to look.
        at: Lsn,
        /// For what.
        chain: u64,
    },
    /// The replica has nothing else: the stream goes on from here.
    StreamFrom(Common),
    /// The replica has more, and has to drop it.
    Truncate(Common),
    /// The replica needs whole files first. The chain is the replica's, unless its journal goes on differently.
    Bulk(Common),
    /// The journals must not be brought together by us.
    Refuse(ErrorFrame),
}

/// A position with its chain.
#[derive(Clone, Copy)]
struct Place {
    lsn: Lsn,
    chain: u64,
    /// The journal ends here.
    is_end: bool,
}

/// Decides how a replica attaches. Called without `answer` first, and again with what [`Match::NeedChain`] asked for.
pub fn decide(primary: &PrimaryLog, replica: &ReplicaLog, answer: Option<ChainAt>, timing: &Timing) -> Match {
    if replica.is_foreign_tail {
        let text =
            "ActiveMQ wrote to this store after it left the cluster: adopt it as the new truth, or empty it";
        return Match::Refuse(ErrorFrame::new(ErrorCode::Diverged, text));
    }
    let first = Location::new(primary.contiguous_from, 0).lsn();
    if replica.end == Lsn::ZERO {
        let common = Common { lsn: first, epoch: Epoch(0), chain: 0 };
        return if primary.chain_before != 0 || primary.has_imported_files {
            Match::Bulk(Common { lsn: Lsn::ZERO, ..common })
        } else {
            stream_or_bulk(primary, common, timing)
        };
    }
    let (epoch, ours, theirs) = newest_shared(primary, replica);
    if ours.chain == theirs.chain {
        let common = Common { lsn: ours.lsn, epoch, chain: ours.chain };
        return match attach(primary, common, theirs.is_end, timing) {
            // The same place by two numbers. By the smaller one it is there in both, whoever went on in which file.
            Match::Truncate(_) => Match::Truncate(Common { lsn: ours.lsn.min(theirs.lsn), ..common }),
            other => other,
        };
    }
    if ours.lsn < theirs.lsn && ours.is_end && epoch == primary.history.newest() {
        let text = format!("you have more of epoch {epoch}, which is ours, than we had when you came");
        return Match::Refuse(ErrorFrame::new(ErrorCode::Busy, text));
    }
    let end_of_ours = Common { lsn: ours.lsn, epoch, chain: ours.chain };
    if ours.lsn < theirs.lsn && ours.lsn.offset() > 0 && theirs.lsn.offset() > 0 {
        return attach(primary, end_of_ours, false, timing);
    }
    let at = ours.lsn.min(theirs.lsn);
    let common = Common { lsn: theirs.lsn, epoch, chain: theirs.chain };
    if at.file() < primary.contiguous_from {
        if ours.lsn < theirs.lsn {
            return attach(primary, end_of_ours, false, timing);
        }
        // Nothing can lie between the replica's end and our first file if the chains are the same.
        let lsn = if theirs.chain == primary.chain_before { first } else { common.lsn };
        return attach(primary, Common { lsn, ..common }, theirs.is_end, timing);
    }
    if at == first {
        // What to look into is no longer there.
        return match theirs.chain == primary.chain_before {
            true => attach(primary, Common { lsn: first, ..common }, theirs.is_end, timing),
            false => Match::Bulk(if ours.lsn < theirs.lsn { end_of_ours } else { common }),
        };
    }
    let Some(ChainAt { place, file_end, .. }) = answer.filter(|answer| answer.at == at) else {
        return Match::NeedChain { at, chain: theirs.chain };
    };
    match (place, file_end) {
        (Some(lsn), _) if lsn == theirs.lsn || theirs.lsn.offset() == 0 => {
            attach(primary, Common { lsn, ..common }, theirs.is_end, timing)
        }
        // Our reign ended where this file does, and the replica went on in it.
        (None, Some((lsn, chain))) if chain == ours.chain && lsn < theirs.lsn => {
            attach(primary, Common { lsn, ..end_of_ours }, false, timing)
        }
        (None, _) if ours.lsn < theirs.lsn => attach(primary, end_of_ours, false, timing),
        _ => Match::Refuse(ErrorFrame::new(
            ErrorCode::Corrupt,
            format!("the journals differ before {at} although epoch {epoch} is in both: one is damaged"),
        )),
    }
}

/// The newest reign in both journals, and where it ends in each.
fn newest_shared(primary: &PrimaryLog, replica: &ReplicaLog) -> (Epoch, Place, Place) {
    let ours = primary.history.starts();
    let shared = replica.history.starts().iter().enumerate().rev().find_map(|(theirs_at, theirs)| {
        let ours_at = ours.binary_search_by_key(&theirs.epoch, |start| start.epoch).ok()?;
        (ours.get(ours_at)? == theirs).then_some((theirs.epoch, ours_at, theirs_at))
    });
    let (epoch, ours_at, theirs_at) = match shared {
        Some((epoch, ours_at, theirs_at)) => (epoch, Some(ours_at), Some(theirs_at)),
        None => (Epoch(0), None, None),
    };
    (
        epoch,
        primary.history.end_of(ours_at, primary.end, primary.chain_at_end),
        replica.history.end_of(theirs_at, replica.end, replica.chain_at_end),
    )
}

fn attach(primary: &PrimaryLog, common: Common, has_no_more: bool, timing: &Timing) -> Match {
    if common.lsn.file() < primary.contiguous_from {
        Match::Bulk(common)
    } else if has_no_more {
        stream_or_bulk(primary, common, timing)
    } else {
        Match::Truncate(common)
    }
}

/// Whoever lacks much, and whole files of it, is faster on several connections. What counts is what is committed: files are sent of
/// that alone, and who has it, as every member of the in-sync set does, would lose by them what it has flushed behind it.
fn stream_or_bulk(primary: &PrimaryLog, common: Common, timing: &Timing) -> Match {
    let is_far = timing.lag_bytes(common.lsn, primary.commit) > timing.stream_lag_bytes_max;
    if is_far && primary.commit.file() > common.lsn.file().saturating_add(1) {
        Match::Bulk(common)
    } else {
        Match::StreamFrom(common)
    }
}
