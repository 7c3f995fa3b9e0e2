use std::mem;

use bytes::{BufMut, BytesMut};
use kahawai_message::front::{
    Ack, AckKind, ConnectionInfo, ConsumerNumber, Delivery, DeliveryTag, Event, Refusal, Request, Subscribe,
    Token, TransactionNumber,
};
use kahawai_message::{Message, Millis, Text};

use crate::answer::{Answers, Owed};
use crate::consumer::{AckMode, Consumer, Consumers};
use crate::decode::{Command, Decoder, Frame};
use crate::destination::{Temporaries, Unprefixed, put_destination, read_destination};
use crate::escape::{put_decimal, put_header};
use crate::fault::Fault;
use crate::heart_beat::HeartBeat;
use crate::in_flight::WireId;
use crate::message_frame::{END, MessageWriter};
use crate::send::{Known, Sender};
use crate::transaction::Transaction;
use crate::{ConnectionOptions, Version};

/// ACK frames that follow each other become one request, up to so many acknowledgements.
const MERGED_ACKS_MAX: usize = 1024;

/// STOMP's selectors compare texts with numbers as if they were numbers: its properties are all texts. This is how
/// ActiveMQ says so, also where it stores a durable subscription's selector.
const SELECTOR_PREFIX: &str = "convert_string_expressions:";

/// Where [`Connection::receive`] stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Every whole frame was taken; call again when there is more input.
    NeedInput,
    /// `requests` is full or too many answers are outstanding; call again once there is room. Reading may pause.
    Full,
    /// CONNECT was taken; call again once it is confirmed.
    AwaitConnected,
    /// DISCONNECT was taken; input is thrown away from now on. The end comes with its confirmation.
    Ended,
}

/// What the driver does once `out` is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum After {
    /// Goes on.
    Continue,
    /// Closes the socket.
    Close,
}

/// Why the connection has to end. An ERROR frame, where one makes sense, is in `out` and should be written first.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Closed {
    /// The client broke the protocol.
    #[error("{0}")]
    Protocol(String),
    /// It sent no CONNECT in time.
    #[error("no CONNECT within {timeout_ms} ms")]
    NoConnect {
        /// The limit.
        timeout_ms: Millis,
    },
    /// Neither data nor heart-beats.
    #[error("no data for {silent_ms} ms, {agreed_ms} ms were agreed")]
    Silent {
        /// How long.
        silent_ms: Millis,
        /// The agreed interval.
        agreed_ms: Millis,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Phase {
    /// CONNECT has not come.
    New,
    /// CONNECT is not confirmed; the `session` header of its answer.
    Connecting { session: Text },
    /// Anything goes.
    Open,
    /// DISCONNECT has come, or an error after which nothing is read.
    Ending,
}

/// The server's end of one STOMP connection.
///
/// The driver passes what it reads to [`receive`](Self::receive), carries the requests out in order, and reports each
/// that has a token as confirmed or refused. Whatever is appended to an `out` is for the socket, in that order.
///
/// After [`Err(Closed)`](Closed) or [`After::Close`] the driver writes `out` and closes; requests that were appended
/// before are still to be carried out.
#[derive(Debug)]
pub struct Connection {
    options: ConnectionOptions,
    version: Version,
    phase: Phase,
    decoder: Decoder,
    sender: Sender,
    writer: MessageWriter,
    temporaries: Temporaries,
    consumers: Consumers,
    transactions: Vec<Transaction>,
    /// Their COMMIT is not confirmed yet.
    committing: Vec<Transaction>,
    last_transaction: u32,
    answers: Answers,
    auto_acks: Vec<Ack>,
    heart_beat: HeartBeat,
    opened: Millis,
    /// Length of the input when `receive` left it: what is longer next time has come since.
    input_left: usize,
    /// `receive` waits for the driver, so the client's silence is not its fault.
    paused: bool,
}

impl Connection {
    /// A connection that was accepted at `now`.
    pub fn new(options: ConnectionOptions, now: Millis) -> Self {
        Self {
            version: Version::V1_0,
            phase: Phase::New,
            decoder: Decoder::new(options.limits),
            sender: Sender::new(options.connection_id.clone()),
            writer: MessageWriter::default(),
            temporaries: Temporaries::new(options.connection_id.clone(), options.temporary_destinations_max),
            consumers: Consumers::default(),
            transactions: Vec::new(),
            committing: Vec::new(),
            last_transaction: 0,
            answers: Answers::default(),
            auto_acks: Vec::new(),
            heart_beat: HeartBeat::new(now),
            opened: now,
            input_left: 0,
            paused: false,
            options,
        }
    }

    /// The negotiated version; 1.0 before CONNECT.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How many requests wait for [`confirmed`](Self::confirmed) or [`refused`](Self::refused).
    pub fn unanswered(&self) -> usize {
        self.answers.len()
    }

    /// How many bytes the frame at the front of the input lacks, as far as it says: worth reserving before the next read.
    pub fn bytes_missing(&self, input: &BytesMut) -> usize {
        self.decoder.bytes_missing(input.len())
    }

    /// Cuts frames off `input` and appends what they ask for to `requests`, until there are `requests_max` of them.
    ///
    /// `input` holds what was read and not taken yet, at most one frame's limits and what the driver reads at once.
    /// Message bodies are views into it. Frames that the machine answers itself are answered in `out`.
    pub fn receive(
        &mut self,
        now: Millis,
        input: &mut BytesMut,
        requests: &mut Vec<(Request, Option<Token>)>,
        requests_max: usize,
        out: &mut BytesMut,
    ) -> Result<Progress, Closed> {
        if input.len() > self.input_left {
            self.heart_beat.received(now);
        }
        let out_before = out.len();
        let progress = self.take_frames(now, input, requests, requests_max, out);
        self.heart_beat.wrote |= out.len() > out_before;
        if progress.is_err() || self.phase == Phase::Ending {
            self.phase = Phase::Ending;
            input.clear();
        }
        self.input_left = input.len();
        self.paused = !matches!(progress, Ok(Progress::NeedInput));
        progress
    }

    fn take_frames(
        &mut self,
        now: Millis,
        input: &mut BytesMut,
        requests: &mut Vec<(Request, Option<Token>)>,
        requests_max: usize,
        out: &mut BytesMut,
    ) -> Result<Progress, Closed> {
        loop {
            match self.phase {
                Phase::New | Phase::Open => {}
                Phase::Connecting { .. } => return Ok(Progress::AwaitConnected),
                Phase::Ending => return Ok(Progress::Ended),
            }
            if requests.len() >= requests_max
                || self.answers.len() >= self.options.unanswered_max
                || self.answers.text_bytes() >= self.options.unanswered_bytes_max
            {
                return Ok(Progress::Full);
            }
            match self.decoder.decode(input) {
                Ok(true) => self.take_frame(now, input, requests, out)?,
                Ok(false) => return Ok(Progress::NeedInput),
                Err(error) => return self.complain(&error.into(), None, out).map(|()| Progress::Ended),
            }
        }
    }

    fn take_frame(
        &mut self,
        now: Millis,
        input: &mut BytesMut,
        requests: &mut Vec<(Request, Option<Token>)>,
        out: &mut BytesMut,
    ) -> Result<(), Closed> {
        let layout = mem::take(&mut self.decoder.layout);
        let result = if Frame::new(&layout, input).command() == Command::Send {
            // Its body and texts live on as views.
            let bytes = self.decoder.take(input, &layout);
            let frame = Frame::new(&layout, &bytes);
            match self.send(now, frame, &bytes, requests) {
                Ok(()) => Ok(()),
                Err(fault) => self.complain(&fault, frame.raw("receipt"), out),
            }
        } else {
            let frame = Frame::new(&layout, input);
            let result = match self.control(now, frame, requests) {
                Ok(()) => Ok(()),
                Err(fault) => self.complain(&fault, frame.raw("receipt"), out),
            };
            self.decoder.skip(input, &layout);
            result
        };
        self.decoder.layout = layout;
        result
    }

    /// Answers with ERROR. Like ActiveMQ we go on unless nothing sensible can follow.
    fn complain(&mut self, fault: &Fault, receipt: Option<&[u8]>, out: &mut BytesMut) -> Result<(), Closed> {
        let versions = matches!(fault, Fault::Version(_)).then_some("1.0,1.1,1.2");
        put_error(out, self.version, &fault.to_string(), receipt, versions);
        if fault.is_fatal() { Err(Closed::Protocol(fault.to_string())) } else { Ok(()) }
    }

    fn send(
        &mut self,
        now: Millis,
        frame: Frame<'_>,
        bytes: &bytes::Bytes,
        requests: &mut Vec<(Request, Option<Token>)>,
    ) -> Result<(), Fault> {
        if self.phase != Phase::Open {
            return Err(Fault::NotConnected(frame.command().name()));
        }
        let known = Known::of(frame);
        let transaction = match known.transaction {
            None => None,
            Some(name) => Some(self.transaction(&frame.text(name))?.number),
        };
        let request = self.sender.read(now, frame, bytes, &known, transaction, &mut self.temporaries)?;
        let token = known.receipt.map(|receipt| self.answers.push(Owed::Receipt, Some(receipt)));
        requests.push((request, token));
        Ok(())
    }

    /// Every frame but SEND.
    fn control(
        &mut self,
        now: Millis,
        frame: Frame<'_>,
        requests: &mut Vec<(Request, Option<Token>)>,
    ) -> Result<(), Fault> {
        let command = frame.command();
        match (command, &self.phase) {
            (Command::Connected | Command::Message | Command::Receipt | Command::Error, _) => {
                Err(Fault::ServersCommand(command.name()))
            }
            (Command::Connect, Phase::New) => self.connect(now, frame, requests),
            (Command::Connect, _) => Err(Fault::AlreadyConnected),
            (_, Phase::New) => Err(Fault::NotConnected(command.name())),
            (Command::Disconnect, _) => {
                self.phase = Phase::Ending;
                let token = self.answers.push(Owed::Goodbye, frame.raw("receipt"));
                requests.push((Request::Disconnect, Some(token)));
                Ok(())
            }
            (Command::Ack, _) => self.acknowledge(frame, AckKind::Consumed, requests),
            (Command::Nack, _) => self.acknowledge(frame, AckKind::Poison, requests),
            (Command::Subscribe, _) => self.subscribe(frame, requests),
            (Command::Unsubscribe, _) => self.unsubscribe(frame, requests),
            (Command::Begin, _) => self.begin(frame, requests),
            (Command::Commit, _) => self.commit(frame, requests),
            (Command::Abort, _) => self.abort(frame, requests),
            // Taken care of by the caller.
            (Command::Send, _) => Ok(()),
        }
    }

    fn connect(
        &mut self,
        now: Millis,
        frame: Frame<'_>,
        requests: &mut Vec<(Request, Option<Token>)>,
    ) -> Result<(), Fault> {
        let accepted = frame.get("accept-version").unwrap_or("1.0".into());
        let version = Version::negotiate(&accepted).ok_or_else(|| Fault::Version(accepted.into_owned()))?;
        let heart_beat = frame.get("heart-beat");
        self.heart_beat
            .agree(heart_beat.as_deref(), self.options.heart_beat, now)
            .ok_or_else(|| Fault::HeartBeat(heart_beat.unwrap_or_default().into_owned()))?;
        let text = |name| frame.get(name).map(|value| Text::from(&*value));
        let client_id = text("client-id").filter(|id| !id.is_empty());
        let connection_id = self.options.connection_id.clone();
        self.phase =
            Phase::Connecting { session: client_id.clone().unwrap_or_else(|| connection_id.clone()) };
        self.version = version;
        self.decoder.set_version(version);
        let info = ConnectionInfo {
            client_id,
            connection_id,
            login: text("login"),
            passcode: text("passcode"),
            protocol: Text::from_static(version.protocol_name()),
        };
        // ActiveMQ answers a receipt in CONNECTED too.
        let request_id = frame.raw("request-id").or_else(|| frame.raw("receipt"));
        let token = self.answers.push(Owed::Connected, request_id);
        requests.push((Request::Connect(Box::new(info)), Some(token)));
        Ok(())
    }

    fn subscribe(
        &mut self,
        frame: Frame<'_>,
        requests: &mut Vec<(Request, Option<Token>)>,
    ) -> Result<(), Fault> {
        let missing = |header| Fault::Missing { command: "SUBSCRIBE", header };
        let id = frame.get("id");
        if id.is_none() && self.version > Version::V1_0 {
            return Err(missing("id"));
        }
        let destination = frame.get("destination").ok_or_else(|| missing("destination"))?;
        let browser = is_true(frame, "browser") || is_true(frame, "activemq.browser");
        if browser && self.version == Version::V1_0 {
            return Err(Fault::TooOld { feature: "browsing a queue", since: "1.1" });
        }
        if self.consumers.len() >= self.options.consumers_max {
            return Err(Fault::Limit { what: "subscriptions", limit: self.options.consumers_max });
        }
        let durable_name = frame.get("activemq.subscriptionName").map(|name| Text::from(&*name));
        let prefetch = number(frame, "activemq.prefetchSize")?;
        let priority = number(frame, "activemq.priority")?.unwrap_or(0);
        let destination = read_destination(&destination, Unprefixed::Queue, &mut self.temporaries)?;
        if durable_name.is_some() && destination.kind.is_queue() {
            return Err(Fault::DurableQueue);
        }
        let defaults = self.options.prefetch;
        let default = match (browser, destination.kind.is_queue(), &durable_name) {
            (true, ..) => defaults.browser,
            (_, true, _) => defaults.queue,
            (_, _, Some(_)) => defaults.durable_topic,
            (_, _, None) => defaults.topic,
        };
        let mode = AckMode::named(frame.raw("ack"));
        let mut consumer =
            Consumer::new(id.map(|id| Text::from(&*id)), destination.clone(), mode, self.version);
        consumer.browser = browser;
        consumer.durable_name.clone_from(&durable_name);
        let selector = frame.get("selector").filter(|selector| !selector.trim().is_empty());
        let subscribe = Subscribe {
            consumer: self.consumers.insert(consumer),
            destination,
            selector: selector.map(|selector| Text::from(format!("{SELECTOR_PREFIX}{selector}"))),
            prefetch: prefetch.map_or(default, |asked| u32::try_from(asked.max(0)).unwrap_or(u32::MAX)),
            durable_name,
            no_local: is_true(frame, "activemq.noLocal"),
            exclusive: is_true(frame, "activemq.exclusive"),
            priority: u8::try_from(priority.clamp(0, 127)).unwrap_or(0),
            retroactive: is_true(frame, "activemq.retroactive"),
            browser,
            auto_ack: mode == AckMode::Auto,
        };
        // Also without receipt: a refused subscription has to go.
        let token = self.answers.push(Owed::Subscribed(subscribe.consumer), frame.raw("receipt"));
        requests.push((Request::Subscribe(Box::new(subscribe)), Some(token)));
        Ok(())
    }

    fn unsubscribe(
        &mut self,
        frame: Frame<'_>,
        requests: &mut Vec<(Request, Option<Token>)>,
    ) -> Result<(), Fault> {
        let id = frame.get("id");
        if id.is_none() && self.version > Version::V1_0 {
            return Err(Fault::Missing { command: "UNSUBSCRIBE", header: "id" });
        }
        let durable_name = frame.get("activemq.subscriptionName");
        let mut ending: Vec<ConsumerNumber> = match (&id, frame.get("destination")) {
            // Whoever has the durable subscription open here has to let go of it before it can be removed.
            _ if durable_name.is_some() => {
                let name = durable_name.as_deref();
                let open = |consumer: &Consumer| consumer.durable_name.as_deref() == name;
                self.consumers
                    .iter()
                    .filter(|(_, consumer)| open(consumer))
                    .map(|(number, _)| number)
                    .collect()
            }
            (Some(id), _) => self.consumers.with_id(id).to_vec(),
            (None, Some(text)) => {
                let destination = read_destination(&text, Unprefixed::Queue, &mut self.temporaries)?;
                let mut all = self.consumers.iter();
                all.find(|(_, consumer)| consumer.destination == destination)
                    .map(|(number, _)| number)
                    .into_iter()
                    .collect()
            }
            (None, None) => {
                return Err(Fault::Missing { command: "UNSUBSCRIBE", header: "id or destination" });
            }
        };
        let receipt = frame.raw("receipt");
        for number in &ending {
            self.consumers.remove(*number);
        }
        let last = match durable_name {
            Some(name) => Request::RemoveSubscription { name: Text::from(&*name) },
            None => match ending.pop() {
                Some(consumer) => Request::Unsubscribe { consumer },
                None => return Err(Fault::NoSubscription),
            },
        };
        requests.extend(ending.into_iter().map(|consumer| (Request::Unsubscribe { consumer }, None)));
        requests.push((last, receipt.map(|receipt| self.answers.push(Owed::Receipt, Some(receipt)))));
        Ok(())
    }

    fn transaction(&mut self, name: &str) -> Result<&mut Transaction, Fault> {
        let mut open = self.transactions.iter_mut();
        open.find(|transaction| *transaction.name == *name)
            .ok_or_else(|| Fault::NoTransaction(name.to_owned()))
    }

    fn end_transaction(&mut self, frame: Frame<'_>) -> Result<Transaction, Fault> {
        let command = frame.command().name();
        let name = frame.get("transaction").ok_or(Fault::Missing { command, header: "transaction" })?;
        let at = self.transactions.iter().position(|transaction| *transaction.name == *name);
        at.map(|at| self.transactions.remove(at)).ok_or_else(|| Fault::NoTransaction(name.into_owned()))
    }

    fn begin(&mut self, frame: Frame<'_>, requests: &mut Vec<(Request, Option<Token>)>) -> Result<(), Fault> {
        let missing = Fault::Missing { command: "BEGIN", header: "transaction" };
        let name = frame.get("transaction").ok_or(missing)?;
        if self.transaction(&name).is_ok() {
            return Err(Fault::TransactionOpen(name.into_owned()));
        }
        let limit = self.options.transactions_max;
        if self.transactions.len() + self.committing.len() >= limit {
            return Err(Fault::Limit { what: "transactions", limit });
        }
        self.last_transaction = self.last_transaction.wrapping_add(1);
        let number = TransactionNumber(self.last_transaction);
        self.transactions.push(Transaction { name: name.into(), number, acked: Vec::new() });
        self.request(Request::Begin { transaction: number }, frame, requests);
        Ok(())
    }

    fn commit(
        &mut self,
        frame: Frame<'_>,
        requests: &mut Vec<(Request, Option<Token>)>,
    ) -> Result<(), Fault> {
        let transaction = self.end_transaction(frame)?;
        let number = transaction.number;
        // Also without receipt: what a refused commit acknowledged is in flight again.
        let token = self.answers.push(Owed::Committed(number), frame.raw("receipt"));
        self.committing.push(transaction);
        requests.push((Request::Commit { transaction: number }, Some(token)));
        Ok(())
    }

    fn abort(&mut self, frame: Frame<'_>, requests: &mut Vec<(Request, Option<Token>)>) -> Result<(), Fault> {
        let transaction = self.end_transaction(frame)?;
        let number = transaction.number;
        transaction.undo(&mut self.consumers);
        self.request(Request::Rollback { transaction: number }, frame, requests);
        Ok(())
    }

    fn request(&mut self, request: Request, frame: Frame<'_>, requests: &mut Vec<(Request, Option<Token>)>) {
        let token = frame.raw("receipt").map(|receipt| self.answers.push(Owed::Receipt, Some(receipt)));
        requests.push((request, token));
    }

    /// ACK and NACK. What is named by `id` carries consumer and tag, the older ways have to search.
    fn acknowledge(
        &mut self,
        frame: Frame<'_>,
        kind: AckKind,
        requests: &mut Vec<(Request, Option<Token>)>,
    ) -> Result<(), Fault> {
        let command = frame.command().name();
        let missing = |header| Fault::Missing { command, header };
        if kind == AckKind::Poison && self.version == Version::V1_0 {
            return Err(Fault::TooOld { feature: "NACK", since: "1.1" });
        }
        let transaction = frame.get("transaction");
        let transaction = match &transaction {
            None => None,
            Some(name) => Some(self.transaction(name)?.number),
        };
        let id = frame.get("id");
        let message_id = frame.get("message-id");
        let found = match (&id, &message_id) {
            (Some(id), None) => read_ack_id(id),
            (Some(id), _) if self.version == Version::V1_2 => read_ack_id(id),
            (None, _) if self.version == Version::V1_2 => return Err(missing("id")),
            (None, None) => return Err(missing("message-id")),
            (_, Some(message_id)) => match frame.get("subscription") {
                None if self.version == Version::V1_1 => return Err(missing("subscription")),
                subscription => self.find_delivery(subscription.as_deref(), message_id),
            },
        };
        let found = found.and_then(|(number, tag)| {
            let consumer = self.consumers.get_mut(number)?;
            consumer.in_flight.contains(tag).then_some((number, tag, consumer))
        });
        let Some((number, tag, consumer)) = found else {
            let id = id.or(message_id).unwrap_or_default().into_owned();
            return Err(Fault::NotInFlight { command, id });
        };
        if consumer.browser && kind == AckKind::Poison {
            return Err(Fault::NackOfBrowser);
        }

        // Several in a row are one request, unless somebody waits for the ones before.
        let token = frame.raw("receipt").map(|receipt| self.answers.push(Owed::Receipt, Some(receipt)));
        let merged = matches!(requests.last(), Some((Request::Acknowledge { acks, transaction: same }, None))
            if *same == transaction && acks.len() < MERGED_ACKS_MAX);
        if !merged {
            requests.push((Request::Acknowledge { acks: Vec::new(), transaction }, None));
        }
        let Some((Request::Acknowledge { acks, .. }, last_token)) = requests.last_mut() else {
            return Ok(());
        };
        *last_token = token;
        let acks_before = acks.len();
        let mut each = |tag, id| acks.push(Ack { consumer: number, tag, id, kind });
        // A NACK is always for one message, as in ActiveMQ.
        if consumer.mode == AckMode::Client && kind == AckKind::Consumed {
            consumer.in_flight.take_through(tag, each);
        } else if let Some(id) = consumer.in_flight.take(tag) {
            each(tag, id);
        }
        if let Some(transaction) = transaction
            && let Some(open) = self.transactions.iter_mut().find(|open| open.number == transaction)
        {
            let new = acks.get(acks_before..).unwrap_or_default();
            open.acked.extend(new.iter().map(|ack| (ack.consumer, ack.tag, ack.id.clone())));
        }
        Ok(())
    }

    /// By message id: among the consumers with this subscription id, or without one (1.0) among all.
    fn find_delivery(
        &self,
        subscription: Option<&str>,
        message_id: &str,
    ) -> Option<(ConsumerNumber, DeliveryTag)> {
        let id = WireId::new(message_id);
        let find = |number, consumer: &Consumer| Some((number, consumer.in_flight.find(id)?));
        match subscription {
            None => self.consumers.iter().find_map(|(number, consumer)| find(number, consumer)),
            Some(subscription) => {
                let mut numbers = self.consumers.with_id(subscription).iter();
                numbers.find_map(|number| find(*number, self.consumers.get(*number)?))
            }
        }
    }

    /// The request with this token is confirmed: appends the answer, if the client wants one. In order, please.
    pub fn confirmed(&mut self, token: Token, out: &mut BytesMut) -> After {
        let (version, out_before) = (self.version, out.len());
        let (phase, options, heart_beat) = (&self.phase, &self.options, &self.heart_beat);
        let owed = self.answers.take(token, |owed, receipt| {
            match (owed, receipt, phase) {
                (Owed::Connected, request_id, Phase::Connecting { session }) => {
                    put_connected(out, version, options, session, heart_beat.agreed(), request_id);
                }
                (_, Some(receipt), _) => {
                    put_receipt(out, receipt);
                }
                (_, None, _) => {}
            }
            owed
        });
        self.heart_beat.wrote |= out.len() > out_before;
        match owed {
            Some(Owed::Connected) => {
                if let Phase::Connecting { .. } = self.phase {
                    self.phase = Phase::Open;
                }
            }
            Some(Owed::Committed(number)) => drop(self.committed(number)),
            Some(Owed::Goodbye) => return After::Close,
            Some(Owed::Receipt | Owed::Subscribed(_)) | None => {}
        }
        After::Continue
    }

    /// Appends what [`confirmed`](Self::confirmed) would, and changes nothing: for a driver that wants the bytes before it is
    /// so far. `false` = nothing is appended; it is not this one's turn, or its confirmation does more than give a receipt.
    pub fn receipt(&self, token: Token, out: &mut BytesMut) -> bool {
        let receipt = self.answers.receipt(token);
        receipt.inspect(|receipt| put_receipt(out, receipt)).is_some()
    }

    /// All requests with tokens up to and including this one are confirmed.
    pub fn confirmed_through(&mut self, token: Token, out: &mut BytesMut) -> After {
        while let Some(next) = self.answers.front().filter(|next| next.0 <= token.0) {
            if self.confirmed(next, out) == After::Close {
                return After::Close;
            }
        }
        After::Continue
    }

    /// The broker does not do what was asked, with or without a token: appends an ERROR frame.
    ///
    /// Unlike the specification and like ActiveMQ the connection survives, unless it was CONNECT that was refused, or
    /// storage has failed.
    pub fn refused(&mut self, token: Option<Token>, refusal: &Refusal, out: &mut BytesMut) -> After {
        let (version, message) = (self.version, refusal.to_string());
        let mut put = |receipt: Option<&[u8]>| put_error(out, version, &message, receipt, None);
        let owed = match token {
            None => {
                put(None);
                None
            }
            Some(token) => self.answers.take(token, |owed, receipt| {
                put(receipt);
                owed
            }),
        };
        self.heart_beat.wrote = true;
        match owed {
            Some(Owed::Subscribed(consumer)) => drop(self.consumers.remove(consumer)),
            Some(Owed::Committed(number)) => {
                if let Some(transaction) = self.committed(number) {
                    transaction.undo(&mut self.consumers);
                }
            }
            Some(Owed::Connected | Owed::Goodbye) => {
                self.phase = Phase::Ending;
                return After::Close;
            }
            Some(Owed::Receipt) | None => {}
        }
        match refusal {
            Refusal::Storage(_) => {
                self.phase = Phase::Ending;
                After::Close
            }
            _ => After::Continue,
        }
    }

    fn committed(&mut self, number: TransactionNumber) -> Option<Transaction> {
        let at = self.committing.iter().position(|transaction| transaction.number == number)?;
        Some(self.committing.remove(at))
    }

    /// Appends a MESSAGE frame for `message`, which is what `delivery` is about; `false` = its consumer is gone, nothing
    /// was appended.
    pub fn deliver(&mut self, delivery: &Delivery, message: &Message, out: &mut BytesMut) -> bool {
        if self.phase == Phase::Ending {
            return false;
        }
        let Some(consumer) = self.consumers.get_mut(delivery.consumer) else {
            return false;
        };
        self.writer.put(out, (delivery, message), consumer, &self.temporaries, self.version);
        let (tag, id) = (delivery.tag, message.id.clone());
        match consumer.mode {
            AckMode::Auto => {
                self.auto_acks.push(Ack { consumer: delivery.consumer, tag, id, kind: AckKind::Consumed });
            }
            AckMode::Client | AckMode::Individual => consumer.in_flight.push(tag, id),
        }
        self.heart_beat.wrote = true;
        true
    }

    /// Does a consumer only look?
    pub fn is_browser(&self, consumer: ConsumerNumber) -> bool {
        self.consumers.get(consumer).is_some_and(|consumer| consumer.browser)
    }

    /// Moves the acknowledgements of auto-ack deliveries since the last call to the end of `acks`. They are for the broker
    /// once what was in `out` is written.
    pub fn take_auto_acks(&mut self, acks: &mut Vec<Ack>) {
        if acks.is_empty() {
            mem::swap(acks, &mut self.auto_acks);
        } else {
            acks.append(&mut self.auto_acks);
        }
    }

    /// Tells the client what happened.
    pub fn event(&mut self, event: &Event, out: &mut BytesMut) -> After {
        self.heart_beat.wrote = true;
        match event {
            Event::BrowseEnd(number) => {
                if let Some(consumer) = self.consumers.get(*number) {
                    out.put_slice(b"MESSAGE\nbrowser:end\nmessage-id:0\n");
                    out.put_slice(consumer.subscription_line());
                    out.put_slice(b"destination:");
                    put_destination(out, &consumer.destination, &self.temporaries, self.version);
                    out.put_slice(b"\n\n");
                    out.put_slice(END);
                }
                After::Continue
            }
            Event::ConsumerClosed(number, refusal) => {
                if self.consumers.remove(*number).is_some() {
                    put_error(out, self.version, &refusal.to_string(), None, None);
                }
                After::Continue
            }
            Event::Close(refusal) => {
                put_error(out, self.version, &refusal.to_string(), None, None);
                self.phase = Phase::Ending;
                After::Close
            }
        }
    }

    /// Keeps time: writes heart-beats, notices a silent peer. Returns when to call again at the latest; `None` = no
    /// need before the next frame or confirmation. Cheap enough to be called whenever the driver is awake.
    pub fn tick(&mut self, now: Millis, out: &mut BytesMut) -> Result<Option<Millis>, Closed> {
        if self.paused {
            self.heart_beat.received(now);
        }
        match self.phase {
            Phase::New if self.options.connect_timeout_ms > 0 => {
                let timeout_ms = self.options.connect_timeout_ms;
                match self.opened.saturating_add(timeout_ms) {
                    deadline if now < deadline => Ok(Some(deadline)),
                    _ => Err(Closed::NoConnect { timeout_ms }),
                }
            }
            Phase::Open => self.heart_beat.tick(now, out),
            Phase::New | Phase::Connecting { .. } | Phase::Ending => Ok(None),
        }
    }
}

/// The `ack` header of MESSAGE in 1.2, `consumer-tag`.
fn read_ack_id(text: &str) -> Option<(ConsumerNumber, DeliveryTag)> {
    let (consumer, tag) = text.split_once('-')?;
    Some((ConsumerNumber(consumer.parse().ok()?), tag.parse().ok()?))
}

fn is_true(frame: Frame<'_>, name: &str) -> bool {
    frame.raw(name).is_some_and(|value| value.trim_ascii().eq_ignore_ascii_case(b"true"))
}

fn number(frame: Frame<'_>, name: &str) -> Result<Option<i64>, Fault> {
    let Some(value) = frame.get(name) else {
        return Ok(None);
    };
    let wrong = || Fault::Number { header: name.to_owned(), value: value.clone().into_owned() };
    value.trim().parse().map(Some).map_err(|_| wrong())
}

/// No escapes in CONNECTED: its reader may not know the version yet.
fn put_connected(
    out: &mut BytesMut,
    version: Version,
    options: &ConnectionOptions,
    session: &str,
    (sends_ms, wants_ms): (Millis, Millis),
    request_id: Option<&[u8]>,
) {
    out.put_slice(b"CONNECTED\n");
    put_header(out, "version", version.as_str().as_bytes(), Version::V1_0);
    put_header(out, "server", options.server.as_bytes(), Version::V1_0);
    put_header(out, "session", session.as_bytes(), Version::V1_0);
    out.put_slice(b"heart-beat:");
    put_decimal(out, sends_ms);
    out.put_u8(b',');
    put_decimal(out, wants_ms);
    out.put_u8(b'\n');
    if let Some(request_id) = request_id {
        for name in ["response-id", "receipt-id"] {
            put_header(out, name, request_id, Version::V1_0);
        }
    }
    out.put_u8(b'\n');
    out.put_slice(END);
}

/// `receipt` is written as it came, escapes and all.
fn put_receipt(out: &mut BytesMut, receipt: &[u8]) {
    out.put_slice(b"RECEIPT\nreceipt-id:");
    out.put_slice(receipt);
    out.put_slice(b"\n\n");
    out.put_slice(END);
}

/// `receipt` is written as it came, escapes and all.
fn put_error(
    out: &mut BytesMut,
    version: Version,
    message: &str,
    receipt: Option<&[u8]>,
    versions: Option<&str>,
) {
    out.put_slice(b"ERROR\n");
    put_header(out, "message", message.as_bytes(), version);
    put_header(out, "content-type", b"text/plain", version);
    if let Some(versions) = versions {
        put_header(out, "version", versions.as_bytes(), version);
    }
    if let Some(receipt) = receipt {
        out.put_slice(b"receipt-id:");
        out.put_slice(receipt);
        out.put_u8(b'\n');
    }
    out.put_u8(b'\n');
    out.extend(message.bytes().map(|byte| if byte == 0 { b' ' } else { byte }));
    out.put_slice(END);
}
