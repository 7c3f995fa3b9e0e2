//! From elements to settings: each element and attribute is either understood or gets the verdict of a table.
//!
//! `beans` walks a file's top level, `replication` reads `kahadbReplicationBroker`, `broker` reads `broker` with the help of
//! `connectors`, `persistence`, `policy` and `usage`. `sink` collects verdicts and reads attributes, `rules` is what the tables
//! are made of.

mod beans;
mod broker;
mod connectors;
mod persistence;
mod policy;
mod replication;
mod rules;
mod sink;
mod usage;

use std::io;

use crate::error::{ConfigError, Refusals};
use crate::location;
use crate::page::Page;
use crate::properties::Properties;
use crate::settings::{NodeSettings, Settings};
use crate::verdict::VerdictKind;

use beans::Beans;
pub(crate) use replication::parse_node_id;

use broker::Role;
use sink::{Read, Sink};

/// Reads the configuration file at `location`, and those that it names, through `read`.
///
/// `location` is a path, `xbean:path` or `file:path`; `properties` is what `${…}` stands for. A file that another one names is
/// looked for beside that one, then in the working directory. `read` gets paths and returns whole files; what it reads should be
/// limited to a little more than [`FILE_BYTES_MAX`](crate::FILE_BYTES_MAX).
///
/// # Errors
/// All that is refused in the files, each with file, line and what to do; or what kept a file from being read.
pub fn load(
    location: &str,
    properties: &Properties,
    read: &mut dyn FnMut(&str) -> io::Result<String>,
) -> Result<Settings, ConfigError> {
    let paths = location::candidates(location, None).map_err(ConfigError::Location)?;
    let path = paths.first().cloned().unwrap_or_default();
    let text = read(&path).map_err(|source| ConfigError::Read { file: path.clone(), source })?;
    let page = Page::parse(&path, &text)?;
    let mut sink = Sink::new(properties.clone(), read);
    let mut settings = Settings { node: NodeSettings::bare(), ..Settings::default() };
    file(&page, &mut settings, &mut sink)?;
    settings.verdicts = sink.verdicts;
    // Property files are read before the rest. The sort keeps what stands in one line in order.
    settings.verdicts.sort_by_key(|verdict| (verdict.origin.file != path, verdict.origin.line));
    let refused = |verdict: &&crate::Verdict| verdict.kind == VerdictKind::Refused;
    let refusals: Vec<_> = settings.verdicts.iter().filter(refused).cloned().collect();
    if refusals.is_empty() { Ok(settings) } else { Err(ConfigError::Refused(Refusals(refusals))) }
}

/// The file that the user named: a replicated node, or a broker alone.
fn file(page: &Page<'_>, settings: &mut Settings, sink: &mut Sink<'_>) -> Result<(), ConfigError> {
    let beans = Beans::read(page, sink);
    let root = page.root();
    let Some(replicated) = beans.replicated else {
        match beans.broker {
            Some(broker) => broker::read(broker, Role::Alone, &mut settings.node, sink),
            None if sink.nothing_refused() => {
                sink.refused(root, "neither a <broker> nor a <kahadbReplicationBroker> is in this file");
            }
            None => {}
        }
        return Ok(());
    };
    let Some(replication) = replication::read(replicated, settings, sink) else {
        return Ok(());
    };
    if let Some(broker) = beans.broker {
        // One file for both.
        if replication.raw(replication::BROKER_URI).is_some() {
            sink.refused(
                broker,
                "brokerURI names another file; take either the attribute or this element out",
            );
        }
        broker::read(broker, Role::Replicated, &mut settings.node, sink);
        return Ok(());
    }
    let Some((name, paths)) = replication::broker_file(replication, sink) else {
        return Ok(());
    };
    let (path, text) = match sink.read_first(&paths) {
        Read::Done(path, text) => (path, text),
        Read::Failed(path, error) => {
            let text = format!("{name}: {path}: {error}");
            sink.refused_attribute(replication, replication::BROKER_URI, text);
            return Ok(());
        }
    };
    let page = Page::parse(&path, &text)?;
    let beans = Beans::read(&page, sink);
    if let Some(replicated) = beans.replicated {
        sink.refused(replicated, "brokerURI has to name a file with a <broker>, not another replicated node");
    }
    match beans.broker {
        Some(broker) => broker::read(broker, Role::Replicated, &mut settings.node, sink),
        None if beans.replicated.is_none() && sink.nothing_refused() => {
            sink.refused(page.root(), "no <broker> is in this file, which brokerURI names");
        }
        None => {}
    }
    Ok(())
}
