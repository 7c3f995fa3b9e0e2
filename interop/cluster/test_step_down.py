"""An operator moves the primary under load: a short pause, nothing lost."""

import time

from harness import failover, process
from harness.cluster import chosen_seed, figure, temporary


def test_step_down_and_promote(long):
    seed, away, to = chosen_seed(), [], []
    with temporary("step-down", minimum_replicas=1) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        for _ in range(20 if long else 3):
            away.append(moved(cluster, load, None))
            to.append(moved(cluster, load, cluster.replicas()[-1].name))
        load.stop()
        load.check(cluster.primary())
        cluster.stop_alike()
        print(load.summary())
        figure(f"step down: step-down to the next confirmed send: {failover.distribution(away)}")
        figure(f"step down: promote to the next confirmed send: {failover.distribution(to)}")


def moved(cluster, load, target):
    """Seconds from the order to the next confirmed send, at another primary than before."""
    load.flow()
    old = cluster.wait_in_sync()
    epoch = old.status()["epoch"]
    began = time.monotonic()
    old.cluster_command(*(["promote", target] if target else ["step-down"]))
    outage = load.outage(began, cluster.takeover_seconds)
    new = cluster.primary()
    assert new is not old and new.status()["epoch"] > epoch
    assert target in (None, new.name), f"{target} was to be promoted, {new.name} is primary"
    assert old.running(), "stepping down is no reason to end"
    return outage


def test_an_impossible_promotion_changes_nothing():
    seed = chosen_seed()
    with temporary("promote-nobody", minimum_replicas=1) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        load.flow()
        primary = cluster.primary()
        epoch = primary.status()["epoch"]
        dead = cluster.replicas()[0]
        dead.kill()
        for name in ("nobody", dead.name):
            done = process.run("cluster", "promote", name, "--admin", primary.admin_url)
            assert done.returncode != 0, f"promoting {name} is said to have worked: {done.stdout}"
            assert name in done.stdout + done.stderr
        load.flow()
        assert cluster.primary() is primary and primary.status()["epoch"] == epoch
        load.stop()
        load.check(primary)
