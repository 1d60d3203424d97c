"""The state of the fake cluster: its topics with their records, and its transactions."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from .. import ConsumerGroupMetadata, ProducerRecord, RecordMetadata, SendProducerError
from ..drivers import ConsumedOffset
from ._checks import check_count

__all__ = ["FakeTopics", "FakeTransactions"]


class FakeTopics:
    """Topics that all have the same number of partitions, and the records in them.

    Attributes:
        unknown: topics without metadata.
        describe_error: the error to raise when the cluster is to describe itself, or None.
        written: the acknowledged records by topic and partition, in the order of their offsets.
    """

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self.unknown: set[str] = set()
        self.describe_error: SendProducerError | None = None
        self.written: dict[tuple[str, int], list[ProducerRecord[Any, Any]]] = {}
        self._turn = 0

    @property
    def partitions(self) -> int:
        """How many partitions each topic has."""
        return self._partitions

    @partitions.setter
    def partitions(self, count: int) -> None:
        check_count("partitions", count)
        self._partitions = count

    def write(self, record: ProducerRecord[Any, Any]) -> RecordMetadata:
        """Append a record to its partition."""
        partition = self._partition_of(record)
        log = self.written.setdefault((record.topic, partition), [])
        log.append(record)
        return RecordMetadata(
            record.topic,
            partition,
            len(log) - 1,
            record.timestamp_ms or 0,
            None if record.key is None else len(record.key),
            None if record.value is None else len(record.value),
        )

    def _partition_of(self, record: ProducerRecord[Any, Any]) -> int:
        if record.partition is not None:
            return record.partition
        if record.key is not None:
            return zlib.crc32(repr(record.key).encode()) % self.partitions
        self._turn = (self._turn + 1) % self.partitions
        return self._turn


class FakeTransactions:
    """The transactions of a fake driver.

    Attributes:
        ended: ``"committed"`` or ``"aborted"``, and the records, for each transaction that ended.
        offsets: the offsets that were sent, each with its consumer group.
        end_error: called with whether to commit; returns the error to raise, or None.
        offsets_error: the error to raise when offsets are sent, or None.
    """

    def __init__(self) -> None:
        self.ended: list[tuple[str, list[ProducerRecord[Any, Any]]]] = []
        self.offsets: list[tuple[ConsumedOffset, ConsumerGroupMetadata]] = []
        self.end_error: Callable[[bool], SendProducerError | None] = lambda _: None
        self.offsets_error: SendProducerError | None = None
        self._records: list[ProducerRecord[Any, Any]] | None = None

    def begin(self) -> None:
        """Begin a transaction, unless one is open."""
        if not self._records:
            self._records = []

    def add(self, records: list[ProducerRecord[Any, Any]]) -> None:
        """Add records to the open transaction, if there is one."""
        if self._records is not None:
            self._records += records

    def end(self, *, commit: bool) -> None:
        """End the open transaction."""
        records, self._records = self._records or [], None
        self.ended.append(("committed" if commit else "aborted", records))

    def abandon(self) -> None:
        """Abort the open transaction, if it has records, as the next client would."""
        if self._records:
            self.end(commit=False)
        self._records = None
