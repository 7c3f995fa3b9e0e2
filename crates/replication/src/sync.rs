//! Bulk synchronisation: whole files for a replica that lacks what the stream cannot give it.
//!
//! A file is the same on every node that has it: kind, number, length and the chain at its end say which one it is. So what
//! was fetched stays good when the connection, the replica's process or the primary changes.

mod bucket;
mod chunks;
mod leases;
mod plan;
mod resume;
mod transfers;

pub use bucket::TokenBucket;
pub use chunks::{CHUNK_BYTES, ChunkMap};
pub use leases::{LEASES_MAX, Leases, TooManyLeases};
pub use plan::{FILE_BYTES_MAX, Fetch, FileIdentity, FileKey, Plan, PlanError, plan};
pub use resume::Resume;
pub use transfers::{Chunk, Progress, Range, TransferError, Transfers, TransfersOptions};
