//! The whole cluster in one thread with virtual time: network, disks, election service, clients, and what must never happen.
//!
//! Nodes run the code of the binary: the machines of `replication`, `election` and `broker`, journal and store over files in
//! memory. Whatever happens comes from one seed; the same seed gives the same run on every machine.

pub mod clients;
pub mod history;
pub mod service;
pub mod wire;

/// Of the virtual world: since it began.
pub type Micros = u64;

/// What must never be, and was. It begins with the name of the rule: `I5: ...`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation(pub String);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
