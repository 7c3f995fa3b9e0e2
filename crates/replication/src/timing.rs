use kahawai_types::{Lsn, Millis};

/// When a peer counts as slow, dead or caught up. The same on all nodes of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Timing {
    /// Each side sends at least that often.
    pub heartbeat_ms: Millis,
    /// Who was silent for that long is dead.
    pub dead_ms: Millis,
    /// A member without a session leaves the in-sync set after this time.
    pub reconnect_ms: Millis,
    /// The same at the start of an epoch, for a member that has not attached yet.
    pub takeover_grace_ms: Millis,
    /// A member leaves that flushes nothing for that long while there is something to flush, or lags for that long. So does the
    /// primary, if a member has flushed it.
    pub evict_ms: Millis,
    /// A replica joins when it has kept up for that long.
    pub stable_ms: Millis,
    /// Longest wait before a replica that was evicted again and again may join.
    pub backoff_ms_max: Millis,
    /// A member behind by more than that lags.
    pub in_sync_lag_bytes_max: u64,
    /// A replica behind by no more than that keeps up.
    pub admission_lag_bytes_max: u64,
    /// A replica behind by more than that, and by whole files, fetches these on several connections before it streams.
    pub stream_lag_bytes_max: u64,
    /// Size at which the journal goes on in the next data file: positions in different files are that far apart.
    pub file_bytes_max: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_ms: 500,
            dead_ms: 3_000,
            reconnect_ms: 1_000,
            takeover_grace_ms: 200,
            evict_ms: 4_000,
            stable_ms: 5_000,
            backoff_ms_max: 300_000,
            in_sync_lag_bytes_max: 64 << 20,
            admission_lag_bytes_max: 16 << 20,
            stream_lag_bytes_max: 1 << 30,
            file_bytes_max: 256 << 20,
        }
    }
}

impl Timing {
    /// About how many bytes of the journal lie between two positions; 0 if `behind` is not behind. Exact within one file.
    pub fn lag_bytes(&self, behind: Lsn, ahead: Lsn) -> u64 {
        let files = u64::from(ahead.file().saturating_sub(behind.file()));
        if ahead <= behind {
            return 0;
        }
        (files * u64::from(self.file_bytes_max) + u64::from(ahead.offset()))
            .saturating_sub(u64::from(behind.offset()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kahawai_types::Location;

    #[test]
    fn lag_is_exact_in_a_file_and_close_across_files() {
        let timing = Timing { file_bytes_max: 1000, ..Timing::default() };
        let lag = |behind: (u32, u32), ahead: (u32, u32)| {
            let lsn = |(file, offset)| Location::new(file, offset).lsn();
            timing.lag_bytes(lsn(behind), lsn(ahead))
        };
        assert_eq!(lag((1, 100), (1, 350)), 250);
        assert_eq!(lag((1, 900), (2, 50)), 150);
        assert_eq!(lag((1, 1200), (2, 50)), 0, "a last batch may reach beyond the size of a file");
        assert_eq!(lag((2, 50), (1, 900)), 0);
        assert_eq!(lag((0, 0), (u32::MAX, u32::MAX)), u64::from(u32::MAX) * 1001);
    }
}
