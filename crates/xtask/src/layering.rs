//! Which crate may depend on which. A new edge is a design change: it is made here, in a commit of its own.
//!
//! Dependencies point one way: process → storage and machines → vocabulary. Proof (`testkit`, `sim`, `model`) sees the others and
//! is seen by nothing except as a dev-dependency; but `kahawai simulate` is in the binary.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::process::Command;

use serde_json::Value;

/// What a folder name lacks of a crate name.
const PREFIX: &str = "kahawai-";

/// Everything below the process, for those who may see it all.
const MACHINES: &[&str] = &[
    "broker",
    "config",
    "election",
    "env",
    "journal",
    "kahadb",
    "kdbr",
    "message",
    "replication",
    "selector",
    "shipping",
    "stomp",
    "store",
    "types",
    "wire",
];

/// Each crate with what it may depend on, without the prefix. Build-dependencies count like normal ones.
const ALLOWED: &[(&str, &[&[&str]])] = &[
    // vocabulary
    ("types", &[]),
    ("wire", &[]),
    ("message", &[&["types", "wire"]]),
    // pure machines and formats
    ("selector", &[]),
    ("kahadb", &[&["message", "types", "wire"]]),
    ("broker", &[&["message", "selector", "types"]]),
    ("stomp", &[&["message", "types"]]),
    ("kdbr", &[&["types", "wire"]]),
    ("election", &[&["types"]]),
    ("replication", &[&["kdbr", "types"]]),
    // storage
    ("env", &[&["types"]]),
    ("journal", &[&["env", "types", "wire"]]),
    ("store", &[&["env", "journal", "kahadb", "message", "types", "wire"]]),
    // log shipping: machines and storage together
    ("shipping", &[&["env", "journal", "kdbr", "replication", "store", "types"]]),
    // process
    ("config", &[&["types"]]),
    ("election-zookeeper", &[&["election", "types"]]),
    ("admin-api", &[&["types"]]),
    ("admin", &[&["admin-api", "types"]]),
    ("node", &[&["admin", "admin-api", "election-zookeeper"], MACHINES]),
    ("cli", &[&["admin", "admin-api", "election-zookeeper", "node", "sim"], MACHINES]),
    // proof
    ("testkit", &[&["env", "types"]]),
    ("sim", &[&["testkit"], MACHINES]),
    ("model", &[&["election", "env", "kdbr", "replication", "types"]]),
    ("xtask", &[]),
];

/// What dev-dependencies may name besides.
const PROOF: &[&str] = &["model", "sim", "testkit"];

/// Foreign crates that only these may use: sockets, threads and command lines belong to the process.
const KEPT_TO: &[(&str, &[&str])] = &[
    ("axum", &["admin"]),
    ("clap", &["cli", "xtask"]),
    ("redb", &["store"]),
    ("prost", &["kdbr"]),
    ("roxmltree", &["config"]),
    ("rustls-webpki", &["node"]),
    ("stateright", &["model"]),
    ("tokio", &["admin", "cli", "election-zookeeper", "node"]),
    ("tokio-rustls", &["admin", "cli", "node"]),
    ("zookeeper-client", &["election-zookeeper"]),
];

/// One line of `[dependencies]` or its siblings.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Edge {
    from: String,
    to: String,
    dev: bool,
}

/// What is wrong, and what to do.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Violation {
    /// A crate that the table does not know.
    Unknown(String),
    /// An edge that the table does not allow.
    Edge { from: String, to: String, dev: bool },
    /// A foreign crate outside its place.
    Foreign { from: String, to: String },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = "crates/xtask/src/layering.rs";
        match self {
            Self::Unknown(name) => write!(f, "crate {name} is not in the table: give it a line in {place}"),
            Self::Edge { from, to, dev } => {
                let kind = if *dev { "has the dev-dependency" } else { "depends on" };
                write!(f, "crate {from} {kind} {to}, which the table in {place} does not allow")
            }
            Self::Foreign { from, to } => {
                write!(f, "crate {from} depends on {to}, which {place} keeps to other crates")
            }
        }
    }
}

/// What was looked at, and what was found.
pub(crate) struct Report {
    pub(crate) crates: usize,
    pub(crate) edges: usize,
    pub(crate) violations: Vec<Violation>,
}

/// Checks the workspace that this program was started in.
pub(crate) fn check_workspace() -> Result<Report, String> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let metadata =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata: {error}"))?;
    let (names, edges) = read_metadata(&metadata).ok_or("cargo metadata has an unknown shape")?;
    Ok(Report { crates: names.len(), edges: edges.len(), violations: check(&names, &edges) })
}

/// Names without the prefix, and the edges between all of them and to foreign crates.
fn read_metadata(metadata: &Value) -> Option<(Vec<String>, Vec<Edge>)> {
    let short = |name: &str| name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    let (mut names, mut edges) = (Vec::new(), Vec::new());
    for package in metadata.get("packages")?.as_array()? {
        let from = short(package.get("name")?.as_str()?);
        for dependency in package.get("dependencies")?.as_array()? {
            let to = short(dependency.get("name")?.as_str()?);
            let dev = dependency.get("kind")?.as_str() == Some("dev");
            edges.push(Edge { from: from.clone(), to, dev });
        }
        names.push(from);
    }
    Some((names, edges))
}

fn check(names: &[String], edges: &[Edge]) -> Vec<Violation> {
    let table: BTreeMap<&str, &[&[&str]]> = ALLOWED.iter().copied().collect();
    let unknown = names.iter().filter(|name| !table.contains_key(name.as_str()));
    let mut violations: Vec<_> = unknown.map(|name| Violation::Unknown(name.clone())).collect();
    for Edge { from, to, dev } in edges {
        let Some(groups) = table.get(from.as_str()) else {
            continue;
        };
        if names.contains(to) {
            let to_test_with = *dev && PROOF.contains(&to.as_str());
            if !to_test_with && !groups.iter().any(|group| group.contains(&to.as_str())) {
                violations.push(Violation::Edge { from: from.clone(), to: to.clone(), dev: *dev });
            }
        } else if !dev
            && let Some((_, keepers)) = KEPT_TO.iter().find(|(foreign, _)| foreign == to)
            && !keepers.contains(&from.as_str())
        {
            violations.push(Violation::Foreign { from: from.clone(), to: to.clone() });
        }
    }
    violations.sort();
    violations.dedup();
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn edge(from: &str, to: &str, dev: bool) -> Edge {
        Edge { from: from.to_owned(), to: to.to_owned(), dev }
    }

    fn found(edges: &[Edge]) -> Vec<String> {
        let names: Vec<_> = ALLOWED.iter().map(|(name, _)| (*name).to_owned()).collect();
        check(&names, edges).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn allowed_edges_are_silent() {
        let allowed =
            [edge("store", "journal", false), edge("cli", "node", false), edge("node", "tokio", false)];
        assert_eq!(found(&allowed), [""; 0]);
    }

    #[test]
    fn an_edge_against_the_direction_is_named() {
        let lines = found(&[edge("journal", "store", false), edge("broker", "store", true)]);
        assert!(lines[0].starts_with("crate broker has the dev-dependency store"), "{lines:?}");
        assert!(lines[1].starts_with("crate journal depends on store"), "{lines:?}");
    }

    #[test]
    fn proof_is_for_tests_only() {
        assert_eq!(found(&[edge("journal", "testkit", true)]), [""; 0]);
        assert_eq!(found(&[edge("journal", "testkit", false)]).len(), 1);
    }

    #[test]
    fn protocols_know_neither_each_other_nor_the_broker() {
        assert_eq!(found(&[edge("stomp", "broker", false), edge("stomp", "store", false)]).len(), 2);
    }

    #[test]
    fn foreign_crates_stay_in_their_place() {
        assert_eq!(found(&[edge("broker", "tokio", false)]).len(), 1);
        assert_eq!(found(&[edge("broker", "tokio", true), edge("broker", "bytes", false)]), [""; 0]);
    }

    #[test]
    fn a_new_crate_has_to_be_entered() {
        let lines: Vec<_> = check(&["mystery".to_owned()], &[]).iter().map(ToString::to_string).collect();
        assert!(lines[0].starts_with("crate mystery is not in the table"), "{lines:?}");
    }

    /// Each crate stands below those that may use it, so no table entry can close a circle.
    #[test]
    fn the_table_has_no_circles() {
        let table: BTreeMap<&str, Vec<&str>> =
            ALLOWED.iter().map(|(name, groups)| (*name, groups.concat())).collect();
        let mut settled: Vec<&str> = Vec::new();
        while settled.len() < table.len() {
            let ready: Vec<_> = table
                .iter()
                .filter(|(name, below)| {
                    !settled.contains(*name) && below.iter().all(|one| settled.contains(one))
                })
                .map(|(name, _)| *name)
                .collect();
            assert!(!ready.is_empty(), "a circle among the crates besides {settled:?}");
            settled.extend(ready);
        }
    }

    #[test]
    fn metadata_is_read_as_cargo_writes_it() {
        let metadata = json!({ "packages": [
            { "name": "kahawai-stomp", "dependencies": [
                { "name": "kahawai-message", "kind": null },
                { "name": "proptest", "kind": "dev" },
                { "name": "cc", "kind": "build" },
            ] },
            { "name": "kahawai-message", "dependencies": [] },
        ] });
        let (names, edges) = read_metadata(&metadata).unwrap();
        assert_eq!(names, ["stomp", "message"]);
        let expected =
            [edge("stomp", "message", false), edge("stomp", "proptest", true), edge("stomp", "cc", false)];
        assert_eq!(edges, expected);
        assert!(read_metadata(&json!({ "packages": [{}] })).is_none());
    }
}
