//! What clients and nodes say to each other, in place of a wire protocol: small values that the world delays, loses and counts.

use kahawai_message::Destination;

/// A client process of the workload. It has at most one connection at a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(pub u32);

/// A client's number for an answer that it waits for; never used twice by one client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Op(pub u32);

/// A client's number for one of its transactions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TransactionOf(pub u32);

/// One copy of a message: each attempt to send it makes another, so what is delivered tells which attempt was kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CopyId(pub u32);

/// Where messages go to and come from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Place {
    /// A queue. The one with number 0 is prioritised.
    Queue(u8),
    /// A topic.
    Topic(u8),
    /// The queue of the dead letters.
    Dead,
}

impl Place {
    /// The destination as the broker names it.
    pub fn destination(self) -> Destination {
        match self {
            Self::Queue(number) => Destination::queue(format!("q{number}")),
            Self::Topic(number) => Destination::topic(format!("t{number}")),
            Self::Dead => Destination::queue("ActiveMQ.DLQ"),
        }
    }

    /// The place of that name, if it is one of ours.
    pub fn of(destination: &Destination) -> Option<Self> {
        let name: &[u8] = destination.name.as_bytes();
        let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse().ok();
        match (destination.kind.is_queue(), name) {
            (true, [b'q', digits @ ..]) => number(digits).map(Self::Queue),
            (false, [b't', digits @ ..]) => number(digits).map(Self::Topic),
            (true, b"ActiveMQ.DLQ") => Some(Self::Dead),
            _ => None,
        }
    }
}

/// What a producer hands over.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Parcel {
    /// Which copy of which message.
    pub copy: CopyId,
    /// Where to.
    pub place: Place,
    /// Producer and its running number, so that a repetition is recognised. Without, the node numbers it for the connection.
    pub number: Option<(u32, u32)>,
    /// `JMSDeliveryMode`.
    pub persistent: bool,
    /// 0 to 9.
    pub priority: u8,
    /// A property that selectors look at.
    pub colour: u8,
    /// Bytes of the body behind what identifies it.
    pub padding: u16,
    /// How long it may wait, milliseconds; 0 = for ever.
    pub lives_ms: u16,
}

/// What a consumer subscribes to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Wanted {
    /// Where from.
    pub place: Place,
    /// The durable subscription of a topic.
    pub durable: Option<u8>,
    /// Only messages of this colour.
    pub colour: Option<u8>,
    /// How many deliveries may be out.
    pub prefetch: u16,
    /// The node acknowledges what it has written.
    pub auto_ack: bool,
    /// Sole consumer of its queue.
    pub exclusive: bool,
    /// Preferred over consumers of a lower one.
    pub priority: u8,
    /// Looks at a queue without consuming; ends with [`Answer::BrowseEnd`].
    pub browser: bool,
}

/// What becomes of a delivery, by its consumer's will.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AckOf {
    /// Consumed.
    Consumed,
    /// Given back, for another delivery.
    Released,
    /// Refused for good: to the dead letters.
    Rejected,
}

/// What a client sends to a node. Everything with an [`Op`] is answered, in order, except that refusals and heart-beats may
/// pass what waits for the commit position.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Ask {
    /// The first of a connection. A client is known to the broker by a client id of its own.
    Connect {
        /// Answered by [`Answer::Connected`].
        op: Op,
    },
    /// A message.
    Send {
        /// Its receipt.
        op: Op,
        /// What.
        parcel: Parcel,
        /// In which transaction.
        transaction: Option<TransactionOf>,
    },
    /// A consumer.
    Subscribe {
        /// Its receipt.
        op: Op,
        /// The client's number for it.
        consumer: u32,
        /// What it wants.
        wanted: Wanted,
    },
    /// The end of a consumer.
    Unsubscribe {
        /// Its receipt.
        op: Op,
        /// Which.
        consumer: u32,
    },
    /// The end of a durable subscription.
    Remove {
        /// Its receipt.
        op: Op,
        /// Of which topic.
        topic: u8,
        /// Which.
        durable: u8,
    },
    /// Acknowledgements of deliveries to one consumer.
    Acknowledge {
        /// Their receipt.
        op: Op,
        /// By which consumer.
        consumer: u32,
        /// Which deliveries, and what became of them.
        acks: Vec<(u64, AckOf)>,
        /// In which transaction.
        transaction: Option<TransactionOf>,
    },
    /// Opens a transaction.
    Begin {
        /// Its receipt.
        op: Op,
        /// Which.
        transaction: TransactionOf,
    },
    /// Commits it.
    Commit {
        /// Its receipt.
        op: Op,
        /// Which.
        transaction: TransactionOf,
    },
    /// Rolls it back.
    Rollback {
        /// Its receipt.
        op: Op,
        /// Which.
        transaction: TransactionOf,
    },
    /// A sign of life, answered at once.
    Heartbeat {
        /// Its answer.
        op: Op,
    },
    /// The client leaves in good order. Its answer is the last.
    Disconnect {
        /// Its receipt.
        op: Op,
    },
}

/// A message on its way to a client.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Delivered {
    /// To which consumer.
    pub consumer: u32,
    /// Its number.
    pub tag: u64,
    /// Where it comes from.
    pub place: Place,
    /// Which copy; `None`: its content is not what was sent.
    pub copy: Option<CopyId>,
    /// What the message itself says about where it was sent.
    pub sent_to: Place,
    /// Its colour, persistence and priority.
    pub traits: (u8, bool, u8),
    /// Deliveries before this one, as far as the broker knows.
    pub redelivery: u32,
}

/// What a node sends to a client.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    /// The connection is taken.
    Connected {
        /// The answer to this.
        op: Op,
        /// Of the broker that took it: another one each time that a broker begins.
        reign: u64,
    },
    /// Done, and confirmed.
    Done {
        /// The answer to this.
        op: Op,
    },
    /// Not done.
    Refused {
        /// The answer to this.
        op: Op,
    },
    /// A message.
    Delivered(Delivered),
    /// A browser has seen the whole queue.
    BrowseEnd {
        /// Which.
        consumer: u32,
    },
    /// The broker ends a consumer.
    ConsumerClosed {
        /// Which.
        consumer: u32,
    },
    /// The broker ends the connection.
    Closed,
}
