"""Failures for the end of a scope: the producer's, or that of a transaction."""

from __future__ import annotations

from typing import Final

from ._delivery import Entry
from ._exceptions import DeliveryError

__all__ = ["KEPT_FAILURES", "FirstFailure", "UnawaitedFailures"]

#: How many failures a report keeps whole; it only counts the others.
KEPT_FAILURES: Final = 1000

#: The ``report`` of an entry whose caller waits for the failure, and thus sees it.
_NONE: Final = 0
#: The ``report`` of an entry whose failure a caller has seen.
_SEEN: Final = -1


class UnawaitedFailures:
    """The failures that no caller has seen since the last report.

    ``Entry.report`` is the number of the report that a failure belongs to.

    Args:
        limit: how many failures to keep whole.
    """

    def __init__(self, limit: int = KEPT_FAILURES) -> None:
        self._limit = limit
        self._kept: dict[Entry, None] = {}
        self._others = 0
        self._number = 1

    def expect(self, entry: Entry) -> None:
        """A caller waits for the outcome of an entry that fails."""
        entry.report = _NONE

    def add(self, entry: Entry) -> None:
        """No caller waits for the outcome of an entry that failed."""
        entry.report = self._number
        if len(self._kept) < self._limit:
            self._kept[entry] = None
        else:
            self._others += 1

    def mark_seen(self, entry: Entry) -> None:
        """A caller has seen the failure, perhaps after it was added."""
        if entry.report == self._number:
            if entry in self._kept:
                del self._kept[entry]
            else:
                self._others -= 1
        entry.report = _SEEN

    def is_settled(self, entry: Entry) -> bool:
        """Whether the failure was added or seen already."""
        return entry.report != _NONE

    def was_seen(self, entry: Entry) -> bool:
        """Whether a caller has seen the failure."""
        return entry.report == _SEEN

    def take(self) -> tuple[list[DeliveryError], int]:
        """Begin the next report.

        Returns: the failures that were kept for this one, oldest first, and the number of all.
        """
        errors = [entry.outcome for entry in self._kept]
        count = len(errors) + self._others
        self._kept.clear()
        self._others = 0
        self._number += 1
        return [error for error in errors if isinstance(error, DeliveryError)], count


class FirstFailure:
    """The first failure of a record of one transaction.

    Args:
        accepted: how many records had been accepted when the transaction began. They are not part
            of it.
    """

    def __init__(self, accepted: int = 0) -> None:
        self._accepted = accepted
        self.error: DeliveryError | None = None

    def note(self, entry: Entry, error: DeliveryError) -> None:
        """A record failed. One that waits for room has no number yet, and is part of it."""
        if self.error is None and not 0 < entry.seq <= self._accepted:
            self.error = error
