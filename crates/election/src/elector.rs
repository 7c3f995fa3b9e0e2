//! The machine that decides for one process whether it leads.
//!
//! Its parts: here the state and what an event does to it; `reading` (what a read of the record means), `writing` (one write
//! at a time, and what its outcome means), `turn` (whose turn it is), `telling` (presence and status).

mod reading;
mod telling;
mod turn;
mod writing;

use std::collections::VecDeque;

use kahawai_types::{ClusterId, Epoch, Millis};

use self::reading::{Question, View};
use self::writing::{Purpose, Write};
use crate::effect::{Effect, Refusal, StepDownReason};
use crate::event::{Condition, Event, Local, Request};
use crate::presence::Presence;
use crate::provider::{Fence, ProviderError, ProviderEvent};
use crate::record::{Age, ClusterRecord, PrimaryRef};
use crate::settings::Settings;
use crate::status::Status;

/// Changes that may wait while another one is written.
const QUEUE_MAX: usize = 64;

/// How far this process is on its way to leading.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Role {
    /// It does not try.
    Idle,
    /// It waits for the grant.
    Queued { campaign: u64, since_epoch: Epoch, forced: Option<u64> },
    /// It has the grant, and reads or writes the record.
    Granted { fence: Fence, forced: Option<u64> },
    /// The record says that it leads.
    Leading { fence: Fence, epoch: Epoch, since: Millis },
    /// It led. Done when the node has closed everything and the grant is given back.
    SteppingDown { is_closed: bool, is_resigned: bool },
}

/// Decides for one process whether it leads, over one record, one grant and what others say about themselves.
///
/// Everything that it says follows from a compare-and-set that was applied under a grant: it says [`Effect::Lead`] at most
/// once for an epoch, and no other process says it for the same one. Losing the session, the grant, the lease or the
/// record makes it say [`Effect::StepDown`], and it does not try again before the node has said [`Event::SteppedDown`].
///
/// Its driver carries out the effects in their order (the gate closes before the grant is given back), gives one answer to
/// each `Read`, `ReadPresence`, `Create`, `Cas` and `Campaign`, in whatever order they come, and sends a `Tick` with the
/// provider's deadline of its [`grant`](Self::grant) when [`wake_at`](Self::wake_at) says so.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Elector {
    settings: Settings,
    local: Local,
    role: Role,
    view: View,
    /// Of the newest record that this node has ever seen.
    newest: Option<(ClusterId, Age)>,
    record_question: Question,
    presence_question: Question,
    present: Vec<Presence>,
    /// Since when nobody has the grant, if that is so.
    vacant_since: Option<Millis>,
    /// Others go first until then.
    held_back_until: Millis,
    /// We let others lead after this epoch of ours: they go first until then, or until one of them has led.
    farewell: Option<(Epoch, Millis)>,
    /// Times that an epoch of ours could not be committed.
    failures: u32,
    /// The highest promise that a peer has told of.
    peer_promise: Epoch,
    has_storage_failed: bool,
    /// For the identities of writes and campaigns.
    counter: u64,
    write: Option<Write>,
    /// The record was read while the write was not resolved, and what it said was not used.
    has_skipped_read: bool,
    queue: VecDeque<(u64, Request)>,
    /// Until when nobody else can have the grant; not known right after it was won.
    deadline: Option<Millis>,
    /// Why the service did not answer last time.
    trouble: Option<String>,
    /// What `Follow` said last.
    followed: Option<(Epoch, Option<PrimaryRef>)>,
    published: Option<(Presence, Millis)>,
    status: Status,
}

impl Elector {
    /// For a process that starts. `saved` is what [`Effect::Save`] left in an earlier life. The first thing to happen is the
    /// provider's `Connected`.
    pub fn new(settings: Settings, local: Local, saved: Option<&ClusterRecord>) -> Self {
        Self {
            settings,
            local,
            role: Role::Idle,
            view: View::Unread,
            newest: saved.map(|record| (record.cluster_id, record.age())),
            record_question: Question::default(),
            presence_question: Question::default(),
            present: Vec::new(),
            vacant_since: None,
            held_back_until: Millis::MIN,
            farewell: None,
            failures: 0,
            peer_promise: Epoch(0),
            has_storage_failed: false,
            counter: 0,
            write: None,
            has_skipped_read: false,
            queue: VecDeque::new(),
            deadline: None,
            trouble: None,
            followed: None,
            published: None,
            status: Status::Connecting,
        }
    }

    /// What the record said when it was last read or written, if it was for us.
    pub fn record(&self) -> Option<&ClusterRecord> {
        match &self.view {
            View::Known { record, .. } => Some(record),
            _ => None,
        }
    }

    /// Who is present, as far as known.
    pub fn present(&self) -> &[Presence] {
        &self.present
    }

    /// What it does or waits for.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// The epoch that this process leads in, if it does.
    pub fn leads(&self) -> Option<Epoch> {
        match self.role {
            Role::Leading { epoch, .. } => Some(epoch),
            _ => None,
        }
    }

    /// The grant that it holds: what the deadline of a [`Event::Tick`] is about.
    pub fn grant(&self) -> Option<Fence> {
        match self.role {
            Role::Granted { fence, .. } | Role::Leading { fence, .. } => Some(fence),
            Role::Idle | Role::Queued { .. } | Role::SteppingDown { .. } => None,
        }
    }

    /// When it wants the next [`Event::Tick`], if nothing happens before.
    pub fn wake_at(&self) -> Option<Millis> {
        [
            self.record_question.retry_at,
            self.presence_question.retry_at,
            self.write.as_ref().and_then(Write::retry_at),
            self.turn_at(),
            self.creation_at(),
            self.recovery_ends_at(),
            self.publication_at(),
            self.leads().map(|_| self.deadline.unwrap_or(Millis::MIN)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Takes one event, appends what must be done about it.
    pub fn step(&mut self, now: Millis, event: Event, fx: &mut Vec<Effect>) {
        match event {
            Event::Provider(event) => self.on_provider(now, event, fx),
            Event::Record(result) => self.on_record(now, result, fx),
            Event::Presence(result) => self.on_presence(now, result, fx),
            Event::Campaign { id, result } => self.on_campaign(now, id, result, fx),
            Event::Written { op, result } => self.on_written(now, op, result, fx),
            Event::Local(local) => self.take_local(local, fx),
            Event::SteppedDown(local) => {
                self.take_local(local, fx);
                self.finish_stepping_down(true, false, fx);
            }
            Event::StorageFailed => {
                self.has_storage_failed = true;
                self.give_up(now, StepDownReason::StorageFailed, fx);
            }
            Event::DiskStalled => self.give_up(now, StepDownReason::DiskStalled, fx),
            Event::PeerEpoch(epoch) => self.on_peer_epoch(now, epoch, fx),
            Event::Request { id, request } => self.on_request(now, id, request, fx),
            Event::Tick { deadline } => self.deadline = Some(deadline),
        }
        self.consider(now, fx);
    }

    /// What is due, whatever happened.
    fn consider(&mut self, now: Millis, fx: &mut Vec<Effect>) {
        if self.leads().is_some() && self.deadline.is_some_and(|deadline| now >= deadline) {
            self.give_up(now, StepDownReason::Deadline, fx);
        }
        if self.record_question.is_due(now) {
            self.ask_record(fx);
        }
        if self.presence_question.is_due(now) {
            self.ask_presence(fx);
        }
        self.repeat_write(now, fx);
        if self.recovery_ends_at().is_some_and(|at| now >= at) {
            self.abandon_epoch(now, fx);
        }
        self.next_request(now, fx);
        if self.creation_at().is_some_and(|at| now >= at) {
            self.create_record(fx);
        }
        if self.turn_at().is_some_and(|at| now >= at) {
            self.campaign(None, fx);
        }
        self.publish(now, fx);
        self.tell_status(fx);
    }

    fn on_provider(&mut self, now: Millis, event: ProviderEvent, fx: &mut Vec<Effect>) {
        match event {
            ProviderEvent::Connected => {
                self.trouble = None;
                self.vacant_since = None;
                self.ask_record(fx);
                self.ask_presence(fx);
            }
            ProviderEvent::RecordChanged => self.ask_record(fx),
            ProviderEvent::PresenceChanged => self.ask_presence(fx),
            ProviderEvent::GrantVacant => _ = self.vacant_since.get_or_insert(now),
            ProviderEvent::GrantHeld => self.vacant_since = None,
            ProviderEvent::GrantLost(lost) => {
                let is_ours = match self.role {
                    Role::Granted { fence, .. } | Role::Leading { fence, .. } => fence == lost,
                    Role::SteppingDown { .. } => true,
                    Role::Idle | Role::Queued { .. } => false,
                };
                if is_ours {
                    self.lose_grant(StepDownReason::GrantLost, fx);
                }
            }
            ProviderEvent::Suspended => {
                self.trouble = Some("the connection to the election service is gone".to_owned());
            }
            ProviderEvent::SessionLost | ProviderEvent::Closed => {
                self.vacant_since = None;
                self.lose_grant(StepDownReason::SessionLost, fx);
            }
        }
    }

    fn on_campaign(
        &mut self,
        now: Millis,
        id: u64,
        result: Result<Fence, ProviderError>,
        fx: &mut Vec<Effect>,
    ) {
        match (&mut self.role, result) {
            (&mut Role::Queued { campaign, forced, .. }, Ok(fence)) if campaign == id => {
                self.role = Role::Granted { fence, forced };
                // The record that made us try may be an old one.
                self.ask_record(fx);
            }
            (&mut Role::Queued { campaign, forced, .. }, Err(error)) if campaign == id => {
                self.role = Role::Idle;
                self.held_back_until = self.held_back_until.max(now + self.settings.timing.retry_ms);
                self.refuse(forced, Refusal::NotGranted(error.to_string()), fx);
            }
            // Won by a campaign that was given up before the provider knew.
            (Role::Idle, Ok(_)) => fx.push(Effect::Resign),
            _ => {}
        }
    }

    /// Until it is open, a store without data looks like one of another cluster.
    fn take_local(&mut self, local: Local, fx: &mut Vec<Effect>) {
        let belongs = |local: &Local| (local.cluster_id, local.journal_is_empty);
        let is_news = belongs(&self.local) != belongs(&local);
        self.local = local;
        if is_news && matches!(self.view, View::Refused(_)) {
            self.ask_record(fx);
        }
    }

    fn on_peer_epoch(&mut self, now: Millis, epoch: Epoch, fx: &mut Vec<Effect>) {
        self.peer_promise = self.peer_promise.max(epoch);
        if self.leads().is_some_and(|ours| ours < epoch) {
            self.give_up(now, StepDownReason::Fenced(epoch), fx);
        }
        if self.record().is_some_and(|record| record.epoch < epoch) {
            self.ask_record(fx);
        }
    }

    /// The grant, or the place in its queue, went with the session or by itself. If what told us so is about an earlier
    /// session, we hold one that nobody here knows of: it is given back, too.
    fn lose_grant(&mut self, reason: StepDownReason, fx: &mut Vec<Effect>) {
        match self.role {
            Role::Idle => return,
            Role::Queued { forced, .. } | Role::Granted { forced, .. } => {
                self.drop_fenced_write(fx);
                self.role = Role::Idle;
                self.refuse(forced, Refusal::NotGranted(reason.to_string()), fx);
            }
            Role::Leading { .. } => {
                fx.push(Effect::StepDown(reason));
                self.drop_fenced_write(fx);
                self.role = Role::SteppingDown { is_closed: false, is_resigned: true };
            }
            Role::SteppingDown { .. } => {
                self.drop_fenced_write(fx);
                self.finish_stepping_down(false, true, fx);
            }
        }
        fx.push(Effect::Resign);
    }

    /// Stops leading, or trying to, for a reason of our own: the grant is given back.
    fn give_up(&mut self, now: Millis, reason: StepDownReason, fx: &mut Vec<Effect>) {
        match self.role {
            Role::Idle | Role::SteppingDown { .. } => {}
            Role::Queued { forced, .. } | Role::Granted { forced, .. } => {
                self.drop_fenced_write(fx);
                self.role = Role::Idle;
                fx.push(Effect::Resign);
                self.held_back_until = self.held_back_until.max(now + self.settings.timing.retry_ms);
                self.refuse(forced, Refusal::NotGranted(reason.to_string()), fx);
            }
            Role::Leading { .. } => {
                fx.push(Effect::StepDown(reason));
                self.drop_fenced_write(fx);
                fx.push(Effect::Resign);
                self.role = Role::SteppingDown { is_closed: false, is_resigned: true };
            }
        }
    }

    fn finish_stepping_down(&mut self, closed: bool, resigned: bool, fx: &mut Vec<Effect>) {
        let Role::SteppingDown { is_closed, is_resigned } = &mut self.role else {
            return;
        };
        *is_closed |= closed;
        *is_resigned |= resigned;
        if *is_closed && *is_resigned {
            self.role = Role::Idle;
            self.followed = None;
            self.ask_record(fx);
        }
    }

    /// Writes that need a grant end with it. What became of them is for the next primary to see.
    fn drop_fenced_write(&mut self, fx: &mut Vec<Effect>) {
        if self.write.as_ref().is_some_and(Write::is_fenced)
            && let Some(Write { purpose: Purpose::Request { id, .. }, .. }) = self.write.take()
        {
            fx.push(Effect::Answer { id, outcome: Err(Refusal::SteppedDown) });
        }
        for (id, _) in self.queue.drain(..) {
            fx.push(Effect::Answer { id, outcome: Err(Refusal::SteppedDown) });
        }
    }

    /// Answers an operator who wanted this node to lead.
    fn refuse(&self, forced: Option<u64>, refusal: Refusal, fx: &mut Vec<Effect>) {
        if let Some(id) = forced {
            fx.push(Effect::Answer { id, outcome: Err(refusal) });
        }
    }

    /// Why our store cannot be led with.
    fn unusable(&self, forced: bool) -> Option<String> {
        match &self.local.condition {
            _ if self.has_storage_failed => Some("the journal could not be written".to_owned()),
            Condition::Usable => None,
            // An operator who forces this node makes what ActiveMQ wrote the truth.
            Condition::ForeignTail if forced => None,
            Condition::Syncing => Some("its store is being synchronised".to_owned()),
            Condition::Faulted(why) => Some(format!("its store is damaged: {why}")),
            Condition::ForeignTail => Some("ActiveMQ wrote to its store after it had joined".to_owned()),
        }
    }
}
