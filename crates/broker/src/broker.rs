//! The broker: its state, who is connected, and how a request finds its way.

mod acknowledge;
mod applied;
mod browse;
mod dead;
mod destinations;
mod dispatch;
mod selecting;
mod send;
mod status;
mod subscribe;
mod transaction;

pub use status::{ConsumerStatus, DestinationStatus, LineStatus, Status};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use kahawai_message::front::{ConnectionInfo, Refusal, Request};
use kahawai_message::storage::{AckBy, DestinationKey, Storage, StorageError, SubscriptionKey};
use kahawai_message::{Destination, Millis, Text};
use kahawai_types::Lsn;

use crate::connection::Connection;
use crate::consumer::{Consumer, Filter};
use crate::effect::{BlockReason, Effect, Outcome};
use crate::hash::FastMap;
use crate::limits::Options;
use crate::line::{Line, Slot};
use crate::memory::MemoryMessages;
use crate::place::Place;
use crate::producers::Producers;
use crate::slab::{ConnectionKey, ConsumerKey, LineKey, MemoryKey, PlaceKey, Slab};

/// A durable subscription, online or not.
#[derive(Debug)]
struct Durable {
    key: Arc<SubscriptionKey>,
    /// What the client named: names and patterns.
    wanted: Vec<Destination>,
    subscribed: Destination,
    selector: Option<Text>,
    no_local: bool,
    /// For dropping what does not match while nobody is there.
    offline_filter: Filter,
    consumer: Option<ConsumerKey>,
    /// One for each topic.
    lines: Vec<LineKey>,
}

/// What takes effect when a position is committed, beside what the store reports.
#[derive(Debug)]
enum Deferred {
    /// To a topic's subscribers, and to its durable ones too if it was not stored for them.
    Publish { topic: PlaceKey, message: MemoryKey, durables_too: bool },
    /// To a queue.
    Enqueue { queue: PlaceKey, message: MemoryKey },
    /// A message in memory was consumed.
    Consume { line: LineKey, slot: Slot },
    /// A message straight from a topic was consumed.
    Release { message: MemoryKey },
    /// A message is given back.
    Return { line: LineKey, slot: Slot },
    /// A message was refused.
    Kill { line: LineKey, slot: Slot },
}

/// Something that did not fit in a call.
#[derive(Clone, Copy, Debug)]
enum Work {
    Line(LineKey),
    Backlog(ConsumerKey),
    Browse(ConsumerKey),
}

/// What a call works with.
struct Call<'a> {
    now: Millis,
    storage: &'a mut dyn Storage,
    fx: &'a mut Vec<Effect>,
}

/// Why a request ends here.
#[derive(Debug)]
enum Stop {
    Refused(Refusal),
    Storage(StorageError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StorageError> for Stop {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl From<Stop> for Refusal {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Refused(refusal) => refusal,
            Stop::Storage(error @ StorageError::TooLarge { .. }) => Self::Limit(error.to_string()),
            Stop::Storage(StorageError::Failed(reason)) => Self::Storage(reason),
        }
    }
}

/// The broker. See the crate's documentation for what holds.
#[derive(Debug)]
pub struct Broker {
    options: Options,
    /// Who acknowledges what the broker itself takes away.
    own: AckBy,
    connections: Slab<ConnectionKey, Box<Connection>>,
    client_ids: BTreeMap<Text, ConnectionKey>,
    connection_ids: BTreeMap<Text, ConnectionKey>,
    consumers: Slab<ConsumerKey, Box<Consumer>>,
    /// Consumers that also want destinations that do not exist yet.
    waiting_for_names: BTreeSet<ConsumerKey>,
    places: Slab<PlaceKey, Box<Place>>,
    names: BTreeMap<Destination, PlaceKey>,
    stored_places: FastMap<DestinationKey, PlaceKey>,
    /// Changes when a route that was found may lead elsewhere now.
    routing_epoch: u64,
    lines: Slab<LineKey, Box<Line>>,
    durables: BTreeMap<Arc<SubscriptionKey>, Durable>,
    /// How many beginnings under a name are appended that the store has not reported yet.
    beginning: BTreeMap<(DestinationKey, SubscriptionKey), u32>,
    memory: MemoryMessages,
    producers: Producers,
    deferred: VecDeque<(Lsn, Deferred)>,
    work: VecDeque<Work>,
    continue_asked: bool,
    steps_left: u32,
    sweeps: BTreeSet<(Millis, LineKey)>,
    loads_under_way: usize,
    /// Lines that wait for a load to end.
    loads_wanted: VecDeque<LineKey>,
    selecting_last: u64,
    transactions_bytes: u64,
    blocked: BTreeMap<ConnectionKey, BlockReason>,
    /// The end of what the store held in the beginning. A store that takes over may not know that all of it is committed.
    recovered_end: Lsn,
}

impl Broker {
    /// Does anybody wait for what the store applies? If not, that may as well come later, and more of it at once.
    pub fn is_awaited(&self) -> bool {
        self.consumers.len() > 0
            || !self.blocked.is_empty()
            || !self.deferred.is_empty()
            || !self.work.is_empty()
            || self.loads_under_way > 0
    }

    /// A broker that knows nothing yet.
    pub fn new(options: Options) -> Self {
        Self {
            own: AckBy { connection: Text::from_static("ID:broker"), session: 0, consumer: 0 },
            connections: Slab::default(),
            client_ids: BTreeMap::new(),
            connection_ids: BTreeMap::new(),
            consumers: Slab::default(),
            waiting_for_names: BTreeSet::new(),
            places: Slab::default(),
            names: BTreeMap::new(),
            stored_places: FastMap::default(),
            routing_epoch: 0,
            lines: Slab::default(),
            durables: BTreeMap::new(),
            beginning: BTreeMap::new(),
            memory: MemoryMessages::new(options.limits.memory_bytes_max),
            producers: Producers::new(options.limits.producers_max),
            deferred: VecDeque::new(),
            work: VecDeque::new(),
            continue_asked: false,
            steps_left: 0,
            sweeps: BTreeSet::new(),
            loads_under_way: 0,
            loads_wanted: VecDeque::new(),
            selecting_last: 0,
            transactions_bytes: 0,
            blocked: BTreeMap::new(),
            recovered_end: Lsn::ZERO,
            options,
        }
    }

    /// A client connects. Its id and its client id must not be in use, as in ActiveMQ: the older connection stays.
    ///
    /// # Errors
    ///
    /// [`Refusal::InUse`], [`Refusal::Limit`].
    pub fn connect(&mut self, info: ConnectionInfo) -> Result<ConnectionKey, Refusal> {
        if self.connections.len() >= self.options.limits.connections_max {
            return Err(Refusal::Limit("too many connections".into()));
        }
        if self.connection_ids.contains_key(&info.connection_id) {
            return Err(Refusal::InUse(format!("connection {} already exists", info.connection_id)));
        }
        if let Some(client_id) = &info.client_id
            && self.client_ids.contains_key(client_id)
        {
            return Err(Refusal::InUse(format!("client {client_id} is already connected")));
        }
        let (connection_id, client_id) = (info.connection_id.clone(), info.client_id.clone());
        let key = self.connections.insert(Box::new(Connection::new(info)));
        self.connection_ids.insert(connection_id, key);
        if let Some(client_id) = client_id {
            self.client_ids.insert(client_id, key);
        }
        Ok(key)
    }

    /// A connection is gone, in good order or not: open transactions roll back, deliveries that were not acknowledged
    /// return and count as tried, temporary destinations go away, durable subscriptions are offline.
    ///
    /// Acknowledgements that are appended take effect all the same.
    pub fn disconnect(
        &mut self,
        now: Millis,
        connection: ConnectionKey,
        storage: &mut dyn Storage,
        fx: &mut Vec<Effect>,
    ) -> Result<(), StorageError> {
        let call = &mut self.begin(now, storage, fx);
        let Some(gone) = self.connections.get_mut(connection) else {
            return Ok(());
        };
        for transaction in std::mem::take(&mut gone.transactions).into_values() {
            self.undo(transaction);
        }
        let Some(gone) = self.connections.get_mut(connection) else {
            return Ok(());
        };
        let temporary = std::mem::take(&mut gone.temporary);
        for consumer in std::mem::take(&mut gone.consumers).into_values() {
            self.close_consumer(consumer);
        }
        for place in temporary {
            self.remove_place(place, call);
        }
        if let Some(gone) = self.connections.remove(connection) {
            self.connection_ids.remove(&gone.info.connection_id);
            if let Some(client_id) = &gone.info.client_id {
                self.client_ids.remove(client_id);
            }
        }
        self.blocked.remove(&connection);
        self.finish(call)
    }

    /// A client wants something.
    ///
    /// # Errors
    ///
    /// A refusal changes nothing, except that a transaction over its limit is marked as failed. [`Refusal::Storage`] means that
    /// the node must stop.
    pub fn request(
        &mut self,
        now: Millis,
        connection: ConnectionKey,
        request: Request,
        storage: &mut dyn Storage,
        fx: &mut Vec<Effect>,
    ) -> Result<Outcome, Refusal> {
        let call = &mut self.begin(now, storage, fx);
        let outcome = match request {
            Request::Send { message, transaction: None } => self.send(connection, message, call),
            Request::Acknowledge { acks, transaction: None } => self.acknowledge(connection, &acks, call),
            Request::Send { message, transaction: Some(number) } => {
                self.send_transacted(connection, number, message, call)
            }
            Request::Acknowledge { acks, transaction: Some(number) } => {
                self.acknowledge_transacted(connection, number, acks, call)
            }
            Request::Subscribe(subscribe) => self.subscribe(connection, *subscribe, call),
            Request::Unsubscribe { consumer } => self.unsubscribe(connection, consumer),
            Request::RemoveSubscription { name } => self.remove_subscription(connection, name, call),
            Request::Begin { transaction } => self.begin_transaction(connection, transaction),
            Request::Commit { transaction } => self.commit(connection, transaction, call),
            Request::Rollback { transaction } => self.roll_back(connection, transaction),
            Request::Connect(_) => Err(Refusal::Invalid("already connected".into()).into()),
            Request::Disconnect => Ok(Outcome::At(call.storage.appended_end())),
        };
        if let Ok(Outcome::Blocked(_, reason)) = outcome {
            self.blocked.insert(connection, reason);
        }
        self.finish(call).map_err(Stop::Storage)?;
        Ok(outcome?)
    }

    fn begin<'a>(&mut self, now: Millis, storage: &'a mut dyn Storage, fx: &'a mut Vec<Effect>) -> Call<'a> {
        self.steps_left = self.options.limits.steps_per_call_max;
        Call { now, storage, fx }
    }

    /// What every call ends with: deliveries that became possible, and producers that may go on.
    fn finish(&mut self, call: &mut Call<'_>) -> Result<(), StorageError> {
        if !self.work.is_empty() {
            self.work_off(call)?;
        }
        if !self.blocked.is_empty() {
            self.unblock(call);
        }
        Ok(())
    }

    fn unblock(&mut self, call: &mut Call<'_>) {
        let memory = self.memory.has_room_again();
        let storage = !call.storage.is_congested();
        self.blocked.retain(|&connection, reason| {
            let free = match reason {
                BlockReason::Memory => memory,
                BlockReason::Storage => storage,
            };
            if free {
                call.fx.push(Effect::Unblocked { connection });
            }
            !free
        });
    }

    fn connection(&mut self, key: ConnectionKey) -> Result<&mut Connection, Stop> {
        match self.connections.get_mut(key) {
            Some(connection) => Ok(connection),
            None => Err(Stop::Refused(Refusal::NotFound("the connection is closed".into()))),
        }
    }
}
