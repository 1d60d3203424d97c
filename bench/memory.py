"""Measure the memory of a producer while no broker answers: 200,000 sends from 1,000 tasks.

The producer opens with the embedded broker, which is then frozen: connections stay open, and no
record is acknowledged. The tasks continue to send, because each send ends soon: after its
``delivery_timeout``, or when its caller cancels it (``move_on_after``). A thread samples the
growth of the process. Each run has its own process. Linux only.

``python bench/memory.py [--sends N] [--tasks N] [--patience SECONDS]``
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import anyio

from anyio_sendproducer import (
    DeliveryError,
    ProducerRecord,
    ProducerSettings,
    SendProducer,
    UndeliveredRecords,
    open_send_producer,
)
from anyio_sendproducer.testing import embedded_broker

MIB: Final = 1024 * 1024
TOPIC: Final = "memory"


@dataclasses.dataclass
class Run:
    """The parameters of one run, and its figures."""

    backend: str
    size: int
    way: str
    sends: int
    tasks: int
    patience: float
    ended: int = 0
    seconds: float = 0.0
    peak: int = 0
    in_flight: int = 0
    in_flight_bytes: int = 0
    statistics: str = ""


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Sampler:
    """Records the peak of the memory's growth and the peak of the records in flight."""

    def __init__(self, producer: SendProducer, run: Run) -> None:
        gc.collect()
        self._from = resident()
        self._producer = producer
        self._run = run
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        run = self._run
        while not self._stop.wait(0.01):
            run.peak = max(run.peak, resident() - self._from)
            now = self._producer.statistics()
            run.in_flight = max(run.in_flight, now.in_flight)
            run.in_flight_bytes = max(run.in_flight_bytes, now.in_flight_bytes)


async def warm_up(producer: SendProducer) -> None:
    """Wait until the topic exists and a record is acknowledged. The first sends may time out."""
    while True:
        try:
            await producer.send(ProducerRecord(TOPIC, b"warm"))
            return
        except DeliveryError:
            pass


async def measure(run: Run) -> None:
    """Do one run."""
    settings = ProducerSettings(
        bootstrap_servers="replaced.invalid:9092", close_timeout=2.0, cancel_timeout=2.0
    )
    if run.way == "deadline":
        settings = settings.with_delivery_timeout(run.patience)

    async def send_on(producer: SendProducer) -> None:
        for _ in range(run.sends // run.tasks):
            # New bytes for each record, as in a program that receives its records.
            record = ProducerRecord(TOPIC, os.urandom(run.size), os.urandom(8))
            if run.way == "deadline":
                try:
                    await producer.send(record)
                except DeliveryError:
                    run.ended += 1
            else:
                with anyio.move_on_after(run.patience) as scope:
                    await producer.send(record)
                run.ended += scope.cancelled_caught

    async with embedded_broker() as broker:
        settings = settings.with_bootstrap_servers(broker.bootstrap_servers)
        try:
            async with open_send_producer(settings) as producer:
                await warm_up(producer)
                broker.pause()
                began = time.perf_counter()
                with Sampler(producer, run):
                    async with anyio.create_task_group() as tasks:
                        for _ in range(run.tasks):
                            tasks.start_soon(send_on, producer)
                run.seconds = time.perf_counter() - began
                run.statistics = repr(producer.statistics())
        except UndeliveredRecords:
            pass  # the records of cancelled callers
        broker.resume()


def table(run: Run, bound: int) -> str:
    """Return a row of figures."""
    overhead = (run.peak - run.in_flight_bytes) / max(1, run.in_flight)
    return (
        f"{run.backend:8}{run.size:8} B  {run.way:10}{run.ended:9,}{run.seconds:8.1f} s"
        f"{run.in_flight:9,}{run.in_flight_bytes / MIB:9.1f}{bound / MIB:8.0f}"
        f"{run.peak / MIB:9.1f}{overhead:10,.0f} B"
    )


def main() -> None:
    """Do all runs, each in its own process, and print their figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sends", type=int, default=200_000)
    parser.add_argument("--tasks", type=int, default=1_000)
    parser.add_argument("--patience", type=float, default=0.05)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run = Run(**json.loads(options.one))
        # The producer logs warnings because it cannot replace its client.
        logging.disable(logging.CRITICAL)
        anyio.run(measure, run, backend=run.backend)
        print(json.dumps(dataclasses.asdict(run)))
        return
    bound = ProducerSettings(bootstrap_servers="replaced.invalid:9092").max_buffered_bytes
    print(f"{options.sends:,} sends from {options.tasks:,} tasks; no broker answers; sizes in MiB")
    print(
        "loop      record    ended by    ended    time  records    bytes  bound   growth  over/rec"
    )
    for backend in ("asyncio", "trio"):
        for size in (100, 10_000):
            for way in ("deadline", "caller"):
                asked: dict[str, Any] = dataclasses.asdict(
                    Run(backend, size, way, options.sends, options.tasks, options.patience)
                )
                done = subprocess.run(  # noqa: S603  # this very script
                    [sys.executable, __file__, "--one", json.dumps(asked)],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                print(table(Run(**json.loads(done.stdout)), bound), flush=True)


if __name__ == "__main__":
    main()
