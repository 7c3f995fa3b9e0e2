"""Connecting, sending and receiving in every version."""

import pytest
from harness import process, wire
from session import Session

ALL = ["1.0", "1.1", "1.2"]


@pytest.mark.parametrize("version", ALL)
def test_connected_says_version_session_and_server(broker, version):
    with Session(broker, version) as session:
        connected = session.heard.connected_headers
        assert connected["version"] == version
        assert connected["session"]
        expected = "ActiveMQ/" if process.is_activemq() else "kahawai/"
        assert connected["server"].startswith(expected)


def test_the_highest_common_version_is_spoken(broker):
    for offered, spoken in [("1.0,1.1,1.2", "1.2"), ("1.1,1.0", "1.1"), ("1.0", "1.0"), ("1.2,9.9", "1.2")]:
        client = wire.Client(broker.address, connect=False)
        client.frame("CONNECT", {"accept-version": offered, "host": "localhost"})
        assert client.expect("CONNECTED")["version"] == spoken
        client.close()


def test_an_unknown_version_is_refused(broker):
    client = wire.Client(broker.address, connect=False)
    client.frame("CONNECT", {"accept-version": "2.7", "host": "localhost"})
    assert client.expect("ERROR")["message"]
    client.close()


def test_stomp_is_another_word_for_connect(broker):
    client = wire.Client(broker.address, connect=False)
    client.frame("STOMP", {"accept-version": "1.2", "host": "localhost"})
    assert client.expect("CONNECTED")["version"] == "1.2"
    client.close()


@pytest.mark.parametrize("version", ALL)
def test_a_message_goes_round_with_receipts(broker, queue, version):
    with Session(broker, version) as session:
        session.send(queue, "hello", color="blue")
        session.subscribe(queue)
        message = session.message()
        assert message.body == b"hello"
        assert message.headers["destination"] == queue
        assert message.headers["color"] == "blue"
        assert message.headers["message-id"].startswith("ID:")
        assert message.headers["persistent"] == "true"
        assert message.headers["subscription"] == "1"
        assert ("ack" in message.headers) is False, "nothing to acknowledge in mode auto"


@pytest.mark.parametrize("version", ALL)
def test_disconnect_is_confirmed_and_final(broker, version):
    client = wire.Client(broker.address, version)
    client.frame("DISCONNECT", {"receipt": "bye"})
    assert client.expect("RECEIPT")["receipt-id"] == "bye"
    with pytest.raises(ConnectionError):
        client.read(5)


def test_a_receipt_comes_for_every_kind_of_frame(broker, queue):
    with wire.Client(broker.address) as client:
        client.subscribe(queue, ack="client")
        client.begin("t")
        client.send(queue, "x", transaction="t")
        client.commit("t")
        client.ack(client.message())
        client.begin("u")
        client.abort("u")
        client.unsubscribe()
        client.disconnect()


def test_receipts_come_in_the_order_of_their_requests(broker, queue):
    with wire.Client(broker.address) as client:
        for number in range(500):
            client.frame("SEND", {"destination": queue, "persistent": "true", "receipt": f"n{number}"}, b"x")
        got = [client.expect("RECEIPT")["receipt-id"] for _ in range(500)]
        assert got == [f"n{number}" for number in range(500)]


def test_frames_may_be_cut_anywhere(broker, queue):
    sent = wire.encode("SEND", {"destination": queue, "receipt": "r", "persistent": "true"}, b"piecemeal")
    with wire.Client(broker.address) as client:
        for at in range(len(sent)):
            client.raw(sent[at : at + 1])
        client.expect("RECEIPT", receipt_id="r")
        client.subscribe(queue)
        assert client.message().body == b"piecemeal"


def test_line_ends_between_frames_are_skipped(broker, queue):
    with wire.Client(broker.address) as client:
        client.raw(b"\n\n\r\n\n")
        client.send(queue, "x")
        client.raw(b"\r\n\r\n")
        client.subscribe(queue)
        assert client.message().body == b"x"


def test_carriage_returns_at_line_ends_are_no_part_of_headers(broker, queue):
    with wire.Client(broker.address) as client:
        client.raw(f"SEND\r\ndestination:{queue}\r\nreceipt:r\r\n\r\nbody\0".encode())
        client.expect("RECEIPT", receipt_id="r")
        client.subscribe(queue)
        assert client.message().body == b"body"


def test_many_frames_in_one_write(broker, queue):
    with wire.Client(broker.address) as client:
        frames = [wire.encode("SEND", {"destination": queue}, f"m{number}") for number in range(2000)]
        client.raw(b"".join(frames))
        client.subscribe(queue)
        assert [message.text for message in client.messages(2000)] == [f"m{number}" for number in range(2000)]
