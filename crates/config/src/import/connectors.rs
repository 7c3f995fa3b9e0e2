//! `transportConnectors`: where clients connect.

use crate::address::connector_uri;
use crate::page::{Element, Vocabulary};
use crate::settings::{Connector, NodeSettings, Protocol};
use crate::value;
use crate::verdict::VerdictKind;

use super::rules::{NO_JVM, Rule, Table};
use super::sink::{Sink, shown};

/// Schemes with what is spoken there, and whether inside TLS.
const SERVED: &[(&str, Protocol, bool)] = &[
    ("stomp", Protocol::Stomp, false),
    ("stomp+nio", Protocol::Stomp, false),
    ("stomp+ssl", Protocol::Stomp, true),
    ("stomp+nio+ssl", Protocol::Stomp, true),
    ("tcp", Protocol::OpenWire, false),
    ("nio", Protocol::OpenWire, false),
    ("ssl", Protocol::OpenWire, true),
    ("nio+ssl", Protocol::OpenWire, true),
    ("amqp", Protocol::Amqp, false),
    ("amqp+nio", Protocol::Amqp, false),
    ("amqp+ssl", Protocol::Amqp, true),
    ("amqp+nio+ssl", Protocol::Amqp, true),
    ("mqtt", Protocol::Mqtt, false),
    ("mqtt+nio", Protocol::Mqtt, false),
    ("mqtt+ssl", Protocol::Mqtt, true),
    ("mqtt+nio+ssl", Protocol::Mqtt, true),
    ("ws", Protocol::WebSocket, false),
    ("wss", Protocol::WebSocket, true),
];

/// Schemes of ActiveMQ that are not planned.
const OTHERS: &[&str] = &[
    "auto",
    "auto+nio",
    "auto+nio+ssl",
    "auto+ssl",
    "http",
    "https",
    "multicast",
    "peer",
    "udp",
    "vm",
    "xmpp",
];

const ATTRIBUTES: Table = &[
    (
        &["discoveryUri", "discoveryURI"],
        Rule::NotBuilt("the connector is not announced; give clients its address"),
    ),
    (
        &[
            "updateClusterClients",
            "rebalanceClusterClients",
            "updateClusterClientsOnRemove",
            "updateClusterFilter",
        ],
        Rule::Only("false", "clients are not told of other brokers; give them a failover URL"),
    ),
    (&["disableAsyncDispatch", "enableStatusMonitor", "displayStackTrace", "warnOnRemoteClose"], NO_JVM),
    (&["auditNetworkProducers"], Rule::NoEffect("there are no networks of brokers")),
    (
        &["allowLinkStealing"],
        Rule::NotBuilt("no connection is ended because another comes with its client id"),
    ),
    (
        &[
            "maximumProducersAllowedPerConnection",
            "maximumConsumersAllowedPerConnection",
            "publishedAddressPolicy",
        ],
        Rule::NotBuilt("not built"),
    ),
    (&["autoStart"], Rule::Only("true", "connectors are always opened")),
    (&["messageAuthorizationPolicy"], Rule::Refused("authorization is not built, everybody would be let in")),
    (
        &["server", "taskRunnerFactory", "discoveryAgent", "brokerInfo", "brokerService"],
        Rule::Refused("beans are not referred to; take it out"),
    ),
];

/// Reads `transportConnectors`.
pub fn read(element: Element<'_>, node: &mut NodeSettings, sink: &mut Sink<'_>) {
    sink.wrapper(element);
    for child in element.children() {
        if child.is(Vocabulary::Core, "transportConnector") {
            connector(child, node, sink);
        } else {
            sink.refused(child, "only <transportConnector> belongs here");
        }
    }
}

fn connector(element: Element<'_>, node: &mut NodeSettings, sink: &mut Sink<'_>) {
    sink.no_text(element);
    let mut name = None;
    let mut uri = None;
    for attribute in element.attributes() {
        match attribute.name() {
            _ if attribute.namespace().is_some() => sink.attribute_by_table(element, attribute, &[]),
            "name" => name = sink.setting(element, attribute, value::text),
            "uri" => uri = sink.value(element, attribute),
            _ => sink.attribute_by_table(element, attribute, ATTRIBUTES),
        }
    }
    for child in element.children() {
        sink.element_by_table(child, ATTRIBUTES, "transportConnector");
    }
    match uri {
        Some(uri) => {
            if let Some(mut connector) = from_uri(element, uri.trim(), sink) {
                connector.name = name.unwrap_or(connector.name);
                connector.origin = Some(element.origin());
                node.connectors.push(connector);
            }
        }
        None if element.raw("uri").is_none() => {
            sink.refused(element, "uri is missing; write uri=\"stomp://0.0.0.0:61613\"");
        }
        None => {}
    }
}

fn from_uri(element: Element<'_>, uri: &str, sink: &mut Sink<'_>) -> Option<Connector> {
    let Some(parts) = connector_uri(uri) else {
        sink.refused_attribute(
            element,
            "uri",
            format!("'{}' is not a URI; write scheme://host:port", shown(uri)),
        );
        return None;
    };
    if OTHERS.contains(&parts.scheme) {
        let text =
            format!("{}: {} connectors are not served: nothing listens there", shown(uri), parts.scheme);
        uri_verdict(element, VerdictKind::NotBuilt, text, sink);
        return None;
    }
    let Some(&(_, protocol, tls)) = SERVED.iter().find(|(scheme, ..)| *scheme == parts.scheme) else {
        let text = format!("'{}' is not a scheme of ActiveMQ's connectors", shown(parts.scheme));
        sink.refused_attribute(element, "uri", text);
        return None;
    };
    let address = match parts.address.parse() {
        Ok(address) => address,
        Err(error) => {
            sink.refused_attribute(element, "uri", format!("{}: {error}", shown(uri)));
            return None;
        }
    };
    let mut connector = Connector::new(protocol, tls, address);
    if !protocol.is_served() {
        let text = format!("{}: {protocol} is not served yet: nothing listens there", shown(uri));
        uri_verdict(element, VerdictKind::NotBuilt, text, sink);
        return Some(connector);
    }
    uri_verdict(element, VerdictKind::Supported, shown(uri), sink);
    for option in parts.options.split('&').filter(|option| !option.is_empty()) {
        option_of(element, option, &mut connector, sink);
    }
    Some(connector)
}

/// One option behind the question mark.
fn option_of(element: Element<'_>, option: &str, connector: &mut Connector, sink: &mut Sink<'_>) {
    let (name, text) = option.split_once('=').unwrap_or((option, ""));
    let short = name.strip_prefix("transport.").unwrap_or(name);
    let result = match short {
        "maximumConnections" => value::number(text, 1..=i32::MAX.unsigned_abs()).map(|number| {
            connector.connections_max = Some(number);
            (VerdictKind::Supported, "all connectors of this protocol together".to_owned())
        }),
        "wireFormat.maxFrameSize" | "maxFrameSize" => {
            value::number(text, 1..=i64::MAX.unsigned_abs()).map(|number| {
                connector.frame_bytes_max = Some(number);
                (VerdictKind::Supported, "the smallest one of this protocol's connectors counts".to_owned())
            })
        }
        "needClientAuth" if text.eq_ignore_ascii_case("true") => {
            Err("clients are not asked for certificates, everybody would be let in".into())
        }
        "closeAsync"
        | "daemon"
        | "trace"
        | "threadName"
        | "useInactivityMonitor"
        | "soTimeout"
        | "ioBufferSize"
        | "socketBufferSize"
        | "tcpNoDelay"
        | "useKeepAlive"
        | "dynamicManagement"
        | "startLogging"
        | "jmxPort"
        | "stackSize"
        | "minmumWireFormatVersion"
        | "backlog" => Ok((VerdictKind::NoEffect, "sockets are set up by other means".to_owned())),
        _ => Ok((VerdictKind::NotBuilt, "not built".to_owned())),
    };
    match result {
        Ok((kind, text)) => uri_verdict(element, kind, format!("option {}: {text}", shown(option)), sink),
        Err(error) => sink.refused_attribute(element, "uri", format!("option {}: {error}", shown(option))),
    }
}

fn uri_verdict(element: Element<'_>, kind: VerdictKind, text: String, sink: &mut Sink<'_>) {
    if let Some(attribute) = element.attributes().find(|attribute| attribute.name() == "uri") {
        sink.attribute(element, attribute, kind, text);
    }
}
