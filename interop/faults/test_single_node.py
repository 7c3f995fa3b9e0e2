"""A broker alone, whose disk fails: it stops, says why, and after a restart everything that was confirmed is there."""

import contextlib
import os
import subprocess
import time

import pytest
from harness import failover, process, wire
from harness.bodies import Violation, body_of, sent_as
from harness.cluster import chosen_seed, figure
from single import END_SECONDS, broker, ends, goes_on, sound, under_load, verify

IO = "Input/output error"
FULL = "No space left on device"
EVERY = {"times": 1 << 40}


def test_what_came_with_a_failed_flush_or_after_it_is_never_confirmed(tmp_path, disk):
    """The flush fails once, the batch is lost, and every later flush would succeed."""
    made = broker(tmp_path / "store", disk)
    with made, wire.Client(made.address) as client:
        client.send("/queue/q", b"before")
        rule = disk.fails("fdatasync", "*/db-*.log", "drop")
        for body in (b"with", b"after", b"last"):
            # It may have ended already.
            with contextlib.suppress(ConnectionError):
                client.frame("SEND", {"destination": "/queue/q", "persistent": "true", "receipt": body.decode()}, body)
        rule.wait()
        with pytest.raises(ConnectionError):
            while True:
                frame = client.read(END_SECONDS)
                assert frame is None or frame.command != "RECEIPT", f"confirmed, and not on the disk: {frame}"
        ends(made, "flushing", r"db-1\.log", IO)
        disk.heal()
        made.start()
        with wire.Client(made.address) as again:
            again.subscribe("/queue/q")
            assert again.message().body == b"before"
            again.silence()
            again.disconnect()
        assert made.stop() == 0
    assert rule.matched == 0 or rule.strikes == 1


#: What fails, and what the last line has to say of it.
FAULTS = {
    "flush": (("fdatasync", "*/db-*.log", "drop"), {}, ("flushing", r"db-\d+\.log", IO)),
    "write": (("write", "*/db-*.log", "half"), {}, ("writing", r"db-\d+\.log", IO)),
    "flush of the next file": (("fsync", "*/db-next.tmp", "drop"), {}, ("making a data file", r"db-\d+\.log", IO)),
    "flush of the directory": (("fsync", "*/store"), {}, ("making a data file", r"db-\d+\.log", IO)),
    "next file cannot be made": (("create", "*/db-*"), EVERY, ("making a data file", r"db-\d+\.log", IO)),
    "checkpoint's write": (("write", "*/index.redb", "half"), {}, (r"index\.redb", IO)),
    "checkpoint's flush": (("fdatasync", "*/index.redb", "drop"), {}, (r"index\.redb", IO)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_stops_and_nothing_confirmed_is_missing(tmp_path, disk, fault):
    (calls, pattern, *flags), when, words = FAULTS[fault]
    made = broker(tmp_path / "store", disk)
    load, rule = under_load(made, chosen_seed(), lambda: disk.fails(calls, pattern, *flags, **when))
    line = ends(made, *words)
    figure(f"{fault}: ended {time.monotonic() - rule.struck_at:.2f} s after the strike at {os.path.basename(rule.struck)}: {line[-160:]}")
    goes_on(made, disk, load)


@pytest.mark.parametrize("flags", [["silent", "drop"], ["silent"]], ids=["flush", "write"])
def test_the_books_find_a_broker_that_does_not_look_at_the_error(tmp_path, disk, flags):
    """The same faults, but the process is told that all is well: what it confirms then is lost, and that must be noticed."""
    calls = "fdatasync" if "drop" in flags else "write"
    made = broker(tmp_path / "store", disk)
    strike = lambda: disk.rule(calls, "*/db-[0-9]*.log", *flags, times=1 << 40)
    load, _ = under_load(made, chosen_seed(), strike, consumers=False)
    load.flow(50)
    made.kill()
    with pytest.raises((Violation, process.StartFailed), match="LOST|damaged"):
        goes_on(made, disk, load)
    made.close()


def test_a_failed_rename_of_the_next_file_is_made_good(tmp_path, disk):
    """Files are made ahead of time so that it is fast; where that does not go, the broker makes them when it needs them."""
    made = broker(tmp_path / "store", disk)
    load, rule = under_load(made, chosen_seed(), lambda: disk.fails("rename", "*/db-*.log", **EVERY))
    rule.wait(3)
    load.flow(50)
    assert made.running()
    assert "could not be prepared ahead" in made.errors()
    assert made.stop() == 0
    goes_on(made, disk, load)


@pytest.mark.parametrize("call", ["write", "fsync", "create"])
def test_a_start_that_cannot_write_who_it_is_says_so(tmp_path, disk, call):
    made = broker(tmp_path / "store", disk)
    with made, wire.Client(made.address) as client:
        client.send("/queue/q", b"kept")
        assert made.stop() == 0
    if call == "create":
        (tmp_path / "store" / "replication" / "node").unlink()
    rule = disk.fails(call, "*/replication/node")
    with pytest.raises(process.StartFailed, match=rf"replication/node: {IO}") as refused:
        made.start()
    assert refused.value.code == 1
    assert rule.strikes == 1
    disk.heal()
    with made, wire.Client(made.address) as client:
        client.subscribe("/queue/q")
        assert client.message().body == b"kept"


def test_a_full_disk_stops_it_and_room_brings_it_back(tmp_path, disk):
    """No room for anything, of a sudden. It ends: its consumers cannot be served either, since what they take has to be written."""
    made = broker(tmp_path / "store", disk)
    load, _ = under_load(made, chosen_seed(), lambda: disk.full("*/store/*"))
    ends(made, FULL, r"db-\d+\.log|index\.redb")
    # Still full: refused, with the reason, and nothing is worse afterwards.
    with pytest.raises(process.StartFailed, match=FULL) as refused:
        made.start()
    assert refused.value.code == 1
    goes_on(made, disk, load)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_file_system_that_is_really_full(tmp_path, disk):
    """12 MiB are filled by producers without consumers; with 12 MiB more everything confirmed comes out."""
    mount = tmp_path / "mount"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "kahawai-faults", mount], check=True)
    try:
        made = broker(mount / "store", disk, file_bytes=2 << 20)
        made.start()
        load = failover.Load([made.address], seed=chosen_seed(), consumers=False, pause=0.0, storage_may_fail=True)
        load.start()
        line = ends(made, FULL)
        figure(f"full file system: {load.confirmed()} confirmed, then: {line[-200:]}")
        # A start says so as well, unless there is room for the little that it writes.
        try:
            made.start()
        except process.StartFailed as refused:
            assert FULL in str(refused)
        else:
            made.kill()
        subprocess.run(["mount", "-o", "remount,size=24m", mount], check=True)
        goes_on(made, disk, load)
    finally:
        made.close()
        subprocess.run(["umount", "-l", mount], check=True)


def filled(made, count, size=900):
    """Messages in several files, none of them in the memory of the broker that is started for the reader."""
    with made, wire.Client(made.address) as client:
        # In many batches.
        for first in range(1, count + 1, 50):
            for number in range(first, first + 50):
                client.frame("SEND", {"destination": "/queue/old", "persistent": "true", "receipt": number}, body_of(0, number, size))
            for number in range(first, first + 50):
                client.expect("RECEIPT", receipt_id=str(number))
        client.disconnect()
        assert made.stop() == 0


def numbers(client, count, seconds=10):
    """Numbers of the whole messages that come, at most so many."""
    came = []
    while len(came) < count and (frame := client.kept.pop(0) if client.kept else client.read(seconds)) is not None:
        if frame.command == "MESSAGE":
            came.append(sent_as(frame.body)[1])
    return came


def test_what_cannot_be_read_once_comes_later(tmp_path, disk):
    """A read fails once, at delivery. Its message waits until somebody has read the whole file; nobody gets anything else for it."""
    # Only deliveries read, and then who looks for damage because one of them failed.
    made = broker(tmp_path / "store", disk, "--scrub-bandwidth", 0)
    filled(made, 1500)
    made.start()
    rule = disk.fails("read", "*/db-1.log")
    with wire.Client(made.address) as client:
        client.subscribe("/queue/old", ack="client-individual", activemq__prefetchSize=5000)
        came = numbers(client, 1500, 30)
    assert rule.strikes == 1, "nothing was read from the file"
    assert sorted(came) == list(range(1, 1501))
    said = made.errors()
    assert "a stored message is unreadable and is not delivered" in said and IO in said
    assert "a data file can be read again" in said and "is damaged" not in said
    assert made.stop() == 0
    with made, wire.Client(made.address) as client:
        client.subscribe("/queue/old", ack="client-individual", activemq__prefetchSize=5000)
        assert numbers(client, 1500) == list(range(1, 1501))


def test_a_flipped_bit_is_found_and_never_delivered(tmp_path, disk):
    made = broker(tmp_path / "store", disk)
    filled(made, 1500)
    file = tmp_path / "store" / "db-1.log"
    data = file.read_bytes()
    at = data.index(b"0 300 ") + 200
    file.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
    code, report = verify(tmp_path / "store")
    assert code == 1 and "db-1.log" in str(report), report
    with made, wire.Client(made.address) as client:
        client.subscribe("/queue/old", ack="client-individual", activemq__prefetchSize=5000)
        came = numbers(client, 1500, 2)
        # Its batch is not to be trusted; all others are whole.
        assert came == sorted(set(came)) and 300 not in came and {200, 400, 1500} <= set(came)
        assert made.running()
        assert r"db-1.log" in made.errors()
        assert made.stop() == 0
    file.write_bytes(data)
    sound(tmp_path / "store")
    with made, wire.Client(made.address) as client:
        client.subscribe("/queue/old", ack="client-individual", activemq__prefetchSize=5000)
        assert numbers(client, 1500) == list(range(1, 1501)), "with the good file back, everything is there"


def test_a_slow_disk_is_only_slow(tmp_path, disk):
    """Every flush takes 100 ms, one takes four seconds: nobody is confirmed early, and nothing ends."""
    made = broker(tmp_path / "store", disk)
    with made, wire.Client(made.address) as client:
        client.send("/queue/q", b"fast")
        rule = disk.rule("fdatasync", "*/db-*.log", hang=True)
        client.frame("SEND", {"destination": "/queue/q", "persistent": "true", "receipt": "slow"}, b"slow")
        rule.wait()
        assert client.read(2) is None, "confirmed before it was flushed"
        rule.release()
        client.expect("RECEIPT", receipt_id="slow")
        assert made.stop() == 0
