//! What a step does to the world: the machines are asked, and what they say is carried out, in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kahawai_election::{
    CasResult, ClusterRecord, Condition, Effect, Elector, Event, Local, Phase, ProviderEvent, Refusal,
    Request, Settings,
};
use kahawai_replication::{Match, Primary, PrimaryEffect, PrimaryEvent, ReplicaLog, SessionId, decide};
use kahawai_types::{BootId, ClusterId, Epoch, Lsn, Millis};

use super::node::{Feeding, Following, Leader, Node, Process, Role};
use super::service::{Client, Place, Service, Verdict, Write};
use super::{Bounds, ClusterModel, NODES, Start};
use crate::Mutation;
use crate::check::Checked;
use crate::invariant::{Invariant, Outcome, ensure};
use crate::journal::{Batch, Journal, check_journals, count, lsn};
use crate::nodes::{Nodes, id, number};
use crate::shared::Shared;

/// Everything happens at this time, ...
const NOW: Millis = 0;
/// ... but ticks come when whatever can be overdue is.
const OVERDUE: Millis = 1;

/// Requests to the elector: which one is the primary's proposal.
const ACTIVATION: u64 = 0;
const PROPOSAL: u64 = 1;
const OPERATOR: u64 = 2;

/// What is remembered for the invariants alone.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Ghost {
    /// What clients were told is safe.
    pub(crate) confirmed: Vec<Batch>,
    /// Who led in which epoch.
    pub(crate) reigns: BTreeMap<Epoch, Client>,
    /// A replica dropped what the primary did not have.
    pub(crate) has_cut: bool,
    /// How large the set was in the beginning.
    pub(crate) in_sync: usize,
}

/// A state of the model.
#[derive(Clone, PartialEq, Hash, Debug)]
pub struct World {
    pub(crate) nodes: [Shared<Node>; NODES],
    pub(crate) service: Shared<Service>,
    pub(crate) ghost: Shared<Ghost>,
    pub(crate) left: Bounds,
    pub(crate) broken: Option<(Invariant, String)>,
}

/// What waits to be told to a machine.
type Todo = VecDeque<(usize, Event)>;

/// Apart far enough for the numbers that the elector makes from it.
fn boot_id(client: Client) -> BootId {
    BootId((1 + client.node as u128 * 16 + u128::from(client.boot)) << 16)
}

impl Checked for World {
    fn broken(&self) -> Option<&str> {
        self.broken.as_ref().map(|(_, what)| what.as_str())
    }
}

impl World {
    /// A cluster in which node 0 leads in epoch 1, and the set is in sync.
    pub(crate) fn new(model: &ClusterModel, start: Start) -> Self {
        let record = ClusterRecord {
            cluster_id: ClusterId(1),
            feature_level: 1,
            epoch: Epoch(0),
            version: 0,
            primary: None,
            phase: Phase::Recovering,
            in_sync: (0..start.in_sync).map(id).collect(),
            minimum_replicas: start.minimum,
            epoch_start: None,
            members: BTreeMap::new(),
            removed: BTreeSet::new(),
            unclean_generation: 0,
            successor: None,
            last_op: 0,
        };
        let node = |_| {
            Shared::new(Node {
                journal: Journal::default(),
                durable: 0,
                promised: Epoch(0),
                commit: 0,
                saved: None,
                boot: 0,
                process: None,
            })
        };
        let mut world = Self {
            nodes: std::array::from_fn(node),
            service: Shared::new(Service {
                revision: 1,
                bytes: record.encode().into(),
                record: Shared::new(record),
                holder: None,
                waiting: Vec::new(),
                writes: Vec::new(),
            }),
            ghost: Shared::new(Ghost {
                confirmed: Vec::new(),
                reigns: BTreeMap::new(),
                has_cut: false,
                in_sync: start.in_sync,
            }),
            left: Bounds { activations: true, ..model.bounds },
            broken: None,
        };
        let outcome = world.begin(model, start);
        outcome.expect("the beginning breaks nothing");
        world.left = model.bounds;
        world.settle();
        world
    }

    fn begin(&mut self, model: &ClusterModel, start: Start) -> Outcome {
        self.restart(model, 0)?;
        self.grant(model, 0)?;
        self.serve(model, 0)?;
        for node in 1..NODES {
            self.restart(model, node)?;
        }
        for replica in 1..start.in_sync {
            self.connect(model, 0, replica)?;
        }
        for _ in 0..2 {
            for replica in 1..start.in_sync {
                while self.can_send(0, replica) {
                    self.send(model, 0, replica)?;
                }
            }
            for node in 0..NODES {
                self.flush(model, node)?;
            }
            for replica in 1..start.in_sync {
                self.acknowledge(model, 0, replica)?;
            }
            while !self.service.writes.is_empty() {
                self.serve(model, 0)?;
            }
            self.hear(model, 0)?;
        }
        let is_whole = self.ghost.confirmed.len() == 1 && self.service.record.phase == Phase::Active;
        assert!(is_whole, "the beginning is not what it should be: {self:#?}");
        Ok(())
    }

    /// Ends a step: what holds in every state is looked at, and equal states look equal.
    pub(crate) fn settle(&mut self) {
        if self.service.is_open() {
            self.service.tidy();
        }
        if self.broken.is_none() {
            self.broken = self.check().err();
        }
        for replica in 0..NODES {
            let primary = self.nodes[replica].following().map(|following| following.primary);
            if primary.is_some_and(|primary| !self.is_intact(primary, replica)) {
                self.drop_stream(replica);
            }
        }
        for node in &mut self.nodes {
            if node.is_open() {
                (**node).seal();
                node.seal();
            }
        }
        self.service.seal();
        self.ghost.seal();
    }

    pub(crate) fn client(&self, node: usize) -> Client {
        Client { node, boot: self.nodes[node].boot }
    }

    pub(crate) fn is_alive(&self, client: Client) -> bool {
        self.nodes[client.node].process.is_some() && self.nodes[client.node].boot == client.boot
    }

    fn local(&self, node: usize) -> Local {
        Local {
            cluster_id: ClusterId(1),
            promised: self.nodes[node].promised,
            // For ranks, which only say who tries first; here anybody may.
            last_epoch: Epoch(0),
            end: Lsn::ZERO,
            journal_is_empty: false,
            condition: Condition::Usable,
        }
    }

    // Processes.

    pub(crate) fn restart(&mut self, model: &ClusterModel, node: usize) -> Outcome {
        let local = self.local(node);
        let this = &mut *self.nodes[node];
        this.boot += 1;
        // It flushes what it finds before it says anything.
        this.durable = this.journal.len();
        let settings = Settings {
            me: id(node),
            boot: boot_id(Client { node, boot: this.boot }),
            address: String::new(),
            clients: Vec::new(),
            priority: 0,
            minimum_replicas: 0,
            timing: model.election,
        };
        let elector = Elector::new(settings, local, this.saved.as_deref());
        this.process = Some(Process {
            elector: Shared::new(elector),
            has_news: false,
            has_expired: false,
            role: Role::Idle,
        });
        let grant = self.grant_event();
        let todo = [ProviderEvent::Connected, grant].map(|event| (node, Event::Provider(event)));
        self.tell_electors(model, NOW, todo.into())
    }

    /// The process dies. Of what was not flushed, `kept` batches are there afterwards.
    pub(crate) fn crash(&mut self, node: usize, kept: usize) {
        let client = self.client(node);
        let this = &mut *self.nodes[node];
        this.process = None;
        this.journal.0.truncate(this.durable + kept);
        if self.service.writes.iter().any(|write| write.client == client) {
            for write in &mut self.service.writes {
                write.is_awaited &= write.client != client;
            }
        }
        // It could only have been passed over; who has the grant keeps it until the session ends.
        if self.service.waiting.iter().any(|place| place.client == client) {
            self.service.waiting.retain(|place| place.client != client);
        }
    }

    // The election service.

    /// A primary hears what is new at the service.
    pub(crate) fn hear(&mut self, model: &ClusterModel, node: usize) -> Outcome {
        let grant = self.grant_event();
        let Some(process) = &mut self.nodes[node].process else { return Ok(()) };
        process.has_news = false;
        let events = match std::mem::take(&mut process.has_expired) {
            true => vec![ProviderEvent::SessionLost, ProviderEvent::Connected, grant],
            false => vec![ProviderEvent::RecordChanged, grant],
        };
        let todo = events.into_iter().map(|event| (node, Event::Provider(event)));
        self.tell_electors(model, NOW, todo.collect())
    }

    /// A deposed primary that can confirm nothing any more might as well have heard: one that has not is like one that does nothing.
    pub(crate) fn wake_the_deposed(&mut self, model: &ClusterModel) -> Outcome {
        for node in 0..NODES {
            let this = &self.nodes[node];
            let Some(leader) = this.leader() else { continue };
            let is_deposed = leader.epoch < self.service.record.epoch;
            let is_idle = this.unflushed() == 0 && leader.feeding.iter().flatten().all(|it| it.ack.is_none());
            if is_deposed && is_idle && model.mutation != Some(Mutation::NoPromise) {
                self.hear(model, node)?;
            }
        }
        Ok(())
    }

    fn grant_event(&self) -> ProviderEvent {
        if self.service.holder.is_some() { ProviderEvent::GrantHeld } else { ProviderEvent::GrantVacant }
    }

    /// Somebody who waits gets the grant.
    pub(crate) fn grant(&mut self, model: &ClusterModel, waiting: usize) -> Outcome {
        let place = self.service.waiting.remove(waiting);
        self.service.holder = Some(place);
        let mut todo = Todo::new();
        self.tell_everybody(&[self.grant_event()], &mut todo);
        let result = Ok(kahawai_election::Fence(place.fence));
        todo.push_back((place.client.node, Event::Campaign { id: place.campaign, result }));
        self.tell_electors(model, NOW, todo)
    }

    /// Time passes for the elector.
    pub(crate) fn retry(&mut self, model: &ClusterModel, node: usize) -> Outcome {
        let tick = Event::Tick { deadline: Millis::MAX };
        self.tell_electors(model, OVERDUE, [(node, tick)].into())
    }

    /// The session of who has the grant ends.
    pub(crate) fn expire(&mut self, model: &ClusterModel) -> Outcome {
        let Some(Place { client, .. }) = self.service.holder else { return Ok(()) };
        let mut todo = Todo::new();
        if self.is_alive(client)
            && let Some(process) = &mut self.nodes[client.node].process
        {
            (process.has_expired, process.has_news) = (true, true);
        }
        self.leave(client, &mut todo);
        self.tell_electors(model, NOW, todo)?;
        if self.is_alive(client) && self.nodes[client.node].leader().is_none() {
            return self.hear(model, client.node);
        }
        Ok(())
    }

    fn leave(&mut self, client: Client, todo: &mut Todo) {
        if self.service.waiting.iter().any(|place| place.client == client) {
            self.service.waiting.retain(|place| place.client != client);
        }
        if self.service.holder.is_some_and(|place| place.client == client) {
            self.service.holder = None;
            self.tell_everybody(&[ProviderEvent::GrantVacant], todo);
        }
    }

    /// Who does not lead hears at once: what it does then is to wait for the grant, or for a primary. A primary may be the last to
    /// hear of anything.
    fn tell_everybody(&mut self, news: &[ProviderEvent], todo: &mut Todo) {
        for node in 0..NODES {
            let Some(process) = &self.nodes[node].process else { continue };
            if !matches!(process.role, Role::Leader(_)) {
                todo.extend(news.iter().map(|event| (node, Event::Provider(event.clone()))));
            } else if !process.has_news
                && let Some(process) = &mut self.nodes[node].process
            {
                process.has_news = true;
            }
        }
    }

    /// A write arrives at the service; its answer, if somebody waits, at the writer.
    pub(crate) fn serve(&mut self, model: &ClusterModel, write: usize) -> Outcome {
        let write = self.service.writes.remove(write);
        let had_no_news =
            self.nodes[write.client.node].process.as_ref().is_some_and(|process| !process.has_news);
        let mut todo = Todo::new();
        let result = match self.service.judge(&write) {
            Verdict::Unfenced if model.mutation != Some(Mutation::NoFence) => CasResult::FenceLost,
            Verdict::Conflicts => CasResult::Conflict,
            _ => {
                let record = ClusterRecord::decode(&write.record).expect("electors write records");
                self.check_write(&record)?;
                let bytes = write.record.clone();
                let service = &mut *self.service;
                service.revision += 1;
                (service.record, service.bytes) = (Shared::new(record), bytes);
                let revision = service.at();
                self.tell_everybody(&[ProviderEvent::RecordChanged], &mut todo);
                CasResult::Applied(revision)
            }
        };
        if write.is_awaited && self.is_alive(write.client) {
            // It need not be told of what it has just written.
            let is_applied = matches!(result, CasResult::Applied(_));
            if let Some(process) = &mut self.nodes[write.client.node].process
                && is_applied
            {
                todo.retain(|(node, _)| *node != write.client.node);
                process.has_news &= process.has_expired || !had_no_news;
            }
            todo.push_front((write.client.node, Event::Written { op: write.op, result }));
        }
        self.tell_electors(model, NOW, todo)
    }

    /// The answer to a write is lost; the write is not.
    pub(crate) fn lose_answer(&mut self, model: &ClusterModel, write: usize) -> Outcome {
        let write = &mut self.service.writes[write];
        write.is_awaited = false;
        let (node, op) = (write.client.node, write.op);
        let result = CasResult::Unknown(String::new());
        self.elect(model, node, Event::Written { op, result })?;
        if model.mutation == Some(Mutation::UnknownIsRefused)
            && let Some(leader) = self.nodes[node].leader_mut()
            && leader.proposal.take().is_some()
        {
            let recorded = leader.recorded.ids();
            self.lead_on(node, NOW, PrimaryEvent::Decided { in_sync: &recorded }, &mut Todo::new())?;
        }
        Ok(())
    }

    // The elector.

    fn elect(&mut self, model: &ClusterModel, node: usize, event: Event) -> Outcome {
        self.tell_electors(model, NOW, [(node, event)].into())
    }

    fn tell_electors(&mut self, model: &ClusterModel, now: Millis, mut todo: Todo) -> Outcome {
        while let Some((node, event)) = todo.pop_front() {
            let Some(process) = &mut self.nodes[node].process else { continue };
            let mut effects = Vec::new();
            process.elector.step(now, event, &mut effects);
            for effect in effects {
                self.carry_out(model, node, effect, &mut todo)?;
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, model: &ClusterModel, node: usize, effect: Effect, todo: &mut Todo) -> Outcome {
        let client = self.client(node);
        match effect {
            Effect::Read => {
                let found = Some((self.service.at(), self.service.bytes.to_vec()));
                todo.push_back((node, Event::Record(Ok(found))));
            }
            Effect::ReadPresence => todo.push_back((node, Event::Presence(Ok(Vec::new())))),
            Effect::Create { .. } => unreachable!("there is a record"),
            Effect::Cas { op, expected, record, fence } => {
                let (expected, fence) = (expected.order, fence.map(|fence| fence.0));
                let epoch = ClusterRecord::decode(&record).map_or(0, |record| record.epoch.0);
                let write =
                    Write { client, op, is_awaited: true, expected, fence, record: record.into(), epoch };
                self.service.writes.push(write);
            }
            Effect::Campaign { id } => {
                self.leave(client, todo);
                self.service.wait(client, id);
            }
            Effect::Resign => self.leave(client, todo),
            Effect::Save(bytes) => {
                let record = ClusterRecord::decode(&bytes).expect("electors save records");
                self.nodes[node].saved = Some(Shared::new(record));
            }
            Effect::Lead { epoch, record, .. } => self.lead(model, node, epoch, &record, todo)?,
            Effect::StepDown(_) => {
                self.drop_stream(node);
                if let Some(process) = &mut self.nodes[node].process
                    && process.has_news
                {
                    process.has_news = false;
                    let grant = self.grant_event();
                    todo.push_back((node, Event::Provider(grant)));
                }
                todo.push_back((node, Event::SteppedDown(self.local(node))));
            }
            Effect::Changed(record) => {
                let recorded = Nodes::of(&record.in_sync);
                if let Some(leader) = self.nodes[node].leader_mut()
                    && leader.recorded != recorded
                {
                    leader.recorded = recorded;
                    let event = PrimaryEvent::Changed { in_sync: &record.in_sync };
                    self.lead_on(node, NOW, event, todo)?;
                }
            }
            Effect::Answer { id: PROPOSAL, outcome } => {
                let Some(leader) = self.nodes[node].leader_mut() else { return Ok(()) };
                let proposed = leader.proposal;
                match (outcome, proposed) {
                    (Err(Refusal::SteppedDown), _) | (_, None) => return Ok(()),
                    (Ok(()), Some(proposed)) => leader.recorded = proposed,
                    (Err(_), Some(_)) => {}
                }
                leader.proposal = None;
                let recorded = leader.recorded.ids();
                self.lead_on(node, NOW, PrimaryEvent::Decided { in_sync: &recorded }, todo)?;
            }
            // Whom it names does not matter: a replica goes to anybody who believes that it leads, and stays as long as it likes.
            Effect::Follow { .. } | Effect::Answer { .. } | Effect::Publish(_) | Effect::Status(_) => {}
        }
        Ok(())
    }

    /// An epoch is won: it is promised, and its marker written.
    fn lead(
        &mut self,
        model: &ClusterModel,
        node: usize,
        epoch: Epoch,
        record: &ClusterRecord,
        todo: &mut Todo,
    ) -> Outcome {
        let client = self.client(node);
        ensure(self.ghost.reigns.insert(epoch, client).is_none(), Invariant::I1, || {
            format!("a second reign in epoch {epoch}")
        })?;
        ensure(record.in_sync.contains(&id(node)), Invariant::I14, || {
            format!("n{node} leads and is not in the set")
        })?;
        let this = &mut *self.nodes[node];
        ensure(epoch > this.promised, Invariant::I4, || {
            format!("n{node} leads in epoch {epoch} and has promised {}", this.promised)
        })?;
        this.promised = epoch;
        this.durable = this.journal.len();
        this.journal.0.push(Batch::marker(epoch.0 as u8, node, client.boot));
        let marker = this.journal.len();
        let (in_sync, recorded) = (record.in_sync.clone(), Nodes::of(&record.in_sync));
        let minimum = record.minimum_replicas;
        let timing = model.replication;
        let mut primary = Primary::new(id(node), epoch, lsn(marker), in_sync, minimum, timing, NOW);
        if let Some(Mutation::Primary(rule)) = model.mutation {
            primary.break_rule(rule);
        }
        primary.step(NOW, PrimaryEvent::Tick, &mut Vec::new());
        let process = this.process.as_mut().expect("who leads runs");
        process.role = Role::Leader(Box::new(Leader {
            primary: Shared::new(primary),
            epoch,
            marker,
            recorded,
            proposal: None,
            commit: 0,
            feeding: [None; NODES],
        }));
        todo.push_back((node, Event::Local(self.local(node))));
        todo.push_back((node, Event::Tick { deadline: Millis::MAX }));
        Ok(())
    }

    pub(crate) fn hand_over(&mut self, model: &ClusterModel, node: usize) -> Outcome {
        let request = Request::StepDown { successor: None };
        self.elect(model, node, Event::Request { id: OPERATOR, request })
    }

    /// An operator takes a replica out of the set.
    pub(crate) fn remove(&mut self, model: &ClusterModel, node: usize, replica: usize) -> Outcome {
        let request = match (model.mutation, self.nodes[node].leader()) {
            // As the release before did it.
            (Some(Mutation::OperatorsSet), Some(leader)) => {
                Request::InSync(leader.recorded.without(replica).ids())
            }
            _ => Request::Without([id(replica)].into()),
        };
        self.elect(model, node, Event::Request { id: OPERATOR, request })
    }

    // The primary.

    /// Time passes for the primary.
    pub(crate) fn tick(&mut self, model: &ClusterModel, node: usize) -> Outcome {
        self.step(model, node, OVERDUE, PrimaryEvent::Tick)
    }

    fn step(&mut self, model: &ClusterModel, node: usize, now: Millis, event: PrimaryEvent<'_>) -> Outcome {
        let mut todo = Todo::new();
        self.lead_on(node, now, event, &mut todo)?;
        self.tell_electors(model, NOW, todo)
    }

    fn lead_on(&mut self, node: usize, now: Millis, event: PrimaryEvent<'_>, todo: &mut Todo) -> Outcome {
        let Some(leader) = self.nodes[node].leader_mut() else { return Ok(()) };
        let mut effects = Vec::new();
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
                }
                PrimaryEffect::Activate => {
                    if self.left.activations {
                        let request = Request::Activate { start: Lsn::ZERO, chain: 0 };
                        todo.push_back((node, Event::Request { id: ACTIVATION, request }));
                    }
                }
                PrimaryEffect::Propose { in_sync, .. } => {
                    let (proposed, recorded) = (Nodes::of(&in_sync), leader.recorded);
                    let required = self.service.record.minimum_replicas as usize + 1;
                    ensure(proposed.len() >= required || proposed.holds(recorded), Invariant::I12, || {
                        format!("n{node} proposes {proposed:?}, {required} are needed")
                    })?;
                    leader.proposal = Some(proposed);
                    // Beyond the bound it is never decided.
                    if let Some(left) = self.left.changes.checked_sub(1) {
                        self.left.changes = left;
                        let request = Request::InSync(in_sync);
                        todo.push_back((node, Event::Request { id: PROPOSAL, request }));
                    }
                }
                PrimaryEffect::Refuse { session, .. } => leader.feeding[session.0 as usize] = None,
                PrimaryEffect::Suspended { .. }
                | PrimaryEffect::Resumed
                | PrimaryEffect::Left { .. }
                | PrimaryEffect::Joined { .. } => {}
            }
        }
        Ok(())
    }

    /// A client writes.
    pub(crate) fn write(&mut self, model: &ClusterModel, node: usize) -> Outcome {
        let content = model.bounds.writes - self.left.writes;
        let this = &mut *self.nodes[node];
        let Some(epoch) = this.leader().map(|leader| leader.epoch) else { return Ok(()) };
        this.journal.0.push(Batch { epoch: epoch.0 as u8, content });
        let end = this.journal.end();
        self.step(model, node, NOW, PrimaryEvent::Appended(end))
    }

    /// Everything that was written here is flushed.
    pub(crate) fn flush(&mut self, model: &ClusterModel, node: usize) -> Outcome {
        if self.nodes[node].unflushed() == 0 {
            return Ok(());
        }
        let this = &mut *self.nodes[node];
        this.durable = this.journal.len();
        if this.leader().is_some() {
            let end = this.journal.end();
            return self.step(model, node, NOW, PrimaryEvent::LocalDurable(end));
        }
        Ok(())
    }

    // Streams.

    fn send_ack(&mut self, replica: usize, durable: usize) {
        let Some(&Following { primary, .. }) = self.nodes[replica].following() else { return };
        if !self.is_intact(primary, replica) {
            return;
        }
        if let Some(leader) = self.nodes[primary].leader_mut()
            && let Some(feeding) = &mut leader.feeding[replica]
        {
            feeding.ack = Some(durable);
        }
    }

    /// Both ends of the stream are there.
    pub(crate) fn is_intact(&self, primary: usize, replica: usize) -> bool {
        let Some(leader) = self.nodes[primary].leader() else { return false };
        let Some(following) = self.nodes[replica].following() else { return false };
        leader.feeding[replica].is_some() && following.primary == primary && following.epoch == leader.epoch
    }

    pub(crate) fn can_send(&self, primary: usize, replica: usize) -> bool {
        let node = &self.nodes[primary];
        self.is_intact(primary, replica)
            && node.leader().is_some_and(|leader| {
                leader.feeding[replica].is_some_and(|feeding| feeding.sent < node.journal.len())
            })
    }

    /// The next batch arrives at a replica, with the commit position.
    pub(crate) fn send(&mut self, model: &ClusterModel, primary: usize, replica: usize) -> Outcome {
        let source = &mut *self.nodes[primary];
        let journal = source.journal.clone();
        let Some(leader) = source.leader_mut() else { return Ok(()) };
        let commit = leader.commit;
        let Some(feeding) = &mut leader.feeding[replica] else { return Ok(()) };
        let (at, batch) = (feeding.sent, journal.0[feeding.sent]);
        feeding.sent += 1;
        let this = &mut *self.nodes[replica];
        let confirmed = &self.ghost.confirmed;
        ensure(journal.agrees(&this.journal.0, at) && this.journal.len() == at, Invariant::I3, || {
            format!("n{replica} gets a batch that does not follow")
        })?;
        this.journal.0.push(batch);
        // It is flushed at once: what was received and is not flushed is to others like what was not sent.
        let received = this.journal.len();
        if model.mutation != Some(Mutation::AckBeforeFlush) {
            this.durable = received;
            let commit = commit.min(received);
            ensure(commit <= this.commit || this.journal.agrees(confirmed, commit), Invariant::I9, || {
                format!("n{replica} takes {commit} batches for confirmed")
            })?;
            this.commit = this.commit.max(commit);
        }
        self.send_ack(replica, received);
        Ok(())
    }

    /// An acknowledgement arrives at the primary.
    pub(crate) fn acknowledge(&mut self, model: &ClusterModel, primary: usize, replica: usize) -> Outcome {
        let Some(leader) = self.nodes[primary].leader_mut() else { return Ok(()) };
        let Some(feeding) = &mut leader.feeding[replica] else { return Ok(()) };
        let Some(durable) = feeding.ack.take() else { return Ok(()) };
        let session = SessionId(replica as u64);
        // What is in the index matters to nobody here.
        let event = PrimaryEvent::Acked { session, durable: lsn(durable), applied: Lsn::ZERO };
        self.step(model, primary, NOW, event)
    }

    /// A replica goes to somebody who leads or believes to: promise, matching, the cut, and the session counts.
    pub(crate) fn connect(&mut self, model: &ClusterModel, primary: usize, replica: usize) -> Outcome {
        let this = &self.nodes[replica];
        let boot = boot_id(self.client(replica));
        let Some(leader) = self.nodes[primary].leader() else { return Ok(()) };
        // Who comes again before the primary has noticed that it was gone waits.
        if leader.feeding[replica].is_some() || leader.primary.may_connect(&id(replica), boot).is_err() {
            return Ok(());
        }
        let epoch = leader.epoch;
        let promised = this.promised;
        if promised > epoch && model.mutation != Some(Mutation::NoPromise) {
            return self.elect(model, primary, Event::PeerEpoch(promised));
        }
        if promised < epoch {
            self.nodes[replica].promised = epoch;
            let local = self.local(replica);
            self.elect(model, replica, Event::Local(local))?;
        }
        // It flushes what it has before it says anything.
        if self.nodes[replica].unflushed() > 0 {
            self.nodes[replica].durable = self.nodes[replica].journal.len();
        }
        let Some(at) = self.match_journals(model, primary, replica)? else { return Ok(()) };
        let this = &mut *self.nodes[replica];
        if let Some(process) = &mut this.process {
            process.role = Role::Replica(Following { primary, epoch });
        }
        let Some(leader) = self.nodes[primary].leader_mut() else { return Ok(()) };
        leader.feeding[replica] = Some(Feeding { sent: at, ack: None });
        let event = PrimaryEvent::Connected {
            replica: &id(replica),
            boot,
            session: SessionId(replica as u64),
            durable: lsn(at),
        };
        self.step(model, primary, NOW, event)
    }

    /// Where the replica's journal goes on, after it was cut if it has to be; none if they must not be brought together.
    fn match_journals(
        &mut self,
        model: &ClusterModel,
        primary: usize,
        replica: usize,
    ) -> Result<Option<usize>, (Invariant, String)> {
        let ours = &self.nodes[primary].journal;
        let theirs = &self.nodes[replica].journal;
        let log = ReplicaLog {
            history: theirs.history(),
            end: theirs.end(),
            chain_at_end: theirs.chain(),
            is_foreign_tail: false,
        };
        let source = ours.for_primary();
        let mut verdict = decide(&source, &log, None, &model.replication);
        if let Match::NeedChain { at, chain } = verdict {
            verdict = decide(&source, &log, Some(ours.find(at, chain)), &model.replication);
        }
        let (common, cuts) = match verdict {
            Match::StreamFrom(common) => (count(common.lsn), false),
            Match::Truncate(common) => (count(common.lsn), true),
            Match::Refuse(error) if model.mutation.is_none() => {
                return Err((Invariant::I3, format!("n{replica} and n{primary} do not match: {error}")));
            }
            Match::Refuse(_) => return Ok(None),
            Match::Bulk(_) | Match::NeedChain { .. } => unreachable!("there is one file"),
        };
        ensure(ours.agrees(&theirs.0, common), Invariant::I3, || {
            format!("n{replica} and n{primary} are said to agree up to {common}")
        })?;
        if !cuts {
            return Ok(Some(common));
        }
        let this = &mut *self.nodes[replica];
        ensure(common >= this.commit, Invariant::I11, || {
            format!("n{replica} is cut to {common}, of {} that it knows to be confirmed", this.commit)
        })?;
        this.journal.0.truncate(common);
        this.durable = common;
        self.ghost.has_cut = true;
        Ok(Some(common))
    }

    /// The node neither leads nor follows any more. Its peers notice later.
    pub(crate) fn drop_stream(&mut self, replica: usize) {
        if let Some(process) = &mut self.nodes[replica].process {
            process.role = Role::Idle;
        }
    }

    /// The primary's end of a stream closes.
    pub(crate) fn lose_stream(&mut self, model: &ClusterModel, primary: usize, replica: usize) -> Outcome {
        let Some(leader) = self.nodes[primary].leader_mut() else { return Ok(()) };
        leader.feeding[replica] = None;
        let event = PrimaryEvent::Disconnected { session: SessionId(replica as u64), orderly: false };
        self.step(model, primary, NOW, event)
    }

    // The oracle.

    /// What the record may become.
    fn check_write(&self, next: &ClusterRecord) -> Outcome {
        let last = &self.service.record;
        let required = last.minimum_replicas as usize + 1;
        ensure(
            next.in_sync.len() >= required || next.in_sync.is_superset(&last.in_sync),
            Invariant::I12,
            || format!("{} members are recorded, {required} are needed", next.in_sync.len()),
        )?;
        let primary = next.primary.as_ref().map(kahawai_election::PrimaryRef::replica);
        ensure(
            primary.as_ref().is_none_or(|primary| next.in_sync.contains(primary)),
            Invariant::I12,
            || "the primary is not in the recorded set".to_owned(),
        )?;
        if next.epoch == last.epoch {
            return Ok(());
        }
        ensure(next.epoch > last.epoch, Invariant::I1, || format!("epoch {} again", next.epoch))?;
        ensure(primary.is_some_and(|primary| last.in_sync.contains(&primary)), Invariant::I14, || {
            "an epoch is won by somebody outside the recorded set".to_owned()
        })?;
        ensure(next.in_sync == last.in_sync, Invariant::I12, || "a new epoch changes the set".to_owned())
    }

    /// A primary tells its clients that the first `at` batches are safe.
    fn confirm(&mut self, node: usize, at: usize) -> Outcome {
        let this = &self.nodes[node];
        let Some(leader) = this.leader() else { return Ok(()) };
        ensure(at >= leader.marker, Invariant::I5, || {
            format!("{at} batches are confirmed, the marker is at {}", leader.marker)
        })?;
        let minimum = self.service.record.minimum_replicas as usize;
        let on_all = |set: Nodes| {
            set.iter().all(|member| {
                let member = &self.nodes[member];
                member.durable >= at && this.journal.agrees(&member.journal.0, at)
            })
        };
        ensure(leader.recorded.len() > minimum && on_all(leader.recorded), Invariant::I5, || {
            format!("{at} batches are confirmed by n{node}, not flushed on {:?}", leader.recorded)
        })?;
        if let Some(proposed) = leader.proposal {
            ensure(proposed.len() > minimum && on_all(proposed), Invariant::I13, || {
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

    /// What holds in every state.
    fn check(&self) -> Outcome {
        let confirmed = &self.ghost.confirmed;
        for member in &self.service.record.in_sync {
            let node = &self.nodes[number(member)];
            let has_all = node.durable >= confirmed.len() && node.journal.agrees(confirmed, confirmed.len());
            ensure(has_all, Invariant::I6, || format!("{member} may lead and lacks what was confirmed"))?;
        }
        for (number, node) in self.nodes.iter().enumerate() {
            let is_in_order = node.commit <= node.durable && node.durable <= node.journal.len();
            ensure(is_in_order, Invariant::I10, || {
                format!(
                    "n{number} has {} batches, {} flushed, {} committed",
                    node.journal.len(),
                    node.durable,
                    node.commit
                )
            })?;
            for other in &self.nodes[..number] {
                check_journals(&node.journal, &other.journal)?;
            }
        }
        Ok(())
    }
}
