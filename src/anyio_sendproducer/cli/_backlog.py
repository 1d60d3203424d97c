"""The records that ``produce`` has read but not settled, and failures that are not written yet."""

from __future__ import annotations

import bisect
import collections
from collections.abc import Sequence
from typing import Final

import anyio.to_thread

from .. import DeliveryError, Persistence
from ._account import Account
from ._chunks import Chunk, iterate
from ._failed import FailedFile, Failure
from ._report import described

__all__ = ["STOPPED", "Backlog", "all_failed", "stop_at_failure"]

#: Why --fail-fast did not send a record.
STOPPED: Final = "the record was not sent: another record failed (--fail-fast)"


class Backlog:
    """Keeps what was read until each record has an outcome and each failure is in the failed file.

    However the tasks end, :meth:`settle_rest` writes down the rest.

    Args:
        account: counts the records that are read and those that fail.
        file: receives the failures.
    """

    def __init__(self, account: Account, file: FailedFile) -> None:
        self._account = account
        self._file = file
        self._chunks: collections.deque[Chunk] = collections.deque()
        self._being_sent = 0
        """How many of the first chunks are with the producer."""
        self._unwritten: list[Failure] = []

    def add(self, chunk: Chunk) -> None:
        """Take a chunk that was read."""
        self._chunks.append(chunk)
        self._account.count_read(chunk)

    def begin_sending(self, count: int) -> None:
        """Note that the producer gets the records of the first chunks."""
        self._being_sent = count

    def remove(self, count: int) -> None:
        """Remove the first chunks, whose records all have outcomes."""
        self._being_sent = 0
        for _ in range(count):
            self._chunks.popleft()

    async def write_down(self, failures: Sequence[Failure]) -> None:
        """Write failures to the file. A cancellation waits for the thread that writes."""
        self._fail(failures)
        await anyio.to_thread.run_sync(self._file.write, self._unwritten)
        self._unwritten = []

    def settle_rest(self) -> None:
        """Write down records without an outcome, and failures that could not be written so far."""
        for index, chunk in enumerate(self._chunks):
            reason, persistence = "the record was not sent", Persistence.NOT_PERSISTED
            if index < self._being_sent:
                reason = "the record's outcome is not known"
                persistence = Persistence.POSSIBLY_PERSISTED
            if self._account.error is not None:
                reason += f": {described(self._account.error)}"
            self._fail([*chunk.failures, *all_failed([chunk], reason, persistence)])
        self._chunks.clear()
        if self._unwritten:
            self._file.write(self._unwritten)
            self._unwritten = []

    def _fail(self, failures: Sequence[Failure]) -> None:
        self._account.count_failed(failures)
        self._unwritten += failures


def all_failed(
    chunks: Sequence[Chunk],
    reason: str,
    persistence: Persistence = Persistence.NOT_PERSISTED,
) -> list[Failure]:
    """A failure for each record of some chunks."""
    name = DeliveryError.__name__
    return [
        Failure(source, line, record, reason, name, persistence)
        for record, source, line in iterate(chunks)
    ]


def stop_at_failure(chunks: Sequence[Chunk]) -> None:
    """Make failures of the records after the first line that is not a record."""
    for index, chunk in enumerate(chunks):
        if chunk.failures:
            kept = bisect.bisect(chunk.numbers, chunk.failures[0].line)
            for later in chunks[index:]:
                rest = Chunk(later.source, later.records[kept:], later.numbers[kept:])
                later.failures += all_failed([rest], STOPPED)
                later.records, later.numbers = later.records[:kept], later.numbers[:kept]
                kept = 0
            return
