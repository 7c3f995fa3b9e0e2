#!/usr/bin/env python3
"""The benchmark behind run.sh: the same load on two brokers, three ways of running them, medians of several rounds."""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "interop"))

from harness import paths, process, wire  # noqa: E402

ACTIVEMQ = paths.INTEROP / "tools" / "activemq.sh"
TICKS = os.sysconf("SC_CLK_TCK")
WARM_UP_SECONDS = 3
STRACE_SECONDS = 2
DRAIN = 200_000
RATE = 4000
KAHAWAI, SHIPPED, TUNED = "kahawai", "ActiveMQ as shipped", "ActiveMQ, concurrentStore…=false"

#: Name, producers, window, bytes, targets: rate against shipped, against tuned, processor seconds per 100 000, flushes a message.
FLOODS = {
    "1x1": (1, 1, 1024, 1.5, 1.5, None, None),
    "16x1": (16, 1, 1024, 8, 2.2, None, None),
    "64x1": (64, 1, 1024, 15, 4.5, 1.8, 0.1),
    "1x256": (1, 256, 1024, 50, None, None, None),
    "4x256": (4, 256, 1024, 55, 30, 0.3, None),
    "4x256@100B": (4, 256, 100, 80, None, None, None),
    "4x64@64KiB": (4, 64, 65536, 2, None, None, None),
}
OTHERS = ["drain", "latency", "start"]


class Kahawai:
    """Our broker on a directory of its own."""

    def __init__(self, directory):
        self.broker = process.kahawai(directory / "store")

    def start(self):
        self.broker.start()
        self.url, self.address, self.pid = self.broker.url, self.broker.address, self.broker.pid

    def stop(self):
        self.broker.stop()
        self.broker.close()

    def kill(self):
        self.broker.kill()
        self.broker.close()


class ActiveMq:
    """Theirs."""

    def __init__(self, directory, tuned):
        self.directory = directory
        self.extra = 'concurrentStoreAndDispatchQueues="false"' if tuned else ""

    def start(self):
        base = free_ports()
        environment = {**os.environ, "AMQ_EXTRA_KAHADB": self.extra}
        done = subprocess.run(
            [ACTIVEMQ, "start", self.directory, str(base)],
            env=environment, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = int(done.stdout)
        self.address = ("127.0.0.1", base + 1)
        self.url = f"stomp://127.0.0.1:{base + 1}"

    def stop(self):
        subprocess.run([ACTIVEMQ, "stop", str(self.pid)], check=True)

    def kill(self):
        subprocess.run([ACTIVEMQ, "stop", str(self.pid), "KILL"], check=True)


def make(kind, directory):
    return Kahawai(directory) if kind == KAHAWAI else ActiveMq(directory, kind == TUNED)


def free_ports():
    """The first of two ports in a row that nobody has now."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            try:
                two.bind(("127.0.0.1", one.getsockname()[1] + 1))
            except OSError:
                continue
            return one.getsockname()[1]


def cpu_seconds(pid):
    """User and system time of all threads, proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mib(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def perf(broker, *arguments, queue="bench"):
    command = [paths.kahawai(), "--log", "error", "perf", "--url", broker.url, "--queue", queue, "--json", *map(str, arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout)


def measured(broker, *arguments, **named):
    """A run, and the broker's processor seconds per 100 000 messages."""
    before = cpu_seconds(broker.pid)
    result = perf(broker, *arguments, **named)
    result["cpu"] = (cpu_seconds(broker.pid) - before) * 100_000 / max(result["messages"], 1)
    return result


def flood(broker, case, options, first):
    producers, window, size = FLOODS[case][:3]
    load = ["--producers", producers, "--window", window, "--size", size, "--persistent"]
    perf(broker, *load, "--seconds", WARM_UP_SECONDS, queue="warm")
    seconds = min(options.seconds, 3) if size > 10_000 else options.seconds
    result = measured(broker, *load, "--seconds", seconds)
    return {
        "rate": result["rate"],
        "cpu": result["cpu"],
        "p99": result["latency_us"]["p99"],
        "flushes": flushes(broker, load) if first else None,
    }


def flushes(broker, load):
    """Flushes a message, counted by strace in a run of its own: it slows everything down."""
    with tempfile.NamedTemporaryFile() as out:
        command = ["strace", "-f", "-c", "-e", "trace=fdatasync,fsync,sync_file_range", "-o", out.name, "-p", str(broker.pid)]
        strace = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        line = strace.stderr.readline()
        if "attached" not in line:
            strace.kill()
            print(f"strace cannot attach: {line.strip()}", file=sys.stderr)
            return None
        result = perf(broker, *load, "--seconds", STRACE_SECONDS, queue="strace")
        strace.send_signal(signal.SIGINT)
        strace.communicate()
        calls = re.findall(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(?:fdatasync|fsync)$", Path(out.name).read_text(), re.M)
    return sum(map(int, calls)) / max(result["messages"], 1)


def drain(broker):
    perf(broker, "--producers", 4, "--window", 256, "--count", 20_000, "--persistent", queue="warm")
    perf(broker, "--drain", "--count", 20_000, "--ack", "client-individual", queue="warm")
    perf(broker, "--producers", 4, "--window", 256, "--count", DRAIN, "--persistent")
    result = measured(broker, "--drain", "--count", DRAIN, "--ack", "client-individual")
    if result["messages"] < DRAIN:
        raise RuntimeError(f"only {result['messages']} of {DRAIN} came")
    return {"rate": result["rate"], "cpu": result["cpu"]}


def latency(broker, options):
    perf(broker, "--rate", RATE, "--seconds", WARM_UP_SECONDS, "--persistent", queue="warm")
    result = measured(broker, "--rate", RATE, "--seconds", options.seconds, "--persistent")
    return {"p50": result["latency_us"]["p50"], "p99": result["latency_us"]["p99"], "cpu": result["cpu"], "rate": result["rate"]}


def until_connected(command, address):
    """Seconds from the start of a process to CONNECTED, and the process."""
    began = time.monotonic()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try:
            client = wire.Client(address, timeout=60)
        except OSError:
            if child.poll() is not None:
                raise RuntimeError(f"{command} ended with {child.returncode}") from None
            time.sleep(0.001)
            continue
        client.close()
        return time.monotonic() - began, child


def run_command(store, address):
    return [str(paths.kahawai()), "run", "--data", str(store), "--stomp", f"{address[0]}:{address[1]}"]


def end(child, sign):
    child.send_signal(sign)
    child.wait()


def start(directory):
    """Ours alone: ActiveMQ needs seconds, and nobody doubts it."""
    address = ("127.0.0.1", free_ports())
    seconds, child = until_connected(run_command(directory / "store", address), address)
    idle = resident_mib(child.pid)
    end(child, signal.SIGTERM)
    return {"seconds": seconds, "idle_mib": idle}


def backlog(directory, count):
    """Memory and starts with a deep queue."""
    broker = Kahawai(directory)
    broker.start()
    perf(broker, "--producers", 4, "--window", 256, "--count", count, "--persistent")
    found = {"full_mib": resident_mib(broker.pid)}
    broker.stop()
    address = ("127.0.0.1", free_ports())
    command = run_command(directory / "store", address)
    found["after_stop"], child = until_connected(command, address)
    found["started_mib"] = resident_mib(child.pid)
    load = [str(paths.kahawai()), "perf", "--url", f"stomp://{address[0]}:{address[1]}", "--queue", "more", "--count", "100000", "--json"]
    subprocess.run(load, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    end(child, signal.SIGKILL)
    found["after_kill"], child = until_connected(command, address)
    end(child, signal.SIGTERM)
    return found


def median(results, key):
    values = [result[key] for result in results if result.get(key) is not None]
    return statistics.median(values) if values else None


def number(value, digits=None):
    if value is None:
        return "-"
    if digits is None:
        digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def table(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for at, row in enumerate(rows):
        print("  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))))
        if not at:
            print("  ".join("-" * width for width in widths))


def verdict(value, target, at_least=True):
    if target is None or value is None:
        return ""
    reached = value >= target if at_least else value <= target
    return f" ({'>=' if at_least else '<='}{target:g} {'ok' if reached else 'NOT REACHED'})"


def report(results, kinds):
    rows = [["case", *[f"{kind}, /s" for kind in kinds], "x shipped", "x tuned", "cpu s/100k", "theirs", "flushes/msg", "theirs"]]
    for case, (_, _, _, against_shipped, against_tuned, cpu, per_message) in FLOODS.items():
        if case not in results:
            continue
        found = results[case]
        rates = {kind: median(found[kind], "rate") for kind in kinds}
        shipped = rates[KAHAWAI] / rates[SHIPPED]
        tuned = rates[KAHAWAI] / rates[TUNED]
        cpus = {kind: median(found[kind], "cpu") for kind in kinds}
        flush = {kind: median(found[kind], "flushes") for kind in kinds}
        theirs = lambda of: " / ".join(number(of[kind], 2) for kind in (SHIPPED, TUNED))
        rows.append([
            case,
            *[number(rates[kind]) for kind in kinds],
            number(shipped) + verdict(shipped, against_shipped),
            number(tuned) + verdict(tuned, against_tuned),
            number(cpus[KAHAWAI], 2) + verdict(cpus[KAHAWAI], cpu, at_least=False),
            theirs(cpus),
            number(flush[KAHAWAI], 4) + verdict(flush[KAHAWAI], per_message, at_least=False),
            theirs(flush),
        ])  # fmt: skip
    if len(rows) > 1:
        table(rows)
    if "drain" in results:
        found = results["drain"]
        rates = {kind: median(found[kind], "rate") for kind in kinds}
        ratio = rates[KAHAWAI] / max(rates[SHIPPED], rates[TUNED])
        cpu = median(found[KAHAWAI], "cpu")
        print(f"\ndrain of {DRAIN}: " + ", ".join(f"{kind} {number(rates[kind])}/s" for kind in kinds), end="")
        print(f"; x {number(ratio)}{verdict(ratio, 12)}; cpu s/100k {number(cpu)}{verdict(cpu, 0.5, at_least=False)}")
    if "latency" in results:
        found = results["latency"]
        mine, theirs = median(found[KAHAWAI], "p99"), median(found[SHIPPED], "p99")
        print(f"\nend to end at {RATE}/s: " + ", ".join(
            f"{kind} p50 {number(median(found[kind], 'p50') / 1000)} ms, p99 {number(median(found[kind], 'p99') / 1000)} ms" for kind in kinds
        ))  # fmt: skip
        p50 = median(found[KAHAWAI], "p50") / 1000
        print(f"p50{verdict(p50, 0.4, at_least=False)}; p99 {number(mine / theirs)} of theirs{verdict(mine / theirs, 0.333, at_least=False)}")
    if "start" in results:
        found = results["start"][KAHAWAI]
        seconds, idle = median(found, "seconds"), median(found, "idle_mib")
        print(f"\nstart to CONNECTED, empty store: {number(seconds, 3)} s{verdict(seconds, 0.1, at_least=False)}", end="")
        print(f"; resident, idle: {number(idle)} MiB{verdict(idle, 64, at_least=False)}")
    if "backlog" in results:
        found = results["backlog"]
        print(f"\nbacklog of {found['count']:,}: resident {number(found['full_mib'])} MiB{verdict(found['full_mib'], 512, at_least=False)}", end="")
        print(f", after a start {number(found['started_mib'])} MiB; start after a stop {number(found['after_stop'])} s", end="")
        print(f"{verdict(found['after_stop'], 1, at_least=False)}, after kill -9 {number(found['after_kill'])} s{verdict(found['after_kill'], 3, at_least=False)}")


def machine():
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} x {model[1] if model else '?'}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", help="cases, with commas: " + ", ".join([*FLOODS, *OTHERS]))
    parser.add_argument("--backlog", type=int, help="also fill a queue with so many messages")
    parser.add_argument("--json", type=Path, help="all measurements, as JSON")
    options = parser.parse_args()
    cases = options.only.split(",") if options.only else [*FLOODS, *OTHERS]
    if unknown := set(cases) - {*FLOODS, *OTHERS}:
        parser.error(f"no such cases: {', '.join(sorted(unknown))}")
    root = Path(os.environ.get("BENCH_DIR") or paths.TARGET / "bench")
    root.mkdir(parents=True, exist_ok=True)
    kinds = [KAHAWAI, SHIPPED, TUNED]
    results = {}
    for round_number in range(options.rounds):
        for case in cases:
            for kind in kinds if case != "start" else [KAHAWAI]:
                directory = Path(tempfile.mkdtemp(dir=root))
                try:
                    found = one(case, kind, directory, options, round_number == 0)
                finally:
                    shutil.rmtree(directory, ignore_errors=True)
                results.setdefault(case, {}).setdefault(kind, []).append(found)
                shown = ", ".join(f"{key} {number(value)}" for key, value in found.items() if value is not None)
                print(f"round {round_number + 1}, {case}, {kind}: {shown}", file=sys.stderr, flush=True)
    if options.backlog:
        directory = Path(tempfile.mkdtemp(dir=root))
        try:
            results["backlog"] = {"count": options.backlog, **backlog(directory, options.backlog)}
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    print(f"\n{machine()}; medians of {options.rounds} rounds, interleaved; persistent, every receipt after its flush\n")
    report(results, kinds)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


def one(case, kind, directory, options, first):
    if case == "start":
        return start(directory)
    broker = make(kind, directory)
    broker.start()
    try:
        match case:
            case "drain":
                return drain(broker)
            case "latency":
                return latency(broker, options)
            case _:
                return flood(broker, case, options, first)
    finally:
        broker.kill()


if __name__ == "__main__":
    main()
