"""When the event loop polls a client that reports only when it is polled.

A wake-up by a thread takes the event loop 0.1 ms, and several times that on a virtual machine. A
broker nearby answers sooner. So while answers come soon, the pump polls in each of its turns.
Otherwise a thread of the driver waits for the next answer, and wakes the event loop.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Final

__all__ = ["NextPoll", "PollScheduler"]

#: Seconds for which the pump polls in each turn, before a thread waits for the answer.
POLL_SECONDS: Final = 0.0005
#: That is worth while if the last answers came within this time, on average.
SOON_SECONDS: Final = 0.0006
#: The weight of one answer in that average.
WEIGHT: Final = 0.2
#: The longest time that one answer counts for, so that a single late one is soon outweighed.
LATE_SECONDS: Final = 0.002
#: How many records may be held back for a larger batch: as many as are submitted in one turn.
GATHER_LIMIT: Final = 250


class NextPoll(enum.Enum):
    """When to poll next."""

    NEXT_TURN = "next turn"
    """In the pump's next turn."""
    WHEN_READY = "when ready"
    """When the driver's thread says that an answer is there."""
    AFTER_SUBMIT = "after submit"
    """When records were submitted: nothing is in flight."""


class PollScheduler:
    """Decides when to poll a client, from how long its last answers took.

    Args:
        monotonic: real time in seconds, as by :func:`time.monotonic`.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._in_flight = 0
        # Whether an answer is expected, and since when.
        self._is_waiting = False
        self._waits_since = 0.0
        #: How many seconds the last answers took, on average.
        self.usual_wait: float = LATE_SECONDS
        # When the client's thread reported that an answer is there.
        self._ready_since = math.inf
        self._gathers = False

    def submitting(self, count: int) -> None:
        """So many records are about to be submitted."""
        self._in_flight += count

    def submitted(self) -> None:
        """Records were submitted: an answer will follow."""
        if not self._is_waiting:
            self._is_waiting = True
            self._waits_since = self._monotonic()

    def should_gather(self, queued: int) -> bool:
        """Whether to hold ``queued`` records back to form a larger batch.

        They are held back if an answer will come soon, and the client has more records than these.
        Otherwise each answer would let a few callers go on. Their records would form a small batch
        with an answer of its own, so that small batches would stay small. The decision holds until
        the next poll.
        """
        self._gathers = (
            queued < self._in_flight and queued < GATHER_LIMIT and self._is_answer_near()
        )
        return self._gathers

    def _is_answer_near(self) -> bool:
        return (
            self._is_waiting
            and self.usual_wait < SOON_SECONDS
            and self._monotonic() - self._waits_since < POLL_SECONDS
        )

    def ready(self, since: float) -> None:
        """The client's thread found an answer.

        Args:
            since: when that was, by ``monotonic``.
        """
        self._ready_since = since

    def polled(self, in_flight: int) -> None:
        """The client was polled, and has so many records left."""
        self._in_flight = in_flight

    def after_poll(self, *, has_events: bool) -> NextPoll:
        """Decide when to poll next.

        Args:
            has_events: whether the poll brought anything. If so, there may be more, and records of
                the callers that are woken are submitted in the next turn.
        """
        gathered, self._gathers = self._gathers, False
        if has_events:
            if self._is_waiting:
                now = self._monotonic()
                # The time from the client's thread to the event loop is not the client's.
                arrival = min(now, self._ready_since)
                waited = min(arrival - self._waits_since, LATE_SECONDS)
                self.usual_wait += (waited - self.usual_wait) * WEIGHT
                self._waits_since = now
            self._ready_since = math.inf
            self._is_waiting = self._in_flight > 0
            return NextPoll.NEXT_TURN
        if not self._in_flight:
            self._is_waiting = False
            # Records were held back for an answer that had come already.
            return NextPoll.NEXT_TURN if gathered else NextPoll.AFTER_SUBMIT
        if gathered or self._is_answer_near():
            return NextPoll.NEXT_TURN
        return NextPoll.WHEN_READY
