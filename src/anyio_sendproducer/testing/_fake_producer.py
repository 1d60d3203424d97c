"""A producer without a cluster, to be given to the code under test.

It is the real one over a driver in memory, so it does all that the real one does: it holds up who
sends too much, withdraws what is cancelled, raises what nobody awaited, and refuses to be used when
it is closed. The event loop calls everything of the driver, and no thread takes part. So tests work
under Trio's ``MockClock``, with autojump and without.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import anyio
import anyio.lowlevel

from .._exceptions import DeliveryError, SendProducerError, TransactionError
from .._loops import current_loop
from .._producer import SendProducer, open_send_producer
from .._records import ConsumerGroupMetadata, ProducerRecord
from .._settings import ProducerSettings
from ..drivers import ConsumedOffset
from . import factories
from ._polled_driver import PolledFakeDriver
from ._rules import AnswerRule

__all__ = ["FakeProducer", "fake_producer"]

#: A name that is nobody's (RFC 2606).
_ADDRESS = "fake.invalid:9092"

#: Nobody answers by hand any more when the block has ended, so a clean exit need not wait as long
#: as for a cluster.
_DEFAULTS = ProducerSettings(bootstrap_servers=_ADDRESS, close_timeout=1.0, cancel_timeout=1.0)

#: Seconds that a step of the producer may take.
_PATIENCE = 10.0


class FakeProducer:
    """A producer without a cluster; :func:`fake_producer` makes it.

    Attributes:
        producer: the :class:`~anyio_sendproducer.SendProducer`, to be given to the code under test.
        answer: the rule by which records fail, a callable or a :class:`FailWhen`; None: none does.
            It is asked before a record is acknowledged, by hand too.
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
        """The records that the client was given, as they were sent, in order; whatever became of
        them. One that was enqueued a moment ago comes in a moment: see :meth:`wait_until_sent`.
        """
        return [*self._driver.submitted]

    def sent_to(self, topic: str) -> list[ProducerRecord[Any, Any]]:
        """Those of :attr:`sent` that are to this topic."""
        return [record for record in self._driver.submitted if record.topic == topic]

    @property
    def written(self) -> dict[tuple[str, int], list[ProducerRecord[Any, Any]]]:
        """The records that were acknowledged, serialized as a consumer would read them, by topic
        and partition, in the order of their offsets."""
        return {place: [*records] for place, records in self._driver.written.items()}

    @property
    def pending(self) -> list[ProducerRecord[Any, Any]]:
        """Those of :attr:`sent` that were not answered yet, in order."""
        return self._driver.under_way

    @property
    def transactions(self) -> list[tuple[str, list[ProducerRecord[Any, Any]]]]:
        """``"committed"`` or ``"aborted"``, and its records, for each transaction that has ended.
        Those of both are in :attr:`written`."""
        return [*self._driver.transactions]

    @property
    def offsets(self) -> list[tuple[ConsumedOffset, ConsumerGroupMetadata]]:
        """The offsets that were sent in transactions, each with its consumer group."""
        return [*self._driver.offsets]

    async def wait_until_sent(self, count: int, *, timeout: float = _PATIENCE) -> None:  # noqa: ASYNC109
        """Wait until the client was given so many records, counted from the producer's start.

        Args:
            count: how many.
            timeout: for how many seconds.

        Raises:
            TimeoutError: it was not given so many; the message tells how many.

        Cancellation stops the waiting and nothing else.
        """
        await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(timeout):
            while len(self._driver.submitted) < count:
                await self._changed.wait()
            return
        raise TimeoutError(
            f"{len(self._driver.submitted)} records were sent within {timeout:g} s, not {count}"
        )

    # --- answers -----------------------------------------------------------------------------

    @property
    def manual(self) -> bool:
        """Whether records wait for :meth:`acknowledge` and :meth:`fail`, or are answered at
        once. What waits when this is set to False is answered with what is sent next."""
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
        """Acknowledge the oldest of the :attr:`pending` records, unless :attr:`answer` has an error
        for them.

        Args:
            count: how many; None for all.
            topic: those to this topic alone; None for all.
            where: those alone for which it returns True; None for all.

        Returns:
            How many there were; 0 where the producer has not handed any over yet, as is so right
            after a call that does not wait: await :meth:`wait_until_sent` before. Whoever awaits
            them goes on in its next turn.
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
        """Fail the oldest of the :attr:`pending` records.

        Args:
            error: makes the error of each: a callable that takes the record, such as
                ``factories.timeout``.
            count: how many; None for all.
            topic: those to this topic alone; None for all.
            where: those alone for which it returns True; None for all.

        Returns:
            How many there were. Whoever awaits them goes on in its next turn.
        """
        return self._driver.fail(error, count, topic=topic, where=where)

    def fail_commit(self, error: TransactionError | None = None) -> None:
        """Have the next commit of a transaction fail.

        Args:
            error: what it fails with; None: ``factories.transaction_outcome_unknown()``.
        """
        self._commit_errors.append(error or factories.transaction_outcome_unknown())

    # --- failures of the client --------------------------------------------------------------

    async def break_client(self, error: BaseException | None = None) -> None:
        """Have the client break, as one does that the brokers will not take anything from any more,
        and wait until the producer has another one in its place.

        What is :attr:`pending` fails, possibly persisted.

        Args:
            error: what broke it.

        Raises:
            TimeoutError: there was no other client within 10 s.
        """
        generations = self.producer.statistics().generations
        self._driver.break_client(error)
        await self._until(lambda: self.producer.statistics().generations > generations)

    async def break_producer(self, error: Exception | None = None) -> None:
        """Have the producer break for good, and wait until it has: from then on it raises
        :exc:`~anyio_sendproducer.ProducerBroken`.

        Args:
            error: what broke it.

        Raises:
            TimeoutError: it was not broken within 10 s.
        """
        self._driver.poll_error = error or RuntimeError("the fake client broke")
        self._driver.ring()
        await self._until(self._is_broken)

    async def fence(self) -> None:
        """Have another producer take over the ``transactional_id``, and wait until this one knows:
        from then on it raises :exc:`~anyio_sendproducer.ProducerBroken`, whose ``__cause__`` is the
        :exc:`~anyio_sendproducer.ProducerFenced`.

        Raises:
            TimeoutError: it did not know within 10 s.
        """
        self._driver.break_client(factories.fenced())
        await self._until(self._is_broken)

    # -----------------------------------------------------------------------------------------

    def _judge(self, record: ProducerRecord[Any, Any]) -> DeliveryError | None:
        return None if self.answer is None else self.answer(record)

    def _end_error(self, commit: bool) -> SendProducerError | None:  # noqa: FBT001
        return self._commit_errors.pop(0) if commit and self._commit_errors else None

    def _listener(self) -> Callable[[], object]:
        loop = current_loop()

        def notice() -> None:
            over, self._changed = self._changed, anyio.Event()
            over.set()

        return lambda: loop.call_soon_threadsafe(notice)

    def _is_broken(self) -> bool:
        return self.producer.statistics().state == "broken"

    async def _until(self, condition: Callable[[], bool]) -> None:
        # A few turns of the loop lead to it. The bound is in real time: the loop's clock may stand
        # still.
        give_up = time.monotonic() + _PATIENCE
        await anyio.lowlevel.checkpoint()
        while not condition():
            if time.monotonic() > give_up:
                raise TimeoutError(f"it did not come to that within {_PATIENCE:g} s")
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

    All else is as with :func:`~anyio_sendproducer.open_send_producer`, except that no thread takes
    part: serializers run on the event loop's thread, and must not wait for the event loop.

    Args:
        settings: those of the code under test, or None. How to find a cluster and to make a client
            is left out of them: nothing is looked up, no secret fetched, no client made. With None,
            the block ends within a second also where records were never answered.
        answer: the rule by which records fail; see :attr:`FakeProducer.answer`.
        manual: leave it to the test when, and how, each record is answered.
        partitions: how many partitions each topic has.
        start_error: raised in place of a start, such as ``factories.start_failed()``.

    Yields:
        The fake, whose ``producer`` is the :class:`~anyio_sendproducer.SendProducer`.

    Raises:
        BaseException: the ``start_error``.
        UndeliveredRecords: the block ended cleanly, and deliveries failed that nobody awaited.

    Cancellation leaves nothing behind.
    """
    driver = PolledFakeDriver(partitions=partitions, manual=manual, inline=True)
    driver.open_error = start_error
    async with open_send_producer(_without_a_cluster(settings), driver=driver) as producer:
        yield FakeProducer._create(producer, driver, answer)  # pyright: ignore[reportPrivateUsage]


def _without_a_cluster(settings: ProducerSettings | None) -> ProducerSettings:
    if settings is None:
        return _DEFAULTS
    return settings.evolve(
        bootstrap_servers=_ADDRESS,
        service_name="",
        enrich=None,
        producer=None,
        producer_factory=None,
        close_producer_on_exit=True,
    )
