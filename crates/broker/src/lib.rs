//! The broker core: destinations, dispatch, prefetch, acknowledgement, redelivery, transactions, flow control.
//!
//! A plain state machine: no I/O, no clock (`now` is an argument), no threads, and no hash map's order in any effect. Whoever
//! drives it (the node, the simulator) holds it together with a store behind one lock, and
//! - offers each client's requests, in the client's order, to [`Broker::request`], and confirms them when their [`Outcome`]
//!   says so;
//! - tells it by [`Broker::applied`] what the store has applied as the commit position advances;
//! - carries out the [`Effect`]s, in order, after unlocking, and answers [`Effect::Scan`] by [`Broker::scanned`],
//!   [`Effect::Load`] by [`Broker::loaded`];
//! - acknowledges deliveries itself where the client does not (`auto_ack`, and all that a browser was shown), once they are
//!   written;
//! - calls [`Broker::tick`] when the last one asked for it, and soon after [`Effect::Continue`];
//! - ends the process on [`StorageError::Failed`](kahawai_message::storage::StorageError) and
//!   [`Refusal::Storage`](kahawai_message::front::Refusal).
//!
//! ```
//! use kahawai_broker::{Broker, Options};
//! use kahawai_message::front::ConnectionInfo;
//!
//! let mut broker = Broker::new(Options::default());
//! let info = ConnectionInfo { client_id: Some("shop".into()), ..ConnectionInfo::default() };
//! let connection = broker.connect(info.clone())?;
//! assert!(broker.connect(info).is_err(), "the client id is in use");
//! # let _ = connection;
//! # Ok::<(), kahawai_message::front::Refusal>(())
//! ```
//!
//! # What holds
//!
//! - Nobody sees a persistent message before it is committed: no consumer, no browser, no counter.
//! - A message is with one consumer of a queue (or of a durable subscription) at a time. Every delivery after the first since the
//!   broker started says how many there were. After a restart it may come again without saying so: ActiveMQ's default, too.
//! - An acknowledgement takes effect when it is committed. Until then the message is nobody's: not delivered, not browsed, whatever
//!   becomes of the connection. The consumer has room for another at once; so that this has an end where nothing is committed,
//!   [`Limits::acks_pending_max`] stops the delivery. In an open transaction it is the same, within the transaction's limit.
//! - Messages of one producer to one queue keep their order for a single consumer, and what comes back keeps its place: sequence is
//!   order. Non-persistent messages stand behind what was committed when they came.
//! - Messages in the store are not in the broker. A queue takes memory for what is in flight, given back or non-persistent, and an idle
//!   destination takes well below 2 KiB, no timer, and no part in [`Broker::tick`].
//! - Producers wait where a limit is reached ([`Outcome::Blocked`]); nobody else does, and the status shows who and why.
//! - A call does a bounded amount of work, except those that are about many things at once: subscribing to a pattern looks at
//!   every name with its literal beginning, publishing to a topic at every subscriber, disconnecting at all that was out.
//!
//! # What ActiveMQ does, and we do
//!
//! - Dead letters: one shared queue, for what is refused and what expires, not for non-persistent messages, with `originalExpiration`
//!   and `dlqDeliveryFailureCause`; nothing goes from that queue to itself. A topic message goes there once. That a message
//!   was refused is confirmed before its dead letter is committed; a crash between the two delivers it again.
//! - Expired messages are not delivered and not shown; a periodic sweep finds the others, a page at a time.
//! - Changing a durable subscription's selector, topic or noLocal deletes it and creates another. A wildcard subscription is stored
//!   once for each topic that exists; one that matches none yet is not stored at all.
//! - While a durable subscription is offline it gets non-persistent messages too, from memory, as long as there is plenty.
//! - Topics `VirtualTopic.>` feed the queues `Consumer.*.VirtualTopic.>` that exist.
//! - A name on a queue subscription means nothing. A selector, priority or exclusive claim works across reconnects alike.
//!
//! # What we do differently
//!
//! - There are no advisory topics: who subscribes to one hears nothing. Sending to a pattern is refused.
//! - Message groups are kept with the message and do not bind consumers.
//! - A send that repeats a producer's number (its own or a lower one) is confirmed and not stored again, on any connection, so whoever
//!   numbers messages for its clients must use producer ids that no earlier run of the broker has used.
//! - Where consumers with and without selectors share a queue, those without are served first; priority counts among each kind.
//!
//! Modules, in reading order: `effect` (what is asked of the driver), `limits`, `pattern` (names, wildcards, lists), `line` (where
//! messages wait), `place` (queues and topics), `consumer`, `connection`, `memory` (non-persistent messages), `producers`
//! (repetitions), `fields` (what selectors see), `dead_letter`, and `broker` with one module for each kind of work.

mod broker;
mod connection;
mod consumer;
mod dead_letter;
mod effect;
mod fields;
mod hash;
mod limits;
mod line;
mod memory;
mod pattern;
mod place;
mod producers;
mod slab;
#[cfg(test)]
#[allow(dead_code, reason = "shared with the integration tests")]
mod testing;

pub use broker::{Broker, ConsumerStatus, DestinationStatus, LineStatus, Status};
pub use dead_letter::{DELIVERY_FAILURE_CAUSE, ORIGINAL_EXPIRATION};
pub use effect::{
    BlockReason, Effect, LoadRequest, LoadResult, Loaded, Outcome, ScanRequest, ScanResult, Verdict,
};
pub use fields::MessageFields;
pub use limits::{Limits, Options};
pub use place::Counts;
pub use slab::ConnectionKey;
