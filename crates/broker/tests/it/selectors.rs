use kahawai_broker::Outcome;
use kahawai_message::Message;
use kahawai_message::front::{Refusal, Request, Subscribe};

use crate::world::{World, message, subscribe};

fn typed(text: &str, jms_type: &str) -> Message {
    Message { jms_type: Some(jms_type.into()), ..message("Q", text) }
}

fn selecting(consumer: u32, jms_type: &str, prefetch: u32) -> Subscribe {
    Subscribe {
        selector: Some(format!("JMSType = '{jms_type}'").into()),
        prefetch,
        ..subscribe(consumer, "Q")
    }
}

#[test]
fn a_consumer_with_a_selector_gets_what_matches_and_leaves_the_rest() {
    let mut world = World::default();
    world.connect("p");
    world.connect("c");
    for n in 0..600 {
        let jms_type = if n % 100 == 0 { "rare" } else { "usual" };
        world.send_message("p", typed(&n.to_string(), jms_type), None);
    }
    world.commit();
    world.subscribe("c", selecting(1, "rare", 2));
    let got = world.take();
    assert_eq!(got.iter().map(|got| &*got.text).collect::<Vec<_>>(), ["0", "100"]);
    world.ack(&got[0]);
    world.ack(&got[1]);
    assert_eq!(world.texts(), ["200", "300"]);
    // Somebody without a selector gets what is left, in order.
    world.connect("all");
    world.subscribe("all", Subscribe { prefetch: 3, ..subscribe(1, "Q") });
    assert_eq!(world.seen(), ["all:1", "all:2", "all:3"]);
}

#[test]
fn new_messages_and_messages_in_memory_are_selected_too() {
    let mut world = World::default();
    world.connect("p");
    world.connect("c");
    world.subscribe("c", selecting(1, "x", 10));
    world.send_message("p", typed("1", "y"), None);
    world.send_message("p", typed("2", "x"), None);
    world.send_message("p", Message { persistent: false, ..typed("3", "x") }, None);
    world.send_message("p", Message { persistent: false, ..typed("4", "y") }, None);
    world.commit();
    let mut seen = world.texts();
    seen.sort();
    assert_eq!(seen, ["2", "3"]);
}

#[test]
fn what_one_selecting_consumer_gives_back_another_finds_behind_itself() {
    let mut world = World::default();
    world.connect("p");
    world.connect("a");
    world.subscribe("a", selecting(1, "x", 10));
    world.connect("b");
    world.subscribe("b", selecting(1, "x", 10));
    for text in ["1", "2", "3"] {
        world.send_message("p", typed(text, "x"), None);
        world.send_message("p", Message { persistent: false, ..typed(&format!("m{text}"), "x") }, None);
    }
    world.commit();
    assert_eq!(world.take().len(), 6);
    world.disconnect("a");
    world.disconnect("b");
    world.connect("c");
    world.subscribe("c", selecting(1, "x", 10));
    assert_eq!(world.take().len(), 6);
}

#[test]
fn verdicts_that_come_late_take_nothing_from_others() {
    let mut world = World::default();
    world.node_is_slow = true;
    world.connect("p");
    world.connect("c");
    world.subscribe("c", selecting(1, "x", 10));
    for n in 0..3 {
        world.send_message("p", typed(&n.to_string(), "x"), None);
    }
    world.commit();
    assert_eq!(world.scans.len(), 1);
    world.connect("all");
    world.subscribe("all", Subscribe { prefetch: 2, ..subscribe(1, "Q") });
    assert_eq!(world.seen(), ["all:0", "all:1"]);
    world.node_is_slow = false;
    world.work();
    assert_eq!(world.seen(), ["c:2"]);
    // And those for somebody who has left do nothing.
    world.node_is_slow = true;
    world.send_message("p", typed("3", "x"), None);
    world.commit();
    world.disconnect("c");
    world.work();
    assert!(world.seen().is_empty());
}

#[test]
fn a_durable_subscription_acknowledges_what_does_not_match_also_while_offline() {
    let mut world = World::default();
    world.connect("p");
    world.connect("d");
    let durable = |consumer| Subscribe {
        selector: Some("JMSType = 'x'".into()),
        durable_name: Some("s".into()),
        ..subscribe(consumer, "topic://T")
    };
    let send = |world: &mut World, text: &str, jms_type: &str| {
        let message = Message { jms_type: Some(jms_type.into()), ..message("topic://T", text) };
        world.send_message("p", message, None);
        world.commit();
    };
    world.subscribe("d", durable(1));
    world.commit();
    send(&mut world, "1", "x");
    send(&mut world, "2", "y");
    assert_eq!(world.texts(), ["1"]);
    assert_eq!((world.storage.unmatched, world.status("topic://T").lines[0].stored), (1, 1));
    world.disconnect("d");
    send(&mut world, "3", "y");
    send(&mut world, "4", "x");
    assert_eq!((world.storage.unmatched, world.status("topic://T").lines[0].stored), (2, 2));
    world.connect("d");
    world.subscribe("d", durable(1));
    assert_eq!(world.seen(), ["d:1+1", "d:4"]);
    // Over a restart: only what comes new is looked at while nobody is there.
    world.restart();
    world.connect("p");
    send(&mut world, "5", "y");
    assert_eq!(world.status("topic://T").lines[0].stored, 2);
    world.connect("d");
    world.subscribe("d", durable(1));
    assert_eq!(world.seen(), ["d:1", "d:4"]);
}

#[test]
fn a_browser_may_select() {
    let mut world = World::default();
    world.connect("p");
    for n in 0..5 {
        world.send_message("p", typed(&n.to_string(), if n % 2 == 0 { "x" } else { "y" }), None);
    }
    world.send_message("p", Message { persistent: false, ..typed("5", "x") }, None);
    world.commit();
    world.connect("b");
    world.subscribe("b", Subscribe { browser: true, ..selecting(1, "x", 10) });
    assert_eq!(world.texts(), ["0", "2", "4", "5"]);
    assert_eq!(world.events.len(), 1);
}

#[test]
fn a_selector_that_does_not_parse_is_refused() {
    let mut world = World::default();
    world.connect("c");
    let bad = Subscribe { selector: Some("JMSType = ".into()), ..subscribe(1, "Q") };
    assert!(matches!(world.request("c", Request::Subscribe(Box::new(bad))), Err(Refusal::Selector(_))));
    let blank = Subscribe { selector: Some("  ".into()), ..subscribe(1, "Q") };
    assert!(matches!(world.subscribe("c", blank), Outcome::Done));
}
