//! Names of nodes, and sets of them.

use std::collections::BTreeSet;

use kahawai_types::{NodeId, ReplicaId, StoreId};

pub(crate) fn id(node: usize) -> ReplicaId {
    ReplicaId { node: NodeId(format!("n{node}")), store: StoreId(1 + node as u128) }
}

pub(crate) fn number(replica: &ReplicaId) -> usize {
    replica.store.0 as usize - 1
}

/// A set of nodes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Nodes(u8);

impl Nodes {
    pub(crate) fn of<'a>(replicas: impl IntoIterator<Item = &'a ReplicaId>) -> Self {
        Self(replicas.into_iter().fold(0, |set, replica| set | 1 << number(replica)))
    }

    pub(crate) fn without(self, node: usize) -> Self {
        Self(self.0 & !(1 << node))
    }

    pub(crate) fn holds(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        (0..8).filter(move |node| self.0 >> node & 1 == 1)
    }

    pub(crate) fn ids(self) -> BTreeSet<ReplicaId> {
        self.iter().map(id).collect()
    }
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
