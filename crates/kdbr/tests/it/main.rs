//! Frames as bytes, and both ends of a handshake.
#![allow(clippy::unwrap_used, reason = "a test that finds nothing may say so by panicking")]

mod codec;
mod frames;
mod golden;
mod handshake;
