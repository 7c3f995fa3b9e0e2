//! A client that consumes, and perhaps sends on what it consumed.

use std::collections::VecDeque;

use super::producer::{content, send};
use super::{Desk, Line, Next, Waits};
use crate::Micros;
use crate::history::{DeliveryId, Kind, Seen, TransactionId};
use crate::wire::{AckOf, Ask, Delivered, Place, TransactionOf, Wanted};

/// About as long as an answer takes.
const SOON_US: Micros = 1_000;

/// A delivery that is not acknowledged, or only in an open transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    consumer: u32,
    tag: u64,
    delivery: DeliveryId,
}

/// An answer that is waited for.
#[derive(Debug)]
pub(super) enum Asked {
    Subscribe,
    Unsubscribe,
    Remove,
    /// Acknowledgements, a step of a transaction, or its commit.
    Settle,
    /// A rollback: what was acknowledged can be again.
    Rollback(Vec<Held>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Not a consumer on this connection.
    Off,
    /// It has asked to be one.
    Begun,
    On,
    Ending,
    Removing,
}

#[derive(Debug)]
struct Open {
    transaction: TransactionOf,
    record: TransactionId,
    acknowledged: Vec<Held>,
}

/// Where it sends on what it consumed.
#[derive(Debug)]
struct Sender {
    producer: u32,
    message_last: u32,
    to: Place,
}

#[derive(Debug)]
pub(super) struct Consumer {
    wanted: Wanted,
    /// Its number on this connection.
    number: u32,
    state: State,
    holding: VecDeque<Held>,
    open: Option<Open>,
    sender: Option<Sender>,
    /// Ends its durable subscription now and then.
    is_inconstant: bool,
}

impl Consumer {
    pub(super) fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            number: 0,
            state: State::Off,
            holding: VecDeque::new(),
            open: None,
            sender: None,
            is_inconstant: false,
        }
    }

    pub(super) fn inconstant(mut self) -> Self {
        self.is_inconstant = true;
        self
    }

    pub(super) fn moving(mut self, producer: u32, to: Place) -> Self {
        self.sender = Some(Sender { producer, message_last: 0, to });
        self
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == State::On && self.holding.is_empty() && self.open.is_none()
    }

    /// Does what may be done now.
    pub(super) fn act(&mut self, line: &mut Line, desk: &mut Desk<'_>) -> Next {
        match self.state {
            State::Off => {
                self.number += 1;
                self.state = State::Begun;
                let (consumer, wanted) = (self.number, self.wanted);
                let waits = Waits::Consumer(Asked::Subscribe);
                line.ask(desk, Kind::Subscribe(wanted), waits, |op| Ask::Subscribe { op, consumer, wanted });
                return Next::Stay(None);
            }
            // Whether that took place it does not know then.
            State::Removing if !desk.quiesced && line.random.chance(3) => return Next::Crash,
            State::Begun | State::Ending | State::Removing => return Next::Stay(None),
            State::On => {}
        }
        if !desk.quiesced && line.random.chance(desk.shape.rarely) {
            return self.do_something_rare(line, desk);
        }
        if self.open.is_some() {
            self.go_on(line, desk);
        } else if !self.holding.is_empty() {
            self.deal_with_some(line, desk);
        }
        let goes_on = self.open.is_some() || !self.holding.is_empty();
        let delay = line.pause(desk.shape.pause_us);
        Next::Stay(goes_on.then_some(delay))
    }

    fn do_something_rare(&mut self, line: &mut Line, desk: &mut Desk<'_>) -> Next {
        match line.random.below(4) {
            0 | 1 if !self.is_inconstant => Next::Crash,
            2 if self.open.is_none() => Next::Leave,
            _ if self.open.is_some() => Next::Stay(Some(desk.shape.pause_us)),
            _ => {
                // What it has returns with the consumer.
                self.holding.clear();
                self.state = State::Ending;
                let consumer = self.number;
                let waits = Waits::Consumer(Asked::Unsubscribe);
                line.ask(desk, Kind::Other, waits, |op| Ask::Unsubscribe { op, consumer });
                Next::Stay(None)
            }
        }
    }

    fn deal_with_some(&mut self, line: &mut Line, desk: &mut Desk<'_>) {
        if desk.quiesced {
            let all: Vec<_> = self.holding.drain(..).collect();
            return self.acknowledge(line, desk, &all, AckOf::Consumed, None);
        }
        let may_reject = desk.shape.dead_letters && matches!(self.wanted.place, Place::Queue(_));
        match line.random.below(16) {
            0 => self.deal_with_one(line, desk, AckOf::Released),
            1 if may_reject && line.random.chance(3) => self.deal_with_one(line, desk, AckOf::Rejected),
            2..6 => {
                let all: Vec<_> = self.holding.drain(..).collect();
                self.acknowledge(line, desk, &all, AckOf::Consumed, None);
            }
            6..9 => self.begin(line, desk),
            _ if self.sender.is_some() => self.begin(line, desk),
            _ => self.deal_with_one(line, desk, AckOf::Consumed),
        }
    }

    fn deal_with_one(&mut self, line: &mut Line, desk: &mut Desk<'_>, what: AckOf) {
        // Mostly the oldest.
        let count = self.holding.len() as u64;
        let at = if line.random.chance(4) { line.random.below(count) as usize } else { 0 };
        if let Some(held) = self.holding.remove(at) {
            self.acknowledge(line, desk, &[held], what, None);
        }
    }

    fn acknowledge(
        &mut self,
        line: &mut Line,
        desk: &mut Desk<'_>,
        held: &[Held],
        what: AckOf,
        within: Option<(TransactionOf, TransactionId)>,
    ) {
        let consumer = self.number;
        let acks = held.iter().map(|held| (held.tag, what)).collect();
        let transaction = within.map(|(transaction, _)| transaction);
        let kind = Kind::Acknowledge(within.map(|(_, record)| record));
        line.ask(desk, kind, Waits::Consumer(Asked::Settle), |op| Ask::Acknowledge {
            op,
            consumer,
            acks,
            transaction,
        });
        for held in held {
            desk.history.acknowledges(held.delivery, what);
        }
    }

    fn begin(&mut self, line: &mut Line, desk: &mut Desk<'_>) {
        let transaction = line.next_transaction();
        let record = desk.history.transaction(line.id);
        line.ask(desk, Kind::Other, Waits::Consumer(Asked::Settle), |op| Ask::Begin { op, transaction });
        self.open = Some(Open { transaction, record, acknowledged: Vec::new() });
        self.acknowledge_within(line, desk);
    }

    /// Acknowledges some in the open transaction, and sends on as many.
    fn acknowledge_within(&mut self, line: &mut Line, desk: &mut Desk<'_>) {
        let count = 1 + line.random.below(self.holding.len().max(1) as u64) as usize;
        let some: Vec<_> = self.holding.drain(..count.min(self.holding.len())).collect();
        let Some(open) = &mut self.open else { return };
        open.acknowledged.extend_from_slice(&some);
        let within = (open.transaction, open.record);
        if !some.is_empty() {
            self.acknowledge(line, desk, &some, AckOf::Consumed, Some(within));
        }
        let Some(sender) = &mut self.sender else { return };
        for _ in &some {
            sender.message_last += 1;
            let content = content(line, desk, sender.producer, sender.message_last, true, sender.to);
            let message = desk.history.message(content);
            send(line, desk, message, Some(within), Waits::Consumer(Asked::Settle));
        }
    }

    fn go_on(&mut self, line: &mut Line, desk: &mut Desk<'_>) {
        let choice = if desk.quiesced { 9 } else { line.random.below(10) };
        if choice < 3 && !self.holding.is_empty() {
            return self.acknowledge_within(line, desk);
        }
        let Some(Open { transaction, record, acknowledged }) = self.open.take() else { return };
        if choice < 5 {
            let waits = Waits::Consumer(Asked::Rollback(acknowledged));
            line.ask(desk, Kind::Rollback(record), waits, |op| Ask::Rollback { op, transaction });
        } else {
            let waits = Waits::Consumer(Asked::Settle);
            line.ask(desk, Kind::Commit(record), waits, |op| Ask::Commit { op, transaction });
        }
    }

    pub(super) fn delivered(&mut self, line: &mut Line, desk: &mut Desk<'_>, delivered: Delivered) {
        // A consumer that has ended may still get what was under way.
        if delivered.consumer != self.number || !matches!(self.state, State::Begun | State::On) {
            return;
        }
        let (client, reign, left_after) = (line.id, line.reign, line.left_after);
        let seen = Seen { client, reign, wanted: self.wanted, delivered, left_after };
        let delivery = desk.history.delivered(&seen);
        if self.wanted.auto_ack {
            return;
        }
        if let Some(delivery) = delivery {
            self.holding.push_back(Held { consumer: self.number, tag: delivered.tag, delivery });
        }
        let delay = line.pause(desk.shape.pause_us);
        line.wake_in(desk, delay);
    }

    /// `false` = it gives up the connection.
    pub(super) fn answered(
        &mut self,
        line: &mut Line,
        desk: &mut Desk<'_>,
        asked: Asked,
        is_done: bool,
    ) -> bool {
        match (asked, is_done) {
            (Asked::Subscribe, true) => self.state = State::On,
            (Asked::Unsubscribe, true) => match (self.wanted.place, self.wanted.durable) {
                (Place::Topic(topic), Some(durable)) if self.is_inconstant => {
                    self.state = State::Removing;
                    let waits = Waits::Consumer(Asked::Remove);
                    let kind = Kind::Remove(topic, durable);
                    line.ask(desk, kind, waits, |op| Ask::Remove { op, topic, durable });
                    let delay = line.pause(SOON_US);
                    line.wake_in(desk, delay);
                    return true;
                }
                _ => self.state = State::Off,
            },
            (Asked::Remove, true) => self.state = State::Off,
            (Asked::Settle, true) => {}
            (Asked::Rollback(acknowledged), true) => {
                // They are with it again, as they came, if it is still the one that got them.
                let (number, is_on) = (self.number, self.state == State::On);
                self.holding.extend(acknowledged.iter().filter(|held| is_on && held.consumer == number));
                self.holding.make_contiguous().sort_unstable_by_key(|held| held.tag);
            }
            (_, false) => return false,
        }
        let delay = line.pause(desk.shape.pause_us);
        line.wake_in(desk, delay);
        true
    }

    pub(super) fn lost(&mut self, desk: &mut Desk<'_>) {
        self.state = State::Off;
        self.holding.clear();
        if let Some(open) = self.open.take() {
            desk.history.abandoned(open.record);
        }
    }
}
