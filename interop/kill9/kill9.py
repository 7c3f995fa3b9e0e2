#!/usr/bin/env python3
"""Kills the broker with -9 under load, again and again, and counts what is missing.

Producers send with a window of outstanding receipts; some send transactions. Consumers acknowledge a part of what they get.
What a receipt has confirmed must be there after the kills, unless a consumer has acknowledged it; what a receipt has
confirmed as acknowledged must be gone; nothing may be there twice, nothing that was never sent, no half of a transaction,
and of each producer everything in the order in which it was sent.

    kill9.py [--kills 100] [--seed N] [--producers N] [--window W] [--keep]
"""

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import process, recovered, wire  # noqa: E402
from harness.bodies import RECEIPT, Violation, any_size, body_of, sent_as  # noqa: E402

QUEUES = 3
#: Kills between two complete checks.
CHECK_EVERY = 10
JOURNAL_FILE_BYTES = 4 << 20
TRANSACTION = 7
SILENCE_SECONDS = 10.0


class Producer:
    """What one producer knows, over all kills."""

    def __init__(self, number, window, transacted, seed):
        self.number = number
        self.queue = f"/queue/kill9.{number % QUEUES}"
        self.window = window
        self.transacted = transacted
        self.random = random.Random(seed)
        self.sent = 0
        self.confirmed = set()
        #: First and last number of each transaction, by the number of its last.
        self.transactions = []
        self.failure = None

    def frame(self, number, **headers):
        headers = {"destination": self.queue, "persistent": "true", **headers}
        return wire.encode("SEND", headers, body_of(self.number, number, any_size(self.random)), content_length=False)

    def one(self):
        """The next frame or transaction: bytes, and the number that its receipt has."""
        if not self.transacted:
            self.sent += 1
            return self.frame(self.sent, receipt=self.sent), self.sent
        first, last = self.sent + 1, self.sent + TRANSACTION
        self.transactions.append((first, last))
        self.sent = last
        name = f"t{last}"
        frames = [wire.encode("BEGIN", {"transaction": name})]
        frames += [self.frame(number, transaction=name) for number in range(first, last + 1)]
        frames.append(wire.encode("COMMIT", {"transaction": name, "receipt": last}))
        return b"".join(frames), last

    def run(self, address):
        """Sends until the connection breaks."""
        try:
            client = wire.Client(address)
        except (OSError, ConnectionError, AssertionError):
            return
        outstanding, rest = 0, b""
        try:
            while True:
                out = []
                while outstanding < self.window:
                    out.append(self.one()[0])
                    outstanding += 1
                client.socket.settimeout(60)
                client.raw(b"".join(out))
                data = client.socket.recv(1 << 16)
                if not data:
                    return
                rest += data
                if b"ERROR\n" in rest:
                    self.failure = f"producer {self.number} was answered {rest[:500]!r}"
                    return
                for receipt in RECEIPT.findall(rest):
                    self.confirm(int(receipt))
                    outstanding -= 1
                end = rest.rfind(b"\0") + 1
                rest = rest[end:]
        except OSError:
            return
        finally:
            client.close()

    def confirm(self, number):
        first = number - TRANSACTION + 1 if self.transacted else number
        self.confirmed.update(range(first, number + 1))


class Consumer:
    """Acknowledges a part of what it gets."""

    def __init__(self, number, seed):
        self.queue = f"/queue/kill9.{number % QUEUES}"
        self.random = random.Random(seed)
        #: Acknowledged, perhaps; acknowledged for certain.
        self.asked = set()
        self.confirmed = set()
        self.received = 0
        self.failure = None

    def run(self, address):
        try:
            client = wire.Client(address, timeout=60)
            client.subscribe(self.queue, ack="client-individual", activemq__prefetchSize=50)
            waiting = {}
            number = 0
            while True:
                frame = client.kept.pop(0) if client.kept else client.read(60)
                if frame is None:
                    return
                if frame.command == "RECEIPT":
                    self.confirmed.add(waiting.pop(frame["receipt-id"], None))
                elif frame.command == "MESSAGE":
                    self.received += 1
                    one = sent_as(frame.body)
                    if self.random.random() < 0.98:
                        number += 1
                        waiting[f"a{number}"] = one
                        self.asked.add(one)
                        client.frame("ACK", {"id": frame["ack"], "receipt": f"a{number}"})
                else:
                    self.failure = f"a consumer was answered {frame}"
                    return
        except (OSError, AssertionError):
            return
        except (Violation, wire.Refused) as error:
            self.failure = str(error)


class Trial:
    """A directory, who uses it, and what they know."""

    def __init__(self, directory, seed, producers, window):
        self.random = random.Random(seed)
        self.broker = process.kahawai(directory, "--journal-file-bytes", JOURNAL_FILE_BYTES)
        self.directory = directory
        self.seed = seed
        self.producers = [
            Producer(number, window, transacted=number % 4 == 3, seed=seed * 1000 + number) for number in range(producers)
        ]
        self.consumers = [Consumer(number, seed=seed * 1000 + 500 + number) for number in range(QUEUES)]
        self.starts = []
        self.kills = 0
        self.gone = 0
        self.checked = {producer.number: 0 for producer in self.producers}

    def start(self):
        self.broker.close()
        try:
            self.starts.append(self.broker.start())
        except process.StartFailed as failed:
            raise Violation(f"A START AFTER A KILL FAILED: {failed}") from None

    def interrupted_start(self):
        """A kill while it recovers."""
        self.broker.close()
        killer = threading.Timer(self.random.uniform(0, 0.05), lambda: self.broker.running() and self.broker.kill())
        killer.start()
        try:
            self.broker.start()
        except process.StartFailed as failed:
            if failed.code != -9:
                raise Violation(f"a start after a kill failed: {failed}") from None
        killer.join()
        self.broker.kill()
        self.kills += 1

    def load_and_kill(self):
        actors = [*self.producers, *self.consumers]
        threads = [threading.Thread(target=actor.run, args=(self.broker.address,), daemon=True) for actor in actors]
        for thread in threads:
            thread.start()
        time.sleep(self.random.uniform(0.05, 1.5))
        if not self.broker.running():
            raise Violation(f"the broker died by itself\n{self.broker.errors()}")
        self.broker.kill()
        self.kills += 1
        for thread in threads:
            thread.join(70)
            if thread.is_alive():
                raise Violation("a client hangs although the broker is gone")
        failures = [actor.failure for actor in actors if actor.failure]
        if failures:
            raise Violation("; ".join(failures))

    def run(self, kills):
        while self.kills < kills:
            self.start()
            self.load_and_kill()
            if self.random.random() < 0.2:
                self.interrupted_start()
            if self.kills // CHECK_EVERY > self.gone or self.kills >= kills:
                self.gone = self.kills // CHECK_EVERY
                self.check()
                print(self.summary(), flush=True)

    def check(self):
        """Drains everything and compares."""
        self.start()
        found = {}
        with wire.Client(self.broker.address, timeout=60) as client:
            for queue in range(QUEUES):
                client.subscribe(f"/queue/kill9.{queue}", id=queue, ack="client-individual", activemq__prefetchSize=5000)
            last = None
            while True:
                frame = client.kept.pop(0) if client.kept else client.read(SILENCE_SECONDS)
                if frame is None:
                    break
                if frame.command == "RECEIPT":
                    continue
                producer, number = sent_as(frame.body)
                if (producer, number) in found:
                    raise Violation(f"message {number} of producer {producer} is there twice")
                found[producer, number] = len(found)
                client.frame("ACK", {"id": frame["ack"]})
                last = frame
            if last is not None:
                client.disconnect()
        asked = set().union(*(consumer.asked for consumer in self.consumers))
        acked = set().union(*(consumer.confirmed for consumer in self.consumers)) - {None}
        if self.broker.stop() != 0:
            raise Violation(f"no clean stop\n{self.broker.errors()}")
        # Before anything is called lost: what was not delivered although nobody else wanted it is another fault.
        left = {entry["destination"]: entry["count"] for entry in recovered.inspect(self.directory)["destinations"] if entry["count"]}
        if left:
            raise Violation(f"after {SILENCE_SECONDS} s of silence there are messages that were not delivered: {left}")
        for producer in self.producers:
            self.compare(producer, found, asked, acked)
        verified = process.run("store", "verify", self.directory)
        if verified.returncode != 0:
            raise Violation(f"verify: {verified.stdout}{verified.stderr}")

    def compare(self, producer, found, asked, acked):
        """Since the last check, which left nothing behind."""
        since = self.checked[producer.number]
        self.checked[producer.number] = producer.sent
        name = f"producer {producer.number}"
        mine = [number for who, number in found if who == producer.number]
        if odd := [number for number in mine if not since < number <= producer.sent]:
            raise Violation(f"{name}: {odd[:10]} were never sent, or were consumed long ago")
        if mine != sorted(mine):
            at = next(at for at in range(1, len(mine)) if mine[at] < mine[at - 1])
            raise Violation(f"{name}: out of order, {mine[at - 1]} before {mine[at]}")
        there = set(mine)
        asked_mine = {number for who, number in asked if who == producer.number}
        acked_mine = {number for who, number in acked if who == producer.number}
        confirmed = {number for number in producer.confirmed if number > since}
        if lost := sorted(confirmed - there - asked_mine):
            raise Violation(f"{name}: {len(lost)} CONFIRMED MESSAGES ARE LOST: {lost[:20]}")
        if back := sorted(there & acked_mine):
            raise Violation(f"{name}: {len(back)} came back although their acknowledgement was confirmed: {back[:20]}")
        known = there | asked_mine
        for first, last in producer.transactions:
            if first > since:
                parts = [number for number in range(first, last + 1) if number in known]
                if parts and len(parts) != TRANSACTION:
                    raise Violation(f"{name}: of the transaction {first} to {last} only {parts} are there")

    def summary(self):
        sent = sum(producer.sent for producer in self.producers)
        confirmed = sum(len(producer.confirmed) for producer in self.producers)
        received = sum(consumer.received for consumer in self.consumers)
        acked = sum(len(consumer.confirmed) for consumer in self.consumers)
        slowest = max(self.starts)
        return (
            f"kill9: {self.kills} kills, {sent} sent, {confirmed} confirmed, {received} received, {acked} acknowledged; "
            f"0 lost, 0 twice, 0 out of order, 0 half transactions; slowest start {slowest:.2f} s; seed {self.seed}"
        )


def trial(kills, seed=None, producers=8, window=32, keep=False):
    """Runs it all; raises [`Violation`], with the directory kept, if a promise was broken."""
    seed = random.SystemRandom().randrange(1 << 30) if seed is None else seed
    directory = Path(tempfile.mkdtemp(prefix="kill9-"))
    running = Trial(directory / "store", seed, producers, window)
    try:
        running.run(kills)
    except Violation as violation:
        raise Violation(f"{violation}\nseed {seed}, {running.kills} kills; the directory is kept: {directory}") from None
    finally:
        running.broker.close()
    if not keep:
        shutil.rmtree(directory)
    return running


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--long", action="store_const", const=100, dest="kills", help="100 kills")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--producers", type=int, default=8)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--keep", action="store_true", help="keep the directory")
    arguments = vars(parser.parse_args())
    try:
        trial(**arguments)
    except Violation as violation:
        sys.exit(f"kill9: FAILED. {violation}")


if __name__ == "__main__":
    main()
