//! `kahawai status` and `kahawai cluster`: what a node says of itself and of its cluster, and what it can be told.
//!
//! Nearly all of it is one or two requests to a node's admin API. With `--json` its answer is printed as it came, else [`report`]
//! says the same in a few lines, with what is wrong and what to do at the end. One command asks all nodes: [`restore`].

mod http;
mod report;
mod restore;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use kahawai_admin_api::{ApiError, ClusterCommand, CommandResult, Status};
use serde_json::Value;

use http::{Address, Response};

const OK: u16 = 200;
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than a node works at a command before it says that it goes on.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(75);

/// Which node, and how to print.
#[derive(Args, Clone, Debug)]
pub struct AdminArguments {
    /// The node's admin API.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8161", global = true)]
    admin: Address,
    /// File with the token that the node wants for commands.
    #[arg(long, value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
    /// Print the API's JSON.
    #[arg(long, global = true)]
    json: bool,
}

/// Show what a node does: its role, its place in the cluster, its journal and its clients, and what is wrong.
#[derive(Args, Clone, Debug)]
pub struct StatusArguments {
    #[command(flatten)]
    admin: AdminArguments,
}

/// Show and change a cluster, through one of its nodes.
#[derive(Args, Clone, Debug)]
pub struct ClusterArguments {
    #[command(flatten)]
    admin: AdminArguments,
    #[command(subcommand)]
    command: ClusterSubcommand,
}

#[derive(Subcommand, Clone, Debug)]
enum ClusterSubcommand {
    /// Show the members as this node knows them; ask the primary to see how far the replicas are.
    Status,
    /// Let a node join.
    Add(NodeArguments),
    /// Take a node out of the cluster; nobody waits for it any more.
    Remove(NodeArguments),
    /// Make another node the primary, without loss and with a short pause.
    Promote {
        /// The node's name.
        node: String,
    },
    /// Let the primary give up its place to whoever of the in-sync set comes first.
    StepDown,
    /// Make the node at --admin the primary although those that have everything are gone. Confirmed messages that it does not
    /// have are lost for good. Without the two flags it only shows what is known.
    ForcePrimary {
        /// The cluster's id, so that no other cluster is meant.
        #[arg(long, value_name = "ID")]
        cluster_id: Option<String>,
        /// Confirmed messages may be lost, and that is understood.
        #[arg(long)]
        accept_data_loss: bool,
    },
    /// Set how many replicas a confirmation takes at least.
    SetMinimumReplicas {
        /// How many; with 0 the primary goes on alone.
        replicas: u32,
    },
    /// Put back the cluster record that ZooKeeper has lost (ELECTION_STATE_LOST), out of what the nodes have kept of it. Not --admin
    /// is asked but all nodes at --from. Without --cluster-id it only shows what they know.
    RestoreRecord(RestoreArguments),
}

#[derive(Args, Clone, Debug)]
struct RestoreArguments {
    /// Admin API of a node; once for each node of the cluster.
    #[arg(long, value_name = "URL", required = true)]
    from: Vec<Address>,
    /// A node that is gone for good, with its disk, and cannot be asked: if it knew a newer record, confirmed messages may be lost.
    #[arg(long, value_name = "NODE")]
    without: Vec<String>,
    /// The cluster's id, so that no other cluster is meant.
    #[arg(long, value_name = "ID")]
    cluster_id: Option<String>,
}

#[derive(Args, Clone, Debug)]
struct NodeArguments {
    /// The node's name.
    node: String,
    /// Its data directory, 32 hex digits, if one of several is meant.
    #[arg(long, value_name = "ID")]
    store: Option<String>,
}

/// Runs `kahawai status`.
pub fn status(arguments: StatusArguments) -> anyhow::Result<ExitCode> {
    print(async move |out| show(&arguments.admin, report::node, out).await)
}

/// Runs `kahawai cluster`.
pub fn cluster(arguments: ClusterArguments) -> anyhow::Result<ExitCode> {
    print(async move |out| run_cluster(arguments, out).await)
}

/// Runs a client to its end, then prints what it found.
fn print(client: impl AsyncFnOnce(&mut String) -> anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let mut out = String::new();
    let result = runtime.block_on(client(&mut out));
    // A look-up of a name may still be under way.
    runtime.shutdown_background();
    // Whoever reads us may stop reading, as `head` does: no reason to fail.
    let _ = std::io::stdout().write_all(out.as_bytes());
    result
}

async fn run_cluster(arguments: ClusterArguments, out: &mut String) -> anyhow::Result<ExitCode> {
    let admin = &arguments.admin;
    let command = match arguments.command {
        ClusterSubcommand::Status => return show(admin, report::cluster, out).await,
        ClusterSubcommand::Add(NodeArguments { node, store }) => ClusterCommand::Add { node, store },
        ClusterSubcommand::Remove(NodeArguments { node, store }) => ClusterCommand::Remove { node, store },
        ClusterSubcommand::Promote { node } => ClusterCommand::Promote { node },
        ClusterSubcommand::StepDown => ClusterCommand::StepDown {},
        ClusterSubcommand::SetMinimumReplicas { replicas } => ClusterCommand::SetMinimumReplicas { replicas },
        ClusterSubcommand::RestoreRecord(restoring) => {
            return restore::run(admin, &restoring, out).await.map(|()| ExitCode::SUCCESS);
        }
        ClusterSubcommand::ForcePrimary { cluster_id, accept_data_loss } => {
            let answer = ask(admin).await?;
            if answer.status != OK {
                return refused(admin, answer, out);
            }
            let status = understood(&admin.admin, answer, serde_json::from_value)?;
            // Also for those who are sure: it is the last time that anybody can see it.
            if !admin.json {
                out.push_str(&report::forced(&status));
            }
            agreed(&status, cluster_id, accept_data_loss)?
        }
    };
    send(admin, &command, out).await
}

/// The command, if whoever gave it has said all that it takes.
fn agreed(
    status: &Status,
    cluster_id: Option<String>,
    accept_data_loss: bool,
) -> anyhow::Result<ClusterCommand> {
    let node = &status.node_id;
    let Some(ours) = &status.cluster_id else {
        bail!("node {node} has not joined a cluster, there is nothing to be made primary of");
    };
    let Some(cluster_id) = cluster_id.filter(|_| accept_data_loss) else {
        bail!(
            "nothing was changed. If the members that have more are gone for good, say so with --cluster-id {ours} \
             --accept-data-loss: what node {node} does not have is lost then, confirmed or not"
        );
    };
    if cluster_id != *ours {
        bail!("nothing was changed: node {node} belongs to cluster {ours}, not to {cluster_id}");
    }
    Ok(ClusterCommand::ForcePrimary { cluster_id, accept_data_loss })
}

/// What a node answered.
struct Answer {
    status: u16,
    value: Value,
}

async fn ask(admin: &AdminArguments) -> anyhow::Result<Answer> {
    answer(&admin.admin, &http::get(&admin.admin, "/status", STATUS_TIMEOUT).await?)
}

async fn show(
    admin: &AdminArguments,
    report: fn(&Status) -> String,
    out: &mut String,
) -> anyhow::Result<ExitCode> {
    let answer = ask(admin).await?;
    if answer.status != OK {
        return refused(admin, answer, out);
    }
    if admin.json {
        put_json(&answer.value, out);
    } else {
        out.push_str(&report(&understood(&admin.admin, answer, serde_json::from_value)?));
    }
    Ok(ExitCode::SUCCESS)
}

async fn send(
    admin: &AdminArguments,
    command: &ClusterCommand,
    out: &mut String,
) -> anyhow::Result<ExitCode> {
    let answer = order(admin, &admin.admin, command).await?;
    if answer.status != OK {
        return refused(admin, answer, out);
    }
    if admin.json {
        put_json(&answer.value, out);
    } else {
        let CommandResult { text, .. } = understood(&admin.admin, answer, serde_json::from_value)?;
        out.push_str(&text);
        out.push('\n');
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives a command to the node at `address`.
async fn order(
    admin: &AdminArguments,
    address: &Address,
    command: &ClusterCommand,
) -> anyhow::Result<Answer> {
    let token = admin.token_file.as_deref().map(read_token).transpose()?;
    let path = format!("/cluster/{}", command.name());
    let body = command.fields().to_string();
    answer(address, &http::post(address, &path, token.as_deref(), &body, COMMAND_TIMEOUT).await?)
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let token = text.trim();
    // What is in the file becomes part of a header.
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("{}: a token is one word of printable ASCII", path.display());
    }
    Ok(token.to_owned())
}

fn answer(address: &Address, response: &Response) -> anyhow::Result<Answer> {
    let status = response.status;
    match serde_json::from_slice(&response.body) {
        Ok(value @ Value::Object(_)) => Ok(Answer { status, value }),
        _ => bail!(
            "{address} answers with status {status} and no JSON object: it is not the admin API of a node"
        ),
    }
}

/// What the answer says, to be shown to people.
fn understood<T>(
    address: &Address,
    mut answer: Answer,
    read: fn(Value) -> serde_json::Result<T>,
) -> anyhow::Result<T> {
    make_printable(&mut answer.value);
    read(answer.value).with_context(|| format!("the answer of {address} is unreadable"))
}

/// The node said no: its words, and a code that scripts see.
fn refused(admin: &AdminArguments, answer: Answer, out: &mut String) -> anyhow::Result<ExitCode> {
    if admin.json {
        put_json(&answer.value, out);
        return Ok(ExitCode::FAILURE);
    }
    bail!("{}", refusal(&admin.admin, answer)?)
}

/// The words of a node that said no.
fn refusal(address: &Address, answer: Answer) -> anyhow::Result<String> {
    let status = answer.status;
    let ApiError { error, advice } =
        understood(address, answer, serde_json::from_value).with_context(|| format!("status {status}"))?;
    Ok(if advice.is_empty() { error } else { format!("{error}; {advice}") })
}

fn put_json(value: &Value, out: &mut String) {
    // The alternate form is the pretty one.
    out.push_str(&format!("{value:#}\n"));
}

/// Takes control characters out of all texts: names come from clients, and must not move anybody's cursor.
fn make_printable(value: &mut Value) {
    match value {
        Value::String(text) if text.contains(char::is_control) => *text = printable(text),
        Value::Array(values) => values.iter_mut().for_each(make_printable),
        Value::Object(fields) => fields.values_mut().for_each(make_printable),
        _ => {}
    }
}

fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}
