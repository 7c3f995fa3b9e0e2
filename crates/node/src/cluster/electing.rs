//! Carries out what the elector decides: one task between the election service and the rest of the node.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kahawai_election::{
    ClusterRecord, Effect, Elector, Event, Fence, Presence, PrimaryRef, Provider, ProviderEvent, Refusal,
    Request, Status, StepDownReason,
};
use kahawai_env::Clock;
use kahawai_types::{Epoch, Millis, NodeId};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error, info, warn};

use crate::core::unpoisoned;

/// How often the elector looks at the time.
const TICK: Duration = Duration::from_millis(50);

/// A disk that takes longer to keep the record costs a primary its place.
const SAVE_HANGS: Duration = Duration::from_secs(4);

/// How long the end of the session may take before the process ends without it.
const LEAVE: Duration = Duration::from_secs(2);

/// What the rest of the node has to do.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Lead.
    Lead { epoch: Epoch, record: Box<ClusterRecord>, unclean: bool },
    /// Follow, if there is somebody.
    Follow { primary: Option<PrimaryRef> },
    /// Stop leading, at once.
    StepDown(StepDownReason),
    /// The record says this now.
    Changed(Box<ClusterRecord>),
    /// End: what this node knows of the cluster cannot be kept.
    StorageFailed(String),
}

/// What operators may want to know.
#[derive(Clone, Debug)]
pub(crate) struct ElectionView {
    pub(crate) status: Status,
    pub(crate) record: Option<ClusterRecord>,
    pub(crate) present: Vec<Presence>,
    pub(crate) connected: bool,
}

enum Told {
    Event(Event),
    Request(Request, oneshot::Sender<Result<(), Refusal>>),
    Leave(oneshot::Sender<()>),
}

/// A handle on the election task.
#[derive(Clone)]
pub(crate) struct Election {
    tell: mpsc::UnboundedSender<Told>,
    lease: Arc<AtomicI64>,
    view: Arc<Mutex<ElectionView>>,
}

impl Election {
    /// Tells the elector.
    pub(crate) fn tell(&self, event: Event) {
        // Ends with the node only.
        let _ = self.tell.send(Told::Event(event));
    }

    /// Asks for a change of the record, and waits for the answer.
    pub(crate) async fn request(&self, request: Request) -> Result<(), Refusal> {
        let (answer, answered) = oneshot::channel();
        let _ = self.tell.send(Told::Request(request, answer));
        answered.await.unwrap_or(Err(Refusal::SteppedDown))
    }

    /// Asks for a change without waiting.
    pub(crate) fn ask(&self, request: Request) {
        let _ = self.tell.send(Told::Request(request, oneshot::channel().0));
    }

    /// Ends the session with the election service, so that nobody waits for it to expire. Nothing is decided after that.
    pub(crate) async fn leave(&self) {
        let (left, done) = oneshot::channel();
        let _ = self.tell.send(Told::Leave(left));
        let _ = tokio::time::timeout(LEAVE, done).await;
    }

    /// Until when nobody else can lead, milliseconds of the boot clock.
    pub(crate) fn deadline_ms(&self) -> u64 {
        u64::try_from(self.lease.load(Ordering::Acquire)).unwrap_or(0)
    }

    /// Has an operator taken this node out, as far as is known?
    pub(crate) fn is_removed(&self, node: &NodeId) -> bool {
        let view = unpoisoned(&self.view);
        view.record.as_ref().is_some_and(|record| record.removed.contains(node))
    }

    /// What is known.
    pub(crate) fn view(&self) -> ElectionView {
        unpoisoned(&self.view).clone()
    }
}

/// Keeps a copy of the newest record that was seen.
pub(crate) type Save = Box<dyn FnMut(Vec<u8>) -> Result<(), String> + Send>;

/// Starts the task. `decisions` end with it.
pub(crate) fn start(
    provider: Arc<dyn Provider>,
    elector: Elector,
    save: Save,
    clock: Arc<dyn Clock>,
) -> (Election, mpsc::UnboundedReceiver<Decision>) {
    let (tell, told) = mpsc::unbounded_channel();
    let (decide, decisions) = mpsc::unbounded_channel();
    let lease = Arc::new(AtomicI64::new(Millis::MIN));
    let view =
        ElectionView { status: Status::Connecting, record: None, present: Vec::new(), connected: false };
    let view = Arc::new(Mutex::new(view));
    let election = Election { tell, lease, view };
    let pump = election.clone();
    let events = Arc::clone(&provider);
    tokio::spawn(async move {
        loop {
            let event = events.next_event().await;
            let closed = event == ProviderEvent::Closed;
            pump.tell(Event::Provider(event));
            if closed || pump.tell.is_closed() {
                return;
            }
        }
    });
    let driver = Driver {
        provider,
        elector,
        save: Some(save),
        clock,
        told,
        decide,
        election: election.clone(),
        effects: Vec::new(),
        answers: HashMap::new(),
        request_last: 0,
        campaign: None,
        resigning: None,
    };
    tokio::spawn(driver.run());
    (election, decisions)
}

struct Driver {
    provider: Arc<dyn Provider>,
    elector: Elector,
    /// Away while it is at work.
    save: Option<Save>,
    clock: Arc<dyn Clock>,
    told: mpsc::UnboundedReceiver<Told>,
    decide: mpsc::UnboundedSender<Decision>,
    election: Election,
    effects: Vec<Effect>,
    answers: HashMap<u64, oneshot::Sender<Result<(), Refusal>>>,
    request_last: u64,
    campaign: Option<tokio::task::JoinHandle<()>>,
    /// A campaign begins after it, or it would be the one that is given up.
    resigning: Option<tokio::task::JoinHandle<()>>,
}

impl Driver {
    async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leaving = None;
        while !self.decide.is_closed() {
            let event = tokio::select! {
                biased;
                told = self.told.recv() => match told {
                    None => break,
                    Some(Told::Leave(left)) => {
                        leaving = Some(left);
                        break;
                    }
                    Some(Told::Event(event)) => event,
                    Some(Told::Request(request, answer)) => {
                        self.request_last += 1;
                        self.answers.insert(self.request_last, answer);
                        Event::Request { id: self.request_last, request }
                    }
                },
                _ = tick.tick() => Event::Tick { deadline: self.deadline() },
            };
            self.look(&event);
            let now = Millis::try_from(self.clock.boot_ms()).unwrap_or(Millis::MAX);
            self.elector.step(now, event, &mut self.effects);
            // Before the effects: whoever is told to lead finds its gate open, and nobody opens it who is about to be told to step
            // down.
            self.election.lease.store(self.deadline(), Ordering::Release);
            let mut effects = std::mem::take(&mut self.effects);
            for effect in effects.drain(..) {
                self.carry_out(effect).await;
            }
            self.effects = effects;
        }
        if let Some(task) = self.campaign.take() {
            task.abort();
        }
        if let Some(task) = self.resigning.take() {
            let _ = task.await;
        }
        self.provider.close().await;
        if let Some(left) = leaving {
            let _ = left.send(());
        }
    }

    /// Writes the record down. If the disk hangs, nothing can be decided here, so the grant is given back once it is sure that
    /// nothing leaves for clients any more; the elector finds that out when the disk is back.
    async fn keep(&mut self, bytes: Vec<u8>) {
        let Some(mut save) = self.save.take() else { return };
        let mut saving = tokio::task::spawn_blocking(move || {
            let kept = save(bytes);
            (save, kept)
        });
        let saved = match tokio::time::timeout(SAVE_HANGS, &mut saving).await {
            Ok(saved) => saved,
            Err(_) => {
                warn!(
                    for_s = SAVE_HANGS.as_secs(),
                    "the disk hangs: the cluster record cannot be written down"
                );
                self.give_way(&mut saving).await;
                saving.await
            }
        };
        let kept = match saved {
            Ok((save, kept)) => {
                self.save = Some(save);
                kept
            }
            Err(panic) => Err(panic.to_string()),
        };
        if let Err(reason) = kept {
            error!(%reason, "the cluster record could not be kept");
            self.election.tell(Event::StorageFailed);
            self.decide(Decision::StorageFailed(reason));
        }
    }

    /// Ends what we hold of the election service's, after the lease that the gate goes by, unless the disk is back before.
    async fn give_way<T>(&mut self, saving: &mut tokio::task::JoinHandle<T>) {
        if self.elector.grant().is_none() {
            return;
        }
        while !saving.is_finished() {
            if self.clock.boot_ms() >= self.election.deadline_ms() {
                warn!("the grant is given back, somebody else shall lead");
                return self.provider.resign().await;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Until when the grant that we hold is ours. The next one is won only after all that was led under this one is closed, so
    /// whoever looks at the lease for a reign never sees that of a later one.
    fn deadline(&self) -> Millis {
        self.elector.grant().map_or(Millis::MIN, |grant| self.provider.deadline(grant))
    }

    fn look(&self, event: &Event) {
        let mut view = unpoisoned(&self.election.view);
        match event {
            Event::Provider(ProviderEvent::Connected) => view.connected = true,
            Event::Provider(ProviderEvent::Suspended | ProviderEvent::SessionLost) => view.connected = false,
            Event::Record(Ok(Some((_, bytes)))) => {
                if let Ok(record) = ClusterRecord::decode(bytes) {
                    view.record = Some(record);
                }
            }
            Event::Presence(Ok(all)) => {
                view.present = all.iter().filter_map(|bytes| Presence::decode(bytes).ok()).collect();
            }
            _ => {}
        }
    }

    fn later(&self, work: impl Future<Output = Event> + Send + 'static) -> tokio::task::JoinHandle<()> {
        let tell = self.election.tell.clone();
        tokio::spawn(async move {
            let _ = tell.send(Told::Event(work.await));
        })
    }

    async fn carry_out(&mut self, effect: Effect) {
        let provider = Arc::clone(&self.provider);
        debug!(?effect, "election");
        match effect {
            Effect::Read => {
                self.later(async move { Event::Record(provider.read().await) });
            }
            Effect::ReadPresence => {
                self.later(async move { Event::Presence(provider.presence().await) });
            }
            Effect::Create { op, record } => {
                self.later(async move { Event::Written { op, result: provider.create(record).await } });
            }
            Effect::Cas { op, expected, record, fence } => {
                self.later(async move {
                    Event::Written { op, result: provider.cas(expected, record, fence).await }
                });
            }
            Effect::Campaign { id } => {
                let resigning = self.resigning.take();
                let campaign = self.later(async move {
                    if let Some(task) = resigning {
                        let _ = task.await;
                    }
                    let result: Result<Fence, _> = provider.campaign().await;
                    Event::Campaign { id, result }
                });
                if let Some(before) = self.campaign.replace(campaign) {
                    before.abort();
                }
            }
            Effect::Resign => {
                if let Some(task) = self.campaign.take() {
                    task.abort();
                }
                self.resigning = Some(tokio::spawn(async move { provider.resign().await }));
            }
            Effect::Publish(presence) => provider.publish(presence),
            // A few hundred bytes, seldom; what follows may rest on it.
            Effect::Save(bytes) => self.keep(bytes).await,
            Effect::Lead { epoch, record, unclean } => {
                info!(epoch = epoch.0, "elected");
                self.decide(Decision::Lead { epoch, record, unclean });
            }
            Effect::Follow { primary, .. } => self.decide(Decision::Follow { primary }),
            Effect::StepDown(reason) => {
                match reason {
                    StepDownReason::Asked => info!(%reason, "no longer the primary"),
                    _ => warn!(%reason, "no longer the primary"),
                }
                self.decide(Decision::StepDown(reason));
            }
            Effect::Changed(record) => {
                let mut view = unpoisoned(&self.election.view);
                view.record = Some((*record).clone());
                drop(view);
                self.decide(Decision::Changed(record));
            }
            Effect::Answer { id, outcome } => {
                if let Some(answer) = self.answers.remove(&id) {
                    // Whoever asked may not wait any more.
                    let _ = answer.send(outcome);
                }
            }
            Effect::Status(status) => {
                info!(%status, "election");
                unpoisoned(&self.election.view).status = status;
            }
        }
    }

    fn decide(&self, decision: Decision) {
        let _ = self.decide.send(decision);
    }
}
