//! Seeds: the same one does the same everywhere; those that ever failed stay; and fresh ones.

use std::process::Command;

use kahawai_env::{Entropy, OsEntropy};
use kahawai_sim::{Faults, Mutation, Outcome, SimOptions, find, simulate};

/// Set for a child of the test, which prints what a seed comes to.
const CHILD: &str = "KAHAWAI_SIM_CHILD";
/// How many fresh seeds are run.
const FRESH: &str = "KAHAWAI_SIM_FRESH";
/// Where they begin.
const FROM: &str = "KAHAWAI_SIM_FROM";

fn run(seed: u64) -> Outcome {
    simulate(&SimOptions { seed, ..SimOptions::default() })
}

/// Another place with each run.
fn anywhere() -> u64 {
    let mut bytes = [0; 8];
    OsEntropy.fill(&mut bytes).expect("the machine has randomness");
    // Short enough to be typed.
    u64::from_le_bytes(bytes) % 1_000_000_000_000
}

fn must_hold(seed: u64) {
    let outcome = run(seed);
    assert!(
        outcome.violation.is_none(),
        "seed {seed}: {:?}; kahawai simulate --seed {seed}",
        outcome.violation
    );
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn a_seed_does_the_same_again_and_in_another_process() {
    let hash = run(5).hash;
    if std::env::var_os(CHILD).is_some() {
        println!("hash {hash:016x}");
        return;
    }
    assert_eq!(run(5).hash, hash);
    assert_eq!(simulate(&SimOptions { seed: 5, verbose: true, ..SimOptions::default() }).hash, hash);
    assert_ne!(run(6).hash, hash);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_seed_does_the_same_again_and_in_another_process", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(said.contains(&format!("hash {hash:016x}")), "{said}");
}

#[test]
fn seeds_that_failed_once_hold() {
    for line in include_str!("failed-seeds.txt").lines() {
        let seed = line.split('#').next().unwrap_or_default().trim();
        if !seed.is_empty() {
            must_hold(seed.parse().unwrap());
        }
    }
}

#[test]
fn fresh_seeds_hold() {
    let count = number(FRESH).unwrap_or(12);
    let from = number(FROM).unwrap_or_else(anywhere);
    println!("{count} seeds from {from} on");
    let halves = std::thread::scope(|scope| {
        let half = |odd: u64| (from..from + count).filter(move |seed| seed % 2 == odd).for_each(must_hold);
        let other = scope.spawn(move || half(1));
        half(0);
        other.join()
    });
    assert!(halves.is_ok(), "a seed failed");
}

#[test]
fn without_faults_nothing_is_lost_and_nobody_else_leads() {
    let options = SimOptions { seed: 3, steps: 8_000, faults: Faults::NONE, ..SimOptions::default() };
    let outcome = simulate(&options);
    assert!(outcome.violation.is_none(), "{:?}", outcome.violation);
    assert_eq!((outcome.counts.reigns, outcome.counts.faults), (1, 0));
    assert!(outcome.counts.committed > 50);
}

#[test]
fn other_clusters_hold_as_well() {
    for (nodes, minimum_replicas) in [(1, 0), (2, 0), (2, 1), (3, 0), (3, 2), (5, 2)] {
        for seed in 1..3 {
            let outcome = simulate(&SimOptions { seed, nodes, minimum_replicas, ..SimOptions::default() });
            let violation = outcome.violation;
            assert!(
                violation.is_none(),
                "{nodes} nodes, {minimum_replicas} replicas, seed {seed}: {violation:?}"
            );
        }
    }
}

/// Those that take few seeds; the whole table is in `docs/simulator.md`.
#[test]
fn broken_rules_are_noticed() {
    for mutation in [Mutation::NoPromise, Mutation::ApplyBeyondCommit, Mutation::AckBeforeFlush] {
        let found = find(mutation, 40, &SimOptions::default());
        assert!(found.seen.is_some(), "{} is not noticed within {} seeds", mutation.name(), found.seeds);
    }
}
