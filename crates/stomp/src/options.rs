use kahawai_message::{Millis, Text};

use crate::Limits;

/// How many deliveries a consumer may hold that did not say `activemq.prefetchSize`. The defaults are ActiveMQ's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrefetchDefaults {
    /// Of a queue.
    pub queue: u32,
    /// Of a topic.
    pub topic: u32,
    /// Of a durable topic subscription.
    pub durable_topic: u32,
    /// Of a queue browser.
    pub browser: u32,
}

impl Default for PrefetchDefaults {
    fn default() -> Self {
        Self { queue: 1000, topic: 32_766, durable_topic: 100, browser: 500 }
    }
}

/// Heart-beats, STOMP 1.2 "Heart-beating".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeartBeatOptions {
    /// Taken for the `heart-beat` header of a client that sends none: what it sends and what it wants.
    pub default_ms: (u32, u32),
    /// The shortest interval that we agree to, either way; a client that asks for less gets this.
    pub interval_ms_min: u32,
    /// A peer is dead after this many per cent of the agreed interval.
    pub grace_percent: u32,
}

impl Default for HeartBeatOptions {
    fn default() -> Self {
        Self { default_ms: (0, 0), interval_ms_min: 100, grace_percent: 150 }
    }
}

/// What a [`Connection`](crate::Connection) is told when it is made.
#[derive(Clone, Debug)]
pub struct ConnectionOptions {
    /// Connection id, the first part of its message ids: `ID:host-port-time-n:m`. Unique.
    pub connection_id: Text,
    /// The `server` header of CONNECTED: `kahawai/0.1.0`.
    pub server: Text,
    /// What one frame may be.
    pub limits: Limits,
    /// Heart-beats.
    pub heart_beat: HeartBeatOptions,
    /// How long a client may take to send CONNECT; 0 = for ever.
    pub connect_timeout_ms: Millis,
    /// Prefetch of consumers that do not say.
    pub prefetch: PrefetchDefaults,
    /// How many subscriptions.
    pub consumers_max: usize,
    /// How many open transactions.
    pub transactions_max: usize,
    /// How many temporary destinations.
    pub temporary_destinations_max: usize,
    /// Requests whose answer is outstanding; at that many [`Connection::receive`](crate::Connection::receive) pauses.
    pub unanswered_max: usize,
    /// Bytes of receipt texts outstanding; at that many [`Connection::receive`](crate::Connection::receive) pauses.
    pub unanswered_bytes_max: usize,
}

impl ConnectionOptions {
    /// The defaults, for the connection with this id.
    pub fn new(connection_id: impl Into<Text>) -> Self {
        Self {
            connection_id: connection_id.into(),
            server: Text::from_static(concat!("kahawai/", env!("CARGO_PKG_VERSION"))),
            limits: Limits::default(),
            heart_beat: HeartBeatOptions::default(),
            connect_timeout_ms: 30_000,
            prefetch: PrefetchDefaults::default(),
            consumers_max: 10_000,
            transactions_max: 1000,
            temporary_destinations_max: 1000,
            unanswered_max: 64 << 10,
            unanswered_bytes_max: 8 << 20,
        }
    }
}
