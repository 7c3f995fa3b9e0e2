//! Log shipping: what primary and replica do with journal, files and frames, without a runtime.
//!
//! Plain blocking functions between the machines of `replication` and the disk. The node calls them from its tasks and threads,
//! the simulator from its events: what is here runs in both. Errors are texts for logs and refusals.
//!
//! * `logs`: how our journal is compared with a peer's, at either end of a stream.
//! * `batches`: the stream's bodies, read from files and cut into batches.
//! * `files`: whole files: announced, planned, installed.
//! * `incoming`: the same while they come: written, checked, their index made.

mod batches;
mod files;
mod incoming;
mod logs;

pub use batches::{FromFiles, Piece, split};
pub use files::{
    ChunkMemory, Offer, ResumeLog, described, install, keep_manifest, offered, prepare, read_chunk, sealed,
};
pub use incoming::{
    Arrivals, Checked, IncomingFile, asked_for, begin_repair, check, discard_repairs, finish_repair, settle,
};
pub use logs::{Held, Sealed, find_chain, history_of_peer, local_log, primary_log};

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
