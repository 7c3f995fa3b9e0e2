//! The store over files that lose power, against a model that does not.

#![allow(clippy::unwrap_used)]

mod crash;
mod fixtures;
mod follow;
mod identity;
mod imported;
mod world;
