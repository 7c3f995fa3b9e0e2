//! What both ends of a stream session have in common.

use kahawai_kdbr::{ErrorCode, ErrorFrame, NodeState};
use kahawai_types::{Epoch, Lsn, Millis};

use crate::Timing;
use crate::primary::Refusal;

/// Why a session is over.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SessionEnd {
    /// One of the two left in order.
    #[error("orderly end: {0}")]
    Goodbye(String),
    /// The peer was silent for that long.
    #[error("the peer was silent for {0} ms")]
    Silent(Millis),
    /// We ended it, and have told the peer why.
    #[error("refused: {0}")]
    Refused(ErrorFrame),
    /// The peer ended it.
    #[error("the peer refused: {0}")]
    Told(ErrorFrame),
}

/// How this node is, for its peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vitals {
    /// What it does.
    pub state: NodeState,
    /// End of what it has flushed.
    pub durable: Lsn,
    /// Space that is left for its store.
    pub disk_free_bytes: u64,
    /// How long its last flush took.
    pub last_flush_us: u64,
}

/// The frame that tells a peer of an older reign about the newer one.
pub(crate) fn stale(promised: Epoch, theirs: Epoch) -> ErrorFrame {
    let text = format!("epoch {theirs} is over, epoch {promised} is promised");
    ErrorFrame { promised_epoch: Some(promised), ..ErrorFrame::new(ErrorCode::StaleEpoch, text) }
}

pub(crate) fn protocol(text: impl Into<String>) -> ErrorFrame {
    ErrorFrame::new(ErrorCode::Protocol, text)
}

impl From<&Refusal> for ErrorFrame {
    fn from(refusal: &Refusal) -> Self {
        let code = match refusal {
            Refusal::OwnStore | Refusal::SameStore { .. } => ErrorCode::NotMember,
            Refusal::OtherProcess { .. } | Refusal::Superseded | Refusal::TooMany => ErrorCode::Busy,
            Refusal::Corrupt { .. } => ErrorCode::Corrupt,
        };
        Self::new(code, refusal.to_string())
    }
}

/// When to send a heartbeat, and when to stop waiting for the peer's.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Pulse {
    heartbeat_ms: Millis,
    dead_ms: Millis,
    heard: Millis,
    beat: Millis,
    pub(crate) seq: u64,
    /// The peer's newest.
    pub(crate) echo: u64,
}

impl Pulse {
    pub(crate) fn new(timing: &Timing, now: Millis) -> Self {
        let Timing { heartbeat_ms, dead_ms, .. } = *timing;
        Self { heartbeat_ms, dead_ms, heard: now, beat: now, seq: 0, echo: 0 }
    }

    pub(crate) fn heard(&mut self, now: Millis) {
        self.heard = self.heard.max(now);
    }

    pub(crate) fn silence(&self, now: Millis) -> Option<SessionEnd> {
        let silent_ms = now - self.heard;
        (silent_ms >= self.dead_ms).then_some(SessionEnd::Silent(silent_ms))
    }

    /// Whether a heartbeat is due; then it is numbered.
    pub(crate) fn beats(&mut self, now: Millis) -> bool {
        let due = now - self.beat >= self.heartbeat_ms;
        if due {
            self.beat = now;
            self.seq += 1;
        }
        due
    }
}
