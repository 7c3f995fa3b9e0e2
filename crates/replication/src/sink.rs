//! The replica's end of a stream connection.

use std::collections::VecDeque;

use bytes::Bytes;
use kahawai_kdbr::{
    AttachMode, ErrorCode, ErrorFrame, Frame, Goodbye, Heartbeat, JournalUpdate, JournalUpdateAck, SlaveInit,
    SlaveInitResponse, SlaveOnline, SyncAbort, SyncId, SyncLease, SyncManifest, Truncate, TruncateDone,
};
use kahawai_types::{Epoch, Lsn, Millis};

use crate::matching::EpochHistory;
use crate::session::{Pulse, protocol, stale};
use crate::{SessionEnd, Timing, Vitals};

/// A data file stays below this; upstream's offsets are signed.
const FILE_BYTES_LIMIT: u64 = 1 << 31;

/// The replica's store, as it is when the session begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalLog {
    /// The reigns in its journal.
    pub history: EpochHistory,
    /// Where its oldest file begins.
    pub first_lsn: Lsn,
    /// Where its journal ends; [`Lsn::ZERO`] if there is nothing.
    pub end: Lsn,
    /// What of it is flushed.
    pub durable: Lsn,
    /// The chain at `end`.
    pub chain_at_end: u64,
    /// Everything before is confirmed, as far as it knows.
    pub known_commit: Lsn,
    /// What is in its index.
    pub applied: Lsn,
    /// Its newest batches were written by ActiveMQ.
    pub is_foreign_tail: bool,
    /// The generation of the last primary that this journal has followed: only a higher one may take back what was confirmed.
    pub unclean_generation: u64,
}

/// What a session of a replica knows from the start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SinkOptions {
    /// The store.
    pub log: LocalLog,
    /// The newest reign that this node has promised to follow, as persisted.
    pub promised: Epoch,
    /// The reign that the primary named in HELLO_ACK.
    pub epoch: Epoch,
    /// Bytes that we take without having flushed them.
    pub receive_window: u64,
    /// Our address for nodes.
    pub address: String,
    /// Our addresses for clients.
    pub clients: Vec<String>,
    /// Heartbeats.
    pub timing: Timing,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SinkEvent {
    /// The handshake is done.
    Start,
    /// This promise is persisted: the one that [`SinkEffect::Promise`] asked for, or a newer one.
    Promised(Epoch),
    /// The primary sent this.
    Frame(Frame),
    /// The journal is flushed up to here, and this is the chain there.
    Written {
        /// End of what is flushed.
        durable: Lsn,
        /// The chain there.
        chain: u64,
    },
    /// The index has everything before this.
    Applied(Lsn),
    /// The journal is cut and flushed, the store is open again.
    TruncateDone {
        /// Where it ends now.
        end: Lsn,
        /// The chain there.
        chain: u64,
        /// How much was dropped.
        dropped_bytes: u64,
        /// Where it is kept.
        saved_as: Option<String>,
    },
    /// The bulk synchronisation goes on.
    SyncProgress {
        /// Which.
        sync_id: SyncId,
        /// Files that are complete.
        files_done: u32,
        /// Bytes that are there.
        bytes_done: u64,
    },
    /// The bulk synchronisation is given up.
    SyncFailed {
        /// Which.
        sync_id: SyncId,
        /// Why, for people.
        reason: String,
    },
    /// Time has passed, and the store is alive.
    Tick(Vitals),
    /// We cannot go on, and say why.
    Refuse(ErrorFrame),
    /// We leave: the node stops, or has installed what it fetched and comes back.
    Leave {
        /// Why, for people.
        reason: String,
        /// When we come back, if we do.
        reconnect_after_ms: Option<u32>,
    },
}

/// What must be done about it, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SinkEffect {
    /// Send this.
    Send(Frame),
    /// Persist the promise to follow no older reign, and answer with [`SinkEvent::Promised`].
    Promise(Epoch),
    /// The journal is a prefix of the primary's, and the stream has begun.
    Attached {
        /// Where it goes on.
        at: Lsn,
    },
    /// Append these batches, one behind the other, flush, and answer with [`SinkEvent::Written`]; one answer for several is fine.
    Append {
        /// Where the first batch lies.
        lsn: Lsn,
        /// The chain before it.
        prev_chain: u64,
        /// The batches.
        batches: Bytes,
    },
    /// Everything before this is confirmed, and flushed here: apply it.
    Commit(Lsn),
    /// Close the store, cut the journal there, open it again, and answer with [`SinkEvent::TruncateDone`].
    Truncate {
        /// Drop everything from here on.
        to: Lsn,
        /// The chain there; if ours differs, nothing is cut and the session is refused.
        chain: u64,
    },
    /// Fetch these files, install them, and come back. [`SinkEvent::SyncProgress`] keeps the lease.
    Bulk(SyncManifest),
    /// The primary has given up the bulk synchronisation.
    SyncAborted {
        /// Which.
        sync_id: SyncId,
        /// Why, for people.
        reason: String,
        /// Not before.
        retry_after_ms: Option<u32>,
    },
    /// How the primary is, with each of its heartbeats.
    Vitals(Vitals),
    /// A frame of a planned switchover.
    Switchover(Frame),
    /// The session is over. Nothing comes after this.
    Close(SessionEnd),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// For [`SinkEvent::Start`].
    New,
    /// For the promise.
    Promising,
    /// For SLAVE_INIT_RESPONSE.
    Asked,
    /// For TRUNCATE.
    ToTruncate,
    /// For the store.
    Truncating {
        chain: u64,
    },
    /// For SYNC_MANIFEST. What both have goes up to there.
    ToSync {
        common: Lsn,
    },
    /// Files are fetched.
    Syncing,
    Streaming,
    Closed,
}

/// The replica's end of a stream session.
///
/// An acknowledgement leaves only after the flush that it rests on, and only for a reign that is promised. What is announced as
/// committed is passed on as far as it is flushed here.
#[derive(Debug)]
pub struct SinkSession {
    options: SinkOptions,
    state: State,
    pulse: Pulse,
    received: Lsn,
    durable: Lsn,
    chain_at_durable: u64,
    /// Announced by the primary, and passed on.
    announced: Lsn,
    commit: Lsn,
    applied: Lsn,
    applied_told: Lsn,
    online: bool,
    /// Ends and sizes of what is not flushed.
    unflushed: VecDeque<(Lsn, u64)>,
    unflushed_bytes: u64,
}

impl SinkSession {
    /// Begins a session after the handshake.
    pub fn new(options: SinkOptions, now: Millis) -> Self {
        let log = &options.log;
        Self {
            state: State::New,
            pulse: Pulse::new(&options.timing, now),
            received: log.end,
            durable: log.durable.min(log.end),
            chain_at_durable: log.chain_at_end,
            announced: Lsn::ZERO,
            commit: log.known_commit,
            applied: log.applied,
            applied_told: log.applied,
            online: false,
            unflushed: VecDeque::new(),
            unflushed_bytes: 0,
            options,
        }
    }

    /// Takes one event, appends what must be done about it.
    pub fn step(&mut self, now: Millis, event: SinkEvent, effects: &mut Vec<SinkEffect>) {
        if self.state == State::Closed {
            return;
        }
        let epoch = self.options.epoch;
        let result = match event {
            SinkEvent::Start => self.start(effects),
            SinkEvent::Promised(promised) => self.promised(promised, effects),
            SinkEvent::Frame(frame) => {
                self.pulse.heard(now);
                self.frame(frame, effects)
            }
            SinkEvent::Written { durable, chain } => {
                self.written(durable, chain, effects);
                Ok(())
            }
            SinkEvent::Applied(applied) => {
                self.applied = self.applied.max(applied);
                Ok(())
            }
            SinkEvent::TruncateDone { end, chain, dropped_bytes, saved_as } => {
                self.truncated(TruncateDone { epoch, end, chain, dropped_bytes, saved_as }, effects)
            }
            SinkEvent::SyncProgress { sync_id, files_done, bytes_done } => {
                effects.push(SinkEffect::Send(SyncLease { epoch, sync_id, files_done, bytes_done }.into()));
                Ok(())
            }
            SinkEvent::SyncFailed { sync_id, reason } => {
                let abort = SyncAbort { epoch, sync_id, reason, retry_after_ms: None };
                effects.push(SinkEffect::Send(abort.into()));
                Ok(())
            }
            SinkEvent::Tick(vitals) => self.tick(now, vitals, effects),
            SinkEvent::Refuse(error) => Err(SessionEnd::Refused(error)),
            SinkEvent::Leave { reason, reconnect_after_ms } => {
                let goodbye = Goodbye { epoch, reason: reason.clone(), reconnect_after_ms };
                effects.push(SinkEffect::Send(goodbye.into()));
                Err(SessionEnd::Goodbye(reason))
            }
        };
        if let Err(end) = result {
            if let SessionEnd::Refused(error) = &end {
                effects.push(SinkEffect::Send(error.clone().into()));
            }
            effects.push(SinkEffect::Close(end));
            self.state = State::Closed;
        }
    }

    fn start(&mut self, effects: &mut Vec<SinkEffect>) -> Result<(), SessionEnd> {
        let SinkOptions { epoch, promised, .. } = self.options;
        if epoch > promised {
            self.state = State::Promising;
            effects.push(SinkEffect::Promise(epoch));
            return Ok(());
        }
        self.state = State::Promising;
        self.promised(promised, effects)
    }

    fn promised(&mut self, promised: Epoch, effects: &mut Vec<SinkEffect>) -> Result<(), SessionEnd> {
        let epoch = self.options.epoch;
        self.options.promised = promised.max(self.options.promised);
        if promised > epoch {
            // Nothing of this session may have an effect any more.
            return Err(SessionEnd::Refused(stale(promised, epoch)));
        }
        if self.state != State::Promising || promised < epoch {
            return Ok(());
        }
        let log = &self.options.log;
        let init = SlaveInit {
            epoch,
            epoch_history: log.history.starts().to_vec(),
            first_lsn: log.first_lsn,
            end: log.end,
            durable: self.durable,
            chain_at_end: log.chain_at_end,
            known_commit: log.known_commit,
            is_foreign_tail: log.is_foreign_tail,
            receive_window: self.options.receive_window,
            address: self.options.address.clone(),
            clients: self.options.clients.clone(),
        };
        self.state = State::Asked;
        effects.push(SinkEffect::Send(init.into()));
        Ok(())
    }

    fn frame(&mut self, frame: Frame, effects: &mut Vec<SinkEffect>) -> Result<(), SessionEnd> {
        let ours = self.options.epoch;
        match frame.epoch() {
            Some(theirs) if theirs < ours => {
                return Err(SessionEnd::Refused(stale(self.options.promised, theirs)));
            }
            Some(theirs) if theirs > ours => {
                let text = format!("a session of epoch {ours} cannot go on in epoch {theirs}");
                return Err(SessionEnd::Refused(protocol(text)));
            }
            _ => {}
        }
        match (frame, self.state) {
            (Frame::JournalUpdate(update), State::Streaming) => self.append(update, effects),
            (Frame::Commit(commit), State::Streaming) => {
                self.announced(commit.commit, effects);
                Ok(())
            }
            (Frame::Heartbeat(beat), _) => {
                self.pulse.echo = beat.seq;
                let Heartbeat { state, durable, disk_free_bytes, last_flush_us, .. } = beat;
                let vitals = Vitals { state, durable, disk_free_bytes, last_flush_us };
                effects.push(SinkEffect::Vitals(vitals));
                self.announced(beat.commit, effects);
                Ok(())
            }
            (Frame::SlaveInitResponse(response), State::Asked) => self.answered(&response, effects),
            (Frame::Truncate(truncate), State::ToTruncate) => self.truncate(&truncate, effects),
            (Frame::SyncManifest(manifest), State::ToSync { common }) => {
                if manifest.stream_start < common {
                    // Others may count on what is flushed here and belongs to both.
                    let text = format!(
                        "files up to {}, but up to {common} nothing is missing",
                        manifest.stream_start
                    );
                    return Err(SessionEnd::Refused(protocol(text)));
                }
                self.state = State::Syncing;
                effects.push(SinkEffect::Bulk(manifest));
                Ok(())
            }
            (Frame::SyncAbort(abort), State::ToSync { .. } | State::Syncing) => {
                let SyncAbort { sync_id, reason, retry_after_ms, .. } = abort;
                effects.push(SinkEffect::SyncAborted { sync_id, reason, retry_after_ms });
                Ok(())
            }
            (
                frame @ (Frame::SwitchoverPrepare(_)
                | Frame::SwitchoverReady(_)
                | Frame::SwitchoverGo(_)
                | Frame::SwitchoverAbort(_)),
                _,
            ) => {
                effects.push(SinkEffect::Switchover(frame));
                Ok(())
            }
            (Frame::Goodbye(goodbye), _) => Err(SessionEnd::Goodbye(goodbye.reason)),
            (Frame::Error(error), _) => Err(SessionEnd::Told(error)),
            (frame, _) => {
                Err(SessionEnd::Refused(protocol(format!("{} does not belong here", frame.name()))))
            }
        }
    }

    fn answered(
        &mut self,
        response: &SlaveInitResponse,
        effects: &mut Vec<SinkEffect>,
    ) -> Result<(), SessionEnd> {
        let &SlaveInitResponse { common_lsn: common, common_chain: chain, .. } = response;
        self.announced = self.announced.max(response.commit);
        match response.mode {
            AttachMode::StreamFrom => {
                if chain != self.options.log.chain_at_end {
                    let text = format!(
                        "the chain at {common} is {chain:016x} there, {:016x} here",
                        self.options.log.chain_at_end
                    );
                    return Err(SessionEnd::Refused(ErrorFrame::new(ErrorCode::Corrupt, text)));
                }
                // Our end may have another number for the same place.
                let all_flushed = self.durable == self.options.log.end;
                self.durable = if all_flushed { common } else { self.durable.min(common) };
                self.stream(common, chain, effects);
            }
            AttachMode::TruncateThenStream => self.state = State::ToTruncate,
            AttachMode::Bulk => {
                self.may_drop_from(common, response.unclean_generation)?;
                self.state = State::ToSync { common };
            }
        }
        Ok(())
    }

    /// Whether what we have from there on may go: nothing that was confirmed does, unless an operator decided so.
    fn may_drop_from(&self, from: Lsn, unclean_generation: u64) -> Result<(), SessionEnd> {
        let log = &self.options.log;
        if from >= self.commit || unclean_generation > log.unclean_generation {
            return Ok(());
        }
        let text =
            format!("what is here from {from} to {} was confirmed and must not be dropped", self.commit);
        Err(SessionEnd::Refused(ErrorFrame::new(ErrorCode::Diverged, text)))
    }

    fn truncate(&mut self, truncate: &Truncate, effects: &mut Vec<SinkEffect>) -> Result<(), SessionEnd> {
        let &Truncate { to, chain, unclean_generation, .. } = truncate;
        self.may_drop_from(to, unclean_generation)?;
        self.state = State::Truncating { chain };
        effects.push(SinkEffect::Truncate { to, chain });
        Ok(())
    }

    fn truncated(&mut self, done: TruncateDone, effects: &mut Vec<SinkEffect>) -> Result<(), SessionEnd> {
        let State::Truncating { chain } = self.state else {
            return Ok(());
        };
        assert!(done.chain == chain, "the journal was cut where its chain is another");
        let end = done.end;
        effects.push(SinkEffect::Send(done.into()));
        self.durable = end;
        self.commit = self.commit.min(end);
        (self.applied, self.applied_told) = (self.applied.min(end), self.applied.min(end));
        self.stream(end, chain, effects);
        Ok(())
    }

    fn stream(&mut self, at: Lsn, chain: u64, effects: &mut Vec<SinkEffect>) {
        self.state = State::Streaming;
        self.received = at;
        self.chain_at_durable = chain;
        effects.push(SinkEffect::Attached { at });
        self.commit(effects);
        self.come_online(effects);
    }

    fn append(&mut self, update: JournalUpdate, effects: &mut Vec<SinkEffect>) -> Result<(), SessionEnd> {
        let JournalUpdate { first_lsn, prev_chain, commit, batches, .. } = update;
        let bytes = batches.len() as u64;
        let begins_file = first_lsn.offset() == 0 && first_lsn.file() > self.received.file();
        if batches.is_empty() || (first_lsn != self.received && !begins_file) {
            let text = format!("{bytes} bytes at {first_lsn} do not follow {}", self.received);
            return Err(SessionEnd::Refused(protocol(text)));
        }
        if u64::from(first_lsn.offset()).saturating_add(bytes) > FILE_BYTES_LIMIT {
            let text = format!("{bytes} bytes at {first_lsn} do not fit a file");
            return Err(SessionEnd::Refused(ErrorFrame::new(ErrorCode::Limit, text)));
        }
        if self.unflushed_bytes >= self.options.receive_window && !self.unflushed.is_empty() {
            let text = format!("{} bytes are not flushed yet", self.unflushed_bytes);
            return Err(SessionEnd::Refused(ErrorFrame::new(ErrorCode::Limit, text)));
        }
        if self.durable == self.received && prev_chain != self.chain_at_durable {
            let text = format!(
                "the chain before {first_lsn} is {prev_chain:016x} there, {:016x} here",
                self.chain_at_durable
            );
            return Err(SessionEnd::Refused(ErrorFrame::new(ErrorCode::Corrupt, text)));
        }
        self.received = Lsn(first_lsn.0 + bytes);
        self.unflushed.push_back((self.received, bytes));
        self.unflushed_bytes += bytes;
        effects.push(SinkEffect::Append { lsn: first_lsn, prev_chain, batches });
        self.announced(commit, effects);
        Ok(())
    }

    fn written(&mut self, durable: Lsn, chain: u64, effects: &mut Vec<SinkEffect>) {
        if self.state != State::Streaming {
            return;
        }
        assert!(
            self.durable <= durable && durable <= self.received,
            "flushed up to {durable}, after {} and of {} received",
            self.durable,
            self.received
        );
        (self.durable, self.chain_at_durable) = (durable, chain);
        while let Some(&(end, bytes)) = self.unflushed.front()
            && end <= durable
        {
            self.unflushed.pop_front();
            self.unflushed_bytes -= bytes;
        }
        self.ack(effects);
        self.commit(effects);
        self.come_online(effects);
    }

    fn ack(&mut self, effects: &mut Vec<SinkEffect>) {
        self.applied_told = self.applied;
        let ack = JournalUpdateAck {
            epoch: self.options.epoch,
            received: self.received,
            durable: self.durable,
            applied: self.applied.min(self.durable),
            chain_at_durable: self.chain_at_durable,
            credit: self.options.receive_window.saturating_sub(self.unflushed_bytes),
        };
        effects.push(SinkEffect::Send(ack.into()));
    }

    fn announced(&mut self, commit: Lsn, effects: &mut Vec<SinkEffect>) {
        self.announced = self.announced.max(commit);
        self.commit(effects);
    }

    fn commit(&mut self, effects: &mut Vec<SinkEffect>) {
        let commit = self.announced.min(self.durable);
        // The start of a file is where we attached and have nothing of it yet: more was announced, and is on its way.
        if self.state == State::Streaming && commit > self.commit && commit.offset() > 0 {
            self.commit = commit;
            effects.push(SinkEffect::Commit(commit));
        }
    }

    fn come_online(&mut self, effects: &mut Vec<SinkEffect>) {
        if self.online || self.durable < self.announced {
            return;
        }
        self.online = true;
        let online = SlaveOnline {
            epoch: self.options.epoch,
            durable: self.durable,
            chain: self.chain_at_durable,
            applied: self.applied.min(self.durable),
        };
        effects.push(SinkEffect::Send(online.into()));
    }

    fn tick(&mut self, now: Millis, vitals: Vitals, effects: &mut Vec<SinkEffect>) -> Result<(), SessionEnd> {
        if let Some(end) = self.pulse.silence(now) {
            return Err(end);
        }
        if matches!(self.state, State::New | State::Promising) || !self.pulse.beats(now) {
            return Ok(());
        }
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
        effects.push(SinkEffect::Send(beat.into()));
        if self.state == State::Streaming && self.applied != self.applied_told {
            self.ack(effects);
        }
        Ok(())
    }
}
