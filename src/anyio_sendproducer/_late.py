"""Records that a client holds past their deadline, and when to replace the client for them."""

from __future__ import annotations

from typing import Final

from ._delivery import Entry

__all__ = ["LATENESS", "PATIENCE", "LateRecords"]

#: Seconds that a client which holds late records may go on without delivering any record at all.
PATIENCE: Final = 10.0

#: Seconds that a client has to let go of a record after its deadline. A healthy client lets go of a
#: record that it could not send a second or two late.
LATENESS: Final = 5.0


class LateRecords:
    """The records that the driver still has after their deadline.

    A client is given up if it holds a record for ``LATENESS`` seconds after its deadline, and such
    records take up half of all room, or the client has delivered nothing for ``PATIENCE`` seconds.

    Args:
        max_records: the room for records, of which half is too much.
        max_bytes: the room for their bytes.
    """

    def __init__(self, max_records: int, max_bytes: int) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._entries: dict[Entry, None] = {}
        self._bytes = 0
        # Since when nothing was delivered, and how many records had been delivered by then.
        self._since = 0.0
        self._delivered = -1

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, entry: Entry) -> None:
        """The deadline of a record is over, and the driver has it."""
        self._entries[entry] = None
        self._bytes += entry.size

    def discard(self, entry: Entry) -> None:
        """The driver has let go of a record, which may be a late one."""
        if entry in self._entries:
            del self._entries[entry]
            self._bytes -= entry.size

    def resize(self, entry: Entry, size: int) -> None:
        """The size of a record, which may be a late one, is going to be corrected."""
        if entry in self._entries:
            self._bytes += size - entry.size

    def note_progress(self, now: float, delivered: int, *, had_any: bool) -> None:
        """Look whether the client still delivers.

        Args:
            now: the time.
            delivered: how many records were delivered so far.
            had_any: whether there were late records before this check.
        """
        if not had_any or self._delivered != delivered:
            self._since = now
            self._delivered = delivered

    def give_up_at(self) -> float:
        """The time at which the client must be replaced, if it keeps these records until then."""
        oldest = next(iter(self._entries)).deadline + LATENESS
        if len(self._entries) * 2 >= self._max_records or self._bytes * 2 >= self._max_bytes:
            return oldest
        return max(oldest, self._since + PATIENCE)
