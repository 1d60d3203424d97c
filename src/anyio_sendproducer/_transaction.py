"""Transactions: when one begins, what it accepts, and whether it is committed or aborted.

A transaction ends with its block. It is committed if the block ended without an exception, every
record was delivered, and every call of :meth:`Transaction.send_offsets` succeeded; otherwise it is
aborted. This module makes that decision. The driver makes the requests to the brokers.
"""

# A transaction and its producer share private state by design.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import dataclasses
import enum
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, ClassVar, Final, TypeVar, cast, overload

import anyio
import anyio.lowlevel
from anyio import CancelScope
from anyio.abc import ObjectReceiveStream

from ._admission import Admission
from ._deadlines import CallDeadline
from ._delivery import Entry, Group
from ._engine import Engine
from ._exceptions import (
    ProducerClosed,
    ProducerFenced,
    RecordRejected,
    SendProducerError,
    TransactionAborted,
    TransactionError,
    TransactionOutcomeUnknown,
    copy_of,
)
from ._flow import run_flow
from ._loops import current_task
from ._no_public_constructor import NoPublicConstructor
from ._offsets import parse_group, parse_offsets
from ._own_methods import with_own_methods
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
from .drivers import Deadline, Driver

__all__ = ["Transaction", "TransactionState", "Transactions"]


K = TypeVar("K")
V = TypeVar("V")
P = TypeVar("P")

#: Seconds after its deadline at which a call of the driver counts as hanging.
_HANG_SECONDS: Final = 5.0


class TransactionState(enum.Enum):
    """The state of a transaction."""

    OPEN = "open"
    """The transaction accepts records."""
    ENDING = "ending"
    """The block has ended, or the producer is being closed. The transaction waits for its records
    or for the brokers' answer."""
    COMMITTED = "committed"
    """All records are visible to consumers."""
    ABORTED = "aborted"
    """Consumers with ``isolation.level=read_committed`` never see the records."""
    UNKNOWN = "unknown"
    """The commit was requested. The transaction is committed or aborted, and the producer does not
    know which, because the brokers' answer was lost, or another producer took over the
    ``transactional_id``."""


@dataclasses.dataclass(slots=True)
class _Status:
    """The state of a transaction, shared with its admission."""

    state: TransactionState = TransactionState.OPEN
    #: The generation of the client that began the transaction.
    generation: int = 0
    #: The error because of which the transaction can only be aborted.
    abort_reason: SendProducerError | None = None

    @property
    def fenced_by(self) -> ProducerFenced | None:
        """The error of a call of ``send_offsets()`` that found the producer fenced."""
        return self.abort_reason if isinstance(self.abort_reason, ProducerFenced) else None

    def note(self, error: SendProducerError) -> None:
        """Note why the transaction can only be aborted. ProducerFenced is kept, because it also
        breaks the producer."""
        self.abort_reason = self.fenced_by or error


class _TransactionAdmission:
    """Enters the records of one transaction, as long as it is open.

    Args:
        engine: the producer's engine.
        admission: enters records of the producer.
        status: the state of the transaction.
    """

    def __init__(self, engine: Engine, admission: Admission, status: _Status) -> None:
        self._engine = engine
        self._admission = admission
        self._status = status

    def enter(
        self,
        record: ProducerRecord[Any, Any],
        *,
        wait: bool = True,
        deadline: CallDeadline | None = None,
    ) -> Entry:
        self.check_open()
        try:
            return self._admission.enter(record, wait=wait, deadline=deadline)
        except RecordRejected as error:
            self._status.abort_reason = self._status.abort_reason or error
            raise

    def enter_many(
        self,
        records: Iterable[ProducerRecord[Any, Any]],  # noqa: ARG002
        group: Group,  # noqa: ARG002
        deadline: CallDeadline | None = None,  # noqa: ARG002
    ) -> list[Entry]:
        # Every record goes through enter(), which notices a record that is rejected.
        return []

    def check_open(self) -> None:
        """Check that the transaction accepts records.

        Raises:
            TransactionError: the transaction or its block has ended.
            TransactionAborted: the client was given up.
        """
        if self._status.state is not TransactionState.OPEN:
            raise TransactionError(
                f"the transaction is {self._status.state.value}: send within its `async with` block"
            )
        if self.was_client_replaced:
            raise TransactionAborted("the transaction was aborted: its client was given up")

    @property
    def was_client_replaced(self) -> bool:
        """Whether the client that began the transaction was replaced.

        The new client makes the brokers abort the transaction before it does anything else.
        """
        return self._engine.is_given_up(self._status.generation)


@with_own_methods
class Transaction(Sender, NoPublicConstructor):
    """A transaction, with the same methods for sending as a producer.

    :meth:`SendProducer.transaction` creates transactions. Any number of tasks may use a transaction
    until its block ends. An acknowledged record is written, but consumers with
    ``isolation.level=read_committed`` see the record only after the commit of the transaction.

    The methods raise the same exceptions as the methods of the producer. They also raise
    :class:`TransactionError` after the transaction or its block has ended, and
    :class:`TransactionAborted` if the client was given up.
    """

    _how_to_make: ClassVar[str] = "a Transaction is made by SendProducer.transaction()"

    _status: _Status
    _admission: _TransactionAdmission
    _offset_calls: dict[Deadline, anyio.Event]  # calls of send_offsets() in progress, and their end
    _aborted: anyio.Event | None  # None until an abort starts; set when that has finished
    _ended: anyio.Event

    @classmethod
    def _create(cls, engine: Engine, admission: Admission) -> Transaction:
        self = cls.__new__(cls)
        self._status = _Status()
        self._admission = _TransactionAdmission(engine, admission, self._status)
        self._set_up(engine, self._admission)
        self._offset_calls = {}
        self._aborted = None
        self._ended = anyio.Event()
        return self

    def __repr__(self) -> str:
        return f"<Transaction {self.state.value} {self._engine.settings.transactional_id!r}>"

    @property
    def state(self) -> TransactionState:
        """The state of the transaction. After the block, this is the result of the transaction,
        even if the block was cancelled."""
        return self._status.state

    async def send_offsets(
        self,
        offsets: Mapping[tuple[str, int], Any],
        group_metadata: str | ConsumerGroupMetadata | Any,
    ) -> None:
        """Commit the offsets of a consumer group as part of the transaction.

        The offsets are committed if and only if the records of the transaction are committed.

        Args:
            offsets: the offset of the next record to read, by topic and partition. A key is a
                tuple, or kafka-python's or aiokafka's ``TopicPartition``. A value is an int, or an
                object with the attribute ``offset`` and optionally ``metadata`` and
                ``leader_epoch``. Examples of such objects are kafka-python's and aiokafka's
                ``OffsetAndMetadata`` and confluent-kafka's ``TopicPartition``.
            group_metadata: a :class:`ConsumerGroupMetadata` or an object with the same attributes,
                such as the result of kafka-python's ``KafkaConsumer.group_metadata()``; or the
                bytes that confluent-kafka's ``Consumer.consumer_group_metadata()`` returns. If the
                metadata contain a member id, the brokers refuse the offsets of a consumer that is
                no longer a member of the group (KIP-447). If you assign partitions manually, you
                can pass the id of the group instead.

        Raises:
            TransactionAborted: the brokers refused the offsets, for example because the group has a
                new generation; or the client was given up. The transaction can then only be
                aborted, which happens at the end of its block.
            ProducerFenced: another producer uses this ``transactional_id`` now, or the transaction
                took too long; see :exc:`ProducerFenced`.
            TransactionError: the offsets could not be sent, for example because there was no answer
                within ``delivery_timeout``; or the transaction has ended.
            TypeError: ``offsets`` is not a mapping, or ``group_metadata`` has a wrong type.
            ValueError: a key of ``offsets`` is not a topic with a partition, an offset is not an
                int of 0 or more, the metadata or the leader epoch of an offset or an attribute of
                the group is wrong, or the bytes are not group metadata.
            ProducerClosed, ProducerBroken, ProducerMisused: as for :meth:`SendProducer.send`.

        After a cancellation, it is unknown whether the brokers received the offsets, so the
        transaction can only be aborted.
        """
        self._engine.check_usable()
        self._admission.check_open()
        consumed = parse_offsets(offsets)
        group = parse_group(group_metadata)
        seconds = self._engine.settings.delivery_timeout
        deadline = Deadline(seconds)
        call_ended = self._offset_calls[deadline] = anyio.Event()
        try:
            # In a cancelled scope: otherwise the records would be committed without the offsets.
            await anyio.lowlevel.checkpoint_if_cancelled()
            # The end of the block waits for this call, also while no client can be opened.
            with self._bound_for(seconds):
                await self._engine.bridge.call(
                    lambda driver: driver.send_offsets(consumed, group, deadline)
                )
                return
            raise TransactionError("the client did not return from send_offsets()")
        except SendProducerError as error:
            self._status.note(error)
            raise
        except BaseException:
            deadline.hurry(0)
            # A cancellation, or a driver that raised an exception that it must not raise.
            self._status.note(TransactionError("send_offsets() did not finish"))
            raise
        finally:
            del self._offset_calls[deadline]
            call_ended.set()

    @overload
    def flow(
        self,
        source: AsyncIterable[Message[K, V, P]],
        *,
        max_in_flight: int | None = None,
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Result[K, V, P]]]: ...
    @overload
    def flow(
        self,
        source: AsyncIterable[MultiMessage[K, V, P]],
        *,
        max_in_flight: int | None = None,
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[MultiResult[K, V, P]]]: ...
    @overload
    def flow(
        self,
        source: AsyncIterable[PassThroughMessage[P]],
        *,
        max_in_flight: int | None = None,
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[PassThroughResult[P]]]: ...
    @overload
    def flow(
        self,
        source: AsyncIterable[Envelope[K, V, P]],
        *,
        max_in_flight: int | None = None,
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Results[K, V, P]]]: ...
    def flow(
        self, source: AsyncIterable[Any], *, max_in_flight: int | None = None
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Any]]:
        """Send a stream of envelopes in this transaction, and receive their results in the same
        order.

        :meth:`SendProducer.flow` describes the details. Unlike that method, this method does not
        begin and commit transactions.

        Args:
            source: as for :meth:`SendProducer.flow`.
            max_in_flight: as for :meth:`SendProducer.flow`.

        Raises:
            SettingsError: ``max_in_flight`` is not an int of 1 or more.
        """
        default = self._engine.settings.max_in_flight
        return run_flow(self, source, max_in_flight, default)

    # --- beginning and ending ----------------------------------------------------------------

    async def _start(self) -> None:
        engine = self._engine
        engine.ledger.separate_transactions()
        with anyio.move_on_after(engine.settings.delivery_timeout):
            while True:
                await engine.wait_for_look_up()
                self._status.generation = engine.bridge.generation
                try:
                    await engine.bridge.call(lambda driver: driver.begin_transaction())
                except ProducerFenced as error:
                    engine.replace_client(error)  # breaks the producer
                    raise
                except TransactionAborted as error:
                    # The client says that it can only abort, but no transaction is open.
                    engine.replace_client(error)
                    continue
                if not self._admission.was_client_replaced:
                    return
        last_error = engine.last_error()
        known = "" if last_error is None else f": {last_error}"
        raise TransactionError(
            f"no client could begin a transaction within {engine.settings.delivery_timeout:g} s "
            f"(delivery_timeout){known}"
        ) from last_error

    async def _finish(self) -> None:
        """End the transaction after its block ended without an exception: commit it if every
        record was delivered and all offsets were sent, otherwise abort it."""
        engine = self._engine
        if self._aborted is None:
            self._status.state = TransactionState.ENDING
            try:
                await engine.wait_until_settled(include_waiting=True)
                for call_ended in [*self._offset_calls.values()]:
                    await call_ended.wait()  # calls of other tasks; one may fail
            except BaseException as error:
                await self._abort(error)
                raise
        reason: SendProducerError | None = self._status.abort_reason or engine.ledger.first_failure
        if reason is not None:
            await self._abort(reason)
            if isinstance(reason, (TransactionAborted, ProducerFenced)):
                raise copy_of(reason)  # send_offsets() raised it before
            said = getattr(reason, "summary", reason)
            raise TransactionAborted(f"the transaction was aborted: {said}") from reason
        try:
            await self._commit()
        except TransactionAborted as error:
            await self._abort(error)
            raise
        except BaseException as error:
            if self._status.state is not TransactionState.COMMITTED:
                # Also for ProducerFenced: kafka-python and librdkafka repeat a commit whose answer
                # was lost. The first request may have committed before another producer took over
                # and the repetition was fenced.
                self._status.state = TransactionState.UNKNOWN
                engine.replace_client(error)
            raise

    async def _commit(self) -> None:
        """Request the commit. Cancellation can't take the request back, but shortens the wait."""
        settings = self._engine.settings
        deadline = Deadline(settings.delivery_timeout)
        bound = self._bound_for(settings.delivery_timeout)
        # For two cases: only the task of `end` is cancelled, as asyncio.run() does at its end; the
        # driver raises an exception that it must not raise.
        failure = cast(
            "SendProducerError | None",
            TransactionOutcomeUnknown("the commit was requested, but its outcome was not reported"),
        )

        async def hurry() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                deadline.hurry(settings.cancel_timeout)
                shorter = self._bound_for(settings.cancel_timeout)
                bound.deadline = min(bound.deadline, shorter.deadline)

        async def end() -> None:
            nonlocal failure
            with CancelScope(shield=True):
                try:
                    reason = self._engine.why_not_commit(self._status.generation)
                    if reason is not None:
                        text = f"the transaction was aborted: {reason}"
                        raise TransactionAborted(text) from reason
                    await self._end(deadline, bound, commit=True)
                    self._status.state = TransactionState.COMMITTED
                    self._engine.ended_transaction()
                    failure = None
                except ProducerClosed as error:
                    text = f"the commit was requested, but {error}"
                    failure = TransactionOutcomeUnknown(text)
                    failure.__cause__ = error
                except SendProducerError as error:
                    failure = error
            tasks.cancel_scope.cancel()

        try:
            # asyncio's own task.cancel() ignores a shield, but the end of a task group waits for
            # its tasks nevertheless. So a task of its own requests the commit.
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hurry)
                tasks.start_soon(end)
        finally:
            # On Trio, a cancelled task group raises the cancellation here. The caller needs the
            # failure more: only the failure says what became of the transaction.
            if failure is not None:
                try:
                    raise failure
                finally:
                    del failure  # its traceback refers to this frame

    async def _abort(self, reason: BaseException) -> None:
        """Abort, shielded and within ``cancel_timeout``. If the client hangs, 5 s are added.

        If the request fails, its error is not raised, and the client is replaced: the next client
        aborts the transaction before it does anything else. A fenced producer breaks instead.

        Raises:
            BaseException: asyncio's own ``task.cancel()`` was called again, which ignores shielded
                scopes; or the driver raised an exception that it must not raise.
        """
        if self._aborted is not None:
            with CancelScope(shield=True):
                await self._aborted.wait()
            return
        self._aborted = anyio.Event()
        self._status.state = TransactionState.ENDING
        try:
            await self._request_abort(reason)
        finally:  # other tasks wait for this event
            self._status.state = TransactionState.ABORTED
            self._aborted.set()

    async def _request_abort(self, reason: BaseException) -> None:
        engine = self._engine
        seconds = engine.settings.cancel_timeout
        settle_by = self._loop.now() + seconds
        for deadline in self._offset_calls:
            # The driver processes one call at a time, so a pending call would delay the abort.
            deadline.hurry(0)
        has_failed = (self._status.abort_reason or engine.ledger.first_failure) is not None
        with engine.step:
            # The driver may give records back while it aborts. They must not be sent again.
            engine.ledger.separate_transactions()
            engine.wake_and_notify(
                engine.ledger.fail_unsubmitted(
                    "the record was not sent: the transaction was aborted", reason
                )
            )
        with CancelScope(shield=True):
            if not self._admission.was_client_replaced:
                # If send_offsets() raised ProducerFenced, another client would fence the producer
                # that took over. So this error breaks the producer, whether or not the abort fails.
                # A call that is in progress may still raise it.
                status = self._status
                try:
                    await self._end(Deadline(seconds), self._bound_for(seconds), commit=False)
                    if status.fenced_by is not None:
                        engine.replace_client(status.fenced_by)
                    elif not has_failed:
                        engine.ended_transaction()
                except SendProducerError as error:
                    engine.replace_client(status.fenced_by or error)
                except BaseException as error:
                    engine.replace_client(status.fenced_by or error)
                    raise
            # Records that have no outcome by then are part of the aborted transaction, too. Their
            # callers get the outcomes later.
            with CancelScope(deadline=settle_by):
                await engine.wait_until_settled(include_waiting=True)

    def _bound_for(self, seconds: float) -> CancelScope:
        """Make a scope for a call of the driver whose deadline is ``seconds`` from now. The driver
        enforces that deadline itself, so the scope ends only a call that hangs in the client."""
        return CancelScope(deadline=self._loop.now() + seconds + _HANG_SECONDS)

    async def _end(self, deadline: Deadline, bound: CancelScope, *, commit: bool) -> None:
        def end(driver: Driver) -> None:
            driver.end_transaction(commit, deadline)

        with bound:
            await self._engine.bridge.call(end)
            return
        if commit:
            raise TransactionOutcomeUnknown("the commit was requested, but the client hangs")
        raise TransactionError("the client did not return from the abort")

    async def _abort_before_close(self) -> None:
        """End the transaction because the producer is being closed. If the block is still open,
        abort; if it has ended, only wait for the end of the transaction."""
        if self._status.state is TransactionState.OPEN:
            closed = ProducerClosed("the producer was closed before the transaction ended")
            self._status.note(closed)
            await self._abort(closed)
        else:
            await self._ended.wait()


class Transactions:
    """The transactions of one producer, one at a time.

    Args:
        engine: the producer's engine.
        admission: enters records of the producer.
    """

    def __init__(self, engine: Engine, admission: Admission) -> None:
        self._engine = engine
        self._admission = admission
        # Not a Lock, which only its owner may release: the garbage collector may close an async
        # generator, and with it the block of a transaction, in another task.
        self._turn = anyio.Semaphore(1)
        # The task that began the open transaction.
        self._owner: object = None

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[Transaction]:
        """Run one transaction when no other is open; see :meth:`SendProducer.transaction`."""
        engine = self._engine
        engine.check_usable()
        if engine.settings.transactional_id is None:
            raise TransactionError(
                "transactions need a transactional_id: set it in ProducerSettings, to a different "
                "value for each producer that runs at the same time"
            )
        if self._owner is current_task():
            raise TransactionError(
                "this task already has an open transaction: leave its block before you begin a "
                "second one"
            )
        async with self._turn:
            with self._owned():
                engine.check_usable()
                transaction = Transaction._create(engine, self._admission)
                await transaction._start()
                engine.before_drain = transaction._abort_before_close
                try:
                    try:
                        yield transaction
                    except BaseException as error:
                        await transaction._abort(error)
                        raise
                    await transaction._finish()
                finally:
                    engine.before_drain = None
                    transaction._status.abort_reason = (
                        None  # its traceback refers to the transaction
                    )
                    transaction._ended.set()
                    # The result of the transaction has reported these failures.
                    with engine.step:
                        engine.ledger.take_undelivered()

    @contextmanager
    def _owned(self) -> Generator[None]:
        self._owner = current_task()
        try:
            yield
        finally:
            self._owner = None
