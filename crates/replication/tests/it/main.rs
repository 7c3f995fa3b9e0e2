//! Primaries and replicas over a network that breaks, against an oracle that remembers what was confirmed.

#![allow(clippy::unwrap_used)]

mod log;
mod matching;
mod primary;
mod sessions;
mod sync;
mod walk;
mod world;
