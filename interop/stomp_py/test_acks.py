"""Acknowledgement, redelivery, dead letters."""

import pytest
from harness import wire
from session import Session

ALL = ["1.0", "1.1", "1.2"]


def fill(broker, queue, count):
    with wire.Client(broker.address) as client:
        for number in range(count):
            client.send(queue, f"m{number}", content_length=False)
        client.disconnect()


def left(broker, queue):
    """What a new consumer gets, in order, without consuming it."""
    with wire.Client(broker.address) as client:
        client.subscribe(queue, ack="client", activemq__prefetchSize=1000)
        got = []
        while True:
            try:
                got.append(client.message(timeout=0.4).text)
            except AssertionError:
                return got


@pytest.mark.parametrize("version", ALL)
def test_auto_consumes_at_delivery(broker, queue, version):
    fill(broker, queue, 3)
    with Session(broker, version) as session:
        session.subscribe(queue)
        assert session.bodies(3) == [b"m0", b"m1", b"m2"]
    assert left(broker, queue) == []


@pytest.mark.parametrize("version", ALL)
def test_client_acknowledges_everything_before_too(broker, queue, version):
    fill(broker, queue, 5)
    with Session(broker, version) as session:
        session.subscribe(queue, ack="client")
        got = [session.message() for _ in range(5)]
        session.ack(got[2])
    assert left(broker, queue) == ["m3", "m4"]


@pytest.mark.parametrize("version", ALL)
def test_client_individual_acknowledges_one(broker, queue, version):
    fill(broker, queue, 5)
    with Session(broker, version) as session:
        session.subscribe(queue, ack="client-individual")
        got = [session.message() for _ in range(5)]
        session.ack(got[1])
        session.ack(got[3])
    assert left(broker, queue) == ["m0", "m2", "m4"]


@pytest.mark.parametrize("end", ["disconnect", "drop", "unsubscribe"])
def test_what_is_not_acknowledged_comes_again(broker, queue, end):
    fill(broker, queue, 3)
    first = wire.Client(broker.address)
    first.subscribe(queue, ack="client-individual")
    got = first.messages(3)
    assert [message.get("redelivered") for message in got] == [None] * 3
    first.ack(got[1])
    match end:
        case "disconnect":
            first.disconnect()
        case "drop":
            first.close()
        case "unsubscribe":
            first.unsubscribe()
    with wire.Client(broker.address) as second:
        second.subscribe(queue, ack="client-individual")
        again = second.messages(2)
        assert [(message.text, message.get("redelivered")) for message in again] == [("m0", "true"), ("m2", "true")]
        assert [message["message-id"] for message in again] == [got[0]["message-id"], got[2]["message-id"]]
        second.silence()
    first.close()


def test_prefetch_bounds_what_is_in_flight(broker, queue):
    fill(broker, queue, 5)
    with wire.Client(broker.address) as client:
        client.subscribe(queue, ack="client-individual", activemq__prefetchSize=2)
        one, two = client.messages(2)
        client.silence()
        client.ack(one)
        three = client.message()
        client.silence()
        client.ack(three)
        client.ack(two)
        assert [message.text for message in client.messages(2)] == ["m3", "m4"]


def test_competing_consumers_share_and_nothing_comes_twice(broker, queue):
    clients = [wire.Client(broker.address) for _ in range(3)]
    for client in clients:
        client.subscribe(queue, ack="client-individual", activemq__prefetchSize=1)
    fill(broker, queue, 60)
    got = []
    idle = 0
    while len(got) < 60 and idle < 30:
        idle += 1
        for client in clients:
            try:
                message = client.message(timeout=0.05)
            except AssertionError:
                continue
            idle = 0
            got.append((client, message.text))
            client.ack(message)
    assert sorted(text for _, text in got) == sorted(f"m{number}" for number in range(60))
    shares = [sum(1 for who, _ in got if who is client) for client in clients]
    assert min(shares) >= 10, shares
    for client in clients:
        client.close()


def test_a_receipt_of_an_ack_means_it_is_kept(own_broker, queue):
    fill(own_broker, queue, 3)
    with wire.Client(own_broker.address) as client:
        client.subscribe(queue, ack="client-individual")
        client.ack(client.messages(3)[1])
        own_broker.kill()
    own_broker.start()
    assert left(own_broker, queue) == ["m0", "m2"]


@pytest.mark.parametrize("version", ["1.1", "1.2"])
def test_nack_moves_a_message_to_the_dead_letter_queue(own_broker, queue, version):
    fill(own_broker, queue, 2)
    with Session(own_broker, version) as session:
        session.subscribe(queue, ack="client-individual")
        bad = session.message()
        session.nack(bad)
        session.ack(session.message())
    assert left(own_broker, queue) == []
    with wire.Client(own_broker.address) as client:
        client.subscribe("/queue/ActiveMQ.DLQ", ack="client-individual")
        dead = client.message()
        assert dead.text == "m0"
        assert dead["destination"] == "/queue/ActiveMQ.DLQ"
        assert dead["original-destination"] == queue
        client.silence()


def test_a_non_persistent_message_does_not_become_a_dead_letter(own_broker, queue):
    with wire.Client(own_broker.address) as client:
        client.send(queue, "fleeting", persistent=False)
        client.subscribe(queue, ack="client-individual")
        client.nack(client.message())
        client.subscribe("/queue/ActiveMQ.DLQ", id="dlq")
        client.silence()


def test_an_ack_of_something_unknown_is_an_error(broker, queue):
    with wire.Client(broker.address) as client:
        client.subscribe(queue, ack="client-individual")
        client.frame("ACK", {"id": "no-such-ack", "receipt": "r"})
        error = client.expect("ERROR")
        assert error["receipt-id"] == "r"


def test_exclusive_consumer_gets_everything(broker, queue):
    with wire.Client(broker.address) as first, wire.Client(broker.address) as second:
        first.subscribe(queue, activemq__exclusive="true", ack="client-individual", activemq__prefetchSize=1)
        second.subscribe(queue, activemq__exclusive="true")
        fill(broker, queue, 4)
        for number in range(4):
            message = first.message()
            assert message.text == f"m{number}"
            first.ack(message)
        second.silence()


def test_a_consumer_of_higher_priority_is_served_first(broker, queue):
    with wire.Client(broker.address) as low, wire.Client(broker.address) as high:
        low.subscribe(queue, activemq__priority="1")
        high.subscribe(queue, activemq__priority="9")
        fill(broker, queue, 4)
        assert [message.text for message in high.messages(4)] == ["m0", "m1", "m2", "m3"]
        low.silence()
