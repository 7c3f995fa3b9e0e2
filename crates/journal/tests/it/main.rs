//! The journal from outside: what is confirmed survives, what is torn is cut, what is damaged is refused.

#![allow(clippy::unwrap_used)]

mod append;
mod crash;
mod damage;
mod foreign;
mod history;
mod model;
mod replica;
mod retire;
mod scrub;
mod truncate;
