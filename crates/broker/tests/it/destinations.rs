use kahawai_broker::Outcome;
use kahawai_message::Destination;
use kahawai_message::front::{Event, Refusal, Request, Subscribe};

use crate::world::{World, message, subscribe};

fn refused(world: &mut World, name: &'static str, destination: &str) -> Refusal {
    let message = message(destination, "x");
    world.request(name, Request::Send { message, transaction: None }).unwrap_err()
}

#[test]
fn a_wildcard_consumer_gets_queues_that_exist_and_that_appear_later() {
    let mut world = World::default();
    world.connect("p");
    world.send("p", "A.1", "one");
    world.commit();
    world.connect("c");
    world.subscribe("c", Subscribe { prefetch: 2, ..subscribe(1, "A.*") });
    world.send("p", "A.2", "two");
    world.send("p", "B.1", "no");
    world.send("p", "A.2.x", "no");
    world.send("p", "A.1", "three");
    world.send("p", "A.2", "four");
    world.commit();
    let got = world.take();
    assert_eq!(got.iter().map(|got| &*got.text).collect::<Vec<_>>(), ["one", "two"]);
    world.ack(&got[0]);
    world.ack(&got[1]);
    let mut rest = world.texts();
    rest.sort();
    assert_eq!(rest, ["four", "three"]);
}

#[test]
fn a_wildcard_consumer_serves_its_queues_in_turn() {
    let mut world = World::default();
    world.connect("p");
    for n in 0..3 {
        world.send("p", "A.1", &format!("1.{n}"));
        world.send("p", "A.2", &format!("2.{n}"));
    }
    world.commit();
    world.connect("c");
    world.subscribe("c", Subscribe { prefetch: 1, ..subscribe(1, "A.>") });
    let mut seen = Vec::new();
    while let Some(got) = world.take().pop() {
        seen.push(got.text.clone());
        world.ack(&got);
    }
    assert_eq!(seen.len(), 6);
    assert_eq!(seen[1..5].iter().filter(|text| text.starts_with("1.")).count(), 2, "{seen:?}");
}

#[test]
fn a_list_of_destinations_gets_one_copy_each_all_or_nothing() {
    let mut world = World::default();
    world.connect("p");
    world.connect("t");
    world.subscribe("t", subscribe(1, "topic://T"));
    let Outcome::At(_) = world.send("p", "A,B,topic://T", "x") else { panic!() };
    world.commit();
    world.connect("c");
    world.subscribe("c", subscribe(1, "A,B"));
    let mut got = world.take();
    got.sort_by_key(|got| got.message.destination.to_string());
    let destinations: Vec<_> = got.iter().map(|got| got.message.destination.to_string()).collect();
    assert_eq!(destinations, ["queue://A", "queue://B", "topic://T"]);
    let original = Some(Destination::queue("A,B,topic://T"));
    assert!(got.iter().all(|got| got.message.original_destination == original));
}

#[test]
fn a_virtual_topic_also_feeds_its_queues() {
    let mut world = World::default();
    world.connect("p");
    assert!(matches!(world.send("p", "topic://VirtualTopic.X", "nobody"), Outcome::Done));
    world.connect("c");
    world.subscribe("c", subscribe(1, "Consumer.a.VirtualTopic.X"));
    world.connect("t");
    world.subscribe("t", subscribe(1, "topic://VirtualTopic.X"));
    assert!(matches!(world.send("p", "topic://VirtualTopic.X", "x"), Outcome::At(_)));
    world.commit();
    assert_eq!(world.seen(), ["t:x", "c:x"]);
}

#[test]
fn a_temporary_queue_lives_as_long_as_its_connection() {
    let mut world = World::default();
    world.connect("a");
    world.connect("b");
    world.subscribe("a", subscribe(1, "temp-queue://replies"));
    // The same name is another queue for another connection.
    world.subscribe("b", subscribe(1, "temp-queue://replies"));
    let mut request = message("Q", "request");
    request.reply_to = Some(Destination::from_qualified("temp-queue://replies"));
    world.send_message("a", request, None);
    world.commit();
    world.subscribe("b", subscribe(2, "Q"));
    let reply_to = world.take()[0].message.reply_to.clone().unwrap();
    assert_eq!(reply_to.to_string(), "temp-queue://a:replies");
    assert!(matches!(world.send("b", &reply_to.to_string(), "answer"), Outcome::Done), "nothing is stored");
    assert_eq!(world.seen(), ["a:answer"]);
    // Only its own connection may consume from it.
    let other = Box::new(subscribe(3, &reply_to.to_string()));
    assert!(matches!(world.request("b", Request::Subscribe(other)), Err(Refusal::Unauthorized(_))));
    world.disconnect("a");
    assert!(matches!(refused(&mut world, "b", &reply_to.to_string()), Refusal::NotFound(_)));
    assert_eq!(world.broker.status().memory_bytes, 0);
}

#[test]
fn what_is_no_destination_is_refused() {
    let mut world = World::default();
    world.connect("p");
    for name in ["A.>", "*", "", ",", "a\nb", "temp-queue://x:y"] {
        refused(&mut world, "p", name);
    }
    assert_eq!(world.broker.status().destinations, 0);
}

#[test]
fn a_destination_is_removed_with_all_that_it_holds_unless_it_is_in_use() {
    let mut world = World::default();
    world.connect("p");
    world.send("p", "Q", "x");
    world.commit();
    world.connect("c");
    world.subscribe("c", subscribe(1, "Q"));
    world.take();
    let queue = Destination::queue("Q");
    assert!(matches!(world.broker.remove_destination(&queue, &mut world.storage), Err(Refusal::InUse(_))));
    world.unsubscribe("c", 1);
    assert!(matches!(world.broker.remove_destination(&queue, &mut world.storage), Ok(Outcome::At(_))));
    // Somebody comes before it is committed, and is told.
    world.subscribe("c", subscribe(2, "Q"));
    world.take();
    world.commit();
    assert!(matches!(&world.events[..], [("c", Event::ConsumerClosed(_, Refusal::NotFound(_)))]));
    // The name is free again.
    world.send("p", "Q", "y");
    world.commit();
    world.subscribe("c", subscribe(3, "Q"));
    assert_eq!(world.texts(), ["y"]);
}

#[test]
fn a_hundred_thousand_idle_queues_cost_little_time() {
    let mut world = World::default();
    world.connect("p");
    for n in 0..100_000 {
        world.subscribe("p", subscribe(1, &format!("Q.{n}")));
        world.unsubscribe("p", 1);
    }
    assert_eq!(world.tick(), None, "there is nothing to do for them");
    assert_eq!(world.broker.status().destinations, 100_000);
}
