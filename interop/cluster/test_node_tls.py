"""Replication over TLS: a cluster with certificates, and peers whose certificates do not fit."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from harness import failover, paths, process
from harness.cluster import chosen_seed, figure, in_sync, temporary
from test_bad_peers import PREAMBLE, hello

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")

#: The longest time without a receipt that a stranger may cause.
GAP_SECONDS = 2.0
#: A node whose dial is refused for good tries again after so long.
REDIAL_SECONDS = 5


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, stdin=subprocess.DEVNULL)


class Authority:
    """A CA in a directory, and what it signs."""

    def __init__(self, directory, name):
        self.directory = directory / name
        self.directory.mkdir()
        self.certificate, self.key = self.directory / "ca.pem", self.directory / "ca.key"
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", 2,
            "-subj", f"/CN={name}", "-keyout", self.key, "-out", self.certificate,
        )  # fmt: skip

    def sign(self, file, node, *, days=2):
        """Certificate and key of a node, both in one stem of files; what ended yesterday has days below zero."""
        certificate, key, request, names = (self.directory / f"{file}.{end}" for end in ("pem", "key", "csr", "ext"))
        names.write_text(f"subjectAltName=DNS:localhost,IP:127.0.0.1,URI:kdbr:///{node}\nextendedKeyUsage=serverAuth,clientAuth\n")
        openssl(
            "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={file}", "-keyout", key, "-out", request,
        )  # fmt: skip
        ca = ["-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial"]
        if days > 0:
            openssl("x509", "-req", "-in", request, *ca, "-days", days, "-extfile", names, "-out", certificate)
        else:
            self._sign_past(request, names, certificate, days)
        return certificate, key

    def _sign_past(self, request, names, certificate, days):
        """`openssl x509` begins all certificates now; `openssl ca` can be told."""
        index, settings = self.directory / "index.txt", self.directory / "ca.cnf"
        index.write_text("")
        settings.write_text(
            f"[ca]\ndefault_ca=d\n[d]\ndatabase={index}\nnew_certs_dir={self.directory}\ndefault_md=sha256\n"
            "policy=p\nrand_serial=yes\n[p]\ncommonName=supplied\n"
        )
        stamp = lambda moment: moment.strftime("%Y%m%d%H%M%SZ")
        end = datetime.now(UTC) + timedelta(days=days)
        openssl(
            "ca", "-batch", "-config", settings, "-cert", self.certificate, "-keyfile", self.key, "-in", request,
            "-startdate", stamp(end - timedelta(days=9)), "-enddate", stamp(end), "-extfile", names, "-out", certificate, "-notext",
        )  # fmt: skip

    def options(self, node, *, authority=None, days=2, file=None):
        """What a node is started with."""
        certificate, key = self.sign(file or node, node, days=days)
        ca = (authority or self).certificate
        return ["--kdbr-tls-cert", certificate, "--kdbr-tls-key", key, "--kdbr-tls-ca", ca]


def secured(cluster, authority):
    """Gives each node of a cluster that is not started its certificate."""
    for node in cluster:
        node.command += map(str, authority.options(node.name))


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ca")
    return Authority(directory, "ours"), Authority(directory, "theirs")


@pytest.fixture(scope="module")
def running(authorities):
    """A cluster under load for those who bring wrong certificates, and at the end a look at whether anything is missing."""
    with temporary("tls-peers", minimum_replicas=1) as cluster:
        secured(cluster, authorities[0])
        cluster.start()
        load = failover.Load(cluster.addresses, seed=chosen_seed())
        load.start()
        load.flow()
        primary, epoch = cluster.primary(), cluster.primary().status()["epoch"]
        members = [cluster[name] for name in ("n1", "n2", "n3")]
        yield cluster, load
        assert cluster.primary() is primary and primary.status()["epoch"] == epoch, "strangers moved the primary"
        cluster.nodes = {node.name: node for node in members}
        cluster.wait_in_sync()
        load.flow()
        load.stop()
        load.check(primary)
        cluster.stop_alike()


def unmoved(cluster, load, began):
    assert all(cluster[name].running() for name in ("n1", "n2", "n3"))
    load.flow()
    gap = load.moments.longest_gap(began, time.monotonic())
    assert gap < GAP_SECONDS, f"{gap:.2f} s without a receipt"


def logged(node, text, since=0, timeout=20):
    """Waits until the node's log says so, behind what it said before; ends of lines are not looked at."""
    until = time.monotonic() + timeout
    while text not in node.log_text()[since:]:
        assert time.monotonic() < until, f"{node.name} does not log {text!r}\n{node.errors()}"
        time.sleep(0.05)


def test_a_cluster_forms_copies_takes_over_and_takes_in_an_empty_node(authorities):
    seed = chosen_seed()
    with temporary("tls", minimum_replicas=1) as cluster:
        secured(cluster, authorities[0])
        cluster.start()
        load = failover.Load(cluster.addresses, seed=seed)
        load.start()
        load.flow(1000)
        old = cluster.primary()
        killed = old.kill()
        outage = load.outage(killed, cluster.takeover_seconds)
        figure(f"tls: kill -9 to the next confirmed send: {outage:.2f} s")
        load.flow()
        # One that begins empty: files come over transfer connections.
        shutil.rmtree(old.directory)
        old.start()
        cluster.wait_in_sync()
        load.flow()
        load.stop()
        load.check(cluster.primary())
        cluster.stop_alike()
        for node in cluster:
            assert "WARN" not in "".join(line for line in node.log_text().splitlines() if "kdbr" in line), node.errors()


def test_what_goes_over_the_wire_cannot_be_read(authorities):
    """A proxy between replica and primary sees neither names nor bodies."""
    seen = bytearray()
    with temporary("tls-wire", nodes=2, minimum_replicas=1) as cluster, contextlib.ExitStack() as closing:
        secured(cluster, authorities[0])
        listener = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
        node = cluster["n1"]
        at = node.command.index("--kdbr")
        bind = node.command[at + 1]
        node.command[at + 1] = f"127.0.0.1:{listener.getsockname()[1]}"
        node.command += ["--kdbr-bind", bind]
        closing.callback(wiretap(listener, ("127.0.0.1", node.kdbr[1]), seen))
        cluster.zookeeper.start()
        node.start()
        node.wait_until_said("ready")
        cluster["n2"].start()
        cluster.wait_in_sync()
        assert cluster.primary() is node
        with failover.connected([node.stomp], "/queue/secret") as client:
            client.send("/queue/secret", b"nobody else may read this" * 100)
        assert len(seen) > 2000
        for text in (b"nobody else", b"KDBR", b"kahawai 0", b"secret"):
            assert text not in seen, f"{text} crossed the wire"


def wiretap(listener, target, seen):
    """Passes connections on, and keeps what was said; returns what ends it."""
    def pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                seen.extend(data)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(target, timeout=5)
                far.settimeout(None)
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return lambda: listener.shutdown(socket.SHUT_RDWR)


STRANGERS = {
    "of-another-ca": ("theirs", {}, "UnknownCA", "UnknownIssuer"),
    "expired": ("ours", {"days": -1}, "CertificateExpired", "expired"),
    "that-trusts-another-ca": ("ours", {"trusts": "theirs"}, "UnknownIssuer", "UnknownCA"),
    "in-plaintext": (None, {}, "replication is over TLS here", "the peer speaks plaintext"),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_a_node_that_does_not_fit_stays_out_and_both_ends_say_why(running, authorities, what):
    cluster, load = running
    by = dict(zip(("ours", "theirs"), authorities, strict=True))
    whose, settings, at_the_node, at_the_primary = STRANGERS[what]
    options = []
    if whose:
        trusted = by[settings.get("trusts", "ours")]
        options = by[whose].options("n9", authority=trusted, days=settings.get("days", 2), file=what)
    began, primary = time.monotonic(), cluster.primary()
    before = len(primary.log_text())
    stranger = cluster.add("n9", directory=cluster.directory / what, options=options)
    try:
        stranger.start()
        logged(stranger, at_the_node)
        logged(primary, at_the_primary, before)
        unmoved(cluster, load, began)
        lines = [line for line in primary.log_text()[before:].splitlines() if at_the_primary in line]
        # It does not try ten times a second.
        assert len(lines) <= 2 + (time.monotonic() - began) / REDIAL_SECONDS, lines
        assert "n9" not in in_sync(primary.status())
    finally:
        stranger.kill()
        stranger.close()
        del cluster.nodes["n9"]


def test_a_peer_without_certificate_or_with_an_older_tls_is_refused(running, authorities):
    cluster, load = running
    ours, _ = authorities
    began = time.monotonic()
    for node in (cluster.primary(), cluster.replicas()[0]):
        for version, text in (
            (ssl.TLSVersion.TLSv1_3, "the peer shows no certificate"),
            (ssl.TLSVersion.TLSv1_2, "TLS: peer is incompatible"),
        ):
            context = ssl.create_default_context(cafile=ours.certificate)
            context.maximum_version = version
            before = len(node.log_text())
            with socket.create_connection(node.kdbr, timeout=5) as plain, contextlib.suppress(ssl.SSLError, OSError):
                with context.wrap_socket(plain, server_hostname="localhost") as stranger:
                    stranger.sendall(b"KDBR\x02\x01")
                    assert stranger.recv(1) == b"", "it was let in"
            logged(node, text, before, timeout=5)
    unmoved(cluster, load, began)


def test_a_member_of_the_ca_is_held_to_its_own_name(running, authorities):
    """With n2's certificate nobody is n9, whatever he says."""
    cluster, load = running
    ours, _ = authorities
    certificate, key = ours.sign("borrowed", "n2")
    options = ["--kdbr-tls-cert", certificate, "--kdbr-tls-key", key, "--kdbr-tls-ca", ours.certificate]
    stranger = cluster.add("n9", directory=cluster.directory / "borrowed", options=options)
    try:
        with pytest.raises(process.StartFailed) as refused:
            stranger.start()
        assert refused.value.code == 2
        assert "the certificate is not for n9" in stranger.errors()
    finally:
        stranger.close()
        del cluster.nodes["n9"]
    began, primary = time.monotonic(), cluster.primary()
    before = len(primary.log_text())
    context = ssl.create_default_context(cafile=ours.certificate)
    context.load_cert_chain(certificate, key)
    with socket.create_connection(primary.kdbr, timeout=5) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as peer:
            peer.sendall(PREAMBLE + hello())
            answer = b""
            with contextlib.suppress(TimeoutError, ssl.SSLError, OSError):
                while data := peer.recv(1 << 16):
                    answer += data
    assert b"certificate is for kdbr:///n2, and it says that it is" in answer and b"/stranger" in answer
    logged(primary, "certificate is for kdbr:///n2", before)
    unmoved(cluster, load, began)


def test_tls_where_the_others_have_none_is_refused(authorities):
    ours, _ = authorities
    with temporary("tls-to-plain", nodes=2, minimum_replicas=1) as cluster:
        cluster.start()
        primary = cluster.primary()
        stranger = cluster.add("n9", options=ours.options("n9"))
        stranger.start()
        logged(stranger, "the peer does not speak TLS")
        logged(primary, "the peer speaks TLS, and this node has no --kdbr-tls-cert")
        cluster.wait_in_sync("n1", "n2")


def test_strangers_at_a_port_with_tls_have_a_few_seconds_and_keep_nobody_out(running):
    cluster, load = running
    began, primary, silent = time.monotonic(), cluster.primary(), []
    try:
        for number in range(200):
            silent.append(socket.create_connection(primary.kdbr, timeout=5))
            # A TLS session that begins, and says no more.
            silent[-1].sendall(b"\x16\x03\x01\x3f\xff\x01" if number % 2 else b"")
        unmoved(cluster, load, began)
        replica = cluster.replicas()[0]
        replica.kill()
        replica.start()
        cluster.wait_in_sync("n1", "n2", "n3")
        silent[0].settimeout(8)
        with contextlib.suppress(ConnectionError):
            while silent[0].recv(100):
                pass
    finally:
        for stranger in silent:
            stranger.close()


def test_beyond_loopback_certificates_are_enough(authorities, tmp_path):
    """Nothing but TLS, and an address that is not loopback: that starts; without TLS it does not."""
    ours, _ = authorities
    command = [
        paths.kahawai(), "run", "--data", tmp_path / "d", "--cluster", "zk://127.0.0.1:1/x", "--node-id", "n1",
        "--kdbr", "localhost:1", "--kdbr-bind", "0.0.0.0:0", "--stomp", "127.0.0.1:0", "--admin", "off",
    ]  # fmt: skip
    refused = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert refused.returncode == 2 and "--kdbr-tls-cert" in refused.stderr, refused.stderr
    node = process.Process([*command, *ours.options("n1")])
    child = subprocess.Popen([str(part) for part in node.command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert child.stdout.readline().startswith("listening kdbr 0.0.0.0:")
    finally:
        child.kill()
        child.wait()
