//! A bounded model check of the machines in `replication` and `election`: all orders in which a few things can happen, with
//! `stateright`, over the very code of the node. What was checked, with numbers: `docs/model-check.md`.
//!
//! Reading order: `invariant` (what must never be); `journal` (what stands for a disk); [`ClusterModel`] (three nodes, their
//! electors, the record); [`StreamModel`] (two nodes and the frames between them); [`Mutation`] (what is broken on purpose);
//! [`check()`].

mod check;
mod cluster;
mod invariant;
mod journal;
mod mutation;
mod nodes;
mod shared;
mod stream;

pub use check::{Checked, Options, Report, Search, check};
pub use cluster::{Action, Bounds, ClusterModel, Start, World};
pub use invariant::Invariant;
pub use kahawai_replication::Rule;
pub use mutation::Mutation;
pub use stream::{StreamAction, StreamBounds, StreamModel, StreamWorld};
