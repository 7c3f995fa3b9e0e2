//! Enumerations and their numbers on the wire. A new value needs a new protocol version, except among the error codes.

use std::fmt;

use crate::field::Field;

macro_rules! numbered {
    ($($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $number:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $name {
            $($(#[$value_doc])* $value = $number,)*
        }

        impl Field<u32> for $name {
            fn to_wire(&self) -> u32 {
                *self as u32
            }

            fn from_wire(wire: u32) -> Option<Self> {
                match wire {
                    $($number => Some(Self::$value),)*
                    _ => None,
                }
            }
        }
    )*};
}

numbered! {
    /// What a connection is for. 3 (RECOVERY) and 4 (ADMIN) are not built.
    Role {
        /// A replica follows the primary's journal.
        Stream = 1,
        /// A replica fetches files.
        Transfer = 2,
    }

    /// How the ends prove who they are inside the protocol.
    Mechanism {
        /// They do not: TLS with certificates on both sides has done it, or nothing has to.
        None = 0,
        /// HMAC-SHA-256 with a secret that both know.
        SharedSecret = 1,
    }

    /// How a replica gets from what it has to the live stream.
    AttachMode {
        /// What it has is a prefix of the primary's journal: the stream goes on from there.
        StreamFrom = 0,
        /// It has something that the primary does not: TRUNCATE follows, then the stream.
        TruncateThenStream = 1,
        /// What it lacks is not in the primary's journal any more: SYNC_MANIFEST follows.
        Bulk = 2,
    }

    /// A file of the store.
    FileKind {
        /// `db-<id>.log`.
        Journal = 0,
        /// What was made of a store of ActiveMQ's, `imported/snapshot`; the id is 0.
        Snapshot = 1,
    }

    /// Outcome of FILE_TRANSFER.
    TransferStatus {
        /// Chunks follow.
        Ok = 0,
        /// The manifest of this synchronisation has no such file.
        UnknownFile = 1,
        /// The synchronisation is unknown or its lease ran out: start again.
        LeaseExpired = 2,
        /// The range is not within the file.
        OutOfRange = 3,
        /// Too many transfers; ask again later.
        Busy = 4,
        /// The file could not be read.
        Failed = 5,
    }

    /// What a node says of itself. The first four have the original's numbers; who is in sync, the cluster record says.
    NodeState {
        /// A replica without a primary.
        Unconnected = 0,
        /// A replica that fetches files.
        Synchronizing = 1,
        /// A replica that keeps up with the live stream.
        Online = 3,
        /// The primary.
        Master = 4,
        /// A replica that closes its gap from the primary's journal.
        CatchingUp = 5,
        /// The primary, with too few replicas for persistent work.
        Suspended = 6,
        /// The primary, on its way out.
        SteppingDown = 7,
        /// Its storage failed.
        Faulted = 8,
    }
}

/// Why a node refuses to go on with a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ErrorCode {
    /// The frame is of an older reign than one that this node has promised to follow.
    StaleEpoch,
    /// This node does not lead.
    NotMaster,
    /// The peer is of another cluster, no member, or not the copy that it says it is.
    NotMember,
    /// No common version.
    Version,
    /// Not now.
    Busy,
    /// The journals part in a way that must not be mended by itself.
    Diverged,
    /// No space left.
    DiskFull,
    /// A checksum or a chain is wrong.
    Corrupt,
    /// Something is larger than its limit.
    Limit,
    /// The peer did not prove who it is.
    Auth,
    /// A frame that is malformed, or does not belong where it came.
    Protocol,
    /// From a newer peer.
    Other(u32),
}

impl ErrorCode {
    const NUMBERED: [(u32, Self, &str); 11] = [
        (1, Self::StaleEpoch, "STALE_EPOCH"),
        (2, Self::NotMaster, "NOT_MASTER"),
        (3, Self::NotMember, "NOT_MEMBER"),
        (4, Self::Version, "VERSION"),
        (5, Self::Busy, "BUSY"),
        (6, Self::Diverged, "DIVERGED"),
        (7, Self::DiskFull, "DISK_FULL"),
        (8, Self::Corrupt, "CORRUPT"),
        (9, Self::Limit, "LIMIT"),
        (10, Self::Auth, "AUTH"),
        (11, Self::Protocol, "PROTOCOL"),
    ];
}

impl Field<u32> for ErrorCode {
    fn to_wire(&self) -> u32 {
        match *self {
            Self::Other(number) => number,
            code => Self::NUMBERED.iter().find(|entry| entry.1 == code).map_or(0, |entry| entry.0),
        }
    }

    fn from_wire(wire: u32) -> Option<Self> {
        Some(Self::NUMBERED.iter().find(|entry| entry.0 == wire).map_or(Self::Other(wire), |entry| entry.1))
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NUMBERED.iter().find(|entry| entry.1 == *self) {
            Some((_, _, name)) => f.write_str(name),
            None => write!(f, "error {}", self.to_wire()),
        }
    }
}
