use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use kahawai_election::conformance::{Bench, check_all};
use kahawai_election::memory::{Hub, WriteFault};
use kahawai_election::{BoxFuture, Provider};
use kahawai_types::{Millis, NodeId};

const SESSION_MS: Millis = 1_000;

/// Nothing here waits for anything but what the checks do themselves, so whoever is not done when polled never will be.
fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..10 {
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return done;
        }
    }
    panic!("the checks wait for an event that does not come");
}

struct Memory {
    hub: Arc<Hub>,
    nodes: std::sync::Mutex<Vec<NodeId>>,
    losses: AtomicU64,
}

impl Bench for Memory {
    fn open<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, Box<dyn Provider>> {
        self.nodes.lock().unwrap().push(node.clone());
        Box::pin(async { Box::new(self.hub.open(node)) as Box<dyn Provider> })
    }

    fn cut<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, ()> {
        Box::pin(async { self.hub.cut(node) })
    }

    fn await_expiry<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, ()> {
        Box::pin(async {
            while self.hub.has_session(node) {
                self.hub.advance(1);
            }
        })
    }

    fn heal<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, ()> {
        Box::pin(async { self.hub.heal(node) })
    }

    fn restart(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            for node in self.nodes.lock().unwrap().iter() {
                self.hub.cut(node);
                self.hub.heal(node);
            }
        })
    }

    fn lose_next_answer<'a>(&'a self, node: &'a NodeId) -> BoxFuture<'a, ()> {
        let fault = match self.losses.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => WriteFault::Lost,
            _ => WriteFault::AppliedUnanswered,
        };
        Box::pin(async move { self.hub.fail_next_write(node, fault) })
    }

    fn lose_record(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.hub.lose_record() })
    }

    fn now(&self) -> Millis {
        self.hub.now()
    }
}

#[test]
fn the_modelled_service_keeps_what_a_provider_promises() {
    run(check_all(|_| {
        Box::pin(async {
            Memory { hub: Hub::new(SESSION_MS), nodes: Default::default(), losses: AtomicU64::new(0) }
        })
    }));
}
