"""The figures that the scenarios measured are shown at the end, whether they passed or not."""

from harness import cluster


def pytest_terminal_summary(terminalreporter):
    if cluster.FIGURES:
        terminalreporter.section("cluster: figures")
        for line in cluster.FIGURES:
            terminalreporter.line(line)
