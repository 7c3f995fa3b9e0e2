//! Dispatch: from a line to whichever consumer has room.
//!
//! A line looks for a consumer when something comes; a consumer looks at its lines when it gets room. In between a line is
//! marked `starved`, so that a growing backlog costs nothing per message and an acknowledgement looks at nobody else.

use std::ops::Bound;
use std::sync::Arc;

use kahawai_message::Millis;
use kahawai_message::front::{Delivery, Source};
use kahawai_message::storage::StorageError;

use super::{Broker, Call, Work};
use crate::consumer::{Consumer, From as Origin, Out, OutState};
use crate::effect::Effect;
use crate::limits::Limits;
use crate::line::{Body, Candidate, HeldState, Line, Slot, Taken};
use crate::memory::MemoryMessages;
use crate::slab::{ConsumerKey, LineKey, Slab};

/// How an attempt to empty a line ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Filled {
    /// Nothing waits.
    Empty,
    /// Nobody has room, or as much as was asked is delivered.
    Enough,
    /// It must be looked at again; that is arranged.
    Later,
}

impl Broker {
    /// Does what other calls left, as far as this call may.
    pub(super) fn work_off(&mut self, call: &mut Call<'_>) -> Result<(), StorageError> {
        while self.steps_left > 0
            && let Some(work) = self.work.pop_front()
        {
            match work {
                Work::Line(key) => {
                    if let Some(line) = self.lines.get_mut(key) {
                        line.scheduled = false;
                        self.dispatch(key, call)?;
                    }
                }
                Work::Backlog(key) => {
                    if let Some(consumer) = self.consumers.get_mut(key) {
                        consumer.backlog_scheduled = false;
                        self.feed(key, call)?;
                    }
                }
                Work::Browse(key) => {
                    if let Some(browse) = self.consumers.get_mut(key).and_then(|c| c.browse.as_mut()) {
                        browse.scheduled = false;
                        self.browse(key, call)?;
                    }
                }
            }
        }
        if !self.work.is_empty() && !std::mem::replace(&mut self.continue_asked, true) {
            call.fx.push(Effect::Continue);
        }
        Ok(())
    }

    /// The line is to be looked at before this call ends, or in the next.
    pub(super) fn schedule(&mut self, key: LineKey) {
        if let Some(line) = self.lines.get_mut(key)
            && !line.scheduled
        {
            line.scheduled = true;
            self.work.push_back(Work::Line(key));
        }
    }

    /// May the line deliver at all?
    pub(super) fn is_open(line: &Line, limits: &Limits) -> bool {
        line.acks_pending < limits.acks_pending_max && line.has_begun
    }

    /// The consumer whose turn it is, of those with room: the highest priority first, in turns among equals. With it comes
    /// the turn after this one.
    pub(super) fn choose(
        line: &Line,
        consumers: &Slab<ConsumerKey, Box<Consumer>>,
    ) -> Option<(usize, ConsumerKey)> {
        let has_room = |key: ConsumerKey| consumers.get(key).is_some_and(|consumer| consumer.has_room());
        let members = &line.members;
        if let Some(exclusive) = line.exclusive {
            let index = members.iter().position(|member| member.consumer == exclusive)?;
            return has_room(exclusive).then_some((index + 1, exclusive));
        }
        let mut start = 0;
        while let Some(first) = members.get(start) {
            let equals = match members.last() {
                Some(last) if last.priority == first.priority => members.len() - start,
                _ => members[start..].iter().take_while(|member| member.priority == first.priority).count(),
            };
            let offset = line.turn.checked_sub(start).filter(|turn| *turn < equals).unwrap_or(0);
            for step in 0..equals {
                let mut index = offset + step;
                if index >= equals {
                    index -= equals;
                }
                let consumer = members[start + index].consumer;
                if has_room(consumer) {
                    return Some((start + index + 1, consumer));
                }
            }
            start += equals;
        }
        None
    }

    /// Something came into a line that was not delivered on the spot.
    pub(super) fn something_came(&mut self, key: LineKey, call: &mut Call<'_>) -> Result<(), StorageError> {
        let Some(line) = self.lines.get(key) else { return Ok(()) };
        if line.scheduled {
            return Ok(());
        }
        if line.starved {
            return self.advance_all_selecting(key, call);
        }
        self.dispatch(key, call)
    }

    /// Delivers what a line has to whoever has room.
    pub(super) fn dispatch(&mut self, key: LineKey, call: &mut Call<'_>) -> Result<(), StorageError> {
        self.fill(key, None, u32::MAX, call)?;
        self.advance_all_selecting(key, call)
    }

    /// A consumer has room: delivers what waited for that.
    pub(super) fn feed(&mut self, key: ConsumerKey, call: &mut Call<'_>) -> Result<(), StorageError> {
        let Some(consumer) = self.consumers.get(key) else { return Ok(()) };
        if !consumer.has_room() {
            return Ok(());
        }
        if !consumer.backlog.is_empty() {
            self.feed_backlog(key, call);
        }
        let Some(consumer) = self.consumers.get(key) else { return Ok(()) };
        if consumer.browse.is_some() {
            return self.browse(key, call);
        }
        if !consumer.several {
            return match consumer.lines.first() {
                Some(&line) => self.serve(line, key, u32::MAX, call).map(|_| ()),
                None => Ok(()),
            };
        }
        // One message from each line in turn.
        let mut later = Vec::new();
        while let Some(consumer) = self.consumers.get_mut(key)
            && consumer.has_room()
        {
            let after = consumer.turn.map_or(Bound::Unbounded, Bound::Excluded);
            let next =
                consumer.starved.range((after, Bound::Unbounded)).next().or_else(|| consumer.starved.first());
            let Some(&line) = next else { break };
            if self.steps_left == 0 {
                if !std::mem::replace(&mut consumer.backlog_scheduled, true) {
                    self.work.push_back(Work::Backlog(key));
                }
                break;
            }
            consumer.turn = Some(line);
            consumer.starved.remove(&line);
            match self.serve(line, key, 1, call)? {
                Filled::Enough => {
                    if let Some(consumer) = self.consumers.get_mut(key) {
                        consumer.starved.insert(line);
                    }
                }
                Filled::Later => later.push(line),
                Filled::Empty => {}
            }
        }
        if let Some(consumer) = self.consumers.get_mut(key) {
            consumer.starved.extend(later);
        }
        Ok(())
    }

    fn serve(
        &mut self,
        line: LineKey,
        consumer: ConsumerKey,
        count_max: u32,
        call: &mut Call<'_>,
    ) -> Result<Filled, StorageError> {
        let Some(found) = self.lines.get(line) else { return Ok(Filled::Empty) };
        let selecting = found
            .selecting
            .iter()
            .position(|selecting| selecting.member.is_some_and(|member| member.consumer == consumer));
        if let Some(index) = selecting {
            self.advance_selecting(line, index, call)?;
            // It says itself where it has to be woken.
            return Ok(Filled::Empty);
        }
        if !found.starved {
            return Ok(Filled::Empty);
        }
        self.fill(line, Some(consumer), count_max, call)
    }

    /// Delivers up to `count_max` messages of a line, to `only` or to whoever has room.
    fn fill(
        &mut self,
        key: LineKey,
        only: Option<ConsumerKey>,
        count_max: u32,
        call: &mut Call<'_>,
    ) -> Result<Filled, StorageError> {
        let mut count = 0;
        while count < count_max {
            let Some(line) = self.lines.get_mut(key) else { return Ok(Filled::Empty) };
            let consumer = match only {
                None => Self::choose(line, &self.consumers),
                Some(only) => {
                    let allowed = line.exclusive.is_none_or(|exclusive| exclusive == only);
                    let room = self.consumers.get(only).is_some_and(|consumer| consumer.has_room());
                    if !allowed {
                        return Ok(Filled::Later);
                    }
                    room.then_some((line.turn, only))
                }
            };
            let Some((turn, consumer)) = consumer else {
                self.starve(key);
                return Ok(Filled::Enough);
            };
            if !Self::is_open(line, &self.options.limits) {
                // When acknowledgements or the subscription are committed, it goes on.
                line.stalled = true;
                return Ok(Filled::Later);
            }
            if self.steps_left == 0 {
                self.schedule(key);
                return Ok(Filled::Later);
            }
            self.steps_left -= 1;
            let Some(candidate) = line.peek(call.storage)? else {
                line.starved = false;
                return Ok(Filled::Empty);
            };
            if is_expired(line, &candidate, &self.memory, call.now) {
                if !self.expire_next(key, candidate, call) {
                    return Ok(Filled::Later);
                }
                continue;
            }
            line.turn = turn;
            let Some(taken) = line.take(candidate) else { continue };
            self.deliver(key, consumer, &taken, call);
            count += 1;
        }
        Ok(Filled::Enough)
    }

    /// Nobody has room. Who takes from several lines is told where to look when it has.
    fn starve(&mut self, key: LineKey) {
        let Some(line) = self.lines.get_mut(key) else { return };
        if line.starved || !line.may_have_more() {
            return;
        }
        line.starved = true;
        for member in line.members.iter().filter(|member| member.several) {
            if let Some(consumer) = self.consumers.get_mut(member.consumer) {
                consumer.starved.insert(key);
            }
        }
    }

    /// Hands a message that was taken out of its line to a consumer.
    #[inline]
    pub(super) fn deliver(&mut self, key: LineKey, to: ConsumerKey, taken: &Taken, call: &mut Call<'_>) {
        let Some(line) = self.lines.get_mut(key) else { return };
        let Some(consumer) = self.consumers.get_mut(to) else { return };
        let Some(connection) = self.connections.get_mut(consumer.connection) else { return };
        let (source, stored_count) = match (taken.body, line.stored_at) {
            (Body::Stored(entry), Some(at)) => (Source::Stored(at, entry), entry.redelivery_counter),
            (Body::Memory(message), _) => {
                let Some(content) = self.memory.get(message) else { return };
                let count = u32::try_from(content.redelivery_counter).unwrap_or(0);
                (Source::Memory(Arc::clone(content)), count)
            }
            (Body::Stored(_), None) => return,
        };
        line.hold(taken, HeldState::Delivered);
        connection.tag_last += 1;
        let tag = connection.tag_last;
        let from = Origin::Line(key, taken.slot);
        consumer.deliveries.push(Out { tag, from, returns: taken.returns, state: OutState::Unacknowledged });
        consumer.outstanding += 1;
        consumer.delivered += 1;
        if let Some(place) = self.places.get_mut(line.place) {
            place.counts.dispatched += 1;
        }
        call.fx.push(Effect::Deliver {
            connection: consumer.connection,
            delivery: Delivery {
                consumer: consumer.number,
                tag,
                source,
                redelivery_counter: stored_count.saturating_add(taken.returns),
            },
        });
    }

    /// A delivered message goes back to where it waits, counted as tried.
    pub(super) fn return_to_line(&mut self, key: LineKey, slot: Slot) {
        if let Some(line) = self.lines.get_mut(key) {
            line.give_back(slot, true);
            self.schedule(key);
        }
    }
}

pub(super) fn is_expired(line: &Line, candidate: &Candidate, memory: &MemoryMessages, now: Millis) -> bool {
    let body = match candidate {
        Candidate::Stored(entry) => return entry.expiration_ms > 0 && now >= entry.expiration_ms,
        Candidate::Waiting(position) => match line.waiting.get(position) {
            Some(waiting) => waiting.body,
            None => return false,
        },
    };
    is_body_expired(&body, memory, now)
}

pub(super) fn is_body_expired(body: &Body, memory: &MemoryMessages, now: Millis) -> bool {
    match body {
        Body::Stored(entry) => entry.expiration_ms > 0 && now >= entry.expiration_ms,
        Body::Memory(message) => memory.get(*message).is_some_and(|message| message.is_expired(now)),
    }
}
