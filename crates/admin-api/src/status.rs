use std::fmt;

use kahawai_types::{Lsn, Millis, ReplicaId};
use serde::{Deserialize, Serialize};

use crate::position;

/// What a node is in its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It opens its store, or looks for its place.
    #[default]
    Starting,
    /// It copies, or wants to copy, a primary's journal.
    Replica,
    /// It serves clients, and replicas copy its journal.
    Primary,
    /// It serves clients, alone by configuration.
    Single,
    /// Its store needs an operator, or another node's help.
    Faulted,
}

impl Role {
    /// Every role, in the order above.
    pub const ALL: [Self; 5] = [Self::Starting, Self::Replica, Self::Primary, Self::Single, Self::Faulted];

    /// As the JSON has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Replica => "replica",
            Self::Primary => "primary",
            Self::Single => "single",
            Self::Faulted => "faulted",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A copy of the journal, as a [`ReplicaId`] names it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Member {
    /// The node's name.
    pub node: String,
    /// Its data directory, 32 hex digits.
    pub store: String,
}

impl From<&ReplicaId> for Member {
    fn from(id: &ReplicaId) -> Self {
        Self { node: id.node.to_string(), store: id.store.to_string() }
    }
}

/// What a node says of itself and of its cluster: `GET /status`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Its name.
    pub node_id: String,
    /// Its data directory, 32 hex digits.
    pub store_id: String,
    /// The cluster, 32 hex digits; `None` alone, or before the node has joined one.
    pub cluster_id: Option<String>,
    /// The software.
    pub version: String,
    /// When the process started.
    pub started_ms: Millis,
    /// When this was said, so that a reader need not share the clock to tell how long something has lasted.
    pub now_ms: Millis,
    /// What it is.
    pub role: Role,
    /// What it does as such, in words: "catching up", "no CRC match in db-7.log".
    pub state: String,
    /// The epoch it last heard of.
    pub epoch: u64,
    /// End of its journal, flushed or not.
    #[serde(with = "position")]
    pub end: Lsn,
    /// End of what it has flushed.
    #[serde(with = "position")]
    pub durable: Lsn,
    /// End of what is confirmed, as far as it knows.
    #[serde(with = "position")]
    pub commit: Lsn,
    /// End of what its index has.
    #[serde(with = "position")]
    pub applied: Lsn,
    /// Who has everything confirmed, the primary included.
    pub in_sync: Vec<Member>,
    /// How many replicas a confirmation takes at least.
    pub minimum_replicas: u32,
    /// Nodes that an operator has taken out, and that are not let in again.
    pub removed: Vec<String>,
    /// Persistent work waits.
    pub suspended: Option<Suspension>,
    /// Who leads, as far as it knows.
    pub primary: Option<PrimaryStatus>,
    /// At the primary: those that copy, or should. At a replica: itself, while it synchronises.
    pub replicas: Vec<ReplicaStatus>,
    /// How the primary is found; `None` alone.
    pub election: Option<ElectionStatus>,
    /// The journal.
    pub journal: JournalStatus,
    /// Clients are let in.
    pub accepting: bool,
    /// The connectors that are open.
    pub connectors: Vec<Connector>,
    /// What the broker holds, all in all.
    pub broker: BrokerStatus,
    /// Queues and topics one by one, as many as the node cares to list.
    pub destinations: Vec<DestinationStatus>,
    /// The last changes of role, the newest last.
    pub changes: Vec<RoleChange>,
}

impl Status {
    /// This node as a member.
    pub fn member(&self) -> Member {
        Member { node: self.node_id.clone(), store: self.store_id.clone() }
    }

    /// Whether this node, with this data directory, is in the in-sync set.
    pub fn is_in_sync(&self) -> bool {
        self.in_sync.iter().any(|member| member.node == self.node_id && member.store == self.store_id)
    }
}

/// Since when and why persistent work waits.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Suspension {
    /// Since when.
    pub since_ms: Millis,
    /// Why, in words.
    pub reason: String,
}

/// Who leads.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PrimaryStatus {
    /// The node's name.
    pub node: String,
    /// Where replicas connect, `host:port`.
    pub replication: String,
    /// Where clients connect, as URLs.
    pub clients: Vec<String>,
}

/// A replica as the primary sees it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ReplicaStatus {
    /// The node's name.
    pub node: String,
    /// Its data directory, 32 hex digits.
    pub store: String,
    /// It has a session.
    pub connected: bool,
    /// Confirmations wait for it.
    pub in_sync: bool,
    /// What it does, in words.
    pub state: String,
    /// Since when; 0 = not known.
    pub since_ms: Millis,
    /// End of what it has flushed.
    #[serde(with = "position")]
    pub durable: Lsn,
    /// End of what its index has.
    #[serde(with = "position")]
    pub applied: Lsn,
    /// What it has not flushed of the primary's journal, bytes.
    pub lag_bytes: u64,
    /// For how long it has not been at the primary's end, seconds.
    pub lag_seconds: f64,
    /// Space that is left for its journal, as it said last; `None` = not known.
    pub disk_free_bytes: Option<u64>,
    /// How long its newest flush took, seconds; `None` = not known.
    pub flush_seconds_last: Option<f64>,
    /// The copy of whole files, while it is under way.
    pub synchronisation: Option<SyncProgress>,
}

/// How far a copy of whole files is.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SyncProgress {
    /// Bytes of the files that have to be there at the end.
    pub bytes_total: u64,
    /// Those that are there.
    pub bytes_done: u64,
    /// Of those, the ones that were there before this attempt.
    pub bytes_resumed: u64,
    /// How many come in a second now.
    pub bytes_per_second: u64,
    /// How long it will take at that rate, seconds; `None` while nothing comes.
    pub eta_seconds: Option<u64>,
    /// Connections that copy.
    pub sessions: u32,
    /// Numbers of the files that they copy, N of `db-N.log`.
    pub files: Vec<u32>,
    /// Attempts that failed.
    pub retries: u64,
    /// Why the last of them did.
    pub last_error: Option<String>,
}

/// How the primary is found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ElectionStatus {
    /// Which service: `zookeeper`, ...
    pub provider: String,
    /// It answers.
    pub connected: bool,
    /// Version of the cluster record that is known.
    pub record_version: u64,
    /// What keeps this node from its place, in words that go after "waits for": "node b, the last in-sync member". `None`
    /// for whoever has its place.
    pub waiting_for: Option<String>,
    /// Why nobody is elected before an operator has restored the cluster record: it is missing, or older than one that was seen.
    pub lost: Option<String>,
    /// Who is there, by what they say themselves. A hint, not a promise.
    pub present: Vec<Presence>,
}

/// What a node says of itself to the election service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Presence {
    /// The node's name.
    pub node: String,
    /// Its data directory, 32 hex digits.
    pub store: String,
    /// Epoch of its newest batch.
    pub last_epoch: u64,
    /// End of its journal when it last said so.
    #[serde(with = "position")]
    pub end: Lsn,
    /// What it does, in words.
    pub state: String,
}

/// What the journal has done since the process started.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JournalStatus {
    /// Records written.
    pub records: u64,
    /// Batches written.
    pub batches: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// How long a flush took, seconds.
    pub flush_seconds: Histogram,
    /// The longest, seconds.
    pub flush_seconds_max: f64,
    /// The newest, seconds.
    pub flush_seconds_last: f64,
    /// Space that is left for more of it; `None` = not known.
    pub disk_free_bytes: Option<u64>,
    /// Data files there are.
    pub files: u64,
    /// Their bytes.
    pub file_bytes: u64,
    /// Those in which damage was found and that are not repaired.
    pub damaged: Vec<DamagedFile>,
    /// Those that were repaired since the store was opened.
    pub repaired: u64,
}

/// A data file whose bytes are not those that were written.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DamagedFile {
    /// N of `db-N.log`.
    pub file: u32,
    /// Where and what.
    pub problem: String,
}

/// How often a value was how large.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// Upper bounds, growing.
    pub bounds: Vec<f64>,
    /// How many values lie at or below each bound and above the one before; one more than there are bounds: the rest.
    pub counts: Vec<u64>,
    /// All values added up.
    pub sum: f64,
}

impl Histogram {
    /// Out of times that were counted by powers of two of a microsecond: `buckets[i]` took less than `2^i` and not less than
    /// `2^(i-1)`, the last one has the rest.
    pub fn from_microseconds(buckets: &[u64], sum_us: u64) -> Self {
        let bounds = (0..buckets.len().saturating_sub(1)).scan(1e-6, |bound, _| {
            let this = *bound;
            *bound *= 2.0;
            Some(this)
        });
        Self { bounds: bounds.collect(), counts: buckets.to_vec(), sum: sum_us as f64 / 1e6 }
    }
}

/// An open connector.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Connector {
    /// `stomp`, `stomp+ssl`, ...
    pub name: String,
    /// `host:port`.
    pub address: String,
}

/// What the broker holds and has done since the process started, all destinations together.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BrokerStatus {
    /// Client connections.
    pub connections: u64,
    /// Consumers.
    pub consumers: u64,
    /// Queues and topics.
    pub destinations: u64,
    /// Durable subscriptions, online or not.
    pub durable_subscriptions: u64,
    /// Messages in the store that are not acknowledged.
    pub messages: u64,
    /// Messages that came.
    pub enqueued: u64,
    /// Deliveries to consumers.
    pub dispatched: u64,
    /// Messages consumed.
    pub dequeued: u64,
    /// Messages that expired.
    pub expired: u64,
    /// Messages that went to the dead letters.
    pub dead_lettered: u64,
    /// What messages in memory take, bytes.
    pub memory_bytes: u64,
    /// What they may take, bytes.
    pub memory_bytes_max: u64,
    /// Producers that are held back.
    pub producers_blocked: u64,
}

/// Queue or topic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DestinationKind {
    /// Each message for one consumer.
    #[default]
    Queue,
    /// Each message for every subscription.
    Topic,
}

/// A queue or topic; counts since the process started.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DestinationStatus {
    /// Which of the two.
    pub kind: DestinationKind,
    /// Its name, without `queue://`.
    pub name: String,
    /// Messages that are not acknowledged; of a topic, added up over its durable subscriptions.
    pub messages: u64,
    /// Of those, the ones that consumers have.
    pub in_flight: u64,
    /// Consumers, on a topic subscribers that are online.
    pub consumers: u64,
    /// Messages that came.
    pub enqueued: u64,
    /// Deliveries to consumers.
    pub dispatched: u64,
    /// Messages consumed.
    pub dequeued: u64,
    /// Messages that expired.
    pub expired: u64,
}

/// A change of role.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RoleChange {
    /// When.
    pub at_ms: Millis,
    /// The epoch from then on.
    pub epoch: u64,
    /// The role from then on.
    pub role: Role,
    /// Why, in words.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use kahawai_types::{Location, NodeId, StoreId};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn positions_are_texts_and_come_back() {
        let status = Status { commit: Location::new(12, 3456).lsn(), ..Status::default() };
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["commit"], json!("12:3456"));
        assert_eq!(json["role"], json!("starting"));
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status);
    }

    #[test]
    fn a_position_that_is_none_is_refused() {
        for wrong in [json!("12"), json!(12), json!("1:2:3"), Value::Null] {
            let read = serde_json::from_value::<Status>(json!({ "commit": wrong }));
            assert!(read.is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_unknown_field_and_a_missing_one_are_no_reason_to_refuse() {
        let status: Status =
            serde_json::from_value(json!({ "role": "single", "from_the_future": 1 })).unwrap();
        assert_eq!(status, Status { role: Role::Single, ..Status::default() });
    }

    #[test]
    fn roles_are_written_as_they_are_shown() {
        for role in Role::ALL {
            assert_eq!(serde_json::to_value(role).unwrap(), json!(role.to_string()));
        }
    }

    #[test]
    fn a_node_with_another_disk_is_not_the_member_that_the_set_names() {
        let id = ReplicaId { node: NodeId("a".to_owned()), store: StoreId(7) };
        let mut status = Status { in_sync: vec![Member::from(&id)], ..Status::default() };
        status.node_id = "a".to_owned();
        status.store_id = StoreId(8).to_string();
        assert!(!status.is_in_sync());
        status.store_id = StoreId(7).to_string();
        assert!(status.is_in_sync());
        assert_eq!(status.member(), Member::from(&id));
    }

    #[test]
    fn powers_of_two_become_bounds_in_seconds() {
        let histogram = Histogram::from_microseconds(&[1, 2, 3, 4], 2_500_000);
        assert_eq!(histogram.bounds, [0.000_001, 0.000_002, 0.000_004]);
        assert_eq!((histogram.counts, histogram.sum), (vec![1, 2, 3, 4], 2.5));
        assert_eq!(Histogram::from_microseconds(&[], 0), Histogram::default());
    }
}
