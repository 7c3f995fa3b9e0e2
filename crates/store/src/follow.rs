//! A store that follows a primary: the journal grows by what the primary sends, the index by what it has committed.

use std::sync::Arc;

use kahawai_env::{Entropy, Files};
use kahawai_journal::{
    BatchView, EpochError, Journal, JournalReader, NewEpoch, Preparer, ReadError, Records, Writer,
};
use kahawai_message::TransactionId;
use kahawai_message::storage::StorageError;
use kahawai_types::{Epoch, Lsn};

use crate::append::{RESIDENT_BYTES_MAX, Store, bytes_between};
use crate::checkpoint::{Checkpoint, Header, IndexStore};
use crate::collect::Early;
use crate::damage;
use crate::identity::Identity;
use crate::open::{Base, Following, Loaded, OpenError, OpenOptions, Report, Rest};
use crate::replay::{ReplayError, Replayer};
use crate::state::{ChunkError, State};

/// An open follower with the journal's working parts.
#[derive(Debug)]
pub struct OpenedFollower {
    /// The index, and what is not in it yet.
    pub follower: Follower,
    /// Copies what the primary sends ([`Writer::copy`]), and writes itself after a promotion.
    pub writer: Writer,
    /// For the background thread that makes the next file.
    pub preparer: Preparer,
    /// Who we are.
    pub identity: Identity,
    /// What was found. No epoch began: its `epoch` is the newest in the journal.
    pub report: Report,
}

/// A follower that has become the primary.
#[derive(Debug)]
pub struct Promoted {
    /// For the broker. See [`Store::settled_from`].
    pub store: Store,
    /// The end of the epoch's marker: nothing of this epoch is committed before it is.
    pub marker_end: Lsn,
    /// Transactions that had no outcome and are rolled back.
    pub rolled_back: Vec<TransactionId>,
}

/// Why a follower has not become the primary. Its index is ahead of the commit position: it must be closed without another
/// checkpoint, and opened again.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// The rest of the journal.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The marker.
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// The rollbacks.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Journal and index of a replica. Its index never holds anything that is not committed.
#[derive(Debug)]
pub struct Follower {
    files: Arc<dyn Files>,
    state: State,
    journal: Journal,
    reader: JournalReader,
    index: Arc<IndexStore>,
    replayer: Replayer,
    rest: Rest,
    /// A batch of which some records are applied.
    begun: Option<(BatchView, Records)>,
    commit: Lsn,
    checkpointed: Lsn,
    early: Early,
}

impl Follower {
    /// Opens the store of a data directory, whose lock the caller holds, without appending anything. The index comes to the
    /// last position that is known to be committed, by its own checkpoint, by the stamps in the journal, or by
    /// `known_commit`: that is a position of *this* journal, not what a primary says before the journals were matched.
    ///
    /// # Errors
    /// See [`OpenError`]; [`OpenError::ForeignTail`] if ActiveMQ wrote last, unless a member of a cluster has nothing but files
    /// of ActiveMQ's, which it was given.
    pub fn open(
        files: &Arc<dyn Files>,
        entropy: &dyn Entropy,
        options: &OpenOptions,
        known_commit: Lsn,
    ) -> Result<OpenedFollower, OpenError> {
        let identity = Identity::open_as(files, entropy, &options.node_id)?;
        let following = Following { commit: known_commit, is_member: identity.has_joined() };
        let Base { journal, recovery, index, loaded, header, rebuilt } =
            Base::open(files, options, Some(following))?;
        let Loaded { mut state, mut replayer, rest, how, lost } = loaded;
        replayer.check_collection();
        let existing: Vec<u32> = journal.files().iter().map(|file| file.id).collect();
        for &file in &existing {
            state.files.touch(file);
        }
        let records = replayer.records;
        let epoch: Epoch = recovery.last_epoch;
        let mut follower = Self {
            files: Arc::clone(files),
            state,
            reader: journal.reader(),
            journal,
            index,
            replayer,
            commit: known_commit.max(recovery.commit_hint).max(rest.applied),
            rest,
            begun: None,
            checkpointed: header.map_or(Lsn::ZERO, |header| header.replay_from),
            early: Early::default(),
        };
        follower.early.note(std::mem::take(&mut follower.replayer.collected));
        if rebuilt {
            let checkpoint = follower.begin_checkpoint(false);
            let header = checkpoint.header;
            follower.index.write(checkpoint)?;
            follower.finish_checkpoint(header);
        }
        let retired = follower.to_retire();
        let there = retired.iter().copied().filter(|file| existing.contains(file));
        follower.journal.retire(there)?;
        for file in retired {
            follower.state.files.forget(file);
            follower.retired(file);
        }
        let gone = || OpenError::Unsuitable {
            path: files.describe(""),
            what: "open already",
            advice: "please report this",
        };
        let writer = follower.journal.take_writer().ok_or_else(gone)?;
        let preparer = follower.journal.take_preparer().ok_or_else(gone)?;
        let report = Report { recovery, index: how, records, rolled_back: Vec::new(), lost, epoch };
        Ok(OpenedFollower { follower, writer, preparer, identity, report })
    }

    /// Brings the index towards `commit`, as far as the journal is durable here, by at most `records_max` records; `true` =
    /// there is more. `commit` is a position of this journal.
    ///
    /// # Errors
    /// The journal or the index is damaged, or they disagree ([`ReplayError::Referenced`]): the store must be closed, and no
    /// checkpoint written. What damage there is now, the next start does not take for the torn tail of a crash.
    pub fn apply(&mut self, commit: Lsn, records_max: usize) -> Result<bool, ReplayError> {
        self.commit = self.commit.max(commit);
        self.advance(self.commit, records_max)
    }

    fn advance(&mut self, to: Lsn, records_max: usize) -> Result<bool, ReplayError> {
        let advanced = self.advance_records(to, records_max);
        if let Err(ReplayError::Read(ReadError::Damaged { .. })) = advanced {
            damage::note(&self.files, self.reader.durable_end());
        }
        advanced
    }

    fn advance_records(&mut self, to: Lsn, records_max: usize) -> Result<bool, ReplayError> {
        let mut left = records_max;
        loop {
            if let Some((batch, records)) = &mut self.begun {
                let ours = batch.stamp.is_some();
                for record in records.by_ref() {
                    let end = record.end();
                    self.replayer.record(&mut self.state, record, ours)?;
                    self.rest.applied = self.rest.applied.max(end);
                    left = left.saturating_sub(1);
                    if left == 0 {
                        break;
                    }
                }
                self.early.note(self.replayer.collected.drain(..));
                if self.rest.applied < batch.end() {
                    return Ok(true);
                }
                self.begun = None;
            }
            let next = match self.rest.next.take() {
                Some(batch) => Some(batch),
                None => self.rest.batches.next().transpose()?,
            };
            let Some(batch) = next else { return Ok(false) };
            // Also what lies in a file that nothing is expected from any more would be applied only once it is committed.
            if batch.end() > to {
                self.rest.next = Some(batch);
                return Ok(false);
            }
            if left == 0 {
                self.rest.next = Some(batch);
                return Ok(true);
            }
            if self.replayer.begin(&mut self.state, &batch)? {
                let records = batch.records();
                self.begun = Some((batch, records));
            } else {
                self.rest.applied = self.rest.applied.max(batch.end());
            }
        }
    }

    /// The index reflects everything below.
    pub fn applied(&self) -> Lsn {
        self.rest.applied
    }

    /// The highest commit position that is known here.
    pub fn committed(&self) -> Lsn {
        self.commit
    }

    /// See [`State::digest`]. Equal on nodes whose applied position is equal.
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

    /// Where checkpoints are written.
    pub fn index(&self) -> Arc<IndexStore> {
        Arc::clone(&self.index)
    }

    /// As [`Store::begin_checkpoint`].
    pub fn begin_checkpoint(&mut self, clean: bool) -> Checkpoint {
        let applied = self.rest.applied;
        // Steps of a transaction without an outcome must be read again.
        let replay_from = self.replayer.open_from().map_or(applied, |from| from.min(applied));
        Checkpoint::of(&mut self.state, applied, replay_from, clean)
    }

    /// As [`Store::finish_checkpoint`].
    pub fn finish_checkpoint(&mut self, header: Header) {
        self.checkpointed = self.checkpointed.max(header.replay_from.min(header.applied));
        self.early.checkpointed(header.applied);
        self.state.evict(RESIDENT_BYTES_MAX);
    }

    /// Bytes of journal behind the last checkpoint: what a restart would replay, about.
    pub fn behind_checkpoint_bytes(&self) -> u64 {
        bytes_between(self.checkpointed, self.rest.applied)
    }

    /// Data files whose deletion is committed and behind the last checkpoint, to be deleted with [`Journal::retire`] outside
    /// of any lock. Then [`Follower::retired`] is told.
    pub fn to_retire(&self) -> Vec<u32> {
        self.state.collected.iter().copied().filter(|&file| !self.early.holds(file)).collect()
    }

    /// A data file is deleted, durably.
    pub fn retired(&mut self, file: u32) {
        self.state.collected.remove(&file);
    }

    /// Becomes the primary of an epoch: brings the index, in memory, to the durable end of the journal, and appends the epoch's
    /// marker and the rollbacks of transactions that nobody will end any more. The writer that came with this follower has
    /// copied its last batch, and writes from here on.
    pub fn promote(mut self, new: NewEpoch) -> Result<Promoted, PromoteError> {
        let end = self.reader.durable_end();
        while self.advance(end, usize::MAX)? {}
        let marker_end = self.journal.begin_epoch(new)?.end;
        // No reign has given more numbers than its journal has bytes.
        self.state.number_from(marker_end.0);
        let abandoned = self.replayer.finish();
        let positions = (self.commit.min(end), end, marker_end);
        let mut store =
            Store::promoted(self.state, self.journal, self.index, positions, self.checkpointed, self.early);
        for (id, files) in &abandoned {
            store.append_rollback(id, files)?;
        }
        let rolled_back = abandoned.into_iter().map(|(id, _)| id).collect();
        Ok(Promoted { store, marker_end, rolled_back })
    }
}
