"""A pool of transactional producers: many transactions at the same time.

A transactional producer runs one transaction at a time, because the brokers know it by its
``transactional_id``. The pool starts several producers with different ids in its own task group,
and lends each to one transaction at a time.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, Literal, cast

import anyio
import anyio.abc

from ._affinity import Affinity
from ._delivery import Statistics
from ._exceptions import (
    ProducerClosed,
    ProducerMisused,
    SettingsError,
    TransactionError,
    UndeliveredRecords,
)
from ._loops import Step, current_loop, current_task
from ._observing import check_observers
from ._opening import start_send_producer
from ._producer import SendProducer
from ._settings import ProducerSettings, SettingsFields, settings_for
from ._task_groups import plain_task_group, raise_first
from ._transaction import Transaction
from ._validation import check_count
from .drivers import DriverFactory, DriverName
from .telemetry import Observer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["TransactionPool", "TransactionPoolStatistics"]

_LEFT_IN_ANOTHER_TASK: Final = (
    "the block of TransactionPool was left by a different task than the one that entered it; the "
    "pool's producers were closed"
)


@dataclasses.dataclass(frozen=True, slots=True)
class TransactionPoolStatistics:
    """The figures of one pool at one moment."""

    size: int
    """The number of producers of the pool, which is also the largest number of concurrent
    transactions."""
    in_use: int
    """The number of transactions that have a producer, or that wait until their producer is
    replaced."""
    waiting: int
    """The number of transactions that wait because all producers are in use."""
    replaced: int
    """The number of producers that have been replaced so far, because they were fenced or otherwise
    broken."""
    producers: Mapping[str, Statistics]
    """The figures of each producer, by its ``transactional_id``. They do not include a producer
    that is being replaced, or whose replacement could not start."""


class _Start:
    """An attempt to start a producer in place of one that broke."""

    def __init__(self) -> None:
        self.ended = anyio.Event()
        self.failure: Exception | None = None


class _Member:
    """One ``transactional_id`` of the pool, and its producer."""

    def __init__(self, settings: ProducerSettings) -> None:
        self.settings = settings
        self.producer: SendProducer | None = None
        #: The attempt in progress, if any.
        self.start: _Start | None = None

    @property
    def is_usable(self) -> bool:
        """Whether its producer can begin a transaction."""
        return self.producer is not None and self.producer.statistics().state == "open"


class TransactionPool(anyio.AsyncContextManagerMixin):
    """A pool of transactional producers. Each producer runs one transaction at a time.

    ::

        settings = ProducerSettings(bootstrap_servers="localhost:9092", transactional_id="billing")
        async with TransactionPool(settings, size=4) as pool:
            async with pool.transaction() as tx:
                await tx.send(ProducerRecord("invoices", b"42 EUR", b"alice"))

    The producers have the transactional ids ``billing-0`` to ``billing-3``. All of them start when
    the block begins. The pool first starts one producer alone, so that it reports a wrong setting
    only once. It then starts the others at the same time. The start of each producer ends any
    transaction that an earlier process left open under the producer's ``transactional_id``.

    The pool closes a producer that was fenced or otherwise broken, and replaces it. The new
    producer has the same ``transactional_id``, a new client and a new epoch. If the new producer
    cannot start, the next transaction that needs this producer tries to start it again. A
    transaction that waits for a producer whose start fails raises the error of the start. After
    :exc:`TransactionOutcomeUnknown`, the producer itself replaces its client. The brokers then
    finish the commit or abort the transaction before the next transaction with that
    ``transactional_id`` begins.

    When the block has ended, all producers are closed. If the block ends without an exception, the
    pool closes all producers at the same time, within ``close_timeout``. If the block fails or is
    cancelled, it ends within ``cancel_timeout``. If a client library hangs, the end takes about 5 s
    more. In all cases, open transactions of other tasks are aborted.

    Args:
        settings: as for :func:`open_send_producer`. The ``transactional_id`` is the prefix of the
            producers' transactional ids. Two processes that run at the same time need different
            prefixes; otherwise, they fence each other.
        size: the number of producers, which is also the largest number of concurrent transactions.
        driver: as for :func:`open_send_producer`. A callable is called for each
            client of each producer.
        observers: as for :func:`open_send_producer`. All producers share them.
        fields: as for :func:`open_send_producer`.

    Raises:
        SettingsError: a setting or ``size`` is wrong, or there is no ``transactional_id``.
            ``async with`` raises the same errors as the start of :func:`open_send_producer`.
        TypeError: ``settings`` or ``observers`` has a wrong type.
        ProducerClosed: ``async with`` was used with this pool before.
        ProducerMisused: different tasks entered and left the block.

    Cancellation at any time releases all resources.
    """

    def __init__(
        self,
        settings: ProducerSettings | None = None,
        /,
        size: int = 4,
        *,
        driver: DriverName | DriverFactory | None = None,
        observers: Iterable[Observer] = (),
        **fields: Unpack[SettingsFields],
    ) -> None:
        settings = settings_for(settings, fields)
        check_count("size", size)
        prefix = settings.transactional_id
        if prefix is None:
            raise SettingsError(
                "transactional_id is missing: TransactionPool needs it as the prefix of its "
                "producers' transactional ids"
            )
        self._prefix = prefix
        # Without the annotation, pyright infers str instead of the literal type.
        self._driver: DriverName | DriverFactory | None = driver
        self._observers = check_observers(observers)
        self._members = [
            _Member(settings.with_transactional_id(f"{prefix}-{number}")) for number in range(size)
        ]
        self._free = deque(self._members)
        self._turns = anyio.CapacityLimiter(size)
        self._replaced = 0
        self._state: Literal["new", "open", "closed"] = "new"  # "new" until all have started
        self._was_entered = False
        self._affinity: Affinity
        self._context: contextvars.Context
        self._tasks: anyio.abc.TaskGroup

    def __repr__(self) -> str:
        return f"<TransactionPool {self._state} {self._prefix!r} size={len(self._members)}>"

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Borrow a producer for one transaction, for the length of an ``async with`` block.

        If all producers are in use, the call waits. The pool serves waiting calls in their order.
        The block then works as in :meth:`SendProducer.transaction`.

        Raises:
            ProducerFenced: another producer uses this ``transactional_id`` now, or the transaction
                took too long; see :exc:`ProducerFenced`. The pool replaces the producer. If the
                state of the transaction is ``ABORTED``, run the transaction again. If the state is
                ``UNKNOWN``, the transaction may be committed.
            SendProducerError: the producer was being replaced, and the new one could not be
                started; see :func:`start_send_producer`.
            TransactionError: this task already has a transaction of the pool, or as for
                :meth:`SendProducer.transaction`.
            TransactionAborted, TransactionOutcomeUnknown, ProducerBroken: as for
                :meth:`SendProducer.transaction`.
            ProducerClosed: the pool is closed, or was closed while the call waited.
            ProducerMisused: the pool was not opened, or it belongs to another event loop, thread or
                process.

        A call that is cancelled while it waits leaves the queue. Within the block and during the
        commit, cancellation has the same effect as in :meth:`SendProducer.transaction`.
        """
        return self._borrow()

    def statistics(self) -> TransactionPoolStatistics:
        """Take a snapshot of the pool's figures. This also works on a closed pool."""
        turns = self._turns.statistics()
        return TransactionPoolStatistics(
            size=len(self._members),
            in_use=turns.borrowed_tokens,
            waiting=turns.tasks_waiting,
            replaced=self._replaced,
            producers={
                cast("str", member.settings.transactional_id): member.producer.statistics()
                for member in self._members
                if member.producer is not None
            },
        )

    # --- the scope ---------------------------------------------------------------------------

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[TransactionPool]:
        if self._was_entered:
            raise ProducerClosed("this pool was opened before: make another one")
        self._was_entered = True
        async with plain_task_group(_LEFT_IN_ANOTHER_TASK) as self._tasks:
            try:
                self._affinity = Affinity(current_loop(), Step())
                self._context = contextvars.copy_context()
                await self._start_all()
                self._state = "open"
                yield self
                self._refuse()
                await self._close_all()
            finally:
                self._refuse()
                self._tasks.cancel_scope.cancel()

    async def _start_all(self) -> None:
        first, *others = self._members
        await self._start(first)
        failures: list[Exception] = []

        async def start(member: _Member) -> None:
            try:
                await self._start(member)
            except Exception as error:  # noqa: BLE001  # raised below, without a group
                failures.append(error)

        async with anyio.create_task_group() as tasks:
            for member in others:
                tasks.start_soon(start, member)
        raise_first(failures)

    def _refuse(self) -> None:
        """Begin no more transactions, and wake the calls that wait for a producer."""
        self._state = "closed"
        self._turns.total_tokens = float("inf")

    async def _close_all(self) -> None:
        self._affinity.check()
        async with anyio.create_task_group() as tasks:
            for member in self._members:
                if member.producer is not None:
                    tasks.start_soon(_close, member.producer)

    # --- one producer ------------------------------------------------------------------------

    async def _start(self, member: _Member) -> None:
        member.producer = await start_send_producer(
            self._tasks, member.settings, driver=self._driver, observers=self._observers
        )

    @asynccontextmanager
    async def _borrow(self) -> AsyncGenerator[Transaction]:
        self._check_open()
        # The garbage collector may close the block in another task.
        task = current_task()
        try:
            await self._turns.acquire_on_behalf_of(task)
        except RuntimeError as error:
            raise TransactionError(
                "this task already has an open transaction of the pool; a second one could wait "
                "forever: end the first, or use another task"
            ) from error
        try:
            self._check_open()
            member = next((one for one in self._free if one.is_usable), self._free[0])
            self._free.remove(member)
            try:
                producer = await self._producer_of(member)
                async with producer.transaction() as transaction:
                    yield transaction
            finally:
                self._free.append(member)
                # If no new producer could be started, the next transaction tries again.
                if self._state == "open" and member.producer is not None and not member.is_usable:
                    self._replace_soon(member)
        finally:
            self._turns.release_on_behalf_of(task)
            del task  # its exception may refer to this frame

    def _check_open(self) -> None:
        if self._state == "new":
            raise ProducerMisused(
                "the pool is not open: use `async with TransactionPool(settings, size) as pool:`"
            )
        if self._state == "closed":
            raise ProducerClosed("the pool is closed")
        self._affinity.check()

    async def _producer_of(self, member: _Member) -> SendProducer:
        if not member.is_usable:
            start = self._replace_soon(member)
            await start.ended.wait()
            self._check_open()
            if start.failure is not None:
                try:
                    raise start.failure
                finally:
                    start.failure = None  # its traceback refers to this frame
        if member.producer is None:  # the pool's tasks were cancelled, and its block has not ended
            raise ProducerClosed("the pool is closed")
        return member.producer

    def _replace_soon(self, member: _Member) -> _Start:
        """Replace a producer in a task of the pool, unless that is in progress.

        The task runs in the pool's context and not in the borrower's, because the task may outlive
        the borrower. If the borrower is cancelled, the start continues for the next borrower.
        """
        if member.start is None:
            member.start = _Start()
            self._context.copy().run(self._tasks.start_soon, self._replace, member, member.start)
        return member.start

    async def _replace(self, member: _Member, start: _Start) -> None:
        broken, member.producer = member.producer, None
        try:
            if broken is not None:
                await _close(broken)
            await self._start(member)
            self._replaced += 1
        except Exception as error:  # noqa: BLE001  # the transaction that waits for it raises it
            start.failure = error
        finally:
            member.start = None
            start.ended.set()


async def _close(producer: SendProducer) -> None:
    with suppress(UndeliveredRecords):  # the blocks of its transactions raise these failures
        await producer.aclose()
