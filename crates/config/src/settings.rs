use std::fmt;

use kahawai_types::{Millis, NodeId};

use crate::address::Address;
use crate::verdict::{Origin, Verdict};

/// Where data lies if nothing says otherwise.
pub const DATA_DIRECTORY: &str = "kahawai-data";
/// STOMP's usual port.
pub const STOMP_PORT: u16 = 61613;
/// Largest journal file that can be asked for: offsets stay below 2 GiB.
pub const JOURNAL_FILE_BYTES_MAX: u64 = 1 << 30;
/// Smallest journal file that can be asked for.
pub const JOURNAL_FILE_BYTES_MIN: u64 = 1 << 10;
/// Most replicas that a confirmation can be made to wait for.
pub const MINIMUM_REPLICAS_MAX: u32 = 64;
/// Most connections of one bulk synchronisation.
pub const TRANSFER_SESSIONS_MAX: u32 = 16;
/// Shortest ZooKeeper session that can be asked for.
pub const SESSION_TIMEOUT_MS_MIN: Millis = 1_000;
/// Longest ZooKeeper session that can be asked for.
pub const SESSION_TIMEOUT_MS_MAX: Millis = 600_000;

/// Everything that a node is told when it starts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// The broker.
    pub node: NodeSettings,
    /// Its cluster; `None`: it runs alone.
    pub cluster: Option<ClusterSettings>,
    /// What became of each element and attribute of the files, in the order of the files. None is [`Refused`].
    ///
    /// [`Refused`]: crate::VerdictKind::Refused
    pub verdicts: Vec<Verdict>,
}

/// What a broker needs, alone or in a cluster. `None` leaves the default of the part that uses it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSettings {
    /// The broker's name.
    pub name: Option<String>,
    /// Directory of the journal. Relative to the working directory, as in ActiveMQ.
    pub directory: String,
    /// Where clients connect, in the order of the file. Those of protocols that are not served yet are in here too.
    pub connectors: Vec<Connector>,
    /// What the TLS connectors show.
    pub tls: Option<TlsSettings>,
    /// Where operators connect (HTTP).
    pub admin: Option<Address>,
    /// Size at which a journal file ends, within [`JOURNAL_FILE_BYTES_MIN`] and [`JOURNAL_FILE_BYTES_MAX`].
    pub journal_file_bytes: Option<u32>,
    /// What non-persistent messages and topic backlogs may take in memory.
    pub memory_bytes_max: Option<u64>,
    /// Destinations or patterns that are ordered by priority: `ORDERS.>` is a queue, `topic://PRICES` a topic.
    pub prioritised: Vec<String>,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            connectors: vec![Connector::new(
                Protocol::Stomp,
                false,
                Address { host: "127.0.0.1".into(), port: STOMP_PORT },
            )],
            ..Self::bare()
        }
    }
}

impl NodeSettings {
    /// The defaults without a connector: what a file begins with.
    pub(crate) fn bare() -> Self {
        Self {
            name: None,
            directory: DATA_DIRECTORY.into(),
            connectors: Vec::new(),
            tls: None,
            admin: None,
            journal_file_bytes: None,
            memory_bytes_max: None,
            prioritised: Vec::new(),
        }
    }

    /// How many clients may be connected by this protocol, all connectors together; `None` if one of them has no limit.
    pub fn connections_max(&self, protocol: Protocol) -> Option<u32> {
        let mut limits = self.of(protocol).map(|connector| connector.connections_max).peekable();
        limits.peek()?;
        limits.try_fold(0u32, |sum, limit| Some(sum.saturating_add(limit?)))
    }

    /// The smallest frame limit of this protocol's connectors.
    pub fn frame_bytes_max(&self, protocol: Protocol) -> Option<u64> {
        self.of(protocol).filter_map(|connector| connector.frame_bytes_max).min()
    }

    fn of(&self, protocol: Protocol) -> impl Iterator<Item = &Connector> {
        self.connectors.iter().filter(move |connector| connector.protocol == protocol)
    }
}

/// What clients speak.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    /// STOMP 1.0 to 1.2.
    Stomp,
    /// ActiveMQ's own.
    OpenWire,
    /// AMQP 1.0.
    Amqp,
    /// MQTT 3.1.1 and 5.
    Mqtt,
    /// STOMP or MQTT inside a WebSocket.
    WebSocket,
}

impl Protocol {
    /// Whether there is a front end for it.
    pub const fn is_served(self) -> bool {
        matches!(self, Self::Stomp)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stomp => "stomp",
            Self::OpenWire => "openwire",
            Self::Amqp => "amqp",
            Self::Mqtt => "mqtt",
            Self::WebSocket => "ws",
        })
    }
}

/// A place where clients connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connector {
    /// What the file calls it, else the protocol.
    pub name: String,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Inside TLS, with [`NodeSettings::tls`].
    pub tls: bool,
    /// Where to listen; port 0 picks one.
    pub address: Address,
    /// `maximumConnections`.
    pub connections_max: Option<u32>,
    /// `wireFormat.maxFrameSize`.
    pub frame_bytes_max: Option<u64>,
    /// Where it is written; `None` for a default or a flag.
    pub origin: Option<Origin>,
}

impl Connector {
    /// One without limits, called like its protocol.
    pub fn new(protocol: Protocol, tls: bool, address: Address) -> Self {
        let name = if tls { format!("{protocol}+ssl") } else { protocol.to_string() };
        Self { name, protocol, tls, address, connections_max: None, frame_bytes_max: None, origin: None }
    }
}

/// The files that TLS connectors show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsSettings {
    /// Certificate chain, PEM.
    pub certificate: String,
    /// Private key, PEM.
    pub key: String,
}

/// The files with which nodes prove to each other who they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerTlsSettings {
    /// The node's certificate chain, PEM.
    pub certificate: String,
    /// Its private key, PEM.
    pub key: String,
    /// The CAs of all nodes' certificates, PEM.
    pub authorities: String,
}

/// How a node takes part in a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterSettings {
    /// Its stable name among the others; host and port of `address` unless it is given.
    pub node_id: NodeId,
    /// Where the others reach it: the host and port of `kdbr://host:port`.
    pub address: Address,
    /// Where it listens for them: `address` unless `bind` says otherwise.
    pub listen: Address,
    /// Replicas, besides the primary, without which nothing persistent is confirmed. ActiveMQ's default is 1.
    pub minimum_replicas: u32,
    /// Of nodes that are equally far, the one with the highest leads.
    pub priority: u32,
    /// What nodes prove to each other that they belong together; `None`: nothing is asked.
    pub secret: Option<Secret>,
    /// Replication over TLS; `None`: in plaintext.
    pub tls: Option<PeerTlsSettings>,
    /// Connections of one bulk synchronisation, 1 to [`TRANSFER_SESSIONS_MAX`].
    pub transfer_sessions: u32,
    /// What all bulk synchronisations together may send; `None`: no limit.
    pub sync_bytes_per_second_max: Option<u64>,
    /// Who keeps the cluster's record; `None`: the node itself, which is alone then.
    pub zookeeper: Option<ZooKeeperSettings>,
}

impl ClusterSettings {
    /// A member with the defaults.
    pub fn new(address: Address, zookeeper: ZooKeeperSettings) -> Self {
        Self { minimum_replicas: 1, zookeeper: Some(zookeeper), ..Self::single(address) }
    }

    /// A node that leads alone, with everything else as in a cluster.
    pub fn single(address: Address) -> Self {
        Self {
            node_id: NodeId(address.to_string()),
            listen: address.clone(),
            address,
            minimum_replicas: 0,
            priority: 0,
            secret: None,
            tls: None,
            transfer_sessions: 4,
            sync_bytes_per_second_max: None,
            zookeeper: None,
        }
    }
}

/// Where in ZooKeeper the cluster's record is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZooKeeperSettings {
    /// The ensemble; at least one.
    pub servers: Vec<Address>,
    /// The cluster's node: absolute, not the root, without a slash at the end.
    pub path: String,
    /// Name for digest authentication.
    pub userid: String,
    /// Its password; empty in ActiveMQ's file.
    pub password: Secret,
    /// How long ZooKeeper waits for a silent node, within [`SESSION_TIMEOUT_MS_MIN`] and [`SESSION_TIMEOUT_MS_MAX`].
    pub session_timeout_ms: Millis,
}

impl ZooKeeperSettings {
    /// The rest as in ActiveMQ: user `activemq`, without a password.
    pub fn new(servers: Vec<Address>, path: impl Into<String>) -> Self {
        Self {
            servers,
            path: path.into(),
            userid: "activemq".into(),
            password: Secret::default(),
            session_timeout_ms: 10_000,
        }
    }
}

/// A text that no log shows.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(empty)" } else { "(set)" })
    }
}
