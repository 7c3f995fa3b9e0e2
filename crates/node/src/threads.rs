//! The threads beside the runtime: journal, applier, errands, next file, upkeep.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use kahawai_broker::{LoadResult, Loaded, ScanResult, Verdict};
use kahawai_journal::{Damage, Journal, Preparer, Scrubbed, SealedBatch, WindowReader, Writer};
use kahawai_message::Message;
use kahawai_message::storage::{DestinationKey, Entry, Storage};
use kahawai_store::collect::{MOVES_PER_STEP, candidates};
use kahawai_types::Lsn;
use tracing::{error, info, warn};

use crate::core::{Errand, Shared};

/// Operations applied under one lock: a few hundred microseconds.
const APPLY_MAX: usize = 1024;
/// The longest the applier sleeps when nothing happens, so that expiry and the like come about.
const TICK: Duration = Duration::from_millis(500);
/// How often upkeep looks.
const UPKEEP: Duration = Duration::from_millis(250);
/// Milliseconds between checkpoints, as upstream.
const CHECKPOINT_MS: u64 = 5_000;
/// Milliseconds between collections, as upstream.
const COLLECT_MS: u64 = 30_000;
/// A checkpoint is due when a restart would replay this much.
const CHECKPOINT_BYTES: u64 = 256 << 20;

/// So many connections that waited for answers within a few flushes are a crowd; where senders keep a pace of their own it takes
/// many thousand messages a second to look like one…
const CROWD: usize = 32;
/// …of which this part is waited for before the next flush: what they send comes as fast as answers go out, and each flush less
/// leaves the processor to them…
const CROWD_PART: usize = 4;
/// …but no longer than this.
const GATHER: Duration = Duration::from_micros(1500);
/// Where waiting was of no use, so many flushes at most do without before it is tried again.
const SKIPS_MAX: u32 = 256;

/// Whether it is worth to wait for more before a flush. Where everybody sends again as soon as it has its answer it is; where
/// senders keep a pace of their own it only costs them time.
#[derive(Default)]
struct Gathering {
    wanted: u64,
    /// Flushes that do without.
    skips: u32,
    skips_next: u32,
}

impl Gathering {
    /// How many records to wait for, if any.
    fn wants(&mut self, crowd: usize) -> Option<u64> {
        self.wanted = 0;
        if self.skips > 0 {
            self.skips -= 1;
        } else if crowd >= CROWD {
            self.wanted = (crowd / CROWD_PART) as u64;
        }
        (self.wanted > 0).then_some(self.wanted)
    }

    /// So many were there in the end.
    fn came(&mut self, records: u64) {
        if self.wanted == 0 {
            return;
        }
        if records * 2 >= self.wanted {
            self.skips_next = 0;
        } else {
            self.skips_next = (self.skips_next * 2).clamp(1, SKIPS_MAX);
            self.skips = self.skips_next;
        }
    }
}

/// Whose threads these are.
pub trait Owner: Send + Sync + 'static {
    /// One of them has failed: nothing is confirmed or acknowledged any more.
    fn fail(&self, reason: String);
}

impl Owner for Shared {
    fn fail(&self, reason: String) {
        Shared::fail(self, reason);
    }
}

/// Starts a thread whose panic ends the node rather than leaving it half alive.
#[allow(clippy::disallowed_methods)] // threads belong to node
pub fn spawn<O: Owner, R: Send + 'static>(
    name: &str,
    owner: &Arc<O>,
    work: impl FnOnce(&Arc<O>) -> R + Send + 'static,
) -> std::io::Result<JoinHandle<R>> {
    struct Guard<'a, O: Owner>(&'a O, &'a str);
    impl<O: Owner> Drop for Guard<'_, O> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.fail(format!("the {} thread panicked", self.1));
            }
        }
    }
    let owner = Arc::clone(owner);
    let label = name.to_owned();
    std::thread::Builder::new().name(format!("kahawai-{name}")).spawn(move || {
        let guard = Guard(&*owner, &label);
        let result = work(&owner);
        drop(guard);
        result
    })
}

/// When the index was last written, and what it holds.
pub struct Written {
    at_ms: u64,
    position: Lsn,
}

impl Written {
    /// It holds everything up to `position`, from now on.
    pub fn new(now_ms: u64, position: Lsn) -> Self {
        Self { at_ms: now_ms, position }
    }

    /// Is it to be written again? `behind_bytes` = what a restart would replay.
    pub fn is_due(&self, now_ms: u64, position: Lsn, behind_bytes: u64) -> bool {
        position != self.position
            && (now_ms - self.at_ms >= CHECKPOINT_MS || behind_bytes >= CHECKPOINT_BYTES)
    }
}

/// Deletes data files that are not needed any more, and tells of each that is gone.
pub fn retire(journal: &Journal, files: impl IntoIterator<Item = u32>, gone: impl FnMut(u32)) {
    let files: Vec<u32> = files.into_iter().collect();
    match journal.retire(files.iter().copied()) {
        Ok(()) if files.is_empty() => {}
        Ok(()) => {
            info!(?files, "data files deleted");
            files.into_iter().for_each(gone);
        }
        Err(error) => warn!(?files, error = crate::chain(&error), "data files could not be deleted"),
    }
}

/// What becomes of batches on their way.
pub trait Copies: Send {
    /// A batch is about to be written: this is when its bytes go to replicas.
    fn sealed(&mut self, batch: &SealedBatch);
    /// It is durable here.
    fn durable(&mut self, end: Lsn);
}

/// A single node: what is durable here is committed.
pub struct NoCopies {
    shared: Arc<Shared>,
    sealed_us: u64,
    haste: Haste,
}

impl NoCopies {
    /// No batch is under way.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, sealed_us: 0, haste: Haste::default() }
    }
}

impl Copies for NoCopies {
    fn sealed(&mut self, _batch: &SealedBatch) {
        self.sealed_us = self.shared.clock.boot_us();
    }

    fn durable(&mut self, end: Lsn) {
        let took_us = self.shared.clock.boot_us().saturating_sub(self.sealed_us);
        if self.haste.pays(took_us) {
            self.shared.confirm_and_answer(end);
        } else {
            self.shared.confirm(end);
        }
    }
}

/// Where a batch takes longer, microseconds, a hand-over does not count…
const SLOW_US: u64 = 1500;
/// …and so many batches pass before answers are given in haste again, each time twice as many…
const SLOW_SKIPS_MIN: u32 = 256;
const SLOW_SKIPS_MAX: u32 = 1 << 16;
/// …unless so many in a row were quick.
const QUICK_ROW: u32 = 1024;

/// Whether the journal thread gives answers itself. A wake-up less is much where flushes are quick. Where others want the
/// processors too, the scheduler lets a thread that does more wait, a tick at a time, and all flushes with it.
#[derive(Default)]
struct Haste {
    skips: u32,
    skips_next: u32,
    quick: u32,
}

impl Haste {
    /// A batch took so long.
    fn pays(&mut self, took_us: u64) -> bool {
        if self.skips > 0 {
            self.skips -= 1;
        } else if took_us < SLOW_US {
            self.quick += 1;
            if self.quick >= QUICK_ROW {
                self.skips_next = 0;
            }
            return true;
        } else {
            self.skips_next = (self.skips_next * 2).clamp(SLOW_SKIPS_MIN, SLOW_SKIPS_MAX);
            (self.skips, self.quick) = (self.skips_next, 0);
        }
        false
    }
}

/// The one thread that writes and flushes.
pub fn journal(
    shared: &Arc<Shared>,
    mut writer: Writer,
    mut copies: impl Copies + 'static,
) -> std::io::Result<JoinHandle<()>> {
    spawn("journal", shared, move |shared| {
        let mut gathering = Gathering::default();
        loop {
            if let Some(records) = gathering.wants(shared.commit.crowd()) {
                writer.gather(records, GATHER);
            }
            let written = match writer.next_batch(shared.commit.position()) {
                Ok(None) => return,
                Ok(Some(batch)) => {
                    gathering.came(batch.records);
                    copies.sealed(&batch);
                    writer.write(batch)
                }
                Err(error) => Err(error),
            };
            match written {
                Ok(end) => copies.durable(end),
                Err(error) => {
                    let reason = crate::chain(&error);
                    error!(%reason, "the journal failed; nothing is confirmed any more");
                    shared.fail(reason);
                    return;
                }
            }
        }
    })
}

/// Brings the index to the commit position and lets the broker dispatch.
pub fn applier(shared: &Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    spawn("applier", shared, |shared| {
        let mut next_tick = 0;
        loop {
            let commit = shared.commit.position();
            let now = shared.now();
            let result = shared.with(|core| {
                let more = core.apply(now, commit, APPLY_MAX);
                // The wall clock may have been set back.
                let is_due = now >= next_tick || next_tick - now > TICK.as_millis() as i64;
                if std::mem::take(&mut core.tick_asked) || is_due {
                    let wanted = core.broker.tick(now, &mut core.store, &mut core.effects);
                    let wanted = core.check(wanted).flatten();
                    next_tick = wanted.unwrap_or(i64::MAX).clamp(now, now + TICK.as_millis() as i64);
                }
                more
            });
            match result {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    error!(%error, "the index failed; nothing is confirmed any more");
                    // The index is disposable: the next start makes a new one.
                    if let Err(error) = kahawai_store::checkpoint::IndexStore::discard(&shared.files) {
                        warn!(%error, "the damaged index could not be removed");
                    }
                    shared.fail(error.to_string());
                    return;
                }
            }
            if shared.failure().is_some() || (shared.is_stopping() && shared.commit.position() == commit) {
                return;
            }
            let now = shared.now();
            let wait = u64::try_from((next_tick - now).max(0)).unwrap_or(0).min(TICK.as_millis() as u64);
            if shared.commit.position() == commit {
                shared.bell.wait(Duration::from_millis(wait).min(TICK));
            }
        }
    })
}

/// Reads a stored message.
pub fn read(window: &mut WindowReader, entry: &Entry) -> Result<Message, String> {
    let payload = window.read(entry.location, entry.size).map_err(|e| crate::chain(&e))?;
    match kahawai_kahadb::command::decode(payload).map_err(|e| e.to_string())? {
        kahawai_kahadb::command::Command::AddMessage(add)
        | kahawai_kahadb::command::Command::UpdateMessage(add) => {
            kahawai_message::stored::decode_message(add.message).map_err(|e| e.to_string())
        }
        other => Err(format!("there is a {} record instead", other.name())),
    }
}

/// The same, also if it was moved since the broker learnt its place: what is delivered again, or waited long, may have been. `None`: it
/// is gone.
pub fn read_wherever(
    window: &mut WindowReader,
    shared: &Shared,
    destination: DestinationKey,
    entry: &Entry,
) -> Result<Option<Message>, String> {
    let find = || shared.with(|core| core.store.entry(destination, entry.sequence));
    kahawai_store::collect::read_wherever(entry, |entry| read(window, entry), find)
}

/// Reads messages for selectors and dead letters.
pub fn errands(shared: &Arc<Shared>, receiver: mpsc::Receiver<Errand>) -> std::io::Result<JoinHandle<()>> {
    spawn("errands", shared, move |shared| {
        let mut window = shared.reader.window();
        loop {
            let errand = match receiver.recv_timeout(TICK) {
                Ok(errand) => errand,
                Err(mpsc::RecvTimeoutError::Timeout) if !shared.is_stopping() => continue,
                Err(_) => return,
            };
            match errand {
                Errand::Scan(request) => {
                    let mut verdicts = Vec::with_capacity(request.entries.len());
                    for entry in &request.entries {
                        verdicts.push(match read_wherever(&mut window, shared, request.destination, entry) {
                            Ok(Some(message)) => request.judge(&message),
                            _ => Verdict::Unreadable,
                        });
                    }
                    let now = shared.now();
                    shared.with(|core| {
                        let result = ScanResult { request, verdicts };
                        let result = core.broker.scanned(now, result, &mut core.store, &mut core.effects);
                        core.check(result);
                    });
                }
                Errand::Load(request) => {
                    let read = read_wherever(&mut window, shared, request.destination, &request.entry);
                    let message = match read {
                        Ok(Some(message)) => Loaded::Message(Box::new(message)),
                        Ok(None) => Loaded::Gone,
                        Err(reason) => {
                            error!(location = %request.entry.location, %reason, "a message is unreadable");
                            Loaded::Unreadable
                        }
                    };
                    let now = shared.now();
                    shared.with(|core| {
                        let file = request.entry.location.file;
                        let is_unreadable = matches!(message, Loaded::Unreadable);
                        let result = LoadResult { request, message };
                        let result = core.broker.loaded(now, result, &mut core.store, &mut core.effects);
                        if is_unreadable {
                            core.store.journal().suspect(file);
                        }
                        core.check(result);
                    });
                }
            }
        }
    })
}

/// Makes the next data file ahead of time.
pub fn preparer(shared: &Arc<Shared>, mut preparer: Preparer) -> std::io::Result<JoinHandle<()>> {
    spawn("prepare", shared, move |_| preparer.run())
}

/// Looks for damage in older data files, of a node that nobody can give a sound copy.
pub fn scrubber(shared: &Arc<Shared>, bytes_per_s: u64) -> std::io::Result<JoinHandle<()>> {
    let scrubber = shared.with(|core| core.store.journal().scrubber(bytes_per_s));
    spawn("scrub", shared, move |shared| {
        let mut known = std::collections::BTreeSet::new();
        for scrubbed in scrubber {
            match scrubbed {
                Scrubbed::Damage(Damage { file, problem, .. }) => {
                    if known.insert(file) {
                        error!(file, problem, "a data file is damaged");
                    }
                }
                Scrubbed::Sound(file) => {
                    known.remove(&file);
                    info!(file, "a data file can be read again");
                    retry_unreadable(shared);
                }
            }
        }
    })
}

/// What could not be read is delivered again.
pub fn retry_unreadable(shared: &Shared) {
    let now = shared.now();
    shared.with(|core| {
        let retried = core.broker.retry_unreadable(now, &mut core.store, &mut core.effects);
        core.check(retried);
    });
}

/// Writes a checkpoint.
pub fn checkpoint(shared: &Shared, clean: bool) -> Result<(), kahawai_store::checkpoint::IndexError> {
    let (checkpoint, index) = shared.with(|core| (core.store.begin_checkpoint(clean), core.store.index()));
    let header = checkpoint.header;
    index.write(checkpoint)?;
    shared.with(|core| core.store.finish_checkpoint(header));
    Ok(())
}

/// Deletes and empties data files that are not needed.
fn collect(shared: &Shared) -> Result<(), String> {
    let (files, sparse) = shared.with(|core| {
        let files = core.store.collect().map_err(|e| e.to_string());
        (files, core.store.sparse_file())
    });
    let files = files?;
    if !files.is_empty() {
        info!(?files, "data files are no longer needed");
    }
    if let Some(file) = sparse {
        let records = candidates(&shared.reader, file).map_err(|e| e.to_string())?;
        let mut moved = 0;
        for step in records.chunks(MOVES_PER_STEP) {
            moved += shared.with(|core| core.store.relocate(step)).map_err(|e| e.to_string())?;
        }
        info!(file, moved, "the last messages of a data file were moved");
    }
    Ok(())
}

/// Checkpoints, collection, deletion of retired files.
///
/// `may_collect` = nobody copies older files now.
pub fn upkeep(
    shared: &Arc<Shared>,
    may_collect: impl Fn() -> bool + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    spawn("upkeep", shared, move |shared| {
        let mut written = Written::new(shared.clock.boot_ms(), shared.commit.position());
        let mut collected = shared.clock.boot_ms();
        while !shared.is_stopping() {
            shared.upkeep.wait(UPKEEP);
            let now = shared.clock.boot_ms();
            let position = shared.commit.position();
            let behind = shared.with(|core| core.store.behind_checkpoint_bytes());
            if written.is_due(now, position, behind) && shared.is_settled() {
                if let Err(error) = checkpoint(shared, false) {
                    let reason = crate::chain(&error);
                    error!(%reason, "the index could not be written; nothing is confirmed any more");
                    shared.fail(reason);
                    return;
                }
                written = Written::new(now, position);
            }
            if now - collected >= COLLECT_MS && shared.is_settled() && may_collect() {
                collected = now;
                if let Err(error) = collect(shared) {
                    warn!(%error, "collection of data files stopped early");
                }
            }
            let (retired, journal) =
                shared.with(|core| (core.store.to_retire(), core.store.journal().clone()));
            // Who copies files may have been told of one that is to go.
            let retired = retired.into_iter().filter(|_| may_collect());
            retire(&journal, retired, |file| shared.with(|core| core.store.retired(file)));
        }
    })
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use kahawai_broker::{Broker, Options};
    use kahawai_env::{Files, OsEntropy};
    use kahawai_message::Destination;
    use kahawai_message::front::{ConnectionInfo, ConsumerNumber, Request, Subscribe};
    use kahawai_store::OpenOptions;
    use kahawai_testkit::{ManualClock, MemoryFiles};

    use super::*;
    use crate::outbox::Outbox;

    fn subscribe(consumer: u32, destination: Destination) -> Request {
        Request::Subscribe(Box::new(Subscribe {
            consumer: ConsumerNumber(consumer),
            destination,
            selector: None,
            prefetch: 100,
            durable_name: None,
            no_local: false,
            exclusive: false,
            priority: 0,
            retroactive: false,
            browser: false,
            auto_ack: false,
        }))
    }

    #[tokio::test]
    async fn what_does_not_fit_in_a_call_does_not_wait_for_the_clock() {
        const COUNT: usize = 10;
        let files: Arc<dyn Files> = Arc::new(MemoryFiles::new());
        let opened =
            kahawai_store::open(&files, &OsEntropy, &OpenOptions::default()).expect("an empty store");
        let mut options = Options::default();
        options.limits.steps_per_call_max = 2;
        // It stands still: no tick comes because it is due, except for the very first.
        let clock = Arc::new(ManualClock::default());
        let (shared, _errands) = Shared::new(Broker::new(options), opened.store, files, clock);
        let thread = applier(&shared).expect("a thread");
        let outbox = Arc::new(Outbox::default());
        let connection = shared.with(|core| {
            let connection = core.broker.connect(ConnectionInfo::default()).expect("it is the first");
            core.register(connection, Arc::clone(&outbox));
            connection
        });
        // The first round may have that first tick.
        for round in 1..=2 {
            shared.with(|core| {
                let mut request = |request| {
                    let core = &mut *core;
                    let taken =
                        core.broker.request(0, connection, request, &mut core.store, &mut core.effects);
                    taken.expect("it is allowed");
                };
                let queue = Destination::queue(format!("Q{round}"));
                for _ in 0..COUNT {
                    let message = Message { destination: queue.clone(), ..Message::default() };
                    request(Request::Send { message, transaction: None });
                }
                request(subscribe(round, queue));
            });
            let (mut came, mut items) = (0, Vec::new());
            while came < COUNT {
                let signal =
                    tokio::time::timeout(Duration::from_secs(20), poll_fn(|cx| outbox.signal.poll(cx)));
                signal.await.expect("the rest of the deliveries");
                outbox.take(&mut items);
                came += items.drain(..).count();
            }
        }
        shared.stop();
        thread.join().expect("the applier ends");
    }

    #[test]
    fn haste_ends_where_flushes_are_slow() {
        let mut haste = Haste::default();
        assert!((0..5000).all(|_| haste.pays(SLOW_US - 1)));
        assert!(!haste.pays(SLOW_US), "nothing is won");
        let waited = (0..5000).take_while(|_| !haste.pays(100)).count();
        assert_eq!(waited, SLOW_SKIPS_MIN as usize, "it was one of many");
        // Each time it is tried it is slow.
        let tried = (0..100_000).filter(|_| haste.skips == 0 && !haste.pays(4000) || haste.pays(100)).count();
        assert!((4..12).contains(&tried), "{tried}");
        while !haste.pays(100) {}
        assert!((0..QUICK_ROW).all(|_| haste.pays(100)));
        haste.pays(4000);
        assert_eq!(haste.skips, SLOW_SKIPS_MIN, "they are quick again");
    }

    #[test]
    fn gathering_goes_on_while_it_pays() {
        let mut gathering = Gathering::default();
        assert_eq!(gathering.wants(CROWD - 1), None, "too few to be worth it");
        for _ in 0..100 {
            assert_eq!(gathering.wants(64), Some(16));
            gathering.came(11);
        }
        let mut tries = 0;
        for _ in 0..1000 {
            tries += u64::from(gathering.wants(64).is_some());
            gathering.came(2);
        }
        assert!((8..16).contains(&tries), "{tries} flushes of 1000 waited in vain");
        while gathering.wants(64).is_none() {}
        gathering.came(16);
        assert_eq!(gathering.wants(64), Some(16), "it pays again");
    }
}
