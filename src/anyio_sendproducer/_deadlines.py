"""Deadlines of calls that have a ``timeout``, and the timer that waits for the next deadline."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Container, Iterator
from typing import Final, NamedTuple

from anyio import CancelScope

from ._clock import Clock
from ._delivery import DeliveryState, Entry

__all__ = ["CallDeadline", "CallDeadlines", "DeadlineTimer"]

_WITHOUT_OUTCOME: Final = frozenset(
    {DeliveryState.WAITING, DeliveryState.QUEUED, DeliveryState.SUBMITTED}
)

#: Remove the deadlines of finished records when there are at least this many deadlines.
_LEAST_PRUNED: Final = 64


class CallDeadline(NamedTuple):
    """The deadline of one call, for all of its records."""

    at: float
    """The time, on the producer's clock."""
    timeout: float
    """The call's ``timeout`` in seconds, for the message of the error."""


class CallDeadlines:
    """The deadlines of records whose call has a ``timeout``, earliest first.

    The ledger's own deadlines need no heap, because all records have the same
    ``delivery_timeout``. A record that gets its outcome is not removed from this heap at once,
    because that would cost time for each record. It is dropped later: when it reaches the top, or
    when the heap has doubled.

    Args:
        retained: the records that failed while the driver had them, and that it still has.
    """

    def __init__(self, retained: Container[Entry]) -> None:
        self._retained = retained
        # The time, a number that orders equal times, the entry, and the timeout: None if the entry
        # has failed and its `delivery_timeout` ends at this time.
        self._heap: list[tuple[float, int, Entry, float | None]] = []
        self._numbers = itertools.count()
        self._prune_at = _LEAST_PRUNED

    def add(self, entry: Entry, deadline: CallDeadline) -> None:
        """Add the deadline of a call that a record belongs to."""
        self._push(deadline.at, entry, deadline.timeout)

    def add_failed(self, entry: Entry) -> None:
        """Add a record that failed at its call's deadline, while the driver had it. It becomes due
        again when its ``delivery_timeout`` ends."""
        self._push(entry.deadline, entry, None)

    def _push(self, at: float, entry: Entry, timeout: float | None) -> None:
        heapq.heappush(self._heap, (at, next(self._numbers), entry, timeout))
        if len(self._heap) >= self._prune_at:
            self._heap = [item for item in self._heap if self._is_valid(item[2], item[3])]
            heapq.heapify(self._heap)
            self._prune_at = max(_LEAST_PRUNED, 2 * len(self._heap))

    def _is_valid(self, entry: Entry, timeout: float | None) -> bool:
        return entry in self._retained if timeout is None else entry.state in _WITHOUT_OUTCOME

    def earliest(self) -> float:
        """The earliest time at which a record is due; infinity if there is none."""
        heap = self._heap
        while heap and not self._is_valid(heap[0][2], heap[0][3]):
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def take_due(self, now: float) -> Iterator[tuple[Entry, float | None]]:
        """Take the records that are due, each with its call's timeout.

        The timeout is None for a record that failed before and whose ``delivery_timeout`` has
        ended. The caller may fail records between two items.
        """
        while self.earliest() <= now:
            _, _, entry, timeout = heapq.heappop(self._heap)
            yield entry, timeout


class DeadlineTimer:
    """Sleeps until the next deadline, and wakes up sooner for an earlier one.

    Args:
        clock: the producer's clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The time until which it sleeps; -inf if it does not.
        self._until = -math.inf
        self._scope: CancelScope

    async def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``, or until an earlier deadline is added."""
        self._until = self._clock.now() + seconds
        with CancelScope() as self._scope:
            await self._clock.sleep(seconds)
        self._until = -math.inf

    def add(self, deadline: float) -> None:
        """Wake up by this time."""
        if deadline < self._until:
            self._until = -math.inf
            self._scope.cancel()
