//! A line: the messages that wait for one queue's consumers, or for one durable subscription on one topic.
//!
//! Messages in the store are not kept here: a [`Cursor`] per tier says up to where they have been looked at. What lies
//! below a cursor and still exists is either *held* (with a consumer, acknowledged but not committed, on its way to the
//! dead letters) or *waiting* (given back, or kept in memory). What lies above it is the store's business alone. So a line
//! takes memory for what is in flight, however deep it is.
//!
//! Delivery order is that of [`Position`]: tier, then sequence. A message in memory stands behind the last stored one that
//! had been committed when it came.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use kahawai_message::Millis;
use kahawai_message::storage::{DestinationKey, Entry, Storage, StorageError, SubscriptionKey, Tier};
use kahawai_types::Lsn;

use crate::hash::FastMap;
use crate::slab::{ConsumerKey, MemoryKey, PlaceKey};

/// A message of a line: the sequence of a stored one with `minor` 0, or a running number behind a sequence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Slot {
    pub sequence: u64,
    pub minor: u64,
}

impl Slot {
    pub const fn stored(sequence: u64) -> Self {
        Self { sequence, minor: 0 }
    }
}

/// Where a message stands in its line. Orders as messages are delivered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Position {
    pub tier: Tier,
    pub slot: Slot,
}

impl Position {
    pub const FIRST: Self = Self { tier: Tier::High, slot: Slot::stored(0) };

    pub const fn of(entry: &Entry) -> Self {
        Self { tier: entry.tier, slot: Slot::stored(entry.sequence) }
    }

    pub const fn next(self) -> Self {
        Self { tier: self.tier, slot: Slot { sequence: self.slot.sequence, minor: self.slot.minor + 1 } }
    }
}

/// Where a message's content is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Body {
    Stored(Entry),
    Memory(MemoryKey),
}

/// Why a held message is not to be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeldState {
    /// With a consumer.
    Delivered,
    /// Acknowledged in a transaction that is open.
    InTransaction,
    /// The acknowledgement is appended and not committed.
    Acknowledged,
    /// On its way to the dead letters: its body is being read.
    Dying,
    /// Its body cannot be read. Stays until the data file is replaced, or the next start.
    Unreadable,
}

#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub tier: Tier,
    pub body: Body,
    /// Deliveries since the broker started that came back.
    pub returns: u32,
    pub state: HeldState,
}

#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub body: Body,
    pub returns: u32,
    /// Its key in [`Line::arrivals`].
    pub arrival: u64,
}

/// Up to where a tier of the store has been looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Cursor {
    pub next: u64,
    /// There may be something at or behind `next`.
    pub more: bool,
}

/// A consumer that takes whatever comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub consumer: ConsumerKey,
    pub priority: u8,
    pub exclusive: bool,
    /// Takes from several lines, so it must be told where something waits.
    pub several: bool,
}

/// A consumer that takes only what matches, and so walks the line at its own pace.
#[derive(Debug)]
pub(crate) struct Selecting {
    /// Tells one that came back from the one before.
    pub number: u64,
    /// `None`: nobody is there, but what does not match a durable subscription is dropped all the same.
    pub member: Option<Member>,
    pub cursors: [Cursor; 3],
    /// How far it has come through what waited when it joined; `None`: through.
    pub walk: Option<Position>,
    /// Number of the last of [`Line::arrivals`] that it has looked at, for what came or came back later.
    pub arrivals_seen: u64,
    /// The node is evaluating a batch for it.
    pub scanning: bool,
    /// What matched and had no room.
    pub matched: VecDeque<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Candidate {
    Waiting(Position),
    Stored(Entry),
}

/// A message taken out of the line for delivery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub slot: Slot,
    pub tier: Tier,
    pub body: Body,
    pub returns: u32,
}

#[derive(Debug)]
pub(crate) struct Line {
    pub place: PlaceKey,
    pub stored_at: Option<DestinationKey>,
    /// `None` for a queue.
    pub subscription: Option<Arc<SubscriptionKey>>,
    /// Where its beginning is committed.
    pub ready_at: Lsn,
    /// The store has said that it began. Before, what the store shows and reports is not for it, and may be what belonged to its
    /// predecessor of the same name.
    pub has_begun: bool,
    pub cursors: [Cursor; 3],
    pub held: FastMap<Slot, Held>,
    pub waiting: BTreeMap<Position, Waiting>,
    /// What waits, by when it came or came back.
    pub arrivals: BTreeMap<u64, Position>,
    arrival_last: u64,
    memory_last: u64,
    /// Highest sequence that was committed.
    pub sequence_last: u64,
    /// By priority, highest first, then by arrival.
    pub members: Vec<Member>,
    /// Index in `members` of whose turn it is.
    pub turn: usize,
    pub selecting: Vec<Selecting>,
    /// The one consumer that gets everything, if one claims that.
    pub exclusive: Option<ConsumerKey>,
    /// Something waits and no consumer has room. Who gets room asks; new messages need not look.
    pub starved: bool,
    /// Acknowledgements appended and not committed.
    pub acks_pending: u32,
    /// Stopped because `acks_pending` was at its limit.
    pub stalled: bool,
    /// It is in the broker's list of work.
    pub scheduled: bool,
    /// When it is looked through for expired messages next.
    pub sweep_at: Option<Millis>,
    pub sweep_from: Position,
    /// A message that can expire was met on the current walk.
    pub sweep_met_expiring: bool,
}

impl Line {
    pub fn new(
        place: PlaceKey,
        stored_at: Option<DestinationKey>,
        subscription: Option<Arc<SubscriptionKey>>,
    ) -> Self {
        Self {
            place,
            stored_at,
            subscription,
            ready_at: Lsn::ZERO,
            has_begun: true,
            cursors: [Cursor::default(); 3],
            held: FastMap::default(),
            waiting: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            arrival_last: 0,
            memory_last: 0,
            sequence_last: 0,
            members: Vec::new(),
            turn: 0,
            selecting: Vec::new(),
            exclusive: None,
            starved: false,
            acks_pending: 0,
            stalled: false,
            scheduled: false,
            sweep_at: None,
            sweep_from: Position::FIRST,
            sweep_met_expiring: false,
        }
    }

    /// Everything in the store is yet to be looked at.
    pub fn rewind(&mut self) {
        self.cursors = [Cursor { next: 0, more: true }; 3];
    }

    /// The store's first message of a tier at or behind `from` that this line has not finished with.
    pub fn next_in_store(
        &self,
        tier: Tier,
        from: u64,
        storage: &mut dyn Storage,
    ) -> Result<Option<Entry>, StorageError> {
        match (self.stored_at, &self.subscription) {
            (Some(at), None) => storage.next(at, tier, from),
            (Some(at), Some(subscription)) => storage.next_pending(at, subscription, tier, from),
            (None, _) => Ok(None),
        }
    }

    /// Is the entry still there, and nobody's?
    pub fn is_available(&self, entry: &Entry, storage: &mut dyn Storage) -> Result<bool, StorageError> {
        if self.held.contains_key(&Slot::stored(entry.sequence)) {
            return Ok(false);
        }
        let found = self.next_in_store(entry.tier, entry.sequence, storage)?;
        Ok(found.is_some_and(|found| found.sequence == entry.sequence))
    }

    /// May there be something to deliver?
    pub fn may_have_more(&self) -> bool {
        !self.waiting.is_empty() || self.cursors.iter().any(|cursor| cursor.more)
    }

    /// What is to be delivered next; stays where it is until [`Line::take`].
    pub fn peek(&mut self, storage: &mut dyn Storage) -> Result<Option<Candidate>, StorageError> {
        let waiting = self.waiting.first_key_value().map(|(position, _)| *position);
        for tier in Tier::ALL {
            if waiting.is_some_and(|position| position.tier < tier) {
                break;
            }
            while self.cursors[tier as usize].more {
                let from = self.cursors[tier as usize].next;
                let Some(entry) = self.next_in_store(tier, from, storage)? else {
                    self.cursors[tier as usize].more = false;
                    break;
                };
                let position = Position::of(&entry);
                if self.held.contains_key(&position.slot) || self.waiting.contains_key(&position) {
                    self.cursors[tier as usize].next = entry.sequence + 1;
                    continue;
                }
                self.cursors[tier as usize].next = entry.sequence;
                match waiting {
                    Some(waiting) if waiting < position => return Ok(Some(Candidate::Waiting(waiting))),
                    _ => return Ok(Some(Candidate::Stored(entry))),
                }
            }
        }
        Ok(waiting.map(Candidate::Waiting))
    }

    /// Takes the candidate out; whoever calls puts it among the held, or drops it.
    pub fn take(&mut self, candidate: Candidate) -> Option<Taken> {
        match candidate {
            Candidate::Stored(entry) => {
                let cursor = &mut self.cursors[entry.tier as usize];
                if cursor.next == entry.sequence {
                    cursor.next = entry.sequence + 1;
                }
                let slot = Slot::stored(entry.sequence);
                Some(Taken { slot, tier: entry.tier, body: Body::Stored(entry), returns: 0 })
            }
            Candidate::Waiting(position) => {
                let waiting = self.waiting.remove(&position)?;
                self.arrivals.remove(&waiting.arrival);
                let Position { tier, slot } = position;
                Some(Taken { slot, tier, body: waiting.body, returns: waiting.returns })
            }
        }
    }

    /// Takes a stored message that a selecting consumer found, wherever it is.
    pub fn take_entry(&mut self, entry: Entry) -> Taken {
        let position = Position::of(&entry);
        match self.take(Candidate::Waiting(position)) {
            Some(taken) => taken,
            None => Taken { slot: position.slot, tier: entry.tier, body: Body::Stored(entry), returns: 0 },
        }
    }

    pub fn hold(&mut self, taken: &Taken, state: HeldState) {
        let Taken { slot, tier, body, returns } = *taken;
        self.held.insert(slot, Held { tier, body, returns, state });
    }

    /// Puts a message where it waits to be taken.
    pub fn put(&mut self, position: Position, body: Body, returns: u32) {
        self.arrival_last += 1;
        let arrival = self.arrival_last;
        if let Some(old) = self.waiting.insert(position, Waiting { body, returns, arrival }) {
            self.arrivals.remove(&old.arrival);
        }
        self.arrivals.insert(arrival, position);
    }

    /// A position for a message in memory that has just come.
    pub fn position_in_memory(&mut self, tier: Tier) -> Position {
        self.memory_last += 1;
        Position { tier, slot: Slot { sequence: self.sequence_last, minor: self.memory_last } }
    }

    /// A held message is to be delivered again.
    pub fn give_back(&mut self, slot: Slot, counted: bool) {
        if let Some(held) = self.held.remove(&slot) {
            let returns = held.returns.saturating_add(counted.into());
            self.put(Position { tier: held.tier, slot }, held.body, returns);
        }
    }

    /// What could not be read is tried again; `true` if there was any.
    pub fn give_back_unreadable(&mut self) -> bool {
        let unreadable = self.held.iter().filter(|(_, held)| held.state == HeldState::Unreadable);
        let slots: Vec<Slot> = unreadable.map(|(slot, _)| *slot).collect();
        slots.iter().for_each(|slot| self.give_back(*slot, false));
        !slots.is_empty()
    }

    /// Forgets a stored message that is gone from the store. Returns how it was held, if it was.
    pub fn forget(&mut self, sequence: u64) -> Option<Held> {
        let slot = Slot::stored(sequence);
        let held = self.held.remove(&slot);
        if held.is_none() && !self.waiting.is_empty() {
            for tier in Tier::ALL {
                self.take(Candidate::Waiting(Position { tier, slot }));
            }
        }
        held
    }

    pub fn join(&mut self, member: Member, selecting_number: Option<u64>) {
        if let Some(number) = selecting_number {
            self.selecting.push(Selecting {
                number,
                member: Some(member),
                cursors: [Cursor { next: 0, more: true }; 3],
                walk: Some(Position::FIRST),
                arrivals_seen: self.arrival_last,
                scanning: false,
                matched: VecDeque::new(),
            });
        } else {
            let at = self.members.partition_point(|other| other.priority >= member.priority);
            self.members.insert(at, member);
        }
        self.choose_exclusive();
    }

    /// The next of what waits that a selecting consumer has not looked at: what was there when it joined in delivery order,
    /// then what came since.
    pub fn next_to_select(&mut self, index: usize) -> Option<Position> {
        let selecting = self.selecting.get_mut(index)?;
        if let Some(from) = selecting.walk {
            if let Some((&position, _)) = self.waiting.range(from..).next() {
                return Some(position);
            }
            selecting.walk = None;
        }
        let (_, &position) = self.arrivals.range(selecting.arrivals_seen + 1..).next()?;
        Some(position)
    }

    /// It has looked at that.
    pub fn selected(&mut self, index: usize, position: Position) {
        let Some(selecting) = self.selecting.get_mut(index) else { return };
        if selecting.walk.is_some() {
            selecting.walk = Some(position.next());
        } else if let Some(waiting) = self.waiting.get(&position) {
            selecting.arrivals_seen = waiting.arrival;
        }
    }

    pub fn leave(&mut self, consumer: ConsumerKey) {
        self.members.retain(|member| member.consumer != consumer);
        self.selecting.retain(|selecting| selecting.member.is_none_or(|member| member.consumer != consumer));
        self.choose_exclusive();
    }

    fn choose_exclusive(&mut self) {
        let selecting = self.selecting.iter().filter_map(|selecting| selecting.member.as_ref());
        let mut best: Option<&Member> = None;
        for member in self.members.iter().chain(selecting).filter(|member| member.exclusive) {
            // Who has it keeps it against an equal that came later.
            let better = best.is_none_or(|best| {
                member.priority > best.priority
                    || (member.priority == best.priority && self.exclusive == Some(member.consumer))
            });
            if better {
                best = Some(member);
            }
        }
        self.exclusive = best.map(|member| member.consumer);
    }

    pub fn members_of_all_kinds(&self) -> impl Iterator<Item = Member> {
        self.members.iter().copied().chain(self.selecting.iter().filter_map(|selecting| selecting.member))
    }
}
