"""What awaiting every record costs, against bare kafka-python that awaits none.

    python bench/awaited.py [--records 50000] [--rounds 5] [--size 100] [--tasks 1000] [--bare-only]

All contenders take turns on the same mock cluster in one run; the ratios are of each round, the
figure reported is their median, since absolute figures drift from run to run on a shared machine.

* bare: ``KafkaProducer.send`` for each record, then one ``flush``, at the best settings we know
  for it (see BARE): no wait per record, no outcome looked at.
* ours, N tasks: N tasks, each of which awaits ``producer.send`` for one record after the other.
* ours, send_many: one call for 10,000 records at a time.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from kafka import KafkaProducer
from mock_cluster import TOPIC, mock_cluster

import anyio_sendproducer
from anyio_sendproducer import ProducerRecord, ProducerSettings, open_send_producer

PARTITIONS = 4
#: The best that bare kafka-python does here; "default linger" is its own default of 0 ms.
BARE: dict[str, dict[str, Any]] = {
    "bare, linger 0, 256 KiB": {"linger_ms": 0, "batch_size": 256 * 1024},
    "bare, linger 5, 256 KiB": {"linger_ms": 5, "batch_size": 256 * 1024},
    "bare, linger 0, 16 KiB": {"linger_ms": 0, "batch_size": 16 * 1024},
}


def bare(bootstrap: str, count: int, value: bytes, options: dict[str, Any]) -> float:
    """Records per second of ``send`` and one ``flush``."""
    client = KafkaProducer(
        bootstrap_servers=bootstrap, api_version=(2, 3), metrics_enabled=False, **options
    )
    try:
        client.send(TOPIC, value)
        client.flush()
        start = time.perf_counter()
        for _ in range(count):
            client.send(TOPIC, value)
        client.flush()
        return count / (time.perf_counter() - start)
    finally:
        client.close()


def settings(bootstrap: str) -> ProducerSettings:
    """The defaults, but for what the mock cluster asks of kafka-python."""
    return ProducerSettings(bootstrap_servers=bootstrap, properties={"api_version": (2, 3)})


async def awaited(bootstrap: str, count: int, value: bytes, tasks: int) -> dict[str, float]:
    """Each of so many tasks awaits one record after the other."""
    async with open_send_producer(settings(bootstrap)) as producer:
        await producer.send(ProducerRecord(TOPIC, value))

        async def one_task(records: int) -> None:
            for _ in range(records):
                await producer.send(ProducerRecord(TOPIC, value))

        before = producer.statistics()
        start = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(tasks):
                group.start_soon(one_task, count // tasks)
        rate = count / (time.perf_counter() - start)
        after = producer.statistics()
        crossings = after.hand_overs - before.hand_overs + after.wake_ups - before.wake_ups
        if after.delivered - before.delivered != count // tasks * tasks:
            raise SystemExit(f"not every record was delivered: {after}")
        return {"rate": rate, "crossings": crossings / count}


async def many(bootstrap: str, count: int, value: bytes, at_once: int) -> dict[str, float]:
    """One wait for so many records."""
    async with open_send_producer(settings(bootstrap)) as producer:
        await producer.send(ProducerRecord(TOPIC, value))
        start = time.perf_counter()
        for _ in range(count // at_once):
            await producer.send_many([ProducerRecord(TOPIC, value) for _ in range(at_once)])
        return {"rate": count / (time.perf_counter() - start)}


async def alone(bootstrap: str, count: int, value: bytes) -> dict[str, float]:
    """One task, one record after the other."""
    return await awaited(bootstrap, min(count, 2000), value, 1)


def _quieten() -> None:
    # What this script has imported, three clients among it, is not to be gone through at each of
    # the collector's full rounds, at whosever turn one happens to come.
    gc.collect()
    gc.freeze()


def main() -> None:
    """Run all contenders in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON as well")
    options = parser.parse_args()
    value = b"v" * options.size
    count = options.records
    loops: dict[str, tuple[str, dict[str, Any]]] = {
        "asyncio": ("asyncio", {}),
        "uvloop": ("asyncio", {"use_uvloop": True}),
        "trio": ("trio", {}),
    }
    jobs: dict[str, Callable[[str], Awaitable[dict[str, float]]]] = {
        "1,000 tasks": lambda at: awaited(at, count, value, 1000),
        "100 tasks": lambda at: awaited(at, count, value, 100),
        "send_many(10,000)": lambda at: many(at, count, value, 10_000),
        "one task": lambda at: alone(at, count, value),
    }
    figures: dict[str, list[dict[str, float]]] = {}
    with mock_cluster(PARTITIONS) as bootstrap:
        for number in range(options.rounds + 1):  # the first round warms up
            this_round: dict[str, dict[str, float]] = {}
            for name, config in BARE.items():
                _quieten()
                this_round[name] = {"rate": bare(bootstrap, count, value, config)}
            for job, run in jobs.items():
                for loop, (backend, backend_options) in loops.items():
                    _quieten()
                    this_round[f"{job}, {loop}"] = anyio.run(
                        run, bootstrap, backend=backend, backend_options=backend_options
                    )
            if number:
                for name, figure in this_round.items():
                    figures.setdefault(name, []).append(figure)
    best = max(BARE, key=lambda name: statistics.median(row["rate"] for row in figures[name]))
    print(
        f"anyio-sendproducer {anyio_sendproducer.__name__} on Python {platform.python_version()}, "
        f"{count} records of {options.size} B, {PARTITIONS} partitions, {options.rounds} rounds"
    )
    print(f"| contender | records/s | of {best} (least-most) | crossings per record |")
    print("|---|---:|---:|---:|")
    for name, rows in figures.items():
        ratios = [
            row["rate"] / bare_row["rate"]
            for row, bare_row in zip(rows, figures[best], strict=True)
        ]
        crossings = (
            f"{statistics.median(row['crossings'] for row in rows):.4f}"
            if "crossings" in rows[0]
            else ""
        )
        print(
            f"| {name} | {statistics.median(row['rate'] for row in rows):,.0f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) "
            f"| {crossings} |"
        )
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
