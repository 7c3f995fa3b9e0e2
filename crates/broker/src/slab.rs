//! Slots that are reused, under keys that are not: a key of something that is gone finds nothing.

use std::marker::PhantomData;

/// A key of a [`Slab`].
pub(crate) trait SlabKey: Copy {
    fn new(index: u32, generation: u32) -> Self;
    fn index(self) -> u32;
    fn generation(self) -> u32;
}

macro_rules! slab_key {
    ($(#[$doc:meta])* $visibility:vis $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        $visibility struct $name {
            index: u32,
            generation: u32,
        }

        impl SlabKey for $name {
            fn new(index: u32, generation: u32) -> Self {
                Self { index, generation }
            }

            fn index(self) -> u32 {
                self.index
            }

            fn generation(self) -> u32 {
                self.generation
            }
        }
    };
}

slab_key! {
    /// A connection, as [`Broker::connect`](crate::Broker::connect) named it. Never reused.
    pub ConnectionKey
}
slab_key! {
    /// A consumer.
    pub(crate) ConsumerKey
}
slab_key! {
    /// A queue or topic.
    pub(crate) PlaceKey
}
slab_key! {
    /// A line of messages: a queue, or a durable subscription on one topic.
    pub(crate) LineKey
}
slab_key! {
    /// A message in memory.
    pub(crate) MemoryKey
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

#[derive(Debug)]
pub(crate) struct Slab<K, T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    key: PhantomData<K>,
}

impl<K, T> Default for Slab<K, T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), key: PhantomData }
    }
}

impl<K: SlabKey, T> Slab<K, T> {
    pub fn insert(&mut self, value: T) -> K {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.value = Some(value);
            return K::new(index, slot.generation);
        }
        let index = u32::try_from(self.slots.len()).expect("fewer than 2^32 things fit in memory");
        self.slots.push(Slot { generation: 0, value: Some(value) });
        K::new(index, 0)
    }

    pub fn get(&self, key: K) -> Option<&T> {
        let slot = self.slots.get(key.index() as usize)?;
        if slot.generation == key.generation() { slot.value.as_ref() } else { None }
    }

    pub fn get_mut(&mut self, key: K) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index() as usize)?;
        if slot.generation == key.generation() { slot.value.as_mut() } else { None }
    }

    pub fn remove(&mut self, key: K) -> Option<T> {
        let slot = self.slots.get_mut(key.index() as usize)?;
        if slot.generation != key.generation() {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index());
        Some(value)
    }

    pub fn keys(&self) -> impl Iterator<Item = K> {
        let there = self.slots.iter().enumerate().filter(|(_, slot)| slot.value.is_some());
        // Fewer than 2^32, see `insert`.
        there.map(|(index, slot)| K::new(index as u32, slot.generation))
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_something_gone_finds_nothing_in_the_reused_slot() {
        let mut slab = Slab::<LineKey, &str>::default();
        let (a, b) = (slab.insert("a"), slab.insert("b"));
        assert_eq!(slab.remove(a), Some("a"));
        let c = slab.insert("c");
        assert_eq!((slab.get(a), slab.get(b), slab.get(c)), (None, Some(&"b"), Some(&"c")));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.keys().collect::<Vec<_>>(), [c, b]);
        assert_eq!(slab.len(), 2);
    }
}
