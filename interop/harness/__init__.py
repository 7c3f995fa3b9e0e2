"""What the interop suites share: processes, a STOMP client of our own, fixtures, comparisons."""
