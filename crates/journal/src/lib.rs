//! Data files in KahaDB layout: batches, append, flush, recover, read, retire.
//!
//! The journal is the truth of a broker: whatever was confirmed is in here, in the files that ActiveMQ reads and writes. What
//! must hold:
//!
//! * What [`Writer::write`] returned is there after any crash, byte for byte. After an error it returns nothing any more.
//! * A torn tail is cut when the journal is opened, damage to confirmed data never ([`OpenError::Damaged`]).
//! * Positions, checksums, digests and the [`Chain`] are verified whenever batches are read; nothing on disk makes this code
//!   panic, loop, or allocate more than the file is long.
//! * A process appends only in an epoch that it began itself.
//!
//! Reading order: `format` (bytes), `scan` (walking them), `tail` (torn or damaged?), `open`, `append` (the open batch),
//! `writer` (stamp, write, flush), `prepare` (the next file), `read` (records by location), `verify`, `journal` (all
//! together), `retire` (deletion); and for replicas `history` (chains and epochs), `sealed` (whole files), `truncate`.
//!
//! ```text
//! any thread       Appender ---- records ----> open batch
//! journal thread   Writer::next_batch  <------ (closed when the writer is free)
//!                  -> bytes() to replicas -> write(): one write, one flush -> durable position
//! another thread   Preparer: db-next.tmp -> db-<N+1>.log
//! any thread       JournalReader: recently written batches in memory, else the files
//! ```

mod append;
mod aside;
mod format;
mod history;
mod journal;
mod open;
mod options;
mod prepare;
mod read;
mod retire;
mod scan;
mod scrub;
mod sealed;
mod shared;
mod stats;
mod tail;
mod truncate;
mod verify;
mod writer;

pub use append::{AppendError, AppendGuard, Appended, Appender, RECORD_BYTES_MAX};
pub use aside::{POSITION_FILE_BYTES, decode_position, encode_position, read_small_file, replace_file};
pub use format::{
    BATCH_OVERHEAD_BYTES, COLLECTION_FILES_MAX, CONTROL_BYTES, Chain, CheckedBatch, CollectionRecord,
    Control, END_MARK, EpochMarker, KNOWLEDGE_BYTES_MAX, MAGIC, NODE_ID_BYTES_MAX, Problem,
    RECORD_HEADER_BYTES, STAMP_RECORD_BYTES, Stamp, Trace, data_file_id, data_file_name,
};
pub use history::{ChainPlace, EPOCHS_FILE, EpochStart, record_epochs};
pub use journal::{EpochError, Journal, NewEpoch, RetireError};
pub use open::{CutTail, DIVERGENT_BYTES_MAX, DIVERGENT_DIRECTORY, DataFile, OpenError, Recovery};
pub use options::{FILE_BYTES_MAX, FILE_BYTES_MIN, JournalOptions, KnownPositions};
pub use prepare::Preparer;
pub use read::{JournalReader, ReadError, WindowReader};
pub use scan::{BatchView, Batches, Record, Records};
pub use scrub::{Damage, Place, Scrubbed, Scrubber};
pub use sealed::{
    INCOMING_DIRECTORY, InstallError, Installed, SUMS_DIRECTORY, SealedFile, VerifyError, check_file,
    finish_file, incoming_name, install, sealed_files, verify_file,
};
pub use stats::{FLUSH_BUCKETS, JournalStats};
pub use tail::Evidence;
pub use truncate::{TruncateError, Truncated, truncate};
pub use verify::{FileReport, Finding, VerifyReport, verify};
pub use writer::{CopyError, FailedStep, JournalFailed, SealedBatch, Writer};
