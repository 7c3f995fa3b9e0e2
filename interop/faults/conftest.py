"""A disk of its own for each test, and a shorter silence after which a queue counts as empty: nobody else is at work here."""

import pytest
from harness import cluster, failover, faults


@pytest.fixture
def disk(tmp_path):
    """A disk that fails on demand; a good one again at the end."""
    made = faults.Disk(tmp_path / "faults")
    yield made
    made.heal()


@pytest.fixture(autouse=True)
def short_silence(monkeypatch):
    monkeypatch.setattr(failover, "DRAINED_SECONDS", 1.0)


def pytest_terminal_summary(terminalreporter):
    if cluster.FIGURES:
        terminalreporter.section("faults: figures")
        for line in cluster.FIGURES:
            terminalreporter.line(line)
