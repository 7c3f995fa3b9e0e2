"""An empty replica is added under load, and dies again and again on the way, once the primary does: it resumes every time."""

import time

from harness import failover, process
from harness.cluster import chosen_seed, figure, synchronisation, temporary

MIB = 1 << 20
BODY_BYTES = 16 << 10
#: Who is killed when so much is there.
KILLS = [(0.1, "newcomer"), (0.5, "newcomer"), (0.7, "primary"), (0.9, "newcomer")]
#: What a kill may cost: chunks that were on their way, or flushed but not yet noted.
REPEATED_BYTES_MAX = 32 * MIB
FINISHED = "finished"


def test_an_interrupted_synchronisation_resumes(long):
    seed = chosen_seed()
    fill_bytes, patience = (5120 * MIB, 900) if long else (200 * MIB, 120)
    # Slow enough that a kill can meet it.
    slow = ["--sync-bandwidth", fill_bytes // 10]
    with temporary("bulk-sync", minimum_replicas=1, options=slow) as cluster:
        cluster.start("n1", "n2")
        fill(cluster.primary(), fill_bytes)
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        load.flow()
        newcomer, met, least = cluster["n3"], 0, 0
        for part, who in KILLS:
            if not newcomer.running():
                newcomer.start(wait=False)
            there = lambda found, part=part: reached(found, newcomer, part)
            progress = cluster.wait_for(there, patience, f"{part:.0%} of the files are there")
            if progress == FINISHED:
                break
            met += 1
            resumed = progress["bytes_resumed"]
            assert resumed >= least - REPEATED_BYTES_MAX, f"of {least} bytes that were there only {resumed} are used again"
            least = progress["bytes_done"]
            print(f"{who} killed at {progress}", flush=True)
            if who == "newcomer":
                newcomer.kill()
            else:
                old = cluster.primary()
                old.kill()
                # What is there is worth as much to the next primary.
                old.start(wait=False)
        assert met, "the synchronisation was over before it could be met: fill more"
        if not newcomer.running():
            newcomer.start(wait=False)
        cluster.wait_in_sync(timeout=patience)
        load.flow()
        load.stop()
        load.check(cluster.primary())
        cluster.stop_alike()
        assert not list((newcomer.directory / "replication" / "incoming").glob("*.log")), "files that were installed lie there twice"
        figure(f"bulk sync: {met} interruptions; {load.summary()}")


def test_a_replica_that_was_away_fetches_only_what_it_lacks():
    """H14: no file is copied for a replica whose journal is a beginning of the primary's."""
    seed = chosen_seed()
    with temporary("catch-up", minimum_replicas=1) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        for _ in range(3):
            load.flow()
            replica = cluster.replicas()[0]
            replica.kill()
            load.flow()
            replica.start(wait=False)

            def back(found, name=replica.name):
                assert synchronisation(found, name) is None, f"whole files are copied for {name}"
                seen = [one for status in found.values() if status["role"] == "primary" for one in status["replicas"]]
                return any(one["node"] == name and one["connected"] and one["in_sync"] for one in seen)

            cluster.wait_for(back, 60, f"{replica.name} back in the set")
        load.stop()
        load.check(cluster.primary())
        cluster.stop_alike()


def fill(primary, wanted_bytes):
    """Half as much again as is wanted goes in, a third of it out, and its files are gone: their numbers do not begin with 1."""
    first = min(numbers(primary))
    count = wanted_bytes // BODY_BYTES
    perf(primary, "--producers", 4, "--window", 64, "--size", BODY_BYTES, "--count", count * 3 // 2)
    perf(primary, "--drain", "--count", count // 2)
    until = time.monotonic() + 120
    while min(numbers(primary)) == first:
        assert time.monotonic() < until, "no file was collected although all of its messages are gone"
        time.sleep(0.2)


def numbers(node):
    return [int(file.stem.removeprefix("db-")) for file in node.directory.glob("db-*.log")]


def perf(node, *arguments):
    done = process.run("--log", "error", "perf", "--url", node.url, "--queue", "bulk", *arguments, timeout=1800)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def reached(found, newcomer, part):
    """The progress once so much is there; that it is over if it is; `None` before."""
    progress = synchronisation(found, newcomer.name)
    if progress and progress["bytes_total"] and progress["bytes_done"] >= part * progress["bytes_total"]:
        return progress
    members = {member["node"] for status in found.values() if status["role"] == "primary" for member in status["in_sync"]}
    return FINISHED if newcomer.name in members else None
