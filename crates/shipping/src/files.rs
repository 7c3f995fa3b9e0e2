//! Whole files for a replica that lacks what the stream cannot give it: announced, fetched, verified, installed.

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use kahawai_env::{File, Files, OpenMode, PAGE_BYTES, read_full_at};
use kahawai_journal::{
    Chain, EpochStart, INCOMING_DIRECTORY, Installed, JournalReader, SealedFile, read_small_file,
    record_epochs, replace_file,
};
use kahawai_kdbr::{
    Decoder, FRAME_HEAD_BYTES, FileKind, Frame, HEADER_BYTES_MAX, ManifestFile, SyncManifest,
};
use kahawai_replication::sync::{FileIdentity, FileKey, Plan, Resume, plan};
use kahawai_store::import::IMPORTED;
use kahawai_store::snapshot::{SNAPSHOT_FILE, Snapshot, is_whole};
use kahawai_types::{Epoch, Location, Lsn};

use crate::chain;

/// What was fetched, for the next attempt.
const RESUME_FILE: &str = "replication/incoming/resume";
/// What was kept of an import, while it comes.
pub(crate) const INCOMING_SNAPSHOT: &str = "replication/incoming/snapshot";
/// What is being installed.
const MANIFEST_FILE: &str = "replication/incoming/manifest";

/// A data file as it is announced.
pub fn described(file: &SealedFile) -> ManifestFile {
    ManifestFile {
        kind: FileKind::Journal,
        id: file.id,
        length: file.length,
        first_epoch: file.first_epoch,
        start_chain: file.start_chain.0,
        end_chain: file.end_chain.0,
    }
}

/// What was kept of an import, as it is announced.
fn described_snapshot(snapshot: &Snapshot) -> ManifestFile {
    ManifestFile {
        kind: FileKind::Snapshot,
        id: 0,
        length: snapshot.length,
        first_epoch: Epoch(0),
        start_chain: 0,
        end_chain: snapshot.sum,
    }
}

/// That of a manifest.
pub(crate) fn announced_snapshot(manifest: &SyncManifest) -> Option<&ManifestFile> {
    manifest.files.iter().find(|file| file.kind == FileKind::Snapshot)
}

/// The data files of a manifest, as the journal knows them.
pub fn sealed(manifest: &SyncManifest) -> Vec<SealedFile> {
    let journals = manifest.files.iter().filter(|file| file.kind == FileKind::Journal);
    journals
        .map(|file| SealedFile {
            id: file.id,
            length: file.length,
            first_epoch: file.first_epoch,
            start_chain: Chain(file.start_chain),
            end_chain: Chain(file.end_chain),
        })
        .collect()
}

/// What a replica is given whole, and where its stream begins behind that.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Data files, and what was kept of an import if ActiveMQ's part of the journal is not gone. They may hold what is not committed: a
    /// primary that waits for its first replica cannot commit before.
    pub files: Vec<ManifestFile>,
    /// The start of a data file.
    pub stream_start: Lsn,
}

/// What a replica that lacks more than the stream has is given, and how far an import went that is part of it. No offer: there is no file
/// of ours behind that which is written to the end, or files behind it are deleted, and nobody can begin in the middle.
pub fn offered(
    files: &Arc<dyn Files>,
    reader: &JournalReader,
) -> Result<(Option<Offer>, Option<Lsn>), String> {
    let end = reader.durable_end();
    let sealed = reader.sealed_files(end).map_err(|problem| chain(&problem))?;
    let snapshot = needed_snapshot(files, sealed.iter().map(|file| file.id))?;
    let imported = snapshot.map(|snapshot| snapshot.applied);
    let foreign = sealed.iter().find(|file| file.first_epoch == Epoch(0)).filter(|_| snapshot.is_none());
    if let Some(foreign) = foreign {
        // Which number a message of ActiveMQ's has is in no journal. A replica that counts otherwise would acknowledge other
        // messages.
        return Err(format!(
            "data file {} was written by ActiveMQ, and {SNAPSHOT_FILE}, which is needed to copy it, is not there, or damaged: put \
             it back, from a backup or from another node of this cluster",
            foreign.id
        ));
    }
    // The chain behind ActiveMQ's last batch follows from files that not everybody has.
    let is_behind = |file: &SealedFile| imported.is_none_or(|imported| imported.file() < file.id);
    let is_ours = sealed.last().is_some_and(is_behind);
    if !is_ours || !reader.is_joined(&sealed, end).map_err(|problem| chain(&problem))? {
        return Ok((None, imported));
    }
    let snapshot = snapshot.iter().map(described_snapshot);
    let files = sealed.iter().map(described).chain(snapshot).collect();
    Ok((Some(Offer { files, stream_start: Location::new(end.file(), 0).lsn() }), imported))
}

/// What was kept of an import, if it says anything of these data files.
pub(crate) fn needed_snapshot(
    files: &Arc<dyn Files>,
    ids: impl IntoIterator<Item = u32>,
) -> Result<Option<Snapshot>, String> {
    let found = Snapshot::find(files).map_err(|problem| problem.to_string())?;
    let first = ids.into_iter().min();
    Ok(found.filter(|found| first.is_some_and(|first| first <= found.applied.file())))
}

/// Memory for parts of files that are sent, used again and again.
#[derive(Debug, Default)]
pub struct ChunkMemory(BytesMut);

impl ChunkMemory {
    /// Whole pages with room for `length` bytes.
    pub(crate) fn take(&mut self, length: usize) -> BytesMut {
        let size = length.next_multiple_of(PAGE_BYTES);
        let mut memory = std::mem::take(&mut self.0);
        if memory.capacity() < size || memory.as_ptr().align_offset(PAGE_BYTES) != 0 {
            memory = BytesMut::zeroed(size + PAGE_BYTES);
            let padding = memory.as_ptr().align_offset(PAGE_BYTES);
            // Elsewhere it works as well, more slowly.
            memory.advance(Some(padding).filter(|&bytes| bytes < PAGE_BYTES).unwrap_or(0));
        }
        memory.resize(size, 0);
        memory
    }

    /// A part was sent.
    pub fn give_back(&mut self, bytes: Bytes) {
        if let Ok(memory) = bytes.try_into_mut() {
            self.0 = memory;
        }
    }
}

/// A part of a file, to be sent; shorter where the file ends.
pub fn read_chunk(
    files: &Arc<dyn Files>,
    reader: &JournalReader,
    key: FileKey,
    offset: u64,
    length: usize,
    memory: &mut ChunkMemory,
) -> Result<Bytes, String> {
    let mut buffer = memory.take(length);
    let read = match key.kind {
        FileKind::Journal => {
            reader.read_raw(key.id, offset, &mut buffer).map_err(|problem| chain(&problem))?
        }
        FileKind::Snapshot => {
            let text = |problem: io::Error| format!("{}: {problem}", files.describe(SNAPSHOT_FILE));
            let file = files.open(SNAPSHOT_FILE, OpenMode::Read).map_err(text)?;
            read_full_at(&*file, &mut buffer, offset).map_err(text)?
        }
    };
    buffer.truncate(read.min(length));
    Ok(buffer.freeze())
}

/// What a replica has fetched, on its disk.
#[derive(Debug)]
pub struct ResumeLog {
    /// What that is.
    pub resume: Resume,
    file: Arc<dyn File>,
    end: u64,
}

impl ResumeLog {
    fn open(files: &Arc<dyn Files>) -> io::Result<Self> {
        let is_new = !files.exists(RESUME_FILE)?;
        let file = files.open(RESUME_FILE, OpenMode::Write)?;
        let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(0)];
        read_full_at(&*file, &mut bytes, 0)?;
        let (resume, valid) = Resume::decode(&bytes);
        let mut log = Self { resume, file, end: valid as u64 };
        if valid == 0 {
            log.append(&Resume::header())?;
        }
        if is_new {
            files.sync_directory(INCOMING_DIRECTORY)?;
            files.sync_directory("replication")?;
        }
        Ok(log)
    }

    /// Adds to it. Not flushed: what a power loss takes of it is fetched once more.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

/// What is to be fetched of a manifest, after what is here and what an earlier attempt has fetched.
pub fn prepare(
    files: &Arc<dyn Files>,
    reader: &JournalReader,
    manifest: &SyncManifest,
) -> Result<(Plan, ResumeLog), String> {
    let text = |problem: io::Error| format!("{}: {problem}", files.describe(INCOMING_DIRECTORY));
    files.create_directory(INCOMING_DIRECTORY).map_err(text)?;
    let held = reader.sealed_files(reader.durable_end()).map_err(|problem| chain(&problem))?;
    let mut held: Vec<FileIdentity> = held.iter().map(|file| FileIdentity::from(&described(file))).collect();
    // One that is not whole is none.
    let snapshot = Snapshot::find(files).ok().flatten();
    if let Some(snapshot) = snapshot
        && is_whole(files, SNAPSHOT_FILE, snapshot.length, snapshot.sum)
            .map_err(|problem| problem.to_string())?
    {
        held.push(FileIdentity::from(&described_snapshot(&snapshot)));
    }
    // Of other files, perhaps.
    kahawai_store::discard_staged(files).map_err(|problem| chain(&problem))?;
    let log = ResumeLog::open(files).map_err(text)?;
    let plan = plan(manifest, &held, &log.resume).map_err(|problem| problem.to_string())?;
    let comes = plan.fetch.iter().any(|fetch| fetch.file.kind == FileKind::Snapshot);
    if !comes && files.exists(INCOMING_SNAPSHOT).map_err(text)? {
        // Of an attempt that needed it.
        files.remove(INCOMING_SNAPSHOT).map_err(text)?;
    }
    Ok((plan, log))
}

/// Remembers what is about to be installed: a crash half way is finished with it. A crash in here leaves nothing, or all of it.
pub fn keep_manifest(files: &Arc<dyn Files>, manifest: &SyncManifest) -> io::Result<()> {
    let mut out = BytesMut::new();
    Frame::SyncManifest(manifest.clone()).encode(&mut out);
    replace_file(files, MANIFEST_FILE, &out)
}

/// What was being installed when the process ended.
fn kept_manifest(files: &Arc<dyn Files>) -> io::Result<Option<SyncManifest>> {
    let kept = read_small_file(files, MANIFEST_FILE, FRAME_HEAD_BYTES + HEADER_BYTES_MAX)?;
    let Some(kept) = kept else { return Ok(None) };
    let mut bytes = BytesMut::from(&kept[..]);
    let mut decoder = Decoder::default();
    decoder.authenticated();
    match decoder.decode(&mut bytes) {
        Ok(Some(Frame::SyncManifest(manifest))) => Ok(Some(manifest)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a manifest")),
    }
}

/// What was fetched is in place.
fn forget(files: &Arc<dyn Files>) -> io::Result<()> {
    for name in [RESUME_FILE, MANIFEST_FILE, INCOMING_SNAPSHOT] {
        if files.exists(name)? {
            files.remove(name)?;
        }
    }
    files.sync_directory(INCOMING_DIRECTORY)
}

/// Puts the manifest's in the place of whatever was kept here of an import.
fn install_snapshot(files: &Arc<dyn Files>, manifest: &SyncManifest) -> Result<(), String> {
    let text = |problem: io::Error| format!("{}: {problem}", files.describe(SNAPSHOT_FILE));
    let Some(announced) = announced_snapshot(manifest) else {
        return kahawai_store::snapshot::discard(files).map_err(text);
    };
    if files.exists(INCOMING_SNAPSHOT).map_err(text)? {
        let rename = || {
            files.create_directory(IMPORTED)?;
            files.rename(INCOMING_SNAPSHOT, SNAPSHOT_FILE)?;
            files.sync_directory(IMPORTED)?;
            files.sync_directory("")?;
            files.sync_directory(INCOMING_DIRECTORY)
        };
        return rename().map_err(text);
    }
    match is_whole(files, SNAPSHOT_FILE, announced.length, announced.end_chain).map_err(text)? {
        true => Ok(()),
        false => Err(format!("{} is neither received nor there already", files.describe(SNAPSHOT_FILE))),
    }
}

/// Puts the files of the kept manifest in place, on a closed store, and forgets it. With `epochs`, those of the primary, the list
/// of epochs becomes that. Called again, it goes on where it was.
pub fn install(
    files: &Arc<dyn Files>,
    epochs: &[EpochStart],
) -> Result<Option<(SyncManifest, Installed)>, String> {
    let text = |problem: io::Error| problem.to_string();
    let installed = match kept_manifest(files).map_err(text)? {
        Some(manifest) => {
            install_snapshot(files, &manifest)?;
            let installed = kahawai_store::install(files, &sealed(&manifest));
            Some((manifest, installed.map_err(|problem| chain(&problem))?))
        }
        None => None,
    };
    if !epochs.is_empty() {
        record_epochs(files, epochs).map_err(text)?;
    }
    forget(files).map_err(text)?;
    Ok(installed)
}

#[cfg(test)]
mod tests {
    use kahawai_kdbr::SyncId;
    use kahawai_testkit::MemoryFiles;
    use kahawai_types::{Epoch, Lsn};

    use super::*;

    fn manifest() -> SyncManifest {
        let file = |id| ManifestFile {
            kind: FileKind::Journal,
            id,
            length: 100,
            first_epoch: Epoch(1),
            start_chain: 7,
            end_chain: 8,
        };
        SyncManifest {
            epoch: Epoch(2),
            sync_id: SyncId(3),
            files: (1..200).map(file).collect(),
            stream_start: Lsn(9),
            commit: Lsn(9),
            total_bytes: 19_900,
            lease_ms: 30_000,
            sessions_max: 4,
        }
    }

    /// A start that finds half a manifest would not know what it was doing.
    #[test]
    fn a_manifest_is_kept_as_a_whole_or_not_at_all() {
        let (mut none, mut whole) = (0, 0);
        for seed in 0..20 {
            for stop in 0.. {
                let memory = MemoryFiles::new();
                let files: Arc<dyn Files> = Arc::new(memory.clone());
                memory.die_after(stop);
                let done = keep_manifest(&files, &manifest()).is_ok();
                let after: Arc<dyn Files> = Arc::new(memory.crash(seed * 100 + stop));
                let kept = kept_manifest(&after).expect("readable");
                assert!(kept.as_ref().is_none_or(|kept| *kept == manifest()), "seed {seed}, stop {stop}");
                none += usize::from(kept.is_none());
                whole += usize::from(kept.is_some());
                if done {
                    assert!(kept.is_some(), "seed {seed}");
                    forget(&after).expect("forgotten");
                    assert_eq!(kept_manifest(&after).expect("readable"), None);
                    break;
                }
            }
        }
        assert!(none > 0 && whole > 20, "{none} times nothing, {whole} times all");
    }
}
