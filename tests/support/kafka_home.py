"""Finds or fetches Apache Kafka, and finds the Java that runs it.

``KAFKA_HOME`` names an installation. Without it, Maven fetches the jars of
``kafka_cluster.pom.xml`` into ``.kafka`` in the checkout, or into the directory ``KAFKA_CACHE``.
Later runs use these files without Maven and without a network.
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
#: Pinned, so that all runs use the same version.
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.9.0:copy-dependencies"
#: The lowest version for the brokers of Kafka 4.
_OLDEST_JAVA = 17
#: Seconds that Maven may take to fetch some fifty jars.
_FETCH_TIMEOUT = 900.0


class KafkaMissing(RuntimeError):
    """Something that Kafka needs is missing on this machine. The message says what."""


class KafkaHome(NamedTuple):
    """The files that run a broker."""

    java: str
    class_path: str
    version: str
    archive: Path
    """The path of Java's archive of Kafka's classes, after it was made."""
    formatted: Path
    """The path of the initial data directory of a node that is its own controller, after it was
    made."""


@functools.cache
def kafka_home() -> KafkaHome:
    """Find Kafka and a Java that runs it. Fetch Kafka if it is missing.

    Raises:
        KafkaMissing: there is no Java that is new enough, or no Kafka and no way to fetch it.
    """
    java, said = find_java()
    home = os.environ.get("KAFKA_HOME")
    # Each version of the pom has a directory of its own, so the files always agree with it.
    name = hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]
    libraries = Path(home, "libs") if home else fetched(name, _fetch)
    # A sorted list of all files, so that each process has exactly the same class path.
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
    """Skip the test if Kafka can't be run. In CI, fail it."""
    required("Apache Kafka", kafka_home)


def required(what: str, find: Callable[[], T]) -> T:
    """Find something that a test needs. If it is missing, skip the test, and fail it in CI.

    Args:
        what: its name.
        find: returns it, or raises :exc:`KafkaMissing`.
    """
    try:
        return find()
    except KafkaMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(f"{what} can't be run: {missing}", pytrace=False)
        pytest.skip(f"{what} can't be run: {missing}")


def find_java() -> tuple[str, str]:
    """Find Java. Returns: its path, and the output about its version.

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
    """The directory for fetched files."""
    default = ROOT / ".kafka"
    cache = Path(os.environ.get("KAFKA_CACHE") or default).absolute()
    cache.mkdir(parents=True, exist_ok=True)
    return cache


@contextmanager
def one_at_a_time() -> Generator[None, None, None]:
    """Lock the cache against other test runs during the block."""
    with (_cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetched(name: str, fetch: Callable[[Path], None]) -> Path:
    """Return the directory of this name in the cache.

    Args:
        name: names the content and its version.
        fetch: makes the directory if it is missing.
    """
    there = _cache() / name
    with one_at_a_time():
        if not there.exists():
            with tempfile.TemporaryDirectory(dir=_cache(), prefix="fetching-") as directory:
                made = Path(directory, "made")
                fetch(made)
                # Atomically, so that a killed run leaves no incomplete directory.
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
        arguments: the arguments of Maven.
        instead: the advice if Maven is missing.

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
