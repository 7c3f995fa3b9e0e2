"""Messages that say who sent them as the how-manieth, so that what is missing, double or changed can be told."""

import hashlib
import random
import re

RECEIPT = re.compile(rb"\nreceipt-id:(\d+)\n")


class Violation(Exception):
    """A promise that was not kept."""


def body_of(producer, number, size):
    """A body that says who sent it as its how-manieth, and whether it is whole."""
    head = f"{producer} {number} "
    filler = hashlib.sha256(head.encode()).hexdigest()
    text = head + (filler * (size // len(filler) + 1))[:size]
    return text.encode()


def sent_as(body):
    """Producer and number of a body; fails if it is not whole."""
    producer, number, filler = body.decode().split(" ", 2)
    if body_of(int(producer), int(number), len(filler)) != body:
        raise Violation(f"message {number} of producer {producer} has been changed: {body[:80]!r}")
    return int(producer), int(number)


def any_size(source: random.Random):
    """Mostly small, at times large."""
    pick = source.random()
    return source.randint(1, 900) if pick < 0.9 else source.randint(1, 20_000 if pick < 0.995 else 300_000)
