"""Topics and durable subscriptions."""

import contextlib
import threading

import pytest
from harness import wire
from session import Session


def durable(broker, topic, client_id="someone", name="sub", ack="auto", **headers):
    client = wire.Client(broker.address, client_id=client_id)
    client.subscribe(topic, ack=ack, **{"activemq.subscriptionName": name}, **headers)
    return client


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_every_subscriber_gets_every_message(broker, topic, version):
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(Session(broker, version)) for _ in range(4)]
        for session in sessions:
            session.subscribe(topic)
        for number in range(5):
            sessions[0].send(topic, f"m{number}")
        for session in sessions:
            assert session.bodies(5) == [b"m0", b"m1", b"m2", b"m3", b"m4"]


def test_a_late_subscriber_gets_only_what_is_later(broker, topic):
    with wire.Client(broker.address) as client:
        client.send(topic, "early")
        client.subscribe(topic)
        client.send(topic, "late")
        assert client.message().text == "late"
        client.silence()


def test_no_local_leaves_out_what_the_connection_sent(broker, topic):
    with wire.Client(broker.address) as here, wire.Client(broker.address) as there:
        here.subscribe(topic, activemq__noLocal="true")
        here.send(topic, "own")
        there.send(topic, "foreign")
        assert here.message().text == "foreign"
        here.silence()


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9", None])
def test_a_durable_subscription_gathers_while_its_owner_is_away(own_broker, topic, how):
    durable(own_broker, topic).disconnect()
    with wire.Client(own_broker.address) as sender:
        for number in range(5):
            sender.send(topic, f"m{number}")
        if how:
            own_broker.kill() if how == "kill -9" else own_broker.stop()
            own_broker.start()
    with durable(own_broker, topic, ack="client-individual") as owner:
        got = owner.messages(5)
        assert [message.text for message in got] == ["m0", "m1", "m2", "m3", "m4"]
        owner.ack(got[0])
        owner.ack(got[3])
        owner.disconnect()
    with durable(own_broker, topic, ack="client-individual") as owner:
        assert [message.text for message in owner.messages(3)] == ["m1", "m2", "m4"]
        owner.silence()


def test_durable_subscriptions_are_independent(broker, topic):
    for name in ("a", "b"):
        durable(broker, topic, client_id=f"{topic}-owner", name=name).disconnect()
    with wire.Client(broker.address) as sender:
        sender.send(topic, "one")
    with durable(broker, topic, client_id=f"{topic}-owner", name="a") as owner:
        assert owner.message().text == "one"
        owner.disconnect()
    with durable(broker, topic, client_id=f"{topic}-owner", name="a") as owner:
        owner.silence()
        owner.disconnect()
    with durable(broker, topic, client_id=f"{topic}-owner", name="b") as owner:
        assert owner.message().text == "one"


def test_unsubscribing_ends_a_durable_subscription(broker, topic):
    client_id = f"{topic}-owner"
    with durable(broker, topic, client_id=client_id) as owner:
        owner.unsubscribe()
        owner.unsubscribe(**{"activemq.subscriptionName": "sub"})
        owner.disconnect()
    with wire.Client(broker.address) as sender:
        sender.send(topic, "missed")
    with durable(broker, topic, client_id=client_id) as owner:
        owner.silence()


def test_a_changed_selector_makes_a_new_subscription(broker, topic):
    client_id = f"{topic}-owner"
    durable(broker, topic, client_id=client_id, selector="color = 'red'").disconnect()
    with wire.Client(broker.address) as sender:
        sender.send(topic, "red 1", color="red")
        sender.send(topic, "blue 1", color="blue")
    durable(broker, topic, client_id=client_id, selector="color = 'blue'").disconnect()
    with wire.Client(broker.address) as sender:
        sender.send(topic, "red 2", color="red")
        sender.send(topic, "blue 2", color="blue")
    with durable(broker, topic, client_id=client_id, selector="color = 'blue'") as owner:
        assert owner.message().text == "blue 2"
        owner.silence()


def test_a_durable_subscription_with_a_selector_keeps_only_what_matches(broker, topic):
    client_id = f"{topic}-owner"
    durable(broker, topic, client_id=client_id, selector="n > 2").disconnect()
    with wire.Client(broker.address) as sender:
        for number in range(6):
            sender.send(topic, f"m{number}", n=number)
    with durable(broker, topic, client_id=client_id, selector="n > 2") as owner:
        assert [message.text for message in owner.messages(3)] == ["m3", "m4", "m5"]
        owner.silence()


def test_a_client_id_is_used_by_one_connection_at_a_time(broker, topic):
    with durable(broker, topic, client_id=f"{topic}-owner"):
        second = wire.Client(broker.address, connect=False)
        second.frame("CONNECT", {"accept-version": "1.2", "host": "localhost", "client-id": f"{topic}-owner"})
        assert "already" in second.expect("ERROR")["message"].lower()
        second.close()


def test_a_client_id_is_free_once_disconnect_is_confirmed(broker, topic):
    failures = []

    def come_and_go(number):
        try:
            for _ in range(100):
                with durable(broker, topic, client_id=f"{topic}-{number}") as owner:
                    owner.disconnect()
        except wire.Refused as refused:
            failures.append(refused)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_wildcard_subscription_gathers_from_all_its_topics(broker, topic):
    client_id = f"{topic}-owner"
    durable(broker, f"{topic}.>", client_id=client_id).disconnect()
    with wire.Client(broker.address) as sender:
        sender.send(f"{topic}.a", "1")
        sender.send(f"{topic}.b.c", "2")
        sender.send(f"{topic}else", "no")
    with durable(broker, f"{topic}.>", client_id=client_id) as owner:
        assert sorted(message.text for message in owner.messages(2)) == ["1", "2"]
        owner.silence()


def test_a_retroactive_subscriber_may_see_earlier_messages_and_never_misses_later_ones(broker, topic):
    with wire.Client(broker.address) as client:
        client.send(topic, "early")
        client.subscribe(topic, activemq__retroactive="true")
        client.send(topic, "late")
        while (text := client.message().text) != "late":
            assert text == "early"
