//! `kahawai perf`: puts load on a broker and measures.
//!
//! The load shares its machine with the broker, so it must be cheap: all connections live on one thread; a wake-up takes
//! all receipts that are there with one read, answers each with the next SEND, and writes them all with one write; the
//! clock is read once for all of them; frames are prepared, and nothing is allocated.
//!
//! Three kinds of run:
//! * as fast as it goes: producers with a window of outstanding receipts each, consumers beside them if asked for;
//! * `--drain`: consumers alone, until the queues are empty;
//! * `--rate`: messages leave at fixed times, and their bodies say when, so that the consumers know how long they took.

mod consumer;
mod pace;
mod producer;
mod report;

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::bail;
use clap::Args;
use kahawai_env::{Clock, SystemClock};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::consumer::Consumer;
use self::pace::{Pace, STAMP_BYTES};
use self::producer::Producer;
use self::report::Report;
use super::histogram::Histogram;
use super::link::{Link, LinkArgs};
use super::progress::{Progress, ProgressArgs, every};
use super::{Ack, Interrupt, Interrupts, block_on};

/// Exit code for a command line that makes no sense, as clap has it.
const USAGE: u8 = 2;
const SECONDS_DEFAULT: f64 = 10.0;
/// How often we look whether it is over.
const CHECK_MS: u64 = 20;
/// Queues are empty when nothing came for so long.
const DRAINED_US: u64 = 1_000_000;
/// A message that must come does so within so long, or it is missing.
const ARRIVAL_US: u64 = 10_000_000;
/// A broker that confirms nothing for so long confirms nothing more.
const STALL_US: u64 = 30_000_000;

/// Put load on a broker and measure: confirmed messages a second and how long receipts take, the rate of draining
/// (--drain), or how long messages take from producer to consumer (--rate).
#[derive(Args, Debug)]
pub struct PerfArgs {
    #[command(flatten)]
    link: LinkArgs,
    /// The queue; with several the beginning of their names, PREFIX.0, PREFIX.1 and so on.
    #[arg(long, value_name = "PREFIX", default_value = "perf")]
    queue: String,
    /// How many queues; producers and consumers are dealt out to them.
    #[arg(long, value_name = "K", default_value = "1")]
    queues: NonZeroUsize,
    /// Connections that send; 1 by default.
    #[arg(long, value_name = "N", conflicts_with = "drain")]
    producers: Option<NonZeroUsize>,
    /// Unconfirmed messages of each producer at a time.
    #[arg(long, value_name = "W", default_value = "256")]
    window: NonZeroUsize,
    /// Bytes of a body.
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    size: usize,
    /// For how long; 10 by default. With --drain the longest time.
    #[arg(long, value_name = "S", value_parser = positive)]
    seconds: Option<f64>,
    /// How many messages in all, instead of --seconds.
    #[arg(long, value_name = "N")]
    count: Option<NonZeroU64>,
    /// Messages survive a restart of the broker (the default).
    #[arg(long, overrides_with = "non_persistent")]
    persistent: bool,
    /// Messages need not survive a restart of the broker.
    #[arg(long)]
    non_persistent: bool,
    /// Connections that receive; by default none, with --drain and --rate 1.
    #[arg(long, value_name = "N")]
    consumers: Option<NonZeroUsize>,
    /// Only receive, until --count messages have come or the queues are empty.
    #[arg(long, conflicts_with = "rate")]
    drain: bool,
    /// Send so many messages a second in all, and measure the time from producer to consumer.
    #[arg(long, value_name = "R")]
    rate: Option<NonZeroU32>,
    /// Who acknowledges, and what.
    #[arg(long, value_enum, default_value = "client-individual")]
    ack: Ack,
    /// How many unacknowledged messages the broker may send ahead.
    #[arg(long, value_name = "N")]
    prefetch: Option<NonZeroU32>,
    /// Threads of this tool.
    #[arg(long, value_name = "N", default_value = "1")]
    threads: NonZeroUsize,
    #[command(flatten)]
    progress: ProgressArgs,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

fn positive(text: &str) -> anyhow::Result<f64> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e6 => Ok(number),
        _ => bail!("'{text}' where a positive number of seconds is expected"),
    }
}

impl PerfArgs {
    fn producers(&self) -> usize {
        if self.drain { 0 } else { self.producers.map_or(1, NonZeroUsize::get) }
    }

    fn consumers(&self) -> usize {
        let default = usize::from(self.drain || self.rate.is_some());
        self.consumers.map_or(default, NonZeroUsize::get)
    }

    /// Where the connection with this number sends or receives.
    fn destination(&self, connection: usize) -> String {
        match self.queues.get() {
            1 => format!("/queue/{}", self.queue),
            queues => format!("/queue/{}.{}", self.queue, connection % queues),
        }
    }

    /// How long producers send, or consumers drain, at most.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and at most 1e12")]
    fn limit_us(&self) -> u64 {
        let default = if self.drain || self.count.is_some() { 1e6 } else { SECONDS_DEFAULT };
        (self.seconds.unwrap_or(default) * 1e6) as u64
    }
}

/// What all connections share.
#[derive(Debug, Default)]
struct Shared {
    confirmed: AtomicU64,
    consumed: AtomicU64,
    /// Send nothing more.
    halted: AtomicBool,
}

/// What one connection saw.
#[derive(Debug, Default)]
struct Outcome {
    /// Of receipts for producers, from producer to consumer for consumers.
    latency: Histogram,
    /// When it saw its last receipt or message; 0 = none.
    last_us: u64,
    error: Option<anyhow::Error>,
}

/// Puts load on a broker and measures.
pub fn perf(args: PerfArgs) -> anyhow::Result<ExitCode> {
    if args.rate.is_some() && args.size < STAMP_BYTES {
        eprintln!("error: --rate needs a --size of at least {STAMP_BYTES}: bodies say when they were sent");
        return Ok(ExitCode::from(USAGE));
    }
    let threads = args.threads.get();
    block_on(threads, async move {
        let report = Run::start(&args).await?.finish().await?;
        report.print(&args);
        Ok(if report.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// A run under way.
struct Run<'a> {
    args: &'a PerfArgs,
    shared: Arc<Shared>,
    /// Tells consumers that it is over.
    stop: watch::Sender<bool>,
    producers: JoinSet<Outcome>,
    consumers: JoinSet<Outcome>,
    started_us: u64,
    patience_us: u64,
}

impl<'a> Run<'a> {
    /// Opens all connections, then lets them go.
    async fn start(args: &'a PerfArgs) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let stop = watch::Sender::new(false);
        let mut links = Vec::new();
        for _ in 0..args.producers() + args.consumers() {
            links.push(Link::open(&args.link, None).await?);
        }
        let producer_links = links.split_off(args.consumers());
        let born_us = SystemClock.boot_us();
        let (mut consumers, mut ready) = (JoinSet::new(), Vec::new());
        for (number, link) in links.into_iter().enumerate() {
            let (consumer, subscribed) = Consumer::new(args, number, born_us, &shared, &stop);
            consumers.spawn(consumer.run(link));
            ready.push(subscribed);
        }
        if !args.drain {
            for subscribed in ready {
                // An error means that the consumer failed, and says so itself.
                let _ = subscribed.await;
            }
        }
        let started_us = if args.drain { born_us } else { SystemClock.boot_us() };
        let pace =
            args.rate.map(|rate| Arc::new(Pace::new(args, rate, producer_links.len(), started_us, &shared)));
        let mut producers = JoinSet::new();
        for (number, link) in producer_links.into_iter().enumerate() {
            let producer = Producer::new(args, number, started_us, &shared);
            match &pace {
                Some(pace) => producers.spawn(producer.run_paced(link, Arc::clone(pace), number)),
                None => producers.spawn(producer.run(link)),
            };
        }
        if let Some(pace) = pace {
            tokio::task::spawn_blocking(move || pace.tick());
        }
        Ok(Self { args, shared, stop, producers, consumers, started_us, patience_us: ARRIVAL_US })
    }

    async fn finish(mut self) -> anyhow::Result<Report> {
        let mut report = Report::default();
        let mut ticks = every(CHECK_MS).await;
        let mut interrupts = Interrupts::new()?;
        let mut progress =
            Progress::new(self.args.progress, if self.args.drain { "received" } else { "confirmed" });
        let (mut moved, mut moved_us) = ((0, 0), SystemClock.boot_us());
        let mut producers_done_us = None;
        loop {
            tokio::select! {
                biased;
                Some(joined) = self.producers.join_next() => report.take_producer(joined),
                Some(joined) = self.consumers.join_next() => report.take_consumer(joined),
                interrupt = interrupts.next() => {
                    self.shared.halted.store(true, Ordering::Relaxed);
                    if interrupt == Interrupt::AtOnce {
                        report.errors.push("interrupted".to_owned());
                    }
                    if self.args.drain || interrupt == Interrupt::AtOnce {
                        break;
                    }
                }
                _ = ticks.tick() => {}
            }
            let now_us = SystemClock.boot_us();
            let confirmed = self.shared.confirmed.load(Ordering::Relaxed);
            let consumed = self.shared.consumed.load(Ordering::Relaxed);
            progress.update(if self.args.drain { consumed } else { confirmed });
            if moved != (confirmed, consumed) {
                (moved, moved_us) = ((confirmed, consumed), now_us);
            }
            let idle_us = now_us.saturating_sub(moved_us);
            if self.producers.is_empty() {
                producers_done_us.get_or_insert(now_us);
                if self.consumers.is_empty() || self.arrived(now_us, idle_us, moved) {
                    break;
                }
            } else if idle_us > STALL_US {
                report.errors.push(format!("no receipt for {} s", STALL_US / 1_000_000));
                break;
            }
        }
        drop(progress);
        self.shared.halted.store(true, Ordering::Relaxed);
        if !self.producers.is_empty() {
            // What they saw is lost, what all of them counted is not.
            self.producers.shutdown().await;
            report.last_us = SystemClock.boot_us();
        }
        // Whoever received everything has ended by itself.
        self.stop.send_replace(true);
        while let Some(joined) = self.consumers.join_next().await {
            report.take_consumer(joined);
        }
        report.confirmed = self.shared.confirmed.load(Ordering::Relaxed);
        report.consumed = self.shared.consumed.load(Ordering::Relaxed);
        let missing = report.confirmed.saturating_sub(report.consumed);
        let wanted = self.args.count.filter(|_| self.args.drain && self.args.seconds.is_none());
        if let Some(count) = wanted.filter(|count| report.consumed < count.get()) {
            report.errors.push(format!("{} of {count} messages came", report.consumed));
        }
        if self.args.rate.is_some() && missing > 0 {
            report.errors.push(format!("{missing} messages did not arrive"));
        }
        report.elapsed_us = report.last_us.max(self.started_us) - self.started_us;
        Ok(report)
    }

    /// Have the consumers all that they will get?
    fn arrived(&self, now_us: u64, idle_us: u64, (confirmed, consumed): (u64, u64)) -> bool {
        if self.args.drain {
            let over = now_us.saturating_sub(self.started_us) > self.args.limit_us();
            let quiet_us = if self.args.count.is_some() { self.patience_us } else { DRAINED_US };
            return idle_us > quiet_us || over;
        }
        consumed >= confirmed || idle_us > self.patience_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::fake::{arguments, receipt, with_broker};

    fn run(
        line: &str,
        connections: usize,
        answer: impl Fn(&str) -> Vec<String> + Sync,
    ) -> (Report, Vec<String>) {
        with_broker(connections, answer, |url| {
            let args: PerfArgs = arguments(&format!("--url URL {line}"), url);
            block_on(1, async {
                let mut run = Run::start(&args).await?;
                run.patience_us = 1_000_000;
                run.finish().await
            })
            .unwrap()
        })
    }

    #[test]
    fn the_count_is_shared_between_producers_and_queues() {
        let line = "--producers 3 --window 2 --count 10 --size 4 --queues 2 --queue q";
        let (report, seen) = run(line, 3, receipt);
        assert_eq!((report.confirmed, report.errors), (10, vec![]));
        for (queue, count) in [("/queue/q.0", 7), ("/queue/q.1", 3)] {
            let head = format!("SEND destination:{queue} persistent:true content-length:4 receipt:");
            assert_eq!(seen.iter().filter(|frame| frame.starts_with(&head)).count(), count, "{seen:?}");
        }
    }

    #[test]
    fn draining_ends_with_a_receipt_for_the_last_ack() {
        let answer = |frame: &str| {
            let mut answers = receipt(frame);
            if frame.starts_with("SUBSCRIBE") {
                answers.extend((1..=4).map(|id| format!("MESSAGE\nmessage-id:m{id}\nack:a{id}\n\nx")));
            }
            answers
        };
        let (report, seen) = run("--drain --count 3", 1, answer);
        assert_eq!((report.consumed, report.errors), (3, vec![]));
        assert_eq!(seen[1..4], ["ACK id:a1", "ACK id:a2", "ACK id:a3 receipt:2"]);
        let (report, seen) = run("--drain --prefetch 9", 1, answer);
        assert_eq!((report.consumed, report.errors), (4, vec![]));
        assert_eq!(
            seen[0],
            "SUBSCRIBE id:1 destination:/queue/perf ack:client-individual activemq.prefetchSize:9 receipt:1"
        );
    }

    #[test]
    fn a_connection_that_fails_is_an_error_and_the_others_go_on() {
        let failing = |frame: &str| match frame {
            frame if frame.contains("/queue/q.1") => vec!["ERROR\nmessage:full\n\n".to_owned()],
            frame => receipt(frame),
        };
        let (report, _) = run("--producers 2 --queues 2 --queue q --count 8 --size 1", 2, failing);
        assert_eq!((report.confirmed, report.errors.len()), (4, 1));
        assert!(report.errors[0].ends_with("answered ERROR: full"), "{:?}", report.errors);
    }

    #[test]
    fn paced_messages_that_nobody_receives_are_errors() {
        let (report, seen) = run("--rate 1000 --count 5 --size 16", 2, |frame| {
            let mut answers = receipt(frame);
            if frame.starts_with("SUBSCRIBE") {
                answers.push(format!("MESSAGE\nmessage-id:old\nack:a\n\n{:016x}", 7));
            }
            answers
        });
        assert_eq!((report.confirmed, report.consumed), (5, 0));
        assert_eq!(report.errors, ["5 messages did not arrive"]);
        assert!(seen.contains(&"ACK id:a".to_owned()));
    }
}
