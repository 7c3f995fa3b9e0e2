"""A primary is stopped for longer than its session, and goes on when another one has taken over (H27)."""

import json
import shutil
import time

from harness import failover, process, wire
from harness.cluster import chosen_seed, figure, temporary

SECOND, LATE = b"second", b"late"


class LeftBehind:
    """A client that stays with the old primary, with work for it in every direction."""

    def __init__(self, address):
        self.client = wire.Client(address)
        self.client.send("/queue/behind", b"first")
        self.client.send("/queue/behind", SECOND)
        self.client.subscribe("/queue/behind", ack="client-individual", activemq__prefetchSize=1)
        self.first = self.client.message()

    def ask(self):
        """An acknowledgement, which would bring the next message, and sends of both kinds; nobody answers yet."""
        self.client.frame("ACK", {"id": self.first["ack"], "receipt": "ack"})
        self.client.frame("SEND", {"destination": "/queue/late", "persistent": "true", "receipt": "persistent"}, LATE)
        self.client.frame("SEND", {"destination": "/queue/late", "receipt": "volatile"}, LATE)

    def heard(self):
        """What comes until the connection ends."""
        frames, until = [], time.monotonic() + 20
        try:
            while time.monotonic() < until:
                if (frame := self.client.read(1)) is not None:
                    frames.append(frame)
        except OSError:
            return frames
        raise AssertionError(f"the old primary keeps a client that it cannot serve; the client heard {frames}")


def test_the_old_primary_says_nothing_more(long):
    seed = chosen_seed()
    with temporary("sigstop-primary", minimum_replicas=1) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        outages = []
        for _ in range(10 if long else 2):
            load.start()
            load.flow()
            old = cluster.primary()
            behind = LeftBehind(old.address)
            paused = old.pause()
            behind.ask()
            outages.append(load.outage(paused, cluster.takeover_seconds))
            # It does not run, so this is its journal at the moment of the stop.
            frozen = frozen_journal(old)
            load.flow()
            old.resume()
            assert behind.heard() == [], "an old primary answered, or delivered, after another one had taken over"
            cluster.wait_in_sync()
            new = cluster.primary()
            assert new is not old
            load.flow()
            load.stop()
            tails_are_kept(old, new, frozen)
            with wire.Client(new.address) as client:
                client.subscribe("/queue/behind", ack="client-individual")
                first, second = client.messages(2)
                assert [first.body, second.body] == [b"first", SECOND]
                client.ack(first)
                client.ack(second)
                client.subscribe("/queue/late", id="late")
                client.silence(1)
                client.disconnect()
            load.check(new)
            cluster.stop_alike()
            cluster.start()
        figure(f"sigstop primary: {load.summary()}")
        figure(f"sigstop primary: SIGSTOP to the next confirmed send: {failover.distribution(outages)}")


def test_clients_that_left_while_nothing_was_confirmed_are_forgotten():
    """A replica of the set stands still, for less than would cost it its place: clients lose patience, and come again."""
    seed = chosen_seed()
    with temporary("sigstop-replica", minimum_replicas=1) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        for _ in range(3):
            load.flow()
            replica = cluster.replicas()[0]
            replica.pause()
            time.sleep(failover.SILENCE_SECONDS + 0.6)
            replica.resume()
            load.flow()
        load.stop()
        primary = cluster.primary()
        gone = lambda found: (broker := found[primary.name]["broker"])["connections"] == 0 and broker["consumers"] == 0
        cluster.wait_for(gone, 10, "no connection and no consumer left: all clients are gone")
        load.check(primary)
        cluster.stop_alike()


def test_a_long_tail_that_nobody_confirmed_does_not_win():
    """H31: the primary writes on while its replicas stand still, and dies; its journal is the longest, and of the older epoch."""
    chosen_seed()
    with temporary("sigstop-replicas", minimum_replicas=1) as cluster:
        cluster.start()
        old, replicas = cluster.primary(), cluster.replicas()
        with wire.Client(old.address) as client:
            client.send("/queue/tail", b"confirmed")
            for replica in replicas:
                replica.pause()
            for number in range(200):
                client.frame("SEND", {"destination": "/queue/tail", "persistent": "true", "receipt": number}, f"tail-{number}".encode())
            assert client.read(2) is None, "the primary confirms what only it has"
        old.kill()
        # Killed as they stand: what lies in their sockets would be read after a SIGCONT, and is no less worth keeping.
        for replica in replicas:
            replica.kill()
        for replica in replicas:
            replica.start(wait=False)
        new = cluster.primary(2 * cluster.takeover_seconds)
        assert new is not old
        with wire.Client(new.address) as client:
            client.send("/queue/tail", b"newer")
            client.disconnect()
        old.start()
        cluster.wait_in_sync()
        kept = b"".join(file.read_bytes() for file in (old.directory / "replication" / "divergent").glob("*.bin"))
        assert b"tail-0" in kept and b"tail-199" in kept, "the tail was cut, and is not kept"
        with wire.Client(cluster.primary().address) as client:
            client.subscribe("/queue/tail", ack="client-individual")
            bodies = []
            while (frame := client.kept.pop(0) if client.kept else client.read(2)) is not None:
                bodies.append(frame.body)
                client.ack(frame, receipt=False)
            client.disconnect()
        assert bodies == [b"confirmed", b"newer"]
        cluster.stop_alike()


def frozen_journal(node):
    """A copy of the data files of a node that is stopped."""
    copy = node.directory.with_suffix(".frozen")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in node.directory.glob("db-*.log"):
        shutil.copy(file, copy)
    return copy


def tails_are_kept(old, new, frozen):
    """What the old primary had written and nobody had confirmed is cut, and kept in `divergent`."""
    kept = b"".join(file.read_bytes() for file in (old.directory / "replication" / "divergent").glob("*.bin"))
    # Its last batch may be torn, which is no fault here: only the ends of the whole ones are wanted.
    [store] = json.loads(process.run("store", "verify", frozen, "--json").stdout)["stores"]
    for file in store["files"]:
        name = f"db-{file['file']}.log"
        if not (new.directory / name).exists():
            # Collected since then.
            continue
        before = (frozen / name).read_bytes()[: file["used"]]
        parted = first_difference(before, (new.directory / name).read_bytes())
        if parted is not None:
            print(f"{old.name} had {len(before) - parted} bytes that nobody else had")
            assert before[parted:] in kept, f"{name} differs from offset {parted} on, and divergent/ does not have what was there"


def first_difference(left, right):
    """Where `right` stops beginning with `left`; `None` if it does not."""
    if right[: len(left)] == left:
        return None
    low, high = 0, len(left)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left[:middle] == right[:middle] else (low, middle)
    return low
