"""A directory of ActiveMQ's becomes a cluster: replicas get it with everything in it, and any of them may lead."""

import pytest
from harness import drain, failover, fixtures, process, recovered, wire
from harness.bodies import body_of
from harness.cluster import chosen_seed, temporary

#: Of everything something: a backlog over several files, subscriptions, open and prepared transactions, deleted files, a crash.
NAMES = ["ack-compaction", "durable-topics", "rolled-gc", "transactions-crash", "xa-prepared-clean"]
#: Not a single store, or refused by a single node already.
OTHERS = [name for name in fixtures.names() if not name.startswith("damaged-") and name not in (*NAMES, "multi-kahadb")]
QUEUE = "/queue/OURS"


def unpacked(cluster, name, tmp_path):
    store = fixtures.unpack(name, tmp_path / "unpacked") / "kahadb"
    fixtures.copy(store, cluster["n1"].directory)
    found = fixtures.expected(name)["recovered"]
    # The scheduler's own directory stays where it is.
    return {key: value for key, value in found.items() if key != "scheduledJobs"}


def adopted(cluster, name, tmp_path):
    """A single node has opened the directory once, which is how an operator makes it the truth of a new cluster."""
    found = unpacked(cluster, name, tmp_path)
    with process.kahawai(cluster["n1"].directory) as broker:
        assert broker.stop() == 0
    return found


def leads(cluster, name):
    """Nobody else may begin the cluster: an empty node would."""
    if cluster.zookeeper.pid is None:
        cluster.zookeeper.start()
    cluster[name].start(wait=False)
    cluster.wait_for(lambda found: name in found and found[name]["role"] == "primary", 60, f"{name} leads")


def check(name, tmp_path):
    with temporary("from-activemq", minimum_replicas=1) as cluster:
        found = adopted(cluster, name, tmp_path)
        leads(cluster, "n1")
        cluster["n2"].start()
        cluster["n3"].start()
        primary = cluster.wait_in_sync()
        assert primary.name == "n1"
        # Something of ours behind it.
        with wire.Client(primary.stomp) as client:
            for number in range(50):
                client.send(QUEUE, body_of(0, number, 200))
            client.disconnect()
        cluster.stop_alike()
        for node in cluster:
            got = recovered.inspect(node.directory)
            got["destinations"] = [one for one in got["destinations"] if one["destination"] != "queue://OURS"]
            recovered.check(found, got)
        # Whoever leads now, it is not the one that ActiveMQ's index was given to.
        cluster.start("n2", "n3")
        assert cluster.primary().name != "n1"
        drain.everything(cluster.primary().stomp, found)
        cluster["n1"].start()
        cluster.wait_in_sync()
        left = cluster.stop_alike()
        queues = [one for one in left["destinations"] if one["destination"].startswith("queue://")]
        assert {one["destination"]: one["count"] for one in queues if one["count"]} == {"queue://OURS": 50}


@pytest.mark.parametrize("name", NAMES)
def test_what_activemq_left_is_on_all_nodes(name, tmp_path):
    check(name, tmp_path)


def test_so_is_what_is_in_all_other_directories(tmp_path, long):
    if not long:
        pytest.skip("takes minutes")
    for name in OTHERS:
        check(name, tmp_path / name)


def test_it_is_given_up_file_by_file_under_load_and_over_takeovers(tmp_path):
    """What replicas say of ActiveMQ's messages stays right while these are consumed and their files deleted."""
    seed = chosen_seed()
    with temporary("from-activemq", minimum_replicas=1, journal_file_bytes=1 << 20) as cluster:
        found = unpacked(cluster, "queue-backlog", tmp_path)
        # Nobody takes it for the truth by mistake.
        cluster.zookeeper.start()
        with pytest.raises(process.StartFailed, match="store rebuild-index"):
            cluster["n1"].start()
        done = process.run("store", "rebuild-index", cluster["n1"].directory)
        assert done.returncode == 0, done.stderr
        leads(cluster, "n1")
        cluster["n2"].start()
        cluster.wait_in_sync("n1", "n2")
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        load.flow()
        [entry] = [one for one in found["destinations"] if one["count"] == max(other["count"] for other in found["destinations"])]
        destination = "/queue/" + entry["destination"].removeprefix("queue://")
        wanted, taken = recovered.ids(entry), []
        for round, part in enumerate([len(wanted) // 3, len(wanted) // 3, len(wanted) - 2 * (len(wanted) // 3)]):
            with wire.Client(cluster.primary().stomp) as client:
                client.subscribe(destination, id="own", ack="client-individual", activemq__prefetchSize=part)
                for message in client.messages(part, subscription="own"):
                    taken.append(message["message-id"])
                    client.ack(message)
                client.disconnect()
            if round == 0:
                # It comes while some is consumed; then the one that ActiveMQ's index was given to begins with nothing.
                cluster["n3"].start()
                cluster.wait_in_sync()
            killed = cluster.primary()
            load.outage(killed.kill(), cluster.takeover_seconds)
            killed.start()
            cluster.wait_in_sync()
        assert taken == wanted
        load.stop()
        load.check(cluster.primary())
        # What is not needed any more goes, and whoever comes then is given the rest.
        file = min(path for path in cluster["n1"].directory.glob("db-*.log")).name
        gone = lambda _: not any((node.directory / file).exists() for node in cluster)
        cluster.wait_for(gone, 120, f"{file} is deleted")
        cluster.add("n4").start()
        cluster.wait_in_sync()
        left = cluster.stop_alike()
        assert entry["destination"] not in {one["destination"] for one in left["destinations"] if one["count"]}
