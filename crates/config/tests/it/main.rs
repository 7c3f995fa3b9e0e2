//! Whole files: ActiveMQ's as they are, our own, and what must be refused.

mod flags;
mod original;
mod plain;
mod refused;
mod robust;

use std::io;

use kahawai_config::{ConfigError, Properties, Settings, Verdict, VerdictKind, load};

/// Files that are there, with their paths.
type Files<'a> = &'a [(&'a str, &'a str)];

/// Loads the first of `files`; its directories are known, and `variables` are in the environment.
fn load_with(files: Files<'_>, variables: &[(&str, &str)]) -> Result<Settings, ConfigError> {
    let path = files.first().map_or("conf/none.xml", |(path, _)| path);
    let variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    load(path, &Properties::for_file(path, variables), &mut |path| {
        let found = files.iter().find(|(name, _)| *name == path);
        found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
    })
}

fn load_files(files: Files<'_>) -> Result<Settings, ConfigError> {
    load_with(files, &[])
}

/// The verdicts on `element` and `attribute` (`""` = the element itself).
fn verdicts<'s>(settings: &'s Settings, element: &str, attribute: &str) -> Vec<&'s Verdict> {
    let attribute = Some(attribute).filter(|attribute| !attribute.is_empty());
    let on_it = |verdict: &&Verdict| verdict.element == element && verdict.attribute.as_deref() == attribute;
    settings.verdicts.iter().filter(on_it).collect()
}

#[track_caller]
fn check_verdict(settings: &Settings, element: &str, attribute: &str, line: u32, kind: VerdictKind) {
    let found: Vec<_> =
        verdicts(settings, element, attribute).iter().map(|v| (v.origin.line, v.kind)).collect();
    assert!(found.contains(&(line, kind)), "<{element} {attribute}> in line {line}: {found:?}");
}

/// Every element and every attribute has a verdict: its own, or one on an element around it.
#[track_caller]
fn check_complete(settings: &Settings, file: &str, text: &str) {
    let document = roxmltree::Document::parse(text).expect("it was loaded");
    let line = |at: usize| document.text_pos_at(at).row;
    let judged = |line: u32, element: &str, attribute: Option<&str>| {
        settings.verdicts.iter().any(|verdict| {
            (verdict.origin.file.as_str(), verdict.origin.line) == (file, line)
                && verdict.element == element
                && verdict.attribute.as_deref() == attribute
        })
    };
    for element in document.descendants().filter(roxmltree::Node::is_element) {
        let around = element.ancestors().any(|outer| {
            outer.is_element() && judged(line(outer.range().start), outer.tag_name().name(), None)
        });
        // What only holds others is judged by them.
        let wrapper = element.children().any(|child| child.is_element());
        assert!(around || wrapper || element.attributes().len() > 0, "{element:?} has no verdict");
        for attribute in element.attributes() {
            let own =
                judged(line(attribute.range().start), element.tag_name().name(), Some(attribute.name()));
            // An element that is read has a verdict of its own besides those of its attributes.
            let read = ["broker", "kahadbReplicationBroker"].contains(&element.tag_name().name());
            assert!(own || (around && !read), "{attribute:?} of {element:?} has no verdict");
        }
    }
}
