//! STOMP 1.0, 1.1 and 1.2, as ActiveMQ speaks it: codec, server machine, and the client's end for our own tools.
//!
//! Nothing here does I/O or reads a clock. Reading order: [`Version`] and [`Limits`]; `decode` finds frames in a receive
//! buffer without copying, `escape` writes their parts; `destination` (names), `send` (SEND to message), `message_frame`
//! (message to MESSAGE); `consumer`, `in_flight` and `transaction` (what is not acknowledged yet), `answer` (what is owed
//! to the client), `heart_beat`; and [`Connection`], which ties them together. [`client`] is the other end.
//!
//! Invariants: no input panics or makes us hold more than a named limit; answers leave in the order of their requests; a
//! receipt leaves only when the driver says that its request is confirmed; what a client acknowledged in a transaction
//! that fails is in flight again.
//!
//! Where the specification leaves room, or ActiveMQ ignores it, we do what ActiveMQ 5.x does: the connection survives
//! an ERROR that is not about the protocol itself, a name without prefix is a queue, `persistent` is false unless said
//! otherwise, several subscriptions may have one id, an unknown `ack` mode is `auto`, NACK is for one message and goes to
//! the dead letters at once. We differ from it on purpose in this:
//!
//! - Escapes: none in 1.0, undefined ones are errors, `\r` is known to 1.2. A header line without colon, a NUL among the
//!   headers and an unknown command end the connection with ERROR.
//! - `persistent:True` is persistent, whatever its case.
//! - Nothing after CONNECT is taken before CONNECT is confirmed.
//! - The bodies of map and stream messages are sent as JSON (`content-type:application/json`), ActiveMQ sends none.
//!   Requests for other transformations are not honoured; a SEND with one gets the header `transformation-error`.
//! - A text with a NUL is sent with content-length, so that it arrives whole.
//! - MESSAGE shows `JMSXGroupID` and `JMSXGroupSeq`. A property called like a header that every MESSAGE has is left out.
//! - UNSUBSCRIBE with `activemq.subscriptionName` closes this connection's consumer of it first; UNSUBSCRIBE of an id
//!   ends all subscriptions with that id.
//! - A receipt's text goes back to the byte as it came.

mod answer;
pub mod client;
mod connection;
mod consumer;
mod decode;
mod destination;
mod escape;
mod fault;
#[doc(hidden)]
pub mod fuzz;
mod heart_beat;
mod in_flight;
mod json;
mod limits;
mod message_frame;
mod options;
mod send;
mod transaction;
mod version;

pub use connection::{After, Closed, Connection, Progress};
pub use decode::DecodeError;
pub use limits::Limits;
pub use options::{ConnectionOptions, HeartBeatOptions, PrefetchDefaults};
pub use version::Version;
