//! What has become true: committed messages are offered, settled ones forgotten.

use kahawai_message::Millis;
use kahawai_message::storage::{Applied, DestinationKey, Entry, Storage, StorageError, SubscriptionKey};

use super::{Broker, Call};
use crate::effect::Effect;
use crate::line::{Body, Position, Slot, Taken};
use crate::slab::{LineKey, PlaceKey};

impl Broker {
    /// The store has applied something that is committed.
    ///
    /// The store may have applied more than that already: what it shows may be ahead of what the broker has been told.
    ///
    /// # Errors
    ///
    /// The store failed: the node must stop.
    pub fn applied(
        &mut self,
        now: Millis,
        applied: Applied,
        storage: &mut dyn Storage,
        fx: &mut Vec<Effect>,
    ) -> Result<(), StorageError> {
        let call = &mut self.begin(now, storage, fx);
        self.run_deferred(call)?;
        match applied {
            Applied::Added { destination, entry } => {
                if let Some(&place) = self.stored_places.get(&destination) {
                    self.added(place, &entry, call)?;
                }
            }
            Applied::Removed { destination, sequence } => {
                let place = self.stored_places.get(&destination).and_then(|place| self.places.get(*place));
                if let Some(line) = place.and_then(|place| place.queue) {
                    self.settled(line, sequence);
                }
            }
            Applied::Acknowledged { destination, subscription, sequence } => {
                let place = self.stored_places.get(&destination).copied();
                if let Some(line) = place.and_then(|place| self.line_of(place, &subscription)) {
                    self.settled(line, sequence);
                }
            }
            Applied::Subscribed { destination, info } => {
                let subscription =
                    SubscriptionKey { client_id: info.client_id, name: info.subscription_name };
                let place = self.stored_places.get(&destination).copied();
                let is_last = self.has_begun(destination, &subscription);
                if is_last && let Some(line) = place.and_then(|place| self.line_of(place, &subscription)) {
                    if let Some(line) = self.lines.get_mut(line) {
                        line.has_begun = true;
                    }
                    self.schedule(line);
                }
            }
            // The broker forgot it when it appended the end.
            Applied::Unsubscribed { .. } => {}
            Applied::DestinationRemoved { destination } => {
                if let Some(&place) = self.stored_places.get(&destination) {
                    self.remove_place(place, call);
                }
            }
        }
        self.finish(call)
    }

    /// One of those that were appended under this name; is it the last?
    fn has_begun(&mut self, destination: DestinationKey, subscription: &SubscriptionKey) -> bool {
        let key = (destination, subscription.clone());
        let Some(count) = self.beginning.get_mut(&key) else { return true };
        *count -= 1;
        let is_last = *count == 0;
        if is_last {
            self.beginning.remove(&key);
        }
        is_last
    }

    fn line_of(&self, topic: PlaceKey, subscription: &SubscriptionKey) -> Option<LineKey> {
        let durables = &self.places.get(topic)?.durables;
        durables.iter().copied().find(|line| {
            let line = self.lines.get(*line);
            line.and_then(|line| line.subscription.as_ref()).is_some_and(|key| **key == *subscription)
        })
    }

    fn added(&mut self, key: PlaceKey, entry: &Entry, call: &mut Call<'_>) -> Result<(), StorageError> {
        let Some(place) = self.places.get_mut(key) else { return Ok(()) };
        place.counts.enqueued += 1;
        if let Some(line) = place.queue {
            return self.arrived(line, entry, call);
        }
        let mut index = 0;
        while let Some(&line) = self.places.get(key).and_then(|place| place.durables.get(index)) {
            index += 1;
            self.arrived(line, entry, call)?;
        }
        Ok(())
    }

    /// A stored message has come into a line.
    fn arrived(&mut self, key: LineKey, entry: &Entry, call: &mut Call<'_>) -> Result<(), StorageError> {
        if entry.expiration_ms > 0 {
            self.plan_sweep(key, entry.expiration_ms.max(call.now));
        }
        let Some(line) = self.lines.get_mut(key) else { return Ok(()) };
        line.sequence_last = line.sequence_last.max(entry.sequence);
        if !line.has_begun {
            return Ok(());
        }
        let tier = entry.tier as usize;
        for selecting in &mut line.selecting {
            let cursor = &mut selecting.cursors[tier];
            if selecting.member.is_none() && *cursor == Default::default() {
                cursor.next = entry.sequence;
            }
            cursor.more = true;
        }
        if entry.sequence < line.cursors[tier].next {
            // Met in the store before we were told, unless it is a prepared transaction's, numbered long ago.
            let position = Position::of(entry);
            if line.held.contains_key(&position.slot) || line.waiting.contains_key(&position) {
                return Ok(());
            }
            line.put(position, Body::Stored(*entry), 0);
            return self.something_came(key, call);
        }
        let expired = entry.expiration_ms > 0 && call.now >= entry.expiration_ms;
        // The quick way: nothing waits, and somebody has room.
        if !line.starved
            && !line.scheduled
            && !expired
            && !line.may_have_more()
            && line.selecting.is_empty()
            && !line.members.is_empty()
            && Self::is_open(line, &self.options.limits)
            && let Some((turn, consumer)) = Self::choose(line, &self.consumers)
        {
            line.turn = turn;
            line.cursors[tier].next = entry.sequence + 1;
            let slot = Slot::stored(entry.sequence);
            let taken = Taken { slot, tier: entry.tier, body: Body::Stored(*entry), returns: 0 };
            if !line.held.contains_key(&slot) {
                self.deliver(key, consumer, &taken, call);
            }
            return Ok(());
        }
        line.cursors[tier].more = true;
        if line.starved && line.selecting.is_empty() {
            return Ok(());
        }
        self.something_came(key, call)
    }

    /// Time passes: what expired is swept, what was left over is done. Returns when it wants to be called next, at the latest.
    ///
    /// # Errors
    ///
    /// The store failed: the node must stop.
    pub fn tick(
        &mut self,
        now: Millis,
        storage: &mut dyn Storage,
        fx: &mut Vec<Effect>,
    ) -> Result<Option<Millis>, StorageError> {
        let call = &mut self.begin(now, storage, fx);
        self.continue_asked = false;
        self.run_deferred(call)?;
        while self.steps_left > 0
            && let Some(&(at, line)) = self.sweeps.first()
            && at <= now
        {
            self.sweep(line, call)?;
        }
        self.finish(call)?;
        if !self.work.is_empty() {
            return Ok(Some(now));
        }
        let sweep = self.sweeps.first().map(|(at, _)| *at);
        // Congestion ends with a commit, which may bring nothing to apply.
        let watch =
            (!self.blocked.is_empty() || !self.deferred.is_empty()).then_some(now + WATCH_INTERVAL_MS);
        Ok([sweep, watch].into_iter().flatten().min())
    }
}

/// How often the commit position is looked at without being told that it moved.
const WATCH_INTERVAL_MS: Millis = 50;
