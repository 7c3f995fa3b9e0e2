//! A connection that sends.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::bail;
use kahawai_env::{Clock, SystemClock};
use kahawai_stomp::client::{PreparedSend, Send, ServerFrame};

use super::pace::{Pace, put_stamp};
use super::{Outcome, PerfArgs, Shared};
use crate::clients::link::{Link, OUT_BYTES_MAX};

/// Which messages are unconfirmed, and since when. They are numbered from 0, the numbers are their receipts. At most
/// `size` following numbers, so that `number % size` is a place of their own.
#[derive(Debug)]
struct Window {
    /// 0 = free.
    sent_us: Box<[u64]>,
    size: NonZeroU64,
    next: u64,
    outstanding: u64,
}

impl Window {
    fn new(size: usize) -> Self {
        let size = size.max(1);
        let sent_us = vec![0; size].into_boxed_slice();
        Self {
            sent_us,
            size: NonZeroU64::new(size as u64).unwrap_or(NonZeroU64::MIN),
            next: 0,
            outstanding: 0,
        }
    }

    fn place(&mut self, number: u64) -> Option<&mut u64> {
        let place = usize::try_from(number % self.size).ok()?;
        self.sent_us.get_mut(place)
    }

    /// Takes the next number, unless its place is taken by one that is not confirmed yet.
    fn send(&mut self, now_us: u64) -> Option<u64> {
        let number = self.next;
        let place = self.place(number)?;
        if *place != 0 {
            return None;
        }
        *place = now_us.max(1);
        self.next += 1;
        self.outstanding += 1;
        Some(number)
    }

    /// When the message was sent that is confirmed now.
    fn confirm(&mut self, number: u64) -> Option<u64> {
        if number >= self.next || self.next - number > self.size.get() {
            return None;
        }
        match std::mem::take(self.place(number)?) {
            0 => None,
            sent_us => {
                self.outstanding -= 1;
                Some(sent_us)
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Producer {
    destination: String,
    body: Vec<u8>,
    persistent: bool,
    window: Window,
    /// How many messages this connection still sends.
    left: u64,
    end_us: u64,
    shared: Arc<Shared>,
    outcome: Outcome,
}

impl Producer {
    pub(super) fn new(args: &PerfArgs, number: usize, started_us: u64, shared: &Arc<Shared>) -> Self {
        let producers = args.producers().max(1) as u64;
        let left = args.count.map_or(u64::MAX, |count| {
            let odd = u64::from((number as u64) < count.get() % producers);
            count.get() / producers + odd
        });
        Self {
            destination: args.destination(number),
            body: (b'a'..=b'z').cycle().take(args.size).collect(),
            persistent: !args.non_persistent,
            window: Window::new(args.window.get()),
            left,
            end_us: started_us.saturating_add(args.limit_us()),
            shared: Arc::clone(shared),
            outcome: Outcome::default(),
        }
    }

    /// As fast as receipts come.
    pub(super) async fn run(mut self, mut link: Link) -> Outcome {
        let result = self.flood(&mut link).await;
        self.end(link, result).await
    }

    /// At the times that `pace` says.
    pub(super) async fn run_paced(mut self, mut link: Link, pace: Arc<Pace>, number: usize) -> Outcome {
        let result = self.paced(&mut link, &pace, number).await;
        self.end(link, result).await
    }

    async fn end(mut self, link: Link, result: anyhow::Result<()>) -> Outcome {
        self.outcome.error = match result {
            Ok(()) => link.close().await.err(),
            Err(error) => Some(error),
        };
        self.outcome
    }

    fn send<'a>(&'a self, headers: &'a [(&'a str, &'a str)]) -> Send<'a> {
        let (destination, body, persistent) = (&*self.destination, &*self.body, self.persistent);
        Send { destination, body, persistent, headers, ..Send::default() }
    }

    /// ActiveMQ takes messages that say nothing for non-persistent ones, others may not.
    fn headers(&self) -> &'static [(&'static str, &'static str)] {
        if self.persistent { &[] } else { &[("persistent", "false")] }
    }

    async fn flood(&mut self, link: &mut Link) -> anyhow::Result<()> {
        let send = link.frame().0.prepare(&self.send(self.headers()));
        let mut now_us = SystemClock.boot_us();
        loop {
            let more = self.fill(link, &send, now_us);
            if self.window.outstanding == 0 {
                return Ok(());
            }
            link.exchange(more).await?;
            now_us = SystemClock.boot_us();
            self.take_receipts(link, now_us)?;
        }
    }

    /// Sends what the window allows. `true`: there is more, but the socket must take this first.
    fn fill(&mut self, link: &mut Link, send: &PreparedSend, now_us: u64) -> bool {
        if now_us >= self.end_us || self.shared.halted.load(Ordering::Relaxed) {
            self.left = 0;
        }
        let (_, out) = link.frame();
        while self.left > 0 {
            if out.len() >= OUT_BYTES_MAX {
                return true;
            }
            let Some(number) = self.window.send(now_us) else { break };
            send.put(Some(number), out);
            self.left -= 1;
        }
        false
    }

    async fn paced(&mut self, link: &mut Link, pace: &Pace, producer: usize) -> anyhow::Result<()> {
        let mut n = producer as u64;
        let mut woken_us = 0;
        loop {
            let now_us = SystemClock.boot_us();
            let halted = self.shared.halted.load(Ordering::Relaxed);
            let mut due = pace.due_us(n).filter(|_| !halted);
            while let Some(due_us) = due
                && due_us <= now_us
                && let Some(number) = self.window.send(now_us)
            {
                // A message that the broker holds up is old when it leaves; one for which we were woken late is not.
                put_stamp(&mut self.body, due_us.max(woken_us));
                let send = self.send(self.headers());
                let (client, out) = link.frame();
                client.send(&send, Some(number), out);
                n += pace.producers();
                due = pace.due_us(n);
            }
            if due.is_none() && self.window.outstanding == 0 {
                return Ok(());
            }
            tokio::select! {
                biased;
                exchanged = link.exchange(false) => {
                    exchanged?;
                    self.take_receipts(link, SystemClock.boot_us())?;
                }
                () = pace.woken(producer) => woken_us = SystemClock.boot_us(),
            }
        }
    }

    fn take_receipts(&mut self, link: &mut Link, now_us: u64) -> anyhow::Result<()> {
        let mut confirmed = 0;
        while let Some((frame, _)) = link.next()? {
            let ServerFrame::Receipt(Some(number)) = frame else { bail!("unexpected answer: {frame:?}") };
            let Some(sent_us) = self.window.confirm(number) else {
                bail!("receipt {number}, which nobody asked for");
            };
            self.outcome.latency.record(now_us.saturating_sub(sent_us));
            confirmed += 1;
        }
        if confirmed > 0 {
            self.shared.confirmed.fetch_add(confirmed, Ordering::Relaxed);
            self.outcome.last_us = now_us;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_so_many_messages_and_no_more() {
        let mut window = Window::new(3);
        assert_eq!([10, 11, 12, 13].map(|now_us| window.send(now_us)), [Some(0), Some(1), Some(2), None]);
        // Out of order: the place of 3 is that of 0.
        assert_eq!((window.confirm(1), window.send(20)), (Some(11), None));
        assert_eq!((window.confirm(0), window.send(21), window.send(22)), (Some(10), Some(3), Some(4)));
        assert_eq!(window.outstanding, 3);
        assert_eq!([0, 1, 5, 6, u64::MAX].map(|number| window.confirm(number)), [None; 5]);
        assert_eq!([2, 3, 4, 4].map(|number| window.confirm(number)), [Some(12), Some(21), Some(22), None]);
        assert_eq!(window.outstanding, 0);
    }
}
