"""When to poll a client that reports only when it is polled.

A thread takes 0.1 ms to wake the event loop, and several times as long on a virtual machine, and
costs processor time. So there are three ways to wait for the next answer:

- Callers send again as soon as they have their answers, and answers come fast, as from a broker in
  the same network: the pump takes turn after turn, and polls in each.
- Callers send often, independently of the answers: asyncio polls after a millisecond, and gets
  several answers at once. (Trio has no such timers.)
- Otherwise: the driver's polling thread waits for the answer.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Final

__all__ = ["NextPoll", "PollScheduler"]

#: For this many seconds after an answer, or after a submission when no record was in flight, the
#: pump takes turn after turn and polls once in each. Then the polling thread waits for the answer.
POLL_SECONDS: Final = 0.0005
#: The pump does so only if the last answers took less than this on average, in seconds.
SOON_SECONDS: Final = 0.0006
#: The pump does so only if callers sent again at once after more than this share of the last
#: answers.
RETURNING: Final = 0.7
#: If a record is submitted less than this many seconds after the polling thread reported an answer,
#: its caller counts as sending again at once. The second time is added for each outcome of the
#: answer. Such callers need about half of this time. Callers that send independently of the answers
#: must rarely hit it by chance, so the time is short.
RETURN_SECONDS: Final = 0.00012
RETURN_SECONDS_PER_OUTCOME: Final = 0.00003
#: After an answer, the scheduler examines whether its callers send again at once. While they
#: usually do not, it examines only one answer in this many, because that costs turns of the pump.
EXAMINED: Final = 4
#: Callers that send within this many turns of the pump count as sending again at once. Trio runs
#: the tasks that are ready in random order, so the pump's next turn may come before the callers'.
EXAMINED_TURNS: Final = 2
#: If fewer seconds than this pass between two submitted records on average, and callers do not send
#: again at once, asyncio polls after ``LATER_SECONDS``.
BUSY_SECONDS: Final = 0.00025
LATER_SECONDS: Final = 0.001
#: If there was no answer for this many seconds, the polling thread waits for it.
QUIET_SECONDS: Final = 0.004
#: The weight of one answer or submission in these averages.
WEIGHT: Final = 0.2
#: A longer answer or gap counts as this many seconds, so that it does not dominate the average.
LATE_SECONDS: Final = 0.002
#: The largest number of records to gather for one batch: as many as one turn submits.
GATHER_LIMIT: Final = 250


class NextPoll(enum.Enum):
    """When to poll next."""

    NEXT_TURN = "next turn"
    """In the pump's next turn."""
    LATER = "later"
    """After ``LATER_SECONDS``."""
    WHEN_READY = "when ready"
    """When the polling thread reports an answer."""
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
        # The time at which the polling thread found an answer.
        self._ready_since = math.inf
        self._gathers = False
        self._submitting = 1
        self._submitted_at = -math.inf
        #: The average time between the last records submitted, in seconds.
        self.usual_gap: float = LATE_SECONDS
        #: The share of the last answers after which callers sent again at once.
        self.returning: float = 0.0
        # The number of outcomes of the answer that is being examined; 0 if none is.
        self._examined = 0
        # The number of records submitted, and of turns of the pump, since that answer.
        self._returned = 0
        self._turns = 0
        self._answers = 0
        # Until when a submission counts as a return after the last answer that the polling thread
        # reported; 0 if a submission or a poll with outcomes came since.
        self._returns_until = 0.0

    def submitting(self, count: int) -> None:
        """Note that ``count`` records are about to be submitted."""
        self._submitting = count
        self._in_flight += count
        self._returned += count

    def submitted(self) -> None:
        """Note that records were submitted, so that an answer will follow."""
        now = self._monotonic()
        if not self._is_waiting:
            self._is_waiting = True
            self._waits_since = now
        gap = min((now - self._submitted_at) / self._submitting, LATE_SECONDS)
        self._submitted_at = now
        self.usual_gap += (gap - self.usual_gap) * WEIGHT
        if self._returns_until:
            self._note_returning(1.0 if now < self._returns_until else 0.0)
            self._returns_until = 0.0

    def _note_returning(self, share: float) -> None:
        self.returning += (share - self.returning) * WEIGHT

    @property
    def is_busy(self) -> bool:
        """Whether records were submitted in quick succession."""
        return self.usual_gap < BUSY_SECONDS

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
            and self.returning > RETURNING
            and self._monotonic() - self._waits_since < POLL_SECONDS
        )

    def ready(self, since: float) -> None:
        """Note that the polling thread found an answer.

        Args:
            since: the time at which it did, by ``monotonic``.
        """
        self._ready_since = since

    def polled(self, in_flight: int) -> None:
        """Note that the client was polled, and now has ``in_flight`` records."""
        self._in_flight = in_flight

    def reported(self, count: int) -> None:
        """Note that the polling thread reported ``count`` outcomes by itself."""
        self._in_flight = max(0, self._in_flight - count)
        self._answered()
        self._returns_until = (
            self._waits_since + RETURN_SECONDS + count * RETURN_SECONDS_PER_OUTCOME
        )

    def after_poll(self, *, outcomes: int, limit: int) -> NextPoll:
        """Decide when to poll next.

        Args:
            outcomes: how many outcomes the poll brought.
            limit: how many it could bring.
        """
        gathered, self._gathers = self._gathers, False
        if outcomes:
            self._answered()
            self._returns_until = 0.0
            self._answers += 1
        if self._examined:
            self._turns += 1
            if self._returned < self._examined and self._turns < EXAMINED_TURNS:
                return NextPoll.NEXT_TURN
            self._note_returning(min(1.0, self._returned / self._examined))
            self._examined = 0
        if outcomes and (self.returning > RETURNING or self._answers % EXAMINED == 0):
            # The callers that these outcomes wake may send now.
            self._examined = outcomes
            self._returned = self._turns = 0
            return NextPoll.NEXT_TURN
        if not self._in_flight:
            self._is_waiting = False
            # Gathered records waited for an answer, and no further answer will come. So submit them
            # in the next turn.
            return NextPoll.NEXT_TURN if gathered else NextPoll.AFTER_SUBMIT
        if gathered or outcomes >= limit:
            return NextPoll.NEXT_TURN
        return self.next_poll()

    def next_poll(self) -> NextPoll:
        """Decide when to poll next, while records are in flight."""
        if self._is_answer_near():
            return NextPoll.NEXT_TURN
        if (
            self.is_busy
            and self.returning <= RETURNING
            and self._monotonic() - self._waits_since < QUIET_SECONDS
        ):
            return NextPoll.LATER
        return NextPoll.WHEN_READY

    def _answered(self) -> None:
        if self._is_waiting:
            now = self._monotonic()
            # The time that the wake-up of the event loop took is excluded.
            arrival = min(now, self._ready_since)
            waited = min(arrival - self._waits_since, LATE_SECONDS)
            self.usual_wait += (waited - self.usual_wait) * WEIGHT
            self._waits_since = now
        self._ready_since = math.inf
        self._is_waiting = self._in_flight > 0
