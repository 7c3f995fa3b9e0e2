//! What a read of the record means.

use kahawai_types::Millis;

use super::{Elector, Role};
use crate::effect::{Effect, Refusal, StepDownReason};
use crate::presence::Presence;
use crate::provider::{ProviderError, ReadResult, Revision};
use crate::record::{Age, ClusterRecord};

/// A question to the service, asked once at a time.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub(super) struct Question {
    is_asked: bool,
    /// The answer under way may be older than the reason for asking.
    is_stale: bool,
    pub(super) retry_at: Option<Millis>,
}

impl Question {
    /// Whether to ask now; if not, the answer under way is not used.
    fn ask(&mut self) -> bool {
        self.retry_at = None;
        if self.is_asked {
            self.is_stale = true;
            return false;
        }
        self.is_asked = true;
        true
    }

    /// Whether the answer that came counts.
    fn answered(&mut self) -> bool {
        self.is_asked = false;
        !std::mem::take(&mut self.is_stale)
    }

    pub(super) fn is_asked(&self) -> bool {
        self.is_asked
    }

    pub(super) fn is_due(&self, now: Millis) -> bool {
        self.retry_at.is_some_and(|at| now >= at)
    }
}

/// What the service holds, as far as we know.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum View {
    /// Not read yet.
    Unread,
    /// Nothing, and we never saw anything.
    Missing { since: Millis },
    /// Less than was seen before.
    Lost { why: String, revision: Option<Revision>, age: Option<Age> },
    /// A record that we cannot use.
    Refused(String),
    /// A record.
    Known { revision: Revision, record: Box<ClusterRecord> },
}

impl Elector {
    pub(super) fn ask_record(&mut self, fx: &mut Vec<Effect>) {
        if self.record_question.ask() {
            fx.push(Effect::Read);
        }
    }

    pub(super) fn ask_presence(&mut self, fx: &mut Vec<Effect>) {
        if self.presence_question.ask() {
            fx.push(Effect::ReadPresence);
        }
    }

    pub(super) fn on_presence(
        &mut self,
        now: Millis,
        result: Result<Vec<Vec<u8>>, ProviderError>,
        fx: &mut Vec<Effect>,
    ) {
        if !self.presence_question.answered() {
            return self.ask_presence(fx);
        }
        match result {
            // What we cannot read is a newer release's, or somebody's joke; it is only a hint.
            Ok(found) => {
                self.present = found.iter().filter_map(|bytes| Presence::decode(bytes).ok()).collect()
            }
            Err(_) => self.presence_question.retry_at = Some(now + self.settings.timing.retry_ms),
        }
    }

    pub(super) fn on_record(&mut self, now: Millis, result: ReadResult, fx: &mut Vec<Effect>) {
        if !self.record_question.answered() {
            return self.ask_record(fx);
        }
        match result {
            Err(error) => {
                self.trouble = Some(error.to_string());
                self.record_question.retry_at = Some(now + self.settings.timing.retry_ms);
            }
            Ok(found) => {
                self.trouble = None;
                match self.examine(now, found, fx) {
                    View::Known { revision, record } => self.on_known(now, revision, record, fx),
                    view => self.on_unusable_view(now, view, fx),
                }
            }
        }
    }

    /// Whether it is ours, and no older than what was seen before.
    fn examine(&mut self, now: Millis, found: Option<(Revision, Vec<u8>)>, fx: &mut Vec<Effect>) -> View {
        let Some((revision, bytes)) = found else {
            return match (self.newest, &self.view) {
                (Some((_, age)), _) => View::Lost {
                    why: format!("the record is missing, {age} was seen before"),
                    revision: None,
                    age: None,
                },
                (None, &View::Missing { since }) => View::Missing { since },
                (None, _) => View::Missing { since: now },
            };
        };
        let record = match ClusterRecord::decode(&bytes) {
            Ok(record) => Box::new(record),
            Err(error) => return View::Refused(format!("it cannot be read: {error}")),
        };
        let age = record.age();
        let has_joined = self.newest.is_some() || !self.local.journal_is_empty;
        if !self.local.journal_is_empty && record.cluster_id != self.local.cluster_id {
            return View::Refused(format!(
                "it belongs to cluster {}, this node's data to cluster {}",
                record.cluster_id, self.local.cluster_id
            ));
        }
        let why = match self.newest {
            Some((cluster_id, _)) if cluster_id != record.cluster_id => {
                Some(format!("the record belongs to cluster {}, not to {cluster_id}", record.cluster_id))
            }
            Some((_, newest)) if age < newest => {
                Some(format!("the record is at {age}, {newest} was seen before"))
            }
            _ if has_joined && record.epoch < self.local.promised => Some(format!(
                "the record is at epoch {}, this node has promised {}",
                record.epoch, self.local.promised
            )),
            _ if record.epoch < self.peer_promise => Some(format!(
                "the record is at epoch {}, a peer has promised {}",
                record.epoch, self.peer_promise
            )),
            _ => None,
        };
        if let Some(why) = why {
            return View::Lost { why, revision: Some(revision), age: Some(age) };
        }
        if self.newest.is_none_or(|(_, newest)| newest < age) {
            self.newest = Some((record.cluster_id, age));
            fx.push(Effect::Save(bytes));
        }
        View::Known { revision, record }
    }

    fn on_unusable_view(&mut self, now: Millis, view: View, fx: &mut Vec<Effect>) {
        let reason = match &view {
            View::Lost { why, .. } | View::Refused(why) => StepDownReason::StateLost(why.clone()),
            _ => StepDownReason::StateLost("the record is missing".to_owned()),
        };
        // A creation that met one which is gone again starts over; any other write has nothing to stand on.
        let is_missing = matches!(view, View::Missing { .. });
        self.view = view;
        self.give_up(now, reason, fx);
        self.unread_write(now, is_missing, fx);
    }

    fn on_known(
        &mut self,
        now: Millis,
        revision: Revision,
        record: Box<ClusterRecord>,
        fx: &mut Vec<Effect>,
    ) {
        let is_ours = self.is_ours(&record);
        if self.write.is_some() {
            return match self.role {
                Role::Leading { .. } if !is_ours => self.supersede(now, revision, record, fx),
                _ => self.resolve_write(now, revision, record, fx),
            };
        }
        match self.role {
            Role::Leading { .. } => {
                let known = self.record();
                let same_set = known.is_some_and(|known| known.in_sync == record.in_sync);
                let same_version = known.is_some_and(|known| known.version == record.version);
                if !is_ours || !same_set {
                    self.supersede(now, revision, record, fx);
                } else if !same_version {
                    self.view = View::Known { revision, record: record.clone() };
                    fx.push(Effect::Changed(record));
                }
            }
            Role::Granted { .. } => {
                self.view = View::Known { revision, record };
                self.try_to_lead(now, fx);
            }
            Role::Idle | Role::Queued { .. } | Role::SteppingDown { .. } => self.accept(revision, record, fx),
        }
    }

    /// Takes a record while this process does not lead.
    pub(super) fn accept(&mut self, revision: Revision, record: Box<ClusterRecord>, fx: &mut Vec<Effect>) {
        // Somebody else won. Whoever is next goes by rank again, not by the place in the queue.
        if let Role::Queued { since_epoch, forced, .. } = self.role
            && record.epoch > since_epoch
            && record.primary.is_some()
        {
            self.role = Role::Idle;
            fx.push(Effect::Resign);
            self.refuse(forced, Refusal::Conflict, fx);
        }
        self.view = View::Known { revision, record };
        self.follow(fx);
    }

    pub(super) fn supersede(
        &mut self,
        now: Millis,
        revision: Revision,
        record: Box<ClusterRecord>,
        fx: &mut Vec<Effect>,
    ) {
        let epoch = record.epoch;
        self.view = View::Known { revision, record };
        self.give_up(now, StepDownReason::Superseded(epoch), fx);
    }

    /// Whether the record says that this process leads in the epoch that it leads in.
    pub(super) fn is_ours(&self, record: &ClusterRecord) -> bool {
        self.leads().is_some_and(|epoch| record.is_led_by(&self.settings.me, self.settings.boot, epoch))
    }

    pub(super) fn follow(&mut self, fx: &mut Vec<Effect>) {
        if !matches!(self.role, Role::Idle | Role::Queued { .. }) {
            return;
        }
        let Some(record) = self.record() else {
            return;
        };
        // What the record says about an earlier life of ours is no primary to follow.
        let primary = record.primary.clone().filter(|primary| primary.replica() != self.settings.me);
        let target = (record.epoch, primary);
        if self.followed.as_ref() != Some(&target) {
            fx.push(Effect::Follow { epoch: target.0, primary: target.1.clone() });
            self.followed = Some(target);
        }
    }
}
