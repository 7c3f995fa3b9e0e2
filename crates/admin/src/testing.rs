//! Nodes for tests.

use kahawai_admin_api::{
    BrokerStatus, Connector, DestinationKind, DestinationStatus, ElectionStatus, Histogram, JournalStatus,
    Member, PrimaryStatus, ReplicaStatus, Role, Status, SyncProgress,
};
use kahawai_types::Location;

fn member(node: &str) -> Member {
    Member { node: node.to_owned(), store: format!("{:032x}", node.as_bytes()[0]) }
}

fn copy(node: &str) -> ReplicaStatus {
    let Member { node, store } = member(node);
    ReplicaStatus {
        node,
        store,
        connected: true,
        in_sync: true,
        state: "streaming".to_owned(),
        since_ms: 1_000,
        durable: Location::new(7, 900).lsn(),
        applied: Location::new(7, 800).lsn(),
        lag_bytes: 100,
        lag_seconds: 0.25,
        disk_free_bytes: Some(7 << 30),
        flush_seconds_last: Some(0.002),
        synchronisation: None,
    }
}

/// Node a, leading b and c, which are in sync; one of them has to be.
pub(crate) fn primary() -> Status {
    let [a, b, c] = ["a", "b", "c"].map(member);
    Status {
        node_id: a.node.clone(),
        store_id: a.store.clone(),
        cluster_id: Some("c1".to_owned()),
        version: "0.1.0".to_owned(),
        started_ms: 1_500,
        now_ms: 100_000,
        role: Role::Primary,
        state: "active".to_owned(),
        epoch: 3,
        end: Location::new(7, 1000).lsn(),
        durable: Location::new(7, 950).lsn(),
        commit: Location::new(7, 900).lsn(),
        applied: Location::new(7, 900).lsn(),
        in_sync: vec![a, b, c],
        minimum_replicas: 1,
        suspended: None,
        primary: Some(PrimaryStatus {
            node: "a".to_owned(),
            replication: "127.0.0.1:61619".to_owned(),
            clients: vec!["stomp://127.0.0.1:61613".to_owned()],
        }),
        replicas: vec![copy("b"), copy("c")],
        election: Some(ElectionStatus {
            provider: "zookeeper".to_owned(),
            connected: true,
            record_version: 12,
            ..ElectionStatus::default()
        }),
        journal: JournalStatus {
            damaged: vec![kahawai_admin_api::DamagedFile { file: 7, problem: "a flipped bit".to_owned() }],
            repaired: 2,
            records: 10,
            batches: 4,
            bytes: 5_000,
            flushes: 3,
            flush_seconds: Histogram { bounds: vec![0.001, 0.002], counts: vec![1, 0, 2], sum: 0.0125 },
            flush_seconds_max: 0.01,
            flush_seconds_last: 0.002,
            disk_free_bytes: Some(9 << 30),
            files: 2,
            file_bytes: 64 << 20,
        },
        accepting: true,
        connectors: vec![Connector { name: "stomp".to_owned(), address: "127.0.0.1:61613".to_owned() }],
        broker: BrokerStatus {
            connections: 5,
            consumers: 2,
            destinations: 2,
            messages: 40,
            enqueued: 100,
            dispatched: 70,
            dequeued: 60,
            memory_bytes: 16,
            memory_bytes_max: 64,
            ..BrokerStatus::default()
        },
        destinations: vec![
            DestinationStatus {
                kind: DestinationKind::Queue,
                name: "orders".to_owned(),
                messages: 40,
                in_flight: 10,
                consumers: 1,
                enqueued: 90,
                dispatched: 60,
                dequeued: 50,
                expired: 0,
            },
            DestinationStatus {
                kind: DestinationKind::Topic,
                name: "say \"hi\\\"\n".to_owned(),
                consumers: 1,
                enqueued: 10,
                dispatched: 10,
                dequeued: 10,
                ..DestinationStatus::default()
            },
        ],
        ..Status::default()
    }
}

/// Node b of the same cluster.
pub(crate) fn replica() -> Status {
    let b = member("b");
    Status {
        node_id: b.node,
        store_id: b.store,
        role: Role::Replica,
        state: "streaming".to_owned(),
        accepting: false,
        connectors: Vec::new(),
        replicas: Vec::new(),
        ..primary()
    }
}

/// A node without a cluster.
pub(crate) fn single() -> Status {
    Status {
        role: Role::Single,
        cluster_id: None,
        in_sync: Vec::new(),
        minimum_replicas: 0,
        primary: None,
        replicas: Vec::new(),
        election: None,
        ..primary()
    }
}

/// A copy of whole files, half way.
pub(crate) fn progress() -> SyncProgress {
    SyncProgress {
        bytes_total: 1000,
        bytes_done: 500,
        bytes_resumed: 200,
        bytes_per_second: 50,
        eta_seconds: Some(10),
        sessions: 4,
        files: vec![3, 4],
        retries: 1,
        last_error: Some("connection reset".to_owned()),
    }
}
