"""The harness itself: books that are cooked are found out, and a single node that is killed keeps them."""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import cluster, failover, process, wire
from harness.bodies import Violation
from harness.proxy import Proxy

sys.path.insert(0, str(Path(__file__).parent))

import network  # noqa: E402

TOTAL = 20


def book():
    """Twenty messages over two connections of ten; 1 to 8 and 11 to 18 are confirmed, 1 to 3 consumed."""
    one = failover.Book(5, "/queue/q")
    for _ in range(2):
        one.connected()
        for _ in range(TOTAL // 2):
            one.take()
    for first in (1, 11):
        one.confirm(first, first + 7)
    for number in (1, 2, 3):
        one.deliver(number)
        one.asked[number] = one.acked[number] = 1
    return one


def test_books_in_order():
    for there in ([*range(4, 21)], [*range(4, 9), *range(11, 19)], [*range(4, 10), *range(11, 20)]):
        book().check(there)
    asked = book()
    asked.deliver(4)
    asked.asked[4] = 1
    asked.check([*range(5, 21)])
    with pytest.raises(Violation, match="although its acknowledgement"):
        asked.deliver(7)


@pytest.mark.parametrize(
    ("there", "complaint"),
    [
        ([*range(4, 8), *range(11, 21)], r"1 CONFIRMED MESSAGES ARE LOST: \[8\]"),
        ([*range(4, 10), 9, *range(11, 21)], "9 IS THERE TWICE"),
        ([*range(5, 10), 4, *range(11, 21)], "out of order"),
        ([3, *range(4, 21)], "came back"),
        ([*range(4, 9), 10, *range(11, 21)], "holes before 10"),
        ([*range(4, 22)], "never sent"),
    ],
)
def test_cooked_books_are_found_out(there, complaint):
    with pytest.raises(Violation, match=complaint):
        book().check(there)


def test_a_delivery_that_nobody_acknowledged_may_not_vanish():
    one = book()
    one.deliver(19)
    with pytest.raises(Violation, match=r"1 were delivered and never acknowledged, and are gone: \[19\]"):
        one.check([*range(4, 19)])


def test_half_a_transaction_is_found_out():
    one = failover.Book(3, "/queue/q")
    one.connected()
    one.take(failover.TRANSACTION)
    one.check([])
    one.take(failover.TRANSACTION)
    with pytest.raises(Violation, match="of the transaction 8 to 14 only"):
        one.check([8, 9])


def test_what_a_check_has_taken_out_is_gone_for_good():
    one = book()
    one.check([*range(4, 21)])
    one.connected()
    one.confirm(*one.take())
    with pytest.raises(Violation, match="consumed long ago"):
        one.check([20, 21])
    with pytest.raises(Violation, match="never sent"):
        one.deliver(22)


def test_a_load_survives_the_kills_of_a_node_and_counts(tmp_path):
    address = (cluster.LOOPBACK, cluster.free_port())
    closed = (cluster.LOOPBACK, cluster.free_port())
    broker = process.kahawai(tmp_path / "store", "--journal-file-bytes", cluster.JOURNAL_FILE_BYTES, stomp=f"{address[0]}:{address[1]}")
    load, outages = failover.Load([closed, address], seed=cluster.chosen_seed()), []
    try:
        broker.start()
        for _ in range(2):
            load.start()
            for _ in range(2):
                load.flow()
                killed = time.monotonic()
                broker.kill()
                broker.close()
                broker.start()
                outages.append(load.outage(killed, 20))
            load.flow()
            load.stop()
            load.check(broker)
    finally:
        load.stopping.set()
        broker.close()
    assert load.confirmed() > 1000
    assert all(outage > 0 for outage in outages)
    print(f"{load.summary()}; {failover.distribution(outages)}")


def test_a_load_notices_that_a_directory_was_set_back(tmp_path):
    address = (cluster.LOOPBACK, cluster.free_port())
    broker = process.kahawai(tmp_path / "store", stomp=f"{address[0]}:{address[1]}")
    load = failover.Load([address], seed=cluster.chosen_seed(), consumers=False)
    try:
        broker.start()
        load.start()
        load.flow()
        broker.kill()
        shutil.copytree(tmp_path / "store", tmp_path / "old")
        broker.close()
        broker.start()
        load.flow()
        broker.kill()
        load.stop()
        shutil.rmtree(tmp_path / "store")
        shutil.copytree(tmp_path / "old", tmp_path / "store")
        broker.close()
        broker.start()
        with pytest.raises(Violation, match="CONFIRMED MESSAGES ARE LOST"):
            load.check(broker)
    finally:
        load.stopping.set()
        broker.close()


def test_copies_are_compared_up_to_the_last_batch(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    with process.kahawai(one) as broker, wire.Client(broker.address) as client:
        for number in range(20):
            client.send("/queue/q", f"message {number}")
        client.disconnect()
        assert broker.stop() == 0
    shutil.copytree(one, other)
    number, used = max(cluster.journal(one).items())
    name = f"db-{number}.log"
    data = bytearray((other / name).read_bytes())
    assert len(data) > used + 100
    data[used + 50] = 7
    (other / name).write_bytes(data)
    content = cluster.compare([one, other])
    assert cluster.left_over(content, ["/queue/q"]) == {"/queue/q": 20}
    # A second life of one of them: other batches, each of them whole.
    for directory, text in ((one, "left"), (other, "right")):
        with process.kahawai(directory) as broker, wire.Client(broker.address) as client:
            client.send("/queue/q", text)
            client.disconnect()
            assert broker.stop() == 0
    with pytest.raises(Violation, match="differ|different places"):
        cluster.compare([one, other])


def test_a_link_that_is_held_swallows_and_delivers_late():
    with socket.create_server((cluster.LOOPBACK, 0)) as server:
        link = Proxy(server.getsockname())
        with socket.create_connection(link.address) as near, server.accept()[0] as far:
            near.sendall(b"early")
            assert far.recv(5) == b"early"
            link.hold()
            near.sendall(b"late")
            far.settimeout(0.3)
            with pytest.raises(TimeoutError):
                far.recv(4)
            link.release()
            far.settimeout(5)
            assert far.recv(4) == b"late"
            link.reset()
            assert far.recv(1) == b""
        link.close()


def test_zookeeper_comes_back_at_its_port(tmp_path):
    zookeeper = cluster.Zookeeper(tmp_path / "zookeeper")
    try:
        for sign in ("TERM", "KILL"):
            zookeeper.start()
            with socket.create_connection(zookeeper.address, timeout=5) as asking:
                asking.sendall(b"ruok")
                assert asking.recv(4) == b"imok"
            zookeeper.stop(sign)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(zookeeper.address, timeout=5)
    finally:
        zookeeper.stop("KILL")


@pytest.mark.skipif(network.missing() is not None, reason=str(network.missing()))
def test_packets_vanish_one_way_and_come_back():
    listen = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 7000)); print(flush=True)"
    answer = "\nwhile True:\n    data, sender = s.recvfrom(100); s.sendto(data, sender)"
    with network.Network(["a", "b"]) as net:
        echo = subprocess.Popen(
            [*net.prefix("b"), sys.executable, "-c", listen + answer], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        try:
            echo.stdout.readline()

            def heard(source):
                """Does a datagram from there to b come back?"""
                ask = (
                    "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1);"
                    f"s.sendto(b'x', ('{net.address('b')}', 7000)); s.recv(1)"
                )
                prefix = net.prefix(source) if source else []
                return subprocess.run([*prefix, sys.executable, "-c", ask], capture_output=True, check=False).returncode == 0

            assert heard("a") and heard(None)
            net.cut_one_way("b", "a")
            assert not heard("a") and heard(None)
            net.heal()
            assert heard("a")
            net.cut("b", network.CLIENTS)
            assert heard("a") and not heard(None)
            net.heal()
            assert heard(None)
        finally:
            echo.kill()
            echo.wait()
