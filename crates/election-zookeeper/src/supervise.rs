//! Makes sessions, one after the other, until it is closed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kahawai_election::{ProviderError, ProviderEvent};
use kahawai_types::Millis;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};
use zookeeper_client::{Client, Error, SessionState};

use crate::provider::{Command, Shared};
use crate::session::{Ended, Session};

/// Between two attempts to connect, doubled each time.
const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(1);
/// How long a session may take to end in good order.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// Runs until it is closed. What a session started has ended when the next one begins.
pub(crate) async fn run(shared: Arc<Shared>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let teller = TellsClosed(&shared);
    let uri = &shared.options.uri;
    if shared.options.credentials.is_none() {
        warn!(%uri, "no user for ZooKeeper: everybody who reaches it may change who leads");
    }
    let mut back_off = BACK_OFF_MIN;
    let mut is_quiet = false;
    let closed = loop {
        let made = tokio::select! {
            made = connect(&shared) => made,
            closed = refuse_until_closed(&mut commands) => break closed,
        };
        match made {
            Ok((client, started_at)) => {
                (back_off, is_quiet) = (BACK_OFF_MIN, false);
                let session_id = client.session_id();
                info!(%uri, session = %session_id, timeout_ms = client.session_timeout().as_millis(), "connected to ZooKeeper");
                shared.set_client(Some(client.clone()));
                let ended = Session::new(&shared, client.clone(), started_at).serve(&mut commands).await;
                shared.deadline.store(Millis::MIN, Ordering::Release);
                shared.set_client(None);
                match ended {
                    Ended::Lost(state) => {
                        warn!(%uri, session = %session_id, %state, "the session with ZooKeeper has ended");
                        shared.tell(ProviderEvent::SessionLost);
                    }
                    Ended::Closed(done) => {
                        close(client).await;
                        break done;
                    }
                }
            }
            Err(error) => {
                if !is_quiet {
                    warn!(%uri, %error, "no session with ZooKeeper; trying again");
                    is_quiet = true;
                }
                tokio::select! {
                    () = tokio::time::sleep(back_off) => back_off = (back_off * 2).min(BACK_OFF_MAX),
                    closed = refuse_until_closed(&mut commands) => break closed,
                }
            }
        }
    };
    drop(teller);
    // The provider is gone, or knows.
    _ = closed.map(|done| done.send(()));
}

/// Whatever ends the task, whoever waits for events hears of it.
struct TellsClosed<'a>(&'a Shared);

impl Drop for TellsClosed<'_> {
    fn drop(&mut self) {
        self.0.deadline.store(Millis::MIN, Ordering::Release);
        self.0.set_client(None);
        self.0.tell(ProviderEvent::Closed);
    }
}

/// A session, and when it was asked for: it cannot end before its timeout after that.
async fn connect(shared: &Shared) -> Result<(Client, Millis), Error> {
    let options = &shared.options;
    let mut connector =
        Client::connector().with_session_timeout(Duration::from_millis(options.session_timeout_ms.into()));
    if let Some(credentials) = &options.credentials {
        let auth = format!("{}:{}", credentials.user, credentials.password);
        connector = connector.with_auth("digest", auth.as_bytes());
    }
    let started_at = shared.now();
    let client = connector.connect(&options.uri.servers.join(",")).await?;
    shared.make_directories(&client).await?;
    Ok((client, started_at))
}

/// Without a session there is nothing to campaign for. Ends when the provider is closed or gone.
async fn refuse_until_closed(commands: &mut mpsc::UnboundedReceiver<Command>) -> Option<oneshot::Sender<()>> {
    loop {
        match commands.recv().await {
            Some(Command::Campaign { reply, .. }) => {
                // Whoever asked may have given up.
                _ = reply.send(Err(ProviderError::Unreachable("no session with ZooKeeper".to_owned())));
            }
            Some(Command::Leave { done, .. }) => _ = done.map(|done| done.send(())),
            // Read again when there is a session.
            Some(Command::Publish) => {}
            Some(Command::Close { done }) => return Some(done),
            None => return None,
        }
    }
}

/// The client library ends the session when the last handle is gone.
async fn close(client: Client) {
    let mut states = client.state_watcher();
    drop(client);
    let ended = async { while states.changed().await != SessionState::Closed {} };
    if tokio::time::timeout(CLOSE_PATIENCE, ended).await.is_err() {
        warn!("ZooKeeper did not confirm the end of our session; it will expire");
    }
}
