"""The thread that calls a producer's driver, and the sink that the driver reports to.

The driver thread shares a queue with the event loop, whose side is in ``_bridge.py``. It shares a
list of events with the event loop and with the threads of the client.
"""

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
from contextlib import suppress
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
from ._exceptions import ProducerClosed, ProducerFenced, SendProducerError, SettingsError
from ._failures import producer_broken
from ._loops import Loop
from .drivers import DirectDriver, Driver, LingeringDriver, Outcome, PolledDriver
from .telemetry._logging import error_type

__all__ = ["DriverThread", "Reply", "has_started"]

T = TypeVar("T")

_log = logging.getLogger("anyio_sendproducer")

#: Seconds between the first two attempts to open a client in the background, or before a client is
#: opened after two in a row delivered no record.
REOPEN_SECONDS: Final = 0.5

#: The pause doubles after each attempt, up to this number of seconds.
LONGEST_REOPEN_SECONDS: Final = 4.0

#: Run the garbage collector after closing a client that had at least this many bytes of records.
#: That stops the process for 0.1 s for each million of its objects.
WORTH_COLLECTING: Final = 4 * 1024 * 1024

_numbers = itertools.count(1)


class Reply(Generic[T]):
    """The result of one call on the thread, and the waiter of the task that awaits it."""

    __slots__ = ("error", "value", "waiter")

    def __init__(self, waiter: Any) -> None:
        self.waiter = waiter
        self.value: T | None = None
        self.error: BaseException | None = None


class _Sink:
    """The :class:`~anyio_sendproducer.drivers.Sink` of one client generation."""

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
    """Start a thread. Returns: False if the system can't start another one; that is logged."""
    try:
        thread.start()
    except RuntimeError as error:
        with suppress(Exception):  # a log handler may raise
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

    This object has no strong reference to the bridge. Otherwise the running thread would keep the
    bridge alive, and the bridge's finalizer would not run when the event loop has ended.

    Args:
        loop: the event loop to wake.
        make: see :class:`~anyio_sendproducer._bridge.Bridge`.
        monotonic: see :class:`~anyio_sendproducer._bridge.Bridge`.
        collect: returns the function that the event loop calls after a wake-up; None if the bridge
            no longer exists.
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
        #: The context variables of the task that opened the producer. Serializers and other hooks
        #: run in a copy of this context.
        self._context = contextvars.copy_context()
        self.driver: Driver | None = None
        #: Why the last attempt to open a client in the background failed. Until an attempt fails,
        #: the last error of the client that is being replaced. None once a client is open.
        self.open_error: BaseException | None = None
        self.polled_driver: PolledDriver | None = None
        #: Whether the event loop may submit without the thread: any batch if the client is polled,
        #: otherwise a small one.
        self.is_direct = False
        #: The driver, if its client lingers.
        self.lingering_driver: LingeringDriver | None = None
        #: Whether that driver was told to hurry.
        self.is_hurried = False
        #: How many commands the thread has finished.
        self.commands_done = 0
        self.inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.outbox: list[Event | Reply[Any]] = []
        #: Whether the event loop will take the outbox, so that post() need not wake it.
        self.is_wake_up_scheduled = False
        #: Whether the event loop has a next batch for the driver. If so, BatchSubmitted is urgent.
        self.has_next_batch = False
        # Guards `outbox`, `is_wake_up_scheduled` and `has_next_batch`. (In two places, the event
        # loop sets one of the last two without the lock, with one assignment.) Without the lock:
        # thread A looks the outbox up; the loop replaces the outbox, and takes the events of the
        # old one; A appends to the old one, and its event is lost. The lock is reentrant because a
        # finalizer may interrupt a post with another post.
        self.posting = threading.RLock()
        self.stopping = threading.Event()
        self._is_abandoned = False
        self.thread = self._named_thread(f"anyio-sendproducer-{next(_numbers)}", self._serve)

    def new_thread(self, suffix: str, target: Callable[[], None]) -> threading.Thread:
        """Make a thread that runs ``target`` in a copy of the opener's context."""
        return self._named_thread(self.thread.name + suffix, target)

    def _named_thread(self, name: str, target: Callable[[], None]) -> threading.Thread:
        return threading.Thread(
            target=self._context.copy().run, args=(target,), name=name, daemon=True
        )

    def abandon(self) -> None:
        """Close the driver by force, because the event loop ended before the producer was closed.

        The garbage collector may call this, on any thread and in the middle of any code. So it
        takes no lock and does not wait.
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
            urgent: False for an item that the next wake-up may bring, unless the event loop has a
                next batch.
        """
        with self.posting:
            self.outbox.append(item)
            wakes = not self.is_wake_up_scheduled and (urgent or self.has_next_batch)
            if wakes:
                self.is_wake_up_scheduled = True
        if wakes:
            collect = self._collect()
            if collect is not None and not self._loop.call_soon_threadsafe(collect):
                self.abandon()

    def _serve(self) -> None:
        while (command := self.inbox.get()) is not None:
            self.run_command(command)
            # The command refers to records, which must not stay in memory until the next one.
            del command

    def run_command(self, command: Callable[[], None]) -> None:
        """Run one command."""
        try:
            command()
        except Exception as error:  # noqa: BLE001  # as in submit()
            self._crash(error)
        self.commands_done += 1

    def open(self, generation: int) -> None:
        """Make and open the driver of a client generation."""
        self.driver = driver = self._make()
        if self._is_ending:
            raise ProducerClosed("the producer was closed while it was starting")
        driver.open(_Sink(self.post, generation, self._monotonic))
        self.polled_driver = driver if isinstance(driver, PolledDriver) else None
        self.is_direct = isinstance(driver, DirectDriver) and driver.direct
        # A new client has not been told to hurry. Set `lingering_driver` last, because the event
        # loop reads it first.
        self.is_hurried = False
        lingers = isinstance(driver, LingeringDriver) and driver.lingers
        self.lingering_driver = cast("LingeringDriver", driver) if lingers else None

    def opened(self) -> Driver:
        """Return the driver.

        Raises:
            ProducerBroken: no further client is opened.
            ProducerClosed: there is no driver.
        """
        if self.driver is None:
            if self.open_error is not None and not self._is_ending:
                raise producer_broken(self.open_error)
            raise ProducerClosed("the producer is closed")
        return self.driver

    def _crash(self, error: BaseException) -> None:
        """Report that no further client is opened."""
        self.close_driver(0)
        self.driver = None
        self.open_error = error
        self.post(DriverCrashed(error))

    def call(self, reply: Reply[T], function: Callable[[], T]) -> None:
        """Call a function, and post its result or its error."""
        try:
            reply.value = function()
        except BaseException as error:  # noqa: BLE001  # raised again by the task that awaits it
            reply.error = error
        self.post(reply)

    def submit(self, batch: Sequence[Entry]) -> None:
        """Submit a batch, and post what the driver returns."""
        try:
            submitted = self.opened().submit(batch)
        except BaseException as error:  # noqa: BLE001  # the event loop breaks the producer
            self.post(DriverCrashed(error))
        else:
            # If the event needs no action, it may arrive with the next completion. But a client
            # that must be polled completes nothing until it is polled.
            can_wait = self.polled_driver is None and not submitted.held and not submitted.sizes
            self.post(BatchSubmitted(submitted), urgent=not can_wait)

    def reopen(
        self,
        error: BaseException,
        generation: int,
        buffered_bytes: int,
        fruitless: int,
        *,
        retries: bool,
    ) -> None:
        """Close the client by force, and open the next one; see
        :meth:`~anyio_sendproducer._bridge.Bridge.reopen`.

        If another producer may have taken over, no client is opened: it would take the
        ``transactional_id`` back.
        """
        last_error = None if self.driver is None else self.driver.last_error()
        self.polled_driver = None
        self.is_direct = False
        self.lingering_driver = None
        self.close_driver(0)
        self.post(GenerationEnded(error))
        # The client is part of reference cycles, with all the records that it had. The garbage
        # collector counts objects, not bytes, so it may leave a few large records for a long time.
        # A collection stops the process, so run it only if it frees much memory.
        self.driver = None
        if buffered_bytes >= WORTH_COLLECTING:
            gc.collect()
        if isinstance(last_error, ProducerFenced):
            self._crash(last_error)
            return
        # Until an attempt to open the next client fails, records that time out have this reason. It
        # is copied, because the traceback of the error may keep the old client in memory.
        reason = last_error or error if fruitless else last_error
        self.open_error = None if reason is None else SendProducerError(str(reason))
        if fruitless:
            # Clients can be opened, but not used, for example because a permission is missing.
            doublings = min(fruitless, 10) - 1
            self.stopping.wait(min(REOPEN_SECONDS * 2**doublings, LONGEST_REOPEN_SECONDS))
        # A later client may refuse a setting for a while, for example a certificate whose file is
        # being replaced.
        self._open_repeatedly(generation, (ProducerFenced,) if retries else (SendProducerError,))

    def open_first(self, generation: int, may_open: threading.Event) -> None:
        """Open the first client, as soon as ``may_open`` is set."""
        while not may_open.wait(REOPEN_SECONDS):
            if self._is_ending:
                return
        # If the first client refuses a setting, the setting is wrong.
        self._open_repeatedly(generation, (ProducerFenced, SettingsError))

    def _open_repeatedly(
        self, generation: int, hopeless: tuple[type[SendProducerError], ...]
    ) -> None:
        """Open the driver of a client generation. Try again after each error that may be temporary.

        Args:
            generation: the number of the generation.
            hopeless: the errors after which no further client is opened.
        """
        pause = REOPEN_SECONDS
        while not self._is_ending:
            try:
                self.open(generation)
            except hopeless as failure:
                self._crash(failure)
                return
            except SendProducerError as failure:
                if self.stopping.is_set() or self._is_abandoned:  # that is the reason
                    self.close_driver(0)
                    return
                self.open_error = failure
                with suppress(Exception):  # a log handler may raise
                    _log.warning(
                        "no %sclient could be opened; trying again: %s",
                        "" if generation == 1 else "new ",
                        failure,
                        extra={"error.type": error_type(failure)},
                    )
                self.close_driver(0)
                self.stopping.wait(pause)
                pause = min(2 * pause, LONGEST_REOPEN_SECONDS)
            except BaseException as failure:  # noqa: BLE001  # as in submit()
                self._crash(failure)
                return
            else:
                self.open_error = None
                self.post(ClientOpened(generation))
                return

    def close_driver(self, timeout: float) -> None:
        """Close the driver, if there is one, within about ``timeout`` seconds. An error of the
        driver is logged."""
        driver = self.driver  # another thread may clear the attribute
        try:
            if driver is not None:
                driver.close(timeout)
        except Exception as error:  # noqa: BLE001  # it must not stop the closing
            with suppress(Exception):  # a log handler may raise
                _log.exception(
                    "closing the driver raised an error", extra={"error.type": error_type(error)}
                )
