//! What happened, as one number; and as text, when a failure is run again to be read.

use std::fmt::Write;

use crate::Micros;

/// The last lines of a run that are kept.
const LINES_MAX: usize = 400_000;

/// Two runs with the same hash did the same.
#[derive(Default)]
pub(crate) struct Trace {
    hash: u64,
    text: Option<Vec<String>>,
}

impl Trace {
    pub(crate) fn new(verbose: bool) -> Self {
        Self { hash: 0x6b61_6861_7761_6921, text: verbose.then(Vec::new) }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn take(&mut self) -> Vec<String> {
        self.text.take().unwrap_or_default()
    }

    /// Takes a number into the hash.
    pub(crate) fn mix(&mut self, number: u64) {
        let mixed = (self.hash ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash = mixed ^ (mixed >> 29);
    }

    /// Something that a reader of the trace wants to know, with two numbers: positions are written as `file:offset`.
    pub(crate) fn note(&mut self, now: Micros, node: usize, what: &'static str, a: u64, b: u64) {
        self.mix(now);
        self.mix(a.rotate_left(17) ^ b ^ ((node as u64) << 56) ^ what.len() as u64);
        if self.text.is_some() {
            let mut line = String::from(what);
            for number in [a, b] {
                if number >= 1 << 32 {
                    let _ = write!(line, " {}:{}", number >> 32, number & 0xffff_ffff);
                } else {
                    let _ = write!(line, " {number}");
                }
            }
            self.line(now, node, &line);
        }
    }

    /// A line of text; the text is made only if somebody reads it.
    pub(crate) fn say(&mut self, now: Micros, node: usize, text: impl FnOnce() -> String) {
        if self.text.is_some() {
            let text = text();
            self.line(now, node, &text);
        }
    }

    fn line(&mut self, now: Micros, node: usize, text: &str) {
        let Some(lines) = &mut self.text else { return };
        if lines.len() >= LINES_MAX {
            lines.drain(..LINES_MAX / 2);
        }
        let who = if node == WORLD { "--".to_owned() } else { format!("n{node}") };
        lines.push(format!("{:>5}.{:06} {who} {text}", now / 1_000_000, now % 1_000_000));
    }
}

/// Who did what no node did.
pub(crate) const WORLD: usize = 99;
