"""Transactions: what is sent in one is committed as a whole, or never seen.

A transaction is over when its block is: committed where the block ended well and every record of it
was delivered, aborted otherwise. What the loop decides stands here; what the brokers are told is
the driver's.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, NoReturn, Protocol, TypeVar, cast, overload

import anyio
import anyio.lowlevel
from anyio import CancelScope
from anyio.abc import ObjectReceiveStream

from ._bridge import Bridge
from ._delivery import Entry
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
from ._ledger import Ledger
from ._loops import Loop
from ._observing import Observation, ObservedSender
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
from .drivers import ConsumedOffset, Deadline, Driver
from .drivers._group_metadata import group_from_bytes

__all__ = ["Owner", "Transaction", "TransactionState", "run_transaction"]


K = TypeVar("K")
V = TypeVar("V")
P = TypeVar("P")

#: How much longer than its deadline the driver may take to end a transaction, in seconds.
_GRACE_SECONDS: Final = 5.0


class TransactionState(enum.Enum):
    """Where a transaction stands."""

    OPEN = "open"
    """It takes records."""
    ENDING = "ending"
    """Its block has ended; what was sent in it is waited for, or the brokers' answer."""
    COMMITTED = "committed"
    """All of it is visible, and will stay so."""
    ABORTED = "aborted"
    """None of it is visible to ``read_committed``, or ever will be."""
    UNKNOWN = "unknown"
    """It is one of the two, and the brokers' answer was lost."""


class Owner(Protocol):
    """The producer, as far as its transactions know it."""

    @property
    def bridge(self) -> Bridge:
        """The way to the driver."""
        ...

    @property
    def ledger(self) -> Ledger:
        """The book of all deliveries."""
        ...

    @property
    def loop(self) -> Loop:
        """The event loop."""
        ...

    @property
    def settings(self) -> ProducerSettings:
        """The producer's settings."""
        ...

    @property
    def turn(self) -> anyio.Lock:
        """Whose turn it is: one transaction at a time."""
        ...

    @property
    def observation(self) -> Observation | None:
        """What observers are told by; None where there are none."""
        ...

    def take_part(self, transaction: Transaction | None, /) -> None:
        """From now on this one is open, or none."""
        ...

    def check(self) -> None:
        """Raise, where the producer can't be used, or not from here."""
        ...

    def enter(self, record: ProducerRecord[Any, Any], wait: bool, /) -> Entry:  # noqa: FBT001
        """Enter a record."""
        ...

    def moved(self, woken: Iterable[object], /) -> None:
        """Wake these; room may have become free."""
        ...

    async def until_settled(self) -> None:
        """Wait until all that is accepted, or waits for room, has its outcome."""
        ...

    def give_up(self, error: BaseException, /) -> None:
        """This client is of no use any more: take another, or none where it was fenced off."""
        ...


class Transaction(Sender):
    """A transaction that is open: what is sent by it is committed with it.

    Made by :meth:`SendProducer.transaction`, never by hand. It has the producer's methods that
    send. Any number of tasks may use it while its block lasts. An acknowledged record is written;
    it is visible to consumers with ``isolation.level=read_committed`` when the transaction is
    committed.

    Beside what they raise on the producer, its methods raise :class:`TransactionError` when the
    transaction is over, and :class:`TransactionAborted` where it can only be aborted.
    """

    _owner: Owner
    _generation: int
    _state: TransactionState
    _refused: SendProducerError | None
    _waits: set[Deadline]  # of those who send offsets
    _aborted: anyio.Event | None  # set when the abort, once it was begun, is through
    _ended: anyio.Event

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("a Transaction is made by SendProducer.transaction()")

    @classmethod
    def _create(cls, owner: Owner) -> Transaction:
        self: Transaction
        if owner.observation is None:
            self = object.__new__(cls)
        else:
            self = observed = object.__new__(_ObservedTransaction)
            observed._observing = owner.observation  # pyright: ignore[reportPrivateUsage]
        self._begin(owner.loop, owner.ledger, owner.bridge.step)
        self._owner = owner
        self._state = TransactionState.OPEN
        self._refused = None
        self._waits = set()
        self._aborted = None
        self._ended = anyio.Event()
        return self

    def __repr__(self) -> str:
        return f"<Transaction {self._state.value} {self._owner.settings.transactional_id!r}>"

    @property
    def state(self) -> TransactionState:
        """Where it stands. After the block it tells what became of it, also where the block was
        cancelled."""
        return self._state

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
        self._owner.check()
        self._check_open()
        consumed = _consumed(offsets)
        group = _group(group_metadata)
        await anyio.lowlevel.checkpoint_if_cancelled()
        deadline = Deadline(self._owner.settings.delivery_timeout)
        self._waits.add(deadline)
        try:
            await self._owner.bridge.call(
                lambda driver: driver.send_offsets(consumed, group, deadline)
            )
        except SendProducerError as error:
            self._refused = error
            raise
        except BaseException:
            deadline.hurry(0)
            self._refused = TransactionError("sending offsets was cancelled")
            raise
        finally:
            self._waits.discard(deadline)

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
        default = self._owner.settings.max_in_flight
        return run_flow(self, self._loop, source, max_in_flight, default)

    # --- what a Sender needs -----------------------------------------------------------------

    def _enter(self, record: ProducerRecord[Any, Any], *, wait: bool = True) -> Entry:
        self._check_open()
        try:
            return self._owner.enter(record, wait)
        except RecordRejected as error:
            self._refused = self._refused or error
            raise

    def _moved(self, woken: Iterable[object]) -> None:
        self._owner.moved(woken)

    def _check_open(self) -> None:
        if self._state is not TransactionState.OPEN:
            raise TransactionError(
                f"the transaction is {self._state.value}: send within its `async with` block"
            )
        if self._is_left_behind:
            raise TransactionAborted("the transaction was aborted: its client was given up")

    @property
    def _is_left_behind(self) -> bool:
        """Whether there is another client by now: its first act is to abort this transaction."""
        return self._owner.bridge.generation != self._generation

    # --- beginning and ending ----------------------------------------------------------------

    async def _start(self) -> None:
        owner = self._owner
        owner.ledger.look_for_failures()
        with anyio.move_on_after(owner.settings.delivery_timeout):
            while True:
                self._generation = owner.bridge.generation
                await owner.bridge.call(lambda driver: driver.begin_transaction())
                if not self._is_left_behind:
                    return
        raise TransactionError(
            f"no transaction could be begun within {owner.settings.delivery_timeout:g} s "
            "(delivery_timeout): there is no client that works"
        )

    async def _finish(self) -> None:
        """The block ended well: commit, if all was delivered."""
        owner = self._owner
        if self._aborted is None:
            self._state = TransactionState.ENDING
            try:
                await owner.until_settled()
            except BaseException as error:
                await self._abort(error)
                raise
        reason: SendProducerError | None = self._refused or owner.ledger.first_failure
        if reason is None and self._is_left_behind:
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
            if self._state is not TransactionState.COMMITTED:
                fenced = isinstance(error, ProducerFenced)
                self._state = TransactionState.ABORTED if fenced else TransactionState.UNKNOWN
                owner.give_up(error)
            raise

    async def _commit(self) -> None:
        """Ask for the commit. Cancellation can't take that back: it shortens the wait."""
        settings = self._owner.settings
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
                    self._state = TransactionState.COMMITTED
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
                del failure  # it knows this frame

    async def _abort(self, reason: BaseException) -> None:
        """Abort, shielded and within ``cancel_timeout``. It never raises: where the brokers could
        not be told, the next client tells them, before anything else."""
        if self._aborted is not None:
            with CancelScope(shield=True):
                await self._aborted.wait()
            return
        self._aborted = anyio.Event()
        self._state = TransactionState.ENDING
        try:
            await self._abort_at_once(reason)
        finally:  # others wait for this one
            self._state = TransactionState.ABORTED
            self._aborted.set()

    async def _abort_at_once(self, reason: BaseException) -> None:
        owner = self._owner
        settings = owner.settings
        for deadline in self._waits:
            # The driver does one thing after the other, and this is of no use any more.
            deadline.hurry(0)
        with self._step:
            owner.moved(
                owner.ledger.fail_unsubmitted(
                    "the record was not sent: the transaction was aborted before", reason
                )
            )
        with CancelScope(shield=True):
            if not self._is_left_behind:
                seconds = settings.cancel_timeout
                try:
                    await self._end(Deadline(seconds), self._patience(seconds), commit=False)
                except SendProducerError as error:
                    owner.give_up(error)
                except BaseException as error:
                    # asyncio's own cancellation, which heeds no shield, or a driver's mistake.
                    owner.give_up(error)
                    raise
            with anyio.move_on_after(settings.cancel_timeout):
                await owner.until_settled()

    def _patience(self, seconds: float) -> CancelScope:
        """A scope for a call of the driver that may take so many seconds. The driver keeps to its
        deadline in real time, so this ends only a call that hangs in the client."""
        return CancelScope(deadline=self._loop.now() + seconds + _GRACE_SECONDS)

    async def _end(self, deadline: Deadline, patience: CancelScope, *, commit: bool) -> None:
        def end(driver: Driver) -> None:
            driver.end_transaction(commit, deadline)

        with patience:
            await self._owner.bridge.call(end)
            return
        if commit:
            raise TransactionOutcomeUnknown("the commit was asked for, and the client hangs")
        raise TransactionError("the client hangs in the abort")

    async def end_by_closing(self) -> None:
        """The producer is being closed: abort, if the block has not ended yet."""
        if self._state is TransactionState.OPEN:
            self._refused = ProducerClosed("the producer was closed within the transaction")
            await self._abort(self._refused)
        else:
            await self._ended.wait()


class _ObservedTransaction(ObservedSender, Transaction):
    """A transaction of a producer that is observed."""


@asynccontextmanager
async def run_transaction(owner: Owner) -> AsyncGenerator[Transaction]:
    """One transaction, when its turn has come; see :meth:`SendProducer.transaction`."""
    owner.check()
    if owner.settings.transactional_id is None:
        raise TransactionError(
            "transactions need a name: give ProducerSettings a transactional_id, one for each "
            "producer that runs at the same time"
        )
    if owner.turn.locked() and owner.turn.statistics().owner == anyio.get_current_task():
        raise TransactionError(
            "this task has a transaction open already, and the next one begins when that has ended"
        )
    async with owner.turn:
        owner.check()
        transaction = Transaction._create(owner)  # pyright: ignore[reportPrivateUsage]
        await transaction._start()  # pyright: ignore[reportPrivateUsage]
        owner.take_part(transaction)
        try:
            try:
                yield transaction
            except BaseException as error:
                await transaction._abort(error)  # pyright: ignore[reportPrivateUsage]
                raise
            await transaction._finish()  # pyright: ignore[reportPrivateUsage]
        finally:
            owner.take_part(None)
            transaction._refused = None  # its traceback knows the transaction  # pyright: ignore[reportPrivateUsage]
            transaction._ended.set()  # pyright: ignore[reportPrivateUsage]
            # Whoever ran the block was told, by what it raised or by not being told of a commit.
            with owner.bridge.step:
                owner.ledger.undelivered()


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
