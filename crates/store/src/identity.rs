//! Who this store is: `replication/node`, two alternating slots (`replication.md` 2.2); and beside it the newest cluster
//! record that it has seen.
//!
//! ```text
//! slot (512 bytes, at 0 and at 4096)
//! +--------+-----------+---------------+------------+-------------+-----------------+----------+----------+---------+---------+
//! | KW1N   | generation| cluster id    | store id   | promised    | node id         | state u8 | flags u8 | zeros   | XXH3-64 |
//! | 4 bytes| u64       | u128          | u128       | epoch u64   | u16 + UTF-8     |          |          |         | u64     |
//! +--------+-----------+---------------+------------+-------------+-----------------+----------+----------+---------+---------+
//! state: 0 = clean, 1 = syncing, 2 = faulted; flags: 1 = joined a cluster. Both were zeros once.
//!
//! replication/record:  KW1R | length u32 | the record | XXH3-64 of all that u64
//! ```
//! The slot with the higher generation and a right checksum counts. A crash while one is written leaves the other.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use kahawai_env::{Entropy, File, Files, OpenMode};
use kahawai_journal::{read_small_file, replace_file};
use kahawai_types::{BootId, ClusterId, Epoch, NodeId, StoreId};
use kahawai_wire::Reader;
use xxhash_rust::xxh3::xxh3_64;

/// Of everything that only a member of a cluster has.
const DIRECTORY: &str = "replication";
/// Where it lies in the data directory.
pub const NODE_FILE: &str = "replication/node";

const SLOT_BYTES: usize = 512;
const SLOT_DISTANCE: u64 = 4096;
const MAGIC: &[u8; 4] = b"KW1N";
const NODE_ID_BYTES_MAX: usize = 255;
const JOINED: u8 = 1;
/// The name of a node that nobody has named.
pub const DEFAULT_NODE_ID: &str = "single";

/// Where the newest cluster record lies in the data directory.
pub const RECORD_FILE: &str = "replication/record";
/// Largest cluster record.
pub const RECORD_BYTES_MAX: usize = 256 << 10;
const RECORD_MAGIC: &[u8; 4] = b"KW1R";
const RECORD_OVERHEAD_BYTES: usize = 4 + 4 + 8;

/// What may be done with a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StoreState {
    /// Its journal is a beginning of what was ever written, and its index a function of that.
    #[default]
    Clean,
    /// Data files are being exchanged: half of it is old, half new. It can only be synchronized again.
    Syncing,
    /// Data that was promised is damaged. It never leads before it is repaired.
    Faulted,
}

impl StoreState {
    fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Clean),
            1 => Some(Self::Syncing),
            2 => Some(Self::Faulted),
            _ => None,
        }
    }
}

/// Why the identity of a store cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Both slots are damaged: this store cannot prove who it is.
    #[error(
        "{path}: both copies of the node's identity are damaged; restore the file from a backup, or, if this is not a \
         member of a cluster, move it away and start again"
    )]
    Damaged {
        /// Which file.
        path: String,
    },
    /// The directory belongs to another node.
    #[error(
        "{path}: this directory belongs to node '{found}', not to '{configured}'; correct the node's name, or \
         give it a directory of its own; a new node starts with an empty one and fetches everything itself"
    )]
    AnotherNode {
        /// Which file.
        path: String,
        /// Whose it is.
        found: NodeId,
        /// Who asks.
        configured: NodeId,
    },
    /// A node on its own would write into a journal that others hold copies of.
    #[error(
        "{path}: this directory is that of node '{found}' in cluster {cluster_id}; start it as that. To make a single node of \
         it for good, remove {path}: the cluster then takes it for another store. To have its index rebuilt, delete its \
         folder `index`"
    )]
    Member {
        /// Which file.
        path: String,
        /// Whose it is.
        found: NodeId,
        /// Its cluster.
        cluster_id: ClusterId,
    },
    /// It is a member of another cluster already.
    #[error("{path}: this directory is a member of cluster {joined} and cannot become one of {other}")]
    AnotherCluster {
        /// Which file.
        path: String,
        /// Its cluster.
        joined: ClusterId,
        /// The one to join.
        other: ClusterId,
    },
    /// No record is that long.
    #[error("{path}: a cluster record of {bytes} bytes, the limit is {RECORD_BYTES_MAX}")]
    RecordTooLarge {
        /// Which file.
        path: String,
        /// Its length.
        bytes: usize,
    },
    /// The stored record is not what was written.
    #[error(
        "{path}: the stored cluster record is damaged; restore the file from a backup, or remove it if the election service \
         has lost nothing"
    )]
    RecordDamaged {
        /// Which file.
        path: String,
    },
}

/// Identity of a store and the epoch it has promised.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Which cluster it belongs to; made here for a single node.
    pub cluster_id: ClusterId,
    /// The node's name.
    pub node_id: NodeId,
    /// Made when the directory was first used.
    pub store_id: StoreId,
    /// No lower epoch is served any more. Raised before it is used.
    pub promised_epoch: Epoch,
    /// Random for this process.
    pub boot_id: BootId,
    /// What may be done with the store.
    pub state: StoreState,
    joined: bool,
    generation: u64,
}

impl Identity {
    /// Reads the identity of a data directory, or makes one. What is made is durable when this returns.
    pub fn open(
        files: &Arc<dyn Files>,
        entropy: &dyn Entropy,
        node_id: &NodeId,
    ) -> Result<Self, IdentityError> {
        let path = files.describe(NODE_FILE);
        let io = |source| IdentityError::Io { path: path.clone(), source };
        let random = || -> Result<u128, IdentityError> {
            let mut bytes = [0; 16];
            entropy.fill(&mut bytes).map_err(io)?;
            Ok(u128::from_be_bytes(bytes))
        };
        settle(files).map_err(io)?;
        if let Some(identity) = Self::newest(files)? {
            return Ok(Self { boot_id: BootId(random()?), ..identity });
        }
        let mut identity = Self {
            cluster_id: ClusterId(random()?),
            node_id: node_id.clone(),
            store_id: StoreId(random()?),
            promised_epoch: Epoch(0),
            boot_id: BootId(random()?),
            state: StoreState::Clean,
            joined: false,
            generation: 0,
        };
        identity.write(files)?;
        Ok(identity)
    }

    /// The same for a node that has a name of its own, which must be that of the directory. A single node's directory is
    /// renamed if nobody had named it and it never joined a cluster.
    pub fn open_as(
        files: &Arc<dyn Files>,
        entropy: &dyn Entropy,
        node_id: &NodeId,
    ) -> Result<Self, IdentityError> {
        let mut identity = Self::open(files, entropy, node_id)?;
        if identity.node_id == *node_id {
            return Ok(identity);
        }
        if identity.joined || identity.node_id.0 != DEFAULT_NODE_ID {
            let (found, configured) = (identity.node_id, node_id.clone());
            return Err(IdentityError::AnotherNode { path: files.describe(NODE_FILE), found, configured });
        }
        identity.node_id = node_id.clone();
        identity.write(files)?;
        Ok(identity)
    }

    /// Refuses the directory of a cluster's member to those who would write into it on their own.
    pub(crate) fn refuse_member(files: &Arc<dyn Files>) -> Result<(), IdentityError> {
        match Self::newest(files)? {
            Some(Self { node_id, cluster_id, joined: true, .. }) => {
                Err(IdentityError::Member { path: files.describe(NODE_FILE), found: node_id, cluster_id })
            }
            _ => Ok(()),
        }
    }

    /// Has this store joined a cluster?
    pub fn has_joined(&self) -> bool {
        self.joined
    }

    /// Joins a cluster, durably and for good.
    pub fn adopt_cluster(
        &mut self,
        files: &Arc<dyn Files>,
        cluster_id: ClusterId,
    ) -> Result<(), IdentityError> {
        if self.joined && self.cluster_id == cluster_id {
            return Ok(());
        }
        if self.joined {
            let (joined, other) = (self.cluster_id, cluster_id);
            return Err(IdentityError::AnotherCluster { path: files.describe(NODE_FILE), joined, other });
        }
        self.become_durably(files, Self { cluster_id, joined: true, ..self.clone() })
    }

    /// Says, durably, what may be done with the store.
    pub fn set_state(&mut self, files: &Arc<dyn Files>, state: StoreState) -> Result<(), IdentityError> {
        if self.state == state {
            return Ok(());
        }
        self.become_durably(files, Self { state, ..self.clone() })
    }

    /// The newest good slot; `None` if the store has no identity yet.
    fn newest(files: &Arc<dyn Files>) -> Result<Option<Self>, IdentityError> {
        let path = files.describe(NODE_FILE);
        let io = |source| IdentityError::Io { path: path.clone(), source };
        if !files.exists(NODE_FILE).map_err(io)? {
            return Ok(None);
        }
        let file = files.open(NODE_FILE, OpenMode::Read).map_err(io)?;
        let slots = [read_slot(&*file, 0).map_err(io)?, read_slot(&*file, SLOT_DISTANCE).map_err(io)?];
        match slots.into_iter().flatten().max_by_key(|identity| identity.generation) {
            Some(identity) => Ok(Some(identity)),
            // Empty or cut short: made by a process that died before it promised anything.
            None if file.len().map_err(io)? < SLOT_DISTANCE + SLOT_BYTES as u64 => Ok(None),
            None => Err(IdentityError::Damaged { path }),
        }
    }

    /// Promises an epoch, durably. Never lowers it.
    pub fn promise(&mut self, files: &Arc<dyn Files>, epoch: Epoch) -> Result<(), IdentityError> {
        let promised_epoch = self.promised_epoch.max(epoch);
        self.become_durably(files, Self { promised_epoch, ..self.clone() })
    }

    /// What could not be written is not so: nobody may act on it.
    fn become_durably(&mut self, files: &Arc<dyn Files>, mut next: Self) -> Result<(), IdentityError> {
        next.write(files)?;
        *self = next;
        Ok(())
    }

    fn write(&mut self, files: &Arc<dyn Files>) -> Result<(), IdentityError> {
        let path = files.describe(NODE_FILE);
        let io = |source| IdentityError::Io { path: path.clone(), source };
        files.create_directory("replication").map_err(io)?;
        let is_new = !files.exists(NODE_FILE).map_err(io)?;
        let file = files.open(NODE_FILE, OpenMode::Write).map_err(io)?;
        self.generation += 1;
        let slot = self.encode();
        if is_new || file.len().map_err(io)? < SLOT_DISTANCE + SLOT_BYTES as u64 {
            // Both slots, so that the file never has fewer than one good one from here on.
            file.write_at(&slot, SLOT_DISTANCE).map_err(io)?;
            file.write_at(&slot, 0).map_err(io)?;
        } else {
            file.write_at(&slot, (self.generation % 2) * SLOT_DISTANCE).map_err(io)?;
        }
        file.sync_all().map_err(io)?;
        if is_new {
            files.sync_directory("replication").map_err(io)?;
            files.sync_directory("").map_err(io)?;
        }
        Ok(())
    }

    fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(SLOT_BYTES);
        out.put_slice(MAGIC);
        out.put_u64(self.generation);
        out.put_u128(self.cluster_id.0);
        out.put_u128(self.store_id.0);
        out.put_u64(self.promised_epoch.0);
        let name = self.node_id.0.as_bytes();
        let name = name.get(..NODE_ID_BYTES_MAX).unwrap_or(name);
        out.put_u16(name.len() as u16);
        out.put_slice(name);
        out.put_u8(self.state as u8);
        out.put_u8(if self.joined { JOINED } else { 0 });
        out.resize(SLOT_BYTES - 8, 0);
        let sum = xxh3_64(&out);
        out.put_u64(sum);
        out
    }

    fn decode(slot: &[u8]) -> Option<Self> {
        let (body, sum) = slot.split_at_checked(SLOT_BYTES - 8)?;
        if sum != xxh3_64(body).to_be_bytes() || !body.starts_with(MAGIC) {
            return None;
        }
        let mut reader = Reader::new(Bytes::copy_from_slice(body));
        reader.skip(MAGIC.len()).ok()?;
        let generation = reader.u64().ok()?;
        let wide = |reader: &mut Reader| -> Option<u128> {
            Some((u128::from(reader.u64().ok()?) << 64) | u128::from(reader.u64().ok()?))
        };
        let cluster_id = ClusterId(wide(&mut reader)?);
        let store_id = StoreId(wide(&mut reader)?);
        let promised_epoch = Epoch(reader.u64().ok()?);
        let length = reader.u16().ok()?;
        let node_id = NodeId(reader.utf8(length.into()).ok()?.to_string());
        let state = StoreState::of(reader.u8().ok()?)?;
        let joined = reader.u8().ok()? & JOINED != 0;
        let boot_id = BootId(0);
        Some(Self { cluster_id, node_id, store_id, promised_epoch, boot_id, state, joined, generation })
    }
}

/// An earlier process may have left in the cache alone what it could not flush: a promise that is read must be one that lasts.
fn settle(files: &Arc<dyn Files>) -> io::Result<()> {
    let small =
        [NODE_FILE, RECORD_FILE, crate::generation::FILE, crate::damage::FILE, kahawai_journal::EPOCHS_FILE];
    for name in small {
        if files.exists(name)? {
            let file = files.open(name, OpenMode::Write)?;
            file.sync_all()?;
            file.drop_cache()?;
        }
    }
    match files.exists(DIRECTORY)? {
        true => files.sync_directory(DIRECTORY),
        false => Ok(()),
    }
}

fn read_slot(file: &dyn File, offset: u64) -> io::Result<Option<Identity>> {
    let mut slot = [0; SLOT_BYTES];
    let mut done = 0;
    while done < SLOT_BYTES {
        match file.read_at(slot.get_mut(done..).unwrap_or_default(), offset + done as u64)? {
            0 => return Ok(None),
            n => done += n,
        }
    }
    Ok(Identity::decode(&slot))
}

/// Keeps the newest cluster record that was seen. A crash leaves the one before or this one.
pub fn save_record(files: &Arc<dyn Files>, record: &[u8]) -> Result<(), IdentityError> {
    let path = files.describe(RECORD_FILE);
    if record.len() > RECORD_BYTES_MAX {
        return Err(IdentityError::RecordTooLarge { path, bytes: record.len() });
    }
    let mut out = BytesMut::with_capacity(record.len() + RECORD_OVERHEAD_BYTES);
    out.put_slice(RECORD_MAGIC);
    out.put_u32(record.len() as u32);
    out.put_slice(record);
    let sum = xxh3_64(&out);
    out.put_u64(sum);
    replace_file(files, RECORD_FILE, &out).map_err(|source| IdentityError::Io { path, source })
}

/// The record kept last; `None` if there never was one.
pub fn load_record(files: &Arc<dyn Files>) -> Result<Option<Bytes>, IdentityError> {
    let path = files.describe(RECORD_FILE);
    let content = read_small_file(files, RECORD_FILE, RECORD_BYTES_MAX + RECORD_OVERHEAD_BYTES)
        .map_err(|source| IdentityError::Io { path: path.clone(), source })?;
    let Some(content) = content else { return Ok(None) };
    let record = || {
        let (body, sum) = content.split_last_chunk::<8>()?;
        let (length, record) = body.strip_prefix(RECORD_MAGIC)?.split_first_chunk::<4>()?;
        let right = xxh3_64(body) == u64::from_be_bytes(*sum)
            && record.len() as u64 == u64::from(u32::from_be_bytes(*length));
        right.then(|| Bytes::copy_from_slice(record))
    };
    record().map(Some).ok_or(IdentityError::RecordDamaged { path })
}
