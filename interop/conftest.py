"""Options and fixtures of all suites."""

import os
import re

import pytest
from harness import cluster, paths, process


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the long variants: 100 kills")


def pytest_configure(config):
    needed = [] if process.is_activemq() else [paths.kahawai()]
    for path in needed:
        if not os.access(path, os.X_OK):
            raise pytest.UsageError(f"{path} is not there: cargo build --release, or set KAHAWAI_BIN")


@pytest.fixture(scope="session")
def long(request):
    return request.config.getoption("--long")


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """One broker for a module; tests keep apart by destination names."""
    with process.broker(tmp_path_factory.mktemp("data") / "store") as running:
        yield running
        assert running.running(), f"the broker died\n{running.errors()}"


@pytest.fixture
def own_broker(tmp_path):
    """A broker for one test, which may stop and kill it."""
    with process.broker(tmp_path / "store") as running:
        yield running


@pytest.fixture
def queue(request):
    """A queue of the test's own."""
    return "/queue/" + test_name(request)


@pytest.fixture
def topic(request):
    """A topic of the test's own."""
    return "/topic/" + test_name(request)


def test_name(request):
    return re.sub(r"\W+", ".", request.node.name)


test_name.__test__ = False


# The figures that the cluster's scenarios measured are shown at the end, whether they passed or not.


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """A process of pytest-xdist's has ended."""
    cluster.FIGURES.extend(getattr(node, "workeroutput", {}).get("figures", []))


def pytest_sessionfinish(session):
    for child in process.CHILDREN:
        if child.poll() is None:
            child.kill()
            child.wait()
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["figures"] = cluster.FIGURES


def pytest_terminal_summary(terminalreporter):
    if cluster.FIGURES:
        terminalreporter.section("cluster: figures")
        for line in cluster.FIGURES:
            terminalreporter.line(line)
