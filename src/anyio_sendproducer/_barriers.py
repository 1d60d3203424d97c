"""The callers that wait until all records up to a certain one have their outcomes."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sized

from ._delivery import Entry

__all__ = ["Barriers"]


class Barriers(list[tuple[float, object]]):
    """For each caller: the number of the last record that it waits for, and the caller's waiter.

    The lowest number comes first. The number is infinity for a caller that also waits for records
    that are not accepted yet.
    """

    def add(self, last: float, waiter: object) -> None:
        """Add a barrier."""
        self.append((last, waiter))
        # A barrier for all records comes last, so that it does not delay the others.
        self.sort(key=operator.itemgetter(0))

    def drop(self, waiter: object) -> None:
        """Remove the barrier of a waiter that was cancelled."""
        self[:] = [barrier for barrier in self if barrier[1] is not waiter]

    def release(self, pending: Iterable[Entry], waiting: Sized, to_wake: list[object]) -> None:
        """Remove the barriers whose records have their outcomes.

        Args:
            pending: the accepted records without an outcome, in the order of their numbers.
            waiting: the records that wait for room.
            to_wake: the list that the waiters are appended to.
        """
        while self:
            last = self[0][0]
            for first in pending:
                if first.seq <= last:
                    return
                break
            if last == math.inf and waiting:
                return
            to_wake.append(self.pop(0)[1])
