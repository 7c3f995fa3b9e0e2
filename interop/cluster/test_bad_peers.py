"""Strangers at the replication port: the cluster goes on, and the log says what they did."""

import random
import socket
import struct
import time

import pytest
from harness import failover
from harness.cluster import chosen_seed, temporary

#: Of a connection that would carry the live stream.
PREAMBLE = b"KDBR\x02\x01"
HELLO, JOURNAL_UPDATE = 16, 3
#: A peer that has not proved who it is has so long.
HANDSHAKE_SECONDS = 5
#: The longest time without a receipt that a stranger may cause.
GAP_SECONDS = 2.0


def crc32c(data):
    """Castagnoli's, of the first twelve bytes of a frame and its header."""
    crc = 0xFFFF_FFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F6_3B78 if crc & 1 else 0)
    return crc ^ 0xFFFF_FFFF


def frame(kind, header=b"", body=b"", length=None, header_length=None, spoilt=0):
    """A frame, right unless told otherwise."""
    length = 12 + len(header) + len(body) if length is None else length
    head = struct.pack(">IHHI", length, kind, 0, len(header) if header_length is None else header_length)
    return head + struct.pack(">I", crc32c(head + header) ^ spoilt) + header + body


def field(number, value):
    """A field of a protobuf message."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value)]) + value


def hello(versions=(2, 2), cluster_id=None):
    """What a replica says first, one that is not of this cluster."""
    replica = field(1, b"stranger") + field(2, bytes(15) + b"\7")
    fields = [field(1, versions[0]), field(2, versions[1])]
    fields += [field(4, cluster_id)] if cluster_id else []
    fields += [field(5, replica), field(6, bytes(15) + b"\7"), field(7, 1), field(9, b"test"), field(10, bytes(31) + b"\7")]
    return frame(HELLO, b"".join(fields))


BAD = {
    "garbage": random.Random(1).randbytes(4000),
    "http": b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "version-1": b"KDBR\x01\x01",
    "unknown-role": b"KDBR\x02\xff",
    "oversized-length": PREAMBLE + frame(HELLO, length=0xFFFF_FFFF),
    "more-than-a-stranger-may-send": PREAMBLE + frame(HELLO, body=bytes(8000)),
    "header-longer-than-frame": PREAMBLE + frame(HELLO, length=12, header_length=4000),
    "wrong-checksum": PREAMBLE + frame(HELLO, header=field(1, 2), spoilt=1),
    "no-protobuf": PREAMBLE + frame(HELLO, header=b"\xff" * 20),
    "update-before-hello": PREAMBLE + frame(JOURNAL_UPDATE),
    "unknown-frame": PREAMBLE + frame(999),
    "version-of-the-future": PREAMBLE + hello(versions=(7, 9)),
    "another-cluster": PREAMBLE + hello(cluster_id=bytes(range(16))),
}
SILENT = {"nothing": b"", "half-a-preamble": b"KDB", "half-a-frame": PREAMBLE + frame(HELLO, length=200, header_length=188) + b"x"}


@pytest.fixture(scope="module")
def trouble():
    """A cluster under load for all of them, and at the end a look at whether anything is missing."""
    seed = chosen_seed()
    with temporary("bad-peers", minimum_replicas=1) as cluster:
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        load.flow()
        primary, epoch = cluster.primary(), cluster.primary().status()["epoch"]
        yield cluster, load
        cluster.wait_in_sync()
        assert cluster.primary() is primary and primary.status()["epoch"] == epoch, "strangers moved the primary"
        load.flow()
        load.stop()
        load.check(primary)
        cluster.stop_alike()


def targets(cluster):
    return [cluster.primary(), cluster.replicas()[0]]


def ends_within(stranger, seconds):
    """Reads until the other end closes."""
    stranger.settimeout(seconds)
    try:
        while stranger.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def unmoved(cluster, load, began):
    """The load has gone on all the time, on all nodes."""
    assert all(node.running() for node in cluster)
    load.flow()
    gap = load.moments.longest_gap(began, time.monotonic())
    assert gap < GAP_SECONDS, f"{gap:.2f} s without a receipt"


def logged(node, port, timeout=5):
    """Waits until the node's log names the stranger's address."""
    until = time.monotonic() + timeout
    while f":{port}" not in node.log_text():
        assert time.monotonic() < until, f"{node.name} does not log what the peer at port {port} did\n{node.errors()}"
        time.sleep(0.05)


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_refused_at_once_and_logged(trouble, what):
    cluster, load = trouble
    began = time.monotonic()
    for node in targets(cluster):
        with socket.create_connection(node.kdbr, timeout=5) as stranger:
            port = stranger.getsockname()[1]
            stranger.sendall(BAD[what])
            assert ends_within(stranger, HANDSHAKE_SECONDS - 2), f"{node.name} keeps a peer that sent {what}"
        logged(node, port)
    unmoved(cluster, load, began)


@pytest.mark.parametrize("what", SILENT)
def test_who_falls_silent_has_a_few_seconds(trouble, what):
    cluster, load = trouble
    began = time.monotonic()
    for node in targets(cluster):
        with socket.create_connection(node.kdbr, timeout=5) as stranger:
            stranger.sendall(SILENT[what])
            assert ends_within(stranger, HANDSHAKE_SECONDS + 3), f"{node.name} keeps a peer that sent {what} and then no more"
    unmoved(cluster, load, began)


def test_many_connections_do_not_keep_replicas_out(trouble):
    cluster, load = trouble
    began = time.monotonic()
    primary, strangers = cluster.primary(), []
    try:
        for _ in range(400):
            strangers.append(socket.create_connection(primary.kdbr, timeout=5))
            strangers[-1].sendall(b"KDBR")
        unmoved(cluster, load, began)
        # A replica that comes now must be let in, at the latest when the strangers' time is over.
        replica = cluster.replicas()[0]
        replica.kill()
        replica.start()
        cluster.wait_in_sync()
        assert cluster.primary() is primary
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_flood_of_bytes_is_not_buffered(trouble):
    cluster, load = trouble
    began, primary = time.monotonic(), cluster.primary()
    sent, block = 0, bytes(1 << 20)
    with socket.create_connection(primary.kdbr, timeout=5) as stranger:
        stranger.settimeout(2)
        try:
            stranger.sendall(PREAMBLE + frame(HELLO, length=1 << 30))
            while sent < 64 << 20:
                sent += stranger.send(block)
        except OSError:
            pass
    assert sent < 64 << 20, "the primary took 64 MiB from a stranger"
    unmoved(cluster, load, began)
