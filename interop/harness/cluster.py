"""A cluster of brokers with its ZooKeeper: started, killed, paused and asked; and what its nodes must have in common."""

import contextlib
import hashlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from harness import paths, process, recovered
from harness.bodies import Violation
from harness.proxy import Proxy

ZOOKEEPER = paths.INTEROP / "tools" / "zookeeper.sh"
#: Short, so that a takeover is too.
SESSION_MS = 4000
#: ZooKeeper ends a session at the next tick; the shortest that it grants lives for two.
TICK_MS = 250
#: What a takeover may take beyond the session: the machine may be busy with other things.
GRACE_SECONDS = 5
#: Journal files of the tests: small, so that there are several.
JOURNAL_FILE_BYTES = 4 << 20
STATUS_SECONDS = 2.0
POLL_SECONDS = 0.05
JOIN_SECONDS = 60
#: Positions that did not move for so long are final, if nobody sends.
QUIET_SECONDS = 2.0
LOOPBACK = "127.0.0.1"
#: Below the range of outgoing connections: a port of ours must be free again when its node comes back.
PORTS = range(18_000, 31_000)
#: Processes that share them.
WORKERS_MAX = 8


#: Ports that were given away. A replica's client port is free until it leads: nobody else may be told to take it.
GIVEN = set()


def free_port():
    """A port that nobody listens on now, that no outgoing connection takes, and that was not given to another one."""
    # Suites that run side by side (pytest-xdist) take from parts of their own.
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in random.SystemRandom().sample(PORTS[worker % WORKERS_MAX :: WORKERS_MAX], 1000):
        if port in GIVEN:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((LOOPBACK, port))
                GIVEN.add(port)
                return port
    raise RuntimeError("no port is free")


def answers(address):
    """Does anybody take connections there?"""
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


class Zookeeper:
    """Debian's ZooKeeper on loopback; its directory and its port outlive a stop."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.port = free_port()
        self.pid = None

    @property
    def address(self):
        return (LOOPBACK, self.port)

    @property
    def data(self):
        """All that it knows."""
        return self.directory / "data"

    def cli(self, *command):
        """An operator's command, as `delete /path`."""
        done = subprocess.run(
            [ZOOKEEPER, "cli", str(self.port), *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise Violation(f"ZooKeeper's client: {command}: {done.stdout}{done.stderr}")
        return done.stdout

    def start(self):
        done = subprocess.run(
            [ZOOKEEPER, "start", self.directory, str(self.port)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True, timeout=90,
            env={**os.environ, "ZK_TICK_MS": str(TICK_MS)},
        )  # fmt: skip
        self.pid = int(done.stdout)
        return self

    def stop(self, sign="TERM"):
        if self.pid is not None:
            subprocess.run([ZOOKEEPER, "stop", str(self.pid), sign], stdin=subprocess.DEVNULL, check=True, timeout=60)
            self.pid = None
            # Nobody may have collected it: threads that still end keep its port open for a moment.
            until = time.monotonic() + 10
            while answers(self.address):
                if time.monotonic() > until:
                    raise Violation(f"somebody still listens at {self.address}")
                time.sleep(POLL_SECONDS)


class Node(process.Process):
    """One broker of a cluster. It need not be primary to be up: it says `replica` or `ready`, and may say so again later."""

    def __init__(self, name, directory, *, host=LOOPBACK, zookeeper, path, minimum_replicas, session_ms, options, prefix=()):
        self.name = name
        self.directory = Path(directory)
        # Elsewhere than on loopback it has its addresses for itself.
        self.stomp, self.kdbr, self.admin = ((host, free_port()) for _ in range(3))
        self.log_path = self.directory.with_suffix(".log")
        self.paused = False
        #: Times and lines of what it printed since it was started.
        self.said = []
        self.changed = threading.Condition()
        at = lambda address: f"{address[0]}:{address[1]}"
        super().__init__([
            *prefix, paths.kahawai(), "run", "--data", self.directory, "--cluster", f"zk://{at(zookeeper)}{path}", "--node-id", name,
            "--stomp", at(self.stomp), "--kdbr", at(self.kdbr), "--admin", at(self.admin),
            "--minimum-replicas", minimum_replicas, "--session-timeout", session_ms, *options,
        ])  # fmt: skip

    def start(self, wait=True):
        """Starts it; waits until it is primary or replica unless told not to. Returns the seconds that took."""
        began = time.monotonic()
        self.said, self.paused = [], False
        assert not self.running(), f"{self.name} is running"
        if self.log is not None:
            self.log.close()
        self.log = open(self.log_path, "ab")  # noqa: SIM115
        self.child = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log, env={**os.environ, **(self.env or {})}
        )
        process.CHILDREN.append(self.child)
        threading.Thread(target=self._follow, args=(self.child, self.said), daemon=True).start()
        if wait:
            self.wait_until_said("ready", "replica")
        return time.monotonic() - began

    def _follow(self, child, said):
        for line in child.stdout:
            with self.changed:
                said.append((time.monotonic(), line.decode(errors="replace").strip()))
                self.changed.notify_all()
        with self.changed:
            said.append((time.monotonic(), None))
            self.changed.notify_all()

    def wait_until_said(self, *lines, timeout=process.READY_SECONDS):
        """Waits until it has printed one of these lines since its start."""

        def there():
            return any(line in (*lines, None) for _, line in self.said)

        with self.changed:
            in_time = self.changed.wait_for(there, timeout)
        if not any(line in lines for _, line in self.said):
            code = self.child.wait() if in_time else None
            what = f"{self.name} did not say {lines}: {[line for _, line in self.said]}"
            raise process.StartFailed(what, code, self.errors())

    @property
    def address(self):
        return self.stomp

    @property
    def admin_url(self):
        return f"http://{self.admin[0]}:{self.admin[1]}"

    def get(self, path):
        """Code and body of an answer of its admin port."""
        connection = http.client.HTTPConnection(*self.admin, timeout=STATUS_SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def status(self):
        """Its /status, or `None`: not running, paused, or not listening yet."""
        if not self.running() or self.paused:
            return None
        try:
            code, body = self.get("/status")
        except (OSError, http.client.HTTPException):
            return None
        return json.loads(body) if code == 200 else None

    def cluster_command(self, *arguments):
        """`kahawai cluster ARGUMENTS`, sent to this node."""
        done = process.run("cluster", *arguments, "--admin", self.admin_url)
        if done.returncode != 0:
            raise Violation(f"cluster {' '.join(arguments)} at {self.name}: {done.stdout}{done.stderr}")
        return done.stdout

    def serves(self):
        """Does it take STOMP connections?"""
        return answers(self.stomp)

    def kill(self):
        """SIGKILL; returns when."""
        at = time.monotonic()
        super().kill()
        return at

    def pause(self):
        """SIGSTOP; returns when. It stands still then: the signal alone only begins to stop the threads, one after the other."""
        self.paused = True
        at = time.monotonic()
        self.child.send_signal(signal.SIGSTOP)
        os.waitpid(self.child.pid, os.WUNTRACED)
        return at

    def resume(self):
        """SIGCONT; returns when."""
        at = time.monotonic()
        self.child.send_signal(signal.SIGCONT)
        self.paused = False
        return at

    def errors(self):
        return self.log_text()[-6000:]

    def log_text(self):
        """What it has logged over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def close(self):
        if self.running():
            self.kill()
        if self.log is not None:
            self.log.close()
            self.log = None


class Cluster:
    """Nodes `n1`, `n2`, … and a ZooKeeper in one directory. Nothing is started by making it; everything is gone at its end."""

    def __init__(
        self, directory, nodes=3, *, minimum_replicas=1, session_ms=SESSION_MS, journal_file_bytes=JOURNAL_FILE_BYTES,
        options=(), links=False,
    ):  # fmt: skip
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.session_ms = session_ms
        self.zookeeper = Zookeeper(self.directory / "zookeeper")
        #: Each node's way to ZooKeeper, if these can be cut.
        self.links = {}
        self.path = "/kahawai/test"
        self.settings = {
            "path": self.path, "minimum_replicas": minimum_replicas, "session_ms": session_ms,
            "options": ["--journal-file-bytes", journal_file_bytes, *options],
        }  # fmt: skip
        self.nodes = {}
        #: Those too whose name another one has taken.
        self.everyone = []
        for number in range(nodes):
            self.add(f"n{number + 1}", link=links)

    def add(self, name, link=False, directory=None, **settings):
        """Another node, not started. Its directory may be another one's, for those who try that."""
        way = self.zookeeper.address
        if link:
            self.links[name] = Proxy(way)
            way = self.links[name].address
        directory = directory or self.directory / name
        node = Node(name, directory, **{"zookeeper": way, **self.settings, **settings})
        self.nodes[name] = node
        self.everyone.append(node)
        return node

    def __getitem__(self, name):
        return self.nodes[name]

    def __iter__(self):
        return iter(self.nodes.values())

    @property
    def takeover_seconds(self):
        """The longest that a takeover may take."""
        return self.session_ms / 1000 + GRACE_SECONDS

    @property
    def addresses(self):
        """Where clients may try, in no order that they may rely on."""
        return [node.stomp for node in self]

    def start(self, *names):
        """ZooKeeper, and all nodes or these, at once; waits until one is primary and the rest are in sync with it."""
        if self.zookeeper.pid is None:
            self.zookeeper.start()
        started = [self[name] for name in names] or list(self)
        for node in started:
            node.start(wait=False)
        for node in started:
            node.wait_until_said("ready", "replica")
        self.wait_in_sync(*(node.name for node in started))
        return self

    def statuses(self):
        """The /status of all that answer, by name."""
        return {node.name: found for node in self if (found := node.status()) is not None}

    def wait_for(self, predicate, timeout, what):
        """Waits until the predicate is true of [`statuses`], and returns what it returned."""
        until = time.monotonic() + timeout
        while True:
            found = self.statuses()
            if result := predicate(found):
                return result
            if time.monotonic() > until:
                raise Violation(f"after {timeout:.1f} s still not: {what}\n{self.describe(found)}")
            time.sleep(POLL_SECONDS)

    def describe(self, found):
        """The statuses in few lines, and what the nodes logged last."""
        lines = []
        for node in self:
            status = found.get(node.name)
            if status is None:
                lines.append(f"{node.name}: {'paused' if node.paused else 'no answer' if node.running() else 'not running'}")
                continue
            lines.append(
                f"{node.name}: {status['role']}, {status['state']!r}, epoch {status['epoch']}, durable {status['durable']}, commit "
                f"{status['commit']}, applied {status['applied']}, in sync {in_sync(status)}, suspended {status['suspended']}, "
                f"election {status['election']}"
            )
        logs = [f"--- {node.name}, {node.log_path}\n{node.errors()[-2500:]}" for node in self]
        return "\n".join([*lines, *logs])

    @staticmethod
    def leader(found):
        """Name of the primary that lets clients in, of the highest epoch if an old one does not know yet."""
        leaders = [(status["epoch"], name) for name, status in found.items() if status["role"] == "primary" and status["accepting"]]
        return max(leaders)[1] if leaders else None

    def primary(self, timeout=None):
        """The node that serves, once there is one."""
        return self[self.wait_for(self.leader, timeout or self.takeover_seconds, "a primary that serves")]

    def replicas(self):
        """The running nodes that do not serve."""
        primary = self.primary()
        return [node for node in self if node is not primary and node.running() and not node.paused]

    def wait_in_sync(self, *names, timeout=JOIN_SECONDS):
        """Waits until these nodes, or all, are the in-sync set, and are connected; returns the primary."""
        wanted = set(names or self.nodes)

        def together(found):
            leader = self.leader(found)
            if leader is None or set(in_sync(found[leader])) != wanted:
                return None
            connected = {replica["node"] for replica in found[leader]["replicas"] if replica["connected"]}
            return self[leader] if wanted <= connected | {leader} else None

        return self.wait_for(together, timeout, f"{sorted(wanted)} in sync")

    def wait_alike(self, *names, timeout=JOIN_SECONDS):
        """Waits until everything written is flushed, confirmed and applied on these nodes, or all, and stays so for a while."""
        wanted = sorted(names or self.nodes)
        since = [None, 0.0]

        def still(found):
            if any(name not in found for name in wanted):
                return False
            positions = {found[name][key] for name in wanted for key in ("end", "durable", "commit", "applied")}
            if len(positions) > 1 or positions != since[0]:
                since[:] = positions, time.monotonic()
                return False
            return time.monotonic() - since[1] > QUIET_SECONDS

        self.wait_for(still, timeout, f"{wanted} with one end, flushed, confirmed and applied")

    def stop(self):
        """Stops all in good order: the replicas first, so that none of them takes over."""
        primary = self.leader(self.statuses())
        for node in sorted(self, key=lambda node: node.name == primary):
            if node.running() and (code := node.stop()) != 0:
                raise Violation(f"{node.name} ended with {code} after SIGTERM\n{node.errors()}")

    def stop_alike(self):
        """Waits until all are alike, stops them, and compares journals and contents; returns what they hold."""
        self.wait_alike()
        self.stop()
        return compare([node.directory for node in self])

    def close(self):
        for node in self.everyone:
            node.close()
        self.zookeeper.stop("KILL")
        for link in self.links.values():
            link.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def in_sync(status):
    """Names of the in-sync set, as this status has it."""
    return sorted(member["node"] for member in status["in_sync"])


def synchronisation(found, name):
    """How far a node's copy of whole files is, as it says itself, or else as the primary does; `None` outside of one."""
    for status in [found.get(name), *found.values()]:
        for replica in (status or {}).get("replicas", []):
            if replica["node"] == name and replica["synchronisation"]:
                return replica["synchronisation"]
    return None


def journal(directory):
    """Of each data file of a stopped node the bytes up to the end of its last batch; damage is an error."""
    done = process.run("store", "verify", directory, "--json", timeout=600)
    if done.returncode != 0:
        raise Violation(f"verify {directory}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    [store] = json.loads(done.stdout)["stores"]
    # A file that is prepared, and has no batch yet, is the node's own business too.
    return {file["file"]: file["used"] for file in store["files"] if file["used"]}


def digest(directory, number, used):
    """Of the first bytes of a data file; what is behind the last batch is a node's own business."""
    hashed, left = hashlib.sha256(), used
    with open(Path(directory) / f"db-{number}.log", "rb") as file:
        while left and (data := file.read(min(left, 1 << 20))):
            hashed.update(data)
            left -= len(data)
    if left:
        raise Violation(f"{directory}/db-{number}.log ends {left} bytes before its last batch does")
    return hashed.hexdigest()


def compare(directories):
    """Journals must be identical byte for byte, and indexes say the same; returns what the index says.

    Which files go is decided for all, and each node deletes them in its own time: one may have a file that another one has no more.
    """
    journals = {str(directory): journal(directory) for directory in directories}
    if len({max(files.items(), default=None) for files in journals.values()}) > 1:
        raise Violation(f"journals end at different places: {journals}")
    for number in sorted(set().union(*journals.values())):
        used = {directory: files[number] for directory, files in journals.items() if number in files}
        if len(set(used.values())) > 1:
            raise Violation(f"the last batch of db-{number}.log ends at different places: {used}")
        digests = {directory: digest(directory, number, used[directory]) for directory in used}
        if len(set(digests.values())) > 1:
            raise Violation(f"db-{number}.log differs in its first {max(used.values())} bytes: {digests}")
    contents = [recovered.inspect(directory) for directory in directories]
    for directory, content in zip(directories[1:], contents[1:], strict=True):
        if content != contents[0]:
            lines = recovered.differences(contents[0], content) or ["only in the order of destinations, or in what is re-offered"]
            raise Violation(f"{directory} holds something else than {directories[0]}:\n" + "\n".join(lines[:20]))
    return contents[0]


def left_over(content, destinations):
    """Counts of what these queues and topics hold, without the empty ones."""
    counts = {entry["destination"]: entry["count"] for entry in content["destinations"]}
    names = {destination: destination.removeprefix("/").replace("/", "://", 1) for destination in destinations}
    return {destination: count for destination, name in names.items() if (count := counts.get(name, 0))}


@contextlib.contextmanager
def temporary(what, nodes=3, **settings):
    """A cluster in a directory of its own, which is removed at the end unless something went wrong: then its name is printed."""
    directory = Path(tempfile.mkdtemp(prefix=f"{what}-"))
    try:
        with Cluster(directory, nodes, **settings) as cluster:
            yield cluster
    except BaseException:
        print(f"{what}: the directory is kept: {directory}", flush=True)
        raise
    shutil.rmtree(directory)


#: What was measured, for a summary.
FIGURES = []


def figure(text):
    """Something that was measured."""
    FIGURES.append(text)
    print(text, flush=True)


def chosen_seed():
    """A seed of its own for each run, printed; SEED repeats one."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"seed {seed}", flush=True)
    return seed
