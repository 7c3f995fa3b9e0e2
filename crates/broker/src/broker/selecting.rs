//! Consumers with a selector (or noLocal) walk a line at their own pace: batches of stored messages are read and compared
//! outside, what matches and is still to be had is delivered as there is room.
//!
//! For a durable subscription what does not match is acknowledged as unmatched, also while nobody is there.

use kahawai_message::storage::{Entry, StorageError, Tier};

use super::{Broker, Call};
use crate::consumer::Filter;
use crate::effect::{Effect, ScanRequest, ScanResult, Scanner, Verdict};
use crate::line::{Body, Candidate, Cursor, Held, HeldState, Position, Selecting, Slot};
use crate::slab::LineKey;

use super::dispatch::is_body_expired;

use kahawai_message::Millis;
use kahawai_message::storage::Storage;

/// How far a look at what waits has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Looked {
    AtAll,
    /// The rest is for another call; what is in the store comes after it.
    AtSome,
    NoRoom,
}

impl Broker {
    /// The answer to [`Effect::Scan`].
    ///
    /// # Errors
    ///
    /// The store failed: the node must stop.
    pub fn scanned(
        &mut self,
        now: Millis,
        result: ScanResult,
        storage: &mut dyn Storage,
        fx: &mut Vec<Effect>,
    ) -> Result<(), StorageError> {
        let call = &mut self.begin(now, storage, fx);
        let ScanResult { request, verdicts } = result;
        match request.scanner {
            Scanner::Selecting(number) => self.selected(&request, number, &verdicts, call)?,
            Scanner::Browser(consumer) => self.browsed(&request, consumer, &verdicts, call)?,
        }
        self.finish(call)
    }

    fn selected(
        &mut self,
        request: &ScanRequest,
        number: u64,
        verdicts: &[Verdict],
        call: &mut Call<'_>,
    ) -> Result<(), StorageError> {
        let Some(line) = self.lines.get_mut(request.line) else { return Ok(()) };
        let Some(index) = line.selecting.iter().position(|selecting| selecting.number == number) else {
            return Ok(());
        };
        line.selecting[index].scanning = false;
        let online = line.selecting[index].member.is_some();
        for (entry, verdict) in request.entries.iter().zip(verdicts) {
            match verdict {
                Verdict::Matches if online => line.selecting[index].matched.push_back(*entry),
                Verdict::Differs(id) => {
                    let (Some(subscription), Some(topic)) = (&line.subscription, line.stored_at) else {
                        continue;
                    };
                    let slot = Slot::stored(entry.sequence);
                    if line.held.contains_key(&slot) {
                        continue;
                    }
                    call.storage.acknowledge(topic, subscription, entry.sequence, id, &self.own, true)?;
                    line.take_entry(*entry);
                    let (tier, body) = (entry.tier, Body::Stored(*entry));
                    line.held.insert(slot, Held { tier, body, returns: 0, state: HeldState::Acknowledged });
                    line.acks_pending += 1;
                }
                Verdict::Matches | Verdict::Unreadable => {}
            }
        }
        self.advance_selecting(request.line, index, call)
    }

    pub(super) fn advance_all_selecting(
        &mut self,
        key: LineKey,
        call: &mut Call<'_>,
    ) -> Result<(), StorageError> {
        let mut index = 0;
        while self.lines.get(key).is_some_and(|line| index < line.selecting.len()) {
            self.advance_selecting(key, index, call)?;
            index += 1;
        }
        Ok(())
    }

    /// Delivers what matched, and asks for the next batch to be compared.
    pub(super) fn advance_selecting(
        &mut self,
        key: LineKey,
        index: usize,
        call: &mut Call<'_>,
    ) -> Result<(), StorageError> {
        let Some(line) = self.lines.get_mut(key) else { return Ok(()) };
        let Some(selecting) = line.selecting.get(index) else { return Ok(()) };
        if !Self::is_open(line, &self.options.limits) {
            line.stalled = true;
            return Ok(());
        }
        let Some(member) = selecting.member else {
            return self.watch(key, index, call);
        };
        if line.exclusive.is_some_and(|exclusive| exclusive != member.consumer) {
            return Ok(());
        }
        loop {
            let Some(line) = self.lines.get_mut(key) else { return Ok(()) };
            let Some(consumer) = self.consumers.get(member.consumer) else { return Ok(()) };
            let selecting = &mut line.selecting[index];
            if !consumer.has_room() {
                // What it has not looked at yet may be for it.
                if member.several
                    && let Some(consumer) = self.consumers.get_mut(member.consumer)
                {
                    consumer.starved.insert(key);
                }
                return Ok(());
            }
            let Some(entry) = selecting.matched.pop_front() else { break };
            if !line.is_available(&entry, call.storage)? {
                continue;
            }
            let taken = line.take_entry(entry);
            if is_body_expired(&taken.body, &self.memory, call.now) {
                self.expire_taken(key, taken, call);
                continue;
            }
            self.deliver(key, member.consumer, &taken, call);
        }
        if self.lines.get(key).is_some_and(|line| line.selecting[index].scanning) {
            return Ok(());
        }
        let mut entries = Vec::new();
        let looked = self.select_waiting(key, index, &mut entries, call);
        if looked == Looked::NoRoom {
            return Ok(());
        }
        let filter =
            self.consumers.get(member.consumer).map(|consumer| consumer.filter.clone()).unwrap_or_default();
        self.scan_on(key, index, entries, looked == Looked::AtAll, filter, call)
    }

    /// Looks at what came back or is in memory.
    fn select_waiting(
        &mut self,
        key: LineKey,
        index: usize,
        entries: &mut Vec<Entry>,
        call: &mut Call<'_>,
    ) -> Looked {
        let mut looked_at = 0;
        loop {
            let Some(line) = self.lines.get_mut(key) else { return Looked::NoRoom };
            let Some(position) = line.next_to_select(index) else { return Looked::AtAll };
            if looked_at >= self.options.limits.scan_entries_max || self.steps_left == 0 {
                self.schedule(key);
                return Looked::AtSome;
            }
            looked_at += 1;
            self.steps_left -= 1;
            let body = line.waiting.get(&position).map(|waiting| waiting.body);
            let Some(Body::Memory(message)) = body else {
                if let Some(Body::Stored(entry)) = body {
                    entries.push(entry);
                }
                line.selected(index, position);
                continue;
            };
            let Some(member) = line.selecting[index].member else { return Looked::AtAll };
            let Some(consumer) = self.consumers.get_mut(member.consumer) else { return Looked::AtAll };
            if !consumer.has_room() {
                if member.several {
                    consumer.starved.insert(key);
                }
                return if entries.is_empty() { Looked::NoRoom } else { Looked::AtSome };
            }
            line.selected(index, position);
            if !self.memory.get(message).is_some_and(|content| consumer.filter.takes(content)) {
                continue;
            }
            let Some(taken) = line.take(Candidate::Waiting(position)) else { continue };
            if is_body_expired(&taken.body, &self.memory, call.now) {
                self.expire_taken(key, taken, call);
            } else {
                self.deliver(key, member.consumer, &taken, call);
            }
        }
    }

    /// Nobody is there: only what does not match is of interest.
    fn watch(&mut self, key: LineKey, index: usize, call: &mut Call<'_>) -> Result<(), StorageError> {
        let Some(line) = self.lines.get(key) else { return Ok(()) };
        if line.selecting[index].scanning {
            return Ok(());
        }
        let durable = line.subscription.as_ref().and_then(|key| self.durables.get(key));
        let Some(filter) = durable.map(|durable| durable.offline_filter.clone()) else { return Ok(()) };
        self.scan_on(key, index, Vec::new(), true, filter, call)
    }

    /// Fills the batch from the store, if everything else was looked at, and has it compared.
    fn scan_on(
        &mut self,
        key: LineKey,
        index: usize,
        mut entries: Vec<Entry>,
        from_store: bool,
        filter: Filter,
        call: &mut Call<'_>,
    ) -> Result<(), StorageError> {
        let Some(line) = self.lines.get_mut(key) else { return Ok(()) };
        let Some(destination) = line.stored_at else { return Ok(()) };
        let mut cursors = line.selecting[index].cursors;
        if from_store {
            gather(line, &mut cursors, self.options.limits.scan_entries_max, &mut entries, call)?;
        }
        let selecting = &mut line.selecting[index];
        selecting.cursors = cursors;
        if entries.is_empty() {
            return Ok(());
        }
        entries.sort_unstable_by_key(Position::of);
        selecting.scanning = true;
        let Filter { selector, no_local } = filter;
        let scanner = Scanner::Selecting(selecting.number);
        call.fx.push(Effect::Scan(ScanRequest {
            destination,
            entries,
            selector,
            no_local,
            line: key,
            scanner,
        }));
        Ok(())
    }

    /// A durable subscription with a selector has gone offline, or was found so.
    pub(super) fn watch_offline(&mut self, key: LineKey) {
        let Some(line) = self.lines.get_mut(key) else { return };
        let durable = line.subscription.as_ref().and_then(|key| self.durables.get(key));
        if durable.is_none_or(|durable| durable.offline_filter.takes_all()) {
            return;
        }
        self.selecting_last += 1;
        line.selecting.push(Selecting {
            number: self.selecting_last,
            member: None,
            // What is there already was looked at before, or is looked at when somebody comes.
            cursors: [Cursor::default(); 3],
            walk: None,
            arrivals_seen: 0,
            scanning: false,
            matched: std::collections::VecDeque::new(),
        });
    }
}

/// Takes the next entries that nobody holds, in delivery order, until there are `count_max`.
pub(super) fn gather(
    line: &crate::line::Line,
    cursors: &mut [Cursor; 3],
    count_max: usize,
    entries: &mut Vec<Entry>,
    call: &mut Call<'_>,
) -> Result<(), StorageError> {
    // What is held may be skipped a few times over, but not without end in one call.
    let mut steps = count_max * 4;
    for tier in Tier::ALL {
        let cursor = &mut cursors[tier as usize];
        while cursor.more && entries.len() < count_max && steps > 0 {
            steps -= 1;
            let Some(entry) = line.next_in_store(tier, cursor.next, call.storage)? else {
                cursor.more = false;
                break;
            };
            cursor.next = entry.sequence + 1;
            let position = Position::of(&entry);
            if !line.held.contains_key(&position.slot) && !line.waiting.contains_key(&position) {
                entries.push(entry);
            }
        }
    }
    Ok(())
}
