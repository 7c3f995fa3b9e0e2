//! The command against several served admin APIs, each with a fake node behind it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use clap::Parser;
use kahawai_admin::{CommandError, CommandErrorKind, CommandFuture, Control, Options};
use kahawai_admin_api::Status;
use kahawai_election::{Member as RecordMember, Phase};
use kahawai_types::{Epoch, Location, StoreId};
use tokio::net::TcpListener;

use super::super::{ClusterArguments, run_cluster};
use super::*;

const CLUSTER: ClusterId = ClusterId(0xc1);

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: LineCommand,
}

#[derive(clap::Subcommand)]
enum LineCommand {
    Cluster(ClusterArguments),
}

/// A node that says these one after the other, the last one for good, and answers commands so.
#[derive(Clone)]
struct Fake {
    says: VecDeque<StoredRecord>,
    answer: Result<String, CommandError>,
}

struct Serving {
    says: Mutex<VecDeque<StoredRecord>>,
    answer: Result<String, CommandError>,
    orders: Mutex<Vec<ClusterCommand>>,
}

impl Control for Serving {
    fn status(&self) -> Status {
        Status::default()
    }

    fn stored_record(&self) -> Result<StoredRecord, CommandError> {
        let mut says = self.says.lock().unwrap();
        let next = if says.len() > 1 { says.pop_front() } else { says.front().cloned() };
        next.ok_or_else(|| CommandError::new(CommandErrorKind::Refused, "this node runs alone"))
    }

    fn command(&self, command: ClusterCommand) -> CommandFuture {
        self.orders.lock().unwrap().push(command);
        Box::pin(std::future::ready(self.answer.clone()))
    }
}

/// What a command line printed, or complained about, and what each node was told.
struct Run {
    out: String,
    result: Result<(), String>,
    orders: Vec<Vec<ClusterCommand>>,
}

impl Run {
    fn complaint(&self) -> &str {
        self.result.as_ref().expect_err("it did not complain")
    }

    /// Which nodes were told, by their places.
    fn told(&self) -> Vec<usize> {
        (0..self.orders.len()).filter(|&at| !self.orders[at].is_empty()).collect()
    }
}

async fn run(nodes: &[Fake], flags: &str) -> Run {
    run_beside(&[], nodes, flags).await
}

/// With `strangers` asked before all others.
async fn run_beside(strangers: &[SocketAddr], nodes: &[Fake], flags: &str) -> Run {
    let mut words: Vec<String> = ["kahawai", "cluster", "restore-record"].map(str::to_owned).to_vec();
    words.extend(strangers.iter().map(|address| format!("--from=http://{address}")));
    let (mut serving, mut fakes) = (Vec::new(), Vec::new());
    for Fake { says, answer } in nodes {
        let fake =
            Serving { says: Mutex::new(says.clone()), answer: answer.clone(), orders: Mutex::default() };
        let fake = Arc::new(fake);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        words.push(format!("--from=http://{}", listener.local_addr().unwrap()));
        let control: Arc<dyn Control> = Arc::clone(&fake) as _;
        let options = Options::default();
        serving.push(tokio::spawn(kahawai_admin::serve(listener, control, options, std::future::pending())));
        fakes.push(fake);
    }
    words.extend(flags.split_whitespace().map(str::to_owned));
    let LineCommand::Cluster(arguments) = Line::parse_from(words).command;
    let mut out = String::new();
    let result = run_cluster(arguments, &mut out).await;
    serving.iter().for_each(tokio::task::JoinHandle::abort);
    let orders = fakes.iter().map(|fake| fake.orders.lock().unwrap().clone()).collect();
    Run { out, result: result.map(|_| ()).map_err(|error| format!("{error:#}")), orders }
}

fn replica(node: &str) -> ReplicaId {
    ReplicaId { node: NodeId(node.to_owned()), store: StoreId(u128::from(node.as_bytes()[0]) << 96) }
}

/// With these in sync, one letter each.
fn record(epoch: u64, version: u64, in_sync: &str) -> ClusterRecord {
    let node = |letter: char| replica(&letter.to_string());
    ClusterRecord {
        cluster_id: CLUSTER,
        feature_level: 1,
        epoch: Epoch(epoch),
        version,
        primary: None,
        phase: Phase::Active,
        in_sync: in_sync.chars().map(node).collect(),
        minimum_replicas: 1,
        epoch_start: None,
        members: [].into(),
        removed: [].into(),
        unclean_generation: 0,
        successor: None,
        last_op: 0,
    }
}

/// A node that misses this record, and has promised its epoch.
fn lost(node: &str, record: &ClusterRecord) -> StoredRecord {
    let me = replica(node);
    StoredRecord {
        node_id: me.node.0,
        store_id: me.store.to_string(),
        cluster_id: Some(record.cluster_id.to_string()),
        record: Some(RecordText(String::from_utf8(record.encode()).unwrap())),
        promised_epoch: record.epoch.0,
        last_epoch: Some(record.epoch.0),
        end: Some(Location::new(7, 1000).lsn()),
        lost: Some("the record is missing".to_owned()),
        leads: false,
    }
}

fn fake(says: StoredRecord) -> Fake {
    Fake { says: [says].into(), answer: Ok("restored".to_owned()) }
}

/// `a`, `b` and `c`, all in sync, all of whom know version 12 of epoch 3.
fn three() -> Vec<Fake> {
    let record = record(3, 12, "abc");
    ["a", "b", "c"].map(|node| fake(lost(node, &record))).to_vec()
}

fn agreed() -> String {
    format!("--cluster-id {CLUSTER}")
}

fn order(record: &ClusterRecord, promised_epoch: u64) -> ClusterCommand {
    let text = RecordText(String::from_utf8(record.encode()).unwrap());
    ClusterCommand::RestoreRecord { cluster_id: CLUSTER.to_string(), record: text, promised_epoch }
}

async fn refused(nodes: &[Fake], flags: &str, expected: &str) -> Run {
    let run = run(nodes, flags).await;
    assert!(run.complaint().contains(expected), "{}\n{}", run.complaint(), run.out);
    assert_eq!(run.told(), Vec::<usize>::new(), "{expected}");
    run
}

#[tokio::test]
async fn without_the_id_it_shows_what_is_known_and_how_to_go_on() {
    let mut nodes = three();
    nodes[1].says[0].end = Some(Location::new(7, 2000).lsn());
    nodes[2] = fake(lost("c", &record(3, 11, "ab")));
    nodes[2].says[0].last_epoch = None;
    let run = refused(
        &nodes,
        "",
        &format!("nothing was changed. To put this record back, say so with {}", agreed()),
    )
    .await;
    let ports: Vec<&str> = run.out.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let out = ports[1..4]
        .iter()
        .enumerate()
        .fold(run.out.clone(), |out, (at, from)| out.replace(from, &format!("http://{at}")));
    assert_eq!(
        out.replacen(&" ".repeat(ports[1].len() - "asked".len()), "   ", 1),
        "\
asked     node  store     record                 in sync  promised  journal             now
http://0  a     00000061  version 12 of epoch 3  a, b, c  epoch 3   epoch 3, to 7:1000  the record is missing
http://1  b     00000062  version 12 of epoch 3  a, b, c  epoch 3   epoch 3, to 7:2000  the record is missing
http://2  c     00000063  version 11 of epoch 3  a, b     epoch 3   -                   the record is missing

The newest record is version 12 of epoch 3, known to a, b; in sync by it: a, b, c.
Node b would put it back, under an epoch above 3.
"
    );
}

#[tokio::test]
async fn the_newest_record_goes_to_the_member_with_the_longest_journal() {
    let (old, newest) = (record(3, 40, "abc"), record(4, 12, "bc"));
    let mut nodes = vec![fake(lost("a", &old)), fake(lost("b", &newest)), fake(lost("c", &newest))];
    // Not in the set any more: it may have more, and does not count. Its promise does.
    nodes[0].says[0].last_epoch = Some(9);
    nodes[0].says[0].promised_epoch = 6;
    nodes[2].says[0].end = Some(Location::new(8, 0).lsn());
    let done = run(&nodes, &agreed()).await;
    assert_eq!(done.result, Ok(()), "{}", done.out);
    assert_eq!(done.orders, [vec![], vec![], vec![order(&newest, 6)]]);
    assert!(done.out.ends_with("\nc: restored\n"), "{}", done.out);
    assert!(done.out.contains("an epoch above 6"), "{}", done.out);
    // Whoever has forced a node has made everything before that older.
    let forced = ClusterRecord { unclean_generation: 1, ..record(2, 1, "a") };
    nodes[0] = fake(lost("a", &forced));
    let done = run(&nodes, &agreed()).await;
    assert_eq!(done.orders, [vec![order(&forced, 4)], vec![], vec![]]);
    assert!(done.out.contains("version 1 of epoch 2, forced 1 times, known to a"), "{}", done.out);
}

#[tokio::test]
async fn everybody_whom_the_record_names_is_heard_or_given_up_by_name() {
    let flags = agreed();
    let two = &three()[..2];
    let shown = refused(two, &flags, "what c knew is not known").await;
    assert!(
        shown.out.contains("! c is in the in-sync set, and what it knew is not known\n  start it"),
        "{}",
        shown.out
    );
    // Another disk is another replica; and who has no record knows nothing.
    let mut new_disk = three();
    new_disk[2].says[0].store_id = StoreId(7).to_string();
    refused(&new_disk, &flags, "what c knew is not known").await;
    let mut emptied = three();
    emptied[2].says[0].record = None;
    refused(&emptied, &flags, "what c knew is not known").await;
    refused(two, &format!("{flags} --without b"), "what c knew is not known").await;
    let done = run(two, &format!("{flags} --without c")).await;
    assert_eq!((done.result.clone(), done.told()), (Ok(()), vec![0]), "{}", done.out);
    assert!(done.out.contains("if it knew a newer record, confirmed messages may be lost"), "{}", done.out);
    // A member that was not in sync may have been let in, or forced, since.
    let member = RecordMember { store: StoreId(9), address: String::new(), clients: vec![], priority: 0 };
    let members = ["a", "d"].map(|node| (NodeId(node.to_owned()), member.clone())).into();
    let with_d = ClusterRecord { members, ..record(3, 12, "ab") };
    let mut nodes = ["a", "b"].map(|node| fake(lost(node, &with_d))).to_vec();
    let shown = refused(&nodes, &flags, "what d knew is not known").await;
    assert!(shown.out.contains("! d is a member, and what it knew"), "{}", shown.out);
    assert_eq!(run(&nodes, &format!("{flags} --without d")).await.result, Ok(()));
    nodes.push(fake(lost("d", &record(3, 9, "ab"))));
    assert_eq!(run(&nodes, &flags).await.result, Ok(()));
}

#[tokio::test]
async fn what_does_not_fit_together_changes_nothing() {
    let flags = agreed();
    let mut other = three();
    other[1].says[0].cluster_id = Some(ClusterId(0xc2).to_string());
    refused(&other, &flags, "several clusters").await;
    let mut branched = three();
    branched[1] = fake(lost("b", &record(3, 12, "b")));
    refused(&branched, &flags, "b has another record at").await;
    refused(&three(), &format!("--cluster-id {}", ClusterId(0xc2)), "this is the record of cluster").await;
    refused(&three(), "--cluster-id mine", "this is the record of cluster").await;
    let mut empty = three();
    empty.iter_mut().for_each(|node| node.says[0].record = None);
    refused(&empty, &flags, "none of these nodes has a cluster record").await;
    let alone = Fake { says: VecDeque::new(), answer: Ok(String::new()) };
    let shown = refused(&[alone], &flags, "none of these nodes has a cluster record").await;
    assert!(shown.out.contains("does not say what it knows\n  this node runs alone"), "{}", shown.out);
    let mut damaged = three();
    damaged[0].says[0].record = Some(RecordText("{}".to_owned()));
    let shown = refused(&damaged, &flags, "what a knew is not known").await;
    assert!(shown.out.contains("the record that http://"), "{}", shown.out);
}

#[tokio::test]
async fn nothing_is_restored_over_a_primary_or_without_need() {
    let flags = agreed();
    let mut leading = three();
    leading[1].says[0].lost = None;
    leading[1].says[0].leads = true;
    refused(&leading, &flags, "node b leads").await;
    let mut well = three();
    well.iter_mut().for_each(|node| node.says[0].lost = None);
    refused(&well, &flags, "none of these nodes misses the record").await;
    // Who misses it is not in the set, and who is does not.
    let newest = record(3, 12, "a");
    let mut nodes = [fake(lost("a", &newest)), fake(lost("b", &record(3, 11, "ab")))];
    nodes[0].says[0].lost = None;
    refused(&nodes, &flags, "none of the nodes that are in sync by this record").await;
}

#[tokio::test]
async fn who_had_not_lost_the_record_when_it_was_asked_is_asked_again() {
    let (before, newest) = (record(3, 12, "abc"), record(3, 13, "ab"));
    let mut nodes = three();
    // It has written one more before it lost it, too.
    nodes[0].says = [StoredRecord { lost: None, ..lost("a", &before) }, lost("a", &newest)].into();
    let done = run(&nodes, &agreed()).await;
    assert_eq!(done.result, Ok(()), "{}", done.out);
    assert_eq!(done.orders[0], [order(&newest, 3)]);
}

#[tokio::test]
async fn if_one_cannot_another_one_does_it_unless_the_record_itself_is_wrong() {
    let flags = agreed();
    let says_no = |kind| Err(CommandError::new(kind, "no").advise("do something else"));
    for kind in [CommandErrorKind::Refused, CommandErrorKind::Unavailable, CommandErrorKind::Failed] {
        let mut nodes = three();
        nodes[0].answer = says_no(kind);
        let done = run(&nodes, &flags).await;
        assert_eq!((done.result.clone(), done.told()), (Ok(()), vec![0, 1]), "{kind:?}");
        assert!(done.out.ends_with("\nb: restored\n"), "{}", done.out);
    }
    let mut nodes = three();
    nodes[0].answer = says_no(CommandErrorKind::Invalid);
    let done = run(&nodes, &flags).await;
    assert_eq!(done.told(), [0], "a node that has seen less might do it");
    assert_eq!(done.complaint(), "the record is not known to be restored. a: no; do something else");
    nodes.iter_mut().for_each(|node| node.answer = says_no(CommandErrorKind::Refused));
    let done = run(&nodes, &flags).await;
    assert_eq!(done.told(), [0, 1, 2]);
    assert!(
        done.complaint().ends_with("b: no; do something else. c: no; do something else"),
        "{}",
        done.complaint()
    );
}

#[tokio::test]
async fn who_does_not_answer_is_named_and_others_may_suffice() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let free = listener.local_addr().unwrap();
    drop(listener);
    let done = run_beside(&[free], &three(), &agreed()).await;
    assert_eq!(done.result, Ok(()), "{}", done.out);
    let silent = format!("! http://{free} does not say what it knows\n  nobody listens on http://{free}");
    assert!(done.out.contains(&silent), "{}", done.out);
}

#[tokio::test]
async fn json_has_all_that_was_said() {
    let shown = refused(&three()[..2], "--json --without c", "say so with --cluster-id").await;
    let json: Value = serde_json::from_str(&shown.out).unwrap();
    let said =
        |at: usize| serde_json::from_value::<StoredRecord>(json["asked"][at]["stored"].clone()).unwrap();
    assert_eq!([said(0), said(1)], [three()[0].says[0].clone(), three()[1].says[0].clone()]);
    let newest = &json["newest"];
    assert_eq!(
        (&newest["epoch"], &newest["version"], &newest["promised_epoch"]),
        (&json!(3), &json!(12), &json!(3))
    );
    assert_eq!(newest["unheard"], json!([{ "node": "c", "in_sync": true, "without": true }]));
    assert_eq!((&newest["writers"], &json["result"]), (&json!(["a", "b"]), &Value::Null));
    let done = run(&three(), &format!("--json {}", agreed())).await;
    let json: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(json["result"], json!({ "ok": true, "text": "a: restored" }));
}

#[tokio::test]
async fn names_do_not_move_the_cursor() {
    let mut nodes = three();
    let mut evil = record(3, 13, "abc");
    let replica = ReplicaId { node: NodeId("\u{1b}[2J".to_owned()), store: StoreId(5) };
    evil.in_sync.insert(replica);
    nodes[1] = fake(lost("b", &evil));
    nodes[1].says[0].lost = Some("gone\nfaked".to_owned());
    let run = refused(&nodes, &agreed(), "what \u{fffd}[2J knew").await;
    assert!(!run.out.contains('\u{1b}') && run.out.contains("gone\u{fffd}faked"), "{}", run.out);
}
