//! A consumer, and what it has been given and not acknowledged.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use kahawai_message::front::{ConsumerNumber, DeliveryTag};
use kahawai_message::storage::{AckBy, Entry, SubscriptionKey};
use kahawai_message::{Destination, Message, Text};
use kahawai_selector::Selector;

use crate::MessageFields;
use crate::line::{Cursor, Position, Slot};
use crate::slab::{ConnectionKey, ConsumerKey, LineKey, MemoryKey, PlaceKey};

/// Where a delivery came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum From {
    Line(LineKey, Slot),
    /// Straight from a topic: nothing else keeps it.
    Topic(MemoryKey),
    /// Shown to a browser; acknowledging it only makes room.
    Browsed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OutState {
    Unacknowledged,
    InTransaction,
    Gone,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    pub tag: DeliveryTag,
    pub from: From,
    /// Deliveries before this one; kept for what comes straight from a topic.
    pub returns: u32,
    pub state: OutState,
}

/// Deliveries that are not acknowledged, by ascending tag. Mostly acknowledged in order, so a queue with gaps.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    queue: VecDeque<Out>,
    gone: usize,
}

impl Deliveries {
    pub fn push(&mut self, out: Out) {
        self.queue.push_back(out);
    }

    fn index_of(&self, tag: DeliveryTag) -> Option<usize> {
        let index = match self.queue.front() {
            Some(front) if front.tag == tag => 0,
            _ => self.queue.binary_search_by_key(&tag, |out| out.tag).ok()?,
        };
        (self.queue[index].state != OutState::Gone).then_some(index)
    }

    pub fn get_mut(&mut self, tag: DeliveryTag) -> Option<&mut Out> {
        self.index_of(tag).and_then(|index| self.queue.get_mut(index))
    }

    pub fn remove(&mut self, tag: DeliveryTag) -> Option<Out> {
        let index = self.index_of(tag)?;
        let out = self.queue[index];
        if index == 0 {
            self.queue.pop_front();
            while self.queue.front().is_some_and(|front| front.state == OutState::Gone) {
                self.queue.pop_front();
                self.gone -= 1;
            }
        } else {
            self.queue[index].state = OutState::Gone;
            self.gone += 1;
            if self.gone > 32 && self.gone > self.queue.len() / 2 {
                self.queue.retain(|out| out.state != OutState::Gone);
                self.gone = 0;
            }
        }
        Some(out)
    }

    /// By ascending tag.
    pub fn iter(&self) -> impl Iterator<Item = &Out> {
        self.queue.iter().filter(|out| out.state != OutState::Gone)
    }
}

/// How far a browser has come.
#[derive(Debug)]
pub(crate) struct Browse {
    /// Lines yet to be walked; the first is under way.
    pub lines: VecDeque<LineKey>,
    pub step: BrowseStep,
    pub scanning: bool,
    /// What matched and had no room.
    pub matched: VecDeque<Entry>,
    pub scheduled: bool,
    pub ended: bool,
}

#[derive(Debug)]
pub(crate) enum BrowseStep {
    /// The next line is to be begun.
    Begin,
    /// Through the store; at most `left` more, so that a busy queue comes to an end.
    Stored { cursors: [Cursor; 3], left: u64 },
    /// Through what waits in memory.
    Waiting { from: Position },
    /// Through what was in memory and with consumers when the walk began.
    Held { messages: VecDeque<MemoryKey> },
}

#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// Of queues and topics.
    Ordinary,
    /// Of a durable subscription.
    Durable(Arc<SubscriptionKey>),
    Browser,
}

#[derive(Debug)]
pub(crate) struct Consumer {
    pub connection: ConnectionKey,
    pub number: ConsumerNumber,
    pub role: Role,
    /// What it subscribed to: names and patterns.
    pub wanted: Vec<Destination>,
    /// It may come to have more than one line.
    pub several: bool,
    pub filter: Filter,
    pub priority: u8,
    pub exclusive: bool,
    pub prefetch: u32,
    pub by: AckBy,
    pub deliveries: Deliveries,
    /// Of those, how many count against the prefetch: not those in a transaction.
    pub outstanding: u32,
    pub lines: Vec<LineKey>,
    pub topics: Vec<PlaceKey>,
    /// Lines where something waited when there was no room, if it has several.
    pub starved: BTreeSet<LineKey>,
    /// Of those, which was served last.
    pub turn: Option<LineKey>,
    /// From topics, waiting for room, with how often it was delivered before.
    pub backlog: VecDeque<(MemoryKey, u32)>,
    pub backlog_scheduled: bool,
    pub browse: Option<Box<Browse>>,
    pub delivered: u64,
    pub acknowledged: u64,
}

impl Consumer {
    pub const fn has_room(&self) -> bool {
        self.outstanding < self.prefetch
    }
}

/// Which messages a consumer takes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub selector: Option<Arc<Selector>>,
    /// Not what this connection sent.
    pub no_local: Option<Text>,
}

impl Filter {
    pub const fn takes_all(&self) -> bool {
        self.selector.is_none() && self.no_local.is_none()
    }

    pub fn takes(&self, message: &Message) -> bool {
        if self.no_local.as_ref().is_some_and(|connection| *connection == message.id.producer.connection) {
            return false;
        }
        self.selector.as_ref().is_none_or(|selector| selector.matches(&MessageFields(message)))
    }
}

/// Keeps a key where the type is needed only there.
pub(crate) type ConsumerEntry = (ConsumerNumber, ConsumerKey);
