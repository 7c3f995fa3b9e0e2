//! The primary's end of a stream connection.

use std::collections::VecDeque;

use bytes::Bytes;
use kahawai_kdbr::{
    AttachMode, Commit, ErrorCode, ErrorFrame, Frame, Goodbye, Heartbeat, JournalUpdate, JournalUpdateAck,
    LagReport, SlaveInit, SlaveInitResponse, SyncId, SyncManifest, Truncate, TruncateDone,
};
use kahawai_types::{Epoch, Lsn, Millis};

use crate::matching::{ChainAt, Common, Match, PrimaryLog, ReplicaLog, decide};
use crate::session::{Pulse, protocol, stale};
use crate::{SessionEnd, Timing, Vitals};

/// What a session of the primary knows from the start.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SourceOptions {
    /// Our reign.
    pub epoch: Epoch,
    /// The commit position.
    pub commit: Lsn,
    /// From the cluster record.
    pub unclean_generation: u64,
    /// Bytes that may be under way without an acknowledgement.
    pub send_window: u64,
    /// Heartbeats and lags.
    pub timing: Timing,
    /// Our journal, read after the connection was accepted.
    pub log: PrimaryLog,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceEvent {
    /// The replica sent this.
    Frame(Frame),
    /// Answer to [`SourceEffect::NeedChain`].
    Chain(ChainAt),
    /// Answer to [`SourceEffect::NeedManifest`].
    Manifest(SyncManifest),
    /// The commit position has moved, and there is nothing to send that could carry it.
    Committed(Lsn),
    /// Time has passed, and the store is alive.
    Tick(Vitals),
    /// The replica is not accepted (any more).
    Refuse(ErrorFrame),
    /// We leave.
    Leave {
        /// Why, for people.
        reason: String,
        /// When the replica should try again.
        reconnect_after_ms: Option<u32>,
    },
}

/// What must be done about it, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceEffect {
    /// Send this.
    Send(Frame),
    /// The replica's addresses.
    Serves {
        /// For nodes.
        address: String,
        /// For clients.
        clients: Vec<String>,
    },
    /// Look into our journal, and answer with [`SourceEvent::Chain`].
    NeedChain {
        /// In the data file of this position; where it begins one, in the one before.
        at: Lsn,
        /// For this chain.
        chain: u64,
    },
    /// Pin the sealed files and answer with [`SourceEvent::Manifest`].
    NeedManifest,
    /// The replica's journal is a prefix of ours: its session counts from now on.
    Attached {
        /// How much of our journal it has flushed.
        durable: Lsn,
    },
    /// Send batches from here on, with [`SourceSession::update`], as far as [`SourceSession::window`] allows.
    StreamFrom(Lsn),
    /// The replica is so far.
    Acked {
        /// Flushed.
        durable: Lsn,
        /// In its index.
        applied: Lsn,
    },
    /// The replica has caught up for the first time, and would join the in-sync set.
    Online,
    /// The files of the bulk synchronisation are still needed.
    Lease {
        /// Which.
        sync_id: SyncId,
        /// Files that the replica has.
        files_done: u32,
        /// Bytes that it has.
        bytes_done: u64,
    },
    /// The bulk synchronisation has ended without success.
    SyncAborted {
        /// Which.
        sync_id: SyncId,
        /// Why, for people.
        reason: String,
    },
    /// How far the replica is behind, for people.
    Lag(LagReport),
    /// How the replica is, with each of its heartbeats.
    Vitals(Vitals),
    /// A frame of a planned switchover.
    Switchover(Frame),
    /// There is a newer reign: step down. [`SourceEffect::Close`] follows.
    Fenced(Epoch),
    /// The session is over. Nothing comes after this.
    Close(SessionEnd),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum State {
    /// For SLAVE_INIT.
    Waiting,
    /// For the chain of our journal.
    Matching {
        replica: ReplicaLog,
        durable: Lsn,
    },
    /// For TRUNCATE_DONE.
    Truncating {
        to: Common,
    },
    /// The replica fetches files, and will come back.
    Bulk,
    Streaming,
    Closed,
}

/// A JOURNAL_UPDATE that is not acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct UnderWay {
    end: Lsn,
    prev_chain: u64,
    /// Bytes sent in this session, up to its end.
    total_bytes: u64,
}

/// The primary's end of a stream session.
///
/// The driver feeds it what arrives, and its own batches from the ring or the files through [`Self::update`]. A session is bound to
/// one epoch: a frame of an older one is refused, a frame of a newer one fences us.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SourceSession {
    options: SourceOptions,
    state: State,
    pulse: Pulse,
    /// The commit position, and what the replica knows of it.
    commit: Lsn,
    announced: Lsn,
    /// End of what was sent.
    sent: Lsn,
    sent_bytes: u64,
    under_way: VecDeque<UnderWay>,
    /// Bytes that are flushed there.
    durable_bytes: u64,
    /// Bytes that the replica takes, counted like `sent_bytes`.
    accepts_bytes: u64,
}

impl SourceSession {
    /// Begins a session after the handshake.
    pub fn new(options: SourceOptions, now: Millis) -> Self {
        Self {
            state: State::Waiting,
            pulse: Pulse::new(&options.timing, now),
            commit: options.commit,
            announced: Lsn::ZERO,
            sent: Lsn::ZERO,
            sent_bytes: 0,
            under_way: VecDeque::new(),
            durable_bytes: 0,
            accepts_bytes: 0,
            options,
        }
    }

    /// Bytes that may be sent now. The last JOURNAL_UPDATE may be larger than what is left: a batch has any size.
    pub fn window(&self) -> u64 {
        if !matches!(self.state, State::Streaming) {
            return 0;
        }
        let sendable = (self.durable_bytes + self.options.send_window).min(self.accepts_bytes);
        if self.under_way.is_empty() {
            return sendable.saturating_sub(self.sent_bytes).max(1);
        }
        sendable.saturating_sub(self.sent_bytes)
    }

    /// The next piece of the journal, to be sent: whole batches that lie one behind the other in one file.
    ///
    /// # Panics
    /// If the replica has not attached. Once the session is over, nobody cares what is still sent.
    pub fn update(&mut self, first_lsn: Lsn, prev_chain: u64, batches: Bytes, commit: Lsn) -> Frame {
        assert!(
            matches!(self.state, State::Streaming | State::Closed),
            "batches are sent to who is attached"
        );
        self.commit = self.commit.max(commit);
        self.announced = self.commit;
        self.sent = Lsn(first_lsn.0 + batches.len() as u64);
        self.sent_bytes += batches.len() as u64;
        self.under_way.push_back(UnderWay { end: self.sent, prev_chain, total_bytes: self.sent_bytes });
        let (epoch, commit) = (self.options.epoch, self.commit);
        JournalUpdate { epoch, first_lsn, prev_chain, commit, batches }.into()
    }

    /// Takes one event, appends what must be done about it.
    pub fn step(&mut self, now: Millis, event: SourceEvent, effects: &mut Vec<SourceEffect>) {
        if matches!(self.state, State::Closed) {
            return;
        }
        let result = match event {
            SourceEvent::Frame(frame) => {
                self.pulse.heard(now);
                self.frame(frame, effects)
            }
            SourceEvent::Chain(answer) => self.matched(Some(answer), effects),
            SourceEvent::Manifest(manifest) => {
                if matches!(self.state, State::Bulk) {
                    effects.push(SourceEffect::Send(manifest.into()));
                }
                Ok(())
            }
            SourceEvent::Committed(commit) => {
                self.commit = self.commit.max(commit);
                self.announce(effects);
                Ok(())
            }
            SourceEvent::Tick(vitals) => self.tick(now, vitals, effects),
            SourceEvent::Refuse(error) => Err(SessionEnd::Refused(error)),
            SourceEvent::Leave { reason, reconnect_after_ms } => {
                let epoch = self.options.epoch;
                let goodbye = Goodbye { epoch, reason: reason.clone(), reconnect_after_ms };
                effects.push(SourceEffect::Send(goodbye.into()));
                Err(SessionEnd::Goodbye(reason))
            }
        };
        if let Err(end) = result {
            if let SessionEnd::Refused(error) = &end {
                effects.push(SourceEffect::Send(error.clone().into()));
            }
            effects.push(SourceEffect::Close(end));
            self.state = State::Closed;
        }
    }

    fn frame(&mut self, frame: Frame, effects: &mut Vec<SourceEffect>) -> Result<(), SessionEnd> {
        let ours = self.options.epoch;
        match frame.epoch() {
            Some(theirs) if theirs > ours => {
                effects.push(SourceEffect::Fenced(theirs));
                return Err(refused(ErrorFrame::new(
                    ErrorCode::NotMaster,
                    format!("epoch {ours} is over, epoch {theirs} is promised"),
                )));
            }
            Some(theirs) if theirs < ours => return Err(refused(stale(ours, theirs))),
            _ => {}
        }
        match (frame, &self.state) {
            (Frame::SlaveInit(init), State::Waiting) => self.init(init, effects),
            (Frame::TruncateDone(done), &State::Truncating { to }) => self.truncated(&done, to, effects),
            (Frame::JournalUpdateAck(ack), State::Streaming) => self.acked(&ack, effects),
            (Frame::SlaveOnline(_), State::Streaming) => {
                effects.push(SourceEffect::Online);
                Ok(())
            }
            (Frame::Heartbeat(beat), _) => {
                self.pulse.echo = beat.seq;
                let Heartbeat { state, durable, disk_free_bytes, last_flush_us, .. } = beat;
                let vitals = Vitals { state, durable, disk_free_bytes, last_flush_us };
                effects.push(SourceEffect::Vitals(vitals));
                Ok(())
            }
            (Frame::LagReport(report), _) => {
                effects.push(SourceEffect::Lag(report));
                Ok(())
            }
            (Frame::SyncLease(lease), State::Bulk) => {
                let (sync_id, files_done, bytes_done) = (lease.sync_id, lease.files_done, lease.bytes_done);
                effects.push(SourceEffect::Lease { sync_id, files_done, bytes_done });
                Ok(())
            }
            (Frame::SyncAbort(abort), State::Bulk) => {
                let (sync_id, reason) = (abort.sync_id, abort.reason);
                effects.push(SourceEffect::SyncAborted { sync_id, reason });
                Ok(())
            }
            (
                frame @ (Frame::SwitchoverPrepare(_)
                | Frame::SwitchoverReady(_)
                | Frame::SwitchoverGo(_)
                | Frame::SwitchoverAbort(_)),
                _,
            ) => {
                effects.push(SourceEffect::Switchover(frame));
                Ok(())
            }
            (Frame::Goodbye(goodbye), _) => Err(SessionEnd::Goodbye(goodbye.reason)),
            (Frame::Error(error), _) => {
                if let Some(promised) = error.promised_epoch.filter(|promised| *promised > ours) {
                    effects.push(SourceEffect::Fenced(promised));
                }
                Err(SessionEnd::Told(error))
            }
            (frame, _) => Err(refused(protocol(format!("{} does not belong here", frame.name())))),
        }
    }

    fn init(&mut self, init: SlaveInit, effects: &mut Vec<SourceEffect>) -> Result<(), SessionEnd> {
        let replica = ReplicaLog::of(&init).map_err(|error| refused(protocol(error.to_string())))?;
        if init.durable > init.end {
            let text = format!("durable {} is behind the end {}", init.durable, init.end);
            return Err(refused(protocol(text)));
        }
        self.accepts_bytes = init.receive_window;
        effects.push(SourceEffect::Serves { address: init.address, clients: init.clients });
        self.state = State::Matching { replica, durable: init.durable };
        self.matched(None, effects)
    }

    fn matched(
        &mut self,
        answer: Option<ChainAt>,
        effects: &mut Vec<SourceEffect>,
    ) -> Result<(), SessionEnd> {
        let State::Matching { replica, durable } = &self.state else {
            return Ok(());
        };
        let durable = *durable;
        let (mode, common) = match decide(&self.options.log, replica, answer, &self.options.timing) {
            Match::NeedChain { at, chain } => {
                effects.push(SourceEffect::NeedChain { at, chain });
                return Ok(());
            }
            Match::StreamFrom(common) => (AttachMode::StreamFrom, common),
            Match::Truncate(common) => (AttachMode::TruncateThenStream, common),
            Match::Bulk(common) => (AttachMode::Bulk, common),
            Match::Refuse(error) => return Err(refused(error)),
        };
        self.announced = self.commit;
        let response = SlaveInitResponse {
            epoch: self.options.epoch,
            mode,
            common_lsn: common.lsn,
            common_epoch: common.epoch,
            common_chain: common.chain,
            commit: self.commit,
            unclean_generation: self.options.unclean_generation,
            epoch_history: self.options.log.history.starts().to_vec(),
            send_window: self.options.send_window,
            heartbeat_interval_ms: u32::try_from(self.options.timing.heartbeat_ms).unwrap_or(u32::MAX),
        };
        effects.push(SourceEffect::Send(response.into()));
        match mode {
            AttachMode::StreamFrom => {
                // Its end may have another number for the same place; the smaller one never looks like a step back later.
                self.stream(common.lsn, durable.min(common.lsn), effects);
            }
            AttachMode::TruncateThenStream => {
                let truncate = Truncate {
                    epoch: self.options.epoch,
                    to: common.lsn,
                    chain: common.chain,
                    unclean_generation: self.options.unclean_generation,
                };
                effects.push(SourceEffect::Send(truncate.into()));
                self.state = State::Truncating { to: common };
            }
            AttachMode::Bulk => {
                effects.push(SourceEffect::NeedManifest);
                self.state = State::Bulk;
            }
        }
        Ok(())
    }

    fn truncated(
        &mut self,
        done: &TruncateDone,
        to: Common,
        effects: &mut Vec<SourceEffect>,
    ) -> Result<(), SessionEnd> {
        // Not the position: it may be the end of a file there, and the start of the next one here.
        if done.chain != to.chain {
            let text =
                format!("the chain at {} is {:016x} there, {:016x} here", to.lsn, done.chain, to.chain);
            return Err(refused(ErrorFrame::new(ErrorCode::Corrupt, text)));
        }
        self.stream(to.lsn, done.end.min(to.lsn), effects);
        Ok(())
    }

    fn stream(&mut self, from: Lsn, durable: Lsn, effects: &mut Vec<SourceEffect>) {
        self.state = State::Streaming;
        self.sent = from;
        effects.push(SourceEffect::Attached { durable });
        effects.push(SourceEffect::StreamFrom(from));
        self.announce(effects);
    }

    fn acked(&mut self, ack: &JournalUpdateAck, effects: &mut Vec<SourceEffect>) -> Result<(), SessionEnd> {
        let &JournalUpdateAck { received, durable, applied, chain_at_durable, credit, .. } = ack;
        if received > self.sent || durable > received || applied > durable {
            let text = format!(
                "received {received}, durable {durable} and applied {applied} cannot be, of {} sent",
                self.sent
            );
            return Err(refused(protocol(text)));
        }
        let mut flushed = None;
        while let Some(update) = self.under_way.front().copied().filter(|update| update.end <= durable) {
            self.under_way.pop_front();
            self.durable_bytes = update.total_bytes;
            flushed = Some(update.end);
        }
        // We know the chain behind an update only from the next one.
        if let Some(next) = self.under_way.front()
            && flushed == Some(durable)
            && next.prev_chain != chain_at_durable
        {
            let text = format!(
                "the chain at {durable} is {chain_at_durable:016x} there, {:016x} here",
                next.prev_chain
            );
            return Err(refused(ErrorFrame::new(ErrorCode::Corrupt, text)));
        }
        let arrived = self.under_way.partition_point(|update| update.end <= received);
        let arrived_bytes = match arrived.checked_sub(1).and_then(|newest| self.under_way.get(newest)) {
            Some(update) => update.total_bytes,
            None => self.durable_bytes,
        };
        self.accepts_bytes = arrived_bytes.saturating_add(credit);
        effects.push(SourceEffect::Acked { durable, applied });
        Ok(())
    }

    fn announce(&mut self, effects: &mut Vec<SourceEffect>) {
        if matches!(self.state, State::Streaming) && self.commit > self.announced {
            self.announced = self.commit;
            let (epoch, commit) = (self.options.epoch, self.commit);
            effects.push(SourceEffect::Send(Commit { epoch, commit }.into()));
        }
    }

    fn tick(
        &mut self,
        now: Millis,
        vitals: Vitals,
        effects: &mut Vec<SourceEffect>,
    ) -> Result<(), SessionEnd> {
        if let Some(end) = self.pulse.silence(now) {
            return Err(end);
        }
        if self.pulse.beats(now) && !matches!(self.state, State::Waiting | State::Matching { .. }) {
            let Vitals { state, durable, disk_free_bytes, last_flush_us } = vitals;
            let beat = Heartbeat {
                epoch: self.options.epoch,
                seq: self.pulse.seq,
                echo_seq: self.pulse.echo,
                sender_time_ms: now,
                commit: self.commit,
                durable,
                state,
                disk_free_bytes,
                last_flush_us,
            };
            effects.push(SourceEffect::Send(beat.into()));
        }
        Ok(())
    }
}

fn refused(error: ErrorFrame) -> SessionEnd {
    SessionEnd::Refused(error)
}
