//! `kahawai cluster restore-record`: puts back a cluster record that the election service has lost.
//!
//! Each node keeps the newest record that it has seen. A record is written by a member of the in-sync set of the one before it,
//! and kept by its writer: if all members of the newest set that is known have been heard, nothing newer was decided. Two
//! exceptions are why the other nodes that the record names have to be heard, too: a writer that died before it had its answer,
//! while somebody whom that record let in went on from it; and a node that an operator forced to lead.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::{Context, anyhow, bail};
use kahawai_admin_api::{ClusterCommand, CommandResult, Member, RecordText, StoredRecord};
use kahawai_election::{Age, ClusterRecord};
use kahawai_types::{ClusterId, NodeId, ReplicaId};
use serde_json::{Value, json};

use super::http::{self, Address};
use super::report::{store, table};
use super::{
    AdminArguments, OK, RestoreArguments, STATUS_TIMEOUT, answer, order, printable, put_json, refusal,
    understood,
};

/// What is wrong with the record itself, or goes on after its answer: nobody else is told to do it then.
const FINAL: [u16; 2] = [400, 504];

/// What a node knows.
struct Report {
    stored: StoredRecord,
    me: ReplicaId,
    record: Option<ClusterRecord>,
}

/// A node, and what it has said; or why it has not.
struct Asked {
    from: Address,
    told: Result<Report, String>,
}

/// Somebody whom the newest record names, and who has not said what it knows.
struct Unheard {
    node: NodeId,
    is_in_sync: bool,
    /// The operator says that it is gone for good.
    is_gone: bool,
}

/// What there is to put back.
struct Plan<'a> {
    record: &'a ClusterRecord,
    text: &'a RecordText,
    /// Who has it.
    known_to: Vec<&'a NodeId>,
    /// The highest epoch that any node has promised.
    promised: u64,
    unheard: Vec<Unheard>,
    leads: Option<&'a NodeId>,
    is_lost: bool,
    /// Who may write it, the one with the longest journal first.
    writers: Vec<(&'a Address, &'a NodeId)>,
}

pub(super) async fn run(
    admin: &AdminArguments,
    arguments: &RestoreArguments,
    out: &mut String,
) -> anyhow::Result<()> {
    let mut asked = ask_all(&arguments.from).await;
    let misses_it = |misses| {
        let told = asked.iter().filter_map(|one| one.told.as_ref().ok());
        told.map(|report| report.stored.lost.is_some()).any(|lost| lost == misses)
    };
    if misses_it(true) && misses_it(false) {
        // Who did not miss the record yet may have written one after it was asked. What it says now is from after the loss.
        asked = ask_all(&arguments.from).await;
    }
    let plan = Plan::of(&asked, &arguments.without);
    if !admin.json {
        out.push_str(&shown(&asked, plan.as_ref().ok()));
    }
    let done = async {
        let plan = plan.as_ref().map_err(|problem| anyhow!("nothing was changed: {problem}"))?;
        let command = plan.agreed(arguments.cluster_id.as_deref())?;
        plan.write(admin, &command).await
    };
    let done = done.await;
    match &done {
        _ if admin.json => put_json(&as_json(&asked, plan.as_ref().ok(), done.as_ref().ok()), out),
        Ok(result) => _ = writeln!(out, "\n{}", result.text),
        Err(_) => {}
    }
    done.map(|_| ())
}

async fn ask_all(from: &[Address]) -> Vec<Asked> {
    let mut all = Vec::new();
    for address in from {
        let told = ask(address).await.map_err(|error| format!("{error:#}"));
        all.push(Asked { from: address.clone(), told });
    }
    all
}

async fn ask(from: &Address) -> anyhow::Result<Report> {
    let response = http::get(from, "/cluster/record", STATUS_TIMEOUT).await?;
    let answer = answer(from, &response)?;
    if answer.status != OK {
        bail!("{}", refusal(from, answer)?);
    }
    // As it came: the record is a text of several lines, and goes back as it is.
    let unreadable = || format!("the answer of {from} is unreadable");
    let stored: StoredRecord = serde_json::from_value(answer.value).with_context(unreadable)?;
    let store = stored.store_id.parse().ok().context("it has no store's id").with_context(unreadable)?;
    let me = ReplicaId { node: NodeId(stored.node_id.clone()), store };
    let record = stored.record.as_ref().map(|text| ClusterRecord::decode(text.0.as_bytes()));
    let record = record.transpose().with_context(|| format!("the record that {from} has stored"))?;
    Ok(Report { stored, me, record })
}

impl<'a> Plan<'a> {
    fn of(asked: &'a [Asked], without: &[String]) -> Result<Self, String> {
        let reports = || asked.iter().filter_map(|one| Some((&one.from, one.told.as_ref().ok()?)));
        let clusters: BTreeSet<String> = reports()
            .flat_map(|(_, report)| {
                let of_record = report.record.as_ref().map(|record| record.cluster_id.to_string());
                report.stored.cluster_id.clone().into_iter().chain(of_record)
            })
            .collect();
        if clusters.len() > 1 {
            let clusters: Vec<String> = clusters.into_iter().collect();
            return Err(format!("these nodes are of several clusters: {}", clusters.join(", ")));
        }
        let stored = || {
            reports().filter_map(|(_, report)| {
                Some((&report.me.node, report.record.as_ref()?, report.stored.record.as_ref()?))
            })
        };
        let Some((_, record, text)) = stored().max_by_key(|(_, record, _)| record.age()) else {
            return Err("none of these nodes has a cluster record".to_owned());
        };
        let known_to = stored().filter(|(_, other, _)| other.age() == record.age());
        if let Some((node, ..)) = known_to.clone().find(|(_, other, _)| *other != record) {
            return Err(format!(
                "{node} has another record at {} than the others: which is right?",
                record.age()
            ));
        }
        let heard = || reports().filter(|(_, report)| report.record.is_some()).map(|(_, report)| &report.me);
        let is_gone = |node: &NodeId| without.contains(&node.0);
        let missing = record.in_sync.iter().filter(|member| !heard().any(|me| me == *member));
        let mut unheard: Vec<Unheard> = missing
            .map(|member| Unheard {
                node: member.node.clone(),
                is_in_sync: true,
                is_gone: is_gone(&member.node),
            })
            .collect();
        for node in record.members.keys() {
            let is_known =
                heard().any(|me| me.node == *node) || unheard.iter().any(|other| other.node == *node);
            if !is_known {
                unheard.push(Unheard { node: node.clone(), is_in_sync: false, is_gone: is_gone(node) });
            }
        }
        let has_lost = |report: &Report| report.stored.lost.is_some();
        let mut writers: Vec<_> =
            reports().filter(|(_, report)| has_lost(report) && record.in_sync.contains(&report.me)).collect();
        writers.sort_by_key(|(_, report)| std::cmp::Reverse((report.stored.last_epoch, report.stored.end)));
        Ok(Self {
            record,
            text,
            known_to: known_to.map(|(node, ..)| node).collect(),
            promised: reports().map(|(_, report)| report.stored.promised_epoch).max().unwrap_or(0),
            unheard,
            leads: reports().find(|(_, report)| report.stored.leads).map(|(_, report)| &report.me.node),
            is_lost: reports().any(|(_, report)| has_lost(report)),
            writers: writers.into_iter().map(|(from, report)| (from, &report.me.node)).collect(),
        })
    }

    /// The command, if nothing is in its way and whoever gave it has said all that it takes.
    fn agreed(&self, cluster_id: Option<&str>) -> anyhow::Result<ClusterCommand> {
        let ours: ClusterId = self.record.cluster_id;
        if let Some(node) = self.leads {
            let node = printable(&node.0);
            bail!(
                "nothing was changed: node {node} leads, so there is a record that it goes by. If that is an old one, stop {node} \
                 and go on --without {node}: what it has confirmed since is lost then"
            );
        }
        if !self.is_lost {
            bail!(
                "nothing was changed: none of these nodes misses the record. If none is elected, `kahawai cluster status` says what \
                 they wait for"
            );
        }
        let silent: Vec<&Unheard> = self.unheard.iter().filter(|other| !other.is_gone).collect();
        if !silent.is_empty() {
            let names = names(silent.iter().map(|other| &other.node));
            bail!(
                "nothing was changed: what {names} knew is not known. Start those nodes, and name the admin API of each with --from; \
                 only those that are gone for good, with their disks, --without NODE"
            );
        }
        if self.writers.is_empty() {
            bail!(
                "nothing was changed: none of the nodes that are in sync by this record, and may put it back, is there and misses it"
            );
        }
        let Some(cluster_id) = cluster_id else {
            bail!("nothing was changed. To put this record back, say so with --cluster-id {ours}");
        };
        if cluster_id.parse::<ClusterId>().ok() != Some(ours) {
            bail!("nothing was changed: this is the record of cluster {ours}, not of {cluster_id}");
        }
        Ok(ClusterCommand::RestoreRecord {
            cluster_id: ours.to_string(),
            record: self.text.clone(),
            promised_epoch: self.promised,
        })
    }

    /// Tells one after the other, until one has done it. Whatever comes of an attempt, the next one does no harm: what is put back
    /// is put in the place of what a node has seen to be lost, and of nothing else.
    async fn write(&self, admin: &AdminArguments, command: &ClusterCommand) -> anyhow::Result<CommandResult> {
        let mut problems = Vec::new();
        for (from, node) in &self.writers {
            let node = printable(&node.0);
            let answer = match order(admin, from, command).await {
                Ok(answer) => answer,
                Err(error) => {
                    problems.push(format!("{node}: {error:#}"));
                    continue;
                }
            };
            let status = answer.status;
            if status == OK {
                let CommandResult { ok, text } = understood(from, answer, serde_json::from_value)?;
                return Ok(CommandResult { ok, text: format!("{node}: {text}") });
            }
            problems.push(format!("{node}: {}", refusal(from, answer)?));
            if FINAL.contains(&status) {
                break;
            }
        }
        bail!("the record is not known to be restored. {}", problems.join(". "))
    }
}

fn names<'a>(nodes: impl IntoIterator<Item = &'a NodeId>) -> String {
    let names: Vec<String> = nodes.into_iter().map(|node| printable(&node.0)).collect();
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

fn in_sync(record: &ClusterRecord) -> String {
    names(record.in_sync.iter().map(|member| &member.node))
}

/// What everybody knows, and what would be done.
fn shown(asked: &[Asked], plan: Option<&Plan>) -> String {
    let head = ["asked", "node", "store", "record", "in sync", "promised", "journal", "now"];
    let mut rows = vec![head.map(str::to_owned)];
    let mut silent = String::new();
    for Asked { from, told } in asked {
        let report = match told {
            Ok(report) => report,
            Err(problem) => {
                // Writing to a string cannot fail, here and below.
                _ = writeln!(silent, "\n! {from} does not say what it knows\n  {}", printable(problem));
                continue;
            }
        };
        let stored = &report.stored;
        let unknown = || "-".to_owned();
        rows.push([
            from.to_string(),
            printable(&stored.node_id),
            store(&printable(&stored.store_id)),
            report.record.as_ref().map_or_else(|| "none".to_owned(), |record| age(record.age())),
            report.record.as_ref().map_or_else(unknown, in_sync),
            format!("epoch {}", stored.promised_epoch),
            match (stored.last_epoch, stored.end) {
                (Some(epoch), Some(end)) => format!("epoch {epoch}, to {end}"),
                _ => unknown(),
            },
            match (stored.leads, &stored.lost) {
                (true, _) => "leads".to_owned(),
                (false, Some(why)) => printable(why),
                (false, None) => "misses nothing".to_owned(),
            },
        ]);
    }
    let mut out = table(&rows);
    if let Some(plan) = plan {
        let (age, known_to) = (age(plan.record.age()), names(plan.known_to.iter().copied()));
        _ = write!(
            out,
            "\nThe newest record is {age}, known to {known_to}; in sync by it: {}.",
            in_sync(plan.record)
        );
        if let Some((_, node)) = plan.writers.first() {
            let epoch = plan.promised.max(plan.record.epoch.0);
            _ = write!(out, "\nNode {} would put it back, under an epoch above {epoch}.", printable(&node.0));
        }
        out.push('\n');
    }
    out.push_str(&silent);
    for Unheard { node, is_in_sync, is_gone } in plan.iter().flat_map(|plan| &plan.unheard) {
        let node = printable(&node.0);
        let place = if *is_in_sync { "in the in-sync set" } else { "a member" };
        let advice = if *is_gone {
            "it is said to be gone for good: if it knew a newer record, confirmed messages may be lost"
        } else {
            "start it, and name its admin API with --from"
        };
        _ = writeln!(out, "\n! {node} is {place}, and what it knew is not known\n  {advice}");
    }
    out
}

/// A generation above 0 is rare, and says that an operator has forced a node.
fn age(age: Age) -> String {
    let generation = match age.unclean_generation {
        0 => String::new(),
        generation => format!(", forced {generation} times"),
    };
    format!("version {} of epoch {}{generation}", age.version, age.epoch)
}

fn as_json(asked: &[Asked], plan: Option<&Plan>, done: Option<&CommandResult>) -> Value {
    let asked: Vec<Value> = asked
        .iter()
        .map(|Asked { from, told }| match told {
            Ok(report) => json!({ "from": from.to_string(), "stored": report.stored }),
            Err(problem) => json!({ "from": from.to_string(), "error": problem }),
        })
        .collect();
    let newest = plan.map(|plan| {
        let record = plan.record;
        let in_sync: Vec<Member> = record.in_sync.iter().map(Member::from).collect();
        let unheard = plan.unheard.iter().map(
            |other| json!({ "node": other.node.0, "in_sync": other.is_in_sync, "without": other.is_gone }),
        );
        json!({
            "cluster_id": record.cluster_id.to_string(),
            "unclean_generation": record.unclean_generation,
            "epoch": record.epoch.0,
            "version": record.version,
            "in_sync": in_sync,
            "known_to": plan.known_to.iter().map(|node| &node.0).collect::<Vec<_>>(),
            "promised_epoch": plan.promised,
            "unheard": unheard.collect::<Vec<_>>(),
            "writers": plan.writers.iter().map(|(_, node)| &node.0).collect::<Vec<_>>(),
        })
    });
    json!({ "asked": asked, "newest": newest, "result": done })
}

#[cfg(test)]
mod tests;
