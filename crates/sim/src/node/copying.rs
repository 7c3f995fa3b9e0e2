//! A replica's session with its primary: what `node/src/cluster/copying.rs` does in a task.

use std::collections::VecDeque;

use kahawai_journal::Chain;
use kahawai_kdbr::{ErrorCode, ErrorFrame, Frame, NodeState, Peer, Role as Purpose};
use kahawai_replication::{LocalLog, SessionEnd, SinkEffect, SinkEvent, SinkOptions, SinkSession, Vitals};
use kahawai_shipping::{Held, history_of_peer, local_log};
use kahawai_store::generation;
use kahawai_types::{Epoch, Lsn};

use super::bulk::Fetch;
use super::following::{Said, Work};
use super::{Change, FollowEnd, MS, Process, REDIAL_REFUSED, Role};
use crate::check;
use crate::ctx::{Ctx, address, node_at};
use crate::event::{ConnEvent, NodeEvent, RoleEvent};
use crate::net::{ConnId, Side};
use crate::options::Mutation;

/// Bytes that a replica takes without having flushed them.
const RECEIVE_WINDOW: u64 = 32 << 20;
/// How often a session looks at the time.
const TICK: u64 = 100 * MS;
/// Before the next attempt to reach a primary.
const REDIAL: u64 = 100 * MS;

/// How a session ended.
pub(super) enum Over {
    Lost,
    Reopen(Change),
    Refused,
}

/// How far the session with the primary is.
pub(crate) enum Session {
    /// Nobody is to be followed.
    Idle,
    /// What earlier sessions sent is written first.
    Barrier,
    Dialling {
        conn: ConnId,
        log: Box<LocalLog>,
        generation: Option<u64>,
    },
    Live(Box<Sink>),
    /// The next attempt comes.
    Waiting,
}

/// A session at work.
pub(crate) struct Sink {
    pub(super) conn: ConnId,
    machine: SinkSession,
    pub(crate) epoch: Epoch,
    effects: Vec<SinkEffect>,
    pub(crate) fetch: Option<Box<Fetch>>,
    state: NodeState,
    pub(super) epochs: Vec<kahawai_journal::EpochStart>,
    generations: (u64, u64),
}

impl Process {
    pub(super) fn begin_session(&mut self, ctx: &mut Ctx) {
        let primary = self.primary_to_follow();
        let Role::Following(following) = &mut self.role else { return };
        following.session_number += 1;
        if primary.is_none() {
            following.session = Session::Idle;
            return;
        }
        following.session = Session::Barrier;
        let session = following.session_number;
        following.work.push_back(Work::Barrier(session));
        self.copy_later(ctx);
    }

    /// Drops a session without a word.
    pub(super) fn drop_session(&mut self, ctx: &mut Ctx) {
        let Role::Following(following) = &mut self.role else { return };
        following.session_number += 1;
        let conn = match std::mem::replace(&mut following.session, Session::Idle) {
            Session::Dialling { conn, .. } => Some(conn),
            Session::Live(mut sink) => {
                let conn = sink.conn;
                if let Some(fetch) = sink.fetch.take() {
                    self.drop_fetch(ctx, *fetch);
                }
                Some(conn)
            }
            Session::Idle | Session::Barrier | Session::Waiting => None,
        };
        if let Some(conn) = conn {
            self.drop_conn(ctx, conn);
        }
    }

    /// Our journal, now that everything that earlier sessions sent is written.
    fn session_log_now(&mut self, generation: Option<u64>) -> Result<LocalLog, String> {
        let Role::Following(following) = &mut self.role else { return Err("no store".into()) };
        following.said.clear();
        let (end, chain) = (following.writer.written(), following.writer.chain());
        let (known_commit, applied) = (following.commit, following.follower.applied());
        let first_file = following.follower.journal().files().first().map(|file| file.id);
        let held = Held { first_file, end, chain, known_commit, applied };
        local_log(&following.follower.reader(), held, generation)
    }

    pub(super) fn session_log(&mut self, ctx: &mut Ctx, session: u32) {
        let Role::Following(following) = &self.role else { return };
        if following.session_number != session || !matches!(following.session, Session::Barrier) {
            return;
        }
        let generation = generation::read(&self.files).unwrap_or_default();
        let log = match self.session_log_now(generation) {
            Ok(log) => log,
            Err(problem) => {
                ctx.say(self.index, || format!("our own journal cannot be matched: {problem}"));
                return self.session_over(ctx, Over::Lost);
            }
        };
        let target = self.primary_to_follow().and_then(|primary| node_at(&primary.address));
        let Some(target) = target else { return };
        let is_empty = log.end == Lsn::ZERO;
        let conn = self.dial(ctx, target, Purpose::Stream, is_empty);
        if let Role::Following(following) = &mut self.role {
            following.session = Session::Dialling { conn, log: Box::new(log), generation };
        }
    }

    /// The primary is on the line.
    pub(super) fn session_connected(&mut self, ctx: &mut Ctx, conn: ConnId, peer: &Peer) {
        let Role::Following(following) = &mut self.role else { return };
        let (log, generation) = match std::mem::replace(&mut following.session, Session::Waiting) {
            Session::Dialling { conn: ours, log, generation } if ours == conn => (log, generation),
            other => {
                following.session = other;
                return;
            }
        };
        if let Err(problem) = self.identity.adopt_cluster(&self.files, peer.cluster_id) {
            ctx.say(self.index, || format!("this store cannot join the cluster: {problem}"));
            self.drop_conn(ctx, conn);
            return self.session_over(ctx, Over::Refused);
        }
        let epoch = peer.epoch.unwrap_or(Epoch(0));
        let options = SinkOptions {
            log: *log,
            promised: self.identity.promised_epoch,
            epoch,
            receive_window: RECEIVE_WINDOW,
            address: address(self.index),
            clients: Vec::new(),
            timing: ctx.shape.replication,
        };
        let sink = Sink {
            conn,
            machine: SinkSession::new(options, ctx.local_ms(self.index)),
            epoch,
            effects: Vec::new(),
            fetch: None,
            state: NodeState::CatchingUp,
            epochs: Vec::new(),
            generations: (generation.unwrap_or(u64::MAX), 0),
        };
        let Role::Following(following) = &mut self.role else { return };
        following.session = Session::Live(Box::new(sink));
        let session = following.session_number;
        ctx.note(self.index, "session, epoch", epoch.0, conn.0.into());
        self.role_later(ctx, TICK, RoleEvent::SinkTick { session });
        self.sink_step(ctx, SinkEvent::Start);
    }

    /// The session has ended, or was not made.
    pub(super) fn session_over(&mut self, ctx: &mut Ctx, over: Over) {
        let Role::Following(following) = &mut self.role else { return };
        if let Session::Live(sink) = &mut following.session
            && let Some(fetch) = sink.fetch.take()
        {
            self.drop_fetch(ctx, *fetch);
        }
        let Role::Following(following) = &mut self.role else { return };
        following.session = Session::Waiting;
        let session = following.session_number;
        match over {
            Over::Lost => self.role_later(ctx, REDIAL, RoleEvent::Redial { session }),
            Over::Refused => self.role_later(ctx, REDIAL_REFUSED, RoleEvent::Redial { session }),
            Over::Reopen(change) => self.end_following(ctx, FollowEnd::Reopen(change)),
        }
    }

    /// What the threads have said.
    pub(super) fn session_said(&mut self, ctx: &mut Ctx) {
        loop {
            let Role::Following(following) = &mut self.role else { return };
            if !matches!(following.session, Session::Live(_)) {
                return;
            }
            let event = match following.said.pop_front() {
                None => return,
                Some(Said::Written { durable, chain }) => SinkEvent::Written { durable, chain: chain.0 },
                Some(Said::Refused(problem)) => {
                    ctx.say(self.index, || format!("does not continue this journal: {problem}"));
                    SinkEvent::Refuse(ErrorFrame::new(ErrorCode::Corrupt, problem))
                }
            };
            self.sink_step(ctx, event);
        }
    }

    pub(super) fn sink_tick(&mut self, ctx: &mut Ctx, session: u32) {
        let Role::Following(following) = &self.role else { return };
        let Session::Live(sink) = &following.session else { return };
        if following.session_number != session {
            return;
        }
        self.role_later(ctx, TICK, RoleEvent::SinkTick { session });
        let vitals =
            Vitals { state: sink.state, durable: following.durable, disk_free_bytes: 0, last_flush_us: 0 };
        let applied = following.follower.applied();
        let progress = sink.fetch.as_ref().map(|fetch| fetch.progress(ctx.local_ms(self.index)));
        if let Some(progress) = progress {
            self.sink_step(ctx, progress);
        }
        self.sink_step(ctx, SinkEvent::Applied(applied));
        self.sink_step(ctx, SinkEvent::Tick(vitals));
    }

    pub(super) fn sink_frame(&mut self, ctx: &mut Ctx, frame: Frame) {
        if let Role::Following(following) = &mut self.role
            && let Session::Live(sink) = &mut following.session
            && let Frame::SlaveInitResponse(response) = &frame
        {
            sink.epochs = history_of_peer(&response.epoch_history);
            sink.generations.1 = response.unclean_generation;
        }
        self.sink_step(ctx, SinkEvent::Frame(frame));
    }

    /// One event of the session, and what follows from it.
    pub(super) fn sink_step(&mut self, ctx: &mut Ctx, event: SinkEvent) {
        let now = ctx.local_ms(self.index);
        let Role::Following(following) = &mut self.role else { return };
        let Session::Live(sink) = &mut following.session else { return };
        let conn = sink.conn;
        let mut effects = std::mem::take(&mut sink.effects);
        sink.machine.step(now, event, &mut effects);
        let mut pending: VecDeque<SinkEffect> = effects.drain(..).collect();
        sink.effects = effects;
        let mut over = None;
        while let Some(effect) = pending.pop_front() {
            match effect {
                SinkEffect::Send(frame) => {
                    check::frame_leaves(ctx, self, &frame);
                    ctx.send(conn, Side::Dialler, &frame);
                }
                SinkEffect::Promise(epoch) => {
                    let promised = if ctx.mutated(Mutation::NoPromise) {
                        Ok(epoch)
                    } else {
                        let kept = self.identity.promise(&self.files, epoch);
                        kept.map(|()| self.identity.promised_epoch)
                    };
                    match promised {
                        Ok(promised) => {
                            check::i04::promised(ctx, self.index, &self.identity);
                            let mut more = Vec::new();
                            if let Some(sink) = self.sink() {
                                sink.machine.step(now, SinkEvent::Promised(promised), &mut more);
                            }
                            pending.extend(more);
                        }
                        Err(problem) => {
                            ctx.say(self.index, || format!("the promise was not kept: {problem}"));
                            over = Some(Over::Lost);
                            break;
                        }
                    }
                }
                SinkEffect::Attached { at } => {
                    ctx.note(self.index, "follows from", at.0, 0);
                    let Some(sink) = self.sink() else { break };
                    sink.state = NodeState::Online;
                    let generation = sink.generations.1;
                    if let Err(problem) = generation::write(&self.files, generation) {
                        ctx.say(self.index, || format!("the generation was not kept: {problem}"));
                        over = Some(Over::Lost);
                        break;
                    }
                }
                SinkEffect::Append { lsn, batches, .. } => {
                    check::i04::appends(ctx, self);
                    let Role::Following(following) = &mut self.role else { break };
                    following.work.push_back(Work::Body(lsn, batches));
                    self.copy_later(ctx);
                }
                SinkEffect::Commit(commit) => self.follow_commit(ctx, commit),
                SinkEffect::Truncate { to, chain } => {
                    let Some(sink) = self.sink() else { break };
                    let unclean = sink.generations.1 > sink.generations.0;
                    over = Some(Over::Reopen(Change::Truncate { to, chain: Chain(chain), unclean }));
                }
                SinkEffect::Bulk(manifest) => {
                    ctx.note(
                        self.index,
                        "synchronises",
                        manifest.stream_start.0,
                        manifest.files.len() as u64,
                    );
                    if let Some(sink) = self.sink() {
                        sink.state = NodeState::Synchronizing;
                    }
                    self.begin_fetch(ctx, manifest);
                }
                SinkEffect::SyncAborted { .. } => over = Some(Over::Lost),
                SinkEffect::Vitals(_) | SinkEffect::Switchover(_) => {}
                SinkEffect::Close(end) => {
                    ctx.say(self.index, || format!("session ends: {end}"));
                    let refused = matches!(
                        &end,
                        SessionEnd::Refused(error) | SessionEnd::Told(error)
                            if matches!(
                                error.code,
                                ErrorCode::Diverged | ErrorCode::Corrupt | ErrorCode::NotMember | ErrorCode::Auth
                            )
                    );
                    check::session_refused(ctx, self, &end);
                    over.get_or_insert(if refused { Over::Refused } else { Over::Lost });
                }
            }
        }
        if let Some(over) = over {
            self.drop_conn(ctx, conn);
            self.session_over(ctx, over);
        }
    }

    /// The last step of a session whose end is decided: only what it sends counts.
    pub(super) fn sink_quietly(&mut self, ctx: &mut Ctx, event: SinkEvent) {
        let now = ctx.local_ms(self.index);
        let Some(sink) = self.sink() else { return };
        let conn = sink.conn;
        let mut effects = Vec::new();
        sink.machine.step(now, event, &mut effects);
        for effect in effects {
            if let SinkEffect::Send(frame) = effect {
                ctx.send(conn, Side::Dialler, &frame);
            }
        }
    }

    /// The reign that is followed.
    pub(crate) fn sink_epoch(&mut self) -> Option<Epoch> {
        self.sink().map(|sink| sink.epoch)
    }

    pub(super) fn sink(&mut self) -> Option<&mut Sink> {
        match &mut self.role {
            Role::Following(following) => match &mut following.session {
                Session::Live(sink) => Some(sink),
                _ => None,
            },
            _ => None,
        }
    }

    pub(super) fn conn_timeout(&self, ctx: &mut Ctx, conn: ConnId, after: u64) {
        self.tell_later(ctx, after, NodeEvent::Conn { conn, what: ConnEvent::Timeout });
    }
}
