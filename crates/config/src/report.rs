use std::fmt::Write as _;

use crate::settings::Settings;
use crate::verdict::VerdictKind;

/// The start-up report: what the node will do, then what became of each element and attribute, what is missing first. Several
/// lines, no secrets.
pub fn report(settings: &Settings) -> String {
    let mut out = String::new();
    let node = &settings.node;
    if let Some(name) = &node.name {
        line(&mut out, format_args!("broker {name}"));
    }
    line(&mut out, format_args!("journal in {}", node.directory));
    for connector in &node.connectors {
        let served = if connector.protocol.is_served() { "" } else { ", not served yet" };
        let tls = if connector.tls { " (TLS)" } else { "" };
        line(&mut out, format_args!("{} on {}{tls}{served}", connector.protocol, connector.address));
    }
    if !node.connectors.iter().any(|connector| connector.protocol.is_served()) {
        line(&mut out, format_args!("no client can connect: add a stomp connector, or --stomp HOST:PORT"));
    }
    if let Some(admin) = &node.admin {
        line(&mut out, format_args!("admin on {admin}"));
    }
    if let Some(cluster) = &settings.cluster {
        let place = match &cluster.zookeeper {
            Some(zookeeper) => {
                let servers: Vec<_> = zookeeper.servers.iter().map(ToString::to_string).collect();
                format!("of the cluster {} at ZooKeeper {}", zookeeper.path, servers.join(","))
            }
            None => "alone".to_owned(),
        };
        line(
            &mut out,
            format_args!(
                "node {} {place}; replication on {}{}, minimumReplicas {}",
                cluster.node_id,
                cluster.address,
                if cluster.tls.is_some() { " (TLS)" } else { "" },
                cluster.minimum_replicas
            ),
        );
    }
    for (kind, title) in [
        (VerdictKind::Refused, "refused:"),
        (VerdictKind::NotBuilt, "not built:"),
        (VerdictKind::NoEffect, "without effect:"),
        (VerdictKind::Supported, "supported:"),
    ] {
        let mut verdicts = settings.verdicts.iter().filter(|verdict| verdict.kind == kind).peekable();
        if verdicts.peek().is_some() {
            line(&mut out, format_args!("{title}"));
        }
        for verdict in verdicts {
            line(&mut out, format_args!("  {verdict}"));
        }
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{text}");
}
