//! What a step does: the machines are asked, and what they say is carried out, in order.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use bytes::BytesMut;
use kahawai_kdbr::{ErrorCode, ErrorFrame, Frame};
use kahawai_replication::{
    LocalLog, Primary, PrimaryEffect, PrimaryEvent, SessionId, SinkEffect, SinkEvent, SinkOptions,
    SinkSession, SourceEffect, SourceEvent, SourceOptions, SourceSession,
};
use kahawai_types::{BootId, Epoch, Lsn, Millis};

use super::{NODES, StreamAction, StreamBounds, StreamModel};
use crate::Mutation;
use crate::check::Checked;
use crate::invariant::{Broken, Invariant, Outcome, ensure};
use crate::journal::{BATCH_BYTES, Batch, Journal, check_journals, count, lsn};
use crate::nodes::{Nodes, id};
use crate::shared::Shared;

/// Everything happens at this time, ...
const NOW: Millis = 0;
/// ... but ticks come when whatever can be overdue is.
const OVERDUE: Millis = 1;

/// A frame under way.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Wire(Frame);

impl Hash for Wire {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut head = BytesMut::new();
        self.0.encode_head(&mut head);
        head.hash(state);
        self.0.body().hash(state);
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Connection {
    /// Also its session's number.
    id: u64,
    replica: usize,
    primary: usize,
    boot: u8,
    source: SourceSession,
    /// Batches that were sent, or need not be.
    cursor: Option<usize>,
    to_replica: VecDeque<Wire>,
    to_primary: VecDeque<Wire>,
    at_replica: bool,
    at_primary: bool,
    /// Nothing arrives any more.
    is_cut: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Leader {
    primary: Primary,
    epoch: Epoch,
    /// Batches up to and with its marker.
    marker: usize,
    /// The set as this primary knows it.
    recorded: Nodes,
    version: u64,
    /// With the version that it stands on.
    proposal: Option<(Nodes, u64)>,
    commit: usize,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Role {
    Idle,
    Replica { connection: u64, sink: Box<SinkSession> },
    Leader(Box<Leader>),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Node {
    journal: Journal,
    durable: usize,
    promised: Epoch,
    commit: usize,
    boot: u8,
    role: Role,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Record {
    epoch: Epoch,
    version: u64,
    primary: usize,
    in_sync: Nodes,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Ghost {
    confirmed: Vec<Batch>,
    has_cut: bool,
    has_fenced: bool,
}

/// A state of the model.
#[derive(Clone, PartialEq, Hash, Debug)]
pub struct StreamWorld {
    nodes: [Shared<Node>; NODES],
    connections: Vec<Shared<Connection>>,
    record: Record,
    ghost: Shared<Ghost>,
    left: StreamBounds,
    pub(super) broken: Option<Broken>,
}

impl Checked for StreamWorld {
    fn broken(&self) -> Option<&str> {
        self.broken.as_ref().map(|(_, what)| what.as_str())
    }
}

/// The process of a node, as the machines name it.
fn boot_id(node: usize, boot: u8) -> BootId {
    BootId(1 + node as u128 * 16 + u128::from(boot))
}

impl Node {
    fn leader(&self) -> Option<&Leader> {
        match &self.role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    fn leader_mut(&mut self) -> Option<&mut Leader> {
        match &mut self.role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    fn unflushed(&self) -> usize {
        self.journal.len() - self.durable
    }
}

impl StreamWorld {
    /// Node 0 leads in epoch 1, and both are in sync: what a marker, a connection and a flush on either side make of two empty
    /// nodes.
    pub(super) fn new(model: &StreamModel) -> Self {
        let node = |_| {
            Shared::new(Node {
                journal: Journal::default(),
                durable: 0,
                promised: Epoch(0),
                commit: 0,
                boot: 1,
                role: Role::Idle,
            })
        };
        let in_sync = Nodes::of(&[id(0), id(1)]);
        let mut world = Self {
            nodes: std::array::from_fn(node),
            connections: Vec::new(),
            record: Record { epoch: Epoch(0), version: 0, primary: 0, in_sync },
            ghost: Shared::new(Ghost::default()),
            left: StreamBounds { dials: model.bounds.dials + 1, ..model.bounds },
            broken: None,
        };
        let outcome = world.begin(model);
        outcome.expect("the beginning breaks nothing");
        world.left = model.bounds;
        world.settle();
        world
    }

    fn begin(&mut self, model: &StreamModel) -> Outcome {
        self.take_over(model, 0)?;
        self.flush(model, 0)?;
        self.left.dials -= 1;
        self.dial(model, 1)?;
        for _ in 0..2 {
            while self.connections[0].to_primary.len() + self.connections[0].to_replica.len() > 0 {
                let to_primary = !self.connections[0].to_primary.is_empty();
                self.deliver(model, 0, to_primary)?;
            }
            if self.can_feed(0) {
                self.feed(0);
                self.deliver(model, 0, false)?;
                self.flush(model, 1)?;
            }
        }
        assert!(self.ghost.confirmed.len() == 1, "the beginning is not what it should be: {self:#?}");
        Ok(())
    }

    pub(super) fn settle(&mut self) {
        self.connections.retain(|connection| connection.at_primary || connection.at_replica);
        if self.broken.is_none() {
            self.broken = self.check().err();
        }
        self.nodes.iter_mut().for_each(Shared::seal);
        self.connections.iter_mut().for_each(Shared::seal);
        self.ghost.seal();
    }

    pub(super) fn confirmed(&self) -> &[Batch] {
        &self.ghost.confirmed
    }

    pub(super) fn set_size(&self) -> usize {
        self.record.in_sync.len()
    }

    pub(super) fn has_cut(&self) -> bool {
        self.ghost.has_cut
    }

    pub(super) fn has_fenced(&self) -> bool {
        self.ghost.has_fenced
    }

    pub(super) fn actions(&self, actions: &mut Vec<StreamAction>) {
        let left = &self.left;
        for (node, this) in self.nodes.iter().enumerate() {
            if this.unflushed() > 0 && this.role != Role::Idle {
                actions.push(StreamAction::Flush { node });
            }
            if left.crashes > 0 && this.role != Role::Idle {
                actions.extend((0..=this.unflushed()).map(|kept| StreamAction::Crash { node, kept }));
            }
            let is_rightful = this.leader().is_some_and(|leader| leader.epoch == self.record.epoch);
            let has_turn = self.record.epoch.0 < left.epochs.into();
            if has_turn && self.record.in_sync.iter().any(|member| member == node) && !is_rightful {
                actions.push(StreamAction::TakeOver { node });
            }
            if this.role == Role::Idle && left.dials > 0 && self.nodes[1 - node].leader().is_some() {
                actions.push(StreamAction::Dial { replica: node });
            }
            let Some(leader) = this.leader() else { continue };
            // What a deposed primary writes it might have written before, and its proposals come to nothing.
            if is_rightful && left.writes > 0 {
                actions.push(StreamAction::Write { primary: node });
            }
            if is_rightful && left.changes > 0 {
                actions.push(StreamAction::Tick { primary: node });
            }
            if !is_rightful {
                actions.push(StreamAction::Hear { node });
            }
            if leader.proposal.is_some() {
                actions.push(StreamAction::Decide { primary: node });
                if left.unknowns > 0 {
                    actions.push(StreamAction::LoseAnswer { primary: node });
                }
            }
        }
        for (connection, this) in self.connections.iter().enumerate() {
            if this.at_primary && !this.to_primary.is_empty() {
                actions.push(StreamAction::Deliver { connection, to_primary: true });
            }
            if this.at_replica && !this.to_replica.is_empty() {
                actions.push(StreamAction::Deliver { connection, to_primary: false });
            }
            if self.can_feed(connection) {
                actions.push(StreamAction::Feed { connection });
            }
            if !this.is_cut && left.cuts > 0 && this.at_primary && this.at_replica {
                actions.push(StreamAction::Cut { connection });
            }
            if this.at_primary && (this.is_cut || !this.at_replica) {
                actions.push(StreamAction::Notice { connection, at_primary: true });
            }
            if this.at_replica && (this.is_cut || !this.at_primary) {
                actions.push(StreamAction::Notice { connection, at_primary: false });
            }
        }
    }

    pub(super) fn act(&mut self, model: &StreamModel, action: &StreamAction) -> Outcome {
        match *action {
            StreamAction::Write { primary } => {
                self.left.writes -= 1;
                self.write(model, primary)
            }
            StreamAction::Flush { node } => self.flush(model, node),
            StreamAction::Dial { replica } => {
                self.left.dials -= 1;
                self.dial(model, replica)
            }
            StreamAction::Deliver { connection, to_primary } => self.deliver(model, connection, to_primary),
            StreamAction::Feed { connection } => {
                self.feed(connection);
                Ok(())
            }
            StreamAction::Cut { connection } => {
                self.left.cuts -= 1;
                let connection = &mut self.connections[connection];
                connection.is_cut = true;
                connection.to_primary.clear();
                connection.to_replica.clear();
                Ok(())
            }
            StreamAction::Notice { connection, at_primary: true } => {
                self.close_at_primary(model, self.connections[connection].id)
            }
            StreamAction::Notice { connection, at_primary: false } => {
                let replica = self.connections[connection].replica;
                self.leave(replica);
                Ok(())
            }
            StreamAction::Tick { primary } => self.lead_on(model, primary, OVERDUE, PrimaryEvent::Tick),
            StreamAction::TakeOver { node } => self.take_over(model, node),
            StreamAction::Hear { node } => {
                self.leave(node);
                Ok(())
            }
            StreamAction::Decide { primary } => self.decide(model, primary, true),
            StreamAction::LoseAnswer { primary } => {
                self.left.unknowns -= 1;
                self.decide(model, primary, false)
            }
            StreamAction::Crash { node, kept } => {
                self.left.crashes -= 1;
                self.leave(node);
                let this = &mut *self.nodes[node];
                this.journal.0.truncate(this.durable + kept);
                this.durable = this.journal.len();
                this.boot += 1;
                Ok(())
            }
        }
    }

    // Nodes.

    /// The node neither leads nor follows any more. Its peers notice later.
    fn leave(&mut self, node: usize) {
        self.nodes[node].role = Role::Idle;
        for connection in &mut self.connections {
            if connection.primary == node && connection.at_primary {
                connection.at_primary = false;
                connection.to_primary.clear();
            }
            if connection.replica == node && connection.at_replica {
                connection.at_replica = false;
                connection.to_replica.clear();
            }
        }
    }

    fn take_over(&mut self, model: &StreamModel, node: usize) -> Outcome {
        self.leave(node);
        let epoch = self.record.epoch.max(self.nodes[node].promised).next();
        (self.record.epoch, self.record.primary) = (epoch, node);
        self.record.version += 1;
        let Record { version, in_sync, .. } = self.record;
        let this = &mut *self.nodes[node];
        (this.promised, this.durable) = (epoch, this.journal.len());
        this.journal.0.push(Batch::marker(epoch.0 as u8, node, this.boot));
        let marker = this.journal.len();
        let mut primary = Primary::new(id(node), epoch, lsn(marker), in_sync.ids(), 0, model.timing, NOW);
        if let Some(Mutation::Primary(rule)) = model.mutation {
            primary.break_rule(rule);
        }
        primary.step(NOW, PrimaryEvent::Tick, &mut Vec::new());
        let leader = Leader { primary, epoch, marker, recorded: in_sync, version, proposal: None, commit: 0 };
        this.role = Role::Leader(Box::new(leader));
        Ok(())
    }

    fn write(&mut self, model: &StreamModel, node: usize) -> Outcome {
        let content = model.bounds.writes - self.left.writes;
        let this = &mut *self.nodes[node];
        let Some(epoch) = this.leader().map(|leader| leader.epoch) else { return Ok(()) };
        this.journal.0.push(Batch { epoch: epoch.0 as u8, content });
        let end = this.journal.end();
        self.lead_on(model, node, NOW, PrimaryEvent::Appended(end))
    }

    fn flush(&mut self, model: &StreamModel, node: usize) -> Outcome {
        let this = &mut *self.nodes[node];
        if this.unflushed() == 0 {
            return Ok(());
        }
        this.durable = this.journal.len();
        let (durable, chain) = (this.journal.end(), this.journal.chain());
        match this.role {
            Role::Leader(_) => self.lead_on(model, node, NOW, PrimaryEvent::LocalDurable(durable)),
            Role::Replica { .. } if model.mutation != Some(Mutation::AckBeforeFlush) => {
                self.follow_on(model, node, SinkEvent::Written { durable, chain })
            }
            _ => Ok(()),
        }
    }

    /// A proposal reaches the record, which takes it if nobody has written since.
    fn decide(&mut self, model: &StreamModel, node: usize, is_answered: bool) -> Outcome {
        let Some(leader) = self.nodes[node].leader() else { return Ok(()) };
        let Some((proposed, expected)) = leader.proposal else { return Ok(()) };
        let is_ours = self.record.primary == node && self.record.epoch == leader.epoch;
        if is_ours && self.record.version == expected {
            ensure(proposed.iter().any(|member| member == node), Invariant::I12, || {
                "the primary is not in its own set".to_owned()
            })?;
            self.record.in_sync = proposed;
            self.record.version += 1;
        }
        let refuses = model.mutation == Some(Mutation::UnknownIsRefused);
        if !is_answered && !refuses {
            return Ok(());
        }
        if !is_ours {
            self.leave(node);
            return Ok(());
        }
        let (in_sync, version) = (self.record.in_sync, self.record.version);
        let Some(leader) = self.nodes[node].leader_mut() else { return Ok(()) };
        leader.proposal = None;
        if is_answered {
            (leader.recorded, leader.version) = (in_sync, version);
        }
        let recorded = leader.recorded.ids();
        self.lead_on(model, node, NOW, PrimaryEvent::Decided { in_sync: &recorded })
    }

    // Connections.

    fn dial(&mut self, model: &StreamModel, replica: usize) -> Outcome {
        let primary = 1 - replica;
        let (this, source) = (&self.nodes[replica], &self.nodes[primary]);
        let Some(leader) = source.leader() else { return Ok(()) };
        if leader.primary.may_connect(&id(replica), boot_id(replica, this.boot)).is_err() {
            return Ok(());
        }
        let epoch = leader.epoch;
        let options = SourceOptions {
            epoch,
            commit: lsn(leader.commit),
            unclean_generation: 0,
            send_window: 100 * BATCH_BYTES,
            timing: model.timing,
            log: source.journal.for_primary(),
        };
        let log = LocalLog {
            history: this.journal.history(),
            first_lsn: Lsn::ZERO,
            end: this.journal.end(),
            durable: lsn(this.durable),
            chain_at_end: this.journal.chain(),
            known_commit: lsn(this.commit),
            applied: lsn(this.commit),
            is_foreign_tail: false,
            unclean_generation: 0,
        };
        let sink = SinkOptions {
            log,
            promised: if model.mutation == Some(Mutation::NoPromise) { epoch } else { this.promised },
            epoch,
            receive_window: 100 * BATCH_BYTES,
            address: String::new(),
            clients: Vec::new(),
            timing: model.timing,
        };
        let id = u64::from(model.bounds.dials - self.left.dials);
        let connection = Connection {
            id,
            replica,
            primary,
            boot: this.boot,
            source: SourceSession::new(options, NOW),
            cursor: None,
            to_replica: VecDeque::new(),
            to_primary: VecDeque::new(),
            at_replica: true,
            at_primary: true,
            is_cut: false,
        };
        self.connections.push(Shared::new(connection));
        let sink = Box::new(SinkSession::new(sink, NOW));
        self.nodes[replica].role = Role::Replica { connection: id, sink };
        self.follow_on(model, replica, SinkEvent::Start)
    }

    fn deliver(&mut self, model: &StreamModel, connection: usize, to_primary: bool) -> Outcome {
        let connection = &mut *self.connections[connection];
        let (id, replica) = (connection.id, connection.replica);
        if to_primary {
            let Some(Wire(frame)) = connection.to_primary.pop_front() else { return Ok(()) };
            return self.source(model, id, SourceEvent::Frame(frame));
        }
        let Some(Wire(frame)) = connection.to_replica.pop_front() else { return Ok(()) };
        self.follow_on(model, replica, SinkEvent::Frame(frame))
    }

    fn can_feed(&self, connection: usize) -> bool {
        let connection = &self.connections[connection];
        let cursor = connection.cursor.filter(|_| connection.at_primary && !connection.is_cut);
        cursor.is_some_and(|cursor| cursor < self.nodes[connection.primary].journal.len())
            && connection.at_replica
            && connection.source.window() > 0
    }

    /// The next batch is sent.
    fn feed(&mut self, connection: usize) {
        let connection = &mut *self.connections[connection];
        let node = &self.nodes[connection.primary];
        let (Some(cursor), Some(leader)) = (connection.cursor, node.leader()) else { return };
        let Some((first, prev_chain, body)) = node.journal.piece(cursor, 1) else { return };
        let frame = connection.source.update(first, prev_chain, body, lsn(leader.commit));
        connection.cursor = Some(cursor + 1);
        connection.to_replica.push_back(Wire(frame));
    }

    fn connection(&mut self, id: u64) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|connection| connection.id == id).map(|connection| &mut **connection)
    }

    fn close_at_primary(&mut self, model: &StreamModel, id: u64) -> Outcome {
        let Some(connection) = self.connection(id) else { return Ok(()) };
        connection.at_primary = false;
        connection.to_primary.clear();
        let primary = connection.primary;
        let event = PrimaryEvent::Disconnected { session: SessionId(id), orderly: false };
        self.lead_on(model, primary, NOW, event)
    }

    // What the machines want.

    fn lead_on(&mut self, model: &StreamModel, node: usize, now: Millis, event: PrimaryEvent<'_>) -> Outcome {
        let mut effects = Vec::new();
        let Some(leader) = self.nodes[node].leader_mut() else { return Ok(()) };
        leader.primary.step(now, event, &mut effects);
        for effect in effects {
            let Some(leader) = self.nodes[node].leader_mut() else { return Ok(()) };
            match effect {
                // It waits for its own disk; that it may step down instead is another thing that happens.
                PrimaryEffect::Stalled { .. } => {}
                PrimaryEffect::Commit(at) => {
                    let at = count(at);
                    ensure(at > leader.commit, Invariant::I9, || {
                        format!("the commit position goes from {} to {at}", leader.commit)
                    })?;
                    leader.commit = at;
                    self.confirm(node, at)?;
                    self.announce(model, node, at)?;
                }
                PrimaryEffect::Propose { in_sync, .. } => {
                    // Beyond the bound it is never decided: it stands on no version that there is.
                    let mut expected = u64::MAX;
                    if let Some(left) = self.left.changes.checked_sub(1) {
                        (self.left.changes, expected) = (left, leader.version);
                    }
                    if expected != u64::MAX {
                        leader.proposal = Some((Nodes::of(&in_sync), expected));
                    }
                }
                PrimaryEffect::Refuse { session, refusal } => {
                    self.source(model, session.0, SourceEvent::Refuse(ErrorFrame::from(&refusal)))?;
                }
                PrimaryEffect::Activate
                | PrimaryEffect::Suspended { .. }
                | PrimaryEffect::Resumed
                | PrimaryEffect::Left { .. }
                | PrimaryEffect::Joined { .. } => {}
            }
        }
        Ok(())
    }

    fn announce(&mut self, model: &StreamModel, node: usize, at: usize) -> Outcome {
        let ours = |connection: &&Shared<Connection>| connection.primary == node && connection.at_primary;
        let ids: Vec<u64> = self.connections.iter().filter(ours).map(|connection| connection.id).collect();
        ids.into_iter().try_for_each(|id| self.source(model, id, SourceEvent::Committed(lsn(at))))
    }

    fn source(&mut self, model: &StreamModel, id: u64, event: SourceEvent) -> Outcome {
        let Some(connection) = self.connection(id).filter(|connection| connection.at_primary) else {
            return Ok(());
        };
        let (replica, primary, boot) = (connection.replica, connection.primary, connection.boot);
        let mut effects = Vec::new();
        connection.source.step(NOW, event, &mut effects);
        for effect in effects {
            match effect {
                SourceEffect::Send(frame) => {
                    if let Some(connection) = self.connection(id)
                        && connection.at_replica
                        && !connection.is_cut
                    {
                        connection.to_replica.push_back(Wire(frame));
                    }
                }
                SourceEffect::NeedChain { at, chain } => {
                    let found = self.nodes[primary].journal.find(at, chain);
                    self.source(model, id, SourceEvent::Chain(found))?;
                }
                SourceEffect::Attached { durable } => {
                    let boot = boot_id(replica, boot);
                    let (session, replica) = (SessionId(id), &crate::nodes::id(replica));
                    let event = PrimaryEvent::Connected { replica, boot, session, durable };
                    self.lead_on(model, primary, NOW, event)?;
                }
                SourceEffect::StreamFrom(at) => {
                    if let Some(connection) = self.connection(id) {
                        connection.cursor = Some(count(at));
                    }
                }
                SourceEffect::Acked { durable, applied } => {
                    let event = PrimaryEvent::Acked { session: SessionId(id), durable, applied };
                    self.lead_on(model, primary, NOW, event)?;
                }
                SourceEffect::Fenced(_) => {
                    self.ghost.has_fenced = true;
                    self.leave(primary);
                }
                SourceEffect::Close(end) => {
                    self.check_end(model, primary, &end.to_string())?;
                    self.close_at_primary(model, id)?;
                }
                SourceEffect::NeedManifest => unreachable!("there is one file"),
                SourceEffect::Serves { .. }
                | SourceEffect::Online
                | SourceEffect::Lease { .. }
                | SourceEffect::SyncAborted { .. }
                | SourceEffect::Lag(_)
                | SourceEffect::Vitals(_)
                | SourceEffect::Switchover(_) => {}
            }
        }
        Ok(())
    }

    fn follow_on(&mut self, model: &StreamModel, node: usize, event: SinkEvent) -> Outcome {
        let mut effects = Vec::new();
        let Role::Replica { connection: id, sink } = &mut self.nodes[node].role else { return Ok(()) };
        let id = *id;
        sink.step(NOW, event, &mut effects);
        for effect in effects {
            match effect {
                SinkEffect::Send(frame) => {
                    if let Some(connection) = self.connection(id)
                        && connection.at_primary
                        && !connection.is_cut
                    {
                        connection.to_primary.push_back(Wire(frame));
                    }
                }
                SinkEffect::Promise(epoch) => {
                    let this = &mut *self.nodes[node];
                    ensure(epoch >= this.promised, Invariant::I4, || {
                        format!("the promise of n{node} goes from {} to {epoch}", this.promised)
                    })?;
                    this.promised = epoch;
                    self.follow_on(model, node, SinkEvent::Promised(epoch))?;
                }
                SinkEffect::Append { lsn: at, prev_chain, batches } => {
                    let this = &mut *self.nodes[node];
                    ensure(
                        count(at) == this.journal.len() && prev_chain == this.journal.chain(),
                        Invariant::I3,
                        || format!("n{node} gets a batch at {at} that does not follow"),
                    )?;
                    this.journal.append(&batches);
                    if model.mutation == Some(Mutation::AckBeforeFlush) {
                        let (durable, chain) = (this.journal.end(), this.journal.chain());
                        self.follow_on(model, node, SinkEvent::Written { durable, chain })?;
                    }
                }
                SinkEffect::Commit(at) => {
                    let (at, confirmed) = (count(at), &self.ghost.confirmed);
                    ensure(self.nodes[node].journal.agrees(confirmed, at), Invariant::I9, || {
                        format!("n{node} takes {at} batches for confirmed")
                    })?;
                    self.nodes[node].commit = self.nodes[node].commit.max(at);
                }
                SinkEffect::Truncate { to, chain } => {
                    let this = &mut *self.nodes[node];
                    let at = count(to);
                    if this.journal.chain_at(at) != Some(chain) {
                        let error = ErrorFrame::new(ErrorCode::Diverged, "no such place");
                        self.follow_on(model, node, SinkEvent::Refuse(error))?;
                        return Err((
                            Invariant::I3,
                            format!("n{node} is to be cut at {at}, where it differs"),
                        ));
                    }
                    ensure(at >= this.commit, Invariant::I11, || {
                        format!("n{node} is cut to {at}, of {} that it knows to be confirmed", this.commit)
                    })?;
                    let dropped_bytes = (this.journal.len() - at) as u64 * BATCH_BYTES;
                    this.journal.0.truncate(at);
                    this.durable = at;
                    self.ghost.has_cut = true;
                    let done = SinkEvent::TruncateDone { end: to, chain, dropped_bytes, saved_as: None };
                    self.follow_on(model, node, done)?;
                }
                SinkEffect::Close(end) => {
                    self.check_end(model, node, &end.to_string())?;
                    self.leave(node);
                }
                SinkEffect::Bulk(_) => unreachable!("there is one file"),
                SinkEffect::Attached { .. }
                | SinkEffect::SyncAborted { .. }
                | SinkEffect::Vitals(_)
                | SinkEffect::Switchover(_) => {}
            }
        }
        Ok(())
    }

    // The oracle.

    /// Sessions end for reasons that a healthy cluster has.
    fn check_end(&self, model: &StreamModel, node: usize, why: &str) -> Outcome {
        let is_damage = ["DIVERGED", "CORRUPT", "PROTOCOL", "LIMIT"].iter().any(|code| why.contains(code));
        ensure(!is_damage || model.mutation.is_some(), Invariant::I3, || {
            format!("a session of n{node} ends: {why}")
        })
    }

    fn confirm(&mut self, node: usize, at: usize) -> Outcome {
        let this = &self.nodes[node];
        let Some(leader) = this.leader() else { return Ok(()) };
        ensure(at >= leader.marker, Invariant::I5, || {
            format!("{at} batches are confirmed, the marker is at {}", leader.marker)
        })?;
        let on_all = |set: Nodes| {
            set.iter().all(|member| {
                let member = &self.nodes[member];
                member.durable >= at && this.journal.agrees(&member.journal.0, at)
            })
        };
        ensure(on_all(leader.recorded), Invariant::I5, || {
            format!("{at} batches are confirmed by n{node}, not flushed on {:?}", leader.recorded)
        })?;
        if let Some((proposed, _)) = leader.proposal {
            ensure(on_all(proposed), Invariant::I13, || {
                format!("{at} batches are confirmed by n{node}, not flushed on the proposed {proposed:?}")
            })?;
        }
        let both = at.min(self.ghost.confirmed.len());
        ensure(this.journal.agrees(&self.ghost.confirmed, both), Invariant::I9, || {
            format!("n{node} confirms another history up to {at}")
        })?;
        if at > both {
            let confirmed = this.journal.0[..at].to_vec();
            self.ghost.confirmed = confirmed;
        }
        Ok(())
    }

    fn check(&self) -> Outcome {
        let confirmed = &self.ghost.confirmed;
        for member in self.record.in_sync.iter() {
            let node = &self.nodes[member];
            let has_all = node.durable >= confirmed.len() && node.journal.agrees(confirmed, confirmed.len());
            ensure(has_all, Invariant::I6, || format!("n{member} may lead and lacks what was confirmed"))?;
        }
        for (number, node) in self.nodes.iter().enumerate() {
            ensure(
                node.commit <= node.durable && node.durable <= node.journal.len(),
                Invariant::I10,
                || format!("n{number}: {} committed, {} flushed", node.commit, node.durable),
            )?;
        }
        check_journals(&self.nodes[0].journal, &self.nodes[1].journal)
    }
}
