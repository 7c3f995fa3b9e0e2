"""Local transactions."""

import pytest
from harness import wire
from session import Session


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_sends_become_visible_at_commit_together(broker, queue, version):
    with Session(broker, version) as session, wire.Client(broker.address) as consumer:
        consumer.subscribe(queue)
        session.receipt(session.connection.begin, transaction="t1")
        for number in range(3):
            session.send(queue, f"m{number}", transaction="t1")
        consumer.silence()
        session.receipt(session.connection.commit, transaction="t1")
        assert [message.text for message in consumer.messages(3)] == ["m0", "m1", "m2"]


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_aborted_sends_never_appear(broker, queue, version):
    with Session(broker, version) as session:
        session.receipt(session.connection.begin, transaction="t1")
        session.send(queue, "rolled back", transaction="t1")
        session.receipt(session.connection.abort, transaction="t1")
        session.send(queue, "outside")
        session.subscribe(queue)
        assert session.bodies(1) == [b"outside"]
        session.silence()


def test_acks_of_a_transaction_count_at_commit(broker, queue):
    with wire.Client(broker.address) as sender:
        for number in range(4):
            sender.send(queue, f"m{number}")
    with wire.Client(broker.address) as client:
        client.subscribe(queue, ack="client-individual")
        got = client.messages(4)
        client.begin("yes")
        client.ack(got[0], transaction="yes")
        client.ack(got[2], transaction="yes")
        client.commit("yes")
        client.begin("no")
        client.ack(got[1], transaction="no")
        client.abort("no")
    with wire.Client(broker.address) as client:
        client.subscribe(queue)
        assert [message.text for message in client.messages(2)] == ["m1", "m3"]
        client.silence()


def test_a_transaction_moves_a_message_from_queue_to_queue(own_broker, queue):
    target = queue + ".target"
    with wire.Client(own_broker.address) as client:
        client.send(queue, "moved")
        client.subscribe(queue, ack="client-individual")
        message = client.message()
        client.begin("t")
        client.ack(message, transaction="t")
        client.send(target, message.body, transaction="t")
        client.commit("t")
        own_broker.kill()
    own_broker.start()
    with wire.Client(own_broker.address) as client:
        client.subscribe(queue, id="from")
        client.subscribe(target, id="to")
        assert client.message()["destination"] == target
        client.silence()


@pytest.mark.parametrize("end", ["disconnect", "drop", "kill -9"])
def test_an_open_transaction_ends_with_its_connection(own_broker, queue, end):
    client = wire.Client(own_broker.address)
    client.send(queue, "first")
    client.begin("t")
    client.send(queue, "never", transaction="t")
    match end:
        case "disconnect":
            client.disconnect()
        case "drop":
            client.close()
        case _:
            own_broker.kill()
            own_broker.start()
    with wire.Client(own_broker.address) as other:
        other.subscribe(queue)
        assert other.message().text == "first"
        other.silence()
    client.close()


def test_several_transactions_are_independent(broker, queue):
    with wire.Client(broker.address) as client:
        client.begin("a")
        client.begin("b")
        client.send(queue, "a1", transaction="a")
        client.send(queue, "b1", transaction="b")
        client.send(queue, "a2", transaction="a")
        client.commit("b")
        client.commit("a")
        client.subscribe(queue)
        assert [message.text for message in client.messages(3)] == ["b1", "a1", "a2"]


def test_a_name_can_be_used_again(broker, queue):
    with wire.Client(broker.address) as client:
        for number in range(3):
            client.begin("t")
            client.send(queue, f"m{number}", transaction="t")
            client.commit("t")
        client.subscribe(queue)
        assert [message.text for message in client.messages(3)] == ["m0", "m1", "m2"]


@pytest.mark.parametrize("command", ["COMMIT", "ABORT"])
def test_ending_an_unknown_transaction_is_an_error(broker, command):
    with wire.Client(broker.address) as client:
        client.frame(command, {"transaction": "nowhere", "receipt": "r"})
        assert client.expect("ERROR")["receipt-id"] == "r"


def test_a_send_in_an_unknown_transaction_is_an_error_and_not_sent(broker, queue):
    with wire.Client(broker.address) as client:
        client.frame("SEND", {"destination": queue, "transaction": "nowhere", "receipt": "r"}, b"x")
        assert client.expect("ERROR")["receipt-id"] == "r"
    with wire.Client(broker.address) as client:
        client.subscribe(queue)
        client.silence()
