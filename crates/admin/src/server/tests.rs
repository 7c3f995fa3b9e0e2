//! The API over real connections, with a fake node behind it.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use kahawai_admin_api::{ApiError, ClusterCommand, CommandResult, RecordText, Status, StoredRecord};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::*;
use crate::testing::{primary, replica};
use crate::{CommandError, CommandErrorKind, CommandFuture};

/// Longer than anything here takes, so that only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(100);

/// A node that answers as it is told.
#[derive(Default)]
struct Fake {
    status: Mutex<Status>,
    stored: Mutex<Option<StoredRecord>>,
    /// The next question is answered once the other end is gone.
    hang: Mutex<Option<Receiver<()>>>,
    commands: Mutex<Vec<ClusterCommand>>,
    /// A step-down has begun; it waits for the other one; then it is done.
    begun: Arc<Notify>,
    go_on: Arc<Notify>,
    done: Arc<Notify>,
}

impl Fake {
    fn new(status: Status) -> Arc<Self> {
        Arc::new(Self { status: Mutex::new(status), ..Self::default() })
    }

    fn hang(&self) -> Sender<()> {
        let (sender, receiver) = channel();
        *self.hang.lock().unwrap() = Some(receiver);
        sender
    }

    fn commands(&self) -> Vec<ClusterCommand> {
        self.commands.lock().unwrap().clone()
    }
}

impl Control for Fake {
    fn status(&self) -> Status {
        let hang = self.hang.lock().unwrap().take();
        if let Some(hang) = hang {
            assert!(hang.recv().is_err(), "the other end only goes");
        }
        self.status.lock().unwrap().clone()
    }

    fn stored_record(&self) -> Result<StoredRecord, CommandError> {
        let stored = self.stored.lock().unwrap().clone();
        stored.ok_or_else(|| CommandError::new(CommandErrorKind::Refused, "alone").advise("join one"))
    }

    fn command(&self, command: ClusterCommand) -> CommandFuture {
        self.commands.lock().unwrap().push(command.clone());
        let (begun, go_on, done) = (self.begun.clone(), self.go_on.clone(), self.done.clone());
        Box::pin(async move {
            let failed = |kind| Err(CommandError::new(kind, "no").advise("do something else"));
            match command {
                ClusterCommand::StepDown {} => {
                    begun.notify_one();
                    go_on.notified().await;
                    done.notify_one();
                    Ok("stepped down".to_owned())
                }
                ClusterCommand::Promote { node } => match &*node {
                    "b" => Ok("b leads".to_owned()),
                    "invalid" => failed(CommandErrorKind::Invalid),
                    "unknown" => failed(CommandErrorKind::NotFound),
                    "unavailable" => failed(CommandErrorKind::Unavailable),
                    "failed" => failed(CommandErrorKind::Failed),
                    "panics" => panic!("told to"),
                    _ => failed(CommandErrorKind::Refused),
                },
                _ => Ok("done".to_owned()),
            }
        })
    }
}

/// A served fake; ends with this.
struct Served {
    address: SocketAddr,
    task: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

async fn served(fake: &Arc<Fake>, options: Options) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let control: Arc<dyn Control> = Arc::clone(fake) as _;
    let task = tokio::spawn(serve(listener, control, options, async {
        // Dropped counts as told.
        let _ = stopped.await;
    }));
    Served { address, task, stop }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn of(bytes: &[u8]) -> Self {
        let text = std::str::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest[..3].parse().ok()).unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn ok(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.body);
        let result: CommandResult = serde_json::from_str(&self.body).unwrap();
        assert!(result.ok);
        result.text
    }

    fn error(&self, status: u16) -> ApiError {
        assert_eq!(self.status, status, "{}", self.body);
        serde_json::from_str(&self.body).unwrap()
    }
}

async fn send(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// What comes until the server closes.
async fn answer(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A server that closes with unread input resets; what it said before that counts.
    let read = timeout(PATIENCE, stream.read_to_end(&mut bytes))
        .await
        .expect("the server neither answers nor closes");
    drop(read);
    bytes
}

async fn ask(address: SocketAddr, request: &str) -> Answer {
    Answer::of(&answer(send(address, request.as_bytes()).await).await)
}

async fn get(served: &Served, path: &str) -> Answer {
    ask(served.address, &format!("GET {path} HTTP/1.1\r\nHost: node.example\r\n\r\n")).await
}

fn posted(path: &str, more: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:8161\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{more}\r\n{body}",
        body.len()
    )
}

async fn post(served: &Served, path: &str, body: &str) -> Answer {
    ask(served.address, &posted(path, "", body)).await
}

#[tokio::test]
async fn questions_are_answered() {
    let fake = Fake::new(primary());
    let served = served(&fake, Options::default()).await;
    let status = get(&served, "/status").await;
    assert_eq!(status.status, 200);
    assert_eq!(serde_json::from_str::<Status>(&status.body).unwrap(), primary());
    for header in ["content-type: application/json", "cache-control: no-store", "connection: close"] {
        assert!(status.head.contains(header), "{header} in {}", status.head);
    }
    let page = get(&served, "/metrics").await;
    assert_eq!((page.status, page.body), (200, crate::metrics(&primary())));
    assert!(page.head.contains("content-type: text/plain; version=0.0.4"), "{}", page.head);
    assert_eq!(get(&served, "/livez").await.ok(), "alive, primary");
    assert_eq!(get(&served, "/readyz").await.ok(), "primary, serves clients");
    assert_eq!(get(&served, "/readyz?role=primary").await.ok(), "primary, serves clients");
    assert_eq!(get(&served, "/readyz?role=replica").await.error(503).error, "primary, not replica");
    get(&served, "/readyz?role=master").await.error(400);
    assert_eq!(get(&served, "/stop-safe").await.ok(), "2 in sync without it, 2 needed");
}

#[tokio::test]
async fn what_is_stored_of_the_record_is_told_to_everybody() {
    let fake = Fake::new(primary());
    let served = served(&fake, Options { token: Some("s3cret".to_owned()), ..Options::default() }).await;
    let alone = get(&served, "/cluster/record").await.error(409);
    assert_eq!(alone, ApiError { error: "alone".to_owned(), advice: "join one".to_owned() });
    let record = Some(RecordText("{\n  \"format\": 1\n}".to_owned()));
    let stored =
        StoredRecord { node_id: "a".to_owned(), record, promised_epoch: 7, ..StoredRecord::default() };
    *fake.stored.lock().unwrap() = Some(stored.clone());
    let answer = get(&served, "/cluster/record").await;
    assert_eq!(serde_json::from_str::<StoredRecord>(&answer.body).unwrap(), stored);
    assert!(answer.head.contains("cache-control: no-store"), "{}", answer.head);
    post(&served, "/cluster/record", "{}").await.error(405);
    // Also while the node cannot say how it is.
    let hang = fake.hang();
    let asking = send(served.address, b"GET /status HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(get(&served, "/cluster/record").await.status, 200);
    drop(hang);
    assert_eq!(Answer::of(&self::answer(asking).await).status, 200);
}

#[tokio::test]
async fn a_record_may_be_long_and_needs_what_every_command_needs() {
    let fake = Fake::new(primary());
    let served = served(&fake, Options::default()).await;
    // Each of them takes two in the text.
    let record = RecordText("\n".repeat(256 << 10));
    let command = ClusterCommand::RestoreRecord { cluster_id: "1d".to_owned(), record, promised_epoch: 7 };
    let body = command.fields().to_string();
    assert_eq!(post(&served, "/cluster/restore-record", &body).await.ok(), "done");
    assert_eq!(fake.commands(), [command]);
    let too_long = format!("{body}{}", " ".repeat(64 << 10));
    let refused = post(&served, "/cluster/restore-record", &too_long).await.error(413);
    assert!(refused.error.contains(&((512 + 64) << 10).to_string()), "{refused:?}");
    let rebound = posted("/cluster/restore-record", "", &body).replace("127.0.0.1:8161", "evil.example");
    ask(served.address, &rebound).await.error(403);
    get(&served, "/cluster/restore-record").await.error(405);
    assert_eq!(fake.commands().len(), 1);
}

#[tokio::test]
async fn answers_follow_the_node() {
    let fake = Fake::new(replica());
    let served = served(&fake, Options::default()).await;
    assert_eq!(get(&served, "/readyz").await.ok(), "replica, in sync");
    fake.status.lock().unwrap().minimum_replicas = 2;
    let unsafe_now = get(&served, "/stop-safe").await.error(409);
    assert!(unsafe_now.error.contains("would be suspended"), "{unsafe_now:?}");
    assert!(!unsafe_now.advice.is_empty());
    fake.status.lock().unwrap().in_sync.clear();
    assert!(get(&served, "/readyz").await.error(503).error.contains("not in the in-sync set"));
}

#[tokio::test]
async fn commands_reach_the_node_and_its_answers_come_back() {
    let fake = Fake::new(primary());
    let served = served(&fake, Options::default()).await;
    assert_eq!(post(&served, "/cluster/promote", r#"{"node":"b"}"#).await.ok(), "b leads");
    assert_eq!(post(&served, "/cluster/set-minimum-replicas", r#"{"replicas":2}"#).await.ok(), "done");
    let expected = [
        ClusterCommand::Promote { node: "b".to_owned() },
        ClusterCommand::SetMinimumReplicas { replicas: 2 },
    ];
    assert_eq!(fake.commands(), expected);
    for (node, status) in
        [("invalid", 400), ("unknown", 404), ("refused", 409), ("unavailable", 503), ("failed", 500)]
    {
        let answer = post(&served, "/cluster/promote", &format!(r#"{{"node":"{node}"}}"#)).await;
        let expected = ApiError { error: "no".to_owned(), advice: "do something else".to_owned() };
        assert_eq!(answer.error(status), expected);
    }
    post(&served, "/cluster/promote", r#"{"node":"panics"}"#).await.error(500);
    assert_eq!(get(&served, "/livez").await.ok(), "alive, primary");
}

#[tokio::test]
async fn what_is_no_command_does_not_reach_the_node() {
    let fake = Fake::new(primary());
    let served = served(&fake, Options::default()).await;
    assert!(post(&served, "/cluster/destroy", "{}").await.error(404).advice.contains("step-down"));
    assert!(post(&served, "/cluster/promote", "{}").await.error(400).error.contains("node"));
    post(&served, "/cluster/promote", "\u{0}").await.error(400);
    let plain = "POST /cluster/step-down HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n";
    ask(served.address, plain).await.error(415);
    let rebound = posted("/cluster/step-down", "", "").replace("127.0.0.1:8161", "evil.example");
    ask(served.address, &rebound).await.error(403);
    get(&served, "/cluster/step-down").await.error(405);
    post(&served, "/status", "{}").await.error(405);
    get(&served, "/").await.error(404);
    get(&served, "/cluster").await.error(404);
    assert_eq!(fake.commands(), []);
}

#[tokio::test]
async fn a_token_is_asked_for_where_there_is_one() {
    let fake = Fake::new(primary());
    let served = served(&fake, Options { token: Some("s3cret".to_owned()), ..Options::default() }).await;
    let body = r#"{"node":"b"}"#;
    post(&served, "/cluster/promote", body).await.error(401);
    let with = |token: &str| posted("/cluster/promote", &format!("Authorization: Bearer {token}\r\n"), body);
    ask(served.address, &with("guess")).await.error(401);
    assert_eq!(fake.commands(), []);
    assert_eq!(ask(served.address, &with("s3cret")).await.ok(), "b leads");
    assert_eq!(get(&served, "/status").await.status, 200);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused() {
    let fake = Fake::new(primary());
    let served = served(&fake, Options::default()).await;
    let long = " ".repeat((64 << 10) + 1);
    post(&served, "/cluster/step-down", &long).await.error(413);
    let chunked = format!(
        "POST /cluster/step-down HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
        long.len()
    );
    ask(served.address, &chunked).await.error(413);
    assert_eq!(fake.commands(), []);
    let most = format!("{}{}", r#"{"node":"b"}"#, " ".repeat((64 << 10) - 12));
    assert_eq!(post(&served, "/cluster/promote", &most).await.ok(), "b leads");
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let served = served(&Fake::new(primary()), Options::default()).await;
    let request = format!("GET /livez HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(32 << 10));
    assert_eq!(ask(served.address, &request).await.status, 431);
}

#[tokio::test]
async fn who_is_too_slow_is_cut_off() {
    let options = Options { request_timeout: SOON, ..Options::default() };
    let fake = Fake::new(primary());
    let served = served(&fake, options).await;
    for head in ["", "GET /livez HTTP/1.1\r\nHost:"] {
        let bytes = answer(send(served.address, head.as_bytes()).await).await;
        assert!(!bytes.starts_with(b"HTTP/1.1 200"), "{head:?}");
    }
    let request = posted("/cluster/promote", "", r#"{"node":"b"}"#);
    let cut = &request[..request.len() - 1];
    ask(served.address, cut).await.error(408);
    assert_eq!(fake.commands(), []);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let served = served(&Fake::new(primary()), Options { connections_max: 1, ..Options::default() }).await;
    let idle = send(served.address, b"G").await;
    let mut second = send(served.address, b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut byte = [0; 1];
    assert!(timeout(SOON, second.read_exact(&mut byte)).await.is_err(), "served beyond the limit");
    drop(idle);
    let rest = answer(second).await;
    assert_eq!(Answer::of(&rest).ok(), "alive, primary");
}

#[tokio::test]
async fn a_node_that_hangs_is_seen_to_hang() {
    let fake = Fake::new(primary());
    let served = served(&fake, Options { status_timeout: SOON, ..Options::default() }).await;
    let hang = fake.hang();
    for path in ["/livez", "/readyz", "/status", "/metrics", "/stop-safe"] {
        assert!(get(&served, path).await.error(503).error.contains("hangs"), "{path}");
    }
    drop(hang);
    // The one question that hung gives up its turn now, at some time.
    let recovered = timeout(PATIENCE, async { while get(&served, "/livez").await.status != 200 {} }).await;
    assert!(recovered.is_ok());
}

#[tokio::test]
async fn a_command_goes_on_when_whoever_gave_it_has_gone() {
    let fake = Fake::new(primary());
    let served = served(&fake, Options::default()).await;
    let asking = send(served.address, posted("/cluster/step-down", "", "{}").as_bytes()).await;
    timeout(PATIENCE, fake.begun.notified()).await.unwrap();
    drop(asking);
    // The server has seen it go once it answers another one after that.
    assert_eq!(get(&served, "/livez").await.ok(), "alive, primary");
    fake.go_on.notify_one();
    timeout(PATIENCE, fake.done.notified()).await.unwrap();
}

#[tokio::test]
async fn a_command_that_takes_long_is_left_to_go_on() {
    let fake = Fake::new(primary());
    let served = served(&fake, Options { command_timeout: SOON, ..Options::default() }).await;
    let answer = post(&served, "/cluster/step-down", "").await.error(504);
    assert!(answer.error.contains("goes on"), "{answer:?}");
    fake.go_on.notify_one();
    timeout(PATIENCE, fake.done.notified()).await.unwrap();
}

#[tokio::test]
async fn the_server_ends_when_it_is_told_even_with_an_idle_connection() {
    let served = served(&Fake::new(primary()), Options::default()).await;
    let idle = send(served.address, b"GET /livez").await;
    assert_eq!(get(&served, "/livez").await.ok(), "alive, primary");
    served.stop.send(()).unwrap();
    timeout(PATIENCE, served.task).await.unwrap().unwrap();
    assert_eq!(answer(idle).await, b"");
    assert!(TcpStream::connect(served.address).await.is_err());
}

#[test]
fn the_token_stays_out_of_logs() {
    let shown = format!("{:?}", Options { token: Some("s3cret".to_owned()), ..Options::default() });
    assert!(!shown.contains("s3cret") && shown.contains("connections_max: 64"), "{shown}");
}
