"""The events of a driver and of its thread, and the stream that brings them to the pump."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import anyio.lowlevel

from ._delivery import Entry
from ._loops import Loop
from .drivers import Outcome, Submitted

__all__ = [
    "BatchSubmitted",
    "ClientBroken",
    "ClientOpened",
    "Completed",
    "DriverCrashed",
    "Event",
    "EventStream",
    "GenerationEnded",
    "MetadataChanged",
    "Ready",
    "are_settled_at_once",
    "split_events",
]

#: How many outcomes that a client reported by itself are settled before other tasks run. (A poll
#: has a limit of its own.) The callers that they wake take about half a millisecond. Measured with
#: kafka-python: with a thousand, timers were 1.5 times as late, and nothing was faster.
SETTLED_AT_ONCE: Final = 60


@dataclass(slots=True)  # not frozen, which would triple the time that it takes to make one
class Completed:
    """The driver reports the outcomes of records, in the same order as the entries."""

    entries: Sequence[Entry]
    outcomes: Sequence[Outcome]


@dataclass(frozen=True, slots=True)
class BatchSubmitted:
    """The driver has processed a batch, and accepts the next."""

    submitted: Submitted


@dataclass(frozen=True, slots=True)
class MetadataChanged:
    """The driver may now know topics whose metadata were missing."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A polled client has outcomes to report."""

    since: float
    """The time at which the polling thread found them, in seconds of the bridge's ``monotonic``."""


@dataclass(frozen=True, slots=True)
class ClientBroken:
    """The client of a generation can't send any more."""

    generation: int
    error: BaseException


@dataclass(frozen=True, slots=True)
class GenerationEnded:
    """The client that was given up is closed. It reports no more events."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class ClientOpened:
    """A client that was opened in the background is open."""

    generation: int


@dataclass(frozen=True, slots=True)
class DriverCrashed:
    """No client can be used any more: the driver raised an error that its protocol forbids, another
    producer took over, or the first client refused a setting."""

    error: BaseException


Event = (
    Completed
    | BatchSubmitted
    | MetadataChanged
    | Ready
    | ClientBroken
    | GenerationEnded
    | ClientOpened
    | DriverCrashed
)


def are_settled_at_once(events: Iterable[Event]) -> bool:
    """Whether events need no turn of the pump: there are few outcomes, and no rare events."""
    room = SETTLED_AT_ONCE
    for event in events:
        if isinstance(event, Completed):
            room -= len(event.entries)
        elif not isinstance(event, Ready) and (
            not isinstance(event, BatchSubmitted) or event.submitted.held
        ):
            return False
    return room >= 0


def split_events(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Divide events, in order, into portions of at most ``SETTLED_AT_ONCE`` outcomes.

    The pump lets other tasks run before each portion but the first. If there are several, an empty
    one comes last: before it, the callers that the last outcomes woke can run.
    """
    portion: list[Event] = []
    room = SETTLED_AT_ONCE
    is_cut = False
    for event in events:
        if not isinstance(event, Completed) or len(event.entries) <= room:
            portion.append(event)
            room -= len(event.entries) if isinstance(event, Completed) else 0
            continue
        start = 0
        while start < len(event.entries):
            if room == 0:
                yield portion
                portion, room, is_cut = [], SETTLED_AT_ONCE, True
            part = slice(start, start + room)
            entries = event.entries[part]
            portion.append(Completed(entries, event.outcomes[part]))
            start += len(entries)
            room -= len(entries)
    yield portion
    if is_cut:
        yield []


class EventStream:
    """An unbounded stream of lists of events, for one receiver.

    A finalizer or a signal handler may call :meth:`put` in the middle of :meth:`__anext__`. So the
    receiver first registers as waiting, and then checks for items. (The receiver of AnyIO's memory
    object stream checks first. If an item arrives between the two steps, the receiver would wait
    although the item is in the buffer.)
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        #: The lists that the receiver has not taken.
        self.items: Final[collections.deque[list[Event]]] = collections.deque()
        #: The receiver's waiter, while it waits.
        self._waiting: list[Any] = []
        self._is_closed = False

    @property
    def is_awaited(self) -> bool:
        """Whether the receiver waits."""
        return bool(self._waiting)

    def put(self, events: list[Event]) -> bool:
        """Append a list of events. Returns: False if the stream is closed."""
        if self._is_closed:
            return False
        self.items.append(events)
        self._wake()
        return True

    def close(self) -> None:
        """Close the stream. The receiver takes the remaining lists, and then ends."""
        self._is_closed = True
        self._wake()

    def _wake(self) -> None:
        try:
            waiter = self._waiting.pop()
        except IndexError:
            return
        self._loop.wake((waiter,))

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> list[Event]:
        await anyio.lowlevel.checkpoint()
        while not self.items:
            if self._is_closed:
                raise StopAsyncIteration
            waiter = self._loop.new_waiter()
            self._waiting.append(waiter)
            try:
                if not self.items and not self._is_closed:
                    await waiter
            finally:
                self._waiting.clear()
        return self.items.popleft()
