//! How it goes, once a second on standard error.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use kahawai_env::{Clock, SystemClock};
use tokio::time::{Interval, MissedTickBehavior, interval};

const SECOND_US: u64 = 1_000_000;

/// `--progress`.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct ProgressArgs {
    /// Show progress even where standard error is no terminal.
    #[arg(long)]
    progress: bool,
}

/// Counts and rates on standard error, if somebody looks.
#[derive(Debug)]
pub(super) struct Progress {
    shown: bool,
    terminal: bool,
    verb: &'static str,
    started_us: u64,
    printed_us: u64,
    printed_messages: u64,
    printed_any: bool,
}

impl Progress {
    pub(super) fn new(args: ProgressArgs, verb: &'static str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let now_us = SystemClock.boot_us();
        Self {
            shown: terminal || args.progress,
            terminal,
            verb,
            started_us: now_us,
            printed_us: now_us,
            printed_messages: 0,
            printed_any: false,
        }
    }

    /// Prints a line if the last one is a second old.
    pub(super) fn update(&mut self, messages: u64) {
        let now_us = SystemClock.boot_us();
        let elapsed_us = now_us.saturating_sub(self.printed_us);
        // Timers come a little early or late.
        if !self.shown || elapsed_us < SECOND_US - SECOND_US / 20 {
            return;
        }
        let rate = per_second(messages.saturating_sub(self.printed_messages), elapsed_us);
        let seconds = (now_us.saturating_sub(self.started_us) + SECOND_US / 2) / SECOND_US;
        let (start, end) = if self.terminal { ("\r", "\x1b[K") } else { ("", "\n") };
        // Nobody to tell if that fails.
        let _ = write!(
            std::io::stderr().lock(),
            "{start}{seconds:>4} s  {messages} messages {}, {rate:.0}/s{end}",
            self.verb
        );
        (self.printed_us, self.printed_messages, self.printed_any) = (now_us, messages, true);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && self.printed_any {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

/// Ticks at this interval, the first time after one interval.
pub(super) async fn every(ms: u64) -> Interval {
    let mut ticks = interval(Duration::from_millis(ms.max(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    ticks
}

/// A rate out of a count and a time; 0 if there was no time.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn per_second(count: u64, elapsed_us: u64) -> f64 {
    if elapsed_us == 0 { 0.0 } else { count as f64 * 1e6 / elapsed_us as f64 }
}

/// Seconds out of microseconds.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
