//! A journal that grows by what its primary sends.

use bytes::Bytes;
use kahawai_journal::{Control, CopyError, JournalOptions, KnownPositions, Problem, Stamp};
use kahawai_testkit::{MemoryFiles, Random};
use kahawai_types::{Epoch, Lsn};

use crate::model::{Life, Memory, payload, small_files, walk};

#[test]
fn a_copy_is_byte_identical_and_can_take_over() {
    let mut random = Random::new(3);
    let mut primary = Life::begin(&MemoryFiles::new(), small_files(4096), KnownPositions::default()).unwrap();
    let mut replica = Life::begin(&MemoryFiles::new(), small_files(4096), KnownPositions::default()).unwrap();
    let mut memory = Memory::default();
    primary.reign();
    let mut waiting = Vec::new();
    for _ in 0..60 {
        life_appends(&primary, &mut memory, &mut random);
        while let Some(batch) = primary.writer.try_next(memory.confirmed_end).unwrap() {
            waiting.push((batch.start, batch.bytes()));
            memory.confirm(primary.writer.write(batch).unwrap());
        }
        if random.chance(3) {
            let end = replica.writer.copy(&std::mem::take(&mut waiting)).unwrap();
            assert_eq!(end, memory.confirmed_end);
            assert_eq!(replica.writer.chain(), primary.writer.chain());
            assert_eq!(replica.journal.reader().durable_end(), end);
        }
    }
    replica.writer.copy(&waiting).unwrap();
    let (ours, theirs) = (walk(&replica.journal).unwrap(), walk(&primary.journal).unwrap());
    assert!(
        ours.iter()
            .map(|batch| (batch.lsn, &batch.bytes))
            .eq(theirs.iter().map(|batch| (batch.lsn, &batch.bytes)))
    );
    for (mine, other) in replica.journal.files().iter().zip(primary.journal.files()) {
        assert_eq!(mine.id, other.id);
    }
    let files = replica.files.crash(8);
    let mut successor = Life::begin(&files, small_files(4096), KnownPositions::default()).unwrap();
    memory.check(&successor);
    successor.reign();
    successor.append(&mut memory, payload(&mut random, 100)).unwrap();
    successor.write_all(&mut memory);
    assert!(matches!(successor.writer.copy(&[]), Err(CopyError::Writing)));
    let files = successor.files.crash(9);
    memory.check(&Life::begin(&files, small_files(4096), KnownPositions::default()).unwrap());
}

fn life_appends(life: &Life, memory: &mut Memory, random: &mut Random) {
    for _ in 0..=random.below(3) {
        life.append(memory, payload(random, 600)).unwrap();
    }
}

#[test]
fn what_does_not_continue_the_copy_is_refused_unwritten() {
    let mut random = Random::new(4);
    let mut primary = Life::begin(&MemoryFiles::new(), small_files(4096), KnownPositions::default()).unwrap();
    let mut replica = Life::begin(&MemoryFiles::new(), small_files(4096), KnownPositions::default()).unwrap();
    let mut memory = Memory::default();
    primary.reign();
    let mut batches = Vec::new();
    for _ in 0..6 {
        life_appends(&primary, &mut memory, &mut random);
        let batch = primary.writer.try_next(Lsn::ZERO).unwrap().unwrap();
        batches.push((batch.start, batch.bytes()));
        primary.writer.write(batch).unwrap();
    }
    replica.writer.copy(&batches[..2]).unwrap();
    let before = replica.files.operations();
    let mut changed = batches[2].1.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    let mut long = batches[2].1.to_vec();
    long.extend_from_slice(b"-qMa4");
    for wrong in [
        vec![batches[3].clone()],
        vec![batches[1].clone()],
        vec![(batches[3].0, batches[2].1.clone())],
        vec![(batches[2].0, batches[3].1.clone())],
        vec![batches[2].clone(), batches[4].clone()],
        vec![(batches[2].0, changed.into())],
        vec![(batches[2].0, long.into())],
        vec![(batches[2].0, batches[2].1.slice(..40))],
        vec![(batches[2].0, bytes::Bytes::new())],
    ] {
        let error = replica.writer.copy(&wrong).unwrap_err();
        assert!(matches!(error, CopyError::Gap { .. } | CopyError::Batch { .. }), "{error}");
    }
    assert_eq!(replica.files.operations(), before);
    assert_eq!(replica.writer.copy(&batches[2..]).unwrap(), primary.writer.written());
}

/// A replica outside the in-sync set writes several batches to a flush that others have confirmed long ago: after a crash a
/// later one may be whole while an earlier one is torn.
#[test]
fn a_replica_that_was_behind_cuts_what_it_had_not_flushed() {
    let mut random = Random::new(5);
    let mut primary =
        Life::begin(&MemoryFiles::new(), small_files(64 << 10), KnownPositions::default()).unwrap();
    let mut memory = Memory::default();
    primary.reign();
    let mut batches = Vec::new();
    for _ in 0..20 {
        life_appends(&primary, &mut memory, &mut random);
        let batch = primary.writer.try_next(memory.confirmed_end).unwrap().unwrap();
        batches.push((batch.start, batch.bytes()));
        memory.confirm(primary.writer.write(batch).unwrap());
    }
    let mut refused = 0;
    for seed in 0..50 {
        let mut replica =
            Life::begin(&MemoryFiles::new(), small_files(64 << 10), KnownPositions::default()).unwrap();
        let durable = replica.writer.copy(&batches[..5]).unwrap();
        replica.files.die_after(1);
        assert!(matches!(replica.writer.copy(&batches[5..]), Err(CopyError::Failed(_))));
        let files = replica.files.crash(seed);
        let known = KnownPositions { durable, commit: Lsn::ZERO };
        refused += usize::from(Life::begin(&files.fork(), small_files(64 << 10), known).is_err());
        let behind = JournalOptions { batches_behind_prove: false, ..small_files(64 << 10) };
        let mut replica = Life::begin(&files, behind, known).unwrap();
        assert!(replica.recovery.end >= durable);
        let have = batches.iter().position(|(at, _)| *at == replica.recovery.end).unwrap_or(batches.len());
        replica.writer.copy(&batches[have..]).unwrap();
        assert_eq!(replica.writer.chain(), primary.writer.chain());
    }
    assert!(refused > 0);
}

#[test]
fn a_batch_of_a_deposed_primary_is_refused() {
    let mut primary =
        Life::begin(&MemoryFiles::new(), small_files(64 << 10), KnownPositions::default()).unwrap();
    let mut memory = Memory::default();
    primary.reign();
    primary.write_all(&mut memory);
    let primary =
        Life::begin(&primary.files.crash(1), small_files(64 << 10), KnownPositions::default()).unwrap();
    primary.reign();
    let mut replica =
        Life::begin(&MemoryFiles::new(), small_files(64 << 10), KnownPositions::default()).unwrap();
    let mut writer = primary.writer;
    let second = writer.try_next(Lsn::ZERO).unwrap().unwrap();
    writer.write(second).unwrap();
    let batches: Vec<_> =
        walk(&primary.journal).unwrap().into_iter().map(|batch| (batch.lsn, batch.bytes)).collect();
    let end = replica.writer.copy(&batches).unwrap();
    // Right in every other respect.
    let batch = |epoch| {
        let prev_chain = replica.writer.chain().unwrap();
        let digest = 0x2d06_8005_38d3_94c2; // XXH3-64 of nothing
        let stamp =
            Stamp { epoch: Epoch(epoch), lsn: end, commit_hint: Lsn::ZERO, prev_chain, digest }.encode();
        let mut bytes = Control::of(&stamp).unwrap().encode().to_vec();
        bytes.extend_from_slice(&stamp);
        (end, Bytes::from(bytes))
    };
    let (deposed, right) = (batch(1), batch(2));
    let error = replica.writer.copy(&[deposed]).unwrap_err();
    assert!(matches!(error, CopyError::Batch { problem: Problem::Epoch { .. }, .. }), "{error}");
    replica.writer.copy(&[right]).unwrap();
}
