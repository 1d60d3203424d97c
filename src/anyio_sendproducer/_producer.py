"""The producer: what callers see, and the two tasks behind it.

The *guard* opens the driver, waits until it is told to close or is cancelled, and sees to it that
the end is reached in bounded time, whatever happens meanwhile. The *pump* moves the ledger: it
hands over what is queued, settles what comes back, and wakes who waits. It is shielded, since
records still have to be settled while the scope around it is being cancelled; the guard ends it.

May import: everything below it (``_bridge``, ``_ledger``, ``_loops``, ``_records``, ``_settings``,
``_exceptions``, ``drivers``).
"""

from __future__ import annotations

import functools
import logging
import math
import os
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from threading import get_ident
from typing import Any, Protocol, TypeVar, cast, overload

import anyio
import anyio.abc
import anyio.lowlevel
from anyio import CancelScope

from . import _bridge
from ._bridge import Bridge, Event
from ._exceptions import (
    DeliveryError,
    MultiDeliveryError,
    Persistence,
    ProducerBroken,
    ProducerClosed,
    ProducerMisused,
    RecordRejected,
    SendProducerError,
    UndeliveredRecords,
)
from ._ledger import DeliveryState, Entry, Group, Ledger, ProducerState, Statistics
from ._loops import Loop, Several, current_loop
from ._records import (
    Envelope,
    Message,
    MultiMessage,
    MultiResult,
    MultiResultPart,
    PassThroughMessage,
    PassThroughResult,
    ProducerRecord,
    RecordMetadata,
    Result,
    Results,
    check_record,
)
from ._settings import ProducerSettings
from .drivers import DriverFactory, make_driver

__all__ = ["Delivery", "SendProducer", "open_send_producer", "start_send_producer"]

K = TypeVar("K")
V = TypeVar("V")
P = TypeVar("P")

_log = logging.getLogger("anyio_sendproducer")

#: Records entered in one go before other tasks get their turn: about a millisecond's work.
_ENTERED_AT_ONCE = 500
#: How often topics without metadata are asked for again, where no answer brings them up before.
_RETRY_SECONDS = 0.25

#: The thread of a producer whose process was forked: no thread has this number.
_NO_THREAD = -1

_producers: weakref.WeakSet[SendProducer] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # The child has neither the threads nor the sockets: its records would wait for ever.
    for producer in list(_producers):
        producer._thread = _NO_THREAD  # pyright: ignore[reportPrivateUsage]


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has none, and does not fork
    os.register_at_fork(after_in_child=_after_fork_in_child)


class _Starter(Protocol):
    """AnyIO's TaskGroup and Trio's Nursery, as far as they are needed here."""

    async def start(self, func: Any, /, *args: Any, name: Any = None) -> Any: ...


class Delivery:
    """A record that was accepted, and the way to its outcome.

    Made by :meth:`SendProducer.enqueue` and :meth:`SendProducer.enqueue_nowait`. A delivery that
    nobody awaits is fine as long as the record is delivered; a failure nobody awaited is raised
    as :class:`UndeliveredRecords` when the producer is closed.
    """

    __slots__ = ("_entry", "_producer")

    _entry: Entry
    _producer: SendProducer

    def __init__(self) -> None:
        raise TypeError("a Delivery is made by SendProducer.enqueue() and enqueue_nowait()")

    @classmethod
    def _create(cls, producer: SendProducer, entry: Entry) -> Delivery:
        delivery = object.__new__(cls)
        delivery._producer = producer
        delivery._entry = entry
        return delivery

    def __repr__(self) -> str:
        return f"<Delivery {self._entry.state.value} topic={self._entry.record.topic!r}>"

    @property
    def record(self) -> ProducerRecord[Any, Any]:
        """The record."""
        return self._entry.record

    @property
    def done(self) -> bool:
        """Whether there is an outcome, so that :meth:`wait` gives it at once."""
        return self._entry.outcome is not None

    async def wait(self) -> RecordMetadata:
        """Wait for the outcome. May be called any number of times, and by several tasks.

        Returns:
            Where the record was written.

        Raises:
            DeliveryError: it was not delivered; see its ``persistence``.
            ProducerMisused: called on another event loop, or in another thread or process.

        Cancellation stops the waiting and nothing else: the record was accepted and goes on. A
        later call gives its outcome.
        """
        return await self._producer._wait_for(self._entry)  # pyright: ignore[reportPrivateUsage]


class SendProducer:
    """A Kafka producer that sends records one by one and says what became of each.

    Made by :func:`open_send_producer` and :func:`start_send_producer`, never by hand. All methods
    belong to the event loop that it was opened on, and any number of tasks there may use it.
    """

    _settings: ProducerSettings
    _loop: Loop
    _ledger: Ledger
    _bridge: Bridge
    _thread: int
    _park: Callable[[Entry], Awaitable[object]]
    _now: Callable[[], float]
    _key_serialized: bool
    _value_serialized: bool
    _topics: set[str]
    _rung: bool  # the pump was told to look at the queue
    _busy: bool  # the driver is going through a batch
    _reopening: bool  # a client is being opened in place of one that broke
    _retrying: bool  # topics without metadata are asked for again before long
    _stopping: bool  # the driver takes no more
    _generations: int
    _metadata_waiters: set[Any]
    _close_requested: anyio.Event
    _close_deadline: float
    _drain_scope: CancelScope | None
    _done: anyio.Event

    def __init__(self) -> None:
        raise TypeError(
            "SendProducer is not made by hand: use `async with open_send_producer(settings) as "
            "producer:`, or start_send_producer(task_group, settings)"
        )

    @classmethod
    def _create(
        cls, settings: ProducerSettings, driver: str | DriverFactory | None
    ) -> SendProducer:
        self = object.__new__(cls)
        self._settings = settings
        self._loop = loop = current_loop()
        self._ledger = Ledger(
            max_in_flight=settings.max_in_flight,
            max_buffered_bytes=settings.max_buffered_bytes,
            delivery_timeout=settings.delivery_timeout,
        )
        self._bridge = Bridge(loop, functools.partial(make_driver, driver, settings))
        self._thread = get_ident()
        # These are looked up for each record.
        self._park = loop.park
        self._now = loop.now
        self._key_serialized = settings.key_serializer is not None
        self._value_serialized = settings.value_serializer is not None
        self._topics = set()
        self._rung = self._busy = self._reopening = self._retrying = self._stopping = False
        self._generations = 1
        self._metadata_waiters = set()
        self._close_requested = anyio.Event()
        self._close_deadline = math.inf
        self._drain_scope = None
        self._done = anyio.Event()
        return self

    def __repr__(self) -> str:
        return f"<SendProducer {self._ledger.state.value} {', '.join(self._settings.addresses)}>"

    # --- sending -----------------------------------------------------------------------------

    async def send(self, record: ProducerRecord[Any, Any]) -> RecordMetadata:
        """Send one record and wait until Kafka has it.

        Records that one task sends one after the other, or several tasks in some order, are
        written in that order on each partition. Where there is no room (``max_in_flight``,
        ``max_buffered_bytes``) this waits for it, first come first served.

        Args:
            record: what to send.

        Returns:
            Where it was written.

        Raises:
            DeliveryTimeout: no outcome within ``delivery_timeout``.
            RecordRejected: it is invalid or too large, its topic or partition does not exist, or
                the broker refused it.
            SerializationFailed: its key or value could not be turned into bytes.
            DeliveryError: it was not delivered for another reason. Each DeliveryError says in
                ``persistence`` whether the record may be in the log all the same.
            ProducerClosed: the producer is closing or closed.
            ProducerBroken: it can never send again.
            ProducerMisused: called on another event loop, or in another thread or process.
            TypeError: this is no ProducerRecord.

        Cancellation, also by a deadline: a record that the client was not given yet is withdrawn
        and never written. After that the record goes on, and only the waiting ends;
        ``statistics().abandoned`` counts it. Records of others are never touched. Called where
        cancellation has come already, it may do either; :meth:`enqueue` looks first.
        """
        # Half of the check: to ask asyncio for its loop is a system call on Python 3.11. Another
        # loop in this very thread can't await the cell, and the other half says why.
        if self._thread != get_ident():
            self._check_loop()
        entry = self._enter(record)
        try:
            await self._park(entry)
        except BaseException:
            self._cancel(entry)
            self._check_loop()
            raise
        outcome = entry.outcome
        if type(outcome) is RecordMetadata:
            return outcome
        try:
            raise cast("DeliveryError", outcome)
        finally:
            # The error knows this frame. Without these the record would stay in memory until the
            # garbage collector comes by.
            del outcome, entry, record

    @overload
    async def send_envelope(self, envelope: Message[K, V, P]) -> Result[K, V, P]: ...
    @overload
    async def send_envelope(self, envelope: MultiMessage[K, V, P]) -> MultiResult[K, V, P]: ...
    @overload
    async def send_envelope(self, envelope: PassThroughMessage[P]) -> PassThroughResult[P]: ...
    @overload
    async def send_envelope(self, envelope: Envelope[K, V, P]) -> Results[K, V, P]: ...
    async def send_envelope(self, envelope: Envelope[K, V, P]) -> Results[K, V, P]:
        """Send what an envelope holds, and get its pass-through value back with the result.

        Args:
            envelope: a :class:`Message`, a :class:`MultiMessage`, or a
                :class:`PassThroughMessage`, which touches no broker and works on a closed producer
                too (as in Alpakka Kafka).

        Returns:
            A :class:`Result`, a :class:`MultiResult` with one part for each record in their order,
            or a :class:`PassThroughResult`.

        Raises:
            MultiDeliveryError: records of a MultiMessage were not delivered. Every record was
                tried, the fate of each is in ``parts``, the pass-through value in
                ``pass_through``.
            DeliveryError: the record of a Message was not delivered; see :meth:`send`.
            ProducerClosed, ProducerBroken, ProducerMisused: as :meth:`send`.
            TypeError: this is no envelope.

        Cancellation: as with :meth:`send`, for each record on its own.
        """
        if isinstance(envelope, Message):
            return Result(await self.send(envelope.record), envelope)
        if isinstance(envelope, MultiMessage):
            records = envelope.records
            outcomes = await self._send_group(records)
            parts = _parts(records, outcomes, envelope.pass_through)
            return MultiResult(parts, envelope.pass_through)
        if isinstance(cast("object", envelope), PassThroughMessage):
            await anyio.lowlevel.checkpoint()
            return PassThroughResult(envelope.pass_through)
        raise TypeError(
            "an envelope is a Message, MultiMessage or PassThroughMessage, "
            f"not {type(envelope).__name__}: send a bare record with send()"
        )

    async def send_many(self, records: Iterable[ProducerRecord[Any, Any]]) -> list[RecordMetadata]:
        """Send records and wait once, for all of them.

        Args:
            records: what to send, in this order. They take their places in line one by one, as
                room becomes free, so that a long list does not shut others out.

        Returns:
            Where each was written, in the order of ``records``; an empty list for none.

        Raises:
            MultiDeliveryError: at least one was not delivered. Every record was tried, and the
                fate of each is in ``parts``.
            ProducerClosed, ProducerBroken: before the first record was accepted.
            ProducerMisused: as :meth:`send`.
            TypeError: one of them is no ProducerRecord; none was sent.

        Cancellation: as with :meth:`send`, for each record on its own.
        """
        all_records = tuple(records)
        outcomes = await self._send_group(all_records)
        return [part.metadata for part in _parts(all_records, outcomes, None)]

    async def enqueue(self, record: ProducerRecord[Any, Any]) -> Delivery:
        """Wait for room, and no longer: the record is accepted, its outcome is for later.

        Args:
            record: what to send.

        Returns:
            The accepted record; await its :meth:`Delivery.wait` for the outcome, or do not: a
            failure that nobody awaited is raised when the producer is closed.

        Raises:
            DeliveryTimeout: there was no room within ``delivery_timeout``.
            RecordRejected: the record is invalid. What only a broker or a serializer can find
                wrong is found later, and comes out of :meth:`Delivery.wait`.
            ProducerClosed, ProducerBroken, ProducerMisused, TypeError: as :meth:`send`.

        Cancellation: the record is withdrawn and never written. (asyncio's own ``task.cancel()``
        can come in the very step in which room was granted: then it goes on, abandoned.)
        """
        self._check_loop()
        await anyio.lowlevel.checkpoint_if_cancelled()
        entry = self._enter(record)
        if entry.state is DeliveryState.WAITING:
            await self._wait_for_room(entry)
            if isinstance(entry.outcome, DeliveryError):
                self._ledger.saw(entry)
                try:
                    raise entry.outcome
                finally:
                    del entry, record  # as in send()
        else:
            await anyio.lowlevel.cancel_shielded_checkpoint()
        return Delivery._create(self, entry)  # pyright: ignore[reportPrivateUsage]

    def enqueue_nowait(self, record: ProducerRecord[Any, Any]) -> Delivery:
        """Accept a record at once, or not at all.

        Args:
            record: what to send.

        Returns:
            The accepted record, as :meth:`enqueue` does.

        Raises:
            anyio.WouldBlock: there is no room; nothing was accepted.
            RecordRejected, ProducerClosed, ProducerBroken, ProducerMisused, TypeError: as
                :meth:`enqueue`.
        """
        self._check_loop()
        entry = self._enter(record, wait=False)
        return Delivery._create(self, entry)  # pyright: ignore[reportPrivateUsage]

    async def flush(self) -> None:
        """Wait until everything that was accepted before this call has its outcome.

        It says nothing about what the outcomes are: they go to whoever awaits them. Whatever is
        accepted meanwhile is not waited for.

        Raises:
            ProducerClosed, ProducerBroken, ProducerMisused: as :meth:`send`.

        Cancellation stops the waiting and nothing else.
        """
        self._check_usable()
        await self._wait_until_settled()

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
        with anyio.move_on_after(self._settings.delivery_timeout):
            while True:
                found = await self._bridge.call(lambda driver: driver.partitions_for(topic))
                if found is not None:
                    return found
                cell = self._loop.cell()
                self._metadata_waiters.add(cell)
                try:
                    with anyio.move_on_after(_RETRY_SECONDS):
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
        errors, count = self._ledger.undelivered()
        if count:
            raise UndeliveredRecords(errors, count)

    # --- on the caller's task ----------------------------------------------------------------

    def _check_loop(self) -> None:
        if self._thread == get_ident() and self._loop.is_current():
            return
        if self._thread == _NO_THREAD:
            raise ProducerMisused(
                "the producer was opened before this process was forked, and its thread stayed "
                "behind: open a producer in the child"
            )
        raise ProducerMisused(
            "the producer belongs to the event loop that it was opened on: use it from that loop's "
            "tasks alone, and open another for another loop, thread or process"
        )

    def _check_usable(self) -> None:
        self._check_loop()
        if self._ledger.state in {ProducerState.CLOSED, ProducerState.BROKEN}:
            raise self._ledger.refusal()

    def _enter(self, record: ProducerRecord[Any, Any], *, wait: bool = True) -> Entry:
        if type(record) is not ProducerRecord:
            _check_is_record(record)
        checked, size = check_record(
            record, self._topics, self._key_serialized, self._value_serialized
        )
        ledger = self._ledger
        entry = ledger.enter(checked, size, self._now(), wait)
        if not self._rung and not self._busy:
            self._ring()
        return entry

    def _ring(self) -> None:
        """Have the pump look at the queue, unless it is going to anyway."""
        if not self._rung and not self._busy:
            self._rung = True
            self._bridge.ring()

    def _cancel(self, entry: Entry) -> None:
        self._moved(self._ledger.cancel(entry))

    def _moved(self, woken: Iterable[object]) -> None:
        """Room may have become free elsewhere than in the pump: others may be queued now."""
        self._wake(woken)
        if self._ledger.has_queued:
            self._ring()

    async def _wait_for_room(self, entry: Entry) -> None:
        cell = entry.room_waiter = self._loop.cell()
        try:
            await cell
        except BaseException:
            self._cancel(entry)
            raise

    async def _wait_for(self, entry: Entry) -> RecordMetadata:
        self._check_loop()
        if entry.outcome is not None:
            await anyio.lowlevel.checkpoint()
        else:
            cell = self._loop.cell()
            waiters = cast("Several | None", entry.waiter)
            if waiters is None:
                waiters = entry.waiter = Several()
            waiters.append(cell)
            try:
                await cell
            except BaseException:
                waiters.remove(cell)
                if not waiters:
                    self._ledger.unwatch(entry)
                raise
        self._ledger.saw(entry)
        outcome = entry.outcome
        if type(outcome) is RecordMetadata:
            return outcome
        try:
            raise cast("DeliveryError", outcome).with_traceback(None)
        finally:
            del outcome, entry  # as in send()

    async def _send_group(
        self, records: Sequence[ProducerRecord[Any, Any]]
    ) -> list[RecordMetadata | DeliveryError]:
        for record in records:
            _check_is_record(record)
        self._check_loop()
        if not records:
            await anyio.lowlevel.checkpoint()
            return []
        cell = self._loop.cell()
        # One more than there are, so that nothing wakes us before all are entered.
        group = Group(len(records) + 1, cell)
        line: list[Entry | DeliveryError] = []
        try:
            for record in records:
                try:
                    entry = self._enter(record)
                except RecordRejected as error:
                    line.append(error)
                    group.remaining -= 1
                    continue
                except (ProducerClosed, ProducerBroken) as error:
                    if not any(isinstance(one, Entry) for one in line):
                        raise
                    line.append(_not_entered(record, error))
                    group.remaining -= 1
                    continue
                entry.group = group
                line.append(entry)
                if entry.state is DeliveryState.WAITING:
                    await self._wait_for_room(entry)
                elif len(line) % _ENTERED_AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()
            group.remaining -= 1
            if group.remaining:
                await cell
            else:
                await anyio.lowlevel.checkpoint()
        except BaseException:
            group.waiter = None
            for one in line:
                if isinstance(one, Entry) and one.state is not DeliveryState.WITHDRAWN:
                    self._cancel(one)
            raise
        return [
            cast("RecordMetadata | DeliveryError", one.outcome) if isinstance(one, Entry) else one
            for one in line
        ]

    async def _wait_until_settled(self) -> None:
        cell = self._loop.cell()
        if not self._ledger.barrier(cell):
            await anyio.lowlevel.checkpoint()
            return
        try:
            await cell
        except BaseException:
            self._ledger.drop_barrier(cell)
            raise

    def _wake(self, woken: Iterable[Any]) -> None:
        self._loop.wake(woken)

    # --- the pump ----------------------------------------------------------------------------

    async def _pump(self) -> None:
        with CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._expire)
                try:
                    with self._bridge.events:
                        async for events in self._bridge.events:
                            self._rung = False
                            for event in events:
                                self._wake(self._apply(event, tasks))
                            self._hand_over()
                except Exception as error:  # noqa: BLE001  # told to all who wait
                    _log.exception("the producer's own fault; it is broken")
                    self._wake(self._ledger.break_(error))
                finally:
                    tasks.cancel_scope.cancel()

    def _hand_over(self) -> None:
        if self._stopping:
            return  # nobody would take it: what is queued was not sent
        if not self._busy and not self._reopening and self._ledger.has_queued:
            batch = self._ledger.take()
            if batch:
                self._busy = True
                self._bridge.submit(batch)

    def _apply(self, event: Event, tasks: anyio.abc.TaskGroup) -> Iterable[object]:
        ledger = self._ledger
        match event:
            case _bridge.Completed(entries, outcomes):
                return ledger.settle(entries, outcomes)
            case _bridge.Taken(answer):
                self._busy = False
                woken: list[object] = []
                if answer.sizes:
                    woken += ledger.resize(answer.sizes)
                if answer.held:
                    woken += ledger.hold(answer.held)
                    if not self._retrying:
                        self._retrying = True
                        tasks.start_soon(self._retry_held)
                return woken
            case _bridge.MetadataChanged():
                ledger.release_held()
                waiters, self._metadata_waiters = self._metadata_waiters, set()
                return waiters
            case _bridge.Broken(generation, error):
                if generation == self._bridge.generation:
                    self._give_up_client(error)
            case _bridge.GenerationEnded(error):
                return ledger.end_generation(error)
            case _bridge.Opened():
                self._reopening = False
                self._generations += 1
            case _bridge.Lost(error):  # pragma: no branch  # there are no other events
                return ledger.break_(error)
        return ()

    def _give_up_client(self, error: BaseException) -> None:
        if not self._reopening and not self._stopping:
            _log.warning("the client is given up, another one takes its place: %s", error)
            self._reopening = True
            self._bridge.reopen(error)

    async def _retry_held(self) -> None:
        await anyio.sleep(_RETRY_SECONDS)
        self._retrying = False
        self._ledger.release_held()
        self._moved(())

    async def _expire(self) -> None:
        while True:
            now = self._loop.now()
            trouble = self._bridge.trouble()
            self._moved(self._ledger.expire(now, trouble))
            if self._ledger.stuck(now):
                error = TimeoutError("it holds records past their delivery_timeout, gets nowhere")
                error.__cause__ = trouble
                self._give_up_client(error)
            await anyio.sleep(max(0.0, self._ledger.next_deadline(now) - now))

    # --- the guard ---------------------------------------------------------------------------

    async def _run(self, *, task_status: anyio.abc.TaskStatus[SendProducer]) -> None:
        try:
            await self._bridge.open()
        except BaseException:
            with CancelScope(shield=True):
                await self._bridge.stop(0)
            self._bridge.events.close()
            self._ledger.close()
            self._done.set()
            raise
        _producers.add(self)
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
            self._wake(self._ledger.close())
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
        self._wake(self._ledger.drain())
        with CancelScope(deadline=self._close_deadline) as self._drain_scope:
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


def _check_is_record(given: object) -> None:
    if not isinstance(given, ProducerRecord):
        raise TypeError(f"a ProducerRecord is sent, not {type(given).__name__}: {given!r:.80}")


def _not_entered(record: ProducerRecord[Any, Any], cause: SendProducerError) -> DeliveryError:
    error = DeliveryError(
        f"the record was not sent: {cause}",
        record=record,
        persistence=Persistence.NOT_PERSISTED,
    )
    error.__cause__ = cause
    return error


def _parts(
    records: Sequence[ProducerRecord[K, V]],
    outcomes: Sequence[RecordMetadata | DeliveryError],
    pass_through: object,
) -> tuple[MultiResultPart[K, V], ...]:
    parts: list[MultiResultPart[K, V] | DeliveryError] = [
        MultiResultPart(outcome, record) if isinstance(outcome, RecordMetadata) else outcome
        for record, outcome in zip(records, outcomes, strict=True)
    ]
    if any(isinstance(part, DeliveryError) for part in parts):
        raise MultiDeliveryError(parts, pass_through)
    return tuple(cast("list[MultiResultPart[K, V]]", parts))


async def start_send_producer(
    task_group: _Starter,
    settings: ProducerSettings,
    *,
    driver: str | DriverFactory | None = None,
) -> SendProducer:
    """Start a producer in the caller's own task group.

    The task group does not end before the producer is closed: call :meth:`SendProducer.aclose`,
    or cancel the task group, which closes it within ``cancel_timeout``.

    Args:
        task_group: AnyIO's TaskGroup, or Trio's Nursery.
        settings: see :class:`ProducerSettings`.
        driver: ``"kafka-python"``, or a callable that makes a driver; None for the default.

    Returns:
        The producer, connected.

    Raises:
        SettingsError: a setting is wrong.
        ProducerStartError: no broker answered within ``start_timeout``.

    Cancellation leaves nothing behind.
    """
    if not isinstance(cast("object", settings), ProducerSettings):
        raise TypeError(f"settings must be ProducerSettings, not {type(settings).__name__}")
    producer = SendProducer._create(settings, driver)  # pyright: ignore[reportPrivateUsage]
    await task_group.start(producer._run)  # pyright: ignore[reportPrivateUsage]
    return producer


@asynccontextmanager
async def open_send_producer(
    settings: ProducerSettings,
    *,
    driver: str | DriverFactory | None = None,
) -> AsyncGenerator[SendProducer]:
    """Open a producer for the length of an ``async with`` block.

    When the block ends, so have the producer's tasks, threads and sockets, whatever ended it. A
    clean end first delivers what was accepted, within ``close_timeout``; a block that failed or
    was cancelled leaves within ``cancel_timeout``.

    Args:
        settings: see :class:`ProducerSettings`.
        driver: ``"kafka-python"``, or a callable that makes a driver; None for the default.

    Raises:
        SettingsError: a setting is wrong.
        ProducerStartError: no broker answered within ``start_timeout``.
        UndeliveredRecords: the block ended cleanly, and deliveries failed that nobody awaited.
            Where the block failed, its own exception comes out, not in a group, with a note that
            tells how many there were.

    Cancellation leaves nothing behind, at whichever moment it comes.
    """
    # The policy on exceptions: what the body raised leaves as it is. A task group would wrap it,
    # so it is kept out of the group's sight and raised again when the group has ended. The
    # producer's tasks themselves raise nothing but cancellation.
    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        try:
            producer = await start_send_producer(tasks, settings, driver=driver)
            try:
                yield producer
            except BaseException as error:
                await producer._close_hurriedly()  # pyright: ignore[reportPrivateUsage]
                _note_undelivered(error, producer)
                raise
            await producer.aclose()
        except BaseException as error:  # noqa: BLE001  # raised again below
            failure = error
    if failure is not None:
        raise failure


def _note_undelivered(error: BaseException, producer: SendProducer) -> None:
    errors, count = producer._ledger.undelivered()  # pyright: ignore[reportPrivateUsage]
    if count:
        note = str(UndeliveredRecords(errors, count))
        # BaseException.add_note, which Python 3.10 does not have yet (PEP 678).
        error.__dict__.setdefault("__notes__", []).append(note)
