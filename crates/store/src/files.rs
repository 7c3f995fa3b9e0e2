//! Which data files are still needed, and by what (`kahadb-format.md` §8, without its defects).
//!
//! A file may go when nothing live points into it, and when no older file that stays holds something that it cancels:
//! an acknowledgement must outlive the message it acknowledges, a commit its operations, the removal of a subscription
//! its creation, a rewritten message its original. Each such pair is an edge "this file needs to stay while that one
//! does"; the edges are few, because neighbouring records share their files.

use std::collections::{BTreeMap, BTreeSet};

/// What the store knows of one data file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileUse {
    /// Live messages in it.
    pub live: u64,
    /// Their record sizes, bytes.
    pub live_bytes: u64,
    /// Durable subscriptions whose newest record is in it.
    pub subscriptions: u64,
    /// It must stay while one of these does: it holds records that cancel or complete records there.
    pub outlives: BTreeSet<u32>,
}

/// Why a file stays.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It is written to, or a restart replays from it.
    Current,
    /// Live messages.
    Messages {
        /// How many.
        count: u64,
        /// Their record sizes, bytes.
        bytes: u64,
    },
    /// Durable subscriptions are recorded in it.
    Subscriptions(u64),
    /// Prepared transactions have operations in it or before it.
    Prepared,
    /// It cancels or completes records of these files, which stay.
    Cancels(Vec<u32>),
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Current => write!(f, "being written, or replayed from at the next start"),
            Self::Messages { count, bytes } => write!(f, "{count} live messages, {bytes} bytes"),
            Self::Subscriptions(count) => write!(f, "{count} durable subscriptions are recorded here"),
            Self::Prepared => write!(f, "operations of prepared transactions"),
            Self::Cancels(files) => {
                write!(f, "acknowledges or completes records of ")?;
                for (n, file) in files.iter().enumerate() {
                    write!(f, "{}db-{file}.log", if n == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
        }
    }
}

/// All data files.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FileTable {
    files: BTreeMap<u32, FileUse>,
}

impl FileTable {
    /// Makes a file known.
    pub fn touch(&mut self, file: u32) -> &mut FileUse {
        self.files.entry(file).or_default()
    }

    /// A live message came.
    pub fn message_added(&mut self, file: u32, bytes: u32) {
        let use_ = self.touch(file);
        use_.live += 1;
        use_.live_bytes += u64::from(bytes);
    }

    /// A live message went. `by` = the file of the record that says so.
    pub fn message_removed(&mut self, file: u32, bytes: u32, by: u32) {
        let use_ = self.touch(file);
        use_.live = use_.live.saturating_sub(1);
        use_.live_bytes = use_.live_bytes.saturating_sub(u64::from(bytes));
        self.outlives(by, file);
    }

    /// A subscription's record in `file` counts no more. `by` = the file of the record that says so.
    pub fn subscription_left(&mut self, file: u32, by: u32) {
        let use_ = self.touch(file);
        use_.subscriptions = use_.subscriptions.saturating_sub(1);
        self.outlives(by, file);
    }

    /// `file` must stay while `other` does.
    pub fn outlives(&mut self, file: u32, other: u32) {
        if file != other {
            self.touch(file).outlives.insert(other);
        }
    }

    /// A file is gone.
    pub fn forget(&mut self, file: u32) {
        self.files.remove(&file);
        for use_ in self.files.values_mut() {
            use_.outlives.remove(&file);
        }
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &FileUse)> {
        self.files.iter().map(|(&file, use_)| (file, use_))
    }

    /// One file.
    pub fn get(&self, file: u32) -> Option<&FileUse> {
        self.files.get(&file)
    }

    /// Why each file stays, first reasons first; a file without a reason may go.
    ///
    /// `keep_from` = the first file that the journal writes or a restart replays; `prepared` = the first file with an
    /// operation of a prepared transaction (everything from there on stays until its outcome).
    pub fn reasons(&self, keep_from: u32, prepared: Option<u32>) -> BTreeMap<u32, Vec<Reason>> {
        let mut reasons: BTreeMap<u32, Vec<Reason>> = BTreeMap::new();
        for (&file, use_) in &self.files {
            let why = reasons.entry(file).or_default();
            if file >= keep_from {
                why.push(Reason::Current);
            }
            if use_.live > 0 {
                why.push(Reason::Messages { count: use_.live, bytes: use_.live_bytes });
            }
            if use_.subscriptions > 0 {
                why.push(Reason::Subscriptions(use_.subscriptions));
            }
            if prepared.is_some_and(|first| file >= first) {
                why.push(Reason::Prepared);
            }
        }
        // A file that stays because of its edges may keep another: until nothing changes. Edges mostly point to older
        // files, so one ascending pass settles nearly everything and a second finds that out.
        loop {
            let mut changed = false;
            for (&file, use_) in &self.files {
                let kept: Vec<u32> = use_
                    .outlives
                    .iter()
                    .copied()
                    .filter(|other| reasons.get(other).is_some_and(|why| !why.is_empty()))
                    .collect();
                let why = reasons.entry(file).or_default();
                why.retain(|reason| !matches!(reason, Reason::Cancels(_)));
                let was_empty = why.is_empty();
                if !kept.is_empty() {
                    why.push(Reason::Cancels(kept));
                    changed |= was_empty && !self.settled(file, &reasons);
                }
            }
            if !changed {
                return reasons;
            }
        }
    }

    /// Does no file that precedes `file` in the pass wait for it?
    fn settled(&self, file: u32, reasons: &BTreeMap<u32, Vec<Reason>>) -> bool {
        !self.files.range(..file).any(|(earlier, use_)| {
            use_.outlives.contains(&file) && reasons.get(earlier).is_none_or(Vec::is_empty)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(edges: &[(u32, u32)], live: &[u32], count: u32) -> FileTable {
        let mut table = FileTable::default();
        for file in 1..=count {
            table.touch(file);
        }
        for &file in live {
            table.message_added(file, 10);
        }
        for &(file, other) in edges {
            table.outlives(file, other);
        }
        table
    }

    fn check(edges: &[(u32, u32)], live: &[u32], stays: &[u32]) {
        let reasons = table(edges, live, 6).reasons(6, None);
        let got: Vec<u32> =
            reasons.iter().filter(|(_, why)| !why.is_empty()).map(|(&file, _)| file).collect();
        assert_eq!(got, stays, "edges {edges:?}, live {live:?}");
    }

    #[test]
    fn a_file_goes_when_nothing_needs_it() {
        check(&[], &[], &[6]);
        check(&[], &[2, 4], &[2, 4, 6]);
    }

    #[test]
    fn acknowledgements_outlive_their_messages() {
        check(&[(3, 1)], &[1], &[1, 3, 6]);
        check(&[(3, 1)], &[], &[6]);
        // Over several steps, whatever the direction.
        check(&[(3, 1), (4, 3), (5, 4)], &[1], &[1, 3, 4, 5, 6]);
        check(&[(1, 3), (3, 5), (5, 4)], &[4], &[1, 3, 4, 5, 6]);
        check(&[(1, 2), (2, 1)], &[], &[6]);
    }

    #[test]
    fn prepared_transactions_keep_everything_behind_them() {
        let reasons = table(&[], &[], 6).reasons(6, Some(4));
        assert_eq!(reasons[&3], []);
        assert_eq!(reasons[&4], [Reason::Prepared]);
    }

    #[test]
    fn a_forgotten_file_keeps_nobody() {
        let mut table = table(&[(3, 1)], &[1], 3);
        table.message_removed(1, 10, 2);
        table.forget(1);
        assert!(table.reasons(4, None).values().all(Vec::is_empty));
    }
}
