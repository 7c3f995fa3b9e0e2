//! One write at a time, and what its outcome means.
//!
//! - Applied: the record is what was written.
//! - Unknown: the same write again, on the same revision. A read that shows that revision proves nothing.
//! - Conflict: the record is read. If it carries our mark, or the proposed set under our epoch, an earlier attempt was
//!   applied; with the set as it was under our epoch, none was, and none can be any more; otherwise somebody else leads.
//! - Grant lost: somebody else may lead.

use kahawai_types::{ClusterId, Epoch, Millis, NodeId, ReplicaId};

use super::reading::View;
use super::{Elector, QUEUE_MAX, Role};
use crate::effect::{Effect, Refusal, StepDownReason};
use crate::event::Request;
use crate::format::COUNT_MAX;
use crate::provider::{CasResult, Fence, Revision};
use crate::record::{ClusterRecord, Member, Phase, PrimaryRef, REMOVED_MAX};

/// What members of this release may write.
const FEATURE_LEVEL: u32 = 1;

/// What a write is for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Purpose {
    /// The first record.
    Create,
    /// A new epoch, ours.
    Lead,
    /// Somebody's change.
    Request { id: u64, request: Request },
    /// Nobody leads any more.
    Farewell,
    /// The record that the service lost.
    Restore { id: u64 },
}

/// Where a write is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Flight {
    /// With the service.
    Sent,
    /// The outcome is unknown; sent again then.
    Unknown { retry_at: Millis },
    /// Not applied as it was sent, unless a read shows that an earlier attempt was.
    Conflicted,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Write {
    op: u128,
    pub(super) purpose: Purpose,
    /// None creates.
    expected: Option<Revision>,
    record: Box<ClusterRecord>,
    fence: Option<Fence>,
    flight: Flight,
}

impl Write {
    pub(super) fn is_fenced(&self) -> bool {
        self.fence.is_some()
    }

    pub(super) fn retry_at(&self) -> Option<Millis> {
        match self.flight {
            Flight::Unknown { retry_at } => Some(retry_at),
            Flight::Sent | Flight::Conflicted => None,
        }
    }

    fn effect(&self) -> Effect {
        let (op, record) = (self.op, self.record.encode());
        match self.expected {
            Some(expected) => Effect::Cas { op, expected, record, fence: self.fence },
            None => Effect::Create { op, record },
        }
    }
}

impl Elector {
    fn send(
        &mut self,
        purpose: Purpose,
        expected: Option<Revision>,
        record: ClusterRecord,
        fence: Option<Fence>,
        fx: &mut Vec<Effect>,
    ) {
        assert!(self.write.is_none(), "two writes at once");
        self.counter += 1;
        // Unique without a random source: the process's identity is random already.
        let op = self.settings.boot.0.wrapping_add(u128::from(self.counter));
        let record = ClusterRecord { last_op: op, version: record.version.saturating_add(1), ..record };
        let record = Box::new(record);
        let write = Write { op, purpose, expected, record, fence, flight: Flight::Sent };
        fx.push(write.effect());
        self.write = Some(write);
    }

    pub(super) fn repeat_write(&mut self, now: Millis, fx: &mut Vec<Effect>) {
        if let Some(write) = &mut self.write
            && write.retry_at().is_some_and(|at| now >= at)
        {
            write.flight = Flight::Sent;
            fx.push(write.effect());
        }
    }

    pub(super) fn create_record(&mut self, fx: &mut Vec<Effect>) {
        let record = ClusterRecord {
            cluster_id: self.local.cluster_id,
            feature_level: FEATURE_LEVEL,
            epoch: self.local.promised.max(self.local.last_epoch),
            version: 0,
            primary: None,
            phase: Phase::Recovering,
            in_sync: [self.settings.me.clone()].into(),
            minimum_replicas: self.settings.minimum_replicas,
            epoch_start: None,
            members: [(self.settings.me.node.clone(), self.own_membership())].into(),
            removed: [].into(),
            unclean_generation: 0,
            successor: None,
            last_op: 0,
        };
        self.send(Purpose::Create, None, record, None, fx);
    }

    fn own_membership(&self) -> Member {
        Member {
            store: self.settings.me.store,
            address: self.settings.address.clone(),
            clients: self.settings.clients.clone(),
            priority: self.settings.priority,
        }
    }

    /// With the grant and a fresh record: writes the next epoch, if that is still ours to do.
    pub(super) fn try_to_lead(&mut self, now: Millis, fx: &mut Vec<Effect>) {
        let Role::Granted { fence, forced } = self.role else {
            return;
        };
        let View::Known { revision, record } = &self.view else {
            return;
        };
        let is_member = record.in_sync.contains(&self.settings.me);
        if (!is_member && forced.is_none()) || self.unusable(forced.is_some()).is_some() {
            return self.give_up(now, StepDownReason::Superseded(record.epoch), fx);
        }
        let revision = *revision;
        let mut next = (**record).clone();
        next.epoch = Epoch(record.epoch.max(self.local.promised).0.saturating_add(1));
        next.primary = Some(PrimaryRef {
            node: self.settings.me.node.clone(),
            store: self.settings.me.store,
            boot: self.settings.boot,
            address: self.settings.address.clone(),
            clients: self.settings.clients.clone(),
        });
        next.phase = Phase::Recovering;
        next.epoch_start = None;
        next.successor = None;
        next.members.insert(self.settings.me.node.clone(), self.own_membership());
        // Whoever forces a node to lead that was removed has changed his mind.
        next.removed.remove(&self.settings.me.node);
        if forced.is_some() {
            next.in_sync = [self.settings.me.clone()].into();
            next.unclean_generation = next.unclean_generation.saturating_add(1);
        }
        self.send(Purpose::Lead, Some(revision), next, Some(fence), fx);
    }

    fn lead(&mut self, now: Millis, revision: Revision, record: Box<ClusterRecord>, fx: &mut Vec<Effect>) {
        let Role::Granted { fence, forced } = self.role else {
            unreachable!("a new epoch is only written with the grant, and its write is dropped with it");
        };
        let epoch = record.epoch;
        self.role = Role::Leading { fence, epoch, since: now };
        self.deadline = None;
        self.followed = None;
        self.view = View::Known { revision, record: record.clone() };
        if let Some(id) = forced {
            fx.push(Effect::Answer { id, outcome: Ok(()) });
        }
        fx.push(Effect::Lead { epoch, record, unclean: forced.is_some() });
    }

    pub(super) fn on_written(&mut self, now: Millis, op: u128, result: CasResult, fx: &mut Vec<Effect>) {
        // An attempt that was given up, or the answer to one that was repeated since.
        let Some(write) = self.write.take_if(|write| write.op == op && matches!(write.flight, Flight::Sent))
        else {
            return;
        };
        // What was read meanwhile, or is being read, may be from before the write.
        if std::mem::take(&mut self.has_skipped_read) || self.record_question.is_asked() {
            self.ask_record(fx);
        }
        if matches!(write.purpose, Purpose::Farewell) && !matches!(result, CasResult::Applied(_)) {
            // Not worth a second attempt: without it the others only know less.
            return self.resign(fx);
        }
        match result {
            CasResult::Applied(revision) => {
                self.newest = Some((write.record.cluster_id, write.record.age()));
                fx.push(Effect::Save(write.record.encode()));
                self.applied(now, write, revision, fx);
            }
            CasResult::Unknown(why) => {
                self.trouble = Some(why);
                let retry_at = now + self.settings.timing.retry_ms;
                self.write = Some(Write { flight: Flight::Unknown { retry_at }, ..write });
            }
            CasResult::FenceLost if write.fence.is_some() => {
                self.write = Some(write);
                self.lose_grant(StepDownReason::GrantLost, fx);
                self.ask_record(fx);
            }
            CasResult::Conflict | CasResult::FenceLost => {
                self.write = Some(Write { flight: Flight::Conflicted, ..write });
                self.ask_record(fx);
            }
        }
    }

    fn applied(&mut self, now: Millis, write: Write, revision: Revision, fx: &mut Vec<Effect>) {
        let record = write.record;
        match write.purpose {
            Purpose::Create => self.accept(revision, record, fx),
            Purpose::Restore { id } => {
                self.accept(revision, record, fx);
                fx.push(Effect::Answer { id, outcome: Ok(()) });
            }
            Purpose::Lead => self.lead(now, revision, record, fx),
            Purpose::Farewell => {
                self.view = View::Known { revision, record };
                self.resign(fx);
            }
            Purpose::Request { id, request } => {
                if matches!(request, Request::Activate { .. }) {
                    self.failures = 0;
                }
                self.view = View::Known { revision, record: record.clone() };
                fx.push(Effect::Changed(record));
                fx.push(Effect::Answer { id, outcome: Ok(()) });
            }
        }
    }

    fn resign(&mut self, fx: &mut Vec<Effect>) {
        fx.push(Effect::Resign);
        self.finish_stepping_down(false, true, fx);
    }

    /// A read that came while a write is not resolved.
    pub(super) fn resolve_write(
        &mut self,
        now: Millis,
        revision: Revision,
        record: Box<ClusterRecord>,
        fx: &mut Vec<Effect>,
    ) {
        let Some(write) = self.write.take() else {
            return;
        };
        if !matches!(write.flight, Flight::Conflicted) {
            // It may be from before or from after our write; the write's own answer tells, and we read again then.
            self.write = Some(write);
            self.has_skipped_read = true;
            return;
        }
        if write.expected == Some(revision) {
            // The service said that it had moved on.
            let retry_at = now + self.settings.timing.retry_ms;
            self.write = Some(Write { flight: Flight::Unknown { retry_at }, ..write });
            return;
        }
        let is_own = record.last_op == write.op;
        match write.purpose {
            Purpose::Create => self.accept(revision, record, fx),
            Purpose::Restore { id } => {
                self.accept(revision, record, fx);
                let outcome = if is_own { Ok(()) } else { Err(Refusal::Conflict) };
                fx.push(Effect::Answer { id, outcome });
            }
            Purpose::Lead if record.is_led_by(&self.settings.me, self.settings.boot, write.record.epoch) => {
                self.lead(now, revision, record, fx);
            }
            Purpose::Lead => {
                self.view = View::Known { revision, record };
                self.try_to_lead(now, fx);
            }
            Purpose::Farewell => {
                self.view = View::Known { revision, record };
                self.resign(fx);
            }
            Purpose::Request { id, request } => {
                let is_set_change = matches!(request, Request::InSync(_));
                if is_own || (is_set_change && record.in_sync == write.record.in_sync) {
                    let purpose = Purpose::Request { id, request };
                    return self.applied(now, Write { purpose, record, ..write }, revision, fx);
                }
                if self.record().is_none_or(|known| known.in_sync != record.in_sync) {
                    fx.push(Effect::Answer { id, outcome: Err(Refusal::SteppedDown) });
                    return self.supersede(now, revision, record, fx);
                }
                // Somebody changed something else. Ours was not applied, and cannot be any more.
                self.view = View::Known { revision, record: record.clone() };
                fx.push(Effect::Changed(record));
                if is_set_change {
                    fx.push(Effect::Answer { id, outcome: Err(Refusal::Conflict) });
                } else {
                    self.queue.push_front((id, request));
                }
            }
        }
    }

    /// A read that came while a write is not resolved, and showed no record that we could use.
    pub(super) fn unread_write(&mut self, now: Millis, is_missing: bool, fx: &mut Vec<Effect>) {
        let Some(write) = self.write.take_if(|write| matches!(write.flight, Flight::Conflicted)) else {
            return;
        };
        match write.purpose {
            Purpose::Create if is_missing => {
                let retry_at = now + self.settings.timing.retry_ms;
                self.write = Some(Write { flight: Flight::Unknown { retry_at }, ..write });
            }
            Purpose::Restore { id } => fx.push(Effect::Answer { id, outcome: Err(Refusal::Conflict) }),
            // Whatever needed a grant was dropped with it.
            _ => {}
        }
    }

    pub(super) fn on_request(&mut self, now: Millis, id: u64, request: Request, fx: &mut Vec<Effect>) {
        let outcome = match request {
            Request::ForcePrimary { cluster_id } => self.force_primary(id, cluster_id, fx),
            Request::RestoreRecord { record, promised } => self.restore_record(id, *record, promised, fx),
            _ if self.leads().is_none() => Err(Refusal::NotLeading),
            _ if self.queue.len() >= QUEUE_MAX => Err(Refusal::Busy),
            // Who asks to stop does not wait behind changes that the next primary can make.
            Request::StepDown { .. } => {
                self.queue.push_front((id, request));
                Ok(())
            }
            _ => {
                self.queue.push_back((id, request));
                Ok(())
            }
        };
        if let Err(refusal) = outcome {
            fx.push(Effect::Answer { id, outcome: Err(refusal) });
        }
        self.next_request(now, fx);
    }

    fn force_primary(&mut self, id: u64, cluster_id: ClusterId, fx: &mut Vec<Effect>) -> Result<(), Refusal> {
        if !matches!(self.role, Role::Idle | Role::Queued { forced: None, .. }) {
            return Err(Refusal::Leading);
        }
        let record = self.record().ok_or(Refusal::NoRecord)?;
        if record.cluster_id != cluster_id {
            return Err(Refusal::WrongCluster);
        }
        if let Some(why) = self.unusable(true) {
            return Err(Refusal::Unusable(why));
        }
        match &mut self.role {
            Role::Queued { forced, .. } => *forced = Some(id),
            _ => self.campaign(Some(id), fx),
        }
        Ok(())
    }

    fn restore_record(
        &mut self,
        id: u64,
        record: ClusterRecord,
        promised: Epoch,
        fx: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let View::Lost { revision, age, .. } = &self.view else {
            return Err(Refusal::NotLost);
        };
        if self.write.is_some() {
            return Err(Refusal::Busy);
        }
        if self.newest.is_some_and(|(cluster, newest)| cluster != record.cluster_id || newest > record.age())
        {
            return Err(Refusal::OldRecord);
        }
        if !record.in_sync.contains(&self.settings.me) {
            return Err(Refusal::NotInSync(self.settings.me.node.clone()));
        }
        let highest = [
            record.epoch,
            promised,
            self.local.promised,
            self.peer_promise,
            age.map_or(Epoch(0), |age| age.epoch),
        ];
        let epoch = highest.into_iter().max().unwrap_or_default();
        // Nobody could read the record any more.
        if epoch.0 >= COUNT_MAX - 1 {
            return Err(Refusal::TooHigh(epoch));
        }
        let expected = *revision;
        let version = record.version.max(age.map_or(0, |age| age.version));
        let record = ClusterRecord {
            epoch: Epoch(epoch.0 + 1),
            version,
            primary: None,
            phase: Phase::Recovering,
            epoch_start: None,
            successor: None,
            ..record
        };
        self.send(Purpose::Restore { id }, expected, record, None, fx);
        Ok(())
    }

    /// Starts the next change that waits, if none is under way.
    pub(super) fn next_request(&mut self, now: Millis, fx: &mut Vec<Effect>) {
        while self.write.is_none()
            && let Role::Leading { fence, .. } = self.role
            && let Some((id, request)) = self.queue.pop_front()
            && let View::Known { revision, record } = &self.view
        {
            let (revision, base) = (*revision, (**record).clone());
            if let Request::StepDown { successor } = request {
                match self.check_successor(&base, successor.as_ref()) {
                    Ok(()) => {
                        fx.push(Effect::Answer { id, outcome: Ok(()) });
                        self.say_farewell(now, StepDownReason::Asked, successor, fx);
                    }
                    Err(refusal) => fx.push(Effect::Answer { id, outcome: Err(refusal) }),
                }
                continue;
            }
            match self.edit(&base, &request) {
                Ok(edited) if edited == base => {
                    fx.push(Effect::Changed(Box::new(base)));
                    fx.push(Effect::Answer { id, outcome: Ok(()) });
                }
                Ok(edited) => {
                    let purpose = Purpose::Request { id, request };
                    self.send(purpose, Some(revision), edited, Some(fence), fx);
                }
                Err(refusal) => {
                    if matches!(request, Request::InSync(_)) {
                        fx.push(Effect::Changed(Box::new(base)));
                    }
                    fx.push(Effect::Answer { id, outcome: Err(refusal) });
                }
            }
        }
    }

    fn check_successor(&self, record: &ClusterRecord, successor: Option<&NodeId>) -> Result<(), Refusal> {
        let Some(node) = successor else {
            return Ok(());
        };
        if *node == self.settings.me.node {
            return Err(Refusal::Leading);
        }
        let is_in_sync = record.in_sync.iter().any(|replica| replica.node == *node);
        if is_in_sync { Ok(()) } else { Err(Refusal::NotInSync(node.clone())) }
    }

    /// The record with the change in it.
    fn edit(&self, base: &ClusterRecord, request: &Request) -> Result<ClusterRecord, Refusal> {
        let mut edited = base.clone();
        match request {
            Request::InSync(in_sync) => {
                if !in_sync.contains(&self.settings.me) {
                    return Err(Refusal::WithoutPrimary);
                }
                let required = u64::from(base.minimum_replicas) + 1;
                // A set that is still too small may grow in steps. It never shrinks below what a confirmation needs.
                if (in_sync.len() as u64) < required && !in_sync.is_superset(&base.in_sync) {
                    return Err(Refusal::TooSmall { size: in_sync.len(), required });
                }
                if let Some(replica) = in_sync.iter().find(|replica| base.removed.contains(&replica.node)) {
                    return Err(Refusal::Removed(replica.node.clone()));
                }
                edited.in_sync.clone_from(in_sync);
            }
            Request::Without(leaving) => {
                self.take_out(&mut edited, |replica| leaving.contains(replica))?;
                edited.members.retain(|node, member| {
                    !leaving.contains(&ReplicaId { node: node.clone(), store: member.store })
                });
            }
            Request::Activate { start, chain } => {
                edited.phase = Phase::Active;
                edited.epoch_start = Some((*start, *chain));
            }
            Request::SetMinimum(minimum) => edited.minimum_replicas = *minimum,
            Request::PutMember { node, .. } if base.removed.contains(node) => {
                return Err(Refusal::Removed(node.clone()));
            }
            Request::PutMember { node, member } => _ = edited.members.insert(node.clone(), member.clone()),
            Request::RemoveMember(node) => {
                self.take_out(&mut edited, |replica| replica.node == *node)?;
                edited.members.remove(node);
                if edited.removed.insert(node.clone()) && edited.removed.len() > REMOVED_MAX {
                    return Err(Refusal::TooManyRemoved);
                }
            }
            Request::AllowMember(node) => _ = edited.removed.remove(node),
            Request::StepDown { .. } | Request::ForcePrimary { .. } | Request::RestoreRecord { .. } => {
                unreachable!("these change no record that is led")
            }
        }
        Ok(edited)
    }

    /// Makes the set smaller, as far as it may be.
    fn take_out(
        &self,
        record: &mut ClusterRecord,
        leaves: impl Fn(&ReplicaId) -> bool,
    ) -> Result<(), Refusal> {
        if leaves(&self.settings.me) {
            return Err(Refusal::WithoutPrimary);
        }
        let before = record.in_sync.len();
        record.in_sync.retain(|replica| !leaves(replica));
        let (size, required) = (record.in_sync.len(), u64::from(record.minimum_replicas) + 1);
        if (size as u64) < required && size < before {
            return Err(Refusal::TooSmall { size, required });
        }
        Ok(())
    }

    /// Stops leading in good order: the record says so, then the grant goes.
    pub(super) fn say_farewell(
        &mut self,
        now: Millis,
        reason: StepDownReason,
        successor: Option<NodeId>,
        fx: &mut Vec<Effect>,
    ) {
        let (&Role::Leading { fence, .. }, View::Known { revision, record }) = (&self.role, &self.view)
        else {
            return;
        };
        let revision = *revision;
        let record =
            ClusterRecord { primary: None, phase: Phase::Recovering, successor, ..(**record).clone() };
        self.farewell = Some((record.epoch, now + self.settings.timing.switch_ms));
        fx.push(Effect::StepDown(reason));
        self.drop_fenced_write(fx);
        self.role = Role::SteppingDown { is_closed: false, is_resigned: false };
        self.send(Purpose::Farewell, Some(revision), record, Some(fence), fx);
    }
}
