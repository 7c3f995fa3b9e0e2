use std::collections::{BTreeMap, VecDeque};
use std::ops::Range as Chunks;

use bytes::BytesMut;
use kahawai_kdbr::SyncId;
use kahawai_types::Millis;

use super::{CHUNK_BYTES, ChunkMap, FileIdentity, FileKey, Plan, Resume};

/// Seconds over which the rate is measured.
const RATE_SECONDS: i64 = 8;

/// How files are fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransfersOptions {
    /// Chunks in one request.
    pub range_chunks_max: u32,
    /// Connections at one time.
    pub sessions_max: u32,
    /// A connection that failed is opened again after this time, which doubles each time.
    pub retry_ms_min: Millis,
    /// But never later than that.
    pub retry_ms_max: Millis,
}

impl Default for TransfersOptions {
    fn default() -> Self {
        Self { range_chunks_max: 8, sessions_max: 4, retry_ms_min: 250, retry_ms_max: 30_000 }
    }
}

/// A request: part of a file, whole chunks but for the end of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// Comes back with the chunks.
    pub request_id: u64,
    /// Of which file.
    pub key: FileKey,
    /// From here on.
    pub offset: u64,
    /// So many bytes.
    pub length: u64,
    /// Of the whole file.
    pub file_bytes: u64,
}

/// A chunk that belongs where the peer says: write it there, and after the flush call [`Transfers::flushed`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Of which file.
    pub key: FileKey,
    /// Its number in the file.
    pub index: u32,
    /// Nothing more comes for this request: the session may ask for the next range.
    pub ends_range: bool,
}

/// What a peer sent that was not asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransferError {
    /// An answer to another request, or to none.
    #[error("request {0} is not under way on this connection")]
    UnknownRequest(u64),
    /// Chunks come in order, and whole.
    #[error("{length} bytes at {offset} came instead of {wanted_length} at {wanted_offset}")]
    OutOfPlace {
        /// Where in the file.
        offset: u64,
        /// How many.
        length: u64,
        /// Where the next chunk belongs.
        wanted_offset: u64,
        /// How long it has to be.
        wanted_length: u64,
    },
}

/// How far a bulk synchronisation is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Length of all files in the manifest.
    pub total_bytes: u64,
    /// What is there of them: kept, fetched earlier, fetched now.
    pub done_bytes: u64,
    /// What was there when it began.
    pub resumed_bytes: u64,
    /// Files to fetch.
    pub files: u32,
    /// Files that are complete.
    pub files_done: u32,
    /// Bytes per second, of late.
    pub rate_bytes_per_s: u64,
    /// How long it will take at this rate; `None` if nothing comes.
    pub eta_ms: Option<u64>,
    /// Connections that have a request under way.
    pub sessions: u32,
    /// Connections that failed.
    pub retries: u32,
}

#[derive(Debug)]
struct File {
    identity: FileIdentity,
    done: ChunkMap,
}

/// A request that is under way.
#[derive(Clone, Debug)]
struct Request {
    id: u64,
    key: FileKey,
    all: Chunks<u32>,
    /// Comes next.
    next: u32,
}

#[derive(Debug, Default)]
struct Session {
    request: Option<Request>,
    failures: u32,
    not_before: Millis,
}

/// The work of a bulk synchronisation, shared out to several connections.
///
/// Whoever is free takes the next range; what a broken connection has not flushed goes back to the front of the queue.
#[derive(Debug)]
pub struct Transfers {
    sync_id: SyncId,
    options: TransfersOptions,
    files: BTreeMap<FileKey, File>,
    queue: VecDeque<(FileKey, Chunks<u32>)>,
    sessions: BTreeMap<u32, Session>,
    requests: u64,
    retries: u32,
    kept_bytes: u64,
    total_bytes: u64,
    resumed_bytes: u64,
    began: Millis,
    /// Bytes in each of the last seconds, with its number.
    meter: [(i64, u64); RATE_SECONDS as usize],
}

impl Transfers {
    /// Begins with what the plan lacks.
    pub fn new(plan: Plan, options: TransfersOptions, now: Millis) -> Self {
        let mut files = BTreeMap::new();
        let mut queue = VecDeque::new();
        let mut resumed_bytes = plan.kept_bytes;
        for fetch in plan.fetch {
            let identity = FileIdentity::from(&fetch.file);
            resumed_bytes += fetch.done.bytes();
            let missing = fetch.done.missing(options.range_chunks_max.max(1));
            queue.extend(missing.into_iter().map(|chunks| (identity.key, chunks)));
            files.insert(identity.key, File { identity, done: fetch.done });
        }
        Self {
            sync_id: plan.sync_id,
            options,
            files,
            queue,
            sessions: BTreeMap::new(),
            requests: 0,
            retries: 0,
            kept_bytes: plan.kept_bytes,
            total_bytes: plan.total_bytes,
            resumed_bytes,
            began: now,
            meter: [(0, 0); RATE_SECONDS as usize],
        }
    }

    /// Which synchronisation this is.
    pub fn sync_id(&self) -> SyncId {
        self.sync_id
    }

    /// Files that were complete from the start, or became so, and are not yet known to be good.
    pub fn complete(&self) -> impl Iterator<Item = FileIdentity> {
        self.files.values().filter(|file| file.done.is_complete()).map(|file| file.identity)
    }

    /// Whether every file is complete.
    pub fn is_complete(&self) -> bool {
        self.files.values().all(|file| file.done.is_complete())
    }

    /// When this connection may be opened; `None`: there is nothing to do for it now.
    pub fn may_open(&self, session: u32) -> Option<Millis> {
        let wanted = session < self.options.sessions_max && !self.queue.is_empty();
        wanted.then(|| self.sessions.get(&session).map_or(self.began, |session| session.not_before))
    }

    /// What this connection asks for next; `None` if nothing is left to ask for, or its last request is under way. Others may
    /// fail, so an idle connection asks again from time to time until [`Self::is_complete`].
    pub fn next(&mut self, session: u32, now: Millis) -> Option<Range> {
        if session >= self.options.sessions_max {
            return None;
        }
        let session = self.sessions.entry(session).or_default();
        if session.request.is_some() || now < session.not_before {
            return None;
        }
        let (key, chunks) = self.queue.pop_front()?;
        let file_bytes = self.files.get(&key)?.identity.length;
        self.requests += 1;
        let offset = u64::from(chunks.start) * CHUNK_BYTES;
        let end = (u64::from(chunks.end) * CHUNK_BYTES).min(file_bytes);
        session.request = Some(Request { id: self.requests, key, next: chunks.start, all: chunks });
        Some(Range { request_id: self.requests, key, offset, length: end - offset, file_bytes })
    }

    /// A chunk has come. After an error the connection is of no use: close it, and call [`Self::failed`].
    pub fn arrived(
        &mut self,
        session: u32,
        request_id: u64,
        offset: u64,
        length: u64,
    ) -> Result<Chunk, TransferError> {
        let unknown = TransferError::UnknownRequest(request_id);
        let session = self.sessions.get_mut(&session).ok_or(unknown)?;
        let request = session.request.as_mut().filter(|request| request.id == request_id).ok_or(unknown)?;
        let file = self.files.get(&request.key).ok_or(unknown)?;
        let wanted_offset = u64::from(request.next) * CHUNK_BYTES;
        let wanted_length = CHUNK_BYTES.min(file.identity.length.saturating_sub(wanted_offset));
        if (offset, length) != (wanted_offset, wanted_length) {
            return Err(TransferError::OutOfPlace { offset, length, wanted_offset, wanted_length });
        }
        let (key, index) = (request.key, request.next);
        request.next += 1;
        let ends_range = request.next >= request.all.end;
        if ends_range {
            session.request = None;
            session.failures = 0;
        }
        Ok(Chunk { key, index, ends_range })
    }

    /// These chunks are flushed. Appends to the resume log's `out`; says whether the file is complete now: check it and install it,
    /// or [`Self::reject`] it.
    pub fn flushed(
        &mut self,
        now: Millis,
        key: FileKey,
        chunks: Chunks<u32>,
        resume: &mut Resume,
        out: &mut BytesMut,
    ) -> bool {
        let Some(file) = self.files.get_mut(&key) else {
            return false;
        };
        let before = file.done.bytes();
        file.done.add(chunks.clone());
        resume.add(&file.identity, chunks, out);
        let bytes = file.done.bytes() - before;
        let complete = bytes > 0 && file.done.is_complete();
        self.measure(now, bytes);
        complete
    }

    /// The connection broke, or said something wrong: what is not flushed of its range goes to others. It may be opened again at the time
    /// that comes back; `jitter` is a random number.
    pub fn failed(&mut self, session: u32, now: Millis, jitter: u64) -> Millis {
        self.retries = self.retries.saturating_add(1);
        let TransfersOptions { retry_ms_min, retry_ms_max, .. } = self.options;
        let session = self.sessions.entry(session).or_default();
        if let Some(request) = session.request.take() {
            let missing = self.files.get(&request.key).map(|file| file.done.missing_in(request.all));
            for chunks in missing.unwrap_or_default().into_iter().rev() {
                self.queue.push_front((request.key, chunks));
            }
        }
        let wait_ms = retry_ms_min.saturating_mul(1 << session.failures.min(20)).min(retry_ms_max).max(2);
        session.failures = session.failures.saturating_add(1);
        // From half of it to all of it, so that several that broke together do not come back together.
        let half_ms = wait_ms / 2;
        let jitter_ms = (jitter % half_ms.unsigned_abs().saturating_add(1)).cast_signed();
        session.not_before = now.saturating_add(half_ms).saturating_add(jitter_ms);
        session.not_before
    }

    /// The file was complete and is not what the manifest says: all of it is fetched again.
    pub fn reject(&mut self, key: FileKey, resume: &mut Resume, out: &mut BytesMut) {
        if let Some(file) = self.files.get_mut(&key) {
            file.done = ChunkMap::new(file.identity.length);
            resume.forget(&file.identity, out);
            let missing = file.done.missing(self.options.range_chunks_max.max(1));
            self.queue.extend(missing.into_iter().map(|chunks| (key, chunks)));
        }
    }

    /// How far it is.
    pub fn progress(&self, now: Millis) -> Progress {
        let done_bytes = self.kept_bytes + self.files.values().map(|file| file.done.bytes()).sum::<u64>();
        let second = now.div_euclid(1000);
        let recent = self.meter.iter().filter(|(at, _)| second - at < RATE_SECONDS);
        let measured_ms = (now - self.began).clamp(1, (RATE_SECONDS - 1) * 1000 + now.rem_euclid(1000));
        let bytes: u64 = recent.map(|(_, bytes)| bytes).sum();
        let rate_bytes_per_s = bytes.saturating_mul(1000) / measured_ms.unsigned_abs().max(1);
        let rest = self.total_bytes.saturating_sub(done_bytes);
        Progress {
            total_bytes: self.total_bytes,
            done_bytes,
            resumed_bytes: self.resumed_bytes,
            files: self.files.len() as u32,
            files_done: self.complete().count() as u32,
            rate_bytes_per_s,
            eta_ms: rest.saturating_mul(1000).checked_div(rate_bytes_per_s),
            sessions: self.sessions.values().filter(|session| session.request.is_some()).count() as u32,
            retries: self.retries,
        }
    }

    fn measure(&mut self, now: Millis, bytes: u64) {
        let second = now.div_euclid(1000);
        let slot = second.rem_euclid(RATE_SECONDS) as usize;
        if let Some(slot) = self.meter.get_mut(slot) {
            if slot.0 != second {
                *slot = (second, 0);
            }
            slot.1 += bytes;
        }
    }
}
