"""Where the event loop and the driver's thread meet, and nowhere else.

Loop to thread goes a batch of records as one command. Thread to loop come events: they gather in a
list, one wake-up of the loop brings over all that there are, and they go on as one item of a
memory object stream to the task that settles them. So a crossing is paid once a batch, never once
a record. What comes alone, while that task waits, may be taken without its turn.

A client that takes records without waiting, and reports when it is asked to, needs no thread for
that: the loop hands over and asks by itself (see
:class:`~anyio_sendproducer.drivers.PolledDriver`). Between two questions it lets everybody else
have their turn; where no answer comes soon, it leaves the waiting to the driver's thread, which
wakes it up.

The thread is the bridge's own and not AnyIO's: it lives as long as the producer, and a call of the
client library that hangs must not keep the loop from ending.
"""

from __future__ import annotations

import functools
import gc
import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast

import anyio

from ._exceptions import ProducerClosed, ProducerFenced, SendProducerError
from ._ledger import Entry
from ._loops import Loop
from .drivers import DirectDriver, Driver, LingeringDriver, Outcome, PolledDriver, Submitted
from .telemetry._logging import error_type

__all__ = [
    "Bridge",
    "Broken",
    "Completed",
    "Event",
    "GenerationEnded",
    "Lost",
    "MetadataChanged",
    "Opened",
    "Ready",
    "Taken",
    "in_portions",
]

T = TypeVar("T")

_log = logging.getLogger("anyio_sendproducer")

#: How long the threads may take to end after the driver's own bound; then they are left behind.
_GRACE_SECONDS: Final = 5.0
#: Between attempts to open a client in place of one that broke.
_REOPEN_SECONDS: Final = 0.5

#: How many outcomes that came together are settled until other tasks have their turn. Those who are
#: woken by them have theirs together, half a millisecond's work. With all of a thousand at once a
#: timer beside kafka-python was later by half as much again, and nothing was faster.
_SETTLED_AT_ONCE: Final = 60
#: How many outcomes are taken from a client that is asked, likewise. With 500 a timer was five
#: times as late, and nothing was faster; with 60 it was less late on Trio alone, and a tenth fewer
#: were sent.
_ASKED_AT_ONCE: Final = 100
#: How many records are handed over by the loop, likewise: half a millisecond's work.
_GIVEN_AT_ONCE: Final = 250
#: How long a client is asked over and over, before a thread is to wait for its answer. To be woken
#: by a thread takes the loop 0.1 ms, and several times that on a virtual machine, so that a broker
#: nearby is twice as near without.
_ASK_SECONDS: Final = 0.0005
#: It is worth while as long as the last answers came within this time, on the average.
_SOON_SECONDS: Final = 0.0006
#: How much one answer counts for that, and the longest that it may count for: so one that is late
#: for a reason of its own is soon made up for.
_WEIGHT: Final = 0.2
_LATE_SECONDS: Final = 0.002

#: How many bytes a client that is given up must hold, for the collector to be called for them: that
#: takes 0.1 s for each million objects of the process, in which nothing else runs.
_WORTH_COLLECTING: Final = 4 * 1024 * 1024

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Completed:
    """The driver is done with these; the outcomes stand in the same order."""

    entries: Sequence[Entry]
    outcomes: Sequence[Outcome]


@dataclass(frozen=True, slots=True)
class Taken:
    """The driver went through the batch; it is ready for the next."""

    answer: Submitted


@dataclass(frozen=True, slots=True)
class MetadataChanged:
    """Topics that were missing may be known now."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The client that is to be asked has something to say."""

    since: float
    """In seconds of the bridge's ``monotonic``."""


@dataclass(frozen=True, slots=True)
class Broken:
    """This generation's client can't send any more."""

    generation: int
    error: BaseException


@dataclass(frozen=True, slots=True)
class GenerationEnded:
    """The client that broke is closed; all that it still says was said before."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Opened:
    """Another client is open in its place."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The driver raised what it must not: it can't be trusted any more."""

    error: BaseException


Event = Completed | Taken | MetadataChanged | Ready | Broken | GenerationEnded | Opened | Lost


def in_portions(events: Iterable[Event]) -> Iterator[list[Event]]:
    """The same in order, with no more outcomes in each portion than are settled at once. Where
    there are several the last one is empty: it comes when those have had their turn who are woken
    by all before."""
    portion: list[Event] = []
    room = _SETTLED_AT_ONCE
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
                portion, room, is_cut = [], _SETTLED_AT_ONCE, True
            part = slice(start, start + room)
            entries = event.entries[part]
            portion.append(Completed(entries, event.outcomes[part]))
            start += len(entries)
            room -= len(entries)
    yield portion
    if is_cut:
        yield []


class _Reply(Generic[T]):
    """The answer to one call, and the cell of the task that awaits it."""

    __slots__ = ("cell", "error", "value")

    def __init__(self, cell: Any) -> None:
        self.cell = cell
        self.value: T | None = None
        self.error: BaseException | None = None


class _Port:
    """One generation's :class:`~anyio_sendproducer.drivers.Sink`."""

    __slots__ = ("_generation", "_monotonic", "_post")

    def __init__(
        self, post: Callable[[Event], None], generation: int, monotonic: Callable[[], float]
    ) -> None:
        self._post = post
        self._monotonic = monotonic
        self._generation = generation

    def completed(self, submissions: Sequence[Any], outcomes: Sequence[Outcome], /) -> None:
        self._post(Completed(submissions, outcomes))

    def metadata_changed(self) -> None:
        self._post(MetadataChanged())

    def broken(self, error: BaseException, /) -> None:
        self._post(Broken(self._generation, error))

    def ready(self) -> None:
        self._post(Ready(self._monotonic()))


class Bridge:
    """A driver on a thread of its own, as seen from the loop.

    Args:
        loop: the loop to bring events to.
        make: makes a driver, for each generation another. It is called on the bridge's thread,
            since it may import a whole client library.
        monotonic: real time in seconds, as by :func:`time.monotonic`; called from any thread.
        inline: call everything of the driver on the loop, and start no thread. Only for a driver in
            memory, which never waits.
    """

    def __init__(
        self,
        loop: Loop,
        make: Callable[[], Driver],
        monotonic: Callable[[], float],
        *,
        inline: bool = False,
    ) -> None:
        self._loop = loop
        self._monotonic = monotonic
        self._make = make
        self._is_inline = inline
        #: Is offered, on the loop, an event that comes alone while their receiver waits for any;
        #: says whether it took it. What it does not take goes the way of all.
        self.take_at_once: Callable[[Event], bool] | None = None
        self._driver: Driver | None = None
        self._polled: PolledDriver | None = None
        #: Whether the loop may hand over: all records to a client that is asked, and otherwise one
        #: that is alone.
        self._is_direct = False
        #: The driver, where its client holds records back, and whether it was told to hurry.
        self._lingering: LingeringDriver | None = None
        self._hurries = False
        #: How many commands the thread was given, and how many it is through with.
        self._given = 0
        self._served = 0
        #: Whether an answer of the client that is asked is waited for, since when, and how long the
        #: last ones took.
        self._is_waiting = False
        self._waits_since = 0.0
        self._usual_wait = _LATE_SECONDS
        #: Since when the client's thread knew of an answer, where it was that which rang.
        self._ready_since = math.inf
        #: How many records the client that is asked has, as far as is known.
        self._under_way = 0
        self._gathers = False
        self._last_batch = 0
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._outbox: list[Event | _Reply[Any]] = []
        self._signalled = False
        #: Whether the loop has more for the driver when that is through with a batch.
        self._is_wanted = False
        # What is posted and whether the loop knows of it go together, with or without a GIL.
        self._posting = threading.Lock()
        self._stopping = threading.Event()
        self._replies: set[_Reply[Any]] = set()
        self._send, self.events = anyio.create_memory_object_stream[list[Event]](math.inf)
        self._number = next(_numbers)
        self._thread = self._new_thread("", self._serve)
        self.generation = 1
        self.hand_overs = 0
        self.wake_ups = 0

    def _new_thread(self, suffix: str, target: Callable[[], None]) -> threading.Thread:
        return threading.Thread(
            target=target, name=f"anyio-sendproducer-{self._number}{suffix}", daemon=True
        )

    # --- on the loop -------------------------------------------------------------------------

    async def open(self) -> None:
        """Start the thread and open the driver on it.

        Raises:
            ProducerStartError: the driver could not connect.
            SettingsError: the client refused a setting.

        Cancellation leaves the thread on its way out: :meth:`stop` is to follow.
        """
        if not self._is_inline:
            self._thread.start()
        await self._call(functools.partial(self._open, self.generation))

    async def call(self, function: Callable[[Driver], T]) -> T:
        """Run a function of the driver on its thread, behind what is there already.

        Raises:
            ProducerClosed: the bridge was stopped before there was an answer.

        Cancellation stops the waiting; the function runs all the same.
        """
        return await self._call(lambda: function(self._opened()))

    async def _call(self, function: Callable[[], T]) -> T:
        if self._stopping.is_set():
            raise ProducerClosed("the producer is closed")
        reply: _Reply[T] = _Reply(self._loop.cell())
        self._replies.add(reply)
        self._give(functools.partial(self._answer, reply, function))
        try:
            await reply.cell
        finally:
            self._replies.discard(reply)
        if reply.error is not None:
            raise reply.error
        return cast("T", reply.value)

    def submit(self, batch: Sequence[Entry]) -> Submitted | None:
        """Hand a batch over.

        Returns:
            What the driver says of it; None where one :class:`Taken` or :class:`Lost` will follow.
        """
        self.hand_overs += 1
        self._last_batch = len(batch)
        by_loop = self._is_direct
        if self._polled is not None:
            self._under_way += len(batch)
        elif len(batch) > 1 or self._given != self._served:
            by_loop = False
        if not by_loop:
            self._is_wanted = False
            self._give(functools.partial(self._submit, batch))
            self._begin_to_wait()
            return None
        try:
            answer = self._opened().submit(batch)
        except Exception as error:  # noqa: BLE001  # as in _submit()
            self._pass_on([Lost(error)])
            return None
        self._begin_to_wait()
        return answer

    def _give(self, command: Callable[[], None]) -> None:
        """Have the thread do this, behind what is there already."""
        self._given += 1
        if self._is_inline:
            self._serve_one(command)
        else:
            self._inbox.put(command)

    def _begin_to_wait(self) -> None:
        if self._polled is not None and not self._is_waiting:
            self._is_waiting = True
            self._waits_since = self._monotonic()

    def want(self) -> None:
        """There is more to hand over: have the receiver of the events told when the driver is
        through with the batch. Where nobody wants to know, that waits for what comes next."""
        with self._posting:
            self._is_wanted = True
        self._take_over()

    @property
    def lingers(self) -> bool:
        """Whether the client holds records back to form larger batches."""
        return self._lingering is not None

    def hurry(self, on: bool) -> None:  # noqa: FBT001
        """Have the client hold no records back, as long as this is on."""
        lingering = self._lingering
        if lingering is None or on == self._hurries:
            return
        self._hurries = on
        try:
            lingering.hurry(on)
        except Exception as error:  # noqa: BLE001  # as in _submit()
            self._pass_on([Lost(error)])

    def gathers(self, queued: int) -> bool:
        """Whether it is better to let so many records wait for more than to hand them over.

        It is as long as an answer is going to come soon, and the client has more records than
        these. Otherwise each answer would let few go on, whose records would be a small batch with
        an answer of its own, and so on: small batches would never become larger.
        """
        self._gathers = (
            queued < self._under_way and queued < _GIVEN_AT_ONCE and self._answers_are_near()
        )
        return self._gathers

    def _answers_are_near(self) -> bool:
        return (
            self._is_waiting
            and self._usual_wait < _SOON_SECONDS
            and self._monotonic() - self._waits_since < _ASK_SECONDS
        )

    @property
    def at_once(self) -> int | None:
        """How many records are to be handed over at once, where that takes the loop's time."""
        return _GIVEN_AT_ONCE if self._polled is not None and self._is_direct else None

    @property
    def is_asked(self) -> bool:
        """Whether the client reports only when it is asked."""
        return self._polled is not None

    @property
    def takes_at_once(self) -> bool:
        """Whether a record that is alone, with none under way, may be handed over where it stands:
        it was so the last time. Where there are many, they wait for each other, if only until the
        receiver of the events has its turn."""
        return self._is_direct and self._last_batch == 1

    def ask(self) -> Sequence[Event]:
        """Have a client that reports only when it is asked say what there is.

        Where there is nothing, and something is under way, the receiver of the events is rung for
        to ask again, or the client's thread is told to wake it. Where there was something, it is
        rung for too: there may be more, and there will be more to hand over.

        Returns:
            What was posted meanwhile, by whomever.
        """
        polled = self._polled
        if polled is None:
            return ()
        # Nobody has to wake the loop for what is reported meanwhile.
        self._signalled = True
        try:
            self._under_way = polled.poll(_ASKED_AT_ONCE)
        except Exception as error:  # noqa: BLE001  # as in _submit()
            self._post(Lost(error))
        has_passed_on = self._has_passed_on
        events = self._take_out()
        if events:
            if self._is_waiting:
                now = self._monotonic()
                # The way from the client's thread to here is not the client's.
                came = min(now, self._ready_since)
                waited = min(came - self._waits_since, _LATE_SECONDS)
                self._usual_wait += (waited - self._usual_wait) * _WEIGHT
                self._waits_since = now
            self._ready_since = math.inf
            self._is_waiting = self._under_way > 0
            self.ring()
        elif not self._under_way:
            self._is_waiting = False
            if self._gathers:  # for an answer that has come, as it turns out
                self.ring()
        elif self._gathers or self._answers_are_near():
            self.ring()
        else:
            polled.watch()
        # It holds for the turn in which it was found.
        self._gathers = False
        # What came before comes first.
        return () if events and has_passed_on and self._pass_on(events) else events

    @property
    def _has_passed_on(self) -> bool:
        """Whether there is something that the receiver of the events has not taken yet."""
        return self.events.statistics().current_buffer_used > 0

    def reopen(self, error: BaseException, held: int) -> None:
        """Give the client up for another. :class:`GenerationEnded` will follow, and then, when the
        cluster answers, :class:`Opened`.

        Args:
            error: why it is given up.
            held: how many bytes of records it has, at most.
        """
        self.generation += 1
        self._give(functools.partial(self._reopen, error, self.generation, held))

    def trouble(self) -> Exception | None:
        """Why the client reaches no broker, where it knows of it."""
        driver = self._driver
        return None if driver is None else driver.trouble()

    def cut_off(self) -> bool:
        """Whether the client reaches no broker at all."""
        driver = self._driver
        return driver is not None and driver.cut_off()

    def figures(self) -> Mapping[str, Any]:
        """What the client counts by itself."""
        driver = self._driver
        return {} if driver is None else driver.figures()

    def ring(self) -> None:
        """Have the receiver of the events look at the queue, unless it is going to."""
        if not self._has_passed_on:
            self._pass_on([])

    async def stop(self, seconds: float) -> None:
        """Close the driver, end the threads, and end the stream of events. Raises nothing but
        asyncio's own cancellation, which heeds no shield.

        Args:
            seconds: how long the driver may take to close; 0: by force.

        Must run shielded from cancellation. Bounded: a thread that does not end is left behind,
        which is logged.
        """
        self._stopping.set()
        try:
            if self._is_inline:
                self._close_driver(seconds)
            else:
                await self._end_threads(seconds)
        finally:
            self._take_over()
            for reply in self._replies:
                reply.error = ProducerClosed("the producer was closed before the answer came")
                self._loop.wake((reply.cell,))
            self._send.close()

    async def _end_threads(self, seconds: float) -> None:
        """Close the driver and wait until the threads have ended, for ``seconds`` and a grace
        period; log a thread that has not.

        Another thread does the waiting, in real time: the event loop's clock may stand still, as
        Trio's MockClock does.
        """
        self._inbox.put(None)
        closer = self._new_thread("-closer", functools.partial(self._close_driver, seconds))
        closer.start()
        threads = [thread for thread in (closer, self._thread) if thread.ident is not None]
        ended: Any = self._loop.cell()

        def watch() -> None:
            give_up = time.monotonic() + seconds + _GRACE_SECONDS
            for thread in threads:
                thread.join(max(0.0, give_up - time.monotonic()))
            self._loop.call_soon_threadsafe(functools.partial(self._loop.wake, (ended,)))

        watcher = self._new_thread("-watcher", watch)
        watcher.start()
        await ended
        watcher.join()  # it has nothing left to do
        for thread in threads:
            if thread.is_alive():
                _log.error(
                    "the thread %s hangs in the client library: left behind",
                    thread.name,
                    extra={"thread.name": thread.name},
                )

    def _collect(self) -> None:
        """Called by the loop after a wake-up."""
        self.wake_ups += 1
        events = self._take_out()
        if (
            len(events) == 1
            and self.take_at_once is not None
            and self.events.statistics().tasks_waiting_receive
            and self.take_at_once(events[0])
        ):
            return
        if events:
            self._pass_on(events)

    def _take_over(self) -> None:
        """Have the receiver of the events get what was posted."""
        events = self._take_out()
        if events:
            self._pass_on(events)

    def _take_out(self) -> list[Event]:
        """The events among what was posted; whoever awaits an answer is woken."""
        with self._posting:
            # Whoever posts from now on wakes the loop again.
            self._signalled = False
            items = [*self._outbox]
            self._outbox.clear()
        events: list[Event] = []
        for item in items:
            if isinstance(item, _Reply):
                # Not only when its task runs: the producer may be closed before that.
                self._replies.discard(item)
                self._loop.wake((item.cell,))
            else:
                if isinstance(item, Ready):
                    self._ready_since = item.since
                events.append(item)
        return events

    def _pass_on(self, events: list[Event]) -> bool:
        """Give these to the receiver of the events; False where there is none any more: a wake-up
        may be under way when the bridge has stopped."""
        try:
            self._send.send_nowait(events)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            return False
        return True

    # --- on threads --------------------------------------------------------------------------

    def _post(self, item: Event | _Reply[Any], *, urgent: bool = True) -> None:
        with self._posting:
            self._outbox.append(item)
            wakes = not self._signalled and (urgent or self._is_wanted)
            if wakes:
                self._signalled = True
        if wakes:
            self._loop.call_soon_threadsafe(self._collect)

    def _serve(self) -> None:
        while (command := self._inbox.get()) is not None:
            self._serve_one(command)

    def _serve_one(self, command: Callable[[], None]) -> None:
        command()
        self._served += 1

    def _open(self, generation: int) -> None:
        self._driver = driver = self._make()
        if self._stopping.is_set():
            raise ProducerClosed("the producer was closed while it was starting")
        driver.open(_Port(self._post, generation, self._monotonic))
        self._polled = driver if isinstance(driver, PolledDriver) else None
        self._is_direct = isinstance(driver, DirectDriver) and driver.direct
        # This client was not told to hurry yet. The loop reads the second of these first.
        self._hurries = False
        lingers = isinstance(driver, LingeringDriver) and driver.lingers
        self._lingering = cast("LingeringDriver", driver) if lingers else None

    def _opened(self) -> Driver:
        if self._driver is None:
            raise ProducerClosed("the producer is closed")
        return self._driver

    def _answer(self, reply: _Reply[T], function: Callable[[], T]) -> None:
        try:
            reply.value = function()
        except BaseException as error:  # noqa: BLE001  # raised again where it is awaited
            reply.error = error
        self._post(reply)

    def _submit(self, batch: Sequence[Entry]) -> None:
        try:
            answer = self._opened().submit(batch)
        except BaseException as error:  # noqa: BLE001  # told to the loop, which ends it all
            self._post(Lost(error))
        else:
            # A client that is asked is to be asked from now on.
            tells = self._polled is None and not answer.held and not answer.sizes
            self._post(Taken(answer), urgent=not tells)

    def _reopen(self, error: BaseException, generation: int, held: int) -> None:
        self._polled = None
        self._is_direct = False
        self._lingering = None
        self._close_driver(0)
        self._post(GenerationEnded(error))
        # A client lies in reference cycles, with all the records it held. Where these are few and
        # large the collector, which counts objects, would leave them for long. Going through all
        # objects holds up the whole process, so little is left to it.
        self._driver = None
        if held >= _WORTH_COLLECTING:
            gc.collect()
        while not self._stopping.is_set():
            try:
                self._open(generation)
            except ProducerFenced as failure:
                self._post(Lost(failure))
                return
            except SendProducerError as failure:
                _log.warning(
                    "no client in place of the one that broke, trying on: %s",
                    failure,
                    extra={"error.type": error_type(failure)},
                )
                self._close_driver(0)
                self._stopping.wait(_REOPEN_SECONDS)
            except BaseException as failure:  # noqa: BLE001  # as above
                self._post(Lost(failure))
                return
            else:
                self._post(Opened())
                return

    def _close_driver(self, timeout: float) -> None:
        driver = self._driver  # another thread may take it away
        try:
            if driver is not None:
                driver.close(timeout)
        except Exception as error:  # noqa: BLE001  # closing goes on
            _log.exception(
                "the driver raised while it was closed", extra={"error.type": error_type(error)}
            )
