use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use kahawai_types::Millis;

/// What a provider's operations return: boxed, so that the trait has no opinion about runtimes.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A state of the record, as the service counts them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Revision {
    /// Grows with every write, also across restarts of the service.
    pub order: u64,
    /// What the service compares. Only meaningful to the provider.
    pub token: u64,
}

/// A grant that was won: the right to be the only one that writes with it. Unforgeable, and void once the session that
/// won it has ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fence(pub u64);

/// What became of a compare-and-set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CasResult {
    /// It is done, and the record is at this revision.
    Applied(Revision),
    /// Not done, and never will be: the record was at another revision, or there already was (or was not) one.
    Conflict,
    /// Not done, and never will be: the grant is void.
    FenceLost,
    /// Done, not done, or still on its way. Repeating *the same* one on the same revision finds out.
    Unknown(String),
}

/// Why the service did not answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProviderError {
    /// No connection now. Nothing is known to have ended.
    #[error("the election service does not answer: {0}")]
    Unreachable(String),
    /// The session ended, and all that belongs to it.
    #[error("the session with the election service has ended")]
    SessionLost,
    /// The service refuses, and will again.
    #[error("the election service refuses: {0}")]
    Refused(String),
    /// The provider was closed, or the campaign was given up.
    #[error("closed")]
    Closed,
}

/// What a read finds: the record's bytes and its revision, or that there is none.
pub type ReadResult = Result<Option<(Revision, Vec<u8>)>, ProviderError>;

/// What happened at the service. A hint: who receives it reads again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProviderEvent {
    /// A session exists, a new one or the old one again. Anything may have been missed.
    Connected,
    /// The record may have changed.
    RecordChanged,
    /// Somebody came, went, or says something else about itself.
    PresenceChanged,
    /// Nobody holds the grant or waits for it. Repeated after each `Connected`.
    GrantVacant,
    /// Somebody holds the grant, possibly we. Repeated after each `Connected`.
    GrantHeld,
    /// Our grant is gone although the session lives.
    GrantLost(Fence),
    /// No connection. The grant, if there is one, is good until [`Provider::deadline`].
    Suspended,
    /// The session has ended: grant, place in the queue and presence are gone. A new one is made.
    SessionLost,
    /// The provider was closed. Nothing follows.
    Closed,
}

/// What a service offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Compare-and-set on the record is linearizable.
    pub linearizable_cas: bool,
    /// It is checked in one step with the grant.
    pub atomic_fence: bool,
    /// A grant ends by itself when its holder is gone.
    pub lease: bool,
    /// The record survives restarts of the service.
    pub durable: bool,
}

impl Capabilities {
    /// What a cluster with more than one copy of the data cannot do without, if it is missing.
    pub fn missing(self) -> Option<&'static str> {
        [
            (self.linearizable_cas, "a linearizable compare-and-set"),
            (self.atomic_fence, "a compare-and-set that checks the grant in the same step"),
            (self.lease, "a grant that ends with its holder"),
            (self.durable, "a record that survives a restart"),
        ]
        .into_iter()
        .find_map(|(has, what)| (!has).then_some(what))
    }
}

/// An election service, as one process sees it: one record with compare-and-set, one exclusive grant with a queue, and
/// who is present. [`conformance`](crate::conformance) tells what every implementation must do.
///
/// It makes its session, and a new one after each that ends, by itself. Operations may be called at any time; those that
/// need the service while it is away answer `Unreachable` or `Unknown` after a bounded time.
pub trait Provider: Send + Sync + 'static {
    /// The record as it is now or later than the call: never as it was before.
    fn read(&self) -> BoxFuture<'_, ReadResult>;

    /// Makes the record. `Conflict` if there is one.
    fn create(&self, record: Vec<u8>) -> BoxFuture<'_, CasResult>;

    /// Replaces the record if it is at `expected`, and, with a fence, if that grant is still valid: in one step of the
    /// service.
    fn cas(&self, expected: Revision, record: Vec<u8>, fence: Option<Fence>) -> BoxFuture<'_, CasResult>;

    /// Enters the queue for the grant; done when it is granted. Dropping the future, [`resign`](Self::resign) and the
    /// end of the session leave the queue. One at a time: the next call replaces the one before.
    fn campaign(&self) -> BoxFuture<'_, Result<Fence, ProviderError>>;

    /// Gives the grant back or leaves the queue: from now on nothing is written with it here. Without a connection the
    /// service hears it with the next one; the end of the session does the same.
    fn resign(&self) -> BoxFuture<'_, ()>;

    /// Says this about us from now on, in this session and those to come.
    fn publish(&self, presence: Vec<u8>);

    /// What everybody who is present says.
    fn presence(&self) -> BoxFuture<'_, Result<Vec<Vec<u8>>, ProviderError>>;

    /// The next thing that happened. One caller at a time; dropping the future loses nothing.
    fn next_event(&self) -> BoxFuture<'_, ProviderEvent>;

    /// Until when, on this machine's boot clock, nobody else can hold the grant that we won as `fence`. `Millis::MIN` or what
    /// it was once the session that won it has ended or the grant was given back, whatever a later session holds;
    /// `Millis::MAX` where grants never end.
    fn deadline(&self, fence: Fence) -> Millis;

    /// What the service offers.
    fn capabilities(&self) -> Capabilities;

    /// Ends the session in good order, so that nobody waits for it to expire.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Shared by those who use it.
impl<P: Provider + ?Sized> Provider for Arc<P> {
    fn read(&self) -> BoxFuture<'_, ReadResult> {
        (**self).read()
    }

    fn create(&self, record: Vec<u8>) -> BoxFuture<'_, CasResult> {
        (**self).create(record)
    }

    fn cas(&self, expected: Revision, record: Vec<u8>, fence: Option<Fence>) -> BoxFuture<'_, CasResult> {
        (**self).cas(expected, record, fence)
    }

    fn campaign(&self) -> BoxFuture<'_, Result<Fence, ProviderError>> {
        (**self).campaign()
    }

    fn resign(&self) -> BoxFuture<'_, ()> {
        (**self).resign()
    }

    fn publish(&self, presence: Vec<u8>) {
        (**self).publish(presence);
    }

    fn presence(&self) -> BoxFuture<'_, Result<Vec<Vec<u8>>, ProviderError>> {
        (**self).presence()
    }

    fn next_event(&self) -> BoxFuture<'_, ProviderEvent> {
        (**self).next_event()
    }

    fn deadline(&self, fence: Fence) -> Millis {
        (**self).deadline(fence)
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        (**self).close()
    }
}
