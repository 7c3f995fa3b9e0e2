//! A node: its disk, and its process if it runs.

use kahawai_election::{ClusterRecord, Elector};
use kahawai_replication::Primary;
use kahawai_types::Epoch;

use crate::journal::Journal;
use crate::nodes::Nodes;
use crate::shared::Shared;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Node {
    pub(crate) journal: Journal,
    /// Batches that are flushed.
    pub(crate) durable: usize,
    pub(crate) promised: Epoch,
    /// Batches that it knows to be confirmed.
    pub(crate) commit: usize,
    /// The newest record that it has seen.
    pub(crate) saved: Option<Shared<ClusterRecord>>,
    /// Processes so far.
    pub(crate) boot: u8,
    pub(crate) process: Option<Process>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Process {
    pub(crate) elector: Shared<Elector>,
    /// The service has something to tell to a primary; others hear at once.
    pub(crate) has_news: bool,
    /// The session has ended, and the process does not know.
    pub(crate) has_expired: bool,
    pub(crate) role: Role,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Role {
    Idle,
    Replica(Following),
    Leader(Box<Leader>),
}

/// A stream, at the replica's end.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Following {
    pub(crate) primary: usize,
    pub(crate) epoch: Epoch,
}

/// A stream, at the primary's end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Feeding {
    /// Batches that were sent, or need not be.
    pub(crate) sent: usize,
    /// An acknowledgement under way: what is flushed there.
    pub(crate) ack: Option<usize>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Leader {
    pub(crate) primary: Shared<Primary>,
    pub(crate) epoch: Epoch,
    /// Batches up to and with its marker.
    pub(crate) marker: usize,
    /// The set as the driver knows it.
    pub(crate) recorded: Nodes,
    pub(crate) proposal: Option<Nodes>,
    pub(crate) commit: usize,
    pub(crate) feeding: [Option<Feeding>; 3],
}

impl Node {
    pub(crate) fn seal(&mut self) {
        if let Some(process) = &mut self.process {
            process.elector.seal();
            if let Role::Leader(leader) = &mut process.role {
                leader.primary.seal();
            }
        }
    }

    pub(crate) fn leader(&self) -> Option<&Leader> {
        match &self.process.as_ref()?.role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    pub(crate) fn leader_mut(&mut self) -> Option<&mut Leader> {
        match &mut self.process.as_mut()?.role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    pub(crate) fn following(&self) -> Option<&Following> {
        match &self.process.as_ref()?.role {
            Role::Replica(following) => Some(following),
            _ => None,
        }
    }

    /// Runs, and neither leads nor follows.
    pub(crate) fn is_idle(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.role == Role::Idle)
    }

    pub(crate) fn unflushed(&self) -> usize {
        self.journal.len() - self.durable
    }
}
