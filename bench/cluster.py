#!/usr/bin/env python3
"""The benchmark behind cluster.sh: the same load on two clusters of three nodes, medians of several rounds."""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))

import bench  # noqa: E402
from harness import cluster, paths  # noqa: E402

RABBITMQ = paths.INTEROP / "tools" / "rabbitmq.sh"
NODES = 3
KAHAWAI, QUORUM = "kahawai", "RabbitMQ quorum queue"
#: The load tool names the host it connects to as virtual host, as STOMP has it.
VIRTUAL_HOST = "127.0.0.1"
GUEST = ["--login", "guest", "--passcode", "guest"]
#: Name, producers, window.
CASES = {"1x1": (1, 1), "64x1": (64, 1), "4x256": (4, 256)}
SIZE = 1024


class Kahawai:
    """Three nodes, all of them in sync: a receipt waits for three flushes."""

    def __init__(self, directory):
        self.cluster = cluster.Cluster(directory, NODES, minimum_replicas=1, session_ms=10_000, journal_file_bytes=32 << 20)
        self.login = []

    def start(self):
        self.cluster.start()
        self.primary = self.cluster.primary()
        self.url = self.primary.url
        self.pids = [node.pid for node in self.cluster]

    def sane(self):
        """A run in which a replica was left behind would not be a comparison."""
        in_sync = cluster.in_sync(self.primary.status())
        if len(in_sync) != NODES:
            raise RuntimeError(f"only {in_sync} are in sync after the run")

    def close(self):
        self.cluster.close()


class RabbitMq:
    """Three nodes; each queue has three members, a receipt waits for two of their flushes, the publisher's confirm."""

    def __init__(self, directory):
        self.directories = [directory / f"r{number + 1}" for number in range(NODES)]
        self.environment = {**os.environ, "EPMD_PORT": str(cluster.free_port())}
        self.pids = []
        self.login = GUEST

    def tool(self, *arguments):
        command = [RABBITMQ, *map(str, arguments)]
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{command}\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self):
        ports = []
        for number, directory in enumerate(self.directories):
            ports.append(three_ports())
            self.pids.append(int(self.tool("start", directory, ports[-1], number + 1)))
        self.tool("cluster", *self.directories)
        self.tool("quorum", self.directories[0], VIRTUAL_HOST)
        self.url = f"stomp://127.0.0.1:{ports[0] + 1}"

    def sane(self):
        """A queue that is no quorum queue, or has too few members, would not be a comparison."""
        listed = self.tool("ctl", self.directories[0], "list_queues", "-p", VIRTUAL_HOST, "type", "members", "--no-table-headers")
        for line in filter(None, listed.splitlines()):
            if not line.startswith("quorum") or line.count("@") != NODES:
                raise RuntimeError(f"not a quorum queue of {NODES}: {line}")

    def close(self):
        for pid in self.pids:
            self.tool("stop", pid, "KILL")
        with contextlib.suppress(RuntimeError):
            self.tool("epmd-stop")


KINDS = {KAHAWAI: Kahawai, QUORUM: RabbitMq}


def three_ports():
    """The first of three ports in a row that nobody has now."""
    for first in (cluster.free_port() for _ in range(1000)):
        if all(is_free(first + more) for more in (1, 2)):
            return first
    raise RuntimeError("no three ports in a row are free")


def is_free(port):
    with socket.socket() as probe:
        try:
            probe.bind((cluster.LOOPBACK, port))
        except OSError:
            return False
    return True


def measured(running, case, seconds):
    """Rate and latency of a run, and the processor seconds of all nodes per 100 000 messages."""
    producers, window = CASES[case]
    load = [*running.login, "--producers", producers, "--window", window, "--size", SIZE, "--persistent"]
    for queue in ("warm", "bench"):
        # By one connection: RabbitMQ ends some of those that declare the same quorum queue at the same moment.
        bench.perf(running, *running.login, "--count", 1, queue=queue)
    bench.perf(running, *load, "--seconds", bench.WARM_UP_SECONDS, queue="warm")
    before = sum(map(bench.cpu_seconds, running.pids))
    result = bench.perf(running, *load, "--seconds", seconds)
    spent = sum(map(bench.cpu_seconds, running.pids)) - before
    running.sane()
    return {
        "rate": result["rate"],
        "cpu": spent * 100_000 / max(result["messages"], 1),
        "p50": result["latency_us"]["p50"],
        "p99": result["latency_us"]["p99"],
    }


def report(results, kinds):
    pairs = [head for name in ("cpu s/100k, 3 nodes", "p50 ms", "p99 ms") for head in (name, "theirs")]
    rows = [["case", *[f"{kind}, /s" for kind in kinds], "x theirs", *pairs]]
    for case, found in results.items():
        of = lambda kind, key, found=found: bench.median(found[kind], key)
        ratio = of(KAHAWAI, "rate") / of(QUORUM, "rate") if QUORUM in found and KAHAWAI in found else None
        cells = [case, *[bench.number(of(kind, "rate")) for kind in kinds], bench.number(ratio)]
        cells += [bench.number(of(kind, "cpu"), 2) for kind in kinds]
        for key in ("p50", "p99"):
            cells += [bench.number(of(kind, key) / 1000, 2) for kind in kinds]
        rows.append(cells)
    bench.table(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", help="cases, with commas: " + ", ".join(CASES))
    parser.add_argument("--json", type=Path, help="all measurements, as JSON")
    options = parser.parse_args()
    cases = options.only.split(",") if options.only else [*CASES]
    if unknown := set(cases) - {*CASES}:
        parser.error(f"no such cases: {', '.join(sorted(unknown))}")
    root = Path(os.environ.get("BENCH_DIR") or paths.TARGET / "bench")
    root.mkdir(parents=True, exist_ok=True)
    results = {}
    for round_number in range(options.rounds):
        for case in cases:
            for kind, make in KINDS.items():
                directory = Path(tempfile.mkdtemp(dir=root))
                running = make(directory)
                try:
                    running.start()
                    found = measured(running, case, options.seconds)
                finally:
                    running.close()
                    shutil.rmtree(directory, ignore_errors=True)
                results.setdefault(case, {}).setdefault(kind, []).append(found)
                shown = ", ".join(f"{key} {bench.number(value)}" for key, value in found.items())
                print(f"round {round_number + 1}, {case}, {kind}: {shown}", file=sys.stderr, flush=True)
    print(f"\n{bench.machine()}; {NODES} nodes on it; medians of {options.rounds} rounds, interleaved; {SIZE} bytes, persistent, over STOMP")
    print("a receipt is there once all in-sync nodes (kahawai), or two of three (quorum queue), have flushed\n")
    report(results, [*KINDS])
    if options.json:
        options.json.write_text(json.dumps({"machine": bench.machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
