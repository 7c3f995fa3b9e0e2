//! `kahawai consume`: receives messages and acknowledges them.

use std::io::{ErrorKind, Write};
use std::num::{NonZeroU32, NonZeroU64};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use kahawai_env::{Clock, SystemClock};
use kahawai_stomp::client::{ServerFrame, Subscribe};
use serde_json::json;

use super::link::{Link, LinkArgs};
use super::progress::{Progress, ProgressArgs, every, per_second, seconds};
use super::{Ack, DestinationArgs, Interrupts, block_on, printed};

/// The most that --count lowers the prefetch to; what brokers give by default.
const PREFETCH_DEFAULT: u64 = 1000;
const SUBSCRIPTION: &str = "1";
const LAST_ACK: u64 = 1;
const CHECK_MS: u64 = 100;

/// Receive messages and acknowledge them, until there were --count of them, or none for --timeout-ms, or Ctrl-C. With
/// --print, standard output has the messages and nothing else; the result goes to standard error.
#[derive(Args, Debug)]
pub struct ConsumeArgs {
    #[command(flatten)]
    link: LinkArgs,
    #[command(flatten)]
    destination: DestinationArgs,
    /// Stop after this many messages.
    #[arg(long, value_name = "N")]
    count: Option<NonZeroU64>,
    /// Who acknowledges, and what.
    #[arg(long, value_enum, default_value = "client-individual")]
    ack: Ack,
    /// How many unacknowledged messages the broker may send ahead.
    #[arg(long, value_name = "N")]
    prefetch: Option<NonZeroU32>,
    /// Only messages whose headers fulfil this condition, like "priority > 3".
    #[arg(long)]
    selector: Option<String>,
    /// Name of a durable subscription: the broker keeps messages while we are away.
    #[arg(long, value_name = "NAME", requires_all = ["topic", "client_id"])]
    durable: Option<String>,
    /// Who we are; durable subscriptions belong to it.
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// Print bodies, one per line; with --json, headers and body as one JSON object per line.
    #[arg(long)]
    print: bool,
    /// Stop when no message has come for so long.
    #[arg(long, value_name = "T")]
    timeout_ms: Option<u64>,
    #[command(flatten)]
    progress: ProgressArgs,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Receives messages and acknowledges them.
pub fn consume(args: ConsumeArgs) -> anyhow::Result<ExitCode> {
    block_on(1, async move {
        let mut link = Link::open(&args.link, args.client_id.as_deref()).await?;
        let mut progress = Progress::new(args.progress, "received");
        let mut consumer = Consumer::new(&args);
        consumer.subscribe(&mut link);
        let consumed = consumer.run(&mut link, &mut progress).await;
        drop(progress);
        let end = match consumed {
            Ok(()) => link.close().await,
            Err(error) => Err(error),
        };
        consumer.report();
        match end {
            Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
            end => end.map(|()| ExitCode::SUCCESS),
        }
    })
}

/// Whoever reads our output has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<PrintError>().is_some_and(|PrintError(error)| error.kind() == ErrorKind::BrokenPipe)
}

#[derive(Debug)]
struct PrintError(std::io::Error);

impl std::fmt::Display for PrintError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "write to standard output: {}", self.0)
    }
}

impl std::error::Error for PrintError {}

struct Consumer<'a> {
    args: &'a ConsumeArgs,
    started_us: u64,
    /// When the last message came, or else when we began.
    last_us: u64,
    messages: u64,
    bytes: u64,
}

impl<'a> Consumer<'a> {
    fn new(args: &'a ConsumeArgs) -> Self {
        let now_us = SystemClock.boot_us();
        Self { args, started_us: now_us, last_us: now_us, messages: 0, bytes: 0 }
    }

    fn subscribe(&self, link: &mut Link) {
        let args = self.args;
        // What was sent ahead and not consumed comes back marked as redelivered: better not to have it.
        let most = args.count.map(|count| count.get().min(PREFETCH_DEFAULT));
        let prefetch = args.prefetch.map(|prefetch| prefetch.get().into()).or(most);
        let prefetch = prefetch.map(|prefetch: u64| prefetch.to_string());
        let options = [
            ("activemq.prefetchSize", prefetch.as_deref()),
            ("selector", args.selector.as_deref()),
            ("activemq.subscriptionName", args.durable.as_deref()),
        ];
        let headers: Vec<_> = options.iter().filter_map(|(name, value)| Some((*name, (*value)?))).collect();
        let destination = args.destination.stomp_name();
        let subscribe = Subscribe {
            id: SUBSCRIPTION,
            destination: &destination,
            ack: args.ack.as_str(),
            headers: &headers,
        };
        let (client, out) = link.frame();
        client.subscribe(&subscribe, None, out);
    }

    async fn run(&mut self, link: &mut Link, progress: &mut Progress) -> anyhow::Result<()> {
        let mut ticks = every(CHECK_MS.min(self.args.timeout_ms.unwrap_or(CHECK_MS).div_ceil(4))).await;
        let mut interrupts = Interrupts::new()?;
        loop {
            tokio::select! {
                exchanged = link.exchange(false) => {
                    exchanged?;
                    if self.take(link)? {
                        return Ok(());
                    }
                }
                _ = ticks.tick() => {
                    progress.update(self.messages);
                    let idle_us = SystemClock.boot_us().saturating_sub(self.last_us);
                    if self.args.timeout_ms.is_some_and(|timeout_ms| idle_us / 1000 >= timeout_ms) {
                        return Ok(());
                    }
                }
                _ = interrupts.next() => return Ok(()),
            }
        }
    }

    /// Takes what has come. `true`: this was all.
    fn take(&mut self, link: &mut Link) -> anyhow::Result<bool> {
        let args = self.args;
        let count = args.count.map_or(u64::MAX, NonZeroU64::get);
        let mut printer = args.print.then(|| std::io::BufWriter::new(std::io::stdout().lock()));
        let mut done = false;
        while let Some((frame, out)) = link.next()? {
            match frame {
                // What came beyond the count goes back to the queue.
                ServerFrame::Message(_) if self.messages >= count => {}
                ServerFrame::Message(message) => {
                    self.messages += 1;
                    self.bytes += message.body().len() as u64;
                    if let Some(printer) = &mut printer {
                        let print = if args.json { printed::json } else { printed::body };
                        print(&message, printer).map_err(PrintError)?;
                    }
                    let last = self.messages == count;
                    if args.ack != Ack::Auto {
                        message.put_ack(None, last.then_some(LAST_ACK), out);
                    } else if last {
                        done = true;
                    }
                    self.last_us = SystemClock.boot_us();
                }
                ServerFrame::Receipt(Some(LAST_ACK)) => done = true,
                other => bail!("unexpected answer: {other:?}"),
            }
        }
        if let Some(mut printer) = printer {
            // Before the acks leave.
            printer.flush().map_err(PrintError)?;
        }
        Ok(done)
    }

    fn report(&self) {
        let &Self { messages, bytes, .. } = self;
        let elapsed_us = self.last_us.saturating_sub(self.started_us);
        let (seconds, rate) = (seconds(elapsed_us), per_second(messages, elapsed_us));
        let result = if self.args.json {
            json!({ "messages": messages, "bytes": bytes, "seconds": seconds, "rate": rate }).to_string()
        } else {
            format!("{messages} messages of {bytes} bytes received in {seconds:.3} s: {rate:.0}/s")
        };
        if self.args.print {
            eprintln!("{result}");
        } else {
            println!("{result}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::fake::{arguments, receipt, with_broker};

    fn check(line: &str, messages: u64, frames: &[&str]) {
        let answer = |frame: &str| match frame {
            frame if frame.starts_with("SUBSCRIBE") => (1..=3)
                .map(|id| {
                    format!("MESSAGE\nsubscription:1\nmessage-id:m{id}\nack:a{id}\ncontent-length:1\n\n{id}")
                })
                .collect(),
            frame => receipt(frame),
        };
        let (consumed, seen) = with_broker(1, answer, |url| {
            let args: ConsumeArgs = arguments(&format!("--url URL {line}"), url);
            block_on(1, async {
                let mut link = Link::open(&args.link, args.client_id.as_deref()).await?;
                let mut consumer = Consumer::new(&args);
                consumer.subscribe(&mut link);
                consumer.run(&mut link, &mut Progress::new(args.progress, "")).await?;
                link.close().await?;
                Ok(consumer.messages)
            })
            .unwrap()
        });
        assert_eq!(
            (consumed, &*seen),
            (messages, &*frames.iter().map(|&frame| frame.to_owned()).collect::<Vec<_>>())
        );
    }

    const GOODBYE: &str = "DISCONNECT receipt:18446744073709551615";

    #[test]
    fn each_message_is_acknowledged_and_the_last_one_of_the_count_with_a_receipt() {
        let subscribe = "SUBSCRIBE id:1 destination:/queue/a ack:client-individual activemq.prefetchSize:2";
        check("--queue a --count 2", 2, &[subscribe, "ACK id:a1", "ACK id:a2 receipt:1", GOODBYE]);
    }

    #[test]
    fn it_ends_when_no_message_comes() {
        let subscribe =
            "SUBSCRIBE id:1 destination:/topic/t ack:client selector:x=1 activemq.subscriptionName:d";
        let line = "--topic t --timeout-ms 50 --ack client --selector x=1 --durable d --client-id c";
        check(line, 3, &[subscribe, "ACK id:a1", "ACK id:a2", "ACK id:a3", GOODBYE]);
        let subscribe = "SUBSCRIBE id:1 destination:/queue/a ack:auto activemq.prefetchSize:7";
        check("--queue a --timeout-ms 50 --ack auto --prefetch 7", 3, &[subscribe, GOODBYE]);
    }
}
