"""Selectors over STOMP: headers are texts, and are compared with numbers as numbers."""

import pytest
from harness import wire

MESSAGES = [
    {"name": "a", "size": "5", "color": "red"},
    {"name": "b", "size": "15", "color": "blue", "note": "it's"},
    {"name": "c", "size": "25", "color": "red", "note": "100%"},
    {"name": "d", "color": "green"},
]
CASES = [
    ("color = 'red'", "ac"),
    ("color <> 'red'", "bd"),
    ("size > 10", "bc"),
    ("size BETWEEN 5 AND 15", "ab"),
    ("size IS NULL", "d"),
    ("size IS NOT NULL AND color = 'red'", "ac"),
    ("NOT (size > 10)", "a"),
    ("color IN ('red', 'green')", "acd"),
    ("color NOT IN ('red', 'green')", "b"),
    ("name LIKE '_' AND color LIKE 'r%'", "ac"),
    ("note = 'it''s'", "b"),
    ("note LIKE '100|%' ESCAPE '|'", "c"),
    ("size > 10 OR color = 'green'", "bcd"),
    ("JMSPriority > 4 AND color = 'red'", "c"),
    ("JMSCorrelationID = 'corr-b'", "b"),
    ("JMSType LIKE 'kind%'", "abcd"),
]


@pytest.mark.parametrize(("selector", "expected"), CASES, ids=[str(number) for number in range(len(CASES))])
def test_a_selector_picks(broker, queue, selector, expected):
    with wire.Client(broker.address) as client:
        for headers in MESSAGES:
            jms = {"priority": 9 if headers["name"] == "c" else 4, "correlation_id": f"corr-{headers['name']}", "type": "kind.x"}
            client.send(queue, headers["name"], **headers, **jms)
        client.subscribe(queue, selector=selector)
        assert "".join(sorted(message.text for message in client.messages(len(expected)))) == expected
        client.silence(0.15)


def test_what_no_selector_picks_waits_for_others(broker, queue):
    with wire.Client(broker.address) as picky, wire.Client(broker.address) as other:
        picky.subscribe(queue, selector="color = 'red'")
        other.send(queue, "blue", color="blue")
        other.send(queue, "red", color="red")
        assert picky.message().text == "red"
        other.subscribe(queue)
        assert other.message().text == "blue"
        picky.silence(0.1)
        other.silence(0.1)


@pytest.mark.parametrize("selector", ["color =", "(((", "color = 'red", "1 +", "LIKE"])
def test_nonsense_is_refused(broker, queue, selector):
    with wire.Client(broker.address) as client:
        client.frame("SUBSCRIBE", {"destination": queue, "id": "1", "selector": selector, "receipt": "r"})
        assert client.expect("ERROR")["receipt-id"] == "r"
    with wire.Client(broker.address) as client:
        client.send(queue, "x")
        client.subscribe(queue)
        assert client.message().text == "x"
