//! Messages that leave at fixed times.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kahawai_env::{Clock, SystemClock};
use tokio::sync::Notify;

use super::{PerfArgs, Shared};

/// A body begins with the time when it was due, 16 hexadecimal digits.
pub(super) const STAMP_BYTES: usize = 16;
/// How long we sleep at a time, lest nobody can stop us.
const NAP_US: u64 = 100_000;

/// When which message is due: message `n` at `start + n / rate`, sent by producer `n % producers`.
#[derive(Debug)]
pub(super) struct Pace {
    start_us: u64,
    per_second: u64,
    /// How many in all.
    count: u64,
    wakers: Vec<Notify>,
    shared: Arc<Shared>,
}

impl Pace {
    pub(super) fn new(
        args: &PerfArgs,
        rate: NonZeroU32,
        producers: usize,
        start_us: u64,
        shared: &Arc<Shared>,
    ) -> Self {
        let per_second = u64::from(rate.get());
        let by_time = u128::from(args.limit_us()) * u128::from(per_second) / 1_000_000;
        let by_time = u64::try_from(by_time).unwrap_or(u64::MAX).max(1);
        Self {
            start_us,
            per_second,
            count: args.count.map_or(by_time, |count| count.get().min(by_time)),
            wakers: (0..producers).map(|_| Notify::new()).collect(),
            shared: Arc::clone(shared),
        }
    }

    /// When message `n` is due; `None`: there is no such message.
    pub(super) fn due_us(&self, n: u64) -> Option<u64> {
        let (seconds, rest) = (n / self.per_second, n % self.per_second);
        (n < self.count).then(|| self.start_us + seconds * 1_000_000 + rest * 1_000_000 / self.per_second)
    }

    /// How many producers take turns.
    pub(super) fn producers(&self) -> u64 {
        self.wakers.len() as u64
    }

    /// A message of this producer is due, or there will be none.
    pub(super) async fn woken(&self, producer: usize) {
        match self.wakers.get(producer) {
            Some(waker) => waker.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Wakes the producers when their messages are due. On a thread of its own, because the timers of the runtime are
    /// good for milliseconds and `sleep` is good for some 60 µs.
    pub(super) fn tick(&self) {
        for n in 0.. {
            let Some(due_us) = self.due_us(n) else { break };
            loop {
                if self.shared.halted.load(Ordering::Relaxed) {
                    return self.wakers.iter().for_each(Notify::notify_one);
                }
                match due_us.saturating_sub(SystemClock.boot_us()) {
                    0 => break,
                    wait_us => std::thread::sleep(Duration::from_micros(wait_us.min(NAP_US))),
                }
            }
            if let Some(waker) = self.wakers.get(usize::try_from(n % self.producers()).unwrap_or(0)) {
                waker.notify_one();
            }
        }
        // Those without a message learn that there is none.
        self.wakers.iter().for_each(Notify::notify_one);
    }
}

/// Writes `sent_us` over the front of `body`.
pub(super) fn put_stamp(body: &mut [u8], sent_us: u64) {
    for (index, byte) in body.iter_mut().take(STAMP_BYTES).enumerate() {
        // Digits from the highest on.
        let digit = (sent_us >> (4 * (STAMP_BYTES - 1 - index))) & 15;
        let digit = u32::try_from(digit).ok().and_then(|digit| char::from_digit(digit, 16));
        *byte = digit.and_then(|digit| u8::try_from(digit).ok()).unwrap_or(b'0');
    }
}

/// What [`put_stamp`] wrote.
pub(super) fn stamp(body: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(body.get(..STAMP_BYTES)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::fake::arguments;

    fn pace(line: &str) -> Pace {
        let args: PerfArgs = arguments(line, "");
        Pace::new(&args, args.rate.unwrap(), args.producers(), 1000, &Arc::default())
    }

    #[test]
    fn messages_are_due_evenly_and_end_with_the_time_or_the_count() {
        let three = pace("--rate 3 --seconds 2 --producers 2");
        let due: Vec<_> = (0..7).map_while(|n| three.due_us(n)).collect();
        assert_eq!(due, [1000, 334_333, 667_666, 1_001_000, 1_334_333, 1_667_666]);
        assert_eq!(three.producers(), 2);
        let counted = pace("--rate 4000 --count 5");
        assert_eq!((counted.due_us(4), counted.due_us(5)), (Some(2000), None));
        assert_eq!(pace("--rate 1 --seconds 0.1").count, 1);
    }

    #[test]
    fn the_ticker_wakes_every_producer_at_its_time() {
        let mut pace = pace("--rate 1000 --count 10 --producers 2");
        pace.start_us = SystemClock.boot_us();
        pace.tick();
        assert!(SystemClock.boot_us() >= pace.start_us + 9000);
    }

    #[test]
    fn stamps_come_back_from_the_front_of_a_body() {
        let mut body = [b'x'; 20];
        for sent_us in [0, 1, 0x0123_4567_89ab_cdef, u64::MAX] {
            put_stamp(&mut body, sent_us);
            assert_eq!((stamp(&body), &body[16..]), (Some(sent_us), &b"xxxx"[..]));
        }
        assert_eq!(stamp(b"message 1"), None);
        assert_eq!(stamp(b"no hexadecimal digits"), None);
    }
}
