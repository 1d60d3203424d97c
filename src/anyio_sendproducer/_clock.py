"""The clock of one producer.

Deadlines and retries use this clock, so that a test can pass a clock of its own. Cancel scopes use
the event loop's clock, because AnyIO offers no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import anyio

from ._loops import Loop

__all__ = ["Clock", "ClockFactory", "LoopClock"]


class Clock(Protocol):
    """A source of time, and a way to wait for it to pass."""

    def now(self) -> float:
        """The producer's time in seconds, for deadlines: by default the event loop's time."""
        ...

    def monotonic(self) -> float:
        """Real time in seconds, to measure how long threads and the client take. Trio's MockClock
        does not stop it. This may be called in any thread."""
        ...

    async def sleep(self, seconds: float, /) -> None:
        """Wait until :meth:`now` has advanced by ``seconds``."""
        ...


#: Makes the clock for a producer on a given loop.
ClockFactory = Callable[[Loop], Clock]


class LoopClock:
    """The event loop's own clock."""

    def __init__(self, loop: Loop) -> None:
        # Looked up once: `now` is called for each record.
        self.now: Callable[[], float] = loop.now
        self.monotonic: Callable[[], float] = time.monotonic

    async def sleep(self, seconds: float, /) -> None:
        """Sleep on the loop's clock."""
        await anyio.sleep(seconds)
