//! What waits for a connection's task: deliveries and events from the core.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use kahawai_message::front::{Delivery, Event};

use crate::ahead::Ahead;
use crate::signal::Signal;

/// One thing for a connection.
#[derive(Debug)]
pub enum Item {
    /// A message.
    Deliver(Delivery),
    /// Something else.
    Event(Event),
}

/// One connection's mailbox. How much it can hold is bounded by the prefetch of its consumers, and for topics by the broker's
/// memory limit.
#[derive(Debug, Default)]
pub struct Outbox {
    items: Mutex<Vec<Item>>,
    unblocked: AtomicBool,
    closing: AtomicBool,
    /// The round of flushes in which it last waited for one.
    waited_in: AtomicU32,
    /// An answer that can leave without the task.
    pub ahead: Ahead,
    /// Set when there is anything new, and by the commit position.
    pub signal: Signal,
}

impl Outbox {
    /// Adds an item; `true` = the box was empty, so the task has to be woken.
    pub fn push(&self, item: Item) -> bool {
        let mut items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
        items.push(item);
        items.len() == 1
    }

    /// Swaps what is there with `into`, which must be empty.
    pub fn take(&self, into: &mut Vec<Item>) {
        std::mem::swap(&mut *self.items.lock().unwrap_or_else(PoisonError::into_inner), into);
    }

    /// Blocked requests may be tried again.
    pub fn unblock(&self) {
        self.unblocked.store(true, Ordering::Release);
    }

    /// Takes that note.
    pub fn take_unblocked(&self) -> bool {
        self.unblocked.swap(false, Ordering::AcqRel)
    }

    /// It waits for a flush, in this round; `true` = for the first time in it.
    pub fn waits_in(&self, round: u32) -> bool {
        self.waited_in.swap(round, Ordering::Relaxed) != round
    }

    /// The node stops: the task ends without further answers.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.signal.set();
    }

    /// Has it been told to end?
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}
