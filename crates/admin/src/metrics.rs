//! The metrics page, in Prometheus' text format 0.0.4.
//!
//! What ActiveMQ has too carries the names that the Prometheus JMX exporter gives it with its example configuration for
//! ActiveMQ (`activemq_queue_queue_size{destination="..."}`, `activemq_enqueue_total`), so that dashboards stay; everything else
//! begins with `kahawai_`. A level keeps the type gauge even where the exporter's pattern calls it a counter
//! (`activemq_message_total`): `rate()` of one makes no sense.

use std::fmt::{Display, Write};

use kahawai_admin_api::{
    DestinationKind, DestinationStatus, Histogram, ReplicaStatus, Role, Status, SyncProgress,
};
use kahawai_types::{Lsn, Millis};

const POSITION: &str = "as file * 2^32 + offset";

type Labels<'a> = &'a [(&'a str, &'a str)];

/// The page for one status.
pub fn metrics(status: &Status) -> String {
    let mut page = Page::default();
    node(&mut page, status);
    replicas(&mut page, &status.replicas);
    election(&mut page, status);
    journal(&mut page, status);
    broker(&mut page, status);
    destinations(&mut page, &status.destinations);
    page.out
}

fn node(page: &mut Page, status: &Status) {
    page.gauge("kahawai_build_info", "The software, in a label.").sample(&[("version", &status.version)], 1);
    let cluster = status.cluster_id.as_deref().unwrap_or_default();
    let labels = [("node", &*status.node_id), ("store", &*status.store_id), ("cluster", cluster)];
    page.gauge("kahawai_node_info", "The node's identity, in labels.").sample(&labels, 1);
    page.gauge("kahawai_start_time_seconds", "When the process started, Unix time.")
        .sample(&[], seconds(status.started_ms));
    page.gauge("kahawai_role", "1 for the node's role, 0 for the others.");
    for role in Role::ALL {
        page.sample(&[("role", role.as_str())], u8::from(role == status.role));
    }
    page.gauge("kahawai_accepting_clients", "Whether clients are let in.")
        .sample(&[], u8::from(status.accepting));
    page.gauge("kahawai_epoch", "The epoch that the node last heard of.").sample(&[], status.epoch);
    for (name, what, position) in [
        ("kahawai_end_position", "End of the journal", status.end),
        ("kahawai_durable_position", "End of what is flushed", status.durable),
        ("kahawai_commit_position", "End of what is confirmed", status.commit),
        ("kahawai_applied_position", "End of what the index has", status.applied),
    ] {
        page.gauge(name, &format!("{what}, {POSITION}.")).sample(&[], position.0);
    }
    page.gauge("kahawai_in_sync_members", "Members of the in-sync set, the primary included.")
        .sample(&[], status.in_sync.len());
    page.gauge("kahawai_in_sync_member", "1 for each member of the in-sync set.");
    for member in &status.in_sync {
        page.sample(&[("node", &member.node), ("store", &member.store)], 1);
    }
    page.gauge("kahawai_minimum_replicas", "Replicas that a confirmation takes at least.")
        .sample(&[], status.minimum_replicas);
    page.gauge("kahawai_suspended", "Whether persistent work waits.")
        .sample(&[], u8::from(status.suspended.is_some()));
    if let Some(suspended) = &status.suspended {
        page.gauge("kahawai_suspended_since_seconds", "Since when persistent work waits, Unix time.")
            .sample(&[], seconds(suspended.since_ms));
        page.gauge("kahawai_suspended_info", "Why persistent work waits, in a label.")
            .sample(&[("reason", &suspended.reason)], 1);
    }
}

fn replicas(page: &mut Page, replicas: &[ReplicaStatus]) {
    page.per_replica("kahawai_replica_connected", "Whether the replica has a session.", replicas, |r| {
        Some(u8::from(r.connected))
    });
    page.per_replica(
        "kahawai_replica_in_sync",
        "Whether confirmations wait for the replica.",
        replicas,
        |r| Some(u8::from(r.in_sync)),
    );
    page.gauge("kahawai_replica_state_info", "What the replica does, in a label.");
    for replica in replicas {
        let labels = [("replica", &*replica.node), ("store", &*replica.store), ("state", &*replica.state)];
        page.sample(&labels, 1);
    }
    page.per_replica(
        "kahawai_replica_state_since_seconds",
        "Since when it does that, Unix time.",
        replicas,
        |r| (r.since_ms > 0).then(|| seconds(r.since_ms)),
    );
    let position = |what: &str| format!("{what}, {POSITION}.");
    let flushed = position("End of what the replica has flushed");
    page.per_replica("kahawai_replica_durable_position", &flushed, replicas, |r| position_of(r.durable));
    let applied = position("End of what the replica's index has");
    page.per_replica("kahawai_replica_applied_position", &applied, replicas, |r| position_of(r.applied));
    let lag_bytes = "What the replica has not flushed of the journal, bytes.";
    page.per_replica("kahawai_replica_lag_bytes", lag_bytes, replicas, |r| Some(r.lag_bytes));
    let lag_seconds = "For how long the replica has not been at the journal's end, seconds.";
    page.per_replica("kahawai_replica_lag_seconds", lag_seconds, replicas, |r| Some(r.lag_seconds));
    let free = "Space that is left for the replica's journal, bytes.";
    page.per_replica("kahawai_replica_disk_free_bytes", free, replicas, |r| r.disk_free_bytes);
    let flush = "How long the replica's newest flush took.";
    page.per_replica("kahawai_replica_flush_seconds_last", flush, replicas, |r| r.flush_seconds_last);
    synchronisation(page, replicas);
}

fn position_of(position: Lsn) -> Option<u64> {
    Some(position.0)
}

fn synchronisation(page: &mut Page, replicas: &[ReplicaStatus]) {
    type Field = fn(&SyncProgress) -> Option<u64>;
    let fields: [(&str, &str, Field); 6] = [
        ("total_bytes", "Bytes that the replica has to have at the end.", |s| Some(s.bytes_total)),
        ("done_bytes", "Bytes that it has.", |s| Some(s.bytes_done)),
        ("resumed_bytes", "Of those, bytes that it had before this attempt.", |s| Some(s.bytes_resumed)),
        ("bytes_per_second", "Bytes that come in a second now.", |s| Some(s.bytes_per_second)),
        ("eta_seconds", "How long it will take at that rate.", |s| s.eta_seconds),
        ("sessions", "Connections that copy.", |s| Some(s.sessions.into())),
    ];
    for (name, help, field) in fields {
        let name = format!("kahawai_synchronisation_{name}");
        page.per_replica(&name, help, replicas, |r| field(r.synchronisation.as_ref()?));
    }
    page.counter("kahawai_synchronisation_retries_total", "Attempts that failed.");
    page.replica_samples(replicas, |r| Some(r.synchronisation.as_ref()?.retries));
}

fn election(page: &mut Page, status: &Status) {
    let Some(election) = &status.election else { return };
    let labels = [("provider", &*election.provider)];
    page.gauge("kahawai_election_connected", "Whether the election service answers.")
        .sample(&labels, u8::from(election.connected));
    page.gauge("kahawai_election_record_version", "Version of the cluster record that is known.")
        .sample(&labels, election.record_version);
    page.gauge("kahawai_election_record_lost", "Whether an operator has to restore the cluster record.")
        .sample(&labels, u8::from(election.lost.is_some()));
    page.gauge("kahawai_election_waiting_info", "What keeps the node from its place, in a label.");
    if let Some(waiting_for) = &election.waiting_for {
        page.sample(&[("waiting_for", waiting_for)], 1);
    }
}

fn journal(page: &mut Page, status: &Status) {
    let journal = &status.journal;
    page.counter("kahawai_journal_records_total", "Records written.").sample(&[], journal.records);
    page.counter("kahawai_journal_batches_total", "Batches written.").sample(&[], journal.batches);
    page.counter("kahawai_journal_bytes_total", "Bytes of the batches written.").sample(&[], journal.bytes);
    page.counter("kahawai_journal_flushes_total", "Flushes of the journal.").sample(&[], journal.flushes);
    page.histogram(
        "kahawai_journal_flush_seconds",
        "How long a flush of the journal took.",
        &journal.flush_seconds,
    );
    page.gauge("kahawai_journal_flush_seconds_max", "The longest flush since the start.")
        .sample(&[], journal.flush_seconds_max);
    page.gauge("kahawai_journal_flush_seconds_last", "The newest flush.")
        .sample(&[], journal.flush_seconds_last);
    page.gauge(
        "kahawai_journal_damaged_files",
        "Data files in which damage was found and that are not repaired.",
    )
    .sample(&[], journal.damaged.len());
    page.counter(
        "kahawai_journal_repaired_files_total",
        "Damaged data files that were replaced by a sound copy.",
    )
    .sample(&[], journal.repaired);
    if let Some(free) = journal.disk_free_bytes {
        page.gauge("kahawai_journal_disk_free_bytes", "Space that is left for the journal, bytes.")
            .sample(&[], free);
    }
    page.gauge("kahawai_journal_files", "Data files.").sample(&[], journal.files);
    page.gauge("kahawai_journal_file_bytes", "Bytes of the data files.").sample(&[], journal.file_bytes);
}

fn broker(page: &mut Page, status: &Status) {
    let broker = &status.broker;
    page.gauge("activemq_connections", "Client connections.").sample(&[], broker.connections);
    page.counter("activemq_enqueue_total", "Messages that came.").sample(&[], broker.enqueued);
    page.counter("activemq_dequeue_total", "Messages consumed.").sample(&[], broker.dequeued);
    page.gauge("activemq_message_total", "Messages in the store that are not acknowledged.")
        .sample(&[], broker.messages);
    page.gauge("activemq_consumer_total", "Consumers.").sample(&[], broker.consumers);
    if broker.memory_bytes_max > 0 {
        let ratio = broker.memory_bytes as f64 / broker.memory_bytes_max as f64;
        page.gauge("activemq_memory_usage_ratio", "Memory for messages in use, 0 to 1.").sample(&[], ratio);
    }
    page.gauge("kahawai_memory_bytes", "What messages in memory take.").sample(&[], broker.memory_bytes);
    page.gauge("kahawai_memory_max_bytes", "What they may take.").sample(&[], broker.memory_bytes_max);
    page.counter("kahawai_dispatched_total", "Deliveries to consumers.").sample(&[], broker.dispatched);
    page.counter("kahawai_expired_total", "Messages that expired.").sample(&[], broker.expired);
    page.counter("kahawai_dead_lettered_total", "Messages that went to the dead letters.")
        .sample(&[], broker.dead_lettered);
    page.gauge("kahawai_destinations", "Queues and topics.").sample(&[], broker.destinations);
    page.gauge("kahawai_durable_subscriptions", "Durable subscriptions, online or not.")
        .sample(&[], broker.durable_subscriptions);
    page.gauge("kahawai_producers_blocked", "Producers that are held back.")
        .sample(&[], broker.producers_blocked);
}

fn destinations(page: &mut Page, all: &[DestinationStatus]) {
    type Field = fn(&DestinationStatus) -> u64;
    let fields: [(&str, Kind, &str, Field); 7] = [
        ("queue_size", Kind::Gauge, "Messages that are not acknowledged.", |d| d.messages),
        ("in_flight_count", Kind::Gauge, "Of those, messages that consumers have.", |d| d.in_flight),
        ("consumer_count", Kind::Gauge, "Consumers.", |d| d.consumers),
        ("enqueue_count", Kind::Counter, "Messages that came.", |d| d.enqueued),
        ("dispatch_count", Kind::Counter, "Deliveries to consumers.", |d| d.dispatched),
        ("dequeue_count", Kind::Counter, "Messages consumed.", |d| d.dequeued),
        ("expired_count", Kind::Counter, "Messages that expired.", |d| d.expired),
    ];
    for (prefix, which) in [("queue", DestinationKind::Queue), ("topic", DestinationKind::Topic)] {
        for (name, kind, help, field) in fields {
            page.family(&format!("activemq_{prefix}_{name}"), kind, help);
            for destination in all.iter().filter(|destination| destination.kind == which) {
                page.sample(&[("destination", &destination.name)], field(destination));
            }
        }
    }
}

fn seconds(ms: Millis) -> f64 {
    ms as f64 / 1000.0
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The text so far, and the family that samples belong to. Writing to a string cannot fail.
#[derive(Default)]
struct Page {
    out: String,
    family: String,
    /// Comes before the family's first sample; a family without samples leaves nothing.
    head: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: Kind, help: &str) -> &mut Self {
        name.clone_into(&mut self.family);
        self.head = format!("# HELP {name} {}\n# TYPE {name} {}\n", escaped(help, false), kind.as_str());
        self
    }

    fn gauge(&mut self, name: &str, help: &str) -> &mut Self {
        self.family(name, Kind::Gauge, help)
    }

    fn counter(&mut self, name: &str, help: &str) -> &mut Self {
        self.family(name, Kind::Counter, help)
    }

    fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        self.suffixed("", labels, value);
    }

    fn suffixed(&mut self, suffix: &str, labels: Labels<'_>, value: impl Display) {
        self.out.push_str(&std::mem::take(&mut self.head));
        let _ = write!(self.out, "{}{suffix}", self.family);
        for (index, (name, label)) in labels.iter().enumerate() {
            let opening = if index == 0 { '{' } else { ',' };
            let _ = write!(self.out, "{opening}{name}=\"{}\"", escaped(label, true));
        }
        let closing = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.out, "{closing} {value}");
    }

    fn per_replica<V: Display>(
        &mut self,
        name: &str,
        help: &str,
        replicas: &[ReplicaStatus],
        value: impl Fn(&ReplicaStatus) -> Option<V>,
    ) {
        self.gauge(name, help).replica_samples(replicas, value);
    }

    fn replica_samples<V: Display>(
        &mut self,
        replicas: &[ReplicaStatus],
        value: impl Fn(&ReplicaStatus) -> Option<V>,
    ) {
        for replica in replicas {
            if let Some(value) = value(replica) {
                self.sample(&[("replica", &replica.node), ("store", &replica.store)], value);
            }
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, Kind::Histogram, help);
        let mut below = 0_u64;
        for (bound, count) in histogram.bounds.iter().zip(&histogram.counts) {
            below = below.saturating_add(*count);
            self.suffixed("_bucket", &[("le", &bound.to_string())], below);
        }
        let all = histogram.counts.iter().fold(0_u64, |all, count| all.saturating_add(*count));
        self.suffixed("_bucket", &[("le", "+Inf")], all);
        self.suffixed("_sum", &[], histogram.sum);
        self.suffixed("_count", &[], all);
    }
}

fn escaped(text: &str, quotes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests;
