//! A store in memory that behaves as the real one promises: what is appended has effect when its position is committed.
//!
//! Stands on `kahawai-message` alone, so that unit tests, integration tests and examples can include this file.

use std::collections::{BTreeMap, BTreeSet};

use kahawai_message::storage::{
    AckBy, Appended, Applied, DestinationKey, Entry, Operation, Storage, StorageError, SubscriptionKey, Tier,
};
use kahawai_message::stored::SubscriptionInfo;
use kahawai_message::{Destination, Message, MessageId, ProducerId, TransactionId};
use kahawai_types::{Location, Lsn};

#[derive(Debug, Clone)]
enum Step {
    Add { to: DestinationKey, tier: Tier, sequence: u64, message: Box<Message> },
    Remove { from: DestinationKey, sequence: u64 },
    Acknowledge { topic: DestinationKey, subscription: SubscriptionKey, sequence: u64, unmatched: bool },
    Subscribe { topic: DestinationKey, info: SubscriptionInfo, retroactive: bool },
    Unsubscribe { topic: DestinationKey, subscription: SubscriptionKey },
    RemoveDestination { destination: DestinationKey },
}

#[derive(Debug, Default)]
struct Stored {
    name: Destination,
    exists: bool,
    next_sequence: u64,
    entries: BTreeMap<(Tier, u64), (Entry, Box<Message>)>,
    subscriptions: BTreeMap<SubscriptionKey, (SubscriptionInfo, BTreeSet<u64>)>,
}

impl Stored {
    fn entry(&self, sequence: u64) -> Option<&(Entry, Box<Message>)> {
        Tier::ALL.into_iter().find_map(|tier| self.entries.get(&(tier, sequence)))
    }

    fn remove(&mut self, sequence: u64) -> bool {
        Tier::ALL.into_iter().any(|tier| self.entries.remove(&(tier, sequence)).is_some())
    }
}

#[derive(Debug, Default)]
pub struct FakeStorage {
    stored: Vec<Stored>,
    keys: BTreeMap<Destination, DestinationKey>,
    log: Vec<(Lsn, Vec<Step>)>,
    applied_steps: usize,
    end: u64,
    committed: u64,
    /// Tests set this to hold producers back.
    pub congested: bool,
    /// Tests set this to see what a failed journal does.
    pub failed: bool,
    pub last_sequences: BTreeMap<ProducerId, i64>,
    /// Acknowledgements appended as unmatched.
    pub unmatched: usize,
    /// Largest transaction, in operations.
    pub operations_max: Option<usize>,
}

impl FakeStorage {
    fn at(&self, key: DestinationKey) -> &Stored {
        &self.stored[key.0 as usize]
    }

    fn at_mut(&mut self, key: DestinationKey) -> &mut Stored {
        &mut self.stored[key.0 as usize]
    }

    fn append(&mut self, steps: Vec<Step>) -> Result<Lsn, StorageError> {
        if self.failed {
            return Err(StorageError::Failed("the test says so".into()));
        }
        self.end += 1;
        self.log.push((Lsn(self.end), steps));
        Ok(Lsn(self.end))
    }

    fn add_step(&mut self, to: DestinationKey, message: &Message, prioritised: bool) -> Step {
        let sequence = self.at(to).next_sequence + 1;
        self.at_mut(to).next_sequence = sequence;
        let tier = Tier::of(message.priority, prioritised);
        Step::Add { to, tier, sequence, message: Box::new(message.clone()) }
    }

    fn steps(&mut self, operations: &[Operation]) -> Vec<Step> {
        let step = |operation: &Operation| match operation.clone() {
            Operation::Add { destination, message, prioritised } => {
                self.add_step(destination, &message, prioritised)
            }
            Operation::Remove { destination, sequence, .. } => Step::Remove { from: destination, sequence },
            Operation::Acknowledge { destination, subscription, sequence, unmatched, .. } => {
                Step::Acknowledge { topic: destination, subscription, sequence, unmatched }
            }
        };
        operations.iter().map(step).collect()
    }

    /// Moves the commit position, and says what that made true. Not beyond what is appended.
    pub fn commit(&mut self, to: Lsn) -> Vec<Applied> {
        let to = to.0.min(self.end);
        assert!(to >= self.committed, "the commit position moves back");
        self.committed = to;
        let mut applied = Vec::new();
        while let Some((end, steps)) = self.log.get(self.applied_steps)
            && end.0 <= to
        {
            for step in steps.clone() {
                self.apply(step, &mut applied);
            }
            self.applied_steps += 1;
        }
        applied
    }

    /// What a crash leaves: nothing that was not committed.
    pub fn crash(&mut self) {
        self.log.truncate(self.applied_steps);
        self.end = self.committed;
        self.congested = false;
    }

    fn apply(&mut self, step: Step, applied: &mut Vec<Applied>) {
        match step {
            Step::Add { to, tier, sequence, message } => {
                let producer = message.id.producer.clone();
                let last = self.last_sequences.entry(producer).or_insert(i64::MIN);
                *last = (*last).max(message.id.sequence);
                let entry = Entry {
                    sequence,
                    tier,
                    location: Location::new(1, u32::try_from(sequence).expect("tests are small")),
                    size: 100,
                    expiration_ms: message.expiration_ms,
                    redelivery_counter: u32::try_from(message.redelivery_counter).unwrap_or(0),
                };
                let stored = self.at_mut(to);
                stored.exists = true;
                for (_, pending) in stored.subscriptions.values_mut() {
                    pending.insert(sequence);
                }
                if stored.name.kind.is_queue() || !stored.subscriptions.is_empty() {
                    stored.entries.insert((tier, sequence), (entry, message));
                }
                applied.push(Applied::Added { destination: to, entry });
            }
            Step::Remove { from, sequence } => {
                if self.at_mut(from).remove(sequence) {
                    applied.push(Applied::Removed { destination: from, sequence });
                }
            }
            Step::Acknowledge { topic, subscription, sequence, unmatched } => {
                self.unmatched += usize::from(unmatched);
                let stored = self.at_mut(topic);
                let Some((_, pending)) = stored.subscriptions.get_mut(&subscription) else { return };
                if !pending.remove(&sequence) {
                    return;
                }
                applied.push(Applied::Acknowledged { destination: topic, subscription, sequence });
                self.collect(topic, applied);
            }
            Step::Subscribe { topic, info, retroactive } => {
                let stored = self.at_mut(topic);
                stored.exists = true;
                let key = SubscriptionKey {
                    client_id: info.client_id.clone(),
                    name: info.subscription_name.clone(),
                };
                let all = stored.entries.keys().map(|(_, sequence)| *sequence);
                let pending = if retroactive { all.collect() } else { BTreeSet::new() };
                stored.subscriptions.insert(key, (info.clone(), pending));
                applied.push(Applied::Subscribed { destination: topic, info });
            }
            Step::Unsubscribe { topic, subscription } => {
                self.at_mut(topic).subscriptions.remove(&subscription);
                applied.push(Applied::Unsubscribed { destination: topic, subscription });
                self.collect(topic, applied);
            }
            Step::RemoveDestination { destination } => {
                let stored = self.at_mut(destination);
                stored.exists = false;
                stored.entries.clear();
                stored.subscriptions.clear();
                applied.push(Applied::DestinationRemoved { destination });
            }
        }
    }

    /// Topic messages that nobody waits for any more are gone.
    fn collect(&mut self, topic: DestinationKey, applied: &mut Vec<Applied>) {
        let stored = self.at_mut(topic);
        let wanted: BTreeSet<u64> =
            stored.subscriptions.values().flat_map(|(_, pending)| pending.clone()).collect();
        let gone: Vec<_> =
            stored.entries.keys().filter(|(_, sequence)| !wanted.contains(sequence)).copied().collect();
        for key in gone {
            stored.entries.remove(&key);
            applied.push(Applied::Removed { destination: topic, sequence: key.1 });
        }
    }

    /// A stored message, as the node would read it.
    pub fn read(&self, at: DestinationKey, sequence: u64) -> Option<&Message> {
        self.at(at).entry(sequence).map(|(_, message)| &**message)
    }

    /// Also of messages that are not committed, by any position.
    pub fn appended(&self) -> usize {
        self.log.iter().map(|(_, steps)| steps.len()).sum()
    }
}

impl Storage for FakeStorage {
    fn destination(&mut self, destination: &Destination) -> DestinationKey {
        if let Some(key) = self.keys.get(destination)
            && (self.at(*key).exists || self.at(*key).next_sequence == 0)
        {
            return *key;
        }
        let key = DestinationKey(u32::try_from(self.stored.len()).expect("tests are small"));
        self.stored.push(Stored { name: destination.clone(), ..Stored::default() });
        self.keys.insert(destination.clone(), key);
        key
    }

    fn add(
        &mut self,
        to: DestinationKey,
        message: &Message,
        prioritised: bool,
    ) -> Result<Appended, StorageError> {
        let step = self.add_step(to, message, prioritised);
        let sequence = self.at(to).next_sequence;
        Ok(Appended { sequence, end: self.append(vec![step])? })
    }

    fn add_all(&mut self, copies: &[(DestinationKey, Message, bool)]) -> Result<Appended, StorageError> {
        let steps: Vec<_> =
            copies.iter().map(|(to, message, tier)| self.add_step(*to, message, *tier)).collect();
        Ok(Appended { sequence: 0, end: self.append(steps)? })
    }

    fn remove(
        &mut self,
        from: DestinationKey,
        sequence: u64,
        id: &MessageId,
        _by: &AckBy,
    ) -> Result<Lsn, StorageError> {
        if let Some(message) = self.read(from, sequence) {
            assert_eq!(message.id, *id, "a removal names another message");
        }
        self.append(vec![Step::Remove { from, sequence }])
    }

    fn acknowledge(
        &mut self,
        topic: DestinationKey,
        subscription: &SubscriptionKey,
        sequence: u64,
        _id: &MessageId,
        _by: &AckBy,
        unmatched: bool,
    ) -> Result<Lsn, StorageError> {
        let subscription = subscription.clone();
        self.append(vec![Step::Acknowledge { topic, subscription, sequence, unmatched }])
    }

    fn transaction(&mut self, _id: &TransactionId, operations: &[Operation]) -> Result<Lsn, StorageError> {
        if let Some(limit) = self.operations_max
            && operations.len() > limit
        {
            return Err(StorageError::TooLarge { bytes: operations.len() as u64, limit: limit as u64 });
        }
        let steps = self.steps(operations);
        self.append(steps)
    }

    fn together(&mut self, operations: &[Operation]) -> Result<Lsn, StorageError> {
        let steps = self.steps(operations);
        self.append(steps)
    }

    fn update(
        &mut self,
        _at: DestinationKey,
        _sequence: u64,
        _message: &Message,
        _prioritised: bool,
    ) -> Result<Lsn, StorageError> {
        self.append(Vec::new())
    }

    fn subscribe(
        &mut self,
        topic: DestinationKey,
        info: &SubscriptionInfo,
        retroactive: bool,
    ) -> Result<Lsn, StorageError> {
        self.append(vec![Step::Subscribe { topic, info: info.clone(), retroactive }])
    }

    fn unsubscribe(
        &mut self,
        topic: DestinationKey,
        subscription: &SubscriptionKey,
    ) -> Result<Lsn, StorageError> {
        self.append(vec![Step::Unsubscribe { topic, subscription: subscription.clone() }])
    }

    fn remove_destination(&mut self, destination: DestinationKey) -> Result<Lsn, StorageError> {
        self.append(vec![Step::RemoveDestination { destination }])
    }

    fn next(&mut self, at: DestinationKey, tier: Tier, from: u64) -> Result<Option<Entry>, StorageError> {
        Ok(self.at(at).entries.range((tier, from)..=(tier, u64::MAX)).next().map(|(_, (entry, _))| *entry))
    }

    fn next_pending(
        &mut self,
        topic: DestinationKey,
        subscription: &SubscriptionKey,
        tier: Tier,
        from: u64,
    ) -> Result<Option<Entry>, StorageError> {
        let stored = self.at(topic);
        let Some((_, pending)) = stored.subscriptions.get(subscription) else { return Ok(None) };
        let mut entries = pending.range(from..).filter_map(|sequence| stored.entries.get(&(tier, *sequence)));
        Ok(entries.next().map(|(entry, _)| *entry))
    }

    fn entry(&mut self, at: DestinationKey, sequence: u64) -> Result<Option<Entry>, StorageError> {
        Ok(self.at(at).entry(sequence).map(|(entry, _)| *entry))
    }

    fn count(&self, at: DestinationKey) -> u64 {
        self.at(at).entries.len() as u64
    }

    fn pending_count(&self, topic: DestinationKey, subscription: &SubscriptionKey) -> u64 {
        self.at(topic).subscriptions.get(subscription).map_or(0, |(_, pending)| pending.len() as u64)
    }

    fn destinations(&self) -> Vec<(DestinationKey, Destination, Vec<SubscriptionInfo>)> {
        let existing = self.stored.iter().zip(0..).filter(|(stored, _)| stored.exists);
        existing
            .map(|(stored, key)| {
                let infos = stored.subscriptions.values().map(|(info, _)| info.clone()).collect();
                (DestinationKey(key), stored.name.clone(), infos)
            })
            .collect()
    }

    fn last_sequence_of(&self, producer: &ProducerId) -> Option<i64> {
        self.last_sequences.get(producer).copied()
    }

    fn appended_end(&self) -> Lsn {
        Lsn(self.end)
    }

    fn committed(&self) -> Lsn {
        Lsn(self.committed)
    }

    fn is_congested(&self) -> bool {
        self.congested
    }
}
