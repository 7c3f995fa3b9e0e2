//! What the broker itself costs: nanoseconds per persistent send, per delivery, per acknowledgement.
//!
//! `cargo run --release -p kahawai-broker --example dispatch_rate`. The store is a deque per queue and does next to nothing; its
//! own share is measured alone and printed too. Requests are made outside the measured part.

#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use kahawai_broker::{Broker, Effect, Options};
use kahawai_message::front::{
    Ack, AckKind, ConnectionInfo, ConsumerNumber, Delivery, Request, Source, Subscribe,
};
use kahawai_message::storage::{
    AckBy, Appended, Applied, DestinationKey, Entry, Operation, Storage, StorageError, SubscriptionKey, Tier,
};
use kahawai_message::stored::SubscriptionInfo;
use kahawai_message::{Content, Destination, Message, MessageId, ProducerId, TransactionId};
use kahawai_types::{Location, Lsn};

/// A queue: what is in it, by sequence, from `base`.
#[derive(Default)]
struct Queue {
    base: u64,
    entries: VecDeque<Option<Entry>>,
    last: u64,
}

/// Queues only, and only what this measurement needs.
#[derive(Default)]
struct DequeStorage {
    names: Vec<Destination>,
    queues: Vec<Queue>,
    log: VecDeque<Applied>,
    end: u64,
}

impl DequeStorage {
    fn append(&mut self, applied: Applied) -> Lsn {
        self.end += 1;
        self.log.push_back(applied);
        Lsn(self.end)
    }

    fn apply(&mut self) -> Option<Applied> {
        let applied = self.log.pop_front()?;
        match &applied {
            Applied::Added { destination, entry } => {
                let queue = &mut self.queues[destination.0 as usize];
                if queue.entries.is_empty() {
                    queue.base = entry.sequence;
                }
                queue.entries.push_back(Some(*entry));
            }
            Applied::Removed { destination, sequence } => {
                let queue = &mut self.queues[destination.0 as usize];
                let index = (sequence - queue.base) as usize;
                queue.entries[index] = None;
                while queue.entries.front() == Some(&None) {
                    queue.entries.pop_front();
                    queue.base += 1;
                }
            }
            _ => {}
        }
        Some(applied)
    }
}

impl Storage for DequeStorage {
    fn destination(&mut self, destination: &Destination) -> DestinationKey {
        let known = self.names.iter().position(|name| name == destination);
        DestinationKey(known.unwrap_or_else(|| {
            self.names.push(destination.clone());
            self.queues.push(Queue::default());
            self.names.len() - 1
        }) as u32)
    }

    fn add(
        &mut self,
        to: DestinationKey,
        message: &Message,
        _prioritised: bool,
    ) -> Result<Appended, StorageError> {
        let queue = &mut self.queues[to.0 as usize];
        queue.last += 1;
        let sequence = queue.last;
        let entry = Entry {
            sequence,
            tier: Tier::Default,
            location: Location::new(1, 0),
            size: 1024,
            expiration_ms: message.expiration_ms,
            redelivery_counter: 0,
        };
        Ok(Appended { sequence, end: self.append(Applied::Added { destination: to, entry }) })
    }

    fn remove(
        &mut self,
        from: DestinationKey,
        sequence: u64,
        _id: &MessageId,
        _by: &AckBy,
    ) -> Result<Lsn, StorageError> {
        Ok(self.append(Applied::Removed { destination: from, sequence }))
    }

    fn next(&mut self, at: DestinationKey, tier: Tier, from: u64) -> Result<Option<Entry>, StorageError> {
        let queue = &self.queues[at.0 as usize];
        if tier != Tier::Default {
            return Ok(None);
        }
        let skip = from.saturating_sub(queue.base) as usize;
        Ok(queue.entries.range(skip.min(queue.entries.len())..).flatten().next().copied())
    }

    fn entry(&mut self, at: DestinationKey, sequence: u64) -> Result<Option<Entry>, StorageError> {
        self.next(at, Tier::Default, sequence)
    }

    fn count(&self, at: DestinationKey) -> u64 {
        self.queues[at.0 as usize].entries.len() as u64
    }

    fn appended_end(&self) -> Lsn {
        Lsn(self.end)
    }

    fn committed(&self) -> Lsn {
        Lsn(self.end)
    }

    fn is_congested(&self) -> bool {
        false
    }

    fn last_sequence_of(&self, _producer: &ProducerId) -> Option<i64> {
        None
    }

    fn destinations(&self) -> Vec<(DestinationKey, Destination, Vec<SubscriptionInfo>)> {
        Vec::new()
    }

    fn add_all(&mut self, _copies: &[(DestinationKey, Message, bool)]) -> Result<Appended, StorageError> {
        unimplemented!()
    }

    fn acknowledge(
        &mut self,
        _topic: DestinationKey,
        _subscription: &SubscriptionKey,
        _sequence: u64,
        _id: &MessageId,
        _by: &AckBy,
        _unmatched: bool,
    ) -> Result<Lsn, StorageError> {
        unimplemented!()
    }

    fn transaction(&mut self, _id: &TransactionId, _operations: &[Operation]) -> Result<Lsn, StorageError> {
        unimplemented!()
    }

    fn together(&mut self, _operations: &[Operation]) -> Result<Lsn, StorageError> {
        unimplemented!()
    }

    fn update(
        &mut self,
        _at: DestinationKey,
        _sequence: u64,
        _message: &Message,
        _prioritised: bool,
    ) -> Result<Lsn, StorageError> {
        unimplemented!()
    }

    fn subscribe(
        &mut self,
        _topic: DestinationKey,
        _info: &SubscriptionInfo,
        _retroactive: bool,
    ) -> Result<Lsn, StorageError> {
        unimplemented!()
    }

    fn unsubscribe(
        &mut self,
        _topic: DestinationKey,
        _subscription: &SubscriptionKey,
    ) -> Result<Lsn, StorageError> {
        unimplemented!()
    }

    fn remove_destination(&mut self, _destination: DestinationKey) -> Result<Lsn, StorageError> {
        unimplemented!()
    }

    fn next_pending(
        &mut self,
        _topic: DestinationKey,
        _subscription: &SubscriptionKey,
        _tier: Tier,
        _from: u64,
    ) -> Result<Option<Entry>, StorageError> {
        unimplemented!()
    }

    fn pending_count(&self, _topic: DestinationKey, _subscription: &SubscriptionKey) -> u64 {
        0
    }
}

const BATCH: usize = 256;
const BATCHES: usize = 4000;

struct Clock {
    name: &'static str,
    spent: Duration,
    count: usize,
}

impl Clock {
    fn new(name: &'static str) -> Self {
        Self { name, spent: Duration::ZERO, count: 0 }
    }

    fn measure<T>(&mut self, count: usize, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.spent += start.elapsed();
        self.count += count;
        result
    }

    fn print(&self) {
        println!("{:<44} {:>7.1} ns", self.name, self.spent.as_nanos() as f64 / self.count as f64);
    }
}

fn message(sequence: i64, persistent: bool) -> Message {
    let producer =
        ProducerId { connection: "ID:producer-host-33775-1795371744144-1:1".into(), session: 1, value: 1 };
    Message {
        id: MessageId { producer, sequence, ..MessageId::default() },
        destination: Destination::queue("bench.orders.incoming"),
        content: Content::Marshalled(bytes::Bytes::from_static(&[0; 1024])),
        persistent,
        priority: 4,
        ..Message::default()
    }
}

fn sends(sequence: &mut i64, persistent: bool) -> Vec<Request> {
    (0..BATCH)
        .map(|_| {
            *sequence += 1;
            Request::Send { message: message(*sequence, persistent), transaction: None }
        })
        .collect()
}

/// One acknowledgement a request, as STOMP sends them.
fn acks(deliveries: &[Delivery], persistent: bool) -> Vec<Request> {
    let id = |delivery: &Delivery| match &delivery.source {
        Source::Stored(_, entry) => message(entry.sequence as i64, persistent).id,
        Source::Memory(message) => message.id.clone(),
    };
    let ack = |delivery: &Delivery| Ack {
        consumer: delivery.consumer,
        tag: delivery.tag,
        id: id(delivery),
        kind: AckKind::Consumed,
    };
    deliveries
        .iter()
        .map(|delivery| Request::Acknowledge { acks: vec![ack(delivery)], transaction: None })
        .collect()
}

fn deliveries(fx: &mut Vec<Effect>) -> Vec<Delivery> {
    let delivery = |effect| match effect {
        Effect::Deliver { delivery, .. } => Some(delivery),
        _ => None,
    };
    fx.drain(..).filter_map(delivery).collect()
}

fn connect(broker: &mut Broker, id: &'static str) -> kahawai_broker::ConnectionKey {
    let info = ConnectionInfo { connection_id: id.into(), ..ConnectionInfo::default() };
    broker.connect(info).expect("the id is new")
}

fn subscribe(prefetch: u32) -> Request {
    Request::Subscribe(Box::new(Subscribe {
        consumer: ConsumerNumber(1),
        destination: Destination::queue("bench.orders.incoming"),
        selector: None,
        prefetch,
        durable_name: None,
        no_local: false,
        exclusive: false,
        priority: 0,
        retroactive: false,
        browser: false,
        auto_ack: false,
    }))
}

fn store_alone() {
    let mut storage = DequeStorage::default();
    let key = storage.destination(&Destination::queue("bench.orders.incoming"));
    let (mut add, mut remove) =
        (Clock::new("store alone: add and apply"), Clock::new("store alone: remove and apply"));
    let by = AckBy::default();
    let mut sequence = 0;
    for _ in 0..BATCHES {
        let messages: Vec<_> = (0..BATCH).map(|n| message(n as i64, true)).collect();
        add.measure(BATCH, || {
            for message in &messages {
                storage.add(key, message, false).expect("it never fails");
            }
            while storage.apply().is_some() {}
        });
        remove.measure(BATCH, || {
            for message in &messages {
                sequence += 1;
                storage.remove(key, sequence, &message.id, &by).expect("it never fails");
            }
            while storage.apply().is_some() {}
        });
    }
    add.print();
    remove.print();
}

/// Sends, commits, delivers and acknowledges a batch at a time, with a consumer that keeps up.
fn keeping_up(persistent: bool) {
    let mut storage = DequeStorage::default();
    let mut broker = Broker::new(Options::default());
    let (producer, consumer) = (connect(&mut broker, "producer"), connect(&mut broker, "consumer"));
    let mut fx = Vec::new();
    broker.request(0, consumer, subscribe(1000), &mut storage, &mut fx).expect("nothing is in the way");
    let kind = if persistent { "persistent" } else { "non-persistent" };
    println!("-- {kind}, one consumer that keeps up");
    let mut clocks =
        ["send", "committed, delivered", "acknowledge", "acknowledgement committed"].map(Clock::new);
    let mut sequence = 0;
    for _ in 0..BATCHES {
        let requests = sends(&mut sequence, persistent);
        clocks[0].measure(BATCH, || {
            for request in requests {
                broker.request(0, producer, request, &mut storage, &mut fx).expect("nothing is in the way");
            }
        });
        clocks[1].measure(BATCH, || {
            while let Some(applied) = storage.apply() {
                broker.applied(0, applied, &mut storage, &mut fx).expect("the store never fails");
            }
        });
        let delivered = deliveries(&mut fx);
        assert_eq!(delivered.len(), BATCH);
        let requests = acks(&delivered, persistent);
        clocks[2].measure(BATCH, || {
            for request in requests {
                broker.request(0, consumer, request, &mut storage, &mut fx).expect("nothing is in the way");
            }
        });
        clocks[3].measure(BATCH, || {
            while let Some(applied) = storage.apply() {
                broker.applied(0, applied, &mut storage, &mut fx).expect("the store never fails");
            }
        });
    }
    clocks.iter().for_each(Clock::print);
    assert_eq!(broker.status().memory_messages, 0);
}

/// A backlog grows without a consumer, and is then drained.
fn backlog(prefetch: u32) {
    let mut storage = DequeStorage::default();
    let mut broker = Broker::new(Options::default());
    let (producer, consumer) = (connect(&mut broker, "producer"), connect(&mut broker, "consumer"));
    let mut fx = Vec::new();
    println!("-- a backlog of {}, then a consumer with prefetch {prefetch}", BATCH * BATCHES / 4);
    let (mut grow, mut drain) =
        (Clock::new("send and committed"), Clock::new("acknowledge, commit, next delivery"));
    let mut sequence = 0;
    for _ in 0..BATCHES / 4 {
        let requests = sends(&mut sequence, true);
        grow.measure(BATCH, || {
            for request in requests {
                broker.request(0, producer, request, &mut storage, &mut fx).expect("nothing is in the way");
            }
            while let Some(applied) = storage.apply() {
                broker.applied(0, applied, &mut storage, &mut fx).expect("the store never fails");
            }
        });
    }
    broker.request(0, consumer, subscribe(prefetch), &mut storage, &mut fx).expect("nothing is in the way");
    let mut drained = 0;
    loop {
        let delivered = deliveries(&mut fx);
        if delivered.is_empty() {
            break;
        }
        drained += delivered.len();
        let requests = acks(&delivered, true);
        drain.measure(delivered.len(), || {
            for request in requests {
                broker.request(0, consumer, request, &mut storage, &mut fx).expect("nothing is in the way");
            }
            while let Some(applied) = storage.apply() {
                broker.applied(0, applied, &mut storage, &mut fx).expect("the store never fails");
            }
        });
    }
    assert_eq!(drained, BATCH * BATCHES / 4);
    grow.print();
    drain.print();
}

fn main() {
    store_alone();
    keeping_up(true);
    keeping_up(false);
    backlog(1000);
    backlog(1);
}
