//! Messages that expired or were refused, and their way to the dead letters.
//!
//! What is stored has to be read first ([`Effect::Load`]); then its dead letter and its removal are appended together, so that a
//! crash leaves one or the other. What is in memory is dropped, as ActiveMQ's default strategy does.

use kahawai_message::storage::{Operation, Storage, StorageError, Tier};
use kahawai_message::{Destination, Message, Millis};
use kahawai_types::Lsn;

use super::dispatch::is_body_expired;
use super::{Broker, Call, Stop};
use crate::dead_letter::{dead_letter, expired_cause};
use crate::effect::{Effect, LoadPurpose, LoadRequest, LoadResult, Loaded};
use crate::line::{Body, Candidate, HeldState, Position, Slot, Taken};
use crate::slab::{LineKey, PlaceKey};

impl Broker {
    /// A message was refused by its consumer (`AckKind::Poison`).
    pub(super) fn kill(&mut self, key: LineKey, slot: Slot, call: &mut Call<'_>) {
        let Some(line) = self.lines.get_mut(key) else { return };
        let Some(held) = line.held.get_mut(&slot) else { return };
        match held.body {
            Body::Stored(_) => {
                held.state = HeldState::Dying;
                self.load(key, slot, LoadPurpose::Poison, call);
            }
            Body::Memory(message) => {
                line.held.remove(&slot);
                self.memory.release(message);
                if let Some(place) = self.places.get_mut(line.place) {
                    place.counts.dropped += 1;
                }
            }
        }
    }

    /// The next message of a line has expired. `false` if the line must wait, because enough of them are under way.
    pub(super) fn expire_next(&mut self, key: LineKey, candidate: Candidate, call: &mut Call<'_>) -> bool {
        let Some(line) = self.lines.get_mut(key) else { return false };
        if self.loads_under_way >= self.options.limits.loads_max {
            self.loads_wanted.push_back(key);
            return false;
        }
        if let Some(taken) = line.take(candidate) {
            self.expire_taken(key, taken, call);
        }
        true
    }

    /// A message that was taken out of its line has expired.
    pub(super) fn expire_taken(&mut self, key: LineKey, taken: Taken, call: &mut Call<'_>) {
        let Some(line) = self.lines.get_mut(key) else { return };
        match taken.body {
            Body::Stored(_) => {
                line.hold(&taken, HeldState::Dying);
                self.load(key, taken.slot, LoadPurpose::Expired, call);
            }
            Body::Memory(message) => {
                self.memory.release(message);
                let place = line.place;
                self.count_expired(place);
            }
        }
    }

    fn load(&mut self, key: LineKey, slot: Slot, purpose: LoadPurpose, call: &mut Call<'_>) {
        let Some(line) = self.lines.get(key) else { return };
        let (Some(destination), Some(held)) = (line.stored_at, line.held.get(&slot)) else { return };
        if let Body::Stored(entry) = held.body {
            self.loads_under_way += 1;
            call.fx.push(Effect::Load(LoadRequest { destination, entry, line: key, slot, purpose }));
        }
    }

    /// The answer to [`Effect::Load`].
    ///
    /// # Errors
    ///
    /// The store failed: the node must stop.
    pub fn loaded(
        &mut self,
        now: Millis,
        result: LoadResult,
        storage: &mut dyn Storage,
        fx: &mut Vec<Effect>,
    ) -> Result<(), StorageError> {
        let call = &mut self.begin(now, storage, fx);
        self.loads_under_way = self.loads_under_way.saturating_sub(1);
        let LoadResult { request, message } = result;
        if self.held_state(request.line, request.slot) == Some(HeldState::Dying) {
            match message {
                Loaded::Message(message) => self.bury(&request, *message, call)?,
                Loaded::Gone => {
                    if let Some(line) = self.lines.get_mut(request.line) {
                        line.forget(request.slot.sequence);
                    }
                }
                Loaded::Unreadable => self.set_aside(request.line, request.slot),
            }
        }
        // Whoever waits for this asks again; if there is still no room for all, they wait again.
        for _ in 0..self.loads_wanted.len() {
            if let Some(line) = self.loads_wanted.pop_front() {
                self.schedule(line);
            }
        }
        self.finish(call)
    }

    fn set_aside(&mut self, key: LineKey, slot: Slot) {
        if let Some(held) = self.lines.get_mut(key).and_then(|line| line.held.get_mut(&slot)) {
            held.state = HeldState::Unreadable;
        }
    }

    fn bury(
        &mut self,
        request: &LoadRequest,
        message: Message,
        call: &mut Call<'_>,
    ) -> Result<(), StorageError> {
        let Some(line) = self.lines.get(request.line) else { return Ok(()) };
        let (place_key, subscription) = (line.place, line.subscription.clone());
        let dead_letter_queue = self.dead_letter_queue();
        let Some(place) = self.places.get_mut(place_key) else { return Ok(()) };
        let (destination, sequence, id) = (request.destination, request.entry.sequence, message.id.clone());
        if request.purpose == LoadPurpose::Expired {
            place.counts.expired += 1;
        }
        // What dies among the dead letters is gone.
        let to_bury = place.name != dead_letter_queue && place.dies_first_time(sequence);
        let by = self.own.clone();
        let removal = match subscription {
            None => Operation::Remove { destination, sequence, id, by },
            Some(key) => {
                let subscription = (*key).clone();
                Operation::Acknowledge { destination, subscription, sequence, id, unmatched: false, by }
            }
        };
        let mut operations = vec![removal];
        if to_bury {
            let grave = self.dead_letter_place(call)?;
            let cause = match request.purpose {
                LoadPurpose::Expired => Some(expired_cause(message.expiration_ms)),
                LoadPurpose::Poison => None,
            };
            if let Some(grave) = self.places.get(grave)
                && let Some(stored_at) = grave.stored_at
            {
                let message = dead_letter(message, &grave.name, cause.as_deref());
                let prioritised = grave.prioritised;
                operations.insert(0, Operation::Add { destination: stored_at, message, prioritised });
            }
        }
        match call.storage.together(&operations) {
            Ok(_) => {}
            // With what is noted on it, it no longer fits. It is kept where it is, and seen in the counts.
            Err(StorageError::TooLarge { .. }) => {
                self.set_aside(request.line, request.slot);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        if to_bury && let Some(place) = self.places.get_mut(place_key) {
            place.counts.dead_lettered += 1;
        }
        if let Some(line) = self.lines.get_mut(request.line)
            && let Some(held) = line.held.get_mut(&request.slot)
        {
            held.state = HeldState::Acknowledged;
            line.acks_pending += 1;
        }
        Ok(())
    }

    fn dead_letter_queue(&self) -> Destination {
        Destination::queue(self.options.dead_letter_queue.clone())
    }

    fn dead_letter_place(&mut self, call: &mut Call<'_>) -> Result<PlaceKey, StorageError> {
        let name = self.dead_letter_queue();
        match self.find_place(&name) {
            Some(place) => Ok(place),
            None => self.make_place(&name, call),
        }
    }

    /// A persistent message was late before it came.
    pub(super) fn append_dead_on_arrival(
        &mut self,
        place: PlaceKey,
        message: Message,
        call: &mut Call<'_>,
    ) -> Result<Lsn, Stop> {
        let name = self.dead_letter_queue();
        if self.places.get(place).is_some_and(|place| place.name == name) {
            return Ok(call.storage.appended_end());
        }
        let grave = self.dead_letter_place(call)?;
        let Some((stored_at, prioritised)) =
            self.places.get(grave).and_then(|grave| Some((grave.stored_at?, grave.prioritised)))
        else {
            return Ok(call.storage.appended_end());
        };
        if let Some(place) = self.places.get_mut(place) {
            place.counts.dead_lettered += 1;
        }
        let cause = expired_cause(message.expiration_ms);
        let message = dead_letter(message, &name, Some(&cause));
        Ok(call.storage.add(stored_at, &message, prioritised)?.end)
    }

    /// The line has a message that can expire.
    pub(super) fn plan_sweep(&mut self, key: LineKey, at: Millis) {
        let Some(line) = self.lines.get_mut(key) else { return };
        if line.sweep_at.is_none() {
            line.sweep_at = Some(at);
            self.sweeps.insert((at, key));
        }
        line.sweep_met_expiring = true;
    }

    /// Looks through a part of a line for messages that expired.
    pub(super) fn sweep(&mut self, key: LineKey, call: &mut Call<'_>) -> Result<(), StorageError> {
        let Some(line) = self.lines.get_mut(key) else { return Ok(()) };
        if let Some(at) = line.sweep_at.take() {
            self.sweeps.remove(&(at, key));
        }
        let interval = self.options.sweep_interval_ms;
        if !Self::is_open(line, &self.options.limits) {
            self.plan_sweep(key, call.now + interval);
            return Ok(());
        }
        if line.sweep_from == Position::FIRST {
            line.sweep_met_expiring = false;
        }
        let count_max = self.options.limits.sweep_entries_max;
        let mut walk = Walk { from: line.sweep_from, end: None, met: false, found: Vec::new() };
        walk.through_store(line, count_max, call)?;
        walk.through_memory(line, count_max, &self.memory, call.now);
        self.steps_left = self.steps_left.saturating_sub(u32::try_from(count_max).unwrap_or(u32::MAX));
        line.sweep_met_expiring |= walk.met;
        let mut next = call.now + interval;
        for candidate in walk.found {
            let position = match candidate {
                Candidate::Stored(entry) => Position::of(&entry),
                Candidate::Waiting(position) => position,
            };
            if matches!(candidate, Candidate::Stored(_))
                && self.loads_under_way >= self.options.limits.loads_max
            {
                walk.end = Some(position);
                next = call.now + SWEEP_AGAIN_MS;
                break;
            }
            let Some(line) = self.lines.get_mut(key) else { return Ok(()) };
            let taken = match candidate {
                Candidate::Stored(entry) => Some(line.take_entry(entry)),
                waiting @ Candidate::Waiting(_) => line.take(waiting),
            };
            if let Some(taken) = taken {
                self.expire_taken(key, taken, call);
            }
        }
        let Some(line) = self.lines.get_mut(key) else { return Ok(()) };
        let again = walk.end.is_some() || line.sweep_met_expiring;
        line.sweep_from = walk.end.unwrap_or(Position::FIRST);
        if again {
            line.sweep_at = Some(next);
            self.sweeps.insert((next, key));
        }
        Ok(())
    }
}

/// How soon a sweep goes on that found more than may be under way.
const SWEEP_AGAIN_MS: Millis = 100;

/// A walk through a part of a line.
struct Walk {
    from: Position,
    /// Where the next one goes on; `None`: it came to the end.
    end: Option<Position>,
    met: bool,
    found: Vec<Candidate>,
}

impl Walk {
    fn through_store(
        &mut self,
        line: &crate::line::Line,
        count_max: usize,
        call: &mut Call<'_>,
    ) -> Result<(), StorageError> {
        let mut left = count_max;
        for tier in Tier::ALL.into_iter().filter(|tier| *tier >= self.from.tier) {
            let mut next = if tier == self.from.tier { self.from.slot.sequence } else { 0 };
            while let Some(entry) = line.next_in_store(tier, next, call.storage)? {
                if left == 0 {
                    self.end = Some(Position::of(&entry));
                    return Ok(());
                }
                left -= 1;
                next = entry.sequence + 1;
                self.met |= entry.expiration_ms > 0;
                let expired = is_entry_expired(&entry, call.now);
                if expired && !line.held.contains_key(&Slot::stored(entry.sequence)) {
                    self.found.push(Candidate::Stored(entry));
                }
            }
        }
        Ok(())
    }

    fn through_memory(
        &mut self,
        line: &crate::line::Line,
        count_max: usize,
        memory: &crate::memory::MemoryMessages,
        now: Millis,
    ) {
        for (index, (&position, waiting)) in line.waiting.range(self.from..).enumerate() {
            if self.end.is_some_and(|end| position >= end) {
                return;
            }
            if index == count_max {
                self.end = Some(position);
                return;
            }
            if let Body::Memory(message) = waiting.body {
                self.met |= memory.get(message).is_some_and(|message| message.expiration_ms > 0);
                if is_body_expired(&waiting.body, memory, now) {
                    self.found.push(Candidate::Waiting(position));
                }
            }
        }
    }
}

fn is_entry_expired(entry: &kahawai_message::storage::Entry, now: Millis) -> bool {
    entry.expiration_ms > 0 && now >= entry.expiration_ms
}
