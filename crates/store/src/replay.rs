//! From records to the index (`kahadb-format.md` §6).
//!
//! Records that we wrote name a message by its sequence, which is stored in the message and in its acknowledgement (design
//! D2). Records that ActiveMQ wrote name it by its id: while those are replayed, and only then, a map of ids is kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use kahawai_journal::{BatchView, CollectionRecord, JournalReader, Record, Trace};
use kahawai_kahadb::command::{AddMessage, Command, CommandError, RemoveMessage, Subscription, decode};
use kahawai_message::storage::{Applied, DestinationKey, SubscriptionKey, Tier};
use kahawai_message::stored::{StoredError, ack_broker_sequence, decode_subscription_info, read_head};
use kahawai_message::{MessageId, ProducerId, TransactionId};
use kahawai_types::{Location, Lsn};

use crate::audit;
use crate::chunk::Slot;
use crate::state::{ChunkError, Op, Prepared, PreparedOp, State};

/// Why a journal cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A batch could not be read.
    #[error(transparent)]
    Read(#[from] kahawai_journal::ReadError),
    /// A record that is no store command.
    #[error("record at db-{}.log offset {}: {source}", .at.file, .at.offset)]
    Command {
        /// Where.
        at: Location,
        /// What is wrong with it.
        source: CommandError,
    },
    /// A store command with a message, acknowledgement or subscription inside that cannot be read.
    #[error("record at db-{}.log offset {}: {source}", .at.file, .at.offset)]
    Stored {
        /// Where.
        at: Location,
        /// What is wrong with it.
        source: StoredError,
    },
    /// A scheduler's record in a message store.
    #[error("record at db-{}.log offset {} is a scheduler's '{name}': this is a scheduler store, not a message store", .at.file, .at.offset)]
    Scheduler {
        /// Where.
        at: Location,
        /// Its command.
        name: &'static str,
    },
    /// The index store failed.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// ActiveMQ has written behind our last checkpoint: its index, or a replay from the start, is needed.
    #[error("ActiveMQ has written to this directory since, from db-{}.log offset {}", .at.file(), .at.offset())]
    ForeignTail {
        /// Its first batch.
        at: Lsn,
    },
    /// A record is read while it comes, and was needed again.
    #[error("record at db-{}.log offset {} cannot be read yet", .at.file, .at.offset)]
    Gone {
        /// Where.
        at: Location,
    },
    /// The primary had no use for a data file any more, this index has: one of them is wrong, and nothing is deleted.
    #[error(
        "record at db-{}.log offset {} says that db-{file}.log is needed no more, but the index needs it: {why}; index and \
         journal disagree, so the index must be rebuilt",
        .at.file, .at.offset
    )]
    Referenced {
        /// The collection record.
        at: Location,
        /// The file that should go.
        file: u32,
        /// What needs it.
        why: String,
    },
}

/// Ids of live messages, for records that name messages by id.
#[derive(Debug, Default)]
pub struct Ids {
    by_destination: HashMap<DestinationKey, HashMap<Box<str>, u64>>,
}

impl Ids {
    /// Remembers a live message.
    pub fn insert(&mut self, destination: DestinationKey, id: &str, sequence: u64) {
        self.by_destination.entry(destination).or_default().insert(id.into(), sequence);
    }

    /// A message's sequence.
    pub fn get(&self, destination: DestinationKey, id: &str) -> Option<u64> {
        self.by_destination.get(&destination)?.get(id).copied()
    }

    fn remove(&mut self, destination: DestinationKey, id: &str) {
        if let Some(ids) = self.by_destination.get_mut(&destination) {
            ids.remove(id);
        }
    }

    fn clear(&mut self, destination: DestinationKey) {
        self.by_destination.remove(&destination);
    }
}

/// A step of a transaction whose outcome has not been read yet.
#[derive(Debug)]
enum Step {
    Add { add: AddMessage, at: Location, size: u32, ours: bool },
    Remove { remove: RemoveMessage, at: Location, size: u32, ours: bool },
}

impl Step {
    fn location(&self) -> Location {
        match self {
            Self::Add { at, .. } | Self::Remove { at, .. } => *at,
        }
    }
}

/// What the journal says of data files that are gone.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// Those whose deletion it records.
    pub files: BTreeSet<u32>,
    /// What producers had stored last when the newest of them were given up.
    pub known: Vec<(ProducerId, i64)>,
    /// Where that is said.
    pub known_at: Lsn,
    /// The highest commit position that it tells of. What a record gave up was not needed at the commit position of its own
    /// batch, and what it says of producers was committed then, so that with this the rest is right.
    pub commit: Lsn,
}

fn known_producers(
    collection: &CollectionRecord,
    at: Location,
) -> Result<Vec<(ProducerId, i64)>, ReplayError> {
    audit::decode(collection.knowledge().clone())
        .map_err(|source| CommandError::Malformed { command: 0, message_at: 0, source })
        .map_err(|source| ReplayError::Command { at, source })
}

/// Reads the whole journal for [`Collected`].
pub fn collected_files(reader: &JournalReader) -> Result<Collected, ReplayError> {
    let mut found = Collected::default();
    for batch in reader.batches(Lsn::ZERO) {
        let batch = batch?;
        let Some(stamp) = batch.stamp else { continue };
        found.commit = found.commit.max(stamp.commit_hint);
        for record in batch.records() {
            if let Some(Trace::Collection(collection)) = Trace::decode(&record.payload) {
                found.files.extend(collection.files());
                (found.known, found.known_at) = (known_producers(&collection, record.at)?, record.at.lsn());
            }
        }
    }
    Ok(found)
}

/// Replays batches into an index, which is always the same one. What it owns is what has no effect yet. The default one replays
/// records of ours into an empty index, from the first file on, while they come.
#[derive(Debug, Default)]
pub struct Replayer {
    /// `None`: what is not in memory any more cannot be read.
    reader: Option<JournalReader>,
    /// `None` = every record must be ours.
    ids: Option<Ids>,
    /// ActiveMQ wrote in between ours: sequences in our records mean nothing, ids decide.
    mixed: bool,
    /// Records below have had their effect, except that transactions may be open.
    applied: Lsn,
    seen_ours: bool,
    saw_foreign: bool,
    open: BTreeMap<TransactionId, Vec<Step>>,
    out: Vec<Applied>,
    /// Data files that a later record says are deleted; they are on their way out and count no more.
    skip: BTreeSet<u32>,
    /// Collection records are checked against the index.
    checks_collection: bool,
    /// Data files whose deletion was replayed, each with the end of the record that says so.
    pub collected: Vec<(Lsn, u32)>,
    /// How many records were read.
    pub records: u64,
}

impl Replayer {
    /// Replays into an index in which everything below `applied` has had its effect.
    pub fn new(reader: JournalReader, ids: Option<Ids>, mixed: bool, applied: Lsn) -> Self {
        Self { reader: Some(reader), ids, mixed, applied, ..Self::default() }
    }

    /// From here on a data file that the index needs is not given up, whatever the journal says.
    pub fn check_collection(&mut self) {
        self.checks_collection = true;
    }

    /// The first record of the oldest transaction without an outcome.
    pub fn open_from(&self) -> Option<Lsn> {
        self.open.values().flatten().map(|step| step.location().lsn()).min()
    }

    /// Leaves out these data files: their deletion was decided, and what cancels their records may be gone already.
    pub fn skipping(mut self, files: BTreeSet<u32>) -> Self {
        self.skip = files;
        self
    }

    /// Did ActiveMQ write behind a batch of ours? Then a replay that trusted our sequences must be done again, mixed.
    fn is_interleaved(&self, ours: bool) -> bool {
        !ours && self.seen_ours && !self.mixed
    }

    /// Was there a batch of ActiveMQ's?
    pub(crate) fn saw_foreign(&self) -> bool {
        self.saw_foreign
    }

    /// Replays one batch.
    pub fn batch(&mut self, state: &mut State, batch: &BatchView) -> Result<(), ReplayError> {
        if self.begin(state, batch)? {
            for record in batch.records() {
                self.record(state, record, batch.stamp.is_some())?;
            }
        }
        Ok(())
    }

    /// Before the records of a batch; `false` if they count no more.
    pub(crate) fn begin(&mut self, state: &mut State, batch: &BatchView) -> Result<bool, ReplayError> {
        if self.skip.contains(&batch.lsn.file()) {
            return Ok(false);
        }
        let ours = batch.stamp.is_some();
        let is_new = batch.lsn >= self.applied;
        if !ours && is_new && (self.ids.is_none() || self.is_interleaved(ours)) {
            return Err(ReplayError::ForeignTail { at: batch.lsn });
        }
        self.seen_ours |= ours;
        self.saw_foreign |= !ours;
        state.files.touch(batch.lsn.file());
        Ok(true)
    }

    /// One record of a batch that was begun; `ours` = the batch has a stamp.
    pub(crate) fn record(
        &mut self,
        state: &mut State,
        record: Record,
        ours: bool,
    ) -> Result<(), ReplayError> {
        let Record { at, size, payload } = record;
        self.records += 1;
        if payload.first() == Some(&0) {
            if let Some(Trace::Collection(collection)) = Trace::decode(&payload)
                && at.lsn() >= self.applied
            {
                if self.checks_collection {
                    self.check_unreferenced(state, at, collection.files())?;
                }
                let end = Lsn(at.lsn().0 + u64::from(size));
                self.collected.extend(collection.files().iter().map(|&file| (end, file)));
                let known = known_producers(&collection, at)?;
                self.apply(state, Op::Collect { files: collection.files().to_vec(), known })?;
            }
            return Ok(());
        }
        let command = decode(payload).map_err(|source| ReplayError::Command { at, source })?;
        let is_new = at.lsn() >= self.applied;
        match command {
            Command::AddMessage(add) => match add.transaction.clone() {
                Some(id) => {
                    let key = state.key(&add.destination);
                    state.name(key);
                    self.open.entry(id).or_default().push(Step::Add { add, at, size, ours });
                }
                None if is_new => {
                    if let Some(op) = self.add(state, &add, at, size, ours)? {
                        self.apply(state, op)?;
                    }
                }
                None => {}
            },
            Command::RemoveMessage(remove) => match remove.transaction.clone() {
                Some(id) => self.open.entry(id).or_default().push(Step::Remove { remove, at, size, ours }),
                None if is_new => {
                    if let Some(op) = self.remove(state, &remove, at, ours)? {
                        self.apply(state, op)?;
                    }
                }
                None => {}
            },
            Command::Prepare(id) => self.prepare(state, id, at)?,
            Command::Commit(id) => self.commit(state, &id, at, is_new)?,
            Command::Rollback(id) => self.rollback(state, &id, at)?,
            Command::UpdateMessage(add) if is_new => {
                let op = self.update(state, &add, at, size, ours)?;
                self.apply(state, op)?;
            }
            Command::Subscription(subscription) if is_new => self.subscription(state, &subscription, at)?,
            Command::RemoveDestination(destination) if is_new => {
                let destination = state.key(&destination);
                if let Some(ids) = &mut self.ids {
                    ids.clear(destination);
                }
                self.apply(state, Op::RemoveDestination { destination, by: at.file })?;
            }
            Command::UpdateMessage(_) | Command::Subscription(_) | Command::RemoveDestination(_) => {}
            // Hints that we recompute, and the mark of a compacted file, whose records are harmless to read twice and must
            // not be skipped (defect D1 of the format).
            Command::Trace { .. }
            | Command::ProducerAudit(_)
            | Command::AckMessageFileMap(_)
            | Command::RewrittenDataFile(_) => {}
            other @ (Command::AddScheduledJob(_)
            | Command::RescheduleJob(_)
            | Command::RemoveScheduledJob(_)
            | Command::RemoveScheduledJobs(_)
            | Command::DestroyScheduler { .. }) => {
                return Err(ReplayError::Scheduler { at, name: other.name() });
            }
        }
        Ok(())
    }

    fn check_unreferenced(&self, state: &State, at: Location, files: &[u32]) -> Result<(), ReplayError> {
        let prepared = state.first_prepared_file();
        let open = self.open_from().map(Lsn::file);
        for &file in files {
            let use_ = state.files.get(file).cloned().unwrap_or_default();
            let why = if use_.live > 0 {
                format!("{} live messages", use_.live)
            } else if use_.subscriptions > 0 && state.subscriptions_with_newest_in(file) > 0 {
                format!("{} durable subscriptions", use_.subscriptions)
            } else if prepared.into_iter().chain(open).any(|first| file >= first) {
                "operations of a transaction without an outcome".to_owned()
            } else {
                continue;
            };
            return Err(ReplayError::Referenced { at, file, why });
        }
        Ok(())
    }

    fn apply(&mut self, state: &mut State, op: Op) -> Result<(), ReplayError> {
        self.out.clear();
        state.apply(op, &mut self.out)?;
        Ok(())
    }

    fn audit(&mut self, state: &mut State, key: &str) {
        let Some(id) = MessageId::from_key(key) else { return };
        state.audit.saw(&id.producer, id.sequence);
    }

    fn slot(add: &AddMessage, at: Location, size: u32) -> Result<(Slot, i64), ReplayError> {
        let head = read_head(&add.message).map_err(|source| ReplayError::Stored { at, source })?;
        let priority = u8::try_from(add.priority.clamp(0, 9)).unwrap_or(4);
        let tier = Tier::of(priority, add.priority_supported);
        let counter = u32::try_from(head.redelivery_counter).unwrap_or(0);
        Ok((Slot::new(at, size, tier, head.expiration_ms, counter), head.broker_sequence))
    }

    /// The sequence that a message of this record has, if it is known or follows from the record.
    fn own_sequence(&self, stored: i64, ours: bool) -> Option<u64> {
        (ours && !self.mixed).then(|| u64::try_from(stored).ok()).flatten()
    }

    fn add(
        &mut self,
        state: &mut State,
        add: &AddMessage,
        at: Location,
        size: u32,
        ours: bool,
    ) -> Result<Option<Op>, ReplayError> {
        let destination = state.key(&add.destination);
        state.name(destination);
        self.audit(state, &add.message_key);
        let (slot, stored) = Self::slot(add, at, size)?;
        if let Some(sequence) = self.own_sequence(stored, ours) {
            return Ok(Some(Op::Add { destination, sequence, slot }));
        }
        if self.ids.as_ref().is_some_and(|ids| ids.get(destination, &add.message_key).is_some()) {
            return Ok(None); // the first one wins
        }
        let Some(d) = state.get_mut(destination) else { return Ok(None) };
        if !d.name.kind.is_queue() && d.subscriptions.is_empty() {
            return Ok(None);
        }
        let sequence = d.next_sequence;
        d.next_sequence += 1;
        if let Some(ids) = &mut self.ids {
            ids.insert(destination, &add.message_key, sequence);
        }
        Ok(Some(Op::Add { destination, sequence, slot }))
    }

    fn update(
        &mut self,
        state: &mut State,
        add: &AddMessage,
        at: Location,
        size: u32,
        ours: bool,
    ) -> Result<Op, ReplayError> {
        let destination = state.key(&add.destination);
        state.name(destination);
        let (slot, stored) = Self::slot(add, at, size)?;
        let by_id = self.ids.as_ref().and_then(|ids| ids.get(destination, &add.message_key));
        let sequence = match by_id.or_else(|| self.own_sequence(stored, ours)) {
            Some(sequence) => sequence,
            None => {
                let sequence = state.get_mut(destination).map_or(0, |d| {
                    d.next_sequence += 1;
                    d.next_sequence - 1
                });
                if let Some(ids) = &mut self.ids {
                    ids.insert(destination, &add.message_key, sequence);
                }
                sequence
            }
        };
        Ok(Op::Update { destination, sequence, slot })
    }

    fn resolve(
        &mut self,
        state: &mut State,
        remove: &RemoveMessage,
        at: Location,
        ours: bool,
    ) -> Result<Option<(DestinationKey, Option<SubscriptionKey>, u64)>, ReplayError> {
        let destination = state.key(&remove.destination);
        let mut sequence = self.ids.as_ref().and_then(|ids| ids.get(destination, &remove.message_key));
        if sequence.is_none() && ours && !self.mixed {
            let ack: &Bytes = match &remove.ack {
                Some(ack) => ack,
                None => return Ok(None),
            };
            sequence = ack_broker_sequence(ack)
                .map_err(|source| ReplayError::Stored { at, source })?
                .and_then(|n| u64::try_from(n).ok());
        }
        let Some(sequence) = sequence else { return Ok(None) };
        let subscription = match &remove.subscription_key {
            None => None,
            Some(joined) => match Self::subscription_key(state, destination, joined) {
                None => return Ok(None),
                known => known,
            },
        };
        Ok(Some((destination, subscription, sequence)))
    }

    fn subscription_key(state: &State, destination: DestinationKey, joined: &str) -> Option<SubscriptionKey> {
        let matches = |key: &&SubscriptionKey| {
            joined
                .strip_prefix(&*key.client_id)
                .and_then(|rest| rest.strip_prefix(':'))
                .is_some_and(|name| *name == *key.name)
        };
        state.get(destination)?.subscriptions.keys().find(matches).cloned()
    }

    fn remove(
        &mut self,
        state: &mut State,
        remove: &RemoveMessage,
        at: Location,
        ours: bool,
    ) -> Result<Option<Op>, ReplayError> {
        let Some((destination, subscription, sequence)) = self.resolve(state, remove, at, ours)? else {
            return Ok(None);
        };
        Ok(Some(match subscription {
            None => {
                if let Some(ids) = &mut self.ids {
                    ids.remove(destination, &remove.message_key);
                }
                Op::Remove { destination, sequence, by: at.file }
            }
            Some(subscription) => Op::Acknowledge { destination, subscription, sequence, by: at.file },
        }))
    }

    fn prepare(&mut self, state: &mut State, id: TransactionId, at: Location) -> Result<(), ReplayError> {
        let Some(steps) = self.open.remove(&id) else { return Ok(()) };
        if state.prepared.contains_key(&id) {
            return Ok(());
        }
        let first = steps.iter().map(Step::location).min().unwrap_or(at);
        let mut operations = Vec::with_capacity(steps.len());
        for step in &steps {
            operations.push(match step {
                Step::Add { add, at, size, .. } => {
                    PreparedOp::Add { destination: state.key(&add.destination), at: *at, size: *size }
                }
                Step::Remove { remove, at, size, ours } => {
                    let found = self.resolve(state, remove, *at, *ours)?;
                    if let Some((destination, subscription, sequence)) = &found {
                        state.hold(*destination, subscription.as_ref(), *sequence, true)?;
                    }
                    PreparedOp::Remove {
                        destination: state.key(&remove.destination),
                        subscription: found.as_ref().and_then(|(_, subscription, _)| subscription.clone()),
                        sequence: found.map(|(.., sequence)| sequence),
                        at: *at,
                        size: *size,
                    }
                }
            });
        }
        state.prepared.insert(id, Prepared { operations, first, at });
        Ok(())
    }

    /// Its record outlives the operations: without it, whoever replays what stays would take them for a transaction under way.
    fn rollback(&mut self, state: &mut State, id: &TransactionId, at: Location) -> Result<(), ReplayError> {
        if let Some(steps) = self.open.remove(id) {
            for step in steps {
                state.files.outlives(at.file, step.location().file);
            }
            return Ok(());
        }
        let Some(prepared) = state.prepared.remove(id) else { return Ok(()) };
        state.files.outlives(at.file, prepared.at.file);
        for op in prepared.operations {
            state.files.outlives(at.file, op.location().file);
            if let PreparedOp::Remove { destination, subscription, sequence: Some(sequence), .. } = op {
                state.hold(destination, subscription.as_ref(), sequence, false)?;
            }
        }
        Ok(())
    }

    fn commit(
        &mut self,
        state: &mut State,
        id: &TransactionId,
        at: Location,
        is_new: bool,
    ) -> Result<(), ReplayError> {
        let steps = match self.open.remove(id) {
            Some(steps) => steps,
            None => match state.prepared.remove(id) {
                Some(prepared) => {
                    state.files.outlives(at.file, prepared.at.file);
                    self.read_prepared(state, prepared)?
                }
                None => return Ok(()),
            },
        };
        if !is_new {
            return Ok(());
        }
        let from = steps.iter().map(|step| step.location().lsn()).min().unwrap_or(at.lsn());
        for step in steps {
            // Also of what has no effect here: it would be read as a transaction that goes on.
            state.files.outlives(at.file, step.location().file);
            // One by one: later steps may name messages of earlier ones.
            let op = match &step {
                Step::Add { add, at, size, ours } => self.add(state, add, *at, *size, *ours)?,
                Step::Remove { remove, at, ours, .. } => self.remove(state, remove, *at, *ours)?,
            };
            if let Some(op) = op {
                self.apply(state, Op::Transaction { operations: vec![op], by: at.file, from })?;
            }
        }
        Ok(())
    }

    fn read_prepared(&mut self, state: &mut State, prepared: Prepared) -> Result<Vec<Step>, ReplayError> {
        let reader = self.reader.as_ref().ok_or(ReplayError::Gone { at: prepared.first })?;
        let mut window = reader.window();
        let mut steps = Vec::with_capacity(prepared.operations.len());
        for op in prepared.operations {
            let (at, size) = match &op {
                PreparedOp::Add { at, size, .. } | PreparedOp::Remove { at, size, .. } => (*at, *size),
            };
            // A copy: what is kept must not keep a whole window in memory.
            let payload = Bytes::copy_from_slice(&window.read(at, size)?);
            // Sequences of prepared adds are given at the commit, whoever wrote them.
            match decode(payload).map_err(|source| ReplayError::Command { at, source })? {
                Command::AddMessage(add) => steps.push(Step::Add { add, at, size, ours: false }),
                Command::RemoveMessage(remove) => {
                    if let PreparedOp::Remove {
                        destination, subscription, sequence: Some(sequence), ..
                    } = op
                    {
                        state.hold(destination, subscription.as_ref(), sequence, false)?;
                        if let Some(ids) = &mut self.ids {
                            ids.insert(destination, &remove.message_key, sequence);
                        }
                    }
                    steps.push(Step::Remove { remove, at, size, ours: true });
                }
                _ => {}
            }
        }
        Ok(steps)
    }

    fn subscription(
        &mut self,
        state: &mut State,
        subscription: &Subscription,
        at: Location,
    ) -> Result<(), ReplayError> {
        let destination = state.key(&subscription.destination);
        match &subscription.info {
            Some(info) => {
                // A copy: the subscription outlives the buffer that it was read from.
                let info = decode_subscription_info(Bytes::copy_from_slice(info))
                    .map_err(|source| ReplayError::Stored { at, source })?;
                let key = SubscriptionKey {
                    client_id: info.client_id.clone(),
                    name: info.subscription_name.clone(),
                };
                let known = state.get(destination).and_then(|d| d.subscriptions.get(&key)).map(|sub| sub.at);
                if known == Some(at) {
                    return Ok(());
                }
                self.apply(
                    state,
                    Op::Subscribe {
                        destination,
                        info: Box::new(info),
                        retroactive: subscription.retroactive,
                        at,
                    },
                )
            }
            None => match Self::subscription_key(state, destination, &subscription.subscription_key) {
                Some(key) => {
                    self.apply(state, Op::Unsubscribe { destination, subscription: key, by: at.file })
                }
                // ActiveMQ writes a removal to every topic that it knows.
                None => Ok(()),
            },
        }
    }

    /// Ends the replay; transactions that have no outcome will never have one. With each, the files of its operations.
    pub fn finish(self) -> Vec<(TransactionId, BTreeSet<u32>)> {
        let files = |steps: Vec<Step>| steps.iter().map(|step| step.location().file).collect();
        self.open.into_iter().map(|(id, steps)| (id, files(steps))).collect()
    }
}
