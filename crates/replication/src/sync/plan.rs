use std::collections::BTreeMap;

use kahawai_kdbr::{FileKind, ManifestFile, SyncId, SyncManifest};

use super::{ChunkMap, Resume};

/// Longest file that is fetched: a snapshot of some hundred million messages. Data files are below 2 GiB.
pub const FILE_BYTES_MAX: u64 = 16 << 30;
const DATA_FILE_BYTES_MAX: u64 = 1 << 31;

/// A file of a store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileKey {
    /// What it is.
    pub kind: FileKind,
    /// Which of its kind.
    pub id: u32,
}

impl FileKey {
    /// There is one snapshot, and its number is 0; data files begin with 1.
    pub fn exists(self) -> bool {
        (self.kind == FileKind::Snapshot) == (self.id == 0)
    }
}

/// A file with its content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileIdentity {
    /// Which.
    pub key: FileKey,
    /// Bytes of it that count.
    pub length: u64,
    /// The chain after its last batch.
    pub end_chain: u64,
}

impl From<&ManifestFile> for FileIdentity {
    fn from(file: &ManifestFile) -> Self {
        let key = FileKey { kind: file.kind, id: file.id };
        Self { key, length: file.length, end_chain: file.end_chain }
    }
}

/// A file to fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// As the primary describes it.
    pub file: ManifestFile,
    /// What is there from earlier.
    pub done: ChunkMap,
}

/// What a bulk synchronisation has to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Which.
    pub sync_id: SyncId,
    /// Files of the store that stay.
    pub keep: Vec<FileKey>,
    /// Files to fetch, in order: what is made of them is made while they come.
    pub fetch: Vec<Fetch>,
    /// Files of the store that are not the primary's: they go when the others are installed.
    pub remove: Vec<FileKey>,
    /// Length of all files in the manifest.
    pub total_bytes: u64,
    /// Length of those that stay.
    pub kept_bytes: u64,
}

/// A manifest that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    /// A file that is too long to be one.
    #[error("{kind:?} {id} is said to have {length} bytes", kind = key.kind, id = key.id)]
    TooLong {
        /// Which.
        key: FileKey,
        /// Its length.
        length: u64,
    },
    /// A file is there twice.
    #[error("{kind:?} {id} is there twice", kind = key.kind, id = key.id)]
    Twice {
        /// Which.
        key: FileKey,
    },
    /// Nothing has this number.
    #[error("there is no {kind:?} {id}", kind = key.kind, id = key.id)]
    Nonsense {
        /// Which.
        key: FileKey,
    },
    /// A data file that the stream is going to write.
    #[error("data file {id} is not before the stream")]
    NotSealed {
        /// Which.
        id: u32,
    },
}

/// Compares the primary's manifest with what the store has, and with what was fetched earlier.
pub fn plan(manifest: &SyncManifest, held: &[FileIdentity], resume: &Resume) -> Result<Plan, PlanError> {
    let held: BTreeMap<FileKey, FileIdentity> = held.iter().map(|file| (file.key, *file)).collect();
    let mut plan = Plan {
        sync_id: manifest.sync_id,
        keep: Vec::new(),
        fetch: Vec::new(),
        remove: Vec::new(),
        total_bytes: 0,
        kept_bytes: 0,
    };
    let mut wanted = BTreeMap::new();
    for file in &manifest.files {
        let identity = FileIdentity::from(file);
        let (key, length) = (identity.key, file.length);
        let is_data = file.kind == FileKind::Journal;
        if length > if is_data { DATA_FILE_BYTES_MAX } else { FILE_BYTES_MAX } {
            return Err(PlanError::TooLong { key, length });
        }
        if !key.exists() {
            return Err(PlanError::Nonsense { key });
        }
        if is_data && file.id >= manifest.stream_start.file() {
            return Err(PlanError::NotSealed { id: file.id });
        }
        if wanted.insert(key, identity).is_some() {
            return Err(PlanError::Twice { key });
        }
        plan.total_bytes += length;
        if held.get(&key) == Some(&identity) {
            plan.keep.push(key);
            plan.kept_bytes += length;
        } else {
            let done = resume.chunks_of(&identity).cloned().unwrap_or_else(|| ChunkMap::new(length));
            plan.fetch.push(Fetch { file: file.clone(), done });
        }
    }
    plan.fetch.sort_by_key(|fetch| (fetch.file.kind, fetch.file.id));
    plan.remove = held.into_keys().filter(|key| !wanted.contains_key(key)).collect();
    Ok(plan)
}
