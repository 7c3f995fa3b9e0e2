//! What an operator may see.

use kahawai_message::front::ConsumerNumber;
use kahawai_message::storage::{Storage, SubscriptionKey};
use kahawai_message::{Destination, Text};

use super::Broker;
use crate::effect::BlockReason;
use crate::line::{HeldState, Line};
use crate::place::{Counts, Place};
use crate::slab::{ConnectionKey, PlaceKey};

/// The broker as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Connections.
    pub connections: usize,
    /// Consumers, browsers included.
    pub consumers: usize,
    /// Queues and topics.
    pub destinations: usize,
    /// Durable subscriptions, online or not.
    pub durable_subscriptions: usize,
    /// Messages in memory.
    pub memory_messages: usize,
    /// What they take, bytes.
    pub memory_bytes: u64,
    /// What they may take, bytes.
    pub memory_bytes_max: u64,
    /// What open transactions hold, bytes.
    pub transactions_bytes: u64,
    /// Producers that wait, and for what.
    pub blocked: Vec<(ConnectionKey, Text, BlockReason)>,
}

/// What a queue, or a durable subscription on a topic, holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LineStatus {
    /// The durable subscription; `None` for a queue.
    pub subscription: Option<SubscriptionKey>,
    /// Messages in the store that are not acknowledged.
    pub stored: u64,
    /// Messages in memory that wait, beside those in flight.
    pub in_memory: usize,
    /// Messages with consumers, acknowledged in an open transaction or not at all.
    pub in_flight: usize,
    /// Acknowledgements that are not committed.
    pub acks_pending: usize,
    /// Messages on their way to the dead letters.
    pub dying: usize,
    /// Messages whose bytes could not be read.
    pub unreadable: usize,
    /// Consumers of it.
    pub consumers: usize,
}

/// A queue or topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DestinationStatus {
    /// Its name.
    pub name: Destination,
    /// What happened there.
    pub counts: Counts,
    /// One for a queue, one for each durable subscription on a topic.
    pub lines: Vec<LineStatus>,
    /// Subscribers of a topic that are not durable.
    pub subscribers: usize,
}

/// A consumer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsumerStatus {
    /// Its connection's id.
    pub connection: Text,
    /// Its number there.
    pub number: ConsumerNumber,
    /// What it subscribed to.
    pub wanted: Vec<Destination>,
    /// Its selector.
    pub selector: Option<Text>,
    /// How many deliveries it may have unacknowledged.
    pub prefetch: u32,
    /// How many it has.
    pub in_flight: u32,
    /// Messages of topics that wait for it to have room.
    pub backlog: usize,
    /// Deliveries so far.
    pub delivered: u64,
    /// Acknowledgements so far.
    pub acknowledged: u64,
}

impl Broker {
    /// The broker as a whole.
    pub fn status(&self) -> Status {
        let blocked = self.blocked.iter().filter_map(|(key, reason)| {
            let connection = self.connections.get(*key)?;
            Some((*key, connection.info.connection_id.clone(), *reason))
        });
        Status {
            connections: self.connections.len(),
            consumers: self.consumers.len(),
            destinations: self.places.len(),
            durable_subscriptions: self.durables.len(),
            memory_messages: self.memory.count(),
            memory_bytes: self.memory.bytes(),
            memory_bytes_max: self.memory.bytes_max(),
            transactions_bytes: self.transactions_bytes,
            blocked: blocked.collect(),
        }
    }

    /// One queue or topic.
    pub fn destination_status(&self, name: &Destination, storage: &dyn Storage) -> Option<DestinationStatus> {
        let place = self.places.get(self.find_place(name)?)?;
        Some(self.status_of(place, storage))
    }

    /// Up to `count_max` queues and topics by name, those behind `after`.
    pub fn destination_statuses(
        &self,
        after: Option<&Destination>,
        count_max: usize,
        storage: &dyn Storage,
    ) -> Vec<DestinationStatus> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let keys = self.names.range((from, Bound::Unbounded)).take(count_max);
        let places = keys.filter_map(|(_, key): (_, &PlaceKey)| self.places.get(*key));
        places.map(|place| self.status_of(place, storage)).collect()
    }

    /// All consumers, connection by connection.
    pub fn consumer_statuses(&self) -> Vec<ConsumerStatus> {
        let connections = self.connection_ids.values().filter_map(|key| self.connections.get(*key));
        let consumers = connections.flat_map(|connection| {
            connection.consumers.values().filter_map(move |key| Some((connection, self.consumers.get(*key)?)))
        });
        consumers
            .map(|(connection, consumer)| ConsumerStatus {
                connection: connection.info.connection_id.clone(),
                number: consumer.number,
                wanted: consumer.wanted.clone(),
                selector: consumer.filter.selector.as_ref().map(|selector| Text::from(selector.text())),
                prefetch: consumer.prefetch,
                in_flight: consumer.outstanding,
                backlog: consumer.backlog.len(),
                delivered: consumer.delivered,
                acknowledged: consumer.acknowledged,
            })
            .collect()
    }

    fn status_of(&self, place: &Place, storage: &dyn Storage) -> DestinationStatus {
        let lines = place.queue.iter().chain(&place.durables).filter_map(|line| self.lines.get(*line));
        DestinationStatus {
            name: place.name.clone(),
            counts: place.counts,
            lines: lines.map(|line| line_status(line, storage)).collect(),
            subscribers: place.subscribers.len(),
        }
    }
}

fn line_status(line: &Line, storage: &dyn Storage) -> LineStatus {
    let held = |states: &[HeldState]| line.held.values().filter(|held| states.contains(&held.state)).count();
    let waiting =
        line.waiting.values().filter(|waiting| matches!(waiting.body, crate::line::Body::Memory(_)));
    LineStatus {
        subscription: line.subscription.as_deref().cloned(),
        stored: match (line.stored_at, line.subscription.as_deref()) {
            (Some(at), None) => storage.count(at),
            (Some(at), Some(subscription)) => storage.pending_count(at, subscription),
            (None, _) => 0,
        },
        in_memory: waiting.count(),
        in_flight: held(&[HeldState::Delivered, HeldState::InTransaction]),
        acks_pending: held(&[HeldState::Acknowledged]),
        dying: held(&[HeldState::Dying]),
        unreadable: held(&[HeldState::Unreadable]),
        consumers: line.members_of_all_kinds().count(),
    }
}
