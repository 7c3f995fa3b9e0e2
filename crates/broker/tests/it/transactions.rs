use kahawai_broker::{Limits, Options, Outcome};
use kahawai_message::Message;
use kahawai_message::front::{AckKind, Refusal, Request, Subscribe, TransactionNumber};

use crate::world::{World, message, subscribe};

#[test]
fn sends_are_seen_together_at_the_commit_or_never() {
    let mut world = World::default();
    world.connect("p");
    world.connect("c");
    world.subscribe("c", subscribe(1, "Q"));
    world.subscribe("c", subscribe(2, "topic://T"));
    world.begin("p", 1);
    world.send_message("p", message("Q", "a"), Some(1));
    world.send_message("p", Message { persistent: false, ..message("Q", "b") }, Some(1));
    world.send_message("p", message("topic://T", "c"), Some(1));
    world.commit();
    assert!(world.seen().is_empty());
    let Outcome::At(end) = world.commit_transaction("p", 1) else { panic!() };
    assert!(world.seen().is_empty());
    world.commit_to(end);
    let mut seen = world.texts();
    seen.sort();
    assert_eq!(seen, ["a", "b", "c"]);

    world.begin("p", 1);
    world.send_message("p", message("Q", "never"), Some(1));
    world.roll_back("p", 1);
    world.begin("p", 2);
    world.send_message("p", message("Q", "neither"), Some(2));
    world.disconnect("p");
    world.commit();
    assert!(world.seen().is_empty());
    assert_eq!(world.broker.status().transactions_bytes, 0);
}

#[test]
fn a_commit_of_what_was_sent_before_waits_for_that() {
    let mut world = World::default();
    world.connect("p");
    let mut again = message("Q", "a");
    again.id.producer = kahawai_message::ProducerId { connection: "p".into(), session: 1, value: 1 };
    again.id.sequence = 1;
    world.begin("p", 1);
    world.send_message("p", again.clone(), Some(1));
    let Outcome::At(end) = world.commit_transaction("p", 1) else { panic!() };
    // Its answer was lost; the first commit may still be.
    world.disconnect("p");
    world.connect("q");
    world.begin("q", 1);
    world.send_message("q", again, Some(1));
    assert!(matches!(world.commit_transaction("q", 1), Outcome::At(at) if at >= end));
}

#[test]
fn acknowledgements_take_effect_at_the_commit_and_make_room_before() {
    let mut world = World::default();
    world.connect("p");
    world.connect("c");
    world.subscribe("c", Subscribe { prefetch: 1, ..subscribe(1, "Q") });
    for text in ["a", "b"] {
        world.send("p", "Q", text);
    }
    world.commit();
    world.begin("c", 7);
    let a = world.take().remove(0);
    world.acknowledge(&a, AckKind::Consumed, Some(7));
    let b = world.take().remove(0);
    world.acknowledge(&b, AckKind::Consumed, Some(7));
    world.commit();
    assert_eq!((world.status("Q").lines[0].stored, world.status("Q").lines[0].in_flight), (2, 2));
    world.commit_transaction("c", 7);
    assert_eq!((world.status("Q").lines[0].stored, world.status("Q").lines[0].acks_pending), (2, 2));
    world.commit();
    assert_eq!((world.status("Q").lines[0].stored, world.status("Q").lines[0].acks_pending), (0, 0));
}

#[test]
fn after_a_rollback_deliveries_are_unacknowledged_again() {
    let mut world = World::default();
    world.connect("p");
    world.connect("c");
    world.subscribe("c", Subscribe { prefetch: 1, ..subscribe(1, "Q") });
    world.send("p", "Q", "a");
    world.send("p", "Q", "b");
    world.commit();
    let a = world.take().remove(0);
    world.begin("c", 1);
    world.acknowledge(&a, AckKind::Consumed, Some(1));
    let b = world.take().remove(0);
    world.roll_back("c", 1);
    assert!(world.seen().is_empty(), "they stay with their consumer");
    assert_eq!(world.status("Q").lines[0].in_flight, 2);
    world.ack(&a);
    world.ack(&b);
    world.commit();
    assert_eq!(world.status("Q").lines[0].stored, 0);
}

#[test]
fn a_connection_that_dies_gives_back_what_it_acknowledged_in_an_open_transaction() {
    let mut world = World::default();
    world.connect("p");
    world.connect("c");
    world.subscribe("c", subscribe(1, "Q"));
    world.send("p", "Q", "a");
    world.send_non_persistent("p", "Q", "memory");
    world.commit();
    world.begin("c", 1);
    for got in world.take() {
        world.acknowledge(&got, AckKind::Consumed, Some(1));
    }
    world.disconnect("c");
    world.connect("d");
    world.subscribe("d", subscribe(1, "Q"));
    let mut seen = world.seen();
    seen.sort();
    assert_eq!(seen, ["d:a+1", "d:memory+1"]);
}

#[test]
fn a_consumer_that_left_has_its_acknowledgements_committed_all_the_same() {
    let mut world = World::default();
    world.connect("p");
    world.connect("c");
    world.subscribe("c", subscribe(1, "Q"));
    world.send("p", "Q", "a");
    world.send("p", "Q", "b");
    world.commit();
    let got = world.take();
    world.begin("c", 1);
    world.acknowledge(&got[0], AckKind::Consumed, Some(1));
    world.unsubscribe("c", 1);
    world.commit_transaction("c", 1);
    world.commit();
    world.subscribe("c", subscribe(2, "Q"));
    assert_eq!(world.seen(), ["c:b+1"]);
}

#[test]
fn releases_and_refusals_wait_for_the_commit_too() {
    let mut world = World::default();
    world.connect("p");
    world.connect("c");
    world.subscribe("c", subscribe(1, "Q"));
    world.connect("dlq");
    world.subscribe("dlq", subscribe(1, "ActiveMQ.DLQ"));
    world.send("p", "Q", "released");
    world.send("p", "Q", "refused");
    world.commit();
    let got = world.take();
    world.begin("c", 1);
    world.acknowledge(&got[0], AckKind::Released, Some(1));
    world.acknowledge(&got[1], AckKind::Poison, Some(1));
    world.commit();
    assert!(world.seen().is_empty());
    world.commit_transaction("c", 1);
    world.commit();
    assert_eq!(world.seen(), ["c:released+1", "dlq:refused"]);
}

#[test]
fn a_transaction_over_its_limit_only_rolls_back() {
    let limits = Limits { transaction_bytes_max: 2000, ..Limits::default() };
    let mut world = World::new(Options { limits, ..Options::default() });
    world.connect("p");
    world.begin("p", 1);
    let transaction = Some(TransactionNumber(1));
    let send = || Request::Send { message: message("Q", "x"), transaction };
    while world.request("p", send()).is_ok() {}
    assert!(matches!(world.request("p", send()), Err(Refusal::Limit(_))));
    let commit = Request::Commit { transaction: TransactionNumber(1) };
    assert!(matches!(world.request("p", commit.clone()), Err(Refusal::Limit(_))));
    assert!(matches!(world.request("p", commit), Err(Refusal::NotFound(_))));
    assert_eq!(world.broker.status().transactions_bytes, 0);
}

#[test]
fn a_transaction_that_the_store_cannot_take_is_rolled_back() {
    let mut world = World::default();
    world.connect("p");
    world.storage.operations_max = Some(1);
    world.begin("p", 1);
    for n in 0..2 {
        world.send_message("p", message("Q", &n.to_string()), Some(1));
        world.send_message("p", Message { persistent: false, ..message("Q", "m") }, Some(1));
    }
    let commit = Request::Commit { transaction: TransactionNumber(1) };
    assert!(matches!(world.request("p", commit), Err(Refusal::Limit(_))));
    assert_eq!(world.broker.status().memory_bytes, 0);
    assert_eq!(world.storage.appended(), 0);
}

#[test]
fn a_later_send_outside_does_not_make_a_transaction_look_like_a_repetition() {
    let mut world = World::default();
    world.connect("p");
    world.begin("p", 1);
    world.send_message("p", message("Q", "first"), Some(1));
    world.send("p", "Q", "second");
    world.commit_transaction("p", 1);
    world.commit();
    assert_eq!(world.status("Q").lines[0].stored, 2);
}
