use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kahawai_kahadb::pagefile::{Import, Redo, StoredDestination, StoredMessage};
use kahawai_kahadb::{Command, decode};
use kahawai_types::Location;
use serde_json::Value;

use crate::fixtures::{Fixture, all, records};

/// What an index says, by qualified destination name.
#[derive(Default)]
struct Content {
    destinations: BTreeMap<String, Destination>,
    last_updates: Vec<Option<Location>>,
}

#[derive(Default)]
struct Destination {
    /// In delivery order.
    messages: Vec<StoredMessage>,
    /// By key: how many are pending, and which.
    subscriptions: BTreeMap<String, (u64, Vec<String>)>,
}

/// Reads all of a store's index, and checks that its parts agree, also with the journal unless that is damaged.
fn read(store: &Path, damaged: bool, into: &mut Content) -> Option<Redo> {
    let data = std::fs::read(store.join("db.data")).ok()?;
    let redo = std::fs::read(store.join("db.redo")).ok();
    let place = store.display().to_string();
    let import = Import::open(&data, redo.as_ref().map(|redo| redo as _)).expect(&place);
    let metadata = import.metadata();
    assert_eq!((metadata.version, metadata.openwire_version), (7, 11), "{place}");
    let journal: BTreeMap<Location, Command> =
        records(store).into_iter().map(|(at, payload)| (at, decode(payload).expect(&place))).collect();
    for (at, name) in [(metadata.producer_audit, "producer-audit"), (metadata.ack_map, "ack-file-map")] {
        if let Some(command) = at.and_then(|at| journal.get(&at)) {
            assert_eq!(command.name(), name, "{place} {at:?}");
        }
    }
    for destination in import.destinations().expect(&place) {
        let name = destination.destination.to_string();
        let messages: Vec<StoredMessage> =
            import.messages(&destination).collect::<Result<_, _>>().expect(&place);
        check_trees(&import, &destination, &messages);
        for message in &messages {
            match journal.get(&message.record.location) {
                Some(Command::AddMessage(add) | Command::UpdateMessage(add)) => {
                    assert_eq!(add.message_key, message.message_key, "{place} {message:?}");
                    assert_eq!(add.destination, destination.destination, "{place} {message:?}");
                }
                Some(other) => panic!("{place} {message:?}: {other:?}"),
                None => assert!(damaged, "{place} {message:?}"),
            }
        }
        let subscriptions = import.subscriptions(&destination).expect(&place);
        let mut found = Destination::default();
        for stored in &subscriptions {
            let at = stored.record.expect(&place);
            assert_eq!(
                journal.get(&at),
                Some(&Command::Subscription(stored.subscription.clone())),
                "{place} {at}"
            );
            assert!(stored.last_ack.is_some(), "{place}");
            let pending = messages.iter().filter(|message| stored.pending.contains(message.sequence));
            let pending = pending.map(|message| message.message_key.to_string()).collect();
            found
                .subscriptions
                .insert(stored.subscription.subscription_key.to_string(), (stored.pending_count(), pending));
        }
        found.messages = messages;
        into.destinations.insert(name, found);
    }
    into.last_updates.push(metadata.last_update);
    Some(import.redo())
}

fn check_trees(import: &Import<'_>, destination: &StoredDestination, messages: &[StoredMessage]) {
    let by_order: BTreeMap<i64, Location> =
        messages.iter().map(|message| (message.sequence, message.record.location)).collect();
    let by_location: BTreeMap<i64, Location> = import
        .locations(destination)
        .map(|entry| entry.unwrap())
        .map(|(at, sequence)| (sequence, at.location))
        .collect();
    assert_eq!(by_order, by_location, "{destination:?}");
    let mut by_id: Vec<(i64, String)> = import
        .message_ids(destination)
        .map(|entry| entry.unwrap())
        .map(|(id, sequence)| (sequence, id.to_string()))
        .collect();
    by_id.sort();
    let mut ids: Vec<(i64, String)> =
        messages.iter().map(|message| (message.sequence, message.message_key.to_string())).collect();
    ids.sort();
    assert_eq!(ids, by_id, "{destination:?}");
    if let Some(statistics) = import.statistics(destination).unwrap() {
        assert_eq!(statistics.messages, messages.len() as i64, "{destination:?}");
        let bytes: u32 = messages.iter().map(|message| message.record.size.unwrap()).sum();
        assert_eq!(statistics.bytes, i64::from(bytes), "{destination:?}");
    }
    let next = import.next_sequence(destination).unwrap();
    assert!(messages.iter().all(|message| message.sequence < next), "{destination:?}");
}

/// What the broker recovered from one fixture is what its index says, but for what the journal has behind it.
fn check(name: &str) -> Option<Redo> {
    let fixture = Fixture::unpack(name);
    let mut content = Content::default();
    let mut redo = None;
    let mut later = BTreeSet::new();
    let damaged = name.starts_with("damaged-");
    for store in fixture.stores() {
        if store.ends_with("scheduler") {
            continue;
        }
        redo = read(&store, damaged, &mut content).or(redo);
        let from = content.last_updates.last().copied().flatten();
        later.extend(records(&store).into_iter().filter(|&(at, _)| Some(at) > from).filter_map(
            |(_, payload)| match decode(payload) {
                Ok(Command::AddMessage(add)) => Some(add.message_key.to_string()),
                _ => None,
            },
        ));
    }
    // The damage is to the journals, made after the index was written.
    let expected = if damaged { Fixture::unpack("queue-backlog").expected() } else { fixture.expected() };
    if name != "damaged-missing-index" {
        compare(name, &content, &expected["recovered"], &later);
    }
    redo
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn compare(name: &str, content: &Content, expected: &Value, later: &BTreeSet<String>) {
    // What prepared transactions acknowledged in queues is stored, and not listed.
    let mut in_doubt = BTreeSet::new();
    for ack in expected["inDoubtXa"].as_array().unwrap().iter().flat_map(|xa| xa["acks"].as_array().unwrap())
    {
        if ack["subscriptionKey"].is_null() {
            in_doubt.insert((ack["destination"].as_str().unwrap(), ack["messageId"].as_str().unwrap()));
        }
    }
    let none = Destination::default();
    for wanted in expected["destinations"].as_array().unwrap() {
        let destination = wanted["destination"].as_str().unwrap();
        let found = content.destinations.get(destination).unwrap_or(&none);
        let ids: Vec<String> = found
            .messages
            .iter()
            .map(|message| message.message_key.to_string())
            .filter(|id| !in_doubt.contains(&(destination, id.as_str())))
            .collect();
        let mut wanted_ids: Vec<String> = wanted["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["messageId"].as_str().unwrap().to_owned())
            .collect();
        if wanted_ids != ids {
            wanted_ids.retain(|id| ids.contains(id) || !later.contains(id));
        }
        assert_eq!(ids, wanted_ids, "{name} {destination}");
        for wanted in wanted["subscriptions"].as_array().into_iter().flatten() {
            let key = format!(
                "{}:{}",
                wanted["clientId"].as_str().unwrap(),
                wanted["subscriptionName"].as_str().unwrap()
            );
            let (count, ids) = &found.subscriptions[&key];
            assert_eq!(Some(*count), wanted["pendingCount"].as_u64(), "{name} {destination} {key}");
            // Listed where it differs from what the broker offers again.
            if let Some(unacked) = wanted.get("unackedMessageIds") {
                assert_eq!(*ids, texts(unacked), "{name} {destination} {key}");
            }
        }
    }
}

#[test]
fn every_index_says_what_the_broker_recovered() {
    let mut redone = 0;
    for name in all() {
        let redo = check(&name);
        println!("{name}: {redo:?}");
        assert_eq!(redo.is_none(), name == "damaged-missing-index", "{name}");
        redone += usize::from(matches!(redo, Some(Redo::Applied { .. })));
    }
    assert!(redone >= 4, "few indexes needed their redo file: {redone}");
}
