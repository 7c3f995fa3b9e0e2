"""Heart-beats, both ways."""

import time

import pytest
from harness import wire
from session import Session


def test_what_is_agreed(broker):
    client = wire.Client(broker.address, connect=False)
    client.frame("CONNECT", {"accept-version": "1.2", "host": "localhost", "heart-beat": "2000,500"})
    sends, wants = map(int, client.expect("CONNECTED")["heart-beat"].split(","))
    assert sends > 0
    assert wants > 0
    client.close()


def test_the_broker_beats(broker):
    client = wire.Client(broker.address, connect=False)
    client.frame("CONNECT", {"accept-version": "1.2", "host": "localhost", "heart-beat": "0,300"})
    client.expect("CONNECTED")
    client.socket.settimeout(3)
    beats, until = 0, time.monotonic() + 2
    while time.monotonic() < until:
        data = client.socket.recv(100)
        assert set(data) <= {10, 13}
        beats += 1
    assert beats >= 3
    client.close()


def test_a_silent_client_is_dropped(broker, queue):
    client = wire.Client(broker.address, heart_beat="300,0")
    client.subscribe(queue, ack="client-individual")
    with wire.Client(broker.address) as other:
        other.send(queue, "x")
        client.message()
        until = time.monotonic() + 20
        with pytest.raises((ConnectionError, OSError)):
            while time.monotonic() < until:
                client.read(1)
        other.subscribe(queue)
        assert other.message()["redelivered"] == "true"


def test_a_beating_client_lives(broker, queue):
    with Session(broker, "1.2", heartbeats=(400, 400)) as session:
        session.subscribe(queue)
        time.sleep(3)
        assert not session.heard.heart_beat_lost.is_set()
        assert not session.heard.disconnected.is_set()
        session.send(queue, "still here")
        assert session.bodies(1) == [b"still here"]


def test_no_heart_beats_unless_asked_for(broker):
    client = wire.Client(broker.address)
    assert client.connected.get("heart-beat", "0,0") == "0,0"
    client.socket.settimeout(1)
    with pytest.raises(TimeoutError):
        client.socket.recv(1)
    client.close()
