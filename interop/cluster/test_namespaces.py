"""Partitions between nodes in network namespaces: packets vanish, and nobody is told."""

import contextlib
import sys
import time
from pathlib import Path

import pytest
from harness import failover, wire
from harness.cluster import chosen_seed, figure, in_sync, temporary
from harness.proxy import Proxy

sys.path.insert(0, str(Path(__file__).parent))

import network  # noqa: E402

pytestmark = pytest.mark.skipif(network.missing() is not None, reason=str(network.missing()))
NAMES = ["n1", "n2", "n3"]
#: A replica that does not answer is out of the set by then: no heartbeat, reconnect, eviction.
EVICTED_SECONDS = 15


@contextlib.contextmanager
def spread():
    """Three nodes, each in a namespace, a load from outside of them, and what each test ends with."""
    seed = chosen_seed()
    with network.Network(NAMES) as net, temporary("namespaces", 0, minimum_replicas=1) as cluster:
        cluster.zookeeper.start()
        way = Proxy(cluster.zookeeper.address, (net.address(network.ZOOKEEPER), 0))
        try:
            # Beyond loopback a node wants to know who its peers are.
            secret = cluster.directory / "secret"
            secret.write_text("a secret of sufficient length for everybody\n")
            options = [*cluster.settings["options"], "--kdbr-secret-file", secret]
            for name in NAMES:
                cluster.add(name, host=net.address(name), zookeeper=way.address, prefix=net.prefix(name), options=options)
            cluster.start()
            load = failover.Load(cluster.addresses, seed=seed)
            load.start()
            load.flow()
            yield net, cluster, load
            net.heal()
            cluster.wait_in_sync()
            load.flow()
            load.stop()
            load.check(cluster.primary())
            cluster.stop_alike()
            print(load.summary())
        finally:
            cluster.close()
            way.close()


def others(primary):
    """The names of the other nodes."""
    return [name for name in NAMES if name != primary.name]


def test_cut_from_zookeeper_only_it_hands_over():
    with spread() as (net, cluster, load):
        old = cluster.primary()
        cut = time.monotonic()
        net.cut(old.name, network.ZOOKEEPER)
        outage = moved(cluster, load, old, cut)
        figure(f"namespaces: cut from ZooKeeper: {outage:.2f} s to the next confirmed send")


def test_cut_from_one_replica_it_goes_on_without_it():
    with spread() as (net, cluster, load):
        primary, epoch = cluster.primary(), cluster.primary().status()["epoch"]
        lost = cluster.replicas()[0].name
        began = time.monotonic()
        net.cut(primary.name, lost)
        cluster.wait_for(lambda found: lost not in in_sync(found[primary.name]), EVICTED_SECONDS, f"{lost} out of the set")
        load.flow()
        gap = load.moments.longest_gap(began, time.monotonic())
        figure(f"namespaces: cut from one replica: {gap:.2f} s without a receipt")
        assert gap < EVICTED_SECONDS
        assert cluster.primary() is primary and primary.status()["epoch"] == epoch


def test_cut_from_all_other_nodes_it_hands_over():
    with spread() as (net, cluster, load):
        old = cluster.primary()
        left = wire.Client(old.address)
        left.send("/queue/partition", b"before")
        cut = time.monotonic()
        for other in [*others(old), network.ZOOKEEPER]:
            net.cut(old.name, other)
        # Clients still reach it: they may not be told that anything is safe.
        left.frame("SEND", {"destination": "/queue/partition", "persistent": "true", "receipt": "r"}, b"after")
        outage = moved(cluster, load, old, cut)
        try:
            frame = left.read(1)
            raise AssertionError(f"the old primary keeps a client: {frame}")
        except OSError:
            pass
        figure(f"namespaces: cut from all: {outage:.2f} s to the next confirmed send")


def test_cut_from_both_replicas_but_not_zookeeper_nothing_is_confirmed_alone():
    with spread() as (net, cluster, load):
        primary = cluster.primary()
        for other in others(primary):
            net.cut(primary.name, other)
        # What was confirmed before may still be on its way to the clients.
        time.sleep(1)
        cut = time.monotonic()
        stopped = lambda found: found[primary.name]["role"] != "primary" or found[primary.name]["suspended"]
        cluster.wait_for(stopped, EVICTED_SECONDS, "the primary suspended")
        if primary.status()["role"] == "primary":
            assert len(in_sync(primary.status())) >= 2, "the set is smaller than a confirmation demands"
            assert not load.moments.between(cut, time.monotonic()), "a send was confirmed by one node alone"
        net.heal()
        # By the same primary or another, over the connections that there are or new ones.
        load.flow(timeout=2 * cluster.takeover_seconds)


@pytest.mark.parametrize("deaf", ["primary", "replica"])
def test_one_direction_is_as_good_as_none(deaf):
    with spread() as (net, cluster, load):
        primary = cluster.primary()
        replica = cluster.replicas()[0]
        began = time.monotonic()
        net.cut_one_way(*((replica.name, primary.name) if deaf == "primary" else (primary.name, replica.name)))
        cluster.wait_for(lambda found: replica.name not in in_sync(found[primary.name]), EVICTED_SECONDS, f"{replica.name} out of the set")
        load.flow()
        figure(f"namespaces: the {deaf} hears nothing: {load.moments.longest_gap(began, time.monotonic()):.2f} s without a receipt")
        assert cluster.primary() is primary


def moved(cluster, load, old, cut):
    """Seconds to the next confirmed send at another primary; the old one has stopped serving before its session was over."""
    cluster.wait_for(lambda _: not old.serves(), cluster.session_ms / 1000 + 1, f"{old.name} to stop serving")
    outage = load.outage(cut + 0.1, cluster.takeover_seconds)
    new = cluster.primary()
    assert new is not old
    return outage
