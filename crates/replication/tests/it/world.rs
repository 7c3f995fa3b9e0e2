//! Nodes, their disks, the network between them, and the cluster record.
//!
//! The record is a register with compare-and-set whose answers may be lost. Connections deliver in order until they break; either
//! end may not notice. A crash loses any part of what was not flushed. Whoever is in the recorded set may take over at any time,
//! whether the old primary is alive or not, and the old one need not hear of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kahawai_kdbr::{ErrorCode, ErrorFrame, Frame, NodeState};
use kahawai_replication::{
    LocalLog, Primary, PrimaryEffect, PrimaryEvent, PrimaryLog, Rule, SessionId, SinkEffect, SinkEvent,
    SinkOptions, SinkSession, SourceEffect, SourceEvent, SourceOptions, SourceSession, Timing, Vitals,
};
use kahawai_testkit::Random;
use kahawai_types::{BootId, Epoch, Lsn, Millis, NodeId, ReplicaId, StoreId};

use crate::log::{BATCH_BYTES, Batch, FILE_BATCHES, Log};

/// Which rule is broken, to see that somebody notices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutation {
    /// One of the primary's.
    Primary(Rule),
    /// A replica acknowledges what it has only received.
    AckBeforeFlush,
    /// A replica follows any reign.
    NoPromise,
    /// A proposal without an answer is taken for one that was refused.
    UnknownIsRefused,
}

/// What must never be.
pub type Violation = String;
pub type Outcome = Result<(), Violation>;

macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(format!($($text)*));
        }
    };
}

pub struct Record {
    pub epoch: Epoch,
    pub version: u64,
    pub primary: usize,
    pub in_sync: BTreeSet<ReplicaId>,
    pub minimum: u32,
}

struct Proposal {
    expected: u64,
    in_sync: BTreeSet<ReplicaId>,
}

pub struct Leader {
    pub primary: Primary,
    pub epoch: Epoch,
    marker_end: Lsn,
    /// The set as this primary knows it.
    recorded: BTreeSet<ReplicaId>,
    minimum: u32,
    version: u64,
    proposal: Option<Proposal>,
    pub commit: Lsn,
    pub active: bool,
    pub suspended: bool,
}

pub struct Following {
    connection: u64,
    sink: SinkSession,
}

pub enum Role {
    Down,
    Idle,
    Replica(Box<Following>),
    Leader(Box<Leader>),
}

pub struct Node {
    pub id: ReplicaId,
    pub boot: u128,
    pub log: Log,
    /// Batches that are flushed.
    pub durable: usize,
    pub promised: Epoch,
    pub known_commit: Lsn,
    pub role: Role,
}

struct Connection {
    replica: usize,
    primary: usize,
    boot: BootId,
    source: SourceSession,
    cursor: Option<Lsn>,
    to_replica: VecDeque<Frame>,
    to_primary: VecDeque<Frame>,
    replica_open: bool,
    primary_open: bool,
    /// Whoever is still there does not notice that the other is not.
    silent: bool,
}

/// What a walk has seen, so that one in which nothing happens is noticed.
#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    pub reigns: u32,
    pub active: u32,
    pub truncations: u32,
    pub joined: u32,
    pub left: u32,
    pub suspensions: u32,
    pub fenced: u32,
    pub refused: u32,
}

impl Seen {
    pub fn add(&mut self, other: &Self) {
        self.reigns += other.reigns;
        self.active += other.active;
        self.truncations += other.truncations;
        self.joined += other.joined;
        self.left += other.left;
        self.suspensions += other.suspensions;
        self.fenced += other.fenced;
        self.refused += other.refused;
    }
}

pub struct World {
    pub seen: Seen,
    pub now: Millis,
    pub random: Random,
    pub nodes: Vec<Node>,
    pub record: Record,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    /// What clients were told is safe.
    pub confirmed: Vec<Batch>,
    mutation: Option<Mutation>,
    timing: Timing,
    content: u64,
}

pub fn timing() -> Timing {
    Timing {
        stable_ms: 1_000,
        backoff_ms_max: 8_000,
        in_sync_lag_bytes_max: 40 * u64::from(BATCH_BYTES),
        admission_lag_bytes_max: 10 * u64::from(BATCH_BYTES),
        stream_lag_bytes_max: u64::MAX,
        file_bytes_max: BATCH_BYTES * FILE_BATCHES,
        ..Timing::default()
    }
}

impl World {
    /// Node 0 has made the cluster and leads; the others are empty.
    pub fn new(seed: u64, nodes: usize, minimum: u32, mutation: Option<Mutation>) -> Self {
        let id = |number: usize| ReplicaId {
            node: NodeId(format!("n{number}")),
            store: StoreId(number as u128 + 1),
        };
        let nodes: Vec<Node> = (0..nodes)
            .map(|number| Node {
                id: id(number),
                boot: 1,
                log: Log::default(),
                durable: 0,
                promised: Epoch(0),
                known_commit: Lsn::ZERO,
                role: Role::Idle,
            })
            .collect();
        let in_sync = BTreeSet::from([nodes[0].id.clone()]);
        let mut world = Self {
            seen: Seen::default(),
            now: 1_000_000,
            random: Random::new(seed),
            nodes,
            record: Record { epoch: Epoch(0), version: 0, primary: 0, in_sync, minimum },
            connections: BTreeMap::new(),
            next_connection: 1,
            confirmed: Vec::new(),
            mutation,
            timing: timing(),
            content: 0,
        };
        world.take_over(0);
        world
    }

    pub fn number_of(&self, id: &ReplicaId) -> usize {
        self.nodes.iter().position(|node| node.id == *id).unwrap()
    }

    pub fn leader(&self, node: usize) -> Option<&Leader> {
        match &self.nodes[node].role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    fn leader_mut(&mut self, node: usize) -> Option<&mut Leader> {
        match &mut self.nodes[node].role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    pub fn leaders(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.leader(*node).is_some()).collect()
    }

    /// The recorded primary, if it still is one.
    pub fn rightful(&self) -> Option<usize> {
        let node = self.record.primary;
        self.leader(node).filter(|leader| leader.epoch == self.record.epoch).map(|_| node)
    }

    // What happens to a cluster.

    /// The node wins the grant and writes the record. Whoever led before is not told.
    pub fn take_over(&mut self, node: usize) {
        if matches!(self.nodes[node].role, Role::Down) || !self.record.in_sync.contains(&self.nodes[node].id)
        {
            return;
        }
        self.leave(node);
        self.seen.reigns += 1;
        let old = self.record.primary;
        let epoch = self.record.epoch.max(self.nodes[node].promised).next();
        (self.record.epoch, self.record.primary) = (epoch, node);
        self.record.version += 1;
        self.content += 1;
        let content = self.content;
        let this = &mut self.nodes[node];
        this.promised = epoch;
        this.durable = this.log.batches.len();
        let marker_end = this.log.append(epoch, content).end();
        let Record { in_sync, minimum, version, .. } = &self.record;
        let (me, in_sync) = (this.id.clone(), in_sync.clone());
        let mut primary =
            Primary::new(me, epoch, marker_end, in_sync.clone(), *minimum, self.timing, self.now);
        if let Some(Mutation::Primary(rule)) = self.mutation {
            primary.break_rule(rule);
        }
        self.nodes[node].role = Role::Leader(Box::new(Leader {
            primary,
            epoch,
            marker_end,
            recorded: in_sync,
            minimum: *minimum,
            version: *version,
            proposal: None,
            commit: Lsn::ZERO,
            active: false,
            suspended: false,
        }));
        if old != node && matches!(self.nodes[old].role, Role::Down) && self.random.chance(2) {
            let gone = self.nodes[old].id.clone();
            self.primary_event(node, PrimaryEvent::Gone { replica: &gone }).unwrap();
        }
    }

    /// The node stops leading or following. Its peers notice when they read the end of the stream.
    pub fn leave(&mut self, node: usize) {
        if !matches!(self.nodes[node].role, Role::Down) {
            self.nodes[node].role = Role::Idle;
        }
        for connection in self.connections.values_mut() {
            if connection.primary == node {
                connection.primary_open = false;
            }
            if connection.replica == node {
                connection.replica_open = false;
            }
        }
    }

    /// The process dies; what was not flushed is lost from some point on.
    pub fn crash(&mut self, node: usize) {
        self.leave(node);
        let silent = self.random.chance(3);
        for connection in self.connections.values_mut() {
            if connection.primary == node || connection.replica == node {
                connection.to_primary.clear();
                connection.to_replica.clear();
                connection.silent |= silent;
            }
        }
        let unflushed = self.nodes[node].log.batches.len() - self.nodes[node].durable;
        let kept = self.random.below(unflushed as u64 + 1) as usize;
        let this = &mut self.nodes[node];
        this.log.batches.truncate(this.durable + kept);
        this.role = Role::Down;
    }

    /// The process starts; it flushes what it finds before it says anything.
    pub fn restart(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        if matches!(this.role, Role::Down) {
            this.boot += 1;
            this.durable = this.log.batches.len();
            this.role = Role::Idle;
        }
    }

    /// A connection breaks; either end may not notice.
    pub fn cut(&mut self, pick: u64) {
        let Some(id) = self.pick_connection(pick) else { return };
        let what = self.random.below(3);
        let connection = self.connections.get_mut(&id).unwrap();
        connection.to_primary.clear();
        connection.to_replica.clear();
        connection.silent = what > 0;
        let (replica, primary) = (connection.replica, connection.primary);
        if what != 1 {
            connection.replica_open = false;
            if matches!(&self.nodes[replica].role, Role::Replica(following) if following.connection == id) {
                self.nodes[replica].role = Role::Idle;
            }
        }
        if what != 2 {
            self.primary_side_ends(id, primary).unwrap();
        }
    }

    fn primary_side_ends(&mut self, id: u64, primary: usize) -> Outcome {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        if !std::mem::take(&mut connection.primary_open) || self.leader(primary).is_none() {
            return Ok(());
        }
        self.primary_event(primary, PrimaryEvent::Disconnected { session: SessionId(id), orderly: false })
    }

    /// The node connects to one that leads, or believes that it does.
    pub fn dial(&mut self, node: usize, primary: usize) -> Outcome {
        let Some(leader) = self.leader(primary) else { return Ok(()) };
        if !matches!(self.nodes[node].role, Role::Idle) || node == primary {
            return Ok(());
        }
        let boot = BootId(self.nodes[node].boot);
        if leader.primary.may_connect(&self.nodes[node].id, boot).is_err() {
            return Ok(());
        }
        let log = &self.nodes[primary].log;
        let options = SourceOptions {
            epoch: leader.epoch,
            commit: leader.commit,
            unclean_generation: 0,
            send_window: 6 * u64::from(BATCH_BYTES),
            timing: self.timing,
            log: PrimaryLog {
                history: log.history(),
                contiguous_from: 1,
                chain_before: 0,
                end: log.end(),
                chain_at_end: log.chain(),
                commit: leader.commit,
                has_imported_files: false,
            },
        };
        let source = SourceSession::new(options, self.now);
        let epoch = self.nodes[primary].promised;
        let this = &self.nodes[node];
        let sink = SinkSession::new(
            SinkOptions {
                log: LocalLog {
                    history: this.log.history(),
                    first_lsn: Lsn::ZERO,
                    end: this.log.end(),
                    durable: this.log.end_of(this.durable),
                    chain_at_end: this.log.chain(),
                    known_commit: this.known_commit,
                    applied: this.known_commit,
                    is_foreign_tail: false,
                    unclean_generation: 0,
                },
                promised: if self.mutation == Some(Mutation::NoPromise) { epoch } else { this.promised },
                epoch,
                receive_window: 6 * u64::from(BATCH_BYTES),
                address: String::new(),
                clients: Vec::new(),
                timing: self.timing,
            },
            self.now,
        );
        let id = self.next_connection;
        self.next_connection += 1;
        let connection = Connection {
            replica: node,
            primary,
            boot,
            source,
            cursor: None,
            to_replica: VecDeque::new(),
            to_primary: VecDeque::new(),
            replica_open: true,
            primary_open: true,
            silent: false,
        };
        self.connections.insert(id, connection);
        self.nodes[node].role = Role::Replica(Box::new(Following { connection: id, sink }));
        self.sink_event(node, SinkEvent::Start)
    }

    fn pick_connection(&self, pick: u64) -> Option<u64> {
        let index = pick.checked_rem(self.connections.len() as u64)?;
        self.connections.keys().nth(index as usize).copied()
    }

    /// The next thing arrives on some connection.
    pub fn deliver(&mut self, pick: u64) -> Outcome {
        let Some(id) = self.pick_connection(pick) else { return Ok(()) };
        let to_primary = self.random.chance(2);
        self.deliver_on(id, to_primary).map(|_| ())
    }

    /// Everything that is under way arrives.
    pub fn deliver_all(&mut self) -> Outcome {
        loop {
            let mut moved = false;
            for id in self.connections.keys().copied().collect::<Vec<_>>() {
                moved |= self.deliver_on(id, true)? | self.deliver_on(id, false)?;
            }
            if !moved {
                return Ok(());
            }
        }
    }

    fn deliver_on(&mut self, id: u64, to_primary: bool) -> Result<bool, Violation> {
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(false) };
        let (replica, primary) = (connection.replica, connection.primary);
        if !connection.replica_open && !connection.primary_open {
            self.connections.remove(&id);
            return Ok(true);
        }
        if to_primary && connection.primary_open {
            if let Some(frame) = connection.to_primary.pop_front() {
                self.source_event(id, SourceEvent::Frame(frame))?;
                return Ok(true);
            }
            if !connection.replica_open && !connection.silent {
                self.primary_side_ends(id, primary)?;
                return Ok(true);
            }
        } else if !to_primary && connection.replica_open {
            if let Some(frame) = connection.to_replica.pop_front() {
                self.sink_event(replica, SinkEvent::Frame(frame))?;
                return Ok(true);
            }
            if !connection.primary_open && !connection.silent {
                connection.replica_open = false;
                self.nodes[replica].role = Role::Idle;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A client writes.
    pub fn write(&mut self, node: usize) -> Outcome {
        let Some(epoch) = self.leader(node).map(|leader| leader.epoch) else { return Ok(()) };
        self.content += 1;
        let content = self.content;
        let end = self.nodes[node].log.append(epoch, content).end();
        self.primary_event(node, PrimaryEvent::Appended(end))
    }

    /// A flush ends, of all that was written or of some.
    pub fn flush(&mut self, node: usize, all: bool) -> Outcome {
        let unflushed = self.nodes[node].log.batches.len() - self.nodes[node].durable;
        if unflushed == 0 || matches!(self.nodes[node].role, Role::Down) {
            return Ok(());
        }
        let count = if all { unflushed } else { 1 + self.random.below(unflushed as u64) as usize };
        let this = &mut self.nodes[node];
        this.durable += count;
        let (durable, chain) = (this.log.end_of(this.durable), this.log.batches[this.durable - 1].chain);
        match this.role {
            Role::Leader(_) => self.primary_event(node, PrimaryEvent::LocalDurable(durable)),
            Role::Replica(_) if self.mutation == Some(Mutation::AckBeforeFlush) => Ok(()),
            Role::Replica(_) => self.sink_event(node, SinkEvent::Written { durable, chain }),
            _ => Ok(()),
        }
    }

    /// The primary sends what a session has room for.
    pub fn feed(&mut self, pick: u64, count: usize) -> bool {
        let Some(id) = self.pick_connection(pick) else { return false };
        let connection = self.connections.get_mut(&id).unwrap();
        let Some(cursor) = connection.cursor.filter(|_| connection.primary_open) else { return false };
        let node = &self.nodes[connection.primary];
        let Role::Leader(leader) = &node.role else { return false };
        if connection.source.window() == 0 {
            return false;
        }
        let Some((start, prev_chain, body)) = node.log.piece(cursor, count) else { return false };
        connection.cursor = Some(Lsn(start.0 + body.len() as u64));
        let frame = connection.source.update(start, prev_chain, body, leader.commit);
        if !connection.silent {
            connection.to_replica.push_back(frame);
        }
        true
    }

    pub fn feed_all(&mut self) {
        for pick in 0..self.connections.len() as u64 {
            while self.feed(pick, 3) {}
        }
    }

    /// Time has passed for everybody.
    pub fn tick(&mut self, passed_ms: Millis) -> Outcome {
        self.now += passed_ms;
        for node in 0..self.nodes.len() {
            let durable = self.nodes[node].log.end_of(self.nodes[node].durable);
            let vitals = Vitals { state: NodeState::Online, durable, disk_free_bytes: 1, last_flush_us: 1 };
            match self.nodes[node].role {
                Role::Replica(_) => self.sink_event(node, SinkEvent::Tick(vitals))?,
                Role::Leader(_) => self.primary_event(node, PrimaryEvent::Tick)?,
                _ => {}
            }
        }
        for id in self.connections.keys().copied().collect::<Vec<_>>() {
            let Some(connection) = self.connections.get(&id).filter(|c| c.primary_open) else { continue };
            let Some(leader) = self.leader(connection.primary) else { continue };
            let commit = leader.commit;
            let durable = commit;
            let vitals = Vitals { state: NodeState::Master, durable, disk_free_bytes: 1, last_flush_us: 1 };
            self.source_event(id, SourceEvent::Committed(commit))?;
            self.source_event(id, SourceEvent::Tick(vitals))?;
        }
        Ok(())
    }

    /// An attempt to have the proposal recorded. The register may take it and the answer be lost.
    pub fn propose(&mut self, node: usize, answer_is_lost: bool) -> Outcome {
        let Some(leader) = self.leader(node) else { return Ok(()) };
        let Some(proposal) = &leader.proposal else { return Ok(()) };
        let refuses = self.mutation == Some(Mutation::UnknownIsRefused);
        let ours = self.record.primary == node && self.record.epoch == leader.epoch;
        if self.record.version == proposal.expected && ours {
            let (size, floor) = (proposal.in_sync.len(), self.record.minimum as usize + 1);
            ensure!(
                size >= floor.min(self.record.in_sync.len()),
                "I12: {size} members are recorded, {floor} are needed"
            );
            ensure!(
                proposal.in_sync.contains(&self.nodes[node].id),
                "I12: the primary is not in its own set"
            );
            self.record.in_sync = proposal.in_sync.clone();
            self.record.version += 1;
        }
        if answer_is_lost {
            let Some(leader) = self.leader_mut(node).filter(|_| refuses) else { return Ok(()) };
            leader.proposal = None;
            let in_sync = leader.recorded.clone();
            return self.primary_event(node, PrimaryEvent::Decided { in_sync: &in_sync });
        }
        if !ours {
            self.leave(node);
            return Ok(());
        }
        let (in_sync, version) = (self.record.in_sync.clone(), self.record.version);
        let leader = self.leader_mut(node).unwrap();
        leader.proposal = None;
        leader.recorded = in_sync.clone();
        leader.version = version;
        self.primary_event(node, PrimaryEvent::Decided { in_sync: &in_sync })
    }

    /// An operator changes the minimum.
    pub fn set_minimum(&mut self, minimum: u32) -> Outcome {
        let Some(node) = self.rightful() else { return Ok(()) };
        self.record.minimum = minimum;
        self.record.version += 1;
        let version = self.record.version;
        let leader = self.leader_mut(node).unwrap();
        leader.minimum = minimum;
        if leader.proposal.is_none() {
            leader.version = version;
        }
        self.primary_event(node, PrimaryEvent::Minimum(minimum))
    }

    // What the machines want.

    fn primary_event(&mut self, node: usize, event: PrimaryEvent<'_>) -> Outcome {
        let now = self.now;
        let mut effects = Vec::new();
        let Some(leader) = self.leader_mut(node) else { return Ok(()) };
        leader.primary.step(now, event, &mut effects);
        for effect in effects {
            let Some(leader) = self.leader_mut(node) else { return Ok(()) };
            match effect {
                PrimaryEffect::Commit(at) => {
                    ensure!(
                        at > leader.commit,
                        "I9: the commit position goes from {} to {at}",
                        leader.commit
                    );
                    leader.commit = at;
                    self.confirm(node, at)?;
                }
                PrimaryEffect::Activate => {
                    ensure!(!leader.active && leader.commit >= leader.marker_end, "active without a marker");
                    leader.active = true;
                    self.seen.active += 1;
                }
                PrimaryEffect::Propose { in_sync, .. } => {
                    ensure!(leader.proposal.is_none(), "two proposals at a time");
                    ensure!(in_sync != leader.recorded, "a proposal that changes nothing");
                    leader.proposal = Some(Proposal { expected: leader.version, in_sync });
                }
                PrimaryEffect::Suspended { .. } => {
                    ensure!(!leader.suspended, "suspended twice");
                    leader.suspended = true;
                    self.seen.suspensions += 1;
                }
                PrimaryEffect::Resumed => {
                    ensure!(leader.suspended, "resumed twice");
                    leader.suspended = false;
                }
                PrimaryEffect::Left { .. } => self.seen.left += 1,
                PrimaryEffect::Joined { .. } => self.seen.joined += 1,
                // Disks here are slow or dead, and come back: this primary waits for its own.
                PrimaryEffect::Stalled { .. } => {}
                PrimaryEffect::Refuse { session, refusal } => {
                    self.seen.refused += 1;
                    self.source_event(session.0, SourceEvent::Refuse(ErrorFrame::from(&refusal)))?;
                }
            }
        }
        Ok(())
    }

    fn source_event(&mut self, id: u64, event: SourceEvent) -> Outcome {
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id).filter(|c| c.primary_open) else {
            return Ok(());
        };
        let (replica, primary, boot) = (connection.replica, connection.primary, connection.boot);
        let session = SessionId(id);
        let mut effects = Vec::new();
        connection.source.step(now, event, &mut effects);
        for effect in effects {
            let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
            match effect {
                SourceEffect::Send(frame) => {
                    if !connection.silent {
                        connection.to_replica.push_back(frame);
                    }
                }
                SourceEffect::NeedChain { at, chain } => {
                    let found = self.nodes[primary].log.find(at, chain);
                    self.source_event(id, SourceEvent::Chain(found))?;
                }
                SourceEffect::Attached { durable } => {
                    let replica = self.nodes[replica].id.clone();
                    let event = PrimaryEvent::Connected { replica: &replica, boot, session, durable };
                    self.primary_event(primary, event)?;
                }
                SourceEffect::StreamFrom(at) => connection.cursor = Some(at),
                SourceEffect::Acked { durable, applied } => {
                    self.primary_event(primary, PrimaryEvent::Acked { session, durable, applied })?;
                }
                SourceEffect::Fenced(_) => {
                    self.seen.fenced += 1;
                    self.leave(primary);
                }
                SourceEffect::Close(end) => {
                    let text = end.to_string();
                    ensure!(
                        self.mutation.is_some() || !(text.contains("CORRUPT") || text.contains("PROTOCOL")),
                        "a session of n{primary} with n{replica} ended: {text}"
                    );
                    self.primary_side_ends(id, primary)?;
                }
                SourceEffect::NeedManifest => return Err("nothing was ever collected".into()),
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

    fn sink_event(&mut self, node: usize, event: SinkEvent) -> Outcome {
        let now = self.now;
        let mut effects = Vec::new();
        let Role::Replica(following) = &mut self.nodes[node].role else { return Ok(()) };
        let id = following.connection;
        following.sink.step(now, event, &mut effects);
        for effect in effects {
            match effect {
                SinkEffect::Send(frame) => {
                    if let Some(connection) = self.connections.get_mut(&id)
                        && !connection.silent
                    {
                        connection.to_primary.push_back(frame);
                    }
                }
                SinkEffect::Promise(epoch) => {
                    let this = &mut self.nodes[node];
                    ensure!(
                        epoch >= this.promised || self.mutation.is_some(),
                        "I4: the promise goes from {} to {epoch}",
                        this.promised
                    );
                    this.promised = epoch;
                    self.sink_event(node, SinkEvent::Promised(epoch))?;
                }
                SinkEffect::Append { lsn, batches, .. } => {
                    let this = &mut self.nodes[node];
                    let mut at = lsn;
                    for bytes in batches.chunks_exact(BATCH_BYTES as usize) {
                        let batch = Batch::decode(bytes);
                        ensure!(
                            batch.start == at && batch.prev_chain == this.log.chain(),
                            "I3: n{node} gets a batch at {at} that does not follow"
                        );
                        at = batch.end();
                        this.log.batches.push(batch);
                    }
                    if self.mutation == Some(Mutation::AckBeforeFlush) {
                        let (durable, chain) = (this.log.end(), this.log.chain());
                        self.sink_event(node, SinkEvent::Written { durable, chain })?;
                    }
                }
                SinkEffect::Commit(at) => {
                    let this = &mut self.nodes[node];
                    let count = this.log.index_of(at).ok_or(format!("I9: commit {at} is inside a batch"))?;
                    ensure!(
                        this.log.batches[..count] == self.confirmed[..count.min(self.confirmed.len())],
                        "I9: n{node} takes {at} for confirmed"
                    );
                    this.known_commit = this.known_commit.max(at);
                }
                SinkEffect::Truncate { to, chain } => {
                    self.seen.truncations += 1;
                    let this = &mut self.nodes[node];
                    let Some(count) = this.log.index_of(to).filter(|_| this.log.chain_at(to) == Some(chain))
                    else {
                        let error = ErrorFrame::new(ErrorCode::Diverged, "no such place");
                        self.sink_event(node, SinkEvent::Refuse(error))?;
                        return Err(format!("n{node} was to be cut at {to}, where it has another chain"));
                    };
                    // It may hold more than that of what is confirmed: nobody counts on it, unless it is in the set (I6).
                    ensure!(
                        to >= this.known_commit,
                        "I11: n{node} drops what it knows to be confirmed, from {to} to {}",
                        this.known_commit
                    );
                    let dropped_bytes = (this.log.batches.len() - count) as u64 * u64::from(BATCH_BYTES);
                    this.log.batches.truncate(count);
                    this.durable = count;
                    let done = SinkEvent::TruncateDone { end: to, chain, dropped_bytes, saved_as: None };
                    self.sink_event(node, done)?;
                }
                SinkEffect::Close(end) => {
                    let text = end.to_string();
                    ensure!(
                        self.mutation.is_some()
                            || !["DIVERGED", "CORRUPT", "PROTOCOL", "LIMIT"]
                                .iter()
                                .any(|code| text.contains(code)),
                        "a session of n{node} ended: {text}"
                    );
                    if let Some(connection) = self.connections.get_mut(&id) {
                        connection.replica_open = false;
                    }
                    self.nodes[node].role = Role::Idle;
                }
                SinkEffect::Bulk(_) => return Err("nothing was ever collected".into()),
                SinkEffect::Attached { .. }
                | SinkEffect::SyncAborted { .. }
                | SinkEffect::Vitals(_)
                | SinkEffect::Switchover(_) => {}
            }
        }
        Ok(())
    }

    // What the oracle says.

    /// A primary tells its clients that everything before `at` is safe.
    fn confirm(&mut self, node: usize, at: Lsn) -> Outcome {
        let leader = self.leader(node).unwrap();
        ensure!(at >= leader.marker_end, "I5: {at} is confirmed before the marker at {}", leader.marker_end);
        let minimum = leader.minimum as usize;
        let sets = [Some(&leader.recorded), leader.proposal.as_ref().map(|proposal| &proposal.in_sync)];
        let log = &self.nodes[node].log;
        let count = log.index_of(at).ok_or(format!("I9: {at} is inside a batch"))?;
        for set in sets.into_iter().flatten() {
            ensure!(
                set.len() > minimum,
                "I5: {at} is confirmed with {} of {minimum} replicas",
                set.len() - 1
            );
            for member in set {
                let member = &self.nodes[self.number_of(member)];
                ensure!(
                    member.durable >= count && member.log.batches[count - 1] == log.batches[count - 1],
                    "I5, I13: {at} is confirmed and not flushed on {}",
                    member.id
                );
            }
        }
        let both = count.min(self.confirmed.len());
        ensure!(
            log.batches[..both] == self.confirmed[..both],
            "I9: n{node} confirms another history up to {at}"
        );
        if count > both {
            self.confirmed = log.batches[..count].to_vec();
        }
        Ok(())
    }

    /// What holds after each step.
    pub fn check(&self) -> Outcome {
        let count = self.confirmed.len();
        ensure!(
            self.record.in_sync.contains(&self.nodes[self.record.primary].id),
            "I12: the primary is not in the set"
        );
        for member in &self.record.in_sync {
            let node = &self.nodes[self.number_of(member)];
            let has_all = count == 0
                || (node.durable >= count && node.log.batches[count - 1] == self.confirmed[count - 1]);
            ensure!(has_all, "I6: {member} may lead and lacks what was confirmed");
        }
        for node in &self.nodes {
            ensure!(node.durable <= node.log.batches.len(), "I10: {} has flushed more than it has", node.id);
            ensure!(
                node.known_commit <= node.log.end_of(node.durable) || self.mutation.is_some(),
                "I10: {} has not flushed what is committed",
                node.id
            );
            if let Role::Leader(leader) = &node.role {
                let status = leader.primary.status();
                let mut stores: Vec<_> = status
                    .replicas
                    .iter()
                    .filter(|replica| replica.connected.is_some())
                    .map(|replica| replica.replica.store)
                    .collect();
                let sessions = stores.len();
                stores.sort_unstable();
                stores.dedup();
                ensure!(stores.len() == sessions, "I24: a replica counts twice at {}", node.id);
            }
        }
        Ok(())
    }
}
