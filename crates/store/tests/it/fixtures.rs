//! Real directories of ActiveMQ's, opened for work: imported, stopped, opened again, and with the index thrown away.

use std::sync::Arc;

use kahawai_env::{DiskFiles, Files, OsEntropy};
use kahawai_store::{OpenOptions, Opened};
use kahawai_testkit::fixtures::{expected, names, unpack};
use serde_json::Value;

fn ids(opened: &mut Opened) -> Vec<(String, Vec<String>)> {
    let reader = opened.store.reader();
    let mut inspection = kahawai_store::inspect::Inspection {
        state: std::mem::take(opened.store.state_mut()),
        reader,
        recovery: opened.report.recovery.clone(),
        how: opened.report.index.clone(),
        open: Vec::new(),
    };
    let keys: Vec<_> = inspection.state.destinations().map(|(key, d)| (key, d.name.to_string())).collect();
    let mut found = Vec::new();
    for (key, name) in keys {
        let messages = inspection.messages(key).unwrap();
        found.push((name, messages.iter().map(|(_, m)| m.id.to_string()).collect::<Vec<_>>()));
    }
    found.retain(|(_, ids)| !ids.is_empty());
    found.sort();
    found
}

fn wanted(recovered: &Value) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = recovered["destinations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| {
            let ids =
                d["messages"].as_array().unwrap().iter().map(|m| m["messageId"].as_str().unwrap().to_owned());
            (d["destination"].as_str().unwrap().to_owned(), ids.collect::<Vec<_>>())
        })
        .filter(|(_, ids)| !ids.is_empty())
        .collect();
    found.sort();
    found
}

fn stop(mut opened: Opened) {
    opened.store.journal().close();
    while let Some(batch) = opened.writer.next_batch(kahawai_types::Lsn::ZERO).unwrap() {
        let end = opened.writer.write(batch).unwrap();
        opened.store.apply(end, usize::MAX, &mut Vec::new()).unwrap();
    }
    let checkpoint = opened.store.begin_checkpoint(true);
    opened.store.index().write(checkpoint).unwrap();
}

#[test]
fn directories_of_activemq_are_served_in_place() {
    for name in names() {
        let expected = expected(&name);
        let Some(recovered) = expected.get("recovered").filter(|_| name != "multi-kahadb") else { continue };
        let place = unpack(&name);
        let files: Arc<dyn Files> = Arc::new(DiskFiles::open(place.path().join("kahadb")).unwrap());
        let want = wanted(recovered);
        let open = |rebuild| {
            let options = OpenOptions { rebuild, ..OpenOptions::default() };
            kahawai_store::open(&files, &OsEntropy, &options).unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        // Imported, then from our checkpoint, then with our index thrown away: the same each time.
        for (round, rebuild) in
            [("import", false), ("checkpoint", false), ("rebuild", true), ("again", false)]
        {
            let mut opened = open(rebuild);
            let in_doubt = opened.store.state().prepared.len();
            assert_eq!(in_doubt, recovered["inDoubtXa"].as_array().unwrap().len(), "{name}, {round}");
            assert_eq!(ids(&mut opened), want, "{name}, {round}, {:?}", opened.report.index);
            drop(opened);
            let opened = open(false);
            stop(opened);
        }
    }
}
