//! Destinations as STOMP clients write them.
//!
//! ```text
//! /queue/NAME /topic/NAME          lasting
//! /temp-queue/NAME /temp-topic/NAME   temporary, NAME is known on this connection only
//! /remote-temp-queue/NAME ...      somebody's temporary one by its real name, for replies
//! NAME                             without a known prefix: a queue, as in ActiveMQ
//! A,B                              a list: what is sent goes to all, a consumer takes from all
//! ```

use bytes::{BufMut, BytesMut};
use kahawai_message::{Destination, DestinationKind, Text};

use crate::Version;
use crate::escape::put_value;

/// Why a text names no destination.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum DestinationError {
    #[error("destination '{0}' has no name")]
    Empty(String),
    #[error("destination '{0}' begins with none of /queue/ /topic/ /temp-queue/ /temp-topic/")]
    Prefix(String),
    #[error("more than {0} temporary destinations on one connection")]
    TooManyTemporary(usize),
}

/// The temporary destinations of a connection: what the client calls them, and what they are.
#[derive(Debug)]
pub(crate) struct Temporaries {
    connection_id: Text,
    known: Vec<(Box<str>, Destination)>,
    known_max: usize,
}

impl Temporaries {
    pub(crate) fn new(connection_id: Text, known_max: usize) -> Self {
        Self { connection_id, known: Vec::new(), known_max }
    }

    fn resolve(&mut self, kind: DestinationKind, text: &str) -> Result<Destination, DestinationError> {
        if let Some((_, destination)) = self.known.iter().find(|(known, _)| **known == *text) {
            return Ok(destination.clone());
        }
        if self.known.len() >= self.known_max {
            return Err(DestinationError::TooManyTemporary(self.known_max));
        }
        // ActiveMQ's form: the name tells who owns it.
        let name = format!("{}:{}", self.connection_id, self.known.len() + 1);
        let destination = Destination::new(kind, name);
        self.known.push((text.into(), destination.clone()));
        Ok(destination)
    }

    fn client_name(&self, destination: &Destination) -> Option<&str> {
        self.known.iter().find(|(_, known)| known == destination).map(|(text, _)| &**text)
    }
}

/// What to make of a name without a known prefix.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unprefixed {
    Queue,
    Refused,
}

const PREFIXES: [(&str, DestinationKind); 4] = [
    ("/queue/", DestinationKind::Queue),
    ("/topic/", DestinationKind::Topic),
    ("/remote-temp-queue/", DestinationKind::TempQueue),
    ("/remote-temp-topic/", DestinationKind::TempTopic),
];
const OWN_TEMPORARY: [(&str, DestinationKind); 2] =
    [("/temp-queue/", DestinationKind::TempQueue), ("/temp-topic/", DestinationKind::TempTopic)];

/// Reads what a client calls a destination.
///
/// A list becomes one destination of the first one's kind, the others' names with scheme where their kind is another:
/// `/queue/a,/topic/b` is the queue `a,topic://b`.
pub(crate) fn read_destination(
    text: &str,
    unprefixed: Unprefixed,
    temporaries: &mut Temporaries,
) -> Result<Destination, DestinationError> {
    let text = text.trim();
    if !text.contains(',') {
        return read_one(text, unprefixed, temporaries);
    }
    let mut list: Option<(DestinationKind, String)> = None;
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let one = read_one(part, unprefixed, temporaries)?;
        match &mut list {
            None => list = Some((one.kind, String::from(&*one.name))),
            Some((kind, names)) => {
                names.push(',');
                if *kind == one.kind {
                    names.push_str(&one.name);
                } else {
                    names.push_str(&one.to_string());
                }
            }
        }
    }
    list.map(|(kind, names)| Destination::new(kind, names)).ok_or(DestinationError::Empty(text.to_owned()))
}

fn read_one(
    text: &str,
    unprefixed: Unprefixed,
    temporaries: &mut Temporaries,
) -> Result<Destination, DestinationError> {
    for (prefix, kind) in OWN_TEMPORARY {
        if text.starts_with(prefix) {
            return temporaries.resolve(kind, text);
        }
    }
    let prefixed = PREFIXES.iter().find_map(|(prefix, kind)| Some((*kind, text.strip_prefix(prefix)?)));
    let (kind, name) = match prefixed {
        Some(found) => found,
        None if unprefixed == Unprefixed::Queue => (DestinationKind::Queue, text),
        None => return Err(DestinationError::Prefix(text.to_owned())),
    };
    // What follows a question mark are options for JMS clients, not part of the name.
    let name = name.split_once('?').map_or(name, |(name, _)| name).trim();
    if name.is_empty() {
        return Err(DestinationError::Empty(text.to_owned()));
    }
    Ok(Destination::new(kind, name))
}

/// Appends what this client calls `destination`.
pub(crate) fn put_destination(
    out: &mut BytesMut,
    destination: &Destination,
    temporaries: &Temporaries,
    version: Version,
) {
    if destination.kind.is_temporary()
        && let Some(name) = temporaries.client_name(destination)
    {
        return put_value(out, name.as_bytes(), version);
    }
    let prefix = PREFIXES.iter().find(|(_, kind)| *kind == destination.kind).map_or("", |(prefix, _)| prefix);
    out.put_slice(prefix.as_bytes());
    put_value(out, destination.name.as_bytes(), version);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str, back: &str) {
        let mut temporaries = Temporaries::new("ID:c-1".into(), 1);
        let _ = read_destination("/temp-queue/replies", Unprefixed::Queue, &mut temporaries);
        let (qualified, written) = match read_destination(text, Unprefixed::Queue, &mut temporaries) {
            Err(error) => (error.to_string(), String::new()),
            Ok(destination) => {
                let mut out = BytesMut::new();
                put_destination(&mut out, &destination, &temporaries, Version::V1_0);
                (destination.to_string(), String::from_utf8_lossy(&out).into_owned())
            }
        };
        assert_eq!((qualified.as_str(), written.as_str()), (expected, back), "{text}");
    }

    #[test]
    fn names_are_read_and_written_with_their_prefix() {
        check("/queue/a", "queue://a", "/queue/a");
        check(" /topic/a.> ", "topic://a.>", "/topic/a.>");
        check("/temp-queue/replies", "temp-queue://ID:c-1:1", "/temp-queue/replies");
        check("/remote-temp-queue/ID:c-1:1", "temp-queue://ID:c-1:1", "/temp-queue/replies");
        check("/remote-temp-topic/ID:x:7", "temp-topic://ID:x:7", "/remote-temp-topic/ID:x:7");
        check("/queue/a?consumer.priority=3", "queue://a", "/queue/a");
    }

    #[test]
    fn a_name_without_prefix_is_a_queue() {
        check("a", "queue://a", "/queue/a");
        check("/a/b", "queue:///a/b", "/queue//a/b");
        let refused =
            read_destination("a", Unprefixed::Refused, &mut Temporaries::new(Text::default(), 1)).map(|_| ());
        assert_eq!(refused, Err(DestinationError::Prefix("a".into())));
    }

    #[test]
    fn lists_keep_the_kind_of_each() {
        check("/queue/a,/queue/b", "queue://a,b", "/queue/a,b");
        check("/queue/a, /topic/b", "queue://a,topic://b", "/queue/a,topic://b");
        check("/topic/a,b", "topic://a,queue://b", "/topic/a,queue://b");
    }

    #[test]
    fn what_has_no_name_or_exceeds_a_limit_is_refused() {
        check("/queue/", "destination '/queue/' has no name", "");
        check(" , ,", "destination ', ,' has no name", "");
        check("", "destination '' has no name", "");
        check("/temp-topic/another", "more than 1 temporary destinations on one connection", "");
    }
}
