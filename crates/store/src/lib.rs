//! What the journal's records mean: store commands, the index over them, checkpoints, replay, import and collection.
//!
//! Invariants, in the order in which they matter:
//! 1. The journal is the truth, the index is a function of it: [`state::State::apply`] is the only way in, at run time and in
//!    replay.
//! 2. Nothing is in the index, and nothing reaches the broker, before its position is committed. One exception: a replica that
//!    becomes the primary takes the rest of its journal in, and neither serves nor checkpoints it before that is committed
//!    ([`Store::settled_from`]).
//! 3. A data file is deleted only by a journalled decision, and only if replaying the rest gives the same state
//!    ([`files`]).
//! 4. A foreign directory (ActiveMQ's) is never changed before everything in it has been understood.
//!
//! Reading order: [`chunk`], [`audit`] and [`state`] (the index), [`checkpoint`] and `checked` (the index on disk), [`replay`], [`import`] (ActiveMQ's
//! own index), [`snapshot`] (what was made of it), [`open`], [`append`] (the broker's [`kahawai_message::storage::Storage`]), [`collect`], [`inspect`]; for
//! replicas `follow` (a store that applies what its primary sends), `closed` (exchanging parts of a journal), `identity`, `damage`,
//! [`generation`].

mod append;
pub mod audit;
mod build;
mod checked;
pub mod checkpoint;
pub mod chunk;
mod closed;
pub mod collect;
mod damage;
pub mod files;
mod follow;
pub mod generation;
mod identity;
pub mod import;
pub mod inspect;
pub mod open;
mod ranges;
pub mod replay;
pub mod snapshot;
pub mod state;

pub use append::Store;
pub use build::{IndexBuilder, discard_staged};
pub use closed::{ClosedError, install, truncate};
pub use follow::{Follower, OpenedFollower, PromoteError, Promoted};
pub use identity::{
    DEFAULT_NODE_ID, Identity, IdentityError, NODE_FILE, RECORD_BYTES_MAX, RECORD_FILE, StoreState,
    load_record, save_record,
};
pub use open::{OpenError, OpenOptions, Opened, Rebuilt, Report, known_positions, open};
