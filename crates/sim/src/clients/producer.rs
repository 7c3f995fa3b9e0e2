//! A client that only sends.

use std::collections::VecDeque;

use kahawai_testkit::Random;

use super::{Desk, Line, Next, Waits};
use crate::history::{Content, Kind, MessageNumber, TransactionId};
use crate::wire::{Ask, Parcel, Place, TransactionOf};

/// What becomes of sends that were not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Policy {
    /// Sent again under the same number.
    Resend,
    /// Sent again, without a number: there may be two.
    Blind,
    /// Given up.
    Forget,
}

/// Messages that are sent again together, or none.
#[derive(Debug)]
struct Group {
    messages: Vec<MessageNumber>,
    is_transaction: bool,
}

/// An answer that is waited for.
#[derive(Debug)]
pub(super) enum Asked {
    Send(MessageNumber),
    /// A step of a transaction; its commit decides.
    Part,
    Commit(Vec<MessageNumber>),
}

#[derive(Debug)]
struct Open {
    transaction: TransactionOf,
    record: TransactionId,
    messages: Vec<MessageNumber>,
    left: u32,
    will_commit: bool,
}

#[derive(Debug)]
pub(super) struct Producer {
    number: u32,
    policy: Policy,
    message_last: u32,
    /// How many answers may be outstanding.
    window: usize,
    /// One in so many is a transaction.
    transacts: u64,
    /// To be sent before anything new, in order.
    again: VecDeque<Group>,
    open: Option<Open>,
}

/// What the message is like, at random.
pub(super) fn content(
    line: &mut Line,
    desk: &Desk<'_>,
    producer: u32,
    number: u32,
    numbered: bool,
    place: Place,
) -> Content {
    let random = &mut line.random;
    let may_expire = desk.shape.dead_letters && matches!(place, Place::Queue(_));
    Content {
        producer,
        number,
        numbered,
        place,
        persistent: !random.chance(8),
        priority: if random.chance(4) { random.below(10) as u8 } else { 4 },
        colour: random.below(3) as u8,
        lives_ms: if may_expire && random.chance(16) { 1 + random.below(300) as u16 } else { 0 },
    }
}

/// Sends another copy of a message.
pub(super) fn send(
    line: &mut Line,
    desk: &mut Desk<'_>,
    message: MessageNumber,
    within: Option<(TransactionOf, TransactionId)>,
    waits: Waits,
) {
    let Some(content) = desk.history.content(message) else { return };
    let copy = desk.history.copy(message, within.map(|(_, record)| record));
    let padding = if line.random.chance(16) { 400 } else { line.random.below(48) as u16 };
    let parcel = Parcel {
        copy,
        place: content.place,
        number: content.numbered.then_some((content.producer, content.number)),
        persistent: content.persistent,
        priority: content.priority,
        colour: content.colour,
        padding,
        lives_ms: content.lives_ms,
    };
    let transaction = within.map(|(transaction, _)| transaction);
    line.ask(desk, Kind::Send(copy), waits, |op| Ask::Send { op, parcel, transaction });
}

impl Producer {
    pub(super) fn new(number: u32, policy: Policy, random: &mut Random) -> Self {
        Self {
            number,
            policy,
            message_last: 0,
            window: 1 << random.below(4),
            transacts: 4 + random.below(8),
            again: VecDeque::new(),
            open: None,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.again.is_empty() && self.open.is_none()
    }

    fn new_message(&mut self, line: &mut Line, desk: &mut Desk<'_>) -> MessageNumber {
        self.message_last += 1;
        let layout = desk.shape.layout;
        let at = line.random.below(u64::from(layout.queues) + u64::from(layout.topics)) as u8;
        let place = match at.checked_sub(layout.queues) {
            None => Place::Queue(at),
            Some(topic) => Place::Topic(topic),
        };
        let numbered = self.policy != Policy::Blind;
        let content = content(line, desk, self.number, self.message_last, numbered, place);
        desk.history.message(content)
    }

    /// Does what may be done now.
    pub(super) fn act(&mut self, line: &mut Line, desk: &mut Desk<'_>) -> Next {
        let burst = 1 + line.random.below(3);
        for _ in 0..burst {
            if line.pending.len() >= self.window {
                break;
            }
            if self.open.is_some() {
                self.go_on(line, desk);
            } else if let Some(group) = self.again.pop_front() {
                Self::send_again(line, desk, group);
            } else if desk.quiesced {
                return Next::Stay(None);
            } else if line.random.chance(self.transacts) {
                self.begin(line, desk);
            } else {
                let message = self.new_message(line, desk);
                send(line, desk, message, None, Waits::Producer(Asked::Send(message)));
            }
        }
        if !desk.quiesced && line.random.chance(8 * desk.shape.rarely) {
            return Next::Crash;
        }
        let delay = line.pause(desk.shape.pause_us);
        Next::Stay(Some(delay))
    }

    fn begin(&mut self, line: &mut Line, desk: &mut Desk<'_>) {
        let transaction = line.next_transaction();
        let record = desk.history.transaction(line.id);
        line.ask(desk, Kind::Other, Waits::Producer(Asked::Part), |op| Ask::Begin { op, transaction });
        let left = 1 + line.random.below(4) as u32;
        let will_commit = !line.random.chance(4);
        self.open = Some(Open { transaction, record, messages: Vec::new(), left, will_commit });
    }

    fn go_on(&mut self, line: &mut Line, desk: &mut Desk<'_>) {
        let Some(mut open) = self.open.take() else { return };
        let transaction = open.transaction;
        if open.left > 0 && !desk.quiesced {
            open.left -= 1;
            let message = self.new_message(line, desk);
            open.messages.push(message);
            send(line, desk, message, Some((transaction, open.record)), Waits::Producer(Asked::Part));
            self.open = Some(open);
        } else if open.will_commit {
            let waits = Waits::Producer(Asked::Commit(open.messages));
            line.ask(desk, Kind::Commit(open.record), waits, |op| Ask::Commit { op, transaction });
        } else {
            let (kind, waits) = (Kind::Rollback(open.record), Waits::Producer(Asked::Part));
            line.ask(desk, kind, waits, |op| Ask::Rollback { op, transaction });
        }
    }

    fn send_again(line: &mut Line, desk: &mut Desk<'_>, group: Group) {
        if !group.is_transaction {
            for message in group.messages {
                send(line, desk, message, None, Waits::Producer(Asked::Send(message)));
            }
            return;
        }
        let transaction = line.next_transaction();
        let record = desk.history.transaction(line.id);
        line.ask(desk, Kind::Other, Waits::Producer(Asked::Part), |op| Ask::Begin { op, transaction });
        for &message in &group.messages {
            send(line, desk, message, Some((transaction, record)), Waits::Producer(Asked::Part));
        }
        let waits = Waits::Producer(Asked::Commit(group.messages));
        line.ask(desk, Kind::Commit(record), waits, |op| Ask::Commit { op, transaction });
    }

    /// `false` = it gives up the connection.
    pub(super) fn answered(&mut self, asked: Asked, is_done: bool) -> bool {
        // A message that is refused is not sent again; a transaction with a step that is refused cannot go on.
        is_done || matches!(asked, Asked::Send(_))
    }

    pub(super) fn lost(&mut self, desk: &mut Desk<'_>, pending: impl Iterator<Item = Waits>) {
        let mut again = VecDeque::new();
        for waits in pending {
            match waits {
                Waits::Producer(Asked::Send(message)) => {
                    again.push_back(Group { messages: vec![message], is_transaction: false });
                }
                Waits::Producer(Asked::Commit(messages)) => {
                    again.push_back(Group { messages, is_transaction: true });
                }
                Waits::Producer(Asked::Part)
                | Waits::Consumer(_)
                | Waits::Browser(_)
                | Waits::Greeting
                | Waits::Heartbeat
                | Waits::Leave => {}
            }
        }
        if let Some(open) = self.open.take() {
            desk.history.abandoned(open.record);
            if open.will_commit && !open.messages.is_empty() {
                again.push_back(Group { messages: open.messages, is_transaction: true });
            }
        }
        if self.policy == Policy::Forget {
            return;
        }
        // What was to be sent again already comes behind: it has higher numbers.
        again.append(&mut self.again);
        self.again = again;
    }
}
