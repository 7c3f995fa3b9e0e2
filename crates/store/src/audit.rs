//! What each producer has stored last, so that what it sends again is recognised.
//!
//! The numbers stand in the messages. What the files that go knew alone is said again in the record that gives them up
//! ([`kahawai_journal::CollectionRecord`]), so that an index made from the files that stay knows as much as one that saw them all:
//!
//! ```text
//! audit  count varint | producer …         longest silent first
//! producer  connection: length varint, UTF-8 | session varint | value varint | highest number varint
//! ```

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use kahawai_journal::KNOWLEDGE_BYTES_MAX;
use kahawai_message::ProducerId;
use kahawai_wire::{Reader, WireError, put_varint64};

use crate::checkpoint::{count, put_text, text};

/// How many producers are remembered.
pub const AUDIT_PRODUCERS: usize = 1024;
/// Connections with longer names are not: one record has to hold all of them.
pub const AUDIT_NAME_BYTES_MAX: usize = 1024;
/// What one producer takes at most, but for the name.
const NUMBERS_BYTES_MAX: usize = 32;

/// The highest message numbers of the producers that stored last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Audit {
    producers: HashMap<ProducerId, (i64, u64)>,
    bytes: usize,
    tick: u64,
    last: Option<(ProducerId, i64)>,
}

fn encoded_bytes_max(producer: &ProducerId) -> usize {
    producer.connection.len() + NUMBERS_BYTES_MAX
}

impl Audit {
    /// A message of `producer` was stored.
    pub fn saw(&mut self, producer: &ProducerId, sequence: i64) {
        if let Some((last, number)) = &mut self.last
            && last == producer
        {
            *number = sequence.max(*number);
            return;
        }
        self.settle();
        self.last = Some((producer.clone(), sequence));
    }

    /// What was known when files were given up. Whoever is known already does not become less silent by it.
    pub fn learn(&mut self, entries: Vec<(ProducerId, i64)>) {
        self.settle();
        for (producer, sequence) in entries {
            match self.producers.get_mut(&producer) {
                Some((number, _)) => *number = sequence.max(*number),
                None => {
                    self.saw(&producer, sequence);
                    self.settle();
                }
            }
        }
    }

    fn settle(&mut self) {
        let Some((producer, sequence)) = self.last.take() else { return };
        if producer.connection.len() > AUDIT_NAME_BYTES_MAX {
            return;
        }
        self.tick += 1;
        let bytes = encoded_bytes_max(&producer);
        let entry = self.producers.entry(producer).or_insert_with(|| {
            self.bytes += bytes;
            (sequence, 0)
        });
        *entry = (entry.0.max(sequence), self.tick);
        while self.producers.len() > AUDIT_PRODUCERS || self.bytes > KNOWLEDGE_BYTES_MAX - NUMBERS_BYTES_MAX {
            // Half of them go at once, the longest silent: constant work per message on average.
            let mut ticks: Vec<u64> = self.producers.values().map(|&(_, tick)| tick).collect();
            let middle = ticks.len() / 2;
            let (_, &mut median, _) = ticks.select_nth_unstable(middle);
            self.producers.retain(|_, &mut (_, tick)| tick >= median);
            self.bytes = self.producers.keys().map(encoded_bytes_max).sum();
        }
    }

    /// The highest number stored, if it is remembered.
    pub fn last_of(&self, producer: &ProducerId) -> Option<i64> {
        let newest = self.last.as_ref().filter(|(last, _)| last == producer).map(|&(_, number)| number);
        let older = self.producers.get(producer).map(|&(number, _)| number);
        newest.max(older)
    }

    /// All of them, longest silent first.
    pub fn entries(&mut self) -> Vec<(ProducerId, i64)> {
        self.settle();
        let mut all: Vec<_> =
            self.producers.iter().map(|(id, &(number, tick))| (tick, id.clone(), number)).collect();
        all.sort_unstable_by_key(|&(tick, ..)| tick);
        all.into_iter().map(|(_, id, number)| (id, number)).collect()
    }
}

/// Appends entries of an audit.
pub(crate) fn encode(entries: &[(ProducerId, i64)], out: &mut BytesMut) {
    put_varint64(entries.len() as u64, out);
    for (producer, number) in entries {
        put_text(&producer.connection, out);
        put_varint64(producer.session.cast_unsigned(), out);
        put_varint64(producer.value.cast_unsigned(), out);
        put_varint64(number.cast_unsigned(), out);
    }
}

/// Reads entries; of no bytes, none.
pub(crate) fn decode(value: Bytes) -> Result<Vec<(ProducerId, i64)>, WireError> {
    let mut entries = Vec::new();
    if value.is_empty() {
        return Ok(entries);
    }
    let mut reader = Reader::new(value);
    let at = reader.position();
    let count = count(&mut reader)?;
    for _ in 0..count {
        let connection = text(&mut reader)?;
        let session = reader.varint64()?.cast_signed();
        let value = reader.varint64()?.cast_signed();
        entries.push((ProducerId { connection, session, value }, reader.varint64()?.cast_signed()));
    }
    if !reader.is_empty() {
        return Err(WireError::Length { at, length: count as i64 });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn producer(connection: &str, value: i64) -> ProducerId {
        ProducerId { connection: connection.into(), session: 1, value }
    }

    #[test]
    fn the_longest_silent_are_forgotten_first() {
        let mut audit = Audit::default();
        let all = AUDIT_PRODUCERS as i64;
        for n in 0..all {
            audit.saw(&producer("a", n), n);
        }
        audit.saw(&producer("a", 0), 7);
        audit.saw(&producer("a", all), 1);
        audit.saw(&producer("a", all), 2);
        assert_eq!(
            audit.last_of(&producer("a", 1)),
            Some(1),
            "the last one is not counted before the next comes"
        );
        audit.saw(&producer("a", 0), 8);
        assert_eq!(audit.last_of(&producer("a", 1)), None);
        assert_eq!(audit.last_of(&producer("a", 0)), Some(8));
        assert_eq!(audit.last_of(&producer("a", all)), Some(2));
    }

    #[test]
    fn what_is_remembered_fits_one_record() {
        let mut audit = Audit::default();
        for n in 0..2 * AUDIT_PRODUCERS as i64 {
            audit.saw(&producer(&format!("{n:0>AUDIT_NAME_BYTES_MAX$}"), n), i64::MAX);
        }
        let long = "x".repeat(AUDIT_NAME_BYTES_MAX + 1);
        audit.saw(&producer(&long, 1), 1);
        let entries = audit.entries();
        assert!(entries.len() > 100 && entries.iter().all(|(id, _)| *id.connection != *long));
        let mut bytes = BytesMut::new();
        encode(&entries, &mut bytes);
        assert!(bytes.len() <= KNOWLEDGE_BYTES_MAX, "{} bytes", bytes.len());
        assert_eq!(decode(bytes.freeze()), Ok(entries));
    }

    #[test]
    fn what_is_learnt_takes_nothing_away() {
        let mut audit = Audit::default();
        audit.saw(&producer("a", 1), 5);
        audit.saw(&producer("a", 2), 5);
        audit.learn(vec![(producer("a", 1), 9), (producer("a", 2), 3), (producer("a", 3), 4)]);
        let known = [1, 2, 3, 4].map(|n| audit.last_of(&producer("a", n)));
        assert_eq!(known, [Some(9), Some(5), Some(4), None]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let _ = decode(bytes.into());
        }
    }
}
