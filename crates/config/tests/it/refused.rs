use kahawai_config::ConfigError;

use crate::{Files, load_files};

const HA: &str = include_str!("../data/original/ha.xml");
const HA_BROKER: &str = include_str!("../data/original/ha-broker.xml");
const DEBIAN: &str = include_str!("../data/activemq-debian.xml");
const SECURITY: &str = include_str!("../data/activemq-security.xml");

/// Loading fails, and each of `parts` is in a line of the message.
#[track_caller]
fn check(files: Files<'_>, parts: &[&str]) {
    let error = load_files(files).expect_err("it has to be refused");
    let text = error.to_string();
    for part in parts {
        assert!(text.lines().any(|line| line.contains(part)), "no '{part}' in:\n{text}");
    }
    if let ConfigError::Refused(refusals) = error {
        assert_eq!(refusals.0.len(), text.lines().count());
    }
}

/// The original files with one text of `ha.xml` replaced.
#[track_caller]
fn check_ha(from: &str, to: &str, parts: &[&str]) {
    assert!(HA.contains(from), "{from}");
    check(&[("conf/ha.xml", &HA.replace(from, to)), ("conf/ha-broker.xml", HA_BROKER)], parts);
}

/// The same with `ha-broker.xml`.
#[track_caller]
fn check_broker(from: &str, to: &str, parts: &[&str]) {
    assert!(HA_BROKER.contains(from), "{from}");
    check(&[("conf/ha.xml", HA), ("conf/ha-broker.xml", &HA_BROKER.replace(from, to))], parts);
}

/// Debian's file with one text replaced.
#[track_caller]
fn check_debian(from: &str, to: &str, parts: &[&str]) {
    assert!(DEBIAN.contains(from), "{from}");
    check(&[("activemq.xml", &DEBIAN.replace(from, to))], parts);
}

#[test]
fn a_replicated_broker_does_not_start_itself() {
    let wanted = "has to be \"false\"";
    check_broker(
        "start=\"false\"",
        "start=\"true\"",
        &[&format!("conf/ha-broker.xml:34: <broker start>: {wanted}")],
    );
    check_broker("start=\"false\"", "", &[&format!("conf/ha-broker.xml:33: <broker start>: {wanted}")]);
    check_broker(
        "start=\"false\"",
        "start=\"no\"",
        &["conf/ha-broker.xml:34: <broker start>: 'no' is neither"],
    );
    check(
        &[("conf/ha-broker.xml", HA_BROKER)],
        &["conf/ha-broker.xml:34: <broker start>: this broker is to be started by"],
    );
}

#[test]
fn a_replicated_broker_has_no_store_of_its_own() {
    let adapter = "<persistenceAdapter><kahaDB directory=\"x\"/></persistenceAdapter>\n    </broker>";
    check_broker(
        "</broker>",
        adapter,
        &["conf/ha-broker.xml:97: <persistenceAdapter>: the store of a replicated broker"],
    );
    check_broker(
        "</broker>",
        "<persistenceFactory/></broker>",
        &["<persistenceFactory>: the store of a replicated"],
    );
}

#[test]
fn the_broker_file_has_to_be_there_and_to_be_one() {
    check(
        &[("conf/ha.xml", HA)],
        &["conf/ha.xml:40: <kahadbReplication brokerURI>: xbean:ha-broker.xml: conf/ha-broker.xml: "],
    );
    check(
        &[("conf/ha.xml", HA), ("conf/ha-broker.xml", HA)],
        &["conf/ha-broker.xml:36: <kahadbReplicationBroker>: brokerURI"],
    );
    let empty = "<beans xmlns=\"http://www.springframework.org/schema/beans\"/>";
    check(
        &[("conf/ha.xml", HA), ("conf/ha-broker.xml", empty)],
        &["conf/ha-broker.xml:1: <beans>: no <broker> is in"],
    );
    check(
        &[("conf/ha.xml", HA), ("conf/ha-broker.xml", "<beans>")],
        &["conf/ha-broker.xml:1: not well-formed XML"],
    );
    for uri in ["broker:(tcp://localhost:61616)", "http://host/ha-broker.xml", ""] {
        check_ha("xbean:ha-broker.xml", uri, &["conf/ha.xml:40: <kahadbReplication brokerURI>: "]);
    }
    let both = HA.replace(
        "</beans>",
        "<broker xmlns=\"http://activemq.apache.org/schema/core\" start=\"false\"/></beans>",
    );
    check(
        &[("conf/ha.xml", &both), ("conf/ha-broker.xml", HA_BROKER)],
        &["<broker>: brokerURI names another file"],
    );
}

#[test]
fn a_file_without_broker_is_refused() {
    check(&[], &["conf/none.xml: "]);
    check(&[("a.xml", "<broker/>")], &["a.xml:1: <broker>: the outermost element has to be <beans"]);
    check(&[("a.xml", "<beans/>")], &["a.xml:1: <beans>: the outermost element has to be <beans xmlns="]);
    check(&[("a.xml", "")], &["a.xml:1: not well-formed XML"]);
    let beans = |inside: &str| {
        format!("<beans xmlns=\"http://www.springframework.org/schema/beans\">{inside}</beans>")
    };
    check(&[("a.xml", &beans(""))], &["<beans>: neither a <broker> nor a <kahadbReplicationBroker>"]);
    check(
        &[("a.xml", &beans("<broker xmlns=\"\"/>"))],
        &["<broker>: an element without ActiveMQ's namespace"],
    );
    check(&[("a.xml", &beans("stray"))], &["<beans>: text that means nothing here: 'stray'"]);
    let core = "<broker xmlns=\"http://activemq.apache.org/schema/core\"/>";
    check(
        &[("a.xml", &beans(&format!("{core}\n{core}")))],
        &["a.xml:2: <broker>: a second one; the first is in line 1"],
    );
}

#[test]
fn replication_needs_an_address_and_a_cluster() {
    check_ha("uri=\"kdbr://localhost:60001\"", "", &["conf/ha.xml:38: <kahadbReplication>: uri is missing"]);
    for uri in [
        "localhost:60001",
        "tcp://localhost:60001",
        "kdbr://localhost",
        "kdbr://localhost:70000",
        "kdbr://0.0.0.0:1",
        "kdbr://h:0",
    ] {
        check_ha("kdbr://localhost:60001", uri, &["conf/ha.xml:41: <kahadbReplication uri>: "]);
    }
    for uri in
        ["localhost:2181/x", "zk://localhost:2181", "zk://localhost:2181/", "zk://:2181/x", "zk://h:1/a/../b"]
    {
        check_ha(
            "zk://localhost:2181/activemq/default-ha-group",
            uri,
            &["conf/ha.xml:45: <zookeeperCluster uri>: "],
        );
    }
    let cluster = "<zookeeperCluster uri=\"zk://localhost:2181/activemq/default-ha-group\" userid=\"activemq\" password=\"\"/>";
    check_ha(cluster, "", &["conf/ha.xml:38: <kahadbReplication>: write <cluster>"]);
    check_ha(cluster, "<blazeCluster/>", &["conf/ha.xml:45: <blazeCluster>: group messaging is not served"]);
    check_ha(
        "userid=\"activemq\"",
        "userid=\"a:b\"",
        &["<zookeeperCluster userid>: a ZooKeeper user has no colon"],
    );
}

#[test]
fn numbers_have_to_be_numbers() {
    for number in ["-1", "two", "1.5", "", "65"] {
        let to = format!("minimumReplicas=\"{number}\"");
        check_ha("minimumReplicas=\"1\"", &to, &["conf/ha.xml:42: <kahadbReplication minimumReplicas>: "]);
    }
    for (name, value) in [
        ("priority", "high"),
        ("transferSessions", "0"),
        ("syncBandwidth", "fast"),
        ("nodeId", "a/b"),
        ("bind", "h"),
    ] {
        let to = format!("{name}=\"{value}\" minimumReplicas=\"1\"");
        check_ha("minimumReplicas=\"1\"", &to, &[&format!("conf/ha.xml:42: <kahadbReplication {name}>: ")]);
    }
    check_ha(
        "password=\"\"",
        "sessionTimeout=\"10\"",
        &["conf/ha.xml:45: <zookeeperCluster sessionTimeout>: "],
    );
    check_broker("limit=\"20 mb\"", "limit=\"20 miles\"", &["<memoryUsage limit>: '20 miles' is not a size"]);
    check_debian("<kahaDB ", "<kahaDB journalMaxFileLength=\"2gb\" ", &["<kahaDB journalMaxFileLength>: "]);
}

#[test]
fn what_nobody_knows_is_refused() {
    check_ha(
        "minimumReplicas",
        "minimumReplica",
        &["conf/ha.xml:42: <kahadbReplication minimumReplica>: this attribute is not"],
    );
    check_ha(
        "<cluster>",
        "<clutser/><cluster>",
        &["conf/ha.xml:44: <clutser>: not known in <kahadbReplication>"],
    );
    check_broker(
        "brokerName",
        "brokername",
        &["conf/ha-broker.xml:35: <broker brokername>: this attribute is not known"],
    );
    check_broker(
        "<sslContext>",
        "<ssl/><sslContext>",
        &["conf/ha-broker.xml:70: <ssl>: not known in <broker>"],
    );
    check_broker("memoryLimit", "memorylimit", &["conf/ha-broker.xml:42: <policyEntry memorylimit>"]);
    check_broker(
        "brokerName",
        "xsi:brokerName=\"\" kdb:x=\"\" brokerName",
        &["conf/ha-broker.xml:35: not well-formed XML"],
    );
    check_broker(
        "brokerName",
        "amq:x=\"\" brokerName",
        &["conf/ha-broker.xml:35: <broker x>: no attribute with a prefix"],
    );
    check_broker(
        "stomp://localhost:61613",
        "stmop://localhost:61613",
        &["conf/ha-broker.xml:93: <transportConnector uri>: 'stmop' is not"],
    );
    for uri in ["stomp:61613", "stomp://localhost", "stomp://h:99999", "stomp://a b:1", "stomp://h:1/path"] {
        check_broker("stomp://localhost:61613", uri, &["conf/ha-broker.xml:93: <transportConnector uri>: "]);
    }
    check_broker(
        "uri=\"stomp://localhost:61613\"",
        "",
        &["conf/ha-broker.xml:93: <transportConnector>: uri is missing"],
    );
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let ha = HA.replace("minimumReplicas=\"1\"", "minimumReplicas=\"x\"");
    let broker = HA_BROKER.replace("start=\"false\"", "").replace("20 mb", "20");
    let broker = broker.replace("stomp://localhost:61613", "stomp://localhost");
    check(
        &[("conf/ha.xml", &ha), ("conf/ha-broker.xml", &broker)],
        &["<kahadbReplication minimumReplicas>", "<broker start>", "<transportConnector uri>"],
    );
}

#[test]
fn a_broker_that_was_guarded_is_not_opened() {
    check(
        &[("activemq.xml", SECURITY)],
        &[
            "activemq.xml:83: <simpleAuthenticationPlugin>: users and authorization are not built",
            "activemq.xml:95: <authorizationPlugin>: users and authorization are not built",
        ],
    );
    let guarded = "stomp+ssl://localhost:61613?needClientAuth=true";
    check_broker(
        "stomp://localhost:61613",
        guarded,
        &["<transportConnector uri>: option needClientAuth=true: "],
    );
}

#[test]
fn other_stores_are_refused() {
    for store in [
        "jdbcPersistenceAdapter",
        "levelDB",
        "memoryPersistenceAdapter",
        "mKahaDB",
        "replicatedLevelDB",
        "nothing",
    ] {
        check_debian("<kahaDB ", &format!("<{store} "), &[&format!("activemq.xml:40: <{store}>: ")]);
    }
    check_debian(
        "<kahaDB directory=\"${activemq.base}/data/kahadb\"/>",
        "<kahaDB/>",
        &["activemq.xml:40: <kahaDB>: directory is"],
    );
    check_debian(
        "<kahaDB ",
        "<kahaDB indexDirectory=\"x\" ",
        &["activemq.xml:40: <kahaDB indexDirectory>: the index has"],
    );
}

#[test]
fn placeholders_have_to_be_known() {
    check_debian(
        "activemq.base",
        "activemq.bse",
        &["activemq.xml:30: <broker dataDirectory>: ${activemq.bse} is not defined"],
    );
    check_debian(
        "brokerName=\"localhost\"",
        "brokerName=\"#{1+1}\"",
        &["<broker brokerName>: Spring expressions"],
    );
    check_debian(
        "${activemq.base}/data\"",
        "${activemq.base/data\"",
        &["<broker dataDirectory>: a placeholder has no"],
    );
}

#[test]
fn entities_and_large_files_are_refused() {
    let bomb = "<?xml version=\"1.0\"?>\n<!DOCTYPE beans [<!ENTITY a \"aaa\">]>\n<beans>&a;</beans>";
    check(&[("a.xml", bomb)], &["a DTD is not read"]);
    let large = format!("{DEBIAN}{}", " ".repeat(kahawai_config::FILE_BYTES_MAX));
    check(&[("a.xml", &large)], &["more than the 4194304 of a configuration file"]);
    check(&[("conf/ha.xml", HA), ("conf/ha-broker.xml", &large)], &["conf/ha-broker.xml: "]);
}

#[test]
fn one_file_of_three_is_no_tls() {
    check_ha(
        "minimumReplicas=",
        "tlsCertificate=\"c.pem\" tlsKey=\"k.pem\" minimumReplicas=",
        &["tlsCertificate, tlsKey and tlsAuthorities belong together"],
    );
}
