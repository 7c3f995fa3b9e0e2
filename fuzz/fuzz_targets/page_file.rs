//! Whatever lies where ActiveMQ's index should be.
#![no_main]
use kahawai_kahadb::pagefile::Import;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let data = data.to_vec();
    let Ok(import) = Import::open(&data, None) else { return };
    let Ok(destinations) = import.destinations() else { return };
    for destination in destinations.iter().take(50) {
        import.messages(destination).take(1000).for_each(drop);
        let _ = import.subscriptions(destination);
    }
});
