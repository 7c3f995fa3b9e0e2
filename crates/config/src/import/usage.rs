//! `systemUsage`: limits.

use crate::page::{Element, Vocabulary};
use crate::settings::NodeSettings;
use crate::value;

use super::rules::{NO_JVM, Rule, Table};
use super::sink::Sink;

const STORE: Rule = Rule::NotBuilt("the store grows until the disk is full; watch the disk");
const TEMP: Rule = Rule::NoEffect("nothing is moved to temporary files");
const JOBS: Rule = Rule::NotBuilt("messages are not scheduled");

const USAGE_ATTRIBUTES: Table = &[
    (
        &["sendFailIfNoSpace", "sendFailIfNoSpaceAfterTimeout", "sendFailIfNoSpaceExplicitySet"],
        Rule::NotBuilt("a producer at a limit waits"),
    ),
    (&["name", "checkLimitsLogLevel", "executor", "adapter"], NO_JVM),
];
const USAGE_ELEMENTS: Table =
    &[(&["storeUsage"], STORE), (&["tempUsage"], TEMP), (&["jobSchedulerUsage"], JOBS)];
const MEMORY_ATTRIBUTES: Table = &[
    (&["percentOfJvmHeap"], Rule::NotBuilt("there is no heap to take a share of; write limit=\"256 mb\"")),
    (&["percentLimit", "percentUsageMinDelta", "usagePortion"], Rule::NotBuilt("not built")),
    (&["name", "pollingTime", "executor", "parent"], NO_JVM),
];

/// Reads `systemUsage`, which holds another of that name.
pub fn read(element: Element<'_>, node: &mut NodeSettings, sink: &mut Sink<'_>) {
    sink.wrapper(element);
    for inner in element.children() {
        if !inner.is(Vocabulary::Core, "systemUsage") {
            sink.refused(inner, "only <systemUsage> belongs here");
            continue;
        }
        sink.attributes_by_table(inner, USAGE_ATTRIBUTES);
        sink.no_text(inner);
        for usage in inner.children() {
            if usage.is(Vocabulary::Core, "memoryUsage") {
                memory(usage, node, sink);
            } else {
                sink.element_by_table(usage, USAGE_ELEMENTS, "systemUsage");
            }
        }
    }
}

fn memory(element: Element<'_>, node: &mut NodeSettings, sink: &mut Sink<'_>) {
    sink.wrapper(element);
    for inner in element.children() {
        if !inner.is(Vocabulary::Core, "memoryUsage") {
            sink.refused(inner, "only <memoryUsage> belongs here");
            continue;
        }
        sink.no_text(inner);
        for attribute in inner.attributes() {
            if attribute.name() == "limit" && attribute.namespace().is_none() {
                let limit = sink.setting(inner, attribute, |text| value::bytes_within(text, 1..=u64::MAX));
                node.memory_bytes_max = limit.or(node.memory_bytes_max);
            } else {
                sink.attribute_by_table(inner, attribute, MEMORY_ATTRIBUTES);
            }
        }
        for child in inner.children() {
            sink.refused(child, "nothing belongs into <memoryUsage>");
        }
    }
}
