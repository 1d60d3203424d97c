"""A contender's turn: a client and a workload in their own process, against a running sink.

The sinks: ``mock`` is librdkafka's mock cluster in its own process. It measures the client.
``mock-20ms`` has a round trip of 20 ms, and measures batching. ``kafka`` is Apache Kafka with one
broker. It measures client and broker together, and needs Java and Maven.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import pekko
from mock_cluster import TOPIC, mock_cluster

HERE = Path(__file__).resolve().parent
SINKS = ("mock", "mock-20ms", "kafka")
#: One record after the other.
ALONE = "tasks-1"
#: Seconds of an open loop by its workload. A slower rate gets more time.
_OPEN_SECONDS = {"open-200": 3, "open-2000": 2, "open-8000": 2}
#: The minimum of records per second in a turn with very many records.
_SLOWEST = 10_000
#: The number of times that a client is opened.
_OPENINGS = 5
#: The suite's default number of records. With fewer records, open loops are shorter.
RECORDS = 20_000

Figures = Mapping[str, float]
Rounds = Mapping[str, list[Figures | None]]
"""The figures of each round by the contender's name, or None if its turn failed."""


@dataclass(frozen=True)
class Contender:
    """A client, a workload and an event loop."""

    client: str
    workload: str
    loop: str = "none"

    def __str__(self) -> str:
        loop = "" if self.loop == "none" else f", {self.loop}"
        return f"{self.client}, {self.workload}{loop}"

    @property
    def unobserved(self) -> Contender:
        """The same contender without an observer."""
        return replace(self, client=self.client.partition(", observed")[0])

    def records(self, of: int) -> int:
        """Return the number of records of a turn, in which a client of medium speed sends `of`.

        A turn takes one to three seconds.
        """
        tasks = int(self.workload[6:]) if self.workload.startswith("tasks-") else 0
        if self.workload == "opening":
            return min(_OPENINGS, of)
        if self.workload.startswith("pending-"):
            return of
        if self.workload.startswith("sink-"):
            return int(self.workload[5:]) * of // RECORDS
        if self.workload in _OPEN_SECONDS:
            rate = int(self.workload[5:])
            return max(10, rate * _OPEN_SECONDS[self.workload] * of // RECORDS)
        if self.client.startswith("confluent-aio"):
            # Each record waits until a buffer is full or a second has passed.
            return 2 * min(tasks, of)
        if self.workload == ALONE:
            return max(1, of // 25)
        if self.workload == "tasks-10":
            return max(10, of // 5)
        if self.workload == "tasks-10000":
            # More records, because there are more tasks. The start of the tasks is not measured.
            return of * 5
        if self.client.endswith("OpenTelemetry"):
            return max(1, of // 2)
        return of * 3 if "confluent" in self.client else of


@contextmanager
def sink(name: str, partitions: int) -> Iterator[tuple[str, str]]:
    """Run a sink.

    Yields:
        The addresses, and the version of the protocol for kafka-python, if it cannot get it.
    """
    if name == "none":
        yield "", ""
    elif name == "kafka":
        sys.path.insert(0, str(HERE.parent))
        from tests.support.kafka_cluster import kafka_cluster

        with kafka_cluster() as cluster:
            cluster.create_topic(TOPIC, partitions)
            yield cluster.bootstrap_servers, ""
    else:
        with mock_cluster(partitions, rtt_ms=20 if name == "mock-20ms" else 0) as address:
            yield address, "2.3"


@dataclass(frozen=True)
class Load:
    """The parameters that all turns of a run share."""

    address: str
    api_version: str
    records: int
    size: int = 100
    compression: str = "none"
    #: Seconds after which a turn has failed, in addition to the time for its records.
    patience: float = 120

    def run(self, contender: Contender) -> Figures | None:
        """Run a contender's turn. Return None if it fails."""
        records = contender.records(self.records)
        patience = self.patience + records / _SLOWEST
        python = (sys.executable, str(HERE / "contender.py"))
        command = [*(pekko.command() if contender.client == pekko.CLIENT else python)]
        command += [contender.client, contender.workload, "--loop", contender.loop]
        command += ["--bootstrap", self.address, "--topic", TOPIC, "--size", str(self.size)]
        command += ["--records", str(records)]
        command += ["--compression", self.compression, "--api-version", self.api_version]
        if contender.workload.startswith("tasks-") and contender.workload != ALONE:
            # Without a timer for lone records, because bare clients cannot have one.
            command.append("--ticks")
        try:
            done = subprocess.run(  # noqa: S603  # our own script
                command, capture_output=True, text=True, check=False, timeout=patience
            )
        except subprocess.TimeoutExpired:
            print(f"  {contender}: not done after {patience:.0f} s", file=sys.stderr)
            return None
        if done.returncode != 0:
            print(f"  {contender}: {done.stderr[-2000:]}", file=sys.stderr)
            return None
        figures: dict[str, float] = json.loads(done.stdout)
        return figures


def run_rounds(contenders: list[Contender], load: Load, rounds: int) -> Rounds:
    """Run the turn of each contender in each round."""
    found: dict[str, list[Figures | None]] = {str(one): [] for one in contenders}
    for number in range(rounds):
        begin = time.monotonic()
        for contender in contenders:
            found[str(contender)].append(load.run(contender))
        seconds = time.monotonic() - begin
        print(f"round {number + 1} of {rounds}: {seconds:.0f} s", file=sys.stderr)
    return found


def without_missing(contenders: list[Contender]) -> list[Contender]:
    """Return the contenders that can run here. The contender on the JVM needs Java and Maven."""
    if any(one.client == pekko.CLIENT for one in contenders) and not pekko.ready():
        return [one for one in contenders if one.client != pekko.CLIENT]
    return contenders


def about() -> dict[str, str]:
    """Return the date, the machine and the versions of a measurement, without the host's name."""
    names = ("anyio", "trio", "uvloop", "kafka-python", "confluent-kafka", "aiokafka")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, "
        f"{memory:.0f} GiB",
        "Python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def _commit() -> str:
    command = ("git", "-C", str(HERE), "rev-parse", "--short", "HEAD")
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() or "unknown"


def ratios(one: list[Figures | None], other: list[Figures | None], figure: str) -> list[float]:
    """Return the ratios of a figure in each round in which both contenders have it."""
    pairs = zip(one, other, strict=True)
    return [
        mine[figure] / its[figure]
        for mine, its in pairs
        if mine and its and figure in mine and its.get(figure)
    ]


def spread(values: list[float]) -> str:
    """Format a median with the minimum and the maximum."""
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
