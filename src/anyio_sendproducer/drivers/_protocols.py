"""The protocol between the producer and its drivers: plain blocking Python, no AnyIO, no futures.

Which thread calls which method:

- The driver thread, which is the producer's own: ``open``, ``submit``, ``partitions_for``, the
  methods for transactions, and ``last_error``, one at a time.
- The event loop, at any time: ``last_error``, ``is_disconnected``, ``metrics``, ``hurry``, ``poll``
  and ``watch``; and ``submit`` of a :class:`DirectDriver`.
- Any thread: ``close``, even while another method runs. That method must then return soon.
- A thread of its own: ``describe``.

If the factory of the driver has the attribute ``threadless = True``, the event loop calls
everything. The producer then ignores ``wait_for_cluster=False``: it looks a service up, calls
``enrich`` and opens the driver before the block begins, and the start raises their errors. If a
later driver, which replaces a broken one, can't be opened, the producer breaks, because a pause
before another attempt would stop the event loop.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

from .._exceptions import DeliveryError
from .._records import ConsumerGroupMetadata, ProducerRecord, RecordMetadata
from .._settings import ProducerSettings

__all__ = [
    "HOW_FAR",
    "BrokerDescription",
    "ClusterDescription",
    "ConsumedOffset",
    "Deadline",
    "DescribingDriver",
    "DirectDriver",
    "Driver",
    "DriverFactory",
    "LingeringDriver",
    "Outcome",
    "PolledDriver",
    "Sink",
    "Submission",
    "Submitted",
]

Outcome = RecordMetadata | DeliveryError
"""The outcome of one record: a :class:`~anyio_sendproducer.RecordMetadata` if it was delivered,
otherwise a :exc:`~anyio_sendproducer.DeliveryError`."""


class Submission(Protocol):
    """One record that a driver gets. The driver passes the same object back with the outcome."""

    record: ProducerRecord[Any, Any]
    """The record to send, with its key and value before serialization."""
    size: int
    """The size of the record's key, value and headers in bytes; an estimate if there are
    serializers."""


class Sink(Protocol):
    """An object that gets the reports of a driver. Each method may be called from any thread, never
    blocks, and never raises an exception."""

    def completed(self, submissions: Sequence[Any], outcomes: Sequence[Outcome], /) -> None:
        """Report the outcomes of these submissions. Each submission is reported once.

        The two sequences have the same length. One sequence of pairs would double the work of the
        garbage collector.
        """
        ...

    def metadata_changed(self) -> None:
        """Report that the driver may now accept submissions that :meth:`Driver.submit` returned as
        held."""
        ...

    def broken(self, error: BaseException, /) -> None:
        """Report that the client can no longer send. The producer closes this driver, and opens a
        new driver. If the error is :exc:`~anyio_sendproducer.ProducerFenced`, or the user passed an
        existing client, the producer breaks instead."""
        ...

    def ready(self) -> None:
        """Report that :meth:`PolledDriver.poll` may have outcomes to report."""
        ...


@dataclasses.dataclass(slots=True)
class Submitted:
    """The result of passing submissions to a driver."""

    held: list[Any] = dataclasses.field(default_factory=list[Any])
    """The submissions that the driver did not accept, in the order in which they were passed. One
    reason is that the metadata of a topic is missing."""
    sizes: list[tuple[Any, int]] = dataclasses.field(default_factory=list[tuple[Any, int]])
    """The true sizes of submissions whose size was an estimate, in bytes."""


class Deadline:
    """The deadline of one call. A waiting caller may bring the deadline forward.

    Args:
        seconds: the time from now until the deadline.
    """

    __slots__ = ("at",)

    def __init__(self, seconds: float) -> None:
        #: The time of the deadline, in seconds of :func:`time.monotonic`.
        self.at: float = time.monotonic() + seconds

    def hurry(self, seconds: float) -> None:
        """Bring the deadline forward to at most ``seconds`` from now."""
        self.at = min(self.at, time.monotonic() + seconds)

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self.at


@dataclasses.dataclass(frozen=True, slots=True)
class ConsumedOffset:
    """The position of a consumer group in a partition."""

    topic: str
    """The topic that was read."""
    partition: int
    """The partition's number, from 0."""
    offset: int
    """The offset of the next record to read."""
    metadata: str = ""
    """A text that the consumer group stores with the offset."""
    leader_epoch: int = -1
    """The leader epoch of the last record that was read; -1 if it is unknown."""


class Driver(Protocol):
    """A blocking Kafka producer."""

    def open(self, sink: Sink, /) -> None:
        """Connect, and return after the cluster has answered.

        The call takes at most ``start_timeout``, and ends soon after another thread calls
        :meth:`close`.

        Raises:
            ProducerStartError: no broker answered in time, the client could not be created, or the
                driver was closed.
            ProducerFenced: another producer took over the ``transactional_id``.
            SettingsError: the client refused a setting.
        """
        ...

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        """Serialize records and pass them to the client, in order, without waiting for a broker.

        The driver reports the failure of a single record as the outcome of this record. If the
        metadata of a topic is missing, the driver requests it. The driver returns the topic's
        records as held, unless the client can keep them until the metadata arrives.

        :func:`serialize_record` calls the serializers of the settings. If the settings have a
        ``partitioner``, the driver calls :func:`choose_partition` with the topic's partitions for
        each record whose ``partition`` is None. The driver sends the record to the chosen
        partition. If the partitions are not known yet, the driver returns the record as held, and
        calls the partitioner later.
        """
        ...

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        """Return a topic's partitions, or None if the metadata is missing and was requested.

        Raises:
            SendProducerError: the cluster has no such topic, or this client may not use it.
        """
        ...

    def begin_transaction(self) -> None:
        """Begin a transaction. If a transaction is already open, do nothing, so that the call can
        be repeated.

        The producer calls this and the next two methods only if the settings have a
        ``transactional_id``.

        Raises:
            TransactionAborted: the client can only abort.
            TransactionError: the transaction could not be begun.
            ProducerFenced: another producer took over the ``transactional_id``.
            ProducerClosed: another thread called :meth:`close`.
        """
        ...

    def send_offsets(
        self,
        offsets: Sequence[ConsumedOffset],
        group: ConsumerGroupMetadata,
        deadline: Deadline,
        /,
    ) -> None:
        """Add offsets of a consumer group to the transaction.

        Raises:
            TransactionAborted: the transaction can only be aborted.
            TransactionError: the offsets could not be sent.
            ProducerFenced: another producer took over the ``transactional_id``.
            ProducerClosed: another thread called :meth:`close`.
        """
        ...

    def end_transaction(self, commit: bool, deadline: Deadline, /) -> None:  # noqa: FBT001
        """Commit the transaction, or abort it.

        All records of a transaction have their outcomes before it is committed. If a transaction is
        aborted, the client drops those records of the transaction that it has not sent.

        The method returns after the brokers have answered, soon after the deadline, or soon after
        another thread called :meth:`close`.

        Raises:
            TransactionAborted: the transaction could not be committed. The caller must abort it.
            TransactionOutcomeUnknown: the commit was requested, and there was no answer.
            TransactionError: the transaction could not be ended.
            ProducerFenced: another producer took over the ``transactional_id``.
            ProducerClosed: another thread called :meth:`close`.
        """
        ...

    def last_error(self) -> Exception | None:
        """Return the error that keeps the client from reaching a broker that it needs, or None.

        :exc:`~anyio_sendproducer.ProducerFenced` means that another producer has taken over the
        ``transactional_id``, or may have done so. The producer then opens no further client.

        The text of the returned error becomes part of the error of each record that times out. The
        event loop calls this method: it must not block.
        """
        ...

    def is_disconnected(self) -> bool:
        """Return whether the client's last attempt to connect failed for every known broker.

        The event loop calls this method: it must not block.
        """
        ...

    def metrics(self) -> Mapping[str, Any]:
        """Return the client's own metrics under the client's own names; empty if it has none.

        The event loop calls this method: it must not block.
        """
        ...

    def close(self, timeout: float, /) -> None:
        """Close the client and end its threads within about ``timeout`` seconds; 0 means by force.

        During this call, the driver still reports the outcomes that it gets from the client. A
        second call does nothing.
        """
        ...


@runtime_checkable
class DirectDriver(Driver, Protocol):
    """A driver whose client accepts records without waiting.

    The event loop itself usually submits small batches, which avoids a switch to the driver thread.
    """

    direct: bool
    """Whether the event loop may call :meth:`Driver.submit` with a few records. During this call,
    other threads may only close the driver or call ``describe``. False if the call would run a
    serializer or a partitioner of the user. The producer reads this attribute once, when the driver
    is open."""


@runtime_checkable
class PolledDriver(DirectDriver, Protocol):
    """A driver whose client accepts records without waiting, and reports only when it is polled.

    The event loop itself submits records and polls the client, which avoids two switches between
    threads. The thread that calls :meth:`poll` does the work for each report, so another thread
    would only compete with the event loop for the interpreter. While there is little to report, a
    thread of the driver polls the client instead.
    """

    direct: bool
    """Whether the event loop may also call :meth:`Driver.submit`, even while another thread calls
    other methods. False if the call would run a serializer or a partitioner of the user."""

    def poll(self, limit: int, /) -> int:
        """Report the outcomes that have arrived, but no more than about ``limit``.

        The event loop calls this method: it must not block.

        Returns:
            How many records are in flight, or wait to be reported.
        """
        ...

    def watch(self) -> None:
        """Make a thread of the driver report the outcomes of the submitted records.

        If there are few outcomes, this thread calls :meth:`Sink.completed` itself, and continues
        until the client has no more records. Otherwise it may call :meth:`Sink.ready` once, and
        stop.

        The event loop calls this method after it submitted records or polled, unless it will poll
        soon. The method must not block. A further call while the thread polls does nothing.
        """
        ...


@runtime_checkable
class LingeringDriver(Driver, Protocol):
    """A driver whose client may linger, which means that it waits for more records before it sends
    a batch.

    Kafka's setting for this time is ``linger.ms``. The producer stops the lingering while a caller
    waits for all records, for example in :meth:`~anyio_sendproducer.SendProducer.flush`. It also
    does so while there is no room for records that could join a batch.
    """

    lingers: bool
    """Whether the client lingers; False if ``linger.ms`` is 0. The producer reads this attribute
    once, when the driver is open."""

    def hurry(self, on: bool, /) -> None:  # noqa: FBT001
        """If ``on`` is True, send the records for which the client lingers, and do not linger until
        a call with False.

        The event loop calls this method: it must not block. Before the first call, the client
        lingers. The producer never passes the same value twice in a row.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class BrokerDescription:
    """The description of a broker that the cluster sends to clients."""

    id: int
    host: str
    """The advertised address of the broker."""
    port: int
    version: str | None
    """The version of Kafka whose requests the broker accepts, such as "4.1". If this is the newest
    version that the client knows, "or later" follows. None if the version is unknown, for example
    because the client does not report it."""


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterDescription:
    """The description of a cluster that one of its brokers sends."""

    id: str | None
    controller: int | None
    """The id of the controller; with KRaft, the id of any broker."""
    brokers: tuple[BrokerDescription, ...]


@runtime_checkable
class DescribingDriver(Driver, Protocol):
    """A driver of your own that can describe its cluster, for
    :meth:`~anyio_sendproducer.SendProducer.check`."""

    def describe(self, timeout: float, /) -> ClusterDescription:
        """Ask the cluster to describe itself, and return the answer within ``timeout`` seconds.

        A separate thread calls this method while other threads use the driver, and also before the
        driver is open. If the producer is threadless, the event loop calls this method.

        Raises:
            SendProducerError: the cluster did not answer. The message says why.
        """
        ...


DriverFactory = Callable[[ProducerSettings], Driver]
"""A callable that makes a driver. It checks the settings and does not connect. If the callable has
the attribute ``threadless = True``, the producer starts no driver thread, and the event loop calls
all methods of the driver."""


#: Ends the message of a start that failed.
HOW_FAR: Final = "; `anyio-sendproducer check` shows which step fails"
