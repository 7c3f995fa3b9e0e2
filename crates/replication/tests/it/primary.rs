//! The primary's rules, one by one.

use std::collections::BTreeSet;

use kahawai_replication::{Departure, Primary, PrimaryEffect, PrimaryEvent, Refusal, SessionId, Timing};
use kahawai_types::{BootId, Epoch, Location, Lsn, Millis, NodeId, ReplicaId, StoreId};

const MARKER_END: u32 = 100;

fn id(name: &str) -> ReplicaId {
    ReplicaId { node: NodeId(name.into()), store: StoreId(name.bytes().map(u128::from).sum()) }
}

fn set(names: &str) -> BTreeSet<ReplicaId> {
    names.chars().map(|name| id(&name.to_string())).collect()
}

fn at(offset: u32) -> Lsn {
    Location::new(1, offset).lsn()
}

/// A primary `p`, and what it wanted since last asked. Sessions have the number of their replica's letter.
struct Reign {
    primary: Primary,
    now: Millis,
    effects: Vec<PrimaryEffect>,
}

impl Reign {
    fn new(in_sync: &str, minimum: u32) -> Self {
        let timing =
            Timing { in_sync_lag_bytes_max: 10_000, admission_lag_bytes_max: 1_000, ..Timing::default() };
        let primary = Primary::new(id("p"), Epoch(5), at(MARKER_END), set(in_sync), minimum, timing, 0);
        Self { primary, now: 0, effects: Vec::new() }
    }

    /// With everybody attached and the marker flushed everywhere.
    fn active(in_sync: &str, minimum: u32) -> Self {
        let mut reign = Self::new(in_sync, minimum);
        reign.flushed(MARKER_END);
        for name in in_sync.chars().filter(|name| *name != 'p') {
            reign.connect(name, MARKER_END);
        }
        assert!(reign.wanted().contains(&PrimaryEffect::Activate));
        reign
    }

    fn step(&mut self, event: PrimaryEvent<'_>) {
        self.primary.step(self.now, event, &mut self.effects);
    }

    fn flushed(&mut self, offset: u32) {
        self.step(PrimaryEvent::LocalDurable(at(offset)));
    }

    fn connect(&mut self, name: char, durable: u32) {
        let (replica, boot, session) = (id(&name.to_string()), BootId(1), SessionId(name.into()));
        self.step(PrimaryEvent::Connected { replica: &replica, boot, session, durable: at(durable) });
    }

    fn acked(&mut self, name: char, durable: u32) {
        self.step(PrimaryEvent::Acked {
            session: SessionId(name.into()),
            durable: at(durable),
            applied: at(0),
        });
    }

    fn disconnect(&mut self, name: char, orderly: bool) {
        self.step(PrimaryEvent::Disconnected { session: SessionId(name.into()), orderly });
    }

    fn decided(&mut self, in_sync: &str) {
        self.step(PrimaryEvent::Decided { in_sync: &set(in_sync) });
    }

    /// Time passes in ticks.
    fn pass(&mut self, ms: Millis) {
        for _ in 0..ms / 50 {
            self.now += 50;
            self.step(PrimaryEvent::Tick);
        }
    }

    fn wanted(&mut self) -> Vec<PrimaryEffect> {
        std::mem::take(&mut self.effects)
    }

    #[track_caller]
    fn wants(&mut self, expected: &[PrimaryEffect]) {
        assert_eq!(self.wanted(), expected);
    }

    /// The sets proposed since last asked.
    fn proposed(&mut self) -> Vec<BTreeSet<ReplicaId>> {
        let proposed = |effect| match effect {
            PrimaryEffect::Propose { in_sync, .. } => Some(in_sync),
            _ => None,
        };
        self.wanted().into_iter().filter_map(proposed).collect()
    }
}

fn commit(offset: u32) -> PrimaryEffect {
    PrimaryEffect::Commit(at(offset))
}

#[test]
fn commits_what_everybody_in_the_set_has_flushed() {
    let mut reign = Reign::active("pab", 1);
    reign.flushed(500);
    reign.acked('a', 300);
    reign.wants(&[]);
    reign.acked('b', 200);
    reign.wants(&[commit(200)]);
    reign.acked('b', 500);
    reign.wants(&[commit(300)]);
    reign.acked('a', 900);
    reign.wants(&[commit(500)]);
    reign.disconnect('b', false);
    reign.flushed(900);
    reign.wants(&[]);
}

#[test]
fn commits_nothing_before_its_own_marker_is_everywhere() {
    let mut reign = Reign::new("pa", 1);
    reign.flushed(MARKER_END - 1);
    reign.connect('a', 50);
    reign.acked('a', MARKER_END - 1);
    reign.wants(&[]);
    reign.flushed(MARKER_END);
    reign.acked('a', MARKER_END);
    reign.wants(&[commit(MARKER_END), PrimaryEffect::Activate]);
}

#[test]
fn below_the_minimum_nothing_is_committed_until_enough_have_joined() {
    let mut reign = Reign::new("p", 1);
    reign.flushed(500);
    reign.pass(200);
    assert!(
        matches!(&reign.wanted()[..], [PrimaryEffect::Suspended { reason }] if reason.starts_with("1 replicas"))
    );
    reign.connect('a', 50);
    reign.wants(&[]);
    reign.acked('a', MARKER_END);
    assert_eq!(reign.proposed(), [set("pa")], "at once: work waits for it");
    reign.decided("pa");
    let expected = [
        PrimaryEffect::Joined { replica: id("a") },
        PrimaryEffect::Resumed,
        commit(MARKER_END),
        PrimaryEffect::Activate,
    ];
    reign.wants(&expected);
}

#[test]
fn both_sets_count_while_a_proposal_has_no_answer() {
    let mut reign = Reign::active("pa", 0);
    reign.flushed(300);
    reign.disconnect('a', false);
    reign.pass(1_000);
    assert_eq!(reign.proposed(), [set("p")]);
    reign.flushed(400);
    reign.wants(&[]);
    reign.step(PrimaryEvent::Changed { in_sync: &set("pa") });
    reign.wants(&[]);
    reign.decided("p");
    let left = PrimaryEffect::Left { replica: id("a"), reason: Departure::Disconnected };
    reign.wants(&[left, commit(400)]);
}

#[test]
fn an_answer_that_changes_nothing_is_followed_by_another_attempt() {
    let mut reign = Reign::active("pa", 0);
    reign.disconnect('a', true);
    assert_eq!(reign.proposed(), [set("p")], "it has left in order: nothing to wait for");
    reign.pass(5_000);
    assert_eq!(reign.proposed(), Vec::<BTreeSet<ReplicaId>>::new(), "one at a time");
    reign.decided("pa");
    assert_eq!(reign.proposed(), [set("p")]);
}

#[test]
fn the_set_never_shrinks_below_the_minimum_and_ourselves() {
    let mut reign = Reign::active("pab", 1);
    reign.disconnect('a', true);
    assert_eq!(reign.proposed(), [set("pb")]);
    reign.decided("pb");
    reign.disconnect('b', true);
    reign.pass(60_000);
    let wanted = reign.wanted();
    assert!(
        matches!(&wanted[..], [PrimaryEffect::Left { .. }, PrimaryEffect::Suspended { reason }] if reason.contains("b/"))
    );
    reign.step(PrimaryEvent::Minimum(0));
    assert_eq!(reign.proposed(), [set("p")]);
}

#[test]
fn of_two_that_are_gone_both_stay_if_only_one_could_leave() {
    let mut reign = Reign::active("pab", 1);
    reign.disconnect('a', false);
    reign.disconnect('b', false);
    reign.pass(60_000);
    assert_eq!(reign.proposed(), Vec::<BTreeSet<ReplicaId>>::new());
    reign.connect('b', MARKER_END);
    assert_eq!(reign.proposed(), [set("pb")]);
}

#[test]
fn a_newcomer_takes_the_place_of_a_dead_member() {
    let mut reign = Reign::active("pa", 1);
    reign.disconnect('a', false);
    reign.connect('c', MARKER_END - 1);
    reign.pass(1_000);
    assert_eq!(reign.proposed(), Vec::<BTreeSet<ReplicaId>>::new(), "it lacks the end of the marker");
    reign.acked('c', MARKER_END);
    assert_eq!(reign.proposed(), [set("pc")]);
}

#[test]
fn at_a_takeover_the_dead_leave_at_once_and_the_absent_soon() {
    let mut reign = Reign::new("pab", 0);
    reign.flushed(MARKER_END);
    reign.step(PrimaryEvent::Gone { replica: &id("a") });
    assert_eq!(reign.proposed(), [set("pb")]);
    reign.decided("pb");
    reign.pass(150);
    assert_eq!(reign.proposed(), Vec::<BTreeSet<ReplicaId>>::new());
    reign.pass(50);
    assert_eq!(reign.proposed(), [set("p")]);
    reign.decided("p");
    // It was in the set when the epoch began: it need not wait to be stable.
    reign.connect('b', MARKER_END);
    assert_eq!(reign.proposed(), [set("bp")]);
}

#[test]
fn a_member_that_flushes_nothing_leaves_and_one_that_has_nothing_to_flush_stays() {
    let mut reign = Reign::active("pab", 1);
    reign.pass(60_000);
    reign.wants(&[]);
    reign.flushed(200);
    reign.acked('b', 200);
    reign.pass(3_900);
    reign.wants(&[]);
    reign.pass(100);
    assert_eq!(reign.proposed(), [set("pb")]);
}

#[test]
fn a_member_that_flushes_but_never_catches_up_leaves() {
    let mut reign = Reign::active("pab", 1);
    let mut proposed = Vec::new();
    for round in 1..60 {
        reign.flushed(round * 11_000);
        reign.acked('b', round * 11_000);
        reign.acked('a', round * 100);
        reign.pass(100);
        proposed.extend(reign.proposed());
    }
    assert_eq!(proposed, [set("pb")]);
}

#[test]
fn a_stranger_joins_when_it_was_stable_for_a_while() {
    let mut reign = Reign::active("pa", 1);
    reign.connect('c', MARKER_END);
    reign.pass(4_950);
    assert_eq!(reign.proposed(), Vec::<BTreeSet<ReplicaId>>::new());
    reign.pass(50);
    assert_eq!(reign.proposed(), [set("pac")]);
}

#[test]
fn whoever_is_evicted_again_and_again_waits_longer_and_longer() {
    let mut reign = Reign::active("pa", 0);
    let mut waits = Vec::new();
    for _ in 0..9 {
        reign.disconnect('a', true);
        reign.decided("p");
        reign.wanted();
        reign.connect('a', MARKER_END);
        let began = reign.now;
        while reign.proposed().is_empty() {
            reign.pass(50);
        }
        waits.push((reign.now - began) / 1_000);
        reign.decided("pa");
    }
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
}

#[test]
fn commits_wait_for_a_newcomer_that_is_always_a_flush_behind() {
    let mut reign = Reign::active("pa", 1);
    reign.connect('c', MARKER_END);
    let mut proposed = Vec::new();
    for round in 1..200 {
        reign.flushed(MARKER_END + round * 100);
        reign.acked('a', MARKER_END + round * 100);
        reign.pass(50);
        // What it has flushed is always committed already.
        reign.acked('c', MARKER_END + (round - 1) * 100);
        proposed.extend(reign.proposed());
    }
    assert_eq!(proposed, [set("pac")]);
}

#[test]
fn a_newcomer_that_does_not_move_holds_nobody_up() {
    let mut reign = Reign::active("pa", 1);
    reign.connect('c', MARKER_END - 10);
    let mut commits = 0;
    for round in 1..400 {
        reign.flushed(MARKER_END + round);
        reign.acked('a', MARKER_END + round);
        reign.pass(50);
        let wanted = reign.wanted();
        assert!(!wanted.iter().any(|effect| matches!(effect, PrimaryEffect::Propose { .. })));
        commits += wanted.len();
    }
    assert!(commits > 350, "{commits}");
}

#[test]
fn whoever_has_lost_what_it_had_flushed_counts_no_more_and_stays_out() {
    let mut reign = Reign::active("pab", 1);
    reign.flushed(900);
    reign.acked('a', 500);
    reign.acked('b', 400);
    reign.wants(&[commit(400)]);
    reign.acked('a', 450);
    let refusal = Refusal::Corrupt { acked: at(500), durable: at(450) };
    let wanted = reign.wanted();
    assert_eq!(wanted[0], PrimaryEffect::Refuse { session: SessionId('a'.into()), refusal: refusal.clone() });
    assert!(matches!(&wanted[1..], [PrimaryEffect::Propose { in_sync, .. }] if *in_sync == set("pb")));
    reign.acked('b', 900);
    reign.wants(&[]);
    assert_eq!(reign.primary.may_connect(&id("a"), BootId(2)), Err(refusal));
    reign.decided("pb");
    let left = PrimaryEffect::Left { replica: id("a"), reason: Departure::Corrupt };
    reign.wants(&[left, commit(900)]);
}

#[test]
fn what_a_process_said_long_ago_is_no_loss() {
    let mut reign = Reign::active("p", 0);
    let replica = id("c");
    let mut connect = |session, boot, durable| {
        let (session, boot) = (SessionId(session), BootId(boot));
        reign.step(PrimaryEvent::Connected { replica: &replica, boot, session, durable: at(durable) });
        reign.wanted()
    };
    connect(1, 1, 500);
    // On a connection that it gave up before.
    let late = connect(2, 1, 400);
    assert_eq!(late, [PrimaryEffect::Refuse { session: SessionId(2), refusal: Refusal::Superseded }]);
    reign.disconnect('\u{1}', false);
    let refusal = Refusal::Corrupt { acked: at(500), durable: at(400) };
    let mut connect = |session, boot, durable| {
        let (session, boot) = (SessionId(session), BootId(boot));
        reign.step(PrimaryEvent::Connected { replica: &replica, boot, session, durable: at(durable) });
        reign.wanted()
    };
    assert!(connect(3, 2, 400).contains(&PrimaryEffect::Refuse { session: SessionId(3), refusal }));
}

#[test]
fn a_file_s_start_and_the_end_before_it_are_no_step_back() {
    let mut reign = Reign::active("p", 0);
    let (replica, boot, session) = (id("c"), BootId(1), SessionId(1));
    let next_file = Location::new(2, 0).lsn();
    reign.step(PrimaryEvent::Connected { replica: &replica, boot, session, durable: next_file });
    reign.disconnect('c', false);
    reign.step(PrimaryEvent::Connected { replica: &replica, boot, session: SessionId(2), durable: at(900) });
    let refused = |effect: &PrimaryEffect| {
        matches!(effect, PrimaryEffect::Refuse { refusal: Refusal::Corrupt { .. }, .. })
    };
    assert!(!reign.wanted().iter().any(refused));
}

#[test]
fn a_store_has_one_session() {
    let mut reign = Reign::active("pa", 0);
    let a = id("a");
    let boot = BootId(1);
    assert_eq!(reign.primary.may_connect(&a, boot), Ok(()));
    assert_eq!(reign.primary.may_connect(&a, BootId(2)), Err(Refusal::OtherProcess { boot }));
    let clone = ReplicaId { node: NodeId("z".into()), ..id("a") };
    assert_eq!(reign.primary.may_connect(&clone, boot), Err(Refusal::SameStore { node: NodeId("a".into()) }));
    let ours = ReplicaId { node: NodeId("z".into()), ..id("p") };
    assert_eq!(reign.primary.may_connect(&ours, boot), Err(Refusal::OwnStore));
    // The same process again: the older session is one that we do not know to be dead yet.
    let session = SessionId(1_001);
    reign.step(PrimaryEvent::Connected { replica: &a, boot, session, durable: at(MARKER_END) });
    let older = SessionId('a'.into());
    reign.wants(&[PrimaryEffect::Refuse { session: older, refusal: Refusal::Superseded }]);
    reign.disconnect('a', true);
    reign.acked('a', 1);
    reign.wants(&[]);
    let status = reign.primary.status();
    assert_eq!(status.replicas.len(), 1);
    assert_eq!(status.replicas[0].connected, Some(boot));
    reign.step(PrimaryEvent::Disconnected { session, orderly: false });
    assert_eq!(reign.primary.may_connect(&a, BootId(2)), Ok(()));
}

#[test]
fn a_record_without_us_ends_all_commits() {
    let mut reign = Reign::active("pa", 0);
    reign.step(PrimaryEvent::Changed { in_sync: &set("a") });
    reign.flushed(500);
    reign.acked('a', 500);
    reign.wants(&[]);
}

#[test]
fn a_primary_whose_disk_hangs_says_so_if_a_member_does_better() {
    let stalled = |reign: &mut Reign| {
        let is_stalled = |effect: &PrimaryEffect| matches!(effect, PrimaryEffect::Stalled { .. });
        reign.wanted().iter().filter(|effect| is_stalled(effect)).count()
    };
    let mut reign = Reign::active("pab", 1);
    reign.pass(60_000);
    assert_eq!(stalled(&mut reign), 0, "nothing to flush");
    reign.step(PrimaryEvent::Appended(at(500)));
    reign.acked('a', 500);
    reign.pass(3_900);
    assert_eq!(stalled(&mut reign), 0, "a slow disk");
    reign.flushed(400);
    reign.pass(3_900);
    assert_eq!(stalled(&mut reign), 0, "slow, and it moves");
    reign.pass(100);
    assert_eq!(stalled(&mut reign), 1);
    reign.pass(4_000);
    assert_eq!(stalled(&mut reign), 1, "and again, should nobody have taken over");
    reign.flushed(500);
    reign.acked('b', 500);
    reign.pass(60_000);
    assert_eq!(stalled(&mut reign), 0);
}

#[test]
fn a_disk_that_hangs_everywhere_is_no_reason_to_leave_nor_is_a_standstill_of_ours() {
    let mut reign = Reign::active("pab", 2);
    reign.step(PrimaryEvent::Appended(at(500)));
    reign.pass(20_000);
    assert!(
        !reign.wanted().iter().any(|effect| matches!(effect, PrimaryEffect::Stalled { .. })),
        "nobody is better"
    );
    reign.acked('a', 500);
    reign.now += 30_000;
    reign.step(PrimaryEvent::Tick);
    assert_eq!(reign.wanted().len(), 0, "the process stood still, the disk may have done its work");
}

/// The handshake of a connection that broke long ago is matched after the replica has come back, flushed more, and gone again.
#[test]
fn a_session_that_matches_late_says_nothing() {
    let mut reign = Reign::active("pa", 0);
    reign.flushed(500);
    let (replica, late, younger) = (id("a"), SessionId(1_000), SessionId(1_001));
    let connected = |boot, session, offset| PrimaryEvent::Connected {
        replica: &replica,
        boot: BootId(boot),
        session,
        durable: at(offset),
    };
    reign.disconnect('a', false);
    reign.step(connected(2, younger, 400));
    reign.wants(&[commit(400)]);
    reign.step(PrimaryEvent::Disconnected { session: younger, orderly: false });
    reign.step(connected(1, late, 300));
    reign.wants(&[PrimaryEffect::Refuse { session: late, refusal: Refusal::Superseded }]);
    // It has lost nothing, and is welcome.
    reign.step(connected(2, SessionId(1_002), 500));
    reign.wants(&[commit(500)]);
}
