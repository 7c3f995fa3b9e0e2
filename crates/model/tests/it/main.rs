//! The small sizes, and that broken rules are found. Meant for the profile `sim`.

use std::fmt::Debug;
use std::hash::Hash;

use kahawai_model::{
    Bounds, Checked, ClusterModel, Mutation, Options, Report, Rule, Search, Start, StreamBounds, StreamModel,
    check,
};
use stateright::Model;

const BREADTH: Options = Options { search: Search::Breadth, threads: 1, steps_max: Some(3_000_000) };

fn holds<M>(model: M) -> Report
where
    M: Model + Send + Sync + 'static,
    M::State: Checked + Clone + PartialEq + Hash + Send + Sync + 'static,
    M::Action: Clone + PartialEq + Debug,
{
    let report = check(model, Options { search: Search::Depth, steps_max: None, ..BREADTH });
    println!("{}", report.text());
    assert!(
        report.is_complete && report.violation.is_none() && report.unseen.is_empty(),
        "{}",
        report.text()
    );
    report
}

#[test]
fn a_small_cluster_keeps_the_invariants() {
    let report = holds(ClusterModel::small());
    assert!(report.states > 500_000, "too small to prove anything: {}", report.text());
}

#[test]
fn a_small_stream_keeps_the_invariants() {
    let report = holds(StreamModel::small());
    assert!(report.states > 200_000, "too small to prove anything: {}", report.text());
}

/// Nothing but what the mutation needs, so that it is found soon.
const LITTLE: Bounds = Bounds {
    epochs: 2,
    writes: 1,
    crashes: 0,
    changes: 1,
    cuts: 0,
    expiries: 0,
    unknowns: 0,
    hand_overs: 0,
    removals: 0,
    activations: false,
};
const TWO: Start = Start { in_sync: 2, minimum: 0 };

#[track_caller]
fn found(report: &Report, mutation: Mutation, signs: &[&str]) {
    let Some((invariant, what, way)) = &report.violation else {
        panic!("nobody noticed {mutation:?}: {}", report.text());
    };
    println!("{mutation:?}: {invariant}: {what}, {} steps", way.len());
    assert!(signs.iter().any(|sign| invariant.starts_with(sign)), "{mutation:?}: {}", report.text());
}

#[track_caller]
fn found_in_cluster(bounds: Bounds, start: Start, mutation: Mutation, signs: &[&str]) {
    // The same without the mutation is part of a size that holds.
    found(&check(ClusterModel::new(bounds, vec![start], Some(mutation)), BREADTH), mutation, signs);
}

#[track_caller]
fn found_in_stream(bounds: StreamBounds, mutation: Mutation, signs: &[&str]) {
    found(&check(StreamModel::new(bounds, Some(mutation)), BREADTH), mutation, signs);
}

#[test]
fn the_cluster_notices_commits_before_the_own_marker() {
    let bounds = Bounds { crashes: 1, expiries: 1, ..LITTLE };
    found_in_cluster(bounds, TWO, Mutation::Primary(Rule::OwnMarker), &["I5"]);
}

#[test]
fn the_cluster_notices_that_only_the_new_set_is_waited_for() {
    found_in_cluster(LITTLE, TWO, Mutation::Primary(Rule::BothSets), &["I5", "I6", "I13"]);
}

#[test]
fn the_cluster_notices_admission_without_evidence() {
    found_in_cluster(LITTLE, TWO, Mutation::Primary(Rule::Evidence), &["I6"]);
}

#[test]
fn the_cluster_notices_a_set_below_the_minimum() {
    let start = Start { in_sync: 3, minimum: 2 };
    found_in_cluster(LITTLE, start, Mutation::Primary(Rule::Minimum), &["I12"]);
}

#[test]
fn the_cluster_notices_that_an_unknown_outcome_is_taken_for_a_refusal() {
    let bounds = Bounds { epochs: 1, unknowns: 1, ..LITTLE };
    found_in_cluster(bounds, TWO, Mutation::UnknownIsRefused, &["I5", "I6", "I13"]);
}

#[test]
fn the_cluster_notices_a_replica_that_follows_an_older_reign() {
    let bounds = Bounds { crashes: 1, expiries: 1, ..LITTLE };
    found_in_cluster(bounds, TWO, Mutation::NoPromise, &["I4", "I5", "I6", "I9", "I11"]);
}

#[test]
fn the_cluster_notices_acknowledgements_before_the_flush() {
    let bounds = Bounds { crashes: 1, ..LITTLE };
    found_in_cluster(bounds, TWO, Mutation::AckBeforeFlush, &["I5", "I6", "I13"]);
}

#[test]
fn the_cluster_notices_an_operator_who_writes_an_old_set() {
    let start = Start { in_sync: 3, minimum: 0 };
    found_in_cluster(Bounds { removals: 1, ..LITTLE }, start, Mutation::OperatorsSet, &["I5", "I6", "I13"]);
}

#[test]
fn the_cluster_notices_a_service_that_forgets_the_grant() {
    let bounds = Bounds { expiries: 1, ..LITTLE };
    found_in_cluster(bounds, TWO, Mutation::NoFence, &["I1", "I12"]);
}

#[test]
fn the_stream_notices_acknowledgements_before_the_flush() {
    found_in_stream(StreamModel::small().bounds, Mutation::AckBeforeFlush, &["I5", "I6", "I13"]);
}

#[test]
fn the_stream_notices_a_replica_that_follows_an_older_reign() {
    found_in_stream(StreamModel::small().bounds, Mutation::NoPromise, &["I4", "I5", "I6", "I9", "I11"]);
}

#[test]
fn the_stream_notices_commits_before_the_own_marker() {
    found_in_stream(StreamModel::small().bounds, Mutation::Primary(Rule::OwnMarker), &["I5"]);
}

#[test]
fn the_stream_notices_that_only_the_new_set_is_waited_for() {
    found_in_stream(StreamModel::small().bounds, Mutation::Primary(Rule::BothSets), &["I5", "I6", "I13"]);
}

#[test]
fn the_stream_notices_admission_without_evidence() {
    let bounds = StreamBounds { changes: 2, ..StreamModel::small().bounds };
    found_in_stream(bounds, Mutation::Primary(Rule::Evidence), &["I6"]);
}
