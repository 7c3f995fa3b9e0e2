//! `kahawai store`: tools for the store of a stopped broker.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use kahawai_env::{Clock, DiskFiles, Files, Lock, OsEntropy, OverlayFiles, SystemClock};
use kahawai_journal::{Journal, JournalOptions, KnownPositions, data_file_id};
use kahawai_kahadb::command::decode;
use kahawai_kahadb::multi::{Decisions, Outcome, TX_STORE_DIRECTORY};
use kahawai_kahadb::pagefile::ReadAt;
use kahawai_kahadb::scheduler::{SchedulerIndex, SchedulerState};
use kahawai_message::stored::decode_message;
use kahawai_store::{OpenOptions, inspect::inspect};
use serde_json::{Map, Value, json};

use crate::show;

/// Prints a line. Whoever reads us may stop reading, as `head` does: no reason to fail.
macro_rules! say {
    ($($arguments:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($arguments)*);
    }};
}

/// Look at, check and repair stores.
#[derive(Subcommand)]
pub enum StoreCommand {
    /// Show what a broker would find: destinations, messages, subscriptions, transactions in doubt, scheduled jobs. Changes
    /// nothing.
    Inspect(StoreArgs),
    /// Read every byte of the journal and report what is wrong. Changes nothing.
    Verify(StoreArgs),
    /// Throw the index away and make it again from the journal.
    RebuildIndex(RebuildArgs),
    /// Say for each journal file why it is still there. Changes nothing.
    WhyRetained(StoreArgs),
}

/// Which store.
#[derive(Args)]
pub struct StoreArgs {
    /// The data directory: one store, an mKahaDB root, or a scheduler's store.
    dir: PathBuf,
    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
}

/// How to rebuild.
#[derive(Args)]
pub struct RebuildArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Go on although messages that ActiveMQ's index names are not in the journal; they are listed.
    #[arg(long)]
    accept_loss: bool,
    /// Cut a damaged newest journal file at exactly this place, FILE:OFFSET, as the error names it; what is cut is kept in
    /// replication/divergent. Everything behind it is lost.
    #[arg(long, value_name = "FILE:OFFSET")]
    cut_at: Option<kahawai_types::Location>,
}

/// Runs one of the tools.
pub fn run(command: StoreCommand) -> anyhow::Result<ExitCode> {
    match command {
        StoreCommand::Inspect(args) => inspect_command(&args),
        StoreCommand::Verify(args) => verify(&args),
        StoreCommand::RebuildIndex(args) => rebuild(&args),
        StoreCommand::WhyRetained(args) => why_retained(&args),
    }
}

fn existing(dir: &Path) -> anyhow::Result<Arc<dyn Files>> {
    let files = DiskFiles::existing(dir).with_context(|| format!("{}", dir.display()))?;
    Ok(Arc::new(files))
}

/// What kind of directory it is.
enum Kind {
    Store,
    Multi(Vec<String>),
    Scheduler,
}

fn kind_of(files: &Arc<dyn Files>) -> anyhow::Result<Kind> {
    let names = files.list("")?;
    if names.iter().any(|name| name.starts_with("scheduleDB.")) {
        return Ok(Kind::Scheduler);
    }
    if names.iter().any(|name| data_file_id(name).is_some()) {
        return Ok(Kind::Store);
    }
    let holds_journal = |name: &&String| {
        files.list(name).is_ok_and(|inside| inside.iter().any(|file| data_file_id(file).is_some()))
    };
    let stores: Vec<String> = names.iter().filter(holds_journal).cloned().collect();
    if stores.iter().any(|name| name == TX_STORE_DIRECTORY || name.contains('#')) {
        return Ok(Kind::Multi(stores));
    }
    if stores.is_empty() {
        bail!("{}: there is no journal (db-1.log ...) in this directory", files.describe(""));
    }
    bail!("{}: this is not a store, but holds some: {}", files.describe(""), stores.join(", "))
}

fn inspect_command(args: &StoreArgs) -> anyhow::Result<ExitCode> {
    let files = existing(&args.dir)?;
    let mut out = Map::new();
    let mut destinations = Vec::new();
    let mut in_doubt = Vec::new();
    let mut notes = Vec::new();
    match kind_of(&files)? {
        Kind::Store => {
            let mut store = inspect(&files)?;
            notes.push(format!("index: {:?}", store.how));
            destinations = show::destinations(&mut store)?;
            in_doubt = store.in_doubt()?.iter().map(show::in_doubt).collect();
            let scheduler =
                args.dir.canonicalize().ok().and_then(|dir| Some(dir.parent()?.join("scheduler")));
            if let Some(scheduler) = scheduler.filter(|dir| dir.join("scheduleDB.data").exists()) {
                out.insert("scheduledJobs".into(), jobs(&existing(&scheduler)?)?);
            }
        }
        Kind::Multi(stores) => {
            let decisions = decisions(&args.dir)?;
            for name in stores.iter().filter(|name| *name != TX_STORE_DIRECTORY) {
                let mut store =
                    inspect(&existing(&args.dir.join(name))?).with_context(|| format!("store {name}"))?;
                for id in store.state.prepared.keys().cloned().collect::<Vec<_>>() {
                    match decisions.outcome(&id) {
                        Outcome::Commit => store.resolve(&id, true)?,
                        Outcome::Rollback => store.resolve(&id, false)?,
                        Outcome::UpToCoordinator | Outcome::UpToOperator => {}
                    }
                }
                destinations.extend(show::destinations(&mut store)?);
                in_doubt.extend(store.in_doubt()?.iter().map(show::in_doubt));
            }
        }
        Kind::Scheduler => {
            out.insert("scheduledJobs".into(), jobs(&files)?);
        }
    }
    destinations.sort_by_key(|d| d["destination"].as_str().unwrap_or_default().to_owned());
    out.insert("destinations".into(), Value::Array(destinations));
    out.insert("inDoubtXa".into(), Value::Array(in_doubt));
    if args.json {
        say!("{}", serde_json::to_string_pretty(&out)?);
    } else {
        print_inspection(&out, &notes);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_inspection(out: &Map<String, Value>, notes: &[String]) {
    for note in notes {
        say!("{note}");
    }
    let list = |key: &str| out.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    for d in list("destinations") {
        say!("{}  {} messages", d["destination"].as_str().unwrap_or_default(), d["count"]);
        for sub in d["subscriptions"].as_array().into_iter().flatten() {
            say!(
                "    subscription {}:{}  {} pending",
                sub["clientId"].as_str().unwrap_or_default(),
                sub["subscriptionName"].as_str().unwrap_or_default(),
                sub["pendingCount"]
            );
        }
        for m in d["messages"].as_array().into_iter().flatten() {
            say!(
                "    {}  {}  {} bytes  priority {}",
                m["messageId"].as_str().unwrap_or_default(),
                m["class"].as_str().unwrap_or_default(),
                m["contentLength"],
                m["priority"]
            );
        }
    }
    for t in list("inDoubtXa") {
        say!(
            "in doubt: format {} global {} branch {}",
            t["formatId"],
            t["globalTransactionIdHex"].as_str().unwrap_or_default(),
            t["branchQualifierHex"].as_str().unwrap_or_default()
        );
    }
    for j in list("scheduledJobs") {
        say!(
            "scheduled: {} next {}",
            j["jobId"].as_str().unwrap_or_default(),
            j["nextExecutionTime"].as_str().unwrap_or_default()
        );
    }
}

/// A journal opened as a broker would, with all changes in memory.
fn look(files: &Arc<dyn Files>) -> anyhow::Result<Journal> {
    let overlay: Arc<dyn Files> = Arc::new(OverlayFiles::new(Arc::clone(files)));
    let options = JournalOptions { preallocate: false, ..JournalOptions::default() };
    Ok(Journal::open(overlay, options, KnownPositions::default())?.0)
}

fn decisions(root: &Path) -> anyhow::Result<Decisions> {
    let mut decisions = Decisions::new();
    let dir = root.join(TX_STORE_DIRECTORY);
    if dir.is_dir() {
        let journal = look(&existing(&dir)?)?;
        for batch in journal.reader().batches(kahawai_types::Lsn::ZERO) {
            for record in batch?.records() {
                decisions.apply(&decode(record.payload)?);
            }
        }
    }
    Ok(decisions)
}

struct Whole(Vec<u8>);

impl ReadAt for Whole {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.0.as_slice().read_exact_at(offset, buffer)
    }
}

fn jobs(files: &Arc<dyn Files>) -> anyhow::Result<Value> {
    let journal = look(files)?;
    let reader = journal.reader();
    let file = |name: &str| -> Option<Whole> { std::fs::read(files.describe(name)).ok().map(Whole) };
    let mut state = SchedulerState::new();
    let mut after = None;
    if let Some(data) = file("scheduleDB.data") {
        let redo = file("scheduleDB.redo");
        let read = SchedulerIndex::open(&data, redo.as_ref().map(|redo| redo as &dyn ReadAt))
            .and_then(|index| Ok((index.state()?, index.last_update())));
        if let Ok((found, last)) = read {
            state = found;
            after = last;
        }
    }
    for batch in reader.batches(kahawai_types::Lsn::ZERO) {
        for record in batch?.records() {
            if after.is_none_or(|last| record.at > last) {
                state.apply(&decode(record.payload)?, record.at);
            }
        }
    }
    // The payload stays in the journal, in the record that added the job.
    let mut payloads = std::collections::HashMap::new();
    for batch in reader.batches(kahawai_types::Lsn::ZERO) {
        for record in batch?.records() {
            if let Ok(kahawai_kahadb::command::Command::AddScheduledJob(add)) = decode(record.payload) {
                payloads.insert(record.at, add.payload);
            }
        }
    }
    let mut out = Vec::new();
    let names: Vec<_> = state.schedulers().cloned().collect();
    for name in names {
        for job in state.jobs(&name) {
            let payload = payloads.get(&job.record).cloned().unwrap_or_default();
            let mut one = json!({
                "jobId": &*job.job_id,
                "cronEntry": &*job.cron_entry,
                "delay": job.delay_ms,
                "period": job.period_ms,
                "repeat": job.repeat,
                "start": job.start_ms,
                "nextExecutionTime": show::date(job.next_execution_ms),
                "payloadLength": payload.len(),
                "payloadSha256": show::sha256(&payload),
            });
            if let (Ok(message), Some(map)) = (decode_message(payload), one.as_object_mut()) {
                map.insert("message".into(), show::message(&message));
            }
            out.push(one);
        }
    }
    Ok(Value::Array(out))
}

fn verify(args: &StoreArgs) -> anyhow::Result<ExitCode> {
    let files = existing(&args.dir)?;
    let stores: Vec<(String, Arc<dyn Files>)> = match kind_of(&files)? {
        Kind::Store | Kind::Scheduler => vec![(String::new(), files)],
        Kind::Multi(names) => names
            .into_iter()
            .map(|name| existing(&args.dir.join(&name)).map(|files| (name, files)))
            .collect::<anyhow::Result<_>>()?,
    };
    let mut sound = true;
    let mut out = Vec::new();
    for (name, files) in stores {
        let report = kahawai_journal::verify(&files, 0, kahawai_store::known_positions(&files))?;
        sound &= report.is_sound();
        let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        if !args.json {
            for file in &report.files {
                say!(
                    "{}db-{}.log  {} bytes, {} used, {} batches ({} of ActiveMQ's, {} without checksum), {} records",
                    if name.is_empty() { String::new() } else { format!("{name}/") },
                    file.id,
                    file.bytes,
                    file.used,
                    file.batches,
                    file.foreign,
                    file.unchecked,
                    file.records
                );
            }
            for finding in &findings {
                say!("{finding}");
            }
        }
        out.push(json!({
            "store": name,
            "sound": report.is_sound(),
            "end": report.end.to_string(),
            "files": report.files.iter().map(|file| json!({
                "file": file.id, "bytes": file.bytes, "used": file.used, "batches": file.batches,
                "foreignBatches": file.foreign, "uncheckedBatches": file.unchecked, "records": file.records,
                "lastEpoch": file.epoch.0,
            })).collect::<Vec<_>>(),
            "findings": findings,
        }));
    }
    if args.json {
        say!("{}", serde_json::to_string_pretty(&json!({ "sound": sound, "stores": out }))?);
    } else {
        say!("{}", if sound { "sound" } else { "NOT sound" });
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn lock(files: &Arc<dyn Files>, dir: &Path) -> anyhow::Result<Box<dyn Lock>> {
    match files.lock("lock", SystemClock.now_ms())? {
        Some(lock) => Ok(lock),
        None => bail!("{}: a broker is running on this directory; stop it first", dir.display()),
    }
}

fn rebuild(args: &RebuildArgs) -> anyhow::Result<ExitCode> {
    let dir = &args.store.dir;
    let files = existing(dir)?;
    let _lock = lock(&files, dir)?;
    let mut options = OpenOptions { accept_loss: args.accept_loss, rebuild: true, ..OpenOptions::default() };
    options.journal.cut_allowed_at = args.cut_at.map(Into::into);
    let mut opened = kahawai_store::open(&files, &OsEntropy, &options)?;
    // What recovery appended (the epoch's marker, rollbacks) has to become durable like anything else.
    opened.store.journal().close();
    while let Some(batch) = opened.writer.next_batch(kahawai_types::Lsn::ZERO)? {
        let end = opened.writer.write(batch)?;
        opened.store.apply(end, usize::MAX, &mut Vec::new())?;
    }
    let checkpoint = opened.store.begin_checkpoint(true);
    opened.store.index().write(checkpoint)?;
    let report = &opened.report;
    if args.store.json {
        say!(
            "{}",
            serde_json::to_string_pretty(&json!({
                "index": format!("{:?}", report.index),
                "records": report.records,
                "rolledBack": report.rolled_back.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "lost": report.lost,
                "epoch": report.epoch.0,
            }))?
        );
    } else {
        say!("index made from {:?}, {} records replayed", report.index, report.records);
        for lost in &report.lost {
            say!("lost: {lost}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn why_retained(args: &StoreArgs) -> anyhow::Result<ExitCode> {
    let files = existing(&args.dir)?;
    let store = inspect(&files)?;
    let last = store.recovery.files.last().map_or(0, |file| file.id);
    let reasons = store.state.files.reasons(last, store.state.first_prepared_file());
    let mut out = Vec::new();
    for file in &store.recovery.files {
        let why: Vec<String> = reasons.get(&file.id).into_iter().flatten().map(ToString::to_string).collect();
        if !args.json {
            say!("db-{}.log  {} bytes", file.id, file.bytes);
            for reason in &why {
                say!("    {reason}");
            }
            if why.is_empty() {
                say!("    nothing: it goes with the next collection");
            }
        }
        out.push(json!({ "file": file.id, "bytes": file.bytes, "reasons": why }));
    }
    if args.json {
        say!("{}", serde_json::to_string_pretty(&json!({ "files": out }))?);
    }
    Ok(ExitCode::SUCCESS)
}
