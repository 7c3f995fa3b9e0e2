//! The election service of a node that runs alone: its record is kept by the node itself, and its grant ends with its process.
//!
//! Whoever keeps the bytes sees to it that there is one process at a time (the lock of the data directory does), and that they
//! are durable when they are kept.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use kahawai_types::Millis;

use crate::provider::{
    BoxFuture, Capabilities, CasResult, Fence, Provider, ProviderError, ProviderEvent, ReadResult, Revision,
};

/// What is kept: the revision, u64 big endian, and the record.
const REVISION_BYTES: usize = 8;

/// Keeps these bytes, durably and as a whole; after an error nobody knows which bytes are there.
pub type Keep = Box<dyn FnMut(&[u8]) -> Result<(), String> + Send>;

/// See the [module](self).
pub struct SingleProvider {
    state: Mutex<State>,
}

struct State {
    record: Option<(Revision, Vec<u8>)>,
    keep: Keep,
    grant: Option<Fence>,
    grants: u64,
    presence: Option<Vec<u8>>,
    events: VecDeque<ProviderEvent>,
    waker: Option<Waker>,
    is_closed: bool,
}

impl fmt::Debug for SingleProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SingleProvider").finish_non_exhaustive()
    }
}

impl SingleProvider {
    /// With what an earlier life kept. Bytes too short to be a record are an error.
    pub fn new(kept: Option<&[u8]>, keep: Keep) -> Result<Self, String> {
        let record = match kept {
            None => None,
            Some(bytes) => {
                let (order, record) = bytes
                    .split_first_chunk::<REVISION_BYTES>()
                    .ok_or_else(|| format!("{} bytes are no record", bytes.len()))?;
                let order = u64::from_be_bytes(*order);
                Some((Revision { order, token: order }, record.to_vec()))
            }
        };
        let state = State {
            record,
            keep,
            grant: None,
            grants: 0,
            presence: None,
            events: VecDeque::from([ProviderEvent::Connected, ProviderEvent::GrantVacant]),
            waker: None,
            is_closed: false,
        };
        Ok(Self { state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain values: what a panicking thread left is as good as any.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&mut self, event: ProviderEvent) {
        self.events.push_back(event);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn check_open(&self) -> Result<(), ProviderError> {
        if self.is_closed { Err(ProviderError::Closed) } else { Ok(()) }
    }

    fn write(&mut self, expected: Option<Revision>, record: Vec<u8>) -> CasResult {
        if self.is_closed {
            return CasResult::Unknown("closed".to_owned());
        }
        let present = self.record.as_ref().map(|(revision, _)| *revision);
        if present != expected {
            return CasResult::Conflict;
        }
        let order = present.map_or(0, |revision| revision.order) + 1;
        let mut bytes = Vec::with_capacity(REVISION_BYTES + record.len());
        bytes.extend_from_slice(&order.to_be_bytes());
        bytes.extend_from_slice(&record);
        if let Err(reason) = (self.keep)(&bytes) {
            // A restart may find either; repeating it makes it this one.
            return CasResult::Unknown(reason);
        }
        let revision = Revision { order, token: order };
        self.record = Some((revision, record));
        self.tell(ProviderEvent::RecordChanged);
        CasResult::Applied(revision)
    }

    fn resign(&mut self) {
        if self.grant.take().is_some() {
            self.tell(ProviderEvent::GrantVacant);
        }
    }
}

impl Provider for SingleProvider {
    fn read(&self) -> BoxFuture<'_, ReadResult> {
        Box::pin(async {
            let state = self.lock();
            state.check_open().map(|()| state.record.clone())
        })
    }

    fn create(&self, record: Vec<u8>) -> BoxFuture<'_, CasResult> {
        Box::pin(async { self.lock().write(None, record) })
    }

    fn cas(&self, expected: Revision, record: Vec<u8>, fence: Option<Fence>) -> BoxFuture<'_, CasResult> {
        Box::pin(async move {
            let mut state = self.lock();
            match fence {
                Some(_) if fence != state.grant => CasResult::FenceLost,
                _ => state.write(Some(expected), record),
            }
        })
    }

    fn campaign(&self) -> BoxFuture<'_, Result<Fence, ProviderError>> {
        Box::pin(async {
            let mut state = self.lock();
            state.check_open()?;
            state.resign();
            state.grants += 1;
            let fence = Fence(state.grants);
            state.grant = Some(fence);
            state.tell(ProviderEvent::GrantHeld);
            Ok(fence)
        })
    }

    fn resign(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.lock().resign() })
    }

    fn publish(&self, presence: Vec<u8>) {
        let mut state = self.lock();
        state.presence = Some(presence);
        state.tell(ProviderEvent::PresenceChanged);
    }

    fn presence(&self) -> BoxFuture<'_, Result<Vec<Vec<u8>>, ProviderError>> {
        Box::pin(async {
            let state = self.lock();
            state.check_open().map(|()| state.presence.iter().cloned().collect())
        })
    }

    fn next_event(&self) -> BoxFuture<'_, ProviderEvent> {
        Box::pin(poll_fn(|context| {
            let mut state = self.lock();
            match state.events.pop_front() {
                Some(event) => Poll::Ready(event),
                None => {
                    state.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }

    fn deadline(&self, fence: Fence) -> Millis {
        if self.lock().grant == Some(fence) { Millis::MAX } else { Millis::MIN }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { linearizable_cas: true, atomic_fence: true, lease: true, durable: true }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let mut state = self.lock();
            state.grant = None;
            if !std::mem::replace(&mut state.is_closed, true) {
                state.tell(ProviderEvent::Closed);
            }
        })
    }
}
