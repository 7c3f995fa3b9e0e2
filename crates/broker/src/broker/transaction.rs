//! Local transactions: sends and acknowledgements gather on the connection and are appended as one at the commit.
//!
//! A delivery that is acknowledged in an open transaction stays in flight, but its consumer gets room for another: otherwise a
//! transaction over more messages than the prefetch could never end. (ActiveMQ extends the prefetch for the same reason.)

use kahawai_message::front::{Ack, AckKind, Refusal, Request, TransactionNumber};
use kahawai_message::storage::Operation;
use kahawai_message::{Message, TransactionId};

use super::{Broker, Call, Deferred, Stop, Work};
use crate::connection::{Targets, TransactedAck, TransactedSend, Transaction};
use crate::consumer::{From as Origin, OutState};
use crate::effect::{BlockReason, Outcome};
use crate::line::{Body, HeldState};
use crate::memory::footprint;
use crate::slab::{ConnectionKey, ConsumerKey, PlaceKey};

/// What an acknowledgement counts for in the size of a transaction, bytes.
const ACK_BYTES: u64 = 200;

impl Broker {
    pub(super) fn begin_transaction(
        &mut self,
        by: ConnectionKey,
        number: TransactionNumber,
    ) -> Result<Outcome, Stop> {
        let open_max = self.options.limits.transactions_per_connection_max;
        let connection = self.connection(by)?;
        if connection.transactions.contains_key(&number) {
            return Err(Refusal::Invalid(format!("transaction {} is open already", number.0)).into());
        }
        if connection.transactions.len() >= open_max {
            return Err(Refusal::Limit("too many open transactions".into()).into());
        }
        connection.transactions.insert(number, Transaction::default());
        Ok(Outcome::Done)
    }

    /// Counts what a transaction holds, and refuses what would be too much.
    fn grow(
        &mut self,
        by: ConnectionKey,
        number: TransactionNumber,
        bytes: u64,
    ) -> Result<&mut Transaction, Stop> {
        let limits = &self.options.limits;
        let (bytes_max, all_bytes_max) = (limits.transaction_bytes_max, limits.transactions_bytes_max);
        let all = self.transactions_bytes + bytes;
        let connection = match self.connections.get_mut(by) {
            Some(connection) => connection,
            None => return Err(Refusal::NotFound("the connection is closed".into()).into()),
        };
        let transaction =
            connection.transactions.get_mut(&number).ok_or_else(|| Self::no_such_transaction(number))?;
        if transaction.failed || transaction.bytes + bytes > bytes_max || all > all_bytes_max {
            transaction.failed = true;
            let text = format!("transaction {} is too large and can only be rolled back", number.0);
            return Err(Refusal::Limit(text).into());
        }
        transaction.bytes += bytes;
        self.transactions_bytes = all;
        Ok(transaction)
    }

    pub(super) fn send_transacted(
        &mut self,
        by: ConnectionKey,
        number: TransactionNumber,
        mut message: Message,
        call: &mut Call<'_>,
    ) -> Result<Outcome, Stop> {
        let targets = self.route(by, &message.destination, call)?;
        self.prepare(by, &mut message, call.now)?;
        // What it sends again is recognised now: at the commit a later message may have been stored already.
        let stored = |key: &PlaceKey| self.places.get(*key).is_some_and(|place| place.stores());
        let is_stored = message.persistent
            && match &targets {
                Targets::One(place) => stored(place),
                Targets::Several(places) => places.iter().any(stored),
            };
        if is_stored
            && let Some(slot) = self.known_producer(by, &message, call)?
            && self.producers.is_duplicate(slot, message.id.sequence)
        {
            self.grow(by, number, 0)?.repeats = true;
            return Ok(Outcome::Done);
        }
        let bytes = footprint(&message);
        self.grow(by, number, bytes)?.sends.push(TransactedSend { message, targets });
        Ok(Outcome::Done)
    }

    pub(super) fn acknowledge_transacted(
        &mut self,
        by: ConnectionKey,
        number: TransactionNumber,
        acks: Vec<Ack>,
        call: &mut Call<'_>,
    ) -> Result<Outcome, Stop> {
        if !self.connection(by)?.transactions.contains_key(&number) {
            return Err(Self::no_such_transaction(number));
        }
        let mut to_feed: Vec<ConsumerKey> = Vec::new();
        let mut refusal = None;
        for ack in acks {
            let Some(key) = self.connection(by)?.consumer(ack.consumer) else { continue };
            let found = self.consumers.get_mut(key).and_then(|consumer| consumer.deliveries.get_mut(ack.tag));
            if found.is_none_or(|out| out.state != OutState::Unacknowledged) {
                continue;
            }
            // Those before stay part of the transaction.
            if let Err(stop) = self.grow(by, number, ACK_BYTES) {
                refusal = Some(stop);
                break;
            }
            let Some(transacted) = self.hold_in_transaction(key, ack) else { continue };
            if let Some(transaction) = self.connection(by)?.transactions.get_mut(&number) {
                transaction.acks.push(transacted);
            }
            if to_feed.last() != Some(&key) {
                to_feed.push(key);
            }
        }
        for key in to_feed {
            self.feed(key, call)?;
        }
        refusal.map_or(Ok(Outcome::Done), Err)
    }

    fn hold_in_transaction(&mut self, key: ConsumerKey, ack: Ack) -> Option<TransactedAck> {
        let consumer = self.consumers.get_mut(key)?;
        let out = consumer.deliveries.get_mut(ack.tag)?;
        out.state = OutState::InTransaction;
        let from = out.from;
        consumer.outstanding -= 1;
        if let Origin::Line(line, slot) = from
            && let Some(held) = self.lines.get_mut(line).and_then(|line| line.held.get_mut(&slot))
        {
            held.state = HeldState::InTransaction;
        }
        Some(TransactedAck {
            consumer: key,
            tag: ack.tag,
            from,
            id: ack.id,
            kind: ack.kind,
            by: consumer.by.clone(),
        })
    }

    pub(super) fn roll_back(
        &mut self,
        by: ConnectionKey,
        number: TransactionNumber,
    ) -> Result<Outcome, Stop> {
        let transaction = self.connection(by)?.transactions.remove(&number);
        let transaction = transaction.ok_or_else(|| Self::no_such_transaction(number))?;
        self.undo(transaction);
        Ok(Outcome::Done)
    }

    /// Its sends vanish. Its acknowledged deliveries are unacknowledged again, or go back where their consumer is gone.
    pub(super) fn undo(&mut self, transaction: Transaction) {
        self.transactions_bytes -= transaction.bytes;
        for ack in transaction.acks {
            let out = self.consumers.get_mut(ack.consumer).and_then(|consumer| {
                let out = consumer.deliveries.get_mut(ack.tag)?;
                out.state = OutState::Unacknowledged;
                consumer.outstanding += 1;
                Some(())
            });
            let Origin::Line(line, slot) = ack.from else { continue };
            match out {
                Some(()) => {
                    if let Some(held) = self.lines.get_mut(line).and_then(|line| line.held.get_mut(&slot)) {
                        held.state = HeldState::Delivered;
                    }
                }
                None => self.return_to_line(line, slot),
            }
        }
    }

    pub(super) fn commit(
        &mut self,
        by: ConnectionKey,
        number: TransactionNumber,
        call: &mut Call<'_>,
    ) -> Result<Outcome, Stop> {
        let connection = self.connection(by)?;
        let open = connection.transactions.get(&number).ok_or_else(|| Self::no_such_transaction(number))?;
        if !open.failed && !open.sends.is_empty() && call.storage.is_congested() {
            let request = Request::Commit { transaction: number };
            return Ok(Outcome::Blocked(Box::new(request), BlockReason::Storage));
        }
        connection.transaction_last += 1;
        let value = connection.transaction_last;
        let id = TransactionId::Local { connection: connection.info.connection_id.clone(), value };
        let Some(mut transaction) = connection.transactions.remove(&number) else {
            return Err(Self::no_such_transaction(number));
        };
        if transaction.failed {
            self.undo(transaction);
            let text = format!("transaction {} was too large and is rolled back", number.0);
            return Err(Refusal::Limit(text).into());
        }
        let sends = std::mem::take(&mut transaction.sends);
        let mut producers = Vec::new();
        let mut operations = Vec::new();
        let mut deferred = Vec::new();
        let gathered =
            self.gather_sends(by, &id, sends, &mut producers, &mut operations, &mut deferred, call);
        if let Err(stop) = gathered {
            self.forget_deferred(deferred);
            self.undo(transaction);
            return Err(stop);
        }
        self.gather_acks(&transaction, &mut operations, &mut deferred);
        let end = if operations.is_empty() {
            None
        } else {
            match call.storage.transaction(&id, &operations) {
                Ok(end) => Some(end),
                Err(error) => {
                    self.forget_deferred(deferred);
                    self.undo(transaction);
                    return Err(error.into());
                }
            }
        };
        self.transactions_bytes -= transaction.bytes;
        for (slot, sequence) in producers {
            self.producers.stored(slot, sequence);
        }
        self.settle_acks(&transaction);
        match end {
            Some(end) => self.deferred.extend(deferred.into_iter().map(|deferred| (end, deferred))),
            None => {
                for deferred in deferred {
                    self.carry_out(deferred, call)?;
                }
            }
        }
        match end {
            Some(end) => Ok(Outcome::At(end)),
            // What was sent before is appended, and perhaps not committed yet.
            None if transaction.repeats => Ok(Outcome::At(call.storage.appended_end())),
            None => Ok(Outcome::Done),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "what a commit is made of, gathered in the caller's lists")]
    fn gather_sends(
        &mut self,
        by: ConnectionKey,
        id: &TransactionId,
        sends: Vec<TransactedSend>,
        producers: &mut Vec<(crate::producers::ProducerSlot, i64)>,
        operations: &mut Vec<Operation>,
        deferred: &mut Vec<Deferred>,
        call: &mut Call<'_>,
    ) -> Result<(), Stop> {
        for TransactedSend { mut message, targets } in sends {
            message.transaction_id = Some(id.clone());
            let one;
            let mut places: &[PlaceKey] = match &targets {
                Targets::One(place) => {
                    one = [*place];
                    &one
                }
                Targets::Several(places) => places,
            };
            let again;
            if places.iter().any(|place| self.places.get(*place).is_none()) {
                // Something was removed meanwhile; it may be made again.
                again = match self.route(by, &message.destination, call)? {
                    Targets::One(place) => vec![place],
                    Targets::Several(places) => places.to_vec(),
                };
                places = &again;
            }
            let mut is_stored = false;
            for &key in places {
                let Some(place) = self.places.get(key) else { continue };
                let (is_queue, heard, prioritised) =
                    (place.queue.is_some(), !place.subscribers.is_empty(), place.prioritised);
                let stored_at = if message.persistent && place.stores() { place.stored_at } else { None };
                let copy = self.copy_for(&message, key);
                if let Some(destination) = stored_at {
                    is_stored = true;
                    if heard {
                        let message = self.memory.insert(copy.clone());
                        deferred.push(Deferred::Publish { topic: key, message, durables_too: false });
                    }
                    operations.push(Operation::Add { destination, message: copy, prioritised });
                } else {
                    let message = self.memory.insert(copy);
                    deferred.push(match is_queue {
                        true => Deferred::Enqueue { queue: key, message },
                        false => Deferred::Publish { topic: key, message, durables_too: true },
                    });
                }
            }
            if is_stored && let Some(slot) = self.known_producer(by, &message, call)? {
                producers.push((slot, message.id.sequence));
            }
        }
        Ok(())
    }

    fn gather_acks(
        &self,
        transaction: &Transaction,
        operations: &mut Vec<Operation>,
        deferred: &mut Vec<Deferred>,
    ) {
        for ack in &transaction.acks {
            let (line, slot) = match ack.from {
                Origin::Line(line, slot) => (line, slot),
                // It goes back to its consumer, and to nobody else.
                Origin::Topic(_) if ack.kind == AckKind::Released => continue,
                Origin::Topic(message) => {
                    if self.consumers.get(ack.consumer).is_some() {
                        deferred.push(Deferred::Release { message });
                    }
                    continue;
                }
                Origin::Browsed => continue,
            };
            let Some(found) = self.lines.get(line) else { continue };
            let Some(held) = found.held.get(&slot) else { continue };
            match (ack.kind, held.body, found.stored_at) {
                (AckKind::Released, ..) => deferred.push(Deferred::Return { line, slot }),
                (AckKind::Poison, ..) => deferred.push(Deferred::Kill { line, slot }),
                (AckKind::Consumed, Body::Memory(_), _) => deferred.push(Deferred::Consume { line, slot }),
                (AckKind::Consumed, Body::Stored(entry), Some(destination)) => {
                    let (sequence, id, by) = (entry.sequence, ack.id.clone(), ack.by.clone());
                    operations.push(match &found.subscription {
                        None => Operation::Remove { destination, sequence, id, by },
                        Some(key) => {
                            let subscription = (**key).clone();
                            Operation::Acknowledge {
                                destination,
                                subscription,
                                sequence,
                                id,
                                unmatched: false,
                                by,
                            }
                        }
                    });
                }
                (AckKind::Consumed, Body::Stored(_), None) => {}
            }
        }
    }

    /// The commit is appended: no longer the consumers' business.
    fn settle_acks(&mut self, transaction: &Transaction) {
        for ack in &transaction.acks {
            if let Some(consumer) = self.consumers.get_mut(ack.consumer) {
                let out = consumer.deliveries.remove(ack.tag);
                consumer.acknowledged += 1;
                if let (Origin::Topic(message), AckKind::Released, Some(out)) = (ack.from, ack.kind, out) {
                    consumer.backlog.push_front((message, out.returns.saturating_add(1)));
                    if !std::mem::replace(&mut consumer.backlog_scheduled, true) {
                        self.work.push_back(Work::Backlog(ack.consumer));
                    }
                }
            }
            if let Origin::Line(line, slot) = ack.from
                && let Some(line) = self.lines.get_mut(line)
                && let Some(held) = line.held.get_mut(&slot)
            {
                held.state = HeldState::Acknowledged;
                if ack.kind == AckKind::Consumed && matches!(held.body, Body::Stored(_)) {
                    line.acks_pending += 1;
                }
            }
        }
    }

    fn forget_deferred(&mut self, deferred: Vec<Deferred>) {
        for deferred in deferred {
            if let Deferred::Publish { message, .. } | Deferred::Enqueue { message, .. } = deferred {
                self.memory.release(message);
            }
        }
    }
}
