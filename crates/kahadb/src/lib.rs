//! The contents of a KahaDB directory: bytes in, values out, no I/O.
//!
//! * [`command`]: what the journal's records say, read and written byte for byte as ActiveMQ does;
//! * [`pagefile`]: the index `db.data`, which an importer reads because some facts are nowhere else;
//! * [`scheduler`]: the store of scheduled messages, its index and its replay;
//! * [`multi`]: mKahaDB's directory names and its decisions over several stores;
//! * [`javaser`]: the Java serialization inside some hints.
//!
//! Nothing here panics, loops without end or allocates beyond a named limit, whatever the bytes.

#![forbid(unsafe_code)]

pub mod command;
mod decimal;
pub mod javaser;
pub mod multi;
pub mod pagefile;
mod protobuf;
pub mod scheduler;

pub use command::{
    AddHeader, Command, CommandError, MessageKey, RemoveHeader, decode, encode, encode_add, encode_remove,
    encode_update,
};
