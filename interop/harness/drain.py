"""Taking everything out of a running broker over STOMP, against a list of what has to be there."""

import hashlib

from harness import recovered, wire


def everything(address, found):
    """Drains every queue and every durable subscription that STOMP can open, and compares."""
    with wire.Client(address) as client:
        for number, entry in enumerate(found["destinations"]):
            if entry["destination"].startswith("queue://"):
                queue(client, entry, number)
        client.disconnect()
    for key, one in subscriptions(found).items():
        # Another selector would be another subscription: STOMP's compare texts with numbers, and say so.
        if one["selector"] is None or one["selector"].startswith("convert_string_expressions:"):
            subscription(address, key, one)


def subscriptions(found):
    """Durable subscriptions by client and name, with what each has to get of which topic: a wildcard one has several."""
    all_of_them = {}
    for entry in found["destinations"]:
        for one in entry.get("subscriptions", []):
            key = (one["clientId"], one["subscriptionName"], one["subscribedDestination"] or entry["destination"])
            pending = all_of_them.setdefault(key, {**one, "pending": {}})["pending"]
            pending[entry["destination"]] = recovered.offered(found, entry["destination"], one)
    return all_of_them


def queue(client, entry, number):
    destination = "/queue/" + entry["destination"].removeprefix("queue://")
    client.subscribe(destination, id=number, ack="client-individual", activemq__prefetchSize=1000)
    got = client.messages(entry["count"], subscription=str(number))
    client.silence(0.2)
    assert [message["message-id"] for message in got] == recovered.ids(entry), entry["destination"]
    for message, listed in zip(got, entry["messages"], strict=True):
        same_message(message, listed)
        client.ack(message, receipt=False)
    client.unsubscribe(id=number)


def subscription(address, key, listed):
    client_id, name, destination = key
    headers = {"activemq.subscriptionName": name}
    if listed["noLocal"]:
        headers["activemq.noLocal"] = "true"
    if listed["selector"] is not None:
        headers["selector"] = listed["selector"].removeprefix("convert_string_expressions:")
    topic = destination.removeprefix("topic://")
    with wire.Client(address, client_id=client_id) as client:
        client.subscribe(f"/topic/{topic}", ack="client-individual", activemq__prefetchSize=1000, **headers)
        got = client.messages(sum(map(len, listed["pending"].values())))
        client.silence(0.2)
        for topic, pending in listed["pending"].items():
            name = "/topic/" + topic.removeprefix("topic://")
            assert [message["message-id"] for message in got if message["destination"] == name] == pending, key
        for message in got:
            client.ack(message, receipt=False)
        client.disconnect()


def as_listed(text):
    """The lists show what is beyond 16 bits as two replacement characters: that is how ActiveMQ prints a property."""
    return "".join(c if ord(c) < 0x10000 else "\ufffd\ufffd" for c in text)


def same_message(message, listed):
    """As far as STOMP shows it."""
    assert message["priority"] == str(listed["priority"])
    assert message["timestamp"] == str(listed["timestamp"])
    assert message["expires"] == str(listed["expiration"])
    assert message.get("type") == listed.get("type")
    assert message.get("correlation-id") == listed.get("correlationId")
    assert message.get("JMSXGroupID") == listed.get("groupId")
    for name, value in listed.get("properties", {}).items():
        shown = message[name]
        if isinstance(value["value"], bool):
            assert shown == str(value["value"]).lower()
        elif value["type"] in ("Float", "Double"):
            assert float(shown) == value["value"]
        else:
            assert as_listed(shown) == str(value["value"])
    digest = hashlib.sha256(message.body).hexdigest()
    if listed["class"] == "ActiveMQTextMessage" and listed["textUtf8Sha256"]:
        assert digest == listed["textUtf8Sha256"]
    elif listed["class"] == "ActiveMQBytesMessage" and not listed["compressed"]:
        assert digest == listed["contentSha256"]
