use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kahawai_election::memory::WriteFault;
use kahawai_election::{Event, Refusal, Request, Status, StepDownReason};
use kahawai_types::{ClusterId, Epoch, Lsn};

use crate::world::{World, name};

/// What may go wrong in a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Faults {
    /// Cuts, lost and delayed answers, kills.
    Natural,
    /// Besides, sessions and grants that an operator ends.
    Grants,
}

/// One walk of random steps, then peace.
fn walk(seed: u64, faults: Faults) -> World {
    let mut world = World::new(seed, 2 + (seed % 4) as usize);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        world.grants_are_taken = faults == Faults::Grants;
        for index in 0..world.nodes.len() {
            world.restart(index);
        }
        for _ in 0..2_500 {
            step(&mut world, faults);
        }
        heal(&mut world);
        assert!(world.settle(120_000, World::is_at_peace), "no peace: {:?}", statuses(&world));
    }));
    if let Err(panic) = outcome {
        let is_quiet = |line: &&str| line.contains("Tick {") || line.contains("Local(Local {");
        let lines: Vec<&str> = world.story.lines().filter(|line| !is_quiet(line)).collect();
        eprintln!("{}", lines.get(lines.len().saturating_sub(120)..).unwrap_or_default().join("\n"));
        eprintln!("seed {seed}, {faults:?}");
        std::panic::resume_unwind(panic);
    }
    world
}

fn statuses(world: &World) -> Vec<Option<&Status>> {
    (0..world.nodes.len()).map(|index| world.status(index)).collect()
}

fn heal(world: &mut World) {
    while world.hub.deliver() {}
    for index in 0..world.nodes.len() {
        world.hub.heal(&name(index));
        if world.nodes[index].process.is_none() {
            world.restart(index);
        }
    }
}

fn step(world: &mut World, faults: Faults) {
    let count = world.nodes.len() as u64;
    let index = world.random.below(count) as usize;
    let node = name(index);
    match world.random.below(100) {
        0..30 => _ = world.work(index),
        30..70 => _ = world.hear(index),
        70..78 => world.tick(index),
        78..84 => world.live(index),
        84..88 => {
            let ms = 1 + world.random.below(600) as i64;
            world.hub.advance(ms);
        }
        88 => world.hub.cut(&node),
        89 | 90 => world.hub.heal(&node),
        91 | 92 => {
            let fault = match world.random.below(3) {
                0 => WriteFault::Lost,
                1 => WriteFault::AppliedUnanswered,
                _ => WriteFault::Delayed,
            };
            world.hub.fail_next_write(&node, fault);
        }
        93 => _ = world.hub.deliver(),
        94 if world.random.chance(2) => world.kill(index),
        95 if world.nodes[index].process.is_none() => world.restart(index),
        96 if faults == Faults::Grants => match world.random.below(2) {
            0 => world.hub.revoke(),
            _ => world.hub.expire(&node),
        },
        97 => {
            let epoch = world.nodes[world.random.below(count) as usize].local.promised;
            world.give(index, Event::PeerEpoch(epoch));
        }
        98 | 99 => {
            let request = random_request(world, index);
            world.request(index, request);
        }
        _ => {}
    }
}

fn random_request(world: &mut World, index: usize) -> Request {
    let other = name(world.random.below(world.nodes.len() as u64) as usize);
    match world.random.below(12) {
        0 => Request::StepDown { successor: world.random.chance(2).then_some(other) },
        1 => Request::SetMinimum(world.random.below(2) as u32),
        2 => match world.random.below(4) {
            0 => Request::RemoveMember(other),
            1 => Request::Without(
                world.nodes.iter().filter(|node| node.me.node == other).map(|node| node.me.clone()).collect(),
            ),
            _ => Request::AllowMember(other),
        },
        3..6 => Request::Activate { start: Lsn(1 << 32), chain: 7 },
        _ => {
            let mut set = BTreeSet::from([world.nodes[index].me.clone()]);
            for node in &world.nodes {
                if world.random.chance(2) {
                    set.insert(node.me.clone());
                }
            }
            Request::InSync(set)
        }
    }
}

#[test]
fn an_epoch_has_one_primary_and_peace_follows_faults() {
    let mut reigns = 0;
    for seed in 0..400 {
        reigns += walk(seed, Faults::Natural).reigns.len();
    }
    assert!(reigns > 1_000, "too quiet a walk to prove anything: {reigns} reigns");
}

#[test]
fn an_epoch_has_one_primary_even_if_grants_are_taken_away() {
    let mut reasons = Vec::new();
    for seed in 1_000..1_200 {
        reasons.extend(walk(seed, Faults::Grants).reasons);
    }
    for wanted in [StepDownReason::SessionLost, StepDownReason::GrantLost, StepDownReason::Deadline] {
        assert!(reasons.contains(&wanted), "{wanted:?} never happened");
    }
}

/// A peaceful cluster of three, all in sync.
fn cluster() -> (World, usize) {
    let mut world = World::new(7, 3);
    for index in 0..3 {
        world.restart(index);
    }
    assert!(world.settle(20_000, World::is_at_peace));
    let leader = world.leader().unwrap();
    let all: BTreeSet<_> = world.nodes.iter().map(|node| node.me.clone()).collect();
    world.request(leader, Request::InSync(all.clone()));
    world.request(leader, Request::Activate { start: Lsn(1 << 32), chain: 7 });
    assert!(world.settle(20_000, |world| world.record().is_some_and(|record| record.in_sync == all)));
    // Everybody has heard, and said, what there is to say.
    world.settle(3_000, |_| false);
    (world, leader)
}

#[test]
fn the_best_follower_takes_over_without_waiting() {
    let (mut world, leader) = cluster();
    let best = (leader + 1) % 3;
    world.nodes[best].local.end.0 += 100;
    world.live(best);
    world.settle(3_000, |_| false);
    world.nodes[best].local.end.0 += 100;
    world.kill(leader);
    world.hub.expire(&name(leader));
    let killed_at = world.hub.now();
    assert!(world.settle(5_000, World::is_at_peace));
    assert_eq!(world.leader(), Some(best));
    // Nothing but the model's own messages lies between.
    assert_eq!(world.hub.now(), killed_at);
}

#[test]
fn a_chosen_successor_goes_first() {
    let (mut world, leader) = cluster();
    let chosen = (leader + 2) % 3;
    let better = (leader + 1) % 3;
    world.nodes[better].local.end.0 += 100;
    world.live(better);
    let id = world.request(leader, Request::StepDown { successor: Some(name(chosen)) });
    assert!(world.settle(4_000, World::is_at_peace));
    assert_eq!(world.answers[&id], Ok(()));
    assert_eq!(world.leader(), Some(chosen));
    assert_eq!(world.record().unwrap().successor, None);
}

#[test]
fn a_successor_that_does_not_come_is_not_waited_for_for_ever() {
    let (mut world, leader) = cluster();
    let chosen = (leader + 2) % 3;
    world.kill(chosen);
    world.request(leader, Request::StepDown { successor: Some(name(chosen)) });
    assert!(!world.settle(3_000, |world| world.leader().is_some()), "nobody held back");
    assert!(world.settle(10_000, World::is_at_peace));
}

#[test]
fn who_is_not_in_sync_waits_and_says_for_whom() {
    let (mut world, leader) = cluster();
    let outsider = (leader + 1) % 3;
    let set: BTreeSet<_> =
        world.nodes.iter().map(|node| node.me.clone()).filter(|me| me.node != name(outsider)).collect();
    world.request(leader, Request::InSync(set.clone()));
    world.settle(1_000, |_| false);
    for index in (0..3).filter(|index| *index != outsider) {
        world.kill(index);
        world.hub.expire(&name(index));
    }
    assert!(!world.settle(60_000, |world| world.leader().is_some()), "an outsider leads");
    assert_eq!(world.status(outsider), Some(&Status::AwaitingInSync(set.into_iter().collect())));
}

#[test]
fn a_service_that_lost_the_record_ends_elections_until_it_is_restored() {
    for rolls_back in [false, true] {
        let (mut world, leader) = cluster();
        let old = world.hub.snapshot();
        let newest = {
            world.request(leader, Request::SetMinimum(1));
            world.settle(1_000, |_| false);
            world.record().unwrap()
        };
        world.service_lost_state = true;
        if rolls_back {
            world.hub.roll_back(old)
        } else {
            world.hub.lose_record()
        }
        assert!(!world.settle(30_000, |world| world.reigns.len() > 1 && world.leader().is_some()));
        for index in 0..3 {
            let status = world.status(index).unwrap();
            assert!(matches!(status, Status::StateLost(_)), "{status:?}");
            assert!(status.to_string().contains("ELECTION_STATE_LOST"));
        }
        let id = world.request(0, Request::RestoreRecord { record: Box::new(newest), promised: Epoch(40) });
        world.settle(1_000, |_| false);
        assert_eq!(world.answers[&id], Ok(()));
        assert!(world.settle(30_000, World::is_at_peace), "{:?}", statuses(&world));
        assert!(world.record().unwrap().epoch > Epoch(40));
        assert_eq!(world.record().unwrap().minimum_replicas, 1);
    }
}

#[test]
fn a_record_is_not_restored_without_need_or_from_an_old_copy() {
    let (mut world, leader) = cluster();
    let old = Box::new(world.record().unwrap());
    let id = world.request(0, Request::RestoreRecord { record: old.clone(), promised: Epoch(0) });
    assert_eq!(world.answers[&id], Err(Refusal::NotLost));
    world.request(leader, Request::SetMinimum(1));
    world.settle(1_000, |_| false);
    world.service_lost_state = true;
    world.hub.lose_record();
    world.settle(1_000, |_| false);
    let id = world.request(0, Request::RestoreRecord { record: old, promised: Epoch(0) });
    assert_eq!(world.answers[&id], Err(Refusal::OldRecord));
}

#[test]
fn a_promise_that_no_record_can_hold_is_refused_and_a_record_stays_readable() {
    let (mut world, _) = cluster();
    let newest = Box::new(world.record().unwrap());
    world.service_lost_state = true;
    world.hub.lose_record();
    world.settle(1_000, |_| false);
    for promised in [Epoch(u64::MAX), Epoch((1 << 62) - 1)] {
        let id = world.request(0, Request::RestoreRecord { record: newest.clone(), promised });
        assert_eq!(world.answers[&id], Err(Refusal::TooHigh(promised)));
    }
    let id = world.request(0, Request::RestoreRecord { record: newest, promised: Epoch(1 << 40) });
    world.settle(1_000, |_| false);
    assert_eq!(world.answers[&id], Ok(()));
    assert!(world.settle(30_000, World::is_at_peace), "{:?}", statuses(&world));
}

#[test]
fn an_operator_can_force_a_node_with_the_clusters_id() {
    let (mut world, leader) = cluster();
    let outsider = (leader + 1) % 3;
    let set: BTreeSet<_> = [world.nodes[leader].me.clone()].into();
    world.request(leader, Request::InSync(set));
    world.settle(1_000, |_| false);
    world.kill(leader);
    let record = world.record().unwrap();
    let wrong = Request::ForcePrimary { cluster_id: ClusterId(5) };
    let id = world.request(outsider, wrong);
    assert_eq!(world.answers[&id], Err(Refusal::WrongCluster));
    world.operator_forced = true;
    let id = world.request(outsider, Request::ForcePrimary { cluster_id: record.cluster_id });
    // The old session may still be somebody's.
    assert!(!world.settle(crate::world::SESSION_MS / 2, |world| world.leader().is_some()));
    assert!(world.settle(10_000, World::is_at_peace));
    assert_eq!(world.answers[&id], Ok(()));
    let forced = world.record().unwrap();
    assert_eq!(world.leader(), Some(outsider));
    assert_eq!(forced.unclean_generation, record.unclean_generation + 1);
    assert_eq!(forced.in_sync, [world.nodes[outsider].me.clone()].into());
}

#[test]
fn a_node_with_data_makes_the_record() {
    let mut world = World::new(1, 3);
    world.nodes[2].local.journal_is_empty = false;
    world.nodes[2].local.promised = Epoch(9);
    world.nodes[2].local.last_epoch = Epoch(9);
    for index in 0..3 {
        world.restart(index);
    }
    assert!(world.settle(2_000, World::is_at_peace), "{:?}", statuses(&world));
    let record = world.record().unwrap();
    assert_eq!((world.leader(), record.cluster_id), (Some(2), world.nodes[2].local.cluster_id));
    assert!(record.epoch > Epoch(9));
}

#[test]
fn data_of_another_cluster_is_refused() {
    let (mut world, leader) = cluster();
    let other = (leader + 1) % 3;
    world.kill(other);
    world.nodes[other].local.cluster_id = ClusterId(99);
    world.restart(other);
    world.settle(3_000, |_| false);
    let status = world.status(other).unwrap();
    assert!(matches!(status, Status::Refused(_)), "{status:?}");
}
