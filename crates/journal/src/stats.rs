use std::sync::atomic::{AtomicU64, Ordering};

/// Flush times are counted by powers of two of a microsecond; the last bucket has everything from half a minute on.
pub const FLUSH_BUCKETS: usize = 26;

/// What a journal has done since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct JournalStats {
    /// Batches written and flushed.
    pub batches: u64,
    /// User records in them, without stamps.
    pub records: u64,
    /// Bytes of those batches.
    pub bytes: u64,
    /// Flushes of data files.
    pub flushes: u64,
    /// Time spent in them, microseconds.
    pub flush_us_sum: u64,
    /// The longest of them.
    pub flush_us_max: u64,
    /// The newest of them.
    pub flush_us_last: u64,
    /// How many took less than 1, 2, 4, 8, … microseconds and not less than the one before.
    pub flush_us_buckets: [u64; FLUSH_BUCKETS],
    /// Next files made in the background.
    pub files_prepared: u64,
    /// Next files that the writer had to make itself.
    pub files_made_in_a_hurry: u64,
    /// Records read from memory.
    pub reads_recent: u64,
    /// Records read from files.
    pub reads_file: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) batches: AtomicU64,
    pub(crate) records: AtomicU64,
    pub(crate) bytes: AtomicU64,
    flushes: AtomicU64,
    flush_us_sum: AtomicU64,
    flush_us_max: AtomicU64,
    flush_us_last: AtomicU64,
    flush_us_buckets: [AtomicU64; FLUSH_BUCKETS],
    pub(crate) files_prepared: AtomicU64,
    pub(crate) files_made_in_a_hurry: AtomicU64,
    pub(crate) reads_recent: AtomicU64,
    pub(crate) reads_file: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn flushed(&self, us: u64) {
        count(&self.flushes, 1);
        count(&self.flush_us_sum, us);
        self.flush_us_max.fetch_max(us, Ordering::Relaxed);
        self.flush_us_last.store(us, Ordering::Relaxed);
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        if let Some(bucket) = self.flush_us_buckets.get(bucket.min(FLUSH_BUCKETS - 1)) {
            count(bucket, 1);
        }
    }

    pub(crate) fn read(&self) -> JournalStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        JournalStats {
            batches: get(&self.batches),
            records: get(&self.records),
            bytes: get(&self.bytes),
            flushes: get(&self.flushes),
            flush_us_sum: get(&self.flush_us_sum),
            flush_us_max: get(&self.flush_us_max),
            flush_us_last: get(&self.flush_us_last),
            flush_us_buckets: self.flush_us_buckets.each_ref().map(get),
            files_prepared: get(&self.files_prepared),
            files_made_in_a_hurry: get(&self.files_made_in_a_hurry),
            reads_recent: get(&self.reads_recent),
            reads_file: get(&self.reads_file),
        }
    }
}
