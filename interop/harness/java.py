"""Java programs against the jars of Debian's ActiveMQ."""

import functools
import glob
import os
import subprocess
from pathlib import Path

from harness import paths

SOURCES = paths.INTEROP / "java" / "src"
CLASSES = paths.WORK / "classes"


@functools.cache
def class_path():
    """The jars of the packages activemq and libactivemq-java, with a logger to standard error."""
    jars = sorted(glob.glob("/usr/share/activemq/lib/*.jar")) + ["/usr/share/java/slf4j-simple.jar"]
    missing = [jar for jar in jars if not os.path.exists(jar)]
    if len(jars) < 5 or missing:
        raise RuntimeError("the packages activemq and libactivemq-java are not installed; ./test installs them")
    return ":".join(jars)


@functools.cache
def compiled():
    """Compiles everything once per session and returns the class folder."""
    CLASSES.mkdir(parents=True, exist_ok=True)
    sources = sorted(map(str, SOURCES.glob("*.java")))
    subprocess.run(
        ["javac", "-nowarn", "-Xlint:-options", "-cp", class_path(), "-d", str(CLASSES), *sources],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return CLASSES


def command(main, *arguments):
    """The command line of one of our Java programs."""
    return [
        "java",
        "-Xmx700m",
        "-Duser.timezone=UTC",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=" + os.environ.get("JAVA_LOG", "warn"),
        "-Dorg.apache.activemq.SERIALIZABLE_PACKAGES=*",
        "-cp",
        f"{class_path()}:{compiled()}",
        main,
        *map(str, arguments),
    ]


def run(main, *arguments, timeout=180):
    """Runs one of our Java programs to its end; fails with its output."""
    done = subprocess.run(
        command(main, *arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{main} ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def dump(directory, out, **options):
    """What the original recovers from a directory (it appends to it: give it a copy), as JSON in `out`."""
    import json

    run("Dump", out, f"dir={directory}", *(f"{key}={value}" for key, value in options.items()))
    return json.loads(Path(out).read_text())
