//! What clients asked, what they were told, and what they were given; and whether that can have been.
//!
//! Everything is ordered by [`Moment`]s: numbers of the steps that all clients took together. What a node knew when is bounded
//! from what a connection carries in order: a delivery that comes behind the answer to an operation left the node after that
//! operation was asked ([`Seen::left_after`]). So a delivery is called *late* only where it surely left after the
//! confirmation that forbids it, never because it was long under way.
//!
//! What is held against the broker, and what is not:
//! - A confirmed persistent message is consumed by those it is meant for: a queue's consumers, and the durable subscriptions
//!   that were confirmed before it was first sent. So is an unconfirmed one that anybody has seen: what is visible is committed.
//! - A confirmed non-persistent message in a queue is consumed if no other reign followed. Nothing else is promised for them.
//! - After a confirmed acknowledgement, a message does not come again. One that was never answered may be either way, until the
//!   message comes again: then it had no effect.
//! - A repetition under the same producer and number is stored once, wherever it is stored at all. Other repetitions are messages of
//!   their own.
//! - Within a reign, each delivery of a message by a queue or subscription says another number of deliveries before it.
//! - First deliveries on one connection ascend for each producer, among persistent messages, and among non-persistent ones that
//!   were not sent in a transaction; on a prioritised queue for each tier.
//! - A transaction is visible and in force as a whole, or not at all.
//! - A queue's message that was refused, or can expire, is consumed there or among the dead letters; never there again once it was
//!   seen here. One that is not persistent is dropped.

mod check;

use crate::wire::{AckOf, ClientId, CopyId, Delivered, Place, Wanted};
use crate::{Micros, Violation};

/// Number of a step of the clients, from 1; 0 stands for never.
pub type Moment = u32;

/// No such thing, in the tables.
const NONE: u32 = u32::MAX;

/// How many queues, topics and durable subscriptions of each topic there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Queues; number 0 is prioritised.
    pub queues: u8,
    /// Topics.
    pub topics: u8,
    /// Durable subscriptions of each topic. Number 0 is never removed.
    pub durables: u8,
}

/// An operation in the history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OperationId(u32);

/// A transaction in the history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TransactionId(u32);

/// A delivery in the history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DeliveryId(u32);

/// A message, whatever number of copies of it are sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MessageNumber(u32);

/// What an operation is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Sends a copy.
    Send(CopyId),
    /// Acknowledges deliveries, perhaps in a transaction.
    Acknowledge(Option<TransactionId>),
    /// Commits.
    Commit(TransactionId),
    /// Rolls back.
    Rollback(TransactionId),
    /// Subscribes.
    Subscribe(Wanted),
    /// Ends a durable subscription.
    Remove(u8, u8),
    /// Nothing that anything follows from: a connection's begin and end, the begin of a transaction, a heart-beat.
    Other,
}

/// How an operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It has not.
    Open,
    /// Confirmed.
    Ok,
    /// The connection was lost first.
    Unknown,
    /// Not done.
    Refused,
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// What it is about.
    pub kind: Kind,
    /// Whose.
    pub client: ClientId,
    /// At which node.
    pub node: u8,
    /// Of which reign the connection was; 0 before that is known.
    pub reign: u64,
    /// When it was asked.
    pub asked: Moment,
    /// The same, on the world's clock.
    pub asked_at: Micros,
    /// When it ended.
    pub ended: Moment,
    /// How.
    pub outcome: Outcome,
    /// Of its acknowledgements.
    acks_first: u32,
    acks_count: u32,
}

/// What is sent, as far as checks need it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Content {
    /// Whose.
    pub producer: u32,
    /// Its running number.
    pub number: u32,
    /// Does a repetition carry the same producer and number to the broker?
    pub numbered: bool,
    /// Where to.
    pub place: Place,
    /// Delivery mode.
    pub persistent: bool,
    /// 0 to 9.
    pub priority: u8,
    /// For selectors.
    pub colour: u8,
    /// How long it may wait in its queue, milliseconds; 0 = for ever.
    pub lives_ms: u16,
}

#[derive(Clone, Copy, Debug)]
struct MessageRecord {
    content: Content,
    /// A repetition is recognised.
    is_guarded: bool,
    copy_first: u32,
    copy_last: u32,
}

#[derive(Clone, Copy, Debug)]
struct CopyRecord {
    message: u32,
    operation: u32,
    transaction: u32,
    /// The next copy of the same message.
    next: u32,
    /// When it was first seen by anybody.
    seen: Moment,
    /// Its first [`Stand`]: one for a queue, one for each durable subscription of a topic.
    stands: u32,
}

/// How a copy stands with a queue or a durable subscription.
#[derive(Clone, Copy, Default, Debug)]
struct Stand {
    /// Since when it is surely consumed.
    settled: Moment,
    /// The delivery whose acknowledgement has settled it, or may have.
    by: Option<DeliveryId>,
    /// An acknowledgement of `by` was asked, and nothing shows that it had no effect.
    may_be_settled: bool,
    /// It was refused for good, as far as its consumer knows.
    rejected: bool,
    /// When it was first seen among the dead letters.
    dead: Moment,
    /// The reign of `counts`.
    reign: u64,
    /// Which numbers of earlier deliveries were told in that reign.
    counts: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Open,
    /// A commit is asked.
    Asked,
    Committed,
    /// It can never be committed any more.
    Undone,
}

#[derive(Clone, Debug)]
struct TransactionRecord {
    client: ClientId,
    fate: Fate,
    sends: Vec<CopyId>,
    acks: Vec<DeliveryId>,
    /// A message of it was seen.
    seen: Moment,
    /// A message that it acknowledged came again.
    back: Moment,
    /// Since when it is surely committed.
    committed: Moment,
}

#[derive(Clone, Copy, Debug)]
struct DeliveryRecord {
    copy: CopyId,
    stand: u32,
    received: Moment,
    /// The transaction that acknowledged it last.
    transaction: u32,
}

/// A durable subscription from its beginning to its end.
#[derive(Clone, Copy, Debug)]
struct LineRecord {
    colour: Option<u8>,
    asked: Moment,
    confirmed: Moment,
    end_asked: Moment,
    end_confirmed: Moment,
    /// The one before it may never have ended, and be this.
    may_inherit: bool,
}

/// A delivery as its client sees it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Who got it.
    pub client: ClientId,
    /// From which reign.
    pub reign: u64,
    /// What it subscribed to.
    pub wanted: Wanted,
    /// What came.
    pub delivered: Delivered,
    /// It left its node after this moment.
    pub left_after: Moment,
}

/// The last first delivery of a producer on a connection.
#[derive(Clone, Copy, Debug)]
struct LastOf {
    /// Producer, delivery mode, tier.
    class: (u32, bool, u8),
    number: u32,
}

/// The record of a run.
#[derive(Debug)]
pub struct History {
    layout: Layout,
    now: Micros,
    moment: Moment,
    operations: Vec<Operation>,
    acks: Vec<(DeliveryId, AckOf)>,
    messages: Vec<MessageRecord>,
    copies: Vec<CopyRecord>,
    stands: Vec<Stand>,
    transactions: Vec<TransactionRecord>,
    deliveries: Vec<DeliveryRecord>,
    /// For each durable subscription, its lives.
    lines: Vec<Vec<LineRecord>>,
    /// By client: what came on its connection.
    order: Vec<Vec<LastOf>>,
    reign_last: u64,
    violation: Option<Violation>,
}

impl History {
    /// Nothing has happened.
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            now: 0,
            moment: 0,
            operations: Vec::new(),
            acks: Vec::new(),
            messages: Vec::new(),
            copies: Vec::new(),
            stands: Vec::new(),
            transactions: Vec::new(),
            deliveries: Vec::new(),
            lines: vec![Vec::new(); usize::from(layout.topics) * usize::from(layout.durables)],
            order: Vec::new(),
            reign_last: 0,
            violation: None,
        }
    }

    /// A step begins.
    pub fn begin_step(&mut self, now: Micros) -> Moment {
        self.now = now;
        self.moment += 1;
        self.moment
    }

    /// The step under way.
    pub fn moment(&self) -> Moment {
        self.moment
    }

    /// What was asked so far.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// How many deliveries there were.
    pub fn deliveries(&self) -> usize {
        self.deliveries.len()
    }

    /// The first thing that cannot be, found while it happened.
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// At the end, with everything drained: is all of it as it must be?
    ///
    /// # Errors
    /// The first thing that is not.
    pub fn check(&self) -> Result<(), Violation> {
        match &self.violation {
            Some(violation) => Err(violation.clone()),
            None => check::at_end(self),
        }
    }

    /// Is anything still to be consumed?
    pub fn is_owed_anything(&self) -> bool {
        check::at_end(self).is_err()
    }

    /// A broker that took a connection.
    pub fn connected(&mut self, client: ClientId, reign: u64) {
        self.reign_last = self.reign_last.max(reign);
        let index = client.0 as usize;
        if self.order.len() <= index {
            self.order.resize(index + 1, Vec::new());
        }
        self.order[index].clear();
    }

    /// A new message.
    pub fn message(&mut self, content: Content) -> MessageNumber {
        let is_guarded = content.numbered
            && content.persistent
            && match content.place {
                Place::Topic(topic) => self.current_line(topic, 0).is_some_and(|line| line.confirmed > 0),
                Place::Queue(_) | Place::Dead => true,
            };
        let index = self.messages.len() as u32;
        self.messages.push(MessageRecord { content, is_guarded, copy_first: NONE, copy_last: NONE });
        MessageNumber(index)
    }

    /// What was said of it.
    pub fn content(&self, message: MessageNumber) -> Option<Content> {
        self.messages.get(message.0 as usize).map(|message| message.content)
    }

    /// Another attempt to send a message. [`Kind::Send`] follows.
    pub fn copy(&mut self, message: MessageNumber, transaction: Option<TransactionId>) -> CopyId {
        let copy = CopyId(self.copies.len() as u32);
        let record = &mut self.messages[message.0 as usize];
        let count = match record.content.place {
            Place::Topic(_) => usize::from(self.layout.durables),
            Place::Queue(_) | Place::Dead => 1,
        };
        let last = std::mem::replace(&mut record.copy_last, copy.0);
        if last == NONE {
            record.copy_first = copy.0;
        } else {
            self.copies[last as usize].next = copy.0;
        }
        let stands = self.stands.len() as u32;
        self.stands.resize(self.stands.len() + count, Stand::default());
        if let Some(transaction) = transaction {
            self.transactions[transaction.0 as usize].sends.push(copy);
        }
        self.copies.push(CopyRecord {
            message: message.0,
            operation: NONE,
            transaction: transaction.map_or(NONE, |transaction| transaction.0),
            next: NONE,
            seen: 0,
            stands,
        });
        copy
    }

    /// A transaction is opened.
    pub fn transaction(&mut self, client: ClientId) -> TransactionId {
        let index = self.transactions.len() as u32;
        let (sends, acks) = (Vec::new(), Vec::new());
        let fate = Fate::Open;
        self.transactions.push(TransactionRecord {
            client,
            fate,
            sends,
            acks,
            seen: 0,
            back: 0,
            committed: 0,
        });
        TransactionId(index)
    }

    /// Its connection was lost, and it had not been asked to commit.
    pub fn abandoned(&mut self, transaction: TransactionId) {
        if self.transactions[transaction.0 as usize].fate == Fate::Open {
            self.undone(transaction);
        }
    }

    fn undone(&mut self, transaction: TransactionId) {
        let record = &mut self.transactions[transaction.0 as usize];
        record.fate = Fate::Undone;
        for &delivery in &record.acks {
            let stand = &mut self.stands[self.deliveries[delivery.0 as usize].stand as usize];
            if stand.by == Some(delivery) {
                stand.may_be_settled = false;
            }
        }
        check::transaction_changed(self, transaction);
    }

    fn committed(&mut self, transaction: TransactionId) {
        let record = &mut self.transactions[transaction.0 as usize];
        record.fate = Fate::Committed;
        if record.committed == 0 {
            record.committed = self.moment;
        }
        let acks = std::mem::take(&mut record.acks);
        for &delivery in &acks {
            self.settle(delivery);
        }
        self.transactions[transaction.0 as usize].acks = acks;
        check::transaction_changed(self, transaction);
    }

    /// Something is asked.
    pub fn asked(&mut self, client: ClientId, node: u8, reign: u64, kind: Kind) -> OperationId {
        let id = OperationId(self.operations.len() as u32);
        match kind {
            Kind::Send(copy) => self.copies[copy.0 as usize].operation = id.0,
            Kind::Commit(transaction) => self.transactions[transaction.0 as usize].fate = Fate::Asked,
            Kind::Rollback(transaction) => self.undone(transaction),
            Kind::Subscribe(wanted) => self.subscribing(wanted),
            Kind::Remove(topic, durable) => {
                let moment = self.moment;
                if let Some(line) = self.current_line_mut(topic, durable)
                    && line.end_asked == 0
                {
                    line.end_asked = moment;
                }
            }
            Kind::Acknowledge(_) | Kind::Other => {}
        }
        self.operations.push(Operation {
            kind,
            client,
            node,
            reign,
            asked: self.moment,
            asked_at: self.now,
            ended: 0,
            outcome: Outcome::Open,
            acks_first: self.acks.len() as u32,
            acks_count: 0,
        });
        id
    }

    /// One acknowledgement of the operation that was asked last.
    pub fn acknowledges(&mut self, delivery: DeliveryId, what: AckOf) {
        let Some(operation) = self.operations.last_mut() else { return };
        let Kind::Acknowledge(transaction) = operation.kind else { return };
        operation.acks_count += 1;
        self.acks.push((delivery, what));
        let record = &mut self.deliveries[delivery.0 as usize];
        let Some(stand) = self.stands.get_mut(record.stand as usize) else { return };
        match what {
            AckOf::Consumed => {
                if stand.settled == 0 {
                    stand.by = Some(delivery);
                    stand.may_be_settled = true;
                }
                if let Some(transaction) = transaction {
                    record.transaction = transaction.0;
                    self.transactions[transaction.0 as usize].acks.push(delivery);
                }
            }
            AckOf::Rejected => stand.rejected = true,
            AckOf::Released => {}
        }
    }

    fn settle(&mut self, delivery: DeliveryId) {
        check::settled(self, delivery);
        let moment = self.moment;
        let record = &self.deliveries[delivery.0 as usize];
        let Some(stand) = self.stands.get_mut(record.stand as usize) else { return };
        if stand.settled == 0 {
            stand.settled = moment;
            stand.by = Some(delivery);
        }
    }

    /// An operation is confirmed. Tells when it was asked: what comes behind on the same connection left after that.
    pub fn ok(&mut self, operation: OperationId) -> Moment {
        let index = operation.0 as usize;
        let moment = self.moment;
        let record = &mut self.operations[index];
        record.outcome = Outcome::Ok;
        record.ended = moment;
        let record = *record;
        match record.kind {
            Kind::Acknowledge(None) => {
                let acks = record.acks_first as usize..(record.acks_first + record.acks_count) as usize;
                for at in acks {
                    if let Some(&(delivery, AckOf::Consumed)) = self.acks.get(at) {
                        self.settle(delivery);
                    }
                }
            }
            Kind::Commit(transaction) => self.committed(transaction),
            Kind::Subscribe(wanted) => {
                if let (Place::Topic(topic), Some(durable)) = (wanted.place, wanted.durable)
                    && let Some(line) = self.current_line_mut(topic, durable)
                    && line.confirmed == 0
                    && line.end_asked == 0
                {
                    line.confirmed = moment;
                }
            }
            Kind::Remove(topic, durable) => {
                if let Some(line) = self.current_line_mut(topic, durable)
                    && line.end_asked > 0
                    && line.end_asked <= record.asked
                {
                    line.end_confirmed = moment;
                }
            }
            Kind::Send(_) | Kind::Acknowledge(Some(_)) | Kind::Rollback(_) | Kind::Other => {}
        }
        record.asked
    }

    /// An operation is refused. Tells when it was asked, as [`History::ok`].
    pub fn refused(&mut self, operation: OperationId) -> Moment {
        let record = &mut self.operations[operation.0 as usize];
        record.outcome = Outcome::Refused;
        record.ended = self.moment;
        let record = *record;
        match record.kind {
            Kind::Acknowledge(_) => {
                let acks = record.acks_first as usize..(record.acks_first + record.acks_count) as usize;
                for &(delivery, what) in self.acks.get(acks).unwrap_or_default() {
                    let stand = self.deliveries[delivery.0 as usize].stand as usize;
                    if let Some(stand) = self.stands.get_mut(stand)
                        && what == AckOf::Consumed
                        && stand.by == Some(delivery)
                    {
                        stand.may_be_settled = false;
                    }
                }
            }
            Kind::Commit(transaction) => self.undone(transaction),
            // A removal that is refused finds nothing to remove, or somebody there: either way nothing is owed to the old one.
            Kind::Send(_) | Kind::Rollback(_) | Kind::Subscribe(_) | Kind::Remove(..) | Kind::Other => {}
        }
        record.asked
    }

    /// The connection was lost before the answer came.
    pub fn unknown(&mut self, operation: OperationId) {
        let record = &mut self.operations[operation.0 as usize];
        record.outcome = Outcome::Unknown;
        record.ended = self.moment;
    }

    fn lives(&self, topic: u8, durable: u8) -> usize {
        usize::from(topic) * usize::from(self.layout.durables) + usize::from(durable)
    }

    fn current_line(&self, topic: u8, durable: u8) -> Option<&LineRecord> {
        self.lines.get(self.lives(topic, durable))?.last()
    }

    fn current_line_mut(&mut self, topic: u8, durable: u8) -> Option<&mut LineRecord> {
        let lives = self.lives(topic, durable);
        self.lines.get_mut(lives)?.last_mut()
    }

    fn subscribing(&mut self, wanted: Wanted) {
        let (Place::Topic(topic), Some(durable)) = (wanted.place, wanted.durable) else { return };
        let last = self.current_line(topic, durable);
        if last.is_some_and(|line| line.end_asked == 0) {
            return;
        }
        let may_inherit = last.is_some_and(|line| line.end_confirmed == 0);
        let asked = self.moment;
        let colour = wanted.colour;
        let lives = self.lives(topic, durable);
        self.lines[lives].push(LineRecord {
            colour,
            asked,
            confirmed: 0,
            end_asked: 0,
            end_confirmed: 0,
            may_inherit,
        });
    }

    /// Index of the stand of a copy with whoever wanted it; [`NONE`] for a topic's plain subscriber, and for who only looks.
    fn stand_of(&self, copy: &CopyRecord, wanted: &Wanted) -> u32 {
        match (self.messages[copy.message as usize].content.place, wanted.durable) {
            _ if wanted.browser => NONE,
            (Place::Topic(_), None) => NONE,
            (Place::Topic(_), Some(durable)) => {
                copy.stands + u32::from(durable.min(self.layout.durables.saturating_sub(1)))
            }
            (Place::Queue(_) | Place::Dead, _) => copy.stands,
        }
    }

    /// A message came. Returns its record, for acknowledgements; `None` if it is none that was ever sent.
    pub fn delivered(&mut self, seen: &Seen) -> Option<DeliveryId> {
        let found = check::delivered(self, seen);
        if let Err(violation) = found {
            self.found(violation);
        }
        let id = seen.delivered.copy?;
        let copy = *self.copies.get(id.0 as usize)?;
        let stand = self.stand_of(&copy, &seen.wanted);
        let delivery = DeliveryId(self.deliveries.len() as u32);
        let received = self.moment;
        self.deliveries.push(DeliveryRecord { copy: id, stand, received, transaction: NONE });
        self.note_order(seen, &copy);
        if copy.seen == 0 {
            self.copies[id.0 as usize].seen = received;
        }
        if let Some(transaction) = self.transactions.get_mut(copy.transaction as usize)
            && transaction.seen == 0
        {
            transaction.seen = received;
            if transaction.fate == Fate::Asked {
                self.committed(TransactionId(copy.transaction));
            }
        }
        let record = self.stands.get_mut(stand as usize)?;
        if seen.delivered.place == Place::Dead && record.dead == 0 {
            record.dead = received;
        }
        if seen.delivered.place != Place::Dead {
            if record.reign != seen.reign {
                record.reign = seen.reign;
                record.counts = 0;
            }
            record.counts |= 1u64.checked_shl(seen.delivered.redelivery).unwrap_or(0);
        }
        // Left after it had come to whoever acknowledged it: that acknowledgement had no effect.
        if record.may_be_settled
            && let Some(by) = record.by
            && seen.left_after > self.deliveries[by.0 as usize].received
        {
            record.may_be_settled = false;
            let transaction = self.deliveries[by.0 as usize].transaction;
            if let Some(record) = self.transactions.get_mut(transaction as usize) {
                record.back = received;
                if record.fate == Fate::Asked {
                    self.undone(TransactionId(transaction));
                } else {
                    check::transaction_changed(self, TransactionId(transaction));
                }
            }
        }
        Some(delivery)
    }

    fn note_order(&mut self, seen: &Seen, copy: &CopyRecord) {
        let Some(class) = check::order_class(self, seen, copy) else { return };
        let number = self.messages[copy.message as usize].content.number;
        let Some(order) = self.order.get_mut(seen.client.0 as usize) else { return };
        match order.iter_mut().find(|last| last.class == class) {
            Some(last) => last.number = last.number.max(number),
            None => order.push(LastOf { class, number }),
        }
    }

    fn found(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }
}
