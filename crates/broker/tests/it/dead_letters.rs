use kahawai_broker::{DELIVERY_FAILURE_CAUSE, Limits, ORIGINAL_EXPIRATION, Options, Outcome};
use kahawai_message::front::{AckKind, Subscribe};
use kahawai_message::properties::PropertyValue;
use kahawai_message::{Destination, Message};

use crate::world::{World, message, subscribe};

fn expiring(destination: &str, text: &str, expiration_ms: i64) -> Message {
    Message { expiration_ms, ..message(destination, text) }
}

#[test]
fn a_refused_message_goes_to_the_dead_letters() {
    let mut world = World::default();
    world.connect("p");
    world.connect("c");
    world.subscribe("c", subscribe(1, "Q"));
    world.send("p", "Q", "bad");
    world.send_non_persistent("p", "Q", "dropped");
    world.commit();
    for got in world.take() {
        world.acknowledge(&got, AckKind::Poison, None);
    }
    world.commit();
    let status = world.status("Q");
    assert_eq!((status.lines[0].stored, status.counts.dead_lettered, status.counts.dropped), (0, 1, 1));
    world.subscribe("c", subscribe(2, "ActiveMQ.DLQ"));
    let got = world.take();
    let dead = &got[0].message;
    assert_eq!((got.len(), got[0].redelivered), (1, 0));
    assert_eq!(dead.destination, Destination::queue("ActiveMQ.DLQ"));
    assert_eq!(dead.original_destination, Some(Destination::queue("Q")));
    assert_eq!(dead.property(DELIVERY_FAILURE_CAUSE), None);
    // What is refused there too is gone.
    world.acknowledge(&got[0], AckKind::Poison, None);
    world.commit();
    assert_eq!(world.status("ActiveMQ.DLQ").lines[0].stored, 0);
    assert!(world.seen().is_empty());
}

#[test]
fn an_expired_message_is_never_delivered() {
    let mut world = World::default();
    world.connect("p");
    world.send_message("p", expiring("Q", "late", 2000), None);
    world.send_message("p", Message { persistent: false, ..expiring("Q", "dropped", 2000) }, None);
    world.send_message("p", expiring("Q", "good", 9000), None);
    world.commit();
    world.now = 3000;
    world.connect("c");
    world.subscribe("c", subscribe(1, "Q"));
    assert_eq!(world.texts(), ["good"]);
    world.commit();
    assert_eq!((world.status("Q").counts.expired, world.status("Q").counts.dead_lettered), (2, 1));
    world.subscribe("c", subscribe(2, "ActiveMQ.DLQ"));
    let got = world.take();
    assert_eq!(got[0].text, "late");
    assert_eq!(got[0].message.expiration_ms, 0);
    assert_eq!(got[0].message.property(ORIGINAL_EXPIRATION), Some(PropertyValue::Long(2000)));
    let cause = "java.lang.Throwable: Message Expired. Expiration:2000";
    assert_eq!(got[0].message.property(DELIVERY_FAILURE_CAUSE), Some(PropertyValue::String(cause.into())));
}

#[test]
fn the_sweep_finds_expired_messages_where_nobody_consumes() {
    let limits = Limits { sweep_entries_max: 10, loads_max: 3, ..Limits::default() };
    let mut world = World::new(Options { limits, ..Options::default() });
    world.connect("p");
    for n in 0..25 {
        world.send_message("p", expiring("Q", &n.to_string(), 2000), None);
        world.send_message("p", Message { persistent: false, ..expiring("Q", "m", 2000) }, None);
    }
    world.send("p", "Q", "stays");
    world.commit();
    let mut steps = 0;
    while let Some(next) = world.tick() {
        world.now = next.max(world.now);
        world.commit();
        steps += 1;
        assert!(steps < 100, "the sweep comes to an end");
    }
    assert_eq!(world.status("Q").lines[0].stored, 1);
    assert_eq!(world.status("ActiveMQ.DLQ").lines[0].stored, 25);
    assert_eq!(world.broker.status().memory_bytes, 0);
    // After a restart too.
    world.send_message("p", expiring("Q", "again", world.now + 10), None);
    world.commit();
    world.now += 20;
    world.restart();
    while let Some(next) = world.tick() {
        world.now = next.max(world.now);
        world.commit();
    }
    assert_eq!(world.status("Q").lines[0].stored, 1);
}

#[test]
fn a_message_that_is_late_on_arrival_goes_to_the_dead_letters_at_once() {
    let mut world = World::default();
    world.connect("p");
    let Outcome::At(end) = world.send_message("p", expiring("Q", "x", 500), None) else { panic!() };
    world.commit_to(end);
    assert_eq!(world.status("Q").lines[0].stored, 0);
    assert_eq!(world.status("ActiveMQ.DLQ").lines[0].stored, 1);
}

#[test]
fn a_topic_message_dies_once_whatever_number_of_subscriptions_it_died_in() {
    let mut world = World::default();
    world.connect("p");
    for name in ["a", "b"] {
        world.connect(name);
        world.subscribe(name, Subscribe { durable_name: Some("s".into()), ..subscribe(1, "topic://T") });
    }
    world.commit();
    world.disconnect("a");
    world.disconnect("b");
    world.send_message("p", expiring("topic://T", "x", 2000), None);
    world.commit();
    world.now = 3000;
    for name in ["a", "b"] {
        world.connect(name);
        world.subscribe(name, Subscribe { durable_name: Some("s".into()), ..subscribe(1, "topic://T") });
    }
    world.commit();
    assert!(world.seen().is_empty());
    assert_eq!(world.status("ActiveMQ.DLQ").lines[0].stored, 1);
    assert!(world.status("topic://T").lines.iter().all(|line| line.stored == 0));
}

#[test]
fn many_expired_messages_do_not_stop_the_queue() {
    let limits = Limits { loads_max: 2, ..Limits::default() };
    let mut world = World::new(Options { limits, ..Options::default() });
    world.connect("p");
    for n in 0..20 {
        world.send_message("p", expiring("Q", &n.to_string(), 2000), None);
    }
    world.send("p", "Q", "good");
    world.commit();
    world.now = 3000;
    world.connect("c");
    world.node_is_slow = true;
    world.subscribe("c", subscribe(1, "Q"));
    assert_eq!(world.loads.len(), 2);
    world.node_is_slow = false;
    world.work();
    assert_eq!(world.texts(), ["good"]);
}

#[test]
fn a_dead_letter_that_the_node_cannot_read_is_set_aside() {
    let mut world = World::default();
    world.connect("p");
    world.connect("c");
    world.subscribe("c", subscribe(1, "Q"));
    world.send("p", "Q", "bad");
    world.commit();
    world.node_is_slow = true;
    let got = world.take();
    world.acknowledge(&got[0], AckKind::Poison, None);
    assert_eq!(world.status("Q").lines[0].dying, 1);
    let request = world.loads.pop_front().unwrap();
    let result = kahawai_broker::LoadResult { request, message: kahawai_broker::Loaded::Unreadable };
    let World { broker, storage, .. } = &mut world;
    broker.loaded(0, result, storage, &mut Vec::new()).unwrap();
    assert_eq!(world.status("Q").lines[0].unreadable, 1);
}
