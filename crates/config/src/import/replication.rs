//! `kahadbReplicationBroker`: how a node takes part in a cluster.

use kahawai_types::NodeId;

use crate::address::{Address, parse_kdbr, parse_zk};
use crate::location;
use crate::page::{Element, Vocabulary};
use crate::settings::{
    ClusterSettings, MINIMUM_REPLICAS_MAX, PeerTlsSettings, SESSION_TIMEOUT_MS_MAX, SESSION_TIMEOUT_MS_MIN,
    Secret, Settings, TRANSFER_SESSIONS_MAX, ZooKeeperSettings,
};
use crate::value;
use crate::verdict::VerdictKind;

use super::broker;
use super::rules::{Rule, Table};
use super::sink::Sink;

/// The attribute that names the broker's file.
pub const BROKER_URI: &str = "brokerURI";
/// What ActiveMQ takes if that attribute is missing.
const BROKER_URI_DEFAULT: &str = "xbean:broker.xml";
/// What ActiveMQ takes if `directory` is missing.
const DIRECTORY_DEFAULT: &str = "activemq-data";
/// What ActiveMQ takes if the `uri` of `zookeeperCluster` is missing.
const ZOOKEEPER_DEFAULT: &str = "zk://localhost:2181/activemq/ha-cluster/default";
/// Longest node name.
const NODE_ID_BYTES_MAX: usize = 255;

const REPLICATION_ATTRIBUTES: Table = &[
    (
        &["tempReplicationDir"],
        Rule::NoEffect("files on their way lie beside the journal that they will be part of"),
    ),
    (
        &["cluster", "store"],
        Rule::Refused("beans are not referred to; write the element inside <kahadbReplication>"),
    ),
];
const REPLICATION_ELEMENTS: Table = &[
    (&["store"], Rule::Refused("the store is the journal in directory; take this element out")),
    (
        &["broker"],
        Rule::Refused("write <broker> beside <kahadbReplicationBroker>, or name its file in brokerURI"),
    ),
];
const CLUSTER_ELEMENTS: Table =
    &[(&["blazeCluster"], Rule::Refused("group messaging is not served; write <zookeeperCluster>"))];
const ZOOKEEPER_ATTRIBUTES: Table = &[];

/// Reads `kahadbReplicationBroker`; returns its `kahadbReplication`.
pub fn read<'p>(outer: Element<'p>, settings: &mut Settings, sink: &mut Sink<'_>) -> Option<Element<'p>> {
    sink.supported(outer, "a node of a cluster");
    for attribute in outer.attributes() {
        // It has a broker's attributes, and starts no broker of its own.
        if broker::is_known_attribute(attribute.name()) {
            let text = "the broker is in the file that brokerURI names; write it there";
            sink.attribute(outer, attribute, VerdictKind::NoEffect, text);
        } else {
            sink.attribute_by_table(outer, attribute, &[]);
        }
    }
    sink.no_text(outer);
    let mut found = None;
    for child in outer.children() {
        if !child.is(Vocabulary::Kahadb, "replicationService") {
            let text =
                "only <replicationService> belongs here; what concerns the broker goes into its own file";
            sink.refused(child, text);
            continue;
        }
        sink.wrapper(child);
        for inner in child.children() {
            if !inner.is(Vocabulary::Kahadb, "kahadbReplication") {
                sink.refused(inner, "only <kahadbReplication> belongs here");
            } else if found.is_some() {
                sink.refused(inner, "a second one; a node is in one cluster");
            } else {
                found = Some(inner);
            }
        }
    }
    match found {
        Some(replication) => settings.cluster = read_replication(replication, settings, sink),
        None if sink.nothing_refused() => {
            sink.refused(outer, "write <replicationService><kahadbReplication …> in it");
        }
        None => {}
    }
    found
}

fn read_replication(
    element: Element<'_>,
    settings: &mut Settings,
    sink: &mut Sink<'_>,
) -> Option<ClusterSettings> {
    settings.node.directory = DIRECTORY_DEFAULT.into();
    let mut address = None;
    let mut listen = None;
    let mut node_id = None;
    let mut minimum_replicas = None;
    let mut priority = None;
    let mut secret = None;
    let (mut certificate, mut key, mut authorities) = (None, None, None);
    let mut transfer_sessions = None;
    let mut sync_bytes_per_second_max = None;
    for attribute in element.attributes() {
        match attribute.name() {
            _ if attribute.namespace().is_some() => sink.attribute_by_table(element, attribute, &[]),
            "directory" => {
                if let Some(directory) = sink.setting(element, attribute, value::text) {
                    settings.node.directory = directory;
                }
            }
            // Its verdict comes with the file.
            BROKER_URI => {}
            "uri" => address = sink.setting(element, attribute, parse_kdbr),
            "minimumReplicas" => {
                minimum_replicas =
                    sink.setting(element, attribute, |text| value::number(text, 0..=MINIMUM_REPLICAS_MAX));
            }
            "bind" => listen = sink.setting(element, attribute, str::parse::<Address>),
            "nodeId" => node_id = sink.setting(element, attribute, parse_node_id),
            "priority" => {
                priority = sink.setting(element, attribute, |text| value::number(text, 0..=u32::MAX))
            }
            "secret" => secret = sink.secret(element, attribute),
            "tlsCertificate" => certificate = sink.setting(element, attribute, value::text),
            "tlsKey" => key = sink.setting(element, attribute, value::text),
            "tlsAuthorities" => authorities = sink.setting(element, attribute, value::text),
            "transferSessions" => {
                transfer_sessions =
                    sink.setting(element, attribute, |text| value::number(text, 1..=TRANSFER_SESSIONS_MAX));
            }
            "syncBandwidth" => {
                sync_bytes_per_second_max =
                    sink.setting(element, attribute, |text| value::bytes_within(text, 1 << 10..=u64::MAX));
            }
            _ => sink.attribute_by_table(element, attribute, REPLICATION_ATTRIBUTES),
        }
    }
    sink.no_text(element);
    if element.raw("uri").is_none() {
        sink.refused(
            element,
            "uri is missing; write uri=\"kdbr://HOST:PORT\", where the other nodes reach this one",
        );
    }
    let tls = match (certificate, key, authorities) {
        (Some(certificate), Some(key), Some(authorities)) => {
            Some(PeerTlsSettings { certificate, key, authorities })
        }
        (None, None, None) => None,
        // One of them may be there, and refused already.
        _ => {
            if sink.nothing_refused() {
                sink.refused(element, "tlsCertificate, tlsKey and tlsAuthorities belong together");
            }
            None
        }
    };
    let zookeeper = read_cluster(element, sink);
    let mut cluster = ClusterSettings::new(address?, zookeeper?);
    cluster.listen = listen.unwrap_or(cluster.listen);
    cluster.node_id = node_id.unwrap_or(cluster.node_id);
    cluster.minimum_replicas = minimum_replicas.unwrap_or(cluster.minimum_replicas);
    cluster.priority = priority.unwrap_or(cluster.priority);
    cluster.secret = secret.filter(|secret: &Secret| !secret.expose().is_empty());
    cluster.tls = tls;
    cluster.transfer_sessions = transfer_sessions.unwrap_or(cluster.transfer_sessions);
    cluster.sync_bytes_per_second_max = sync_bytes_per_second_max;
    if cluster.address.port == 0 {
        sink.refused_attribute(element, "uri", "port 0 is not where other nodes can find this one");
    }
    Some(cluster)
}

/// A name that can be a part of a path.
pub fn parse_node_id(text: &str) -> Result<NodeId, String> {
    let text = value::text(text)?;
    if text.len() > NODE_ID_BYTES_MAX || text.contains(['/', ' ']) || text == "." || text == ".." {
        return Err(format!("a node's name has up to {NODE_ID_BYTES_MAX} bytes, no blank and no slash"));
    }
    Ok(NodeId(text))
}

fn read_cluster(replication: Element<'_>, sink: &mut Sink<'_>) -> Option<ZooKeeperSettings> {
    let mut found = None;
    for child in replication.children() {
        if !child.is(Vocabulary::Kahadb, "cluster") {
            sink.element_by_table(child, REPLICATION_ELEMENTS, "kahadbReplication");
            continue;
        }
        sink.wrapper(child);
        for inner in child.children() {
            if !inner.is(Vocabulary::Kahadb, "zookeeperCluster") {
                sink.element_by_table(inner, CLUSTER_ELEMENTS, "cluster");
            } else if found.is_some() {
                sink.refused(inner, "a second one; the cluster's record is in one place");
            } else {
                found = Some((inner, read_zookeeper(inner, sink)));
            }
        }
    }
    if found.is_none() && sink.nothing_refused() {
        sink.refused(
            replication,
            "write <cluster><zookeeperCluster uri=\"zk://HOST:2181/PATH\"/></cluster> in it",
        );
    }
    found?.1
}

fn read_zookeeper(element: Element<'_>, sink: &mut Sink<'_>) -> Option<ZooKeeperSettings> {
    let mut place = parse_zk(ZOOKEEPER_DEFAULT).ok();
    let mut userid = None;
    let mut password = None;
    let mut session_timeout_ms = None;
    for attribute in element.attributes() {
        match attribute.name() {
            _ if attribute.namespace().is_some() => sink.attribute_by_table(element, attribute, &[]),
            "uri" => place = sink.setting(element, attribute, parse_zk),
            "userid" => userid = sink.setting(element, attribute, parse_userid),
            "password" => password = sink.secret(element, attribute),
            "sessionTimeout" => {
                let range = SESSION_TIMEOUT_MS_MIN..=SESSION_TIMEOUT_MS_MAX;
                session_timeout_ms = sink.setting(element, attribute, |text| value::number(text, range));
            }
            _ => sink.attribute_by_table(element, attribute, ZOOKEEPER_ATTRIBUTES),
        }
    }
    if element.raw("uri").is_none() {
        sink.supported(element, format!("without uri it is {ZOOKEEPER_DEFAULT}"));
    }
    sink.no_text(element);
    for child in element.children() {
        sink.refused(child, "nothing belongs into <zookeeperCluster>");
    }
    let (servers, path) = place?;
    let mut zookeeper = ZooKeeperSettings::new(servers, path);
    zookeeper.userid = userid.unwrap_or(zookeeper.userid);
    zookeeper.password = password.unwrap_or(zookeeper.password);
    zookeeper.session_timeout_ms = session_timeout_ms.unwrap_or(zookeeper.session_timeout_ms);
    Some(zookeeper)
}

/// ZooKeeper cuts `user:password` at the first colon.
fn parse_userid(text: &str) -> Result<String, String> {
    let text = value::text(text)?;
    if text.contains(':') { Err("a ZooKeeper user has no colon in its name".into()) } else { Ok(text) }
}

/// What `brokerURI` says, and the paths that it may mean; `None`: it was refused.
pub fn broker_file(element: Element<'_>, sink: &mut Sink<'_>) -> Option<(String, Vec<String>)> {
    let attribute = element.attributes().find(|attribute| attribute.name() == BROKER_URI);
    let file = element.page().file();
    match attribute {
        Some(attribute) => {
            let parse =
                |text: &str| Ok::<_, String>((text.to_owned(), location::candidates(text, Some(file))?));
            sink.setting(element, attribute, parse)
        }
        None => {
            let paths = location::candidates(BROKER_URI_DEFAULT, Some(file)).unwrap_or_default();
            Some((BROKER_URI_DEFAULT.to_owned(), paths))
        }
    }
}
