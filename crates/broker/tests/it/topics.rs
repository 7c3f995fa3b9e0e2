use kahawai_broker::{BlockReason, Limits, Options, Outcome};
use kahawai_message::front::{AckKind, Refusal, Request, Subscribe};

use crate::world::{World, subscribe};

fn durable(name: &str) -> Subscribe {
    Subscribe { durable_name: Some(name.into()), ..subscribe(1, "topic://T") }
}

#[test]
fn subscribers_each_get_what_is_sent_while_they_are_there() {
    let mut world = World::default();
    world.connect("p");
    assert!(
        matches!(world.send("p", "topic://T", "early"), Outcome::Done),
        "nobody is there, nothing is stored"
    );
    for name in ["a", "b"] {
        world.connect(name);
        world.subscribe(name, subscribe(1, "topic://T"));
    }
    assert!(matches!(world.send("p", "topic://T", "x"), Outcome::Done));
    assert_eq!(world.seen(), ["a:x", "b:x"]);
    world.disconnect("a");
    world.send("p", "topic://T", "y");
    assert_eq!(world.seen(), ["b:y"]);
    world.disconnect("b");
    assert_eq!(world.broker.status().memory_bytes, 0);
}

#[test]
fn a_durable_subscription_keeps_what_came_while_it_was_offline() {
    let mut world = World::default();
    world.connect("p");
    world.connect("d");
    assert!(matches!(world.subscribe("d", durable("s")), Outcome::At(_)));
    world.commit();
    world.send("p", "topic://T", "1");
    world.commit();
    let got = world.take();
    world.ack(&got[0]);
    world.commit();
    world.disconnect("d");
    world.send("p", "topic://T", "2");
    world.send_non_persistent("p", "topic://T", "memory");
    world.send("p", "topic://T", "3");
    world.commit();
    world.connect("d");
    assert!(matches!(world.subscribe("d", durable("s")), Outcome::Done), "it exists already");
    let mut seen = world.seen();
    seen.sort();
    assert_eq!(seen, ["d:2", "d:3", "d:memory"]);
    // And over a restart, except what was in memory.
    world.restart();
    world.connect("d");
    world.subscribe("d", durable("s"));
    assert_eq!(world.seen(), ["d:2", "d:3"]);
}

#[test]
fn a_durable_subscriber_gets_a_message_only_when_it_is_committed() {
    let mut world = World::default();
    world.connect("p");
    world.connect("d");
    world.subscribe("d", durable("s"));
    world.connect("n");
    world.subscribe("n", subscribe(1, "topic://T"));
    assert!(matches!(world.send("p", "topic://T", "1"), Outcome::At(_)));
    assert!(world.seen().is_empty(), "the other subscriber neither");
    world.commit();
    let mut seen = world.seen();
    seen.sort();
    assert_eq!(seen, ["d:1", "n:1"]);
}

#[test]
fn a_durable_subscription_is_used_by_one_at_a_time_and_ended_by_nobody_meanwhile() {
    let mut world = World::default();
    world.try_connect("a", Some("id")).unwrap();
    world.subscribe("a", durable("s"));
    let again = Subscribe { consumer: kahawai_message::front::ConsumerNumber(2), ..durable("s") };
    assert!(matches!(world.request("a", Request::Subscribe(Box::new(again))), Err(Refusal::InUse(_))));
    let end = Request::RemoveSubscription { name: "s".into() };
    assert!(matches!(world.request("a", end.clone()), Err(Refusal::InUse(_))));
    world.unsubscribe("a", 1);
    assert!(matches!(world.request("a", end.clone()), Ok(Outcome::At(_))));
    assert!(matches!(world.request("a", end), Err(Refusal::NotFound(_))));
    assert_eq!(world.broker.status().durable_subscriptions, 0);
}

#[test]
fn another_selector_is_another_subscription() {
    let mut world = World::default();
    world.connect("p");
    world.connect("d");
    world.subscribe("d", durable("s"));
    world.commit();
    world.unsubscribe("d", 1);
    world.send("p", "topic://T", "old");
    world.commit();
    world.subscribe("d", Subscribe { selector: Some("JMSPriority >= 4".into()), ..durable("s") });
    // The old one's backlog is still in the store, and not to be seen.
    assert!(world.seen().is_empty());
    world.send("p", "topic://T", "new");
    world.commit();
    assert_eq!(world.seen(), ["d:new"]);
}

/// A suspended primary commits much at once: the store is then ahead of what the broker is told.
#[test]
fn a_durable_subscription_gets_nothing_that_was_appended_before_it() {
    let mut world = World::default();
    world.connect("p");
    for name in ["other", "d", "s"] {
        world.connect(name);
    }
    world.subscribe("other", durable("s"));
    world.commit();
    world.send("p", "topic://T", "before");
    world.send("p", "topic://T", "before too");
    world.subscribe("d", durable("s"));
    world.subscribe("s", Subscribe { selector: Some("JMSPriority > 8".into()), ..durable("s") });
    world.send("p", "topic://T", "behind");
    world.commit();
    let got = world.take();
    let mut told: Vec<_> = got.iter().map(|got| (got.client, &*got.text)).collect();
    told.sort_unstable();
    assert_eq!(told, [("d", "behind"), ("other", "before"), ("other", "before too"), ("other", "behind")]);
    for got in got {
        world.ack(&got);
    }
    world.commit();
    let lines = world.status("topic://T").lines;
    assert_eq!(lines.len(), 3);
    assert!(
        lines.iter().all(|line| (line.stored, line.in_flight, line.acks_pending) == (0, 0, 0)),
        "{lines:?}"
    );
}

/// The store is told to end a subscription and to begin it again, twice, before anything of that is committed.
#[test]
fn a_durable_subscription_begins_with_the_last_of_its_name() {
    let mut world = World::default();
    for name in ["p", "d"] {
        world.connect(name);
    }
    world.subscribe("d", durable("s"));
    world.send("p", "topic://T", "first");
    for text in ["second", "third"] {
        world.unsubscribe("d", 1);
        world.request("d", Request::RemoveSubscription { name: "s".into() }).unwrap();
        world.subscribe("d", durable("s"));
        world.send("p", "topic://T", text);
    }
    world.commit();
    assert_eq!(world.seen(), ["d:third"]);
}

#[test]
fn unacknowledged_messages_of_a_durable_subscription_return_counted() {
    let mut world = World::default();
    world.connect("p");
    world.connect("d");
    world.subscribe("d", durable("s"));
    world.send("p", "topic://T", "1");
    world.send("p", "topic://T", "2");
    world.commit();
    let got = world.take();
    world.ack(&got[1]);
    world.disconnect("d");
    world.connect("d");
    world.subscribe("d", durable("s"));
    assert_eq!(world.seen(), ["d:1+1"]);
}

#[test]
fn a_durable_wildcard_gets_topics_that_appear_later_also_while_offline() {
    let mut world = World::default();
    world.connect("p");
    world.connect("n");
    world.subscribe("n", subscribe(1, "topic://A.one"));
    world.connect("d");
    let wildcard = Subscribe { durable_name: Some("s".into()), ..subscribe(1, "topic://A.>") };
    world.subscribe("d", wildcard.clone());
    world.commit();
    world.disconnect("d");
    world.send("p", "topic://A.one", "1");
    world.send("p", "topic://A.two", "2");
    world.send("p", "topic://B", "3");
    world.commit();
    world.restart();
    world.connect("d");
    world.subscribe("d", wildcard);
    let mut seen = world.seen();
    seen.sort();
    assert_eq!(seen, ["d:1", "d:2"]);
}

#[test]
fn what_a_slow_subscriber_has_not_taken_holds_the_producers_back() {
    let limits = Limits { memory_bytes_max: 3000, ..Limits::default() };
    let mut world = World::new(Options { limits, ..Options::default() });
    world.connect("p");
    world.connect("slow");
    world.subscribe("slow", Subscribe { prefetch: 1, ..subscribe(1, "topic://T") });
    let mut sent = 0;
    while let Outcome::Done = world.send("p", "topic://T", &sent.to_string()) {
        sent += 1;
    }
    assert_eq!(world.broker.status().blocked[0].2, BlockReason::Memory);
    // Nothing is lost on the way.
    let mut seen = Vec::new();
    while let Some(got) = world.take().pop() {
        seen.push(got.text.clone());
        world.ack(&got);
    }
    assert_eq!(seen, (0..sent).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(world.unblocked, ["p"]);
    assert_eq!(world.broker.status().memory_bytes, 0);
}

#[test]
fn a_subscriber_that_releases_gets_it_again() {
    let mut world = World::default();
    world.connect("p");
    world.connect("a");
    world.subscribe("a", subscribe(1, "topic://T"));
    world.send("p", "topic://T", "x");
    let got = world.take();
    world.acknowledge(&got[0], AckKind::Released, None);
    assert_eq!(world.seen(), ["a:x+1"]);
}

#[test]
fn no_local_keeps_a_connections_own_messages_from_it() {
    let mut world = World::default();
    world.connect("a");
    world.connect("b");
    for name in ["a", "b"] {
        world.subscribe(name, Subscribe { no_local: true, ..subscribe(1, "topic://T") });
    }
    world.send("a", "topic://T", "x");
    assert_eq!(world.seen(), ["b:x"]);
}

#[test]
fn a_durable_subscriptions_no_local_acknowledges_what_it_drops() {
    let mut world = World::default();
    world.connect("a");
    world.connect("p");
    world.subscribe("a", Subscribe { no_local: true, ..durable("s") });
    world.send("a", "topic://T", "own");
    world.send("p", "topic://T", "other");
    world.commit();
    assert_eq!(world.seen(), ["a:other"]);
    assert_eq!((world.storage.unmatched, world.status("topic://T").lines[0].stored), (1, 1));
}
