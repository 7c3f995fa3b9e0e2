"""Nodes in network namespaces of their own, between which packets can be made to vanish, one way or both; needs root.

All hang on one bridge. What one host sends to another vanishes once it is given a hardware address for it that nobody has: no
firewall is needed, and like in a broken network nobody is told.
"""

import functools
import os
import shutil
import subprocess

NOBODY = "02:00:00:00:00:fe"
#: Clients and the harness; ZooKeeper has another address on the same host, so that it alone can be cut.
CLIENTS, ZOOKEEPER = 254, 253


@functools.cache
def missing():
    """Why it cannot be done here; `None` if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "ip (iproute2) is not installed"
    probe = f"kahawai-{os.getpid()}-probe"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"no network namespaces here: {done.stderr.strip()}"
    ip("netns", "delete", probe)
    return None


def ip(*arguments, within=None):
    command = ["ip", *(["-netns", within] if within else []), *map(str, arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


class Network:
    """A bridge in the main namespace, and a namespace a node; names carry our process id, so that runs do not meet."""

    def __init__(self, names):
        self.tag = f"{os.getpid() % 10_000}"
        self.bridge = f"kw{self.tag}"
        #: 10.B.C.0/24, hardly used by anybody else.
        self.net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self.hosts = {name: number + 1 for number, name in enumerate(names)}
        self.cuts = set()
        self.made = []

    def address(self, host):
        return f"{self.net}.{self.hosts.get(host, host)}"

    def namespace(self, name):
        return f"kahawai-{self.tag}-{name}"

    def prefix(self, name):
        """What runs a command there, under its own process id."""
        return ["ip", "netns", "exec", self.namespace(name)]

    def __enter__(self):
        try:
            ip("link", "add", self.bridge, "type", "bridge")
            for host in (CLIENTS, ZOOKEEPER):
                ip("address", "add", f"{self.address(host)}/24", "dev", self.bridge)
            ip("link", "set", self.bridge, "up")
            for name in self.hosts:
                self._add(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _add(self, name):
        namespace, outer, inner = self.namespace(name), f"kw{self.tag}-{name}", f"ki{self.tag}-{name}"
        ip("netns", "add", namespace)
        self.made.append(name)
        ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", namespace)
        ip("link", "set", outer, "master", self.bridge, "up")
        ip("address", "add", f"{self.address(name)}/24", "dev", inner, within=namespace)
        ip("link", "set", inner, "up", within=namespace)
        ip("link", "set", "lo", "up", within=namespace)

    def __exit__(self, *_):
        for name in self.made:
            # The pair goes by itself with its namespace, but some time later, and the next test may want the name.
            subprocess.run(["ip", "link", "delete", f"kw{self.tag}-{name}"], capture_output=True, check=False)
            ip("netns", "delete", self.namespace(name))
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True, check=False)

    def cut_one_way(self, source, target):
        """What `source`, a node, sends to `target`, a node or ZOOKEEPER, vanishes."""
        where = {"within": self.namespace(source)}
        ip("neighbour", "replace", self.address(target), "lladdr", NOBODY, "dev", f"ki{self.tag}-{source}", "nud", "permanent", **where)
        self.cuts.add((source, target))

    def cut(self, one, other):
        """Between two nodes nothing passes; between a node and ZOOKEEPER nothing of the node's, which is as good."""
        self.cut_one_way(one, other)
        if other in self.hosts:
            self.cut_one_way(other, one)

    def heal(self):
        """Everything passes again."""
        for source, target in self.cuts:
            ip("neighbour", "delete", self.address(target), "dev", f"ki{self.tag}-{source}", within=self.namespace(source))
        self.cuts.clear()
