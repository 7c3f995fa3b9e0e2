//! One STOMP connection's task: socket on one side, core and commit position on the other.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use kahawai_broker::{ConnectionKey, Outcome};
use kahawai_journal::WindowReader;
use kahawai_message::front::{Ack, Delivery, Refusal, Request, Source, Token};
use kahawai_message::storage::Storage;
use kahawai_stomp::{After, Closed, Connection, ConnectionOptions, Progress};
use kahawai_types::{Lsn, Millis};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tracing::{debug, error, info, warn};

use crate::ahead::Socket;
use crate::core::{Core, Hold, Shared};
use crate::outbox::{Item, Outbox};
use crate::threads::read_wherever;

/// Room that a read offers: little for a client that sends little, more while reads fill it.
const READ_BYTES_MIN: usize = 8 << 10;
const READ_BYTES_MAX: usize = 128 << 10;
/// No more deliveries are encoded while this much waits for the socket.
const OUT_BYTES_MAX: usize = 256 << 10;
/// Requests taken from one read before they are carried out.
const REQUESTS_MAX: usize = 256;
/// Requests that may queue behind a blocked send before reading stops.
const BLOCKED_MAX: usize = 256;
/// When a connection that waits for nothing looks up.
const IDLE: Duration = Duration::from_secs(3600);
/// A connection says at most this often that it is held back, milliseconds.
const HELD_BACK_LOG_MS: Millis = 10_000;
/// Where no more connections than this wait for answers, the thread that confirms gives them: its time is short, and with more of
/// them their tasks share the work.
const ANSWERED_AHEAD_MAX: usize = 2;
/// How long the last bytes may take before the socket is closed.
const GOODBYE: Duration = Duration::from_secs(2);

/// A request that waits for room, or an answer that must not pass it.
enum Held {
    Request(Request, Option<Token>),
    /// A browser looks once everything sent before it can be seen.
    Behind(Lsn, Request, Option<Token>),
    Answer(Lsn, Token),
}

/// How far a client's own goodbye is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    /// It has not said it.
    No,
    /// Its DISCONNECT waits for what was before it.
    Asked,
    /// The broker has let it go: its client id and its subscriptions are free, the answer may leave.
    Gone,
}

struct Task<S> {
    stream: S,
    /// The same, where others may write an answer to it.
    socket: Option<Arc<dyn Socket>>,
    shared: Arc<Shared>,
    machine: Connection,
    outbox: Arc<Outbox>,
    connection: Option<ConnectionKey>,
    input: BytesMut,
    out: BytesMut,
    /// Room that the next read offers.
    read_bytes: usize,
    /// There may be whole frames in `input`.
    unread: bool,
    end_of_input: bool,
    requests: Vec<(Request, Option<Token>)>,
    /// Answers in order: each leaves once the commit position has reached its own.
    answers: VecDeque<(Lsn, Token)>,
    /// The position that the commit wakes us for.
    registered: Option<Lsn>,
    /// How many lately waited for theirs.
    crowd: usize,
    /// For an answer that leaves without us.
    spare: BytesMut,
    /// Nothing is taken from `input` before an answer has left.
    stalled: bool,
    held: VecDeque<Held>,
    items: Vec<Item>,
    deliveries: VecDeque<Item>,
    withheld: VecDeque<Item>,
    /// Why.
    hold: Hold,
    acks: Vec<Ack>,
    window: WindowReader,
    peer: String,
    held_back_logged: Millis,
    goodbye: Goodbye,
    /// End of what this connection has appended: its DISCONNECT waits for that, and for nobody else's.
    appended: Lsn,
    closing: bool,
}

/// Serves a connection until either side ends it. Never fails: what went wrong is logged here, once. `socket` is where the bytes
/// of `stream` go, if answers may be written there as they are.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    socket: Option<Arc<dyn Socket>>,
    peer: String,
    options: ConnectionOptions,
    shared: Arc<Shared>,
) {
    let machine = Connection::new(options, shared.now());
    let window = shared.reader.window();
    let mut task = Task {
        stream,
        socket,
        machine,
        outbox: Arc::new(Outbox::default()),
        connection: None,
        input: BytesMut::new(),
        out: BytesMut::new(),
        read_bytes: READ_BYTES_MIN,
        unread: false,
        end_of_input: false,
        requests: Vec::new(),
        answers: VecDeque::new(),
        registered: None,
        crowd: 0,
        spare: BytesMut::new(),
        stalled: false,
        held: VecDeque::new(),
        items: Vec::new(),
        deliveries: VecDeque::new(),
        withheld: VecDeque::new(),
        hold: Hold::Nothing,
        acks: Vec::new(),
        window,
        peer,
        held_back_logged: 0,
        goodbye: Goodbye::No,
        appended: Lsn::ZERO,
        closing: false,
        shared,
    };
    let ended = task.run().await;
    match &ended {
        Ok(()) => debug!(peer = %task.peer, "connection ended"),
        Err(error) => debug!(peer = %task.peer, %error, "connection lost"),
    }
    task.leave();
}

impl<S: AsyncRead + AsyncWrite + Unpin> Task<S> {
    async fn run(&mut self) -> io::Result<()> {
        let mut timer = Box::pin(tokio::time::sleep(IDLE));
        let mut deadline = None;
        loop {
            self.take_back();
            if self.outbox.is_closing() {
                // The node stops or has failed: no answer is an answer that a failover client understands.
                return Ok(());
            }
            self.take_items();
            self.answer();
            if !self.closing {
                self.retry_held();
                self.process();
                // What it waits for may have happened since.
                self.retry_held();
            }
            self.deliver();
            if self.closing && self.out.is_empty() {
                return self.close().await;
            }
            // Who has said all and closed its side still gets the answers that it waits for.
            let owed = !self.answers.is_empty() || !self.held.is_empty() || !self.out.is_empty();
            if self.end_of_input && !self.closing && (!self.unread || self.stalled) && !owed {
                return Ok(());
            }
            if !self.closing {
                self.tick(&mut timer, &mut deadline);
            }
            self.leave_answer();
            poll_fn(|cx| self.poll(cx, timer.as_mut())).await?;
        }
    }

    /// If all that is to be done is to give one receipt, somebody else may do it.
    fn leave_answer(&mut self) {
        let Some(socket) = &self.socket else { return };
        if self.crowd > ANSWERED_AHEAD_MAX
            || self.answers.len() != 1
            || !self.out.is_empty()
            || !self.held.is_empty()
            || !self.deliveries.is_empty()
            || self.stalled
            || self.end_of_input
            || self.closing
        {
            return;
        }
        let Some(&(lsn, token)) = self.answers.front() else { return };
        if self.registered != Some(lsn) || !self.machine.receipt(token, &mut self.spare) {
            return;
        }
        self.outbox.ahead.leave(lsn, std::mem::take(&mut self.spare), Arc::clone(socket));
    }

    /// From here on we are the only one who writes.
    fn take_back(&mut self) {
        let Some((written, buffer)) = self.outbox.ahead.take_back() else { return };
        self.spare = buffer;
        if written == 0 {
            return;
        }
        if let Some((_, token)) = self.answers.pop_front() {
            let after = self.machine.confirmed(token, &mut self.out);
            self.after(after);
            self.out.advance(written.min(self.out.len()));
        }
    }

    fn may_process(&self) -> bool {
        self.held.len() < BLOCKED_MAX && self.out.len() < OUT_BYTES_MAX && !self.shared.is_paused()
    }

    fn may_read(&self) -> bool {
        !self.end_of_input && !self.closing && self.may_process() && !self.unread
    }

    fn poll(&mut self, cx: &mut Context<'_>, timer: Pin<&mut tokio::time::Sleep>) -> Poll<io::Result<()>> {
        let mut wrote = false;
        if !self.out.is_empty() && !self.shared.gate.is_open(&*self.shared.clock) {
            // Another node may lead by now: no success, no error, no message. The client comes back elsewhere.
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        while !self.out.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.out) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    self.out.advance(n);
                    wrote = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        if self.out.is_empty() {
            if let Poll::Ready(Err(error)) = Pin::new(&mut self.stream).poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            self.auto_acknowledge();
        }
        if self.may_read() {
            // For a large frame as much again as has come already: what a client only announces takes no memory, and what it
            // sends is not copied again and again.
            let large = self.input.len().max(READ_BYTES_MAX);
            let room = self.machine.bytes_missing(&self.input).min(large).max(self.read_bytes);
            self.input.reserve(room);
            let offered = self.input.capacity() - self.input.len();
            let mut any = false;
            match pin!(self.stream.read_buf(&mut self.input)).poll(cx) {
                Poll::Ready(Ok(0)) => {
                    self.end_of_input = true;
                    any = true;
                }
                Poll::Ready(Ok(read)) => {
                    if read >= offered {
                        self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
                    } else if read < self.read_bytes / 8 {
                        self.read_bytes = (self.read_bytes / 2).max(READ_BYTES_MIN);
                    }
                    self.unread = true;
                    any = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
            if any {
                return Poll::Ready(Ok(()));
            }
        }
        if self.outbox.signal.poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if timer.poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        // Room was made: there may be deliveries or input that waited for it, or nothing is left to wait for.
        if wrote
            && self.out.len() < OUT_BYTES_MAX
            && (!self.deliveries.is_empty()
                || self.unread
                || self.closing
                || self.end_of_input
                || self.goodbye == Goodbye::Asked)
        {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    /// Heart-beats and time-outs, and when to look next. The timer is only touched if it has to ring earlier, or has rung.
    fn tick(&mut self, timer: &mut Pin<Box<tokio::time::Sleep>>, deadline: &mut Option<Millis>) {
        let now = self.shared.now();
        match self.machine.tick(now, &mut self.out) {
            Ok(next) => {
                if deadline.is_some_and(|set| set <= now) || timer.is_elapsed() {
                    *deadline = None;
                    // One that has rung would go on ringing.
                    timer.as_mut().reset(tokio::time::Instant::now() + IDLE);
                }
                if let Some(next) = next
                    && deadline.is_none_or(|set| next < set)
                {
                    let wait = Duration::from_millis(u64::try_from((next - now).max(1)).unwrap_or(1));
                    timer.as_mut().reset(tokio::time::Instant::now() + wait);
                    *deadline = Some(next);
                }
            }
            Err(closed) => self.end(&closed),
        }
    }

    fn end(&mut self, closed: &Closed) {
        warn!(peer = %self.peer, reason = %closed, "connection refused or ended");
        self.closing = true;
    }

    fn after(&mut self, after: After) {
        if after == After::Close {
            self.closing = true;
        }
    }

    fn take_items(&mut self) {
        self.outbox.take(&mut self.items);
        self.deliveries.extend(self.items.drain(..));
        if self.goodbye != Goodbye::No {
            // Nobody waits for them; they go back to their queues with the connection.
            self.deliveries.clear();
        }
    }

    /// Sends the answers that the commit position has reached.
    fn answer(&mut self) {
        loop {
            let position = self.shared.commit.position();
            while let Some(&(lsn, token)) = self.answers.front() {
                if lsn > position {
                    break;
                }
                // A DISCONNECT is the last: who has its receipt may come back at once with the same client id.
                if self.goodbye == Goodbye::Asked && self.answers.len() == 1 && self.held.is_empty() {
                    if !self.out.is_empty() {
                        return;
                    }
                    self.auto_acknowledge();
                    self.leave();
                    self.goodbye = Goodbye::Gone;
                    self.answers[0].0 = self.appended;
                    continue;
                }
                self.answers.pop_front();
                let after = self.machine.confirmed(token, &mut self.out);
                self.after(after);
                self.stalled = false;
            }
            if self.registered.is_some_and(|lsn| lsn <= position) {
                self.registered = None;
            }
            let behind = match self.held.front() {
                Some(Held::Behind(lsn, ..)) if *lsn > position => Some(*lsn),
                _ => None,
            };
            let answer = self.answers.front().map(|&(lsn, _)| lsn);
            let Some(lsn) = answer.into_iter().chain(behind).min() else { return };
            if self.registered.is_some() {
                return;
            }
            if let Some(crowd) = self.shared.commit.wait(lsn, &self.outbox) {
                (self.registered, self.crowd) = (Some(lsn), crowd);
                return;
            }
        }
    }

    fn process(&mut self) {
        while self.unread && !self.stalled && self.may_process() && !self.closing {
            let now = self.shared.now();
            let result =
                self.machine.receive(now, &mut self.input, &mut self.requests, REQUESTS_MAX, &mut self.out);
            let full = self.requests.len() >= REQUESTS_MAX;
            self.carry_out(now);
            match result {
                Ok(Progress::Full) => self.stalled = !full,
                Ok(Progress::AwaitConnected) => self.stalled = true,
                Ok(Progress::NeedInput | Progress::Ended) => self.unread = false,
                Err(closed) => self.end(&closed),
            }
            self.answer();
        }
    }

    /// May it pass a blocked send? What makes room may; what has an order with sends may not.
    fn may_pass(request: &Request) -> bool {
        matches!(
            request,
            Request::Acknowledge { transaction: None, .. }
                | Request::Subscribe(_)
                | Request::Unsubscribe { .. }
        )
    }

    fn carry_out(&mut self, now: Millis) {
        if self.requests.is_empty() {
            return;
        }
        let mut requests = std::mem::take(&mut self.requests);
        let shared = Arc::clone(&self.shared);
        let mut refused = Vec::new();
        shared.with(|core| {
            for (request, token) in requests.drain(..) {
                if !self.held.is_empty() && !Self::may_pass(&request) {
                    self.held.push_back(Held::Request(request, token));
                    continue;
                }
                if let Request::Subscribe(subscribe) = &request
                    && subscribe.browser
                {
                    // What is confirmed, to whomever, and what this connection sent; others' sends may wait for long.
                    let seen = self.shared.commit.position().max(self.appended);
                    if core.store.applied() < seen {
                        self.held.push_back(Held::Behind(seen, request, token));
                        continue;
                    }
                }
                match self.request(core, now, request) {
                    Ok(Outcome::Done) => self.owe(core.answer_at(), token),
                    Ok(Outcome::At(lsn)) => self.owe(lsn, token),
                    Ok(Outcome::Blocked(request, reason)) => {
                        // An operator sees who waits, and for what; one that comes and goes does not fill the log.
                        if now >= self.held_back_logged + HELD_BACK_LOG_MS {
                            self.held_back_logged = now;
                            info!(peer = %self.peer, ?reason, "producer held back at a limit");
                        }
                        self.held.push_back(Held::Request(*request, token));
                    }
                    Err(refusal) => refused.push((token, refusal)),
                }
            }
        });
        self.requests = requests;
        self.refuse(refused);
    }

    fn refuse(&mut self, refused: Vec<(Option<Token>, Refusal)>) {
        for (token, refusal) in refused {
            debug!(peer = %self.peer, %refusal, "request refused");
            let after = self.machine.refused(token, &refusal, &mut self.out);
            self.after(after);
            self.stalled = false;
        }
    }

    fn owe(&mut self, lsn: Lsn, token: Option<Token>) {
        let Some(token) = token else { return };
        if self.held.is_empty() {
            // Answers leave in the order of the requests: none before those in front of it.
            let lsn = self.answers.back().map_or(lsn, |&(last, _)| last.max(lsn));
            self.answers.push_back((lsn, token));
        } else {
            self.held.push_back(Held::Answer(lsn, token));
        }
    }

    fn request(&mut self, core: &mut Core, now: Millis, request: Request) -> Result<Outcome, Refusal> {
        match (request, self.connection) {
            (Request::Connect(info), None) => {
                let connection = core.broker.connect(*info)?;
                core.register(connection, Arc::clone(&self.outbox));
                self.connection = Some(connection);
                Ok(Outcome::Done)
            }
            (request, Some(connection)) => {
                let is_goodbye = matches!(request, Request::Disconnect);
                let mut result =
                    core.broker.request(now, connection, request, &mut core.store, &mut core.effects);
                if is_goodbye {
                    self.goodbye = Goodbye::Asked;
                    result = result.map(|_| Outcome::At(self.appended));
                } else if let Ok(Outcome::At(lsn)) = &result {
                    self.appended = self.appended.max(*lsn);
                }
                if let Err(Refusal::Storage(reason)) = &result {
                    core.fail(reason.clone());
                }
                result
            }
            (_, None) => Err(Refusal::Invalid("not connected".into())),
        }
    }

    /// Offers blocked requests again, in order, once there may be room.
    fn retry_held(&mut self) {
        let position = self.shared.commit.position();
        let ready = match self.held.front() {
            None => return,
            Some(Held::Behind(lsn, ..)) => *lsn <= position,
            Some(_) => self.outbox.take_unblocked(),
        };
        if !ready {
            return;
        }
        let now = self.shared.now();
        let mut held = std::mem::take(&mut self.held);
        let shared = Arc::clone(&self.shared);
        let mut refused = Vec::new();
        shared.with(|core| {
            while let Some(first) = held.pop_front() {
                match first {
                    Held::Answer(lsn, token) => self.owe(lsn, Some(token)),
                    Held::Behind(lsn, ..) if lsn > position => {
                        held.push_front(first);
                        break;
                    }
                    Held::Behind(_, request, token) => {
                        core.catch_up(now, position);
                        match self.request(core, now, request) {
                            Ok(_) => self.owe(core.answer_at(), token),
                            Err(refusal) => refused.push((token, refusal)),
                        }
                    }
                    Held::Request(request, token) => match self.request(core, now, request) {
                        Ok(Outcome::Done) => self.owe(core.answer_at(), token),
                        Ok(Outcome::At(lsn)) => self.owe(lsn, token),
                        Ok(Outcome::Blocked(request, _)) => {
                            held.push_front(Held::Request(*request, token));
                            break;
                        }
                        Err(refusal) => refused.push((token, refusal)),
                    },
                }
            }
        });
        self.held = held;
        self.refuse(refused);
        self.answer();
    }

    /// Encodes what waits, as far as there is room.
    fn deliver(&mut self) {
        let hold = self.shared.hold();
        if std::mem::replace(&mut self.hold, hold) != hold && !self.withheld.is_empty() {
            self.withheld.append(&mut self.deliveries);
            std::mem::swap(&mut self.withheld, &mut self.deliveries);
        }
        while self.out.len() < OUT_BYTES_MAX {
            let Some(item) = self.deliveries.pop_front() else { return };
            if self.waits(&item) {
                self.withheld.push_back(item);
                continue;
            }
            match item {
                Item::Event(event) => {
                    let after = self.machine.event(&event, &mut self.out);
                    self.after(after);
                }
                Item::Deliver(delivery) => self.deliver_one(&delivery),
            }
        }
    }

    fn waits(&self, item: &Item) -> bool {
        match (self.hold, item) {
            (Hold::Nothing, _) => false,
            // It may be the end of what is withheld.
            (hold, Item::Event(_)) => hold == Hold::Stored,
            (hold, Item::Deliver(Delivery { source: Source::Stored(..), consumer, .. })) => {
                hold == Hold::Stored || !self.machine.is_browser(*consumer)
            }
            (_, Item::Deliver(_)) => false,
        }
    }

    fn deliver_one(&mut self, delivery: &Delivery) {
        match &delivery.source {
            Source::Memory(message) => {
                self.machine.deliver(delivery, message, &mut self.out);
            }
            Source::Stored(at, entry) => match read_wherever(&mut self.window, &self.shared, *at, entry) {
                Ok(Some(message)) => {
                    self.machine.deliver(delivery, &message, &mut self.out);
                }
                unread => {
                    let reason = unread.err().unwrap_or_else(|| "it is gone".to_owned());
                    error!(location = %entry.location, %reason, "a stored message is unreadable and is not delivered");
                    let Some(connection) = self.connection else { return };
                    let (now, consumer, tag) = (self.shared.now(), delivery.consumer, delivery.tag);
                    self.shared.with(|core| {
                        let Core { broker, store, effects, .. } = core;
                        let result =
                            broker.delivery_unreadable(now, connection, consumer, tag, store, effects);
                        store.journal().suspect(entry.location.file);
                        core.check(result);
                    });
                }
            },
        }
    }

    /// What was written to the socket of consumers that do not acknowledge counts as consumed.
    fn auto_acknowledge(&mut self) {
        self.machine.take_auto_acks(&mut self.acks);
        let Some(connection) = self.connection.filter(|_| !self.acks.is_empty()) else { return };
        let acks = std::mem::take(&mut self.acks);
        let now = self.shared.now();
        let result = self.shared.with(|core| {
            let request = Request::Acknowledge { acks, transaction: None };
            core.broker.request(now, connection, request, &mut core.store, &mut core.effects)
        });
        match result {
            Ok(Outcome::At(lsn)) => self.appended = self.appended.max(lsn),
            Ok(_) => {}
            Err(refusal) => debug!(peer = %self.peer, %refusal, "automatic acknowledgement refused"),
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        use tokio::io::AsyncWriteExt;
        let _ = tokio::time::timeout(GOODBYE, self.stream.shutdown()).await;
        Ok(())
    }

    fn leave(&mut self) {
        self.shared.commit.forget(&self.outbox);
        // It holds the socket.
        let _ = self.outbox.ahead.take_back();
        self.registered = None;
        let Some(connection) = self.connection.take() else { return };
        let now = self.shared.now();
        let appended = self.shared.with(|core| {
            let before = core.store.appended_end();
            let result = core.broker.disconnect(now, connection, &mut core.store, &mut core.effects);
            core.check(result);
            core.unregister(connection);
            let after = core.store.appended_end();
            if after > before { after } else { Lsn::ZERO }
        });
        self.appended = self.appended.max(appended);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Weak, mpsc};
    use std::thread;

    use kahawai_broker::Broker;
    use kahawai_env::{Clock, Files, OsEntropy};
    use kahawai_store::OpenOptions;
    use kahawai_testkit::MemoryFiles;
    use tokio::io::{AsyncWriteExt, DuplexStream, WriteHalf};

    use super::*;
    use crate::ahead::Turns;

    /// Tokio's time, which stands still while any task can run.
    #[derive(Debug)]
    struct TokioClock(tokio::time::Instant);

    impl Clock for TokioClock {
        fn now_ms(&self) -> Millis {
            self.0.elapsed().as_millis() as i64
        }

        fn boot_us(&self) -> u64 {
            self.0.elapsed().as_micros() as u64
        }
    }

    /// The writer has to be kept: a journal without one has failed.
    fn core() -> (Arc<Shared>, kahawai_journal::Writer) {
        let clock: Arc<dyn Clock> = Arc::new(TokioClock(tokio::time::Instant::now()));
        let files: Arc<dyn Files> = Arc::new(MemoryFiles::new());
        let opened =
            kahawai_store::open(&files, &OsEntropy, &OpenOptions::default()).expect("an empty store");
        let broker = Broker::new(kahawai_broker::Options::default());
        // Nobody writes: nothing is confirmed but what the test says.
        (Shared::new(broker, opened.store, files, clock).0, opened.writer)
    }

    #[tokio::test]
    async fn who_left_before_its_answers_came_is_let_go_when_they_have() {
        let (shared, _writer) = core();
        let (mut client, server) = tokio::io::duplex(4096);
        let options = ConnectionOptions::new("ID:test".to_owned());
        let served = tokio::spawn(serve(server, None, "test".into(), options, Arc::clone(&shared)));
        client.write_all(b"CONNECT\naccept-version:1.2\nhost:x\n\n\0").await.expect("taken");
        let send = b"SEND\ndestination:/queue/q\npersistent:true\nreceipt:1\n\nbody\0";
        client.write_all(send).await.expect("taken");
        client.shutdown().await.expect("it has said all");
        while shared.commit.crowd() == 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            // It has also seen the end of the input.
            tokio::task::yield_now().await;
        }
        assert!(!served.is_finished(), "it is owed a receipt");
        let end = shared.with(|core| core.store.appended_end());
        shared.confirm(end);
        served.await.expect("the connection ends");
        let mut answers = Vec::new();
        client.read_to_end(&mut answers).await.expect("the receipt");
        assert!(answers.windows(12).any(|part| part == b"receipt-id:1"), "{answers:?}");
    }

    /// Others may write so many bytes to it at a time.
    struct Room(Arc<std::sync::Mutex<WriteHalf<DuplexStream>>>, usize);

    impl Socket for Room {
        fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
            let some = &bytes[..bytes.len().min(self.1)];
            let mut write = self.0.lock().expect("no panic");
            match Pin::new(&mut *write).poll_write(&mut Context::from_waker(std::task::Waker::noop()), some) {
                Poll::Ready(written) => written,
                Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            }
        }
    }

    /// A client, connected; the socket lets others write `room` bytes at a time.
    struct Client {
        stream: DuplexStream,
        served: tokio::task::JoinHandle<()>,
        socket: Weak<dyn Socket>,
    }

    impl Client {
        async fn new(shared: &Arc<Shared>, room: usize) -> Self {
            let (stream, server) = tokio::io::duplex(1 << 16);
            let (read, write) = tokio::io::split(server);
            let write = Arc::new(std::sync::Mutex::new(write));
            let socket: Arc<dyn Socket> = Arc::new(Room(Arc::clone(&write), room));
            let weak = Arc::downgrade(&socket);
            let both = tokio::io::join(read, Turns(write));
            static CLIENTS: AtomicU32 = AtomicU32::new(0);
            let number = CLIENTS.fetch_add(1, Ordering::Relaxed);
            let options = ConnectionOptions::new(format!("ID:test-{number}"));
            let served = tokio::spawn(serve(both, Some(socket), "test".into(), options, Arc::clone(shared)));
            let mut client = Self { stream, served, socket: weak };
            client.say("CONNECT\naccept-version:1.2\nhost:x\n\n\0").await;
            assert!(client.hears().starts_with("CONNECTED"));
            client
        }

        /// Says it, and lets the connection do all it can.
        async fn say(&mut self, text: &str) {
            self.stream.write_all(text.as_bytes()).await.expect("taken");
            settle().await;
        }

        /// What has come, without letting anybody do anything.
        fn hears(&mut self) -> String {
            let mut heard = vec![0; 1 << 16];
            let mut buffer = tokio::io::ReadBuf::new(&mut heard);
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let _ = Pin::new(&mut self.stream).poll_read(&mut cx, &mut buffer);
            String::from_utf8_lossy(buffer.filled()).into_owned()
        }
    }

    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    fn send(receipt: u32) -> String {
        format!("SEND\ndestination:/queue/q\npersistent:true\nreceipt:{receipt}\n\nbody\0")
    }

    fn receipt(number: u32) -> String {
        format!("RECEIPT\nreceipt-id:{number}\n\n\0\n")
    }

    fn confirm(shared: &Shared) {
        shared.confirm_and_answer(shared.with(|core| core.store.appended_end()));
    }

    /// Of the receipt that is ready when the position rises so many bytes leave before the task runs; the rest follows.
    async fn check_ahead(room: usize, ahead: usize) {
        let (shared, _writer) = core();
        let mut client = Client::new(&shared, room).await;
        for number in 1..4 {
            client.say(&send(number)).await;
            assert_eq!(client.hears(), "", "it is not confirmed");
            confirm(&shared);
            let whole = receipt(number);
            let (first, rest) = whole.split_at(ahead);
            assert_eq!(client.hears(), first);
            settle().await;
            assert_eq!(client.hears(), rest);
        }
    }

    #[tokio::test]
    async fn one_receipt_leaves_ahead_of_its_task_as_far_as_there_is_room() {
        check_ahead(usize::MAX, receipt(1).len()).await;
        check_ahead(5, 5).await;
        check_ahead(0, 0).await;
    }

    #[tokio::test]
    async fn a_receipt_that_waits_ahead_stands_behind_what_is_written_meanwhile() {
        let (shared, _writer) = core();
        let mut client = Client::new(&shared, usize::MAX).await;
        client.say("SUBSCRIBE\nid:1\ndestination:/queue/fast\n\n\0").await;
        // What the subscription itself appended.
        confirm(&shared);
        settle().await;
        client.say(&send(1)).await;
        client.say("SEND\ndestination:/queue/fast\n\nhere\0").await;
        let message = client.hears();
        assert!(message.starts_with("MESSAGE") && message.ends_with("here\0\n"), "{message}");
        confirm(&shared);
        settle().await;
        assert_eq!(client.hears(), receipt(1));
        // Nothing but the receipt is on its way now.
        client.say(&send(2)).await;
        confirm(&shared);
        assert_eq!(client.hears(), receipt(2));
        client.say(&(send(3) + &send(4))).await;
        confirm(&shared);
        assert_eq!(client.hears(), "", "two are the task's");
        settle().await;
        assert_eq!(client.hears(), receipt(3) + &receipt(4));
        client.say("DISCONNECT\nreceipt:5\n\n\0").await;
        assert_eq!(client.hears(), receipt(5));
        client.served.await.expect("it ends");
    }

    #[tokio::test]
    async fn behind_a_shut_gate_nothing_leaves_ahead() {
        let (shared, _writer) = core();
        let mut client = Client::new(&shared, usize::MAX).await;
        client.say(&send(1)).await;
        shared.gate.shut();
        confirm(&shared);
        assert_eq!(client.hears(), "");
    }

    #[tokio::test]
    async fn only_where_few_wait_they_are_answered_ahead() {
        let (shared, _writer) = core();
        let mut clients = Vec::new();
        for _ in 0..=ANSWERED_AHEAD_MAX {
            clients.push(Client::new(&shared, usize::MAX).await);
        }
        for client in &mut clients {
            client.say(&send(1)).await;
        }
        confirm(&shared);
        let last = clients.last_mut().expect("there is one");
        assert_eq!(last.hears(), "");
        settle().await;
        for client in &mut clients {
            assert_eq!(client.hears(), receipt(1));
        }
    }

    #[tokio::test]
    async fn an_answer_that_waits_ahead_does_not_keep_the_socket() {
        for by_client in [true, false] {
            let (shared, _writer) = core();
            let mut client = Client::new(&shared, usize::MAX).await;
            client.say(&send(1)).await;
            if by_client {
                drop(client.stream);
                settle().await;
                confirm(&shared);
            } else {
                shared.stop();
            }
            client.served.await.expect("it ends");
            assert!(client.socket.upgrade().is_none(), "by the client: {by_client}");
        }
    }

    async fn a_quiet_hour() {
        let (shared, _writer) = core();
        let (mut client, server) = tokio::io::duplex(4096);
        let options = ConnectionOptions::new("ID:test".to_owned());
        let served = tokio::spawn(serve(server, None, "test".into(), options, shared));
        client.write_all(b"CONNECT\naccept-version:1.2\nhost:x\n\n\0").await.expect("taken");
        let mut answer = [0; 9];
        client.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"CONNECTED");
        // Past the CONNECT time-out, and past the timer's own longest wait.
        tokio::time::sleep(2 * IDLE).await;
        assert!(!served.is_finished(), "a quiet client without heart-beats stays");
        drop(client);
        served.await.expect("it ends with its client");
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // a watchdog: virtual time does not pass while a task spins
    fn a_quiet_connection_does_not_spin() {
        let (done, waiting) = mpsc::channel();
        thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
            runtime.block_on(a_quiet_hour());
            let _ = done.send(());
        });
        let within = Duration::from_secs(30);
        waiting.recv_timeout(within).expect("two virtual hours of silence pass in no time");
    }
}
