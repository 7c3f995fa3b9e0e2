//! The two ends of a stream, one rule at a time.

use bytes::Bytes;
use kahawai_kdbr::{
    AttachMode, Commit, ErrorCode, ErrorFrame, Frame, Heartbeat, JournalUpdate, JournalUpdateAck, NodeState,
    SlaveInit, SlaveInitResponse, SyncId, SyncManifest, Truncate, TruncateDone,
};
use kahawai_replication::{
    EpochHistory, LocalLog, PrimaryLog, SessionEnd, SinkEffect, SinkEvent, SinkOptions, SinkSession,
    SourceEffect, SourceEvent, SourceOptions, SourceSession, Timing, Vitals,
};
use kahawai_types::{Epoch, Lsn, Millis};

use crate::log::{BATCH_BYTES, Log};
use crate::world::timing;

const EPOCH: Epoch = Epoch(3);
const VITALS: Vitals =
    Vitals { state: NodeState::Online, durable: Lsn::ZERO, disk_free_bytes: 7, last_flush_us: 9 };

fn written(epochs: &[(u64, u32)]) -> Log {
    let mut log = Log::default();
    for &(epoch, batches) in epochs {
        for content in 0..batches {
            log.append(Epoch(epoch), content.into());
        }
    }
    log
}

fn source(log: &Log, send_window: u64) -> SourceSession {
    let log = PrimaryLog {
        history: log.history(),
        contiguous_from: 1,
        chain_before: 0,
        end: log.end(),
        chain_at_end: log.chain(),
        commit: log.end(),
        has_imported_files: false,
    };
    let commit = Lsn::ZERO;
    SourceSession::new(
        SourceOptions { epoch: EPOCH, commit, unclean_generation: 1, send_window, timing: timing(), log },
        0,
    )
}

fn sink(log: &Log, known_commit: Lsn, promised: Epoch) -> SinkSession {
    let log = LocalLog {
        history: log.history(),
        first_lsn: Lsn::ZERO,
        end: log.end(),
        durable: log.end(),
        chain_at_end: log.chain(),
        known_commit,
        applied: known_commit,
        is_foreign_tail: false,
        unclean_generation: 0,
    };
    let (address, clients, timing) = ("n:1".into(), vec!["stomp://n:2".into()], Timing::default());
    let receive_window = 100;
    SinkSession::new(SinkOptions { log, promised, epoch: EPOCH, receive_window, address, clients, timing }, 0)
}

fn feed_source(session: &mut SourceSession, event: impl Into<Step<SourceEvent>>) -> Vec<SourceEffect> {
    let Step(now, event) = event.into();
    let mut effects = Vec::new();
    session.step(now, event, &mut effects);
    effects
}

fn feed_sink(session: &mut SinkSession, event: impl Into<Step<SinkEvent>>) -> Vec<SinkEffect> {
    let Step(now, event) = event.into();
    let mut effects = Vec::new();
    session.step(now, event, &mut effects);
    effects
}

/// An event, and when.
struct Step<E>(Millis, E);

macro_rules! steps {
    ($event:ident: $($frame:ty),*) => {
        impl From<$event> for Step<$event> {
            fn from(event: $event) -> Self {
                Self(0, event)
            }
        }
        $(
            impl From<$frame> for Step<$event> {
                fn from(frame: $frame) -> Self {
                    Self(0, $event::Frame(frame.into()))
                }
            }
        )*
    };
}
steps!(SourceEvent: Frame, SlaveInit, JournalUpdateAck, Heartbeat, ErrorFrame, TruncateDone);
steps!(SinkEvent: Frame, SlaveInitResponse, JournalUpdate, Truncate, Commit, SyncManifest);

/// What a replica with this journal says first.
fn init(log: &Log) -> Frame {
    match &feed_sink(&mut sink(log, Lsn::ZERO, EPOCH), SinkEvent::Start)[..] {
        [SinkEffect::Send(frame)] => frame.clone(),
        effects => panic!("{effects:?}"),
    }
}

/// A session that streams behind `log`, which is all of both journals.
fn streaming(log: &Log, send_window: u64) -> SourceSession {
    let mut session = source(log, send_window);
    let effects = feed_source(&mut session, init(log));
    assert!(matches!(effects[0], SourceEffect::Serves { .. }));
    // The primary looks into its own journal only where the replica's ends before its own.
    let tail = &effects[2..];
    assert_eq!(
        tail,
        [SourceEffect::Attached { durable: log.end() }, SourceEffect::StreamFrom(log.end())],
        "{effects:?}"
    );
    session
}

fn ack(received: Lsn, durable: Lsn, chain_at_durable: u64, credit: u64) -> JournalUpdateAck {
    JournalUpdateAck { epoch: EPOCH, received, durable, applied: Lsn::ZERO, chain_at_durable, credit }
}

fn refused_with(end: &SessionEnd) -> ErrorCode {
    match end {
        SessionEnd::Refused(error) => error.code,
        end => panic!("{end:?}"),
    }
}

#[track_caller]
fn source_refuses(effects: &[SourceEffect], code: ErrorCode) {
    match effects {
        [.., SourceEffect::Send(Frame::Error(told)), SourceEffect::Close(end)] => {
            assert_eq!((refused_with(end), told.code), (code, code));
        }
        effects => panic!("{effects:?}"),
    }
}

#[track_caller]
fn sink_refuses(effects: &[SinkEffect], code: ErrorCode) {
    match effects {
        [.., SinkEffect::Send(Frame::Error(told)), SinkEffect::Close(end)] => {
            assert_eq!((refused_with(end), told.code), (code, code));
        }
        effects => panic!("{effects:?}"),
    }
}

#[test]
fn the_window_counts_what_is_not_flushed_and_what_the_replica_takes() {
    let mut log = written(&[(3, 1)]);
    let size = u64::from(BATCH_BYTES);
    let mut session = streaming(&log, 3 * size);
    assert_eq!(session.window(), 100, "the receive window is the smaller one");
    let first = log.append(EPOCH, 8);
    let (at, chain, body) = log.piece(first.start, 1).unwrap();
    let Frame::JournalUpdate(update) = session.update(at, chain, body, Lsn(5)) else { panic!() };
    assert_eq!((update.first_lsn, update.commit), (first.start, Lsn(5)));
    assert_eq!(session.window(), 100 - size);
    let second = log.append(EPOCH, 9);
    let (at, chain, body) = log.piece(second.start, 1).unwrap();
    session.update(at, chain, body, Lsn(5));
    assert_eq!(session.window(), 100 - 2 * size);
    // Received, not flushed: only the send window is narrow now.
    let effects = feed_source(&mut session, ack(second.end(), first.start, first.prev_chain, 1_000));
    assert_eq!(effects, [SourceEffect::Acked { durable: first.start, applied: Lsn::ZERO }]);
    assert_eq!(session.window(), size);
    feed_source(&mut session, ack(second.end(), first.end(), second.prev_chain, 1_000));
    assert_eq!(session.window(), 2 * size);
    feed_source(&mut session, ack(second.end(), second.end(), second.chain, 0));
    assert_eq!(session.window(), 1, "a batch of any size may go when nothing is under way");
}

#[test]
fn an_acknowledgement_of_what_was_not_sent_or_of_another_journal_ends_the_session() {
    let mut log = written(&[(3, 1)]);
    let start = log.end();
    let (first, second) = (log.append(EPOCH, 1), log.append(EPOCH, 2));
    for (wrong, code) in [
        (ack(Lsn(second.end().0 + 1), start, 0, 0), ErrorCode::Protocol),
        (ack(start, first.end(), 0, 0), ErrorCode::Protocol),
        (ack(second.end(), first.end(), 77, 0), ErrorCode::Corrupt),
    ] {
        let mut session = streaming(&written(&[(3, 1)]), 1_000);
        for batch in [first, second] {
            let (at, chain, body) = log.piece(batch.start, 1).unwrap();
            session.update(at, chain, body, Lsn::ZERO);
        }
        source_refuses(&feed_source(&mut session, wrong), code);
        assert_eq!(feed_source(&mut session, ack(start, start, 0, 0)), [], "it is over");
    }
}

#[test]
fn a_newer_reign_fences_the_primary_and_an_older_one_is_refused() {
    let log = written(&[(3, 1)]);
    let beat = |epoch| Heartbeat {
        epoch,
        seq: 1,
        echo_seq: 0,
        sender_time_ms: 0,
        commit: Lsn::ZERO,
        durable: Lsn::ZERO,
        state: NodeState::Online,
        disk_free_bytes: 0,
        last_flush_us: 0,
    };
    let effects = feed_source(&mut streaming(&log, 100), beat(Epoch(4)));
    assert_eq!(effects[0], SourceEffect::Fenced(Epoch(4)));
    source_refuses(&effects, ErrorCode::NotMaster);
    let effects = feed_source(&mut streaming(&log, 100), beat(Epoch(2)));
    source_refuses(&effects, ErrorCode::StaleEpoch);
    // So does a replica that says why it does not follow.
    let error = ErrorFrame { promised_epoch: Some(Epoch(9)), ..ErrorFrame::new(ErrorCode::StaleEpoch, "") };
    let effects = feed_source(&mut source(&log, 100), error.clone());
    assert_eq!(effects, [SourceEffect::Fenced(Epoch(9)), SourceEffect::Close(SessionEnd::Told(error))]);
}

#[test]
fn both_ends_send_heartbeats_and_give_up_on_a_silent_peer() {
    let log = written(&[(3, 1)]);
    let (mut primary, mut replica) = (streaming(&log, 100), sink(&log, Lsn::ZERO, EPOCH));
    feed_sink(&mut replica, SinkEvent::Start);
    let (mut sent, mut answered) = (0, 0);
    for now in (100..3_000).step_by(100) {
        let tick = feed_source(&mut primary, Step(now, SourceEvent::Tick(VITALS)));
        assert!(tick.iter().all(|effect| matches!(effect, SourceEffect::Send(Frame::Heartbeat(_)))));
        sent += tick.len();
        let tick = feed_sink(&mut replica, Step(now, SinkEvent::Tick(VITALS)));
        assert!(tick.iter().all(|effect| matches!(effect, SinkEffect::Send(Frame::Heartbeat(_)))));
        answered += tick.len();
    }
    assert_eq!((sent, answered), (5, 5));
    let silent = SessionEnd::Silent(3_000);
    let over = feed_source(&mut primary, Step(3_000, SourceEvent::Tick(VITALS)));
    assert_eq!(over, [SourceEffect::Close(silent.clone())]);
    assert_eq!(primary.window(), 0);
    let over = feed_sink(&mut replica, Step(3_000, SinkEvent::Tick(VITALS)));
    assert_eq!(over, [SinkEffect::Close(silent)]);
}

#[test]
fn a_replica_promises_before_it_says_a_word() {
    let log = written(&[(1, 2)]);
    let mut session = sink(&log, Lsn::ZERO, Epoch(2));
    assert_eq!(feed_sink(&mut session, SinkEvent::Start), [SinkEffect::Promise(EPOCH)]);
    assert_eq!(feed_sink(&mut session, SinkEvent::Promised(Epoch(2))), []);
    let effects = feed_sink(&mut session, SinkEvent::Promised(EPOCH));
    assert!(matches!(&effects[..], [SinkEffect::Send(Frame::SlaveInit(init))] if init.epoch == EPOCH));
    // A newer promise, to somebody else, ends everything.
    sink_refuses(&feed_sink(&mut session, SinkEvent::Promised(Epoch(4))), ErrorCode::StaleEpoch);
    sink_refuses(&feed_sink(&mut sink(&log, Lsn::ZERO, Epoch(4)), SinkEvent::Start), ErrorCode::StaleEpoch);
}

fn response(mode: AttachMode, common_lsn: Lsn, common_chain: u64, commit: Lsn) -> SlaveInitResponse {
    SlaveInitResponse {
        epoch: EPOCH,
        mode,
        common_lsn,
        common_epoch: Epoch(1),
        common_chain,
        commit,
        unclean_generation: 0,
        epoch_history: Vec::new(),
        send_window: 1,
        heartbeat_interval_ms: 500,
    }
}

/// A replica with this journal that follows.
fn following(log: &Log, commit: Lsn) -> SinkSession {
    let mut session = sink(log, Lsn::ZERO, EPOCH);
    feed_sink(&mut session, SinkEvent::Start);
    let effects = feed_sink(&mut session, response(AttachMode::StreamFrom, log.end(), log.chain(), commit));
    assert_eq!(effects[0], SinkEffect::Attached { at: log.end() });
    session
}

fn update(log: &Log, from: Lsn, count: usize, commit: Lsn) -> JournalUpdate {
    let (first_lsn, prev_chain, batches) = log.piece(from, count).unwrap();
    JournalUpdate { epoch: EPOCH, first_lsn, prev_chain, commit, batches }
}

#[test]
fn nothing_is_acknowledged_or_applied_before_it_is_flushed() {
    let mut log = written(&[(3, 1)]);
    let mut session = following(&log, Lsn::ZERO);
    let from = log.end();
    let (first, second) = (log.append(EPOCH, 1), log.append(EPOCH, 2));
    let sent = update(&log, from, 2, second.end());
    let append =
        SinkEffect::Append { lsn: from, prev_chain: first.prev_chain, batches: sent.batches.clone() };
    assert_eq!(feed_sink(&mut session, sent), [append, SinkEffect::Commit(from)]);
    let effects = feed_sink(&mut session, SinkEvent::Written { durable: first.end(), chain: first.chain });
    let told = JournalUpdateAck {
        received: second.end(),
        credit: 20,
        ..ack(second.end(), first.end(), first.chain, 0)
    };
    assert_eq!(effects, [SinkEffect::Send(told.into()), SinkEffect::Commit(first.end())]);
    feed_sink(&mut session, SinkEvent::Applied(first.end()));
    let effects = feed_sink(&mut session, SinkEvent::Written { durable: second.end(), chain: second.chain });
    let told =
        JournalUpdateAck { applied: first.end(), ..ack(second.end(), second.end(), second.chain, 100) };
    assert_eq!(effects, [SinkEffect::Send(told.into()), SinkEffect::Commit(second.end())]);
    // A commit position that goes back, or that comes again, says nothing.
    assert_eq!(feed_sink(&mut session, Commit { epoch: EPOCH, commit: first.end() }), []);
}

#[test]
fn what_does_not_follow_is_not_taken() {
    let mut log = written(&[(3, 1)]);
    let attached = log.clone();
    let from = log.end();
    for content in 0..9 {
        log.append(EPOCH, content);
    }
    let fine = update(&log, from, 1, Lsn::ZERO);
    let end = Lsn(from.0 + u64::from(BATCH_BYTES));
    for (wrong, code) in [
        (update(&log, end, 1, Lsn::ZERO), ErrorCode::Protocol),
        (JournalUpdate { batches: Bytes::new(), ..fine.clone() }, ErrorCode::Protocol),
        (JournalUpdate { prev_chain: 5, ..fine.clone() }, ErrorCode::Corrupt),
        (JournalUpdate { epoch: Epoch(2), ..fine.clone() }, ErrorCode::StaleEpoch),
        (JournalUpdate { epoch: Epoch(4), ..fine.clone() }, ErrorCode::Protocol),
    ] {
        sink_refuses(&feed_sink(&mut following(&attached, Lsn::ZERO), wrong), code);
    }
    // More than the window, of 100 bytes, without waiting for an acknowledgement.
    let mut session = following(&attached, Lsn::ZERO);
    feed_sink(&mut session, update(&log, from, 3, Lsn::ZERO));
    let next_file = Lsn(2 << 32);
    sink_refuses(&feed_sink(&mut session, update(&log, next_file, 1, Lsn::ZERO)), ErrorCode::Limit);
    // The next file needs no announcement, an update in the middle of it does not fit.
    let mut session = following(&log, Lsn::ZERO);
    let middle = JournalUpdate { first_lsn: Lsn((9 << 32) | 8), ..fine };
    sink_refuses(&feed_sink(&mut session, middle), ErrorCode::Protocol);
}

#[test]
fn what_is_known_to_be_confirmed_is_dropped_only_for_a_higher_unclean_generation() {
    let log = written(&[(1, 3), (2, 2)]);
    let (to, chain) = (log.end_of(3), log.batches[2].chain);
    let truncate = |unclean_generation| Truncate { epoch: EPOCH, to, chain, unclean_generation };
    let asked = |known_commit| {
        let mut session = sink(&log, known_commit, EPOCH);
        feed_sink(&mut session, SinkEvent::Start);
        feed_sink(&mut session, response(AttachMode::TruncateThenStream, to, chain, to));
        session
    };
    let cut = [SinkEffect::Truncate { to, chain }];
    assert_eq!(feed_sink(&mut asked(to), truncate(0)), cut);
    assert_eq!(feed_sink(&mut asked(log.end_of(4)), truncate(1)), cut);
    sink_refuses(&feed_sink(&mut asked(log.end_of(4)), truncate(0)), ErrorCode::Diverged);

    let mut session = asked(to);
    feed_sink(&mut session, truncate(0));
    let done = SinkEvent::TruncateDone { end: to, chain, dropped_bytes: 80, saved_as: None };
    let effects = feed_sink(&mut session, done);
    assert!(
        matches!(&effects[..2], [SinkEffect::Send(Frame::TruncateDone(done)), SinkEffect::Attached { at }]
            if done.end == to && *at == to)
    );
    // And files instead of it are no way around.
    let mut session = sink(&log, log.end(), EPOCH);
    feed_sink(&mut session, SinkEvent::Start);
    sink_refuses(&feed_sink(&mut session, response(AttachMode::Bulk, to, chain, to)), ErrorCode::Diverged);
}

#[test]
fn a_primary_sends_nothing_to_a_journal_that_was_cut_where_it_should_not_be() {
    let mut ours = written(&[(1, 3)]);
    let theirs = written(&[(1, 3), (2, 2)]);
    ours.append(EPOCH, 1);
    for (chain, fits) in [(theirs.batches[2].chain, true), (7, false)] {
        let mut session = source(&ours, 100);
        let effects = feed_source(&mut session, init(&theirs));
        assert!(
            matches!(effects.last(), Some(SourceEffect::Send(Frame::Truncate(cut))) if cut.to == ours.end_of(3))
        );
        assert_eq!(session.window(), 0);
        let (epoch, end) = (EPOCH, ours.end_of(3));
        let done = TruncateDone { epoch, end, chain, dropped_bytes: 80, saved_as: None };
        let effects = feed_source(&mut session, done);
        if fits {
            assert_eq!(effects, [SourceEffect::Attached { durable: end }, SourceEffect::StreamFrom(end)]);
        } else {
            source_refuses(&effects, ErrorCode::Corrupt);
        }
    }
}

#[test]
fn a_replica_that_lags_is_asked_for_and_matched_by_the_chain_of_our_journal() {
    let ours = written(&[(1, 3), (3, 3)]);
    let mut theirs = ours.clone();
    theirs.batches.truncate(5);
    let mut session = source(&ours, 100);
    let effects = feed_source(&mut session, init(&theirs));
    assert_eq!(effects[1..], [SourceEffect::NeedChain { at: theirs.end(), chain: theirs.chain() }]);
    let answer = ours.find(theirs.end(), theirs.chain());
    let effects = feed_source(&mut session, SourceEvent::Chain(answer));
    let end = theirs.end();
    assert_eq!(effects[1..], [SourceEffect::Attached { durable: end }, SourceEffect::StreamFrom(end)]);
}

#[test]
fn files_are_fetched_under_a_lease() {
    let mut log = written(&[(3, 1)]);
    log.append(EPOCH, 1);
    let options = PrimaryLog {
        history: log.history(),
        contiguous_from: 1,
        chain_before: 0,
        end: log.end(),
        chain_at_end: log.chain(),
        commit: log.end(),
        has_imported_files: true,
    };
    let mut primary = SourceSession::new(
        SourceOptions {
            epoch: EPOCH,
            commit: Lsn::ZERO,
            unclean_generation: 0,
            send_window: 1,
            timing: timing(),
            log: options,
        },
        0,
    );
    let mut replica = sink(&Log::default(), Lsn::ZERO, EPOCH);
    feed_sink(&mut replica, SinkEvent::Start);
    let effects = feed_source(&mut primary, init(&Log::default()));
    let [_, SourceEffect::Send(answer), SourceEffect::NeedManifest] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(feed_sink(&mut replica, answer.clone()), []);
    let manifest = SyncManifest {
        epoch: EPOCH,
        sync_id: SyncId(4),
        files: Vec::new(),
        stream_start: Lsn(1 << 32),
        commit: Lsn::ZERO,
        total_bytes: 0,
        lease_ms: 1_000,
        sessions_max: 4,
    };
    let effects = feed_source(&mut primary, SourceEvent::Manifest(manifest.clone()));
    assert_eq!(effects, [SourceEffect::Send(manifest.clone().into())]);
    assert_eq!(feed_sink(&mut replica, manifest.clone()), [SinkEffect::Bulk(manifest)]);
    let (sync_id, files_done, bytes_done) = (SyncId(4), 2, 3);
    let effects = feed_sink(&mut replica, SinkEvent::SyncProgress { sync_id, files_done, bytes_done });
    let [SinkEffect::Send(lease)] = &effects[..] else { panic!("{effects:?}") };
    let effects = feed_source(&mut primary, lease.clone());
    assert_eq!(effects, [SourceEffect::Lease { sync_id, files_done, bytes_done }]);
    assert_eq!(primary.window(), 0);
    let leave = SinkEvent::Leave { reason: "installed".into(), reconnect_after_ms: Some(0) };
    let effects = feed_sink(&mut replica, leave);
    let [SinkEffect::Send(goodbye), SinkEffect::Close(_)] = &effects[..] else { panic!("{effects:?}") };
    let over = feed_source(&mut primary, goodbye.clone());
    assert_eq!(over, [SourceEffect::Close(SessionEnd::Goodbye("installed".into()))]);
}

#[test]
fn a_history_that_goes_back_is_refused() {
    let start = |epoch, at| kahawai_kdbr::EpochStart { epoch: Epoch(epoch), start: Lsn(at), chain_before: 0 };
    assert!(EpochHistory::new(vec![start(1, 10), start(2, 20)]).is_ok());
    for wrong in [vec![start(0, 10)], vec![start(2, 10), start(2, 20)], vec![start(1, 10), start(2, 10)]] {
        assert!(EpochHistory::new(wrong).is_err());
    }
    let log = written(&[(3, 1)]);
    let Frame::SlaveInit(mut frame) = init(&log) else { panic!() };
    frame.epoch_history = vec![start(2, 20), start(1, 30)];
    source_refuses(&feed_source(&mut source(&log, 1), frame), ErrorCode::Protocol);
}
