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
//! - Receipts do not pass through the core: a connection keeps (position, token) pairs and is woken once per commit.
//! - A failed write or flush ends the process: the commit position stands still, nothing is confirmed, [`Node::run`] returns
//!   the error.

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

/// An error with everything that it comes from, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Transparent errors repeat what they wrap, and some name their cause themselves.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

pub use cluster::{ClusterNode, ClusterOptions, OpenProvider, PeerTls, PeerTlsFiles, Protection, Said};
pub use node::{Node, NodeError, NodeOptions};
pub use serving::{Listening, StompListener};
pub use tls::TlsError;
