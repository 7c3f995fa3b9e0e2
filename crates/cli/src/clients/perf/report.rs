//! What came of it.

use serde_json::{Value, json};
use tokio::task::JoinError;

use super::{Outcome, PerfArgs};
use crate::clients::histogram::Histogram;
use crate::clients::progress::{per_second, seconds};

/// What all connections saw together.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) confirmed: u64,
    pub(super) consumed: u64,
    pub(super) elapsed_us: u64,
    pub(super) last_us: u64,
    pub(super) errors: Vec<String>,
    receipts: Histogram,
    end_to_end: Histogram,
}

impl Report {
    pub(super) fn take_producer(&mut self, joined: Result<Outcome, JoinError>) {
        if let Some(latency) = self.take(joined) {
            self.receipts.add(&latency);
        }
    }

    pub(super) fn take_consumer(&mut self, joined: Result<Outcome, JoinError>) {
        if let Some(latency) = self.take(joined) {
            self.end_to_end.add(&latency);
        }
    }

    fn take(&mut self, joined: Result<Outcome, JoinError>) -> Option<Histogram> {
        match joined {
            Ok(outcome) => {
                self.last_us = self.last_us.max(outcome.last_us);
                self.errors.extend(outcome.error.map(|error| format!("{error:#}")));
                Some(outcome.latency)
            }
            Err(error) => {
                self.errors.push(error.to_string());
                None
            }
        }
    }

    /// Prints it, errors to standard error.
    pub(super) fn print(&self, args: &PerfArgs) {
        for error in &self.errors {
            eprintln!("kahawai: {error}");
        }
        let messages = if args.drain { self.consumed } else { self.confirmed };
        let latency = if args.rate.is_some() { &self.end_to_end } else { &self.receipts };
        let rate = per_second(messages, self.elapsed_us);
        let bytes_per_second = per_second(messages.saturating_mul(args.size as u64), self.elapsed_us);
        let cpu_us = processor_time_us();
        if args.json {
            let mut result = json!({
                "mode": if args.drain { "drain" } else if args.rate.is_some() { "rate" } else { "flood" },
                "producers": args.producers(),
                "consumers": args.consumers(),
                "queues": args.queues.get(),
                "window": args.window.get(),
                "size": args.size,
                "persistent": !args.non_persistent,
                "seconds": seconds(self.elapsed_us),
                "messages": messages,
                "rate": rate,
                "bytes_per_second": bytes_per_second,
                "errors": self.errors.len(),
                "latency_us": percentiles(latency),
                "client_cpu_seconds": cpu_us.map(seconds),
            });
            if let (false, Some(object)) = (args.drain, result.as_object_mut()) {
                if args.consumers() > 0 {
                    object.insert("consumed".to_owned(), self.consumed.into());
                }
                if args.rate.is_some() {
                    object.insert("receipt_latency_us".to_owned(), percentiles(&self.receipts));
                }
            }
            return println!("{result}");
        }
        let verb = if args.drain { "received" } else { "confirmed" };
        let elapsed = seconds(self.elapsed_us);
        println!(
            "{messages} messages {verb} in {elapsed:.3} s: {rate:.0}/s, {:.1} MB/s",
            bytes_per_second / 1e6
        );
        if args.consumers() > 0 && !args.drain {
            println!("{} messages received", self.consumed);
        }
        print_latency("producer to consumer", &self.end_to_end);
        print_latency("until confirmed", &self.receipts);
        if let (Some(cpu_us), 1..) = (cpu_us, messages) {
            let each_us = u128::from(cpu_us) * 100_000 / u128::from(messages);
            let each = seconds(u64::try_from(each_us).unwrap_or(u64::MAX));
            println!("processor time of this client: {:.2} s, {each:.3} s per 100000", seconds(cpu_us));
        }
    }
}

fn print_latency(what: &str, latency: &Histogram) {
    if latency.count() > 0 {
        let [p50, p90, p99, p999] = [500, 900, 990, 999].map(|permille| latency.permille(permille));
        println!("{what}: p50 {p50} µs, p90 {p90}, p99 {p99}, p99.9 {p999}, max {}", latency.max());
    }
}

/// `null` without values.
fn percentiles(latency: &Histogram) -> Value {
    if latency.count() == 0 {
        return Value::Null;
    }
    json!({
        "p50": latency.permille(500),
        "p90": latency.permille(900),
        "p99": latency.permille(990),
        "p999": latency.permille(999),
        "max": latency.max(),
    })
}

/// What this process has used so far; Linux counts in hundredths of a second.
fn processor_time_us() -> Option<u64> {
    processor_ticks(&std::fs::read_to_string("/proc/self/stat").ok()?).map(|ticks| ticks * 10_000)
}

/// `utime` and `stime`, proc(5), fields 14 and 15. The name before them may have blanks and parentheses.
fn processor_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system) = (fields.next()?, fields.next()?);
    Some(user.parse::<u64>().ok()? + system.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_that_of_this_process() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 30 12 13 14 15 20 0";
        assert_eq!(processor_ticks(stat), Some(42));
        assert_eq!(processor_ticks("7 (a) S 1"), None);
        assert!(processor_time_us().is_some());
    }
}
