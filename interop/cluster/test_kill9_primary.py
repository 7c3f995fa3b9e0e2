"""The primary is killed under load, again and again: nothing confirmed is missing, and all copies stay identical."""

import random

from harness import failover
from harness.cluster import chosen_seed, figure, left_over, temporary

#: Kills between two complete checks.
CHECK_EVERY = 5


def test_no_confirmed_message_is_lost(long):
    seed, kills, outages = chosen_seed(), 50 if long else 5, []
    source = random.Random(seed)
    with temporary("kill9-primary", minimum_replicas=1) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        while len(outages) < kills:
            load.start()
            while True:
                load.flow(300)
                primary = cluster.primary()
                killed = primary.kill()
                outages.append(load.outage(killed, cluster.takeover_seconds))
                primary.start()
                if len(outages) >= kills or len(outages) % CHECK_EVERY == 0:
                    break
                # At times the next one is killed while this one is still fetching what it lacks.
                if source.random() < 0.7:
                    cluster.wait_in_sync()
            load.flow(100)
            load.stop()
            everything_is_there(cluster, load)
            figure(f"kill9 primary: {load.summary()}")
            figure(f"kill9 primary: kill to the next confirmed send: {failover.distribution(outages)}")
            cluster.start()
        assert load.confirmed() > 300 * kills


def test_a_primary_that_comes_back_before_its_session_is_over_begins_a_new_epoch():
    """H28: it finds its own name in the record, and may not go on as if nothing had happened."""
    seed, outages = chosen_seed(), []
    with temporary("kill9-restart", minimum_replicas=1) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        for _ in range(3):
            load.flow()
            primary = cluster.wait_in_sync()
            epoch = primary.status()["epoch"]
            killed = primary.kill()
            primary.start(wait=False)
            outages.append(load.outage(killed, 2 * cluster.takeover_seconds))
            assert cluster.primary().status()["epoch"] > epoch
        cluster.wait_in_sync()
        load.stop()
        load.check(cluster.primary())
        cluster.stop_alike()
        figure(f"kill9 primary, started again at once: kill to the next confirmed send: {failover.distribution(outages)}")


def everything_is_there(cluster, load):
    """With what the load has left, then empty: all copies are identical; in between everything is counted."""
    cluster.wait_in_sync()
    full = cluster.stop_alike()
    cluster.start()
    load.check(cluster.primary())
    empty = cluster.stop_alike()
    assert left_over(full, load.destinations), "the consumers had left nothing to compare"
    assert not left_over(empty, load.destinations), "what was not delivered is not lost, but should have been delivered"
