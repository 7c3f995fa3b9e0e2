//! A place: a queue or topic.

use std::collections::VecDeque;

use kahawai_message::Destination;
use kahawai_message::storage::DestinationKey;

use crate::slab::{ConnectionKey, ConsumerKey, LineKey};

/// What happened at a queue or topic since the broker started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Messages that came and may be seen.
    pub enqueued: u64,
    /// Messages handed to consumers, again if they were handed out again.
    pub dispatched: u64,
    /// Messages consumed; on a topic, once for each durable subscription.
    pub dequeued: u64,
    /// Messages that expired here.
    pub expired: u64,
    /// Messages that went from here to the dead letters.
    pub dead_lettered: u64,
    /// Non-persistent messages given up: refused by a consumer, or for an offline subscription when memory was short.
    pub dropped: u64,
}

/// Dead letters of a topic that we remember, so that each goes there once, whatever number of subscriptions it died in.
const DEAD_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) struct Place {
    pub name: Destination,
    /// Temporary destinations have none: nothing of them is stored.
    pub stored_at: Option<DestinationKey>,
    /// Whose temporary destination it is.
    pub owner: Option<ConnectionKey>,
    pub prioritised: bool,
    /// For queues.
    pub queue: Option<LineKey>,
    /// For topics: of the durable subscriptions.
    pub durables: Vec<LineKey>,
    /// For topics: the other subscribers, in order of their subscription.
    pub subscribers: Vec<ConsumerKey>,
    dead: VecDeque<u64>,
    pub counts: Counts,
}

impl Place {
    pub fn new(name: Destination, stored_at: Option<DestinationKey>, owner: Option<ConnectionKey>) -> Self {
        Self {
            name,
            stored_at,
            owner,
            prioritised: false,
            queue: None,
            durables: Vec::new(),
            subscribers: Vec::new(),
            dead: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Is a persistent message kept in the store here?
    pub const fn stores(&self) -> bool {
        self.stored_at.is_some() && (self.queue.is_some() || !self.durables.is_empty())
    }

    /// A topic that nobody listens to, now or later.
    pub const fn is_deserted(&self) -> bool {
        self.queue.is_none() && self.durables.is_empty() && self.subscribers.is_empty()
    }

    /// Notes that a message goes to the dead letters; `false` if it has been there.
    pub fn dies_first_time(&mut self, sequence: u64) -> bool {
        if self.queue.is_some() {
            return true;
        }
        if self.dead.contains(&sequence) {
            return false;
        }
        if self.dead.len() == DEAD_MAX {
            self.dead.pop_front();
        }
        self.dead.push_back(sequence);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::Line;

    #[test]
    fn an_idle_destination_fits_in_two_kibibytes() {
        // Its name is there three times, each sharing one buffer; the tree and the table take less than this for their keys.
        let keys = 3 * size_of::<Destination>() + 100;
        assert!(size_of::<Place>() + size_of::<Line>() + keys < 1500);
    }
}
