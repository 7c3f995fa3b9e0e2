//! What the admin API shows and commands.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kahawai_admin::{CommandError, CommandErrorKind, CommandFuture, Control};
use kahawai_admin_api::{
    BrokerStatus, ClusterCommand, Connector, DamagedFile, DestinationKind, DestinationStatus, ElectionStatus,
    Histogram, JournalStatus, Member, Presence, PrimaryStatus, RecordText, ReplicaStatus, Role, RoleChange,
    Status, StoredRecord, Suspension, SyncProgress,
};
use kahawai_election::{ClusterRecord, PrimaryRef, Refusal, Request};
use kahawai_env::Files;
use kahawai_journal::Journal;
use kahawai_store::state::State;
use kahawai_types::{ClusterId, Epoch, Lsn, NodeId, ReplicaId, StoreId};
use tokio::sync::oneshot;

use super::bulk::{SinkProgress, Told};
use super::net::host_and_port;
use super::{Command, Present, Stage};
use crate::core::{Core, unpoisoned};

/// Destinations that are listed one by one.
const DESTINATIONS_MAX: usize = 1000;

/// A node of a cluster, as its admin API sees it.
pub(super) struct NodeControl {
    stage: Arc<Stage>,
    files: Arc<dyn Files>,
}

impl NodeControl {
    pub(super) fn new(stage: Arc<Stage>, files: Arc<dyn Files>) -> Self {
        Self { stage, files }
    }
}

/// What a journal has done, and its room. Asks the file system: without a lock that others wait for.
pub(crate) fn journal(journal: &Journal) -> JournalStatus {
    let (stats, files, (damaged, repaired)) = (journal.stats(), journal.files(), journal.damaged());
    let damaged = damaged.into_iter().map(|(file, problem)| DamagedFile { file, problem });
    JournalStatus {
        damaged: damaged.collect(),
        repaired,
        records: stats.records,
        batches: stats.batches,
        bytes: stats.bytes,
        flushes: stats.flushes,
        flush_seconds: Histogram::from_microseconds(&stats.flush_us_buckets, stats.flush_us_sum),
        flush_seconds_max: stats.flush_us_max as f64 / 1e6,
        flush_seconds_last: stats.flush_us_last as f64 / 1e6,
        disk_free_bytes: journal.free_bytes(),
        files: files.len() as u64,
        file_bytes: files.iter().map(|file| file.bytes).sum(),
    }
}

/// What the store holds.
pub(crate) fn contents(state: &State, status: &mut Status) {
    for (_, destination) in state.destinations() {
        let is_queue = destination.name.kind.is_queue();
        let messages = if is_queue {
            destination.count
        } else {
            destination.subscriptions.values().map(|subscription| subscription.pending).sum()
        };
        status.broker.destinations += 1;
        status.broker.messages += messages;
        status.broker.durable_subscriptions += destination.subscriptions.len() as u64;
        if status.destinations.len() < DESTINATIONS_MAX {
            status.destinations.push(DestinationStatus {
                kind: if is_queue { DestinationKind::Queue } else { DestinationKind::Topic },
                name: destination.name.name.to_string(),
                messages,
                ..DestinationStatus::default()
            });
        }
    }
}

/// What the broker holds and has done.
pub(crate) fn work(core: &Core, status: &mut Status) {
    let broker = core.broker.status();
    status.broker.consumers = broker.consumers as u64;
    status.broker.durable_subscriptions = broker.durable_subscriptions as u64;
    status.broker.memory_bytes = broker.memory_bytes;
    status.broker.memory_bytes_max = broker.memory_bytes_max;
    status.broker.producers_blocked = broker.blocked.len() as u64;
    for place in core.broker.destination_statuses(None, usize::MAX, &core.store) {
        let counts = &place.counts;
        let is_queue = place.name.kind.is_queue();
        let consumers = place.lines.iter().map(|line| line.consumers).sum::<usize>() + place.subscribers;
        let waiting = place.lines.iter().map(|line| line.stored + line.in_memory as u64).sum();
        let one = DestinationStatus {
            kind: if is_queue { DestinationKind::Queue } else { DestinationKind::Topic },
            name: place.name.name.to_string(),
            messages: waiting,
            in_flight: place.lines.iter().map(|line| line.in_flight as u64).sum(),
            consumers: consumers as u64,
            enqueued: counts.enqueued,
            dispatched: counts.dispatched,
            dequeued: counts.dequeued,
            expired: counts.expired,
        };
        let all = &mut status.broker;
        all.destinations += 1;
        all.messages += one.messages;
        all.enqueued += one.enqueued;
        all.dispatched += one.dispatched;
        all.dequeued += one.dequeued;
        all.expired += one.expired;
        all.dead_lettered += counts.dead_lettered;
        if status.destinations.len() < DESTINATIONS_MAX {
            status.destinations.push(one);
        }
    }
}

/// Whom a node waits for before it may take its place.
fn waiting_for(status: &kahawai_election::Status) -> Option<String> {
    let kahawai_election::Status::AwaitingInSync(replicas) = status else { return None };
    let names: Vec<String> = replicas.iter().map(|replica| replica.node.to_string()).collect();
    let have = if names.len() == 1 { "has" } else { "have" };
    Some(format!("{}, who {have} everything confirmed", names.join(" or ")))
}

/// Why nobody is elected before an operator has restored the record.
fn lost(status: &kahawai_election::Status) -> Option<String> {
    match status {
        kahawai_election::Status::StateLost(why) => Some(why.clone()),
        _ => None,
    }
}

fn primary(primary: &PrimaryRef) -> PrimaryStatus {
    PrimaryStatus {
        node: primary.node.to_string(),
        replication: host_and_port(&primary.address).to_owned(),
        clients: primary.clients.clone(),
    }
}

fn synchronisation(progress: &SinkProgress) -> Option<SyncProgress> {
    progress.active.then(|| SyncProgress {
        bytes_total: progress.bytes_total,
        bytes_done: progress.bytes_done,
        bytes_resumed: progress.bytes_resumed,
        bytes_per_second: progress.bytes_per_s,
        eta_seconds: progress.eta_ms.map(|ms| ms / 1000),
        sessions: progress.sessions,
        files: Vec::new(),
        retries: progress.retries.into(),
        last_error: progress.last_error.clone(),
    })
}

/// The same, as the primary knows it.
fn copied(told: &Told) -> SyncProgress {
    SyncProgress {
        bytes_total: told.total_bytes,
        bytes_done: told.bytes_done,
        bytes_per_second: told.bytes_per_s,
        eta_seconds: told.eta_ms.map(|ms| ms / 1000),
        sessions: told.sessions,
        ..SyncProgress::default()
    }
}

/// A node that does not know says 0.
fn known(value: u64) -> Option<u64> {
    (value > 0).then_some(value)
}

impl Control for NodeControl {
    fn status(&self) -> Status {
        let stage = &self.stage;
        let view = stage.election.view();
        let record = view.record.as_ref();
        let mut status = {
            let identity = stage.identity();
            Status {
                node_id: identity.node_id.to_string(),
                store_id: identity.store_id.to_string(),
                cluster_id: identity.has_joined().then(|| identity.cluster_id.to_string()),
                epoch: record.map_or(identity.promised_epoch, |record| record.epoch).0,
                ..Status::default()
            }
        };
        status.version = env!("CARGO_PKG_VERSION").to_owned();
        status.started_ms = stage.started_ms;
        status.now_ms = stage.clock.now_ms();
        status.in_sync =
            record.map_or_else(Vec::new, |record| record.in_sync.iter().map(Member::from).collect());
        status.minimum_replicas = record.map_or(0, |record| record.minimum_replicas);
        status.removed =
            record.map_or_else(Vec::new, |record| record.removed.iter().map(ToString::to_string).collect());
        let lost = lost(&view.status);
        // The record names a dead primary until it has a successor, and one that was seen before it was lost names nobody.
        let is_there = |primary: &&PrimaryRef| {
            lost.is_none()
                && (view.present.is_empty() || view.present.iter().any(|other| other.boot == primary.boot))
        };
        status.primary = record.and_then(|record| record.primary.as_ref()).filter(is_there).map(primary);
        status.election = Some(ElectionStatus {
            provider: stage.provider_name.clone(),
            connected: view.connected,
            record_version: record.map_or(0, |record| record.version),
            waiting_for: waiting_for(&view.status),
            lost,
            present: view
                .present
                .iter()
                .map(|other| Presence {
                    node: other.node.to_string(),
                    store: other.store.to_string(),
                    last_epoch: other.last_epoch.0,
                    end: other.end,
                    state: format!("{:?}", other.state).to_lowercase(),
                })
                .collect(),
        });
        status.suspended =
            unpoisoned(&stage.suspended).clone().map(|(since_ms, reason)| Suspension { since_ms, reason });
        status.connectors = unpoisoned(&stage.listening)
            .iter()
            .map(|one| Connector { name: one.name.to_owned(), address: one.address.to_string() })
            .collect();
        status.accepting = !status.connectors.is_empty();
        status.changes = unpoisoned(&stage.changes)
            .iter()
            .map(|(at_ms, epoch, role, reason)| RoleChange {
                at_ms: *at_ms,
                epoch: epoch.0,
                role: if *role == "primary" { Role::Primary } else { Role::Replica },
                reason: reason.clone(),
            })
            .collect();
        self.present(&mut status, record);
        status
    }

    fn stored_record(&self) -> Result<StoredRecord, CommandError> {
        let stage = &self.stage;
        // First: what this node wrote before the record was lost is on the disk by now.
        let election = stage.election.view().status;
        let failed = |text: String| CommandError::new(CommandErrorKind::Failed, text);
        let record = kahawai_store::load_record(&self.files).map_err(|error| failed(crate::chain(&error)))?;
        let record = record.map(|bytes| String::from_utf8(bytes.to_vec())).transpose();
        let record = record.map_err(|error| failed(format!("the stored cluster record: {error}")))?;
        let journal = self.journal_end();
        let leads = matches!(election, kahawai_election::Status::Leading { .. })
            || matches!(&*unpoisoned(&stage.present), Present::Leading { .. });
        let identity = stage.identity();
        Ok(StoredRecord {
            node_id: identity.node_id.to_string(),
            store_id: identity.store_id.to_string(),
            cluster_id: identity.has_joined().then(|| identity.cluster_id.to_string()),
            record: record.map(RecordText),
            promised_epoch: identity.promised_epoch.0,
            last_epoch: journal.map(|(epoch, _)| epoch.0),
            end: journal.map(|(_, end)| end),
            lost: lost(&election),
            leads,
        })
    }

    fn command(&self, command: ClusterCommand) -> CommandFuture {
        let stage = Arc::clone(&self.stage);
        Box::pin(async move { carry_out(&stage, command).await })
    }
}

impl NodeControl {
    /// The newest epoch in the journal and its end, while the store is open.
    fn journal_end(&self) -> Option<(Epoch, Lsn)> {
        match &*unpoisoned(&self.stage.present) {
            Present::Between(_) => None,
            Present::Following { following, .. } => {
                let epoch = following.with(|follower| follower.journal().last_epoch())?;
                Some((epoch, following.durable()))
            }
            Present::Leading { reign, .. } => Some((reign.epoch, reign.status().end)),
        }
    }

    fn present(&self, status: &mut Status, record: Option<&ClusterRecord>) {
        let stage = &self.stage;
        // Nothing below may wait for a role to change.
        match &*unpoisoned(&stage.present) {
            Present::Between(doing) => {
                status.role = Role::Starting;
                status.state = doing.clone();
            }
            Present::Following { following, bulk, session, primary } => {
                status.role = if following.failure().is_some() { Role::Faulted } else { Role::Replica };
                let election = stage.election.view().status;
                status.state = match primary {
                    // What the session says does not matter then.
                    Some(_) if lost(&election).is_none() => unpoisoned(session).clone(),
                    _ => election.to_string(),
                };
                status.commit = following.committed();
                status.durable = following.durable();
                status.end = status.durable;
                status.applied = following.applied();
                let followed = following.with(|follower| {
                    contents(follower.state(), status);
                    follower.journal().clone()
                });
                if let Some(followed) = followed {
                    status.journal = journal(&followed);
                }
                let progress = bulk.progress();
                if let Some(synchronisation) = synchronisation(&progress) {
                    status.replicas.push(ReplicaStatus {
                        node: status.node_id.clone(),
                        store: status.store_id.clone(),
                        connected: true,
                        state: status.state.clone(),
                        synchronisation: Some(synchronisation),
                        ..ReplicaStatus::default()
                    });
                }
            }
            Present::Leading { reign, feeding, connections } => {
                status.role = Role::Primary;
                status.epoch = reign.epoch.0;
                let found = reign.status();
                status.state = match (&found.suspended, found.is_active) {
                    (Some(why), _) => format!("suspended: {why}"),
                    (None, true) => "serving".into(),
                    (None, false) => "beginning its epoch".into(),
                };
                status.commit = found.commit.max(reign.commit());
                status.durable = found.local_durable;
                status.end = found.end;
                status.minimum_replicas = found.minimum_replicas;
                status.broker = BrokerStatus {
                    connections: connections.load(Ordering::Relaxed) as u64,
                    ..BrokerStatus::default()
                };
                let (now, commit) = (reign.shared.now(), reign.shared.commit.position());
                let written = reign.shared.with(|core| {
                    core.catch_up(now, commit);
                    status.applied = core.store.applied();
                    work(core, status);
                    core.store.journal().clone()
                });
                status.journal = journal(&written);
                let heard = feeding.heard();
                let told = feeding.bulk.told();
                let offset = stage.clock.now_ms() - super::reign::boot_ms(&*stage.clock);
                for replica in found.replicas {
                    let last = heard.get(&replica.replica);
                    let vitals = last.and_then(|last| last.vitals.as_ref());
                    let synchronisation = told.iter().find(|(other, _)| *other == replica.replica);
                    status.replicas.push(ReplicaStatus {
                        node: replica.replica.node.to_string(),
                        store: replica.replica.store.to_string(),
                        connected: replica.connected.is_some(),
                        in_sync: replica.in_sync,
                        state: match last {
                            Some(last) if replica.connected.is_some() => last.state.clone(),
                            _ => "disconnected".into(),
                        },
                        since_ms: replica.since + offset,
                        durable: replica.durable,
                        applied: replica.applied,
                        // Of who was not here in this epoch nothing is known.
                        lag_bytes: if replica.connected.is_some() { replica.lag_bytes } else { 0 },
                        lag_seconds: last
                            .filter(|_| replica.connected.is_some())
                            .map_or(0.0, |last| last.behind_ms as f64 / 1000.0),
                        disk_free_bytes: vitals.and_then(|vitals| known(vitals.disk_free_bytes)),
                        flush_seconds_last: vitals
                            .and_then(|vitals| known(vitals.last_flush_us))
                            .map(|us| us as f64 / 1e6),
                        synchronisation: synchronisation.map(|(_, told)| copied(told)),
                    });
                }
                for (replica, told) in &told {
                    let is_listed = status.replicas.iter().any(|other| {
                        other.node == replica.node.0 && other.store == replica.store.to_string()
                    });
                    if !is_listed {
                        let vitals = heard.get(replica).and_then(|last| last.vitals.as_ref());
                        status.replicas.push(ReplicaStatus {
                            node: replica.node.to_string(),
                            store: replica.store.to_string(),
                            connected: true,
                            state: "synchronising".into(),
                            disk_free_bytes: vitals.and_then(|vitals| known(vitals.disk_free_bytes)),
                            synchronisation: Some(copied(told)),
                            ..ReplicaStatus::default()
                        });
                    }
                }
                if let Some(record) = record {
                    // Members that never came in this epoch are known by the record alone.
                    for (node, member) in &record.members {
                        let store = member.store.to_string();
                        let is_me = node.0 == status.node_id;
                        if !is_me
                            && !status
                                .replicas
                                .iter()
                                .any(|other| other.node == node.0 && other.store == store)
                        {
                            status.replicas.push(ReplicaStatus {
                                node: node.to_string(),
                                store,
                                state: "disconnected".into(),
                                ..ReplicaStatus::default()
                            });
                        }
                    }
                }
            }
        }
    }
}

fn refused(refusal: &Refusal) -> CommandError {
    let kind = match refusal {
        Refusal::NotLeading
        | Refusal::Leading
        | Refusal::Conflict
        | Refusal::TooSmall { .. }
        | Refusal::NotInSync(_)
        | Refusal::WithoutPrimary
        | Refusal::Unusable(_)
        | Refusal::NotLost
        | Refusal::OldRecord
        | Refusal::Removed(_)
        | Refusal::TooManyRemoved => CommandErrorKind::Refused,
        Refusal::WrongCluster | Refusal::TooHigh(_) => CommandErrorKind::Invalid,
        Refusal::Busy | Refusal::NotGranted(_) | Refusal::NoRecord => CommandErrorKind::Unavailable,
        Refusal::SteppedDown => CommandErrorKind::Failed,
    };
    let error = CommandError::new(kind, refusal.to_string());
    match refusal {
        Refusal::TooManyRemoved => error.advise("kahawai cluster add NODE, for one that is gone"),
        Refusal::NotLeading => error.advise("ask the primary; `kahawai status` says which node that is"),
        _ => error,
    }
}

async fn carry_out(stage: &Stage, command: ClusterCommand) -> Result<String, CommandError> {
    match command {
        ClusterCommand::StepDown {} => hand_over(stage, None).await,
        ClusterCommand::Promote { node } => {
            let node = NodeId(node);
            let me = stage.me().node;
            if node == me {
                let text = "this node is asked to promote itself";
                return Err(CommandError::new(CommandErrorKind::Invalid, text)
                    .advise("ask the node that leads now: it hands over without loss"));
            }
            hand_over(stage, Some(node)).await
        }
        ClusterCommand::SetMinimumReplicas { replicas } => {
            let set = stage.election.request(Request::SetMinimum(replicas)).await;
            set.map(|()| format!("a confirmation takes {replicas} replicas now")).map_err(|e| refused(&e))
        }
        ClusterCommand::Remove { node, store } => remove(stage, NodeId(node), store).await,
        ClusterCommand::Add { node, .. } => {
            let allowed = stage.election.request(Request::AllowMember(NodeId(node.clone()))).await;
            let text =
                format!("{node} may join; it does so by itself when it runs with this cluster's address");
            allowed.map(|()| text).map_err(|e| refused(&e))
        }
        ClusterCommand::ForcePrimary { cluster_id, accept_data_loss } => {
            if !accept_data_loss {
                return Err(CommandError::new(
                    CommandErrorKind::Invalid,
                    "the loss has to be accepted in so many words",
                ));
            }
            let cluster_id: ClusterId = cluster_id.parse().map_err(|_| {
                CommandError::new(CommandErrorKind::Invalid, "a cluster id has 32 hex digits")
            })?;
            let forced = stage.election.request(Request::ForcePrimary { cluster_id }).await;
            forced.map(|()| "this node leads".to_owned()).map_err(|e| refused(&e))
        }
        ClusterCommand::RestoreRecord { cluster_id, record, promised_epoch } => {
            restore_record(stage, &cluster_id, &record, Epoch(promised_epoch)).await
        }
    }
}

/// What is wrong with the record itself is `Invalid`: no other node takes it then either.
async fn restore_record(
    stage: &Stage,
    cluster_id: &str,
    text: &RecordText,
    promised: Epoch,
) -> Result<String, CommandError> {
    let invalid = |text: String| CommandError::new(CommandErrorKind::Invalid, text);
    let cluster_id: ClusterId =
        cluster_id.parse().map_err(|_| invalid("a cluster id has 32 hex digits".into()))?;
    let record = ClusterRecord::decode(text.0.as_bytes())
        .map_err(|error| invalid(format!("this is no cluster record: {error}")))?;
    if record.cluster_id != cluster_id {
        let theirs = record.cluster_id;
        return Err(invalid(format!("the record belongs to cluster {theirs}, not to {cluster_id}")));
    }
    let is_ours = {
        let identity = stage.identity();
        !identity.has_joined() || identity.cluster_id == cluster_id
    };
    if !is_ours {
        return Err(refused(&Refusal::WrongCluster));
    }
    let restored =
        stage.election.request(Request::RestoreRecord { record: Box::new(record), promised }).await;
    let text = "the cluster record is restored; a node of its in-sync set leads soon";
    restored.map(|()| text.to_owned()).map_err(|refusal| {
        let error = refused(&refusal);
        match refusal {
            Refusal::NotLost => error.advise(
                "nothing has to be restored here; see what keeps the node from its place: kahawai cluster status",
            ),
            Refusal::OldRecord | Refusal::TooHigh(_) => {
                // Another node may not have seen the newer one, and must not be asked.
                CommandError { kind: CommandErrorKind::Invalid, ..error }
                    .advise("ask all nodes again what they know: kahawai cluster restore-record --from URL ...")
            }
            Refusal::NotInSync(_) => error.advise("only a node of the record's in-sync set puts it back: ask one"),
            Refusal::Conflict => {
                error.advise("somebody else has written one meanwhile: kahawai cluster status shows what comes of it")
            }
            _ => error,
        }
    })
}

async fn remove(stage: &Stage, node: NodeId, store: Option<String>) -> Result<String, CommandError> {
    let view = stage.election.view();
    let Some(record) = view.record else {
        return Err(refused(&Refusal::NoRecord));
    };
    let invalid = |text: String| CommandError::new(CommandErrorKind::Invalid, text);
    if node == stage.me().node {
        return Err(invalid("this node leads".into())
            .advise("let another node lead first: kahawai cluster step-down"));
    }
    let is_in_sync = |store: Option<StoreId>| {
        record.in_sync.iter().any(|one| one.node == node && store.is_none_or(|store| one.store == store))
    };
    let Some(store) = store else {
        let is_known = is_in_sync(None)
            || record.members.contains_key(&node)
            || record.removed.contains(&node)
            || view.present.iter().any(|other| other.node == node);
        if !is_known {
            return Err(invalid(format!("no node {node} is known"))
                .advise("`kahawai cluster status` lists the nodes that are"));
        }
        let removed = stage.election.request(Request::RemoveMember(node.clone())).await;
        return removed.map(|()| format!("{node} is no longer a member")).map_err(|e| refused(&e));
    };
    let store: StoreId = store.parse().map_err(|_| invalid("a store has 32 hex digits".into()))?;
    let is_member = record.members.get(&node).is_some_and(|member| member.store == store);
    if !is_in_sync(Some(store)) && !is_member {
        return Err(invalid(format!("no copy {store} of {node} is known"))
            .advise("`kahawai cluster status --json` shows the stores in full"));
    }
    let leaving = [ReplicaId { node: node.clone(), store }].into();
    let left = stage.election.request(Request::Without(leaving)).await;
    left.map(|()| format!("that copy of {node} is no longer waited for")).map_err(|e| refused(&e))
}

async fn hand_over(stage: &Stage, successor: Option<NodeId>) -> Result<String, CommandError> {
    let (done, answer) = oneshot::channel();
    let gone = || CommandError::new(CommandErrorKind::Failed, "the node ended before it answered");
    stage.commands.send(Command::StepDown { successor, done }).map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?.map_err(|text| CommandError::new(CommandErrorKind::Refused, text))
}
