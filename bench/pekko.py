"""Build and start Pekko Connectors Kafka's SendProducer, which runs on the JVM.

SendProducer is the model of this package. The program in ``bench/pekko`` takes the arguments of
``contender.py`` and prints the same figures. Its header describes the differences, for example its
warm-up. Maven builds the program into ``.kafka`` once, and again after a change. This needs Java 17
or later and Maven. Without them, the benchmark leaves this contender out.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the directory of tests/, which is not installed

from tests.support.kafka_home import KafkaMissing, fetched, find_java, run_maven  # noqa: E402

CLIENT = "pekko"
WORKLOADS = ("tasks-1", "tasks-10", "tasks-100", "tasks-1000", "tasks-10000", "many-10000")
_PROJECT = HERE / "pekko"
_POM = _PROJECT / "pom.xml"
#: The libraries whose versions belong to the figures.
_NAMED = re.compile(r"(pekko-connectors-kafka|kafka-clients)(?:_[\d.]+)?-(\d[\w.-]*)\.jar")


def ready() -> bool:
    """Build the program unless it is built. Return False and print the reason if this fails."""
    try:
        command()
    except KafkaMissing as missing:
        print(f"{CLIENT} is left out: {missing}", file=sys.stderr)
        return False
    return True


@functools.cache
def command() -> tuple[str, ...]:
    """Return the command that starts the program, without its arguments.

    Raises:
        KafkaMissing: Java 17 or Maven is missing, or Maven could not build the program.
    """
    java, _ = find_java()
    built = _built()
    class_path = os.pathsep.join((str(built / "classes"), str(built / "libraries" / "*")))
    return (java, "-cp", class_path, "bench.Contender")


def versions() -> dict[str, str]:
    """Return the versions of Java and of the libraries."""
    _, output = find_java()
    found = re.search(r'version "([^"]+)', output)
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
