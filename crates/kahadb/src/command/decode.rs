use bytes::Bytes;
use kahawai_message::{Destination, DestinationKind, Text, TransactionId, Xid};
use kahawai_wire::WireError;

use super::{
    AddMessage, AddScheduledJob, Command, RemoveMessage, RemoveScheduledJob, RemoveScheduledJobs,
    RescheduleJob, RewrittenDataFile, Subscription,
};
use crate::protobuf::{Fields, Value, int32, int64, offset, text, varint};

/// Why the payload of a user record is not a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Not even a type byte.
    #[error("empty record")]
    Empty,
    /// A type that upstream does not have.
    #[error("unknown command type {0}")]
    UnknownType(u8),
    /// The length after the type byte is malformed, or not what is there.
    #[error("command type {command} declares {declared:?} bytes, {available} are there")]
    Length {
        /// The type byte.
        command: u8,
        /// As declared; `None` = malformed.
        declared: Option<u64>,
        /// What follows the length.
        available: usize,
    },
    /// A nested message that upstream cannot do without either.
    #[error("command type {command} has no {field}")]
    Missing {
        /// The type byte.
        command: u8,
        /// What is missing.
        field: &'static str,
    },
    /// Malformed protobuf.
    #[error("command type {command}, message at byte {message_at}")]
    Malformed {
        /// The type byte.
        command: u8,
        /// Where the (nested) message begins in the record's payload; positions in `source` count from there.
        message_at: usize,
        /// What is wrong.
        source: WireError,
    },
}

/// The type byte of a payload, without looking further.
pub fn command_type(payload: &[u8]) -> Option<u8> {
    payload.first().copied()
}

/// Reads the payload of a user record. Texts and byte fields are views into it.
///
/// Tolerates any field order, repeated fields (the last counts), unknown fields, and missing numbers and texts (0, 4 for
/// the priority, empty). A missing destination or transaction is an error: nobody could know what the record refers to.
pub fn decode(payload: Bytes) -> Result<Command, CommandError> {
    let (&command, rest) = payload.split_first().ok_or(CommandError::Empty)?;
    if command > 16 {
        return Err(CommandError::UnknownType(command));
    }
    let (declared, width) =
        varint(rest).ok_or(CommandError::Length { command, declared: None, available: rest.len() })?;
    let body = rest.get(width..).unwrap_or_default();
    if u64::try_from(body.len()) != Ok(declared) {
        return Err(CommandError::Length { command, declared: Some(declared), available: body.len() });
    }
    let decoder = Decoder { whole: &payload, command };
    Ok(match command {
        0 => Command::Trace { text: decoder.trace(body)? },
        1 => Command::AddMessage(decoder.add(body)?),
        2 => Command::RemoveMessage(decoder.remove(body)?),
        3 => Command::Prepare(decoder.only_transaction(body)?),
        4 => Command::Commit(decoder.only_transaction(body)?),
        5 => Command::Rollback(decoder.only_transaction(body)?),
        6 => Command::RemoveDestination(decoder.destination(decoder.only_bytes(body, "destination")?)?),
        7 => Command::Subscription(decoder.subscription(body)?),
        8 => Command::ProducerAudit(decoder.optional_bytes(body)?),
        9 => Command::AckMessageFileMap(decoder.optional_bytes(body)?),
        10 => Command::UpdateMessage(decoder.add(decoder.only_bytes(body, "message")?)?),
        11 => Command::AddScheduledJob(decoder.add_job(body)?),
        12 => Command::RescheduleJob(decoder.reschedule(body)?),
        13 => Command::RemoveScheduledJob(decoder.remove_job(body)?),
        14 => Command::RemoveScheduledJobs(decoder.remove_jobs(body)?),
        15 => Command::DestroyScheduler { scheduler: decoder.only_text(body)? },
        16 => Command::RewrittenDataFile(decoder.rewritten(body)?),
        _ => return Err(CommandError::UnknownType(command)),
    })
}

/// Reads a KahaSubscriptionCommand without type byte and length, as the index holds it.
pub(crate) fn subscription(whole: &Bytes) -> Result<Subscription, CommandError> {
    Decoder { whole, command: 7 }.subscription(whole)
}

/// Decodes parts of `whole`, for which it makes views and error positions.
#[derive(Clone, Copy)]
struct Decoder<'a> {
    whole: &'a Bytes,
    command: u8,
}

impl<'a> Decoder<'a> {
    /// Hands the fields of `message` to `field`, one after another.
    fn each(
        self,
        message: &'a [u8],
        mut field: impl FnMut(u64, Value<'a>) -> Result<(), CommandError>,
    ) -> Result<(), CommandError> {
        let mut fields = Fields::new(message);
        while let Some((number, value)) = fields.next().map_err(|source| CommandError::Malformed {
            command: self.command,
            message_at: offset(self.whole, message),
            source,
        })? {
            field(number, value)?;
        }
        Ok(())
    }

    fn view(self, part: &[u8]) -> Bytes {
        self.whole.slice_ref(part)
    }

    fn text(self, part: &[u8]) -> Result<Text, CommandError> {
        text(self.whole, part).map_err(|_| CommandError::Malformed {
            command: self.command,
            message_at: offset(self.whole, part),
            source: WireError::Utf8 { at: 0 },
        })
    }

    fn missing(self, field: &'static str) -> CommandError {
        CommandError::Missing { command: self.command, field }
    }

    /// Field 1 of a message that has no other.
    fn field_one(self, message: &'a [u8]) -> Result<Option<&'a [u8]>, CommandError> {
        let mut found = None;
        self.each(message, |number, value| {
            if let (1, Value::Bytes(part)) = (number, value) {
                found = Some(part);
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn only_bytes(self, message: &'a [u8], what: &'static str) -> Result<&'a [u8], CommandError> {
        self.field_one(message)?.ok_or_else(|| self.missing(what))
    }

    fn optional_bytes(self, message: &'a [u8]) -> Result<Bytes, CommandError> {
        Ok(self.view(self.field_one(message)?.unwrap_or_default()))
    }

    fn only_text(self, message: &'a [u8]) -> Result<Text, CommandError> {
        self.text(self.field_one(message)?.unwrap_or_default())
    }

    fn only_transaction(self, message: &'a [u8]) -> Result<TransactionId, CommandError> {
        self.transaction(self.only_bytes(message, "transaction")?)
    }

    /// A trace means nothing to a store, so that no text in it may stop one.
    fn trace(self, message: &'a [u8]) -> Result<Option<Text>, CommandError> {
        Ok(self.field_one(message)?.map(|part| {
            text(self.whole, part).unwrap_or_else(|_| Text::from(String::from_utf8_lossy(part).into_owned()))
        }))
    }

    fn destination(self, message: &'a [u8]) -> Result<Destination, CommandError> {
        let (mut kind, mut name) = (DestinationKind::Queue, Text::new());
        self.each(message, |number, value| {
            match (number, value) {
                (1, Value::Varint(v)) => {
                    kind = DestinationKind::from_number(int32(v)).ok_or(CommandError::Malformed {
                        command: self.command,
                        message_at: offset(self.whole, message),
                        source: WireError::Unexpected {
                            what: "destination type",
                            value: int32(v).into(),
                            at: 0,
                        },
                    })?;
                }
                (2, Value::Bytes(part)) => name = self.text(part)?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(Destination::new(kind, name))
    }

    /// Field 1 is there = local, else XA, as upstream decides.
    fn transaction(self, message: &'a [u8]) -> Result<TransactionId, CommandError> {
        let (mut local, mut xa) = (None, &[][..]);
        self.each(message, |number, value| {
            match (number, value) {
                (1, Value::Bytes(part)) => local = Some(part),
                (2, Value::Bytes(part)) => xa = part,
                _ => {}
            }
            Ok(())
        })?;
        match local {
            Some(local) => self.local_transaction(local),
            None => self.xid(xa).map(TransactionId::Xa),
        }
    }

    /// Both fields have number 1; the wire type tells them apart.
    fn local_transaction(self, message: &'a [u8]) -> Result<TransactionId, CommandError> {
        let (mut connection, mut number_in_connection) = (Text::new(), 0);
        self.each(message, |number, value| {
            match (number, value) {
                (1, Value::Bytes(part)) => connection = self.text(part)?,
                (1, Value::Varint(v)) => number_in_connection = int64(v),
                _ => {}
            }
            Ok(())
        })?;
        Ok(TransactionId::Local { connection, value: number_in_connection })
    }

    fn xid(self, message: &'a [u8]) -> Result<Xid, CommandError> {
        let mut xid = Xid { format_id: 0, global: Bytes::new(), branch: Bytes::new() };
        self.each(message, |number, value| {
            match (number, value) {
                (1, Value::Varint(v)) => xid.format_id = int32(v),
                (2, Value::Bytes(part)) => xid.branch = self.view(part),
                (3, Value::Bytes(part)) => xid.global = self.view(part),
                _ => {}
            }
            Ok(())
        })?;
        Ok(xid)
    }

    fn add(self, message: &'a [u8]) -> Result<AddMessage, CommandError> {
        let (mut transaction, mut destination, mut key, mut body) = (None, None, Text::new(), &[][..]);
        let (mut priority, mut priority_supported) = (i32::from(kahawai_message::DEFAULT_PRIORITY), false);
        self.each(message, |number, value| {
            match (number, value) {
                (1, Value::Bytes(part)) => transaction = Some(self.transaction(part)?),
                (2, Value::Bytes(part)) => destination = Some(self.destination(part)?),
                (3, Value::Bytes(part)) => key = self.text(part)?,
                (4, Value::Bytes(part)) => body = part,
                (5, Value::Varint(v)) => priority = int32(v),
                (6, Value::Varint(v)) => priority_supported = v != 0,
                _ => {}
            }
            Ok(())
        })?;
        Ok(AddMessage {
            transaction,
            destination: destination.ok_or_else(|| self.missing("destination"))?,
            message_key: key,
            message: self.view(body),
            priority,
            priority_supported,
        })
    }

    fn remove(self, message: &'a [u8]) -> Result<RemoveMessage, CommandError> {
        let (mut transaction, mut destination, mut message_key) = (None, None, Text::new());
        let (mut ack, mut subscription_key) = (None, None);
        self.each(message, |number, value| {
            match (number, value) {
                (1, Value::Bytes(part)) => transaction = Some(self.transaction(part)?),
                (2, Value::Bytes(part)) => destination = Some(self.destination(part)?),
                (3, Value::Bytes(part)) => message_key = self.text(part)?,
                (4, Value::Bytes(part)) => ack = Some(self.view(part)),
                (5, Value::Bytes(part)) => subscription_key = Some(self.text(part)?),
                _ => {}
            }
            Ok(())
        })?;
        let destination = destination.ok_or_else(|| self.missing("destination"))?;
        Ok(RemoveMessage { transaction, destination, message_key, ack, subscription_key })
    }

    fn subscription(self, message: &'a [u8]) -> Result<Subscription, CommandError> {
        let (mut destination, mut subscription_key, mut retroactive, mut info) =
            (None, Text::new(), false, None);
        self.each(message, |number, value| {
            match (number, value) {
                (1, Value::Bytes(part)) => destination = Some(self.destination(part)?),
                (2, Value::Bytes(part)) => subscription_key = self.text(part)?,
                (3, Value::Varint(v)) => retroactive = v != 0,
                (4, Value::Bytes(part)) => info = Some(self.view(part)),
                _ => {}
            }
            Ok(())
        })?;
        let destination = destination.ok_or_else(|| self.missing("destination"))?;
        Ok(Subscription { destination, subscription_key, retroactive, info })
    }

    fn add_job(self, message: &'a [u8]) -> Result<AddScheduledJob, CommandError> {
        let mut job = AddScheduledJob {
            scheduler: Text::new(),
            job_id: Text::new(),
            start_ms: 0,
            cron_entry: Text::new(),
            delay_ms: 0,
            period_ms: 0,
            repeat: 0,
            payload: Bytes::new(),
            next_execution_ms: 0,
        };
        self.each(message, |number, value| {
            match (number, value) {
                (1, Value::Bytes(part)) => job.scheduler = self.text(part)?,
                (2, Value::Bytes(part)) => job.job_id = self.text(part)?,
                (3, Value::Varint(v)) => job.start_ms = int64(v),
                (4, Value::Bytes(part)) => job.cron_entry = self.text(part)?,
                (5, Value::Varint(v)) => job.delay_ms = int64(v),
                (6, Value::Varint(v)) => job.period_ms = int64(v),
                (7, Value::Varint(v)) => job.repeat = int32(v),
                (8, Value::Bytes(part)) => job.payload = self.view(part),
                (9, Value::Varint(v)) => job.next_execution_ms = int64(v),
                _ => {}
            }
            Ok(())
        })?;
        Ok(job)
    }

    fn reschedule(self, message: &'a [u8]) -> Result<RescheduleJob, CommandError> {
        let mut job = RescheduleJob {
            scheduler: Text::new(),
            job_id: Text::new(),
            execution_ms: 0,
            next_execution_ms: 0,
            rescheduled_count: 0,
        };
        self.each(message, |number, value| {
            match (number, value) {
                (1, Value::Bytes(part)) => job.scheduler = self.text(part)?,
                (2, Value::Bytes(part)) => job.job_id = self.text(part)?,
                (3, Value::Varint(v)) => job.execution_ms = int64(v),
                (4, Value::Varint(v)) => job.next_execution_ms = int64(v),
                (5, Value::Varint(v)) => job.rescheduled_count = int32(v),
                _ => {}
            }
            Ok(())
        })?;
        Ok(job)
    }

    fn remove_job(self, message: &'a [u8]) -> Result<RemoveScheduledJob, CommandError> {
        let mut job =
            RemoveScheduledJob { scheduler: Text::new(), job_id: Text::new(), next_execution_ms: Some(0) };
        self.each(message, |number, value| {
            match (number, value) {
                (1, Value::Bytes(part)) => job.scheduler = self.text(part)?,
                (2, Value::Bytes(part)) => job.job_id = self.text(part)?,
                (3, Value::Varint(v)) => job.next_execution_ms = Some(int64(v)).filter(|&time| time != -1),
                _ => {}
            }
            Ok(())
        })?;
        Ok(job)
    }

    fn remove_jobs(self, message: &'a [u8]) -> Result<RemoveScheduledJobs, CommandError> {
        let mut jobs = RemoveScheduledJobs { scheduler: Text::new(), start_ms: 0, last_ms: 0 };
        self.each(message, |number, value| {
            match (number, value) {
                (1, Value::Bytes(part)) => jobs.scheduler = self.text(part)?,
                (2, Value::Varint(v)) => jobs.start_ms = int64(v),
                (3, Value::Varint(v)) => jobs.last_ms = int64(v),
                _ => {}
            }
            Ok(())
        })?;
        Ok(jobs)
    }

    fn rewritten(self, message: &'a [u8]) -> Result<RewrittenDataFile, CommandError> {
        let mut file = RewrittenDataFile { source_file: 0, rewrite_type: 0, skip_if_source_exists: None };
        self.each(message, |number, value| {
            match (number, value) {
                (1, Value::Varint(v)) => file.source_file = int32(v).cast_unsigned(),
                (2, Value::Varint(v)) => file.rewrite_type = int32(v),
                (3, Value::Varint(v)) => file.skip_if_source_exists = Some(v != 0),
                _ => {}
            }
            Ok(())
        })?;
        Ok(file)
    }
}
