"""Build and start Pekko Connectors Kafka's SendProducer, which runs on the JVM.

It is the model of this package. Its program in ``bench/pekko`` takes the arguments of
``contender.py`` and prints the same figures. The program's header describes the differences, such
as its warm-up. Maven builds it into ``.kafka`` once, and again after a change. It needs Java 17 or
later and Maven; without them this contender is left out.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the tests lie beside the benchmark, and are no package

from tests.support.kafka_home import KafkaMissing, fetched, find_java, run_maven  # noqa: E402

CLIENT = "pekko"
WORKLOADS = ("tasks-1", "tasks-10", "tasks-100", "tasks-1000", "tasks-10000", "many-10000")
_PROJECT = HERE / "pekko"
_POM = _PROJECT / "pom.xml"
#: The libraries whose versions belong to the figures.
_NAMED = re.compile(r"(pekko-connectors-kafka|kafka-clients)(?:_[\d.]+)?-(\d[\w.-]*)\.jar")


def ready() -> bool:
    """Build it unless that was done before. If it cannot be built, print the reason."""
    try:
        command()
    except KafkaMissing as missing:
        print(f"{CLIENT} is left out: {missing}", file=sys.stderr)
        return False
    return True


@functools.cache
def command() -> tuple[str, ...]:
    """The command that starts it, without its arguments.

    Raises:
        KafkaMissing: there is no Java that is new enough, no Maven, or Maven could not build it.
    """
    java, _ = find_java()
    built = _built()
    class_path = os.pathsep.join((str(built / "classes"), str(built / "libraries" / "*")))
    return (java, "-cp", class_path, "bench.Contender")


def versions() -> dict[str, str]:
    """The versions of Java and of the libraries."""
    _, said = find_java()
    found = re.search(r'version "([^"]+)', said)
    jars = map(_NAMED.fullmatch, sorted(jar.name for jar in (_built() / "libraries").iterdir()))
    return {"java": found[1] if found else "", **{jar[1]: jar[2] for jar in jars if jar}}


def _built() -> Path:
    digest = hashlib.sha256(_POM.read_bytes())
    for source in sorted((_PROJECT / "src").rglob("*.java")):
        digest.update(source.read_bytes())
    return fetched(f"{CLIENT}-{digest.hexdigest()[:12]}", _build)


def _build(directory: Path) -> None:
    goals = ("compile", "dependency:copy-dependencies")
    run_maven(
        "Pekko Connectors Kafka", "--file", str(_POM), f"-Dbuilt={directory.absolute()}", *goals
    )
