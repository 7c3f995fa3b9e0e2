//! Bulk synchronisation: sealed files over several connections, resumable after anything.
//!
//! ```text
//! primary  BulkSource: lease (nothing is collected), manifest, ranges of sealed files
//! replica  BulkSink:   plan, N transfer connections -> replication/incoming/db-N.log, replication/incoming/resume
//!          meanwhile:  check what comes, in order, and make its index -> replication/incoming/index.redb
//!          then, on a closed store: install, and the journal is the primary's up to the start of the live stream
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::BytesMut;
use kahawai_env::{Clock, Entropy, Files, OsEntropy, PageBuffer};
use kahawai_journal::JournalReader;
use kahawai_kdbr::{
    CHUNK_BYTES_MAX, ErrorCode, ErrorFrame, FileChunk, FileKind, FileTransfer, FileTransferResponse, Frame,
    MANIFEST_FILES_MAX, RepairRequest, RepairResponse, Role, SyncId, SyncManifest, TransferStatus,
};
use kahawai_replication::sync::{
    CHUNK_BYTES, FileKey, Leases, Progress, Range, TokenBucket, Transfers, TransfersOptions,
};
use kahawai_shipping::{
    Arrivals, ChunkMemory, IncomingFile, Offer, ResumeLog, asked_for, check, offered, prepare, read_chunk,
    settle,
};
use kahawai_store::IndexBuilder;
use kahawai_types::{Epoch, Millis, ReplicaId};
use tokio::task::{JoinSet, spawn_blocking};
use tracing::{debug, info, warn};

use super::net::{Connected, Credentials, FrameWriter, NetError, dial};
use super::reign::{Reign, boot_ms};

use crate::core::unpoisoned;

/// A synchronisation that says nothing for so long is forgotten.
const LEASE_MS: u32 = 30_000;
/// Room that a bandwidth limit lets through at once.
const BURST_BYTES: u64 = 1 << 20;
/// Over so much time the primary measures how fast a replica copies.
const PACE_MS: Millis = 10_000;
/// How often progress is said.
const SAY: Duration = Duration::from_secs(5);
/// A transfer connection that is silent for so long is given up.
pub(super) const SILENCE: Duration = Duration::from_secs(15);

/// How operators want it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BulkOptions {
    /// Transfer connections of one replica.
    pub(crate) sessions: u32,
    /// Bytes per second that this node sends to all; 0 = no limit.
    pub(crate) bytes_per_s: u64,
}

/// How the synchronisation of one replica is, as far as the primary knows.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Told {
    pub(crate) total_bytes: u64,
    pub(crate) bytes_done: u64,
    /// Of late.
    pub(crate) bytes_per_s: u64,
    /// `None` while nothing comes.
    pub(crate) eta_ms: Option<u64>,
    /// Transfer connections.
    pub(crate) sessions: u32,
}

/// What a replica has said of a synchronisation with each lease.
#[derive(Debug)]
struct Copy {
    replica: ReplicaId,
    total_bytes: u64,
    /// When it had how much: of the last seconds, with the newest.
    had: VecDeque<(Millis, u64)>,
}

impl Copy {
    fn new(replica: ReplicaId, total_bytes: u64) -> Self {
        Self { replica, total_bytes, had: VecDeque::new() }
    }

    fn renew(&mut self, now: Millis, bytes_done: u64) {
        let has_first = self.had.len() > 1;
        match self.had.back_mut() {
            // One for each second is enough, and the newest.
            Some((at, bytes)) if has_first && now.div_euclid(1000) == at.div_euclid(1000) => {
                (*at, *bytes) = (now, bytes_done);
            }
            _ => self.had.push_back((now, bytes_done)),
        }
        while self.had.get(1).is_some_and(|(at, _)| now - at >= PACE_MS) {
            self.had.pop_front();
        }
    }

    fn told(&self, now: Millis, sessions: u32) -> Told {
        let (Some(first), Some(last)) = (self.had.front(), self.had.back()) else {
            return Told { total_bytes: self.total_bytes, sessions, ..Told::default() };
        };
        let (took_ms, came) = ((now - first.0).max(1).unsigned_abs(), last.1.saturating_sub(first.1));
        let bytes_per_s = came.saturating_mul(1000) / took_ms;
        let rest = self.total_bytes.saturating_sub(last.1);
        Told {
            total_bytes: self.total_bytes,
            bytes_done: last.1,
            bytes_per_s,
            eta_ms: rest.saturating_mul(1000).checked_div(bytes_per_s),
            sessions,
        }
    }
}

struct SourceState {
    leases: Leases,
    copies: BTreeMap<SyncId, Copy>,
    /// Transfer connections that are open.
    sessions: BTreeMap<ReplicaId, u32>,
    bucket: TokenBucket,
}

/// The primary's side.
pub(crate) struct BulkSource {
    /// The data directory.
    pub(super) files: Arc<dyn Files>,
    options: BulkOptions,
    clock: Arc<dyn Clock>,
    state: Mutex<SourceState>,
}

impl BulkSource {
    pub(crate) fn new(files: Arc<dyn Files>, options: BulkOptions, clock: Arc<dyn Clock>) -> Arc<Self> {
        let bucket = TokenBucket::new(options.bytes_per_s, BURST_BYTES, boot_ms(&*clock));
        let state =
            SourceState { leases: Leases::new(), copies: BTreeMap::new(), sessions: BTreeMap::new(), bucket };
        Arc::new(Self { files, options, clock, state: Mutex::new(state) })
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
            state.copies.remove(&sync_id);
        }
        // A lease keeps everything from its stream's start on.
        !state.leases.is_pinned(u32::MAX)
    }

    /// How the synchronisations of replicas are.
    pub(crate) fn told(&self) -> Vec<(ReplicaId, Told)> {
        let (now, state) = (self.now(), self.lock());
        let told = state.copies.values().map(|copy| {
            let sessions = state.sessions.get(&copy.replica).copied().unwrap_or(0);
            (copy.replica.clone(), copy.told(now, sessions))
        });
        told.collect()
    }

    /// The files that a replica needs, kept for it from now on.
    pub(crate) async fn manifest(&self, reign: &Reign, replica: &ReplicaId) -> Result<SyncManifest, String> {
        let mut id = [0; 16];
        OsEntropy.fill(&mut id).map_err(|e| e.to_string())?;
        let sync_id = SyncId(u128::from_be_bytes(id));
        // Everything, until it is known which files there are.
        self.grant(sync_id, replica, BTreeSet::new(), 0)?;
        let commit = reign.commit();
        let (directory, reader) = (Arc::clone(&self.files), reign.reader());
        let reading = spawn_blocking(move || offered(&directory, &reader));
        let (offer, imported) = reading.await.map_err(|e| e.to_string())??;
        let Some(Offer { files, stream_start }) = offer else {
            let begun = reign.shared.with(|core| {
                let begun = core.store.begin_file(imported);
                core.check(begun)
            });
            return Err(match begun {
                Some(()) => "another data file is begun, so that there is one to copy".to_owned(),
                None => "storage failed".to_owned(),
            });
        };
        if files.len() > MANIFEST_FILES_MAX {
            let text = format!("{} data files, {MANIFEST_FILES_MAX} at most can be announced", files.len());
            return Err(format!("{text}; let the journal have larger ones (--journal-file-bytes)"));
        }
        self.grant(sync_id, replica, files.iter().map(|file| file.id).collect(), stream_start.file())?;
        let total_bytes = files.iter().map(|file| file.length).sum();
        info!(%replica, files = files.len(), bytes = total_bytes, "replica synchronises");
        let mut state = self.lock();
        // One that it began before is over; its lease ends by itself.
        state.copies.retain(|_, copy| copy.replica != *replica);
        state.copies.insert(sync_id, Copy::new(replica.clone(), total_bytes));
        drop(state);
        Ok(SyncManifest {
            epoch: reign.epoch,
            sync_id,
            files,
            stream_start,
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
    pub(crate) fn renew(&self, sync_id: SyncId, bytes_done: u64) {
        let now = self.now();
        let mut state = self.lock();
        state.leases.renew(sync_id, now);
        if let Some(copy) = state.copies.get_mut(&sync_id) {
            copy.renew(now, bytes_done);
        }
    }

    /// It has given up.
    pub(crate) fn release(&self, sync_id: SyncId) {
        let mut state = self.lock();
        state.leases.release(sync_id);
        state.copies.remove(&sync_id);
    }

    /// It streams.
    pub(crate) fn attached(&self, replica: &ReplicaId) {
        let mut state = self.lock();
        state.leases.release_all_of(replica);
        state.copies.retain(|_, copy| copy.replica != *replica);
    }

    /// Serves one transfer connection.
    pub(crate) async fn serve(&self, connected: Connected, reign: Arc<Reign>) {
        let peer = connected.peer.replica.clone();
        let _counted = Counted::new(self, peer.clone());
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
        let mut memory = ChunkMemory::default();
        loop {
            let request = match reader.next().await? {
                Frame::FileTransfer(request) => request,
                Frame::RepairRequest(request) => {
                    self.repair(&request, reign.reader(), &mut writer, &mut memory).await?;
                    continue;
                }
                other => {
                    let text = format!("{} does not belong here", other.name());
                    writer.refuse(ErrorFrame::new(ErrorCode::Protocol, text)).await;
                    return Ok(());
                }
            };
            let is_known = self.lock().leases.covers(request.sync_id, request.id);
            let key = FileKey { kind: request.kind, id: request.id };
            let status = match request.epoch == reign.epoch && is_known {
                true if key.exists() => TransferStatus::Ok,
                true => TransferStatus::UnknownFile,
                false => TransferStatus::LeaseExpired,
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
                let wanted = Wanted {
                    epoch: reign.epoch,
                    request_id: request.request_id,
                    key,
                    offset: request.offset,
                    length: request.length,
                };
                self.range(wanted, &reign.reader(), &mut writer, &mut memory).await?;
            }
            writer.flush().await?;
        }
    }

    /// Serves a connection to a node that does not lead: who has a damaged data file may have ours.
    pub(crate) async fn serve_repairs(&self, connected: Connected, journal: JournalReader) {
        let Connected { mut reader, mut writer, peer, .. } = connected;
        let mut memory = ChunkMemory::default();
        let served = async {
            loop {
                match reader.next().await? {
                    Frame::RepairRequest(request) => {
                        self.repair(&request, journal.clone(), &mut writer, &mut memory).await?;
                    }
                    _ => {
                        let error = ErrorFrame::new(ErrorCode::NotMaster, "this node does not lead");
                        writer.refuse(error).await;
                        return Ok(());
                    }
                }
            }
        };
        match served.await {
            Ok(()) | Err(NetError::Closed) => {}
            Err(problem) => info!(replica = %peer.replica, %problem, "transfer connection lost"),
        }
    }

    async fn repair(
        &self,
        request: &RepairRequest,
        reader: JournalReader,
        writer: &mut FrameWriter,
        memory: &mut ChunkMemory,
    ) -> Result<(), NetError> {
        let (asked, ours) = (request.clone(), reader.clone());
        let found = spawn_blocking(move || asked_for(&ours, &asked)).await.map_err(io::Error::other)?;
        let (epoch, request_id) = (request.epoch, request.request_id);
        let mut response = RepairResponse {
            epoch,
            request_id,
            status: TransferStatus::Ok,
            length: 0,
            first_epoch: Epoch(0),
        };
        match &found {
            Ok(file) => (response.length, response.first_epoch) = (file.length, file.first_epoch),
            Err(status) => response.status = *status,
        }
        writer.send(&Frame::RepairResponse(response)).await?;
        if let Ok(file) = found {
            let key = FileKey { kind: FileKind::Journal, id: file.id };
            let wanted = Wanted { epoch, request_id, key, offset: 0, length: file.length };
            self.range(wanted, &reader, writer, memory).await?;
        }
        Ok(writer.flush().await?)
    }

    async fn range(
        &self,
        wanted: Wanted,
        reader: &JournalReader,
        writer: &mut FrameWriter,
        memory: &mut ChunkMemory,
    ) -> Result<(), NetError> {
        let Wanted { epoch, request_id, key, offset, length } = wanted;
        let end = offset.saturating_add(length);
        let mut at = offset;
        while at < end {
            let length = (end - at).min(CHUNK_BYTES_MAX as u64);
            loop {
                let wait = self.lock().bucket.take(self.now(), length);
                match wait {
                    Ok(()) => break,
                    Err(ms) => tokio::time::sleep(Duration::from_millis(ms.unsigned_abs().max(1))).await,
                }
            }
            let (files, reader) = (Arc::clone(&self.files), reader.clone());
            let mut taken = std::mem::take(memory);
            let read = spawn_blocking(move || {
                (read_chunk(&files, &reader, key, at, length as usize, &mut taken), taken)
            });
            let (read, back) = read.await.map_err(io::Error::other)?;
            *memory = back;
            let bytes = read.map_err(io::Error::other)?;
            if bytes.len() as u64 != length {
                let text = "the file is shorter than asked for";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text).into());
            }
            at += length;
            let frame = Frame::FileChunk(FileChunk::new(epoch, request_id, at - length, bytes, at == end));
            writer.send(&frame).await?;
            if let Frame::FileChunk(chunk) = frame {
                memory.give_back(chunk.bytes);
            }
        }
        Ok(())
    }
}

/// A part of a file that is sent.
struct Wanted {
    epoch: Epoch,
    request_id: u64,
    key: FileKey,
    offset: u64,
    length: u64,
}

/// Counts a transfer connection for as long as it lives.
struct Counted<'a>(&'a BulkSource, ReplicaId);

impl<'a> Counted<'a> {
    fn new(source: &'a BulkSource, replica: ReplicaId) -> Self {
        *source.lock().sessions.entry(replica.clone()).or_default() += 1;
        Self(source, replica)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if let Some(count) = state.sessions.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                state.sessions.remove(&self.1);
            }
        }
    }
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
    /// One at a time works with what is received: who is told to end may take a moment.
    receiving: Arc<Mutex<()>>,
}

/// What all transfer connections of one synchronisation share.
struct Fetching {
    transfers: Mutex<Transfers>,
    log: Mutex<ResumeLog>,
    arrivals: Arc<Arrivals>,
    files: Arc<dyn Files>,
    clock: Arc<dyn Clock>,
    epoch: Epoch,
    sync_id: SyncId,
    changed: tokio::sync::Notify,
}

impl BulkSink {
    pub(crate) fn new(
        files: Arc<dyn Files>,
        clock: Arc<dyn Clock>,
        reader: JournalReader,
        sessions: u32,
        receiving: Arc<Mutex<()>>,
    ) -> Arc<Self> {
        Arc::new(Self { files, clock, reader, sessions, progress: Mutex::default(), receiving })
    }

    pub(crate) fn progress(&self) -> SinkProgress {
        unpoisoned(&self.progress).clone()
    }

    /// Fetches and checks what the manifest names. When this returns, everything lies in `incoming`, durably, with its index.
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
        let _ending = Ending(Arc::clone(&fetching.arrivals));
        let (checking, arrivals, wanted) =
            (Arc::clone(&self), Arc::clone(&fetching.arrivals), manifest.clone());
        let checking = spawn_blocking(move || {
            let _alone = unpoisoned(&checking.receiving);
            let mut builder = IndexBuilder::new(wanted.commit);
            check(&checking.files, &wanted, &arrivals, &mut builder).map(|checked| (checked, builder))
        });
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
        fetching.arrivals.end();
        let (checked, builder) = checking.await.map_err(|e| e.to_string())??;
        let (settling, announced) = (Arc::clone(&self), manifest.clone());
        let settled = spawn_blocking(move || {
            let _alone = unpoisoned(&settling.receiving);
            settle(&settling.files, &announced, checked, builder, &mut unpoisoned(&fetching.log))
        });
        settled.await.map_err(|e| e.to_string())??;
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
        let _alone = unpoisoned(&self.receiving);
        let (plan, log) = prepare(&self.files, &self.reader, manifest)?;
        let arrivals = Arrivals::new(&plan);
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
            arrivals,
            files: Arc::clone(&self.files),
            clock: Arc::clone(&self.clock),
            epoch: manifest.epoch,
            sync_id: manifest.sync_id,
            changed: tokio::sync::Notify::new(),
        })
    }
}

/// Who checks what comes ends with the synchronisation.
struct Ending(Arc<Arrivals>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
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
        let mut memory = PageBuffer::default();
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
            self.receive(session, range, &mut reader, &mut memory).await?;
            self.changed.notify_waiters();
            self.changed.notify_one();
        }
    }

    async fn receive(
        &self,
        session: u32,
        range: Range,
        reader: &mut super::net::FrameReader,
        memory: &mut PageBuffer,
    ) -> Result<(), Trouble> {
        let (files, key) = (Arc::clone(&self.files), range.key);
        let opened = spawn_blocking(move || IncomingFile::open(&files, key, range.file_bytes)).await;
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
            self.arrivals.came(key, placed.index, &chunk.bytes);
            write_chunk(&file, chunk, memory).await.map_err(Trouble::over)?;
            if placed.ends_range {
                break placed.index + 1;
            }
        };
        spawn_blocking(move || file.flush()).await.map_err(Trouble::over)?.map_err(Trouble::over)?;
        self.arrivals.flushed(key, first..last);
        let now = self.now();
        let mut log = unpoisoned(&self.log);
        let mut out = BytesMut::new();
        unpoisoned(&self.transfers).flushed(now, key, first..last, &mut log.resume, &mut out);
        // A few bytes for eight mebibytes: not worth a thread.
        tokio::task::block_in_place(|| log.append(&out)).map_err(Trouble::over)
    }
}

/// Writes what has come where it belongs.
pub(super) async fn write_chunk(
    file: &IncomingFile,
    chunk: FileChunk,
    memory: &mut PageBuffer,
) -> io::Result<()> {
    let (file, mut taken) = (file.clone(), std::mem::take(memory));
    let written = spawn_blocking(move || (file.write(&chunk.bytes, chunk.offset, &mut taken), taken));
    let (written, back) = written.await.map_err(io::Error::other)?;
    *memory = back;
    written
}

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

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn the_pace_of_a_copy_is_that_of_the_last_seconds() {
        let replica = ReplicaId { node: kahawai_types::NodeId("a".into()), store: kahawai_types::StoreId(1) };
        let mut copy = Copy::new(replica, 1_000_000);
        assert_eq!((copy.told(5, 2).bytes_done, copy.told(5, 2).sessions), (0, 2));
        // Half of it was there; then ten times a second 1000 bytes.
        for tick in 0..300 {
            copy.renew(tick * 100, 500_000 + tick as u64 * 1000);
            assert!(copy.had.len() <= 13, "{:?}", copy.had);
        }
        let told = copy.told(29_900, 4);
        assert_eq!((told.bytes_done, told.total_bytes), (799_000, 1_000_000));
        assert!((9_900..=10_100).contains(&told.bytes_per_s), "{told:?}");
        assert!((19_000..=21_000).contains(&told.eta_ms.expect("it comes")), "{told:?}");
        // The replica still speaks, and nothing comes any more.
        for tick in 300..500 {
            copy.renew(tick * 100, 799_000);
        }
        let told = copy.told(50_000, 4);
        assert_eq!((told.bytes_per_s, told.eta_ms), (0, None));
    }
}
