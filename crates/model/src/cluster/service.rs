//! The election service: one record with compare-and-set, and one grant.

use std::sync::Arc;

use kahawai_election::{ClusterRecord, Revision};

use crate::shared::Shared;

/// A process, as the service knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Client {
    pub(crate) node: usize,
    pub(crate) boot: u8,
}

/// Somebody who has the grant, or wants it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Place {
    pub(crate) client: Client,
    pub(crate) fence: u64,
    /// The process's number for it.
    pub(crate) campaign: u64,
}

/// A write on its way to the service.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Write {
    pub(crate) client: Client,
    pub(crate) op: u128,
    /// Its writer waits for the answer. Otherwise it was told that the outcome is unknown, or is dead.
    pub(crate) is_awaited: bool,
    pub(crate) expected: u64,
    pub(crate) fence: Option<u64>,
    pub(crate) record: Arc<[u8]>,
    /// The epoch that it writes.
    pub(crate) epoch: u64,
}

/// What becomes of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Applies,
    Conflicts,
    /// Without the grant.
    Unfenced,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Service {
    pub(crate) revision: u64,
    pub(crate) record: Shared<ClusterRecord>,
    /// The same as bytes.
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) holder: Option<Place>,
    /// Who would have the grant, by name: anybody may be next.
    pub(crate) waiting: Vec<Place>,
    /// In no order; sorted, so that equal states look equal.
    pub(crate) writes: Vec<Write>,
}

impl Service {
    fn places(&self) -> impl Iterator<Item = &Place> {
        self.holder.iter().chain(&self.waiting)
    }

    /// Asks for the grant. Fences are small numbers again and again, but never one that somebody may still use.
    pub(crate) fn wait(&mut self, client: Client, campaign: u64) {
        let is_used = |fence: u64| {
            self.places().any(|place| place.fence == fence)
                || self.writes.iter().any(|write| write.fence == Some(fence))
        };
        // A process that believes in an old grant of its own forgets it when it asks for the next one.
        let fence = (0..).map(|k| 1 + client.node as u64 + 3 * k).find(|fence| !is_used(*fence));
        let fence = fence.expect("there are more numbers than places");
        self.waiting.push(Place { client, fence, campaign });
        self.waiting.sort();
    }

    pub(crate) fn judge(&self, write: &Write) -> Verdict {
        let holder = self.holder.map(|place| place.fence);
        if write.fence.is_some() && write.fence != holder {
            Verdict::Unfenced
        } else if write.expected != self.revision {
            Verdict::Conflicts
        } else {
            Verdict::Applies
        }
    }

    /// Forgets what nobody waits for and can never be applied: fences and revisions do not come back.
    pub(crate) fn tidy(&mut self) {
        let mut writes = std::mem::take(&mut self.writes);
        writes.retain(|write| {
            let has_grant =
                write.fence.is_none() || self.places().any(|place| Some(place.fence) == write.fence);
            write.is_awaited || (write.expected == self.revision && has_grant)
        });
        writes.sort();
        writes.dedup();
        self.writes = writes;
    }

    pub(crate) fn at(&self) -> Revision {
        Revision { order: self.revision, token: self.revision }
    }
}
