"""Nodes that an operator takes out stay out, whoever leads, until the operator lets them in again."""

import time

import pytest
from harness import failover, process
from harness.bodies import Violation
from harness.cluster import chosen_seed, in_sync, temporary

#: A node that is refused tries again after so long; twice that is enough to be sure that it tried.
REDIAL_SECONDS = 5


def refused(node, since):
    """Waits until a node was told that it is removed, behind what it had logged before."""
    until = time.monotonic() + 4 * REDIAL_SECONDS
    while "was removed from the cluster" not in node.log_text()[since:]:
        assert time.monotonic() < until, f"{node.name} was not refused\n{node.errors()}"
        time.sleep(0.1)


def members(status):
    return {one["node"] for one in status["replicas"] if one["connected"]}


def test_a_removed_node_stays_out_over_takeovers_and_restarts():
    seed = chosen_seed()
    # Of the two that stay one has to go on alone.
    with temporary("members", minimum_replicas=0) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        load.flow()
        primary = cluster.primary()
        gone = cluster.replicas()[0]
        staying = [node.name for node in cluster if node is not gone]
        said = primary.cluster_command("remove", gone.name)
        assert "no longer a member" in said
        cluster.wait_in_sync(*staying)
        refused(gone, 0)
        assert primary.status()["removed"] == [gone.name]
        assert f"removed   {gone.name}" in primary.cluster_command("status")
        # Twice does no harm.
        primary.cluster_command("remove", gone.name)
        load.flow()
        # Another one leads, and never heard of it but from the record.
        before = len(gone.log_text())
        killed = primary.kill()
        load.outage(killed, cluster.takeover_seconds)
        second = cluster.primary()
        assert second.name in staying and second is not primary
        primary.start()
        cluster.wait_in_sync(*staying)
        refused(gone, before)
        # Everybody is stopped, and begins again.
        load.stop()
        load.check(cluster.primary())
        before = len(gone.log_text())
        for node in cluster:
            node.stop()
        for node in cluster:
            node.start(wait=False)
        for node in cluster:
            node.wait_until_said("ready", "replica")
        cluster.wait_in_sync(*staying)
        refused(gone, before)
        status = cluster.primary().status()
        assert set(in_sync(status)) == set(staying) and gone.name not in members(status)
        # Let in again, it comes by itself.
        cluster.primary().cluster_command("add", gone.name)
        cluster.wait_in_sync(*staying, gone.name)
        assert cluster.primary().status()["removed"] == []
        cluster.stop_alike()


def test_what_cannot_be_removed_is_refused_and_nothing_changes():
    with temporary("members", minimum_replicas=1) as cluster:
        cluster.start()
        primary, replica = cluster.primary(), cluster.replicas()[0]
        before = primary.status()

        def refuse(node, *arguments, said):
            with pytest.raises(Violation, match=said):
                node.cluster_command(*arguments)

        refuse(primary, "remove", "n7", said="no node n7 is known")
        refuse(primary, "remove", primary.name, said="this node leads")
        refuse(primary, "remove", replica.name, "--store", "ab", said="no copy")
        refuse(primary, "remove", replica.name, "--store", "x y", said="32 hex digits")
        refuse(replica, "remove", cluster.replicas()[1].name, said="does not lead")
        refuse(replica, "add", "n7", said="does not lead")
        after = primary.status()
        assert (after["in_sync"], after["removed"]) == (before["in_sync"], [])
        # Below what a confirmation takes nobody goes; the node stays connected and in sync.
        primary.cluster_command("set-minimum-replicas", "2")
        refuse(primary, "remove", replica.name, said="below minimumReplicas")
        assert primary.status()["removed"] == []
        cluster.wait_in_sync()
        # One of its copies, by its full id: the node is not barred, and comes back.
        primary.cluster_command("set-minimum-replicas", "1")
        store = next(one["store"] for one in primary.status()["replicas"] if one["node"] == replica.name)
        assert "no longer waited for" in primary.cluster_command("remove", replica.name, "--store", store)
        cluster.wait_in_sync()
        assert process.run("cluster", "status", "--admin", primary.admin_url).returncode == 0
