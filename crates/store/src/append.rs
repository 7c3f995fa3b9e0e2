//! The store at run time: commands go to the journal, and to the index when they are committed.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use bytes::BytesMut;
use kahawai_journal::{AppendError, Appender, CollectionRecord, Journal, JournalFailed, JournalReader};
use kahawai_kahadb::command::{
    AddHeader, MessageKey, RemoveHeader, encode_add, encode_commit, encode_remove, encode_remove_destination,
    encode_rollback, encode_subscription, encode_update,
};
use kahawai_message::storage::{
    AckBy, Appended, Applied, DestinationKey, Entry, Operation, Storage, StorageError, SubscriptionKey, Tier,
};
use kahawai_message::stored::{
    ConsumerId, MessageAck, SubscriptionInfo, encode_ack, encode_message, encode_subscription_info,
    encoded_len_estimate,
};
use kahawai_message::{Destination, Message, MessageId, ProducerId, TransactionId};
use kahawai_types::{Location, Lsn};

use crate::audit::{self, Audit};
use crate::checkpoint::{Checkpoint, Header, IndexError, IndexStore};
use crate::chunk::Slot;
use crate::collect::Early;
use crate::state::{ChunkError, Op, State};

/// OpenWire's acknowledgement types.
const ACK_STANDARD: u8 = 2;
const ACK_INDIVIDUAL: u8 = 4;
const ACK_UNMATCHED: u8 = 5;

/// How many bytes may be appended and not committed before producers are held back.
pub const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// How much memory index chunks may take before those in the middle of deep destinations are let go.
pub const RESIDENT_BYTES_MAX: usize = 48 << 20;

/// One message store: journal and index. Not shared: the node keeps it behind its one lock.
#[derive(Debug)]
pub struct Store {
    pub(crate) state: State,
    pub(crate) journal: Journal,
    pub(crate) appender: Appender,
    pub(crate) reader: JournalReader,
    pub(crate) index: Arc<IndexStore>,
    /// Appended, not committed: in journal order.
    pending: VecDeque<(Lsn, Op)>,
    /// Producers' message numbers, appended and not committed: a checkpoint that knew them would have a message taken for a
    /// duplicate that was never kept.
    seen: VecDeque<(Lsn, ProducerId, i64)>,
    /// The audit with those.
    audit: Audit,
    appended_end: Lsn,
    commit: Lsn,
    /// The index reflects everything below.
    applied: Lsn,
    /// Where a restart would replay from: nothing at or behind it may be collected.
    pub(crate) checkpointed: Lsn,
    /// Before it is committed, the index holds what may yet turn out never to have been.
    settled_from: Lsn,
    early: Early,
    resident_bytes_max: usize,
}

/// About how much journal lies between two positions.
pub(crate) fn bytes_between(from: Lsn, to: Lsn) -> u64 {
    let files = u64::from(to.file().saturating_sub(from.file()));
    (files * (32 << 20) + u64::from(to.offset())).saturating_sub(u64::from(from.offset()))
}

/// For clients too: the cause, and no name of a file.
fn failed(error: AppendError) -> StorageError {
    StorageError::Failed(match error {
        AppendError::Failed(JournalFailed { at, step, source, .. }) => {
            format!("the journal failed at {at}, {step}: {source}")
        }
        other => other.to_string(),
    })
}

impl Store {
    pub(crate) fn new(
        state: State,
        journal: Journal,
        index: Arc<IndexStore>,
        end: Lsn,
        checkpointed: Lsn,
    ) -> Self {
        Self {
            audit: state.audit.clone(),
            seen: VecDeque::new(),
            state,
            appender: journal.appender(),
            reader: journal.reader(),
            journal,
            index,
            pending: VecDeque::new(),
            appended_end: end,
            commit: end,
            applied: end,
            checkpointed,
            settled_from: Lsn::ZERO,
            early: Early::default(),
            resident_bytes_max: RESIDENT_BYTES_MAX,
        }
    }

    /// The store of a replica that becomes the primary: all of its journal, up to `end`, is in the index, and only what is
    /// below `commit` is known to be committed.
    pub(crate) fn promoted(
        state: State,
        journal: Journal,
        index: Arc<IndexStore>,
        (commit, end, marker_end): (Lsn, Lsn, Lsn),
        checkpointed: Lsn,
        early: Early,
    ) -> Self {
        Self {
            commit,
            appended_end: marker_end,
            settled_from: marker_end,
            early,
            ..Self::new(state, journal, index, end, checkpointed)
        }
    }

    /// The index holds what was not committed when this node became the primary, until the commit position is here: the end
    /// of the marker of its epoch. Before that no checkpoint may be written. [`Lsn::ZERO`] for a single node.
    pub fn settled_from(&self) -> Lsn {
        self.settled_from
    }

    /// May a checkpoint be written, by the commit position that was applied last? See [`Store::settled_from`].
    pub fn is_settled(&self) -> bool {
        self.commit >= self.settled_from
    }

    /// See [`State::digest`]. Equal on nodes whose [`Store::applied`] is equal.
    ///
    /// # Errors
    /// The index store failed.
    pub fn digest(&self) -> Result<u64, ChunkError> {
        self.state.digest()
    }

    /// Reads message bodies.
    pub fn reader(&self) -> JournalReader {
        self.reader.clone()
    }

    /// The journal below.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The index, for status and tests.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The index, to be read with its chunks loaded on the way.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// Makes everything up to `commit` true, at most `operations_max` operations at a time, and reports what the broker
    /// must know. `true` = there is more.
    ///
    /// # Errors
    /// The index store failed: the node must stop. The next start rebuilds the index if it has to.
    pub fn apply(
        &mut self,
        commit: Lsn,
        operations_max: usize,
        out: &mut Vec<Applied>,
    ) -> Result<bool, StorageError> {
        self.commit = self.commit.max(commit);
        for _ in 0..operations_max {
            match self.pending.front() {
                Some(&(end, _)) if end <= self.commit => {}
                _ => break,
            }
            let Some((end, op)) = self.pending.pop_front() else { break };
            self.state.apply(op, out).map_err(|e| StorageError::Failed(e.to_string()))?;
            self.applied = end;
        }
        while let Some((_, producer, sequence)) = self.seen.pop_front_if(|(end, ..)| *end <= self.applied) {
            self.state.audit.saw(&producer, sequence);
        }
        let more = self.pending.front().is_some_and(|&(end, _)| end <= self.commit);
        if !more && self.pending.is_empty() {
            self.applied = self.applied.max(self.commit);
        }
        Ok(more)
    }

    /// Data files whose deletion has been committed, to be deleted with [`Journal::retire`] outside of any lock. Then
    /// [`Store::retired`] is told of each. A restart in between asks again.
    pub fn to_retire(&self) -> Vec<u32> {
        self.state.collected.iter().copied().filter(|&file| !self.early.holds(file)).collect()
    }

    /// A data file is deleted, durably.
    pub fn retired(&mut self, file: u32) {
        self.state.collected.remove(&file);
    }

    /// First step of a checkpoint: what changed, in short time. Write it with [`IndexStore::write`] outside of any lock,
    /// then call [`Store::finish_checkpoint`] with its header. Not before the commit position has reached
    /// [`Store::settled_from`]: the next life of this node would believe what was never committed.
    pub fn begin_checkpoint(&mut self, clean: bool) -> Checkpoint {
        // A transaction whose first records lie below `applied` must be read again from its start.
        let open_from = self.pending.iter().find_map(|(_, op)| match op {
            Op::Transaction { from, .. } => Some(*from),
            _ => None,
        });
        let replay_from = open_from.map_or(self.applied, |from| from.min(self.applied));
        Checkpoint::of(&mut self.state, self.applied, replay_from, clean)
    }

    pub(crate) fn checkpoint_now(&mut self) -> Result<(), IndexError> {
        let checkpoint = self.begin_checkpoint(false);
        self.write_checkpoint(checkpoint)
    }

    pub(crate) fn write_checkpoint(&mut self, checkpoint: Checkpoint) -> Result<(), IndexError> {
        let header = checkpoint.header;
        self.index.write(checkpoint)?;
        self.finish_checkpoint(header);
        Ok(())
    }

    /// Last step of a checkpoint, when it is durable.
    pub fn finish_checkpoint(&mut self, header: Header) {
        self.checkpointed = self.checkpointed.max(header.replay_from.min(header.applied));
        self.early.checkpointed(header.applied);
        self.state.evict(self.resident_bytes_max);
    }

    /// Where checkpoints are written.
    pub fn index(&self) -> Arc<IndexStore> {
        Arc::clone(&self.index)
    }

    /// How far the index has come.
    pub fn applied(&self) -> Lsn {
        self.applied
    }

    /// Bytes of journal behind the last checkpoint: what a restart would replay, about.
    pub fn behind_checkpoint_bytes(&self) -> u64 {
        bytes_between(self.checkpointed, self.appended_end)
    }

    fn pend(&mut self, end: Lsn, op: Op) -> Lsn {
        self.appended_end = end;
        self.pending.push_back((end, op));
        end
    }

    /// A message that counts from `end` on.
    fn saw(&mut self, end: Lsn, id: &MessageId) {
        self.audit.saw(&id.producer, id.sequence);
        self.seen.push_back((end, id.producer.clone(), id.sequence));
    }

    fn name_of(&self, key: DestinationKey) -> Destination {
        self.state.get(key).map(|d| d.name.clone()).unwrap_or_default()
    }

    fn next_sequence(&mut self, key: DestinationKey) -> u64 {
        let Some(d) = self.state.get_mut(key) else { return 0 };
        d.next_sequence += 1;
        d.next_sequence - 1
    }

    fn too_large(message: &Message) -> Result<(), StorageError> {
        let bytes = encoded_len_estimate(message) as u64;
        if bytes > MESSAGE_BYTES_MAX {
            return Err(StorageError::TooLarge { bytes, limit: MESSAGE_BYTES_MAX });
        }
        Ok(())
    }

    fn append(
        &mut self,
        encode: impl FnOnce(&mut BytesMut),
    ) -> Result<kahawai_journal::Appended, StorageError> {
        self.appender.lock().append(encode).map_err(failed)
    }

    /// Appends the rollback of a transaction that a crash left open, with operations in `files`: it stays while they do.
    pub(crate) fn append_rollback(
        &mut self,
        id: &TransactionId,
        files: &BTreeSet<u32>,
    ) -> Result<(), StorageError> {
        let appended = self.append(|out| encode_rollback(id, out))?;
        for &file in files {
            self.state.files.outlives(appended.at.file, file);
        }
        self.appended_end = appended.end;
        Ok(())
    }

    /// Begins another data file with what comes next, if the one that is written to holds anything that is committed, or is the first
    /// one behind what was imported: then that can be copied.
    pub fn begin_file(&mut self, imported: Option<Lsn>) -> Result<(), StorageError> {
        let file = self.appended_end.file();
        let is_first = imported.is_some_and(|imported| imported.file().saturating_add(1) == file);
        if is_first || file == self.commit.file() {
            self.appender.begin_file();
            self.append_collection(Vec::new())?;
        }
        Ok(())
    }

    /// Appends the decision to delete data files. With it goes what each producer has stored last, of what is committed: whatever
    /// becomes of the record, that is true.
    pub(crate) fn append_collection(&mut self, files: Vec<u32>) -> Result<Lsn, StorageError> {
        let known = self.state.audit.entries();
        let mut knowledge = BytesMut::new();
        audit::encode(&known, &mut knowledge);
        let record = CollectionRecord::new(files, knowledge.freeze());
        let files = record.files().to_vec();
        let appended = self.append(|out| record.encode(out))?;
        Ok(self.pend(appended.end, Op::Collect { files, known }))
    }

    /// What is appended and not committed yet: messages that are about to go, and destinations that change as a whole.
    /// None of them may be moved: the removal would stand before the new record, and the message would come back.
    pub(crate) fn unsettled(&self) -> (HashSet<(DestinationKey, u64)>, HashSet<DestinationKey>) {
        fn look(op: &Op, messages: &mut HashSet<(DestinationKey, u64)>, whole: &mut HashSet<DestinationKey>) {
            match op {
                Op::Remove { destination, sequence, .. }
                | Op::Acknowledge { destination, sequence, .. }
                | Op::Update { destination, sequence, .. } => {
                    messages.insert((*destination, *sequence));
                }
                Op::Unsubscribe { destination, .. }
                | Op::Subscribe { destination, .. }
                | Op::RemoveDestination { destination, .. } => {
                    whole.insert(*destination);
                }
                Op::Transaction { operations, .. } => {
                    operations.iter().for_each(|op| look(op, messages, whole))
                }
                Op::Add { .. } | Op::Collect { .. } => {}
            }
        }
        let (mut messages, mut whole) = (HashSet::new(), HashSet::new());
        self.pending.iter().for_each(|(_, op)| look(op, &mut messages, &mut whole));
        (messages, whole)
    }

    /// Appends `stored`, the bytes of a message that lives elsewhere, as its new record. With it, in the same batch, the
    /// acknowledgements of durable subscriptions that are done with it (or never had it): theirs stay with its old file.
    pub(crate) fn append_move(
        &mut self,
        key: DestinationKey,
        entry: &Entry,
        id: &MessageId,
        header: &AddHeader<'_>,
        stored: &[u8],
    ) -> Result<Lsn, StorageError> {
        let sequence = entry.sequence;
        let name = self.name_of(key);
        let done: Vec<SubscriptionKey> = self.state.get(key).map_or_else(Vec::new, |d| {
            let done = d.subscriptions.iter().filter(|(_, sub)| !sub.has_pending(sequence));
            done.map(|(key, _)| key.clone()).collect()
        });
        let by = AckBy::default();
        let places = self
            .appender
            .lock()
            .append_together(1 + done.len(), |n, out| match n.checked_sub(1).and_then(|n| done.get(n)) {
                None => encode_update(header, stored.len(), |out| out.extend_from_slice(stored), out),
                Some(subscription) => put_removal(
                    &Removal {
                        destination: &name,
                        subscription: Some(subscription),
                        sequence,
                        id,
                        by: &by,
                        ack_type: ACK_INDIVIDUAL,
                        transaction: None,
                    },
                    out,
                ),
            })
            .map_err(failed)?;
        let mut end = self.appended_end;
        for (n, place) in places.iter().enumerate() {
            let op = match n.checked_sub(1).and_then(|n| done.get(n)) {
                None => {
                    let slot = Slot::new(
                        place.at,
                        place.size,
                        entry.tier,
                        entry.expiration_ms,
                        entry.redelivery_counter,
                    );
                    Op::Update { destination: key, sequence, slot }
                }
                Some(subscription) => {
                    let (subscription, by) = (subscription.clone(), place.at.file);
                    Op::Acknowledge { destination: key, subscription, sequence, by }
                }
            };
            end = self.pend(place.end, op);
        }
        Ok(end)
    }
}

/// The largest message that is stored, as stored. Upstream's offsets are signed 32-bit numbers, and a record must fit a file.
pub const MESSAGE_BYTES_MAX: u64 = 512 << 20;

fn put_add(
    message: &Message,
    sequence: u64,
    prioritised: bool,
    transaction: Option<&TransactionId>,
    out: &mut BytesMut,
) {
    let header = AddHeader {
        transaction,
        destination: &message.destination,
        message_key: MessageKey::Id(&message.id),
        priority: message.priority.into(),
        priority_supported: prioritised,
    };
    encode_add(
        &header,
        encoded_len_estimate(message),
        |out| encode_message(message, sequence.cast_signed(), out),
        out,
    );
}

struct Removal<'a> {
    destination: &'a Destination,
    subscription: Option<&'a SubscriptionKey>,
    sequence: u64,
    id: &'a MessageId,
    by: &'a AckBy,
    ack_type: u8,
    transaction: Option<&'a TransactionId>,
}

fn put_removal(removal: &Removal<'_>, out: &mut BytesMut) {
    let joined = removal.subscription.map(ToString::to_string);
    let header = RemoveHeader {
        transaction: removal.transaction,
        destination: removal.destination,
        message_key: MessageKey::Id(removal.id),
        subscription_key: joined.as_deref(),
    };
    let mut last = removal.id.clone();
    // Design D2: this is how replay finds the message without a map of ids.
    last.broker_sequence = removal.sequence.cast_signed();
    let ack = MessageAck {
        destination: removal.destination.clone(),
        transaction_id: removal.transaction.cloned(),
        consumer_id: Some(ConsumerId {
            connection: removal.by.connection.clone(),
            session: removal.by.session,
            value: removal.by.consumer,
        }),
        ack_type: removal.ack_type,
        last_message_id: Some(last),
        message_count: 1,
        ..MessageAck::default()
    };
    encode_remove(&header, |out| encode_ack(&ack, out), out);
}

fn slot_of(message: &Message, prioritised: bool, at: Location, size: u32) -> Slot {
    let counter = u32::try_from(message.redelivery_counter).unwrap_or(0);
    Slot::new(at, size, Tier::of(message.priority, prioritised), message.expiration_ms, counter)
}

impl Store {
    /// Sequences for the messages that `operations` add, in order.
    fn number(&mut self, operations: &[Operation]) -> Result<Vec<u64>, StorageError> {
        for op in operations {
            if let Operation::Add { message, .. } = op {
                Self::too_large(message)?;
            }
        }
        Ok(operations
            .iter()
            .map(|op| match op {
                Operation::Add { destination, .. } => self.next_sequence(*destination),
                Operation::Remove { sequence, .. } | Operation::Acknowledge { sequence, .. } => *sequence,
            })
            .collect())
    }

    fn put_operation(
        &self,
        operation: &Operation,
        sequence: u64,
        transaction: Option<&TransactionId>,
        out: &mut BytesMut,
    ) {
        match operation {
            Operation::Add { message, prioritised, .. } => {
                if transaction.is_some() && message.transaction_id.as_ref() != transaction {
                    let mut message = message.clone();
                    message.transaction_id = transaction.cloned();
                    return put_add(&message, sequence, *prioritised, transaction, out);
                }
                put_add(message, sequence, *prioritised, transaction, out);
            }
            Operation::Remove { destination, sequence, id, by } => put_removal(
                &Removal {
                    destination: &self.name_of(*destination),
                    subscription: None,
                    sequence: *sequence,
                    id,
                    by,
                    ack_type: ACK_STANDARD,
                    transaction,
                },
                out,
            ),
            Operation::Acknowledge { destination, subscription, sequence, id, unmatched, by } => put_removal(
                &Removal {
                    destination: &self.name_of(*destination),
                    subscription: Some(subscription),
                    sequence: *sequence,
                    id,
                    by,
                    ack_type: if *unmatched { ACK_UNMATCHED } else { ACK_INDIVIDUAL },
                    transaction,
                },
                out,
            ),
        }
    }

    fn op(operation: &Operation, sequence: u64, at: Location, size: u32) -> Op {
        match operation {
            Operation::Add { destination, message, prioritised } => Op::Add {
                destination: *destination,
                sequence,
                slot: slot_of(message, *prioritised, at, size),
            },
            Operation::Remove { destination, .. } => {
                Op::Remove { destination: *destination, sequence, by: at.file }
            }
            Operation::Acknowledge { destination, subscription, .. } => Op::Acknowledge {
                destination: *destination,
                subscription: subscription.clone(),
                sequence,
                by: at.file,
            },
        }
    }
}

impl Storage for Store {
    fn destination(&mut self, destination: &Destination) -> DestinationKey {
        self.state.key(destination)
    }

    fn add(
        &mut self,
        to: DestinationKey,
        message: &Message,
        prioritised: bool,
    ) -> Result<Appended, StorageError> {
        Self::too_large(message)?;
        let sequence = self.next_sequence(to);
        let appended = self.append(|out| put_add(message, sequence, prioritised, None, out))?;
        self.saw(appended.end, &message.id);
        let slot = slot_of(message, prioritised, appended.at, appended.size);
        self.pend(appended.end, Op::Add { destination: to, sequence, slot });
        Ok(Appended { sequence, end: appended.end })
    }

    fn add_all(&mut self, copies: &[(DestinationKey, Message, bool)]) -> Result<Appended, StorageError> {
        let operations: Vec<Operation> = copies
            .iter()
            .map(|(destination, message, prioritised)| Operation::Add {
                destination: *destination,
                message: message.clone(),
                prioritised: *prioritised,
            })
            .collect();
        let end = self.together(&operations)?;
        Ok(Appended { sequence: 0, end })
    }

    fn remove(
        &mut self,
        from: DestinationKey,
        sequence: u64,
        id: &MessageId,
        by: &AckBy,
    ) -> Result<Lsn, StorageError> {
        let destination = self.name_of(from);
        let removal = Removal {
            destination: &destination,
            subscription: None,
            sequence,
            id,
            by,
            ack_type: ACK_STANDARD,
            transaction: None,
        };
        let appended = self.append(|out| put_removal(&removal, out))?;
        Ok(self.pend(appended.end, Op::Remove { destination: from, sequence, by: appended.at.file }))
    }

    fn acknowledge(
        &mut self,
        topic: DestinationKey,
        subscription: &SubscriptionKey,
        sequence: u64,
        id: &MessageId,
        by: &AckBy,
        unmatched: bool,
    ) -> Result<Lsn, StorageError> {
        self.together(&[Operation::Acknowledge {
            destination: topic,
            subscription: subscription.clone(),
            sequence,
            id: id.clone(),
            unmatched,
            by: by.clone(),
        }])
    }

    fn transaction(&mut self, id: &TransactionId, operations: &[Operation]) -> Result<Lsn, StorageError> {
        let sequences = self.number(operations)?;
        let mut ops = Vec::with_capacity(operations.len());
        let mut from = None;
        for (operation, &sequence) in operations.iter().zip(&sequences) {
            let appended = self
                .appender
                .lock()
                .append(|out| self.put_operation(operation, sequence, Some(id), out))
                .map_err(failed)?;
            from.get_or_insert(appended.at.lsn());
            ops.push(Self::op(operation, sequence, appended.at, appended.size));
        }
        let commit = self.append(|out| encode_commit(id, out))?;
        for operation in operations {
            if let Operation::Add { message, .. } = operation {
                self.saw(commit.end, &message.id);
            }
        }
        let from = from.unwrap_or(commit.at.lsn());
        Ok(self.pend(commit.end, Op::Transaction { operations: ops, by: commit.at.file, from }))
    }

    fn together(&mut self, operations: &[Operation]) -> Result<Lsn, StorageError> {
        if operations.is_empty() {
            return Ok(self.appended_end);
        }
        let sequences = self.number(operations)?;
        let places = self
            .appender
            .lock()
            .append_together(operations.len(), |n, out| {
                if let (Some(operation), Some(&sequence)) = (operations.get(n), sequences.get(n)) {
                    self.put_operation(operation, sequence, None, out);
                }
            })
            .map_err(failed)?;
        let mut end = self.appended_end;
        for ((operation, &sequence), place) in operations.iter().zip(&sequences).zip(&places) {
            if let Operation::Add { message, .. } = operation {
                self.saw(place.end, &message.id);
            }
            end = self.pend(place.end, Self::op(operation, sequence, place.at, place.size));
        }
        Ok(end)
    }

    fn update(
        &mut self,
        at: DestinationKey,
        sequence: u64,
        message: &Message,
        prioritised: bool,
    ) -> Result<Lsn, StorageError> {
        Self::too_large(message)?;
        let header = AddHeader {
            transaction: None,
            destination: &message.destination,
            message_key: MessageKey::Id(&message.id),
            priority: message.priority.into(),
            priority_supported: prioritised,
        };
        let hint = encoded_len_estimate(message);
        let appended = self.append(|out| {
            encode_update(&header, hint, |out| encode_message(message, sequence.cast_signed(), out), out);
        })?;
        let slot = slot_of(message, prioritised, appended.at, appended.size);
        Ok(self.pend(appended.end, Op::Update { destination: at, sequence, slot }))
    }

    fn subscribe(
        &mut self,
        topic: DestinationKey,
        info: &SubscriptionInfo,
        retroactive: bool,
    ) -> Result<Lsn, StorageError> {
        let destination = self.name_of(topic);
        let key = SubscriptionKey { client_id: info.client_id.clone(), name: info.subscription_name.clone() };
        let mut stored = BytesMut::new();
        encode_subscription_info(info, &mut stored);
        let appended = self.append(|out| {
            encode_subscription(&destination, &key.to_string(), retroactive, Some(&stored), out)
        })?;
        let op =
            Op::Subscribe { destination: topic, info: Box::new(info.clone()), retroactive, at: appended.at };
        Ok(self.pend(appended.end, op))
    }

    fn unsubscribe(
        &mut self,
        topic: DestinationKey,
        subscription: &SubscriptionKey,
    ) -> Result<Lsn, StorageError> {
        let destination = self.name_of(topic);
        let appended = self
            .append(|out| encode_subscription(&destination, &subscription.to_string(), false, None, out))?;
        let op =
            Op::Unsubscribe { destination: topic, subscription: subscription.clone(), by: appended.at.file };
        Ok(self.pend(appended.end, op))
    }

    fn remove_destination(&mut self, destination: DestinationKey) -> Result<Lsn, StorageError> {
        let name = self.name_of(destination);
        let appended = self.append(|out| encode_remove_destination(&name, out))?;
        Ok(self.pend(appended.end, Op::RemoveDestination { destination, by: appended.at.file }))
    }

    fn next(&mut self, at: DestinationKey, tier: Tier, from: u64) -> Result<Option<Entry>, StorageError> {
        self.state.next(at, tier, from).map_err(|e| StorageError::Failed(e.to_string()))
    }

    fn next_pending(
        &mut self,
        topic: DestinationKey,
        subscription: &SubscriptionKey,
        tier: Tier,
        from: u64,
    ) -> Result<Option<Entry>, StorageError> {
        self.state
            .next_pending(topic, subscription, tier, from)
            .map_err(|e| StorageError::Failed(e.to_string()))
    }

    fn entry(&mut self, at: DestinationKey, sequence: u64) -> Result<Option<Entry>, StorageError> {
        let slot = self.state.slot(at, sequence).map_err(|e| StorageError::Failed(e.to_string()))?;
        Ok(slot.filter(|slot| !slot.is_held()).map(|slot| slot.entry(sequence)))
    }

    fn count(&self, at: DestinationKey) -> u64 {
        self.state.get(at).map_or(0, |d| d.count)
    }

    fn pending_count(&self, topic: DestinationKey, subscription: &SubscriptionKey) -> u64 {
        self.state.get(topic).and_then(|d| d.subscriptions.get(subscription)).map_or(0, |sub| sub.pending)
    }

    fn destinations(&self) -> Vec<(DestinationKey, Destination, Vec<SubscriptionInfo>)> {
        self.state
            .destinations()
            .filter(|(_, d)| d.named || d.count > 0 || !d.subscriptions.is_empty())
            .map(|(key, d)| {
                (key, d.name.clone(), d.subscriptions.values().map(|sub| sub.info.clone()).collect())
            })
            .collect()
    }

    fn last_sequence_of(&self, producer: &ProducerId) -> Option<i64> {
        self.audit.last_of(producer)
    }

    fn appended_end(&self) -> Lsn {
        self.appended_end
    }

    fn committed(&self) -> Lsn {
        self.commit
    }

    fn is_congested(&self) -> bool {
        self.appender.is_congested() || self.appender.lock().unflushed_bytes() > UNCOMMITTED_BYTES_MAX
    }
}
