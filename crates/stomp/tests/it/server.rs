use bytes::{BufMut, BytesMut};
use kahawai_message::front::{
    Ack, AckKind, ConsumerNumber, Delivery, Event, Refusal, Request, Source, Token,
};
use kahawai_message::{BodyKind, Content, Destination, Message, MessageId, ProducerId};
use kahawai_stomp::{After, Closed, Connection, ConnectionOptions, Progress};

/// A connection with both ends in the test's hand. Frames are written with `^@` for NUL and `|` for line ends.
pub struct Server {
    pub connection: Connection,
    pub now: i64,
    input: BytesMut,
    out: BytesMut,
    tokens: Vec<Token>,
    tag: u64,
}

pub fn options() -> ConnectionOptions {
    ConnectionOptions { server: "kahawai/test".into(), ..ConnectionOptions::new("ID:c-1") }
}

impl Server {
    pub fn new() -> Self {
        Self::with(options())
    }

    pub fn with(options: ConnectionOptions) -> Self {
        Self {
            connection: Connection::new(options, 1000),
            now: 1000,
            input: BytesMut::new(),
            out: BytesMut::new(),
            tokens: Vec::new(),
            tag: 0,
        }
    }

    /// Connected with this version.
    pub fn connected(version: &str) -> Self {
        let mut server = Self::new();
        server.says(&format!("CONNECT|accept-version:{version}|host:h||^@"), &["connect"]);
        server.confirm_all();
        server.out.clear();
        server
    }

    /// The client writes `frames`; the broker is asked `expected`.
    pub fn says(&mut self, frames: &str, expected: &[&str]) {
        let (requests, progress) = self.write(frames, 100);
        assert_eq!(requests, expected, "{frames}");
        assert!(progress.is_ok(), "{progress:?}");
    }

    /// The client writes `frames`, and that is the end.
    pub fn fails(&mut self, frames: &str) -> Closed {
        self.write(frames, 100).1.expect_err("the connection goes on")
    }

    pub fn write(&mut self, frames: &str, max: usize) -> (Vec<String>, Result<Progress, Closed>) {
        self.input.put_slice(frames.replace('|', "\n").replace("^@", "\0").as_bytes());
        let mut requests = Vec::new();
        let progress = self.connection.receive(self.now, &mut self.input, &mut requests, max, &mut self.out);
        self.tokens.extend(requests.iter().filter_map(|(_, token)| *token));
        (requests.iter().map(describe).collect(), progress)
    }

    /// Everything asked so far is confirmed.
    pub fn confirm_all(&mut self) {
        for token in self.tokens.drain(..) {
            assert_eq!(self.connection.confirmed(token, &mut self.out), After::Continue);
        }
    }

    /// Everything asked so far is confirmed, the last is DISCONNECT.
    pub fn confirm_all_and_close(&mut self) {
        let last = self.tokens.pop().unwrap();
        self.confirm_all();
        assert_eq!(self.connection.confirmed(last, &mut self.out), After::Close);
    }

    /// The oldest request with a token is refused.
    pub fn refuse(&mut self, why: &str) -> After {
        let token = self.tokens.remove(0);
        self.connection.refused(Some(token), &Refusal::Invalid(why.to_owned()), &mut self.out)
    }

    /// The broker sends this message to a consumer.
    pub fn delivers(&mut self, consumer: u32, message: &Message) -> bool {
        self.redelivers(consumer, message, 0)
    }

    pub fn redelivers(&mut self, consumer: u32, message: &Message, redelivery_counter: u32) -> bool {
        self.tag += 1;
        let source = Source::Memory(message.clone().into());
        let delivery =
            Delivery { consumer: ConsumerNumber(consumer), tag: self.tag, source, redelivery_counter };
        self.connection.deliver(&delivery, message, &mut self.out)
    }

    pub fn event(&mut self, event: &Event) -> After {
        self.connection.event(event, &mut self.out)
    }

    /// The client reads this, and nothing else.
    pub fn hears(&mut self, expected: &str) {
        let heard = String::from_utf8_lossy(&self.out.split()).replace('\n', "|").replace('\0', "^@");
        assert_eq!(heard, expected);
    }

    pub fn auto_acks(&mut self) -> Vec<String> {
        let mut acks = Vec::new();
        self.connection.take_auto_acks(&mut acks);
        acks.iter().map(describe_ack).collect()
    }

    pub fn tick(&mut self) -> Result<Option<i64>, Closed> {
        self.connection.tick(self.now, &mut self.out)
    }
}

pub fn text_message(text: &str, sequence: i64) -> Message {
    Message {
        id: MessageId { sequence, producer: producer(), ..MessageId::default() },
        destination: Destination::queue("a"),
        priority: 4,
        timestamp_ms: 77,
        kind: BodyKind::Text,
        content: Content::Utf8(text.into()),
        ..Message::default()
    }
}

fn producer() -> ProducerId {
    ProducerId { connection: "ID:p-1".into(), session: -1, value: 1 }
}

fn describe_ack(ack: &Ack) -> String {
    let kind = match ack.kind {
        AckKind::Consumed => "",
        AckKind::Poison => " poison",
        AckKind::Released => " released",
    };
    format!("{}-{}={}{kind}", ack.consumer.0, ack.tag, ack.id.sequence)
}

/// `*` at the end: it has a token.
fn describe((request, token): &(Request, Option<Token>)) -> String {
    let text = match request {
        Request::Connect(info) => match (&info.login, &info.client_id) {
            (None, None) => "connect".to_owned(),
            (login, client_id) => format!("connect {login:?} {client_id:?} {}", info.protocol),
        },
        Request::Send { message, transaction } => {
            describe_message(message, transaction.map(|number| number.0))
        }
        Request::Subscribe(subscribe) => {
            let mut text = format!(
                "subscribe {} {} prefetch {}",
                subscribe.consumer.0, subscribe.destination, subscribe.prefetch
            );
            for (set, name) in [
                (subscribe.auto_ack, "auto"),
                (subscribe.no_local, "no-local"),
                (subscribe.exclusive, "exclusive"),
                (subscribe.retroactive, "retroactive"),
                (subscribe.browser, "browser"),
            ] {
                if set {
                    text = format!("{text} {name}");
                }
            }
            for (name, value) in [("durable", &subscribe.durable_name), ("selector", &subscribe.selector)] {
                if let Some(value) = value {
                    text += &format!(" {name} {value}");
                }
            }
            if subscribe.priority > 0 {
                text += &format!(" priority {}", subscribe.priority);
            }
            return text;
        }
        Request::Unsubscribe { consumer } => format!("unsubscribe {}", consumer.0),
        Request::RemoveSubscription { name } => format!("remove {name}"),
        Request::Acknowledge { acks, transaction } => {
            let acks: Vec<_> = acks.iter().map(describe_ack).collect();
            let transaction = transaction.map(|number| format!(" in {}", number.0)).unwrap_or_default();
            format!("ack {}{transaction}", acks.join(" "))
        }
        Request::Begin { transaction } => format!("begin {}", transaction.0),
        Request::Commit { transaction } => return format!("commit {}", transaction.0),
        Request::Rollback { transaction } => format!("rollback {}", transaction.0),
        Request::Disconnect => return "disconnect".to_owned(),
    };
    let always = matches!(request, Request::Connect(_));
    if token.is_some() && !always { format!("{text} *") } else { text }
}

fn describe_message(message: &Message, transaction: Option<u32>) -> String {
    let mut text = format!("send {} {}", message.id.sequence, message.destination);
    match (message.kind, &message.content) {
        (BodyKind::Text, Content::Utf8(body)) => text += &format!(" '{body}'"),
        (kind, Content::Marshalled(body)) => text += &format!(" {kind:?} {body:?}"),
        other => text += &format!(" {other:?}"),
    }
    let times = [("expires", message.expiration_ms, 0), ("at", message.timestamp_ms, 1000)];
    for (name, value, usual) in times {
        if value != usual {
            text += &format!(" {name} {value}");
        }
    }
    if message.persistent {
        text += " persistent";
    }
    if message.priority != 4 {
        text += &format!(" priority {}", message.priority);
    }
    for (name, value) in
        [("corr", &message.correlation_id), ("type", &message.jms_type), ("group", &message.group_id)]
    {
        if let Some(value) = value {
            text += &format!(" {name} {value}");
        }
    }
    if message.group_sequence != 0 {
        text += &format!(" seq {}", message.group_sequence);
    }
    if let Some(reply_to) = &message.reply_to {
        text += &format!(" reply {reply_to}");
    }
    for property in message.properties.iter().flat_map(kahawai_message::properties::iter) {
        let (name, value) = property.unwrap();
        text += &format!(" {name}={value:?}");
    }
    if let Some(number) = transaction {
        text += &format!(" in {number}");
    }
    text
}
