"""The two functions that open a producer, and put its parts together."""

# The producer's class and the functions that open one share private state by design.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from ._bridge import Bridge
from ._clock import ClockFactory, LoopClock
from ._cluster_probe import ClusterProbe
from ._engine import Engine
from ._exceptions import ProducerClosed, UndeliveredRecords, add_note
from ._ledger import Ledger
from ._loops import current_loop
from ._observing import Observation, ObservedLedger, check_observers
from ._producer import SendProducer
from ._settings import ProducerSettings, SettingsFields, settings_for
from ._settings_resolver import SettingsResolver
from ._task_groups import plain_task_group
from .drivers import DriverFactory, DriverName, make_driver
from .telemetry import Observer
from .telemetry._logging import describe

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["open_send_producer", "start_send_producer"]

_LEFT_IN_ANOTHER_TASK: Final = (
    "the block of open_send_producer was left by a different task than the one that entered it; "
    "the producer was closed. If hooks or fixtures start and stop the producer, use "
    "ProducerService on asyncio, or start_send_producer(task_group, settings) with a task group "
    "that outlives the hooks"
)
_HOW_TO_OPEN: Final = "use `async with open_send_producer(...) as producer:`"


class _Starter(Protocol):
    """The part of AnyIO's TaskGroup and Trio's Nursery that this module uses."""

    async def start(self, func: Any, /, *args: Any, name: Any = None) -> Any: ...


async def start_send_producer(
    task_group: _Starter,
    settings: ProducerSettings | None = None,
    /,
    *,
    driver: DriverName | DriverFactory | None = None,
    observers: Iterable[Observer] = (),
    **fields: Unpack[SettingsFields],
) -> SendProducer:
    """Start a producer in the caller's own task group.

    The task group does not end before the producer is closed. To close the producer, call
    :meth:`SendProducer.aclose`, or cancel the task group. A cancellation closes the producer within
    ``cancel_timeout``.

    Args:
        task_group: AnyIO's TaskGroup, or Trio's Nursery.
        settings: as for :func:`open_send_producer`.
        driver: as for :func:`open_send_producer`.
        observers: as for :func:`open_send_producer`.
        fields: as for :func:`open_send_producer`.

    Returns:
        The producer. It is connected, unless ``wait_for_cluster`` is False.

    Raises:
        SettingsError: a setting is wrong.
        DiscoveryError: the ``service_name`` was not found.
        ProducerStartError: no broker answered within ``start_timeout``, or the client could not
            start for another reason.
        ProducerFenced: another producer with this ``transactional_id`` started at the same time.
        Exception: an exception of ``enrich``.
        TypeError: ``task_group``, ``settings`` or ``observers`` has a wrong type.

    Cancellation releases all resources.
    """
    _check_task_group(task_group)
    return await _start(task_group, settings_for(settings, fields), driver, observers, LoopClock)


def open_send_producer(
    settings: ProducerSettings | None = None,
    /,
    *,
    driver: DriverName | DriverFactory | None = None,
    observers: Iterable[Observer] = (),
    **fields: Unpack[SettingsFields],
) -> AbstractAsyncContextManager[SendProducer]:
    """Open a producer for the length of an ``async with`` block.

    ::

        async with open_send_producer(bootstrap_servers="localhost:9092") as producer:
            await producer.send(ProducerRecord("orders", b"two tins"))

    When the block has ended, the producer's tasks and threads have ended, and its sockets are
    closed. A clean exit first delivers accepted records within ``close_timeout``. After an
    exception or a cancellation, the exit takes at most ``cancel_timeout``. If the client library
    hangs, the exit takes about 5 s more. The hanging thread then keeps running, and the producer
    logs an error.

    Args:
        settings: see :class:`ProducerSettings`. If you pass neither ``settings`` nor
            ``fields``, :meth:`ProducerSettings.from_env` reads the settings from the environment:
            ``KAFKA_BOOTSTRAP_SERVERS`` and further variables.
        driver: ``"kafka-python"`` (the default), ``"confluent"`` for the librdkafka driver (extra
            ``confluent``), or a callable that makes your own driver.
        observers: objects that get the events of records and clients, in batches; see
            :mod:`anyio_sendproducer.telemetry`.
        fields: fields of :class:`ProducerSettings`, which override the fields of ``settings``.
            ``bootstrap_servers`` also overrides ``service_name``, and vice versa.

    Raises:
        SettingsError: a setting is wrong.
        DiscoveryError: the ``service_name`` was not found.
        ProducerStartError: no broker answered within ``start_timeout``, or the client could not
            start for another reason.
        ProducerFenced: another producer with this ``transactional_id`` started at the same time.
        Exception: an exception of ``enrich``.
        UndeliveredRecords: the block ended without an exception, but deliveries failed and nobody
            awaited them. If the block raises an exception, this exception is raised instead,
            outside an exception group, with a note about the number of such deliveries.
        ProducerMisused: different tasks entered and left the block.
        ProducerClosed: ``async with`` was used with this result before.
        TypeError: ``settings`` or ``observers`` has a wrong type.

    Cancellation at any time releases all resources.
    """
    return _Opening(_open(settings_for(settings, fields), driver, observers, LoopClock))


class _Opening(AbstractAsyncContextManager[SendProducer]):
    """The context manager of :func:`open_send_producer`. Its errors explain the correct use."""

    def __init__(self, context: AbstractAsyncContextManager[SendProducer]) -> None:
        self._context = context
        self._was_entered = False

    async def __aenter__(self) -> SendProducer:
        if self._was_entered:
            raise ProducerClosed(
                "this result of open_send_producer() was used before: call the function again"
            )
        self._was_entered = True
        return await self._context.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool | None:
        return await self._context.__aexit__(kind, error, traceback)

    def __await__(self) -> NoReturn:
        raise TypeError(f"open_send_producer() is not awaited: {_HOW_TO_OPEN}")

    def __enter__(self, *_: object) -> NoReturn:
        raise TypeError(f"`with open_send_producer(...)` lacks `async`: {_HOW_TO_OPEN}")

    # `with` looks this method up before it calls __enter__.
    __exit__ = __enter__

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"open_send_producer() returns a context manager, which has no {name!r}: "
            f"{_HOW_TO_OPEN}",
            name=name,
            obj=self,
        )


def _check_task_group(task_group: object) -> None:
    if not callable(getattr(task_group, "start", None)):
        kind = type(task_group)
        raise TypeError(
            "task_group must be AnyIO's TaskGroup or Trio's Nursery, not "
            f"{kind.__module__}.{kind.__qualname__}"
        )


async def _start(
    task_group: _Starter,
    settings: ProducerSettings,
    driver: DriverName | DriverFactory | None,
    observers: Iterable[Observer],
    make_clock: ClockFactory,
) -> SendProducer:
    checked = check_observers(observers)
    resolver = SettingsResolver(settings)
    # The driver of the fake producer has this attribute: it never waits, and needs no thread. What
    # opens in the background waits on the driver thread.
    threadless = bool(getattr(driver, "threadless", False))
    if settings.wait_for_cluster or threadless:
        await resolver.find()
    engine = _make_engine(resolver, driver, checked, make_clock, threadless=threadless)
    producer = SendProducer._create(engine, ClusterProbe(resolver, driver, engine.bridge))
    await task_group.start(producer._engine.run)
    return producer


def _make_engine(
    resolver: SettingsResolver,
    driver: DriverName | DriverFactory | None,
    observers: Sequence[Observer],
    make_clock: ClockFactory,
    *,
    threadless: bool,
) -> Engine:
    settings = resolver.settings
    loop = current_loop()
    clock = make_clock(loop)
    bridge = Bridge(
        loop,
        lambda: make_driver(driver, resolver.for_client()),
        monotonic=clock.monotonic,
        threadless=threadless,
    )
    bounds: dict[str, Any] = {
        "max_in_flight": settings.max_in_flight,
        "max_buffered_bytes": settings.max_buffered_bytes,
        "delivery_timeout": settings.delivery_timeout,
    }
    if not observers:
        observation, ledger = None, Ledger(**bounds)
    else:
        observation = Observation(
            observers, client_id=settings.client_id, clock=clock, wake_pump=bridge.wake_pump
        )
        ledger = ObservedLedger(observation, **bounds)
    return Engine(
        resolver=resolver,
        loop=loop,
        clock=clock,
        ledger=ledger,
        bridge=bridge,
        observation=observation,
    )


@asynccontextmanager
async def _open(
    settings: ProducerSettings,
    driver: DriverName | DriverFactory | None,
    observers: Iterable[Observer],
    make_clock: ClockFactory,
) -> AsyncGenerator[SendProducer]:
    # The producer's tasks raise only cancellation.
    async with plain_task_group(_LEFT_IN_ANOTHER_TASK) as tasks:
        producer = await _start(tasks, settings, driver, observers, make_clock)
        try:
            yield producer
        except BaseException as error:
            await _close_quickly(producer._engine)
            _note_undelivered(error, producer)
            raise
        if not producer._engine.affinity.is_here:
            await _close_quickly(producer._engine)
            return
        try:
            await producer.aclose()
        except BaseException as error:
            # If aclose() was cancelled, nothing has reported the failures yet. If it raised
            # UndeliveredRecords, none are left to note.
            _note_undelivered(error, producer)
            raise


async def _close_quickly(engine: Engine) -> None:
    if engine.affinity.is_here:
        await engine.close_quickly()
    else:  # another event loop leaves the block
        request = partial(engine.request_close, engine.settings.cancel_timeout)
        engine.loop.call_soon_threadsafe(request)


def _note_undelivered(error: BaseException, producer: SendProducer) -> None:
    engine = producer._engine
    if not engine.affinity.is_here:  # another event loop leaves the block
        return
    with engine.step:
        errors, count = engine.ledger.take_undelivered()
    if count:
        # A log of ProducerService has the note, too.
        add_note(error, describe(UndeliveredRecords(errors, count)))
