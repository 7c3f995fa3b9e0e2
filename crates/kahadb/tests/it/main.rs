//! Real directories of ActiveMQ 5.17.2: what our reading of them must give.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod commands;
mod damage;
mod fixtures;
mod hints;
mod index;
mod multi;
mod scheduler;
