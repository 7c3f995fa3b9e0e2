use std::collections::BTreeMap;

use bytes::Bytes;
use kahawai_kahadb::scheduler::{SchedulerIndex, SchedulerState};
use kahawai_kahadb::{Command, decode};
use kahawai_types::Location;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::fixtures::{Fixture, records};

/// The jobs as the broker listed them, in its order.
fn listing(state: &SchedulerState, journal: &BTreeMap<Location, Bytes>) -> Vec<Value> {
    state
        .jobs("JMS")
        .map(|job| {
            let Ok(Command::AddScheduledJob(add)) = decode(journal[&job.record].clone()) else {
                panic!("{job:?}");
            };
            json!({
                "jobId": &*job.job_id,
                "cronEntry": &*job.cron_entry,
                "delay": job.delay_ms,
                "period": job.period_ms,
                "repeat": job.repeat,
                "start": job.start_ms,
                "nextExecutionTime": utc(job.next_execution_ms),
                "payloadLength": add.payload.len(),
                "payloadSha256": format!("{:x}", Sha256::digest(&add.payload)),
            })
        })
        .collect()
}

/// `2046-11-17 18:23:38`.
fn utc(millis: i64) -> String {
    let seconds = millis.div_euclid(1000);
    // Days since 0000-03-01, by eras of 400 years (H. Hinnant, "chrono-compatible low-level date algorithms").
    let days = seconds.div_euclid(86_400) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let time = seconds.rem_euclid(86_400);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", time / 3600, time / 60 % 60, time % 60)
}

#[test]
fn the_scheduler_store_gives_the_jobs_that_the_broker_listed_with_and_without_its_index() {
    let fixture = Fixture::unpack("scheduler");
    let store = fixture.directory("scheduler");
    let journal: BTreeMap<Location, Bytes> = records(&store).into_iter().collect();
    let mut expected = fixture.expected()["recovered"]["scheduledJobs"].as_array().unwrap().clone();
    for job in &mut expected {
        job.as_object_mut().unwrap().remove("message");
    }
    assert!(expected.len() >= 9);

    let mut replayed = SchedulerState::new();
    for (&at, payload) in &journal {
        replayed.apply(&decode(payload.clone()).unwrap(), at);
    }
    assert_eq!(listing(&replayed, &journal), expected, "replay");

    let data = std::fs::read(store.join("scheduleDB.data")).unwrap();
    let redo = std::fs::read(store.join("scheduleDB.redo")).unwrap();
    let index = SchedulerIndex::open(&data, Some(&redo)).unwrap();
    let mut state = index.state().unwrap();
    for (&at, payload) in journal.range(index.last_update().unwrap()..).skip(1) {
        state.apply(&decode(payload.clone()).unwrap(), at);
    }
    assert_eq!(listing(&state, &journal), expected, "index");
    assert_eq!(state.schedulers().collect::<Vec<_>>(), ["JMS"]);
    // Nine adds and one reschedule, all in the first file, whose removals need no note.
    assert_eq!(index.references().unwrap(), [(1, 10)].into());
    assert_eq!(index.removals().unwrap(), [].into());
}
