//! The broker front end of a node that leads: sessions of clients over one broker, as `node` drives it, in one thread.
//!
//! What holds, as there: receipts leave in the order of the requests, each when the commit position has reached what it
//! confirms; requests that a limit holds back wait in order, and what makes room may pass them; stored messages of a reign whose
//! beginning is not committed are withheld; what needs no acknowledgement is acknowledged when it has left.

use std::collections::{BTreeMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use kahawai_broker::{
    Broker, ConnectionKey, Effect, LoadRequest, LoadResult, Loaded, Options, Outcome, ScanRequest,
    ScanResult, Verdict,
};
use kahawai_journal::JournalReader;
use kahawai_message::front::{
    Ack, AckKind, ConnectionInfo, ConsumerNumber, Delivery, Event, Refusal, Request, Source, Subscribe,
    TransactionNumber,
};
use kahawai_message::properties::{PropertiesBuilder, PropertyValue};
use kahawai_message::storage::{Applied, DestinationKey, Entry, Storage, StorageError};
use kahawai_message::{BodyKind, Content, Destination, Message, MessageId, Millis, ProducerId, Text};
use kahawai_store::Store;
use kahawai_store::collect::read_wherever;
use kahawai_store::inspect::{RecordError, read_message};
use kahawai_types::Lsn;
use xxhash_rust::xxh3::xxh3_64;

use crate::wire::{AckOf, Answer, Ask, ClientId, CopyId, Delivered, Op, Parcel, Place, Wanted};

/// The longest time between two ticks, milliseconds, as the applier's.
const TICK_MS: Millis = 500;
/// Copy, traits and check sum in front of the padding.
const BODY_BYTES: usize = 16;

/// How a service behaves.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// The broker's part.
    pub broker: Options,
    /// A number that no other service has; those of later ones are higher.
    pub reign: u64,
}

impl ServiceOptions {
    /// Limits so low that a small workload meets them.
    pub fn small(reign: u64) -> Self {
        let mut broker = Options { prioritised: vec![Place::Queue(0).destination()], ..Options::default() };
        broker.limits.memory_bytes_max = 16 << 10;
        broker.limits.offline_bytes_max = 4 << 10;
        broker.limits.producers_max = 4;
        broker.limits.scan_entries_max = 6;
        broker.limits.loads_max = 2;
        broker.limits.acks_pending_max = 12;
        broker.limits.steps_per_call_max = 12;
        broker.limits.sweep_entries_max = 5;
        broker.sweep_interval_ms = 300;
        Self { broker, reign }
    }
}

/// A request that waits for room, or an answer that must not pass it.
#[derive(Debug)]
enum Held {
    Request(Box<Request>, Op),
    /// A browser looks once everything sent before it can be seen.
    Behind(Lsn, Box<Request>, Op),
    Answer(Lsn, Op),
}

/// How far a client's own goodbye is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Goodbye {
    No,
    /// It waits for what was before it.
    Asked(Op),
    /// The broker has let it go; its receipt waits for what that appended.
    Gone,
}

#[derive(Debug)]
struct Session {
    connection: ConnectionKey,
    connection_id: Text,
    sent: i64,
    /// Answers in order.
    owed: VecDeque<(Lsn, Op)>,
    held: VecDeque<Held>,
    unblocked: bool,
    /// End of what this connection has appended.
    appended: Lsn,
    /// Stored messages of a reign whose beginning is not committed, or of one that waits for replicas.
    withheld: Vec<Delivery>,
    /// Deliveries that may be acknowledged, by tag: consumer and message id.
    out: BTreeMap<u64, (u32, MessageId)>,
    /// Of those, what is part of an open transaction.
    transacted: Vec<(TransactionNumber, u64)>,
    auto_consumers: Vec<u32>,
    browsers: Vec<u32>,
    auto_acks: Vec<Ack>,
    goodbye: Goodbye,
}

#[derive(Debug)]
enum Errand {
    Scan(ScanRequest),
    Load(LoadRequest),
}

/// One reign's front end. The store is the world's; it must be the same one in every call.
#[derive(Debug)]
pub struct Service {
    broker: Broker,
    reign: u64,
    reader: JournalReader,
    sessions: Vec<Option<Session>>,
    clients: BTreeMap<ConnectionKey, ClientId>,
    connections: u64,
    names: Names,
    effects: Vec<Effect>,
    applied: Vec<Applied>,
    errands: VecDeque<Errand>,
    answers: Vec<(ClientId, Answer)>,
    commit: Lsn,
    is_settled: bool,
    is_suspended: bool,
    next_tick: Millis,
    again: bool,
    failed: Option<String>,
}

impl Service {
    /// A broker on what the store holds.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn begin(now: Millis, store: &mut Store, options: ServiceOptions) -> Result<Self, StorageError> {
        let mut broker = Broker::new(options.broker);
        broker.recover(now, store)?;
        Ok(Self {
            broker,
            reign: options.reign,
            reader: store.reader(),
            sessions: Vec::new(),
            clients: BTreeMap::new(),
            connections: 0,
            names: Names::default(),
            effects: Vec::new(),
            applied: Vec::new(),
            errands: VecDeque::new(),
            answers: Vec::new(),
            commit: store.committed(),
            is_settled: store.is_settled(),
            is_suspended: false,
            next_tick: now,
            again: false,
            failed: None,
        })
    }

    /// Why storage failed: the process has to end, and nothing more may leave.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// What is to leave, in order. What is taken counts as written, unless [`Service::gone`] says so before the next call.
    pub fn answers(&mut self) -> std::vec::Drain<'_, (ClientId, Answer)> {
        self.answers.drain(..)
    }

    /// When [`Service::tick`] is wanted next.
    pub fn next_tick(&self) -> Millis {
        self.next_tick
    }

    /// What it serves, for status and traces.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// What a client says on its connection.
    pub fn ask(&mut self, now: Millis, store: &mut Store, client: ClientId, ask: Ask) {
        if self.failed.is_some() {
            return;
        }
        self.acknowledge_written(now, store);
        match ask {
            Ask::Connect { op } => {
                // What is left of the connection before: this node has not heard yet that it is gone.
                self.end(now, store, client);
                self.connect(client, op);
            }
            Ask::Heartbeat { op } => {
                if self.session(client).is_some() {
                    self.answers.push((client, Answer::Done { op }));
                }
            }
            Ask::Disconnect { op } => {
                if let Some(session) = self.session(client)
                    && session.goodbye == Goodbye::No
                {
                    session.goodbye = Goodbye::Asked(op);
                }
            }
            other => {
                if let Some((request, op)) = self.request_of(now, client, other) {
                    self.offer(now, store, client, request, op);
                }
            }
        }
        self.settle(now, store);
        self.release(now, store, client);
    }

    /// A client's connection has ended.
    pub fn gone(&mut self, now: Millis, store: &mut Store, client: ClientId) {
        if self.failed.is_some() {
            return;
        }
        self.end(now, store, client);
        self.acknowledge_written(now, store);
        self.settle(now, store);
    }

    /// Brings the index towards the commit position and lets the broker dispatch; then receipts at or below it are due.
    /// `true` = there is more.
    pub fn apply(&mut self, now: Millis, store: &mut Store, commit: Lsn, operations_max: usize) -> bool {
        if self.failed.is_some() {
            return false;
        }
        self.acknowledge_written(now, store);
        self.commit = self.commit.max(commit);
        let mut applied = std::mem::take(&mut self.applied);
        let more = store.apply(commit, operations_max, &mut applied);
        for one in applied.drain(..) {
            let result = self.broker.applied(now, one, store, &mut self.effects);
            self.check(result);
        }
        self.applied = applied;
        let more = self.check(more).unwrap_or(false);
        if std::mem::take(&mut self.again) {
            self.tick_broker(now, store);
        }
        self.settle(now, store);
        if !self.is_settled && store.is_settled() {
            self.is_settled = true;
            self.look_again(now, store);
        }
        for index in 0..self.sessions.len() {
            self.release(now, store, client_at(index));
        }
        self.settle(now, store);
        (more || self.again) && self.failed.is_none()
    }

    /// Persistent work waits for replicas, or goes on.
    pub fn suspend(&mut self, now: Millis, store: &mut Store, suspended: bool) {
        self.is_suspended = suspended;
        self.look_again(now, store);
        self.settle(now, store);
    }

    /// What was withheld, perhaps need not be any more.
    fn look_again(&mut self, now: Millis, store: &mut Store) {
        for index in 0..self.sessions.len() {
            let client = client_at(index);
            let withheld = self.session(client).map(|session| std::mem::take(&mut session.withheld));
            for delivery in withheld.into_iter().flatten() {
                self.deliver_or_withhold(now, store, client, delivery);
            }
        }
    }

    fn deliver_or_withhold(&mut self, now: Millis, store: &mut Store, client: ClientId, delivery: Delivery) {
        let (is_settled, is_suspended) = (self.is_settled, self.is_suspended);
        let Some(session) = self.session(client) else { return };
        let is_stored = matches!(delivery.source, Source::Stored(..));
        let only_looks = session.browsers.contains(&delivery.consumer.0);
        if is_stored && (!is_settled || is_suspended && !only_looks) {
            session.withheld.push(delivery);
        } else {
            self.deliver(now, store, client, &delivery);
        }
    }

    /// Time passes.
    pub fn tick(&mut self, now: Millis, store: &mut Store) {
        if self.failed.is_some() {
            return;
        }
        self.acknowledge_written(now, store);
        // The wall clock may have been set back.
        if now >= self.next_tick || self.next_tick - now > TICK_MS || self.again {
            self.again = false;
            self.tick_broker(now, store);
        }
        self.settle(now, store);
    }

    fn tick_broker(&mut self, now: Millis, store: &mut Store) {
        let wanted = self.broker.tick(now, store, &mut self.effects);
        let wanted = self.check(wanted).flatten();
        self.next_tick = wanted.unwrap_or(Millis::MAX).clamp(now + 1, now + TICK_MS);
        // What was left over wants the next call at once.
        self.again |= wanted.is_some_and(|wanted| wanted <= now);
    }

    fn check<T>(&mut self, result: Result<T, StorageError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.failed.get_or_insert(error.to_string());
                // Nothing that was decided meanwhile may leave.
                self.answers.clear();
                None
            }
        }
    }

    fn session(&mut self, client: ClientId) -> Option<&mut Session> {
        self.sessions.get_mut(client.0 as usize)?.as_mut()
    }

    fn connect(&mut self, client: ClientId, op: Op) {
        self.connections += 1;
        let connection_id = Text::from(format!("ID:sim-{}-{}", self.reign, self.connections));
        let info = ConnectionInfo {
            client_id: Some(Text::from(format!("c{}", client.0))),
            connection_id: connection_id.clone(),
            ..ConnectionInfo::default()
        };
        let Ok(connection) = self.broker.connect(info) else {
            self.answers.push((client, Answer::Refused { op }));
            return;
        };
        let index = client.0 as usize;
        if self.sessions.len() <= index {
            self.sessions.resize_with(index + 1, || None);
        }
        self.clients.insert(connection, client);
        self.sessions[index] = Some(Session {
            connection,
            connection_id,
            sent: 0,
            owed: VecDeque::new(),
            held: VecDeque::new(),
            unblocked: false,
            appended: Lsn::ZERO,
            withheld: Vec::new(),
            out: BTreeMap::new(),
            transacted: Vec::new(),
            auto_consumers: Vec::new(),
            browsers: Vec::new(),
            auto_acks: Vec::new(),
            goodbye: Goodbye::No,
        });
        self.answers.push((client, Answer::Connected { op, reign: self.reign }));
    }

    fn end(&mut self, now: Millis, store: &mut Store, client: ClientId) {
        let Some(session) = self.sessions.get_mut(client.0 as usize).and_then(Option::take) else { return };
        // What it has not been told reaches nobody.
        self.answers.retain(|(other, _)| *other != client);
        if self.clients.remove(&session.connection).is_some() {
            let result = self.broker.disconnect(now, session.connection, store, &mut self.effects);
            self.check(result);
        }
    }

    /// The broker's form of what a client asks; `None` if there is nothing to ask.
    fn request_of(&mut self, now: Millis, client: ClientId, ask: Ask) -> Option<(Request, Op)> {
        let session = self.sessions.get_mut(client.0 as usize)?.as_mut()?;
        if session.goodbye != Goodbye::No {
            return None;
        }
        let number = |transaction: crate::wire::TransactionOf| TransactionNumber(transaction.0);
        Some(match ask {
            Ask::Connect { .. } | Ask::Heartbeat { .. } | Ask::Disconnect { .. } => return None,
            Ask::Send { op, parcel, transaction } => {
                let id = match parcel.number {
                    Some((producer, number)) => MessageId {
                        producer: self.names.producer(producer),
                        sequence: number.into(),
                        ..MessageId::default()
                    },
                    None => {
                        session.sent += 1;
                        let connection = session.connection_id.clone();
                        let producer = ProducerId { connection, session: -1, value: 1 };
                        MessageId { producer, sequence: session.sent, ..MessageId::default() }
                    }
                };
                let mut message = self.names.message(&parcel, id);
                if parcel.lives_ms > 0 {
                    message.timestamp_ms = now;
                    message.expiration_ms = now + Millis::from(parcel.lives_ms);
                }
                (Request::Send { message, transaction: transaction.map(number) }, op)
            }
            Ask::Subscribe { op, consumer, wanted } => {
                if wanted.auto_ack || wanted.browser {
                    session.auto_consumers.push(consumer);
                }
                if wanted.browser {
                    session.browsers.push(consumer);
                }
                (Request::Subscribe(Box::new(subscribe(consumer, wanted, &mut self.names))), op)
            }
            Ask::Unsubscribe { op, consumer } => {
                session.out.retain(|_, (of, _)| *of != consumer);
                session.withheld.retain(|delivery| delivery.consumer.0 != consumer);
                (Request::Unsubscribe { consumer: ConsumerNumber(consumer) }, op)
            }
            Ask::Remove { op, topic, durable } => {
                (Request::RemoveSubscription { name: durable_name(topic, durable) }, op)
            }
            Ask::Acknowledge { op, consumer, acks, transaction } => {
                let transaction = transaction.map(number);
                let mut asked = Vec::with_capacity(acks.len());
                for (tag, kind) in acks {
                    let Some((_, id)) = session.out.get(&tag) else { continue };
                    let id = id.clone();
                    match transaction {
                        Some(transaction) => session.transacted.push((transaction, tag)),
                        None => drop(session.out.remove(&tag)),
                    }
                    let kind = match kind {
                        AckOf::Consumed => AckKind::Consumed,
                        AckOf::Released => AckKind::Released,
                        AckOf::Rejected => AckKind::Poison,
                    };
                    asked.push(Ack { consumer: ConsumerNumber(consumer), tag, id, kind });
                }
                (Request::Acknowledge { acks: asked, transaction }, op)
            }
            Ask::Begin { op, transaction } => (Request::Begin { transaction: number(transaction) }, op),
            Ask::Commit { op, transaction } => {
                let transaction = number(transaction);
                for (of, tag) in &session.transacted {
                    if *of == transaction {
                        session.out.remove(tag);
                    }
                }
                session.transacted.retain(|(of, _)| *of != transaction);
                (Request::Commit { transaction }, op)
            }
            Ask::Rollback { op, transaction } => {
                let transaction = number(transaction);
                session.transacted.retain(|(of, _)| *of != transaction);
                (Request::Rollback { transaction }, op)
            }
        })
    }

    /// May it pass a blocked send? What makes room may; what has an order with sends may not.
    fn may_pass(request: &Request) -> bool {
        matches!(
            request,
            Request::Acknowledge { transaction: None, .. }
                | Request::Subscribe(_)
                | Request::Unsubscribe { .. }
        )
    }

    fn offer(&mut self, now: Millis, store: &mut Store, client: ClientId, request: Request, op: Op) {
        let commit = self.commit;
        let Some(session) = self.session(client) else { return };
        if !session.held.is_empty() && !Self::may_pass(&request) {
            session.held.push_back(Held::Request(Box::new(request), op));
            return;
        }
        if let Request::Subscribe(subscribe) = &request
            && subscribe.browser
        {
            // What is confirmed, to whomever, and what this connection sent; others' sends may wait for long.
            let seen = commit.max(session.appended);
            if store.applied() < seen {
                session.held.push_back(Held::Behind(seen, Box::new(request), op));
                return;
            }
        }
        if let Some(blocked) = self.carry_out(now, store, client, request, op)
            && let Some(session) = self.session(client)
        {
            session.held.push_back(Held::Request(blocked, op));
        }
    }

    /// Offers a request to the broker; gives it back if a limit is reached.
    fn carry_out(
        &mut self,
        now: Millis,
        store: &mut Store,
        client: ClientId,
        request: Request,
        op: Op,
    ) -> Option<Box<Request>> {
        let connection = self.session(client)?.connection;
        match self.broker.request(now, connection, request, store, &mut self.effects) {
            Ok(Outcome::Done) => self.owe(client, Lsn::ZERO, op),
            Ok(Outcome::At(lsn)) => {
                if let Some(session) = self.session(client) {
                    session.appended = session.appended.max(lsn);
                }
                self.owe(client, lsn, op);
            }
            Ok(Outcome::Blocked(request, _)) => return Some(request),
            Err(Refusal::Storage(reason)) => {
                self.check::<()>(Err(StorageError::Failed(reason)));
            }
            Err(_) => self.answers.push((client, Answer::Refused { op })),
        }
        None
    }

    fn owe(&mut self, client: ClientId, lsn: Lsn, op: Op) {
        let Some(session) = self.session(client) else { return };
        if session.held.is_empty() {
            // Answers leave in the order of the requests: none before those in front of it.
            let lsn = session.owed.back().map_or(lsn, |&(last, _)| last.max(lsn));
            session.owed.push_back((lsn, op));
        } else {
            session.held.push_back(Held::Answer(lsn, op));
        }
    }

    /// Carries out effects and what they bring about, until nothing is left.
    fn settle(&mut self, now: Millis, store: &mut Store) {
        loop {
            let effects = std::mem::take(&mut self.effects);
            if effects.is_empty() {
                let Some(errand) = self.errands.pop_front() else {
                    if !self.retry_held(now, store) {
                        return;
                    }
                    continue;
                };
                self.run(now, store, errand);
                continue;
            }
            for effect in effects {
                if self.failed.is_some() {
                    return;
                }
                match effect {
                    Effect::Deliver { connection, delivery } => {
                        let Some(&client) = self.clients.get(&connection) else { continue };
                        let Some(session) = self.session(client) else { continue };
                        // Otherwise it goes back with the connection.
                        if session.goodbye == Goodbye::No {
                            self.deliver_or_withhold(now, store, client, delivery);
                        }
                    }
                    Effect::Event { connection, event } => {
                        let Some(&client) = self.clients.get(&connection) else { continue };
                        match event {
                            Event::BrowseEnd(consumer) => {
                                let consumer = consumer.0;
                                self.answers.push((client, Answer::BrowseEnd { consumer }));
                            }
                            Event::ConsumerClosed(consumer, _) => {
                                let consumer = consumer.0;
                                self.answers.push((client, Answer::ConsumerClosed { consumer }));
                            }
                            Event::Close(_) => self.answers.push((client, Answer::Closed)),
                        }
                    }
                    Effect::Unblocked { connection } => {
                        let Some(&client) = self.clients.get(&connection) else { continue };
                        if let Some(session) = self.session(client) {
                            session.unblocked = true;
                        }
                    }
                    Effect::Scan(request) => self.errands.push_back(Errand::Scan(request)),
                    Effect::Load(request) => self.errands.push_back(Errand::Load(request)),
                    Effect::Continue => self.again = true,
                }
            }
            if self.failed.is_some() {
                return;
            }
        }
    }

    /// It may have been moved since the broker learnt its place.
    fn read(
        &self,
        store: &mut Store,
        at: DestinationKey,
        entry: &Entry,
    ) -> Result<Option<Message>, RecordError> {
        let read = |entry: &Entry| read_message(&self.reader, entry.location, entry.size);
        read_wherever(entry, read, || store.entry(at, entry.sequence))
    }

    fn run(&mut self, now: Millis, store: &mut Store, errand: Errand) {
        let result = match errand {
            Errand::Scan(request) => {
                let verdict = |entry| match self.read(store, request.destination, entry) {
                    Ok(Some(message)) => request.judge(&message),
                    _ => Verdict::Unreadable,
                };
                let verdicts = request.entries.iter().map(verdict).collect();
                self.broker.scanned(now, ScanResult { request, verdicts }, store, &mut self.effects)
            }
            Errand::Load(request) => {
                let message = match self.read(store, request.destination, &request.entry) {
                    Ok(Some(message)) => Loaded::Message(Box::new(message)),
                    Ok(None) => Loaded::Gone,
                    Err(_) => Loaded::Unreadable,
                };
                self.broker.loaded(now, LoadResult { request, message }, store, &mut self.effects)
            }
        };
        self.check(result);
    }

    fn deliver(&mut self, now: Millis, store: &mut Store, client: ClientId, delivery: &Delivery) {
        let stored;
        let message: &Message = match &delivery.source {
            Source::Memory(message) => message,
            Source::Stored(at, entry) => match self.read(store, *at, entry) {
                Ok(Some(message)) => {
                    stored = message;
                    &stored
                }
                _ => {
                    let Some(connection) = self.session(client).map(|session| session.connection) else {
                        return;
                    };
                    let (consumer, tag) = (delivery.consumer, delivery.tag);
                    let effects = &mut self.effects;
                    let result =
                        self.broker.delivery_unreadable(now, connection, consumer, tag, store, effects);
                    self.check(result);
                    return;
                }
            },
        };
        let Some(session) = self.sessions.get_mut(client.0 as usize).and_then(Option::as_mut) else { return };
        let (consumer, tag) = (delivery.consumer, delivery.tag);
        let id = message.id.clone();
        if session.auto_consumers.contains(&consumer.0) {
            session.auto_acks.push(Ack { consumer, tag, id, kind: AckKind::Consumed });
        } else {
            session.out.insert(tag, (consumer.0, id));
        }
        let place = Place::of(&message.destination).unwrap_or(Place::Dead);
        let sent_to = message.original_destination.as_ref().and_then(Place::of).unwrap_or(place);
        let delivered = Delivered {
            consumer: consumer.0,
            tag,
            place,
            copy: copy_of(message),
            sent_to,
            traits: (colour_of(message), message.persistent, message.priority),
            redelivery: delivery.redelivery_counter,
        };
        self.answers.push((client, Answer::Delivered(delivered)));
    }

    /// Offers blocked requests again, in order; `true` if there were any that may have found room.
    fn retry_held(&mut self, now: Millis, store: &mut Store) -> bool {
        let (commit, applied) = (self.commit, store.applied());
        let is_ready = |session: &Option<Session>| {
            session.as_ref().is_some_and(|session| match session.held.front() {
                Some(Held::Behind(lsn, ..)) => *lsn <= commit && *lsn <= applied,
                _ => session.unblocked,
            })
        };
        let Some(index) = self.sessions.iter().position(is_ready) else { return false };
        let client = client_at(index);
        let Some(session) = self.session(client) else { return false };
        if !matches!(session.held.front(), Some(Held::Behind(..))) {
            session.unblocked = false;
        }
        let mut held = std::mem::take(&mut session.held);
        while let Some(first) = held.pop_front() {
            match first {
                Held::Answer(lsn, op) => self.owe(client, lsn, op),
                Held::Behind(lsn, ..) if lsn > commit || lsn > applied => {
                    held.push_front(first);
                    break;
                }
                Held::Behind(_, request, op) => {
                    self.carry_out(now, store, client, *request, op);
                }
                Held::Request(request, op) => {
                    if let Some(request) = self.carry_out(now, store, client, *request, op) {
                        held.push_front(Held::Request(request, op));
                        break;
                    }
                }
            }
            if self.failed.is_some() {
                return false;
            }
        }
        if let Some(session) = self.session(client) {
            session.held = held;
        }
        self.release(now, store, client);
        true
    }

    /// Sends the answers that the commit position has reached, and lets go who has said goodbye.
    fn release(&mut self, now: Millis, store: &mut Store, client: ClientId) {
        loop {
            if self.failed.is_some() {
                return;
            }
            let commit = self.commit;
            let Some(session) = self.sessions.get_mut(client.0 as usize).and_then(Option::as_mut) else {
                return;
            };
            while let Some((_, op)) = session.owed.pop_front_if(|(lsn, _)| *lsn <= commit) {
                self.answers.push((client, Answer::Done { op }));
            }
            if !session.owed.is_empty() {
                return;
            }
            match session.goodbye {
                Goodbye::No => return,
                Goodbye::Gone => {
                    self.sessions[client.0 as usize] = None;
                    return;
                }
                Goodbye::Asked(op) => {
                    if !session.held.is_empty() || session.appended > commit {
                        return;
                    }
                    session.goodbye = Goodbye::Gone;
                    let connection = session.connection;
                    self.clients.remove(&connection);
                    let before = store.appended_end();
                    let result = self.broker.disconnect(now, connection, store, &mut self.effects);
                    self.check(result);
                    let after = store.appended_end();
                    let lsn = if after > before { after } else { Lsn::ZERO };
                    if let Some(session) = self.session(client) {
                        session.owed.push_back((lsn, op));
                    }
                    self.settle(now, store);
                }
            }
        }
    }

    /// What has left for consumers that do not acknowledge counts as consumed.
    fn acknowledge_written(&mut self, now: Millis, store: &mut Store) {
        if !self.answers.is_empty() {
            return;
        }
        for index in 0..self.sessions.len() {
            let Some(session) = self.sessions[index].as_mut() else { continue };
            if session.auto_acks.is_empty() || session.goodbye == Goodbye::Gone {
                continue;
            }
            let (connection, acks) = (session.connection, std::mem::take(&mut session.auto_acks));
            let request = Request::Acknowledge { acks, transaction: None };
            match self.broker.request(now, connection, request, store, &mut self.effects) {
                Ok(Outcome::At(lsn)) => {
                    if let Some(session) = self.session(client_at(index)) {
                        session.appended = session.appended.max(lsn);
                    }
                }
                Err(Refusal::Storage(reason)) => {
                    self.check::<()>(Err(StorageError::Failed(reason)));
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
}

fn client_at(index: usize) -> ClientId {
    ClientId(u32::try_from(index).unwrap_or(u32::MAX))
}

fn durable_name(topic: u8, durable: u8) -> Text {
    Text::from(format!("t{topic}-{durable}"))
}

fn subscribe(consumer: u32, wanted: Wanted, names: &mut Names) -> Subscribe {
    let durable_name = match (wanted.place, wanted.durable) {
        (Place::Topic(topic), Some(durable)) => Some(durable_name(topic, durable)),
        _ => None,
    };
    Subscribe {
        consumer: ConsumerNumber(consumer),
        destination: names.destination(wanted.place),
        selector: wanted.colour.map(|colour| Text::from(format!("colour = {colour}"))),
        prefetch: wanted.prefetch.into(),
        durable_name,
        no_local: false,
        exclusive: wanted.exclusive,
        priority: wanted.priority,
        retroactive: false,
        browser: wanted.browser,
        auto_ack: wanted.auto_ack,
    }
}

/// What is the same in many messages, made once.
#[derive(Default, Debug)]
struct Names {
    destinations: BTreeMap<Place, Destination>,
    producers: Vec<Option<ProducerId>>,
    colours: Vec<Option<Bytes>>,
}

impl Names {
    fn destination(&mut self, place: Place) -> Destination {
        self.destinations.entry(place).or_insert_with(|| place.destination()).clone()
    }

    fn producer(&mut self, number: u32) -> ProducerId {
        let index = number as usize;
        if self.producers.len() <= index {
            self.producers.resize(index + 1, None);
        }
        let make = || ProducerId { connection: Text::from(format!("ID:p{number}")), session: 1, value: 1 };
        self.producers[index].get_or_insert_with(make).clone()
    }

    fn colour(&mut self, colour: u8) -> Option<Bytes> {
        let index = colour as usize;
        if self.colours.len() <= index {
            self.colours.resize(index + 1, None);
        }
        if self.colours[index].is_none() {
            let mut builder = PropertiesBuilder::new();
            builder.push("colour", &PropertyValue::Int(colour.into())).ok()?;
            self.colours[index] = builder.finish();
        }
        self.colours[index].clone()
    }

    fn message(&mut self, parcel: &Parcel, id: MessageId) -> Message {
        Message {
            id,
            destination: self.destination(parcel.place),
            persistent: parcel.persistent,
            priority: parcel.priority,
            kind: BodyKind::Bytes,
            content: Content::Marshalled(body_of(parcel)),
            properties: self.colour(parcel.colour),
            ..Message::default()
        }
    }
}

/// ```text
/// copy:u32  colour:u8  0:u8  padding:u16  sum:u64  padding × low byte of copy
/// ```
fn body_of(parcel: &Parcel) -> Bytes {
    let mut body = BytesMut::with_capacity(BODY_BYTES + usize::from(parcel.padding));
    body.put_u32(parcel.copy.0);
    body.put_u8(parcel.colour);
    body.put_u8(0);
    body.put_u16(parcel.padding);
    body.put_u64(xxh3_64(&body));
    body.put_bytes(parcel.copy.0 as u8, parcel.padding.into());
    body.freeze()
}

/// Which copy a message is, if its body is as it was sent.
fn copy_of(message: &Message) -> Option<CopyId> {
    let Content::Marshalled(body) = &message.content else { return None };
    let (head, rest) = body.split_at_checked(8)?;
    let (sum, padding) = rest.split_at_checked(8)?;
    let copy = u32::from_be_bytes(*head.first_chunk()?);
    let declared = u16::from_be_bytes([head[6], head[7]]);
    let is_whole = sum == xxh3_64(head).to_be_bytes()
        && padding.len() == usize::from(declared)
        && padding.iter().all(|byte| *byte == copy as u8);
    is_whole.then_some(CopyId(copy))
}

fn colour_of(message: &Message) -> u8 {
    match &message.content {
        Content::Marshalled(body) => body.get(4).copied().unwrap_or(u8::MAX),
        Content::Absent | Content::Utf8(_) => u8::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_says_which_copy_it_is_unless_a_byte_of_it_is_wrong() {
        let parcel = Parcel {
            copy: CopyId(0x0102_0304),
            place: Place::Queue(1),
            number: None,
            persistent: true,
            priority: 4,
            colour: 2,
            padding: 9,
            lives_ms: 0,
        };
        let message = Names::default().message(&parcel, MessageId::default());
        assert_eq!((copy_of(&message), colour_of(&message)), (Some(parcel.copy), 2));
        assert_eq!(message.property("colour"), Some(PropertyValue::Int(2)));
        assert_eq!(Place::of(&message.destination), Some(parcel.place));
        let Content::Marshalled(body) = &message.content else { panic!("bytes") };
        for at in 0..body.len() {
            let mut wrong = body.to_vec();
            wrong[at] ^= 1;
            let content = Content::Marshalled(wrong.into());
            assert_eq!(copy_of(&Message { content, ..message.clone() }), None, "byte {at}");
        }
        let content = Content::Marshalled(body.slice(..body.len() - 1));
        assert_eq!(copy_of(&Message { content, ..message.clone() }), None);
    }

    #[test]
    fn places_are_found_by_their_names() {
        for place in [Place::Queue(0), Place::Queue(17), Place::Topic(3), Place::Dead] {
            assert_eq!(Place::of(&place.destination()), Some(place));
        }
        assert_eq!(Place::of(&Destination::topic("q1")), None);
    }
}
