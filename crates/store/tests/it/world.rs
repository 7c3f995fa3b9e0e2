//! A store in memory, its model, and random work for both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use kahawai_env::{Files, OsEntropy};
use kahawai_journal::{JournalOptions, Writer};
use kahawai_message::storage::{AckBy, Operation, Storage, SubscriptionKey, Tier};
use kahawai_message::stored::SubscriptionInfo;
use kahawai_message::{BodyKind, Content, Destination, Message, MessageId, ProducerId, Text, TransactionId};
use kahawai_store::collect::candidates;
use kahawai_store::inspect::inspect;
use kahawai_store::state::State;
use kahawai_store::{OpenOptions, Opened, Store};
use kahawai_testkit::{MemoryFiles, Random};
use kahawai_types::Lsn;

/// What should be there: destination -> sequence -> (id, tier), and subscription -> pending sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content_ {
    pub messages: BTreeMap<String, BTreeMap<u64, (String, u8)>>,
    pub pending: BTreeMap<(String, String), BTreeSet<u64>>,
}

#[derive(Clone, Debug)]
pub enum Step {
    Add { to: String, sequence: u64, id: String, tier: u8 },
    Remove { from: String, sequence: u64 },
    Acknowledge { topic: String, sub: String, sequence: u64 },
    Subscribe { topic: String, sub: String, retroactive: bool },
    Unsubscribe { topic: String, sub: String },
    RemoveDestination { name: String },
    Many(Vec<Step>),
}

impl Content_ {
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Add { to, sequence, id, tier } => {
                if to.starts_with("topic") {
                    let subs: Vec<_> =
                        self.pending.keys().filter(|(topic, _)| topic == to).cloned().collect();
                    if subs.is_empty() {
                        return;
                    }
                    for key in subs {
                        self.pending.get_mut(&key).unwrap().insert(*sequence);
                    }
                }
                self.messages.entry(to.clone()).or_default().insert(*sequence, (id.clone(), *tier));
            }
            Step::Remove { from, sequence } => {
                self.messages.entry(from.clone()).or_default().remove(sequence);
            }
            Step::Acknowledge { topic, sub, sequence } => {
                if let Some(pending) = self.pending.get_mut(&(topic.clone(), sub.clone())) {
                    pending.remove(sequence);
                }
                self.sweep(topic);
            }
            Step::Subscribe { topic, sub, retroactive } => {
                let there = self.messages.get(topic).filter(|_| *retroactive);
                let all = || there.map(|messages| messages.keys().copied().collect()).unwrap_or_default();
                self.pending.entry((topic.clone(), sub.clone())).or_insert_with(all);
            }
            Step::Unsubscribe { topic, sub } => {
                self.pending.remove(&(topic.clone(), sub.clone()));
                self.sweep(topic);
            }
            Step::RemoveDestination { name } => {
                self.messages.remove(name);
                self.pending.retain(|(topic, _), _| topic != name);
            }
            Step::Many(steps) => steps.iter().for_each(|step| self.apply(step)),
        }
    }

    fn sweep(&mut self, topic: &str) {
        let wanted: BTreeSet<u64> = self
            .pending
            .iter()
            .filter(|((t, _), _)| t == topic)
            .flat_map(|(_, set)| set.iter().copied())
            .collect();
        if let Some(messages) = self.messages.get_mut(topic) {
            messages.retain(|sequence, _| wanted.contains(sequence));
        }
    }

    /// What differs, in short.
    pub fn difference(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let names: BTreeSet<_> = self.messages.keys().chain(other.messages.keys()).collect();
        for name in names {
            let (a, b) = (
                self.messages.get(name).cloned().unwrap_or_default(),
                other.messages.get(name).cloned().unwrap_or_default(),
            );
            for sequence in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                if a.get(sequence) != b.get(sequence) {
                    found.push(format!("{name} {sequence}: {:?} / {:?}", a.get(sequence), b.get(sequence)));
                }
            }
        }
        for key in self.pending.keys().chain(other.pending.keys()).collect::<BTreeSet<_>>() {
            if self.pending.get(key) != other.pending.get(key) {
                found.push(format!("{key:?}: {:?} / {:?}", self.pending.get(key), other.pending.get(key)));
            }
        }
        found
    }

    /// Without empty entries, which say nothing.
    pub fn trimmed(mut self) -> Self {
        self.messages.retain(|_, messages| !messages.is_empty());
        self
    }
}

pub struct World {
    pub files: MemoryFiles,
    pub store: Store,
    pub writer: Writer,
    pub random: Random,
    /// Appended, by the position that confirms it.
    pub log: Vec<(Lsn, Step)>,
    /// What the log up to the last crash came to.
    pub base: Content_,
    pub confirmed: Lsn,
    /// What replicas are sent: every batch that was written.
    pub sent: Vec<(Lsn, Bytes)>,
    next_id: i64,
    /// What is worked with.
    queues: Vec<&'static str>,
    topics: Vec<&'static str>,
    /// Client and name.
    subs: Vec<(&'static str, &'static str)>,
}

pub fn options() -> OpenOptions {
    let journal = JournalOptions {
        file_bytes_max: 8192,
        batch_bytes_max: 2048,
        preallocate: false,
        ..JournalOptions::default()
    };
    OpenOptions { journal, ..OpenOptions::default() }
}

pub fn open(files: &MemoryFiles) -> Result<Opened, kahawai_store::OpenError> {
    let files: Arc<dyn Files> = Arc::new(files.clone());
    kahawai_store::open(&files, &OsEntropy, &options())
}

/// The content of an index, read through the journal.
pub fn content(state: &mut State, reader: &kahawai_journal::JournalReader) -> Content_ {
    let mut found = Content_::default();
    let all: Vec<_> =
        state.destinations().map(|(key, d)| (key, d.name.to_string(), d.subscriptions.clone())).collect();
    for (key, name, subs) in all {
        let mut slots = Vec::new();
        state.each(key, |sequence, slot| slots.push((sequence, *slot))).unwrap();
        for (sequence, slot) in &slots {
            let message = kahawai_store::inspect::read_message(reader, slot.location(), slot.size()).unwrap();
            found
                .messages
                .entry(name.clone())
                .or_default()
                .insert(*sequence, (message.id.to_string(), slot.tier() as u8));
        }
        for (sub_key, sub) in subs {
            let pending: BTreeSet<u64> = slots
                .iter()
                .map(|(sequence, _)| *sequence)
                .filter(|sequence| sub.has_pending(*sequence))
                .collect();
            assert_eq!(pending.len() as u64, sub.pending, "pending count of {name} {sub_key}");
            found.pending.insert((name.clone(), sub_key.to_string()), pending);
        }
        assert_eq!(slots.len() as u64, state.get(key).unwrap().count, "count of {name}");
    }
    found
}

const QUEUES: [&str; 3] = ["A", "B", "PRIO"];
const TOPICS: [&str; 2] = ["T", "U"];
const SUBS: [(&str, &str); 3] = [("client", "x"), ("client", "y"), ("client", "z")];

impl World {
    pub fn new(seed: u64) -> Self {
        let files = MemoryFiles::new();
        let Opened { store, writer, .. } = open(&files).unwrap();
        Self {
            files,
            store,
            writer,
            random: Random::new(seed),
            log: Vec::new(),
            base: Content_::default(),
            confirmed: Lsn::ZERO,
            sent: Vec::new(),
            next_id: 0,
            queues: QUEUES.to_vec(),
            topics: TOPICS.to_vec(),
            subs: SUBS.to_vec(),
        }
    }

    /// Goes on with what is in a directory.
    pub fn over(files: &MemoryFiles, seed: u64) -> Self {
        fn text(text: &str) -> &'static str {
            text.to_owned().leak()
        }
        let Opened { mut store, writer, report, .. } = open(files).unwrap_or_else(|e| panic!("{e}"));
        let (mut queues, mut topics, mut subs) = (vec!["A"], vec!["T"], vec![SUBS[0]]);
        for (_, d) in store.state().destinations() {
            let names = if d.name.kind.is_queue() { &mut queues } else { &mut topics };
            names.push(text(&d.name.name));
            subs.extend(d.subscriptions.keys().map(|sub| (text(&sub.client_id), text(&sub.name))));
        }
        let reader = store.reader();
        let base = content(store.state_mut(), &reader).trimmed();
        let (files, confirmed) = (files.clone(), report.recovery.end);
        let mut world = Self {
            files,
            store,
            writer,
            random: Random::new(seed),
            log: Vec::new(),
            base,
            confirmed,
            sent: Vec::new(),
            next_id: 0,
            queues,
            topics,
            subs,
        };
        assert!(world.settle(), "a sound disk");
        world
    }

    /// Goes on with the store of a replica that became the primary, whose journal ends at `end`.
    pub fn take_over(&mut self, files: MemoryFiles, store: Store, writer: Writer, end: Lsn) {
        self.base = self.expected(end);
        self.log.clear();
        (self.files, self.store, self.writer) = (files, store, writer);
        self.sent.retain(|(at, _)| *at < end);
        assert!(self.settle(), "a sound disk");
    }

    /// Writes one batch; `None` if there is none, an error if the disk has failed.
    pub fn write(&mut self) -> Result<Option<Lsn>, ()> {
        let Some(batch) = self.writer.try_next(self.confirmed).map_err(drop)? else { return Ok(None) };
        let sent = (batch.start, batch.bytes());
        let end = self.writer.write(batch).map_err(drop)?;
        self.sent.push(sent);
        Ok(Some(end))
    }

    /// A message for a queue, appended and no more.
    pub fn add_one(&mut self) {
        let message = self.message(&Destination::queue("A"));
        let destination = self.store.destination(&message.destination);
        let sequence = self.store.state().get(destination).unwrap().next_sequence;
        let step = Step::Add {
            to: message.destination.to_string(),
            sequence,
            id: message.id.to_string(),
            tier: Tier::Default as u8,
        };
        let end = self.store.add(destination, &message, false).unwrap().end;
        self.log.push((end, step));
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.below(from.len() as u64) as usize]
    }

    pub fn message(&mut self, to: &Destination) -> Message {
        self.next_id += 1;
        let size = if self.random.chance(20) { 3000 } else { self.random.below(200) };
        Message {
            id: MessageId {
                producer: ProducerId { connection: Text::from_static("ID:test"), session: 1, value: 1 },
                sequence: self.next_id,
                ..MessageId::default()
            },
            destination: to.clone(),
            persistent: true,
            priority: self.random.below(10) as u8,
            kind: BodyKind::Bytes,
            content: Content::Marshalled(vec![7; size as usize].into()),
            ..Message::default()
        }
    }

    fn add(&mut self) -> (Operation, Step) {
        let name = if self.random.chance(3) {
            Destination::topic(self.pick(&self.topics.clone()))
        } else {
            Destination::queue(self.pick(&self.queues.clone()))
        };
        let message = self.message(&name);
        let destination = self.store.destination(&name);
        let prioritised = &*name.name == "PRIO";
        let sequence = self.store.state().get(destination).unwrap().next_sequence;
        let tier = Tier::of(message.priority, prioritised) as u8;
        let step = Step::Add { to: name.to_string(), sequence, id: message.id.to_string(), tier };
        (Operation::Add { destination, message, prioritised }, step)
    }

    /// A removal of something that is committed, if there is anything.
    fn removal(&mut self, taken: &mut BTreeSet<(String, u64)>) -> Option<(Operation, Step)> {
        let by = AckBy { connection: Text::from_static("ID:test"), session: 1, consumer: 1 };
        if self.random.chance(3) {
            let topic = Destination::topic(self.pick(&self.topics.clone()));
            let (client, name) = self.pick(&self.subs.clone());
            let sub = SubscriptionKey { client_id: Text::from_static(client), name: Text::from_static(name) };
            let destination = self.store.destination(&topic);
            let from = self.random.below(4);
            let entry = self.store.next_pending(destination, &sub, Tier::Default, from).unwrap()?;
            let id = kahawai_store::inspect::read_message(&self.store.reader(), entry.location, entry.size)
                .unwrap()
                .id;
            let sequence = entry.sequence;
            if !taken.insert((format!("{topic} {sub}"), sequence)) {
                return None;
            }
            let step = Step::Acknowledge { topic: topic.to_string(), sub: sub.to_string(), sequence };
            let unmatched = self.random.chance(4);
            return Some((
                Operation::Acknowledge { destination, subscription: sub, sequence, id, unmatched, by },
                step,
            ));
        }
        let queue = Destination::queue(self.pick(&self.queues.clone()));
        let destination = self.store.destination(&queue);
        let tier = Tier::ALL[self.random.below(3) as usize];
        let from = self.random.below(10);
        let entry = self.store.next(destination, tier, from).unwrap()?;
        if !taken.insert((queue.to_string(), entry.sequence)) {
            return None;
        }
        let id = kahawai_store::inspect::read_message(&self.store.reader(), entry.location, entry.size)
            .unwrap()
            .id;
        let step = Step::Remove { from: queue.to_string(), sequence: entry.sequence };
        Some((Operation::Remove { destination, sequence: entry.sequence, id, by }, step))
    }

    /// `false` = the index's disk has failed.
    pub fn checkpoint(&mut self) -> bool {
        let checkpoint = self.store.begin_checkpoint(false);
        let header = checkpoint.header;
        let written = self.store.index().write(checkpoint).is_ok();
        if written {
            self.store.finish_checkpoint(header);
        }
        written
    }

    /// Writes and applies what is appended; `false` = the disk has failed.
    pub fn settle(&mut self) -> bool {
        loop {
            match self.write() {
                Ok(None) => {
                    while self.store.apply(self.confirmed, 3, &mut Vec::new()).unwrap() {}
                    return true;
                }
                Err(()) => return false,
                Ok(Some(end)) => {
                    self.confirmed = end;
                    let mut out = Vec::new();
                    while self.store.apply(end, 3, &mut out).unwrap() {}
                }
            }
        }
    }

    /// One random piece of work; `false` = the disk has failed.
    pub fn step(&mut self) -> bool {
        let mut taken = BTreeSet::new();
        match self.random.below(100) {
            0..45 => {
                let (operation, step) = self.add();
                let Operation::Add { destination, message, prioritised } = operation else { unreachable!() };
                let Ok(appended) = self.store.add(destination, &message, prioritised) else { return false };
                self.log.push((appended.end, step));
            }
            45..65 => {
                // Only what is settled can be removed, and only once.
                if !self.settle() {
                    return false;
                }
                let Some((operation, step)) = self.removal(&mut taken) else { return true };
                let Ok(end) = self.store.together(&[operation]) else { return false };
                self.log.push((end, step));
                return self.settle();
            }
            65..75 => {
                if !self.settle() {
                    return false;
                }
                let mut operations = Vec::new();
                let mut steps = Vec::new();
                let mut next: BTreeMap<String, u64> = BTreeMap::new();
                for _ in 0..1 + self.random.below(5) {
                    let piece =
                        if self.random.chance(2) { Some(self.add()) } else { self.removal(&mut taken) };
                    let Some((operation, mut step)) = piece else { continue };
                    if let Step::Add { to, sequence, .. } = &mut step {
                        let given = next.entry(to.clone()).or_insert(*sequence);
                        *sequence = *given;
                        *given += 1;
                    }
                    operations.push(operation);
                    steps.push(step);
                }
                if operations.is_empty() {
                    return true;
                }
                self.next_id += 1;
                let id =
                    TransactionId::Local { connection: Text::from_static("ID:test"), value: self.next_id };
                let result = if self.random.chance(3) {
                    self.store.together(&operations)
                } else {
                    self.store.transaction(&id, &operations)
                };
                let Ok(end) = result else { return false };
                self.log.push((end, Step::Many(steps)));
                return self.settle();
            }
            75..81 => {
                let topic = Destination::topic(self.pick(&self.topics.clone()));
                let (client, name) = self.pick(&self.subs.clone());
                let key = self.store.destination(&topic);
                let info = SubscriptionInfo {
                    client_id: Text::from_static(client),
                    destination: topic.clone(),
                    subscription_name: Text::from_static(name),
                    subscribed_destination: Some(topic.clone()),
                    ..SubscriptionInfo::default()
                };
                let retroactive = self.random.chance(3);
                let Ok(end) = self.store.subscribe(key, &info, retroactive) else { return false };
                let (topic, sub) = (topic.to_string(), format!("{client}:{name}"));
                self.log.push((end, Step::Subscribe { topic, sub, retroactive }));
            }
            81..83 => {
                let topic = Destination::topic(self.pick(&self.topics.clone()));
                let (client, name) = self.pick(&self.subs.clone());
                let key = self.store.destination(&topic);
                let sub =
                    SubscriptionKey { client_id: Text::from_static(client), name: Text::from_static(name) };
                let Ok(end) = self.store.unsubscribe(key, &sub) else { return false };
                self.log.push((end, Step::Unsubscribe { topic: topic.to_string(), sub: sub.to_string() }));
            }
            83 => {
                let queue = Destination::queue(self.pick(&self.queues.clone()));
                let key = self.store.destination(&queue);
                let Ok(end) = self.store.remove_destination(key) else { return false };
                self.log.push((end, Step::RemoveDestination { name: queue.to_string() }));
            }
            84..88 => {
                // The index may stand in the middle of a batch.
                let Ok(end) = self.write() else { return false };
                if let Some(end) = end {
                    self.confirmed = end;
                    let some = self.random.below(4) as usize;
                    self.store.apply(end, some, &mut Vec::new()).unwrap();
                }
                if !self.checkpoint() {
                    return false;
                }
            }
            88..91 => {
                if self.store.collect().is_err() {
                    return false;
                }
            }
            91 => {
                if let Some(file) = self.store.sparse_file() {
                    let Ok(records) = candidates(&self.store.reader(), file) else { return false };
                    if self.store.relocate(&records).is_err() {
                        return false;
                    }
                }
            }
            _ => {
                if !self.settle() {
                    return false;
                }
            }
        }
        let files = self.store.to_retire();
        if self.store.journal().retire(files.iter().copied()).is_err() {
            return false;
        }
        files.into_iter().for_each(|file| self.store.retired(file));
        true
    }

    /// The model at a journal position.
    pub fn expected(&self, end: Lsn) -> Content_ {
        let mut content = self.base.clone();
        for (_, step) in self.log.iter().filter(|(at, _)| *at <= end) {
            content.apply(step);
        }
        content.trimmed()
    }

    /// Opens what is left after `files`' crash, checks it against the model, and goes on with it.
    pub fn reopen(&mut self, files: MemoryFiles) {
        let Opened { mut store, writer, report, .. } = open(&files).unwrap_or_else(|e| panic!("{e}"));
        let end = report.recovery.end;
        assert!(end >= self.confirmed, "confirmed {} but recovered {end}", self.confirmed);
        let expected = self.expected(end);
        let reader = store.reader();
        let got = content(store.state_mut(), &reader);
        let difference = got.trimmed().difference(&expected);
        assert!(difference.is_empty(), "recovered up to {end} / model: {difference:#?}");
        self.files = files;
        self.store = store;
        self.writer = writer;
        self.base = expected;
        self.log.clear();
        self.confirmed = end;
        assert!(self.settle(), "a fresh disk");
        self.check_rebuild();
    }

    /// The index equals what the journal alone says.
    pub fn check_rebuild(&mut self) {
        let reader = self.store.reader();
        let live = content(self.store.state_mut(), &reader).trimmed();
        let files: Arc<dyn Files> = Arc::new(self.files.clone());
        let mut other = inspect(&files).unwrap_or_else(|e| panic!("{e}"));
        let reader = other.reader.clone();
        let difference = live.difference(&content(&mut other.state, &reader).trimmed());
        assert!(difference.is_empty(), "index / journal: {difference:#?}");
    }
}
