"""How a partition is chosen: by a partitioner of kafka-python, or by Kafka's hash of the key."""

# kafka-python has no annotations. Values of unknown types are cast where they leave the module.
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

from ..._exceptions import RecordRejected, discreet
from ..._records import ProducerRecord
from ..._shown import raised_text, shown
from .._partitioning import discreet_reason
from ._errors import rejected

__all__ = [
    "NoPartition",
    "UsersPartitioner",
    "hash_of_key",
]


class NoPartition(Exception):
    """The user's partitioner did not choose a partition that exists.

    If it raised, its error is the cause.
    """

    def rejection(self, record: ProducerRecord[Any, Any]) -> RecordRejected:
        """Make the error of the record."""
        cause = self.__cause__
        return discreet(rejected(record, str(self), cause), discreet_reason(cause))


@contextlib.contextmanager
def _users_partitioner() -> Generator[None]:
    try:
        yield
    except BaseException as error:
        raise NoPartition(f"the partitioner {raised_text(error)}") from error


class UsersPartitioner(Partitioner):  # pyright: ignore[reportUntypedBaseClass]
    """Calls the partitioner that the user has set as a property of kafka-python.

    If it raises, or chooses a partition that does not exist, only the record in question fails.
    3.0.12 accepts any number from a partitioner, and never sends a record for a partition that does
    not exist.
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
            raise NoPartition(
                f"the partitioner chose {shown(number)}, which is not a partition of topic "
                f"{topic!r}"
            )
        return number

    def on_new_batch(self, *args: Any) -> None:
        """Report that a batch is about to begin; kafka-python's sticky partitioner needs this."""
        with _users_partitioner():
            getattr(self._chosen, "on_new_batch", lambda *_: None)(*args)  # pyright: ignore[reportUnknownLambdaType]


@functools.lru_cache(maxsize=16_384)
def _hash_of_short_key(key: bytes) -> int:
    return cast("int", murmur2(key)) & 0x7FFFFFFF


def hash_of_key(key: bytes) -> int:
    """Hash a key as Kafka's default partitioner does."""
    # murmur2 in Python costs more than the rest of a send, so the hashes of short keys are cached.
    # Long keys would fill memory, and seldom occur again.
    if len(key) <= 64:
        return _hash_of_short_key(key)
    return cast("int", murmur2(key)) & 0x7FFFFFFF
