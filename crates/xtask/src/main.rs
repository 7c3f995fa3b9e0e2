//! Chores as Rust. `cargo run -p kahawai-xtask -- layering` checks which crate depends on which.

mod layering;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo run -p kahawai-xtask -- layering";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["layering"] => report(layering::check_workspace()),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn report(outcome: Result<layering::Report, String>) -> ExitCode {
    match outcome {
        Ok(report) if report.violations.is_empty() => {
            println!("layering: ok. {} crates, {} edges", report.crates, report.edges);
            ExitCode::SUCCESS
        }
        Ok(report) => {
            for violation in &report.violations {
                eprintln!("{violation}");
            }
            println!("layering: FAILED. {} violations", report.violations.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("layering: {error}");
            ExitCode::FAILURE
        }
    }
}
