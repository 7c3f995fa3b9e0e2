"""No confirmed message is missing after kill -9: see kill9.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import kill9  # noqa: E402


def test_no_confirmed_message_is_lost(long):
    kills = 100 if long else 10
    done = kill9.trial(kills)
    assert done.kills >= kills
    assert sum(len(producer.confirmed) for producer in done.producers) > 100 * kills
