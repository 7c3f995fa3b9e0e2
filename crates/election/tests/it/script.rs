//! One elector, event by event.

use std::collections::BTreeSet;

use kahawai_election::{
    CasResult, ClusterRecord, Condition, Effect, Elector, Event, Fence, Local, Member, Phase, Presence,
    PresenceState, ProviderError, ProviderEvent, Refusal, Request, Revision, Settings, Status,
    StepDownReason, Timing,
};
use kahawai_types::{BootId, ClusterId, Epoch, Lsn, Millis, NodeId, ReplicaId, StoreId};

const FENCE: Fence = Fence(5);
const LONG: Millis = 1_000_000;

struct Script {
    now: Millis,
    elector: Elector,
    record: ClusterRecord,
    revision: u64,
}

fn replica(name: &str) -> ReplicaId {
    ReplicaId { node: NodeId(name.to_owned()), store: StoreId(1) }
}

fn local() -> Local {
    Local {
        cluster_id: ClusterId(1),
        promised: Epoch(3),
        last_epoch: Epoch(3),
        end: Lsn(1 << 32),
        journal_is_empty: false,
        condition: Condition::Usable,
    }
}

/// Epoch 3, nobody leads, `a` and `b` are in sync.
fn vacant_record() -> ClusterRecord {
    ClusterRecord {
        cluster_id: ClusterId(1),
        feature_level: 1,
        epoch: Epoch(3),
        version: 10,
        primary: None,
        phase: Phase::Recovering,
        in_sync: [replica("a"), replica("b")].into(),
        minimum_replicas: 1,
        epoch_start: None,
        members: [].into(),
        unclean_generation: 0,
        successor: None,
        last_op: 0,
    }
}

fn presence(name: &str) -> Presence {
    Presence {
        node: NodeId(name.to_owned()),
        store: StoreId(1),
        boot: BootId(77),
        address: String::new(),
        clients: vec![],
        last_epoch: Epoch(3),
        end: Lsn(1 << 32),
        state: PresenceState::Following,
        priority: 0,
    }
}

impl Script {
    /// Node `a`, which has just started.
    fn new() -> Self {
        let settings = Settings {
            me: replica("a"),
            boot: BootId(1 << 64),
            address: "kdbr://a:1".to_owned(),
            clients: vec!["stomp://a:2".to_owned()],
            priority: 0,
            minimum_replicas: 0,
            timing: Timing::default(),
        };
        Self { now: 0, elector: Elector::new(settings, local(), None), record: vacant_record(), revision: 10 }
    }

    /// Node `a`, which knows the record and has the grant.
    fn granted() -> Self {
        let mut script = Self::new();
        script.give(Event::Provider(ProviderEvent::Connected));
        script.read();
        let effects = script.give(Event::Provider(ProviderEvent::GrantVacant));
        let Some(&Effect::Campaign { id }) = effects.iter().find(|it| matches!(it, Effect::Campaign { .. }))
        else {
            panic!("does not ask for the grant: {effects:?}");
        };
        script.give(Event::Campaign { id, result: Ok(FENCE) });
        script
    }

    /// Node `a`, which leads in epoch 4.
    fn leading() -> Self {
        let mut script = Self::granted();
        let (op, record) = cas(&script.read());
        let effects = script.apply(op, record);
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Lead { epoch: Epoch(4), .. })));
        assert_eq!(script.elector.wake_at(), Some(Millis::MIN), "does not ask how long");
        script.give(Event::Tick { deadline: LONG });
        script
    }

    fn give(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.elector.step(self.now, event, &mut effects);
        effects
    }

    /// Answers a read with what the service has.
    fn read(&mut self) -> Vec<Effect> {
        let revision = Revision { order: self.revision, token: self.revision };
        self.give(Event::Record(Ok(Some((revision, self.record.encode())))))
    }

    /// Answers reads until one is used.
    fn read_all(&mut self) -> Vec<Effect> {
        let effects = self.read();
        if effects == [Effect::Read] { self.read_all() } else { effects }
    }

    fn apply(&mut self, op: u128, record: ClusterRecord) -> Vec<Effect> {
        self.revision += 1;
        self.record = record;
        let revision = Revision { order: self.revision, token: self.revision };
        self.give(Event::Written { op, result: CasResult::Applied(revision) })
    }

    /// Somebody else writes.
    fn edit(&mut self, edit: impl FnOnce(&mut ClusterRecord)) {
        edit(&mut self.record);
        self.record.version += 1;
        self.record.last_op = 1;
        self.revision += 1;
    }

    fn request(&mut self, id: u64, request: Request) -> Vec<Effect> {
        self.give(Event::Request { id, request })
    }

    fn tick_at(&mut self, now: Millis) -> Vec<Effect> {
        self.now = now;
        self.give(Event::Tick { deadline: LONG })
    }
}

/// The only write among these.
fn cas(effects: &[Effect]) -> (u128, ClusterRecord) {
    let mut writes = effects.iter().filter_map(|effect| match effect {
        Effect::Cas { op, record, fence, .. } => {
            assert_eq!(*fence, Some(FENCE), "written without the grant");
            Some((*op, ClusterRecord::decode(record).unwrap()))
        }
        _ => None,
    });
    let write = writes.next().unwrap_or_else(|| panic!("nothing is written: {effects:?}"));
    assert!(writes.next().is_none(), "two writes at once");
    write
}

fn writes(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::Cas { .. } | Effect::Create { .. }))
}

fn answer(effects: &[Effect], wanted: u64) -> Option<Result<(), Refusal>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Answer { id, outcome } if *id == wanted => Some(outcome.clone()),
        _ => None,
    })
}

fn changed(effects: &[Effect]) -> Option<&ClusterRecord> {
    effects.iter().find_map(|effect| match effect {
        Effect::Changed(record) => Some(&**record),
        _ => None,
    })
}

fn step_down(effects: &[Effect]) -> Option<&StepDownReason> {
    effects.iter().find_map(|effect| match effect {
        Effect::StepDown(reason) => Some(reason),
        _ => None,
    })
}

fn alone() -> Request {
    Request::InSync([replica("a")].into())
}

fn with_c() -> BTreeSet<ReplicaId> {
    [replica("a"), replica("b"), replica("c")].into()
}

#[test]
fn a_new_epoch_names_the_process_and_keeps_the_set() {
    let mut script = Script::granted();
    let (_, record) = cas(&script.read());
    assert_eq!((record.epoch, record.version, record.phase), (Epoch(4), 11, Phase::Recovering));
    assert_eq!(record.in_sync, vacant_record().in_sync);
    let primary = record.primary.unwrap();
    assert_eq!((primary.replica(), primary.boot), (replica("a"), BootId(1 << 64)));
    assert_eq!((primary.address.as_str(), primary.clients.len()), ("kdbr://a:1", 1));
    assert_eq!(record.members.len(), 1);
}

#[test]
fn the_grant_alone_is_not_enough() {
    let mut script = Script::granted();
    script.edit(|record| _ = record.in_sync.remove(&replica("a")));
    let effects = script.read();
    assert!(effects.contains(&Effect::Resign) && !writes(&effects), "{effects:?}");

    let mut script = Script::granted();
    let syncing = Local { condition: Condition::Syncing, ..local() };
    script.give(Event::Local(syncing));
    let effects = script.read();
    assert!(effects.contains(&Effect::Resign) && !writes(&effects), "{effects:?}");
}

#[test]
fn the_same_name_with_another_disk_is_an_outsider() {
    let mut script = Script::new();
    let other = ReplicaId { node: NodeId("a".to_owned()), store: StoreId(2) };
    script.edit(|record| record.in_sync = [other.clone(), replica("b")].into());
    script.give(Event::Provider(ProviderEvent::Connected));
    script.read();
    let effects = script.give(Event::Provider(ProviderEvent::GrantVacant));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Campaign { .. })));
    assert_eq!(script.elector.status(), &Status::AwaitingInSync(vec![other, replica("b")]));
}

#[test]
fn an_unknown_outcome_is_resolved_with_the_same_write() {
    let mut script = Script::leading();
    let effects = script.request(1, Request::InSync(with_c()));
    let (op, _) = cas(&effects);
    let unknown = || CasResult::Unknown("lost".to_owned());
    for _ in 0..3 {
        let effects = script.give(Event::Written { op, result: unknown() });
        assert_eq!((answer(&effects, 1), changed(&effects)), (None, None), "it is not known");
        // What a read shows now may be from before, and the write still on its way.
        script.give(Event::Provider(ProviderEvent::RecordChanged));
        let effects = script.read();
        assert_eq!((answer(&effects, 1), changed(&effects), writes(&effects)), (None, None, false));
        let at = script.elector.wake_at().unwrap();
        let repeated = script.tick_at(at);
        assert_eq!(cas(&repeated).0, op, "another write");
    }
    // The first attempt was applied, so the last one conflicts.
    let (_, record) = cas(&effects);
    script.record = record;
    script.revision += 1;
    let effects = script.give(Event::Written { op, result: CasResult::Conflict });
    assert_eq!(answer(&effects, 1), None);
    let effects = script.read_all();
    assert_eq!(answer(&effects, 1), Some(Ok(())));
    assert_eq!(changed(&effects).unwrap().in_sync, with_c());
}

#[test]
fn a_conflict_under_our_epoch_says_which_set_holds() {
    // Applied, then somebody changed something else.
    let mut script = Script::leading();
    let (op, record) = cas(&script.request(1, Request::InSync(with_c())));
    script.record = record;
    script.edit(|record| record.feature_level = 2);
    script.give(Event::Written { op, result: CasResult::Conflict });
    let effects = script.read();
    assert_eq!(answer(&effects, 1), Some(Ok(())));
    assert_eq!(changed(&effects).unwrap().in_sync, with_c());

    // Not applied: somebody changed something else before.
    let mut script = Script::leading();
    let (op, _) = cas(&script.request(1, Request::InSync(with_c())));
    script.edit(|record| record.feature_level = 2);
    script.give(Event::Written { op, result: CasResult::Conflict });
    let effects = script.read();
    assert_eq!(answer(&effects, 1), Some(Err(Refusal::Conflict)));
    assert_eq!(changed(&effects).unwrap().in_sync, vacant_record().in_sync);

    // Somebody changed the set itself: nobody may but the primary.
    let mut script = Script::leading();
    let (op, _) = cas(&script.request(1, Request::InSync(with_c())));
    script.edit(|record| _ = record.in_sync.remove(&replica("b")));
    script.give(Event::Written { op, result: CasResult::Conflict });
    assert_eq!(step_down(&script.read()), Some(&StepDownReason::Superseded(Epoch(4))));
}

#[test]
fn another_change_that_conflicts_is_made_again_on_the_new_record() {
    let mut script = Script::leading();
    let (op, _) = cas(&script.request(1, Request::Activate { start: Lsn(7), chain: 8 }));
    script.edit(|record| record.feature_level = 2);
    script.give(Event::Written { op, result: CasResult::Conflict });
    let (again, record) = cas(&script.read());
    assert_ne!(op, again);
    assert_eq!((record.feature_level, record.phase), (2, Phase::Active));
    assert_eq!(record.epoch_start, Some((Lsn(7), 8)));
    assert_eq!(answer(&script.apply(again, record), 1), Some(Ok(())));
}

#[test]
fn one_write_at_a_time_and_a_bounded_queue() {
    let mut script = Script::leading();
    let (op, record) = cas(&script.request(0, Request::SetMinimum(0)));
    let mut refused = 0;
    for id in 1..200 {
        let member =
            Member { store: StoreId(id.into()), address: String::new(), clients: vec![], priority: 0 };
        let effects = script.request(id, Request::PutMember { node: NodeId("c".to_owned()), member });
        assert!(!writes(&effects), "two writes at once");
        refused += usize::from(answer(&effects, id) == Some(Err(Refusal::Busy)));
    }
    assert!(refused > 100);
    let (_, next) = cas(&script.apply(op, record));
    assert_eq!(next.members[&NodeId("c".to_owned())].store, StoreId(1), "out of order");
}

#[test]
fn a_set_keeps_the_primary_and_the_minimum() {
    let mut script = Script::leading();
    let effects = script.request(1, alone());
    assert_eq!(answer(&effects, 1), Some(Err(Refusal::TooSmall { size: 1, required: 2 })));
    assert_eq!(changed(&effects).unwrap().in_sync, vacant_record().in_sync);
    let effects = script.request(2, Request::InSync([replica("b"), replica("c")].into()));
    assert_eq!(answer(&effects, 2), Some(Err(Refusal::WithoutPrimary)));
    // A set that is too small already may grow in steps.
    let (op, record) = cas(&script.request(3, Request::SetMinimum(3)));
    script.apply(op, record);
    let (op, record) = cas(&script.request(4, Request::InSync(with_c())));
    assert_eq!(answer(&script.apply(op, record), 4), Some(Ok(())));
    let effects = script.request(5, Request::RemoveMember(NodeId("b".to_owned())));
    assert_eq!(answer(&effects, 5), Some(Err(Refusal::InSync(NodeId("b".to_owned())))));
}

#[test]
fn a_lead_ends_with_everything_that_it_rests_on() {
    let check = |event: Event, reason: StepDownReason| {
        let mut script = Script::leading();
        let (op, record) = cas(&script.request(1, Request::SetMinimum(0)));
        let effects = script.give(event);
        assert_eq!(step_down(&effects), Some(&reason));
        assert_eq!(answer(&effects, 1), Some(Err(Refusal::SteppedDown)), "an answer is owed");
        assert!(effects.contains(&Effect::Resign));
        // A late answer changes nothing, and no new attempt is made before everything is closed.
        assert_eq!(step_down(&script.apply(op, record)), None);
        for event in [ProviderEvent::Connected, ProviderEvent::GrantVacant] {
            let effects = script.give(Event::Provider(event));
            assert!(!effects.iter().any(|effect| matches!(effect, Effect::Campaign { .. })));
        }
        assert_eq!(script.elector.status(), &Status::SteppingDown);
    };
    check(Event::Provider(ProviderEvent::SessionLost), StepDownReason::SessionLost);
    check(Event::Provider(ProviderEvent::GrantLost(FENCE)), StepDownReason::GrantLost);
    check(Event::Tick { deadline: 0 }, StepDownReason::Deadline);
    check(Event::Tick { deadline: Millis::MIN }, StepDownReason::Deadline);
    check(Event::PeerEpoch(Epoch(5)), StepDownReason::Fenced(Epoch(5)));
}

#[test]
fn a_record_that_names_another_ends_the_lead_whatever_is_under_way() {
    for is_writing in [false, true] {
        let mut script = Script::leading();
        if is_writing {
            script.request(1, Request::SetMinimum(0));
        }
        script.give(Event::Provider(ProviderEvent::RecordChanged));
        script.edit(|record| {
            record.epoch = Epoch(5);
            record.primary.as_mut().unwrap().boot = BootId(9);
        });
        assert_eq!(step_down(&script.read()), Some(&StepDownReason::Superseded(Epoch(5))));
    }
}

#[test]
fn what_a_lead_does_not_rest_on_does_not_end_it() {
    let mut script = Script::leading();
    for event in [
        Event::Provider(ProviderEvent::Suspended),
        Event::Provider(ProviderEvent::GrantLost(Fence(1))),
        Event::Provider(ProviderEvent::GrantVacant),
        Event::PeerEpoch(Epoch(4)),
        Event::Record(Err(ProviderError::Unreachable(String::new()))),
        Event::Tick { deadline: 1 },
    ] {
        assert_eq!(step_down(&script.give(event.clone())), None, "{event:?}");
    }
    assert_eq!(script.elector.leads(), Some(Epoch(4)));
}

#[test]
fn after_a_storage_error_a_process_never_leads_again() {
    let mut script = Script::leading();
    assert_eq!(step_down(&script.give(Event::StorageFailed)), Some(&StepDownReason::StorageFailed));
    script.give(Event::SteppedDown(local()));
    script.give(Event::Provider(ProviderEvent::Connected));
    script.read();
    script.read();
    let effects = script.give(Event::Provider(ProviderEvent::GrantVacant));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Campaign { .. })));
    assert_eq!(script.elector.wake_at(), None);
    assert_eq!(script.elector.status(), &Status::StorageFailed);
}

#[test]
fn an_epoch_that_cannot_be_committed_is_left_to_others_and_longer_each_time() {
    let mut script = Script::leading();
    // With nobody else there, giving up helps nobody.
    assert_eq!(step_down(&script.tick_at(500_000)), None);
    script.now = 0;
    script.give(Event::Provider(ProviderEvent::PresenceChanged));
    // The first answer belongs to a question from before.
    script.give(Event::Presence(Ok(vec![])));
    script.give(Event::Presence(Ok(vec![presence("b").encode(), b"no presence".to_vec()])));
    let recover_ms = Timing::default().recover_ms;
    assert_eq!(script.elector.wake_at(), Some(recover_ms));
    let effects = script.tick_at(recover_ms);
    assert_eq!(step_down(&effects), Some(&StepDownReason::NotRecovered));
    let (op, farewell) = cas(&effects);
    assert_eq!((farewell.primary.clone(), farewell.epoch), (None, Epoch(4)));
    let effects = script.apply(op, farewell);
    assert!(effects.contains(&Effect::Resign));
}

#[test]
fn ranks_decide_who_waits_how_long() {
    let check = |other: Presence, wait_ms: Millis| {
        let mut script = Script::new();
        script.give(Event::Provider(ProviderEvent::Connected));
        script.read();
        script.give(Event::Presence(Ok(vec![other.encode()])));
        script.give(Event::Provider(ProviderEvent::GrantVacant));
        let waits = script.elector.wake_at();
        assert_eq!(waits, (wait_ms > 0).then_some(wait_ms), "{other:?}");
    };
    // Equal: by name.
    check(presence("b"), 0);
    check(Presence { end: Lsn(2 << 32), ..presence("b") }, 150);
    check(Presence { priority: 1, ..presence("b") }, 150);
    check(Presence { last_epoch: Epoch(2), end: Lsn(9 << 32), ..presence("b") }, 0);
    check(Presence { end: Lsn(2 << 32), state: PresenceState::Syncing, ..presence("b") }, 0);
    check(Presence { end: Lsn(2 << 32), store: StoreId(9), ..presence("b") }, 0);
    check(Presence { end: Lsn(2 << 32), ..presence("c") }, 0);
}

#[test]
fn an_old_answer_is_not_used() {
    let mut script = Script::new();
    script.give(Event::Provider(ProviderEvent::Connected));
    // Changed while the question was under way: its answer may be from before.
    script.give(Event::Provider(ProviderEvent::RecordChanged));
    let effects = script.read();
    assert_eq!(effects, [Effect::Read]);
    assert_eq!(script.elector.record(), None);
    script.edit(|record| record.feature_level = 3);
    script.read();
    assert_eq!(script.elector.record().map(|record| record.feature_level), Some(3));
}

#[test]
fn a_store_that_turns_out_to_be_empty_takes_the_cluster_that_it_finds() {
    let mut script = Script::new();
    let other = Local {
        cluster_id: ClusterId(77),
        journal_is_empty: false,
        condition: Condition::Syncing,
        ..local()
    };
    script.give(Event::Local(other.clone()));
    script.read_all();
    assert!(matches!(script.elector.status(), Status::Refused(_)), "{:?}", script.elector.status());
    let empty = Local { journal_is_empty: true, condition: Condition::Usable, ..other };
    assert_eq!(script.give(Event::Local(empty.clone())).first(), Some(&Effect::Read));
    script.read();
    assert!(!matches!(script.elector.status(), Status::Refused(_)), "{:?}", script.elector.status());
    assert!(!script.give(Event::Local(empty)).contains(&Effect::Read), "nothing new");
}

#[test]
fn an_unreadable_record_stops_elections() {
    let mut script = Script::new();
    script.give(Event::Provider(ProviderEvent::Connected));
    let revision = Revision { order: 1, token: 1 };
    script.give(Event::Record(Ok(Some((revision, b"{\"format\": 2}".to_vec())))));
    script.give(Event::Provider(ProviderEvent::GrantVacant));
    assert!(matches!(script.elector.status(), Status::Refused(_)));
    assert_eq!(script.elector.wake_at(), None);
}

#[test]
fn a_promise_above_the_record_is_a_lost_state() {
    let mut script = Script::new();
    script.give(Event::Provider(ProviderEvent::Connected));
    script.give(Event::Local(Local { promised: Epoch(9), ..local() }));
    script.read();
    assert!(matches!(script.elector.status(), Status::StateLost(_)), "{}", script.elector.status());

    let mut script = Script::new();
    script.give(Event::Provider(ProviderEvent::Connected));
    script.read();
    script.give(Event::PeerEpoch(Epoch(9)));
    script.read();
    assert!(matches!(script.elector.status(), Status::StateLost(_)), "{}", script.elector.status());
}
