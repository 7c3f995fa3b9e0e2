//! The store over files that lose power, against a model that does not.

mod crash;
mod fixtures;
mod world;
