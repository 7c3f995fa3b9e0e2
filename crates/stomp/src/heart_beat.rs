//! Heart-beats both ways (STOMP 1.2, "Heart-beating").

use bytes::{BufMut, BytesMut};
use kahawai_message::Millis;

use crate::{Closed, HeartBeatOptions};

/// Nobody means longer than a day.
const INTERVAL_MS_MAX: i64 = 86_400_000;

/// What the two sides agreed on, and how they keep to it.
#[derive(Debug)]
pub(crate) struct HeartBeat {
    /// We write at least that often; 0 = whenever we like.
    send_ms: Millis,
    /// The client writes at least that often; 0 = whenever it likes.
    expect_ms: Millis,
    grace_percent: Millis,
    received: Millis,
    /// Something was written since `looked`.
    pub(crate) wrote: bool,
    looked: Millis,
}

impl HeartBeat {
    pub(crate) fn new(now: Millis) -> Self {
        Self { send_ms: 0, expect_ms: 0, grace_percent: 100, received: now, wrote: false, looked: now }
    }

    /// Takes the client's header: what it can send, what it wants. Like ActiveMQ we agree to what it says, within bounds.
    pub(crate) fn agree(
        &mut self,
        header: Option<&str>,
        options: HeartBeatOptions,
        now: Millis,
    ) -> Option<()> {
        let (sends, wants) = match header {
            None => (options.default_ms.0.into(), options.default_ms.1.into()),
            Some(header) => {
                let (sends, wants) = header.split_once(',')?;
                (sends.trim().parse::<i64>().ok()?, wants.trim().parse::<i64>().ok()?)
            }
        };
        let bounded = |asked: i64| match asked {
            0 => Some(0),
            1.. => Some(asked.min(INTERVAL_MS_MAX).max(options.interval_ms_min.into())),
            _ => None,
        };
        (self.expect_ms, self.send_ms) = (bounded(sends)?, bounded(wants)?);
        self.grace_percent = options.grace_percent.max(100).into();
        (self.received, self.looked) = (now, now);
        Some(())
    }

    /// The two numbers of CONNECTED's header: what we send, what we want.
    pub(crate) fn agreed(&self) -> (Millis, Millis) {
        (self.send_ms, self.expect_ms)
    }

    pub(crate) fn received(&mut self, now: Millis) {
        self.received = self.received.max(now);
    }

    fn deadline(&self) -> Millis {
        self.received.saturating_add(self.expect_ms.saturating_mul(self.grace_percent) / 100)
    }

    /// Looks twice in each interval, so that the client hears from us in time even if we wrote just after a look.
    fn next_look(&self) -> Millis {
        self.looked.saturating_add((self.send_ms * 2 / 5).max(1))
    }

    pub(crate) fn tick(&mut self, now: Millis, out: &mut BytesMut) -> Result<Option<Millis>, Closed> {
        if self.expect_ms > 0 && now >= self.deadline() {
            return Err(Closed::Silent { silent_ms: now - self.received, agreed_ms: self.expect_ms });
        }
        if self.send_ms > 0 && now >= self.next_look() {
            if !std::mem::take(&mut self.wrote) {
                out.put_u8(b'\n');
            }
            self.looked = now;
        }
        let reading = (self.expect_ms > 0).then(|| self.deadline());
        let writing = (self.send_ms > 0).then(|| self.next_look());
        Ok(reading.into_iter().chain(writing).min())
    }
}
