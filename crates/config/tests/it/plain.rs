use kahawai_config::{Protocol, VerdictKind, report};

use crate::{check_complete, check_verdict, load_files, load_with};

const DEBIAN: &str = include_str!("../data/activemq-debian.xml");
const STOMP: &str = include_str!("../data/activemq-stomp.xml");
const SPECJMS: &str = include_str!("../data/activemq-specjms.xml");
const NETWORK: &str = include_str!("../data/activemq-static-network-broker1.xml");
const SIX: &str = include_str!("../data/activemq-6.xml");

#[test]
fn activemqs_own_files_are_taken() {
    for (path, text, directory) in [
        ("/etc/activemq/main/activemq.xml", DEBIAN, "/var/lib/activemq/main/data/kahadb"),
        ("conf/activemq-stomp.xml", STOMP, "/var/lib/activemq/main/data/kahadb"),
        ("conf/activemq-specjms.xml", SPECJMS, "/var/lib/activemq/main/data/kahadb"),
        ("conf/network.xml", NETWORK, "/var/lib/activemq/main/data/static-broker1/kahadb"),
        ("conf/activemq.xml", SIX, "/var/lib/activemq/main/data/kahadb"),
    ] {
        let settings = load_with(&[(path, text)], &[("ACTIVEMQ_BASE", "/var/lib/activemq/main")]).unwrap();
        assert_eq!(settings.node.directory, directory, "{path}");
        assert_eq!(settings.cluster, None);
        check_complete(&settings, path, text);
    }
}

#[test]
fn debians_broker_has_no_connector_that_is_served() {
    let settings = load_files(&[("activemq.xml", DEBIAN)]).unwrap();
    assert_eq!(settings.node.name.as_deref(), Some("localhost"));
    assert_eq!(settings.node.connectors.iter().map(|c| c.protocol).collect::<Vec<_>>(), [Protocol::OpenWire]);
    check_verdict(&settings, "transportConnector", "uri", 50, VerdictKind::NotBuilt);
    assert!(
        report(&settings).contains("no client can connect: add a stomp connector, or --stomp HOST:PORT\n")
    );
}

#[test]
fn stomp_connectors_are_served_with_and_without_nio() {
    let settings = load_files(&[("activemq.xml", STOMP)]).unwrap();
    let ports: Vec<_> =
        settings.node.connectors.iter().map(|c| (c.protocol, c.tls, c.address.port)).collect();
    assert_eq!(ports, [(Protocol::Stomp, false, 61612), (Protocol::Stomp, false, 61613)]);
    check_verdict(&settings, "transportConnector", "uri", 115, VerdictKind::NoEffect);
    check_verdict(&settings, "policyEntry", "producerFlowControl", 63, VerdictKind::NotBuilt);
}

#[test]
fn sizes_and_limits_are_read() {
    let settings = load_files(&[("activemq.xml", SPECJMS)]).unwrap();
    assert_eq!(settings.node.journal_file_bytes, Some(1 << 30));
    assert_eq!(settings.node.memory_bytes_max, Some(2 << 30));
    check_verdict(&settings, "broker", "deleteAllMessagesOnStartup", 39, VerdictKind::NotBuilt);
    check_verdict(&settings, "broker", "advisorySupport", 40, VerdictKind::Supported);
}

/// A broker with this inside.
fn broker(inside: &str) -> String {
    format!(
        "<beans xmlns=\"http://www.springframework.org/schema/beans\">\n\
         <broker xmlns=\"http://activemq.apache.org/schema/core\">\n{inside}\n</broker></beans>"
    )
}

#[test]
fn without_a_store_the_journal_is_where_activemq_puts_it() {
    let directory = |text: &str| load_files(&[("a.xml", text)]).unwrap().node.directory;
    assert_eq!(directory(&broker("")), "activemq-data/localhost/KahaDB");
    let named = broker("").replace("<broker ", "<broker brokerName=\"one\" dataDirectory=\"/d\" ");
    assert_eq!(directory(&named), "/d/one/KahaDB");
}

#[test]
fn prioritised_destinations_are_those_of_the_entries() {
    let text = broker(
        "<destinationPolicy><policyMap><policyEntries>
         <policyEntry queue=\"ORDERS.>\" prioritizedMessages=\"true\"/>
         <policyEntry topic=\"PRICES\" prioritizedMessages=\"TRUE\"/>
         <policyEntry queue=\"OTHER\" prioritizedMessages=\"false\"/>
         <policyEntry queue=\"SOME\"/>
         </policyEntries></policyMap></destinationPolicy>",
    );
    let settings = load_files(&[("a.xml", &text)]).unwrap();
    assert_eq!(settings.node.prioritised, ["ORDERS.>", "topic://PRICES"]);
    let text = text.replace(
        "<policyEntries>",
        "<defaultEntry><policyEntry prioritizedMessages=\"true\"/></defaultEntry><policyEntries>",
    );
    let settings = load_files(&[("a.xml", &text)]).unwrap();
    assert_eq!(settings.node.prioritised, [">", "topic://>", "ORDERS.>", "topic://PRICES"]);
}

#[test]
fn limits_of_connectors_count_together() {
    let text = broker(
        "<transportConnectors>
         <transportConnector uri=\"stomp://0.0.0.0:1?maximumConnections=1000&amp;wireFormat.maxFrameSize=500\"/>
         <transportConnector uri=\"stomp+ssl://[::]:2/?transport.maximumConnections=10&amp;x=y\"/>
         <transportConnector uri=\"mqtt://0.0.0.0:3?maximumConnections=x\"/>
         </transportConnectors>",
    );
    let settings = load_files(&[("a.xml", &text)]).unwrap();
    assert_eq!(settings.node.connections_max(Protocol::Stomp), Some(1010));
    assert_eq!(settings.node.frame_bytes_max(Protocol::Stomp), Some(500));
    assert_eq!(settings.node.connections_max(Protocol::Mqtt), None);
    assert_eq!(settings.node.connections_max(Protocol::Amqp), None);
    let names: Vec<_> = settings.node.connectors.iter().map(|c| (c.name.as_str(), c.tls)).collect();
    assert_eq!(names, [("stomp", false), ("stomp+ssl", true), ("mqtt", false)]);
    check_verdict(&settings, "transportConnector", "uri", 5, VerdictKind::NotBuilt);
    let unlimited = text.replace("?transport.maximumConnections=10&amp;", "?");
    let settings = load_files(&[("a.xml", &unlimited)]).unwrap();
    assert_eq!(settings.node.connections_max(Protocol::Stomp), None);
}

#[test]
fn empty_elements_are_named() {
    let inside = "<transportConnectors/>\n<systemUsage><systemUsage/></systemUsage>\n<plugins></plugins>\n<networkConnectors/>";
    let settings = load_files(&[("a.xml", &broker(inside))]).unwrap();
    for (element, line) in
        [("transportConnectors", 3), ("systemUsage", 4), ("plugins", 5), ("networkConnectors", 6)]
    {
        check_verdict(&settings, element, "", line, VerdictKind::NoEffect);
    }
}

#[test]
fn prefixes_and_the_old_namespace_mean_the_same() {
    for (prefix, namespace) in
        [("amq:", "http://activemq.apache.org/schema/core"), ("", "http://activemq.org/config/1.0")]
    {
        let colon = prefix.trim_end_matches(':');
        let declared = if colon.is_empty() { String::new() } else { format!(":{colon}") };
        let text = format!(
            "<beans xmlns=\"http://www.springframework.org/schema/beans\"><{prefix}broker xmlns{declared}=\"{namespace}\" \
             brokerName=\"b\"><{prefix}persistenceAdapter><{prefix}kahaDB directory=\"k\"/></{prefix}persistenceAdapter>\
             </{prefix}broker></beans>"
        );
        let settings = load_files(&[("a.xml", &text)]).unwrap();
        assert_eq!((settings.node.name.as_deref(), settings.node.directory.as_str()), (Some("b"), "k"));
    }
}
