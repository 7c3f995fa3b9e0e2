//! A connection: its consumers, its open transactions, and what makes its next send quick.

use std::collections::BTreeMap;
use std::sync::Arc;

use kahawai_message::front::{AckKind, ConnectionInfo, ConsumerNumber, DeliveryTag, TransactionNumber};
use kahawai_message::storage::AckBy;
use kahawai_message::{Destination, Message, MessageId};

use crate::consumer::{ConsumerEntry, From};
use crate::producers::ProducerSlot;
use crate::slab::{ConsumerKey, PlaceKey};

/// Where a destination that the client names leads.
#[derive(Clone, Debug)]
pub(crate) enum Targets {
    One(PlaceKey),
    Several(Arc<[PlaceKey]>),
}

#[derive(Debug)]
struct Route {
    named: Destination,
    targets: Targets,
    epoch: u64,
}

/// Routes that a connection used lately.
const ROUTES_MAX: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Routes {
    routes: Vec<Route>,
    replace_next: usize,
}

impl Routes {
    /// The route for what the client named, if it was used lately and destinations have not changed since.
    pub fn get(&self, named: &Destination, epoch: u64) -> Option<&Targets> {
        self.routes
            .iter()
            .find(|route| route.epoch == epoch && route.named == *named)
            .map(|route| &route.targets)
    }

    pub fn put(&mut self, named: Destination, targets: Targets, epoch: u64) {
        let route = Route { named, targets, epoch };
        if self.routes.len() < ROUTES_MAX {
            self.routes.push(route);
        } else {
            self.routes[self.replace_next % ROUTES_MAX] = route;
            self.replace_next = self.replace_next.wrapping_add(1);
        }
    }
}

/// A message sent in a transaction, not yet committed.
#[derive(Debug)]
pub(crate) struct TransactedSend {
    pub message: Message,
    pub targets: Targets,
}

/// An acknowledgement in a transaction, not yet committed.
#[derive(Debug)]
pub(crate) struct TransactedAck {
    pub consumer: ConsumerKey,
    pub tag: DeliveryTag,
    pub from: From,
    pub id: MessageId,
    pub kind: AckKind,
    pub by: AckBy,
}

#[derive(Debug, Default)]
pub(crate) struct Transaction {
    pub sends: Vec<TransactedSend>,
    pub acks: Vec<TransactedAck>,
    pub bytes: u64,
    /// Something in it was sent before, and is not stored again.
    pub repeats: bool,
    /// It went over its limit: it can only be rolled back.
    pub failed: bool,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub info: ConnectionInfo,
    pub consumers: BTreeMap<ConsumerNumber, ConsumerKey>,
    /// The consumer that was asked for last.
    pub consumer_last: Option<ConsumerEntry>,
    pub transactions: BTreeMap<TransactionNumber, Transaction>,
    /// Numbers of committed transactions in the journal.
    pub transaction_last: i64,
    pub tag_last: DeliveryTag,
    pub routes: Routes,
    pub producer: Option<ProducerSlot>,
    /// Temporary destinations that end with it.
    pub temporary: Vec<PlaceKey>,
}

impl Connection {
    pub fn new(info: ConnectionInfo) -> Self {
        Self {
            info: ConnectionInfo { passcode: None, ..info },
            consumers: BTreeMap::new(),
            consumer_last: None,
            transactions: BTreeMap::new(),
            transaction_last: 0,
            tag_last: 0,
            routes: Routes::default(),
            producer: None,
            temporary: Vec::new(),
        }
    }

    pub fn consumer(&mut self, number: ConsumerNumber) -> Option<ConsumerKey> {
        match self.consumer_last {
            Some((last, key)) if last == number => Some(key),
            _ => {
                let key = *self.consumers.get(&number)?;
                self.consumer_last = Some((number, key));
                Some(key)
            }
        }
    }
}
