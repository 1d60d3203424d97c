"""The events, and what an observer is."""

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
    """No other batch of this process has it."""
    count: int
    """How many records the call was given."""
    topic: str | None
    """The topic of all of them; None where they go to several."""


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """A record that a caller just gave to the producer, and how its events know it."""

    number: int
    """That of all events of this record. No other record of this process has it."""
    record: ProducerRecord[Any, Any]
    """The caller's record."""
    at: float
    """When it was given, in seconds of the event loop's clock."""
    client_id: str
    """The ``client_id`` of the producer's settings."""
    batch: Batch | None
    """The call that it is a part of; None where it was given alone."""


@dataclasses.dataclass(frozen=True, slots=True)
class Accepted:
    """A record has room, and goes on its way."""

    number: int
    """The record's; see :class:`Given`."""
    record: ProducerRecord[Any, Any]
    """The caller's record, without the headers that an :class:`Injector` added."""
    at: float
    """When it happened, in seconds of the event loop's clock."""
    size: int
    """The bytes of its key, value and headers, the added ones as well. Where there is a serializer
    this is an estimate."""


@dataclasses.dataclass(frozen=True, slots=True)
class HandedOver:
    """A record was handed to the client. It may come back to wait for its topic's metadata, and be
    handed over again."""

    number: int
    """The record's; see :class:`Given`."""
    record: ProducerRecord[Any, Any]
    """The caller's record."""
    at: float
    """When it happened, in seconds of the event loop's clock."""


@dataclasses.dataclass(frozen=True, slots=True)
class Delivered:
    """The end of an accepted record: a broker acknowledged it."""

    number: int
    """The record's; see :class:`Given`."""
    record: ProducerRecord[Any, Any]
    """The caller's record."""
    at: float
    """When it happened, in seconds of the event loop's clock."""
    duration: float
    """Seconds since it was given."""
    size: int
    """The bytes of its key, value and headers as they were sent."""
    metadata: RecordMetadata
    """Where it was written."""
    abandoned: bool
    """Whether its caller was cancelled when the client had it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """The end of an accepted record: it has its error."""

    number: int
    """The record's; see :class:`Given`."""
    record: ProducerRecord[Any, Any]
    """The caller's record."""
    at: float
    """When it happened, in seconds of the event loop's clock."""
    duration: float
    """Seconds since it was given."""
    error: DeliveryError
    """What its caller is told."""
    handed_over: bool
    """Whether the client had it."""
    abandoned: bool
    """Whether its caller was cancelled when the client had it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Withdrawn:
    """The end of an accepted record: its caller was cancelled before the client had it, and it is
    never written."""

    number: int
    """The record's; see :class:`Given`."""
    record: ProducerRecord[Any, Any]
    """The caller's record."""
    at: float
    """When it happened, in seconds of the event loop's clock."""
    duration: float
    """Seconds since it was given."""


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A record was given and never accepted: it is invalid, or there was no room for it."""

    number: int
    """The record's; see :class:`Given`."""
    record: ProducerRecord[Any, Any]
    """The caller's record, which may be invalid."""
    at: float
    """When it happened, in seconds of the event loop's clock."""
    duration: float
    """Seconds since it was given."""
    error: Exception | None
    """What its caller is told; None where the caller was cancelled while it waited for room. That
    ``enqueue_nowait`` finds no room is told only where added headers took the last of it."""


@dataclasses.dataclass(frozen=True, slots=True)
class BatchEnded:
    """A call that sends several records is over. Records whose caller was cancelled may go on."""

    batch: Batch
    """The call."""
    at: float
    """When it happened, in seconds of the event loop's clock."""
    failed: int
    """How many of its records were not delivered, as far as the call knows."""
    error: Exception | None
    """What ended it before its records had their outcomes; None where nothing did."""
    cancelled: bool
    """Whether its caller was cancelled."""


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationOpened:
    """A client is open: the first, or one in place of another that broke."""

    generation: int
    """1 for the first."""
    at: float
    """When it happened, in seconds of the event loop's clock."""


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationEnded:
    """A client is closed, and the records that it had are told to have ended before."""

    generation: int
    """As when it was opened."""
    at: float
    """When it happened, in seconds of the event loop's clock."""
    error: BaseException | None
    """Why it was given up; None where the producer was closed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Closing:
    """The producer takes no more records, and delivers what it has accepted."""

    at: float
    """When it happened, in seconds of the event loop's clock."""
    pending: int
    """How many accepted records have no outcome yet."""


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
"""What an :class:`Observer` is told."""


class Observer(Protocol):
    """Is told what becomes of records.

    For each record that was accepted it is told :class:`Accepted`, then :class:`HandedOver` if the
    client was given it, and at last exactly one of :class:`Delivered`, :class:`Failed` and
    :class:`Withdrawn`; by then its caller may have gone on. A record that was not accepted is told
    as :class:`Refused` and nothing else. All that happened is told before the producer's block has
    ended.

    It is called on the event loop's thread, which must not wait for anything: what takes time
    belongs on a thread of its own. Whatever it raises is logged under
    ``anyio_sendproducer.telemetry``, once a minute for each kind, and harms nobody.
    """

    def observe(self, events: Sequence[Event], /) -> None:
        """Take note of what happened since the last call, in order.

        Args:
            events: all of it, in one batch; never empty.
        """
        ...


@runtime_checkable
class Injector(Observer, Protocol):
    """An observer that adds headers to records, as tracing does."""

    def inject(self, given: Given, /) -> Iterable[tuple[str, bytes]]:
        """The headers to be added to a record.

        Called on the task that gives the record, in its context, before the record takes room: its
        size counts the headers. The caller's record stays as it is, in results and in errors too.
        Not called for records that are refused at once. Where the headers alone make the record
        larger than ``max_buffered_bytes``, it goes without them.

        Returns:
            Pairs of a str and bytes; empty for none.
        """
        ...
