//! The `kahawai` binary: `run`, tools for stores, small clients, and the load tool.

mod clients;
mod cluster;
mod run;
mod show;
mod simulate;
mod store;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// A highly available message broker on KahaDB files.
#[derive(Parser)]
#[command(name = "kahawai", version = env!("CARGO_PKG_VERSION"), about, max_term_width = 110)]
struct Cli {
    /// Log level on standard error: error, warn, info, debug or trace.
    #[arg(long, global = true, default_value = "info")]
    log: Level,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a broker, alone or in a cluster.
    Run(Box<run::RunArgs>),
    /// Look at, check and repair the store of a stopped broker, ours or ActiveMQ's.
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Show what a node does.
    Status(cluster::StatusArguments),
    /// Show and change a cluster.
    Cluster(cluster::ClusterArguments),
    /// Send messages.
    Produce(clients::ProduceArgs),
    /// Receive messages and acknowledge them.
    Consume(clients::ConsumeArgs),
    /// Look at a queue without consuming.
    Browse(clients::BrowseArgs),
    /// Put load on a broker and measure.
    Perf(clients::PerfArgs),
    /// Run a whole cluster in one thread with virtual time and everything that can break.
    Simulate(simulate::SimulateArguments),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A simulated node meets in a second what a real one meets in years.
    let targets = match &cli.command {
        Command::Simulate(_) => Targets::new(),
        _ => Targets::new().with_default(cli.log),
    };
    let format = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    tracing_subscriber::registry().with(format).with(targets).init();
    let result = match cli.command {
        Command::Run(args) => return run::run(*args),
        Command::Store(command) => store::run(command),
        Command::Status(args) => cluster::status(args),
        Command::Cluster(args) => cluster::cluster(args),
        Command::Produce(args) => clients::produce(args),
        Command::Consume(args) => clients::consume(args),
        Command::Browse(args) => clients::browse(args),
        Command::Perf(args) => clients::perf(args),
        Command::Simulate(args) => simulate::simulate(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("kahawai: {error:#}");
        ExitCode::FAILURE
    })
}
