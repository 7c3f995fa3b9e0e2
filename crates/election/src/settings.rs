use kahawai_types::{BootId, Millis, ReplicaId};

/// Who this process is, and how patient.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Settings {
    /// The copy of the journal that it has.
    pub me: ReplicaId,
    /// The process.
    pub boot: BootId,
    /// Where peers dial it, `kdbr://host:port`.
    pub address: String,
    /// Where clients connect while it leads.
    pub clients: Vec<String>,
    /// Among equal logs the higher one leads.
    pub priority: i32,
    /// What a record that we create demands; an existing one has its own.
    pub minimum_replicas: u32,
    /// How patient.
    pub timing: Timing,
}

/// How long the elector waits for what.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Timing {
    /// The first in rank asks for a vacant grant at once, each further one this much later.
    pub rank_step_ms: Millis,
    /// How long a node without data leaves the creation of the record to one with data.
    pub empty_store_delay_ms: Millis,
    /// How long the others hold back for the chosen successor, and who stepped down for everybody.
    pub switch_ms: Millis,
    /// Between two attempts at the service.
    pub retry_ms: Millis,
    /// Between two publications that differ only in where the journal ends.
    pub publish_ms: Millis,
    /// How long a new primary may take to commit its marker while another one could try.
    pub recover_ms: Millis,
    /// How long it then holds back; doubled each time.
    pub hold_back_ms: Millis,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            rank_step_ms: 150,
            empty_store_delay_ms: 3_000,
            switch_ms: 5_000,
            retry_ms: 200,
            publish_ms: 2_000,
            recover_ms: 30_000,
            hold_back_ms: 2_000,
        }
    }
}
