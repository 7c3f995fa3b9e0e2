//! What every provider must do, as checks that run against a real one: ES1 to ES9 of `replication.md` 4.1.
//!
//! [`check_all`] panics where a provider breaks its promise. It is one future without a runtime of its own; the caller
//! runs it on whatever its provider needs. Where it has to wait for something, it waits for the event, and the caller's
//! test harness bounds the whole.

use kahawai_types::{Millis, NodeId};

use crate::provider::{BoxFuture, CasResult, Fence, Provider, ProviderEvent, Revision};

/// A service and the network to it, as a test arranges them. Each process is opened under a node's name.
pub trait Bench: Sync {
    /// Starts a process: a new session on the same record.
    fn open<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Box<dyn Provider>>;
    /// Cuts a node off from the service.
    fn cut<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, ()>;
    /// Returns when the service has ended the session of a node that is cut off.
    fn await_expiry<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, ()>;
    /// Connects a node again.
    fn heal<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, ()>;
    /// Stops the service and starts it again with what it had.
    fn restart(&self) -> BoxFuture<'_, ()>;
    /// Makes the node's next write one whose answer is lost. Whether it is applied is up to the bench.
    fn lose_next_answer<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, ()>;
    /// Removes the record behind everybody's back.
    fn lose_record(&self) -> BoxFuture<'_, ()>;
    /// The boot clock that the providers use.
    fn now(&self) -> Millis;
}

/// Runs all checks, each on a bench of its own that `make` arranges for the check's name.
pub async fn check_all<'a, B: Bench + 'a>(make: impl Fn(&'static str) -> BoxFuture<'a, B>) {
    creation_happens_once(&make("es8").await).await;
    one_of_two_writes_wins(&make("es1").await).await;
    the_grant_has_one_holder(&make("es2").await).await;
    a_dead_grant_writes_nothing(&make("es3").await).await;
    revisions_grow(&make("es4").await).await;
    an_unknown_write_is_resolved_by_repeating_it(&make("es5").await).await;
    the_deadline_comes_before_the_next_grant(&make("es6").await).await;
    a_reconnected_process_is_told_to_read(&make("es7").await).await;
    a_lost_record_is_seen(&make("es9").await).await;
    the_queue_can_be_left(&make("queue").await).await;
    presence_ends_with_its_process(&make("presence").await).await;
}

fn node(name: &str) -> NodeId {
    NodeId(name.to_owned())
}

async fn create(provider: &dyn Provider, record: &[u8]) -> Revision {
    applied(provider.create(record.to_vec()).await)
}

fn applied(result: CasResult) -> Revision {
    match result {
        CasResult::Applied(revision) => revision,
        other => panic!("the write should be applied, it is {other:?}"),
    }
}

async fn read(provider: &dyn Provider) -> Option<(Revision, Vec<u8>)> {
    match provider.read().await {
        Ok(found) => found,
        Err(error) => panic!("the record should be readable: {error}"),
    }
}

async fn win(provider: &dyn Provider) -> Fence {
    match provider.campaign().await {
        Ok(fence) => fence,
        Err(error) => panic!("the grant should be won: {error}"),
    }
}

async fn await_event(provider: &dyn Provider, wanted: impl Fn(&ProviderEvent) -> bool) -> ProviderEvent {
    loop {
        let event = provider.next_event().await;
        if wanted(&event) {
            return event;
        }
        assert_ne!(event, ProviderEvent::Closed, "closed while something else was expected");
    }
}

async fn cut_until_expired(bench: &impl Bench, node: &NodeId) {
    bench.cut(node).await;
    bench.await_expiry(node).await;
}

/// ES8: a record is made once, and never over another one.
async fn creation_happens_once(bench: &impl Bench) {
    let (a, b) = (bench.open(&node("a")).await, bench.open(&node("b")).await);
    assert_eq!(read(&*a).await, None);
    let revision = create(&*a, b"first").await;
    assert_eq!(b.create(b"second".to_vec()).await, CasResult::Conflict);
    assert_eq!(read(&*b).await, Some((revision, b"first".to_vec())));
}

/// ES1: of two writes on one revision one is applied, and whoever reads afterwards sees it.
async fn one_of_two_writes_wins(bench: &impl Bench) {
    let (a, b) = (bench.open(&node("a")).await, bench.open(&node("b")).await);
    let first = create(&*a, b"0").await;
    let second = applied(b.cas(first, b"1".to_vec(), None).await);
    assert_eq!(a.cas(first, b"2".to_vec(), None).await, CasResult::Conflict);
    assert_eq!(read(&*a).await, Some((second, b"1".to_vec())));
    let third = applied(a.cas(second, b"3".to_vec(), None).await);
    assert_eq!(read(&*b).await, Some((third, b"3".to_vec())));
}

/// ES2: one valid grant at a time; the next in the queue gets it when it is given back.
async fn the_grant_has_one_holder(bench: &impl Bench) {
    let (a, b) = (bench.open(&node("a")).await, bench.open(&node("b")).await);
    await_event(&*b, |event| *event == ProviderEvent::GrantVacant).await;
    let revision = create(&*a, b"0").await;
    let first = win(&*a).await;
    await_event(&*b, |event| *event == ProviderEvent::GrantHeld).await;
    let mut waiting = b.campaign();
    // Another write and read of both is more than enough time for a wrong grant to arrive.
    let revision = applied(a.cas(revision, b"1".to_vec(), Some(first)).await);
    assert!(is_pending(&mut waiting).await, "two grants at once");
    assert_eq!(read(&*b).await, Some((revision, b"1".to_vec())));
    assert!(is_pending(&mut waiting).await, "two grants at once");
    a.resign().await;
    let second = match waiting.await {
        Ok(fence) => fence,
        Err(error) => panic!("the next in the queue should get the grant: {error}"),
    };
    assert_ne!(first, second);
    assert_eq!(a.cas(revision, b"2".to_vec(), Some(first)).await, CasResult::FenceLost);
    applied(b.cas(revision, b"3".to_vec(), Some(second)).await);
    b.resign().await;
    await_event(&*a, |event| *event == ProviderEvent::GrantVacant).await;
}

/// ES3: what was granted to a session that has ended writes nothing, whatever its holder believes.
async fn a_dead_grant_writes_nothing(bench: &impl Bench) {
    let (a, b) = (bench.open(&node("a")).await, bench.open(&node("b")).await);
    let revision = create(&*a, b"0").await;
    let dead = win(&*a).await;
    cut_until_expired(bench, &node("a")).await;
    let live = win(&*b).await;
    bench.heal(&node("a")).await;
    await_event(&*a, |event| *event == ProviderEvent::SessionLost).await;
    await_event(&*a, |event| *event == ProviderEvent::Connected).await;
    assert_eq!(a.cas(revision, b"1".to_vec(), Some(dead)).await, CasResult::FenceLost);
    // Nor does it after its process has won again.
    b.resign().await;
    let again = win(&*a).await;
    assert_ne!(again, dead);
    assert_eq!(a.cas(revision, b"1".to_vec(), Some(dead)).await, CasResult::FenceLost);
    assert_eq!(b.cas(revision, b"1".to_vec(), Some(live)).await, CasResult::FenceLost);
    assert_eq!(read(&*b).await, Some((revision, b"0".to_vec())));
    applied(a.cas(revision, b"2".to_vec(), Some(again)).await);
}

/// ES4: revisions grow with every write, also after the service was restarted.
async fn revisions_grow(bench: &impl Bench) {
    let a = bench.open(&node("a")).await;
    let mut last = create(&*a, b"0").await;
    for round in 0..3_u8 {
        for write in 0..3_u8 {
            let revision = applied(a.cas(last, vec![round, write], None).await);
            assert!(revision.order > last.order, "{revision:?} does not follow {last:?}");
            last = revision;
        }
        bench.restart().await;
        await_event(&*a, |event| *event == ProviderEvent::Suspended).await;
        await_event(&*a, |event| *event == ProviderEvent::Connected).await;
        assert_eq!(read(&*a).await, Some((last, vec![round, 2])));
    }
}

/// ES5: a write whose outcome is unknown is applied at most once, and repeating it tells.
async fn an_unknown_write_is_resolved_by_repeating_it(bench: &impl Bench) {
    let (a, b) = (bench.open(&node("a")).await, bench.open(&node("b")).await);
    let mut revision = create(&*a, b"0").await;
    for round in 1..4_u8 {
        bench.lose_next_answer(&node("a")).await;
        let mut result = a.cas(revision, vec![round], None).await;
        assert!(matches!(result, CasResult::Unknown(_)), "the answer was lost, yet it is {result:?}");
        bench.heal(&node("a")).await;
        // Each attempt ends, and one of them answers once there is a connection.
        for _ in 0..100 {
            result = a.cas(revision, vec![round], None).await;
            if !matches!(result, CasResult::Unknown(_)) {
                break;
            }
        }
        let Some((now_at, record)) = read(&*b).await else { panic!("the record is gone") };
        assert_eq!(record, vec![round], "neither attempt was applied");
        match result {
            CasResult::Applied(at) => assert_eq!(at, now_at),
            CasResult::Conflict => assert!(now_at.order > revision.order),
            other => panic!("the repetition should tell, it says {other:?}"),
        }
        assert_eq!(a.cas(revision, vec![round], None).await, CasResult::Conflict, "applied twice");
        revision = now_at;
    }
}

/// ES6: who is cut off knows by its own clock when to stop, before anybody else is granted anything.
async fn the_deadline_comes_before_the_next_grant(bench: &impl Bench) {
    let (a, b) = (bench.open(&node("a")).await, bench.open(&node("b")).await);
    let fence = win(&*a).await;
    assert!(a.deadline(fence) > bench.now(), "no time to do anything");
    let waiting = b.campaign();
    cut_until_expired(bench, &node("a")).await;
    let deadline = a.deadline(fence);
    assert!(waiting.await.is_ok(), "the grant should pass on");
    assert!(deadline < bench.now(), "granted to another at {}, good until {deadline}", bench.now());
    assert!(a.deadline(fence) < bench.now(), "prolonged without a connection");
    // The next session is somebody else, although it is the same process.
    bench.heal(&node("a")).await;
    await_event(&*a, |event| *event == ProviderEvent::SessionLost).await;
    await_event(&*a, |event| *event == ProviderEvent::Connected).await;
    assert!(a.deadline(fence) < bench.now(), "prolonged by another session");
    b.resign().await;
    let again = win(&*a).await;
    assert!(a.deadline(again) > bench.now(), "no time to do anything");
    assert!(a.deadline(fence) < bench.now(), "prolonged by another grant");
}

/// ES7: after a connection is back, with the same session or another, the process hears that it must read again, and
/// whether the grant is vacant. A grant survives an interruption that its session survives.
async fn a_reconnected_process_is_told_to_read(bench: &impl Bench) {
    let (a, b) = (bench.open(&node("a")).await, bench.open(&node("b")).await);
    let revision = create(&*a, b"0").await;
    let fence = win(&*a).await;
    await_event(&*a, |event| *event == ProviderEvent::GrantHeld).await;
    bench.cut(&node("a")).await;
    bench.heal(&node("a")).await;
    await_event(&*a, |event| *event == ProviderEvent::Suspended).await;
    await_event(&*a, |event| *event == ProviderEvent::Connected).await;
    await_event(&*a, |event| *event == ProviderEvent::GrantHeld).await;
    // What watches for changes has survived too.
    let revision = applied(b.cas(revision, b"1".to_vec(), None).await);
    await_event(&*a, |event| *event == ProviderEvent::RecordChanged).await;
    let revision = applied(a.cas(revision, b"1".to_vec(), Some(fence)).await);
    cut_until_expired(bench, &node("a")).await;
    let revision = applied(b.cas(revision, b"2".to_vec(), None).await);
    bench.heal(&node("a")).await;
    await_event(&*a, |event| *event == ProviderEvent::SessionLost).await;
    await_event(&*a, |event| *event == ProviderEvent::Connected).await;
    await_event(&*a, |event| *event == ProviderEvent::GrantVacant).await;
    assert_eq!(read(&*a).await, Some((revision, b"2".to_vec())));
    // And a change while connected is an event too.
    applied(b.cas(revision, b"3".to_vec(), None).await);
    await_event(&*a, |event| *event == ProviderEvent::RecordChanged).await;
}

/// ES9: a record that is gone is not there: no cache hides it, and nothing can be written on its last revision.
async fn a_lost_record_is_seen(bench: &impl Bench) {
    let (a, b) = (bench.open(&node("a")).await, bench.open(&node("b")).await);
    let revision = create(&*a, b"0").await;
    assert_eq!(read(&*b).await, Some((revision, b"0".to_vec())));
    bench.lose_record().await;
    assert_eq!(read(&*a).await, None);
    assert_eq!(read(&*b).await, None);
    assert_eq!(a.cas(revision, b"1".to_vec(), None).await, CasResult::Conflict);
    assert!(create(&*b, b"2").await.order > revision.order);
}

/// Who drops its campaign, resigns, or asks again does not get in the way.
async fn the_queue_can_be_left(bench: &impl Bench) {
    let (a, b) = (bench.open(&node("a")).await, bench.open(&node("b")).await);
    win(&*a).await;
    let mut dropped = b.campaign();
    assert!(is_pending(&mut dropped).await);
    drop(dropped);
    let mut resigned = b.campaign();
    assert!(is_pending(&mut resigned).await);
    b.resign().await;
    assert!(resigned.await.is_err(), "resigned, yet granted");
    a.resign().await;
    await_event(&*b, |event| *event == ProviderEvent::GrantHeld).await;
    await_event(&*b, |event| *event == ProviderEvent::GrantVacant).await;
    win(&*b).await;
    // Nor does who resigns without a connection, once it has one again: its session lives.
    bench.cut(&node("b")).await;
    await_event(&*b, |event| *event == ProviderEvent::Suspended).await;
    b.resign().await;
    bench.heal(&node("b")).await;
    win(&*a).await;
    await_event(&*b, |event| *event == ProviderEvent::Connected).await;
}

/// Presence is seen by others while its process lives, newest first heard of; it comes back with the next session.
async fn presence_ends_with_its_process(bench: &impl Bench) {
    let (a, b) = (bench.open(&node("a")).await, bench.open(&node("b")).await);
    a.publish(b"a1".to_vec());
    await_presence(&*b, &[b"a1"]).await;
    b.publish(b"b1".to_vec());
    a.publish(b"a2".to_vec());
    await_presence(&*b, &[b"a2", b"b1"]).await;
    cut_until_expired(bench, &node("a")).await;
    await_presence(&*b, &[b"b1"]).await;
    bench.heal(&node("a")).await;
    await_presence(&*b, &[b"a2", b"b1"]).await;
    a.close().await;
    await_presence(&*b, &[b"b1"]).await;
}

async fn await_presence(provider: &dyn Provider, wanted: &[&[u8]]) {
    loop {
        if let Ok(mut found) = provider.presence().await {
            found.sort();
            if found == wanted {
                return;
            }
        }
        await_event(provider, |event| {
            matches!(event, ProviderEvent::PresenceChanged | ProviderEvent::Connected)
        })
        .await;
    }
}

/// Polls once.
async fn is_pending<T>(future: &mut BoxFuture<'_, T>) -> bool {
    std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context).is_pending())).await
}
