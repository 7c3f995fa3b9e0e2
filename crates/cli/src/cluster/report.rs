//! A status in a few lines for people, with what is wrong and what to do at the end.

use std::fmt::Write;

use kahawai_admin_api::{Member, ReplicaStatus, Role, Status, SyncProgress};
use kahawai_types::Millis;

const CHANGES_MAX: usize = 5;
const STORE_DIGITS: usize = 8;

/// One node: what it is, what it holds, whom it serves.
pub fn node(status: &Status) -> String {
    let mut lines = Lines::default();
    lines.put("node", what_it_is(status));
    if !status.version.is_empty() || status.started_ms > 0 {
        let up = ago(status, status.started_ms);
        lines.put("software", format!("Kahawai {}, up {up}", status.version));
    }
    cluster_lines(&mut lines, status);
    lines.put("journal", positions(status));
    let journal = &status.journal;
    let free = journal.disk_free_bytes.map_or_else(String::new, |free| format!(", {} free", bytes(free)));
    let files = format!("{} files of {}{free}", journal.files, bytes(journal.file_bytes));
    let written =
        format!("{} records in {} batches, {}", journal.records, journal.batches, bytes(journal.bytes));
    lines.put("", format!("{files}; written since the start: {written}"));
    if journal.flushes > 0 {
        let mean = journal.flush_seconds.sum / journal.flushes as f64;
        let most = journal.flush_seconds_max;
        lines.put(
            "flushes",
            format!("{}, {} on average, {} at most", journal.flushes, short(mean), short(most)),
        );
    }
    let broker = &status.broker;
    let connectors: Vec<_> = status.connectors.iter().map(|c| format!("{} {}", c.name, c.address)).collect();
    let connectors =
        if connectors.is_empty() { "no connector open".to_owned() } else { connectors.join(", ") };
    lines.put(
        "clients",
        format!("{} connections, {} consumers; {connectors}", broker.connections, broker.consumers),
    );
    lines.put(
        "messages",
        format!(
            "{} in {} destinations; since the start {} came, {} were consumed",
            broker.messages, broker.destinations, broker.enqueued, broker.dequeued
        ),
    );
    let mut out = lines.out();
    out.push_str(&replicas(&status.replicas));
    out.push_str(&changes(status));
    out.push_str(&problems(status));
    out
}

/// The cluster as one node knows it.
pub fn cluster(status: &Status) -> String {
    let mut lines = Lines::default();
    lines.put("asked", what_it_is(status));
    if status.cluster_id.is_none() {
        let alone = matches!(status.role, Role::Single);
        let what =
            if alone { "none: this node runs alone" } else { "none yet: this node has not joined one" };
        lines.put("cluster", what.to_owned());
    }
    cluster_lines(&mut lines, status);
    lines.put("journal", positions(status));
    let mut out = lines.out();
    out.push_str(&members(status));
    out.push_str(&synchronisations(&status.replicas));
    if status.role == Role::Replica
        && let Some(primary) = &status.primary
    {
        // Writing to a string cannot fail.
        let _ =
            writeln!(out, "\nHow far the replicas are is known to the primary: ask node {}.", primary.node);
    }
    out.push_str(&problems(status));
    out
}

/// What is known before a node is made the primary by force.
pub fn forced(status: &Status) -> String {
    let mut lines = Lines::default();
    lines.put("asked", what_it_is(status));
    cluster_lines(&mut lines, status);
    lines.put("journal", positions(status));
    let mut out = lines.out();
    out.push_str(&members(status));
    let others = status.in_sync.iter().filter(|member| **member != status.member());
    let others: Vec<_> = others.map(|member| &*member.node).collect();
    let node = &status.node_id;
    let consequence = if status.role == Role::Primary {
        format!("Node {node} is the primary already; there is nothing to force.")
    } else if status.is_in_sync() {
        format!(
            "Node {node} is in the in-sync set and has everything confirmed: it takes over by itself, without force."
        )
    } else if others.is_empty() {
        format!(
            "Who has everything confirmed is not known to node {node}. What it does not have is lost if it is forced."
        )
    } else {
        format!(
            "Everything confirmed is on {}. Start one of them if that can be done: what node {node} does not have is lost if \
             it is forced.",
            others.join(", ")
        )
    };
    let _ = writeln!(out, "\n{consequence}\n");
    out
}

fn what_it_is(status: &Status) -> String {
    let mut text = format!("{}, {}", status.node_id, status.role);
    if status.role != Role::Single {
        let _ = write!(text, " in epoch {}", status.epoch);
    }
    if !status.state.is_empty() {
        let _ = write!(text, " ({})", status.state);
    }
    text
}

fn cluster_lines(lines: &mut Lines, status: &Status) {
    if let Some(cluster) = &status.cluster_id {
        lines.put("cluster", format!("{cluster}, minimum replicas {}", status.minimum_replicas));
        let in_sync: Vec<_> = status.in_sync.iter().map(|member| &*member.node).collect();
        let in_sync =
            if in_sync.is_empty() { "nobody is known to be".to_owned() } else { in_sync.join(", ") };
        lines.put("in sync", in_sync);
    }
    if !status.removed.is_empty() {
        lines.put("removed", status.removed.join(", "));
    }
    if let Some(primary) = &status.primary {
        let clients =
            if primary.clients.is_empty() { "no clients".to_owned() } else { primary.clients.join(", ") };
        lines.put(
            "primary",
            format!("{}, replicas at {}, clients at {clients}", primary.node, primary.replication),
        );
    }
    if let Some(election) = &status.election {
        let connected = if election.connected { "answers" } else { "does not answer" };
        let version = election.record_version;
        lines.put(
            "election",
            format!("{} {connected}, version {version} of the cluster record", election.provider),
        );
    }
}

fn positions(status: &Status) -> String {
    let Status { end, durable, commit, applied, .. } = status;
    format!("written to {end}, flushed to {durable}, confirmed to {commit}, indexed to {applied}")
}

fn replicas(replicas: &[ReplicaStatus]) -> String {
    if replicas.is_empty() {
        return String::new();
    }
    let head = ["replica", "store", "in sync", "behind", "flushed to", "flush", "free", "state"];
    let mut rows = vec![head.map(str::to_owned)];
    let unknown = || "-".to_owned();
    for replica in replicas {
        rows.push([
            replica.node.clone(),
            store(&replica.store),
            yes(replica.in_sync),
            behind(replica),
            replica.durable.to_string(),
            replica.flush_seconds_last.map_or_else(unknown, short),
            replica.disk_free_bytes.map_or_else(unknown, bytes),
            state(replica),
        ]);
    }
    format!("\n{}{}", table(&rows), synchronisations(replicas))
}

/// Everybody that the node has heard of, from wherever.
fn members(status: &Status) -> String {
    let presence = || status.election.iter().flat_map(|election| &election.present);
    let mut all: Vec<Member> = status.in_sync.clone();
    let replicas = status.replicas.iter().map(|r| Member { node: r.node.clone(), store: r.store.clone() });
    let present = presence().map(|p| Member { node: p.node.clone(), store: p.store.clone() });
    all.extend(replicas.chain(present).chain([status.member()]));
    all.sort();
    all.dedup();
    let unknown = || "-".to_owned();
    let mut rows =
        vec![["member", "store", "in sync", "there", "epoch", "end", "behind", "state"].map(str::to_owned)];
    for member in &all {
        let me = *member == status.member();
        let replica = status.replicas.iter().find(|r| r.node == member.node && r.store == member.store);
        let present = presence().find(|p| p.node == member.node && p.store == member.store);
        let there = me || present.is_some() || replica.is_some_and(|replica| replica.connected);
        let (epoch, end) = match (me, present, replica) {
            (true, ..) => (status.epoch.to_string(), status.end.to_string()),
            (_, present, Some(replica)) => {
                (present.map_or_else(unknown, |p| p.last_epoch.to_string()), replica.durable.to_string())
            }
            (_, Some(present), None) => (present.last_epoch.to_string(), present.end.to_string()),
            (_, None, None) => (unknown(), unknown()),
        };
        rows.push([
            member.node.clone(),
            store(&member.store),
            yes(status.in_sync.contains(member)),
            yes(there),
            epoch,
            end,
            replica.map_or_else(unknown, behind),
            match (me, replica, present) {
                (true, ..) => format!("{} ({})", status.role, status.state),
                (_, Some(replica), _) => state(replica),
                (_, None, Some(present)) => present.state.clone(),
                (_, None, None) => unknown(),
            },
        ]);
    }
    format!("\n{}", table(&rows))
}

fn state(replica: &ReplicaStatus) -> String {
    if replica.connected || !replica.state.is_empty() {
        replica.state.clone()
    } else {
        "not connected".to_owned()
    }
}

fn behind(replica: &ReplicaStatus) -> String {
    format!("{}, {:.1} s", bytes(replica.lag_bytes), replica.lag_seconds)
}

fn synchronisations(replicas: &[ReplicaStatus]) -> String {
    let mut out = String::new();
    for replica in replicas {
        let Some(progress) = &replica.synchronisation else { continue };
        let _ = writeln!(out, "  {} copies: {}", replica.node, synchronisation(progress));
    }
    out
}

fn synchronisation(progress: &SyncProgress) -> String {
    let SyncProgress { bytes_total, bytes_done, bytes_resumed, bytes_per_second, sessions, .. } = *progress;
    let percent = (u128::from(bytes_done) * 100).checked_div(bytes_total.into()).unwrap_or(100);
    let mut text = format!("{} of {} ({percent} %)", bytes(bytes_done), bytes(bytes_total));
    if bytes_resumed > 0 {
        let _ = write!(text, ", {} of it from before", bytes(bytes_resumed));
    }
    let _ = write!(text, ", {}/s over {sessions} connections", bytes(bytes_per_second));
    match progress.eta_seconds {
        Some(eta) => {
            let ms = Millis::try_from(eta).unwrap_or(Millis::MAX).saturating_mul(1000);
            let _ = write!(text, ", {} left", duration(ms));
        }
        None => text.push_str(", no end in sight"),
    }
    if let Some(first) = progress.files.first() {
        let _ = write!(text, ", at db-{first}.log");
        if progress.files.len() > 1 {
            let _ = write!(text, " and {} more", progress.files.len() - 1);
        }
    }
    text
}

fn changes(status: &Status) -> String {
    if status.changes.is_empty() {
        return String::new();
    }
    let mut out = "\nchanges of role\n".to_owned();
    let skipped = status.changes.len().saturating_sub(CHANGES_MAX);
    let rows = status.changes.iter().skip(skipped).map(|change| {
        let ago = format!("  {} ago", ago(status, change.at_ms));
        [ago, format!("{} in epoch {}", change.role, change.epoch), change.reason.clone()]
    });
    out.push_str(&table(&rows.collect::<Vec<_>>()));
    out
}

/// What is wrong, and what to do.
fn problems(status: &Status) -> String {
    let mut all: Vec<(String, &str)> = Vec::new();
    let since = |ms: Millis| ago(status, ms);
    if status.role == Role::Faulted {
        let what = format!("the store of node {} needs help: {}", status.node_id, status.state);
        all.push((what, "look at the node's log; stop it and check with: kahawai store verify DIR"));
    }
    for damaged in &status.journal.damaged {
        let what =
            format!("data file {} of node {} is damaged: {}", damaged.file, status.node_id, damaged.problem);
        let advice = match status.role {
            Role::Single => {
                "stop the node, look with: kahawai store verify DIR; the guide says what to do about damage"
            }
            _ => {
                "it is repaired from another node; if it stays so, look at this node's log, and start the others"
            }
        };
        all.push((what, advice));
    }
    if let Some(suspended) = &status.suspended {
        let what = format!("persistent work waits since {}: {}", since(suspended.since_ms), suspended.reason);
        all.push((
            what,
            "it goes on by itself once enough replicas are in sync: start them, or add one; to go on with fewer copies: \
             kahawai cluster set-minimum-replicas N",
        ));
    }
    if let Some(election) = &status.election {
        if !election.connected {
            let what = format!("the election service ({}) does not answer", election.provider);
            all.push((
                what,
                "check that it runs and can be reached from this node; until then nobody can take over",
            ));
        }
        let seeks = matches!(status.role, Role::Replica | Role::Starting);
        if let Some(why) = &election.lost {
            all.push((
                format!("the cluster record is lost ({why}), nobody is elected before it is back"),
                "is the path in the election service the right one? Then see what all nodes know of the record: kahawai cluster \
                 restore-record --from URL --from URL ...",
            ));
        } else if let Some(waiting_for) = election.waiting_for.as_ref().filter(|_| seeks) {
            all.push((
                format!("node {} waits for {waiting_for}", status.node_id),
                "start it; if it is gone for good, see what would be lost: kahawai cluster force-primary",
            ));
        } else if seeks && status.primary.is_none() {
            let what = format!("node {} knows of no primary", status.node_id);
            all.push((
                what,
                "a takeover takes seconds; if it stays so, look at the logs of the in-sync members",
            ));
        }
    }
    if matches!(status.role, Role::Primary | Role::Single) && !status.accepting {
        all.push((
            format!("node {} leads, but lets no clients in yet", status.node_id),
            "it does once its epoch is confirmed by the in-sync set; if it stays so, look at its log",
        ));
    }
    for replica in &status.replicas {
        if !replica.connected && status.role == Role::Primary {
            // A member that has not come since the primary leads has no time.
            let for_how_long = match replica.since_ms {
                ..=0 => String::new(),
                since_ms => format!(" since {}", since(since_ms)),
            };
            all.push((
                format!("replica {} is not connected{for_how_long}", replica.node),
                "start it; if it is gone for good: kahawai cluster remove NODE, with --store STORE where only a disk is gone",
            ));
        }
        let progress = replica.synchronisation.as_ref();
        if let Some((progress, error)) = progress.and_then(|p| Some((p, p.last_error.as_ref()?))) {
            let (node, retries) = (&replica.node, progress.retries);
            all.push((
                format!("copying to {node} failed {retries} times, the last time: {error}"),
                "it goes on by itself from where it stopped; look at the network and the disk if it keeps failing",
            ));
        }
    }
    if status.broker.producers_blocked > 0 {
        all.push((
            format!("{} producers are held back", status.broker.producers_blocked),
            "consumers are too slow, or memory is short: kahawai run --memory-bytes-max",
        ));
    }
    all.iter().fold(String::new(), |mut out, (what, advice)| {
        let _ = write!(out, "\n! {what}\n  {advice}\n");
        out
    })
}

/// Lines with a word before each.
#[derive(Default)]
struct Lines(Vec<[String; 2]>);

impl Lines {
    fn put(&mut self, word: &str, text: String) {
        self.0.push([word.to_owned(), text]);
    }

    fn out(&self) -> String {
        table(&self.0)
    }
}

/// Columns that are as wide as their widest cell.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

/// Enough of a store's identity to tell two apart.
pub fn store(id: &str) -> String {
    id.chars().take(STORE_DIGITS).collect()
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut shown = format!("{count} B");
    for unit in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        shown = format!("{value:.1} {unit}");
    }
    shown
}

/// How long it has been, by the node's own clock.
fn ago(status: &Status, ms: Millis) -> String {
    duration(status.now_ms.saturating_sub(ms))
}

/// The two largest units of it.
fn duration(ms: Millis) -> String {
    let seconds = ms.max(0) / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// Seconds that are few.
fn short(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.2} ms", seconds * 1000.0) } else { format!("{seconds:.2} s") }
}
