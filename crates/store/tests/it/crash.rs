use proptest::prelude::*;

use crate::world::World;

fn live(seed: u64, lives: u64, steps: u64, fault: impl Fn(&mut World)) {
    let mut world = World::new(seed);
    for life in 0..lives {
        fault(&mut world);
        for _ in 0..steps {
            if !world.step() {
                break;
            }
        }
        let crash_seed = world.random.next_u64();
        let files = if life % 3 == 0 { world.files.kill() } else { world.files.crash(crash_seed) };
        world.reopen(files);
    }
}

/// How many lives: `PROPTEST_CASES` for a long search.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    /// Whatever a power loss does to what was not flushed: what was confirmed is there, what was never sent is not, a
    /// transaction is whole or not there, and the index equals the replay.
    #[test]
    fn power_losses_take_nothing_that_was_confirmed(seed: u64, steps in 1u64..150) {
        live(seed, 6, steps, |_| {});
    }

    /// The same when the disk refuses a write at some point.
    #[test]
    fn failing_writes_take_nothing_that_was_confirmed(seed: u64, after in 1u64..200) {
        live(seed, 4, 150, |world| world.files.fail_write_after(after));
    }

    /// The same when a flush fails once and lies from then on.
    #[test]
    fn failing_flushes_take_nothing_that_was_confirmed(seed: u64, after in 1u64..60) {
        live(seed, 4, 150, |world| world.files.fail_flush_after(after));
    }

    /// The same when the machine stops in the middle of any write.
    #[test]
    fn dying_at_any_operation_takes_nothing_that_was_confirmed(seed: u64, after in 1u64..300) {
        live(seed, 4, 150, |world| world.files.die_after(after));
    }
}

/// Lives that once went wrong.
#[test]
fn lives_that_went_wrong_stay_right() {
    // A message with a removal under way was moved, and came back.
    live(10_406_480_387_799_562_626, 6, 77, |_| {});
    // A write torn behind the magic of its batch was taken for an empty batch of ActiveMQ's.
    live(17_776_477_999_064_469_031, 4, 150, |world| world.files.die_after(245));
}

/// A long life in one go, so that files are collected and messages moved many times.
#[test]
fn space_comes_back_over_a_long_life() {
    let mut world = World::new(4711);
    let mut collected = false;
    for _ in 0..4000 {
        assert!(world.step());
        collected |= world.store.journal().files().first().is_some_and(|file| file.id > 3);
    }
    assert!(world.settle());
    assert!(collected, "no file was ever collected");
    world.check_rebuild();
    let files = world.files.kill();
    world.reopen(files);
}
