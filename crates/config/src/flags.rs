use crate::address::{Address, AddressError, parse_zk, reachable};
use crate::import::parse_node_id;
use crate::settings::{
    ClusterSettings, Connector, MINIMUM_REPLICAS_MAX, PeerTlsSettings, Protocol, Settings, TlsSettings,
    ZooKeeperSettings,
};

/// Turns a connector off.
const OFF: &str = "off";

/// What the command line says about a node; it comes before the file. `None` leaves what is there.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    /// `--data`: directory of the journal.
    pub data: Option<String>,
    /// `--stomp`: `host:port`, or `off`.
    pub stomp: Option<String>,
    /// `--stomp-tls`: the same, inside TLS.
    pub stomp_tls: Option<String>,
    /// `--openwire`: the same.
    pub openwire: Option<String>,
    /// `--amqp`: the same.
    pub amqp: Option<String>,
    /// `--mqtt`: the same.
    pub mqtt: Option<String>,
    /// `--ws`: the same.
    pub ws: Option<String>,
    /// `--admin`: the same.
    pub admin: Option<String>,
    /// `--tls-cert`: certificate chain, PEM. Goes with `tls_key`.
    pub tls_cert: Option<String>,
    /// `--tls-key`: private key, PEM. Goes with `tls_cert`.
    pub tls_key: Option<String>,
    /// `--cluster`: `zk://host:port,…/path` or `single`.
    pub cluster: Option<String>,
    /// `--node-id`: the node's name in the cluster.
    pub node_id: Option<String>,
    /// `--kdbr`: `host:port` where the other nodes reach this one.
    pub kdbr: Option<String>,
    /// `--minimum-replicas`.
    pub minimum_replicas: Option<u32>,
    /// `--kdbr-tls-cert`: the node's certificate chain, PEM. Goes with the next two.
    pub kdbr_tls_cert: Option<String>,
    /// `--kdbr-tls-key`: its private key, PEM.
    pub kdbr_tls_key: Option<String>,
    /// `--kdbr-tls-ca`: the CAs of all nodes' certificates, PEM.
    pub kdbr_tls_ca: Option<String>,
}

/// Why a flag cannot be followed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{flag}: {text}")]
pub struct FlagError {
    /// Which flag.
    pub flag: &'static str,
    /// What is wrong, and what to do.
    pub text: String,
}

fn wrong(flag: &'static str, text: impl ToString) -> FlagError {
    FlagError { flag, text: text.to_string() }
}

impl Settings {
    /// Puts the command line over the defaults or over a file. A flag for a connector replaces all of its protocol.
    ///
    /// # Errors
    /// The first flag that cannot be followed. Some of those before it may have been.
    pub fn apply(&mut self, flags: &Flags) -> Result<(), FlagError> {
        let node = &mut self.node;
        if let Some(data) = &flags.data {
            node.directory.clone_from(data);
        }
        for (flag, text, protocol, tls) in [
            ("--stomp", &flags.stomp, Protocol::Stomp, false),
            ("--stomp-tls", &flags.stomp_tls, Protocol::Stomp, true),
            ("--openwire", &flags.openwire, Protocol::OpenWire, false),
            ("--amqp", &flags.amqp, Protocol::Amqp, false),
            ("--mqtt", &flags.mqtt, Protocol::Mqtt, false),
            ("--ws", &flags.ws, Protocol::WebSocket, false),
        ] {
            let Some(text) = text else { continue };
            node.connectors.retain(|connector| (connector.protocol, connector.tls) != (protocol, tls));
            if text == OFF {
                continue;
            }
            if !protocol.is_served() {
                return Err(wrong(
                    flag,
                    format!("{protocol} is not served yet; leave the flag out or say `off`"),
                ));
            }
            let address = text.parse().map_err(|error: AddressError| wrong(flag, error))?;
            node.connectors.push(Connector::new(protocol, tls, address));
        }
        match flags.admin.as_deref() {
            None => {}
            Some(OFF) => node.admin = None,
            Some(text) => {
                node.admin = Some(text.parse().map_err(|error: AddressError| wrong("--admin", error))?)
            }
        }
        match (&flags.tls_cert, &flags.tls_key) {
            (Some(certificate), Some(key)) => {
                node.tls = Some(TlsSettings { certificate: certificate.clone(), key: key.clone() });
            }
            (None, None) => {}
            (Some(_), None) => return Err(wrong("--tls-cert", "needs --tls-key")),
            (None, Some(_)) => return Err(wrong("--tls-key", "needs --tls-cert")),
        }
        self.apply_cluster(flags)
    }

    fn apply_cluster(&mut self, flags: &Flags) -> Result<(), FlagError> {
        let kdbr = flags.kdbr.as_deref().map(|text| text.parse::<Address>().and_then(reachable));
        let kdbr = kdbr.transpose().map_err(|error| wrong("--kdbr", error))?;
        let place = flags.cluster.as_deref().map(parse_place).transpose();
        let place = place.map_err(|error| wrong("--cluster", error))?;
        let cluster = match (&mut self.cluster, place) {
            (Some(cluster), place) => {
                match (place, &mut cluster.zookeeper) {
                    (Some(Place::ZooKeeper(servers, path)), Some(zookeeper)) => {
                        (zookeeper.servers, zookeeper.path) = (servers, path);
                    }
                    (Some(Place::ZooKeeper(servers, path)), none) => {
                        *none = Some(ZooKeeperSettings::new(servers, path));
                    }
                    (Some(Place::Single), zookeeper) => {
                        *zookeeper = None;
                        cluster.minimum_replicas = 0;
                    }
                    (None, _) => {}
                }
                if let Some(address) = kdbr {
                    // A name that was given stays, one that came from the address goes with it.
                    if cluster.node_id.0 == cluster.address.to_string() {
                        cluster.node_id.0 = address.to_string();
                    }
                    cluster.listen = address.clone();
                    cluster.address = address;
                }
                cluster
            }
            (none, Some(place)) => {
                let address = kdbr.ok_or_else(|| {
                    wrong("--cluster", "needs --kdbr HOST:PORT, where the other nodes reach this one")
                })?;
                none.insert(match place {
                    Place::ZooKeeper(servers, path) => {
                        ClusterSettings::new(address, ZooKeeperSettings::new(servers, path))
                    }
                    Place::Single => ClusterSettings::single(address),
                })
            }
            (None, None) => {
                let alone = [
                    ("--kdbr", kdbr.is_some()),
                    ("--node-id", flags.node_id.is_some()),
                    ("--minimum-replicas", flags.minimum_replicas.is_some()),
                    ("--kdbr-tls-cert", flags.kdbr_tls_cert.is_some()),
                    ("--kdbr-tls-key", flags.kdbr_tls_key.is_some()),
                    ("--kdbr-tls-ca", flags.kdbr_tls_ca.is_some()),
                ];
                return match alone.iter().find(|(_, given)| *given) {
                    Some((flag, _)) => {
                        Err(wrong(flag, "needs --cluster zk://HOST:2181/PATH, or a file with a cluster"))
                    }
                    None => Ok(()),
                };
            }
        };
        if let Some(text) = &flags.node_id {
            cluster.node_id = parse_node_id(text).map_err(|error| wrong("--node-id", error))?;
        }
        if let Some(number) = flags.minimum_replicas {
            if number > MINIMUM_REPLICAS_MAX {
                return Err(wrong("--minimum-replicas", format!("at most {MINIMUM_REPLICAS_MAX}")));
            }
            if number > 0 && cluster.zookeeper.is_none() {
                return Err(wrong("--minimum-replicas", "a node of --cluster single has no replicas: 0"));
            }
            cluster.minimum_replicas = number;
        }
        let peer_tls = [
            ("--kdbr-tls-cert", &flags.kdbr_tls_cert),
            ("--kdbr-tls-key", &flags.kdbr_tls_key),
            ("--kdbr-tls-ca", &flags.kdbr_tls_ca),
        ];
        match peer_tls {
            [(_, Some(certificate)), (_, Some(key)), (_, Some(authorities))] => {
                cluster.tls = Some(PeerTlsSettings {
                    certificate: certificate.clone(),
                    key: key.clone(),
                    authorities: authorities.clone(),
                });
            }
            _ => {
                let given = peer_tls.iter().find(|(_, file)| file.is_some());
                let missing = peer_tls.iter().find(|(_, file)| file.is_none());
                if let (Some((given, _)), Some((missing, _))) = (given, missing) {
                    return Err(wrong(given, format!("needs {missing}")));
                }
            }
        }
        if cluster.address.port == 0 && flags.node_id.is_none() {
            return Err(wrong("--kdbr", "port 0 gives the node no lasting name; add --node-id NAME"));
        }
        Ok(())
    }
}

/// Who keeps the cluster's record.
enum Place {
    ZooKeeper(Vec<Address>, String),
    /// The node itself.
    Single,
}

fn parse_place(text: &str) -> Result<Place, AddressError> {
    if text == "single" {
        return Ok(Place::Single);
    }
    parse_zk(text).map(|(servers, path)| Place::ZooKeeper(servers, path))
}
