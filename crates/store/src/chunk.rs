//! Runs of index entries: `CHUNK` consecutive sequences of one destination in one allocation.
//!
//! ```text
//! chunk value in the index store, all numbers varints
//! +---------+--------+---- per slot -------------------------------------------------------+
//! | version | slots  | tag: 0 = empty, else 1 + flags | location, zigzag difference | size | expiration if flagged |
//! +---------+--------+---------------------------------------------------------------------+
//! ```

use bytes::{Bytes, BytesMut};
use kahawai_message::storage::{Entry, Tier};
use kahawai_types::{Location, Lsn};
use kahawai_wire::{Reader, WireError, put_varint64};

/// Sequences per chunk.
pub const CHUNK: u64 = 512;

const VERSION: u64 = 1;
const TIER_BITS: u32 = 0b11;
const HELD: u32 = 0b100;
const EXPIRES: u32 = 0b1000;
const COUNTER_SHIFT: u32 = 4;
const COUNTER_MAX: u32 = 0xffff;

/// One message in the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot {
    lsn: u64,
    expiration_ms: i64,
    size: u32,
    flags: u32,
}

impl Slot {
    /// The slot of a message whose record of `size` bytes lies at `location`.
    pub fn new(
        location: Location,
        size: u32,
        tier: Tier,
        expiration_ms: i64,
        redelivery_counter: u32,
    ) -> Self {
        let flags = tier as u32 | (redelivery_counter.min(COUNTER_MAX) << COUNTER_SHIFT);
        Self { lsn: location.lsn().0, expiration_ms, size, flags }
    }

    /// A location is never 0: records follow a batch header.
    pub const fn is_empty(&self) -> bool {
        self.lsn == 0
    }

    /// Where the record lies.
    pub const fn location(&self) -> Location {
        Lsn(self.lsn).location()
    }

    /// Size of the record with its header.
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// Its tier.
    pub const fn tier(&self) -> Tier {
        Tier::ALL[(self.flags & TIER_BITS) as usize % 3]
    }

    /// Consumed in a prepared transaction: stored, not deliverable.
    pub const fn is_held(&self) -> bool {
        self.flags & HELD != 0
    }

    /// Marks it consumed in a prepared transaction, or not.
    pub fn set_held(&mut self, held: bool) {
        self.flags = if held { self.flags | HELD } else { self.flags & !HELD };
    }

    /// As the broker sees it.
    pub const fn entry(&self, sequence: u64) -> Entry {
        Entry {
            sequence,
            tier: self.tier(),
            location: self.location(),
            size: self.size,
            expiration_ms: self.expiration_ms,
            redelivery_counter: self.flags >> COUNTER_SHIFT,
        }
    }
}

/// The slots of one chunk: sequences from `first`, without gaps in the vector but with empty slots.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Slots {
    /// Offset in the chunk of the first slot.
    first: u16,
    slots: Vec<Slot>,
}

impl Slots {
    /// The slot of the chunk's `offset`-th sequence.
    pub fn get(&self, offset: u16) -> Option<&Slot> {
        self.slots.get(usize::from(offset.checked_sub(self.first)?)).filter(|slot| !slot.is_empty())
    }

    /// The same, to change it. Never to be made empty with this.
    pub fn get_mut(&mut self, offset: u16) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(offset.checked_sub(self.first)?)).filter(|slot| !slot.is_empty())
    }

    /// Files a slot, and returns what was there.
    pub fn put(&mut self, offset: u16, slot: Slot) -> Option<Slot> {
        if self.slots.is_empty() {
            self.first = offset;
        }
        if offset < self.first {
            let missing = usize::from(self.first - offset);
            self.slots.splice(0..0, std::iter::repeat_n(Slot::default(), missing));
            self.first = offset;
        }
        let at = usize::from(offset - self.first);
        if at >= self.slots.len() {
            if at >= self.slots.capacity() {
                // Doubles: a queue of one message costs one slot, a busy one few reallocations.
                self.slots.reserve_exact((at + 1).max(self.slots.len()).min(CHUNK as usize));
            }
            self.slots.resize(at + 1, Slot::default());
        }
        let place = self.slots.get_mut(at)?;
        let before = std::mem::replace(place, slot);
        (!before.is_empty()).then_some(before)
    }

    /// Empties a slot, and returns what was there.
    pub fn take(&mut self, offset: u16) -> Option<Slot> {
        let place = self.slots.get_mut(usize::from(offset.checked_sub(self.first)?))?;
        let before = std::mem::take(place);
        (!before.is_empty()).then_some(before)
    }

    /// The first slot at or behind `offset` that pleases `wanted`.
    pub fn find(&self, offset: u16, wanted: impl Fn(&Slot) -> bool) -> Option<(u16, &Slot)> {
        let skip = usize::from(offset.saturating_sub(self.first));
        self.slots
            .iter()
            .enumerate()
            .skip(skip)
            .find(|(_, slot)| !slot.is_empty() && wanted(slot))
            .map(|(at, slot)| (self.first + at as u16, slot))
    }

    /// All that are there.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &Slot)> {
        let first = self.first;
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| !slot.is_empty())
            .map(move |(at, slot)| (first + at as u16, slot))
    }

    /// Memory that the slots take, bytes.
    pub fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
    }

    /// Live messages by tier.
    pub fn live(&self) -> [u16; 3] {
        let mut live = [0; 3];
        for (_, slot) in self.iter() {
            live[slot.tier() as usize] += 1;
        }
        live
    }

    /// Appends the stored form.
    pub fn encode(&self, out: &mut BytesMut) {
        put_varint64(VERSION, out);
        put_varint64(self.first.into(), out);
        put_varint64(self.slots.len() as u64, out);
        let mut last = 0u64;
        for slot in &self.slots {
            if slot.is_empty() {
                put_varint64(0, out);
                continue;
            }
            let flags = slot.flags & !EXPIRES | if slot.expiration_ms != 0 { EXPIRES } else { 0 };
            put_varint64(1 + u64::from(flags), out);
            let difference = slot.lsn.wrapping_sub(last).cast_signed();
            put_varint64(((difference << 1) ^ (difference >> 63)).cast_unsigned(), out);
            put_varint64(slot.size.into(), out);
            if slot.expiration_ms != 0 {
                put_varint64(slot.expiration_ms.cast_unsigned(), out);
            }
            last = slot.lsn;
        }
    }

    /// Reads the stored form.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let unexpected =
            |what, value: u64, at| WireError::Unexpected { what, value: value.cast_signed(), at };
        let version = reader.varint64()?;
        if version != VERSION {
            return Err(unexpected("chunk version", version, 0));
        }
        let first = reader.varint64()?;
        let count = reader.varint64()?;
        if first >= CHUNK || count > CHUNK - first {
            return Err(unexpected("chunk size", count, reader.position()));
        }
        let mut slots = Vec::with_capacity(count as usize);
        let mut last = 0u64;
        for _ in 0..count {
            let at = reader.position();
            let tag = reader.varint64()?;
            let Some(flags) = tag.checked_sub(1) else {
                slots.push(Slot::default());
                continue;
            };
            let flags = u32::try_from(flags).map_err(|_| unexpected("slot flags", tag, at))?;
            if flags & TIER_BITS > 2 {
                return Err(unexpected("tier", tag, at));
            }
            let zigzag = reader.varint64()?;
            let lsn = last.wrapping_add((zigzag >> 1) ^ (zigzag & 1).wrapping_neg());
            if lsn == 0 {
                return Err(unexpected("location", zigzag, at));
            }
            let size = reader.varint64()?;
            let size = u32::try_from(size).map_err(|_| unexpected("record size", size, at))?;
            let expiration_ms = if flags & EXPIRES != 0 { reader.varint64()?.cast_signed() } else { 0 };
            slots.push(Slot { lsn, expiration_ms, size, flags: flags & !EXPIRES });
            last = lsn;
        }
        Ok(Self { first: first as u16, slots })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn any_slot() -> impl Strategy<Value = Slot> {
        (
            1u32..,
            any::<u32>(),
            any::<u32>(),
            0usize..3,
            prop_oneof![Just(0), any::<i64>()],
            0u32..0x1_0000,
            any::<bool>(),
        )
            .prop_map(|(file, offset, size, tier, expiration, counter, held)| {
                let mut slot =
                    Slot::new(Location::new(file, offset), size, Tier::ALL[tier], expiration, counter);
                slot.set_held(held);
                slot
            })
    }

    proptest! {
        #[test]
        fn a_chunk_reads_back(filed in vec((0u16..512, any_slot()), 0..60)) {
            let mut slots = Slots::default();
            for &(offset, slot) in &filed {
                slots.put(offset, slot);
            }
            for &(offset, slot) in filed.iter().rev().take(1) {
                prop_assert_eq!(slots.get(offset), Some(&slot));
                prop_assert_eq!(slots.get(offset).map(|s| s.entry(7).redelivery_counter), Some(slot.flags >> COUNTER_SHIFT));
            }
            let mut out = BytesMut::new();
            slots.encode(&mut out);
            prop_assert_eq!(Slots::decode(out.freeze()), Ok(slots));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Slots::decode(bytes.into());
        }
    }

    #[test]
    fn slots_in_front_of_the_first_find_room() {
        let mut slots = Slots::default();
        let slot = |n| Slot::new(Location::new(1, n), 10, Tier::Default, 0, 0);
        slots.put(100, slot(1));
        slots.put(3, slot(2));
        assert_eq!(slots.iter().map(|(at, _)| at).collect::<Vec<_>>(), [3, 100]);
        assert_eq!(slots.find(4, |_| true).map(|(at, _)| at), Some(100));
        assert_eq!(slots.take(3), Some(slot(2)));
        assert_eq!(slots.take(3), None);
        assert_eq!(slots.live(), [0, 1, 0]);
    }
}
