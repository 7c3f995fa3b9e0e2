//! What a run is told.

use std::str::FromStr;

/// One run.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Everything follows from it.
    pub seed: u64,
    /// Nodes of the cluster.
    pub nodes: usize,
    /// Copies besides the primary's.
    pub minimum_replicas: u32,
    /// Events before the faults stop.
    pub steps: u64,
    /// What may break.
    pub faults: Faults,
    /// A rule that is broken on purpose.
    pub mutation: Option<Mutation>,
    /// Keep a trace as text.
    pub verbose: bool,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            nodes: 3,
            minimum_replicas: 1,
            steps: 20_000,
            faults: Faults::ALL,
            mutation: None,
            verbose: false,
        }
    }
}

/// What may break.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Faults {
    /// Processes are killed, machines lose power.
    pub crash: bool,
    /// Links are cut, connections break.
    pub network: bool,
    /// The election service: sessions expire, outcomes are not known.
    pub service: bool,
    /// Processes stand still.
    pub pause: bool,
    /// Clocks drift.
    pub clock: bool,
    /// Wall clocks are set. Not part of everything: redeliveries are timed by them.
    pub wall: bool,
    /// Disks are slow, fail or fill up.
    pub disk: bool,
    /// Disks are replaced.
    pub replace: bool,
    /// Bits change on a disk.
    pub rot: bool,
    /// Disks are put back as they were, or are copies of other nodes'.
    pub stale: bool,
    /// The election service is restored from a backup.
    pub rollback: bool,
    /// A node is forced to lead.
    pub force: bool,
    /// An operator works: planned changes of the primary, other minima, nodes that leave, come back, or come late.
    pub operator: bool,
    /// Faults in the very moment in which they hurt: while a change of the set has no answer, when a data file was deleted.
    pub ambush: bool,
}

impl Faults {
    /// Everything.
    pub const ALL: Self = Self {
        crash: true,
        network: true,
        service: true,
        pause: true,
        clock: true,
        wall: false,
        disk: true,
        replace: true,
        rot: true,
        stale: true,
        rollback: true,
        force: true,
        operator: true,
        ambush: true,
    };
    /// Nothing.
    pub const NONE: Self = Self {
        crash: false,
        network: false,
        service: false,
        pause: false,
        clock: false,
        wall: false,
        disk: false,
        replace: false,
        rot: false,
        stale: false,
        rollback: false,
        force: false,
        operator: false,
        ambush: false,
    };
}

impl FromStr for Faults {
    type Err = String;

    /// A list like `crash,network`, `all` or `none`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut faults = Self::NONE;
        for word in text.split(',').filter(|word| !word.is_empty()) {
            match word {
                "all" => faults = Self::ALL,
                "none" => {}
                "crash" => faults.crash = true,
                "network" => faults.network = true,
                "service" => faults.service = true,
                "pause" => faults.pause = true,
                "clock" => faults.clock = true,
                "wall" => faults.wall = true,
                "disk" => faults.disk = true,
                "replace" => faults.replace = true,
                "rot" => faults.rot = true,
                "stale" => faults.stale = true,
                "rollback" => faults.rollback = true,
                "force" => faults.force = true,
                "operator" => faults.operator = true,
                "ambush" => faults.ambush = true,
                other => {
                    return Err(format!(
                        "unknown fault '{other}': all, none, or some of crash,network,service,pause,clock,wall,disk,replace,rot,stale,rollback,force,operator,ambush"
                    ));
                }
            }
        }
        Ok(faults)
    }
}

macro_rules! mutations {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A rule that is broken, to see that the simulator notices.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Mutation {
            $($(#[$doc])* $name,)*
        }

        impl Mutation {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// As on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

mutations! {
    /// Commits are counted before the epoch's own marker is on the whole set.
    OwnMarker = "commit-without-own-marker",
    /// While a change of the set is not answered, only the proposed one counts.
    BothSets = "no-joint-configuration",
    /// A replica joins without having everything that may be confirmed.
    Evidence = "join-without-evidence",
    /// The set shrinks below the minimum and the primary.
    Minimum = "shrink-below-minimum",
    /// A write to the record whose outcome is not known is taken for failed.
    UnknownIsFailed = "unknown-taken-for-failed",
    /// A replica acknowledges what it has not flushed.
    AckBeforeFlush = "ack-before-flush",
    /// A node follows and leads without having promised the epoch.
    NoPromise = "no-promise",
    /// The gate is not looked at before something is confirmed.
    GateNotChecked = "gate-not-checked",
    /// A replaced disk goes by the old store's identity.
    StoreIdIgnored = "store-id-ignored",
    /// A checkpoint is written before the marker is committed.
    EarlyCheckpoint = "early-checkpoint",
    /// Data files are deleted before a checkpoint is behind the decision, and a start does not look whether files behind its
    /// checkpoint are gone: either alone is enough.
    EarlyRetire = "early-retire",
    /// A replica that is gone or hangs is waited for.
    EvictNobody = "evict-nobody",
    /// A replica applies what it has received, not what is committed.
    ApplyBeyondCommit = "apply-beyond-commit",
}

impl FromStr for Mutation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|mutation| mutation.name() == text);
        found.ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|mutation| mutation.name()).collect();
            format!("unknown mutation '{text}'; one of {}", names.join(", "))
        })
    }
}
