//! `broker`: name, directory, and which part of it is read where.

use crate::page::{Element, Vocabulary};
use crate::settings::{NodeSettings, TlsSettings};
use crate::value;
use crate::verdict::VerdictKind;

use super::rules::{BUNDLED, EMPTY, NO_JVM, Rule, Table, find};
use super::sink::Sink;
use super::{connectors, persistence, policy, usage};

/// What ActiveMQ takes if `dataDirectory` is missing.
const DATA_DIRECTORY_DEFAULT: &str = "activemq-data";
/// What ActiveMQ takes if `brokerName` is missing.
const NAME_DEFAULT: &str = "localhost";

/// In what company a broker is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It has a store of its own.
    Alone,
    /// Its store is the replicated one, and it runs while the node is primary.
    Replicated,
}

const REFERENCE: Rule =
    Rule::Refused("beans are not referred to; write the element of this name inside <broker>");
const PAIRS: Rule =
    Rule::Refused("pairs of master and slave are not served; write a <kahadbReplicationBroker>");
const ACCESS: Rule = Rule::Refused(
    "users and authorization are not built, everybody would be let in; take it out only if that is right, \
     and keep the connectors on addresses that only friends reach",
);

const ATTRIBUTES: Table = &[
    (
        &[
            "adjustUsageLimits",
            "brokerObjectName",
            "cacheTempDestinations",
            "consumerSystemUsagePortion",
            "dedicatedTaskRunner",
            "destroyApplicationContextOnShutdown",
            "diskUsageCheckRegrowThreshold",
            "enableStatistics",
            "mbeanInvocationTimeout",
            "monitorConnectionSplits",
            "networkConnectorStartAsync",
            "persistenceThreadPriority",
            "populateUserNameInMBeans",
            "producerSystemUsagePortion",
            "restartAllowed",
            "schedulePeriodForDiskUsageCheck",
            "slaveAvailableExitCode",
            "splitSystemUsageForProducersConsumers",
            "startAsync",
            "systemExitOnShutdown",
            "systemExitOnShutdownExitCode",
            "taskRunnerPriority",
            "useLocalHostBrokerName",
            "useLoggingForShutdownErrors",
            "useShutdownHook",
            "virtualThreadTaskRunner",
            "vmConnectorURI",
        ],
        NO_JVM,
    ),
    (&["useJmx"], Rule::NoEffect("there is no JMX; run with --admin HOST:PORT for the admin interface")),
    (&["storeOpenWireVersion"], Rule::NoEffect("messages are stored in version 11")),
    (
        &["tmpDataDirectory", "schedulerDirectory"],
        Rule::NoEffect("nothing is kept outside the journal's directory"),
    ),
    (
        &["advisorySupport", "anonymousProducerAdvisorySupport"],
        Rule::Only("false", "no advisory messages are sent"),
    ),
    (
        &["schedulerSupport"],
        Rule::Only("false", "messages are not scheduled: a delayed one is delivered at once"),
    ),
    (&["persistent"], Rule::Only("true", "persistent messages are stored all the same")),
    (
        &["deleteAllMessagesOnStartup"],
        Rule::Only("false", "nothing is deleted; remove the directory yourself"),
    ),
    (&["useVirtualTopics"], Rule::Only("true", "virtual topics cannot be turned off")),
    (&["useMirroredQueues", "useTempMirroredQueues"], Rule::Only("false", "queues are not mirrored")),
    (
        &["allowTempAutoCreationOnSend"],
        Rule::Only("false", "a temporary destination is made by its owner alone"),
    ),
    (&["rejectDurableConsumers"], Rule::Only("false", "durable subscribers are let in")),
    (&["keepDurableSubsActive"], Rule::Only("true", "subscriptions are kept ready")),
    (
        &["populateJMSXUserID", "useAuthenticatedPrincipalForJMSXUserID"],
        Rule::Only("false", "there are no users, so no JMSXUserID"),
    ),
    (
        &[
            "brokerId",
            "enableMessageExpirationOnActiveDurableSubs",
            "maxInflatedDataSize",
            "maxPurgedDestinationsPerSweep",
            "maxSchedulerRepeatAllowed",
            "maxUncommittedCount",
            "offlineDurableSubscriberTaskSchedule",
            "offlineDurableSubscriberTimeout",
            "rollbackOnlyOnAsyncException",
            "schedulePeriodForDestinationPurge",
            "timeBeforePurgeTempDestinations",
            "useVirtualDestSubs",
            "useVirtualDestSubsOnCreation",
        ],
        Rule::NotBuilt("not built"),
    ),
    (
        &[
            "masterConnectorURI",
            "passiveSlave",
            "shutdownOnMasterFailure",
            "shutdownOnSlaveFailure",
            "supportFailOver",
            "waitForSlave",
            "waitForSlaveTimeout",
        ],
        PAIRS,
    ),
    (&["networkConnectorURIs"], NETWORK),
    (
        &["transportConnectorURIs"],
        Rule::Refused("write <transportConnectors><transportConnector uri=\"…\"/>"),
    ),
    (&["messageAuthorizationPolicy", "plugins"], ACCESS),
    (
        &[
            "adminView",
            "consumerSystemUsage",
            "dataDirectoryFile",
            "destinationFactory",
            "destinationInterceptors",
            "destinationPolicy",
            "destinations",
            "ioExceptionHandler",
            "jmsBridgeConnectors",
            "jobSchedulerStore",
            "managementContext",
            "networkConnectors",
            "persistenceAdapter",
            "persistenceFactory",
            "persistenceTaskRunnerFactory",
            "producerSystemUsage",
            "proxyConnectors",
            "regionBroker",
            "services",
            "shutdownHooks",
            "sslContext",
            "systemUsage",
            "taskRunnerFactory",
            "tempDataStore",
            "transportConnectors",
        ],
        REFERENCE,
    ),
];

const NETWORK: Rule = Rule::NotBuilt("networks of brokers are not built: messages stay on this one");

const ELEMENTS: Table = &[
    (
        &["managementContext"],
        Rule::NoEffect("there is no JMX; run with --admin HOST:PORT for the admin interface"),
    ),
    (
        &["shutdownHooks", "taskRunnerFactory", "persistenceTaskRunnerFactory", "adminView", "brokerContext"],
        NO_JVM,
    ),
    (&["tempDataStore"], BUNDLED),
    (&["networkConnectors", "networkConnectorURIs"], NETWORK),
    (&["jmsBridgeConnectors"], Rule::NotBuilt("there are no bridges to other brokers")),
    (&["proxyConnectors"], Rule::NotBuilt("connections are not passed on to other brokers")),
    (&["destinations"], Rule::NotBuilt("destinations are made when they are first used, not at the start")),
    (
        &["destinationInterceptors"],
        Rule::NotBuilt(
            "only virtual topics with their usual names (VirtualTopic.>, Consumer.*.VirtualTopic.>) work",
        ),
    ),
    (
        &["ioExceptionHandler"],
        Rule::NoEffect("after a failed write or flush nothing is confirmed, and the process ends"),
    ),
    (&["jobSchedulerStore"], Rule::NotBuilt("messages are not scheduled")),
    (&["services", "regionBroker", "destinationFactory"], Rule::NotBuilt("Java classes are not loaded")),
    (&["consumerSystemUsage", "producerSystemUsage"], Rule::NotBuilt("there is one limit, in systemUsage")),
    (&["messageAuthorizationPolicy"], ACCESS),
];

/// Plugins that say who may do what.
const ACCESS_PLUGINS: &[&str] = &[
    "authorizationPlugin",
    "authenticationPlugin",
    "bean",
    "jaasAuthenticationPlugin",
    "jaasCertificateAuthenticationPlugin",
    "jaasDualAuthenticationPlugin",
    "ref",
    "simpleAuthenticationPlugin",
    "shiroPlugin",
];

/// Other plugins.
const PLUGINS: Table = &[
    (
        &[
            "connectionDotFilePlugin",
            "destinationDotFilePlugin",
            "destinationPathSeparatorPlugin",
            "destinationsPlugin",
            "discardingDLQBrokerPlugin",
            "forcePersistencyModeBrokerPlugin",
            "loggingBrokerPlugin",
            "multicastTraceBrokerPlugin",
            "redeliveryPlugin",
            "runtimeConfigurationPlugin",
            "statisticsBrokerPlugin",
            "timeStampingBrokerPlugin",
            "traceBrokerPathPlugin",
            "udpTraceBrokerPlugin",
            "camelRoutesBrokerPlugin",
        ],
        Rule::NotBuilt("there are no plugins"),
    ),
    (ACCESS_PLUGINS, ACCESS),
];

/// Whether a broker has such an attribute, whatever becomes of it.
pub fn is_known_attribute(name: &str) -> bool {
    matches!(name, "brokerName" | "dataDirectory") || find(ATTRIBUTES, name).is_some()
}

/// Reads `broker`.
pub fn read(element: Element<'_>, role: Role, node: &mut NodeSettings, sink: &mut Sink<'_>) {
    sink.supported(element, "the broker");
    let mut data_directory = None;
    for attribute in element.attributes() {
        match attribute.name() {
            _ if attribute.namespace().is_some() => sink.attribute_by_table(element, attribute, &[]),
            "brokerName" => node.name = sink.setting(element, attribute, value::text),
            "dataDirectory" if role == Role::Replicated => {
                let text = "the journal is in the directory of <kahadbReplication>";
                sink.attribute(element, attribute, VerdictKind::NoEffect, text);
            }
            "dataDirectory" => data_directory = sink.setting(element, attribute, value::text),
            "start" => match (sink.value(element, attribute).map(|value| value::boolean(value.trim())), role)
            {
                (None, _) => {}
                (Some(Err(error)), _) => sink.attribute(element, attribute, VerdictKind::Refused, error),
                (Some(Ok(false)), Role::Replicated) => {
                    sink.attribute(
                        element,
                        attribute,
                        VerdictKind::Supported,
                        "the broker runs while its node is primary",
                    );
                }
                (Some(Ok(true)), Role::Replicated) => {
                    sink.attribute(element, attribute, VerdictKind::Refused, START);
                }
                (Some(Ok(true)), Role::Alone) => {
                    sink.attribute(element, attribute, VerdictKind::Supported, "true");
                }
                (Some(Ok(false)), Role::Alone) => {
                    // Run alone by mistake, it would take messages that no replica gets.
                    let text = "this broker is to be started by replication: run the file with \
                        <kahadbReplicationBroker>, or take the attribute out";
                    sink.attribute(element, attribute, VerdictKind::Refused, text);
                }
            },
            _ => sink.attribute_by_table(element, attribute, ATTRIBUTES),
        }
    }
    if role == Role::Replicated && element.raw("start").is_none() {
        sink.refused_attribute(element, "start", START);
    }
    sink.no_text(element);
    if role == Role::Alone {
        // Where ActiveMQ puts it if no store is configured.
        let base = data_directory.as_deref().unwrap_or(DATA_DIRECTORY_DEFAULT);
        node.directory = format!("{base}/{}/KahaDB", node.name.as_deref().unwrap_or(NAME_DEFAULT));
    }
    for child in element.children() {
        if child.vocabulary() != Vocabulary::Core {
            let text = "an element that is not ActiveMQ's; correct its namespace or take it out";
            sink.refused(child, text);
            continue;
        }
        match child.name() {
            "transportConnectors" => connectors::read(child, node, sink),
            "persistenceAdapter" | "persistenceFactory" if role == Role::Replicated => {
                let text = "the store of a replicated broker is the journal of <kahadbReplication>; take this element out";
                sink.refused(child, text);
            }
            "persistenceAdapter" => persistence::read(child, node, sink),
            "persistenceFactory" => sink.refused(child, persistence::OTHER_STORE),
            "destinationPolicy" => policy::read(child, node, sink),
            "systemUsage" => usage::read(child, node, sink),
            "sslContext" => ssl(child, node, sink),
            "plugins" => plugins(child, sink),
            "networkConnectors" if child.children().next().is_none() => {
                sink.element_by_rule(child, EMPTY);
            }
            _ => sink.element_by_table(child, ELEMENTS, "broker"),
        }
    }
}

/// Why `start` has to be there.
const START: &str = "has to be \"false\": replication starts the broker, on the primary only";

fn plugins(element: Element<'_>, sink: &mut Sink<'_>) {
    sink.wrapper(element);
    for plugin in element.children() {
        sink.element_by_table(plugin, PLUGINS, "plugins");
    }
}

const JAVA_STORE: Rule = Rule::NotBuilt(
    "Java key stores are not read; name PEM files in certificate and key, or run with --tls-cert and --tls-key",
);
const CLIENT_CERTIFICATES: Rule = Rule::NotBuilt("clients are not asked for certificates");

const SSL_ATTRIBUTES: Table = &[
    (
        &["keyStore", "keyStorePassword", "keyStoreKeyPassword", "keyStoreType", "keyStoreAlgorithm"],
        JAVA_STORE,
    ),
    (
        &["trustStore", "trustStorePassword", "trustStoreType", "trustStoreAlgorithm", "crlPath"],
        CLIENT_CERTIFICATES,
    ),
    (&["protocol", "provider", "secureRandomAlgorithm"], NO_JVM),
];

fn ssl(element: Element<'_>, node: &mut NodeSettings, sink: &mut Sink<'_>) {
    sink.wrapper(element);
    for inner in element.children() {
        if !inner.is(Vocabulary::Core, "sslContext") {
            sink.refused(inner, "only <sslContext> belongs here");
            continue;
        }
        sink.no_text(inner);
        let mut certificate = None;
        let mut key = None;
        for attribute in inner.attributes() {
            match attribute.name() {
                "certificate" => certificate = sink.setting(inner, attribute, value::text),
                "key" => key = sink.setting(inner, attribute, value::text),
                _ => sink.attribute_by_table(inner, attribute, SSL_ATTRIBUTES),
            }
        }
        for child in inner.children() {
            sink.element_by_rule(child, JAVA_STORE);
        }
        match (certificate, key) {
            (Some(certificate), Some(key)) => node.tls = Some(TlsSettings { certificate, key }),
            (None, None) => {}
            _ if sink.nothing_refused() => sink.refused(inner, "certificate and key belong together"),
            _ => {}
        }
    }
}
