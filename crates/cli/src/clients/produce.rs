//! `kahawai produce`: sends messages and waits until the broker has confirmed them.

use std::collections::VecDeque;
use std::io::BufRead;
use std::num::{NonZeroU32, NonZeroU64};
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::BytesMut;
use clap::Args;
use kahawai_env::{Clock, SystemClock};
use kahawai_stomp::client::{Client, Send, ServerFrame};
use serde_json::json;
use tokio::sync::mpsc;

use super::link::{Link, LinkArgs, OUT_BYTES_MAX};
use super::progress::{Progress, ProgressArgs, every, per_second, seconds};
use super::{DestinationArgs, Interrupt, Interrupts, block_on};

/// How many lines of standard input are read ahead.
const LINES_AHEAD: usize = 1024;

/// Send messages and wait for their confirmation. Fails (exit 1) unless every message sent is confirmed.
#[derive(Args, Debug)]
pub struct ProduceArgs {
    #[command(flatten)]
    link: LinkArgs,
    #[command(flatten)]
    destination: DestinationArgs,
    /// How many messages; by default one, or as many as --stdin has lines.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Bodies of this many bytes.
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["body", "stdin"])]
    size: Option<usize>,
    /// The body; by default "message 1", "message 2" and so on.
    #[arg(long, value_name = "TEXT")]
    body: Option<String>,
    /// One message for each line of standard input.
    #[arg(long, conflicts_with = "body")]
    stdin: bool,
    /// Messages survive a restart of the broker (the default).
    #[arg(long, overrides_with = "non_persistent")]
    persistent: bool,
    /// Messages need not survive a restart of the broker.
    #[arg(long)]
    non_persistent: bool,
    /// A further header of each message; may be repeated.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = name_and_value)]
    headers: Vec<(String, String)>,
    /// 0 (lowest) to 9; brokers take 4 if it is not given.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// Messages expire this long after they are sent.
    #[arg(long, value_name = "MS")]
    expires_ms: Option<NonZeroU32>,
    /// Send in transactions of N messages.
    #[arg(long, value_name = "N")]
    transaction: Option<NonZeroU64>,
    /// How many messages may be unconfirmed at a time; a transaction is always sent whole.
    #[arg(long, value_name = "W", default_value = "256")]
    window: NonZeroU64,
    #[command(flatten)]
    progress: ProgressArgs,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

/// `--header`.
fn name_and_value(text: &str) -> anyhow::Result<(String, String)> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => bail!("'{text}' where NAME=VALUE is expected"),
    }
}

/// Sends messages and waits for their confirmation.
pub fn produce(args: ProduceArgs) -> anyhow::Result<ExitCode> {
    block_on(1, async move {
        let mut link = Link::open(&args.link, None).await?;
        let mut lines = args.stdin.then(read_lines);
        let mut progress = Progress::new(args.progress, "confirmed");
        let started_us = SystemClock.boot_us();
        let mut producer = Producer::new(&args);
        let sent = producer.run(&mut link, lines.as_mut(), &mut progress).await;
        let elapsed_us = SystemClock.boot_us().saturating_sub(started_us);
        drop(progress);
        report(&args, &producer, elapsed_us);
        sent?;
        link.close().await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn report(args: &ProduceArgs, producer: &Producer<'_>, elapsed_us: u64) {
    let Producer { messages, bytes, confirmed, .. } = *producer;
    let (seconds, rate) = (seconds(elapsed_us), per_second(confirmed, elapsed_us));
    if args.json {
        let result = json!({
            "messages": messages, "bytes": bytes, "seconds": seconds, "rate": rate, "confirmed": confirmed,
        });
        println!("{result}");
    } else {
        println!(
            "{messages} messages of {bytes} bytes sent, {confirmed} confirmed, in {seconds:.3} s: {rate:.0}/s"
        );
    }
}

/// Lines of standard input.
type Lines = mpsc::Receiver<std::io::Result<Vec<u8>>>;

/// The lines of standard input, read on another thread because that blocks.
fn read_lines() -> Lines {
    let (sender, receiver) = mpsc::channel(LINES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = Vec::new();
            let result = match input.read_until(b'\n', &mut line) {
                Ok(0) => return,
                Ok(_) => {
                    let end = line.strip_suffix(b"\n").map_or(line.len(), <[u8]>::len);
                    line.truncate(end);
                    let end = line.strip_suffix(b"\r").map_or(line.len(), <[u8]>::len);
                    line.truncate(end);
                    Ok(line)
                }
                Err(error) => Err(error),
            };
            let failed = result.is_err();
            if sender.blocking_send(result).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

/// What the next message is.
enum Next {
    Body(Vec<u8>),
    /// Standard input has nothing yet.
    Wait,
    End,
}

struct Producer<'a> {
    args: &'a ProduceArgs,
    destination: String,
    filler: Vec<u8>,
    /// Sent.
    messages: u64,
    bytes: u64,
    confirmed: u64,
    /// Receipts owed to us and how many messages each confirms, oldest first.
    owed: VecDeque<(u64, u64)>,
    receipt_last: u64,
    /// Messages in the transaction that is open.
    in_transaction: u64,
    /// No message will follow.
    ended: bool,
}

impl<'a> Producer<'a> {
    fn new(args: &'a ProduceArgs) -> Self {
        Self {
            args,
            destination: args.destination.stomp_name(),
            filler: (b'a'..=b'z').cycle().take(args.size.unwrap_or(0)).collect(),
            messages: 0,
            bytes: 0,
            confirmed: 0,
            owed: VecDeque::new(),
            receipt_last: 0,
            in_transaction: 0,
            ended: false,
        }
    }

    async fn run(
        &mut self,
        link: &mut Link,
        mut lines: Option<&mut Lines>,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        let (mut ticks, mut interrupts) = (every(1000).await, Interrupts::new()?);
        loop {
            let mut waiting = false;
            let (client, out) = link.frame();
            while !self.ended && self.window_open() && out.len() < OUT_BYTES_MAX {
                match self.next_body(lines.as_deref_mut())? {
                    Next::Body(body) => self.put(client, &body, out),
                    Next::End => self.end(client, out),
                    Next::Wait => {
                        waiting = true;
                        break;
                    }
                }
            }
            if self.ended && self.owed.is_empty() {
                return Ok(());
            }
            let more = !self.ended && !waiting && self.window_open();
            tokio::select! {
                exchanged = link.exchange(more) => {
                    exchanged?;
                    self.take_receipts(link)?;
                }
                line = next_line(lines.as_deref_mut()), if waiting => {
                    let (client, out) = link.frame();
                    match line {
                        Some(line) => self.put(client, &line.context("read standard input")?, out),
                        None => self.end(client, out),
                    }
                }
                _ = ticks.tick() => progress.update(self.confirmed),
                interrupt = interrupts.next() => {
                    if interrupt == Interrupt::AtOnce {
                        bail!("interrupted with {} messages unconfirmed", self.messages - self.confirmed);
                    }
                    let (client, out) = link.frame();
                    self.end(client, out);
                }
            }
        }
    }

    fn window_open(&self) -> bool {
        self.in_transaction > 0 || self.messages - self.confirmed < self.args.window.get()
    }

    fn next_body(&self, lines: Option<&mut Lines>) -> anyhow::Result<Next> {
        if self.messages >= self.args.count.unwrap_or(if lines.is_some() { u64::MAX } else { 1 }) {
            return Ok(Next::End);
        }
        Ok(match lines {
            Some(lines) => match lines.try_recv() {
                Ok(line) => Next::Body(line.context("read standard input")?),
                Err(mpsc::error::TryRecvError::Empty) => Next::Wait,
                Err(mpsc::error::TryRecvError::Disconnected) => Next::End,
            },
            None => Next::Body(match (self.args.size, &self.args.body) {
                (Some(_), _) => self.filler.clone(),
                (None, Some(body)) => body.clone().into_bytes(),
                (None, None) => format!("message {}", self.messages + 1).into_bytes(),
            }),
        })
    }

    fn put(&mut self, client: &Client, body: &[u8], out: &mut BytesMut) {
        let args = self.args;
        let transaction = self.transaction();
        if self.in_transaction == 0
            && let Some(transaction) = &transaction
        {
            client.begin(transaction, None, out);
        }
        let priority = args.priority.map(|priority| priority.to_string());
        let expires =
            args.expires_ms.map(|ms| SystemClock.now_ms().saturating_add(ms.get().into()).to_string());
        let mut headers: Vec<(&str, &str)> = Vec::with_capacity(args.headers.len() + 3);
        headers.extend(priority.iter().map(|value| ("priority", &**value)));
        headers.extend(expires.iter().map(|value| ("expires", &**value)));
        if args.non_persistent {
            headers.push(("persistent", "false"));
        }
        headers.extend(args.headers.iter().map(|(name, value)| (&**name, &**value)));
        let receipt = transaction.is_none().then(|| self.owe(1));
        let send = Send {
            destination: &self.destination,
            body,
            // Without content-length Java clients get a TextMessage.
            text: args.size.is_none() && !body.contains(&0),
            persistent: !args.non_persistent,
            transaction: transaction.as_deref(),
            headers: &headers,
        };
        client.send(&send, receipt, out);
        self.messages += 1;
        self.bytes += body.len() as u64;
        if transaction.is_some() {
            self.in_transaction += 1;
            if args.transaction.is_some_and(|count| self.in_transaction == count.get()) {
                self.commit(client, out);
            }
        }
    }

    /// The name of the open or the next transaction.
    fn transaction(&self) -> Option<String> {
        self.args.transaction.map(|_| format!("t{}", self.receipt_last))
    }

    fn commit(&mut self, client: &Client, out: &mut BytesMut) {
        let count = std::mem::take(&mut self.in_transaction);
        if count > 0
            && let Some(transaction) = self.transaction()
        {
            let receipt = self.owe(count);
            client.commit(&transaction, Some(receipt), out);
        }
    }

    fn end(&mut self, client: &Client, out: &mut BytesMut) {
        self.commit(client, out);
        self.ended = true;
    }

    fn owe(&mut self, messages: u64) -> u64 {
        self.receipt_last += 1;
        self.owed.push_back((self.receipt_last, messages));
        self.receipt_last
    }

    fn take_receipts(&mut self, link: &mut Link) -> anyhow::Result<()> {
        while let Some((frame, _)) = link.next()? {
            let ServerFrame::Receipt(Some(receipt)) = frame else { bail!("unexpected answer: {frame:?}") };
            // Nearly always the first.
            let Some(at) = self.owed.iter().position(|&(owed, _)| owed == receipt) else {
                bail!("receipt {receipt}, which nobody asked for");
            };
            self.confirmed += self.owed.remove(at).map_or(0, |(_, messages)| messages);
        }
        Ok(())
    }
}

async fn next_line(lines: Option<&mut Lines>) -> Option<std::io::Result<Vec<u8>>> {
    lines?.recv().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::fake::{arguments, receipt, with_broker};

    /// What was confirmed, how it ended, and what the broker saw.
    fn check(
        line: &str,
        answer: impl Fn(&str) -> Vec<String> + Sync,
        confirmed: u64,
        end: &str,
        frames: &[&str],
    ) {
        let (found, seen) = with_broker(1, answer, |url| {
            let args: ProduceArgs = arguments(&format!("--url URL {line}"), url);
            block_on(1, async {
                let mut link = Link::open(&args.link, None).await?;
                let mut producer = Producer::new(&args);
                let result = producer.run(&mut link, None, &mut Progress::new(args.progress, "")).await;
                let end = match result {
                    Ok(()) => link.close().await.map_or_else(|error| error.to_string(), |()| String::new()),
                    Err(error) => error.to_string().replace(url, "URL"),
                };
                Ok((producer.confirmed, end))
            })
            .unwrap()
        });
        assert_eq!(found, (confirmed, end.to_owned()));
        assert_eq!(seen, frames);
    }

    const GOODBYE: &str = "DISCONNECT receipt:18446744073709551615";

    #[test]
    fn messages_carry_what_the_flags_say() {
        let line = "--queue a --count 2 --header k=v=w --priority 7";
        let frames = [
            "SEND destination:/queue/a persistent:true priority:7 k:v=w receipt:1  message 1",
            "SEND destination:/queue/a persistent:true priority:7 k:v=w receipt:2  message 2",
            GOODBYE,
        ];
        check(line, receipt, 2, "", &frames);
        let frames = ["SEND destination:/topic/t content-length:3 persistent:false receipt:1  abc", GOODBYE];
        check("--topic t --size 3 --non-persistent", receipt, 1, "", &frames);
    }

    #[test]
    fn transactions_are_committed_every_so_many_messages_and_at_the_end() {
        let frames = [
            "BEGIN transaction:t0",
            "SEND destination:/queue/a persistent:true transaction:t0  x",
            "SEND destination:/queue/a persistent:true transaction:t0  x",
            "COMMIT transaction:t0 receipt:1",
            "BEGIN transaction:t1",
            "SEND destination:/queue/a persistent:true transaction:t1  x",
            "COMMIT transaction:t1 receipt:2",
            GOODBYE,
        ];
        check("--queue a --count 3 --body x --transaction 2 --window 1", receipt, 3, "", &frames);
    }

    #[test]
    fn the_window_closes_until_receipts_come_in_any_order() {
        // Answers only once two are outstanding, the later one first.
        let answer = |frame: &str| {
            let id = frame.lines().find_map(|line| line.strip_prefix("receipt:")?.parse::<u64>().ok());
            match id {
                Some(id) if id < 100 && id % 2 == 1 => vec![],
                Some(id) if id < 100 => [id, id - 1].map(|id| format!("RECEIPT\nreceipt-id:{id}\n\n")).into(),
                _ => receipt(frame),
            }
        };
        let (confirmed, seen) = with_broker(1, answer, |url| {
            let args: ProduceArgs = arguments("--url URL --queue a --count 6 --window 2", url);
            produce(args).unwrap()
        });
        assert_eq!((confirmed, seen.len()), (ExitCode::SUCCESS, 7));
    }

    #[test]
    fn an_error_of_the_broker_is_told() {
        let answer = |frame: &str| match frame {
            frame if frame.ends_with("message 2") => {
                vec!["ERROR\nmessage:no space\n\nDiskFull\n\tat".to_owned()]
            }
            frame => receipt(frame),
        };
        let frames = [
            "SEND destination:/queue/a persistent:true receipt:1  message 1",
            "SEND destination:/queue/a persistent:true receipt:2  message 2",
        ];
        check(
            "--queue a --count 9 --window 1",
            answer,
            1,
            "URL answered ERROR: no space (DiskFull)",
            &frames,
        );
    }

    #[test]
    fn headers_are_name_and_value() {
        assert_eq!(name_and_value("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(name_and_value("a=").unwrap(), ("a".to_owned(), String::new()));
        assert_eq!(name_and_value("=b").unwrap_err().to_string(), "'=b' where NAME=VALUE is expected");
        assert_eq!(name_and_value("b").unwrap_err().to_string(), "'b' where NAME=VALUE is expected");
    }
}
