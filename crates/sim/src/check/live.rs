//! L1 and L2: when the faults have stopped, a primary serves, what was pending completes, and everybody catches up.

use super::Oracle;
use crate::ctx::Ctx;
use crate::node::copying::Session;
use crate::node::following::Following;
use crate::node::leading::Leading;
use crate::node::{Node, Role};

/// A known gap of the product: of a journal that has come down to the file that is written to, nothing can be fetched, and a store
/// without anything cannot begin in the middle. Another file is begun then, but that takes a commit, and a primary that is suspended
/// has none.
fn waits_for_a_file(following: &Following, leading: &Leading) -> bool {
    if !leading.is_suspended {
        return false;
    }
    let files = leading.store.journal().files();
    following.follower.journal().files().is_empty()
        && files.len() <= 1
        && files.first().is_some_and(|file| file.id > 1)
}

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
    let files = leading.store.journal().files();
    let is_alone = files.len() <= 1 && files.first().is_some_and(|file| file.id > 1);
    let record = ctx.oracle.record.as_ref()?;
    for node in nodes.iter().filter(|node| node.index != index) {
        let Some(process) = &node.process else { continue };
        // While such a store waits, it is opened again and again.
        if is_alone && !matches!(process.role, Role::Following(_)) {
            continue;
        }
        let Role::Following(following) = &process.role else {
            return Some(format!("L2: n{} does not follow", node.index));
        };
        if !waits_for_a_file(following, leading) && !matches!(following.session, Session::Live(_)) {
            return Some(format!("L2: n{} has no session", node.index));
        }
        if waits_for_a_file(following, leading) {
            continue;
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

/// Whether the primary's journal has come down to the file that is written to.
fn is_alone(nodes: &[Node]) -> bool {
    nodes.iter().filter_map(|node| node.process.as_ref()).any(|process| match &process.role {
        Role::Leading(leading) => {
            let files = leading.store.journal().files();
            files.len() <= 1 && files.first().is_some_and(|file| file.id > 1)
        }
        _ => false,
    })
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
        let waits = is_alone(nodes) && !matches!(&process.role, Role::Leading(_));
        if waits && ctx.oracle.held(key).is_none_or(|held| held.is_new || held.end() < last.end) {
            continue;
        }
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
