use std::collections::BTreeMap;

use kahawai_admin_api::Suspension;

use super::*;
use crate::testing::{primary, progress, replica, single};

/// What a page says: each series with its value.
type Series = BTreeMap<String, f64>;

/// Reads a page as Prometheus does, but strictly: every family in one piece with its help and type before it, no series twice,
/// histograms that add up.
fn read(page: &str) -> Result<Series, String> {
    let mut series = Series::new();
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped: Option<&str> = None;
    let mut family = "";
    if !page.ends_with('\n') {
        return Err("no line feed at the end".to_owned());
    }
    for line in page.lines() {
        let wrong = |what: &str| Err(format!("{what}: {line}"));
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').ok_or_else(|| format!("no text: {line}"))?;
            if kinds.contains_key(name) || helped.is_some() || text.is_empty() {
                return wrong("help twice, or none");
            }
            helped = Some(name);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').ok_or_else(|| format!("no type: {line}"))?;
            if helped.take() != Some(name) || !["counter", "gauge", "histogram"].contains(&kind) {
                return wrong("type without help, or none that exists");
            }
            kinds.insert(name, kind);
            family = name;
        } else {
            let (name, labels, value) = sample(line)?;
            let suffix = name.strip_prefix(family).ok_or_else(|| format!("outside of {family}: {line}"))?;
            let suffixes: &[&str] =
                if kinds.get(family) == Some(&"histogram") { &["_bucket", "_sum", "_count"] } else { &[""] };
            if helped.is_some()
                || !suffixes.contains(&suffix)
                || (suffix == "_bucket") != labels.starts_with("{le=")
            {
                return wrong("does not belong to its family");
            }
            if kinds.get(family) != Some(&"gauge") && !(value >= 0.0 && value.is_finite()) {
                return wrong("no count");
            }
            if series.insert(format!("{name}{labels}"), value).is_some() {
                return wrong("twice");
            }
        }
    }
    let histograms = kinds.iter().filter(|(_, kind)| **kind == "histogram");
    for (name, _) in histograms {
        let buckets = page.lines().filter_map(|line| line.strip_prefix(&format!("{name}_bucket{{le=\"")));
        let mut before = (f64::NEG_INFINITY, 0.0);
        for bucket in buckets {
            let (bound, count) = bucket.split_once("\"} ").ok_or("a bucket with other labels")?;
            let this = (number(bound)?, number(count)?);
            if this.0 <= before.0 || this.1 < before.1 {
                return Err(format!("{name} falls at {bound}"));
            }
            before = this;
        }
        if before.0 != f64::INFINITY || series.get(&format!("{name}_count")) != Some(&before.1) {
            return Err(format!("{name} does not add up"));
        }
        series.get(&format!("{name}_sum")).ok_or("no sum")?;
    }
    Ok(series)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn number(text: &str) -> Result<f64, String> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        _ if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
            text.parse().map_err(|_| format!("no number: {text}"))
        }
        _ => Err(format!("no number: {text}")),
    }
}

/// Name, labels and value of a line.
fn sample(line: &str) -> Result<(&str, &str, f64), String> {
    let end = line.find(['{', ' ']).ok_or_else(|| format!("no value: {line}"))?;
    let (name, rest) = line.split_at(end);
    let labels = if rest.starts_with('{') { &rest[..labels_end(rest)?] } else { "" };
    let value = rest[labels.len()..].strip_prefix(' ').ok_or_else(|| format!("no blank: {line}"))?;
    if !is_name(name) {
        return Err(format!("no name: {line}"));
    }
    Ok((name, labels, number(value)?))
}

/// Where `{name="value",...}` ends.
fn labels_end(text: &str) -> Result<usize, String> {
    let mut at = 1;
    loop {
        let wrong = || format!("labels broken at {at}: {text}");
        let equals = at + text[at..].find("=\"").ok_or_else(wrong)?;
        if !is_name(&text[at..equals]) {
            return Err(wrong());
        }
        let mut chars = text[equals + 2..].char_indices();
        let closing = loop {
            match chars.next().ok_or_else(wrong)? {
                (_, '\\') if matches!(chars.next(), Some((_, '\\' | '"' | 'n'))) => {}
                (_, '\\' | '\n') => return Err(wrong()),
                (index, '"') => break equals + 2 + index,
                _ => {}
            }
        };
        match text.as_bytes().get(closing + 1) {
            Some(b',') => at = closing + 2,
            Some(b'}') => return Ok(closing + 2),
            _ => return Err(wrong()),
        }
    }
}

fn check(status: &Status, expected: &[(&str, f64)]) {
    let page = metrics(status);
    let series = read(&page).unwrap_or_else(|error| panic!("{error}\n{page}"));
    for (name, value) in expected {
        assert_eq!(series.get(*name), Some(value), "{name} in\n{page}");
    }
}

#[test]
fn the_page_of_a_primary_is_as_it_was() {
    let mut status = primary();
    status.replicas[1].synchronisation = Some(progress());
    status.suspended =
        Some(Suspension { since_ms: 90_500, reason: "1 of 2 replicas \"in sync\"".to_owned() });
    check(&status, &[]);
    let (page, golden) = (metrics(&status), include_str!("primary.txt"));
    let different = page.lines().zip(golden.lines()).find(|(now, then)| now != then);
    assert!(page == golden, "first difference: {different:?}\n{page}");
}

#[test]
fn pages_of_all_roles_are_well_formed() {
    check(&primary(), &[("kahawai_role{role=\"primary\"}", 1.0), ("kahawai_role{role=\"replica\"}", 0.0)]);
    check(&replica(), &[("kahawai_role{role=\"replica\"}", 1.0), ("kahawai_accepting_clients", 0.0)]);
    check(&single(), &[("kahawai_suspended", 0.0), ("kahawai_in_sync_members", 0.0)]);
    check(&Status::default(), &[("kahawai_journal_flush_seconds_count", 0.0)]);
}

#[test]
fn what_activemq_has_keeps_its_name() {
    check(
        &primary(),
        &[
            ("activemq_connections", 5.0),
            ("activemq_enqueue_total", 100.0),
            ("activemq_dequeue_total", 60.0),
            ("activemq_message_total", 40.0),
            ("activemq_memory_usage_ratio", 0.25),
            ("activemq_queue_queue_size{destination=\"orders\"}", 40.0),
            ("activemq_queue_enqueue_count{destination=\"orders\"}", 90.0),
            ("activemq_topic_enqueue_count{destination=\"say \\\"hi\\\\\\\"\\n\"}", 10.0),
        ],
    );
}

#[test]
fn names_from_outside_cannot_break_the_page() {
    for name in ["\"", "\\", "\n", "\\\"\n} 1\nevil 1", "} 5", "\u{e9}\u{1f600}", "\r"] {
        let mut status = primary();
        status.destinations[0].name = name.to_owned();
        status.replicas[0].state = name.to_owned();
        status.suspended = Some(Suspension { since_ms: 0, reason: name.to_owned() });
        let page = metrics(&status);
        // `lines` would take a bare carriage return for part of a line end.
        let series = read(&page.replace('\r', " ")).unwrap_or_else(|error| panic!("{error}\n{page}"));
        assert!(!series.contains_key("evil"), "{page}");
    }
}

#[test]
fn positions_are_numbers_that_grow_with_the_journal() {
    let position = f64::from(7) * 4_294_967_296.0;
    check(
        &primary(),
        &[
            ("kahawai_commit_position", position + 900.0),
            ("kahawai_end_position", position + 1000.0),
            ("kahawai_replica_lag_bytes{replica=\"b\",store=\"00000000000000000000000000000062\"}", 100.0),
            ("kahawai_replica_lag_seconds{replica=\"b\",store=\"00000000000000000000000000000062\"}", 0.25),
        ],
    );
}

#[test]
fn the_reader_of_these_tests_is_strict() {
    let head = "# HELP a b\n# TYPE a gauge\n";
    assert_eq!(read(&format!("{head}a 1\n")).unwrap().len(), 1);
    for wrong in [
        "a 1",
        "a 1\na 2\n",
        "b 1\n",
        "a one\n",
        "a{x=\"1} 1\n",
        "a{x=\"\\t\"} 1\n",
        "a{1=\"\"} 1\n",
        "a  1\n",
    ] {
        assert!(read(&format!("{head}{wrong}")).is_err(), "{wrong:?}");
    }
    assert!(read("a 1\n").is_err(), "neither help nor type");
    assert!(read(&format!("{head}a 1\n{head}a{{x=\"1\"}} 1\n")).is_err(), "a family in two pieces");
    let histogram = "# HELP a b\n# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} ";
    assert!(read(&format!("{histogram}2\na_sum 1\na_count 2\n")).is_ok());
    assert!(read(&format!("{histogram}1\na_sum 1\na_count 1\n")).is_err());
    assert!(read(&format!("{histogram}3\na_sum 1\na_count 2\n")).is_err());
}
