"""A producer without a cluster, for the code under test.

It is a real producer on a driver in memory. So it applies back-pressure, withdraws records whose
caller is cancelled, raises failures that nobody awaited, and refuses records after it is closed.
The event loop calls the driver, and there is no thread. So tests work under Trio's ``MockClock``,
even with an autojump threshold.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn

import anyio
import anyio.lowlevel

from .. import (
    ConsumerGroupMetadata,
    DeliveryError,
    ProducerRecord,
    ProducerSettings,
    SendProducer,
    SendProducerError,
    TransactionError,
    open_send_producer,
)
from ..drivers import ConsumedOffset
from . import factories
from ._checks import check_callable
from ._polled_driver import PolledFakeDriver
from ._rules import AnswerRule

__all__ = ["FakeProducer", "fake_producer"]

#: A host name that never exists (RFC 2606).
_ADDRESS = "fake.invalid:9092"

#: The test answers no record after its block has ended, so the end need not wait as long as for a
#: cluster.
_DEFAULTS = ProducerSettings(bootstrap_servers=_ADDRESS, close_timeout=1.0, cancel_timeout=1.0)

#: Seconds to wait for a reaction of the producer.
_PATIENCE = 10.0


class FakeProducer:
    """A producer without a cluster. :func:`fake_producer` creates it.

    Attributes:
        producer: the :class:`~anyio_sendproducer.SendProducer`, for the code under test.
        answer: decides which records fail. It is an :data:`AnswerRule`, such as a
            :class:`FailWhen`, and is called before each record is acknowledged, also by
            :meth:`acknowledge`. None stands for a rule that fails no record.
    """

    producer: SendProducer
    answer: AnswerRule | None
    _driver: PolledFakeDriver
    _changed: anyio.Event
    _commit_errors: list[SendProducerError]

    def __init__(self, *_: NoReturn, **__: NoReturn) -> None:
        raise TypeError("FakeProducer is made by `async with fake_producer() as fake:`")

    @classmethod
    def _create(
        cls, producer: SendProducer, driver: PolledFakeDriver, answer: AnswerRule | None
    ) -> FakeProducer:
        self = object.__new__(cls)
        self.producer = producer
        self.answer = answer
        self._driver = driver
        self._changed = anyio.Event()
        self._commit_errors = []
        driver.judge = self._judge
        driver.end_error = self._end_error
        driver.listener = self._listener()
        return self

    def __repr__(self) -> str:
        return f"<FakeProducer sent={len(self._driver.submitted)} pending={len(self.pending)}>"

    # --- what was sent -----------------------------------------------------------------------

    @property
    def sent(self) -> list[ProducerRecord[Any, Any]]:
        """The records that the client received, in order, whether they were delivered or not. Keys
        and values are not serialized.

        A record that was just enqueued may arrive a moment later, so use :meth:`wait_until_sent`.
        """
        return [*self._driver.submitted]

    def sent_to(self, topic: str) -> list[ProducerRecord[Any, Any]]:
        """Return the records in :attr:`sent` that are for this topic."""
        return [record for record in self._driver.submitted if record.topic == topic]

    @property
    def written(self) -> dict[tuple[str, int], list[ProducerRecord[Any, Any]]]:
        """The acknowledged records in serialized form, by topic and partition, in the order of
        their offsets. Records of aborted transactions are included."""
        return {place: [*records] for place, records in self._driver.written.items()}

    @property
    def pending(self) -> list[ProducerRecord[Any, Any]]:
        """The records in :attr:`sent` that have not been answered, in order. A record whose
        deadline has passed stays in this list until it is answered."""
        return self._driver.under_way

    @property
    def transactions(self) -> list[tuple[str, list[ProducerRecord[Any, Any]]]]:
        """For each transaction that has ended, ``"committed"`` or ``"aborted"``, and its records.
        The acknowledged records of both kinds of transactions are in :attr:`written`."""
        return [*self._driver.transactions]

    @property
    def offsets(self) -> list[tuple[ConsumedOffset, ConsumerGroupMetadata]]:
        """The offsets that were sent in transactions, each with its consumer group."""
        return [*self._driver.offsets]

    async def wait_until_sent(
        self,
        count: int,
        *,
        timeout: float | timedelta = _PATIENCE,  # noqa: ASYNC109
    ) -> None:
        """Wait until the client has received ``count`` records since the producer's start.

        Args:
            count: how many records.
            timeout: the time to wait, as seconds or a ``timedelta``.

        Raises:
            TimeoutError: the client received fewer records in time. The message says how many.

        Cancellation ends the wait and changes nothing else.
        """
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(seconds):
            while len(self._driver.submitted) < count:
                await self._changed.wait()
            return
        raise TimeoutError(
            f"{len(self._driver.submitted)} records were sent within {seconds:g} s, not {count}"
        )

    # --- the cluster -------------------------------------------------------------------------

    @property
    def check_error(self) -> SendProducerError | None:
        """The error that :meth:`~anyio_sendproducer.SendProducer.check` raises; None if the cluster
        answers."""
        return self._driver.describe_error

    @check_error.setter
    def check_error(self, error: SendProducerError | None) -> None:
        self._driver.describe_error = error

    # --- answers -----------------------------------------------------------------------------

    @property
    def manual(self) -> bool:
        """Whether records wait for :meth:`acknowledge` or :meth:`fail`. If False, they are answered
        at once. After a change to False, waiting records are answered together with the next
        record."""
        return self._driver.manual

    @manual.setter
    def manual(self, by_hand: bool) -> None:
        self._driver.manual = by_hand

    def acknowledge(
        self,
        count: int | None = None,
        *,
        topic: str | None = None,
        where: Callable[[ProducerRecord[Any, Any]], bool] | None = None,
    ) -> int:
        """Acknowledge the oldest :attr:`pending` records. A record for which :attr:`answer` returns
        an error fails.

        Args:
            count: how many at most; None for all.
            topic: only records for this topic; None for every topic.
            where: only records for which this function returns True; None for all.

        Returns:
            The number of records that were acknowledged or failed. A record that was just enqueued
            may not be pending yet, so await :meth:`wait_until_sent` first. A task that awaits one
            of the records continues only after the calling task has yielded to the event loop.

        Raises:
            TypeError: ``topic`` is not a str, or ``where`` is not callable.
            ValueError: ``count`` is neither None nor an int of 0 or more.
            BaseException: an exception that :attr:`answer` or ``where`` raises. The records stay
                pending.
        """
        return self._driver.acknowledge(count, topic=topic, where=where)

    def fail(
        self,
        error: Callable[[ProducerRecord[Any, Any]], DeliveryError] = factories.rejected,
        count: int | None = None,
        *,
        topic: str | None = None,
        where: Callable[[ProducerRecord[Any, Any]], bool] | None = None,
    ) -> int:
        """Fail the oldest :attr:`pending` records.

        Args:
            error: a callable that takes a record and returns its error, such as
                ``factories.timeout``.
            count: how many at most; None for all.
            topic: only records for this topic; None for every topic.
            where: only records for which this function returns True; None for all.

        Returns:
            The number of records that failed. A task that awaits one of the records continues only
            after the calling task has yielded to the event loop.

        Raises:
            TypeError: ``error`` or ``where`` is not callable, or ``topic`` is not a str.
            ValueError: ``count`` is neither None nor an int of 0 or more.
            BaseException: an exception that ``error`` or ``where`` raises. The records stay
                pending.
        """
        return self._driver.fail(error, count, topic=topic, where=where)

    def fail_commit(self, error: TransactionError | None = None) -> None:
        """Let the next commit of a transaction fail.

        Args:
            error: the error; with None, ``factories.transaction_outcome_unknown()``.
        """
        self._commit_errors.append(error or factories.transaction_outcome_unknown())

    # --- failures of the client --------------------------------------------------------------

    async def break_client(self, error: BaseException | None = None) -> None:
        """Break the client, so that it can no longer send, and wait until the producer has replaced
        it.

        The :attr:`pending` records fail, as possibly persisted.

        Args:
            error: why the client broke.

        Raises:
            TimeoutError: the client was not replaced within 10 s.
        """
        generations = self.producer.statistics().generations
        self._driver.break_client(error)
        await self._until(lambda: self.producer.statistics().generations > generations)

    async def break_producer(self, error: Exception | None = None) -> None:
        """Break the producer for good, and wait until it raises
        :exc:`~anyio_sendproducer.ProducerBroken`.

        Args:
            error: why the producer broke.

        Raises:
            TimeoutError: the producer was not broken within 10 s.
        """
        self._driver.poll_error = error or RuntimeError("the fake client broke")
        self._driver.ring()
        await self._until(self._is_broken)

    async def fence(self) -> None:
        """Let another producer take over the ``transactional_id``, and wait until this producer
        raises :exc:`~anyio_sendproducer.ProducerBroken`, whose ``__cause__`` is a
        :exc:`~anyio_sendproducer.ProducerFenced`.

        Raises:
            TimeoutError: the producer was not broken within 10 s.
        """
        self._driver.break_client(factories.fenced())
        await self._until(self._is_broken)

    # -----------------------------------------------------------------------------------------

    def _judge(self, record: ProducerRecord[Any, Any]) -> DeliveryError | None:
        return None if self.answer is None else self.answer(record)

    def _end_error(self, commit: bool) -> SendProducerError | None:  # noqa: FBT001
        return self._commit_errors.pop(0) if commit and self._commit_errors else None

    def _listener(self) -> Callable[[], object]:
        loop: Any = anyio.lowlevel.current_token().native_token
        # asyncio's event loop and Trio's token name the same function differently.
        call_soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon

        def notify() -> None:
            over, self._changed = self._changed, anyio.Event()
            over.set()

        def listener() -> None:
            # A finalizer may send in the middle of any code of the event loop, so the event is set
            # later. A loop that has ended raises; nobody waits there any more.
            with suppress(RuntimeError):
                call_soon(notify)

        return listener

    def _is_broken(self) -> bool:
        return self.producer.statistics().state == "broken"

    async def _until(self, condition: Callable[[], bool]) -> None:
        # This takes a few cycles of the event loop. The bound is in real time, because the event
        # loop's clock may stand still.
        give_up = time.monotonic() + _PATIENCE
        await anyio.lowlevel.checkpoint()
        while not condition():
            if time.monotonic() > give_up:
                raise TimeoutError(
                    f"the producer did not reach the expected state within {_PATIENCE:g} s"
                )
            await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def fake_producer(
    settings: ProducerSettings | None = None,
    *,
    answer: AnswerRule | None = None,
    manual: bool = False,
    partitions: int = 4,
    start_error: BaseException | None = None,
) -> AsyncGenerator[FakeProducer]:
    """Open a producer that needs no cluster, for the length of an ``async with`` block.

    ::

        async with fake_producer() as fake:
            await fake.producer.send(ProducerRecord("orders", b"two tins", key=b"42"))
        assert fake.sent == [ProducerRecord("orders", b"two tins", key=b"42")]

    The producer works like one from :func:`~anyio_sendproducer.open_send_producer`, but it has no
    driver thread. Serializers and a partitioner run on the event loop's thread, and must not wait
    for the event loop.

    Args:
        settings: the settings of the code under test, or None. The fake ignores the settings that
            find a cluster or create a client. It does not look up services, fetch secrets or create
            a client. With None, leaving the block takes at most a second, even if some records were
            never answered.
        answer: decides which records fail; see :attr:`FakeProducer.answer`.
        manual: whether the test decides when, and how, each record is answered.
        partitions: how many partitions each topic has.
        start_error: an error to raise instead of starting, for example
            ``factories.start_failed()``.

    Yields:
        The fake, whose ``producer`` is the :class:`~anyio_sendproducer.SendProducer`.

    Raises:
        TypeError: ``answer`` is not callable.
        ValueError: ``partitions`` is not an int of 1 or more.
        BaseException: the ``start_error``.
        UndeliveredRecords: the block ended without an error, but nobody awaited a failed record.
        ProducerMisused: different tasks entered and left the block.

    Cancellation releases all resources.
    """
    if answer is not None:
        check_callable("answer", answer)
    driver = PolledFakeDriver(partitions=partitions, manual=manual, threadless=True)
    driver.open_error = start_error
    async with open_send_producer(_without_cluster(settings), driver=driver) as producer:
        yield FakeProducer._create(producer, driver, answer)  # pyright: ignore[reportPrivateUsage]


def _without_cluster(settings: ProducerSettings | None) -> ProducerSettings:
    if settings is None:
        return _DEFAULTS
    return settings.evolve(
        bootstrap_servers=_ADDRESS,
        service_name="",
        enrich=None,
        producer=None,
        producer_factory=None,
        close_producer_on_exit=True,
        wait_for_cluster=True,
    )
