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
