//! A connection that receives.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::bail;
use kahawai_env::{Clock, SystemClock};
use kahawai_stomp::client::{ServerFrame, Subscribe};
use tokio::sync::{oneshot, watch};

use super::pace::stamp;
use super::{Outcome, PerfArgs, Shared};
use crate::clients::Ack;
use crate::clients::link::Link;

const SUBSCRIPTION: &str = "1";
const SUBSCRIBED: u64 = 1;
const LAST_ACK: u64 = 2;

#[derive(Debug)]
pub(super) struct Consumer {
    destination: String,
    ack: Ack,
    prefetch: Option<String>,
    /// Bodies are stamped. Only those that were sent since then are ours.
    stamped_since_us: Option<u64>,
    /// Stop after so many, all consumers together.
    count: u64,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    subscribed: Option<oneshot::Sender<()>>,
    outcome: Outcome,
}

impl Consumer {
    /// A consumer, and what hears when it is subscribed.
    pub(super) fn new(
        args: &PerfArgs,
        number: usize,
        born_us: u64,
        shared: &Arc<Shared>,
        stop: &watch::Sender<bool>,
    ) -> (Self, oneshot::Receiver<()>) {
        let (subscribed, hears) = oneshot::channel();
        let consumer = Self {
            destination: args.destination(number),
            ack: args.ack,
            prefetch: args.prefetch.map(|prefetch| prefetch.to_string()),
            stamped_since_us: args.rate.map(|_| born_us),
            count: args.count.filter(|_| args.drain).map_or(u64::MAX, NonZeroU64::get),
            shared: Arc::clone(shared),
            stop: stop.clone(),
            subscribed: Some(subscribed),
            outcome: Outcome::default(),
        };
        (consumer, hears)
    }

    pub(super) async fn run(mut self, mut link: Link) -> Outcome {
        self.outcome.error = match self.receive(&mut link).await {
            // Its receipt is that for all acks.
            Ok(()) => link.close().await.err(),
            Err(error) => Some(error),
        };
        self.outcome
    }

    async fn receive(&mut self, link: &mut Link) -> anyhow::Result<()> {
        let (client, out) = link.frame();
        let headers = self.prefetch.as_deref().map(|prefetch| ("activemq.prefetchSize", prefetch));
        let subscribe = Subscribe {
            id: SUBSCRIPTION,
            destination: &self.destination,
            ack: self.ack.as_str(),
            headers: headers.as_slice(),
        };
        client.subscribe(&subscribe, Some(SUBSCRIBED), out);
        let mut stop = self.stop.subscribe();
        loop {
            tokio::select! {
                biased;
                exchanged = link.exchange(false) => exchanged?,
                _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
            }
            if self.take(link)? {
                return Ok(());
            }
        }
    }

    /// Takes what has come. `true`: this was all.
    fn take(&mut self, link: &mut Link) -> anyhow::Result<bool> {
        let now_us = SystemClock.boot_us();
        let mut done = false;
        while let Some((frame, out)) = link.next()? {
            match frame {
                ServerFrame::Message(message) => {
                    let mut mine = true;
                    if let Some(since_us) = self.stamped_since_us {
                        match stamp(message.body()).filter(|&sent_us| sent_us >= since_us) {
                            Some(sent_us) => self.outcome.latency.record(now_us.saturating_sub(sent_us)),
                            None => mine = false,
                        }
                    }
                    let number = self.shared.consumed.fetch_add(u64::from(mine), Ordering::Relaxed) + 1;
                    if number > self.count {
                        self.shared.consumed.fetch_sub(1, Ordering::Relaxed);
                        continue;
                    }
                    let last = number == self.count;
                    if self.ack != Ack::Auto {
                        message.put_ack(None, last.then_some(LAST_ACK), out);
                    } else if last {
                        done = true;
                    }
                    self.outcome.last_us = now_us;
                }
                ServerFrame::Receipt(Some(LAST_ACK)) => {
                    self.outcome.last_us = now_us;
                    done = true;
                }
                ServerFrame::Receipt(Some(SUBSCRIBED)) => {
                    if let Some(subscribed) = self.subscribed.take() {
                        // Nobody listens when draining.
                        let _ = subscribed.send(());
                    }
                }
                other => bail!("unexpected answer: {other:?}"),
            }
        }
        if done {
            self.stop.send_replace(true);
        }
        Ok(done)
    }
}
