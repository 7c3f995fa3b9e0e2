use kahawai_broker::{BlockReason, Limits, Options, Outcome};
use kahawai_message::front::{AckKind, Event, Request};
use kahawai_message::storage::Storage;
use kahawai_message::{Destination, Message};

use crate::world::{World, message, subscribe};

#[test]
fn a_message_is_seen_only_when_it_is_committed() {
    let mut world = World::default();
    world.connect("p");
    world.connect("c");
    world.subscribe("c", subscribe(1, "Q"));
    let Outcome::At(end) = world.send("p", "Q", "a") else { panic!() };
    assert!(world.texts().is_empty());
    assert_eq!(world.status("Q").counts.enqueued, 0);
    world.commit_to(end);
    assert_eq!(world.seen(), ["c:a"]);
    assert_eq!(world.status("Q").counts.enqueued, 1);
}

#[test]
fn consumers_take_turns_and_get_no_more_than_their_prefetch() {
    let mut world = World::default();
    world.connect("p");
    for name in ["a", "b"] {
        world.connect(name);
        world.subscribe(name, subscribe_with_prefetch(2));
    }
    for n in 0..6 {
        world.send("p", "Q", &n.to_string());
    }
    world.commit();
    let got = world.take();
    let seen: Vec<_> = got.iter().map(|got| format!("{}:{}", got.client, got.text)).collect();
    assert_eq!(seen, ["a:0", "b:1", "a:2", "b:3"]);
    assert_eq!(world.status("Q").lines[0].in_flight, 4);
    // Room comes with the acknowledgement, not with its commit.
    world.ack(&got[1]);
    assert_eq!(world.seen(), ["b:4"]);
    assert_eq!((world.status("Q").lines[0].in_flight, world.status("Q").lines[0].acks_pending), (4, 1));
    world.commit();
    assert_eq!((world.status("Q").lines[0].acks_pending, world.status("Q").counts.dequeued), (0, 1));
}

fn subscribe_with_prefetch(prefetch: u32) -> kahawai_message::front::Subscribe {
    kahawai_message::front::Subscribe { prefetch, ..subscribe(1, "Q") }
}

#[test]
fn a_higher_consumer_priority_goes_first_while_it_has_room() {
    let mut world = World::default();
    world.connect("p");
    world.connect("low");
    world.subscribe("low", subscribe_with_prefetch(10));
    world.connect("high");
    world.subscribe("high", kahawai_message::front::Subscribe { priority: 5, ..subscribe_with_prefetch(2) });
    for n in 0..4 {
        world.send("p", "Q", &n.to_string());
    }
    world.commit();
    assert_eq!(world.seen(), ["high:0", "high:1", "low:2", "low:3"]);
}

#[test]
fn an_exclusive_consumer_gets_everything_until_it_leaves() {
    let mut world = World::default();
    world.connect("p");
    world.connect("other");
    world.subscribe("other", subscribe_with_prefetch(10));
    world.connect("sole");
    world.subscribe(
        "sole",
        kahawai_message::front::Subscribe { exclusive: true, ..subscribe_with_prefetch(2) },
    );
    for n in 0..4 {
        world.send("p", "Q", &n.to_string());
    }
    world.commit();
    assert_eq!(world.seen(), ["sole:0", "sole:1"]);
    world.disconnect("sole");
    assert_eq!(world.seen(), ["other:0+1", "other:1+1", "other:2", "other:3"]);
}

#[test]
fn what_was_not_acknowledged_returns_in_its_place_and_counts_as_tried() {
    let mut world = World::default();
    world.connect("p");
    world.connect("a");
    world.subscribe("a", subscribe_with_prefetch(3));
    for n in 0..5 {
        world.send("p", "Q", &n.to_string());
    }
    world.commit();
    let got = world.take();
    world.ack(&got[1]);
    world.disconnect("a");
    world.connect("b");
    world.subscribe("b", subscribe_with_prefetch(10));
    // 3 was delivered to `a` when it acknowledged 1.
    assert_eq!(world.seen(), ["b:0+1", "b:2+1", "b:3+1", "b:4"]);
}

#[test]
fn an_acknowledgement_under_way_survives_its_connection() {
    let mut world = World::default();
    world.connect("p");
    world.connect("a");
    world.subscribe("a", subscribe_with_prefetch(1));
    world.send("p", "Q", "x");
    world.commit();
    let got = world.take();
    let Outcome::At(end) = world.ack(&got[0]) else { panic!() };
    world.disconnect("a");
    world.connect("b");
    world.subscribe("b", subscribe_with_prefetch(1));
    assert!(world.seen().is_empty(), "it is neither delivered again");
    world.commit_to(end);
    assert!(world.seen().is_empty(), "nor after the commit");
    assert_eq!(world.status("Q").lines[0].stored, 0);
}

#[test]
fn a_crash_before_the_commit_of_an_acknowledgement_brings_the_message_back() {
    let mut world = World::default();
    world.connect("p");
    world.connect("a");
    world.subscribe("a", subscribe_with_prefetch(1));
    world.send("p", "Q", "x");
    world.commit();
    let got = world.take();
    world.ack(&got[0]);
    world.restart();
    world.connect("a");
    world.subscribe("a", subscribe_with_prefetch(1));
    assert_eq!(world.seen(), ["a:x"]);
}

#[test]
fn a_released_delivery_comes_again_and_is_counted() {
    let mut world = World::default();
    world.connect("p");
    world.connect("a");
    world.subscribe("a", subscribe_with_prefetch(1));
    world.send("p", "Q", "x");
    world.send("p", "Q", "y");
    world.commit();
    let got = world.take();
    world.acknowledge(&got[0], AckKind::Released, None);
    assert_eq!(world.seen(), ["a:x+1"]);
}

#[test]
fn a_deep_queue_is_delivered_in_order_over_many_calls() {
    let limits = Limits { steps_per_call_max: 7, ..Limits::default() };
    let mut world = World::new(Options { limits, ..Options::default() });
    world.connect("p");
    for n in 0..100 {
        world.send("p", "Q", &n.to_string());
    }
    world.commit();
    world.connect("a");
    world.subscribe("a", subscribe_with_prefetch(100));
    let expected: Vec<_> = (0..100).map(|n| n.to_string()).collect();
    assert_eq!(world.texts(), expected);
}

#[test]
fn priorities_count_only_where_they_are_asked_for() {
    let mut world =
        World::new(Options { prioritised: vec![Destination::queue("PRIO.>")], ..Options::default() });
    world.connect("p");
    for (queue, expected) in [("PRIO.A", ["9", "7", "4", "1", "0"]), ("PLAIN", ["4", "1", "9", "0", "7"])] {
        for priority in [4, 1, 9, 0, 7] {
            let sent = Message { priority, ..message(queue, &priority.to_string()) };
            world.send_message("p", sent, None);
        }
        world.commit();
        world.connect("c");
        world.subscribe("c", subscribe(1, queue));
        let mut texts = world.texts();
        if queue == "PRIO.A" {
            // KahaDB has three tiers, not ten.
            texts[..2].sort_by(|a, b| b.cmp(a));
        }
        assert_eq!(texts, expected);
        world.disconnect("c");
    }
}

#[test]
fn non_persistent_messages_need_no_journal_and_keep_their_place() {
    let mut world = World::default();
    world.connect("p");
    world.send("p", "Q", "a");
    world.commit();
    assert!(matches!(world.send_non_persistent("p", "Q", "b"), Outcome::Done));
    world.send("p", "Q", "c");
    world.commit();
    world.connect("c");
    world.subscribe("c", subscribe_with_prefetch(2));
    let got = world.take();
    assert_eq!(got.iter().map(|got| &*got.text).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(world.broker.status().memory_messages, 1);
    world.acknowledge(&got[1], AckKind::Released, None);
    let again = world.take();
    assert_eq!((&*again[0].text, again[0].redelivered), ("b", 1));
    assert!(matches!(world.ack(&again[0]), Outcome::Done));
    assert_eq!(world.broker.status().memory_bytes, 0);
    assert_eq!(world.texts(), ["c"]);
}

#[test]
fn what_a_producer_sends_again_is_confirmed_and_not_stored_again() {
    let mut world = World::default();
    world.connect("p");
    world.send("p", "Q", "a");
    let mut again = message("Q", "a");
    again.id.producer = kahawai_message::ProducerId { connection: "p".into(), session: 1, value: 1 };
    again.id.sequence = 1;
    let Outcome::At(end) = world.send_message("p", again.clone(), None) else { panic!() };
    assert_eq!(end, world.storage.appended_end());
    world.commit();
    // Also by another connection, after a failover.
    world.restart();
    world.connect("q");
    world.send_message("q", again, None);
    world.commit();
    assert_eq!(world.status("Q").lines[0].stored, 1);
}

#[test]
fn a_full_memory_holds_producers_back_until_consumers_make_room() {
    let limits = Limits { memory_bytes_max: 3000, ..Limits::default() };
    let mut world = World::new(Options { limits, ..Options::default() });
    world.connect("p");
    let mut sent = 0;
    let blocked = loop {
        match world.send_non_persistent("p", "Q", "x") {
            Outcome::Done => sent += 1,
            Outcome::Blocked(request, reason) => break (request, reason),
            Outcome::At(_) => panic!(),
        }
    };
    assert_eq!(blocked.1, BlockReason::Memory);
    assert_eq!(world.broker.status().blocked.len(), 1);
    assert!(matches!(world.send("p", "Q", "persistent goes on"), Outcome::At(_)));
    world.connect("c");
    world.subscribe("c", subscribe_with_prefetch(1));
    let mut acked = 0;
    while world.unblocked.is_empty() {
        let got = world.take();
        world.ack(&got[0]);
        acked += 1;
    }
    assert!(acked < sent, "producers go on before everything is gone");
    assert!(matches!(world.request("p", *blocked.0), Ok(Outcome::Done)));
    assert!(world.broker.status().blocked.is_empty());
}

#[test]
fn a_congested_journal_holds_producers_back_and_not_consumers() {
    let mut world = World::default();
    world.connect("p");
    world.connect("c");
    world.subscribe("c", subscribe_with_prefetch(1));
    world.send("p", "Q", "a");
    world.commit();
    world.storage.congested = true;
    let Outcome::Blocked(request, BlockReason::Storage) = world.send("p", "Q", "b") else { panic!() };
    assert!(matches!(world.send_non_persistent("p", "Q", "c"), Outcome::Done));
    let got = world.take();
    assert!(matches!(world.ack(&got[0]), Outcome::At(_)));
    world.storage.congested = false;
    world.tick();
    assert_eq!(world.unblocked, ["p"]);
    assert!(matches!(world.request("p", *request), Ok(Outcome::At(_))));
}

#[test]
fn too_many_acknowledgements_under_way_stop_the_delivery_until_they_are_committed() {
    let limits = Limits { acks_pending_max: 4, ..Limits::default() };
    let mut world = World::new(Options { limits, ..Options::default() });
    world.connect("p");
    world.connect("c");
    world.subscribe("c", subscribe_with_prefetch(1));
    for n in 0..10 {
        world.send("p", "Q", &n.to_string());
    }
    world.commit();
    for _ in 0..4 {
        let got = world.take();
        world.ack(&got[0]);
    }
    assert!(world.inbox.is_empty());
    world.commit();
    assert_eq!(world.texts(), ["4"]);
}

#[test]
fn a_browser_sees_the_queue_and_takes_nothing() {
    let mut world = World::default();
    world.connect("p");
    for n in 0..3 {
        world.send("p", "Q", &n.to_string());
    }
    world.commit();
    world.send_non_persistent("p", "Q", "memory");
    world.connect("c");
    world.subscribe("c", subscribe_with_prefetch(1));
    assert_eq!(world.texts(), ["0"]);
    world.connect("b");
    world.subscribe("b", kahawai_message::front::Subscribe { browser: true, ..subscribe_with_prefetch(2) });
    let mut seen = Vec::new();
    while world.events.is_empty() {
        for got in world.take() {
            assert_eq!(got.client, "b");
            seen.push(got.text.clone());
            world.ack(&got);
        }
    }
    assert_eq!(seen, ["0", "1", "2", "memory"]);
    assert_eq!(world.events, [("b", Event::BrowseEnd(kahawai_message::front::ConsumerNumber(1)))]);
    assert_eq!(world.status("Q").lines[0].stored, 3);
    world.disconnect("b");
    assert_eq!(world.broker.status().memory_messages, 1);
}

#[test]
fn a_browser_of_an_empty_queue_ends_at_once() {
    let mut world = World::default();
    world.connect("b");
    world.subscribe("b", kahawai_message::front::Subscribe { browser: true, ..subscribe(1, "NEW") });
    assert_eq!(world.events.len(), 1);
}

#[test]
fn a_client_id_is_in_use_until_its_connection_ends() {
    let mut world = World::default();
    world.try_connect("a", Some("id")).unwrap();
    assert!(world.try_connect("b", Some("id")).is_err());
    assert!(world.try_connect("a", None).is_err());
    world.disconnect("a");
    world.try_connect("b", Some("id")).unwrap();
}

#[test]
fn leaving_in_good_order_waits_for_everything_before() {
    let mut world = World::default();
    world.connect("p");
    let Outcome::At(sent) = world.send("p", "Q", "a") else { panic!() };
    let Outcome::At(left) = world.request("p", Request::Disconnect).unwrap() else { panic!() };
    assert!(left >= sent);
}

#[test]
fn a_failed_store_is_told_to_everybody() {
    let mut world = World::default();
    world.connect("p");
    world.storage.failed = true;
    let message = message("Q", "a");
    let refusal = world.request("p", Request::Send { message, transaction: None }).unwrap_err();
    assert!(matches!(refusal, kahawai_message::front::Refusal::Storage(_)));
}

#[test]
fn a_message_that_cannot_be_read_is_set_aside() {
    let mut world = World::default();
    world.connect("p");
    world.connect("c");
    world.subscribe("c", subscribe_with_prefetch(1));
    world.send("p", "Q", "a");
    world.send("p", "Q", "b");
    world.commit();
    let got = world.take();
    let (key, consumer) = (world.clients["c"], kahawai_message::front::ConsumerNumber(1));
    let mut fx = Vec::new();
    let World { broker, storage, .. } = &mut world;
    broker.delivery_unreadable(0, key, consumer, got[0].tag, storage, &mut fx).unwrap();
    assert_eq!(fx.len(), 1, "room for the next");
    assert_eq!(world.status("Q").lines[0].unreadable, 1);
    // Its data file was repaired: another consumer gets it, as if nothing had been.
    world.connect("d");
    world.subscribe("d", subscribe_with_prefetch(1));
    assert_eq!(world.take(), []);
    world.retry_unreadable();
    assert_eq!(world.seen(), ["d:a"]);
    assert_eq!(world.status("Q").lines[0].unreadable, 0);
}
