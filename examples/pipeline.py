"""Reads sensors, sends each reading to Kafka in an envelope, and counts the results.

    PIPELINE_BOOTSTRAP_SERVERS=localhost:9092 python pipeline.py

    sensors ──(100 readings)──> envelopes ──> producer.flow() ──> results

Each stage applies back-pressure to the stage before it: if Kafka is slow, the sensors wait. A
normal reading becomes one record. A reading that is too hot becomes two records, in one
MultiMessage, because it is also sent to ``alarms``. A broken reading becomes no record: its
PassThroughMessage keeps its place among the results.

Ctrl-C or SIGTERM only stops the sensors. The program then sends the remaining readings, for up to
10 seconds. A second signal ends the program at once. The exit code is 0 if all readings are in
Kafka. Otherwise it is 1, and an error message says why. Environment variables that start with
PIPELINE_ are settings of the producer.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import random
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Final

import anyio
import anyio.abc
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from anyio_sendproducer import (
    Envelope,
    Message,
    MultiMessage,
    MultiResult,
    PassThroughMessage,
    PassThroughResult,
    ProducerRecord,
    ProducerSettings,
    SendProducer,
    SendProducerError,
    open_send_producer,
)

SENSORS: Final = ("kitchen", "boiler", "roof")

#: Degrees Celsius. A reading of this temperature or more is an alarm.
HOT: Final = 90.0

#: Seconds to send the remaining readings after a signal.
DRAIN_SECONDS: Final = 10.0

DEFAULTS: Final[Mapping[str, str]] = {
    "PIPELINE_BOOTSTRAP_SERVERS": "localhost:9092",
    "PIPELINE_MAX_IN_FLIGHT": "1000",
}


@dataclasses.dataclass(frozen=True)
class Reading:
    """A reading of one sensor."""

    sensor: str
    number: int
    celsius: float


@dataclasses.dataclass
class Counts:
    """The numbers of readings and records so far."""

    readings: int = 0
    records: int = 0
    alarms: int = 0
    broken: int = 0

    def __str__(self) -> str:
        return (
            f"{self.readings} readings, {self.records} records, {self.alarms} alarms, "
            f"{self.broken} broken"
        )


# --- the source ----------------------------------------------------------------------------------


async def read_sensor(name: str, every: float, out: MemoryObjectSendStream[Reading]) -> None:
    """Read one sensor without end. These readings are random: replace them with your own."""
    chance = random.Random(name)  # noqa: S311  # not for cryptography
    async with out:
        for number in itertools.count():
            broken = chance.random() < 0.01
            celsius = math.nan if broken else round(chance.gauss(60, 15), 1)
            await out.send(Reading(name, number, celsius))
            await anyio.sleep(every)


async def read_sensors(
    every: float, out: MemoryObjectSendStream[Reading], scope: anyio.CancelScope
) -> None:
    """Read all sensors until the scope is cancelled. Then the stream ends."""
    async with out:
        with scope:
            async with anyio.create_task_group() as tasks:
                for name in SENSORS:
                    tasks.start_soon(read_sensor, name, every, out.clone())


# --- the transformation --------------------------------------------------------------------------


async def envelopes(
    readings: MemoryObjectReceiveStream[Reading],
) -> AsyncGenerator[Envelope[bytes, bytes, Reading]]:
    """Yield an envelope for each reading."""
    async for reading in readings:
        yield to_envelope(reading)


def to_envelope(reading: Reading) -> Envelope[bytes, bytes, Reading]:
    """Return an envelope with one record, two records or none."""
    if math.isnan(reading.celsius):
        return PassThroughMessage(reading)
    value = json.dumps(dataclasses.asdict(reading)).encode()
    # The key keeps the readings of one sensor in order.
    record = ProducerRecord("readings", value, reading.sensor.encode())
    if reading.celsius >= HOT:
        alarm = ProducerRecord("alarms", value, reading.sensor.encode())
        return MultiMessage([record, alarm], pass_through=reading)
    return Message(record, pass_through=reading)


# --- the results ---------------------------------------------------------------------------------


async def send_all(
    producer: SendProducer, readings: MemoryObjectReceiveStream[Reading], counts: Counts
) -> None:
    """Send all readings of the stream, and count the results."""
    async with producer.flow(envelopes(readings)) as results:
        async for result in results:
            counts.readings += 1
            if isinstance(result, PassThroughResult):
                counts.broken += 1
            elif isinstance(result, MultiResult):
                counts.alarms += 1
                counts.records += len(result.parts)
            else:
                counts.records += 1


async def report(producer: SendProducer, counts: Counts) -> None:
    """Print the counts once a second."""
    while True:
        print(f"{counts}; {producer.statistics().in_flight} in flight", flush=True)
        await anyio.sleep(1)


async def stop_on_signal(
    reading: anyio.CancelScope,
    sending: anyio.CancelScope,
    *,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    """Handle Ctrl-C and SIGTERM. The first signal stops the reading, and limits the time for the
    rest. The second signal also cancels the sending."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            if reading.cancel_called:
                sending.cancel()
            else:
                print("draining; a second signal ends the program at once", flush=True)
                reading.cancel()
                sending.deadline = anyio.current_time() + DRAIN_SECONDS


async def main(every: float) -> int:
    """Run until a signal arrives. Return the exit code."""
    settings = ProducerSettings.from_env("PIPELINE", {**DEFAULTS, **os.environ})
    counts = Counts()
    reading, sending = anyio.CancelScope(), anyio.CancelScope()
    problem: str | None = "interrupted"
    send, receive = anyio.create_memory_object_stream[Reading](100)
    async with receive, anyio.create_task_group() as tasks:
        await tasks.start(stop_on_signal, reading, sending)
        tasks.start_soon(read_sensors, every, send, reading)
        with sending:
            try:
                async with open_send_producer(settings) as producer:
                    tasks.start_soon(report, producer, counts)
                    await send_all(producer, receive, counts)
                problem = None
            except SendProducerError as error:
                problem = str(error)
        tasks.cancel_scope.cancel()
    print(f"{counts}; the end", flush=True)
    if problem is not None:
        print(f"pipeline: not all readings are in Kafka: {problem}", file=sys.stderr)
    return 0 if problem is None else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Reads sensors and sends their readings to Kafka.")
    parser.add_argument("--every", type=float, default=0.1, help="seconds between two readings")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    arguments = parser.parse_args()
    sys.exit(anyio.run(partial(main, arguments.every), backend=arguments.backend))
