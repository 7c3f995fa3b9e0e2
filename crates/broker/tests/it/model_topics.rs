//! Random histories of durable subscriptions against a simple model.

use std::collections::BTreeMap;

use kahawai_broker::{Limits, Options, Outcome};
use kahawai_message::Message;
use kahawai_message::front::{AckKind, Subscribe};
use kahawai_message::storage::Storage;
use kahawai_types::Lsn;
use proptest::prelude::*;

use crate::world::{Got, World, message, subscribe};

/// Two subscribers, the second with a selector, and who sends.
const CLIENTS: [&str; 3] = ["all", "red", "p"];
const TOPICS: [&str; 2] = ["topic://T.0", "topic://T.1"];

#[derive(Clone, Copy, Debug)]
enum Op {
    Send { topic: usize, persistent: bool, red: bool },
    Come { client: usize, prefetch: u32 },
    Go { client: usize, politely: bool },
    Acknowledge { which: prop::sample::Index, kind: AckKind },
    CommitJournal { share: u64 },
    SlowNode { slow: bool },
    Crash,
}

fn any_op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![5 => Just(AckKind::Consumed), 1 => Just(AckKind::Released)];
    prop_oneof![
        8 => (0..2usize, any::<bool>(), any::<bool>())
            .prop_map(|(topic, persistent, red)| Op::Send { topic, persistent, red }),
        4 => (0..2usize, 1..4u32).prop_map(|(client, prefetch)| Op::Come { client, prefetch }),
        3 => (0..2usize, any::<bool>()).prop_map(|(client, politely)| Op::Go { client, politely }),
        9 => (any::<prop::sample::Index>(), kind).prop_map(|(which, kind)| Op::Acknowledge { which, kind }),
        6 => (1..=4u64).prop_map(|share| Op::CommitJournal { share }),
        2 => any::<bool>().prop_map(|slow| Op::SlowNode { slow }),
        1 => Just(Op::Crash),
    ]
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Waits,
    Out,
    Acknowledged(Lsn),
}

#[derive(Clone, Debug)]
struct Tracked {
    persistent: bool,
    sent: Lsn,
    order: usize,
    /// For each subscription that gets it: its state, and how often it came back.
    of: [Option<(State, u32)>; 2],
}

#[derive(Default)]
struct Model {
    messages: BTreeMap<String, Tracked>,
    out: Vec<Got>,
    prefetch: [Option<u32>; 2],
    slow: bool,
}

fn durable(client: usize, prefetch: u32) -> Subscribe {
    Subscribe {
        durable_name: Some("s".into()),
        selector: (client == 1).then(|| "JMSType = 'red'".into()),
        prefetch,
        ..subscribe(1, "topic://T.*")
    }
}

impl Model {
    fn delivered(&mut self, world: &mut World) {
        for got in world.take() {
            let client = CLIENTS.iter().position(|name| *name == got.client).unwrap();
            let tracked = self.messages.get_mut(&got.text).unwrap();
            assert!(tracked.sent <= world.storage.committed(), "{} before its commit", got.text);
            let of =
                tracked.of[client].as_mut().unwrap_or_else(|| panic!("{} is not for {client}", got.text));
            assert_eq!(*of, (State::Waits, got.redelivered), "{}", got.text);
            of.0 = State::Out;
            self.out.push(got);
        }
        let settled = !world.node_is_slow && world.storage.committed() == world.storage.appended_end();
        for client in 0..2 {
            let Some(prefetch) = self.prefetch[client] else { continue };
            let of = |state| {
                self.messages.values().filter(|m| m.of[client].is_some_and(|of| of.0 == state)).count()
            };
            assert!(of(State::Out) <= prefetch as usize);
            assert!(
                !settled || of(State::Waits) == 0 || of(State::Out) == prefetch as usize,
                "{client} starves"
            );
        }
    }

    fn gone(&mut self, client: usize) {
        self.prefetch[client] = None;
        for tracked in self.messages.values_mut() {
            if let Some((state @ State::Out, returns)) = &mut tracked.of[client] {
                *state = State::Waits;
                *returns += 1;
            }
        }
        self.out.retain(|got| got.client != CLIENTS[client]);
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
    // The topics exist before the subscriptions, so that these survive a restart.
    for topic in TOPICS {
        world.subscribe("p", subscribe(9, topic));
        world.unsubscribe("p", 9);
    }
    for (client, name) in CLIENTS.into_iter().enumerate().take(2) {
        world.subscribe(name, durable(client, 1));
        world.commit();
        world.unsubscribe(name, 1);
    }
    for (count, op) in ops.iter().enumerate() {
        match *op {
            Op::Send { topic, persistent, red } => {
                let text = format!("m{count}");
                let jms_type = red.then(|| "red".into());
                let sent = Message { persistent, jms_type, ..message(TOPICS[topic], &text) };
                let new = Some((State::Waits, 0));
                let of = [new, new.filter(|_| red)];
                let tracked = Tracked { persistent, sent: Lsn::ZERO, order: count, of };
                model.messages.insert(text.clone(), tracked);
                match world.send_message("p", sent, None) {
                    Outcome::At(end) => model.messages.get_mut(&text).unwrap().sent = end,
                    Outcome::Done => assert!(!persistent),
                    Outcome::Blocked(..) => panic!("nothing is full"),
                }
            }
            Op::Come { client, prefetch } => {
                if model.prefetch[client].is_none() {
                    model.prefetch[client] = Some(prefetch);
                    assert!(matches!(
                        world.subscribe(CLIENTS[client], durable(client, prefetch)),
                        Outcome::Done
                    ));
                }
            }
            Op::Go { client, politely } => {
                if model.prefetch[client].is_none() {
                    continue;
                }
                model.gone(client);
                if politely {
                    world.unsubscribe(CLIENTS[client], 1);
                } else {
                    world.disconnect(CLIENTS[client]);
                    world.connect(CLIENTS[client]);
                }
            }
            Op::Acknowledge { which, kind } => {
                if model.out.is_empty() {
                    continue;
                }
                let got = model.out.remove(which.index(model.out.len()));
                let client = CLIENTS.iter().position(|name| *name == got.client).unwrap();
                let tracked = model.messages.get_mut(&got.text).unwrap();
                let of = tracked.of[client].as_mut().unwrap();
                match kind {
                    AckKind::Consumed => of.0 = State::Acknowledged(Lsn::ZERO),
                    AckKind::Released | AckKind::Poison => *of = (State::Waits, of.1 + 1),
                }
                let outcome = world.acknowledge(&got, kind, None);
                let of = model.messages.get_mut(&got.text).unwrap().of[client].as_mut().unwrap();
                if let (State::Acknowledged(at), Outcome::At(end)) = (&mut of.0, outcome) {
                    *at = end;
                }
            }
            Op::CommitJournal { share } => {
                let (from, to) = (world.storage.committed().0, world.storage.appended_end().0);
                world.commit_to(Lsn(from + (to - from) * share / 4));
            }
            Op::SlowNode { slow } => {
                model.slow = slow;
                world.node_is_slow = slow;
                if !slow {
                    world.work();
                }
            }
            Op::Crash => {
                let committed = world.storage.committed();
                world.restart();
                model.out.clear();
                model.prefetch = [None; 2];
                model.messages.retain(|_, tracked| tracked.persistent && tracked.sent <= committed);
                for of in model.messages.values_mut().flat_map(|tracked| tracked.of.iter_mut().flatten()) {
                    *of = match of.0 {
                        State::Acknowledged(at) if at <= committed => *of,
                        _ => (State::Waits, 0),
                    };
                }
                for client in CLIENTS {
                    world.connect(client);
                }
            }
        }
        model.delivered(&mut world);
    }
    drain(world, model);
}

/// Everybody leaves, comes back, and takes what is left, in order.
fn drain(mut world: World, mut model: Model) {
    world.node_is_slow = false;
    world.work();
    world.commit();
    model.delivered(&mut world);
    for (client, name) in CLIENTS.into_iter().enumerate().take(2) {
        if model.prefetch[client].is_some() {
            model.gone(client);
            world.unsubscribe(name, 1);
        }
        world.commit();
        model.prefetch[client] = Some(1000);
        world.subscribe(name, durable(client, 1000));
        world.commit();
        model.delivered(&mut world);
        let mut last = BTreeMap::new();
        for got in std::mem::take(&mut model.out) {
            if got.client != name {
                model.out.push(got);
                continue;
            }
            let tracked = &model.messages[&got.text];
            if tracked.persistent {
                let last = last.insert(got.message.destination.to_string(), tracked.order);
                assert!(last.is_none_or(|last| last < tracked.order), "{} is out of order", got.text);
            }
            world.ack(&got);
            world.commit();
            model.messages.get_mut(&got.text).unwrap().of[client] = None;
            model.delivered(&mut world);
        }
        model.prefetch[client] = None;
        model.gone(client);
        world.unsubscribe(name, 1);
    }
    for (text, tracked) in &model.messages {
        for of in tracked.of.iter().flatten() {
            assert!(matches!(of.0, State::Acknowledged(_)), "{text} is lost: {tracked:?}");
        }
    }
    for topic in TOPICS {
        for line in world.status(topic).lines {
            assert_eq!(
                (line.stored, line.in_flight, line.acks_pending, line.in_memory),
                (0, 0, 0, 0),
                "{topic}"
            );
        }
    }
    assert_eq!(world.broker.status().memory_bytes, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn durable_subscriptions_lose_nothing_and_repeat_nothing_unsaid(ops in prop::collection::vec(any_op(), 1..80)) {
        run(&ops);
    }
}
