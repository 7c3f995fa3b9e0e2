//! The commands against a served admin API with a fake node behind it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use clap::Parser;
use kahawai_admin::{CommandError, CommandErrorKind, CommandFuture, Control, Options};
use kahawai_admin_api::{
    ElectionStatus, Histogram, JournalStatus, Member, Presence, PrimaryStatus, ReplicaStatus, Role,
    RoleChange, StoredRecord, Suspension, SyncProgress,
};
use kahawai_types::Location;
use tokio::net::TcpListener;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: LineCommand,
}

#[derive(Subcommand)]
enum LineCommand {
    Status(StatusArguments),
    Cluster(ClusterArguments),
}

struct Fake {
    status: Status,
    commands: Mutex<Vec<ClusterCommand>>,
}

impl Control for Fake {
    fn status(&self) -> Status {
        self.status.clone()
    }

    fn stored_record(&self) -> Result<StoredRecord, CommandError> {
        Err(CommandError::new(CommandErrorKind::Refused, "this node runs alone"))
    }

    fn command(&self, command: ClusterCommand) -> CommandFuture {
        self.commands.lock().unwrap().push(command.clone());
        Box::pin(async move {
            match command {
                ClusterCommand::StepDown {} => {
                    Err(CommandError::new(CommandErrorKind::Refused, "nobody could take over").advise("wait"))
                }
                command => Ok(format!("{} done", command.name())),
            }
        })
    }
}

/// What a command line printed, or complained about, and what the node was told.
struct Run {
    out: String,
    result: Result<bool, String>,
    commands: Vec<ClusterCommand>,
}

impl Run {
    fn complaint(&self) -> &str {
        self.result.as_ref().expect_err("it did not complain")
    }
}

/// Runs a command line (without `kahawai` and `--admin`) against this node.
async fn run(status: &Status, options: Options, line: &str) -> Run {
    let fake = Arc::new(Fake { status: status.clone(), commands: Mutex::default() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let control: Arc<dyn Control> = Arc::clone(&fake) as _;
    let serving = tokio::spawn(kahawai_admin::serve(listener, control, options, std::future::pending()));
    let (out, result) = run_at(address, line).await;
    serving.abort();
    let commands = fake.commands.lock().unwrap().clone();
    Run { out, result, commands }
}

async fn run_at(address: SocketAddr, line: &str) -> (String, Result<bool, String>) {
    let admin = format!("--admin=http://{address}");
    let words = std::iter::once("kahawai").chain(line.split_whitespace()).chain([&*admin]);
    let mut out = String::new();
    let result = match Line::parse_from(words).command {
        LineCommand::Status(arguments) => show(&arguments.admin, report::node, &mut out).await,
        LineCommand::Cluster(arguments) => run_cluster(arguments, &mut out).await,
    };
    let result = result.map(|code| code == ExitCode::SUCCESS).map_err(|error| format!("{error:#}"));
    (out, result)
}

fn member(node: &str) -> Member {
    Member {
        node: node.to_owned(),
        store: format!("{:08x}{:024x}", node.bytes().map(u32::from).sum::<u32>(), 0),
    }
}

/// Node a, leading b and c; c copies files and has lost its connection once.
fn primary() -> Status {
    let copy = |node: &str, in_sync| {
        let Member { node, store } = member(node);
        let state = if in_sync { "streaming" } else { "copying files" }.to_owned();
        let durable = Location::new(7, 900).lsn();
        ReplicaStatus {
            node,
            store,
            connected: true,
            in_sync,
            state,
            since_ms: 40_000,
            durable,
            ..ReplicaStatus::default()
        }
    };
    let mut copying = copy("c", false);
    copying.lag_bytes = 3 << 30;
    copying.lag_seconds = 95.0;
    (copying.disk_free_bytes, copying.flush_seconds_last) = (Some(5 << 30), Some(0.0125));
    copying.synchronisation = Some(SyncProgress {
        bytes_total: 4 << 30,
        bytes_done: 1 << 30,
        bytes_resumed: 512 << 20,
        bytes_per_second: 64 << 20,
        eta_seconds: Some(48),
        sessions: 4,
        files: vec![3, 4],
        retries: 1,
        last_error: Some("connection reset by peer".to_owned()),
    });
    let Member { node, store } = member("a");
    Status {
        node_id: node,
        store_id: store,
        cluster_id: Some("c1d2".to_owned()),
        version: "0.1.0".to_owned(),
        started_ms: 10_000,
        now_ms: 100_000,
        role: Role::Primary,
        state: "active".to_owned(),
        epoch: 3,
        end: Location::new(7, 1000).lsn(),
        durable: Location::new(7, 950).lsn(),
        commit: Location::new(7, 900).lsn(),
        applied: Location::new(7, 900).lsn(),
        in_sync: vec![member("a"), member("b")],
        minimum_replicas: 1,
        primary: Some(PrimaryStatus {
            node: "a".to_owned(),
            replication: "10.0.0.1:61619".to_owned(),
            clients: vec!["stomp://10.0.0.1:61613".to_owned()],
        }),
        replicas: vec![copy("b", true), copying],
        election: Some(ElectionStatus {
            provider: "zookeeper".to_owned(),
            connected: true,
            record_version: 12,
            ..ElectionStatus::default()
        }),
        journal: JournalStatus {
            flushes: 2,
            flush_seconds: Histogram { sum: 0.0085, ..Histogram::default() },
            flush_seconds_max: 0.01,
            disk_free_bytes: Some(3 << 40),
            files: 2,
            file_bytes: 64 << 20,
            ..JournalStatus::default()
        },
        accepting: true,
        changes: vec![RoleChange {
            at_ms: 20_000,
            epoch: 3,
            role: Role::Primary,
            reason: "elected".to_owned(),
        }],
        ..Status::default()
    }
}

/// Node d, which was away and now waits for a and b.
fn left_behind() -> Status {
    let Member { node, store } = member("d");
    let mut status = Status {
        role: Role::Replica,
        state: "waiting".to_owned(),
        primary: None,
        replicas: Vec::new(),
        ..primary()
    };
    (status.node_id, status.store_id, status.accepting) = (node, store, false);
    let election = status.election.as_mut().unwrap();
    election.waiting_for = Some("a or b, who have everything confirmed".to_owned());
    let Member { node, store } = member("e");
    election.present = vec![Presence {
        node,
        store,
        last_epoch: 2,
        end: Location::new(6, 10).lsn(),
        state: "waiting".to_owned(),
    }];
    status
}

#[tokio::test]
async fn a_node_is_shown_in_words() {
    let run = run(&primary(), Options::default(), "status").await;
    assert_eq!(run.result, Ok(true));
    assert_eq!(
        run.out,
        "\
node      a, primary in epoch 3 (active)
software  Kahawai 0.1.0, up 1 min 30 s
cluster   c1d2, minimum replicas 1
in sync   a, b
primary   a, replicas at 10.0.0.1:61619, clients at stomp://10.0.0.1:61613
election  zookeeper answers, version 12 of the cluster record
journal   written to 7:1000, flushed to 7:950, confirmed to 7:900, indexed to 7:900
          2 files of 64.0 MiB, 3.0 TiB free; written since the start: 0 records in 0 batches, 0 B
flushes   2, 4.25 ms on average, 10.00 ms at most
clients   0 connections, 0 consumers; no connector open
messages  0 in 0 destinations; since the start 0 came, 0 were consumed

replica  store     in sync  behind           flushed to  flush     free     state
b        00000062  yes      0 B, 0.0 s       7:900       -         -        streaming
c        00000063  no       3.0 GiB, 95.0 s  7:900       12.50 ms  5.0 GiB  copying files
  c copies: 1.0 GiB of 4.0 GiB (25 %), 512.0 MiB of it from before, 64.0 MiB/s over 4 connections, 48 s left, at db-3.log and 1 \
more

changes of role
  1 min 20 s ago  primary in epoch 3  elected

! copying to c failed 1 times, the last time: connection reset by peer
  it goes on by itself from where it stopped; look at the network and the disk if it keeps failing
"
    );
}

#[tokio::test]
async fn a_cluster_is_shown_with_everybody_in_it() {
    let run = run(&left_behind(), Options::default(), "cluster status").await;
    assert_eq!(run.result, Ok(true));
    assert_eq!(
        run.out,
        "\
asked     d, replica in epoch 3 (waiting)
cluster   c1d2, minimum replicas 1
in sync   a, b
election  zookeeper answers, version 12 of the cluster record
journal   written to 7:1000, flushed to 7:950, confirmed to 7:900, indexed to 7:900

member  store     in sync  there  epoch  end     behind  state
a       00000061  yes      no     -      -       -       -
b       00000062  yes      no     -      -       -       -
d       00000064  no       yes    3      7:1000  -       replica (waiting)
e       00000065  no       yes    2      6:10    -       waiting

! node d waits for a or b, who have everything confirmed
  start it; if it is gone for good, see what would be lost: kahawai cluster force-primary
"
    );
}

#[tokio::test]
async fn what_is_wrong_is_said_with_what_to_do() {
    let check = async |status: &Status, problem: &str, advice: &str| {
        let run = run(status, Options::default(), "status").await;
        let (_, rest) =
            run.out.split_once(problem).unwrap_or_else(|| panic!("no {problem:?} in\n{}", run.out));
        assert!(
            rest.lines().nth(1).is_some_and(|line| line.contains(advice)),
            "no {advice:?} in\n{}",
            run.out
        );
    };
    let mut status = primary();
    status.suspended = Some(Suspension { since_ms: 88_000, reason: "0 of 1 replicas in sync".to_owned() });
    check(&status, "! persistent work waits since 12 s: 0 of 1 replicas", "set-minimum-replicas").await;
    status.replicas[0].connected = false;
    check(&status, "! replica b is not connected since 1 min 0 s", "cluster remove").await;
    status.replicas[0].since_ms = 0;
    check(&status, "! replica b is not connected\n", "").await;
    status.election.as_mut().unwrap().connected = false;
    check(&status, "! the election service (zookeeper) does not answer", "check that it runs").await;
    status.accepting = false;
    check(&status, "! node a leads, but lets no clients in yet", "in-sync set").await;
    status.broker.producers_blocked = 3;
    check(&status, "! 3 producers are held back", "memory").await;
    (status.role, status.state) = (Role::Faulted, "db-7.log is damaged".to_owned());
    check(&status, "! the store of node a needs help: db-7.log is damaged", "store verify").await;
    let mut lost = left_behind();
    lost.election.as_mut().unwrap().waiting_for = None;
    check(&lost, "! node d knows of no primary", "a takeover takes seconds").await;
    lost.election.as_mut().unwrap().lost = Some("the record is missing".to_owned());
    check(&lost, "! the cluster record is lost (the record is missing)", "restore-record").await;
}

#[tokio::test]
async fn a_node_that_is_well_has_no_problems() {
    let mut status = primary();
    status.replicas.truncate(1);
    for line in ["status", "cluster status"] {
        let run = run(&status, Options::default(), line).await;
        assert!(!run.out.contains('!'), "{}", run.out);
    }
    let alone = Status { role: Role::Single, accepting: true, ..Status::default() };
    for line in ["status", "cluster status"] {
        let run = run(&alone, Options::default(), line).await;
        assert!(run.out.contains("single") && !run.out.contains('!'), "{}", run.out);
    }
}

#[tokio::test]
async fn json_is_the_apis_own() {
    let status = primary();
    for line in ["status --json", "cluster status --json", "cluster --json status"] {
        let run = run(&status, Options::default(), line).await;
        assert_eq!(serde_json::from_str::<Status>(&run.out).unwrap(), status, "{line}");
    }
    let promoted = run(&status, Options::default(), "cluster promote b --json").await;
    let result: CommandResult = serde_json::from_str(&promoted.out).unwrap();
    assert_eq!(result, CommandResult { ok: true, text: "promote done".to_owned() });
    let refused = run(&status, Options::default(), "cluster step-down --json").await;
    assert_eq!(refused.result, Ok(false), "a refusal has to be seen by scripts");
    let error: ApiError = serde_json::from_str(&refused.out).unwrap();
    assert_eq!(error, ApiError { error: "nobody could take over".to_owned(), advice: "wait".to_owned() });
}

#[tokio::test]
async fn commands_arrive_as_they_were_typed() {
    let check = async |line: &str, expected: ClusterCommand| {
        let run = run(&primary(), Options::default(), line).await;
        assert_eq!((run.result, run.out), (Ok(true), format!("{} done\n", expected.name())), "{line}");
        assert_eq!(run.commands, [expected]);
    };
    let node = || "e".to_owned();
    check("cluster add e", ClusterCommand::Add { node: node(), store: None }).await;
    check("cluster add e --store 0f", ClusterCommand::Add { node: node(), store: Some("0f".to_owned()) })
        .await;
    check("cluster remove e", ClusterCommand::Remove { node: node(), store: None }).await;
    check("cluster promote e", ClusterCommand::Promote { node: node() }).await;
    check("cluster set-minimum-replicas 2", ClusterCommand::SetMinimumReplicas { replicas: 2 }).await;
}

#[tokio::test]
async fn a_refusal_is_told_with_its_advice() {
    let run = run(&primary(), Options::default(), "cluster step-down").await;
    assert_eq!(run.complaint(), "nobody could take over; wait");
    assert_eq!(run.commands, [ClusterCommand::StepDown {}]);
}

#[tokio::test]
async fn force_needs_both_flags_and_the_right_cluster() {
    let status = left_behind();
    let check = async |flags: &str, expected: &str| {
        let run = run(&status, Options::default(), &format!("cluster force-primary {flags}")).await;
        assert!(run.complaint().contains(expected), "{}", run.complaint());
        assert!(run.out.contains("Everything confirmed is on a, b."), "{}", run.out);
        assert!(run.out.contains("e       00000065  no       yes    2      6:10"), "{}", run.out);
        assert_eq!(run.commands, []);
    };
    check("", "--cluster-id c1d2 --accept-data-loss").await;
    check("--accept-data-loss", "nothing was changed").await;
    check("--cluster-id c1d2", "nothing was changed").await;
    check("--cluster-id beef --accept-data-loss", "belongs to cluster c1d2, not to beef").await;
}

#[tokio::test]
async fn force_is_carried_out_when_all_is_said() {
    let line = "cluster force-primary --cluster-id c1d2 --accept-data-loss";
    let forced = run(&left_behind(), Options::default(), line).await;
    assert_eq!(forced.result, Ok(true));
    assert!(forced.out.ends_with("\nforce-primary done\n"), "{}", forced.out);
    let command = ClusterCommand::ForcePrimary { cluster_id: "c1d2".to_owned(), accept_data_loss: true };
    assert_eq!(forced.commands, [command]);
    let alone = run(&Status { cluster_id: None, ..left_behind() }, Options::default(), line).await;
    assert!(alone.complaint().contains("has not joined a cluster"), "{}", alone.complaint());
    assert_eq!(alone.commands, []);
}

#[tokio::test]
async fn the_token_comes_out_of_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let options = Options { token: Some("s3cret".to_owned()), ..Options::default() };
    let with = format!("cluster promote b --token-file {}", file.display());
    std::fs::write(&file, "s3cret\n").unwrap();
    assert_eq!(run(&primary(), options.clone(), &with).await.result, Ok(true));
    let without = run(&primary(), options.clone(), "cluster promote b").await;
    assert!(without.complaint().contains("--token-file"), "{}", without.complaint());
    for wrong in ["guess", "", "two words", "line\r\nX: y"] {
        std::fs::write(&file, wrong).unwrap();
        let run = run(&primary(), options.clone(), &with).await;
        assert!(run.complaint().contains("token"), "{wrong:?}: {}", run.complaint());
        assert_eq!(run.commands, [], "{wrong:?}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(run(&primary(), options, &with).await.complaint().contains("token"));
}

#[tokio::test]
async fn texts_from_the_node_do_not_move_the_cursor() {
    let state = "\u{1b}[2Jgone\nfaked".to_owned();
    let shown = run(&Status { state, ..primary() }, Options::default(), "status").await;
    assert!(shown.out.contains("(\u{fffd}[2Jgone\u{fffd}faked)"), "{}", shown.out);
}

#[tokio::test]
async fn numbers_that_cannot_be_do_not_stop_the_report() {
    let mut status = Status { started_ms: i64::MIN, now_ms: i64::MAX, ..primary() };
    status.replicas[1].lag_bytes = u64::MAX;
    status.replicas[1].synchronisation =
        Some(SyncProgress { bytes_done: u64::MAX, eta_seconds: Some(u64::MAX), ..SyncProgress::default() });
    assert_eq!(run(&status, Options::default(), "status").await.result, Ok(true));
}

/// Something else listens there, and says this.
async fn stranger(says: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // What we are asked has to be read, or the end would be a reset.
        let mut request = [0; 1024];
        let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut request).await;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, says).await;
    });
    address
}

#[tokio::test]
async fn whoever_does_not_answer_like_a_node_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let free = listener.local_addr().unwrap();
    drop(listener);
    let complaint = async |address: SocketAddr, expected: &str| {
        let (_, result) = run_at(address, "status").await;
        let complaint = result.expect_err("no complaint");
        assert!(complaint.contains(expected) && complaint.contains(&address.to_string()), "{complaint}");
    };
    complaint(free, "is the node running").await;
    complaint(stranger(b"ERROR\nmessage:not STOMP\n\n\0").await, "breaks off").await;
    complaint(stranger(b"SSH-2.0-OpenSSH\r\n\r\n").await, "not HTTP").await;
    complaint(stranger(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await, "no JSON object").await;
    complaint(stranger(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]").await, "no JSON object").await;
    complaint(stranger(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"commit\":1}").await, "unreadable")
        .await;
    complaint(stranger(b"HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n").await, "status 502").await;
    complaint(stranger(b"").await, "breaks off").await;
}
