//! A node: a machine with a disk and a clock, and its process if it runs.
//!
//! The process is `node/src/cluster` without threads and sockets: the same machines, the same journal and store, the same order
//! of durable steps. What takes time there is an event that happens later here; what runs at the same time there are events
//! between each other.
//!
//! ```text
//!   Opening --> Following --> Ending --> Changing (cut / install on a closed store) --> Opening
//!                                  \---> Promoting --> Leading --> Closing ----------> Opening
//! ```

mod bulk;
pub(crate) mod copying;
mod electing;
mod feeding;
pub(crate) mod following;
mod handover;
pub(crate) mod leading;
mod link;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use kahawai_election::{ClusterRecord, Condition, Elector, Event as Told, Local, PrimaryRef, Settings};
use kahawai_env::Files;
use kahawai_journal::{Chain, JournalOptions};
use kahawai_replication::sync::Leases;
use kahawai_shipping::chain;
use kahawai_store::{Follower, Identity, OpenOptions, StoreState};
use kahawai_testkit::{ManualClock, MemoryFiles};
use kahawai_types::{Epoch, Lsn, ReplicaId};

use crate::clock::SimEntropy;
use crate::ctx::{Ctx, address, name};
use crate::event::{Event, NodeEvent, RoleEvent};
use crate::net::{ConnId, EndPoint};
use crate::options::Mutation;
use crate::{Micros, check};

use electing::Electing;
use following::{Ending, Following};
use leading::{Leading, Promoting};
use link::End;

const MS: Micros = 1_000;
/// Before the next attempt at a primary that refuses this store, or after a journal could not be cut.
const REDIAL_REFUSED: Micros = 5_000 * MS;

/// A machine.
pub(crate) struct Node {
    pub(crate) index: usize,
    pub(crate) disk: MemoryFiles,
    /// Grows with each start; events of an earlier life are nobody's.
    pub(crate) life: u32,
    pub(crate) process: Option<Process>,
    /// The process stands still until then.
    pub(crate) paused_until: Micros,
    /// Nobody starts it.
    pub(crate) stays_away: bool,
}

/// What the rest of the node has to do.
pub(crate) enum Decision {
    Lead { epoch: Epoch, record: Box<ClusterRecord>, unclean: bool },
    Follow { primary: Option<PrimaryRef> },
    StepDown,
    Changed(Box<ClusterRecord>),
}

/// Why following ended.
pub(crate) enum FollowEnd {
    Lead { epoch: Epoch, record: Box<ClusterRecord>, unclean: bool },
    Reopen(Change),
}

/// What a store is closed for.
pub(crate) enum Change {
    Truncate { to: Lsn, chain: Chain, unclean: bool },
    Install(Box<kahawai_kdbr::SyncManifest>, Vec<kahawai_journal::EpochStart>),
}

/// What the process is at the moment.
pub(crate) enum Role {
    /// The store is about to be opened.
    Opening,
    Following(Box<Following>),
    /// The threads of a replica end.
    Ending(Box<Ending>),
    /// The store is closed, and changed.
    Changing(Box<Change>),
    Promoting(Box<Promoting>),
    Leading(Box<Leading>),
    /// What was led is closed.
    Closing(Box<Leading>),
    /// The process is about to end.
    Over,
}

/// A running process.
pub(crate) struct Process {
    pub(crate) index: usize,
    pub(crate) life: u32,
    memory: MemoryFiles,
    files: Arc<dyn Files>,
    pub(crate) identity: Identity,
    entropy: SimEntropy,
    electing: Electing,
    decisions: VecDeque<Decision>,
    is_deciding: bool,
    primary: Option<PrimaryRef>,
    known_commit: Lsn,
    pub(crate) role: Role,
    role_number: u32,
    ends: BTreeMap<ConnId, End>,
    /// Synchronisations of others: they outlive a reign.
    leases: Leases,
    /// Storage failed: nothing leaves any more.
    pub(crate) failed: Option<String>,
    /// It ends as soon as the event under way is done, and why.
    pub(crate) exits: Option<String>,
}

impl Process {
    /// Starts. An error is why it could not.
    pub(crate) fn start(ctx: &mut Ctx, index: usize, life: u32, memory: MemoryFiles) -> Result<Self, String> {
        let files: Arc<dyn Files> = Arc::new(memory.clone());
        let entropy = SimEntropy::new(ctx.random.next_u64());
        let identity = Identity::open_as(&files, &entropy, &name(index)).map_err(|error| chain(&error))?;
        let saved = kahawai_store::load_record(&files).map_err(|error| chain(&error))?;
        let saved = saved.and_then(|bytes| ClusterRecord::decode(&bytes).ok());
        let settings = Settings {
            me: ReplicaId { node: identity.node_id.clone(), store: identity.store_id },
            boot: identity.boot_id,
            address: address(index),
            clients: Vec::new(),
            priority: 0,
            minimum_replicas: ctx.shape.minimum_replicas,
            timing: ctx.shape.election,
        };
        let names = files.list("").map_err(|error| error.to_string())?;
        let local = Local {
            cluster_id: identity.cluster_id,
            promised: identity.promised_epoch,
            last_epoch: Epoch(0),
            end: Lsn::ZERO,
            journal_is_empty: !names.iter().any(|name| kahawai_journal::data_file_id(name).is_some()),
            condition: Condition::Syncing,
        };
        let elector = Elector::new(settings, local, saved.as_ref());
        let electing = Electing::new(ctx, index, elector);
        if let Some(boot) = ctx.boots.get_mut(index) {
            *boot = identity.boot_id;
        }
        check::i04::started(ctx, index, &identity);
        let mut process = Self {
            index,
            life,
            memory,
            files,
            identity,
            entropy,
            electing,
            decisions: VecDeque::new(),
            is_deciding: false,
            primary: None,
            known_commit: Lsn::ZERO,
            role: Role::Opening,
            role_number: 0,
            ends: BTreeMap::new(),
            leases: Leases::new(),
            failed: None,
            exits: None,
        };
        process.tell_later(ctx, 0, NodeEvent::ElectTick);
        process.tell_later(ctx, 1, NodeEvent::ServiceNews);
        process.begin_opening(ctx);
        Ok(process)
    }

    pub(crate) fn point(&self) -> EndPoint {
        EndPoint { node: self.index, life: self.life }
    }

    pub(crate) fn replica(&self) -> ReplicaId {
        ReplicaId { node: self.identity.node_id.clone(), store: self.identity.store_id }
    }

    fn tell_later(&self, ctx: &mut Ctx, delay: Micros, what: NodeEvent) {
        ctx.at(delay, Event::Node { node: self.index, life: self.life, what });
    }

    fn role_later(&self, ctx: &mut Ctx, delay: Micros, what: RoleEvent) {
        self.tell_later(ctx, delay, NodeEvent::Role { role: self.role_number, what });
    }

    /// For the elector, by way of its channel.
    fn tell(&self, ctx: &mut Ctx, told: Told) {
        let hop = ctx.hop();
        self.tell_later(ctx, hop, NodeEvent::Tell(Box::new(told)));
    }

    fn become_role(&mut self, role: Role) {
        self.role_number += 1;
        self.role = role;
    }

    /// The process ends: its session in good order, so that nobody waits for it to expire.
    fn exit(&mut self, ctx: &mut Ctx, reason: String) {
        if self.exits.is_none() {
            ctx.say(self.index, || format!("exits: {reason}"));
            ctx.note(self.index, "exits", 0, 0);
            self.exits = Some(reason);
        }
    }

    /// Storage failed: nothing is confirmed or acknowledged any more.
    fn fail(&mut self, ctx: &mut Ctx, reason: String) {
        self.failed.get_or_insert_with(|| reason.clone());
        self.tell(ctx, Told::StorageFailed);
        self.exit(ctx, reason);
    }

    /// One event of this process.
    pub(crate) fn event(&mut self, ctx: &mut Ctx, what: NodeEvent) {
        match what {
            NodeEvent::Role { role, what } if role == self.role_number => self.role_event(ctx, what),
            NodeEvent::Role { .. } => {}
            NodeEvent::Decide => {
                self.is_deciding = false;
                self.decide(ctx);
            }
            NodeEvent::Answered { request, applied, stepped_down } => {
                self.answered(ctx, request, applied, stepped_down);
            }
            NodeEvent::Conn { conn, what } => self.conn_event(ctx, conn, what),
            other => self.service_event(ctx, other),
        }
    }

    fn role_event(&mut self, ctx: &mut Ctx, what: RoleEvent) {
        match what {
            RoleEvent::Open => self.open(ctx),
            RoleEvent::Change => self.change(ctx),
            RoleEvent::Promote => self.promote(ctx),
            RoleEvent::Ended => self.ended(ctx),
            RoleEvent::Close => self.closed(ctx),
            what => match &self.role {
                Role::Following(_) => self.following_event(ctx, what),
                Role::Leading(_) => self.leading_event(ctx, what),
                _ => {}
            },
        }
    }

    /// Looks at decisions, if this role does; others leave them for the next.
    fn decide(&mut self, ctx: &mut Ctx) {
        while self.exits.is_none()
            && matches!(self.role, Role::Following(_) | Role::Leading(_))
            && let Some(decision) = self.decisions.pop_front()
        {
            match &self.role {
                Role::Following(_) => self.follow_decision(ctx, decision),
                _ => self.lead_decision(ctx, decision),
            }
        }
    }

    fn decide_later(&mut self, ctx: &mut Ctx) {
        if !self.is_deciding {
            self.is_deciding = true;
            let hop = ctx.hop();
            self.tell_later(ctx, hop, NodeEvent::Decide);
        }
    }

    fn begin_opening(&mut self, ctx: &mut Ctx) {
        self.become_role(Role::Opening);
        let takes = ctx.flush_us(self.index) * 3;
        self.role_later(ctx, takes, RoleEvent::Open);
    }

    pub(crate) fn open_options(ctx: &Ctx, index: usize) -> OpenOptions {
        let journal = JournalOptions {
            file_bytes_max: ctx.shape.file_bytes_max,
            batch_bytes_max: ctx.shape.batch_bytes_max,
            recent_bytes_max: 16 << 10,
            batches_behind_prove: false,
            clock: Arc::new(ManualClock::default()),
            ..JournalOptions::default()
        };
        // With this rule alone, the index is built from the files that stay, and nothing is lost.
        let ignore_holes = ctx.mutated(Mutation::EarlyRetire);
        OpenOptions { journal, node_id: name(index), ignore_holes, ..OpenOptions::default() }
    }

    /// Opens the store as a follower's.
    fn open(&mut self, ctx: &mut Ctx) {
        if self.identity.state == StoreState::Syncing
            && let Err(problem) = self.install(ctx, &[])
        {
            return self.exit(ctx, problem);
        }
        let options = Self::open_options(ctx, self.index);
        let known = self.known_commit;
        let opened = match Follower::open(&self.files, &self.entropy, &options, known) {
            Ok(opened) => opened,
            Err(problem) => {
                let problem = chain(&problem);
                check::cannot_open(ctx, self.index, &problem);
                return self.exit(ctx, problem);
            }
        };
        let end = opened.report.recovery.end;
        ctx.note(self.index, "opened, end and applied", end.0, opened.follower.applied().0);
        check::opened(ctx, self.index, &self.identity, &opened);
        self.begin_following(ctx, opened);
    }

    /// What a closed store was closed for.
    fn change(&mut self, ctx: &mut Ctx) {
        let Role::Changing(change) = std::mem::replace(&mut self.role, Role::Opening) else { return };
        match *change {
            Change::Truncate { to, chain: expected, unclean } => {
                check::i11::truncating(ctx, self.index, &self.identity, to, unclean);
                match kahawai_store::truncate(&self.files, to, Some(expected), unclean) {
                    Ok(cut) => {
                        ctx.note(self.index, "cut, bytes", to.0, cut.dropped_bytes);
                        let names = self.files.list("").unwrap_or_default();
                        let is_empty =
                            !names.iter().any(|name| kahawai_journal::data_file_id(name).is_some());
                        check::i11::truncated(ctx, self.index, &self.identity, to, &cut, is_empty);
                    }
                    Err(problem) => {
                        let problem = chain(&problem);
                        ctx.say(self.index, || format!("cannot cut at {to}: {problem}"));
                        ctx.note(self.index, "not cut", to.0, 0);
                        self.become_role(Role::Opening);
                        return self.role_later(ctx, REDIAL_REFUSED, RoleEvent::Open);
                    }
                }
            }
            Change::Install(manifest, epochs) => {
                let installed = self.keep_and_install(ctx, &manifest, &epochs);
                if let Err(problem) = installed {
                    return self.exit(ctx, problem);
                }
                check::i22::installed(ctx, self.index, &self.identity, &manifest);
            }
        }
        self.begin_opening(ctx);
    }

    fn keep_and_install(
        &mut self,
        ctx: &mut Ctx,
        manifest: &kahawai_kdbr::SyncManifest,
        epochs: &[kahawai_journal::EpochStart],
    ) -> Result<(), String> {
        let set = self.identity.set_state(&self.files, StoreState::Syncing);
        set.map_err(|error| chain(&error))?;
        kahawai_shipping::keep_manifest(&self.files, manifest).map_err(|error| error.to_string())?;
        self.install(ctx, epochs)
    }

    fn install(&mut self, ctx: &mut Ctx, epochs: &[kahawai_journal::EpochStart]) -> Result<(), String> {
        if let Some((manifest, _)) = kahawai_shipping::install(&self.files, epochs)? {
            ctx.note(self.index, "installed", manifest.stream_start.0, manifest.files.len() as u64);
        }
        self.identity.set_state(&self.files, StoreState::Clean).map_err(|error| chain(&error))
    }

    /// What is under way when the process is killed has perhaps been done, or half done.
    pub(crate) fn before_death(&mut self, ctx: &mut Ctx) {
        if ctx.random.chance(2) {
            self.memory.die_after(ctx.random.below(12));
            match &self.role {
                Role::Following(_) => self.copied(ctx),
                Role::Leading(_) => self.written(ctx),
                Role::Promoting(_) => self.promote(ctx),
                Role::Changing(_) => self.change(ctx),
                Role::Opening => self.open(ctx),
                Role::Ending(_) => self.ended(ctx),
                Role::Closing(_) => self.closed(ctx),
                Role::Over => {}
            }
        }
    }
}
