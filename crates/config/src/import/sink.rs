use std::fmt::Display;
use std::io;

use roxmltree::Attribute;

use crate::page::Element;
use crate::properties::Properties;
use crate::settings::Secret;
use crate::verdict::{Origin, Verdict, VerdictKind};

use super::rules::{EMPTY, Rule, Table, find};

/// Namespace of `xsi:schemaLocation`.
const XSI: &str = "http://www.w3.org/2001/XMLSchema-instance";
/// Values in verdicts are cut here.
const SHOWN_CHARS_MAX: usize = 200;

/// How reading another file went.
pub enum Read {
    /// Path and text.
    Done(String, String),
    /// The path that was likeliest, and why not.
    Failed(String, io::Error),
}

/// Reads attributes, and collects what became of them.
pub struct Sink<'r> {
    properties: Properties,
    read: &'r mut dyn FnMut(&str) -> io::Result<String>,
    pub verdicts: Vec<Verdict>,
}

impl<'r> Sink<'r> {
    pub fn new(properties: Properties, read: &'r mut dyn FnMut(&str) -> io::Result<String>) -> Self {
        Self { properties, read, verdicts: Vec::new() }
    }

    /// Reads the first of these that is there.
    pub fn read_first(&mut self, paths: &[String]) -> Read {
        let mut failed = None;
        for path in paths {
            match (self.read)(path) {
                Ok(text) => return Read::Done(path.clone(), text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    failed.get_or_insert((path.clone(), error));
                }
                Err(error) => return Read::Failed(path.clone(), error),
            }
        }
        let (path, error) = failed.unwrap_or_else(|| (String::new(), io::ErrorKind::NotFound.into()));
        Read::Failed(path, error)
    }

    /// Defines properties from a file; they come before those of the system, as in Spring.
    pub fn define(&mut self, pairs: Vec<(String, String)>) {
        for (name, value) in pairs {
            self.properties.set(name, value);
        }
    }

    pub fn nothing_refused(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.kind != VerdictKind::Refused)
    }

    fn push(
        &mut self,
        origin: Origin,
        element: Element<'_>,
        attribute: Option<&str>,
        kind: VerdictKind,
        text: impl Into<String>,
    ) {
        self.verdicts.push(Verdict {
            origin,
            element: element.name().to_owned(),
            attribute: attribute.map(str::to_owned),
            kind,
            text: text.into(),
        });
    }

    /// A verdict on an element.
    pub fn element(&mut self, element: Element<'_>, kind: VerdictKind, text: impl Into<String>) {
        self.push(element.origin(), element, None, kind, text);
    }

    /// A verdict on an attribute.
    pub fn attribute(
        &mut self,
        element: Element<'_>,
        attribute: Attribute<'_, '_>,
        kind: VerdictKind,
        text: impl Into<String>,
    ) {
        self.push(element.origin_of(attribute), element, Some(attribute.name()), kind, text);
    }

    pub fn supported(&mut self, element: Element<'_>, text: impl Into<String>) {
        self.element(element, VerdictKind::Supported, text);
    }

    pub fn refused(&mut self, element: Element<'_>, text: impl Into<String>) {
        self.element(element, VerdictKind::Refused, text);
    }

    /// Refuses an attribute by name; if it is not there, at its element.
    pub fn refused_attribute(&mut self, element: Element<'_>, name: &str, text: impl Into<String>) {
        let found = element.attributes().find(|attribute| attribute.name() == name);
        let origin = found.map_or_else(|| element.origin(), |attribute| element.origin_of(attribute));
        self.push(origin, element, Some(name), VerdictKind::Refused, text);
    }

    /// A verdict on an element and everything in it, by rule.
    pub fn element_by_rule(&mut self, element: Element<'_>, rule: Rule) {
        let inside = element.descendants().count();
        let with = |why: &str| match inside {
            0 => why.to_owned(),
            1 => format!("{why} (and the element in it)"),
            _ => format!("{why} (and {inside} elements in it)"),
        };
        match rule {
            Rule::NoEffect(why) => self.element(element, VerdictKind::NoEffect, with(why)),
            Rule::NotBuilt(why) | Rule::Only(_, why) => {
                self.element(element, VerdictKind::NotBuilt, with(why))
            }
            Rule::Refused(why) => self.element(element, VerdictKind::Refused, why),
        }
    }

    /// A verdict on an element that is not read, from a table; refused if it is not in there.
    pub fn element_by_table(&mut self, element: Element<'_>, table: Table, parent: &str) {
        match find(table, element.name()) {
            Some(rule) => self.element_by_rule(element, rule),
            None => {
                self.refused(element, format!("not known in <{parent}>; correct its name or take it out"))
            }
        }
    }

    /// A verdict on an attribute that is not read, from a table; refused if it is not in there.
    pub fn attribute_by_table(&mut self, element: Element<'_>, attribute: Attribute<'_, '_>, table: Table) {
        if let Some(rule) = find(table, attribute.name()).filter(|_| attribute.namespace().is_none()) {
            return self.attribute_by_rule(element, attribute, rule);
        }
        match (attribute.namespace(), attribute.name()) {
            (Some(XSI), _) => {
                self.attribute(element, attribute, VerdictKind::NoEffect, "schemas are not fetched");
            }
            (Some(_), _) => {
                let text = "no attribute with a prefix is known here; take it out";
                self.attribute(element, attribute, VerdictKind::Refused, text);
            }
            (None, "id" | "lazy-init" | "depends-on") => {
                let text = "other beans do not refer to this one: none is made";
                self.attribute(element, attribute, VerdictKind::NoEffect, text);
            }
            (None, _) => {
                let text = "this attribute is not known here; correct its name or take it out";
                self.attribute(element, attribute, VerdictKind::Refused, text);
            }
        }
    }

    fn attribute_by_rule(&mut self, element: Element<'_>, attribute: Attribute<'_, '_>, rule: Rule) {
        match rule {
            Rule::NoEffect(why) => self.attribute(element, attribute, VerdictKind::NoEffect, why),
            Rule::NotBuilt(why) => self.attribute(element, attribute, VerdictKind::NotBuilt, why),
            Rule::Refused(why) => self.attribute(element, attribute, VerdictKind::Refused, why),
            Rule::Only(ours, why) => match self.value(element, attribute) {
                Some(value) if value.trim().eq_ignore_ascii_case(ours) => {
                    self.attribute(element, attribute, VerdictKind::Supported, value);
                }
                Some(_) => self.attribute(element, attribute, VerdictKind::NotBuilt, why),
                None => {}
            },
        }
    }

    /// All attributes of an element from which none is read.
    pub fn attributes_by_table(&mut self, element: Element<'_>, table: Table) {
        for attribute in element.attributes() {
            self.attribute_by_table(element, attribute, table);
        }
    }

    /// An element that only holds others: verdicts on its attributes and on text in it.
    pub fn wrapper(&mut self, element: Element<'_>) {
        self.attributes_by_table(element, &[]);
        self.no_text(element);
        if element.attributes().len() > 0 && element.children().next().is_none() {
            self.element_by_rule(element, EMPTY);
        }
    }

    /// Refuses text where only elements belong; names an element that says nothing at all.
    pub fn no_text(&mut self, element: Element<'_>) {
        if element.attributes().len() == 0 && element.children().next().is_none() {
            self.element_by_rule(element, EMPTY);
        }
        if !element.text().is_empty() {
            let text = format!("text that means nothing here: '{}'", shown(element.text()));
            self.refused(element, text);
        }
    }

    /// The attribute's value with its placeholders replaced; `None`: it was refused.
    pub fn value(&mut self, element: Element<'_>, attribute: Attribute<'_, '_>) -> Option<String> {
        match self.properties.resolve(attribute.value()) {
            Ok(value) => Some(value),
            Err(error) => {
                self.attribute(element, attribute, VerdictKind::Refused, error.to_string());
                None
            }
        }
    }

    /// The text in an element with its placeholders replaced; `None`: it was refused.
    pub fn text_of(&mut self, element: Element<'_>) -> Option<String> {
        match self.properties.resolve(element.text()) {
            Ok(value) => Some(value),
            Err(error) => {
                self.refused(element, error.to_string());
                None
            }
        }
    }

    /// A setting: supported with its value as text, or refused with what `parse` says.
    pub fn setting<T, E: Display>(
        &mut self,
        element: Element<'_>,
        attribute: Attribute<'_, '_>,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.value(element, attribute)?;
        match parse(value.trim()) {
            Ok(parsed) => {
                self.attribute(element, attribute, VerdictKind::Supported, shown(&value));
                Some(parsed)
            }
            Err(error) => {
                self.attribute(element, attribute, VerdictKind::Refused, error.to_string());
                None
            }
        }
    }

    /// A setting that no verdict shows.
    pub fn secret(&mut self, element: Element<'_>, attribute: Attribute<'_, '_>) -> Option<Secret> {
        let value = self.value(element, attribute)?;
        let text = if value.is_empty() { "empty" } else { "set" };
        self.attribute(element, attribute, VerdictKind::Supported, text);
        Some(Secret::new(value))
    }
}

/// At most so much of a value as fits in a line, without control characters.
pub fn shown(value: &str) -> String {
    let end = value.char_indices().nth(SHOWN_CHARS_MAX).map(|(at, _)| at);
    let cut = end.and_then(|end| value.get(..end));
    let text: String = cut.unwrap_or(value).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if cut.is_some() { format!("{text}…") } else { text }
}
