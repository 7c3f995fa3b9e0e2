//! The index, `db.data` with `db.redo` (`kahadb-format.md` §7): pages, B-trees and lists, and what a message store keeps in
//! them. Read only: the index we keep ourselves is another.
//!
//! An importer reads the index because some facts are nowhere else (§13): empty destinations, removed subscriptions, the
//! true order. It then replays the journal behind [`Metadata::last_update`]. Pages carry no checksums, so every structure
//! is checked while it is read (bounds, page used once, ascending keys); any [`PageError`] means that the index is not to
//! be trusted, and that the journal alone must do.
//!
//! Trees are walked lazily, one node in memory at a time, through a [`ReadAt`] that the caller provides.

mod import;
mod pages;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use import::optional_location;
pub use import::{
    Import, LastAck, Metadata, Statistics, StoredDestination, StoredMessage, StoredSubscription, Tier,
};
pub use pages::{CHAIN_BYTES_MAX, Header, PAGE_BYTES_MAX, PageError, PageFile, ReadAt, Redo};
pub(crate) use tree::{Key, Tree, Value, location};
pub use tree::{SequenceSet, SizedLocation, TREE_DEPTH_MAX};
