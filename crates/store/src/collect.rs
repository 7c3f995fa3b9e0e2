//! Giving space back: which data files may go, and moving the last messages out of files that hold little else.

use std::collections::BTreeMap;

use kahawai_kahadb::command::{AddHeader, Command, MessageKey, decode};
use kahawai_message::MessageId;
use kahawai_message::storage::{DestinationKey, Entry, Storage, StorageError};
use kahawai_message::stored::read_head;
use kahawai_types::{Location, Lsn};

use crate::append::Store;
use crate::files::Reason;

/// A file with at most this share of live bytes is emptied by moving what is left (one in…).
const SPARSE_SHARE: u64 = 16;
/// So many files may lie around before moving begins: a small store is left alone.
const FILES_BEFORE_MOVING: usize = 4;
/// At most so many messages are moved under one lock.
pub const MOVES_PER_STEP: usize = 256;

/// A message that may have to move.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Where its record is.
    pub at: Location,
    /// Size of that record.
    pub size: u32,
}

/// Data files whose deletion is committed while no checkpoint knows it. A restart would replay from before that decision, and
/// a beginning of the journal without them is not what the decision promised: they stay until a checkpoint is behind it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Early(BTreeMap<u32, Lsn>);

impl Early {
    /// Notes files, each with the end of the record that gives it up.
    pub(crate) fn note(&mut self, collected: impl IntoIterator<Item = (Lsn, u32)>) {
        self.0.extend(collected.into_iter().map(|(end, file)| (file, end)));
    }

    /// A checkpoint of everything below `applied` is durable.
    pub(crate) fn checkpointed(&mut self, applied: Lsn) {
        self.0.retain(|_, end| *end > applied);
    }

    /// Must the file stay for now?
    pub(crate) fn holds(&self, file: u32) -> bool {
        self.0.contains_key(&file)
    }
}

impl Store {
    /// Why each data file stays; without a reason = it may go.
    pub fn why_retained(&self) -> BTreeMap<u32, Vec<Reason>> {
        let keep_from = self.checkpointed.file().min(self.journal.files().last().map_or(0, |f| f.id));
        self.state.files.reasons(keep_from, self.state.first_prepared_file())
    }

    /// Appends the decision to delete every data file that may go. They are deleted when it is committed
    /// ([`Store::to_retire`]).
    pub fn collect(&mut self) -> Result<Vec<u32>, StorageError> {
        self.renew_subscriptions()?;
        let files: Vec<u32> =
            self.why_retained().into_iter().filter(|(_, why)| why.is_empty()).map(|(file, _)| file).collect();
        if !files.is_empty() {
            self.append_collection(files.clone())?;
        }
        Ok(files)
    }

    /// The oldest file that is kept only by few live messages, if moving them is worth the while.
    pub fn sparse_file(&self) -> Option<u32> {
        self.sparser_file(SPARSE_SHARE)
    }

    /// The same with another share of live bytes, one in so many.
    pub fn sparser_file(&self, share: u64) -> Option<u32> {
        let files = self.journal.files();
        if files.len() < FILES_BEFORE_MOVING {
            return None;
        }
        let keep_from = self.checkpointed.file();
        files
            .iter()
            .take_while(|f| f.id < keep_from)
            .find(|f| {
                self.state
                    .files
                    .get(f.id)
                    .is_some_and(|use_| use_.live > 0 && use_.live_bytes.saturating_mul(share) <= f.bytes)
            })
            .map(|f| f.id)
    }

    /// Writes again the records of durable subscriptions that hold the oldest data file and have nothing pending, so that an
    /// idle subscription does not keep its first file for ever.
    fn renew_subscriptions(&mut self) -> Result<(), StorageError> {
        let file = self.journal.files().first().map_or(0, |f| f.id);
        let held = self.state.files.get(file).is_some_and(|use_| use_.subscriptions > 0 && use_.live == 0);
        if !held || file >= self.checkpointed.file() {
            return Ok(());
        }
        // One that is being removed would come back; the next round finds it gone.
        let (_, unsettled) = self.unsettled();
        let mut old = Vec::new();
        for (key, d) in self.state.destinations().filter(|(key, _)| !unsettled.contains(key)) {
            let idle = |sub: &&crate::state::Subscription| sub.pending == 0 && sub.files().any(|f| f == file);
            for sub in d.subscriptions.values().filter(idle) {
                old.push((key, sub.info.clone()));
            }
        }
        for (key, info) in old {
            // Not retroactive: what it has pending is settled (defect D9 of the format).
            self.subscribe(key, &info, false)?;
        }
        Ok(())
    }

    /// Moves those of `candidates` that are still live: appends each message again as an update with its sequence.
    /// `read` = payloads of the candidates' records, read outside of the lock. Returns how many moved.
    pub fn relocate(&mut self, candidates: &[(Candidate, bytes::Bytes)]) -> Result<usize, StorageError> {
        let mut moved = 0;
        let (messages, whole) = self.unsettled();
        for (candidate, payload) in candidates {
            let Ok(Command::AddMessage(add) | Command::UpdateMessage(add)) = decode(payload.clone()) else {
                continue;
            };
            let Ok(head) = read_head(&add.message) else { continue };
            let key = self.state.key(&add.destination);
            let Some(id) = MessageId::from_key(&add.message_key) else { continue };
            let Some(entry) = self.find(key, head.broker_sequence, candidate.at)? else { continue };
            if whole.contains(&key) || messages.contains(&(key, entry.sequence)) {
                continue; // the next round finds it settled
            }
            let mut stored = add.message.to_vec();
            let place = head.broker_sequence_offset;
            if let Some(bytes) = stored.get_mut(place..place + 8) {
                bytes.copy_from_slice(&entry.sequence.to_be_bytes());
            }
            let header = AddHeader {
                transaction: None,
                destination: &add.destination,
                message_key: MessageKey::Text(&add.message_key),
                priority: add.priority,
                priority_supported: add.priority_supported,
            };
            self.append_move(key, &entry, &id, &header, &stored)?;
            moved += 1;
        }
        Ok(moved)
    }

    /// The live message whose record is at `at`: by the sequence it says it has, else by looking through the destination
    /// (records of ActiveMQ's say something else there).
    fn find(
        &mut self,
        key: DestinationKey,
        stored: i64,
        at: Location,
    ) -> Result<Option<Entry>, StorageError> {
        let fail = |e: crate::state::ChunkError| StorageError::Failed(e.to_string());
        if let Ok(sequence) = u64::try_from(stored)
            && let Some(slot) = self.state.slot(key, sequence).map_err(fail)?
            && slot.location() == at
        {
            return Ok(Some(slot.entry(sequence)));
        }
        let mut found = None;
        self.state
            .each(key, |sequence, slot| {
                if slot.location() == at {
                    found = Some(slot.entry(sequence));
                }
            })
            .map_err(fail)?;
        Ok(found)
    }
}

/// Records of a data file that may hold live messages, to be offered to [`Store::relocate`] in steps of
/// [`MOVES_PER_STEP`]. Reads the whole file; holds no lock.
pub fn candidates(
    reader: &kahawai_journal::JournalReader,
    file: u32,
) -> Result<Vec<(Candidate, bytes::Bytes)>, kahawai_journal::ReadError> {
    let mut found = Vec::new();
    for batch in reader.batches(Location::new(file, 0).lsn()) {
        let batch = batch?;
        if batch.lsn.file() != file {
            break;
        }
        for record in batch.records() {
            if matches!(record.payload.first(), Some(1 | 10)) {
                found.push((Candidate { at: record.at, size: record.size }, record.payload));
            }
        }
    }
    Ok(found)
}

/// Reads a message whose place was learnt some time ago: if it cannot be read there, it may have been moved. `find` looks where it is
/// now. `None`: it is gone.
pub fn read_wherever<M, E>(
    entry: &Entry,
    mut read: impl FnMut(&Entry) -> Result<M, E>,
    find: impl FnOnce() -> Result<Option<Entry>, StorageError>,
) -> Result<Option<M>, E> {
    let reason = match read(entry) {
        Ok(message) => return Ok(Some(message)),
        Err(reason) => reason,
    };
    match find() {
        Ok(Some(found)) if found.location != entry.location => read(&found).map(Some),
        Ok(None) => Ok(None),
        _ => Err(reason),
    }
}

/// Is `lsn` in a file that is gone?
pub fn is_retired(store: &Store, lsn: Lsn) -> bool {
    store.state().files.get(lsn.file()).is_none()
}
