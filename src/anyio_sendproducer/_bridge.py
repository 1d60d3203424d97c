"""The place where the event loop and the driver's thread meet; there is no other.

The event loop passes a batch of records to the thread as one command. The thread reports events:
they gather in a list, one wake-up of the event loop brings all of them, and they travel on as one
item of a stream to the pump. So a crossing is paid once for each batch, never for each record. An
event that arrives alone, while the pump waits, may be handled without a turn of the pump.

A client that takes records without waiting, and reports when it is polled, needs no thread for
that: the event loop submits and polls (see :class:`~anyio_sendproducer.drivers.PolledDriver`).

The thread is not one of AnyIO's worker threads: it lives as long as the producer, and a call of the
client library that hangs must not keep the event loop from ending.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import anyio
import anyio.lowlevel

from ._delivery import Entry
from ._driver_events import DriverCrashed, Event, EventStream, Ready
from ._driver_thread import DriverThread, Reply, has_started
from ._exceptions import ProducerClosed, ProducerStartError
from ._loops import Loop, Sentinel, Step
from ._polling import GATHER_LIMIT, NextPoll, PollScheduler
from .drivers import Driver, Submitted

__all__ = ["Bridge"]

T = TypeVar("T")

_log = logging.getLogger("anyio_sendproducer")

#: Seconds that the threads may take to end after the driver's own bound; then they are left behind.
GRACE_SECONDS: Final = 5.0

#: How many outcomes one poll brings before other tasks run. With 500 a timer was five times as
#: late, and nothing was faster; with 60 it was less late on Trio only, and a tenth fewer records
#: were sent.
_POLL_LIMIT: Final = 100
#: How many records the event loop submits before other tasks run: half a millisecond's work.
_SUBMIT_LIMIT: Final = GATHER_LIMIT


class Bridge:
    """A driver on a thread of its own, as seen from the event loop.

    Args:
        loop: the event loop to bring events to.
        make: makes a driver, a new one for each generation. It is called on the bridge's thread,
            since it may import a whole client library.
        monotonic: real time in seconds, as by :func:`time.monotonic`; called from any thread.
        inline: call the driver on the event loop, and start no thread. Only for a driver in memory,
            which never waits.
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
        self._is_inline = inline
        #: Called on the event loop with an event that arrives alone while the receiver waits.
        #: Returns whether it handled the event. If not, the event goes to the receiver.
        self.handle_inline: Callable[[Event], bool] | None = None
        #: How many commands the thread was given.
        self._given = 0
        self._polling = PollScheduler(monotonic)
        self._last_batch = 0
        self._replies: set[Reply[Any]] = set()
        self.step = Step()
        self.events = EventStream(loop)
        self._worker = DriverThread(loop, make, monotonic, weakref.WeakMethod(self._collect))
        self._finalizers: list[weakref.finalize[..., Any]] = []
        self._release_sentinel: Callable[[], None] | None = None
        self.generation = 1
        self.hand_overs = 0
        self.wake_ups = 0

    # --- on the loop -------------------------------------------------------------------------

    async def open(self) -> None:
        """Start the thread and open the driver on it.

        Raises:
            ProducerStartError: the driver could not connect, or no thread could be started.
            SettingsError: the client refused a setting.

        After a cancellation the thread still runs: call :meth:`stop`.
        """
        worker = self._worker
        if not self._is_inline:
            if not has_started(worker.thread):
                raise ProducerStartError(
                    "no thread could be started for the client: the process or its container is at "
                    "its limit of threads"
                )
            # AnyIO keeps the tasks of a closed asyncio loop alive, and with them this bridge. So
            # there the end of the loop tells that the producer was left behind, and elsewhere the
            # end of the bridge.
            sentinel = Sentinel()
            self._finalizers = [
                weakref.finalize(self, worker.abandon),
                weakref.finalize(sentinel, worker.abandon),
            ]
            for finalizer in self._finalizers:
                # When the process ends, its threads and sockets do as well.
                finalizer.atexit = False
            self._release_sentinel = self._loop.keep(sentinel)
        await self._call(functools.partial(worker.open, self.generation))

    async def call(self, function: Callable[[Driver], T]) -> T:
        """Run a function of the driver on its thread, after the earlier commands.

        Raises:
            ProducerClosed: the bridge was stopped before there was an answer.

        Cancellation stops the waiting; the function runs all the same.
        """
        worker = self._worker
        return await self._call(lambda: function(worker.opened()))

    async def _call(self, function: Callable[[], T]) -> T:
        if self._worker.stopping.is_set():
            raise ProducerClosed("the producer is closed")
        reply: Reply[T] = Reply(self._loop.new_waiter())
        with self.step:
            self._replies.add(reply)
            self._give(functools.partial(self._worker.answer, reply, function))
        try:
            await reply.waiter
        finally:
            self._replies.discard(reply)
        error, reply.error = reply.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame, and to the reply
        return cast("T", reply.value)

    def submit(self, batch: Sequence[Entry]) -> Submitted | None:
        """Submit a batch to the driver.

        Returns:
            The driver's answer; None if one :class:`BatchSubmitted` or :class:`DriverCrashed` will
            follow.
        """
        self.hand_overs += 1
        self._last_batch = len(batch)
        worker = self._worker
        inline = worker.is_direct
        if worker.polled is not None:
            self._polling.submitting(len(batch))
        elif len(batch) > 1 or self._given != worker.served:
            inline = False
        if not inline:
            worker.is_wanted = False
            self._give(functools.partial(worker.submit, batch))
            if worker.polled is not None:
                self._polling.submitted()
            return None
        try:
            answer = worker.opened().submit(batch)
        except Exception as error:  # noqa: BLE001  # as in DriverThread.submit()
            self._pass_on([DriverCrashed(error)])
            return None
        if worker.polled is not None:
            self._polling.submitted()
        return answer

    def _give(self, command: Callable[[], None]) -> None:
        """Have the thread run this, after the earlier commands."""
        self._given += 1
        if self._is_inline:
            self._worker.serve_one(command)
        else:
            self._worker.inbox.put(command)

    def notify_when_ready(self) -> None:
        """Have :class:`BatchSubmitted` reported as soon as the driver has processed the batch.
        Otherwise the next completion brings it."""
        with self._worker.posting:
            self._worker.is_wanted = True
        self._take_over()

    @property
    def lingers(self) -> bool:
        """Whether the client holds records back to form larger batches."""
        return self._worker.lingering is not None

    def hurry(self, on: bool) -> None:  # noqa: FBT001
        """Have the client hold no records back, as long as ``on`` is True."""
        worker = self._worker
        lingering = worker.lingering
        if lingering is None or on == worker.hurries:
            return
        worker.hurries = on
        try:
            lingering.hurry(on)
        except Exception as error:  # noqa: BLE001  # as in DriverThread.submit()
            self._pass_on([DriverCrashed(error)])

    def should_gather(self, queued: int) -> bool:
        """Whether to hold ``queued`` records back to form a larger batch."""
        return self._polling.should_gather(queued)

    @property
    def batch_limit(self) -> int | None:
        """How many records to submit at once, if the event loop submits them; otherwise None."""
        return _SUBMIT_LIMIT if self._worker.polled is not None and self._worker.is_direct else None

    @property
    def is_polled(self) -> bool:
        """Whether the client reports only when it is polled."""
        return self._worker.polled is not None

    @property
    def can_submit_inline(self) -> bool:
        """Whether a lone record may be submitted from the caller's task, if none is in flight.

        The last batch must have been a lone record, too. Many records wait for each other until
        the pump's next turn.
        """
        return self._worker.is_direct and self._last_batch == 1

    def poll(self) -> Sequence[Event]:
        """Poll a client that reports only when it is polled, and arrange the next poll.

        Returns:
            The events that were posted meanwhile, by any thread.
        """
        polled = self._worker.polled
        if polled is None:
            return ()
        # Events that are posted meanwhile need not wake the event loop.
        self._worker.signalled = True
        try:
            self._polling.polled(polled.poll(_POLL_LIMIT))
        except Exception as error:  # noqa: BLE001  # as in DriverThread.submit()
            self._worker.post(DriverCrashed(error))
        has_passed_on = self._has_passed_on
        events = self._take_out()
        next_poll = self._polling.after_poll(has_events=bool(events))
        if next_poll is NextPoll.NEXT_TURN:
            self.wake_pump()
        elif next_poll is NextPoll.WHEN_READY:
            polled.watch()
        # Earlier events come first.
        return () if events and has_passed_on and self._pass_on(events) else events

    @property
    def _has_passed_on(self) -> bool:
        """Whether there are events that the receiver has not taken yet."""
        return len(self.events) > 0

    def reopen(self, error: BaseException, held: int) -> None:
        """Replace the client. :class:`GenerationEnded` will follow, and then, when the cluster
        answers, :class:`ClientOpened`.

        Args:
            error: why the client is given up.
            held: how many bytes of records it has, at most.
        """
        self.generation += 1
        self._give(functools.partial(self._worker.reopen, error, self.generation, held))

    def last_error(self) -> Exception | None:
        """Why the client reaches no broker, if it knows that."""
        driver = self._worker.driver
        return None if driver is None else driver.last_error()

    def is_disconnected(self) -> bool:
        """Whether the client reaches no broker at all."""
        driver = self._worker.driver
        return driver is not None and driver.is_disconnected()

    def metrics(self) -> Mapping[str, Any]:
        """The client's own metrics."""
        driver = self._worker.driver
        return {} if driver is None else driver.metrics()

    def wake_pump(self) -> None:
        """Have the receiver of the events take a turn, unless it is about to."""
        if not self._has_passed_on:
            self._pass_on([])

    async def stop(self, seconds: float) -> None:
        """Close the driver, end the threads, and end the stream of events.

        Raises nothing but asyncio's own cancellation, which ignores shielded scopes.

        Args:
            seconds: how long the driver may take to close; 0: by force.

        Must run shielded from cancellation. Bounded: a thread that does not end is left behind,
        which is logged.
        """
        worker = self._worker
        worker.stopping.set()
        for finalizer in self._finalizers:
            finalizer.detach()
        if self._release_sentinel is not None:
            self._release_sentinel()
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
                    self._loop.wake((reply.waiter,))
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
        if not has_started(closer):
            worker.inbox.put(close)  # the client's own thread closes it, unless that hangs
        worker.inbox.put(None)
        threads = [thread for thread in (closer, worker.thread) if thread.ident is not None]
        give_up = time.monotonic() + seconds + GRACE_SECONDS
        ended: Any = self._loop.new_waiter()

        def watch() -> None:
            for thread in threads:
                thread.join(max(0.0, give_up - time.monotonic()))
            self._loop.call_soon_threadsafe(functools.partial(self._loop.wake, (ended,)))

        watcher = worker.new_thread("-watcher", watch)
        if has_started(watcher):
            with anyio.move_on_after(seconds + GRACE_SECONDS):
                await ended
        # As a rule, only the watcher itself has yet to end. Joining it could block the loop.
        while watcher.is_alive() or (
            time.monotonic() < give_up and any(thread.is_alive() for thread in threads)
        ):
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
        """Called by the event loop after a wake-up."""
        with self.step:
            self.wake_ups += 1
            events = self._take_out()
            if (
                len(events) == 1
                and self.handle_inline is not None
                and self.events.is_awaited
                and self.handle_inline(events[0])
            ):
                return
            if events:
                self._pass_on(events)

    def _take_over(self) -> None:
        """Pass the posted events on to the receiver."""
        events = self._take_out()
        if events:
            self._pass_on(events)

    def _take_out(self) -> list[Event]:
        """Take the posted events, and wake the tasks that await posted replies."""
        worker = self._worker
        with worker.posting:
            # The next item that is posted wakes the event loop again.
            worker.signalled = False
            items = worker.outbox
            worker.outbox = []
        events: list[Event] = []
        for item in items:
            if isinstance(item, Reply):
                # The producer may be closed before the task runs.
                self._replies.discard(item)
                self._loop.wake((item.waiter,))
            else:
                if isinstance(item, Ready):
                    self._polling.ready(item.since)
                events.append(item)
        return events

    def _pass_on(self, events: list[Event]) -> bool:
        """Put events into the stream. Returns: False if it is closed, because a wake-up may still
        arrive when the bridge has stopped."""
        return self.events.put(events)
