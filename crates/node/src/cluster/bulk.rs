//! Bulk synchronisation: sealed files over several connections, resumable after anything.
//!
//! ```text
//! primary  BulkSource: lease (nothing is collected), manifest, ranges of sealed files
//! replica  BulkSink:   plan, N transfer connections -> replication/incoming/db-N.log, replication/incoming/resume
//!          then, on a closed store: install, and the journal is the primary's up to the start of the live stream
//! ```

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kahawai_env::{Clock, Entropy, File, Files, OpenMode, OsEntropy, read_full_at};
use kahawai_journal::{Chain, INCOMING_DIRECTORY, JournalReader, SealedFile, replace_file, verify_file};
use kahawai_kdbr::{
    CHUNK_BYTES_MAX, Decoder, ErrorCode, ErrorFrame, FileChunk, FileKind, FileTransfer, FileTransferResponse,
    Frame, MANIFEST_FILES_MAX, ManifestFile, Role, SyncId, SyncManifest, TransferStatus,
};
use kahawai_replication::sync::{
    CHUNK_BYTES, FileIdentity, FileKey, Leases, Progress, Range, Resume, TokenBucket, Transfers,
    TransfersOptions, plan,
};
use kahawai_types::{Epoch, Location, Millis, ReplicaId};
use tokio::task::{JoinSet, spawn_blocking};
use tracing::{debug, info, warn};

use super::net::{Connected, Credentials, NetError, dial};
use super::reign::{Reign, boot_ms};

use crate::core::unpoisoned;

/// A synchronisation that says nothing for so long is forgotten.
const LEASE_MS: u32 = 30_000;
/// Room that a bandwidth limit lets through at once.
const BURST_BYTES: u64 = 1 << 20;
/// What was fetched, for the next attempt.
const RESUME_FILE: &str = "replication/incoming/resume";
/// What is being installed.
const MANIFEST_FILE: &str = "replication/incoming/manifest";
/// How often progress is said.
const SAY: Duration = Duration::from_secs(5);
/// A transfer connection that is silent for so long is made again.
const SILENCE: Duration = Duration::from_secs(15);

/// How operators want it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BulkOptions {
    /// Transfer connections of one replica.
    pub(crate) sessions: u32,
    /// Bytes per second that this node sends to all; 0 = no limit.
    pub(crate) bytes_per_s: u64,
}

/// What a synchronisation of one replica has told the primary.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Told {
    pub(crate) total_bytes: u64,
    pub(crate) bytes_done: u64,
    pub(crate) files_done: u32,
}

struct SourceState {
    leases: Leases,
    told: std::collections::BTreeMap<SyncId, (ReplicaId, Told)>,
    bucket: TokenBucket,
}

/// The primary's side.
pub(crate) struct BulkSource {
    options: BulkOptions,
    clock: Arc<dyn Clock>,
    state: Mutex<SourceState>,
}

impl BulkSource {
    pub(crate) fn new(options: BulkOptions, clock: Arc<dyn Clock>) -> Arc<Self> {
        let bucket = TokenBucket::new(options.bytes_per_s, BURST_BYTES, boot_ms(&*clock));
        let state = SourceState { leases: Leases::new(), told: Default::default(), bucket };
        Arc::new(Self { options, clock, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, SourceState> {
        unpoisoned(&self.state)
    }

    fn now(&self) -> Millis {
        boot_ms(&*self.clock)
    }

    /// May data files go?
    pub(crate) fn may_collect(&self) -> bool {
        let mut state = self.lock();
        for (sync_id, replica) in state.leases.expire(self.now()) {
            warn!(%replica, "a synchronisation was not heard of any more; its files may go");
            state.told.remove(&sync_id);
        }
        // A lease keeps everything from its stream's start on.
        !state.leases.is_pinned(u32::MAX)
    }

    /// What replicas have told of their synchronisations.
    pub(crate) fn told(&self) -> Vec<(ReplicaId, Told)> {
        self.lock().told.values().cloned().collect()
    }

    /// The files that a replica needs, kept for it from now on.
    pub(crate) async fn manifest(&self, reign: &Reign, replica: &ReplicaId) -> Result<SyncManifest, String> {
        let mut id = [0; 16];
        OsEntropy.fill(&mut id).map_err(|e| e.to_string())?;
        let sync_id = SyncId(u128::from_be_bytes(id));
        // Everything, until it is known which files there are.
        self.grant(sync_id, replica, BTreeSet::new(), 0)?;
        let commit = reign.commit();
        let reader = reign.reader();
        let sealed = spawn_blocking(move || reader.sealed_files(commit)).await.map_err(|e| e.to_string())?;
        let sealed = sealed.map_err(|e| crate::chain(&e))?;
        let files: Vec<ManifestFile> = sealed.iter().map(described).collect();
        if files.len() > MANIFEST_FILES_MAX {
            let text = format!("{} data files, {MANIFEST_FILES_MAX} at most can be announced", files.len());
            return Err(format!("{text}; let the journal have larger ones (--journal-file-bytes)"));
        }
        self.grant(sync_id, replica, sealed.iter().map(|file| file.id).collect(), commit.file())?;
        let total_bytes = files.iter().map(|file| file.length).sum();
        info!(%replica, files = files.len(), bytes = total_bytes, "replica synchronises");
        let told = Told { total_bytes, ..Told::default() };
        self.lock().told.insert(sync_id, (replica.clone(), told));
        Ok(SyncManifest {
            epoch: reign.epoch,
            sync_id,
            files,
            stream_start: Location::new(commit.file(), 0).lsn(),
            commit,
            total_bytes,
            lease_ms: LEASE_MS,
            sessions_max: self.options.sessions,
        })
    }

    fn grant(
        &self,
        sync_id: SyncId,
        replica: &ReplicaId,
        files: BTreeSet<u32>,
        stream_file: u32,
    ) -> Result<(), String> {
        let now = self.now();
        let granted =
            self.lock().leases.grant(sync_id, replica.clone(), files, stream_file, now, LEASE_MS.into());
        granted.map_err(|e| e.to_string())
    }

    /// A replica is still at it.
    pub(crate) fn renew(&self, sync_id: SyncId, files_done: u32, bytes_done: u64) {
        let now = self.now();
        let mut state = self.lock();
        state.leases.renew(sync_id, now);
        if let Some((_, told)) = state.told.get_mut(&sync_id) {
            (told.files_done, told.bytes_done) = (files_done, bytes_done);
        }
    }

    /// It has given up.
    pub(crate) fn release(&self, sync_id: SyncId) {
        let mut state = self.lock();
        state.leases.release(sync_id);
        state.told.remove(&sync_id);
    }

    /// It streams.
    pub(crate) fn attached(&self, replica: &ReplicaId) {
        let mut state = self.lock();
        state.leases.release_all_of(replica);
        state.told.retain(|_, (other, _)| other != replica);
    }

    /// Serves one transfer connection.
    pub(crate) async fn serve(&self, connected: Connected, reign: Arc<Reign>) {
        let peer = connected.peer.replica.clone();
        let served = async {
            tokio::select! {
                served = self.requests(connected, &reign) => served,
                () = reign.ended() => Ok(()),
            }
        };
        match served.await {
            Ok(()) | Err(NetError::Closed) => debug!(replica = %peer, "transfer connection closed"),
            Err(problem) => info!(replica = %peer, %problem, "transfer connection lost"),
        }
    }

    async fn requests(&self, connected: Connected, reign: &Reign) -> Result<(), NetError> {
        let Connected { mut reader, mut writer, .. } = connected;
        loop {
            let request = match reader.next().await? {
                Frame::FileTransfer(request) => request,
                other => {
                    let text = format!("{} does not belong here", other.name());
                    writer.refuse(ErrorFrame::new(ErrorCode::Protocol, text)).await;
                    return Ok(());
                }
            };
            let is_known = self.lock().leases.covers(request.sync_id, request.id);
            let status = match request.kind {
                _ if request.epoch != reign.epoch || !is_known => TransferStatus::LeaseExpired,
                FileKind::Journal => TransferStatus::Ok,
                FileKind::ImportedIndex | FileKind::ImportedRedo => TransferStatus::UnknownFile,
            };
            let answer = FileTransferResponse {
                epoch: reign.epoch,
                request_id: request.request_id,
                status,
                file_length: 0,
                end_chain: 0,
            };
            writer.send(&Frame::FileTransferResponse(answer)).await?;
            if status == TransferStatus::Ok {
                self.range(&request, reign, &mut writer).await?;
            }
            writer.flush().await?;
        }
    }

    async fn range(
        &self,
        request: &FileTransfer,
        reign: &Reign,
        writer: &mut super::net::FrameWriter,
    ) -> Result<(), NetError> {
        let end = request.offset.saturating_add(request.length);
        let mut at = request.offset;
        while at < end {
            let length = (end - at).min(CHUNK_BYTES_MAX as u64);
            loop {
                let wait = self.lock().bucket.take(self.now(), length);
                match wait {
                    Ok(()) => break,
                    Err(ms) => tokio::time::sleep(Duration::from_millis(ms.unsigned_abs().max(1))).await,
                }
            }
            let (reader, id) = (reign.reader(), request.id);
            let read = spawn_blocking(move || read_chunk(&reader, id, at, length as usize)).await;
            let bytes = read.map_err(io::Error::other)?.map_err(io::Error::other)?;
            if bytes.len() as u64 != length {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the file is shorter than asked for",
                )
                .into());
            }
            at += length;
            let chunk = FileChunk::new(reign.epoch, request.request_id, at - length, bytes, at == end);
            writer.send(&Frame::FileChunk(chunk)).await?;
        }
        Ok(())
    }
}

fn read_chunk(reader: &JournalReader, id: u32, offset: u64, length: usize) -> Result<Bytes, String> {
    let mut buffer = BytesMut::zeroed(length);
    let mut have = 0;
    while have < length {
        let rest = buffer.get_mut(have..).unwrap_or_default();
        match reader.read_raw(id, offset + have as u64, rest).map_err(|e| crate::chain(&e))? {
            0 => break,
            read => have += read,
        }
    }
    buffer.truncate(have);
    Ok(buffer.freeze())
}

fn described(file: &SealedFile) -> ManifestFile {
    ManifestFile {
        kind: FileKind::Journal,
        id: file.id,
        length: file.length,
        first_epoch: file.first_epoch,
        start_chain: file.start_chain.0,
        end_chain: file.end_chain.0,
    }
}

/// The data files of a manifest, as the journal knows them.
pub(crate) fn sealed(manifest: &SyncManifest) -> Vec<SealedFile> {
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

/// How a replica's synchronisation is, for its status and its lease.
#[derive(Clone, Debug, Default)]
pub(crate) struct SinkProgress {
    pub(crate) active: bool,
    pub(crate) bytes_total: u64,
    pub(crate) bytes_done: u64,
    pub(crate) bytes_resumed: u64,
    pub(crate) files_done: u32,
    pub(crate) bytes_per_s: u64,
    pub(crate) eta_ms: Option<u64>,
    pub(crate) sessions: u32,
    pub(crate) retries: u32,
    pub(crate) last_error: Option<String>,
}

/// The replica's side.
pub(crate) struct BulkSink {
    files: Arc<dyn Files>,
    clock: Arc<dyn Clock>,
    reader: JournalReader,
    sessions: u32,
    progress: Mutex<SinkProgress>,
}

/// What all transfer connections of one synchronisation share.
struct Fetching {
    transfers: Mutex<Transfers>,
    log: Mutex<Log>,
    files: Arc<dyn Files>,
    clock: Arc<dyn Clock>,
    epoch: Epoch,
    sync_id: SyncId,
    changed: tokio::sync::Notify,
}

/// The resume log.
struct Log {
    resume: Resume,
    file: Arc<dyn File>,
    end: u64,
}

impl Log {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(bytes, self.end)?;
        self.file.sync_data()?;
        self.end += bytes.len() as u64;
        Ok(())
    }
}

fn incoming(key: FileKey) -> String {
    format!("{INCOMING_DIRECTORY}/{}", kahawai_journal::data_file_name(key.id))
}

impl BulkSink {
    pub(crate) fn new(
        files: Arc<dyn Files>,
        clock: Arc<dyn Clock>,
        reader: JournalReader,
        sessions: u32,
    ) -> Arc<Self> {
        Arc::new(Self { files, clock, reader, sessions, progress: Mutex::default() })
    }

    pub(crate) fn progress(&self) -> SinkProgress {
        unpoisoned(&self.progress).clone()
    }

    /// Fetches and verifies what the manifest names. When this returns, everything lies in `incoming`, durably.
    pub(crate) async fn fetch(
        self: Arc<Self>,
        manifest: SyncManifest,
        address: String,
        credentials: Credentials,
    ) -> Result<SyncManifest, String> {
        let preparing = Arc::clone(&self);
        let wanted = manifest.clone();
        let fetching =
            spawn_blocking(move || preparing.prepare(&wanted)).await.map_err(|e| e.to_string())??;
        let fetching = Arc::new(fetching);
        let sessions = self.sessions.min(manifest.sessions_max).max(1);
        let mut tasks = JoinSet::new();
        for session in 0..sessions {
            let (fetching, address, credentials) =
                (Arc::clone(&fetching), address.clone(), credentials.clone());
            tasks.spawn(fetching.run(session, address, credentials));
        }
        let mut said = tokio::time::interval(SAY);
        loop {
            tokio::select! {
                ended = tasks.join_next() => match ended {
                    None => break,
                    Some(Ok(Ok(()))) => {}
                    Some(Ok(Err(reason))) => return Err(reason),
                    Some(Err(failed)) => return Err(failed.to_string()),
                },
                () = fetching.changed.notified() => self.note(&fetching),
                _ = said.tick() => {
                    self.note(&fetching);
                    let progress = self.progress();
                    info!(
                        bytes = progress.bytes_done,
                        of = progress.bytes_total,
                        bytes_per_s = progress.bytes_per_s,
                        seconds_left = progress.eta_ms.map(|ms| ms / 1000),
                        sessions = progress.sessions,
                        "synchronising"
                    );
                }
            }
        }
        self.note(&fetching);
        let verifying = Arc::clone(&self);
        let wanted = manifest.clone();
        spawn_blocking(move || verifying.verify(&wanted, &fetching)).await.map_err(|e| e.to_string())??;
        let progress = self.progress();
        info!(bytes = progress.bytes_done, resumed = progress.bytes_resumed, "all files are here");
        Ok(manifest)
    }

    fn note(&self, fetching: &Fetching) {
        let now = boot_ms(&*self.clock);
        let found: Progress = unpoisoned(&fetching.transfers).progress(now);
        let mut progress = unpoisoned(&self.progress);
        *progress = SinkProgress {
            active: true,
            bytes_total: found.total_bytes,
            bytes_done: found.done_bytes,
            bytes_resumed: found.resumed_bytes,
            files_done: found.files_done,
            bytes_per_s: found.rate_bytes_per_s,
            eta_ms: found.eta_ms,
            sessions: found.sessions,
            retries: found.retries,
            last_error: progress.last_error.take(),
        };
    }

    fn prepare(&self, manifest: &SyncManifest) -> Result<Fetching, String> {
        let text = |e: io::Error| format!("{}: {e}", self.files.describe(INCOMING_DIRECTORY));
        self.files.create_directory(INCOMING_DIRECTORY).map_err(text)?;
        let held = self.reader.sealed_files(self.reader.durable_end()).map_err(|e| crate::chain(&e))?;
        let held: Vec<FileIdentity> = held.iter().map(|file| FileIdentity::from(&described(file))).collect();
        let is_new = !self.files.exists(RESUME_FILE).map_err(text)?;
        let file = self.files.open(RESUME_FILE, OpenMode::Write).map_err(text)?;
        let mut bytes = vec![0; usize::try_from(file.len().map_err(text)?).unwrap_or(0)];
        read_full_at(&*file, &mut bytes, 0).map_err(text)?;
        let (resume, valid) = Resume::decode(&bytes);
        let mut log = Log { resume, file, end: valid as u64 };
        if valid == 0 {
            log.append(&Resume::header()).map_err(text)?;
        }
        if is_new {
            self.files.sync_directory(INCOMING_DIRECTORY).map_err(text)?;
            self.files.sync_directory("replication").map_err(text)?;
        }
        let plan = plan(manifest, &held, &log.resume).map_err(|e| e.to_string())?;
        let now = boot_ms(&*self.clock);
        let options = TransfersOptions {
            sessions_max: self.sessions.min(manifest.sessions_max).max(1),
            ..TransfersOptions::default()
        };
        let transfers = Transfers::new(plan, options, now);
        let progress = transfers.progress(now);
        info!(
            bytes = progress.total_bytes,
            there = progress.resumed_bytes,
            files = manifest.files.len(),
            "synchronisation begins"
        );
        Ok(Fetching {
            transfers: Mutex::new(transfers),
            log: Mutex::new(log),
            files: Arc::clone(&self.files),
            clock: Arc::clone(&self.clock),
            epoch: manifest.epoch,
            sync_id: manifest.sync_id,
            changed: tokio::sync::Notify::new(),
        })
    }

    /// Whether what came is what was announced; what is not is fetched again next time.
    fn verify(&self, manifest: &SyncManifest, fetching: &Fetching) -> Result<(), String> {
        let complete: Vec<FileIdentity> = unpoisoned(&fetching.transfers).complete().collect();
        let mut bad = None;
        for file in sealed(manifest) {
            let Some(identity) = complete.iter().find(|identity| identity.key.id == file.id) else {
                continue;
            };
            let path = incoming(identity.key);
            if let Err(problem) = verify_file(&self.files, &path, &file) {
                warn!(file = file.id, %problem, "a received file is not what was announced");
                let mut out = BytesMut::new();
                let mut log = unpoisoned(&fetching.log);
                log.resume.forget(identity, &mut out);
                log.append(&out).map_err(|e| e.to_string())?;
                bad = Some(crate::chain(&problem));
            }
        }
        match bad {
            Some(problem) => Err(problem),
            None => self.files.sync_directory(INCOMING_DIRECTORY).map_err(|e| e.to_string()),
        }
    }
}

impl Fetching {
    fn now(&self) -> Millis {
        boot_ms(&*self.clock)
    }

    /// One transfer connection, made again after a failure, until nothing is left to ask for.
    async fn run(
        self: Arc<Self>,
        session: u32,
        address: String,
        credentials: Credentials,
    ) -> Result<(), String> {
        loop {
            let open_at = unpoisoned(&self.transfers).may_open(session);
            let Some(open_at) = open_at else {
                if unpoisoned(&self.transfers).is_complete() || self.is_shared_out() {
                    return Ok(());
                }
                self.changed.notified().await;
                continue;
            };
            let wait = open_at - self.now();
            if wait > 0 {
                tokio::time::sleep(Duration::from_millis(wait.unsigned_abs())).await;
            }
            match self.connection(session, &address, &credentials).await {
                Ok(()) => {}
                Err(Trouble::Again(reason)) => {
                    debug!(%reason, session, "transfer connection lost");
                    let mut jitter = [0; 8];
                    OsEntropy.fill(&mut jitter).map_err(|e| e.to_string())?;
                    let now = self.now();
                    unpoisoned(&self.transfers).failed(session, now, u64::from_be_bytes(jitter));
                }
                Err(Trouble::Over(reason)) => return Err(reason),
            }
        }
    }

    /// Nothing is left in the queue: others have the rest under way, and a failure of theirs is made good by themselves.
    fn is_shared_out(&self) -> bool {
        unpoisoned(&self.transfers).progress(self.now()).sessions > 0
    }

    async fn connection(
        &self,
        session: u32,
        address: &str,
        credentials: &Credentials,
    ) -> Result<(), Trouble> {
        let connected = dial(address, Role::Transfer, credentials).await?;
        let Connected { mut reader, mut writer, .. } = connected;
        loop {
            let now = self.now();
            let next = unpoisoned(&self.transfers).next(session, now);
            let Some(range) = next else { return Ok(()) };
            let request = FileTransfer {
                epoch: self.epoch,
                sync_id: self.sync_id,
                request_id: range.request_id,
                kind: range.key.kind,
                id: range.key.id,
                offset: range.offset,
                length: range.length,
            };
            writer.send(&Frame::FileTransfer(request)).await?;
            writer.flush().await?;
            self.receive(session, range, &mut reader).await?;
            self.changed.notify_waiters();
            self.changed.notify_one();
        }
    }

    async fn receive(
        &self,
        session: u32,
        range: Range,
        reader: &mut super::net::FrameReader,
    ) -> Result<(), Trouble> {
        let (files, key) = (Arc::clone(&self.files), range.key);
        let opened = spawn_blocking(move || open_incoming(&files, key)).await;
        let file = opened.map_err(Trouble::over)?.map_err(Trouble::over)?;
        let first = (range.offset / CHUNK_BYTES) as u32;
        let last = loop {
            let frame = tokio::time::timeout(SILENCE, reader.next());
            let frame = frame.await.map_err(|_| Trouble::Again("silence".into()))??;
            let chunk = match frame {
                Frame::FileTransferResponse(answer) => match answer.status {
                    TransferStatus::Ok => continue,
                    TransferStatus::Busy | TransferStatus::Failed => {
                        return Err(Trouble::Again(format!("{:?}", answer.status)));
                    }
                    status => return Err(Trouble::Over(format!("the primary says {status:?}"))),
                },
                Frame::FileChunk(chunk) => chunk,
                Frame::Error(error) => return Err(Trouble::Over(error.text)),
                other => return Err(Trouble::Over(format!("{} does not belong here", other.name()))),
            };
            let length = chunk.bytes.len() as u64;
            let placed = unpoisoned(&self.transfers)
                .arrived(session, chunk.request_id, chunk.offset, length)
                .map_err(Trouble::over)?;
            let target = Arc::clone(&file);
            let written = spawn_blocking(move || target.write_at(&chunk.bytes, chunk.offset)).await;
            written.map_err(Trouble::over)?.map_err(Trouble::over)?;
            if placed.ends_range {
                break placed.index + 1;
            }
        };
        let target = Arc::clone(&file);
        spawn_blocking(move || target.sync_data()).await.map_err(Trouble::over)?.map_err(Trouble::over)?;
        let now = self.now();
        let mut log = unpoisoned(&self.log);
        let mut out = BytesMut::new();
        unpoisoned(&self.transfers).flushed(now, key, first..last, &mut log.resume, &mut out);
        // A few bytes for sixteen mebibytes: not worth a thread.
        tokio::task::block_in_place(|| log.append(&out)).map_err(Trouble::over)
    }
}

fn open_incoming(files: &Arc<dyn Files>, key: FileKey) -> io::Result<Arc<dyn File>> {
    let name = incoming(key);
    let is_new = !files.exists(&name)?;
    let file = files.open(&name, OpenMode::Write)?;
    if is_new {
        // Before the log says that something is in it.
        files.sync_directory(INCOMING_DIRECTORY)?;
    }
    Ok(file)
}

/// Why a transfer connection ended early.
enum Trouble {
    /// Another one may do better.
    Again(String),
    /// The synchronisation has to begin again: with a new manifest, or not at all.
    Over(String),
}

impl Trouble {
    fn over(problem: impl std::fmt::Display) -> Self {
        Self::Over(problem.to_string())
    }
}

impl From<NetError> for Trouble {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Refused(error) => Self::Over(error.text),
            error => Self::Again(error.to_string()),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Again(error.to_string())
    }
}

/// Remembers what is about to be installed: a crash half way is finished with it.
pub(crate) fn keep_manifest(files: &Arc<dyn Files>, manifest: &SyncManifest) -> io::Result<()> {
    let mut out = BytesMut::new();
    Frame::SyncManifest(manifest.clone()).encode(&mut out);
    // All of it or none: a store that is being changed cannot be opened without.
    replace_file(files, MANIFEST_FILE, &out)
}

/// What was being installed when the process ended.
pub(crate) fn kept_manifest(files: &Arc<dyn Files>) -> io::Result<Option<SyncManifest>> {
    if !files.exists(MANIFEST_FILE)? {
        return Ok(None);
    }
    let file = files.open(MANIFEST_FILE, OpenMode::Read)?;
    let mut bytes = BytesMut::zeroed(usize::try_from(file.len()?).unwrap_or(0));
    read_full_at(&*file, &mut bytes, 0)?;
    let mut decoder = Decoder::default();
    decoder.authenticated();
    match decoder.decode(&mut bytes) {
        Ok(Some(Frame::SyncManifest(manifest))) => Ok(Some(manifest)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a manifest")),
    }
}

/// What was fetched is in place.
pub(crate) fn forget(files: &Arc<dyn Files>) -> io::Result<()> {
    for name in [RESUME_FILE, MANIFEST_FILE] {
        if files.exists(name)? {
            files.remove(name)?;
        }
    }
    files.sync_directory(INCOMING_DIRECTORY)
}
