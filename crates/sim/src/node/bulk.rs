//! Bulk synchronisation: what `node/src/cluster/bulk.rs` does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::BytesMut;
use kahawai_env::PageBuffer;
use kahawai_kdbr::{
    CHUNK_BYTES_MAX, ErrorCode, ErrorFrame, FileChunk, FileTransfer, FileTransferResponse, Frame,
    Role as Purpose, SyncId, SyncManifest, TransferStatus,
};
use kahawai_replication::sync::{CHUNK_BYTES, FileKey, Leases, Range, Transfers, TransfersOptions};
use kahawai_replication::{SinkEvent, SourceEvent};
use kahawai_shipping::{
    Arrivals, ChunkMemory, IncomingFile, Offer, ResumeLog, check, offered, prepare, read_chunk, settle,
};
use kahawai_store::IndexBuilder;
use kahawai_types::{Epoch, Millis, ReplicaId};

use super::copying::Over;
use super::{Change, MS, Process, Role};
use crate::ctx::{Ctx, node_at};
use crate::event::{ConnEvent, NodeEvent, RoleEvent};
use crate::net::{ConnId, Side};

/// A synchronisation that says nothing for so long is forgotten.
const LEASE_MS: u32 = 30_000;
/// Transfer connections of one synchronisation.
const SESSIONS: u32 = 2;
/// A transfer connection that is silent for so long is made again.
const SILENCE: u64 = 15_000 * MS;

/// One transfer connection.
struct Transfer {
    number: u32,
    range: Option<(Range, IncomingFile)>,
    heard: u64,
}

/// Files that a replica fetches.
pub(crate) struct Fetch {
    manifest: SyncManifest,
    target: usize,
    transfers: Transfers,
    log: ResumeLog,
    arrivals: Arc<Arrivals>,
    epoch: Epoch,
    conns: BTreeMap<ConnId, Transfer>,
    finished: BTreeSet<u32>,
    session: u32,
}

impl Fetch {
    pub(super) fn progress(&self, now: Millis) -> SinkEvent {
        let progress = self.transfers.progress(now);
        SinkEvent::SyncProgress {
            sync_id: self.manifest.sync_id,
            files_done: progress.files_done,
            bytes_done: progress.done_bytes,
        }
    }
}

impl Process {
    // The primary's side.

    /// May data files go?
    pub(super) fn may_collect(&mut self, ctx: &Ctx) -> bool {
        self.leases.expire(ctx.local_ms(self.index));
        !self.leases.is_pinned(u32::MAX)
    }

    pub(super) fn release_leases(&mut self, replica: &ReplicaId) {
        self.leases.release_all_of(replica);
    }

    pub(super) fn renew_lease(&mut self, now: Millis, sync_id: SyncId) {
        self.leases.renew(sync_id, now);
    }

    pub(super) fn release_lease(&mut self, sync_id: SyncId) {
        self.leases.release(sync_id);
    }

    pub(super) fn make_manifest(&mut self, ctx: &mut Ctx, conn: ConnId, replica: &ReplicaId) {
        let event = match self.manifest(ctx, replica) {
            Ok(manifest) => SourceEvent::Manifest(manifest),
            Err(problem) => {
                ctx.say(self.index, || format!("no synchronisation now: {problem}"));
                SourceEvent::Refuse(ErrorFrame::new(ErrorCode::Busy, problem))
            }
        };
        self.answer_source(ctx, conn, event);
    }

    fn manifest(&mut self, ctx: &mut Ctx, replica: &ReplicaId) -> Result<SyncManifest, String> {
        let sync_id = SyncId(u128::from(ctx.random.next_u64()));
        let now = ctx.local_ms(self.index);
        let grant = |leases: &mut Leases, files: BTreeSet<u32>, stream_file: u32| {
            let granted = leases.grant(sync_id, replica.clone(), files, stream_file, now, LEASE_MS.into());
            granted.map_err(|error| error.to_string())
        };
        grant(&mut self.leases, BTreeSet::new(), 0)?;
        let leading = self.leading().ok_or("no longer the primary")?;
        let (commit, epoch) = (leading.committed, leading.epoch);
        let reader = leading.store.reader();
        let (offer, imported) = offered(&self.files, &reader)?;
        let Some(Offer { files, stream_start }) = offer else {
            let leading = self.leading().ok_or("no longer the primary")?;
            leading.store.begin_file(imported).map_err(|error| error.to_string())?;
            self.journal_later(ctx);
            return Err("another data file is begun, so that there is one to copy".to_owned());
        };
        grant(&mut self.leases, files.iter().map(|file| file.id).collect(), stream_start.file())?;
        Ok(SyncManifest {
            epoch,
            sync_id,
            total_bytes: files.iter().map(|file| file.length).sum(),
            files,
            stream_start,
            commit,
            lease_ms: LEASE_MS,
            sessions_max: SESSIONS,
        })
    }

    pub(super) fn transfer_frame(&mut self, ctx: &mut Ctx, conn: ConnId, frame: Frame) {
        let Frame::FileTransfer(request) = frame else {
            let text = format!("{} does not belong here", frame.name());
            ctx.send(conn, Side::Acceptor, &Frame::Error(ErrorFrame::new(ErrorCode::Protocol, text)));
            return self.drop_conn(ctx, conn);
        };
        let is_known = self.leases.covers(request.sync_id, request.id);
        let Role::Leading(leading) = &self.role else { return self.drop_conn(ctx, conn) };
        let epoch = leading.epoch;
        let key = FileKey { kind: request.kind, id: request.id };
        let status = match request.epoch == epoch && is_known {
            true if key.exists() => TransferStatus::Ok,
            true => TransferStatus::UnknownFile,
            false => TransferStatus::LeaseExpired,
        };
        let answer = FileTransferResponse {
            epoch,
            request_id: request.request_id,
            status,
            file_length: 0,
            end_chain: 0,
        };
        let reader = leading.store.reader();
        ctx.send(conn, Side::Acceptor, &Frame::FileTransferResponse(answer));
        if status != TransferStatus::Ok {
            return;
        }
        let end = request.offset.saturating_add(request.length);
        let mut at = request.offset;
        let mut memory = ChunkMemory::default();
        while at < end {
            let length = (end - at).min(CHUNK_BYTES_MAX as u64);
            let bytes = match read_chunk(&self.files, &reader, key, at, length as usize, &mut memory) {
                Ok(bytes) if bytes.len() as u64 == length => bytes,
                _ => {
                    ctx.say(self.index, || format!("data file {} cannot be read", request.id));
                    return self.drop_conn(ctx, conn);
                }
            };
            at += length;
            let chunk = FileChunk::new(epoch, request.request_id, at - length, bytes, at == end);
            ctx.send(conn, Side::Acceptor, &Frame::FileChunk(chunk));
        }
    }

    // The replica's side.

    fn fetch(&mut self) -> Option<&mut Fetch> {
        self.sink()?.fetch.as_deref_mut()
    }

    pub(super) fn begin_fetch(&mut self, ctx: &mut Ctx, manifest: SyncManifest) {
        let sync_id = manifest.sync_id;
        match self.prepare_fetch(ctx, manifest) {
            Ok(fetch) => {
                let session = fetch.session;
                if let Some(sink) = self.sink() {
                    sink.fetch = Some(Box::new(fetch));
                }
                for number in 0..SESSIONS {
                    self.role_later(ctx, MS, RoleEvent::Fetch { session, number });
                }
            }
            Err(reason) => self.fetch_failed_later(ctx, sync_id, reason),
        }
    }

    fn fetch_failed_later(&mut self, ctx: &mut Ctx, sync_id: SyncId, reason: String) {
        ctx.say(self.index, || format!("synchronisation interrupted: {reason}"));
        let Role::Following(following) = &self.role else { return };
        let session = following.session_number;
        self.role_later(ctx, MS, RoleEvent::FetchFailed { session, sync_id: sync_id.0 });
    }

    fn prepare_fetch(&mut self, ctx: &mut Ctx, manifest: SyncManifest) -> Result<Fetch, String> {
        let primary = self.primary_to_follow().ok_or("nobody is to be followed")?;
        let target = node_at(&primary.address).ok_or("no address")?;
        let Role::Following(following) = &self.role else { return Err("no store".into()) };
        let session = following.session_number;
        let reader = following.follower.reader();
        let (plan, log) = prepare(&self.files, &reader, &manifest)?;
        let options = TransfersOptions {
            sessions_max: SESSIONS.min(manifest.sessions_max).max(1),
            ..TransfersOptions::default()
        };
        let arrivals = Arrivals::new(&plan);
        let transfers = Transfers::new(plan, options, ctx.local_ms(self.index));
        Ok(Fetch {
            epoch: manifest.epoch,
            manifest,
            target,
            transfers,
            log,
            arrivals,
            conns: BTreeMap::new(),
            finished: BTreeSet::new(),
            session,
        })
    }

    pub(super) fn drop_fetch(&mut self, ctx: &mut Ctx, fetch: Fetch) {
        for conn in fetch.conns.into_keys() {
            self.drop_conn(ctx, conn);
        }
    }

    /// A transfer session looks for work.
    pub(super) fn fetch_session(&mut self, ctx: &mut Ctx, session: u32, number: u32) {
        let now = ctx.local_ms(self.index);
        let Some(fetch) = self.fetch().filter(|fetch| fetch.session == session) else { return };
        if fetch.finished.contains(&number) || fetch.conns.values().any(|one| one.number == number) {
            return;
        }
        match fetch.transfers.may_open(number) {
            None => {
                let progress = fetch.transfers.progress(now);
                if fetch.transfers.is_complete() || progress.sessions > 0 {
                    fetch.finished.insert(number);
                    if fetch.finished.len() as u32 == SESSIONS {
                        self.fetched(ctx);
                    }
                } else {
                    self.role_later(ctx, 20 * MS, RoleEvent::Fetch { session, number });
                }
            }
            Some(at) if at > now => {
                let wait = (at - now).unsigned_abs() * MS;
                self.role_later(ctx, wait, RoleEvent::Fetch { session, number });
            }
            Some(_) => {
                let target = fetch.target;
                let conn = self.dial(ctx, target, Purpose::Transfer, false);
                let heard = ctx.now;
                if let Some(fetch) = self.fetch() {
                    fetch.conns.insert(conn, Transfer { number, range: None, heard });
                }
            }
        }
    }

    pub(super) fn fetch_connected(&mut self, ctx: &mut Ctx, conn: ConnId) {
        self.fetch_next(ctx, conn);
        self.tell_later(ctx, SILENCE, NodeEvent::Conn { conn, what: ConnEvent::Transfer });
    }

    fn fetch_next(&mut self, ctx: &mut Ctx, conn: ConnId) {
        let now = ctx.local_ms(self.index);
        let files = Arc::clone(&self.files);
        let Some(fetch) = self.fetch() else { return self.drop_conn(ctx, conn) };
        let Some(transfer) = fetch.conns.get_mut(&conn) else { return self.drop_conn(ctx, conn) };
        transfer.heard = ctx.now;
        let number = transfer.number;
        let session = fetch.session;
        let Some(range) = fetch.transfers.next(number, now) else {
            fetch.conns.remove(&conn);
            self.drop_conn(ctx, conn);
            return self.role_later(ctx, MS, RoleEvent::Fetch { session, number });
        };
        let request = FileTransfer {
            epoch: fetch.epoch,
            sync_id: fetch.manifest.sync_id,
            request_id: range.request_id,
            kind: range.key.kind,
            id: range.key.id,
            offset: range.offset,
            length: range.length,
        };
        match IncomingFile::open(&files, range.key, range.file_bytes) {
            Ok(file) => transfer.range = Some((range, file)),
            Err(problem) => return self.fetch_over(ctx, problem.to_string()),
        }
        ctx.send(conn, Side::Dialler, &Frame::FileTransfer(request));
    }

    /// The synchronisation has to begin again.
    fn fetch_over(&mut self, ctx: &mut Ctx, reason: String) {
        let Some(fetch) = self.sink().and_then(|sink| sink.fetch.take()) else { return };
        let sync_id = fetch.manifest.sync_id;
        self.drop_fetch(ctx, *fetch);
        self.fetch_failed_later(ctx, sync_id, reason);
    }

    pub(super) fn fetch_failed(&mut self, ctx: &mut Ctx, session: u32, sync_id: u128) {
        let Role::Following(following) = &self.role else { return };
        if following.session_number != session {
            return;
        }
        let Some(sink) = self.sink() else { return };
        let conn = sink.conn;
        let failed = SinkEvent::SyncFailed { sync_id: SyncId(sync_id), reason: "it failed".into() };
        self.sink_step(ctx, failed);
        if self.sink().is_some_and(|sink| sink.conn == conn) {
            self.drop_conn(ctx, conn);
            self.session_over(ctx, Over::Lost);
        }
    }

    /// A transfer connection is lost; another one may do better.
    pub(super) fn fetch_again(&mut self, ctx: &mut Ctx, conn: ConnId) {
        let now = ctx.local_ms(self.index);
        let jitter = ctx.random.next_u64();
        let Some(fetch) = self.fetch() else { return };
        let Some(transfer) = fetch.conns.remove(&conn) else { return };
        let (number, session) = (transfer.number, fetch.session);
        fetch.transfers.failed(number, now, jitter);
        self.role_later(ctx, MS, RoleEvent::Fetch { session, number });
    }

    pub(super) fn transfer_silent(&mut self, ctx: &mut Ctx, conn: ConnId) {
        let now = ctx.now;
        let Some(heard) = self.fetch().and_then(|fetch| fetch.conns.get(&conn)).map(|one| one.heard) else {
            return;
        };
        if now - heard >= SILENCE {
            self.drop_conn(ctx, conn);
            self.fetch_again(ctx, conn);
        } else {
            let what = ConnEvent::Transfer;
            self.tell_later(ctx, SILENCE - (now - heard), NodeEvent::Conn { conn, what });
        }
    }

    pub(super) fn fetch_frame(&mut self, ctx: &mut Ctx, conn: ConnId, frame: Frame) {
        let now = ctx.local_ms(self.index);
        let Some(fetch) = self.fetch() else { return self.drop_conn(ctx, conn) };
        let Some(transfer) = fetch.conns.get_mut(&conn) else { return self.drop_conn(ctx, conn) };
        transfer.heard = ctx.now;
        let number = transfer.number;
        let chunk = match frame {
            Frame::FileTransferResponse(answer) => match answer.status {
                TransferStatus::Ok => return,
                TransferStatus::Busy | TransferStatus::Failed => {
                    self.drop_conn(ctx, conn);
                    return self.fetch_again(ctx, conn);
                }
                status => return self.fetch_over(ctx, format!("the primary says {status:?}")),
            },
            Frame::FileChunk(chunk) => chunk,
            Frame::Error(error) => return self.fetch_over(ctx, error.text),
            other => return self.fetch_over(ctx, format!("{} does not belong here", other.name())),
        };
        let Some((range, file)) = transfer.range.clone() else { return };
        let length = chunk.bytes.len() as u64;
        let placed = match fetch.transfers.arrived(number, chunk.request_id, chunk.offset, length) {
            Ok(placed) => placed,
            Err(problem) => return self.fetch_over(ctx, problem.to_string()),
        };
        fetch.arrivals.came(range.key, placed.index, &chunk.bytes);
        if let Err(problem) = file.write(&chunk.bytes, chunk.offset, &mut PageBuffer::default()) {
            return self.fetch_over(ctx, problem.to_string());
        }
        if !placed.ends_range {
            return;
        }
        if let Err(problem) = file.flush() {
            return self.fetch_over(ctx, problem.to_string());
        }
        let first = (range.offset / CHUNK_BYTES) as u32;
        fetch.arrivals.flushed(range.key, first..placed.index + 1);
        let mut out = BytesMut::new();
        fetch.transfers.flushed(now, range.key, first..placed.index + 1, &mut fetch.log.resume, &mut out);
        if let Err(problem) = fetch.log.append(&out) {
            return self.fetch_over(ctx, problem.to_string());
        }
        self.fetch_next(ctx, conn);
    }

    /// Everything has come: is it what was announced?
    fn fetched(&mut self, ctx: &mut Ctx) {
        let files = Arc::clone(&self.files);
        let Some(fetch) = self.fetch() else { return };
        let mut builder = IndexBuilder::new(fetch.manifest.commit);
        fetch.arrivals.end();
        let checked = check(&files, &fetch.manifest, &fetch.arrivals, &mut builder);
        let settled =
            checked.and_then(|checked| settle(&files, &fetch.manifest, checked, builder, &mut fetch.log));
        if let Err(problem) = settled {
            return self.fetch_over(ctx, problem);
        }
        let Some(sink) = self.sink() else { return };
        let epochs = std::mem::take(&mut sink.epochs);
        let conn = sink.conn;
        let Some(fetch) = sink.fetch.take() else { return };
        let manifest = fetch.manifest;
        let leave =
            SinkEvent::Leave { reason: "the files are complete".into(), reconnect_after_ms: Some(1_000) };
        self.sink_quietly(ctx, leave);
        self.drop_conn(ctx, conn);
        self.session_over(ctx, Over::Reopen(Change::Install(Box::new(manifest), epochs)));
    }
}
