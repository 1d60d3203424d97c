"""The producer: what callers see, and the two tasks behind it.

The *guard* opens the driver, waits until it is told to close or is cancelled, and sees to it that
the end is reached in bounded time, whatever happens meanwhile. The *pump* moves the ledger: it
hands over what is queued, settles what comes back, and wakes who waits. It is shielded, since
records still have to be settled while the scope around it is being cancelled; the guard ends it.
"""

# What the classes and functions here know of one another is nobody else's affair.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextvars
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final, NoReturn, Protocol, TypeVar, cast, overload

import anyio
import anyio.abc
import anyio.lowlevel
from anyio import CancelScope, WouldBlock
from anyio.abc import ObjectReceiveStream

from ._bridge import Bridge
from ._clock import Clock, ClockFactory, LoopClock
from ._delivery import DeliveryState, Entry, Group, ProducerState, Statistics
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
    in_portions,
)
from ._exceptions import (
    ProducerFenced,
    ProducerStartError,
    RecordRejected,
    SendProducerError,
    SettingsError,
    TransactionError,
    UndeliveredRecords,
)
from ._finding import Finder
from ._flow import FlowSummary, Offsets, run_flow, run_sink, run_transactional_flow
from ._ledger import Ledger
from ._loops import Loop, current_loop
from ._observing import Observation, ObservedLedger, ObservedSender, check_observers
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
from ._scopes import plain_task_group
from ._sending import Sender
from ._settings import ProducerSettings
from ._shown import listed
from ._transaction import Transaction, run_transaction
from ._validation import check_is_record, check_record
from .drivers import DriverFactory, Submitted, make_driver
from .telemetry import Observer
from .telemetry._logging import error_type

__all__ = ["SendProducer", "open_send_producer", "start_send_producer"]

K = TypeVar("K")
V = TypeVar("V")
P = TypeVar("P")

_log = logging.getLogger("anyio_sendproducer")

#: Seconds between two requests for topics without metadata, if the driver reports nothing sooner.
RETRY_SECONDS: Final = 0.25

#: How much longer than start_timeout a producer_factory may take until it is left behind.
_PATIENCE_SECONDS = 5.0

#: Seconds without any reachable broker before the service is looked up again, and between look-ups.
WATCH_SECONDS: Final = 5.0


class _Starter(Protocol):
    """AnyIO's TaskGroup and Trio's Nursery, as far as they are needed here."""

    async def start(self, func: Any, /, *args: Any, name: Any = None) -> Any: ...


class SendProducer(Sender):
    """A Kafka producer that sends records one by one and says what became of each.

    Made by :func:`open_send_producer` and :func:`start_send_producer`, never by hand. All methods
    belong to the event loop that it was opened on, and any number of tasks there may use it.
    """

    _settings: ProducerSettings
    _finder: Finder
    _bridge: Bridge
    _context: contextvars.Context  # of the task that opened it
    _clock: Clock
    _now: Callable[[], float]
    _key_serialized: bool
    _value_serialized: bool
    _topics: set[str]
    _rung: bool  # the pump was told to look at the queue
    _busy: bool  # the driver is going through a batch
    _settling: bool  # others have their turn before all that came together is settled
    _reopening: bool  # a client is being opened in place of one that broke
    _retrying: bool  # topics without metadata are asked for again before long
    _stopping: bool  # the driver takes no more
    _generations: int
    _given_up_at: int  # how many records were accepted when the last client was given up
    _metadata_waiters: set[Any]
    _close_requested: anyio.Event
    _close_deadline: float
    _drain_scope: CancelScope | None
    _done: anyio.Event
    _tasks: anyio.abc.TaskGroup  # the pump's
    _turn: anyio.Lock  # whose transaction it is
    _transaction: Transaction | None
    _observation: Observation | None  # None where nobody observes

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError(
            "SendProducer is not made by hand: use `async with open_send_producer(settings) as "
            "producer:`, or start_send_producer(task_group, settings)"
        )

    @classmethod
    def _create(
        cls,
        finder: Finder,
        driver: str | DriverFactory | None,
        observers: Sequence[Observer],
        make_clock: ClockFactory,
    ) -> SendProducer:
        settings = finder.settings
        loop = current_loop()
        clock = make_clock(loop)
        bridge = Bridge(
            loop,
            lambda: make_driver(driver, finder.for_client()),
            monotonic=clock.monotonic,
            # The fake producer's driver has this: nothing of it waits, so that it needs no thread.
            inline=getattr(driver, "inline", False),
        )
        bounds: dict[str, Any] = {
            "max_in_flight": settings.max_in_flight,
            "max_buffered_bytes": settings.max_buffered_bytes,
            "delivery_timeout": settings.delivery_timeout,
        }
        # One for the other, so that nothing is asked for each record.
        transactional = settings.transactional_id is not None
        if observers:
            observed: _ObservedProducer = object.__new__(
                _ObservedTransactionalProducer if transactional else _ObservedProducer
            )
            observation = Observation(
                observers, client_id=settings.client_id, clock=clock, ring=bridge.wake_pump
            )
            observed._observation = observed._observing = observation
            observed._begin(loop, ObservedLedger(observation, **bounds), bridge.step)
            self: SendProducer = observed
        else:
            self = object.__new__(_TransactionalProducer if transactional else cls)
            self._observation = None
            self._begin(loop, Ledger(**bounds), bridge.step)
        self._settings = settings
        self._finder = finder
        self._bridge = bridge
        if not observers:  # they are told in the pump's turns
            bridge.handle_inline = self._take_at_once
        # These are looked up for each record.
        self._clock = clock
        self._now = clock.now
        self._key_serialized = settings.key_serializer is not None
        self._value_serialized = settings.value_serializer is not None
        self._topics = set()
        self._rung = self._busy = self._settling = False
        self._reopening = self._retrying = self._stopping = False
        self._context = contextvars.copy_context()
        self._generations = 1
        self._given_up_at = 0
        self._metadata_waiters = set()
        self._close_requested = anyio.Event()
        self._close_deadline = math.inf
        self._drain_scope = None
        self._done = anyio.Event()
        self._turn = anyio.Lock()
        self._transaction = None
        return self

    def __repr__(self) -> str:
        settings = self._finder.settings
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
        self._check_usable()
        await self._wait_until_settled()

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
        return run_transaction(_Ownership(self, self._ledger, self._loop))

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
        settings = self._settings
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
        self._check_usable()
        check_record(ProducerRecord(topic, b""), self._topics)
        await anyio.lowlevel.checkpoint_if_cancelled()
        with anyio.move_on_after(self._settings.delivery_timeout):
            while True:
                found = await self._bridge.call(lambda driver: driver.partitions_for(topic))
                if found is not None:
                    return found
                self._check_usable()
                cell = self._loop.new_waiter()
                self._metadata_waiters.add(cell)
                self._retry_soon()
                try:
                    await cell
                finally:
                    self._metadata_waiters.discard(cell)
        raise SendProducerError(
            f"no broker told the partitions of topic {topic!r} within "
            f"{self._settings.delivery_timeout:g} s (delivery_timeout)"
        )

    def statistics(self) -> Statistics:
        """The producer's figures as they stand. Works on a closed producer too."""
        return self._ledger.statistics(
            generations=self._generations,
            hand_overs=self._bridge.hand_overs,
            wake_ups=self._bridge.wake_ups,
            client=self._bridge.figures(),
        )

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
        self._check_loop()
        if self._done.is_set():
            await anyio.lowlevel.checkpoint()
        else:
            self._request_close(self._settings.close_timeout)
            try:
                await self._done.wait()
            except BaseException:
                await self._close_hurriedly()
                raise
        with self._step:
            errors, count = self._ledger.undelivered()
        if count:
            raise UndeliveredRecords(errors, count)

    # --- on the caller's task ----------------------------------------------------------------

    def _check_usable(self) -> None:
        self._check_loop()
        if self._ledger.state in {ProducerState.CLOSED, ProducerState.BROKEN}:
            raise self._ledger.refusal()

    def _enter(self, record: ProducerRecord[Any, Any], *, wait: bool = True) -> Entry:
        if type(record) is not ProducerRecord:
            check_is_record(record)
        checked, size = check_record(
            record, self._topics, self._key_serialized, self._value_serialized
        )
        step = self._step
        if step.depth:
            raise self._reentered()
        # `with step:`, written out: this is the way of every record.
        step.depth = 1
        try:
            entry = self._ledger.enter(checked, size, self._now(), wait)
            if not self._rung:
                self._ring()
        finally:
            step.depth = 0
        return entry

    def _enter_several(
        self, records: Iterable[ProducerRecord[Any, Any]], group: Group
    ) -> list[Entry]:
        with self._step:
            entries = self._ledger.enter_several(self._checked(records), self._now(), group)
            if entries and not self._rung:
                self._ring()
        return entries

    def _checked(
        self, records: Iterable[ProducerRecord[Any, Any]]
    ) -> Iterator[tuple[ProducerRecord[Any, Any], int]]:
        """These with their sizes, up to the first that can't be sent: when that is entered alone,
        somebody is told."""
        topics, key_serialized, value_serialized = (
            self._topics,
            self._key_serialized,
            self._value_serialized,
        )
        for record in records:
            try:
                checked = check_record(record, topics, key_serialized, value_serialized)
            except RecordRejected:
                return
            yield checked

    def _ring(self) -> None:
        """Have the pump look at the queue, as soon as the driver can take what is there; unless it
        is going to anyway."""
        if not self._rung:
            self._rung = True
            if self._busy:
                self._bridge.notify_when_ready()
            elif self._bridge.can_submit_inline and self._ledger.is_alone:
                self._hand_over()
                if self._bridge.is_polled or self._observation is not None or self._ledger.queued:
                    self._bridge.wake_pump()
                else:
                    # There is nothing for the pump to do until the client reports.
                    self._rung = False
            else:
                self._bridge.wake_pump()

    def _take_at_once(self, event: Event) -> bool:
        """Settle a record that comes back alone where the loop learns of it. The pump's turn would
        be as much work again, and its caller has waited for nothing else."""
        if not isinstance(event, Completed) or len(event.entries) > 1:
            return False
        try:
            self._moved(self._apply(event))
        except Exception as error:  # noqa: BLE001  # told to all who wait
            self._break(error)
        return True

    def _moved(self, woken: Iterable[object]) -> None:
        """Room may have become free elsewhere than in the pump: others may be queued now."""
        with self._step:
            self._wake(woken)
            if self._bridge.lingers:
                self._pace()
            if self._ledger.queued:
                self._ring()

    def _pace(self) -> None:
        """Let the client hold records back for larger batches, or not; see ``is_in_a_hurry``."""
        self._bridge.hurry(self._ledger.is_in_a_hurry)

    async def _wait_until_settled(self, *, counts_waiting: bool = False) -> None:
        await anyio.lowlevel.checkpoint_if_cancelled()
        cell = self._loop.new_waiter()
        with self._step:
            is_set = self._ledger.barrier(cell, counts_waiting=counts_waiting)
            self._pace()
        if not is_set:
            await anyio.lowlevel.checkpoint()
            return
        try:
            await cell
        except BaseException:
            self._now_or_soon(partial(self._ledger.drop_barrier, cell))
            raise

    def _wake(self, woken: Iterable[Any]) -> None:
        self._loop.wake(woken)

    # --- the pump ----------------------------------------------------------------------------

    async def _pump(self) -> None:
        observation = self._observation
        with CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._expire)
                if self._finder.looks_up:
                    tasks.start_soon(self._watch)
                try:
                    async for events in self._bridge.events:
                        if observation is not None:
                            observation.begin_turn()
                        await self._settle(events)
                        with self._step:
                            self._hand_over()
                            self._apply_all(self._bridge.poll())
                        if observation is not None:
                            observation.tell()
                except Exception as error:  # noqa: BLE001  # told to all who wait
                    self._break(error)
                finally:
                    self._bridge.events.close()
                    tasks.cancel_scope.cancel()
                    if observation is not None:
                        observation.tell()

    async def _settle(self, events: Sequence[Event]) -> None:
        """Apply what came together; where it is much, with everybody's turn between."""
        # Until the end nobody needs to ring: those who are woken may send again, and that is to go
        # together.
        self._rung = True
        for portion in in_portions(events):
            if self._settling:
                await anyio.lowlevel.cancel_shielded_checkpoint()
            with self._step:
                self._apply_all(portion)
            self._settling = True
        self._rung = self._settling = False

    def _break(self, error: Exception) -> None:
        _log.exception(
            "the producer's own fault; it is broken", extra={"error.type": error_type(error)}
        )
        with self._step:
            self._wake(self._break_ledger(error))

    def _break_ledger(self, error: BaseException) -> Iterable[object]:
        # Waiters for metadata need no answer any more: they see the state, and raise.
        return [*self._ledger.break_(error), *self._release_topics()]

    def _apply_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self._wake(self._apply(event))

    def _hand_over(self) -> None:
        if self._stopping:
            return  # nobody would take it: what is queued was not sent
        if self._bridge.lingers:
            self._pace()
        queued = self._ledger.queued
        if not queued or self._reopening:
            return
        if self._busy:
            self._ring()
        elif not self._bridge.should_gather(queued):
            batch = self._ledger.take(self._bridge.batch_limit)
            answer = self._bridge.submit(batch) if batch else Submitted()
            if answer is None:
                self._busy = True
            else:
                self._wake(self._taken(answer))
                if self._ledger.queued:
                    self._ring()

    def _taken(self, answer: Submitted) -> Iterable[object]:
        """The driver went through a batch."""
        ledger = self._ledger
        woken: list[object] = []
        if answer.sizes:
            woken += ledger.resize(answer.sizes)
        if answer.held:
            woken += ledger.hold(answer.held)
            self._retry_soon()
        return woken

    def _apply(self, event: Event) -> Iterable[object]:
        ledger = self._ledger
        match event:
            case Completed(entries, outcomes):
                return ledger.settle(entries, outcomes)
            case BatchSubmitted(answer):
                self._busy = False
                return self._taken(answer)
            case MetadataChanged():
                return self._release_topics()
            case ClientBroken(generation, error):
                if generation == self._bridge.generation:
                    return self._give_up(error)
            case GenerationEnded(error):
                woken = [*ledger.end_generation(error), *self._forget_queue(error)]
                if self._observation is not None:
                    self._observation.ended(error)
                return woken
            case ClientOpened():
                self._reopening = False
                self._generations += 1
                if self._observation is not None:
                    self._observation.opened(self._generations)
            case Ready():
                pass  # it is asked at the end of each turn
            case DriverCrashed(error):  # pragma: no branch  # the last event
                return self._break_ledger(error)
        return ()

    def _forget_queue(self, error: BaseException) -> Iterable[object]:  # noqa: ARG002
        """What is queued when a client was given up goes to the next one."""
        return ()

    def _give_up(self, error: BaseException) -> Iterable[object]:
        """Take another client; or none, where this one was fenced off by another producer's, or is
        its owner's, who alone could make another one."""
        if isinstance(error, ProducerFenced) or self._settings.producer is not None:
            return self._break_ledger(error)
        self._give_up_client(error)
        return ()

    def _give_up_client(self, error: BaseException) -> None:
        is_broken = self._ledger.state is ProducerState.BROKEN
        if not self._reopening and not self._stopping and not is_broken:
            _log.warning(
                "the client is given up, another one takes its place: %s",
                error,
                extra={
                    "error.type": error_type(error),
                    "anyio_sendproducer.generation": self._generations,
                },
            )
            self._reopening = True
            self._given_up_at = self._ledger.accepted
            if self._finder.asks:
                # The task of a transaction may be here: its context is not the opener's.
                self._context.copy().run(self._tasks.start_soon, self._reopen, error)
            else:
                self._bridge.reopen(error, self._ledger.in_flight_bytes)

    async def _reopen(self, error: BaseException) -> None:
        await self._finder.find_again()
        with self._step:
            self._bridge.reopen(error, self._ledger.in_flight_bytes)

    def _release_topics(self) -> Iterable[object]:
        """Queue the records of topics without metadata again.

        Returns: the waiters for metadata, to wake.
        """
        self._ledger.release_held()
        waiters, self._metadata_waiters = self._metadata_waiters, set()
        return waiters

    def _retry_soon(self) -> None:
        """Ask the driver again for missing topics, even if it reports no new metadata."""
        if not self._retrying and not self._stopping:
            self._retrying = True
            self._tasks.start_soon(self._retry_topics)

    async def _retry_topics(self) -> None:
        await self._clock.sleep(RETRY_SECONDS)
        self._retrying = False
        with self._step:
            self._moved(self._release_topics())

    async def _expire(self) -> None:
        while True:
            while self._settling:  # what has come is not late
                await anyio.lowlevel.checkpoint()
            now = self._clock.now()
            trouble = self._bridge.trouble()
            with self._step:
                self._moved(self._ledger.expire(now, trouble))
                if self._ledger.stuck(now):
                    error = TimeoutError(
                        "it holds records past their delivery_timeout, gets nowhere"
                    )
                    error.__cause__ = trouble
                    self._wake(self._give_up(error))
            await self._clock.sleep(max(0.0, self._ledger.next_deadline(now) - now))

    async def _watch(self) -> None:
        """Look the service up again while no broker is reached, or no client is there."""
        was_cut_off = False
        while True:
            await self._clock.sleep(WATCH_SECONDS)
            cut_off = self._reopening or self._bridge.cut_off()
            if cut_off and was_cut_off and await self._finder.moved():
                # None can be reached any more: what was under way has no other end.
                addresses = listed(self._finder.settings.addresses)
                trouble = self._bridge.trouble()
                error = ConnectionError(f"no broker is reached, and now they are at {addresses}")
                error.__cause__ = trouble
                with self._step:
                    self._give_up_client(error)
            was_cut_off = cut_off

    # --- the guard ---------------------------------------------------------------------------

    async def _run(self, *, task_status: anyio.abc.TaskStatus[SendProducer]) -> None:
        try:
            # A driver keeps to its time, which is real time, whatever clock the loop has; what
            # others wrote, and it calls, may not.
            bounded = self._settings.producer_factory is None
            patience = self._settings.start_timeout + _PATIENCE_SECONDS
            with anyio.move_on_after(None if bounded else patience) as scope:
                await self._bridge.open()
            if scope.cancelled_caught:
                raise ProducerStartError(
                    f"the client was not made within {self._settings.start_timeout:g} s "
                    f"(start_timeout), nor within {_PATIENCE_SECONDS:g} s more"
                )
        except BaseException:
            with CancelScope(shield=True):
                await self._bridge.stop(0)
            self._bridge.events.close()
            self._ledger.close()
            self._done.set()
            raise
        if self._observation is not None:
            self._observation.opened(self._generations)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._pump)
                task_status.started(self)
                try:
                    await self._close_requested.wait()
                    await self._drain()
                except BaseException:
                    self._request_close(self._settings.cancel_timeout)
                    with CancelScope(shield=True):
                        await self._drain()
                    raise
                finally:
                    self._stopping = True
                    with CancelScope(shield=True):
                        await self._bridge.stop(self._closing_time())
        finally:
            # As a rule the pump has; asyncio may have cancelled it before it began.
            self._bridge.events.close()
            try:
                with self._step:
                    self._wake(self._ledger.close())
                    self._wake(self._release_topics())
                if self._observation is not None:
                    self._observation.ended(self._ledger.broken_by)
                    self._observation.tell()
            finally:
                self._done.set()

    def _request_close(self, seconds: float) -> None:
        """Close within so many seconds from now, or sooner where that was asked for before."""
        # A tenth of the time, half a second at most, is kept for closing the client.
        deadline = self._loop.now() + seconds - min(0.5, seconds / 10)
        self._close_deadline = min(self._close_deadline, deadline)
        if self._drain_scope is not None:
            self._drain_scope.deadline = self._close_deadline
        self._close_requested.set()

    async def _drain(self) -> None:
        with self._step:
            self._wake(self._ledger.drain())
            self._pace()
        with CancelScope(deadline=self._close_deadline) as self._drain_scope:
            if self._transaction is not None:
                await self._transaction.end_by_closing()
            await self._wait_until_settled()

    def _closing_time(self) -> float:
        """How long the client may take to close: by force where it still holds records. Where it
        has none it ends by itself at once, but for an answer about metadata that may be on its
        way."""
        if not self._ledger.idle or self._ledger.state is ProducerState.BROKEN:
            return 0.0
        return min(1.0, max(0.0, self._close_deadline - self._loop.now()))

    async def _close_hurriedly(self) -> None:
        self._request_close(self._settings.cancel_timeout)
        with CancelScope(shield=True):
            await self._done.wait()


class _TransactionalProducer(SendProducer):
    """A producer with a ``transactional_id``: it sends in transactions alone."""

    def _enter(self, record: ProducerRecord[Any, Any], *, wait: bool = True) -> Entry:  # noqa: ARG002
        self._check_usable()
        raise TransactionError(
            "this producer has a transactional_id: send within `async with producer.transaction() "
            "as tx:`, by tx.send()"
        )

    # One by one, and the first of them is refused.
    _enter_several = Sender._enter_several

    def _forget_queue(self, error: BaseException) -> Iterable[object]:
        # The next client has no transaction open.
        return self._ledger.fail_unsubmitted(
            f"the record was not sent: the client was given up before: {error}",
            error,
            until=self._given_up_at,
        )

    def _enter_in_transaction(self, record: ProducerRecord[Any, Any], wait: bool) -> Entry:  # noqa: FBT001
        return super()._enter(record, wait=wait)


class _ObservedProducer(ObservedSender, SendProducer):
    """A producer that is observed."""

    def _enter(self, record: ProducerRecord[Any, Any], *, wait: bool = True) -> Entry:
        check_is_record(record)
        if self._ledger.state is not ProducerState.OPEN:
            raise self._ledger.refusal()
        try:
            checked, size = check_record(
                record, self._topics, self._key_serialized, self._value_serialized
            )
        except RecordRejected as error:
            self._observing.refuse(self._observing.give(record, self._now()), error)
            raise
        entry = self._enter_checked(checked, size, wait=wait)
        with self._step:
            if not self._rung:
                self._ring()
        return entry

    def _enter_several(
        self, records: Iterable[ProducerRecord[Any, Any]], group: Group
    ) -> list[Entry]:
        ledger = self._ledger
        entries: list[Entry] = []
        for checked, size in self._checked(records):
            if ledger.state is not ProducerState.OPEN or not ledger.has_room(size):
                break
            entry = self._enter_checked(checked, size)
            entry.group = group
            entries.append(entry)
        with self._step:
            if entries and not self._rung:
                self._ring()
        return entries

    def _enter_checked(
        self, record: ProducerRecord[Any, Any], size: int, *, wait: bool = True
    ) -> Entry:
        ledger, observing = self._ledger, self._observing
        if self._step.depth:
            raise self._reentered()
        now = self._now()
        given = observing.give(record, now)
        sent = record
        # Where it is going to be refused, nobody is to take it for one that is on its way.
        if size <= ledger.max_bytes and (wait or ledger.has_room(size)):
            sent, size = observing.enrich(given, size, ledger.max_bytes)
        with self._step:
            try:
                entry = ledger.enter(sent, size, now, wait)
            except RecordRejected as error:
                observing.refuse(given, error)
                raise
            except WouldBlock as error:
                if sent is not record:
                    observing.refuse(given, error)
                raise
            entry.given = given
            if entry.state is DeliveryState.QUEUED:
                observing.accept(entry)
        return entry


class _ObservedTransactionalProducer(_TransactionalProducer, _ObservedProducer):
    """A producer with a ``transactional_id`` that is observed."""


class _Ownership:
    """The producer, as its transactions know it; see :class:`._transaction.Owner`."""

    def __init__(self, producer: SendProducer, ledger: Ledger, loop: Loop) -> None:
        self._producer = producer
        self.bridge = producer._bridge
        self.ledger = ledger
        self.loop = loop
        self.settings = producer._settings
        self.turn = producer._turn
        self.observation = producer._observation
        self.check = producer._check_usable
        self.moved = producer._moved
        self.until_settled = partial(producer._wait_until_settled, counts_waiting=True)
        if isinstance(producer, _TransactionalProducer):
            self.enter = producer._enter_in_transaction

    def take_part(self, transaction: Transaction | None, /) -> None:
        self._producer._transaction = transaction

    def give_up(self, error: BaseException, /) -> None:
        self._producer._moved(self._producer._give_up(error))


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
    finder = Finder(settings)
    await finder.find()
    producer = SendProducer._create(finder, driver, checked, make_clock)
    await task_group.start(producer._run)
    return producer


@asynccontextmanager
async def _open(
    settings: ProducerSettings,
    driver: str | DriverFactory | None,
    observers: Iterable[Observer],
    make_clock: ClockFactory,
) -> AsyncGenerator[SendProducer]:
    # The producer's tasks themselves raise nothing but cancellation.
    async with plain_task_group() as tasks:
        producer = await _start(tasks, settings, driver, observers, make_clock)
        try:
            yield producer
        except BaseException as error:
            await producer._close_hurriedly()
            _note_undelivered(error, producer)
            raise
        await producer.aclose()


def _note_undelivered(error: BaseException, producer: SendProducer) -> None:
    errors, count = producer._ledger.undelivered()
    if count:
        note = str(UndeliveredRecords(errors, count))
        # BaseException.add_note, which Python 3.10 does not have yet (PEP 678).
        error.__dict__.setdefault("__notes__", []).append(note)
