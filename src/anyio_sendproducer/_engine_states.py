"""The states of an engine: of its client, of its pump, and of waits for metadata."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from ._loops import Loop

__all__ = ["ClientState", "MetadataWaits", "PumpState"]


class ClientState(enum.Enum):
    """Whether the pump can submit a batch."""

    READY = "ready"
    """The driver accepts a batch."""
    BUSY = "busy"
    """The driver is processing a batch. It reports BatchSubmitted when it is done."""
    REOPENING = "reopening"
    """A client is being opened in the background: the first one, or one that replaces another."""
    STOPPING = "stopping"
    """The client is being closed. It accepts no more batches."""


class PumpState(enum.Enum):
    """Whether a new record must notify the pump."""

    IDLE = "idle"
    """The pump waits for an event. A new record must notify it."""
    NOTIFIED = "notified"
    """A new record need not notify the pump. It is submitted in the pump's next turn, or by the
    code that set this state; if the driver is busy, when it has processed its batch."""
    SETTLING = "settling"
    """The pump settles many outcomes in portions, and other tasks run in between. A new record need
    not notify the pump, which submits it afterwards."""


class MetadataWaits:
    """The waits for metadata of topics, and a count of the changes that the driver has reported.

    Args:
        loop: the event loop that runs the callers.
        schedule_retry: has the topics requested again after a while.
    """

    def __init__(self, loop: Loop, schedule_retry: Callable[[], None]) -> None:
        self._loop = loop
        self._schedule_retry = schedule_retry
        #: How often the driver has reported a change.
        self.changes = 0
        #: The value of ``changes`` when the last batch was submitted.
        self.changes_before_batch = 0
        #: The waiters to wake when the driver reports a change.
        self.waiters: set[Any] = set()
        self.is_retry_scheduled = False

    async def wait(self, known: int) -> None:
        """Wait until the driver may know more topics.

        Args:
            known: the value of ``changes`` before the caller last asked the driver.
        """
        if self.changes != known:
            return
        waiter = self._loop.new_waiter()
        self.waiters.add(waiter)
        self._schedule_retry()
        try:
            await waiter
        finally:
            self.waiters.discard(waiter)
