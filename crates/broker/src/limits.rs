//! What the broker allows itself, and how destinations behave.

use kahawai_message::{Destination, Millis, Text};

/// Bounds of memory and of work.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Messages in memory: non-persistent ones, and what topic subscribers have not taken, bytes. At the limit, producers
    /// of such messages wait. One message may go beyond it.
    pub memory_bytes_max: u64,
    /// Above this much of it, offline durable subscriptions get no more non-persistent messages, so that who is
    /// away cannot stop who is there.
    pub offline_bytes_max: u64,
    /// Sends and acknowledgements buffered in one transaction, bytes.
    pub transaction_bytes_max: u64,
    /// The same of all transactions together.
    pub transactions_bytes_max: u64,
    /// Queues and topics, temporary ones included.
    pub destinations_max: usize,
    /// Connections.
    pub connections_max: usize,
    /// Consumers of one connection.
    pub consumers_per_connection_max: usize,
    /// Transactions open on one connection.
    pub transactions_per_connection_max: usize,
    /// Producers whose last sequence is remembered here; others are looked up in the store.
    pub producers_max: usize,
    /// Highest prefetch that a consumer gets.
    pub prefetch_max: u32,
    /// Messages that are compared with a selector at a time.
    pub scan_entries_max: usize,
    /// Messages on their way to the dead letters because they expired, at a time.
    pub loads_max: usize,
    /// Acknowledgements of one queue or subscription that are not committed; beyond, nothing more is delivered from it.
    pub acks_pending_max: u32,
    /// Deliveries, and messages looked at, in one call; the rest is left for the next ([`Effect::Continue`](crate::Effect)).
    pub steps_per_call_max: u32,
    /// Messages that one sweep for expired ones looks at.
    pub sweep_entries_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes_max: 256 << 20,
            offline_bytes_max: 64 << 20,
            transaction_bytes_max: 64 << 20,
            transactions_bytes_max: 256 << 20,
            destinations_max: 1_000_000,
            connections_max: 100_000,
            consumers_per_connection_max: 10_000,
            transactions_per_connection_max: 1000,
            producers_max: 16_384,
            prefetch_max: 32_767,
            scan_entries_max: 256,
            loads_max: 256,
            acks_pending_max: 65_536,
            steps_per_call_max: 2048,
            sweep_entries_max: 400,
        }
    }
}

/// How the broker behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bounds.
    pub limits: Limits,
    /// The queue of the dead letters.
    pub dead_letter_queue: Text,
    /// Destinations (names or patterns) where messages of priority 5 to 9 overtake those of 4, and these the rest.
    pub prioritised: Vec<Destination>,
    /// How often a destination with messages that may expire is looked through.
    pub sweep_interval_ms: Millis,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            dead_letter_queue: Text::from_static("ActiveMQ.DLQ"),
            prioritised: Vec::new(),
            sweep_interval_ms: 30_000,
        }
    }
}
