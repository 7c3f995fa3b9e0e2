"""STOMP over TLS."""

import queue as queues
import shutil
import ssl
import subprocess

import pytest
import stomp
from harness import process, wire
from session import Listener

pytestmark = [
    process.ours("its TLS is not what is tested here"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate"),
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def secure(certificate, tmp_path_factory):
    certificate_file, key = certificate
    options = ["--stomp-tls", "127.0.0.1:0", "--tls-cert", certificate_file, "--tls-key", key]
    with process.kahawai(tmp_path_factory.mktemp("data") / "store", *options) as running:
        yield running


def tls_address(broker):
    others = [address for name, address in broker.ports.items() if name != "stomp"]
    assert len(others) == 1, broker.ports
    return others[0]


def test_a_message_goes_round(secure, certificate, queue):
    heard = Listener()
    connection = stomp.Connection12([tls_address(secure)], auto_decode=False)
    connection.set_ssl([tls_address(secure)], ca_certs=str(certificate[0]))
    connection.set_listener("test", heard)
    connection.connect(wait=True)
    connection.subscribe(queue, id="1")
    connection.send(queue, "hello", headers={"persistent": "true"})
    assert heard.messages.get(timeout=20).body == b"hello"
    connection.disconnect(receipt="bye")
    with pytest.raises(queues.Empty):
        heard.errors.get_nowait()


def test_large_bodies_and_both_connectors(secure, certificate, queue):
    context = ssl.create_default_context(cafile=certificate[0])
    body = bytes(range(256)) * 12_000
    with wire.Client(tls_address(secure), connect=False) as inside, wire.Client(secure.address) as plain:
        inside.socket = context.wrap_socket(inside.socket, server_hostname="localhost")
        inside.connect()
        inside.send(queue, body)
        plain.subscribe(queue)
        assert plain.message().body == body
        plain.send(f"{queue}.back", body)
        inside.subscribe(f"{queue}.back")
        assert inside.message().body == body


def test_a_plain_client_on_the_tls_port_is_cut_off(secure, queue):
    client = wire.Client(tls_address(secure), connect=False)
    client.frame("CONNECT", {"accept-version": "1.2", "host": "localhost"})
    # At most an alert comes; then the end.
    client.socket.settimeout(40)
    while client.socket.recv(1000):
        pass
    with wire.Client(secure.address) as other:
        other.send(queue, "x")


def test_a_silent_tls_client_blocks_nobody(secure, queue):
    silent = [wire.Client(tls_address(secure), connect=False) for _ in range(20)]
    with wire.Client(secure.address) as other:
        other.send(queue, "x")
    for client in silent:
        client.close()


@pytest.mark.parametrize("missing", ["--tls-cert", "--tls-key"])
def test_files_that_are_not_there_end_with_2(certificate, tmp_path, missing):
    files = {"--tls-cert": certificate[0], "--tls-key": certificate[1], missing: tmp_path / "nowhere.pem"}
    options = [part for pair in files.items() for part in pair]
    broker = process.kahawai(tmp_path / "store", "--stomp-tls", "127.0.0.1:0", *options)
    with pytest.raises(process.StartFailed) as refused, broker:
        pass
    assert refused.value.code == 2
    assert "nowhere.pem" in refused.value.log
