use kahawai_config::{ConfigError, Properties, load};
use proptest::prelude::*;

use crate::load_files;

const HA: &str = include_str!("../data/original/ha.xml");
const HA_BROKER: &str = include_str!("../data/original/ha-broker.xml");

/// Names of elements and attributes that are read, and some that are not.
fn any_name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "broker",
        "kahaDB",
        "persistenceAdapter",
        "transportConnectors",
        "transportConnector",
        "uri",
        "name",
        "start",
        "systemUsage",
        "memoryUsage",
        "limit",
        "destinationPolicy",
        "policyMap",
        "policyEntries",
        "policyEntry",
        "queue",
        "prioritizedMessages",
        "kahadbReplicationBroker",
        "replicationService",
        "kahadbReplication",
        "cluster",
        "zookeeperCluster",
        "brokerURI",
        "minimumReplicas",
        "sslContext",
        "plugins",
        "bean",
        "property",
        "value",
        "x",
    ])
}

fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("true".to_owned()),
        Just("32mb".to_owned()),
        Just("stomp://localhost:61613".to_owned()),
        Just("kdbr://localhost:60001".to_owned()),
        Just("zk://localhost:2181/x".to_owned()),
        Just("xbean:other.xml".to_owned()),
        r"[a-z0-9:/?=.\[\]${}# é-]{0,20}",
    ]
}

/// Well-formed elements in ActiveMQ's namespaces, nested at random.
fn any_element() -> impl Strategy<Value = String> {
    let attributes = prop::collection::btree_map(any_name(), any_value(), 0..4);
    let leaf = (any_name(), attributes).prop_map(|(name, attributes)| element(name, &attributes, ""));
    leaf.prop_recursive(6, 40, 4, |inner| {
        let attributes = prop::collection::btree_map(any_name(), any_value(), 0..3);
        (any_name(), attributes, prop::collection::vec(inner, 0..4))
            .prop_map(|(name, attributes, children)| element(name, &attributes, &children.concat()))
    })
}

fn element(name: &str, attributes: &std::collections::BTreeMap<&str, String>, inside: &str) -> String {
    let namespace =
        if name.starts_with('k') || name.ends_with('r') && name != "broker" { "kahadb" } else { "core" };
    let attributes: String = attributes.iter().map(|(name, value)| format!(" {name}=\"{value}\"")).collect();
    format!("<{name} xmlns=\"http://activemq.apache.org/schema/{namespace}\"{attributes}>{inside}</{name}>\n")
}

/// Loads one text under every name, so that it may refer to itself.
fn load_anything(text: &str) -> Result<kahawai_config::Settings, ConfigError> {
    load("ha.xml", &Properties::new(), &mut |_| Ok(text.to_owned()))
}

proptest! {
    #[test]
    fn arbitrary_text_does_not_panic(text in "\\PC{0,200}") {
        let _ = load_anything(&text);
    }

    #[test]
    fn arbitrary_elements_do_not_panic(elements in prop::collection::vec(any_element(), 1..4)) {
        let text = format!("<beans xmlns=\"http://www.springframework.org/schema/beans\">\n{}</beans>", elements.concat());
        match load_anything(&text) {
            Ok(settings) => prop_assert!(!kahawai_config::report(&settings).is_empty()),
            Err(ConfigError::Refused(refusals)) => prop_assert!(!refusals.0.is_empty()),
            Err(error) => prop_assert!(error.to_string().contains("ha.xml") || error.to_string().contains("other.xml")),
        }
    }

    /// A file that is cut, or has a byte changed, is loaded or refused.
    #[test]
    fn damaged_files_do_not_panic(cut in 0..HA.len(), at in 0..HA_BROKER.len(), byte in 0u8..128) {
        let mut broker = HA_BROKER.as_bytes().to_vec();
        broker[at] = byte;
        let broker = String::from_utf8(broker).unwrap();
        let _ = load_files(&[("conf/ha.xml", HA), ("conf/ha-broker.xml", &broker)]);
        let whole = HA.find("</beans>").is_some_and(|end| cut >= end + "</beans>".len());
        let cut = load_files(&[("conf/ha.xml", &HA[..cut]), ("conf/ha-broker.xml", HA_BROKER)]);
        prop_assert!(whole || cut.is_err());
    }
}

#[test]
fn elements_may_lie_in_each_other_without_end() {
    let depth = 200_000;
    let text = format!(
        "<beans xmlns=\"http://www.springframework.org/schema/beans\">{}{}</beans>",
        "<a>".repeat(depth),
        "</a>".repeat(depth)
    );
    assert!(matches!(load_anything(&text), Err(ConfigError::Refused(_))));
}
