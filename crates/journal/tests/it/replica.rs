//! A journal that grows by what its primary sends.

use kahawai_journal::{CopyError, KnownPositions};
use kahawai_testkit::{MemoryFiles, Random};
use kahawai_types::Lsn;

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
