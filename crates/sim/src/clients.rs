//! The workload: producers and consumers as applications write them, all of them together one pure machine.
//!
//! Each has a list of nodes and goes to the next after a refusal, a loss or a long silence. What was asked and not answered is
//! then unknown. Some producers send it again under the same number, some send it again without one, some do not. Consumers
//! acknowledge one by one, together or in transactions, give back, refuse, roll back, crash, leave and come again.
//! Everything is noted in a [`History`]. The broker offers no XA transactions yet, so there are none here.

mod browser;
mod consumer;
mod producer;

use std::collections::VecDeque;

use kahawai_testkit::Random;

use crate::Micros;
use crate::history::{History, Kind, Layout, Moment, OperationId};
use crate::wire::{Answer, Ask, ClientId, Op, Place, TransactionOf, Wanted};
use browser::Browser;
use consumer::Consumer;
use producer::{Policy, Producer};

/// After this long without anything new, a run in which all that is owed was consumed is at its end, …
const QUIET_US: Micros = 1_000_000;
/// … and after this long in any case, or after three times a client's patience: what has not come by then is lost.
const SILENCE_US: Micros = 20_000_000;
/// How often clients give a sign of life when there is nothing else to do any more.
const QUIESCED_HEARTBEAT_US: Micros = 400_000;

/// What happened to a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientEvent {
    /// The time that it asked for has come.
    Wake,
    /// The node took the connection.
    Connected,
    /// It did not.
    Refused,
    /// The connection broke, or the node closed it.
    Closed,
    /// Something came.
    Answer(Answer),
}

/// What the world has to do for a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientEffect {
    /// Connect it.
    Connect {
        /// Which.
        client: ClientId,
        /// Where to.
        node: usize,
    },
    /// Send this on its connection.
    Ask(ClientId, Ask),
    /// Its connection ends, or its attempt to connect. No [`ClientEvent::Closed`] follows.
    Close(ClientId),
    /// Wake it then.
    WakeAt(ClientId, Micros),
}

/// How many there are, and how fast they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Queues, topics, durable subscriptions.
    pub layout: Layout,
    /// Clients that only send.
    pub producers: u8,
    /// Consumers of each queue.
    pub consumers: u8,
    /// Clients that move messages from one queue to another in transactions.
    pub movers: u8,
    /// Plain subscribers of topics.
    pub listeners: u8,
    /// Clients that look at queues.
    pub browsers: u8,
    /// Between two things that a client does, on average.
    pub pause_us: Micros,
    /// How long a client waits for an answer.
    pub patience_us: Micros,
    /// How long it waits after a loss before it connects again, on average.
    pub backoff_us: Micros,
    /// One in so many things that a consumer does is a crash, and as many times something else that is rare.
    pub rarely: u64,
    /// Some messages are refused for good, and some expire; both go to the dead letters.
    pub dead_letters: bool,
}

impl Shape {
    /// Of everything one or two.
    pub const SMALL: Self = Self {
        layout: Layout { queues: 2, topics: 1, durables: 3 },
        producers: 3,
        consumers: 2,
        movers: 1,
        listeners: 1,
        browsers: 1,
        pause_us: 20_000,
        patience_us: 8_000_000,
        backoff_us: 300_000,
        rarely: 150,
        dead_letters: true,
    };
}

/// Whose turn it is in a step, and where what it does goes.
struct Desk<'a> {
    now: Micros,
    effects: &'a mut Vec<ClientEffect>,
    history: &'a mut History,
    shape: Shape,
    nodes: usize,
    /// Faults are over: nothing new is sent, and nobody misbehaves.
    quiesced: bool,
}

/// How far a client's connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    Down,
    Dialling,
    /// Connected, not yet known to the broker.
    Greeting,
    Up,
}

/// What an answer is waited for.
#[derive(Debug)]
enum Waits {
    Greeting,
    Heartbeat,
    Leave,
    Producer(producer::Asked),
    Consumer(consumer::Asked),
    Browser(browser::Asked),
}

#[derive(Debug)]
struct Pending {
    op: Op,
    operation: OperationId,
    asked_at: Micros,
    waits: Waits,
}

/// A client's connection, and what it waits for there.
#[derive(Debug)]
struct Line {
    id: ClientId,
    random: Random,
    node: usize,
    link: Link,
    reign: u64,
    /// Since when it dials, or waits for its greeting.
    dialled_at: Micros,
    heard_at: Micros,
    /// When anything but a heart-beat happened last.
    busy_at: Micros,
    wake_at: Micros,
    op_last: u32,
    transaction_last: u32,
    pending: VecDeque<Pending>,
    /// What comes now left its node after this.
    left_after: Moment,
}

impl Line {
    fn ask(&mut self, desk: &mut Desk<'_>, kind: Kind, waits: Waits, make: impl FnOnce(Op) -> Ask) {
        self.op_last += 1;
        let op = Op(self.op_last);
        let node = u8::try_from(self.node).unwrap_or(u8::MAX);
        let operation = desk.history.asked(self.id, node, self.reign, kind);
        if !matches!(waits, Waits::Heartbeat) {
            self.busy_at = desk.now;
        }
        self.pending.push_back(Pending { op, operation, asked_at: desk.now, waits });
        desk.effects.push(ClientEffect::Ask(self.id, make(op)));
    }

    fn next_transaction(&mut self) -> TransactionOf {
        self.transaction_last += 1;
        TransactionOf(self.transaction_last)
    }

    /// Only signs of life are waited for, if anything.
    fn is_idle(&self) -> bool {
        self.pending.iter().all(|pending| matches!(pending.waits, Waits::Heartbeat))
    }

    fn wake_in(&mut self, desk: &mut Desk<'_>, delay: Micros) {
        let at = desk.now + delay.max(1);
        if at < self.wake_at {
            self.wake_at = at;
            desk.effects.push(ClientEffect::WakeAt(self.id, at));
        }
    }

    /// A pause of `mean` on average.
    fn pause(&mut self, mean: Micros) -> Micros {
        1 + self.random.below(2 * mean)
    }
}

#[derive(Debug)]
enum Part {
    Producer(Producer),
    Consumer(Consumer),
    Browser(Browser),
}

#[derive(Debug)]
struct Client {
    line: Line,
    part: Part,
}

/// All clients.
#[derive(Debug)]
pub struct Clients {
    shape: Shape,
    nodes: usize,
    now: Micros,
    quiesced: bool,
    clients: Vec<Client>,
    history: History,
}

impl Clients {
    /// They are there and have done nothing. [`Clients::begin`] sets them going.
    pub fn new(seed: u64, nodes: usize, shape: Shape) -> Self {
        let mut random = Random::new(seed);
        let mut clients = Vec::new();
        for part in parts(shape, &mut random) {
            let id = ClientId(u32::try_from(clients.len()).unwrap_or(u32::MAX));
            let mut own = Random::new(random.next_u64());
            let node = own.below(nodes as u64) as usize;
            let line = Line {
                id,
                random: own,
                node,
                link: Link::Down,
                reign: 0,
                dialled_at: 0,
                heard_at: 0,
                busy_at: 0,
                wake_at: Micros::MAX,
                op_last: 0,
                transaction_last: 0,
                pending: VecDeque::new(),
                left_after: 0,
            };
            clients.push(Client { line, part });
        }
        Self {
            shape,
            nodes: nodes.max(1),
            now: 0,
            quiesced: false,
            clients,
            history: History::new(shape.layout),
        }
    }

    /// How many there are: [`ClientId`]s below this.
    pub fn count(&self) -> u32 {
        self.clients.len() as u32
    }

    /// Each will wake up for the first time.
    pub fn begin(&mut self, now: Micros, effects: &mut Vec<ClientEffect>) {
        let Self { clients, history, shape, nodes, quiesced, .. } = self;
        for client in clients {
            let mut desk = Desk { now, effects, history, shape: *shape, nodes: *nodes, quiesced: *quiesced };
            let delay = client.line.pause(shape.pause_us);
            client.line.wake_in(&mut desk, delay);
        }
    }

    /// Something happened to a client.
    pub fn step(
        &mut self,
        now: Micros,
        client: ClientId,
        event: ClientEvent,
        effects: &mut Vec<ClientEffect>,
    ) {
        self.now = now;
        let Self { clients, history, shape, nodes, quiesced, .. } = self;
        let Some(client) = clients.get_mut(client.0 as usize) else { return };
        history.begin_step(now);
        let mut desk = Desk { now, effects, history, shape: *shape, nodes: *nodes, quiesced: *quiesced };
        client.step(&mut desk, event);
    }

    /// Faults are over: nothing new is sent, what is unfinished is finished, everything is consumed.
    pub fn quiesce(&mut self) {
        self.quiesced = true;
    }

    /// Nobody waits for anything, and nothing comes any more.
    pub fn is_drained(&self) -> bool {
        if !self.quiesced {
            return false;
        }
        let mut busy_at = 0;
        for client in &self.clients {
            if !client.is_done() {
                return false;
            }
            busy_at = busy_at.max(client.line.busy_at);
        }
        let quiet = self.now.saturating_sub(busy_at);
        // Whoever consumes has been reached since: what there is would have come.
        let heard_since = busy_at + QUIET_US / 2;
        let are_reached = self.clients.iter().all(|client| match client.part {
            Part::Producer(_) | Part::Browser(_) => true,
            Part::Consumer(_) => client.line.heard_at >= heard_since,
        });
        let silence = SILENCE_US.max(3 * self.shape.patience_us);
        quiet >= QUIET_US && are_reached && (quiet >= silence || !self.history.is_owed_anything())
    }

    /// What happened.
    pub fn history(&self) -> &History {
        &self.history
    }
}

/// Who takes part. Each queue and each dead letter has somebody who takes whatever comes.
fn parts(shape: Shape, random: &mut Random) -> Vec<Part> {
    let layout = shape.layout;
    let mut parts = Vec::new();
    let plain = |place| Wanted {
        place,
        durable: None,
        colour: None,
        prefetch: 4,
        auto_ack: false,
        exclusive: false,
        priority: 0,
        browser: false,
    };
    for number in 0..shape.producers {
        let policy = match number % 4 {
            0 | 1 => Policy::Resend,
            2 => Policy::Blind,
            _ => Policy::Forget,
        };
        parts.push(Part::Producer(Producer::new(number.into(), policy, random)));
    }
    for number in 0..shape.consumers {
        for queue in 0..layout.queues {
            let mut wanted = plain(Place::Queue(queue));
            wanted.prefetch = 1 + random.below(8) as u16;
            if number > 0 {
                wanted.colour = random.chance(3).then(|| random.below(2) as u8);
                // With a selector it would keep the others from what it does not want itself.
                wanted.exclusive = wanted.colour.is_none() && random.chance(8);
                wanted.priority = random.below(3) as u8;
            }
            parts.push(Part::Consumer(Consumer::new(wanted)));
        }
    }
    for topic in 0..layout.topics {
        for durable in 0..layout.durables {
            let mut wanted = plain(Place::Topic(topic));
            wanted.durable = Some(durable);
            wanted.prefetch = 1 + random.below(8) as u16;
            wanted.colour = (durable == 1).then_some(0);
            let consumer = Consumer::new(wanted);
            parts.push(Part::Consumer(if durable == 2 { consumer.inconstant() } else { consumer }));
        }
    }
    for number in 0..shape.movers {
        let from = number % layout.queues.max(1);
        let to = Place::Queue((from + 1) % layout.queues.max(1));
        let producer = u32::from(shape.producers) + u32::from(number);
        parts.push(Part::Consumer(Consumer::new(plain(Place::Queue(from))).moving(producer, to)));
    }
    for number in 0..shape.listeners {
        let mut wanted = plain(Place::Topic(number % layout.topics.max(1)));
        wanted.auto_ack = true;
        parts.push(Part::Consumer(Consumer::new(wanted)));
    }
    for number in 0..shape.browsers {
        let mut wanted = plain(Place::Queue(number % layout.queues.max(1)));
        wanted.browser = true;
        wanted.colour = random.chance(3).then_some(1);
        parts.push(Part::Browser(Browser::new(wanted)));
    }
    if shape.dead_letters {
        parts.push(Part::Consumer(Consumer::new(plain(Place::Dead))));
    }
    parts
}

impl Client {
    fn step(&mut self, desk: &mut Desk<'_>, event: ClientEvent) {
        match event {
            ClientEvent::Wake if desk.now < self.line.wake_at => return,
            ClientEvent::Wake => {
                self.line.wake_at = Micros::MAX;
                self.wake(desk);
            }
            ClientEvent::Connected if self.line.link == Link::Dialling => {
                self.line.link = Link::Greeting;
                self.line.dialled_at = desk.now;
                self.line.ask(desk, Kind::Other, Waits::Greeting, |op| Ask::Connect { op });
            }
            ClientEvent::Refused if self.line.link == Link::Dialling => self.lost(desk),
            ClientEvent::Closed if self.line.link != Link::Down => self.lost(desk),
            ClientEvent::Connected | ClientEvent::Refused | ClientEvent::Closed => {}
            ClientEvent::Answer(answer) => {
                if matches!(self.line.link, Link::Greeting | Link::Up) {
                    self.line.heard_at = desk.now;
                    self.answer(desk, answer);
                }
            }
        }
        let delay = match self.line.link {
            Link::Down => self.line.pause(desk.shape.backoff_us),
            Link::Dialling | Link::Greeting | Link::Up if desk.quiesced => QUIESCED_HEARTBEAT_US,
            Link::Dialling | Link::Greeting | Link::Up => desk.shape.patience_us / 4,
        };
        self.line.wake_in(desk, delay);
    }

    fn wake(&mut self, desk: &mut Desk<'_>) {
        let patience = desk.shape.patience_us;
        match self.line.link {
            Link::Down => {
                self.line.link = Link::Dialling;
                self.line.dialled_at = desk.now;
                desk.effects.push(ClientEffect::Connect { client: self.line.id, node: self.line.node });
            }
            Link::Dialling | Link::Greeting => {
                if desk.now >= self.line.dialled_at + patience {
                    self.hang_up(desk);
                }
            }
            Link::Up => {
                let oldest = self.line.pending.front().map(|pending| pending.asked_at);
                if oldest.is_some_and(|asked_at| desk.now >= asked_at + patience) {
                    return self.hang_up(desk);
                }
                let goes_on = match &mut self.part {
                    Part::Producer(producer) => producer.act(&mut self.line, desk),
                    Part::Consumer(consumer) => consumer.act(&mut self.line, desk),
                    Part::Browser(browser) => browser.act(&mut self.line, desk),
                };
                match goes_on {
                    Next::Stay(Some(delay)) => self.line.wake_in(desk, delay),
                    Next::Stay(None) => {}
                    Next::Leave => {
                        self.line.ask(desk, Kind::Other, Waits::Leave, |op| Ask::Disconnect { op })
                    }
                    Next::Crash => return self.hang_up(desk),
                }
                let is_silent = desk.quiesced || desk.now >= self.line.heard_at + patience / 4;
                if self.line.pending.is_empty() && (is_silent || self.line.random.chance(4)) {
                    self.line.ask(desk, Kind::Other, Waits::Heartbeat, |op| Ask::Heartbeat { op });
                }
            }
        }
    }

    /// The client ends the connection itself.
    fn hang_up(&mut self, desk: &mut Desk<'_>) {
        desk.effects.push(ClientEffect::Close(self.line.id));
        self.lost(desk);
    }

    /// The connection is no more: what was not answered is unknown.
    fn lost(&mut self, desk: &mut Desk<'_>) {
        self.line.link = Link::Down;
        self.line.busy_at = desk.now;
        self.line.node = (self.line.node + 1) % desk.nodes;
        let pending = std::mem::take(&mut self.line.pending);
        for pending in &pending {
            desk.history.unknown(pending.operation);
        }
        let waits = pending.into_iter().map(|pending| pending.waits);
        match &mut self.part {
            Part::Producer(producer) => producer.lost(desk, waits),
            Part::Consumer(consumer) => consumer.lost(desk),
            Part::Browser(browser) => browser.lost(),
        }
        self.line.wake_at = Micros::MAX;
    }

    fn answer(&mut self, desk: &mut Desk<'_>, answer: Answer) {
        let (op, is_done, reign) = match answer {
            Answer::Connected { op, reign } => (op, true, Some(reign)),
            Answer::Done { op } => (op, true, None),
            Answer::Refused { op } => (op, false, None),
            Answer::Delivered(delivered) => {
                self.line.busy_at = desk.now;
                match &mut self.part {
                    Part::Producer(_) => {}
                    Part::Consumer(consumer) => consumer.delivered(&mut self.line, desk, delivered),
                    Part::Browser(browser) => browser.delivered(&self.line, desk, delivered),
                }
                return;
            }
            Answer::BrowseEnd { consumer } => {
                if let Part::Browser(browser) = &mut self.part {
                    browser.ended(&mut self.line, desk, consumer);
                }
                return;
            }
            Answer::ConsumerClosed { .. } | Answer::Closed => return self.hang_up(desk),
        };
        // Mostly the oldest: answers come in order, except for refusals and signs of life.
        let Some(at) = self.line.pending.iter().position(|pending| pending.op == op) else { return };
        let Some(pending) = self.line.pending.remove(at) else { return };
        if let Some(reign) = reign {
            self.line.reign = reign;
            desk.history.connected(self.line.id, reign);
        }
        let asked = match is_done {
            true => desk.history.ok(pending.operation),
            false => desk.history.refused(pending.operation),
        };
        self.line.left_after = self.line.left_after.max(asked);
        if !matches!(pending.waits, Waits::Heartbeat) {
            self.line.busy_at = desk.now;
        }
        let is_well = match (pending.waits, is_done) {
            (Waits::Greeting, true) => {
                self.line.link = Link::Up;
                let delay = self.line.pause(desk.shape.pause_us);
                self.line.wake_in(desk, delay);
                true
            }
            (Waits::Heartbeat, true) => true,
            (Waits::Greeting | Waits::Heartbeat | Waits::Leave, _) => false,
            (Waits::Producer(asked), _) => match &mut self.part {
                Part::Producer(producer) => producer.answered(asked, is_done),
                Part::Consumer(_) | Part::Browser(_) => true,
            },
            (Waits::Consumer(asked), _) => match &mut self.part {
                Part::Consumer(consumer) => consumer.answered(&mut self.line, desk, asked, is_done),
                Part::Producer(_) | Part::Browser(_) => true,
            },
            (Waits::Browser(asked), _) => match &mut self.part {
                Part::Browser(browser) => browser.answered(&mut self.line, desk, asked, is_done),
                Part::Producer(_) | Part::Consumer(_) => true,
            },
        };
        if !is_well {
            self.hang_up(desk);
        }
    }

    fn is_done(&self) -> bool {
        self.line.is_idle()
            && match &self.part {
                Part::Producer(producer) => producer.is_done(),
                Part::Consumer(consumer) => self.line.link == Link::Up && consumer.is_done(),
                Part::Browser(browser) => browser.is_done(),
            }
    }
}

/// What a client does when it has done what it could.
enum Next {
    /// Goes on, after so long if it has something to do without being told.
    Stay(Option<Micros>),
    /// Leaves in good order.
    Leave,
    /// Ends without a word.
    Crash,
}
