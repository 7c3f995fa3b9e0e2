//! Data files while they come: chunks from several connections go to the disk as they are, and, in order, to whoever checks them
//! and makes the index of them. What is in memory still when its turn comes is not read again.
//!
//! ```text
//! connections -> IncomingFile::write -> disk
//!             -> Arrivals::came      -> check: digests, chain, IndexBuilder
//! ```

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use kahawai_env::{File, Files, OpenMode, PAGE_BYTES, PageBuffer, ReadOnce, ReadOnly, Source};
use kahawai_journal::{
    BatchView, END_MARK, INCOMING_DIRECTORY, Journal, JournalReader, SealedFile, VerifyError, check_file,
    data_file_name, finish_file, incoming_name, verify_file,
};
use kahawai_kdbr::{FileKind, RepairRequest, SyncManifest, TransferStatus};
use kahawai_replication::sync::{CHUNK_BYTES, ChunkMap, FileIdentity, FileKey, Plan};
use kahawai_store::IndexBuilder;
use kahawai_store::snapshot::{SNAPSHOT_FILE, is_whole};
use kahawai_types::Location;
use tracing::warn;

use crate::chain;
use crate::files::{INCOMING_SNAPSHOT, ResumeLog, announced_snapshot, described, sealed};

/// So much is kept in memory for who checks; what comes further ahead of it is read from the disk.
const HELD_BYTES_MAX: usize = 64 << 20;

/// No data file is longer.
const FILE_BYTES_MAX: u64 = 1 << 31;

/// A file that is being received.
#[derive(Clone, Debug)]
pub struct IncomingFile {
    file: Arc<dyn File>,
    length: u64,
    /// Written behind it.
    mark: &'static [u8],
}

impl IncomingFile {
    /// Opens it, or begins it; it will have `length` bytes.
    pub fn open(files: &Arc<dyn Files>, key: FileKey, length: u64) -> io::Result<Self> {
        let (name, mark) = match key.kind {
            FileKind::Journal => (incoming_name(key.id), &END_MARK[..]),
            FileKind::Snapshot => (INCOMING_SNAPSHOT.to_owned(), &[][..]),
        };
        Self::open_as(files, INCOMING_DIRECTORY, &name, length, mark)
    }

    fn open_as(
        files: &Arc<dyn Files>,
        directory: &str,
        name: &str,
        length: u64,
        mark: &'static [u8],
    ) -> io::Result<Self> {
        let is_new = !files.exists(name)?;
        let file = files.open(name, OpenMode::Write)?;
        if is_new {
            file.allocate((length + mark.len() as u64).next_multiple_of(PAGE_BYTES as u64))?;
            // Before the log says that something is in it.
            files.sync_directory(directory)?;
        }
        Ok(Self { file, length, mark })
    }

    /// Writes a chunk, past the cache where that can be done: nobody reads it soon. Behind the last one goes the end mark.
    pub fn write(&self, bytes: &[u8], offset: u64, memory: &mut PageBuffer) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let mark = if end == self.length { self.mark } else { &[] };
        let size = bytes.len() + mark.len();
        let pages = memory.front(size.next_multiple_of(PAGE_BYTES));
        let (content, rest) = pages.split_at_mut(bytes.len());
        content.copy_from_slice(bytes);
        let (behind, padding) = rest.split_at_mut(mark.len());
        behind.copy_from_slice(mark);
        padding.fill(0);
        // Zeros may stand only behind the end of the file.
        let is_whole = offset.is_multiple_of(PAGE_BYTES as u64) && (padding.is_empty() || !mark.is_empty());
        if !is_whole || !self.file.write_pages_at(pages, offset)? {
            self.file.write_at(pages.get(..size).unwrap_or_default(), offset)?;
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Chunks on their way to who checks them.
#[derive(Debug)]
pub struct Arrivals {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// On the disk, by data file.
    flushed: BTreeMap<u32, ChunkMap>,
    /// In memory, by data file and number.
    held: BTreeMap<(u32, u32), Bytes>,
    held_bytes: usize,
    /// Who checks is here.
    next: (u32, u32),
    has_ended: bool,
}

impl Arrivals {
    /// For what a plan lacks.
    pub fn new(plan: &Plan) -> Arc<Self> {
        let journals = plan.fetch.iter().filter(|fetch| fetch.file.kind == FileKind::Journal);
        let flushed = journals.map(|fetch| (fetch.file.id, fetch.done.clone())).collect();
        let state = State { flushed, held: BTreeMap::new(), held_bytes: 0, next: (0, 0), has_ended: false };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A chunk has come; it is on its way to the disk.
    pub fn came(&self, key: FileKey, chunk: u32, bytes: &Bytes) {
        if key.kind != FileKind::Journal {
            return;
        }
        let mut state = self.lock();
        if (key.id, chunk) < state.next || state.held_bytes + bytes.len() > HELD_BYTES_MAX {
            return;
        }
        state.held_bytes += bytes.len();
        if let Some(before) = state.held.insert((key.id, chunk), bytes.clone()) {
            state.held_bytes -= before.len();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// These are on the disk.
    pub fn flushed(&self, key: FileKey, chunks: Range<u32>) {
        if key.kind != FileKind::Journal {
            return;
        }
        if let Some(map) = self.lock().flushed.get_mut(&key.id) {
            map.add(chunks);
        }
        self.changed.notify_all();
    }

    /// Nothing comes any more: who waits for what has not come fails.
    pub fn end(&self) {
        self.lock().has_ended = true;
        self.changed.notify_all();
    }

    /// Not all of this file will come.
    fn is_cut_short(&self, id: u32) -> bool {
        let state = self.lock();
        state.has_ended && state.flushed.get(&id).is_some_and(|map| !map.is_complete())
    }
}

/// Reads a data file from front to back while it comes; waits for what is not there.
#[derive(Debug)]
struct Arriving {
    arrivals: Arc<Arrivals>,
    id: u32,
    length: u64,
    files: Arc<dyn Files>,
    /// Opened when it is needed: whoever receives it makes it.
    disk: OnceLock<Arc<dyn File>>,
}

impl Arriving {
    fn file(arrivals: &Arc<Arrivals>, files: &Arc<dyn Files>, id: u32, length: u64) -> Arc<dyn File> {
        let (arrivals, files) = (Arc::clone(arrivals), Arc::clone(files));
        Arc::new(ReadOnly(Self { arrivals, id, length, files, disk: OnceLock::new() }))
    }

    fn disk(&self) -> io::Result<&Arc<dyn File>> {
        if let Some(disk) = self.disk.get() {
            return Ok(disk);
        }
        let disk = ReadOnce::over(self.files.open(&incoming_name(self.id), OpenMode::Read)?);
        Ok(self.disk.get_or_init(|| disk))
    }
}

impl Source for Arriving {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset >= self.length {
            return Ok(0);
        }
        let chunk = (offset / CHUNK_BYTES) as u32;
        let within = (offset % CHUNK_BYTES) as usize;
        let mut state = self.arrivals.lock();
        state.next = (self.id, chunk);
        loop {
            if let Some(held) = state.held.get(&(self.id, chunk)) {
                let rest = held.get(within..).unwrap_or_default();
                let count = rest.len().min(buf.len());
                if let (Some(to), Some(from)) = (buf.get_mut(..count), rest.get(..count)) {
                    to.copy_from_slice(from);
                }
                if count == rest.len() {
                    state.held_bytes -= held.len();
                    state.held.remove(&(self.id, chunk));
                    state.next = (self.id, chunk + 1);
                }
                return Ok(count);
            }
            if state.flushed.get(&self.id).is_some_and(|map| map.has(chunk)) {
                break;
            }
            if state.has_ended {
                return Err(io::Error::other("the rest does not come"));
            }
            state = self.arrivals.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let count = buf.len().min(CHUNK_BYTES as usize - within);
        self.disk()?.read_at(buf.get_mut(..count).unwrap_or_default(), offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.length)
    }
}

/// What [`check`] found.
#[derive(Debug, Default)]
pub struct Checked {
    bad: Vec<(FileIdentity, String)>,
}

/// Checks all data files of a manifest, those that come and those that are here already, and makes the index of them. Waits for
/// what is not there, and ends early after [`Arrivals::end`].
pub fn check(
    files: &Arc<dyn Files>,
    manifest: &SyncManifest,
    arrivals: &Arc<Arrivals>,
    builder: &mut IndexBuilder,
) -> Result<Checked, String> {
    let mut checked = Checked::default();
    if announced_snapshot(manifest).is_some() {
        builder.give_up("ActiveMQ wrote some of it".to_owned());
    }
    let mut all = sealed(manifest);
    all.sort_unstable_by_key(|file| file.id);
    for file in all {
        let comes = arrivals.lock().flushed.contains_key(&file.id);
        if let Err(problem) = check_one(files, &file, comes.then_some(arrivals), builder) {
            if arrivals.is_cut_short(file.id) {
                return Err(chain(&problem));
            }
            builder.give_up(chain(&problem));
            if comes {
                warn!(file = file.id, %problem, "a received file is not what was announced");
                checked.bad.push((FileIdentity::from(&described(&file)), chain(&problem)));
            }
        }
    }
    Ok(checked)
}

fn check_one(
    files: &Arc<dyn Files>,
    file: &SealedFile,
    arrivals: Option<&Arc<Arrivals>>,
    builder: &mut IndexBuilder,
) -> Result<(), VerifyError> {
    let visit = |batch: &BatchView| builder.batch(batch);
    let Some(arrivals) = arrivals else {
        let name = data_file_name(file.id);
        let full_name = files.describe(&name);
        let open = |source| VerifyError::Io { file: full_name.clone(), action: "open", source };
        let disk = files.open(&name, OpenMode::Read).map_err(open)?;
        return check_file(ReadOnce::over(disk), &full_name, file, visit);
    };
    let name = incoming_name(file.id);
    let source = Arriving::file(arrivals, files, file.id, file.length);
    check_file(source, &files.describe(&name), file, visit)?;
    finish_file(files, &name, file.length)
}

/// After everything was checked: whether it is what was announced, and then its index, kept for the installation. What is not right
/// is fetched again next time.
pub fn settle(
    files: &Arc<dyn Files>,
    manifest: &SyncManifest,
    mut checked: Checked,
    builder: IndexBuilder,
    log: &mut ResumeLog,
) -> Result<(), String> {
    if let Some(announced) = announced_snapshot(manifest) {
        let finished = finish_snapshot(files, announced.length, announced.end_chain);
        if !finished.map_err(|problem| format!("{}: {problem}", files.describe(INCOMING_SNAPSHOT)))? {
            let problem = "what was kept of ActiveMQ's index is not what was announced".to_owned();
            checked.bad.push((FileIdentity::from(announced), problem));
        }
    }
    for (identity, _) in &checked.bad {
        let mut out = BytesMut::new();
        log.resume.forget(identity, &mut out);
        log.append(&out).map_err(|problem| problem.to_string())?;
    }
    if let Some((_, problem)) = checked.bad.into_iter().next_back() {
        return Err(problem);
    }
    if let Err(problem) = builder.stage(files) {
        // Then it is made from the files.
        warn!(problem = chain(&problem), "the index of the received files could not be kept");
        kahawai_store::discard_staged(files).map_err(|problem| chain(&problem))?;
    }
    files.sync_directory(INCOMING_DIRECTORY).map_err(|problem| problem.to_string())
}

/// Everything of it is here, durably, if it had to come; `false` if it is not what was announced.
fn finish_snapshot(files: &Arc<dyn Files>, length: u64, sum: u64) -> io::Result<bool> {
    if !files.exists(INCOMING_SNAPSHOT)? {
        return is_whole(files, SNAPSHOT_FILE, length, sum);
    }
    let file = files.open(INCOMING_SNAPSHOT, OpenMode::Write)?;
    file.set_len(length)?;
    file.sync_all()?;
    is_whole(files, INCOMING_SNAPSHOT, length, sum)
}

/// Where a sound copy of a damaged file lies while it comes.
const REPAIR_DIRECTORY: &str = "replication/repair";

/// The file that a sound copy of a damaged one is received in; it is nobody's part of a synchronisation.
pub fn begin_repair(files: &Arc<dyn Files>, file: &SealedFile) -> Result<IncomingFile, String> {
    if file.length == 0 || file.length >= FILE_BYTES_MAX {
        return Err(format!("a data file of {} bytes cannot be", file.length));
    }
    let text = |problem: io::Error| format!("{}: {problem}", files.describe(REPAIR_DIRECTORY));
    files.create_directory(REPAIR_DIRECTORY).map_err(text)?;
    discard_repairs(files).map_err(text)?;
    let name = format!("{REPAIR_DIRECTORY}/{}", data_file_name(file.id));
    IncomingFile::open_as(files, REPAIR_DIRECTORY, &name, file.length, &END_MARK).map_err(text)
}

/// Puts a copy that was received and flushed in the place of the damaged file, if it is what it should be; `false` if that file is not
/// needed any more.
pub fn finish_repair(files: &Arc<dyn Files>, journal: &Journal, file: &SealedFile) -> Result<bool, String> {
    let name = format!("{REPAIR_DIRECTORY}/{}", data_file_name(file.id));
    verify_file(files, &name, file).map_err(|problem| chain(&problem))?;
    journal.replace_file(file.id, &name).map_err(|problem| problem.to_string())
}

/// Removes what an interrupted repair has left.
pub fn discard_repairs(files: &Arc<dyn Files>) -> io::Result<()> {
    if files.exists(REPAIR_DIRECTORY)? {
        for name in files.list(REPAIR_DIRECTORY)? {
            files.remove(&format!("{REPAIR_DIRECTORY}/{name}"))?;
        }
    }
    Ok(())
}

/// What a peer asks for, if we have it: which file that is. It may be damaged here as well; whoever receives it checks it.
pub fn asked_for(reader: &JournalReader, request: &RepairRequest) -> Result<SealedFile, TransferStatus> {
    let id = request.from.file();
    if request.from.offset() != 0 || request.to != Location::new(id.saturating_add(1), 0).lsn() {
        return Err(TransferStatus::OutOfRange);
    }
    let found = reader.sealed_file(id).map_err(|problem| {
        warn!(file = id, problem = chain(&problem), "a peer's data file cannot be repaired from ours");
        TransferStatus::Failed
    })?;
    let wanted = (request.chain_before, request.chain_after);
    found.filter(|file| (file.start_chain.0, file.end_chain.0) == wanted).ok_or(TransferStatus::UnknownFile)
}

#[cfg(test)]
mod tests {
    use kahawai_env::{DiskFiles, read_full_at};
    use kahawai_kdbr::{ManifestFile, SyncId};
    use kahawai_replication::sync::Fetch;
    use kahawai_testkit::{MemoryFiles, Random};
    use kahawai_types::Epoch;

    use super::*;

    const LENGTH: u64 = 9 * CHUNK_BYTES + 12_345;

    fn key(id: u32) -> FileKey {
        FileKey { kind: FileKind::Journal, id }
    }

    /// Files 1 and 2, of which the second half of file 2 is there.
    fn planned() -> Plan {
        let fetch = |id, done: Range<u32>| {
            let (first_epoch, start_chain, end_chain) = (Epoch(1), 1, 2);
            let file = ManifestFile {
                kind: FileKind::Journal,
                id,
                length: LENGTH,
                first_epoch,
                start_chain,
                end_chain,
            };
            let mut map = ChunkMap::new(LENGTH);
            map.add(done);
            Fetch { file, done: map }
        };
        Plan {
            sync_id: SyncId(1),
            keep: Vec::new(),
            fetch: vec![fetch(1, 0..0), fetch(2, 5..10)],
            remove: Vec::new(),
            total_bytes: 2 * LENGTH,
            kept_bytes: 0,
        }
    }

    fn content(id: u32) -> &'static [u8] {
        static CONTENT: std::sync::LazyLock<Vec<u8>> =
            std::sync::LazyLock::new(|| Random::new(7).bytes(2 * LENGTH as usize));
        let from = (id as usize - 1) * LENGTH as usize;
        &CONTENT[from..from + LENGTH as usize]
    }

    fn chunk_of(content: &[u8], chunk: u32) -> Bytes {
        let from = chunk as usize * CHUNK_BYTES as usize;
        Bytes::copy_from_slice(&content[from..content.len().min(from + CHUNK_BYTES as usize)])
    }

    fn read_all(files: &Arc<dyn Files>, arrivals: &Arc<Arrivals>) {
        for id in [1, 2] {
            let name = incoming_name(id);
            let source = Arriving::file(arrivals, files, id, LENGTH);
            let mut found = vec![0; LENGTH as usize + 1];
            for (n, part) in found.chunks_mut(700_000).enumerate() {
                read_full_at(&*source, part, n as u64 * 700_000).expect("read");
            }
            assert!(found[..LENGTH as usize] == *content(id), "file {id}");
            finish_file(files, &name, LENGTH).expect("finished");
        }
        assert!(arrivals.lock().held.len() <= 1, "what was read is let go");
    }

    /// Chunks come in any order, some twice, some are read from memory, some from the disk: what is read is the file.
    fn read_while_it_comes(files: Arc<dyn Files>, seed: u64) {
        files.create_directory(INCOMING_DIRECTORY).expect("made");
        let arrivals = Arrivals::new(&planned());
        let mut random = Random::new(seed);
        let mut todo: Vec<(u32, u32)> = Vec::new();
        for id in [1, 2] {
            let incoming = IncomingFile::open(&files, key(id), LENGTH).expect("opened");
            for chunk in 0..10 {
                if (id, chunk) >= (2, 5) {
                    let bytes = chunk_of(content(id), chunk);
                    let at = u64::from(chunk) * CHUNK_BYTES;
                    incoming.write(&bytes, at, &mut PageBuffer::default()).expect("written");
                } else {
                    todo.push((id, chunk));
                }
            }
        }
        let mut order = Vec::new();
        while !todo.is_empty() {
            let next = todo.remove(random.below(todo.len() as u64) as usize);
            order.extend(std::iter::repeat_n(next, 1 + usize::from(random.chance(5))));
        }
        std::thread::scope(|scope| {
            scope.spawn(|| read_all(&files, &arrivals));
            let mut memory = PageBuffer::default();
            for (id, chunk) in order {
                let bytes = chunk_of(content(id), chunk);
                if random.chance(2) {
                    arrivals.came(key(id), chunk, &bytes);
                }
                let incoming = IncomingFile::open(&files, key(id), LENGTH).expect("opened");
                incoming.write(&bytes, u64::from(chunk) * CHUNK_BYTES, &mut memory).expect("written");
                incoming.flush().expect("flushed");
                arrivals.flushed(key(id), chunk..chunk + 1);
            }
        });
        for id in [1, 2] {
            let file = files.open(&incoming_name(id), OpenMode::Read).expect("there");
            let mut found = vec![1; LENGTH as usize + 2 * PAGE_BYTES];
            let read = read_full_at(&*file, &mut found, 0).expect("read");
            let (whole, tail) = found[..read].split_at(LENGTH as usize);
            assert!(whole == content(id) && tail.starts_with(&END_MARK) && tail.len() <= PAGE_BYTES);
            assert!(tail[END_MARK.len()..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn a_file_is_read_while_it_comes() {
        for seed in 0..10 {
            read_while_it_comes(Arc::new(MemoryFiles::new()), seed);
        }
        let directory = tempfile::tempdir().expect("made");
        read_while_it_comes(Arc::new(DiskFiles::open(directory.path()).expect("made")), 99);
    }

    #[test]
    fn memory_for_what_comes_too_early_is_limited() {
        let arrivals = Arrivals::new(&planned());
        let bytes = Bytes::from(vec![0; CHUNK_BYTES as usize]);
        for chunk in 0..200 {
            arrivals.came(key(1), chunk, &bytes);
        }
        assert_eq!(arrivals.lock().held_bytes, HELD_BYTES_MAX);
        assert_eq!(arrivals.lock().held.len(), HELD_BYTES_MAX / CHUNK_BYTES as usize);
    }

    #[test]
    fn who_waits_for_what_does_not_come_is_told() {
        let files: Arc<dyn Files> = Arc::new(MemoryFiles::new());
        let arrivals = Arrivals::new(&planned());
        let source = Arriving::file(&arrivals, &files, 1, LENGTH);
        std::thread::scope(|scope| {
            scope.spawn(|| source.read_at(&mut [0; 9], 0).expect_err("nothing came"));
            arrivals.end();
        });
        assert!(arrivals.is_cut_short(1));
        arrivals.flushed(key(1), 0..10);
        assert!(!arrivals.is_cut_short(1));
    }

    /// Memory of what was sent is used again, and begins where a page begins.
    #[test]
    fn memory_for_sending_is_used_again() {
        let mut memory = crate::ChunkMemory::default();
        let mut places = std::collections::BTreeSet::new();
        for length in [1 << 20, 1 << 20, 5000, 1 << 20, 1 << 20] {
            let mut taken = memory.take(length);
            assert_eq!((taken.as_ptr().align_offset(PAGE_BYTES), taken.len() % PAGE_BYTES), (0, 0));
            assert!(taken.len() >= length);
            places.insert(taken.as_ptr() as usize);
            taken.truncate(length);
            memory.give_back(taken.freeze());
        }
        assert_eq!(places.len(), 1);
    }
}
