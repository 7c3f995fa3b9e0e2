//! Files, clock and entropy: the only seam between the broker and the machine.
//!
//! Storage code is plain blocking code over [`Files`] and [`File`]; it never names a path outside its data directory and
//! never reads a clock. Production passes [`DiskFiles`], [`SystemClock`] and [`OsEntropy`]; tests and the simulator pass
//! their own, which is how the same code meets power loss and lying disks.
//!
//! * [`files`](Files): one data directory. *Written* is not *durable*: bytes are durable after [`File::sync_data`], a
//!   name after [`Files::sync_directory`] of the directory that holds it.
//! * [`Lock`]: KahaDB's `lock` file, respected by and respecting a Java broker.
//! * [`Clock`], [`Entropy`]: time and randomness, for those few who may know them.

mod clock;
mod disk;
mod entropy;
mod files;
mod lock;
mod overlay;

pub use clock::{Clock, SystemClock};
pub use disk::DiskFiles;
pub use entropy::{Entropy, OsEntropy};
pub use files::{
    File, Files, Lock, OpenMode, PAGE_BYTES, PageBuffer, ReadOnce, ReadOnly, Source, check_name,
    read_exact_at, read_full_at, read_pages_full_at,
};
pub use overlay::OverlayFiles;
