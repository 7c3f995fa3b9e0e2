"""Headers and bodies come out as they went in."""

import time

import pytest
from harness import process, wire
from session import Session


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_escaped_headers(broker, queue, version):
    values = {"colon": "a:b", "line": "a\nb", "slash": "a\\b", "all": ":\\\n\\n:", "na:me": "x", "umlaut": "ü✓🚀"}
    if version == "1.2":
        values["return"] = "a\rb"
    with wire.Client(broker.address, version) as client:
        client.frame("SEND", {"destination": queue, **values}, b"x")
        client.subscribe(queue)
        message = client.message()
        assert {name: message.get(name) for name in values} == values


@process.ours("ActiveMQ unescapes in 1.0 too")
def test_version_1_0_has_no_escapes(broker, queue):
    with wire.Client(broker.address, "1.0") as client:
        client.frame("SEND", {"destination": queue, "path": r"c:\new\table"}, b"x")
        client.subscribe(queue)
        assert client.message()["path"] == r"c:\new\table"


def test_of_repeated_headers_the_first_counts(broker, queue):
    with wire.Client(broker.address) as client:
        client.raw(f"SEND\ndestination:{queue}\nkey:first\nkey:second\nreceipt:r\n\nx\0".encode())
        client.expect("RECEIPT", receipt_id="r")
        client.subscribe(queue)
        assert client.message()["key"] == "first"


def test_jms_headers(broker, queue):
    later = int(time.time() * 1000) + 3_600_000
    sent = {"correlation-id": "c1", "type": "kind", "priority": "7", "expires": str(later)}
    with wire.Client(broker.address) as client:
        client.request("SEND", {"destination": queue, "reply-to": "/queue/answers", "persistent": "true", **sent}, b"x")
        client.subscribe(queue)
        message = client.message()
        assert {name: message[name] for name in sent} == sent
        assert message["reply-to"] == "/queue/answers"
        assert abs(int(message["timestamp"]) - time.time() * 1000) < 60_000


@process.ours("ActiveMQ stores it and does not show it")
def test_a_message_group_is_shown(broker, queue):
    with wire.Client(broker.address) as client:
        client.send(queue, "x", JMSXGroupID="g1")
        client.subscribe(queue)
        assert client.message()["JMSXGroupID"] == "g1"


def test_an_expired_message_is_not_delivered(broker, queue):
    with wire.Client(broker.address) as client:
        now = int(time.time() * 1000)
        client.send(queue, "stale", expires=now - 1000)
        client.send(queue, "short", expires=now + 400)
        client.send(queue, "fresh", expires=now + 3_600_000)
        time.sleep(0.8)
        client.subscribe(queue)
        assert client.message().text == "fresh"
        client.silence()


def test_an_expired_persistent_message_becomes_a_dead_letter(own_broker, queue):
    with wire.Client(own_broker.address) as client:
        client.send(queue, "short", expires=int(time.time() * 1000) + 300)
        time.sleep(0.6)
        client.subscribe(queue, id="live")
        client.subscribe("/queue/ActiveMQ.DLQ", id="dead")
        dead = client.message()
        assert dead.text == "short"
        assert dead["subscription"] == "dead"
        assert dead["original-destination"] == queue
        client.silence()


def test_priority_headers_are_bounded(broker, queue):
    with wire.Client(broker.address) as client:
        for priority in (-3, 0, 9, 12):
            client.send(queue, str(priority), priority=priority)
        client.subscribe(queue)
        got = {message.text: message["priority"] for message in client.messages(4)}
        assert got == {"-3": "0", "0": "0", "9": "9", "12": "9"}


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_binary_bodies(broker, queue, version):
    bodies = [bytes(range(256)) * 4, b"\0", b"\0\0\n\n\0", b"ends with NUL\0", bytes(1000)]
    with wire.Client(broker.address, version) as client:
        for body in bodies:
            client.send(queue, body)
        client.subscribe(queue)
        got = client.messages(len(bodies))
        assert [message.body for message in got] == bodies
        assert [message["content-length"] for message in got] == [str(len(body)) for body in bodies]


def test_texts_and_bytes_stay_apart(broker, queue):
    """Without content-length a body is a text; ActiveMQ's clients tell the two apart by that on the way out."""
    with wire.Client(broker.address) as client:
        client.send(queue, "text ü", content_length=False)
        client.send(queue, "bytes ü")
        client.subscribe(queue)
        text, data = client.messages(2)
        assert (text.text, text.get("content-length")) == ("text ü", None)
        assert (data.text, data["content-length"]) == ("bytes ü", "8")


@process.ours("ActiveMQ shows the content-length of the SEND as a property")
def test_a_text_with_a_length_is_asked_for(broker, queue):
    with wire.Client(broker.address) as client:
        client.send(queue, "forced", **{"amq-msg-type": "text"})
        client.subscribe(queue)
        message = client.message()
        assert (message.text, message.get("content-length")) == ("forced", None)


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_empty_bodies(broker, queue, version):
    with Session(broker, version) as session:
        session.send(queue, "")
        session.send(queue, "", **{"content-length": "0"})
        session.subscribe(queue)
        assert session.bodies(2) == [b"", b""]


def test_ten_megabytes(own_broker, queue):
    body = bytes((number * 7 + number // 251) % 256 for number in range(1 << 16)) * 160
    with wire.Client(own_broker.address, timeout=60) as client:
        client.send(queue, body)
        own_broker.kill()
    own_broker.start()
    with wire.Client(own_broker.address, timeout=60) as client:
        client.subscribe(queue)
        assert client.message().body == body


def test_a_hundred_headers(broker, queue):
    values = {f"name{number}": f"value{number}" * 5 for number in range(100)}
    with wire.Client(broker.address) as client:
        client.frame("SEND", {"destination": queue, **values}, b"x")
        client.subscribe(queue)
        message = client.message()
        assert {name: message.get(name) for name in values} == values


def test_groups_stay_with_one_consumer(broker, queue):
    if not process.is_activemq():
        pytest.skip("groups are stored; that one consumer gets a whole group is not built yet")
    with wire.Client(broker.address) as one, wire.Client(broker.address) as two:
        for client in (one, two):
            client.subscribe(queue)
        for number in range(10):
            one.send(queue, str(number), JMSXGroupID="g")
        try:
            first = one.message(timeout=2)
        except AssertionError:
            one, two = two, one
            first = one.message(timeout=2)
        assert [first.text] + [message.text for message in one.messages(9)] == [str(number) for number in range(10)]
        two.silence()
