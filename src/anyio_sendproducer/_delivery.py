"""Deliveries, groups of deliveries, their states, and the statistics of a producer.

The ledger executes the two tables of transitions. The state diagrams in the documentation are drawn
from them. The glossary, ``docs/reference/glossary.md``, defines the terms: abandoned, room,
unawaited, withdraw.
"""

# These classes and functions share private state by design.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Generator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal, Protocol, cast

from ._exceptions import DeliveryError, copy_of
from ._no_public_constructor import NoPublicConstructor
from ._records import ProducerRecord, RecordMetadata

__all__ = [
    "DELIVERY_TRANSITIONS",
    "PRODUCER_TRANSITIONS",
    "Counts",
    "Delivery",
    "DeliveryState",
    "Entry",
    "Group",
    "ProducerState",
    "RecordFacts",
    "Statistics",
]


class DeliveryState(enum.Enum):
    """The state of a delivery."""

    WAITING = "waiting"
    """The record waits for room. It is not accepted yet."""
    QUEUED = "queued"
    """The record is accepted, and waits for the driver or for the metadata of its topic."""
    SUBMITTED = "submitted"
    """The driver has the record."""
    DELIVERED = "delivered"
    """A broker acknowledged the record; with ``acks=0``, the client sent it."""
    FAILED = "failed"
    """The outcome is an error."""
    WITHDRAWN = "withdrawn"
    """The caller was cancelled before the driver had the record, or the driver gave the record back
    afterwards. It is never written."""


class ProducerState(enum.Enum):
    """The state of a producer."""

    OPEN = "open"
    """The producer accepts records."""
    DRAINING = "draining"
    """The producer accepts no more records, and delivers the accepted ones."""
    BROKEN = "broken"
    """The producer can never send again, and waits to be closed."""
    CLOSED = "closed"
    """The producer is closed, and every record has its outcome."""


#: The transitions of a delivery: state -> event -> next state.
DELIVERY_TRANSITIONS: Final[Mapping[DeliveryState, Mapping[str, DeliveryState]]] = MappingProxyType(
    {
        DeliveryState.WAITING: {
            "room": DeliveryState.QUEUED,
            "cancelled": DeliveryState.WITHDRAWN,
            "deadline or close": DeliveryState.FAILED,
        },
        DeliveryState.QUEUED: {
            "handed over": DeliveryState.SUBMITTED,
            "cancelled": DeliveryState.WITHDRAWN,
            "deadline or close": DeliveryState.FAILED,
        },
        DeliveryState.SUBMITTED: {
            "acknowledged": DeliveryState.DELIVERED,
            "refused, deadline or close": DeliveryState.FAILED,
            "topic not known yet": DeliveryState.QUEUED,
            "topic not known, caller gone": DeliveryState.WITHDRAWN,
        },
        DeliveryState.DELIVERED: {},
        DeliveryState.FAILED: {},
        DeliveryState.WITHDRAWN: {},
    }
)

#: The transitions of a producer: state -> event -> next state.
PRODUCER_TRANSITIONS: Final[Mapping[ProducerState, Mapping[str, ProducerState]]] = MappingProxyType(
    {
        ProducerState.OPEN: {
            "close": ProducerState.DRAINING,
            "driver lost": ProducerState.BROKEN,
            "start failed": ProducerState.CLOSED,
        },
        ProducerState.DRAINING: {
            "drained or out of time": ProducerState.CLOSED,
            "driver lost": ProducerState.BROKEN,
        },
        ProducerState.BROKEN: {"close": ProducerState.CLOSED},
        ProducerState.CLOSED: {},
    }
)

# A global is read faster than an attribute of the enum's class; this one is read for each record.
_QUEUED = DeliveryState.QUEUED


#: A record as observers get it: its number, the record as it was checked (without headers of
#: observers), the time of the call, and the size when it was entered. A tuple is the
#: fastest to make.
RecordFacts = tuple[int, ProducerRecord[Any, Any], float, int]


class Group:
    """Several deliveries whose caller waits once, for all of them.

    Args:
        remaining: the number of deliveries without an outcome, plus 1 until all are entered.
        waiter: the waiter to wake when ``remaining`` becomes 0; None if the caller was cancelled.
        stop_on_error: whether the first failure also fails the ``members`` that the driver does not
            have. The list ``members`` is filled only in this case.
    """

    __slots__ = ("members", "remaining", "stop_on_error", "stopped", "waiter")

    def __init__(self, remaining: int, waiter: object, *, stop_on_error: bool = False) -> None:
        self.remaining = remaining
        self.waiter: object | None = waiter
        self.stop_on_error = stop_on_error
        self.stopped = False
        self.members: list[Entry] = []


class Entry:
    """One delivery.

    Only the ledger changes an entry, with these exceptions:

    - ``room_waiter`` is set by the task that waits for room. It is woken when the record is
      accepted, or fails before that.
    - ``waiter`` is set by the task that waits for the outcome, or on that task's behalf.
    - ``group`` is set by a call with several records. It counts their outcomes.
    - ``given`` is set by the admission, ``envelope`` by a flow, and ``report_number`` by
      :class:`UnawaitedFailures`.
    """

    __slots__ = (
        "abandoned",
        "deadline",
        "envelope",
        "given",
        "group",
        "outcome",
        "record",
        "report_number",
        "room_waiter",
        "seq",
        "size",
        "state",
        "waiter",
        "was_submitted",
    )

    # Each attribute that __init__ sets costs time for each record, so it does not set these four.
    # Set when the record fails:
    report_number: int
    was_submitted: bool
    # Set if the producer has observers. It has the record without the headers that observers added
    # to ``record``.
    given: RecordFacts
    # Set if FlowStream.enter_all() entered the record, as that of a Message:
    envelope: Any

    def __init__(
        self, record: ProducerRecord[Any, Any], size: int, deadline: float, seq: int
    ) -> None:
        self.record = record
        self.size = size
        self.deadline = deadline
        self.seq = seq
        self.state = _QUEUED
        self.outcome: RecordMetadata | DeliveryError | None = None
        self.room_waiter: object | None = None
        self.waiter: object | None = None
        self.group: Group | None = None
        #: Whether the caller was cancelled when the driver had the record or had reported it.
        self.abandoned = False

    @property
    def callers_record(self) -> ProducerRecord[Any, Any]:
        """The record as it was checked, without headers of observers."""
        given: RecordFacts | None = getattr(self, "given", None)
        return self.record if given is None else given[1]


class _Sender(Protocol):
    """Waits for the outcomes of entries."""

    def _must_yield(self) -> bool: ...

    async def _yield(self) -> None: ...

    async def _wait_for_outcome(self, entry: Entry) -> None: ...

    def _mark_seen(self, entry: Entry) -> None: ...


class Delivery(NoPublicConstructor):
    """An accepted record whose outcome can be awaited.

    :meth:`SendProducer.enqueue` and :meth:`SendProducer.enqueue_nowait` return deliveries. You do
    not have to await a delivery. If its record fails and nobody awaits the delivery, an
    :class:`UndeliveredRecords` reports the failure when the producer is closed.
    """

    __slots__ = ("_entry", "_sender")

    _entry: Entry
    _sender: _Sender

    _how_to_make: ClassVar[str] = (
        "a Delivery is made by SendProducer.enqueue() and enqueue_nowait()"
    )

    @classmethod
    def _create(cls, sender: _Sender, entry: Entry) -> Delivery:
        delivery = object.__new__(cls)
        delivery._entry = entry
        delivery._sender = sender
        return delivery

    def __repr__(self) -> str:
        return f"<Delivery {self._entry.state.value} topic={self._entry.record.topic!r}>"

    @property
    def record(self) -> ProducerRecord[Any, Any]:
        """The record."""
        return self._entry.callers_record

    @property
    def done(self) -> bool:
        """Whether the record has its outcome. If it has, :meth:`wait` does not wait."""
        return self._entry.outcome is not None

    def __await__(self) -> Generator[Any, Any, RecordMetadata]:
        """``await delivery`` is short for ``await delivery.wait()``."""
        return self.wait().__await__()

    async def wait(self) -> RecordMetadata:
        """Wait for the outcome. Several tasks may call this method any number of times.

        Returns:
            The metadata of the written record, such as its partition and offset.

        Raises:
            DeliveryError: the record was not delivered; see the ``persistence`` of the error.
            ProducerMisused: the method was called on another event loop, or in another thread or
                process.

        If the record has its outcome, only about one in a hundred calls lets other tasks run. Only
        such a call checks for cancellation, and checks that it runs on the producer's event loop.

        Cancellation ends only this call. The record is still sent, and a later call can wait for
        its outcome.
        """
        entry, sender = self._entry, self._sender
        if entry.outcome is None:
            await sender._wait_for_outcome(entry)
        elif sender._must_yield():
            await sender._yield()
        outcome = entry.outcome
        if type(outcome) is RecordMetadata:
            return outcome
        sender._mark_seen(entry)
        raise copy_of(cast("DeliveryError", outcome))


@dataclasses.dataclass(slots=True)
class Counts:
    """The number of accepted records that ended in each way, and the number of abandoned
    records."""

    delivered: int = 0
    failed: int = 0
    withdrawn: int = 0
    abandoned: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Statistics:
    """The figures of one producer at one moment. To compute rates, take two snapshots."""

    state: Literal["open", "draining", "broken", "closed"]
    """The state of the producer. While the producer is ``"draining"``, it accepts no more records,
    and delivers the accepted ones. A ``"broken"`` producer can never send again."""
    waiting: int
    """Records that wait for room. They are not accepted yet."""
    queued: int
    """Accepted records that wait for the client, or for the metadata of their topic."""
    in_flight: int
    """Accepted records that take up room: they are queued, or the client has them."""
    in_flight_bytes: int
    """The bytes of the keys, values and headers of the records in flight. With a serializer, the
    size of a record is an estimate until the record is serialized."""
    accepted: int
    """Records accepted so far. Each attempt of :func:`send_with_retry` and each dead letter counts
    as a record. Each accepted record is in flight, or counted as delivered, failed or
    withdrawn. A record that failed at its deadline may be counted as failed while it still takes up
    room."""
    delivered: int
    """Records that a broker acknowledged; with ``acks=0``, records that the client sent."""
    failed: int
    """Accepted records whose outcome is an error. A record that is refused before it is accepted,
    for example because it is invalid or got no room, is not counted."""
    withdrawn: int
    """Accepted records whose caller was cancelled before the client received the record, and
    abandoned records that the client returned. Withdrawn records are never written."""
    abandoned: int
    """Records whose caller was cancelled after the client received the record and before the caller
    had the outcome. They are also counted as in flight, delivered or failed. If the client returns
    such a record, for example because the metadata of its topic is missing, the record is counted
    as withdrawn instead."""
    is_connected: bool
    """Whether an open client reaches a broker, as far as the client knows. An idle client may not
    notice that a connection is lost until it uses the connection again. False if the producer is
    broken or closed."""
    generations: int
    """The number of clients so far: 1, plus 1 for each replacement."""
    hand_overs: int
    """The number of batches of records that were passed to the client."""
    wake_ups: int
    """How often the event loop was woken to take reports of the driver, such as outcomes. Each
    wake-up takes all reports that have arrived. While the event loop polls the client for outcomes,
    no wake-up is needed."""
    client: Mapping[str, Any]
    """The client's own figures, under the client's own names; empty if there are none. With the
    driver ``"confluent"``, these are librdkafka's statistics, if ``statistics.interval.ms`` is set;
    they are updated at this interval. With ``"kafka-python"``, they are kafka-python's metrics, if
    ``metrics_enabled`` is set."""
