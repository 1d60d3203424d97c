"""The failures that are raised when the block of a producer or of a transaction ends."""

from __future__ import annotations

from typing import Final

from ._delivery import Entry
from ._exceptions import DeliveryError

__all__ = ["KEPT_FAILURES", "FirstFailure", "UnawaitedFailures"]

#: How many failures are kept with their errors; the others are only counted.
KEPT_FAILURES: Final = 1000

#: The ``report_number`` of a failure that a caller waits for, and so will see: the initial value.
_AWAITED: Final = 0
#: The ``report_number`` of a failure that a caller has seen.
_SEEN: Final = -1


class UnawaitedFailures:
    """The failures that no caller has seen.

    :meth:`take` returns them once, as a report. ``Entry.report_number`` is the number of the report
    that a failure belongs to.

    Args:
        limit: how many failures a report keeps with their errors.
    """

    def __init__(self, limit: int = KEPT_FAILURES) -> None:
        self._limit = limit
        self._kept: dict[Entry, None] = {}
        self._not_kept = 0
        self._number = 1
        #: The first failure of the open transaction.
        self.first = FirstFailure()

    def mark_awaited(self, entry: Entry) -> None:
        """Initialize an entry that fails. Assume that a caller waits; :meth:`add` corrects that."""
        entry.report_number = _AWAITED

    def add(self, entry: Entry) -> None:
        """Add the failure of an entry whose outcome no caller waits for."""
        entry.report_number = self._number
        if len(self._kept) < self._limit:
            self._kept[entry] = None
        else:
            self._not_kept += 1

    def mark_seen(self, entry: Entry) -> None:
        """Note that a caller has seen the failure. Remove it if it was added."""
        if entry.report_number == self._number:
            if entry in self._kept:
                del self._kept[entry]
            else:
                self._not_kept -= 1
        entry.report_number = _SEEN

    def is_recorded(self, entry: Entry) -> bool:
        """Whether the failure was added or seen."""
        return entry.report_number != _AWAITED

    def was_seen(self, entry: Entry) -> bool:
        """Whether a caller has seen the failure."""
        return entry.report_number == _SEEN

    def take(self) -> tuple[list[DeliveryError], int]:
        """Take the current report, and start the next.

        Returns:
            The errors that were kept, oldest first, and the number of all failures.
        """
        errors = [entry.outcome for entry in self._kept]
        count = len(errors) + self._not_kept
        self._kept.clear()
        self._not_kept = 0
        self._number += 1
        return [error for error in errors if isinstance(error, DeliveryError)], count


class FirstFailure:
    """The first failure of a record of one transaction.

    Args:
        accepted: how many records had been accepted when the transaction began. They are not part
            of the transaction. None if no transaction has begun: then no failure is kept, because
            the traceback of an error keeps the frames of its caller alive.
    """

    def __init__(self, accepted: int | None = None) -> None:
        self._accepted = accepted
        self.error: DeliveryError | None = None

    def includes(self, entry: Entry) -> bool:
        """Whether a record is part of the transaction. A record that waits for room is part of it,
        and has no number (0) yet."""
        return self._accepted is None or not 0 < entry.seq <= self._accepted

    def note(self, entry: Entry, error: DeliveryError) -> None:
        """Note that a record failed."""
        if self.error is None and self._accepted is not None and self.includes(entry):
            self.error = error
