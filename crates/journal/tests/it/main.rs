//! The journal from outside: what is confirmed survives, what is torn is cut, what is damaged is refused.

mod append;
mod crash;
mod damage;
mod foreign;
mod model;
mod replica;
