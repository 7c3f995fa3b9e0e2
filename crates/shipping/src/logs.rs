//! How our journal is compared with a peer's, at either end of a stream.

use std::sync::Arc;

use kahawai_env::Files;
use kahawai_journal::{Chain, JournalReader};
use kahawai_kdbr::{EpochStart, ErrorCode};
use kahawai_replication::{ChainAt, EpochHistory, LocalLog, PrimaryLog};
use kahawai_types::{Epoch, Location, Lsn};

use crate::files::needed_snapshot;

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

/// A primary's journal as a replica's is compared with it. `files`: its data files, ascending; they lie in `directory`.
pub fn primary_log(
    directory: &Arc<dyn Files>,
    reader: &JournalReader,
    files: &[u32],
    sealed: Sealed,
    epoch: Epoch,
    commit: Lsn,
) -> Result<PrimaryLog, (ErrorCode, String)> {
    let busy = |problem: String| (ErrorCode::Busy, problem);
    let epochs = reader.epochs().map_err(|problem| busy(crate::chain(&problem)))?;
    let snapshot = needed_snapshot(directory, files.iter().copied()).map_err(busy)?;
    // What a stream begins with is ours, and says what came before.
    let mut imported = snapshot.map(|snapshot| snapshot.applied.file());
    if imported.is_none() && epochs.iter().any(|start| start.epoch.0 == 0) {
        for &file in files {
            if reader.begins_foreign(file).map_err(|problem| busy(crate::chain(&problem)))? {
                imported = Some(file);
            }
        }
    }
    let behind = imported.map_or(0, |imported| imported.saturating_add(1));
    let contiguous_from = contiguous(files, sealed.end.file()).max(behind.min(sealed.end.file()));
    let first = Location::new(contiguous_from, 0).lsn();
    let chain = reader.chain_at(first).map_err(|problem| busy(crate::chain(&problem)))?;
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
        has_imported_files: imported.is_some(),
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
    // The end of a file and the start of the next are one place.
    let file = if at.offset() == 0 { at.file().saturating_sub(1) } else { at.file() };
    if found.file_end.is_none_or(|(end, _)| end.file() != file) {
        // It was there when this journal was described. Its absence proves nothing about the replica's.
        return Err(format!("data file {file} was deleted meanwhile"));
    }
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
    use std::sync::Arc;

    use bytes::BufMut;
    use kahawai_env::Files;
    use kahawai_journal::{Journal, JournalOptions, KnownPositions, NewEpoch};
    use kahawai_testkit::MemoryFiles;
    use kahawai_types::{BootId, ClusterId, NodeId, StoreId};

    use super::*;

    #[test]
    fn a_chain_is_not_looked_for_in_a_file_that_was_deleted_meanwhile() {
        let files: Arc<dyn Files> = Arc::new(MemoryFiles::new());
        let options = JournalOptions { preallocate: false, ..JournalOptions::default() };
        let (journal, _) = Journal::open(files, options, KnownPositions::default()).expect("a new one");
        let mut writer = journal.take_writer().expect("nobody has it");
        let new = NewEpoch {
            cluster_id: ClusterId(1),
            epoch: Epoch(1),
            node_id: NodeId("n1".to_owned()),
            store_id: StoreId(2),
            boot_id: BootId(3),
            revision: 1,
            unclean: false,
        };
        journal.begin_epoch(new).expect("the first");
        for _ in 0..4 {
            while let Some(batch) = writer.try_next(Lsn::ZERO).expect("sound") {
                writer.write(batch).expect("sound");
            }
            journal.appender().begin_file();
            journal.appender().lock().append(|out| out.put_slice(b"record")).expect("sound");
        }
        let reader = journal.reader();
        let (starts, within) = (Location::new(3, 0).lsn(), Location::new(2, 100).lsn());
        let chain = reader.chain_at(starts).expect("readable").expect("known").0;
        let found = find_chain(&reader, starts, chain).expect("file 2 is there");
        assert_eq!(found.place.map(|place| place.file()), Some(2));
        journal.retire([2]).expect("it is not written to");
        for at in [starts, within] {
            let problem = find_chain(&reader, at, chain).expect_err("gone");
            assert_eq!(problem, "data file 2 was deleted meanwhile");
        }
    }

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
