//! What flows between clients, broker and store: messages, destinations, identities.
//!
//! A [`Message`] is cheap to make and to clone: texts and bodies are views into the buffer that they were read from.
//! [`stored`] is the one form in which messages, acknowledgements and subscriptions lie in the journal (OpenWire version
//! 11, loose encoding, `kahadb-format.md` §5). [`properties`] holds message properties and map bodies; [`body`] converts
//! bodies between what clients speak and what is stored.

pub mod body;
mod destination;
mod error;
pub mod front;
mod id;
pub mod loose;
pub mod properties;
mod scan;
pub mod storage;
pub mod stored;

use bytes::Bytes;
pub use bytestring::ByteString as Text;
pub use destination::{Destination, DestinationKind};
pub use error::StoredError;
pub use id::{ConsumerId, MessageId, ProducerId, TransactionId, Xid};
pub use kahawai_types::Millis;

/// Which of JMS's message types a message is, with OpenWire's type numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum BodyKind {
    /// No body.
    Plain = 23,
    /// Raw bytes.
    #[default]
    Bytes = 24,
    /// Names with typed values.
    Map = 25,
    /// A serialized Java object, opaque to us.
    Object = 26,
    /// Typed values in a row.
    Stream = 27,
    /// A text.
    Text = 28,
    /// A reference to content elsewhere.
    Blob = 29,
}

/// The body of a message.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Content {
    /// No content, which is not the same as empty content.
    #[default]
    Absent,
    /// As it is stored: OpenWire's form for the [`BodyKind`], compressed if [`Message::compressed`] says so.
    Marshalled(Bytes),
    /// The text of a [`BodyKind::Text`] message in standard UTF-8, uncompressed, without the length that storing adds.
    Utf8(Text),
}

/// JMS's default priority.
pub const DEFAULT_PRIORITY: u8 = 4;

/// A message, whatever protocol it came by.
///
/// Fields have the meaning of the JMS header of the same name; times are milliseconds since 1970, 0 = not set.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Message {
    /// Who sent it and as its how-manieth.
    pub id: MessageId,
    /// Where it is now.
    pub destination: Destination,
    /// Where it was sent before a dead-letter queue or a virtual topic took it.
    pub original_destination: Option<Destination>,
    /// The transaction it was sent in.
    pub transaction_id: Option<TransactionId>,
    /// The transaction it was sent in before it was moved.
    pub original_transaction_id: Option<TransactionId>,
    /// `JMSXGroupID`.
    pub group_id: Option<Text>,
    /// `JMSXGroupSeq`.
    pub group_sequence: i32,
    /// `JMSCorrelationID`.
    pub correlation_id: Option<Text>,
    /// `JMSDeliveryMode`.
    pub persistent: bool,
    /// When it expires; 0 = never.
    pub expiration_ms: Millis,
    /// 0 to 9.
    pub priority: u8,
    /// `JMSReplyTo`.
    pub reply_to: Option<Destination>,
    /// When it was sent.
    pub timestamp_ms: Millis,
    /// `JMSType`.
    pub jms_type: Option<Text>,
    /// What the body is.
    pub kind: BodyKind,
    /// The body.
    pub content: Content,
    /// Whether `content` is a zlib stream.
    pub compressed: bool,
    /// Marshalled properties (see [`properties`]); `None` = there are none.
    pub properties: Option<Bytes>,
    /// How many times it was delivered before without an acknowledgement.
    pub redelivery_counter: i32,
    /// `JMSXUserID`.
    pub user_id: Option<Text>,
    /// When the broker took it.
    pub broker_in_time_ms: Millis,
    /// When the broker sent it out.
    pub broker_out_time_ms: Millis,
    /// Broker-side arrival time that some clients read.
    pub arrival_ms: Millis,
    /// Upstream's mark of messages stored by concurrent store and dispatch.
    pub received_by_df_bridge: bool,
    /// May be dropped by a slow network connection.
    pub droppable: bool,
    /// First of its group that this consumer sees.
    pub group_first_for_consumer: bool,
    /// OpenWire's command id of the send, kept as it came.
    pub command_id: i32,
    /// OpenWire's mark that the sender waits for a response, kept as it came.
    pub response_required: bool,
    /// OpenWire objects that we keep but do not read: data structure, target consumer, broker path, cluster.
    pub opaque: Option<Box<stored::OpaqueFields>>,
}

impl Message {
    /// Copies what is a view into somebody else's buffer, so that a message kept for long holds no more memory than it is
    /// large: a body of ten bytes may be a view into half a megabyte that was read from a socket.
    pub fn detach(&mut self) {
        fn text(text: &mut Text) {
            *text = Text::from(&**text);
        }
        fn bytes(bytes: &mut Bytes) {
            *bytes = Bytes::copy_from_slice(bytes);
        }
        match &mut self.content {
            Content::Absent => {}
            Content::Marshalled(content) => bytes(content),
            Content::Utf8(content) => text(content),
        }
        self.properties.iter_mut().for_each(bytes);
        text(&mut self.destination.name);
        text(&mut self.id.producer.connection);
        let destinations = [&mut self.original_destination, &mut self.reply_to];
        destinations.into_iter().flatten().for_each(|destination| text(&mut destination.name));
        let texts = [
            &mut self.id.text_view,
            &mut self.group_id,
            &mut self.correlation_id,
            &mut self.jms_type,
            &mut self.user_id,
        ];
        texts.into_iter().flatten().for_each(text);
    }

    /// Has it expired at `now`?
    pub fn is_expired(&self, now: Millis) -> bool {
        self.expiration_ms > 0 && now >= self.expiration_ms
    }
}
