//! Acknowledgements: appended at once, in force when committed. A consumer gets room for more as soon as it acknowledges.

use kahawai_message::MessageId;
use kahawai_message::front::{Ack, AckKind, ConsumerNumber, DeliveryTag, Refusal};
use kahawai_message::storage::{AckBy, StorageError};
use kahawai_types::Lsn;

use super::{Broker, Call, Stop};
use crate::consumer::{From as Origin, OutState};
use crate::effect::Outcome;
use crate::line::{Body, HeldState, Slot};
use crate::slab::{ConnectionKey, ConsumerKey, LineKey};

impl Broker {
    /// Acknowledgements of deliveries that are not (or no longer) the consumer's are passed over: their consumer was closed,
    /// or their queue is gone.
    pub(super) fn acknowledge(
        &mut self,
        by: ConnectionKey,
        acks: &[Ack],
        call: &mut Call<'_>,
    ) -> Result<Outcome, Stop> {
        let mut end = None;
        let mut last: Option<ConsumerKey> = None;
        for ack in acks {
            let Some(consumer) = self.connection(by)?.consumer(ack.consumer) else { continue };
            if let Some(last) = last
                && last != consumer
            {
                self.feed(last, call)?;
            }
            last = Some(consumer);
            end = end.max(self.acknowledge_one(consumer, ack, call)?);
        }
        if let Some(last) = last {
            self.feed(last, call)?;
        }
        Ok(end.map_or(Outcome::Done, Outcome::At))
    }

    fn acknowledge_one(
        &mut self,
        key: ConsumerKey,
        ack: &Ack,
        call: &mut Call<'_>,
    ) -> Result<Option<Lsn>, StorageError> {
        let Some(consumer) = self.consumers.get_mut(key) else { return Ok(None) };
        // One that is part of a transaction is decided there.
        if consumer.deliveries.get_mut(ack.tag).is_none_or(|out| out.state != OutState::Unacknowledged) {
            return Ok(None);
        }
        let Some(out) = consumer.deliveries.remove(ack.tag) else { return Ok(None) };
        consumer.outstanding -= 1;
        consumer.acknowledged += 1;
        match (out.from, ack.kind) {
            (Origin::Browsed, _) => Ok(None),
            (Origin::Topic(message), AckKind::Released) => {
                consumer.backlog.push_front((message, out.returns.saturating_add(1)));
                Ok(None)
            }
            (Origin::Topic(message), AckKind::Consumed | AckKind::Poison) => {
                self.memory.release(message);
                Ok(None)
            }
            (Origin::Line(line, slot), AckKind::Consumed) => {
                let appended = Self::append_ack(&mut self.lines, line, slot, &ack.id, &consumer.by, call)?;
                if appended.is_none() {
                    self.consume_from_memory(line, slot);
                }
                Ok(appended)
            }
            (Origin::Line(line, slot), AckKind::Released) => {
                self.return_to_line(line, slot);
                Ok(None)
            }
            (Origin::Line(line, slot), AckKind::Poison) => {
                self.kill(line, slot, call);
                Ok(None)
            }
        }
    }

    /// Appends the consumption of a stored message; `None` for one in memory, which is left alone.
    fn append_ack(
        lines: &mut crate::slab::Slab<LineKey, Box<crate::line::Line>>,
        key: LineKey,
        slot: Slot,
        id: &MessageId,
        by: &AckBy,
        call: &mut Call<'_>,
    ) -> Result<Option<Lsn>, StorageError> {
        let Some(line) = lines.get_mut(key) else { return Ok(None) };
        let Some(held) = line.held.get_mut(&slot) else { return Ok(None) };
        let (Body::Stored(entry), Some(at)) = (held.body, line.stored_at) else { return Ok(None) };
        let end = match &line.subscription {
            None => call.storage.remove(at, entry.sequence, id, by)?,
            Some(subscription) => {
                call.storage.acknowledge(at, subscription, entry.sequence, id, by, false)?
            }
        };
        held.state = HeldState::Acknowledged;
        line.acks_pending += 1;
        Ok(Some(end))
    }

    /// A message in memory was consumed: it is gone now.
    pub(super) fn consume_from_memory(&mut self, key: LineKey, slot: Slot) {
        let Some(line) = self.lines.get_mut(key) else { return };
        if let Some(held) = line.held.get(&slot)
            && let Body::Memory(message) = held.body
        {
            line.held.remove(&slot);
            self.memory.release(message);
            if let Some(place) = self.places.get_mut(line.place) {
                place.counts.dequeued += 1;
            }
        }
    }

    /// The node could not read a delivered message from the journal. If the store still has it, it is set aside, counted as
    /// unreadable, and neither delivered again nor removed. Its consumer gets room for another.
    ///
    /// # Errors
    ///
    /// The store failed: the node must stop.
    pub fn delivery_unreadable(
        &mut self,
        now: kahawai_message::Millis,
        connection: ConnectionKey,
        consumer: ConsumerNumber,
        tag: DeliveryTag,
        storage: &mut dyn kahawai_message::storage::Storage,
        fx: &mut Vec<crate::Effect>,
    ) -> Result<(), StorageError> {
        let call = &mut self.begin(now, storage, fx);
        let key = self.connections.get_mut(connection).and_then(|connection| connection.consumer(consumer));
        if let Some(key) = key
            && let Some(consumer) = self.consumers.get_mut(key)
            && let Some(out) = consumer.deliveries.remove(tag)
        {
            if out.state == OutState::Unacknowledged {
                consumer.outstanding -= 1;
            }
            match out.from {
                Origin::Line(line, slot) => {
                    if let Some(held) = self.lines.get_mut(line).and_then(|line| line.held.get_mut(&slot)) {
                        held.state = HeldState::Unreadable;
                    }
                }
                Origin::Topic(message) => self.memory.release(message),
                Origin::Browsed => {}
            }
            self.feed(key, call)?;
        }
        self.finish(call)
    }

    /// A data file can be read again: what could not be read is delivered.
    ///
    /// # Errors
    ///
    /// The store failed: the node must stop.
    pub fn retry_unreadable(
        &mut self,
        now: kahawai_message::Millis,
        storage: &mut dyn kahawai_message::storage::Storage,
        fx: &mut Vec<crate::Effect>,
    ) -> Result<(), StorageError> {
        let call = &mut self.begin(now, storage, fx);
        let keys: Vec<LineKey> = self.lines.keys().collect();
        for key in keys {
            let Some(line) = self.lines.get_mut(key) else { continue };
            if line.give_back_unreadable() {
                self.schedule(key);
            }
        }
        self.finish(call)
    }

    /// An acknowledgement is committed.
    pub(super) fn settled(&mut self, key: LineKey, sequence: u64) {
        let Some(line) = self.lines.get_mut(key) else { return };
        let held = line.forget(sequence);
        if held.is_some_and(|held| held.state == HeldState::Acknowledged) {
            line.acks_pending = line.acks_pending.saturating_sub(1);
        }
        if let Some(place) = self.places.get_mut(line.place) {
            place.counts.dequeued += 1;
        }
        // Not at every single one, once it was too many.
        if line.stalled && line.acks_pending <= self.options.limits.acks_pending_max / 2 {
            line.stalled = false;
            self.schedule(key);
        }
    }

    pub(super) fn no_such_transaction(number: kahawai_message::front::TransactionNumber) -> Stop {
        Stop::Refused(Refusal::NotFound(format!("transaction {} is not open", number.0)))
    }
}
