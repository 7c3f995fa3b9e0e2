//! L1 and L2: when the faults have stopped, a primary serves, what was pending completes, and everybody catches up.

use super::Oracle;
use crate::ctx::Ctx;
use crate::node::copying::Session;
use crate::node::{Node, Role};

/// What is still missing; `None` = the cluster is well.
pub(crate) fn missing(ctx: &Ctx, nodes: &[Node]) -> Option<String> {
    let mut primary = None;
    for node in nodes {
        let Some(process) = &node.process else { return Some(format!("L1: n{} does not run", node.index)) };
        if let Role::Leading(leading) = &process.role {
            primary = Some((node.index, leading));
        }
    }
    let Some((index, leading)) = primary else { return Some("L1: nobody leads".to_owned()) };
    let status = leading.primary.status();
    if !status.is_active || leading.is_suspended {
        let why = status.suspended.unwrap_or_default();
        return Some(format!("L1: n{index} leads and does not serve: {why}"));
    }
    let end = leading.sealed.end;
    if leading.commit < end || leading.has_work() {
        return Some(format!("L1: n{index} has {end} and has confirmed {}", leading.commit));
    }
    if leading.store.applied() < end {
        return Some(format!("L1: n{index} has {end} and has applied {}", leading.store.applied()));
    }
    let record = ctx.oracle.record.as_ref()?;
    for node in nodes.iter().filter(|node| node.index != index) {
        let Some(process) = &node.process else { continue };
        let Role::Following(following) = &process.role else {
            return Some(format!("L2: n{} does not follow", node.index));
        };
        if !matches!(following.session, Session::Live(_)) {
            return Some(format!("L2: n{} has no session", node.index));
        }
        if following.durable < end || following.follower.applied() < end {
            return Some(format!(
                "L2: n{} has flushed {} and applied {} of {end}",
                node.index,
                following.durable,
                following.follower.applied()
            ));
        }
        let replica = process.replica();
        if !record.in_sync.contains(&replica) {
            return Some(format!("L2: {replica} has caught up and is not in sync"));
        }
    }
    None
}

/// At the end: journals and indexes are the same everywhere.
pub(crate) fn converged(ctx: &mut Ctx, nodes: &[Node]) {
    let Some(last) = ctx.oracle.committed.last().copied() else {
        return ctx.violate("L1: nothing was ever committed".to_owned());
    };
    let mut digests = Vec::new();
    for node in nodes {
        let Some(process) = &node.process else { continue };
        let key = Oracle::key_of(&process.replica());
        if !ctx.oracle.held(key).is_some_and(|held| held.has(&last) && held.end() == last.end) {
            ctx.violate(format!("CONVERGED: the journal of n{} is another", node.index));
        }
        let digest = match &process.role {
            Role::Following(following) if following.follower.applied() < last.end => None,
            Role::Following(following) => following.follower.digest().ok(),
            Role::Leading(leading) => leading.store.digest().ok(),
            _ => None,
        };
        digests.extend(digest);
    }
    if digests.windows(2).any(|pair| pair[0] != pair[1]) {
        ctx.violate("CONVERGED: the indexes differ at the end".to_owned());
    }
}
