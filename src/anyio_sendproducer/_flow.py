"""Streams of envelopes: their records are sent, and their results received in the same order.

A task, the *feeder*, takes envelopes from the source and enters their records. Then it appends the
envelope to a bounded queue. The receiver waits for the outcome of the first envelope in the queue.
If the queue is full, the feeder waits, so a slow receiver applies back-pressure to the source. The
queue keeps the results in order; no task is started for an envelope.
"""

# These classes and functions share private state by design.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import collections
import dataclasses
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Generic, TypeVar, cast

import anyio
import anyio.abc
import anyio.lowlevel

from ._admission import wait_for_room
from ._delivery import Delivery, DeliveryState
from ._exceptions import DeliveryError, MultiDeliveryError, SettingsError, copy_of
from ._loops import Loop
from ._records import (
    Envelope,
    Message,
    MultiMessage,
    MultiResult,
    PassThroughMessage,
    PassThroughResult,
    RecordMetadata,
    Result,
    Results,
)
from ._sending import Sender, multi_result_parts
from ._task_groups import plain_task_group
from ._validation import check_count, check_is_envelope

__all__ = ["FlowSummary", "Offsets", "run_flow", "run_sink", "run_transactional_flow"]

T = TypeVar("T")

_LEFT_BY_ANOTHER_TASK: Final = (
    "the block of flow() was left by a different task than the one that entered it; the stream was "
    "closed. Enter and leave the block in the same task"
)
#: How many envelopes are taken from the source before other tasks run.
_ENVELOPES_BETWEEN_YIELDS = 200

Offsets = Callable[[Any], Mapping[tuple[str, int], Any]]
"""A function of an envelope. It returns, by topic and partition, the offsets of the next records
to read when the envelope is done."""


@dataclasses.dataclass(frozen=True, slots=True)
class FlowSummary:
    """The summary of a flow whose envelopes were all delivered."""

    envelopes: int
    """The number of envelopes."""
    records: int
    """The number of their records."""
    last_offsets: Mapping[tuple[str, int], int]
    """The last offset written to each topic and partition, if the brokers reported it."""


class _Slot:
    """An envelope and the deliveries of its records."""

    __slots__ = ("committed", "deliveries", "envelope")

    def __init__(self, envelope: Any) -> None:
        self.envelope = envelope
        self.deliveries: list[Delivery | DeliveryError] = []
        self.committed = True

    async def outcome(self) -> Results[Any, Any, Any]:
        """Wait for the outcome. Cancellation ends only this call; it can be called again."""
        outcomes: list[RecordMetadata | DeliveryError] = []
        if not any(isinstance(place, Delivery) for place in self.deliveries):
            await anyio.lowlevel.checkpoint()
        for place in self.deliveries:
            if isinstance(place, Delivery):
                outcomes.append(await place._sender._outcome_of(place._entry))
            else:
                outcomes.append(place)
        return _result(self.envelope, outcomes)

    @property
    def unawaited(self) -> list[Delivery]:
        """The deliveries without an outcome that no task waits for. Failed deliveries are excluded:
        the ledger reports them."""
        return [
            place
            for place in self.deliveries
            if isinstance(place, Delivery) and not place.done and place._entry.waiter is None
        ]


def _result(
    envelope: Envelope[Any, Any, Any], outcomes: Sequence[RecordMetadata | DeliveryError]
) -> Results[Any, Any, Any]:
    if isinstance(envelope, Message):
        (outcome,) = outcomes
        if isinstance(outcome, DeliveryError):
            raise copy_of(outcome)
        return Result(outcome, envelope)
    if isinstance(envelope, PassThroughMessage):
        return PassThroughResult(envelope.pass_through)
    return MultiResult(
        multi_result_parts(envelope.records, outcomes, envelope.pass_through), envelope.pass_through
    )


class _Flow(anyio.abc.ObjectReceiveStream[T], Generic[T]):
    """The stream of results, and the queue of envelopes behind it."""

    def __init__(self, loop: Loop, limit: int) -> None:
        self._loop = loop
        self._limit = limit
        self._slots: collections.deque[_Slot] = collections.deque()
        #: The slot whose records are being entered.
        self._entering: _Slot | None = None
        self._ended = False
        #: A feeder may wake up after the flow was closed, so it checks this after each wait.
        self.is_closed = False
        self._error: BaseException | None = None
        self._receiver: Any = None
        self._feeder: Any = None
        self._receiving = False

    # --- for the feeder ----------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        return len(self._slots) >= self._limit

    async def enter(self, sender: Sender, slot: _Slot) -> None:
        """Enter the records of an envelope, each as soon as there is room, and append its slot to
        the queue.

        If the flow is closed, this enters no more records.
        """
        self._entering = slot
        envelope: Envelope[Any, Any, Any] = slot.envelope
        records: Sequence[Any] = ()
        if isinstance(envelope, Message):
            records = [envelope.record]
        elif isinstance(envelope, MultiMessage):
            records = envelope.records
        for record in records:
            if self.is_closed:
                break
            try:
                entry = sender._enter(record)
            except DeliveryError as error:
                # The frames in its traceback refer to the slot: a reference cycle.
                slot.deliveries.append(error.with_traceback(None))
                continue
            slot.deliveries.append(Delivery._create(sender, entry))
            if entry.state is DeliveryState.WAITING:
                await wait_for_room(sender._engine, entry)
        self._entering = None
        if not self.is_closed:
            self._slots.append(slot)
            self.wake_receiver()

    def wake_receiver(self) -> None:
        """Wake the receiver, if it waits, because its next result may have arrived."""
        if self._receiver is not None:
            self._loop.wake((self._receiver,))

    async def wait_until_not_full(self) -> None:
        while self.is_full:
            self._feeder = self._loop.new_waiter()
            try:
                await self._feeder
            finally:
                self._feeder = None

    def end(self, error: BaseException | None = None) -> None:
        """End the stream after the results in the queue.

        Args:
            error: the error of the source or of a transaction, to be raised at the end.
        """
        self._ended = True
        self._error = error
        self.wake_receiver()

    def close(self) -> None:
        """Close the stream, and withdraw the records that were not submitted."""
        self.is_closed = True
        slots = [*self._slots]
        if self._entering is not None:
            slots.append(self._entering)
        self._slots.clear()
        unawaited = [delivery for slot in slots for delivery in slot.unawaited]
        to_wake: list[Any] = [delivery._entry.room_waiter for delivery in unawaited]
        if unawaited:
            # All deliveries belong to one producer, though perhaps to different transactions.
            unawaited[0]._sender._cancel(*(delivery._entry for delivery in unawaited))
        # The feeder may be shielded from cancellation, and another task may be receiving.
        to_wake += (self._feeder, self._receiver)
        self._loop.wake(waiter for waiter in to_wake if waiter is not None)

    # --- for the receiver --------------------------------------------------------------------

    async def receive(self) -> T:
        """Wait for the result of the next envelope.

        Raises:
            DeliveryError, MultiDeliveryError: the envelope was not delivered. The next call
                continues with the next envelope.
            TransactionError: the envelope's transaction was not committed. The stream ends.
            anyio.EndOfStream: there are no more envelopes.
            anyio.ClosedResourceError: the stream is closed.
            anyio.BusyResourceError: another task is receiving.
            Exception: the exception of the source.

        Cancellation loses no result: the next call waits for the same envelope.
        """
        if self._receiving:
            raise anyio.BusyResourceError("receiving from")
        self._receiving = True
        try:
            return await self._receive()
        finally:
            self._receiving = False

    async def _receive(self) -> T:
        while not self._slots or not self._slots[0].committed:
            if self.is_closed:
                raise anyio.ClosedResourceError
            if self._ended:
                await anyio.lowlevel.checkpoint()
                if self._error is not None:
                    error, self._error = self._error, None
                    try:
                        raise error
                    finally:
                        del error  # its traceback refers to this frame
                raise anyio.EndOfStream
            self._receiver = self._loop.new_waiter()
            try:
                await self._receiver
            finally:
                self._receiver = None
        slot = self._slots[0]
        try:
            result = await slot.outcome()
        except (DeliveryError, MultiDeliveryError):
            self._advance()
            raise
        self._advance()
        return cast("T", result)

    def _advance(self) -> None:
        # close() may have cleared the queue while this task waited for the outcome.
        if self._slots:
            self._slots.popleft()
        if self._feeder is not None:
            self._loop.wake((self._feeder,))

    async def aclose(self) -> None:
        """Close the stream. For envelopes that were not received, this has the effect of a
        cancelled ``send``: records that the client does not have are withdrawn."""
        self.close()
        await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def _closing_iterator(source: AsyncIterable[T]) -> AsyncGenerator[AsyncIterator[T]]:
    """Make an iterator, and close it at the end of the block if it is an async generator.

    Otherwise a generator that is not read to its end would stay open until it is garbage-collected.
    """
    iterator = aiter(source)
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


async def _feed(flow: _Flow[Any], sender: Sender, source: AsyncIterable[Any]) -> None:
    try:
        taken = 0
        async with _closing_iterator(source) as envelopes:
            async for envelope in envelopes:
                check_is_envelope(envelope)
                if flow.is_full:
                    with sender._engine.hurrying():
                        await flow.wait_until_not_full()
                await flow.enter(sender, _Slot(envelope))
                taken += 1
                if taken % _ENVELOPES_BETWEEN_YIELDS == 0:
                    await anyio.lowlevel.checkpoint()
                if flow.is_closed:
                    break
    except Exception as error:  # noqa: BLE001  # receive() raises it
        flow.end(error)
    else:
        flow.end()


@asynccontextmanager
async def _running(
    flow: _Flow[Any], *feeders: Callable[[], Any]
) -> AsyncGenerator[anyio.abc.ObjectReceiveStream[Any]]:
    scopes = [anyio.CancelScope() for _ in feeders]

    async def run(feeder: Callable[[], Any], scope: anyio.CancelScope) -> None:
        with scope:
            await feeder()

    # The feeders raise only cancellation.
    async with plain_task_group(_LEFT_BY_ANOTHER_TASK) as tasks:
        try:
            for feeder, scope in zip(feeders, scopes, strict=True):
                tasks.start_soon(run, feeder, scope)
            yield flow
        finally:
            # The group's own scope is not cancelled: if the task that entered the block has ended,
            # AnyIO would try forever to cancel that task.
            for scope in scopes:
                scope.cancel()
            flow.close()


def _limit(given: int | None, default: int) -> int:
    limit = default if given is None else given
    check_count("max_in_flight", limit)
    return limit


def run_flow(
    sender: Sender, loop: Loop, source: AsyncIterable[Any], max_in_flight: int | None, default: int
) -> AbstractAsyncContextManager[anyio.abc.ObjectReceiveStream[Any]]:
    """See :meth:`SendProducer.flow`."""
    flow: _Flow[Any] = _Flow(loop, _limit(max_in_flight, default))

    async def feed() -> None:
        await _feed(flow, sender, source)

    return _running(flow, feed)


# --- in transactions -----------------------------------------------------------------------------


def run_transactional_flow(
    begin: Callable[[], AbstractAsyncContextManager[Any]],
    loop: Loop,
    source: AsyncIterable[Any],
    *,
    limit: int,
    max_in_flight: int | None,
    interval: float,
    offsets: Offsets | None,
    group_metadata: Any,
) -> AbstractAsyncContextManager[anyio.abc.ObjectReceiveStream[Any]]:
    """See :meth:`SendProducer.flow`. Results are received when their transaction is committed."""
    if (offsets is None) != (group_metadata is None):
        raise SettingsError("flow: offsets and group_metadata must be given together")
    flow: _Flow[Any] = _Flow(loop, _limit(max_in_flight, limit))
    # The commit interval must not cancel the iteration of the source, because cancelling an async
    # generator ends it. So one task reads the source, and another task, with the timeout, receives
    # from a stream.
    to_commit_send, to_commit = anyio.create_memory_object_stream[Any]()
    failed: list[Exception] = []

    async def read() -> None:
        with to_commit_send:
            try:
                async with _closing_iterator(source) as envelopes:
                    async for envelope in envelopes:
                        check_is_envelope(envelope)
                        await flow.wait_until_not_full()
                        await to_commit_send.send(envelope)
                        if flow.is_closed:
                            break
            except Exception as error:  # noqa: BLE001  # receive() raises it
                # If a transaction failed, commit_each() has closed `to_commit`, and this error only
                # reports the closed stream. The flow has ended with the transaction's error.
                failed.append(error)

    async def commit_each() -> None:
        try:
            with to_commit:
                async for envelope in to_commit:
                    await commit_some(envelope)
        except Exception as error:  # noqa: BLE001  # as above
            flow.end(error)
        else:
            flow.end(failed.pop() if failed else None)

    async def commit_some(envelope: Any) -> None:
        """Send this envelope, and those that follow within the interval, in one transaction."""
        slots: list[_Slot] = []
        async with begin() as tx:
            with anyio.move_on_after(interval):
                while True:
                    slot = _Slot(envelope)
                    slot.committed = False
                    slots.append(slot)
                    with anyio.CancelScope(shield=True):
                        # The interval may end between two envelopes, but not within one.
                        await flow.enter(tx, slot)
                    if flow.is_closed or flow.is_full:
                        break
                    try:
                        envelope = await to_commit.receive()
                    except anyio.EndOfStream:
                        break
            if flow.is_closed:
                # Abort the transaction, because its results will not be received.
                raise anyio.ClosedResourceError
            if offsets is not None:
                read_so_far: dict[tuple[str, int], Any] = {}
                for slot in slots:
                    read_so_far.update(offsets(slot.envelope))
                await tx.send_offsets(read_so_far, group_metadata)
        for slot in slots:
            slot.committed = True
        flow.wake_receiver()

    return _running(flow, read, commit_each)


async def run_sink(
    running: AbstractAsyncContextManager[anyio.abc.ObjectReceiveStream[Any]],
) -> FlowSummary:
    """See :meth:`SendProducer.sink`."""
    envelopes = records = 0
    last: dict[tuple[str, int], int] = {}
    async with running as results:
        async for result in results:
            envelopes += 1
            if isinstance(result, PassThroughResult):
                continue
            places = (
                [result.metadata]
                if isinstance(result, Result)
                else [part.metadata for part in result.parts]
            )
            records += len(places)
            for place in places:
                if place.offset is not None:
                    last[place.topic, place.partition] = place.offset
    return FlowSummary(envelopes, records, last)
