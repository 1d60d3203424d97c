"""Measure the memory of a pending record, in bytes.

The producer opens with the embedded broker, which is then frozen, so records stay pending. The
result is the growth of the process divided by the number of records. It includes the memory of the
client, and for ``send`` the task that waits. Linux only.
"""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

#: The ways to send, by the names of the workloads.
WAYS = ("pending-send", "pending-enqueue", "pending-flow")


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def run(driver: str, way: str, records: int, value: bytes) -> float:
    """Send records that stay pending, and measure their memory.

    Args:
        driver: the driver's name.
        way: one of `WAYS`.
        records: the number of records.
        value: the value of each record.

    Returns:
        The bytes for each record, including its value.
    """
    from anyio_sendproducer import ProducerSettings, open_send_producer
    from anyio_sendproducer.testing import embedded_broker

    topic = "pending"
    async with embedded_broker() as broker:
        settings = ProducerSettings(
            bootstrap_servers=broker.bootstrap_servers,
            max_in_flight=records + 1,
            max_buffered_bytes=2**31,
        )
        kind: Any = driver
        async with open_send_producer(settings, driver=kind) as producer:
            await producer.send(topic, value)
            broker.pause()
            gc.collect()
            before = resident()
            async with anyio.create_task_group() as group:
                await _WAYS[way](producer, group, topic, records, value)
                while producer.statistics().in_flight < records:
                    await anyio.lowlevel.checkpoint()
                gc.collect()
                grown = resident() - before
                broker.resume()
    return grown / records


async def _send(producer: Any, group: Any, topic: str, records: int, value: bytes) -> None:
    for _ in range(records):
        group.start_soon(producer.send, topic, value)


async def _enqueue(producer: Any, group: Any, topic: str, records: int, value: bytes) -> None:
    from anyio_sendproducer import ProducerRecord

    deliveries = [await producer.enqueue(ProducerRecord(topic, value)) for _ in range(records)]

    async def wait() -> None:
        for delivery in deliveries:
            await delivery

    group.start_soon(wait)


async def _flow(producer: Any, group: Any, topic: str, records: int, value: bytes) -> None:
    from anyio_sendproducer import Message, ProducerRecord

    async def envelopes() -> AsyncIterator[Any]:
        for _ in range(records):
            yield Message(ProducerRecord(topic, value))

    async def receive() -> None:
        async with producer.flow(envelopes(), max_in_flight=records) as results:
            async for _ in results:
                pass

    group.start_soon(receive)


_WAYS = dict(zip(WAYS, (_send, _enqueue, _flow), strict=True))
