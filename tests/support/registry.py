"""Runs a schema registry in a process of its own: Apicurio Registry, which has Confluent's API.

Maven fetches it once, into the same directory as Kafka. It runs on the same Java as Kafka, and
keeps its data in memory.
"""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.support.kafka_home import fetched, kafka_home, required, run_maven
from tests.support.ports import HOST, reserve_port

__all__ = ["running_registry"]

#: The newest version that runs on Java 17. Later ones need 21.
_VERSION = "3.0.9"
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.9.0:copy"
#: Seconds for the registry to start or to end.
_PATIENCE = 120.0


def _fetch(directory: Path) -> None:
    with tempfile.TemporaryDirectory(dir=directory.parent) as downloads:
        run_maven(
            "Apicurio Registry",
            _PLUGIN,
            f"-Dartifact=io.apicurio:apicurio-registry-app:{_VERSION}:tar.gz:all",
            f"-DoutputDirectory={downloads}",
        )
        with tarfile.open(next(Path(downloads).glob("*.tar.gz"))) as opened:
            opened.extractall(directory, filter="data")


@contextmanager
def running_registry() -> Generator[str, None, None]:
    """Run a registry during a block, and yield the URL of its Confluent-compatible API.

    If it can't be run, the test is skipped. In CI, it fails.
    """
    home = required("Apicurio Registry", lambda: fetched(f"apicurio-{_VERSION}", _fetch))
    java = required("Apicurio Registry", kafka_home).java
    runner = next(home.glob("*runner.jar"))
    # It lives for seconds, so the second compiler would not pay off.
    command = [java, "-Xmx512m", "-XX:TieredStopAtLevel=1", f"-Dquarkus.http.host={HOST}"]
    with tempfile.TemporaryFile() as log, reserve_port() as reserved:
        port = reserved.getsockname()[1]
        process = subprocess.Popen(
            [*command, f"-Dquarkus.http.port={port}", "-jar", str(runner)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home,
        )
        try:
            url = f"http://{HOST}:{port}/apis/ccompat/v7"
            give_up = time.monotonic() + _PATIENCE
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > give_up:
                    log.seek(0)
                    raise AssertionError(log.read().decode(errors="replace")[-4000:])
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(_PATIENCE)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/subjects", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
