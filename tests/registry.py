"""A schema registry in a process of its own: Apicurio Registry, which speaks Confluent's protocol.

Maven fetches it into the same directory as Kafka, the first time. Where there is no Java or no
Maven its tests are skipped; with ``CI`` set they fail. It keeps what it knows in memory.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.kafka_home import kafka_home

__all__ = ["running_registry"]

#: The newest that runs on Java 17; later ones need 21.
_VERSION = "3.0.9"
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.9.0:copy"
#: Seconds that Maven may take to fetch 110 MB.
_FETCH_TIMEOUT = 900.0
#: Seconds that the registry may take to come up, or to go.
_PATIENCE = 120.0


def _home() -> Path:
    """Where it is unpacked."""
    default = Path(__file__).parent.parent / ".kafka"
    cache = Path(os.environ.get("KAFKA_CACHE") or default).absolute()
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / f"apicurio-{_VERSION}"
    if not home.exists():
        maven = shutil.which("mvn")
        assert maven is not None, "no mvn on the PATH to fetch Apicurio Registry with"
        artifact = f"io.apicurio:apicurio-registry-app:{_VERSION}:tar.gz:all"
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as directory:
            subprocess.run(
                [
                    maven,
                    "--batch-mode",
                    "--quiet",
                    _PLUGIN,
                    f"-Dartifact={artifact}",
                    f"-DoutputDirectory={directory}",
                ],
                stdin=subprocess.DEVNULL,
                timeout=_FETCH_TIMEOUT,
                check=True,
            )
            archive = next(Path(directory).glob("*.tar.gz"))
            unpacked = Path(directory, "unpacked")
            with tarfile.open(archive) as opened:
                opened.extractall(unpacked, filter="data")
            unpacked.rename(home)
    return home


@contextmanager
def running_registry() -> Generator[str, None, None]:
    """A registry for the length of a block; gives the URL of its API in Confluent's way."""
    home = _home()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runner = next(home.glob("*runner.jar"))
    command = [kafka_home().java, "-Xmx512m", "-Dquarkus.http.host=127.0.0.1"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, f"-Dquarkus.http.port={port}", "-jar", str(runner)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=home,
        )
        try:
            url = f"http://127.0.0.1:{port}/apis/ccompat/v7"
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
