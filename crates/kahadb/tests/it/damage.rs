//! Real page files with flipped, lost and stale bytes: reading ends, with a result or an error, and never panics.

use kahawai_kahadb::pagefile::{Import, PageError};
use kahawai_kahadb::scheduler::SchedulerIndex;
use proptest::prelude::*;

use crate::fixtures::Fixture;

struct Files {
    data: Vec<u8>,
    redo: Vec<u8>,
}

fn files(name: &str) -> Files {
    let fixture = Fixture::unpack(name);
    let store = fixture.directory("kahadb");
    Files {
        data: std::fs::read(store.join("db.data")).unwrap(),
        redo: std::fs::read(store.join("db.redo")).unwrap(),
    }
}

/// Reads all there is; how many entries.
fn read_all(files: &Files) -> Result<usize, PageError> {
    let import = Import::open(&files.data, Some(&files.redo))?;
    let mut entries = 0;
    for destination in import.destinations()? {
        for message in import.messages(&destination) {
            message?;
            entries += 1;
        }
        for entry in import.locations(&destination) {
            entry?;
        }
        for entry in import.message_ids(&destination) {
            entry?;
        }
        entries += import.subscriptions(&destination)?.len();
        import.pending(&destination)?;
        import.next_sequence(&destination)?;
        import.statistics(&destination)?;
    }
    Ok(entries)
}

fn damage(bytes: &mut Vec<u8>, flips: &[(prop::sample::Index, u8)], cut: Option<prop::sample::Index>) {
    for (place, with) in flips {
        let at = place.index(bytes.len());
        bytes[at] ^= with;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len() + 1));
    }
}

/// Flips where they hurt: in the first bytes of pages, where headers and counts are.
fn any_page_flips() -> impl Strategy<Value = Vec<(usize, usize, u8)>> {
    prop::collection::vec((0..200usize, 0..60usize, 1..=255u8), 1..8)
}

#[test]
fn a_message_index_survives_any_damage() {
    for name in ["durable-topics", "transactions-crash", "queue-backlog"] {
        let sound = files(name);
        assert!(read_all(&sound).unwrap() > 10, "{name}");
        let strategy = (
            prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 0..40),
            any_page_flips(),
            prop::option::weighted(0.2, any::<prop::sample::Index>()),
            any::<bool>(),
        );
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 400,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let run = runner.run(&strategy, |(flips, page_flips, cut, redo_too)| {
            let mut files = Files { data: sound.data.clone(), redo: sound.redo.clone() };
            let pages = files.data.len() / 4096;
            for (page, offset, with) in page_flips {
                files.data[page % pages * 4096 + offset] ^= with;
            }
            damage(&mut files.data, &flips, cut);
            if redo_too {
                damage(&mut files.redo, &flips, cut);
            }
            let _ = read_all(&files);
            Ok(())
        });
        run.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn a_scheduler_index_survives_any_damage() {
    let fixture = Fixture::unpack("scheduler");
    let sound = std::fs::read(fixture.directory("scheduler").join("scheduleDB.data")).unwrap();
    proptest!(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() }, |(
        flips in any_page_flips(),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    )| {
        let mut data = sound.clone();
        let pages = data.len() / 4096;
        for (page, offset, with) in flips {
            data[page % pages * 4096 + offset] ^= with;
        }
        damage(&mut data, &[], cut);
        if let Ok(index) = SchedulerIndex::open(&data, None) {
            let _ = (index.state(), index.references(), index.removals());
        }
    });
}

#[test]
fn nothing_at_all_is_an_error_like_any_other() {
    for data in [Vec::new(), vec![0; 4095], vec![b' '; 8192]] {
        assert!(matches!(
            read_all(&Files { data, redo: Vec::new() }),
            Err(PageError::Header | PageError::Io { .. })
        ));
    }
}
