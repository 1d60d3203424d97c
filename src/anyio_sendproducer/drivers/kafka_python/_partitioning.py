"""The choice of a partition: the user's partitioner, and Kafka's hash of a key."""

# kafka-python has no annotations. Its values have unknown types, and are cast where they leave.
# mypy: disable-error-code="misc"
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Generator
from typing import Any, cast

from kafka.partitioner import (
    Partitioner,  # pyright: ignore[reportAttributeAccessIssue]
    murmur2,
)

from ..._shown import raised_text, shown

__all__ = [
    "NoPartition",
    "UsersPartitioner",
    "hash_of_key",
]


class NoPartition(Exception):
    """The user's partitioner did not choose a partition; its error is the cause."""


@contextlib.contextmanager
def _users_partitioner() -> Generator[None]:
    try:
        yield
    except BaseException as error:
        raise NoPartition(f"the partitioner {raised_text(error)}") from error


class UsersPartitioner(Partitioner):  # pyright: ignore[reportUntypedBaseClass]
    """Calls a partitioner of the user's own. What it raises fails the one record.

    3.0.12 accepts any number from a partitioner. A record for a partition that does not exist would
    never be sent.
    """

    def __init__(self, chosen: Any) -> None:
        self._chosen = chosen

    def partition(self, topic: str, key: Any, *others: Any) -> int:
        """Choose a partition; see :meth:`kafka.partitioner.Partitioner.partition`."""
        serialized_key, *_, cluster = others
        choose = self._chosen.partition
        with _users_partitioner():
            number = operator.index(
                choose(topic, key, *others)
                if isinstance(self._chosen, Partitioner)
                else choose(topic, serialized_key, cluster)
            )
        if number not in (cluster.partitions_for_topic(topic) or {number}):
            raise NoPartition(f"the partitioner chose {shown(number)}, no partition of {topic!r}")
        return number

    def on_new_batch(self, *args: Any) -> None:
        """Report that a batch has begun, as the sticky partitioner of kafka-python wants it."""
        with _users_partitioner():
            getattr(self._chosen, "on_new_batch", lambda *_: None)(*args)  # pyright: ignore[reportUnknownLambdaType]


@functools.lru_cache(maxsize=16_384)
def _hash_of_short_key(key: bytes) -> int:
    return cast("int", murmur2(key)) & 0x7FFFFFFF


def hash_of_key(key: bytes) -> int:
    # murmur2 in Python costs more than the rest of a send. Long keys would fill memory with
    # entries that hardly ever come again.
    if len(key) <= 64:
        return _hash_of_short_key(key)
    return cast("int", murmur2(key)) & 0x7FFFFFFF
