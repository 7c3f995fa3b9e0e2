//! An election service inside this process, for tests: sessions, an exclusive grant with a queue, a record, and the faults
//! that a real service shows. Its time moves only when it is told to.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use kahawai_types::{Millis, NodeId};

use crate::provider::{
    BoxFuture, Capabilities, CasResult, Fence, Provider, ProviderError, ProviderEvent, ReadResult, Revision,
};

/// What a process keeps back from the end of its session, for clocks that disagree: in percent, and on top.
const DRIFT_PERCENT: Millis = 1;
const MARGIN_MS: Millis = 5;

/// The service.
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
}

/// What happens to the next write of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteFault {
    /// It is done, the answer is lost.
    AppliedUnanswered,
    /// It is lost.
    Lost,
    /// It is under way until [`Hub::deliver`].
    Delayed,
}

/// The record at some time, to roll back to.
#[derive(Clone, Debug)]
pub struct Snapshot(Option<(Revision, Vec<u8>)>);

#[derive(Debug)]
struct State {
    now: Millis,
    session_ms: Millis,
    record: Option<(Revision, Vec<u8>)>,
    order: u64,
    /// Holder first.
    queue: VecDeque<Place>,
    places: u64,
    clients: Vec<Client>,
    delayed: VecDeque<Write>,
    wakers: Vec<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    fence: Fence,
    client: usize,
}

#[derive(Debug)]
struct Client {
    node: NodeId,
    session: Session,
    /// Lower ones were won in sessions that have ended.
    fences_from: u64,
    is_cut: bool,
    is_closed: bool,
    /// It gave the grant back while it was cut off.
    has_resigned: bool,
    events: VecDeque<ProviderEvent>,
    presence: Option<Vec<u8>>,
    fault: Option<WriteFault>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Session {
    Live {
        renewed_at: Millis,
    },
    /// Its process does not know yet.
    Ended {
        renewed_at: Millis,
    },
}

#[derive(Clone, Debug)]
struct Write {
    /// None creates.
    expected: Option<Revision>,
    record: Vec<u8>,
    fence: Option<Fence>,
}

impl Hub {
    /// A service whose sessions end when they were not renewed for so long.
    pub fn new(session_ms: Millis) -> Arc<Self> {
        let state = State {
            now: 0,
            session_ms,
            record: None,
            order: 0,
            queue: VecDeque::new(),
            places: 0,
            clients: Vec::new(),
            delayed: VecDeque::new(),
            wakers: Vec::new(),
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// A process with a session of its own.
    pub fn open(self: &Arc<Self>, node: &NodeId) -> MemoryProvider {
        let mut state = self.lock();
        let client = state.clients.len();
        let session = Session::Live { renewed_at: state.now };
        let fences_from = state.places + 1;
        state.clients.push(Client {
            node: node.clone(),
            session,
            fences_from,
            is_cut: false,
            is_closed: false,
            has_resigned: false,
            events: VecDeque::new(),
            presence: None,
            fault: None,
        });
        state.greet(client);
        MemoryProvider { hub: self.clone(), client }
    }

    /// The time.
    pub fn now(&self) -> Millis {
        self.lock().now
    }

    /// Lets time pass. Who is connected renews all the while; a session that is cut off ends when its time is over.
    pub fn advance(&self, ms: Millis) {
        let mut state = self.lock();
        state.now += ms;
        let (now, session_ms) = (state.now, state.session_ms);
        for client in 0..state.clients.len() {
            let Some(one) = state.clients.get_mut(client) else { continue };
            match &mut one.session {
                Session::Live { renewed_at } if !one.is_cut => *renewed_at = now,
                Session::Live { renewed_at } if *renewed_at + session_ms <= now => state.end_session(client),
                Session::Live { .. } | Session::Ended { .. } => {}
            }
        }
    }

    /// Cuts a node's processes off from the service.
    pub fn cut(&self, node: &NodeId) {
        let mut state = self.lock();
        for client in state.clients_of(node) {
            if let Some(one) = state.clients.get_mut(client)
                && !one.is_cut
            {
                one.is_cut = true;
                one.events.push_back(ProviderEvent::Suspended);
            }
        }
        state.wake();
    }

    /// Connects them again.
    pub fn heal(&self, node: &NodeId) {
        let mut state = self.lock();
        for client in state.clients_of(node) {
            let (now, fences_from) = (state.now, state.places + 1);
            let Some(one) = state.clients.get_mut(client) else { continue };
            if !one.is_cut || one.is_closed {
                continue;
            }
            one.is_cut = false;
            match &mut one.session {
                Session::Live { renewed_at } => *renewed_at = now,
                session @ Session::Ended { .. } => {
                    *session = Session::Live { renewed_at: now };
                    one.fences_from = fences_from;
                    one.events.push_back(ProviderEvent::SessionLost);
                }
            }
            if std::mem::take(&mut one.has_resigned) {
                state.leave_queue(|place| place.client == client);
            }
            state.greet(client);
        }
    }

    /// Ends the sessions of a node now. One that is connected gets a new one at once.
    pub fn expire(&self, node: &NodeId) {
        let mut state = self.lock();
        for client in state.clients_of(node) {
            state.end_session(client);
            let (now, fences_from) = (state.now, state.places + 1);
            let Some(one) = state.clients.get_mut(client) else { continue };
            if !one.is_cut && !one.is_closed {
                one.events.push_back(ProviderEvent::SessionLost);
                one.session = Session::Live { renewed_at: now };
                one.fences_from = fences_from;
                state.greet(client);
            }
        }
    }

    /// Whether the service still keeps a session of this node.
    pub fn has_session(&self, node: &NodeId) -> bool {
        let state = self.lock();
        state.clients.iter().any(|one| one.node == *node && matches!(one.session, Session::Live { .. }))
    }

    /// Takes the grant away from who holds it, without ending the session.
    pub fn revoke(&self) {
        let mut state = self.lock();
        if let Some(place) = state.queue.pop_front() {
            if let Some(one) = state.clients.get_mut(place.client) {
                one.events.push_back(ProviderEvent::GrantLost(place.fence));
            }
            state.queue_changed(1);
        }
    }

    /// What happens to the next write of this node.
    pub fn fail_next_write(&self, node: &NodeId, fault: WriteFault) {
        let mut state = self.lock();
        for client in state.clients_of(node) {
            if let Some(one) = state.clients.get_mut(client) {
                one.fault = Some(fault);
            }
        }
    }

    /// Lets the oldest delayed write arrive; whether there was one.
    pub fn deliver(&self) -> bool {
        let mut state = self.lock();
        let write = state.delayed.pop_front();
        write.map(|write| state.write(write)).is_some()
    }

    /// The record's bytes, past every fault.
    pub fn peek(&self) -> Option<Vec<u8>> {
        self.lock().record.as_ref().map(|(_, bytes)| bytes.clone())
    }

    /// The record as it is now, for [`roll_back`](Self::roll_back).
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.lock().record.clone())
    }

    /// Puts an earlier record in its place, as a restored backup would.
    pub fn roll_back(&self, snapshot: Snapshot) {
        let mut state = self.lock();
        state.record = snapshot.0;
        state.tell_all(&ProviderEvent::RecordChanged);
    }

    /// Loses the record.
    pub fn lose_record(&self) {
        self.roll_back(Snapshot(None));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of another test thread leaves plain values behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn clients_of(&self, node: &NodeId) -> Vec<usize> {
        (0..self.clients.len())
            .filter(|&client| self.clients.get(client).is_some_and(|one| one.node == *node))
            .collect()
    }

    fn is_live(&self, client: usize) -> bool {
        self.clients.get(client).is_some_and(|one| matches!(one.session, Session::Live { .. }))
    }

    fn tell_all(&mut self, event: &ProviderEvent) {
        for one in &mut self.clients {
            if !one.is_cut && !one.is_closed {
                one.events.push_back(event.clone());
            }
        }
        self.wake();
    }

    /// What a process hears when it has a connection.
    fn greet(&mut self, client: usize) {
        let grant = self.grant_event();
        if let Some(one) = self.clients.get_mut(client) {
            one.events.extend([ProviderEvent::Connected, grant]);
        }
        self.tell_all(&ProviderEvent::PresenceChanged);
    }

    fn grant_event(&self) -> ProviderEvent {
        if self.queue.is_empty() { ProviderEvent::GrantVacant } else { ProviderEvent::GrantHeld }
    }

    fn queue_changed(&mut self, length_before: usize) {
        if (length_before == 0) != self.queue.is_empty() {
            let event = self.grant_event();
            self.tell_all(&event);
        }
        self.wake();
    }

    fn leave_queue(&mut self, leaves: impl Fn(&Place) -> bool) {
        let length_before = self.queue.len();
        self.queue.retain(|place| !leaves(place));
        self.queue_changed(length_before);
    }

    fn end_session(&mut self, client: usize) {
        if let Some(one) = self.clients.get_mut(client)
            && let Session::Live { renewed_at } = one.session
        {
            one.session = Session::Ended { renewed_at };
        }
        self.leave_queue(|place| place.client == client);
        self.tell_all(&ProviderEvent::PresenceChanged);
    }

    fn write(&mut self, write: Write) -> CasResult {
        if write.fence.is_some_and(|fence| self.queue.front().map(|place| place.fence) != Some(fence)) {
            return CasResult::FenceLost;
        }
        if self.record.as_ref().map(|(revision, _)| *revision) != write.expected {
            return CasResult::Conflict;
        }
        self.order += 1;
        let revision = Revision { order: self.order, token: self.order };
        self.record = Some((revision, write.record));
        self.tell_all(&ProviderEvent::RecordChanged);
        CasResult::Applied(revision)
    }
}

/// One process's end of a [`Hub`].
#[derive(Debug)]
pub struct MemoryProvider {
    hub: Arc<Hub>,
    client: usize,
}

impl MemoryProvider {
    fn write(&self, write: Write) -> CasResult {
        let mut state = self.hub.lock();
        let Some(one) = state.clients.get_mut(self.client) else {
            return CasResult::Unknown("closed".to_owned());
        };
        if one.is_cut || one.is_closed {
            return CasResult::Unknown("no connection".to_owned());
        }
        let unanswered = CasResult::Unknown("the answer was lost".to_owned());
        match one.fault.take() {
            None => state.write(write),
            Some(WriteFault::Lost) => unanswered,
            Some(WriteFault::AppliedUnanswered) => {
                state.write(write);
                unanswered
            }
            Some(WriteFault::Delayed) => {
                state.delayed.push_back(write);
                unanswered
            }
        }
    }

    fn check_connection<T>(&self, get: impl FnOnce(&State) -> T) -> Result<T, ProviderError> {
        let state = self.hub.lock();
        match state.clients.get(self.client) {
            Some(one) if one.is_closed => Err(ProviderError::Closed),
            Some(one) if !one.is_cut => Ok(get(&state)),
            _ => Err(ProviderError::Unreachable("no connection".to_owned())),
        }
    }
}

impl Provider for MemoryProvider {
    fn read(&self) -> BoxFuture<'_, ReadResult> {
        Box::pin(async { self.check_connection(|state| state.record.clone()) })
    }

    fn create(&self, record: Vec<u8>) -> BoxFuture<'_, CasResult> {
        Box::pin(async { self.write(Write { expected: None, record, fence: None }) })
    }

    fn cas(&self, expected: Revision, record: Vec<u8>, fence: Option<Fence>) -> BoxFuture<'_, CasResult> {
        Box::pin(async move { self.write(Write { expected: Some(expected), record, fence }) })
    }

    fn campaign(&self) -> BoxFuture<'_, Result<Fence, ProviderError>> {
        Box::pin(async {
            // The campaign before is over, whether this one begins or not.
            self.resign().await;
            self.check_connection(|_| ())?;
            let place = {
                let mut state = self.hub.lock();
                state.places += 1;
                let place = Place { fence: Fence(state.places), client: self.client };
                let length_before = state.queue.len();
                state.queue.push_back(place);
                state.queue_changed(length_before);
                place
            };
            Campaign { hub: &self.hub, place, is_done: false }.await
        })
    }

    fn resign(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let mut state = self.hub.lock();
            match state.clients.get_mut(self.client) {
                Some(one) if one.is_cut => one.has_resigned = true,
                _ => state.leave_queue(|place| place.client == self.client),
            }
        })
    }

    fn publish(&self, presence: Vec<u8>) {
        let mut state = self.hub.lock();
        if let Some(one) = state.clients.get_mut(self.client) {
            one.presence = Some(presence);
        }
        state.tell_all(&ProviderEvent::PresenceChanged);
    }

    fn presence(&self) -> BoxFuture<'_, Result<Vec<Vec<u8>>, ProviderError>> {
        Box::pin(async {
            self.check_connection(|state| {
                let live = state.clients.iter().filter(|one| matches!(one.session, Session::Live { .. }));
                live.filter_map(|one| one.presence.clone()).collect()
            })
        })
    }

    fn next_event(&self) -> BoxFuture<'_, ProviderEvent> {
        Box::pin(poll_fn(|context| {
            let mut state = self.hub.lock();
            let one = state.clients.get_mut(self.client);
            match one.and_then(|one| one.events.pop_front()) {
                Some(event) => Poll::Ready(event),
                None => {
                    state.wakers.push(context.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }

    fn deadline(&self, fence: Fence) -> Millis {
        let state = self.hub.lock();
        let one = state.clients.get(self.client).filter(|one| fence.0 >= one.fences_from);
        match one.map(|one| one.session) {
            Some(Session::Live { renewed_at } | Session::Ended { renewed_at }) => {
                renewed_at + state.session_ms * (100 - DRIFT_PERCENT) / 100 - MARGIN_MS
            }
            None => Millis::MIN,
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { linearizable_cas: true, atomic_fence: true, lease: true, durable: true }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let mut state = self.hub.lock();
            state.end_session(self.client);
            if let Some(one) = state.clients.get_mut(self.client) {
                one.is_closed = true;
                one.events.push_back(ProviderEvent::Closed);
            }
            state.wake();
        })
    }
}

impl Drop for MemoryProvider {
    fn drop(&mut self) {
        // A process that is gone; its session ends when its time is over.
        let mut state = self.hub.lock();
        if let Some(one) = state.clients.get_mut(self.client) {
            one.is_cut = true;
            one.is_closed = true;
        }
    }
}

/// A place in the queue, left when this is dropped before it was granted.
struct Campaign<'a> {
    hub: &'a Hub,
    place: Place,
    is_done: bool,
}

impl Future for Campaign<'_> {
    type Output = Result<Fence, ProviderError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.hub.lock();
        let result = match state.queue.iter().position(|place| *place == self.place) {
            Some(0) => Ok(self.place.fence),
            None if state.is_live(self.place.client) => Err(ProviderError::Closed),
            None => Err(ProviderError::SessionLost),
            Some(_) => {
                state.wakers.push(context.waker().clone());
                return Poll::Pending;
            }
        };
        drop(state);
        self.is_done = true;
        Poll::Ready(result)
    }
}

impl Drop for Campaign<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            self.hub.lock().leave_queue(|place| *place == self.place);
        }
    }
}
