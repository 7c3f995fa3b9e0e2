use std::sync::Arc;

use kahawai_env::{Clock, SystemClock};
use kahawai_types::Lsn;

/// Smallest file size that can be configured; tests use small files.
pub const FILE_BYTES_MIN: u32 = 512;
/// Largest file size that can be configured: with one record of [`crate::RECORD_BYTES_MAX`] offsets stay below 2 GiB.
pub const FILE_BYTES_MAX: u32 = 1 << 30;

/// How a journal writes.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// A batch that would end behind this begins a new file. A soft limit, as upstream's: one larger batch may stand alone
    /// in a file. Files that are already longer are read all the same.
    pub file_bytes_max: u32,
    /// A batch that holds a record takes no more beyond this.
    pub batch_bytes_max: u32,
    /// With so many batches waiting for the writer, [`crate::Appender::is_congested`] asks to hold producers back.
    pub sealed_batches_max: usize,
    /// Recently written batches that are kept in memory for readers.
    pub recent_bytes_max: usize,
    /// Fill the next file with zeros in the background: flushes into it then need no metadata.
    pub preallocate: bool,
    /// An operator's decision: if the journal is damaged at exactly this position, cut it there and lose what follows.
    pub cut_allowed_at: Option<Lsn>,
    /// Batches behind a bad place may prove that it had been confirmed, hence that it is damage. `false` for a replica that was
    /// outside the in-sync set when it stopped: it writes batches that others have long confirmed, several to a flush, so its
    /// torn tail looks just like that. What it promised itself is in [`KnownPositions::durable`].
    pub batches_behind_prove: bool,
    /// Measures flushes.
    pub clock: Arc<dyn Clock>,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            file_bytes_max: 32 << 20,
            batch_bytes_max: 4 << 20,
            sealed_batches_max: 4,
            recent_bytes_max: 16 << 20,
            preallocate: true,
            cut_allowed_at: None,
            batches_behind_prove: true,
            clock: Arc::new(SystemClock),
        }
    }
}

/// What is known from elsewhere about how far the journal had come: an index checkpoint, node metadata. May lag behind,
/// must never be ahead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KnownPositions {
    /// Confirmed on the whole in-sync set.
    pub commit: Lsn,
    /// Flushed here.
    pub durable: Lsn,
}
