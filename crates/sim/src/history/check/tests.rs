//! For each rule a history that breaks it, and one beside it that does not.

use super::*;
use crate::history::{Content, Kind, Layout, MessageNumber, Moment, OperationId};
use crate::wire::{AckOf, ClientId, Delivered, Wanted};

const QUEUE: Place = Place::Queue(1);
const TOPIC: Place = Place::Topic(0);
const A: ClientId = ClientId(0);
const B: ClientId = ClientId(1);

fn wanted(place: Place, durable: Option<u8>) -> Wanted {
    let (colour, auto_ack) = (None, false);
    Wanted { place, durable, colour, prefetch: 1, auto_ack, exclusive: false, priority: 0, browser: false }
}

/// A history as it is told, each call a step.
struct Told {
    history: History,
    reign: u64,
}

impl Told {
    fn new() -> Self {
        let mut history = History::new(Layout { queues: 2, topics: 1, durables: 2 });
        history.begin_step(1);
        history.connected(A, 1);
        history.connected(B, 1);
        Self { history, reign: 1 }
    }

    fn now(&mut self) -> Moment {
        let now = self.history.now + 10;
        self.history.begin_step(now)
    }

    fn ask(&mut self, kind: Kind) -> OperationId {
        self.now();
        self.history.asked(A, 0, self.reign, kind)
    }

    fn ok(&mut self, operation: OperationId) -> Moment {
        self.now();
        self.history.ok(operation);
        self.history.moment()
    }

    fn message(&mut self, number: u32, place: Place) -> MessageNumber {
        let content = Content {
            producer: 0,
            number,
            numbered: true,
            place,
            persistent: true,
            priority: 4,
            colour: 0,
            lives_ms: 0,
        };
        self.history.message(content)
    }

    fn send(&mut self, message: MessageNumber, within: Option<TransactionId>) -> (CopyId, OperationId) {
        let copy = self.history.copy(message, within);
        (copy, self.ask(Kind::Send(copy)))
    }

    /// A message that is confirmed.
    fn sent(&mut self, number: u32, place: Place) -> CopyId {
        let message = self.message(number, place);
        let (copy, send) = self.send(message, None);
        self.ok(send);
        copy
    }

    fn delivered(&self, copy: CopyId, place: Place) -> Delivered {
        let message = self.history.copies[copy.0 as usize].message;
        let content = self.history.messages[message as usize].content;
        Delivered {
            consumer: 1,
            tag: 1,
            place,
            copy: Some(copy),
            sent_to: content.place,
            traits: (content.colour, content.persistent, content.priority),
            redelivery: 0,
        }
    }

    /// A delivery, the `times`-th of the message that the broker counts, that left after a moment.
    fn came(&mut self, to: ClientId, copy: CopyId, times: u32, left_after: Moment) -> DeliveryId {
        let message = self.history.copies[copy.0 as usize].message;
        let place = self.history.messages[message as usize].content.place;
        let durable = matches!(place, Place::Topic(_)).then_some(0);
        let mut delivered = self.delivered(copy, place);
        delivered.redelivery = times - 1;
        self.came_so(to, delivered, wanted(place, durable), left_after).unwrap()
    }

    fn came_so(
        &mut self,
        client: ClientId,
        delivered: Delivered,
        wanted: Wanted,
        left_after: Moment,
    ) -> Option<DeliveryId> {
        self.now();
        self.history.delivered(&Seen { client, reign: self.reign, wanted, delivered, left_after })
    }

    fn acknowledge(&mut self, delivery: DeliveryId, within: Option<TransactionId>) -> OperationId {
        let operation = self.ask(Kind::Acknowledge(within));
        self.history.acknowledges(delivery, AckOf::Consumed);
        operation
    }

    /// Delivered, acknowledged and confirmed. Returns when.
    fn consumed(&mut self, copy: CopyId) -> Moment {
        let delivery = self.came(A, copy, 1, 0);
        let acknowledged = self.acknowledge(delivery, None);
        self.ok(acknowledged)
    }

    fn begun(&mut self) -> TransactionId {
        self.now();
        self.history.transaction(A)
    }

    fn subscribed(&mut self, durable: u8) {
        let operation = self.ask(Kind::Subscribe(wanted(TOPIC, Some(durable))));
        self.ok(operation);
    }

    fn check(&self, rule: &str) {
        let found = self.history.check();
        let found = found.as_ref().map_or_else(|violation| violation.0.as_str(), |()| "");
        assert_eq!(found.split(':').next(), Some(rule), "{found}");
    }
}

#[test]
fn a_confirmed_message_is_consumed() {
    let mut told = Told::new();
    let copy = told.sent(1, QUEUE);
    told.check("lost");
    told.consumed(copy);
    told.check("");
}

#[test]
fn a_message_that_was_never_answered_may_be_lost_but_not_after_it_was_seen() {
    let mut told = Told::new();
    let message = told.message(1, QUEUE);
    let (copy, send) = told.send(message, None);
    told.history.unknown(send);
    told.check("");
    let delivery = told.came(A, copy, 1, 0);
    told.check("lost");
    let acknowledged = told.acknowledge(delivery, None);
    told.history.unknown(acknowledged);
    told.check("");
}

#[test]
fn an_acknowledgement_without_an_answer_counts_until_the_message_comes_again() {
    let mut told = Told::new();
    let copy = told.sent(1, QUEUE);
    let delivery = told.came(A, copy, 1, 0);
    let received = told.history.moment();
    let acknowledged = told.acknowledge(delivery, None);
    told.history.unknown(acknowledged);
    told.came(B, copy, 2, received);
    told.check("");
    told.came(B, copy, 3, received + 1);
    told.check("lost");
}

#[test]
fn what_was_given_back_is_not_consumed() {
    let mut told = Told::new();
    let copy = told.sent(1, QUEUE);
    let delivery = told.came(A, copy, 1, 0);
    let operation = told.ask(Kind::Acknowledge(None));
    told.history.acknowledges(delivery, AckOf::Released);
    told.ok(operation);
    told.check("lost");
}

#[test]
fn a_refused_acknowledgement_consumes_nothing() {
    let mut told = Told::new();
    let copy = told.sent(1, QUEUE);
    let delivery = told.came(A, copy, 1, 0);
    let acknowledged = told.acknowledge(delivery, None);
    told.history.refused(acknowledged);
    told.check("lost");
}

#[test]
fn nothing_comes_after_its_acknowledgement_was_confirmed() {
    let mut told = Told::new();
    let copy = told.sent(1, QUEUE);
    let settled = told.consumed(copy);
    // It may have left before: long under way on another connection.
    told.came(B, copy, 2, settled);
    told.check("");
    told.came(B, copy, 3, settled + 1);
    told.check("acknowledged");
}

#[test]
fn a_message_is_consumed_once() {
    let mut told = Told::new();
    let copy = told.sent(1, QUEUE);
    let first = told.came(A, copy, 1, 0);
    let second = told.came(B, copy, 2, 0);
    let first = told.acknowledge(first, None);
    let second = told.acknowledge(second, None);
    told.ok(second);
    told.check("");
    told.ok(first);
    told.check("duplicate");
}

#[test]
fn what_comes_was_sent_and_as_it_comes() {
    let change: [fn(&mut Delivered, &mut Wanted); 8] = [
        |delivered, _| delivered.copy = None,
        |delivered, _| delivered.copy = Some(CopyId(99)),
        |delivered, _| delivered.traits.0 = 7,
        |delivered, _| delivered.traits.1 = false,
        |delivered, _| delivered.traits.2 = 9,
        |delivered, _| delivered.sent_to = Place::Queue(0),
        |delivered, _| delivered.place = Place::Queue(0),
        |_, wanted| wanted.colour = Some(1),
    ];
    for change in change {
        let mut told = Told::new();
        let copy = told.sent(1, QUEUE);
        let (mut delivered, mut wanted) = (told.delivered(copy, QUEUE), wanted(QUEUE, None));
        change(&mut delivered, &mut wanted);
        told.came_so(A, delivered, wanted, 0);
        told.check("invention");
    }
}

#[test]
fn what_was_refused_never_comes() {
    let mut told = Told::new();
    let message = told.message(1, QUEUE);
    let (copy, send) = told.send(message, None);
    told.history.refused(send);
    told.check("");
    told.came(A, copy, 1, 0);
    told.check("invention");
}

#[test]
fn what_is_in_a_transaction_comes_after_its_commit_was_asked_for() {
    type Then = fn(&mut Told, TransactionId);
    let thens: [(Then, &str); 6] = [
        (|_, _| {}, "uncommitted"),
        (
            |told, transaction| {
                told.ask(Kind::Rollback(transaction));
            },
            "uncommitted",
        ),
        (|told, transaction| told.history.abandoned(transaction), "uncommitted"),
        (
            |told, transaction| {
                let commit = told.ask(Kind::Commit(transaction));
                told.history.refused(commit);
            },
            "uncommitted",
        ),
        (
            |told, transaction| {
                told.ask(Kind::Commit(transaction));
            },
            "atomicity",
        ),
        (
            |told, transaction| {
                let commit = told.ask(Kind::Commit(transaction));
                told.ok(commit);
            },
            "atomicity",
        ),
    ];
    for (then, rule) in thens {
        let mut told = Told::new();
        let message = told.message(1, QUEUE);
        let transaction = told.begun();
        let (copy, send) = told.send(message, Some(transaction));
        told.ok(send);
        then(&mut told, transaction);
        let delivery = told.came(A, copy, 1, 0);
        told.check(rule);
        if rule == "atomicity" {
            let acknowledged = told.acknowledge(delivery, None);
            told.ok(acknowledged);
            told.check("");
        }
    }
}

#[test]
fn of_a_transaction_that_is_seen_everything_comes() {
    let mut told = Told::new();
    let transaction = told.begun();
    let (first, second) = (told.message(1, QUEUE), told.message(2, QUEUE));
    let (first, send) = told.send(first, Some(transaction));
    told.ok(send);
    let (second, send) = told.send(second, Some(transaction));
    told.ok(send);
    let commit = told.ask(Kind::Commit(transaction));
    told.history.unknown(commit);
    told.check("");
    told.consumed(first);
    told.check("atomicity");
    told.consumed(second);
    told.check("");
}

/// A message that is acknowledged in a transaction which sends another; its commit is asked for.
fn moved(told: &mut Told) -> (CopyId, CopyId, OperationId) {
    let copy = told.sent(1, QUEUE);
    let delivery = told.came(A, copy, 1, 0);
    let transaction = told.begun();
    let acknowledged = told.acknowledge(delivery, Some(transaction));
    told.ok(acknowledged);
    let message = told.message(2, QUEUE);
    let (sent, send) = told.send(message, Some(transaction));
    told.ok(send);
    let commit = told.ask(Kind::Commit(transaction));
    (copy, sent, commit)
}

#[test]
fn a_transaction_that_is_seen_has_consumed_what_it_acknowledged() {
    let mut told = Told::new();
    let (copy, sent, commit) = moved(&mut told);
    told.history.unknown(commit);
    told.check("");
    told.consumed(sent);
    told.check("");
    let seen = told.history.moment();
    told.came(B, copy, 2, seen + 1);
    told.check("acknowledged");
}

#[test]
fn a_transaction_whose_acknowledgement_had_no_effect_is_never_seen() {
    let mut told = Told::new();
    let (copy, sent, commit) = moved(&mut told);
    told.history.unknown(commit);
    let back = told.history.moment();
    let delivery = told.came(B, copy, 2, back);
    let acknowledged = told.acknowledge(delivery, None);
    told.ok(acknowledged);
    told.check("");
    told.came(A, sent, 1, 0);
    told.check("uncommitted");
}

#[test]
fn a_transaction_whose_acknowledgement_had_no_effect_is_never_confirmed() {
    let mut told = Told::new();
    let (copy, _, commit) = moved(&mut told);
    let back = told.history.moment();
    told.came(B, copy, 2, back);
    told.ok(commit);
    told.check("atomicity");
}

#[test]
fn a_repetition_is_stored_once() {
    for (numbered, rule) in [(true, "duplicate"), (false, "")] {
        let mut told = Told::new();
        let message = told.message(1, QUEUE);
        told.history.messages[message.0 as usize].content.numbered = numbered;
        told.history.messages[message.0 as usize].is_guarded = numbered;
        let (first, send) = told.send(message, None);
        told.history.unknown(send);
        let (second, send) = told.send(message, None);
        told.ok(send);
        told.consumed(second);
        told.check("");
        told.consumed(first);
        told.check(rule);
    }
}

#[test]
fn any_copy_of_a_message_with_a_number_will_do_and_each_without() {
    for (numbered, rule) in [(true, ""), (false, "lost")] {
        let mut told = Told::new();
        let message = told.message(1, QUEUE);
        told.history.messages[message.0 as usize].content.numbered = numbered;
        told.history.messages[message.0 as usize].is_guarded = numbered;
        let (first, send) = told.send(message, None);
        told.history.unknown(send);
        let (_, send) = told.send(message, None);
        told.ok(send);
        told.check("lost");
        told.consumed(first);
        told.check(rule);
    }
}

#[test]
fn each_delivery_of_a_reign_says_another_number() {
    let mut told = Told::new();
    let copy = told.sent(1, QUEUE);
    told.came(A, copy, 1, 0);
    told.reign = 2;
    told.history.connected(A, 2);
    told.came(A, copy, 1, 0);
    told.came(A, copy, 3, 0);
    told.came(A, copy, 2, 0);
    assert_eq!(told.history.violation(), None);
    told.came(A, copy, 2, 0);
    told.check("redelivery");
}

#[test]
fn first_deliveries_on_a_connection_ascend() {
    let mut told = Told::new();
    let copies = [1, 2, 3].map(|number| told.sent(number, QUEUE));
    told.came(A, copies[1], 1, 0);
    // Somebody else's, and one that came back.
    told.came(B, copies[0], 1, 0);
    told.came(A, copies[0], 2, 0);
    told.came(A, copies[2], 1, 0);
    assert_eq!(told.history.violation(), None);
    // A connection of its own.
    told.history.connected(A, 2);
    told.reign = 2;
    told.came(A, copies[1], 1, 0);
    assert_eq!(told.history.violation(), None);
    told.came(A, copies[0], 1, 0);
    told.check("order");
}

#[test]
fn durable_subscriptions_get_what_is_sent_after_they_are_confirmed() {
    let mut told = Told::new();
    let early = told.sent(1, TOPIC);
    told.check("");
    told.subscribed(0);
    let late = told.sent(2, TOPIC);
    told.check("lost");
    told.consumed(late);
    told.check("");
    told.came(A, early, 1, 0);
    told.check("subscription");
    let mut told = Told::new();
    let early = told.sent(1, TOPIC);
    told.subscribed(0);
    told.came(A, early, 1, 0);
    told.check("subscription");
}

#[test]
fn each_durable_subscription_gets_its_own() {
    let mut told = Told::new();
    told.subscribed(0);
    told.subscribed(1);
    let copy = told.sent(1, TOPIC);
    told.consumed(copy);
    told.check("lost");
    let delivered = told.delivered(copy, TOPIC);
    let delivery = told.came_so(B, delivered, wanted(TOPIC, Some(1)), 0).unwrap();
    let acknowledged = told.acknowledge(delivery, None);
    told.ok(acknowledged);
    told.check("");
}

#[test]
fn a_subscription_that_is_asked_to_end_is_owed_nothing() {
    let mut told = Told::new();
    told.subscribed(0);
    let copy = told.sent(1, TOPIC);
    told.check("lost");
    let remove = told.ask(Kind::Remove(0, 0));
    told.check("");
    told.history.unknown(remove);
    told.subscribed(0);
    // It may be the old one.
    told.came(A, copy, 1, 0);
    assert_eq!(told.history.violation(), None);
    let remove = told.ask(Kind::Remove(0, 0));
    told.ok(remove);
    told.subscribed(0);
    told.came(A, copy, 2, 0);
    told.check("subscription");
}

#[test]
fn a_plain_subscriber_proves_that_a_message_is_committed() {
    let mut told = Told::new();
    told.subscribed(0);
    let message = told.message(1, TOPIC);
    let (copy, send) = told.send(message, None);
    told.history.unknown(send);
    told.check("");
    let delivered = told.delivered(copy, TOPIC);
    told.came_so(B, delivered, wanted(TOPIC, None), 0);
    told.check("lost");
}

#[test]
fn what_is_in_memory_is_kept_as_long_as_its_broker() {
    for (reign, rule) in [(1, "lost from memory"), (2, "")] {
        let mut told = Told::new();
        let message = told.message(1, QUEUE);
        told.history.messages[message.0 as usize].content.persistent = false;
        told.history.messages[message.0 as usize].is_guarded = false;
        let (_, send) = told.send(message, None);
        told.ok(send);
        told.history.connected(B, reign);
        told.check(rule);
    }
}

#[test]
fn dead_letters_were_refused_and_stay_dead() {
    let dead = wanted(Place::Dead, None);
    let mut told = Told::new();
    let copy = told.sent(1, QUEUE);
    let delivered = told.delivered(copy, Place::Dead);
    told.came_so(B, delivered, dead, 0);
    told.check("dead letter");

    let mut told = Told::new();
    let copy = told.sent(1, QUEUE);
    let delivery = told.came(A, copy, 1, 0);
    let operation = told.ask(Kind::Acknowledge(None));
    told.history.acknowledges(delivery, AckOf::Rejected);
    told.ok(operation);
    told.check("lost");
    // A crash before the dead letter was committed.
    told.came(A, copy, 2, 0);
    let delivered = told.delivered(copy, Place::Dead);
    let delivery = told.came_so(B, delivered, dead, 0).unwrap();
    let seen = told.history.moment();
    let acknowledged = told.acknowledge(delivery, None);
    told.ok(acknowledged);
    told.check("");
    told.came(A, copy, 3, seen);
    told.check("");
    told.came(A, copy, 4, seen + 1);
    told.check("dead letter");
}
