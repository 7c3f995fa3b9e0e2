//! What must hold, whatever happens: one file per invariant of the protocol's specification, and here what they look at.
//!
//! The oracle keeps, beside the nodes, which batches each store has flushed, which batches were ever committed, and what the
//! cluster record says. It learns of them where they happen, and compares what changed; [`full`] compares everything.

pub(crate) mod i01;
pub(crate) mod i02;
pub(crate) mod i03;
pub(crate) mod i04;
pub(crate) mod i05;
pub(crate) mod i06;
pub(crate) mod i07;
pub(crate) mod i08;
pub(crate) mod i09;
pub(crate) mod i10;
pub(crate) mod i11;
pub(crate) mod i12;
pub(crate) mod i13;
pub(crate) mod i14;
pub(crate) mod i15;
pub(crate) mod i16;
pub(crate) mod i17;
pub(crate) mod i18;
pub(crate) mod i19;
pub(crate) mod i20;
pub(crate) mod i22;
pub(crate) mod i23;
pub(crate) mod i24;
pub(crate) mod l03;
pub(crate) mod live;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kahawai_election::{ClusterRecord, Revision};
use kahawai_journal::{SealedBatch, Writer};
use kahawai_kdbr::Frame;
use kahawai_replication::SessionEnd;
use kahawai_store::{Identity, OpenedFollower};
use kahawai_types::{BootId, Epoch, Lsn, ReplicaId, StoreId};

use crate::ctx::Ctx;
use crate::node::following::Following;
use crate::node::leading::Leading;
use crate::node::{Process, Role};

/// A batch, without its bytes: the chain stands for them and for everything before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Batch {
    pub(crate) start: Lsn,
    pub(crate) end: Lsn,
    pub(crate) chain: u64,
    pub(crate) epoch: Epoch,
}

/// A copy of the journal: which node, which data directory.
pub(crate) type StoreKey = (usize, StoreId);

/// What a store has flushed.
#[derive(Default, Debug)]
pub(crate) struct Held {
    pub(crate) batches: Vec<Batch>,
    /// The furthest it ever had, also of what was cut since.
    pub(crate) furthest: Lsn,
    /// Other files were put in place: what there is, is read when the store is opened.
    pub(crate) is_new: bool,
    /// It was to be cut there. Whatever interrupted that, the next start may finish it.
    pub(crate) cut_to: Option<Lsn>,
}

/// The last of `batches` that ends at or before a place.
pub(crate) fn last_before(batches: &[Batch], at: Lsn) -> Option<Batch> {
    let behind = batches.partition_point(|batch| batch.end <= at);
    batches.get(behind.checked_sub(1)?).copied()
}

impl Held {
    pub(crate) fn end(&self) -> Lsn {
        self.batches.last().map_or(Lsn::ZERO, |batch| batch.end)
    }

    /// Whether this batch, and with it all before, is here.
    pub(crate) fn has(&self, batch: &Batch) -> bool {
        last_before(&self.batches, batch.end)
            .is_some_and(|found| found.end == batch.end && found.chain == batch.chain)
    }
}

/// What the checkers know.
#[derive(Default)]
pub(crate) struct Oracle {
    pub(crate) held: BTreeMap<StoreKey, Held>,
    /// Stores whose disk is gone for good.
    pub(crate) gone: BTreeSet<StoreKey>,
    /// Everything that was ever committed, in order.
    pub(crate) committed: Vec<Batch>,
    /// In which reign each was.
    pub(crate) committed_in: Vec<Epoch>,
    /// Files were installed: up to there the index lacks what was acknowledged later, and what files knew that are deleted.
    pub(crate) installed: BTreeMap<StoreKey, Lsn>,
    /// How much of it clients may have been told.
    pub(crate) confirmed: Lsn,
    /// Who leads in an epoch.
    pub(crate) reigns: BTreeMap<Epoch, (StoreKey, BootId)>,
    /// Where its marker's batch lies, where it ends, and the chain after it.
    pub(crate) markers: BTreeMap<Epoch, (Lsn, Lsn, u64)>,
    pub(crate) promises: BTreeMap<StoreKey, Epoch>,
    /// Batches by place and epoch.
    seals: BTreeMap<(Lsn, Epoch), u64>,
    digests: BTreeMap<Lsn, u64>,
    pub(crate) record: Option<ClusterRecord>,
    revision: Option<Revision>,
    /// The service was restored from a backup, which has this revision.
    pub(crate) rolled_back_to: Option<Revision>,
    /// The last epoch that an operator forced; commits of older ones reach nobody.
    pub(crate) unclean: Epoch,
    /// Primaries whose commits wait for somebody who is not needed.
    pub(crate) stalls: BTreeMap<usize, l03::Stall>,
    /// With that, something was lost that had been committed.
    pub(crate) has_lost: bool,
    /// Something happened that every member's copy is to be looked at for.
    pub(crate) is_dirty: bool,
    /// What happens now happens to a process that is about to be killed.
    pub(crate) is_dying: bool,
    /// Nodes whose disk was made to lose or change what it had flushed.
    pub(crate) damaged: Vec<bool>,
    /// Nodes whose index was harmed: they may end when they meet that, and come back.
    pub(crate) rotten_index: Vec<bool>,
    /// Commits, confirmations and takeovers, for the report.
    pub(crate) counts: Counts,
}

/// What happened in a run: one in which nothing happens proves nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Batches that were committed.
    pub committed: u64,
    /// Reigns that committed something.
    pub reigns: u64,
    /// Changes of the in-sync set.
    pub changes: u64,
    /// Journals that were cut.
    pub cuts: u64,
    /// Stores that were opened.
    pub opened: u64,
    /// Synchronisations that were installed.
    pub installed: u64,
    /// Data files that were deleted.
    pub deleted: u64,
    /// Index digests that were compared.
    pub digests: u64,
    /// Faults.
    pub faults: u64,
}

impl Oracle {
    pub(crate) fn new(nodes: usize) -> Self {
        Self { damaged: vec![false; nodes], rotten_index: vec![false; nodes], ..Self::default() }
    }

    pub(crate) fn committed_end(&self) -> Lsn {
        self.committed.last().map_or(Lsn::ZERO, |batch| batch.end)
    }

    pub(crate) fn held(&self, key: StoreKey) -> Option<&Held> {
        self.held.get(&key)
    }

    /// The same replica, as the checkers name it.
    pub(crate) fn key_of(replica: &ReplicaId) -> StoreKey {
        let node = replica.node.0.strip_prefix('n').and_then(|number| number.parse().ok());
        (node.unwrap_or(usize::MAX), replica.store)
    }

    fn hold(&mut self, key: StoreKey, batch: Batch) -> Result<(), String> {
        i03::same(&mut self.seals, &batch)?;
        let held = self.held.entry(key).or_default();
        i02::follows(held, &batch)?;
        held.furthest = held.furthest.max(batch.end);
        held.batches.push(batch);
        Ok(())
    }
}

pub(crate) fn key(index: usize, identity: &Identity) -> StoreKey {
    (index, identity.store_id)
}

/// A store was opened: what it had flushed is there.
pub(crate) fn opened(ctx: &mut Ctx, index: usize, identity: &Identity, opened: &OpenedFollower) {
    let key = key(index, identity);
    ctx.oracle.counts.opened += 1;
    let oracle = &mut ctx.oracle;
    let end = opened.report.recovery.end;
    let held = oracle.held.entry(key).or_default();
    if std::mem::take(&mut held.is_new) {
        held.batches.clear();
    }
    if let Some(to) = held.cut_to.take()
        && end < held.end()
    {
        held.batches.retain(|batch| batch.start < to);
    }
    let expected = held.end();
    if end < expected {
        if !oracle.damaged.get(index).copied().unwrap_or(false) {
            return ctx.violate(format!("FLUSHED: n{index} had flushed up to {expected}, and finds {end}"));
        }
        held.batches.retain(|batch| batch.end <= end);
    }
    let reader = opened.follower.reader();
    let from = held.end();
    for found in reader.batches(from) {
        let Ok(found) = found else { break };
        let (Some(chain), Some(stamp)) = (found.chain, found.stamp.as_ref()) else { continue };
        let batch = Batch { start: found.lsn, end: found.end(), chain: chain.0, epoch: stamp.epoch };
        let outcome = ctx.oracle.hold(key, batch);
        ctx.require(outcome);
    }
    let outcome = i10::opened(ctx, index, opened);
    ctx.require(outcome);
    ctx.oracle.is_dirty = true;
}

/// A replica has flushed batches.
pub(crate) fn copied(
    ctx: &mut Ctx,
    index: usize,
    identity: &Identity,
    batches: &[(Lsn, Bytes)],
    writer: &Writer,
) {
    let key = key(index, identity);
    for (at, bytes) in batches {
        let Ok(checked) = kahawai_journal::CheckedBatch::check(bytes, *at) else { continue };
        let Some(stamp) = checked.stamp.as_ref() else { continue };
        let chain = stamp.prev_chain.after(stamp.epoch, *at, checked.payload_bytes, stamp.digest);
        let batch =
            Batch { start: *at, end: Lsn(at.0 + bytes.len() as u64), chain: chain.0, epoch: stamp.epoch };
        let outcome = ctx.oracle.hold(key, batch);
        ctx.require(outcome);
    }
    let ends = ctx.oracle.held(key).and_then(|held| held.batches.last().copied());
    if let Some(last) = ends
        && let Some(chain) = writer.chain()
        && chain.0 != last.chain
    {
        ctx.violate(format!(
            "I3: n{index} has chain {:016x} at {}, the batch says {:016x}",
            chain.0, last.end, last.chain
        ));
    }
    ctx.note(index, "copied to", writer.written().0, batches.len() as u64);
}

/// A primary has formed a batch.
pub(crate) fn sealed(ctx: &mut Ctx, index: usize, me: &ReplicaId, batch: &SealedBatch) {
    let key = Oracle::key_of(me);
    let outcome = i01::sealed(&mut ctx.oracle, key, batch);
    ctx.require(outcome);
    let outcome = i16::sealed(&ctx.oracle, key, batch.epoch);
    ctx.require(outcome);
    let sealed = Batch { start: batch.start, end: batch.end, chain: batch.chain.0, epoch: batch.epoch };
    let outcome = i03::same(&mut ctx.oracle.seals, &sealed);
    ctx.require(outcome);
    ctx.note(index, "seals", batch.start.0, batch.end.0);
}

/// A primary has flushed a batch.
pub(crate) fn written(ctx: &mut Ctx, index: usize, me: &ReplicaId, batch: &SealedBatch) {
    let batch = Batch { start: batch.start, end: batch.end, chain: batch.chain.0, epoch: batch.epoch };
    let outcome = ctx.oracle.hold(Oracle::key_of(me), batch);
    ctx.require(outcome);
    ctx.note(index, "wrote to", batch.end.0, 0);
}

/// A primary's machine says that everything up to there is committed.
pub(crate) fn committed(ctx: &mut Ctx, process: &Process, at: Lsn) {
    let Role::Leading(leading) = &process.role else { return };
    let me = Oracle::key_of(&leading.me);
    ctx.note(process.index, "commits", at.0, leading.epoch.0);
    let outcome = i09::committed(&mut ctx.oracle, me, leading.epoch, at);
    ctx.require(outcome);
    let outcome = i05::marker_first(&ctx.oracle, leading.epoch, at);
    ctx.require(outcome);
    if leading.epoch >= ctx.oracle.unclean {
        let outcome = i13::both(&ctx.oracle, leading, at);
        ctx.require(outcome);
    }
    ctx.oracle.is_dirty = true;
}

/// A replica's index has moved.
pub(crate) fn applied(ctx: &mut Ctx, index: usize, identity: &Identity, following: &Following) {
    let applied = following.follower.applied();
    let outcome = i10::follower(index, following);
    ctx.require(outcome);
    let outcome = i18::applied(&ctx.oracle, index, applied);
    ctx.require(outcome);
    let _ = identity;
    i19::compare(ctx, index, applied, || following.follower.digest().ok());
}

/// A primary's index has moved.
pub(crate) fn lead_applied(ctx: &mut Ctx, index: usize, leading: &Leading) {
    let applied = leading.store.applied();
    if leading.store.is_settled() {
        let outcome = i18::applied(&ctx.oracle, index, applied);
        ctx.require(outcome);
        i19::compare(ctx, index, applied, || leading.store.digest().ok());
    }
}

/// A frame is about to leave.
pub(crate) fn frame_leaves(ctx: &mut Ctx, process: &Process, frame: &Frame) {
    let outcome = i15::frame_leaves(process, frame);
    ctx.require(outcome);
    let outcome = i04::frame_leaves(process, frame);
    ctx.require(outcome);
}

/// Nothing that happened to the disk explains that.
fn unexplained(ctx: &Ctx, index: usize) -> bool {
    !ctx.oracle.is_dying && !ctx.oracle.damaged.get(index).copied().unwrap_or(false)
}

fn has_rotten_index(ctx: &Ctx, index: usize) -> bool {
    ctx.oracle.rotten_index.get(index).copied().unwrap_or(false)
}

fn is_injected(problem: &str) -> bool {
    problem.contains("injected")
}

/// A store cannot be opened.
pub(crate) fn cannot_open(ctx: &mut Ctx, index: usize, problem: &str) {
    if unexplained(ctx, index) && !is_injected(problem) {
        ctx.violate(format!("OPEN: n{index} cannot open its store: {problem}"));
    }
}

/// A replica cannot apply what is committed.
pub(crate) fn cannot_apply(ctx: &mut Ctx, index: usize, problem: &str) {
    if unexplained(ctx, index) && !is_injected(problem) && !has_rotten_index(ctx, index) {
        ctx.violate(format!("APPLY: n{index} cannot apply what is committed: {problem}"));
    }
}

/// A replica cannot become the primary.
pub(crate) fn cannot_promote(ctx: &mut Ctx, index: usize, problem: &str) {
    if unexplained(ctx, index) && !is_injected(problem) && !has_rotten_index(ctx, index) {
        ctx.violate(format!("PROMOTE: n{index} cannot become the primary: {problem}"));
    }
}

/// A primary cannot read its journal for a replica.
pub(crate) fn cannot_feed(ctx: &mut Ctx, index: usize, problem: &str) {
    let is_deleted = problem.contains("were deleted");
    if unexplained(ctx, index) && !is_injected(problem) && !is_deleted {
        ctx.violate(format!("FEED: n{index} cannot read its journal: {problem}"));
    }
}

/// A session was ended by an end that found the other's journal wrong.
pub(crate) fn session_refused(ctx: &mut Ctx, process: &Process, end: &SessionEnd) {
    use kahawai_kdbr::ErrorCode;
    let (SessionEnd::Refused(error) | SessionEnd::Told(error)) = end else { return };
    let alarming = matches!(error.code, ErrorCode::Corrupt | ErrorCode::Diverged | ErrorCode::Protocol);
    if alarming && unexplained(ctx, process.index) && !ctx.oracle.damaged.iter().any(|damaged| *damaged) {
        ctx.violate(format!("SESSION: n{}: {error}", process.index));
    }
}

/// After each event: what changed at the election service, and everything that depends on it.
pub(crate) fn step(ctx: &mut Ctx, nodes: &[crate::node::Node]) {
    i12::look(ctx);
    if std::mem::take(&mut ctx.oracle.is_dirty) {
        let outcome = i06::covered(&ctx.oracle);
        ctx.require(outcome);
    }
    let outcome = i17::gates(ctx, nodes);
    ctx.require(outcome);
}

/// Everything, as far as it can be looked at from outside.
pub(crate) fn full(ctx: &mut Ctx, nodes: &[crate::node::Node]) {
    for node in nodes {
        let Some(process) = &node.process else { continue };
        match &process.role {
            Role::Following(following) => {
                let outcome = i10::follower(node.index, following);
                ctx.require(outcome);
                let applied = following.follower.applied();
                i19::look(ctx, node.index, applied, || following.follower.digest().ok());
            }
            Role::Leading(leading) if leading.store.is_settled() => {
                i19::look(ctx, node.index, leading.store.applied(), || leading.store.digest().ok());
            }
            _ => {}
        }
    }
    let outcome = i06::covered(&ctx.oracle);
    ctx.require(outcome);
}
