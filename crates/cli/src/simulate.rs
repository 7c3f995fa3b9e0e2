//! `kahawai simulate`: the cluster of `kahawai-sim`, one seed, many seeds, or with a rule broken on purpose.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use kahawai_sim::{Faults, Mutation, Outcome, SimOptions, find};

/// Lines of a trace that are shown unless all are wanted.
const TRACE_LINES: usize = 120;
/// How often a hunt says how far it is.
const SAY: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(crate) struct SimulateArguments {
    /// Everything follows from it: the same seed does the same on every machine.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// Copies besides the primary's own without which nothing persistent is confirmed.
    #[arg(long, default_value_t = 1)]
    minimum_replicas: u32,
    /// Events before the faults stop and the cluster has to become well.
    #[arg(long, default_value_t = 20_000)]
    steps: u64,
    /// What breaks: all, none, or some of crash,network,service,pause,clock,wall,disk,replace,rot,stale,rollback,force,operator,
    /// ambush.
    #[arg(long, default_value = "all")]
    faults: Faults,
    /// Break this rule, to see that it is noticed.
    #[arg(long)]
    mutation: Option<Mutation>,
    /// Break every rule, one after the other, and print what was seen after how many seeds.
    #[arg(long, conflicts_with_all = ["mutation", "hunt"])]
    mutations: bool,
    /// Seeds that a broken rule may take to be noticed.
    #[arg(long, default_value_t = 2_000, requires = "mutations")]
    budget: u64,
    /// Run seeds from --seed on, on all cores, for so many minutes.
    #[arg(long, value_name = "MINUTES")]
    hunt: Option<f64>,
    /// Print all of the trace.
    #[arg(long)]
    trace: bool,
}

impl SimulateArguments {
    fn options(&self, seed: u64, verbose: bool) -> SimOptions {
        SimOptions {
            seed,
            nodes: self.nodes as usize,
            minimum_replicas: self.minimum_replicas,
            steps: self.steps,
            faults: self.faults,
            mutation: self.mutation,
            verbose,
        }
    }
}

pub(crate) fn simulate(args: SimulateArguments) -> anyhow::Result<ExitCode> {
    if args.minimum_replicas as u64 >= args.nodes {
        anyhow::bail!("{} nodes have at most {} replicas", args.nodes, args.nodes - 1);
    }
    // A panic is a finding like others, and is reported as one.
    std::panic::set_hook(Box::new(|_| {}));
    if args.mutations {
        return Ok(mutations(&args));
    }
    match args.hunt {
        Some(minutes) => Ok(hunt(&args, minutes)),
        None => Ok(one(&args, args.seed)),
    }
}

/// Runs one seed; a failure is run again to be read.
fn one(args: &SimulateArguments, seed: u64) -> ExitCode {
    let outcome = kahawai_sim::simulate(&args.options(seed, args.trace));
    if args.trace {
        outcome.trace.iter().for_each(|line| println!("{line}"));
    } else if outcome.violation.is_some() {
        let again = kahawai_sim::simulate(&args.options(seed, true));
        let hidden = again.trace.len().saturating_sub(TRACE_LINES);
        println!("... {hidden} lines before; --trace shows them");
        again.trace.iter().skip(hidden).for_each(|line| println!("{line}"));
        if again.hash != outcome.hash {
            println!("the second run of this seed was another one: {:016x}", again.hash);
        }
    }
    report(seed, &outcome);
    if outcome.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn report(seed: u64, outcome: &Outcome) {
    let counts = outcome.counts;
    println!(
        "seed {seed}: hash {:016x}, {} steps, {}.{:03} s of its time, {} faults, {} batches committed in {} reigns, {} changes of \
         the set, {} stores opened, {} journals cut, {} synchronised, {} data files deleted, {} indexes compared",
        outcome.hash,
        outcome.steps,
        outcome.took / 1_000_000,
        outcome.took / 1_000 % 1_000,
        counts.faults,
        counts.committed,
        counts.reigns,
        counts.changes,
        counts.opened,
        counts.cuts,
        counts.installed,
        counts.deleted,
        counts.digests,
    );
    match &outcome.violation {
        Some(violation) => println!("seed {seed}: {violation}"),
        None => println!("seed {seed}: nothing that must not be"),
    }
}

/// Runs seed after seed on all cores, and goes on after failures.
#[expect(clippy::disallowed_methods, reason = "a tool that runs for so many minutes of real time")]
fn hunt(args: &SimulateArguments, minutes: f64) -> ExitCode {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let begun = Instant::now();
    let until = Duration::from_secs_f64(minutes.clamp(0.0, 1e6) * 60.0);
    let (next, done, is_over) = (AtomicU64::new(args.seed), AtomicU64::new(0), AtomicBool::new(false));
    let failed = Mutex::new(Vec::new());
    let steps = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores)
            .map(|_| {
                scope.spawn(|| {
                    while begun.elapsed() < until {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        let outcome = kahawai_sim::simulate(&args.options(seed, false));
                        steps.fetch_add(outcome.steps, Ordering::Relaxed);
                        done.fetch_add(1, Ordering::Relaxed);
                        if let Some(violation) = outcome.violation {
                            println!("seed {seed}: {violation}");
                            failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(seed);
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut said = Duration::ZERO;
            while !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                if begun.elapsed() - said >= SAY {
                    said = begun.elapsed();
                    eprintln!("{} s: {} seeds", said.as_secs(), done.load(Ordering::Relaxed));
                }
            }
        });
        for worker in workers {
            let _ = worker.join();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let failed = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (seeds, steps) = (done.into_inner(), steps.into_inner());
    let micros = begun.elapsed().as_micros() as u64 * cores as u64 / steps.max(1);
    println!(
        "{seeds} seeds from {} on, {steps} steps, about {micros} us of a core for each; {} failed: {failed:?}",
        args.seed,
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Breaks every rule.
fn mutations(args: &SimulateArguments) -> ExitCode {
    println!("| Rule that is broken | Seeds | What was seen |\n| --- | --- | --- |");
    let mut missed = 0;
    for &mutation in Mutation::ALL {
        let found = find(mutation, args.budget, &args.options(1, false));
        match found.seen {
            Some(seen) => println!("| `{}` | {} | {seen} |", mutation.name(), found.seeds),
            None => {
                missed += 1;
                println!("| `{}` | more than {} | nothing |", mutation.name(), found.seeds);
            }
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
