"""The protocol between the producer and its drivers: plain blocking Python, no AnyIO, no futures.

Which thread calls which method:

- The driver thread, which is the producer's own: ``open``, ``submit``, ``partitions_for``, the
  methods for transactions, and ``last_error``, one at a time.
- The event loop, at any time: ``last_error``, ``is_disconnected``, ``metrics``, ``hurry``, ``poll``
  and ``watch``; and ``submit`` of a :class:`DirectDriver`.
- Any thread: ``close``, even while another method runs. That method must then return soon.
- A thread of its own: ``describe``.

If the factory of the driver has the attribute ``threadless = True``, the event loop calls
everything.
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
"""The outcome of one record."""


class Submission(Protocol):
    """One record that a driver gets. The driver reports its outcome with the same object."""

    record: ProducerRecord[Any, Any]
    """The record to send, with its key and value before serialization."""
    size: int
    """The bytes of its key, value and headers; an estimate if there are serializers."""


class Sink(Protocol):
    """Gets the reports of a driver. Each method may be called from any thread, never blocks, and
    never raises."""

    def completed(self, submissions: Sequence[Any], outcomes: Sequence[Outcome], /) -> None:
        """Report the outcome of each of these submissions. Each submission is reported once.

        The two sequences have the same length. A pair for each record would double the work of the
        garbage collector.
        """
        ...

    def metadata_changed(self) -> None:
        """Report that the driver may now take submissions that :meth:`Driver.submit` held."""
        ...

    def broken(self, error: BaseException, /) -> None:
        """Report that the client can send no more. The producer closes this driver, and opens
        another. If the error is :exc:`~anyio_sendproducer.ProducerFenced`, or the client is the
        user's own, the producer breaks instead."""
        ...

    def ready(self) -> None:
        """Report that :meth:`PolledDriver.poll` may have outcomes to report."""
        ...


@dataclasses.dataclass(slots=True)
class Submitted:
    """What a driver returns for the submissions that it got."""

    held: list[Any] = dataclasses.field(default_factory=list[Any])
    """The submissions that were not taken, in order; mostly because metadata are missing."""
    sizes: list[tuple[Any, int]] = dataclasses.field(default_factory=list[tuple[Any, int]])
    """The true sizes of submissions whose size was an estimate, in bytes."""


class Deadline:
    """The deadline of one call. The caller that waits may bring the deadline forward.

    Args:
        seconds: from now.
    """

    __slots__ = ("at",)

    def __init__(self, seconds: float) -> None:
        #: In seconds of :func:`time.monotonic`.
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
    """A note of the consumer group."""
    leader_epoch: int = -1
    """The leader epoch of the last record that was read; -1 if it is unknown."""


class Driver(Protocol):
    """A blocking Kafka producer."""

    def open(self, sink: Sink, /) -> None:
        """Connect, and return when the cluster has answered.

        The call ends after ``start_timeout`` at the latest, and soon after :meth:`close` is called
        on another thread.

        Raises:
            ProducerStartError: no broker answered in time, or the client could not be made.
            SettingsError: the client refused a setting.
        """
        ...

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        """Serialize records and pass them to the client, in order, without waiting for a broker.

        A failure of a single record is reported as its outcome. If the metadata of a topic are
        missing, the driver requests them. Unless its client keeps the topic's records meanwhile,
        the driver returns them as held.

        :func:`serialize_record` calls the serializers of the settings. If the settings have a
        ``partitioner``, the driver calls :func:`choose_partition` for each record whose
        ``partition`` is None, with the topic's partitions, and sends the record to the result. If
        the partitions are not known yet, the record is held, and the partitioner is called later.
        """
        ...

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        """Return a topic's partitions, or None if the metadata are missing and were requested.

        Raises:
            SendProducerError: the cluster has no such topic, or this client may not use it.
        """
        ...

    def begin_transaction(self) -> None:
        """Begin a transaction. If one is open already, do nothing: the call may be repeated.

        The producer calls this and the next two methods only if the settings have a
        ``transactional_id``.

        Raises:
            TransactionError: the transaction could not be begun.
            ProducerFenced: another producer took over the ``transactional_id``.
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
        """
        ...

    def end_transaction(self, commit: bool, deadline: Deadline, /) -> None:  # noqa: FBT001
        """Commit the transaction, or abort it.

        All records of a transaction have their outcomes before it is committed. If it is aborted,
        the client drops the records that it has not sent.

        This returns when the brokers have answered, soon after the deadline, or soon after
        :meth:`close` was called on another thread.

        Raises:
            TransactionAborted: it could not be committed. The caller must abort it.
            TransactionOutcomeUnknown: the commit was requested, and there was no answer.
            TransactionError: it could not be ended.
            ProducerFenced: another producer took over the ``transactional_id``.
        """
        ...

    def last_error(self) -> Exception | None:
        """Return why the client does not reach a broker that it needs, or None.

        :exc:`~anyio_sendproducer.ProducerFenced` means that another producer has, or may have,
        taken over the ``transactional_id``. Then no other client is opened after this one.

        The text of this error becomes part of the error of each record whose ``delivery_timeout``
        ends. The event loop calls this method: it must not block.
        """
        ...

    def is_disconnected(self) -> bool:
        """Return whether the client's last attempt to connect to each known broker failed.

        The event loop calls this method: it must not block.
        """
        ...

    def metrics(self) -> Mapping[str, Any]:
        """Return the client's own metrics under the client's own names; empty if it has none.

        The event loop calls this method: it must not block.
        """
        ...

    def close(self, timeout: float, /) -> None:
        """Close the client and end its threads, within about ``timeout`` seconds; 0 means by force.

        Each submission without an outcome gets one, if the client still reports it. A second call
        does nothing.
        """
        ...


@runtime_checkable
class DirectDriver(Driver, Protocol):
    """A driver whose client takes records without waiting for anything.

    The event loop itself submits small batches, which saves the crossing to the driver thread.
    """

    direct: bool
    """Whether the event loop may call :meth:`Driver.submit` with a few records. Meanwhile other
    threads may only close the driver, or call ``describe``. False if that would run the user's
    code: a serializer or a partitioner. Read once, when the driver is open."""


@runtime_checkable
class PolledDriver(DirectDriver, Protocol):
    """A driver whose client takes records without waiting, and reports only when it is polled.

    The event loop itself submits to it and polls it, which saves two crossings between threads. The
    thread that calls :meth:`poll` does the work for each report, so another thread would only
    compete with the loop for the interpreter. While there is little to report, the driver's own
    thread watches the client instead.
    """

    direct: bool
    """Whether the event loop may also call :meth:`Driver.submit`, even while another thread calls
    other methods. False if that would run the user's code: a serializer or a partitioner."""

    def poll(self, limit: int, /) -> int:
        """Report the outcomes that have arrived, about ``limit`` at most.

        The event loop calls this method: it must not block.

        Returns:
            How many records are in flight, or wait to be reported.
        """
        ...

    def watch(self) -> None:
        """Have a thread of the driver report the outcomes of the submitted records.

        If there are few outcomes, that thread calls :meth:`Sink.completed` itself, and continues
        until the client has no more records. Otherwise it may call :meth:`Sink.ready`, once, and
        stop.

        The event loop calls this after it submitted records or polled, unless it will poll soon. It
        must not block. Another call while the thread watches does nothing.
        """
        ...


@runtime_checkable
class LingeringDriver(Driver, Protocol):
    """A driver whose client may linger: wait for more records before it sends a batch.

    Kafka's setting for this time is ``linger.ms``. The producer ends the lingering while a caller
    waits for all records, for example in :meth:`~anyio_sendproducer.SendProducer.flush`, and while
    no more records can join a batch because there is no room for them.
    """

    lingers: bool
    """Whether the client lingers; False if ``linger.ms`` is 0. Read once, when the driver is
    open."""

    def hurry(self, on: bool, /) -> None:  # noqa: FBT001
        """Send the records for which the client lingers, and do not linger while ``on`` is True.

        The event loop calls this method: it must not block. ``on`` is False at first, and each call
        changes it.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class BrokerDescription:
    """A broker, as the cluster describes it to clients."""

    id: int
    host: str
    """Its advertised address."""
    port: int
    version: str | None
    """The version of Kafka whose requests it accepts, such as "4.1"; with " or later" if it is the
    newest version that the client knows. None if the client does not report it."""


@dataclasses.dataclass(frozen=True, slots=True)
class ClusterDescription:
    """A cluster, as one of its brokers describes it."""

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

        A thread of its own calls this while other threads use the driver, also before the driver is
        open.

        Raises:
            SendProducerError: why the cluster did not answer.
        """
        ...


DriverFactory = Callable[[ProducerSettings], Driver]
"""Makes a driver; it checks the settings and does not connect."""


#: Ends the message of a start that failed.
HOW_FAR: Final = "; `anyio-sendproducer check` shows which step fails"
