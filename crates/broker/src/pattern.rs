//! What a client may write for a destination: a name, a pattern, or a list of them.
//!
//! Names are paths whose segments are separated by `.`. A segment `*` matches any one segment, a last segment `>` matches
//! any number of further segments, none included: `A.>` matches `A` (ActiveMQ's `DestinationFilter`). A list is separated
//! by commas, and each item may have a scheme of its own: `A,topic://B`.

use kahawai_message::{Destination, Text};

/// Does the name contain a wildcard segment?
pub(crate) fn is_wildcard(destination: &Destination) -> bool {
    if destination.kind.is_temporary() {
        return false;
    }
    let name: &str = &destination.name;
    // Most names contain neither.
    if !name.contains(['*', '>']) {
        return false;
    }
    name.rsplit('.').next() == Some(">") || name.split('.').any(|segment| segment == "*")
}

/// Does the pattern (or plain name) match a concrete destination?
pub(crate) fn matches(pattern: &Destination, concrete: &Destination) -> bool {
    if pattern.kind != concrete.kind {
        return false;
    }
    if !is_wildcard(pattern) {
        return pattern.name == concrete.name;
    }
    let name: &str = &pattern.name;
    let mut head = name;
    while let Some(shorter) = head.strip_suffix(".>") {
        head = shorter;
    }
    if head == ">" {
        return true;
    }
    let descendants = head.len() < name.len();
    let mut wanted = head.split('.');
    let mut found = concrete.name.split('.');
    loop {
        match (wanted.next(), found.next()) {
            (Some(wanted), Some(found)) if wanted == "*" || wanted == found => {}
            (None, None) => return true,
            (None, Some(_)) => return descendants,
            _ => return false,
        }
    }
}

/// The literal beginning of a pattern: everything that it matches starts with it.
pub(crate) fn literal_prefix(pattern: &Destination) -> &str {
    let name: &str = &pattern.name;
    let end = name.find(['*', '>']).unwrap_or(name.len());
    // `A.>` also matches `A`.
    name[..end].strip_suffix('.').unwrap_or(&name[..end])
}

/// The items of a list; one for a plain name.
pub(crate) fn items(destination: &Destination) -> Vec<Destination> {
    if !destination.name.contains(',') {
        return vec![destination.clone()];
    }
    destination
        .name
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(|item| match item.contains("://") {
            true => Destination::from_qualified(item),
            false => Destination::new(destination.kind, Text::from(item)),
        })
        .collect()
}

/// Is it more than one destination by its syntax?
pub(crate) fn is_list(destination: &Destination) -> bool {
    destination.name.contains(',')
}

/// Can a message be kept under this name?
pub(crate) fn is_valid_name(destination: &Destination) -> bool {
    !destination.name.is_empty()
        && destination.name.len() <= NAME_BYTES_MAX
        && !destination.name.chars().any(char::is_control)
}

/// Longest name of a destination. KahaDB's own limit is 65535 bytes of modified UTF-8.
pub(crate) const NAME_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_activemq() {
        for (pattern, name, expected) in [
            ("A.B", "A.B", true),
            ("A.B", "A.C", false),
            ("A.*", "A.B", true),
            ("A.*", "A", false),
            ("A.*", "A.B.C", false),
            ("*.B", "A.B", true),
            ("A.*.C", "A.B.C", true),
            ("A.>", "A", true),
            ("A.>", "A.B.C", true),
            ("A.>", "AB.C", false),
            ("A.>.>", "A.B", true),
            ("A.*.>", "A", false),
            ("A.*.>", "A.B", true),
            ("A.*.>", "A.B.C.D", true),
            (">", "anything.at.all", true),
            ("*", "one", true),
            ("*", "one.two", false),
            ("A.>.C", "A.B.C", false),
            ("A.B*", "A.BC", false),
            ("A*", "A*", true),
        ] {
            let matched = matches(&Destination::queue(pattern), &Destination::queue(name));
            assert_eq!(matched, expected, "{pattern} {name}");
            assert!(!matches(&Destination::queue(pattern), &Destination::topic(name)));
            if matched {
                assert!(name.starts_with(literal_prefix(&Destination::queue(pattern))), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn a_list_may_mix_queues_and_topics() {
        let list = items(&Destination::queue("A, topic://B,,queue://C.>"));
        assert_eq!(list, [Destination::queue("A"), Destination::topic("B"), Destination::queue("C.>")]);
        assert_eq!(items(&Destination::topic("A,B")), [Destination::topic("A"), Destination::topic("B")]);
    }
}
