//! The primary's end of a stream: what `node/src/cluster/feeding.rs` does in two tasks.

use std::sync::Arc;

use kahawai_election::{Event as Told, Member, Request};
use kahawai_kdbr::{ErrorCode, ErrorFrame, Frame, NodeState, Peer};
use kahawai_replication::{
    Next, PrimaryEvent, PrimaryLog, SessionId, SourceEffect, SourceEvent, SourceOptions, SourceSession,
    Vitals,
};
use kahawai_shipping::{FromFiles, Sealed, find_chain, primary_log};
use kahawai_types::Lsn;

use super::{MS, Process};
use crate::check;
use crate::ctx::Ctx;
use crate::event::{ConnEvent, NodeEvent};
use crate::net::{ConnId, Side};

/// Bytes under way to one replica without an acknowledgement: few, so that windows fill.
const SEND_WINDOW: u64 = 16 << 10;
/// Bytes in one JOURNAL_UPDATE, as long as batches are smaller.
const UPDATE_BYTES_MAX: u64 = 2 << 10;
/// How often a session looks at the time.
const TICK: u64 = 100 * MS;
/// How long a commit position may wait for a batch that carries it.
const ANNOUNCE: u64 = 5 * MS;

/// A session with a replica.
pub(crate) struct Source {
    pub(super) peer: Peer,
    /// What arrived before our own journal was read.
    early: Vec<Frame>,
    /// Taken at the beginning, with the files that there were.
    begun: Option<(Sealed, Vec<u32>)>,
    live: Option<Live>,
}

struct Live {
    session: SessionId,
    machine: SourceSession,
    cursor: Option<Lsn>,
    files: Option<FromFiles>,
    is_announcing: bool,
}

fn removed() -> ErrorFrame {
    ErrorFrame::new(ErrorCode::NotMember, "removed from the cluster".to_owned())
}

impl Process {
    /// A replica is on the line, and this node leads.
    pub(super) fn source_connected(&mut self, ctx: &mut Ctx, conn: ConnId, peer: Peer) {
        let Some(leading) = self.leading() else { return };
        if let Err(refusal) = leading.primary.may_connect(&peer.replica, peer.boot) {
            ctx.say(self.index, || format!("{} refused: {refusal}", peer.replica));
            ctx.send(conn, Side::Acceptor, &Frame::Error(ErrorFrame::from(&refusal)));
            return self.drop_conn(ctx, conn);
        }
        if self.is_removed(&peer.replica.node) {
            ctx.say(self.index, || format!("{} refused: it was removed", peer.replica));
            ctx.send(conn, Side::Acceptor, &Frame::Error(removed()));
            return self.drop_conn(ctx, conn);
        }
        let Some(leading) = self.leading() else { return };
        let source = Source { peer, early: Vec::new(), begun: None, live: None };
        leading.sources.insert(conn, source);
        if leading.sealed.marker.is_some() {
            self.source_may_begin(ctx, conn);
        }
    }

    /// There is a marker: journals can be compared.
    pub(super) fn sources_may_begin(&mut self, ctx: &mut Ctx) {
        let Some(leading) = self.leading() else { return };
        let waiting: Vec<ConnId> =
            leading.sources.iter().filter(|(_, source)| source.begun.is_none()).map(|(id, _)| *id).collect();
        for conn in waiting {
            self.source_may_begin(ctx, conn);
        }
    }

    fn source_may_begin(&mut self, ctx: &mut Ctx, conn: ConnId) {
        let Some(leading) = self.leading() else { return };
        let files = leading.store.journal().files().into_iter().map(|file| file.id).collect();
        let sealed = leading.sealed;
        let Some(source) = leading.sources.get_mut(&conn) else { return };
        source.begun = Some((sealed, files));
        let takes = ctx.flush_us(self.index) / 2;
        self.tell_later(ctx, takes, NodeEvent::Conn { conn, what: ConnEvent::SourceLog });
    }

    /// Our journal as a replica's is compared with it.
    fn primary_log(&mut self, conn: ConnId) -> Result<PrimaryLog, (ErrorCode, String)> {
        let busy = |problem: String| (ErrorCode::Busy, problem);
        let directory = Arc::clone(&self.files);
        let leading = self.leading().ok_or_else(|| busy("no longer the primary".into()))?;
        let begun = leading.sources.get_mut(&conn).and_then(|source| source.begun.clone());
        let (sealed, files) = begun.ok_or_else(|| busy("not begun".into()))?;
        primary_log(&directory, &leading.store.reader(), &files, sealed, leading.epoch, leading.committed)
    }

    pub(super) fn source_log(&mut self, ctx: &mut Ctx, conn: ConnId) {
        let log = match self.primary_log(conn) {
            Ok(log) => log,
            Err((code, problem)) => {
                ctx.say(self.index, || format!("our own journal cannot be matched: {problem}"));
                ctx.send(conn, Side::Acceptor, &Frame::Error(ErrorFrame::new(code, problem)));
                if let Some(leading) = self.leading() {
                    leading.sources.remove(&conn);
                }
                return self.drop_conn(ctx, conn);
            }
        };
        let now = ctx.local_ms(self.index);
        let Some(leading) = self.leading() else { return };
        let options = SourceOptions {
            epoch: leading.epoch,
            commit: leading.committed,
            unclean_generation: leading.unclean_generation,
            send_window: SEND_WINDOW,
            timing: ctx.shape.replication,
            log,
        };
        leading.session_last += 1;
        let session = SessionId(leading.session_last);
        let Some(source) = leading.sources.get_mut(&conn) else { return };
        source.live = Some(Live {
            session,
            machine: SourceSession::new(options, now),
            cursor: None,
            files: None,
            is_announcing: false,
        });
        let early = std::mem::take(&mut source.early);
        leading.sessions.insert(session, conn);
        self.tell_later(ctx, TICK, NodeEvent::Conn { conn, what: ConnEvent::SourceTick });
        for frame in early {
            self.source_step(ctx, conn, SourceEvent::Frame(frame));
        }
    }

    pub(super) fn source_frame(&mut self, ctx: &mut Ctx, conn: ConnId, frame: Frame) {
        let Some(source) = self.leading().and_then(|leading| leading.sources.get_mut(&conn)) else { return };
        if source.live.is_none() {
            return source.early.push(frame);
        }
        let orderly = matches!(frame, Frame::Goodbye(_));
        self.source_event(ctx, conn, SourceEvent::Frame(frame), orderly);
    }

    pub(super) fn source_tick(&mut self, ctx: &mut Ctx, conn: ConnId) {
        let source = self.leading().and_then(|leading| leading.sources.get(&conn));
        let node = source.map(|source| source.peer.replica.node.clone());
        if node.is_some_and(|node| self.is_removed(&node)) {
            return self.source_step(ctx, conn, SourceEvent::Refuse(removed()));
        }
        let Some(leading) = self.leading() else { return };
        if !leading.sources.contains_key(&conn) {
            return;
        }
        let durable = leading.durable;
        self.tell_later(ctx, TICK, NodeEvent::Conn { conn, what: ConnEvent::SourceTick });
        let vitals = Vitals { state: NodeState::Master, durable, disk_free_bytes: 0, last_flush_us: 0 };
        self.source_step(ctx, conn, SourceEvent::Tick(vitals));
    }

    pub(super) fn source_later(&self, ctx: &mut Ctx, conn: ConnId, delay: u64, event: SourceEvent) {
        let what = ConnEvent::Source(Box::new(event));
        self.tell_later(ctx, delay, NodeEvent::Conn { conn, what });
    }

    pub(super) fn source_step(&mut self, ctx: &mut Ctx, conn: ConnId, event: SourceEvent) {
        self.source_event(ctx, conn, event, false);
    }

    fn live(&mut self, conn: ConnId) -> Option<&mut Live> {
        self.leading()?.sources.get_mut(&conn)?.live.as_mut()
    }

    fn source_event(&mut self, ctx: &mut Ctx, conn: ConnId, event: SourceEvent, orderly: bool) {
        let now = ctx.local_ms(self.index);
        let Some(live) = self.live(conn) else {
            // It leaves before it was compared.
            if matches!(event, SourceEvent::Leave { .. }) {
                self.source_over(ctx, conn, false);
            }
            return;
        };
        let mut effects = Vec::new();
        live.machine.step(now, event, &mut effects);
        let mut over = false;
        for effect in effects {
            over |= self.source_effect(ctx, conn, effect);
        }
        if over {
            return self.source_over(ctx, conn, orderly);
        }
        self.feed(ctx, conn);
    }

    /// The session has ended, from whichever side.
    pub(super) fn source_over(&mut self, ctx: &mut Ctx, conn: ConnId, orderly: bool) {
        self.drop_conn(ctx, conn);
        let Some(leading) = self.leading() else { return };
        let Some(source) = leading.sources.remove(&conn) else { return };
        if let Some(live) = source.live {
            let session = live.session;
            leading.sessions.remove(&session);
            self.primary_step(ctx, PrimaryEvent::Disconnected { session, orderly });
        }
    }

    /// `true` = the session is over.
    fn source_effect(&mut self, ctx: &mut Ctx, conn: ConnId, effect: SourceEffect) -> bool {
        let Some(leading) = self.leading() else { return false };
        let Some(source) = leading.sources.get_mut(&conn) else { return false };
        let peer = source.peer.clone();
        let replica = peer.replica;
        let Some(live) = &mut source.live else { return false };
        let session = live.session;
        match effect {
            SourceEffect::Send(frame) => {
                check::frame_leaves(ctx, self, &frame);
                ctx.send(conn, Side::Acceptor, &frame);
            }
            SourceEffect::Serves { address, clients } => {
                let member = Member { store: replica.store, address, clients, priority: 0 };
                let known =
                    ctx.hub.peek().and_then(|bytes| kahawai_election::ClusterRecord::decode(&bytes).ok());
                if known.is_none_or(|record| record.members.get(&replica.node) != Some(&member)) {
                    self.request(ctx, Request::PutMember { node: replica.node, member });
                }
            }
            SourceEffect::NeedChain { at, chain } => {
                let takes = ctx.flush_us(self.index) / 2;
                self.tell_later(ctx, takes, NodeEvent::Conn { conn, what: ConnEvent::Chain(at, chain) });
            }
            SourceEffect::NeedManifest => self.make_manifest(ctx, conn, &replica),
            SourceEffect::Attached { durable } => {
                ctx.note(self.index, "attached", durable.0, session.0);
                self.release_leases(&replica);
                let boot = peer.boot;
                let event = PrimaryEvent::Connected { replica: &replica, boot, session, durable };
                self.primary_step(ctx, event);
            }
            SourceEffect::StreamFrom(at) => live.cursor = Some(at),
            SourceEffect::Acked { durable, applied } => {
                let epoch = leading.epoch;
                check::i24::acked(ctx, epoch, &replica, durable);
                self.primary_step(ctx, PrimaryEvent::Acked { session, durable, applied });
            }
            SourceEffect::Lease { sync_id, .. } => {
                let now = ctx.local_ms(self.index);
                self.renew_lease(now, sync_id);
            }
            SourceEffect::SyncAborted { sync_id, .. } => self.release_lease(sync_id),
            SourceEffect::Online
            | SourceEffect::Lag(_)
            | SourceEffect::Vitals(_)
            | SourceEffect::Switchover(_) => {}
            SourceEffect::Fenced(epoch) => self.tell(ctx, Told::PeerEpoch(epoch)),
            SourceEffect::Close(end) => {
                ctx.say(self.index, || format!("session with {replica} ends: {end}"));
                return true;
            }
        }
        false
    }

    pub(super) fn source_chain(&mut self, ctx: &mut Ctx, conn: ConnId, at: Lsn, chain: u64) {
        let Some(leading) = self.leading() else { return };
        let reader = leading.store.reader();
        let event = match find_chain(&reader, at, chain) {
            Ok(found) => SourceEvent::Chain(found),
            Err(problem) => SourceEvent::Refuse(ErrorFrame::new(ErrorCode::Busy, problem)),
        };
        self.source_step(ctx, conn, event);
    }

    /// Sends the journal to everybody, as far as windows allow.
    pub(super) fn feed_all(&mut self, ctx: &mut Ctx) {
        let Some(leading) = self.leading() else { return };
        let all: Vec<ConnId> = leading.sources.keys().copied().collect();
        for conn in all {
            self.feed(ctx, conn);
        }
    }

    fn feed(&mut self, ctx: &mut Ctx, conn: ConnId) {
        loop {
            let Some(leading) = self.leading() else { return };
            let committed = leading.committed;
            let Some(live) = leading.sources.get_mut(&conn).and_then(|source| source.live.as_mut()) else {
                return;
            };
            let window = live.machine.window();
            let Some(at) = live.cursor.filter(|_| window > 0) else { return };
            let piece = match leading.ring.from(at, window.min(UPDATE_BYTES_MAX) as usize) {
                Next::CaughtUp => return,
                Next::Batches(run) => {
                    live.files = None;
                    (run.start(), run.prev_chain(), run.end(), run.body())
                }
                Next::FallenOut => {
                    let reader = leading.store.reader();
                    let mut files = live.files.take().unwrap_or_else(|| FromFiles::new(&reader, at));
                    match files.piece(UPDATE_BYTES_MAX) {
                        Ok(Some(piece)) => {
                            live.files = Some(files);
                            piece
                        }
                        Ok(None) => return,
                        Err(problem) => {
                            ctx.say(self.index, || format!("cannot read for a replica: {problem}"));
                            check::cannot_feed(ctx, self.index, &problem);
                            return self.source_over(ctx, conn, false);
                        }
                    }
                }
            };
            let (start, prev_chain, end, body) = piece;
            let frame = live.machine.update(start, prev_chain, body, committed);
            live.cursor = Some(end);
            check::frame_leaves(ctx, self, &frame);
            ctx.send(conn, Side::Acceptor, &frame);
        }
    }

    /// Replicas that have nothing to wait for hear of the commit position a little later.
    pub(super) fn announce_later(&mut self, ctx: &mut Ctx) {
        let Some(leading) = self.leading() else { return };
        let mut due = Vec::new();
        for (conn, source) in &mut leading.sources {
            if let Some(live) = &mut source.live
                && live.cursor.is_some()
                && !live.is_announcing
            {
                live.is_announcing = true;
                due.push(*conn);
            }
        }
        for conn in due {
            self.tell_later(ctx, ANNOUNCE, NodeEvent::Conn { conn, what: ConnEvent::Announce });
        }
    }

    pub(super) fn announce(&mut self, ctx: &mut Ctx, conn: ConnId) {
        let Some(leading) = self.leading() else { return };
        let committed = leading.committed;
        if let Some(live) = self.live(conn) {
            live.is_announcing = false;
            self.source_step(ctx, conn, SourceEvent::Committed(committed));
        }
    }
}
