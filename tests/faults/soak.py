"""A long run on a real cluster, with one random fault after the other.

``python -m tests.faults.soak --minutes 30`` starts three brokers of Apache Kafka and two programs
that send, one on asyncio and one on Trio. Each uses a single producer for the whole run. Meanwhile
the run kills, stops, freezes and restarts brokers, moves leaders, sets quotas, and freezes the
programs. Afterwards it compares the reported outcomes with the topics, as in the fault matrix.

It prints the faults and the result, and fails if a record was lost, doubled, reordered or
misreported, or if a program's memory grew.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Final

import anyio

from anyio_sendproducer import ProducerSettings
from tests.support.history import History, Logged, Reader, check, read_topic
from tests.support.kafka_cluster import KafkaCluster, kafka_cluster
from tests.support.load import Load, run_load
from tests.support.paths import ROOT

_LOOPS: Final = ("asyncio", "trio")

#: The first reader reports sequence numbers.
_READERS: Final[tuple[Reader, ...]] = ("kafka-python", "confluent-kafka")

#: The producer's default.
_DELIVERY_TIMEOUT: Final = 120.0

#: Seconds by which an outcome may be late, because a program is frozen or its machine is busy.
_GRACE: Final = 15.0

#: The limit for the growth of memory from the first third of the time to the last.
_GROWTH: Final = 1.1

#: Seconds between two measurements of a program's memory.
_LOOK_SECONDS: Final = 2.0


# --- the program that sends ----------------------------------------------------------------------


async def _send(orders: dict[str, Any]) -> None:
    settings = ProducerSettings(
        bootstrap_servers=orders["address"],
        client_id=orders["topic"],
        delivery_timeout=_DELIVERY_TIMEOUT,
    )
    load = Load(
        topic=orders["topic"],
        records=orders["records"],
        seconds=orders["seconds"],
        partitions=orders["partitions"],
    )
    history = History(Path(orders["journal"]), keep=False)
    with contextlib.closing(history):
        ran = await run_load(settings, load, history=history)
    told = dataclasses.asdict(ran.statistics)
    told["state"] = str(told["state"])
    sys.stdout.write(json.dumps({"time_to_exit": ran.time_to_exit, "statistics": told}) + "\n")


class _Program:
    """A program that sends, in a process of its own."""

    def __init__(self, loop: str, orders: dict[str, Any]) -> None:
        self.loop = loop
        self.topic: str = orders["topic"]
        self.journal = Path(orders["journal"])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.soak", "--send", loop, json.dumps(orders)],
            stdout=subprocess.PIPE,
            # The client logs many lines about brokers that are down.
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        #: Pairs of the seconds since the start and MiB.
        self.memory: list[tuple[float, float]] = []

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def look(self, now: float) -> None:
        """Record its memory."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    self.memory.append((now, int(line.split()[1]) / 1024))

    def memory_by_third(self) -> list[float]:
        """The median of each third of the time, in MiB."""
        third = len(self.memory) // 3
        parts = (self.memory[start : start + third] for start in (0, third, 2 * third))
        return [statistics.median(size for _, size in part) for part in parts]


# --- the faults ----------------------------------------------------------------------------------


class _Faults:
    """Causes one fault after the other, and repairs each."""

    def __init__(
        self, cluster: KafkaCluster, programs: Sequence[_Program], partitions: int, seed: int
    ) -> None:
        self.happened: Counter[str] = Counter()
        self._cluster = cluster
        self._programs = programs
        self._partitions = partitions
        self._random = random.Random(seed)  # not for security
        self._kinds: list[Callable[[], str]] = [
            self._kill,
            self._stop,
            self._freeze,
            self._move,
            self._throttle,
            self._two_gone,
            self._all_gone,
            self._freeze_program,
        ]

    def bring_about(self) -> str:
        """Cause a random fault. Returns: its name."""
        name = self._random.choice(self._kinds)()
        self.happened[name] += 1
        return name

    def calm(self) -> float:
        """Seconds until the next one."""
        return self._random.uniform(1, 10)

    def _wait(self, least: float, most: float) -> None:
        time.sleep(self._random.uniform(least, most))

    def _broker(self) -> int:
        return self._random.choice(self._cluster.brokers)

    def _kill(self) -> str:
        self._cluster.kill(self._broker())
        self._wait(0, 10)
        self._cluster.heal()
        return "a broker is killed"

    def _stop(self) -> str:
        self._cluster.stop(self._broker())
        self._wait(0, 10)
        self._cluster.heal()
        return "a broker is stopped in order"

    def _freeze(self) -> str:
        self._cluster.pause(self._broker())
        self._wait(1, 15)
        self._cluster.heal()
        return "a broker is frozen"

    def _move(self) -> str:
        for _ in range(5):
            for program in self._programs:
                partition = self._random.randrange(self._partitions)
                self._cluster.move_leader(program.topic, partition, self._broker())
        return "leaders are moved"

    def _throttle(self) -> str:
        for program in self._programs:
            self._cluster.set_quota(client_id=program.topic, producer_byte_rate=20_000)
        self._wait(5, 15)
        for program in self._programs:
            self._cluster.set_quota(client_id=program.topic, producer_byte_rate=None)
        return "a quota throttles"

    def _two_gone(self) -> str:
        for broker in self._random.sample(self._cluster.brokers, 2):
            self._cluster.kill(broker)
        self._wait(1, 15)
        self._cluster.heal()
        return "two of three brokers are killed"

    def _all_gone(self) -> str:
        for broker in self._cluster.brokers:
            self._cluster.kill(broker)
        self._wait(1, 20)
        self._cluster.heal()
        return "all brokers are killed"

    def _freeze_program(self) -> str:
        program = self._random.choice(self._programs)
        program.process.send_signal(signal.SIGSTOP)
        self._wait(1, 10)
        program.process.send_signal(signal.SIGCONT)
        return "the program that sends is frozen"


# --- the run -------------------------------------------------------------------------------------


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _programs(
    cluster: KafkaCluster, directory: Path, records: int, seconds: float, partitions: int
) -> Generator[list[_Program], None, None]:
    programs: list[_Program] = []
    try:
        for loop in _LOOPS:
            topic = cluster.create_topic(f"soak-{loop}", partitions, 3, {"min.insync.replicas": 2})
            orders = {
                "address": cluster.bootstrap_servers,
                "topic": topic,
                "journal": str(directory / loop),
                "records": records // len(_LOOPS),
                "seconds": seconds,
                "partitions": partitions,
            }
            programs.append(_Program(loop, orders))
        yield programs
    finally:
        for program in programs:
            program.process.kill()
            program.process.communicate()


def _watch(programs: Sequence[_Program], began: float, enough: threading.Event) -> None:
    while not enough.wait(_LOOK_SECONDS):
        for program in programs:
            program.look(time.monotonic() - began)


def _soak(cluster: KafkaCluster, directory: Path, options: argparse.Namespace) -> list[str]:
    """Run it, and return the problems."""
    seconds = options.minutes * 60
    wrong: list[str] = []
    with _programs(cluster, directory, options.records, seconds, options.partitions) as programs:
        began = time.monotonic()
        enough = threading.Event()
        watching = threading.Thread(target=_watch, args=(programs, began, enough))
        watching.start()
        try:
            faults = _Faults(cluster, programs, options.partitions, options.seed)
            while time.monotonic() - began < seconds and all(one.running for one in programs):
                time.sleep(faults.calm())
                _say(f"{time.monotonic() - began:7.1f} s  {faults.bring_about()}")
            cluster.heal()
            told = [_end(program) for program in programs]
        finally:
            enough.set()
            watching.join()
        _say(f"\n{sum(faults.happened.values())} faults in {time.monotonic() - began:.0f} s:")
        for name, count in sorted(faults.happened.items()):
            _say(f"  {count:3} times  {name}")
        for program, last in zip(programs, told, strict=True):
            wrong += _judge(cluster, program, last)
    return wrong


def _end(program: _Program) -> dict[str, Any]:
    output, _ = program.process.communicate(timeout=2 * _DELIVERY_TIMEOUT)
    if program.process.returncode != 0:
        raise RuntimeError(f"the program on {program.loop} ended by {program.process.returncode}")
    last: dict[str, Any] = json.loads(output)
    return last


def _judge(cluster: KafkaCluster, program: _Program, last: dict[str, Any]) -> list[str]:
    address = cluster.bootstrap_servers
    logs = [read_topic(address, program.topic, reader=one, timeout=600.0) for one in _READERS]
    report = check(
        History.load(program.journal),
        logs[0],
        delivery_timeout=_DELIVERY_TIMEOUT,
        grace=_GRACE,
        time_to_exit=last["time_to_exit"],
    )
    memory = program.memory_by_third()
    shown = " / ".join(f"{size:.1f}" for size in memory)
    _say(f"\n{program.loop}:\n{report}\nmemory by thirds of the time: {shown} MiB")
    _say(f"the producer: {last['statistics']}")
    wrong = [f"{program.loop}: {fault}" for fault in report.faults]
    if _places(logs[0]) != _places(logs[1]):
        wrong.append(f"{program.loop}: the two readers disagree")
    if memory[2] > memory[0] * _GROWTH:
        wrong.append(f"{program.loop}: its memory grew: {shown} MiB")
    return wrong


def _places(log: Sequence[Logged]) -> set[tuple[Any, ...]]:
    return {(one.partition, one.offset, one.content) for one in log}


def main(arguments: Sequence[str]) -> int:
    """Run the command line."""
    if arguments[:1] == ["--send"]:
        anyio.run(_send, json.loads(arguments[2]), backend=arguments[1])
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (%(default)s)")
    parser.add_argument("--records", type=int, default=1_200_000, help="in all (%(default)s)")
    parser.add_argument("--partitions", type=int, default=6, help="of each topic (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="of what happens; any if not given")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = int.from_bytes(os.urandom(4), "big")
    _say(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="soak-") as directory, kafka_cluster(3) as cluster:
        _say(f"Apache Kafka {cluster.version}, 3 brokers")
        wrong = _soak(cluster, Path(directory), options)
    for one in wrong:
        _say(f"WRONG  {one}")
    _say("\nnothing is wrong" if not wrong else f"\n{len(wrong)} things are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
