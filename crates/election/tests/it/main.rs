//! Electors over a modelled service, and the modelled service against what every service must do.

#![allow(clippy::unwrap_used)]

mod conformance;
mod script;
mod single;
mod walk;
mod world;
