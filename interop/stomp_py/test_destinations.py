"""Temporary, wildcard and composite destinations; browsing."""

from harness import process, wire


def test_request_and_reply_over_a_temporary_queue(broker, queue):
    with wire.Client(broker.address) as asker, wire.Client(broker.address) as server:
        server.subscribe(queue)
        asker.subscribe("/temp-queue/answers", id="t")
        asker.send(queue, "question", reply_to="/temp-queue/answers", correlation_id="42")
        question = server.message()
        assert question["reply-to"].startswith("/remote-temp-queue/")
        server.send(question["reply-to"], "answer", correlation_id=question["correlation-id"])
        answer = asker.message()
        assert answer.text == "answer"
        assert answer["correlation-id"] == "42"
        assert answer["destination"] == "/temp-queue/answers"


def test_request_and_reply_over_a_temporary_topic(broker, queue):
    with wire.Client(broker.address) as asker, wire.Client(broker.address) as server:
        server.subscribe(queue)
        asker.subscribe("/temp-topic/answers", id="t")
        asker.send(queue, "question", reply_to="/temp-topic/answers")
        server.send(server.message()["reply-to"], "answer")
        assert asker.message().text == "answer"


def test_temporary_names_are_private_to_a_connection(broker):
    with wire.Client(broker.address) as one, wire.Client(broker.address) as two:
        one.subscribe("/temp-queue/same", id="t")
        two.subscribe("/temp-queue/same", id="t")
        one.send("/temp-queue/same", "mine")
        assert one.message().text == "mine"
        two.silence()


def test_a_temporary_queue_ends_with_its_connection(broker, queue):
    with wire.Client(broker.address) as server:
        server.subscribe(queue)
        asker = wire.Client(broker.address)
        asker.subscribe("/temp-queue/answers", id="t")
        asker.send(queue, "question", reply_to="/temp-queue/answers")
        reply_to = server.message()["reply-to"]
        asker.disconnect()
        server.frame("SEND", {"destination": reply_to, "receipt": "late"}, b"too late")
        # An answer to nobody is refused or dropped; either way the connection goes on.
        frame = server.read(10)
        assert frame.command in ("ERROR", "RECEIPT")
    with wire.Client(broker.address) as client:
        client.send(queue, "next")


def test_wildcards_of_topics(broker, topic):
    with wire.Client(broker.address) as client, wire.Client(broker.address) as sender:
        client.subscribe(f"{topic}.*.end", id="star")
        client.subscribe(f"{topic}.a.>", id="rest")
        for name in ("a.end", "b.end", "a", "a.x.y", "b.x.end"):
            sender.send(f"{topic}.{name}", name)
        got = sorted((message["subscription"], message.text) for message in client.messages(5))
        # `>` matches no further element as well.
        assert got == [("rest", "a"), ("rest", "a.end"), ("rest", "a.x.y"), ("star", "a.end"), ("star", "b.end")]
        client.silence()


def test_wildcards_of_queues_find_old_and_new_ones(broker, queue):
    with wire.Client(broker.address) as client:
        client.send(f"{queue}.old", "1")
        client.subscribe(f"{queue}.*")
        assert client.message().text == "1"
        client.send(f"{queue}.new", "2")
        message = client.message()
        assert message.text == "2"
        assert message["destination"] == f"{queue}.new"


def test_a_composite_send_reaches_all(broker, queue, topic):
    with wire.Client(broker.address) as client, wire.Client(broker.address) as sender:
        client.subscribe(f"{queue}.a", id="a")
        client.subscribe(f"{queue}.b", id="b")
        client.subscribe(f"{topic}", id="t")
        sender.send(f"{queue}.a,{queue}.b,{topic}", "to all")
        got = client.messages(3)
        assert sorted(message["subscription"] for message in got) == ["a", "b", "t"]
        assert {message.text for message in got} == {"to all"}


def test_a_composite_consumer_takes_from_all(broker, queue):
    with wire.Client(broker.address) as client:
        client.send(f"{queue}.a", "1")
        client.send(f"{queue}.b", "2")
        client.subscribe(f"{queue}.a,{queue}.b")
        assert sorted(message.text for message in client.messages(2)) == ["1", "2"]


def test_a_browser_sees_everything_in_order_takes_nothing_and_ends(broker, queue):
    with wire.Client(broker.address) as client:
        for number in range(5):
            client.send(queue, f"m{number}")
        client.subscribe(queue, id="look", browser="true", ack="client")
        got = client.messages(5)
        assert [message.text for message in got] == [f"m{number}" for number in range(5)]
        end = client.message()
        assert end["browser"] == "end"
        assert end["subscription"] == "look"
        client.unsubscribe(id="look")
        client.subscribe(queue, id="take")
        again = client.messages(5)
        assert [message["message-id"] for message in again] == [message["message-id"] for message in got]


def test_a_browser_with_a_selector(broker, queue):
    with wire.Client(broker.address) as client:
        for number in range(5):
            client.send(queue, f"m{number}", n=number)
        client.subscribe(queue, browser="true", ack="client", selector="n >= 3")
        assert [message.text for message in client.messages(2)] == ["m3", "m4"]
        assert client.message()["browser"] == "end"


def test_browsing_an_empty_queue_ends_at_once(broker, queue):
    with wire.Client(broker.address) as client:
        client.subscribe(queue, browser="true", ack="client")
        assert client.message()["browser"] == "end"


def test_names_with_other_characters(broker, queue):
    for name in ("naïve.日本", "With:Colons and spaces", "slash/in/it", "per%cent&<>\"'"):
        with wire.Client(broker.address) as client:
            client.send(f"{queue}.{name}", "x")
            client.subscribe(f"{queue}.{name}")
            assert client.message()["destination"] == f"{queue}.{name}"


def test_ten_thousand_queues(own_broker, queue):
    if process.is_activemq():
        return
    with wire.Client(own_broker.address, timeout=60) as client:
        for number in range(10_000):
            client.frame("SEND", {"destination": f"{queue}.{number}", "persistent": "true"}, b"x")
        client.send(f"{queue}.last", "x")
        client.subscribe(f"{queue}.>", activemq__prefetchSize=20_000)
        client.messages(10_001)
