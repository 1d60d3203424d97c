"""The sending API that producers and transactions share.

All of it runs on the caller's task. A :class:`Sender` enters records in the ledger and waits for
their outcomes. The engine submits the records and settles the outcomes.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from threading import get_ident
from typing import Any, Final, TypeVar, cast, overload

import anyio
import anyio.lowlevel

from ._admission import AdmissionLike, cancel_entries, wait_for_room
from ._deadlines import CallDeadline
from ._delivery import Delivery, DeliveryState, Entry
from ._durations import seconds_of
from ._engine import Engine
from ._exceptions import DeliveryError, MultiDeliveryError
from ._group_sending import send_group
from ._loops import WaiterList
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
from ._validation import check_is_record, not_an_envelope, record_of, records_of

__all__ = ["Sender", "multi_result_parts"]

K = TypeVar("K")
V = TypeVar("V")
P = TypeVar("P")

#: Of the calls of :meth:`Sender.enqueue` and :meth:`Delivery.wait` that need not wait, one in this
#: many lets other tasks run. So the others do some tenths of a millisecond's work in a row. Letting
#: other tasks run costs several times as much as such a call.
_CALLS_PER_YIELD: Final = 100

#: AnyIO does not cancel a task of asyncio whose future is done; it tries again in the next turn of
#: the loop. If a driver reports within one turn, AnyIO finds the future done each time, so a task
#: that sends in a loop would never be cancelled. So some calls check whether their task is
#: cancelled. A check costs a tenth of a call. The number of calls from one check to the next is 1
#: plus a random number of this many bits: 1 to 128. With a fixed number, and two tasks that take
#: turns, the check could always fall to the same task, and the other would never be cancelled.
_CHECK_INTERVAL_BITS = 7
_random_bits = random.Random().getrandbits  # noqa: S311  # not for cryptography


class Sender:
    """The methods for sending that a producer and a transaction have in common.

    A subclass makes instances with ``__new__`` and :meth:`_set_up`.
    """

    def _set_up(self, engine: Engine, admission: AdmissionLike) -> None:
        self._engine = engine
        # Attributes, because they are used for each record.
        self._enter = admission.enter
        self._loop = engine.loop
        self._ledger = engine.ledger
        self._park = engine.loop.park
        self._affinity = engine.affinity
        self._send_group = partial(send_group, engine, admission)
        # 0, so that the first call of enqueue() or Delivery.wait() yields. A call that yields also
        # checks that it is on the producer's event loop.
        self._calls_until_yield = 0
        # Each call counts this down, and the call that reaches 0 checks. If the event loop needs no
        # check, the count starts at 0, so that it is negative from the first call on.
        self._calls_until_check = 1 if engine.loop.skips_cancelling_woken_tasks else 0

    # --- sending -----------------------------------------------------------------------------

    @overload
    async def send(
        self, record: ProducerRecord[Any, Any], *, timeout: float | timedelta | None = None
    ) -> RecordMetadata: ...
    @overload
    async def send(
        self,
        topic: str,
        /,
        value: Any = None,
        key: Any = None,
        *,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timeout: float | timedelta | None = None,
    ) -> RecordMetadata: ...
    @overload
    async def send(
        self,
        *,
        topic: str,
        value: Any = None,
        key: Any = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timeout: float | timedelta | None = None,
    ) -> RecordMetadata: ...
    async def send(
        self,
        record: Any = None,
        value: Any = None,
        key: Any = None,
        *,
        topic: str | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timeout: float | timedelta | None = None,
    ) -> RecordMetadata:
        """Send one record and wait for its outcome.

        ``send("orders", b"two tins", key=b"42")`` is short for
        ``send(ProducerRecord("orders", b"two tins", key=b"42"))``.

        By default, records are written to each partition in the order of the calls. If there is no
        room (``max_in_flight``, ``max_buffered_bytes``), the call waits for room. Calls get room in
        FIFO order.

        Args:
            record: the record to send.
            topic: the topic, as the first argument or by name, instead of ``record``. This argument
                and the next five are the fields of a :class:`ProducerRecord`.
            value: the value.
            key: the key.
            partition: the partition's number, or None to have it chosen.
            timestamp_ms: milliseconds since 1970-01-01 UTC, or None for the time of sending.
            headers: pairs of a str and bytes.
            timeout: the longest time until the outcome of this record, as seconds or a
                ``timedelta``. If ``delivery_timeout`` is shorter, ``delivery_timeout`` applies.
                None stands for ``delivery_timeout``.

        Returns:
            The metadata of the written record. Unless ``acks`` is 0, a broker has acknowledged the
            record.

        Raises:
            DeliveryTimeout: the record had no outcome within ``timeout`` or ``delivery_timeout``.
                The ``persistence`` of the error is ``NOT_PERSISTED`` if the client did not have the
                record yet. Such a record is never written.
            RecordRejected: the record is invalid or too large, its topic or partition does not
                exist, the ``partitioner`` failed, or the broker refused the record.
            SerializationFailed: the key or the value could not be serialized, or a serializer added
                an invalid header.
            DeliveryError: the record was not delivered for another reason. The ``persistence`` of
                every DeliveryError says whether the record may have been written nevertheless.
            ProducerClosed: the producer is closing or closed.
            ProducerBroken: the producer can never send again.
            ProducerMisused: the method was called on another event loop, or in another thread or
                process.
            TransactionError: the producer has a ``transactional_id``, and sends only with a
                :class:`Transaction`.
            TypeError: the arguments are neither a ProducerRecord nor the fields of one.
            SettingsError: ``timeout`` is not a duration above 0.

        If the call is cancelled, for example by a deadline, and the client does not have the record
        yet, the record is withdrawn and never written. If the client already has the record, only
        the waiting ends. ``statistics().abandoned`` counts this record, and the client still sends
        it. But if the client returns the record, for example because the metadata of its topic is
        missing, the record is withdrawn. Other records are not affected. If the scope is already
        cancelled when the call starts, the record may still be sent. A task that sends in a loop
        can be cancelled even if every outcome arrives immediately.
        """
        # This is half of affinity.check(). The other half asks asyncio for its loop, which is a
        # system call up to Python 3.11. A task of another loop in this thread can't await the
        # waiter; the full check below then raises the error that explains why.
        if self._affinity.thread != get_ident():
            self._affinity.check()
        self._calls_until_check -= 1
        if not self._calls_until_check:
            await self._check_cancelled()
        if (
            type(record) is not ProducerRecord
            or value is not None
            or key is not None
            or topic is not None
            or partition is not None
            or timestamp_ms is not None
            or headers
        ):
            record = record_of(
                record,
                topic,
                value=value,
                key=key,
                partition=partition,
                timestamp_ms=timestamp_ms,
                headers=headers,
            )
        if timeout is None:
            entry = self._enter(record)
        else:
            entry = self._enter(record, deadline=self._deadline(timeout))
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
            # The traceback of the error refers to this frame. These references would form a cycle,
            # and the record would stay in memory until the garbage collector runs.
            del outcome, entry, record

    @overload
    async def send_envelope(
        self, envelope: Message[K, V, P], *, timeout: float | timedelta | None = None
    ) -> Result[K, V, P]: ...
    @overload
    async def send_envelope(
        self, envelope: MultiMessage[K, V, P], *, timeout: float | timedelta | None = None
    ) -> MultiResult[K, V, P]: ...
    @overload
    async def send_envelope(
        self, envelope: PassThroughMessage[P], *, timeout: float | timedelta | None = None
    ) -> PassThroughResult[P]: ...
    @overload
    async def send_envelope(
        self, envelope: Envelope[K, V, P], *, timeout: float | timedelta | None = None
    ) -> Results[K, V, P]: ...
    async def send_envelope(
        self, envelope: Envelope[K, V, P], *, timeout: float | timedelta | None = None
    ) -> Results[K, V, P]:
        """Send the records of an envelope, and return its pass-through value with the result.

        Args:
            envelope: a :class:`Message`, a :class:`MultiMessage`, or a :class:`PassThroughMessage`.
                A PassThroughMessage needs no broker. Even a closed producer returns a
                :class:`PassThroughResult`, as in Alpakka Kafka.
            timeout: the longest time from the start of the call until the last outcome, as seconds
                or a ``timedelta``, as for :meth:`send`.

        Returns:
            A :class:`Result`, a :class:`MultiResult` with one part for each record in the order of
            the envelope, or a :class:`PassThroughResult`.

        Raises:
            MultiDeliveryError: at least one record of a MultiMessage was not delivered. After a
                failure, the producer still tries to send the other records. ``parts`` contains the
                outcome of each record, and ``pass_through`` is the pass-through value.
            DeliveryError: the record of a Message was not delivered; see :meth:`send`.
            ProducerClosed, ProducerBroken, ProducerMisused, TransactionError: as for :meth:`send`.
            TypeError: ``envelope`` is not an envelope, or one of its records is not a
                ProducerRecord. No record was sent.
            SettingsError: ``timeout`` is not a duration above 0.

        Cancellation: as with :meth:`send`, for each record on its own.
        """
        if isinstance(envelope, Message):
            check_is_record(envelope.record)
            return Result(await self.send(envelope.record, timeout=timeout), envelope)
        if isinstance(envelope, MultiMessage):
            records = envelope.records
            outcomes = await self._send_group(records, self._deadline(timeout))
            parts = multi_result_parts(records, outcomes, envelope.pass_through)
            return MultiResult(parts, envelope.pass_through)
        if isinstance(cast("object", envelope), PassThroughMessage):
            self._deadline(timeout)  # only to check it
            await anyio.lowlevel.checkpoint()
            return PassThroughResult(envelope.pass_through)
        raise not_an_envelope(envelope)

    async def send_many(
        self,
        records: Iterable[ProducerRecord[Any, Any]],
        *,
        stop_on_error: bool = False,
        timeout: float | timedelta | None = None,
    ) -> list[RecordMetadata]:
        """Send records in order, and wait for all of their outcomes.

        Args:
            records: the records to send. They wait for room one by one, so other calls can send
                records before the whole list is accepted.
            stop_on_error: pass no more records to the client after one has failed. The remaining
                records fail as ``NOT_PERSISTED``. The call still passes records to the client
                without waiting for the outcomes of earlier records. Records that the client already
                has are still sent.
            timeout: the longest time from the start of the call until the last outcome, as seconds
                or a ``timedelta``, as for :meth:`send`.

        Returns:
            Where each record was written, in the order of ``records``; an empty list if there are
            no records.

        Raises:
            MultiDeliveryError: at least one record was not delivered. After a failure, the producer
                still tries to send the other records, unless ``stop_on_error`` is set. ``parts``
                contains the outcome of each record.
            ProducerClosed, ProducerBroken: as for :meth:`send`, at the start of the call. If the
                producer is closed or breaks later, the remaining records fail.
            ProducerMisused, TransactionError: as for :meth:`send`.
            TypeError: ``records`` is not an iterable of ProducerRecords. No record was sent.
            SettingsError: ``timeout`` is not a duration above 0.

        Cancellation: as with :meth:`send`, for each record on its own.
        """
        all_records = records_of(records)
        outcomes = await self._send_group(
            all_records, self._deadline(timeout), stop_on_error=stop_on_error
        )
        if any(isinstance(outcome, DeliveryError) for outcome in outcomes):
            multi_result_parts(all_records, outcomes, None)  # raises
        return cast("list[RecordMetadata]", outcomes)

    async def enqueue(self, record: ProducerRecord[Any, Any]) -> Delivery:
        """Wait until the record is accepted, but not for its outcome.

        Args:
            record: the record to send.

        Returns:
            The delivery of the accepted record. Await :meth:`Delivery.wait` to get the outcome. If
            nobody awaits the delivery and the record fails, the producer reports the failure when
            it is closed.

        Raises:
            DeliveryTimeout: there was no room within ``delivery_timeout``.
            DeliveryError: the producer was closed or broke, or the transaction was aborted, while
                the call waited for room.
            RecordRejected: the record is invalid, or is larger than ``max_buffered_bytes``. If only
                the client, a broker, a serializer or the ``partitioner`` can find the error,
                :meth:`Delivery.wait` raises it. :meth:`enqueue` raises such an error only if the
                call waited for room, and the record failed before the task ran again.
            ProducerClosed, ProducerBroken, ProducerMisused, TransactionError, TypeError: as for
                :meth:`send`.

        If there is room, only about one in a hundred calls lets other tasks run. Before such a call
        accepts its record, it also raises a pending cancellation, and checks that it runs on the
        producer's event loop. These checks take longer than the rest of the call. The other calls
        skip the checks, so they accept their records even in a scope that is already cancelled.

        If a call raises a cancellation, its record is never written, with one exception. Asyncio's
        own ``task.cancel()`` may cancel the task after the client received the record and before
        the task runs again. The record is then abandoned, as with :meth:`send`.
        """
        must_yield = self._must_yield()
        if must_yield:
            await self._yield(anyio.lowlevel.checkpoint_if_cancelled)
        # From here on the records of several tasks are accepted in the order of the calls.
        entry = self._enter(record)
        if entry.state is DeliveryState.WAITING:
            await wait_for_room(self._engine, entry)
            if isinstance(entry.outcome, DeliveryError):
                self._mark_seen(entry)
                try:
                    raise entry.outcome
                finally:
                    del entry, record  # as in send()
        elif must_yield:
            try:
                await anyio.lowlevel.cancel_shielded_checkpoint()
            except BaseException:  # asyncio's own task.cancel(), which ignores a shield
                self._cancel(entry)
                raise
        return Delivery._create(self, entry)  # pyright: ignore[reportPrivateUsage]

    def enqueue_nowait(self, record: ProducerRecord[Any, Any]) -> Delivery:
        """Accept a record if there is room, without waiting.

        Args:
            record: the record to send.

        Returns:
            The delivery of the accepted record, as for :meth:`enqueue`.

        Raises:
            anyio.WouldBlock: there is no room. The record was not accepted.
            RecordRejected, ProducerClosed, ProducerBroken, TransactionError, TypeError: as for
                :meth:`enqueue`.
            ProducerMisused: as for :meth:`enqueue`. It is also raised if a finalizer or a signal
                handler interrupts the producer's own code and calls this method. The record was not
                accepted.
        """
        self._affinity.check()
        try:
            entry = self._enter(record, wait=False)
        except anyio.WouldBlock:
            # If the client stops lingering (linger.ms), room becomes free sooner.
            self._engine.wake_and_notify(())
            raise
        return Delivery._create(self, entry)  # pyright: ignore[reportPrivateUsage]

    # --- on the caller's task ----------------------------------------------------------------

    def _must_yield(self) -> bool:
        """Whether a call that need not wait must :meth:`_yield` nevertheless, after several others.

        Raises:
            ProducerMisused: called in another thread or process.
        """
        if self._affinity.thread != get_ident():  # half of affinity.check(), as in send()
            self._affinity.check()
        if self._calls_until_yield:
            self._calls_until_yield -= 1
            return False
        self._calls_until_yield = _CALLS_PER_YIELD - 1
        return True

    async def _yield(
        self, checkpoint: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint
    ) -> None:
        """Run a checkpoint, which raises the cancellation of the calling task, if any.

        If the task is cancelled, the next call does this, too, as in :meth:`_check_cancelled`.
        """
        self._affinity.check()
        try:
            await checkpoint()
        except BaseException:
            self._calls_until_yield = 0
            raise

    async def _check_cancelled(self) -> None:
        """Raise the cancellation of the calling task, if any, and choose the next call that checks.

        If the task is cancelled, the next call checks, too, whichever task makes it: other tasks of
        the same group are probably cancelled as well.
        """
        self._calls_until_check = 1
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._calls_until_check = 1 + _random_bits(_CHECK_INTERVAL_BITS)

    def _cancel(self, *entries: Entry) -> None:
        """Cancel the deliveries of a call that was cancelled."""
        cancel_entries(self._engine, *entries)

    async def _wait_for_outcome(self, entry: Entry) -> None:
        """Wait for the outcome of an accepted record that has none yet."""
        if self._affinity.thread != get_ident():  # half of affinity.check(), as in send()
            self._affinity.check()
        self._calls_until_check -= 1
        if not self._calls_until_check:
            await self._check_cancelled()
        waiter = self._loop.new_waiter()
        with self._engine.step:
            waiters = cast("WaiterList | None", entry.waiter)
            if waiters is None:
                waiters = entry.waiter = WaiterList()
            waiters.append(waiter)
        try:
            await waiter
        except BaseException as error:
            self._engine.run_or_schedule(partial(self._stop_waiting, entry, waiters, waiter))
            if not isinstance(error, GeneratorExit):
                self._affinity.check()
            raise

    def _mark_seen(self, entry: Entry) -> None:
        """Note that a caller has seen the outcome of an entry."""
        with self._engine.step:
            self._ledger.mark_seen(entry)

    def _stop_waiting(self, entry: Entry, waiters: WaiterList, waiter: object) -> None:
        waiters.remove(waiter)
        if not waiters:
            self._ledger.drop_waiter(entry)

    def _deadline(self, timeout: float | timedelta | None) -> CallDeadline | None:
        """The deadline of a call that begins now; None if it has no ``timeout``."""
        if timeout is None:
            return None
        seconds = seconds_of("timeout", timeout, zero=False)
        return CallDeadline(self._engine.clock.now() + seconds, seconds)


def multi_result_parts(
    records: Sequence[ProducerRecord[K, V]],
    outcomes: Sequence[RecordMetadata | DeliveryError],
    pass_through: object,
) -> tuple[MultiResultPart[K, V], ...]:
    """Combine records with their outcomes.

    Raises:
        MultiDeliveryError: at least one outcome is an error.
    """
    parts: list[MultiResultPart[K, V] | DeliveryError] = [
        MultiResultPart(outcome, record) if isinstance(outcome, RecordMetadata) else outcome
        for record, outcome in zip(records, outcomes, strict=True)
    ]
    if any(isinstance(part, DeliveryError) for part in parts):
        raise MultiDeliveryError(parts, pass_through)
    return tuple(cast("list[MultiResultPart[K, V]]", parts))
