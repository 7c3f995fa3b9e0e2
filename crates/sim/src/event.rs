//! Everything that can be about to happen.

use kahawai_election::{Effect, Event as Told};
use kahawai_replication::SourceEvent;
use kahawai_types::Lsn;

use crate::clients::ClientEvent;
use crate::net::{ConnId, Side};
use crate::visitors::ToNode;
use crate::wire::ClientId;

/// One entry of the queue.
pub(crate) enum Event {
    /// For a process of a node; nothing if that is gone.
    Node { node: usize, life: u32, what: NodeEvent },
    /// A node's process starts.
    Start { node: usize, life: u32 },
    /// Bytes may have arrived at this end.
    Wire { conn: ConnId, to: Side },
    /// A connection attempt reaches its target.
    Dial { conn: ConnId },
    /// The election service's time moves.
    Service,
    /// Something breaks, if anything is to break.
    Fault,
    /// What a cluster meets once in its life goes on.
    Harm,
    /// Something breaks at this node, in the very moment in which it hurts.
    Ambush(usize),
    /// Whoever looks after the cluster does something.
    Operator,
    /// A fault ends.
    Heal(Healing),
    /// A client asked to be woken.
    Wake { client: ClientId },
    /// Something arrives at a client.
    ToClient { client: ClientId, line: u32, what: Box<ClientEvent> },
    /// Something of a client arrives at a node.
    ToNode { node: usize, client: ClientId, line: u32, what: Box<ToNode> },
    /// A look at everything.
    Audit,
}

/// What is mended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Healing {
    /// Traffic from one node to another flows again.
    Link(usize, usize),
    /// The node reaches the election service.
    Service(usize),
    /// The process runs again.
    Resume(usize),
    /// The disk is as fast as ever.
    Disk(usize),
    /// There is room on the disk.
    Room(usize),
    /// A write to the record that was under way arrives.
    DelayedWrite,
}

/// For one process.
pub(crate) enum NodeEvent {
    /// The elector looks at the time.
    ElectTick,
    /// The election service has something to say.
    ServiceNews,
    /// An effect of the elector is carried out.
    ServiceDo(Box<Effect>),
    /// The grant was given back.
    Resigned,
    /// For the elector.
    Tell(Box<Told>),
    /// The task that runs the node looks at what was decided.
    Decide,
    /// The elector answered a request.
    Answered { request: u64, applied: bool, stepped_down: bool },
    /// For a role that may be over.
    Role { role: u32, what: RoleEvent },
    /// For a connection that may be gone.
    Conn { conn: ConnId, what: ConnEvent },
}

/// For one role of a process.
pub(crate) enum RoleEvent {
    /// The store is opened now.
    Open,
    /// The elector is told of the store.
    TellLocal,
    /// The journal is known to the session to come.
    SessionLog { session: u32 },
    /// The next attempt to reach a primary.
    Redial { session: u32 },
    /// The session looks at the time.
    SinkTick { session: u32 },
    /// A transfer session looks for work.
    Fetch { session: u32, number: u32 },
    /// A synchronisation has to begin again.
    FetchFailed { session: u32, sync_id: u128 },
    /// The batches under way are written.
    Copied,
    /// The index is brought nearer to the commit position.
    Apply,
    /// Housekeeping.
    Upkeep,
    /// The checkpoint under way is written.
    Checkpointed,
    /// The next data file is made.
    Prepare,
    /// The threads of a replica have ended.
    Ended,
    /// What the store was closed for is done.
    Change,
    /// The store becomes a primary's.
    Promote,
    /// A primary looks at the time.
    LeadTick,
    /// The journal thread takes the next batch.
    Journal,
    /// The batch under way is written.
    Written,
    /// The broker looks at the time.
    BrokerTick,
    /// Everything that was led is closed.
    Close,
}

/// For one connection.
pub(crate) enum ConnEvent {
    /// It was made.
    Connected,
    /// It was not.
    Failed,
    /// It takes too long.
    Timeout,
    /// Our journal is read, to be compared.
    SourceLog,
    /// The session looks at the time.
    SourceTick,
    /// A commit position has waited long enough for a batch.
    Announce,
    /// An answer for the session.
    Source(Box<SourceEvent>),
    /// The chain of our journal is read.
    Chain(Lsn, u64),
    /// The transfer connection goes on.
    Transfer,
}
