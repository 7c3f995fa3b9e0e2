//! I12: the set holds the primary, and nobody makes it smaller than the minimum and the primary.

use kahawai_election::ClusterRecord;

use super::i14;
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
    if let Some(before) = ctx.oracle.record.take() {
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
    if record.in_sync.len() < before.in_sync.len() && record.in_sync.len() < floor {
        return Err(format!(
            "I12: the set goes from {} to {} members, {floor} are needed",
            before.in_sync.len(),
            record.in_sync.len()
        ));
    }
    Ok(())
}
