use std::fmt;

use crate::Text;

/// Queue or topic, lasting or temporary, with the number that KahaDB stores.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum DestinationKind {
    /// Each message goes to one consumer.
    #[default]
    Queue = 0,
    /// Each message goes to every subscriber.
    Topic = 1,
    /// A queue that ends with its connection.
    TempQueue = 2,
    /// A topic that ends with its connection.
    TempTopic = 3,
}

impl DestinationKind {
    /// All kinds, by number.
    pub const ALL: [Self; 4] = [Self::Queue, Self::Topic, Self::TempQueue, Self::TempTopic];

    /// The kind with KahaDB's number `number`.
    pub fn from_number(number: i32) -> Option<Self> {
        usize::try_from(number).ok().and_then(|n| Self::ALL.get(n)).copied()
    }

    /// Queue or temporary queue?
    pub const fn is_queue(self) -> bool {
        matches!(self, Self::Queue | Self::TempQueue)
    }

    /// Ends with the connection that made it?
    pub const fn is_temporary(self) -> bool {
        matches!(self, Self::TempQueue | Self::TempTopic)
    }

    /// The scheme of the qualified name, `queue` in `queue://ORDERS`.
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Topic => "topic",
            Self::TempQueue => "temp-queue",
            Self::TempTopic => "temp-topic",
        }
    }
}

/// A queue or topic by its physical name. The name may be a pattern or a list where a client subscribes or sends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Destination {
    /// What it is.
    pub kind: DestinationKind,
    /// Physical name: without scheme and without `?options`, any characters.
    pub name: Text,
}

impl Destination {
    /// The destination of this kind and name.
    pub fn new(kind: DestinationKind, name: impl Into<Text>) -> Self {
        Self { kind, name: name.into() }
    }

    /// A queue.
    pub fn queue(name: impl Into<Text>) -> Self {
        Self::new(DestinationKind::Queue, name)
    }

    /// A topic.
    pub fn topic(name: impl Into<Text>) -> Self {
        Self::new(DestinationKind::Topic, name)
    }

    /// Reads a qualified name, `topic://PRICES`; without a scheme it is a queue, as in ActiveMQ.
    pub fn from_qualified(text: &str) -> Self {
        for kind in DestinationKind::ALL {
            if let Some(name) = text.strip_prefix(kind.scheme()).and_then(|rest| rest.strip_prefix("://")) {
                return Self::new(kind, name);
            }
        }
        Self::queue(text)
    }
}

/// The qualified name: `queue://ORDERS`.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.kind.scheme(), self.name)
    }
}
