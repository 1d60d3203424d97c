"""The producer, and the two functions that open one.

Each method runs on the caller's task. Everything behind it is the :class:`~._engine.Engine`'s.
"""

# The producer's class and the functions that open one share private state by design.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, ClassVar, Final, Protocol, TypeVar, cast, overload

import anyio
import anyio.lowlevel
from anyio.abc import ObjectReceiveStream

from ._admission import RefusingAdmission, admission_for
from ._bridge import Bridge
from ._clock import ClockFactory, LoopClock
from ._delivery import Statistics
from ._engine import Engine
from ._exceptions import SendProducerError, SettingsError, UndeliveredRecords, add_note
from ._flow import FlowSummary, Offsets, run_flow, run_sink, run_transactional_flow
from ._ledger import Ledger
from ._loops import current_loop
from ._no_public_constructor import NoPublicConstructor
from ._observing import Observation, ObservedLedger, check_observers
from ._records import (
    ConsumerGroupMetadata,
    Envelope,
    Message,
    MultiMessage,
    MultiResult,
    PassThroughMessage,
    PassThroughResult,
    ProducerRecord,
    Result,
    Results,
)
from ._sending import Sender
from ._settings import ProducerSettings
from ._settings_resolver import SettingsResolver
from ._shown import listed
from ._task_groups import plain_task_group
from ._transaction import Transaction, Transactions
from ._validation import check_record
from .drivers import DriverFactory, make_driver
from .telemetry import Observer

__all__ = ["SendProducer", "open_send_producer", "start_send_producer"]

K = TypeVar("K")
V = TypeVar("V")
P = TypeVar("P")

_LEFT_IN_ANOTHER_TASK: Final = (
    "another task left the block of open_send_producer than the one that entered it; the producer "
    "was closed. If hooks or fixtures start and stop the producer, use ProducerService on asyncio, "
    "or start_send_producer(task_group, settings) with a task group that outlives both"
)


class _Starter(Protocol):
    """AnyIO's TaskGroup and Trio's Nursery, as far as they are needed here."""

    async def start(self, func: Any, /, *args: Any, name: Any = None) -> Any: ...


class SendProducer(Sender, NoPublicConstructor):
    """A Kafka producer that sends records one by one and says what became of each.

    Made by :func:`open_send_producer` and :func:`start_send_producer`, never by hand. All methods
    belong to the event loop that it was opened on, and any number of tasks there may use it.
    """

    _how_to_make: ClassVar[str] = (
        "SendProducer is not made by hand: use `async with open_send_producer(settings) as "
        "producer:`, or start_send_producer(task_group, settings)"
    )

    _transactions: Transactions

    @classmethod
    def _create(cls, engine: Engine) -> SendProducer:
        self = cls.__new__(cls)
        admission = admission_for(engine)
        transactional = engine.settings.transactional_id is not None
        self._set_up(engine, RefusingAdmission(engine) if transactional else admission)
        self._transactions = Transactions(engine, admission)
        return self

    def __repr__(self) -> str:
        settings = self._engine.resolver.settings
        client = listed(settings.addresses) or type(settings.producer).__name__
        return f"<SendProducer {self._ledger.state.value} {client}>"

    async def flush(self) -> None:
        """Send what the client holds back (``linger.ms``), and wait until everything that was
        accepted before this call has its outcome.

        It says nothing about what the outcomes are: they go to whoever awaits them. Whatever is
        accepted meanwhile is not waited for.

        Raises:
            ProducerClosed, ProducerBroken, ProducerMisused: as :meth:`send`.

        Cancellation stops the waiting and nothing else.
        """
        self._engine.check_usable()
        await self._engine.wait_until_settled()

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """A transaction, for the length of an ``async with`` block; its records are committed as a
        whole, or never seen.

        It is committed when the block ends well and everything that was sent in it is delivered.
        Where the block raises, or is cancelled, it is aborted, shielded and within
        ``cancel_timeout``; what the block raised leaves as it is. There is one at a time: others
        wait for their turn, in the order of asking. Records are sent by the
        :class:`Transaction` that the block gets, and by nothing else as long as the producer has a
        ``transactional_id``.

        Raises:
            TransactionAborted: a record of it was not delivered, or the brokers would not commit
                it, or its client was given up. It was aborted; where a record was the reason,
                ``__cause__`` is its error.
            TransactionOutcomeUnknown: the answer to the commit was lost, or did not come within
                ``delivery_timeout``.
            ProducerFenced: another producer has this ``transactional_id`` now; this one is broken.
            TransactionError: the settings have no ``transactional_id``, or there was no client
                that works within ``delivery_timeout``, or the task is in a transaction's block
                already.
            ProducerClosed, ProducerBroken, ProducerMisused: as :meth:`send`.

        Cancellation, before the commit is asked for, aborts. Afterwards it can't be taken back: the
        answer is waited for, for ``cancel_timeout`` at most, and :attr:`Transaction.state` tells
        what became of it.
        """
        return self._transactions.begin()

    @overload
    def flow(
        self,
        source: AsyncIterable[Message[K, V, P]],
        *,
        max_in_flight: int | None = None,
        offsets: Offsets | None = None,
        group_metadata: str | ConsumerGroupMetadata | Any = None,
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Result[K, V, P]]]: ...
    @overload
    def flow(
        self,
        source: AsyncIterable[MultiMessage[K, V, P]],
        *,
        max_in_flight: int | None = None,
        offsets: Offsets | None = None,
        group_metadata: str | ConsumerGroupMetadata | Any = None,
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[MultiResult[K, V, P]]]: ...
    @overload
    def flow(
        self,
        source: AsyncIterable[PassThroughMessage[P]],
        *,
        max_in_flight: int | None = None,
        offsets: Offsets | None = None,
        group_metadata: str | ConsumerGroupMetadata | Any = None,
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[PassThroughResult[P]]]: ...
    @overload
    def flow(
        self,
        source: AsyncIterable[Envelope[K, V, P]],
        *,
        max_in_flight: int | None = None,
        offsets: Offsets | None = None,
        group_metadata: str | ConsumerGroupMetadata | Any = None,
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Results[K, V, P]]]: ...
    def flow(
        self,
        source: AsyncIterable[Any],
        *,
        max_in_flight: int | None = None,
        offsets: Offsets | None = None,
        group_metadata: str | ConsumerGroupMetadata | Any = None,
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Any]]:
        """Send a stream of envelopes, and receive their results in its order.

        ::

            async def envelopes():
                for number in range(3):
                    yield Message(ProducerRecord("orders", b"%d" % number), pass_through=number)

            settings = ProducerSettings(bootstrap_servers="localhost:9092")
            async with open_send_producer(settings) as producer:
                async with producer.flow(envelopes()) as results:
                    async for result in results:
                        print(result.pass_through, result.offset)

        Records are sent in the source's order, and as many are under way as there is room for:
        who does not receive holds up the source, and so does a full producer. Each call of
        ``receive`` gives the next envelope's result or raises its error, and the one after it goes
        on with the next envelope. What the source raises is raised when all before it was received.

        Where the producer has a ``transactional_id``, it begins a transaction with the first
        envelope that comes and commits it ``eos_commit_interval`` later, or as soon as
        ``max_in_flight`` envelopes wait for it. A result is there when its transaction is
        committed. Where one is not, its error is raised in place of its results, and nothing
        follows.

        Args:
            source: an AnyIO receive stream, a Trio channel, an async generator: anything that can
                be iterated by ``async for`` and gives :class:`Message`, :class:`MultiMessage` and
                :class:`PassThroughMessage`.
            max_in_flight: how many envelopes may have been taken from the source, and their results
                not received. None: the settings' ``max_in_flight``.
            offsets: with a ``transactional_id``, tells what is read when an envelope is done:
                offsets by topic and partition, which are committed with the records; see
                :meth:`Transaction.send_offsets`.
            group_metadata: the consumer group whose offsets these are.

        Raises:
            SettingsError: an argument is wrong.

        Leaving the block before the end takes nothing more from the source. Envelopes whose results
        were not received are then as if their ``send`` had been cancelled: records that the client
        does not have are withdrawn. Closing the stream does the same.
        """
        settings = self._engine.settings
        limit = settings.max_in_flight
        if settings.transactional_id is None:
            if offsets is not None or group_metadata is not None:
                raise SettingsError("flow: offsets and group_metadata need a transactional_id")
            return run_flow(self, self._loop, source, max_in_flight, limit)
        return run_transactional_flow(
            self.transaction,
            self._loop,
            source,
            limit=limit,
            max_in_flight=max_in_flight,
            interval=settings.eos_commit_interval,
            offsets=offsets,
            group_metadata=group_metadata,
        )

    async def sink(
        self,
        source: AsyncIterable[Envelope[Any, Any, Any]],
        *,
        max_in_flight: int | None = None,
        offsets: Offsets | None = None,
        group_metadata: str | ConsumerGroupMetadata | Any = None,
    ) -> FlowSummary:
        """Send a stream of envelopes to its end, as :meth:`flow` does, and say what came of it.

        Args:
            source: as for :meth:`flow`.
            max_in_flight: as for :meth:`flow`.
            offsets: as for :meth:`flow`.
            group_metadata: as for :meth:`flow`.

        Raises:
            DeliveryError, MultiDeliveryError: of the first envelope that was not delivered; what
                follows it is not waited for.
            TransactionError: a transaction was not committed.
            Exception: what the source raised.

        Cancellation: as when the block of :meth:`flow` is left.
        """
        return await run_sink(
            self.flow(
                source,
                max_in_flight=max_in_flight,
                offsets=offsets,
                group_metadata=group_metadata,
            )
        )

    async def partitions_for(self, topic: str) -> frozenset[int]:
        """The numbers of a topic's partitions.

        Args:
            topic: the topic's name. Where the cluster creates topics on first use, asking is such
                a use.

        Raises:
            SendProducerError: the cluster does not know the topic (see ``unknown_topic_timeout``),
                this client may not use it, or there was no answer within ``delivery_timeout``.
            RecordRejected: this can't be the name of a topic.
            ProducerClosed, ProducerBroken, ProducerMisused: as :meth:`send`.

        Cancellation stops the waiting and nothing else.
        """
        self._engine.check_usable()
        check_record(ProducerRecord(topic, b""), set())
        await anyio.lowlevel.checkpoint_if_cancelled()
        delivery_timeout = self._engine.settings.delivery_timeout
        with anyio.move_on_after(delivery_timeout):
            while True:
                known = self._engine.metadata.changes
                found = await self._engine.bridge.call(lambda driver: driver.partitions_for(topic))
                if found is not None:
                    return found
                self._engine.check_usable()
                await self._engine.wait_for_metadata(known)
        raise SendProducerError(
            f"no broker told the partitions of topic {topic!r} within "
            f"{delivery_timeout:g} s (delivery_timeout)"
        )

    def statistics(self) -> Statistics:
        """Take a snapshot of the producer's figures. Works on a closed producer, too."""
        return self._engine.statistics()

    async def aclose(self) -> None:
        """Close the producer: take no more records, deliver what was accepted, end the client.

        Takes ``close_timeout`` at most. Whatever has no outcome by then gets it: a DeliveryError
        whose ``persistence`` says whether the record was handed to the client. A second call does
        nothing. :func:`open_send_producer` calls this at the end of its block.

        Raises:
            UndeliveredRecords: deliveries failed and nobody awaited them.
            ProducerMisused: as :meth:`send`.

        Cancellation hurries the closing, which then takes ``cancel_timeout`` at most; the producer
        is closed when this raises.
        """
        engine = self._engine
        engine.affinity.check()
        if engine.closing.done.is_set():
            await anyio.lowlevel.checkpoint()
        else:
            await engine.close()
        with engine.step:
            errors, count = engine.ledger.take_undelivered()
        if count:
            raise UndeliveredRecords(errors, count)


async def start_send_producer(
    task_group: _Starter,
    settings: ProducerSettings,
    *,
    driver: str | DriverFactory | None = None,
    observers: Iterable[Observer] = (),
) -> SendProducer:
    """Start a producer in the caller's own task group.

    The task group does not end before the producer is closed: call :meth:`SendProducer.aclose`,
    or cancel the task group, which closes it within ``cancel_timeout``.

    Args:
        task_group: AnyIO's TaskGroup, or Trio's Nursery.
        settings: see :class:`ProducerSettings`.
        driver: ``"kafka-python"``, which None stands for; ``"confluent"``, on librdkafka (extra
            ``confluent``); or a callable that makes a driver of yours.
        observers: told what becomes of records; see :mod:`anyio_sendproducer.telemetry`.

    Returns:
        The producer, connected.

    Raises:
        SettingsError: a setting is wrong.
        DiscoveryError: the ``service_name`` was not found.
        ProducerStartError: no broker answered within ``start_timeout``.

    Cancellation leaves nothing behind.
    """
    return await _start(task_group, settings, driver, observers, LoopClock)


def open_send_producer(
    settings: ProducerSettings,
    *,
    driver: str | DriverFactory | None = None,
    observers: Iterable[Observer] = (),
) -> AbstractAsyncContextManager[SendProducer]:
    """Open a producer for the length of an ``async with`` block.

    When the block ends, so have the producer's tasks, threads and sockets, whatever ended it. A
    clean end first delivers what was accepted, within ``close_timeout``; a block that failed or
    was cancelled leaves within ``cancel_timeout``.

    Args:
        settings: see :class:`ProducerSettings`.
        driver: ``"kafka-python"``, which None stands for; ``"confluent"``, on librdkafka (extra
            ``confluent``); or a callable that makes a driver of yours.
        observers: told what becomes of records; see :mod:`anyio_sendproducer.telemetry`.

    Raises:
        SettingsError: a setting is wrong.
        DiscoveryError: the ``service_name`` was not found.
        ProducerStartError: no broker answered within ``start_timeout``.
        UndeliveredRecords: the block ended cleanly, and deliveries failed that nobody awaited.
            Where the block failed, its own exception comes out, not in a group, with a note that
            tells how many there were.

    Cancellation leaves nothing behind, at whichever moment it comes.
    """
    return _open(settings, driver, observers, LoopClock)


async def _start(
    task_group: _Starter,
    settings: ProducerSettings,
    driver: str | DriverFactory | None,
    observers: Iterable[Observer],
    make_clock: ClockFactory,
) -> SendProducer:
    if not isinstance(cast("object", settings), ProducerSettings):
        raise TypeError(f"settings must be ProducerSettings, not {type(settings).__name__}")
    if not callable(getattr(task_group, "start", None)):
        kind = type(task_group)
        raise TypeError(
            "task_group must be AnyIO's TaskGroup or Trio's Nursery, not "
            f"{kind.__module__}.{kind.__qualname__}"
        )
    checked = check_observers(observers)
    resolver = SettingsResolver(settings)
    await resolver.find()
    producer = SendProducer._create(_make_engine(resolver, driver, checked, make_clock))
    await task_group.start(producer._engine.run)
    return producer


def _make_engine(
    resolver: SettingsResolver,
    driver: str | DriverFactory | None,
    observers: Sequence[Observer],
    make_clock: ClockFactory,
) -> Engine:
    settings = resolver.settings
    loop = current_loop()
    clock = make_clock(loop)
    bridge = Bridge(
        loop,
        lambda: make_driver(driver, resolver.for_client()),
        monotonic=clock.monotonic,
        # The fake producer's driver has this attribute: it never waits, and needs no thread.
        inline=getattr(driver, "inline", False),
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
    driver: str | DriverFactory | None,
    observers: Iterable[Observer],
    make_clock: ClockFactory,
) -> AsyncGenerator[SendProducer]:
    # The producer's tasks themselves raise nothing but cancellation.
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
            _note_undelivered(error, producer)  # a cancellation; UndeliveredRecords has them
            raise


async def _close_quickly(engine: Engine) -> None:
    if engine.affinity.is_here:
        await engine.close_quickly()
    else:  # another event loop leaves the block
        request = partial(engine.request_close, engine.settings.cancel_timeout)
        engine.loop.call_soon_threadsafe(request)


def _note_undelivered(error: BaseException, producer: SendProducer) -> None:
    errors, count = producer._ledger.take_undelivered()
    if count:
        add_note(error, str(UndeliveredRecords(errors, count)))
