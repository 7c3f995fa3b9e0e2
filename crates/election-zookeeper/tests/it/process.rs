//! Processes that use the provider, each behind a network of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kahawai_election_zookeeper::{Credentials, Options, ZookeeperProvider};
use kahawai_types::{BootId, Millis, NodeId};
use tokio::time::Instant;
use zookeeper_client::Client;

/// Long enough for a busy machine, short enough to wait for its end.
pub(crate) const SESSION_MS: u32 = 2_000;

static BOOTS: AtomicU64 = AtomicU64::new(1);

#[derive(Clone)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now(&self) -> Millis {
        Millis::try_from(self.0.elapsed().as_millis()).unwrap()
    }
}

pub(crate) fn node(name: &str) -> NodeId {
    NodeId(name.to_owned())
}

pub(crate) fn new_boot() -> BootId {
    BootId(u128::from(BOOTS.fetch_add(1, Ordering::Relaxed)))
}

pub(crate) fn options(port: u16, path: &str, name: &str, clock: &Clock) -> Options {
    let clock = clock.clone();
    Options {
        uri: format!("zk://127.0.0.1:{port}{path}").parse().unwrap(),
        session_timeout_ms: SESSION_MS,
        credentials: None,
        node: node(name),
        boot: new_boot(),
        clock: Arc::new(move || clock.now()),
    }
}

pub(crate) fn with_user(options: Options, user: &str, password: &str) -> Options {
    let credentials = Credentials { user: user.to_owned(), password: password.to_owned() };
    Options { credentials: Some(credentials), ..options }
}

pub(crate) fn open(options: Options) -> Arc<ZookeeperProvider> {
    Arc::new(ZookeeperProvider::open(options).unwrap())
}

/// An operator's connection, past all faults.
pub(crate) async fn operator(port: u16) -> Client {
    Client::connect(&format!("127.0.0.1:{port}")).await.unwrap()
}
