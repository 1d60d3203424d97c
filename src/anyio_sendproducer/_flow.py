"""Streams: envelopes in, their results out, in the same order.

A *feeder* takes envelopes from the source and gives their records to the producer; whoever receives
awaits the outcome of the oldest. Between the two stands a line of so many envelopes at most, so
that who does not receive holds up the source. Nothing but the order of the line makes the order of
the results: no task is started for an envelope.
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

from ._delivery import DeliveryState
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
from ._sending import Delivery, Sender, multi_result_parts
from ._task_groups import plain_task_group
from ._validation import check_count, check_is_envelope

__all__ = ["FlowSummary", "Offsets", "run_flow", "run_sink", "run_transactional_flow"]

T = TypeVar("T")

_LEFT_IN_ANOTHER_TASK: Final = (
    "another task left the block of flow() than the one that entered it; the stream was closed. "
    "Enter and leave the block in the same task"
)
#: Envelopes taken in one go before other tasks get their turn.
_AT_ONCE = 200

Offsets = Callable[[Any], Mapping[tuple[str, int], Any]]
"""Tells what is read of a source when an envelope is done: offsets by topic and partition."""


@dataclasses.dataclass(frozen=True, slots=True)
class FlowSummary:
    """What came of a whole source."""

    envelopes: int
    """How many envelopes there were."""
    records: int
    """How many records they held, each of which was delivered."""
    last_offsets: Mapping[tuple[str, int], int]
    """The last offset of each topic and partition that was written to, where brokers told."""


class _Slot:
    """An envelope in the line, and what is known of its records."""

    __slots__ = ("committed", "envelope", "places")

    def __init__(self, envelope: Any) -> None:
        self.envelope = envelope
        self.places: list[Delivery | DeliveryError] = []
        self.committed = True

    async def outcome(self) -> Results[Any, Any, Any]:
        """Wait for the outcome. After a cancellation it can be called again."""
        outcomes: list[RecordMetadata | DeliveryError] = []
        if not any(isinstance(place, Delivery) for place in self.places):
            await anyio.lowlevel.checkpoint()
        for place in self.places:
            if isinstance(place, Delivery):
                outcomes.append(await place._producer._outcome_of(place._entry))
            else:
                outcomes.append(place)
        return _result(self.envelope, outcomes)

    @property
    def unawaited(self) -> list[Delivery]:
        """The records without an outcome that no task waits for. A failure that nobody has seen
        counts as such already."""
        return [
            place
            for place in self.places
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
    """The results, for whoever receives them."""

    def __init__(self, loop: Loop, limit: int) -> None:
        self._loop = loop
        self._limit = limit
        self._line: collections.deque[_Slot] = collections.deque()
        #: The envelope whose records are being entered.
        self._entering: _Slot | None = None
        self._ended = False
        #: A feeder that was woken before runs on after that: it checks this after each wait.
        self.is_closed = False
        self._error: BaseException | None = None
        self._receiver: Any = None
        self._feeder: Any = None
        self._receiving = False

    # --- for the feeder ----------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        return len(self._line) >= self._limit

    async def enter(self, sender: Sender, slot: _Slot) -> None:
        """Enter an envelope's records, in order, as room becomes free, and append it to the line.

        Enters nothing more once the flow is closed.
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
                # The frames in its traceback hold the slot: a reference cycle.
                slot.places.append(error.with_traceback(None))
                continue
            slot.places.append(Delivery._create(sender, entry))
            if entry.state is DeliveryState.WAITING:
                await sender._wait_for_room(entry)
        self._entering = None
        if not self.is_closed:
            self._line.append(slot)
            self.changed()

    def changed(self) -> None:
        """There may be something to receive."""
        if self._receiver is not None:
            self._loop.wake((self._receiver,))

    async def until_not_full(self) -> None:
        while self.is_full:
            self._feeder = self._loop.new_waiter()
            try:
                await self._feeder
            finally:
                self._feeder = None

    def end(self, error: BaseException | None = None) -> None:
        """There are no more; ``error`` is why, where the source or a transaction failed."""
        self._ended = True
        self._error = error
        self.changed()

    def withdraw(self) -> None:
        """Close: nobody receives any more. Records that were not submitted are withdrawn."""
        self.is_closed = True
        slots = [*self._line]
        if self._entering is not None:
            slots.append(self._entering)
        self._line.clear()
        unawaited = [place for slot in slots for place in slot.unawaited]
        woken: list[Any] = [place._entry.room_waiter for place in unawaited]
        if unawaited:
            # All belong to one producer, if perhaps to different transactions.
            unawaited[0]._producer._cancel(*(place._entry for place in unawaited))
        # A feeder that a shield protects, and other tasks that receive.
        woken += (self._feeder, self._receiver)
        self._loop.wake(waiter for waiter in woken if waiter is not None)

    # --- for the receiver --------------------------------------------------------------------

    async def receive(self) -> T:
        """The result of the next envelope.

        Raises:
            DeliveryError, MultiDeliveryError: it was not delivered. The next call goes on with the
                next envelope.
            TransactionError: the transaction that it was a part of was not committed; nothing
                follows.
            anyio.EndOfStream: there is none.
            Exception: what the source raised, when all before it was received.

        Cancellation loses nothing: the next call waits for the same envelope.
        """
        if self._receiving:
            raise anyio.BusyResourceError("receiving from")
        self._receiving = True
        try:
            return await self._receive()
        finally:
            self._receiving = False

    async def _receive(self) -> T:
        while not self._line or not self._line[0].committed:
            if self.is_closed:
                raise anyio.ClosedResourceError
            if self._ended:
                await anyio.lowlevel.checkpoint()
                if self._error is not None:
                    error, self._error = self._error, None
                    try:
                        raise error
                    finally:
                        del error  # it knows this frame
                raise anyio.EndOfStream
            self._receiver = self._loop.new_waiter()
            try:
                await self._receiver
            finally:
                self._receiver = None
        slot = self._line[0]
        try:
            result = await slot.outcome()
        except (DeliveryError, MultiDeliveryError):
            self._next()
            raise
        self._next()
        return cast("T", result)

    def _next(self) -> None:
        # Leaving the block may have emptied it.
        if self._line:
            self._line.popleft()
        if self._feeder is not None:
            self._loop.wake((self._feeder,))

    async def aclose(self) -> None:
        """Receive no more; what was not received is as if its ``send`` had been cancelled."""
        self.withdraw()
        await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def _iterating(source: AsyncIterable[T]) -> AsyncGenerator[AsyncIterator[T]]:
    """Iterate, and end a generator where it is not read to its end: nobody else would, in time."""
    iterator = aiter(source)
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()


async def _feed(flow: _Flow[Any], sender: Sender, source: AsyncIterable[Any]) -> None:
    try:
        taken = 0
        async with _iterating(source) as envelopes:
            async for envelope in envelopes:
                check_is_envelope(envelope)
                if flow.is_full:
                    with sender._engine.hurrying():
                        await flow.until_not_full()
                await flow.enter(sender, _Slot(envelope))
                taken += 1
                if taken % _AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()
                if flow.is_closed:
                    break
    except Exception as error:  # noqa: BLE001  # raised again where it is received
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

    # The feeders raise nothing.
    async with plain_task_group(_LEFT_IN_ANOTHER_TASK) as tasks:
        try:
            for feeder, scope in zip(feeders, scopes, strict=True):
                tasks.start_soon(run, feeder, scope)
            yield flow
        finally:
            # Not the scope of the group: if the task that entered the block has ended, AnyIO tries
            # for ever to cancel that task.
            for scope in scopes:
                scope.cancel()
            flow.withdraw()


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
    """See :meth:`SendProducer.flow`; a result is there when its transaction is committed."""
    if (offsets is None) != (group_metadata is None):
        raise SettingsError("flow: offsets and group_metadata are given together, or neither is")
    flow: _Flow[Any] = _Flow(loop, _limit(max_in_flight, limit))
    # A source need not bear to be cancelled in the middle, as an async generator does not: it is
    # read by a task that is not, while the other one looks at the clock.
    give, take = anyio.create_memory_object_stream[Any]()
    failed: list[Exception] = []

    async def read() -> None:
        with give:
            try:
                async with _iterating(source) as envelopes:
                    async for envelope in envelopes:
                        check_is_envelope(envelope)
                        await flow.until_not_full()
                        await give.send(envelope)
                        if flow.is_closed:
                            break
            except Exception as error:  # noqa: BLE001  # raised again where it is received
                # It may also be that `take` is closed, because a transaction failed. Then the
                # flow has ended already, with that failure.
                failed.append(error)

    async def commit_each() -> None:
        try:
            with take:
                async for envelope in take:
                    await commit_some(envelope)
        except Exception as error:  # noqa: BLE001  # as above
            flow.end(error)
        else:
            flow.end(failed.pop() if failed else None)

    async def commit_some(envelope: Any) -> None:
        """One transaction: this envelope, and what follows it within the interval."""
        slots: list[_Slot] = []
        async with begin() as tx:
            with anyio.move_on_after(interval):
                while True:
                    slot = _Slot(envelope)
                    slot.committed = False
                    slots.append(slot)
                    with anyio.CancelScope(shield=True):
                        # All of an envelope, or nothing: it is cut off between two of them.
                        await flow.enter(tx, slot)
                    if flow.is_closed or flow.is_full:
                        break
                    try:
                        envelope = await take.receive()
                    except anyio.EndOfStream:
                        break
            if flow.is_closed:
                raise anyio.ClosedResourceError  # aborts: nobody will receive these results
            if offsets is not None:
                read_so_far: dict[tuple[str, int], Any] = {}
                for slot in slots:
                    read_so_far.update(offsets(slot.envelope))
                await tx.send_offsets(read_so_far, group_metadata)
        for slot in slots:
            slot.committed = True
        flow.changed()

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
