//! Between a front end (STOMP, OpenWire, …) and the broker: requests, deliveries, refusals.
//!
//! A front end's connection machine turns bytes into [`Request`]s and [`Delivery`]s into bytes; it numbers its consumers
//! and transactions itself. The answer to a request that wants one (`token`) comes when it is *confirmed*, which for
//! everything persistent is when the commit position has reached it.

use std::sync::Arc;

use crate::storage::{DestinationKey, Entry};
use crate::stored::SubscriptionInfo;
use crate::{Destination, Message, MessageId, Text};

/// A front end's number for one of its consumers, unique in its connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConsumerNumber(pub u32);

/// A front end's number for a transaction that is open on its connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TransactionNumber(pub u32);

/// A front end's number for the answer that it owes its client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// Number of a delivery, ascending per connection from 1.
pub type DeliveryTag = u64;

/// Who connects.
#[derive(Clone, Debug, Default)]
pub struct ConnectionInfo {
    /// JMS client id; owns durable subscriptions; at most one connection at a time has it.
    pub client_id: Option<Text>,
    /// Connection id, the first part of its message ids; unique.
    pub connection_id: Text,
    /// User name, if any.
    pub login: Option<Text>,
    /// Password, if any. Never logged.
    pub passcode: Option<Text>,
    /// Protocol and version, for logs and status: `STOMP 1.2`.
    pub protocol: Text,
}

/// How a consumer subscribes.
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// The front end's number.
    pub consumer: ConsumerNumber,
    /// What to consume; wildcards (`*`, `>`) and lists (`A,B`) allowed.
    pub destination: Destination,
    /// Selector text.
    pub selector: Option<Text>,
    /// How many deliveries may be unacknowledged; 0 is treated as 1.
    pub prefetch: u32,
    /// Name of a durable topic subscription.
    pub durable_name: Option<Text>,
    /// Not the messages that this connection sent.
    pub no_local: bool,
    /// Sole consumer of the queue while connected.
    pub exclusive: bool,
    /// Preferred over consumers with a lower priority (0 to 127, default 0).
    pub priority: u8,
    /// Also what the topic had earlier, as far as it is kept.
    pub retroactive: bool,
    /// Looks at a queue without consuming; ends with [`Event::BrowseEnd`].
    pub browser: bool,
    /// Deliveries need no acknowledgement: the node acknowledges them once they are written to the socket.
    pub auto_ack: bool,
}

/// What happened to a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AckKind {
    /// Consumed.
    Consumed,
    /// Refused by the application: dead-letter queue.
    Poison,
    /// Given back: another delivery later, counted.
    Released,
}

/// An acknowledgement of one delivery. A cumulative one is sent as many.
#[derive(Clone, PartialEq, Debug)]
pub struct Ack {
    /// Whose.
    pub consumer: ConsumerNumber,
    /// Which delivery.
    pub tag: DeliveryTag,
    /// The message's id, as delivered.
    pub id: MessageId,
    /// What became of it.
    pub kind: AckKind,
}

/// What a client wants.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant)] // most requests are sends: boxing them would allocate once per message
pub enum Request {
    /// First of all.
    Connect(Box<ConnectionInfo>),
    /// A message. `id` is set by the front end: producer id and running number.
    Send {
        /// The message.
        message: Message,
        /// In which transaction.
        transaction: Option<TransactionNumber>,
    },
    /// A new consumer.
    Subscribe(Box<Subscribe>),
    /// The end of a consumer; its unacknowledged deliveries return.
    Unsubscribe {
        /// Which.
        consumer: ConsumerNumber,
    },
    /// The end of a durable subscription, which must not be in use.
    RemoveSubscription {
        /// Its name within the connection's client id.
        name: Text,
    },
    /// Acknowledgements, in order.
    Acknowledge {
        /// Which deliveries.
        acks: Vec<Ack>,
        /// In which transaction.
        transaction: Option<TransactionNumber>,
    },
    /// Opens a transaction.
    Begin {
        /// Its number.
        transaction: TransactionNumber,
    },
    /// Commits it.
    Commit {
        /// Its number.
        transaction: TransactionNumber,
    },
    /// Rolls it back: sends vanish, acknowledged deliveries stay with their consumer (STOMP) and can be acknowledged again.
    Rollback {
        /// Its number.
        transaction: TransactionNumber,
    },
    /// The client wants to leave in good order, after everything before is confirmed.
    Disconnect,
}

/// Where a delivered message's bytes are.
#[derive(Clone, Debug)]
pub enum Source {
    /// In memory.
    Memory(Arc<Message>),
    /// In the journal.
    Stored(DestinationKey, Entry),
}

/// A message on its way to a consumer.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// To whom.
    pub consumer: ConsumerNumber,
    /// Its number.
    pub tag: DeliveryTag,
    /// What.
    pub source: Source,
    /// Deliveries before this one that were not acknowledged, including what the stored form says.
    pub redelivery_counter: u32,
}

/// What a front end hears from the broker besides deliveries and confirmations.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A browser has seen the whole queue.
    BrowseEnd(ConsumerNumber),
    /// The broker ends a consumer (its destination was removed, an exclusive claim, …).
    ConsumerClosed(ConsumerNumber, Refusal),
    /// The broker ends the connection.
    Close(Refusal),
}

/// Why the broker does not do what a client asked. The text is meant for the client.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Malformed or impossible request.
    #[error("{0}")]
    Invalid(String),
    /// Selector that does not parse.
    #[error("invalid selector: {0}")]
    Selector(String),
    /// The client id or durable subscription is in use by another connection.
    #[error("{0}")]
    InUse(String),
    /// Nothing of that name.
    #[error("{0}")]
    NotFound(String),
    /// Not allowed.
    #[error("{0}")]
    Unauthorized(String),
    /// Over a limit.
    #[error("{0}")]
    Limit(String),
    /// Storage failed; nothing is confirmed any more.
    #[error("storage failed: {0}")]
    Storage(String),
}

/// A durable subscription as front ends and status show it.
pub type DurableSubscription = SubscriptionInfo;
