//! The workload against one broker on one store: connections break, the process is killed, the power fails. Whatever happens, every
//! check of the history passes; and what a broken broker would do is found.

#![allow(clippy::unwrap_used, reason = "tests, helpers included")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kahawai_env::{Entropy, Files};
use kahawai_journal::{JournalOptions, NewEpoch, Writer};
use kahawai_message::storage::Storage;
use kahawai_sim::clients::{ClientEffect, ClientEvent, Clients, Shape};
use kahawai_sim::service::{Service, ServiceOptions};
use kahawai_sim::wire::{AckOf, Answer, Ask, ClientId, Place};
use kahawai_sim::{Micros, Violation};
use kahawai_store::{Follower, OpenOptions, Opened, OpenedFollower, Store};
use kahawai_testkit::{MemoryFiles, Random};
use kahawai_types::{Epoch, Lsn};
use xxhash_rust::xxh3::xxh3_64;

/// What is wrong with the broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mutation {
    Nothing,
    /// A batch that was confirmed is not there after a kill.
    LostBatch,
    /// Receipts leave, and messages are seen, before the batch is written; then it is killed.
    EarlyReceipt,
    /// What was rolled back is committed.
    RollbackCommits,
    /// A commit is answered and not done.
    CommitForgotten,
    /// Acknowledgements are answered and not done.
    AckDropped,
    /// An acknowledgement in a transaction takes effect at once.
    AckOutsideOfTransaction,
    /// A send in a transaction is left out.
    HalfTransaction,
    /// A send takes effect before its transaction is committed.
    SendOutsideOfTransaction,
    /// Repetitions are not recognised.
    NoDuplicateDetection,
    /// Two deliveries change places.
    Swapped,
    /// No delivery says that it is not the first.
    NoRedeliveryFlag,
    /// Selectors are not looked at.
    NoSelector,
    /// A subscription is answered and does not exist.
    SubscriptionForgotten,
    /// A message in memory is forgotten.
    MemoryForgotten,
    /// A refused message vanishes.
    NoDeadLetter,
}

/// Random numbers from a seed.
#[derive(Debug)]
struct Seeded(Mutex<Random>);

impl Entropy for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        bytes.copy_from_slice(&self.0.lock().unwrap().bytes(bytes.len()));
        Ok(())
    }
}

#[derive(Debug)]
enum Event {
    ToClient(ClientId, u64, ClientEvent),
    ToNode(ClientId, u64, Ask),
    /// The node takes the connection, if it is there.
    Dial(ClientId, u64, usize),
    /// The node hears that a connection has ended.
    Gone(ClientId, u64),
    Wake(ClientId),
    Flush,
    Apply,
    Tick,
    Breaks,
    Kill,
    /// The end of a node that has said too much.
    Liar,
    Restart,
    Upkeep,
}

/// A client's connection: a number for each, and the time up to which each direction carries what is sent.
#[derive(Clone, Copy, Default, Debug)]
struct Connection {
    number: u64,
    up_last: Micros,
    down_last: Micros,
    cut: bool,
}

struct Node {
    store: Store,
    writer: Writer,
    service: Service,
    durable: Lsn,
    /// Nothing is written before.
    flushes_from: Micros,
}

struct Run {
    random: Random,
    mutation: Mutation,
    files: MemoryFiles,
    /// As the files were before the last batch.
    before: Option<MemoryFiles>,
    node: Option<Node>,
    reigns: u64,
    clients: Clients,
    connections: Vec<Connection>,
    /// Of the node: which connections it has taken.
    taken: Vec<u64>,
    queue: BTreeMap<(Micros, u64), Event>,
    queued: u64,
    now: Micros,
    faults: bool,
    effects: Vec<ClientEffect>,
    trace: u64,
    steps: u64,
    /// How often somebody was found to be held back.
    blocked: u64,
    /// Answers that left before a reign's beginning was committed.
    unsettled: u64,
    /// Tells what happens.
    print: bool,
}

/// Opens the store as a single node does, or as a replica that takes over: then what it holds is committed with its marker.
fn open(files: &MemoryFiles, random: &mut Random) -> (Store, Writer) {
    let directory: Arc<dyn Files> = Arc::new(files.clone());
    let journal = JournalOptions {
        file_bytes_max: 16 << 10,
        batch_bytes_max: 2048,
        preallocate: false,
        ..JournalOptions::default()
    };
    let options = OpenOptions { journal, ..OpenOptions::default() };
    let entropy = Seeded(Mutex::new(Random::new(random.next_u64())));
    if random.chance(2) {
        let Opened { store, writer, .. } = kahawai_store::open(&directory, &entropy, &options).unwrap();
        return (store, writer);
    }
    let opened = Follower::open(&directory, &entropy, &options, Lsn::ZERO).unwrap();
    let OpenedFollower { follower, writer, identity, .. } = opened;
    let epoch = follower.reader().epochs().unwrap().last().map_or(Epoch(0), |last| last.epoch).next();
    let promoted = follower.promote(NewEpoch {
        cluster_id: identity.cluster_id,
        epoch,
        node_id: identity.node_id.clone(),
        store_id: identity.store_id,
        boot_id: identity.boot_id,
        revision: 0,
        unclean: false,
    });
    (promoted.unwrap().store, writer)
}

impl Run {
    fn new(seed: u64, mutation: Mutation) -> Self {
        let mut random = Random::new(seed);
        let shape = Shape { rarely: 20 + random.below(200), ..Shape::SMALL };
        // Of the two nodes that clients know, one is never there.
        let clients = Clients::new(random.next_u64(), 2, shape);
        let count = clients.count() as usize;
        let mut run = Self {
            random,
            mutation,
            files: MemoryFiles::new(),
            before: None,
            node: None,
            reigns: 0,
            clients,
            connections: vec![Connection::default(); count],
            taken: vec![0; count],
            queue: BTreeMap::new(),
            queued: 0,
            now: 0,
            faults: true,
            effects: Vec::new(),
            trace: 0,
            steps: 0,
            blocked: 0,
            unsettled: 0,
            print: std::env::var_os("SIM_PRINT").is_some(),
        };
        run.restart();
        run.clients.begin(0, &mut run.effects);
        run.carry_out();
        for event in [Event::Flush, Event::Tick, Event::Upkeep] {
            run.at(1000, event);
        }
        run.at_random(400_000, Event::Breaks);
        run.at_random(3_000_000, Event::Kill);
        run
    }

    fn at(&mut self, delay: Micros, event: Event) {
        self.queued += 1;
        self.queue.insert((self.now + delay, self.queued), event);
    }

    fn at_random(&mut self, mean: Micros, event: Event) {
        let delay = 1 + self.random.below(2 * mean);
        self.at(delay, event);
    }

    fn restart(&mut self) {
        let (mut store, writer) = open(&self.files, &mut self.random);
        self.reigns += 1;
        let now = (self.now / 1000) as i64;
        let service = Service::begin(now, &mut store, ServiceOptions::small(self.reigns)).unwrap();
        let durable = writer.written();
        // So that clients meet a reign whose beginning is not committed.
        let flushes_from = self.now + self.random.below(600_000);
        self.node = Some(Node { store, writer, service, durable, flushes_from });
    }

    /// The process dies; the machine perhaps, too.
    fn kill(&mut self) {
        let Some(node) = self.node.take() else { return };
        drop(node);
        self.files = match (self.mutation, self.before.take()) {
            (Mutation::LostBatch | Mutation::EarlyReceipt, Some(before)) => before,
            _ if self.random.chance(2) => self.files.kill(),
            _ => self.files.crash(self.random.next_u64()),
        };
        for index in 0..self.connections.len() {
            if self.taken[index] == self.connections[index].number {
                self.close(index, true);
            }
        }
        self.taken.fill(0);
        let delay = self.random.below(400_000);
        self.at(delay, Event::Restart);
    }

    /// The client hears of its connection's end, sooner or later or not at all.
    fn close(&mut self, index: usize, sooner: bool) {
        let connection = self.connections[index];
        self.connections[index].cut = true;
        if sooner || !self.random.chance(3) {
            let delay = (connection.down_last.saturating_sub(self.now)) + self.random.below(50_000);
            let client = ClientId(index as u32);
            self.at(delay, Event::ToClient(client, connection.number, ClientEvent::Closed));
        }
    }

    /// When what is sent now on a connection arrives.
    fn arrival(random: &mut Random, now: Micros, last: &mut Micros) -> Micros {
        let delay = if random.chance(50) { random.below(60_000) } else { 50 + random.below(400) };
        *last = (now + delay).max(*last);
        *last - now
    }

    fn carry_out(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                ClientEffect::Connect { client, node } => {
                    let connection = &mut self.connections[client.0 as usize];
                    let number = connection.number + 1;
                    *connection = Connection { number, ..Connection::default() };
                    self.at_random(300, Event::Dial(client, number, node));
                }
                ClientEffect::Ask(client, ask) => {
                    let connection = &mut self.connections[client.0 as usize];
                    if connection.cut {
                        continue;
                    }
                    let (number, last) = (connection.number, &mut connection.up_last);
                    let delay = Self::arrival(&mut self.random, self.now, last);
                    self.at(delay, Event::ToNode(client, number, ask));
                }
                ClientEffect::Close(client) => {
                    let connection = &mut self.connections[client.0 as usize];
                    let number = connection.number;
                    let delay = Self::arrival(&mut self.random, self.now, &mut connection.up_last);
                    // What comes now finds nobody.
                    connection.number += 1;
                    connection.cut = true;
                    self.at(delay, Event::Gone(client, number));
                }
                ClientEffect::WakeAt(client, at) => {
                    let delay = at - self.now;
                    self.at(delay, Event::Wake(client));
                }
            }
        }
    }

    fn ship(&mut self) {
        let Some(node) = &mut self.node else { return };
        assert_eq!(node.service.failed(), None);
        let answers: Vec<_> = node.service.answers().collect();
        let is_settled = node.store.is_settled();
        self.unsettled += if is_settled { 0 } else { answers.len() as u64 };
        let mut held: Option<(ClientId, Answer)> = None;
        for (client, mut answer) in answers {
            if let Answer::Delivered(delivered) = &mut answer {
                // A topic that nobody has subscribed to durably stores nothing.
                let is_stored = delivered.traits.1 && !matches!(delivered.place, Place::Topic(_));
                assert!(is_settled || !is_stored, "it may turn out not to exist");
                match self.mutation {
                    Mutation::NoRedeliveryFlag => delivered.redelivery = 0,
                    Mutation::Swapped if held.is_none() && self.random.chance(20) => {
                        held = Some((client, answer));
                        continue;
                    }
                    _ => {}
                }
            }
            self.ship_one(client, answer);
            if let Some((other, _)) = held
                && other == client
                && let Some((client, answer)) = held.take()
            {
                self.ship_one(client, answer);
            }
        }
        if let Some((client, answer)) = held {
            self.ship_one(client, answer);
        }
    }

    fn ship_one(&mut self, client: ClientId, answer: Answer) {
        let index = client.0 as usize;
        let connection = &mut self.connections[index];
        if connection.cut || self.taken[index] != connection.number {
            return;
        }
        let (number, last) = (connection.number, &mut connection.down_last);
        let delay = Self::arrival(&mut self.random, self.now, last);
        self.at(delay, Event::ToClient(client, number, ClientEvent::Answer(answer)));
    }

    /// What a broken broker makes of a request.
    fn mutate(&mut self, ask: Ask) -> Ask {
        let rarely = self.random.chance(10);
        match (self.mutation, ask) {
            (Mutation::RollbackCommits, Ask::Rollback { op, transaction }) => Ask::Commit { op, transaction },
            (Mutation::CommitForgotten, Ask::Commit { op, transaction }) if rarely => {
                Ask::Rollback { op, transaction }
            }
            (Mutation::AckDropped, Ask::Acknowledge { op, consumer, transaction, .. }) if rarely => {
                Ask::Acknowledge { op, consumer, acks: Vec::new(), transaction }
            }
            (Mutation::AckOutsideOfTransaction, Ask::Acknowledge { op, consumer, acks, .. }) => {
                Ask::Acknowledge { op, consumer, acks, transaction: None }
            }
            (Mutation::HalfTransaction, Ask::Send { op, transaction: Some(_), .. }) if rarely => {
                Ask::Heartbeat { op }
            }
            (Mutation::SendOutsideOfTransaction, Ask::Send { op, parcel, .. }) => {
                Ask::Send { op, parcel, transaction: None }
            }
            (Mutation::NoDuplicateDetection, Ask::Send { op, mut parcel, transaction }) => {
                parcel.number = None;
                Ask::Send { op, parcel, transaction }
            }
            (Mutation::NoSelector, Ask::Subscribe { op, consumer, mut wanted }) => {
                wanted.colour = None;
                Ask::Subscribe { op, consumer, wanted }
            }
            (Mutation::SubscriptionForgotten, Ask::Subscribe { op, wanted, .. })
                if wanted.durable.is_some() =>
            {
                Ask::Heartbeat { op }
            }
            (Mutation::MemoryForgotten, Ask::Send { op, parcel, transaction: None })
                if !parcel.persistent && rarely =>
            {
                Ask::Heartbeat { op }
            }
            (Mutation::NoDeadLetter, Ask::Acknowledge { op, consumer, mut acks, transaction: None }) => {
                for (_, what) in &mut acks {
                    if *what == AckOf::Rejected {
                        *what = AckOf::Consumed;
                    }
                }
                Ask::Acknowledge { op, consumer, acks, transaction: None }
            }
            (_, ask) => ask,
        }
    }

    fn step(&mut self) {
        let ((at, _), event) = self.queue.pop_first().unwrap();
        self.now = at;
        self.steps += 1;
        let now = (self.now / 1000) as i64;
        if self.print {
            println!("{at} {event:?}");
        }
        match event {
            Event::ToClient(client, number, event) => {
                if self.connections[client.0 as usize].number == number {
                    self.trace = xxh3_64(format!("{}{at}{client:?}{event:?}", self.trace).as_bytes());
                    self.clients.step(at, client, event, &mut self.effects);
                }
            }
            Event::Wake(client) => self.clients.step(at, client, ClientEvent::Wake, &mut self.effects),
            Event::Dial(client, number, node) => {
                let index = client.0 as usize;
                let event = match &mut self.node {
                    Some(there) if node == 0 => {
                        if self.taken[index] != 0 {
                            there.service.gone(now, &mut there.store, client);
                        }
                        self.taken[index] = number;
                        ClientEvent::Connected
                    }
                    _ => ClientEvent::Refused,
                };
                self.at_random(300, Event::ToClient(client, number, event));
            }
            Event::ToNode(client, number, ask) => {
                if self.taken[client.0 as usize] == number {
                    let ask = self.mutate(ask);
                    if let Some(node) = &mut self.node {
                        node.service.ask(now, &mut node.store, client, ask);
                    }
                }
            }
            Event::Gone(client, number) => {
                if self.taken[client.0 as usize] == number
                    && let Some(node) = &mut self.node
                {
                    self.taken[client.0 as usize] = 0;
                    node.service.gone(now, &mut node.store, client);
                }
            }
            Event::Flush => self.flush(now),
            Event::Apply => {
                if let Some(node) = &mut self.node {
                    let count = 1 + self.random.below(40) as usize;
                    if node.service.apply(now, &mut node.store, node.durable, count) {
                        self.at_random(100, Event::Apply);
                    }
                }
            }
            Event::Tick => {
                if let Some(node) = &mut self.node {
                    node.service.tick(now, &mut node.store);
                    self.blocked += u64::from(!node.service.broker().status().blocked.is_empty());
                }
                self.at(50_000, Event::Tick);
            }
            Event::Breaks => {
                let index = self.random.below(self.connections.len() as u64) as usize;
                let connection = self.connections[index];
                if self.faults && !connection.cut {
                    self.close(index, false);
                    let delay = self.random.below(2_000_000);
                    self.at(delay, Event::Gone(ClientId(index as u32), connection.number));
                }
                self.at_random(400_000, Event::Breaks);
            }
            Event::Kill => {
                if self.faults {
                    self.kill();
                    self.at_random(3_000_000, Event::Kill);
                }
            }
            Event::Liar => {
                self.kill();
                self.at(1000, Event::Flush);
            }
            Event::Restart => self.restart(),
            Event::Upkeep => self.upkeep(),
        }
        self.ship();
        self.carry_out();
    }

    fn flush(&mut self, now: i64) {
        if let Some(node) = &mut self.node {
            if self.mutation == Mutation::EarlyReceipt && self.faults && self.random.chance(20) {
                let end = node.store.appended_end();
                if end > node.durable {
                    self.before = Some(self.files.fork());
                    while node.service.apply(now, &mut node.store, end, usize::MAX) {}
                    self.at(1500, Event::Liar);
                    return;
                }
            }
            if self.now >= node.flushes_from
                && let Some(batch) = node.writer.try_next(node.durable).unwrap()
            {
                if self.mutation == Mutation::LostBatch {
                    self.before = Some(self.files.fork());
                }
                node.durable = node.writer.write(batch).unwrap();
                self.at_random(200, Event::Apply);
            }
        }
        self.at_random(1500, Event::Flush);
    }

    /// Checkpoints, collection, deletion, as the upkeep thread's.
    fn upkeep(&mut self) {
        if let Some(node) = &mut self.node {
            if self.random.chance(2) {
                if !node.store.is_settled() {
                    return self.at_random(1_500_000, Event::Upkeep);
                }
                let checkpoint = node.store.begin_checkpoint(false);
                let header = checkpoint.header;
                node.store.index().write(checkpoint).unwrap();
                node.store.finish_checkpoint(header);
            } else {
                node.store.collect().unwrap();
            }
            for file in node.store.to_retire() {
                node.store.journal().retire(file).unwrap();
                node.store.retired(file);
            }
        }
        self.at_random(1_500_000, Event::Upkeep);
    }

    /// What the broker holds.
    fn status(&self) -> String {
        let Some(node) = &self.node else { return "there is no broker".to_owned() };
        let (broker, store) = (node.service.broker(), &node.store);
        let places = broker.destination_statuses(None, usize::MAX, store);
        format!("{places:#?}\n{:#?}\n{:#?}", broker.consumer_statuses(), broker.status())
    }

    /// Is anything left, where everything was consumed?
    fn left(&self) -> u64 {
        let Some(Node { store, .. }) = &self.node else { return 0 };
        store.destinations().iter().map(|(key, ..)| store.count(*key)).sum()
    }

    /// Lets it run with faults, then without until nothing moves any more.
    fn run(&mut self, faults_us: Micros) -> Result<(), Violation> {
        while self.now < faults_us {
            self.step();
            if let Some(violation) = self.clients.history().violation() {
                return Err(violation.clone());
            }
        }
        self.faults = false;
        self.clients.quiesce();
        let end = self.now + 120_000_000;
        while !self.clients.is_drained() {
            self.step();
            if let Some(violation) = self.clients.history().violation() {
                return Err(violation.clone());
            }
            assert!(self.now < end, "the clients never come to an end");
        }
        self.clients.history().check()
    }
}

/// `SIM_SEED=7` or `SIM_SEED=1000-2000` runs these instead; `SIM_PRINT=1` tells all that happens.
fn chosen() -> Option<std::ops::Range<u64>> {
    let text = std::env::var("SIM_SEED").ok()?;
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    Some(first.parse().ok()?..last.parse::<u64>().ok()? + 1)
}

const SEEDS: u64 = 200;
const FAULTS_US: Micros = 6_000_000;

#[test]
fn whatever_breaks_every_history_is_as_it_must_be() {
    let (mut steps, mut operations, mut deliveries) = (0, 0, 0);
    let (mut blocked, mut unsettled) = (0, 0);
    let mut kinds = BTreeMap::new();
    for seed in chosen().unwrap_or(0..SEEDS) {
        let mut run = Run::new(seed, Mutation::Nothing);
        if let Err(violation) = run.run(FAULTS_US) {
            panic!("seed {seed}, at {} us: {violation}\n{}", run.now, run.status());
        }
        assert_eq!(run.left(), 0, "seed {seed}: messages left\n{}", run.status());
        steps += run.steps;
        for operation in run.clients.history().operations() {
            let kind = format!("{:?}", operation.kind);
            let kind = kind.split('(').next().unwrap_or_default().to_owned();
            *kinds.entry((kind, format!("{:?}", operation.outcome))).or_insert(0) += 1;
        }
        blocked += run.blocked;
        unsettled += run.unsettled;
        operations += run.clients.history().operations().len();
        deliveries += run.clients.history().deliveries();
    }
    println!("{steps} steps, {operations} operations, {deliveries} deliveries");
    println!("{blocked} times held back, {unsettled} answers of a reign that was not settled");
    println!("{kinds:#?}");
    if chosen().is_none() {
        // What the checks are about does happen.
        for kind in ["Send", "Acknowledge", "Commit", "Rollback", "Subscribe", "Remove"] {
            for outcome in ["Ok", "Unknown"] {
                let key = (kind.to_owned(), outcome.to_owned());
                assert!(kinds.contains_key(&key), "no {kind} is {outcome}");
            }
        }
        assert!(blocked > 0 && unsettled > 0 && deliveries > 50_000, "the workload idles");
    }
}

/// So many seeds at most until a broken broker is found out.
const BUDGET: u64 = 24;

fn check(mutation: Mutation, rules: &[&str]) {
    for seed in chosen().unwrap_or(1000..1000 + BUDGET) {
        let mut run = Run::new(seed, mutation);
        if let Err(Violation(text)) = run.run(FAULTS_US) {
            println!("{mutation:?}: {} seeds, {text}", seed - 999);
            let rule = text.split(':').next().unwrap_or_default();
            assert!(rules.contains(&rule), "found by another rule than {rules:?}: {text}");
            return;
        }
    }
    panic!("{mutation:?} is not found in {BUDGET} seeds");
}

#[test]
fn a_confirmed_batch_that_is_lost_is_found() {
    check(Mutation::LostBatch, &["lost", "atomicity", "acknowledged"]);
}

#[test]
fn a_receipt_before_the_commit_is_found() {
    check(Mutation::EarlyReceipt, &["lost", "atomicity", "acknowledged"]);
}

#[test]
fn a_rollback_that_commits_is_found() {
    check(Mutation::RollbackCommits, &["uncommitted"]);
}

#[test]
fn a_commit_that_is_forgotten_is_found() {
    check(Mutation::CommitForgotten, &["lost", "atomicity", "acknowledged"]);
}

#[test]
fn an_acknowledgement_that_is_dropped_is_found() {
    check(Mutation::AckDropped, &["acknowledged", "atomicity", "duplicate"]);
}

#[test]
fn an_acknowledgement_in_force_before_its_transaction_is_found() {
    check(Mutation::AckOutsideOfTransaction, &["lost", "atomicity"]);
}

#[test]
fn a_transaction_without_one_of_its_sends_is_found() {
    check(Mutation::HalfTransaction, &["lost", "atomicity"]);
}

#[test]
fn a_send_in_force_before_its_transaction_is_found() {
    check(Mutation::SendOutsideOfTransaction, &["uncommitted"]);
}

#[test]
fn a_repetition_that_is_not_recognised_is_found() {
    check(Mutation::NoDuplicateDetection, &["duplicate"]);
}

#[test]
fn messages_out_of_order_are_found() {
    check(Mutation::Swapped, &["order"]);
}

#[test]
fn a_redelivery_that_does_not_say_so_is_found() {
    check(Mutation::NoRedeliveryFlag, &["redelivery"]);
}

#[test]
fn a_selector_that_is_not_looked_at_is_found() {
    check(Mutation::NoSelector, &["invention"]);
}

#[test]
fn a_subscription_that_does_not_exist_is_found() {
    check(Mutation::SubscriptionForgotten, &["lost", "atomicity"]);
}

#[test]
fn a_message_that_is_lost_from_memory_is_found() {
    check(Mutation::MemoryForgotten, &["lost from memory"]);
}

#[test]
fn a_dead_letter_that_vanishes_is_found() {
    check(Mutation::NoDeadLetter, &["lost", "atomicity"]);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut run = Run::new(seed, Mutation::Nothing);
        run.run(FAULTS_US / 4).unwrap();
        (run.trace, run.steps)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
