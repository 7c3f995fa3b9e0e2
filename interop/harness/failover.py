"""Producers and consumers that go on at the next address when a connection ends, and the books that they keep.

A number is sent once: what a connection's end left unconfirmed is not sent again, it may be there or not. STOMP has nothing by
which a broker could tell a repeated send from a new one, so a repetition would prove nothing, and this way *every* second copy
of a number is a fault of the broker's.
"""

import random
import threading
import time

from harness import wire
from harness.bodies import RECEIPT, Violation, any_size, body_of, sent_as

#: The last of them is a topic, with one durable subscription.
DESTINATIONS = 3
SUBSCRIPTION = "load"
TRANSACTION = 7
#: An address that does not answer CONNECT for so long is given up for the next one.
CONNECT_SECONDS = 1.0
#: Between two attempts: short, because it is part of every outage that we measure.
RETRY_SECONDS = 0.01
#: A connection without a word for so long is given up: a broker that was stopped closes none. Less than a session, so that a
#: takeover is not found late.
SILENCE_SECONDS = 3.0
#: The queues are empty when nothing came for so long.
DRAINED_SECONDS = 5.0


class Book:
    """What is known of one producer's messages, each fact by number; producer and consumer each write facts of their own."""

    FACTS = ("confirmed", "delivered", "asked", "acked")

    def __init__(self, producer, destination):
        self.producer = producer
        self.destination = destination
        self.sent = 0
        #: The number before the first one of each connection.
        self.connections = []
        #: First and last number of each transaction.
        self.transactions = []
        #: A receipt has come for it.
        self.confirmed = bytearray(1)
        #: A consumer has seen it.
        self.delivered = bytearray(1)
        #: An acknowledgement was sent; its receipt has come.
        self.asked = bytearray(1)
        self.acked = bytearray(1)
        #: Up to here nothing is left.
        self.checked = 0

    def take(self, count=1):
        """Numbers for new messages: the first and the last."""
        for fact in self.FACTS:
            getattr(self, fact).extend(bytes(count))
        first = self.sent + 1
        self.sent += count
        if count > 1:
            self.transactions.append((first, self.sent))
        return first, self.sent

    def connected(self):
        """What is sent from now on goes over another connection."""
        self.connections.append(self.sent)

    def confirm(self, first, last):
        self.confirmed[first : last + 1] = b"\1" * (last + 1 - first)

    def deliver(self, number):
        """A consumer has got it."""
        if not 0 < number <= self.sent:
            raise Violation(f"message {number} of producer {self.producer} was delivered, but never sent")
        if self.acked[number]:
            raise Violation(f"message {number} of producer {self.producer} was delivered although its acknowledgement was confirmed")
        self.delivered[number] = 1

    def check(self, there):
        """Compares with what is left, in the order in which it came; whoever calls has taken it out."""
        name, since = f"producer {self.producer}", self.checked
        self.checked = self.sent
        if odd := [number for number in there if not since < number <= self.sent]:
            raise Violation(f"{name}: {odd[:10]} were never sent, or were consumed long ago")
        for one, next_one in zip(there, there[1:], strict=False):
            if next_one == one:
                raise Violation(f"{name}: {one} IS THERE TWICE")
            if next_one < one:
                raise Violation(f"{name}: out of order, or twice: {one} before {next_one}")
        left = set(there)
        new = range(since + 1, self.sent + 1)
        if lost := [n for n in new if self.confirmed[n] and n not in left and not self.asked[n]]:
            raise Violation(f"{name}: {len(lost)} CONFIRMED MESSAGES ARE LOST: {lost[:20]}")
        if back := [n for n in there if self.acked[n]]:
            raise Violation(f"{name}: {len(back)} came back although their acknowledgement was confirmed: {back[:20]}")
        if ghosts := [n for n in new if self.delivered[n] and n not in left and not self.asked[n]]:
            raise Violation(f"{name}: {len(ghosts)} were delivered and never acknowledged, and are gone: {ghosts[:20]}")
        known = left.union(n for n in new if self.asked[n])
        for first, last in self.transactions:
            parts = [number for number in range(first, last + 1) if number in known]
            if first > since and parts and len(parts) != last + 1 - first:
                raise Violation(f"{name}: of the transaction {first} to {last} only {parts} are there")
        # A connection's messages go into the journal one after the other: what an end cuts off is a tail.
        for before, end in zip(self.connections, [*self.connections[1:], self.sent], strict=True):
            if end <= since:
                continue
            known_here = [number for number in range(max(before, since) + 1, end + 1) if number in known]
            if known_here and len(known_here) != known_here[-1] - max(before, since):
                raise Violation(f"{name}: of one connection's {max(before, since) + 1} to {end} there are holes before {known_here[-1]}")
        for number in there:
            self.acked[number] = 1

    def confirmed_count(self):
        return self.confirmed.count(1)


class Moments:
    """When sends were confirmed, by all producers of a load."""

    def __init__(self):
        self.changed = threading.Condition()
        #: When a connection was opened, and when it had its first receipt.
        self.firsts = []
        self.receipts = []

    def note(self, opened, first):
        now = time.monotonic()
        self.receipts.append(now)
        if first:
            with self.changed:
                self.firsts.append((opened, now))
                self.changed.notify_all()

    def first_after(self, since, timeout):
        """When the first send over a connection opened after `since` was confirmed: what was on its way before does not count."""

        def earliest():
            return min((now for opened, now in self.firsts if opened >= since), default=None)

        with self.changed:
            self.changed.wait_for(lambda: earliest() is not None, max(since + timeout - time.monotonic(), 0))
            return earliest()

    def between(self, since, until):
        return sorted(moment for moment in list(self.receipts) if since <= moment <= until)

    def longest_gap(self, since, until):
        """The longest time without a receipt."""
        points = [since, *self.between(since, until), until]
        return max(later - sooner for sooner, later in zip(points, points[1:], strict=False))


class Failover:
    """Goes from address to address until one answers CONNECTED, uses it until it ends, and begins again."""

    #: A broker whose storage fails says this, and ends: no fault of its own, and nothing that came with it counts.
    EXCUSE = "storage failed: "

    def __init__(self, addresses, stopping, **connect):
        self.addresses = addresses
        self.stopping = stopping
        self.connect = connect
        #: An ERROR that says [`EXCUSE`] only ends the connection.
        self.storage_may_fail = False
        self.failure = None
        self.connections = 0

    def run(self):
        at = 0
        while not self.stopping.is_set():
            address = self.addresses[at % len(self.addresses)]
            at += 1
            opened = time.monotonic()
            try:
                client = wire.Client(address, timeout=CONNECT_SECONDS, **self.connect)
            except (OSError, AssertionError, wire.Refused):
                # Refused: the broker has not noticed yet that our last connection is over, and our client id is in use.
                self.stopping.wait(RETRY_SECONDS)
                continue
            self.connections += 1
            client.timeout = SILENCE_SECONDS
            try:
                self.use(client, opened)
            except (OSError, AssertionError):
                self.stopping.wait(RETRY_SECONDS)
            except (Violation, wire.Refused) as failure:
                if isinstance(failure, wire.Refused) and self.excused(failure.frame):
                    self.stopping.wait(RETRY_SECONDS)
                    continue
                self.failure = f"{type(self).__name__} at {address}: {failure}"
                return
            finally:
                client.close()


    def excused(self, frame):
        return self.storage_may_fail and frame.get("message", "").startswith(self.EXCUSE)


class FailoverProducer(Failover):
    """Keeps a window of unconfirmed sends, or transactions, full."""

    def __init__(self, book, addresses, moments, stopping, *, window=16, pause=0.0, transacted=False, seed=0):
        super().__init__(addresses, stopping)
        self.book = book
        self.moments = moments
        self.window = window
        self.pause = pause
        self.transacted = transacted
        self.random = random.Random(seed)

    def send(self, number, **headers):
        body = body_of(self.book.producer, number, any_size(self.random))
        return wire.encode("SEND", {"destination": self.book.destination, "persistent": "true", **headers}, body, content_length=False)

    def one(self):
        """The next message or transaction; its receipt names its last number."""
        first, last = self.book.take(TRANSACTION if self.transacted else 1)
        if not self.transacted:
            return self.send(last, receipt=last)
        name = f"t{last}"
        frames = [wire.encode("BEGIN", {"transaction": name})]
        frames += [self.send(number, transaction=name) for number in range(first, last + 1)]
        frames.append(wire.encode("COMMIT", {"transaction": name, "receipt": last}))
        return b"".join(frames)

    def use(self, client, opened):
        self.book.connected()
        outstanding, rest, first = 0, b"", True
        client.socket.settimeout(SILENCE_SECONDS)
        while True:
            out = []
            while outstanding < self.window and not self.stopping.is_set():
                out.append(self.one())
                outstanding += 1
            if not outstanding:
                return client.disconnect()
            if out:
                client.raw(b"".join(out))
            data = client.socket.recv(1 << 16)
            if not data:
                return None
            end = (rest + data).rfind(b"\0") + 1
            frames, rest = (rest + data)[:end], (rest + data)[end:]
            if b"ERROR\n" in frames:
                if self.storage_may_fail and b"\n\n" + self.EXCUSE.encode() in frames:
                    return None
                raise Violation(f"producer {self.book.producer} was answered {frames[:500]!r}")
            receipts = [int(number) for number in RECEIPT.findall(frames)]
            for last in receipts:
                self.book.confirm(last - TRANSACTION + 1 if self.transacted else last, last)
            outstanding -= len(receipts)
            if receipts:
                self.moments.note(opened, first)
                first = False
            if self.pause:
                self.stopping.wait(self.pause)


class FailoverConsumer(Failover):
    """Acknowledges most of what it gets, each with a receipt."""

    def __init__(self, destination, books, addresses, stopping, *, part=0.98, seed=0):
        super().__init__(addresses, stopping, **identity(destination))
        self.destination = destination
        self.books = books
        self.part = part
        self.random = random.Random(seed)
        self.received = 0

    def use(self, client, opened):
        subscribe(client, self.destination, 50)
        waiting, newest, number, heard = {}, {}, 0, time.monotonic()
        while waiting or not self.stopping.is_set():
            frame = client.kept.pop(0) if client.kept else client.read(0.2)
            if frame is None:
                if time.monotonic() - heard > SILENCE_SECONDS:
                    return None
                continue
            heard = time.monotonic()
            if frame.command == "RECEIPT":
                book, one = waiting.pop(frame["receipt-id"])
                book.acked[one] = 1
            elif frame.command != "MESSAGE":
                if self.excused(frame):
                    return None
                raise Violation(f"was answered {frame}")
            else:
                producer, one = sent_as(frame.body)
                book = self.books[producer]
                book.deliver(one)
                self.received += 1
                if frame.get("redelivered") != "true":
                    if one <= newest.get(producer, 0):
                        raise Violation(f"message {one} of producer {producer} came after {newest[producer]} over one connection")
                    newest[producer] = one
                if self.random.random() < self.part and not self.stopping.is_set():
                    number += 1
                    waiting[f"a{number}"] = (book, one)
                    book.asked[one] = 1
                    client.frame("ACK", {"id": frame["ack"], "receipt": f"a{number}"})
        return client.disconnect()


class Load:
    """Producers and consumers on all addresses, until it is stopped; then everything is counted."""

    def __init__(
        self, addresses, *, seed, producers=6, window=8, pause=0.03, consumers=True, prefix="load", storage_may_fail=False
    ):
        self.stopping = threading.Event()
        self.moments = Moments()
        self.addresses = addresses
        self.destinations = [f"/queue/{prefix}.{number}" for number in range(DESTINATIONS - 1)] + [f"/topic/{prefix}"]
        self.books = {number: Book(number, self.destinations[number % DESTINATIONS]) for number in range(producers)}
        self.producers = [
            FailoverProducer(
                book, addresses, self.moments, self.stopping,
                window=window, pause=pause, transacted=number % 4 == 3, seed=seed * 1000 + number,
            )
            for number, book in self.books.items()
        ]  # fmt: skip
        self.consumers = [
            FailoverConsumer(destination, self.books, addresses, self.stopping, seed=seed * 1000 + 500 + number)
            for number, destination in enumerate(self.destinations if consumers else [])
        ]
        for actor in [*self.producers, *self.consumers]:
            actor.storage_may_fail = storage_may_fail
        self.threads = []

    def start(self):
        """Begins, or goes on after a stop. Before the first message the topic has its subscription."""
        if not self.threads:
            connected(self.addresses, self.destinations[-1]).disconnect()
        self.stopping.clear()
        self.threads = [threading.Thread(target=actor.run, daemon=True) for actor in [*self.producers, *self.consumers]]
        for thread in self.threads:
            thread.start()

    def healthy(self):
        """Raises what a client has found wrong."""
        if failures := [actor.failure for actor in [*self.producers, *self.consumers] if actor.failure]:
            raise Violation("; ".join(failures))

    def confirmed(self):
        return sum(book.confirmed_count() for book in self.books.values())

    def flow(self, count=200, timeout=60):
        """Waits until so many more sends are confirmed."""
        until, wanted = time.monotonic() + timeout, self.confirmed() + count
        while self.confirmed() < wanted:
            self.healthy()
            if time.monotonic() > until:
                raise Violation(f"{self.confirmed() - wanted + count} sends were confirmed in {timeout} s, {count} expected")
            time.sleep(0.02)

    def outage(self, since, timeout):
        """Seconds from `since` to the first confirmed send over a connection that was opened later."""
        first = self.moments.first_after(since, timeout)
        self.healthy()
        if first is None:
            raise Violation(f"no send was confirmed within {timeout:.1f} s")
        return first - since

    def stop(self):
        """Lets the clients finish, and ends them."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(SILENCE_SECONDS + 20)
            if thread.is_alive():
                raise Violation("a client hangs")
        self.healthy()

    def check(self, broker):
        """Takes everything out, and compares; the load must be stopped."""
        found = [one for destination in self.destinations for one in drain(broker.address, destination)]
        # Before anything is called lost: what is there, and was not delivered although nobody else wanted it, is another fault.
        if left := self.undelivered(broker):
            raise Violation(f"after {DRAINED_SECONDS} s of silence there are messages that were not delivered: {left}")
        self.compare(found)

    def undelivered(self, broker):
        """What a node's status says of our destinations that are not empty."""
        status = broker.status() if hasattr(broker, "status") else None
        names = {destination.split("/", 2)[2] for destination in self.destinations}
        listed = (status or {}).get("destinations", [])
        return [entry for entry in listed if entry["name"] in names and entry["messages"]]

    def compare(self, found):
        """Everything that is left, in order, against the books."""
        there = {number: [] for number in self.books}
        for producer, number in found:
            if producer not in there:
                raise Violation(f"message {number} of producer {producer}, which does not exist")
            there[producer].append(number)
        for number, book in self.books.items():
            book.check(there[number])

    def summary(self):
        sent = sum(book.sent for book in self.books.values())
        received = sum(consumer.received for consumer in self.consumers)
        acked = sum(book.acked.count(1) for book in self.books.values())
        return (
            f"{sent} sent, {self.confirmed()} confirmed, {received} received, {acked} acknowledged; "
            "0 lost, 0 twice, 0 out of order, 0 half transactions"
        )


def identity(destination):
    """Headers of CONNECT for one who consumes: a durable subscription belongs to a client."""
    return {"client_id": SUBSCRIPTION} if destination.startswith("/topic/") else {}


def subscribe(client, destination, prefetch):
    """Durably, to a topic."""
    durable = {"activemq.subscriptionName": SUBSCRIPTION} if destination.startswith("/topic/") else {}
    client.subscribe(destination, ack="client-individual", activemq__prefetchSize=prefetch, **durable)


def connected(addresses, destination, prefetch=1, timeout=60):
    """A consumer's connection with whichever address answers."""
    until = time.monotonic() + timeout
    while True:
        for address in addresses:
            try:
                client = wire.Client(address, timeout=CONNECT_SECONDS, **identity(destination))
            except (OSError, AssertionError, wire.Refused) as reason:
                last = reason
                continue
            client.timeout = timeout
            subscribe(client, destination, prefetch)
            return client
        if time.monotonic() > until:
            raise Violation(f"none of {addresses} answers: {last}")
        time.sleep(RETRY_SECONDS)


def drain(address, destination):
    """Takes everything out of a queue or subscription; producers and numbers in the order in which they came."""
    found = []
    with connected([address], destination, prefetch=5000) as client:
        while (frame := client.kept.pop(0) if client.kept else client.read(DRAINED_SECONDS)) is not None:
            if frame.command == "RECEIPT":
                continue
            if frame.command != "MESSAGE":
                raise Violation(f"a drain was answered {frame}")
            found.append(sent_as(frame.body))
            client.frame("ACK", {"id": frame["ack"]})
        client.disconnect()
    return found


def distribution(seconds):
    """Of some durations, in a line."""
    ordered = sorted(seconds)
    at = lambda part: ordered[min(int(part * len(ordered)), len(ordered) - 1)]
    return f"{len(ordered)} times: min {ordered[0]:.2f} s, median {at(0.5):.2f} s, p90 {at(0.9):.2f} s, max {ordered[-1]:.2f} s"
