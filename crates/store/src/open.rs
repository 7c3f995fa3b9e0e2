//! Opening a data directory, whoever wrote it and however it was left.

use std::io;
use std::sync::Arc;

use kahawai_env::{Entropy, Files};
use kahawai_journal::{
    BatchView, Batches, Journal, JournalOptions, JournalReader, KnownPositions, NewEpoch, Preparer, Recovery,
    RetireError, Writer,
};
use kahawai_message::TransactionId;
use kahawai_message::storage::StorageError;
use kahawai_types::{Epoch, Location, Lsn, NodeId};
use tracing::{info, warn};

use crate::append::Store;
use crate::checkpoint::{Header, IndexError, IndexStore};
use crate::identity::{DEFAULT_NODE_ID, Identity, IdentityError};
use crate::import::{IMPORTED, ImportError, Missing, import, set_aside};
use crate::replay::{Collected, Ids, ReplayError, Replayer, collected_files};
use crate::snapshot::{self, Snapshot, SnapshotError};
use crate::state::{ChunkSource, State};

/// Why a data directory cannot be opened. Nothing in it was changed, except that a torn tail may have been cut.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] kahawai_journal::OpenError),
    /// Its contents.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// ActiveMQ's index names what is not there.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Our own index, and making a new one did not help.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The node's identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The new epoch could not begin.
    #[error(transparent)]
    Epoch(#[from] kahawai_journal::EpochError),
    /// What follows from the recovery could not be appended.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// ActiveMQ wrote last: nobody in a cluster knows what it did.
    #[error(
        "{path}: ActiveMQ wrote the end of this journal, up to {end}; a member of a cluster copies its primary's journal and \
         nothing else. To make this journal the truth of a new cluster, run `kahawai store rebuild-index` on it, or start it once \
         as a single node; to throw it away, empty the directory and let the node synchronize"
    )]
    ForeignTail {
        /// Which directory.
        path: String,
        /// Where the journal ends.
        end: Lsn,
    },
    /// A node of a cluster cannot number ActiveMQ's messages itself.
    #[error(
        "{path}: the index has to be made again ({reason}), and what was kept of ActiveMQ's (imported/snapshot) cannot be used; \
         {advice}"
    )]
    Unnumbered {
        /// Which directory.
        path: String,
        /// Why.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// A data file with live messages is gone.
    #[error(
        "{file} is missing, and {messages} live messages with it; put it back from a backup, or let `kahawai store \
         rebuild-index --accept-loss` go on without them"
    )]
    MissingFile {
        /// Which.
        file: String,
        /// How many messages the index has in it.
        messages: u64,
    },
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// Which directory.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What was kept of an import.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A data file that is not needed any more could not be deleted.
    #[error(transparent)]
    Retire(#[from] RetireError),
    /// Not a store of ours.
    #[error("{path} is {what}; {advice}")]
    Unsuitable {
        /// Which directory.
        path: String,
        /// What it is.
        what: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
}

/// How to open.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The journal's part.
    pub journal: JournalOptions,
    /// This node's name, for a directory that has none yet.
    pub node_id: NodeId,
    /// Messages that the index names and the journal lacks are given up, and listed.
    pub accept_loss: bool,
    /// Throw our own index away first.
    pub rebuild: bool,
    /// A rule that a test breaks to see that it would notice: a checkpoint is used although files behind it are gone.
    #[doc(hidden)]
    pub ignore_holes: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            journal: JournalOptions::default(),
            node_id: NodeId(DEFAULT_NODE_ID.into()),
            accept_loss: false,
            rebuild: false,
            ignore_holes: false,
        }
    }
}

/// Where the index came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rebuilt {
    /// From the last checkpoint and the journal behind it.
    Checkpoint,
    /// From ActiveMQ's index and the journal behind it.
    Imported {
        /// Live messages in ActiveMQ's index.
        messages: u64,
    },
    /// From what was kept of an earlier import, and the journal behind it.
    Snapshot {
        /// Why.
        reason: String,
    },
    /// From the journal alone, and why.
    Journal {
        /// Why.
        reason: String,
    },
    /// There was nothing.
    Empty,
}

/// What was found and done at opening.
#[derive(Clone, Debug)]
pub struct Report {
    /// The journal's part.
    pub recovery: Recovery,
    /// Where the index came from.
    pub index: Rebuilt,
    /// Records replayed.
    pub records: u64,
    /// Transactions that had no outcome and are rolled back.
    pub rolled_back: Vec<TransactionId>,
    /// Messages given up by the operator's leave.
    pub lost: Vec<String>,
    /// The epoch that began.
    pub epoch: Epoch,
}

/// An open store with the journal's working parts, which the node puts on their threads.
#[derive(Debug)]
pub struct Opened {
    /// Commands and index.
    pub store: Store,
    /// For the journal thread.
    pub writer: Writer,
    /// For the background thread that makes the next file.
    pub preparer: Preparer,
    /// Who we are.
    pub identity: Identity,
    /// What was found.
    pub report: Report,
}

/// An index made from a directory, how, and what is left to be applied.
pub(crate) struct Loaded {
    pub(crate) state: State,
    pub(crate) replayer: Replayer,
    pub(crate) rest: Rest,
    pub(crate) how: Rebuilt,
    pub(crate) lost: Vec<String>,
}

/// The journal behind the index.
#[derive(Debug)]
pub(crate) struct Rest {
    pub(crate) batches: Batches,
    /// Read, not applied.
    pub(crate) next: Option<BatchView>,
    /// Everything below is in the index.
    pub(crate) applied: Lsn,
}

impl Loaded {
    /// Records of ActiveMQ's can be replayed only with the ids of all messages before them, which a checkpoint lacks.
    fn is_before_foreign(&self) -> bool {
        self.rest.next.as_ref().is_some_and(|batch| batch.stamp.is_none())
    }
}

/// Replays from `from`, but no batch that ends behind `until`.
fn run(
    state: &mut State,
    replayer: &mut Replayer,
    reader: &JournalReader,
    from: Lsn,
    applied: Lsn,
    until: Lsn,
) -> Result<Rest, ReplayError> {
    let mut rest = Rest { batches: reader.batches(from), next: None, applied };
    while let Some(batch) = rest.batches.next().transpose()? {
        if batch.end() > until {
            rest.next = Some(batch);
            break;
        }
        replayer.batch(state, &batch)?;
        rest.applied = rest.applied.max(batch.end());
    }
    Ok(rest)
}

/// Makes the index without a checkpoint of ours: from ActiveMQ's index where there is a usable one, else from the journal.
#[allow(clippy::too_many_arguments)] // three callers, and the parts have nothing else in common
pub(crate) fn load_foreign(
    files: &Arc<dyn Files>,
    reader: &JournalReader,
    recovery: &Recovery,
    source: Option<Arc<dyn ChunkSource>>,
    accept_loss: bool,
    reason: String,
    following: Option<Following>,
    until: Option<Lsn>,
) -> Result<Loaded, OpenError> {
    let mut reason = reason;
    let gone = collected_files(reader)?;
    let until = until.unwrap_or(EVERYTHING).max(gone.commit);
    for (directory, missing) in
        [("", if accept_loss { Missing::Accept } else { Missing::Refuse }), (IMPORTED, Missing::Collected)]
    {
        if directory == IMPORTED {
            let found = load_snapshot(files, reader, recovery, source.clone(), &gone, &mut reason, until)?;
            if let Some(loaded) = found {
                return Ok(loaded);
            }
        }
        if following.is_some() {
            // Others have to come to the same.
            continue;
        }
        for mixed in [false, true] {
            let mut state = State::new(source.clone());
            state.audit.learn(gone.known.clone());
            let imported = match import(files, directory, reader, &mut state, missing) {
                Ok(None) => break,
                Ok(Some(imported)) => imported,
                Err(
                    error @ (ImportError::Missing { .. } | ImportError::Io { .. } | ImportError::Chunk(_)),
                ) => {
                    return Err(error.into());
                }
                Err(error) => {
                    warn!(%error, "ActiveMQ's index is unusable");
                    reason = error.to_string();
                    break;
                }
            };
            // What its acknowledgements cancel is not in its index. Any file of it stays while an older one does.
            for pair in recovery.files.windows(2) {
                if let [older, newer] = pair {
                    state.files.outlives(newer.id, older.id);
                }
            }
            let applied = imported.applied;
            let mut replayer = Replayer::new(reader.clone(), Some(imported.ids), mixed, applied)
                .skipping(gone.files.clone());
            let from = first_batch(recovery, imported.replay_file);
            match run(&mut state, &mut replayer, reader, from, applied, until) {
                Err(ReplayError::ForeignTail { .. }) if !mixed => continue,
                Err(error) => return Err(error.into()),
                Ok(rest) => {
                    let how = Rebuilt::Imported { messages: imported.messages };
                    return Ok(Loaded { state, replayer, rest, how, lost: imported.lost });
                }
            }
        }
    }
    for mixed in [false, true] {
        let mut state = State::new(source.clone());
        state.audit.learn(gone.known.clone());
        let mut replayer = Replayer::new(reader.clone(), Some(Ids::default()), mixed, Lsn::ZERO)
            .skipping(gone.files.clone());
        match run(&mut state, &mut replayer, reader, Lsn::ZERO, Lsn::ZERO, until) {
            Err(ReplayError::ForeignTail { .. }) if !mixed => {}
            Err(error) => return Err(error.into()),
            Ok(_) if following.is_some() && replayer.saw_foreign() => {
                let advice = match following.is_some_and(|following| following.is_member) {
                    true => {
                        "copy that file from another node of the cluster; or, only if another node has everything, empty this \
                         directory and let it synchronize"
                    }
                    false => "run `kahawai store rebuild-index` on it",
                };
                return Err(OpenError::Unnumbered { path: files.describe(""), reason, advice });
            }
            Ok(rest) => {
                let how = if replayer.records == 0 { Rebuilt::Empty } else { Rebuilt::Journal { reason } };
                return Ok(Loaded { state, replayer, rest, how, lost: Vec::new() });
            }
        }
    }
    Err(OpenError::Unsuitable {
        path: files.describe(""),
        what: "a journal that cannot be replayed either way",
        advice: "please report this",
    })
}

/// Makes the index from what was kept of an import, if that is of this journal and ActiveMQ has not written since.
fn load_snapshot(
    files: &Arc<dyn Files>,
    reader: &JournalReader,
    recovery: &Recovery,
    source: Option<Arc<dyn ChunkSource>>,
    gone: &Collected,
    reason: &mut String,
    until: Lsn,
) -> Result<Option<Loaded>, OpenError> {
    let mut state = State::new(source);
    let there = recovery.files.iter().map(|file| file.id).filter(|id| !gone.files.contains(id)).collect();
    let snapshot::Loaded { snapshot, known } = match snapshot::load(files, &there, &mut state) {
        Ok(Some(loaded)) => loaded,
        Ok(None) => return Ok(None),
        Err(error @ (SnapshotError::Io { .. } | SnapshotError::Chunk(_))) => return Err(error.into()),
        Err(error) => {
            warn!(%error, "what was kept of ActiveMQ's index is unusable");
            *reason = error.to_string();
            return Ok(None);
        }
    };
    // What was appended behind it began a file, and says what came before.
    let next = snapshot.applied.file().saturating_add(1);
    let has_next = recovery.files.iter().any(|file| file.id == next);
    let chain = if has_next {
        reader.chain_at(Location::new(next, 0).lsn()).map_err(ReplayError::from)?
    } else {
        None
    };
    let is_other = chain.zip(snapshot.chain).is_some_and(|(found, kept)| found.0 != kept);
    if is_other || snapshot.applied > recovery.end {
        "what was kept of ActiveMQ's index is of another journal".clone_into(reason);
        return Ok(None);
    }
    // Each of them is all that was known at its time.
    state.audit.learn(if gone.known_at >= snapshot.applied { gone.known.clone() } else { known });
    let mut replayer =
        Replayer::new(reader.clone(), None, false, snapshot.applied).skipping(gone.files.clone());
    let from = first_batch(recovery, snapshot.applied.file());
    match run(&mut state, &mut replayer, reader, from, snapshot.applied, until) {
        Err(error @ ReplayError::ForeignTail { .. }) => {
            *reason = error.to_string();
            Ok(None)
        }
        Err(error) => Err(error.into()),
        Ok(rest) => {
            let how = Rebuilt::Snapshot { reason: std::mem::take(reason) };
            Ok(Some(Loaded { state, replayer, rest, how, lost: Vec::new() }))
        }
    }
}

/// The start of the first file at or behind `file` that has batches.
fn first_batch(recovery: &Recovery, file: u32) -> Lsn {
    let id = recovery.files.iter().map(|f| f.id).find(|&id| id >= file);
    id.map_or(recovery.end, |id| Location::new(id, 0).lsn())
}

fn load_checkpoint(
    reader: &JournalReader,
    header: Header,
    mut state: State,
    recovery: &Recovery,
    until: Option<Lsn>,
) -> Result<Loaded, ReplayError> {
    // A position of the index lies between two records, not always between two batches: the replayer skips by record.
    let from = first_batch(recovery, header.replay_from.file());
    let mut replayer = Replayer::new(reader.clone(), None, false, header.applied);
    if until.is_some() {
        replayer.check_collection();
    }
    let until = until.unwrap_or(EVERYTHING);
    let rest = run(&mut state, &mut replayer, reader, from, header.applied, until)?;
    Ok(Loaded { state, replayer, rest, how: Rebuilt::Checkpoint, lost: Vec::new() })
}

/// Refuses a directory that lacks data files with live messages: serving it would lose them one by one, and silently.
fn check_complete(files: &Arc<dyn Files>, state: &State, recovery: &Recovery) -> Result<(), OpenError> {
    for (id, use_) in state.files.iter().filter(|(id, use_)| use_.live > 0 && !state.collected.contains(id)) {
        if !recovery.files.iter().any(|file| file.id == id) {
            let file = files.describe(&kahawai_journal::data_file_name(id));
            return Err(OpenError::MissingFile { file, messages: use_.live });
        }
    }
    Ok(())
}

/// What the index of a stopped store says had been confirmed: what `verify` and `inspect` judge a journal's tail by. Changes
/// nothing; without a readable index it knows nothing.
pub fn known_positions(files: &Arc<dyn Files>) -> KnownPositions {
    let looked = || -> Option<Header> {
        files.exists(crate::checkpoint::INDEX_FILE).ok().filter(|&there| there)?;
        let overlay: Arc<dyn Files> = Arc::new(kahawai_env::OverlayFiles::new(Arc::clone(files)));
        IndexStore::open(&overlay).ok()?.load(&mut State::new(None)).ok()?
    };
    let applied = looked().map_or(Lsn::ZERO, |header| header.applied);
    let flushed = crate::damage::flushed(files).unwrap_or_default();
    KnownPositions { commit: applied, durable: applied.max(flushed) }
}

/// Refuses directories that hold something else than one message store.
pub(crate) fn check_kind(files: &Arc<dyn Files>) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: files.describe(""), source };
    let names = files.list("").map_err(io)?;
    let has_journal = names.iter().any(|name| kahawai_journal::data_file_id(name).is_some());
    if names.iter().any(|name| name.starts_with("scheduleDB.")) {
        return Err(OpenError::Unsuitable {
            path: files.describe(""),
            what: "a scheduler's store",
            advice: "give the directory of the message store; scheduled messages are reported by `kahawai store inspect` \
                     and not served yet",
        });
    }
    if !has_journal
        && names
            .iter()
            .any(|name| name == "txStore" || name.starts_with("queue#3a") || name.starts_with("topic#3a"))
    {
        return Err(OpenError::Unsuitable {
            path: files.describe(""),
            what: "an mKahaDB root with several stores",
            advice: "it is not served yet; `kahawai store inspect` reads it, and nothing in it was changed",
        });
    }
    Ok(())
}

/// Behind every journal.
const EVERYTHING: Lsn = Lsn(u64::MAX);

/// What a follower knows of the journal that it opens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Following {
    pub(crate) commit: Lsn,
    pub(crate) is_member: bool,
}

/// Journal and index of a directory, opened and brought together; nothing is appended.
pub(crate) struct Base {
    pub(crate) journal: Journal,
    pub(crate) recovery: Recovery,
    pub(crate) index: Arc<IndexStore>,
    pub(crate) loaded: Loaded,
    /// The checkpoint that was found.
    pub(crate) header: Option<Header>,
    /// The index is not the one of that checkpoint.
    pub(crate) rebuilt: bool,
}

/// Are data files missing that a replay from this checkpoint needs? Before a primary deletes a file, its own checkpoint is in a
/// later one, but a replica may have been given other files since.
fn has_hole(recovery: &Recovery, header: Header) -> bool {
    let from = header.replay_from.file().max(1);
    recovery.files.first().is_some_and(|first| first.id > from)
        || recovery.gaps.iter().any(|&(_, last)| last >= from)
}

impl Base {
    /// With `following`, the index goes no further than what is committed, as far as is known or as the journal proves.
    pub(crate) fn open(
        files: &Arc<dyn Files>,
        options: &OpenOptions,
        following: Option<Following>,
    ) -> Result<Self, OpenError> {
        check_kind(files)?;
        let mut why = "there is no index yet".to_owned();
        let mut index = match IndexStore::open(files) {
            Ok(index) => Arc::new(index),
            Err(error) => {
                warn!(%error, "the index is damaged and is rebuilt");
                why = error.to_string();
                IndexStore::discard(files)?;
                Arc::new(IndexStore::open(files)?)
            }
        };
        let mut state = State::new(Some(Arc::clone(&index) as Arc<dyn ChunkSource>));
        let header = match index.load(&mut state) {
            Ok(header) => header,
            Err(error) => {
                warn!(%error, "the index is damaged and is rebuilt");
                why = error.to_string();
                None
            }
        };
        let applied = header.map_or(Lsn::ZERO, |header| header.applied);
        let io = |source| OpenError::Io { path: files.describe(crate::damage::FILE), source };
        let flushed = crate::damage::flushed(files).map_err(io)?;
        let known = KnownPositions { commit: applied, durable: applied.max(flushed) };
        let (journal, recovery) = Journal::open(Arc::clone(files), options.journal.clone(), known)?;
        // A member may have been given the files of ActiveMQ's that its primary began with, and nothing behind them yet.
        let kept = Snapshot::find(files).ok().flatten();
        let given = following.is_some_and(|following| following.is_member)
            && (recovery.last_epoch == Epoch(0) || kept.is_some_and(|kept| kept.applied == recovery.end));
        if following.is_some() && recovery.newest_is_foreign && !given {
            return Err(OpenError::ForeignTail { path: files.describe(""), end: recovery.end });
        }
        let until = following.map(|following| following.commit.max(recovery.commit_hint).max(applied));
        let reader = journal.reader();
        let mut loaded = None;
        if let Some(header) = header {
            let hole = following.is_some() && !options.ignore_holes && has_hole(&recovery, header);
            match load_checkpoint(&reader, header, state, &recovery, until) {
                _ if hole => "data files behind its last checkpoint are gone".clone_into(&mut why),
                Ok(found) if found.is_before_foreign() || given => {
                    "a journal of ActiveMQ's goes on behind its last checkpoint".clone_into(&mut why);
                }
                Ok(found) => {
                    if !options.accept_loss {
                        check_complete(files, &found.state, &recovery)?;
                    }
                    // An index that is to be thrown away has told what was confirmed, and which files there have to be.
                    if options.rebuild {
                        why = "it was asked for".to_owned();
                    } else {
                        loaded = Some(found);
                    }
                }
                Err(
                    error @ (ReplayError::ForeignTail { .. }
                    | ReplayError::Chunk(_)
                    | ReplayError::Referenced { .. }),
                ) => {
                    info!(%error, "the index is rebuilt");
                    why = error.to_string();
                }
                Err(error) => return Err(error.into()),
            }
        }
        let rebuilt = loaded.is_none();
        let loaded = match loaded {
            Some(loaded) => loaded,
            None => {
                // Whatever is in the old index file must not be mixed with the new state.
                drop(index);
                IndexStore::discard(files)?;
                index = Arc::new(IndexStore::open(files)?);
                let source = Some(Arc::clone(&index) as Arc<dyn ChunkSource>);
                load_foreign(files, &reader, &recovery, source, options.accept_loss, why, following, until)?
            }
        };
        crate::damage::forget(files).map_err(io)?;
        Ok(Self { journal, recovery, index, loaded, header, rebuilt })
    }
}

/// Is there anything of ActiveMQ's in the journal, and an index that was not made from a snapshot?
fn needs_snapshot(
    how: &Rebuilt,
    replayer: &Replayer,
    reader: &JournalReader,
    recovery: &Recovery,
) -> Result<bool, ReplayError> {
    match how {
        Rebuilt::Snapshot { .. } => return Ok(false),
        Rebuilt::Imported { messages } if *messages > 0 => return Ok(true),
        _ if replayer.saw_foreign() => return Ok(true),
        _ => {}
    }
    for file in &recovery.files {
        if reader.begins_foreign(file.id)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens the store of a data directory, whose `lock` the caller holds. When this returns, everything that was confirmed is in
/// the index, a torn tail is cut, and a new epoch's marker is appended (durable once the writer has written it).
///
/// # Errors
/// See [`OpenError`]; the directory can be opened again after what the error asks for.
pub fn open(
    files: &Arc<dyn Files>,
    entropy: &dyn Entropy,
    options: &OpenOptions,
) -> Result<Opened, OpenError> {
    let io = |source| OpenError::Io { path: files.describe(""), source };
    Identity::refuse_member(files)?;
    let Base { journal, recovery, index, loaded, header, rebuilt } = Base::open(files, options, None)?;
    let Loaded { state, replayer, rest, how, lost } = loaded;
    drop(rest);
    let mut identity = Identity::open(files, entropy, &options.node_id)?;
    let epoch = identity.promised_epoch.max(recovery.last_epoch).next();
    identity.promise(files, epoch)?;
    let existing: Vec<u32> = journal.files().iter().map(|f| f.id).collect();
    let checkpointed = header.map_or(Lsn::ZERO, |header| header.replay_from);
    // Where a replica's life is gone on with, its checkpoint may lie before what its primary deleted.
    let early = !rebuilt && replayer.collected.iter().any(|&(_, file)| file >= checkpointed.file());
    let mut store = Store::new(state, journal, index, recovery.end, checkpointed);
    for file in &existing {
        store.state.files.touch(*file);
    }
    if early {
        store.checkpoint_now()?;
    }
    let retired = store.to_retire();
    store.journal.retire(retired.iter().copied().filter(|file| existing.contains(file)))?;
    for file in retired {
        store.state.files.forget(file);
        store.retired(file);
    }
    if rebuilt {
        let mut checkpoint = store.begin_checkpoint(false);
        checkpoint.header.chain = recovery.chain.map(|chain| chain.0);
        if needs_snapshot(&how, &replayer, &store.reader(), &recovery)? {
            snapshot::keep(files, &checkpoint).map_err(io)?;
        }
        store.write_checkpoint(checkpoint)?;
    }
    set_aside(files).map_err(io)?;
    let first = existing.first().copied().unwrap_or(0);
    match Snapshot::find(files).map_err(io)? {
        Some(kept) if kept.applied.file() < first => snapshot::discard(files).map_err(io)?,
        // What is behind it begins a file, which says what came before, and which can be had without it.
        Some(kept) if kept.applied == recovery.end => store.journal.appender().begin_file(),
        _ => {}
    }
    store.journal.begin_epoch(NewEpoch {
        cluster_id: identity.cluster_id,
        epoch,
        node_id: identity.node_id.clone(),
        store_id: identity.store_id,
        boot_id: identity.boot_id,
        revision: 0,
        unclean: false,
    })?;
    let records = replayer.records;
    let abandoned = replayer.finish();
    for (id, files) in &abandoned {
        store.append_rollback(id, files)?;
    }
    let rolled_back = abandoned.into_iter().map(|(id, _)| id).collect();
    let gone = || OpenError::Unsuitable {
        path: files.describe(""),
        what: "open already",
        advice: "please report this",
    };
    let writer = store.journal.take_writer().ok_or_else(gone)?;
    let preparer = store.journal.take_preparer().ok_or_else(gone)?;
    let report = Report { recovery, index: how, records, rolled_back, lost, epoch };
    Ok(Opened { store, writer, preparer, identity, report })
}
