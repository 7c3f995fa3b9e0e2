use kahawai_config::{Flags, Protocol, Settings};

use crate::load_files;

const DEBIAN: &str = include_str!("../data/activemq-debian.xml");
const HA: &str = include_str!("../data/original/ha.xml");
const HA_BROKER: &str = include_str!("../data/original/ha-broker.xml");

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// The defaults with `flags`; if they cannot be followed, which and why.
fn defaults_with(flags: &Flags) -> Result<Settings, String> {
    let mut settings = Settings::default();
    settings.apply(flags).map(|()| settings).map_err(|error| error.to_string())
}

fn connectors(settings: &Settings) -> Vec<(Protocol, bool, String)> {
    settings.node.connectors.iter().map(|c| (c.protocol, c.tls, c.address.to_string())).collect()
}

#[test]
fn without_anything_it_is_a_broker_alone_on_loopback() {
    let settings = defaults_with(&Flags::default()).unwrap();
    assert_eq!(settings, Settings::default());
    assert_eq!(settings.node.directory, "kahawai-data");
    assert_eq!(connectors(&settings), [(Protocol::Stomp, false, "127.0.0.1:61613".to_owned())]);
    assert_eq!(settings.cluster, None);
}

#[test]
fn flags_come_before_the_file() {
    let mut settings = load_files(&[("activemq.xml", DEBIAN)]).unwrap();
    let flags = Flags {
        data: some("d"),
        stomp: some("127.0.0.1:0"),
        openwire: some("off"),
        admin: some("[::1]:8161"),
        ..Flags::default()
    };
    settings.apply(&flags).unwrap();
    assert_eq!(settings.node.directory, "d");
    assert_eq!(connectors(&settings), [(Protocol::Stomp, false, "127.0.0.1:0".to_owned())]);
    assert_eq!(settings.node.admin.unwrap().to_string(), "[::1]:8161");
}

#[test]
fn a_tls_connector_stands_beside_the_plain_one() {
    let flags = Flags {
        stomp_tls: some("0.0.0.0:61612"),
        tls_cert: some("c.pem"),
        tls_key: some("k.pem"),
        ..Flags::default()
    };
    let settings = defaults_with(&flags).unwrap();
    assert_eq!(connectors(&settings).iter().map(|(_, tls, _)| *tls).collect::<Vec<_>>(), [false, true]);
    assert_eq!(settings.node.tls.unwrap().key, "k.pem");
}

#[test]
fn a_cluster_needs_no_file() {
    let flags = Flags {
        cluster: some("zk://localhost:2181/activemq/default-ha-group"),
        kdbr: some("localhost:60001"),
        minimum_replicas: Some(1),
        data: some("./data/kahadb"),
        ..Flags::default()
    };
    let settings = defaults_with(&flags).unwrap();
    let file = load_files(&[("conf/ha.xml", HA), ("conf/ha-broker.xml", HA_BROKER)]).unwrap();
    assert_eq!(settings.cluster, file.cluster);
    let named = defaults_with(&Flags { node_id: some("a"), kdbr: some("localhost:0"), ..flags }).unwrap();
    assert_eq!(named.cluster.unwrap().node_id.0, "a");
}

#[test]
fn a_node_may_keep_the_record_itself() {
    let flags = |minimum_replicas| Flags {
        cluster: Some("single".into()),
        kdbr: Some("localhost:61619".into()),
        minimum_replicas,
        ..Flags::default()
    };
    let mut settings = Settings::default();
    settings.apply(&flags(None)).unwrap();
    let cluster = settings.cluster.unwrap();
    assert_eq!((cluster.zookeeper, cluster.minimum_replicas), (None, 0));
    let error = Settings::default().apply(&flags(Some(1))).unwrap_err();
    assert!(error.to_string().contains("--minimum-replicas"), "{error}");
}

#[test]
fn flags_change_the_cluster_of_a_file() {
    let mut settings = load_files(&[("conf/ha.xml", HA), ("conf/ha-broker.xml", HA_BROKER)]).unwrap();
    let flags = Flags {
        cluster: some("zk://a,b/other"),
        kdbr: some("host:60009"),
        minimum_replicas: Some(0),
        kdbr_tls_cert: some("c.pem"),
        kdbr_tls_key: some("k.pem"),
        kdbr_tls_ca: some("a.pem"),
        ..Flags::default()
    };
    settings.apply(&flags).unwrap();
    let cluster = settings.cluster.unwrap();
    let tls = cluster.tls.as_ref().unwrap();
    assert_eq!(
        (tls.certificate.as_str(), tls.key.as_str(), tls.authorities.as_str()),
        ("c.pem", "k.pem", "a.pem")
    );
    let zookeeper = cluster.zookeeper.as_ref().unwrap();
    assert_eq!((zookeeper.servers.len(), zookeeper.path.as_str()), (2, "/other"));
    assert_eq!(
        (cluster.node_id.0.as_str(), cluster.listen.to_string().as_str()),
        ("host:60009", "host:60009")
    );
    assert_eq!(cluster.minimum_replicas, 0);
}

#[test]
fn flags_that_cannot_be_followed_are_named() {
    let none = Flags::default;
    for (flags, expected) in [
        (Flags { stomp: some("61613"), ..none() }, "--stomp: '61613' has no port"),
        (Flags { mqtt: some("h:1"), ..none() }, "--mqtt: mqtt is not served yet"),
        (Flags { admin: some("x"), ..none() }, "--admin: "),
        (Flags { tls_cert: some("c"), ..none() }, "--tls-cert: needs --tls-key"),
        (Flags { tls_key: some("c"), ..none() }, "--tls-key: needs --tls-cert"),
        (Flags { cluster: some("zk://h/x"), ..none() }, "--cluster: needs --kdbr"),
        (Flags { cluster: some("h/x"), ..none() }, "--cluster: 'h/x' does not begin with zk://"),
        (Flags { kdbr: some("h:1"), ..none() }, "--kdbr: needs --cluster"),
        (Flags { kdbr: some("0.0.0.0:1"), ..none() }, "--kdbr: 0.0.0.0:1 cannot be reached"),
        (Flags { node_id: some("a"), ..none() }, "--node-id: needs --cluster"),
        (Flags { kdbr_tls_ca: some("a"), ..none() }, "--kdbr-tls-ca: needs --cluster"),
        (
            Flags {
                cluster: some("zk://h/x"),
                kdbr: some("h:1"),
                kdbr_tls_cert: some("c"),
                kdbr_tls_ca: some("a"),
                ..none()
            },
            "--kdbr-tls-cert: needs --kdbr-tls-key",
        ),
        (Flags { minimum_replicas: Some(1), ..none() }, "--minimum-replicas: needs --cluster"),
        (
            Flags { cluster: some("zk://h/x"), kdbr: some("h:0"), ..none() },
            "--kdbr: port 0 gives the node no lasting name",
        ),
        (
            Flags { cluster: some("zk://h/x"), kdbr: some("h:1"), minimum_replicas: Some(99), ..none() },
            "--minimum-replicas: at most",
        ),
        (
            Flags { cluster: some("zk://h/x"), kdbr: some("h:1"), node_id: some("a/b"), ..none() },
            "--node-id: ",
        ),
    ] {
        let error = defaults_with(&flags).expect_err(expected);
        assert!(error.starts_with(expected), "{error}");
    }
}
