//! Bulk synchronisation over connections that fail.

use bytes::BytesMut;
use kahawai_kdbr::{FileKind, ManifestFile, SyncId, SyncManifest};
use kahawai_replication::sync::{
    CHUNK_BYTES, FileIdentity, FileKey, PlanError, Resume, TransferError, Transfers, TransfersOptions, plan,
};
use kahawai_testkit::Random;
use kahawai_types::{Epoch, Location, Lsn};
use proptest::collection::vec;
use proptest::prelude::*;

fn file(id: u32, length: u64) -> ManifestFile {
    let end_chain = u64::from(id) * 1_000 + length;
    ManifestFile { kind: FileKind::Journal, id, length, first_epoch: Epoch(1), start_chain: 0, end_chain }
}

fn manifest(files: Vec<ManifestFile>) -> SyncManifest {
    SyncManifest {
        epoch: Epoch(1),
        sync_id: SyncId(1),
        total_bytes: files.iter().map(|file| file.length).sum(),
        files,
        stream_start: Location::new(100, 0).lsn(),
        commit: Lsn::ZERO,
        lease_ms: 1_000,
        sessions_max: 4,
    }
}

#[test]
fn what_is_there_stays_the_rest_is_fetched_in_order() {
    let files = vec![file(1, 10), file(2, 30 * CHUNK_BYTES), file(4, 20), file(5, 3 * CHUNK_BYTES)];
    let stranger = FileIdentity { end_chain: 7, ..FileIdentity::from(&file(4, 20)) };
    let held = [FileIdentity::from(&files[0]), stranger, FileIdentity::from(&file(9, 1))];
    let mut resume = Resume::new();
    let mut log = BytesMut::new();
    resume.add(&FileIdentity::from(&files[1]), 0..2, &mut log);
    // Of another file with the same number.
    resume.add(&FileIdentity { end_chain: 8, ..FileIdentity::from(&files[3]) }, 0..3, &mut log);
    let plan = plan(&manifest(files), &held, &resume).unwrap();
    let key = |id| FileKey { kind: FileKind::Journal, id };
    assert_eq!((plan.keep, plan.remove), (vec![key(1)], vec![key(9)]));
    let fetched: Vec<_> = plan.fetch.iter().map(|fetch| (fetch.file.id, fetch.done.bytes())).collect();
    assert_eq!(fetched, [(2, 2 * CHUNK_BYTES), (4, 0), (5, 0)]);
    assert_eq!((plan.total_bytes, plan.kept_bytes), (33 * CHUNK_BYTES + 30, 10));
}

#[test]
fn a_manifest_that_cannot_be_is_refused() {
    let key = |id| FileKey { kind: FileKind::Journal, id };
    let planned = |files| plan(&manifest(files), &[], &Resume::new()).unwrap_err();
    assert_eq!(planned(vec![file(1, 1 << 32)]), PlanError::TooLong { key: key(1), length: 1 << 32 });
    assert_eq!(planned(vec![file(1, 1), file(1, 2)]), PlanError::Twice { key: key(1) });
    assert_eq!(planned(vec![file(100, 1)]), PlanError::NotSealed { id: 100 });
    assert_eq!(planned(vec![file(0, 1)]), PlanError::Nonsense { key: key(0) });
    let other = ManifestFile { kind: FileKind::Snapshot, ..file(3, 1) };
    assert_eq!(
        planned(vec![other]),
        PlanError::Nonsense { key: FileKey { kind: FileKind::Snapshot, id: 3 } }
    );
    let index = ManifestFile { kind: FileKind::Snapshot, ..file(0, u64::MAX) };
    assert!(matches!(planned(vec![index]), PlanError::TooLong { .. }));
}

#[test]
fn only_what_was_asked_for_is_taken() {
    let planned = plan(&manifest(vec![file(1, CHUNK_BYTES + 5)]), &[], &Resume::new()).unwrap();
    let mut transfers = Transfers::new(planned, TransfersOptions::default(), 0);
    assert_eq!(transfers.next(4, 0), None, "one connection too many");
    let range = transfers.next(0, 0).unwrap();
    assert_eq!((range.offset, range.length), (0, CHUNK_BYTES + 5));
    assert_eq!(transfers.next(0, 0), None, "one request at a time");
    let id = range.request_id;
    assert_eq!(transfers.arrived(1, id, 0, 1), Err(TransferError::UnknownRequest(id)));
    assert_eq!(transfers.arrived(0, id + 1, 0, 1), Err(TransferError::UnknownRequest(id + 1)));
    for (offset, length) in [(0, CHUNK_BYTES - 1), (CHUNK_BYTES, 5), (u64::MAX, u64::MAX)] {
        assert!(matches!(transfers.arrived(0, id, offset, length), Err(TransferError::OutOfPlace { .. })));
    }
    assert!(!transfers.arrived(0, id, 0, CHUNK_BYTES).unwrap().ends_range);
    let last = transfers.arrived(0, id, CHUNK_BYTES, 5).unwrap();
    assert!(last.ends_range && last.index == 1);
    assert_eq!(transfers.arrived(0, id, CHUNK_BYTES, 5), Err(TransferError::UnknownRequest(id)));
}

#[test]
fn connections_that_fail_come_back_later_and_later() {
    let planned = plan(&manifest(vec![file(1, 1)]), &[], &Resume::new()).unwrap();
    let options = TransfersOptions { retry_ms_min: 100, retry_ms_max: 1_000, ..TransfersOptions::default() };
    let mut transfers = Transfers::new(planned, options, 0);
    let mut waits = Vec::new();
    for _ in 0..6 {
        let at = transfers.failed(0, 0, u64::MAX / 2);
        assert_eq!(transfers.may_open(0), Some(at));
        assert_eq!(transfers.next(0, at - 1), None);
        waits.push(at);
    }
    for (wait, longest) in waits.into_iter().zip([100, 200, 400, 800, 1_000, 1_000]) {
        assert!((longest / 2..=longest).contains(&wait), "{wait} of {longest}");
    }
    assert_eq!(transfers.may_open(1), Some(0), "the others need not wait");
}

proptest! {
    /// Whatever breaks, and however often the process starts again, every chunk comes, and none that was flushed comes again.
    #[test]
    fn everything_is_fetched_in_the_end(
        lengths in vec(0..40 * CHUNK_BYTES, 1..6),
        sessions in 1..5u32,
        seed in any::<u64>(),
    ) {
        let files: Vec<_> = lengths.iter().enumerate().map(|(index, length)| file(index as u32 + 1, *length)).collect();
        let manifest = manifest(files);
        let options = TransfersOptions { sessions_max: sessions, range_chunks_max: 5, ..TransfersOptions::default() };
        let mut random = Random::new(seed);
        let mut log = BytesMut::from(&Resume::header()[..]);
        let mut fetched = std::collections::BTreeMap::new();
        let mut now = 0;
        'process: loop {
            let (mut resume, valid) = Resume::decode(&log);
            prop_assert_eq!(valid, log.len());
            let planned = plan(&manifest, &[], &resume).unwrap();
            let mut transfers = Transfers::new(planned, options, now);
            let mut requests = vec![None; sessions as usize];
            while !transfers.is_complete() {
                now += 7;
                let is_under_way = requests.iter().any(Option::is_some);
                prop_assert!(is_under_way || transfers.may_open(0).is_some(), "nobody would go on");
                let session = random.below(sessions.into()) as u32;
                match random.below(60) {
                    0 => continue 'process,
                    1..4 => {
                        transfers.failed(session, now, random.next_u64());
                        requests[session as usize] = None;
                    }
                    _ => {}
                }
                let request = &mut requests[session as usize];
                let Some((range, at)) = request.or_else(|| {
                    transfers.next(session, now).map(|range: kahawai_replication::sync::Range| (range, range.offset))
                }) else { continue };
                let length = CHUNK_BYTES.min(range.offset + range.length - at);
                let chunk = transfers.arrived(session, range.request_id, at, length).unwrap();
                *request = (!chunk.ends_range).then_some((range, at + length));
                prop_assert_eq!(chunk.ends_range, at + length == range.offset + range.length);
                // Written, and sometimes the process ends before the flush.
                if random.chance(20) {
                    continue 'process;
                }
                // Some flush each chunk, others the whole range.
                let first = (range.offset / CHUNK_BYTES) as u32;
                let chunks = match range.request_id % 2 {
                    0 => chunk.index..chunk.index + 1,
                    _ if chunk.ends_range => first..chunk.index + 1,
                    _ => continue,
                };
                transfers.flushed(now, chunk.key, chunks.clone(), &mut resume, &mut log);
                for index in chunks {
                    *fetched.entry((chunk.key, index)).or_insert(0) += 1;
                }
            }
            let progress = transfers.progress(now);
            prop_assert_eq!((progress.done_bytes, progress.total_bytes), (manifest.total_bytes, manifest.total_bytes));
            prop_assert_eq!((progress.files_done, progress.eta_ms.unwrap_or(0)), (progress.files, 0));
            break;
        }
        prop_assert!(fetched.values().all(|times| *times == 1));
        let chunks: u64 = lengths.iter().map(|length| length.div_ceil(CHUNK_BYTES)).sum();
        prop_assert_eq!(fetched.len() as u64, chunks);
    }

    /// A log that was torn or damaged is good up to there.
    #[test]
    fn a_damaged_log_is_good_up_to_the_damage(
        adds in vec((1..5u32, 0..30u32, 1..9u32), 0..20),
        cut in any::<prop::sample::Index>(),
        flip in any::<Option<(prop::sample::Index, u8)>>(),
    ) {
        let (mut resume, mut log) = (Resume::new(), BytesMut::from(&Resume::header()[..]));
        let mut known = vec![(log.len(), resume.clone())];
        for (id, first, count) in adds {
            resume.add(&FileIdentity::from(&file(id, 40 * CHUNK_BYTES)), first..first + count, &mut log);
            known.push((log.len(), resume.clone()));
        }
        prop_assert_eq!(Resume::decode(&log), (resume, log.len()));
        let mut bytes = log.to_vec();
        bytes.truncate(cut.index(bytes.len() + 1));
        let mut whole = bytes.len();
        if let Some((at, bits)) = flip
            && bits != 0
            && !bytes.is_empty()
        {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
            whole = at;
        }
        let (read, valid) = Resume::decode(&bytes);
        prop_assert!(valid <= whole);
        // The beginning of a file may be there without the chunks that came with it.
        let at_least = known.iter().rev().find(|(end, _)| *end <= whole).map_or(0, |(end, _)| *end);
        prop_assert!(valid >= at_least);
        let (again, all) = Resume::decode(&bytes[..valid]);
        prop_assert_eq!((again, all), (read, valid));
    }

    /// Whatever lies there, reading it does no harm.
    #[test]
    fn any_bytes_are_a_log(bytes in vec(any::<u8>(), 0..200)) {
        let (_, valid) = Resume::decode(&bytes);
        prop_assert!(valid <= bytes.len());
    }
}

#[test]
fn a_file_that_is_not_what_it_should_be_is_fetched_again() {
    let wanted = file(1, 2 * CHUNK_BYTES);
    let key = FileIdentity::from(&wanted).key;
    let planned = plan(&manifest(vec![wanted.clone()]), &[], &Resume::new()).unwrap();
    let mut transfers = Transfers::new(planned, TransfersOptions::default(), 0);
    let (mut resume, mut log) = (Resume::new(), BytesMut::from(&Resume::header()[..]));
    for round in 0..2 {
        let range = transfers.next(0, 0).unwrap();
        assert_eq!(range.length, 2 * CHUNK_BYTES);
        for chunk in 0..2 {
            transfers.arrived(0, range.request_id, chunk * CHUNK_BYTES, CHUNK_BYTES).unwrap();
        }
        assert!(!transfers.flushed(0, key, 0..1, &mut resume, &mut log));
        assert!(transfers.flushed(0, key, 1..2, &mut resume, &mut log));
        assert!(transfers.is_complete());
        if round == 0 {
            transfers.reject(key, &mut resume, &mut log);
            assert!(!transfers.is_complete());
            assert_eq!(Resume::decode(&log).0.chunks_of(&FileIdentity::from(&wanted)).unwrap().bytes(), 0);
        }
    }
    assert_eq!(Resume::decode(&log).0, resume);
}

#[test]
fn progress_tells_the_rate_and_what_is_left() {
    let planned = plan(&manifest(vec![file(1, 40 * CHUNK_BYTES)]), &[], &Resume::new()).unwrap();
    let mut transfers = Transfers::new(planned, TransfersOptions::default(), 0);
    assert_eq!(transfers.progress(0).eta_ms, None);
    let (mut resume, mut log) = (Resume::new(), BytesMut::new());
    let key = FileKey { kind: FileKind::Journal, id: 1 };
    for second in 0..20 {
        transfers.flushed(second * 1_000, key, second as u32..second as u32 + 1, &mut resume, &mut log);
    }
    let progress = transfers.progress(19_999);
    let mib = CHUNK_BYTES as f64;
    assert!((progress.rate_bytes_per_s as f64 / mib - 1.0).abs() < 0.15, "{progress:?}");
    assert!(progress.eta_ms.is_some_and(|eta_ms| eta_ms.abs_diff(20_000) < 3_000), "{progress:?}");
    assert_eq!(transfers.progress(60_000).eta_ms, None, "nothing comes any more");
}
