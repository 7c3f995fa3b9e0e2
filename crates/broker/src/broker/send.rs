//! Sends: where the message goes, whether it has been here before, and who gets it at once.

use std::sync::Arc;

use kahawai_message::front::{Delivery, Refusal, Request, Source};
use kahawai_message::storage::{DestinationKey, StorageError, Tier};
use kahawai_message::{Message, Millis};

use super::{Broker, Call, Deferred, Stop};
use crate::connection::Targets;
use crate::consumer::{From as Origin, Out, OutState};
use crate::effect::{BlockReason, Effect, Outcome};
use crate::line::{Body, Taken};
use crate::producers::ProducerSlot;
use crate::slab::{ConnectionKey, ConsumerKey, LineKey, MemoryKey, PlaceKey};

impl Broker {
    pub(super) fn send(
        &mut self,
        by: ConnectionKey,
        mut message: Message,
        call: &mut Call<'_>,
    ) -> Result<Outcome, Stop> {
        match self.route(by, &message.destination, call)? {
            Targets::One(place) => {
                self.prepare(by, &mut message, call.now)?;
                self.send_to_one(by, place, message, call)
            }
            Targets::Several(places) => {
                self.prepare(by, &mut message, call.now)?;
                self.send_to_several(by, &places, message, call)
            }
        }
    }

    /// What the broker writes into every message.
    pub(super) fn prepare(
        &mut self,
        by: ConnectionKey,
        message: &mut Message,
        now: Millis,
    ) -> Result<(), Stop> {
        message.broker_in_time_ms = now;
        message.arrival_ms = now;
        message.priority = message.priority.min(9);
        if message.destination.kind.is_temporary()
            && let Some(physical) = self.physical(by, &message.destination)?
        {
            message.destination = physical;
        }
        if let Some(reply_to) = &message.reply_to
            && reply_to.kind.is_temporary()
            && let Some(physical) = self.physical(by, reply_to)?
        {
            message.reply_to = Some(physical);
        }
        Ok(())
    }

    fn send_to_one(
        &mut self,
        by: ConnectionKey,
        place_key: PlaceKey,
        message: Message,
        call: &mut Call<'_>,
    ) -> Result<Outcome, Stop> {
        let Some(place) = self.places.get(place_key) else {
            return Err(Refusal::NotFound(format!("'{}' was removed", message.destination)).into());
        };
        let nobody = place.is_deserted();
        let (stored_at, prioritised, heard) =
            (place.stored_at, place.prioritised, !place.subscribers.is_empty());
        let stored_at = if place.stores() && message.persistent { stored_at } else { None };
        if (stored_at.is_none() || heard) && !nobody && self.memory.is_full() {
            return Ok(blocked(message, BlockReason::Memory));
        }
        let Some(stored_at) = stored_at else {
            if nobody {
                self.count_enqueued(place_key);
            } else if message.is_expired(call.now) {
                self.count_expired(place_key);
            } else {
                let message = self.memory.insert(message);
                self.place_in_memory(place_key, message, true, call)?;
                self.memory.release(message);
            }
            return Ok(Outcome::Done);
        };
        if call.storage.is_congested() {
            return Ok(blocked(message, BlockReason::Storage));
        }
        let producer = self.known_producer(by, &message, call)?;
        if producer.is_some_and(|slot| self.producers.is_duplicate(slot, message.id.sequence)) {
            return Ok(Outcome::At(call.storage.appended_end()));
        }
        let appended_end = if message.is_expired(call.now) {
            self.count_expired(place_key);
            let sequence = message.id.sequence;
            let end = self.append_dead_on_arrival(place_key, message, call)?;
            if let Some(slot) = producer {
                self.producers.stored(slot, sequence);
            }
            return Ok(Outcome::At(end));
        } else {
            call.storage.add(stored_at, &message, prioritised)?.end
        };
        if let Some(slot) = producer {
            self.producers.stored(slot, message.id.sequence);
        }
        if heard {
            let message = self.memory.insert(message);
            let publish = Deferred::Publish { topic: place_key, message, durables_too: false };
            self.deferred.push_back((appended_end, publish));
        }
        Ok(Outcome::At(appended_end))
    }

    fn send_to_several(
        &mut self,
        by: ConnectionKey,
        targets: &[PlaceKey],
        message: Message,
        call: &mut Call<'_>,
    ) -> Result<Outcome, Stop> {
        let places = targets.iter().filter_map(|&key| Some((key, self.places.get(key)?)));
        let mut to_store: Vec<(PlaceKey, DestinationKey, bool)> = Vec::new();
        let mut in_memory = Vec::new();
        for (key, place) in places {
            match place.stored_at {
                Some(stored_at) if place.stores() && message.persistent => {
                    to_store.push((key, stored_at, place.prioritised));
                    if !place.subscribers.is_empty() {
                        in_memory.push((key, true));
                    }
                }
                _ if place.is_deserted() => {}
                _ => in_memory.push((key, false)),
            }
        }
        if !in_memory.is_empty() && self.memory.is_full() {
            return Ok(blocked(message, BlockReason::Memory));
        }
        if !to_store.is_empty() && call.storage.is_congested() {
            return Ok(blocked(message, BlockReason::Storage));
        }
        let producer = if to_store.is_empty() { None } else { self.known_producer(by, &message, call)? };
        if producer.is_some_and(|slot| self.producers.is_duplicate(slot, message.id.sequence)) {
            return Ok(Outcome::At(call.storage.appended_end()));
        }
        if message.is_expired(call.now) {
            for &key in targets {
                self.count_expired(key);
            }
            return match to_store.first() {
                Some(&(key, ..)) => Ok(Outcome::At(self.append_dead_on_arrival(key, message, call)?)),
                None => Ok(Outcome::Done),
            };
        }
        let mut end = None;
        if !to_store.is_empty() {
            let copies: Vec<_> = to_store
                .iter()
                .map(|&(key, stored_at, prioritised)| (stored_at, self.copy_for(&message, key), prioritised))
                .collect();
            end = Some(call.storage.add_all(&copies)?.end);
            if let Some(slot) = producer {
                self.producers.stored(slot, message.id.sequence);
            }
        }
        for (key, is_stored) in in_memory {
            let copy = self.copy_for(&message, key);
            let copy = self.memory.insert(copy);
            match end {
                Some(end) if is_stored => {
                    let publish = Deferred::Publish { topic: key, message: copy, durables_too: false };
                    self.deferred.push_back((end, publish));
                }
                _ => {
                    self.place_in_memory(key, copy, true, call)?;
                    self.memory.release(copy);
                }
            }
        }
        Ok(end.map_or(Outcome::Done, Outcome::At))
    }

    /// The copy of a message for one of several destinations: it remembers what the client named, if that was not it.
    pub(super) fn copy_for(&self, message: &Message, place: PlaceKey) -> Message {
        let mut copy = message.clone();
        if let Some(place) = self.places.get(place)
            && place.name != copy.destination
        {
            copy.original_destination = Some(std::mem::replace(&mut copy.destination, place.name.clone()));
        }
        copy
    }

    /// The producer's place in the table of what was stored last; `None` for ids that say nothing.
    pub(super) fn known_producer(
        &mut self,
        by: ConnectionKey,
        message: &Message,
        call: &mut Call<'_>,
    ) -> Result<Option<ProducerSlot>, Stop> {
        if message.id.producer.connection.is_empty() || message.id.sequence <= 0 {
            return Ok(None);
        }
        let hint = self.connection(by)?.producer;
        let slot = self.producers.find(&message.id.producer, hint, call.storage);
        if hint != Some(slot) {
            self.connection(by)?.producer = Some(slot);
        }
        Ok(Some(slot))
    }

    /// A message that nobody stores: into the queue, or to whoever listens now. The caller keeps its own reference.
    pub(super) fn place_in_memory(
        &mut self,
        place_key: PlaceKey,
        message: MemoryKey,
        durables_too: bool,
        call: &mut Call<'_>,
    ) -> Result<(), StorageError> {
        let Some(place) = self.places.get_mut(place_key) else { return Ok(()) };
        let Some(line) = place.queue else {
            return self.publish(place_key, message, durables_too, call);
        };
        place.counts.enqueued += 1;
        self.memory.retain(message);
        self.enqueue_in_memory(line, message, call)
    }

    /// Into a line. Takes over the caller's reference.
    fn enqueue_in_memory(
        &mut self,
        line_key: LineKey,
        message: MemoryKey,
        call: &mut Call<'_>,
    ) -> Result<(), StorageError> {
        let Some((priority, expiration)) = self.memory.get(message).map(|m| (m.priority, m.expiration_ms))
        else {
            return Ok(());
        };
        let Some(line) = self.lines.get_mut(line_key) else {
            self.memory.release(message);
            return Ok(());
        };
        let prioritised = self.places.get(line.place).is_some_and(|place| place.prioritised);
        let tier = Tier::of(priority, prioritised);
        let position = line.position_in_memory(tier);
        if expiration > 0 {
            self.plan_sweep(line_key, expiration.max(call.now));
        }
        // The quick way: nothing waits, and somebody has room.
        let Some(line) = self.lines.get_mut(line_key) else { return Ok(()) };
        if !line.starved
            && !line.scheduled
            && !line.may_have_more()
            && Self::is_open(line, &self.options.limits)
            && let Some((turn, consumer)) = Self::choose(line, &self.consumers)
        {
            line.turn = turn;
            let taken = Taken { slot: position.slot, tier, body: Body::Memory(message), returns: 0 };
            self.deliver(line_key, consumer, &taken, call);
            return Ok(());
        }
        line.put(position, Body::Memory(message), 0);
        self.something_came(line_key, call)
    }

    /// To a topic's subscribers that are there, and into its durable subscriptions if it is not stored for them.
    pub(super) fn publish(
        &mut self,
        topic: PlaceKey,
        message: MemoryKey,
        durables_too: bool,
        call: &mut Call<'_>,
    ) -> Result<(), StorageError> {
        let Some(place) = self.places.get_mut(topic) else { return Ok(()) };
        if durables_too {
            place.counts.enqueued += 1;
        }
        // Indexes, because delivering may not change the list but borrows everything.
        let mut index = 0;
        while let Some(&subscriber) = self.places.get(topic).and_then(|place| place.subscribers.get(index)) {
            index += 1;
            self.publish_to(subscriber, message, call);
        }
        if !durables_too {
            return Ok(());
        }
        let mut index = 0;
        while let Some(&line) = self.places.get(topic).and_then(|place| place.durables.get(index)) {
            index += 1;
            if self.keeps_for_durable(topic, line, message) {
                self.memory.retain(message);
                self.enqueue_in_memory(line, message, call)?;
            }
        }
        Ok(())
    }

    fn publish_to(&mut self, subscriber: ConsumerKey, message: MemoryKey, call: &mut Call<'_>) {
        let Some(content) = self.memory.get(message) else { return };
        let Some(consumer) = self.consumers.get_mut(subscriber) else { return };
        if !consumer.filter.takes_all() && !consumer.filter.takes(content) {
            return;
        }
        self.memory.retain(message);
        consumer.backlog.push_back((message, 0));
        self.feed_backlog(subscriber, call);
    }

    /// Does a durable subscription get a message that is not stored?
    fn keeps_for_durable(&mut self, topic: PlaceKey, line: LineKey, message: MemoryKey) -> bool {
        let Some(content) = self.memory.get(message) else { return false };
        let Some(line) = self.lines.get(line) else { return false };
        let Some(durable) = line.subscription.as_ref().and_then(|key| self.durables.get(key)) else {
            return false;
        };
        let online = durable.consumer.and_then(|consumer| self.consumers.get(consumer));
        let filter = online.map_or(&durable.offline_filter, |consumer| &consumer.filter);
        if !filter.takes(content) {
            return false;
        }
        let room = online.is_some() || self.memory.bytes() <= self.options.limits.offline_bytes_max;
        if !room && let Some(place) = self.places.get_mut(topic) {
            place.counts.dropped += 1;
        }
        room
    }

    /// Delivers what waits for a topic's subscriber, as far as it has room.
    pub(super) fn feed_backlog(&mut self, key: ConsumerKey, call: &mut Call<'_>) {
        let Some(consumer) = self.consumers.get_mut(key) else { return };
        let Some(connection) = self.connections.get_mut(consumer.connection) else { return };
        while consumer.has_room()
            && let Some(&(message, returns)) = consumer.backlog.front()
        {
            if self.steps_left == 0 {
                if !std::mem::replace(&mut consumer.backlog_scheduled, true) {
                    self.work.push_back(super::Work::Backlog(key));
                }
                return;
            }
            self.steps_left -= 1;
            consumer.backlog.pop_front();
            let Some(content) = self.memory.get(message) else { continue };
            if content.is_expired(call.now) {
                self.memory.release(message);
                continue;
            }
            connection.tag_last += 1;
            let tag = connection.tag_last;
            consumer.deliveries.push(Out {
                tag,
                from: Origin::Topic(message),
                returns,
                state: OutState::Unacknowledged,
            });
            consumer.outstanding += 1;
            consumer.delivered += 1;
            let stored = u32::try_from(content.redelivery_counter).unwrap_or(0);
            call.fx.push(Effect::Deliver {
                connection: consumer.connection,
                delivery: Delivery {
                    consumer: consumer.number,
                    tag,
                    source: Source::Memory(Arc::clone(content)),
                    redelivery_counter: stored.saturating_add(returns),
                },
            });
        }
    }

    pub(super) fn count_enqueued(&mut self, place: PlaceKey) {
        if let Some(place) = self.places.get_mut(place) {
            place.counts.enqueued += 1;
        }
    }

    pub(super) fn count_expired(&mut self, place: PlaceKey) {
        if let Some(place) = self.places.get_mut(place) {
            place.counts.expired += 1;
        }
    }

    /// Carries out what waited for the commit position.
    pub(super) fn run_deferred(&mut self, call: &mut Call<'_>) -> Result<(), StorageError> {
        if self.deferred.is_empty() {
            return Ok(());
        }
        let committed = call.storage.committed();
        while let Some(&(at, _)) = self.deferred.front()
            && at <= committed
            && let Some((_, deferred)) = self.deferred.pop_front()
        {
            self.carry_out(deferred, call)?;
        }
        Ok(())
    }

    pub(super) fn carry_out(&mut self, deferred: Deferred, call: &mut Call<'_>) -> Result<(), StorageError> {
        match deferred {
            Deferred::Publish { topic, message, durables_too } => {
                self.publish(topic, message, durables_too, call)?;
                self.memory.release(message);
            }
            Deferred::Enqueue { queue, message } => {
                self.place_in_memory(queue, message, true, call)?;
                self.memory.release(message);
            }
            Deferred::Consume { line, slot } => self.consume_from_memory(line, slot),
            Deferred::Release { message } => self.memory.release(message),
            Deferred::Return { line, slot } => self.return_to_line(line, slot),
            Deferred::Kill { line, slot } => self.kill(line, slot, call),
        }
        Ok(())
    }
}

fn blocked(message: Message, reason: BlockReason) -> Outcome {
    Outcome::Blocked(Box::new(Request::Send { message, transaction: None }), reason)
}
