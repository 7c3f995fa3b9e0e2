//! Messages that live in memory, and what they cost.
//!
//! A message that several consumers wait for is kept and counted once: each of them holds a reference, and the last one
//! that lets go frees it.

use std::sync::Arc;

use kahawai_message::{Content, Message};

use crate::slab::{MemoryKey, Slab};

/// What we count for a message beside its texts and bodies: the structure itself and its places in the queues' trees.
const OVERHEAD_BYTES: u64 = 700;

#[derive(Debug)]
struct Kept {
    message: Arc<Message>,
    bytes: u64,
    references: u32,
}

#[derive(Debug)]
pub(crate) struct MemoryMessages {
    kept: Slab<MemoryKey, Kept>,
    bytes: u64,
    bytes_max: u64,
}

impl MemoryMessages {
    pub fn new(bytes_max: u64) -> Self {
        Self { kept: Slab::default(), bytes: 0, bytes_max }
    }

    /// Keeps a message, with one reference that belongs to the caller.
    pub fn insert(&mut self, mut message: Message) -> MemoryKey {
        message.detach();
        let bytes = footprint(&message);
        self.bytes += bytes;
        self.kept.insert(Kept { message: Arc::new(message), bytes, references: 1 })
    }

    pub fn retain(&mut self, key: MemoryKey) {
        if let Some(kept) = self.kept.get_mut(key) {
            kept.references += 1;
        }
    }

    pub fn release(&mut self, key: MemoryKey) {
        let Some(kept) = self.kept.get_mut(key) else {
            debug_assert!(false, "a message in memory is released more often than it is held");
            return;
        };
        kept.references -= 1;
        if kept.references == 0 {
            self.bytes -= kept.bytes;
            self.kept.remove(key);
        }
    }

    pub fn get(&self, key: MemoryKey) -> Option<&Arc<Message>> {
        self.kept.get(key).map(|kept| &kept.message)
    }

    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    pub fn count(&self) -> usize {
        self.kept.len()
    }

    pub const fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max
    }

    /// Producers that were held back go on when an eighth is free again, not at every single message.
    pub const fn has_room_again(&self) -> bool {
        self.bytes <= self.bytes_max - self.bytes_max / 8
    }
}

/// About how much memory a message takes, bytes.
pub(crate) fn footprint(message: &Message) -> u64 {
    let content = match &message.content {
        Content::Absent => 0,
        Content::Marshalled(bytes) => bytes.len(),
        Content::Utf8(text) => text.len(),
    };
    let properties = message.properties.as_ref().map_or(0, bytes::Bytes::len);
    OVERHEAD_BYTES + (content + properties) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reference_frees_the_message() {
        let mut memory = MemoryMessages::new(OVERHEAD_BYTES * 2);
        let (a, b) = (memory.insert(Message::default()), memory.insert(Message::default()));
        assert!(memory.is_full() && !memory.has_room_again());
        memory.retain(a);
        memory.release(a);
        assert_eq!(memory.bytes(), OVERHEAD_BYTES * 2);
        memory.release(a);
        memory.release(b);
        assert_eq!((memory.bytes(), memory.count()), (0, 0));
        assert!(memory.get(a).is_none() && memory.has_room_again());
    }
}
