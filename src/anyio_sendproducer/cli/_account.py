"""The account of one run of ``produce``: the outcome of each record."""

from __future__ import annotations

import collections
import signal
from collections.abc import Sequence
from typing import Final

from .. import Persistence, RecordMetadata
from ._chunks import Chunk
from ._failed import Failure

__all__ = ["Account", "Place"]

#: How many different reasons are counted. A reason may have the name of a topic or a number in it.
_MOST_REASONS: Final = 100


class Place:
    """The records that one partition has received. The offsets are None if brokers gave none."""

    __slots__ = ("count", "first", "last")

    def __init__(self) -> None:
        self.count = 0
        self.first: int | None = None
        self.last: int | None = None


class Account:
    """Counts the outcomes of one run. It is not thread-safe."""

    def __init__(self) -> None:
        self.read = 0
        self.delivered = 0
        self.failures = 0
        """Records that failed, and lines that are not records."""
        self.unreadable = 0
        """The lines among them."""
        self.persistence: collections.Counter[Persistence] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.reasons: collections.Counter[str] = collections.Counter()
        """How often each reason occurred. Only the first ``_MOST_REASONS`` different reasons are
        counted, to bound the memory."""
        self.places: dict[tuple[str, int], Place] = {}
        """The partitions that received records, by topic and number."""
        self.seconds = 0.0
        """The time from the start of the reading to the last outcome."""
        self.last: tuple[str, int] | None = None
        """The input and the number of the last line that was read."""
        self.all_read = False
        """Whether each input was read to its end."""
        self.has_begun = False
        """Whether there was a producer."""
        self.signal: int | None = None
        self.error: BaseException | None = None
        """The first error that ended the run before its time."""
        self.display_error: Exception | None = None

    def end_by(self, error: BaseException) -> None:
        """Note an error that ends the run."""
        # Groups are not a built-in class on Python 3.10.
        while inside := getattr(error, "exceptions", ()):
            error = inside[0]
        if isinstance(error, KeyboardInterrupt):
            self.signal = self.signal or signal.SIGINT
        elif self.error is None:
            self.error = error

    def count_read(self, chunk: Chunk) -> None:
        """Count the records and failures of a chunk that was read."""
        self.read += chunk.count
        self.last = (chunk.source, chunk.last)

    def count_delivered(self, placed: Sequence[RecordMetadata]) -> None:
        """Count records that were delivered."""
        self.delivered += len(placed)
        places = self.places
        for topic, partition, offset, _, _, _ in placed:
            place = places.get((topic, partition))
            if place is None:
                place = places[topic, partition] = Place()
                place.first = offset
            place.count += 1
            # A broker gives no offset without acknowledgements, or if it does not know it any more.
            if offset is not None:
                place.last = offset

    def count_failed(self, failures: Sequence[Failure]) -> None:
        """Count records that failed, and lines that are not records."""
        self.failures += len(failures)
        self.unreadable += sum(isinstance(failure.what, bytes) for failure in failures)
        self.persistence.update(failure.persistence for failure in failures)
        self.errors.update(failure.error for failure in failures)
        for failure in failures:
            if failure.reason in self.reasons or len(self.reasons) < _MOST_REASONS:
                self.reasons[failure.reason] += 1
