"""The event loop's side of the exchange with the driver thread.

The event loop passes a batch of records to the driver thread as one command. The driver thread and
the threads of the client post events to a list (see ``_driver_thread.py``). One wake-up of the
event loop takes all events of the list and puts them, as one item, into the stream that the pump
reads. So the cost of crossing between thread and loop is paid once for each batch. If the producer
has no observers, a few events that arrive while the pump waits are handled without a turn of the
pump.

If the client's calls never block and it reports only when it is polled, the event loop submits and
polls without the thread (see :class:`~anyio_sendproducer.drivers.PolledDriver`). It also submits
small batches to any client that takes records without waiting
(:class:`~anyio_sendproducer.drivers.DirectDriver`). But if submitting would run a serializer or a
partitioner of the user, the driver thread submits.

The thread is not one of AnyIO's worker threads, because it lives as long as the producer, and
because a call of the client library that hangs must not keep the event loop from ending.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

import anyio
import anyio.lowlevel

from ._delivery import Entry
from ._driver_events import BatchSubmitted, Completed, DriverCrashed, Event, EventStream, Ready
from ._driver_thread import DriverThread, Reply, has_started
from ._exceptions import ProducerClosed, ProducerStartError
from ._loops import Loop, Sentinel, Step
from ._polling import GATHER_LIMIT, LATER_SECONDS, NextPoll, PollScheduler
from .drivers import Driver, PolledDriver, Submitted

__all__ = ["Bridge"]

T = TypeVar("T")

_log = logging.getLogger("anyio_sendproducer")

#: How many seconds after the driver's close timeout to wait for its threads.
GRACE_SECONDS: Final = 5.0

#: How many outcomes one poll may bring before other tasks run. Measured: with 500, timers were five
#: times as late and nothing was faster. With 60, a tenth fewer records were sent, and timers were
#: less late only on Trio.
_POLL_LIMIT: Final = 100
#: How many records the event loop submits before other tasks run: half a millisecond's work.
_SUBMIT_LIMIT: Final = GATHER_LIMIT
#: If a client takes records without waiting and need not be polled, the event loop submits a batch
#: of at most this many records, provided that the last batch was as small. The driver thread
#: submits a larger batch, while more records queue up. Measured with kafka-python at 2,000 records
#: per second: without a third thread that competes for the interpreter, the median latency is 15 %
#: lower.
_SMALL_BATCH: Final = 32


class Bridge:
    """Calls a driver for the event loop: on the driver thread, or directly if that never blocks.

    Args:
        loop: the event loop.
        make: makes a driver, a new one for each attempt to open a client. The driver thread calls
            it, because it may import a whole client library. With ``threadless``, the loop does.
        monotonic: returns real time in seconds, as :func:`time.monotonic` does; called from any
            thread.
        threadless: start no thread, and call the driver on the event loop. Only for a driver that
            never waits, such as that of ``fake_producer``. :meth:`open` opens it.
    """

    def __init__(
        self,
        loop: Loop,
        make: Callable[[], Driver],
        monotonic: Callable[[], float],
        *,
        threadless: bool = False,
    ) -> None:
        self._loop = loop
        self.is_threadless: Final = threadless
        #: Called on the event loop: with events that arrived while the receiver waits, or with
        #: none, to poll the client. Returns whether it handled them. If not, they go to the
        #: receiver.
        self.take_turn: Callable[[Sequence[Event]], bool] | None = None
        #: How many commands were sent to the thread.
        self._commands_sent = 0
        self._polling = PollScheduler(monotonic)
        self._polls_later = False
        self._last_batch = 0
        self._replies: set[Reply[Any]] = set()
        self._may_open = threading.Event()
        self.step = Step()
        self.events = EventStream(loop)
        self._worker = DriverThread(loop, make, monotonic, weakref.WeakMethod(self._collect))
        self._finalizers: list[weakref.finalize[..., Any]] = []
        self._release_sentinel: Callable[[], None] | None = None
        self.generation = 1
        self.hand_overs = 0
        self.wake_ups = 0

    # --- on the event loop -------------------------------------------------------------------

    async def open(self) -> None:
        """Start the thread and open the driver on it. Without a thread, open the driver here.

        Raises:
            ProducerStartError: the driver could not connect, or no thread could be started.
            ProducerFenced: another producer took over the ``transactional_id`` during the start.
            SettingsError: the client refused a setting.

        Cancellation leaves the thread running: call :meth:`stop`.
        """
        self._start_thread()
        await self._call(functools.partial(self._worker.open, self.generation))

    def open_in_background(self, *, are_addresses_known: bool) -> None:
        """Start the thread, and have it open the driver. :class:`ClientOpened` will follow when the
        cluster answers. There must be a thread: the opening waits there.

        Args:
            are_addresses_known: whether the addresses of the cluster are known. If not, the thread
                waits for :meth:`allow_open`.

        Raises:
            ProducerStartError: no thread could be started.
        """
        if are_addresses_known:
            self.allow_open()
        self._start_thread()
        opening = functools.partial(self._worker.open_first, self.generation, self._may_open)
        self._send_command(opening)

    def allow_open(self) -> None:
        """Let the thread open the driver, because the addresses of the cluster are known."""
        self._may_open.set()

    def _start_thread(self) -> None:
        worker = self._worker
        if not self.is_threadless:
            if not has_started(worker.thread):
                raise ProducerStartError(
                    "no thread could be started for the client: the process or its container is at "
                    "its limit of threads"
                )
            # If the event loop ends before the producer is closed, the driver must be closed
            # nevertheless. On Trio the bridge is garbage-collected then. On asyncio, AnyIO keeps
            # the tasks of a closed loop alive, and with them this bridge. But the closed loop drops
            # the sentinel.
            sentinel = Sentinel()
            self._finalizers = [
                weakref.finalize(self, worker.abandon),
                weakref.finalize(sentinel, worker.abandon),
            ]
            for finalizer in self._finalizers:
                # At the end of the process there is nothing to close.
                finalizer.atexit = False
            self._release_sentinel = self._loop.keep(sentinel)

    async def call(self, function: Callable[[Driver], T]) -> T:
        """Call a function with the driver, on the thread, after the earlier commands.

        Raises:
            ProducerClosed: the bridge was stopped before the function returned, or there is no
                driver.
            Exception: the exception of the function.

        Cancellation ends only the waiting. The function is still called.
        """
        worker = self._worker
        return await self._call(lambda: function(worker.opened()))

    async def _call(self, function: Callable[[], T]) -> T:
        if self._worker.stopping.is_set():
            raise ProducerClosed("the producer is closed")
        reply: Reply[T] = Reply(self._loop.new_waiter())
        with self.step:
            self._replies.add(reply)
            self._send_command(functools.partial(self._worker.call, reply, function))
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
            What the driver returned; None if a :class:`BatchSubmitted` or a :class:`DriverCrashed`
            will follow.
        """
        self.hand_overs += 1
        worker = self._worker
        on_loop = worker.is_direct
        if worker.polled_driver is not None:
            self._polling.submitting(len(batch))
        elif (
            max(self._last_batch, len(batch)) > _SMALL_BATCH
            or self._commands_sent != worker.commands_done
        ):
            on_loop = False
        self._last_batch = len(batch)
        if not on_loop:
            worker.has_next_batch = False
            self._send_command(functools.partial(worker.submit, batch))
            if worker.polled_driver is not None:
                self._polling.submitted()
            return None
        try:
            submitted = worker.opened().submit(batch)
        except Exception as error:  # noqa: BLE001  # as in DriverThread.submit()
            self._put_events([DriverCrashed(error)])
            return None
        if worker.polled_driver is not None:
            self._polling.submitted()
        return submitted

    def _send_command(self, command: Callable[[], None]) -> None:
        """Have the thread run a command, after the earlier ones."""
        self._commands_sent += 1
        if self.is_threadless:
            self._worker.run_command(command)
        else:
            self._worker.inbox.put(command)

    def notify_when_ready(self) -> None:
        """Have :class:`BatchSubmitted` wake the event loop as soon as the driver has processed the
        batch. Otherwise it arrives together with the next completion."""
        with self._worker.posting:
            self._worker.has_next_batch = True
        self._put_posted_events()

    @property
    def lingers(self) -> bool:
        """Whether the client lingers to form larger batches."""
        return self._worker.lingering_driver is not None

    def hurry(self, on: bool) -> None:  # noqa: FBT001
        """Keep the client from lingering as long as ``on`` is True."""
        worker = self._worker
        lingering = worker.lingering_driver
        if lingering is None or on == worker.is_hurried:
            return
        worker.is_hurried = on
        try:
            lingering.hurry(on)
        except Exception as error:  # noqa: BLE001  # as in DriverThread.submit()
            self._put_events([DriverCrashed(error)])

    def should_gather(self, queued: int) -> bool:
        """Whether to gather ``queued`` records for a larger batch."""
        return self._polling.should_gather(queued)

    @property
    def batch_limit(self) -> int | None:
        """How many records to submit at once, if the client is polled and the loop submits to it;
        otherwise None, for all."""
        return (
            _SUBMIT_LIMIT
            if self._worker.polled_driver is not None and self._worker.is_direct
            else None
        )

    @property
    def is_polled(self) -> bool:
        """Whether the client reports only when it is polled."""
        return self._worker.polled_driver is not None

    def can_submit_inline(self, *, is_alone: bool) -> bool:
        """Whether a batch of one record may be submitted from the caller's task.

        The last batch must have had one record, too. Otherwise several callers probably send
        now, and their records are submitted together in the pump's next turn.

        Args:
            is_alone: whether no other record is in flight. If there are others, the client must be
                polled, and callers must send rarely. A client with a thread of its own forms larger
                batches meanwhile.
        """
        worker = self._worker
        return (
            worker.is_direct
            and self._last_batch == 1
            and (is_alone or (worker.polled_driver is not None and not self._polling.is_busy))
        )

    def reports_by_itself(self) -> bool:
        """Whether the outcome of a record that was just submitted comes without a turn of the pump.

        If the client reports only when it is polled, the polling thread watches it from now on, or
        a timer polls it, unless an answer is near: then the pump polls in its next turn.
        """
        polled = self._worker.polled_driver
        return polled is None or not self._polls_in_next_turn(polled, self._polling.next_poll())

    def _polls_in_next_turn(self, polled: PolledDriver, next_poll: NextPoll) -> bool:
        """Arrange the next poll. Returns: True if the pump must poll in its next turn."""
        if next_poll is NextPoll.NEXT_TURN:
            return True
        if next_poll is NextPoll.LATER and self._loop.call_later is not None:
            if not self._polls_later:
                self._polls_later = True
                self._loop.call_later(LATER_SECONDS, self._poll_now)
        elif next_poll is not NextPoll.AFTER_SUBMIT:
            polled.watch()
        return False

    def _poll_now(self) -> None:
        self._polls_later = False
        if not (self.events.is_awaited and self.take_turn is not None and self.take_turn(())):
            self.wake_pump()

    def poll(self) -> Sequence[Event]:
        """Poll a client that reports only when it is polled, and arrange the next poll.

        Returns:
            All posted events; none if they were put into the stream behind earlier ones.
        """
        polled = self._worker.polled_driver
        if polled is None:
            return ()
        # Events that are posted during the poll need not wake the event loop.
        self._worker.is_wake_up_scheduled = True
        try:
            self._polling.polled(polled.poll(_POLL_LIMIT))
        except Exception as error:  # noqa: BLE001  # as in DriverThread.submit()
            self._worker.post(DriverCrashed(error))
        has_untaken = bool(self.events.items)
        events = self._take_posted()
        outcomes = sum(len(event.entries) for event in events if type(event) is Completed)
        next_poll = self._polling.after_poll(outcomes=outcomes, limit=_POLL_LIMIT)
        # If the thread submits, it may have passed a batch to the client after the poll counted the
        # records in flight. Then the poll must be repeated.
        is_batch_new = any(type(event) is BatchSubmitted for event in events)
        if self._polls_in_next_turn(polled, next_poll) or is_batch_new:
            self.wake_pump()
        # If the pump has not taken earlier events, queue these behind them.
        return () if events and has_untaken and self._put_events(events) else events

    def reopen(self, error: BaseException, buffered_bytes: int, fruitless: int) -> None:
        """Replace the client. :class:`GenerationEnded` will follow, and then, when the cluster
        answers, :class:`ClientOpened`. Without a thread, :class:`DriverCrashed` follows if the next
        client can't be opened at once: a pause before a further attempt would stop the event loop.

        Args:
            error: why the client is given up.
            buffered_bytes: the bytes of the records that the client may have.
            fruitless: how many replacements in a row, up to this client, delivered no record. The
                thread pauses before it opens the next client, for longer the larger this number is.
        """
        self.generation += 1
        reopen = functools.partial(
            self._worker.reopen,
            error,
            self.generation,
            buffered_bytes,
            0 if self.is_threadless else fruitless,
            retries=not self.is_threadless,
        )
        self._send_command(reopen)

    @property
    def driver(self) -> Driver | None:
        """The driver that was made last. None before the first driver is made, and, after a client
        was given up, until the next driver is made. While a client is being opened, its driver is
        not open yet."""
        return self._worker.driver

    def last_error(self) -> BaseException | None:
        """Return the reason why the client reaches no broker, if the driver knows it."""
        driver, open_error = self._worker.driver, self._worker.open_error
        try:
            return (None if driver is None else driver.last_error()) or open_error
        except Exception as error:  # noqa: BLE001  # as in DriverThread.submit()
            self._put_events([DriverCrashed(error)])
            return error

    def is_disconnected(self) -> bool:
        """Whether the client reaches no broker at all."""
        driver = self._worker.driver
        return driver is not None and driver.is_disconnected()

    def metrics(self) -> Mapping[str, Any]:
        """Return the client's own metrics."""
        driver = self._worker.driver
        return {} if driver is None else driver.metrics()

    def wake_pump(self) -> None:
        """Have the pump take a turn, unless events that it has not taken cause one already."""
        if not self.events.items:
            self._put_events([])

    async def stop(self, seconds: float) -> None:
        """Close the driver, end the threads and close the stream of events.

        Must be called in a shielded scope. A shield does not stop asyncio's own ``task.cancel()``:
        that cancellation is raised. A thread that does not end in time keeps running, and is
        logged.

        Args:
            seconds: how long the driver may take to close; 0 closes it by force.
        """
        worker = self._worker
        worker.stopping.set()
        for finalizer in self._finalizers:
            finalizer.detach()
        if self._release_sentinel is not None:
            self._release_sentinel()
        try:
            if self.is_threadless:
                worker.close_driver(seconds)
            else:
                await self._end_threads(seconds)
        finally:
            with self.step:
                self._put_posted_events()
                for reply in self._replies:
                    reply.error = ProducerClosed("the producer was closed before the answer came")
                    self._loop.wake((reply.waiter,))
                self.events.close()

    async def _end_threads(self, seconds: float) -> None:
        """Close the driver, and wait for the threads for ``seconds`` and a grace period.

        A watcher thread does the waiting, because the event loop's clock may stand still, as
        Trio's MockClock does. If the watcher can't start, the event loop checks the threads in each
        of its turns.
        """
        worker = self._worker
        is_closing = threading.Event()

        def close() -> None:
            is_closing.set()
            worker.close_driver(seconds)

        closer = worker.new_thread("-closer", close)
        if not has_started(closer):
            worker.inbox.put(close)  # the driver thread closes it, unless that thread hangs
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
        # Usually only the watcher itself has yet to end. Joining it could block the event loop.
        while watcher.is_alive() or (
            time.monotonic() < give_up and any(thread.is_alive() for thread in threads)
        ):
            await anyio.lowlevel.cancel_shielded_checkpoint()
        for thread in threads:
            if thread.is_alive():
                with suppress(Exception):  # a log handler may raise
                    _log.error(
                        "the thread %s did not end: it hangs in the client library, or in a "
                        "serializer or another function that you passed, and keeps running",
                        thread.name,
                        extra={"thread.name": thread.name},
                    )
        if not is_closing.is_set():
            with suppress(Exception):  # a log handler may raise
                _log.error("the client was not closed: no thread ran to close it")

    def _collect(self) -> None:
        """Handle a wake-up of the event loop: take the posted events."""
        with self.step:
            self.wake_ups += 1
            events = self._take_posted()
            if self._worker.polled_driver is not None:
                for event in events:
                    if type(event) is Completed:
                        self._polling.reported(len(event.entries))
            take_turn = self.take_turn if self.events.is_awaited else None
        if events and (take_turn is None or not take_turn(events)):
            with self.step:
                self._put_events(events)

    def _put_posted_events(self) -> None:
        """Put the posted events into the stream."""
        events = self._take_posted()
        if events:
            self._put_events(events)

    def _take_posted(self) -> list[Event]:
        """Take the posted events, and wake the tasks that await posted replies."""
        worker = self._worker
        with worker.posting:
            # The next urgent item that is posted wakes the event loop again.
            worker.is_wake_up_scheduled = False
            items = worker.outbox
            worker.outbox = []
        events: list[Event] = []
        for item in items:
            if isinstance(item, Reply):
                # stop() puts an error into each of `_replies`. This reply has its result already.
                self._replies.discard(item)
                self._loop.wake((item.waiter,))
            else:
                if isinstance(item, Ready):
                    self._polling.ready(item.since)
                events.append(item)
        return events

    def _put_events(self, events: list[Event]) -> bool:
        """Put events into the stream. Returns: False if the stream is closed: a wake-up may arrive
        after the bridge has stopped."""
        return self.events.put(events)
