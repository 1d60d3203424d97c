"""When to poll a client that reports only when it is polled.

A thread takes 0.1 ms to wake the event loop, and several times as long on a virtual machine. A
broker in the same network answers sooner. So while answers come fast, the pump takes turn after
turn, and polls in each. Otherwise the driver's poll thread waits for the next answer and wakes the
event loop.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Final

__all__ = ["NextPoll", "PollScheduler"]

#: For this many seconds after a submission or an answer, the pump takes turn after turn and polls
#: once in each. Then the poll thread waits for the answer.
POLL_SECONDS: Final = 0.0005
#: The pump does so only if the last answers took less than this on average, in seconds.
SOON_SECONDS: Final = 0.0006
#: The weight of one answer in that average.
WEIGHT: Final = 0.2
#: A longer answer counts as this many seconds, so that it does not dominate the average.
LATE_SECONDS: Final = 0.002
#: The largest number of records to gather for one batch: as many as one turn submits.
GATHER_LIMIT: Final = 250


class NextPoll(enum.Enum):
    """When to poll next."""

    NEXT_TURN = "next turn"
    """In the pump's next turn."""
    WHEN_READY = "when ready"
    """When the poll thread reports an answer."""
    AFTER_SUBMIT = "after submit"
    """After the next submission, because no record is in flight."""


class PollScheduler:
    """Decides when to poll a client, by the time that its last answers took.

    Args:
        monotonic: returns real time in seconds, as :func:`time.monotonic` does.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._in_flight = 0
        # Whether an answer is expected, and since when.
        self._is_waiting = False
        self._waits_since = 0.0
        #: The average time of the last answers, in seconds.
        self.usual_wait: float = LATE_SECONDS
        # The time at which the poll thread found an answer.
        self._ready_since = math.inf
        self._gathers = False

    def submitting(self, count: int) -> None:
        """Note that ``count`` records are about to be submitted."""
        self._in_flight += count

    def submitted(self) -> None:
        """Note that records were submitted, so that an answer will follow."""
        if not self._is_waiting:
            self._is_waiting = True
            self._waits_since = self._monotonic()

    def should_gather(self, queued: int) -> bool:
        """Whether to gather ``queued`` records for a larger batch, until the next poll.

        They are gathered while the client has more records than are queued and an answer will come
        soon. Otherwise small batches would stay small: each answer wakes a few callers, and their
        next records would form another small batch.
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
        """Note that the poll thread found an answer.

        Args:
            since: the time at which it did, by ``monotonic``.
        """
        self._ready_since = since

    def polled(self, in_flight: int) -> None:
        """Note that the client was polled, and now has ``in_flight`` records."""
        self._in_flight = in_flight

    def after_poll(self, *, has_events: bool) -> NextPoll:
        """Decide when to poll next.

        Args:
            has_events: whether the poll brought events. If so, there may be more. The callers that
                they wake may send records, which the next turn submits.
        """
        gathered, self._gathers = self._gathers, False
        if has_events:
            if self._is_waiting:
                now = self._monotonic()
                # The time that the wake-up of the event loop took is excluded.
                arrival = min(now, self._ready_since)
                waited = min(arrival - self._waits_since, LATE_SECONDS)
                self.usual_wait += (waited - self.usual_wait) * WEIGHT
                self._waits_since = now
            self._ready_since = math.inf
            self._is_waiting = self._in_flight > 0
            return NextPoll.NEXT_TURN
        if not self._in_flight:
            self._is_waiting = False
            # Gathered records waited for an answer, and no further answer will come. So submit them
            # in the next turn.
            return NextPoll.NEXT_TURN if gathered else NextPoll.AFTER_SUBMIT
        if gathered or self._is_answer_near():
            return NextPoll.NEXT_TURN
        return NextPoll.WHEN_READY
