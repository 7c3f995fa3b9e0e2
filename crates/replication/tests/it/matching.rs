//! The point where two journals part, over generated ones.

use kahawai_kdbr::ErrorCode;
use kahawai_replication::{Match, PrimaryLog, ReplicaLog, decide};
use kahawai_types::{Epoch, Location, Lsn};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::log::{FILE_BATCHES, Log};
use crate::world::timing;

/// For each reign from the first on: whose journal it took over, how much of it, and how much it wrote.
fn reigns() -> impl Strategy<Value = Vec<(prop::sample::Index, prop::sample::Index, u8)>> {
    vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1..8u8), 1..7)
}

/// The journal of each reign, when it ended; the first is what ActiveMQ had written.
fn journals(reigns: &[(prop::sample::Index, prop::sample::Index, u8)], foreign: u8) -> Vec<Log> {
    let mut first = Log::default();
    for content in 0..foreign {
        first.append(Epoch(0), content.into());
    }
    let mut all = vec![first];
    for (number, (parent, cut, batches)) in reigns.iter().enumerate() {
        let mut log = parent.get(&all).clone();
        // Not before what was there when the cluster was made.
        let kept = foreign as usize + cut.index(log.batches.len() + 1 - foreign as usize);
        log.batches.truncate(kept);
        let epoch = Epoch(number as u64 + 1);
        for content in 0..*batches {
            log.append(epoch, content.into());
        }
        all.push(log);
    }
    all
}

fn replica_log(log: &Log) -> ReplicaLog {
    let (history, end, chain_at_end) = (log.history(), log.end(), log.chain());
    ReplicaLog { history, end, chain_at_end, is_foreign_tail: false }
}

fn primary_log(log: &Log, contiguous_from: u32) -> PrimaryLog {
    PrimaryLog {
        history: log.history(),
        contiguous_from,
        chain_before: log.chain_at(Location::new(contiguous_from, 0).lsn()).unwrap(),
        end: log.end(),
        chain_at_end: log.chain(),
        commit: log.end(),
        has_imported_files: false,
    }
}

/// Asks, and answers what is asked.
fn ask(primary: &PrimaryLog, log: &Log, replica: &ReplicaLog) -> Match {
    match decide(primary, replica, None, &timing()) {
        Match::NeedChain { at, chain } => {
            let again = decide(primary, replica, Some(log.find(at, chain)), &timing());
            assert!(!matches!(again, Match::NeedChain { .. }));
            again
        }
        answer => answer,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// What both have, and no more, is kept; the stream begins there if nothing is missing.
    #[test]
    fn the_common_point_is_the_end_of_the_longest_common_prefix(
        reigns in reigns(),
        foreign in 0..6u8,
        theirs in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
        collected in any::<prop::sample::Index>(),
    ) {
        let journals = journals(&reigns, foreign);
        let ours = journals.last().unwrap();
        let mut theirs = theirs.get(&journals).clone();
        theirs.batches.truncate(cut.index(theirs.batches.len() + 1));
        let common = ours.batches.iter().zip(&theirs.batches).take_while(|(ours, theirs)| ours == theirs).count();
        let contiguous_from = 1 + collected.index(ours.end().file() as usize) as u32;
        let answer = ask(&primary_log(ours, contiguous_from), ours, &replica_log(&theirs));
        let has_rest = ours.batches.get(common).is_none_or(|next| next.start.file() >= contiguous_from);
        match answer {
            Match::StreamFrom(at) => {
                prop_assert!(has_rest);
                prop_assert_eq!(common, theirs.batches.len());
                prop_assert_eq!((ours.index_of(at.lsn), at.chain), (Some(common), theirs.chain()));
            }
            Match::Truncate(at) => {
                prop_assert!(has_rest && common < theirs.batches.len());
                prop_assert_eq!((ours.index_of(at.lsn), theirs.index_of(at.lsn)), (Some(common), Some(common)));
                prop_assert_eq!((ours.chain_at(at.lsn), theirs.chain_at(at.lsn)), (Some(at.chain), Some(at.chain)));
            }
            Match::Bulk(at) => {
                // Where our reign ended in a file that is gone nobody knows; then everything is fetched.
                let is_inside = |log: &Log| log.batches.get(common).is_none_or(|next| next.start.offset() > 0);
                let is_known = is_inside(ours) && is_inside(&theirs);
                prop_assert!(!has_rest || !is_known, "{at:?}");
                let index = theirs.index_of(at.lsn);
                prop_assert!(index == Some(common) || !is_known, "{at:?}: {index:?}");
            }
            answer => prop_assert!(false, "{answer:?}"),
        }
    }

    /// Nothing that is said makes us panic, or ask twice.
    #[test]
    fn whatever_a_replica_says_there_is_an_answer(
        reigns in reigns(),
        starts in vec((0..9u64, 0..9u32, 0..200u32, any::<u64>()), 0..6),
        end in any::<u64>(),
        chain_at_end in any::<u64>(),
    ) {
        let journals = journals(&reigns, 2);
        let ours = journals.last().unwrap();
        let starts = starts.into_iter().map(|(epoch, file, offset, chain_before)| kahawai_kdbr::EpochStart {
            epoch: Epoch(epoch),
            start: Location::new(file, offset).lsn(),
            chain_before,
        });
        let Ok(history) = kahawai_replication::EpochHistory::new(starts.collect()) else { return Ok(()) };
        let replica = ReplicaLog { history, end: Lsn(end), chain_at_end, is_foreign_tail: false };
        ask(&primary_log(ours, 1), ours, &replica);
    }
}

fn written(epochs: &[(u64, u32)]) -> Log {
    let mut log = Log::default();
    for &(epoch, batches) in epochs {
        for content in 0..batches {
            log.append(Epoch(epoch), content.into());
        }
    }
    log
}

fn code(answer: Match) -> ErrorCode {
    match answer {
        Match::Refuse(error) => error.code,
        answer => panic!("{answer:?}"),
    }
}

#[test]
fn damage_is_never_cut() {
    let ours = written(&[(1, 9), (2, 3)]);
    let primary = primary_log(&ours, 1);
    for batches in [6, 9] {
        let mut theirs = written(&[(1, 9)]);
        theirs.batches.truncate(batches);
        let damaged = ReplicaLog { chain_at_end: 7, ..replica_log(&theirs) };
        assert_eq!(code(ask(&primary, &ours, &damaged)), ErrorCode::Corrupt);
    }
    let mut theirs = written(&[(1, 9)]);
    theirs.batches.truncate(6);
    let inside = ReplicaLog { end: Lsn(theirs.end().0 - 1), ..replica_log(&theirs) };
    assert_eq!(code(ask(&primary, &ours, &inside)), ErrorCode::Corrupt, "no batch ends there");
}

#[test]
fn a_store_that_activemq_has_written_to_is_refused() {
    let ours = written(&[(1, 3)]);
    let replica = ReplicaLog { is_foreign_tail: true, ..replica_log(&ours) };
    assert_eq!(code(ask(&primary_log(&ours, 1), &ours, &replica)), ErrorCode::Diverged);
}

#[test]
fn more_of_our_own_epoch_than_we_have_is_not_cut() {
    let mut ours = written(&[(1, 5)]);
    let replica = replica_log(&ours);
    ours.batches.truncate(3);
    assert_eq!(code(ask(&primary_log(&ours, 1), &ours, &replica)), ErrorCode::Busy);
}

#[test]
fn an_empty_replica_streams_only_if_everything_is_in_the_journal() {
    let ours = written(&[(1, 3 * FILE_BATCHES)]);
    let empty = replica_log(&Log::default());
    let primary = primary_log(&ours, 1);
    assert!(
        matches!(ask(&primary, &ours, &empty), Match::StreamFrom(at) if at.lsn == Location::new(1, 0).lsn())
    );
    let imported = PrimaryLog { has_imported_files: true, ..primary.clone() };
    assert!(matches!(ask(&imported, &ours, &empty), Match::Bulk(at) if at.lsn == Lsn::ZERO));
    assert!(matches!(ask(&primary_log(&ours, 2), &ours, &empty), Match::Bulk(_)));
    let far = kahawai_replication::Timing { stream_lag_bytes_max: 100, ..timing() };
    assert!(matches!(decide(&primary, &empty, None, &far), Match::Bulk(_)));
    // Of the newest two files nothing is gained by fetching them whole.
    let mut near = ours.clone();
    near.batches.truncate(2 * FILE_BATCHES as usize);
    assert!(matches!(decide(&primary_log(&near, 1), &empty, None, &far), Match::StreamFrom(_)));
    // Files are sent of what is committed: who has that gets the rest as a stream, however much it is.
    let committed = |commit| PrimaryLog { commit, ..primary_log(&ours, 1) };
    let first = ours.batches[0].end();
    assert!(matches!(decide(&committed(first), &empty, None, &far), Match::StreamFrom(_)));
}
