"""Where Apache Kafka and the Java that runs it come from.

``KAFKA_HOME`` names an installation; without it Maven fetches the jars of ``kafka_cluster.pom.xml``
into ``.kafka`` in the checkout, or wherever ``KAFKA_CACHE`` says. What was fetched once is used
from there, without Maven and without a network.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from tests.support.paths import ROOT

__all__ = [
    "KafkaHome",
    "KafkaMissing",
    "fetched",
    "find_java",
    "kafka_home",
    "one_at_a_time",
    "require_kafka",
    "required",
    "run_maven",
]

T = TypeVar("T")

_POM = Path(__file__).with_name("kafka_cluster.pom.xml")
#: Pinned, so that no two runs differ by it.
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.9.0:copy-dependencies"
#: Kafka 4's brokers need it.
_OLDEST_JAVA = 17
#: Seconds that Maven may take to fetch some fifty jars.
_FETCH_TIMEOUT = 900.0


class KafkaMissing(RuntimeError):
    """What it takes to run Kafka is not on this machine; the message says what."""


class KafkaHome(NamedTuple):
    """What runs a broker."""

    java: str
    class_path: str
    version: str
    archive: Path
    """Where Java's archive of Kafka's classes is, once it was made."""
    formatted: Path
    """Where the data directory is that a node which is its own controller begins with, once it was
    made."""


@functools.cache
def kafka_home() -> KafkaHome:
    """Find Kafka and a Java that runs it, and fetch Kafka where it is not here yet.

    Raises:
        KafkaMissing: there is no Java that is new enough, or no Kafka and no way to fetch it.
    """
    java, said = find_java()
    home = os.environ.get("KAFKA_HOME")
    # Another pom, another directory: what is there is what it asks for.
    name = hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]
    libraries = Path(home, "libs") if home else fetched(name, _fetch)
    # Written out and in order, so that each process has the very same class path.
    jars = sorted(libraries.glob("*.jar"))
    versions = [jar.stem.removeprefix("kafka-clients-") for jar in jars]
    version = next((found for found in versions if re.match(r"\d+\.\d+", found)), None)
    if version is None or int(version.split(".")[0]) < 4:
        raise KafkaMissing(f"{libraries} has no Apache Kafka 4: found {version}")
    class_path = os.pathsep.join(map(str, jars))
    fits = hashlib.sha256((said + class_path).encode()).hexdigest()[:12]
    archive, formatted = _cache() / f"classes-{fits}.jsa", _cache() / f"formatted-{fits}"
    return KafkaHome(java, class_path, version, archive, formatted)


def require_kafka() -> None:
    """Skip the test where Kafka can't be run; in CI that is a failure."""
    required("Apache Kafka", kafka_home)


def required(what: str, find: Callable[[], T]) -> T:
    """What a test can't do without; where it is not to be had the test is skipped, and in CI fails.

    Args:
        what: its name.
        find: gives it, or raises :exc:`KafkaMissing`.
    """
    try:
        return find()
    except KafkaMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(f"{what} can't be run: {missing}", pytrace=False)
        pytest.skip(f"{what} can't be run: {missing}")


def find_java() -> tuple[str, str]:
    """Java, and what it says of its version.

    Raises:
        KafkaMissing: there is no Java, or none that is new enough.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home, "bin")) if home else None)
    if java is None:
        raise KafkaMissing(f"no java on the PATH or in JAVA_HOME: install Java {_OLDEST_JAVA}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < _OLDEST_JAVA:
        raise KafkaMissing(f"Java {_OLDEST_JAVA} or later is needed; {java} says: {said.strip()}")
    return java, said


def _cache() -> Path:
    """The directory for what was fetched."""
    default = ROOT / ".kafka"
    cache = Path(os.environ.get("KAFKA_CACHE") or default).absolute()
    cache.mkdir(parents=True, exist_ok=True)
    return cache


@contextmanager
def one_at_a_time() -> Generator[None, None, None]:
    """Hold other test runs that use the same cache up, while this one looks into it."""
    with (_cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetched(name: str, fetch: Callable[[Path], None]) -> Path:
    """The directory of this name in the cache.

    Args:
        name: says what is in it, and which version.
        fetch: makes such a directory, where there is none yet.
    """
    there = _cache() / name
    with one_at_a_time():
        if not there.exists():
            with tempfile.TemporaryDirectory(dir=_cache(), prefix="fetching-") as directory:
                made = Path(directory, "made")
                fetch(made)
                # At once, so that no killed run leaves half of it.
                made.rename(there)
    return there


def _fetch(directory: Path) -> None:
    run_maven(
        "Apache Kafka",
        "--file",
        str(_POM),
        _PLUGIN,
        "-DincludeScope=runtime",
        f"-DoutputDirectory={directory}",
        instead=", or set KAFKA_HOME to an installation of Kafka 4",
    )


def run_maven(what: str, *arguments: str, instead: str = "") -> None:
    """Have Maven fetch something.

    Args:
        what: its name, for errors.
        arguments: what Maven is told.
        instead: what else can be done where Maven is missing.

    Raises:
        KafkaMissing: Maven is missing, or could not fetch it.
    """
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaMissing(f"no mvn on the PATH to fetch {what} with: install Maven{instead}")
    try:
        done = subprocess.run(
            [maven, "--batch-mode", "--quiet", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_FETCH_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise KafkaMissing(f"Maven did not fetch {what} in {_FETCH_TIMEOUT} s") from error
    if done.returncode != 0:
        raise KafkaMissing(f"Maven could not fetch {what}:\n{(done.stdout + done.stderr)}")
