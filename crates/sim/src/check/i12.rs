//! I12: the set holds the primary, and nobody makes it smaller than the minimum and the primary.

use kahawai_election::ClusterRecord;

use super::{Oracle, i14};
use crate::ctx::Ctx;

/// Looks whether the record has changed.
pub(crate) fn look(ctx: &mut Ctx) {
    let revision = ctx.hub.revision();
    if revision == ctx.oracle.revision {
        return;
    }
    ctx.oracle.revision = revision;
    let bytes = ctx.hub.peek().unwrap_or_default();
    let Ok(record) = ClusterRecord::decode(&bytes) else { return };
    ctx.say(crate::trace::WORLD, || {
        let led = record.primary.as_ref().map_or("nobody".to_owned(), |primary| primary.node.to_string());
        let names = crate::node::leading::set(&record.in_sync);
        format!(
            "record version {}: epoch {}, led by {led}, {:?}, in sync {names}",
            record.version, record.epoch, record.phase
        )
    });
    if let Some(before) = &ctx.oracle.record
        && ctx.oracle.rolled_back_to.is_some()
    {
        if record == *before {
            // Its writer, who had no answer, has put the very same record back: nothing is rolled back any more.
            ctx.oracle.rolled_back_to = None;
            return;
        }
        if record.age() <= before.age() {
            // The newest one that was ever written counts until somebody puts it back.
            if ctx.oracle.rolled_back_to != revision {
                let age = record.age();
                ctx.violate(format!("I23: {age} was written upon a record that was rolled back"));
            }
            return;
        }
        ctx.oracle.rolled_back_to = None;
    }
    if let Some(before) = ctx.oracle.record.take() {
        if record.unclean_generation > before.unclean_generation {
            forced(ctx, &record);
        }
        let outcome = changed(&before, &record);
        ctx.require(outcome);
        let outcome = i14::recorded(&before, &record);
        ctx.require(outcome);
        ctx.oracle.counts.changes += u64::from(before.in_sync != record.in_sync);
    }
    ctx.note(crate::trace::WORLD, "record, epoch and version", record.epoch.0, record.version);
    ctx.oracle.record = Some(record);
    ctx.oracle.is_dirty = true;
}

/// A primary is about to propose a set. The elector would refuse a smaller one, which does not make it right.
pub(crate) fn proposed(ctx: &mut Ctx, index: usize, before: usize, after: usize, minimum: u32) {
    let floor = minimum as usize + 1;
    if after < before && after < floor {
        ctx.violate(format!(
            "I12: n{index} proposes {after} members instead of {before}, {floor} are needed"
        ));
    }
}

/// An operator has forced a node to lead: what it lacks is lost, and that is declared.
fn forced(ctx: &mut Ctx, record: &ClusterRecord) {
    let oracle = &mut ctx.oracle;
    let Some(primary) = &record.primary else { return };
    let held = oracle.held.entry(Oracle::key_of(&primary.replica())).or_default();
    let kept = oracle.committed.iter().rposition(|batch| held.has(batch)).map_or(0, |last| last + 1);
    let lost = oracle.committed.len() - kept;
    oracle.has_lost |= lost > 0;
    oracle.committed.truncate(kept);
    oracle.committed_in.truncate(kept);
    oracle.unclean = record.epoch;
    let end = oracle.committed_end();
    oracle.confirmed = oracle.confirmed.min(end);
    ctx.note(crate::trace::WORLD, "a loss is declared, batches", lost as u64, kept as u64);
}

fn changed(before: &ClusterRecord, record: &ClusterRecord) -> Result<(), String> {
    if record.age() <= before.age() {
        return Err(format!("I12: the record goes from {} to {}", before.age(), record.age()));
    }
    if let Some(primary) = &record.primary
        && !record.in_sync.contains(&primary.replica())
    {
        return Err(format!("I12: {} leads and is not in sync", primary.node));
    }
    let floor = record.minimum_replicas as usize + 1;
    if record.unclean_generation > before.unclean_generation {
        return Ok(());
    }
    if record.in_sync.len() < before.in_sync.len() && record.in_sync.len() < floor {
        return Err(format!(
            "I12: the set goes from {} to {} members, {floor} are needed",
            before.in_sync.len(),
            record.in_sync.len()
        ));
    }
    Ok(())
}
