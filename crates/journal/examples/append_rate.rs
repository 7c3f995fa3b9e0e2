//! How fast records are appended and confirmed, and how fast the journal is walked again, on a real disk.
//!
//! `cargo run --release -p kahawai-journal --example append_rate -- DIR [SECONDS]`; DIR is made, filled and left behind.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::BufMut;
use kahawai_env::{Clock, DiskFiles, Files, SystemClock};
use kahawai_journal::{Journal, JournalOptions, KnownPositions, NewEpoch};
use kahawai_types::{BootId, ClusterId, Lsn, NodeId, StoreId};

struct Case {
    producers: usize,
    window: usize,
    bytes: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("usage: append_rate DIR [SECONDS]")?;
    let seconds = arguments.next().map_or(Ok(3), |text| text.parse::<u64>())?;
    let cases = [
        (1, 1, 1024),
        (16, 1, 1024),
        (64, 1, 1024),
        (1, 256, 1024),
        (4, 256, 1024),
        (4, 256, 100),
        (4, 64, 65_536),
    ];
    for (index, (producers, window, bytes)) in cases.into_iter().enumerate() {
        let files: Arc<dyn Files> = Arc::new(DiskFiles::open(format!("{directory}/{index}"))?);
        run(&files, &Case { producers, window, bytes }, seconds * 1_000_000)?;
        walk(&files)?;
    }
    Ok(())
}

fn run(files: &Arc<dyn Files>, case: &Case, run_us: u64) -> Result<(), Box<dyn Error>> {
    let (journal, recovery) =
        Journal::open(files.clone(), JournalOptions::default(), KnownPositions::default())?;
    journal.begin_epoch(NewEpoch {
        cluster_id: ClusterId(1),
        epoch: recovery.last_epoch.next(),
        node_id: NodeId("bench".to_owned()),
        store_id: StoreId(1),
        boot_id: BootId(1),
        revision: 0,
        unclean: false,
    })?;
    let mut writer = journal.take_writer().ok_or("a new journal has a writer")?;
    let mut preparer = journal.take_preparer().ok_or("a new journal has a preparer")?;
    preparer.run_once()?;
    let durable = (Mutex::new(Lsn::ZERO), Condvar::new());
    let stop = AtomicBool::new(false);
    let confirmed = AtomicU64::new(0);
    let begun = SystemClock.boot_us();
    let cpu_begun = cpu_us();
    std::thread::scope(|scope| {
        scope.spawn(|| preparer.run());
        scope.spawn(|| {
            while let Ok(Some(batch)) = writer.next_batch(Lsn::ZERO) {
                let Ok(end) = writer.write(batch) else { break };
                *durable.0.lock().unwrap_or_else(PoisonError::into_inner) = end;
                durable.1.notify_all();
            }
        });
        let producers: Vec<_> = (0..case.producers)
            .map(|_| {
                scope.spawn(|| {
                    let (appender, body) = (journal.appender(), vec![1; case.bytes]);
                    let mut waiting = VecDeque::new();
                    while !stop.load(Ordering::Relaxed) {
                        {
                            let mut open = appender.lock();
                            while waiting.len() < case.window
                                && let Ok(appended) = open.append(|out| out.put_slice(&body))
                            {
                                waiting.push_back(appended.end);
                            }
                        }
                        let mut end = durable.0.lock().unwrap_or_else(PoisonError::into_inner);
                        while waiting.front().is_some_and(|first| *first > *end) {
                            end = durable.1.wait(end).unwrap_or_else(PoisonError::into_inner);
                        }
                        let end = *end;
                        let before = waiting.len();
                        while waiting.front().is_some_and(|first| *first <= end) {
                            waiting.pop_front();
                        }
                        confirmed.fetch_add((before - waiting.len()) as u64, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        while SystemClock.boot_us() - begun < run_us {
            std::thread::park_timeout(std::time::Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        for producer in producers {
            let _ = producer.join();
        }
        journal.close();
    });
    let elapsed = (SystemClock.boot_us() - begun) as f64 / 1e6;
    let count = confirmed.load(Ordering::Relaxed) as f64;
    let stats = journal.stats();
    println!(
        "{:>3} x {:<3} {:>6} B: {:>8.0}/s {:>6.0} MB/s, {:>6.0} flushes/s of {:>5.0} us, processor {:>5.2} s / 100 k, {} files, {} in a hurry",
        case.producers,
        case.window,
        case.bytes,
        count / elapsed,
        stats.bytes as f64 / elapsed / 1e6,
        stats.flushes as f64 / elapsed,
        stats.flush_us_sum as f64 / stats.flushes as f64,
        (cpu_us() - cpu_begun) as f64 / 10.0 / count,
        stats.files_prepared,
        stats.files_made_in_a_hurry,
    );
    Ok(())
}

fn walk(files: &Arc<dyn Files>) -> Result<(), Box<dyn Error>> {
    let begun = SystemClock.boot_us();
    let (journal, recovery) =
        Journal::open(files.clone(), JournalOptions::default(), KnownPositions::default())?;
    let opened = SystemClock.boot_us();
    let (mut bytes, mut records) = (0, 0);
    for batch in journal.reader().batches(Lsn::ZERO) {
        let batch = batch?;
        bytes += batch.bytes.len();
        records += batch.records().count();
    }
    let walked = (SystemClock.boot_us() - opened) as f64;
    println!(
        "    opened {} files in {:.1} ms, walked {:.2} GB/s, {:.1} million records/s",
        recovery.files.len(),
        (opened - begun) as f64 / 1e3,
        bytes as f64 / walked / 1e3,
        f64::from(u32::try_from(records)?) / walked,
    );
    Ok(())
}

/// Processor time of this process, user and system.
fn cpu_us() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    (ticks(11) + ticks(12)) * 10_000
}
