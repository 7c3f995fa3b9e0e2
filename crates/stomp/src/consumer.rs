use std::collections::BTreeMap;

use bytes::BytesMut;
use kahawai_message::front::ConsumerNumber;
use kahawai_message::{Destination, Text};

use crate::Version;
use crate::escape::put_header;
use crate::in_flight::InFlight;

/// How a subscription acknowledges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AckMode {
    /// Written is acknowledged.
    Auto,
    /// An ACK covers everything before it.
    Client,
    /// An ACK is for one message.
    Individual,
}

impl AckMode {
    /// What is unknown is `auto`, as in ActiveMQ.
    pub(crate) fn named(name: Option<&[u8]>) -> Self {
        match name {
            Some(b"client") => Self::Client,
            Some(b"client-individual") => Self::Individual,
            _ => Self::Auto,
        }
    }
}

/// A subscription.
#[derive(Debug)]
pub(crate) struct Consumer {
    id: Option<Text>,
    /// `subscription:ID`, ready to be written; empty without id.
    subscription_line: BytesMut,
    pub(crate) destination: Destination,
    pub(crate) durable_name: Option<Text>,
    pub(crate) mode: AckMode,
    pub(crate) browser: bool,
    pub(crate) in_flight: InFlight,
}

impl Consumer {
    pub(crate) fn new(id: Option<Text>, destination: Destination, mode: AckMode, version: Version) -> Self {
        let mut subscription_line = BytesMut::new();
        if let Some(id) = &id {
            put_header(&mut subscription_line, "subscription", id.as_bytes(), version);
        }
        let in_flight = InFlight::default();
        Self { id, subscription_line, destination, durable_name: None, mode, browser: false, in_flight }
    }

    pub(crate) fn subscription_line(&self) -> &[u8] {
        &self.subscription_line
    }

    pub(crate) fn is_acked_by_client(&self) -> bool {
        self.mode != AckMode::Auto
    }
}

/// The subscriptions of a connection, by number and by id.
///
/// Ids should be unique, but clients exist that call every subscription the same, and ActiveMQ bears with them.
#[derive(Debug, Default)]
pub(crate) struct Consumers {
    by_number: BTreeMap<ConsumerNumber, Consumer>,
    by_id: BTreeMap<Text, Vec<ConsumerNumber>>,
    last_number: u32,
}

impl Consumers {
    pub(crate) fn len(&self) -> usize {
        self.by_number.len()
    }

    pub(crate) fn insert(&mut self, consumer: Consumer) -> ConsumerNumber {
        self.last_number = self.last_number.wrapping_add(1);
        let number = ConsumerNumber(self.last_number);
        if let Some(id) = &consumer.id {
            self.by_id.entry(id.clone()).or_default().push(number);
        }
        self.by_number.insert(number, consumer);
        number
    }

    pub(crate) fn get_mut(&mut self, number: ConsumerNumber) -> Option<&mut Consumer> {
        self.by_number.get_mut(&number)
    }

    pub(crate) fn get(&self, number: ConsumerNumber) -> Option<&Consumer> {
        self.by_number.get(&number)
    }

    /// Those with this id, oldest first.
    pub(crate) fn with_id(&self, id: &str) -> &[ConsumerNumber] {
        self.by_id.get(id).map_or(&[], Vec::as_slice)
    }

    /// All, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ConsumerNumber, &Consumer)> {
        self.by_number.iter().map(|(number, consumer)| (*number, consumer))
    }

    pub(crate) fn remove(&mut self, number: ConsumerNumber) -> Option<Consumer> {
        let consumer = self.by_number.remove(&number)?;
        if let Some(id) = &consumer.id
            && let Some(numbers) = self.by_id.get_mut(id)
        {
            numbers.retain(|found| *found != number);
            if numbers.is_empty() {
                self.by_id.remove(id);
            }
        }
        Some(consumer)
    }
}
