"""A producer that is started and stopped, for asyncio frameworks with start and stop hooks.

A cancel scope must be left by the task that entered it. Hooks and fixtures run in tasks of their
own. So the block of :func:`~anyio_sendproducer.open_send_producer` runs in one task that the
service owns, and the hooks only wait for that task.
"""

# The service and the producer share private state by design.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
from anyio import CancelScope

from ._exceptions import ProducerClosed, ProducerMisused, SendProducerError, add_note, copy_of
from ._loops import Sentinel, current_library, current_loop
from ._observing import check_observers
from ._opening import open_send_producer
from ._producer import SendProducer
from ._settings import ProducerSettings, SettingsFields, settings_for
from .drivers import DriverFactory, DriverName
from .telemetry import Observer
from .telemetry._logging import describe

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ProducerService"]

_log = logging.getLogger("anyio_sendproducer")

_ON_TRIO: Final = (
    "ProducerService needs asyncio. On Trio, start the producer in a nursery, with `producer = "
    "await start_send_producer(nursery, settings)`, and close it with `await producer.aclose()`"
)
_LOST: Final = (
    "the event loop ended, or cancelled all its tasks, before ProducerService.stop() returned; "
    "the producer was closed within cancel_timeout"
)


class _Run(Sentinel):
    """One producer of a service, from its start to the end of its task."""

    task: asyncio.Task[None]
    release: Callable[[], None]

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        #: Cancel this to stop starting, or to close a producer that start() has not returned.
        self.scope = CancelScope()
        #: Set when the producer has started, and when the task ends.
        self.started = anyio.Event()
        self.stopping = anyio.Event()
        self.ended = anyio.Event()
        self.producer: SendProducer | None = None
        self.error: Exception | None = None
        #: How many calls of start() wait for it, and whether one of them returned the producer.
        self.starters = 0
        self.is_claimed = False
        #: The task was cancelled after the producer had started, and before stop() was called.
        self.is_lost = False

    def hurry(self) -> None:
        """Close the producer within ``cancel_timeout``, or end its start."""
        if self.producer is None:
            self.scope.cancel()
        else:
            engine = self.producer._engine
            engine.request_close(engine.settings.cancel_timeout)


class ProducerService:
    """A producer for frameworks with start and stop hooks. It needs asyncio.

    ::

        service = ProducerService(bootstrap_servers="localhost:9092")

        async def on_startup(app):
            app["producer"] = await service.start()

        async def on_cleanup(app):
            await service.stop()

    Any task of one event loop may start and stop a service, for example the task of a hook, of a
    fixture, or of a notebook's cell. A block ``async with service as producer:`` starts and stops
    the service. Different tasks may enter and leave this block. If one task can run the whole
    block, use :func:`open_send_producer`, which always closes the producer. On Trio, use
    :func:`start_send_producer`.

    Args:
        settings: see :func:`open_send_producer`. If you pass neither ``settings`` nor
            ``fields``, :meth:`start` reads the settings from the environment.
        driver: see :func:`open_send_producer`.
        observers: see :func:`open_send_producer`.
        fields: see :func:`open_send_producer`.

    Raises:
        SettingsError: a setting is wrong.
        TypeError: ``settings`` or ``observers`` has a wrong type.
    """

    def __init__(
        self,
        settings: ProducerSettings | None = None,
        /,
        *,
        driver: DriverName | DriverFactory | None = None,
        observers: Iterable[Observer] = (),
        **fields: Unpack[SettingsFields],
    ) -> None:
        # start() reads the environment: a module may make its service before that is set up.
        if fields or settings is not None:
            settings = settings_for(settings, fields)
        self._open = partial(
            open_send_producer, settings, driver=driver, observers=check_observers(observers)
        )
        self._run: _Run | None = None

    def __repr__(self) -> str:
        run = self._run
        if run is None:
            state = "stopped"
        elif run.is_lost or run.loop.is_closed():
            state = "lost"
        elif run.stopping.is_set():
            state = "stopping"
        else:
            state = "starting" if run.producer is None else "running"
        return f"<ProducerService {state}>"

    @property
    def producer(self) -> SendProducer:
        """The producer, while the service runs.

        Raises:
            ProducerClosed: the service has not started, is stopping, or was stopped.
        """
        run = self._run
        if run is None or run.producer is None or run.stopping.is_set():
            raise ProducerClosed("the service does not run: call `await service.start()` first")
        return run.producer

    async def start(self) -> SendProducer:
        """Start the producer, unless it is running.

        Calls from several tasks share one start and return the same producer. If a :meth:`stop` is
        in progress, the call first waits until the service has stopped. A service that was stopped
        starts a new producer.

        Returns:
            The producer. It is connected, unless ``wait_for_cluster`` is False. Until :meth:`stop`,
            the service keeps this producer, even if the producer breaks.

        Raises:
            SettingsError, DiscoveryError, ProducerStartError, ProducerFenced: as for
                :func:`open_send_producer`. The next call tries again.
            Exception: an exception of ``enrich``.
            ProducerClosed: :meth:`stop` was called while the service started.
            ProducerMisused: the caller runs on Trio or on another event loop, or the event loop of
                the last start ended before a call of :meth:`stop`.

        Cancellation ends the start and releases all resources, unless another call waits for the
        start.
        """
        run = self._current()
        while run is not None and run.stopping.is_set():
            await run.ended.wait()
            run = self._current()
        if run is None:
            run = self._new_run()
        run.starters += 1
        try:
            await run.started.wait()
        except BaseException:
            if run.starters == 1 and not run.is_claimed:
                run.stopping.set()
                run.scope.cancel()
                with CancelScope(shield=True):
                    await run.ended.wait()
            raise
        finally:
            run.starters -= 1
        if run.producer is None and run.error is not None:
            raise _again(run.error)
        if run.producer is None or run.stopping.is_set():
            raise ProducerClosed("the service was stopped while it started")
        run.is_claimed = True
        return run.producer

    async def stop(self) -> None:
        """Stop the producer as the end of an ``async with`` block does.

        The producer stops accepting records, delivers the accepted records and closes, within
        ``close_timeout``. If several tasks call this method, all calls wait until the producer is
        closed. If the service is not running, the call does nothing. If the service is starting,
        the start ends, and :meth:`start` raises :exc:`ProducerClosed`. The call also closes a
        broken producer.

        Raises:
            UndeliveredRecords: deliveries failed and nobody awaited them.
            ProducerMisused: as for :meth:`start`.

        Cancellation shortens the closing to ``cancel_timeout``. The producer is closed when the
        call raises the cancellation. Failures that nobody awaited are then logged. If an asyncio
        task is cancelled a second time, the call does not wait for the closing, which continues in
        the service's own task.
        """
        await self._stop(quickly=False)

    async def __aenter__(self) -> SendProducer:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        try:
            await self._stop(quickly=error is not None)
        except SendProducerError as failure:
            if error is None:
                raise
            add_note(error, str(failure))

    async def _stop(self, *, quickly: bool) -> None:
        run = self._current()
        if run is None:
            await anyio.lowlevel.checkpoint()
            return
        run.stopping.set()
        if quickly or run.producer is None:
            run.hurry()
        try:
            await run.ended.wait()
        except BaseException:
            run.hurry()
            with CancelScope(shield=True):
                await run.ended.wait()
            if run.error is not None:
                with suppress(Exception):  # a log handler may raise
                    _log.error("ProducerService.stop() was cancelled: %s", describe(run.error))
            raise
        if run.producer is not None and run.error is not None:
            raise _again(run.error)

    def _current(self) -> _Run | None:
        """Return the current run.

        Raises:
            ProducerMisused: Trio or another event loop runs the caller, or the event loop of the
                service has ended.
        """
        if current_library() == "trio":
            raise ProducerMisused(_ON_TRIO)
        run = self._run
        if run is not None and (run.is_lost or run.loop.is_closed()):
            raise ProducerMisused(
                "the event loop that started this ProducerService ended, or cancelled all its "
                "tasks, before stop() was called: call stop() in time, and make a new "
                "ProducerService for another loop"
            )
        if run is not None and run.loop is not asyncio.get_running_loop():
            raise ProducerMisused(
                "this ProducerService runs on another event loop: start and stop it on one loop, "
                "and make one ProducerService for each loop"
            )
        return run

    def _new_run(self) -> _Run:
        loop = asyncio.get_running_loop()
        run = self._run = _Run(loop)
        # asyncio keeps only weak references to tasks. A closed loop releases this one.
        run.release = current_loop().keep(run)
        run.task = loop.create_task(self._live(run), name="anyio_sendproducer.ProducerService")
        run.task.add_done_callback(_retrieve)
        return run

    async def _live(self, run: _Run) -> None:
        """Run the producer's block, in the task of the service."""
        try:
            with run.scope:
                async with self._open() as producer:
                    run.producer = producer
                    run.started.set()
                    await run.stopping.wait()
        except Exception as error:  # noqa: BLE001  # start() or stop() raises it
            run.error = error
        except BaseException as error:
            run.is_lost = run.producer is not None and not run.stopping.is_set()
            notes: list[str] = error.__dict__.get("__notes__", [])
            if run.is_lost or notes:
                with suppress(Exception):  # a log handler may raise
                    _log.error("%s", ": ".join((_LOST, *notes)))
            raise
        finally:
            run.release()
            if not run.is_lost:
                self._run = None
            run.started.set()
            run.ended.set()


def _again(error: Exception) -> Exception:
    """Copy an error of this package, so that several callers can raise it. Return others as they
    are."""
    return copy_of(error) if isinstance(error, SendProducerError) else error


def _retrieve(task: asyncio.Task[None]) -> None:
    # The event loop has raised a KeyboardInterrupt or SystemExit by itself.
    if not task.cancelled():
        task.exception()
