"""Brokers as child processes: started, stopped and killed by their own ids, never by name."""

import os
import queue
import re
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from harness import java, paths

READY_SECONDS = 60
STOP_SECONDS = 60


#: Every child that was started. A test that fails may leave some behind.
CHILDREN = []


class StartFailed(Exception):
    """The process ended, or stayed silent, before it was ready."""

    def __init__(self, message, code, log):
        super().__init__(f"{message}\n{log}")
        self.code = code
        self.log = log


class Process:
    """A broker that prints `listening PROTOCOL HOST:PORT` lines and then `ready`, and stops on SIGTERM."""

    def __init__(self, command, env=None):
        self.command = [str(part) for part in command]
        self.env = env
        self.child = None
        self.ports = {}
        self.log = None
        self.lines = None

    def start(self):
        """Starts it and waits until it is ready; returns the seconds that took."""
        began = time.monotonic()
        self.ports = {}
        self.lines = queue.Queue()
        self.log = tempfile.NamedTemporaryFile(prefix="broker-", suffix=".log", delete=False)
        self.child = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, **(self.env or {})},
        )
        CHILDREN.append(self.child)
        threading.Thread(target=self._read, args=(self.child, self.lines), daemon=True).start()
        while True:
            left = READY_SECONDS - (time.monotonic() - began)
            try:
                line = self.lines.get(timeout=max(left, 0.01))
            except queue.Empty:
                self.kill()
                raise StartFailed(f"not ready after {READY_SECONDS} s", None, self.errors()) from None
            if line is None:
                code = self.child.wait()
                raise StartFailed(f"ended with {code} before it was ready", code, self.errors())
            if listening := re.fullmatch(r"listening (\S+) (\S+):(\d+)", line):
                self.ports[listening[1]] = (listening[2], int(listening[3]))
            elif line.lower() == "ready":
                return time.monotonic() - began

    @staticmethod
    def _read(child, lines):
        for line in child.stdout:
            lines.put(line.decode(errors="replace").strip())
        lines.put(None)

    @property
    def address(self):
        """Host and port of the STOMP connector."""
        return self.ports["stomp"]

    @property
    def url(self):
        host, port = self.address
        return f"stomp://{host}:{port}"

    @property
    def pid(self):
        return self.child.pid

    def running(self):
        return self.child is not None and self.child.poll() is None

    def stop(self):
        """SIGTERM; returns the exit code."""
        self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end {STOP_SECONDS} s after SIGTERM\n{self.errors()}") from None

    def kill(self):
        """SIGKILL."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()

    def errors(self):
        """What it wrote to standard error, the end of it."""
        if self.log is None:
            return ""
        return Path(self.log.name).read_text(errors="replace")[-8000:]

    def close(self):
        """Whatever state it is in, it is gone afterwards."""
        if self.running():
            self.kill()
        if self.log is not None:
            self.log.close()
            Path(self.log.name).unlink(missing_ok=True)
            self.log = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.close()


def kahawai(directory, *options, stomp="127.0.0.1:0", env=None):
    """`kahawai run` on a directory, STOMP on a port of its choice."""
    command = [paths.kahawai(), "run", "--data", directory, "--stomp", stomp, "--admin", "off", *options]
    return Process(command, env)


def activemq(directory, **options):
    """ActiveMQ on a directory; options as in `BrokerMain.java`."""
    settings = {"dir": directory, "port": 0, "stomp": 0, **options}
    return Process(java.command("BrokerMain", *(f"{key}={value}" for key, value in settings.items())))


def broker(directory):
    """What the STOMP suites run against. INTEROP_PEER=activemq checks the suites themselves on the original."""
    peer = os.environ.get("INTEROP_PEER", "kahawai")
    return activemq(directory) if peer == "activemq" else kahawai(directory)


def is_activemq():
    """Is this a run of the suites against the original, to check the suites?"""
    return os.environ.get("INTEROP_PEER") == "activemq"


def ours(reason):
    """Marks a test that ActiveMQ fails, and says why."""
    return pytest.mark.skipif(is_activemq(), reason=reason)


def run(*arguments, timeout=120, env=None):
    """`kahawai ARGUMENTS` to its end."""
    return subprocess.run(
        [str(paths.kahawai()), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout,
        text=True,
        env={**os.environ, **(env or {})},
        check=False,
    )
