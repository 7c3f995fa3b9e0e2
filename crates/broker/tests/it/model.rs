//! Random histories against a simple model: nothing is lost, nothing is delivered twice without saying so.

use std::collections::BTreeMap;

use kahawai_broker::{Limits, Options, Outcome};
use kahawai_message::Message;
use kahawai_message::front::{AckKind, Subscribe};
use kahawai_message::storage::Storage;
use kahawai_types::Lsn;
use proptest::prelude::*;

use crate::world::{Got, World, message, subscribe};

const CLIENTS: [&str; 3] = ["a", "b", "c"];
const QUEUES: [&str; 2] = ["Q.0", "Q.1"];

#[derive(Clone, Copy, Debug)]
enum Op {
    Send { client: usize, queue: usize, persistent: bool, red: bool, transacted: bool },
    Subscribe { client: usize, consumer: u32, queue: usize, prefetch: u32, selecting: bool },
    Unsubscribe { client: usize, consumer: u32 },
    Disconnect { client: usize },
    Acknowledge { which: prop::sample::Index, kind: AckKind, transacted: bool },
    Begin { client: usize },
    Commit { client: usize },
    RollBack { client: usize },
    CommitJournal { share: u64 },
    SlowNode { slow: bool },
    Crash,
}

fn any_op() -> impl Strategy<Value = Op> {
    let client = || 0..CLIENTS.len();
    let kind = prop_oneof![
        6 => Just(AckKind::Consumed),
        2 => Just(AckKind::Released),
        1 => Just(AckKind::Poison),
    ];
    prop_oneof![
        12 => (client(), 0..2usize, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
            |(client, queue, persistent, red, transacted)| Op::Send { client, queue, persistent, red, transacted }
        ),
        // Queue 2 stands for the pattern that matches both.
        6 => (client(), 0..3u32, 0..3usize, 1..5u32, any::<bool>()).prop_map(
            |(client, consumer, queue, prefetch, selecting)| {
                Op::Subscribe { client, consumer, queue, prefetch, selecting }
            }
        ),
        2 => (client(), 0..3u32).prop_map(|(client, consumer)| Op::Unsubscribe { client, consumer }),
        1 => client().prop_map(|client| Op::Disconnect { client }),
        12 => (any::<prop::sample::Index>(), kind, any::<bool>())
            .prop_map(|(which, kind, transacted)| Op::Acknowledge { which, kind, transacted }),
        3 => client().prop_map(|client| Op::Begin { client }),
        2 => client().prop_map(|client| Op::Commit { client }),
        1 => client().prop_map(|client| Op::RollBack { client }),
        8 => (1..=4u64).prop_map(|share| Op::CommitJournal { share }),
        2 => any::<bool>().prop_map(|slow| Op::SlowNode { slow }),
        1 => Just(Op::Crash),
    ]
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    /// Sent in a transaction that is open.
    Sending {
        client: usize,
    },
    /// There, or there once `Tracked::sent` is committed.
    Available,
    /// With a consumer.
    Out {
        client: usize,
        consumer: u32,
    },
    /// Acknowledged in a transaction that is open. `present`: its consumer still is.
    InTransaction {
        client: usize,
        consumer: u32,
        kind: AckKind,
        present: bool,
    },
    /// Acknowledged, in force once this is committed.
    Acknowledged(Lsn),
    Dead,
}

#[derive(Clone, Debug)]
struct Tracked {
    queue: usize,
    persistent: bool,
    red: bool,
    state: State,
    sent: Lsn,
    /// Given back in a transaction: to be had again once this is committed.
    returned: Lsn,
    /// In which order messages came into the queue.
    order: u64,
    returns: u32,
}

#[derive(Default)]
struct Model {
    messages: BTreeMap<String, Tracked>,
    /// What is out, oldest first, as the clients know it.
    out: Vec<Got>,
    consumers: BTreeMap<(usize, u32), Subscribe>,
    open: [bool; 3],
    orders: u64,
    buried: usize,
    rolled_back: bool,
}

impl Model {
    fn position_of(name: &str) -> usize {
        CLIENTS.iter().position(|client| *client == name).unwrap()
    }

    fn next_order(&mut self) -> u64 {
        self.orders += 1;
        self.orders
    }

    /// What the broker delivered must be deliverable.
    fn delivered(&mut self, world: &mut World) {
        for got in world.take() {
            let client = Self::position_of(got.client);
            let consumer = &self.consumers[&(client, got.consumer)];
            let tracked = self.messages.get_mut(&got.text).unwrap();
            assert_eq!(tracked.state, State::Available, "{got:?}");
            assert!(
                tracked.sent.max(tracked.returned) <= world.storage.committed(),
                "{} before its commit",
                got.text
            );
            assert_eq!(tracked.returns, got.redelivered, "{}", got.text);
            assert!(consumer.selector.is_none() || tracked.red, "{}", got.text);
            let wanted = &*consumer.destination.name;
            assert!(wanted == "Q.*" || wanted == QUEUES[tracked.queue]);
            tracked.state = State::Out { client, consumer: got.consumer };
            self.out.push(got);
        }
        for (&(client, number), consumer) in &self.consumers {
            let count = self.has(client, number);
            // After a rollback it may have more, because a transaction makes room.
            if !self.rolled_back {
                assert!(count <= consumer.prefetch as usize, "{client} {number} has {count}");
            }
        }
    }

    fn has(&self, client: usize, number: u32) -> usize {
        let out = State::Out { client, consumer: number };
        self.messages.values().filter(|tracked| tracked.state == out).count()
    }

    /// Where everything is committed, nobody waits for what is there.
    fn is_settled(&self, world: &World) {
        if world.node_is_slow || world.storage.committed() < world.storage.appended_end() {
            return;
        }
        for (text, tracked) in self.messages.iter().filter(|(_, tracked)| tracked.state == State::Available) {
            for (&(client, number), consumer) in &self.consumers {
                let wanted = &*consumer.destination.name;
                let wants = (wanted == "Q.*" || wanted == QUEUES[tracked.queue])
                    && (consumer.selector.is_none() || tracked.red);
                let room = self.has(client, number) < consumer.prefetch as usize;
                assert!(!wants || !room, "{text} waits and {client} {number} has room");
            }
        }
    }

    /// Consumers are gone: what they had comes back.
    fn left(&mut self, client: usize, consumer: Option<u32>) {
        let is = |number: u32| consumer.is_none_or(|consumer| consumer == number);
        for tracked in self.messages.values_mut() {
            match &mut tracked.state {
                State::Out { client: c, consumer: n } if *c == client && is(*n) => {
                    tracked.state = State::Available;
                    tracked.returns += 1;
                }
                State::InTransaction { client: c, consumer: n, present, .. } if *c == client && is(*n) => {
                    *present = false;
                }
                _ => {}
            }
        }
        self.consumers.retain(|(c, n), _| !(*c == client && is(*n)));
        let messages = &self.messages;
        self.out.retain(|got| {
            matches!(messages[&got.text].state, State::Out { .. } | State::InTransaction { .. })
        });
    }

    fn undo(&mut self, client: usize) {
        self.open[client] = false;
        self.messages.retain(|_, tracked| tracked.state != State::Sending { client });
        for tracked in self.messages.values_mut() {
            if let State::InTransaction { client: c, consumer, present, .. } = tracked.state
                && c == client
            {
                if present {
                    tracked.state = State::Out { client, consumer };
                } else {
                    tracked.state = State::Available;
                    tracked.returns += 1;
                }
            }
        }
        let messages = &self.messages;
        self.out.retain(|got| {
            matches!(messages[&got.text].state, State::Out { .. } | State::InTransaction { .. })
        });
    }

    fn in_flight(&self, queue: usize) -> usize {
        let in_flight = |tracked: &&Tracked| {
            tracked.queue == queue && matches!(tracked.state, State::Out { .. } | State::InTransaction { .. })
        };
        self.messages.values().filter(in_flight).count()
    }
}

fn run(ops: &[Op]) {
    let limits =
        Limits { steps_per_call_max: 3, scan_entries_max: 3, acks_pending_max: 3, ..Limits::default() };
    let mut world = World::new(Options { limits, ..Options::default() });
    let mut model = Model::default();
    for client in CLIENTS {
        world.connect(client);
    }
    let mut count = 0;
    for op in ops {
        match *op {
            Op::Send { client, queue, persistent, red, transacted } => {
                count += 1;
                let text = format!("m{count}");
                let transacted = transacted && model.open[client];
                let sent = Message {
                    persistent,
                    jms_type: red.then(|| "red".into()),
                    ..message(QUEUES[queue], &text)
                };
                let order = model.next_order();
                let state = if transacted { State::Sending { client } } else { State::Available };
                let tracked = Tracked {
                    queue,
                    persistent,
                    red,
                    state,
                    sent: Lsn(u64::MAX),
                    returned: Lsn::ZERO,
                    order,
                    returns: 0,
                };
                model.messages.insert(text.clone(), tracked);
                if !persistent && !transacted {
                    model.messages.get_mut(&text).unwrap().sent = Lsn::ZERO;
                }
                let outcome = world.send_message(CLIENTS[client], sent, transacted.then_some(1));
                match outcome {
                    Outcome::At(end) => model.messages.get_mut(&text).unwrap().sent = end,
                    Outcome::Done => assert!(transacted || !persistent),
                    Outcome::Blocked(..) => panic!("nothing is full"),
                }
            }
            Op::Subscribe { client, consumer, queue, prefetch, selecting } => {
                if model.consumers.contains_key(&(client, consumer)) {
                    continue;
                }
                let name = QUEUES.get(queue).copied().unwrap_or("Q.*");
                let selector = selecting.then(|| "JMSType = 'red'".into());
                let wanted = Subscribe { prefetch, selector, ..subscribe(consumer, name) };
                model.consumers.insert((client, consumer), wanted.clone());
                world.subscribe(CLIENTS[client], wanted);
            }
            Op::Unsubscribe { client, consumer } => {
                if model.consumers.contains_key(&(client, consumer)) {
                    model.left(client, Some(consumer));
                    world.unsubscribe(CLIENTS[client], consumer);
                }
            }
            Op::Disconnect { client } => {
                model.undo(client);
                model.left(client, None);
                world.disconnect(CLIENTS[client]);
                world.connect(CLIENTS[client]);
            }
            Op::Acknowledge { which, kind, transacted } => {
                let messages = &model.messages;
                let free: Vec<_> = model
                    .out
                    .iter()
                    .filter(|got| matches!(messages[&got.text].state, State::Out { .. }))
                    .cloned()
                    .collect();
                if free.is_empty() {
                    continue;
                }
                let got = which.get(&free);
                let client = Model::position_of(got.client);
                let transacted = transacted && model.open[client];
                let tracked = model.messages.get_mut(&got.text).unwrap();
                let persistent = tracked.persistent;
                if transacted {
                    tracked.state =
                        State::InTransaction { client, consumer: got.consumer, kind, present: true };
                } else {
                    model.out.retain(|other| (other.client, other.tag) != (got.client, got.tag));
                    match kind {
                        AckKind::Consumed => tracked.state = State::Acknowledged(Lsn(u64::MAX)),
                        AckKind::Poison => tracked.state = State::Dead,
                        AckKind::Released => {
                            tracked.state = State::Available;
                            tracked.returns += 1;
                        }
                    }
                }
                let outcome = world.acknowledge(got, kind, transacted.then_some(1));
                let tracked = model.messages.get_mut(&got.text).unwrap();
                if let State::Acknowledged(end) = &mut tracked.state {
                    match outcome {
                        Outcome::At(at) => *end = at,
                        Outcome::Done => {
                            assert!(!persistent);
                            tracked.state = State::Dead;
                        }
                        Outcome::Blocked(..) => panic!("acknowledgements are never blocked"),
                    }
                }
                if kind == AckKind::Poison && !transacted {
                    model.buried += usize::from(persistent);
                    model.delivered(&mut world);
                    world.work();
                    commit_all(&mut world);
                }
            }
            Op::Begin { client } => {
                if !model.open[client] {
                    model.open[client] = true;
                    world.begin(CLIENTS[client], 1);
                }
            }
            Op::Commit { client } => {
                if !model.open[client] {
                    continue;
                }
                model.open[client] = false;
                let mut poisoned = false;
                let end = Lsn(world.storage.appended_end().0 + 1);
                let mut decided = Vec::new();
                let mut sent = Vec::new();
                for (text, tracked) in &mut model.messages {
                    match tracked.state {
                        State::Sending { client: c } if c == client => {
                            sent.push((tracked.order, text.clone()))
                        }
                        State::InTransaction { client: c, kind, .. } if c == client => {
                            poisoned |= kind == AckKind::Poison;
                            decided.push((text.clone(), kind));
                        }
                        _ => {}
                    }
                }
                sent.sort();
                // Nothing is in force, or to be delivered, before the commit is committed.
                let stores = sent.iter().any(|(_, text)| model.messages[text].persistent)
                    || decided
                        .iter()
                        .any(|(text, kind)| *kind == AckKind::Consumed && model.messages[text].persistent);
                let at = if stores { end } else { Lsn::ZERO };
                for (_, text) in sent {
                    let order = model.next_order();
                    let tracked = model.messages.get_mut(&text).unwrap();
                    (tracked.state, tracked.sent, tracked.order) = (State::Available, at, order);
                }
                for (text, kind) in &decided {
                    model.buried += usize::from(*kind == AckKind::Poison && model.messages[text].persistent);
                    let tracked = model.messages.get_mut(text).unwrap();
                    match kind {
                        AckKind::Consumed => tracked.state = State::Acknowledged(at),
                        AckKind::Poison => tracked.state = State::Dead,
                        AckKind::Released => {
                            tracked.state = State::Available;
                            tracked.returns += 1;
                            tracked.returned = at;
                        }
                    }
                }
                model.out.retain(|got| decided.iter().all(|(text, _)| *text != got.text));
                let outcome = world.commit_transaction(CLIENTS[client], 1);
                assert!(matches!((stores, outcome), (false, Outcome::Done) | (true, Outcome::At(_))));
                if poisoned {
                    model.delivered(&mut world);
                    commit_all(&mut world);
                }
            }
            Op::RollBack { client } => {
                if model.open[client] {
                    model.undo(client);
                    world.roll_back(CLIENTS[client], 1);
                    model.rolled_back = true;
                }
            }
            Op::CommitJournal { share } => {
                let (from, to) = (world.storage.committed().0, world.storage.appended_end().0);
                world.commit_to(Lsn(from + (to - from) * share / 4));
            }
            Op::SlowNode { slow } => {
                world.node_is_slow = slow;
                if !slow {
                    world.work();
                }
            }
            Op::Crash => {
                let committed = world.storage.committed();
                world.restart();
                model.out.clear();
                model.consumers.clear();
                model.open = [false; 3];
                model.messages.retain(|_, tracked| {
                    let sending = matches!(tracked.state, State::Sending { .. });
                    tracked.persistent && !sending && tracked.sent <= committed
                });
                for tracked in model.messages.values_mut() {
                    (tracked.returns, tracked.returned) = (0, Lsn::ZERO);
                    match tracked.state {
                        State::Dead => {}
                        State::Acknowledged(end) if end <= committed => tracked.state = State::Dead,
                        _ => tracked.state = State::Available,
                    }
                }
                for client in CLIENTS {
                    world.connect(client);
                }
            }
        }
        model.delivered(&mut world);
        model.is_settled(&world);
        if !world.node_is_slow {
            for (index, queue) in QUEUES.iter().enumerate() {
                let name = kahawai_message::Destination::queue(*queue);
                let status = world.broker.destination_status(&name, &world.storage);
                let in_flight = status.map_or(0, |status| status.lines[0].in_flight);
                assert_eq!(in_flight, model.in_flight(index), "{queue} after {op:?}");
            }
        }
    }
    drain(world, model);
}

fn commit_all(world: &mut World) {
    let slow = std::mem::replace(&mut world.node_is_slow, false);
    world.work();
    world.commit();
    world.node_is_slow = slow;
}

/// Everybody leaves, and somebody new takes what is left.
fn drain(mut world: World, mut model: Model) {
    world.node_is_slow = false;
    world.work();
    model.delivered(&mut world);
    for (index, client) in CLIENTS.into_iter().enumerate() {
        model.undo(index);
        model.left(index, None);
        world.disconnect(client);
        model.delivered(&mut world);
    }
    world.commit();
    world.connect("drain");
    let mut taken: BTreeMap<String, u32> = BTreeMap::new();
    let mut last_order = [0; 2];
    world.subscribe("drain", Subscribe { prefetch: 1000, ..subscribe(1, "Q.*") });
    loop {
        let batch = world.take();
        if batch.is_empty() {
            break;
        }
        for got in batch {
            let tracked = &model.messages[&got.text];
            assert_eq!(tracked.state, State::Available, "{}", got.text);
            assert_eq!(tracked.returns, got.redelivered, "{}", got.text);
            if tracked.persistent {
                assert!(tracked.order > last_order[tracked.queue], "{} is out of order", got.text);
                last_order[tracked.queue] = tracked.order;
            }
            assert_eq!(taken.insert(got.text.clone(), 1), None, "{} twice", got.text);
            world.ack(&got);
            world.commit();
        }
    }
    for (text, tracked) in &model.messages {
        if tracked.state == State::Available {
            assert!(taken.contains_key(text), "{text} is lost: {tracked:?}");
        }
    }
    world.commit();
    for queue in QUEUES {
        let name = kahawai_message::Destination::queue(queue);
        if let Some(status) = world.broker.destination_status(&name, &world.storage) {
            let line = &status.lines[0];
            assert_eq!((line.stored, line.in_flight, line.acks_pending, line.in_memory), (0, 0, 0, 0));
        }
    }
    let status = world.broker.status();
    assert_eq!((status.memory_bytes, status.memory_messages, status.transactions_bytes), (0, 0, 0));
    let dlq = kahawai_message::Destination::queue("ActiveMQ.DLQ");
    let dead =
        world.broker.destination_status(&dlq, &world.storage).map_or(0, |status| status.lines[0].stored);
    assert_eq!(dead as usize, model.buried);
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_nothing_comes_twice_unsaid(ops in prop::collection::vec(any_op(), 1..80)) {
        run(&ops);
    }
}
