//! The deliveries of one consumer that are not acknowledged yet.

use std::collections::VecDeque;
use std::fmt::{self, Write};

use kahawai_message::MessageId;
use kahawai_message::front::DeliveryTag;

/// Ids from the wire are compared in place with this.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WireId<'a> {
    text: &'a str,
    /// The number at the end; what comes before it.
    key: Option<(&'a str, i64)>,
}

impl<'a> WireId<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let key = text.rsplit_once(':').and_then(|(producer, number)| Some((producer, number.parse().ok()?)));
        Self { text, key }
    }

    fn is(self, id: &MessageId) -> bool {
        match (&id.text_view, self.key) {
            (Some(view), _) => self.text == &**view || self.text.strip_prefix("ID:") == Some(view),
            (None, Some((producer, sequence))) => {
                sequence == id.sequence && write!(Expect(producer), "{}", id.producer).is_ok()
            }
            (None, None) => false,
        }
    }
}

/// Takes nothing but the text it holds, from front to back. `write!` to it fails at the first difference.
struct Expect<'a>(&'a str);

impl Write for Expect<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(text).ok_or(fmt::Error)?;
        Ok(())
    }
}

#[derive(Clone, Debug)]
struct Entry {
    tag: DeliveryTag,
    /// `None` = acknowledged before its elders; it stays until they are gone too, so that the row need not close up.
    id: Option<MessageId>,
}

/// Deliveries by ascending tag. Taking one costs a binary search, in order not even that.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    row: VecDeque<Entry>,
    gaps: usize,
}

impl InFlight {
    pub(crate) fn push(&mut self, tag: DeliveryTag, id: MessageId) {
        let entry = Entry { tag, id: Some(id) };
        match self.row.back() {
            Some(last) if last.tag >= tag => {
                let at = self.row.partition_point(|entry| entry.tag < tag);
                self.row.insert(at, entry);
            }
            _ => self.row.push_back(entry),
        }
    }

    fn position(&self, tag: DeliveryTag) -> Option<usize> {
        match self.row.front() {
            Some(first) if first.tag == tag => Some(0),
            _ => self.row.binary_search_by_key(&tag, |entry| entry.tag).ok(),
        }
    }

    /// Is this delivery in flight?
    pub(crate) fn contains(&self, tag: DeliveryTag) -> bool {
        self.position(tag).and_then(|at| self.row.get(at)).is_some_and(|entry| entry.id.is_some())
    }

    /// Takes one delivery.
    pub(crate) fn take(&mut self, tag: DeliveryTag) -> Option<MessageId> {
        let at = self.position(tag)?;
        let id = self.row.get_mut(at)?.id.take()?;
        self.gaps += 1;
        self.close_up();
        Some(id)
    }

    /// Takes this delivery and all before it, oldest first; nothing if it is not in flight.
    pub(crate) fn take_through(&mut self, tag: DeliveryTag, mut each: impl FnMut(DeliveryTag, MessageId)) {
        let Some(at) = self.position(tag).filter(|_| self.contains(tag)) else {
            return;
        };
        for entry in self.row.drain(..=at) {
            match entry.id {
                Some(id) => each(entry.tag, id),
                None => self.gaps -= 1,
            }
        }
        self.close_up();
    }

    /// The oldest delivery of the message with this id.
    pub(crate) fn find(&self, id: WireId<'_>) -> Option<DeliveryTag> {
        let mut row = self.row.iter();
        row.find(|entry| entry.id.as_ref().is_some_and(|found| id.is(found))).map(|entry| entry.tag)
    }

    /// Puts deliveries back that were taken.
    pub(crate) fn put_back(&mut self, taken: impl Iterator<Item = (DeliveryTag, MessageId)>) {
        self.row.retain(|entry| entry.id.is_some());
        self.gaps = 0;
        self.row.extend(taken.map(|(tag, id)| Entry { tag, id: Some(id) }));
        self.row.make_contiguous().sort_by_key(|entry| entry.tag);
    }

    /// Drops gaps at the front, and all of them once they are the larger part.
    fn close_up(&mut self) {
        while self.row.front().is_some_and(|entry| entry.id.is_none()) {
            self.row.pop_front();
            self.gaps -= 1;
        }
        if self.gaps > 64 && self.gaps > self.row.len() / 2 {
            self.row.retain(|entry| entry.id.is_some());
            self.gaps = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(sequence: i64) -> MessageId {
        MessageId { sequence, ..MessageId::from_key("ID:a:b-1:-1:1:0").unwrap() }
    }

    fn row(tags: impl IntoIterator<Item = u64>) -> InFlight {
        let mut row = InFlight::default();
        tags.into_iter().for_each(|tag| row.push(tag, id(tag as i64 * 10)));
        row
    }

    #[test]
    fn each_delivery_is_taken_once() {
        let mut row = row(1..=200);
        for tag in (100..=200).chain((1..100).rev()) {
            assert_eq!(row.take(tag), Some(id(tag as i64 * 10)));
            assert_eq!(row.take(tag), None);
        }
        assert!(row.row.is_empty() && row.gaps == 0);
    }

    #[test]
    fn gaps_never_outnumber_what_is_in_flight_by_much() {
        let mut row = row([1]);
        for tag in 2..10_000 {
            row.push(tag, id(0));
            row.take(tag);
            assert!(row.row.len() < 100);
        }
        assert!(row.take(1).is_some());
    }

    #[test]
    fn a_cumulative_take_skips_what_is_gone() {
        let mut row = row([3, 5, 7, 9]);
        row.take(5);
        let mut taken = Vec::new();
        for tag in [5, 8] {
            row.take_through(tag, |tag, _| taken.push(tag));
            assert_eq!(taken, []);
        }
        row.take_through(7, |tag, _| taken.push(tag));
        assert_eq!(taken, [3, 7]);
        row.take_through(9, |_, _| {});
        assert!(row.row.is_empty() && row.gaps == 0);
    }

    #[test]
    fn what_is_put_back_is_in_its_old_place() {
        let mut row = row([1, 2, 3]);
        let taken: Vec<_> = [2, 1].into_iter().filter_map(|tag| Some((tag, row.take(tag)?))).collect();
        row.put_back(taken.into_iter());
        let mut all = Vec::new();
        row.take_through(3, |tag, _| all.push(tag));
        assert_eq!(all, [1, 2, 3]);
    }

    #[test]
    fn ids_are_found_as_their_message_id_header_shows_them() {
        let mut row = row([1, 2]);
        row.push(3, MessageId { text_view: Some("foreign:7".into()), ..id(5) });
        row.push(4, MessageId { text_view: Some("ID:own".into()), ..id(6) });
        for (text, expected) in [
            ("ID:a:b-1:-1:1:20", Some(2)),
            ("ID:a:b-1:-1:1:10", Some(1)),
            ("ID:a:b-1:-1:2:10", None),
            ("ID:foreign:7", Some(3)),
            ("foreign:7", Some(3)),
            ("ID:own", Some(4)),
            ("ID:a:b-1:-1:1:50", None),
            ("", None),
            ("10", None),
        ] {
            assert_eq!(row.find(WireId::new(text)), expected, "{text}");
        }
    }
}
