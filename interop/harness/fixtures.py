"""Directories that ActiveMQ 5.17.2 left behind, and what has to come out of them."""

import hashlib
import json
import os
import subprocess

from harness import paths


def names():
    return sorted(path.name.removesuffix(".tar.gz") for path in paths.FIXTURES.glob("*.tar.gz"))


def unpack(name, directory):
    """Unpacks a fixture; returns the folder with `kahadb/` and, for the scheduler, `scheduler/`."""
    directory.mkdir(parents=True, exist_ok=True)
    archive = paths.FIXTURES / f"{name}.tar.gz"
    subprocess.run(["tar", "-xzf", archive, "-C", directory], check=True)
    return directory


def expected(name):
    return json.loads((paths.FIXTURES / f"{name}.expected.json").read_text())


def picture(directory):
    """Every name below a directory with size, modification time and hash: what must not change under a mere reader."""
    found = {}
    for folder, folders, files in os.walk(directory):
        for name in folders:
            found[os.path.relpath(os.path.join(folder, name), directory) + "/"] = None
        for name in files:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            status = os.stat(path)
            found[os.path.relpath(path, directory)] = (status.st_size, status.st_mtime_ns, digest)
    return found


def copy(source, target):
    """A copy that keeps holes; returns it."""
    subprocess.run(["cp", "-r", "--sparse=always", source, target], check=True)
    return target
