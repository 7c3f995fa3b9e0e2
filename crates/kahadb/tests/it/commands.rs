use std::collections::BTreeMap;

use bytes::BytesMut;
use kahawai_kahadb::command::{MessageKey, RemoveHeader, decode, encode, encode_remove};
use kahawai_kahadb::{AddHeader, Command, encode_add, encode_update};
use kahawai_message::MessageId;

use crate::fixtures::{Fixture, all, records};

#[test]
fn every_real_record_is_written_again_as_the_same_bytes() {
    let mut seen = BTreeMap::new();
    for name in all() {
        let fixture = Fixture::unpack(&name);
        for store in fixture.stores() {
            for (at, payload) in records(&store) {
                let place = format!("{name} {} {at}", store.display());
                let command = decode(payload.clone()).unwrap_or_else(|error| panic!("{place}: {error:?}"));
                let mut out = BytesMut::new();
                encode(&command, &mut out);
                assert!(out == payload, "{place}: {command:?}\n{payload:x}\n{out:x}");
                *seen.entry(command.type_byte()).or_insert(0) += 1;
                check_hot_path(&command, &payload, &place);
            }
        }
    }
    println!("records by type: {seen:?}");
    // No fixture destroys a scheduler (15).
    for number in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16] {
        assert!(seen.contains_key(&number), "no record of type {number}");
    }
}

/// The encoders of the hot path, with keys from their parts and hints that are wrong, write the same bytes too.
fn check_hot_path(command: &Command, payload: &[u8], place: &str) {
    let mut out = BytesMut::new();
    match command {
        Command::AddMessage(add) | Command::UpdateMessage(add) => {
            let id = MessageId::from_key(&add.message_key).expect(place);
            let header = AddHeader {
                transaction: add.transaction.as_ref(),
                destination: &add.destination,
                message_key: MessageKey::from(&id),
                priority: add.priority,
                priority_supported: add.priority_supported,
            };
            let message = |out: &mut BytesMut| out.extend_from_slice(&add.message);
            match command {
                Command::UpdateMessage(_) => encode_update(&header, 0, message, &mut out),
                _ => encode_add(&header, 0, message, &mut out),
            }
        }
        Command::RemoveMessage(remove) => {
            let id = MessageId::from_key(&remove.message_key).expect(place);
            let header = RemoveHeader {
                transaction: remove.transaction.as_ref(),
                destination: &remove.destination,
                message_key: MessageKey::from(&id),
                subscription_key: remove.subscription_key.as_deref(),
            };
            let ack = remove.ack.as_deref().expect(place);
            encode_remove(&header, |out| out.extend_from_slice(ack), &mut out);
        }
        _ => return,
    }
    assert!(out == payload, "{place}: {command:?}");
}
