"""ZooKeeper is restarted, is away for longer than a session, and ends a session whose primary it cannot hear."""

import time

from harness import failover
from harness.cluster import GRACE_SECONDS, chosen_seed, figure, temporary

#: Between the last receipt that leaves in time and our reading it on a busy machine.
READ_SECONDS = 0.3


def test_a_restart_within_the_session_changes_nothing():
    seed = chosen_seed()
    with temporary("zookeeper-restart", session_ms=20_000) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        load.flow()
        primary, epoch = cluster.primary(), cluster.primary().status()["epoch"]
        began, connections = time.monotonic(), [producer.connections for producer in load.producers]
        cluster.zookeeper.stop()
        cluster.zookeeper.start()
        ended = time.monotonic()
        every = lambda found: len(found) == 3 and all(status["election"]["connected"] for status in found.values())
        cluster.wait_for(every, 20, "all nodes connected with ZooKeeper again")
        load.flow()
        assert cluster.primary() is primary and primary.status()["epoch"] == epoch, "a restart of ZooKeeper moved the primary"
        assert [producer.connections for producer in load.producers] == connections, "clients were sent away"
        gap = load.moments.longest_gap(began, time.monotonic())
        figure(f"zookeeper: ZooKeeper was away for {ended - began:.2f} s; longest time without a receipt: {gap:.2f} s")
        finish(cluster, load)


def test_an_outage_longer_than_the_session_stops_the_primary_and_ends_by_itself():
    seed = chosen_seed()
    with temporary("zookeeper-outage") as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        load.flow()
        primary = cluster.primary()
        stopped = time.monotonic()
        cluster.zookeeper.stop("KILL")
        deadline = stopped + cluster.session_ms / 1000
        ended = lambda _: not primary.serves() and time.monotonic()
        silent = cluster.wait_for(ended, deadline + GRACE_SECONDS - stopped, "the primary to stop")
        # Nobody may take over, and nobody may be served, for as long as it lasts.
        while time.monotonic() < deadline + cluster.session_ms / 1000:
            assert not any(node.serves() for node in cluster), "a node serves without ZooKeeper, and without a session"
            time.sleep(0.1)
        assert all(node.running() for node in cluster), "a node ended because ZooKeeper was away"
        last = max(load.moments.between(stopped, time.monotonic()), default=stopped)
        assert last <= deadline + READ_SECONDS, f"a send was confirmed {last - deadline:.2f} s after the last possible end of the session"
        cluster.zookeeper.start()
        back = time.monotonic()
        resumed = load.outage(back, 2 * cluster.takeover_seconds)
        figure(f"zookeeper: served for {silent - stopped:.2f} s without ZooKeeper; a send is confirmed {resumed:.2f} s after it came back")
        finish(cluster, load)


def test_an_expired_session_is_a_takeover():
    seed = chosen_seed()
    with temporary("zookeeper-expired", links=True) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        load.flow()
        old = cluster.primary()
        epoch = old.status()["epoch"]
        cut = time.monotonic()
        cluster.links[old.name].hold()
        # It stops by itself, and not because the others have told it.
        cluster.wait_for(lambda _: not old.serves(), cluster.session_ms / 1000 + 1, f"{old.name} to stop serving")
        outage = load.outage(cut + 0.1, cluster.takeover_seconds)
        new = cluster.primary()
        assert new is not old and new.status()["epoch"] > epoch
        # What it had said to ZooKeeper arrives late, from a session that is over.
        cluster.links[old.name].release()
        cluster.wait_in_sync()
        assert cluster.primary() is new
        figure(f"zookeeper: from the cut to the next confirmed send at {new.name}: {outage:.2f} s")
        finish(cluster, load)


def finish(cluster, load):
    """All in sync, everything there, all copies alike."""
    cluster.wait_in_sync()
    load.flow()
    load.stop()
    load.check(cluster.primary())
    cluster.stop_alike()
    print(load.summary())
