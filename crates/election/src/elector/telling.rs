//! What others and the operator are told.

use kahawai_types::Millis;

use super::reading::View;
use super::{Elector, Role};
use crate::effect::Effect;
use crate::event::Condition;
use crate::presence::{Presence, PresenceState};
use crate::status::Status;

impl Elector {
    fn own_presence(&self) -> Presence {
        let state = match (&self.role, &self.local.condition) {
            (Role::Leading { .. }, _) => PresenceState::Leading,
            _ if self.has_storage_failed => PresenceState::Unusable,
            (_, Condition::Usable) => PresenceState::Following,
            (_, Condition::Syncing) => PresenceState::Syncing,
            (_, Condition::Faulted(_) | Condition::ForeignTail) => PresenceState::Unusable,
        };
        Presence {
            node: self.settings.me.node.clone(),
            store: self.settings.me.store,
            boot: self.settings.boot,
            address: self.settings.address.clone(),
            clients: self.settings.clients.clone(),
            last_epoch: self.local.last_epoch,
            end: self.local.end,
            state,
            priority: self.settings.priority,
        }
    }

    /// When to publish next: what changes all the time, seldom; what matters, at once.
    pub(super) fn publication_at(&self) -> Option<Millis> {
        let Some((published, at)) = &self.published else {
            return Some(Millis::MIN);
        };
        if published.last_epoch != self.local.last_epoch || published.state != self.own_presence().state {
            return Some(Millis::MIN);
        }
        (published.end != self.local.end).then(|| at.saturating_add(self.settings.timing.publish_ms))
    }

    pub(super) fn publish(&mut self, now: Millis, fx: &mut Vec<Effect>) {
        if self.publication_at().is_some_and(|at| now >= at) {
            let presence = self.own_presence();
            fx.push(Effect::Publish(presence.encode()));
            self.published = Some((presence, now));
        }
    }

    pub(super) fn tell_status(&mut self, fx: &mut Vec<Effect>) {
        let status = self.current_status();
        if status != self.status {
            self.status = status.clone();
            fx.push(Effect::Status(status));
        }
    }

    fn current_status(&self) -> Status {
        if self.has_storage_failed {
            return Status::StorageFailed;
        }
        match (&self.role, &self.view) {
            (Role::Leading { epoch, .. }, View::Known { record, .. }) => {
                Status::Leading { epoch: *epoch, phase: record.phase }
            }
            (Role::SteppingDown { .. }, _) => Status::SteppingDown,
            _ if self.trouble.is_some() => Status::Unreachable(self.trouble.clone().unwrap_or_default()),
            (Role::Granted { .. }, _) => Status::Elected,
            (Role::Queued { .. }, _) => Status::Queued,
            (_, View::Unread) => Status::Connecting,
            (_, View::Missing { .. }) if self.write.is_some() => Status::Creating,
            (_, View::Missing { .. }) => Status::AwaitingCreation,
            (_, View::Lost { why, .. }) => Status::StateLost(why.clone()),
            (_, View::Refused(why)) => Status::Refused(why.clone()),
            (_, View::Known { record, .. }) => {
                let primary = record.primary.as_ref().filter(|p| p.boot != self.settings.boot);
                if let (Some(primary), None) = (primary, self.vacant_since) {
                    Status::Following { primary: primary.node.clone(), epoch: record.epoch }
                } else if !record.in_sync.contains(&self.settings.me) {
                    Status::AwaitingInSync(record.in_sync.iter().cloned().collect())
                } else if let Some(why) = self.unusable(false) {
                    Status::Unusable(why)
                } else {
                    Status::AwaitingTurn
                }
            }
        }
    }
}
