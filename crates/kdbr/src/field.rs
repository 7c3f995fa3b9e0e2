//! How the values of a frame's fields lie in its header, and what they may be.

use std::fmt;

use bytes::Bytes;
use kahawai_types::{BootId, ClusterId, Epoch, Lsn, NodeId, ReplicaId, StoreId};

use crate::limits::{ADDRESSES_MAX, NODE_ID_BYTES_MAX, PROOFS_MAX, TEXT_BYTES_MAX};

/// 32 random bytes that are used for one connection.
pub type Nonce = [u8; 32];

/// An HMAC-SHA-256.
pub type Proof = [u8; 32];

/// Random identity of one bulk synchronisation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SyncId(pub u128);

impl fmt::Display for SyncId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A field whose form in the header is a `W`.
pub(crate) trait Field<W>: Sized {
    /// # Panics
    ///
    /// Where a name or a list is longer than its limit, which who fills it in has checked.
    fn to_wire(&self) -> W;

    /// `None`: no such value exists, or it is longer than its limit.
    fn from_wire(wire: W) -> Option<Self>;
}

macro_rules! plain {
    ($($plain:ty),*) => {$(
        impl Field<$plain> for $plain {
            fn to_wire(&self) -> $plain {
                *self
            }

            fn from_wire(wire: $plain) -> Option<Self> {
                Some(wire)
            }
        }
    )*};
}
plain!(bool, i64, u32, u64);

macro_rules! positions {
    ($($position:ident),*) => {$(
        impl Field<u64> for $position {
            fn to_wire(&self) -> u64 {
                self.0
            }

            fn from_wire(wire: u64) -> Option<Self> {
                Some(Self(wire))
            }
        }
    )*};
}
positions!(Epoch, Lsn);

macro_rules! random_ids {
    ($($id:ident),*) => {$(
        impl Field<Bytes> for $id {
            fn to_wire(&self) -> Bytes {
                Bytes::copy_from_slice(&self.0.to_be_bytes())
            }

            fn from_wire(wire: Bytes) -> Option<Self> {
                wire.as_ref().try_into().ok().map(u128::from_be_bytes).map(Self)
            }
        }
    )*};
}
random_ids!(BootId, ClusterId, StoreId, SyncId);

impl Field<Bytes> for [u8; 32] {
    fn to_wire(&self) -> Bytes {
        Bytes::copy_from_slice(self)
    }

    fn from_wire(wire: Bytes) -> Option<Self> {
        wire.as_ref().try_into().ok()
    }
}

/// As much of a text as is sent.
pub(crate) fn clip(text: &str) -> &str {
    text.get(..text.floor_char_boundary(TEXT_BYTES_MAX)).unwrap_or_default()
}

impl Field<String> for String {
    fn to_wire(&self) -> String {
        clip(self).to_owned()
    }

    fn from_wire(wire: String) -> Option<Self> {
        (wire.len() <= TEXT_BYTES_MAX).then_some(wire)
    }
}

impl Field<String> for NodeId {
    fn to_wire(&self) -> String {
        assert!(self.0.len() <= NODE_ID_BYTES_MAX, "node name of {} bytes", self.0.len());
        self.0.clone()
    }

    fn from_wire(wire: String) -> Option<Self> {
        // It goes into logs and paths of the election service before anybody knows the peer.
        let usable = (1..=NODE_ID_BYTES_MAX).contains(&wire.len()) && !wire.chars().any(char::is_control);
        usable.then_some(Self(wire))
    }
}

/// A replica's identity as a message of its own.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct WireReplica {
    #[prost(string, tag = 1)]
    node: String,
    #[prost(bytes = "bytes", tag = 2)]
    store: Bytes,
}

impl Field<Option<WireReplica>> for ReplicaId {
    fn to_wire(&self) -> Option<WireReplica> {
        Some(WireReplica { node: self.node.to_wire(), store: self.store.to_wire() })
    }

    fn from_wire(wire: Option<WireReplica>) -> Option<Self> {
        let wire = wire?;
        Some(Self { node: Field::from_wire(wire.node)?, store: Field::from_wire(wire.store)? })
    }
}

impl<W, T: Field<W>> Field<Option<W>> for Option<T> {
    fn to_wire(&self) -> Option<W> {
        self.as_ref().map(T::to_wire)
    }

    fn from_wire(wire: Option<W>) -> Option<Self> {
        match wire {
            None => Some(None),
            Some(wire) => T::from_wire(wire).map(Some),
        }
    }
}

/// What a list may consist of.
pub(crate) trait Item {
    const LIST_MAX: usize;
}

impl Item for Proof {
    const LIST_MAX: usize = PROOFS_MAX;
}

impl Item for String {
    const LIST_MAX: usize = ADDRESSES_MAX;
}

impl<W, T: Field<W> + Item> Field<Vec<W>> for Vec<T> {
    fn to_wire(&self) -> Vec<W> {
        assert!(self.len() <= T::LIST_MAX, "list of {}, the limit is {}", self.len(), T::LIST_MAX);
        self.iter().map(T::to_wire).collect()
    }

    fn from_wire(wire: Vec<W>) -> Option<Self> {
        if wire.len() > T::LIST_MAX {
            return None;
        }
        wire.into_iter().map(T::from_wire).collect()
    }
}
