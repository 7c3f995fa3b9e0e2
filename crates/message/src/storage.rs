//! What the broker asks of the store, and what the store tells the broker.
//!
//! The broker decides, the store remembers. Every operation that changes something is *appended* to the journal at once
//! and has *effect* only when its position is committed: then the store reports it as an [`Applied`]. Positions only
//! grow, so "is this confirmed" is one comparison.

use kahawai_types::{Location, Lsn, Millis};

use crate::stored::SubscriptionInfo;
use crate::{Destination, Message, MessageId, ProducerId, Text, TransactionId};

/// Short name of a destination in one run of the store. Never reused while the process lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DestinationKey(pub u32);

/// KahaDB's three priority tiers, in delivery order. Priorities count only where the destination is prioritised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Tier {
    /// Priority 5 to 9.
    High = 0,
    /// Priority 4, and everything in a destination without priorities.
    Default = 1,
    /// Priority 0 to 3.
    Low = 2,
}

impl Tier {
    /// In delivery order.
    pub const ALL: [Self; 3] = [Self::High, Self::Default, Self::Low];

    /// The tier of a priority, if the destination is prioritised.
    pub const fn of(priority: u8, prioritised: bool) -> Self {
        match priority {
            _ if !prioritised => Self::Default,
            0..=3 => Self::Low,
            4 => Self::Default,
            _ => Self::High,
        }
    }
}

/// A committed message in a destination's index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its number in the destination: delivery order inside a tier.
    pub sequence: u64,
    /// Its tier.
    pub tier: Tier,
    /// Where its record lies.
    pub location: Location,
    /// Size of that record with its header, bytes.
    pub size: u32,
    /// When it expires; 0 = never.
    pub expiration_ms: Millis,
    /// Redelivery counter in the stored form.
    pub redelivery_counter: u32,
}

/// Where an appended operation lies: it is confirmed when the commit position is at or beyond `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Number given to the message, for operations that add one.
    pub sequence: u64,
    /// One past the operation's last byte.
    pub end: Lsn,
}

/// The store accepts nothing more: its journal failed, or is closed. Nothing is confirmed any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// A write or flush failed earlier; the node must stop.
    #[error("storage failed: {0}")]
    Failed(String),
    /// A single message or transaction over the journal's hard limit.
    #[error("{bytes} bytes are more than one journal record can hold ({limit})")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
}

/// Who acknowledged, for the stored acknowledgement.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AckBy {
    /// Connection of the consumer.
    pub connection: Text,
    /// Its session.
    pub session: i64,
    /// Its number.
    pub consumer: i64,
}

/// A durable subscription's name: client id and subscription name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SubscriptionKey {
    /// JMS client id.
    pub client_id: Text,
    /// Name within the client.
    pub name: Text,
}

/// KahaDB's key, `clientId:name`, which cannot be split again.
impl std::fmt::Display for SubscriptionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.client_id, self.name)
    }
}

/// One step of a transaction.
#[derive(Clone, PartialEq, Debug)]
#[expect(clippy::large_enum_variant)] // as for requests: mostly messages
pub enum Operation {
    /// A message sent.
    Add {
        /// Where to.
        destination: DestinationKey,
        /// What; `prioritised` destinations file it by its priority.
        message: Message,
        /// Is the destination prioritised?
        prioritised: bool,
    },
    /// A queue message consumed.
    Remove {
        /// Where from.
        destination: DestinationKey,
        /// Which.
        sequence: u64,
        /// Its id, as stored.
        id: MessageId,
        /// By whom.
        by: AckBy,
    },
    /// A topic message consumed by a durable subscription.
    Acknowledge {
        /// Where from.
        destination: DestinationKey,
        /// For which subscription.
        subscription: SubscriptionKey,
        /// Which.
        sequence: u64,
        /// Its id, as stored.
        id: MessageId,
        /// Dropped by selector or noLocal rather than consumed.
        unmatched: bool,
        /// By whom.
        by: AckBy,
    },
}

/// Something that has become true, in journal order.
#[derive(Clone, PartialEq, Debug)]
pub enum Applied {
    /// A message may be seen.
    Added {
        /// Where.
        destination: DestinationKey,
        /// The message.
        entry: Entry,
    },
    /// A message is gone.
    Removed {
        /// Where.
        destination: DestinationKey,
        /// Which.
        sequence: u64,
    },
    /// A durable subscription has consumed a message (which may live on for others).
    Acknowledged {
        /// Where.
        destination: DestinationKey,
        /// By which subscription.
        subscription: SubscriptionKey,
        /// Which.
        sequence: u64,
    },
    /// A durable subscription exists, or changed.
    Subscribed {
        /// On which topic.
        destination: DestinationKey,
        /// What it is.
        info: SubscriptionInfo,
    },
    /// A durable subscription is gone.
    Unsubscribed {
        /// On which topic.
        destination: DestinationKey,
        /// Its name.
        subscription: SubscriptionKey,
    },
    /// A destination is gone with all that it held.
    DestinationRemoved {
        /// Which.
        destination: DestinationKey,
    },
}

/// The store as the broker sees it. All reads are of the committed state.
pub trait Storage {
    /// The key of a destination, made on first use. Making one writes nothing.
    fn destination(&mut self, destination: &Destination) -> DestinationKey;

    /// Appends a persistent message to a queue or topic. The message is stored with `destination` as it stands in it.
    fn add(
        &mut self,
        to: DestinationKey,
        message: &Message,
        prioritised: bool,
    ) -> Result<Appended, StorageError>;

    /// Appends the same message to several destinations, all or nothing: `(destination, its own copy)`.
    fn add_all(&mut self, copies: &[(DestinationKey, Message, bool)]) -> Result<Appended, StorageError>;

    /// Appends the removal of a queue message.
    fn remove(
        &mut self,
        from: DestinationKey,
        sequence: u64,
        id: &MessageId,
        by: &AckBy,
    ) -> Result<Lsn, StorageError>;

    /// Appends a durable subscription's acknowledgement of one message.
    fn acknowledge(
        &mut self,
        topic: DestinationKey,
        subscription: &SubscriptionKey,
        sequence: u64,
        id: &MessageId,
        by: &AckBy,
        unmatched: bool,
    ) -> Result<Lsn, StorageError>;

    /// Appends a whole local transaction: its steps and its commit record. All or nothing, also after a crash.
    fn transaction(&mut self, id: &TransactionId, operations: &[Operation]) -> Result<Lsn, StorageError>;

    /// Appends `operations` so that all of them survive a crash or none (a dead letter and the removal of its original).
    fn together(&mut self, operations: &[Operation]) -> Result<Lsn, StorageError>;

    /// Appends a replacement of a stored message, same sequence (redelivery mark).
    fn update(
        &mut self,
        at: DestinationKey,
        sequence: u64,
        message: &Message,
        prioritised: bool,
    ) -> Result<Lsn, StorageError>;

    /// Appends the creation or change of a durable subscription.
    fn subscribe(
        &mut self,
        topic: DestinationKey,
        info: &SubscriptionInfo,
        retroactive: bool,
    ) -> Result<Lsn, StorageError>;

    /// Appends the end of a durable subscription.
    fn unsubscribe(
        &mut self,
        topic: DestinationKey,
        subscription: &SubscriptionKey,
    ) -> Result<Lsn, StorageError>;

    /// Appends the end of a destination.
    fn remove_destination(&mut self, destination: DestinationKey) -> Result<Lsn, StorageError>;

    /// The first message of a tier with a sequence at or above `from`.
    fn next(&mut self, at: DestinationKey, tier: Tier, from: u64) -> Result<Option<Entry>, StorageError>;

    /// The same, of those that a durable subscription has not acknowledged.
    fn next_pending(
        &mut self,
        topic: DestinationKey,
        subscription: &SubscriptionKey,
        tier: Tier,
        from: u64,
    ) -> Result<Option<Entry>, StorageError>;

    /// One message by its sequence.
    fn entry(&mut self, at: DestinationKey, sequence: u64) -> Result<Option<Entry>, StorageError>;

    /// How many messages a destination holds.
    fn count(&self, at: DestinationKey) -> u64;

    /// How many messages a durable subscription has not acknowledged.
    fn pending_count(&self, topic: DestinationKey, subscription: &SubscriptionKey) -> u64;

    /// All destinations that hold something or were told to exist, with their durable subscriptions.
    fn destinations(&self) -> Vec<(DestinationKey, Destination, Vec<SubscriptionInfo>)>;

    /// The highest number that this producer has had stored, as far as the store remembers (duplicate detection).
    fn last_sequence_of(&self, producer: &ProducerId) -> Option<i64>;

    /// One past the last byte appended so far: waiting for it waits for everything before.
    fn appended_end(&self) -> Lsn;

    /// The commit position.
    fn committed(&self) -> Lsn;

    /// Too much is appended and not yet committed: hold producers back.
    fn is_congested(&self) -> bool;
}
