use bytes::{BufMut, BytesMut};
use kahawai_message::{Destination, MessageId, TransactionId};
use kahawai_wire::{put_varint64, varint64_len};

use super::{Command, Subscription};
use crate::decimal::{decimal_len, put_decimal};
use crate::protobuf::{
    bytes_field_len, int64_field_len, put_bool_field, put_bytes_field, put_bytes_header, put_int64_field,
    replace_varint,
};

/// Guess for the size of a stored MessageAck. Any guess of the right varint width does: nothing moves then.
const ACK_BYTES_GUESS: usize = 256;

/// Name of a message in records: the producer key, as a text that exists or to be written from the parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MessageKey<'a> {
    /// Written as `connection:session:value:sequence`, without a text in between.
    Id(&'a MessageId),
    /// As read from another record.
    Text(&'a str),
}

impl<'a> From<&'a MessageId> for MessageKey<'a> {
    fn from(id: &'a MessageId) -> Self {
        Self::Id(id)
    }
}

impl<'a> From<&'a str> for MessageKey<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl MessageKey<'_> {
    fn len(self) -> usize {
        match self {
            Self::Id(id) => {
                let producer = &id.producer;
                producer.connection.len()
                    + 3
                    + decimal_len(producer.session)
                    + decimal_len(producer.value)
                    + decimal_len(id.sequence)
            }
            Self::Text(text) => text.len(),
        }
    }

    fn put(self, out: &mut BytesMut) {
        match self {
            Self::Id(id) => {
                out.extend_from_slice(id.producer.connection.as_bytes());
                for number in [id.producer.session, id.producer.value, id.sequence] {
                    out.put_u8(b':');
                    put_decimal(number, out);
                }
            }
            Self::Text(text) => out.extend_from_slice(text.as_bytes()),
        }
    }
}

/// Everything of an add or update command but the message itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddHeader<'a> {
    /// Present = takes effect with that transaction's commit. Never in an update.
    pub transaction: Option<&'a TransactionId>,
    /// Where the message belongs.
    pub destination: &'a Destination,
    /// Its producer key.
    pub message_key: MessageKey<'a>,
    /// Its priority, 0 to 9.
    pub priority: i32,
    /// Whether the destination's policy has prioritized messages.
    pub priority_supported: bool,
}

/// Everything of a remove command but the acknowledgement itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoveHeader<'a> {
    /// Present = takes effect with that transaction's commit.
    pub transaction: Option<&'a TransactionId>,
    /// The message's destination.
    pub destination: &'a Destination,
    /// Its producer key.
    pub message_key: MessageKey<'a>,
    /// Topic only: whose acknowledgement, `clientId:subscriptionName`.
    pub subscription_key: Option<&'a str>,
}

/// Appends an add command (type 1). `message` appends the stored OpenWire message to the buffer it gets, and nothing else.
///
/// `message_bytes_hint` is a guess of what `message` will append. It is free while it has the varint width of the true
/// size (below 128, 16 384, 2 097 152 ... bytes); otherwise the message is moved once or twice by a byte or two.
pub fn encode_add(
    header: &AddHeader<'_>,
    message_bytes_hint: usize,
    message: impl FnOnce(&mut BytesMut),
    out: &mut BytesMut,
) {
    encode_message(1, header, message_bytes_hint, message, out);
}

/// Appends an update command (type 10): the stored message is replaced and keeps its sequence. Otherwise as [`encode_add`].
pub fn encode_update(
    header: &AddHeader<'_>,
    message_bytes_hint: usize,
    message: impl FnOnce(&mut BytesMut),
    out: &mut BytesMut,
) {
    encode_message(10, header, message_bytes_hint, message, out);
}

fn encode_message(
    command: u8,
    header: &AddHeader<'_>,
    hint: usize,
    message: impl FnOnce(&mut BytesMut),
    out: &mut BytesMut,
) {
    let head = reference_len(header.transaction, header.destination, header.message_key);
    let tail = int64_field_len(header.priority.into()) + 2;
    out.reserve(head + tail + hint + 32);
    out.put_u8(command);
    let guess = Lengths::of(head, hint, tail, command == 10);
    let places = guess.put_outer(out);
    put_reference(header.transaction, header.destination, header.message_key, out);
    guess.put_payload(4, out, places, message, |out| {
        put_int64_field(5, header.priority.into(), out);
        put_bool_field(6, header.priority_supported, out);
    });
}

/// Appends a remove command (type 2). `ack` appends the stored OpenWire MessageAck, or nothing for a message that the
/// subscription's selector or noLocal dropped.
pub fn encode_remove(header: &RemoveHeader<'_>, ack: impl FnOnce(&mut BytesMut), out: &mut BytesMut) {
    encode_remove_hinted(header, ACK_BYTES_GUESS, ack, out);
}

fn encode_remove_hinted(
    header: &RemoveHeader<'_>,
    hint: usize,
    ack: impl FnOnce(&mut BytesMut),
    out: &mut BytesMut,
) {
    let head = reference_len(header.transaction, header.destination, header.message_key);
    let tail = header.subscription_key.map_or(0, |key| bytes_field_len(key.len()));
    out.reserve(head + tail + hint + 32);
    out.put_u8(2);
    let guess = Lengths::of(head, hint, tail, false);
    let places = guess.put_outer(out);
    put_reference(header.transaction, header.destination, header.message_key, out);
    guess.put_payload(4, out, places, ack, |out| put_subscription_key(5, header.subscription_key, out));
}

fn put_subscription_key(field: u8, key: Option<&str>, out: &mut BytesMut) {
    if let Some(key) = key {
        put_bytes_field(field, key.as_bytes(), out);
    }
}

/// The lengths that stand before a payload of unknown size: of the command, in an update of the message inside it, and
/// of the payload. Written as guessed, and corrected once the payload is there.
///
/// ```text
/// | type | outer | (update: tag | inner) | head fields | tag | payload length | payload | tail fields |
/// ```
#[derive(Clone, Copy)]
struct Lengths {
    head: usize,
    tail: usize,
    payload: usize,
    inner: Option<usize>,
    outer: usize,
}

/// Where [`Lengths::put_outer`] put its varints.
#[derive(Clone, Copy)]
struct Places {
    outer: usize,
    inner: usize,
}

impl Lengths {
    fn of(head: usize, payload: usize, tail: usize, nested: bool) -> Self {
        let body = head + bytes_field_len(payload) + tail;
        let (inner, outer) = if nested { (Some(body), bytes_field_len(body)) } else { (None, body) };
        Self { head, tail, payload, inner, outer }
    }

    fn put_outer(self, out: &mut BytesMut) -> Places {
        let outer = out.len();
        put_varint64(self.outer as u64, out);
        let inner = out.len() + 1;
        if let Some(length) = self.inner {
            put_bytes_header(1, length, out);
        }
        Places { outer, inner }
    }

    fn put_payload(
        self,
        field: u8,
        out: &mut BytesMut,
        places: Places,
        payload: impl FnOnce(&mut BytesMut),
        tail: impl FnOnce(&mut BytesMut),
    ) {
        let length_at = out.len() + 1;
        put_bytes_header(field, self.payload, out);
        let from = out.len();
        payload(out);
        let actual = out.len() - from;
        tail(out);
        if actual == self.payload {
            return;
        }
        // From the back, so that the places before stay where they are.
        let actual = Self::of(self.head, actual, self.tail, self.inner.is_some());
        replace_varint(out, length_at, self.payload, actual.payload);
        if let (Some(old), Some(new)) = (self.inner, actual.inner) {
            replace_varint(out, places.inner, old, new);
        }
        replace_varint(out, places.outer, self.outer, actual.outer);
    }
}

/// Appends a prepare command (type 3).
pub fn encode_prepare(transaction: &TransactionId, out: &mut BytesMut) {
    encode_outcome(3, transaction, out);
}

/// Appends a commit command (type 4).
pub fn encode_commit(transaction: &TransactionId, out: &mut BytesMut) {
    encode_outcome(4, transaction, out);
}

/// Appends a rollback command (type 5).
pub fn encode_rollback(transaction: &TransactionId, out: &mut BytesMut) {
    encode_outcome(5, transaction, out);
}

fn encode_outcome(command: u8, transaction: &TransactionId, out: &mut BytesMut) {
    put_command(command, bytes_field_len(transaction_info_len(transaction)), out);
    put_transaction_info(transaction, out);
}

/// Appends the removal of a destination with all its state (type 6).
pub fn encode_remove_destination(destination: &Destination, out: &mut BytesMut) {
    put_command(6, bytes_field_len(destination_len(destination)), out);
    put_destination(1, destination, out);
}

/// Appends the creation of a durable subscription (type 7), or its removal if there is no `info` (the stored OpenWire
/// SubscriptionInfo). `retroactive` is written with `info` only.
pub fn encode_subscription(
    destination: &Destination,
    subscription_key: &str,
    retroactive: bool,
    info: Option<&[u8]>,
    out: &mut BytesMut,
) {
    let length = bytes_field_len(destination_len(destination))
        + bytes_field_len(subscription_key.len())
        + info.map_or(0, |info| 2 + bytes_field_len(info.len()));
    put_command(7, length, out);
    put_destination(1, destination, out);
    put_bytes_field(2, subscription_key.as_bytes(), out);
    if let Some(info) = info {
        put_bool_field(3, retroactive, out);
        put_bytes_field(4, info, out);
    }
}

/// Appends a trace command (type 0), which no replay heeds.
pub fn encode_trace(text: Option<&str>, out: &mut BytesMut) {
    put_command(0, text.map_or(0, |text| bytes_field_len(text.len())), out);
    if let Some(text) = text {
        put_bytes_field(1, text.as_bytes(), out);
    }
}

/// Appends any command, in the form of the special functions.
pub fn encode(command: &Command, out: &mut BytesMut) {
    let number = command.type_byte();
    match command {
        Command::Trace { text } => encode_trace(text.as_deref(), out),
        Command::AddMessage(add) | Command::UpdateMessage(add) => {
            let header = AddHeader {
                transaction: add.transaction.as_ref(),
                destination: &add.destination,
                message_key: MessageKey::Text(&add.message_key),
                priority: add.priority,
                priority_supported: add.priority_supported,
            };
            let message = |out: &mut BytesMut| out.extend_from_slice(&add.message);
            encode_message(number, &header, add.message.len(), message, out);
        }
        Command::RemoveMessage(remove) => {
            let header = RemoveHeader {
                transaction: remove.transaction.as_ref(),
                destination: &remove.destination,
                message_key: MessageKey::Text(&remove.message_key),
                subscription_key: remove.subscription_key.as_deref(),
            };
            match &remove.ack {
                Some(ack) => {
                    encode_remove_hinted(&header, ack.len(), |out| out.extend_from_slice(ack), out);
                }
                None => encode_remove_without_ack(&header, out),
            }
        }
        Command::Prepare(transaction) | Command::Commit(transaction) | Command::Rollback(transaction) => {
            encode_outcome(number, transaction, out);
        }
        Command::RemoveDestination(destination) => encode_remove_destination(destination, out),
        Command::Subscription(Subscription { destination, subscription_key, retroactive, info }) => {
            encode_subscription(destination, subscription_key, *retroactive, info.as_deref(), out);
        }
        Command::ProducerAudit(bytes) | Command::AckMessageFileMap(bytes) => {
            put_command(number, bytes_field_len(bytes.len()), out);
            put_bytes_field(1, bytes, out);
        }
        Command::AddScheduledJob(job) => encode_fields(
            number,
            &[
                (1, Field::Bytes(job.scheduler.as_bytes())),
                (2, Field::Bytes(job.job_id.as_bytes())),
                (3, Field::Number(job.start_ms)),
                (4, Field::Bytes(job.cron_entry.as_bytes())),
                (5, Field::Number(job.delay_ms)),
                (6, Field::Number(job.period_ms)),
                (7, Field::Number(job.repeat.into())),
                (8, Field::Bytes(&job.payload)),
                (9, Field::Number(job.next_execution_ms)),
            ],
            out,
        ),
        Command::RescheduleJob(job) => encode_fields(
            number,
            &[
                (1, Field::Bytes(job.scheduler.as_bytes())),
                (2, Field::Bytes(job.job_id.as_bytes())),
                (3, Field::Number(job.execution_ms)),
                (4, Field::Number(job.next_execution_ms)),
                (5, Field::Number(job.rescheduled_count.into())),
            ],
            out,
        ),
        Command::RemoveScheduledJob(job) => encode_fields(
            number,
            &[
                (1, Field::Bytes(job.scheduler.as_bytes())),
                (2, Field::Bytes(job.job_id.as_bytes())),
                (3, Field::Number(job.next_execution_ms.unwrap_or(-1))),
            ],
            out,
        ),
        Command::RemoveScheduledJobs(jobs) => encode_fields(
            number,
            &[
                (1, Field::Bytes(jobs.scheduler.as_bytes())),
                (2, Field::Number(jobs.start_ms)),
                (3, Field::Number(jobs.last_ms)),
            ],
            out,
        ),
        Command::DestroyScheduler { scheduler } => {
            encode_fields(number, &[(1, Field::Bytes(scheduler.as_bytes()))], out);
        }
        Command::RewrittenDataFile(file) => {
            let fields = [
                (1, Field::Number(file.source_file.cast_signed().into())),
                (2, Field::Number(file.rewrite_type.into())),
                (3, Field::Number(file.skip_if_source_exists.unwrap_or_default().into())),
            ];
            let written = if file.skip_if_source_exists.is_some() { 3 } else { 2 };
            encode_fields(number, fields.get(..written).unwrap_or_default(), out);
        }
    }
}

/// A remove whose acknowledgement field is missing: read from elsewhere, written again as it was.
fn encode_remove_without_ack(header: &RemoveHeader<'_>, out: &mut BytesMut) {
    let head = reference_len(header.transaction, header.destination, header.message_key);
    put_command(2, head + header.subscription_key.map_or(0, |key| bytes_field_len(key.len())), out);
    put_reference(header.transaction, header.destination, header.message_key, out);
    put_subscription_key(5, header.subscription_key, out);
}

#[derive(Clone, Copy)]
enum Field<'a> {
    Bytes(&'a [u8]),
    Number(i64),
}

fn encode_fields(command: u8, fields: &[(u8, Field<'_>)], out: &mut BytesMut) {
    let length = fields
        .iter()
        .map(|(_, field)| match field {
            Field::Bytes(bytes) => bytes_field_len(bytes.len()),
            Field::Number(number) => int64_field_len(*number),
        })
        .sum();
    put_command(command, length, out);
    for &(number, field) in fields {
        match field {
            Field::Bytes(bytes) => put_bytes_field(number, bytes, out),
            Field::Number(value) => put_int64_field(number, value, out),
        }
    }
}

/// Appends type byte and length, and makes room for the rest.
fn put_command(command: u8, length: usize, out: &mut BytesMut) {
    out.reserve(length + 11);
    out.put_u8(command);
    put_varint64(length as u64, out);
}

/// Fields 1 to 3, which adds and removes share.
fn reference_len(
    transaction: Option<&TransactionId>,
    destination: &Destination,
    key: MessageKey<'_>,
) -> usize {
    transaction.map_or(0, |transaction| bytes_field_len(transaction_info_len(transaction)))
        + bytes_field_len(destination_len(destination))
        + bytes_field_len(key.len())
}

fn put_reference(
    transaction: Option<&TransactionId>,
    destination: &Destination,
    key: MessageKey<'_>,
    out: &mut BytesMut,
) {
    if let Some(transaction) = transaction {
        put_transaction_info(transaction, out);
    }
    put_destination(2, destination, out);
    put_bytes_header(3, key.len(), out);
    key.put(out);
}

fn destination_len(destination: &Destination) -> usize {
    2 + bytes_field_len(destination.name.len())
}

fn put_destination(field: u8, destination: &Destination, out: &mut BytesMut) {
    put_bytes_header(field, destination_len(destination), out);
    put_int64_field(1, destination.kind as i64, out);
    put_bytes_field(2, destination.name.as_bytes(), out);
}

/// Length of the local or XA id inside a TransactionInfo.
fn transaction_id_len(transaction: &TransactionId) -> usize {
    match transaction {
        TransactionId::Local { connection, value } => {
            bytes_field_len(connection.len()) + int64_field_len(*value)
        }
        TransactionId::Xa(xid) => {
            int64_field_len(xid.format_id.into())
                + bytes_field_len(xid.branch.len())
                + bytes_field_len(xid.global.len())
        }
    }
}

fn transaction_info_len(transaction: &TransactionId) -> usize {
    bytes_field_len(transaction_id_len(transaction))
}

/// Appends field 1 of a command: the TransactionInfo. It has number 1 wherever it occurs.
fn put_transaction_info(transaction: &TransactionId, out: &mut BytesMut) {
    let length = transaction_id_len(transaction);
    put_bytes_header(1, varint64_len(length as u64) + 1 + length, out);
    match transaction {
        TransactionId::Local { connection, value } => {
            put_bytes_header(1, length, out);
            put_bytes_field(1, connection.as_bytes(), out);
            // Number 1 again: upstream's schema has both fields under it.
            put_int64_field(1, *value, out);
        }
        TransactionId::Xa(xid) => {
            put_bytes_header(2, length, out);
            put_int64_field(1, xid.format_id.into(), out);
            put_bytes_field(2, &xid.branch, out);
            put_bytes_field(3, &xid.global, out);
        }
    }
}
