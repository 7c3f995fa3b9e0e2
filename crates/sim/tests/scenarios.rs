//! The scripted scenarios of the protocol's specification, each from a hole of the 2008 original (H...) or from a published bug of
//! somebody else's. A script says what happens; the workload runs, every invariant is checked after each step, and at the end the
//! cluster has to become well and every client has to have been told the truth.

#![allow(clippy::unwrap_used, reason = "tests, helpers included")]

use kahawai_sim::{Outcome, Script, Violation};

/// Each is run with these: what a script leaves open is different every time.
const SEEDS: std::ops::Range<u64> = 1..9;

fn scenario(nodes: usize, minimum_replicas: u32, script: impl Fn(&mut Script) -> Result<(), Violation>) {
    for seed in SEEDS {
        let run = || -> Result<Outcome, Violation> {
            let mut cluster = Script::begin(seed, nodes, minimum_replicas)?;
            script(&mut cluster)?;
            let outcome = cluster.finish();
            match outcome.violation.clone() {
                Some(violation) => Err(violation),
                None => Ok(outcome),
            }
        };
        if let Err(violation) = run() {
            panic!("seed {seed}: {violation}");
        }
    }
}

/// The leader, which is there.
fn leader(cluster: &Script) -> usize {
    cluster.leader().unwrap()
}

/// Waits until somebody leads who did not.
fn another_leads(cluster: &mut Script, old: usize) -> Result<usize, Violation> {
    cluster.until("another one leads", |now| now.leader().is_some_and(|node| node != old))?;
    Ok(leader(cluster))
}

/// Waits until so many more batches are committed.
fn flow(cluster: &mut Script, batches: u64) -> Result<(), Violation> {
    let before = cluster.counts().committed;
    cluster.until("more is confirmed", |now| now.counts().committed >= before + batches)
}

/// Keeps a node away until it can only come back by fetching files.
fn falls_behind(cluster: &mut Script, node: usize) -> Result<(), Violation> {
    cluster.kill(node, false);
    cluster.until("it is dropped", |now| !now.in_sync().contains(&node))?;
    let deleted = cluster.counts().deleted;
    cluster.until("files are deleted", |now| now.counts().deleted > deleted + 2)?;
    flow(cluster, 200)
}

/// It comes back, and what it lacks is in files.
fn fetches_files(cluster: &mut Script, node: usize) -> Result<(), Violation> {
    falls_behind(cluster, node)?;
    cluster.start(node);
    cluster.until("files are fetched", |now| now.is_fetching(node))
}

#[test]
fn h3_demotion_with_waiting_producers() {
    scenario(3, 1, |cluster| {
        let old = leader(cluster);
        for other in cluster.others(old) {
            cluster.cut(old, other);
        }
        cluster.until("producers wait", |now| now.has_unconfirmed(old))?;
        let commit = cluster.known_commit(old);
        cluster.cut_service(old);
        another_leads(cluster, old)?;
        assert_eq!(cluster.known_commit(old).max(commit), commit, "it has confirmed to nobody");
        flow(cluster, 50)
    });
}

#[test]
fn h6_suspended_then_a_replica_attaches_and_writes_complete() {
    scenario(2, 1, |cluster| {
        let (primary, replica) = (leader(cluster), cluster.others(leader(cluster))[0]);
        cluster.kill(replica, false);
        cluster.until("producers wait", |now| now.is_suspended(primary) && now.has_unconfirmed(primary))?;
        let (commit, epoch) = (cluster.committed(), cluster.epoch());
        cluster.pass_while("nothing is committed", 10_000, |now| now.committed() == commit)?;
        cluster.start(replica);
        flow(cluster, 20)?;
        assert_eq!((leader(cluster), cluster.epoch()), (primary, epoch), "without a restart");
        Ok(())
    });
}

/// The primary is gone while the last pieces are under way: what is there of a file is not taken for all of it.
#[test]
fn h12_h13_the_primary_dies_while_files_are_fetched() {
    for later_ms in [0, 1, 3, 10, 30] {
        scenario(3, 1, |cluster| {
            let behind = cluster.others(leader(cluster))[0];
            fetches_files(cluster, behind)?;
            cluster.pass(later_ms)?;
            let old = leader(cluster);
            cluster.kill(old, true);
            cluster.start(old);
            cluster.until("it is in sync", |now| now.in_sync().contains(&behind))
        });
    }
}

#[test]
fn h14_a_short_break_with_nothing_to_copy() {
    scenario(3, 1, |cluster| {
        let installed = cluster.counts().installed;
        for _ in 0..5 {
            cluster.reset_connections();
            flow(cluster, 20)?;
            cluster.until("all are in sync", |now| now.in_sync().len() == 3)?;
        }
        assert_eq!(cluster.counts().installed, installed, "nobody fetched files");
        Ok(())
    });
}

/// What a node had stays until the new files are complete, whoever dies meanwhile.
#[test]
fn h20_the_new_primary_dies_while_another_synchronises() {
    scenario(3, 1, |cluster| {
        let behind = cluster.others(leader(cluster))[0];
        fetches_files(cluster, behind)?;
        let had = cluster.end(behind);
        for _ in 0..2 {
            let old = leader(cluster);
            cluster.kill(old, false);
            cluster.pass(50)?;
            assert!(cluster.end(behind) >= had, "{} of {had} is left", cluster.end(behind));
            cluster.start(old);
            cluster.until("somebody leads", |now| now.leader().is_some())?;
        }
        cluster.until("it is in sync", |now| now.in_sync().contains(&behind))
    });
}

#[test]
fn h23_the_primary_is_out_of_reach_during_a_transfer_and_then_there_is_a_new_one() {
    scenario(3, 1, |cluster| {
        let old = leader(cluster);
        let behind = cluster.others(old)[0];
        fetches_files(cluster, behind)?;
        cluster.cut(behind, old);
        cluster.pass(3_000)?;
        cluster.kill(old, false);
        another_leads(cluster, old)?;
        cluster.until("it is in sync", |now| now.in_sync().contains(&behind))
    });
}

#[test]
fn h27_the_primary_stands_still_past_its_session() {
    scenario(3, 1, |cluster| {
        let old = leader(cluster);
        cluster.pause(old, 20_000);
        another_leads(cluster, old)?;
        flow(cluster, 100)?;
        cluster.until("the old one is back", |now| now.in_sync().contains(&old))
    });
}

#[test]
fn h28_the_old_primary_restarts_inside_the_takeover_window() {
    scenario(3, 1, |cluster| {
        let (old, epoch) = (leader(cluster), cluster.epoch());
        cluster.kill(old, false);
        cluster.start(old);
        cluster.until("a new epoch is led", |now| now.epoch() > epoch && now.leader().is_some())?;
        flow(cluster, 50)
    });
}

/// A replica that lacks what was confirmed does not lead, however early it came.
#[test]
fn h29_lagging_but_first_in_line() {
    scenario(3, 1, |cluster| {
        let old = leader(cluster);
        let (lagging, other) = (cluster.others(old)[0], cluster.others(old)[1]);
        cluster.cut(old, lagging);
        cluster.until("it is dropped", |now| !now.in_sync().contains(&lagging))?;
        flow(cluster, 50)?;
        // The other one queues up again behind it.
        cluster.cut_service(other);
        cluster.pass(10_000)?;
        cluster.heal_service(other);
        cluster.pass(1_000)?;
        let (confirmed, epoch) = (cluster.committed(), cluster.epoch());
        cluster.kill(old, false);
        cluster.until("a new epoch is led", |now| now.epoch() > epoch && now.leader().is_some())?;
        assert_eq!(leader(cluster), other);
        assert!(cluster.end(other) >= confirmed);
        Ok(())
    });
}

#[test]
fn h31_a_long_tail_that_nobody_confirmed() {
    scenario(3, 1, |cluster| {
        let old = leader(cluster);
        let replaced = |now: &Script| now.counts().cuts + now.counts().installed;
        let before = replaced(cluster);
        for other in cluster.others(old) {
            cluster.cut(old, other);
        }
        // Both have flushed what was under way, and the primary writes on.
        cluster.pass(1_000)?;
        let others = cluster.others(old);
        cluster.until("there is a tail", |now| others.iter().all(|other| now.end(old) > now.end(*other)))?;
        cluster.kill(old, false);
        let new = another_leads(cluster, old)?;
        flow(cluster, 30)?;
        for other in cluster.others(old) {
            cluster.heal(old, other);
        }
        cluster.start(old);
        cluster.until("the old one is back", |now| now.in_sync().contains(&old))?;
        assert_eq!(leader(cluster), new);
        assert!(replaced(cluster) > before, "its tail was cut, or the file that it was in is another");
        Ok(())
    });
}

#[test]
fn h32_the_node_with_what_was_confirmed_boots_last() {
    scenario(3, 1, |cluster| {
        let old = leader(cluster);
        let stale = cluster.others(old)[0];
        cluster.kill(stale, true);
        cluster.until("it is dropped", |now| !now.in_sync().contains(&stale))?;
        flow(cluster, 50)?;
        let confirmed = cluster.committed();
        for node in [old, cluster.others(old)[1]] {
            cluster.kill(node, true);
        }
        cluster.start(stale);
        cluster.pass_while("nobody leads", 30_000, |now| now.leader().is_none())?;
        cluster.start(old);
        cluster.until("somebody leads", |now| now.leader().is_some())?;
        assert_eq!(leader(cluster), old);
        assert!(cluster.end(old) >= confirmed);
        Ok(())
    });
}

/// Raft's figure 8: a tail of an earlier epoch that many have is not confirmed by that alone, and is not lost once it is.
#[test]
fn figure_8() {
    scenario(3, 1, |cluster| {
        // The first has a tail that one other has flushed; it dies before the third has it too.
        let first = leader(cluster);
        let (second, third) = (cluster.others(first)[0], cluster.others(first)[1]);
        cluster.cut(first, third);
        let from = cluster.committed();
        cluster.until("the second has a tail", |now| now.end(second) > now.committed().max(from))?;
        cluster.kill(first, false);
        // The third, without the tail, begins a reign of its own, and dies with its marker unconfirmed.
        cluster.kill(second, false);
        let epoch = cluster.epoch();
        cluster.until("the third leads", |now| now.epoch() > epoch)?;
        cluster.pass(100)?;
        cluster.kill(third, false);
        // Now the second, and then everybody.
        cluster.start(second);
        cluster.pass(5_000)?;
        cluster.heal(first, third);
        cluster.start(third);
        cluster.start(first);
        cluster.until("all are in sync", |now| now.in_sync().len() == 3)?;
        flow(cluster, 50)
    });
}

/// KIP-101: a replica that restarts keeps what it has beyond the commit that it knows of, when the primary goes right after.
#[test]
fn kip_101_double_failover() {
    scenario(2, 1, |cluster| {
        for _ in 0..3 {
            let old = leader(cluster);
            let replica = cluster.others(old)[0];
            cluster.until("the replica has more than it knows to be committed", |now| {
                now.committed() > now.known_commit(replica) && now.end(replica) >= now.committed()
            })?;
            let confirmed = cluster.committed();
            cluster.kill(replica, true);
            cluster.kill(old, true);
            cluster.start(replica);
            cluster.until("the replica is back", |now| now.end(replica) > kahawai_types::Lsn::ZERO)?;
            assert!(cluster.end(replica) >= confirmed, "{} of {confirmed}", cluster.end(replica));
            let epoch = cluster.epoch();
            cluster.until("it leads", |now| now.epoch() > epoch)?;
            cluster.start(old);
            cluster.until("both are in sync", |now| now.in_sync().len() == 2 && now.leader().is_some())?;
            flow(cluster, 20)?;
        }
        Ok(())
    });
}

/// KIP-903: a replica whose disk was replaced does not count for what the old one had, and does not lead.
#[test]
fn kip_903_an_empty_disk_joins_late() {
    scenario(3, 1, |cluster| {
        let mut emptied = None;
        while emptied.is_none() {
            cluster.pass(50)?;
            let old = leader(cluster);
            let node = cluster.others(old)[0];
            if cluster.replace_disk(node) {
                emptied = Some((old, node));
            }
        }
        let (old, emptied) = emptied.unwrap();
        cluster.kill(old, false);
        let other = *cluster.others(old).iter().find(|node| **node != emptied).unwrap();
        cluster.until("somebody leads", |now| now.leader().is_some())?;
        assert_eq!(leader(cluster), other);
        cluster.until("it has everything", |now| now.in_sync().contains(&emptied))
    });
}

/// Two that stand for election at the same time, and the write of one arrives after the other's.
#[test]
fn two_locally_made_epochs_of_one_number() {
    scenario(3, 1, |cluster| {
        let (old, epoch) = (leader(cluster), cluster.epoch());
        let others = cluster.others(old);
        for node in &others {
            cluster.delay_write(*node);
        }
        cluster.kill(old, false);
        cluster.until("one stood for election", Script::has_delayed)?;
        cluster.pass(3_000)?;
        cluster.deliver();
        cluster.until("somebody leads", |now| now.leader().is_some() && now.epoch() > epoch)?;
        flow(cluster, 50)?;
        cluster.deliver();
        flow(cluster, 50)
    });
}

/// Both nodes of a pair that confirms alone are powered off in turn, and started in the wrong order.
#[test]
fn a_pair_powered_off_in_turn() {
    scenario(2, 0, |cluster| {
        let last = leader(cluster);
        let first = cluster.others(last)[0];
        cluster.kill(first, true);
        cluster.until("it is dropped", |now| !now.in_sync().contains(&first))?;
        flow(cluster, 50)?;
        let confirmed = cluster.committed();
        cluster.kill(last, true);
        cluster.start(first);
        cluster.pass_while("nobody leads", 30_000, |now| now.leader().is_none())?;
        cluster.start(last);
        cluster.until("somebody leads", |now| now.leader().is_some())?;
        assert_eq!(leader(cluster), last);
        assert!(cluster.end(last) >= confirmed);
        cluster.until("both are in sync", |now| now.in_sync().len() == 2)
    });
}

/// A bit of one copy changes: it costs that copy, and nothing else.
#[test]
fn nats_a_single_bit_flip_in_one_replica() {
    scenario(3, 1, |cluster| {
        cluster.until("some files are written", |now| {
            now.leader().is_some_and(|node| now.data_files(node).last() > Some(&3))
        })?;
        cluster.change_bits();
        cluster.until("bits have changed", Script::is_harmed)?;
        flow(cluster, 50)?;
        cluster.until("the disk is replaced", |now| !now.is_harmed())?;
        cluster.until("all are in sync", |now| now.in_sync().len() == 3)
    });
}

/// The election service forgets what it had said: nobody believes it, until an operator has put the newest record back.
#[test]
fn es_rollback() {
    scenario(3, 1, |cluster| {
        cluster.roll_back_service();
        cluster.pass(500)?;
        let old = leader(cluster);
        cluster.kill(old, false);
        another_leads(cluster, old)?;
        cluster.start(old);
        cluster.until("it shows an earlier record", Script::is_harmed)?;
        let epoch = cluster.epoch();
        cluster.until("the record is restored", |now| !now.is_harmed())?;
        assert!(cluster.epoch() >= epoch);
        cluster.until("somebody leads", |now| now.leader().is_some())?;
        flow(cluster, 50)
    });
}

/// The file before the one that the primary writes to is deleted, and it may not confirm anything without a replica.
#[test]
fn an_empty_replica_joins_a_suspended_primary_that_has_nothing_to_copy() {
    scenario(2, 1, |cluster| {
        let primary = leader(cluster);
        let replica = cluster.others(primary)[0];
        cluster.until("some files are written", |now| now.data_files(primary).last() > Some(&3))?;
        // Nobody sends any more, and what was sent is consumed.
        cluster.rest();
        cluster.until("one data file is left", |now| now.data_files(primary).len() == 1)?;
        cluster.until("both are in sync", |now| now.in_sync().len() == 2)?;
        assert!(cluster.replace_disk(replica));
        cluster.kill(replica, true);
        // What waits to be confirmed is that the primary leads again.
        cluster.kill(primary, true);
        cluster.start(primary);
        cluster.until("it waits", |now| now.is_suspended(primary) && now.has_unconfirmed(primary))?;
        cluster.start(replica);
        cluster
            .until("it has everything", |now| now.in_sync().contains(&replica) && !now.is_suspended(primary))
    });
}
