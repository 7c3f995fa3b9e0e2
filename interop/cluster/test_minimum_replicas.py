"""How many replicas a confirmation takes, and who may go on alone (H6)."""

import shutil
import time

from harness import failover, wire
from harness.cluster import chosen_seed, in_sync, temporary

QUEUE = "/queue/minimum"
#: A receipt that is not there after so long waits for a replica.
WAITS_SECONDS = 3


class Waiting:
    """A client with persistent sends that nobody confirms for now."""

    def __init__(self, address, count):
        self.client = wire.Client(address)
        self.receipts = [f"w{number}" for number in range(count)]
        for receipt in self.receipts:
            self.client.frame("SEND", {"destination": QUEUE, "persistent": "true", "receipt": receipt}, receipt.encode())

    def waits(self, seconds=WAITS_SECONDS):
        """Nothing comes."""
        frame = self.client.read(seconds)
        assert frame is None, f"without enough replicas: {frame}"

    def completes(self, timeout=30):
        for receipt in self.receipts:
            self.client.expect("RECEIPT", timeout, receipt_id=receipt)


def volatile_sends_are_confirmed(address):
    with wire.Client(address) as client:
        client.send("/queue/volatile", b"no journal", persistent=False)


def taken_out(address):
    """The bodies in the queue, in order."""
    with wire.Client(address) as client:
        client.subscribe(QUEUE, ack="client-individual", activemq__prefetchSize=1000)
        bodies = []
        while (frame := client.kept.pop(0) if client.kept else client.read(2)) is not None:
            bodies.append(frame.body.decode())
            client.ack(frame, receipt=False)
        client.disconnect()
    return bodies


def browsed(address):
    """The same, and they stay there."""
    with wire.Client(address) as client:
        client.subscribe(QUEUE, browser="true")
        bodies = []
        while (frame := client.message()).get("browser") != "end":
            bodies.append(frame.body.decode())
        return bodies


def suspended(node):
    status = node.status()
    return status and status["suspended"]


def test_alone_from_the_beginning_persistent_sends_wait_for_the_first_replica():
    with temporary("minimum-alone", 2, minimum_replicas=1) as cluster:
        cluster.zookeeper.start()
        cluster["n1"].start(wait=False)
        cluster["n1"].wait_until_said("ready")
        cluster.wait_for(lambda _: suspended(cluster["n1"]), 10, "n1 suspended")
        waiting = Waiting(cluster["n1"].address, 20)
        waiting.waits()
        volatile_sends_are_confirmed(cluster["n1"].address)
        started = cluster["n1"].pid
        cluster["n2"].start()
        waiting.completes()
        assert cluster["n1"].pid == started and cluster["n1"].running()
        cluster.wait_in_sync()
        assert suspended(cluster["n1"]) is None
        assert taken_out(cluster["n1"].address) == waiting.receipts
        cluster.stop_alike()


def test_the_last_replica_dies_and_another_one_takes_its_place():
    with temporary("minimum-swap", 3, minimum_replicas=1) as cluster:
        cluster.start("n1", "n2")
        primary = cluster.primary()
        [replica] = cluster.replicas()
        replica.kill()
        waiting = Waiting(primary.address, 20)
        waiting.waits()
        reason = cluster.wait_for(lambda _: suspended(primary), 10, "suspended")["reason"]
        assert reason, "suspended, and nobody says why"
        volatile_sends_are_confirmed(primary.address)
        # Not the one that died: the set is at its minimum, so the newcomer comes in and the dead one goes out in one step.
        cluster["n3"].start()
        waiting.completes()
        assert in_sync(primary.status()) == sorted([primary.name, "n3"])
        replica.start()
        cluster.wait_in_sync()
        assert taken_out(cluster.primary().address) == waiting.receipts
        cluster.stop_alike()


def test_a_client_without_persistent_work_may_leave_meanwhile():
    with temporary("minimum-leave", 2, minimum_replicas=1) as cluster:
        cluster.start()
        primary = cluster.primary()
        cluster.replicas()[0].kill()
        waiting = Waiting(primary.address, 1)
        cluster.wait_for(lambda _: suspended(primary), 10, "suspended")
        with wire.Client(primary.address) as client:
            client.send("/queue/volatile", b"no journal", persistent=False)
            client.disconnect()
        waiting.waits()


def test_what_could_not_be_acknowledged_is_not_delivered_meanwhile():
    with temporary("minimum-dispatch", 2, minimum_replicas=1) as cluster:
        cluster.start()
        primary = cluster.primary()
        [replica] = cluster.replicas()
        with wire.Client(primary.address) as producer, wire.Client(primary.address) as consumer:
            sent = [str(number) for number in range(3)]
            for body in sent:
                producer.send(QUEUE, body.encode())
            replica.kill()
            cluster.wait_for(lambda _: suspended(primary), 10, "suspended")
            consumer.subscribe(QUEUE, ack="client-individual")
            consumer.subscribe("/queue/volatile", id="1")
            producer.send("/queue/volatile", b"no journal", persistent=False)
            assert consumer.message().body == b"no journal"
            # Who only looks acknowledges nothing.
            assert browsed(primary.address) == sent
            replica.start()
            assert [consumer.message().body.decode() for _ in sent] == sent


def test_two_replicas_are_two_nodes_and_not_one_twice():
    with temporary("minimum-two", 3, minimum_replicas=2) as cluster:
        cluster.start("n1", "n2")
        primary = cluster.primary()
        [replica] = cluster.replicas()
        waiting = Waiting(primary.address, 20)
        waiting.waits()
        # A copy of the replica's disk, under its name and under another: either is refused, or waits; none is a third copy.
        for name in (replica.name, "n9"):
            copied = cluster.directory / f"copy-{name}"
            # Stopped for a moment, so that no file comes or goes meanwhile.
            replica.pause()
            shutil.copytree(replica.directory, copied, ignore=shutil.ignore_patterns("lock"))
            replica.resume()
            original = cluster.nodes.get(name)
            clone = cluster.add(name, directory=copied)
            clone.start(wait=False)
            waiting.waits(2 * WAITS_SECONDS)
            assert in_sync(primary.status()) == sorted([primary.name, replica.name])
            clone.close()
            del cluster.nodes[name]
            if original is not None:
                cluster.nodes[name] = original
        cluster["n3"].start()
        waiting.completes()
        cluster.wait_in_sync()
        assert taken_out(cluster.primary().address) == waiting.receipts
        cluster.stop_alike()


def test_with_no_replicas_demanded_who_was_left_behind_waits_for_who_went_on():
    seed = chosen_seed()
    with temporary("minimum-none", 2, minimum_replicas=0) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        load.flow()
        alone = cluster.primary()
        [behind] = cluster.replicas()
        assert behind.stop() == 0
        cluster.wait_for(lambda found: in_sync(found[alone.name]) == [alone.name], 20, f"{behind.name} out of the set")
        load.flow()
        load.stop()
        assert alone.stop() == 0
        behind.start(wait=False)
        waiting_for = lambda found: (found.get(behind.name, {}).get("election") or {}).get("waiting_for")
        said = cluster.wait_for(waiting_for, 30, "whom it waits for")
        assert alone.name in said, f"{behind.name} says that it waits for {said!r}; that is {alone.name}"
        until = time.monotonic() + 2 * cluster.takeover_seconds
        while time.monotonic() < until:
            assert not behind.serves(), f"{behind.name} serves without what {alone.name} confirmed alone"
            time.sleep(0.1)
        alone.start()
        cluster.wait_in_sync()
        load.check(cluster.primary())
        cluster.stop_alike()
        print(load.summary())
