//! A journal with somebody who remembers what it confirmed.

use std::sync::Arc;

use bytes::{BufMut, Bytes};
use kahawai_env::Files;
use kahawai_journal::{
    AppendError, Appended, Appender, BatchView, Control, END_MARK, Journal, JournalFailed, JournalOptions,
    KnownPositions, NewEpoch, OpenError, Preparer, Record, Recovery, Trace, Writer,
};
use kahawai_testkit::{MemoryFiles, Random};
use kahawai_types::{BootId, ClusterId, Epoch, Lsn, NodeId, StoreId};

pub fn new_epoch(epoch: Epoch) -> NewEpoch {
    NewEpoch {
        cluster_id: ClusterId(1),
        epoch,
        node_id: NodeId("node-1".to_owned()),
        store_id: StoreId(2),
        boot_id: BootId(u128::from(epoch.0)),
        revision: 7,
        unclean: false,
    }
}

pub fn small_files(file_bytes_max: u32) -> JournalOptions {
    JournalOptions { file_bytes_max, batch_bytes_max: file_bytes_max / 2, ..JournalOptions::default() }
}

/// A command that is no trace: type 1 and any bytes.
pub fn payload(random: &mut Random, bytes: u64) -> Bytes {
    let length = 1 + random.below(bytes) as usize;
    let mut payload = random.bytes(length);
    payload[0] = 1;
    // Some look like what a careless search would take for a batch or an end.
    if random.chance(6) {
        payload.extend_from_slice(b"-qMa4\x00\x00\x00\x1c\x02WRITE BATCH\x00\x00\x00\x00");
        payload.extend_from_slice(&[0; 8]);
    }
    if random.chance(6) {
        payload.extend_from_slice(&[0; 600]);
    }
    // Some carry a data file of ActiveMQ's.
    if random.chance(6) {
        let records = b"\x00\x00\x00\x08\x01\x01ab\x00\x00\x00\x07\x01\x01c";
        payload.extend_from_slice(&Control::of(records).unwrap().encode());
        payload.extend_from_slice(records);
        payload.extend_from_slice(&END_MARK);
    }
    payload.into()
}

/// All batches of a directory, or what stops the walk.
pub fn walk(journal: &Journal) -> Result<Vec<BatchView>, String> {
    journal.reader().batches(Lsn::ZERO).map(|batch| batch.map_err(|error| error.to_string())).collect()
}

/// User records that are no traces.
pub fn commands(batches: &[BatchView]) -> Vec<Record> {
    batches.iter().flat_map(BatchView::records).filter(|record| record.trace().is_none()).collect()
}

#[derive(Clone, Debug)]
pub struct Remembered {
    pub appended: Appended,
    pub payload: Bytes,
    /// Records of one group stay together.
    pub group: u64,
}

/// One life of a journal, and the memory of all its lives.
pub struct Life {
    pub files: MemoryFiles,
    pub journal: Journal,
    pub writer: Writer,
    pub preparer: Preparer,
    pub appender: Appender,
    pub recovery: Recovery,
}

#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub records: Vec<Remembered>,
    /// So many of them are confirmed.
    pub confirmed: usize,
    pub confirmed_end: Lsn,
    pub groups: u64,
}

impl Life {
    pub fn begin(
        files: &MemoryFiles,
        options: JournalOptions,
        known: KnownPositions,
    ) -> Result<Self, OpenError> {
        let files = files.clone();
        let (journal, recovery) = Journal::open(Arc::new(files.clone()) as Arc<dyn Files>, options, known)?;
        let writer = journal.take_writer().unwrap();
        let preparer = journal.take_preparer().unwrap();
        let appender = journal.appender();
        Ok(Self { files, journal, writer, preparer, appender, recovery })
    }

    pub fn reign(&self) -> Appended {
        self.journal.begin_epoch(new_epoch(self.recovery.last_epoch.next())).unwrap()
    }

    pub fn append(&self, memory: &mut Memory, payload: Bytes) -> Result<(), AppendError> {
        let appended = self.appender.lock().append(|out| out.put_slice(&payload))?;
        memory.groups += 1;
        memory.records.push(Remembered { appended, payload, group: memory.groups });
        Ok(())
    }

    pub fn append_together(&self, memory: &mut Memory, payloads: Vec<Bytes>) -> Result<(), AppendError> {
        let all = self
            .appender
            .lock()
            .append_together(payloads.len(), |index, out| out.put_slice(&payloads[index]))?;
        memory.groups += 1;
        for (appended, payload) in all.into_iter().zip(payloads) {
            memory.records.push(Remembered { appended, payload, group: memory.groups });
        }
        Ok(())
    }

    /// Writes one batch; `false` if there was none.
    pub fn write(&mut self, memory: &mut Memory) -> Result<bool, JournalFailed> {
        let Some(batch) = self.writer.try_next(memory.confirmed_end)? else { return Ok(false) };
        let durable = self.writer.write(batch)?;
        memory.confirm(durable);
        Ok(true)
    }

    pub fn write_all(&mut self, memory: &mut Memory) {
        while self.write(memory).unwrap() {}
    }

    pub fn close(mut self, memory: &mut Memory) {
        self.journal.close();
        self.write_all(memory);
        assert!(self.writer.next_batch(Lsn::ZERO).unwrap().is_none());
    }
}

impl Memory {
    pub fn confirm(&mut self, durable: Lsn) {
        self.confirmed_end = durable;
        self.confirmed = self.records.partition_point(|record| record.appended.end <= durable);
    }

    /// Compares a journal with what is remembered: all that was confirmed is there; behind it perhaps some of what was
    /// appended, in order, whole groups; nothing else. From then on that is confirmed.
    pub fn check(&mut self, life: &Life) {
        let batches = walk(&life.journal).unwrap_or_else(|error| panic!("{error}"));
        let found = commands(&batches);
        assert!(found.len() >= self.confirmed, "{} records of {} confirmed", found.len(), self.confirmed);
        assert!(
            found.len() <= self.records.len(),
            "{} records, only {} were appended",
            found.len(),
            self.records.len()
        );
        for (record, remembered) in found.iter().zip(&self.records) {
            assert_eq!(record.at, remembered.appended.at);
            assert_eq!(record.payload, remembered.payload);
            assert_eq!(record.end(), remembered.appended.end);
        }
        if let (Some(last), Some(lost)) = (found.len().checked_sub(1), self.records.get(found.len())) {
            assert_ne!(self.records[last].group, lost.group, "a group was torn");
        }
        let reader = life.journal.reader();
        let mut window = reader.window();
        for remembered in &self.records[..found.len()] {
            let Appended { at, size, .. } = remembered.appended;
            assert_eq!(reader.read(at, size).unwrap(), remembered.payload);
            assert_eq!(window.read(at, size).unwrap(), remembered.payload);
        }
        let end = batches.last().map_or(Lsn::ZERO, BatchView::end);
        assert_eq!(life.recovery.end, end);
        assert_eq!(
            life.recovery.chain,
            Some(batches.last().map_or_else(Default::default, |batch| batch.chain.unwrap()))
        );
        assert!(end >= self.confirmed_end);
        let mut epochs: Vec<Epoch> = Vec::new();
        for record in batches.iter().flat_map(BatchView::records) {
            if let Some(Trace::EpochMarker(marker)) = record.trace() {
                assert!(epochs.last().is_none_or(|last| *last == marker.previous));
                epochs.push(marker.epoch);
            }
        }
        assert!(epochs.is_sorted());
        assert_eq!(epochs.last().copied().unwrap_or_default(), life.recovery.last_epoch);
        self.records.truncate(found.len());
        self.confirm(end);
        assert_eq!(self.confirmed, found.len());
    }
}
