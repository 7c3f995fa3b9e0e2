"""Both ways: ActiveMQ opens what we wrote and delivers the same; then we open what it left."""

import json
import time

import pytest
from harness import drain, fixtures, java, process, recovered, wire

#: Small, so that several files roll.
FILE_BYTES = 1 << 20
YEAR_MS = 365 * 24 * 3_600_000
SUBSCRIPTIONS = [
    ("client-1", "plain", "PRICES.EU", None),
    ("client:2", "sel:ected", "PRICES.EU", "n >= 10"),
    ("client-3", "offline", "PRICES.EU", None),
    ("client-4", "wild", "PRICES.>", None),
    ("client-5", "removed", "PRICES.EU", None),
]
#: What a JMS client can compare of what it receives.
SEEN_BY_JMS = [
    "messageId", "class", "priority", "persistent", "timestamp", "expiration", "type", "correlationId", "replyTo",
    "groupId", "groupSequence", "destination", "contentLength", "contentSha256", "textUtf8Sha256", "compressed",
    "redeliveryCounter", "originalDestination", "properties",
]  # fmt: skip


def subscribe(broker, client_id, name, topic, selector):
    client = wire.Client(broker.address, client_id=client_id)
    headers = {"activemq.subscriptionName": name, **({"selector": selector} if selector else {})}
    client.subscribe(f"/topic/{topic}", ack="client-individual", activemq__prefetchSize=1000, **headers)
    return client


def fill(broker):
    """Something of everything. Returns connections with open work, for those who want to kill."""
    for one in SUBSCRIPTIONS:
        subscribe(broker, *one).disconnect()
    client = wire.Client(broker.address)
    for number in range(60):
        headers = {"index": number, "name": f"vé中🚀-{number}", "priority": number % 10, "empty": ""}
        if number % 5 == 0:
            headers |= {"correlation_id": f"corr-{number}", "type": f"kind.{number}", "reply_to": "/queue/ANSWERS"}
        if number % 7 == 0:
            headers |= {"expires": int(time.time() * 1000) + YEAR_MS, "JMSXGroupID": f"g{number % 3}", "JMSXGroupSeq": number}
        body = f"text ü✓🚀 {number}" if number % 2 else bytes((number * k) % 256 for k in range(number * 37 % 900))
        client.send("/queue/ORDERS.IN", body, content_length=number % 2 == 0, **headers)
    client.send("/queue/ORDERS.IN", "x" * 70_000, content_length=False)
    client.send("/queue/ORDERS.IN", "", content_length=False)
    client.send("/queue/ORDERS.IN", "volatile", persistent=False)
    for name in ("PRIO.JOBS", "naïve.日本", "A.Very-Long_Name/With:Colons and spaces"):
        for number in range(12):
            client.send(f"/queue/{name}", f"{name}#{number}", content_length=False, priority=number * 7 % 10)

    client.subscribe("/queue/ORDERS.IN", id="front", ack="client-individual", activemq__prefetchSize=10)
    for message in client.messages(10):
        client.ack(message)
    client.unsubscribe(id="front")
    client.subscribe("/queue/ORDERS.IN", id="middle", ack="client-individual", selector="index BETWEEN 30 AND 37")
    for message in client.messages(8):
        client.ack(message)
    client.unsubscribe(id="middle")

    for number in range(5):
        client.send("/queue/DRAINED", f"gone {number}")
    client.subscribe("/queue/DRAINED", id="drain")
    client.messages(5)
    client.unsubscribe(id="drain")

    for number in range(20):
        client.send("/topic/PRICES.EU", f"price {number}", n=number, priority=number % 10)
    client.send("/topic/PRICES.US", "another topic")
    client.send("/topic/NOBODY", "heard by nobody")
    with subscribe(broker, *SUBSCRIPTIONS[0]) as owner:
        got = owner.messages(20)
        for message in [*got[:6], got[9]]:
            owner.ack(message)
        owner.disconnect()
    with wire.Client(broker.address, client_id="client-5") as owner:
        owner.unsubscribe(**{"activemq.subscriptionName": "removed"})
        owner.disconnect()

    for number in range(10):
        client.send("/queue/TX.SRC", f"source {number}")
    client.begin("yes")
    for number in range(5):
        client.send("/queue/TX.DST", f"committed {number}", content_length=False, transaction="yes")
    client.send("/topic/PRICES.EU", "committed price", transaction="yes", n=99)
    client.subscribe("/queue/TX.SRC", id="tx", ack="client-individual", activemq__prefetchSize=3)
    taken = client.messages(3)
    client.ack(taken[0], transaction="yes")
    client.ack(taken[1], transaction="yes")
    client.commit("yes")
    client.begin("no")
    client.send("/queue/TX.DST", "rolled back", transaction="no")
    client.ack(taken[2], transaction="no")
    client.abort("no")
    client.send("/queue/TX.DST", "after the transactions")
    client.unsubscribe(id="tx")

    client.send("/queue/POISON", "bad")
    client.subscribe("/queue/POISON", id="poison", ack="client-individual")
    client.nack(client.message())

    client.send("/queue/KEEP", "holds the first files")
    for number in range(100):
        client.send("/queue/BULK", f"{number:05}" * 12_000, index=number, content_length=number % 2 == 0)
    client.subscribe("/queue/BULK", id="bulk", ack="client-individual")
    for message in client.messages(100)[:85]:
        client.ack(message)
    client.unsubscribe(id="bulk")

    client.subscribe("/queue/TX.SRC", id="in flight", ack="client-individual")
    client.message(subscription="in flight")
    client.begin("open")
    client.send("/queue/TX.DST", "never committed", transaction="open")
    return [client]


def filled(directory, how):
    """A directory that we wrote, after SIGTERM or kill -9; returns what inspect says of it."""
    with process.kahawai(directory, "--journal-file-bytes", FILE_BYTES) as broker:
        clients = fill(broker)
        if how == "kill -9":
            broker.kill()
        else:
            assert broker.stop() == 0
        for client in clients:
            client.close()
    assert len(list(directory.glob("db-*.log"))) > 3, "no files have rolled"
    return recovered.inspect(directory)


def original(directory, target, **options):
    """What ActiveMQ recovers from a copy."""
    copy = fixtures.copy(directory, target)
    (copy / "lock").unlink(missing_ok=True)
    return java.dump(copy, target.with_suffix(".json"), **options)


def client(broker, out, *actions):
    """Runs the JMS client against a running ActiveMQ."""
    java.run("Client", out, broker.ports["openwire"][1], *actions)
    return json.loads(out.read_text())


def seen(messages):
    return [{key: message[key] for key in SEEN_BY_JMS if key in message} for message in messages]


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
def test_the_filled_directory_is_what_was_sent(tmp_path, how):
    """So that the tests below compare something."""
    found = recovered.by_destination(filled(tmp_path / "store", how))
    counts = {name: entry["count"] for name, entry in found.items() if entry["count"]}
    assert counts == {
        "queue://ORDERS.IN": 60 + 2 - 10 - 8,
        "queue://PRIO.JOBS": 12,
        "queue://naïve.日本": 12,
        "queue://A.Very-Long_Name/With:Colons and spaces": 12,
        "topic://PRICES.EU": 21,
        "topic://PRICES.US": 1,
        "queue://TX.SRC": 8,
        "queue://TX.DST": 6,
        "queue://ActiveMQ.DLQ": 1,
        "queue://KEEP": 1,
        "queue://BULK": 15,
    }
    pending = {
        (one["clientId"], entry["destination"]): one["pendingCount"]
        for entry in found.values()
        for one in entry.get("subscriptions", [])
    }
    assert pending == {
        ("client-1", "topic://PRICES.EU"): 14,
        ("client:2", "topic://PRICES.EU"): 11,
        ("client-3", "topic://PRICES.EU"): 21,
        ("client-4", "topic://PRICES.EU"): 21,
        ("client-4", "topic://PRICES.US"): 1,
    }


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
def test_activemq_recovers_the_same_from_our_directory(tmp_path, how):
    ours = filled(tmp_path / "store", how)
    theirs = original(tmp_path / "store", tmp_path / "copy", len=FILE_BYTES)
    recovered.check(recovered.live(theirs), recovered.live(ours))


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
def test_activemq_delivers_the_same_to_its_own_client(tmp_path, how):
    ours = recovered.live(filled(tmp_path / "store", how))
    queues, durables = [], []
    for entry in ours["destinations"]:
        name = entry["destination"].split("://", 1)[1]
        if entry["destination"].startswith("queue://"):
            queues.append((f"receive|{name}|{entry['count']}", entry["messages"]))
        by_id = {message["messageId"]: message for message in entry["messages"]}
        for one in entry.get("subscriptions", []):
            topic = one["subscribedDestination"].removeprefix("topic://")
            action = f"receiveDurable|{one['clientId']}|{one['subscriptionName']}|{topic}|{one['selector'] or ''}"
            durables.append((action, [by_id[identity] for identity in recovered.unacked(one)]))
    # A wildcard subscription gathers over several topics, and is received once.
    wild = [action for action, _ in durables if "PRICES.>" in action][0]
    together = [message for action, messages in durables if action == wild for message in messages]
    durables = [one for one in durables if one[0] != wild]
    expected = dict([*queues, *((f"{action}|{len(messages)}", messages) for action, messages in durables)])
    actions = [*expected, f"{wild}|{len(together)}"]
    with process.activemq(tmp_path / "store", len=FILE_BYTES) as broker:
        got = client(broker, tmp_path / "got.json", *actions)
        broker.stop()
    for action, messages in expected.items():
        assert seen(got[action]) == seen(messages), action
    key = lambda message: message["messageId"]
    assert sorted(seen(got[actions[-1]]), key=key) == sorted(seen(together), key=key)
    left = recovered.inspect(tmp_path / "store")
    assert [entry["destination"] for entry in left["destinations"] if entry["count"]] == []


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
def test_we_open_what_activemq_left_in_our_directory(tmp_path, how):
    store = tmp_path / "store"
    filled(store, "SIGTERM")
    with process.activemq(store, len=FILE_BYTES) as broker:
        client(
            broker,
            tmp_path / "out.json",
            "take|ORDERS.IN|7",
            "send|ORDERS.IN|20",
            "send|NEW|9",
            "send|PRIO.JOBS|12",
            "commit|TX.SRC|TX.DST|3",
            "rollback|TX.SRC|TX.DST|2",
            "takeDurable|client-1|plain|PRICES.EU||4",
            "publish|PRICES.EU|6",
            "unsubscribe|client-3|offline",
            "take|BULK|15",
            "xaPrepare|global-1|XA.WORK|3",
            "send|LAST|1",
        )
        broker.kill() if how == "kill -9" else broker.stop()
    theirs = original(store, tmp_path / "copy", len=FILE_BYTES)
    assert [one["globalTransactionIdHex"] for one in theirs["inDoubtXa"]] == [b"global-1".hex()]
    before = fixtures.picture(store)
    ours = recovered.inspect(store)
    assert fixtures.picture(store) == before
    recovered.check(recovered.live(theirs), recovered.live(ours))
    with process.kahawai(store, "--journal-file-bytes", FILE_BYTES) as broker:
        drain.everything(broker.address, ours)
        assert broker.stop() == 0
    left = recovered.inspect(store)
    assert [entry["destination"] for entry in left["destinations"] if entry["count"] and "subscriptions" not in entry] == []
    assert [one["globalTransactionIdHex"] for one in left["inDoubtXa"]] == [b"global-1".hex()]
    # And back once more: the transaction that it prepared has come through us unharmed.
    with process.activemq(store, len=FILE_BYTES) as broker:
        got = client(broker, tmp_path / "got.json", "recover", "xaCommit|global-1", "receive|XA.WORK|3")
        broker.stop()
    assert [one["globalTransactionIdHex"] for one in got["inDoubt"]] == [b"global-1".hex()]
    assert recovered.inspect(store)["inDoubtXa"] == []


@pytest.mark.parametrize("how", ["SIGTERM", "kill -9"])
@pytest.mark.parametrize("name", ["xa-prepared-clean", "transactions-crash"])
def test_prepared_transactions_come_through_us(tmp_path, name, how):
    store = fixtures.unpack(name, tmp_path / "fixture") / "kahadb"
    expected = fixtures.expected(name)["recovered"]
    with process.kahawai(store) as broker:
        with wire.Client(broker.address) as sender:
            sender.send("/queue/TX.DST", "sent meanwhile", content_length=False)
        broker.kill() if how == "kill -9" else broker.stop()
    theirs = original(store, tmp_path / "copy")
    recovered.check({**expected, "destinations": []}, {**theirs, "destinations": []})
    with process.activemq(store) as broker:
        got = client(
            broker, tmp_path / "out.json", "recover", "xaCommit|global-undecided-1", "xaRollback|global-undecided-2"
        )
        broker.kill() if how == "kill -9" else broker.stop()
    assert len(got["inDoubt"]) == 3
    ours = recovered.inspect(store)
    recovered.check({**expected, "destinations": [], "inDoubtXa": expected["inDoubtXa"][2:]}, {**ours, "destinations": []})
    first = expected["inDoubtXa"][0]
    entries = recovered.by_destination(ours)
    before = recovered.by_destination(expected)
    sent = recovered.ids(entries["queue://TX.DST"])
    assert sent[:11] == recovered.ids(before["queue://TX.DST"])
    assert sent[12:] == [message["messageId"] for message in first["adds"]]
    acked = {ack["messageId"] for ack in first["acks"]}
    assert recovered.ids(entries["queue://TX.SRC"]) == recovered.ids(before["queue://TX.SRC"])
    assert acked.isdisjoint(recovered.ids(entries["queue://TX.SRC"]))


@pytest.mark.parametrize("times", [3])
def test_a_directory_may_change_hands_again_and_again(tmp_path, times):
    store = tmp_path / "store"
    sent = []
    for number in range(times):
        with process.kahawai(store) as broker, wire.Client(broker.address) as sender:
            for part in range(5):
                sender.send("/queue/TURNS", f"ours {number}.{part}", content_length=False)
            sender.subscribe("/queue/TURNS", ack="client-individual", activemq__prefetchSize=2)
            one = sender.message()
            sender.ack(one)
            broker.kill() if number % 2 else broker.stop()
        with process.activemq(store) as broker:
            client(broker, tmp_path / "out.json", "take|TURNS|1", "send|TURNS|4")
            broker.stop() if number % 2 else broker.kill()
        theirs = original(store, tmp_path / f"copy{number}")
        ours = recovered.inspect(store)
        recovered.check(recovered.live(theirs), recovered.live(ours), f"turn {number}: ")
        sent.append(recovered.by_destination(ours)["queue://TURNS"]["count"])
    assert sent == [7 * (number + 1) for number in range(times)]
