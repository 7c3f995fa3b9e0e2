//! Electors over a real ZooKeeper: who takes over, when, and who has stopped before.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kahawai_election::{
    ClusterRecord, Condition, Effect, Elector, Event, Local, Provider, Request, Settings, StepDownReason,
    Timing,
};
use kahawai_election_zookeeper::ZookeeperProvider;
use kahawai_types::{BootId, ClusterId, Epoch, Lsn, Millis, NodeId, ReplicaId, StoreId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::process::{Clock, open, operator, options};
use crate::proxy::Proxy;
use crate::server::Server;

const PATIENCE: Duration = Duration::from_secs(60);

/// What a node says of itself, and when.
#[derive(Debug)]
enum Said {
    Leads { node: NodeId, epoch: Epoch, at: Millis },
    SteppedDown { node: NodeId, reason: StepDownReason, at: Millis },
    Changed { in_sync: usize },
}

/// A process with an elector and nothing else.
struct Node {
    requests: mpsc::UnboundedSender<Event>,
    task: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn replica(node: &str, store: u128) -> ReplicaId {
    ReplicaId { node: NodeId(node.to_owned()), store: StoreId(store) }
}

fn start(
    me: ReplicaId,
    boot: BootId,
    provider: Arc<ZookeeperProvider>,
    clock: Clock,
    said: mpsc::UnboundedSender<Said>,
) -> Node {
    let settings = Settings {
        me,
        boot,
        address: "kdbr://127.0.0.1:1".to_owned(),
        clients: vec![],
        priority: 0,
        minimum_replicas: 0,
        timing: Timing { empty_store_delay_ms: 0, ..Timing::default() },
    };
    let (sender, events) = mpsc::unbounded_channel();
    let requests = sender.clone();
    let task = tokio::spawn(drive(settings, provider, clock, said, sender, events));
    Node { requests, task }
}

/// Carries out what the elector asks for, each thing in a task of its own.
async fn drive(
    settings: Settings,
    provider: Arc<ZookeeperProvider>,
    clock: Clock,
    said: mpsc::UnboundedSender<Said>,
    answers: mpsc::UnboundedSender<Event>,
    mut events: mpsc::UnboundedReceiver<Event>,
) {
    let node = settings.me.node.clone();
    let mut local = Local {
        cluster_id: ClusterId(1),
        promised: Epoch(0),
        last_epoch: Epoch(0),
        end: Lsn(1),
        journal_is_empty: true,
        condition: Condition::Usable,
    };
    let mut elector = Elector::new(settings, local.clone(), None);
    loop {
        let wait_ms = elector.wake_at().map_or(60_000, |at| at.saturating_sub(clock.now()).clamp(0, 60_000));
        let event = tokio::select! {
            event = provider.next_event() => Event::Provider(event),
            Some(event) = events.recv() => event,
            () = tokio::time::sleep(Duration::from_millis(wait_ms.unsigned_abs())) => {
                Event::Tick { deadline: elector.grant().map_or(Millis::MIN, |grant| provider.deadline(grant)) }
            }
        };
        let mut effects = Vec::new();
        elector.step(clock.now(), event, &mut effects);
        for effect in effects {
            let at = clock.now();
            match effect {
                Effect::Lead { epoch, .. } => {
                    local.promised = epoch;
                    local.last_epoch = epoch;
                    answers.send(Event::Local(local.clone())).unwrap();
                    _ = said.send(Said::Leads { node: node.clone(), epoch, at });
                }
                Effect::StepDown(reason) => {
                    answers.send(Event::SteppedDown(local.clone())).unwrap();
                    _ = said.send(Said::SteppedDown { node: node.clone(), reason, at });
                }
                Effect::Changed(record) => _ = said.send(Said::Changed { in_sync: record.in_sync.len() }),
                Effect::Publish(presence) => provider.publish(presence),
                other => {
                    let (provider, answers) = (provider.clone(), answers.clone());
                    tokio::spawn(async move {
                        if let Some(event) = ask(&provider, other).await {
                            // The node may be gone.
                            _ = answers.send(event);
                        }
                    });
                }
            }
        }
    }
}

async fn ask(provider: &ZookeeperProvider, effect: Effect) -> Option<Event> {
    let provider: &dyn Provider = provider;
    Some(match effect {
        Effect::Read => Event::Record(provider.read().await),
        Effect::ReadPresence => Event::Presence(provider.presence().await),
        Effect::Create { op, record } => Event::Written { op, result: provider.create(record).await },
        Effect::Cas { op, expected, record, fence } => {
            Event::Written { op, result: provider.cas(expected, record, fence).await }
        }
        Effect::Campaign { id } => Event::Campaign { id, result: provider.campaign().await },
        Effect::Resign => {
            provider.resign().await;
            return None;
        }
        _ => return None,
    })
}

async fn hear<T>(said: &mut mpsc::UnboundedReceiver<Said>, wanted: impl Fn(Said) -> Option<T>) -> T {
    let heard = async {
        loop {
            if let Some(found) = wanted(said.recv().await.unwrap()) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.unwrap()
}

fn leads(wanted: &'static str) -> impl Fn(Said) -> Option<(Epoch, Millis)> {
    move |said| match said {
        Said::Leads { node, epoch, at } if node.0 == wanted => Some((epoch, at)),
        _ => None,
    }
}

/// The primary is cut off: it stops by its own clock before ZooKeeper gives up its session, and the other one leads at
/// once when ZooKeeper has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_primary_stops_before_its_successor_starts() {
    let server = Server::start().await;
    let clock = Clock::start();
    let proxy = Proxy::start(server.port).await;
    let (sender, mut said) = mpsc::unbounded_channel();
    let (a, b) = (replica("a", 1), replica("b", 2));
    let first = options(proxy.port, "/x", "a", &clock);
    let second = options(server.port, "/x", "b", &clock);
    let both = BTreeSet::from([a.clone(), b.clone()]);

    let a_node = start(a, first.boot, open(first), clock.clone(), sender.clone());
    let (epoch, _) = hear(&mut said, leads("a")).await;
    let b_node = start(b, second.boot, open(second), clock.clone(), sender);
    a_node.requests.send(Event::Request { id: 1, request: Request::InSync(both) }).unwrap();
    let is_both = |said| matches!(said, Said::Changed { in_sync: 2 }).then_some(());
    hear(&mut said, is_both).await;

    let operator = operator(server.port).await;
    let (names, gone) = operator.list_and_watch_children("/x/election").await.unwrap();
    assert_eq!(names.len(), 1);
    proxy.cut();
    let stopped = hear(&mut said, |said| match said {
        Said::SteppedDown { node, reason, at } if node.0 == "a" => Some((reason, at)),
        _ => None,
    });
    let (stopped, expired_at) = tokio::join!(stopped, async {
        gone.changed().await;
        clock.now()
    });
    assert_eq!(stopped.0, StepDownReason::Deadline);
    assert!(stopped.1 < expired_at, "stopped at {}, expired at {expired_at}", stopped.1);
    let (next, led_at) = hear(&mut said, leads("b")).await;
    assert!(next > epoch);
    assert!(stopped.1 < led_at);
    // Usually some 20 ms; the bound leaves room for a busy machine.
    let took_ms = led_at - expired_at;
    println!("led {took_ms} ms after the session's end");
    assert!(took_ms < 1_000, "the takeover took {took_ms} ms");

    // What was left behind is in the record, and the old primary sees that it is not its own.
    let (bytes, _) = operator.get_data("/x/record").await.unwrap();
    let record = ClusterRecord::decode(&bytes).unwrap();
    assert_eq!(record.epoch, next);
    proxy.heal();
    // It can lead again when its turn comes.
    let switch = Request::StepDown { successor: Some(NodeId("a".to_owned())) };
    b_node.requests.send(Event::Request { id: 2, request: switch }).unwrap();
    let (last, _) = hear(&mut said, leads("a")).await;
    assert!(last > next);
}
