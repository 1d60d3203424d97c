"""Transactions: their records become visible as a whole, or never.

A transaction ends with its block. It is committed if the block ended without an exception and each
of its records was delivered; otherwise it is aborted. This module decides which. The driver makes
the requests to the brokers.
"""

# A transaction and its producer share private state by design.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import dataclasses
import enum
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar, Final, TypeVar, cast, overload

import anyio
import anyio.lowlevel
from anyio import CancelScope
from anyio.abc import ObjectReceiveStream

from ._admission import Admission
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
from ._no_public_constructor import NoPublicConstructor
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
from .drivers import ConsumedOffset, Deadline, Driver
from .drivers.librdkafka._group_metadata import group_from_bytes

__all__ = ["Transaction", "TransactionState", "Transactions"]


K = TypeVar("K")
V = TypeVar("V")
P = TypeVar("P")

#: How much longer than its deadline the driver may take to end a transaction, in seconds.
_GRACE_SECONDS: Final = 5.0


class TransactionState(enum.Enum):
    """The state of a transaction."""

    OPEN = "open"
    """It accepts records."""
    ENDING = "ending"
    """Its block has ended; it waits for its records, or for the brokers' answer."""
    COMMITTED = "committed"
    """All of its records are visible, and will stay so."""
    ABORTED = "aborted"
    """None of its records is visible to ``read_committed``, or ever will be."""
    UNKNOWN = "unknown"
    """It is one of the two, and the brokers' answer was lost."""


@dataclasses.dataclass(slots=True)
class _Status:
    """The state that a transaction shares with its admission."""

    state: TransactionState = TransactionState.OPEN
    #: The number of the client that began it.
    generation: int = 0
    #: The first error that leaves no way but to abort.
    refused: SendProducerError | None = None


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

    def enter(self, record: ProducerRecord[Any, Any], *, wait: bool = True) -> Entry:
        self.check_open()
        try:
            return self._admission.enter(record, wait=wait)
        except RecordRejected as error:
            self._status.refused = self._status.refused or error
            raise

    def enter_many(
        self,
        records: Iterable[ProducerRecord[Any, Any]],  # noqa: ARG002
        group: Group,  # noqa: ARG002
    ) -> list[Entry]:
        return []  # each is entered alone, so that an invalid one is noticed

    def check_open(self) -> None:
        """Check that the transaction accepts records.

        Raises:
            TransactionError: it is over.
            TransactionAborted: its client was given up.
        """
        if self._status.state is not TransactionState.OPEN:
            raise TransactionError(
                f"the transaction is {self._status.state.value}: send within its `async with` block"
            )
        if self.is_left_behind:
            raise TransactionAborted("the transaction was aborted: its client was given up")

    @property
    def is_left_behind(self) -> bool:
        """Whether another client has taken the place of the one that began the transaction. It
        aborts the transaction before it does anything else."""
        return self._engine.bridge.generation != self._status.generation


class Transaction(Sender, NoPublicConstructor):
    """An open transaction: records that are sent by its methods are committed with it.

    Made by :meth:`SendProducer.transaction`, never by hand. It has the producer's methods that
    send. Any number of tasks may use it while its block lasts. An acknowledged record is written;
    it is visible to consumers with ``isolation.level=read_committed`` when the transaction is
    committed.

    Beside what they raise on the producer, its methods raise :class:`TransactionError` when the
    transaction is over, and :class:`TransactionAborted` where it can only be aborted.
    """

    _how_to_make: ClassVar[str] = "a Transaction is made by SendProducer.transaction()"

    _status: _Status
    _admission: _TransactionAdmission
    _offset_deadlines: set[Deadline]  # of the tasks that send offsets
    _aborted: anyio.Event | None  # set when the abort, once it was begun, is finished
    _ended: anyio.Event

    @classmethod
    def _create(cls, engine: Engine, admission: Admission) -> Transaction:
        self = cls.__new__(cls)
        self._status = _Status()
        self._admission = _TransactionAdmission(engine, admission, self._status)
        self._set_up(engine, self._admission)
        self._offset_deadlines = set()
        self._aborted = None
        self._ended = anyio.Event()
        return self

    def __repr__(self) -> str:
        return f"<Transaction {self.state.value} {self._engine.settings.transactional_id!r}>"

    @property
    def state(self) -> TransactionState:
        """The state of the transaction. After the block it is the outcome, also if the block was
        cancelled."""
        return self._status.state

    async def send_offsets(
        self,
        offsets: Mapping[tuple[str, int], Any],
        group_metadata: str | ConsumerGroupMetadata | Any,
    ) -> None:
        """Commit a consumer group's offsets with the transaction: what was read counts as read if
        what was made of it is visible, and only then.

        Args:
            offsets: by topic and partition (kafka-python's and aiokafka's ``TopicPartition`` will
                do), the offset of the next record to read: an int, or anything that has ``offset``
                and may have ``metadata`` and ``leader_epoch``, as their ``OffsetAndMetadata`` and
                confluent-kafka's ``TopicPartition`` have.
            group_metadata: :class:`ConsumerGroupMetadata` or anything that has the same attributes,
                as what kafka-python's ``KafkaConsumer.group_metadata()`` gives, or the bytes that
                confluent-kafka's ``Consumer.consumer_group_metadata()`` gives; then the brokers
                refuse a consumer that is no member of the group any more (KIP-447). The bare id of
                the group, where partitions are assigned by hand.

        Raises:
            TransactionAborted: the group has another generation by now, say: the transaction can
                only be aborted, and is when its block ends.
            ProducerFenced: another producer took over.
            TransactionError: there was no answer within ``delivery_timeout``, or the transaction is
                over.
            TypeError: ``offsets`` is no mapping, or ``group_metadata`` none of these.
            ValueError: a key of ``offsets`` is no topic with a partition, an offset is no int of 0
                or more, or bytes are no group metadata.
            ProducerClosed, ProducerBroken, ProducerMisused: as :meth:`SendProducer.send`.

        Cancellation stops the waiting; the offsets may be a part of the transaction or not, and so
        it can only be aborted from then on.
        """
        self._engine.check_usable()
        self._admission.check_open()
        consumed = _consumed(offsets)
        group = _group(group_metadata)
        await anyio.lowlevel.checkpoint_if_cancelled()
        deadline = Deadline(self._engine.settings.delivery_timeout)
        self._offset_deadlines.add(deadline)
        try:
            await self._engine.bridge.call(
                lambda driver: driver.send_offsets(consumed, group, deadline)
            )
        except SendProducerError as error:
            self._status.refused = error
            raise
        except BaseException:
            deadline.hurry(0)
            self._status.refused = TransactionError("sending offsets was cancelled")
            raise
        finally:
            self._offset_deadlines.discard(deadline)

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
        """Send a stream of envelopes in this transaction, and receive their results in its order;
        see :meth:`SendProducer.flow`, which begins transactions of its own.

        Args:
            source: as there.
            max_in_flight: as there.

        Raises:
            SettingsError: ``max_in_flight`` is no int of 1 or more.
        """
        default = self._engine.settings.max_in_flight
        return run_flow(self, self._loop, source, max_in_flight, default)

    # --- beginning and ending ----------------------------------------------------------------

    async def _start(self) -> None:
        engine = self._engine
        engine.ledger.reset_first_failure()
        with anyio.move_on_after(engine.settings.delivery_timeout):
            while True:
                self._status.generation = engine.bridge.generation
                await engine.bridge.call(lambda driver: driver.begin_transaction())
                if not self._admission.is_left_behind:
                    return
        raise TransactionError(
            f"no transaction could be begun within {engine.settings.delivery_timeout:g} s "
            "(delivery_timeout): there is no client that works"
        )

    async def _finish(self) -> None:
        """The block ended without an exception: commit, if every record was delivered."""
        engine = self._engine
        if self._aborted is None:
            self._status.state = TransactionState.ENDING
            try:
                await engine.wait_until_settled(include_waiting=True)
            except BaseException as error:
                await self._abort(error)
                raise
        reason: SendProducerError | None = self._status.refused or engine.ledger.first_failure
        if reason is None and self._admission.is_left_behind:
            reason = TransactionError("its client was given up")
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
                fenced = isinstance(error, ProducerFenced)
                self._status.state = (
                    TransactionState.ABORTED if fenced else TransactionState.UNKNOWN
                )
                engine.replace_client(error)
            raise

    async def _commit(self) -> None:
        """Ask for the commit. A cancellation can't revoke the request: it shortens the wait."""
        settings = self._engine.settings
        deadline = Deadline(settings.delivery_timeout)
        patience = self._patience(settings.delivery_timeout)
        failure: SendProducerError | None = None

        async def hurry() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                deadline.hurry(settings.cancel_timeout)
                hasty = self._patience(settings.cancel_timeout)
                patience.deadline = min(patience.deadline, hasty.deadline)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hurry)
            with CancelScope(shield=True):
                try:
                    await self._end(deadline, patience, commit=True)
                    self._status.state = TransactionState.COMMITTED
                except ProducerClosed as error:
                    failure = TransactionOutcomeUnknown(f"the commit was asked for, and {error}")
                    failure.__cause__ = error
                except SendProducerError as error:
                    failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback refers to this frame

    async def _abort(self, reason: BaseException) -> None:
        """Abort, shielded and within ``cancel_timeout``. It never raises: if the request fails, the
        next client aborts the transaction before it does anything else."""
        if self._aborted is not None:
            with CancelScope(shield=True):
                await self._aborted.wait()
            return
        self._aborted = anyio.Event()
        self._status.state = TransactionState.ENDING
        try:
            await self._abort_at_once(reason)
        finally:  # other tasks wait for this event
            self._status.state = TransactionState.ABORTED
            self._aborted.set()

    async def _abort_at_once(self, reason: BaseException) -> None:
        engine = self._engine
        settings = engine.settings
        for deadline in self._offset_deadlines:
            # The driver processes one call after the other, and these are of no use any more.
            deadline.hurry(0)
        with engine.step:
            engine.wake_and_notify(
                engine.ledger.fail_unsubmitted(
                    "the record was not sent: the transaction was aborted before", reason
                )
            )
        with CancelScope(shield=True):
            if not self._admission.is_left_behind:
                seconds = settings.cancel_timeout
                try:
                    await self._end(Deadline(seconds), self._patience(seconds), commit=False)
                except SendProducerError as error:
                    engine.replace_client(error)
                except BaseException as error:
                    # asyncio's own cancellation, which ignores shielded scopes, or a faulty driver.
                    engine.replace_client(error)
                    raise
            with anyio.move_on_after(settings.cancel_timeout):
                await engine.wait_until_settled(include_waiting=True)

    def _patience(self, seconds: float) -> CancelScope:
        """A scope for a call of the driver that may take so many seconds. The driver keeps its
        deadline in real time, so this ends only a call that hangs in the client."""
        return CancelScope(deadline=self._loop.now() + seconds + _GRACE_SECONDS)

    async def _end(self, deadline: Deadline, patience: CancelScope, *, commit: bool) -> None:
        def end(driver: Driver) -> None:
            driver.end_transaction(commit, deadline)

        with patience:
            await self._engine.bridge.call(end)
            return
        if commit:
            raise TransactionOutcomeUnknown("the commit was asked for, and the client hangs")
        raise TransactionError("the client hangs in the abort")

    async def _end_by_closing(self) -> None:
        """The producer is being closed: abort if the block has not ended yet."""
        if self._status.state is TransactionState.OPEN:
            self._status.refused = ProducerClosed("the producer was closed within the transaction")
            await self._abort(self._status.refused)
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
        self._turn = anyio.Lock()

    @asynccontextmanager
    async def begin(self) -> AsyncGenerator[Transaction]:
        """Run one transaction, when its turn has come; see :meth:`SendProducer.transaction`."""
        engine = self._engine
        engine.check_usable()
        if engine.settings.transactional_id is None:
            raise TransactionError(
                "transactions need a name: give ProducerSettings a transactional_id, one for each "
                "producer that runs at the same time"
            )
        turn = self._turn
        if turn.locked() and turn.statistics().owner == anyio.get_current_task():
            raise TransactionError(
                "this task has a transaction open already, and the next one begins when that has "
                "ended"
            )
        async with turn:
            engine.check_usable()
            transaction = Transaction._create(engine, self._admission)
            await transaction._start()
            engine.before_drain = transaction._end_by_closing
            try:
                try:
                    yield transaction
                except BaseException as error:
                    await transaction._abort(error)
                    raise
                await transaction._finish()
            finally:
                engine.before_drain = None
                transaction._status.refused = None  # its traceback refers to the transaction
                transaction._ended.set()
                # The caller learns of failures from the transaction's own outcome.
                with engine.step:
                    engine.ledger.take_undelivered()


def _consumed(offsets: Mapping[tuple[str, int], Any]) -> list[ConsumedOffset]:
    if not isinstance(cast("object", offsets), Mapping):
        raise TypeError(
            f"offsets must be a mapping of (topic, partition) to offsets, "
            f"not {type(offsets).__name__}"
        )
    consumed: list[ConsumedOffset] = []
    for place, given in offsets.items():
        key = cast("object", place)
        match key:
            case (str() as topic, int() as partition) if isinstance(key, tuple) and partition >= 0:
                pass
            case _:
                raise ValueError(
                    "offsets: a key must be a tuple of a topic (str) and a partition (int of 0 or "
                    f"more), not {key!r:.80}"
                )
        offset = getattr(given, "offset", given)
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise ValueError(
                f"offsets: that of partition {partition} of topic {topic!r} must be an int of 0 or "
                f"more, not {offset!r}"
            )
        epoch = getattr(given, "leader_epoch", None)
        consumed.append(
            ConsumedOffset(
                topic,
                partition,
                offset,
                getattr(given, "metadata", None) or "",
                -1 if epoch is None else epoch,
            )
        )
    return consumed


def _group(given: Any) -> ConsumerGroupMetadata:
    if isinstance(given, str):
        return ConsumerGroupMetadata(given)
    if isinstance(given, bytes):
        return group_from_bytes(given)
    try:
        return ConsumerGroupMetadata(
            given.group_id, given.generation_id, given.member_id, given.group_instance_id
        )
    except AttributeError as error:
        raise TypeError(
            "group_metadata must be the group's id, ConsumerGroupMetadata or what has the same "
            f"attributes, not {type(given).__name__}"
        ) from error
