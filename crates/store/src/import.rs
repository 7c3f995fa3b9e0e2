//! A store that ActiveMQ wrote: its own index first, then the journal behind it (design D3).
//!
//! Some facts are in `db.data` alone (`kahadb-format.md` §13): which subscriptions are gone, the true order after ack
//! compaction and rewritten messages. So it is read where it can be; where not, the journal alone is replayed, and the
//! start-up report says so. After a successful import the files of ActiveMQ's index move to `imported/`: ActiveMQ rebuilds
//! its index from the journal if it ever comes back, and we can build ours again from the same facts.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use kahawai_env::{File, Files, OpenMode};
use kahawai_journal::JournalReader;
use kahawai_kahadb::command::{Command, decode};
use kahawai_kahadb::pagefile::{Import, PageError, ReadAt, StoredDestination};
use kahawai_message::storage::{DestinationKey, SubscriptionKey, Tier};
use kahawai_message::stored::{decode_subscription_info, read_head};
use kahawai_types::{Location, Lsn};

use crate::chunk::Slot;
use crate::ranges::Ranges;
use crate::replay::Ids;
use crate::state::{ChunkError, State, Subscription};

/// Where ActiveMQ's index files lie after an import.
pub const IMPORTED: &str = "imported";
/// ActiveMQ's index files.
pub const INDEX_FILES: [&str; 3] = ["db.data", "db.redo", "db.free"];

/// Why ActiveMQ's index is of no use. All but `Io` and `Chunk` are answered by a replay of the whole journal.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The page file.
    #[error("{path}: {source}")]
    Page {
        /// Which file.
        path: String,
        /// Why.
        source: PageError,
    },
    /// Something that only old versions lack.
    #[error("{path}: an index of version {version} has no {what}")]
    Old {
        /// Which file.
        path: String,
        /// Its version.
        version: i32,
        /// What is missing.
        what: &'static str,
    },
    /// A message of the index that is not in the journal. Going on would lose it silently.
    #[error(
        "message {id} of {destination} should be at db-{file}.log offset {offset}, but: {reason}; put the file back from a \
         backup, or let `kahawai store rebuild-index --accept-loss` go on without it"
    )]
    Missing {
        /// Whose.
        destination: String,
        /// Which.
        id: String,
        /// Where it should be.
        file: u32,
        /// Where in the file.
        offset: u32,
        /// What is there.
        reason: String,
    },
    /// Our own index store failed.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
}

/// What an import leaves for the replay behind it.
#[derive(Debug)]
pub struct Imported {
    /// Ids of the live messages.
    pub ids: Ids,
    /// Records below this have had their effect.
    pub applied: Lsn,
    /// Replay from the start of this file.
    pub replay_file: u32,
    /// Live messages found.
    pub messages: u64,
    /// Messages of the index that are lost, if that was allowed.
    pub lost: Vec<String>,
}

#[derive(Debug)]
struct At(Arc<dyn File>, u64);

impl ReadAt for At {
    fn len(&self) -> u64 {
        self.1
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, offset + done as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }
}

fn open(files: &Arc<dyn Files>, name: &str) -> Result<Option<At>, ImportError> {
    let io = |source| ImportError::Io { path: files.describe(name), source };
    if !files.exists(name).map_err(io)? {
        return Ok(None);
    }
    let file = files.open(name, OpenMode::Read).map_err(io)?;
    let len = file.len().map_err(io)?;
    Ok(Some(At(file, len)))
}

/// What to do about messages whose record is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// Refuse.
    Refuse,
    /// Go on without them, and list them: the operator said so.
    Accept,
    /// They were consumed later, and their files collected: an old index of ActiveMQ's, read again.
    Collected,
}

/// Reads ActiveMQ's index from `directory` (`""` or [`IMPORTED`]) into an empty state. `None` if there is no `db.data`.
pub fn import(
    files: &Arc<dyn Files>,
    directory: &str,
    reader: &JournalReader,
    state: &mut State,
    missing: Missing,
) -> Result<Option<Imported>, ImportError> {
    let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
    let name = format!("{prefix}db.data");
    let Some(data) = open(files, &name)? else { return Ok(None) };
    let redo = open(files, &format!("{prefix}db.redo"))?;
    let path = files.describe(&name);
    let page = |source| ImportError::Page { path: path.clone(), source };
    let import = Import::open(&data, redo.as_ref().map(|at| at as &dyn ReadAt)).map_err(page)?;
    let metadata = *import.metadata();
    let old = |what| ImportError::Old { path: path.clone(), version: metadata.version, what };
    if metadata.openwire_version < 11 {
        return Err(old("messages in OpenWire version 11"));
    }
    let mut imported =
        Imported { ids: Ids::default(), applied: Lsn::ZERO, replay_file: 0, messages: 0, lost: Vec::new() };
    for destination in import.destinations().map_err(page)? {
        let key = state.key(&destination.destination);
        state.name(key);
        let next = import.next_sequence(&destination).map_err(page)?;
        if let Some(d) = state.get_mut(key) {
            d.next_sequence = u64::try_from(next).unwrap_or(0);
            d.applied_sequence = d.next_sequence;
        }
        import_messages(&import, &destination, key, reader, state, missing, &mut imported, &path)?;
        for sub in import.subscriptions(&destination).map_err(page)? {
            let info = sub.subscription.info.clone().ok_or_else(|| old("subscription info"))?;
            let info = decode_subscription_info(Bytes::copy_from_slice(&info))
                .map_err(|_| old("readable subscription"))?;
            let at = sub.record.ok_or_else(|| old("locations of subscriptions"))?;
            let name =
                SubscriptionKey { client_id: info.client_id.clone(), name: info.subscription_name.clone() };
            let sub = to_subscription(&sub.pending, info, at, state.get(key).map_or(0, |d| d.next_sequence));
            state.files.touch(at.file).subscriptions += 1;
            if let Some(d) = state.get_mut(key) {
                d.subscriptions.insert(name, sub);
            }
        }
    }
    state.count_pending()?;
    if let Some(last) = metadata.last_update {
        imported.applied = Lsn(last.lsn().0 + 1);
        let first = metadata.first_in_progress_transaction.map_or(last, |first| first.min(last));
        imported.replay_file = first.file;
    }
    Ok(Some(imported))
}

fn to_subscription(
    pending: &kahawai_kahadb::pagefile::SequenceSet,
    info: kahawai_message::stored::SubscriptionInfo,
    at: Location,
    next: u64,
) -> Subscription {
    // The set holds what is pending and one more, the sequence to come; what lies between its ranges is acknowledged.
    let mut acknowledged = Ranges::default();
    let mut floor = next;
    let mut end: Option<u64> = None;
    for &(first, last) in pending.ranges() {
        let (Ok(first), Ok(last)) = (u64::try_from(first), u64::try_from(last)) else { continue };
        match end {
            None => floor = first,
            Some(end) => acknowledged.insert_range(end, first),
        }
        end = Some(last.saturating_add(1));
    }
    Subscription { info, at, renewed: None, floor, acknowledged, held: Default::default(), pending: 0 }
}

#[allow(clippy::too_many_arguments)] // one call, and the parts have nothing else in common
fn import_messages(
    import: &Import<'_>,
    destination: &StoredDestination,
    key: DestinationKey,
    reader: &JournalReader,
    state: &mut State,
    missing: Missing,
    imported: &mut Imported,
    path: &str,
) -> Result<(), ImportError> {
    let mut window = reader.window();
    for message in import.messages(destination) {
        let message = message.map_err(|source| ImportError::Page { path: path.to_owned(), source })?;
        let at = message.record.location;
        let size = message.record.size.ok_or_else(|| ImportError::Old {
            path: path.to_owned(),
            version: import.metadata().version,
            what: "record sizes",
        })?;
        let found = window.read(at, size).map_err(|e| e.to_string()).and_then(|payload| {
            match decode(payload).map_err(|e| e.to_string())? {
                Command::AddMessage(add) | Command::UpdateMessage(add)
                    if add.message_key == message.message_key =>
                {
                    read_head(&add.message).map_err(|e| e.to_string())
                }
                _ => Err("another record is there".to_owned()),
            }
        });
        let head = match found {
            Ok(head) => head,
            Err(_) if missing == Missing::Collected => continue,
            Err(_) if missing == Missing::Accept => {
                imported.lost.push(format!("{} {}", destination.destination, message.message_key));
                continue;
            }
            Err(reason) => {
                return Err(ImportError::Missing {
                    destination: destination.destination.to_string(),
                    id: message.message_key.to_string(),
                    file: at.file,
                    offset: at.offset,
                    reason,
                });
            }
        };
        let tier = match message.tier {
            kahawai_kahadb::pagefile::Tier::High => Tier::High,
            kahawai_kahadb::pagefile::Tier::Default => Tier::Default,
            kahawai_kahadb::pagefile::Tier::Low => Tier::Low,
        };
        let sequence = u64::try_from(message.sequence).unwrap_or(0);
        let counter = u32::try_from(head.redelivery_counter).unwrap_or(0);
        let slot = Slot::new(at, size, tier, head.expiration_ms, counter);
        state.insert(key, sequence, slot)?;
        imported.ids.insert(key, &message.message_key, sequence);
        imported.messages += 1;
    }
    Ok(())
}

/// Keeps ActiveMQ's index files aside, after a checkpoint of ours has all that is in them.
pub fn set_aside(files: &Arc<dyn Files>) -> io::Result<bool> {
    if !files.exists("db.data")? {
        return Ok(false);
    }
    files.create_directory(IMPORTED)?;
    for name in INDEX_FILES.iter().rev() {
        let kept = format!("{IMPORTED}/{name}");
        if files.exists(name)? {
            files.rename(name, &kept)?;
        } else if files.exists(&kept)? {
            files.remove(&kept)?;
        }
    }
    files.sync_directory(IMPORTED)?;
    files.sync_directory("")?;
    Ok(true)
}
