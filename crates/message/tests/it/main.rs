//! Stored messages, properties and bodies: what Java wrote, and whatever else there may be.

#![allow(clippy::unwrap_used)]

mod any;
mod bodies;
mod fixtures;
mod malformed;
mod round_trips;
mod vectors;

use bytes::{Bytes, BytesMut};

/// What `write` appends.
fn written(write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    write(&mut out);
    out.freeze()
}
