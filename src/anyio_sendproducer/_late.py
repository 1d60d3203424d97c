"""Late records, which a client still has after their deadlines, and when to give that client up."""

from __future__ import annotations

import operator
from typing import Final

from ._delivery import Entry

__all__ = ["LATENESS", "PATIENCE", "LateRecords"]

#: Seconds for which a client that has late records may deliver no record at all.
PATIENCE: Final = 10.0

#: Seconds after a record's deadline within which a client must report the record. If a healthy
#: client could not send the record, it reports the failure one or two seconds after the deadline.
LATENESS: Final = 5.0


_deadline_of: Final = operator.attrgetter("deadline")


class LateRecords:
    """The records that the driver still has after their deadlines.

    The client is given up if a record is ``LATENESS`` seconds past its deadline, and either late
    records take up half of the room, or no record was delivered for ``PATIENCE`` seconds.

    Args:
        max_records: the room for records.
        max_bytes: the room for their bytes.
    """

    def __init__(self, max_records: int, max_bytes: int) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._entries: dict[Entry, None] = {}
        self._bytes = 0
        # The last time at which there was progress, and the number of records delivered by then.
        self._since = 0.0
        self._delivered = -1

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, entry: Entry) -> None:
        """Add a record that the driver has after its deadline."""
        last = next(reversed(self._entries), None)
        self._entries[entry] = None
        self._bytes += entry.size
        if last is not None and entry.deadline < last.deadline:
            # It failed before, by the deadline of its call. Keep the entries sorted by deadline.
            self._entries = dict.fromkeys(sorted(self._entries, key=_deadline_of))

    def discard(self, entry: Entry) -> None:
        """Remove a record that the driver has reported, if it is a late one."""
        if entry in self._entries:
            del self._entries[entry]
            self._bytes -= entry.size

    def resize(self, entry: Entry, size: int) -> None:
        """Note that the size of a record will change, if it is a late one."""
        if entry in self._entries:
            self._bytes += size - entry.size

    def note_progress(self, now: float, delivered: int, *, had_any: bool) -> None:
        """Check whether the client has delivered records since the last check.

        Args:
            now: the time.
            delivered: the number of records delivered so far.
            had_any: whether there were late records before this check.
        """
        if not had_any or self._delivered != delivered:
            self._since = now
            self._delivered = delivered

    def give_up_at(self) -> float:
        """The time at which to give the client up, if it still has these records then."""
        oldest = next(iter(self._entries)).deadline + LATENESS
        if len(self._entries) * 2 >= self._max_records or self._bytes * 2 >= self._max_bytes:
            return oldest
        return max(oldest, self._since + PATIENCE)
