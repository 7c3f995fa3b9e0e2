//! Builders, fault-injecting files, fixtures and conformance suites for tests.
//!
//! * [`MemoryFiles`]: a data directory in memory that loses power, lies about flushes, fills up and flips bits, always the
//!   same way for the same seed.
//! * [`ManualClock`]: time that moves when told to.
//! * [`fixtures`]: data directories made by ActiveMQ.
//! * [`conformance`]: what every implementation of the `env` traits has to pass.

mod clock;
pub mod conformance;
pub mod fixtures;
mod memory;
mod random;

pub use clock::ManualClock;
pub use memory::{MemoryFiles, SECTOR_BYTES};
pub use random::Random;
