"""The stream of results of a flow, and the queue of envelopes behind it.

The feeder (see ``_flow.py``) enters records and appends their envelopes to the queue. The receiver
takes the results from its other end. Both work in chunks: a receiver that waits is woken by the
outcome of the first envelope, and then takes all results that are ready. A feeder that waits for a
place in the queue is woken by the first result that is taken, and runs when the receiver waits or
lets other tasks run.
"""

# These classes and functions share private state by design.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import collections
from collections.abc import AsyncIterator, Sequence
from functools import partial
from threading import get_ident
from typing import Any, Final, Generic, TypeVar, cast

import anyio
import anyio.abc
import anyio.lowlevel

from ._admission import cancel_entries, wait_for_room
from ._delivery import DeliveryState, Entry
from ._engine import Engine
from ._exceptions import DeliveryError, copy_of
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
from ._validation import check_is_envelope

__all__ = ["FlowStream"]

T = TypeVar("T")

#: How many envelopes are taken from the source before other tasks run.
_ENVELOPES_BETWEEN_YIELDS: Final = 100
#: After so many results in a row, the receiver lets other tasks run. Then a feeder that waited for
#: a place finds that many places. With a smaller number, it would run more often, and take fewer
#: envelopes each time.
_RESULTS_PER_YIELD: Final = 100
# A global is read faster than an attribute of the enum's class; this is read for each record.
_WAITING: Final = DeliveryState.WAITING

# A record of an envelope: its entry, or its error if it was not entered.
_Part = Entry | DeliveryError
# An envelope in the queue, and its records. If enter_all() has entered the record of a Message, the
# slot is the entry, which refers to the envelope, so no further object is needed. Every other slot
# is a tuple.
_Slot = Entry | tuple[Any, list[_Part]]


def _parts(slot: _Slot) -> Sequence[_Part]:
    return (slot,) if isinstance(slot, Entry) else slot[1]


def _pending(slot: _Slot) -> Entry | None:
    """Return the last entry of the slot that has no outcome, or None if each has one. Usually the
    last entry is settled last."""
    for part in reversed(_parts(slot)):
        if isinstance(part, Entry) and part.outcome is None:
            return part
    return None


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


class FlowStream(anyio.abc.ObjectReceiveStream[T], Generic[T]):
    """The stream of results, and the queue of envelopes behind it.

    Args:
        engine: the producer's engine.
        limit: how many envelopes may have a result that was not received yet.
    """

    def __init__(self, engine: Engine, limit: int) -> None:
        self._engine = engine
        self._loop = engine.loop
        self._limit = limit
        self._slots: collections.deque[_Slot] = collections.deque()
        #: The slots that follow those of ``_slots``. Their transaction is not committed yet.
        self._uncommitted: list[_Slot] = []
        #: The scopes of the feeders, which :meth:`close` cancels.
        self.feeder_scopes: list[anyio.CancelScope] = []
        #: The slot whose records are being entered.
        self._entering: _Slot | None = None
        self._ended = False
        #: A feeder may wake up after the flow was closed, so it checks this after each wait.
        self.is_closed = False
        self._error: BaseException | None = None
        #: The waiter of the task that receives, and the entry that wakes it.
        self._receiver: Any = None
        self._watched: Entry | None = None
        self._feeder: Any = None
        self._receiving = False
        #: How many results may still be received before other tasks run.
        self._until_yield = 0

    # --- for the feeder ----------------------------------------------------------------------

    @property
    def places(self) -> int:
        """How many more envelopes the queue may take."""
        return self._limit - len(self._slots) - len(self._uncommitted)

    @property
    def is_full(self) -> bool:
        return self.places <= 0

    async def enter_all(self, sender: Sender, envelopes: AsyncIterator[Any]) -> None:
        """Enter the records of envelopes, until there are no more or the flow is closed.

        Args:
            sender: the producer or the transaction.
            envelopes: the source.

        Raises:
            TypeError: the source returned something that is not an envelope of records.
            Exception: the exception of the source, or of a producer or transaction that does not
                accept records.
        """
        enter = sender._enter
        # How many envelopes to enter before the next check for places, and before other tasks run.
        left = min(_ENVELOPES_BETWEEN_YIELDS, self.places)
        async for envelope in envelopes:
            # While the source was making this envelope. (mypy would narrow the attribute.)
            was_closed = self.is_closed
            if was_closed:
                return
            if not left:
                if self.is_full:
                    with self._engine.hurrying():
                        await self.wait_until_not_full()
                else:
                    await anyio.lowlevel.checkpoint()
                if self.is_closed:
                    return
                left = min(_ENVELOPES_BETWEEN_YIELDS, self.places)
            left -= 1
            if type(envelope) is Message:
                # enter(), written out: this runs for each envelope.
                try:
                    entry = enter(envelope.record)
                except DeliveryError as error:
                    # The frames in its traceback refer to the slot: a reference cycle.
                    self._slots.append((envelope, [error.with_traceback(None)]))
                else:
                    entry.envelope = envelope
                    if entry.state is _WAITING:
                        self._entering = entry
                        await wait_for_room(self._engine, entry)
                        self._entering = None
                        if self.is_closed:
                            return
                    self._slots.append(entry)
                if self._receiver is not None and self._watched is None:
                    self._watch_first()
            else:
                check_is_envelope(envelope)
                await self.enter(sender, envelope)
                if self.is_closed:
                    return

    async def enter(
        self, sender: Sender, envelope: Envelope[Any, Any, Any], *, committed: bool = True
    ) -> None:
        """Enter the records of an envelope, each as soon as there is room, and append its slot to
        the queue.

        If the flow is closed, this enters no more records.

        Args:
            sender: the producer or the transaction.
            envelope: the envelope.
            committed: whether the result may be received before :meth:`commit` is called.
        """
        parts: list[_Part] = []
        slot: _Slot = (envelope, parts)
        self._entering = slot
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
                parts.append(error.with_traceback(None))  # as in enter_all()
                continue
            parts.append(entry)
            if entry.state is _WAITING:
                await wait_for_room(self._engine, entry)
        self._entered(slot, committed=committed)

    def _entered(self, slot: _Slot, *, committed: bool = True) -> None:
        self._entering = None
        if self.is_closed:
            return
        if not committed:
            self._uncommitted.append(slot)
            return
        self._slots.append(slot)
        if self._receiver is not None and self._watched is None:
            self._watch_first()

    def commit(self) -> None:
        """Let the results of the uncommitted envelopes be received."""
        self._slots += self._uncommitted
        self._uncommitted.clear()
        self._wake_receiver()

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
        self._wake_receiver()

    def close(self) -> None:
        """Close the stream, cancel the feeders, and withdraw the records that were not submitted.

        If another task is receiving, it still gets the result that it waits for.
        """
        self.is_closed = True
        for scope in self.feeder_scopes:
            scope.cancel()
        kept = [self._slots.popleft()] if self._receiving and self._slots else []
        slots = [*self._slots, *self._uncommitted]
        if self._entering is not None:
            slots.append(self._entering)
        self._slots = collections.deque(kept)
        self._uncommitted.clear()
        entries = [
            part
            for slot in slots
            for part in _parts(slot)
            # Nobody has seen the entries that failed. They stay in the ledger, which reports them
            # as unawaited.
            if isinstance(part, Entry) and part.outcome is None
        ]
        to_wake: list[Any] = [entry.room_waiter for entry in entries]
        cancel_entries(self._engine, *entries)
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
            anyio.ClosedResourceError: the stream is closed; or the scope around the block was
                cancelled, and the call is shielded from that.
            anyio.BusyResourceError: another task is receiving.
            ProducerMisused: as for :meth:`SendProducer.send`.
            Exception: the exception of the source, or of a producer or transaction that does not
                accept records. The stream ends.

        If the result is ready, the call returns it without letting other tasks run, and without
        checking for cancellation. Only every hundredth such call does both.

        Cancellation loses no result: the next call waits for the same envelope.
        """
        result = self._take_ready()
        return await self._receive() if result is None else result

    async def __anext__(self) -> T:
        result = self._take_ready()
        if result is not None:
            return result
        try:
            return await self._receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    def _take_ready(self) -> T | None:
        """Take the next result, if it is a Message's and ready. None: call :meth:`_receive`."""
        self._until_yield -= 1
        if (
            self._until_yield < 0
            or not self._slots
            or self._receiving
            or self._engine.affinity.thread != get_ident()
        ):
            return None
        entry = self._slots[0]
        if type(entry) is not Entry or type(entry.outcome) is not RecordMetadata:
            return None
        self._slots.popleft()
        if self._feeder is not None:
            self._wake_feeder()
        return cast("T", Result(entry.outcome, entry.envelope))

    def take_delivered(self) -> list[RecordMetadata]:
        """Take the results of Messages that are ready, up to the next yield; only the metadata.

        Call this method directly after :meth:`receive`, which has woken the feeder, or before the
        first call of :meth:`receive`. This method does not wake the feeder.
        """
        taken: list[RecordMetadata] = []
        slots = self._slots
        for _ in range(min(self._until_yield, len(slots))):
            entry = slots[0]
            if type(entry) is not Entry or type(entry.outcome) is not RecordMetadata:
                break
            taken.append(entry.outcome)
            slots.popleft()
        self._until_yield -= len(taken)
        return taken

    async def _receive(self) -> T:
        if self._receiving:
            raise anyio.BusyResourceError("receiving from")
        if self._engine.affinity.thread != get_ident():
            self._engine.affinity.check()
        self._receiving = True
        try:
            if self._until_yield < 0:
                await anyio.lowlevel.checkpoint()
                self._until_yield = _RESULTS_PER_YIELD - 1
            await self._wait_for_first()
            if self._slots:
                return self._take_first()
            await anyio.lowlevel.checkpoint()
            if self._error is not None:
                error, self._error = self._error, None
                try:
                    raise error
                finally:
                    del error  # its traceback refers to this frame
            raise anyio.EndOfStream
        finally:
            self._receiving = False
            if self.is_closed:
                self._slots.clear()

    async def _wait_for_first(self) -> None:
        """Wait for the outcomes of the first envelope, or until the stream has ended."""
        while True:
            if self._slots:
                if _pending(self._slots[0]) is None:
                    return
            elif self.is_closed:
                raise anyio.ClosedResourceError
            elif self._ended:
                return
            waiter = self._receiver = self._loop.new_waiter()
            if self._slots:
                self._watch_first()
            try:
                await waiter
            except BaseException as error:
                self._engine.run_or_schedule(partial(self._stop_watching, self._watched, waiter))
                if not isinstance(error, GeneratorExit):
                    self._engine.affinity.check()
                raise
            finally:
                self._receiver = self._watched = None

    def _watch_first(self) -> None:
        """Have the receiver woken when the last pending record of the first envelope has its
        outcome."""
        with self._engine.step:
            entry = _pending(self._slots[0])
            if entry is None:
                self._wake_receiver()
            else:
                self._watched = entry
                entry.waiter = self._receiver

    def _stop_watching(self, entry: Entry | None, waiter: object) -> None:
        if entry is not None and entry.waiter is waiter:
            self._engine.ledger.drop_waiter(entry)

    def _take_first(self) -> T:
        slot = self._slots.popleft()
        if self._feeder is not None:
            self._wake_feeder()
        outcomes: list[RecordMetadata | DeliveryError] = []
        with self._engine.step:
            for part in _parts(slot):
                if isinstance(part, Entry):
                    self._engine.ledger.mark_seen(part)
                    outcomes.append(cast("RecordMetadata | DeliveryError", part.outcome))
                else:
                    outcomes.append(part)
        envelope = slot.envelope if isinstance(slot, Entry) else slot[0]
        return cast("T", _result(envelope, outcomes))

    def _wake_receiver(self) -> None:
        if self._receiver is not None:
            self._loop.wake((self._receiver,))

    def _wake_feeder(self) -> None:
        self._loop.wake((self._feeder,))
        self._feeder = None

    async def aclose(self) -> None:
        """Close the stream. For envelopes that were not received, this has the effect of a
        cancelled ``send``: records that the client does not have are withdrawn."""
        self.close()
        await anyio.lowlevel.checkpoint()
