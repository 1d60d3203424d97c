"""Looks topics up and runs serializers before the first record needs them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel

from ._engine import Engine
from ._exceptions import SendProducerError
from ._records import ProducerRecord
from ._task_groups import raise_first
from ._validation import check_record, examples_of
from .drivers import Driver, serialize_record

__all__ = ["find_partitions", "warm_up"]


async def find_partitions(engine: Engine, topic: str, limit: tuple[float, str]) -> frozenset[int]:
    """Ask the driver for a topic's partitions until it knows them.

    Args:
        engine: the producer's engine.
        topic: a valid name of a topic.
        limit: the longest time in seconds, and the name of the setting or argument that it comes
            from.

    Raises:
        SendProducerError: see :meth:`SendProducer.partitions_for`.
        ProducerClosed, ProducerBroken: the producer was closed or broke meanwhile.
    """
    with anyio.move_on_after(limit[0]):
        while True:
            known = engine.metadata.changes
            found = await engine.bridge.call(lambda driver: driver.partitions_for(topic))
            if found is not None:
                return found
            engine.check_usable()
            await engine.metadata.wait(known)
    raise _too_late(engine, f"no broker reported the partitions of topic {topic!r}", limit)


async def warm_up(
    engine: Engine, given: Iterable[str | ProducerRecord[Any, Any]], limit: tuple[float, str]
) -> None:
    """Warm topics up; see :meth:`SendProducer.warm_up`.

    Args:
        engine: the producer's engine.
        given: the topics and the example records.
        limit: as for :func:`find_partitions`.
    """
    engine.check_usable()
    settings = engine.settings
    examples: dict[str, list[ProducerRecord[Any, Any]]] = {}
    for one in examples_of(given):
        if isinstance(one, ProducerRecord):
            record, _ = check_record(
                one,
                set(),
                settings.key_serializer is not None,
                settings.value_serializer is not None,
            )
            examples.setdefault(record.topic, []).append(record)
        else:
            record, _ = check_record(ProducerRecord(one, b""), set())
            examples.setdefault(record.topic, [])
    await anyio.lowlevel.checkpoint_if_cancelled()
    deadline = anyio.current_time() + limit[0]
    failures: list[Exception] = []

    async def warm(topic: str) -> None:
        try:
            await find_partitions(engine, topic, limit)
            with anyio.CancelScope(deadline=deadline):
                for record in examples[topic]:
                    await engine.bridge.call(partial(_serialize, engine, record))
                return
            what = f"the serializers of an example record for topic {topic!r} did not end"
            raise _too_late(engine, what, limit)
        except Exception as error:  # noqa: BLE001  # raised below
            failures.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for topic in examples:
            tasks.start_soon(warm, topic)
    raise_first(failures)
    await anyio.lowlevel.checkpoint()


def _serialize(engine: Engine, record: ProducerRecord[Any, Any], _: Driver) -> None:
    serialize_record(record, engine.settings)


def _too_late(engine: Engine, what: str, limit: tuple[float, str]) -> SendProducerError:
    last_error = engine.last_error()
    known = "" if last_error is None else f": {last_error}"
    error = SendProducerError(f"{what} within {limit[0]:g} s ({limit[1]}){known}")
    error.__cause__ = last_error
    return error
