use std::collections::BTreeSet;

use kahawai_kahadb::javaser::ack_message_file_map;
use kahawai_kahadb::{Command, decode};

use crate::fixtures::{Fixture, all, records};

#[test]
fn every_real_ack_map_reads_and_names_files_that_there_were() {
    let mut entries = 0;
    for name in all() {
        let fixture = Fixture::unpack(&name);
        for store in fixture.stores() {
            let journal = records(&store);
            let last = journal.iter().map(|(at, _)| at.file).max().unwrap_or_default();
            for (at, payload) in journal {
                let Ok(Command::AckMessageFileMap(bytes)) = decode(payload) else { continue };
                let map = ack_message_file_map(bytes).unwrap_or_else(|error| panic!("{name} {at}: {error}"));
                let files: BTreeSet<u32> =
                    map.iter().flat_map(|(&file, files)| files.iter().copied().chain([file])).collect();
                assert!(files.iter().all(|file| (1..=last).contains(file)), "{name} {at}: {map:?}");
                entries += map.len();
            }
        }
    }
    assert!(entries > 20, "{entries}");
}
