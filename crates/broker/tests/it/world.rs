//! A small world around the broker: clients with names, a store, and a node that does what the effects ask.

use std::collections::{BTreeMap, VecDeque};

use kahawai_broker::{
    Broker, ConnectionKey, DestinationStatus, Effect, LoadRequest, LoadResult, Loaded, Options, Outcome,
    ScanRequest, ScanResult, Verdict,
};
use kahawai_message::front::{
    Ack, AckKind, ConnectionInfo, ConsumerNumber, Delivery, Event, Refusal, Request, Source, Subscribe,
    TransactionNumber,
};
use kahawai_message::storage::Storage;
use kahawai_message::{Content, Destination, Message, MessageId, Millis, ProducerId};
use kahawai_types::Lsn;

use crate::testing::FakeStorage;

/// A delivery as a test sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct Got {
    pub client: &'static str,
    pub consumer: u32,
    pub tag: u64,
    pub text: String,
    pub redelivered: u32,
    pub message: Message,
}

pub struct World {
    pub broker: Broker,
    pub storage: FakeStorage,
    pub now: Millis,
    pub clients: BTreeMap<&'static str, ConnectionKey>,
    sequences: BTreeMap<&'static str, i64>,
    pub inbox: Vec<Got>,
    pub events: Vec<(&'static str, Event)>,
    pub unblocked: Vec<&'static str>,
    pub loads: VecDeque<LoadRequest>,
    pub scans: VecDeque<ScanRequest>,
    /// The node is slow: scans and loads wait until the test lets them.
    pub node_is_slow: bool,
    options: Options,
}

impl Default for World {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

pub fn subscribe(consumer: u32, destination: &str) -> Subscribe {
    Subscribe {
        consumer: ConsumerNumber(consumer),
        destination: Destination::from_qualified(destination),
        selector: None,
        prefetch: 10,
        durable_name: None,
        no_local: false,
        exclusive: false,
        priority: 0,
        retroactive: false,
        browser: false,
        auto_ack: false,
    }
}

pub fn message(destination: &str, text: &str) -> Message {
    Message {
        destination: Destination::from_qualified(destination),
        content: Content::Utf8(text.into()),
        persistent: true,
        priority: 4,
        ..Message::default()
    }
}

impl World {
    pub fn new(options: Options) -> Self {
        Self {
            broker: Broker::new(options.clone()),
            storage: FakeStorage::default(),
            now: 1000,
            clients: BTreeMap::new(),
            sequences: BTreeMap::new(),
            inbox: Vec::new(),
            events: Vec::new(),
            unblocked: Vec::new(),
            loads: VecDeque::new(),
            scans: VecDeque::new(),
            node_is_slow: false,
            options,
        }
    }

    /// The process dies and starts again on what was committed.
    pub fn restart(&mut self) {
        self.storage.crash();
        self.broker = Broker::new(self.options.clone());
        self.broker.recover(self.now, &mut self.storage).unwrap();
        self.clients.clear();
        self.inbox.clear();
        self.loads.clear();
        self.scans.clear();
    }

    pub fn try_connect(&mut self, name: &'static str, client_id: Option<&str>) -> Result<(), Refusal> {
        let info = ConnectionInfo {
            client_id: client_id.map(Into::into),
            connection_id: name.into(),
            ..ConnectionInfo::default()
        };
        let key = self.broker.connect(info)?;
        self.clients.insert(name, key);
        Ok(())
    }

    pub fn connect(&mut self, name: &'static str) {
        self.try_connect(name, Some(name)).unwrap();
    }

    pub fn disconnect(&mut self, name: &'static str) {
        let key = self.clients.remove(name).unwrap();
        let mut fx = Vec::new();
        self.broker.disconnect(self.now, key, &mut self.storage, &mut fx).unwrap();
        self.inbox.retain(|got| got.client != name);
        self.carry_out(fx);
    }

    pub fn request(&mut self, name: &'static str, request: Request) -> Result<Outcome, Refusal> {
        let mut fx = Vec::new();
        let outcome = self.broker.request(self.now, self.clients[name], request, &mut self.storage, &mut fx);
        self.carry_out(fx);
        outcome
    }

    pub fn send(&mut self, name: &'static str, destination: &str, text: &str) -> Outcome {
        self.send_message(name, message(destination, text), None)
    }

    pub fn send_non_persistent(&mut self, name: &'static str, destination: &str, text: &str) -> Outcome {
        self.send_message(name, Message { persistent: false, ..message(destination, text) }, None)
    }

    pub fn send_message(
        &mut self,
        name: &'static str,
        mut message: Message,
        transaction: Option<u32>,
    ) -> Outcome {
        let sequence = self.sequences.entry(name).or_default();
        *sequence += 1;
        if message.id == MessageId::default() {
            let producer = ProducerId { connection: name.into(), session: 1, value: 1 };
            message.id = MessageId { producer, sequence: *sequence, ..MessageId::default() };
        }
        let transaction = transaction.map(TransactionNumber);
        self.request(name, Request::Send { message, transaction }).unwrap()
    }

    pub fn subscribe(&mut self, name: &'static str, subscribe: Subscribe) -> Outcome {
        self.request(name, Request::Subscribe(Box::new(subscribe))).unwrap()
    }

    pub fn unsubscribe(&mut self, name: &'static str, consumer: u32) {
        self.request(name, Request::Unsubscribe { consumer: ConsumerNumber(consumer) }).unwrap();
        self.inbox.retain(|got| (got.client, got.consumer) != (name, consumer));
    }

    pub fn begin(&mut self, name: &'static str, number: u32) {
        self.request(name, Request::Begin { transaction: TransactionNumber(number) }).unwrap();
    }

    pub fn commit_transaction(&mut self, name: &'static str, number: u32) -> Outcome {
        self.request(name, Request::Commit { transaction: TransactionNumber(number) }).unwrap()
    }

    pub fn roll_back(&mut self, name: &'static str, number: u32) {
        self.request(name, Request::Rollback { transaction: TransactionNumber(number) }).unwrap();
    }

    pub fn acknowledge(&mut self, got: &Got, kind: AckKind, transaction: Option<u32>) -> Outcome {
        let ack =
            Ack { consumer: ConsumerNumber(got.consumer), tag: got.tag, id: got.message.id.clone(), kind };
        let transaction = transaction.map(TransactionNumber);
        self.request(got.client, Request::Acknowledge { acks: vec![ack], transaction }).unwrap()
    }

    pub fn ack(&mut self, got: &Got) -> Outcome {
        self.acknowledge(got, AckKind::Consumed, None)
    }

    /// Everything appended is committed, until nothing new comes of it.
    pub fn commit(&mut self) {
        while self.storage.committed() < self.storage.appended_end() {
            self.commit_to(self.storage.appended_end());
        }
    }

    pub fn commit_to(&mut self, to: Lsn) {
        for applied in self.storage.commit(to) {
            let mut fx = Vec::new();
            self.broker.applied(self.now, applied, &mut self.storage, &mut fx).unwrap();
            self.carry_out(fx);
        }
    }

    pub fn retry_unreadable(&mut self) {
        let mut fx = Vec::new();
        self.broker.retry_unreadable(self.now, &mut self.storage, &mut fx).unwrap();
        self.carry_out(fx);
    }

    pub fn tick(&mut self) -> Option<Millis> {
        let mut fx = Vec::new();
        let next = self.broker.tick(self.now, &mut self.storage, &mut fx).unwrap();
        self.carry_out(fx);
        next
    }

    fn name_of(&self, key: ConnectionKey) -> &'static str {
        self.clients.iter().find(|(_, other)| **other == key).map_or("?", |(name, _)| name)
    }

    fn carry_out(&mut self, fx: Vec<Effect>) {
        let mut go_on = false;
        for effect in fx {
            match effect {
                Effect::Deliver { connection, delivery } => self.deliver(connection, delivery),
                Effect::Event { connection, event } => self.events.push((self.name_of(connection), event)),
                Effect::Scan(request) => self.scans.push_back(request),
                Effect::Load(request) => self.loads.push_back(request),
                Effect::Unblocked { connection } => self.unblocked.push(self.name_of(connection)),
                Effect::Continue => go_on = true,
            }
        }
        if !self.node_is_slow {
            self.work();
        }
        if go_on {
            self.tick();
        }
    }

    /// The node reads what it was asked to.
    pub fn work(&mut self) {
        while let Some(request) = self.scans.pop_front() {
            let read = |sequence| self.storage.read(request.destination, sequence);
            let verdict = |message| request.judge(message);
            let verdicts = request
                .entries
                .iter()
                .map(|e| read(e.sequence).map_or(Verdict::Unreadable, verdict))
                .collect();
            let mut fx = Vec::new();
            let result = ScanResult { request, verdicts };
            self.broker.scanned(self.now, result, &mut self.storage, &mut fx).unwrap();
            self.carry_out(fx);
        }
        while let Some(request) = self.loads.pop_front() {
            let message = match self.storage.read(request.destination, request.entry.sequence) {
                Some(message) => Loaded::Message(Box::new(message.clone())),
                None => Loaded::Gone,
            };
            let mut fx = Vec::new();
            let result = LoadResult { request, message };
            self.broker.loaded(self.now, result, &mut self.storage, &mut fx).unwrap();
            self.carry_out(fx);
        }
    }

    fn deliver(&mut self, connection: ConnectionKey, delivery: Delivery) {
        let message = match &delivery.source {
            Source::Memory(message) => (**message).clone(),
            Source::Stored(key, entry) => {
                self.storage.read(*key, entry.sequence).expect("a delivered message is in the store").clone()
            }
        };
        let Content::Utf8(text) = &message.content else { panic!("tests send texts") };
        self.inbox.push(Got {
            client: self.name_of(connection),
            consumer: delivery.consumer.0,
            tag: delivery.tag,
            text: text.to_string(),
            redelivered: delivery.redelivery_counter,
            message,
        });
    }

    /// What has come since the last look, oldest first.
    pub fn take(&mut self) -> Vec<Got> {
        std::mem::take(&mut self.inbox)
    }

    /// The texts that have come since the last look.
    pub fn texts(&mut self) -> Vec<String> {
        self.take().into_iter().map(|got| got.text).collect()
    }

    /// `client:text`, and `+n` if it was tried n times before.
    pub fn seen(&mut self) -> Vec<String> {
        let show = |got: Got| match got.redelivered {
            0 => format!("{}:{}", got.client, got.text),
            n => format!("{}:{}+{n}", got.client, got.text),
        };
        self.take().into_iter().map(show).collect()
    }

    pub fn status(&self, name: &str) -> DestinationStatus {
        self.broker.destination_status(&Destination::from_qualified(name), &self.storage).unwrap()
    }
}
