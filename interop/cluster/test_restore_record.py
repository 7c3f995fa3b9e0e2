"""ZooKeeper loses the cluster record, or gets an old one back, under running nodes; an operator puts the newest one back."""

import http.client
import json
import shutil
import time

import pytest
from harness import failover, process
from harness.cluster import GRACE_SECONDS, chosen_seed, figure, in_sync, temporary


def stored(node):
    """What a node has kept of the record."""
    code, body = node.get("/cluster/record")
    assert code == 200, body
    return json.loads(body)


def newest(node):
    record = json.loads(stored(node)["record"])
    return record["epoch"], record["version"]


def restore(nodes, *arguments):
    """`kahawai cluster restore-record` over these nodes."""
    return process.run("cluster", "restore-record", *(f"--from={node.admin_url}" for node in nodes), *arguments)


def refused(nodes, *arguments, says):
    done = restore(nodes, *arguments)
    assert done.returncode != 0 and says in done.stderr, done.stdout + done.stderr
    assert "nothing was changed" in done.stderr, done.stderr
    return done.stdout


def everybody_lost(cluster, names):
    """Waits until these nodes say so, and nobody serves."""
    # ZooKeeper's client gives a session up that it cannot renew after 7/5 of its time.
    patience = 2 * cluster.session_ms / 1000 + GRACE_SECONDS
    lost = lambda found: all(name in found and found[name]["election"]["lost"] for name in names)
    cluster.wait_for(lost, patience, "all nodes miss the record")
    cluster.wait_for(lambda _: not any(node.serves() for node in cluster), GRACE_SECONDS, "nobody serves")
    for name in names:
        assert "ELECTION_STATE_LOST" in cluster[name].status()["state"], cluster[name].status()["state"]
        assert "restore-record" in cluster[name].cluster_command("status")


def deleted(cluster):
    yield
    cluster.zookeeper.cli("delete", f"{cluster.path}/record")
    yield


def uprooted(cluster):
    yield
    cluster.zookeeper.cli("deleteall", cluster.path)
    yield


def set_back(cluster):
    old = json.loads(stored(cluster.primary())["record"])
    yield
    cluster.zookeeper.cli("set", f"{cluster.path}/record", json.dumps(old))
    yield


def emptied(cluster):
    yield
    cluster.zookeeper.stop("KILL")
    shutil.rmtree(cluster.zookeeper.data)
    cluster.zookeeper.start()
    yield


def from_a_backup(cluster):
    backup = cluster.zookeeper.directory / "backup"
    cluster.zookeeper.stop()
    shutil.copytree(cluster.zookeeper.data, backup)
    cluster.zookeeper.start()
    # It may have been away for longer than the sessions.
    connected = lambda found: len(found) == 3 and all(status["election"]["connected"] for status in found.values())
    cluster.wait_for(connected, 2 * cluster.takeover_seconds, "all nodes connected with ZooKeeper again")
    cluster.wait_in_sync()
    yield
    cluster.zookeeper.stop("KILL")
    shutil.rmtree(cluster.zookeeper.data)
    backup.rename(cluster.zookeeper.data)
    cluster.zookeeper.start()
    yield


@pytest.mark.parametrize("lose", [deleted, uprooted, set_back, emptied, from_a_backup])
def test_the_record_is_put_back_and_a_node_leads_without_a_restart(lose):
    seed = chosen_seed()
    with temporary("restore-record", minimum_replicas=1) as cluster:
        cluster.start()
        nodes, names = list(cluster), list(cluster.nodes)
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        load.flow()
        steps = lose(cluster)
        next(steps)
        # The last thing that the record says, and the flags do not.
        primary = cluster.wait_in_sync()
        primary.cluster_command("set-minimum-replicas", "2")
        epoch, cluster_id = primary.status()["epoch"], primary.status()["cluster_id"]
        load.flow()
        cluster.wait_for(lambda _: len({newest(node) for node in nodes}) == 1, 20, "all nodes have kept the newest record")
        pids = [node.pid for node in nodes]
        refused(nodes, "--cluster-id", cluster_id, says=f"node {primary.name} leads")
        next(steps)
        everybody_lost(cluster, names)
        # Not by halves, nor by accident.
        refused(nodes[1:], "--cluster-id", cluster_id, says="what n1 knew is not known")
        refused(nodes, "--cluster-id", "0" * 32, says=f"the record of cluster {cluster_id}")
        shown = refused(nodes, says=f"--cluster-id {cluster_id}")
        assert f"The newest record is version {newest(primary)[1]} of epoch {epoch}, known to n1, n2, n3" in shown, shown
        everybody_lost(cluster, names)
        restored = time.monotonic()
        done = restore(nodes, "--cluster-id", cluster_id)
        assert done.returncode == 0, done.stdout + done.stderr
        outage = load.outage(restored, cluster.takeover_seconds)
        leader = cluster.wait_in_sync()
        assert leader.status()["epoch"] > epoch
        assert leader.status()["minimum_replicas"] == 2
        assert [node.pid for node in nodes if node.running()] == pids, "a node was restarted, or ended"
        everybody = lambda found: sorted(one["node"] for one in found[leader.name]["election"]["present"]) == names
        cluster.wait_for(everybody, 20, "all nodes are present in ZooKeeper")
        refused(nodes, "--cluster-id", cluster_id, says=f"node {leader.name} leads")
        load.flow()
        load.stop()
        load.check(leader)
        cluster.stop_alike()
        print(load.summary())
        figure(f"restore-record, {lose.__name__}: a send is confirmed {outage:.2f} s after the command was given")


def test_a_node_that_is_gone_for_good_is_named_and_one_that_was_restarted_knows_as_much():
    seed = chosen_seed()
    with temporary("restore-record", minimum_replicas=1) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        load.flow()
        gone = cluster.replicas()[0]
        gone.kill()
        shutil.rmtree(gone.directory)
        rest = [node for node in cluster if node is not gone]
        names = [node.name for node in rest]
        leader = cluster.wait_in_sync(*names)
        cluster_id = leader.status()["cluster_id"]
        load.flow()
        cluster.wait_for(lambda _: len({newest(node) for node in rest}) == 1, 20, "both nodes have kept the newest record")
        cluster.zookeeper.cli("delete", f"{cluster.path}/record")
        everybody_lost(cluster, names)
        before = stored(leader)
        leader.kill()
        leader.start()
        everybody_lost(cluster, names)
        after = stored(leader)
        assert after["record"] == before["record"] and after["lost"] and after["promised_epoch"] == before["promised_epoch"]
        shown = refused(rest, "--cluster-id", cluster_id, says=f"what {gone.name} knew is not known")
        assert f"! {gone.name} is a member, and what it knew is not known" in shown, shown
        done = restore(rest, "--cluster-id", cluster_id, "--without", gone.name)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "confirmed messages may be lost" in done.stdout, done.stdout
        leader = cluster.wait_in_sync(*names)
        assert sorted(in_sync(leader.status())) == sorted(names)
        load.flow()
        load.stop()
        load.check(leader)
        print(load.summary())


def post(node, **fields):
    """Code and body of the answer to the command, without the command line and its care."""
    connection = http.client.HTTPConnection(*node.admin, timeout=20)
    try:
        connection.request("POST", "/cluster/restore-record", json.dumps(fields), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_a_node_tells_what_it_has_kept_and_takes_no_record_that_is_wrong():
    with temporary("restore-record", minimum_replicas=1) as cluster:
        cluster.start()
        primary, replica = cluster.primary(), cluster.replicas()[0]
        cluster_id, old = primary.status()["cluster_id"], stored(primary)["record"]
        for node in (primary, replica):
            told = stored(node)
            assert (told["node_id"], told["cluster_id"], told["lost"]) == (node.name, cluster_id, None)
            assert told["leads"] == (node is primary) and told["promised_epoch"] == told["last_epoch"] == primary.status()["epoch"]
            assert told["end"] == node.status()["end"] and told["store_id"] == node.status()["store_id"]

        def check(code, says, node=replica, **fields):
            found, body = post(node, **{"cluster_id": cluster_id, "record": old, "promised_epoch": 1, **fields})
            assert found == code and says in body["error"], (found, body)

        check(409, "the election state is not lost")
        check(409, "the election state is not lost", node=primary)
        primary.cluster_command("set-minimum-replicas", "2")
        cluster.wait_for(lambda _: len({newest(node) for node in cluster}) == 1, 20, "all nodes have kept the newest record")
        kept = stored(primary)["record"]
        cluster.zookeeper.cli("delete", f"{cluster.path}/record")
        everybody_lost(cluster, list(cluster.nodes))
        check(400, "this node has seen a newer record")
        check(400, "this is no cluster record", record="{}")
        check(400, "this is no cluster record", record=" " * (256 * 1024 + 1))
        check(400, "32 hex digits", cluster_id="mine", record=kept)
        check(400, "the record belongs to cluster", cluster_id="0" * 32, record=kept)
        other = "1" * 32
        check(400, "that is not the id of this cluster", cluster_id=other, record=kept.replace(cluster_id, other))
        check(400, "too high for an epoch", record=kept, promised_epoch=2**62)
        without = json.loads(kept)
        without["in_sync"] = [member for member in without["in_sync"] if member["node"] != replica.name]
        check(409, "is not in the in-sync set", record=json.dumps(without))
        assert all(stored(node)["lost"] for node in cluster)
        # The longest that may be is long enough to arrive.
        code, body = post(replica, cluster_id=cluster_id, record=kept.ljust(256 * 1024, "\n"), promised_epoch=70)
        assert code == 200, body
        assert cluster.wait_in_sync().status()["epoch"] > 70
