//! Runs seeds one after the other: from, count, steps, v for a trace or q for failures alone, mutation.
fn main() {
    let mut words = std::env::args().skip(1);
    let mut number = |otherwise: u64| words.next().and_then(|word| word.parse().ok()).unwrap_or(otherwise);
    let (from, count, steps) = (number(1), number(1), number(20_000));
    let how = words.next().unwrap_or_default();
    let mutation = words.next().map(|word| word.parse().expect("a mutation"));
    for seed in from..from + count {
        let verbose = how == "v";
        let options = kahawai_sim::SimOptions { seed, steps, verbose, mutation, ..Default::default() };
        let outcome = kahawai_sim::simulate(&options);
        for line in &outcome.trace {
            println!("{line}");
        }
        if how != "q" || outcome.violation.is_some() {
            let violation = outcome.violation.map(|violation| violation.0).unwrap_or_default();
            println!(
                "seed {seed} hash {:016x} steps {} took {} ms {:?} {violation}",
                outcome.hash,
                outcome.steps,
                outcome.took / 1000,
                outcome.counts
            );
        }
    }
}
