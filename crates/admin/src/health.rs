//! What a status means to those who only want yes or no: load balancers, orchestrators, scripts that restart nodes.

use kahawai_admin_api::{Role, Status};

/// What a node has to be to count as ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Either of the two below.
    Any,
    /// It serves clients.
    Primary,
    /// It is in sync and could take over.
    Replica,
}

/// Whether the node does its part; the text says why, or why not.
///
/// # Errors
/// It does not.
pub fn ready(status: &Status, wanted: Wanted) -> Result<String, String> {
    match (status.role, wanted) {
        (Role::Primary | Role::Single, Wanted::Any | Wanted::Primary) if status.accepting => {
            Ok(format!("{}, serves clients", status.role))
        }
        (Role::Primary | Role::Single, Wanted::Any | Wanted::Primary) => {
            Err(in_state(status, "does not serve clients yet"))
        }
        (Role::Replica, Wanted::Any | Wanted::Replica) => {
            // Whoever is in sync by an old record, or was by one that is gone, does not take over.
            if let Some(why) = lost(status) {
                return Err(format!("replica: {why}"));
            }
            if !status.is_in_sync() {
                return Err(in_state(status, "not in the in-sync set"));
            }
            // Who is in sync was true when we last heard; meanwhile we may have been removed.
            if !hears_election(status) {
                return Err("replica: the election service does not answer".to_owned());
            }
            Ok("replica, in sync".to_owned())
        }
        (role, Wanted::Primary) => Err(format!("{role}, not primary")),
        (role, Wanted::Replica) => Err(format!("{role}, not replica")),
        (Role::Starting | Role::Faulted, Wanted::Any) => Err(in_state(status, "does not serve")),
    }
}

/// Whether the node can be stopped and the others go on with persistent work; the text says why, or why not. It looks at this
/// node alone: who stops two at a time has to ask for the second after the first is back.
///
/// # Errors
/// Something would stop, or it cannot be told.
pub fn stop_safe(status: &Status) -> Result<String, String> {
    match status.role {
        Role::Single => return Ok("a single node: clients wait until it is back".to_owned()),
        Role::Faulted => return Ok("it serves nobody, and nobody waits for it".to_owned()),
        Role::Starting if status.is_in_sync() => {
            return Err("it is starting, and the cluster may be waiting for it".to_owned());
        }
        Role::Starting => return Ok("it is starting, and nobody waits for it".to_owned()),
        Role::Primary | Role::Replica => {}
    }
    if let Some(suspended) = &status.suspended {
        return Err(format!("persistent work is suspended already: {}", suspended.reason));
    }
    if let Some(why) = lost(status) {
        return Err(format!("{why}: what this node knows is needed to put it back"));
    }
    if status.role == Role::Replica && !status.is_in_sync() {
        return Ok("a replica that is not in the in-sync set: nobody waits for it".to_owned());
    }
    if !hears_election(status) {
        return Err("the election service does not answer, so that nobody could take over".to_owned());
    }
    // With this node gone, one member leads and the others have to make up the minimum.
    let needed = status.minimum_replicas as usize + 1;
    let left = if status.role == Role::Primary {
        status.replicas.iter().filter(|replica| replica.in_sync && replica.connected).count()
    } else if status.primary.is_none() {
        return Err("no primary is known; a takeover may be under way".to_owned());
    } else {
        status.in_sync.len().saturating_sub(1)
    };
    if left >= needed {
        return Ok(format!("{left} in sync without it, {needed} needed"));
    }
    let minimum = status.minimum_replicas;
    Err(match (status.role, left) {
        (Role::Primary, 0) => "no other node is in sync and connected: nobody could take over".to_owned(),
        _ => format!(
            "{left} in sync without it, {needed} needed (a primary and minimum replicas = {minimum}): persistent work would be \
             suspended"
        ),
    })
}

fn hears_election(status: &Status) -> bool {
    status.election.as_ref().is_none_or(|election| election.connected)
}

fn lost(status: &Status) -> Option<String> {
    let why = status.election.as_ref()?.lost.as_ref()?;
    Some(format!("the cluster record is lost ({why})"))
}

fn in_state(status: &Status, what: &str) -> String {
    if status.state.is_empty() {
        format!("{}: {what}", status.role)
    } else {
        format!("{}: {what} ({})", status.role, status.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{primary, replica, single};

    fn check(verdict: Result<String, String>, expected: Result<&str, &str>) {
        let contains = match (&verdict, expected) {
            (Ok(text), Ok(part)) | (Err(text), Err(part)) => text.contains(part),
            _ => false,
        };
        assert!(contains, "{verdict:?} where {expected:?} is expected");
    }

    #[test]
    fn a_primary_is_ready_once_clients_are_let_in() {
        let mut status = primary();
        check(ready(&status, Wanted::Any), Ok("serves clients"));
        check(ready(&status, Wanted::Primary), Ok("serves clients"));
        check(ready(&status, Wanted::Replica), Err("primary, not replica"));
        status.accepting = false;
        check(ready(&status, Wanted::Any), Err("does not serve clients yet"));
        check(ready(&single(), Wanted::Primary), Ok("single"));
    }

    #[test]
    fn a_replica_is_ready_while_it_is_in_sync() {
        let mut status = replica();
        check(ready(&status, Wanted::Any), Ok("in sync"));
        check(ready(&status, Wanted::Replica), Ok("in sync"));
        check(ready(&status, Wanted::Primary), Err("replica, not primary"));
        status.election.as_mut().unwrap().connected = false;
        check(ready(&status, Wanted::Any), Err("election service"));
        status.election = None;
        status.in_sync.clear();
        check(ready(&status, Wanted::Any), Err("not in the in-sync set (streaming)"));
    }

    #[test]
    fn whoever_is_starting_or_faulted_is_not_ready() {
        for role in [Role::Starting, Role::Faulted] {
            let status = Status { role, ..primary() };
            check(ready(&status, Wanted::Any), Err("does not serve"));
            check(ready(&status, Wanted::Primary), Err("not primary"));
        }
    }

    #[test]
    fn a_primary_may_stop_while_enough_others_are_in_sync_and_there() {
        let mut status = primary();
        check(stop_safe(&status), Ok("2 in sync without it, 2 needed"));
        status.replicas[0].connected = false;
        check(stop_safe(&status), Err("1 in sync without it, 2 needed"));
        status.minimum_replicas = 0;
        check(stop_safe(&status), Ok("1 in sync without it, 1 needed"));
        status.replicas[1].in_sync = false;
        check(stop_safe(&status), Err("nobody could take over"));
    }

    #[test]
    fn a_replica_may_stop_while_the_rest_meets_the_minimum() {
        let mut status = replica();
        check(stop_safe(&status), Ok("2 in sync without it, 2 needed"));
        status.minimum_replicas = 2;
        check(stop_safe(&status), Err("persistent work would be suspended"));
        status.minimum_replicas = 1;
        status.primary = None;
        check(stop_safe(&status), Err("takeover"));
    }

    #[test]
    fn a_replica_that_nobody_waits_for_may_stop_unless_the_cluster_wants_it() {
        let mut status = replica();
        status.in_sync.retain(|member| member.node != status.node_id);
        status.minimum_replicas = 2;
        check(stop_safe(&status), Ok("nobody waits"));
        status.suspended =
            Some(kahawai_admin_api::Suspension { since_ms: 0, reason: "one is away".to_owned() });
        check(stop_safe(&status), Err("suspended already: one is away"));
    }

    #[test]
    fn nobody_may_stop_while_the_election_service_is_away() {
        for mut status in [primary(), replica()] {
            status.election.as_mut().unwrap().connected = false;
            check(stop_safe(&status), Err("election service"));
        }
    }

    #[test]
    fn while_the_record_is_lost_nobody_is_ready_and_nobody_may_stop() {
        let mut status = replica();
        status.election.as_mut().unwrap().lost = Some("the record is missing".to_owned());
        check(ready(&status, Wanted::Any), Err("the cluster record is lost (the record is missing)"));
        check(stop_safe(&status), Err("the cluster record is lost (the record is missing)"));
        // By the old one that it sees.
        status.in_sync.clear();
        check(ready(&status, Wanted::Replica), Err("the cluster record is lost"));
        check(stop_safe(&status), Err("needed to put it back"));
    }

    #[test]
    fn a_node_that_does_not_serve_may_stop() {
        check(stop_safe(&single()), Ok("until it is back"));
        check(stop_safe(&Status { role: Role::Faulted, ..primary() }), Ok("nobody waits"));
        check(stop_safe(&Status { role: Role::Starting, ..primary() }), Err("may be waiting"));
        check(stop_safe(&Status { role: Role::Starting, ..Status::default() }), Ok("nobody waits"));
    }
}
