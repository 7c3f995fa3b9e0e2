//! What each producer had stored last, to recognise what it sends again after a failover.
//!
//! A bounded table; a producer that fell out of it is looked up in the store when it comes back.

use std::collections::BTreeMap;

use kahawai_message::ProducerId;
use kahawai_message::storage::Storage;

#[derive(Debug)]
struct Known {
    id: ProducerId,
    last_sequence: i64,
    used: bool,
}

#[derive(Debug)]
pub(crate) struct Producers {
    /// A tree, because clients choose these texts and must not be able to make them collide.
    by_id: BTreeMap<ProducerId, u32>,
    known: Vec<Known>,
    /// Where the search for one to forget goes on (clock algorithm: whoever was used since gets a second chance).
    hand: usize,
    capacity: usize,
}

/// Place of a producer in the table; may have been given to another since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ProducerSlot(u32);

impl Producers {
    pub fn new(capacity: usize) -> Self {
        Self { by_id: BTreeMap::new(), known: Vec::new(), hand: 0, capacity: capacity.max(1) }
    }

    /// The producer's place; `hint` is where it was last time.
    pub fn find(
        &mut self,
        id: &ProducerId,
        hint: Option<ProducerSlot>,
        storage: &dyn Storage,
    ) -> ProducerSlot {
        if let Some(slot) = hint
            && let Some(known) = self.known.get_mut(slot.0 as usize)
            && known.id == *id
        {
            known.used = true;
            return slot;
        }
        if let Some(&slot) = self.by_id.get(id) {
            self.known[slot as usize].used = true;
            return ProducerSlot(slot);
        }
        let last_sequence = storage.last_sequence_of(id).unwrap_or(i64::MIN);
        let new = Known { id: id.clone(), last_sequence, used: true };
        let slot = if self.known.len() < self.capacity {
            self.known.push(new);
            self.known.len() - 1
        } else {
            let slot = self.forget_one();
            self.by_id.remove(&self.known[slot].id);
            self.known[slot] = new;
            slot
        };
        let slot = u32::try_from(slot).expect("the table is bounded far below 2^32");
        self.by_id.insert(id.clone(), slot);
        ProducerSlot(slot)
    }

    fn forget_one(&mut self) -> usize {
        loop {
            let slot = self.hand % self.known.len();
            self.hand = slot + 1;
            if !std::mem::take(&mut self.known[slot].used) {
                return slot;
            }
        }
    }

    pub fn is_duplicate(&self, slot: ProducerSlot, sequence: i64) -> bool {
        sequence <= self.known[slot.0 as usize].last_sequence
    }

    pub fn stored(&mut self, slot: ProducerSlot, sequence: i64) {
        let known = &mut self.known[slot.0 as usize];
        known.last_sequence = known.last_sequence.max(sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeStorage;

    fn id(name: &str) -> ProducerId {
        ProducerId { connection: name.into(), session: 1, value: 1 }
    }

    #[test]
    fn a_producer_out_of_sight_for_long_is_forgotten_and_looked_up_again() {
        let mut storage = FakeStorage::default();
        storage.last_sequences.insert(id("c"), 40);
        let mut producers = Producers::new(2);
        let a = producers.find(&id("a"), None, &storage);
        assert!(!producers.is_duplicate(a, 1));
        producers.stored(a, 1);
        assert!(producers.is_duplicate(a, 1) && !producers.is_duplicate(a, 2));
        producers.find(&id("b"), None, &storage);
        let c = producers.find(&id("c"), None, &storage);
        assert!(producers.is_duplicate(c, 40) && !producers.is_duplicate(c, 41));
        // Somebody has moved into the place that the hint names.
        let again = producers.find(&id("a"), Some(a), &storage);
        assert!(!producers.is_duplicate(again, 1), "the store has nothing of it");
    }
}
