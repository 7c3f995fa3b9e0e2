//! `destinationPolicy`: how destinations behave.

use crate::page::{Element, Vocabulary};
use crate::settings::NodeSettings;
use crate::value;
use crate::verdict::VerdictKind;

use super::rules::{BUNDLED, NO_JVM, Rule, Table};
use super::sink::Sink;

const PREFETCH: Rule = Rule::NotBuilt("a consumer asks for its prefetch itself (activemq.prefetchSize)");
const ADVISORIES: Rule = Rule::Only("false", "no advisory messages are sent");
const COLLECTED: Rule = Rule::NotBuilt("empty destinations are not removed");

const ATTRIBUTES: Table = &[
    (
        &[
            "advancedMessageStatisticsEnabled",
            "advancedNetworkStatisticsEnabled",
            "blockedProducerWarningInterval",
            "cursorMemoryHighWaterMark",
            "doOptimzeMessageStorage",
            "enableAudit",
            "maxAuditDepth",
            "maxBrowsePageSize",
            "maxExpirePageSize",
            "maxPageSize",
            "maxProducersToAudit",
            "maxQueueAuditDepth",
            "minimumMessageSize",
            "optimizeMessageStoreInFlightLimit",
            "optimizedDispatch",
            "reduceMemoryFootprint",
            "storeUsageHighWaterMark",
            "topicSubscriptionInflightStats",
            "useCache",
            "useTopicSubscriptionInflightStats",
        ],
        BUNDLED,
    ),
    (
        &[
            "advisoryForConsumed",
            "advisoryForDelivery",
            "advisoryForDiscardingMessages",
            "advisoryForDispatched",
            "advisoryForFastProducers",
            "advisoryForSlowConsumers",
            "advisoryWhenFull",
            "includeBodyForAdvisory",
            "sendAdvisoryIfNoConsumers",
        ],
        ADVISORIES,
    ),
    (
        &["producerFlowControl"],
        Rule::Only("true", "producers are held back at the memory limit all the same"),
    ),
    (&["memoryLimit"], Rule::NotBuilt("there is one memory limit, for all destinations: systemUsage")),
    (&["queuePrefetch", "topicPrefetch", "durableTopicPrefetch", "queueBrowserPrefetch"], PREFETCH),
    (
        &["useConsumerPriority"],
        Rule::Only("true", "consumers with a higher priority are always served first"),
    ),
    (&["lazyDispatch"], Rule::Only("false", "messages are sent out at once")),
    (&["strictOrderDispatch"], Rule::NotBuilt("messages are given out in turn")),
    (&["allConsumersExclusiveByDefault"], Rule::Only("false", "a consumer asks to be exclusive itself")),
    (&["gcInactiveDestinations"], Rule::Only("false", "empty destinations are not removed")),
    (&["inactiveTimoutBeforeGC", "inactiveTimeoutBeforeGC", "gcWithNetworkConsumers"], COLLECTED),
    (&["alwaysRetroactive"], Rule::Only("false", "topics do not keep messages for consumers to come")),
    (&["expireMessagesPeriod"], Rule::NotBuilt("all destinations are looked through in the same interval")),
    (
        &[
            "allowTempDestinationStealing",
            "consumersBeforeDispatchStarts",
            "maxDestinations",
            "persistJMSRedelivered",
            "sendFailIfNoSpace",
            "sendFailIfNoSpaceAfterTimeout",
            "sendDuplicateFromStoreToDLQ",
            "usePrefetchExtension",
            "timeBeforeDispatchStarts",
        ],
        Rule::NotBuilt("not built"),
    ),
    (&["messageGroupMapFactoryType"], GROUPS),
];

const GROUPS: Rule = Rule::NotBuilt("message groups are not kept together");

const ELEMENTS: Table = &[
    (&["pendingQueuePolicy", "pendingSubscriberPolicy", "pendingDurableSubscriberPolicy"], BUNDLED),
    (
        &["pendingMessageLimitStrategy", "messageEvictionStrategy"],
        Rule::NotBuilt("nothing is discarded for slow subscribers"),
    ),
    (&["slowConsumerStrategy"], Rule::NotBuilt("slow consumers are not cut off")),
    (&["subscriptionRecoveryPolicy"], Rule::NotBuilt("topics do not keep messages for consumers to come")),
    (&["dispatchPolicy"], Rule::NotBuilt("messages are given out in turn")),
    (&["deadLetterStrategy"], Rule::NotBuilt("all dead letters go to ActiveMQ.DLQ")),
    (&["messageGroupMapFactory"], GROUPS),
    (&["networkBridgeFilterFactory"], Rule::NotBuilt("networks of brokers are not built")),
    (&["messageInterceptorStrategy"], NO_JVM),
    // The name of an entry, as an element.
    (&["destination"], Rule::Refused("write the name in the attribute queue or topic")),
];

/// Attributes that say which destinations an entry is for, with the prefix of a name.
const NAMES: [(&str, &str); 2] = [("queue", ""), ("topic", "topic://")];
const FLAG: &str = "prioritizedMessages";

/// Reads `destinationPolicy`.
pub fn read(element: Element<'_>, node: &mut NodeSettings, sink: &mut Sink<'_>) {
    sink.wrapper(element);
    for map in element.children() {
        if !map.is(Vocabulary::Core, "policyMap") {
            sink.refused(map, "only <policyMap> belongs here");
            continue;
        }
        sink.wrapper(map);
        for group in map.children() {
            match group.name() {
                "policyEntries" | "entries" | "defaultEntry" => {
                    sink.wrapper(group);
                    let default = group.name() == "defaultEntry";
                    for inner in group.children() {
                        if inner.is(Vocabulary::Core, "policyEntry") {
                            entry(inner, default, node, sink);
                        } else {
                            sink.refused(inner, "only <policyEntry> belongs here");
                        }
                    }
                }
                _ => sink.refused(group, "only <policyEntries> and <defaultEntry> belong here"),
            }
        }
    }
}

fn entry(element: Element<'_>, default: bool, node: &mut NodeSettings, sink: &mut Sink<'_>) {
    sink.no_text(element);
    let mut names = Vec::new();
    let mut prioritised = None;
    for attribute in element.attributes() {
        let prefix = NAMES.iter().find(|(name, _)| *name == attribute.name()).map(|&(_, prefix)| prefix);
        match (prefix, attribute.name()) {
            _ if attribute.namespace().is_some() => sink.attribute_by_table(element, attribute, &[]),
            (Some(prefix), _) => {
                let name = sink.setting(element, attribute, value::text);
                names.extend(name.map(|name| format!("{prefix}{name}")));
            }
            (None, "tempQueue" | "tempTopic") => {
                let text = "temporary destinations have no policy";
                sink.attribute(element, attribute, VerdictKind::NotBuilt, text);
            }
            (None, FLAG) => prioritised = sink.value(element, attribute).map(|value| (attribute, value)),
            (None, _) => sink.attribute_by_table(element, attribute, ATTRIBUTES),
        }
    }
    for child in element.children() {
        sink.element_by_table(child, ELEMENTS, "policyEntry");
    }
    if default {
        // For whatever no other entry is for.
        names = NAMES.iter().map(|(_, prefix)| format!("{prefix}>")).collect();
    } else if names.is_empty() && !["tempQueue", "tempTopic"].iter().any(|name| element.raw(name).is_some()) {
        sink.refused(element, "write queue=\"…\" or topic=\"…\", the destinations that it is for");
    }
    let Some((attribute, value)) = prioritised else { return };
    match value::boolean(value.trim()) {
        Ok(true) if names.iter().any(|name| is_pattern(name)) => {
            let text = "true, also for destinations with an entry of their own";
            sink.attribute(element, attribute, VerdictKind::Supported, text);
            node.prioritised.append(&mut names);
        }
        Ok(true) => {
            sink.attribute(element, attribute, VerdictKind::Supported, "true");
            node.prioritised.append(&mut names);
        }
        Ok(false) => {
            let text = "false, unless a pattern of another entry with true matches";
            sink.attribute(element, attribute, VerdictKind::Supported, text);
        }
        Err(error) => sink.attribute(element, attribute, VerdictKind::Refused, error),
    }
}

/// Whether a name stands for several destinations.
fn is_pattern(name: &str) -> bool {
    name.contains(['*', '>'])
}
