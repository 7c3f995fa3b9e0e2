use std::fmt;

/// A place in a configuration file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// As it was given, or as the referring file names it.
    pub file: String,
    /// Counts from 1.
    pub line: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What became of something that a file says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum VerdictKind {
    /// It is done.
    Supported,
    /// Accepted, and nothing follows from it: there is no need, or it is about the machinery of ActiveMQ.
    NoEffect,
    /// Accepted, but what it asks for is missing.
    NotBuilt,
    /// The node does not start with it.
    Refused,
}

/// What became of one element with all that it holds, or of one attribute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Where it is written.
    pub origin: Origin,
    /// The element's name, without prefix.
    pub element: String,
    /// The attribute's name; `None`: the element.
    pub attribute: Option<String>,
    /// What became of it.
    pub kind: VerdictKind,
    /// Value, reason, or what to do instead.
    pub text: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, element, attribute, text, .. } = self;
        match attribute {
            Some(attribute) => write!(f, "{origin}: <{element} {attribute}>: {text}"),
            None => write!(f, "{origin}: <{element}>: {text}"),
        }
    }
}
