//! A reign: what `node/src/cluster/{reign,mod}.rs` and the threads of a primary do.

use std::collections::{BTreeMap, BTreeSet};

use kahawai_election::{ClusterRecord, PrimaryRef, Request};
use kahawai_journal::{NewEpoch, Preparer, SealedBatch, Writer};
use kahawai_kdbr::ErrorFrame;
use kahawai_message::storage::Storage;
use kahawai_replication::{
    Primary, PrimaryEffect, PrimaryEvent, Ring, RingBatch, Rule, SessionId, SourceEvent,
};
use kahawai_shipping::{Sealed, chain};
use kahawai_store::checkpoint::Checkpoint;
use kahawai_store::collect::candidates;
use kahawai_store::{Follower, Store, generation};
use kahawai_types::{Epoch, Lsn, Millis, ReplicaId};

use super::feeding::Source;
use super::handover::Handover;
use super::{Decision, MS, Process, Role};
use crate::check;
use crate::ctx::Ctx;
use crate::event::RoleEvent;
use crate::net::ConnId;
use crate::options::Mutation;
use crate::service::{Service, ServiceOptions};
use crate::visitors::ToNode;
use crate::wire::ClientId;

/// How often the gate learns of a renewed grant.
const TICK: u64 = 20 * MS;
/// Operations applied under one lock.
const APPLY_MAX: usize = 64;
/// How often the broker looks at the time, at least.
const BROKER_TICK: u64 = 100 * MS;

/// A replica that becomes the primary.
pub(crate) struct Promoting {
    pub(super) follower: Follower,
    pub(super) writer: Writer,
    pub(super) preparer: Preparer,
    pub(super) epoch: Epoch,
    pub(super) record: ClusterRecord,
    pub(super) unclean: bool,
}

/// A primary at work.
pub(crate) struct Leading {
    pub(crate) me: ReplicaId,
    pub(crate) epoch: Epoch,
    pub(crate) unclean_generation: u64,
    pub(crate) store: Store,
    writer: Writer,
    preparer: Preparer,
    pub(crate) primary: Primary,
    effects: Vec<PrimaryEffect>,
    pub(super) ring: Ring,
    pub(crate) sealed: Sealed,
    /// What replicas are told.
    pub(crate) committed: Lsn,
    /// What clients may know.
    pub(crate) commit: Lsn,
    pub(crate) durable: Lsn,
    /// Milliseconds of the boot clock; 0 = shut for good.
    gate_until: Millis,
    pub(super) sources: BTreeMap<ConnId, Source>,
    pub(super) sessions: BTreeMap<SessionId, ConnId>,
    pub(super) session_last: u64,
    recorded: BTreeSet<ReplicaId>,
    /// By the number of their requests.
    pub(crate) proposals: BTreeMap<u64, BTreeSet<ReplicaId>>,
    predecessor: Option<PrimaryRef>,
    pub(crate) is_open: bool,
    pub(crate) is_suspended: bool,
    writing: Option<SealedBatch>,
    is_journal_due: bool,
    is_applying: bool,
    checkpoint: Option<Checkpoint>,
    checkpointed: (u64, Lsn),
    collected: u64,
    service: Service,
    pub(super) handover: Option<Handover>,
    /// Connections of clients.
    lines: BTreeMap<ClientId, u32>,
}

impl Leading {
    /// May anything leave for clients?
    pub(crate) fn gate_is_open(&self, ctx: &Ctx, node: usize) -> bool {
        let is_in_time = ctx.local_ms(node) < self.gate_until || ctx.mutated(Mutation::GateNotChecked);
        self.gate_until != 0 && is_in_time
    }

    /// The deadline that the gate was given; 0 = it is shut for good.
    pub(crate) fn gate_until(&self) -> Millis {
        self.gate_until
    }

    fn open_gate_until(&mut self, deadline_ms: Millis) {
        if self.gate_until != 0 {
            self.gate_until = deadline_ms.max(1);
        }
    }

    /// Appended, and not in a batch yet.
    pub(crate) fn has_work(&self) -> bool {
        self.writing.is_some() || self.store.appended_end() > self.sealed.end
    }

    fn is_settled(&self) -> bool {
        self.commit >= self.store.settled_from()
    }
}

impl Process {
    pub(super) fn promote(&mut self, ctx: &mut Ctx) {
        let Role::Promoting(promoting) = std::mem::replace(&mut self.role, Role::Over) else { return };
        let Promoting { follower, writer, preparer, epoch, record, unclean } = *promoting;
        let predecessor = self.primary.take();
        let ring_start = writer.written();
        let me = self.replica();
        check::i08::promotes(ctx, self.index, &me, epoch, unclean, follower.reader().durable_end());
        let new = NewEpoch {
            cluster_id: record.cluster_id,
            epoch,
            node_id: self.identity.node_id.clone(),
            store_id: self.identity.store_id,
            boot_id: self.identity.boot_id,
            revision: record.version,
            unclean,
        };
        let prepared = (|| -> Result<(), String> {
            let adopted = self.identity.adopt_cluster(&self.files, record.cluster_id);
            adopted.map_err(|error| chain(&error))?;
            generation::write(&self.files, record.unclean_generation).map_err(|error| error.to_string())?;
            if !ctx.mutated(Mutation::NoPromise) {
                self.identity.promise(&self.files, epoch).map_err(|error| chain(&error))?;
            }
            Ok(())
        })();
        if let Err(problem) = prepared {
            return self.exit(ctx, problem);
        }
        check::i04::promised(ctx, self.index, &self.identity);
        let promoted = match follower.promote(new) {
            Ok(promoted) => promoted,
            Err(problem) => {
                let problem = chain(&problem);
                check::cannot_promote(ctx, self.index, &problem);
                return self.exit(ctx, problem);
            }
        };
        let now = ctx.local_ms(self.index);
        let mut timing = ctx.shape.replication;
        if ctx.mutated(Mutation::EvictNobody) {
            timing.evict_ms = Millis::from(u32::MAX);
            timing.reconnect_ms = Millis::from(u32::MAX);
        }
        let mut primary = Primary::new(
            me.clone(),
            epoch,
            promoted.marker_end,
            record.in_sync.clone(),
            record.minimum_replicas,
            timing,
            now,
        );
        let broken = match ctx.shape.mutation {
            Some(Mutation::OwnMarker) => Some(Rule::OwnMarker),
            Some(Mutation::BothSets) => Some(Rule::BothSets),
            Some(Mutation::Evidence) => Some(Rule::Evidence),
            Some(Mutation::Minimum) => Some(Rule::Minimum),
            _ => None,
        };
        if let Some(rule) = broken {
            primary.break_rule(rule);
        }
        let mut store = promoted.store;
        ctx.services += 1;
        let begun = Service::begin(ctx.wall_ms(self.index), &mut store, ServiceOptions::small(ctx.services));
        let service = match begun {
            Ok(service) => service,
            Err(problem) => return self.exit(ctx, problem.to_string()),
        };
        let commit = store.committed();
        ctx.note(self.index, "leads, epoch and marker", epoch.0, promoted.marker_end.0);
        let leading = Leading {
            me,
            epoch,
            unclean_generation: record.unclean_generation,
            store,
            writer,
            preparer,
            primary,
            effects: Vec::new(),
            ring: Ring::new(ctx.shape.ring_bytes_max, ring_start),
            sealed: Sealed { end: ring_start, chain: 0, marker: None },
            committed: commit,
            commit,
            durable: Lsn::ZERO,
            gate_until: self.electing.lease_ms.max(1),
            sources: BTreeMap::new(),
            sessions: BTreeMap::new(),
            session_last: 0,
            recorded: record.in_sync,
            proposals: BTreeMap::new(),
            predecessor,
            is_open: false,
            is_suspended: false,
            writing: None,
            is_journal_due: false,
            is_applying: false,
            checkpoint: None,
            checkpointed: (now as u64, commit),
            collected: now as u64,
            service,
            handover: None,
            lines: BTreeMap::new(),
        };
        self.become_role(Role::Leading(Box::new(leading)));
        self.role_later(ctx, TICK, RoleEvent::LeadTick);
        self.role_later(ctx, ctx.shape.upkeep_us, RoleEvent::Upkeep);
        self.role_later(ctx, BROKER_TICK, RoleEvent::BrokerTick);
        self.journal_later(ctx);
        self.decide_later(ctx);
    }

    pub(super) fn leading(&mut self) -> Option<&mut Leading> {
        match &mut self.role {
            Role::Leading(leading) => Some(leading),
            _ => None,
        }
    }

    pub(super) fn lead_decision(&mut self, ctx: &mut Ctx, decision: Decision) {
        match decision {
            Decision::StepDown => self.step_down(ctx),
            Decision::Changed(record) => {
                let Some(leading) = self.leading() else { return };
                if record.in_sync != leading.recorded {
                    leading.recorded.clone_from(&record.in_sync);
                    self.primary_step(ctx, PrimaryEvent::Changed { in_sync: &record.in_sync });
                }
                self.primary_step(ctx, PrimaryEvent::Minimum(record.minimum_replicas));
            }
            Decision::Follow { primary } => self.primary = primary,
            Decision::Lead { .. } => {}
        }
    }

    /// The gate first, then everything else.
    fn step_down(&mut self, ctx: &mut Ctx) {
        let Role::Leading(mut leading) = std::mem::replace(&mut self.role, Role::Over) else { return };
        leading.gate_until = 0;
        ctx.note(self.index, "steps down, commit", leading.commit.0, leading.epoch.0);
        let sources: Vec<ConnId> = leading.sources.keys().copied().collect();
        self.role = Role::Leading(leading);
        for conn in sources {
            let leave = SourceEvent::Leave {
                reason: "this node no longer leads".into(),
                reconnect_after_ms: Some(100),
            };
            self.source_step(ctx, conn, leave);
        }
        self.drop_transfers(ctx);
        self.dismiss_all(ctx);
        let Role::Leading(leading) = std::mem::replace(&mut self.role, Role::Over) else { return };
        self.known_commit = leading.commit;
        self.become_role(Role::Closing(leading));
        let takes = ctx.flush_us(self.index) * 2;
        self.role_later(ctx, takes, RoleEvent::Close);
    }

    /// What was confirmed is durable, the index is written as far as it may be.
    pub(super) fn closed(&mut self, ctx: &mut Ctx) {
        let Role::Closing(leading) = std::mem::replace(&mut self.role, Role::Over) else { return };
        let mut leading = *leading;
        if let Some(checkpoint) = leading.checkpoint.take()
            && let Err(problem) = write_checkpoint(ctx, self.index, &mut leading, checkpoint)
        {
            return self.fail(ctx, problem);
        }
        leading.store.journal().close();
        let finished = (|| -> Result<(), String> {
            if let Some(batch) = leading.writing.take() {
                let held = batch.clone();
                leading.writer.write(batch).map_err(|error| chain(&error))?;
                check::written(ctx, self.index, &leading.me, &held);
            }
            while let Some(batch) = leading.writer.try_next(leading.commit).map_err(|error| chain(&error))? {
                check::sealed(ctx, self.index, &leading.me, &batch);
                let held = batch.clone();
                leading.writer.write(batch).map_err(|error| chain(&error))?;
                check::written(ctx, self.index, &leading.me, &held);
            }
            let mut out = Vec::new();
            let more = |error: kahawai_message::storage::StorageError| error.to_string();
            while leading.store.apply(leading.commit, usize::MAX, &mut out).map_err(more)? {}
            let clean = leading.store.applied() == leading.store.appended_end();
            if leading.is_settled() {
                let checkpoint = leading.store.begin_checkpoint(clean);
                write_checkpoint(ctx, self.index, &mut leading, checkpoint)?;
            }
            Ok(())
        })();
        if let Err(problem) = finished {
            return self.fail(ctx, problem);
        }
        drop(leading);
        self.begin_opening(ctx);
    }

    /// Offers an event to the machine and carries out what it says.
    pub(super) fn primary_step(&mut self, ctx: &mut Ctx, event: PrimaryEvent<'_>) {
        let now = ctx.local_ms(self.index);
        let Some(leading) = self.leading() else { return };
        let mut effects = std::mem::take(&mut leading.effects);
        leading.primary.step(now, event, &mut effects);
        if matches!(event, PrimaryEvent::Tick) {
            // What was committed while the gate was shut, and the grant was renewed after all.
            let commit = leading.primary.commit();
            self.confirm(ctx, commit);
        }
        for effect in effects.drain(..) {
            match effect {
                PrimaryEffect::Commit(at) => {
                    check::committed(ctx, self, at);
                    self.confirm(ctx, at);
                    let Some(leading) = self.leading() else { break };
                    leading.committed = at;
                    self.announce_later(ctx);
                }
                PrimaryEffect::Activate => self.activate(ctx),
                PrimaryEffect::Propose { in_sync, reason } => {
                    ctx.say(self.index, || format!("proposes {}: {reason}", set(&in_sync)));
                    let index = self.index;
                    if let Some(leading) = self.leading() {
                        let before = leading.recorded.len();
                        let minimum = leading.primary.status().minimum_replicas;
                        check::i12::proposed(ctx, index, before, in_sync.len(), minimum);
                    }
                    let id = self.request(ctx, Request::InSync(in_sync.clone()));
                    if let Some(leading) = self.leading() {
                        leading.proposals.insert(id, in_sync);
                    }
                }
                PrimaryEffect::Suspended { reason } => {
                    ctx.say(self.index, || format!("suspended: {reason}"));
                    if let Some(leading) = self.leading() {
                        leading.is_suspended = true;
                        leading.is_open = true;
                    }
                    self.suspend_service(ctx, true);
                }
                PrimaryEffect::Resumed => {
                    if let Some(leading) = self.leading() {
                        leading.is_suspended = false;
                    }
                    self.suspend_service(ctx, false);
                }
                PrimaryEffect::Stalled { for_ms } => {
                    ctx.say(self.index, || format!("our disk hangs since {for_ms} ms, a replica's does not"));
                    self.tell(ctx, kahawai_election::Event::DiskStalled);
                }
                PrimaryEffect::Left { replica, reason } => {
                    ctx.say(self.index, || format!("{replica} left the set: {reason}"));
                    ctx.note(self.index, "left the set", 0, 0);
                }
                PrimaryEffect::Joined { replica } => {
                    ctx.say(self.index, || format!("{replica} joined the set"));
                    ctx.note(self.index, "joined the set", 0, 0);
                }
                PrimaryEffect::Refuse { session, refusal } => {
                    if let Some(conn) = self.leading().and_then(|l| l.sessions.get(&session).copied()) {
                        let hop = ctx.hop();
                        let refuse = SourceEvent::Refuse(ErrorFrame::from(&refusal));
                        self.source_later(ctx, conn, hop, refuse);
                    }
                }
            }
        }
        if let Some(leading) = self.leading() {
            leading.effects = effects;
        }
    }

    /// Everything below is on all replicas that have to have it: clients may know, unless the gate is shut.
    fn confirm(&mut self, ctx: &mut Ctx, to: Lsn) {
        let index = self.index;
        let Some(leading) = self.leading() else { return };
        if to <= leading.commit || !leading.gate_is_open(ctx, index) {
            return;
        }
        leading.commit = to;
        check::i05::confirmed(ctx, self, to);
        self.lead_apply_later(ctx);
    }

    fn activate(&mut self, ctx: &mut Ctx) {
        let marker = self.leading().and_then(|leading| {
            leading.is_open = true;
            leading.sealed.marker
        });
        if let Some((start, chain)) = marker {
            self.request(ctx, Request::Activate { start, chain });
        }
        ctx.note(self.index, "active", 0, 0);
    }

    /// The record's answer to a proposal.
    pub(super) fn answered(&mut self, ctx: &mut Ctx, request: u64, applied: bool, stepped_down: bool) {
        if self.handed_over(ctx, request, applied) {
            return;
        }
        let Some(leading) = self.leading() else { return };
        let Some(proposed) = leading.proposals.remove(&request) else { return };
        if applied {
            leading.recorded = proposed;
        } else if stepped_down {
            return;
        }
        let recorded = leading.recorded.clone();
        self.primary_step(ctx, PrimaryEvent::Decided { in_sync: &recorded });
    }

    /// For a mutation: what has no answer is taken for refused.
    pub(super) fn forget_proposals(&mut self, ctx: &mut Ctx) {
        let Some(leading) = self.leading() else { return };
        let open: Vec<u64> = leading.proposals.keys().copied().collect();
        for request in open {
            self.answered(ctx, request, false, false);
        }
    }

    pub(super) fn leading_event(&mut self, ctx: &mut Ctx, what: RoleEvent) {
        match what {
            RoleEvent::LeadTick => {
                self.role_later(ctx, TICK, RoleEvent::LeadTick);
                let lease = self.electing.lease_ms;
                let Some(leading) = self.leading() else { return };
                leading.open_gate_until(lease);
                // The predecessor is dead, or closes its store now.
                if let Some(predecessor) = leading.predecessor.take() {
                    let replica = predecessor.replica();
                    self.primary_step(ctx, PrimaryEvent::Gone { replica: &replica });
                }
                self.primary_step(ctx, PrimaryEvent::Tick);
                self.settle(ctx);
            }
            RoleEvent::Journal => self.journal(ctx),
            RoleEvent::Written => self.written(ctx),
            RoleEvent::Apply => self.lead_apply(ctx),
            RoleEvent::BrokerTick => {
                let now = ctx.wall_ms(self.index);
                self.role_later(ctx, BROKER_TICK, RoleEvent::BrokerTick);
                let Some(leading) = self.leading() else { return };
                leading.service.tick(now, &mut leading.store);
                self.served(ctx);
            }
            RoleEvent::Upkeep => self.lead_upkeep(ctx),
            RoleEvent::Checkpointed => {
                let Some(leading) = self.leading() else { return };
                let Some(checkpoint) = leading.checkpoint.take() else { return };
                let index = self.index;
                let Role::Leading(leading) = &mut self.role else { return };
                if let Err(problem) = write_checkpoint(ctx, index, leading, checkpoint) {
                    self.fail(ctx, problem);
                }
            }
            RoleEvent::Prepare => {
                if let Some(leading) = self.leading() {
                    let _ = leading.preparer.run_once();
                }
            }
            _ => {}
        }
    }

    /// Something was appended.
    pub(crate) fn journal_later(&mut self, ctx: &mut Ctx) {
        let Some(leading) = self.leading() else { return };
        if !leading.is_journal_due && leading.writing.is_none() {
            leading.is_journal_due = true;
            let hop = ctx.hop();
            self.role_later(ctx, hop, RoleEvent::Journal);
        }
    }

    /// The journal thread takes the next batch, and the replicas get it.
    fn journal(&mut self, ctx: &mut Ctx) {
        let index = self.index;
        let Some(leading) = self.leading() else { return };
        leading.is_journal_due = false;
        if leading.writing.is_some() {
            return;
        }
        let batch = match leading.writer.try_next(leading.commit) {
            Ok(None) => return,
            Ok(Some(batch)) => batch,
            Err(problem) => {
                let problem = chain(&problem);
                return self.fail(ctx, problem);
            }
        };
        check::sealed(ctx, index, &leading.me, &batch);
        leading.ring.push(RingBatch {
            start: batch.start,
            end: batch.end,
            prev_chain: batch.prev_chain.0,
            epoch: batch.epoch,
            bytes: batch.bytes(),
        });
        leading.sealed.end = batch.end;
        leading.sealed.chain = batch.chain.0;
        let is_first = leading.sealed.marker.is_none();
        leading.sealed.marker.get_or_insert((batch.start, batch.prev_chain.0));
        let end = batch.end;
        leading.writing = Some(batch);
        self.primary_step(ctx, PrimaryEvent::Appended(end));
        if is_first {
            self.sources_may_begin(ctx);
        }
        self.feed_all(ctx);
        let takes = ctx.flush_us(index);
        self.role_later(ctx, takes, RoleEvent::Written);
    }

    /// The batch is durable here.
    pub(super) fn written(&mut self, ctx: &mut Ctx) {
        let index = self.index;
        let Some(leading) = self.leading() else { return };
        let Some(batch) = leading.writing.take() else { return };
        let held = batch.clone();
        match leading.writer.write(batch) {
            Ok(end) => {
                leading.durable = end;
                check::written(ctx, index, &leading.me, &held);
                self.primary_step(ctx, PrimaryEvent::LocalDurable(end));
                // Of those that look into the files.
                self.feed_all(ctx);
                self.journal_later(ctx);
                let takes = ctx.flush_us(index);
                self.role_later(ctx, takes, RoleEvent::Prepare);
            }
            Err(problem) => {
                let problem = chain(&problem);
                self.fail(ctx, problem);
            }
        }
    }

    fn lead_apply_later(&mut self, ctx: &mut Ctx) {
        let Some(leading) = self.leading() else { return };
        if !leading.is_applying {
            leading.is_applying = true;
            let hop = ctx.hop();
            self.role_later(ctx, hop, RoleEvent::Apply);
        }
    }

    fn suspend_service(&mut self, ctx: &mut Ctx, suspended: bool) {
        let now = ctx.wall_ms(self.index);
        let Some(leading) = self.leading() else { return };
        leading.service.suspend(now, &mut leading.store, suspended);
        self.served(ctx);
    }

    fn lead_apply(&mut self, ctx: &mut Ctx) {
        let index = self.index;
        let now = ctx.wall_ms(index);
        let Some(leading) = self.leading() else { return };
        leading.is_applying = false;
        let more = leading.service.apply(now, &mut leading.store, leading.commit, APPLY_MAX);
        check::lead_applied(ctx, index, leading);
        if more {
            self.lead_apply_later(ctx);
        }
        self.served(ctx);
    }

    /// What the broker said and appended.
    fn served(&mut self, ctx: &mut Ctx) {
        let index = self.index;
        let Some(leading) = self.leading() else { return };
        if let Some(problem) = leading.service.failed() {
            let problem = problem.to_owned();
            return self.fail(ctx, problem);
        }
        let is_open = leading.gate_is_open(ctx, index);
        let mut said = 0;
        let mut dropped = Vec::new();
        for (client, answer) in leading.service.answers() {
            let Some(&line) = leading.lines.get(&client) else { continue };
            if is_open {
                ctx.answers.push((client, line, Some(answer)));
                said += 1;
            } else {
                dropped.push(client);
            }
        }
        for client in dropped {
            self.dismiss(ctx, client);
        }
        if said > 0 {
            let outcome = check::i17::answers(ctx, self);
            ctx.require(outcome);
            let outcome = check::i15::answers(self);
            ctx.require(outcome);
        }
        self.journal_later(ctx);
    }

    /// Closes a client's connection.
    fn dismiss(&mut self, ctx: &mut Ctx, client: ClientId) {
        let now = ctx.wall_ms(self.index);
        let Some(leading) = self.leading() else { return };
        if let Some(line) = leading.lines.remove(&client) {
            ctx.answers.push((client, line, None));
            leading.service.gone(now, &mut leading.store, client);
        }
    }

    /// Something of a client has arrived; `false` = nobody takes it.
    pub(crate) fn client(&mut self, ctx: &mut Ctx, client: ClientId, line: u32, what: ToNode) -> bool {
        let index = self.index;
        let now = ctx.wall_ms(index);
        let Some(what) = self.unless_handing_over(client, line, what) else { return true };
        let Some(leading) = self.leading() else { return false };
        match what {
            ToNode::Dial => {
                if !leading.is_open || !leading.gate_is_open(ctx, index) {
                    return false;
                }
                if leading.lines.insert(client, line).is_some() {
                    leading.service.gone(now, &mut leading.store, client);
                }
            }
            _ if leading.lines.get(&client) != Some(&line) => return false,
            ToNode::Ask(ask) => leading.service.ask(now, &mut leading.store, client, ask),
            ToNode::Gone => {
                leading.lines.remove(&client);
                leading.service.gone(now, &mut leading.store, client);
            }
        }
        self.served(ctx);
        true
    }

    /// The connections of clients end with the reign.
    pub(crate) fn dismiss_all(&mut self, ctx: &mut Ctx) {
        let Some(leading) = self.leading() else { return };
        for (client, line) in std::mem::take(&mut leading.lines) {
            ctx.answers.push((client, line, None));
        }
    }

    fn lead_upkeep(&mut self, ctx: &mut Ctx) {
        self.role_later(ctx, ctx.shape.upkeep_us, RoleEvent::Upkeep);
        let index = self.index;
        let now = ctx.local_ms(index) as u64;
        let may_collect = self.may_collect(ctx);
        let early = ctx.mutated(Mutation::EarlyCheckpoint);
        let early_retire = ctx.mutated(Mutation::EarlyRetire);
        let flush = ctx.flush_us(index);
        let Some(leading) = self.leading() else { return };
        if leading.checkpoint.is_some() {
            return;
        }
        let (at, position) = leading.checkpointed;
        let commit = leading.commit;
        if (commit != position || early)
            && now - at >= ctx.shape.checkpoint_ms
            && (leading.is_settled() || early)
        {
            leading.checkpointed = (now, commit);
            leading.checkpoint = Some(leading.store.begin_checkpoint(false));
            return self.role_later(ctx, flush * 2, RoleEvent::Checkpointed);
        }
        if now - leading.collected >= ctx.shape.collect_ms && leading.is_settled() && may_collect {
            leading.collected = now;
            if let Ok(files) = leading.store.collect()
                && !files.is_empty()
            {
                ctx.note(index, "collects data files", files.len() as u64, 0);
            }
            // However many live messages it has: here no file is ever nearly empty.
            if let Some(file) = leading.store.sparser_file(1)
                && let Ok(records) = candidates(&leading.store.reader(), file)
                && let Ok(moved) = leading.store.relocate(&records)
            {
                ctx.note(index, "messages moved, of file", moved as u64, file.into());
            }
            self.journal_later(ctx);
        }
        let Some(leading) = self.leading() else { return };
        if !may_collect {
            return;
        }
        let files = if early_retire {
            leading.store.state().collected.iter().copied().collect()
        } else {
            leading.store.to_retire()
        };
        for file in files {
            let Some(leading) = self.leading() else { return };
            if leading.store.journal().retire([file]).is_ok() {
                ctx.note(index, "data file deleted", file.into(), 0);
                leading.store.retired(file);
                check::i20::retired(ctx, index, &self.identity, file);
            }
        }
    }
}

fn write_checkpoint(
    ctx: &mut Ctx,
    index: usize,
    leading: &mut Leading,
    checkpoint: Checkpoint,
) -> Result<(), String> {
    let header = checkpoint.header;
    ctx.note(index, "checkpoint", header.applied.0, header.replay_from.0);
    leading.store.index().write(checkpoint).map_err(|error| chain(&error))?;
    leading.store.finish_checkpoint(header);
    Ok(())
}

/// Names, for people.
pub(crate) fn set(replicas: &BTreeSet<ReplicaId>) -> String {
    let names: Vec<String> = replicas.iter().map(ToString::to_string).collect();
    names.join(" ")
}
