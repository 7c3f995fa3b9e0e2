//! mKahaDB (`kahadb-format.md` §12): one directory with a store for each filter or destination, and `txStore`, a journal
//! that says which transactions over several stores are decided.

use std::collections::HashSet;

use bytes::Bytes;
use kahawai_message::{Destination, Text, TransactionId, Xid};

use crate::command::Command;

/// Upstream's default for `MaximumFileNameLength`; longer names keep only their end.
pub const DIRECTORY_NAME_MAX: usize = 64;
/// Directory of the entry without a filter: its qualified name is `!0`.
pub const MATCH_ALL_DIRECTORY: &str = "#210";
/// Directory of the journal of decisions.
pub const TX_STORE_DIRECTORY: &str = "txStore";
/// Format id of local transactions, which mKahaDB stores as XA. A system property can change it.
pub const LOCAL_FORMAT_ID: i32 = 61_616;

/// The directory of a store whose filter is `destination`: `queue://FAST.>` is in `queue#3a#2f#2fFAST.#3e`.
///
/// Every UTF-16 unit but `A-Z a-z 0-9 _ - . #` is written as `#` and two or four hexadecimal digits. A list of
/// destinations goes without its scheme.
pub fn directory_name(destination: &Destination) -> String {
    let name =
        if destination.name.contains(',') { destination.name.to_string() } else { destination.to_string() };
    let mut out = String::with_capacity(name.len() * 2);
    for unit in name.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte) if is_kept(byte) => out.push(char::from(byte)),
            // Upstream drops leading zero bytes, of U+0000 all.
            Ok(0) => out.push('#'),
            Ok(byte) => out.push_str(&format!("#{byte:02x}")),
            Err(_) => out.push_str(&format!("#{unit:04x}")),
        }
    }
    // All of it is ASCII.
    match out.len().checked_sub(DIRECTORY_NAME_MAX) {
        Some(cut) => out.split_off(cut),
        None => out,
    }
}

const fn is_kept(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'#')
}

/// The destination that a directory's name stands for, if it names one.
///
/// A guess: `#` itself is kept as it is, the number of digits is not told, and long names are cut. Two digits are tried
/// first where they stand for a character that is never kept and no control character, then four. What is in a store
/// is said by the store.
pub fn destination_of(directory: &str) -> Option<Destination> {
    let mut units = Vec::with_capacity(directory.len());
    let mut rest = directory;
    while let Some(c) = rest.chars().next() {
        let tail = rest.get(c.len_utf8()..)?;
        let code = |digits: usize| {
            let code = tail
                .get(..digits)
                .filter(|code| code.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))?;
            u16::from_str_radix(code, 16).ok()
        };
        let encoded = |unit: &u16| match u8::try_from(*unit) {
            Ok(byte) => byte >= 0x20 && !is_kept(byte),
            Err(_) => true,
        };
        let read = match c {
            '#' => code(2)
                .filter(encoded)
                .map(|unit| (2, unit))
                .or_else(|| code(4).filter(|&unit| unit > 0xff).map(|unit| (4, unit))),
            _ => None,
        };
        match read {
            Some((digits, unit)) => {
                units.push(unit);
                rest = tail.get(digits..)?;
            }
            None => {
                units.extend(c.encode_utf16(&mut [0; 2]).iter());
                rest = tail;
            }
        }
    }
    let name = String::from_utf16(&units).ok()?;
    name.contains("://")
        .then(|| Destination::from_qualified(&name))
        .filter(|destination| directory_name(destination) == directory)
}

/// The XA form in which mKahaDB stores a local transaction.
pub fn xid_of_local(connection: &Text, value: i64) -> Xid {
    Xid {
        format_id: LOCAL_FORMAT_ID,
        global: connection.as_bytes().clone(),
        branch: Bytes::from(value.to_string()),
    }
}

/// The local transaction behind an XA form, if it is one.
pub fn local_of_xid(xid: &Xid) -> Option<TransactionId> {
    if xid.format_id != LOCAL_FORMAT_ID {
        return None;
    }
    let connection = Text::try_from(xid.global.clone()).ok()?;
    let value = std::str::from_utf8(&xid.branch).ok()?.parse().ok()?;
    Some(TransactionId::Local { connection, value })
}

/// What becomes of a transaction that a store has prepared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The decision was written: commit it in every store that has it.
    Commit,
    /// No decision was written, so the client was told that it failed.
    Rollback,
    /// A real XA transaction: its coordinator knows.
    UpToCoordinator,
    /// A local one, but the decisions are damaged: nobody knows but perhaps the operator.
    UpToOperator,
}

/// What `txStore` says, record by record.
#[derive(Clone, Default, Debug)]
pub struct Decisions {
    decided: HashSet<TransactionId>,
    damaged: bool,
}

impl Decisions {
    /// Before the first record.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next record: a prepare is the decision to commit, a commit says that all stores have done so. Anything else
    /// but a trace does not belong there.
    pub fn apply(&mut self, command: &Command) {
        match command {
            Command::Trace { .. } => {}
            Command::Prepare(transaction) => {
                self.decided.insert(transaction.clone());
            }
            Command::Commit(transaction) => {
                self.decided.remove(transaction);
            }
            _ => self.damaged = true,
        }
    }

    /// Some of the journal could not be read.
    pub fn mark_damaged(&mut self) {
        self.damaged = true;
    }

    /// What becomes of `transaction`, found prepared in a store.
    pub fn outcome(&self, transaction: &TransactionId) -> Outcome {
        match transaction {
            TransactionId::Xa(xid) if xid.format_id == LOCAL_FORMAT_ID => {}
            TransactionId::Xa(_) => return Outcome::UpToCoordinator,
            // mKahaDB writes none; a plain store in its place rolls them back.
            TransactionId::Local { .. } => return Outcome::Rollback,
        }
        if self.damaged {
            Outcome::UpToOperator
        } else if self.decided.contains(transaction) {
            Outcome::Commit
        } else {
            Outcome::Rollback
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(destination: &str, directory: &str) {
        let destination = Destination::from_qualified(destination);
        assert_eq!(directory_name(&destination), directory);
        assert_eq!(destination_of(directory), Some(destination));
    }

    #[test]
    fn directory_names_spell_out_what_file_systems_might_not_bear() {
        check("queue://FAST.>", "queue#3a#2f#2fFAST.#3e");
        check("topic://a_b-c.1", "topic#3a#2f#2fa_b-c.1");
        check("queue://na\u{ef}ve \u{65e5}\u{672c}", "queue#3a#2f#2fna#efve#20#65e5#672c");
        check("queue://#1", "queue#3a#2f#2f#1");
    }

    #[test]
    fn a_list_goes_without_its_scheme() {
        assert_eq!(directory_name(&Destination::queue("A,topic://B")), "A#2ctopic#3a#2f#2fB");
    }

    #[test]
    fn names_that_are_too_long_keep_their_end() {
        let name = directory_name(&Destination::queue("x".repeat(70)));
        assert_eq!(name, "x".repeat(DIRECTORY_NAME_MAX));
        assert_eq!(destination_of(&name), None);
    }

    #[test]
    fn what_names_no_destination_is_none() {
        for directory in ["txStore", "", "lock", "queue", MATCH_ALL_DIRECTORY, "#"] {
            assert_eq!(destination_of(directory), None, "{directory}");
        }
    }

    fn local(value: i64) -> TransactionId {
        TransactionId::Xa(xid_of_local(&"ID:c".into(), value))
    }

    #[test]
    fn a_prepared_local_transaction_is_committed_if_and_only_if_that_was_decided_and_is_not_done() {
        let mut decisions = Decisions::new();
        for command in [
            Command::Trace { text: None },
            Command::Prepare(local(1)),
            Command::Prepare(local(2)),
            Command::Commit(local(1)),
        ] {
            decisions.apply(&command);
        }
        assert_eq!(decisions.outcome(&local(1)), Outcome::Rollback);
        assert_eq!(decisions.outcome(&local(2)), Outcome::Commit);
        assert_eq!(decisions.outcome(&local(3)), Outcome::Rollback);
        let xa = TransactionId::Xa(Xid { format_id: 1, global: Bytes::new(), branch: Bytes::new() });
        assert_eq!(decisions.outcome(&xa), Outcome::UpToCoordinator);
        decisions.apply(&Command::Rollback(local(2)));
        assert_eq!(decisions.outcome(&local(2)), Outcome::UpToOperator);
        assert_eq!(decisions.outcome(&xa), Outcome::UpToCoordinator);
    }

    #[test]
    fn a_local_transaction_reads_back_from_its_xa_form() {
        let connection = Text::from("ID:vm-1-2-3:1");
        let local = TransactionId::Local { connection: connection.clone(), value: -7 };
        assert_eq!(local_of_xid(&xid_of_local(&connection, -7)), Some(local));
    }

    proptest! {
        #[test]
        fn plain_names_read_back(name in "[A-Za-z0-9_. >*:/]{0,12}", topic in any::<bool>()) {
            let destination = if topic { Destination::topic(name) } else { Destination::queue(name) };
            let directory = directory_name(&destination);
            if directory.len() < DIRECTORY_NAME_MAX {
                prop_assert_eq!(destination_of(&directory), Some(destination));
            }
        }

        #[test]
        fn no_name_makes_reading_panic(directory in ".{0,40}", hashes in "[#0-9a-g]{0,40}") {
            let _ = destination_of(&directory);
            let _ = destination_of(&hashes);
        }
    }
}
