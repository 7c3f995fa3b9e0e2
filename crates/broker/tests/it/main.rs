//! The broker in scenarios, as its clients see it, and against a model.

#![allow(clippy::unwrap_used, reason = "tests, helpers included")]

#[allow(dead_code, reason = "shared with unit tests and examples")]
#[path = "../../src/testing.rs"]
mod testing;

mod dead_letters;
mod destinations;
mod model;
mod model_topics;
mod queues;
mod selectors;
mod topics;
mod transactions;
mod world;
