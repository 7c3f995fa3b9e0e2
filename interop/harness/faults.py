"""A disk that fails on demand, under one process: rules for `tools/faults.c`, which is loaded into it with LD_PRELOAD."""

import contextlib
import ctypes
import errno
import functools
import hashlib
import mmap
import os
import subprocess
import time
from pathlib import Path

from harness import paths
from harness.bodies import Violation

SOURCE = paths.INTEROP / "tools" / "faults.c"
CALLS = ("read", "write", "fdatasync", "fsync", "truncate", "rename", "unlink", "open", "create", "mkdir", "allocate")
FLUSHES = ("fdatasync", "fsync")
#: What asks for room.
GROWTH = ("write", "truncate", "create", "mkdir", "rename", "allocate")
FLAGS = ("drop", "silent", "half")
FOR_EVER = (1 << 64) - 1
MAGIC = 0x6B66616C
RULES = 8
PATH_BYTES = 256
POLL_SECONDS = 0.005


@functools.cache
def library():
    """The library, compiled from the present source."""
    name = f"faults-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    target = paths.WORK / name
    if not target.exists():
        paths.WORK.mkdir(parents=True, exist_ok=True)
        made = target.with_suffix(f".{os.getpid()}")
        flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra"]
        subprocess.run(["cc", *flags, "-o", made, SOURCE, "-ldl", "-lpthread"], check=True, stdin=subprocess.DEVNULL)
        made.rename(target)
    return target


class _Rule(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("on", "calls", "skip", "times", "error", "delay_ms", "hang", "flags")),
        *((name, ctypes.c_uint64) for name in ("matched", "strikes", "struck_ns", "hanging")),
        ("pattern", ctypes.c_char * PATH_BYTES),
        ("struck", ctypes.c_char * PATH_BYTES),
    ]


class _Control(ctypes.Structure):
    _fields_ = [
        ("magic", ctypes.c_uint64),
        ("counting", ctypes.c_uint64),
        ("counted", ctypes.c_uint64 * 16),
        ("scope", ctypes.c_char * PATH_BYTES),
        ("rules", _Rule * RULES),
    ]


class Rule:
    """One kind of fault, on since it was made."""

    def __init__(self, cell):
        self.cell = cell

    @property
    def matched(self):
        """Calls that fit, struck or not."""
        return self.cell.matched

    @property
    def strikes(self):
        return self.cell.strikes

    @property
    def struck(self):
        """The path of the first one."""
        return self.cell.struck.decode()

    @property
    def struck_at(self):
        """When the first one was, on the clock of `time.monotonic`."""
        return self.cell.struck_ns / 1e9

    @property
    def hanging(self):
        """Calls that wait to be released."""
        return self.cell.hanging

    def wait(self, strikes=1, timeout=30):
        """Waits until it has struck; a fault that never struck proves nothing."""
        until = time.monotonic() + timeout
        while self.strikes < strikes or not self.cell.struck_ns:
            if time.monotonic() > until:
                raise Violation(f"{self.strikes} strikes in {timeout} s, {strikes} expected; {self.matched} calls fitted")
            time.sleep(POLL_SECONDS)
        return self.struck_at

    def release(self):
        """What hangs goes on, and nothing hangs any more."""
        self.cell.hang = 0

    def off(self):
        """No further strike; what hangs goes on."""
        self.cell.hang = 0
        self.cell.on = 0


class Disk:
    """The disk under one process, over all its starts. Without a rule it is a good one."""

    def __init__(self, control):
        self.path = Path(control)
        with open(self.path, "w+b") as file:
            file.truncate(ctypes.sizeof(_Control))
            self.map = mmap.mmap(file.fileno(), ctypes.sizeof(_Control))
        self.control = _Control.from_buffer(self.map)
        self.control.magic = MAGIC
        self.rules = []

    @property
    def environment(self):
        """With this a process has this disk."""
        return {"LD_PRELOAD": str(library()), "KAHAWAI_FAULTS": str(self.path)}

    def rule(self, calls, pattern, *flags, error=0, skip=0, times=1, delay_ms=0, hang=False):
        """From now on `times` of these calls on paths like `pattern` fail with `error`, after the first `skip`.

        Flags: `drop`, a flush that fails loses what was not flushed; `silent`, a call is not carried out and says it was; `half`,
        a write that fails has written its first half. With `hang` the call waits until it is released.
        """
        if len(self.rules) == RULES:
            raise RuntimeError("no more rules")
        cell = self.control.rules[len(self.rules)]
        calls = (calls,) if isinstance(calls, str) else calls
        cell.calls = sum(1 << CALLS.index(call) for call in calls)
        cell.skip, cell.times, cell.error, cell.delay_ms, cell.hang = skip, times, error, delay_ms, int(hang)
        cell.flags = sum(1 << FLAGS.index(flag) for flag in flags)
        cell.pattern = str(pattern).encode()
        rule = Rule(cell)
        self.rules.append(rule)
        # Last: from here on it strikes.
        cell.on = 1
        return rule

    def fails(self, calls, pattern, *flags, error=errno.EIO, **when):
        """These calls fail, once unless told otherwise."""
        return self.rule(calls, pattern, *flags, error=error, **when)

    def hangs(self, calls, pattern, times=FOR_EVER):
        """These calls stand still until they are released."""
        return self.rule(calls, pattern, times=times, hang=True)

    def full(self, pattern):
        """No room for anything that needs more of it, for ever."""
        return self.rule(GROWTH, pattern, error=errno.ENOSPC, times=FOR_EVER)

    @contextlib.contextmanager
    def counting(self, scope):
        """Calls on paths like this are counted meanwhile; what comes out is filled in at the end."""
        self.control.scope = str(scope).encode()
        before = list(self.control.counted)
        self.control.counting = 1
        counts = {}
        try:
            yield counts
        finally:
            self.control.counting = 0
            counts.update({call: self.control.counted[at] - before[at] for at, call in enumerate(CALLS)})

    def heal(self):
        """A good disk again, without rules."""
        for rule in self.rules:
            rule.off()
        # A thread that was hanging may still look at its rule: cells are wiped when they are used again, not now.
        for cell in self.control.rules[: len(self.rules)]:
            until = time.monotonic() + 10
            while cell.hanging and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
            ctypes.memset(ctypes.byref(cell), 0, ctypes.sizeof(cell))
        self.rules = []
