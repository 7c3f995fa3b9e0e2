//! A file's top level: which elements are ours, and property files.

use crate::location;
use crate::page::{Element, Page, Vocabulary};
use crate::properties::parse_properties;
use crate::verdict::VerdictKind;

use super::rules::{Rule, Table};
use super::sink::{Read, Sink};

/// Spring classes that read property files.
const PLACEHOLDERS: [&str; 2] = [
    "org.springframework.beans.factory.config.PropertyPlaceholderConfigurer",
    "org.springframework.context.support.PropertySourcesPlaceholderConfigurer",
];

const SPRING_DEFAULTS: Table = &[(
    &[
        "default-lazy-init",
        "default-autowire",
        "default-init-method",
        "default-destroy-method",
        "default-merge",
    ],
    Rule::NoEffect("no bean is made"),
)];

const CAMEL: Rule =
    Rule::NotBuilt("Camel routes do not run inside the broker; run them beside it, as a client");
const JETTY: Rule =
    Rule::NotBuilt("no servlets are served; run with --admin HOST:PORT for the admin interface");
const BEAN: Rule = Rule::NotBuilt("Java beans are not made");
const IMPORT: Rule = Rule::NotBuilt("imported files are not read; write a broker's parts into this one");
const CLIENT: Rule = Rule::NotBuilt("only a <broker> is read; what is beside it belongs to Java programs");
const NESTED: Rule = Rule::NotBuilt("nested <beans> are not read");
const OTHER: Rule = Rule::NotBuilt("neither broker nor Spring");

/// What of a file is ours.
pub struct Beans<'p> {
    /// `kahadbReplicationBroker`.
    pub replicated: Option<Element<'p>>,
    /// `broker`.
    pub broker: Option<Element<'p>>,
}

impl<'p> Beans<'p> {
    /// Looks through a file, reads the property files that it names.
    pub fn read(page: &'p Page<'p>, sink: &mut Sink<'_>) -> Self {
        let mut beans = Self { replicated: None, broker: None };
        let root = page.root();
        if !root.is(Vocabulary::Beans, "beans") {
            let text = "the outermost element has to be <beans xmlns=\"http://www.springframework.org/schema/beans\">";
            sink.refused(root, text);
            return beans;
        }
        sink.attributes_by_table(root, SPRING_DEFAULTS);
        sink.no_text(root);
        // In the order of the file, except that properties are known everywhere.
        for element in root.children().filter(|element| is_placeholders(*element)) {
            placeholders(element, sink);
        }
        for element in root.children().filter(|element| !is_placeholders(*element)) {
            match (element.vocabulary(), element.name()) {
                (Vocabulary::Kahadb, "kahadbReplicationBroker") => keep(&mut beans.replicated, element, sink),
                (Vocabulary::Core, "broker") => keep(&mut beans.broker, element, sink),
                (Vocabulary::Foreign, "broker" | "kahadbReplicationBroker") => {
                    let text = "an element without ActiveMQ's namespace; write xmlns=\
                        \"http://activemq.apache.org/schema/core\" for a broker, …/kahadb for replication";
                    sink.refused(element, text);
                }
                (Vocabulary::Beans, "description") => {
                    sink.element_by_rule(element, Rule::NoEffect("a comment"))
                }
                (Vocabulary::Beans, "import") => sink.element_by_rule(element, IMPORT),
                (Vocabulary::Beans, "beans") => sink.element_by_rule(element, NESTED),
                (Vocabulary::Beans, _) => sink.element_by_rule(element, BEAN),
                (Vocabulary::Core | Vocabulary::Kahadb, _) => sink.element_by_rule(element, CLIENT),
                (Vocabulary::Foreign, "camelContext") => sink.element_by_rule(element, CAMEL),
                (Vocabulary::Foreign, "jetty") => sink.element_by_rule(element, JETTY),
                (Vocabulary::Foreign, _) => sink.element_by_rule(element, OTHER),
            }
        }
        beans
    }
}

fn keep<'p>(place: &mut Option<Element<'p>>, element: Element<'p>, sink: &mut Sink<'_>) {
    match place {
        Some(first) => {
            let text =
                format!("a second one; the first is in line {}: a node is one broker", first.origin().line);
            sink.refused(element, text);
        }
        None => *place = Some(element),
    }
}

fn is_placeholders(element: Element<'_>) -> bool {
    element.is(Vocabulary::Beans, "bean")
        && element.raw("class").is_some_and(|class| PLACEHOLDERS.contains(&class))
}

/// `<bean class="…PropertyPlaceholderConfigurer">`: `location` or `locations`, as value, list or attribute.
fn placeholders(bean: Element<'_>, sink: &mut Sink<'_>) {
    sink.supported(bean, "placeholders are replaced");
    for property in bean.children() {
        match (property.is(Vocabulary::Beans, "property"), property.raw("name")) {
            (true, Some("location" | "locations")) => {
                let attribute = property.attributes().find(|attribute| attribute.name() == "value");
                if let Some(location) = attribute.and_then(|attribute| sink.value(property, attribute)) {
                    property_file(property, &location, sink);
                }
                for value in property.descendants().filter(|inner| inner.is(Vocabulary::Beans, "value")) {
                    if let Some(location) = sink.text_of(value) {
                        property_file(value, &location, sink);
                    }
                }
            }
            _ => sink.element_by_rule(property, BEAN),
        }
    }
}

fn property_file(element: Element<'_>, location: &str, sink: &mut Sink<'_>) {
    let paths = match location::candidates(location, Some(element.page().file())) {
        Ok(paths) => paths,
        Err(text) => return sink.refused(element, text),
    };
    match sink.read_first(&paths) {
        Read::Done(path, text) => {
            let pairs = parse_properties(&text);
            sink.supported(element, format!("{} properties from {path}", pairs.len()));
            sink.define(pairs);
        }
        // Every ActiveMQ file names its credentials, few need them.
        Read::Failed(path, error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = format!("{path} is not there; what only it defines is refused where it is used");
            sink.element(element, VerdictKind::NoEffect, text);
        }
        Read::Failed(path, error) => sink.refused(element, format!("{path}: {error}")),
    }
}
