"""The thread on which a producer's driver is called, and the sink that the driver reports to."""

from __future__ import annotations

import contextvars
import functools
import gc
import itertools
import logging
import queue
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar, cast

from ._delivery import Entry
from ._driver_events import (
    BatchSubmitted,
    ClientBroken,
    ClientOpened,
    Completed,
    DriverCrashed,
    Event,
    GenerationEnded,
    MetadataChanged,
    Ready,
)
from ._exceptions import ProducerClosed, ProducerFenced, SendProducerError
from ._loops import Loop
from .drivers import DirectDriver, Driver, LingeringDriver, Outcome, PolledDriver
from .telemetry._logging import error_type

__all__ = ["DriverThread", "Reply", "has_started"]

T = TypeVar("T")

_log = logging.getLogger("anyio_sendproducer")

#: Seconds between attempts to open a client in place of one that broke.
REOPEN_SECONDS: Final = 0.5

#: How many bytes a client that is given up must hold to be worth a garbage collection. That takes
#: 0.1 s for each million objects of the process, which stands still meanwhile.
WORTH_COLLECTING: Final = 4 * 1024 * 1024

_numbers = itertools.count(1)


class Reply(Generic[T]):
    """The answer to one call, and the waiter of the task that awaits it."""

    __slots__ = ("error", "value", "waiter")

    def __init__(self, waiter: Any) -> None:
        self.waiter = waiter
        self.value: T | None = None
        self.error: BaseException | None = None


class _Sink:
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
        self._post(ClientBroken(self._generation, error))

    def ready(self) -> None:
        self._post(Ready(self._monotonic()))


def has_started(thread: threading.Thread) -> bool:
    """Start a thread. Returns: False if the system has none left, which is logged."""
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


class DriverThread:
    """The thread of a bridge, and the driver that it calls.

    It does not refer to the bridge. Otherwise the thread would keep the producer alive, and nothing
    would notice that its event loop has ended.

    Args:
        loop: the event loop to wake.
        make: see :class:`~anyio_sendproducer._bridge.Bridge`.
        monotonic: as ``make``.
        collect: returns the function for the event loop to call when something was posted; None if
            the bridge is gone.
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
        #: Serializers and other hooks see the context variables of the task that opened the
        #: producer.
        self._context = contextvars.copy_context()
        self.driver: Driver | None = None
        self.polled: PolledDriver | None = None
        #: Whether the event loop may submit: all records to a client that is polled, and otherwise
        #: a lone record.
        self.is_direct = False
        #: The driver, if its client holds records back, and whether it was told to hurry.
        self.lingering: LingeringDriver | None = None
        self.hurries = False
        #: How many commands the thread has finished.
        self.served = 0
        self.inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.outbox: list[Event | Reply[Any]] = []
        self.signalled = False
        #: Whether the event loop has more records for the driver when it has processed a batch.
        self.is_wanted = False
        # Guards `outbox` with `signalled`. Thread A appends an event, the loop takes the outbox and
        # clears `signalled`, then A sets it: the loop would never be woken again. A finalizer may
        # post while its thread posts, so the lock is reentrant.
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

        The garbage collector may call this, on any thread and in the middle of any code. So it
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
            "before the loop ends, or stop its ProducerService",
            ResourceWarning,
            stacklevel=2,
        )

    @property
    def _is_ending(self) -> bool:
        return self._is_abandoned or self.stopping.is_set()

    def post(self, item: Event | Reply[Any], *, urgent: bool = True) -> None:
        """Bring an item to the event loop.

        Args:
            item: the item.
            urgent: False for an item that the next wake-up may bring, unless the event loop wants
                it at once.
        """
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
            del command  # it refers to records, and so to the tasks that wait for them

    def serve_one(self, command: Callable[[], None]) -> None:
        """Run one command."""
        command()
        self.served += 1

    def open(self, generation: int) -> None:
        """Make the driver of a generation, and open it."""
        self.driver = driver = self._make()
        if self._is_ending:
            raise ProducerClosed("the producer was closed while it was starting")
        driver.open(_Sink(self.post, generation, self._monotonic))
        self.polled = driver if isinstance(driver, PolledDriver) else None
        self.is_direct = isinstance(driver, DirectDriver) and driver.direct
        # This client was not told to hurry yet. The event loop reads `lingering` first, so it is
        # set last.
        self.hurries = False
        lingers = isinstance(driver, LingeringDriver) and driver.lingers
        self.lingering = cast("LingeringDriver", driver) if lingers else None

    def opened(self) -> Driver:
        """The driver.

        Raises:
            ProducerClosed: there is none.
        """
        if self.driver is None:
            raise ProducerClosed("the producer is closed")
        return self.driver

    def answer(self, reply: Reply[T], function: Callable[[], T]) -> None:
        """Post the result of a function, or its error."""
        try:
            reply.value = function()
        except BaseException as error:  # noqa: BLE001  # raised again by the task that awaits it
            reply.error = error
        self.post(reply)

    def submit(self, batch: Sequence[Entry]) -> None:
        """Submit a batch, and post the answer."""
        try:
            answer = self.opened().submit(batch)
        except BaseException as error:  # noqa: BLE001  # the event loop ends the producer
            self.post(DriverCrashed(error))
        else:
            # A client that is polled must be polled from now on. If there is nothing to do for the
            # event loop, the next completion brings the answer.
            can_wait = self.polled is None and not answer.held and not answer.sizes
            self.post(BatchSubmitted(answer), urgent=not can_wait)

    def reopen(self, error: BaseException, generation: int, held: int) -> None:
        """Close the client by force, and open the next one; see
        :meth:`~anyio_sendproducer._bridge.Bridge.reopen`."""
        self.polled = None
        self.is_direct = False
        self.lingering = None
        self.close_driver(0)
        self.post(GenerationEnded(error))
        # A client is part of reference cycles, with all the records that it held. The collector
        # counts objects, so it would leave a few large ones for long. A collection stops the whole
        # process, so it is worth it only for much memory.
        self.driver = None
        if held >= WORTH_COLLECTING:
            gc.collect()
        while not self._is_ending:
            try:
                self.open(generation)
            except ProducerFenced as failure:
                self.post(DriverCrashed(failure))
                return
            except SendProducerError as failure:
                _log.warning(
                    "no client in place of the one that broke, trying on: %s",
                    failure,
                    extra={"error.type": error_type(failure)},
                )
                self.close_driver(0)
                self.stopping.wait(REOPEN_SECONDS)
            except BaseException as failure:  # noqa: BLE001  # as above
                self.post(DriverCrashed(failure))
                return
            else:
                self.post(ClientOpened())
                return

    def close_driver(self, timeout: float) -> None:
        """Close the driver, if there is one, within about ``timeout`` seconds. Never raises."""
        driver = self.driver  # another thread may clear the attribute
        try:
            if driver is not None:
                driver.close(timeout)
        except Exception as error:  # noqa: BLE001  # closing goes on
            _log.exception(
                "the driver raised while it was closed", extra={"error.type": error_type(error)}
            )
