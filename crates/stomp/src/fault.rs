use crate::decode::DecodeError;
use crate::destination::DestinationError;

/// Why a frame is answered with ERROR.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("malformed frame: {0}")]
    Malformed(#[from] DecodeError),
    #[error("{0} is for servers to send")]
    ServersCommand(&'static str),
    #[error("{0} before CONNECT")]
    NotConnected(&'static str),
    #[error("none of the versions '{0}' is spoken here")]
    Version(String),
    #[error("heart-beat '{0}' is not two numbers of milliseconds")]
    HeartBeat(String),
    #[error("already connected")]
    AlreadyConnected,
    #[error("{command} without a header {header}")]
    Missing { command: &'static str, header: &'static str },
    #[error("header {header} is not a number: '{value}'")]
    Number { header: String, value: String },
    #[error("header amq-msg-type is '{0}', neither text nor bytes")]
    MessageType(String),
    #[error("property {name} cannot be kept: {cause}")]
    Property { name: String, cause: String },
    #[error(transparent)]
    Destination(#[from] DestinationError),
    #[error("{feature} needs STOMP {since} or later")]
    TooOld { feature: &'static str, since: &'static str },
    #[error("a durable subscription is to topics, not to queues")]
    DurableQueue,
    #[error("no such subscription")]
    NoSubscription,
    #[error("NACK of a message that was only browsed")]
    NackOfBrowser,
    #[error("Unexpected {command} received for message-id [{id}]")]
    NotInFlight { command: &'static str, id: String },
    #[error("no transaction '{0}' is open")]
    NoTransaction(String),
    #[error("transaction '{0}' is open already")]
    TransactionOpen(String),
    #[error("more than {limit} {what} on one connection")]
    Limit { what: &'static str, limit: usize },
}

impl Fault {
    /// Nothing sensible can follow. Like ActiveMQ, and unlike the specification, we go on after any other.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Malformed(_)
                | Self::ServersCommand(_)
                | Self::NotConnected(_)
                | Self::Version(_)
                | Self::HeartBeat(_)
        )
    }
}
