"""What a primary's status and metrics say of its replicas: copies under way, disks, lags."""

import re

from harness import failover
from harness.cluster import chosen_seed, temporary
from test_bulk_sync import MIB, fill

FILL_BYTES = 48 * MIB
BYTES_PER_SECOND = 4 * MIB


def replica(status, name):
    return next((one for one in status["replicas"] if one["node"] == name), {})


def metric(node, name, replica):
    """A replica's sample on the node's page; `None` if there is none."""
    _, page = node.get("/metrics")
    found = re.search(rf'^{name}{{replica="{replica}",[^}}]*}} ([0-9.e+-]+)$', page.decode(), re.MULTILINE)
    return float(found[1]) if found else None


def test_a_copy_under_way_is_seen_at_the_primary_with_pace_and_end():
    with temporary("status", minimum_replicas=1, options=["--sync-bandwidth", BYTES_PER_SECOND]) as cluster:
        cluster.start("n1", "n2")
        fill(cluster.primary(), FILL_BYTES)
        primary = cluster.primary()
        cluster["n3"].start(wait=False)

        def under_way(found):
            progress = replica(found[primary.name], "n3").get("synchronisation") or {}
            # Measured over some seconds, so that it is near the limit.
            late = progress.get("bytes_done", 0) > 3 * BYTES_PER_SECOND
            return progress if late and progress["eta_seconds"] is not None else None

        seen = cluster.wait_for(under_way, 60, "the primary tells the pace of the copy")
        assert seen["bytes_total"] > FILL_BYTES * 0.9
        assert 0.5 * BYTES_PER_SECOND < seen["bytes_per_second"] < 2 * BYTES_PER_SECOND, seen
        rest = (seen["bytes_total"] - seen["bytes_done"]) / seen["bytes_per_second"]
        assert abs(seen["eta_seconds"] - rest) <= 1, seen
        assert 1 <= seen["sessions"] <= 4, seen
        for name in ("done_bytes", "total_bytes", "bytes_per_second", "eta_seconds", "sessions"):
            assert metric(primary, f"kahawai_synchronisation_{name}", "n3") is not None, name
        shown = cluster[primary.name].cluster_command("status")
        assert re.search(r"n3 copies: .* MiB/s over [1-4] connections, \d+ s left", shown), shown
        cluster.wait_in_sync("n1", "n2", "n3")
        assert replica(primary.status(), "n3")["synchronisation"] is None
        assert metric(primary, "kahawai_synchronisation_done_bytes", "n3") is None


def test_a_primary_knows_its_replicas_disks_and_how_far_behind_they_are():
    with temporary("status", minimum_replicas=1) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=chosen_seed())
        load.start()
        load.flow()
        primary, others = cluster.primary(), cluster.replicas()

        def told(found):
            ones = [replica(found[primary.name], other.name) for other in others]
            return ones if all(one["disk_free_bytes"] and one["flush_seconds_last"] for one in ones) else None

        for one in cluster.wait_for(told, 20, "replicas tell of their disks"):
            assert one["disk_free_bytes"] > 1 << 20 and 0 < one["flush_seconds_last"] < 10, one
        assert primary.status()["journal"]["disk_free_bytes"] > 1 << 20
        assert metric(primary, "kahawai_replica_disk_free_bytes", others[0].name) > 1 << 20
        assert metric(primary, "kahawai_replica_flush_seconds_last", others[0].name) > 0
        # One that stands still; short of being taken for dead.
        others[0].pause()
        lags = lambda found: replica(found[primary.name], others[0].name)["lag_seconds"] >= 0.5
        cluster.wait_for(lags, 3, "the primary sees that a replica lags")
        others[0].resume()
        load.flow()
        keeps_up = lambda found: replica(found[primary.name], others[0].name)["lag_seconds"] < 0.5
        cluster.wait_for(keeps_up, 20, "the primary sees that it keeps up")
        load.stop()
        load.check(cluster.primary())
