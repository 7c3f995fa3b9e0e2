//! One running broker: sockets, threads, and the order in which they start and stop.
//!
//! ```text
//! connection tasks (tokio) --requests--> core: Mutex<broker + store> --records--> journal (open batch)
//!        ^  ^                                  ^  |                                    |
//!        |  +----- deliveries (outbox) --------|--+                                    v
//!        |                                applier thread <----- commit --------- journal thread: write, flush
//!        +------------- receipts up to the commit position ---------------------------+
//! ```
//! - The core's lock is never held across a flush, a write to a socket, or a wait. Index chunks that were let go are read
//!   under it, from the page cache as a rule.
//! - Receipts do not pass through the core: a connection keeps (position, token) pairs and is woken once per commit. Where few
//!   clients each wait for one receipt, the journal thread sends it itself (`ahead`).
//! - A failed write or flush ends the process: the commit position stands still, nothing is confirmed, [`Node::run`] returns
//!   the error.

mod ahead;
mod cluster;
mod confirm;
mod connection;
mod core;
mod gate;
mod node;
mod outbox;
mod serving;
mod signal;
mod threads;
mod tls;

pub use cluster::{ClusterNode, ClusterOptions, OpenProvider, PeerTls, PeerTlsFiles, Protection, Said};
pub use kahawai_shipping::chain;
pub use node::{Node, NodeError, NodeOptions};
pub use serving::{Listening, StompListener};
pub use tls::TlsError;
