//! Who this store is: `replication/node`, two alternating slots (`replication.md` 2.2).
//!
//! ```text
//! slot (512 bytes, at 0 and at 4096)
//! +--------+-----------+---------------+------------+-------------+-----------------+----------+----------+---------+
//! | KW1N   | generation| cluster id    | store id   | promised    | node id         | clean    | zeros    | XXH3-64 |
//! | 4 bytes| u64       | u128          | u128       | epoch u64   | u16 + UTF-8     | u8       |          | u64     |
//! +--------+-----------+---------------+------------+-------------+-----------------+----------+----------+---------+
//! ```
//! The slot with the higher generation and a right checksum counts. A crash while one is written leaves the other.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use kahawai_env::{Entropy, File, Files, OpenMode};
use kahawai_types::{BootId, ClusterId, Epoch, NodeId, StoreId};
use kahawai_wire::Reader;
use xxhash_rust::xxh3::xxh3_64;

/// Where it lies in the data directory.
pub const NODE_FILE: &str = "replication/node";

const SLOT_BYTES: usize = 512;
const SLOT_DISTANCE: u64 = 4096;
const MAGIC: &[u8; 4] = b"KW1N";
const NODE_ID_BYTES_MAX: usize = 255;

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
        if files.exists(NODE_FILE).map_err(io)? {
            let file = files.open(NODE_FILE, OpenMode::Read).map_err(io)?;
            let slots = [read_slot(&*file, 0).map_err(io)?, read_slot(&*file, SLOT_DISTANCE).map_err(io)?];
            let newest = slots.into_iter().flatten().max_by_key(|identity| identity.generation);
            match newest {
                Some(identity) => return Ok(Self { boot_id: BootId(random()?), ..identity }),
                // Empty or cut short: made by a process that died before it promised anything.
                None if file.len().map_err(io)? < SLOT_DISTANCE + SLOT_BYTES as u64 => {}
                None => return Err(IdentityError::Damaged { path }),
            }
        }
        let mut identity = Self {
            cluster_id: ClusterId(random()?),
            node_id: node_id.clone(),
            store_id: StoreId(random()?),
            promised_epoch: Epoch(0),
            boot_id: BootId(random()?),
            generation: 0,
        };
        identity.write(files)?;
        Ok(identity)
    }

    /// Promises an epoch, durably. Never lowers it.
    pub fn promise(&mut self, files: &Arc<dyn Files>, epoch: Epoch) -> Result<(), IdentityError> {
        self.promised_epoch = self.promised_epoch.max(epoch);
        self.write(files)
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
        Some(Self { cluster_id, node_id, store_id, promised_epoch, boot_id: BootId(0), generation })
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
