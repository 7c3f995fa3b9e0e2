"""One broker on a disk that fails on demand, and what every fault of a single node has in common."""

import json
import re
import subprocess

from harness import failover, process
from harness.bodies import Violation
from harness.cluster import free_port

#: Small, so that a test comes to its end.
FILE_BYTES = 512 << 10
#: A process whose storage failed ends within that time.
END_SECONDS = 15


def broker(directory, disk, *options, file_bytes=FILE_BYTES):
    """At an address that it keeps over its starts."""
    made = process.kahawai(
        directory, "--journal-file-bytes", file_bytes, *options, stomp=f"127.0.0.1:{free_port()}", env=disk.environment
    )
    made.directory = directory
    return made


def ends(made, *words):
    """Waits until it has ended by itself, with a failure that has these words in its last line; returns that line."""
    try:
        code = made.child.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        raise Violation(f"it goes on although its storage failed\n{made.errors()}") from None
    lines = made.errors().strip().splitlines() or [""]
    if code != 1 or not all(re.search(word, lines[-1]) for word in words):
        raise Violation(f"ended with {code}, expected 1 and {words} in its last line:\n" + "\n".join(lines[-5:]))
    return lines[-1]


def under_load(made, seed, strike, *, consumers=True):
    """A load that runs until the fault has struck; `strike` makes the rule. Returns load and rule."""
    made.start()
    load = failover.Load([made.address], seed=seed, consumers=consumers, storage_may_fail=True)
    load.start()
    load.flow(150)
    rule = strike()
    rule.wait()
    return load, rule


def goes_on(made, disk, load):
    """On a good disk it starts, confirms, and has everything that was confirmed before; then its journal is sound."""
    disk.heal()
    made.start()
    load.flow(50)
    load.stop()
    load.check(made)
    if (code := made.stop()) != 0:
        raise Violation(f"ended with {code} after SIGTERM\n{made.errors()}")
    sound(made.directory)


def verify(directory):
    """What `store verify` finds: exit code and report."""
    done = process.run("store", "verify", directory, "--json")
    return done.returncode, json.loads(done.stdout)


def sound(directory):
    code, report = verify(directory)
    if code != 0:
        raise Violation(f"{directory} is not sound: {report}")
