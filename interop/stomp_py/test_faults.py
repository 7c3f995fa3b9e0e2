"""Clients that misbehave get an ERROR, and harm nobody else."""

import random
import socket
import subprocess

import pytest
from harness import paths, process, wire


@pytest.fixture
def bystander(broker, queue):
    """Somebody who must not notice anything."""
    with wire.Client(broker.address) as client:
        client.subscribe(queue)
        yield client
        client.send(queue, "still served")
        assert client.message().text == "still served"


def ended(client):
    """Reads until the broker closes; returns the frames before."""
    frames = []
    try:
        while (frame := client.read(10)) is not None:
            frames.append(frame)
    except (ConnectionError, OSError):
        return frames
    raise AssertionError(f"the connection is still open; frames: {frames}")


def test_an_error_carries_the_receipt_id_of_its_frame(broker):
    with wire.Client(broker.address) as client:
        client.frame("SEND", {"receipt": "r1"}, b"no destination")
        error = client.expect("ERROR")
        assert error["receipt-id"] == "r1"
        assert error["message"]


@process.ours("ActiveMQ keeps the connection")
def test_a_frame_before_connect_is_an_error(broker, bystander):
    client = wire.Client(broker.address, connect=False)
    client.frame("SEND", {"destination": "/queue/x", "receipt": "r"}, b"x")
    frames = ended(client)
    assert [frame.command for frame in frames] == ["ERROR"]


def test_an_unknown_command_is_an_error(broker, bystander):
    client = wire.Client(broker.address)
    client.frame("DANCE", {"receipt": "r"})
    assert [frame.command for frame in ended(client)] == ["ERROR"]


@pytest.mark.parametrize("seed", range(5))
def test_garbage_bytes(broker, bystander, seed):
    generator = random.Random(seed)
    for connect in (False, True):
        client = wire.Client(broker.address, connect=connect)
        try:
            for _ in range(20):
                client.raw(generator.randbytes(generator.choice([1, 10, 1000, 65536])))
            client.raw(b"\0" * 10)
        except OSError:
            pass
        client.close()


def test_a_tls_hello_on_a_plain_port(broker, bystander):
    client = wire.Client(broker.address, connect=False)
    client.raw(bytes.fromhex("16030100c8010000c40303") + bytes(200))
    client.close()


@process.ours("ActiveMQ answers some of these with an error per byte, and others not at all")
@pytest.mark.parametrize(
    "attack",
    [
        b"X" * 100_000,
        b"SEND\n" + b"h" * 1_000_000,
        b"SEND\n" + b"h:v\n" * 2_000,
        b"SEND\n" + b"".join(b"header%d:%s\n" % (number, b"v" * 5000) for number in range(900)),
        b"SEND\ndestination:/queue/x\ncontent-length:3000000000\n\n",
        b"SEND\ndestination:/queue/x\ncontent-length:99999999999999999999\n\n",
        b"SEND\ndestination:/queue/x\ncontent-length:-1\n\n",
        b"SEND\ndestination:/queue/x\ncontent-length:3\n\nabcdef\0",
    ],
    ids=["command", "header", "headers", "head", "body", "overflow", "negative", "no NUL after the body"],
)
def test_oversized_and_malformed_frames_are_refused_at_once(broker, bystander, attack):
    client = wire.Client(broker.address)
    try:
        client.raw(attack)
        frames = ended(client)
    except OSError:
        frames = []
    assert [frame.command for frame in frames] in (["ERROR"], [])


def test_a_client_that_never_reads_blocks_nobody(broker, bystander, topic):
    lazy = wire.Client(broker.address)
    lazy.subscribe(topic)
    lazy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with wire.Client(broker.address) as sender, wire.Client(broker.address) as reader:
        reader.subscribe(topic)
        for number in range(300):
            sender.frame("SEND", {"destination": topic}, f"{number:10}" * 1000)
        sender.send(topic, "end")
        assert len(reader.messages(301)) == 301
    lazy.close()


def test_a_connection_cut_in_a_frame_sends_nothing(broker, queue):
    client = wire.Client(broker.address)
    client.raw(wire.encode("SEND", {"destination": queue, "persistent": "true"}, b"x" * 5000)[:3000])
    client.close()
    with wire.Client(broker.address) as client:
        client.subscribe(queue)
        client.silence()


def test_a_hundred_connections(broker, queue, topic):
    clients = [wire.Client(broker.address) for _ in range(100)]
    for client in clients:
        client.frame("SUBSCRIBE", {"destination": topic, "id": "t", "receipt": "s"})
    for client in clients:
        client.expect("RECEIPT", receipt_id="s")
    for number, client in enumerate(clients):
        client.frame("SEND", {"destination": queue, "persistent": "true", "receipt": "q"}, f"{number}")
    for client in clients:
        client.expect("RECEIPT", receipt_id="q")
    clients[0].send(topic, "all")
    assert all(client.message().text == "all" for client in clients)
    clients[0].subscribe(queue)
    assert sorted(int(message.text) for message in clients[0].messages(100)) == list(range(100))
    for client in clients:
        client.close()


def test_connecting_and_leaving_many_times(broker, queue):
    for _ in range(300):
        wire.Client(broker.address).close()
    with wire.Client(broker.address) as client:
        client.send(queue, "x")


@process.ours("about our own process")
def test_a_second_process_on_the_same_directory_is_refused(own_broker, tmp_path, queue):
    with wire.Client(own_broker.address) as client:
        client.send(queue, "x")
        second = process.kahawai(tmp_path / "store")
        with pytest.raises(process.StartFailed) as refused, second:
            pass
        assert refused.value.code not in (0, 101, None)
        assert str(tmp_path / "store") in refused.value.log
        client.subscribe(queue)
        assert client.message().text == "x"


@process.ours("about our own process")
def test_a_running_store_is_not_rebuilt_and_may_be_looked_at(own_broker, tmp_path, queue):
    directory = tmp_path / "store"
    with wire.Client(own_broker.address) as client:
        client.send(queue, "before")
        for tool in ("inspect", "verify", "why-retained"):
            assert process.run("store", tool, directory).returncode in (0, 1), tool
        done = process.run("store", "rebuild-index", directory)
        assert done.returncode not in (0, 101)
        assert str(directory) in done.stderr
        client.send(queue, "after")
        client.subscribe(queue)
        assert [message.text for message in client.messages(2)] == ["before", "after"]


@process.ours("about our own process")
def test_activemq_keeps_out_of_a_running_store(own_broker, tmp_path):
    """The lock is the one that Java takes: it waits for us, and we wait for nobody."""
    java = process.activemq(tmp_path / "store")
    child = subprocess.Popen(java.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            child.communicate(timeout=8)
    finally:
        child.kill()
        out, _ = child.communicate()
    assert b"ready" not in out


@process.ours("about our own process")
def test_we_keep_out_of_activemqs_running_store(tmp_path):
    with process.activemq(tmp_path / "store"):
        ours = process.kahawai(tmp_path / "store")
        with pytest.raises(process.StartFailed) as refused, ours:
            pass
        assert refused.value.code not in (0, 101, None)


@process.ours("about our own process")
@pytest.mark.parametrize(
    "arguments",
    [["--stomp", "nonsense"], ["--stomp", "127.0.0.1:99999"], ["--no-such-option"], ["no-such-file.xml"]],
    ids=lambda arguments: arguments[0],
)
def test_an_unusable_configuration_ends_with_2(tmp_path, arguments):
    done = subprocess.run(
        [paths.kahawai(), "run", "--data", tmp_path / "store", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2, done.stderr.decode()
    assert done.stderr


@process.ours("about our own process")
def test_a_port_in_use_is_said(own_broker, tmp_path):
    host, port = own_broker.address
    second = process.kahawai(tmp_path / "other", stomp=f"{host}:{port}")
    with pytest.raises(process.StartFailed) as refused, second:
        pass
    assert refused.value.code not in (0, 101, None)
    assert str(port) in refused.value.log
