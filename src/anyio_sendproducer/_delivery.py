"""One delivery, one group of deliveries, and the states that the ledger moves them through.

The two tables of transitions are executed by the ledger, and the documents draw their pictures
from them.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from ._exceptions import DeliveryError
from ._records import ProducerRecord, RecordMetadata

if TYPE_CHECKING:
    from .telemetry import Given

__all__ = [
    "DELIVERY_TRANSITIONS",
    "PRODUCER_TRANSITIONS",
    "DeliveryState",
    "Entry",
    "Group",
    "ProducerState",
    "Statistics",
]


class DeliveryState(enum.Enum):
    """The state of a delivery."""

    WAITING = "waiting"
    """It waits for room; it is not accepted yet."""
    QUEUED = "queued"
    """It is accepted and waits for the driver, or for the metadata of its topic."""
    SUBMITTED = "submitted"
    """The driver has it."""
    DELIVERED = "delivered"
    """A broker acknowledged it."""
    FAILED = "failed"
    """It has its error."""
    WITHDRAWN = "withdrawn"
    """Its caller was cancelled before the driver had it; it is never written."""


class ProducerState(enum.Enum):
    """The state of a producer."""

    OPEN = "open"
    """It accepts records."""
    DRAINING = "draining"
    """It accepts no more records, and delivers those that it accepted."""
    BROKEN = "broken"
    """It can never send again, and waits to be closed."""
    CLOSED = "closed"
    """Every record has its outcome; nothing is left."""


#: What can happen to a delivery: state -> event -> the next state.
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

#: What can happen to the producer: state -> event -> the next state.
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

# Enum members are looked up through a descriptor, and each entry begins with this one.
_QUEUED = DeliveryState.QUEUED


class Group:
    """Several deliveries whose caller waits once, for all of them.

    Args:
        remaining: how many of them have no outcome yet.
        waiter: is woken when ``remaining`` becomes 0; None if the caller was cancelled.
        stops: whether the first failure ends the ``members`` that the driver does not have.
    """

    __slots__ = ("members", "remaining", "stopped", "stops", "waiter")

    def __init__(self, remaining: int, waiter: object, *, stops: bool = False) -> None:
        self.remaining = remaining
        self.waiter: object | None = waiter
        self.stops = stops
        self.stopped = False
        self.members: list[Entry] = []


class Entry:
    """One delivery.

    Only the ledger changes it. The exceptions are the waiters and the group, which the waiting
    tasks set: ``room_waiter`` is woken when the record is accepted or can't be, ``waiter`` when it
    has its outcome, and ``group`` counts the outcomes of several.
    """

    __slots__ = (
        "abandoned",
        "deadline",
        "given",
        "group",
        "outcome",
        "record",
        "report",
        "room_waiter",
        "seq",
        "size",
        "state",
        "waiter",
        "was_submitted",
    )

    # The ledger sets these two when the record fails: there is an entry for each record, so that
    # every attribute costs.
    report: int
    was_submitted: bool
    # Set only if the producer has observers: the record that is sent may have headers which the
    # caller's record does not have.
    given: Given

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
        #: Whether the caller was cancelled when the driver had the record.
        self.abandoned = False

    @property
    def callers_record(self) -> ProducerRecord[Any, Any]:
        """The record as its caller knows it."""
        given: Given | None = getattr(self, "given", None)
        return self.record if given is None else given.record


@dataclasses.dataclass(frozen=True, slots=True)
class Statistics:
    """The figures of one producer at one moment. To compute rates, take two snapshots."""

    state: str
    """``"open"``, ``"draining"``, ``"broken"`` or ``"closed"``."""
    waiting: int
    """Records whose ``send`` or ``enqueue`` waits for room; not accepted yet."""
    queued: int
    """Accepted records that the client has not been given yet."""
    in_flight: int
    """Accepted records that hold room: queued, or with the client."""
    in_flight_bytes: int
    """The bytes of their keys, values and headers."""
    accepted: int
    """Records accepted so far; each of them ends up in one of the next four, or is on its way."""
    delivered: int
    """Records acknowledged."""
    failed: int
    """Accepted records whose outcome was an error."""
    withdrawn: int
    """Accepted records that were cancelled before the client was given them, never written."""
    abandoned: int
    """Records whose caller was cancelled after the client was given them. They went on, and are
    counted under ``delivered`` or ``failed`` as well."""
    generations: int
    """How many clients there have been: 1, and 1 more each time a broken one was replaced."""
    hand_overs: int
    """Batches of records that were handed to the client."""
    wake_ups: int
    """Times that outcomes crossed back: each brings all that there were. None, where the event loop
    asks for them itself."""
    client: Mapping[str, Any]
    """What the client counts by itself, under its own names; empty where it does not. With the
    driver ``"confluent"`` these are librdkafka's statistics, as new as ``statistics.interval.ms``
    makes them; with ``"kafka-python"`` its metrics, where ``metrics_enabled`` is set."""
