use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kahawai_election::conformance::{Bench, check_all};
use kahawai_election::{BoxFuture, CasResult, Fence, Provider, ProviderError, ProviderEvent};
use kahawai_election_zookeeper::ZookeeperProvider;
use kahawai_types::{Millis, NodeId};
use zookeeper_client::{Acls, Client, CreateMode, Error};

use crate::process::{Clock, open, operator, options, with_user};
use crate::proxy::Proxy;
use crate::server::Server;

/// What bounds a test whose event does not come.
const PATIENCE: Duration = Duration::from_secs(180);

/// Its own path on a server that others use too.
struct Place {
    server: Arc<Server>,
    path: String,
    clock: Clock,
    processes: Mutex<BTreeMap<NodeId, Process>>,
}

struct Process {
    proxy: Arc<Proxy>,
    session: String,
}

impl Place {
    fn proxy(&self, node: &NodeId) -> Arc<Proxy> {
        self.processes.lock().unwrap()[node].proxy.clone()
    }
}

impl Bench for Place {
    fn open<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Box<dyn Provider>> {
        Box::pin(async {
            let proxy = Arc::new(Proxy::start(self.server.port).await);
            let provider = open(options(proxy.port, &self.path, &node.0, &self.clock));
            assert_eq!(provider.next_event().await, ProviderEvent::Connected);
            let process = Process { proxy, session: provider.session_id().unwrap() };
            self.processes.lock().unwrap().insert(node.clone(), process);
            Box::new(provider) as Box<dyn Provider>
        })
    }

    fn cut<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, ()> {
        Box::pin(async { self.proxy(node).cut() })
    }

    fn await_expiry<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, ()> {
        Box::pin(async {
            let session = self.processes.lock().unwrap()[node].session.clone();
            self.server.await_end_of(&session).await;
        })
    }

    fn heal<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, ()> {
        Box::pin(async { self.proxy(node).heal() })
    }

    fn restart(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.server.restart())
    }

    fn lose_next_answer<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, ()> {
        Box::pin(async { self.proxy(node).mute() })
    }

    fn lose_record(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let operator = operator(self.server.port).await;
            operator.delete(&format!("{}/record", self.path), None).await.unwrap();
        })
    }

    fn now(&self) -> Millis {
        self.clock.now()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zookeeper_keeps_what_a_provider_promises() {
    let server = Arc::new(Server::start().await);
    let checks = check_all(move |name| {
        let server = server.clone();
        Box::pin(async move {
            let path = format!("/kahawai/{name}");
            Place { server, path, clock: Clock::start(), processes: Mutex::default() }
        })
    });
    tokio::time::timeout(PATIENCE, checks).await.unwrap();
}

/// What we make belongs to our user: nobody else reads or writes it, and a wrong password gets no further than that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_user_nobody_else_gets_in() {
    let server = Server::start().await;
    let clock = Clock::start();
    let options = |name| options(server.port, "/guarded/cluster", name, &clock);
    let ours = open(with_user(options("a"), "kahawai", "right"));
    assert_eq!(ours.next_event().await, ProviderEvent::Connected);
    let CasResult::Applied(revision) = ours.create(b"0".to_vec()).await else { panic!("not made") };

    let stranger = operator(server.port).await;
    assert_eq!(stranger.get_data("/guarded/cluster/record").await.unwrap_err(), Error::NoAuth);
    assert_eq!(stranger.set_data("/guarded/cluster/record", b"x", None).await.unwrap_err(), Error::NoAuth);
    let ephemeral = CreateMode::Ephemeral.with_acls(Acls::anyone_all());
    let name = "/guarded/cluster/election/n-00000000000000000000000000000001-0000000000";
    assert_eq!(stranger.create(name, b"", &ephemeral).await.unwrap_err(), Error::NoAuth);

    // It connects, but has no session that is of use, and says so.
    let wrong = open(with_user(options("b"), "kahawai", "wrong"));
    assert!(matches!(wrong.campaign().await, Err(ProviderError::Unreachable(_))));
    assert!(wrong.read().await.is_err());

    let same = open(with_user(options("c"), "kahawai", "right"));
    assert_eq!(same.next_event().await, ProviderEvent::Connected);
    assert_eq!(same.read().await, Ok(Some((revision, b"0".to_vec()))));
    let fence = same.campaign().await.unwrap();
    assert!(matches!(same.cas(revision, b"1".to_vec(), Some(fence)).await, CasResult::Applied(_)));
}

/// An operator who deletes the grant's node takes the grant away, and the holder hears it and cannot write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_whose_node_is_gone_is_lost() {
    let server = Server::start().await;
    let clock = Clock::start();
    let provider = open(options(server.port, "/x", "a", &clock));
    assert_eq!(provider.next_event().await, ProviderEvent::Connected);
    let CasResult::Applied(revision) = provider.create(b"0".to_vec()).await else { panic!("not made") };
    let fence = provider.campaign().await.unwrap();
    let operator = operator(server.port).await;
    for name in operator.list_children("/x/election").await.unwrap() {
        operator.delete(&format!("/x/election/{name}"), None).await.unwrap();
    }
    while provider.next_event().await != ProviderEvent::GrantLost(fence) {}
    assert_eq!(provider.cas(revision, b"1".to_vec(), Some(fence)).await, CasResult::FenceLost);
    let again = provider.campaign().await.unwrap();
    assert_ne!(again, fence);
    assert!(matches!(provider.cas(revision, b"1".to_vec(), Some(again)).await, CasResult::Applied(_)));
}

/// Whatever somebody deletes, sessions that live go on: the grant is lost with the record, and can be won again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_was_deleted_is_made_again() {
    let server = Server::start().await;
    let clock = Clock::start();
    let provider = open(options(server.port, "/x/y", "a", &clock));
    assert_eq!(provider.next_event().await, ProviderEvent::Connected);
    let CasResult::Applied(_) = provider.create(b"0".to_vec()).await else { panic!("not made") };
    provider.publish(b"here".to_vec());
    await_presence(&provider, b"here").await;
    let fence = provider.campaign().await.unwrap();
    let session = provider.session_id();

    let operator = operator(server.port).await;
    let mut writer = operator.new_multi_writer();
    for name in operator.list_children("/x/y/election").await.unwrap() {
        writer.add_delete(&format!("/x/y/election/{name}"), None).unwrap();
    }
    for path in ["/x/y/presence/a", "/x/y/presence", "/x/y/election", "/x/y/record", "/x/y", "/x"] {
        writer.add_delete(path, None).unwrap();
    }
    writer.commit().await.unwrap();

    let mended = async {
        while provider.next_event().await != ProviderEvent::GrantLost(fence) {}
        await_presence(&provider, b"here").await;
    };
    tokio::time::timeout(PATIENCE, mended).await.unwrap();
    assert_eq!(provider.read().await, Ok(None));
    let CasResult::Applied(revision) = provider.create(b"1".to_vec()).await else { panic!("not made") };
    let again = provider.campaign().await.unwrap();
    assert_ne!(again, fence);
    assert_eq!(provider.cas(revision, b"2".to_vec(), Some(fence)).await, CasResult::FenceLost);
    assert!(matches!(provider.cas(revision, b"2".to_vec(), Some(again)).await, CasResult::Applied(_)));
    assert_eq!(provider.session_id(), session, "it took another session");
}

/// A second process with our name does not speak for us while we live, and does when we are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namesake_waits_for_our_end() {
    let server = Server::start().await;
    let clock = Clock::start();
    let (first, second) =
        (open(options(server.port, "/x", "same", &clock)), open(options(server.port, "/x", "same", &clock)));
    first.publish(b"first".to_vec());
    await_presence(&first, b"first").await;
    assert_eq!(second.next_event().await, ProviderEvent::Connected);
    second.publish(b"second".to_vec());
    // Settled when the next thing that needs the same task is.
    second.campaign().await.unwrap();
    assert_eq!(second.presence().await, Ok(vec![b"first".to_vec()]));
    first.close().await;
    await_presence(&second, b"second").await;
}

async fn await_presence(provider: &ZookeeperProvider, wanted: &[u8]) {
    while provider.presence().await != Ok(vec![wanted.to_vec()]) {
        provider.next_event().await;
    }
}

/// Without a server a provider waits, answers in time, and can be closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_server_nothing_hangs() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let provider = open(options(unused, "/x", "a", &Clock::start()));
    assert!(matches!(provider.read().await, Err(ProviderError::Unreachable(_))));
    assert!(matches!(provider.create(vec![]).await, CasResult::Unknown(_)));
    assert!(matches!(provider.campaign().await, Err(ProviderError::Unreachable(_))));
    assert_eq!(provider.deadline(Fence(1)), Millis::MIN);
    provider.resign().await;
    provider.close().await;
    assert_eq!(provider.next_event().await, ProviderEvent::Closed);
    assert!(matches!(provider.campaign().await, Err(ProviderError::Closed)));
}

/// What the library calls a connected client; the tests above count on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_as_long_as_we_ask() {
    let server = Server::start().await;
    let asked = Duration::from_millis(1_400);
    let client = Client::connector()
        .with_session_timeout(asked)
        .connect(&format!("127.0.0.1:{}", server.port))
        .await
        .unwrap();
    assert_eq!(client.session_timeout(), asked);
}
