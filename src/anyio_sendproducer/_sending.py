"""The sending API that producers and transactions share.

It runs on the caller's task. A :class:`Sender` enters records in the ledger and waits for their
outcomes. It does not advance the ledger; the pump does.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import partial
from threading import get_ident
from typing import Any, ClassVar, TypeVar, cast, overload

import anyio
import anyio.lowlevel

from ._admission import AdmissionLike
from ._delivery import DeliveryState, Entry, Group
from ._engine import Engine
from ._exceptions import (
    DeliveryError,
    MultiDeliveryError,
    ProducerBroken,
    ProducerClosed,
    RecordRejected,
    copy_of,
)
from ._failures import not_sent, not_tried
from ._loops import WaiterList
from ._no_public_constructor import NoPublicConstructor
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
)
from ._validation import check_is_record, not_an_envelope

__all__ = ["Delivery", "Sender", "parts_of"]

K = TypeVar("K")
V = TypeVar("V")
P = TypeVar("P")

#: Records entered in one go before other tasks get their turn: about a millisecond's work.
_ENTERED_AT_ONCE = 500

#: Calls in a row that need not wait, until other tasks get their turn: about a tenth of a
#: millisecond's work. A turn of the loop costs several times as much as such a call.
_CALLS_IN_A_ROW = 16

#: How many calls pass until one looks for cancellation, as a number of random bits: 64 calls on
#: average, 128 at most. AnyIO does not cancel an asyncio task whose future is done, but tries again
#: in each turn of the loop. Against a driver that answers within one turn each attempt finds the
#: future done, so the calls themselves must look. To look costs a tenth of a call. The number is
#: random because tasks that take turns could otherwise divide it: always the same task would look.
_BITS_BETWEEN_LOOKS = 7
_random_bits = random.Random().getrandbits  # noqa: S311  # not for cryptography


class Delivery(NoPublicConstructor):
    """A record that was accepted, and the way to its outcome.

    Made by :meth:`SendProducer.enqueue` and :meth:`SendProducer.enqueue_nowait`. A delivery that
    nobody awaits is fine as long as the record is delivered; a failure nobody awaited is raised
    as :class:`UndeliveredRecords` when the producer is closed.
    """

    __slots__ = ("_entry", "_producer")

    _entry: Entry
    _producer: Sender

    _how_to_make: ClassVar[str] = (
        "a Delivery is made by SendProducer.enqueue() and enqueue_nowait()"
    )

    @classmethod
    def _create(cls, producer: Sender, entry: Entry) -> Delivery:
        delivery = object.__new__(cls)
        delivery._producer = producer
        delivery._entry = entry
        return delivery

    def __repr__(self) -> str:
        return f"<Delivery {self._entry.state.value} topic={self._entry.record.topic!r}>"

    @property
    def record(self) -> ProducerRecord[Any, Any]:
        """The record."""
        return self._entry.callers_record

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
        outcome = await self._producer._outcome_of(self._entry)  # pyright: ignore[reportPrivateUsage]
        if type(outcome) is RecordMetadata:
            return outcome
        raise copy_of(cast("DeliveryError", outcome))


class Sender:
    """The methods that a producer and a transaction have in common.

    A subclass makes instances by ``__new__`` and :meth:`_begin`.
    """

    def _begin(self, engine: Engine, admission: AdmissionLike) -> None:
        self._engine = engine
        # These are looked up for each record.
        self._enter = admission.enter
        self._enter_several = admission.enter_several
        self._loop = engine.loop
        self._ledger = engine.ledger
        self._park = engine.loop.park
        self._affinity = engine.affinity
        self._calls_in_a_row = 0
        # Counted down to 0 from 1. On a loop whose tasks need not look it starts from 0, and never
        # is 0 again.
        self._calls_until_look = 1 if engine.loop.spares_done_waiters else 0

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
        ``statistics().abandoned`` counts it. Records of others are never touched. A call in a scope
        that is cancelled already may do either; :meth:`enqueue` always looks first. A task that
        sends in a loop is cancelled after a few records, however fast the answers come.
        """
        # Half of the check: to ask asyncio for its loop is a system call on Python 3.11. Another
        # loop in this very thread can't await the waiter, and then the other half says why.
        if self._affinity.thread != get_ident():
            self._affinity.check()
        self._calls_until_look -= 1
        if not self._calls_until_look:
            await self._look_for_cancellation()
        entry = self._enter(record)
        try:
            await self._park(entry)
        except GeneratorExit:
            self._cancel(entry)
            raise
        except BaseException:
            self._cancel(entry)
            self._affinity.check()
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
            parts = parts_of(records, outcomes, envelope.pass_through)
            return MultiResult(parts, envelope.pass_through)
        if isinstance(cast("object", envelope), PassThroughMessage):
            await anyio.lowlevel.checkpoint()
            return PassThroughResult(envelope.pass_through)
        raise not_an_envelope(envelope)

    async def send_many(
        self, records: Iterable[ProducerRecord[Any, Any]], *, stop_on_error: bool = False
    ) -> list[RecordMetadata]:
        """Send records and wait once, for all of them.

        Args:
            records: what to send, in this order. They take their places in line one by one, as
                room becomes free, so that a long list does not shut others out.
            stop_on_error: give no more of them to the client once one is known to have failed.
                Those that were not given to it fail as ``NOT_PERSISTED``. It does not wait for one
                outcome before the next record: what the client has by then goes on.

        Returns:
            Where each was written, in the order of ``records``; an empty list for none.

        Raises:
            MultiDeliveryError: at least one was not delivered. Every record was tried, but for
                ``stop_on_error``, and the fate of each is in ``parts``.
            ProducerClosed, ProducerBroken: before the first record was accepted.
            ProducerMisused: as :meth:`send`.
            TypeError: one of them is no ProducerRecord; none was sent.

        Cancellation: as with :meth:`send`, for each record on its own.
        """
        all_records = tuple(records)
        outcomes = await self._send_group(all_records, stops=stop_on_error)
        if any(isinstance(outcome, DeliveryError) for outcome in outcomes):
            parts_of(all_records, outcomes, None)  # raises
        return cast("list[RecordMetadata]", outcomes)

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

        Each call looks for cancellation. Where there is room, other tasks get their turn after
        sixteen calls at the latest, and not with each, which would cost more than all else.

        Cancellation: the record is withdrawn and never written. (asyncio's own ``task.cancel()``
        can come in the very step in which room was granted: then it goes on, abandoned.)
        """
        self._affinity.check()
        await anyio.lowlevel.checkpoint_if_cancelled()
        entry = self._enter(record)
        if entry.state is DeliveryState.WAITING:
            await self._wait_for_room(entry)
            if isinstance(entry.outcome, DeliveryError):
                with self._engine.step:
                    self._ledger.saw(entry)
                try:
                    raise entry.outcome
                finally:
                    del entry, record  # as in send()
        elif self._is_others_turn():
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
                :meth:`enqueue`. Called by a finalizer or a signal handler, it may also raise
                ProducerMisused because that interrupts the producer's own code; nothing was
                accepted then.
        """
        self._affinity.check()
        try:
            entry = self._enter(record, wait=False)
        except anyio.WouldBlock:
            self._engine.moved(())  # there is room sooner if the client holds nothing back
            raise
        return Delivery._create(self, entry)  # pyright: ignore[reportPrivateUsage]

    # --- on the caller's task ----------------------------------------------------------------

    def _is_others_turn(self) -> bool:
        """Whether calls that need not wait have gone on for long enough."""
        self._calls_in_a_row += 1
        return self._calls_in_a_row % _CALLS_IN_A_ROW == 0

    async def _look_for_cancellation(self) -> None:
        """Raise the cancellation of the calling task, if any, and draw the next call that looks.

        If the task is cancelled, the next call looks too: a task group cancels all its tasks.
        """
        self._calls_until_look = 1
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._calls_until_look = 1 + _random_bits(_BITS_BETWEEN_LOOKS)

    def _cancel(self, *entries: Entry) -> None:
        """Give up these records, and then wake the callers for whom room became free."""
        self._engine.now_or_soon(partial(self._cancel_now, entries))

    def _cancel_now(self, entries: Iterable[Entry]) -> None:
        woken: list[object] = []
        for entry in entries:
            woken += self._ledger.cancel(entry)
        self._engine.moved(woken)

    async def _wait_for_room(self, entry: Entry) -> None:
        waiter = entry.room_waiter = self._loop.new_waiter()
        try:
            await waiter
        except BaseException:
            self._cancel(entry)
            raise

    async def _outcome_of(self, entry: Entry) -> RecordMetadata | DeliveryError:
        """Wait for an accepted record's outcome. Others may get the same error: raise a copy."""
        if self._affinity.thread != get_ident():  # half of the check, as in send()
            self._affinity.check()
        if entry.outcome is not None:
            if self._is_others_turn():
                await anyio.lowlevel.checkpoint()
            else:
                await anyio.lowlevel.checkpoint_if_cancelled()
        else:
            self._calls_until_look -= 1
            if not self._calls_until_look:
                await self._look_for_cancellation()
            waiter = self._loop.new_waiter()
            with self._engine.step:
                waiters = cast("WaiterList | None", entry.waiter)
                if waiters is None:
                    waiters = entry.waiter = WaiterList()
                waiters.append(waiter)
            try:
                await waiter
            except BaseException as error:
                self._engine.now_or_soon(partial(self._stop_waiting, entry, waiters, waiter))
                if not isinstance(error, GeneratorExit):
                    self._affinity.check()
                raise
        with self._engine.step:
            self._ledger.saw(entry)
        return cast("RecordMetadata | DeliveryError", entry.outcome)

    def _stop_waiting(self, entry: Entry, waiters: WaiterList, waiter: object) -> None:
        waiters.remove(waiter)
        if not waiters:
            self._ledger.unwatch(entry)

    async def _send_group(
        self, records: Sequence[ProducerRecord[Any, Any]], *, stops: bool = False
    ) -> list[RecordMetadata | DeliveryError]:
        """Send records of one call, and wait for all outcomes."""
        for record in records:
            check_is_record(record)
        observation = self._engine.observation
        if observation is None or not records:
            return await self._send_checked_group(records, stops=stops)
        return await observation.observe_call(
            records, partial(self._send_checked_group, records, stops=stops)
        )

    async def _send_checked_group(
        self, records: Sequence[ProducerRecord[Any, Any]], *, stops: bool
    ) -> list[RecordMetadata | DeliveryError]:
        self._affinity.check()
        if not records:
            await anyio.lowlevel.checkpoint()
            return []
        await anyio.lowlevel.checkpoint_if_cancelled()
        waiter = self._loop.new_waiter()
        # One more than there are, so that nothing wakes us before all are entered.
        group = Group(len(records) + 1, waiter, stops=stops)
        line: list[Entry | DeliveryError] = []
        try:
            await self._enter_group(records, group, line)
            group.remaining -= 1
            if group.remaining:
                await waiter
            else:
                await anyio.lowlevel.checkpoint()
        except BaseException:
            group.waiter = None
            self._cancel(*(one for one in line if isinstance(one, Entry)))
            raise
        outcomes = [one.outcome if type(one) is Entry else one for one in line]
        return cast("list[RecordMetadata | DeliveryError]", outcomes)

    async def _enter_group(
        self,
        records: Sequence[ProducerRecord[Any, Any]],
        group: Group,
        line: list[Entry | DeliveryError],
    ) -> None:
        """Enter them one after the other, or have them fail; ``line`` is what became of each."""
        others_turn = _ENTERED_AT_ONCE
        while (done := len(line)) < len(records):
            if done >= others_turn:
                others_turn = done + _ENTERED_AT_ONCE
                await anyio.lowlevel.checkpoint()
            if not group.stopped:
                several = self._enter_several(records[done : done + _ENTERED_AT_ONCE], group)
                if several:
                    line += several
                    if group.stops:
                        group.members += several
                    continue
            one = self._enter_member(records[done], group, line)
            line.append(one)
            if isinstance(one, DeliveryError):
                group.remaining -= 1
            elif one.state is DeliveryState.WAITING:
                await self._wait_for_room(one)

    def _enter_member(
        self, record: ProducerRecord[Any, Any], group: Group, before: list[Entry | DeliveryError]
    ) -> Entry | DeliveryError:
        """Enter one record of a group, or say why not. Where none was entered before, what keeps
        it out is raised, unless it is something about the record."""
        if group.stopped:
            return not_tried(record)
        try:
            entry = self._enter(record)
        except RecordRejected as error:
            with self._engine.step:
                self._engine.moved(self._ledger.stop(group))
            # The frames in its traceback hold what becomes of this group: a reference cycle.
            return error.with_traceback(None)
        except (ProducerClosed, ProducerBroken) as error:
            if not any(isinstance(one, Entry) for one in before):
                raise
            cause = error.with_traceback(None)  # as above
            return not_sent(record, f"the record was not sent: {cause}", cause)
        entry.group = group
        if group.stops:
            group.members.append(entry)
        return entry


def parts_of(
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
