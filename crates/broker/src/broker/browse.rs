//! Browsers: a walk through queues that takes nothing. Each shows what the store holds, in delivery order and in flight or
//! not, then what is in memory; at the end of the last, the browser is told.

use std::collections::VecDeque;
use std::sync::Arc;

use kahawai_message::front::{Delivery, Event, Source};
use kahawai_message::storage::{Entry, StorageError, Tier};

use super::{Broker, Call, Work};
use crate::consumer::{BrowseStep, From as Origin, Out, OutState};
use crate::effect::{Effect, ScanRequest, Scanner, Verdict};
use crate::line::{Body, Candidate, Cursor, HeldState, Line, Position, Slot};
use crate::slab::{ConsumerKey, LineKey, MemoryKey};

impl Broker {
    pub(super) fn browsed(
        &mut self,
        request: &ScanRequest,
        key: ConsumerKey,
        verdicts: &[Verdict],
        call: &mut Call<'_>,
    ) -> Result<(), StorageError> {
        let Some(browse) = self.consumers.get_mut(key).and_then(|consumer| consumer.browse.as_mut()) else {
            return Ok(());
        };
        browse.scanning = false;
        let matched =
            request.entries.iter().zip(verdicts).filter(|(_, verdict)| **verdict == Verdict::Matches);
        browse.matched.extend(matched.map(|(entry, _)| *entry));
        self.browse(key, call)
    }

    /// Goes on as far as the browser has room.
    pub(super) fn browse(&mut self, key: ConsumerKey, call: &mut Call<'_>) -> Result<(), StorageError> {
        loop {
            let Some(consumer) = self.consumers.get_mut(key) else { return Ok(()) };
            let (has_room, connection, number) = (consumer.has_room(), consumer.connection, consumer.number);
            let Some(browse) = consumer.browse.as_mut() else { return Ok(()) };
            if browse.ended || !has_room {
                return Ok(());
            }
            if self.steps_left == 0 {
                if !std::mem::replace(&mut browse.scheduled, true) {
                    self.work.push_back(Work::Browse(key));
                }
                return Ok(());
            }
            self.steps_left -= 1;
            let Some(&line) = browse.lines.front() else {
                browse.ended = true;
                call.fx.push(Effect::Event { connection, event: Event::BrowseEnd(number) });
                return Ok(());
            };
            if let Some(entry) = browse.matched.pop_front() {
                self.show_stored(key, line, entry, call);
            } else if browse.scanning {
                return Ok(());
            } else {
                self.browse_step(key, line, call)?;
            }
        }
    }

    fn browse_step(
        &mut self,
        key: ConsumerKey,
        line_key: LineKey,
        call: &mut Call<'_>,
    ) -> Result<(), StorageError> {
        let Some(consumer) = self.consumers.get_mut(key) else { return Ok(()) };
        let filter = consumer.filter.clone();
        let Some(browse) = consumer.browse.as_mut() else { return Ok(()) };
        let Some(line) = self.lines.get(line_key) else {
            browse.lines.pop_front();
            browse.step = BrowseStep::Begin;
            return Ok(());
        };
        match &mut browse.step {
            BrowseStep::Begin => {
                let left = line.stored_at.map_or(0, |at| call.storage.count(at));
                browse.step = BrowseStep::Stored { cursors: [Cursor { next: 0, more: true }; 3], left };
            }
            BrowseStep::Stored { cursors, left } => {
                let wanted = if filter.takes_all() { 1 } else { self.options.limits.scan_entries_max };
                let (mut shown, mut expired) = (Vec::new(), Vec::new());
                let ended = walk(line, cursors, left, wanted, &mut shown, &mut expired, call)?;
                if ended {
                    browse.step = BrowseStep::Waiting { from: Position::FIRST };
                }
                match (filter.takes_all(), line.stored_at) {
                    (true, _) => browse.matched.extend(shown),
                    (false, Some(destination)) if !shown.is_empty() => {
                        browse.scanning = true;
                        call.fx.push(Effect::Scan(ScanRequest {
                            destination,
                            entries: shown,
                            selector: filter.selector,
                            no_local: filter.no_local,
                            line: line_key,
                            scanner: Scanner::Browser(key),
                        }));
                    }
                    (false, _) => {}
                }
                for entry in expired {
                    if self.loads_under_way < self.options.limits.loads_max
                        && let Some(line) = self.lines.get_mut(line_key)
                    {
                        let taken = line.take_entry(entry);
                        self.expire_taken(line_key, taken, call);
                    }
                }
            }
            BrowseStep::Waiting { from } => {
                let Some((&position, waiting)) = line.waiting.range(*from..).next() else {
                    let messages = held_in_memory(line);
                    messages.iter().for_each(|message| self.memory.retain(*message));
                    browse.step = BrowseStep::Held { messages };
                    return Ok(());
                };
                *from = position.next();
                if let Body::Memory(message) = waiting.body {
                    if self.memory.get(message).is_some_and(|content| content.is_expired(call.now)) {
                        self.expire_next(line_key, Candidate::Waiting(position), call);
                    } else if self.memory.get(message).is_some_and(|content| filter.takes(content)) {
                        self.show_memory(key, message, call);
                    }
                }
            }
            BrowseStep::Held { messages } => match messages.pop_front() {
                Some(message) => {
                    let shown = self.memory.get(message);
                    if shown.is_some_and(|content| !content.is_expired(call.now) && filter.takes(content)) {
                        self.show_memory(key, message, call);
                    }
                    self.memory.release(message);
                }
                None => {
                    browse.lines.pop_front();
                    browse.step = BrowseStep::Begin;
                }
            },
        }
        Ok(())
    }

    fn show_stored(&mut self, key: ConsumerKey, line: LineKey, entry: Entry, call: &mut Call<'_>) {
        let Some(line) = self.lines.get(line) else { return };
        let Some(at) = line.stored_at else { return };
        let slot = Slot::stored(entry.sequence);
        let returns = line
            .held
            .get(&slot)
            .map(|held| held.returns)
            .or_else(|| line.waiting.get(&Position::of(&entry)).map(|waiting| waiting.returns))
            .unwrap_or(0);
        let count = entry.redelivery_counter.saturating_add(returns);
        self.show(key, Source::Stored(at, entry), count, call);
    }

    fn show_memory(&mut self, key: ConsumerKey, message: MemoryKey, call: &mut Call<'_>) {
        let Some(content) = self.memory.get(message) else { return };
        let count = u32::try_from(content.redelivery_counter).unwrap_or(0);
        self.show(key, Source::Memory(Arc::clone(content)), count, call);
    }

    fn show(&mut self, key: ConsumerKey, source: Source, redelivery_counter: u32, call: &mut Call<'_>) {
        let Some(consumer) = self.consumers.get_mut(key) else { return };
        let Some(connection) = self.connections.get_mut(consumer.connection) else { return };
        connection.tag_last += 1;
        let tag = connection.tag_last;
        let state = OutState::Unacknowledged;
        consumer.deliveries.push(Out { tag, from: Origin::Browsed, returns: 0, state });
        consumer.outstanding += 1;
        consumer.delivered += 1;
        let delivery = Delivery { consumer: consumer.number, tag, source, redelivery_counter };
        call.fx.push(Effect::Deliver { connection: consumer.connection, delivery });
    }
}

/// Collects the next `wanted` stored messages that may be shown. `true` at the end of the store.
fn walk(
    line: &Line,
    cursors: &mut [Cursor; 3],
    left: &mut u64,
    wanted: usize,
    shown: &mut Vec<Entry>,
    expired: &mut Vec<Entry>,
    call: &mut Call<'_>,
) -> Result<bool, StorageError> {
    for _ in 0..wanted {
        let mut found = None;
        for tier in Tier::ALL {
            let cursor = &mut cursors[tier as usize];
            if *left > 0 && cursor.more {
                found = line.next_in_store(tier, cursor.next, call.storage)?;
                match &found {
                    Some(entry) => cursor.next = entry.sequence + 1,
                    None => cursor.more = false,
                }
                if found.is_some() {
                    break;
                }
            }
        }
        let Some(entry) = found else { return Ok(true) };
        *left -= 1;
        let state = line.held.get(&Slot::stored(entry.sequence)).map(|held| held.state);
        match state {
            None if entry.expiration_ms > 0 && call.now >= entry.expiration_ms => expired.push(entry),
            None | Some(HeldState::Delivered | HeldState::InTransaction) => shown.push(entry),
            Some(HeldState::Acknowledged | HeldState::Dying | HeldState::Unreadable) => {}
        }
    }
    Ok(false)
}

/// Messages in memory that consumers have, in delivery order.
fn held_in_memory(line: &Line) -> VecDeque<MemoryKey> {
    let mut held: Vec<_> = line
        .held
        .iter()
        .filter(|(_, held)| matches!(held.state, HeldState::Delivered | HeldState::InTransaction))
        .filter_map(|(&slot, held)| match held.body {
            Body::Memory(message) => Some((Position { tier: held.tier, slot }, message)),
            Body::Stored(_) => None,
        })
        .collect();
    held.sort_unstable_by_key(|(position, _)| *position);
    held.into_iter().map(|(_, message)| message).collect()
}
