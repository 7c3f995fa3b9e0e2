//! The cluster record kept in ZooKeeper.
//!
//! ```text
//! <path>/record                    the record; its version is what a compare-and-set compares
//! <path>/election/n-<boot>-<seq>   ephemeral, sequential: the queue for the grant, its lowest node holds it
//! <path>/presence/<node>           ephemeral: what a process says about itself
//! ```
//! Reading order: [`Uri`] and [`Options`]; [`ZookeeperProvider`], which answers calls over the current session; `supervise`,
//! the one task that makes sessions, one after the other; `session`, what it does while one lives.
//!
//! - A compare-and-set is one transaction: the grant's node exists (its name is never used twice, unless somebody deletes the
//!   directory, and then by the same process only, whose requests keep their order), and the record has the expected version. Whose session has expired has no such node, so that its write fails inside ZooKeeper.
//! - A session is renewed by `sync`, which goes through the leader: an answer that a cut-off follower gives from its own
//!   memory proves nothing. The lease is counted from when the renewal *before* the last answered one was sent, because a
//!   follower passes a sign of life on to the leader up to half a tick later, and may die before.
//! - After a lost connection our place in the queue counts only if its owner is still the present session.
//! - One recursive watch on the whole path tells of every change. It needs ZooKeeper 3.6 or newer. The client library does
//!   not set it again after a reconnection (it sends the old request that knows no such watches), so we do.

mod options;
mod provider;
mod queue;
mod session;
mod supervise;

pub use options::{Credentials, Options, ParseUriError, Uri};
pub use provider::{OpenError, ZookeeperProvider};
