//! Several electors over one modelled service. Everything between them takes its time: what an elector asks for is done
//! later, and the answer arrives later still.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use kahawai_election::memory::{Hub, MemoryProvider};
use kahawai_election::{
    BoxFuture, ClusterRecord, Condition, Effect, Elector, Event, Fence, Local, Provider, ProviderError,
    Refusal, Request, Settings, Status, StepDownReason, Timing,
};
use kahawai_testkit::Random;
use kahawai_types::{BootId, ClusterId, Epoch, Lsn, Millis, NodeId, ReplicaId, StoreId};

pub(crate) const SESSION_MS: Millis = 2_000;

type Campaign = (u64, BoxFuture<'static, Result<Fence, ProviderError>>);

/// A node: its disk, and its process if it runs.
pub(crate) struct Node {
    pub(crate) me: ReplicaId,
    pub(crate) local: Local,
    saved: Option<ClusterRecord>,
    pub(crate) process: Option<Process>,
}

pub(crate) struct Process {
    pub(crate) elector: Elector,
    boot: BootId,
    provider: Arc<MemoryProvider>,
    /// Asked for, not done.
    tasks: Vec<Effect>,
    /// Done, not known.
    answers: Vec<Event>,
    campaign: Option<Campaign>,
    /// What the node believes: under which epoch it leads.
    pub(crate) leads: Option<Epoch>,
    pub(crate) follows: Option<(Epoch, Option<NodeId>)>,
    /// It was told to step down, and has not said that it did.
    closing: bool,
    /// Changes of the in-sync set whose outcome is not known.
    open_proposals: BTreeSet<u64>,
    /// The same of an operator's: these only make it smaller.
    open_removals: BTreeSet<u64>,
}

pub(crate) struct World {
    pub(crate) hub: Arc<Hub>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) random: Random,
    boots: u128,
    requests: u64,
    /// Who led in which epoch.
    pub(crate) reigns: BTreeMap<Epoch, (NodeId, BootId)>,
    last_record: Option<ClusterRecord>,
    /// What happened to whom, for a failure to show.
    pub(crate) story: String,
    pub(crate) answers: BTreeMap<u64, Result<(), Refusal>>,
    pub(crate) reasons: Vec<StepDownReason>,
    /// Somebody takes grants away from outside, against which no deadline helps.
    pub(crate) grants_are_taken: bool,
    pub(crate) service_lost_state: bool,
    pub(crate) operator_forced: bool,
}

pub(crate) fn name(index: usize) -> NodeId {
    NodeId(format!("n{index}"))
}

fn deadline(process: &Process) -> Millis {
    process.elector.grant().map_or(Millis::MIN, |grant| process.provider.deadline(grant))
}

fn poll<T>(future: &mut BoxFuture<'_, T>) -> Option<T> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

fn now_or_never<T>(mut future: BoxFuture<'_, T>) -> T {
    poll(&mut future).expect("the model answers at once")
}

impl World {
    pub(crate) fn new(seed: u64, nodes: usize) -> Self {
        let nodes = (0..nodes).map(|index| Node {
            me: ReplicaId { node: name(index), store: StoreId(100 + index as u128) },
            local: Local {
                cluster_id: ClusterId(1_000 + index as u128),
                promised: Epoch(0),
                last_epoch: Epoch(0),
                end: Lsn(1 << 32),
                journal_is_empty: true,
                condition: Condition::Usable,
            },
            saved: None,
            process: None,
        });
        Self {
            hub: Hub::new(SESSION_MS),
            nodes: nodes.collect(),
            random: Random::new(seed),
            boots: 0,
            requests: 0,
            reigns: BTreeMap::new(),
            last_record: None,
            story: String::new(),
            answers: BTreeMap::new(),
            reasons: Vec::new(),
            grants_are_taken: false,
            service_lost_state: false,
            operator_forced: false,
        }
    }

    fn tell(&mut self, index: usize, what: impl std::fmt::Debug) {
        let what = format!("{what:?}");
        let start: String = what.chars().take(240).collect();
        writeln!(self.story, "{:>7} n{index} {start}", self.hub.now()).unwrap();
    }

    /// A process starts, after the one before was killed. The old session lives until it expires.
    pub(crate) fn restart(&mut self, index: usize) {
        self.boots += 1;
        let boot = BootId(self.boots << 64);
        let node = &mut self.nodes[index];
        let settings = Settings {
            me: node.me.clone(),
            boot,
            address: format!("kdbr://{}", node.me.node),
            clients: vec![],
            priority: 0,
            minimum_replicas: 0,
            timing: Timing { recover_ms: 4_000, ..Timing::default() },
        };
        node.process = Some(Process {
            elector: Elector::new(settings, node.local.clone(), node.saved.as_ref()),
            boot,
            provider: Arc::new(self.hub.open(&node.me.node)),
            tasks: vec![],
            answers: vec![],
            campaign: None,
            leads: None,
            follows: None,
            closing: false,
            open_proposals: BTreeSet::new(),
            open_removals: BTreeSet::new(),
        });
        self.tell(index, "starts");
    }

    pub(crate) fn kill(&mut self, index: usize) {
        self.nodes[index].process = None;
        self.tell(index, "is killed");
    }

    /// Gives the elector one event, and looks at what it wants.
    pub(crate) fn give(&mut self, index: usize, event: Event) {
        let now = self.hub.now();
        self.tell(index, &event);
        let Some(process) = &mut self.nodes[index].process else { return };
        let mut effects = Vec::new();
        process.elector.step(now, event, &mut effects);
        for effect in effects {
            self.tell(index, &effect);
            self.carry_out(index, effect);
        }
        self.check();
    }

    /// What a node does at once; the rest takes time.
    fn carry_out(&mut self, index: usize, effect: Effect) {
        let node = &mut self.nodes[index];
        let process = node.process.as_mut().unwrap();
        match effect {
            Effect::Lead { epoch, record, unclean } => {
                assert!(process.leads.is_none() && !process.closing, "leads twice at once");
                assert!(unclean || record.in_sync.contains(&node.me), "not in the set");
                assert!(record.is_led_by(&node.me, process.boot, epoch));
                assert!(epoch > node.local.promised, "an epoch that was promised to somebody already");
                process.leads = Some(epoch);
                process.follows = None;
                node.local.promised = epoch;
                let reign = (node.me.node.clone(), process.boot);
                let before = self.reigns.insert(epoch, reign);
                assert_eq!(before, None, "two reigns in one epoch");
            }
            Effect::StepDown(reason) => {
                assert!(process.leads.take().is_some(), "steps down without leading");
                process.closing = true;
                self.reasons.push(reason);
            }
            Effect::Follow { epoch, primary } => {
                assert!(process.leads.is_none() && !process.closing, "follows while it leads");
                process.follows = Some((epoch, primary.map(|primary| primary.node)));
            }
            Effect::Save(bytes) => {
                let record = ClusterRecord::decode(&bytes).unwrap();
                assert!(
                    node.saved.as_ref().is_none_or(|saved| saved.age() <= record.age()),
                    "saves an old one"
                );
                node.saved = Some(record);
            }
            Effect::Answer { id, outcome } => {
                process.open_proposals.remove(&id);
                process.open_removals.remove(&id);
                assert_eq!(self.answers.insert(id, outcome), None, "answered twice");
            }
            Effect::Publish(bytes) => process.provider.publish(bytes),
            Effect::Changed(_) | Effect::Status(_) => {}
            Effect::Read
            | Effect::ReadPresence
            | Effect::Create { .. }
            | Effect::Cas { .. }
            | Effect::Campaign { .. }
            | Effect::Resign => process.tasks.push(effect),
        }
    }

    /// Does one thing that an elector asked for.
    pub(crate) fn work(&mut self, index: usize) -> bool {
        let Some(process) = &mut self.nodes[index].process else { return false };
        if process.tasks.is_empty() {
            return false;
        }
        // In any order, but for the campaign and its end.
        let mut pick = self.random.below(process.tasks.len() as u64) as usize;
        if matches!(process.tasks[pick], Effect::Campaign { .. } | Effect::Resign) {
            let is_queue = |task: &Effect| matches!(task, Effect::Campaign { .. } | Effect::Resign);
            pick = process.tasks.iter().position(is_queue).unwrap();
        }
        let task = process.tasks.remove(pick);
        let provider = process.provider.clone();
        match task {
            Effect::Read => process.answers.push(Event::Record(now_or_never(provider.read()))),
            Effect::ReadPresence => process.answers.push(Event::Presence(now_or_never(provider.presence()))),
            Effect::Create { op, record } => {
                let result = now_or_never(provider.create(record));
                process.answers.push(Event::Written { op, result });
            }
            Effect::Cas { op, expected, record, fence } => {
                let result = now_or_never(provider.cas(expected, record, fence));
                process.answers.push(Event::Written { op, result });
            }
            Effect::Campaign { id } => {
                process.campaign = Some((id, Box::pin(async move { provider.campaign().await })));
            }
            Effect::Resign => now_or_never(provider.resign()),
            _ => unreachable!("done at once"),
        }
        self.check();
        true
    }

    /// Lets one answer or event arrive.
    pub(crate) fn hear(&mut self, index: usize) -> bool {
        let Some(process) = &mut self.nodes[index].process else { return false };
        if let Some((id, campaign)) = &mut process.campaign
            && let Some(result) = poll(campaign)
        {
            let event = Event::Campaign { id: *id, result };
            process.campaign = None;
            process.answers.push(event);
        }
        let answers = process.answers.len() as u64;
        let event = if answers > 0 && self.random.chance(2) {
            None
        } else {
            poll(&mut process.provider.next_event()).map(Event::Provider)
        };
        let event = match event {
            Some(event) => event,
            None if answers > 0 => process.answers.remove(self.random.below(answers) as usize),
            None => return false,
        };
        self.give(index, event);
        true
    }

    pub(crate) fn tick(&mut self, index: usize) {
        let Some(process) = &self.nodes[index].process else { return };
        let deadline = deadline(process);
        self.give(index, Event::Tick { deadline });
    }

    /// The node does what it owes the elector: promotes, closes, replicates.
    pub(crate) fn live(&mut self, index: usize) {
        let leader_end = self.nodes.iter().filter(|node| node.leads()).map(|node| node.local.end).max();
        let node = &mut self.nodes[index];
        let Some(process) = &mut node.process else { return };
        if process.closing {
            process.closing = false;
            let local = node.local.clone();
            return self.give(index, Event::SteppedDown(local));
        }
        if let Some(epoch) = process.leads {
            node.local.journal_is_empty = false;
            node.local.last_epoch = epoch;
            node.local.end.0 += 1;
            node.local.cluster_id = process.elector.record().unwrap().cluster_id;
        } else if let (Some((epoch, Some(_))), Some(end)) = (&process.follows, leader_end) {
            node.local.promised = node.local.promised.max(*epoch);
            node.local.last_epoch = *epoch;
            node.local.end = end;
            node.local.journal_is_empty = false;
            node.local.cluster_id = process.elector.record().map_or(node.local.cluster_id, |r| r.cluster_id);
        }
        let local = node.local.clone();
        self.give(index, Event::Local(local));
    }

    pub(crate) fn request(&mut self, index: usize, request: Request) -> u64 {
        self.requests += 1;
        let id = self.requests;
        if let Some(process) = &mut self.nodes[index].process {
            match request {
                Request::InSync(_) => _ = process.open_proposals.insert(id),
                Request::Without(_) | Request::RemoveMember(_) => _ = process.open_removals.insert(id),
                _ => {}
            }
            self.give(index, Event::Request { id, request });
        }
        id
    }

    /// What the service holds.
    pub(crate) fn record(&self) -> Option<ClusterRecord> {
        self.hub.peek().map(|bytes| ClusterRecord::decode(&bytes).unwrap())
    }

    pub(crate) fn status(&self, index: usize) -> Option<&Status> {
        self.nodes[index].process.as_ref().map(|process| process.elector.status())
    }

    /// What must hold at every moment.
    fn check(&mut self) {
        let record = self.record();
        if let (Some(record), Some(last)) = (&record, &self.last_record)
            && !self.service_lost_state
            && record.last_op != last.last_op
        {
            assert!(record.age() > last.age(), "the record went back");
            assert_eq!(record.version, last.version + 1, "a write on something else than the last version");
            let required = record.minimum_replicas as usize + 1;
            let is_forced = record.unclean_generation > last.unclean_generation;
            assert!(is_forced == self.operator_forced || !is_forced);
            if !is_forced {
                assert!(
                    record.in_sync.len() >= required || record.in_sync.is_superset(&last.in_sync),
                    "shrunk below the minimum"
                );
                if record.epoch > last.epoch {
                    let primary = record.primary.as_ref().unwrap();
                    assert!(last.in_sync.contains(&primary.replica()), "led by an outsider");
                    assert_eq!(record.in_sync, last.in_sync, "a new epoch changed the set");
                }
            }
        }
        let now = self.hub.now();
        let mut open_gates = 0;
        for node in &self.nodes {
            let Some(process) = &node.process else { continue };
            assert_eq!(process.leads, process.elector.leads());
            if process.leads.is_some() && now < deadline(process) {
                open_gates += 1;
            }
            // Whatever the elector says is settled is what the service holds: a set that counts is never unknown.
            if let (Some(epoch), true, Some(record)) =
                (process.leads, process.open_proposals.is_empty(), &record)
                && record.is_led_by(&node.me, process.boot, epoch)
            {
                let known = &process.elector.record().unwrap().in_sync;
                // While an operator takes somebody out, more are waited for than the record names.
                let is_larger = !process.open_removals.is_empty() && known.is_superset(&record.in_sync);
                assert!(
                    *known == record.in_sync || is_larger,
                    "another set is recorded: {:?}, known is {known:?}",
                    record.in_sync
                );
            }
        }
        assert!(open_gates <= 1 || self.grants_are_taken, "two could serve at once");
        self.last_record = record;
    }

    /// Everybody gets everything, in order, until `done` or too late.
    pub(crate) fn settle(&mut self, for_ms: Millis, done: impl Fn(&Self) -> bool) -> bool {
        let until = self.hub.now() + for_ms;
        while self.hub.now() < until {
            let mut has_moved = true;
            let mut rounds = 0;
            while has_moved && rounds < 1_000 {
                rounds += 1;
                has_moved = false;
                for index in 0..self.nodes.len() {
                    has_moved |= self.work(index) | self.hear(index);
                }
            }
            if done(self) {
                return true;
            }
            self.hub.advance(25);
            for index in 0..self.nodes.len() {
                self.live(index);
                self.tick(index);
            }
        }
        false
    }

    pub(crate) fn leader(&self) -> Option<usize> {
        let mut leaders = (0..self.nodes.len()).filter(|&index| self.nodes[index].leads());
        let leader = leaders.next();
        if leaders.next().is_some() { None } else { leader }
    }

    /// One leads, and everybody else who runs follows it.
    pub(crate) fn is_at_peace(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let epoch = self.nodes[leader].process.as_ref().and_then(|process| process.leads);
        self.nodes.iter().enumerate().all(|(index, node)| match &node.process {
            Some(process) if index != leader => process.follows.as_ref().is_some_and(|(follows, primary)| {
                Some(*follows) == epoch && primary.as_ref() == Some(&name(leader))
            }),
            _ => true,
        })
    }
}

impl Node {
    pub(crate) fn leads(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.leads.is_some())
    }
}
