//! Checks a model from the command line: `kahawai-model cluster|stream [small|full] [NAME=VALUE...]`.
//!
//! ```text
//! epochs= writes= crashes= changes= cuts= expiries= unknowns= hand-overs= removals= activations= dials=   the bounds
//! in-sync= minimum=     what the cluster begins with
//! mutation=             a rule to break: own-marker, both-sets, evidence, minimum, ack-before-flush, no-promise,
//!                       unknown-is-refused, operators-set, no-fence
//! search=               breadth or depth
//! threads= steps-max=
//! ```

use std::process::ExitCode;

use kahawai_model::{ClusterModel, Mutation, Options, Report, Rule, Search, Start, StreamModel, check};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(report) => {
            print!("{}", report.text());
            println!("{}", usage().unwrap_or_default());
            ExitCode::from(u8::from(report.violation.is_some()))
        }
        Err(word) => {
            eprintln!("kahawai-model cluster|stream [small|full] [NAME=VALUE...]: what is '{word}'?");
            ExitCode::from(2)
        }
    }
}

fn run(words: &[String]) -> Result<Report, String> {
    let mut words = words.iter();
    let which = words.next().ok_or("nothing")?;
    let (mut cluster, mut stream) = (ClusterModel::small(), StreamModel::small());
    let mut start: Option<Start> = None;
    let mut options = Options { search: Search::Breadth, threads: 1, steps_max: None };
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || value.parse::<u8>().map_err(|_| word.clone());
        let (of_cluster, of_stream) = (&mut cluster.bounds, &mut stream.bounds);
        match name {
            "small" => {}
            "full" => {
                (cluster, stream) = (ClusterModel::full(), StreamModel::full());
                options.search = Search::Depth;
            }
            "epochs" => (of_cluster.epochs, of_stream.epochs) = (number()?, number()?),
            "writes" => (of_cluster.writes, of_stream.writes) = (number()?, number()?),
            "crashes" => (of_cluster.crashes, of_stream.crashes) = (number()?, number()?),
            "changes" => (of_cluster.changes, of_stream.changes) = (number()?, number()?),
            "cuts" => (of_cluster.cuts, of_stream.cuts) = (number()?, number()?),
            "unknowns" => (of_cluster.unknowns, of_stream.unknowns) = (number()?, number()?),
            "dials" => of_stream.dials = number()?,
            "expiries" => of_cluster.expiries = number()?,
            "hand-overs" => of_cluster.hand_overs = number()?,
            "removals" => of_cluster.removals = number()?,
            "activations" => of_cluster.activations = number()? > 0,
            "in-sync" => start.get_or_insert(Start { in_sync: 2, minimum: 0 }).in_sync = number()?.into(),
            "minimum" => start.get_or_insert(Start { in_sync: 2, minimum: 0 }).minimum = number()?.into(),
            "mutation" => {
                let mutation = Some(mutation(value).ok_or_else(|| word.clone())?);
                (cluster.mutation, stream.mutation) = (mutation, mutation);
            }
            "search" if value == "breadth" => options.search = Search::Breadth,
            "search" if value == "depth" => options.search = Search::Depth,
            "threads" => options.threads = number()?.into(),
            "steps-max" => options.steps_max = Some(value.parse().map_err(|_| word.clone())?),
            _ => return Err(word.clone()),
        }
    }
    cluster.starts = start.map_or(cluster.starts, |start| vec![start]);
    match which.as_str() {
        "cluster" => {
            println!("{:?}, {:?}", cluster.bounds, cluster.starts);
            Ok(check(cluster, options))
        }
        "stream" => {
            println!("{:?}", stream.bounds);
            Ok(check(stream, options))
        }
        _ => Err(which.clone()),
    }
}

fn mutation(name: &str) -> Option<Mutation> {
    Some(match name {
        "own-marker" => Mutation::Primary(Rule::OwnMarker),
        "both-sets" => Mutation::Primary(Rule::BothSets),
        "evidence" => Mutation::Primary(Rule::Evidence),
        "minimum" => Mutation::Primary(Rule::Minimum),
        "ack-before-flush" => Mutation::AckBeforeFlush,
        "no-promise" => Mutation::NoPromise,
        "unknown-is-refused" => Mutation::UnknownIsRefused,
        "operators-set" => Mutation::OperatorsSet,
        "no-fence" => Mutation::NoFence,
        _ => return None,
    })
}

/// Processor time and the most memory that was in use, where the system tells them as Linux does.
fn usage() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim();
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name: user and system time are the 12th and 13th, in hundredths of a second.
    let fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(format!("{}.{:02} s of processor time, at most {peak} of memory", ticks / 100, ticks % 100))
}
