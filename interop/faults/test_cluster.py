"""A cluster of three, one of whose disks fails, hangs or is full: no confirmed message is lost, and the others go on.

All scenarios but the one that fetches files share a cluster and its load; each of them leaves all nodes in sync on good disks.
"""

import contextlib
import shutil
import time

import pytest
from harness import failover, faults, process
from harness.bodies import Violation
from harness.cluster import chosen_seed, figure, in_sync, temporary
from single import verify

#: A process whose storage failed ends within that time, with a word to the election service.
END_SECONDS = 15
#: A member without a session leaves the set after a second, one that does not flush after four.
WITHOUT_SESSION, WITHOUT_FLUSH = 1.0, 4.0
#: What a change of the set takes on a busy machine.
GRACE = 1.5
JOURNAL = "*/db-*.log"
IO = "Input/output error"


@contextlib.contextmanager
def on_bad_disks(what, *names):
    """A cluster, each node on a disk of its own that can fail."""
    with temporary(what, minimum_replicas=1) as cluster:
        for node in cluster:
            node.disk = faults.Disk(cluster.directory / f"{node.name}.faults")
            node.env = node.disk.environment
        yield cluster.start(*names)


@contextlib.contextmanager
def under_load(cluster):
    """A load; at the end everything is counted, and the nodes are compared."""
    load = failover.Load(cluster.addresses, seed=chosen_seed(), pause=0.1, storage_may_fail=True)
    load.start()
    load.flow()
    yield load
    load.stop()
    load.check(cluster.primary())
    cluster.stop_alike()
    figure(f"{cluster.directory.name}: {load.summary()}")


class Shared:
    """The cluster of several scenarios. One that fails takes it down, and the next one begins with another."""

    def __init__(self):
        self.stack = None

    def __enter__(self):
        if self.stack is None:
            self.stack = contextlib.ExitStack()
            cluster = self.stack.enter_context(on_bad_disks("faults"))
            self.world = cluster, self.stack.enter_context(under_load(cluster))
        return self.world

    def __exit__(self, kind, error, trace):
        if error is not None:
            stack, self.stack = self.stack, None
            with contextlib.suppress(kind):
                stack.__exit__(kind, error, trace)

    def close(self):
        if self.stack is not None:
            self.stack.close()


@pytest.fixture(scope="module")
def filled():
    """Two nodes with so much that their first files go at the next collection, and a third one that was never started."""
    with on_bad_disks("fetch", "n1", "n2") as cluster:
        perf = ["--log", "error", "perf", "--url", cluster.primary().url, "--queue", "bulk"]
        for more in (["--producers", 4, "--window", 64, "--size", 16 << 10, "--count", 1280], ["--drain", "--count", 640]):
            done = process.run(*perf, *more)
            assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        yield cluster


@pytest.fixture(scope="module")
def shared(filled):
    """After the other one: its collection comes while this one is at work."""
    made = Shared()
    yield made
    made.close()


def ended(node, *words):
    """Waits until it has ended by itself with 1, and these words in the last that it said."""
    code = node.child.wait(END_SECONDS)
    last = node.errors().strip().splitlines()[-1]
    if code != 1 or not all(word in last for word in words):
        raise Violation(f"{node.name} ended with {code}, expected 1 and {words}:\n{node.errors()[-1500:]}")


def back(cluster, load, *nodes):
    """Good disks again: who has ended is started, and all are in the set."""
    for node in nodes:
        node.disk.heal()
        if not node.running():
            node.start(wait=False)
    cluster.wait_in_sync()
    load.flow()


def test_a_flush_of_the_primary_fails(shared):
    """Once, and what it should have flushed is lost: the node confirms nothing more and ends, another one leads."""
    with shared as (cluster, load):
        old = cluster.primary()
        rule = old.disk.fails("fdatasync", JOURNAL, "drop")
        struck = rule.wait()
        outage = load.outage(struck, cluster.takeover_seconds)
        figure(f"primary's flush fails: next confirmed send after {outage:.2f} s")
        assert cluster.primary() is not old
        ended(old, "flushing", "db-", IO)
        load.flow()
        back(cluster, load, old)


def test_a_flush_of_a_replica_fails(shared):
    """It ends; the primary waits no longer than for anybody who is gone."""
    with shared as (cluster, load):
        primary, replica = cluster.primary(), cluster.replicas()[0]
        rule = replica.disk.fails("fdatasync", JOURNAL, "drop")
        struck = rule.wait()
        ended(replica, "flushing", "db-", IO)
        load.flow()
        gap = load.moments.longest_gap(struck, time.monotonic())
        figure(f"a replica's flush fails: longest time without a confirmed send {gap:.2f} s")
        assert gap < WITHOUT_SESSION + GRACE
        assert cluster.primary() is primary
        back(cluster, load, replica)


def test_a_replica_s_disk_hangs(shared):
    with shared as (cluster, load):
        primary = cluster.primary()
        first, second = cluster.replicas()
        # For less than would cost it its place.
        rule = first.disk.hangs("fdatasync", JOURNAL)
        struck = rule.wait()
        time.sleep(max(struck + 2.5 - time.monotonic(), 0))
        members = in_sync(primary.status())
        released = time.monotonic()
        rule.release()
        load.flow()
        assert first.name in members
        # What the strike met had been flushed by nobody; what was on its way to the clients had.
        assert not load.moments.between(struck + 0.5, released), "something was confirmed that a member of the set has not flushed"
        # For so long that it leaves.
        rule = second.disk.hangs("fdatasync", JOURNAL)
        struck = rule.wait()
        cluster.wait_for(lambda found: second.name not in in_sync(found[primary.name]), 10, "a set without the one that hangs")
        load.flow()
        gap = load.moments.longest_gap(struck, time.monotonic())
        figure(f"a replica's disk hangs: longest time without a confirmed send {gap:.2f} s")
        assert WITHOUT_FLUSH - GRACE < gap < WITHOUT_FLUSH + GRACE
        rule.release()
        cluster.wait_in_sync()
        assert second.running(), "it was only slow"
        back(cluster, load, first, second)


def test_the_primary_s_disk_hangs_for_longer_than_its_session(shared):
    """Its session lives, its flushes do not come back: it gives way, and is no primary any more when they do."""
    with shared as (cluster, load):
        old = cluster.primary()
        rule = old.disk.hangs(("fdatasync", "fsync"), "*")
        struck = rule.wait()
        outage = load.outage(struck, 2 * cluster.takeover_seconds)
        figure(f"primary's disk hangs: next confirmed send after {outage:.2f} s")
        assert outage < WITHOUT_FLUSH + cluster.takeover_seconds
        new = cluster.primary()
        assert new is not old
        load.flow()
        assert rule.hanging, "the disk came back by itself"
        rule.release()
        cluster.wait_in_sync()
        assert cluster.primary() is new and old.running()
        back(cluster, load, old)


def test_the_primary_s_disk_hangs_while_it_writes_down_the_record(shared):
    """It can decide nothing more, and its session lives: it gives way all the same."""
    with shared as (cluster, load):
        old, (_, away) = cluster.primary(), cluster.replicas()
        away.kill()
        cluster.wait_for(lambda found: away.name not in in_sync(found[old.name]), 10, "a set without the one that is away")
        rule = old.disk.hangs("fsync", "*/replication/record.tmp")
        # A change of the record: it joins again.
        away.start()
        struck = rule.wait()
        cluster.wait_for(lambda found: cluster.leader(found) not in (None, old.name), 2 * cluster.takeover_seconds, "another primary")
        figure(f"primary's disk hangs while it writes down the record: another one leads after {time.monotonic() - struck:.2f} s")
        new = cluster.primary()
        load.flow()
        assert rule.hanging, "the disk came back by itself"
        rule.release()
        cluster.wait_in_sync()
        assert cluster.primary() is new and old.running()
        back(cluster, load, old, away)


def test_a_record_that_cannot_be_kept_ends_the_node(shared):
    """What a node knows of the cluster has to survive it: one that cannot write it down is of no use, and says so."""
    with shared as (cluster, load):
        primary = cluster.primary()
        first, second = cluster.replicas()
        rule = first.disk.fails("fsync", "*/replication/record.tmp", times=faults.FOR_EVER)
        # A change of the record: the other one leaves the set.
        second.kill()
        rule.wait()
        ended(first, "replication/record", IO)
        assert primary.running()
        back(cluster, load, first, second)


def test_a_promise_that_cannot_be_kept_is_not_given(shared):
    """Who is to lead and cannot write down its epoch does not: it ends, and somebody else does."""
    with shared as (cluster, load):
        old, chosen = cluster.primary(), cluster.replicas()[0]
        rule = chosen.disk.fails("write", "*/replication/node")
        old.cluster_command("promote", chosen.name)
        struck = rule.wait()
        ended(chosen, "replication/node", IO)
        outage = load.outage(struck, cluster.takeover_seconds)
        figure(f"a promise cannot be written down: next confirmed send after {outage:.2f} s")
        assert cluster.primary() is not chosen
        back(cluster, load, chosen)


def test_a_full_disk_and_a_flipped_bit_while_whole_files_are_fetched(filled):
    cluster, newcomer, primary = filled, filled["n3"], filled.primary()
    collected = lambda _: not (primary.directory / "db-1.log").exists()
    cluster.wait_for(collected, 60, "a file collected, since all of its messages are gone")
    with under_load(cluster) as load:
        rule = newcomer.disk.full("*/n3/replication/incoming/*")
        newcomer.start(wait=False)
        rule.wait()
        load.flow()
        attempts = attempts_in(3, newcomer, "synchronisation interrupted")
        figure(f"disk full while fetching: {attempts} attempts in 3 s")
        assert newcomer.running() and 0 < attempts < 10
        assert "No space left on device" in newcomer.log_text()
        assert newcomer.name not in in_sync(primary.status())
        rule.off()
        cluster.wait_in_sync()
        # It has lost its disk, and the primary's copy of an old file is not what it was when it was summed up.
        newcomer.kill()
        shutil.rmtree(newcomer.directory)
        newcomer.log_path.unlink()
        old = data_files(primary)[1]
        flip(old)
        newcomer.start(wait=False)
        says(cluster, newcomer, "a received file is not what was announced", old.name)
        assert not (newcomer.directory / old.name).exists(), "a damaged file was put in place"
        # Nor is one of which nobody has kept what it was.
        fresh = data_files(primary)[-3]
        cluster.wait_for(lambda _: summary(primary, fresh).exists(), 30, "a finished file is summed up")
        summary(primary, fresh).unlink()
        flip(fresh)
        flip(old)
        says(cluster, newcomer, "damaged at", fresh.name)
        attempts = attempts_in(3, primary, "no synchronisation now")
        figure(f"damaged file at the primary: {attempts} attempts in 3 s")
        assert attempts < 5
        assert newcomer.name not in in_sync(primary.status())
        load.flow()
        flip(fresh)
        cluster.wait_in_sync()
        # A replica has one: `verify` finds it.
        newcomer.kill()
        flip(newcomer.directory / old.name)
        code, report = verify(newcomer.directory)
        assert code == 1 and old.name in str(report), report
        flip(newcomer.directory / old.name)
        newcomer.start(wait=False)
        cluster.wait_in_sync()


def attempts_in(seconds, node, line):
    """How often it logs that within so many seconds."""
    before = node.log_text().count(line)
    time.sleep(seconds)
    return node.log_text().count(line) - before


def says(cluster, node, *words):
    """Waits until one line of its log has these words."""
    there = lambda _: any(all(word in line for word in words) for line in node.log_text().splitlines())
    cluster.wait_for(there, 30, f"{words} in the log of {node.name}")


def data_files(node):
    """Its data files, ascending. The last one or two are being written, or prepared."""
    return sorted(node.directory.glob("db-*.log"), key=lambda path: int(path.stem.removeprefix("db-")))


def summary(node, file):
    """Where a node keeps what a data file is."""
    return node.directory / "replication" / "sums" / f"{file.stem}.sum"


def flip(file):
    """One bit, in the middle of what was written."""
    with open(file, "r+b") as data:
        data.seek(1 << 20)
        [byte] = data.read(1)
        data.seek(1 << 20)
        data.write(bytes([byte ^ 16]))
