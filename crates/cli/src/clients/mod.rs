//! The small clients: `produce`, `consume`, `browse`, and `perf`, the load tool.
//!
//! All of them speak STOMP through [`link`], one connection over the client half of `kahawai-stomp`, on a runtime of one
//! thread. Results go to standard output, progress and complaints to standard error.

mod browse;
mod consume;
#[cfg(test)]
mod fake;
mod histogram;
mod link;
mod perf;
mod printed;
mod produce;
mod progress;

use anyhow::Context;
use kahawai_env::{Clock, SystemClock};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use browse::{BrowseArgs, browse};
pub use consume::{ConsumeArgs, consume};
pub use perf::{PerfArgs, perf};
pub use produce::{ProduceArgs, produce};

const INTERRUPT_AGAIN_US: u64 = 500_000;

/// Where messages go or come from.
#[derive(clap::Args, Clone, Debug)]
#[group(required = true, multiple = false)]
struct DestinationArgs {
    /// The queue.
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// The topic.
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
}

impl DestinationArgs {
    /// As STOMP names it.
    fn stomp_name(&self) -> String {
        match (&self.queue, &self.topic) {
            (_, Some(topic)) => format!("/topic/{topic}"),
            (queue, None) => format!("/queue/{}", queue.as_deref().unwrap_or_default()),
        }
    }
}

/// Who acknowledges, and what.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Ack {
    /// The broker forgets a message once it is sent; those on the way when we stop are lost.
    Auto,
    /// We acknowledge; an ack covers everything before it.
    Client,
    /// We acknowledge each message.
    ClientIndividual,
}

impl Ack {
    fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Client => "client",
            Self::ClientIndividual => "client-individual",
        }
    }
}

/// Runs a client to its end, on this thread alone if `threads` is 1.
fn block_on<T>(threads: usize, client: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    let runtime = builder.enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(client);
    // Not a plain drop: that would wait for a read of standard input.
    runtime.shutdown_background();
    result
}

/// How Ctrl-C is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Interrupt {
    /// The first time: come to a good end.
    Gently,
    /// Again: to any end.
    AtOnce,
}

/// Ctrl-C, from now on.
#[derive(Debug)]
struct Interrupts {
    signal: Signal,
    first_us: Option<u64>,
}

impl Interrupts {
    fn new() -> anyhow::Result<Self> {
        let signal = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
        Ok(Self { signal, first_us: None })
    }

    /// The next one. Cancelling it loses nothing.
    async fn next(&mut self) -> Interrupt {
        loop {
            self.signal.recv().await;
            let now_us = SystemClock.boot_us();
            match self.first_us {
                None => {
                    self.first_us = Some(now_us);
                    return Interrupt::Gently;
                }
                // `timeout` and shells may send the first one twice.
                Some(first_us) if now_us.saturating_sub(first_us) < INTERRUPT_AGAIN_US => {}
                Some(_) => return Interrupt::AtOnce,
            }
        }
    }
}
