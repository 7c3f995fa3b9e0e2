//! Sessions: what a client writes, what the broker is asked, what the client reads.
#![allow(clippy::unwrap_used, reason = "a test that finds nothing may say so by panicking")]

mod arbitrary;
mod server;
mod sessions;
mod tools;
