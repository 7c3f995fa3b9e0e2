//! A replica's store at work: what `node/src/cluster/following.rs` does in threads.

use std::collections::VecDeque;

use bytes::Bytes;
use kahawai_election::{Condition, Event as Told, Local, PrimaryRef};
use kahawai_journal::{Chain, CopyError, Preparer, Writer};
use kahawai_shipping::{chain, split};
use kahawai_store::checkpoint::Checkpoint;
use kahawai_store::{Follower, OpenedFollower};
use kahawai_types::{Epoch, Lsn};

use super::copying::Session;
use super::leading::Promoting;
use super::{Change, Decision, FollowEnd, MS, Process, Role};
use crate::check;
use crate::ctx::Ctx;
use crate::event::RoleEvent;
use crate::options::Mutation;

/// Records applied under one lock.
const APPLY_MAX: usize = 64;
/// One flush for at most so many bytes.
const COPY_BYTES_MAX: usize = 16 << 20;
/// How often housekeeping looks.
/// In which the record is told of a changed store.
const LOCAL: u64 = 250 * MS;

/// For the copying thread.
pub(super) enum Work {
    Body(Lsn, Bytes),
    /// The session with this number waits to know the end of the journal.
    Barrier(u32),
}

/// What the threads say to the session.
pub(super) enum Said {
    Written { durable: Lsn, chain: Chain },
    Refused(String),
}

/// Batches that the copying thread has taken.
pub(super) struct Copying {
    batches: Vec<(Lsn, Bytes)>,
    cut: Result<(), String>,
}

pub(crate) struct Following {
    pub(crate) follower: Follower,
    pub(crate) writer: Writer,
    pub(super) preparer: Preparer,
    pub(crate) commit: Lsn,
    pub(crate) durable: Lsn,
    pub(super) work: VecDeque<Work>,
    copying: Option<Copying>,
    is_applying: bool,
    checkpoint: Option<Checkpoint>,
    checkpointed: (u64, Lsn),
    pub(super) said: VecDeque<Said>,
    pub(crate) session: Session,
    pub(super) session_number: u32,
}

/// A replica whose threads end.
pub(crate) struct Ending {
    pub(super) following: Following,
    pub(super) end: FollowEnd,
}

impl Following {
    /// Takes whatever has gathered, up to a barrier.
    fn take_work(&mut self) -> Option<Copying> {
        let mut batches = Vec::new();
        let mut cut = Ok(());
        let mut bytes = 0;
        while cut.is_ok()
            && bytes < COPY_BYTES_MAX
            && let Some(Work::Body(..)) = self.work.front()
            && let Some(Work::Body(at, body)) = self.work.pop_front()
        {
            bytes += body.len();
            cut = split(at, body, &mut batches);
        }
        (bytes > 0).then_some(Copying { batches, cut })
    }

    fn last_epoch(&self) -> Epoch {
        self.follower.journal().last_epoch()
    }
}

impl Process {
    pub(super) fn begin_following(&mut self, ctx: &mut Ctx, opened: OpenedFollower) {
        let OpenedFollower { follower, writer, preparer, .. } = opened;
        let now = ctx.local_ms(self.index) as u64;
        let following = Following {
            commit: follower.committed(),
            durable: writer.written(),
            checkpointed: (now, follower.applied()),
            follower,
            writer,
            preparer,
            work: VecDeque::new(),
            copying: None,
            is_applying: false,
            checkpoint: None,
            said: VecDeque::new(),
            session: Session::Idle,
            session_number: 0,
        };
        self.become_role(Role::Following(Box::new(following)));
        if let Some(local) = self.local() {
            self.tell(ctx, Told::SteppedDown(local.clone()));
            self.tell(ctx, Told::Local(local));
        }
        self.role_later(ctx, LOCAL, RoleEvent::TellLocal);
        self.role_later(ctx, ctx.shape.upkeep_us * 2, RoleEvent::Upkeep);
        self.prepare_later(ctx);
        self.apply_later(ctx);
        self.begin_session(ctx);
        self.decide_later(ctx);
    }

    fn prepare_later(&mut self, ctx: &mut Ctx) {
        let takes = ctx.flush_us(self.index);
        self.role_later(ctx, takes, RoleEvent::Prepare);
    }

    fn local(&self) -> Option<Local> {
        let Role::Following(following) = &self.role else { return None };
        let (epoch, end) = (following.last_epoch(), following.durable);
        Some(Local {
            cluster_id: self.identity.cluster_id,
            promised: self.identity.promised_epoch,
            last_epoch: epoch,
            end,
            journal_is_empty: epoch.0 == 0 && end.offset() == 0 && end.file() <= 1,
            condition: Condition::Usable,
        })
    }

    pub(super) fn follow_decision(&mut self, ctx: &mut Ctx, decision: Decision) {
        match decision {
            Decision::Lead { epoch, record, unclean } => {
                self.end_following(ctx, FollowEnd::Lead { epoch, record, unclean });
            }
            Decision::Follow { primary } => {
                if primary != self.primary {
                    self.primary = primary;
                    self.drop_session(ctx);
                    self.begin_session(ctx);
                }
            }
            Decision::StepDown => {
                if let Some(local) = self.local() {
                    self.tell(ctx, Told::SteppedDown(local));
                }
            }
            Decision::Changed(_) => {}
        }
    }

    /// The threads are told to end; what was sent is written first.
    pub(super) fn end_following(&mut self, ctx: &mut Ctx, end: FollowEnd) {
        self.drop_session(ctx);
        let Role::Following(following) = std::mem::replace(&mut self.role, Role::Over) else { return };
        self.known_commit = following.commit.min(following.durable);
        self.become_role(Role::Ending(Box::new(Ending { following: *following, end })));
        let takes = ctx.flush_us(self.index);
        self.role_later(ctx, takes, RoleEvent::Ended);
    }

    pub(super) fn ended(&mut self, ctx: &mut Ctx) {
        let Role::Ending(ending) = std::mem::replace(&mut self.role, Role::Over) else { return };
        let Ending { mut following, end } = *ending;
        while let Some(copying) = following.copying.take().or_else(|| following.take_work()) {
            if let Err(problem) = self.copy(ctx, &mut following, copying) {
                return self.fail(ctx, problem);
            }
            while matches!(following.work.front(), Some(Work::Barrier(_))) {
                following.work.pop_front();
            }
        }
        if let Some(checkpoint) = following.checkpoint.take()
            && let Err(problem) = self.write_checkpoint(ctx, &mut following, checkpoint)
        {
            return self.fail(ctx, problem);
        }
        match end {
            FollowEnd::Lead { epoch, record, unclean } => {
                let Following { follower, writer, preparer, .. } = following;
                let promoting = Promoting { follower, writer, preparer, epoch, record: *record, unclean };
                self.become_role(Role::Promoting(Box::new(promoting)));
                let takes = ctx.flush_us(self.index) * 2;
                self.role_later(ctx, takes, RoleEvent::Promote);
            }
            FollowEnd::Reopen(change) => {
                following.follower.journal().close();
                let checkpoint = following.follower.begin_checkpoint(false);
                if let Err(problem) = self.write_checkpoint(ctx, &mut following, checkpoint) {
                    return self.exit(ctx, problem);
                }
                drop(following);
                if let Change::Truncate { to, .. } = &change {
                    self.known_commit = self.known_commit.min(*to);
                }
                self.become_role(Role::Changing(Box::new(change)));
                let takes = ctx.flush_us(self.index);
                self.role_later(ctx, takes, RoleEvent::Change);
            }
        }
    }

    fn write_checkpoint(
        &mut self,
        ctx: &mut Ctx,
        following: &mut Following,
        checkpoint: Checkpoint,
    ) -> Result<(), String> {
        let header = checkpoint.header;
        ctx.note(self.index, "checkpoint", header.applied.0, header.replay_from.0);
        following.follower.index().write(checkpoint).map_err(|error| chain(&error))?;
        following.follower.finish_checkpoint(header);
        Ok(())
    }

    pub(super) fn following_event(&mut self, ctx: &mut Ctx, what: RoleEvent) {
        match what {
            RoleEvent::TellLocal => {
                self.role_later(ctx, LOCAL, RoleEvent::TellLocal);
                if let Some(local) = self.local() {
                    self.tell(ctx, Told::Local(local));
                }
            }
            RoleEvent::Copied => self.copied(ctx),
            RoleEvent::Apply => self.apply(ctx),
            RoleEvent::Upkeep => self.upkeep(ctx),
            RoleEvent::Checkpointed => {
                let Role::Following(mut following) = std::mem::replace(&mut self.role, Role::Over) else {
                    return;
                };
                let done = match following.checkpoint.take() {
                    Some(checkpoint) => self.write_checkpoint(ctx, &mut following, checkpoint),
                    None => Ok(()),
                };
                self.role = Role::Following(following);
                match done {
                    Ok(()) => self.retire(ctx),
                    Err(problem) => self.fail(ctx, problem),
                }
            }
            RoleEvent::Prepare => {
                let Role::Following(following) = &mut self.role else { return };
                let _ = following.preparer.run_once();
            }
            RoleEvent::SessionLog { session } => self.session_log(ctx, session),
            RoleEvent::Redial { session } => {
                if let Role::Following(following) = &self.role
                    && following.session_number == session
                {
                    self.begin_session(ctx);
                }
            }
            RoleEvent::SinkTick { session } => self.sink_tick(ctx, session),
            RoleEvent::Fetch { session, number } => self.fetch_session(ctx, session, number),
            RoleEvent::FetchFailed { session, sync_id } => self.fetch_failed(ctx, session, sync_id),
            _ => {}
        }
    }

    /// Has the copying thread look at its work.
    pub(super) fn copy_later(&mut self, ctx: &mut Ctx) {
        let Role::Following(following) = &mut self.role else { return };
        if following.copying.is_some() {
            return;
        }
        let mut reached = Vec::new();
        while let Some(&Work::Barrier(session)) = following.work.front() {
            following.work.pop_front();
            reached.push(session);
        }
        following.copying = following.take_work();
        let copies = following.copying.is_some();
        for session in reached {
            let hop = ctx.hop();
            self.role_later(ctx, hop, RoleEvent::SessionLog { session });
        }
        if copies {
            let takes = ctx.flush_us(self.index);
            self.role_later(ctx, takes, RoleEvent::Copied);
        }
    }

    fn copy(&mut self, ctx: &mut Ctx, following: &mut Following, copying: Copying) -> Result<(), String> {
        let Copying { batches, cut } = copying;
        match following.writer.copy(&batches) {
            Ok(durable) => {
                following.durable = durable;
                check::copied(ctx, self.index, &self.identity, &batches, &following.writer);
                let chain = following.writer.chain().unwrap_or_default();
                following.said.push_back(Said::Written { durable, chain });
            }
            Err(CopyError::Failed(failed)) => return Err(chain(&failed)),
            Err(refused) => following.said.push_back(Said::Refused(chain(&refused))),
        }
        if let Err(problem) = cut {
            following.said.push_back(Said::Refused(problem));
        }
        Ok(())
    }

    /// The copying thread is done with what it took.
    pub(super) fn copied(&mut self, ctx: &mut Ctx) {
        let Role::Following(mut following) = std::mem::replace(&mut self.role, Role::Over) else { return };
        let done = match following.copying.take() {
            Some(copying) => self.copy(ctx, &mut following, copying),
            None => Ok(()),
        };
        self.role = Role::Following(following);
        if let Err(problem) = done {
            return self.fail(ctx, problem);
        }
        self.prepare_later(ctx);
        self.apply_later(ctx);
        self.session_said(ctx);
        self.copy_later(ctx);
    }

    /// The primary has confirmed everything below.
    pub(super) fn follow_commit(&mut self, ctx: &mut Ctx, to: Lsn) {
        let Role::Following(following) = &mut self.role else { return };
        if following.commit < to {
            following.commit = to;
            check::i09::told(ctx, self.index, &self.identity, to);
            self.apply_later(ctx);
        }
    }

    fn apply_later(&mut self, ctx: &mut Ctx) {
        let Role::Following(following) = &mut self.role else { return };
        if !following.is_applying {
            following.is_applying = true;
            let hop = ctx.hop();
            self.role_later(ctx, hop * 2, RoleEvent::Apply);
        }
    }

    fn apply(&mut self, ctx: &mut Ctx) {
        let beyond = ctx.mutated(Mutation::ApplyBeyondCommit);
        let Role::Following(following) = &mut self.role else { return };
        following.is_applying = false;
        let to = if beyond { following.durable } else { following.commit.min(following.durable) };
        if to <= following.follower.applied() {
            return;
        }
        match following.follower.apply(to, APPLY_MAX) {
            Ok(more) => {
                check::applied(ctx, self.index, &self.identity, following);
                if more {
                    self.apply_later(ctx);
                }
            }
            Err(problem) => {
                let problem = chain(&problem);
                check::cannot_apply(ctx, self.index, &problem);
                self.fail(ctx, problem);
            }
        }
    }

    fn upkeep(&mut self, ctx: &mut Ctx) {
        self.role_later(ctx, ctx.shape.upkeep_us * 2, RoleEvent::Upkeep);
        let now = ctx.local_ms(self.index) as u64;
        let Role::Following(following) = &mut self.role else { return };
        if following.checkpoint.is_some() {
            return;
        }
        let (at, position) = following.checkpointed;
        let applied = following.follower.applied();
        if applied != position && now - at >= ctx.shape.replica_checkpoint_ms {
            following.checkpointed = (now, applied);
            following.checkpoint = Some(following.follower.begin_checkpoint(false));
            let takes = ctx.flush_us(self.index) * 2;
            self.role_later(ctx, takes, RoleEvent::Checkpointed);
        } else {
            self.retire(ctx);
        }
    }

    fn retire(&mut self, ctx: &mut Ctx) {
        let may = self.may_collect(ctx);
        let Role::Following(following) = &mut self.role else { return };
        if !may {
            return;
        }
        let files = if ctx.mutated(Mutation::EarlyRetire) {
            following.follower.state().collected.iter().copied().collect()
        } else {
            following.follower.to_retire()
        };
        for file in files {
            if following.follower.journal().retire([file]).is_ok() {
                ctx.note(self.index, "data file deleted", file.into(), 0);
                check::i20::retired(ctx, self.index, &self.identity, file);
                following.follower.retired(file);
            }
        }
    }

    /// Who is to be followed.
    pub(super) fn primary_to_follow(&self) -> Option<PrimaryRef> {
        self.primary.clone().filter(|primary| primary.node != self.identity.node_id)
    }
}
