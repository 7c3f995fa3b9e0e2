"""The suite of the npm client: see suite.js."""

import os
import re
import subprocess

from harness import paths

HERE = paths.INTEROP / "stompit"
MODULES = paths.WORK / "stompit" / "node_modules"


def test_stompit(broker):
    host, port = broker.address
    assert MODULES.is_dir(), "stompit is not installed; ./test installs it"
    done = subprocess.run(
        ["node", "--test", "--test-reporter=tap", HERE / "suite.js"],
        env={**os.environ, "HOST": host, "PORT": str(port), "NODE_PATH": str(MODULES)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    passed = re.search(r"# pass (\d+)", done.stdout)
    assert int(passed[1]) >= 11, "some did not run"
