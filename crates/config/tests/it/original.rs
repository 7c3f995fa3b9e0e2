use kahawai_config::{Address, Protocol, Secret, VerdictKind, load, report};
use kahawai_types::NodeId;

use crate::{check_complete, check_verdict, load_files, load_with, verdicts};

const HA: &str = include_str!("../data/original/ha.xml");
const HA_BROKER: &str = include_str!("../data/original/ha-broker.xml");
const OUR_HA: &str = include_str!("../../../../conf/ha.xml");
const OUR_HA_BROKER: &str = include_str!("../../../../conf/ha-broker.xml");

fn address(host: &str, port: u16) -> Address {
    Address { host: host.into(), port }
}

#[test]
fn the_original_files_work_as_they_are_written() {
    let settings = load_files(&[("conf/ha.xml", HA), ("conf/ha-broker.xml", HA_BROKER)]).unwrap();
    let cluster = settings.cluster.as_ref().unwrap();
    assert_eq!(settings.node.directory, "./data/kahadb");
    assert_eq!(cluster.address, address("localhost", 60001));
    assert_eq!(cluster.listen, cluster.address);
    assert_eq!(cluster.node_id, NodeId("localhost:60001".into()));
    assert_eq!(cluster.minimum_replicas, 1);
    assert_eq!(cluster.zookeeper.as_ref().unwrap().servers, [address("localhost", 2181)]);
    assert_eq!(cluster.zookeeper.as_ref().unwrap().path, "/activemq/default-ha-group");
    assert_eq!(cluster.zookeeper.as_ref().unwrap().userid, "activemq");
    assert_eq!(cluster.zookeeper.as_ref().unwrap().password, Secret::default());
    assert_eq!(cluster.secret, None);
    let node = &settings.node;
    assert_eq!(node.name.as_deref(), Some("localhost"));
    assert_eq!(node.memory_bytes_max, Some(20 << 20));
    let connectors: Vec<_> =
        node.connectors.iter().map(|c| (c.name.as_str(), c.protocol, c.tls, c.address.port)).collect();
    assert_eq!(
        connectors,
        [
            ("openwire", Protocol::OpenWire, false, 61616),
            ("ssl", Protocol::OpenWire, true, 61617),
            ("stomp", Protocol::Stomp, false, 61613),
        ]
    );
    let origin = node.connectors.last().and_then(|c| c.origin.clone()).unwrap();
    assert_eq!(origin.to_string(), "conf/ha-broker.xml:93");
}

#[test]
fn the_original_files_have_a_verdict_for_all_they_say() {
    let settings = load_files(&[("conf/ha.xml", HA), ("conf/ha-broker.xml", HA_BROKER)]).unwrap();
    check_complete(&settings, "conf/ha.xml", HA);
    check_complete(&settings, "conf/ha-broker.xml", HA_BROKER);
    for (element, attribute, line, kind) in [
        ("kahadbReplication", "minimumReplicas", 42, VerdictKind::Supported),
        ("zookeeperCluster", "password", 45, VerdictKind::Supported),
        ("value", "", 32, VerdictKind::NoEffect),
        ("broker", "start", 34, VerdictKind::Supported),
        ("broker", "dataDirectory", 35, VerdictKind::NoEffect),
        ("policyEntry", "memoryLimit", 41, VerdictKind::NotBuilt),
        ("managementContext", "", 57, VerdictKind::NoEffect),
        ("networkConnectors", "", 62, VerdictKind::NotBuilt),
        ("sslContext", "keyStore", 71, VerdictKind::NotBuilt),
        ("memoryUsage", "limit", 78, VerdictKind::Supported),
        ("storeUsage", "", 80, VerdictKind::NotBuilt),
        ("transportConnector", "discoveryUri", 91, VerdictKind::NotBuilt),
        ("transportConnector", "uri", 93, VerdictKind::Supported),
        ("transportConnector", "uri", 94, VerdictKind::NotBuilt),
        ("camelContext", "", 105, VerdictKind::NotBuilt),
        ("jetty", "", 140, VerdictKind::NotBuilt),
    ] {
        check_verdict(&settings, element, attribute, line, kind);
    }
}

#[test]
fn the_report_says_what_is_missing_and_no_password() {
    let ha = HA.replace("password=\"\"", "password=\"hunter2\"");
    let settings = load_files(&[("conf/ha.xml", &ha), ("conf/ha-broker.xml", HA_BROKER)]).unwrap();
    let report = report(&settings);
    for part in [
        "broker localhost\n",
        "journal in ./data/kahadb\n",
        "openwire on localhost:61616, not served yet\n",
        "stomp on localhost:61613\n",
        "node localhost:60001 of the cluster /activemq/default-ha-group at ZooKeeper localhost:2181; replication on \
         localhost:60001, minimumReplicas 1\n",
        "  conf/ha-broker.xml:62: <networkConnectors>: networks of brokers are not built",
        "  conf/ha.xml:42: <kahadbReplication minimumReplicas>: 1\n",
        "  conf/ha.xml:45: <zookeeperCluster password>: set\n",
    ] {
        assert!(report.contains(part), "no '{part}' in:\n{report}");
    }
    assert!(!report.contains("hunter2") && !format!("{settings:?}").contains("hunter2"));
    let titles: Vec<_> = report.lines().filter(|line| line.ends_with(':')).collect();
    assert_eq!(titles, ["not built:", "without effect:", "supported:"]);
}

#[test]
fn properties_come_from_the_file_that_is_named() {
    let ha = HA.replace("password=\"\"", "password=\"${zk.password}\"");
    let credentials = ("./conf/credentials.properties", "zk.password=hunter2");
    let settings =
        load_files(&[("conf/ha.xml", &ha), ("conf/ha-broker.xml", HA_BROKER), credentials]).unwrap();
    assert_eq!(settings.cluster.unwrap().zookeeper.unwrap().password.expose(), "hunter2");
}

#[test]
fn our_files_work_on_one_machine() {
    let files = [("conf/ha.xml", OUR_HA), ("conf/ha-broker.xml", OUR_HA_BROKER)];
    let first = load_files(&files).unwrap();
    assert!(
        first.verdicts.iter().all(|verdict| verdict.kind == VerdictKind::Supported),
        "{:#?}",
        first.verdicts
    );
    let check = |settings: &kahawai_config::Settings, directory: &str, kdbr: u16, stomp: u16| {
        assert_eq!(settings.node.directory, directory);
        assert_eq!(settings.cluster.as_ref().unwrap().address, address("localhost", kdbr));
        let connectors: Vec<_> = settings.node.connectors.iter().map(|c| &c.address).collect();
        assert_eq!(connectors, [&address("localhost", stomp)]);
    };
    check(&first, "./data/kahadb", 60001, 61613);
    // The second line of the example in the file.
    let line = OUR_HA.lines().find(|line| line.contains("node2")).unwrap();
    let variables: Vec<_> = line.split_whitespace().filter_map(|word| word.split_once('=')).collect();
    check(&load_with(&files, &variables).unwrap(), "data/node2", 60002, 61614);
}

#[test]
fn what_our_files_mention_is_known() {
    let ha = OUR_HA.replace(
        "minimumReplicas=\"${",
        "nodeId=\"a\" bind=\"0.0.0.0:60001\" priority=\"7\" secret=\"s\" transferSessions=\"4\" syncBandwidth=\"20 mb\" \
         tlsCertificate=\"c.pem\" tlsKey=\"k.pem\" tlsAuthorities=\"a.pem\" \
         minimumReplicas=\"${",
    );
    let ha = ha.replace("userid=", "sessionTimeout=\"15000\" userid=");
    // The examples, out of their comments.
    let broker = OUR_HA_BROKER
        .replace("patterns.\n", "-->")
        .replace("stomp+ssl connector.\n", "-->")
        .replace("    -->\n\n", "");
    let settings = load_files(&[("conf/ha.xml", &ha), ("conf/ha-broker.xml", &broker)]).unwrap();
    let cluster = settings.cluster.as_ref().unwrap();
    assert_eq!(cluster.node_id.0, "a");
    assert_eq!(cluster.listen, address("0.0.0.0", 60001));
    assert_eq!((cluster.priority, cluster.transfer_sessions), (7, 4));
    assert_eq!(cluster.secret, Some(Secret::new("s")));
    assert_eq!(cluster.tls.as_ref().map(|tls| tls.authorities.as_str()), Some("a.pem"));
    assert_eq!(cluster.sync_bytes_per_second_max, Some(20 << 20));
    assert_eq!(cluster.zookeeper.as_ref().unwrap().session_timeout_ms, 15_000);
    assert_eq!(settings.node.prioritised, ["ORDERS.>"]);
    assert_eq!(settings.node.tls.map(|tls| tls.certificate).as_deref(), Some("conf/chain.pem"));
}

#[test]
fn the_broker_may_stand_in_the_same_file() {
    let broker =
        HA_BROKER.split_once("<broker ").and_then(|(_, rest)| rest.split_once("</broker>")).unwrap().0;
    let ha = HA.replace("brokerURI=\"xbean:ha-broker.xml\"", "");
    let ha = ha.replace("</beans>", &format!("<broker {broker}</broker></beans>"));
    let one = load_files(&[("conf/ha.xml", &ha)]).unwrap();
    let two = load_files(&[("conf/ha.xml", HA), ("conf/ha-broker.xml", HA_BROKER)]).unwrap();
    assert_eq!(one.cluster, two.cluster);
    assert_eq!(one.node.name, two.node.name);
    assert_eq!(one.node.connectors.len(), two.node.connectors.len());
    assert_eq!(verdicts(&one, "broker", "start").len(), 1);
}

#[test]
fn the_broker_file_is_found_under_every_name() {
    let absolute = HA.replace("xbean:ha-broker.xml", "file:/etc/mq/b.xml");
    load_files(&[("conf/ha.xml", &absolute), ("/etc/mq/b.xml", HA_BROKER)]).unwrap();
    let conf = HA.replace("xbean:ha-broker.xml", "xbean:${activemq.conf}/b.xml");
    load_files(&[("conf/ha.xml", &conf), ("conf/b.xml", HA_BROKER)]).unwrap();
    // ActiveMQ's default.
    let none = HA.replace("brokerURI=\"xbean:ha-broker.xml\"", "");
    load_files(&[("conf/ha.xml", &none), ("conf/broker.xml", HA_BROKER)]).unwrap();
    for location in ["xbean:conf/ha.xml", "file:conf/ha.xml", "xbean:file:conf/ha.xml"] {
        let properties = kahawai_config::Properties::for_file(location, []);
        let read = &mut |path: &str| match path {
            "conf/ha.xml" => Ok(HA.to_owned()),
            "conf/ha-broker.xml" => Ok(HA_BROKER.to_owned()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        };
        let settings = load(location, &properties, read).unwrap();
        assert_eq!(settings.node.directory, "./data/kahadb", "{location}");
    }
}

#[test]
fn minimum_replicas_is_one_unless_it_is_written() {
    for (text, expected) in [("", 1), ("minimumReplicas=\"0\"", 0), ("minimumReplicas=\"2\"", 2)] {
        let ha = HA.replace("minimumReplicas=\"1\"", text);
        let settings = load_files(&[("conf/ha.xml", &ha), ("conf/ha-broker.xml", HA_BROKER)]).unwrap();
        assert_eq!(settings.cluster.unwrap().minimum_replicas, expected, "{text}");
    }
}
