//! The JSON that the election service holds, for an operator to read.
//!
//! ```text
//! {
//!   "format": 1, "cluster_id": "<32 hex digits>", "feature_level": 1,
//!   "epoch": 7, "version": 31, "unclean_generation": 0,
//!   "primary": {"node": "a", "store": "<hex>", "boot": "<hex>", "address": "kdbr://…", "clients": ["stomp://…"]} | null,
//!   "phase": "RECOVERING" | "ACTIVE",
//!   "ack_policy": "IN_SYNC", "minimum_replicas": 1,
//!   "in_sync": [{"node": "a", "store": "<hex>"}, …],
//!   "epoch_start": {"at": "<file>:<offset>", "chain": "<16 hex digits>"} | null,
//!   "members": {"a": {"store": "<hex>", "address": "kdbr://…", "clients": […], "priority": 0}, …},
//!   "removed": ["d", …],
//!   "successor": "b" | null, "last_op": "<hex>"
//! }
//! ```
//! Identities are hexadecimal because JSON numbers end at 2^53 for most readers. Fields that we do not know are left
//! out when we write, which is why a new one needs a new `feature_level`, and one that changes a meaning a new `format`.

use std::collections::{BTreeMap, BTreeSet};

use kahawai_types::{BootId, ClusterId, Epoch, Location, Lsn, NodeId, ReplicaId, StoreId};
use serde::{Deserialize, Serialize};

use crate::presence::{Presence, PresenceState};
use crate::record::{ClusterRecord, Member, Phase, PrimaryRef};

/// The longest record that is read or written.
pub const RECORD_BYTES_MAX: usize = 256 << 10;
/// The longest presence that is read or written.
pub const PRESENCE_BYTES_MAX: usize = 64 << 10;

/// What counts up stays below: the next one always exists.
pub(crate) const COUNT_MAX: u64 = 1 << 62;
const FORMAT: u32 = 1;
const ACK_POLICY: &str = "IN_SYNC";

/// Why bytes are no record, or no presence.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// Too long to be one of ours.
    #[error("{bytes} bytes, at most {limit} are read")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// What is read at most.
        limit: usize,
    },
    /// Written by a newer release.
    #[error("format {0} is not known to this release, which reads {FORMAT}")]
    Format(u32),
    /// Another confirmation policy than the one that is built.
    #[error("acknowledgement policy '{0}' is not known to this release")]
    Policy(String),
    /// No JSON, or not in this shape.
    #[error("{0}")]
    Json(String),
    /// A value that cannot be.
    #[error("'{text}' is no {what}")]
    Value {
        /// What stands there.
        text: String,
        /// What should.
        what: &'static str,
    },
    /// A number that would soon come to its end: nobody counts that far.
    #[error("{0} is too high a number for an epoch, a version or a generation")]
    Number(u64),
    /// Its parts contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
}

#[derive(Serialize, Deserialize)]
struct RecordJson {
    format: u32,
    cluster_id: String,
    feature_level: u32,
    epoch: u64,
    version: u64,
    unclean_generation: u64,
    primary: Option<PrimaryJson>,
    phase: PhaseJson,
    ack_policy: String,
    minimum_replicas: u32,
    in_sync: Vec<ReplicaJson>,
    epoch_start: Option<StartJson>,
    members: BTreeMap<String, MemberJson>,
    /// Not in the first records.
    #[serde(default)]
    removed: BTreeSet<String>,
    successor: Option<String>,
    last_op: String,
}

/// Read before the rest, which may look different in another format.
#[derive(Deserialize)]
struct FormatJson {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct PrimaryJson {
    node: String,
    store: String,
    boot: String,
    address: String,
    clients: Vec<String>,
}

#[derive(Serialize, Deserialize)]
enum PhaseJson {
    #[serde(rename = "RECOVERING")]
    Recovering,
    #[serde(rename = "ACTIVE")]
    Active,
}

#[derive(Serialize, Deserialize)]
struct ReplicaJson {
    node: String,
    store: String,
}

#[derive(Serialize, Deserialize)]
struct StartJson {
    at: String,
    chain: String,
}

#[derive(Serialize, Deserialize)]
struct MemberJson {
    store: String,
    address: String,
    clients: Vec<String>,
    priority: i32,
}

#[derive(Serialize, Deserialize)]
struct PresenceJson {
    node: String,
    store: String,
    boot: String,
    address: String,
    clients: Vec<String>,
    last_epoch: u64,
    end: String,
    state: StateJson,
    priority: i32,
}

#[derive(Serialize, Deserialize)]
enum StateJson {
    #[serde(rename = "LEADING")]
    Leading,
    #[serde(rename = "FOLLOWING")]
    Following,
    #[serde(rename = "SYNCING")]
    Syncing,
    #[serde(rename = "UNUSABLE")]
    Unusable,
}

impl ClusterRecord {
    /// As it is kept by the service.
    pub fn encode(&self) -> Vec<u8> {
        let json = RecordJson {
            format: FORMAT,
            cluster_id: self.cluster_id.to_string(),
            feature_level: self.feature_level,
            epoch: self.epoch.0,
            version: self.version,
            unclean_generation: self.unclean_generation,
            primary: self.primary.as_ref().map(|primary| PrimaryJson {
                node: primary.node.0.clone(),
                store: primary.store.to_string(),
                boot: primary.boot.to_string(),
                address: primary.address.clone(),
                clients: primary.clients.clone(),
            }),
            phase: match self.phase {
                Phase::Recovering => PhaseJson::Recovering,
                Phase::Active => PhaseJson::Active,
            },
            ack_policy: ACK_POLICY.to_owned(),
            minimum_replicas: self.minimum_replicas,
            in_sync: self
                .in_sync
                .iter()
                .map(|replica| ReplicaJson { node: replica.node.0.clone(), store: replica.store.to_string() })
                .collect(),
            epoch_start: self
                .epoch_start
                .map(|(at, chain)| StartJson { at: at.to_string(), chain: format!("{chain:016x}") }),
            members: self
                .members
                .iter()
                .map(|(node, member)| {
                    let json = MemberJson {
                        store: member.store.to_string(),
                        address: member.address.clone(),
                        clients: member.clients.clone(),
                        priority: member.priority,
                    };
                    (node.0.clone(), json)
                })
                .collect(),
            removed: self.removed.iter().map(|node| node.0.clone()).collect(),
            successor: self.successor.as_ref().map(|node| node.0.clone()),
            last_op: format!("{:032x}", self.last_op),
        };
        serde_json::to_vec_pretty(&json).expect("strings and numbers, no map with other keys")
    }

    /// Reads what the service holds. The length is checked before anything is parsed.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        check_length(bytes, RECORD_BYTES_MAX)?;
        let FormatJson { format } = parse(bytes)?;
        if format != FORMAT {
            return Err(FormatError::Format(format));
        }
        let json: RecordJson = parse(bytes)?;
        if json.ack_policy != ACK_POLICY {
            return Err(FormatError::Policy(json.ack_policy));
        }
        for number in [json.epoch, json.version, json.unclean_generation] {
            if number >= COUNT_MAX {
                return Err(FormatError::Number(number));
            }
        }
        let primary = match json.primary {
            Some(primary) => Some(PrimaryRef {
                node: NodeId(primary.node),
                store: StoreId(identity(&primary.store)?),
                boot: BootId(identity(&primary.boot)?),
                address: primary.address,
                clients: primary.clients,
            }),
            None => None,
        };
        let mut in_sync = BTreeSet::new();
        for replica in json.in_sync {
            in_sync
                .insert(ReplicaId { node: NodeId(replica.node), store: StoreId(identity(&replica.store)?) });
        }
        let mut members = BTreeMap::new();
        for (node, member) in json.members {
            let store = StoreId(identity(&member.store)?);
            let MemberJson { address, clients, priority, .. } = member;
            members.insert(NodeId(node), Member { store, address, clients, priority });
        }
        if in_sync.is_empty() {
            return Err(FormatError::Contradiction("the in-sync set is empty"));
        }
        if primary.as_ref().is_some_and(|primary| !in_sync.contains(&primary.replica())) {
            return Err(FormatError::Contradiction("the primary is not in the in-sync set"));
        }
        let epoch_start = match json.epoch_start {
            Some(start) => Some((position(&start.at)?, hexadecimal(&start.chain, 16, "chain")? as u64)),
            None => None,
        };
        Ok(Self {
            cluster_id: ClusterId(identity(&json.cluster_id)?),
            feature_level: json.feature_level,
            epoch: Epoch(json.epoch),
            version: json.version,
            primary,
            phase: match json.phase {
                PhaseJson::Recovering => Phase::Recovering,
                PhaseJson::Active => Phase::Active,
            },
            in_sync,
            minimum_replicas: json.minimum_replicas,
            epoch_start,
            members,
            removed: json.removed.into_iter().map(NodeId).collect(),
            unclean_generation: json.unclean_generation,
            successor: json.successor.map(NodeId),
            last_op: identity(&json.last_op)?,
        })
    }
}

impl Presence {
    /// As it is published.
    pub fn encode(&self) -> Vec<u8> {
        let json = PresenceJson {
            node: self.node.0.clone(),
            store: self.store.to_string(),
            boot: self.boot.to_string(),
            address: self.address.clone(),
            clients: self.clients.clone(),
            last_epoch: self.last_epoch.0,
            end: self.end.to_string(),
            state: match self.state {
                PresenceState::Leading => StateJson::Leading,
                PresenceState::Following => StateJson::Following,
                PresenceState::Syncing => StateJson::Syncing,
                PresenceState::Unusable => StateJson::Unusable,
            },
            priority: self.priority,
        };
        serde_json::to_vec_pretty(&json).expect("strings and numbers, no map with other keys")
    }

    /// Reads what another node published.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        check_length(bytes, PRESENCE_BYTES_MAX)?;
        let json: PresenceJson = parse(bytes)?;
        Ok(Self {
            node: NodeId(json.node),
            store: StoreId(identity(&json.store)?),
            boot: BootId(identity(&json.boot)?),
            address: json.address,
            clients: json.clients,
            last_epoch: Epoch(json.last_epoch),
            end: position(&json.end)?,
            state: match json.state {
                StateJson::Leading => PresenceState::Leading,
                StateJson::Following => PresenceState::Following,
                StateJson::Syncing => PresenceState::Syncing,
                StateJson::Unusable => PresenceState::Unusable,
            },
            priority: json.priority,
        })
    }
}

fn check_length(bytes: &[u8], limit: usize) -> Result<(), FormatError> {
    if bytes.len() > limit { Err(FormatError::TooLong { bytes: bytes.len(), limit }) } else { Ok(()) }
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, FormatError> {
    serde_json::from_slice(bytes).map_err(|error| FormatError::Json(error.to_string()))
}

fn identity(text: &str) -> Result<u128, FormatError> {
    hexadecimal(text, 32, "identity of 32 hexadecimal digits")
}

/// Exactly `digits` of them: `from_str_radix` alone also takes a sign, and fewer.
fn hexadecimal(text: &str, digits: usize, what: &'static str) -> Result<u128, FormatError> {
    let wrong = || FormatError::Value { text: shorten(text), what };
    if text.len() != digits || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    u128::from_str_radix(text, 16).map_err(|_| wrong())
}

fn position(text: &str) -> Result<Lsn, FormatError> {
    text.parse::<Location>()
        .map(Location::lsn)
        .map_err(|_| FormatError::Value { text: shorten(text), what: "position file:offset" })
}

/// Enough of a foreign text to find it.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, btree_set, vec};
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn any_node() -> impl Strategy<Value = NodeId> {
        any::<String>().prop_map(NodeId)
    }

    fn any_replica() -> impl Strategy<Value = ReplicaId> {
        (any_node(), any::<u128>()).prop_map(|(node, store)| ReplicaId { node, store: StoreId(store) })
    }

    fn any_member() -> impl Strategy<Value = Member> {
        (any::<u128>(), any::<String>(), vec(any::<String>(), 0..3), any::<i32>()).prop_map(
            |(store, address, clients, priority)| Member {
                store: StoreId(store),
                address,
                clients,
                priority,
            },
        )
    }

    prop_compose! {
        fn any_record()(
            in_sync in btree_set(any_replica(), 1..5),
            leads in option::of((any::<u128>(), any::<String>(), vec(any::<String>(), 0..3))),
            numbers in (0..COUNT_MAX, 0..COUNT_MAX, 0..COUNT_MAX),
            is_active in any::<bool>(),
            others in (any::<u128>(), any::<u32>(), any::<u32>(), any::<u128>()),
            epoch_start in option::of((any::<u64>(), any::<u64>())),
            members in btree_map(any_node(), any_member(), 0..4),
            removed in btree_set(any_node(), 0..4),
            successor in option::of(any_node()),
        ) -> ClusterRecord {
            let first = in_sync.first().unwrap().clone();
            let (cluster_id, feature_level, minimum_replicas, last_op) = others;
            ClusterRecord {
                cluster_id: ClusterId(cluster_id),
                feature_level,
                epoch: Epoch(numbers.0),
                version: numbers.1,
                primary: leads.map(|(boot, address, clients)| PrimaryRef {
                    node: first.node,
                    store: first.store,
                    boot: BootId(boot),
                    address,
                    clients,
                }),
                phase: if is_active { Phase::Active } else { Phase::Recovering },
                in_sync,
                minimum_replicas,
                epoch_start: epoch_start.map(|(at, chain)| (Lsn(at), chain)),
                members,
                removed,
                unclean_generation: numbers.2,
                successor,
                last_op,
            }
        }
    }

    prop_compose! {
        fn any_presence()(
            replica in any_replica(),
            boot in any::<u128>(),
            address in any::<String>(),
            clients in vec(any::<String>(), 0..3),
            log in (any::<u64>(), any::<u64>()),
            state in 0..4_usize,
            priority in any::<i32>(),
        ) -> Presence {
            use PresenceState::{Following, Leading, Syncing, Unusable};
            Presence {
                node: replica.node,
                store: replica.store,
                boot: BootId(boot),
                address,
                clients,
                last_epoch: Epoch(log.0),
                end: Lsn(log.1),
                state: [Leading, Following, Syncing, Unusable][state],
                priority,
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(record in any_record(), presence in any_presence()) {
            prop_assert_eq!(ClusterRecord::decode(&record.encode()), Ok(record));
            prop_assert_eq!(Presence::decode(&presence.encode()), Ok(presence));
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_panic(bytes in vec(any::<u8>(), 0..200)) {
            prop_assert!(ClusterRecord::decode(&bytes).is_err());
            prop_assert!(Presence::decode(&bytes).is_err());
        }

        /// Whatever a record becomes when bytes of it change, it keeps its own rules or is refused.
        #[test]
        fn damage_is_refused_or_harmless(record in any_record(), at in any::<usize>(), byte in any::<u8>()) {
            let mut bytes = record.encode();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(read) = ClusterRecord::decode(&bytes) {
                prop_assert!(read.primary.is_none_or(|primary| read.in_sync.contains(&primary.replica())));
                prop_assert!(!read.in_sync.is_empty());
            }
            bytes.truncate(at);
            prop_assert!(ClusterRecord::decode(&bytes).is_err());
        }
    }

    /// The golden record: a change of it is a change of what other releases and operators read.
    const GOLDEN: &str = r#"{
  "format": 1,
  "cluster_id": "0000000000000000000000000000000a",
  "feature_level": 1,
  "epoch": 7,
  "version": 31,
  "unclean_generation": 0,
  "primary": {
    "node": "a",
    "store": "000000000000000000000000000000b1",
    "boot": "000000000000000000000000000000c1",
    "address": "kdbr://a:60001",
    "clients": [
      "stomp://a:61613"
    ]
  },
  "phase": "ACTIVE",
  "ack_policy": "IN_SYNC",
  "minimum_replicas": 1,
  "in_sync": [
    {
      "node": "a",
      "store": "000000000000000000000000000000b1"
    }
  ],
  "epoch_start": {
    "at": "3:4096",
    "chain": "00000000000000ff"
  },
  "members": {
    "a": {
      "store": "000000000000000000000000000000b1",
      "address": "kdbr://a:60001",
      "clients": [
        "stomp://a:61613"
      ],
      "priority": -1
    }
  },
  "removed": [
    "d"
  ],
  "successor": null,
  "last_op": "0000000000000000000000000000000e"
}"#;

    #[test]
    fn the_record_reads_as_documented() {
        let record = ClusterRecord::decode(GOLDEN.as_bytes()).unwrap();
        assert_eq!(record.epoch_start, Some((Location::new(3, 4096).lsn(), 255)));
        assert_eq!(record.members[&NodeId("a".to_owned())].priority, -1);
        assert_eq!(String::from_utf8(record.encode()).unwrap(), GOLDEN);
    }

    #[test]
    fn a_record_of_before_removals_were_kept_removes_nobody() {
        let without = GOLDEN.replace("  \"removed\": [\n    \"d\"\n  ],\n", "");
        assert_ne!(without, GOLDEN);
        let read = ClusterRecord::decode(without.as_bytes()).unwrap();
        assert!(read.removed.is_empty());
        assert_eq!(read.members, ClusterRecord::decode(GOLDEN.as_bytes()).unwrap().members);
    }

    #[test]
    fn fields_of_later_releases_are_ignored() {
        let with_more = GOLDEN.replacen('{', r#"{ "colour": {"deep": ["x"]}, "#, 1);
        assert_eq!(ClusterRecord::decode(with_more.as_bytes()), ClusterRecord::decode(GOLDEN.as_bytes()));
    }

    #[test]
    fn a_record_that_cannot_be_is_refused() {
        let check = |from: &str, to: &str| {
            assert!(GOLDEN.contains(from), "{from}");
            ClusterRecord::decode(GOLDEN.replace(from, to).as_bytes()).unwrap_err()
        };
        assert_eq!(check(r#""format": 1"#, r#""format": 2"#), FormatError::Format(2));
        assert_eq!(check("IN_SYNC", "MINIMUM"), FormatError::Policy("MINIMUM".to_owned()));
        assert!(matches!(check("ACTIVE", "RESTING"), FormatError::Json(_)));
        assert!(matches!(check(r#""epoch": 7"#, r#""epoch": -7"#), FormatError::Json(_)));
        let too_high = r#""epoch": 18446744073709551615"#;
        assert_eq!(check(r#""epoch": 7"#, too_high), FormatError::Number(u64::MAX));
        for wrong in ["+0000000000000000000000000000000a", "0a", "0000000000000000000000000000000g"] {
            let error = check("0000000000000000000000000000000a", wrong);
            assert!(matches!(error, FormatError::Value { .. }), "{error}");
        }
        assert!(matches!(check("3:4096", "3"), FormatError::Value { .. }));
        let outsider = r#""node": "a",
    "store": "000000000000000000000000000000b2""#;
        let insider = r#""node": "a",
    "store": "000000000000000000000000000000b1""#;
        assert!(matches!(check(insider, outsider), FormatError::Contradiction(_)));
    }

    #[test]
    fn too_long_a_text_is_not_parsed() {
        let long = vec![b' '; RECORD_BYTES_MAX + 1];
        let error = ClusterRecord::decode(&long).unwrap_err();
        assert_eq!(error, FormatError::TooLong { bytes: RECORD_BYTES_MAX + 1, limit: RECORD_BYTES_MAX });
        assert!(matches!(Presence::decode(&long).unwrap_err(), FormatError::TooLong { .. }));
        // As long as is allowed, and nothing but nesting.
        assert!(matches!(ClusterRecord::decode(&vec![b'['; RECORD_BYTES_MAX]), Err(FormatError::Json(_))));
    }
}
