//! What is done while one session lives: it is renewed, changes are reported, our place in the queue and our presence are
//! kept as they should be.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kahawai_election::{Fence, ProviderError, ProviderEvent};
use kahawai_types::Millis;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};
use zookeeper_client::{
    AddWatchMode, Client, CreateMode, Error, EventType, PersistentWatcher, SessionState, Stat, WatchedEvent,
};

use crate::provider::{Command, Grant, Shared, patience};
use crate::queue;

/// Renewals in one session timeout.
const RENEWALS: u32 = 6;
/// How far our clock may run behind a server's, in percent.
const DRIFT_PERCENT: Millis = 1;
/// For what lies between reading the deadline and acting on it.
const MARGIN_MS: Millis = 50;
/// After something did not go as it should.
const RETRY: Duration = Duration::from_millis(100);

/// How a session ended.
pub(crate) enum Ended {
    /// By itself.
    Lost(SessionState),
    /// By the provider's owner, or because it is gone.
    Closed(Option<oneshot::Sender<()>>),
}

/// One session and all that belongs to it.
pub(crate) struct Session<'a> {
    shared: &'a Shared,
    client: Client,
    timeout_ms: Millis,
    is_connected: bool,
    /// When the last answered renewal was sent. The creation of the session counts as one.
    renewed_at: Millis,
    campaign: Option<Campaign>,
    place: Option<Place>,
    /// Places of campaigns that are over.
    left: Vec<String>,
    /// A place may have been made, or be gone, without our knowing.
    is_place_uncertain: bool,
    is_queue_dirty: bool,
    /// Waiting to hear that the queue was left.
    resignations: Vec<oneshot::Sender<()>>,
    /// Whether it was said that the grant is held.
    told_held: Option<bool>,
    /// What our node under `presence` says.
    presence: Option<Vec<u8>>,
    is_presence_dirty: bool,
    is_namesake_known: bool,
}

struct Campaign {
    id: u64,
    /// Until it is granted.
    reply: Option<oneshot::Sender<Result<Fence, ProviderError>>>,
}

/// Our node in the queue.
struct Place {
    name: String,
    fence: Fence,
}

impl<'a> Session<'a> {
    pub(crate) fn new(shared: &'a Shared, client: Client, started_at: Millis) -> Self {
        let timeout_ms = Millis::try_from(client.session_timeout().as_millis()).unwrap_or(Millis::MAX);
        Self {
            shared,
            client,
            timeout_ms,
            is_connected: true,
            renewed_at: started_at,
            campaign: None,
            place: None,
            left: Vec::new(),
            is_place_uncertain: false,
            is_queue_dirty: true,
            resignations: Vec::new(),
            told_held: None,
            presence: None,
            is_presence_dirty: true,
            is_namesake_known: false,
        }
    }

    /// Until the session ends. Everything that belongs to it is gone or void then.
    pub(crate) async fn serve(mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Ended {
        self.extend_lease(self.renewed_at);
        let ended = self.serve_on(commands).await;
        if let Some(Campaign { reply: Some(reply), .. }) = self.campaign.take() {
            // Whoever asked may have given up.
            _ = reply.send(Err(ProviderError::SessionLost));
        }
        self.resignations.drain(..).for_each(|done| _ = done.send(()));
        ended
    }

    async fn serve_on(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Ended {
        let client = self.client.clone();
        let record = self.shared.path("record");
        let interval = client.session_timeout() / RENEWALS;
        let mut states = client.state_watcher();
        let mut watcher: Option<PersistentWatcher> = None;
        let mut renewal = None;
        let mut renew_at = Instant::now();
        let mut retry_at = Instant::now();
        loop {
            let state = client.state();
            if state.is_terminated() {
                return Ended::Lost(state);
            }
            if self.is_connected && Instant::now() >= retry_at {
                if watcher.is_none() {
                    watcher = self.watch(&client).await;
                }
                let is_settled = watcher.is_some() && self.settle().await;
                if !is_settled {
                    retry_at = Instant::now() + RETRY;
                }
            }
            let is_settled = watcher.is_some() && !self.is_queue_dirty && !self.is_presence_dirty;
            tokio::select! {
                state = states.changed() => {
                    if state.is_terminated() {
                        return Ended::Lost(state);
                    }
                    if self.is_connected {
                        self.shared.tell(ProviderEvent::Suspended);
                    }
                    self.is_connected = state == SessionState::SyncConnected;
                    // A new connection has no watch, and what was ours may not be any more.
                    watcher = None;
                    self.is_place_uncertain = true;
                    self.is_queue_dirty = true;
                    self.told_held = None;
                    retry_at = Instant::now();
                }
                event = next_event(watcher.as_mut()) => {
                    if event.session_state.is_terminated() {
                        // Its last event; the state follows.
                        watcher = None;
                        retry_at = Instant::now() + RETRY;
                    }
                    self.on_event(&event);
                }
                command = commands.recv() => match command {
                    Some(Command::Close { done }) => return Ended::Closed(Some(done)),
                    Some(command) => self.on_command(command),
                    None => return Ended::Closed(None),
                },
                () = sleep_until(renew_at), if renewal.is_none() && self.is_connected => {
                    renew_at = Instant::now() + interval;
                    renewal = Some((self.shared.now(), Box::pin(client.sync(&record))));
                }
                (sent_at, result) = answer(&mut renewal) => {
                    renewal = None;
                    match result {
                        Ok(()) => {
                            self.extend_lease(self.renewed_at);
                            self.renewed_at = sent_at;
                        }
                        Err(error) => debug!(%error, "the session could not be renewed"),
                    }
                }
                () = sleep_until(retry_at), if self.is_connected && !is_settled => {}
            }
        }
    }

    /// The servers end the session at the earliest its timeout after they received what was sent then.
    fn extend_lease(&self, sent_at: Millis) {
        let certain_ms = self.timeout_ms.saturating_mul(100 - DRIFT_PERCENT) / 100;
        let deadline = sent_at.saturating_add(certain_ms).saturating_sub(MARGIN_MS);
        self.shared.deadline.fetch_max(deadline, Ordering::AcqRel);
    }

    /// Watches all that is ours, and says that anything may have happened before.
    async fn watch(&mut self, client: &Client) -> Option<PersistentWatcher> {
        let path = &self.shared.options.uri.path;
        match self.ask(client.watch(path, AddWatchMode::PersistentRecursive)).await {
            Ok(watcher) => {
                self.shared.tell(ProviderEvent::Connected);
                (self.is_queue_dirty, self.is_presence_dirty) = (true, true);
                Some(watcher)
            }
            Err(error) => {
                debug!(%error, "could not watch the cluster's path");
                None
            }
        }
    }

    fn on_event(&mut self, event: &WatchedEvent) {
        let Some(name) = event
            .path
            .strip_prefix(self.shared.options.uri.path.as_str())
            .and_then(|name| name.strip_prefix('/'))
        else {
            return;
        };
        if name == "record" {
            self.shared.tell(ProviderEvent::RecordChanged);
        } else if name == "election" || name.starts_with("election/") {
            self.is_queue_dirty = true;
        } else if name == "presence" {
            self.is_presence_dirty = true;
        } else if let Some(node) = name.strip_prefix("presence/") {
            self.shared.tell(ProviderEvent::PresenceChanged);
            if node == self.shared.options.node.0 && event.event_type == EventType::NodeDeleted {
                self.presence = None;
                self.is_presence_dirty = true;
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Campaign { id, reply } => {
                self.leave();
                self.campaign = Some(Campaign { id, reply: Some(reply) });
            }
            Command::Leave { id, done } => {
                if id.is_none() || id == self.campaign.as_ref().map(|campaign| campaign.id) {
                    self.leave();
                }
                match done {
                    Some(done) if self.is_connected => self.resignations.push(done),
                    // The end of the session does it.
                    done => _ = done.map(|done| done.send(())),
                }
            }
            Command::Publish => self.is_presence_dirty = true,
            // The caller's.
            Command::Close { .. } => {}
        }
    }

    /// Gives up the campaign or the grant; its node goes when the queue is settled.
    fn leave(&mut self) {
        self.shared.set_grant(None);
        self.left.extend(self.place.take().map(|place| place.name));
        self.is_queue_dirty = true;
        if let Some(Campaign { reply: Some(reply), .. }) = self.campaign.take() {
            // Whoever asked may have given up.
            _ = reply.send(Err(ProviderError::Closed));
        }
    }

    /// Makes what ZooKeeper holds what it should be; whether that succeeded.
    async fn settle(&mut self) -> bool {
        if self.is_queue_dirty {
            self.is_queue_dirty = false;
            let result = self.settle_queue().await;
            // They asked for an attempt: the end of the session does the rest.
            self.resignations.drain(..).for_each(|done| _ = done.send(()));
            if let Err(error) = result {
                debug!(%error, "the queue for the grant could not be settled");
                self.is_queue_dirty = true;
                self.make_directories_again(&error).await;
                return false;
            }
        }
        if self.is_presence_dirty {
            self.is_presence_dirty = false;
            if let Err(error) = self.settle_presence().await {
                debug!(%error, "the presence could not be published");
                self.is_presence_dirty = true;
                self.make_directories_again(&error).await;
                return false;
            }
        }
        true
    }

    /// Somebody may delete the whole path while the session lives, and nobody else would make it again.
    async fn make_directories_again(&self, error: &Error) {
        if *error != Error::NoNode {
            return;
        }
        match self.ask(self.shared.make_directories(&self.client)).await {
            Ok(()) => {
                warn!(uri = %self.shared.options.uri, "the cluster's path in ZooKeeper was deleted, and is there again")
            }
            Err(error) => debug!(%error, "the cluster's path could not be made again"),
        }
    }

    async fn settle_queue(&mut self) -> Result<(), Error> {
        let client = self.client.clone();
        let directory = self.shared.path("election");
        if self.is_place_uncertain {
            self.find_place(&client, &directory).await?;
            self.is_place_uncertain = false;
        }
        while let Some(name) = self.left.last() {
            match self.ask(client.delete(&format!("{directory}/{name}"), None)).await {
                Ok(()) | Err(Error::NoNode) => _ = self.left.pop(),
                Err(error) => return Err(error),
            }
        }
        let prefix = queue::prefix(self.shared.options.boot);
        let path = format!("{directory}/{prefix}");
        // Both at once: the list sees what the creation made.
        let options = self.shared.create_options(CreateMode::EphemeralSequential);
        let enter =
            (self.campaign.is_some() && self.place.is_none()).then(|| client.create(&path, b"", &options));
        let list = client.list_children(&directory);
        if let Some(enter) = enter {
            match self.ask(enter).await {
                Ok((stat, sequence)) => {
                    self.place = Some(Place { name: format!("{prefix}{sequence}"), fence: fence(&stat) });
                }
                Err(error) => {
                    // It may have been made all the same.
                    self.is_place_uncertain = true;
                    return Err(error);
                }
            }
        }
        let names = self.ask(list).await?;
        self.judge_queue(&directory, &names);
        Ok(())
    }

    /// Which of the nodes that bear our process's name belongs to this session. One of an earlier session of ours may still
    /// be there, and is not ours any more.
    async fn find_place(&mut self, client: &Client, directory: &str) -> Result<(), Error> {
        let prefix = queue::prefix(self.shared.options.boot);
        // The server that answers may be behind the one that did before.
        let (sync, list) = (client.sync(directory), client.list_children(directory));
        let names = self
            .ask(async {
                sync.await?;
                list.await
            })
            .await?;
        let mut found = None;
        for name in names.into_iter().filter(|name| name.starts_with(&prefix)) {
            let path = format!("{directory}/{name}");
            let Some(stat) = self.ask(client.check_stat(&path)).await? else { continue };
            if stat.ephemeral_owner != client.session_id().0 {
                continue;
            }
            let is_wanted = match &self.place {
                Some(place) => place.name == name,
                None => self.campaign.is_some() && found.is_none(),
            };
            if self.left.contains(&name) {
                continue;
            }
            if is_wanted {
                found = Some(Place { name, fence: fence(&stat) });
            } else {
                self.left.push(name);
            }
        }
        let known = std::mem::replace(&mut self.place, found);
        if self.place.is_none() {
            self.lose_place(known);
        }
        Ok(())
    }

    fn judge_queue(&mut self, directory: &str, names: &[String]) {
        let holder = queue::lowest(names.iter().map(String::as_str));
        if let Some(place) = &self.place {
            if !names.contains(&place.name) {
                let lost = self.place.take();
                self.lose_place(lost);
                // A campaign that waits enters again.
                self.is_queue_dirty |= self.campaign.is_some();
            } else if holder == Some(&place.name) {
                let path = format!("{directory}/{}", place.name);
                let fence = place.fence;
                self.grant(Grant { fence, path });
            }
        }
        let is_held = holder.is_some();
        if self.told_held != Some(is_held) {
            self.told_held = Some(is_held);
            self.shared.tell(if is_held { ProviderEvent::GrantHeld } else { ProviderEvent::GrantVacant });
        }
    }

    fn grant(&mut self, grant: Grant) {
        let Some(campaign) = &mut self.campaign else {
            return;
        };
        let Some(reply) = campaign.reply.take() else {
            return;
        };
        let fence = grant.fence;
        self.shared.set_grant(Some(grant));
        if reply.send(Ok(fence)).is_err() {
            // Dropped while it was won.
            self.leave();
        }
    }

    fn lose_place(&mut self, place: Option<Place>) {
        self.shared.set_grant(None);
        let was_granted = self.campaign.as_ref().is_some_and(|campaign| campaign.reply.is_none());
        if let (true, Some(place)) = (was_granted, place) {
            self.campaign = None;
            warn!(node = %place.name, "our grant was taken away");
            self.shared.tell(ProviderEvent::GrantLost(place.fence));
        }
    }

    async fn settle_presence(&mut self) -> Result<(), Error> {
        let Some(wanted) = self.shared.published() else {
            return Ok(());
        };
        if self.presence.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let client = self.client.clone();
        let node = &self.shared.options.node;
        let path = self.shared.path(&format!("presence/{node}"));
        if self.presence.take().is_some() {
            match self.ask(client.set_data(&path, &wanted, None)).await {
                Ok(_) => {
                    self.presence = Some(wanted);
                    return Ok(());
                }
                Err(Error::NoNode) => {}
                Err(error) => return Err(error),
            }
        }
        let options = self.shared.create_options(CreateMode::Ephemeral);
        match self.ask(client.create(&path, &wanted, &options)).await {
            Ok(_) => {}
            // Made by an attempt whose answer was lost, or not ours.
            Err(Error::NodeExists) => match self.ask(client.check_stat(&path)).await? {
                Some(stat) if stat.ephemeral_owner == client.session_id().0 => {
                    self.ask(client.set_data(&path, &wanted, None)).await?;
                }
                Some(_) => {
                    // An earlier session of ours, or another process with our name. Its end is an event.
                    if !self.is_namesake_known {
                        self.is_namesake_known = true;
                        info!(%node, "a session with this node's name still lives; waiting for its end");
                    }
                    return Ok(());
                }
                None => return Err(Error::NoNode),
            },
            Err(error) => return Err(error),
        }
        self.is_namesake_known = false;
        self.presence = Some(wanted);
        Ok(())
    }

    /// Asks for a bounded time: without a connection a request waits for the next one.
    async fn ask<T>(&self, request: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match tokio::time::timeout(patience(&self.client), request).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout),
        }
    }
}

/// A node's creation is unique for the life of the ensemble.
fn fence(stat: &Stat) -> Fence {
    Fence(stat.czxid.unsigned_abs())
}

/// Never, without a watch.
async fn next_event(watcher: Option<&mut PersistentWatcher>) -> WatchedEvent {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

/// The answer to the renewal under way; never, without one.
async fn answer<F>(renewal: &mut Option<(Millis, F)>) -> (Millis, F::Output)
where
    F: Future + Unpin,
{
    match renewal {
        Some((sent_at, future)) => (*sent_at, future.await),
        None => std::future::pending().await,
    }
}
