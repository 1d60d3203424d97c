"""The events, and the protocols of observers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from .._exceptions import DeliveryError
from .._records import ProducerRecord, RecordMetadata

__all__ = [
    "Accepted",
    "Batch",
    "BatchEnded",
    "Closing",
    "Delivered",
    "Event",
    "Failed",
    "GenerationEnded",
    "GenerationOpened",
    "Given",
    "HandedOver",
    "Injector",
    "Observer",
    "Refused",
    "Withdrawn",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """One call of ``send_many``, or of ``send_envelope`` with a ``MultiMessage``."""

    number: int
    """A number that no other call in this process has."""
    count: int
    """The number of records of the call."""
    topic: str | None
    """The topic of all records; None if they go to several topics."""


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """A record that a caller has just passed to the producer."""

    number: int
    """A number that no other record in this process has. All events of the record contain this
    number."""
    record: ProducerRecord[Any, Any]
    """The caller's record."""
    at: float
    """The time at which the record was passed to the producer, in seconds of the event loop's
    clock. A call with several records passes each record when the earlier records are accepted."""
    client_id: str
    """The ``client_id`` of the producer's settings."""
    batch: Batch | None
    """The call of ``send_many``, or of ``send_envelope`` with a ``MultiMessage``, that sends this
    record; None if another method sends the record."""


@dataclasses.dataclass(frozen=True, slots=True)
class Accepted:
    """A record got room, and was accepted."""

    number: int
    """The number of the record; see :class:`Given`."""
    record: ProducerRecord[Any, Any]
    """The caller's record, without the headers that an :class:`Injector` added."""
    at: float
    """The time of the event, in seconds of the event loop's clock."""
    size: int
    """The size of the record's key, value and headers in bytes, including added headers. The size
    is an estimate if there is a serializer."""


@dataclasses.dataclass(frozen=True, slots=True)
class HandedOver:
    """A record was passed to the driver, which serializes the record and passes it to the client.
    If the metadata of the record's topic is missing, the driver returns the record. The producer
    later passes the record to the driver again, with another event."""

    number: int
    """The number of the record; see :class:`Given`."""
    record: ProducerRecord[Any, Any]
    """The caller's record."""
    at: float
    """The time of the event, in seconds of the event loop's clock."""


@dataclasses.dataclass(frozen=True, slots=True)
class Delivered:
    """An accepted record was delivered: a broker acknowledged it, or with ``acks=0`` the client
    wrote it to the connection. This is the record's last event."""

    number: int
    """The number of the record; see :class:`Given`."""
    record: ProducerRecord[Any, Any]
    """The caller's record."""
    at: float
    """The time of the event, in seconds of the event loop's clock."""
    duration: float
    """Seconds since the record was passed to the producer."""
    size: int
    """The size of the key, value and headers in bytes, as they were sent. With a serializer, the
    size is an estimate if the broker answers while the producer still passes the record's batch to
    the client."""
    metadata: RecordMetadata
    """The metadata of the written record, such as its partition and offset."""
    abandoned: bool
    """Whether the caller was cancelled while the client had the record."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """An accepted record failed. This is the record's last event."""

    number: int
    """The number of the record; see :class:`Given`."""
    record: ProducerRecord[Any, Any]
    """The caller's record."""
    at: float
    """The time of the event, in seconds of the event loop's clock."""
    duration: float
    """Seconds since the record was passed to the producer."""
    error: DeliveryError
    """The error of the record. A caller that waits for the record gets this error."""
    handed_over: bool
    """Whether the driver had the record when the record failed. The value is also True if the
    driver did not pass the record to the client, for example because a serializer failed."""
    abandoned: bool
    """Whether the caller was cancelled while the client had the record."""


@dataclasses.dataclass(frozen=True, slots=True)
class Withdrawn:
    """The caller of an accepted record was cancelled, and the client did not have the record, or
    returned it afterwards. The record is never written. This is its last event."""

    number: int
    """The number of the record; see :class:`Given`."""
    record: ProducerRecord[Any, Any]
    """The caller's record."""
    at: float
    """The time of the event, in seconds of the event loop's clock."""
    duration: float
    """Seconds since the record was passed to the producer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A record was not accepted, because it is invalid or there was no room for it. This is the
    record's only event. If the producer is closed or broken when the caller passes the record,
    there is no event."""

    number: int
    """The number of the record; see :class:`Given`."""
    record: ProducerRecord[Any, Any]
    """The caller's record, which may be invalid."""
    at: float
    """The time of the event, in seconds of the event loop's clock."""
    duration: float
    """Seconds since the record was passed to the producer."""
    error: Exception | None
    """The error that the caller gets; None if the caller was cancelled while it waited for room. If
    ``enqueue_nowait`` finds no room, there is no event, unless only the added headers did not
    fit."""


@dataclasses.dataclass(frozen=True, slots=True)
class BatchEnded:
    """A call with several records ended. If its caller was cancelled, records may still be sent."""

    batch: Batch
    """The call."""
    at: float
    """The time of the event, in seconds of the event loop's clock."""
    failed: int
    """The number of records that were not delivered; 0 if the call ended before its records had
    their outcomes."""
    error: Exception | None
    """The error that ended the call before the records had their outcomes; None if there was
    none."""
    cancelled: bool
    """Whether the caller was cancelled."""


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationOpened:
    """A client was opened, either as the producer's first client, or to replace a client that was
    given up."""

    generation: int
    """The number of the client: 1 for the first, 2 for the next."""
    at: float
    """The time of the event, in seconds of the event loop's clock."""


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationEnded:
    """A client was closed, or the producer no longer uses a client that stays open. The last events
    of the client's records precede this event."""

    generation: int
    """The number of the client, as in :class:`GenerationOpened`."""
    at: float
    """The time of the event, in seconds of the event loop's clock."""
    error: BaseException | None
    """The error that made the producer give up the client, or that broke the producer; None if
    there was no such error."""


@dataclasses.dataclass(frozen=True, slots=True)
class Closing:
    """The producer accepts no more records, and delivers the accepted ones."""

    at: float
    """The time of the event, in seconds of the event loop's clock."""
    pending: int
    """The number of accepted records without an outcome."""


Event = (
    Accepted
    | HandedOver
    | Delivered
    | Failed
    | Withdrawn
    | Refused
    | BatchEnded
    | GenerationOpened
    | GenerationEnded
    | Closing
)
"""An event that an :class:`Observer` gets."""


class Observer(Protocol):
    """An object that gets the events of a producer.

    For each accepted record, an observer gets :class:`Accepted`, then :class:`HandedOver` each time
    the driver receives the record, and finally exactly one of :class:`Delivered`, :class:`Failed`
    and :class:`Withdrawn`. The caller of the record may continue before the observer gets the last
    event. The only event of a record that was not accepted is :class:`Refused`. The observer gets
    all events before the producer's block has ended, except the :class:`BatchEnded` of a call that
    ends later.

    An observer may have an attribute ``event_types``, a collection of event classes such as
    ``(Delivered, Failed)``. The observer then gets only these events, and the producer does not
    create other events for it. The producer reads the attribute when the producer is opened. An
    observer without this attribute gets all events.

    The producer calls an observer on the event loop's thread, so an observer must not block. Do
    slow work on another thread. If the observer raises an exception, the producer logs the error
    under ``anyio_sendproducer.telemetry``, at most once a minute for each kind of error. The error
    has no other effect. Only ``KeyboardInterrupt`` and ``SystemExit`` are raised again.
    """

    def observe(self, events: Sequence[Event], /) -> None:
        """Process the events since the last call.

        Args:
            events: the events, in order; never empty. The :class:`Accepted`,
                :class:`HandedOver` and :class:`Delivered` events are created when an observer first
                reads an event from the sequence, so ``len(events)`` costs very little. An observer
                may keep the sequence.
        """
        ...


@runtime_checkable
class Injector(Observer, Protocol):
    """An observer that adds headers to records, as tracing does.

    If an injector has an attribute ``injects`` that is False when the producer is opened, the
    producer never calls :meth:`inject`.
    """

    def inject(self, given: Given, /) -> Iterable[tuple[str, bytes]]:
        """Return headers to add to a record.

        The producer calls this method in the task that sends the record, before the record takes up
        room. A flow sends its records in a task of its own. The producer does not call this method
        for records that are refused at once. The added headers count towards the size of the
        record. If they would make the record larger than ``max_buffered_bytes``, the record is sent
        without them. The caller's record does not change. Results and errors contain the record
        without the added headers.

        Args:
            given: the record.

        Returns:
            Pairs of a str and bytes. The iterable is empty if there is nothing to add.
        """
        ...
