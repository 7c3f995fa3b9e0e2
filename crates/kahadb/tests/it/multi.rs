use std::collections::{BTreeMap, BTreeSet, HashSet};

use kahawai_kahadb::multi::{
    Decisions, Outcome, TX_STORE_DIRECTORY, destination_of, directory_name, local_of_xid,
};
use kahawai_kahadb::{Command, decode};
use kahawai_message::{Destination, TransactionId};

use crate::fixtures::{Fixture, records};

#[test]
fn the_stores_of_a_real_mkahadb_are_named_as_expected_and_only_the_real_xa_is_left_in_doubt() {
    let fixture = Fixture::unpack("multi-kahadb");
    let mut names = BTreeSet::new();
    let mut decisions = Decisions::new();
    let mut prepared: BTreeMap<TransactionId, usize> = BTreeMap::new();
    let (mut decided, mut locals) = (0, HashSet::new());
    for store in fixture.stores() {
        let name = store.file_name().unwrap().to_str().unwrap().to_owned();
        let mut open = HashSet::new();
        for (_, payload) in records(&store) {
            let command = decode(payload).unwrap();
            if name == TX_STORE_DIRECTORY {
                decided += usize::from(matches!(command, Command::Prepare(_)));
                decisions.apply(&command);
                continue;
            }
            match command {
                Command::AddMessage(add) => {
                    if let Some(TransactionId::Xa(xid)) = &add.transaction {
                        locals.extend(local_of_xid(xid));
                    }
                }
                Command::Prepare(transaction) => {
                    open.insert(transaction);
                }
                Command::Commit(transaction) | Command::Rollback(transaction) => {
                    open.remove(&transaction);
                }
                _ => {}
            }
        }
        for transaction in open {
            *prepared.entry(transaction).or_default() += 1;
        }
        if name != TX_STORE_DIRECTORY {
            let destination = destination_of(&name).unwrap();
            assert_eq!(directory_name(&destination), name);
            names.insert(destination);
        }
    }
    let expected = ["EACH.ONE", "EACH.TWO", "FAST.>", "OTHER"].map(Destination::queue);
    assert_eq!(names, expected.into());
    assert!(decided > 0 && !locals.is_empty(), "{decided} {locals:?}");
    let in_doubt: Vec<_> = prepared.keys().map(|transaction| decisions.outcome(transaction)).collect();
    assert_eq!(in_doubt, [Outcome::UpToCoordinator]);
}
