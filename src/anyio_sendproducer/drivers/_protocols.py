"""The protocol between the producer and its drivers: plain blocking Python, no AnyIO, no futures.

A driver is used by one thread at a time, the producer's own. :meth:`Driver.close` is the exception:
another thread may call it while a call is in progress, and must make that call return soon.
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
    """One record on its way through a driver, and its identity on the way back."""

    record: ProducerRecord[Any, Any]
    """The record to send, with its key and value as they were before the serializers."""
    size: int
    """The bytes of its key, value and headers; an estimate, where there are serializers."""


class Sink(Protocol):
    """Where a driver reports to. Every method may be called from any thread, never blocks, and
    never raises."""

    def completed(self, submissions: Sequence[Any], outcomes: Sequence[Outcome], /) -> None:
        """These submissions have these outcomes, one for one. Each is reported once.

        Two sequences, since a pair for each record would double the work of the garbage
        collector.
        """
        ...

    def metadata_changed(self) -> None:
        """What :meth:`Driver.submit` gave back may be taken now."""
        ...

    def broken(self, error: BaseException, /) -> None:
        """The client can't send any more: close this driver and open another."""
        ...

    def ready(self) -> None:
        """:meth:`PolledDriver.poll` has something to report, or may have."""
        ...


@dataclasses.dataclass(slots=True)
class Submitted:
    """What a driver says of a batch."""

    held: list[Any] = dataclasses.field(default_factory=list[Any])
    """The submissions not taken, in order: their topics' metadata is missing."""
    sizes: list[tuple[Any, int]] = dataclasses.field(default_factory=list[tuple[Any, int]])
    """The bytes of those whose size was an estimate until they were serialized."""


class Deadline:
    """The deadline of one call. The caller that waits for the call may bring it forward.

    Args:
        seconds: from now on.
    """

    __slots__ = ("at",)

    def __init__(self, seconds: float) -> None:
        #: In seconds of :func:`time.monotonic`.
        self.at: float = time.monotonic() + seconds

    def hurry(self, seconds: float) -> None:
        """Let it be so many seconds from now, where it is later than that."""
        self.at = min(self.at, time.monotonic() + seconds)

    @property
    def is_over(self) -> bool:
        """Whether it has come."""
        return time.monotonic() >= self.at


@dataclasses.dataclass(frozen=True, slots=True)
class ConsumedOffset:
    """Up to where a consumer group has read a partition."""

    topic: str
    """That was read."""
    partition: int
    """From 0."""
    offset: int
    """That of the next record to read."""
    metadata: str = ""
    """The group's own note on it."""
    leader_epoch: int = -1
    """That of the last record that was read; -1 where nobody knows it."""


class Driver(Protocol):
    """A blocking Kafka producer."""

    def open(self, sink: Sink, /) -> None:
        """Connect; return when the cluster has answered.

        Bounded by ``start_timeout``, and by :meth:`close` from another thread.

        Raises:
            ProducerStartError: no broker answered in time, or the client refused to be made.
            SettingsError: the client refused a setting.
        """
        ...

    def submit(self, batch: Sequence[Submission], /) -> Submitted:
        """Serialize these and hand them to the client, in order, without waiting for a broker.

        Whatever goes wrong with a single record is reported as its completion. A record whose
        topic's metadata is missing is given back, with all later ones of that topic; the driver
        asks for the metadata meanwhile.
        """
        ...

    def partitions_for(self, topic: str, /) -> frozenset[int] | None:
        """The topic's partitions; None where its metadata is missing (it is asked for).

        Raises:
            SendProducerError: the cluster says that there is no such topic, or that this client
                may not know.
        """
        ...

    def begin_transaction(self) -> None:
        """Begin a transaction; nothing, where one was begun and nothing was sent in it yet.

        Asked for only where the settings have a ``transactional_id``, and so are the next two.

        Raises:
            TransactionError: it can't be begun; ProducerFenced, where that is the reason.
        """
        ...

    def send_offsets(
        self,
        offsets: Sequence[ConsumedOffset],
        group: ConsumerGroupMetadata,
        deadline: Deadline,
        /,
    ) -> None:
        """Make these offsets of a consumer group a part of the transaction.

        Raises:
            TransactionAborted: the transaction can only be aborted by now.
            TransactionError: it failed otherwise; ProducerFenced, where that is the reason.
        """
        ...

    def end_transaction(self, commit: bool, deadline: Deadline, /) -> None:  # noqa: FBT001
        """Commit the transaction, or abort it. What was submitted in it has its outcome, when it
        is committed; when it is aborted, the client is to give up what it has not sent.

        Returns when the brokers said so, soon after the deadline, or after :meth:`close` was
        called from another thread.

        Raises:
            TransactionAborted: it could not be committed. The caller must abort it.
            TransactionOutcomeUnknown: the commit was asked for, and there was no answer.
            TransactionError: it failed otherwise; ProducerFenced, where that is the reason.
        """
        ...

    def last_error(self) -> Exception | None:
        """Return why the client does not reach a broker that it needs, or None.

        The text becomes part of the error of each record whose ``delivery_timeout`` ends. The event
        loop calls this method: it must not block.
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
        """Close the client and end its threads, within about ``timeout`` seconds; 0: by force.

        Every submission without an outcome gets one, where the client still can. A second call
        does nothing.
        """
        ...


@runtime_checkable
class DirectDriver(Driver, Protocol):
    """A driver whose client takes a record without waiting for anything.

    There the loop itself hands over a record that is alone, which saves the way to the thread.
    """

    direct: bool
    """Whether the loop may call :meth:`Driver.submit` with one record, while no other thread calls
    the driver but to close it. False where code of the user's runs in it, such as a serializer.
    Looked at once, when the driver is open."""


@runtime_checkable
class PolledDriver(DirectDriver, Protocol):
    """A driver whose client takes records without waiting, and reports only when it is asked to.

    The event loop itself submits to it and polls it, which saves the way to a thread and back. The
    thread that calls :meth:`poll` does the work for each report, so another thread would only
    compete with the loop for the interpreter. The driver's own thread only wakes the loop.
    """

    direct: bool
    """Whether the loop may call :meth:`Driver.submit` too, also while another thread calls what
    else there is. False where code of the user's runs in it, such as a serializer."""

    def poll(self, most: int, /) -> int:
        """Report what there is to report by now, and about so many outcomes at most.

        Called by the loop, which must not wait for anything.

        Returns:
            How many records are under way, or wait to be reported.
        """
        ...

    def watch(self) -> None:
        """Have :meth:`Sink.ready` called, once, when there is something to report.

        Called by the loop.
        """
        ...


@runtime_checkable
class LingeringDriver(Driver, Protocol):
    """A driver whose client may hold records back for a while, to form larger batches.

    Kafka's name for the time is ``linger.ms``. The producer ends the lingering while a caller waits
    for all records, as :meth:`~anyio_sendproducer.SendProducer.flush` does, and while no more
    records can join a batch because there is no room for them.
    """

    lingers: bool
    """Whether the client holds records back; False where ``linger.ms`` is 0. Read once, when the
    driver is open."""

    def hurry(self, on: bool, /) -> None:  # noqa: FBT001
        """Send what the client holds back now, and hold nothing back as long as this is on.

        Called by the event loop; must not block. Each call changes ``on``, which is False at first.
        """
        ...


DriverFactory = Callable[[ProducerSettings], Driver]
"""Makes a driver; it checks the settings and does not connect."""


#: Ends the message of a cluster that does not answer.
HOW_FAR: Final = "; `anyio-sendproducer check` tells how far one comes"


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
    """The id of the controller; with KRaft, of any broker."""
    brokers: tuple[BrokerDescription, ...]
