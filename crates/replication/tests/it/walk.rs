//! Random walks: faults first, then the cluster has to heal. A failure names its seed.

use kahawai_replication::Rule;

use crate::world::{Mutation, Outcome, Role, Seen, Violation, World};

const STEPS: u32 = 1500;
const WALKS: u64 = 400;

/// One walk: how many batches were confirmed, and what was seen.
fn walk(seed: u64, mutation: Option<Mutation>) -> Result<(usize, Seen), Violation> {
    let nodes = 3 + (seed % 3) as usize;
    let minimum = (seed / 3 % 3) as u32;
    let mut world = World::new(seed, nodes, minimum, mutation);
    if !seed.is_multiple_of(4) {
        // Most begin with all nodes in sync.
        heal(&mut world).map_err(|what| format!("beginning: {what}"))?;
        world.seen = Seen::default();
    }
    for step in 0..STEPS {
        act(&mut world).and_then(|()| world.check()).map_err(|what| format!("step {step}: {what}"))?;
    }
    let seen = world.seen;
    heal(&mut world).map_err(|what| format!("healing: {what}"))?;
    Ok((world.confirmed.len(), seen))
}

fn act(world: &mut World) -> Outcome {
    let nodes = world.nodes.len() as u64;
    let pick = world.random.next_u64();
    let node = world.random.below(nodes) as usize;
    match world.random.below(100) {
        0..35 => (0..1 + pick % 6).try_for_each(|more| world.deliver(pick.rotate_right(8 * more as u32))),
        35..45 => {
            let count = 1 + world.random.below(3) as usize;
            world.feed(pick, count);
            Ok(())
        }
        45..58 => {
            let all = world.random.chance(2);
            world.flush(node, all)
        }
        58..66 => {
            let leaders = world.leaders();
            match leaders.get(pick as usize % leaders.len().max(1)) {
                Some(&leader) => world.write(leader),
                None => Ok(()),
            }
        }
        66..80 => {
            let passed_ms = [10, 50, 200, 600][world.random.below(4) as usize];
            world.tick(passed_ms)
        }
        80..88 => {
            // Mostly the one that the record names, sometimes one that was.
            let leaders = world.leaders();
            let primary = if world.random.chance(4) {
                leaders.get(pick as usize % leaders.len().max(1)).copied()
            } else {
                world.rightful()
            };
            primary.map_or(Ok(()), |primary| world.dial(node, primary))
        }
        88..93 => {
            let lost = world.random.chance(3);
            world.propose(node, lost)
        }
        93 => {
            world.cut(pick);
            Ok(())
        }
        94 => {
            if world.random.chance(2) {
                world.crash(node);
            }
            Ok(())
        }
        95 | 96 => {
            world.restart(node);
            Ok(())
        }
        97 => {
            if world.random.chance(2) || world.rightful().is_none() {
                world.take_over(node);
            }
            Ok(())
        }
        98 => {
            // A primary of the past hears that it is one, some time.
            if world.random.chance(3) && world.leader(node).is_some() && world.rightful() != Some(node) {
                world.leave(node);
            }
            Ok(())
        }
        _ => {
            if world.random.chance(4) {
                return world.set_minimum((pick % 3) as u32);
            }
            Ok(())
        }
    }
}

/// Without faults every node is in sync again, everything is confirmed, and all journals are the same.
fn heal(world: &mut World) -> Outcome {
    let all = world.nodes.len();
    for round in 0.. {
        for node in 0..all {
            world.restart(node);
            if world.leader(node).is_some() && world.rightful() != Some(node) {
                world.leave(node);
            }
        }
        if world.rightful().is_none() {
            let member = world.record.in_sync.first().cloned().ok_or("the set is empty")?;
            world.take_over(world.number_of(&member));
        }
        let primary = world.rightful().ok_or("nobody leads")?;
        for node in 0..all {
            if matches!(world.nodes[node].role, Role::Idle) {
                world.dial(node, primary)?;
            }
        }
        if round == 100 {
            world.write(primary)?;
        }
        world.feed_all();
        world.deliver_all()?;
        for node in 0..all {
            world.flush(node, true)?;
        }
        world.deliver_all()?;
        world.propose(primary, false)?;
        world.tick(100)?;
        world.check()?;
        let log = &world.nodes[primary].log;
        let commit = world.leader(primary).map(|leader| leader.commit);
        let same = world.nodes.iter().all(|node| node.log == *log && node.durable == log.batches.len());
        if round > 100 && same && commit == Some(log.end()) && world.record.in_sync.len() == all {
            return Ok(());
        }
        if round == 600 {
            let status = world.leader(primary).map(|leader| leader.primary.status());
            return Err(format!("the cluster is not whole after a minute: {status:?}"));
        }
    }
    Ok(())
}

fn found_by_the_walk(mutation: Mutation, seeds: u64, signs: &[&str]) {
    for seed in 0..seeds {
        if let Err(what) = walk(seed, Some(mutation)) {
            assert!(signs.iter().any(|sign| what.contains(sign)), "{mutation:?}, seed {seed}: {what}");
            return;
        }
    }
    panic!("nobody noticed {mutation:?} in {seeds} walks");
}

#[test]
fn nothing_confirmed_is_lost_and_the_cluster_heals() {
    let (mut confirmed, mut all) = (0, Seen::default());
    for seed in 0..WALKS {
        match walk(seed, None) {
            Ok((batches, seen)) => {
                confirmed += batches;
                all.add(&seen);
            }
            Err(what) => panic!("seed {seed}: {what}"),
        }
    }
    println!("{WALKS} walks: {confirmed} batches confirmed, {all:?}");
    let Seen { reigns, active, truncations, joined, left, suspensions, fenced, refused } = all;
    let each = [reigns, active, truncations, joined, left, suspensions, fenced, refused];
    let walks = WALKS as u32;
    assert!(
        confirmed as u32 > 20 * walks && each.iter().all(|count| *count > walks / 20),
        "{confirmed}, {all:?}"
    );
}

#[test]
fn a_walk_notices_commits_before_the_own_marker() {
    found_by_the_walk(Mutation::Primary(Rule::OwnMarker), 100, &["I5"]);
}

#[test]
fn a_walk_notices_that_only_the_new_set_is_waited_for() {
    found_by_the_walk(Mutation::Primary(Rule::BothSets), 100, &["I5", "I6"]);
}

#[test]
fn a_walk_notices_admission_without_evidence() {
    found_by_the_walk(Mutation::Primary(Rule::Evidence), 100, &["I6"]);
}

#[test]
fn a_walk_notices_a_set_below_the_minimum() {
    found_by_the_walk(Mutation::Primary(Rule::Minimum), 100, &["I12"]);
}

#[test]
fn a_walk_notices_acknowledgements_before_the_flush() {
    found_by_the_walk(Mutation::AckBeforeFlush, 100, &["I5", "I6"]);
}

#[test]
fn a_walk_notices_a_replica_that_follows_an_older_reign() {
    found_by_the_walk(Mutation::NoPromise, 400, &["I5", "I6", "I9", "I11"]);
}

#[test]
fn a_walk_notices_that_an_unknown_outcome_is_taken_for_a_refusal() {
    found_by_the_walk(Mutation::UnknownIsRefused, 100, &["I5", "I6"]);
}
