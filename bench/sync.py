#!/usr/bin/env python3
"""How long an empty replica takes for a quiet store, beside `cp` and `sync` of the same files on the same disk.

Two nodes are filled; then, in turns, a third one begins empty, until it streams, and the primary's data files are copied and
flushed. The first of both finds them on the disk, for they were written past the page cache. `bench/sync.py [--gib 4] [--rounds 3]`, with a release
build in the target directory or KAHAWAI_BIN, and BENCH_DIR on the disk that is meant.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))

import bench  # noqa: E402
from harness import cluster, paths, process  # noqa: E402

BODY_BYTES = 16 << 10
PATIENCE_SECONDS = 1800


def fill(primary, size):
    load = ["--producers", 4, "--window", 64, "--size", BODY_BYTES, "--count", size // BODY_BYTES]
    done = process.run("--log", "error", "perf", "--url", primary.url, "--queue", "bulk", *load, timeout=PATIENCE_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(f"{done.stdout}\n{done.stderr}")


def streams(found, primary, name):
    """Whether the primary counts it among those that only follow."""
    replicas = (found.get(primary) or {}).get("replicas", [])
    return any(one["node"] == name and one["connected"] and not one["synchronisation"] and one["lag_bytes"] == 0 for one in replicas)


def synchronised(nodes, name):
    node = nodes.add(name)
    primary = nodes.primary().name
    began = time.monotonic()
    node.start(wait=False)
    nodes.wait_for(lambda found: streams(found, primary, name), PATIENCE_SECONDS, f"{name} streams")
    took = time.monotonic() - began
    size = sum(file.stat().st_size for file in node.directory.glob("db-*.log"))
    node.close()
    shutil.rmtree(node.directory)
    return took, size


def copied(source, target):
    target.mkdir()
    subprocess.run(["sync"], check=True)
    began = time.monotonic()
    subprocess.run(["cp", *source.glob("db-*.log"), target], check=True)
    subprocess.run(["sync", "-f", target], check=True)
    took = time.monotonic() - began
    size = sum(file.stat().st_size for file in target.iterdir())
    shutil.rmtree(target)
    return took, size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    root = Path(os.environ.get("BENCH_DIR") or paths.TARGET / "bench")
    root.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=root))
    rates = {"replica": [], "cp + sync": []}
    nodes = cluster.Cluster(directory, 2, minimum_replicas=1, session_ms=10_000, journal_file_bytes=32 << 20)
    try:
        nodes.start()
        fill(nodes.primary(), int(options.gib * (1 << 30)))
        nodes.wait_in_sync(timeout=PATIENCE_SECONDS)
        for number in range(options.rounds):
            for kind, (took, size) in (
                ("replica", synchronised(nodes, f"n{number + 3}")),
                ("cp + sync", copied(nodes.primary().directory, directory / "copy")),
            ):
                rates[kind].append(size / took)
                print(f"round {number + 1}, {kind}: {size >> 20} MiB in {took:.2f} s", file=sys.stderr, flush=True)
    finally:
        nodes.close()
        shutil.rmtree(directory, ignore_errors=True)
    ours, theirs = (statistics.median(rates[kind]) for kind in rates)
    print(f"{bench.machine()}; medians of {options.rounds} rounds, interleaved")
    print(f"replica {ours / (1 << 20):.0f} MiB/s, cp + sync {theirs / (1 << 20):.0f} MiB/s: {ours / theirs:.0%}")


if __name__ == "__main__":
    main()
