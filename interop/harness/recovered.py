"""What `kahawai store inspect --json` says, against what ActiveMQ recovers: the shape of `recovered` in expected.json."""

import json

from harness import process


def inspect(directory):
    """`kahawai store inspect DIR --json`."""
    done = process.run("store", "inspect", directory, "--json")
    assert done.returncode == 0, f"inspect ended with {done.returncode}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout)


def by_destination(recovered):
    return {entry["destination"]: entry for entry in recovered["destinations"]}


def ids(entry):
    return [message["messageId"] for message in entry["messages"]]


def live(recovered):
    """Destinations that hold something: an empty one may be forgotten or remembered."""
    return {
        **recovered,
        "destinations": [d for d in recovered["destinations"] if d["count"] or d.get("subscriptions")],
    }


def held(recovered, destination, subscription=None):
    """Messages that a prepared transaction has acknowledged: stored, and not offered."""
    return {
        ack["messageId"]
        for transaction in recovered["inDoubtXa"]
        for ack in transaction["acks"]
        if ack["destination"] == destination and ack["subscriptionKey"] == subscription
    }


def unacked(subscription):
    """What is unacknowledged. ActiveMQ re-offers more than that in a few known cases."""
    return subscription.get("unackedMessageIds", subscription["pendingMessageIds"])


def is_truth(subscription, pending):
    """Is this what is unacknowledged, of a subscription to which ActiveMQ re-offers what it had dropped?"""
    offered_by_activemq = iter(subscription["pendingMessageIds"])
    return len(pending) == subscription["pendingCount"] and all(one in offered_by_activemq for one in pending)


def offered(recovered, destination, subscription):
    """What a durable subscription has to be sent."""
    key = f"{subscription['clientId']}:{subscription['subscriptionName']}"
    hidden = held(recovered, destination, key)
    return [one for one in unacked(subscription) if one not in hidden]


def differences(expected, got):
    """Every difference as one line; no line = equal, but for the order of destinations and what ActiveMQ re-offers."""
    lines = []
    left, right = by_destination(expected), by_destination(got)
    lines += [f"{name} is missing" for name in left if name not in right]
    lines += [f"{name} is there and should not be" for name in right if name not in left]
    for name in sorted(set(left) & set(right)):
        lines += _destination(name, left[name], right[name], expected)
    lines += _in_doubt(expected["inDoubtXa"], got.get("inDoubtXa"))
    if "scheduledJobs" in expected:
        lines += _jobs(expected["scheduledJobs"], got.get("scheduledJobs"))
    return lines


def _destination(name, left, right, expected):
    lines = []
    if right["count"] != len(right["messages"]):
        lines.append(f"{name}: count is {right['count']}, {len(right['messages'])} messages are listed")
    if ids(left) != ids(right):
        lines.append(f"{name}: {_ids(ids(left), ids(right))}")
    found = {message["messageId"]: message for message in right["messages"]}
    for message in left["messages"]:
        lines += _fields(f"{name} {message['messageId']}", message, found.get(message["messageId"], message))
    if ("subscriptions" in left) != ("subscriptions" in right):
        return [*lines, f"{name}: `subscriptions` is in only one of them"]
    key = lambda one: f"{one['clientId']}:{one['subscriptionName']}"
    theirs = {key(one): one for one in left.get("subscriptions", [])}
    ours = {key(one): one for one in right.get("subscriptions", [])}
    if list(theirs) != list(ours):
        lines.append(f"{name}: subscriptions {list(theirs)} expected, {list(ours)} found")
    for one in sorted(set(theirs) & set(ours)):
        lines += _subscription(f"{name} {one}", name, theirs[one], ours[one], expected)
    return lines


def _subscription(what, destination, left, right, expected):
    """The facts about it exactly; what it is offered may be what upstream offers, or what is right."""
    lines = []
    for name in ("selector", "noLocal", "subscribedDestination", "pendingCount"):
        if name not in right or right[name] != left[name]:
            lines.append(f"{what}: {name} is {right.get(name)!r}, expected {left[name]!r}")
    may = [left["pendingMessageIds"], offered(expected, destination, left)]
    pending = right.get("pendingMessageIds") or []
    more_is_offered = "unackedMessageIds" not in left and is_truth(left, pending)
    if pending not in may and not more_is_offered:
        lines.append(f"{what}: pending {_ids(may[1], pending)}")
    if "unackedMessageIds" in left and right.get("unackedMessageIds") != left["unackedMessageIds"]:
        lines.append(f"{what}: unacked {_ids(left['unackedMessageIds'], right.get('unackedMessageIds') or [])}")
    return lines


def _in_doubt(left, right):
    if right is None:
        return ["`inDoubtXa` is missing"]
    key = lambda one: (one["formatId"], one["globalTransactionIdHex"], one["branchQualifierHex"])
    lines = []
    theirs, ours = ({key(one): one for one in side} for side in (left, right))
    if sorted(theirs) != sorted(ours):
        lines.append(f"in doubt: {sorted(theirs)} expected, {sorted(ours)} found")
    for one in sorted(set(theirs) & set(ours)):
        for part in ("adds", "acks"):
            if len(theirs[one][part]) != len(ours[one][part]):
                lines.append(f"in doubt {one}: {len(theirs[one][part])} {part} expected, {len(ours[one][part])} found")
            for a, b in zip(theirs[one][part], ours[one][part], strict=False):
                lines += _fields(f"in doubt {one} {part}", a, b)
    return lines


def _jobs(left, right):
    if right is None:
        return ["`scheduledJobs` is missing"]
    theirs, ours = ({job["jobId"]: job for job in side} for side in (left, right))
    lines = []
    if sorted(theirs) != sorted(ours):
        lines.append(f"scheduled: {sorted(theirs)} expected, {sorted(ours)} found")
    for one in sorted(set(theirs) & set(ours)):
        lines += _fields(f"scheduled {one}", theirs[one], ours[one])
    return lines


def _fields(what, left, right):
    """Same keys, same values: an absent key is not the same as null."""
    lines = []
    for name in sorted(set(left) | set(right)):
        if name not in right:
            lines.append(f"{what}: {name} is missing, expected {left[name]!r}")
        elif name not in left:
            lines.append(f"{what}: {name} is {right[name]!r}, expected none")
        elif isinstance(left[name], dict) and isinstance(right[name], dict):
            lines += _fields(f"{what} {name}", left[name], right[name])
        elif left[name] != right[name] or type(left[name]) is not type(right[name]):
            lines.append(f"{what}: {name} is {right[name]!r}, expected {left[name]!r}")
    return lines


def _ids(left, right):
    missing = [one for one in left if one not in right]
    extra = [one for one in right if one not in left]
    if not missing and not extra:
        at = next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
        return f"same {len(left)} ids in another order, from number {at} on"
    return f"{len(left)} ids expected, {len(right)} found; missing {missing[:5]}, unexpected {extra[:5]}"


def check(expected, got, what=""):
    lines = differences(expected, got)
    assert not lines, f"{what}{len(lines)} differences\n" + "\n".join(lines[:40])
