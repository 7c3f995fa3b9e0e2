//! The index: what the journal up to the applied position amounts to.
//!
//! [`State::apply`] is the only thing that changes it, at run time and in replay alike, so "index equals replay" holds by
//! construction for everything that goes through it. Entries live in chunks (`crate::chunk`); chunks that are neither at
//! the head nor at the tail of a deep destination may lie in the index store only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use kahawai_message::storage::{Applied, DestinationKey, Entry, SubscriptionKey, Tier};
use kahawai_message::stored::SubscriptionInfo;
use kahawai_message::{Destination, ProducerId, TransactionId};
use kahawai_types::{Location, Lsn};
use xxhash_rust::xxh3::Xxh3;

use crate::audit::Audit;
use crate::chunk::{CHUNK, Slot, Slots};
use crate::files::FileTable;
use crate::ranges::Ranges;

/// The index store could not give back a chunk. The index is damaged or its disk is: the node stops, and the next start
/// rebuilds the index from the journal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("index chunk {chunk} of {destination}: {reason}")]
pub struct ChunkError {
    /// Whose.
    pub destination: String,
    /// Which.
    pub chunk: u64,
    /// What the index store said.
    pub reason: String,
}

/// Where chunks come back from.
pub trait ChunkSource: Send + Sync {
    /// The stored slots of a chunk.
    fn load(&self, destination: DestinationKey, chunk: u64) -> Result<Slots, String>;
}

/// A change of the index, at the position where it became true.
#[allow(missing_docs)] // the variants say what their fields are
#[derive(Clone, Debug)]
pub enum Op {
    /// A message is there.
    Add { destination: DestinationKey, sequence: u64, slot: Slot },
    /// A queue message is consumed; `by` = file of the record that says so.
    Remove { destination: DestinationKey, sequence: u64, by: u32 },
    /// A durable subscription is done with a message.
    Acknowledge { destination: DestinationKey, subscription: SubscriptionKey, sequence: u64, by: u32 },
    /// A message's record moved or was rewritten.
    Update { destination: DestinationKey, sequence: u64, slot: Slot },
    /// A durable subscription is made or changed.
    Subscribe { destination: DestinationKey, info: Box<SubscriptionInfo>, retroactive: bool, at: Location },
    /// A durable subscription ends.
    Unsubscribe { destination: DestinationKey, subscription: SubscriptionKey, by: u32 },
    /// A destination ends.
    RemoveDestination { destination: DestinationKey, by: u32 },
    /// All of a transaction at once; `by` = file of its commit, `from` = its first operation.
    Transaction { operations: Vec<Op>, by: u32, from: Lsn },
    /// Data files are deleted.
    Collect { files: Vec<u32>, known: Vec<(ProducerId, i64)> },
}

/// A durable subscription over its topic's messages.
#[derive(Clone, PartialEq, Debug)]
pub struct Subscription {
    /// What the client asked for.
    pub info: SubscriptionInfo,
    /// The record that its pending messages count from: with a later one alone, a replay would not give it those that
    /// came in between.
    pub at: Location,
    /// Its newest record, if it was written again since.
    pub renewed: Option<Location>,
    /// Everything below is not pending.
    pub floor: u64,
    /// Acknowledged at or above the floor.
    pub acknowledged: Ranges,
    /// Acknowledged in prepared transactions.
    pub held: BTreeSet<u64>,
    /// How many messages are pending.
    pub pending: u64,
}

impl Subscription {
    /// The data files that its records are in.
    pub fn files(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.at.file).chain(self.renewed.map(|at| at.file))
    }

    /// Is a message that the topic still has pending here?
    pub fn has_pending(&self, sequence: u64) -> bool {
        sequence >= self.floor && !self.acknowledged.contains(sequence)
    }
}

#[derive(Clone, Debug)]
enum Body {
    Resident(Arc<Slots>),
    /// In the index store only.
    Stored,
}

#[derive(Clone, Debug)]
struct Chunk {
    live: [u16; 3],
    body: Body,
    /// Differs from what the index store has.
    dirty: bool,
    /// The index store has some version of it (or will, with the checkpoint under way).
    stored: bool,
}

/// One destination's part of the index.
#[derive(Clone, Debug)]
pub struct DestinationState {
    /// Its name.
    pub name: Destination,
    /// The next number to give away. Runs ahead of what is applied.
    pub next_sequence: u64,
    /// One past the highest number applied.
    pub applied_sequence: u64,
    /// Live messages.
    pub count: u64,
    /// Whether the journal has ever named it: such destinations are listed even when empty.
    pub named: bool,
    /// By KahaDB's key, `clientId:name`.
    pub subscriptions: BTreeMap<SubscriptionKey, Subscription>,
    chunks: BTreeMap<u64, Chunk>,
    /// Chunks that the index store still has and should not.
    gone: Vec<u64>,
    dirty: bool,
}

impl DestinationState {
    fn new(name: Destination) -> Self {
        Self {
            name,
            next_sequence: 0,
            applied_sequence: 0,
            count: 0,
            named: false,
            subscriptions: BTreeMap::new(),
            chunks: BTreeMap::new(),
            gone: Vec::new(),
            dirty: false,
        }
    }

    fn saw(&mut self, sequence: u64) {
        self.applied_sequence = self.applied_sequence.max(sequence.saturating_add(1));
        self.next_sequence = self.next_sequence.max(self.applied_sequence);
    }
}

/// A transaction whose outcome is up to its coordinator.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// What it did, with where each record lies: adds wait, removals are held.
    pub operations: Vec<PreparedOp>,
    /// First and last record.
    pub first: Location,
    /// The record that prepared it.
    pub at: Location,
}

/// One step of a prepared transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum PreparedOp {
    /// A message to come.
    Add {
        /// Where to.
        destination: DestinationKey,
        /// Its record.
        at: Location,
        /// Size of the record.
        size: u32,
    },
    /// A message to go.
    Remove {
        /// Where from.
        destination: DestinationKey,
        /// For a durable subscription.
        subscription: Option<SubscriptionKey>,
        /// Which, if it was known.
        sequence: Option<u64>,
        /// The removal's record.
        at: Location,
        /// Size of that record.
        size: u32,
    },
}

impl PreparedOp {
    /// Where its record lies.
    pub fn location(&self) -> Location {
        match self {
            Self::Add { at, .. } | Self::Remove { at, .. } => *at,
        }
    }
}

/// The whole index.
#[derive(Default)]
pub struct State {
    destinations: Vec<DestinationState>,
    keys: HashMap<Destination, DestinationKey>,
    /// Which data files are needed.
    pub files: FileTable,
    /// Transactions in doubt.
    pub prepared: BTreeMap<TransactionId, Prepared>,
    /// Duplicate detection.
    pub audit: Audit,
    /// New messages get numbers from here on; see [`State::number_from`].
    numbers_from: u64,
    /// Data files whose deletion is decided and committed, and that may still be there.
    pub collected: BTreeSet<u32>,
    resident_bytes: usize,
    source: Option<Arc<dyn ChunkSource>>,
    dirty: BTreeSet<DestinationKey>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("destinations", &self.destinations.len()).finish_non_exhaustive()
    }
}

type Outcome<T> = Result<T, ChunkError>;

impl State {
    /// An empty index whose stored chunks, if it comes to have any, come back from `source`.
    pub fn new(source: Option<Arc<dyn ChunkSource>>) -> Self {
        Self { source, ..Self::default() }
    }

    /// The key of a destination, made on first use.
    pub fn key(&mut self, name: &Destination) -> DestinationKey {
        if let Some(&key) = self.keys.get(name) {
            return key;
        }
        let key = DestinationKey(u32::try_from(self.destinations.len()).unwrap_or(u32::MAX));
        // A copy of its own: `name` may be a view into a whole socket buffer.
        let name = Destination::new(name.kind, &*name.name);
        let next_sequence = self.numbers_from;
        self.destinations.push(DestinationState { next_sequence, ..DestinationState::new(name.clone()) });
        self.keys.insert(name, key);
        key
    }

    /// Messages get numbers from `number` on, in every destination, those to come included. Replicas may remember what this index
    /// does not: one made again from the data files that are left has not seen the highest numbers. Given twice, a number
    /// would be one that their durable subscriptions have acknowledged.
    pub fn number_from(&mut self, number: u64) {
        self.numbers_from = self.numbers_from.max(number);
        for d in &mut self.destinations {
            d.next_sequence = d.next_sequence.max(number);
        }
    }

    /// A destination by key.
    pub fn get(&self, key: DestinationKey) -> Option<&DestinationState> {
        self.destinations.get(key.0 as usize)
    }

    /// The same, to change its numbers.
    pub fn get_mut(&mut self, key: DestinationKey) -> Option<&mut DestinationState> {
        self.destinations.get_mut(key.0 as usize)
    }

    /// All destinations in order of their keys.
    pub fn destinations(&self) -> impl Iterator<Item = (DestinationKey, &DestinationState)> {
        self.destinations.iter().enumerate().map(|(n, d)| (DestinationKey(n as u32), d))
    }

    /// Memory that the resident chunks take, bytes.
    pub fn resident_bytes(&self) -> usize {
        self.resident_bytes
    }

    /// Remembers that the journal has named a destination.
    pub fn name(&mut self, key: DestinationKey) {
        if let Some(d) = self.destinations.get_mut(key.0 as usize)
            && !d.named
        {
            d.named = true;
            self.mark(key);
        }
    }

    /// Notes that a destination's part of the index store is out of date.
    pub fn mark(&mut self, key: DestinationKey) {
        if let Some(d) = self.destinations.get_mut(key.0 as usize)
            && !d.dirty
        {
            d.dirty = true;
            self.dirty.insert(key);
        }
    }

    fn slots(&mut self, key: DestinationKey, chunk_number: u64) -> Outcome<Option<&mut Arc<Slots>>> {
        let Some(d) = self.destinations.get_mut(key.0 as usize) else { return Ok(None) };
        let Some(chunk) = d.chunks.get_mut(&chunk_number) else { return Ok(None) };
        if matches!(chunk.body, Body::Stored) {
            let fail =
                |reason: String| ChunkError { destination: d.name.to_string(), chunk: chunk_number, reason };
            let source = self.source.as_ref().ok_or_else(|| fail("there is no index store".into()))?;
            let slots = source.load(key, chunk_number).map_err(fail)?;
            if slots.live() != chunk.live {
                return Err(fail(format!(
                    "it holds {:?} messages, {:?} are expected",
                    slots.live(),
                    chunk.live
                )));
            }
            self.resident_bytes += slots.bytes();
            chunk.body = Body::Resident(Arc::new(slots));
        }
        match &mut chunk.body {
            Body::Resident(slots) => Ok(Some(slots)),
            Body::Stored => Ok(None),
        }
    }

    /// The slot of a live message.
    pub fn slot(&mut self, key: DestinationKey, sequence: u64) -> Outcome<Option<Slot>> {
        let offset = (sequence % CHUNK) as u16;
        Ok(self.slots(key, sequence / CHUNK)?.and_then(|slots| slots.get(offset).copied()))
    }

    fn change<T>(
        &mut self,
        key: DestinationKey,
        sequence: u64,
        change: impl FnOnce(&mut Slots, u16) -> Option<T>,
    ) -> Outcome<Option<T>> {
        let number = sequence / CHUNK;
        let Some(slots) = self.slots(key, number)? else { return Ok(None) };
        let slots = Arc::make_mut(slots);
        let before = slots.bytes();
        let changed = change(slots, (sequence % CHUNK) as u16);
        let after = slots.bytes();
        self.resident_bytes = (self.resident_bytes + after).saturating_sub(before);
        if changed.is_some() {
            if let Some(chunk) =
                self.destinations.get_mut(key.0 as usize).and_then(|d| d.chunks.get_mut(&number))
            {
                chunk.dirty = true;
            }
            self.mark(key);
        }
        Ok(changed)
    }

    /// Files a message. One that is there under the same number is replaced in place (`false`).
    fn put(&mut self, key: DestinationKey, sequence: u64, slot: Slot) -> Outcome<bool> {
        let number = sequence / CHUNK;
        if let Some(d) = self.destinations.get_mut(key.0 as usize) {
            d.saw(sequence);
            d.named = true;
            d.chunks.entry(number).or_insert_with(|| Chunk {
                live: [0; 3],
                body: Body::Resident(Arc::default()),
                dirty: true,
                stored: false,
            });
        }
        let mut before = None;
        self.change(key, sequence, |slots, offset| {
            before = slots.put(offset, slot);
            Some(())
        })?;
        self.files.message_added(slot.location().file, slot.size());
        if let Some(old) = before {
            self.files.message_removed(old.location().file, old.size(), slot.location().file);
        }
        if let Some(d) = self.destinations.get_mut(key.0 as usize)
            && let Some(chunk) = d.chunks.get_mut(&number)
        {
            chunk.live[slot.tier() as usize] += 1;
            match before {
                Some(old) => chunk.live[old.tier() as usize] -= 1,
                None => d.count += 1,
            }
        }
        Ok(before.is_none())
    }

    /// Files a message that an index of ActiveMQ's has, whatever its topic's subscriptions are.
    pub fn insert(&mut self, key: DestinationKey, sequence: u64, slot: Slot) -> Outcome<()> {
        self.put(key, sequence, slot).map(|_| ())
    }

    /// Takes a message out; `by` = file of the record that says so.
    fn take(&mut self, key: DestinationKey, sequence: u64, by: u32) -> Outcome<bool> {
        let Some(slot) = self.change(key, sequence, |slots, offset| slots.take(offset))? else {
            return Ok(false);
        };
        self.files.message_removed(slot.location().file, slot.size(), by);
        let number = sequence / CHUNK;
        if let Some(d) = self.destinations.get_mut(key.0 as usize) {
            d.count -= 1;
            if let Some(chunk) = d.chunks.get_mut(&number) {
                chunk.live[slot.tier() as usize] -= 1;
                if chunk.live == [0; 3] {
                    if let Body::Resident(slots) = &chunk.body {
                        self.resident_bytes = self.resident_bytes.saturating_sub(slots.bytes());
                    }
                    if chunk.stored {
                        d.gone.push(number);
                    }
                    d.chunks.remove(&number);
                }
            }
        }
        Ok(true)
    }

    /// The first deliverable message of a tier at or behind `from`.
    pub fn next(&mut self, key: DestinationKey, tier: Tier, from: u64) -> Outcome<Option<Entry>> {
        let mut from = from;
        loop {
            let Some(d) = self.destinations.get(key.0 as usize) else { return Ok(None) };
            let candidate = d.chunks.range(from / CHUNK..).find(|(_, chunk)| chunk.live[tier as usize] > 0);
            let Some((&number, _)) = candidate else { return Ok(None) };
            let start = number * CHUNK;
            let offset = from.saturating_sub(start) as u16;
            let found = self.slots(key, number)?.and_then(|slots| {
                slots
                    .find(offset, |slot| slot.tier() == tier && !slot.is_held())
                    .map(|(at, slot)| slot.entry(start + u64::from(at)))
            });
            if found.is_some() {
                return Ok(found);
            }
            from = start + CHUNK;
        }
    }

    /// The first message of a tier at or behind `from` that a durable subscription has pending.
    pub fn next_pending(
        &mut self,
        key: DestinationKey,
        subscription: &SubscriptionKey,
        tier: Tier,
        from: u64,
    ) -> Outcome<Option<Entry>> {
        let mut from = from;
        loop {
            let Some(sub) = self.get(key).and_then(|d| d.subscriptions.get(subscription)) else {
                return Ok(None);
            };
            from = sub.acknowledged.next_absent(from.max(sub.floor));
            let Some(entry) = self.next(key, tier, from)? else { return Ok(None) };
            let Some(sub) = self.get(key).and_then(|d| d.subscriptions.get(subscription)) else {
                return Ok(None);
            };
            if sub.has_pending(entry.sequence) && !sub.held.contains(&entry.sequence) {
                return Ok(Some(entry));
            }
            from = entry.sequence + 1;
        }
    }

    /// Visits every live message of a destination, held ones too, in ascending sequence.
    pub fn each(&mut self, key: DestinationKey, mut visit: impl FnMut(u64, &Slot)) -> Outcome<()> {
        let numbers: Vec<u64> = self.get(key).map(|d| d.chunks.keys().copied().collect()).unwrap_or_default();
        for number in numbers {
            if let Some(slots) = self.slots(key, number)? {
                for (offset, slot) in slots.iter() {
                    visit(number * CHUNK + u64::from(offset), slot);
                }
            }
        }
        Ok(())
    }

    /// Hides a message because a prepared transaction consumed it, or shows it again.
    pub fn hold(
        &mut self,
        key: DestinationKey,
        subscription: Option<&SubscriptionKey>,
        sequence: u64,
        held: bool,
    ) -> Outcome<()> {
        if let Some(name) = subscription {
            if let Some(sub) = self.get_mut(key).and_then(|d| d.subscriptions.get_mut(name)) {
                if held {
                    sub.held.insert(sequence);
                } else {
                    sub.held.remove(&sequence);
                }
                self.mark(key);
            }
            return Ok(());
        }
        self.change(key, sequence, |slots, offset| slots.get_mut(offset).map(|slot| slot.set_held(held)))?;
        Ok(())
    }

    /// Makes one change true; what the broker must know is appended to `out`.
    pub fn apply(&mut self, op: Op, out: &mut Vec<Applied>) -> Outcome<()> {
        match op {
            Op::Add { destination, sequence, slot } => self.apply_add(destination, sequence, slot, out),
            Op::Remove { destination, sequence, by } => {
                if self.take(destination, sequence, by)? {
                    out.push(Applied::Removed { destination, sequence });
                }
                Ok(())
            }
            Op::Acknowledge { destination, subscription, sequence, by } => {
                self.apply_acknowledge(destination, subscription, sequence, by, out)
            }
            Op::Update { destination, sequence, slot } => {
                let known = self.slot(destination, sequence)?;
                let Some(old) = known else {
                    // The original was collected before we saw it: the update is the message now.
                    return self.apply_add(destination, sequence, slot, out);
                };
                let mut slot = slot;
                slot.set_held(old.is_held());
                self.put(destination, sequence, slot)?;
                Ok(())
            }
            Op::Subscribe { destination, info, retroactive, at } => {
                self.apply_subscribe(destination, *info, retroactive, at, out)
            }
            Op::Unsubscribe { destination, subscription, by } => {
                self.apply_unsubscribe(destination, subscription, by, out)
            }
            Op::RemoveDestination { destination, by } => self.apply_remove_destination(destination, by, out),
            Op::Transaction { operations, by, from } => {
                for op in operations {
                    let place = match &op {
                        Op::Add { slot, .. } | Op::Update { slot, .. } => Some(slot.location().file),
                        Op::Remove { by, .. } | Op::Acknowledge { by, .. } => Some(*by),
                        _ => None,
                    };
                    if let Some(file) = place {
                        self.files.outlives(by, file);
                    }
                    self.apply(op, out)?;
                }
                let _ = from;
                Ok(())
            }
            Op::Collect { files, known } => {
                self.audit.learn(known);
                for file in files {
                    self.files.forget(file);
                    self.collected.insert(file);
                    self.forget_first_records(file);
                }
                Ok(())
            }
        }
    }

    /// Subscriptions that were recorded in this file and again later begin with the later record.
    fn forget_first_records(&mut self, file: u32) {
        for n in 0..self.destinations.len() {
            let Some(d) = self.destinations.get_mut(n) else { continue };
            let mut has_changed = false;
            for sub in d.subscriptions.values_mut().filter(|sub| sub.at.file == file) {
                if let Some(renewed) = sub.renewed.take() {
                    sub.at = renewed;
                    has_changed = true;
                }
            }
            if has_changed {
                self.mark(DestinationKey(n as u32));
            }
        }
    }

    fn apply_add(
        &mut self,
        key: DestinationKey,
        sequence: u64,
        slot: Slot,
        out: &mut Vec<Applied>,
    ) -> Outcome<()> {
        self.name(key);
        let Some(d) = self.destinations.get_mut(key.0 as usize) else { return Ok(()) };
        if !d.name.kind.is_queue() && !d.subscriptions.values().any(|sub| sub.has_pending(sequence)) {
            // Nobody wants it, but its number is used up: a subscription to come begins behind it.
            d.saw(sequence);
            self.mark(key);
            return Ok(());
        }
        if self.put(key, sequence, slot)? {
            if let Some(d) = self.destinations.get_mut(key.0 as usize) {
                for sub in d.subscriptions.values_mut().filter(|sub| sub.has_pending(sequence)) {
                    sub.pending += 1;
                }
            }
            out.push(Applied::Added { destination: key, entry: slot.entry(sequence) });
        }
        Ok(())
    }

    fn apply_acknowledge(
        &mut self,
        key: DestinationKey,
        subscription: SubscriptionKey,
        sequence: u64,
        by: u32,
        out: &mut Vec<Applied>,
    ) -> Outcome<()> {
        let Some(slot) = self.slot(key, sequence)? else { return Ok(()) };
        let Some(d) = self.destinations.get_mut(key.0 as usize) else { return Ok(()) };
        let Some(sub) = d.subscriptions.get_mut(&subscription) else { return Ok(()) };
        if !sub.has_pending(sequence) {
            return Ok(());
        }
        sub.acknowledged.insert(sequence);
        sub.floor = sub.acknowledged.raise(sub.floor);
        sub.held.remove(&sequence);
        sub.pending = sub.pending.saturating_sub(1);
        let done = !d.subscriptions.values().any(|sub| sub.has_pending(sequence));
        self.files.outlives(by, slot.location().file);
        self.mark(key);
        out.push(Applied::Acknowledged { destination: key, subscription, sequence });
        if done && self.take(key, sequence, by)? {
            out.push(Applied::Removed { destination: key, sequence });
        }
        Ok(())
    }

    fn apply_subscribe(
        &mut self,
        key: DestinationKey,
        info: SubscriptionInfo,
        retroactive: bool,
        at: Location,
        out: &mut Vec<Applied>,
    ) -> Outcome<()> {
        self.name(key);
        let Some(d) = self.destinations.get_mut(key.0 as usize) else { return Ok(()) };
        let name =
            SubscriptionKey { client_id: info.client_id.clone(), name: info.subscription_name.clone() };
        let count = d.count;
        match d.subscriptions.get_mut(&name) {
            // A record written again, or changed: what is pending stays pending (D9 of the format's defects).
            Some(sub) => {
                sub.info = info.clone();
                let old = sub.renewed.take();
                if sub.pending == 0 {
                    // Nothing to count: the new record says it all.
                    let first = std::mem::replace(&mut sub.at, at);
                    self.files.subscription_left(first.file, at.file);
                } else {
                    sub.renewed = Some(at);
                }
                if let Some(old) = old {
                    self.files.subscription_left(old.file, at.file);
                }
            }
            None => {
                if retroactive {
                    self.keep_older_subscriptions(key)?;
                }
                let Some(d) = self.destinations.get_mut(key.0 as usize) else { return Ok(()) };
                let floor = if retroactive { 0 } else { d.applied_sequence };
                let pending = if retroactive { count } else { 0 };
                let sub = Subscription {
                    info: info.clone(),
                    at,
                    renewed: None,
                    floor,
                    acknowledged: Ranges::default(),
                    held: BTreeSet::new(),
                    pending,
                };
                d.subscriptions.insert(name, sub);
            }
        }
        self.files.touch(at.file).subscriptions += 1;
        self.mark(key);
        out.push(Applied::Subscribed { destination: key, info });
        Ok(())
    }

    /// Another subscription gets what these have pending: who replays the journal must find them, or the messages would have
    /// been nobody's when it comes.
    fn keep_older_subscriptions(&mut self, key: DestinationKey) -> Outcome<()> {
        let older = self.get(key).into_iter().flat_map(|d| d.subscriptions.values());
        let older: BTreeSet<u32> = older.flat_map(Subscription::files).collect();
        let mut messages = BTreeSet::new();
        self.each(key, |_, slot| {
            messages.insert(slot.location().file);
        })?;
        for &file in &older {
            messages.iter().for_each(|&message| self.files.outlives(file, message));
        }
        Ok(())
    }

    fn apply_unsubscribe(
        &mut self,
        key: DestinationKey,
        subscription: SubscriptionKey,
        by: u32,
        out: &mut Vec<Applied>,
    ) -> Outcome<()> {
        let Some(sub) = self.get_mut(key).and_then(|d| d.subscriptions.remove(&subscription)) else {
            return Ok(());
        };
        for file in sub.files() {
            self.files.subscription_left(file, by);
        }
        self.mark(key);
        out.push(Applied::Unsubscribed { destination: key, subscription });
        for (sequence, _) in self.unwanted(key)? {
            if self.take(key, sequence, by)? {
                out.push(Applied::Removed { destination: key, sequence });
            }
        }
        Ok(())
    }

    /// Messages of a topic that no subscription has pending, each with its file.
    fn unwanted(&mut self, key: DestinationKey) -> Outcome<Vec<(u64, u32)>> {
        let subscriptions: Vec<Subscription> =
            self.get(key).map(|d| d.subscriptions.values().cloned().collect()).unwrap_or_default();
        let mut unwanted = Vec::new();
        self.each(key, |sequence, slot| {
            if !subscriptions.iter().any(|sub| sub.has_pending(sequence)) {
                unwanted.push((sequence, slot.location().file));
            }
        })?;
        Ok(unwanted)
    }

    /// A subscription of this topic was left out: so are the messages that it alone had pending.
    pub(crate) fn forget_unwanted(&mut self, key: DestinationKey) -> Outcome<()> {
        for (sequence, file) in self.unwanted(key)? {
            self.take(key, sequence, file)?;
        }
        Ok(())
    }

    /// Counts again what the subscriptions of all topics have pending.
    pub(crate) fn count_pending(&mut self) -> Outcome<()> {
        let topics: Vec<DestinationKey> =
            self.destinations().filter(|(_, d)| !d.subscriptions.is_empty()).map(|(key, _)| key).collect();
        for key in topics {
            let mut sequences = Vec::new();
            self.each(key, |sequence, _| sequences.push(sequence))?;
            for sub in self.get_mut(key).into_iter().flat_map(|d| d.subscriptions.values_mut()) {
                let pending = sequences.iter().filter(|&&sequence| sub.has_pending(sequence));
                sub.pending = pending.count() as u64;
            }
        }
        Ok(())
    }

    fn apply_remove_destination(
        &mut self,
        key: DestinationKey,
        by: u32,
        out: &mut Vec<Applied>,
    ) -> Outcome<()> {
        let mut all = Vec::new();
        self.each(key, |sequence, _| all.push(sequence))?;
        for sequence in all {
            self.take(key, sequence, by)?;
        }
        let subscriptions =
            self.get_mut(key).map(|d| std::mem::take(&mut d.subscriptions)).unwrap_or_default();
        for sub in subscriptions.values() {
            for file in sub.files() {
                self.files.subscription_left(file, by);
            }
        }
        if let Some(d) = self.get_mut(key) {
            d.named = false;
        }
        self.mark(key);
        out.push(Applied::DestinationRemoved { destination: key });
        Ok(())
    }

    /// A number for what a consumer could tell apart: live messages with their places, what each durable subscription has
    /// pending, transactions in doubt, what producers have stored last. Equal on nodes that have applied the same journal up to the same position, however
    /// they came there. Reads every chunk; those that are not resident stay so.
    pub fn digest(&self) -> Outcome<u64> {
        let mut hash = Xxh3::new();
        let mut all: Vec<_> =
            self.destinations().filter(|(_, d)| d.count > 0 || !d.subscriptions.is_empty()).collect();
        all.sort_unstable_by_key(|(_, d)| (d.name.kind as u8, &*d.name.name));
        for (key, d) in all {
            put_name(&d.name, &mut hash);
            let subscriptions: Vec<_> = d.subscriptions.iter().collect();
            for (name, sub) in &subscriptions {
                put_text(&name.client_id, &mut hash);
                put_text(&name.name, &mut hash);
                hash.update(&sub.pending.to_be_bytes());
            }
            for &number in d.chunks.keys() {
                let slots = self.peek(key, d, number)?;
                for (offset, slot) in slots.iter() {
                    let sequence = number * CHUNK + u64::from(offset);
                    hash.update(&sequence.to_be_bytes());
                    hash.update(&slot.location().lsn().0.to_be_bytes());
                    hash.update(&slot.size().to_be_bytes());
                    hash.update(&[slot.tier() as u8, u8::from(slot.is_held())]);
                    for (_, sub) in &subscriptions {
                        let held = sub.held.contains(&sequence);
                        hash.update(&[u8::from(sub.has_pending(sequence)), u8::from(held)]);
                    }
                }
            }
        }
        for (id, prepared) in &self.prepared {
            put_text(&id.to_string(), &mut hash);
            hash.update(&prepared.at.lsn().0.to_be_bytes());
            for op in &prepared.operations {
                let (destination, sequence, at) = match op {
                    PreparedOp::Add { destination, at, .. } => (destination, None, at),
                    PreparedOp::Remove { destination, sequence, at, .. } => (destination, *sequence, at),
                };
                put_name(&self.get(*destination).map(|d| d.name.clone()).unwrap_or_default(), &mut hash);
                hash.update(&at.lsn().0.to_be_bytes());
                hash.update(&sequence.map_or(0, |n| n.saturating_add(1)).to_be_bytes());
            }
        }
        let mut known = self.audit.clone().entries();
        known.sort_unstable();
        for (producer, number) in known {
            put_text(&producer.connection, &mut hash);
            for number in [producer.session, producer.value, number] {
                hash.update(&number.to_be_bytes());
            }
        }
        Ok(hash.digest())
    }

    /// A chunk, without making it resident.
    fn peek(&self, key: DestinationKey, d: &DestinationState, number: u64) -> Outcome<Arc<Slots>> {
        if let Some(Chunk { body: Body::Resident(slots), .. }) = d.chunks.get(&number) {
            return Ok(Arc::clone(slots));
        }
        let fail = |reason| ChunkError { destination: d.name.to_string(), chunk: number, reason };
        let source = self.source.as_ref().ok_or_else(|| fail("there is no index store".into()))?;
        source.load(key, number).map(Arc::new).map_err(fail)
    }

    /// How many durable subscriptions have their newest record in this file. Whether an older one is needed as well, only who
    /// has seen all that was ever pending can tell: an index that was built from what stays needs less.
    pub fn subscriptions_with_newest_in(&self, file: u32) -> usize {
        let newest = |sub: &Subscription| sub.renewed.unwrap_or(sub.at).file;
        let all = self.destinations.iter().flat_map(|d| d.subscriptions.values());
        all.filter(|sub| newest(sub) == file).count()
    }

    /// The first data file with an operation of a prepared transaction.
    pub fn first_prepared_file(&self) -> Option<u32> {
        self.prepared.values().map(|prepared| prepared.first.file).min()
    }

    /// What changed since the last snapshot, cheaply: shared chunks, to be encoded and written elsewhere.
    pub fn snapshot(&mut self) -> Vec<DestinationSnapshot> {
        let keys = std::mem::take(&mut self.dirty);
        let mut out = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(d) = self.destinations.get_mut(key.0 as usize) else { continue };
            d.dirty = false;
            let mut changed = Vec::new();
            for (&number, chunk) in d.chunks.iter_mut().filter(|(_, chunk)| chunk.dirty) {
                if let Body::Resident(slots) = &chunk.body {
                    changed.push((number, Arc::clone(slots)));
                    chunk.dirty = false;
                    chunk.stored = true;
                }
            }
            let mut gone = std::mem::take(&mut d.gone);
            gone.retain(|number| !d.chunks.contains_key(number));
            out.push(DestinationSnapshot {
                key,
                name: d.name.clone(),
                next_sequence: d.applied_sequence,
                named: d.named,
                directory: d.chunks.iter().map(|(&number, chunk)| (number, chunk.live)).collect(),
                subscriptions: d.subscriptions.values().cloned().collect(),
                changed,
                gone,
            });
        }
        out
    }

    /// Puts a destination in as a checkpoint has it: all its chunks are in the index store.
    pub fn restore(&mut self, key: DestinationKey, snapshot: DestinationSnapshot) {
        while self.destinations.len() <= key.0 as usize {
            self.destinations.push(DestinationState::new(Destination::default()));
        }
        let mut d = DestinationState::new(snapshot.name.clone());
        d.next_sequence = snapshot.next_sequence;
        d.applied_sequence = snapshot.next_sequence;
        d.named = snapshot.named;
        for (number, live) in snapshot.directory {
            d.count += live.iter().map(|&n| u64::from(n)).sum::<u64>();
            d.chunks.insert(number, Chunk { live, body: Body::Stored, dirty: false, stored: true });
        }
        for sub in snapshot.subscriptions {
            let name = SubscriptionKey {
                client_id: sub.info.client_id.clone(),
                name: sub.info.subscription_name.clone(),
            };
            d.subscriptions.insert(name, sub);
        }
        self.keys.insert(snapshot.name, key);
        if let Some(place) = self.destinations.get_mut(key.0 as usize) {
            *place = d;
        }
    }

    /// Lets clean chunks go until the resident ones fit `bytes_max`: not the first two and not the last of a destination,
    /// which are about to be consumed and filled. Only after the snapshot that cleaned them is durable.
    pub fn evict(&mut self, bytes_max: usize) {
        for d in &mut self.destinations {
            if self.resident_bytes <= bytes_max {
                return;
            }
            let last = d.chunks.last_key_value().map(|(&number, _)| number);
            for (&number, chunk) in d.chunks.iter_mut().skip(2) {
                if Some(number) == last || chunk.dirty || !chunk.stored {
                    continue;
                }
                if let Body::Resident(slots) = &chunk.body {
                    self.resident_bytes = self.resident_bytes.saturating_sub(slots.bytes());
                    chunk.body = Body::Stored;
                }
            }
        }
    }
}

fn put_text(text: &str, hash: &mut Xxh3) {
    hash.update(&(text.len() as u64).to_be_bytes());
    hash.update(text.as_bytes());
}

fn put_name(name: &Destination, hash: &mut Xxh3) {
    hash.update(&[name.kind as u8]);
    put_text(&name.name, hash);
}

/// A destination as a checkpoint keeps it.
#[derive(Clone, Debug)]
pub struct DestinationSnapshot {
    /// Its key.
    pub key: DestinationKey,
    /// Its name.
    pub name: Destination,
    /// One past the highest number applied.
    pub next_sequence: u64,
    /// Whether it is listed when empty.
    pub named: bool,
    /// Live messages by tier of every chunk.
    pub directory: Vec<(u64, [u16; 3])>,
    /// Its durable subscriptions.
    pub subscriptions: Vec<Subscription>,
    /// Chunks to write.
    pub changed: Vec<(u64, Arc<Slots>)>,
    /// Chunks to delete.
    pub gone: Vec<u64>,
}
