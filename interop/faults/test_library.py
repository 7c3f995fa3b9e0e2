"""The library under the other tests: no access to a file passes it by, and it does what the rules say."""

import collections
import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from harness import process, wire

#: System calls by the library's word for them.
WORDS = {
    "read": "read", "pread64": "read", "readv": "read", "preadv": "read",
    "write": "write", "pwrite64": "write", "writev": "write", "pwritev": "write",
    "fdatasync": "fdatasync", "fsync": "fsync", "ftruncate": "truncate", "fallocate": "allocate",
    "rename": "rename", "renameat": "rename", "renameat2": "rename", "unlink": "unlink", "unlinkat": "unlink",
    "open": "open", "openat": "open", "mkdir": "mkdir",
}  # fmt: skip
#: Ways to a file that the library does not know: nobody may take them. Not here: `preadv2`, with which the broker asks whether a page
#: is in the cache; it uses nothing of what that reads.
OTHERS = (
    "truncate", "creat", "openat2", "mkdirat", "link", "linkat", "symlink", "pwritev2", "copy_file_range", "sendfile",
    "splice", "sync_file_range", "msync", "sync", "syncfs", "io_uring_setup",
)  # fmt: skip


def traces():
    """Is strace here, and may it trace?"""
    return shutil.which("strace") and subprocess.run(["strace", "-o", os.devnull, "true"], check=False).returncode == 0


@contextlib.contextmanager
def traced(directory, disk, trace, seen):
    """A broker under strace until it is stopped; its system calls on the directory are added to `seen`."""
    broker = process.kahawai(directory, "--journal-file-bytes", 256 << 10)
    environment = [word for name, value in disk.environment.items() for word in ("-E", f"{name}={value}")]
    calls = ",".join(f"?{name}" for name in (*WORDS, *OTHERS))
    # -D: the child is the broker, its tracer is somebody else's.
    broker.command = ["strace", "-D", "-f", "-y", "-s", "400", "-e", f"trace={calls}", "-o", str(trace), *environment, *broker.command]
    with broker:
        yield broker.address
        assert broker.stop() == 0
    end = f"{broker.pid} +++ exited with 0 +++"
    until = time.monotonic() + 10
    while end not in (lines := re.sub(" +", " ", trace.read_text(errors="replace")).splitlines()):
        assert time.monotonic() < until, f"the trace has no {end!r}"
        time.sleep(0.02)
    for line in lines:
        # A call during which another thread's came has two lines; the first one counts. What it returned is not what it was given.
        call = re.match(r"\d+ (\w+)\((.*?)(\) = .*)?$", line)
        # Directories are only listed.
        if call and str(directory) in call[2] and "O_DIRECTORY" not in line:
            assert call[1] not in OTHERS, line
            seen[WORDS[call[1]]] += 1


@pytest.mark.skipif(not traces(), reason="strace is not here, or may not trace")
def test_every_access_to_the_data_directory_goes_through_the_library(tmp_path, disk):
    directory, seen = tmp_path / "store", collections.Counter()
    with disk.counting(f"{directory}*") as counted:
        with traced(directory, disk, tmp_path / "first", seen) as address, wire.Client(address) as client:
            for number in range(60):
                client.send("/queue/traced", f"{number}".encode() * 5000)
        # Old messages are read from the files.
        with traced(directory, disk, tmp_path / "second", seen) as address, wire.Client(address) as client:
            client.subscribe("/queue/traced", ack="client-individual")
            for message in client.messages(60):
                client.ack(message)
    counted["open"] += counted.pop("create")
    assert {word: count for word, count in counted.items() if count} == seen
    assert min(seen[word] for word in ("read", "write", "fdatasync", "fsync", "rename", "open")) > 0


PROBE = """
import os, sys
path = sys.argv[1]
file = os.open(path, os.O_RDWR | os.O_CREAT)
def say(work):
    try:
        print(work())
    except OSError as error:
        print(error.errno)
say(lambda: os.pwrite(file, b"one", 0))
say(lambda: os.fdatasync(file))
say(lambda: os.pwrite(file, b"two!", 0))
say(lambda: os.fdatasync(file))
say(lambda: os.fdatasync(file))
say(lambda: os.pread(file, 10, 0))
"""


def probe(tmp_path, disk):
    path = tmp_path / "probed"
    done = subprocess.run(
        [sys.executable, "-c", PROBE, path], env={**os.environ, **disk.environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.split(), path.read_bytes()


def test_a_rule_strikes_when_it_was_told_to_and_counts(tmp_path, disk):
    second = disk.fails("fdatasync", "*/probed", skip=1)
    elsewhere = disk.fails("fdatasync", "*/other")
    said, left = probe(tmp_path, disk)
    assert said == ["3", "None", "4", str(errno.EIO), "None", "b'two!'"]
    assert left == b"two!"
    assert (second.matched, second.strikes, elsewhere.strikes) == (3, 1, 0)
    assert second.struck == str(tmp_path / "probed")


@pytest.mark.parametrize("how", [["drop"], ["drop", "silent"]])
def test_a_flush_that_drops_loses_what_was_not_flushed_and_no_more(tmp_path, disk, how):
    disk.rule("fdatasync", "*/probed", *how, error=0 if "silent" in how else errno.EIO, skip=1)
    said, left = probe(tmp_path, disk)
    assert said[3] == ("None" if "silent" in how else str(errno.EIO))
    assert left == b"one\0"


def test_a_write_can_fail_half_way_and_a_disk_be_full(tmp_path, disk):
    disk.fails("write", "*/probed", "half", skip=1, error=errno.ENOSPC)
    said, left = probe(tmp_path, disk)
    assert said[2] == str(errno.ENOSPC)
    assert left == b"twe"
