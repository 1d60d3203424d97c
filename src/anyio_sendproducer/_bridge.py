"""Where the event loop and the driver's thread meet, and nowhere else.

Loop to thread goes a batch of records as one command. Thread to loop come events: they gather in a
list, one wake-up of the loop brings over all that there are, and they go on as one item of a
stream to the task that settles them. So a crossing is paid once a batch, never once a record. What
comes alone, while that task waits, may be taken without its turn.

A client that takes records without waiting, and reports when it is asked to, needs no thread for
that: the loop hands over and asks by itself (see
:class:`~anyio_sendproducer.drivers.PolledDriver`). Between two questions it lets everybody else
have their turn; where no answer comes soon, it leaves the waiting to the driver's thread, which
wakes it up.

The thread is the bridge's own and not AnyIO's: it lives as long as the producer, and a call of the
client library that hangs must not keep the loop from ending.
"""

from __future__ import annotations

import collections
import contextvars
import functools
import gc
import itertools
import logging
import math
import queue
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, cast

import anyio
import anyio.lowlevel

from ._delivery import Entry
from ._exceptions import ProducerClosed, ProducerFenced, ProducerStartError, SendProducerError
from ._loops import Loop, Sentinel, Step
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


class _Events:
    """A stream of lists of events without a bound, for one receiver.

    A finalizer or a signal handler may call :meth:`put` in the middle of :meth:`__anext__`. So the
    receiver registers as waiting first and looks for items then; each step is atomic. (AnyIO's
    memory object stream looks first. What arrives before it registers stays in the buffer.)
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._items: collections.deque[list[Event]] = collections.deque()
        #: The receiver's cell, while it waits.
        self._waiting: list[Any] = []
        self._is_closed = False

    def __len__(self) -> int:
        """The number of lists that the receiver has not taken."""
        return len(self._items)

    @property
    def is_awaited(self) -> bool:
        """Whether the receiver waits."""
        return bool(self._waiting)

    def put(self, events: list[Event]) -> bool:
        """Append a list of events. Returns: False if the stream is closed."""
        if self._is_closed:
            return False
        self._items.append(events)
        self._wake()
        return True

    def close(self) -> None:
        """Append no more. The receiver takes what there is, and ends."""
        self._is_closed = True
        self._wake()

    def _wake(self) -> None:
        try:
            cell = self._waiting.pop()
        except IndexError:
            return
        self._loop.wake((cell,))

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> list[Event]:
        await anyio.lowlevel.checkpoint()
        while not self._items:
            if self._is_closed:
                raise StopAsyncIteration
            cell = self._loop.new_waiter()
            self._waiting.append(cell)
            try:
                if not self._items and not self._is_closed:
                    await cell
            finally:
                self._waiting.clear()
        return self._items.popleft()


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


def _nothing() -> None:
    """There is nothing to let go."""


def _has_started(thread: threading.Thread) -> bool:
    """Start a thread, if the system has one left."""
    try:
        thread.start()
    except RuntimeError as error:
        _log.error(
            "the thread %s could not be started: %s",
            thread.name,
            error,
            extra={"thread.name": thread.name, "error.type": error_type(error)},
        )
        return False
    return True


def _are_alive(threads: Iterable[threading.Thread]) -> bool:
    return any(thread.is_alive() for thread in threads)


class _Worker:
    """The thread of a bridge, and the driver on it.

    It has no reference to the bridge. Otherwise the thread would keep the producer alive, and
    nothing would notice that its event loop has ended.

    Args:
        loop: the loop to wake.
        make: see :class:`Bridge`.
        monotonic: see :class:`Bridge`.
        collect: gives what the loop is to call when something was posted; None if that is gone.
    """

    def __init__(
        self,
        loop: Loop,
        make: Callable[[], Driver],
        monotonic: Callable[[], float],
        collect: Callable[[], Callable[[], None] | None],
    ) -> None:
        self._loop = loop
        self._make = make
        self._monotonic = monotonic
        self._collect = collect
        self._number = next(_numbers)
        #: Serializers and other hooks find the context variables of the task that opened the
        #: producer.
        self._context = contextvars.copy_context()
        self.driver: Driver | None = None
        self.polled: PolledDriver | None = None
        #: Whether the loop may hand over: all records to a client that is asked, and otherwise one
        #: that is alone.
        self.is_direct = False
        #: The driver, where its client holds records back, and whether it was told to hurry.
        self.lingering: LingeringDriver | None = None
        self.hurries = False
        #: How many commands the thread is through with.
        self.served = 0
        self.inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.outbox: list[Event | _Reply[Any]] = []
        self.signalled = False
        #: Whether the loop has more for the driver when that is through with a batch.
        self.is_wanted = False
        # What is posted and whether the loop knows of it go together, with or without a GIL. A
        # finalizer may post while its thread posts: it may take the lock again.
        self.posting = threading.RLock()
        self.stopping = threading.Event()
        self._is_abandoned = False
        self.thread = self.new_thread("", self._serve)

    def new_thread(self, suffix: str, target: Callable[[], None]) -> threading.Thread:
        """A thread that runs ``target`` in a copy of the opener's context."""
        return threading.Thread(
            target=self._context.copy().run,
            args=(target,),
            name=f"anyio-sendproducer-{self._number}{suffix}",
            daemon=True,
        )

    def abandon(self) -> None:
        """Close the driver by force: the event loop has ended before the producer was closed.

        The garbage collector may call this, on any thread and in the middle of anything: so it
        takes no lock and waits for nothing.
        """
        if self._is_abandoned or self.stopping.is_set():
            return
        self._is_abandoned = True
        self.inbox.put(functools.partial(self.close_driver, 0))
        self.inbox.put(None)
        warnings.warn(
            f"the event loop ended before the producer of thread {self.thread.name} was closed: "
            "its client is closed by force, and its records are lost; leave its `async with` block "
            "before the loop ends",
            ResourceWarning,
            stacklevel=2,
        )

    @property
    def _is_ending(self) -> bool:
        return self._is_abandoned or self.stopping.is_set()

    def post(self, item: Event | _Reply[Any], *, urgent: bool = True) -> None:
        """Bring an item to the loop. An item that is not urgent does not wake the loop, unless the
        loop waits for one: the next wake-up brings it."""
        with self.posting:
            self.outbox.append(item)
            wakes = not self.signalled and (urgent or self.is_wanted)
            if wakes:
                self.signalled = True
        if wakes:
            collect = self._collect()
            if collect is not None and not self._loop.call_soon_threadsafe(collect):
                self.abandon()

    def _serve(self) -> None:
        while (command := self.inbox.get()) is not None:
            self.serve_one(command)
            del command  # it knows records, and these know the tasks that wait for them

    def serve_one(self, command: Callable[[], None]) -> None:
        command()
        self.served += 1

    def open(self, generation: int) -> None:
        self.driver = driver = self._make()
        if self._is_ending:
            raise ProducerClosed("the producer was closed while it was starting")
        driver.open(_Port(self.post, generation, self._monotonic))
        self.polled = driver if isinstance(driver, PolledDriver) else None
        self.is_direct = isinstance(driver, DirectDriver) and driver.direct
        # This client was not told to hurry yet. The loop reads the second of these first.
        self.hurries = False
        lingers = isinstance(driver, LingeringDriver) and driver.lingers
        self.lingering = cast("LingeringDriver", driver) if lingers else None

    def opened(self) -> Driver:
        if self.driver is None:
            raise ProducerClosed("the producer is closed")
        return self.driver

    def answer(self, reply: _Reply[T], function: Callable[[], T]) -> None:
        try:
            reply.value = function()
        except BaseException as error:  # noqa: BLE001  # raised again where it is awaited
            reply.error = error
        self.post(reply)

    def submit(self, batch: Sequence[Entry]) -> None:
        try:
            answer = self.opened().submit(batch)
        except BaseException as error:  # noqa: BLE001  # told to the loop, which ends it all
            self.post(Lost(error))
        else:
            # A client that is asked is to be asked from now on.
            tells = self.polled is None and not answer.held and not answer.sizes
            self.post(Taken(answer), urgent=not tells)

    def reopen(self, error: BaseException, generation: int, held: int) -> None:
        self.polled = None
        self.is_direct = False
        self.lingering = None
        self.close_driver(0)
        self.post(GenerationEnded(error))
        # A client lies in reference cycles, with all the records it held. Where these are few and
        # large the collector, which counts objects, would leave them for long. Going through all
        # objects holds up the whole process, so little is left to it.
        self.driver = None
        if held >= _WORTH_COLLECTING:
            gc.collect()
        while not self._is_ending:
            try:
                self.open(generation)
            except ProducerFenced as failure:
                self.post(Lost(failure))
                return
            except SendProducerError as failure:
                _log.warning(
                    "no client in place of the one that broke, trying on: %s",
                    failure,
                    extra={"error.type": error_type(failure)},
                )
                self.close_driver(0)
                self.stopping.wait(_REOPEN_SECONDS)
            except BaseException as failure:  # noqa: BLE001  # as above
                self.post(Lost(failure))
                return
            else:
                self.post(Opened())
                return

    def close_driver(self, timeout: float) -> None:
        driver = self.driver  # another thread may take it away
        try:
            if driver is not None:
                driver.close(timeout)
        except Exception as error:  # noqa: BLE001  # closing goes on
            _log.exception(
                "the driver raised while it was closed", extra={"error.type": error_type(error)}
            )


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
        self._is_inline = inline
        #: Is offered, on the loop, an event that comes alone while their receiver waits for any;
        #: says whether it took it. What it does not take goes the way of all.
        self.take_at_once: Callable[[Event], bool] | None = None
        #: How many commands the thread was given.
        self._given = 0
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
        self._replies: set[_Reply[Any]] = set()
        self.step = Step()
        self.events = _Events(loop)
        self._worker = _Worker(loop, make, monotonic, weakref.WeakMethod(self._collect))
        self._finalizers: list[weakref.finalize[..., Any]] = []
        self._let_go: Callable[[], None] = _nothing
        self.generation = 1
        self.hand_overs = 0
        self.wake_ups = 0

    # --- on the loop -------------------------------------------------------------------------

    async def open(self) -> None:
        """Start the thread and open the driver on it.

        Raises:
            ProducerStartError: the driver could not connect, or no thread could be started.
            SettingsError: the client refused a setting.

        Cancellation leaves the thread on its way out: :meth:`stop` is to follow.
        """
        worker = self._worker
        if not self._is_inline:
            if not _has_started(worker.thread):
                raise ProducerStartError(
                    "no thread could be started for the client: the process or its container is at "
                    "its limit of threads"
                )
            # AnyIO keeps the tasks of a closed asyncio loop alive, and with them this bridge. So
            # there the end of the loop counts, and elsewhere the end of the bridge.
            sentinel = Sentinel()
            self._finalizers = [
                weakref.finalize(self, worker.abandon),
                weakref.finalize(sentinel, worker.abandon),
            ]
            for finalizer in self._finalizers:
                # When the process ends, its threads and sockets do as well.
                finalizer.atexit = False
            self._let_go = self._loop.keep(sentinel)
        await self._call(functools.partial(worker.open, self.generation))

    async def call(self, function: Callable[[Driver], T]) -> T:
        """Run a function of the driver on its thread, behind what is there already.

        Raises:
            ProducerClosed: the bridge was stopped before there was an answer.

        Cancellation stops the waiting; the function runs all the same.
        """
        worker = self._worker
        return await self._call(lambda: function(worker.opened()))

    async def _call(self, function: Callable[[], T]) -> T:
        if self._worker.stopping.is_set():
            raise ProducerClosed("the producer is closed")
        reply: _Reply[T] = _Reply(self._loop.new_waiter())
        with self.step:
            self._replies.add(reply)
            self._give(functools.partial(self._worker.answer, reply, function))
        try:
            await reply.cell
        finally:
            self._replies.discard(reply)
        error, reply.error = reply.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it knows this frame, and the one on the thread knows the reply
        return cast("T", reply.value)

    def submit(self, batch: Sequence[Entry]) -> Submitted | None:
        """Hand a batch over.

        Returns:
            What the driver says of it; None where one :class:`Taken` or :class:`Lost` will follow.
        """
        self.hand_overs += 1
        self._last_batch = len(batch)
        worker = self._worker
        by_loop = worker.is_direct
        if worker.polled is not None:
            self._under_way += len(batch)
        elif len(batch) > 1 or self._given != worker.served:
            by_loop = False
        if not by_loop:
            worker.is_wanted = False
            self._give(functools.partial(worker.submit, batch))
            self._begin_to_wait()
            return None
        try:
            answer = worker.opened().submit(batch)
        except Exception as error:  # noqa: BLE001  # as in _submit()
            self._pass_on([Lost(error)])
            return None
        self._begin_to_wait()
        return answer

    def _give(self, command: Callable[[], None]) -> None:
        """Have the thread do this, behind what is there already."""
        self._given += 1
        if self._is_inline:
            self._worker.serve_one(command)
        else:
            self._worker.inbox.put(command)

    def _begin_to_wait(self) -> None:
        if self._worker.polled is not None and not self._is_waiting:
            self._is_waiting = True
            self._waits_since = self._monotonic()

    def want(self) -> None:
        """There is more to hand over: have the receiver of the events told when the driver is
        through with the batch. Where nobody wants to know, that waits for what comes next."""
        with self._worker.posting:
            self._worker.is_wanted = True
        self._take_over()

    @property
    def lingers(self) -> bool:
        """Whether the client holds records back to form larger batches."""
        return self._worker.lingering is not None

    def hurry(self, on: bool) -> None:  # noqa: FBT001
        """Have the client hold no records back, as long as this is on."""
        worker = self._worker
        lingering = worker.lingering
        if lingering is None or on == worker.hurries:
            return
        worker.hurries = on
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
        return (
            _GIVEN_AT_ONCE if self._worker.polled is not None and self._worker.is_direct else None
        )

    @property
    def is_asked(self) -> bool:
        """Whether the client reports only when it is asked."""
        return self._worker.polled is not None

    @property
    def takes_at_once(self) -> bool:
        """Whether a record that is alone, with none under way, may be handed over where it stands:
        it was so the last time. Where there are many, they wait for each other, if only until the
        receiver of the events has its turn."""
        return self._worker.is_direct and self._last_batch == 1

    def ask(self) -> Sequence[Event]:
        """Have a client that reports only when it is asked say what there is.

        Where there is nothing, and something is under way, the receiver of the events is rung for
        to ask again, or the client's thread is told to wake it. Where there was something, it is
        rung for too: there may be more, and there will be more to hand over.

        Returns:
            What was posted meanwhile, by whomever.
        """
        polled = self._worker.polled
        if polled is None:
            return ()
        # Nobody has to wake the loop for what is reported meanwhile.
        self._worker.signalled = True
        try:
            self._under_way = polled.poll(_ASKED_AT_ONCE)
        except Exception as error:  # noqa: BLE001  # as in _submit()
            self._worker.post(Lost(error))
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
        return len(self.events) > 0

    def reopen(self, error: BaseException, held: int) -> None:
        """Give the client up for another. :class:`GenerationEnded` will follow, and then, when the
        cluster answers, :class:`Opened`.

        Args:
            error: why it is given up.
            held: how many bytes of records it has, at most.
        """
        self.generation += 1
        self._give(functools.partial(self._worker.reopen, error, self.generation, held))

    def trouble(self) -> Exception | None:
        """Why the client reaches no broker, where it knows of it."""
        driver = self._worker.driver
        return None if driver is None else driver.trouble()

    def cut_off(self) -> bool:
        """Whether the client reaches no broker at all."""
        driver = self._worker.driver
        return driver is not None and driver.cut_off()

    def figures(self) -> Mapping[str, Any]:
        """What the client counts by itself."""
        driver = self._worker.driver
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
        worker = self._worker
        worker.stopping.set()
        for finalizer in self._finalizers:
            finalizer.detach()
        self._let_go()
        try:
            if self._is_inline:
                worker.close_driver(seconds)
            else:
                await self._end_threads(seconds)
        finally:
            with self.step:
                self._take_over()
                for reply in self._replies:
                    reply.error = ProducerClosed("the producer was closed before the answer came")
                    self._loop.wake((reply.cell,))
                self.events.close()

    async def _end_threads(self, seconds: float) -> None:
        """Close the driver and wait until the threads have ended, for ``seconds`` and a grace
        period; log a thread that has not.

        Another thread does the waiting, in real time: the event loop's clock may stand still, as
        Trio's MockClock does. If that thread does not start, or ends before it has done anything,
        the loop looks at the other threads itself.
        """
        worker = self._worker
        is_closing = threading.Event()

        def close() -> None:
            is_closing.set()
            worker.close_driver(seconds)

        closer = worker.new_thread("-closer", close)
        if not _has_started(closer):
            worker.inbox.put(close)  # the client's own thread closes it, unless that hangs
        worker.inbox.put(None)
        threads = [thread for thread in (closer, worker.thread) if thread.ident is not None]
        give_up = time.monotonic() + seconds + _GRACE_SECONDS
        ended: Any = self._loop.new_waiter()

        def watch() -> None:
            for thread in threads:
                thread.join(max(0.0, give_up - time.monotonic()))
            self._loop.call_soon_threadsafe(functools.partial(self._loop.wake, (ended,)))

        watcher = worker.new_thread("-watcher", watch)
        if _has_started(watcher):
            with anyio.move_on_after(seconds + _GRACE_SECONDS):
                await ended
        # As a rule, only the watcher itself has yet to end. Joining it could block the loop.
        while watcher.is_alive() or (time.monotonic() < give_up and _are_alive(threads)):
            await anyio.lowlevel.cancel_shielded_checkpoint()
        for thread in threads:
            if thread.is_alive():
                _log.error(
                    "the thread %s hangs in the client library: left behind",
                    thread.name,
                    extra={"thread.name": thread.name},
                )
        if not is_closing.is_set():
            _log.error("the client was not closed: no thread ran to close it")

    def _collect(self) -> None:
        """Called by the loop after a wake-up."""
        with self.step:
            self.wake_ups += 1
            events = self._take_out()
            if (
                len(events) == 1
                and self.take_at_once is not None
                and self.events.is_awaited
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
        worker = self._worker
        with worker.posting:
            # Whoever posts from now on wakes the loop again.
            worker.signalled = False
            items = worker.outbox
            worker.outbox = []
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
        return self.events.put(events)
