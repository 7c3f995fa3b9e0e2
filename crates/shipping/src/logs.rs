//! How our journal is compared with a peer's, at either end of a stream.

use kahawai_journal::{Chain, JournalReader};
use kahawai_kdbr::{EpochStart, ErrorCode};
use kahawai_replication::{ChainAt, EpochHistory, LocalLog, PrimaryLog};
use kahawai_types::{Epoch, Location, Lsn};

/// How far a primary's journal goes, flushed or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sealed {
    /// Its end.
    pub end: Lsn,
    /// The chain there.
    pub chain: u64,
    /// Our marker's batch, once there is one, with the chain before it.
    pub marker: Option<(Lsn, u64)>,
}

/// What a replica has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its first data file, if there is one.
    pub first_file: Option<u32>,
    /// Where its journal ends, flushed.
    pub end: Lsn,
    /// The chain there.
    pub chain: Option<Chain>,
    /// What it knows to be committed.
    pub known_commit: Lsn,
    /// What is in its index.
    pub applied: Lsn,
}

/// Where epochs began, as peers are told. What ActiveMQ wrote is nobody's epoch.
fn history_for_peers(
    epochs: impl IntoIterator<Item = kahawai_journal::EpochStart>,
) -> impl Iterator<Item = EpochStart> {
    let ours = epochs.into_iter().filter(|start| start.epoch.0 > 0);
    ours.map(|start| EpochStart {
        epoch: start.epoch,
        start: start.start,
        chain_before: start.chain_before.0,
    })
}

/// Where epochs began, as a peer says.
pub fn history_of_peer(epochs: &[EpochStart]) -> Vec<kahawai_journal::EpochStart> {
    let starts = epochs.iter().map(|start| kahawai_journal::EpochStart {
        epoch: start.epoch,
        start: start.start,
        chain_before: Chain(start.chain_before),
    });
    starts.collect()
}

/// A primary's journal as a replica's is compared with it. `files`: its data files, ascending.
pub fn primary_log(
    reader: &JournalReader,
    files: &[u32],
    sealed: Sealed,
    epoch: Epoch,
    commit: Lsn,
) -> Result<PrimaryLog, (ErrorCode, String)> {
    let busy = |problem: String| (ErrorCode::Busy, problem);
    let contiguous_from = contiguous(files, sealed.end.file());
    let first = Location::new(contiguous_from, 0).lsn();
    let epochs = reader.epochs().map_err(|problem| busy(crate::chain(&problem)))?;
    let chain = reader.chain_at(first).map_err(|problem| busy(crate::chain(&problem)))?;
    if let Some(foreign) =
        epochs.iter().find(|start| start.epoch.0 == 0 && files.contains(&start.start.file()))
    {
        // Which number a message of ActiveMQ's has is in ActiveMQ's index, which is not copied. A replica that counts
        // otherwise would acknowledge other messages.
        let text = format!(
            "data file {} was written by ActiveMQ: a journal is copied once it is Kahawai's own. Consume what is left in such \
             files, or move it to another broker; `kahawai store why-retained` lists what keeps them",
            foreign.start.file()
        );
        return Err((ErrorCode::Diverged, text));
    }
    let chain_before = match (chain, sealed.marker) {
        (Some(chain), _) => chain.0,
        // Our marker begins the file, and is not flushed yet.
        (None, Some((start, chain))) if start.file() == contiguous_from && start.offset() == 0 => chain,
        (None, _) => return Err(busy(format!("the chain before data file {contiguous_from} is not known"))),
    };
    let mut starts: Vec<EpochStart> = history_for_peers(epochs).filter(|start| start.epoch < epoch).collect();
    if let Some((start, chain_before)) = sealed.marker {
        starts.push(EpochStart { epoch, start, chain_before });
    }
    let history = EpochHistory::new(starts).map_err(|problem| busy(problem.to_string()))?;
    Ok(PrimaryLog {
        history,
        contiguous_from,
        chain_before,
        end: sealed.end,
        chain_at_end: sealed.chain,
        commit,
        has_imported_files: false,
    })
}

/// A replica's journal as it is offered to a primary. `generation`: of the primary that it was brought together with last.
pub fn local_log(reader: &JournalReader, held: Held, generation: Option<u64>) -> Result<LocalLog, String> {
    let epochs = reader.epochs().map_err(|problem| crate::chain(&problem))?;
    let history = EpochHistory::new(history_for_peers(epochs).collect()).map_err(|e| e.to_string())?;
    let first = held.first_file.map(|file| Location::new(file, 0).lsn());
    // Nothing was ever written: the next place is no end.
    let has = |position: Lsn| if first.is_some() { position } else { Lsn::ZERO };
    Ok(LocalLog {
        history,
        first_lsn: first.unwrap_or(Lsn::ZERO),
        end: has(held.end),
        durable: has(held.end),
        chain_at_end: held.chain.unwrap_or_default().0,
        known_commit: has(held.known_commit),
        applied: has(held.applied),
        is_foreign_tail: false,
        // Unknown: no primary's is higher.
        unclean_generation: generation.unwrap_or(u64::MAX),
    })
}

/// What a primary's journal has of a replica's.
pub fn find_chain(reader: &JournalReader, at: Lsn, chain: u64) -> Result<ChainAt, String> {
    if at > reader.durable_end() {
        return Err(format!("{at} is not flushed here yet"));
    }
    let found = reader.find_chain(at, Chain(chain)).map_err(|problem| crate::chain(&problem))?;
    Ok(ChainAt { at, place: found.place, file_end: found.file_end.map(|(end, chain)| (end, chain.0)) })
}

/// The first file of those that follow each other up to the newest.
fn contiguous(files: &[u32], newest: u32) -> u32 {
    let mut first = newest;
    for &id in files.iter().rev().filter(|&&id| id < newest) {
        if id + 1 != first {
            break;
        }
        first = id;
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_contiguous_back_to_the_first_gap() {
        assert_eq!(contiguous(&[1, 2, 4, 5, 6], 6), 4);
        assert_eq!(contiguous(&[1, 2, 3], 3), 1);
        assert_eq!(contiguous(&[1, 2, 3], 4), 1, "the newest file may not have a flushed batch yet");
        assert_eq!(contiguous(&[], 7), 7);
    }

    #[test]
    fn a_history_comes_back_without_what_activemq_wrote() {
        let start = |epoch| kahawai_journal::EpochStart {
            epoch: Epoch(epoch),
            start: Lsn(epoch * 10),
            chain_before: Chain(epoch * 100),
        };
        let told: Vec<EpochStart> = history_for_peers([start(0), start(3), start(4)]).collect();
        assert_eq!(history_of_peer(&told), [start(3), start(4)]);
    }
}
