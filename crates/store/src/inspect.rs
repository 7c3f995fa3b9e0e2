//! Reading a data directory without changing it: what a broker would find there.

use std::sync::Arc;

use bytes::Bytes;
use kahawai_env::{Files, OverlayFiles};
use kahawai_journal::{Journal, JournalOptions, JournalReader, Recovery, WindowReader};
use kahawai_kahadb::command::{Command, decode};
use kahawai_message::storage::{DestinationKey, Tier};
use kahawai_message::stored::decode_message;
use kahawai_message::{Message, TransactionId};
use kahawai_types::Location;

use crate::open::{Loaded, OpenError, Rebuilt, check_kind, load_foreign};
use crate::state::{PreparedOp, State};

/// A store as it was found.
#[derive(Debug)]
pub struct Inspection {
    /// The index.
    pub state: State,
    /// Reads the records.
    pub reader: JournalReader,
    /// The journal's tail.
    pub recovery: Recovery,
    /// Where the index came from.
    pub how: Rebuilt,
    /// Transactions without an outcome, which a broker would roll back.
    pub open: Vec<TransactionId>,
}

/// Why one message of an inspected store cannot be shown.
#[derive(Debug, thiserror::Error)]
#[error("record at db-{}.log offset {}: {reason}", .at.file, .at.offset)]
pub struct RecordError {
    /// Where it lies.
    pub at: Location,
    /// What is wrong.
    pub reason: String,
}

/// Reads the journal, and ActiveMQ's index if there is one, into memory. Writes nothing. Our own index is not looked at: the
/// journal is the truth.
///
/// # Errors
/// As [`crate::open::open`]; a directory that cannot be opened cannot be inspected, and the error says why.
pub fn inspect(files: &Arc<dyn Files>) -> Result<Inspection, OpenError> {
    check_kind(files)?;
    let known = crate::open::known_positions(files);
    // A recovery like any other, whose changes stay in memory.
    let files: &Arc<dyn Files> = &(Arc::new(OverlayFiles::new(Arc::clone(files))) as Arc<dyn Files>);
    let options = JournalOptions { preallocate: false, ..JournalOptions::default() };
    let (journal, recovery) = Journal::open(Arc::clone(files), options, known)?;
    let reader = journal.reader();
    let reason = "an inspection reads the journal itself".to_owned();
    let Loaded { state, how, replayer, .. } =
        load_foreign(files, &reader, &recovery, None, false, reason, None, None)?;
    Ok(Inspection {
        state,
        reader,
        recovery,
        how,
        open: replayer.finish().into_iter().map(|(id, _)| id).collect(),
    })
}

/// Reads the message of a record.
pub fn read_message(reader: &JournalReader, at: Location, size: u32) -> Result<Message, RecordError> {
    message_in(&mut reader.window(), at, size)
}

fn message_in(window: &mut WindowReader, at: Location, size: u32) -> Result<Message, RecordError> {
    let wrong = |reason: String| RecordError { at, reason };
    // A copy: one message must not keep a whole window in memory.
    let read = window.read(at, size).map(|payload| Bytes::copy_from_slice(&payload));
    match decode(read.map_err(|e| wrong(e.to_string()))?).map_err(|e| wrong(e.to_string()))? {
        Command::AddMessage(add) | Command::UpdateMessage(add) => {
            decode_message(add.message).map_err(|e| wrong(e.to_string()))
        }
        other => Err(wrong(format!("it is a {} record, not a message", other.name()))),
    }
}

/// An acknowledgement in a prepared transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldAck {
    /// Where the message is.
    pub destination: kahawai_message::Destination,
    /// Its producer key.
    pub message_key: String,
    /// `clientId:name` for a durable subscription.
    pub subscription_key: Option<String>,
    /// OpenWire's acknowledgement type.
    pub ack_type: u8,
}

/// A transaction in doubt.
#[derive(Clone, Debug, PartialEq)]
pub struct InDoubt {
    /// Its id.
    pub id: TransactionId,
    /// Messages that it would add.
    pub adds: Vec<Message>,
    /// Messages that it would consume.
    pub acks: Vec<HeldAck>,
}

impl Inspection {
    /// The messages of a destination in delivery order, those held by prepared transactions left out.
    pub fn messages(&mut self, key: DestinationKey) -> Result<Vec<(u64, Message)>, RecordError> {
        let mut places: [Vec<(u64, Location, u32)>; 3] = Default::default();
        let chunk =
            |e: crate::state::ChunkError| RecordError { at: Location::default(), reason: e.to_string() };
        self.state
            .each(key, |sequence, slot| {
                if !slot.is_held()
                    && let Some(tier) = places.get_mut(slot.tier() as usize)
                {
                    tier.push((sequence, slot.location(), slot.size()));
                }
            })
            .map_err(chunk)?;
        let mut window = self.reader.window();
        let mut found = Vec::new();
        for tier in Tier::ALL {
            for &(sequence, at, size) in places.get(tier as usize).into_iter().flatten() {
                found.push((sequence, message_in(&mut window, at, size)?));
            }
        }
        Ok(found)
    }

    /// The transactions in doubt.
    pub fn in_doubt(&self) -> Result<Vec<InDoubt>, RecordError> {
        let mut window = self.reader.window();
        let mut found = Vec::new();
        let mut all: Vec<_> = self.state.prepared.iter().collect();
        all.sort_by_key(|(_, prepared)| prepared.at);
        for (id, prepared) in all {
            let mut transaction = InDoubt { id: id.clone(), adds: Vec::new(), acks: Vec::new() };
            for op in &prepared.operations {
                match op {
                    PreparedOp::Add { at, size, .. } => {
                        transaction.adds.push(message_in(&mut window, *at, *size)?)
                    }
                    PreparedOp::Remove { at, size, .. } => {
                        let wrong = |reason: String| RecordError { at: *at, reason };
                        let payload = window.read(*at, *size).map_err(|e| wrong(e.to_string()))?;
                        if let Command::RemoveMessage(remove) =
                            decode(payload).map_err(|e| wrong(e.to_string()))?
                        {
                            let ack = remove.ack.clone().map(kahawai_message::stored::decode_ack);
                            transaction.acks.push(HeldAck {
                                ack_type: ack.and_then(Result::ok).flatten().map_or(0, |ack| ack.ack_type),
                                destination: remove.destination,
                                message_key: remove.message_key.to_string(),
                                subscription_key: remove.subscription_key.map(|key| key.to_string()),
                            });
                        }
                    }
                }
            }
            found.push(transaction);
        }
        Ok(found)
    }
}

impl Inspection {
    /// Gives a prepared transaction its outcome, in memory: what a broker does that knows the decision.
    pub fn resolve(&mut self, id: &TransactionId, commit: bool) -> Result<(), RecordError> {
        let Some(prepared) = self.state.prepared.remove(id) else { return Ok(()) };
        let wrong = |e: crate::state::ChunkError| RecordError { at: prepared.at, reason: e.to_string() };
        for op in &prepared.operations {
            match op {
                PreparedOp::Add { destination, at, size } if commit => {
                    let message = read_message(&self.reader, *at, *size)?;
                    let sequence = self.state.get(*destination).map_or(0, |d| d.next_sequence);
                    let slot = crate::chunk::Slot::new(*at, *size, Tier::Default, message.expiration_ms, 0);
                    let op = crate::state::Op::Add { destination: *destination, sequence, slot };
                    self.state.apply(op, &mut Vec::new()).map_err(wrong)?;
                }
                PreparedOp::Remove { destination, subscription, sequence: Some(sequence), at, .. } => {
                    self.state.hold(*destination, subscription.as_ref(), *sequence, false).map_err(wrong)?;
                    if commit {
                        let (destination, sequence, by) = (*destination, *sequence, at.file);
                        let op = match subscription.clone() {
                            None => crate::state::Op::Remove { destination, sequence, by },
                            Some(subscription) => {
                                crate::state::Op::Acknowledge { destination, subscription, sequence, by }
                            }
                        };
                        self.state.apply(op, &mut Vec::new()).map_err(wrong)?;
                    }
                }
                PreparedOp::Add { .. } | PreparedOp::Remove { .. } => {}
            }
        }
        Ok(())
    }

    /// Ids of the messages that a durable subscription has not acknowledged, in delivery order, each with whether it would be
    /// delivered: those that a prepared transaction acknowledges would not.
    pub fn pending(
        &mut self,
        topic: DestinationKey,
        subscription: &kahawai_message::storage::SubscriptionKey,
    ) -> Result<Vec<(String, bool)>, RecordError> {
        let Some(sub) = self.state.get(topic).and_then(|d| d.subscriptions.get(subscription)).cloned() else {
            return Ok(Vec::new());
        };
        let messages = self.messages(topic)?;
        let pending = messages.iter().filter(|(sequence, _)| sub.has_pending(*sequence));
        Ok(pending.map(|(sequence, m)| (m.id.to_string(), !sub.held.contains(sequence))).collect())
    }
}
