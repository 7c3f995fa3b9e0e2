"""A flipped bit in an older data file: found, and repaired from another node, while everything goes on."""

import re
import time

import pytest
from harness import process
from harness.cluster import temporary

MIB = 1 << 20
COUNT = 48_000
BODY_BYTES = 1 << 10
#: What is written last is read from memory: 16 MiB.
FILE_BYTES = 2 * MIB


def flip(node, number):
    """One bit in the middle of a data file, as a disk would."""
    path = node.directory / f"db-{number}.log"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x10]))


def perf(node, *arguments):
    done = process.run("--log", "error", "perf", "--url", node.url, "--queue", "repair", *arguments, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def drained(node):
    """How many messages are to be had now."""
    drain = ["--queue", "repair", "--drain", "--count", COUNT]
    done = process.run("--log", "error", "perf", "--url", node.url, *drain, timeout=300)
    return int(re.search(r"(\d+) messages received", done.stdout)[1])


def until(node, count):
    """Consumes so many, which come as they may be had."""
    deadline = time.monotonic() + 30
    while count > 0:
        assert time.monotonic() < deadline, f"{count} messages are not to be had again"
        count -= drained(node)


def repaired(node):
    journal = node.status()["journal"]
    return journal["repaired"] if not journal["damaged"] else -1


@pytest.fixture
def filled():
    options = ["--scrub-bandwidth", 1 << 30]
    with temporary("repair", minimum_replicas=1, journal_file_bytes=FILE_BYTES, options=options) as cluster:
        cluster.start()
        perf(cluster.primary(), "--producers", 2, "--window", 64, "--size", BODY_BYTES, "--count", COUNT)
        yield cluster


def test_a_replica_finds_damage_and_is_repaired(filled):
    """It is looked for in all older files when the node starts, and once a day then."""
    replica = filled.replicas()[0]
    replica.kill()
    numbers = [3, 7]
    for number in numbers:
        flip(replica, number)
    replica.start(wait=False)
    filled.wait_for(lambda found: replica.name in found and repaired(replica) == len(numbers), 60, "the damage is repaired")
    said = replica.log_text()
    assert said.count("a data file is damaged") == len(numbers) and said.count("was repaired") == len(numbers), said
    assert not list((replica.directory / "replication" / "repair").iterdir())
    filled.wait_in_sync()
    perf(filled.primary(), "--drain", "--count", COUNT)
    filled.stop_alike()


def test_a_primary_is_repaired_and_delivers_what_it_could_not_read(filled):
    primary = filled.primary()
    for number in (2, 5):
        flip(primary, number)
    # Those of the damaged batches wait until their files are sound again.
    came = drained(primary)
    assert COUNT - 2000 < came <= COUNT, came
    filled.wait_for(lambda _: repaired(primary) == 2, 60, "the damage is repaired")
    until(primary, COUNT - came)
    assert drained(primary) == 0 and filled.primary() is primary
    _, metrics = primary.get("/metrics")
    assert b"kahawai_journal_repaired_files_total 2" in metrics and b"kahawai_journal_damaged_files 0" in metrics
    filled.stop_alike()


def test_damage_that_nobody_can_repair_is_told(filled):
    """Both other nodes have the same file damaged: nobody believes anybody."""
    primary, replicas = filled.primary(), filled.replicas()
    for node in (primary, *replicas):
        flip(node, 4)
    browsed = process.run("browse", "--url", primary.url, "--queue", "repair", timeout=120)
    assert browsed.returncode == 0, browsed.stderr
    filled.wait_for(lambda found: primary.status()["journal"]["damaged"], 60, "the damage is known")
    told = process.run("status", "--admin", primary.admin_url)
    assert "data file 4" in told.stdout and "is damaged" in told.stdout, told.stdout
    assert repaired(primary) == -1
    # Everything else goes on.
    perf(primary, "--producers", 1, "--size", BODY_BYTES, "--count", 100)
