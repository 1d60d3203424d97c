"""The producer: its public methods, which run in the caller's task. The engine does the rest."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, ClassVar, TypeVar, overload

import anyio
import anyio.lowlevel
from anyio.abc import ObjectReceiveStream

from ._admission import RefusingAdmission, admission_for
from ._cluster_probe import ClusterProbe
from ._delivery import Statistics
from ._durations import seconds_of
from ._engine import Engine
from ._exceptions import SettingsError, UndeliveredRecords
from ._flow import FlowSummary, Offsets, run_flow, run_sink, run_transactional_flow
from ._no_public_constructor import NoPublicConstructor
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
from ._shown import listed
from ._transaction import Transaction, Transactions
from ._validation import check_record
from ._warm_up import find_partitions, warm_up
from .drivers import ClusterDescription

__all__ = ["SendProducer"]

K = TypeVar("K")
V = TypeVar("V")
P = TypeVar("P")


@with_own_methods
class SendProducer(Sender, NoPublicConstructor):
    """A Kafka producer that reports the outcome of each record.

    It has no public constructor: create it with :func:`open_send_producer`,
    :func:`start_send_producer` or :class:`ProducerService`. Any number of tasks may use a producer,
    on the event loop on which it was opened.
    """

    _how_to_make: ClassVar[str] = (
        "SendProducer can't be constructed directly: use `async with open_send_producer(settings) "
        "as producer:`, or start_send_producer(task_group, settings)"
    )

    #: ``help()`` lists these first, in this order.
    _fields: ClassVar[tuple[str, ...]] = (
        "send",
        "send_many",
        "send_envelope",
        "enqueue",
        "enqueue_nowait",
        "flush",
        "flow",
        "sink",
        "transaction",
    )

    _transactions: Transactions
    _probe: ClusterProbe

    @classmethod
    def _create(cls, engine: Engine, probe: ClusterProbe) -> SendProducer:
        self = cls.__new__(cls)
        admission = admission_for(engine)
        transactional = engine.settings.transactional_id is not None
        self._set_up(engine, RefusingAdmission(engine) if transactional else admission)
        self._transactions = Transactions(engine, admission)
        self._probe = probe
        return self

    def __repr__(self) -> str:
        settings = self._engine.resolver.settings
        client = listed(settings.addresses) or type(settings.producer).__name__
        return f"<SendProducer {self._ledger.state.value} {client}>"

    async def flush(self) -> None:
        """Wait until every record that was accepted before this call has its outcome.

        During this wait, the client does not linger (``linger.ms``). The call does not wait for
        records that are accepted later. It does not raise delivery errors. Calls that wait for a
        record, such as :meth:`send` and :meth:`Delivery.wait`, raise the error of this record.

        Raises:
            ProducerClosed: the producer is closed.
            ProducerBroken, ProducerMisused: as for :meth:`send`.

        Cancellation ends only the waiting.
        """
        self._engine.check_usable()
        await self._engine.wait_until_settled()

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction for the length of an ``async with`` block.

        The records that are sent with the block's :class:`Transaction` are committed as a whole,
        or not at all. A producer with a ``transactional_id`` sends records only in transactions.

        If the block ends without an exception, and all records and offsets of the transaction were
        sent successfully, the transaction is committed. If the block raises an exception or is
        cancelled, the transaction is aborted, and the exception is raised unchanged. The abort is
        shielded from cancellation. It takes at most ``cancel_timeout``, and 5 s more if the client
        hangs. A producer has one transaction at a time. Other tasks wait for their turn, in the
        order of their calls.

        Raises:
            TransactionAborted: the transaction was aborted. Possible reasons: a record was not
                delivered, :meth:`Transaction.send_offsets` failed, the commit was refused or could
                not be requested, the client was given up, or the producer was closed. If a record
                was the reason, ``__cause__`` is the error of this record.
            TransactionOutcomeUnknown: the answer to the commit was lost, or did not arrive within
                ``delivery_timeout``.
            ProducerFenced: another producer uses this ``transactional_id`` now, or the transaction
                took too long; see :exc:`ProducerFenced`. This producer is broken. The transaction
                is aborted. But if the commit raised this error, the transaction may be committed,
                and :attr:`Transaction.state` is ``UNKNOWN``.
            TransactionError: the settings have no ``transactional_id``, the task is already in the
                block of a transaction, or no client could begin a transaction, for example because
                no client was open within ``delivery_timeout``.
            ProducerClosed: the producer is closed.
            ProducerBroken, ProducerMisused: as for :meth:`send`.

        If the block is cancelled before the commit is requested, the transaction is aborted. If the
        block is cancelled later, the producer waits at most ``cancel_timeout`` for the brokers'
        answer, and 5 s more if the client hangs. :attr:`Transaction.state` then has the result. If
        the commit fails or gets no answer in that time, the block raises that error instead of the
        cancellation exception.
        """
        return self._transactions.begin()

    @overload
    def flow(
        self,
        source: AsyncIterable[Message[K, V, P]],
        *,
        max_in_flight: int | None = None,
        offsets: Offsets | None = None,
        group_metadata: str | ConsumerGroupMetadata | Any = None,
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Result[K, V, P]]]: ...
    @overload
    def flow(
        self,
        source: AsyncIterable[MultiMessage[K, V, P]],
        *,
        max_in_flight: int | None = None,
        offsets: Offsets | None = None,
        group_metadata: str | ConsumerGroupMetadata | Any = None,
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[MultiResult[K, V, P]]]: ...
    @overload
    def flow(
        self,
        source: AsyncIterable[PassThroughMessage[P]],
        *,
        max_in_flight: int | None = None,
        offsets: Offsets | None = None,
        group_metadata: str | ConsumerGroupMetadata | Any = None,
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[PassThroughResult[P]]]: ...
    @overload
    def flow(
        self,
        source: AsyncIterable[Envelope[K, V, P]],
        *,
        max_in_flight: int | None = None,
        offsets: Offsets | None = None,
        group_metadata: str | ConsumerGroupMetadata | Any = None,
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Results[K, V, P]]]: ...
    def flow(
        self,
        source: AsyncIterable[Any],
        *,
        max_in_flight: int | None = None,
        offsets: Offsets | None = None,
        group_metadata: str | ConsumerGroupMetadata | Any = None,
    ) -> AbstractAsyncContextManager[ObjectReceiveStream[Any]]:
        """Send a stream of envelopes, and receive their results in the same order.

        ::

            async def envelopes():
                for number in range(3):
                    yield Message(ProducerRecord("orders", b"%d" % number), pass_through=number)

            settings = ProducerSettings(bootstrap_servers="localhost:9092")
            async with open_send_producer(settings) as producer:
                async with producer.flow(envelopes()) as results:
                    async for result in results:
                        print(result.pass_through, result.offset)

        Records are sent in the order of the source. A slow receiver applies back-pressure to the
        source. A producer without room applies back-pressure as well. Each call of ``receive``
        returns the result of the next envelope or raises the error of this envelope. After an
        error, the next call continues with the next envelope. If the source raises an exception,
        ``receive`` raises the exception after the results of all earlier envelopes.

        If the producer has a ``transactional_id``, the flow begins a transaction with the first
        envelope. It commits the transaction after ``eos_commit_interval``, when the source ends, or
        as soon as ``max_in_flight`` envelopes wait for the commit or for ``receive``. With the next
        envelope, it begins the next transaction. The results of a transaction can be received after
        its commit. If a transaction is not committed, ``receive`` raises the error of the
        transaction instead of returning the results of the transaction, and the flow ends.

        Args:
            source: an async iterable of :class:`Message`, :class:`MultiMessage` and
                :class:`PassThroughMessage`: for example an AnyIO receive stream, a Trio channel or
                an async generator.
            max_in_flight: how many envelopes may be in the flow. An envelope is in the flow until
                its result is received. The flow takes one further envelope from the source, and
                this envelope waits. None stands for the ``max_in_flight`` of the settings.
            offsets: a function that takes an envelope and returns, by topic and partition, the
                offsets of the next records to read after this envelope. The offsets are committed
                together with the records; see :meth:`Transaction.send_offsets`. This argument needs
                a ``transactional_id`` and ``group_metadata``.
            group_metadata: the consumer group of the offsets.

        Raises:
            SettingsError: an argument is wrong.

        If you leave the block early, the flow takes no more envelopes from the source. The producer
        withdraws records that the client does not have, as if their ``send`` were cancelled. If the
        flow has begun a transaction and has not requested its commit, the transaction is aborted.
        Closing the stream has the same effect.
        """
        settings = self._engine.settings
        limit = settings.max_in_flight
        if settings.transactional_id is None:
            if offsets is not None or group_metadata is not None:
                raise SettingsError("flow: offsets and group_metadata need a transactional_id")
            return run_flow(self, source, max_in_flight, limit)
        return run_transactional_flow(
            self.transaction,
            self._engine,
            source,
            limit=limit,
            max_in_flight=max_in_flight,
            interval=settings.eos_commit_interval,
            offsets=offsets,
            group_metadata=group_metadata,
        )

    async def sink(
        self,
        source: AsyncIterable[Envelope[Any, Any, Any]],
        *,
        max_in_flight: int | None = None,
        offsets: Offsets | None = None,
        group_metadata: str | ConsumerGroupMetadata | Any = None,
    ) -> FlowSummary:
        """Send a stream of envelopes to its end, as :meth:`flow` does, and return a summary.

        Args:
            source: as for :meth:`flow`.
            max_in_flight: as for :meth:`flow`.
            offsets: as for :meth:`flow`.
            group_metadata: as for :meth:`flow`.

        Raises:
            DeliveryError, MultiDeliveryError: an envelope was not delivered. The outcomes of later
                envelopes are not awaited.
            TransactionError: a transaction was not committed.
            SettingsError: as for :meth:`flow`.
            TypeError: the source has an element that is not an envelope.
            ProducerClosed, ProducerBroken, ProducerMisused: as for :meth:`send`.
            Exception: the exception of the source.

        Cancellation has the same effect as leaving the block of :meth:`flow` early.
        """
        return await run_sink(
            self.flow(
                source,
                max_in_flight=max_in_flight,
                offsets=offsets,
                group_metadata=group_metadata,
            )
        )

    async def partitions_for(self, topic: str) -> frozenset[int]:
        """Return the numbers of a topic's partitions.

        Args:
            topic: the topic's name. If the cluster creates topics on first use, this call may
                create the topic.

        Raises:
            SendProducerError: the cluster does not know the topic (see ``unknown_topic_timeout``),
                this client may not use it, or there was no answer within ``delivery_timeout``.
            RecordRejected: ``topic`` is not a valid topic name.
            ProducerClosed: the producer is closed.
            ProducerBroken, ProducerMisused: as for :meth:`send`.

        Cancellation ends only the waiting.
        """
        self._engine.check_usable()
        record, _ = check_record(ProducerRecord(topic, b""), set())
        await anyio.lowlevel.checkpoint_if_cancelled()
        limit = (self._engine.settings.delivery_timeout, "delivery_timeout")
        return await find_partitions(self._engine, record.topic, limit)

    async def warm_up(
        self,
        topics: Iterable[str | ProducerRecord[Any, Any]],
        *,
        timeout: float | timedelta | None = None,  # noqa: ASYNC109
    ) -> None:
        """Prepare topics, so that their first records are sent sooner. The call sends no records.

        ::

            settings = ProducerSettings(bootstrap_servers="localhost:9092")
            async with open_send_producer(settings) as producer:
                await producer.warm_up(["orders", ProducerRecord("audit", b"an example")])

        The producer waits for the metadata of all topics at the same time. For an example record,
        the driver thread then runs the serializers, and discards their results. In this way,
        confluent-kafka's ``AvroSerializer``, ``JSONSerializer`` and ``ProtobufSerializer`` register
        or look up the schema of the topic. The first record then finds the schema in the
        serializer's cache.

        Args:
            topics: topic names and example records, in any order. If the cluster creates topics on
                first use, this call may create the topics.
            timeout: the time for all topics together, as seconds or a ``timedelta``. None stands
                for ``delivery_timeout``.

        Raises:
            SendProducerError: the cluster does not know a topic (see ``unknown_topic_timeout``),
                this client may not use it, or there was no answer in time; the message names the
                topic.
            SerializationFailed: a serializer raised, returned a wrong type, or added an invalid
                header.
            RecordRejected: a topic name or an example record is invalid.
            SettingsError: ``timeout`` is not a duration above 0.
            TypeError: ``topics`` is not an iterable of topics and records. To pass a single topic
                or record, use a list with one element.
            ProducerClosed: the producer is closed.
            ProducerBroken, ProducerMisused: as for :meth:`send`.

        The first error ends the call. Other topics may already be prepared.

        Cancellation ends only the waiting. Requests that were sent, and a serializer that is
        running, continue.
        """
        limit = (self._engine.settings.delivery_timeout, "delivery_timeout")
        if timeout is not None:
            limit = (seconds_of("timeout", timeout, zero=False), "timeout")
        await warm_up(self._engine, topics, limit)

    async def check(
        self,
        *,
        timeout: float | timedelta = 5.0,  # noqa: ASYNC109
    ) -> ClusterDescription:
        """Ask the cluster to describe itself, for example for a readiness probe.

        In a worker thread, a second client connects with the producer's settings, sends its
        request, and disconnects. The call works before the producer's own client is open
        (``wait_for_cluster=False``), and does not disturb that client. If your own driver is a
        ``DescribingDriver``, the producer asks this driver instead.
        :attr:`Statistics.is_connected` sends no request: it shows whether the producer's own client
        reaches a broker.

        Args:
            timeout: how long the cluster has to answer, as seconds or a ``timedelta``.

        Returns:
            The cluster's id, controller and brokers. With the package's own drivers, the versions
            of the brokers are None.

        Raises:
            SendProducerError: the cluster did not answer in time; the addresses are not known yet;
                your own driver or client cannot describe the cluster; or the producer is creating
                your own driver at the moment.
            SettingsError: ``timeout`` is not a duration above 0, or a setting is wrong.
            ProducerClosed: the producer is closed.
            ProducerBroken, ProducerMisused: as for :meth:`send`.

        Concurrent calls run one after another. Cancellation ends only the waiting, and the second
        client disconnects within about twice the ``timeout``.
        """
        seconds = seconds_of("timeout", timeout, zero=False)
        self._engine.check_usable()
        return await self._probe.ask(seconds)

    def statistics(self) -> Statistics:
        """Take a snapshot of the producer's figures. The method also works on a closed producer."""
        return self._engine.statistics()

    async def aclose(self) -> None:
        """Stop accepting records, deliver the accepted records, and close the client.

        The call takes at most ``close_timeout``, and about 5 s more if the client library hangs.
        Records that are still pending after this time fail with a DeliveryError. The
        ``persistence`` of this error depends on whether the client had the record. Closing a closed
        producer only reports failures that nobody awaited. :func:`open_send_producer` calls this
        method at the end of its block, unless the block raised an exception.

        Raises:
            UndeliveredRecords: deliveries failed, and nobody awaited them.
            ProducerMisused: as for :meth:`send`.

        Cancellation shortens the closing to ``cancel_timeout``. After the producer is closed, the
        call raises the cancellation.
        """
        engine = self._engine
        engine.affinity.check()
        if engine.closing.done.is_set():
            await anyio.lowlevel.checkpoint()
        else:
            await engine.close()
        with engine.step:
            errors, count = engine.ledger.take_undelivered()
        if count:
            raise UndeliveredRecords(errors, count)
