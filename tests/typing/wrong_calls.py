"""Calls that mypy and pyright must reject. Type checkers check this file. It is never run.

A comment that suppresses no error is itself an error, for both checkers.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import anyio.abc

from anyio_sendproducer import (
    ProducerRecord,
    ProducerSettings,
    SendProducer,
    Statistics,
    open_send_producer,
    start_send_producer,
)
from anyio_sendproducer.serializers import TopicSerializer


def choose_text(_topic: str, _key: bytes | None, partitions: Sequence[int]) -> str:
    """Return a string, which no partitioner may do."""
    return str(partitions[0])


async def arguments_of_calls(producer: SendProducer) -> None:
    """Wrong types of arguments."""
    await producer.warm_up(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await producer.warm_up([7])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    TopicSerializer([])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    TopicSerializer({"orders": 7})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]


def keywords_of_settings(settings: ProducerSettings) -> None:
    """Wrong names and types of fields."""
    ProducerSettings(linger_ms=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ProducerSettings(delivery_timout=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ProducerSettings(delivery_timeout="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ProducerSettings(max_in_flight=dt.timedelta(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ProducerSettings("localhost:9092")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    settings.evolve(delivery_timout=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    settings.evolve(client_id=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    settings.evolve(partitioner="murmur2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    settings.with_partitioner(choose_text)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    settings.with_close_timeout("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def keywords_of_opening(settings: ProducerSettings, tasks: anyio.abc.TaskGroup) -> None:
    """Wrong names, types and drivers."""
    open_send_producer(delivery_timeout_ms=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    open_send_producer(bootstrap_servers=9092)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    open_send_producer("localhost:9092")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    open_send_producer(settings=settings)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    open_send_producer(settings, driver="librdkafka")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await start_send_producer(settings)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await start_send_producer(tasks, driver="kafka")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await start_send_producer(tasks, linger_ms=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def uses_of_opening(settings: ProducerSettings) -> None:
    """The result of `open_send_producer` must be used with `async with`."""
    opening = open_send_producer(settings)
    await opening  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    with opening:  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    await opening.send(ProducerRecord("orders", b"v"))  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def states(statistics: Statistics) -> bool:
    """A state that does not exist."""
    return statistics.state == "opened"  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]
