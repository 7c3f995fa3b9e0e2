"""Where things are."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INTEROP = ROOT / "interop"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve()
#: Everything that is installed or compiled for these suites.
WORK = TARGET / "interop"
FIXTURES = ROOT / "crates" / "testkit" / "fixtures" / "kahadb-5.17.2"


def kahawai() -> Path:
    """The binary under test: KAHAWAI_BIN, or the release build."""
    found = os.environ.get("KAHAWAI_BIN")
    return Path(found).resolve() if found else TARGET / "release" / "kahawai"
