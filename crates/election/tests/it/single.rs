//! The provider of a node alone: of ES1 to ES9 whatever one process can see.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use kahawai_election::single::SingleProvider;
use kahawai_election::{BoxFuture, CasResult, Fence, Provider, ProviderError, ProviderEvent, Revision};
use kahawai_types::Millis;

#[derive(Clone, Default)]
struct Disk(Arc<Mutex<(Option<Vec<u8>>, bool)>>);

impl Disk {
    fn open(&self) -> SingleProvider {
        let kept = self.0.lock().unwrap().0.clone();
        let disk = self.clone();
        let keep = Box::new(move |bytes: &[u8]| {
            let mut disk = disk.0.lock().unwrap();
            if std::mem::take(&mut disk.1) {
                return Err("the disk is full".to_owned());
            }
            disk.0 = Some(bytes.to_vec());
            Ok(())
        });
        SingleProvider::new(kept.as_deref(), keep).unwrap()
    }
}

fn now<T>(mut future: BoxFuture<'_, T>) -> T {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a node alone waits for nobody"),
    }
}

fn events(provider: &SingleProvider) -> Vec<ProviderEvent> {
    let mut all = Vec::new();
    while let Poll::Ready(event) =
        provider.next_event().as_mut().poll(&mut Context::from_waker(Waker::noop()))
    {
        all.push(event);
    }
    all
}

fn applied(result: CasResult) -> Revision {
    match result {
        CasResult::Applied(revision) => revision,
        other => panic!("{other:?}"),
    }
}

#[test]
fn writes_are_compared_fenced_and_kept() {
    let disk = Disk::default();
    let provider = disk.open();
    assert_eq!(now(provider.read()), Ok(None));
    let first = applied(now(provider.create(b"1".to_vec())));
    // ES8, ES1.
    assert_eq!(now(provider.create(b"x".to_vec())), CasResult::Conflict);
    let second = applied(now(provider.cas(first, b"2".to_vec(), None)));
    assert_eq!(now(provider.cas(first, b"x".to_vec(), None)), CasResult::Conflict);
    assert_eq!(now(provider.read()), Ok(Some((second, b"2".to_vec()))));
    // ES2, ES3, ES6.
    let fence = now(provider.campaign()).unwrap();
    assert_eq!(provider.deadline(fence), Millis::MAX);
    let third = applied(now(provider.cas(second, b"3".to_vec(), Some(fence))));
    now(provider.resign());
    assert_eq!(provider.deadline(fence), Millis::MIN);
    assert_eq!(now(provider.cas(third, b"x".to_vec(), Some(fence))), CasResult::FenceLost);
    let again = now(provider.campaign()).unwrap();
    assert_ne!(fence, again);
    assert_eq!(now(provider.cas(third, b"x".to_vec(), Some(fence))), CasResult::FenceLost);
    // ES5.
    disk.0.lock().unwrap().1 = true;
    assert!(matches!(now(provider.cas(third, b"4".to_vec(), Some(again))), CasResult::Unknown(_)));
    let fourth = applied(now(provider.cas(third, b"4".to_vec(), Some(again))));
    // ES4: the next life has the record, and no grant.
    let provider = disk.open();
    assert_eq!(now(provider.read()), Ok(Some((fourth, b"4".to_vec()))));
    assert_eq!(now(provider.cas(fourth, b"x".to_vec(), Some(Fence(1)))), CasResult::FenceLost);
    assert!(applied(now(provider.cas(fourth, b"5".to_vec(), None))) > fourth);
    // ES9.
    disk.0.lock().unwrap().0 = None;
    assert_eq!(now(disk.open().read()), Ok(None));
    assert!(SingleProvider::new(Some(b"short"), Box::new(|_| Ok(()))).is_err());
}

#[test]
fn it_tells_what_an_elector_has_to_know() {
    let provider = Disk::default().open();
    assert_eq!(events(&provider), [ProviderEvent::Connected, ProviderEvent::GrantVacant]);
    now(provider.campaign()).unwrap();
    applied(now(provider.create(vec![])));
    provider.publish(b"me".to_vec());
    now(provider.resign());
    let all = [
        ProviderEvent::GrantHeld,
        ProviderEvent::RecordChanged,
        ProviderEvent::PresenceChanged,
        ProviderEvent::GrantVacant,
    ];
    assert_eq!(events(&provider), all);
    assert_eq!(now(provider.presence()), Ok(vec![b"me".to_vec()]));
    now(provider.close());
    assert_eq!(events(&provider), [ProviderEvent::Closed]);
    assert_eq!(now(provider.campaign()), Err(ProviderError::Closed));
    assert_eq!(now(provider.read()), Err(ProviderError::Closed));
}
