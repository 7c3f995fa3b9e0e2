//! Tables of what is known but not read.

/// What becomes of an attribute or an element that nothing is read from.
#[derive(Clone, Copy)]
pub enum Rule {
    /// Accepted: why nothing follows.
    NoEffect(&'static str),
    /// Accepted: what is missing.
    NotBuilt(&'static str),
    /// Not accepted: what to do instead.
    Refused(&'static str),
    /// This value of an attribute is what we do; what is missing with another.
    Only(&'static str, &'static str),
}

/// Names, in no order, with what becomes of them.
pub type Table = &'static [(&'static [&'static str], Rule)];

/// The rule for `name`.
pub fn find(table: Table, name: &str) -> Option<Rule> {
    table.iter().find(|(names, _)| names.contains(&name)).map(|&(_, rule)| rule)
}

pub const EMPTY: Rule = Rule::NoEffect("it is empty");
pub const NO_JVM: Rule = Rule::NoEffect("it is about Java's threads and objects");
pub const BUNDLED: Rule = Rule::NoEffect("messages are written, looked up and paged by other means");
