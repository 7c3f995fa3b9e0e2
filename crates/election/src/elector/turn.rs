//! Whose turn it is.

use std::cmp::Reverse;

use kahawai_types::{BootId, Epoch, Lsn, Millis, NodeId};

use super::reading::View;
use super::{Elector, Role};
use crate::effect::{Effect, StepDownReason};
use crate::presence::{Presence, PresenceState};
use crate::record::{ClusterRecord, Phase};

/// No hold-back and no deadline for a new epoch is doubled more often.
const DOUBLINGS_MAX: u32 = 5;

/// Who goes first, the greatest: the longest log, then the operator's wish. A process that led and does not any more goes
/// last: it had its turn.
type Rank<'a> = (Reverse<bool>, Epoch, Lsn, i32, Reverse<&'a NodeId>);

impl Elector {
    /// When to ask for the vacant grant, if that is for us to do.
    pub(super) fn turn_at(&self) -> Option<Millis> {
        let View::Known { record, .. } = &self.view else {
            return None;
        };
        let may_try = matches!(self.role, Role::Idle)
            && self.write.is_none()
            && record.in_sync.contains(&self.settings.me)
            && self.unusable(false).is_none();
        if !may_try {
            return None;
        }
        let turn = self.vacant_since?.saturating_add(self.delay(record));
        // Who is chosen to go first does, although it may have stepped down for the others a moment ago.
        let is_chosen = record.successor.as_ref() == Some(&self.settings.me.node);
        let farewell = self.farewell.filter(|&(epoch, _)| epoch == record.epoch).map(|(_, until)| until);
        let held_back_until = self.held_back_until.max(farewell.unwrap_or(Millis::MIN));
        Some(if is_chosen { turn } else { turn.max(held_back_until) })
    }

    fn delay(&self, record: &ClusterRecord) -> Millis {
        let me = &self.settings.me;
        let chosen = record
            .successor
            .as_ref()
            .filter(|node| record.in_sync.iter().any(|replica| replica.node == **node));
        let hold_back = match chosen {
            Some(node) if *node == me.node => return 0,
            Some(_) => self.settings.timing.switch_ms,
            None => 0,
        };
        let last = record.primary.as_ref().map(|primary| primary.boot);
        let own: Rank = (
            Reverse(last == Some(self.settings.boot)),
            self.local.last_epoch,
            self.local.end,
            self.settings.priority,
            Reverse(&me.node),
        );
        let better = self.candidates(record).filter(|other| rank(other, last) > own).count();
        let steps = Millis::try_from(better).unwrap_or(Millis::MAX);
        hold_back.saturating_add(self.settings.timing.rank_step_ms.saturating_mul(steps))
    }

    /// The others who could lead.
    fn candidates<'a>(&'a self, record: &'a ClusterRecord) -> impl Iterator<Item = &'a Presence> {
        self.present.iter().filter(|other| {
            matches!(other.state, PresenceState::Following | PresenceState::Leading)
                && other.boot != self.settings.boot
                && record.in_sync.contains(&other.replica())
        })
    }

    pub(super) fn campaign(&mut self, forced: Option<u64>, fx: &mut Vec<Effect>) {
        let since_epoch = self.record().map_or(Epoch(0), |record| record.epoch);
        self.counter += 1;
        self.role = Role::Queued { campaign: self.counter, since_epoch, forced };
        fx.push(Effect::Campaign { id: self.counter });
    }

    /// When to make the first record, if that is for us to do. A node without data leaves it to one with data.
    pub(super) fn creation_at(&self) -> Option<Millis> {
        let View::Missing { since } = self.view else {
            return None;
        };
        if !matches!(self.role, Role::Idle) || self.write.is_some() || self.unusable(false).is_some() {
            return None;
        }
        if !self.local.journal_is_empty {
            return Some(since);
        }
        let others_have_data = self.present.iter().any(|other| {
            other.state == PresenceState::Following
                && other.boot != self.settings.boot
                && other.last_epoch > Epoch(0)
        });
        (!others_have_data).then(|| since.saturating_add(self.settings.timing.empty_store_delay_ms))
    }

    /// Until when our marker should be committed, if another node could try instead.
    pub(super) fn recovery_ends_at(&self) -> Option<Millis> {
        let (Role::Leading { since, .. }, Some(record)) = (&self.role, self.record()) else {
            return None;
        };
        let could_be_better = record.phase == Phase::Recovering
            && self.write.is_none()
            && self.candidates(record).next().is_some();
        could_be_better.then(|| since.saturating_add(self.doubled(self.settings.timing.recover_ms)))
    }

    /// Lets another node try. The epoch is used up, which harms nobody.
    pub(super) fn abandon_epoch(&mut self, now: Millis, fx: &mut Vec<Effect>) {
        let hold_back = self.doubled(self.settings.timing.hold_back_ms);
        self.failures += 1;
        self.say_farewell(now, StepDownReason::NotRecovered, None, fx);
        self.held_back_until = self.held_back_until.max(now.saturating_add(hold_back));
    }

    /// Longer each time that an epoch of ours came to nothing.
    fn doubled(&self, wait: Millis) -> Millis {
        wait.saturating_mul(1 << self.failures.min(DOUBLINGS_MAX))
    }
}

fn rank(presence: &Presence, last: Option<BootId>) -> Rank<'_> {
    (
        Reverse(last == Some(presence.boot)),
        presence.last_epoch,
        presence.end,
        presence.priority,
        Reverse(&presence.node),
    )
}
