"""What survives a stop and a kill."""

import pytest
from harness import process, wire


def stop(broker, how):
    if how == "SIGTERM":
        assert broker.stop() in (0, 143 if process.is_activemq() else 0)
    else:
        broker.kill()


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
def test_confirmed_messages_are_there_after_a_restart(own_broker, queue, how):
    with wire.Client(own_broker.address) as client:
        for number in range(50):
            client.send(queue, f"m{number}", index=number, priority=number % 10, correlation_id=f"c{number}")
        stop(own_broker, how)
    own_broker.start()
    with wire.Client(own_broker.address) as client:
        client.subscribe(queue)
        got = client.messages(50)
        assert [message.text for message in got] == [f"m{number}" for number in range(50)]
        assert [message["index"] for message in got] == [str(number) for number in range(50)]
        assert [message["priority"] for message in got] == [str(number % 10) for number in range(50)]
        assert [message["correlation-id"] for message in got] == [f"c{number}" for number in range(50)]
        client.silence()


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
def test_consumed_messages_stay_consumed(own_broker, queue, how):
    with wire.Client(own_broker.address) as client:
        for number in range(20):
            client.send(queue, f"m{number}")
        client.subscribe(queue, ack="client-individual")
        for message in client.messages(20)[::2]:
            client.ack(message)
        stop(own_broker, how)
    own_broker.start()
    with wire.Client(own_broker.address) as client:
        client.subscribe(queue)
        assert [message.text for message in client.messages(10)] == [f"m{number}" for number in range(1, 20, 2)]
        client.silence()


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
def test_message_ids_and_order_survive_several_restarts(own_broker, queue, how):
    ids = []
    for round_number in range(3):
        with wire.Client(own_broker.address) as client:
            for number in range(5):
                client.send(queue, f"{round_number}.{number}")
            client.subscribe(queue, ack="client", browser="true")
            got = client.messages((round_number + 1) * 5)
            assert [message["message-id"] for message in got][: len(ids)] == ids
            ids = [message["message-id"] for message in got]
            assert len(set(ids)) == len(ids)
        stop(own_broker, how)
        own_broker.start()


def test_non_persistent_messages_are_gone_after_a_restart(own_broker, queue):
    with wire.Client(own_broker.address) as client:
        client.send(queue, "fleeting", persistent=False)
        client.send(queue, "lasting")
    stop(own_broker, "SIGTERM")
    own_broker.start()
    with wire.Client(own_broker.address) as client:
        client.subscribe(queue)
        assert client.message().text == "lasting"
        client.silence()


def test_a_stop_under_load_ends_in_time_and_loses_nothing(own_broker, queue):
    with wire.Client(own_broker.address) as client:
        for number in range(3000):
            client.frame("SEND", {"destination": queue, "persistent": "true", "receipt": f"{number}"}, f"m{number}")
        for number in range(100):
            client.expect("RECEIPT", receipt_id=str(number))
        stop(own_broker, "SIGTERM")
        confirmed = 100
        try:
            while (frame := client.read(5)) is not None:
                confirmed += frame.command == "RECEIPT"
        except ConnectionError:
            pass
    own_broker.start()
    with wire.Client(own_broker.address) as client:
        client.subscribe(queue)
        for number in range(confirmed):
            assert client.message().text == f"m{number}"
