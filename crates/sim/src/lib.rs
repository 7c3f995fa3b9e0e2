//! The whole cluster in one thread with virtual time: network, disks, election service, clients, and what must never happen.
//!
//! Nodes run the code of the binary: the machines of `replication`, `election` and `broker`, journal and store over files in
//! memory. Whatever happens comes from one seed; the same seed gives the same run on every machine.

mod check;
pub mod clients;
mod clock;
mod ctx;
mod event;
mod faults;
mod harm;
pub mod history;
mod net;
mod node;
mod operator;
mod options;
mod plan;
mod queue;
mod script;
pub mod service;
mod trace;
mod visitors;
pub mod wire;
mod world;

pub use check::Counts;
pub use options::{Faults, Mutation, SimOptions};
pub use script::Script;
pub use world::Outcome;

/// What came of breaking a rule on purpose.
#[derive(Clone, Debug)]
pub struct Found {
    /// Which rule.
    pub mutation: Mutation,
    /// Seeds that were run, the last of which noticed.
    pub seeds: u64,
    /// What was seen; `None` = nothing within the budget.
    pub seen: Option<String>,
}

/// Breaks a rule, and runs seed after seed from 1 on until that is noticed.
pub fn find(mutation: Mutation, budget: u64, options: &SimOptions) -> Found {
    for seed in 1..=budget {
        let broken = SimOptions { seed, mutation: Some(mutation), ..options.clone() };
        let kept = SimOptions { seed, mutation: None, ..options.clone() };
        if let Some(Violation(seen)) = simulate(&broken).violation
            && simulate(&kept).violation.is_none()
        {
            return Found { mutation, seeds: seed, seen: Some(seen) };
        }
    }
    Found { mutation, seeds: budget, seen: None }
}

/// Runs one seed.
pub fn simulate(options: &SimOptions) -> Outcome {
    world::World::new(options.clone()).run()
}

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
