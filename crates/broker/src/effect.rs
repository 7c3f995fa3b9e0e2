//! What the broker asks of whoever drives it.

use std::sync::Arc;

use kahawai_message::front::{Delivery, Event, Request};
use kahawai_message::storage::{DestinationKey, Entry};
use kahawai_message::{Message, MessageId, Text};
use kahawai_selector::Selector;
use kahawai_types::Lsn;

use crate::MessageFields;
use crate::line::Slot;
use crate::slab::{ConnectionKey, ConsumerKey, LineKey};

/// What came of a request.
#[derive(Debug)]
pub enum Outcome {
    /// In force now.
    Done,
    /// In force, and to be confirmed to the client, when the commit position is at or beyond this.
    At(Lsn),
    /// Not taken: a limit is reached. Offer the request again after [`Effect::Unblocked`].
    ///
    /// Acknowledgements, subscriptions and rollbacks are never blocked, and may pass a blocked send of the same connection; they
    /// are often what makes room.
    Blocked(Box<Request>, BlockReason),
}

/// Which limit holds a producer back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum BlockReason {
    /// Messages in memory, [`Limits::memory_bytes_max`](crate::Limits::memory_bytes_max).
    Memory,
    /// Too much is appended to the journal and not committed.
    Storage,
}

/// To be carried out, in order, after the call that appended it.
#[derive(Debug)]
pub enum Effect {
    /// A message goes out.
    Deliver {
        /// To which connection.
        connection: ConnectionKey,
        /// What, and to which of its consumers.
        delivery: Delivery,
    },
    /// Something else that a connection has to hear.
    Event {
        /// Which connection.
        connection: ConnectionKey,
        /// What.
        event: Event,
    },
    /// Stored messages to be read and compared with a selector; answer with [`Broker::scanned`](crate::Broker::scanned).
    Scan(ScanRequest),
    /// A stored message to be read; answer with [`Broker::loaded`](crate::Broker::loaded).
    Load(LoadRequest),
    /// Requests of this connection that were blocked may be offered again.
    Unblocked {
        /// Which connection.
        connection: ConnectionKey,
    },
    /// Work is left that did not fit in this call: call [`Broker::tick`](crate::Broker::tick) soon.
    Continue,
}

/// For whom a scan is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scanner {
    /// A consumer that walks a line, or nobody for an offline durable subscription.
    Selecting(u64),
    Browser(ConsumerKey),
}

/// Stored messages, in delivery order, that may be for a consumer with a selector.
#[derive(Debug)]
pub struct ScanRequest {
    /// Where they are.
    pub destination: DestinationKey,
    /// Which.
    pub entries: Vec<Entry>,
    /// What to compare with.
    pub selector: Option<Arc<Selector>>,
    /// The connection whose own messages do not match.
    pub no_local: Option<Text>,
    pub(crate) line: LineKey,
    pub(crate) scanner: Scanner,
}

impl ScanRequest {
    /// The verdict on one of its messages, once it is read.
    pub fn judge(&self, message: &Message) -> Verdict {
        let local =
            self.no_local.as_ref().is_some_and(|connection| *connection == message.id.producer.connection);
        if !local && self.selector.as_ref().is_none_or(|selector| selector.matches(&MessageFields(message))) {
            Verdict::Matches
        } else {
            Verdict::Differs(message.id.clone())
        }
    }
}

/// What the scan of one message gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// For this consumer.
    Matches,
    /// Not for this consumer; the message's id.
    Differs(MessageId),
    /// It is gone, or cannot be read.
    Unreadable,
}

/// The answer to a [`ScanRequest`].
#[derive(Debug)]
pub struct ScanResult {
    /// What was asked.
    pub request: ScanRequest,
    /// One verdict for each entry, in the same order. Missing ones count as [`Verdict::Unreadable`].
    pub verdicts: Vec<Verdict>,
}

/// Why a message is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LoadPurpose {
    Expired,
    Poison,
}

/// A stored message that the broker needs to read, to move it to the dead letters.
#[derive(Debug)]
pub struct LoadRequest {
    /// Where it is.
    pub destination: DestinationKey,
    /// Which.
    pub entry: Entry,
    pub(crate) line: LineKey,
    pub(crate) slot: Slot,
    pub(crate) purpose: LoadPurpose,
}

/// The answer to a [`LoadRequest`].
#[derive(Debug)]
pub struct LoadResult {
    /// What was asked.
    pub request: LoadRequest,
    /// The message, or why not.
    pub message: Loaded,
}

/// The node moves all of this between threads.
const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<crate::Broker>();
    is_send::<Effect>();
    is_send::<ScanResult>();
    is_send::<LoadResult>();
};

/// A message that was to be read.
#[derive(Debug)]
pub enum Loaded {
    /// Here it is.
    Message(Box<Message>),
    /// The store has it no more.
    Gone,
    /// Its bytes cannot be read. It is set aside, counted, and neither delivered nor removed.
    Unreadable,
}
