//! Runs seeds one after the other.
fn main() {
    let mut words = std::env::args().skip(1);
    let from: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(1);
    let count: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(1);
    let steps: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(20_000);
    let verbose = words.next().is_some_and(|word| word == "v");
    for seed in from..from + count {
        let options = kahawai_sim::SimOptions { seed, steps, verbose, ..Default::default() };
        let outcome = kahawai_sim::simulate(&options);
        for line in &outcome.trace {
            println!("{line}");
        }
        println!(
            "seed {seed} hash {:016x} steps {} took {} ms {:?} {:?}",
            outcome.hash,
            outcome.steps,
            outcome.took / 1000,
            outcome.counts,
            outcome.violation
        );
    }
}
