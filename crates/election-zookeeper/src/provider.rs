use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kahawai_election::{
    BoxFuture, Capabilities, CasResult, Fence, PRESENCE_BYTES_MAX, Provider, ProviderError, ProviderEvent,
    RECORD_BYTES_MAX, ReadResult, Revision,
};
use kahawai_types::Millis;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use zookeeper_client::{
    Acls, Client, CreateMode, CreateOptions, Error, MultiWriteError, MultiWriteResult, Stat,
};

use crate::options::{Options, is_path_part};
use crate::supervise;

/// Why a provider cannot be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// The node's name cannot be a name in ZooKeeper.
    #[error(
        "the node's name '{0}' cannot be used in ZooKeeper: it is empty, '.', '..', or has a slash or control character"
    )]
    Name(String),
}

/// The election service of a cluster that uses ZooKeeper.
#[derive(Debug)]
pub struct ZookeeperProvider {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    campaigns: AtomicU64,
    task: JoinHandle<()>,
}

/// What the task is asked to do.
pub(crate) enum Command {
    Campaign {
        id: u64,
        reply: oneshot::Sender<Result<Fence, ProviderError>>,
    },
    /// Leaves the queue or gives the grant back; with an id, only if that campaign is the current one.
    Leave {
        id: Option<u64>,
        done: Option<oneshot::Sender<()>>,
    },
    Publish,
    Close {
        done: oneshot::Sender<()>,
    },
}

/// What the task and the callers share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    /// Until when nobody else can have been granted what the session that lives now holds.
    pub(crate) deadline: AtomicI64,
    current: Mutex<Current>,
    presence: Mutex<Option<Vec<u8>>>,
    events: Mutex<VecDeque<ProviderEvent>>,
    has_event: Notify,
}

/// What belongs to the session that lives now.
#[derive(Default)]
struct Current {
    client: Option<Client>,
    grant: Option<Grant>,
}

/// A grant, and the node in ZooKeeper that is its proof.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Grant {
    pub(crate) fence: Fence,
    pub(crate) path: String,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain values: what a panicking thread left is as good as any.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn now(&self) -> Millis {
        (self.options.clock)()
    }

    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.options.uri.path)
    }

    pub(crate) fn create_options(&self, mode: CreateMode) -> CreateOptions<'static> {
        mode.with_acls(match self.options.credentials {
            Some(_) => Acls::creator_all(),
            None => Acls::anyone_all(),
        })
    }

    /// What is there for as long as there is the cluster, if it is not.
    pub(crate) async fn make_directories(&self, client: &Client) -> Result<(), Error> {
        let directory = self.create_options(CreateMode::Persistent);
        for name in ["election", "presence"] {
            client.mkdir(&self.path(name), &directory).await?;
        }
        Ok(())
    }

    pub(crate) fn set_client(&self, client: Option<Client>) {
        *lock(&self.current) = Current { client, grant: None };
    }

    pub(crate) fn set_grant(&self, grant: Option<Grant>) {
        lock(&self.current).grant = grant;
    }

    pub(crate) fn published(&self) -> Option<Vec<u8>> {
        lock(&self.presence).clone()
    }

    pub(crate) fn tell(&self, event: ProviderEvent) {
        let mut events = lock(&self.events);
        // Whoever reads again because of an earlier one that still waits sees what this one is about.
        let is_hint = matches!(event, ProviderEvent::RecordChanged | ProviderEvent::PresenceChanged);
        if !(is_hint && events.contains(&event)) {
            events.push_back(event);
        }
        drop(events);
        self.has_event.notify_one();
    }

    fn client(&self) -> Option<Client> {
        lock(&self.current).client.clone()
    }

    /// Asks ZooKeeper, for a bounded time: without a connection a request waits for the next one.
    async fn ask<T>(
        &self,
        client: &Client,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(patience(client), request).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout),
        }
    }

    /// The value of a node now or later: the server catches up with the leader first.
    async fn get(&self, client: &Client, path: &str) -> Result<Option<(Vec<u8>, Stat)>, Error> {
        let (sync, get) = (client.sync(path), client.get_data(path));
        let found = self.ask(client, async {
            // Both are on their way already, in this order.
            sync.await?;
            get.await
        });
        match found.await {
            Ok(found) => Ok(Some(found)),
            Err(Error::NoNode) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// How long one request may take: a third of the session, so that its owner can still do something afterwards.
pub(crate) fn patience(client: &Client) -> Duration {
    client.session_timeout() / 3
}

fn revision(stat: &Stat) -> Revision {
    Revision { order: stat.mzxid.unsigned_abs(), token: u64::from(stat.version.cast_unsigned()) }
}

fn error(error: Error) -> ProviderError {
    match error {
        Error::SessionExpired | Error::ClientClosed => ProviderError::SessionLost,
        Error::NoAuth | Error::AuthFailed | Error::InvalidAcl => ProviderError::Refused(error.to_string()),
        other => ProviderError::Unreachable(other.to_string()),
    }
}

/// A place in the queue that is left if nobody waits for the answer any more.
struct Waiting<'a> {
    commands: &'a mpsc::UnboundedSender<Command>,
    id: u64,
    is_answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            // Without the task there is no session, hence no place.
            _ = self.commands.send(Command::Leave { id: Some(self.id), done: None });
        }
    }
}

impl ZookeeperProvider {
    /// Starts making a session, and returns at once. Must be called inside a tokio runtime.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        if !is_path_part(&options.node.0) {
            return Err(OpenError::Name(options.node.0));
        }
        let shared = Arc::new(Shared {
            options,
            deadline: AtomicI64::new(Millis::MIN),
            current: Mutex::default(),
            presence: Mutex::default(),
            events: Mutex::default(),
            has_event: Notify::new(),
        });
        let (commands, receiver) = mpsc::unbounded_channel();
        let task = tokio::spawn(supervise::run(shared.clone(), receiver));
        Ok(Self { shared, commands, campaigns: AtomicU64::new(0), task })
    }

    /// The session that lives now, as ZooKeeper's own logs call it.
    pub fn session_id(&self) -> Option<String> {
        self.shared.client().map(|client| client.session_id().to_string())
    }

    async fn cas(&self, expected: Revision, record: &[u8], fence: Option<Fence>) -> CasResult {
        let (client, grant) = {
            let current = lock(&self.shared.current);
            (current.client.clone(), current.grant.clone())
        };
        let Some(client) = client else {
            return CasResult::Unknown("no session with ZooKeeper".to_owned());
        };
        let mut writer = client.new_multi_writer();
        let checks = match fence {
            None => 0,
            Some(fence) => {
                let Some(grant) = grant.filter(|grant| grant.fence == fence) else {
                    return CasResult::FenceLost;
                };
                if let Err(error) = writer.add_check_version(&grant.path, 0) {
                    return CasResult::Unknown(error.to_string());
                }
                1
            }
        };
        let version = u32::try_from(expected.token).unwrap_or(u32::MAX).cast_signed();
        if let Err(error) = writer.add_set_data(&self.shared.path("record"), record, Some(version)) {
            return CasResult::Unknown(error.to_string());
        }
        let commit = writer.commit();
        match tokio::time::timeout(patience(&client), commit).await {
            Ok(Ok(results)) => match results.last() {
                Some(MultiWriteResult::SetData { stat }) => CasResult::Applied(revision(stat)),
                _ => CasResult::Unknown("ZooKeeper answered something else".to_owned()),
            },
            Ok(Err(MultiWriteError::OperationFailed {
                index,
                source: Error::NoNode | Error::BadVersion,
            })) => {
                if index < checks {
                    CasResult::FenceLost
                } else {
                    CasResult::Conflict
                }
            }
            Ok(Err(error)) => CasResult::Unknown(error.to_string()),
            Err(_) => CasResult::Unknown("ZooKeeper does not answer".to_owned()),
        }
    }

    async fn create(&self, record: &[u8]) -> CasResult {
        let Some(client) = self.shared.client() else {
            return CasResult::Unknown("no session with ZooKeeper".to_owned());
        };
        let path = self.shared.path("record");
        let create_options = self.shared.create_options(CreateMode::Persistent);
        let create = client.create(&path, record, &create_options);
        match self.shared.ask(&client, create).await {
            Ok((stat, _)) => CasResult::Applied(revision(&stat)),
            Err(Error::NodeExists) => CasResult::Conflict,
            Err(error) => CasResult::Unknown(error.to_string()),
        }
    }

    async fn read(&self) -> ReadResult {
        let client = self.shared.client().ok_or_else(no_session)?;
        let found = self.shared.get(&client, &self.shared.path("record")).await.map_err(error)?;
        match found {
            Some((record, _)) if record.len() > RECORD_BYTES_MAX => {
                Err(ProviderError::Refused(format!("the record has {} bytes", record.len())))
            }
            found => Ok(found.map(|(record, stat)| (revision(&stat), record))),
        }
    }

    async fn presence(&self) -> Result<Vec<Vec<u8>>, ProviderError> {
        let client = self.shared.client().ok_or_else(no_session)?;
        let directory = self.shared.path("presence");
        let names = self.shared.ask(&client, client.list_children(&directory)).await.map_err(error)?;
        let paths: Vec<String> = names.iter().map(|name| format!("{directory}/{name}")).collect();
        let mut found = Vec::new();
        // All on their way at once.
        let requests: Vec<_> = paths.iter().map(|path| client.get_data(path)).collect();
        for request in requests {
            match self.shared.ask(&client, request).await {
                Ok((presence, _)) if presence.len() <= PRESENCE_BYTES_MAX => found.push(presence),
                // Too long to be one, or gone meanwhile.
                Ok(_) | Err(Error::NoNode) => {}
                Err(other) => return Err(error(other)),
            }
        }
        Ok(found)
    }
}

fn no_session() -> ProviderError {
    ProviderError::Unreachable("no session with ZooKeeper".to_owned())
}

impl Provider for ZookeeperProvider {
    fn read(&self) -> BoxFuture<'_, ReadResult> {
        Box::pin(self.read())
    }

    fn create(&self, record: Vec<u8>) -> BoxFuture<'_, CasResult> {
        Box::pin(async move { self.create(&record).await })
    }

    fn cas(&self, expected: Revision, record: Vec<u8>, fence: Option<Fence>) -> BoxFuture<'_, CasResult> {
        Box::pin(async move { self.cas(expected, &record, fence).await })
    }

    fn campaign(&self) -> BoxFuture<'_, Result<Fence, ProviderError>> {
        Box::pin(async {
            let id = self.campaigns.fetch_add(1, Ordering::Relaxed);
            let (reply, answer) = oneshot::channel();
            if self.commands.send(Command::Campaign { id, reply }).is_err() {
                return Err(ProviderError::Closed);
            }
            let mut waiting = Waiting { commands: &self.commands, id, is_answered: false };
            let result = answer.await;
            waiting.is_answered = true;
            result.unwrap_or(Err(ProviderError::Closed))
        })
    }

    fn resign(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let (done, answer) = oneshot::channel();
            if self.commands.send(Command::Leave { id: None, done: Some(done) }).is_ok() {
                _ = answer.await;
            }
        })
    }

    fn publish(&self, presence: Vec<u8>) {
        *lock(&self.shared.presence) = Some(presence);
        // After close nobody is left to publish it.
        _ = self.commands.send(Command::Publish);
    }

    fn presence(&self) -> BoxFuture<'_, Result<Vec<Vec<u8>>, ProviderError>> {
        Box::pin(self.presence())
    }

    fn next_event(&self) -> BoxFuture<'_, ProviderEvent> {
        Box::pin(async {
            loop {
                let has_event = self.shared.has_event.notified();
                if let Some(event) = lock(&self.shared.events).pop_front() {
                    return event;
                }
                has_event.await;
            }
        })
    }

    fn deadline(&self, fence: Fence) -> Millis {
        // Under the lock: a later session, with a deadline of its own, begins by taking the grant away.
        let current = lock(&self.shared.current);
        match &current.grant {
            Some(grant) if grant.fence == fence => self.shared.deadline.load(Ordering::Acquire),
            _ => Millis::MIN,
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { linearizable_cas: true, atomic_fence: true, lease: true, durable: true }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let (done, answer) = oneshot::channel();
            if self.commands.send(Command::Close { done }).is_ok() {
                _ = answer.await;
            }
        })
    }
}

impl Drop for ZookeeperProvider {
    fn drop(&mut self) {
        self.shared.set_client(None);
        self.task.abort();
    }
}
