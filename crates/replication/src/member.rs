use kahawai_types::{BootId, Lsn, Millis, ReplicaId};

use crate::Timing;
use crate::primary::{Departure, SessionId};

/// Whether a replica is there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Link {
    /// Not seen in this epoch.
    Absent {
        since: Millis,
    },
    Up {
        since: Millis,
        session: SessionId,
        boot: BootId,
    },
    Down {
        since: Millis,
        orderly: bool,
    },
    /// Its process is known to be dead.
    Gone {
        since: Millis,
    },
    /// It had flushed more than it has now: nothing it says counts in this epoch.
    Corrupt {
        since: Millis,
        durable: Lsn,
    },
}

impl Link {
    pub(crate) fn since(&self) -> Millis {
        match *self {
            Self::Absent { since }
            | Self::Up { since, .. }
            | Self::Down { since, .. }
            | Self::Gone { since }
            | Self::Corrupt { since, .. } => since,
        }
    }
}

/// What the primary knows about another replica.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Member {
    pub(crate) id: ReplicaId,
    pub(crate) link: Link,
    /// Of those that counted.
    pub(crate) newest_session: Option<SessionId>,
    /// The process that attached last.
    pub(crate) last_boot: Option<BootId>,
    /// Flushed of our log, as it confirmed in this epoch. Stays when the session breaks: what is flushed stays.
    pub(crate) durable: Lsn,
    pub(crate) applied: Lsn,
    /// In the recorded set.
    pub(crate) recorded: bool,
    /// In the proposed set, while a proposal has no answer.
    pub(crate) proposed: bool,
    /// Was in the set when the epoch began.
    pub(crate) founding: bool,
    /// Commits wait for it ahead of a proposal, so that it can reach them: otherwise a replica that is always a flush behind the
    /// others could never show that it has everything.
    awaited: Option<Millis>,
    /// Why we proposed to remove it.
    pub(crate) departure: Option<Departure>,
    pub(crate) evictions: u32,
    joined: Millis,
    /// May not join before that.
    not_before: Millis,
    /// Has had something to flush, and flushed nothing, since then.
    owing: Option<Millis>,
    lagging: Option<Millis>,
    keeping_up: Option<Millis>,
}

impl Member {
    pub(crate) fn new(id: ReplicaId, now: Millis) -> Self {
        Self {
            id,
            link: Link::Absent { since: now },
            newest_session: None,
            last_boot: None,
            durable: Lsn::ZERO,
            applied: Lsn::ZERO,
            recorded: false,
            proposed: false,
            founding: false,
            awaited: None,
            departure: None,
            evictions: 0,
            joined: now,
            not_before: now,
            owing: None,
            lagging: None,
            keeping_up: None,
        }
    }

    /// One of the set that the epoch began with.
    pub(crate) fn founding(id: ReplicaId, now: Millis) -> Self {
        Self { recorded: true, founding: true, ..Self::new(id, now) }
    }

    pub(crate) fn is_on(&self, id: SessionId) -> bool {
        matches!(self.link, Link::Up { session, .. } if session == id)
    }

    pub(crate) fn boot(&self) -> Option<BootId> {
        match self.link {
            Link::Up { boot, .. } => Some(boot),
            _ => None,
        }
    }

    /// Commits wait for it.
    pub(crate) fn counts(&self) -> bool {
        self.recorded || self.proposed || self.awaited.is_some()
    }

    /// What may be counted on.
    pub(crate) fn counted(&self) -> Lsn {
        match self.link {
            Link::Corrupt { .. } => Lsn::ZERO,
            _ => self.durable,
        }
    }

    /// The journal goes up to `end`.
    pub(crate) fn owe(&mut self, now: Millis, end: Lsn) {
        if self.durable < end {
            self.owing.get_or_insert(now);
        }
    }

    /// It has flushed up to `durable`.
    pub(crate) fn advance(&mut self, now: Millis, durable: Lsn, end: Lsn) {
        if durable > self.durable || durable >= end {
            self.owing = (durable < end).then_some(now);
        }
        self.durable = self.durable.max(durable);
    }

    /// Whether it has lost what it had flushed. The start of a file is also the end of the one before, and may be called so next
    /// time.
    pub(crate) fn has_lost(&self, durable: Lsn) -> bool {
        let renumbered = self.durable.offset() == 0 && durable.file() < self.durable.file();
        durable < self.durable && !renumbered
    }

    /// A session has begun or ended: what was measured on another one says nothing.
    pub(crate) fn quit(&mut self) {
        self.owing = None;
        self.lagging = None;
        self.keeping_up = None;
        self.awaited = None;
    }

    pub(crate) fn joined(&mut self, now: Millis, end: Lsn) {
        self.recorded = true;
        self.awaited = None;
        self.departure = None;
        self.joined = now;
        self.lagging = None;
        self.owing = (self.durable < end).then_some(now);
    }

    pub(crate) fn left(&mut self, now: Millis, timing: &Timing) -> Departure {
        self.recorded = false;
        self.keeping_up = None;
        let reason = self.departure.take().unwrap_or(Departure::Operator);
        // Who was taken out on purpose comes back like a stranger.
        self.founding &= reason != Departure::Operator;
        // A long good time makes up for what was before.
        if now - self.joined >= timing.backoff_ms_max {
            self.evictions = 0;
        }
        self.penalise(now, timing);
        reason
    }

    /// Doubles the time that it has to wait, from the second time on.
    fn penalise(&mut self, now: Millis, timing: &Timing) {
        let doublings = self.evictions.min(32);
        self.evictions = self.evictions.saturating_add(1);
        let wait = if doublings == 0 { 0 } else { timing.stable_ms.saturating_mul(1 << doublings) };
        self.not_before = now.saturating_add(wait.min(timing.backoff_ms_max));
    }

    /// Looks how far it is behind.
    pub(crate) fn watch(&mut self, now: Millis, end: Lsn, timing: &Timing) {
        if self.boot().is_none() {
            return;
        }
        self.owe(now, end);
        let lag = timing.lag_bytes(self.durable, end);
        let since = |holds: bool, since: Option<Millis>| holds.then(|| since.unwrap_or(now));
        self.lagging = since(lag > timing.in_sync_lag_bytes_max, self.lagging);
        self.keeping_up = since(lag <= timing.admission_lag_bytes_max, self.keeping_up);
        if self.awaited.is_some_and(|since| now - since >= timing.reconnect_ms) && !self.proposed {
            // It does not keep up, and must not hold back the others.
            self.awaited = None;
            self.keeping_up = None;
            self.penalise(now, timing);
        }
    }

    /// Why this member should leave.
    pub(crate) fn fault(&self, now: Millis, timing: &Timing) -> Option<Departure> {
        let over = |since: Option<Millis>, limit: Millis| since.is_some_and(|since| now - since >= limit);
        match self.link {
            Link::Corrupt { .. } => Some(Departure::Corrupt),
            Link::Gone { .. } => Some(Departure::Gone),
            Link::Down { orderly: true, .. } => Some(Departure::Orderly),
            Link::Absent { since } => {
                over(Some(since), timing.takeover_grace_ms).then_some(Departure::NotAttached)
            }
            Link::Down { since, .. } => {
                over(Some(since), timing.reconnect_ms).then_some(Departure::Disconnected)
            }
            Link::Up { .. } if over(self.lagging, timing.evict_ms) => Some(Departure::Lagging),
            Link::Up { .. } => over(self.owing, timing.evict_ms).then_some(Departure::Stalled),
        }
    }

    /// Whether it should be in the set, if it has what is needed.
    pub(crate) fn may_join(&self, now: Millis, urgent: bool, timing: &Timing) -> bool {
        if self.recorded || self.boot().is_none() {
            return false;
        }
        let at_once = self.founding && self.evictions <= 1;
        let stable_ms = if at_once { 0 } else { timing.stable_ms };
        let keeps_up = self.keeping_up.is_some_and(|since| now - since >= stable_ms)
            && self.owing.is_none_or(|since| now - since < timing.reconnect_ms);
        urgent || (keeps_up && now >= self.not_before)
    }

    /// Commits wait for it from now on.
    pub(crate) fn await_it(&mut self, now: Millis) {
        self.awaited.get_or_insert(now);
    }
}
