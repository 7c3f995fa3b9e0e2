//! What is committed, who is in sync, when persistent work is suspended: the primary's side of an epoch.

use std::collections::BTreeSet;
use std::fmt;

use kahawai_types::{BootId, Epoch, Lsn, Millis, NodeId, ReplicaId};

use crate::Timing;
use crate::member::{Link, Member};

/// Replicas that are remembered within an epoch, whether they are connected or not.
pub const REPLICAS_MAX: usize = 256;

/// The caller's number of a stream session. Within an epoch they grow in the order in which connections are accepted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrimaryEvent<'a> {
    /// Our own journal is flushed up to here.
    LocalDurable(Lsn),
    /// Our journal goes up to here, flushed or not.
    Appended(Lsn),
    /// A stream session has matched its log with ours.
    Connected {
        /// Whose.
        replica: &'a ReplicaId,
        /// The process that holds it.
        boot: BootId,
        /// Its number. A younger session of the same process replaces the older one, and an older one that comes later is refused.
        session: SessionId,
        /// How much of *our* log it has flushed.
        durable: Lsn,
    },
    /// A replica has flushed more.
    Acked {
        /// On which session; others than the live one are ignored.
        session: SessionId,
        /// Flushed up to here.
        durable: Lsn,
        /// In its index up to here.
        applied: Lsn,
    },
    /// A session has ended.
    Disconnected {
        /// Which.
        session: SessionId,
        /// The replica said that it leaves.
        orderly: bool,
    },
    /// Our proposal is answered: the record names this set, which is what we proposed, or what it was before.
    Decided {
        /// The recorded set.
        in_sync: &'a BTreeSet<ReplicaId>,
    },
    /// Somebody else changed the record. A proposal of ours, if there is one, is still without an answer.
    Changed {
        /// The recorded set.
        in_sync: &'a BTreeSet<ReplicaId>,
    },
    /// The record says that so many copies besides ours are needed.
    Minimum(u32),
    /// The replica's process is known to be dead: at a takeover, the predecessor's.
    Gone {
        /// Whose.
        replica: &'a ReplicaId,
    },
    /// Time has passed. At least every 50 ms.
    Tick,
}

/// What must be done about it, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PrimaryEffect {
    /// Everything before this is on every member of the set. Never moves back.
    Commit(Lsn),
    /// Our marker is committed, for the first time: the node may serve. Follows its [`PrimaryEffect::Commit`].
    Activate,
    /// Have this set recorded, and answer with [`PrimaryEvent::Decided`]. There is one proposal at a time.
    Propose {
        /// The wanted set.
        in_sync: BTreeSet<ReplicaId>,
        /// Why, for the log.
        reason: String,
    },
    /// Persistent work waits.
    Suspended {
        /// How many copies there are, how many are needed, who is missing.
        reason: String,
    },
    /// Persistent work goes on.
    Resumed,
    /// The record no longer names this replica.
    Left {
        /// Which.
        replica: ReplicaId,
        /// Why.
        reason: Departure,
    },
    /// The record names this replica now.
    Joined {
        /// Which.
        replica: ReplicaId,
    },
    /// Our own disk flushes nothing, and a member's does: it would serve better. Said again as long as that is so.
    Stalled {
        /// For how long, in milliseconds.
        for_ms: Millis,
    },
    /// Close this session.
    Refuse {
        /// Which.
        session: SessionId,
        /// Why.
        refusal: Refusal,
    },
}

/// Why a replica leaves the in-sync set. Who comes first leaves first, where not all may.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Departure {
    /// It has lost what it had flushed.
    Corrupt,
    /// Its process is dead.
    Gone,
    /// It said that it leaves.
    Orderly,
    /// It did not attach after the takeover.
    NotAttached,
    /// Its session broke, and it did not come back.
    Disconnected,
    /// It is too far behind.
    Lagging,
    /// It is connected and flushes nothing.
    Stalled,
    /// Not our doing.
    Operator,
}

impl fmt::Display for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Corrupt => "has lost what it had flushed",
            Self::Gone => "led before, and is dead or not back yet",
            Self::Orderly => "has left",
            Self::NotAttached => "did not attach after the takeover",
            Self::Disconnected => "is disconnected",
            Self::Lagging => "lags too far behind",
            Self::Stalled => "flushes nothing",
            Self::Operator => "was removed from the record",
        })
    }
}

/// Why a session is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// A node does not copy from itself, nor does a clone of its disk.
    #[error("this is the primary's own store")]
    OwnStore,
    /// The same data directory is connected under another node name.
    #[error("the same store is connected as node {node}: was the disk cloned?")]
    SameStore {
        /// Which.
        node: NodeId,
    },
    /// Another process of this replica is connected.
    #[error("another process ({boot}) of this replica is connected")]
    OtherProcess {
        /// Which.
        boot: BootId,
    },
    /// The same process has connected again.
    #[error("the replica has connected again")]
    Superseded,
    /// It has lost what it had flushed in this epoch.
    #[error("the replica had flushed up to {acked} and now has {durable}: it needs a new store")]
    Corrupt {
        /// What it had confirmed.
        acked: Lsn,
        /// What it has.
        durable: Lsn,
    },
    /// [`REPLICAS_MAX`] are known already.
    #[error("there are too many replicas")]
    TooMany,
}

/// A rule that the walk in `tests/it` breaks to see that it would notice.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rule {
    /// Nothing is committed before our own marker is.
    OwnMarker,
    /// While a proposal is not answered, both sets count.
    BothSets,
    /// Who joins has everything that may have been confirmed.
    Evidence,
    /// The set never shrinks below the minimum and ourselves.
    Minimum,
}

/// Whether persistent work goes on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Service {
    /// The epoch has just begun; the replicas are about to attach.
    Starting,
    Running,
    Suspended,
}

/// How the cluster is doing, as the primary sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrimaryStatus {
    /// Our reign.
    pub epoch: Epoch,
    /// Everything before this is safe.
    pub commit: Lsn,
    /// Flushed here.
    pub local_durable: Lsn,
    /// End of what exists.
    pub end: Lsn,
    /// Copies that are needed besides ours.
    pub minimum_replicas: u32,
    /// The marker is committed.
    pub is_active: bool,
    /// Why persistent work waits, if it does.
    pub suspended: Option<String>,
    /// Since when it goes on, or waits.
    pub since: Millis,
    /// The proposal without an answer.
    pub proposal: Option<BTreeSet<ReplicaId>>,
    /// All that are in sync or were seen in this epoch, without ourselves, by name.
    pub replicas: Vec<ReplicaStatus>,
}

/// How one replica is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaStatus {
    /// Which.
    pub replica: ReplicaId,
    /// Its process, while it has a session.
    pub connected: Option<BootId>,
    /// Confirmations wait for it.
    pub in_sync: bool,
    /// Flushed up to here, as it said in this epoch.
    pub durable: Lsn,
    /// In its index up to here.
    pub applied: Lsn,
    /// About how much of the journal it has not flushed.
    pub lag_bytes: u64,
    /// When it connected or disconnected, or when it was named first.
    pub since: Millis,
    /// How often it left the set against its will, in this epoch.
    pub evictions: u32,
}

/// The primary's machine for one epoch.
///
/// What it holds: the commit position moves only over what we and every member of the recorded set, and of a proposed one, have
/// flushed; not before our marker is on all of them; and not while the set is below the minimum. No proposal makes the set
/// smaller than the minimum and ourselves.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Primary {
    me: ReplicaId,
    epoch: Epoch,
    marker_end: Lsn,
    minimum: u32,
    timing: Timing,
    started: Millis,
    local_durable: Lsn,
    /// We have had something to flush, and flushed nothing, since then.
    owing: Option<Millis>,
    /// When we last looked at the time.
    ticked: Millis,
    end: Lsn,
    commit: Lsn,
    /// The marker is committed.
    active: bool,
    /// The record names us.
    named: bool,
    service: Service,
    service_since: Millis,
    /// Others than ourselves, by identity.
    members: Vec<Member>,
    proposal: Option<BTreeSet<ReplicaId>>,
    broken: Option<Rule>,
}

impl Primary {
    /// Begins an epoch whose marker ends at `marker_end`, with the recorded set and minimum.
    pub fn new(
        me: ReplicaId,
        epoch: Epoch,
        marker_end: Lsn,
        in_sync: BTreeSet<ReplicaId>,
        minimum_replicas: u32,
        timing: Timing,
        now: Millis,
    ) -> Self {
        let named = in_sync.contains(&me);
        let members =
            in_sync.into_iter().filter(|id| *id != me).map(|id| Member::founding(id, now)).collect();
        Self {
            me,
            epoch,
            marker_end,
            minimum: minimum_replicas,
            timing,
            started: now,
            local_durable: Lsn::ZERO,
            owing: None,
            ticked: now,
            end: marker_end,
            commit: Lsn::ZERO,
            active: false,
            named,
            service: Service::Starting,
            service_since: now,
            members,
            proposal: None,
            broken: None,
        }
    }

    /// Everything before this is safe; zero until the marker is.
    pub fn commit(&self) -> Lsn {
        self.commit
    }

    /// Whether a session of this process may be accepted. Cheap; asked before anything is sent to it.
    pub fn may_connect(&self, replica: &ReplicaId, boot: BootId) -> Result<(), Refusal> {
        if replica.store == self.me.store {
            return Err(Refusal::OwnStore);
        }
        for member in &self.members {
            match member.link {
                Link::Up { boot: other, .. } if member.id == *replica && boot != other => {
                    return Err(Refusal::OtherProcess { boot: other });
                }
                Link::Up { .. } if member.id.store == replica.store && member.id.node != replica.node => {
                    return Err(Refusal::SameStore { node: member.id.node.clone() });
                }
                Link::Corrupt { durable, .. } if member.id == *replica => {
                    return Err(Refusal::Corrupt { acked: member.durable, durable });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes one event, appends what must be done about it. Allocates nothing for flushes and acknowledgements of members.
    pub fn step(&mut self, now: Millis, event: PrimaryEvent<'_>, effects: &mut Vec<PrimaryEffect>) {
        match event {
            PrimaryEvent::LocalDurable(durable) => {
                self.local_durable = self.local_durable.max(durable);
                self.owing = None;
                self.appended(now, durable);
            }
            PrimaryEvent::Appended(end) => return self.appended(now, end),
            PrimaryEvent::Acked { session, durable, applied } => {
                self.acked(now, session, durable, applied, effects);
            }
            PrimaryEvent::Connected { replica, boot, session, durable } => {
                self.connected(now, replica, boot, session, durable, effects);
            }
            PrimaryEvent::Disconnected { session, orderly } => {
                if let Some(member) = self.members.iter_mut().find(|member| member.is_on(session)) {
                    member.link = Link::Down { since: now, orderly };
                    member.quit();
                }
                self.review(now, effects);
            }
            PrimaryEvent::Decided { in_sync } => {
                self.proposal = None;
                self.members.iter_mut().for_each(|member| member.proposed = false);
                self.recorded(now, in_sync, effects);
            }
            PrimaryEvent::Changed { in_sync } => self.recorded(now, in_sync, effects),
            PrimaryEvent::Minimum(minimum) => {
                self.minimum = minimum;
                self.review(now, effects);
            }
            PrimaryEvent::Gone { replica } => {
                if let Some(member) = self.member(replica)
                    && matches!(member.link, Link::Absent { .. } | Link::Down { .. })
                {
                    member.link = Link::Gone { since: now };
                }
                self.review(now, effects);
            }
            PrimaryEvent::Tick => {
                self.watch_own_disk(now, effects);
                self.review(now, effects);
            }
        }
        self.advance(effects);
    }

    /// What operators and the admin pages see.
    pub fn status(&self) -> PrimaryStatus {
        PrimaryStatus {
            epoch: self.epoch,
            commit: self.commit,
            local_durable: self.local_durable,
            end: self.end,
            minimum_replicas: self.minimum,
            is_active: self.active,
            suspended: self.is_short().then(|| self.shortage()),
            since: self.service_since,
            proposal: self.proposal.clone(),
            replicas: self
                .members
                .iter()
                .map(|member| ReplicaStatus {
                    replica: member.id.clone(),
                    connected: member.boot(),
                    in_sync: member.recorded,
                    durable: member.durable,
                    applied: member.applied,
                    lag_bytes: self.timing.lag_bytes(member.durable, self.end),
                    since: member.link.since(),
                    evictions: member.evictions,
                })
                .collect(),
        }
    }

    /// Breaks a rule, for a test that has to notice.
    #[doc(hidden)]
    pub fn break_rule(&mut self, rule: Rule) {
        self.broken = Some(rule);
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    fn member(&mut self, replica: &ReplicaId) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.id == *replica)
    }

    fn appended(&mut self, now: Millis, end: Lsn) {
        self.end = self.end.max(end);
        if self.local_durable < self.end {
            self.owing.get_or_insert(now);
        }
        for member in &mut self.members {
            member.owe(now, self.end);
        }
    }

    fn acked(
        &mut self,
        now: Millis,
        session: SessionId,
        durable: Lsn,
        applied: Lsn,
        effects: &mut Vec<PrimaryEffect>,
    ) {
        let end = self.end;
        let Some(member) = self.members.iter_mut().find(|member| member.is_on(session)) else {
            return;
        };
        if member.has_lost(durable) {
            let refusal = Refusal::Corrupt { acked: member.durable, durable };
            member.link = Link::Corrupt { since: now, durable };
            member.quit();
            effects.push(PrimaryEffect::Refuse { session, refusal });
            return self.review(now, effects);
        }
        member.applied = member.applied.max(applied);
        member.advance(now, durable, end);
        if !member.recorded {
            self.review(now, effects);
        }
    }

    fn connected(
        &mut self,
        now: Millis,
        replica: &ReplicaId,
        boot: BootId,
        session: SessionId,
        durable: Lsn,
        effects: &mut Vec<PrimaryEffect>,
    ) {
        if let Err(refusal) = self.may_connect(replica, boot).and_then(|()| self.make_room(replica, now)) {
            return effects.push(PrimaryEffect::Refuse { session, refusal });
        }
        let end = self.end;
        let Some(member) = self.member(replica) else {
            return;
        };
        if member.newest_session > Some(session) {
            // Matched late: what it says was true before the younger session began.
            return effects.push(PrimaryEffect::Refuse { session, refusal: Refusal::Superseded });
        }
        member.newest_session = Some(session);
        if member.has_lost(durable) && member.last_boot == Some(boot) {
            // A process loses nothing while it lives: it said so on an earlier connection, and that was long under way.
            return effects.push(PrimaryEffect::Refuse { session, refusal: Refusal::Superseded });
        }
        if let Link::Up { session: older, .. } = member.link {
            effects.push(PrimaryEffect::Refuse { session: older, refusal: Refusal::Superseded });
        }
        if member.has_lost(durable) {
            let refusal = Refusal::Corrupt { acked: member.durable, durable };
            member.link = Link::Corrupt { since: now, durable };
            member.quit();
            effects.push(PrimaryEffect::Refuse { session, refusal });
        } else {
            member.link = Link::Up { since: now, session, boot };
            member.last_boot = Some(boot);
            member.quit();
            member.advance(now, durable, end);
        }
        self.review(now, effects);
    }

    /// Sees to it that the replica has an entry.
    fn make_room(&mut self, replica: &ReplicaId, now: Millis) -> Result<(), Refusal> {
        let Err(place) = self.members.binary_search_by(|member| member.id.cmp(replica)) else {
            return Ok(());
        };
        let mut place = place;
        if self.members.len() >= REPLICAS_MAX {
            let idle = |member: &Member| {
                !member.counts() && matches!(member.link, Link::Down { .. } | Link::Gone { .. })
            };
            let unused = self.members.iter().position(idle).ok_or(Refusal::TooMany)?;
            self.members.remove(unused);
            place -= usize::from(unused < place);
        }
        self.members.insert(place, Member::new(replica.clone(), now));
        Ok(())
    }

    /// The record names this set.
    fn recorded(&mut self, now: Millis, in_sync: &BTreeSet<ReplicaId>, effects: &mut Vec<PrimaryEffect>) {
        self.named = in_sync.contains(&self.me);
        for id in in_sync {
            if *id != self.me
                && let Err(place) = self.members.binary_search_by(|member| member.id.cmp(id))
            {
                self.members.insert(place, Member::new(id.clone(), now));
            }
        }
        for member in &mut self.members {
            let named = in_sync.contains(&member.id);
            match (member.recorded, named) {
                (true, false) => {
                    let reason = member.left(now, &self.timing);
                    effects.push(PrimaryEffect::Left { replica: member.id.clone(), reason });
                }
                (false, true) => {
                    member.joined(now, self.end);
                    effects.push(PrimaryEffect::Joined { replica: member.id.clone() });
                }
                _ => {}
            }
        }
        self.review(now, effects);
    }

    /// Others than ourselves in the recorded set.
    fn recorded_others(&self) -> usize {
        self.members.iter().filter(|member| member.recorded).count()
    }

    /// Fewer members are connected than are needed.
    fn is_short(&self) -> bool {
        let live = self.members.iter().filter(|member| member.recorded && member.boot().is_some()).count();
        live < self.minimum as usize
    }

    fn shortage(&self) -> String {
        let mut missing = String::new();
        let mut live = 0;
        for member in self.members.iter().filter(|member| member.recorded) {
            if member.boot().is_some() {
                live += 1;
            } else {
                missing += if missing.is_empty() { ", not connected: " } else { ", " };
                missing += &member.id.to_string();
            }
        }
        let others = self.recorded_others();
        format!("{} replicas are needed, {live} of {others} in sync are connected{missing}", self.minimum)
    }

    /// What everybody that counts has flushed, if it may be confirmed.
    fn committable(&self) -> Option<Lsn> {
        let minimum = self.minimum as usize;
        let proposed_others = self.proposal.as_ref().map_or(usize::MAX, |set| set.len().saturating_sub(1));
        if !self.named || self.recorded_others() < minimum || proposed_others < minimum {
            return None;
        }
        let only_proposed = self.proposal.is_some() && !self.keeps(Rule::BothSets);
        let mut at = self.local_durable;
        for member in &self.members {
            if if only_proposed { member.proposed } else { member.counts() } {
                at = at.min(member.counted());
            }
        }
        (at >= self.marker_end || !self.keeps(Rule::OwnMarker)).then_some(at)
    }

    fn advance(&mut self, effects: &mut Vec<PrimaryEffect>) {
        let Some(at) = self.committable().filter(|at| *at > self.commit) else {
            return;
        };
        self.commit = at;
        effects.push(PrimaryEffect::Commit(at));
        if !self.active && at >= self.marker_end {
            self.active = true;
            effects.push(PrimaryEffect::Activate);
        }
    }

    /// Everything that depends on time, and on who is there.
    fn review(&mut self, now: Millis, effects: &mut Vec<PrimaryEffect>) {
        self.suspend_or_resume(now, effects);
        for member in &mut self.members {
            member.watch(now, self.end, &self.timing);
        }
        if self.proposal.is_none() && self.named {
            self.propose(now, effects);
        }
    }

    /// A member whose disk hangs leaves the set. We cannot: everything waits for us, until somebody else leads.
    fn watch_own_disk(&mut self, now: Millis, effects: &mut Vec<PrimaryEffect>) {
        if now - self.ticked >= self.timing.reconnect_ms {
            // We stood still ourselves: what the disk did meanwhile is not known yet.
            self.owing = self.owing.map(|_| now);
        }
        self.ticked = now;
        let Some(since) = self.owing.filter(|since| now - since >= self.timing.evict_ms) else { return };
        let is_ahead = |member: &Member| {
            member.recorded && member.boot().is_some() && member.counted() > self.local_durable
        };
        if self.members.iter().any(is_ahead) {
            effects.push(PrimaryEffect::Stalled { for_ms: now - since });
            self.owing = Some(now);
        }
    }

    fn suspend_or_resume(&mut self, now: Millis, effects: &mut Vec<PrimaryEffect>) {
        let short = self.is_short();
        let service = match self.service {
            // Nobody has had the time to attach.
            Service::Starting if short && now - self.started < self.timing.takeover_grace_ms => return,
            _ if short => Service::Suspended,
            _ => Service::Running,
        };
        if service == self.service {
            return;
        }
        match (self.service, service) {
            (_, Service::Suspended) => effects.push(PrimaryEffect::Suspended { reason: self.shortage() }),
            (Service::Suspended, _) => effects.push(PrimaryEffect::Resumed),
            _ => {}
        }
        self.service = service;
        self.service_since = now;
    }

    /// Proposes the set that should be, if it is not the one that is.
    fn propose(&mut self, now: Millis, effects: &mut Vec<PrimaryEffect>) {
        let floor = self.minimum as usize + 1;
        let size = self.recorded_others() + 1;
        let mut leaving: Vec<(Departure, usize)> = Vec::new();
        for (index, member) in self.members.iter().enumerate() {
            if member.recorded
                && let Some(reason) = member.fault(now, &self.timing)
            {
                leaving.push((reason, index));
            }
        }
        leaving.sort_unstable();
        // Without a newcomer persistent work stands still, or will.
        let urgent = self.is_short() || size.saturating_sub(leaving.len()) < floor;
        // What may have been confirmed: by us, or, before our marker, by our predecessors.
        let proof = self.commit.max(self.marker_end);
        let evidence = self.keeps(Rule::Evidence);
        let mut joining = Vec::new();
        for (index, member) in self.members.iter_mut().enumerate() {
            if !member.may_join(now, urgent, &self.timing) {
                continue;
            }
            if member.durable >= proof || !evidence {
                joining.push(index);
            } else if self.active && !urgent {
                member.await_it(now);
            }
        }
        let removable =
            if self.keeps(Rule::Minimum) { (size + joining.len()).saturating_sub(floor) } else { usize::MAX };
        if leaving.len() > removable {
            // One that stays and is not there blocks every commit, so the others may as well stay: what they have flushed makes
            // them fit to lead. Only who has lost data is not.
            let blocked = leaving[removable..].iter().any(|&(_, index)| self.members[index].boot().is_none());
            leaving.truncate(removable);
            leaving.retain(|&(reason, _)| !blocked || reason == Departure::Corrupt);
        }
        if leaving.is_empty() && joining.is_empty() {
            return;
        }
        let mut reason = String::new();
        let mut because = |replica: &ReplicaId, what: &dyn fmt::Display| {
            let separator = if reason.is_empty() { "" } else { "; " };
            reason += &format!("{separator}{replica} {what}");
        };
        self.members.iter_mut().for_each(|member| member.proposed = member.recorded);
        for &(departure, index) in &leaving {
            let member = &mut self.members[index];
            (member.proposed, member.departure) = (false, Some(departure));
            because(&member.id, &departure);
        }
        for &index in &joining {
            let member = &mut self.members[index];
            member.proposed = true;
            because(&member.id, &"has caught up");
        }
        let proposed = self.members.iter().filter(|member| member.proposed).map(|member| member.id.clone());
        let in_sync: BTreeSet<_> = proposed.chain([self.me.clone()]).collect();
        self.proposal = Some(in_sync.clone());
        effects.push(PrimaryEffect::Propose { in_sync, reason });
    }
}
