//! The provider against a real ZooKeeper, which is started here and ended again.

#![allow(clippy::unwrap_used)]

mod conformance;
mod process;
mod proxy;
mod server;
mod takeover;
