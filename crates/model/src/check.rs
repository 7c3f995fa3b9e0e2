//! Runs a check, and says what came of it.

use std::fmt::Debug;
use std::fmt::Write as _;
use std::hash::Hash;

use kahawai_env::{Clock, SystemClock};
use stateright::{Checker, CheckerBuilder, Expectation, HasDiscoveries, Model};

/// A state that knows what is wrong with it.
pub trait Checked {
    /// What is broken, and how.
    fn broken(&self) -> Option<&str>;
}

/// Where to go first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Search {
    /// To what is near: finds the shortest ways, and keeps all states that are not looked at yet.
    Breadth,
    /// To what is far: keeps little more than hashes.
    Depth,
}

/// How to search.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where to go first.
    pub search: Search,
    /// How many threads look.
    pub threads: usize,
    /// Gives up after so many steps.
    pub steps_max: Option<usize>,
}

/// What came of a check.
#[derive(Clone, Debug)]
pub struct Report {
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// The longest way on which a state was met first.
    pub depth: usize,
    /// How long it took.
    pub seconds: f64,
    /// Whether every state was looked at.
    pub is_complete: bool,
    /// The invariant that does not hold, what is wrong, and how it came to that.
    pub violation: Option<(String, String, Vec<String>)>,
    /// What should have been seen and was not.
    pub unseen: Vec<&'static str>,
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let Self { states, steps, depth, seconds, is_complete, .. } = self;
        let end = if *is_complete { "all of them" } else { "not all" };
        let mut text = format!("{states} states ({end}), {steps} steps, depth {depth}, {seconds:.1} s\n");
        if let Some((invariant, what, way)) = &self.violation {
            _ = writeln!(text, "broken: {invariant}: {what}");
            way.iter().for_each(|action| _ = writeln!(text, "    {action}"));
        }
        for unseen in &self.unseen {
            _ = writeln!(text, "not seen: {unseen}");
        }
        text
    }
}

/// Checks a model until something is broken or everything was looked at.
pub fn check<M>(model: M, options: Options) -> Report
where
    M: Model + Send + Sync + 'static,
    M::State: Checked + Clone + PartialEq + Hash + Send + Sync + 'static,
    M::Action: Clone + PartialEq + Debug,
{
    let mut builder = model.checker().threads(options.threads).finish_when(HasDiscoveries::AnyFailures);
    if let Some(steps_max) = options.steps_max {
        builder = builder.target_state_count(steps_max);
    }
    match options.search {
        Search::Breadth => run(builder, options, CheckerBuilder::spawn_bfs),
        Search::Depth => run(builder, options, CheckerBuilder::spawn_dfs),
    }
}

fn run<M, C>(builder: CheckerBuilder<M>, options: Options, spawn: fn(CheckerBuilder<M>) -> C) -> Report
where
    M: Model + Send + Sync + 'static,
    M::State: Checked + Clone + PartialEq + Hash + Send + Sync + 'static,
    M::Action: Clone + PartialEq + Debug,
    C: Checker<M>,
{
    let begun = SystemClock.boot_ms();
    let checker = spawn(builder).join();
    let seconds = (SystemClock.boot_ms() - begun) as f64 / 1000.0;
    let mut discoveries = checker.discoveries();
    let (mut violation, mut unseen) = (None, Vec::new());
    for property in checker.model().properties() {
        match (property.expectation, discoveries.remove(property.name)) {
            (Expectation::Always, Some(path)) => {
                let what = path.last_state().broken().unwrap_or_default().to_owned();
                let way = path.into_actions().iter().map(|action| format!("{action:?}")).collect();
                violation = Some((property.name.to_owned(), what, way));
            }
            (Expectation::Sometimes, None) => unseen.push(property.name),
            _ => {}
        }
    }
    let steps = checker.state_count();
    Report {
        states: checker.unique_state_count(),
        steps,
        depth: checker.max_depth(),
        seconds,
        is_complete: violation.is_none() && options.steps_max.is_none_or(|steps_max| steps < steps_max),
        violation,
        unseen,
    }
}
